//! What can be written on the command line, and the help.

use super::names::{
    Every, LockArg, parse_count, parse_duration, parse_every, parse_lock, parse_percent, parse_rate, parse_session,
    parse_size, parse_span, parse_tag, parse_words,
};
use crate::pure::id::SessionId;
use crate::pure::plan::policy::Span;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

/// Layout of the help for the whole program: commands by task, then examples.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Set up:
  repo init           make a repository
  repo key            passwords and key files that open it
  completions, man    for the shell and for reading

Every night:
  backup              back up files, standard input or the output of a command
  snapshot list       what there is

Get data back:
  restore             files into a directory
  dump                one file, or a tar archive, to standard output
  ls, find            look into snapshots
  diff                what changed between two snapshots
  snapshot show       everything about one

Keep it healthy:
  repo check          audit the repository
  snapshot forget     forget old snapshots, by a policy or by name
  snapshot hold       keep one whatever the policy says; snapshot release
  repo repair         mend what check has found
  repo prune          give back the space of forgotten snapshots; repo undelete
  repo replicate      keep a sealed copy in another place; repo promote
  repo object-lock    have a bucket lock what is written
  repo copy           copy snapshots into a repository with other keys
  repo doctor         look whether bucket, disk, clock and keys are as they should be
  repo info, stats    format and keys; sizes

Options:
{options}
{after-help}";

const EXAMPLES: &str = "\
Examples:
  export LARDER_REPO=/mnt/disk/backup
  larder repo init
  larder backup /home /etc --exclude '*.tmp'
  pg_dump shop | larder backup --stdin --name shop.sql
  larder backup --exec --name shop.sql -- pg_dump shop
  larder snapshot list
  larder restore latest:/home/anna/letters --target /tmp/letters
  larder repo check --read-data-subset 5%
  larder snapshot forget --keep-daily 30 --keep-weekly 12 --keep-monthly 12 --keep-yearly 7 --dry-run

SNAPSHOT is the beginning of an id, `latest`, `latest:SOURCE-NAME`, or `@2026-11-20T03:00Z` (the newest at or before then).

Exit codes: 0 done in full, 1 wrong use, 2 busy, 3 some of the source could not be read, 4 damage, 5 repository or target
unavailable, 6 wrong key, 7 tampering or a gap in history, 8 internal error, 9 refused, 75 time limit, 130 interrupted.";

const SNAPSHOT_HELP: &str = "\
SNAPSHOT is the beginning of an id, `latest`, `latest:SOURCE-NAME`, or `@TIME` (2026-11-20T03:00Z, or local time without the Z, or
a date): the newest at or before then. Only an id can mean a checkpoint, the part that a run had done which did not end. With `:PATH` after it, a place in the snapshot. A path after `latest`, `latest:NAME` or
`@TIME` begins with a slash; what follows `latest:` without one is the name of a source.";

/// Encrypted, deduplicated backups on disks and S3.
#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    about = "larder keeps encrypted, deduplicated backups on disks and S3.",
    help_template = HELP,
    after_help = EXAMPLES,
    max_term_width = 120,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command. Those with an environment variable are completed by `env`.
