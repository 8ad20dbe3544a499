//! Making, finding and unlocking a repository (format-spec chapters on keys and config).

use super::again::READS_BEFORE_DAMAGE;
use super::error::{RepoError, object_error, store_error};
use super::index::{LocalIndex, NodeCache};
use super::parity::ParityStore;
use super::standing::{Standing, state_name};
use crate::edge::host;
use crate::edge::store::{Created, Listed, Lock, Part, Prefix, Store, StoreKey};
use crate::pure::base::memory::IndexShare;
use crate::pure::base::with_causes;
use crate::pure::crypto::kdf::{self, Cost};
use crate::pure::crypto::sign::{WriterKey, role};
use crate::pure::crypto::{Domain, EpochSecrets, KeyRing, Secret, Signer, Verifier};
use crate::pure::format::config::{Config, ObjectLock};
use crate::pure::format::envelope;
use crate::pure::format::grant::{self, Grant, KidRow};
use crate::pure::format::name::ObjectName;
use crate::pure::format::protector::{self, Protector, ProtectorKind};
use crate::pure::id::{KeyId, ObjectHash, PlaceId, RepoId};
use crate::pure::plan::lock::LOCKED;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// At most this many passwords' protectors are tried on unlock, so that planted ones cannot cost hours (X13) …
const PASSWORDS_TRIED_MAX: usize = 8;
/// … and this many of key files or commands, of which every machine may have one: each costs a request, on a machine that has not
/// seen it.
const KEYS_TRIED_MAX: usize = 1000;

/// What the user unlocks a repository with.
#[derive(Clone)]
pub enum Credential {
    /// UTF-8 bytes as entered.
    Password(zeroize::Zeroizing<Vec<u8>>),
    /// The 32 bytes of a key file.
    KeyFile(Secret),
    /// The 32 bytes that a program printed.
    KeyCommand(Secret),
}

impl Credential {
    /// Returns the word for what this is.
    pub fn noun(&self) -> &'static str {
        match self {
            Credential::Password(_) => "password",
            Credential::KeyFile(_) => "key file",
            Credential::KeyCommand(_) => "key command",
        }
    }

    /// The 32 bytes that open a protector of this kind. `None` if it is for another sort of credential.
    ///
    /// # Errors
    /// When the cost that the protector asks for is refused.
    pub fn ikm(&self, kind: &ProtectorKind) -> Option<Result<Secret, kdf::CostRefused>> {
        match (kind, self) {
            (ProtectorKind::Passphrase { salt, cost }, Credential::Password(password)) => {
                Some(kdf::argon2id(password, salt, *cost))
            }
            (ProtectorKind::KeyFile, Credential::KeyFile(secret))
            | (ProtectorKind::Command, Credential::KeyCommand(secret)) => Some(Ok(secret.clone())),
            _ => None,
        }
    }

    /// Reads the text of a key file: 64 hex digits and a newline.
    pub fn from_key_file(text: &[u8]) -> Option<Credential> {
        let text = std::str::from_utf8(text).ok()?;
        let text = text.strip_suffix('\n').unwrap_or(text).to_ascii_lowercase();
        Some(Credential::KeyFile(Secret::from_slice(&crate::pure::id::from_hex(
            &text,
        )?)?))
    }
}

/// Where local state is kept and how much of it.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Root of the cache; each repository has a folder below it.
    pub cache_dir: PathBuf,
    /// Memory of the index.
    pub index: IndexShare,
    /// Ceiling of the tree node cache, bytes.
    pub node_cache_bytes_max: u64,
}

