//! What went wrong, ready to be told: kind, message, causes, hint.

use crate::pure::base::{Explain, Kind};

/// Why a command did not do all that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// What was being done, outermost first, and then the error; one sentence without full stop each.
    pub doing: Vec<String>,
    pub message: String,
    /// What lies below, outermost first.
    pub causes: Vec<String>,
    pub hint: Option<String>,
}

impl Failure {
    /// Makes a failure of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            doing: Vec::new(),
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// Makes a failure of wrong use.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, message)
    }

    /// Makes a failure of something on this machine that is neither repository nor target, such as a password file.
    pub fn local(message: impl Into<String>, error: &std::io::Error) -> Failure {
        let mut failure = Failure::new(Kind::Usage, message);
        failure.causes.push(error.to_string());
        failure
    }

    /// The reader of the standard output is gone.
    pub fn output(error: &std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::new(Kind::Interrupted, "nobody reads the output any more");
        }
        let mut failure = Failure::new(Kind::Unavailable, "writing the output failed");
        failure.causes.push(error.to_string());
        failure
    }

    /// Adds the next step.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the exit code.
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut causes: Vec<String> = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Wrappers that repeat what they wrap would only make the message longer.
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            next = cause.source();
        }
        Failure {
            kind: error.kind(),
            doing: Vec::new(),
            message: error.to_string(),
            causes,
            hint: error.hint(),
        }
    }
}

/// Adds to an error what was being done.
pub trait Doing<T> {
    /// Puts `what` in front of the message.
    fn doing(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| {
            let mut failure = error.into();
            failure.doing.insert(0, what.into());
            failure
        })
    }
}

/// Returns the word that scripts read for a kind.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Usage => "usage",
        Kind::Busy => "busy",
        Kind::Incomplete => "incomplete",
        Kind::Damage => "damage",
        Kind::Unavailable => "unavailable",
        Kind::Auth => "auth",
        Kind::Tamper => "tamper",
        Kind::Internal => "internal",
        Kind::Refused => "refused",
        Kind::TimeLimit => "time_limit",
        Kind::Interrupted => "interrupted",
    }
}
