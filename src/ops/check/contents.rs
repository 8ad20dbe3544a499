//! What entries refer to: whether there is a sound copy of every piece, and whether the lists of large files are whole.

use super::lost::{Fate, Lost};
use super::report::Report;
use crate::ops::OpError;
use crate::ops::node_key::{NodeKey, node_key};
use crate::pure::format::FormatError;
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{ChunkRef, Content, Entry};
use crate::pure::format::list::ListNode;
use crate::pure::id::{ChunkId, PackId};
use crate::pure::tree::list::open_node;
use crate::repo::RepoError;
use crate::repo::reader::BlobReader;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};

/// Chunks without a copy that are named one by one; the references to others are counted.
const UNLISTED_NAMED_MAX: usize = 1000;

/// Shared by the threads of a check, with what they found.
pub(super) struct Contents<'c, 'r> {
    reader: &'c BlobReader<'r>,
    lost: &'c Lost,
    /// List nodes that were looked at. Files share them, and so do the states of a file that grows.
    lists: Mutex<HashMap<NodeKey, ListFacts>>,
    /// Packs that a restore reads for what was looked at, if somebody wants to know.
    packs: Option<Mutex<HashSet<PackId>>>,
    unlisted: Mutex<Unlisted>,
    report: Mutex<Report>,
}

#[derive(Default)]
struct Unlisted {
    named: HashSet<ChunkId>,
    further: u64,
}

/// What is below a list node.
#[derive(Clone, Copy)]
struct ListFacts {
    level: u8,
    total: u64,
    /// Pieces; unknown if a node is broken.
    count: Option<u64>,
    /// Something of it cannot be restored.
    is_hit: bool,
}

impl<'c, 'r> Contents<'c, 'r> {
    pub(super) fn new(reader: &'c BlobReader<'r>, lost: &'c Lost, wants_packs: bool) -> Contents<'c, 'r> {
        Contents {
            reader,
            lost,
            lists: Mutex::new(HashMap::new()),
            packs: wants_packs.then(Mutex::default),
            unlisted: Mutex::default(),
            report: Mutex::default(),
        }
    }

    /// Adds what is wrong to the report; returns the packs.
    pub(super) fn finish(self) -> (Report, HashSet<PackId>) {
        let mut report = self.report.into_inner();
        let further = self.unlisted.into_inner().further;
        if further > 0 {
            report.damage(
                "chunks",
                format!("{further} more references of files lead to chunks that no index run lists"),
            );
        }
        (report, self.packs.map(Mutex::into_inner).unwrap_or_default())
    }

    /// Reads a node and verifies it.
    ///
    /// # Errors
    /// When no copy opens.
    pub(super) fn read(
        &self,
        ty: BlobType,
        id: &ChunkId,
        opener: &mut Opener,
        out: &mut Vec<u8>,
    ) -> Result<(), OpError> {
        if let Some(packs) = &self.packs
            && let Some(place) = self.reader.repo().index.find(id)?
        {
            packs.lock().insert(place.pack);
        }
        Ok(self.reader.read(ty, id, opener, out)?)
    }

    /// Adds the pieces of an entry to `needed`; those of lists are looked at here. Returns whether something of it is known not
    /// to be restorable.
    ///
    /// # Errors
    /// When the store or the index cannot be read.
    pub(super) fn collect(
        &self,
        entry: &Entry,
        needed: &mut Vec<ChunkId>,
        opener: &mut Opener,
    ) -> Result<bool, OpError> {
        let mut is_hit = false;
        if let Some(content) = entry.content() {
            is_hit |= self.collect_content(content, entry.size(), needed, opener)?;
        }
        for (_, size, content) in &entry.attributes.xattrs_outline {
            is_hit |= self.collect_content(content, *size, needed, opener)?;
        }
        Ok(is_hit)
    }

