//! Tree nodes of the newest snapshots of this machine's sources, so that a nightly backup need not fetch what it wrote
//! the night before (format-spec chapter on client-local state).
//!
//! Everything is sealed with a key that belongs to one key holder of one repository: names and sizes of files do not lie
//! in the cache directory in clear. Ids are keyed hashes and stay readable. A value that does not open is not there.

use crate::edge::localdb::{self, Layout, LocalDbError};
use crate::pure::base::memory::IndexShare;
use crate::pure::crypto::{Sealer, Secret, derive, keyed_hash};
use crate::pure::id::{ChunkId, RepoId, SessionId, SourceId};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

const LAYOUT: Layout = Layout {
    application_id: 0x4c52_4443, // "LRDC"
    user_version: 1,
    page_size: 16_384,
    schema: include_str!("cache.sql"),
};

/// Share of the page caches that the one connection has: 16 MiB where nothing else is said.
const CACHE_SHARE: (u32, u32) = (2, 11);
/// Nodes that were read since the last write are noted as used together, when there are this many.
const TOUCHED_MAX: usize = 4096;
/// When the bound is exceeded this share of it is kept (in percent), so that not every write has to make room.
const KEPT_PERCENT: u64 = 90;
/// What a row takes beyond its value: ids, indexes, page overhead.
const ROW_BYTES: u64 = 120;

/// The root of one path of one source, in the newest snapshot that this machine made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRoot {
    /// The snapshot.
    pub session: SessionId,
    pub node: ChunkId,
    pub height: u8,
}

/// The cache of nodes; used by many threads at once.
///
/// It is only a help: damage empties it, a failure to read one node means that it is not there, and after a failure to write
/// (a full disk) nothing more is kept.
pub struct NodeCache {
    state: Mutex<State>,
    path: PathBuf,
    repo: RepoId,
    sealer: Sealer,
    /// For the names of roots.
    name_key: Secret,
    bytes_max: u64,
    aside: Option<PathBuf>,
}

struct State {
    /// `None`: there is no cache, and nothing is ever found.
    connection: Option<Connection>,
    /// A write has failed. Another try may wait for half a minute, and would most likely fail as well.
    is_full: bool,
    /// Counts the writes of this cache's life; what has a small number was not used for long.
    clock: i64,
    bytes: u64,
    touched: HashSet<ChunkId>,
}

impl NodeCache {
    /// Opens `cache.db` in `directory`, which is that of one repository. `key` is the local cache key of the key holder
    /// (`K_cache`); what another one has put there is not readable and makes room in time. Holds `bytes_max` bytes, about.
    ///
    /// # Errors
    /// If the file cannot be used. A damaged one is moved aside and an empty one takes its place.
    pub fn open(directory: &Path, repo: &RepoId, key: &Secret, bytes_max: u64) -> Result<NodeCache, LocalDbError> {
        let path = directory.join("cache.db");
        match NodeCache::open_at(&path, repo, key, bytes_max) {
            Err(error) if error.wants_rebuild() => NodeCache::open_at(&path, repo, key, bytes_max),
            done => done,
        }
    }

    /// Stands in for a cache that cannot be used: holds nothing.
    pub fn none(repo: &RepoId, key: &Secret) -> NodeCache {
        NodeCache {
            state: Mutex::new(State {
                connection: None,
                is_full: true,
                clock: 0,
                bytes: 0,
                touched: HashSet::new(),
            }),
            path: PathBuf::new(),
            repo: *repo,
            sealer: Sealer::new(key),
            name_key: derive("larder v1 local cache names", &[key.expose(), repo.as_bytes()]),
            bytes_max: 0,
            aside: None,
        }
    }

