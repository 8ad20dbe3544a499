//! Which snapshots there are: the mirror of `snap/`, `drop/` and `hold/`, its checks against gaps and rollback, and how
//! people name one.

use super::error::{RepoError, object_error};
use super::index::{KnownOutcome, Mark};
use super::open::{Repo, list_names, read_whole};
use crate::edge::host;
use crate::edge::store::Failure;
use crate::pure::base::Timestamp;
use crate::pure::format::manifest::Manifest;
use crate::pure::format::mark::{Drop, DropKind, Hold};
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::{Outcome, OutcomeKind, StoredOutcome, flag};
use crate::pure::id::{KeyId, SessionId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Under which name the index remembers the voided sessions.
const VOIDED: &str = "voided";

/// A published snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub id: SessionId,
    pub kind: OutcomeKind,
    pub manifest: Manifest,
    pub flags: u64,
    pub kid: KeyId,
    /// What its session had pinned.
    pub pins: Vec<SessionId>,
}

impl Snapshot {
    /// Whether it holds only what a run had done when it was made: a checkpoint.
    pub fn is_partial(&self) -> bool {
        self.kind == OutcomeKind::Checkpoint || self.flags & flag::PARTIAL != 0
    }

    /// Whether it is partial and a complete snapshot of the same source was made after it.
    pub fn is_superseded(&self, all: &[Snapshot]) -> bool {
        let is_later = |other: &Snapshot| {
            !other.is_partial()
                && other.manifest.source.id == self.manifest.source.id
                && other.manifest.end >= self.manifest.end
        };
        self.is_partial() && all.iter().any(is_later)
    }

    /// Whether this one was made from `other` by changing its tags, and nothing else.
    pub fn replaces(&self, other: &Snapshot) -> bool {
        let (new, old) = (&self.manifest, &other.manifest);
        // Nearly all differ in their times, so the rest is seldom compared.
        self.pins == [other.id]
            && self.kind == other.kind
            && (new.start, new.end) == (old.start, old.end)
            && Manifest {
                tags: old.tags.clone(),
                ..new.clone()
            } == *old
    }
}

/// Returns which snapshots another one replaces, and which. There are some when changing tags was interrupted after the new
/// snapshot was published and before the old one was dropped.
pub fn replaced(snapshots: &[Snapshot]) -> HashMap<SessionId, SessionId> {
    let by_id: HashMap<SessionId, &Snapshot> = snapshots.iter().map(|snapshot| (snapshot.id, snapshot)).collect();
    let mut replaced = HashMap::new();
    for new in snapshots {
        for old in new.pins.iter().filter_map(|pin| by_id.get(pin)) {
            if new.replaces(old) {
                replaced.insert(old.id, new.id);
            }
        }
    }
    replaced
}

/// What a listing of the history found beside the good outcomes.
#[derive(Debug, Default)]
pub struct HistoryState {
    /// Outcomes that could not be read or verified.
    pub broken: Vec<(String, RepoError)>,
    /// Missing numbers, forks and rollbacks, in words.
    pub gaps: Vec<String>,
    /// Two outcomes of one key with the same number: a cloned or rolled-back host.
    pub forks: Vec<String>,
}

/// An outcome as read, with its bytes.
type FetchedOutcome = Result<(StoredOutcome, Vec<u8>), RepoError>;

/// How a snapshot is chosen beside its name.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub host: Option<String>,
    pub source: Option<String>,
    pub tags: Vec<String>,
    pub path: Option<Vec<u8>>,
}

impl Filter {
    /// Says whether a snapshot passes.
    pub fn accepts(&self, snapshot: &Snapshot) -> bool {
        let source = &snapshot.manifest.source;
        self.host.as_ref().is_none_or(|host| *host == source.host)
            && self.source.as_ref().is_none_or(|label| *label == source.label)
            && self.tags.iter().all(|tag| snapshot.manifest.tags.contains(tag))
            && self
                .path
                .as_ref()
                .is_none_or(|path| snapshot.manifest.roots.iter().any(|root| root.path == *path))
    }
}

