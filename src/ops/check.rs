//! Auditing a repository (format-spec chapter on check). Everything is read through the same code as restore; what it says is
//! fine can be restored, and what cannot be verified is never called verified.

use super::look::full_path;
use super::{OpError, Progress};
use crate::edge::host;
use crate::edge::store::{Failure, Part};
use crate::pure::crypto::{ObjectClass, Slot};
use crate::pure::format::blob::{BlobType, Opener};
use crate::pure::format::entry::{Content, Entry};
use crate::pure::format::list::ListNode;
use crate::pure::format::manifest::Root;
use crate::pure::format::name::{ObjectName, PackKind};
use crate::pure::format::node::{Child, Node};
use crate::pure::format::outcome::Outcome;
use crate::pure::format::pack::{self, PackRecord, PackTrailer};
use crate::pure::format::run::StoredAs;
use crate::pure::id::{ChunkId, KeyId, ObjectHash, PackId, SessionId};
use crate::pure::tree::list::{ListSource, for_each_piece};
use crate::pure::tree::rules::RootWalk;
use crate::pure::tree::walk::NodeSource;
use crate::repo::error::{object_error, store_error};
use crate::repo::index::{ChunkPlace, IndexedChunk, KnownOutcome, PackInfo, PackState};
use crate::repo::locate::IndexLocator;
use crate::repo::open::{list_names, store_key};
use crate::repo::reader::{BlobReader, TreeReader, pack_name};
use crate::repo::snapshots::{Snapshot, short_id};
use crate::repo::{Repo, RepoError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// At most this many damaged files are named; the count goes on.
const FILES_NAMED_MAX: usize = 1000;

/// Depth of verification in the ledger: every byte was read and decoded.
const DATA_READ: u8 = 3;

/// Which packs have their data read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subset {
    /// Every pack.
    All,
    /// Part `n` (1-based) of `m`: all parts together cover everything.
    Part { number: u32, of: u32 },
    /// The packs verified longest ago, up to this many bytes.
    Bytes(u64),
    /// The packs verified longest ago, up to this share of all bytes, in thousandths of a percent.
    Share(u32),
}

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Read packs, and which.
    pub read_data: Option<Subset>,
    /// Stop starting new packs after this long.
    pub max_time: Option<Duration>,
    /// Skip packs whose data was verified more recently than this.
    pub max_age: Option<Duration>,
    /// Only what this snapshot reaches.
    pub snapshot: Option<Snapshot>,
    pub threads: usize,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Object, chunk or path.
    pub object: String,
    pub what: String,
    /// Whether this says "tampering or rollback" rather than "damage".
    pub tamper: bool,
}

/// A file that cannot be restored whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedFile {
    pub path: Vec<u8>,
    pub snapshots: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub snapshots: u64,
    pub trees_read: u64,
    pub packs: u64,
    pub packs_read: u64,
    pub bytes_read: u64,
    pub chunks_verified: u64,
    /// Packs chosen for reading that the time limit left over.
    pub packs_left: u64,
    /// Oldest verification among all packs, if every pack was ever verified; nanoseconds since the epoch.
    pub oldest_verified: Option<i64>,
    pub never_verified: u64,
    pub unknown_objects: Vec<String>,
    pub unreferenced_packs: u64,
    pub findings: Vec<Finding>,
    pub damaged_files: Vec<DamagedFile>,
    pub damaged_files_total: u64,
    pub notes: Vec<String>,
}

impl Report {
    fn damage(&mut self, object: impl ToString, what: impl ToString) {
        self.findings.push(Finding {
            object: object.to_string(),
            what: what.to_string(),
            tamper: false,
        });
    }

    fn tamper(&mut self, object: impl ToString, what: impl ToString) {
        self.findings.push(Finding {
            object: object.to_string(),
            what: what.to_string(),
            tamper: true,
        });
    }

    fn error(&mut self, object: impl ToString, error: &RepoError) {
        use crate::pure::base::{Explain, Kind};
        let tamper = error.kind() == Kind::Tamper;
        self.findings.push(Finding {
            object: object.to_string(),
            what: chain(error),
            tamper,
        });
    }
}

/// An error with everything below it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    crate::pure::base::with_causes(error)
}

/// Checks a repository. Findings are in the report; an error means that the check itself could not be done.
///
/// # Errors
/// When the store cannot be listed or read: nothing is known then.
pub fn run(repo: &Repo, options: &Options, progress: &Progress) -> Result<Report, OpError> {
    let mut report = Report::default();
    check_names(repo, &mut report)?;
    check_keys(repo, &mut report)?;
    let snapshots = check_history(repo, &mut report)?;
    check_runs(repo, &mut report)?;
    let mut bad = check_packs_exist(repo, &mut report)?;
    let snapshots: Vec<Snapshot> = match &options.snapshot {
        Some(only) => snapshots
            .into_iter()
            .filter(|snapshot| snapshot.id == only.id)
            .collect(),
        None => snapshots,
    };
    report.snapshots = snapshots.len() as u64;
    let reader = BlobReader::new(repo, Box::new(IndexLocator));
    let wanted = check_trees(
        repo,
        &reader,
        &snapshots,
        &mut bad,
        &mut report,
        progress,
        options.snapshot.is_some(),
    )?;
    if let Some(subset) = &options.read_data {
        let packs = choose_packs(repo, subset, options, wanted.as_ref())?;
        read_packs(repo, &reader, packs, options, &mut bad, &mut report, progress)?;
    }
    note_ages(repo, &mut report)?;
    if !bad.is_empty() {
        name_files(&reader, &snapshots, &bad, &mut report)?;
    }
    Ok(report)
}

