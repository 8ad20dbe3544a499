//! What maintenance has to know of everybody else (format-spec chapter 16.3): what is forgotten, which sessions have not ended and
//! what they rely on, whether anything is in doubt. Every answer comes from a listing made for it: the mirror in the local index is
//! shared with other processes, and the order of the listings is what makes deleting safe.

use super::at_once::at_once;
use super::error::{RepoError, object_error};
use super::index::KnownOutcome;
use super::open::{Repo, list_names, read_whole};
use super::session::{End, end_session_of_another};
use super::snapshots::HistoryState;
use crate::pure::base::Timestamp;
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::OutcomeKind;
use crate::pure::format::session::{Acknowledgement, Registration, SessionRole};
use crate::pure::id::{KeyId, ObjectHash, SessionId};
use crate::pure::protocol::maintain::Unended;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A session that has not ended, and what is known of it.
#[derive(Clone, Debug)]
pub struct OpenSession {
    pub state: Unended,
    pub role: SessionRole,
    pub host: Option<String>,
    /// When it began, by its own clock.
    pub began: Timestamp,
    /// When the store received its newest object; what tells whether it is alive.
    pub last_seen: Option<Timestamp>,
}

/// Numbers of a session's objects, and when the store received them.
pub(super) type SessionObjects = Vec<(u32, Option<Timestamp>)>;

impl Repo {
    /// Lists `drop/`, and then `hold/`; returns the snapshots that are forgotten and not held.
    ///
    /// # Errors
    /// When the store cannot be listed or read, or a mark does not verify: it might be a hold.
    pub fn forgotten(&self) -> Result<HashSet<SessionId>, RepoError> {
        let mut state = HistoryState::default();
        let forgotten = self.list_forgotten(&mut state)?;
        state.require_sound()?;
        Ok(forgotten)
    }

    /// Lists `sess/` and then `snap/`; returns the sessions that have not ended, with what they say.
    ///
    /// # Errors
    /// When the store cannot be listed, or an object of such a session cannot be read: what it relies on is not known then.
    pub fn sessions_that_have_not_ended(&self) -> Result<Vec<OpenSession>, RepoError> {
        let objects = self.objects_of_unended_sessions()?;
        at_once(&objects, |(session, objects)| self.open_session(session, objects))
            .into_iter()
            .collect()
    }

    /// The sessions that have not ended, and the numbers and store times of their objects.
    pub(super) fn objects_of_unended_sessions(&self) -> Result<Vec<(SessionId, SessionObjects)>, RepoError> {
        let mut objects: BTreeMap<SessionId, SessionObjects> = BTreeMap::new();
        for (name, row) in list_names(&*self.store, "sess/")? {
            if let ObjectName::Session(session, number) = name {
                objects.entry(session).or_default().push((number, row.modified));
            }
        }
        // After the sessions: one that ended in between is seen to have ended.
        for (session, _) in self.list_snap()? {
            objects.remove(&session);
        }
        for session in self.voided()? {
            objects.remove(&session);
        }
        Ok(objects.into_iter().collect())
    }

    pub(super) fn open_session(
        &self,
        session: &SessionId,
        objects: &[(u32, Option<Timestamp>)],
    ) -> Result<OpenSession, RepoError> {
        let read = |number| {
            let name = ObjectName::Session(*session, number);
            let bytes = read_whole(&*self.store, &name, "what a running session says")?;
            Ok::<_, RepoError>((bytes, object_error("opening", name.to_string())))
        };
        let (bytes, unacceptable) = read(0)?;
        let registration = Registration::decode(&bytes, session, &self.keys, &self.verifier).map_err(unacceptable)?;
        let mut state = Unended {
            session: *session,
            pins: registration.pins,
            acked: Vec::new(),
        };
        for (number, _) in objects.iter().filter(|(number, _)| *number > 0) {
            let (bytes, unacceptable) = read(*number)?;
            let said =
                Acknowledgement::decode(&bytes, session, *number, &self.keys, &self.verifier).map_err(unacceptable)?;
            state.pins.extend(said.pins);
            state.acked.extend(said.acked);
        }
        Ok(OpenSession {
            state,
            role: registration.role,
            host: registration.host,
            began: registration.created,
            last_seen: objects.iter().filter_map(|(_, modified)| *modified).max(),
        })
    }

