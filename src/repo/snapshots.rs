//! Which snapshots there are: the mirror of `snap/`, `drop/` and `hold/`, its checks against gaps and rollback, and how
//! people name one.

use super::at_once::at_once;
use super::error::{RepoError, object_error};
use super::index::{KnownOutcome, Mark};
use super::open::{Repo, list_names, read_whole};
use crate::edge::host;
use crate::pure::base::Timestamp;
use crate::pure::crypto::Domain;
use crate::pure::crypto::sign::BadSignature;
use crate::pure::format::FormatError;
use crate::pure::format::manifest::Manifest;
use crate::pure::format::mark::{Drop, DropKind, Hold};
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::{Outcome, OutcomeKind, StoredOutcome, flag};
use crate::pure::id::{ChunkId, KeyId, ObjectHash, SessionId};
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
    pub broken: Broken,
    /// Missing numbers, forks and rollbacks, in words.
    pub gaps: Vec<String>,
    /// Two outcomes of one key with the same number: a cloned or rolled-back host.
    pub forks: Vec<String>,
    /// What else is worth telling.
    pub notes: Vec<String>,
}

impl HistoryState {
    /// Fails if what was listed may not be all there is: doubt stops deletion (I-8).
    ///
    /// # Errors
    /// The first gap, or the error of the first object that cannot be used.
    pub fn require_sound(&mut self) -> Result<(), RepoError> {
        if let Some(what) = self.gaps.first().cloned().filter(|_| !chaos!("gaps-are-no-matter")) {
            return Err(RepoError::Gap { what });
        }
        match self.broken.is_empty() || chaos!("broken-objects-are-no-matter") {
            true => Ok(()),
            false => Err(self.broken.swap_remove(0).1),
        }
    }
}

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

/// Outcomes that are read before they are put into the mirror.
const OUTCOMES_IN_MEMORY: usize = 64;

/// Names of objects that could not be used, and why.
pub type Broken = Vec<(String, RepoError)>;

/// `snap/` as it was listed, and what this machine knew just before. In this order: what another process takes in
/// meanwhile is not in the listing, and must not look as if it had been taken away.
struct Listing {
    known: HashSet<SessionId>,
    /// With the store's time of each.
    listed: HashMap<SessionId, Option<Timestamp>>,
}

impl Listing {
    fn unseen(&self) -> impl Iterator<Item = (&SessionId, &Option<Timestamp>)> {
        self.listed.iter().filter(|(session, _)| !self.known.contains(session))
    }
}

/// An outcome and its place in time.
#[derive(Clone, Debug)]
pub struct Aged {
    /// When it was begun, as far as that can be believed; what snapshots are ordered by.
    pub time: Timestamp,
    /// When it was published, likewise.
    pub published: Timestamp,
    pub outcome: KnownOutcome,
}

/// Orders outcomes by age, oldest first.
///
/// Clocks are wrong at times, numbers are not: no outcome was published after one that has a higher number by the same writer.
/// As many of a writer's times as agree with the numbers are believed. Any other one takes the place behind its predecessor, so
/// that a single run with a clock in the future does not stay the newest until that date is reached.
fn by_age(mut outcomes: Vec<KnownOutcome>) -> Vec<Aged> {
    outcomes.sort_by_key(|outcome| (outcome.kid, outcome.sequence, outcome.session));
    let mut aged = Vec::with_capacity(outcomes.len());
    for writer in outcomes.chunk_by(|a, b| a.kid == b.kid) {
        let mut believed = ascending(writer).into_iter().peekable();
        let mut before = Timestamp(i64::MIN);
        for (index, outcome) in writer.iter().enumerate() {
            let mut time = before;
            if believed.next_if_eq(&index).is_some() {
                before = outcome.created;
                time = outcome.start.unwrap_or(before).min(before);
            }
            aged.push(Aged {
                time,
                published: before,
                outcome: outcome.clone(),
            });
        }
    }
    aged.sort_by_key(|aged| (aged.time, aged.outcome.kid, aged.outcome.sequence, aged.outcome.session));
    aged
}