    fn collect_content(
        &self,
        content: &Content,
        size: u64,
        needed: &mut Vec<ChunkId>,
        opener: &mut Opener,
    ) -> Result<bool, OpError> {
        content
            .check(size)
            .map_err(|error| RepoError::from(FormatError::from(error)))?;
        match content {
            Content::Inline(_) => Ok(false),
            Content::Chunks(pieces) => {
                needed.extend(ids(pieces));
                Ok(false)
            }
            Content::List { root, height, count } => {
                let facts = self.list(root, *height, size, opener)?;
                if facts.count.is_some_and(|found| found != *count) {
                    let what = "its number of pieces is not that of the file";
                    self.report.lock().damage(format!("list node {root}"), what);
                    return Ok(true);
                }
                Ok(facts.is_hit)
            }
        }
    }

    /// Looks at a list and everything below it. Descends at most eight levels: each says which it is on.
    fn list(&self, id: &ChunkId, level: u8, total: u64, opener: &mut Opener) -> Result<ListFacts, OpError> {
        if let Some(facts) = self.lists.lock().get(&node_key(id))
            && (facts.level, facts.total) == (level, total)
        {
            return Ok(*facts);
        }
        let mut bytes = Vec::new();
        let opened = self
            .read(BlobType::List, id, opener, &mut bytes)
            .and_then(|()| open_node(&bytes, level, total).map_err(|error| RepoError::from(error).into()));
        drop(bytes);
        let mut facts = ListFacts {
            level,
            total,
            count: Some(0),
            is_hit: false,
        };
        match opened {
            Ok(ListNode::Leaf(pieces)) => {
                facts.count = Some(pieces.len() as u64);
                facts.is_hit = self.lost_of(&ids(&pieces).collect::<Vec<_>>())?.contains(&true);
            }
            Ok(ListNode::Inner { level, children }) => {
                for (child, bytes) in &children {
                    let below = self.list(child, level - 1, *bytes, opener)?;
                    facts.count = facts
                        .count
                        .zip(below.count)
                        .map(|(sum, count)| sum.saturating_add(count));
                    facts.is_hit |= below.is_hit;
                }
            }
            Err(OpError::Repo(error)) if error.is_damage() => {
                self.report.lock().error(format!("list node {id}"), &error);
                (facts.count, facts.is_hit) = (None, true);
            }
            Err(error) => return Err(error),
        }
        self.lists.lock().insert(node_key(id), facts);
        Ok(facts)
    }

    /// Says of each of these chunks whether there is no sound copy of it. Cheaper for many at a time: neighbours in the index
    /// share pages.
    ///
    /// # Errors
    /// If the index fails.
    pub(super) fn lost_of(&self, needed: &[ChunkId]) -> Result<Vec<bool>, OpError> {
        let repo = self.reader.repo();
        let mut used = self.packs.is_some().then(HashSet::new);
        let mut lost = Vec::with_capacity(needed.len());
        for (id, place) in needed.iter().zip(repo.index.find_many(needed)?) {
            let fate = self.lost.fate(repo, id, place.as_ref(), used.as_mut())?;
            if fate == Fate::Unlisted {
                self.note_unlisted(id);
            }
            lost.push(fate != Fate::Fine);
        }
        if let (Some(packs), Some(used)) = (&self.packs, used) {
            packs.lock().extend(used);
        }
        Ok(lost)
    }

    fn note_unlisted(&self, id: &ChunkId) {
        let mut unlisted = self.unlisted.lock();
        if unlisted.named.contains(id) {
            return;
        }
        if unlisted.named.len() == UNLISTED_NAMED_MAX {
            unlisted.further += 1;
            return;
        }
        unlisted.named.insert(*id);
        self.report.lock().damage(
            format!("chunk {id}"),
            "files need it, and no index run that counts lists it",
        );
    }
}

fn ids(pieces: &[ChunkRef]) -> impl Iterator<Item = ChunkId> {
    pieces.iter().map(|piece| piece.id).filter(|id| *id != ChunkId::HOLE)
}