#[derive(Clone, Debug, Default, Args)]
pub struct Globals {
    /// Repository: a path, file:///path or s3://bucket/prefix [env: LARDER_REPO]
    #[arg(short, long, global = true, value_name = "REPO", value_hint = ValueHint::AnyPath, help_heading = "Repository")]
    pub repo: Option<OsString>,
    /// File whose first line is the password [env: LARDER_PASSWORD_FILE; the password itself: LARDER_PASSWORD]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Repository")]
    pub password_file: Option<PathBuf>,
    /// Shell command that prints the password [env: LARDER_PASSWORD_COMMAND]
    #[arg(
        long,
        global = true,
        value_name = "COMMAND",
        conflicts_with = "password_file",
        help_heading = "Repository"
    )]
    pub password_command: Option<String>,
    /// Key file to open the repository with, instead of a password [env: LARDER_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["password_file", "password_command"],
          value_hint = ValueHint::FilePath, help_heading = "Repository")]
    pub key_file: Option<PathBuf>,
    /// Shell command that prints the key, for key management systems and password stores [env: LARDER_KEY_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", conflicts_with_all = ["password_file", "password_command", "key_file"],
          help_heading = "Repository")]
    pub key_command: Option<String>,
    /// Where the disposable local index is kept [env: LARDER_CACHE_DIR] [default: ~/.cache/larder]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Repository")]
    pub cache_dir: Option<PathBuf>,
    /// How much of the snapshots' trees the cache may keep [default: 512M]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, help_heading = "Repository")]
    pub cache_size: Option<u64>,
    /// Configuration file [env: LARDER_CONFIG] [default: ~/.config/larder/config.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Repository")]
    pub config: Option<PathBuf>,
    /// Profile of the configuration file [env: LARDER_PROFILE] [default: default]
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Repository")]
    pub profile: Option<String>,
    /// Address of an S3 service other than AWS [env: AWS_ENDPOINT_URL_S3]
    #[arg(long, global = true, value_name = "URL", help_heading = "Repository")]
    pub s3_endpoint: Option<String>,
    /// Address buckets as https://host/bucket [default: if there is an endpoint]
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true,
          help_heading = "Repository")]
    pub s3_path_style: Option<bool>,
    /// Allow plain http to other machines: everything is encrypted, but credentials and names can be misused
    #[arg(long, global = true, help_heading = "Repository")]
    pub insecure_http: bool,
    /// Read a bucket that keeps versions as it was at TIME, before somebody deleted or overwrote; for commands that only read
    #[arg(long, global = true, value_name = "TIME", help_heading = "Repository")]
    pub as_of: Option<String>,
    /// Print JSON: one object, or one for each line (see docs/json.md)
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Print a JSON object with the progress every second
    #[arg(long, global = true, requires = "json", help_heading = "Output")]
    pub json_progress: bool,
    /// Print nothing but errors and what was asked for
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Print more
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", help_heading = "Output")]
    pub verbose: u8,
    /// Draw no progress bar
    #[arg(long, global = true, help_heading = "Output")]
    pub no_progress: bool,
    /// Requests to a remote store that may be under way at once
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Machine")]
    pub connections: Option<u16>,
    /// Threads that compute [default: one for each processor]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Machine")]
    pub threads: Option<u16>,
    /// Memory to stay below, by smaller packs, fewer uploads and fewer threads; at least 144M
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Bytes per second to write to the repository at most, over all threads: 500K, 1.5MiB; listings are not counted
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = "Machine")]
    pub limit_upload: Option<NonZeroU64>,
    /// Bytes per second to read from the repository at most
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = "Machine")]
    pub limit_download: Option<NonZeroU64>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, look at, check and open a repository
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Repo(RepoCommand),
    /// Back up files, standard input or the output of a command
    Backup(BackupArgs),
    /// Restore files into a directory
    Restore(RestoreArgs),
    /// Write one file, or a tar archive, to standard output
    Dump(DumpArgs),
    /// List what is in a snapshot
    Ls(LsArgs),
    /// Find files by name in all snapshots
    Find(FindArgs),
    /// Show what changed between two snapshots
    Diff(DiffArgs),
    /// List, show, tag, hold and forget snapshots
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Snapshot(SnapshotCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  larder completions bash > /etc/bash_completion.d/larder")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of larder or of a command
    #[command(after_help = "Example:\n  larder man backup | man -l -")]
    Man {
        /// Command, for instance: backup, or: repo check
        command: Vec<String>,
    },
    /// For tests and benchmarks
    #[command(subcommand, hide = true, subcommand_required = true)]
    Debug(DebugCommand),
}

#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Make a repository whose index knows many chunks that do not exist
    GenerateRepo {
        /// How many
        #[arg(long, value_name = "N")]
        chunks: u64,
    },
}

#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Make a repository
    #[command(
        after_help = "Examples:\n  larder -r /mnt/disk/backup repo init\n  larder -r s3://bucket/prefix repo init --new-key-file /home/ann/larder.key"
    )]
    Init(InitArgs),
    /// Show format, keys and settings
    Info,
    /// Show sizes: of the data, of what is stored, for each source
    Stats,
    /// Check that everything is there and whole
    #[command(
        after_help = "Examples:\n  larder repo check\n  larder repo check --read-data\n  larder repo check --read-data-subset 5% --max-time 1h\n\n\
Without --read-data, everything but the data itself is read: every object that is needed is there, opens, and agrees with the others.\n\
What --read-data has verified is remembered on this machine; subsets by share or size begin with what was verified longest ago."
    )]
    Check(CheckArgs),
    /// Give back the space of forgotten snapshots
    #[command(
        after_help = "Examples:\n  larder repo prune --dry-run\n  larder repo prune\n  larder repo prune --max-unused 20% --max-repack 50G\n\
  larder repo prune --rekey --max-repack 50G\n\n\
Backups go on meanwhile, here and on other machines. What no snapshot needs is condemned first, and deleted when every running backup has\n\
taken note of that: at once if none is running, otherwise by a later prune (a backup looks every quarter of an hour, and one that\n\
uses such a pack itself only lets go of it when it ends).\n\
Whatever is missing or cannot be read stops it before anything is deleted."
    )]
    Prune(PruneArgs),
    /// Bring forgotten snapshots back, as long as their data has not been deleted
    #[command(
        after_help = "Examples:\n  larder repo undelete\n  larder repo undelete 3caafa55\n\n\
Without a snapshot, it lists what was forgotten. A snapshot that is brought back gets a new id. `repo prune` deletes at once what nothing\n\
needs, unless it is given --grace: then there is that much time."
    )]
    Undelete {
        /// Forgotten snapshots, by id
        snapshots: Vec<String>,
    },
    /// Look whether bucket, disk, clock, cache and keys are as they should be
    #[command(
        after_help = "Examples:\n  larder repo doctor\n  larder repo doctor --max-age 26h --json\n\n\
It changes nothing, but for a few small objects below tmp/ that it writes and deletes to try the store out. Without a password it looks at\n\
everything that needs none. It ends with 0 if there is no problem and nothing that may hide one, with 1 if there is a problem, and with 3 if\n\
something that matters could not be looked at. What was refused is never taken for good."
    )]
    Doctor(DoctorArgs),
    /// Copy snapshots into another repository, which has other keys
    #[command(
        after_help = "Examples:\n  larder repo copy --to /mnt/other/backup --to-key-file other.key\n\
  larder repo copy --to s3://other/backup latest:shop\n\n\
Contents are read, cut and encrypted anew. Of an entry that has not changed since the snapshot before, nothing is read. What has been\n\
copied is not copied again, so it is run after the backups; a copy that was forgotten does not come back, unless its snapshot is named.\n\
The password of the other repository: --to-password-file and its kind, or LARDER_TO_PASSWORD, LARDER_TO_PASSWORD_FILE,\n\
LARDER_TO_PASSWORD_COMMAND, LARDER_TO_KEY_FILE, LARDER_TO_KEY_COMMAND. Credentials for its place: as for `repo replicate`."
    )]
    Copy(CopyArgs),
    /// Bring a replica in another place up to date: a sealed copy, for which no key is needed
    #[command(
        after_help = "Examples:\n  larder -r /mnt/disk/backup repo replicate --to s3://second/backup\n\
  larder -r s3://first/backup repo replicate --to s3://second/backup --to-aws-profile second --dry-run\n\
  larder -r s3://second/backup restore latest --target /tmp/back\n\n\
Everything is copied as it is; the same passwords and keys open the replica, and every snapshot in it restores from it alone. Only what is\n\
missing is copied, so it is run after the backups, as often as the replica may be behind. Nothing is deleted from the replica, unless with\n\
--delete. Nobody else writes to a replica, until `repo promote` makes it the primary.\n\n\
Credentials for the other place: --to-aws-profile, or LARDER_TO_AWS_ACCESS_KEY_ID, LARDER_TO_AWS_SECRET_ACCESS_KEY and\n\
LARDER_TO_AWS_SESSION_TOKEN (and LARDER_TO_AWS_REGION); otherwise the same as for the repository."
    )]
    Replicate(ReplicateArgs),
    /// Make this replica the primary: the place that backups are written to
    #[command(after_help = "Example:\n  larder -r s3://second/backup repo promote\n\n\
