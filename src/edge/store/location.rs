//! Where a repository is: `path`, `file:///path` or `s3://bucket/prefix`, and how to open it.

use super::counting::{CountingStore, Meter};
use super::limit::{LimitedStore, Limiter, Limits};
use super::local::LocalStore;
use super::retry::{RetryOptions, SystemPace};
use super::{Failure, Store, StoreError};
use crate::pure::base::Timestamp;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::NonZeroU64;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Where a repository is. Holds no secrets: credentials come from the environment, and text that has any is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A bucket, and the beginning of the names in it (without slashes at its ends; may be empty).
    S3 { bucket: String, prefix: String },
}

/// Why text is not a location. The text itself is not repeated: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("the location is empty")]
    Empty,
    #[error("the kind of location {0:?} is not known; use a path, file:///path or s3://bucket/prefix")]
    Scheme(String),
    #[error("the location must hold no user name, password or key; credentials come from the environment")]
    Secret,
    #[error("a file: location needs an absolute path without a host: file:///path")]
    FilePath,
    #[error("this is not a bucket's name: 3 to 63 letters, digits, dots, hyphens or underscores")]
    Bucket,
    #[error("the prefix within the bucket holds an empty or dot-only part, a control character, or is too long")]
    Prefix,
}

impl Location {
    /// Parses what the user typed. Text without `://` is a path.
    pub fn parse(text: impl AsRef<OsStr>) -> Result<Location, LocationError> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(LocationError::Empty);
        }
        let bytes = text.as_bytes();
        let Some(at) = bytes.windows(3).position(|window| window == b"://") else {
            return Ok(Location::Directory(PathBuf::from(text)));
        };
        let scheme = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
        let rest = &bytes[at + 3..];
        match scheme.as_str() {
            "file" => parse_file(rest),
            "s3" => parse_s3(rest),
            // A directory may be called "a://b", but only on purpose: "./a://b".
            _ if scheme.contains('/') => Ok(Location::Directory(PathBuf::from(text))),
            _ => Err(LocationError::Scheme(scheme)),
        }
    }
}

fn parse_file(rest: &[u8]) -> Result<Location, LocationError> {
    if rest.first() != Some(&b'/') {
        return Err(LocationError::FilePath);
    }
    let mut path = Vec::with_capacity(rest.len());
    let mut at = 0;
    while at < rest.len() {
        let digit = |index: usize| rest.get(index).and_then(|byte| char::from(*byte).to_digit(16));
        if rest[at] == b'%' {
            let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
                return Err(LocationError::FilePath);
            };
            let byte = (high * 16 + low) as u8;
            if byte == 0 {
                return Err(LocationError::FilePath);
            }
            path.push(byte);
            at += 3;
        } else {
            path.push(rest[at]);
            at += 1;
        }
    }
    Ok(Location::Directory(PathBuf::from(OsString::from_vec(path))))
}

fn parse_s3(rest: &[u8]) -> Result<Location, LocationError> {
    let text = std::str::from_utf8(rest).map_err(|_| LocationError::Bucket)?;
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    if bucket.contains('@') || bucket.contains(':') {
        return Err(LocationError::Secret);
    }
    let bucket_is_valid = (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        && bucket.bytes().any(|byte| byte.is_ascii_alphanumeric());
    if !bucket_is_valid {
        return Err(LocationError::Bucket);
    }
    let prefix = prefix.trim_matches('/');
    let prefix_is_valid = prefix.is_empty()
        || (prefix.len() <= 400
            && prefix.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !prefix
                .chars()
                .any(|character| character.is_control() || matches!(character, '\\' | '?' | '#')));
    if !prefix_is_valid {
        return Err(LocationError::Prefix);
    }
    Ok(Location::S3 {
        bucket: bucket.to_string(),
        prefix: prefix.to_string(),
    })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => write!(f, "{}", path.display()),
            Location::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Location::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// The checksum that a store is given with an object, and that it checks before it says yes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The fastest, and of the whole object.
    #[default]
    Crc64Nvme,
    /// For stores that do not know the first.
    Crc32c,
    /// For stores that refuse checksum headers.
    None,
}

/// Who larder is to an S3 service, where that is not what the environment says.
#[derive(Clone)]
pub enum Identity {
    /// A profile of the AWS configuration and credentials files.
    Profile(String),
    /// Keys as they are.
    Keys {
        id: String,
        secret: zeroize::Zeroizing<String>,
        token: Option<zeroize::Zeroizing<String>>,
    },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Profile(name) => write!(f, "Profile({name:?})"),
            Identity::Keys { id, .. } => write!(f, "Keys({id:?}, …)"),
        }
    }
}

/// How to talk to a store. What does not concern a kind of store is ignored by it.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Address of an S3 service other than AWS: `https://host[:port]`. Absent: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`,
    /// or AWS.
    pub endpoint: Option<String>,
    /// `https://host/bucket/…` instead of `https://bucket.host/…`. Absent: yes if there is an endpoint.
    pub path_style: Option<bool>,
    /// Absent: `AWS_REGION`, the profile, or us-east-1.
    pub region: Option<String>,
    /// Absent: what the environment, the default profile or the machine's role gives.
    pub identity: Option<Identity>,
    /// Allows plain http to other machines.
    pub insecure_http: bool,
    pub checksum: Checksum,
    /// How many requests may be under way at once.
    pub connections: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a request may go on without a byte in either direction.
    pub stall_timeout: Duration,
    /// Whether the store can create an object only if its name is free (`Store::probe`). If not: look, put, compare.
    pub conditional: bool,
    /// Reads a bucket that keeps versions as it was then, and writes nothing.
    pub as_of: Option<Timestamp>,
    pub retry: RetryOptions,
    /// Bytes per second that all threads together may write, and read.
    pub upload_rate: Option<NonZeroU64>,
    pub download_rate: Option<NonZeroU64>,
    /// Ends waits between attempts, and those that a rate asks for, when set.
    pub cancel: Arc<AtomicBool>,
    /// Counts what passes.
    pub meter: Meter,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            endpoint: None,
            path_style: None,
            region: None,
            identity: None,
            insecure_http: false,
            checksum: Checksum::default(),
            connections: 32,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            conditional: true,
            as_of: None,
            retry: RetryOptions::default(),
            upload_rate: None,
            download_rate: None,
            cancel: Arc::new(AtomicBool::new(false)),
            meter: Meter::default(),
        }
    }
}

