//! Marks on snapshots: writing drops and holds (format-spec chapters 9.4 and 9.5), and what else keeps a snapshot. What marks
//! say is taken in by [`super::snapshots`]. Who may write them is asked by the caller.

use super::at_once::at_once;
use super::error::{RepoError, object_error, store_error};
use super::open::{Repo, create_new, list_names, read_whole, store_key};
use super::snapshots::Broken;
use crate::edge::host;
use crate::edge::store::Created;
use crate::pure::base::Timestamp;
use crate::pure::format::mark::{Drop, DropKind, Hold};
use crate::pure::format::name::ObjectName;
use crate::pure::id::{SessionId, to_hex};
use bytes::Bytes;
use std::collections::HashMap;

/// A session without a sign of life for so long is dead (format-spec chapter 16.4).
const DEAD_NS: i64 = 72 * 3_600_000_000_000;

/// A hold that is there, past or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHold {
    pub session: SessionId,
    pub name: String,
    /// `None`: for ever.
    pub until: Option<Timestamp>,
    pub reason: String,
}

impl KnownHold {
    /// Whether it is not past.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until >= now)
    }

    /// Orders holds by how long they last.
    pub fn lasts(&self) -> Timestamp {
        self.until.unwrap_or(Timestamp(i64::MAX))
    }
}

impl Repo {
    /// Drops a snapshot: it is not shown any more, and its space may be freed. Doing so again changes nothing.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn drop_snapshot(&self, session: &SessionId, reason: &str) -> Result<(), RepoError> {
        let dropped = Drop {
            kid: self.kid,
            created: host::now(),
            kind: DropKind::Forget,
            session: *session,
            reason: reason.to_owned(),
        };
        let name = ObjectName::Drop(*session);
        let body = dropped
            .encode(&self.keys, &self.signer, host::random())
            .map_err(object_error("sealing", &name))?;
        let body = Bytes::from(body);
        let create = || {
            self.store
                .create(&store_key(&name), body.clone())
                .map_err(store_error("writing the mark that a snapshot is forgotten"))
        };
        match create() {
            // Forgetting is how room is made.
            Err(error) if error.is_full() && self.store.give_up_reserve() => create(),
            created => created,
        }
        .map(|created| match created {
            // Somebody else has dropped it meanwhile.
            Created::New | Created::Exists => (),
        })
    }

    /// Holds a snapshot, until a time or for ever. Returns the hold's name, which is never used again: readers remember
    /// holds by their names.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn hold_snapshot(
        &self,
        session: &SessionId,
        until: Option<Timestamp>,
        reason: &str,
    ) -> Result<String, RepoError> {
        let hold = Hold {
            kid: self.kid,
            created: host::now(),
            session: *session,
            until,
            reason: reason.to_owned(),
        };
        let label = to_hex(&host::random::<8>());
        let name = ObjectName::Hold(*session, label.clone());
        let body = hold
            .encode(&label, &self.keys, &self.signer, host::random())
            .map_err(object_error("sealing", &name))?;
        create_new(&*self.store, &name, body, "a hold on a snapshot")?;
        Ok(label)
    }

    /// Lists all holds, past ones too. What does not verify holds nothing, and is put into `broken`; what this key is not allowed to
    /// read holds for ever.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    pub fn holds(&self, broken: &mut Broken) -> Result<Vec<KnownHold>, RepoError> {
        self.holds_under("hold/", broken)
    }

    /// As [`Self::holds`], of one snapshot.
    ///
    /// # Errors
    /// As `holds`.
    pub fn holds_on(&self, session: &SessionId, broken: &mut Broken) -> Result<Vec<KnownHold>, RepoError> {
        self.holds_under(&format!("hold/{session}/"), broken)
    }

    fn holds_under(&self, under: &str, broken: &mut Broken) -> Result<Vec<KnownHold>, RepoError> {
        let listed = list_names(&*self.store, under)?.into_iter();
        let named: Vec<(SessionId, String)> = listed
            .filter_map(|(name, _)| match name {
                ObjectName::Hold(session, label) => Some((session, label)),
                _ => None,
            })
            .collect();
        let read = at_once(&named, |(session, label)| self.read_hold(session, label));
        let mut holds = Vec::with_capacity(named.len());
        for ((session, name), read) in named.into_iter().zip(read) {
            let (until, reason) = match read {
                Ok(hold) => (hold.until, hold.reason),
                Err(error) if error.is_absence() => continue,
                Err(error) if error.is_denied() => (None, "this key may not read why".to_owned()),
                Err(error) if error.is_damage() || matches!(error, RepoError::Object { .. }) => {
                    broken.push((ObjectName::Hold(session, name).to_string(), error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            holds.push(KnownHold {
                session,
                name,
                until,
                reason,
            });
        }
        Ok(holds)
    }

    /// Returns which snapshots running sessions rely on, and a session for each. Sessions without a sign of life for three days
    /// do not count, and neither do those whose objects cannot be read: what must not be deleted is decided by whoever deletes.
    ///
    /// # Errors
    /// When the store cannot be listed or read.
    pub fn pinned(&self, now: Timestamp) -> Result<HashMap<SessionId, SessionId>, RepoError> {
        let unended = self.objects_of_unended_sessions()?;
        let is_dead = |seen: Timestamp| seen.0 < now.0.saturating_sub(DEAD_NS);
        let mut pinned = HashMap::new();
        for open in at_once(&unended, |(session, objects)| self.open_session(session, objects)) {
            match open {
                Ok(open) => {
                    // Of a store without a clock, that of the writer.
                    let seen = open.last_seen.filter(|seen| seen.0 > 0).unwrap_or(open.began);
                    let session = open.state.session;
                    let pins = open.state.pins.into_iter().filter(|_| !is_dead(seen));
                    pinned.extend(pins.map(|pin| (pin, session)));
                }
                Err(error) if error.is_absence() => {}
                Err(error) if error.is_damage() || matches!(error, RepoError::Object { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pinned)
    }

    fn read_hold(&self, session: &SessionId, label: &str) -> Result<Hold, RepoError> {
        let name = ObjectName::Hold(*session, label.to_owned());
        let bytes = read_whole(&*self.store, &name, "a hold on a snapshot")?;
        Hold::decode(&bytes, session, label, &self.keys, &self.verifier).map_err(object_error("opening", &name))
    }

    /// Removes all holds of a snapshot, readable or not, except the one with the name `but`; returns how many.
    ///
    /// # Errors
    /// When the store cannot be listed, or does not delete.
    pub fn remove_holds(&self, session: &SessionId, but: Option<&str>) -> Result<usize, RepoError> {
        let mut keys = Vec::new();
        for (name, _) in list_names(&*self.store, &format!("hold/{session}/"))? {
            if matches!(&name, ObjectName::Hold(_, label) if Some(label.as_str()) != but) {
                keys.push(store_key(&name));
            }
        }
        if !keys.is_empty() {
            self.erase_or_hide(&keys, "removing the holds on a snapshot")?;
        }
        Ok(keys.len())
    }
}
