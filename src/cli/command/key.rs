//! `repo key`: passwords, key files and paper keys.

use crate::cli::args::{
    DutyArg, KeyAddArgs, KeyAddWriterArgs, KeyCommand, KeyRemoveArgs, PaperExportArgs, PaperImportArgs,
};
use crate::cli::context::Context;
use crate::cli::env;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, rfc3339};
use crate::cli::output::printable;
use crate::edge::host;
use crate::ops::holders::{self, Duty};
use crate::ops::keys;
use crate::pure::base::{Explain, Kind};
use crate::pure::crypto::{Secret, paper};
use crate::repo::Repo;
use crate::repo::open::Credential;
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use zeroize::Zeroizing;

pub fn run(context: &Context, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::List => list(context),
        KeyCommand::Add(args) => add(context, &args),
        KeyCommand::AddWriter(args) => add_writer(context, &args),
        KeyCommand::Remove(args) => remove(context, &args),
        KeyCommand::ExportPaper(args) => export_paper(context, &args),
        KeyCommand::ImportPaper(args) => import_paper(context, &args),
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let repo = context.repo()?;
    let known = keys::list(&repo).doing("listing the keys")?;
    let output = &context.output;
    if output.json {
        let rows: Vec<_> = known
            .iter()
            .map(|key| {
                json!({
                    "number": key.number,
                    "kind": key.kind,
                    "created": key.created.map(rfc3339),
                    "hint": key.hint,
                    "in_use": key.is_in_use,
                    "problem": key.problem,
                })
            })
            .collect();
        return output.json(&json!({"type": "keys", "version": 1, "key_id": repo.kid.to_string(), "keys": rows}));
    }
    output.line(format!("key {}", repo.kid))?;
    for key in known {
        let mark = if key.is_in_use { "*" } else { " " };
        let created = key.created.map_or_else(|| "?".to_owned(), local_time);
        let hint = key
            .hint
            .map_or_else(String::new, |hint| format!("  \"{}\"", printable(hint.as_bytes())));
        let problem = key
            .problem
            .map_or_else(String::new, |problem| format!("  ({})", printable(problem.as_bytes())));
        output.line(format!(
            "{mark} {:>4}  {created:<19}  {}{hint}{problem}",
            key.number, key.kind
        ))?;
    }
    output.say("* was used to open the repository now")
}

fn add(context: &Context, args: &KeyAddArgs) -> Result<(), Failure> {
    add_to(context, &context.repo()?, args)
}

/// A paper key that exists in the repository and has not been shown yet.
pub struct PaperKey {
    number: u32,
    text: Zeroizing<String>,
}

impl PaperKey {
    /// Adds one, and tries out that it opens the repository.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn make(repo: &Repo, hint: String) -> Result<PaperKey, Failure> {
        let secret = Secret::new(host::random());
        let text = paper::write(&secret);
        let number = keys::add(repo, &Credential::KeyFile(secret), Some(hint)).doing("adding the paper key")?;
        Ok(PaperKey { number, text })
    }

    /// Returns the key as one line.
    pub fn line(&self) -> Zeroizing<String> {
        let mut line = Zeroizing::new(String::with_capacity(self.text.len()));
        for (place, group) in self.text.split_whitespace().enumerate() {
            line.push_str(if place > 0 { " " } else { "" });
            line.push_str(group);
        }
        line
    }

    /// Returns what is printed: all that somebody needs who finds it in years. As it is, it can be used with `--key-file`.
    pub fn sheet(&self, repo: &Repo) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "# Paper key number {} of the larder repository {}\n# at {}, made {}\n\
             # It opens the repository without the password. Keep it where only you find it, and not on this machine.\n\
             # Type it where the password is asked for, or put it into a file for --key-file; large or small letters and\n\
             # spaces do not matter.\n\n{}\n",
            self.number,
            repo.config.repo,
            printable(repo.store.location().as_bytes()),
            local_time(host::now()),
            *self.text
        ))
    }
}

fn export_paper(context: &Context, args: &PaperExportArgs) -> Result<(), Failure> {
    let repo = context.repo()?;
    let key = PaperKey::make(&repo, args.hint.clone())?;
    if context.output.json {
        return context
            .output
            .json(&json!({"type": "paper_key", "version": 1, "number": key.number, "paper_key": *key.line()}));
    }
    context.output.line(&*key.sheet(&repo))
}

fn import_paper(context: &Context, args: &PaperImportArgs) -> Result<(), Failure> {
    if args.file.is_none() {
        context
            .output
            .note("type the paper key, in one line or several, and then an empty line");
    }
    let repo = context.repo_opened_with(|| env::paper_key(args.file.as_deref()))?;
    context.output.note("the paper key opens the repository");
    add_to(context, &repo, &args.new)
}

/// A password from a file, a key file that is made now, or a password that is asked for.
fn new_credential(password_file: Option<&Path>, key_file: Option<&Path>) -> Result<Credential, Failure> {
    match (password_file, key_file) {
        (Some(path), _) => env::password_file(path),
        (None, Some(path)) => env::make_key_file(path),
        (None, None) => env::ask_new(),
    }
}

fn add_writer(context: &Context, args: &KeyAddWriterArgs) -> Result<(), Failure> {
    let repo = context.repo()?;
    let duty = match args.duty {
        DutyArg::Backup => Duty::Backup,
        DutyArg::Reader => Duty::Reader,
        DutyArg::Maintainer => Duty::Maintainer,
        DutyArg::Admin => Duty::Admin,
    };
    let credential = new_credential(args.new_password_file.as_deref(), args.new_key_file.as_deref())?;
    let added = holders::add(&repo, &args.label, duty, &credential);
    if let (Err(error), Some(path)) = (&added, &args.new_key_file) {
        if matches!(error.kind(), Kind::Usage | Kind::Refused | Kind::Auth) {
            // It opens nothing; left there, it would be mistaken for a key.
            let _ = std::fs::remove_file(path);
        } else {
            context.output.note(format!(
                "{} was kept: the key may have been added all the same; `larder --key-file` with it shows whether it was",
                printable(path.as_os_str().as_bytes())
            ));
        }
    }
    let kid = added.doing("adding a key")?;
    if context.output.json {
        return context.output.json(&json!({
            "type": "holder_added", "version": 1, "key_id": kid.to_string(), "label": args.label, "kind": credential.noun(),
        }));
    }
    context.output.say(format!(
        "added key {kid} for {}; its {} was tried out and opens the repository",
        printable(args.label.as_bytes()),
        credential.noun()
    ))
}

fn add_to(context: &Context, repo: &Repo, args: &KeyAddArgs) -> Result<(), Failure> {
    let credential = new_credential(args.new_password_file.as_deref(), args.new_key_file.as_deref())?;
    let number = keys::add(repo, &credential, args.hint.clone()).doing("adding a key")?;
    if context.output.json {
        return context
            .output
            .json(&json!({"type": "key_added", "version": 1, "number": number, "kind": credential.noun()}));
    }
    context.output.say(format!(
        "added {} number {number}; it was tried out and opens the repository",
        credential.noun()
    ))
}

fn remove(context: &Context, args: &KeyRemoveArgs) -> Result<(), Failure> {
    let repo = context.repo()?;
    let removed = keys::remove(&repo, args.number, args.force).doing("removing a key")?;
    if context.output.json {
        return context
            .output
            .json(&json!({"type": "key_removed", "version": 1, "number": removed.number}));
    }
    context
        .output
        .say(format!("removed number {} ({})", removed.number, removed.kind))?;
    context
        .output
        .note("whoever has used it before may have kept what it opened; it does not re-encrypt the repository");
    Ok(())
}
