//! Whether everything around a repository is as it should be: the bucket or disk that it is on, this machine, and what is going on in it.
//! Only looks, but for a probe of a few small objects below `tmp/`. Nothing that could not be asked counts as well.

mod bucket;
mod locks;
mod machine;
mod repository;

pub use machine::{cache, directory, secrets};
pub use repository::{leftovers, repository};

#[cfg(feature = "s3")]
pub use bucket::bucket;
pub use bucket::store;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    /// Good to know; nothing has to be done.
    Note,
    Warning,
    /// It could not be looked at. Whether that matters is said by the finding.
    Unknown,
    Problem,
}

impl Level {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Unknown => "could not look",
            Level::Problem => "problem",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, as a short name for scripts: `lifecycle`, `clock`.
    pub subject: &'static str,
    pub level: Level,
    /// What it is, and what it means.
    pub what: String,
    /// What to do.
    pub advice: Option<String>,
    /// Whether something that could not be looked at may hide a loss.
    pub matters: bool,
}

impl Finding {
    fn new(subject: &'static str, level: Level, what: impl Into<String>) -> Finding {
        Finding {
            subject,
            level,
            what: what.into(),
            advice: None,
            matters: false,
        }
    }

    fn ok(subject: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(subject, Level::Ok, what)
    }

    fn note(subject: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(subject, Level::Note, what)
    }

    fn warning(subject: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            advice: Some(advice.into()),
            ..Finding::new(subject, Level::Warning, what)
        }
    }

    fn problem(subject: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            advice: Some(advice.into()),
            ..Finding::new(subject, Level::Problem, what)
        }
    }

    /// Something could not be looked at. `matters`: it may hide a loss.
    pub fn unknown(
        subject: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
        matters: bool,
    ) -> Finding {
        Finding {
            advice: Some(advice.into()),
            matters,
            ..Finding::new(subject, Level::Unknown, what)
        }
    }
}
