//! Leaf values (format-spec chapter on entries): everything about one file, directory, link or device.

use super::FormatError;
use crate::pure::base::time::FileTime;
use crate::pure::id::ChunkId;

/// A piece of a file: a chunk, or a hole when the id is [`ChunkId::HOLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef { pub id: ChunkId, pub len: u64 }

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes themselves (≤ 512).
    Inline(Vec<u8>),
    /// Up to 64 pieces.
    Chunks(Vec<ChunkRef>),
    /// More: a list tree.
    List { root: ChunkId, height: u8, count: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File { size: u64, content: Content },
    Dir,
    Symlink { target: Vec<u8> },
    Fifo,
    Socket,
    CharDevice { major: u64, minor: u64 },
    BlockDevice { major: u64, minor: u64 },
    Object { size: u64, content: Content },
    Stream { size: u64, content: Content },
}

/// Optional attributes: the TLVs of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Sorted by name; values ≤ 4096 bytes. Includes POSIX ACLs and capabilities.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Larger values: name, size, content.
    pub xattrs_outline: Vec<(Vec<u8>, u64, Content)>,
    pub born: Option<FileTime>,
    /// Hard links: device and link count; the group is (dev, ino).
    pub hard_link: Option<HardLink>,
    /// FS_IOC_GETFLAGS bits.
    pub flags: Option<u64>,
    /// The file changed while it was read.
    pub changed_while_read: bool,
    /// Content is incomplete; an errno.
    pub incomplete: Option<u64>,
    /// TLVs that this version does not interpret, kept as they are: (tag, bytes). Odd tags are critical.
    pub unknown: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HardLink { pub device: u64, pub links: u64 }

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    /// Permission bits 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: FileTime,
    pub ctime: FileTime,
    pub ino: u64,
    pub attributes: Attributes,
}

impl Entry {
    /// Returns the size of the content; 0 for everything that has none.
    pub fn size(&self) -> u64 {
        match &self.kind {
            EntryKind::File { size, .. } | EntryKind::Object { size, .. } | EntryKind::Stream { size, .. } => *size,
            _ => 0,
        }
    }
    /// Returns the content of a file, object or stream.
    pub fn content(&self) -> Option<&Content> {
        match &self.kind {
            EntryKind::File { content, .. } | EntryKind::Object { content, .. } | EntryKind::Stream { content, .. } => Some(content),
            _ => None,
        }
    }
    pub fn encode(&self, _out: &mut Vec<u8>) { todo!() }
    pub fn decode(_bytes: &[u8]) -> Result<Entry, FormatError> { todo!() }
}