/// An unlocked repository.
pub struct Repo {
    pub store: Arc<dyn Store>,
    pub config: Config,
    /// Whether this place is the one to write to.
    pub standing: Standing,
    pub keys: Arc<KeyRing>,
    pub signer: Signer,
    pub verifier: Verifier,
    pub kid: KeyId,
    /// What the key holder's signing and grant keys are made of: for adding another password.
    pub kid_secret: Secret,
    /// What it was opened with.
    pub protector: ObjectName,
    pub roles: u32,
    pub index: Arc<LocalIndex>,
    pub nodes: NodeCache,
    /// Folder of this repository's local state.
    pub state_dir: PathBuf,
    /// What the admin keeps: every key holder's grant key and label.
    pub grant: Grant,
    pub grant_number: u64,
    /// Notes for the user that came up while opening (a rebuilt index, for instance).
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Repo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repo({} at {})", self.config.repo, self.store.location())
    }
}

/// Turns a format name into a store key.
pub fn store_key(name: &ObjectName) -> StoreKey {
    StoreKey::new(name.to_string()).expect("every name of the format is a valid store key")
}

/// What a configuration wants of the store.
pub fn lock_wish(lock: ObjectLock) -> Lock {
    Lock {
        mode: lock.mode,
        days: lock.retain_days,
        under: LOCKED,
    }
}

/// Turns a literal into a prefix.
pub fn prefix(text: &str) -> Prefix {
    Prefix::new(text).expect("prefixes are literals or ids")
}

/// Lists a prefix and keeps the names that version 1 knows.
pub fn list_names(store: &dyn Store, under: &str) -> Result<Vec<(ObjectName, Listed)>, RepoError> {
    let mut names = Vec::new();
    store
        .list(&prefix(under), &mut |listed| {
            if let Some(name) = ObjectName::parse(listed.key.as_str()) {
                names.push((name, listed));
            }
        })
        .map_err(store_error(format!("listing {under} of the repository")))?;
    Ok(names)
}

/// Creates an object; a taken name is an error (`what` says which object it was).
pub fn create_new(store: &dyn Store, name: &ObjectName, body: Vec<u8>, what: &str) -> Result<(), RepoError> {
    let key = store_key(name);
    match store
        .create(&key, Bytes::from(body))
        .map_err(store_error(format!("writing {what}")))?
    {
        Created::New => Ok(()),
        Created::Exists => Err(RepoError::Internal(format!("the new name {key} was taken already"))),
    }
}

/// Reads a whole object, if it has no more bytes than one of that name can have. What does not fit its own hash is read again (I-8);
/// if it stays so, whoever opens it says what is wrong.
pub fn read_whole(store: &dyn Store, name: &ObjectName, what: &str) -> Result<Bytes, RepoError> {
    let mut attempt = 1;
    loop {
        let bytes = store
            .read(&store_key(name), Part::AtMost(bytes_max(name)))
            .map_err(store_error(format!("reading {what}")))?;
        if is_intact(name, &bytes) || attempt == READS_BEFORE_DAMAGE {
            return Ok(bytes);
        }
        attempt += 1;
    }
}

/// Whether an object has the hash that it ends with.
fn is_intact(name: &ObjectName, bytes: &[u8]) -> bool {
    match name {
        ObjectName::Config(_) | ObjectName::Protector(..) => protector::is_intact(bytes),
        ObjectName::Pack(..) => true,
        _ => envelope::is_intact(bytes),
    }
}

/// How large an object can be (format-spec chapter 17): whoever can write to the store chooses how large it is.
pub fn bytes_max(name: &ObjectName) -> u64 {
    match name {
        ObjectName::Config(_) | ObjectName::ReplicaMark(_) | ObjectName::Protector(..) | ObjectName::Grant(..) => {
            1 << 20
        }
        ObjectName::Run(..) | ObjectName::RunPart(..) => 1 << 30,
        ObjectName::Pack(..) => 4 << 30,
        // Public and sealed CBOR of 16 MiB each, and a manifest's frame.
        _ => 64 << 20,
    }
}

/// Makes a repository with one admin key. Nothing counts until the configuration, which is written last.
///
/// # Errors
/// When the place holds a repository already, or cannot be written.
pub fn init(store: &dyn Store, credential: &Credential, cost: Cost) -> Result<RepoId, RepoError> {
    init_locked(store, credential, cost, None)
}

