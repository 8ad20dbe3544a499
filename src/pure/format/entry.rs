//! Leaf values (format-spec chapters 12.3 to 12.5): everything about one file, directory, link or device.
//!
//! Encoding is canonical: an accepted value encodes to the same bytes again, also with attributes that this version
//! does not know. [`Entry::peek`] reads only the fixed fields, for code that passes millions of entries.

use super::codec::{Reader, malformed, put_varint, put_zigzag};
use super::list::{LIST_LEVEL_MAX, put_element, read_piece};
use super::node::VALUE_BYTES_MAX;
use super::{FormatError, Malformed, blob::RAW_BYTES_MAX};
use crate::pure::base::time::FileTime;
use crate::pure::id::ChunkId;

/// Most bytes that are kept in the entry itself; configurations may lower it.
pub const INLINE_BYTES_MAX: usize = 512;
/// Most pieces that are listed in the entry itself; configurations may lower it.
pub const INLINE_PIECES_MAX: usize = 64;
/// Longest name of an extended attribute, in bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute that is kept in the entry, in bytes.
pub const XATTR_BYTES_MAX: usize = 4096;

const MODE_MAX: u64 = 0o7777;
const NANOS_MAX: u64 = 999_999_999;

/// A piece of a file: a chunk, or a hole when the id is [`ChunkId::HOLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// The chunk, or [`ChunkId::HOLE`].
    pub id: ChunkId,
    /// Bytes of content: 1 … 16 MiB; for a hole any number but 0.
    pub len: u64,
}

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes themselves (≤ 512). The only form of empty content.
    Inline(Vec<u8>),
    /// 1 to 64 pieces.
    Chunks(Vec<ChunkRef>),
    /// More: a list tree; `count` pieces in all.
    List {
        /// The root node of the list.
        root: ChunkId,
        /// Level of the root node.
        height: u8,
        /// Chunks and holes in all.
        count: u64,
    },
}

/// What an entry is, and what only this kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File { size: u64, content: Content },
    /// A directory.
    Dir,
    /// A symbolic link; the target has at least one byte and no zero byte.
    Symlink { target: Vec<u8> },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device; both numbers below 2³².
    CharDevice { major: u64, minor: u64 },
    /// A block device; both numbers below 2³².
    BlockDevice { major: u64, minor: u64 },
    /// An object of an object map.
    Object { size: u64, content: Content },
    /// A stream of a stream set.
    Stream { size: u64, content: Content },
}

/// The type byte of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryType {
    File = 1,
    Dir = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
    Object = 8,
    Stream = 9,
}

/// Optional attributes: the TLVs of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Sorted by name; values ≤ 4096 bytes. Includes POSIX ACLs and capabilities.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Larger values: name, size, content. Sorted by name; no name is in both lists.
    pub xattrs_outline: Vec<(Vec<u8>, u64, Content)>,
    /// Birth time.
    pub born: Option<FileTime>,
    /// Hard links: device and link count; the group is (dev, ino).
    pub hard_link: Option<HardLink>,
    /// FS_IOC_GETFLAGS bits.
    pub flags: Option<u64>,
    /// The file changed while it was read.
    pub changed_while_read: bool,
    /// Content is incomplete; an errno, at least 1.
    pub incomplete: Option<u64>,
    /// TLVs that this version does not interpret, kept as they are: (tag, bytes), by tag. Odd tags are critical.
    pub unknown: Vec<(u64, Vec<u8>)>,
}

impl Attributes {
    /// Whether there is an attribute that this version does not know and that must not be ignored: the entry cannot be
    /// restored faithfully.
    pub fn has_unknown_critical(&self) -> bool {
        self.unknown.iter().any(|(tag, _)| tag % 2 == 1)
    }
}

/// Device and link count of a file with several names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HardLink {
    /// Device number, as the system gives it.
    pub device: u64,
    /// Names of the file, also outside of what was backed up.
    pub links: u64,
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: FileTime,
    /// Time of the last change of content or metadata; serves change detection only.
    pub ctime: FileTime,
    /// Inode number.
    pub ino: u64,
    /// Everything optional.
    pub attributes: Attributes,
}

/// The fixed fields of an entry: what change detection compares, without allocating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    pub entry_type: EntryType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: FileTime,
    pub ctime: FileTime,
    pub ino: u64,
    /// Size of the content; 0 for everything that has none.
    pub size: u64,
}

impl EntryType {
    /// Returns the type that a byte stands for.
    pub fn from_byte(byte: u8) -> Option<EntryType> {
        Some(match byte {
            1 => EntryType::File,
            2 => EntryType::Dir,
            3 => EntryType::Symlink,
            4 => EntryType::Fifo,
            5 => EntryType::Socket,
            6 => EntryType::CharDevice,
            7 => EntryType::BlockDevice,
            8 => EntryType::Object,
            9 => EntryType::Stream,
            _ => return None,
        })
    }

    /// Whether entries of this type have a content.
    pub fn has_content(self) -> bool {
        matches!(self, EntryType::File | EntryType::Object | EntryType::Stream)
    }
}

