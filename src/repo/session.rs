//! One writing session: carries out what `pure::protocol::backup` decides, lists durable packs in runs, and publishes.

use super::at_once::at_once;
use super::error::{RepoError, object_error, store_error};
use super::index::{IndexError, OpenSession, OwnPack, SessionEnd};
use super::lock::HostLock;
use super::open::{Repo, create_new, list_names, read_whole, store_key};
use super::pack_writer::{CurrentWriter, Durable, PackWriter, WriterCounts};
use super::presence::stored_size;
use super::snapshots::HistoryState;
use crate::edge::host;
use crate::edge::store::{Created, Failure, Stat, StoreError};
use crate::pure::base::with_causes;
use crate::pure::crypto::sign::role;
use crate::pure::format::blob::BlobType;
use crate::pure::format::manifest::Manifest;
use crate::pure::format::name::ObjectName;
use crate::pure::format::outcome::{Outcome, OutcomeKind, RunDescriptor, StoredOutcome, flag};
use crate::pure::format::run::{self, RunChunk, RunContent, RunDelta, RunIdentity, RunPack, StoredAs};
use crate::pure::format::session::{Acknowledgement, Registration, SessionRole};
use crate::pure::id::{ChunkId, KeyId, ObjectHash, PackId, SessionId, SourceId};
use crate::pure::protocol::backup::{Action, BackupProtocol, Event, Finish};
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A run is written when this many blobs wait to be listed (they take some 200 bytes of memory each until then) …
const RUN_RECORDS: u64 = 65_536;
/// … or this long after the last one (format-spec chapter 8).
const RUN_EVERY: Duration = Duration::from_secs(30 * 60);
/// How often `gc/` is looked at during work (B9).
const POLL_EVERY: Duration = Duration::from_secs(15 * 60);
/// A session object is written at least this often, so that the session does not look dead: well within the three hours of
/// format-spec chapter 9, with polls in between.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(150 * 60);
/// A listing of outcomes younger than this is good enough to number the next one.
const LISTING_FRESH: Duration = Duration::from_secs(60);

/// A writer, and the number and hash of its last outcome that may be missing (format-spec chapter 9.2.3).
pub type ChainFloor = (KeyId, u64, ObjectHash);

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
    last_object: Instant,
    history_listed: Instant,
    notes: Vec<String>,
    /// Packs that were found absent before the last checkpoint, in words.
    absent: Vec<String>,
    /// The local index has failed after something had become durable: what it knows of this key's outcomes may be old.
    index_failed: bool,
    lock: HostLock,
    lock_path: PathBuf,
}

/// A published snapshot.
#[derive(Debug)]
pub struct Published {
    pub session: SessionId,
    pub bytes_stored: u64,
    /// What went wrong beside it.
    pub notes: Vec<String>,
}

/// What an outcome of maintenance says beside that its session has ended.
#[derive(Clone, Debug, Default)]
pub struct Maintained {
    /// The run that it has made out of others.
    pub run: Option<RunDescriptor>,
    /// Outcomes of the key up to and including the number may be missing from now on. Ascending by key.
    pub chain_floors: Vec<(KeyId, u64, ObjectHash)>,
}

