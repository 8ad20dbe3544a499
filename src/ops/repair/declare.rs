//! Condemning damaged packs, saying which chunks are lost, and accepting that (format-spec chapter 9.3).

use crate::edge::host;
use crate::edge::store::Failure;
use crate::ops::OpError;
use crate::pure::crypto::sign::role;
use crate::pure::format::condemn::{CondemnKind, Condemnation, CondemnedPack};
use crate::pure::format::name::ObjectName;
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ChunkId, PackId, SessionId, to_hex};
use crate::repo::error::{object_error, store_error};
use crate::repo::index::{PackInfo, PackState};
use crate::repo::open::{create_new, store_key};
use crate::repo::session::{Maintained, Session};
use crate::repo::{Repo, RepoError};
use std::collections::HashSet;
use std::time::Instant;

/// Ids in one condemnation: 32 MB, half of what an object of that name may have.
const LOST_MAX: usize = 1_000_000;
/// How often a pack is asked for before it counts as missing (I-8). A check has asked for it by then as well.
const ASKED: usize = 3;

/// A pack that is missing or damaged.
#[derive(Clone, Debug)]
pub struct Bad {
    pub info: PackInfo,
    pub why: Why,
}

impl Bad {
    /// Returns the name of the pack.
    pub fn name(&self) -> ObjectName {
        ObjectName::Pack(self.info.kind, self.info.pack, self.info.session)
    }
}

/// What is wrong with a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Missing,
    /// It has another size than runs say; in bytes.
    Size(u64),
    /// It is there with its size, and some of it does not open.
    Damaged,
}

impl Why {
    /// Asks the store, several times if it says that the pack is not there.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(super) fn of(repo: &Repo, info: &PackInfo) -> Result<Why, OpError> {
        let key = store_key(&ObjectName::Pack(info.kind, info.pack, info.session));
        for _ in 0..ASKED {
            match repo.store.stat(&key) {
                Ok(stat) if stat.size == u64::from(info.size) => return Ok(Why::Damaged),
                Ok(stat) => return Ok(Why::Size(stat.size)),
                Err(error) if error.class == Failure::NotFound => {}
                Err(error) => return Err(store_error("looking for a pack")(error).into()),
            }
        }
        Ok(Why::Missing)
    }
}

/// The packs that runs describe and that are missing, too short, or were found damaged when they were read.
pub(super) fn bad_packs(repo: &Repo, suspected: &HashSet<PackId>) -> Result<Vec<Bad>, OpError> {
    let mut infos: Vec<PackInfo> = Vec::new();
    let mut named = suspected.len();
    repo.index.packs(&mut |pack| {
        let is_named = suspected.contains(&pack.pack);
        named -= usize::from(is_named);
        let is_sound = pack.verified.is_none_or(|ledger| ledger.sound);
        let counts = matches!(pack.state, PackState::Live | PackState::Absent);
        if counts && (is_named || pack.state == PackState::Absent || !is_sound) {
            infos.push(pack);
        }
    })?;
    if named > 0 {
        return Err(OpError::Usage(format!(
            "no index run describes {named} of the packs that were named"
        )));
    }
    let mut packs = Vec::new();
    for info in infos {
        let why = Why::of(repo, &info)?;
        let is_suspected = suspected.contains(&info.pack) || info.verified.is_some_and(|ledger| !ledger.sound);
        if why == Why::Damaged && !is_suspected {
            // It is there after all, as runs describe it, and nobody has read it since.
            repo.index.mark_there(&info.pack)?;
            continue;
        }
        // Nothing is referred to in it from here on.
        repo.index.mark_absent(&info.pack)?;
        packs.push(Bad { info, why });
    }
    Ok(packs)
}

/// Begins a session that repairs.
///
/// # Errors
/// As [`Session::begin`].
pub(super) fn begin(repo: &Repo, uploads: usize) -> Result<Session<'_>, OpError> {
    Ok(Session::begin(
        repo,
        None,
        SessionRole::Repair,
        uploads,
        Instant::now(),
    )?)
}

/// Publishes what the session has copied, and condemns the packs then. Not before: what is condemned is not referred to any more.
pub(super) fn condemn_damaged(
    repo: &Repo,
    session: Session<'_>,
    packs: &[Bad],
    lost: &[ChunkId],
    uploads: usize,
) -> Result<(), OpError> {
    let condemned = packs.iter().map(|bad| CondemnedPack {
        pack: bad.info.pack,
        session: bad.info.session,
        kind: bad.info.kind,
        orphan: false,
        size: bad.info.size,
    });
    let mut parts = lost.chunks(LOST_MAX);
    let first = parts.next().unwrap_or_default();
    declare(repo, session, condemned.collect(), first, false)?;
    for part in parts {
        declare(repo, begin(repo, uploads)?, Vec::new(), part, false)?;
    }
    Ok(())
}

fn declare(
    repo: &Repo,
    mut session: Session<'_>,
    packs: Vec<CondemnedPack>,
    lost: &[ChunkId],
    is_accepted: bool,
) -> Result<(), OpError> {
    let id = session.id();
    let durable = match session.make_durable() {
        Ok(durable) => durable,
        Err(error) => {
            session.abandon();
            return Err(error.into());
        }
    };
    if !session.publish_maintenance(durable, Maintained::default())? {
        return Err(RepoError::Fenced(id).into());
    }
    create(repo, id, packs, lost, is_accepted)
}

fn create(
    repo: &Repo,
    session: SessionId,
    packs: Vec<CondemnedPack>,
    lost: &[ChunkId],
    is_accepted: bool,
) -> Result<(), OpError> {
    let name = ObjectName::Condemnation(session);
    let reason = if is_accepted { "the loss is accepted" } else { "damaged" };
    let condemnation = Condemnation {
        kid: repo.kid,
        created: host::now(),
        kind: CondemnKind::Quarantine,
        session,
        reason: reason.into(),
        packs,
        lost: lost.to_vec(),
        is_accepted,
    };
    let body = condemnation
        .encode(&repo.keys, &repo.signer, host::random())
        .map_err(object_error("sealing", &name))?;
    create_new(&*repo.store, &name, body, "the list of damaged packs")?;
    Ok(())
}

/// What is lost and has not been accepted yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Ascending.
    pub chunks: Vec<ChunkId>,
    /// Stands for exactly these: whoever accepts a loss says which one.
    pub code: String,
}

/// Returns the chunks that are declared lost and that nobody has stored again.
///
/// # Errors
/// When the repository cannot be listed.
pub fn loss(repo: &Repo) -> Result<Loss, OpError> {
    repo.sync_history()?;
    repo.sync_condemned()?;
    repo.sync_index()?;
    let accepted = repo.index.accepted_losses()?;
    let mut chunks = repo.index.lost_chunks()?;
    chunks.retain(|id| !accepted.contains(id));
    let bytes: Vec<u8> = chunks.iter().flat_map(|id| id.0).collect();
    let code = to_hex(&Repo::object_hash(&bytes).0[..4]);
    Ok(Loss { chunks, code })
}

/// Accepts a loss: prune goes on over what is lost, and keeps nothing for it any more.
///
/// # Errors
/// When the key is not an admin's, or the store fails.
pub fn accept(repo: &Repo, loss: &Loss) -> Result<(), OpError> {
    repo.require(role::ADMIN, "accept that data is lost")?;
    for part in loss.chunks.chunks(LOST_MAX) {
        declare(repo, begin(repo, 1)?, Vec::new(), part, true)?;
    }
    repo.sync_condemned()?;
    Ok(())
}