impl EntryKind {
    /// Returns the type byte's meaning.
    pub fn entry_type(&self) -> EntryType {
        match self {
            EntryKind::File { .. } => EntryType::File,
            EntryKind::Dir => EntryType::Dir,
            EntryKind::Symlink { .. } => EntryType::Symlink,
            EntryKind::Fifo => EntryType::Fifo,
            EntryKind::Socket => EntryType::Socket,
            EntryKind::CharDevice { .. } => EntryType::CharDevice,
            EntryKind::BlockDevice { .. } => EntryType::BlockDevice,
            EntryKind::Object { .. } => EntryType::Object,
            EntryKind::Stream { .. } => EntryType::Stream,
        }
    }
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
            EntryKind::File { content, .. } | EntryKind::Object { content, .. } | EntryKind::Stream { content, .. } => {
                Some(content)
            }
            _ => None,
        }
    }

    /// Appends the encoded entry.
    ///
    /// # Panics
    /// If the entry breaks a rule of the format. Entries made of what a file system says go through
    /// [`try_encode`](Self::try_encode), which says so instead.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.try_encode(out)
            .expect("the caller gives only entries that the format can hold");
    }

    /// Appends the encoded entry. Extended attributes are put into order. Where the seconds of `ctime` and `mtime` are
    /// more than 2⁶³ apart, `ctime` is moved nearer: it is never restored, and the file merely counts as changed.
    ///
    /// # Errors
    /// Names the rule of the format that the entry breaks, so that no reader could open it; `out` is then as before.
    pub fn try_encode(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let start = out.len();
        let result = self.put(out).and_then(|()| {
            if out.len() - start > VALUE_BYTES_MAX {
                malformed("entry: value longer than 65536 bytes")
            } else {
                Ok(())
            }
        });
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Decodes an entry and checks every rule that does not need the rest of the tree.
    ///
    /// # Errors
    /// Names the rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Entry, FormatError> {
        Ok(read_entry(bytes)?)
    }

    /// Reads the fixed fields only, without allocating.
    ///
    /// # Errors
    /// If one of these fields breaks a rule; what follows them is not looked at.
    pub fn peek(value: &[u8]) -> Result<EntryHead, FormatError> {
        let mut reader = Reader::new(value);
        let mut head = read_head(&mut reader)?;
        if head.entry_type.has_content() {
            head.size = reader.varint("entry: size")?;
        }
        Ok(head)
    }

    /// Returns the size of the content of an encoded entry, 0 for types that have none: what the totals of inner nodes
    /// count.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    pub fn peek_size(value: &[u8]) -> Result<u64, FormatError> {
        Ok(Entry::peek(value)?.size)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        at_most(self.mode.into(), MODE_MAX, "entry: mode")?;
        out.push(self.kind.entry_type() as u8);
        put_varint(out, self.mode.into());
        put_varint(out, self.uid.into());
        put_varint(out, self.gid.into());
        put_time(out, self.mtime.seconds, self.mtime.nanos)?;
        put_time(
            out,
            self.ctime.seconds.saturating_sub(self.mtime.seconds),
            self.ctime.nanos,
        )?;
        put_varint(out, self.ino);
        match &self.kind {
            EntryKind::File { size, content }
            | EntryKind::Object { size, content }
            | EntryKind::Stream { size, content } => {
                put_content(out, *size, content)?;
            }
            EntryKind::Symlink { target } => {
                check_target(target)?;
                put_varint(out, target.len() as u64);
                out.extend_from_slice(target);
            }
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                put_varint(out, at_most(*major, u32::MAX.into(), "entry: device number")?);
                put_varint(out, at_most(*minor, u32::MAX.into(), "entry: device number")?);
            }
            EntryKind::Dir | EntryKind::Fifo | EntryKind::Socket => {}
        }
        self.attributes.put(out)
    }
}

impl ChunkRef {
    /// Whether this is a hole: zero bytes that are stored nowhere.
    pub fn is_hole(&self) -> bool {
        self.id == ChunkId::HOLE
    }

    /// Checks the length: 1 … 16 MiB, for a hole any number but 0.
    ///
    /// # Errors
    /// Names the rule that is broken.
    pub fn check(&self) -> Result<(), Malformed> {
        if self.len == 0 {
            return malformed("content: piece of length 0");
        }
        if self.len > RAW_BYTES_MAX as u64 && !self.is_hole() {
            return malformed("content: chunk longer than 16 MiB");
        }
        Ok(())
    }
}

impl Content {
    /// Checks that the form may hold `size` bytes: limits, lengths of the pieces, and their sum. What is inside of a
    /// list is not looked at.
    ///
    /// # Errors
    /// Names the rule that is broken.
    pub fn check(&self, size: u64) -> Result<(), Malformed> {
        match self {
            Content::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => {
                malformed("content: more than 512 bytes inline")
            }
            Content::Inline(bytes) if bytes.len() as u64 != size => malformed("content: inline bytes are not the size"),
            Content::Inline(_) => Ok(()),
            _ if size == 0 => malformed("content: nothing, but not inline"),
            Content::Chunks(pieces) if pieces.is_empty() || pieces.len() > INLINE_PIECES_MAX => {
                malformed("content: not 1 to 64 pieces")
            }
            Content::Chunks(pieces) => {
                pieces.iter().try_for_each(ChunkRef::check)?;
                if sum(pieces.iter().map(|piece| piece.len)) != Some(size) {
                    return malformed("content: lengths do not add up to the size");
                }
                Ok(())
            }
            Content::List { root, .. } if *root == ChunkId::HOLE => malformed("content: list root of zeros"),
            Content::List { height, .. } if *height > LIST_LEVEL_MAX => malformed("content: list height above 7"),
            Content::List { count: 0, .. } => malformed("content: list without elements"),
            Content::List { .. } => Ok(()),
        }
    }
}