impl Repo {
    /// Brings the mirror of outcomes, drops and holds up to date (two or three listings, one read for each object not seen
    /// before) and checks the chains of every writer.
    ///
    /// # Errors
    /// When the store cannot be listed or read. Unreadable outcomes are reported in the result instead.
    pub fn sync_history(&self) -> Result<HistoryState, RepoError> {
        self.sync_history_from(&self.list_outcomes()?)
    }

    /// As [`Self::sync_history`], without drops and holds: for writers, who list drops when their session is registered
    /// ([`Self::sync_drops`]), which cannot be done earlier instead.
    ///
    /// # Errors
    /// As `sync_history`.
    pub fn sync_history_to_write(&self) -> Result<HistoryState, RepoError> {
        let mut state = HistoryState::default();
        self.take_in_outcomes(&self.list_outcomes()?, &mut state)?;
        self.forgive_voided(&mut state)?;
        self.check_chains(&mut state)?;
        Ok(state)
    }

    fn sync_history_from(&self, listed: &[(SessionId, Option<Timestamp>)]) -> Result<HistoryState, RepoError> {
        let mut state = HistoryState::default();
        self.take_in_outcomes(listed, &mut state)?;
        self.sync_marks_into(&mut state)?;
        self.forgive_voided(&mut state)?;
        self.check_chains(&mut state)?;
        Ok(state)
    }

    /// An outcome that an admin has voided may be unreadable: that is why it was.
    fn forgive_voided(&self, state: &mut HistoryState) -> Result<(), RepoError> {
        let voided = self.voided()?;
        let is_voided = |name: &str| {
            voided
                .iter()
                .any(|session| name == ObjectName::Outcome(*session).to_string())
        };
        state.broken.retain(|(name, _)| !is_voided(name));
        Ok(())
    }

    /// Lists `snap/` and takes in what is new.
    pub fn sync_outcomes(&self, state: &mut HistoryState) -> Result<(), RepoError> {
        self.take_in_outcomes(&self.list_outcomes()?, state)
    }

    fn take_in_outcomes(
        &self,
        listed: &[(SessionId, Option<Timestamp>)],
        state: &mut HistoryState,
    ) -> Result<(), RepoError> {
        let known: HashSet<SessionId> = self
            .index
            .outcomes()?
            .into_iter()
            .map(|outcome| outcome.session)
            .collect();
        let present: HashSet<SessionId> = listed.iter().map(|(session, _)| *session).collect();
        let unseen: Vec<SessionId> = present.difference(&known).copied().collect();
        for (session, fetched) in self.fetch_outcomes(&unseen) {
            match fetched {
                Ok((stored, bytes)) => self.keep_outcome(&stored, &bytes)?,
                Err(error @ RepoError::Object { .. }) => state.broken.push((format!("snap/{session}"), error)),
                Err(error) => return Err(error),
            }
        }
        // One that was there and is gone: tidied by maintenance (then its number is below a floor), or taken away.
        self.index.retain_outcomes(&present)?;
        Ok(())
    }

    fn list_outcomes(&self) -> Result<Vec<(SessionId, Option<Timestamp>)>, RepoError> {
        let names = list_names(&*self.store, "snap/")?;
        Ok(names
            .into_iter()
            .filter_map(|(name, row)| {
                if let ObjectName::Outcome(session) = name {
                    Some((session, row.modified))
                } else {
                    None
                }
            })
            .collect())
    }

    /// Reads several outcomes, some at a time.
    fn fetch_outcomes(&self, sessions: &[SessionId]) -> Vec<(SessionId, FetchedOutcome)> {
        const AT_ONCE: usize = 8;
        let share = sessions.len().div_ceil(AT_ONCE).max(1);
        std::thread::scope(|scope| {
            let handles: Vec<_> = sessions
                .chunks(share)
                .map(|part| {
                    let fetch = move || {
                        part.iter()
                            .map(|session| (*session, self.fetch_outcome(session)))
                            .collect::<Vec<_>>()
                    };
                    (part, scope.spawn(fetch))
                })
                .collect();
            let panicked = || RepoError::Internal("a reading thread panicked".into());
            handles
                .into_iter()
                .flat_map(|(part, handle)| {
                    handle
                        .join()
                        .unwrap_or_else(|_| part.iter().map(|session| (*session, Err(panicked()))).collect())
                })
                .collect()
        })
    }

