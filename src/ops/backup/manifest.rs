//! The manifest of the snapshot that is being made, complete or so far (format-spec chapter 14).

use super::Problems;
use super::plan::Counts;
use crate::edge::{accounts, host};
use crate::pure::base::Timestamp;
use crate::pure::format::manifest::{Hint, Manifest, Root, RootKind, Source};
use crate::pure::format::name::PackKind;
use crate::pure::id::{ChunkId, SessionId, SourceId};
use crate::pure::tree::build::BuiltTree;
use crate::repo::Repo;
use crate::repo::pack_writer::WriterCounts;
use std::sync::atomic::Ordering;

/// Inner nodes whose place is written into the manifest.
const HINTS_MAX: usize = 512;

/// What is known of a run before it has read anything.
pub struct Draft<'a> {
    pub repo: &'a Repo,
    pub source: SourceId,
    pub host: &'a str,
    pub label: &'a str,
    pub tags: &'a [String],
    pub start: Timestamp,
    pub kind: RootKind,
    /// Paths of the roots; a stream's is empty.
    pub roots: Vec<Vec<u8>>,
    pub chunker: u64,
    pub problems: &'a Problems,
    pub counts: &'a Counts,
}

impl Draft<'_> {
    /// Makes the manifest for the trees of the first roots, where there is one. `resume` is the last key of the last tree when it is not
    /// complete.
    pub fn manifest(
        &self,
        trees: &[Option<BuiltTree>],
        parents: &[SessionId],
        resume: Option<Vec<u8>>,
        inner: &[ChunkId],
        written: &WriterCounts,
    ) -> Manifest {
        let (problems_total, mut problems) = self.problems.so_far();
        problems.sort_by(|a, b| a.path.cmp(&b.path));
        let roots: Vec<Root> = self
            .roots
            .iter()
            .zip(trees)
            .filter_map(|(path, tree)| Some((path, tree.as_ref()?)))
            .map(|(path, tree)| Root {
                path: path.clone(),
                kind: self.kind,
                node: tree.root,
                height: tree.height,
                entries: tree.entries,
                bytes: tree.bytes,
                chunker: self.chunker,
            })
            .collect();
        let mut tags = self.tags.to_vec();
        tags.sort();
        tags.dedup();
        let mut stats = self.counts.stats();
        stats.chunks_new = written.chunks_new.load(Ordering::Relaxed);
        stats.chunks_reused = written.chunks_reused.load(Ordering::Relaxed);
        stats.bytes_new = written.bytes_new.load(Ordering::Relaxed);
        stats.bytes_stored = written.bytes_stored.load(Ordering::Relaxed);
        stats.bytes_delta = written.bytes_delta.load(Ordering::Relaxed);
        stats.packs_uploaded = written.packs_uploaded.load(Ordering::Relaxed);
        stats.requests = self.repo.store.requests();
        let owners = self.counts.owners.lock();
        Manifest {
            source: Source {
                id: self.source,
                kind: self.kind as u64,
                host: self.host.to_owned(),
                user: host::user_name(),
                label: self.label.to_owned(),
            },
            start: self.start,
            end: host::now(),
            hints: hints(self.repo, &roots, inner),
            roots,
            tags,
            parents: parents.to_vec(),
            users: accounts::user_names(&owners.users),
            groups: accounts::group_names(&owners.groups),
            problems_total,
            problems,
            stats,
            resume,
            tool: concat!("larder ", env!("CARGO_PKG_VERSION")).into(),
            options_digest: None,
            copied_from: None,
        }
    }
}

/// Where the roots and the inner nodes lie, so that one file is found without asking the index for them. Without them it
/// takes longer, so a local index that fails is no reason to fail.
pub(in crate::ops) fn hints(repo: &Repo, roots: &[Root], inner: &[ChunkId]) -> Vec<Hint> {
    let mut wanted: Vec<ChunkId> = roots.iter().map(|root| root.node).collect();
    // The last inner nodes are the highest.
    wanted.extend(inner.iter().rev().take(HINTS_MAX));
    wanted.sort_unstable();
    wanted.dedup();
    let places = repo.index.find_many(&wanted).unwrap_or_default();
    wanted
        .into_iter()
        .zip(places)
        .filter_map(|(node, place)| {
            let place = place.filter(|place| place.kind == PackKind::Meta)?;
            Some(Hint {
                pack: place.pack,
                session: place.session,
                pack_size: place.pack_size,
                slot: *place.slots.first()?,
                offset: place.offset,
                len: place.stored_len,
                node,
            })
        })
        .collect()
}
