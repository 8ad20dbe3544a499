//! From plaintext to packs: hash, ask, compress, seal. One [`BlobWorker`] for each thread, with its own reused buffers.

use super::delta::{DeltaEncoder, Near};
use crate::ops::Progress;
use crate::pure::base::with_causes;
use crate::pure::compress::Compressor;
use crate::pure::crypto::KeyRing;
use crate::pure::format::blob::{BlobType, Codec};
use crate::pure::format::entry::ChunkRef;
use crate::pure::id::ChunkId;
use crate::pure::tree::build::NodeSink;
use crate::pure::tree::list::ListSink;
use crate::repo::RepoError;
use crate::repo::error::object_error;
use crate::repo::index::{LocalIndex, NodeCache};
use crate::repo::pack_writer::{Claim, CurrentWriter, PackWriter};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;

/// Nodes that may wait to be cached: a million new files have 60 MB of them.
const FRESH_BYTES_MAX: usize = 4 << 20;

/// Writes blobs for one thread.
pub struct BlobWorker<'a> {
    keys: &'a KeyRing,
    writer: &'a CurrentWriter,
    compressor: Compressor,
    frame: Vec<u8>,
    deltas: Option<DeltaEncoder<'a>>,
}

impl<'a> BlobWorker<'a> {
    /// Makes a worker that compresses at a zstd level.
    pub fn new(keys: &'a KeyRing, writer: &'a CurrentWriter, zstd_level: u32) -> BlobWorker<'a> {
        BlobWorker {
            keys,
            writer,
            compressor: Compressor::new(zstd_level.clamp(1, 19) as i32),
            frame: Vec::new(),
            deltas: None,
        }
    }

    /// From now on, chunks that resemble one of the previous version of their file are stored as deltas.
    pub fn with_deltas(mut self, deltas: Option<DeltaEncoder<'a>>) -> BlobWorker<'a> {
        self.deltas = deltas;
        self
    }

    /// Stores a data chunk unless the repository has it.
    ///
    /// # Errors
    /// When the repository fails; the session is then poisoned.
    pub fn data(&mut self, raw: &[u8], near: Option<Near<'_>>) -> Result<ChunkRef, RepoError> {
        let id = self
            .keys
            .data_id(raw)
            .map_err(|error| object_error("naming", "a chunk")(error.into()))?;
        self.store(BlobType::Data, &id, raw, near)?;
        Ok(ChunkRef {
            id,
            len: raw.len() as u64,
        })
    }

    /// Stores a node, list node or the like unless the repository has it.
    ///
    /// # Errors
    /// When the repository fails; the session is then poisoned.
    pub fn meta(&mut self, ty: BlobType, raw: &[u8]) -> Result<ChunkId, RepoError> {
        let id = self.meta_id(raw)?;
        self.store(ty, &id, raw, None)?;
        Ok(id)
    }

    fn meta_id(&self, raw: &[u8]) -> Result<ChunkId, RepoError> {
        self.keys
            .meta_id(raw)
            .map_err(|error| object_error("naming", "a tree node")(error.into()))
    }

    fn store(&mut self, ty: BlobType, id: &ChunkId, raw: &[u8], near: Option<Near<'_>>) -> Result<(), RepoError> {
        // One writer for claim and blob: a checkpoint waits for this.
        let current = self.writer;
        let writer = current.get();
        // Another thread may have been told that the blob is being written here: without it nothing may be published (I-12).
        self.try_store(&writer, ty, id, raw, near)
            .map_err(|error| writer.poison(error))
    }

    fn try_store(
        &mut self,
        writer: &PackWriter,
        ty: BlobType,
        id: &ChunkId,
        raw: &[u8],
        near: Option<Near<'_>>,
    ) -> Result<(), RepoError> {
        if writer.claim(id)? == Claim::Known {
            return Ok(());
        }
        let raw_len = raw.len() as u32;
        let BlobWorker {
            compressor,
            frame,
            deltas,
            ..
        } = self;
        let mut plain = None;
        if let Some((deltas, near)) = deltas.as_mut().zip(near) {
            let mut compress = || {
                plain = Some(PackWriter::begin_full(frame, compressor, raw));
                frame.len()
            };
            if let Some((base, payload)) = deltas.encode(writer, near, raw, &mut compress)? {
                let codec = Codec::Delta(base);
                PackWriter::begin(frame, codec, raw_len);
                frame.extend_from_slice(payload);
                return writer.add(ty, id, codec, raw_len, frame);
            }
        }
        let codec = plain.unwrap_or_else(|| PackWriter::begin_full(frame, compressor, raw));
        writer.add(ty, id, codec, raw_len, frame)
    }
}

impl ListSink for BlobWorker<'_> {
    type Error = RepoError;
    fn put_list(&mut self, node: Vec<u8>) -> Result<ChunkId, RepoError> {
        self.meta(BlobType::List, &node)
    }
}

/// Takes the nodes of a tree that is being built. Nodes of the parent tree are known without asking the index: they are
/// referenced through the pin (format-spec chapter on concurrency, "by reference"), unless packs are known to be absent.
pub struct NodeWriter<'a> {
    index: &'a LocalIndex,
    worker: BlobWorker<'a>,
    parent_nodes: Arc<Mutex<HashSet<ChunkId>>>,
    /// Inner nodes, for the manifest's hints.
    pub inner: Vec<ChunkId>,
    /// Nodes that were not in the parent go here: the next run compares with them.
    cache: &'a NodeCache,
    progress: &'a Progress,
    fresh: Vec<(ChunkId, Vec<u8>)>,
    fresh_bytes: usize,
}

impl<'a> NodeWriter<'a> {
    /// Writes through `worker`.
    pub fn new(
        index: &'a LocalIndex,
        worker: BlobWorker<'a>,
        parent_nodes: Arc<Mutex<HashSet<ChunkId>>>,
        cache: &'a NodeCache,
        progress: &'a Progress,
    ) -> NodeWriter<'a> {
        NodeWriter {
            index,
            worker,
            parent_nodes,
            inner: Vec::new(),
            cache,
            progress,
            fresh: Vec::new(),
            fresh_bytes: 0,
        }
    }

    /// Hands the new nodes to the local cache. Call it before they are published. A cache that cannot be written (a full
    /// disk) is noted and costs time in the next run, not this one.
    pub fn flush(&mut self) {
        self.fresh_bytes = 0;
        let fresh = std::mem::take(&mut self.fresh);
        let kept = self
            .cache
            .put_many(fresh.iter().map(|(id, node)| (id, node.as_slice())));
        if let Err(error) = kept {
            self.progress.note(format!(
                "tree nodes are not kept on this machine any more, so the next run takes longer: {}",
                with_causes(&error)
            ));
        }
    }
}

impl NodeSink for NodeWriter<'_> {
    type Error = RepoError;
    fn put_node(&mut self, level: u8, node: Vec<u8>) -> Result<ChunkId, RepoError> {
        let id = self.worker.meta_id(&node)?;
        if level > 0 {
            self.inner.push(id);
        }
        // An index that cannot tell whether packs are absent costs storing the node again.
        if self.parent_nodes.lock().contains(&id) && !self.index.may_lack().unwrap_or(true) {
            return Ok(id);
        }
        self.worker.store(BlobType::Node, &id, &node, None)?;
        self.fresh_bytes += node.len();
        self.fresh.push((id, node));
        if self.fresh_bytes >= FRESH_BYTES_MAX {
            self.flush();
        }
        Ok(id)
    }
}
