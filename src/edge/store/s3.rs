//! A repository in a bucket of S3 or something that speaks like it (format-spec, "S3 mapping").
//!
//! Never trusts: every answer is checked against what was asked (ranges, lengths, order of listings), because between us
//! and the store there may be proxies, portals and stores that only look like S3. Uploads are single `PutObject`s from
//! memory, with a checksum of ours: streamed bodies with trailers break several servers, multipart leaves invisible parts.
//! A store that does not say our checksum back is asked what size it kept.
//! Retries are `retry.rs`'s; the SDK's own are off, because only the caller knows what an ambiguous failure means.

mod answer;
mod as_of;
mod lock;
pub mod settings;

use super::limit::{Limiter, Limits, TICK};
use super::location::{Checksum, Identity, Location, StoreOptions};
use super::{
    Abilities, Created, Failure, Listed, Lock, Part, Partial, Prefix, Refused, Retention, Stat, Store, StoreError,
    StoreKey, Version, Versions, probe_key, refuse_empty, too_large,
};
use crate::pure::base::{LockMode, Timestamp};
use answer::{
    ListingOrder, Misplaced, NOT_S3_HINT, Scheme, classify, classify_credentials, in_one_line, is_html, place_answer,
};
use as_of::AsOf;
use aws_config::meta::region::RegionProviderChain;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, BehaviorVersion, ConfigBag, Credentials, Intercept, ProvideCredentials, Region,
    RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
    interceptors::{BeforeTransmitInterceptorContextMut, BeforeTransmitInterceptorContextRef},
};
use aws_sdk_s3::error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, Delete, ObjectIdentifier};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Threads that drive the sockets. Signing and hashing happen on the calling threads.
const WORKER_THREADS: usize = 2;
/// Uploads are handed to the socket in pieces of this size, so that a stuck one is seen.
const SLICE_BYTES: usize = 128 << 10;
/// What a single `PutObject` may hold.
const OBJECT_BYTES_MAX: u64 = 4 << 30;
/// How much memory is taken on a server's word alone.
const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// Keys in one `DeleteObjects`.
const DELETE_BATCH: usize = 1000;
/// Keys in one page of a listing.
const PAGE_KEYS: i32 = 1000;
/// Pages in a row that may bring nothing.
const EMPTY_PAGES_MAX: u32 = 100;
/// How many of the last bytes are compared where the store cannot create conditionally.
const TAIL_BYTES: u64 = 128;

const CUT_HINT: &str = "something between here and the store cuts or changes uploads: look at proxies and size limits";
const CREDENTIALS_HINT: &str = "no usable credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for \
     temporary ones), or AWS_PROFILE, or run where a role gives them";

/// A repository in a bucket. Calls block; they must not be made from inside an asynchronous runtime.
pub struct S3Store {
    /// Taken only when the store is dropped.
    runtime: Option<tokio::runtime::Runtime>,
    client: aws_sdk_s3::Client,
    location: Location,
    bucket: String,
    /// Empty, or ends in a slash.
    prefix: String,
    /// Plain http: payloads are signed, nothing else protects them.
    sign_payload: bool,
    checksum: Checksum,
    conditional: AtomicBool,
    lock: Mutex<Option<Lock>>,
    as_of: Option<AsOf>,
    stall_timeout: Duration,
    limits: Limits,
    gate: Gate,
    requests: Arc<AtomicU64>,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S3Store({})", self.location)
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets a limited number of requests in at once.
#[derive(Debug)]
struct Gate {
    free: Mutex<usize>,
    left: Condvar,
}

struct Permit<'a>(&'a Gate);

impl Gate {
    fn new(places: usize) -> Gate {
        Gate {
            free: Mutex::new(places.max(1)),
            left: Condvar::new(),
        }
    }

    fn enter(&self) -> Permit<'_> {
        let mut free = self.free.lock();
        while *free == 0 {
            self.left.wait(&mut free);
        }
        *free -= 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.left.notify_one();
    }
}

/// Counts requests, and holds back those that would go out unprotected.
#[derive(Debug)]
struct Tally {
    requests: Arc<AtomicU64>,
    allow_http: bool,
}

