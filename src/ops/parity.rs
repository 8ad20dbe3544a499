//! Parity beside the objects of a repository in a directory (format-spec chapter 18, ADR-0026): turning it on, writing the sidecars that are
//! missing, and taking all of them away. Whoever writes to the repository afterwards keeps them by itself ([`crate::repo::parity`]).

use super::grants::Change;
use super::{OpError, Progress};
use crate::edge::store::{Part, StoreKey};
use crate::ops::check::chain;
use crate::pure::crypto::sign::role;
use crate::pure::format::name::ObjectName;
use crate::pure::format::parity::{Shape, is_intact, sidecar_bytes};
use crate::repo::error::store_error;
use crate::repo::open::{prefix, store_key};
use crate::repo::parity::{sidecar_key, sidecar_of, write_sidecar};
use crate::repo::sidecars::{Beside, read_sound, survey};
use crate::repo::{Repo, RepoError};

/// Objects deleted with one request.
const DELETED_AT_ONCE: usize = 1000;

/// What to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Read the sidecars that are there too, and write those anew that are damaged.
    pub verify: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The configuration did not have it before.
    pub turned_on: bool,
    /// Objects that can have a sidecar, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    pub written: u64,
    pub bytes_written: u64,
    /// Sidecars that were damaged; among those written.
    pub replaced: u64,
    /// Objects that are damaged, so that a sidecar would be of no use, and what is wrong with them.
    pub damaged: Vec<(ObjectName, String)>,
    /// Sidecars of objects that are not there. They stay: a small object comes back from its own.
    pub alone: u64,
}

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub turned_off: bool,
    pub sidecars: u64,
    pub bytes: u64,
}

/// Turns parity on, and writes the sidecars that are missing.
///
/// # Errors
/// When the repository is not in a directory, the key may not do it, or the store fails. Running it again goes on.
pub fn run(repo: &Repo, options: Options, progress: &Progress) -> Result<Report, OpError> {
    require_directory(repo)?;
    let mut report = Report::default();
    let shape = match repo.config.parity {
        Some(shape) => {
            repo.require(role::MAINTAIN, "write parity sidecars")?;
            shape
        }
        None => {
            report.turned_on = true;
            // Before the sidecars: what is written from here on has one without our doing.
            change(repo, Some(Shape::STANDARD), options.dry_run)?;
            Shape::STANDARD
        }
    };
    let mut writer = Writer {
        repo,
        shape,
        options,
        report,
        progress,
    };
    let mut failed = None;
    survey(&*repo.store, &mut |beside| {
        // Whatever happened to one ends it: the listings go on, and nothing more is done.
        if failed.is_none() {
            failed = writer.beside(beside).err();
        }
        Ok(())
    })?;
    failed.map_or(Ok(writer.report), Err)
}

struct Writer<'a> {
    repo: &'a Repo,
    shape: Shape,
    options: Options,
    report: Report,
    progress: &'a Progress,
}

impl Writer<'_> {
    fn beside(&mut self, beside: Beside) -> Result<(), OpError> {
        if self.progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        match beside {
            Beside::Object(name, size, sidecar) => self.object(&name, size, sidecar),
            Beside::Alone(_) => {
                self.report.alone += 1;
                Ok(())
            }
        }
    }

    fn object(&mut self, name: &ObjectName, size: u64, sidecar: Option<u64>) -> Result<(), OpError> {
        let expected = sidecar_bytes(self.shape, size);
        let is_there = sidecar == Some(expected);
        self.report.objects += 1;
        self.report.bytes += size;
        if is_there && !self.options.verify {
            return Ok(());
        }
        if !is_there && self.options.dry_run {
            self.report.written += 1;
            self.report.bytes_written += expected;
            return Ok(());
        }
        self.progress.set_current(format!("parity of {name}"));
        // One of a damaged object would bring back the damage.
        let bytes = match read_sound(self.repo, name)? {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => {
                self.report.damaged.push((name.clone(), chain(&error)));
                return Ok(());
            }
            None => return Ok(()),
        };
        self.progress.file_done(size);
        let none = || RepoError::Internal(format!("{name} has no sidecar"));
        let key = sidecar_key(&store_key(name)).ok_or_else(none)?;
        if is_there {
            match self.repo.store.read(&key, Part::AtMost(expected)) {
                Ok(sidecar) if is_intact(&sidecar, &bytes) => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    let error = store_error("reading a parity sidecar")(error);
                    if !error.is_about_one_object() && !error.is_absence() {
                        return Err(error.into());
                    }
                }
            }
            self.report.replaced += 1;
        }
        let sidecar = sidecar_of(self.shape, &bytes);
        if !self.options.dry_run {
            write_sidecar(&*self.repo.store, &key, &sidecar).map_err(store_error("writing a parity sidecar"))?;
        }
        self.report.written += 1;
        self.report.bytes_written += sidecar.len() as u64;
        Ok(())
    }
}

/// Turns parity off, and deletes all sidecars.
///
/// # Errors
/// As [`run`].
pub fn remove(repo: &Repo, dry_run: bool, progress: &Progress) -> Result<Removed, OpError> {
    require_directory(repo)?;
    let mut removed = Removed::default();
    // Before the sidecars: nobody writes new ones from here on, but for those who are at it already.
    match repo.config.parity {
        Some(_) => change(repo, None, dry_run)?,
        None => repo.require(role::MAINTAIN, "delete parity sidecars")?,
    }
    removed.turned_off = repo.config.parity.is_some();
    let mut keys: Vec<StoreKey> = Vec::new();
    repo.store
        .list(&prefix("par/"), &mut |row| {
            removed.sidecars += 1;
            removed.bytes += row.size;
            keys.push(row.key);
        })
        .map_err(store_error("listing the parity sidecars"))?;
    if dry_run {
        return Ok(removed);
    }
    for some in keys.chunks(DELETED_AT_ONCE) {
        if progress.is_cancelled() {
            return Err(OpError::Interrupted);
        }
        repo.store
            .remove(some)
            .map_err(store_error("deleting parity sidecars"))?;
    }
    Ok(removed)
}

fn change(repo: &Repo, parity: Option<Shape>, dry_run: bool) -> Result<(), OpError> {
    let what = match parity {
        Some(_) => "turn parity on",
        None => "turn parity off",
    };
    let mut change = Change::begin(repo, what)?;
    change.config.parity = parity;
    if dry_run || change.publish()? {
        return Ok(());
    }
    Err(OpError::Refused {
        what: format!("somebody else has changed the configuration at the same moment, so this did not {what}"),
        hint: "run the command again".into(),
    })
}

fn require_directory(repo: &Repo) -> Result<(), OpError> {
    if repo.store.is_local() {
        return Ok(());
    }
    Err(OpError::Refused {
        what: format!(
            "{} is not a directory, and parity is for directories",
            repo.store.location()
        ),
        hint: "a bucket has its own; against losing the bucket there are replicas: `larder repo replicate`".into(),
    })
}