/// As [`init`], in a store that locks what it is given.
///
/// # Errors
/// As `init`, and when the store does not lock.
pub fn init_locked(
    store: &dyn Store,
    credential: &Credential,
    cost: Cost,
    lock: Option<ObjectLock>,
) -> Result<RepoId, RepoError> {
    store
        .prepare()
        .map_err(store_error("preparing the place for the repository"))?;
    if !list_names(store, "config/")?.is_empty() {
        return Err(RepoError::AlreadyARepository {
            location: store.location(),
        });
    }
    let abilities = store.probe().map_err(store_error("trying out what the store can do"))?;
    store.set_conditional(abilities.conditional_create);
    if let Some(lock) = lock {
        store
            .try_lock(lock.mode)
            .map_err(store_error("trying out whether the store locks objects"))?;
        store.set_lock(Some(lock_wish(lock)));
    }
    let now = host::now();
    let repo = RepoId(host::random());
    let kid = KeyId(host::random());
    let kid_secret = Secret::new(host::random());
    let signer = Signer::new(kid, &kid_secret, &repo);
    let fresh = || Some(Secret::new(host::random()));
    let secrets = EpochSecrets {
        epoch: 1,
        id: fresh(),
        cdc: fresh(),
        split: fresh(),
        idx: fresh(),
        meta: fresh(),
        data: fresh(),
        psk: fresh(),
        ..EpochSecrets::none(1)
    };
    let admin = WriterKey {
        kid,
        public_key: signer.public_key(),
        roles: role::ADMIN,
        from_config: 0,
        revoked_at: None,
        chain_end: None,
    };
    let mut config = Config::first(repo, now, admin);
    config.lock = lock;
    config.gc.conditional_writes = abilities.conditional_create;
    if !abilities.conditional_create {
        // Format-spec chapter 16: the weaker mode rests on intervals.
        config.gc.dead_seconds = 14 * 86_400;
    }
    if !abilities.conditional_create || !abilities.strong_listing {
        config.gc.grace_seconds = 86_400;
    }
    let grant_key = grant::grant_key(&kid_secret, &repo);
    let grant = Grant {
        issuer: kid,
        created: now,
        roles: role::ADMIN,
        repo,
        config_sequence: config.sequence,
        admin_keys: vec![signer.public_key()],
        epochs: vec![secrets],
        label: Some("admin".into()),
        kid_table: vec![KidRow {
            kid,
            grant_key: grant_key.clone(),
            label: "admin".into(),
        }],
    };
    let protector = make_protector(&repo, kid, &kid_secret, credential, cost, None)?;
    create_new(store, &ObjectName::Protector(kid, 0), protector.encode(), "the key")?;
    let sealed = grant.encode(&kid, 0, &grant_key, &signer, host::random());
    create_new(store, &ObjectName::Grant(kid, 0), sealed, "the grant")?;
    create_new(
        store,
        &ObjectName::Config(config.sequence),
        config.encode(&signer),
        "the configuration",
    )?;
    Ok(repo)
}

/// Wraps a key holder's secret for one more credential.
///
/// # Errors
/// When the cost is out of bounds.
pub fn make_protector(
    repo: &RepoId,
    kid: KeyId,
    kid_secret: &Secret,
    credential: &Credential,
    cost: Cost,
    hint: Option<String>,
) -> Result<Protector, RepoError> {
    let (kind, ikm) = match credential {
        Credential::Password(password) => {
            let salt = host::random();
            let ikm = kdf::argon2id(password, &salt, cost).map_err(|error| RepoError::Internal(error.to_string()))?;
            (ProtectorKind::Passphrase { salt, cost }, ikm)
        }
        Credential::KeyFile(secret) => (ProtectorKind::KeyFile, secret.clone()),
        Credential::KeyCommand(secret) => (ProtectorKind::Command, secret.clone()),
    };
    Ok(Protector::wrap(repo, kid, host::now(), kind, hint, &ikm, kid_secret))
}