/// Reports names that version 1 does not know. They are never deleted.
fn check_names(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    for under in [
        "config/", "keys/", "grants/", "idx/", "sess/", "snap/", "gc/", "drop/", "hold/", "attest/", "data/", "meta/",
    ] {
        let prefix = crate::repo::open::prefix(under);
        repo.store
            .list(&prefix, &mut |listed| {
                if ObjectName::parse(listed.key.as_str()).is_none() {
                    report.unknown_objects.push(listed.key.to_string());
                }
            })
            .map_err(store_error(format!("listing {under} of the repository")))?;
    }
    Ok(())
}

/// Configurations that have been superseded are kept at least this long.
const CONFIGS_KEPT: i64 = 90 * 86_400 * 1_000_000_000;

/// Every object that opens or guards the repository decodes, and none that must be there is missing.
fn check_keys(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    check_configs(repo, report)?;
    check_protectors(repo, report)?;
    check_grants(repo, report)
}

fn check_configs(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    use crate::pure::format::config::Config;
    let mut configs = BTreeMap::new();
    for (name, _) in list_names(&*repo.store, "config/")? {
        let ObjectName::Config(number) = name else { continue };
        match crate::repo::open::read_whole(&*repo.store, &name, "a configuration") {
            Ok(bytes) => {
                let trusted = if number == repo.config.sequence {
                    None
                } else {
                    Some(&repo.verifier)
                };
                match Config::decode(&bytes, number, trusted) {
                    // What was opened may come from the local state; the object itself must still say the same.
                    Ok(config) if number == repo.config.sequence && config != repo.config => {
                        report.tamper(&name, "the object is not the one that was seen before");
                    }
                    Ok(config) => {
                        configs.insert(number, (Repo::object_hash(&bytes), config));
                    }
                    Err(error) => report.error(&name, &object_error("opening", &name)(error)),
                }
            }
            Err(error) => report.error(&name, &error),
        }
    }
    let kept_since = host::now().0.saturating_sub(CONFIGS_KEPT);
    for number in 0..repo.config.sequence {
        let name = ObjectName::Config(number);
        let next = configs
            .get(&(number + 1))
            .map(|(_, next)| (next.previous, next.created.0));
        match (configs.get(&number), next) {
            (Some((hash, _)), Some((previous, _))) if previous != Some(*hash) => {
                report.tamper(&name, "it is not the one that the next configuration follows");
            }
            (None, Some((_, superseded))) if superseded > kept_since => {
                report.damage(&name, "it is missing, though it was superseded less than 90 days ago");
            }
            (None, _) => report
                .notes
                .push(format!("configuration {number} is not there any more")),
            _ => {}
        }
    }
    Ok(())
}

/// The keys whose holders this key knows (an admin knows all) and that have not been revoked; its own first.
fn known_holders(repo: &Repo) -> Vec<KeyId> {
    let valid = |kid: &KeyId| {
        repo.verifier
            .writer(kid)
            .is_none_or(|writer| writer.revoked_at.is_none())
    };
    let others = repo
        .grant
        .kid_table
        .iter()
        .map(|row| row.kid)
        .filter(|kid| *kid != repo.kid && valid(kid));
    std::iter::once(repo.kid).chain(others).collect()
}

fn check_protectors(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    use crate::pure::format::protector::Protector;
    let mut readable: HashSet<KeyId> = HashSet::new();
    let mut seen: HashMap<ObjectHash, ObjectName> = HashMap::new();
    for (name, _) in list_names(&*repo.store, "keys/")? {
        let ObjectName::Protector(kid, _) = name else { continue };
        let result = crate::repo::open::read_whole(&*repo.store, &name, "a key").and_then(|bytes| {
            Protector::decode(&bytes, &kid).map_err(object_error("opening", &name))?;
            Ok(Repo::object_hash(&bytes))
        });
        match result {
            Ok(hash) => {
                readable.insert(kid);
                // Each is drawn with fresh randomness, so one of the two is in the place of something that is lost.
                if let Some(other) = seen.insert(hash, name.clone()) {
                    report.tamper(&name, format!("it holds the same bytes as {other}"));
                }
            }
            Err(error) => report.error(&name, &error),
        }
    }
    for kid in known_holders(repo).iter().filter(|kid| !readable.contains(*kid)) {
        report.damage(
            format!("keys/{kid}/"),
            "no readable password or key file protector is left for this key",
        );
    }
    Ok(())
}