    /// Finds a snapshot on a machine that has seen little of the history yet: reads only the outcomes that can be
    /// meant, newest first. Otherwise as [`Self::sync_history`] and [`Self::resolve`]; the chains are not checked here
    /// when most of the history is left unread.
    ///
    /// # Errors
    /// As `resolve`.
    pub fn find_snapshot(
        &self,
        text: &str,
        filter: &Filter,
        parse_time: &dyn Fn(&str) -> Option<Timestamp>,
    ) -> Result<(Snapshot, HistoryState), RepoError> {
        /// Below this, reading the whole history is cheap.
        const UNSEEN_MAX: usize = 24;
        let known: HashSet<SessionId> = self
            .index
            .outcomes()?
            .into_iter()
            .map(|outcome| outcome.session)
            .collect();
        let listed = self.list_outcomes()?;
        let mut unseen: Vec<_> = listed.iter().filter(|(session, _)| !known.contains(session)).collect();
        if unseen.len() > UNSEEN_MAX {
            self.sync_marks()?;
            unseen.sort_by_key(|(_, modified)| std::cmp::Reverse(*modified));
            let meant = |session: &SessionId| {
                text.starts_with("latest") || {
                    let id = session.to_string();
                    id.starts_with(text) || id[8..].starts_with(text)
                }
            };
            let candidates: Vec<SessionId> = unseen
                .iter()
                .map(|(session, _)| *session)
                .filter(meant)
                .take(UNSEEN_MAX)
                .collect();
            for (_, fetched) in self.fetch_outcomes(&candidates) {
                let (stored, bytes) = fetched?;
                self.keep_outcome(&stored, &bytes)?;
            }
            if let Ok(snapshot) = self.resolve(text, filter, parse_time) {
                return Ok((snapshot, HistoryState::default()));
            }
        }
        let history = self.sync_history_from(&listed)?;
        Ok((self.resolve(text, filter, parse_time)?, history))
    }

    /// Reads and verifies one outcome from the store.
    pub fn fetch_outcome(&self, session: &SessionId) -> Result<(StoredOutcome, Vec<u8>), RepoError> {
        let name = ObjectName::Outcome(*session);
        let bytes = read_whole(&*self.store, &name, "a snapshot")?.to_vec();
        let stored =
            Outcome::decode(&bytes, session, &self.keys, &self.verifier).map_err(object_error("opening", &name))?;
        Ok((stored, bytes))
    }

    /// Puts a verified outcome into the mirror.
    pub fn keep_outcome(&self, stored: &StoredOutcome, bytes: &[u8]) -> Result<(), RepoError> {
        let outcome = &stored.outcome;
        self.index.put_outcome(
            &KnownOutcome {
                session: outcome.session,
                kind: outcome.kind,
                kid: outcome.kid,
                sequence: outcome.sequence,
                hash: stored.hash,
                source: outcome.source,
                created: outcome.created,
                flags: outcome.flags,
                mark: Mark::None,
            },
            bytes,
        )?;
        Ok(())
    }