impl StoreOptions {
    /// Makes the limits that the rates ask for; each call's result is shared by whoever has it.
    pub fn limits(&self) -> Limits {
        let limiter = |rate: Option<NonZeroU64>| {
            rate.map(|rate| Arc::new(Limiter::new(rate, Arc::new(SystemPace::new()), self.cancel.clone())))
        };
        Limits {
            upload: limiter(self.upload_rate),
            download: limiter(self.download_rate),
        }
    }
}

/// Opens a store, with retries where there is a network, and counted. A directory or bucket that is not there shows with
/// the first call.
pub fn open(location: &Location, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    match location {
        Location::Directory(_) if options.as_of.is_some() => {
            Err(StoreError::new("reading as of a time", location, Failure::Permanent)
                .caused_by("a directory keeps no versions")
                .with_hint("leave out --as-of: it is for buckets that keep versions"))
        }
        Location::Directory(path) => {
            let store = LocalStore::new(path, options.conditional);
            let limits = options.limits();
            if limits.is_empty() {
                return Ok(Arc::new(CountingStore::with_meter(store, options.meter.clone())));
            }
            let store = LimitedStore::new(store, limits);
            Ok(Arc::new(CountingStore::with_meter(store, options.meter.clone())))
        }
        Location::S3 { bucket, prefix } => open_s3(bucket, prefix, options),
    }
}

#[cfg(feature = "s3")]
fn open_s3(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    use super::retry::RetryStore;
    // It keeps to the rates itself: they count what goes over the network, attempts that failed too.
    let store = super::s3::S3Store::open(bucket, prefix, options)?;
    let store = RetryStore::new(
        store,
        options.retry,
        Arc::new(SystemPace::new()),
        options.cancel.clone(),
    );
    Ok(Arc::new(CountingStore::with_meter(store, options.meter.clone())))
}

#[cfg(not(feature = "s3"))]
fn open_s3(bucket: &str, prefix: &str, _options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let location = Location::S3 {
        bucket: bucket.to_string(),
        prefix: prefix.to_string(),
    };
    Err(StoreError::new("connecting to", location, Failure::Permanent).with_hint("this larder was built without S3"))
}

/// Makes the error of a location that cannot be opened as given.
impl From<LocationError> for StoreError {
    fn from(error: LocationError) -> StoreError {
        StoreError::new("connecting to", "the repository", Failure::Permanent)
            .with_hint(error.to_string())
            .caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> Result<Location, LocationError> {
        Ok(Location::S3 {
            bucket: bucket.to_string(),
            prefix: prefix.to_string(),
        })
    }

    fn directory(path: &str) -> Result<Location, LocationError> {
        Ok(Location::Directory(PathBuf::from(path)))
    }

    #[test]
    fn locations_are_parsed() {
        assert_eq!(Location::parse("/srv/backup"), directory("/srv/backup"));
        assert_eq!(Location::parse("backup:old"), directory("backup:old"));
        assert_eq!(Location::parse("./s3://x"), directory("./s3://x"));
        assert_eq!(Location::parse("file:///srv/my%20backup"), directory("/srv/my backup"));
        assert_eq!(Location::parse("FILE:///srv"), directory("/srv"));
        assert_eq!(Location::parse("s3://bucket"), s3("bucket", ""));
        assert_eq!(Location::parse("s3://bucket/"), s3("bucket", ""));
        assert_eq!(Location::parse("s3://bucket/a/b/"), s3("bucket", "a/b"));
        assert_eq!(
            Location::parse(OsStr::from_bytes(b"/srv/\xff")),
            Ok(Location::Directory(OsString::from_vec(b"/srv/\xff".to_vec()).into()))
        );
    }

    #[test]
    fn what_is_no_location_is_refused() {
        assert_eq!(Location::parse(""), Err(LocationError::Empty));
        assert_eq!(
            Location::parse("sftp://host/x"),
            Err(LocationError::Scheme("sftp".to_string()))
        );
        for text in [
            "file://host/x",
            "file://",
            "file:///a%2",
            "file:///a%zz",
            "file:///a%00",
        ] {
            assert_eq!(Location::parse(text), Err(LocationError::FilePath), "{text}");
        }
        for text in ["s3://", "s3:///x", "s3://ab", "s3://a b c", "s3://..."] {
            assert_eq!(Location::parse(text), Err(LocationError::Bucket), "{text}");
        }
        for text in [
            "s3://bucket/a//b",
            "s3://bucket/../x",
            "s3://bucket/a\nb",
            "s3://bucket/a?x=y",
        ] {
            assert_eq!(Location::parse(text), Err(LocationError::Prefix), "{text}");
        }
    }

    #[test]
    fn a_secret_is_refused_and_not_repeated() {
        let error = Location::parse("s3://AKIA:hunter2@bucket/x").expect_err("a secret");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_printed_is_parsed_again() {
        for text in ["/srv/backup", "s3://bucket", "s3://bucket/a/b"] {
            assert_eq!(Location::parse(text).expect("a location").to_string(), text);
        }
    }
}