fn check_grants(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    use crate::pure::format::grant::Grant;
    let rows = &repo.grant.kid_table;
    let mut valid: HashSet<(KeyId, u64)> = HashSet::new();
    for (name, _) in list_names(&*repo.store, "grants/")? {
        let ObjectName::Grant(kid, number) = name else { continue };
        let Some(row) = rows.iter().find(|row| row.kid == kid) else {
            continue;
        };
        let result = crate::repo::open::read_whole(&*repo.store, &name, "a grant").and_then(|bytes| {
            Grant::decode(&bytes, &kid, number, &row.grant_key, &repo.config.repo, &repo.verifier)
                .map_err(object_error("opening", &name))
        });
        match result {
            Ok(_) => {
                valid.insert((kid, number));
            }
            Err(error) => report.error(&name, &error),
        }
    }
    let listed = list_names(&*repo.store, &format!("grants/{}/", repo.kid))?;
    let own = ObjectName::Grant(repo.kid, repo.grant_number);
    if !listed.iter().any(|(name, _)| *name == own) {
        report.damage(own, "the grant of this key is missing");
    }
    for kid in rows
        .iter()
        .map(|row| row.kid)
        .filter(|kid| known_holders(repo).contains(kid))
    {
        if kid != repo.kid && !valid.iter().any(|(holder, _)| *holder == kid) {
            report.damage(format!("grants/{kid}/"), "no readable grant is left for this key");
        }
    }
    // An admin's grant lists every holder. One that the configuration has and the grant has not came later, with a newer grant.
    if !rows.is_empty() {
        for writer in repo.config.writers.iter().filter(|writer| writer.revoked_at.is_none()) {
            if !rows.iter().any(|row| row.kid == writer.kid) {
                let what = format!(
                    "key {} is in the configuration and not in this grant: a newer grant is missing",
                    writer.kid
                );
                report.damage(ObjectName::Grant(repo.kid, repo.grant_number), what);
            }
        }
    }
    Ok(())
}

/// Outcomes, their chains, sessions, condemnations and marks.
fn check_history(repo: &Repo, report: &mut Report) -> Result<Vec<Snapshot>, OpError> {
    let state = repo.sync_history()?;
    for (name, error) in &state.broken {
        report.error(name, error);
    }
    for gap in state.gaps {
        report.tamper("history", gap);
    }
    report.notes.extend(
        state
            .forks
            .into_iter()
            .map(|fork| format!("{fork}: a host was cloned or set back")),
    );
    // What the mirror holds was verified when it was taken in; the objects themselves must still be what they were.
    let mut snapshots = Vec::new();
    let mut links = Vec::new();
    for known in repo.index.outcomes()? {
        let name = ObjectName::Outcome(known.session);
        match repo.fetch_outcome(&known.session) {
            Ok((stored, _)) if stored.hash != known.hash => {
                report.tamper(&name, "the object is not the one that was seen before");
            }
            Ok((stored, _)) => links.push((known.clone(), stored.outcome)),
            Err(error) => {
                report.error(&name, &error);
                continue;
            }
        }
        use crate::pure::format::outcome::OutcomeKind;
        if !known.is_dropped() && matches!(known.kind, OutcomeKind::Commit | OutcomeKind::Checkpoint) {
            match repo.snapshot(&known.session) {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(error) => report.error(&name, &error),
            }
        }
    }
    snapshots.sort_by_key(|snapshot| snapshot.manifest.start);
    check_links(&links, report);
    let acknowledging = links
        .iter()
        .filter(|(_, outcome)| !outcome.acked.is_empty())
        .map(|(known, _)| known.session);
    check_sessions(repo, &acknowledging.collect(), report)?;
    Ok(snapshots)
}

/// Each outcome follows the one that it says it follows. Missing numbers are found without this; of two outcomes with one
/// number (a cloned host), only this finds that one was taken away.
fn check_links(outcomes: &[(KnownOutcome, Outcome)], report: &mut Report) {
    let mut by_number: HashMap<(KeyId, u64), Vec<ObjectHash>> = HashMap::new();
    for (known, _) in outcomes {
        by_number
            .entry((known.kid, known.sequence))
            .or_default()
            .push(known.hash);
    }
    for (known, outcome) in outcomes {
        let before = known
            .sequence
            .checked_sub(1)
            .and_then(|number| by_number.get(&(known.kid, number)));
        if let Some(before) = before
            && !outcome.previous.is_some_and(|hash| before.contains(&hash))
        {
            report.tamper(
                ObjectName::Outcome(known.session),
                "the outcome that it follows has been replaced or taken away",
            );
        }
    }
}

