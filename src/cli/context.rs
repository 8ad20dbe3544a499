//! What every command needs: arguments completed by environment and profile, the output, and the way into the
//! repository.

use super::args::{CopyArgs, FilterArgs, Globals, ToArgs};
use super::env::{self, Environment, Profile, SecretArgs};
use super::error::{Doing, Failure};
use super::interrupt::Interrupt;
use super::names::{DayEdge, local_time, parse_rate, parse_size, parse_time, time_argument};
use super::output::Output;
use super::progress::Display;
use crate::edge::host;
use crate::edge::store::Store;
use crate::edge::store::location::{self, Identity, Location, StoreOptions};
use crate::ops::Progress;
use crate::ops::restore::fetch_share;
use crate::pure::base::Timestamp;
use crate::pure::base::memory::{BackupNeeds, BackupShare, Ceiling, FetchShare, IndexShare, TooSmall};
use crate::pure::base::size::format_bytes;
use crate::pure::crypto::Domain;
use crate::pure::format::blob::RAW_BYTES_MAX;
use crate::pure::format::config::Config;
use crate::repo::Repo;
use crate::repo::open::{self, Credential, LocalOptions};
use crate::repo::snapshots::{Broken, Filter, HistoryState, Snapshot};
use jiff::tz::TimeZone;
use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

/// Default ceiling of the cached tree nodes.
const CACHE_BYTES: u64 = 512 << 20;
/// Uploads at once to a remote store; a local disk gains nothing from more than one.
const REMOTE_UPLOADS: usize = 3;

/// What every command needs.
pub struct Context {
    pub globals: Globals,
    pub environment: Environment,
    pub profile: Profile,
    pub output: Output,
    pub interrupt: Interrupt,
    /// What `--memory` allows, where it was given.
    memory: Option<Ceiling>,
}

impl Context {
    /// Reads environment and configuration, and starts to listen for signals.
    ///
    /// # Errors
    /// When one of them is not right.
    pub fn new(globals: Globals, output: Output) -> Result<Context, Failure> {
        let interrupt = Interrupt::listen(output.json)?;
        let environment = Environment::read()?;
        let profile = env::read_profile(globals.config.as_deref(), globals.profile.as_deref(), &environment)?;
        let memory = match (globals.memory, &profile.memory) {
            (Some(bytes), _) => Some(bytes),
            (None, Some(text)) => Some(parse_size(text).map_err(Failure::usage)?),
            (None, None) => None,
        };
        let memory = memory.map(Ceiling::new).transpose().map_err(too_small)?;
        Ok(Context {
            globals,
            environment,
            profile,
            output,
            interrupt,
            memory,
        })
    }

    /// Returns where the repository is.
    ///
    /// # Errors
    /// When nobody said, or it is not a location.
    pub fn location(&self) -> Result<Location, Failure> {
        let text = self
            .globals
            .repo
            .clone()
            .or_else(|| self.environment.repo.clone())
            .or_else(|| self.profile.repository.clone().map(Into::into))
            .ok_or_else(|| {
                Failure::usage("no repository was named")
                    .with_hint("give --repo or LARDER_REPO, for instance /mnt/disk/backup")
            })?;
        parse_location(&text)
    }