/// A repository that has been found but not unlocked.
pub struct Locked {
    store: Arc<dyn Store>,
    config: Config,
    standing: Standing,
    index: Arc<LocalIndex>,
    state_dir: PathBuf,
    options: LocalOptions,
    notes: Vec<String>,
}

/// Remembers which repository lies at an address, so that another disk in its place is noticed.
fn location_file(cache_dir: &Path, location: &str) -> PathBuf {
    let digest = crate::pure::crypto::hash(location.as_bytes());
    cache_dir.join("locations").join(crate::pure::id::to_hex(&digest[..16]))
}

/// Forgets which repository lies at an address: a new one has been made there.
///
/// # Errors
/// When the cache cannot be written.
pub fn forget_location(cache_dir: &Path, location: &str) -> Result<(), RepoError> {
    match std::fs::remove_file(location_file(cache_dir, location)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(local(format!("forgetting what was at {location}"))(error))
        }
        _ => Ok(()),
    }
}

fn local(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> RepoError {
    let what = what.into();
    move |source| RepoError::Local { what, source }
}

fn private_dir(path: &Path) -> Result<(), RepoError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(local(format!("making the cache directory {}", path.display())))
}

/// Lists the configurations: the number of the newest, and the marks of replicas that lie beside them.
///
/// # Errors
/// When the store cannot be listed.
pub fn list_configs(store: &dyn Store) -> Result<(Option<u64>, Vec<PlaceId>), RepoError> {
    let (mut newest, mut marks) = (None, Vec::new());
    for (name, _) in list_names(store, "config/")? {
        match name {
            ObjectName::Config(number) => newest = newest.max(Some(number)),
            ObjectName::ReplicaMark(place) => marks.push(place),
            _ => {}
        }
    }
    Ok((newest, marks))
}

