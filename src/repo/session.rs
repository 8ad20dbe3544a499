//! One writing session: carries out what `pure::protocol::backup` decides, lists durable packs in runs, and publishes.

use super::error::{RepoError, object_error, store_error};
use super::index::{OwnPack, SessionEnd};
use super::lock::HostLock;
use super::open::{Repo, create_new, list_names, read_whole, store_key};
use super::pack_writer::{CurrentWriter, Durable, PackWriter, WriterCounts};
use super::snapshots::HistoryState;
use crate::edge::host;
use crate::edge::store::{Created, Failure, Stat, StoreError};
use crate::pure::crypto::sign::role;
use crate::pure::format::blob::BlobType;
use crate::pure::format::manifest::Manifest;
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::{Outcome, OutcomeKind, flag};
use crate::pure::format::run::{self, RunChunk, RunContent, RunDelta, RunIdentity, RunPack, StoredAs};
use crate::pure::format::session::{Acknowledgement, Registration, SessionRole};
use crate::pure::id::{ChunkId, ObjectHash, PackId, SessionId, SourceId};
use crate::pure::protocol::backup::{Action, BackupProtocol, Event, Finish};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A run is written when this many blobs wait to be listed…
const RUN_RECORDS: u64 = 131_072;
/// … or this long after the last one (format-spec chapter 8).
const RUN_EVERY: Duration = Duration::from_secs(30 * 60);
/// How often `gc/` is looked at during work (B9).
const POLL_EVERY: Duration = Duration::from_secs(15 * 60);
/// A listing of outcomes younger than this is good enough to number the next one.
const LISTING_FRESH: Duration = Duration::from_secs(60);

/// A running session. After a checkpoint it is another one: see [`Session::checkpoint`].
pub struct Session<'r> {
    repo: &'r Repo,
    id: SessionId,
    protocol: BackupProtocol,
    role: SessionRole,
    uploads: usize,
    parents: Vec<SessionId>,
    writer: Arc<PackWriter>,
    /// The same writer, for the threads that fill it.
    current: Arc<CurrentWriter>,
    next_run: u32,
    next_object: u32,
    last_run: Instant,
    last_poll: Instant,
    history_listed: Instant,
    notes: Vec<String>,
    /// Packs that were found absent before the last checkpoint, in words.
    absent: Vec<String>,
    condemned: HashMap<SessionId, HashSet<PackId>>,
    lock: HostLock,
    lock_path: PathBuf,
}

/// A published snapshot.
#[derive(Debug)]
pub struct Published {
    pub session: SessionId,
    pub bytes_stored: u64,
}

/// What publishing needs beside the content.
#[derive(Clone, Debug)]
pub struct OutcomeLabel {
    pub kind: OutcomeKind,
    pub source: Option<SourceId>,
    pub flags: u64,
}

/// What a session has of its own before it is registered.
struct Identity {
    id: SessionId,
    writer: Arc<PackWriter>,
    lock: HostLock,
    lock_path: PathBuf,
}

impl Identity {
    fn draw(repo: &Repo, uploads: usize, counts: Arc<WriterCounts>) -> Result<Identity, RepoError> {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&repo.kid.0[..4]);
        id[4..].copy_from_slice(&host::random::<12>());
        let id = SessionId(id);
        let lock_path = session_lock(repo, &id);
        let lock = HostLock::try_take(&lock_path)?.ok_or_else(|| internal("a new session's lock is taken"))?;
        let writer = Arc::new(PackWriter::start(
            repo.store.clone(),
            repo.index.clone(),
            repo.keys.clone(),
            &repo.config,
            id,
            uploads,
            counts,
        )?);
        Ok(Identity {
            id,
            writer,
            lock,
            lock_path,
        })
    }
}

/// The file whose lock a session's process holds while it lives.
fn session_lock(repo: &Repo, session: &SessionId) -> PathBuf {
    repo.state_dir.join("sessions").join(format!("{session}.lock"))
}

fn internal(error: impl std::fmt::Display) -> RepoError {
    RepoError::Internal(error.to_string())
}

