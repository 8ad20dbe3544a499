//! Local SQLite databases, opened our way (format-spec chapter on client-local state).
//!
//! What they hold is derived from the repository and disposable, so damage is not repaired: the file is moved aside and
//! an empty database takes its place ([`open_or_rebuild`]). Everything here exists to notice that in time: the SQLite
//! version (older ones can corrupt a WAL), the file system (locks do not work on a network), whose file it is.

use crate::pure::base::{Explain, Kind};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The first SQLite without the WAL-reset bug (two connections, a checkpoint and a commit at the same moment).
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// How long a statement waits for another process before it fails as busy.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// How many damaged files are kept for a post-mortem; beyond that the oldest name is used again.
const KEPT_ASIDE: u32 = 3;

/// Suffix of the empty file that says that a database must not be used any more.
const GIVEN_UP: &str = ".given-up";

/// What a database of one sort looks like.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// `PRAGMA application_id`: whose file it is. Not 0, which is what an empty file has.
    pub application_id: i32,
    /// `PRAGMA user_version`: the version of the schema.
    pub user_version: i32,
    /// Bytes of a page; decided when the file is made.
    pub page_size: u32,
    /// Statements that make the tables; run once, in one transaction.
    pub schema: &'static str,
}

/// Why a local database is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LocalDbError {
    /// The linked SQLite has a known corruption bug.
    #[error("the SQLite library is version {found}, and versions before 3.51.3 can damage a database")]
    OldLibrary { found: String },
    /// Locks and shared memory cannot be trusted there.
    #[error("{} is on a network file system ({system})", path.display())]
    NetworkFileSystem { path: PathBuf, system: &'static str },
    /// The file is a database of another sort or of another version of the schema.
    #[error("{} is a database of another sort or version", path.display())]
    Foreign { path: PathBuf },
    /// The file is not a sound database. What it held can be had again from the repository.
    #[error("the local database {} is damaged", path.display())]
    Damaged { path: PathBuf, source: rusqlite::Error },
    /// Damage was met earlier while the database was in use ([`give_up`]).
    #[error("the local database {} was found damaged", path.display())]
    GivenUp { path: PathBuf },
    /// Another process holds it for longer than we wait.
    #[error("the local database {} is in use by another process", path.display())]
    Busy { path: PathBuf, source: rusqlite::Error },
    /// The database cannot be read or written (disk full, permissions, device).
    #[error("using the local database {}", path.display())]
    Unavailable { path: PathBuf, source: rusqlite::Error },
    /// The file or its directory cannot be made, renamed or locked.
    #[error("preparing the local database {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl LocalDbError {
    /// Sorts an error of a statement on the database at `path`.
    pub fn of(path: &Path, source: rusqlite::Error) -> LocalDbError {
        let path = path.to_owned();
        match sort(&source) {
            Sort::Damage => LocalDbError::Damaged { path, source },
            Sort::Busy => LocalDbError::Busy { path, source },
            Sort::Environment => LocalDbError::Unavailable { path, source },
        }
    }

    /// True if moving the file aside and starting afresh helps.
    pub fn wants_rebuild(&self) -> bool {
        matches!(
            self,
            LocalDbError::Damaged { .. } | LocalDbError::Foreign { .. } | LocalDbError::GivenUp { .. }
        )
    }
}