    fn open_at(path: &Path, repo: &RepoId, key: &Secret, bytes_max: u64) -> Result<NodeCache, LocalDbError> {
        let (connection, aside) = localdb::open_or_rebuild(path, &LAYOUT, &|_| Ok(true))?;
        let state = (|| {
            localdb::set_cache(&connection, super::part(IndexShare::DEFAULT, CACHE_SHARE))?;
            let clock = connection.query_row("SELECT coalesce(max(used), 0) FROM node", [], |row| row.get(0))?;
            let bytes = stored_bytes(&connection)?;
            Ok(State {
                connection: Some(connection),
                is_full: false,
                clock,
                bytes,
                touched: HashSet::new(),
            })
        })();
        let state = state.map_err(|source| failed(path, source))?;
        Ok(NodeCache {
            state: Mutex::new(state),
            path: path.to_owned(),
            repo: *repo,
            sealer: Sealer::new(key),
            name_key: derive("larder v1 local cache names", &[key.expose(), repo.as_bytes()]),
            bytes_max,
            aside,
        })
    }

    /// Keeps the page cache within a share of memory.
    ///
    /// # Errors
    /// When the database does not take it.
    pub fn keep_within(&self, share: IndexShare) -> Result<(), LocalDbError> {
        match &self.state.lock().connection {
            Some(connection) => localdb::set_cache(connection, super::part(share, CACHE_SHARE))
                .map_err(|source| failed(&self.path, source)),
            None => Ok(()),
        }
    }

    /// Returns where the file that was found damaged is now.
    pub fn was_rebuilt(&self) -> Option<&Path> {
        self.aside.as_deref()
    }