For when the primary is lost, or to be given up. Make sure that no machine writes to the old one any more. If that comes back,\n\
`larder -r NEW repo replicate --to OLD` makes it a replica, unless it was written to meanwhile: then both have to be kept.")]
    Promote {
        /// Even if something is missing in its history: nothing can be pruned in it then
        #[arg(long)]
        force: bool,
    },
    /// Keep parity beside every object of a repository in a directory, against bad sectors
    #[command(
        after_help = "Examples:\n  larder repo parity --dry-run\n  larder repo parity\n  larder repo parity --verify\n  larder repo parity --remove\n\n\
Turns parity on and writes what is missing; from then on, whoever writes to the repository keeps it up. It takes 4 % more space, and `larder\n\
repo repair` then puts damaged packs back as they were: up to 4 blocks of 4 KiB in every hundred, or 0.65 MiB in a row in 16 MiB. Objects\n\
below 64 KiB have a plain copy, and come back even if they are gone; a whole pack that is gone does not. Passwords and key files have no\n\
copy: have two of them. Objects that are damaged already get none; they are named, with exit code 4. Not for buckets."
    )]
    Parity(ParityArgs),
    /// Have the bucket lock what is written, so that nobody can delete it for some days
    #[command(
        after_help = "Examples:\n  larder repo object-lock governance:30\n  larder repo object-lock compliance:90 --extend-below 30\n  larder repo object-lock off\n\n\
Needs a bucket that was made with Object Lock; whether it locks is tried out first. What is written from then on is locked for so many\n\
days, and `larder repo prune` extends the locks of what snapshots need, so it has to run more often than every --extend-below days. What\n\
nothing needs any more is deleted when its lock is over. `governance` can be lifted by whoever has the right to, `compliance` by nobody.\n\
After somebody has deleted or overwritten objects, `--as-of` reads the repository as it was before."
    )]
    ObjectLock(ObjectLockArgs),
    /// Mend what is damaged; only ever adds
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Repair(RepairCommand),
    /// List, add and remove passwords and key files
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Key(KeyCommand),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Make a key file and use it instead of a password
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_key_file: Option<PathBuf>,
    /// Also make a paper key, which opens the repository without the password, and print it
    #[arg(long)]
    pub paper_key: bool,
    /// Have the bucket lock what is written for so many days; see `repo object-lock`
    #[arg(long, value_name = "governance:DAYS|compliance:DAYS", value_parser = parse_lock)]
    pub object_lock: Option<LockArg>,
}