impl Intercept for Tally {
    fn name(&self) -> &'static str {
        "larder requests"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.requests.fetch_add(1, Relaxed);
        if context.request().uri().starts_with("https://") || self.allow_http {
            Ok(())
        } else {
            Err(PlainHttp.into())
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the address is plain http")]
struct PlainHttp;

/// Replaces a request's body by slices of the same bytes, once it is signed, and counts them as they go.
#[derive(Debug)]
struct Slicing {
    body: Bytes,
    progress: Arc<AtomicU64>,
    limiter: Option<Arc<Limiter>>,
}

impl Intercept for Slicing {
    fn name(&self) -> &'static str {
        "larder upload"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let slices = Slices {
            rest: self.body.clone(),
            progress: self.progress.clone(),
            limiter: self.limiter.clone(),
            taken: 0,
            wait: None,
        };
        *context.request_mut().body_mut() = SdkBody::from_body_1_x(slices);
        Ok(())
    }
}

struct Slices {
    rest: Bytes,
    progress: Arc<AtomicU64>,
    limiter: Option<Arc<Limiter>>,
    /// Bytes that the limiter has let in and that have not been sent yet.
    taken: u64,
    wait: Option<Pin<Box<tokio::time::Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("a signal stopped the upload")]
struct Stopped;

impl Slices {
    /// Comes back when as many bytes may be sent as it says.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, Stopped>> {
        let Some(limiter) = &self.limiter else {
            return Poll::Ready(Ok(SLICE_BYTES.min(self.rest.len())));
        };
        if self.taken == 0 {
            self.taken = limiter.slice_bytes().min(self.rest.len() as u64);
            self.wait = Some(Box::pin(tokio::time::sleep(limiter.take(self.taken))));
        }
        if limiter.is_cancelled() {
            return Poll::Ready(Err(Stopped));
        }
        if let Some(wait) = &mut self.wait {
            std::task::ready!(wait.as_mut().poll(context));
            self.wait = None;
        }
        Poll::Ready(Ok(std::mem::take(&mut self.taken) as usize))
    }
}