/// Returns the places of the longest run of times that do not descend; of several, the one with the later numbers.
fn ascending(writer: &[KnownOutcome]) -> Vec<usize> {
    // `ends[n]` is the place where a run of n + 1 times ends as early in time as possible; `previous` leads back from there.
    let mut ends: Vec<usize> = Vec::new();
    let mut previous: Vec<Option<usize>> = Vec::with_capacity(writer.len());
    for (index, outcome) in writer.iter().enumerate() {
        let length = ends.partition_point(|end| writer[*end].created <= outcome.created);
        previous.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(length) {
            Some(end) => *end = index,
            None => ends.push(index),
        }
    }
    let mut places: Vec<usize> = std::iter::successors(ends.last().copied(), |place| previous[*place]).collect();
    places.reverse();
    places
}

/// What the chains of all writers say.
#[derive(Default)]
struct Chains {
    gaps: Vec<String>,
    forks: Vec<String>,
    /// The newest outcome of each writer that has no fork.
    newest: Vec<(KeyId, u64, ObjectHash)>,
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
        let mut state = self.sync_chains(&self.list_outcomes()?)?;
        self.forgive_voided(&mut state)?;
        Ok(state)
    }

    fn sync_history_from(&self, listing: &Listing) -> Result<HistoryState, RepoError> {
        let mut state = self.sync_chains(listing)?;
        self.sync_marks_into(&mut state)?;
        self.forgive_voided(&mut state)?;
        Ok(state)
    }

    fn sync_chains(&self, listing: &Listing) -> Result<HistoryState, RepoError> {
        let mut state = HistoryState::default();
        self.take_in_outcomes(listing, &mut state)?;
        let mut chains = self.chains()?;
        if !chains.gaps.is_empty() {
            // A listing of many pages is no picture of one moment. Before a gap is said, it is looked for once more (I-8).
            state = HistoryState::default();
            self.take_in_outcomes(&self.list_outcomes()?, &mut state)?;
            chains = self.chains()?;
        }
        if chains.gaps.is_empty() {
            for (kid, sequence, hash) in &chains.newest {
                self.index.raise_head(kid, *sequence, hash)?;
            }
        }
        state.gaps = chains.gaps;
        state.forks = chains.forks;
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
    ///
    /// # Errors
    /// As [`Self::sync_history`].
    pub fn sync_outcomes(&self, state: &mut HistoryState) -> Result<(), RepoError> {
        self.take_in_outcomes(&self.list_outcomes()?, state)
    }

    fn take_in_outcomes(&self, listing: &Listing, state: &mut HistoryState) -> Result<(), RepoError> {
        let mut unseen: Vec<SessionId> = listing.unseen().map(|(session, _)| *session).collect();
        if !unseen.is_empty() {
            // Some may have been taken in since.
            let known: HashSet<SessionId> = self.known_outcomes()?;
            unseen.retain(|session| !known.contains(session));
        }
        // A manifest can have many kilobytes.
        for some in unseen.chunks(OUTCOMES_IN_MEMORY) {
            self.take_in(some, state)?;
        }
        let mut gone: HashSet<SessionId> = listing.known.iter().copied().collect();
        gone.retain(|session| !listing.listed.contains_key(session));
        if !gone.is_empty() {
            // Tidied by maintenance (then its number is below a floor), or taken away, or a bad listing (I-8).
            for (session, _) in self.list_snap()? {
                gone.remove(&session);
            }
            self.index.forget_outcomes(&gone)?;
        }
        self.doubt_clocks(listing, state)
    }

    /// Reads outcomes and puts them into the mirror. One that cannot be used is no obstacle for the others.
    fn take_in(&self, sessions: &[SessionId], state: &mut HistoryState) -> Result<(), RepoError> {
        let mut absent = Vec::new();
        for (session, fetched) in sessions
            .iter()
            .zip(at_once(sessions, |session| self.fetch_outcome(session)))
        {
            match fetched {
                Ok((stored, bytes)) => self.keep_outcome(&stored, &bytes)?,
                Err(error) if error.is_absence() => absent.push((*session, error)),
                // The signed configuration says that it does not count, so nothing depends on it.
                Err(RepoError::Object {
                    source: FormatError::Signature(BadSignature::Revoked(kid)),
                    ..
                }) => {
                    let session = session.short();
                    state.notes.push(format!(
                        "snapshot {session} does not count: its key {kid} had been revoked"
                    ));
                }
                Err(error) if concerns_one_object(&error) => state.broken.push((format!("snap/{session}"), error)),
                Err(error) => return Err(error),
            }
        }
        if !absent.is_empty() {
            // Listed and not there: tidied in between, or damage.
            let listed: HashSet<SessionId> = self.list_snap()?.into_iter().map(|(session, _)| session).collect();
            absent.retain(|(session, _)| listed.contains(session));
            state.broken.extend(
                absent
                    .into_iter()
                    .map(|(session, error)| (format!("snap/{session}"), error)),
            );
        }
        Ok(())
    }

    /// Says which outcomes claim to be from after the moment at which the store received them: the clock of the machine that
    /// made them was wrong, and so are the times of its snapshots. (The other way round is no sign: a copy of a repository
    /// is younger than all that is in it.) Looks at what was unseen and at the newest of this key, so each is told once or so.
    fn doubt_clocks(&self, listing: &Listing, state: &mut HistoryState) -> Result<(), RepoError> {
        const HOUR_NS: i64 = 3_600_000_000_000;
        let outcomes = self.index.outcomes()?;
        let newest_own = outcomes
            .iter()
            .filter(|outcome| outcome.kid == self.kid)
            .max_by_key(|outcome| outcome.sequence)
            .map(|outcome| outcome.session);
        for outcome in outcomes {
            let is_new = !listing.known.contains(&outcome.session) || Some(outcome.session) == newest_own;
            let received = listing.listed.get(&outcome.session).copied().flatten();
            let Some(received) = received.filter(is_told) else {
                continue;
            };
            let ahead = outcome.created.0.saturating_sub(received.0);
            if is_new && ahead > HOUR_NS {
                state.notes.push(format!(
                    "{} says that it is from {} hours after the repository received it: the clock of its machine was wrong, or \
                     that of the store is",
                    outcome.session.short(),
                    ahead / HOUR_NS
                ));
            }
        }
        Ok(())
    }

    /// Lists when the store received each outcome. Those of a store without a clock are left out.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn received(&self) -> Result<HashMap<SessionId, Timestamp>, RepoError> {
        let listed = self.list_snap()?.into_iter();
        Ok(listed
            .filter_map(|(session, received)| Some((session, received.filter(is_told)?)))
            .collect())
    }

    fn list_outcomes(&self) -> Result<Listing, RepoError> {
        let known = self.known_outcomes()?;
        let listed = self.list_snap()?.into_iter().collect();
        Ok(Listing { known, listed })
    }

    fn known_outcomes(&self) -> Result<HashSet<SessionId>, RepoError> {
        let outcomes = self.index.outcomes()?;
        Ok(outcomes.into_iter().map(|outcome| outcome.session).collect())
    }

    /// Lists the sessions that have an outcome, readable or not.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn listed_outcomes(&self) -> Result<Vec<SessionId>, RepoError> {
        Ok(self.list_snap()?.into_iter().map(|(session, _)| session).collect())
    }

    /// Lists the sessions that have an outcome, and the store's time of each.
    pub(super) fn list_snap(&self) -> Result<Vec<(SessionId, Option<Timestamp>)>, RepoError> {
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

    /// Finds a snapshot on a machine that has seen little of the history yet: reads only the outcomes that can be meant,
    /// newest first, if these are certain to hold the answer. Otherwise as [`Self::sync_history`] and [`Self::resolve`]; the
    /// chains are not checked when most of the history is left unread.
    ///
    /// # Errors
    /// As `resolve`.
    pub fn find_snapshot(
        &self,
        text: &str,
        filter: &Filter,
        parse_time: &dyn Fn(&str) -> Option<Timestamp>,
    ) -> Result<(Snapshot, HistoryState), RepoError> {
        let listing = self.list_outcomes()?;
        if let Some(found) = self.find_among_few(&listing, text, filter, parse_time)? {
            return Ok(found);
        }
        let mut history = self.sync_history_from(&listing)?;
        let snapshot = self.resolve_noting(text, filter, parse_time, &mut history.broken)?;
        Ok((snapshot, history))
    }

    fn find_among_few(
        &self,
        listing: &Listing,
        text: &str,
        filter: &Filter,
        parse_time: &dyn Fn(&str) -> Option<Timestamp>,
    ) -> Result<Option<(Snapshot, HistoryState)>, RepoError> {
        /// Below this, reading the whole history is cheap.
        const UNSEEN_MAX: usize = 24;
        let is_latest = text.starts_with("latest");
        // A time may mean any of them.
        if listing.unseen().count() <= UNSEEN_MAX || text.starts_with('@') {
            return Ok(None);
        }
        let mut meant: Vec<_> = listing
            .unseen()
            .filter(|(session, _)| is_latest || is_named(session, text))
            .collect();
        if !is_latest && meant.len() > UNSEEN_MAX {
            return Ok(None);
        }
        meant.sort_by_key(|(_, modified)| std::cmp::Reverse(**modified));
        meant.truncate(UNSEEN_MAX);
        let meant: Vec<SessionId> = meant.into_iter().map(|(session, _)| *session).collect();
        let mut state = HistoryState::default();
        self.take_in(&meant, &mut state)?;
        self.sync_marks_into(&mut state)?;
        let Ok(snapshot) = self.resolve_noting(text, filter, parse_time, &mut state.broken) else {
            return Ok(None);
        };
        let is_there = listing.listed.contains_key(&snapshot.id);
        let is_certain = is_there && (!is_latest || self.is_newest(&snapshot, listing)?);
        Ok(is_certain.then_some((snapshot, state)))
    }

    /// Whether every outcome that is listed and was not read is older than this snapshot. Times of the store do not tell: in a
    /// repository that was copied they are those of the copy. The numbers of the outcomes do: when the mirror has the last
    /// ones of a writer without a hole, the unread ones come before them.
    fn is_newest(&self, snapshot: &Snapshot, listing: &Listing) -> Result<bool, RepoError> {
        let mut listed: HashMap<[u8; 4], usize> = HashMap::new();
        for session in listing.listed.keys() {
            *listed.entry(session.writer_tag()).or_default() += 1;
        }
        let mut read: HashMap<[u8; 4], Vec<Aged>> = HashMap::new();
        let mut time = None;
        for aged in self.outcomes_by_age()? {
            if aged.outcome.session == snapshot.id {
                time = Some(aged.time);
            }
            if listing.listed.contains_key(&aged.outcome.session) {
                read.entry(aged.outcome.session.writer_tag()).or_default().push(aged);
            }
        }
        Ok(listed.into_iter().all(|(tag, count)| {
            let mut outcomes = read.remove(&tag).unwrap_or_default();
            if outcomes.len() == count {
                return true;
            }
            outcomes.sort_by_key(|aged| std::cmp::Reverse(aged.outcome.sequence));
            // A fork, or another key with this tag, breaks the count.
            let mut number = count as u64;
            let mut oldest = None;
            for aged in &outcomes {
                if aged.outcome.sequence.checked_add(1) != Some(number) {
                    break;
                }
                number = aged.outcome.sequence;
                oldest = Some(aged.published);
            }
            // What was not read was published before that, and begun before it was published.
            oldest.is_some() && oldest <= time
        }))
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
        // One that this key or this version cannot open is still an outcome.
        let manifest = self.manifest_of(stored).ok().flatten();
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
                start: manifest.map(|manifest| manifest.start),
                accepted: outcome.accepted.clone(),
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
        self.list_forgotten(state).map(drop)
    }

    /// Lists `drop/` and returns every session that has one, held or not: what a session may not take for its parent
    /// (format-spec chapter 16.2). Drops that do not verify are in `state`. The inner result says whether the local index has
    /// taken it in; what the store says counts without.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    pub fn sync_drops(&self, state: &mut HistoryState) -> Result<(Vec<SessionId>, Result<(), RepoError>), RepoError> {
        let drops = self.list_drops(state)?;
        let kept = self.keep_drops(&drops);
        Ok((drops.into_iter().map(|(session, _)| session).collect(), kept))
    }

    /// Lists `drop/`, and `hold/` after it; returns which snapshots are forgotten and not held. Marks that do not verify are in
    /// `state`.
    pub(super) fn list_forgotten(&self, state: &mut HistoryState) -> Result<HashSet<SessionId>, RepoError> {
        let drops = self.list_drops(state)?;
        let held = self.list_held(&drops, state)?;
        self.keep_marks(&drops, &|session| held.contains(session))?;
        let forgotten = drops.into_iter().map(|(session, _)| session);
        Ok(forgotten.filter(|session| !held.contains(session)).collect())
    }

    /// Holds were not looked at, so those that were seen last time still count.
    fn keep_drops(&self, drops: &[(SessionId, DropKind)]) -> Result<(), RepoError> {
        let held: HashSet<SessionId> = self
            .index
            .outcomes()?
            .into_iter()
            .filter(|known| known.mark == Mark::Held)
            .map(|known| known.session)
            .collect();
        self.keep_marks(drops, &|session| held.contains(session))
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
            let known = match self.index.recall(&memory).ok().flatten().as_deref() {
                Some([1]) => Some(DropKind::Forget),
                Some([2]) => Some(DropKind::Void),
                _ => None,
            };
            let kind = match known {
                Some(kind) => kind,
                None => {
                    let bytes = match read_whole(&*self.store, &name, "the mark of a forgotten snapshot") {
                        Ok(bytes) => bytes,
                        Err(error) if error.is_absence() => continue,
                        Err(error) => return Err(error),
                    };
                    match Drop::decode(&bytes, &session, &self.keys, &self.verifier) {
                        Ok(drop) => {
                            // Only saves the next reading.
                            let _ = self.index.remember(&memory, &[drop.kind as u8]);
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
                    if until.is_none_or(|until| until >= host::now()) && !chaos!("holds-are-no-matter") {
                        held.insert(*session);
                    }
                }
                Err(error) if error.is_absence() => {}
                // Who may not read it cannot know better, and errs on the side of keeping.
                Err(error) if error.is_denied() => {
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
    fn chains(&self) -> Result<Chains, RepoError> {
        // Before the outcomes: another process puts its outcome there first, and then the head.
        let heads = self.index.heads()?;
        let mut found = Chains::default();
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
                found.gaps.push(format!(
                    "outcome {missing} of key {kid} is missing (the newest is {last})"
                ));
            }
            for (number, outcomes) in chain.iter().filter(|(_, outcomes)| outcomes.len() > 1) {
                let ids: Vec<String> = outcomes.iter().map(|outcome| outcome.session.to_string()).collect();
                found.forks.push(format!(
                    "key {kid} has several outcomes with number {number}: {}",
                    ids.join(", ")
                ));
            }
            if let Some((sequence, outcomes)) = chain.iter().next_back()
                && let [only] = outcomes.as_slice()
            {
                found.newest.push((*kid, *sequence, only.hash));
            }
        }
        for (kid, sequence, hash) in heads {
            let outcomes = chains.get(&kid).and_then(|chain| chain.get(&sequence));
            let floor = floors.get(&kid).copied().unwrap_or(0);
            if sequence >= floor
                && !outcomes.is_some_and(|outcomes| outcomes.iter().any(|outcome| outcome.hash == hash))
            {
                found.gaps.push(format!(
                    "outcome {sequence} of key {kid} was seen on this machine before and is gone"
                ));
            }
        }
        Ok(found)
    }

    /// Opens an outcome from the mirror. A copy there that does not open is no damage of the repository: the store is asked.
    ///
    /// # Errors
    /// When the object itself cannot be read or does not open.
    pub fn stored_outcome(&self, session: &SessionId) -> Result<Option<StoredOutcome>, RepoError> {
        let Some(bytes) = self.index.outcome_bytes(session)? else {
            return Ok(None);
        };
        if let Ok(stored) = Outcome::decode(&bytes, session, &self.keys, &self.verifier) {
            return Ok(Some(stored));
        }
        let (stored, bytes) = self.fetch_outcome(session)?;
        self.keep_outcome(&stored, &bytes)?;
        Ok(Some(stored))
    }

    /// Opens one snapshot.
    pub fn snapshot(&self, session: &SessionId) -> Result<Snapshot, RepoError> {
        let name = ObjectName::Outcome(*session);
        let stored = self
            .stored_outcome(session)?
            .ok_or_else(|| RepoError::NoSuchSnapshot(session.to_string()))?;
        let manifest = self
            .manifest_of(&stored)
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

    /// Opens the manifest of an outcome. A writer that cannot read back what it has published remembers its own.
    fn manifest_of(&self, stored: &StoredOutcome) -> Result<Option<Manifest>, FormatError> {
        let opened = stored.manifest(&self.keys);
        let Some((id, _)) = stored
            .outcome
            .manifest
            .filter(|_| matches!(opened, Err(FormatError::MissingKey(_))))
        else {
            return opened;
        };
        match self.nodes.get(&id) {
            Some(bytes) if self.keys.meta_id(&bytes)? == id => Manifest::decode(&bytes).map(Some),
            _ => opened,
        }
    }

    /// Keeps the manifest of a snapshot that is about to be published, if this key could not open it afterwards. It is sealed as
    /// the tree nodes are that lie beside it; without it, the next run has no parent.
    pub(super) fn remember_manifest(&self, id: &ChunkId, encoded: &[u8]) {
        if !self.keys.can_open(Domain::Meta) {
            let _ = self.nodes.put_many([(id, encoded)]);
        }
    }

    /// Returns the outcomes of the mirror, oldest first ([`by_age`]).
    ///
    /// # Errors
    /// When the local index fails.
    pub fn outcomes_by_age(&self) -> Result<Vec<Aged>, RepoError> {
        Ok(by_age(self.index.outcomes()?))
    }

    /// Returns the outcomes with a manifest that are not dropped, or are held, newest first.
    fn newest_first(&self) -> Result<impl Iterator<Item = Aged> + use<>, RepoError> {
        let has_manifest = |kind| matches!(kind, OutcomeKind::Commit | OutcomeKind::Checkpoint);
        let outcomes = self.outcomes_by_age()?.into_iter().rev();
        Ok(outcomes.filter(move |aged| !aged.outcome.is_dropped() && has_manifest(aged.outcome.kind)))
    }

    /// Returns the snapshots of the mirror that are not dropped, or are held, oldest first. Checkpoints are included,
    /// before what their run came to. Without the parts of manifests that can be long, hints and problems:
    /// [`Self::snapshot`] has them.
    ///
    /// # Errors
    /// When a manifest cannot be opened.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, RepoError> {
        let mut broken = Broken::new();
        let snapshots = self.snapshots_noting(&mut broken)?;
        match broken.pop() {
            Some((_, error)) => Err(error),
            None => Ok(snapshots),
        }
    }

    /// As [`Self::snapshots`], but a manifest that cannot be opened (of a newer version, say) is put into `broken`.
    ///
    /// # Errors
    /// When the local index or the store fails.
    pub fn snapshots_noting(&self, broken: &mut Broken) -> Result<Vec<Snapshot>, RepoError> {
        let mut snapshots = Vec::new();
        for aged in self.newest_first()? {
            if let Some(mut snapshot) = self.snapshot_noting(&aged.outcome.session, broken)? {
                snapshot.manifest.hints = Vec::new();
                snapshot.manifest.problems = Vec::new();
                snapshots.push(snapshot);
            }
        }
        snapshots.reverse();
        Ok(snapshots)
    }

    fn snapshot_noting(&self, session: &SessionId, broken: &mut Broken) -> Result<Option<Snapshot>, RepoError> {
        match self.snapshot(session) {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(error) if concerns_one_object(&error) || error.is_absence() => {
                broken.push((format!("snap/{session}"), error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
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
        self.resolve_noting(text, filter, parse_time, &mut Broken::new())
    }

    /// As [`Self::resolve`]; snapshots that might have been meant and cannot be opened are put into `broken`. Manifests are
    /// opened one after the other and only until the answer is found.
    ///
    /// # Errors
    /// As `resolve`.
    pub fn resolve_noting(
        &self,
        text: &str,
        filter: &Filter,
        parse_time: &dyn Fn(&str) -> Option<Timestamp>,
        broken: &mut Broken,
    ) -> Result<Snapshot, RepoError> {
        let none = || RepoError::NoSuchSnapshot(text.to_owned());
        let mut unreadable = Broken::new();
        let found = if let Some(rest) = text.strip_prefix("latest") {
            let label = rest.strip_prefix(':');
            if label.is_none() && !rest.is_empty() {
                return Err(none());
            }
            let is_meant = |snapshot: &Snapshot| {
                filter.accepts(snapshot) && label.is_none_or(|label| snapshot.manifest.source.label == label)
            };
            self.newest_complete(text, |_| true, is_meant, &mut unreadable)?
        } else if let Some(time) = text.strip_prefix('@') {
            let limit = parse_time(time).ok_or_else(none)?;
            let is_accepted = |snapshot: &Snapshot| filter.accepts(snapshot);
            self.newest_complete(text, |aged| aged.time <= limit, is_accepted, &mut unreadable)?
        } else if text.is_empty() || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(none());
        } else {
            self.resolve_id(text, filter, &mut unreadable)?
        };
        // When there is nothing else, what is wrong with the one that may be meant is the answer.
        if found.is_none() && !unreadable.is_empty() {
            return Err(unreadable.swap_remove(0).1);
        }
        broken.append(&mut unreadable);
        found.ok_or_else(none)
    }

    /// Finds the newest complete snapshot that fits and that no other replaces. Where there are only checkpoints, that is the
    /// error, unless something that was not readable may have been meant.
    fn newest_complete(
        &self,
        text: &str,
        may_be: impl Fn(&Aged) -> bool,
        accepts: impl Fn(&Snapshot) -> bool,
        broken: &mut Broken,
    ) -> Result<Option<Snapshot>, RepoError> {
        let outcomes: Vec<Aged> = self.newest_first()?.collect();
        let mut partial = None;
        for aged in outcomes.iter().filter(|aged| may_be(aged)) {
            if partial.is_some() && aged.outcome.kind == OutcomeKind::Checkpoint {
                continue;
            }
            let Some(snapshot) = self.snapshot_noting(&aged.outcome.session, broken)? else {
                continue;
            };
            if !accepts(&snapshot) || self.is_replaced(&snapshot, &outcomes)? {
                continue;
            }
            if !snapshot.is_partial() {
                return Ok(Some(snapshot));
            }
            partial.get_or_insert(snapshot.id);
        }
        match partial {
            Some(newest) if broken.is_empty() => Err(RepoError::OnlyCheckpoints {
                text: text.to_owned(),
                newest: newest.short(),
            }),
            _ => Ok(None),
        }
    }

    /// As [`replaced`] says it, without opening every manifest: what replaces a snapshot was begun when that was begun.
    fn is_replaced(&self, snapshot: &Snapshot, outcomes: &[Aged]) -> Result<bool, RepoError> {
        for Aged { outcome, .. } in outcomes {
            if outcome.session != snapshot.id
                && outcome.start == Some(snapshot.manifest.start)
                && outcome.kind == snapshot.kind
                && let Some(other) = self.snapshot_noting(&outcome.session, &mut Broken::new())?
                && other.replaces(snapshot)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn resolve_id(&self, text: &str, filter: &Filter, broken: &mut Broken) -> Result<Option<Snapshot>, RepoError> {
        let mut found = Vec::new();
        for Aged { outcome: known, .. } in self.newest_first()? {
            if is_named(&known.session, text) {
                found.extend(self.snapshot_noting(&known.session, broken)?);
            }
        }
        found.retain(|snapshot| filter.accepts(snapshot));
        if found.len() > 1 {
            return Err(RepoError::AmbiguousSnapshot {
                text: text.to_owned(),
                candidates: found.iter().rev().map(|snapshot| snapshot.id.short()).collect(),
            });
        }
        Ok(found.pop())
    }
}

/// A store without times says 1970.
fn is_told(received: &Timestamp) -> bool {
    received.0 > 0
}

/// Every session of one key begins with the same four bytes, so people may also give digits from after them.
fn is_named(session: &SessionId, text: &str) -> bool {
    let id = session.to_string();
    id.starts_with(text) || id[8..].starts_with(text)
}

/// Whether an error says that one object is of no use, as opposed to a store that cannot be reached. Damage, and what this
/// version or this key cannot open.
fn concerns_one_object(error: &RepoError) -> bool {
    error.is_damage() || matches!(error, RepoError::Object { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000_000;

    /// Outcome `sequence` of a key, begun an hour before it is published.
    fn outcome(kid: u8, sequence: u64, day: i64) -> KnownOutcome {
        KnownOutcome {
            session: SessionId([kid.wrapping_mul(7) ^ sequence as u8; 16]),
            kind: OutcomeKind::Commit,
            kid: KeyId([kid; 16]),
            sequence,
            hash: ObjectHash([0; 32]),
            source: None,
            created: Timestamp(day * DAY),
            flags: 0,
            mark: Mark::None,
            start: Some(Timestamp(day * DAY - DAY / 24)),
            accepted: Vec::new(),
        }
    }

    fn order(outcomes: Vec<KnownOutcome>) -> Vec<(u8, u64)> {
        by_age(outcomes)
            .into_iter()
            .map(|aged| (aged.outcome.kid.0[0], aged.outcome.sequence))
            .collect()
    }

    #[test]
    fn a_clock_that_was_wrong_once_does_not_change_the_order() {
        for wrong in [-20_000, 0, 99_000] {
            for at in 0..5 {
                let days = [100, 101, 102, 103, 104];
                let outcomes: Vec<_> = (0..5)
                    .map(|number| outcome(1, number, if number == at { wrong } else { days[number as usize] }))
                    .collect();
                let expected: Vec<_> = (0..5).map(|number| (1, number)).collect();
                assert_eq!(
                    order(outcomes),
                    expected,
                    "day {wrong} instead of {}",
                    days[at as usize]
                );
            }
        }
    }

    #[test]
    fn writers_are_compared_by_time_and_times_that_are_right_stay() {
        let outcomes = vec![
            outcome(1, 0, 10),
            outcome(1, 1, 90_000),
            outcome(1, 2, 30),
            outcome(2, 0, 20),
            outcome(2, 1, 40),
        ];
        assert_eq!(order(outcomes.clone()), [(1, 0), (1, 1), (2, 0), (1, 2), (2, 1)]);
        let aged = by_age(outcomes);
        assert_eq!(aged[4].published, Timestamp(40 * DAY));
        assert_eq!(aged[4].time, Timestamp(40 * DAY - DAY / 24));
    }

    /// A snapshot whose tags were changed is published again, and is as old as it was.
    #[test]
    fn a_snapshot_that_is_published_again_is_not_newer() {
        let mut again = outcome(1, 2, 30);
        again.start = Some(Timestamp(5 * DAY));
        assert_eq!(
            order(vec![outcome(1, 0, 10), outcome(1, 1, 20), again]),
            [(1, 2), (1, 0), (1, 1)]
        );
    }
}