#[derive(Debug, Args)]
pub struct ObjectLockArgs {
    /// How firmly, and for how many days; or: off
    #[arg(value_name = "governance:DAYS|compliance:DAYS|off", value_parser = parse_lock)]
    pub lock: LockArg,
    /// Extend locks of what is needed when less than so many days are left [default: half of the days]
    #[arg(long, value_name = "DAYS")]
    pub extend_below: Option<u32>,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Read and verify all data
    #[arg(long)]
    pub read_data: bool,
    /// Read and verify some data: 5% or 10G of what was verified longest ago, or part 2/7 of everything
    #[arg(long, value_name = "5%|N/M|SIZE", conflicts_with = "read_data")]
    pub read_data_subset: Option<String>,
    /// Start reading no further pack after this long, and exit 75 if some are left; implies --read-data
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub max_time: Option<Duration>,
    /// Skip packs that were verified more recently than this; implies --read-data
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub max_age: Option<Duration>,
    /// Check only what this snapshot needs
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
}

#[derive(Debug, Default, Args)]
pub struct PruneArgs {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Keep packs for this long after they were condemned
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    /// Rewrite packs of which more than this is unused [default: 20% with --max-repack, else none are rewritten]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub max_unused: Option<u32>,
    /// Rewrite badly used packs, copying at most so much [default: no limit with --max-unused]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_repack: Option<u64>,
    /// Rewrite all packs that are sealed with secrets of before the last `repo key rotate`
    #[arg(long)]
    pub rekey: bool,
    /// Do not wait for this session: the machine that ran it is gone. If it is not, its backup has to be run again
    #[arg(long, value_name = "SESSION", value_parser = parse_session)]
    pub end_session: Vec<SessionId>,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A problem if the newest complete snapshot of a source is older than this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub max_age: Option<Duration>,
}

/// Another place than that of the repository.
#[derive(Debug, Default, Args)]
pub struct ToArgs {
    /// The other place: a path, file:///path or s3://bucket/prefix [env: LARDER_TO_REPO]
    #[arg(long, value_name = "REPO", value_hint = ValueHint::AnyPath)]
    pub to: Option<OsString>,
    /// Profile of the configuration file for the other place
    #[arg(long, value_name = "NAME")]
    pub to_profile: Option<String>,
    /// Address of its S3 service [env: LARDER_TO_S3_ENDPOINT] [default: that of the repository]
    #[arg(long, value_name = "URL")]
    pub to_s3_endpoint: Option<String>,
    /// Address its buckets as https://host/bucket [default: if there is an endpoint]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub to_s3_path_style: Option<bool>,
    /// Profile of the AWS configuration whose credentials are used there
    #[arg(long, value_name = "NAME")]
    pub to_aws_profile: Option<String>,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Snapshots [default: all that are complete]
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    #[command(flatten)]
    pub to: ToArgs,
    /// File with the password of the other repository
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to_password_file: Option<PathBuf>,
    /// Shell command that prints the password of the other repository
    #[arg(long, value_name = "COMMAND", conflicts_with = "to_password_file")]
    pub to_password_command: Option<String>,
    /// Key file of the other repository
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to_password_file", "to_password_command"], value_hint = ValueHint::FilePath)]
    pub to_key_file: Option<PathBuf>,
    /// Shell command that prints the key of the other repository
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["to_password_file", "to_password_command", "to_key_file"])]
    pub to_key_command: Option<String>,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// zstd level of what is stored
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u32).range(1..=19))]
    pub zstd_level: Option<u32>,
    /// Only say which snapshots would be copied
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ReplicateArgs {
    #[command(flatten)]
    pub to: ToArgs,
    /// Only say how far the replica is behind
    #[arg(long)]
    pub dry_run: bool,
    /// Read the whole replica, compare it with the source, and replace what is damaged there
    #[arg(long)]
    pub verify: bool,
    /// Delete packs that were swept at the source, holds that were released and passwords that were removed there; needs a password or key
    #[arg(long, conflicts_with = "dry_run")]
    pub delete: bool,
}

#[derive(Debug, Args)]
pub struct ParityArgs {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Read what is there as well, and write anew what of it is damaged
    #[arg(long)]
    pub verify: bool,
    /// Turn parity off, and delete all of it
    #[arg(long, conflicts_with = "verify")]
    pub remove: bool,
}

#[derive(Debug, Subcommand)]
pub enum RepairCommand {
    /// Write the index anew where it is missing or damaged
    #[command(
        after_help = "Examples:\n  larder repo repair index --dry-run\n  larder repo repair index\n\n\
Index runs say what lies in which pack, and every pack says at its end what is in it. Where runs are missing or cannot be read, this reads the\n\
ends of the packs that no other run describes, and lists them again. What parity rebuilds is put back before. Exit code 4 if something could not be listed."
    )]
    Index {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy what can be read out of damaged packs, and say what is lost
    #[command(
        after_help = "Examples:\n  larder repo repair packs --dry-run\n  larder repo repair packs --read-data\n\n\
Without --read-data, packs that are missing, too short, or that a check on this machine has found damaged are mended. Those that parity\n\
rebuilds (`larder repo parity`) are put back as they were. What opens in the others is\n\
copied into new packs, and nothing refers to the old ones any more. What is lost is stored again by the next backup of its source, if it is\n\
still there: it has the same ids, so older snapshots have it again too. Damaged packs are kept until then.\n\
Exit code 4 if something is lost and cannot be restored."
    )]
    Packs(RepairPacksArgs),
    /// Say which snapshots cannot be read and which files are lost; void what stops prune
    #[command(
        after_help = "Examples:\n  larder repo repair snapshots\n  larder repo repair snapshots --void 0123456789abcdef0123456789abcdef\n\n\
A snapshot is lost with the one object that publishes it. While such an object does not open, nothing is deleted in the repository.\n\
Where there is parity (`larder repo parity`), it is put back first.\n\
Look for a good copy of it (of the repository, or of the disk): put under its name it is as if nothing had been. Where there is none, an\n\
admin voids it: it counts as none from then on, and what its run had stored is listed again, so that other snapshots keep it."
    )]
    Snapshots {
        /// Only say what parity would put back
        #[arg(long, conflicts_with = "void")]
        dry_run: bool,
        /// Count this session, whose outcome does not open, as one without an outcome; all 32 digits
        #[arg(long, value_name = "SESSION", value_parser = parse_session)]
        void: Option<SessionId>,
    },
}

