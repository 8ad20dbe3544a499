//! What answers of an S3 service mean, and whether they are answers to what was asked: tables and checks without a network
//! (format-spec, "S3 mapping").

use crate::edge::store::{Failure, Part};

/// How much may be read past when a server answers a range with the whole object.
const SKIP_BYTES_MAX: u64 = 128 << 20;

pub(super) const NOT_S3_HINT: &str = "the answer does not come from an S3 service: check the endpoint, and whether a proxy or a network \
     log-in page answers in its place";

pub(super) fn is_html(content_type: &str, body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    let begins = |text: &[u8]| {
        start
            .get(..text.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(text))
    };
    content_type.to_ascii_lowercase().starts_with("text/html") || begins(b"<!doctype html") || begins(b"<html")
}

/// How an endpoint is reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    Http,
    HttpLoopback,
}

impl Scheme {
    /// `None`: not an address that we use.
    pub(super) fn of(url: &str) -> Option<Scheme> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // No credentials in addresses.
        if authority.is_empty() || authority.contains('@') {
            return None;
        }
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        };
        let loopback = host.eq_ignore_ascii_case("localhost")
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        match scheme.to_ascii_lowercase().as_str() {
            "https" => Some(Scheme::Https),
            "http" if loopback => Some(Scheme::HttpLoopback),
            "http" => Some(Scheme::Http),
            _ => None,
        }
    }
}

/// The table of HTTP failures: by S3's code where there is one, else by status.
pub(super) fn classify(
    status: u16,
    code: Option<&str>,
    message: &str,
    html: bool,
    region: Option<&str>,
) -> (Failure, Option<String>) {
    let hint = |text: &str| Some(text.to_string());
    let region_hint = || match (
        region,
        message
            .split("expecting '")
            .nth(1)
            .and_then(|rest| rest.split('\'').next()),
    ) {
        (Some(region), _) | (None, Some(region)) => Some(format!("the bucket is in the region {region}: set it")),
        _ => hint("the bucket is in another region or behind another endpoint: set them"),
    };
    match code.unwrap_or_default() {
        "NoSuchKey" | "InvalidRange" => return (Failure::NotFound, None),
        "NoSuchBucket" => {
            return (
                Failure::Unreachable,
                hint("the bucket does not exist at this endpoint: create it, or check its name"),
            );
        }
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "RequestTimeout"
        | "InternalError"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "IncompleteBody"
        | "BandwidthLimitExceeded" => return (Failure::Transient, None),
        // Damaged on the way, or not sent as meant.
        "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
            return (Failure::Protocol, None);
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" => {
            return (
                Failure::Denied,
                hint("the credentials have expired: renew them and run again; what was uploaded is kept"),
            );
        }
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidSecurity" => {
            return (
                Failure::Denied,
                hint(
                    "the credentials are not accepted: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they belong to this endpoint",
                ),
            );
        }
        "RequestTimeTooSkewed" => {
            return (
                Failure::Permanent,
                hint("this machine's clock is wrong by more than 15 minutes: set it"),
            );
        }
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" | "InsufficientCapacity" => {
            return (
                Failure::Full,
                hint("the store or the bucket's quota is full: make room, or prune the repository"),
            );
        }
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => return (Failure::Permanent, region_hint()),
        "InvalidObjectState" => {
            return (
                Failure::Unreadable,
                hint("the object is in an archive class: it must be restored there before it can be read"),
            );
        }
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidPayer" => {
            return (
                Failure::Denied,
                hint("the credentials do not allow this: check the bucket's policy"),
            );
        }
        _ => {}
    }
    match status {
        401 | 403 => (
            Failure::Denied,
            hint("the credentials do not allow this, or are wrong: check them and the bucket's policy"),
        ),
        408 | 409 | 425 | 429 | 500 | 502 | 503 | 504 => (Failure::Transient, None),
        507 => (
            Failure::Full,
            hint("the store is full: make room, or prune the repository"),
        ),
        300..=399 => (Failure::Permanent, region_hint()),
        _ if html => (Failure::Protocol, hint(NOT_S3_HINT)),
        // HEAD answers have no body, so there is no code.
        404 if matches!(code, None | Some("NotFound")) => (Failure::NotFound, None),
        404 => (Failure::Protocol, hint(NOT_S3_HINT)),
        416 => (Failure::NotFound, None),
        200..=299 => (Failure::Protocol, None),
        _ => (Failure::Permanent, None),
    }
}