impl Explain for LocalDbError {
    fn kind(&self) -> Kind {
        match self {
            LocalDbError::OldLibrary { .. } => Kind::Internal,
            LocalDbError::NetworkFileSystem { .. } => Kind::Usage,
            LocalDbError::Busy { .. } => Kind::Busy,
            LocalDbError::Foreign { .. }
            | LocalDbError::GivenUp { .. }
            | LocalDbError::Damaged { .. }
            | LocalDbError::Unavailable { .. }
            | LocalDbError::Io { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            LocalDbError::NetworkFileSystem { .. } => {
                Some("put the cache directory on a local disk (--cache-dir)".to_owned())
            }
            LocalDbError::Foreign { path } | LocalDbError::GivenUp { path } | LocalDbError::Damaged { path, .. } => {
                Some(format!(
                    "the next run moves {} aside and builds it again from the repository; nothing is lost",
                    path.display()
                ))
            }
            LocalDbError::Unavailable { path, .. } | LocalDbError::Io { path, .. } => Some(format!(
                "check free space and permissions of {}",
                path.parent().unwrap_or(path).display()
            )),
            LocalDbError::OldLibrary { .. } | LocalDbError::Busy { .. } => None,
        }
    }
}

/// What an SQLite error says about the file.
enum Sort {
    Damage,
    Busy,
    Environment,
}

fn sort(error: &rusqlite::Error) -> Sort {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) | rusqlite::Error::SqlInputError { error: failure, .. } => {
            match failure.code {
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Sort::Busy,
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::TypeMismatch
                | ErrorCode::ConstraintViolation
                | ErrorCode::SchemaChanged
                | ErrorCode::TooBig
                // A plain SQLITE_ERROR is "no such table" and the like: our statements are fixed, so the schema is not ours.
                | ErrorCode::Unknown => Sort::Damage,
                _ => Sort::Environment,
            }
        }
        // A column of another type than the schema allows, or a number outside of what we ever write.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::InvalidColumnType(..) => Sort::Damage,
        _ => Sort::Environment,
    }
}

/// Opens the database at `path`, which is made if it does not exist (its directory too: 0700, the file 0600).
///
/// Serialised between processes by a lock file beside it, so that two of them never create or move aside at once.
///
/// # Errors
/// See [`LocalDbError`]; with [`LocalDbError::wants_rebuild`] the caller moves the file aside ([`open_or_rebuild`]
/// does).
pub fn open(path: &Path, layout: &Layout) -> Result<Connection, LocalDbError> {
    prepare_directory(path)?;
    let _lock = lock_opening(path)?;
    open_locked(path, layout)
}

/// Opens the database at `path`; a damaged or foreign one, and one that `accept` does not recognise, is moved aside to
/// `<path>.damaged-<n>` first. Returns the name that it got, if so.
///
/// # Errors
/// As [`open`], except for those that a rebuild helps against.
pub fn open_or_rebuild(
    path: &Path,
    layout: &Layout,
    accept: &dyn Fn(&Connection) -> Result<bool, rusqlite::Error>,
) -> Result<(Connection, Option<PathBuf>), LocalDbError> {
    prepare_directory(path)?;
    let _lock = lock_opening(path)?;
    let opened = open_locked(path, layout).and_then(|connection| match accept(&connection) {
        Ok(true) => Ok(connection),
        Ok(false) => Err(LocalDbError::Foreign { path: path.to_owned() }),
        Err(source) => Err(LocalDbError::of(path, source)),
    });
    let aside = match opened {
        Ok(connection) => return Ok((connection, None)),
        Err(error) if error.wants_rebuild() => move_aside(path).map_err(|source| LocalDbError::Io {
            path: path.to_owned(),
            source,
        })?,
        Err(error) => return Err(error),
    };
    let connection = open_locked(path, layout)?;
    match accept(&connection) {
        Ok(true) => Ok((connection, Some(aside))),
        Ok(false) => Err(LocalDbError::Foreign { path: path.to_owned() }),
        Err(source) => Err(LocalDbError::of(path, source)),
    }
}

/// Opens one more connection to a database that [`open`] has opened. `cache_kib` bounds its page cache.
///
/// # Errors
/// See [`LocalDbError`].
pub fn connect(path: &Path, cache_kib: u32) -> Result<Connection, LocalDbError> {
    let connection = plain(path)?;
    set_cache(&connection, cache_kib).map_err(|source| LocalDbError::of(path, source))?;
    Ok(connection)
}

/// Bounds the page cache of a connection, in KiB.
pub fn set_cache(connection: &Connection, cache_kib: u32) -> Result<(), rusqlite::Error> {
    connection.pragma_update(None, "cache_size", -i64::from(cache_kib))
}