/// `acknowledging`: ended sessions whose outcome says that they acknowledged condemnations.
fn check_sessions(repo: &Repo, acknowledging: &HashSet<SessionId>, report: &mut Report) -> Result<(), OpError> {
    use crate::pure::format::condemn::Condemnation;
    use crate::pure::format::mark::{Drop, Hold};
    use crate::pure::format::session::{Acknowledgement, Registration};
    let mut registered = HashSet::new();
    let mut heartbeats: HashMap<SessionId, BTreeSet<u32>> = HashMap::new();
    for under in ["sess/", "gc/", "drop/", "hold/"] {
        for (name, _) in list_names(&*repo.store, under)? {
            let bytes = match crate::repo::open::read_whole(&*repo.store, &name, "an object") {
                Ok(bytes) => bytes,
                Err(error) => {
                    report.error(&name, &error);
                    continue;
                }
            };
            if let ObjectName::Session(session, number @ 1..) = &name {
                heartbeats.entry(*session).or_default().insert(*number);
            }
            let (keys, verifier) = (&repo.keys, &repo.verifier);
            let result = match &name {
                ObjectName::Session(session, 0) => {
                    registered.insert(*session);
                    Registration::decode(&bytes, session, keys, verifier).map(drop)
                }
                ObjectName::Session(session, number) => {
                    Acknowledgement::decode(&bytes, session, *number, keys, verifier).map(drop)
                }
                ObjectName::Condemnation(session) => Condemnation::decode(&bytes, session, keys, verifier).map(drop),
                ObjectName::Drop(session) => Drop::decode(&bytes, session, keys, verifier).map(drop),
                ObjectName::Hold(session, label) => Hold::decode(&bytes, session, label, keys, verifier).map(drop),
                _ => Ok(()),
            };
            if let Err(error) = result {
                report.error(&name, &object_error("opening", &name)(error));
            }
        }
    }
    // A registration is kept for at least a week after its session ended; without one, somebody has removed it.
    let week_ago = host::now().0 - 7 * 86_400 * 1_000_000_000;
    for known in repo.index.outcomes()? {
        if !registered.contains(&known.session) && known.created.0 > week_ago {
            report.damage(
                ObjectName::Session(known.session, 0),
                "the registration of a recent session is missing",
            );
        }
        // As far as their number is known: up to the last one that is there, and one at least where something was acknowledged.
        let there = heartbeats.remove(&known.session).unwrap_or_default();
        let last = there
            .last()
            .copied()
            .unwrap_or(0)
            .max(u32::from(acknowledging.contains(&known.session)));
        if known.created.0 > week_ago
            && let Some(missing) = (1..=last).find(|number| !there.contains(number))
        {
            report.damage(
                ObjectName::Session(known.session, missing),
                "an acknowledgement of a recent session is missing",
            );
        }
    }
    let mut ended = repo.voided()?;
    ended.extend(repo.index.outcomes()?.into_iter().map(|known| known.session));
    let open = registered.difference(&ended).count();
    if open > 0 {
        report.notes.push(format!(
            "{open} sessions are running, or were interrupted and have not been ended yet"
        ));
    }
    Ok(())
}

/// Every run that counts is there, decodes, and says what the local index says.
fn check_runs(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    repo.sync_condemned()?;
    let valid = repo.valid_runs()?;
    for name in &valid.missing {
        report.damage(name, "an index run that a snapshot relies on is missing");
    }
    for (session, number, _) in &valid.level0 {
        let name = ObjectName::Run(*session, *number);
        let text = name.to_string();
        let result = crate::repo::open::read_whole(&*repo.store, &name, "an index run").and_then(|bytes| {
            crate::pure::format::run::decode_l0(&bytes, &text, &repo.keys, &repo.verifier)
                .map_err(object_error("opening", &text))
        });
        if let Err(error) = result {
            report.error(&text, &error);
        }
    }
    let sync = repo.sync_index()?;
    for (name, error) in sync.broken {
        if !report.findings.iter().any(|finding| finding.object == name) {
            report.error(name, &error);
        }
    }
    Ok(())
}

/// Chunks that cannot be restored, and why.
type Bad = HashMap<ChunkId, String>;

/// Every pack of a valid run is in the listing with its size. Returns the chunks of those that are not.
fn check_packs_exist(repo: &Repo, report: &mut Report) -> Result<Bad, OpError> {
    let mut sizes: HashMap<(PackKind, PackId), u64> = HashMap::new();
    for under in ["data/", "meta/"] {
        for (name, listed) in list_names(&*repo.store, under)? {
            if let ObjectName::Pack(kind, pack, _) = name {
                sizes.insert((kind, pack), listed.size);
            }
        }
    }
    let mut known: Vec<PackInfo> = Vec::new();
    repo.index.packs(&mut |pack| known.push(pack))?;
    let mut damaged = Vec::new();
    for pack in &known {
        report.packs += 1;
        let name = pack_name(pack.kind, pack.pack, pack.session);
        let found = match sizes.remove(&(pack.kind, pack.pack)) {
            Some(size) => Some(size),
            // A listing may lag: absence is believed only when asking for the object says so too.
            None => match repo.store.stat(&store_key(&name)) {
                Ok(stat) => Some(stat.size),
                Err(error) if error.class == Failure::NotFound => None,
                Err(error) => return Err(store_error("looking for a pack")(error).into()),
            },
        };
        let what = match found {
            Some(size) if size == u64::from(pack.size) => {
                if pack.state == PackState::Absent {
                    repo.index.mark_there(&pack.pack)?;
                }
                continue;
            }
            Some(size) => format!("it has {size} bytes instead of {}", pack.size),
            None => "it is missing".to_owned(),
        };
        report.damage(&name, &what);
        // The next backup on this machine stores again what of it is still at hand.
        repo.index.mark_absent(&pack.pack)?;
        damaged.push((pack.pack, format!("{name}: {what}")));
    }
    let mut bad = Bad::new();
    for (pack, what) in damaged {
        for IndexedChunk { id, .. } in repo.index.chunks_of_pack(&pack)? {
            if repo.index.find(&id)?.is_none() {
                bad.insert(id, what.clone());
            }
        }
    }
    report.unreferenced_packs = sizes.len() as u64;
    Ok(bad)
}