impl<'r> Session<'r> {
    /// Ends this machine's crashed sessions, registers a new one with `parents` pinned, and brings the index up to date.
    /// `history_listed` is when the outcomes were last listed.
    ///
    /// # Errors
    /// When this key may not write, or the repository cannot be used.
    pub fn begin(
        repo: &'r Repo,
        parents: impl IntoIterator<Item = SessionId>,
        role: SessionRole,
        uploads: usize,
        history_listed: Instant,
    ) -> Result<Session<'r>, RepoError> {
        repo.require(role::WRITE | role::MAINTAIN, "write to this repository")?;
        if !repo.config.writable() {
            return Err(object_error("using", "the configuration")(
                crate::pure::format::FormatError::TooNew {
                    what: "a feature that allows reading only".into(),
                },
            ));
        }
        let sessions = repo.state_dir.join("sessions");
        std::fs::create_dir_all(&sessions).map_err(|source| RepoError::Local {
            what: format!("making {}", sessions.display()),
            source,
        })?;
        let recovered = recover(repo)?;
        let Identity {
            id,
            writer,
            lock,
            lock_path,
        } = Identity::draw(repo, uploads, Arc::default())?;
        let mut session = Session {
            repo,
            id,
            protocol: BackupProtocol::new(),
            role,
            uploads,
            parents: Vec::new(),
            current: Arc::new(CurrentWriter::new(writer.clone())),
            writer,
            next_run: 0,
            next_object: 1,
            last_run: Instant::now(),
            last_poll: Instant::now(),
            history_listed: if recovered { Instant::now() } else { history_listed },
            notes: Vec::new(),
            absent: Vec::new(),
            condemned: HashMap::new(),
            lock,
            lock_path,
        };
        // Room taken by writers that were killed. Not to be had is no reason not to go on.
        let _ = repo.store.sweep();
        session.begin_with(parents.into_iter().collect())?;
        session.adopt()?;
        Ok(session)
    }

    /// Steps B2 to B6.
    fn begin_with(&mut self, parents: Vec<SessionId>) -> Result<(), RepoError> {
        let Action::Register { pins } = self.protocol.step(Event::Begin { parents }).map_err(internal)? else {
            return Err(internal("a session does not begin with its registration"));
        };
        self.register(&self.id, pins)?;
        let action = self.protocol.step(Event::Registered).map_err(internal)?;
        self.validate(action)
    }

    /// Step B2, for this session or for the one that goes on after it.
    fn register(&self, id: &SessionId, pins: Vec<SessionId>) -> Result<(), RepoError> {
        let repo = self.repo;
        repo.index
            .start_session(id, &host::boot_id(), std::process::id(), host::now())?;
        let registration = Registration {
            kid: repo.kid,
            created: host::now(),
            role: self.role,
            pins,
            software: concat!("larder/", env!("CARGO_PKG_VERSION")).into(),
            host: Some(host::host_name()),
        };
        let body = registration
            .encode(id, &repo.keys, &repo.signer, host::random())
            .map_err(object_error("sealing", "the session"))?;
        create_new(
            &*repo.store,
            &ObjectName::Session(*id, 0),
            body,
            "the session's registration",
        )
    }

    /// Steps B3 to B6.
    fn validate(&mut self, mut action: Action) -> Result<(), RepoError> {
        let repo = self.repo;
        loop {
            let event = match action {
                Action::ListDrops => {
                    let mut state = HistoryState::default();
                    let dropped = repo.sync_drops(&mut state)?;
                    for (name, error) in state.broken {
                        self.notes.push(format!("{name} does not count: {error}"));
                    }
                    Event::Drops { dropped }
                }
                Action::StatParent { parent } => {
                    let key = store_key(&ObjectName::Outcome(parent));
                    match repo.store.stat(&key) {
                        Ok(Stat { .. }) => Event::ParentExists(true),
                        Err(StoreError {
                            class: Failure::NotFound,
                            ..
                        }) => Event::ParentExists(false),
                        Err(error) => return Err(store_error("looking for the parent snapshot")(error)),
                    }
                }
                Action::ListCondemned => Event::Condemned {
                    generations: self.list_condemned()?,
                },
                Action::Acknowledge { acked } => {
                    self.acknowledge(acked)?;
                    Event::Acknowledged
                }
                Action::SyncIndex => {
                    let sync = repo.sync_index()?;
                    for (name, error) in sync.broken {
                        self.notes
                            .push(format!("{name} cannot be used, what it lists is stored again: {error}"));
                    }
                    for name in sync.missing {
                        self.notes
                            .push(format!("{name} is missing, what it lists is stored again"));
                    }
                    Event::IndexSynced
                }
                Action::Work { parents } => {
                    self.parents = parents;
                    return Ok(());
                }
                Action::Finish(Finish::Unpinned(lost)) => return Err(RepoError::Unpinned(lost)),
                action => return Err(internal(format!("unexpected {action:?} while registering"))),
            };
            action = self.protocol.step(event).map_err(internal)?;
        }
    }

    fn list_condemned(&mut self) -> Result<Vec<SessionId>, RepoError> {
        let (generations, fresh) = self.repo.sync_condemned()?;
        for (generation, packs) in fresh {
            self.condemned.insert(generation, packs.into_iter().collect());
        }
        Ok(generations)
    }

    fn acknowledge(&mut self, acked: Vec<SessionId>) -> Result<(), RepoError> {
        let repo = self.repo;
        let object = Acknowledgement {
            kid: repo.kid,
            created: host::now(),
            pins: Vec::new(),
            acked,
            runs: self.next_run,
        };
        let body = object
            .encode(&self.id, self.next_object, &repo.keys, &repo.signer, host::random())
            .map_err(object_error("sealing", "the session"))?;
        create_new(
            &*repo.store,
            &ObjectName::Session(self.id, self.next_object),
            body,
            "the session's heartbeat",
        )?;
        self.next_object += 1;
        Ok(())
    }

    /// Takes over packs that an earlier run of this machine made durable but never listed (format-spec chapter 16).
    fn adopt(&mut self) -> Result<(), RepoError> {
        let repo = self.repo;
        let mut adopted = 0u64;
        for pack in self.left_over_packs()? {
            let key = store_key(&ObjectName::Pack(pack.kind, pack.pack, pack.session));
            match repo.store.stat(&key) {
                Ok(stat) if stat.size == u64::from(pack.size) => {
                    // The index refuses packs that are condemned, or listed by now.
                    if !repo.index.adopt_packs(&[pack.pack], &self.id)?.is_empty() {
                        adopted += 1;
                        self.writer.adopt(pack);
                    }
                }
                Ok(_) => repo.index.forget_pack(&pack.pack)?,
                Err(StoreError {
                    class: Failure::NotFound,
                    ..
                }) => repo.index.forget_pack(&pack.pack)?,
                Err(error) => return Err(store_error("looking for a pack of an interrupted run")(error)),
            }
        }
        if adopted > 0 {
            self.notes.push(format!(
                "took over {adopted} packs that an interrupted run had uploaded"
            ));
        }
        Ok(())
    }

    /// Packs of sessions of this machine that have ended, or whose process is gone.
    fn left_over_packs(&self) -> Result<Vec<OwnPack>, RepoError> {
        let repo = self.repo;
        let mut packs = Vec::new();
        for session in repo.index.sessions_with_packs()? {
            if session != self.id && HostLock::try_take(&session_lock(repo, &session))?.is_some() {
                packs.extend(repo.index.unlisted_packs(&session)?);
            }
        }
        Ok(packs)
    }

    /// Returns the session id, which will be the snapshot id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the parents that were pinned and validated.
    pub fn parents(&self) -> &[SessionId] {
        &self.parents
    }

    /// Returns the pack writer, to share with threads.
    pub fn current_writer(&self) -> Arc<CurrentWriter> {
        self.current.clone()
    }

    /// Returns the pack writer.
    pub fn writer(&self) -> &PackWriter {
        &self.writer
    }

    /// Returns the packs that this session, or those that it goes on from, wanted to refer to, or looked for, and that the
    /// store does not have, in words.
    pub fn absent_packs(&self) -> Vec<String> {
        let mut absent = self.absent.clone();
        absent.extend(self.writer.absent_packs());
        absent.sort();
        absent.dedup();
        absent
    }

    /// Whether there are any.
    pub fn met_absent_packs(&self) -> bool {
        !self.absent.is_empty() || self.writer.met_absent_packs()
    }

    /// Takes the notes for the user.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Does what is due during work: writes a run, looks at `gc/`. Call it now and then; it returns at once when
    /// nothing is due.
    ///
    /// # Errors
    /// When the repository fails; the session must not publish then.
    pub fn tick(&mut self) -> Result<(), RepoError> {
        if self.writer.unlisted_records() >= RUN_RECORDS || self.last_run.elapsed() >= RUN_EVERY {
            self.write_runs(RUN_RECORDS)?;
            self.last_run = Instant::now();
        }
        if self.last_poll.elapsed() >= POLL_EVERY {
            self.poll()?;
            self.last_poll = Instant::now();
        }
        Ok(())
    }

    /// Step B9. Each poll also serves as the heartbeat when it acknowledges; a session object is written every time, so
    /// that the session never looks dead (format-spec chapter 16).
    fn poll(&mut self) -> Result<(), RepoError> {
        self.protocol.step(Event::PollDue).map_err(internal)?;
        let generations = self.list_condemned()?;
        let used = self.writer.used();
        let touched = generations
            .iter()
            .filter(|generation| {
                self.condemned
                    .get(*generation)
                    .is_some_and(|packs| !packs.is_disjoint(&used))
            })
            .copied()
            .collect();
        match self
            .protocol
            .step(Event::Polled { generations, touched })
            .map_err(internal)?
        {
            Action::Acknowledge { acked } => {
                self.acknowledge(acked)?;
                self.protocol.step(Event::Acknowledged).map_err(internal)?;
            }
            _ => self.acknowledge(self.protocol.acked().copied().collect())?,
        }
        Ok(())
    }

    /// Writes the durable packs that no run lists yet into L0 runs of at most about `records` each.
    fn write_runs(&mut self, records: u64) -> Result<(), RepoError> {
        let mut batch: Vec<OwnPack> = Vec::new();
        let mut count = 0;
        for pack in self.writer.take_unlisted() {
            count += pack.records.len() as u64;
            batch.push(pack);
            if count >= records {
                self.write_run(std::mem::take(&mut batch))?;
                count = 0;
            }
        }
        if !batch.is_empty() {
            self.write_run(batch)?;
        }
        Ok(())
    }

    fn write_run(&mut self, packs: Vec<OwnPack>) -> Result<(), RepoError> {
        let repo = self.repo;
        let name = ObjectName::Run(self.id, self.next_run);
        let identity = RunIdentity {
            kid: repo.kid,
            created: host::now(),
            session: self.id,
            number: self.next_run,
        };
        let content = run_content(&packs);
        let body = run::encode_l0(&content, &identity, &repo.keys, &repo.signer, host::random())
            .map_err(object_error("sealing", &name))?;
        let size = body.len() as u64;
        create_new(&*repo.store, &name, body, "an index run")?;
        let ids: Vec<PackId> = packs.iter().map(|pack| pack.pack).collect();
        repo.index
            .packs_listed(&name.to_string(), &self.id, &repo.kid, self.next_run, &ids)?;
        self.writer
            .counts()
            .bytes_stored
            .fetch_add(size, std::sync::atomic::Ordering::Relaxed);
        self.next_run += 1;
        repo.index.set_next_run(&self.id, self.next_run)?;
        Ok(())
    }

    /// Uploads everything that is open, and proves it.
    ///
    /// # Errors
    /// The first repository error of the session.
    pub fn make_durable(&mut self) -> Result<Durable, RepoError> {
        let durable = self.writer.finish()?;
        self.write_runs(RUN_RECORDS)?;
        Ok(durable)
    }

    /// Publishes what has been done so far as a partial snapshot, and goes on as another session that builds on it.
    ///
    /// At this moment the tree that `manifest` describes must hold every reference that was made and is still to be
    /// used: chunks that this session has looked up or uploaded and that are in no published tree are protected by
    /// nobody once it has ended. `manifest` is made when all packs are durable.
    ///
    /// # Errors
    /// When the repository fails, maintenance fenced the session, or a snapshot that the run builds on was forgotten meanwhile. The
    /// session cannot be used after that.
    pub fn checkpoint<E: From<RepoError>>(
        &mut self,
        source: SourceId,
        flags: u64,
        manifest: impl FnOnce(&WriterCounts) -> Result<Manifest, E>,
    ) -> Result<SessionId, E> {
        let current = self.current.clone();
        let mut writing = current.exclusively();
        let _durable = self.make_durable()?;
        let encoded = manifest(self.writer.counts())?.encode();
        let label = OutcomeLabel {
            kind: OutcomeKind::Checkpoint,
            source: Some(source),
            flags: flags | flag::PARTIAL,
        };
        let (ended, writer) = self.continue_after(&encoded, &label)?;
        *writing = writer;
        Ok(ended)
    }

    /// Registers the next session, ends this one with the manifest, and becomes the next. Returns which one ended, and
    /// the new writer.
    fn continue_after(
        &mut self,
        manifest: &[u8],
        label: &OutcomeLabel,
    ) -> Result<(SessionId, Arc<PackWriter>), RepoError> {
        let next = Identity::draw(self.repo, self.uploads, self.writer.counts().clone())?;
        let ending = self.id;
        let Action::Register { pins } = self.protocol.step(Event::DurableSoFar { ending }).map_err(internal)? else {
            return Err(internal("a checkpoint does not begin with a registration"));
        };
        self.register(&next.id, pins)?;
        match self.protocol.step(Event::Registered).map_err(internal)? {
            Action::PublishOutcome => {}
            action => return Err(internal(format!("unexpected {action:?} before a checkpoint"))),
        }
        let manifest_id = self.manifest_id(manifest)?;
        let (size, action) = self.end(label, Some((manifest, manifest_id)))?;
        if action == Action::Finish(Finish::Fenced) {
            return Err(RepoError::Fenced(ending));
        }
        self.writer
            .counts()
            .bytes_stored
            .fetch_add(size, std::sync::atomic::Ordering::Relaxed);
        self.absent = self.absent_packs();
        self.id = next.id;
        self.writer = next.writer.clone();
        self.lock = next.lock;
        self.lock_path = next.lock_path;
        self.next_run = 0;
        self.next_object = 1;
        self.last_run = Instant::now();
        self.last_poll = Instant::now();
        self.validate(action)?;
        Ok((ending, next.writer))
    }

    fn manifest_id(&self, encoded: &[u8]) -> Result<ChunkId, RepoError> {
        self.repo
            .keys
            .meta_id(encoded)
            .map_err(|error| object_error("sealing", "the manifest")(error.into()))
    }

    /// Publishes: the one commit point. Everything that the manifest reaches is durable, which `_durable` proves.
    ///
    /// # Errors
    /// When the outcome cannot be written, or maintenance fenced the session first.
    pub fn publish(
        mut self,
        _durable: Durable,
        manifest: &Manifest,
        label: &OutcomeLabel,
    ) -> Result<Published, RepoError> {
        match self.protocol.step(Event::Durable).map_err(internal)? {
            Action::PublishOutcome => {}
            action => return Err(internal(format!("unexpected {action:?} before publishing"))),
        }
        let encoded = manifest.encode();
        let id = self.manifest_id(&encoded)?;
        let (size, action) = self.end(label, Some((&encoded, id)))?;
        match action {
            Action::Finish(Finish::Committed) => {
                let stored = self
                    .writer
                    .counts()
                    .bytes_stored
                    .load(std::sync::atomic::Ordering::Relaxed);
                Ok(Published {
                    session: self.id,
                    bytes_stored: stored + size,
                })
            }
            Action::Finish(Finish::Fenced) => Err(RepoError::Fenced(self.id)),
            action => Err(internal(format!("unexpected {action:?} after publishing"))),
        }
    }

    /// Ends the session without a snapshot: what it uploaded and listed can be used by later ones. Best effort.
    pub fn abandon(mut self) {
        self.give_up();
    }

    /// As [`Self::abandon`], where threads may still hold the writer: what they add from now on is lost. A second call
    /// does nothing.
    pub fn give_up(&mut self) {
        let label = OutcomeLabel {
            kind: OutcomeKind::Abandon,
            source: None,
            flags: 0,
        };
        let _ = self.make_durable().and_then(|_| {
            self.protocol.step(Event::Durable).map_err(internal)?;
            self.end(&label, None)
        });
    }

    /// Creates the outcome. Returns its size, and what comes after it.
    fn end(&mut self, label: &OutcomeLabel, manifest: Option<(&[u8], ChunkId)>) -> Result<(u64, Action), RepoError> {
        let repo = self.repo;
        let _commit = HostLock::take(&repo.state_dir.join("commit.lock"))?;
        if self.history_listed.elapsed() > LISTING_FRESH {
            repo.sync_outcomes(&mut HistoryState::default())?;
        }
        let (sequence, previous) = next_in_chain(repo)?;
        let outcome = Outcome {
            kid: repo.kid,
            created: host::now(),
            kind: label.kind,
            session: self.id,
            accepted: if self.next_run == 0 {
                Vec::new()
            } else {
                vec![(0, self.next_run - 1)]
            },
            run: None,
            manifest: manifest.map(|(bytes, id)| (id, bytes.len() as u64)),
            sequence,
            previous,
            acked: self.protocol.acked().copied().collect(),
            pins: self.parents.clone(),
            source: label.source,
            flags: label.flags,
            chain_floors: Vec::new(),
        };
        let keys = self.writer.session_keys();
        let object_id = host::random();
        let sealed = outcome
            .encode(
                manifest.map(|(bytes, _)| (bytes, &keys.meta.0, &keys.meta_secret)),
                &repo.keys,
                &repo.signer,
                object_id,
            )
            .map_err(object_error("sealing", "the snapshot"))?;
        let event = publish_outcome(repo, &outcome, object_id, &sealed)?;
        let action = self.protocol.step(event).map_err(internal)?;
        if action == Action::Finish(Finish::Fenced) {
            repo.index.end_session(&self.id, SessionEnd::Superseded)?;
        } else {
            repo.index.accept_session(&self.id, &outcome.accepted)?;
            repo.index.end_session(&self.id, SessionEnd::Ended)?;
        }
        let _ = std::fs::remove_file(&self.lock_path);
        Ok((sealed.len() as u64, action))
    }
}