#[derive(Debug, Args)]
pub struct RepairPacksArgs {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Read and verify all data first
    #[arg(long)]
    pub read_data: bool,
    /// Take these packs for damaged, whatever a check says: names (data/…, meta/…) or ids
    #[arg(value_name = "PACK")]
    pub packs: Vec<String>,
    /// Show what is lost for good; with the code that this prints, accept it: prune then goes on over it, and keeps no damaged pack for it
    #[arg(long, value_name = "CODE", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["packs", "read_data", "dry_run"])]
    pub accept_loss: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List what opens the repository
    List,
    /// Add a password or a key file for the same key
    #[command(
        after_help = "Examples:\n  larder repo key add\n  larder repo key add --new-password-file /home/ann/second --hint 'in the safe'\n  larder repo key add --new-key-file /home/ann/larder.key"
    )]
    Add(KeyAddArgs),
    /// Give a machine or a person a key of its own
    #[command(
        after_help = "Examples:\n  larder repo key add-writer web1 --new-key-file web1.key\n  larder repo key add-writer cleaner --duty maintainer --new-key-file cleaner.key\n  \
larder repo key add-writer web2 --duty put-only --new-key-file web2.key\n\n\
A key of its own for each machine keeps their histories apart, and one that is stolen cannot forget, prune or add keys. What the store's\n\
own credentials allow is another matter: limit those as well. `put-only` is for machines that may fall into wrong hands: their keys read\n\
nothing back, not even what they wrote themselves. On S3, the policy that goes with a key that writes is printed (`key policy`)."
    )]
    AddWriter(KeyAddWriterArgs),
    /// Take a key back: what it publishes from now on does not count
    #[command(
        after_help = "Examples:\n  larder repo key revoke web2\n  larder repo key rotate\n\n\
What the key has published counts, and stays. Whoever has it can still open what he has a copy of: `rotate` afterwards keeps what is\n\
written from then on from him. Take the credentials for the store away as well. If it is interrupted, run it again."
    )]
    Revoke(KeyRevokeArgs),
    /// Draw new secrets for all that is written from now on
    #[command(after_help = "Example:\n  larder repo key revoke web2 && larder repo key rotate\n\n\
All holders that are not revoked get the new secrets with their grants; nobody needs to do anything. What is there stays as it is and\n\
readable, and is still recognised, so nothing is uploaded again. If it is interrupted, run it again: it goes on.")]
    Rotate,
    /// Print the S3 policy that lets a machine do what its key is for, and no more
    #[command(
        after_help = "Examples:\n  larder repo key policy web2 > web2.json\n  larder repo key policy web2 --principal arn:aws:iam::111122223333:user/web2\n\n\
Without --principal it is a policy for the user that the machine's credentials belong to; with it, one for the bucket. It lets nobody\n\
overwrite or delete anything, nor write under the names of another machine, and those who only write read no packs."
    )]
    Policy(KeyPolicyArgs),
    /// Remove a password or key file
    Remove(KeyRemoveArgs),
    /// Make a paper key and print it: 65 letters and digits that open the repository without the password
    #[command(
        after_help = "Examples:\n  larder repo key export-paper | lpr\n  larder --key-file typed.txt snapshot list\n\n\
Each call makes another key, which `repo key list` shows and `repo key remove` removes. It is accepted at the password prompt, and in a\n\
file with --key-file. Letters may be large or small, spaces do not matter, and a mistyped one is noticed."
    )]
    ExportPaper(PaperExportArgs),
    /// Type in a paper key, and add a new password or key file with it
    #[command(
        after_help = "Examples:\n  larder repo key import-paper\n  larder repo key import-paper typed.txt --new-key-file /home/ann/larder.key"
    )]
    ImportPaper(PaperImportArgs),
}

#[derive(Debug, Args)]
pub struct PaperExportArgs {
    /// Words that remind of which one it is; everybody who can read the repository's storage can read them
    #[arg(long, value_name = "TEXT", default_value = "paper key")]
    pub hint: String,
}

#[derive(Debug, Args)]
pub struct PaperImportArgs {
    /// File with the paper key [default: standard input, up to an empty line]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub new: KeyAddArgs,
}