/// Why an answer's bytes are not those asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misplaced {
    /// The object ends before the range does; it has so many bytes.
    Outside(u64),
    Wrong(String),
}

/// Finds the wanted bytes in an answer: how many to pass over, where in the object they begin, how many they are.
/// `answered` is the body's length, `content_range` the header of that name.
pub(super) fn place_answer(
    part: &Part,
    content_range: Option<&str>,
    answered: u64,
) -> Result<(u64, u64, u64), Misplaced> {
    let wrong = |text: String| Err(Misplaced::Wrong(text));
    let Some(header) = content_range else {
        // The whole object, asked for or not.
        let (start, end) = match part {
            Part::Whole | Part::AtMost(_) => (0, answered),
            Part::Suffix(length) => (answered - answered.min(*length), answered),
            Part::Range(range) => (range.start, range.end),
        };
        return match (end <= answered, start <= SKIP_BYTES_MAX) {
            (false, _) => Err(Misplaced::Outside(answered)),
            (true, true) => Ok((start, start, end - start)),
            (true, false) => wrong("the store ignores ranges".to_string()),
        };
    };
    let Some((first, last, total)) = parse_content_range(header) else {
        return wrong(format!("the range of the answer is {header:?}"));
    };
    let length = last - first + 1;
    let (start, end) = match part {
        Part::Whole | Part::AtMost(_) => (0, total),
        Part::Suffix(wanted) => (total - total.min(*wanted), total),
        Part::Range(range) if range.end > total => return Err(Misplaced::Outside(total)),
        Part::Range(range) => (range.start, range.end),
    };
    if (first, last + 1) != (start, end) {
        return wrong(format!("asked for bytes {start} to {end}, the answer has {header:?}"));
    }
    if answered != length {
        return wrong(format!("the answer has {answered} bytes for {header:?}"));
    }
    Ok((0, start, length))
}

/// Parses `bytes first-last/total` with `first ≤ last < total`.
fn parse_content_range(header: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = header.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (
        first.trim().parse().ok()?,
        last.trim().parse().ok()?,
        total.trim().parse().ok()?,
    );
    (first <= last && last < total).then_some((first, last, total))
}

/// Joins an error and what lies below it to one line. The SDK's own way appends the whole structure, which is pages long.
pub(super) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Many layers repeat what they wrap.
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}

/// Says in a sentence why there are no credentials. `details` is all that the SDK knows, `line` the same as one line; both are
/// empty if nobody was asked.
pub(super) fn classify_credentials(details: &str, line: &str) -> (Failure, String) {
    // How the SDK says that none of its providers has any. The last that is asked is the metadata service of clouds (IMDS); that
    // it refuses, or times out where there is none, says no more.
    let is_nowhere = ["the credential provider was not enabled", "IMDS"];
    if details.is_empty() || is_nowhere.iter().any(|word| details.contains(word)) {
        let text =
            "no credentials were found, neither in the environment nor in a profile nor from a role of this machine";
        return (Failure::Denied, text.to_string());
    }
    let class = if ["timed out", "timeout"].iter().any(|word| details.contains(word)) {
        Failure::Transient
    } else {
        Failure::Denied
    };
    (class, format!("the credentials could not be loaded: {line}"))
}

/// Checks that the keys of a listing belong to it and ascend, across pages.
pub(super) struct ListingOrder<'a> {
    prefix: &'a str,
    pub(super) after: Option<String>,
    last: Option<String>,
}

