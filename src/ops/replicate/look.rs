//! Whether a place may become, or go on being, a replica of another one: one repository, one primary, one line of configurations.
//!
//! Configurations are plaintext and signed, so this needs no key. Each has to follow the one before it: somebody who can only write to
//! the source cannot plant one that would lock everybody out of the replica as well.

use super::copy::Copier;
use super::outcomes;
use crate::edge::host;
use crate::edge::store::Store;
use crate::ops::OpError;
use crate::pure::base::Kind;
use crate::pure::format::config::Config;
use crate::pure::format::name::ObjectName;
use crate::pure::format::replica::ReplicaMark;
use crate::pure::id::{ObjectHash, PlaceId, RepoId};
use crate::repo::error::{object_error, store_error};
use crate::repo::open::{create_new, list_configs, list_names, read_whole};
use crate::repo::standing::Standing;
use crate::repo::{Repo, RepoError};
use bytes::Bytes;

/// What is known of the two places.
#[derive(Debug)]
pub(super) struct Ground {
    repo: RepoId,
    /// The newest configuration that both have, if the replica has any.
    newest: Option<Known>,
    has_mark: bool,
}

/// A configuration and its hash.
#[derive(Clone, Debug)]
struct Known {
    config: Config,
    hash: ObjectHash,
}

/// Looks at both places.
///
/// # Errors
/// When they do not belong together, or their histories have parted.
pub(super) fn look(source: &dyn Store, target: &dyn Store, dry_run: bool) -> Result<Ground, OpError> {
    let (number, _) = list_configs(source)?;
    let number = number.ok_or_else(|| RepoError::NotARepository {
        location: source.location(),
    })?;
    let (ours, _) = read_config(source, number)?;
    if !dry_run {
        target
            .prepare()
            .map_err(store_error("preparing the place for the replica"))?;
    }
    let (there, marks) = list_configs(target)?;
    for mark in &marks {
        require_same(target, &ours.config.repo, &read_mark(target, mark)?.repo)?;
    }
    let mut ground = Ground {
        repo: ours.config.repo,
        newest: None,
        has_mark: !marks.is_empty(),
    };
    let Some(there) = there else {
        if marks.is_empty() {
            require_empty(target)?;
        }
        return Ok(ground);
    };
    let (known, bytes) = read_config(target, there)?;
    require_same(target, &ours.config.repo, &known.config.repo)?;
    require_one_line(source, target, number, &known, &bytes, &marks)?;
    ground.newest = Some(known);
    // The line from there to the newest is looked at before anything is written.
    let newest = ground.follow(source, |_, _| Ok(()))?;
    require_replica(source, target, ground.newest.as_ref(), newest.as_ref(), &marks)?;
    Ok(ground)
}

impl Ground {
    pub(super) fn repo(&self) -> RepoId {
        self.repo
    }

    /// Marks the place as a replica before anything else is written to it.
    pub(super) fn mark(&mut self, source: &dyn Store, target: &dyn Store) -> Result<(), OpError> {
        let abilities = target
            .probe()
            .map_err(store_error("trying out what the store of the replica can do"))?;
        target.set_conditional(abilities.conditional_create);
        if !self.has_mark {
            let mark = ReplicaMark {
                repo: self.repo,
                created: host::now(),
                copied_from: source.location(),
            };
            let name = ObjectName::ReplicaMark(PlaceId(host::random()));
            create_new(target, &name, mark.encode(), "the mark of a replica")?;
            self.has_mark = true;
        }
        Ok(())
    }

    /// Copies what opens and guards the repository. Called after the outcomes were listed: whoever signed one of them is in what is
    /// listed now. A grant names a configuration, which has to be there before it.
    pub(super) fn copy_keys(&mut self, copier: &Copier<'_>) -> Result<(), OpError> {
        let grants = copier.missing("grants/")?;
        if !copier.options.dry_run {
            self.newest = self.follow(copier.source, |name, bytes| copier.create(name, bytes))?;
        }
        if copier.options.verify {
            // What is missing has just been copied.
            copier.missing("config/")?;
        }
        copier.copy_all(&["keys/"])?;
        grants.into_iter().try_for_each(|(name, size)| copier.copy(&name, size))
    }

    /// Goes from the newest configuration that both have to the newest of the source, and calls `each` for every one that the replica
    /// does not have. Returns the last.
    fn follow(
        &self,
        source: &dyn Store,
        mut each: impl FnMut(&ObjectName, Bytes) -> Result<(), OpError>,
    ) -> Result<Option<Known>, OpError> {
        let mut numbers: Vec<u64> = list_names(source, "config/")?
            .into_iter()
            .filter_map(|(name, _)| match name {
                ObjectName::Config(number) => Some(number),
                _ => None,
            })
            .collect();
        numbers.sort_unstable();
        let mut last = self.newest.clone();
        for number in numbers {
            if last.as_ref().is_some_and(|last| number <= last.config.sequence) {
                continue;
            }
            let (next, bytes) = read_config(source, number)?;
            if let Some(last) = &last {
                require_follows(source, last, &next, &bytes)?;
            }
            each(&ObjectName::Config(number), bytes)?;
            last = Some(next);
        }
        Ok(last)
    }
}