impl http_body::Body for Slices {
    type Data = Bytes;
    type Error = Stopped;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Stopped>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = match std::task::ready!(self.poll_turn(context)) {
            Ok(length) => length,
            Err(stopped) => return Poll::Ready(Some(Err(stopped))),
        };
        self.progress.fetch_add(length as u64, Relaxed);
        let slice = self.rest.split_to(length);
        Poll::Ready(Some(Ok(http_body::Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// An answer to a read whose head has been checked.
struct Opened {
    body: ByteStream,
    /// Bytes to pass over first.
    skip: u64,
    /// Where in the object the wanted bytes begin, and how many they are.
    start: u64,
    length: u64,
    etag: Option<String>,
}

/// What became of a put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    /// The store has what was sent: it says its checksum.
    Verified,
    /// The store said yes, and nothing about a checksum.
    Unverified,
    NameTaken,
}

/// Whether a put asks for a free name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    NameFree,
    None,
}

/// The region of a profile of the AWS configuration.
fn region_of(profile: Option<&str>) -> aws_config::profile::ProfileFileRegionProvider {
    let mut provider = aws_config::profile::ProfileFileRegionProvider::builder();
    if let Some(name) = profile {
        provider = provider.profile_name(name);
    }
    provider.build()
}

impl S3Store {
    /// Connects to a bucket. Only the credentials are looked up; that the bucket is there shows with the first call.
    pub fn open(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<S3Store, StoreError> {
        let location = Location::S3 {
            bucket: bucket.to_string(),
            prefix: prefix.to_string(),
        };
        let failed = |class| StoreError::new("connecting to", &location, class);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .thread_name("larder-s3")
            .enable_all()
            .build()
            .map_err(|error| failed(Failure::Permanent).caused_by(error))?;
        let requests = Arc::new(AtomicU64::new(0));

        let given = options
            .endpoint
            .clone()
            .or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty()));
        let (shared, endpoint) = runtime.block_on(async {
            let profile = match &options.identity {
                Some(Identity::Profile(name)) => Some(name.as_str()),
                _ => None,
            };
            let region = match (&options.region, &given) {
                (Some(region), _) => RegionProviderChain::first_try(Region::new(region.clone())),
                (None, _) if profile.is_some() => RegionProviderChain::first_try(region_of(profile)),
                // Elsewhere than at AWS nobody on the network is asked where we are.
                (None, Some(_)) => {
                    RegionProviderChain::first_try(aws_config::environment::EnvironmentVariableRegionProvider::new())
                        .or_else(aws_config::profile::ProfileFileRegionProvider::new())
                }
                (None, None) => RegionProviderChain::default_provider(),
            };
            let region = region.or_else(Region::new("us-east-1"));
            let loader = aws_config::defaults(BehaviorVersion::latest()).region(region);
            let loader = match &options.identity {
                None => loader,
                Some(Identity::Profile(name)) => loader.profile_name(name).credentials_provider(
                    aws_config::profile::ProfileFileCredentialsProvider::builder()
                        .profile_name(name)
                        .build(),
                ),
                Some(Identity::Keys { id, secret, token }) => loader.credentials_provider(Credentials::new(
                    id,
                    secret.as_str(),
                    token.as_ref().map(|token| token.to_string()),
                    None,
                    "larder",
                )),
            };
            let shared = loader.load().await;
            let endpoint = given.or_else(|| shared.endpoint_url().map(str::to_string));
            (shared, endpoint)
        });

        let plain = match &endpoint {
            None => false,
            Some(url) => match Scheme::of(url) {
                Some(Scheme::Https) => false,
                Some(Scheme::HttpLoopback) => true,
                Some(Scheme::Http) if options.insecure_http => true,
                Some(Scheme::Http) => {
                    return Err(failed(Failure::Permanent).caused_by(PlainHttp).with_hint(
                        "use https, or allow plain http explicitly: the data is encrypted all the same, but everybody on \
                         the way sees the requests",
                    ));
                }
                None => {
                    return Err(failed(Failure::Permanent).with_hint("the endpoint must be https://host[:port]"));
                }
            },
        };

        let credentials = shared.credentials_provider();
        runtime
            .block_on(async {
                match &credentials {
                    Some(provider) => provider.provide_credentials().await.map(|_| ()).map_err(Some),
                    None => Err(None),
                }
            })
            .map_err(|error| {
                let (details, line) = error.as_ref().map_or_else(Default::default, |error| {
                    (DisplayErrorContext(error).to_string(), in_one_line(error))
                });
                let (class, text) = classify_credentials(&details, &line);
                failed(class).with_hint(CREDENTIALS_HINT).caused_by(Said(text))
            })?;

        let timeouts = TimeoutConfig::builder()
            .connect_timeout(options.connect_timeout)
            // A body may take long; what it must not do is stand still, and that is watched here.
            .disable_read_timeout()
            .disable_operation_timeout()
            .disable_operation_attempt_timeout()
            .build();
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .force_path_style(options.path_style.unwrap_or(endpoint.is_some()))
            .interceptor(Tally {
                requests: requests.clone(),
                allow_http: plain,
            });
        if let Ok(name) = AppName::new("larder") {
            config = config.app_name(name);
        }
        if let Some(endpoint) = &endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(S3Store {
            client: aws_sdk_s3::Client::from_conf(config.build()),
            runtime: Some(runtime),
            bucket: bucket.to_string(),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            location,
            sign_payload: plain,
            checksum: options.checksum,
            conditional: AtomicBool::new(options.conditional),
            lock: Mutex::new(None),
            as_of: options.as_of.map(AsOf::new),
            stall_timeout: options.stall_timeout,
            limits: options.limits(),
            gate: Gate::new(options.connections),
            requests,
        })
    }

    fn run<T>(&self, call: impl Future<Output = T>) -> T {
        let _permit = self.gate.enter();
        self.runtime.as_ref().expect("taken only by drop").block_on(call)
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Waits for a call as long as `progress` moves.
    async fn watched<T>(
        &self,
        what: &'static str,
        object: &impl ToString,
        progress: &AtomicU64,
        call: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let mut call = pin!(call);
        let tick = (self.stall_timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(5));
        let mut seen = progress.load(Relaxed);
        let mut since = Instant::now();
        loop {
            if let Ok(value) = tokio::time::timeout(tick, call.as_mut()).await {
                return Ok(value);
            }
            let now = progress.load(Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= self.stall_timeout {
                let text = format!("no byte for {} s", self.stall_timeout.as_secs());
                return Err(StoreError::new(what, object.to_string(), Failure::Transient).caused_by(text));
            }
        }
    }

    /// The same for requests whose bodies are small.
    async fn answered<T, E: SdkFailure>(
        &self,
        what: &'static str,
        object: &impl ToString,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, StoreError> {
        let answer = self.watched(what, object, &AtomicU64::new(0), call).await?;
        answer.map_err(|error| self.failed(what, object, error).0)
    }

    /// Turns an SDK error into ours, and tells the HTTP status if there was one.
    fn failed<E: SdkFailure>(
        &self,
        what: &'static str,
        object: &impl ToString,
        error: SdkError<E, HttpResponse>,
    ) -> (StoreError, Option<u16>) {
        let code = error
            .as_service_error()
            .and_then(|service| service.code())
            .map(str::to_string);
        let text = in_one_line(&error);
        let Some(response) = error.raw_response() else {
            // Some of what decides is in the structure only.
            let details = DisplayErrorContext(&error).to_string();
            let (class, hint, text) = classify_unanswered(&error, &details, text);
            let store_error = StoreError::new(what, object.to_string(), class).caused_by(Said(text));
            return (with_optional_hint(store_error, hint), None);
        };
        let status = response.status().as_u16();
        let body = response.body().bytes();
        let kind = response.headers().get("content-type").unwrap_or_default();
        let html = is_html(kind, body.unwrap_or_default());
        let region = response.headers().get("x-amz-bucket-region");
        let message = error
            .as_service_error()
            .and_then(|service| service.message())
            .unwrap_or_default();
        let request = response.headers().get("x-amz-request-id").unwrap_or("-");
        let said = match &code {
            Some(code) => format!("HTTP {status} {code}: {message} (request {request})"),
            None if html => format!("HTTP {status} with a web page"),
            None if status < 300 => format!("HTTP {status} with a broken body: {text}"),
            None => format!("HTTP {status} (request {request})"),
        };
        // A body that broke off was never there as a whole.
        let (class, hint) = if status < 300 && body.is_none() && !html {
            (Failure::Transient, None)
        } else {
            classify(status, code.as_deref(), message, html, region)
        };
        (
            with_optional_hint(
                StoreError::new(what, object.to_string(), class).caused_by(Said(said)),
                hint,
            ),
            Some(status),
        )
    }

    async fn put(
        &self,
        key: &StoreKey,
        body: Bytes,
        condition: Condition,
        sum: Option<String>,
        retention: Option<Retention>,
    ) -> Result<Put, StoreError> {
        let progress = Arc::new(AtomicU64::new(0));
        let mut request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.name(key.as_str()))
            .content_type("application/octet-stream")
            .body(ByteStream::from(body.clone()));
        if condition == Condition::NameFree {
            request = request.if_none_match("*");
        }
        // Ceph checks the sum only if the algorithm is named, too.
        request = match (self.checksum, sum.clone()) {
            (Checksum::Crc64Nvme, Some(sum)) => request
                .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
                .checksum_crc64_nvme(sum),
            (Checksum::Crc32c, Some(sum)) => request
                .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                .checksum_crc32_c(sum),
            // Nothing is locked that comes without any.
            _ if retention.is_some() => request.checksum_algorithm(ChecksumAlgorithm::Crc32C),
            _ => request,
        };
        if let Some(Retention { mode, until }) = retention {
            request = request
                .object_lock_mode(lock::put_mode(mode))
                .object_lock_retain_until_date(lock::whole_seconds(until));
        }
        let mut call = request.customize().interceptor(Slicing {
            body,
            progress: progress.clone(),
            limiter: self.limits.upload.clone(),
        });
        if !self.sign_payload {
            call = call.disable_payload_signing();
        }
        match self.watched("writing", key, &progress, call.send()).await? {
            Ok(output) if output.e_tag().is_some() || output.request_id().is_some() => {
                let echo = match self.checksum {
                    Checksum::Crc64Nvme => output.checksum_crc64_nvme(),
                    Checksum::Crc32c => output.checksum_crc32_c(),
                    Checksum::None => None,
                };
                match (echo, sum.as_deref()) {
                    (Some(echo), Some(sum)) if echo == sum => Ok(Put::Verified),
                    // Not to be tried again: the name is taken now, and by an object that may look like ours.
                    (Some(_), Some(_)) => Err(StoreError::new("writing", key, Failure::Permanent)
                        .caused_by(Said("the store has another checksum than that of what was sent".into()))
                        .with_hint(CUT_HINT)),
                    _ => Ok(Put::Unverified),
                }
            }
            Ok(_) => Err(not_s3("writing", key)),
            Err(_)
                if self
                    .limits
                    .upload
                    .as_ref()
                    .is_some_and(|limiter| limiter.is_cancelled()) =>
            {
                Err(StoreError::new("writing", key, Failure::Cancelled))
            }
            Err(error) => match self.failed("writing", key, error) {
                (_, Some(412)) if condition == Condition::NameFree => Ok(Put::NameTaken),
                (error, status) if retention.is_some() => Err(lock::refused_put(error, status)),
                (error, _) => Err(error),
            },
        }
    }

    fn sum(&self, body: &[u8]) -> Option<String> {
        match self.checksum {
            Checksum::Crc64Nvme => {
                let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body);
                Some(aws_smithy_types::base64::encode(sum.to_be_bytes()))
            }
            Checksum::Crc32c => {
                let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, body);
                Some(aws_smithy_types::base64::encode(&sum.to_be_bytes()[4..]))
            }
            Checksum::None => None,
        }
    }

    /// Looks, puts, compares: for stores that overwrite whatever is asked of them (format-spec, "Stores without
    /// create-if-absent").
    fn create_unconditionally(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        match self.stat(key) {
            Ok(_) => return Ok(Created::Exists),
            Err(error) if error.class == Failure::NotFound => {}
            Err(error) => return Err(error),
        }
        let sum = self.sum(&body);
        let _ = self.run(self.put(key, body.clone(), Condition::None, sum, self.lock_of(key)))?;
        let tail = TAIL_BYTES.min(body.len() as u64);
        let size = self.stat(key)?.size;
        let ours =
            size == body.len() as u64 && self.read(key, Part::Suffix(tail))? == body[body.len() - tail as usize..];
        Ok(if ours { Created::New } else { Created::Exists })
    }

    /// How many bytes the store has of an object. A put-only writer may list, but not look at it.
    fn kept_bytes(&self, key: &StoreKey) -> Result<u64, StoreError> {
        let denied = match self.stat(key) {
            Err(error) if error.class == Failure::Denied => error,
            answer => return Ok(answer?.size),
        };
        let prefix = Prefix::new(key.as_str()).expect("a key is a prefix");
        let mut kept = None;
        self.list(&prefix, &mut |row| {
            if row.key == *key {
                kept = Some(row.size);
            }
        })?;
        kept.ok_or(denied)
    }

    /// Asks for a part and checks the head of the answer.
    async fn request_part(&self, key: &StoreKey, part: &Part, etag: Option<&str>) -> Result<Opened, StoreError> {
        match self.try_part(key, part, etag).await {
            // Nothing is the last n bytes of an empty object, and some servers refuse more bytes than there are.
            Err((_, Some(416))) if matches!(part, Part::Suffix(_)) => {}
            Err((error, _)) => return Err(error),
            Ok(opened) => return Ok(opened),
        }
        let Part::Suffix(length) = part else {
            unreachable!("matched above")
        };
        let size = self.head(key).await?.size;
        if size == 0 {
            return Ok(Opened {
                body: ByteStream::default(),
                skip: 0,
                start: 0,
                length: 0,
                etag: None,
            });
        }
        let range = Part::Range(size - size.min(*length)..size);
        self.try_part(key, &range, etag).await.map_err(|(error, _)| error)
    }

    /// One request for a part. An error comes with the HTTP status if there was one.
    async fn try_part(
        &self,
        key: &StoreKey,
        part: &Part,
        etag: Option<&str>,
    ) -> Result<Opened, (StoreError, Option<u16>)> {
        let range = match part {
            Part::Whole | Part::AtMost(_) => None,
            Part::Range(range) => Some(format!("bytes={}-{}", range.start, range.end - 1)),
            Part::Suffix(length) => Some(format!("bytes=-{length}")),
        };
        let version = match &self.as_of {
            None => None,
            Some(as_of) => {
                let version = self.version_as_of(as_of, key).await;
                Some(version.map_err(|error| (error, None))?.id)
            }
        };
        let call = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.name(key.as_str()))
            .set_version_id(version)
            .set_range(range)
            .set_if_match(etag.map(str::to_string))
            .send();
        let answer = self
            .watched("reading", key, &AtomicU64::new(0), call)
            .await
            .map_err(|error| (error, None))?;
        let output = answer.map_err(|error| match self.failed("reading", key, error) {
            (_, Some(412)) => (
                protocol("reading", key, "the object changed while it was read"),
                Some(412),
            ),
            failed => failed,
        })?;
        if output.e_tag().is_none() && output.request_id().is_none() {
            return Err((not_s3("reading", key), None));
        }
        let Some(answered) = output.content_length().and_then(|length| u64::try_from(length).ok()) else {
            return Err((protocol("reading", key, "the answer does not tell its length"), None));
        };
        let etag = output.e_tag().map(str::to_string);
        match place_answer(part, output.content_range(), answered) {
            Ok((skip, start, length)) => Ok(Opened {
                body: output.body,
                skip,
                start,
                length,
                etag,
            }),
            Err(Misplaced::Outside(size)) => {
                let error = StoreError::new("reading", key, Failure::NotFound)
                    .caused_by(format!("the range lies outside of the {size} bytes there are"));
                Err((error, None))
            }
            Err(Misplaced::Wrong(text)) => Err((protocol("reading", key, &text), None)),
        }
    }

