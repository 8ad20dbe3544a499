//! Copying, comparing and healing single objects, several at a time.

use super::Options;
use super::pairs::{Pair, side_by_side};
use super::report::Report;
use crate::edge::store::{Created, Failure, Part, Store, StoreKey};
use crate::ops::{OpError, Progress};
use crate::pure::base::with_causes;
use crate::pure::format::name::ObjectName;
use crate::pure::format::{FormatError, sealed};
use crate::pure::id::RepoId;
use crate::repo::RepoError;
use crate::repo::error::store_error;
use crate::repo::open::{bytes_max, store_key};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

/// A read that gives damaged bytes is repeated before it is believed.
const READS: usize = 3;
/// Pairs that wait for a thread.
const PAIRS_AHEAD: usize = 64;

/// Copies objects from one store to another.
pub(super) struct Copier<'a> {
    pub source: &'a dyn Store,
    pub target: &'a dyn Store,
    pub options: &'a Options,
    progress: &'a Progress,
    repo: RepoId,
    room: Room,
    report: Mutex<Report>,
}

/// What reading an object came to.
enum Got {
    Sound(Bytes),
    /// It stays damaged however often it is read; its bytes, if it gives any, and what is wrong.
    Damaged(Option<Bytes>, String),
    Gone,
}

/// Bytes that may still be taken into memory.
struct Room {
    all: u64,
    free: Mutex<u64>,
    left: Condvar,
}

struct Taken<'a>(&'a Room, u64);