    /// Opens the store that the repository is in.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        location::open(&self.location()?, &self.store_options()?).doing("opening the repository")
    }

    /// Opens the store of another place. What is not said about it is as for the repository.
    ///
    /// # Errors
    /// When nobody said where it is, or it cannot be opened.
    pub fn other_store(&self, args: &ToArgs) -> Result<Arc<dyn Store>, Failure> {
        let profile = match &args.to_profile {
            Some(name) => env::read_profile(self.globals.config.as_deref(), Some(name), &self.environment)?,
            None => Profile::default(),
        };
        let environment = &self.environment.to;
        let text = args
            .to
            .clone()
            .or_else(|| environment.repo.clone())
            .or_else(|| profile.repository.clone().map(Into::into))
            .ok_or_else(|| Failure::usage("the other place was not named").with_hint("give --to, or --to-profile"))?;
        let mut options = self.store_options()?;
        // The other place is as it is.
        options.as_of = None;
        options.endpoint = args
            .to_s3_endpoint
            .clone()
            .or_else(|| environment.s3_endpoint.clone())
            .or(profile.s3_endpoint)
            .or(options.endpoint);
        options.path_style = args.to_s3_path_style.or(profile.s3_path_style).or(options.path_style);
        options.insecure_http |= profile.insecure_http;
        options.region.clone_from(&environment.region);
        options.identity = args
            .to_aws_profile
            .clone()
            .map(Identity::Profile)
            .or_else(|| environment.identity.clone())
            .or_else(|| profile.aws_profile.map(Identity::Profile))
            .or(options.identity);
        location::open(&parse_location(&text)?, &options).doing("opening the other place")
    }

    /// Gets the password or key file of a repository in another place.
    ///
    /// # Errors
    /// When there is none.
    pub fn other_credential(&self, args: &CopyArgs) -> Result<Credential, Failure> {
        let profile = match &args.to.to_profile {
            Some(name) => env::read_profile(self.globals.config.as_deref(), Some(name), &self.environment)?,
            None => Profile::default(),
        };
        let secrets = SecretArgs {
            password_file: args.to_password_file.as_deref(),
            password_command: args.to_password_command.as_deref(),
            key_file: args.to_key_file.as_deref(),
            key_command: args.to_key_command.as_deref(),
        };
        env::other_credential(secrets, &self.environment.to, &profile)
            .doing("looking for the password of the other repository")
    }

    /// Returns how to talk to the store of the repository.
    ///
    /// # Errors
    /// When a rate of the profile is not one.
    pub fn store_options(&self) -> Result<StoreOptions, Failure> {
        let mut options = StoreOptions {
            endpoint: self
                .globals
                .s3_endpoint
                .clone()
                .or_else(|| self.environment.s3_endpoint.clone())
                .or_else(|| self.profile.s3_endpoint.clone()),
            path_style: self.globals.s3_path_style.or(self.profile.s3_path_style),
            insecure_http: self.globals.insecure_http || self.profile.insecure_http,
            upload_rate: rate(self.globals.limit_upload, self.profile.limit_upload.as_deref())?,
            download_rate: rate(self.globals.limit_download, self.profile.limit_download.as_deref())?,
            identity: self.profile.aws_profile.clone().map(Identity::Profile),
            as_of: self.as_of()?,
            cancel: self.interrupt.waits.clone(),
            ..StoreOptions::default()
        };
        if let Some(connections) = self.globals.connections {
            options.connections = connections.into();
        }
        Ok(options)
    }

    /// Returns the time at which the repository is to be read, where somebody named one.
    ///
    /// # Errors
    /// When it is none.
    pub fn as_of(&self) -> Result<Option<Timestamp>, Failure> {
        let named = self.globals.as_of.as_deref();
        named.map(|text| time_argument(text, DayEdge::End)).transpose()
    }

    /// Returns the files that hold what opens the repository, wherever they were named.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let (globals, environment, profile) = (&self.globals, &self.environment, &self.profile);
        let named = [
            (&globals.password_file, &globals.key_file),
            (&environment.password_file, &environment.key_file),
            (&profile.password_file, &profile.key_file),
        ];
        named
            .into_iter()
            .flat_map(|(password, key)| [password.clone(), key.clone()])
            .flatten()
            .collect()
    }

    /// Returns where local state is kept.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn local_options(&self) -> Result<LocalOptions, Failure> {
        let size = match (self.globals.cache_size, &self.profile.cache_size) {
            (Some(size), _) => size,
            (None, Some(text)) => parse_size(text).map_err(Failure::usage)?,
            (None, None) => CACHE_BYTES,
        };
        Ok(LocalOptions {
            cache_dir: self.cache_dir()?,
            index: self.memory.map_or(IndexShare::DEFAULT, Ceiling::index),
            node_cache_bytes_max: size,
        })
    }

    /// Returns the root of the cache.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn cache_dir(&self) -> Result<PathBuf, Failure> {
        let named = self.globals.cache_dir.as_ref().or(self.environment.cache_dir.as_ref());
        let dir = match named.or(self.profile.cache_dir.as_ref()) {
            Some(dir) => dir.clone(),
            None => self.environment.default_cache_dir()?,
        };
        // What was is another repository than what is: what is remembered of one would be a rollback of the other.
        let dir = match self.as_of()? {
            Some(time) => dir.join(format!("as-of-{}", time.0.div_euclid(1_000_000_000))),
            None => dir,
        };
        std::path::absolute(&dir).map_err(|error| Failure::local("cannot find the working directory", &error))
    }

    /// Gets the password or key file; asked for twice where a mistake would lock the user out.
    ///
    /// # Errors
    /// When there is none.
    pub fn credential(&self, confirm: bool) -> Result<Credential, Failure> {
        let args = SecretArgs {
            password_file: self.globals.password_file.as_deref(),
            password_command: self.globals.password_command.as_deref(),
            key_file: self.globals.key_file.as_deref(),
            key_command: self.globals.key_command.as_deref(),
        };
        env::credential(args, &self.environment, &self.profile, confirm)
    }

    /// Finds and unlocks the repository.
    ///
    /// # Errors
    /// When there is none, or the password is wrong.
    pub fn repo(&self) -> Result<Repo, Failure> {
        self.repo_opened_with(|| self.credential(false))
    }

    /// The same with a password or key from elsewhere.
    ///
    /// # Errors
    /// When there is no repository, or the key is wrong.
    pub fn repo_opened_with(&self, credential: impl FnOnce() -> Result<Credential, Failure>) -> Result<Repo, Failure> {
        let locked = open::connect(self.store()?, self.local_options()?).doing("opening the repository")?;
        // Only now: nobody likes to type a password for a disk that is not there.
        let repo = locked.unlock(&credential()?).doing("opening the repository")?;
        for note in &repo.notes {
            self.output.note(note);
        }
        Ok(repo)
    }

    /// Opens the repository and brings what is known of its snapshots up to date. Gaps are told, not fatal: whoever
    /// restores after an attack needs what is left.
    ///
    /// # Errors
    /// When the repository cannot be opened or listed.
    pub fn repo_with_history(&self) -> Result<(Repo, HistoryState), Failure> {
        let repo = self.repo()?;
        let history = repo.sync_history().doing("listing the snapshots")?;
        self.tell(&history);
        Ok((repo, history))
    }

    /// Says what a listing of the history has found.
    fn tell(&self, history: &HistoryState) {
        for gap in &history.gaps {
            self.output
                .warn(format!("a gap in the history of this repository: {gap}"));
        }
        self.tell_broken(&history.broken);
        for note in &history.notes {
            self.output.note(note);
        }
        for fork in &history.forks {
            self.output.note(format!("{fork}: a host was cloned or set back"));
        }
    }

    /// Says which objects cannot be used.
    pub fn tell_broken(&self, broken: &Broken) {
        for (name, error) in broken {
            self.output
                .warn(format!("{name} cannot be used: {}", crate::ops::check::chain(error)));
        }
    }

    /// Opens the repository and finds the snapshot that somebody named, with as few requests as that takes: a machine
    /// that has never seen the repository does not read its whole history for one file.
    ///
    /// # Errors
    /// When the repository cannot be opened, or nothing or more than one snapshot matches.
    pub fn repo_with_snapshot(&self, text: &str, filter: &FilterArgs) -> Result<(Repo, Snapshot), Failure> {
        let zone = TimeZone::system();
        if let Some(time) = text.strip_prefix('@') {
            super::names::time_argument(time, DayEdge::End)?;
        }
        let repo = self.repo()?;
        require_reading(&repo)?;
        let (snapshot, history) = repo
            .find_snapshot(text, &filter.to_filter(), &|time| parse_time(time, DayEdge::End, &zone))
            .doing("finding the snapshot")?;
        self.tell(&history);
        self.tell_partial(&repo, text, &snapshot);
        Ok((repo, snapshot))
    }

    /// A part of a snapshot must not be taken for the whole, and whoever takes the latest wants to know that there is
    /// something newer.
    fn tell_partial(&self, repo: &Repo, text: &str, snapshot: &Snapshot) {
        let manifest = &snapshot.manifest;
        if snapshot.is_partial() {
            self.output.warn(format!(
                "{} is a checkpoint: it holds only what a run had done by {}",
                snapshot.id.short(),
                local_time(manifest.end)
            ));
        } else if text.starts_with("latest")
            && let Ok(all) = repo.snapshots_noting(&mut Broken::new())
            && let Some(newer) = all.iter().rfind(|other| {
                other.is_partial()
                    && other.manifest.source.id == manifest.source.id
                    && other.manifest.start > manifest.start
                    && !other.is_superseded(&all)
            })
        {
            self.output.note(format!(
                "a later run did not end; what it had done by {} is in checkpoint {}",
                local_time(newer.manifest.end),
                newer.id.short()
            ));
        }
    }

    /// Finds the snapshot that somebody named.
    ///
    /// # Errors
    /// When nothing or more than one matches.
    pub fn snapshot(&self, repo: &Repo, text: &str, filter: &FilterArgs) -> Result<Snapshot, Failure> {
        let zone = TimeZone::system();
        if let Some(time) = text.strip_prefix('@') {
            super::names::time_argument(time, DayEdge::End)?;
        }
        require_reading(repo)?;
        let mut broken = Broken::new();
        let parse = |time: &str| parse_time(time, DayEdge::End, &zone);
        let found = repo.resolve_noting(text, &filter.to_filter(), &parse, &mut broken);
        self.tell_broken(&broken);
        let snapshot = found.doing("finding the snapshot")?;
        self.tell_partial(repo, text, &snapshot);
        Ok(snapshot)
    }

    /// Returns how many threads may compute.
    pub fn threads(&self) -> usize {
        self.globals.threads.map_or_else(host::cpu_count, usize::from)
    }

    /// Returns how a backup is to work, and has its packs become smaller where memory asks for that.
    ///
    /// # Errors
    /// When the ceiling of memory is too low.
    pub fn share_of_backup(
        &self,
        repo: &mut Repo,
        zstd_level: Option<u32>,
        deltas: bool,
    ) -> Result<BackupShare, Failure> {
        let most = if repo.store.is_local() { 2 } else { REMOTE_UPLOADS };
        let uploads = self
            .globals
            .connections
            .map_or(most, |connections| most.min(usize::from(connections)));
        let is_directory = repo.store.is_local();
        let config = &mut repo.config;
        let needs = BackupNeeds {
            threads: self.threads(),
            uploads,
            pack_bytes: config.data_pack_bytes.max(config.meta_pack_bytes),
            lanes: config.lanes.clamp(1, 4) as usize,
            chunk_bytes_max: chunk_bytes_max(config),
            zstd_level: zstd_level.unwrap_or(config.zstd_level),
            deltas,
        };
        let share = match self.memory {
            Some(ceiling) => ceiling.backup(needs).map_err(too_small)?,
            None => needs.usual_share(is_directory),
        };
        // The configuration's sizes are advice: what a reader needs to know is in each pack.
        config.lanes = share.lanes as u32;
        config.data_pack_bytes = config.data_pack_bytes.min(share.pack_bytes);
        config.meta_pack_bytes = config.meta_pack_bytes.min(share.pack_bytes);
        if self.memory.is_some() {
            self.output.detail(format!(
                "within the memory allowed: {} threads, {} uploads, packs of {}",
                share.threads,
                share.uploads,
                format_bytes(config.data_pack_bytes)
            ));
        }
        Ok(share)
    }

    /// Returns how a restore is to work.
    ///
    /// # Errors
    /// When the ceiling of memory is too low.
    pub fn share_of_restore(&self, repo: &Repo) -> Result<FetchShare, Failure> {
        let wanted = fetch_share(repo.store.is_local(), self.threads());
        match self.memory {
            None => Ok(wanted),
            Some(ceiling) => ceiling.fetch(wanted, chunk_bytes_max(&repo.config)).map_err(too_small),
        }
    }

    /// Returns how many threads may read whole packs.
    ///
    /// # Errors
    /// When the ceiling of memory is too low.
    pub fn threads_with_packs(&self, repo: &Repo) -> Result<usize, Failure> {
        let pack = repo.config.data_pack_bytes.max(repo.config.meta_pack_bytes);
        // A pack, which a remote store copies once, and one chunk of it.
        self.threads_with(2 * pack + chunk_bytes_max(&repo.config))
    }

    /// Returns how many threads may hold chunks, as `dump` does: two ahead, each sealed and opened.
    ///
    /// # Errors
    /// When the ceiling of memory is too low.
    pub fn threads_with_chunks(&self, repo: &Repo) -> Result<usize, Failure> {
        self.threads_with(4 * chunk_bytes_max(&repo.config))
    }

    /// Returns how many objects may be copied from store to store at a time, and how many bytes of them may be in memory.
    ///
    /// # Errors
    /// When the ceiling of memory is too low.
    pub fn share_of_copies(&self, both_local: bool) -> Result<(usize, u64), Failure> {
        /// Of a remote store, which waits most of the time; a disk gains nothing from more than two.
        const AT_ONCE: usize = 8;
        const PACK_BYTES: u64 = 32 << 20;
        let connections = self.globals.connections.map_or(AT_ONCE, usize::from);
        let threads = if both_local { 2 } else { connections };
        let packs = match self.memory {
            None => 4,
            // A remote store copies each once.
            Some(ceiling) => ceiling.threads(4, 2 * PACK_BYTES).map_err(too_small)?,
        };
        Ok((threads, packs as u64 * PACK_BYTES))
    }

    fn threads_with(&self, bytes_each: u64) -> Result<usize, Failure> {
        match self.memory {
            None => Ok(self.threads()),
            Some(ceiling) => ceiling.threads(self.threads(), bytes_each).map_err(too_small),
        }
    }

    /// Runs a verb that stops cleanly when a signal asks for it, with its progress shown.
    pub fn run<T>(&self, verb: &'static str, work: impl FnOnce(&Progress) -> T) -> T {
        self.interrupt.stop_cleanly();
        let progress = &self.interrupt.progress;
        let display = Display::start(&self.output, progress, verb);
        let result = work(progress);
        drop(display);
        for note in progress.take_notes() {
            self.output.note(note);
        }
        result
    }
}