#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// File whose first line is the new password [default: ask]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_password_file: Option<PathBuf>,
    /// Make a key file and add it
    #[arg(long, value_name = "FILE", conflicts_with = "new_password_file", value_hint = ValueHint::FilePath)]
    pub new_key_file: Option<PathBuf>,
    /// Add the key that this shell command prints: 32 random bytes, or 64 hexadecimal digits
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["new_password_file", "new_key_file"])]
    pub new_key_command: Option<String>,
    /// Words that remind of which one it is; everybody who can read the repository's storage can read them
    #[arg(long, value_name = "TEXT")]
    pub hint: Option<String>,
}

#[derive(Debug, Args)]
pub struct KeyAddWriterArgs {
    /// Name of the machine or person; everybody who can read the repository's storage can read it
    pub label: String,
    /// What the key is for
    #[arg(long, value_enum, default_value = "backup")]
    pub duty: DutyArg,
    /// File whose first line is the password of the new key [default: ask]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_password_file: Option<PathBuf>,
    /// Make a key file for the new key
    #[arg(long, value_name = "FILE", conflicts_with = "new_password_file", value_hint = ValueHint::FilePath)]
    pub new_key_file: Option<PathBuf>,
    /// Open the new key with what this shell command prints: 32 random bytes, or 64 hexadecimal digits
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["new_password_file", "new_key_file"])]
    pub new_key_command: Option<String>,
}

#[derive(Debug, Args)]
pub struct KeyRevokeArgs {
    /// Label of the key, or its id
    pub key: String,
    /// Even if outcomes are missing from the history: if one of this key is, the snapshot will not count
    #[arg(long)]
    pub despite_gaps: bool,
}

#[derive(Debug, Args)]
pub struct KeyPolicyArgs {
    /// Label of the key, or its id [default: the key in use]
    pub key: Option<String>,
    /// Whom a bucket's policy is about
    #[arg(long, value_name = "ARN")]
    pub principal: Option<String>,
    /// Leave out the condition `s3:if-none-match`, for stores that do not know it (Ceph) and would refuse everything
    #[arg(long)]
    pub no_condition: bool,
}

/// What a new key is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DutyArg {
    /// Back up, and read nothing back
    PutOnly,
    /// Back up and restore
    Backup,
    /// Look, check and restore
    Reader,
    /// Forget, hold, prune and check
    Maintainer,
    /// Everything
    Admin,
}

#[derive(Debug, Args)]
pub struct KeyRemoveArgs {
    /// Number, from `repo key list`
    pub number: u32,
    /// Remove it although it is the one in use
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder backup /home /etc --exclude '*.tmp' --exclude-caches --tag machine=web1
  pg_dump shop | larder backup --stdin --name shop.sql
  larder backup --exec --name shop.sql -- pg_dump shop

Patterns are those of .gitignore: `*.tmp` anywhere, `/home/*/.cache` from the root on, `build/` only directories, `!keep.tmp` takes back.
Files that did not change since the last snapshot of the same source are not read. The repository and the cache are left out.

A checkpoint comes between two files, and is listed as `(checkpoint) (partial)`. `latest` and `@TIME` never mean one: to restore from it,
give its id. The next run of the same source does not read again what it holds. Streams have no checkpoints.")]
pub struct BackupArgs {
    /// Files and directories
    #[arg(value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    pub sources: Vec<OsString>,
    /// Back up standard input
    #[arg(long, requires = "name", conflicts_with_all = ["sources", "exec"])]
    pub stdin: bool,
    /// Back up the output of the command after `--`; no snapshot unless it exits with 0
    #[arg(long, requires = "name", conflicts_with = "sources")]
    pub exec: bool,
    /// Name of the source, under which its snapshots belong together; with --stdin and --exec also of the file
    /// [default: the paths]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Leave out what matches
    #[arg(short, long, value_name = "PATTERN", help_heading = "Choice")]
    pub exclude: Vec<OsString>,
    /// Leave out what matches a line of a file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Choice")]
    pub exclude_file: Vec<PathBuf>,
    /// Leave out the content of directories with a CACHEDIR.TAG
    #[arg(long, help_heading = "Choice")]
    pub exclude_caches: bool,
    /// Leave out larger files
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Choice")]
    pub exclude_larger_than: Option<u64>,
    /// Stay in the file systems of the sources
    #[arg(short = 'x', long, help_heading = "Choice")]
    pub one_file_system: bool,
    /// Label the snapshot: KEY=VALUE or a word
    #[arg(long, value_name = "TAG", value_parser = parse_tag)]
    pub tag: Vec<String>,
    /// Host to store [default: this one]
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Compare with this snapshot [default: the newest of the same source, and checkpoints after it]
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "force_rehash")]
    pub parent: Option<String>,
    /// Read every file, also those that seem unchanged
    #[arg(long)]
    pub force_rehash: bool,
    /// Publish what a long run has done so far, as a checkpoint: a partial snapshot, from which the next run goes on
    /// [default: 6h, and every 256 GiB; or: never]
    #[arg(long, value_name = "DURATION", value_parser = parse_every)]
    pub checkpoint_every: Option<Every>,
    /// Compression level of zstd, 1 to 19 [default: the repository's]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u32).range(1..=19))]
    pub compression_level: Option<u32>,
    /// Whether chunks that resemble those of the last snapshot are stored as differences
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub delta: DeltaArg,
    /// Say what would be read, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Command and arguments for --exec
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Narrows down which snapshots are meant.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterArgs {
    /// Only snapshots of this host
    #[arg(long, value_name = "HOST", help_heading = "Which snapshots")]
    pub host: Option<String>,
    /// Only snapshots of the source with this name
    #[arg(long, value_name = "NAME", help_heading = "Which snapshots")]
    pub source: Option<String>,
    /// Only snapshots with this tag; all of them if given several times
    #[arg(long, value_name = "TAG", help_heading = "Which snapshots")]
    pub tag: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = SNAPSHOT_HELP)]