/// Creates `snap/<sid>`, tells our own landed attempt from a fence, and puts the outcome into the mirror.
fn publish_outcome(repo: &Repo, outcome: &Outcome, object_id: [u8; 16], sealed: &[u8]) -> Result<Event, RepoError> {
    let name = ObjectName::Outcome(outcome.session);
    let created = repo
        .store
        .create(&store_key(&name), Bytes::copy_from_slice(sealed))
        .map_err(store_error("publishing the snapshot"))?;
    Ok(match created {
        Created::New => {
            keep_own(repo, outcome, sealed)?;
            Event::OutcomeCreated
        }
        Created::Exists => {
            let bytes = read_whole(&*repo.store, &name, "the outcome of this session")?;
            let stored = Outcome::decode(&bytes, &outcome.session, &repo.keys, &repo.verifier)
                .map_err(object_error("opening", &name))?;
            repo.keep_outcome(&stored, &bytes)?;
            Event::OutcomeExists {
                ours: stored.object_id == object_id,
            }
        }
    })
}

fn keep_own(repo: &Repo, outcome: &Outcome, sealed: &[u8]) -> Result<(), RepoError> {
    let stored = Outcome::decode(sealed, &outcome.session, &repo.keys, &repo.verifier)
        .map_err(object_error("opening", ObjectName::Outcome(outcome.session)))?;
    repo.keep_outcome(&stored, sealed)?;
    repo.index.raise_head(&outcome.kid, outcome.sequence, &stored.hash)?;
    Ok(())
}

