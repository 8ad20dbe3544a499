//! The names in a directory, sorted bytewise. One allocation for all names: a directory of a million files is normal.

use super::FileKind;
use rustix::fd::AsFd;
use rustix::fs::RawDir;
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;

/// Bytes that one `getdents64` may fill. Larger ones gain nothing; a name takes up to 280.
const BUFFER_BYTES: usize = 64 << 10;

/// A buffer for reading directories, to be used again and again.
pub struct ListingBuffer(Vec<MaybeUninit<u8>>);

impl Default for ListingBuffer {
    fn default() -> ListingBuffer {
        ListingBuffer(vec![MaybeUninit::uninit(); BUFFER_BYTES])
    }
}

/// Names in ascending order, none twice, without `.` and `..`.
#[derive(Debug, Default)]
pub struct Listing {
    /// Names, each with its terminating zero.
    names: Vec<u8>,
    items: Vec<Item>,
}

/// 16 bytes per name.
#[derive(Clone, Copy, Debug)]
struct Item {
    /// The first eight bytes of the name, so that most comparisons do not touch the names.
    head: u64,
    start: u32,
    length: u16,
    kind: FileKind,
}

impl Listing {
    /// Reads a directory from its descriptor's position on, in place of what was in the listing. What was read before an
    /// error stays usable.
    ///
    /// # Errors
    /// As `getdents64`; `EOVERFLOW` when the names take more than 4 GiB.
    pub fn read(&mut self, dir: impl AsFd, buffer: &mut ListingBuffer) -> Result<(), Errno> {
        self.clear();
        let outcome = self.fill(dir, buffer);
        let names = &self.names;
        let name = |item: &Item| &names[item.start as usize..item.start as usize + usize::from(item.length)];
        self.items
            .sort_unstable_by(|a, b| a.head.cmp(&b.head).then_with(|| name(a).cmp(name(b))));
        self.items.dedup_by(|a, b| a.head == b.head && name(a) == name(b));
        outcome
    }

    fn fill(&mut self, dir: impl AsFd, buffer: &mut ListingBuffer) -> Result<(), Errno> {
        let mut entries = RawDir::new(dir, &mut buffer.0);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Err(Errno::INTR) => continue,
                // The directory itself was removed: it is empty.
                Err(Errno::NOENT) => return Ok(()),
                other => other?,
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || name.is_empty() {
                continue;
            }
            let start = u32::try_from(self.names.len()).map_err(|_| Errno::OVERFLOW)?;
            let length = u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
            self.names.extend_from_slice(entry.file_name().to_bytes_with_nul());
            self.items.push(Item {
                head: head(name),
                start,
                length,
                kind: entry.file_type().into(),
            });
        }
        Ok(())
    }

    pub fn clear(&mut self) {
        self.names.clear();
        self.items.clear();
        // A huge directory's memory is not kept for the small ones that follow.
        self.names.shrink_to(1 << 20);
        self.items.shrink_to(1 << 16);
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns a name.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn name(&self, index: usize) -> &CStr {
        let item = self.items[index];
        let start = item.start as usize;
        CStr::from_bytes_with_nul(&self.names[start..=start + usize::from(item.length)])
            .expect("names were copied from C strings with their zero")
    }

    /// Returns the type that the directory gives for a name; `Unknown` on file systems that do not tell.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn kind(&self, index: usize) -> FileKind {
        self.items[index].kind
    }

    /// Finds a name.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.items
            .binary_search_by(|item| {
                let start = item.start as usize;
                self.names[start..start + usize::from(item.length)].cmp(name)
            })
            .ok()
    }

    /// Keeps one name and forgets the others.
    pub fn keep_only(&mut self, index: usize) {
        self.items = vec![self.items[index]];
    }
}

fn head(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = name.len().min(8);
    bytes[..length].copy_from_slice(&name[..length]);
    u64::from_be_bytes(bytes)
}