/// Reads every tree node that the snapshots reach, and checks that every piece of every file is in the index and that sizes
/// add up. With `collect`, returns the chunks that are reached.
fn check_trees(
    repo: &Repo,
    reader: &BlobReader<'_>,
    snapshots: &[Snapshot],
    bad: &mut Bad,
    report: &mut Report,
    progress: &Progress,
    collect: bool,
) -> Result<Option<HashSet<ChunkId>>, OpError> {
    let mut trees = TreeChecker {
        repo,
        nodes: TreeReader::uncached(reader),
        seen: HashSet::new(),
        walked: HashSet::new(),
        wanted: collect.then(HashSet::new),
        bad,
        read: 0,
    };
    for snapshot in snapshots {
        progress.set_current(format!("trees of snapshot {}", short_id(&snapshot.id)));
        for root in &snapshot.manifest.roots {
            if progress.is_cancelled() {
                return Err(OpError::Interrupted);
            }
            if let Err(error) = trees.root(root) {
                let name = format!(
                    "snapshot {}, root {}",
                    short_id(&snapshot.id),
                    String::from_utf8_lossy(&root.path)
                );
                match error {
                    OpError::Repo(error) if error.is_damage() => report.error(name, &error),
                    error => return Err(error),
                }
            }
        }
    }
    report.trees_read = trees.read;
    Ok(trees.wanted)
}

struct TreeChecker<'a, 'r> {
    repo: &'a Repo,
    nodes: TreeReader<'a, 'r>,
    /// Nodes that have been checked, with what lies below them: (entries, file bytes).
    seen: HashSet<ChunkId>,
    /// Roots that have been walked, with their kinds.
    walked: HashSet<(ChunkId, u64)>,
    wanted: Option<HashSet<ChunkId>>,
    bad: &'a mut Bad,
    read: u64,
}

impl TreeChecker<'_, '_> {
    fn root(&mut self, root: &Root) -> Result<(), OpError> {
        let (node, height, entries, bytes) = (root.node, root.height, root.entries, root.bytes);
        let (found_entries, found_bytes) = self.totals(&node, height)?;
        if (found_entries, found_bytes) != (entries, bytes) {
            return Err(RepoError::Missing {
                object: format!("tree {node}"),
                why: format!("it holds {found_entries} entries and {found_bytes} bytes, not {entries} and {bytes}"),
            }
            .into());
        }
        if self.seen.insert(node) {
            self.subtree(&node, height)?;
        }
        // Order across nodes, levels, keys, parents and types are checked by walking, like restore does; nodes are in memory or
        // quick to read. A root of another kind may have the same tree, and not be allowed to.
        if self.walked.insert((node, root.kind as u64)) {
            let mut walk = RootWalk::whole(root);
            while walk.next(&mut self.nodes)?.is_some() {}
        }
        Ok(())
    }

    /// What a node says lies below it.
    fn totals(&mut self, id: &ChunkId, height: u8) -> Result<(u64, u64), OpError> {
        let node = self.decode(id)?;
        let mut entries = 0u64;
        let mut bytes = 0u64;
        for (_, value) in &node.entries {
            let (below, size) = if height == 0 {
                (1, Entry::decode(value).map_err(RepoError::from)?.size())
            } else {
                let child = Child::decode(value).map_err(RepoError::from)?;
                (child.leaf_entries, child.file_bytes)
            };
            entries = entries.saturating_add(below);
            bytes = bytes.saturating_add(size);
        }
        Ok((entries, bytes))
    }

    fn decode(&mut self, id: &ChunkId) -> Result<Node, OpError> {
        let bytes = self.nodes.node(id)?;
        Ok(Node::decode(&bytes).map_err(RepoError::from)?)
    }