/// Adds lengths up; `None` beyond 64 bits.
pub(crate) fn sum(mut lengths: impl Iterator<Item = u64>) -> Option<u64> {
    lengths.try_fold(0u64, |sum, len| sum.checked_add(len))
}

const FORM_INLINE: u8 = 0;
const FORM_CHUNKS: u8 = 1;
const FORM_LIST: u8 = 2;

fn put_content(out: &mut Vec<u8>, size: u64, content: &Content) -> Result<(), Malformed> {
    content.check(size)?;
    put_varint(out, size);
    match content {
        Content::Inline(bytes) => {
            out.push(FORM_INLINE);
            out.extend_from_slice(bytes);
        }
        Content::Chunks(pieces) => {
            out.push(FORM_CHUNKS);
            put_varint(out, pieces.len() as u64);
            pieces.iter().for_each(|piece| put_element(out, &piece.id, piece.len));
        }
        Content::List { root, height, count } => {
            out.push(FORM_LIST);
            out.extend_from_slice(root.as_bytes());
            out.push(*height);
            put_varint(out, *count);
        }
    }
    Ok(())
}

fn read_content(reader: &mut Reader<'_>) -> Result<(u64, Content), Malformed> {
    let size = reader.varint("entry: size")?;
    let content = match reader.u8("content: form")? {
        FORM_INLINE => {
            let len = usize::try_from(size).unwrap_or(usize::MAX);
            if len > INLINE_BYTES_MAX {
                return malformed("content: more than 512 bytes inline");
            }
            Content::Inline(reader.take(len, "content: inline bytes")?.to_vec())
        }
        FORM_CHUNKS => {
            let count = reader.length(INLINE_PIECES_MAX, "content: not 1 to 64 pieces")?;
            Content::Chunks((0..count).map(|_| read_piece(reader)).collect::<Result<_, _>>()?)
        }
        FORM_LIST => Content::List {
            root: ChunkId(reader.array("content: list root")?),
            height: reader.u8("content: list height")?,
            count: reader.varint("content: list count")?,
        },
        _ => return malformed("content: unknown form"),
    };
    content.check(size)?;
    Ok((size, content))
}

fn read_head(reader: &mut Reader<'_>) -> Result<EntryHead, Malformed> {
    let Some(entry_type) = EntryType::from_byte(reader.u8("entry: type")?) else {
        return malformed("entry: unknown type");
    };
    let mode = read_u32(reader, MODE_MAX, "entry: mode")?;
    let uid = read_u32(reader, u32::MAX.into(), "entry: uid")?;
    let gid = read_u32(reader, u32::MAX.into(), "entry: gid")?;
    let mtime = read_time(reader, "entry: mtime")?;
    let delta = read_time(reader, "entry: ctime")?;
    let Some(ctime_seconds) = mtime.seconds.checked_add(delta.seconds) else {
        return malformed("entry: ctime beyond 64 bits");
    };
    let ctime = FileTime {
        seconds: ctime_seconds,
        nanos: delta.nanos,
    };
    let ino = reader.varint("entry: ino")?;
    Ok(EntryHead {
        entry_type,
        mode,
        uid,
        gid,
        mtime,
        ctime,
        ino,
        size: 0,
    })
}

fn read_entry(bytes: &[u8]) -> Result<Entry, Malformed> {
    if bytes.len() > VALUE_BYTES_MAX {
        return malformed("entry: value longer than 65536 bytes");
    }
    let mut reader = Reader::new(bytes);
    let head = read_head(&mut reader)?;
    let kind = match head.entry_type {
        EntryType::File => {
            let (size, content) = read_content(&mut reader)?;
            EntryKind::File { size, content }
        }
        EntryType::Object => {
            let (size, content) = read_content(&mut reader)?;
            EntryKind::Object { size, content }
        }
        EntryType::Stream => {
            let (size, content) = read_content(&mut reader)?;
            EntryKind::Stream { size, content }
        }
        EntryType::Dir => EntryKind::Dir,
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Socket => EntryKind::Socket,
        EntryType::Symlink => {
            let len = reader.length(VALUE_BYTES_MAX, "entry: length of a link target")?;
            let target = reader.take(len, "entry: link target")?;
            check_target(target)?;
            EntryKind::Symlink {
                target: target.to_vec(),
            }
        }
        EntryType::CharDevice => {
            let (major, minor) = read_device(&mut reader)?;
            EntryKind::CharDevice { major, minor }
        }
        EntryType::BlockDevice => {
            let (major, minor) = read_device(&mut reader)?;
            EntryKind::BlockDevice { major, minor }
        }
    };
    let attributes = Attributes::read(&mut reader)?;
    let EntryHead {
        mode,
        uid,
        gid,
        mtime,
        ctime,
        ino,
        ..
    } = head;
    Ok(Entry {
        kind,
        mode,
        uid,
        gid,
        mtime,
        ctime,
        ino,
        attributes,
    })
}