    /// Reads a part into `buffer`, which has exactly its length.
    async fn fetch_into(&self, key: &StoreKey, part: Part, buffer: &mut [u8]) -> Result<(), StoreError> {
        let mut opened = self.request_part(key, &part, None).await?;
        let mut done = 0;
        self.drain(key, &mut opened, |bytes| {
            // `drain` delivers no more than the range's length.
            buffer[done..done + bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
        })
        .await
    }

    /// Reads on from where `partial` stands.
    async fn fetch_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        let mut opened = match &partial.place {
            Some((place, etag)) => {
                let rest = place.start + partial.bytes.len() as u64..place.end;
                if rest.is_empty() {
                    return Ok(());
                }
                let opened = self.request_part(key, &Part::Range(rest), Some(etag)).await;
                // What has arrived is of no use if it is not of the object that is there now.
                if let Err(error) = &opened
                    && matches!(error.class, Failure::Protocol | Failure::NotFound)
                {
                    *partial = Partial::default();
                }
                opened?
            }
            None => {
                partial.bytes.clear();
                let opened = self.request_part(key, part, None).await?;
                if let Part::AtMost(limit) = part
                    && opened.length > *limit
                {
                    return Err(too_large(key, opened.length));
                }
                if opened.length > OBJECT_BYTES_MAX {
                    return Err(protocol("reading", key, "too large to be an object"));
                }
                partial
                    .bytes
                    .reserve_exact(opened.length.min(RESERVE_BYTES_MAX) as usize);
                // Without a version nothing can be taken up again.
                partial.place = opened
                    .etag
                    .clone()
                    .map(|etag| (opened.start..opened.start + opened.length, etag));
                opened
            }
        };
        self.drain(key, &mut opened, |bytes| partial.bytes.extend_from_slice(bytes))
            .await
    }