/// Said before anything is looked for: what a key cannot open looks like damage otherwise.
///
/// # Errors
/// When this key cannot open snapshots.
pub fn require_reading(repo: &Repo) -> Result<(), Failure> {
    repo.require_reading(Domain::Meta, "look into snapshots, or restore from them")
        .map_err(Failure::from)
}

/// Reads where a repository is.
fn parse_location(text: &OsStr) -> Result<Location, Failure> {
    let location = Location::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(match location {
        // What is remembered about a place must not depend on where the command was run.
        Location::Directory(path) => Location::Directory(
            std::path::absolute(&path).map_err(|error| Failure::local("cannot find the working directory", &error))?,
        ),
        location => location,
    })
}

fn too_small(error: TooSmall) -> Failure {
    Failure::usage(error.to_string()).with_hint(format!("give --memory {}M or more", error.needed >> 20))
}

/// Chunks may be this long in a repository; without a known profile nothing can be cut, and the format's limit holds.
fn chunk_bytes_max(config: &Config) -> u64 {
    config
        .chunker()
        .map_or(RAW_BYTES_MAX as u64, |(_, profile)| u64::from(profile.max))
}

/// Chooses a rate: the argument before the profile.
fn rate(argument: Option<NonZeroU64>, profile: Option<&str>) -> Result<Option<NonZeroU64>, Failure> {
    match (argument, profile) {
        (Some(rate), _) => Ok(Some(rate)),
        (None, Some(text)) => parse_rate(text).map(Some).map_err(Failure::usage),
        (None, None) => Ok(None),
    }
}

impl FilterArgs {
    /// Returns it as the repository understands it.
    pub fn to_filter(&self) -> Filter {
        Filter {
            host: self.host.clone(),
            source: self.source.clone(),
            tags: self.tag.clone(),
            path: None,
        }
    }
}