    /// Lists `snap/` and takes in what is new; returns every outcome that is a snapshot, forgotten or not.
    ///
    /// # Errors
    /// When the store cannot be listed, an outcome cannot be used, or the history has a gap (I-8).
    pub fn all_snapshots_without_doubt(&self) -> Result<Vec<SessionId>, RepoError> {
        let mut state = self.sync_history_to_write()?;
        state.require_sound()?;
        self.check_links()?;
        let voided = self.voided()?;
        let is_snapshot = |kind| matches!(kind, OutcomeKind::Commit | OutcomeKind::Checkpoint);
        Ok(self
            .index
            .outcomes()?
            .into_iter()
            .filter(|known| is_snapshot(known.kind) && !voided.contains(&known.session))
            .map(|known| known.session)
            .collect())
    }

    /// Where machines share a key, several outcomes can have one number, and a number that is there does not show that none is
    /// missing. So every outcome's link has to lead to one that is there (format-spec chapter 9.2.3).
    fn check_links(&self) -> Result<(), RepoError> {
        let outcomes = self.index.outcomes()?;
        let mut links = Vec::with_capacity(outcomes.len());
        let mut floors: HashMap<KeyId, u64> = HashMap::new();
        for known in &outcomes {
            let Some(stored) = self.stored_outcome(&known.session)? else {
                continue;
            };
            for (kid, number, _) in &stored.outcome.chain_floors {
                let floor = floors.entry(*kid).or_default();
                *floor = (*floor).max(number.saturating_add(1));
            }
            links.push((known, stored.outcome.previous));
        }
        let there: HashSet<(KeyId, u64, ObjectHash)> = outcomes
            .iter()
            .map(|known| (known.kid, known.sequence, known.hash))
            .collect();
        let leads_nowhere = |(known, previous): &&(&KnownOutcome, Option<ObjectHash>)| {
            let floor = floors.get(&known.kid).copied().unwrap_or(0);
            match (known.sequence.checked_sub(1), previous) {
                (None, None) => false,
                (Some(before), Some(hash)) => before >= floor && !there.contains(&(known.kid, before, *hash)),
                _ => true,
            }
        };
        match links
            .iter()
            .find(leads_nowhere)
            .filter(|_| !chaos!("links-are-not-followed"))
        {
            None => Ok(()),
            Some((known, _)) => Err(RepoError::Gap {
                what: format!("the outcome before snap/{} is not there", known.session),
            }),
        }
    }

    /// Ends a session that seems dead, accepting the runs that it wrote (format-spec chapter 16.4). If it is alive after all, it
    /// loses its commit, and nothing else. False if it has ended by itself meanwhile.
    ///
    /// # Errors
    /// When the store fails.
    pub fn fence(&self, session: &SessionId) -> Result<bool, RepoError> {
        // For the number of the fence.
        self.sync_outcomes(&mut HistoryState::default())?;
        end_session_of_another(self, session, End::Fence)
    }

    /// Returns the sessions of a key that have not ended.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn unended_sessions_of(&self, kid: &KeyId) -> Result<Vec<SessionId>, RepoError> {
        let objects = self.objects_of_unended_sessions()?;
        let sessions = objects.into_iter().map(|(session, _)| session);
        Ok(sessions
            .filter(|session| session.writer_tag()[..] == kid.0[..4])
            .collect())
    }

    /// Ends a session of a key that is revoked: none of its runs is accepted. False if it has ended by itself meanwhile.
    ///
    /// # Errors
    /// When the store fails.
    pub fn end_revoked(&self, session: &SessionId) -> Result<bool, RepoError> {
        self.sync_outcomes(&mut HistoryState::default())?;
        end_session_of_another(self, session, End::Refuse)
    }
}
