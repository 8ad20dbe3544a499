//! Filling an index with chunks that do not exist, to measure what a large one costs. For tests and benchmarks only: the packs
//! that it lists are not in the store, so `repo check` will rightly say that they are missing.

use super::{OpError, Progress};
use crate::edge::host;
use crate::pure::format::blob::BlobType;
use crate::pure::format::name::PackKind;
use crate::pure::format::pack::PackRecord;
use crate::pure::format::session::SessionRole;
use crate::pure::id::{ChunkId, PackId};
use crate::repo::Repo;
use crate::repo::index::OwnPack;
use crate::repo::session::Session;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Chunks in each of the packs that are made up.
const CHUNKS_PER_PACK: u64 = 512;

/// Lists `chunks` chunks of 1 MiB that do not exist in runs of a session of their own. The local index is not told, which makes it
/// several times faster: whoever goes on with the repository starts with another one.
///
/// # Errors
/// When the repository cannot be written.
pub fn index_rows(repo: &Repo, chunks: u64, progress: &Progress) -> Result<(), OpError> {
    repo.sync_history()?;
    let mut session = Session::begin(repo, None, SessionRole::Backup, 1, Instant::now())?;
    let slot = session.writer().session_keys().data.0;
    let mut left = chunks;
    // Any unpredictable sequence will do for ids; the generator is a xorshift with a random start.
    let mut state = u64::from_le_bytes(host::random()) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while left > 0 {
        if progress.is_cancelled() {
            session.abandon();
            return Err(OpError::Interrupted);
        }
        let count = left.min(CHUNKS_PER_PACK);
        let stored_len = 60_000;
        let records = (0..count)
            .map(|number| {
                let mut id = [0; 32];
                for part in id.chunks_exact_mut(8) {
                    part.copy_from_slice(&next().to_le_bytes());
                }
                PackRecord {
                    ty: BlobType::Data,
                    id: ChunkId(id),
                    offset: 64 + number as u32 * stored_len,
                    stored_len,
                    raw_len: 1 << 20,
                    base: None,
                }
            })
            .collect();
        let pack = OwnPack {
            pack: PackId(host::random()),
            session: session.id(),
            kind: PackKind::Data,
            size: 64 + count as u32 * stored_len + 88 + 1024 + count as u32 * 44,
            slots: vec![slot],
            crc64nvme: 0,
            body_hash24: [0; 24],
            records,
        };
        session.writer().adopt(pack)?;
        session.tick()?;
        left -= count;
        progress.files.fetch_add(count, Ordering::Relaxed);
    }
    session.abandon();
    Ok(())
}