impl Room {
    fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(self.all);
        let mut free = self.free.lock();
        while *free < bytes {
            self.left.wait(&mut free);
        }
        *free -= bytes;
        Taken(self, bytes)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += self.1;
        self.0.left.notify_all();
    }
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        source: &'a dyn Store,
        target: &'a dyn Store,
        repo: RepoId,
        options: &'a Options,
        progress: &'a Progress,
    ) -> Copier<'a> {
        Copier {
            source,
            target,
            options,
            progress,
            repo,
            room: Room {
                all: options.bytes_in_memory.max(1),
                free: Mutex::new(options.bytes_in_memory.max(1)),
                left: Condvar::new(),
            },
            report: Mutex::default(),
        }
    }

    /// Moves what was counted and found into the report.
    pub(super) fn finish(self, report: &mut Report) {
        let counted = self.report.into_inner();
        *report = Report {
            rounds: report.rounds,
            behind_before: report.behind_before,
            behind_after: report.behind_after,
            lost_at_source: std::mem::take(&mut report.lost_at_source),
            ..counted
        };
    }

    pub(super) fn check_cancelled(&self) -> Result<(), OpError> {
        match self.progress.is_cancelled() {
            true => Err(OpError::Interrupted),
            false => Ok(()),
        }
    }

    /// Returns what the replica does not have under a prefix of small and few objects, and compares what it has.
    pub(super) fn missing(&self, under: &str) -> Result<Vec<(ObjectName, u64)>, OpError> {
        let (mut missing, mut both) = (Vec::new(), Vec::new());
        side_by_side(self.source, self.target, under, &mut |pair| {
            let (Pair::Missing(key, size) | Pair::Both(key, size, _) | Pair::Beyond(key, size)) = &pair;
            match (named(key), &pair) {
                (Some(name), Pair::Missing(..)) => missing.push((name, *size)),
                (Some(name), Pair::Both(..)) => both.push((name, pair.clone())),
                _ => {}
            }
        })?;
        both.iter().try_for_each(|(name, pair)| {
            self.check_cancelled()?;
            self.pair(name, pair)
        })?;
        Ok(missing)
    }

    /// Copies everything under these prefixes that the replica does not have, several objects at a time.
    pub(super) fn copy_all(&self, under: &[&str]) -> Result<(), OpError> {
        let failed: Mutex<Option<OpError>> = Mutex::new(None);
        let (sender, receiver) = crossbeam_channel::bounded::<(ObjectName, Pair)>(PAIRS_AHEAD);
        let listed = std::thread::scope(|scope| {
            for _ in 0..self.options.threads.max(1) {
                let (receiver, failed) = (receiver.clone(), &failed);
                scope.spawn(move || {
                    for (name, pair) in receiver {
                        if failed.lock().is_some() {
                            continue;
                        }
                        if let Err(error) = self.check_cancelled().and_then(|()| self.pair(&name, &pair)) {
                            failed.lock().get_or_insert(error);
                        }
                    }
                });
            }
            drop(receiver);
            let sender = sender;
            under.iter().try_for_each(|under| {
                side_by_side(self.source, self.target, under, &mut |pair| {
                    self.sort(pair, &sender, &failed)
                })
            })
        });
        match failed.into_inner() {
            Some(error) => Err(error),
            // What was left out because somebody asked for a stop must not pass for copied.
            None => {
                listed?;
                self.check_cancelled()
            }
        }
    }

    /// Counts a pair, and hands it on if there is something to do.
    fn sort(
        &self,
        pair: Pair,
        sender: &crossbeam_channel::Sender<(ObjectName, Pair)>,
        failed: &Mutex<Option<OpError>>,
    ) {
        let (Pair::Missing(key, _) | Pair::Both(key, ..) | Pair::Beyond(key, _)) = &pair;
        let Some(name) = named(key) else { return };
        match pair {
            Pair::Beyond(_, bytes) => {
                let mut report = self.report.lock();
                match name {
                    ObjectName::Pack(..) => {
                        report.packs_beyond += 1;
                        report.bytes_beyond += bytes;
                    }
                    ObjectName::Protector(..) => report.keys_beyond += 1,
                    _ => {}
                }
            }
            Pair::Both(_, size, there) if size == there && !self.options.verify => {
                let mut report = self.report.lock();
                report.objects_there += 1;
                report.bytes_there += size;
            }
            pair if failed.lock().is_none() && !self.progress.is_cancelled() => {
                // The threads take until the sender is gone.
                let _ = sender.send((name, pair));
            }
            _ => {}
        }
    }

    /// Does what a pair asks for.
    pub(super) fn pair(&self, name: &ObjectName, pair: &Pair) -> Result<(), OpError> {
        match pair {
            Pair::Missing(_, size) => self.copy(name, *size),
            Pair::Both(_, size, there) => {
                {
                    let mut report = self.report.lock();
                    report.objects_there += 1;
                    report.bytes_there += there;
                }
                match self.options.verify && !self.options.dry_run {
                    true => self.verify(name, *size, *there),
                    false if size == there => Ok(()),
                    false => {
                        let what = format!(
                            "it has {there} bytes in the replica and {size} at the source; --verify replaces it if it is damaged"
                        );
                        self.find(name, what, false);
                        Ok(())
                    }
                }
            }
            Pair::Beyond(..) => Ok(()),
        }
    }

    pub(super) fn find(&self, name: &ObjectName, what: impl Into<String>, tamper: bool) {
        self.report.lock().find(name, what, tamper);
    }

    /// Copies an object that the replica does not have.
    pub(super) fn copy(&self, name: &ObjectName, size: u64) -> Result<(), OpError> {
        if self.options.dry_run {
            self.count_copied(size);
            return Ok(());
        }
        let _room = self.room.take(size);
        if let Some(bytes) = self.to_be_copied(name)? {
            self.create(name, bytes)?;
        }
        Ok(())
    }

    /// Reads an object of the source; `None` if there is nothing that is worth copying.
    pub(super) fn to_be_copied(&self, name: &ObjectName) -> Result<Option<Bytes>, RepoError> {
        match self.read(self.source, name, "the source")? {
            Got::Sound(bytes) => Ok(Some(bytes)),
            Got::Gone => {
                // These are deleted in the life of a repository; what is needed is not, see the head of the module above.
                match name {
                    ObjectName::Config(_) | ObjectName::Grant(..) | ObjectName::Outcome(_) | ObjectName::Drop(_) => {
                        self.find(name, "the source lists it and does not have it", false);
                    }
                    _ => self.report.lock().vanished += 1,
                }
                Ok(None)
            }
            // Its other frames are sound: who restores from the replica wants them.
            Got::Damaged(Some(bytes), why) if matches!(name, ObjectName::Pack(..)) && !bytes.is_empty() => {
                self.find(
                    name,
                    format!("it is damaged at the source ({why}), and was copied as it is"),
                    false,
                );
                Ok(Some(bytes))
            }
            Got::Damaged(_, why) => {
                self.find(
                    name,
                    format!("it is damaged at the source ({why}), and was not copied"),
                    false,
                );
                Ok(None)
            }
        }
    }

    /// Creates an object in the replica.
    pub(super) fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<(), OpError> {
        let size = bytes.len() as u64;
        let key = store_key(name);
        let created = self
            .target
            .create(&key, bytes)
            .map_err(store_error(format!("writing {name} to the replica")))?;
        if created == Created::Exists {
            // Somebody else replicates as well, or an earlier call has landed late.
            let there = self
                .target
                .stat(&key)
                .map_err(store_error(format!("looking at {name} of the replica")))?;
            if there.size != size {
                self.find(
                    name,
                    format!("it has {} bytes in the replica and {size} at the source", there.size),
                    false,
                );
            }
            return Ok(());
        }
        self.count_copied(size);
        Ok(())
    }

    fn count_copied(&self, size: u64) {
        let mut report = self.report.lock();
        report.objects_copied += 1;
        report.bytes_copied += size;
        self.progress.file_done(size);
    }

    /// Reads an object until it is sound, or has shown often enough that it is not.
    fn read(&self, store: &dyn Store, name: &ObjectName, whose: &str) -> Result<Got, RepoError> {
        let mut damaged = Got::Gone;
        for _ in 0..READS {
            match store.read(&store_key(name), Part::AtMost(bytes_max(name))) {
                Ok(bytes) => match sealed::check(name, &self.repo, &bytes) {
                    // What a newer version wrote is copied as it is.
                    Ok(()) | Err(FormatError::TooNew { .. }) => return Ok(Got::Sound(bytes)),
                    Err(error) => damaged = Got::Damaged(Some(bytes), with_causes(&error)),
                },
                Err(error) if error.class == Failure::NotFound => return Ok(Got::Gone),
                Err(error) if error.class == Failure::Unreadable => damaged = Got::Damaged(None, with_causes(&error)),
                Err(error) => return Err(store_error(format!("reading {name} of {whose}"))(error)),
            }
        }
        Ok(damaged)
    }

    /// Compares an object of the replica with that of the source, and replaces it if it is damaged.
    fn verify(&self, name: &ObjectName, size: u64, there: u64) -> Result<(), OpError> {
        let _room = self.room.take(size.max(there));
        let got = self.read(self.target, name, "the replica")?;
        self.progress.file_done(there);
        let (why, whole) = match got {
            Got::Sound(bytes) => {
                if size == there {
                    let Some(tail) = self.source_tail(name)? else {
                        return Ok(());
                    };
                    let stated = |bytes: &[u8]| sealed::stated_hash(name, bytes, size).ok();
                    if stated(&tail).is_some() && stated(&tail) == stated(&bytes) {
                        self.report.lock().objects_verified += 1;
                        return Ok(());
                    }
                }
                (None, Some(bytes))
            }
            Got::Damaged(_, why) => (Some(why), None),
            Got::Gone => (Some("it is listed and not there".to_owned()), None),
        };
        match (why, self.read(self.source, name, "the source")?) {
            (Some(_), Got::Sound(bytes)) => self.heal(name, bytes)?,
            (None, Got::Sound(bytes)) if whole == Some(bytes.clone()) => self.report.lock().objects_verified += 1,
            (None, Got::Sound(_)) => self.find(name, "it is whole at both places, and not the same", true),
            (_, Got::Gone) => {}
            (Some(why), Got::Damaged(..)) => {
                self.find(
                    name,
                    format!("it is damaged in the replica ({why}) and at the source"),
                    false,
                );
            }
            (None, Got::Damaged(_, why)) => {
                self.find(
                    name,
                    format!("it is damaged at the source ({why}); the replica has it whole"),
                    false,
                );
            }
        }
        Ok(())
    }

    fn source_tail(&self, name: &ObjectName) -> Result<Option<Bytes>, RepoError> {
        match self.source.read(&store_key(name), Part::Suffix(sealed::TAIL_BYTES)) {
            Ok(tail) => Ok(Some(tail)),
            Err(error) if error.class == Failure::NotFound => Ok(None),
            Err(error) if error.class == Failure::Unreadable => Ok(Some(Bytes::new())),
            Err(error) => Err(store_error(format!("reading {name} of the source"))(error)),
        }
    }

    /// Replaces a damaged object of the replica by the same one, which is in memory and whole. Until it is there, nothing is worse than
    /// it was: the next run copies what is missing.
    fn heal(&self, name: &ObjectName, bytes: Bytes) -> Result<(), OpError> {
        let key: StoreKey = store_key(name);
        self.target
            .remove(std::slice::from_ref(&key))
            .map_err(store_error(format!("deleting the damaged {name} of the replica")))?;
        self.create(name, bytes)?;
        self.report.lock().objects_healed += 1;
        Ok(())
    }
}

/// Names of other forms are nobody's, and the mark of a replica belongs to its place.
fn named(key: &StoreKey) -> Option<ObjectName> {
    ObjectName::parse(key.as_str()).filter(|name| !matches!(name, ObjectName::ReplicaMark(_)))
}
