//! The local index: what this machine knows about a repository without asking it (format-spec chapter on client-local
//! state).
//!
//! Never the truth. Everything in it was learned from the repository, except for what this machine is doing right now
//! (own sessions, packs that no run lists yet), and losing that costs a duplicate upload. So damage is answered by
//! starting afresh, and every row that decides about a reference carries a check, because SQLite itself would hand out a
//! flipped bit without noticing.
//!
//! * [`catalog`]: what runs say, own packs, condemnations: everything that changes which chunks can be found.
//! * [`bulk`]: taking in many runs at once.
//! * [`lookup`]: finding chunks, and walking through everything.
//! * [`memory`]: mirror of outcomes, rollback memory, own sessions, verification ledger.
//! * [`filter`]: "certainly new" without asking SQLite.
//! * [`nodes`]: tree nodes of the last snapshots, sealed; a database of its own.

pub mod bulk;
pub mod catalog;
pub mod filter;
pub mod lookup;
pub mod memory;
pub mod nodes;
pub mod places;

pub use catalog::{OwnPack, PackState};
pub use lookup::{ChunkPlace, IndexStats, IndexedChunk, PackInfo};
pub use memory::{KnownOutcome, Mark, OpenSession, SessionEnd, Verified};
pub use nodes::NodeCache;

