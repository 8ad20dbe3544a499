//! Hidden commands for tests and benchmarks.

use crate::cli::args::DebugCommand;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::output::count;
use crate::ops::generate;
use crate::pure::crypto::kdf::Cost;
use crate::repo::RepoError;
use crate::repo::open;

pub fn run(context: &Context, command: DebugCommand) -> Result<(), Failure> {
    match command {
        DebugCommand::GenerateRepo { chunks } => generate_repo(context, chunks),
    }
}

/// Makes a repository, if there is none, whose index knows many chunks that do not exist.
fn generate_repo(context: &Context, chunks: u64) -> Result<(), Failure> {
    match open::init(&*context.store()?, &context.credential(false)?, Cost::DEFAULT) {
        Ok(_) | Err(RepoError::AlreadyARepository { .. }) => {}
        Err(error) => return Err(error).doing("making the repository"),
    }
    let repo = context.repo()?;
    context
        .run("generating", |progress| generate::index_rows(&repo, chunks, progress))
        .doing("filling the index")?;
    // The local index was not told what the runs list; without it, the next command reads them.
    let state = repo.state_dir.clone();
    drop(repo);
    std::fs::remove_dir_all(&state)
        .map_err(|source| RepoError::Local {
            what: format!("removing {}", state.display()),
            source,
        })
        .doing("removing the local index")?;
    context.output.say(format!(
        "{} that do not exist were listed; this repository is for measuring only",
        count(chunks, "chunk", "chunks")
    ))
}