pub struct RestoreArgs {
    /// Snapshot: everything under its full path. SNAPSHOT:PATH: the contents of that directory, or that file
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    pub snapshot: OsString,
    /// Directory to restore into; made if it is not there
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub target: PathBuf,
    /// Restore only what matches
    #[arg(short, long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Leave out what matches
    #[arg(short, long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Remove from the target what the snapshot does not have
    #[arg(long)]
    pub delete: bool,
    /// What becomes of files that are there
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = OverwriteArg::IfChanged)]
    pub overwrite: OverwriteArg,
    /// Read everything back and compare
    #[arg(long)]
    pub verify: bool,
    /// Say what would be restored, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do not restore owners
    #[arg(long, help_heading = "Metadata")]
    pub no_owner: bool,
    /// Give files to the users and groups that have the same names here [default: the same numbers]
    #[arg(long, conflicts_with = "no_owner", help_heading = "Metadata")]
    pub owner_by_name: bool,
    /// Do not restore extended attributes, access lists and capabilities
    #[arg(long, help_heading = "Metadata")]
    pub no_xattrs: bool,
    /// Do not restore device nodes
    #[arg(long, help_heading = "Metadata")]
    pub no_devices: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// What becomes of files that are in the target already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OverwriteArg {
    /// They are written anew
    Always,
    /// They are compared, and written anew where they differ
    IfChanged,
    /// Those that are as new or newer are left alone
    IfNewer,
    /// They are left alone
    Never,
}

#[derive(Debug, Args)]
#[command(after_help = SNAPSHOT_HELP)]
pub struct DumpArgs {
    /// Snapshot
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    pub snapshot: OsString,
    /// Path of the file; with --archive of a file or directory [default then: everything]
    pub path: Option<OsString>,
    /// Write an archive
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub archive: Option<ArchiveArg>,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// When chunks are stored as deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeltaArg {
    /// In a local repository
    Auto,
    /// In a remote one too: bases are fetched from it
    Always,
    /// Every chunk by itself
    Never,
}

/// Format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchiveArg {
    Tar,
}

