//! What an error means to the person who meets it: its kind (and so the exit code), and the next step.

/// The kinds of failure that a caller can tell apart. Each has its own exit code (`larder --help`, and docs/adr/0006-error-kinds-and-exit-codes.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Wrong use or configuration.
    Usage,
    /// Something else holds what this run needs.
    Busy,
    /// Some source data could not be read.
    Incomplete,
    /// Data in the repository is missing or wrong.
    Damage,
    /// The repository or the target is unavailable, read-only or full.
    Unavailable,
    /// Authentication failed, or a key is wrong or missing.
    Auth,
    /// Tampering, rollback or a gap in history.
    Tamper,
    /// A defect of larder itself.
    Internal,
    /// Refused by policy.
    Refused,
    /// A time limit was reached; trying again continues.
    TimeLimit,
    /// Interrupted by a signal.
    Interrupted,
}

impl Kind {
    /// Returns the exit code that stands for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 1,
            Kind::Busy => 2,
            Kind::Incomplete => 3,
            Kind::Damage => 4,
            Kind::Unavailable => 5,
            Kind::Auth => 6,
            Kind::Tamper => 7,
            Kind::Internal => 8,
            Kind::Refused => 9,
            Kind::TimeLimit => 75,
            Kind::Interrupted => 130,
        }
    }
}

/// An error that can say what kind it is and what to do next.
pub trait Explain: std::error::Error {
    /// Returns the kind, which decides the exit code.
    fn kind(&self) -> Kind;

    /// Returns the next step for the person who reads the error, where there is one.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Returns the text of an error with everything below it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