    /// Returns a node's plaintext. `None` if it is not there or not readable. The caller verifies the id, as for bytes
    /// from the repository.
    pub fn get(&self, id: &ChunkId) -> Option<Vec<u8>> {
        let sealed = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let connection = state.connection.as_ref()?;
            let found = self.tried(sealed_node(connection, id))??;
            if !state.is_full {
                state.touched.insert(*id);
            }
            if state.touched.len() >= TOUCHED_MAX {
                let touched = std::mem::take(&mut state.touched);
                state.clock += 1;
                let done = localdb::write(connection, |connection| touch(connection, &touched, state.clock));
                state.is_full = self.tried(done).is_none();
            }
            found
        };
        self.sealer.open(&nonce_of(id), &sealed, &self.node_aad(id)).ok()
    }

    /// Adds nodes in one transaction, and removes those that were not used for longest if there is no room.
    ///
    /// # Errors
    /// If the database fails; then nothing was added, and nothing will be: later calls return at once.
    pub fn put_many<'a>(&self, nodes: impl IntoIterator<Item = (&'a ChunkId, &'a [u8])>) -> Result<(), LocalDbError> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let clock = state.clock + 1;
        let Some(connection) = state.connection.as_ref().filter(|_| !state.is_full) else {
            return Ok(());
        };
        let done = localdb::write(connection, |connection| {
            touch(connection, &state.touched, clock)?;
            let mut bytes = state.bytes;
            let mut insert = connection.prepare_cached(
                "INSERT INTO node (id, used, data) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET used = ?2, data = ?3",
            )?;
            let mut length = connection.prepare_cached("SELECT length(data) FROM node WHERE id = ?1")?;
            for (id, plaintext) in nodes {
                let sealed = self.sealer.seal(&nonce_of(id), plaintext, &self.node_aad(id));
                let before: Option<i64> = length.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
                bytes = bytes.saturating_sub(before.map_or(0, |before| row_bytes(before as u64)));
                bytes += row_bytes(sealed.len() as u64);
                insert.execute(params![id.as_bytes(), clock, sealed])?;
            }
            if bytes > self.bytes_max {
                bytes = make_room(connection, bytes, self.bytes_max / 100 * KEPT_PERCENT)?;
            }
            connection
                .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('bytes', ?1)")?
                .execute([bytes.to_le_bytes()])?;
            Ok::<_, rusqlite::Error>(bytes)
        });
        state.touched.clear();
        state.bytes = done.map_err(|source| {
            state.is_full = true;
            failed(&self.path, source)
        })?;
        state.clock = clock;
        Ok(())
    }

    /// Returns the newest root of a path of a source.
    pub fn root(&self, source: &SourceId, path: &[u8]) -> Option<KnownRoot> {
        let name = self.root_name(source, path);
        let sealed: Option<Vec<u8>> = {
            let state = self.state.lock();
            self.tried(
                state
                    .connection
                    .as_ref()?
                    .prepare_cached("SELECT v FROM root WHERE k = ?1")
                    .and_then(|mut statement| statement.query_row([name], |row| row.get(0)).optional()),
            )?
        };
        let sealed = sealed?;
        let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
        let value = self.sealer.open(nonce, sealed, &self.root_aad(&name)).ok()?;
        let (session, rest) = value.split_first_chunk::<16>()?;
        let (node, rest) = rest.split_first_chunk::<32>()?;
        let [height] = *rest else { return None };
        Some(KnownRoot {
            session: SessionId(*session),
            node: ChunkId(*node),
            height,
        })
    }

    /// Sets the newest root of a path of a source.
    ///
    /// # Errors
    /// If the database fails.
    pub fn set_root(&self, source: &SourceId, path: &[u8], root: &KnownRoot) -> Result<(), LocalDbError> {
        let name = self.root_name(source, path);
        let mut value = Vec::with_capacity(49);
        value.extend_from_slice(root.session.as_bytes());
        value.extend_from_slice(root.node.as_bytes());
        value.push(root.height);
        // The nonce follows from name and value: two different values never share one, and there is no need for chance.
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&keyed_hash(&self.name_key, &[b"nonce", &name, &value])[..12]);
        let mut stored = nonce.to_vec();
        stored.extend_from_slice(&self.sealer.seal(&nonce, &value, &self.root_aad(&name)));
        let state = self.state.lock();
        let Some(connection) = state.connection.as_ref().filter(|_| !state.is_full) else {
            return Ok(());
        };
        localdb::write(connection, |connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO root VALUES (?1, ?2)")?
                .execute(params![name, stored])
        })
        .map_err(|source| failed(&self.path, source))?;
        Ok(())
    }

    /// Returns about how many bytes are held.
    pub fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    fn node_aad(&self, id: &ChunkId) -> [u8; 52] {
        let mut aad = [0; 52];
        aad[..4].copy_from_slice(b"LNOD");
        aad[4..20].copy_from_slice(self.repo.as_bytes());
        aad[20..].copy_from_slice(id.as_bytes());
        aad
    }

    fn root_aad(&self, name: &[u8; 32]) -> [u8; 52] {
        let mut aad = [0; 52];
        aad[..4].copy_from_slice(b"LROT");
        aad[4..20].copy_from_slice(self.repo.as_bytes());
        aad[20..].copy_from_slice(name);
        aad
    }

    fn root_name(&self, source: &SourceId, path: &[u8]) -> [u8; 32] {
        keyed_hash(&self.name_key, &[b"root", source.as_bytes(), path])
    }

    /// The name under which the place of a chunk is kept. It is no chunk's id.
    pub(super) fn place_name(&self, id: &ChunkId) -> ChunkId {
        ChunkId(keyed_hash(&self.name_key, &[b"place", id.as_bytes()]))
    }

    /// Takes a failure for "not there", after seeing to it that a damaged file is not used again.
    fn tried<T>(&self, result: Result<T, rusqlite::Error>) -> Option<T> {
        result.map_err(|source| failed(&self.path, source)).ok()
    }
}

impl Drop for NodeCache {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(connection) = &state.connection
            && !state.touched.is_empty()
        {
            // Only decides which nodes go first.
            let _ = localdb::write(connection, |connection| {
                touch(connection, &state.touched, state.clock + 1)
            });
        }
    }
}

fn failed(path: &Path, source: rusqlite::Error) -> LocalDbError {
    let error = LocalDbError::of(path, source);
    if error.wants_rebuild() {
        let _ = localdb::give_up(path);
    }
    error
}

/// Ids are outputs of a keyed hash, and one id has one plaintext: the nonce never meets a second message.
fn nonce_of(id: &ChunkId) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&id.as_bytes()[..12]);
    nonce
}

fn row_bytes(sealed: u64) -> u64 {
    sealed + ROW_BYTES
}

fn sealed_node(connection: &Connection, id: &ChunkId) -> Result<Option<Vec<u8>>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT data FROM node WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()
}