use crate::edge::localdb::{self, Layout, LocalDbError};
use crate::pure::base::memory::IndexShare;
use crate::pure::base::{Explain, Kind};
use crate::pure::id::{ChunkId, RepoId, SessionId};
use filter::Filter;
use lookup::PackCache;
use parking_lot::{Condvar, Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const LAYOUT: Layout = Layout {
    application_id: 0x4c52_4452, // "LRDR"
    user_version: 2,
    page_size: 4096,
    schema: include_str!("index.sql"),
};

/// Share of the page caches that the writing connection has: 20 MiB where nothing else is said …
const WRITER_CACHE_SHARE: (u32, u32) = (5, 11);
/// … and that of each reading connection, 4 MiB. The rest is the node cache's.
const READER_CACHE_SHARE: (u32, u32) = (1, 11);
/// Reading connections; further threads wait for one.
const READERS_MAX: usize = 3;

/// Why the local index did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database below.
    #[error("using the local index")]
    Database(#[from] LocalDbError),
    /// A row does not have the check that belongs to it, or a value that is never written. The next open starts afresh.
    #[error("the local index {} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    /// A run or pack that was handed in contradicts itself.
    #[error("cannot index {name}: {what}")]
    Inconsistent { name: String, what: &'static str },
    /// The directory of a temporary index cannot be made.
    #[error("making a temporary index")]
    Temporary(#[source] io::Error),
    /// Files for sorting what many runs list cannot be written or read.
    #[error("sorting what index runs list, in the cache directory")]
    Sorting(#[source] io::Error),
}

impl IndexError {
    /// True if the index is damaged and the next open starts afresh.
    pub fn is_damage(&self) -> bool {
        match self {
            IndexError::Database(error) => error.wants_rebuild(),
            IndexError::Damaged { .. } => true,
            IndexError::Inconsistent { .. } | IndexError::Temporary(_) | IndexError::Sorting(_) => false,
        }
    }
}

impl Explain for IndexError {
    fn kind(&self) -> Kind {
        match self {
            IndexError::Database(error) => error.kind(),
            IndexError::Damaged { .. } | IndexError::Temporary(_) | IndexError::Sorting(_) => Kind::Unavailable,
            IndexError::Inconsistent { .. } => Kind::Damage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            IndexError::Database(error) => error.hint(),
            IndexError::Damaged { .. } => {
                Some("run the command again: the index is built again from the repository; nothing is lost".to_owned())
            }
            IndexError::Inconsistent { .. } => None,
            IndexError::Sorting(_) => Some("check free space and permissions of the cache directory".to_owned()),
            IndexError::Temporary(_) => Some("check free space and permissions of $TMPDIR".to_owned()),
        }
    }
}

/// What goes wrong inside a transaction, before it is known which file it is about.
#[derive(Debug)]
enum Trouble {
    Sql(rusqlite::Error),
    Damaged(&'static str),
    Inconsistent { name: String, what: &'static str },
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Trouble {
        Trouble::Sql(error)
    }
}

/// The writing connection and what is only changed together with it.
struct Writer {
    connection: Connection,
    /// State of `chunk` that the filter covers, counted in `meta.filter_generation`.
    generation: u64,
    /// False once another process has added chunks that our filter does not have.
    complete: bool,
    /// True if `filter.bin` is not what we have in memory.
    dirty: bool,
}

struct Readers {
    idle: Vec<Connection>,
    opened: usize,
}

/// What this machine knows about one repository. Used by many threads at once; by several processes, too, whose filters
/// then do not know about each other's new chunks (which costs duplicate uploads at worst).
pub struct LocalIndex {
    // The connections come before `temporary`: they must be closed before the directory goes.
    writer: Mutex<Writer>,
    readers: Mutex<Readers>,
    reader_returned: Condvar,
    /// `None` while it is being built: then everything may be known.
    filter: RwLock<Option<Filter>>,
    filter_path: PathBuf,
    filter_bytes_max: u64,
    reader_cache_kib: u32,
    path: PathBuf,
    repo: RepoId,
    packs: PackCache,
    /// Sessions of this process: packs of theirs that no run lists yet can be referred to.
    /// Whether any pack is absent; `None` until somebody asks.
    any_absent: Mutex<Option<bool>>,
    current: RwLock<Arc<HashSet<SessionId>>>,
    /// Whether any chunk was declared lost, as of the last look ([`LocalIndex::look_for_lost`]).
    any_lost: AtomicBool,
    /// Runs that count could not be taken in: what they list is not known here.
    incomplete: AtomicBool,
    aside: Option<PathBuf>,
    _temporary: Option<tempfile::TempDir>,
}

impl LocalIndex {
    /// Opens the index in `directory`, which is that of one repository, and makes it if there is none. One that is
    /// damaged or belongs to another repository is moved aside ([`Self::was_rebuilt`]).
    ///
    /// # Errors
    /// If the directory is on a network file system ([`LocalDbError::NetworkFileSystem`]; [`Self::open_temporary`] is
    /// what is left then), or cannot be used.
    pub fn open(directory: &Path, repo: &RepoId, share: IndexShare) -> Result<LocalIndex, IndexError> {
        match LocalIndex::open_in(directory, repo, share, None) {
            // Met only while the rows were read for the filter; the file is given up by now, so this makes a fresh one.
            Err(error) if error.is_damage() => LocalIndex::open_in(directory, repo, share, None),
            done => done,
        }
    }

    /// Makes an index in a private directory that is removed on drop.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn open_temporary(repo: &RepoId, share: IndexShare) -> Result<LocalIndex, IndexError> {
        let directory = tempfile::Builder::new()
            .prefix("larder-")
            .tempdir()
            .map_err(IndexError::Temporary)?;
        let path = directory.path().to_owned();
        LocalIndex::open_in(&path, repo, share, Some(directory))
    }

    fn open_in(
        directory: &Path,
        repo: &RepoId,
        share: IndexShare,
        temporary: Option<tempfile::TempDir>,
    ) -> Result<LocalIndex, IndexError> {
        let path = directory.join("index.db");
        let (connection, aside) = localdb::open_or_rebuild(&path, &LAYOUT, &|connection| belongs_to(connection, repo))?;
        localdb::set_cache(&connection, part(share, WRITER_CACHE_SHARE))
            .map_err(|source| LocalDbError::of(&path, source))?;
        let index = LocalIndex {
            writer: Mutex::new(Writer {
                connection,
                generation: 0,
                complete: false,
                dirty: false,
            }),
            readers: Mutex::new(Readers {
                idle: Vec::new(),
                opened: 0,
            }),
            reader_returned: Condvar::new(),
            filter: RwLock::new(None),
            filter_path: directory.join("filter.bin"),
            filter_bytes_max: share.filter_bytes_max,
            reader_cache_kib: part(share, READER_CACHE_SHARE),
            path,
            repo: *repo,
            packs: PackCache::default(),
            any_absent: Mutex::new(None),
            current: RwLock::default(),
            any_lost: AtomicBool::new(false),
            incomplete: AtomicBool::new(false),
            aside,
            _temporary: temporary,
        };
        index.load_filter()?;
        index.look_for_lost()?;
        Ok(index)
    }

    /// Returns where the index that was found damaged (or of another repository) is now; `None` if it was sound.
    pub fn was_rebuilt(&self) -> Option<&Path> {
        self.aside.as_deref()
    }

    /// Returns the directory that it lies in.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Returns the repository that it is about.
    pub fn repo(&self) -> &RepoId {
        &self.repo
    }

    /// Checks every page of the database (seconds per GiB). If one is damaged, the next open starts afresh.
    ///
    /// # Errors
    /// If the database cannot be read for another reason than damage.
    pub fn is_sound(&self) -> Result<bool, IndexError> {
        let connection = self.connect()?;
        let sound = localdb::is_sound(&connection, &self.path)?;
        if !sound {
            self.give_up();
        }
        Ok(sound)
    }

    /// Returns false if a chunk is certainly not known; no SQLite involved.
    ///
    /// False is also possible for a chunk that another process has just added.
    pub fn maybe(&self, id: &ChunkId) -> bool {
        self.filter.read().as_ref().is_none_or(|filter| filter.maybe(id))
    }

    /// Takes the filter out of its file, or builds it if that is not the filter of what is in the database.
    fn load_filter(&self) -> Result<(), IndexError> {
        let mut writer = self.writer.lock();
        let generation = self.settled(filter_generation(&writer.connection))?;
        match Filter::load(&self.filter_path, &self.repo, generation, self.filter_bytes_max) {
            Some(filter) => {
                *self.filter.write() = Some(filter);
                (writer.generation, writer.complete) = (generation, true);
                Ok(())
            }
            None => {
                // It must not come to pass for the filter of a later state that happens to get the same number.
                let _ = std::fs::remove_file(&self.filter_path);
                self.build_filter(&mut writer)
            }
        }
    }

    /// Builds the filter from all rows (20 to 40 s for 100 million).
    fn build_filter(&self, writer: &mut Writer) -> Result<(), IndexError> {
        // The old one goes first, so that there never are two in memory.
        *self.filter.write() = None;
        let built = localdb::read(&writer.connection, |connection| {
            let generation = filter_generation(connection)?;
            // As many as there are chunks, normally, and half as many to grow into.
            let blobs: i64 = connection.query_row("SELECT coalesce(sum(nblob), 0) FROM pack", [], |row| row.get(0))?;
            let mut room = u64::try_from(blobs).unwrap_or(0).saturating_mul(3) / 2;
            let mut statement = connection.prepare("SELECT id FROM chunk")?;
            let filter = loop {
                let filter = Filter::with_room_for(room, self.filter_bytes_max);
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    filter.insert(&ChunkId(row.get(0)?));
                }
                // Runs that tell fewer blobs than they have are no reason for a filter that lets everything pass.
                if !filter.should_grow(self.filter_bytes_max) {
                    break filter;
                }
                room = filter.keys().saturating_mul(2);
            };
            Ok::<_, Trouble>((filter, generation))
        });
        let (filter, generation) = self.settled(built)?;
        *self.filter.write() = Some(filter);
        (writer.generation, writer.complete, writer.dirty) = (generation, true, true);
        Ok(())
    }

    /// Runs `work`, which adds chunks, in one transaction; then adds the ids that `added` hands out to the filter.
    fn add_chunks<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Trouble>,
        added: impl FnOnce(&mut dyn FnMut(&ChunkId)),
    ) -> Result<T, IndexError> {
        let mut writer = self.writer.lock();
        let done = localdb::write(&writer.connection, |connection| {
            let before = filter_generation(connection)?;
            let after = before.wrapping_add(1);
            connection
                .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('filter_generation', ?1)")?
                .execute([after.to_le_bytes()])?;
            Ok((before, after, work(connection)?))
        });
        let (before, after, value) = self.settled(done)?;
        if before != writer.generation {
            writer.complete = false;
        }
        writer.generation = after;
        writer.dirty = true;
        let grow = match self.filter.read().as_ref() {
            Some(filter) => {
                added(&mut |id| {
                    filter.insert(id);
                });
                filter.should_grow(self.filter_bytes_max)
            }
            // An earlier build failed. Nothing is lost: without a filter everything may be known.
            None => false,
        };
        if grow {
            self.build_filter(&mut writer)?;
        }
        Ok(value)
    }

    /// Runs `work` in one writing transaction.
    fn write<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, IndexError> {
        let writer = self.writer.lock();
        self.settled(localdb::write(&writer.connection, work))
    }

    /// Runs `work` on one view of the database.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, IndexError> {
        let reader = self.borrow_reader()?;
        let done = localdb::read(&reader, work);
        self.return_reader(reader);
        self.settled(done)
    }

    fn borrow_reader(&self) -> Result<Connection, IndexError> {
        let mut readers = self.readers.lock();
        loop {
            if let Some(connection) = readers.idle.pop() {
                return Ok(connection);
            }
            if readers.opened < READERS_MAX {
                let connection = self.connect()?;
                readers.opened += 1;
                return Ok(connection);
            }
            self.reader_returned.wait(&mut readers);
        }
    }

    fn return_reader(&self, connection: Connection) {
        self.readers.lock().idle.push(connection);
        self.reader_returned.notify_one();
    }

    /// Opens a connection that is not one of the pool: for walks, whose callers may look things up meanwhile.
    fn connect(&self) -> Result<Connection, IndexError> {
        Ok(localdb::connect(&self.path, self.reader_cache_kib)?)
    }

    /// Says which file the trouble is about, and sees to it that a damaged one is not used again.
    fn settled<T>(&self, result: Result<T, Trouble>) -> Result<T, IndexError> {
        result.map_err(|trouble| match trouble {
            Trouble::Sql(source) => {
                let error = LocalDbError::of(&self.path, source);
                if error.wants_rebuild() {
                    self.give_up();
                }
                IndexError::Database(error)
            }
            Trouble::Damaged(what) => {
                self.give_up();
                IndexError::Damaged {
                    path: self.path.clone(),
                    what,
                }
            }
            Trouble::Inconsistent { name, what } => IndexError::Inconsistent { name, what },
        })
    }

    fn give_up(&self) {
        // If even this fails, the next run meets the same damage and tries again.
        let _ = localdb::give_up(&self.path);
    }
}

impl Drop for LocalIndex {
    fn drop(&mut self) {
        let writer = self.writer.get_mut();
        let same = filter_generation(&writer.connection).is_ok_and(|generation| generation == writer.generation);
        if self._temporary.is_some() || !(writer.complete && writer.dirty && same) {
            return;
        }
        if let Some(filter) = self.filter.get_mut() {
            // Without the file it is built again at the next open.
            let _ = filter.save(&self.filter_path, &self.repo, writer.generation);
        }
    }
}

fn part(share: IndexShare, (numerator, denominator): (u32, u32)) -> u32 {
    share.page_caches_kib / denominator * numerator
}

/// Says whether the database is that of `repo`; a new one is from now on.
fn belongs_to(connection: &Connection, repo: &RepoId) -> Result<bool, rusqlite::Error> {
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('repo_id', ?1)", [repo.as_bytes()])?;
    let stored: Vec<u8> = connection.query_row("SELECT v FROM meta WHERE k = 'repo_id'", [], |row| row.get(0))?;
    Ok(stored == repo.as_bytes())
}

fn filter_generation(connection: &Connection) -> Result<u64, Trouble> {
    let stored: Option<[u8; 8]> = connection
        .prepare_cached("SELECT v FROM meta WHERE k = 'filter_generation'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(stored.map_or(0, u64::from_le_bytes))
}

#[cfg(test)]
mod tests;