/// Runs `work` in one transaction that holds the write lock from its start, so that it never has to be repeated.
pub fn write<T, E: From<rusqlite::Error>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Runs `work` on one unchanging view of the database.
pub fn read<T, E: From<rusqlite::Error>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Checks every page of the database; seconds per GiB. `Ok(false)`: damaged.
///
/// # Errors
/// If the database cannot be read at all for another reason than damage.
pub fn is_sound(connection: &Connection, path: &Path) -> Result<bool, LocalDbError> {
    match connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)) {
        Ok(text) => Ok(text == "ok"),
        Err(source) => match LocalDbError::of(path, source) {
            LocalDbError::Damaged { .. } => Ok(false),
            error => Err(error),
        },
    }
}

/// Notes that a database is damaged: the next open moves it aside. For damage that is met while the file is in use.
pub fn give_up(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(with_suffix(path, GIVEN_UP))
        .map(drop)
}

/// Moves a database and what belongs to it aside; returns the new name. Processes that have it open go on with the
/// moved file.
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    // Stays until the last rename: a database without its WAL, or the other way round, must not be opened by anybody.
    give_up(path)?;
    let named = |n: u32| with_suffix(path, &format!(".damaged-{n}"));
    let free = (1..=KEPT_ASIDE).find(|&n| !named(n).exists());
    let target = named(free.unwrap_or(KEPT_ASIDE));
    for companion in ["-wal", "-shm", ""] {
        match fs::rename(with_suffix(path, companion), with_suffix(&target, companion)) {
            Ok(()) => {}
            // A companion of an older file under that name would be taken for one of this file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match fs::remove_file(with_suffix(&target, companion)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
    fs::remove_file(with_suffix(path, GIVEN_UP))?;
    Ok(target)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the directory (0700) and the file (0600, which SQLite copies to its companions), and refuses network file
/// systems.
fn prepare_directory(path: &Path) -> Result<(), LocalDbError> {
    let failed = |source| LocalDbError::Io {
        path: path.to_owned(),
        source,
    };
    let directory = path
        .parent()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let mode = fs::metadata(directory).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let magic = rustix::fs::statfs(directory)
        .map_err(|error| failed(error.into()))?
        .f_type;
    match network_file_system(magic as u64) {
        Some(system) => Err(LocalDbError::NetworkFileSystem {
            path: directory.to_owned(),
            system,
        }),
        None => Ok(()),
    }
}

/// Names the file systems on which SQLite's locks or its shared memory do not work between machines (statfs(2)).
fn network_file_system(magic: u64) -> Option<&'static str> {
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 | 0xfe53_4d42 => "SMB/CIFS",
        0x564c => "NCP",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x0102_1997 => "9P",
        _ => return None,
    })
}

/// Held while a database is opened, created or moved aside; released by the kernel when dropped or when we die.
fn lock_opening(path: &Path) -> Result<File, LocalDbError> {
    let failed = |source| LocalDbError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(with_suffix(path, ".opening"))
        .map_err(failed)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// Opens without looking at what is inside.
fn plain(path: &Path) -> Result<Connection, LocalDbError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(LocalDbError::OldLibrary {
            found: rusqlite::version().to_owned(),
        });
    }
    let failed = |source| LocalDbError::of(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    configure(&connection).map_err(failed)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY_WAIT)?;
    // A damaged page is noticed when it is read, not when a cell of it is used.
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    // Without this, SQLite compiles a statement again for each new parameter that it has compared with the condition of a
    // partial index: half of the time of a lookup.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // A file that shrinks under a map kills the process.
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "wal_autocheckpoint", 4096)
}