/// What `meta` says is held; counted anew if it says nothing.
fn stored_bytes(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let told: Option<[u8; 8]> = connection
        .query_row("SELECT v FROM meta WHERE k = 'bytes'", [], |row| row.get(0))
        .optional()?;
    match told {
        Some(bytes) => Ok(u64::from_le_bytes(bytes)),
        None => {
            let counted: i64 = connection.query_row(
                "SELECT coalesce(sum(length(data) + ?1), 0) FROM node",
                [ROW_BYTES as i64],
                |row| row.get(0),
            )?;
            Ok(counted as u64)
        }
    }
}

fn touch(connection: &Connection, ids: &HashSet<ChunkId>, clock: i64) -> Result<(), rusqlite::Error> {
    let mut update = connection.prepare_cached("UPDATE node SET used = ?2 WHERE id = ?1")?;
    for id in ids {
        update.execute(params![id.as_bytes(), clock])?;
    }
    Ok(())
}

/// Removes what was not used for longest until no more than `keep` bytes are held; returns how many that are.
fn make_room(connection: &Connection, mut bytes: u64, keep: u64) -> Result<u64, rusqlite::Error> {
    let mut oldest = connection.prepare_cached("SELECT h, length(data) FROM node ORDER BY used, h LIMIT 256")?;
    let mut delete = connection.prepare_cached("DELETE FROM node WHERE h = ?1")?;
    while bytes > keep {
        let rows = oldest
            .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        if rows.is_empty() {
            // Another process has emptied it.
            return Ok(0);
        }
        for (row, length) in rows {
            if bytes <= keep {
                break;
            }
            delete.execute([row])?;
            bytes = bytes.saturating_sub(row_bytes(length as u64));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const REPO: RepoId = RepoId([0x10; 16]);
    const SOURCE: SourceId = SourceId([0x77; 16]);

    fn key(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    fn open(directory: &Path, bytes_max: u64) -> NodeCache {
        NodeCache::open(directory, &REPO, &key(1), bytes_max).unwrap()
    }

    fn id(number: u32) -> ChunkId {
        ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    fn root(number: u8) -> KnownRoot {
        KnownRoot {
            session: SessionId([number; 16]),
            node: id(u32::from(number)),
            height: number,
        }
    }

    #[test]
    fn nodes_and_roots_come_back_for_the_same_key_and_repository_only() {
        let directory = tempfile::tempdir().unwrap();
        {
            let cache = open(directory.path(), 1 << 30);
            cache.put_many([(&id(1), &b"one"[..]), (&id(2), b"")]).unwrap();
            cache.set_root(&SOURCE, b"/home", &root(1)).unwrap();
            cache.set_root(&SOURCE, b"/home", &root(2)).unwrap();
            cache.set_root(&SOURCE, b"/etc", &root(3)).unwrap();
        }
        let cache = open(directory.path(), 1 << 30);
        assert_eq!(cache.get(&id(1)).unwrap(), b"one");
        assert_eq!(cache.get(&id(2)).unwrap(), b"");
        assert_eq!(cache.get(&id(3)), None);
        assert_eq!(cache.root(&SOURCE, b"/home"), Some(root(2)));
        assert_eq!(cache.root(&SOURCE, b"/etc"), Some(root(3)));
        assert_eq!(cache.root(&SourceId([0; 16]), b"/etc"), None);
        drop(cache);
        for (repo, key) in [(REPO, key(2)), (RepoId([0x11; 16]), key(1))] {
            let cache = NodeCache::open(directory.path(), &repo, &key, 1 << 30).unwrap();
            assert_eq!(cache.get(&id(1)), None);
            assert_eq!(cache.root(&SOURCE, b"/home"), None);
        }
    }

    #[test]
    fn a_value_under_another_id_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 1 << 30);
        cache.put_many([(&id(1), &b"one"[..]), (&id(2), b"two")]).unwrap();
        cache
            .state
            .lock()
            .connection
            .as_ref()
            .unwrap()
            .execute("UPDATE node SET data = (SELECT max(data) FROM node)", [])
            .unwrap();
        assert!(cache.get(&id(1)).is_none() != cache.get(&id(2)).is_none());
    }

    #[test]
    fn no_plaintext_lies_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let canary = b"/home/alice/very-secret-canary";
        let cache = open(directory.path(), 1 << 30);
        for number in 0..200 {
            cache.put_many([(&id(number), &canary.repeat(20)[..])]).unwrap();
        }
        cache.set_root(&SOURCE, canary, &root(1)).unwrap();
        let clear = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        let look = || {
            let mut files = 0;
            for entry in fs::read_dir(directory.path()).unwrap() {
                let bytes = fs::read(entry.unwrap().path()).unwrap();
                files += usize::from(bytes.len() > 10_000);
                assert!(!clear(&bytes, b"canary") && !clear(&bytes, b"alice") && !clear(&bytes, SOURCE.as_bytes()));
            }
            files
        };
        assert!(look() > 0, "there is something to look at while it is open (the WAL)");
        drop(cache);
        assert!(look() > 0);
    }

    #[test]
    fn keeps_to_its_bound_and_drops_what_was_not_used_for_longest() {
        let directory = tempfile::tempdir().unwrap();
        let value = vec![7; 10_000];
        let cache = open(directory.path(), 1_000_000);
        for number in 0..90 {
            cache.put_many([(&id(number), &value[..])]).unwrap();
        }
        assert!((0..90).all(|number| cache.get(&id(number)).is_some()));
        cache.put_many([]).unwrap();
        // Used once more, and noted so by the next write, or by closing.
        (0..10).for_each(|number| drop(cache.get(&id(number))));
        drop(cache);
        let cache = open(directory.path(), 1_000_000);
        for number in 100..140 {
            cache.put_many([(&id(number), &value[..])]).unwrap();
            assert!(cache.bytes() <= 1_000_000);
        }
        assert!((0..10).chain(100..140).all(|number| cache.get(&id(number)).is_some()));
        assert!((10..40).all(|number| cache.get(&id(number)).is_none()));
        // Writing the same again takes no more room.
        let before = cache.bytes();
        cache.put_many([(&id(139), &value[..])]).unwrap();
        assert_eq!(cache.bytes(), before);
        drop(cache);
        assert_eq!(open(directory.path(), 1_000_000).bytes(), before);
        assert!(fs::metadata(directory.path().join("cache.db")).unwrap().len() < 2_000_000);
    }

    #[test]
    fn damage_anywhere_yields_the_right_node_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 1 << 30);
        let value = |number: u32| format!("node {number}").repeat(100).into_bytes();
        for number in 0..100 {
            cache.put_many([(&id(number), &value(number)[..])]).unwrap();
        }
        cache.set_root(&SOURCE, b"/", &root(1)).unwrap();
        drop(cache);
        let whole = fs::read(directory.path().join("cache.db")).unwrap();
        for at in (0..100).chain((100..whole.len()).step_by(whole.len() / 150)) {
            let mut damaged = whole.clone();
            match at % 3 {
                0 => damaged[at] ^= 1 << (at % 8),
                1 => damaged[at / 16_384 * 16_384..][..16_384].fill(0),
                _ => damaged.truncate(at),
            }
            let home = tempfile::tempdir().unwrap();
            fs::write(home.path().join("cache.db"), &damaged).unwrap();
            let cache = open(home.path(), 1 << 30);
            for number in 0..100 {
                assert!(cache.get(&id(number)).is_none_or(|found| found == value(number)));
            }
            assert!(cache.root(&SOURCE, b"/").is_none_or(|found| found == root(1)));
            // Whatever it was: after at most one failure it is as good as new.
            let first = cache.put_many([(&id(500), &value(500)[..])]);
            drop(cache);
            let cache = open(home.path(), 1 << 30);
            assert!(cache.get(&id(500)).is_none_or(|found| found == value(500)));
            if first.is_err() {
                cache.put_many([(&id(500), &value(500)[..])]).unwrap();
                assert_eq!(cache.get(&id(500)).unwrap(), value(500));
            }
        }
    }
}
