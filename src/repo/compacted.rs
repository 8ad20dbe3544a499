//! Reading runs of level 1 and above (format-spec chapter 8.3), part by part.

use super::error::{RepoError, object_error};
use super::open::{Repo, read_whole};
use super::runs::{ListedRun, ValidRuns};
use crate::pure::crypto::hash;
use crate::pure::format::Malformed;
use crate::pure::format::name::{ObjectName, PartKind};
use crate::pure::format::run::part::{self, PartContent};
use crate::pure::format::run::{RunChunk, RunContent, RunDelta};
use crate::pure::id::{KeyId, ObjectHash};

/// Reads a run of any level and sees that all of it opens.
///
/// # Errors
/// When an object cannot be read, does not open, or is not the one that the outcome states.
pub fn read_through(repo: &Repo, run: &ListedRun, valid: &ValidRuns) -> Result<(), RepoError> {
    if run.level == 0 {
        return repo.fetch_run(run).map(drop);
    }
    let mut parts = CompactedRun::open(repo, run, valid)?;
    let head = parts.take_head();
    while parts.next_part(repo, &head)?.is_some() {}
    Ok(())
}

/// A run of level 1 or above, read part by part: its slots and packs are in memory, its chunks are not.
pub struct CompactedRun {
    name: String,
    pub kid: KeyId,
    head: RunContent,
    /// The parts with chunks that have not been read yet, the next one last.
    parts: Vec<(ObjectName, ObjectHash)>,
    last: Option<RunChunk>,
}

impl CompactedRun {
    /// Reads and verifies what describes the packs.
    ///
    /// # Errors
    /// When an object cannot be read, does not open, or is not the one that the outcome states.
    pub fn open(repo: &Repo, run: &ListedRun, valid: &ValidRuns) -> Result<CompactedRun, RepoError> {
        let name = run.name();
        let missing = || RepoError::Missing {
            object: name.clone(),
            why: "no outcome says what it consists of".into(),
        };
        let descriptor = valid.descriptors.get(&name).ok_or_else(missing)?;
        let (mut heads, mut parts) = (Vec::new(), Vec::new());
        for (suffix, _, hash) in &descriptor.parts {
            let object = ObjectName::RunPart(run.level, run.session, suffix.clone());
            match PartKind::parse(suffix) {
                Some((PartKind::Chunks { .. }, number)) => parts.push((number, object, *hash)),
                Some((PartKind::Slots, number)) => heads.push((0, number, object, *hash)),
                Some((PartKind::Packs, number)) => heads.push((1, number, object, *hash)),
                None => return Err(missing()),
            }
        }
        heads.sort_unstable_by_key(|(kind, number, ..)| (*kind, *number));
        parts.sort_unstable_by_key(|(number, ..)| std::cmp::Reverse(*number));
        let mut compacted = CompactedRun {
            name,
            kid: KeyId([0; 16]),
            head: RunContent::default(),
            parts: parts.into_iter().map(|(_, object, hash)| (object, hash)).collect(),
            last: None,
        };
        for (_, _, object, hash) in heads {
            let (kid, content) = fetch_part(repo, &object, &hash)?;
            compacted.kid = kid;
            compacted.take_part_of_head(content)?;
        }
        part::check_head(&compacted.head).map_err(|error| compacted.wrong(error))?;
        Ok(compacted)
    }

    fn take_part_of_head(&mut self, content: PartContent) -> Result<(), RepoError> {
        let RunContent { slots, packs, .. } = &mut self.head;
        let is_next = match content {
            PartContent::Slots { first, slots: more } => {
                let is_next = first as usize == slots.len();
                slots.extend(more);
                is_next
            }
            PartContent::Packs { first, packs: more } => {
                let is_next = first as usize == packs.len();
                packs.extend(more);
                is_next
            }
            PartContent::Chunks { .. } => false,
        };
        match is_next {
            true => Ok(()),
            false => Err(self.wrong(Malformed {
                what: "order of the parts of a run",
            })),
        }
    }

    fn wrong(&self, error: Malformed) -> RepoError {
        object_error("opening", &self.name)(error.into())
    }

    /// Returns the slots and packs, once.
    pub fn take_head(&mut self) -> RunContent {
        std::mem::take(&mut self.head)
    }

    /// Reads and verifies the next chunks and deltas, in the order of ids; `None` after the last. `head` is what
    /// [`Self::take_head`] returned.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn next_part(
        &mut self,
        repo: &Repo,
        head: &RunContent,
    ) -> Result<Option<(Vec<RunChunk>, Vec<RunDelta>)>, RepoError> {
        let Some((object, hash)) = self.parts.pop() else {
            return Ok(None);
        };
        let PartContent::Chunks { chunks, deltas } = fetch_part(repo, &object, &hash)?.1 else {
            return Err(self.wrong(Malformed {
                what: "kind of a part of a run",
            }));
        };
        part::check_part(&chunks, head, self.last.as_ref()).map_err(|error| self.wrong(error))?;
        self.last = chunks.last().copied();
        Ok(Some((chunks, deltas)))
    }
}

fn fetch_part(repo: &Repo, name: &ObjectName, stated: &ObjectHash) -> Result<(KeyId, PartContent), RepoError> {
    let bytes = read_whole(&*repo.store, name, "a part of an index run")?;
    if ObjectHash(hash(&bytes)) != *stated {
        let another = Malformed {
            what: "hash of a part of a run",
        };
        return Err(object_error("opening", name)(another.into()));
    }
    let (identity, content) =
        part::decode(&bytes, &name.to_string(), &repo.keys, &repo.verifier).map_err(object_error("opening", name))?;
    Ok((identity.kid, content))
}