fn read_device(reader: &mut Reader<'_>) -> Result<(u64, u64), Malformed> {
    let major = read_u32(reader, u32::MAX.into(), "entry: device number")?;
    let minor = read_u32(reader, u32::MAX.into(), "entry: device number")?;
    Ok((major.into(), minor.into()))
}

fn check_target(target: &[u8]) -> Result<(), Malformed> {
    if target.is_empty() {
        return malformed("entry: empty link target");
    }
    if target.contains(&0) {
        return malformed("entry: link target with a zero byte");
    }
    Ok(())
}

fn at_most(value: u64, max: u64, what: &'static str) -> Result<u64, Malformed> {
    if value > max { malformed(what) } else { Ok(value) }
}

/// Reads a number that is at most `max`, which fits 32 bits.
fn read_u32(reader: &mut Reader<'_>, max: u64, what: &'static str) -> Result<u32, Malformed> {
    let value = at_most(reader.varint(what)?, max, what)?;
    u32::try_from(value).map_err(|_| Malformed { what })
}

fn put_time(out: &mut Vec<u8>, seconds: i64, nanos: u32) -> Result<(), Malformed> {
    put_zigzag(out, seconds);
    put_varint(out, at_most(nanos.into(), NANOS_MAX, "entry: nanoseconds")?);
    Ok(())
}

fn read_time(reader: &mut Reader<'_>, what: &'static str) -> Result<FileTime, Malformed> {
    let seconds = reader.zigzag(what)?;
    Ok(FileTime {
        seconds,
        nanos: read_u32(reader, NANOS_MAX, what)?,
    })
}

const TAG_XATTR: u64 = 1;
const TAG_BORN: u64 = 2;
const TAG_XATTR_OUTLINE: u64 = 3;
const TAG_HARD_LINK: u64 = 4;
const TAG_FLAGS: u64 = 8;
const TAG_CHANGED: u64 = 12;
const TAG_INCOMPLETE: u64 = 19;
const TAGS_KNOWN: [u64; 7] = [
    TAG_XATTR,
    TAG_BORN,
    TAG_XATTR_OUTLINE,
    TAG_HARD_LINK,
    TAG_FLAGS,
    TAG_CHANGED,
    TAG_INCOMPLETE,
];

impl Attributes {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if self == &Attributes::default() {
            return Ok(());
        }
        self.check_names()?;
        let mut unknown = UnknownTlvs {
            rest: &self.unknown,
            last_tag: 0,
        };
        let mut body = Vec::new();
        for (name, value) in in_name_order(&self.xattrs, |(name, _)| name)? {
            body.clear();
            put_name(&mut body, name)?;
            at_most(
                value.len() as u64,
                XATTR_BYTES_MAX as u64,
                "entry: attribute value longer than 4096 bytes",
            )?;
            body.extend_from_slice(value);
            put_tlv(out, TAG_XATTR, &body);
        }
        if let Some(born) = self.born {
            body.clear();
            put_time(&mut body, born.seconds, born.nanos)?;
            put_tlv(out, TAG_BORN, &body);
        }
        for (name, size, content) in in_name_order(&self.xattrs_outline, |(name, ..)| name)? {
            body.clear();
            put_name(&mut body, name)?;
            put_content(&mut body, *size, content)?;
            put_tlv(out, TAG_XATTR_OUTLINE, &body);
        }
        if let Some(HardLink { device, links }) = self.hard_link {
            body.clear();
            put_varint(&mut body, device);
            put_varint(&mut body, links);
            put_tlv(out, TAG_HARD_LINK, &body);
        }
        unknown.put_below(TAG_FLAGS, out)?;
        if let Some(flags) = self.flags {
            body.clear();
            put_varint(&mut body, flags);
            put_tlv(out, TAG_FLAGS, &body);
        }
        unknown.put_below(TAG_CHANGED, out)?;
        if self.changed_while_read {
            put_tlv(out, TAG_CHANGED, &[]);
        }
        unknown.put_below(TAG_INCOMPLETE, out)?;
        if let Some(code) = self.incomplete {
            if code == 0 {
                return malformed("entry: error code 0");
            }
            body.clear();
            put_varint(&mut body, code);
            put_tlv(out, TAG_INCOMPLETE, &body);
        }
        unknown.put_below(u64::MAX, out)
    }

    /// Checks that no name is in both lists of extended attributes: one value would hide the other.
    fn check_names(&self) -> Result<(), Malformed> {
        // Outline attributes are rare and few.
        let inline = |name: &Vec<u8>| self.xattrs.iter().any(|(other, _)| other == name);
        if self.xattrs_outline.iter().any(|(name, ..)| inline(name)) {
            return malformed("entry: one attribute name inline and out of line");
        }
        Ok(())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Attributes, Malformed> {
        let mut attributes = Attributes::default();
        let (mut last_tag, mut last_name): (u64, &[u8]) = (0, &[]);
        while reader.remaining() > 0 {
            let tag = reader.varint("entry: attribute tag")?;
            let len = reader.length(VALUE_BYTES_MAX, "entry: attribute length")?;
            let bytes = reader.take(len, "entry: attribute")?;
            let mut body = Reader::new(bytes);
            let mut name: &[u8] = &[];
            match tag {
                TAG_XATTR => {
                    name = read_name(&mut body)?;
                    let value = body.take(body.remaining(), "entry: attribute value")?;
                    at_most(
                        value.len() as u64,
                        XATTR_BYTES_MAX as u64,
                        "entry: attribute value longer than 4096 bytes",
                    )?;
                    attributes.xattrs.push((name.to_vec(), value.to_vec()));
                }
                TAG_BORN => attributes.born = Some(read_time(&mut body, "entry: birth time")?),
                TAG_XATTR_OUTLINE => {
                    name = read_name(&mut body)?;
                    let (size, content) = read_content(&mut body)?;
                    attributes.xattrs_outline.push((name.to_vec(), size, content));
                }
                TAG_HARD_LINK => {
                    let device = body.varint("entry: hard-link device")?;
                    attributes.hard_link = Some(HardLink {
                        device,
                        links: body.varint("entry: hard-link count")?,
                    });
                }
                TAG_FLAGS => attributes.flags = Some(body.varint("entry: file flags")?),
                TAG_CHANGED => attributes.changed_while_read = true,
                TAG_INCOMPLETE => match body.varint("entry: error code")? {
                    0 => return malformed("entry: error code 0"),
                    code => attributes.incomplete = Some(code),
                },
                _ => {
                    body = Reader::new(&[]);
                    attributes.unknown.push((tag, bytes.to_vec()));
                }
            }
            body.end("entry: bytes after an attribute")?;
            // Tag 0 is refused here too: nothing comes before it. A name has at least one byte, so an equal tag without
            // a name is a tag that must not repeat.
            if (tag, name) <= (last_tag, last_name) {
                return malformed("entry: attributes out of order");
            }
            (last_tag, last_name) = (tag, name);
        }
        attributes.check_names()?;
        Ok(attributes)
    }
}