    /// Lists `drop/`, and `hold/` if anything is dropped, and notes what is forgotten and what is kept all the same.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    pub fn sync_marks(&self) -> Result<(), RepoError> {
        self.sync_marks_into(&mut HistoryState::default())
    }

    fn sync_marks_into(&self, state: &mut HistoryState) -> Result<(), RepoError> {
        let drops = self.list_drops(state)?;
        let held = self.list_held(&drops, state)?;
        self.keep_marks(&drops, &|session| held.contains(session))
    }

    /// Lists `drop/` and returns every session that has one, held or not: what a session may not take for its parent
    /// (format-spec chapter 16.2). Drops that do not verify are in `state`.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    pub fn sync_drops(&self, state: &mut HistoryState) -> Result<Vec<SessionId>, RepoError> {
        let drops = self.list_drops(state)?;
        let held: HashSet<SessionId> = self
            .index
            .outcomes()?
            .into_iter()
            .filter(|known| known.mark == Mark::Held)
            .map(|known| known.session)
            .collect();
        // Holds were not looked at, so those that were seen last time still count.
        self.keep_marks(&drops, &|session| held.contains(session))?;
        Ok(drops.into_iter().map(|(session, _)| session).collect())
    }

    fn keep_marks(
        &self,
        drops: &[(SessionId, DropKind)],
        is_held: &dyn Fn(&SessionId) -> bool,
    ) -> Result<(), RepoError> {
        let mark = |(session, kind): &(SessionId, DropKind)| match kind {
            // A hold keeps a snapshot; what is voided is none.
            DropKind::Forget if is_held(session) => (*session, Mark::Held),
            DropKind::Forget | DropKind::Void => (*session, Mark::Dropped),
        };
        self.index.set_marks(&drops.iter().map(mark).collect())?;
        let mut voided: Vec<SessionId> = drops
            .iter()
            .filter(|(_, kind)| *kind == DropKind::Void)
            .map(|(session, _)| *session)
            .collect();
        voided.sort_unstable();
        let stored: Vec<u8> = voided.iter().flat_map(|session| session.0).collect();
        if self.index.recall(VOIDED)?.unwrap_or_default() != stored {
            self.index.remember(VOIDED, &stored)?;
        }
        Ok(())
    }

    /// Returns the sessions that have ended without anything: an admin has voided their outcome (format-spec chapter 9.4). As of
    /// the last listing of drops.
    ///
    /// # Errors
    /// When the index fails.
    pub fn voided(&self) -> Result<HashSet<SessionId>, RepoError> {
        let stored = self.index.recall(VOIDED)?.unwrap_or_default();
        let (ids, _) = stored.as_chunks::<16>();
        Ok(ids.iter().map(|id| SessionId(*id)).collect())
    }

    /// A drop counts when it verifies, as everything does: whoever can write to the store can make an object of that name, and
    /// must not be able to hide a snapshot with it. Each is read once by a machine.
    fn list_drops(&self, state: &mut HistoryState) -> Result<Vec<(SessionId, DropKind)>, RepoError> {
        let mut drops = Vec::new();
        for (name, _) in list_names(&*self.store, "drop/")? {
            let ObjectName::Drop(session) = name else { continue };
            let memory = format!("verified-{name}");
            let known = match self.index.recall(&memory)?.as_deref() {
                Some([1]) => Some(DropKind::Forget),
                Some([2]) => Some(DropKind::Void),
                _ => None,
            };
            let kind = match known {
                Some(kind) => kind,
                None => {
                    let bytes = match read_whole(&*self.store, &name, "the mark of a forgotten snapshot") {
                        Ok(bytes) => bytes,
                        Err(RepoError::Store { source, .. }) if source.class == Failure::NotFound => continue,
                        Err(error) => return Err(error),
                    };
                    match Drop::decode(&bytes, &session, &self.keys, &self.verifier) {
                        Ok(drop) => {
                            self.index.remember(&memory, &[drop.kind as u8])?;
                            drop.kind
                        }
                        Err(error) => {
                            state
                                .broken
                                .push((name.to_string(), object_error("opening", &name)(error)));
                            continue;
                        }
                    }
                }
            };
            drops.push((session, kind));
        }
        Ok(drops)
    }

    /// Which of the forgotten sessions a hold keeps. When nothing is forgotten, holds make no difference and are not listed.
    fn list_held(
        &self,
        drops: &[(SessionId, DropKind)],
        state: &mut HistoryState,
    ) -> Result<HashSet<SessionId>, RepoError> {
        let forgotten: HashSet<SessionId> = drops
            .iter()
            .filter(|(_, kind)| *kind == DropKind::Forget)
            .map(|(session, _)| *session)
            .collect();
        let mut held = HashSet::new();
        if forgotten.is_empty() {
            return Ok(held);
        }
        for (name, _) in list_names(&*self.store, "hold/")? {
            let ObjectName::Hold(session, label) = &name else {
                continue;
            };
            if !forgotten.contains(session) || held.contains(session) {
                continue;
            }
            match self.hold_end(&name, session, label) {
                Ok(until) => {
                    if until.is_none_or(|until| until >= host::now()) {
                        held.insert(*session);
                    }
                }
                Err(RepoError::Store { source, .. }) if source.class == Failure::NotFound => {}
                // Who may not read it cannot know better, and errs on the side of keeping.
                Err(RepoError::Store { source, .. }) if source.class == Failure::Denied => {
                    held.insert(*session);
                }
                Err(error @ RepoError::Object { .. }) => state.broken.push((name.to_string(), error)),
                Err(error) => return Err(error),
            }
        }
        Ok(held)
    }

    /// Until when a hold keeps its snapshot; `None`: for ever. Each is read once by a machine.
    fn hold_end(&self, name: &ObjectName, session: &SessionId, label: &str) -> Result<Option<Timestamp>, RepoError> {
        let memory = format!("verified-{name}");
        if let Some(stored) = self.index.recall(&memory)? {
            if stored.is_empty() {
                return Ok(None);
            }
            if let Ok(until) = stored.try_into() {
                return Ok(Some(Timestamp(i64::from_le_bytes(until))));
            }
        }
        let bytes = read_whole(&*self.store, name, "a hold on a snapshot")?;
        let hold =
            Hold::decode(&bytes, session, label, &self.keys, &self.verifier).map_err(object_error("opening", name))?;
        let stored = hold.until.map_or(Vec::new(), |until| until.0.to_le_bytes().to_vec());
        self.index.remember(&memory, &stored)?;
        Ok(hold.until)
    }

    /// Checks every writer's chain for missing numbers, broken links, forks and heads that went backwards
    /// (format-spec chapter on concurrency, "rollback and gap detection").
    fn check_chains(&self, state: &mut HistoryState) -> Result<(), RepoError> {
        let mut chains: BTreeMap<KeyId, BTreeMap<u64, Vec<KnownOutcome>>> = BTreeMap::new();
        let mut floors: HashMap<KeyId, u64> = HashMap::new();
        for known in self.index.outcomes()? {
            if known.kind == OutcomeKind::Maintenance
                && let Some(stored) = self.stored_outcome(&known.session)?
            {
                for (kid, sequence, _) in &stored.outcome.chain_floors {
                    let floor = floors.entry(*kid).or_default();
                    *floor = (*floor).max(sequence.saturating_add(1));
                }
            }
            chains
                .entry(known.kid)
                .or_default()
                .entry(known.sequence)
                .or_default()
                .push(known);
        }
        for (kid, chain) in &chains {
            let first = floors.get(kid).copied().unwrap_or(0);
            let last = chain.keys().next_back().copied().unwrap_or(0);
            if let Some(missing) = (first..=last).find(|number| !chain.contains_key(number)) {
                state.gaps.push(format!(
                    "outcome {missing} of key {kid} is missing (the newest is {last})"
                ));
            }
            for (number, outcomes) in chain.iter().filter(|(_, outcomes)| outcomes.len() > 1) {
                let ids: Vec<String> = outcomes.iter().map(|outcome| outcome.session.to_string()).collect();
                state.forks.push(format!(
                    "key {kid} has several outcomes with number {number}: {}",
                    ids.join(", ")
                ));
            }
        }
        for (kid, sequence, hash) in self.index.heads()? {
            let found = chains.get(&kid).and_then(|chain| chain.get(&sequence));
            let floor = floors.get(&kid).copied().unwrap_or(0);
            if sequence >= floor && !found.is_some_and(|outcomes| outcomes.iter().any(|outcome| outcome.hash == hash)) {
                state.gaps.push(format!(
                    "outcome {sequence} of key {kid} was seen on this machine before and is gone"
                ));
            }
        }
        if state.gaps.is_empty() {
            for (kid, chain) in &chains {
                if let Some((sequence, outcomes)) = chain.iter().next_back()
                    && let [only] = outcomes.as_slice()
                {
                    self.index.raise_head(kid, *sequence, &only.hash)?;
                }
            }
        }
        Ok(())
    }

    /// Opens an outcome from the mirror.
    pub fn stored_outcome(&self, session: &SessionId) -> Result<Option<StoredOutcome>, RepoError> {
        let Some(bytes) = self.index.outcome_bytes(session)? else {
            return Ok(None);
        };
        let stored = Outcome::decode(&bytes, session, &self.keys, &self.verifier)
            .map_err(object_error("opening", ObjectName::Outcome(*session)))?;
        Ok(Some(stored))
    }

    /// Opens one snapshot.
    pub fn snapshot(&self, session: &SessionId) -> Result<Snapshot, RepoError> {
        let name = ObjectName::Outcome(*session);
        let stored = self
            .stored_outcome(session)?
            .ok_or_else(|| RepoError::NoSuchSnapshot(session.to_string()))?;
        let manifest = stored
            .manifest(&self.keys)
            .map_err(object_error("opening the manifest of", &name))?
            .ok_or_else(|| RepoError::NoSuchSnapshot(session.to_string()))?;
        Ok(Snapshot {
            id: *session,
            kind: stored.outcome.kind,
            manifest,
            flags: stored.outcome.flags,
            kid: stored.outcome.kid,
            pins: stored.outcome.pins,
        })
    }

    /// Returns the snapshots of the mirror that are not dropped, or are held, oldest first. Checkpoints are included,
    /// before what their run came to.
    ///
    /// # Errors
    /// When a manifest cannot be opened.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, RepoError> {
        let mut snapshots = Vec::new();
        for known in self.index.outcomes()? {
            if !known.is_dropped() && matches!(known.kind, OutcomeKind::Commit | OutcomeKind::Checkpoint) {
                snapshots.push(self.snapshot(&known.session)?);
            }
        }
        snapshots.sort_by_key(|snapshot| (snapshot.manifest.start, snapshot.manifest.end, snapshot.id));
        Ok(snapshots)
    }

    /// Finds the snapshot that `text` names: an id prefix, `latest`, `latest:SOURCE`, or `@TIME`.
    /// `parse_time` turns the text after `@` into a time. Only an id can mean a checkpoint: whoever restores the latest snapshot must
    /// not get a part of one without having asked for it.
    ///
    /// # Errors
    /// When nothing or more than one snapshot matches.
    pub fn resolve(
        &self,
        text: &str,
        filter: &Filter,
        parse_time: &dyn Fn(&str) -> Option<Timestamp>,
    ) -> Result<Snapshot, RepoError> {
        let none = || RepoError::NoSuchSnapshot(text.to_owned());
        let mut candidates = self.snapshots()?;
        let replaced = if text.starts_with("latest") || text.starts_with('@') {
            replaced(&candidates)
        } else {
            // Who gives an id means that one.
            HashMap::new()
        };
        candidates.retain(|snapshot| filter.accepts(snapshot) && !replaced.contains_key(&snapshot.id));
        if let Some(rest) = text.strip_prefix("latest") {
            if let Some(label) = rest.strip_prefix(':') {
                candidates.retain(|snapshot| snapshot.manifest.source.label == label);
            } else if !rest.is_empty() {
                return Err(none());
            }
            return newest_complete(text, candidates);
        }
        if let Some(time) = text.strip_prefix('@') {
            let limit = parse_time(time).ok_or_else(none)?;
            candidates.retain(|snapshot| snapshot.manifest.start <= limit);
            return newest_complete(text, candidates);
        }
        if text.is_empty() || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(none());
        }
        // Every session of one key begins with the same four bytes, so people may also give digits from after them.
        let matches = |snapshot: &Snapshot| {
            let id = snapshot.id.to_string();
            id.starts_with(text) || id[8..].starts_with(text)
        };
        candidates.retain(matches);
        match candidates.len() {
            0 => Err(none()),
            1 => Ok(candidates.remove(0)),
            _ => Err(RepoError::AmbiguousSnapshot {
                text: text.to_owned(),
                candidates: candidates.iter().map(|snapshot| short_id(&snapshot.id)).collect(),
            }),
        }
    }
}

/// Returns the last one that is not partial.
fn newest_complete(text: &str, mut candidates: Vec<Snapshot>) -> Result<Snapshot, RepoError> {
    match candidates.iter().rposition(|snapshot| !snapshot.is_partial()) {
        Some(complete) => Ok(candidates.swap_remove(complete)),
        None if candidates.is_empty() => Err(RepoError::NoSuchSnapshot(text.to_owned())),
        None => Err(RepoError::OnlyCheckpoints {
            text: text.to_owned(),
            newest: candidates
                .last()
                .map(|snapshot| short_id(&snapshot.id))
                .unwrap_or_default(),
        }),
    }
}

/// The digits of a snapshot id that people see: the eight after the writer tag, which all snapshots of one key share.
pub fn short_id(id: &SessionId) -> String {
    id.to_string()[8..16].to_owned()
}