/// Returns the number and the back link of this key's next outcome.
fn next_in_chain(repo: &Repo) -> Result<(u64, Option<ObjectHash>), RepoError> {
    let newest = repo
        .index
        .outcomes()?
        .into_iter()
        .filter(|outcome| outcome.kid == repo.kid)
        .max_by_key(|outcome| (outcome.sequence, outcome.session))
        .map(|outcome| (outcome.sequence, outcome.hash));
    let head = repo.index.head(&repo.kid)?;
    Ok(match newest.max(head) {
        Some((sequence, hash)) => (sequence.saturating_add(1), Some(hash)),
        None => (0, None),
    })
}

fn stored_as(ty: BlobType) -> StoredAs {
    match ty {
        BlobType::Data => StoredAs::Data,
        BlobType::Node => StoredAs::Node,
        BlobType::List => StoredAs::List,
        BlobType::Manifest => StoredAs::Manifest,
    }
}

/// Builds the sorted content of a run from the packs that it lists.
pub fn run_content(packs: &[OwnPack]) -> RunContent {
    let mut packs: Vec<&OwnPack> = packs.iter().collect();
    packs.sort_by_key(|pack| pack.pack);
    let mut content = RunContent::default();
    for (pack_ix, own) in packs.into_iter().enumerate() {
        let pack_ix = pack_ix as u32;
        let first = content.slots.len() as u32;
        content.slots.extend_from_slice(&own.slots);
        content.packs.push(RunPack {
            pack: own.pack,
            session: own.session,
            size: own.size,
            blob_count: own.records.len() as u32,
            kind: own.kind,
            slots: first..content.slots.len() as u32,
            crc64nvme: own.crc64nvme,
            body_hash24: own.body_hash24,
        });
        for record in &own.records {
            let stored_as = match (record.ty, record.base) {
                (_, Some(base)) => {
                    content.deltas.push(RunDelta {
                        id: record.id,
                        pack_ix,
                        base,
                    });
                    StoredAs::Delta
                }
                (ty, None) => stored_as(ty),
            };
            content.chunks.push(RunChunk {
                id: record.id,
                pack_ix,
                offset: record.offset,
                stored_as,
                stored_len: record.stored_len,
            });
        }
    }
    content.chunks.sort_unstable_by_key(|chunk| (chunk.id, chunk.pack_ix));
    content.deltas.sort_unstable_by_key(|delta| (delta.id, delta.pack_ix));
    content
}

