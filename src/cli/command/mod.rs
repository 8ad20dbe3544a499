//! One file for each command.

mod backup;
mod copy;
mod debug;
mod diff;
mod doctor;
mod dump;
mod entries;
mod find;
mod forget;
mod hold;
mod key;
mod ls;
mod object_lock;
mod parity;
mod policy;
mod prune;
mod repair;
mod replicate;
mod repo;
mod restore;
mod roles;
mod shell;
mod snapshot;

use super::args::{Command, RepoCommand, SnapshotCommand};
use super::context::Context;
use super::error::Failure;

/// Runs a command.
///
/// # Errors
/// When not everything that was asked for was done.
pub fn run(context: &Context, command: Command) -> Result<(), Failure> {
    if context.globals.as_of.is_some() && !only_reads(&command) {
        return Err(Failure::usage("--as-of is for commands that only read the repository").with_hint(
            "restore, dump, ls, find, diff, snapshot list and show, repo info, stats and check, and repo copy and replicate, which copy from it",
        ));
    }
    match command {
        Command::Repo(RepoCommand::Init(args)) => repo::init(context, &args),
        Command::Repo(RepoCommand::Info) => repo::info(context),
        Command::Repo(RepoCommand::Stats) => repo::stats(context),
        Command::Repo(RepoCommand::Check(args)) => repo::check(context, &args),
        Command::Repo(RepoCommand::Prune(args)) => prune::run(context, &args),
        Command::Repo(RepoCommand::Undelete { snapshots }) => prune::undelete(context, &snapshots),
        Command::Repo(RepoCommand::Doctor(args)) => doctor::run(context, &args),
        Command::Repo(RepoCommand::Copy(args)) => copy::run(context, &args),
        Command::Repo(RepoCommand::Replicate(args)) => replicate::run(context, &args),
        Command::Repo(RepoCommand::Promote { force }) => replicate::promote(context, force),
        Command::Repo(RepoCommand::Parity(args)) => parity::run(context, &args),
        Command::Repo(RepoCommand::ObjectLock(args)) => object_lock::run(context, &args),
        Command::Repo(RepoCommand::Repair(command)) => repair::run(context, &command),
        Command::Repo(RepoCommand::Key(command)) => key::run(context, command),
        Command::Backup(args) => backup::run(context, args),
        Command::Restore(args) => restore::run(context, &args),
        Command::Dump(args) => dump::run(context, &args),
        Command::Ls(args) => ls::run(context, &args),
        Command::Find(args) => find::run(context, &args),
        Command::Diff(args) => diff::run(context, &args),
        Command::Snapshot(command) => snapshot::run(context, command),
        Command::Completions { shell } => shell::completions(context, shell),
        Command::Man { command } => shell::man(context, &command),
        Command::Debug(command) => debug::run(context, command),
    }
}

/// Whether a command can do its work with a repository as it was.
fn only_reads(command: &Command) -> bool {
    match command {
        Command::Restore(_) | Command::Dump(_) | Command::Ls(_) | Command::Find(_) | Command::Diff(_) => true,
        Command::Snapshot(command) => matches!(command, SnapshotCommand::List(_) | SnapshotCommand::Show { .. }),
        Command::Repo(command) => match command {
            RepoCommand::Info | RepoCommand::Stats | RepoCommand::Check(_) | RepoCommand::Copy(_) => true,
            // Deleting goes by what the source has deleted.
            RepoCommand::Replicate(args) => !args.delete,
            _ => false,
        },
        _ => false,
    }
}