    /// Waits until bytes that have arrived are through; meanwhile the sender is not read from, and slows down.
    async fn await_turn(&self, limiter: &Limiter, key: &StoreKey, bytes: u64) -> Result<(), StoreError> {
        let mut wait = limiter.take(bytes);
        while !wait.is_zero() {
            if limiter.is_cancelled() {
                return Err(StoreError::new("reading", key, Failure::Cancelled));
            }
            let step = wait.min(TICK);
            tokio::time::sleep(step).await;
            wait -= step;
        }
        Ok(())
    }

    /// Passes the wanted bytes of an answer to `sink`: all of them, or an error.
    async fn drain(&self, key: &StoreKey, opened: &mut Opened, mut sink: impl FnMut(&[u8])) -> Result<(), StoreError> {
        let broken = |text: String| StoreError::new("reading", key, Failure::Transient).caused_by(Said(text));
        let mut left = opened.length;
        while left > 0 {
            let bytes = match tokio::time::timeout(self.stall_timeout, opened.body.next()).await {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(error))) => return Err(broken(in_one_line(&error))),
                Ok(None) => return Err(broken(format!("the body ended {left} bytes early"))),
                Err(_) => return Err(broken(format!("no byte for {} s", self.stall_timeout.as_secs()))),
            };
            if let Some(limiter) = &self.limits.download {
                self.await_turn(limiter, key, bytes.len() as u64).await?;
            }
            let passed = opened.skip.min(bytes.len() as u64);
            opened.skip -= passed;
            let mut bytes = &bytes[passed as usize..];
            if bytes.len() as u64 > left {
                bytes = &bytes[..left as usize];
            }
            sink(bytes);
            left -= bytes.len() as u64;
        }
        Ok(())
    }

    async fn head(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        if let Some(as_of) = &self.as_of {
            return self.stat_as_of(as_of, key).await;
        }
        let call = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.name(key.as_str()))
            .send();
        let output = match self.answered("reading", key, call).await {
            Ok(output) => output,
            Err(error) if error.class == Failure::NotFound => return Err(self.confirm_absent(key, error).await),
            Err(error) => return Err(error),
        };
        if output.e_tag().is_none() && output.request_id().is_none() {
            return Err(not_s3("reading", key));
        }
        let size = output.content_length().and_then(|length| u64::try_from(length).ok());
        let size = size.ok_or_else(|| protocol("reading", key, "the answer does not tell the size"))?;
        Ok(Stat {
            size,
            modified: output.last_modified().and_then(timestamp),
        })
    }

    /// After a HEAD without an answer in words: whether it is the object that is missing or the whole bucket.
    async fn confirm_absent(&self, key: &StoreKey, absent: StoreError) -> StoreError {
        let call = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.name(key.as_str()))
            .max_keys(1)
            .send();
        match self.answered("reading", key, call).await {
            Err(error) if error.class == Failure::Unreachable => error,
            _ => absent,
        }
    }

    async fn remove_batch(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        let object = |keys: &[StoreKey]| match keys {
            [key] => key.to_string(),
            keys => format!("{} objects", keys.len()),
        };
        if let [key] = keys {
            let call = self
                .client
                .delete_object()
                .bucket(&self.bucket)
                .key(self.name(key.as_str()))
                .send();
            return match self.answered("deleting", key, call).await {
                Err(error) if error.class != Failure::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let identifiers = keys.iter().map(|key| {
            ObjectIdentifier::builder()
                .key(self.name(key.as_str()))
                .build()
                .expect("the key is set, nothing else is needed")
        });
        let delete = Delete::builder()
            .set_objects(Some(identifiers.collect()))
            .quiet(true)
            .build()
            .expect("the objects are set, nothing else is needed");
        let call = self.client.delete_objects().bucket(&self.bucket).delete(delete).send();
        let output = match self
            .watched("deleting", &object(keys), &AtomicU64::new(0), call)
            .await?
        {
            Ok(output) => output,
            Err(error) => match self.failed("deleting", &object(keys), error) {
                // Some stores delete one object at a time only.
                (_, Some(405 | 501)) => {
                    for key in keys {
                        Box::pin(self.remove_batch(std::slice::from_ref(key))).await?;
                    }
                    return Ok(());
                }
                (error, _) => return Err(error),
            },
        };
        for error in output.errors() {
            let code = error.code().unwrap_or_default();
            if code == "NoSuchKey" {
                continue;
            }
            let message = error.message().unwrap_or_default();
            let (class, hint) = classify(200, Some(code), message, false, None);
            // A failure that is not known by name is not known to be final.
            let class = if class == Failure::Protocol {
                Failure::Transient
            } else {
                class
            };
            let key = error.key().unwrap_or_default();
            let failed = StoreError::new("deleting", key, class).caused_by(Said(format!("{code}: {message}")));
            return Err(with_optional_hint(failed, hint));
        }
        Ok(())
    }

    /// Delivers the rows of one listing, page by page.
    fn pages(&self, prefix: &Prefix, after: Option<&StoreKey>, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        if let Some(as_of) = &self.as_of {
            return self.pages_as_of(as_of, prefix, after, each);
        }
        let full_prefix = self.name(prefix.as_str());
        let mut order = ListingOrder::new(&full_prefix, after.map(|key| self.name(key.as_str())));
        let hide_tmp = !prefix.as_str().starts_with("tmp");
        let mut token: Option<String> = None;
        let mut empty_pages = 0;
        loop {
            let call = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(&full_prefix)
                .max_keys(PAGE_KEYS)
                .set_start_after(if token.is_none() { order.after.clone() } else { None })
                .set_continuation_token(token.clone())
                .send();
            let page = self.run(self.answered("listing", prefix, call))?;
            let broken = |text: &str| protocol("listing", prefix, text);
            // Without this element it is not a listing, and an empty listing must not be believed lightly.
            let Some(truncated) = page.is_truncated() else {
                return Err(not_s3("listing", prefix));
            };
            let rows = page.contents();
            if page
                .key_count()
                .is_some_and(|count| count as usize != rows.len() + page.common_prefixes().len())
            {
                return Err(broken("the page does not hold as many keys as it says"));
            }
            empty_pages = if rows.is_empty() { empty_pages + 1 } else { 0 };
            for row in rows {
                let name = row.key().ok_or_else(|| broken("a row has no key"))?;
                if !order.accept(name).map_err(|text| broken(&text))? {
                    continue;
                }
                // Directory marks and other people's names are no keys.
                let Some(key) = StoreKey::new(&name[self.prefix.len()..]) else {
                    continue;
                };
                if hide_tmp && key.as_str().starts_with("tmp/") {
                    continue;
                }
                let size = row.size().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| broken("a row has no size"))?;
                each(Listed {
                    key,
                    size,
                    modified: row.last_modified().and_then(timestamp),
                });
            }
            if !truncated {
                return Ok(());
            }
            let next = page
                .next_continuation_token()
                .filter(|next| !next.is_empty())
                .map(str::to_string);
            if next.is_none() || next == token || empty_pages > EMPTY_PAGES_MAX {
                return Err(broken("the listing says that it goes on, but not where"));
            }
            token = next;
        }
    }
}