fn open_locked(path: &Path, layout: &Layout) -> Result<Connection, LocalDbError> {
    if with_suffix(path, GIVEN_UP).exists() {
        return Err(LocalDbError::GivenUp { path: path.to_owned() });
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| LocalDbError::Io {
            path: path.to_owned(),
            source,
        })?;
    // SQLite opens a file of a later format for reading only, and we would notice at the first write.
    if let Some(header) = first_bytes(path).map_err(|source| LocalDbError::Io {
        path: path.to_owned(),
        source,
    })? && (header[18] > 2 || header[19] > 2)
    {
        return Err(LocalDbError::Foreign { path: path.to_owned() });
    }
    let connection = plain(path)?;
    match prepare(&connection, layout) {
        Ok(true) => Ok(connection),
        Ok(false) => Err(LocalDbError::Foreign { path: path.to_owned() }),
        Err(source) => Err(LocalDbError::of(path, source)),
    }
}

/// Reads the start of the file header: read and write version of the format are bytes 18 and 19. `None`: too short.
fn first_bytes(path: &Path) -> io::Result<Option<[u8; 20]>> {
    let mut header = [0; 20];
    match File::open(path)?.read_exact(&mut header) {
        Ok(()) => Ok(Some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the tables of an empty database; `Ok(false)` if the database is of another sort.
fn prepare(connection: &Connection, layout: &Layout) -> Result<bool, rusqlite::Error> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application_id, user_version) = (number("application_id")?, number("user_version")?);
    if tables == 0 && application_id == 0 && user_version == 0 {
        connection.pragma_update(None, "page_size", layout.page_size)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        write(connection, |connection| {
            connection.execute_batch(layout.schema)?;
            connection.pragma_update(None, "application_id", layout.application_id)?;
            connection.pragma_update(None, "user_version", layout.user_version)
        })?;
        return Ok(true);
    }
    if application_id != layout.application_id || user_version != layout.user_version {
        return Ok(false);
    }
    let journal: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if !journal.eq_ignore_ascii_case("wal") {
        connection.pragma_update(None, "journal_mode", "WAL")?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        application_id: 0x4c52_4454,
        user_version: 7,
        page_size: 4096,
        schema: "CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB NOT NULL) STRICT;",
    };

    fn accept(_: &Connection) -> Result<bool, rusqlite::Error> {
        Ok(true)
    }

    #[test]
    fn linked_sqlite_is_recent_enough() {
        assert!(rusqlite::version_number() >= SQLITE_VERSION_MIN);
    }

    #[test]
    fn a_statement_is_compiled_once_whatever_its_parameters() {
        let directory = tempfile::tempdir().unwrap();
        let connection = open(&directory.path().join("x.db"), &LAYOUT).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE part (h INTEGER PRIMARY KEY, state INTEGER); CREATE INDEX p ON part(h) WHERE state = 7",
            )
            .unwrap();
        let mut statement = connection
            .prepare("SELECT t.v FROM t LEFT JOIN part ON part.h = t.k WHERE t.k = ?1")
            .unwrap();
        for id in 0..10 {
            assert!(!statement.exists([id]).unwrap());
        }
        assert_eq!(statement.get_status(rusqlite::StatementStatus::RePrepare), 0);
    }

    #[test]
    fn directory_and_files_are_private_and_content_survives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/x.db");
        let connection = open(&path, &LAYOUT).unwrap();
        connection.execute("INSERT INTO t VALUES (1, x'00')", []).unwrap();
        for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                entry.metadata().unwrap().permissions().mode() & 0o777,
                0o600,
                "{:?}",
                entry.path()
            );
        }
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        drop(connection);
        let connection = open(&path, &LAYOUT).unwrap();
        assert_eq!(
            connection
                .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
                .unwrap(),
            1
        );
    }

    #[test]
    fn another_sort_or_version_is_foreign_and_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        drop(open(&path, &LAYOUT).unwrap());
        for other in [
            Layout {
                user_version: 8,
                ..LAYOUT
            },
            Layout {
                application_id: 1,
                ..LAYOUT
            },
        ] {
            assert!(matches!(open(&path, &other), Err(LocalDbError::Foreign { .. })));
        }
        let (_, aside) = open_or_rebuild(
            &path,
            &Layout {
                user_version: 8,
                ..LAYOUT
            },
            &accept,
        )
        .unwrap();
        assert!(aside.unwrap().ends_with("x.db.damaged-1"));
        assert!(
            open(
                &path,
                &Layout {
                    user_version: 8,
                    ..LAYOUT
                }
            )
            .is_ok()
        );
    }

    #[test]
    fn what_is_not_a_database_is_damaged_and_is_moved_aside_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        for round in 0..5 {
            fs::write(&path, vec![round; 10_000]).unwrap();
            assert!(open(&path, &LAYOUT).unwrap_err().wants_rebuild());
            let (connection, aside) = open_or_rebuild(&path, &LAYOUT, &accept).unwrap();
            assert!(aside.unwrap().exists());
            assert!(is_sound(&connection, &path).unwrap());
        }
        assert_eq!(
            fs::read_dir(directory.path())
                .unwrap()
                .filter(|e| e
                    .as_ref()
                    .is_ok_and(|e| e.file_name().to_string_lossy().contains("damaged")))
                .count(),
            3
        );
    }

    /// Every bit of the file header: opened as it was, or refused, or rebuilt; always writable in the end.
    #[test]
    fn a_flipped_bit_in_the_header_never_locks_us_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let connection = open(&path, &LAYOUT).unwrap();
        connection.execute("INSERT INTO t VALUES (1, x'00')", []).unwrap();
        drop(connection);
        let whole = fs::read(&path).unwrap();
        let mut rebuilt = 0;
        for bit in 0..800 {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("x.db");
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            let write_one = || {
                let (connection, aside) = open_or_rebuild(&path, &LAYOUT, &accept)?;
                write(&connection, |c| {
                    c.execute("INSERT OR REPLACE INTO t VALUES (2, x'00')", [])
                })
                .map_err(|source| LocalDbError::of(&path, source))?;
                Ok::<_, LocalDbError>(aside.is_some())
            };
            match write_one() {
                Ok(aside) => rebuilt += usize::from(aside),
                Err(error) => {
                    assert!(error.wants_rebuild(), "bit {bit}: {error:?}");
                    give_up(&path).unwrap();
                    assert!(write_one().unwrap());
                }
            }
        }
        assert!(rebuilt > 200, "{rebuilt}");
    }

    #[test]
    fn a_database_that_was_given_up_is_not_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let connection = open(&path, &LAYOUT).unwrap();
        connection.execute("INSERT INTO t VALUES (1, x'00')", []).unwrap();
        give_up(&path).unwrap();
        assert!(open(&path, &LAYOUT).unwrap_err().wants_rebuild());
        let (connection, aside) = open_or_rebuild(&path, &LAYOUT, &accept).unwrap();
        assert!(aside.is_some());
        assert_eq!(
            connection
                .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
                .unwrap(),
            0
        );
        assert!(open(&path, &LAYOUT).is_ok());
    }

    #[test]
    fn many_threads_may_create_it_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        std::thread::scope(|scope| {
            for number in 0..8i64 {
                let path = &path;
                scope.spawn(move || {
                    let (connection, aside) = open_or_rebuild(path, &LAYOUT, &accept).unwrap();
                    assert_eq!(aside, None);
                    write(&connection, |c| c.execute("INSERT INTO t VALUES (?1, x'00')", [number])).unwrap();
                });
            }
        });
        let connection = open(&path, &LAYOUT).unwrap();
        assert_eq!(
            connection
                .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
                .unwrap(),
            8
        );
    }

    #[test]
    fn network_file_systems_are_named() {
        assert_eq!(network_file_system(0x6969), Some("NFS"));
        // f_type is signed on some machines.
        assert_eq!(network_file_system(0xff53_4d42_u32 as i32 as u64), Some("SMB/CIFS"));
        assert_eq!(network_file_system(0xef53), None);
    }
}