fn put_tlv(out: &mut Vec<u8>, tag: u64, body: &[u8]) {
    put_varint(out, tag);
    put_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

fn put_name(out: &mut Vec<u8>, name: &[u8]) -> Result<(), Malformed> {
    check_name(name)?;
    put_varint(out, name.len() as u64);
    out.extend_from_slice(name);
    Ok(())
}

fn read_name<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let len = reader.length(XATTR_NAME_BYTES_MAX, "entry: attribute name longer than 255 bytes")?;
    let name = reader.take(len, "entry: attribute name")?;
    check_name(name)?;
    Ok(name)
}

fn check_name(name: &[u8]) -> Result<(), Malformed> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX || name.contains(&0) {
        return malformed("entry: attribute name");
    }
    Ok(())
}

/// Returns the items in strict order of their names; a name that is there twice is refused.
fn in_name_order<T>(items: &[T], name: impl Fn(&T) -> &Vec<u8>) -> Result<Vec<&T>, Malformed> {
    let mut ordered: Vec<&T> = items.iter().collect();
    ordered.sort_by(|left, right| name(left).cmp(name(right)));
    if ordered.windows(2).any(|pair| name(pair[0]) == name(pair[1])) {
        return malformed("entry: one attribute name twice");
    }
    Ok(ordered)
}

/// Puts the TLVs that were kept back between those that are known.
struct UnknownTlvs<'a> {
    rest: &'a [(u64, Vec<u8>)],
    last_tag: u64,
}