fn read_config(store: &dyn Store, number: u64) -> Result<(Known, Bytes), OpError> {
    let name = ObjectName::Config(number);
    let bytes = read_whole(store, &name, &format!("{name} of {}", store.location()))?;
    let config = Config::decode(&bytes, number, None).map_err(object_error("opening", &name))?;
    let hash = Repo::object_hash(&bytes);
    Ok((Known { config, hash }, bytes))
}

fn read_mark(store: &dyn Store, place: &PlaceId) -> Result<ReplicaMark, OpError> {
    let name = ObjectName::ReplicaMark(*place);
    let bytes = read_whole(store, &name, &format!("{name} of {}", store.location()))?;
    Ok(ReplicaMark::decode(&bytes).map_err(object_error("opening", &name))?)
}

fn require_same(target: &dyn Store, ours: &RepoId, theirs: &RepoId) -> Result<(), OpError> {
    if ours == theirs {
        return Ok(());
    }
    Err(OpError::Refused {
        what: format!("{} holds repository {theirs}, not {ours}", target.location()),
        hint: "choose another place for the replica".into(),
    })
}

/// What has neither mark nor configuration must hold nothing that could be somebody's.
fn require_empty(target: &dyn Store) -> Result<(), OpError> {
    for under in ["keys/", "snap/", "data/"] {
        if !list_names(target, under)?.is_empty() {
            return Err(OpError::Refused {
                what: format!(
                    "{} is not empty: it has objects under {under}, and no configuration",
                    target.location()
                ),
                hint: "choose another place for the replica".into(),
            });
        }
    }
    Ok(())
}

fn parted(what: String) -> OpError {
    OpError::Copies {
        what,
        kind: Kind::Tamper,
        hint: "nothing was copied. Find out which place the machines write to; what only the other one has is still there, and can be restored from there"
            .into(),
    }
}

/// The newest configuration of the replica is one of the source's.
fn require_one_line(
    source: &dyn Store,
    target: &dyn Store,
    number: u64,
    known: &Known,
    bytes: &Bytes,
    marks: &[PlaceId],
) -> Result<(), OpError> {
    let there = known.config.sequence;
    if there > number {
        return Err(parted(match Standing::of(&known.config, marks) {
            Standing::Primary => format!(
                "{} was made the primary by configuration {there}, and {} has only {number}",
                target.location(),
                source.location()
            ),
            _ => format!(
                "{} has configuration {there}, and the newest of {} is {number}: the source has gone back in time",
                target.location(),
                source.location()
            ),
        }));
    }
    let name = ObjectName::Config(there);
    // Configurations are kept for 90 days at least. If it is gone, the next one still says which it follows.
    match read_whole(source, &name, &format!("{name} of the source")) {
        Ok(ours) if ours == *bytes => Ok(()),
        Ok(_) => Err(parted(format!(
            "{name} is not the same at {} and {}",
            source.location(),
            target.location()
        ))),
        Err(error) if error.is_absence() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn require_follows(source: &dyn Store, last: &Known, next: &Known, bytes: &[u8]) -> Result<(), OpError> {
    let number = next.config.sequence;
    let is_next = number == last.config.sequence + 1 && next.config.previous == Some(last.hash);
    let is_signed = Config::decode(bytes, number, Some(&last.config.verifier())).is_ok();
    if is_next && is_signed && next.config.repo == last.config.repo {
        return Ok(());
    }
    Err(parted(format!(
        "configuration {number} of {} does not follow configuration {}, or is not signed by an administrator of that",
        source.location(),
        last.config.sequence
    )))
}

/// The place is a replica, or is going to be one: then it has nothing that the source does not have.
fn require_replica(
    source: &dyn Store,
    target: &dyn Store,
    now: Option<&Known>,
    then: Option<&Known>,
    marks: &[PlaceId],
) -> Result<(), OpError> {
    let standing = |known: Option<&Known>| known.map(|known| Standing::of(&known.config, marks));
    if matches!(standing(now), Some(Standing::Replica(_))) {
        return Ok(());
    }
    if standing(then) == Some(Standing::Primary) {
        return Err(OpError::Refused {
            what: format!("{} is the primary of this repository, not a replica", target.location()),
            hint: "replicate from there; or make the other place the primary first, with `larder repo promote`".into(),
        });
    }
    let ours = outcomes(source, "the source")?;
    let theirs = outcomes(target, "the replica")?;
    match theirs.keys().filter(|id| !ours.contains_key(*id)).count() {
        0 => Ok(()),
        only => Err(parted(format!(
            "{} was the primary and has {only} outcomes that {} does not have: two primaries were written to",
            target.location(),
            source.location()
        ))),
    }
}
