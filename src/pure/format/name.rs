//! Names of stored objects (format-spec chapter on object names): the only place that builds or parses them.

use crate::pure::id::{KeyId, PackId, SessionId};

/// Data or metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackKind { Data = 0, Meta = 1 }

/// Every name that version 1 knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    Config(u64),
    Protector(KeyId, u32),
    Grant(KeyId, u64),
    Pack(PackKind, PackId, SessionId),
    /// L0 run.
    Run(SessionId, u32),
    /// Part of an L≥1 run: level, session, part name (`p0000`, `s0000`, `c0000-1a2b-3c4d`).
    RunPart(u8, SessionId, String),
    Session(SessionId, u32),
    Outcome(SessionId),
    Condemnation(SessionId),
    Drop(SessionId),
    Hold(SessionId, String),
    Attest(SessionId, u32),
}

impl ObjectName {
    /// Parses a name; `None` for anything that version 1 does not know.
    pub fn parse(_name: &str) -> Option<ObjectName> { todo!() }
}

impl std::fmt::Display for ObjectName {
    /// Writes the name as stored.
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() }
}