    /// Checks everything below a node that has not been checked. Depth is at most 15, so recursion is bounded.
    fn subtree(&mut self, id: &ChunkId, height: u8) -> Result<(), OpError> {
        self.read += 1;
        if let Some(wanted) = &mut self.wanted {
            wanted.insert(*id);
        }
        let node = self.decode(id)?;
        for (_, value) in &node.entries {
            if height == 0 {
                let entry = Entry::decode(value).map_err(RepoError::from)?;
                self.entry(&entry)?;
                continue;
            }
            let child = Child::decode(value).map_err(RepoError::from)?;
            let totals = self.totals(&child.id, height - 1)?;
            if totals != (child.leaf_entries, child.file_bytes) {
                return Err(RepoError::Missing {
                    object: format!("tree node {}", child.id),
                    why: "it does not hold what its parent says".into(),
                }
                .into());
            }
            if self.seen.insert(child.id) {
                self.subtree(&child.id, height - 1)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), OpError> {
        if let Some(content) = entry.content() {
            self.content(content, entry.size())?;
        }
        for (_, size, content) in &entry.attributes.xattrs_outline {
            self.content(content, *size)?;
        }
        Ok(())
    }

    fn content(&mut self, content: &Content, size: u64) -> Result<(), OpError> {
        let mut pieces = Vec::new();
        for_each_piece(content, size, 0..size, &mut self.nodes, &mut |_, piece| {
            pieces.push(piece);
            Ok::<(), RepoError>(())
        })?;
        if let (Content::List { root, .. }, Some(wanted)) = (content, &mut self.wanted) {
            collect_lists(root, &mut self.nodes, wanted)?;
        }
        for piece in pieces {
            if piece.id == ChunkId::HOLE {
                continue;
            }
            if let Some(wanted) = &mut self.wanted {
                wanted.insert(piece.id);
            }
            if !self.bad.contains_key(&piece.id) && self.repo.index.find(&piece.id)?.is_none() {
                self.bad.insert(piece.id, "no index run lists it".into());
            }
        }
        Ok(())
    }
}

fn collect_lists(root: &ChunkId, nodes: &mut TreeReader<'_, '_>, wanted: &mut HashSet<ChunkId>) -> Result<(), OpError> {
    let mut open = vec![*root];
    while let Some(id) = open.pop() {
        if wanted.insert(id)
            && let ListNode::Inner { children, .. } =
                ListNode::decode(&nodes.list_node(&id)?).map_err(RepoError::from)?
        {
            open.extend(children.iter().map(|(child, _)| *child));
        }
    }
    Ok(())
}

/// Chooses the packs to read, those verified longest ago first.
fn choose_packs(
    repo: &Repo,
    subset: &Subset,
    options: &Options,
    wanted: Option<&HashSet<ChunkId>>,
) -> Result<Vec<PackInfo>, OpError> {
    let mut packs = Vec::new();
    repo.index.packs(&mut |pack| packs.push(pack))?;
    if let Some(wanted) = wanted {
        let mut needed = HashSet::new();
        for id in wanted {
            needed.extend(repo.index.find_all(id)?.iter().map(|place| place.pack));
        }
        packs.retain(|pack| needed.contains(&pack.pack));
    }
    let mut aged = Vec::with_capacity(packs.len());
    for pack in packs {
        let verified = repo.index.verified(&pack.pack)?.map_or(i64::MIN, |ledger| ledger.at.0);
        aged.push((verified, pack));
    }
    if let Some(max_age) = options.max_age {
        let limit = host::now()
            .0
            .saturating_sub(i64::try_from(max_age.as_nanos()).unwrap_or(i64::MAX));
        aged.retain(|(verified, _)| *verified < limit);
    }
    aged.sort_by_key(|(verified, pack)| (*verified, pack.pack));
    let total: u64 = aged.iter().map(|(_, pack)| u64::from(pack.size)).sum();
    let take_bytes = |limit: u64| {
        let mut bytes = 0u64;
        aged.iter()
            .take_while(|(_, pack)| {
                let room = bytes < limit;
                bytes += u64::from(pack.size);
                room
            })
            .map(|(_, pack)| pack.clone())
            .collect::<Vec<_>>()
    };
    Ok(match subset {
        Subset::All => aged.into_iter().map(|(_, pack)| pack).collect(),
        Subset::Part { number, of } => aged
            .into_iter()
            .map(|(_, pack)| pack)
            .filter(|pack| {
                let bytes = pack.pack.0;
                u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) % of == number - 1
            })
            .collect(),
        Subset::Bytes(bytes) => take_bytes(*bytes),
        Subset::Share(share) => take_bytes((u128::from(total) * u128::from(*share) / 100_000) as u64),
    })
}

/// Reads packs whole and verifies every blob in them.
fn read_packs(
    repo: &Repo,
    reader: &BlobReader<'_>,
    packs: Vec<PackInfo>,
    options: &Options,
    bad: &mut Bad,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), OpError> {
    let started = Instant::now();
    progress
        .bytes_total
        .store(packs.iter().map(|pack| u64::from(pack.size)).sum(), Ordering::Relaxed);
    progress.totals_final.store(true, Ordering::Relaxed);
    let next = AtomicUsize::new(0);
    let late = AtomicBool::new(false);
    let verified = AtomicU64::new(0);
    let results: Mutex<(Vec<(ObjectName, PackVerdict)>, Option<RepoError>)> = Mutex::new((Vec::new(), None));
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                let mut verifier = PackVerifier {
                    repo,
                    reader,
                    opener: Opener::new(),
                    plain: Vec::new(),
                    buffer: Vec::new(),
                };
                loop {
                    if progress.is_cancelled() || results.lock().1.is_some() {
                        return;
                    }
                    if options.max_time.is_some_and(|limit| started.elapsed() >= limit) {
                        late.store(true, Ordering::Relaxed);
                        return;
                    }
                    let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    let name = pack_name(pack.kind, pack.pack, pack.session);
                    match verifier.verify(pack) {
                        Ok(verdict) => {
                            let fine = verdict.problem.is_none() && verdict.bad.is_empty();
                            if let Err(error) = repo.index.record_verified(&pack.pack, DATA_READ, host::now(), fine) {
                                results.lock().1 = Some(error.into());
                                return;
                            }
                            verified.fetch_add(verdict.chunks, Ordering::Relaxed);
                            progress.file_done(u64::from(pack.size));
                            results.lock().0.push((name, verdict));
                        }
                        Err(error) => {
                            results.lock().1.get_or_insert(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    if progress.is_cancelled() {
        return Err(OpError::Interrupted);
    }
    let (verdicts, error) = results.into_inner();
    if let Some(error) = error {
        return Err(error.into());
    }
    report.packs_read = verdicts.len() as u64;
    report.packs_left = packs.len() as u64 - report.packs_read;
    report.chunks_verified = verified.into_inner();
    for (name, verdict) in verdicts {
        report.bytes_read += verdict.bytes;
        if let Some(problem) = &verdict.problem {
            report.damage(&name, problem);
        }
        for (id, what) in verdict.bad {
            if verdict.problem.is_none() {
                report.damage(format!("chunk {id} in {name}"), &what);
            }
            let fine_elsewhere = elsewhere(repo, reader, &id, &name)?;
            if !fine_elsewhere {
                bad.insert(id, what);
            }
        }
    }
    Ok(())
}

/// Whether another copy of the chunk opens.
fn elsewhere(repo: &Repo, reader: &BlobReader<'_>, id: &ChunkId, name: &ObjectName) -> Result<bool, OpError> {
    let mut opener = Opener::new();
    let mut plain = Vec::new();
    for place in repo.index.find_all(id)? {
        let other = pack_name(place.kind, place.pack, place.session);
        if other != *name
            && reader
                .read_copy(type_of(place.stored_as), id, &place, &mut opener, &mut plain)
                .is_ok()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn type_of(stored_as: StoredAs) -> BlobType {
    match stored_as {
        StoredAs::Data | StoredAs::Delta => BlobType::Data,
        StoredAs::Node => BlobType::Node,
        StoredAs::List => BlobType::List,
        StoredAs::Manifest => BlobType::Manifest,
    }
}

fn stored_as(ty: BlobType) -> StoredAs {
    match ty {
        BlobType::Data => StoredAs::Data,
        BlobType::Node => StoredAs::Node,
        BlobType::List => StoredAs::List,
        BlobType::Manifest => StoredAs::Manifest,
    }
}

/// What reading one pack showed.
#[derive(Default)]
struct PackVerdict {
    bytes: u64,
    chunks: u64,
    /// What is wrong with the pack as a whole.
    problem: Option<String>,
    bad: Vec<(ChunkId, String)>,
}

struct PackVerifier<'a, 'r> {
    repo: &'a Repo,
    reader: &'a BlobReader<'r>,
    opener: Opener,
    plain: Vec<u8>,
    buffer: Vec<u8>,
}

impl PackVerifier<'_, '_> {
    /// # Errors
    /// When the store cannot be read: then nothing is known about the pack, which is not the same as damage.
    fn verify(&mut self, pack: &PackInfo) -> Result<PackVerdict, RepoError> {
        let name = pack_name(pack.kind, pack.pack, pack.session);
        let mut verdict = PackVerdict {
            bytes: u64::from(pack.size),
            ..PackVerdict::default()
        };
        // Damage is believed after reading again (I-8).
        let mut trailer = self.fetch_trailer(&name, pack)?;
        for _ in 0..2 {
            if trailer.is_err() {
                trailer = self.fetch_trailer(&name, pack)?;
            }
        }
        let trailer = match trailer {
            Ok(trailer) => trailer,
            Err(problem) => {
                verdict.problem = Some(problem);
                self.verify_by_index(pack, &mut verdict)?;
                return Ok(verdict);
            }
        };
        let slots: Arc<[Slot]> = trailer.slots.into();
        for record in &trailer.records {
            let place = ChunkPlace {
                pack: pack.pack,
                session: pack.session,
                kind: pack.kind,
                offset: record.offset,
                stored_len: record.stored_len,
                stored_as: if record.base.is_some() {
                    StoredAs::Delta
                } else {
                    stored_as(record.ty)
                },
                slots: slots.clone(),
                pack_size: pack.size,
            };
            self.blob(&record.id, &place, &mut verdict);
        }
        if let Some(problem) = self.disagreement(pack, &trailer.records)? {
            verdict.problem = Some(problem);
        }
        Ok(verdict)
    }

    /// Opens one blob of the pack in the buffer; on failure reads it once more by itself.
    fn blob(&mut self, id: &ChunkId, place: &ChunkPlace, verdict: &mut PackVerdict) {
        let ty = type_of(place.stored_as);
        let start = place.offset as usize;
        let opened = match self.buffer.get(start..start + place.stored_len as usize) {
            None => Err("its frame lies beyond the end of the pack".to_owned()),
            Some(frame) => match self
                .reader
                .open(ty, id, place, frame, &mut self.opener, &mut self.plain)
            {
                Ok(()) => Ok(()),
                Err(first) => self
                    .reader
                    .read_copy(ty, id, place, &mut self.opener, &mut self.plain)
                    .map_err(|_| chain(&first)),
            },
        };
        match opened {
            Ok(()) => verdict.chunks += 1,
            Err(what) => verdict.bad.push((*id, what)),
        }
    }

    /// For a pack whose own description cannot be read: what the index says is in it, as far as that still opens.
    fn verify_by_index(&mut self, pack: &PackInfo, verdict: &mut PackVerdict) -> Result<(), RepoError> {
        let slots = self.repo.index.slots_of_pack(&pack.pack)?.unwrap_or_default();
        for chunk in self.repo.index.chunks_of_pack(&pack.pack)? {
            let place = ChunkPlace {
                pack: pack.pack,
                session: pack.session,
                kind: pack.kind,
                offset: chunk.offset,
                stored_len: chunk.stored_len,
                stored_as: chunk.stored_as,
                slots: slots.clone(),
                pack_size: pack.size,
            };
            self.blob(&chunk.id, &place, verdict);
        }
        Ok(())
    }

    /// Whether the index says the same about the pack as its trailer.
    fn disagreement(&self, pack: &PackInfo, records: &[PackRecord]) -> Result<Option<String>, RepoError> {
        if records.len() != pack.blob_count as usize {
            return Ok(Some(format!(
                "it holds {} blobs, the index says {}",
                records.len(),
                pack.blob_count
            )));
        }
        let ids: Vec<ChunkId> = records.iter().map(|record| record.id).collect();
        let found = self.repo.index.find_many(&ids)?;
        for (record, preferred) in records.iter().zip(found) {
            let is_it = |place: &ChunkPlace| {
                place.pack == pack.pack
                    && place.offset == record.offset
                    && place.stored_len == record.stored_len
                    && type_of(place.stored_as) == record.ty
                    && (place.stored_as == StoredAs::Delta) == record.base.is_some()
            };
            let listed =
                preferred.as_ref().is_some_and(is_it) || self.repo.index.find_all(&record.id)?.iter().any(is_it);
            if !listed {
                return Ok(Some(format!(
                    "its trailer and the index disagree about chunk {}",
                    record.id
                )));
            }
        }
        Ok(None)
    }

    /// Reads the pack and opens its trailer; the inner error is damage, in words.
    fn fetch_trailer(&mut self, name: &ObjectName, pack: &PackInfo) -> Result<Result<PackTrailer, String>, RepoError> {
        if let Err(error) = self.fetch(name, pack) {
            return match &error {
                RepoError::Store { source, .. } if matches!(source.class, Failure::NotFound | Failure::Protocol) => {
                    self.buffer.clear();
                    Ok(Err(chain(&error)))
                }
                _ => Err(error),
            };
        }
        Ok(self.trailer(pack))
    }

    fn fetch(&mut self, name: &ObjectName, pack: &PackInfo) -> Result<(), RepoError> {
        let key = store_key(name);
        if self.repo.store.is_local() {
            self.buffer.resize(pack.size as usize, 0);
            self.repo
                .store
                .read_into(&key, 0, &mut self.buffer)
                .map_err(store_error("reading a pack"))
        } else {
            let bytes = self
                .repo
                .store
                .read(&key, Part::Whole)
                .map_err(store_error("reading a pack"))?;
            self.buffer.clear();
            self.buffer.extend_from_slice(&bytes);
            Ok(())
        }
    }

    /// Header, footer, body hash and trailer of the pack in the buffer.
    fn trailer(&self, pack: &PackInfo) -> Result<PackTrailer, String> {
        let parts = pack::check_whole(&self.buffer).map_err(|error| chain(&error))?;
        let header = parts.header;
        if header.pack != pack.pack || header.session != pack.session || header.kind != pack.kind {
            return Err("it is another pack under this name".into());
        }
        let key = self
            .repo
            .keys
            .object_key(header.epoch, ObjectClass::Trailer)
            .map_err(|error| chain(&error))?;
        parts
            .open(key)
            .map_err(|error| format!("its trailer: {}", chain(&error)))
    }
}

fn note_ages(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    let mut packs = Vec::new();
    repo.index.packs(&mut |pack| packs.push(pack.pack))?;
    let mut oldest: Option<i64> = None;
    for pack in packs {
        match repo.index.verified(&pack)? {
            Some(ledger) if ledger.sound => {
                oldest = Some(oldest.map_or(ledger.at.0, |time: i64| time.min(ledger.at.0)));
            }
            _ => report.never_verified += 1,
        }
    }
    report.oldest_verified = oldest.filter(|_| report.never_verified == 0);
    Ok(())
}

/// Names the files that damaged chunks belong to, and the snapshots that they are in.
fn name_files(reader: &BlobReader<'_>, snapshots: &[Snapshot], bad: &Bad, report: &mut Report) -> Result<(), OpError> {
    let mut nodes = TreeReader::uncached(reader);
    let mut files: BTreeMap<Vec<u8>, BTreeSet<String>> = BTreeMap::new();
    for snapshot in snapshots {
        let label = short_id(&snapshot.id);
        for root in &snapshot.manifest.roots {
            let mut walk = RootWalk::whole(root);
            loop {
                let visited = match walk.next(&mut nodes) {
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                    Err(error) if error.is_damage() => {
                        let mut path = root.path.clone();
                        path.extend_from_slice(b" (a part of its tree)");
                        files.entry(path).or_default().insert(label.clone());
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                if uses_bad(&visited.entry, bad, &mut nodes)? {
                    files
                        .entry(full_path(root, &visited.key)?)
                        .or_default()
                        .insert(label.clone());
                }
            }
        }
    }
    report.damaged_files_total = files.len() as u64;
    report.damaged_files = files
        .into_iter()
        .take(FILES_NAMED_MAX)
        .map(|(path, snapshots)| DamagedFile {
            path,
            snapshots: snapshots.into_iter().collect(),
        })
        .collect();
    Ok(())
}

fn uses_bad(entry: &Entry, bad: &Bad, nodes: &mut TreeReader<'_, '_>) -> Result<bool, OpError> {
    let mut contents: Vec<(&Content, u64)> = entry
        .content()
        .map(|content| (content, entry.size()))
        .into_iter()
        .collect();
    contents.extend(
        entry
            .attributes
            .xattrs_outline
            .iter()
            .map(|(_, size, content)| (content, *size)),
    );
    for (content, size) in contents {
        let mut hit = matches!(content, Content::List { root, .. } if bad.contains_key(root));
        let walked = for_each_piece(content, size, 0..size, nodes, &mut |_, piece| {
            hit |= bad.contains_key(&piece.id);
            Ok::<(), RepoError>(())
        });
        match walked {
            Ok(()) if hit => return Ok(true),
            Ok(()) => {}
            Err(error) if error.is_damage() => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