impl UnknownTlvs<'_> {
    fn put_below(&mut self, tag_end: u64, out: &mut Vec<u8>) -> Result<(), Malformed> {
        while let Some(((tag, body), rest)) = self.rest.split_first() {
            if *tag <= self.last_tag || TAGS_KNOWN.contains(tag) {
                return malformed("entry: unknown attributes out of order, or known");
            }
            if *tag >= tag_end && tag_end != u64::MAX {
                break;
            }
            put_tlv(out, *tag, body);
            (self.rest, self.last_tag) = (rest, *tag);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pure::id::from_hex;
    use proptest::prelude::*;

    /// Name, whether readers accept it, bytes: from the published cases.
    #[rustfmt::skip]
    const CASES: &[(&str, bool, &str)] = &[
        ("before-1970", true, "01a403e807e80709010300010000"),
        ("btime-ns", false, "02ed03e807e80782c49fd50c000000010206028094ebdc03"),
        ("btime-trailing", false, "02ed03e807e80782c49fd50c000000010203020000"),
        ("changed-not-empty", false, "02ed03e807e80782c49fd50c000000010c0100"),
        ("changed-while-read", true, "01a403e807e80782c49fd50c0000000100000c00"),
        ("chunk-17-mib", false, "01a403e807e80782c49fd50c000000018080c008010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed8080c008"),
        ("chunk-zero", false, "01a403e807e80782c49fd50c000000010d010251e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d51e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed00"),
        ("chunks", true, "01a403e807e80782c49fd50c000000010d010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d"),
        ("content-incomplete", true, "01a403e807e80782c49fd50c000000010000130105"),
        ("ctime-ns", false, "02ed03e807e80782c49fd50c0081c49fd50c8094ebdc0301"),
        ("ctime-overflow", false, "02ed030000feffffffffffffffff0100020001"),
        ("cut", false, "02ed03e807e80782c49fd50c000000"),
        ("device", true, "07a403e807e80782c49fd50c000000010801"),
        ("directory", true, "02ed03e807e80782c49fd50c00000001"),
        ("empty-as-list", false, "01a403e807e80782c49fd50c0000000100010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed00"),
        ("empty", true, "01a403e807e80782c49fd50c000000010000"),
        ("form-3", false, "01a403e807e80782c49fd50c00000001010361"),
        ("holes", true, "01a403e807e80782c49fd50c000000018d80808080200102000000000000000000000000000000000000000000000000000000000000000080808080802051e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d"),
        ("incomplete-0", false, "02ed03e807e80782c49fd50c00000001130100"),
        ("inline-cut", false, "01a403e807e80782c49fd50c000000010400616263"),
        ("inline", true, "01a403e807e80782c49fd50c000000010300616263"),
        ("link-empty", false, "03ff03e807e80782c49fd50c0000000100"),
        ("link-zero", false, "03ff03e807e80782c49fd50c0000000103610062"),
        ("link", true, "03ff03e807e80782c49fd50c00000001042e2e2f78"),
        ("list-height", false, "01a403e807e80782c49fd50c000000018094ebdc0302010101010101010101010101010101010101010101010101010101010101010108e807"),
        ("list-of-hole", false, "01a403e807e80782c49fd50c000000018094ebdc0302000000000000000000000000000000000000000000000000000000000000000000e807"),
        ("list", true, "01a403e807e80782c49fd50c000000018094ebdc0302010101010101010101010101010101010101010101010101010101010101010101e807"),
        ("mode", false, "02ed23e807e80782c49fd50c00000001"),
        ("mtime-ns", false, "02ed03e807e807008094ebdc0382c49fd50c0001"),
        ("no-chunks", false, "01a403e807e80782c49fd50c00000001010100"),
        ("non-canonical-varint", false, "02ed038000e80782c49fd50c00000001"),
        ("object", true, "08a403e807e80782c49fd50c000000010300616263"),
        ("stream", true, "09a403e807e80782c49fd50c000000010300616263"),
        ("sum-long", false, "01a403e807e80782c49fd50c000000010c010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d"),
        ("sum-overflow", false, "01a403e807e80782c49fd50c000000010d01020000000000000000000000000000000000000000000000000000000000000000ffffffffffffffffff0151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0e"),
        ("sum-short", false, "01a403e807e80782c49fd50c000000010e010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d"),
        ("tlv-0", false, "02ed03e807e80782c49fd50c00000001000178"),
        ("tlv-cut", false, "02ed03e807e80782c49fd50c000000016405616263"),
        ("tlv-twice", false, "02ed03e807e80782c49fd50c000000010202020002020200"),
        ("tlv-unknown-twice", false, "02ed03e807e80782c49fd50c0000000164006400"),
        ("tlv-unsorted", false, "02ed03e807e80782c49fd50c0000000108010102020200"),
        ("tlvs", true, "02ed03e807e80782c49fd50c00000001010806757365722e6131010706757365722e6202020901032601630d010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d04020102080110"),
        ("trailing", false, "02ed03e807e80782c49fd50c0000000100"),
        ("type-0", false, "00a403e807e80782c49fd50c00000001"),
        ("type-10", false, "0aa403e807e80782c49fd50c00000001"),
        ("uid", false, "02ed038080808010e80782c49fd50c00000001"),
        ("unknown-critical-tlv", true, "02ed03e807e80782c49fd50c00000001650178"),
        ("unknown-even-tlv", true, "02ed03e807e80782c49fd50c00000001640178"),
        ("xattr-name-zero", false, "02ed03e807e80782c49fd50c0000000101050361006276"),
        ("xattr-no-name", false, "02ed03e807e80782c49fd50c0000000101020076"),
        ("xattr-out-sum", false, "02ed03e807e80782c49fd50c00000001032601630e010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d"),
        ("xattr-out-trailing", false, "02ed03e807e80782c49fd50c00000001032701630d010151e127b02157b1f6c3ad810fb059de7bca8543da0b44511658ce651811bfe5ed0d00"),
        ("xattr-twice", false, "02ed03e807e80782c49fd50c000000010102016101020161"),
        ("xattr-unsorted", false, "02ed03e807e80782c49fd50c000000010102016201020161"),
    ];

    #[test]
    fn published_entries_are_accepted_or_refused_as_they_say() {
        for (name, is_ok, hex) in CASES {
            let bytes = from_hex(hex).unwrap();
            let decoded = Entry::decode(&bytes);
            assert_eq!(decoded.is_ok(), *is_ok, "{name}: {decoded:?}");
            if let Ok(entry) = decoded {
                assert_eq!(encoded(&entry), bytes, "{name}");
                assert_eq!(Entry::peek_size(&bytes).unwrap(), entry.size(), "{name}");
            }
        }
    }

    #[test]
    fn flags_of_published_entries_are_seen() {
        let decoded = |name: &str| {
            let (_, _, hex) = CASES.iter().find(|case| case.0 == name).unwrap();
            Entry::decode(&from_hex(hex).unwrap()).unwrap().attributes
        };
        assert!(decoded("unknown-critical-tlv").has_unknown_critical());
        assert!(!decoded("unknown-even-tlv").has_unknown_critical());
        assert_eq!(decoded("unknown-even-tlv").unknown, [(100, b"x".to_vec())]);
        assert!(decoded("changed-while-read").changed_while_read);
        assert_eq!(decoded("content-incomplete").incomplete, Some(5));
        let all = decoded("tlvs");
        assert_eq!(
            all.xattrs,
            [(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), Vec::new())]
        );
        assert_eq!(all.born, Some(FileTime { seconds: -5, nanos: 1 }));
        assert_eq!(all.hard_link, Some(HardLink { device: 1, links: 2 }));
        assert_eq!(all.flags, Some(16));
        assert_eq!(all.xattrs_outline[0].1, 13);
    }

    pub(crate) fn directory() -> Entry {
        Entry {
            kind: EntryKind::Dir,
            mode: 0o755,
            uid: 1000,
            gid: 1000,
            mtime: FileTime {
                seconds: 1_700_000_001,
                nanos: 0,
            },
            ctime: FileTime {
                seconds: 1_700_000_001,
                nanos: 0,
            },
            ino: 1,
            attributes: Attributes::default(),
        }
    }

    pub(crate) fn encoded(entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        entry.encode(&mut out);
        out
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let with = |attributes| Entry {
            attributes,
            ..directory()
        };
        let try_encoded = |entry: &Entry| {
            let mut out = b"before".to_vec();
            let result = entry.try_encode(&mut out);
            assert_eq!(
                result.is_ok(),
                out.len() > 6,
                "nothing is left of an entry that is refused"
            );
            result.is_ok()
        };
        let xattr = |name: usize, value: usize| {
            with(Attributes {
                xattrs: vec![(vec![b'n'; name], vec![0; value])],
                ..Attributes::default()
            })
        };
        assert!(try_encoded(&xattr(255, 4096)) && try_encoded(&xattr(1, 0)));
        assert!(!try_encoded(&xattr(256, 0)) && !try_encoded(&xattr(0, 0)) && !try_encoded(&xattr(1, 4097)));

        let fixed = encoded(&directory()).len();
        let unknown = |len: usize| {
            with(Attributes {
                unknown: vec![(100, vec![7; len])],
                ..Attributes::default()
            })
        };
        let largest = unknown(65_536 - fixed - 4);
        assert_eq!(encoded(&largest).len(), 65_536);
        assert_eq!(Entry::decode(&encoded(&largest)).unwrap(), largest);
        let too_long = [encoded(&unknown(65_536 - fixed - 6)), vec![102, 1, 0]].concat();
        assert_eq!(too_long.len(), 65_537);
        assert!(Entry::decode(&too_long).is_err());
        assert!(!try_encoded(&unknown(65_536 - fixed - 3)));

        let file = |size, content| Entry {
            kind: EntryKind::File { size, content },
            ..directory()
        };
        let piece = |len| ChunkRef {
            id: ChunkId([1; 32]),
            len,
        };
        assert!(try_encoded(&file(512, Content::Inline(vec![1; 512]))));
        assert!(!try_encoded(&file(513, Content::Inline(vec![1; 513]))));
        assert!(!try_encoded(&file(2, Content::Inline(vec![1; 1]))));
        assert!(try_encoded(&file(64, Content::Chunks(vec![piece(1); 64]))));
        assert!(!try_encoded(&file(65, Content::Chunks(vec![piece(1); 65]))));
        assert!(try_encoded(&file(16 << 20, Content::Chunks(vec![piece(16 << 20)]))));
        assert!(!try_encoded(&file(
            (16 << 20) + 1,
            Content::Chunks(vec![piece((16 << 20) + 1)])
        )));
        assert!(!try_encoded(&file(0, Content::Chunks(Vec::new()))));
        assert!(!try_encoded(&Entry {
            mode: 0o10000,
            ..directory()
        }));
        assert!(!try_encoded(&Entry {
            mtime: FileTime {
                seconds: 0,
                nanos: 1_000_000_000
            },
            ..directory()
        }));
        assert!(!try_encoded(&Entry {
            kind: EntryKind::CharDevice {
                major: 1 << 32,
                minor: 0
            },
            ..directory()
        }));
        assert!(!try_encoded(&with(Attributes {
            unknown: vec![(8, vec![1])],
            ..Attributes::default()
        })));
        assert!(!try_encoded(&with(Attributes {
            unknown: vec![(6, vec![]), (5, vec![])],
            ..Attributes::default()
        })));
        assert!(!try_encoded(&with(Attributes {
            incomplete: Some(0),
            ..Attributes::default()
        })));
    }

    #[test]
    fn attributes_are_put_into_order_and_a_name_is_not_written_twice() {
        let named = |names: &[&[u8]]| Entry {
            attributes: Attributes {
                xattrs: names.iter().map(|name| (name.to_vec(), b"v".to_vec())).collect(),
                ..Attributes::default()
            },
            ..directory()
        };
        assert_eq!(
            encoded(&named(&[b"b", b"a", b"ab"])),
            encoded(&named(&[b"a", b"ab", b"b"]))
        );
        assert!(named(&[b"a", b"a"]).try_encode(&mut Vec::new()).is_err());
    }

    #[test]
    fn times_too_far_apart_keep_the_time_that_is_restored() {
        for (mtime, ctime) in [(i64::MIN, 1_700_000_000), (i64::MAX, -10), (i64::MIN, i64::MAX)] {
            let time = |seconds| FileTime { seconds, nanos: 1 };
            let entry = Entry {
                mtime: time(mtime),
                ctime: time(ctime),
                ..directory()
            };
            let found = Entry::decode(&encoded(&entry)).unwrap();
            assert_eq!(found.mtime, entry.mtime);
            assert_eq!(encoded(&found), encoded(&entry));
        }
    }

    fn content() -> impl Strategy<Value = (u64, Content)> {
        let piece = prop_oneof![
            (any::<[u8; 32]>(), 1u64..=16 << 20).prop_map(|(id, len)| ChunkRef { id: ChunkId(id), len }),
            (1u64..1 << 50).prop_map(|len| ChunkRef { id: ChunkId::HOLE, len }),
        ];
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600)
                .prop_filter("inline", |bytes| bytes.len() <= 512)
                .prop_map(|bytes| (bytes.len() as u64, Content::Inline(bytes))),
            prop::collection::vec(piece, 1..=64)
                .prop_map(|pieces| (pieces.iter().map(|piece| piece.len).sum(), Content::Chunks(pieces))),
            (1u64.., any::<[u8; 32]>(), 0u8..=7, 1u64..).prop_map(|(size, mut root, height, count)| {
                root[0] |= 1;
                (
                    size,
                    Content::List {
                        root: ChunkId(root),
                        height,
                        count,
                    },
                )
            }),
        ]
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        let number = 0..=u64::from(u32::MAX);
        prop_oneof![
            content().prop_map(|(size, content)| EntryKind::File { size, content }),
            content().prop_map(|(size, content)| EntryKind::Object { size, content }),
            content().prop_map(|(size, content)| EntryKind::Stream { size, content }),
            Just(EntryKind::Dir),
            Just(EntryKind::Fifo),
            Just(EntryKind::Socket),
            prop::collection::vec(1u8.., 1..50).prop_map(|target| EntryKind::Symlink { target }),
            (number.clone(), number.clone()).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (number.clone(), number).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        ]
    }

    fn time() -> impl Strategy<Value = FileTime> {
        (i64::MIN / 2..=i64::MAX / 2, 0u32..1_000_000_000).prop_map(|(seconds, nanos)| FileTime { seconds, nanos })
    }

    fn attributes() -> impl Strategy<Value = Attributes> {
        let name = || prop::collection::vec(1u8.., 1..20);
        let unknown_tag = (5u64..300).prop_filter("unknown", |tag| !TAGS_KNOWN.contains(tag));
        (
            prop::collection::btree_map(name(), prop::collection::vec(any::<u8>(), 0..50), 0..4),
            prop::collection::btree_map(name(), content(), 0..3),
            prop::option::of(time()),
            prop::option::of((any::<u64>(), any::<u64>())),
            prop::option::of(any::<u64>()),
            any::<bool>(),
            prop::option::of(1u64..),
            prop::collection::btree_map(unknown_tag, prop::collection::vec(any::<u8>(), 0..20), 0..4),
        )
            .prop_map(
                |(xattrs, outline, born, link, flags, changed_while_read, incomplete, unknown)| Attributes {
                    xattrs_outline: outline
                        .into_iter()
                        .filter(|(name, _)| !xattrs.contains_key(name))
                        .map(|(name, (size, content))| (name, size, content))
                        .collect(),
                    xattrs: xattrs.into_iter().collect(),
                    born,
                    hard_link: link.map(|(device, links)| HardLink { device, links }),
                    flags,
                    changed_while_read,
                    incomplete,
                    unknown: unknown.into_iter().collect(),
                },
            )
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (
            kind(),
            0u32..=0o7777,
            any::<u32>(),
            any::<u32>(),
            time(),
            time(),
            any::<u64>(),
            attributes(),
        )
            .prop_map(|(kind, mode, uid, gid, mtime, ctime, ino, attributes)| Entry {
                kind,
                mode,
                uid,
                gid,
                mtime,
                ctime,
                ino,
                attributes,
            })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again(entry in entry()) {
            let bytes = encoded(&entry);
            let head = Entry::peek(&bytes).unwrap();
            prop_assert_eq!((head.entry_type, head.mtime, head.ctime), (entry.kind.entry_type(), entry.mtime, entry.ctime));
            prop_assert_eq!((head.mode, head.uid, head.gid, head.ino), (entry.mode, entry.uid, entry.gid, entry.ino));
            prop_assert_eq!(head.size, entry.size());
            prop_assert_eq!(Entry::decode(&bytes).unwrap(), entry);
        }

        #[test]
        fn what_is_accepted_has_one_encoding(entry in entry(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = encoded(&entry);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            if let Ok(found) = Entry::decode(&bytes) {
                prop_assert_eq!(encoded(&found), bytes);
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(found) = Entry::decode(&bytes) {
                prop_assert_eq!(encoded(&found), bytes);
            }
        }
    }
}