impl Maintained {
    /// Says that the runs of level 0 which the outcome accepts stand for these, which cannot be read any more (format-spec chapter
    /// 9.2.2): a descriptor without parts is no run.
    pub fn replacing(inputs: Vec<String>) -> Maintained {
        let run = (!inputs.is_empty()).then(|| RunDescriptor {
            level: 1,
            parts: Vec::new(),
            inputs,
            dropped_packs: Vec::new(),
        });
        Maintained {
            run,
            ..Maintained::default()
        }
    }
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
            last_object: Instant::now(),
            history_listed: if recovered { Instant::now() } else { history_listed },
            notes: Vec::new(),
            absent: Vec::new(),
            index_failed: false,
            lock,
            lock_path,
        };
        // Room taken by writers that were killed. Not to be had is no reason not to go on.
        let _ = repo.store.sweep();
        session.begin_with(parents.into_iter().collect())?;
        // What is condemned must be known first.
        if !session.index_failed && !chaos!("nothing-is-adopted") {
            let adopted = session.adopt();
            session.without_index(adopted)?;
        }
        Ok(session)
    }

    /// Steps B2 to B6.
    fn begin_with(&mut self, parents: Vec<SessionId>) -> Result<(), RepoError> {
        let Action::Register { pins } = self.protocol.step(Event::Begin { parents }).map_err(internal)? else {
            return Err(internal("a session does not begin with its registration"));
        };
        self.register(self.id, pins)?;
        let action = self.protocol.step(Event::Registered).map_err(internal)?;
        self.validate(action)
    }

    /// Step B2, for this session or for the one that goes on after it.
    fn register(&mut self, id: SessionId, pins: Vec<SessionId>) -> Result<(), RepoError> {
        let repo = self.repo;
        let (machine, boot) = (host::machine_id(), host::boot_id());
        let noted = repo
            .index
            .start_session(&id, &machine, &boot, std::process::id(), host::now());
        self.without_index(noted)?;
        let registration = Registration {
            kid: repo.kid,
            created: host::now(),
            role: self.role,
            pins,
            software: concat!("larder/", env!("CARGO_PKG_VERSION")).into(),
            host: Some(host::host_name()),
        };
        let body = registration
            .encode(&id, &repo.keys, &repo.signer, host::random())
            .map_err(object_error("sealing", "the session"))?;
        create_new(
            &*repo.store,
            &ObjectName::Session(id, 0),
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
                    let (dropped, kept) = repo.sync_drops(&mut state)?;
                    self.without_index(kept)?;
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
                    generations: self.without_index(repo.sync_condemned())?.unwrap_or_default(),
                },
                Action::Acknowledge { acked } => {
                    self.acknowledge(acked)?;
                    Event::Acknowledged
                }
                Action::SyncIndex => {
                    let sync = self.without_index(repo.sync_index())?.unwrap_or_default();
                    if !sync.broken.is_empty() || !sync.missing.is_empty() {
                        repo.index.set_incomplete();
                    }
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

    fn acknowledge(&mut self, acked: Vec<SessionId>) -> Result<(), RepoError> {
        if chaos!("acknowledgement-is-not-written") {
            return Ok(());
        }
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
        self.last_object = Instant::now();
        Ok(())
    }

    /// Goes on after a failure of the local index when what it was to be told is durable already: it is a cache, and learns
    /// the rest from the repository.
    fn after_durable(&mut self, told: Result<(), IndexError>) {
        if let Err(error) = told {
            self.index_trouble(&error);
        }
    }

    /// Takes a failure of the local index for "not known" and goes on without it: nothing is looked up from then on, because
    /// what it says may not be true any more, and what is stored already is stored again.
    fn without_index<T, E: Into<RepoError>>(&mut self, done: Result<T, E>) -> Result<Option<T>, RepoError> {
        match done.map_err(Into::into) {
            Ok(value) => Ok(Some(value)),
            Err(RepoError::Index(error)) => {
                self.writer.stop_lookups();
                self.index_trouble(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn index_trouble(&mut self, error: &IndexError) {
        if !std::mem::replace(&mut self.index_failed, true) {
            self.notes.push(format!(
                "the local index failed; the backup goes on, and the next one may take longer: {}",
                with_causes(error)
            ));
        }
    }

    /// Takes over packs that an earlier run of this machine made durable but never listed (format-spec chapter 16).
    fn adopt(&mut self) -> Result<(), RepoError> {
        let repo = self.repo;
        let mut adopted = 0u64;
        let left = self.left_over_packs()?;
        let sizes = at_once(&left, |(_, pack)| {
            let name = ObjectName::Pack(pack.kind, pack.pack, pack.session);
            stored_size(&*repo.store, &store_key(&name))
        });
        for ((dead, pack), size) in left.into_iter().zip(sizes) {
            match size? {
                Some(size) if size == u64::from(pack.size) => {
                    // The index refuses packs that are condemned, or listed by now, or adopted by another process.
                    if repo.index.adopt_packs(&[pack.pack], &dead, &self.id)?.is_empty() {
                        continue;
                    }
                    let id = pack.pack;
                    match self.writer.adopt(pack)? {
                        true => adopted += 1,
                        false => repo.index.forget_pack(&id)?,
                    }
                }
                _ => repo.index.forget_pack(&pack.pack)?,
            }
        }
        if adopted > 0 {
            self.notes.push(format!(
                "took over {adopted} packs that an interrupted run had uploaded"
            ));
        }
        Ok(())
    }

    /// Packs of this key's sessions of this machine that have ended, or whose process is gone, and whose they are. Those of
    /// another key that uses the same cache are its own to list: nobody accepts a run that speaks of another writer's packs.
    fn left_over_packs(&self) -> Result<Vec<(SessionId, OwnPack)>, RepoError> {
        let repo = self.repo;
        let elsewhere: HashSet<SessionId> = repo
            .index
            .open_sessions()?
            .into_iter()
            .filter(runs_elsewhere)
            .map(|open| open.session)
            .collect();
        let mut packs = Vec::new();
        for session in repo.index.sessions_with_packs()? {
            if session != self.id
                && is_own(repo, &session)
                && !elsewhere.contains(&session)
                && HostLock::try_take(&session_lock(repo, &session))?.is_some()
            {
                let mut left = repo.index.unlisted_packs(&session)?;
                left.retain(|pack| is_own(repo, &pack.session));
                packs.extend(left.into_iter().map(|pack| (session, pack)));
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
        if let Some(error) = self.writer.take_index_trouble() {
            self.index_trouble(&error);
        }
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

    /// Step B9. What is acknowledged also serves as the heartbeat; when there is nothing to acknowledge for long, the session
    /// says that it lives (format-spec chapter 9).
    ///
    /// # Errors
    /// As [`Self::tick`], which calls this when it is due.
    pub fn poll(&mut self) -> Result<(), RepoError> {
        self.protocol.step(Event::PollDue).map_err(internal)?;
        let (generations, touched) = match self.look_for_condemned() {
            Ok(seen) => seen,
            // Without the index it is not known what may still be referred to, so nothing is acknowledged: sweeps wait.
            Err(RepoError::Index(error)) => {
                self.index_trouble(&error);
                Default::default()
            }
            Err(error) => return Err(error),
        };
        match self
            .protocol
            .step(Event::Polled { generations, touched })
            .map_err(internal)?
        {
            Action::Acknowledge { acked } => {
                self.acknowledge(acked)?;
                self.protocol.step(Event::Acknowledged).map_err(internal)?;
            }
            _ if self.last_object.elapsed() >= HEARTBEAT_EVERY => {
                self.acknowledge(self.protocol.acked().copied().collect())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the generations that exist, and those among the new ones that condemn a pack which this session has used. New
    /// is what this session has not acknowledged: the index may have it from another process.
    fn look_for_condemned(&self) -> Result<(Vec<SessionId>, Vec<SessionId>), RepoError> {
        let index = &self.repo.index;
        let generations = self.repo.sync_condemned()?;
        // After the index has taken them in: from now on nobody finds a pack that they condemn.
        let used = self.writer.used();
        let acked: HashSet<&SessionId> = self.protocol.acked().collect();
        let mut touched = Vec::new();
        for generation in generations.iter().filter(|generation| !acked.contains(generation)) {
            if index.condemned_by(generation)?.iter().any(|pack| used.contains(pack)) {
                touched.push(*generation);
            }
        }
        Ok((generations, touched))
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
        // No reader would accept it, and with it goes everything that the run lists.
        if packs.iter().any(|pack| !is_own(repo, &pack.session)) {
            return Err(internal("a run would list another writer's packs"));
        }
        let ids: Vec<PackId> = packs.iter().map(|pack| pack.pack).collect();
        let (name, number) = self.create_run(packs)?;
        self.after_durable(
            repo.index
                .packs_listed(&name.to_string(), &self.id, &repo.kid, number, &ids),
        );
        Ok(())
    }

    /// Lists packs of any session that were found at the store and that no run describes (format-spec chapter 16.8). Publish, and sync
    /// the index afterwards: it does not know them yet.
    ///
    /// # Errors
    /// When the key may not maintain (readers would not accept such a run), or the store fails.
    pub fn list_found(&mut self, packs: Vec<OwnPack>) -> Result<(), RepoError> {
        self.repo.require(role::MAINTAIN, "list packs of other writers")?;
        self.create_run(packs).map(drop)
    }

    fn create_run(&mut self, packs: Vec<OwnPack>) -> Result<(ObjectName, u32), RepoError> {
        let repo = self.repo;
        let number = self.next_run;
        let name = ObjectName::Run(self.id, number);
        let identity = RunIdentity {
            kid: repo.kid,
            created: host::now(),
            session: self.id,
            number,
        };
        let content = run_content(&packs);
        // The content says the same again: megabytes, when files are many.
        drop(packs);
        let body = run::encode_l0(&content, &identity, &repo.keys, &repo.signer, host::random())
            .map_err(object_error("sealing", &name))?;
        let size = body.len() as u64;
        create_new(&*repo.store, &name, body, "an index run")?;
        self.writer
            .counts()
            .bytes_stored
            .fetch_add(size, std::sync::atomic::Ordering::Relaxed);
        self.next_run += 1;
        self.after_durable(repo.index.set_next_run(&self.id, self.next_run));
        Ok((name, number))
    }

    /// Uploads everything that is open, and proves it.
    ///
    /// # Errors
    /// The first repository error of the session.
    pub fn make_durable(&mut self) -> Result<Durable, RepoError> {
        let durable = self.writer.finish()?;
        if !chaos!("last-run-is-not-written") {
            self.write_runs(RUN_RECORDS)?;
        }
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
        self.register(next.id, pins)?;
        match self.protocol.step(Event::Registered).map_err(internal)? {
            Action::PublishOutcome => {}
            action => return Err(internal(format!("unexpected {action:?} before a checkpoint"))),
        }
        let manifest_id = self.manifest_id(manifest)?;
        let (size, action) = self.end(label, Some((manifest, manifest_id)), Maintained::default())?;
        if action == Action::Finish(Finish::Fenced) {
            return Err(RepoError::Fenced(ending));
        }
        self.writer
            .counts()
            .bytes_stored
            .fetch_add(size, std::sync::atomic::Ordering::Relaxed);
        self.absent = self.absent_packs();
        if let Some(error) = self.writer.take_index_trouble() {
            self.index_trouble(&error);
        }
        if self.index_failed {
            next.writer.stop_lookups();
        }
        self.id = next.id;
        self.writer = next.writer.clone();
        self.lock = next.lock;
        self.lock_path = next.lock_path;
        self.next_run = 0;
        self.next_object = 1;
        self.last_run = Instant::now();
        self.last_poll = Instant::now();
        self.last_object = Instant::now();
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
        let (size, action) = self.end(label, Some((&encoded, id)), Maintained::default())?;
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
                    notes: self.take_notes(),
                })
            }
            Action::Finish(Finish::Fenced) => Err(RepoError::Fenced(self.id)),
            action => Err(internal(format!("unexpected {action:?} after publishing"))),
        }
    }

    /// Ends a session of maintenance: what it has copied counts from here on. False if somebody took the session for dead.
    ///
    /// # Errors
    /// When the outcome cannot be written.
    pub fn publish_maintenance(mut self, _durable: Durable, with: Maintained) -> Result<bool, RepoError> {
        self.protocol.step(Event::Durable).map_err(internal)?;
        let label = OutcomeLabel {
            kind: OutcomeKind::Maintenance,
            source: None,
            flags: 0,
        };
        let (_, action) = self.end(&label, None, with)?;
        Ok(action == Action::Finish(Finish::Committed))
    }

    /// Returns the generations that this session has acknowledged.
    pub fn acknowledged(&self) -> Vec<SessionId> {
        self.protocol.acked().copied().collect()
    }

    /// Ends the session without a snapshot: what it uploaded and listed can be used by later ones. Best effort.
    pub fn abandon(mut self) {
        self.give_up();
    }

    /// As [`Self::abandon`], where threads may still hold the writer: what they add from now on is lost. A second call
    /// does nothing.
    pub fn give_up(&mut self) {
        let label = OutcomeLabel {
            kind: end_without_snapshot(self.repo),
            source: None,
            flags: 0,
        };
        let _ = self.make_durable().and_then(|_| {
            self.protocol.step(Event::Durable).map_err(internal)?;
            self.end(&label, None, Maintained::default())
        });
    }

    /// Creates the outcome. Returns its size, and what comes after it.
    fn end(
        &mut self,
        label: &OutcomeLabel,
        manifest: Option<(&[u8], ChunkId)>,
        with: Maintained,
    ) -> Result<(u64, Action), RepoError> {
        let repo = self.repo;
        let _commit = HostLock::take(&repo.state_dir.join("commit.lock"))?;
        if self.history_listed.elapsed() > LISTING_FRESH {
            match repo.sync_outcomes(&mut HistoryState::default()) {
                Err(RepoError::Index(error)) => self.index_trouble(&error),
                synced => synced?,
            }
        }
        if let Some((bytes, id)) = &manifest {
            repo.remember_manifest(id, bytes);
        }
        let (sequence, previous) = if self.index_failed {
            next_in_stored_chain(repo)?
        } else {
            next_in_chain(repo)?
        };
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
            run: with.run,
            manifest: manifest.map(|(bytes, id)| (id, bytes.len() as u64)),
            sequence,
            previous,
            acked: self.protocol.acked().copied().collect(),
            pins: self.parents.clone(),
            source: label.source,
            flags: label.flags,
            chain_floors: with.chain_floors,
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
        let (event, stored) = publish_outcome(repo, &outcome, object_id, sealed)?;
        let action = self.protocol.step(event).map_err(internal)?;
        let is_fenced = action == Action::Finish(Finish::Fenced);
        // Ended, one way or the other; what the local index misses of it, the next session makes up for (`recover`). What a
        // fence did not accept may be adopted by then.
        if let Err(error) = keep_outcome(repo, &stored, !is_fenced) {
            match error {
                RepoError::Index(error) => self.index_trouble(&error),
                error => return Err(error),
            }
        }
        let (stored, bytes) = stored;
        self.after_durable(repo.index.accept_session(&self.id, &stored.outcome.accepted));
        let end = if is_fenced {
            SessionEnd::Superseded
        } else {
            SessionEnd::Ended
        };
        self.after_durable(repo.index.end_session(&self.id, end));
        let _ = std::fs::remove_file(&self.lock_path);
        Ok((bytes.len() as u64, action))
    }
}

/// An outcome and its bytes.
type Stored = (StoredOutcome, Vec<u8>);

/// Creates `snap/<sid>` and tells our own landed attempt from a fence. Returns the outcome that is there now.
fn publish_outcome(
    repo: &Repo,
    outcome: &Outcome,
    object_id: [u8; 16],
    sealed: Vec<u8>,
) -> Result<(Event, Stored), RepoError> {
    let name = ObjectName::Outcome(outcome.session);
    let created = repo
        .store
        .create(&store_key(&name), Bytes::copy_from_slice(&sealed))
        .map_err(store_error("publishing the snapshot"))?;
    Ok(match created {
        Created::New => (Event::OutcomeCreated, opened_own(repo, outcome, sealed)?),
        Created::Exists => {
            let stored = repo.fetch_outcome(&outcome.session)?;
            let ours = stored.0.object_id == object_id || chaos!("fence-is-own-commit");
            (Event::OutcomeExists { ours }, stored)
        }
    })
}

fn opened_own(repo: &Repo, outcome: &Outcome, sealed: Vec<u8>) -> Result<Stored, RepoError> {
    let stored = Outcome::decode(&sealed, &outcome.session, &repo.keys, &repo.verifier)
        .map_err(object_error("opening", ObjectName::Outcome(outcome.session)))?;
    Ok((stored, sealed))
}

/// Puts the outcome of an own session into the mirror.
fn keep_outcome(repo: &Repo, (stored, bytes): &Stored, is_own: bool) -> Result<(), RepoError> {
    repo.keep_outcome(stored, bytes)?;
    if is_own {
        let outcome = &stored.outcome;
        repo.index.raise_head(&outcome.kid, outcome.sequence, &stored.hash)?;
    }
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
        Some((sequence, hash)) => (following(sequence)?, Some(hash)),
        None => (0, None),
    })
}

fn following(sequence: u64) -> Result<u64, RepoError> {
    sequence
        .checked_add(u64::from(!chaos!("number-is-given-twice")))
        .ok_or_else(|| internal("this key has used up its outcome numbers"))
}

/// As [`next_in_chain`], when the local index could not keep what was new: this key's outcomes that it does not know are read.
fn next_in_stored_chain(repo: &Repo) -> Result<(u64, Option<ObjectHash>), RepoError> {
    let known = repo.index.outcomes().unwrap_or_default();
    let mut newest = repo.index.head(&repo.kid).unwrap_or_default();
    for outcome in known.iter().filter(|outcome| outcome.kid == repo.kid) {
        newest = newest.max(Some((outcome.sequence, outcome.hash)));
    }
    let mut unread: Vec<SessionId> = repo.list_snap()?.into_iter().map(|(session, _)| session).collect();
    unread.retain(|session| is_own(repo, session) && known.iter().all(|outcome| outcome.session != *session));
    for fetched in at_once(&unread, |session| repo.fetch_outcome(session)) {
        match fetched {
            Ok((stored, _)) if stored.outcome.kid == repo.kid => {
                newest = newest.max(Some((stored.outcome.sequence, stored.hash)));
            }
            Ok(_) => {}
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match newest {
        Some((sequence, hash)) => (following(sequence)?, Some(hash)),
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
    content
        .chunks
        .reserve_exact(packs.iter().map(|pack| pack.records.len()).sum());
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
        // Another key's sessions are its own to end. One of another machine may be alive: this state was copied from it.
        if !is_own(repo, &open.session) || runs_elsewhere(&open) {
            continue;
        }
        let lock_path = session_lock(repo, &open.session);
        // The kernel gives the lock back when the process that held it is gone.
        let Some(_lock) = HostLock::try_take(&lock_path)? else {
            continue;
        };
        if chaos!("own-crashed-session-stays-open") {
            continue;
        }
        any = true;
        repo.sync_outcomes(&mut HistoryState::default())?;
        let session = open.session;
        if repo.index.outcome_bytes(&session)?.is_none() && is_registered(repo, &session)? {
            end_session_of_another(repo, &session, End::Abandon)?;
        }
        if let Some(stored) = repo.stored_outcome(&session)? {
            repo.index.accept_session(&session, &stored.outcome.accepted)?;
        }
        repo.index.end_session(&session, SessionEnd::Ended)?;
        let _ = std::fs::remove_file(&lock_path);
    }
    Ok(any)
}

/// Whether a session is of the key that the repository was opened with.
fn is_own(repo: &Repo, session: &SessionId) -> bool {
    session.writer_tag()[..] == repo.kid.as_bytes()[..4]
}

/// Whether a session was begun on another machine than this one, as far as can be known.
fn runs_elsewhere(open: &OpenSession) -> bool {
    let here = host::machine_id();
    here != [0; 16] && open.machine != [0; 16] && open.machine != here
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

/// How a session of this key ends that publishes no snapshot: each kind is for those who may sign it (format-spec chapter 9.2).
fn end_without_snapshot(repo: &Repo) -> OutcomeKind {
    if repo.roles & (role::WRITE | role::ADMIN) != 0 {
        OutcomeKind::Abandon
    } else {
        OutcomeKind::Maintenance
    }
}

/// How somebody else's session, or one whose process is gone, is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is this machine's, and its process is gone.
    Abandon,
    /// It seems dead.
    Fence,
    /// Its key is revoked: nothing that it has written counts.
    Refuse,
}

/// Publishes the outcome of a session that does not do so itself, accepting the runs that it wrote. False if it has ended by
/// itself meanwhile.
pub(super) fn end_session_of_another(repo: &Repo, session: &SessionId, end: End) -> Result<bool, RepoError> {
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
    for number in numbers.into_iter().filter(|_| end != End::Refuse) {
        let name = ObjectName::Run(*session, number);
        let is_sound = match read_whole(&*repo.store, &name, "an index run") {
            Ok(bytes) => run::decode_l0(&bytes, &name.to_string(), &repo.keys, &repo.verifier).is_ok(),
            Err(error) if error.is_damage() => false,
            Err(error) => return Err(error),
        };
        if !is_sound && !chaos!("fence-accepts-broken-runs") {
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
        kind: match end {
            End::Abandon => end_without_snapshot(repo),
            End::Fence | End::Refuse => OutcomeKind::Fence,
        },
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
        Created::New => {
            keep_outcome(repo, &opened_own(repo, &outcome, sealed)?, true)?;
            Ok(true)
        }
        // It had committed after all, or somebody else fenced it: take over what is there.
        Created::Exists => {
            repo.sync_outcomes(&mut HistoryState::default())?;
            Ok(false)
        }
    }
}