/// Ends sessions of this machine whose process is gone, so that what they uploaded can be used. Returns whether there
/// were any.
fn recover(repo: &Repo) -> Result<bool, RepoError> {
    let mut any = false;
    for open in repo.index.open_sessions()? {
        let lock_path = session_lock(repo, &open.session);
        // The kernel gives the lock back when the process that held it is gone.
        let Some(_lock) = HostLock::try_take(&lock_path)? else {
            continue;
        };
        any = true;
        repo.sync_outcomes(&mut HistoryState::default())?;
        let session = open.session;
        if repo.index.outcome_bytes(&session)?.is_none() && is_registered(repo, &session)? {
            end_crashed(repo, &session)?;
        }
        if let Some(stored) = repo.stored_outcome(&session)? {
            repo.index.accept_session(&session, &stored.outcome.accepted)?;
        }
        repo.index.end_session(&session, SessionEnd::Ended)?;
        let _ = std::fs::remove_file(&lock_path);
    }
    Ok(any)
}

/// A session that died before its registration was durable owns nothing under its name.
fn is_registered(repo: &Repo, session: &SessionId) -> Result<bool, RepoError> {
    match repo.store.stat(&store_key(&ObjectName::Session(*session, 0))) {
        Ok(_) => Ok(true),
        Err(StoreError {
            class: Failure::NotFound,
            ..
        }) => Ok(false),
        Err(error) => Err(store_error("looking for an interrupted session")(error)),
    }
}