#[derive(Debug, Args)]
#[command(after_help = SNAPSHOT_HELP)]
pub struct LsArgs {
    /// Snapshot, and a place in it
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    pub snapshot: OsString,
    /// Show mode, owner, size and time
    #[arg(short, long)]
    pub long: bool,
    /// Everything below, too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Patterns are those of .gitignore: `*.conf` and `passwd` match names, `/etc/*.conf` matches paths."
)]
pub struct FindArgs {
    /// Pattern of the name, or of the path if there is a slash in it
    pub pattern: OsString,
    /// Look into this snapshot only
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
    /// Only what was changed after this time
    #[arg(long, value_name = "TIME")]
    pub newer: Option<String>,
    /// Show mode, owner, size and time
    #[arg(short, long)]
    pub long: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "+ added, - removed, M content changed, T type changed, U only metadata changed (with --metadata)"
)]
pub struct DiffArgs {
    /// The older one
    #[arg(value_name = "SNAPSHOT")]
    pub old: String,
    /// The newer one
    #[arg(value_name = "SNAPSHOT")]
    pub new: String,
    /// Only what is at or below this path
    #[arg(long, value_name = "PATH")]
    pub path: Option<OsString>,
    /// Show what differs in metadata only
    #[arg(long)]
    pub metadata: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// List snapshots
    List(ListArgs),
    /// Show everything about a snapshot
    #[command(after_help = SNAPSHOT_HELP)]
    Show {
        /// Snapshot
        snapshot: String,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Add and remove tags; the snapshot gets a new id
    Tag {
        /// Snapshot
        snapshot: String,
        /// Tag to add
        #[arg(long, value_name = "TAG", value_parser = parse_tag)]
        add: Vec<String>,
        /// Tag to remove
        #[arg(long, value_name = "TAG")]
        remove: Vec<String>,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Forget the snapshots that no rule keeps, or those that are named
    Forget(Box<ForgetArgs>),
    /// Keep a snapshot whatever the policy says
    #[command(
        after_help = "Examples:\n  larder snapshot hold latest:shop.sql --reason 'before the migration'\n  larder snapshot hold 72a42586 --reason audit --until 2027-12-31\n\nThe reason is sealed like everything else. Several holds add up."
    )]
    Hold {
        /// Snapshot
        snapshot: String,
        /// Why; `snapshot list` and `snapshot forget` show it
        #[arg(long, value_name = "TEXT", value_parser = parse_words)]
        reason: String,
        /// Until when [default: until it is released]
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Let a snapshot go that was held: the policy decides about it again
    #[command(after_help = "Example:\n  larder snapshot release 72a42586 --after 7d")]
    Release {
        /// Snapshot
        snapshot: String,
        /// Hold it so long still
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        after: Option<Duration>,
        #[command(flatten)]
        filter: FilterArgs,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder snapshot forget --keep-daily 30 --keep-weekly 12 --keep-monthly 12 --keep-yearly 7 --dry-run
  larder snapshot forget --keep-last-distinct 10 --source config
  larder snapshot forget 72a42586

A snapshot that at least one rule keeps is kept; so is the newest good one of each source, and what is held. Of an hour, day, week, month
or year the oldest good snapshot is kept: the weekly one is of the first day of the week, the monthly one of the first of the month.
N is a number or `all`, a SPAN is 36h, 30d, 12w, 6mo or 7y, counted from the newest snapshot.

Snapshots with errors, or with less than half of what came before them, are suspect: they take the place of no other and are kept beside
it. `larder snapshot tag SNAPSHOT --add accepted` says that one is right, and what comes later is measured by it.

Forgetting frees no space: `larder repo prune` does.")]
pub struct ForgetArgs {
    /// Forget just these, instead of asking a policy
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// The newest N
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_last: Option<u32>,
    /// The newest N that differ in content
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_last_distinct: Option<u32>,
    /// One for each of the newest N hours that have one
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_daily: Option<u32>,
    /// The same for weeks
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "What to keep")]
    pub keep_yearly: Option<u32>,
    /// Everything of the last SPAN
    #[arg(long, value_name = "SPAN", value_parser = parse_span, help_heading = "What to keep")]
    pub keep_within: Option<Span>,
    /// One for each hour of the last SPAN
    #[arg(long, value_name = "SPAN", value_parser = parse_span, help_heading = "What to keep")]
    pub keep_within_hourly: Option<Span>,
    /// One for each day
    #[arg(long, value_name = "SPAN", value_parser = parse_span, help_heading = "What to keep")]
    pub keep_within_daily: Option<Span>,
    /// One for each week
    #[arg(long, value_name = "SPAN", value_parser = parse_span, help_heading = "What to keep")]
    pub keep_within_weekly: Option<Span>,
    /// One for each month
    #[arg(long, value_name = "SPAN", value_parser = parse_span, help_heading = "What to keep")]
    pub keep_within_monthly: Option<Span>,
    /// One for each year
    #[arg(long, value_name = "SPAN", value_parser = parse_span, help_heading = "What to keep")]
    pub keep_within_yearly: Option<Span>,
    /// Everything with this tag; with any of them if given several times
    #[arg(long, value_name = "TAG", help_heading = "What to keep")]
    pub keep_tag: Vec<String>,
    /// What rules are counted in: `source` is what one host backs up under one name; or name, host, none, or several
    #[arg(
        long,
        value_name = "BY",
        value_enum,
        value_delimiter = ',',
        default_value = "source",
        help_heading = "Calendar and groups"
    )]
    pub group_by: Vec<GroupArg>,
    /// First day of the week
    #[arg(
        long,
        value_name = "DAY",
        value_enum,
        default_value = "sunday",
        help_heading = "Calendar and groups"
    )]
    pub week_start: WeekdayArg,
    /// First day of the month, 1 to 28; years begin with the first such month
    #[arg(long, value_name = "DAY", value_parser = clap::value_parser!(u8).range(1..=28), default_value = "1",
          help_heading = "Calendar and groups")]
    pub month_day: u8,
    /// Refuse to forget more of a group at once, if it has more than eight
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, default_value = "25%", help_heading = "Safety")]
    pub max_removal: u32,
    /// Forget however many it is
    #[arg(long, help_heading = "Safety")]
    pub yes_remove_many: bool,
    /// Forget a named snapshot although it is the last good one of its source
    #[arg(long, requires = "snapshots", help_heading = "Safety")]
    pub yes_remove_last: bool,
    /// Say what would be forgotten and why, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Then give back the space, as `repo prune` does
    #[arg(long, conflicts_with = "dry_run")]
    pub prune: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// What belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GroupArg {
    Source,
    Name,
    Host,
    None,
}

/// Days of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeekdayArg {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Only those made at or after this time
    #[arg(long, value_name = "TIME", help_heading = "Which snapshots")]
    pub since: Option<String>,
    /// Only those made at or before this time
    #[arg(long, value_name = "TIME", help_heading = "Which snapshots")]
    pub until: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_command() {
        let help = Cli::command().render_help().to_string();
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let named = help
                .lines()
                .any(|line| line.starts_with("  ") && line.split([' ', ',']).any(|word| word == command.get_name()));
            assert!(named, "{} is missing from the help", command.get_name());
        }
    }

    #[test]
    fn a_password_is_never_an_argument() {
        fn check(command: &clap::Command) {
            assert!(
                command
                    .get_arguments()
                    .all(|argument| argument.get_long() != Some("password"))
            );
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