/// Finds a repository: reads its newest configuration and opens the local state for it.
///
/// # Errors
/// When there is none, when it is another one than before, or when it has gone back in time.
pub fn connect(store: Arc<dyn Store>, options: LocalOptions) -> Result<Locked, RepoError> {
    let location = store.location();
    let (newest, marks) = list_configs(&*store)?;
    let newest = newest.ok_or_else(|| RepoError::NotARepository {
        location: location.clone(),
    })?;
    let place = marks.first();
    let mut notes = Vec::new();
    if let Err(error) = private_dir(&options.cache_dir.join("locations")) {
        notes.push(format!("the cache cannot be used, working without one: {error}"));
    }
    let known_file = location_file(&options.cache_dir, &location);
    let known: Option<RepoId> = std::fs::read_to_string(&known_file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let mut opened = match &known {
        Some(repo) => Some(open_index(&options, repo, place, &mut notes)?),
        None => None,
    };
    let config_name = ObjectName::Config(newest);
    let remembered = match &opened {
        Some((index, _)) => index.recall(&config_name.to_string())?,
        None => None,
    };
    // A copy here that does not open is no damage of the repository: the store is asked.
    let remembered = remembered.and_then(|bytes| Config::decode(&bytes, newest, None).ok());
    let (config, fetched) = match remembered {
        Some(config) => (config, None),
        None => {
            let bytes = read_whole(&*store, &config_name, "the configuration")?;
            let config = Config::decode(&bytes, newest, None).map_err(object_error("opening", &config_name))?;
            (config, Some(bytes))
        }
    };
    if let Some(expected) = known
        && expected != config.repo
    {
        return Err(RepoError::OtherRepository {
            location,
            found: config.repo,
            expected,
        });
    }
    let (index, state_dir) = match opened.take() {
        Some(opened) => opened,
        None => open_index(&options, &config.repo, place, &mut notes)?,
    };
    let seen = index
        .recall("config-seen")?
        .and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    if let Some(seen) = seen
        && seen > newest
    {
        return Err(RepoError::ConfigRollback { seen, found: newest });
    }
    if let Some(bytes) = fetched {
        index.remember(&config_name.to_string(), &bytes)?;
        index.remember("config-seen", &newest.to_le_bytes())?;
    }
    if known.is_none() {
        // Losing this file costs a warning about a swapped repository, nothing else.
        let _ = std::fs::write(&known_file, config.repo.to_string());
    }
    // Nothing has been written so far.
    store.set_conditional(config.gc.conditional_writes);
    let standing = Standing::known_here(&config, &marks, &options.cache_dir);
    // What a replica's bucket does with locks, the configuration of the primary does not say.
    store.set_lock(config.lock.filter(|_| standing == Standing::Primary).map(lock_wish));
    Ok(Locked {
        store,
        config,
        standing,
        index: Arc::new(index),
        state_dir,
        options,
        notes,
    })
}

fn open_index(
    options: &LocalOptions,
    repo: &RepoId,
    place: Option<&PlaceId>,
    notes: &mut Vec<String>,
) -> Result<(LocalIndex, PathBuf), RepoError> {
    let dir = options.cache_dir.join(state_name(repo, place));
    let attempt = private_dir(&dir).and_then(|()| {
        let index = LocalIndex::open(&dir, repo, options.index)?;
        // A full disk is noticed now, when another place can be taken, and not in the middle of a backup.
        index.remember("opened-by", &std::process::id().to_le_bytes())?;
        Ok(index)
    });
    match attempt {
        Ok(index) => {
            if index.was_rebuilt().is_some() {
                notes.push("the local index was damaged; it has been set aside and is being rebuilt".into());
            }
            Ok((index, dir))
        }
        Err(error) => {
            notes.push(format!(
                "the cache cannot be used, working with a temporary one: {}",
                with_causes(&error)
            ));
            let index = LocalIndex::open_temporary(repo, options.index)?;
            let dir = index.directory().to_path_buf();
            Ok((index, dir))
        }
    }
}

/// What came of trying one protector.
enum Attempt {
    Opened(Secret),
    /// It is for this kind of credential and does not open.
    Failed,
    OfAnotherKind,
    Damaged,
}

impl Locked {
    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Unlocks with a password or key file.
    ///
    /// # Errors
    /// When no protector opens, or the key has no valid grant.
    pub fn unlock(self, credential: &Credential) -> Result<Repo, RepoError> {
        let (protector, kid, kid_secret) = self.open_protector(credential).map_err(|error| self.doubt(error))?;
        let repo = self.config.repo;
        let verifier = self.config.verifier();
        // Before its grant is looked for: a rotation since has left it without one that fits.
        if let Some(number) = verifier.writer(&kid).and_then(|writer| writer.revoked_at) {
            return Err(RepoError::KeyRevoked(number));
        }
        let grant_key = grant::grant_key(&kid_secret, &repo);
        let (grant, grant_number) = self.open_grant(&kid, &grant_key, &verifier)?;
        // What a key signs that the configuration does not have, nobody would accept: adding it was interrupted.
        if verifier.writer(&kid).is_none() {
            return Err(RepoError::NoGrant);
        }
        // On a machine that has never been here, the grant is what remembers how far the configuration had come.
        if grant.config_sequence > self.config.sequence {
            return Err(RepoError::ConfigRollback {
                seen: grant.config_sequence,
                found: self.config.sequence,
            });
        }
        self.require_trust(&grant)?;
        let keys = KeyRing::new(repo, grant.epochs.clone(), self.config.epoch)
            .map_err(|error| object_error("using", "the grant")(error.into()))?;
        let signer = Signer::new(kid, &kid_secret, &repo);
        let cache_key = grant::cache_key(&kid_secret, &repo);
        let mut notes = self.notes;
        let opened = NodeCache::open(&self.state_dir, &repo, &cache_key, self.options.node_cache_bytes_max)
            .and_then(|nodes| nodes.keep_within(self.options.index).map(|()| nodes));
        let nodes = opened.unwrap_or_else(|error| {
            notes.push(format!(
                "tree nodes are not kept on this machine, which takes longer: {}",
                with_causes(&error)
            ));
            NodeCache::none(&repo, &cache_key)
        });
        let store: Arc<dyn Store> = match self.config.parity {
            Some(shape) if self.store.is_local() => Arc::new(ParityStore::new(self.store, shape)),
            _ => self.store,
        };
        Ok(Repo {
            store,
            keys: Arc::new(keys),
            signer,
            verifier,
            kid,
            kid_secret,
            protector,
            roles: grant.roles,
            index: self.index,
            nodes,
            state_dir: self.state_dir,
            standing: self.standing,
            config: self.config,
            grant,
            grant_number,
            notes,
        })
    }

    /// The newest configuration is trusted when one of the administrators that the grant names signed it, or when the one
    /// before it is trusted and has its signer as an administrator (format-spec chapter 10.1.4). Else somebody who can write to
    /// the store could make everybody an administrator of his choice.
    fn require_trust(&self, grant: &Grant) -> Result<(), RepoError> {
        /// Far more than a repository ever has between two grants; each costs a read, on a machine that has not seen it.
        const STEPS_MAX: usize = 1000;
        let newest = self.config.sequence;
        let refuse = |why: String| {
            Err(RepoError::Gap {
                what: format!("configuration {newest} is not signed by an administrator that this key knows: {why}"),
            })
        };
        let mut config = self.config.clone();
        for _ in 0..STEPS_MAX {
            let signer = config.writers.iter().find(|writer| writer.kid == config.admin);
            let Some(signer) = signer.map(|writer| writer.public_key) else {
                return refuse(format!("configuration {} does not name its signer", config.sequence));
            };
            if grant.admin_keys.contains(&signer) {
                return Ok(());
            }
            let (Some(number), Some(hash)) = (config.sequence.checked_sub(1), config.previous) else {
                return refuse("no earlier one leads to it".into());
            };
            let before = match self.older_config(number, &hash)? {
                Ok(before) => before,
                Err(why) => return refuse(format!("configuration {number} {why}")),
            };
            let is_admin = |writer: &WriterKey| {
                writer.public_key == signer && writer.revoked_at.is_none() && writer.roles & role::ADMIN != 0
            };
            if before.repo != config.repo || !before.writers.iter().any(is_admin) {
                return refuse(format!(
                    "configuration {number} does not have the signer of the next one as an administrator"
                ));
            }
            config = before;
        }
        refuse(format!("the last {STEPS_MAX} do not lead to one that is"))
    }

    /// Reads a configuration that a later one names by its hash. The inner error says in words why it is not that one.
    fn older_config(&self, number: u64, hash: &ObjectHash) -> Result<Result<Config, String>, RepoError> {
        let name = ObjectName::Config(number);
        let memory = name.to_string();
        let is_it = |bytes: &[u8]| Repo::object_hash(bytes) == *hash;
        let bytes = match self.index.recall(&memory)?.filter(|bytes| is_it(bytes)) {
            Some(bytes) => bytes,
            None => match read_whole(&*self.store, &name, "an earlier configuration") {
                Ok(bytes) if is_it(&bytes) => {
                    self.index.remember(&memory, &bytes)?;
                    bytes.into()
                }
                Ok(_) => return Ok(Err("is not the one that the next one follows".into())),
                Err(error) if error.is_absence() => {
                    return Ok(Err("is not there any more".into()));
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Config::decode(&bytes, number, None).map_err(|error| format!("does not open: {error}")))
    }

    /// The configuration may have come from the local state. When nothing opens, another repository may lie at this address by
    /// now, and "wrong password" would send people looking in the wrong place.
    fn doubt(&self, error: RepoError) -> RepoError {
        let number = self.config.sequence;
        let found = read_whole(&*self.store, &ObjectName::Config(number), "the configuration")
            .ok()
            .and_then(|bytes| Config::decode(&bytes, number, None).ok());
        match found {
            Some(found) if found.repo != self.config.repo => RepoError::OtherRepository {
                location: self.store.location(),
                found: found.repo,
                expected: self.config.repo,
            },
            _ => error,
        }
    }

    /// Finds the protector that the credential opens. Which protectors exist is asked of the store each time, so that a
    /// removed one stops working at once; their bytes never change and come from the local state.
    fn open_protector(&self, credential: &Credential) -> Result<(ObjectName, KeyId, Secret), RepoError> {
        let mut names: Vec<ObjectName> = list_names(&*self.store, "keys/")?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let last = self.index.recall("last-protector")?.unwrap_or_default();
        // Those of holders that the configuration has come first: one password may open both, and the others are worth nothing.
        let is_holder = |kid: &KeyId| {
            let mut writers = self.config.writers.iter();
            writers.any(|writer| writer.kid == *kid && writer.revoked_at.is_none())
        };
        names.sort_by_key(|name| {
            let is_stray = !matches!(name, ObjectName::Protector(kid, _) if is_holder(kid));
            (is_stray, name.to_string().into_bytes() != last)
        });
        let tried_max = match credential {
            Credential::Password(_) => PASSWORDS_TRIED_MAX,
            Credential::KeyFile(_) | Credential::KeyCommand(_) => KEYS_TRIED_MAX,
        };
        let mut tried = 0;
        let mut fitting = false;
        let mut denied = None;
        for name in &names {
            let ObjectName::Protector(kid, _) = name else { continue };
            if tried == tried_max {
                break;
            }
            let remembered = self.index.recall(&name.to_string())?;
            if let Some(bytes) = &remembered {
                match self.try_protector(bytes, kid, credential) {
                    Attempt::Opened(kid_secret) => {
                        if name.to_string().into_bytes() != last {
                            self.index.remember("last-protector", name.to_string().as_bytes())?;
                        }
                        return Ok((name.clone(), *kid, kid_secret));
                    }
                    Attempt::Failed => {
                        fitting = true;
                        tried += 1;
                    }
                    Attempt::OfAnotherKind => continue,
                    Attempt::Damaged => {}
                }
            }
            // The copy here may be what is wrong, not the password.
            let bytes = match read_whole(&*self.store, name, "a key") {
                Ok(bytes) => bytes,
                // A machine that can only write is let at its own key, and at no other.
                Err(error @ RepoError::Store { .. }) if error.is_denied() => {
                    tried += 1;
                    denied.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if remembered.is_some_and(|remembered| remembered == bytes) {
                continue;
            }
            match self.try_protector(&bytes, kid, credential) {
                Attempt::Opened(kid_secret) => {
                    self.index.remember(&name.to_string(), &bytes)?;
                    self.index.remember("last-protector", name.to_string().as_bytes())?;
                    return Ok((name.clone(), *kid, kid_secret));
                }
                Attempt::Failed => {
                    fitting = true;
                    tried += 1;
                }
                // One damaged protector does not stand in the way of another.
                Attempt::OfAnotherKind | Attempt::Damaged => {}
            }
        }
        Err(match denied {
            _ if fitting => RepoError::WrongKey,
            Some(error) => error,
            None => RepoError::NoSuchProtector(credential.noun()),
        })
    }

    fn try_protector(&self, bytes: &[u8], kid: &KeyId, credential: &Credential) -> Attempt {
        let Ok(protector) = Protector::decode(bytes, kid) else {
            return Attempt::Damaged;
        };
        let ikm = match credential.ikm(&protector.kind) {
            Some(Ok(ikm)) => ikm,
            Some(Err(_)) => return Attempt::Damaged,
            None => return Attempt::OfAnotherKind,
        };
        match protector.unwrap(&self.config.repo, &ikm) {
            Ok(kid_secret) => Attempt::Opened(kid_secret),
            Err(_) => Attempt::Failed,
        }
    }

    /// Opens the newest grant that verifies. It is asked for again when the configuration has changed.
    fn open_grant(&self, kid: &KeyId, grant_key: &Secret, verifier: &Verifier) -> Result<(Grant, u64), RepoError> {
        let memory = format!("grant-{kid}-{}", self.config.sequence);
        if let Some(stored) = self.index.recall(&memory)?
            && let Some((number, bytes)) = stored.split_first_chunk::<8>()
        {
            let number = u64::from_le_bytes(*number);
            if let Ok(grant) = Grant::decode(bytes, kid, number, grant_key, &self.config.repo, verifier)
                && self.fits(&grant)
            {
                return Ok((grant, number));
            }
        }
        let mut numbers: Vec<u64> = list_names(&*self.store, &format!("grants/{kid}/"))?
            .into_iter()
            .filter_map(|(name, _)| {
                if let ObjectName::Grant(_, number) = name {
                    Some(number)
                } else {
                    None
                }
            })
            .collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let mut last = None;
        for number in numbers {
            let name = ObjectName::Grant(*kid, number);
            let bytes = read_whole(&*self.store, &name, "the grant")?;
            match Grant::decode(&bytes, kid, number, grant_key, &self.config.repo, verifier) {
                // Of a rotation that has not come to its end, or came second.
                Ok(grant) if !self.fits(&grant) => {
                    last.get_or_insert(RepoError::NoEpoch(self.config.epoch));
                }
                Ok(grant) => {
                    let mut stored = number.to_le_bytes().to_vec();
                    stored.extend_from_slice(&bytes);
                    self.index.remember(&memory, &stored)?;
                    return Ok((grant, number));
                }
                Err(error) => last = Some(object_error("opening", &name)(error)),
            }
        }
        Err(last.unwrap_or(RepoError::NoGrant))
    }

    /// Whether a grant holds the secrets of the epoch that the configuration names.
    fn fits(&self, grant: &Grant) -> bool {
        let check = self.config.epoch_check;
        let mut held = grant.epochs.iter().filter(|held| held.epoch == self.config.epoch);
        held.any(|held| check.is_none() || held.check(&self.config.repo) == check)
    }
}

impl Repo {
    /// Fails unless this key has at least one of the role bits (an admin has all).
    ///
    /// # Errors
    /// [`RepoError::Role`] or [`RepoError::WriteOnly`] with `what`.
    pub fn require(&self, roles: u32, what: &'static str) -> Result<(), RepoError> {
        self.require_primary()?;
        if self.roles & (roles | role::ADMIN) == 0 {
            return Err(self.may_not(what));
        }
        Ok(())
    }

    /// Fails unless this place is the one to write to.
    ///
    /// # Errors
    /// When it is a replica, or not the primary any more.
    pub fn require_primary(&self) -> Result<(), RepoError> {
        self.standing
            .require_primary(|| self.store.location(), self.config.sequence)
    }

    /// Fails unless this key can open what is in the repository: trees and manifests, and content of files too, for
    /// [`Domain::Data`].
    ///
    /// # Errors
    /// As [`Self::require`].
    pub fn require_reading(&self, domain: Domain, what: &'static str) -> Result<(), RepoError> {
        match self.keys.can_open(domain) {
            true => Ok(()),
            false => Err(self.may_not(what)),
        }
    }

    /// Whether this key can write, and not read back even what it has written itself: a put-only writer.
    pub fn is_write_only(&self) -> bool {
        self.roles & role::WRITE != 0 && !self.keys.can_open(Domain::Meta)
    }

    fn may_not(&self, what: &'static str) -> RepoError {
        if self.is_write_only() {
            RepoError::WriteOnly(what)
        } else {
            RepoError::Role(what)
        }
    }

    /// Returns BLAKE3 of an object's bytes.
    pub fn object_hash(bytes: &[u8]) -> ObjectHash {
        ObjectHash(crate::pure::crypto::hash(bytes))
    }
}