/// Publishes the outcome "abandon" for a crashed session of this machine, accepting the runs that it wrote.
fn end_crashed(repo: &Repo, session: &SessionId) -> Result<(), RepoError> {
    let _commit = HostLock::take(&repo.state_dir.join("commit.lock"))?;
    let numbers: BTreeSet<u32> = list_names(&*repo.store, &format!("idx/0-{session}-"))?
        .into_iter()
        .filter_map(|(name, _)| {
            if let ObjectName::Run(_, number) = name {
                Some(number)
            } else {
                None
            }
        })
        .collect();
    let mut accepted: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        let name = ObjectName::Run(*session, number);
        let bytes = read_whole(&*repo.store, &name, "an index run")?;
        if run::decode_l0(&bytes, &name.to_string(), &repo.keys, &repo.verifier).is_err() {
            continue;
        }
        match accepted.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => accepted.push((number, number)),
        }
    }
    let (sequence, previous) = next_in_chain(repo)?;
    let outcome = Outcome {
        kid: repo.kid,
        created: host::now(),
        kind: OutcomeKind::Abandon,
        session: *session,
        accepted,
        run: None,
        manifest: None,
        sequence,
        previous,
        acked: Vec::new(),
        pins: Vec::new(),
        source: None,
        flags: 0,
        chain_floors: Vec::new(),
    };
    let sealed = outcome
        .encode(None, &repo.keys, &repo.signer, host::random())
        .map_err(object_error("sealing", "the end of an interrupted session"))?;
    let name = ObjectName::Outcome(*session);
    match repo
        .store
        .create(&store_key(&name), Bytes::copy_from_slice(&sealed))
        .map_err(store_error("ending an interrupted session"))?
    {
        Created::New => keep_own(repo, &outcome, &sealed),
        // It had committed after all, or maintenance fenced it: take over what is there.
        Created::Exists => repo.sync_outcomes(&mut HistoryState::default()),
    }
}