impl<'a> ListingOrder<'a> {
    pub(super) fn new(prefix: &'a str, after: Option<String>) -> ListingOrder<'a> {
        ListingOrder {
            prefix,
            after,
            last: None,
        }
    }

    /// Returns whether the row is to be delivered: not if it comes before where we asked the listing to begin.
    pub(super) fn accept(&mut self, name: &str) -> Result<bool, String> {
        if !name.starts_with(self.prefix) {
            return Err(format!("{name:?} does not belong to the listing"));
        }
        if let Some(last) = &mut self.last {
            if name <= last.as_str() {
                return Err(format!("{name:?} comes after {last:?}"));
            }
            last.clear();
            last.push_str(name);
        } else {
            self.last = Some(name.to_string());
        }
        Ok(self.after.as_deref().is_none_or(|after| name > after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_classed_by_code_and_status() {
        let cases: &[(u16, Option<&str>, bool, Failure)] = &[
            (404, Some("NoSuchKey"), false, Failure::NotFound),
            (404, Some("NoSuchBucket"), false, Failure::Unreachable),
            (404, None, false, Failure::NotFound),
            (404, None, true, Failure::Protocol),
            (404, Some("SomethingElse"), false, Failure::Protocol),
            (416, Some("InvalidRange"), false, Failure::NotFound),
            (403, None, false, Failure::Denied),
            (403, Some("AccessDenied"), false, Failure::Denied),
            (403, Some("SignatureDoesNotMatch"), false, Failure::Denied),
            (403, Some("InvalidAccessKeyId"), false, Failure::Denied),
            (400, Some("ExpiredToken"), false, Failure::Denied),
            (401, None, false, Failure::Denied),
            (403, Some("RequestTimeTooSkewed"), false, Failure::Permanent),
            (301, Some("PermanentRedirect"), false, Failure::Permanent),
            (302, None, true, Failure::Permanent),
            (400, Some("AuthorizationHeaderMalformed"), false, Failure::Permanent),
            (400, Some("InvalidArgument"), false, Failure::Permanent),
            (400, Some("BadDigest"), false, Failure::Protocol),
            (403, Some("QuotaExceeded"), false, Failure::Full),
            (507, None, false, Failure::Full),
            (409, Some("ConditionalRequestConflict"), false, Failure::Transient),
            (400, Some("RequestTimeout"), false, Failure::Transient),
            (429, None, false, Failure::Transient),
            (500, Some("InternalError"), false, Failure::Transient),
            (502, None, true, Failure::Transient),
            (503, Some("SlowDown"), false, Failure::Transient),
            (503, None, true, Failure::Transient),
            (504, None, true, Failure::Transient),
            (200, None, true, Failure::Protocol),
            (200, None, false, Failure::Protocol),
            (501, Some("NotImplemented"), false, Failure::Permanent),
        ];
        for (status, code, html, expected) in cases {
            assert_eq!(
                classify(*status, *code, "", *html, None).0,
                *expected,
                "{status} {code:?}"
            );
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn errors_of_the_sdk_become_one_line_without_repetition() {
        let layer = |text, source: Option<Layer>| Layer {
            text,
            source: source.map(Box::new),
        };
        let error = layer(
            "dispatch failure",
            Some(layer("io error: refused", Some(layer("refused", None)))),
        );
        assert_eq!(in_one_line(&error), "dispatch failure: io error: refused");
    }

    #[test]
    fn missing_credentials_are_told_in_a_sentence() {
        // What the SDK says on a machine outside of clouds, shortened.
        let nowhere = "the credential provider was not enabled: no providers in chain provided credentials \
            (CredentialsNotLoaded(CredentialsNotLoaded { source: Some(ImdsCommunicationError { source: timed out }) }))";
        let refused =
            "failed to load IMDS session token: service error: request forbidden (ProviderError(ProviderError { .. }))";
        for details in ["", nowhere, refused] {
            let (class, text) = classify_credentials(details, "a line");
            assert_eq!(class, Failure::Denied);
            assert!(
                text.starts_with("no credentials were found") && text.len() < 120,
                "{text}"
            );
        }
        let (class, text) = classify_credentials("ProviderTimedOut: timed out after 5s (..)", "timed out after 5s");
        assert_eq!(class, Failure::Transient);
        assert!(text.ends_with(": timed out after 5s"), "{text}");
        assert_eq!(
            classify_credentials("the profile `x` was not defined", "y").0,
            Failure::Denied
        );
    }

    #[test]
    fn a_wrong_region_is_named() {
        let by_header = classify(301, Some("PermanentRedirect"), "", false, Some("eu-west-1")).1;
        assert!(by_header.expect("a hint").contains("eu-west-1"));
        let message = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'ap-south-1'";
        let by_message = classify(400, Some("AuthorizationHeaderMalformed"), message, false, None).1;
        assert!(by_message.expect("a hint").contains("ap-south-1"));
    }

    #[test]
    fn only_the_bytes_asked_for_are_taken() {
        let range = |start, end| Part::Range(start..end);
        let outside = |size| Err(Misplaced::Outside(size));
        assert_eq!(
            place_answer(&range(10, 20), Some("bytes 10-19/100"), 10),
            Ok((0, 10, 10))
        );
        assert_eq!(
            place_answer(&Part::Suffix(10), Some("bytes 90-99/100"), 10),
            Ok((0, 90, 10))
        );
        assert_eq!(
            place_answer(&Part::Suffix(200), Some("bytes 0-99/100"), 100),
            Ok((0, 0, 100))
        );
        // The range is ignored.
        assert_eq!(place_answer(&Part::Whole, None, 100), Ok((0, 0, 100)));
        assert_eq!(place_answer(&range(10, 20), None, 100), Ok((10, 10, 10)));
        assert_eq!(place_answer(&Part::Suffix(10), None, 100), Ok((90, 90, 10)));
        assert_eq!(place_answer(&Part::Suffix(200), None, 100), Ok((0, 0, 100)));
        // The object is too short.
        assert_eq!(place_answer(&range(90, 110), Some("bytes 90-99/100"), 10), outside(100));
        assert_eq!(place_answer(&range(90, 110), None, 100), outside(100));
        // Something else was sent.
        for (part, header, answered) in [
            (range(10, 20), "bytes 10-18/100", 9),
            (range(10, 20), "bytes 0-9/100", 10),
            (range(10, 20), "bytes 10-19/100", 9),
            (range(10, 20), "bytes 10-19/100", 11),
            (range(10, 20), "bytes 10-19/*", 10),
            (range(10, 20), "bytes 19-10/100", 10),
            (range(10, 20), "bytes 10-19/15", 10),
            (range(10, 20), "bytes */100", 10),
            (range(10, 20), "", 10),
            (Part::Suffix(10), "bytes 0-9/100", 10),
            (Part::Whole, "bytes 0-49/100", 50),
            (range(10, 20), "bytes 0-18446744073709551615/18446744073709551615", 10),
        ] {
            let place = place_answer(&part, Some(header), answered);
            assert!(
                matches!(place, Err(Misplaced::Wrong(_))),
                "{part:?} {header} {answered}: {place:?}"
            );
        }
        let far = SKIP_BYTES_MAX + 1;
        assert!(matches!(
            place_answer(&range(far, far + 1), None, far + 10),
            Err(Misplaced::Wrong(_))
        ));
    }

    #[test]
    fn a_listing_must_ascend_and_belong() {
        let mut order = ListingOrder::new("p/idx/", Some("p/idx/b".to_string()));
        assert_eq!(order.accept("p/idx/a"), Ok(false));
        assert_eq!(order.accept("p/idx/b"), Ok(false));
        assert_eq!(order.accept("p/idx/c"), Ok(true));
        assert!(order.accept("p/idx/c").is_err());
        assert!(order.accept("p/idx/b").is_err());
        assert!(order.accept("p/snap/d").is_err());
        assert_eq!(order.accept("p/idx/d"), Ok(true));
    }

    #[test]
    fn plain_http_is_known_from_loopback() {
        for (url, expected) in [
            ("https://s3.example.org", Some(Scheme::Https)),
            ("HTTPS://s3.example.org:9000/x", Some(Scheme::Https)),
            ("http://127.0.0.1:7480", Some(Scheme::HttpLoopback)),
            ("http://[::1]:7480", Some(Scheme::HttpLoopback)),
            ("http://localhost", Some(Scheme::HttpLoopback)),
            ("http://localhost.example.org", Some(Scheme::Http)),
            ("http://127.0.0.1.example.org", Some(Scheme::Http)),
            ("http://10.0.0.1", Some(Scheme::Http)),
            ("http://127.0.0.1@example.org", None),
            ("ftp://127.0.0.1", None),
            ("127.0.0.1:7480", None),
            ("https://", None),
        ] {
            assert_eq!(Scheme::of(url), expected, "{url}");
        }
    }

    #[test]
    fn a_web_page_is_recognised() {
        assert!(is_html("text/html; charset=utf-8", b""));
        assert!(is_html("", b"\n <!DOCTYPE html><html>"));
        assert!(is_html("application/xml", b"<HTML>"));
        assert!(!is_html("application/xml", b"<?xml version='1.0'?><Error/>"));
    }
}
