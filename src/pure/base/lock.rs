//! The words of Object Lock: how firmly a store keeps an object until a time.

/// Who may take a lock away before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Whoever has a special right.
    Governance,
    /// Nobody.
    Compliance,
}

impl LockMode {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            LockMode::Governance => "governance",
            LockMode::Compliance => "compliance",
        }
    }
}

impl std::fmt::Display for LockMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}