impl Store for S3Store {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        refuse_empty(key, &body)?;
        self.require_now("writing", key)?;
        if body.len() as u64 > OBJECT_BYTES_MAX {
            return Err(StoreError::new("writing", key, Failure::Permanent).caused_by("too large for one object"));
        }
        let length = body.len() as u64;
        if !self.conditional.load(Relaxed) {
            return self.create_unconditionally(key, body);
        }
        let sum = self.sum(&body);
        match self.run(self.put(key, body, Condition::NameFree, sum, self.lock_of(key)))? {
            Put::NameTaken => return Ok(Created::Exists),
            Put::Verified => return Ok(Created::New),
            Put::Unverified => {}
        }
        // It may have kept less than was sent, and said yes all the same (I-4).
        let kept = self.kept_bytes(key)?;
        if kept != length {
            return Err(StoreError::new("writing", key, Failure::Permanent)
                .caused_by(format!("the store kept {kept} of {length} bytes"))
                .with_hint(CUT_HINT));
        }
        Ok(Created::New)
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        let mut partial = Partial::default();
        self.read_on(key, &part, &mut partial)?;
        Ok(Bytes::from(partial.bytes))
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let Some(end) = offset.checked_add(buffer.len() as u64) else {
            return Err(StoreError::new("reading", key, Failure::NotFound).caused_by("no object is that large"));
        };
        self.run(self.fetch_into(key, Part::Range(offset..end), buffer))
    }

    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        match part {
            Part::Suffix(0) => Ok(()),
            Part::Range(range) if range.start == range.end => Ok(()),
            Part::Range(range) if range.start > range.end => {
                Err(StoreError::new("reading", key, Failure::NotFound).caused_by("the range ends before it begins"))
            }
            _ => self.run(self.fetch_on(key, part, partial)),
        }
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.pages(prefix, None, each)
    }

    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        self.pages(prefix, after, each)
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.run(self.head(key))
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        self.require_now("deleting", &self.location)?;
        keys.chunks(DELETE_BATCH)
            .try_for_each(|batch| self.run(self.remove_batch(batch)))
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.require_now("preparing", &self.location)?;
        // One row tells whether the place is empty, a second request whether what is there is a repository.
        let first = |prefix: String| {
            let call = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(prefix)
                .max_keys(1)
                .send();
            let page = self.run(self.answered("connecting to", &self.location, call))?;
            if page.is_truncated().is_none() {
                return Err(not_s3("connecting to", &self.location));
            }
            Ok(page.contents().first().and_then(|row| row.key()).map(str::to_string))
        };
        let Some(found) = first(self.prefix.clone())? else {
            return Ok(());
        };
        let is_ours =
            found == self.prefix || found.starts_with(&self.name("tmp/")) || first(self.name("config/"))?.is_some();
        if is_ours {
            return Ok(());
        }
        Err(
            StoreError::new("connecting to", &self.location, Failure::Permanent).with_hint(format!(
                "the place is neither empty nor a repository (it holds {found:?}); choose another prefix in the bucket"
            )),
        )
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        self.require_now("trying out", &self.location)?;
        let key = probe_key()?;
        let wrong = probe_key()?;
        let body = Bytes::from_static(b"probe");
        let result = (|| {
            let sum = self.sum(&body);
            let put = |key: &StoreKey, condition, sum| self.run(self.put(key, body.clone(), condition, sum, None));
            let conditional_create = match put(&key, Condition::NameFree, sum.clone()) {
                Ok(Put::NameTaken) => false,
                Ok(_) => put(&key, Condition::NameFree, sum)? == Put::NameTaken,
                // Refused for the condition's sake, if it is taken without one.
                Err(error) if error.class == Failure::Permanent => {
                    let _ = put(&key, Condition::None, sum)?;
                    false
                }
                Err(error) => return Err(error),
            };
            let verifies_checksums = match self.sum(b"something else") {
                None => false,
                sum => match put(&wrong, Condition::None, sum) {
                    Ok(_) => false,
                    Err(error) if error.class == Failure::Transient => return Err(error),
                    Err(_) => true,
                },
            };
            let read = self.read(&key, Part::Suffix(3)).is_ok_and(|read| *read == body[2..]);
            let sized = self.stat(&key).is_ok_and(|stat| stat.size == body.len() as u64);
            let mut listed = false;
            let prefix = Prefix::new(key.as_str()).expect("a key is a prefix");
            self.list(&prefix, &mut |row| listed |= row.key == key)?;
            Ok(Abilities {
                conditional_create,
                verifies_checksums,
                strong_listing: read && sized && listed,
            })
        })();
        let removed = self.erase(&[key, wrong]).map(drop);
        // A writer that may not delete leaves a few bytes behind; that is no reason to fail.
        match removed {
            Err(error) if error.class != Failure::Denied => result.and(Err(error)),
            _ => result,
        }
    }

    fn set_conditional(&self, conditional: bool) {
        self.conditional.store(conditional, Relaxed);
    }

    fn set_lock(&self, lock: Option<Lock>) {
        *self.lock.lock() = lock;
    }

    fn try_lock(&self, mode: LockMode) -> Result<(), StoreError> {
        self.require_now("locking", &self.location)?;
        self.lock_a_probe(mode)
    }

    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        self.run(self.retention_of(key, version))
    }

    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        self.require_now("locking", key)?;
        self.run(self.put_retention(key, version, retention))
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        self.require_now("deleting", &self.location)?;
        // Where nothing is locked, old versions are what undoes a mistake: they are left to the bucket's rules.
        if self.lock.lock().is_none() {
            self.remove(keys)?;
            return Ok(Vec::new());
        }
        self.erase_versions(keys)
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        self.version_pages(prefix, after, each)
    }

    fn location(&self) -> String {
        match &self.as_of {
            None => self.location.to_string(),
            Some(as_of) => format!("{} as of {}", self.location, timestamp_text(as_of.time)),
        }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

/// What an SDK operation's error can do.
trait SdkFailure: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static {}
impl<E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static> SdkFailure for E {}

/// What the other side (or the SDK) said, as text: SDK errors hold whole responses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

fn with_optional_hint(error: StoreError, hint: Option<String>) -> StoreError {
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

fn protocol(what: &'static str, object: &impl ToString, text: &str) -> StoreError {
    StoreError::new(what, object.to_string(), Failure::Protocol).caused_by(Said(text.to_string()))
}

fn not_s3(what: &'static str, object: &impl ToString) -> StoreError {
    protocol(what, object, "not an S3 answer").with_hint(NOT_S3_HINT)
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    i64::try_from(time.as_nanos()).ok().map(Timestamp)
}

fn timestamp_text(time: Timestamp) -> String {
    DateTime::from_secs(time.0.div_euclid(1_000_000_000))
        .fmt(DateTimeFormat::DateTime)
        .unwrap_or_else(|_| "a time".to_owned())
}

/// The failures without an HTTP answer: class, hint and text. `details` is all that the SDK knows, `line` the same as one line.
fn classify_unanswered<E>(
    error: &SdkError<E, HttpResponse>,
    details: &str,
    line: String,
) -> (Failure, Option<String>, String) {
    let lower = details.to_ascii_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    if says(&["the address is plain http"]) {
        let hint = "use https, or allow plain http explicitly";
        return (Failure::Permanent, Some(hint.to_string()), line);
    }
    if says(&["certificate", "unknownissuer"]) {
        let hint = "the server's certificate is not trusted here: install its authority, or name it in SSL_CERT_FILE";
        return (Failure::Permanent, Some(hint.to_string()), line);
    }
    let on_the_way = match error {
        SdkError::TimeoutError(_) => true,
        SdkError::DispatchFailure(failure) => failure.is_io() || failure.is_timeout(),
        _ => false,
    };
    if !on_the_way && says(&["credential"]) {
        let (class, text) = classify_credentials(details, &line);
        return (class, Some(CREDENTIALS_HINT.to_string()), text);
    }
    let unresolved = says(&["dns error", "failed to lookup address"])
        .then(|| "the endpoint's host name cannot be resolved: check it, and the network".to_string());
    let (class, hint) = match error {
        SdkError::TimeoutError(_) => (Failure::Transient, unresolved),
        SdkError::DispatchFailure(failure) if failure.is_user() => (Failure::Permanent, None),
        SdkError::DispatchFailure(_) => (Failure::Transient, unresolved),
        _ => (Failure::Permanent, None),
    };
    (class, hint, line)
}
