//! `repo key`: passwords, key files and paper keys.

use super::policy;
use super::roles::{duty_name, role_names};
use crate::cli::args::{
    DutyArg, KeyAddArgs, KeyAddWriterArgs, KeyCommand, KeyPolicyArgs, KeyRemoveArgs, KeyRevokeArgs, PaperExportArgs,
    PaperImportArgs,
};
use crate::cli::context::Context;
use crate::cli::env;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, rfc3339};
use crate::cli::output::{count, printable};
use crate::edge::host;
use crate::edge::store::location::Location;
use crate::ops::holders::{self, Duty, KnownHolder};
use crate::ops::keys;
use crate::pure::base::{Explain, Kind};
use crate::pure::crypto::{Secret, paper};
use crate::pure::id::SessionId;
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
        KeyCommand::Policy(args) => print_policy(context, &args),
        KeyCommand::Revoke(args) => revoke(context, &args),
        KeyCommand::Rotate => rotate(context),
        KeyCommand::Remove(args) => remove(context, &args),
        KeyCommand::ExportPaper(args) => export_paper(context, &args),
        KeyCommand::ImportPaper(args) => import_paper(context, &args),
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let repo = context.repo()?;
    let known = keys::list(&repo).doing("listing the keys")?;
    let holders = holders::list(&repo).doing("listing the key holders")?;
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
        let holders: Vec<_> = holders.iter().map(holder_json).collect();
        return output.json(&json!({
            "type": "keys", "version": 1, "key_id": repo.kid.to_string(), "epoch": repo.config.epoch, "keys": rows, "holders": holders,
        }));
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
    output.say("* was used to open the repository now")?;
    output.line(format!(
        "\nkeys of this repository, which is in epoch {}",
        repo.config.epoch
    ))?;
    holders
        .iter()
        .try_for_each(|holder| output.line(holder_line(&repo, holder)))
}

fn holder_json(holder: &KnownHolder) -> serde_json::Value {
    json!({
        "id": holder.kid.to_string(), "label": holder.label, "duty": duty_name(holder.roles), "roles": role_names(holder.roles),
        "epoch": holder.epoch, "revoked_at": holder.revoked_at, "in_use": holder.is_in_use,
    })
}

fn holder_line(repo: &Repo, holder: &KnownHolder) -> String {
    let label = holder.label.as_deref().unwrap_or("");
    let duty = duty_name(holder.roles).map_or_else(|| role_names(holder.roles).join(", "), str::to_owned);
    let mark = if holder.is_in_use { "*" } else { " " };
    let state = match (holder.revoked_at, holder.epoch) {
        (Some(at), _) => format!("  revoked by configuration {at}"),
        (None, Some(epoch)) if epoch < repo.config.epoch => {
            format!("  epoch {epoch}: it cannot be used before `larder repo key rotate` is run again")
        }
        (None, Some(epoch)) => format!("  epoch {epoch}"),
        (None, None) => String::new(),
    };
    format!(
        "{mark} {}  {:<16}  {duty:<10}{state}",
        holder.kid,
        printable(label.as_bytes())
    )
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

/// A password from a file, a key file that is made now, a key that a command prints, or a password that is asked for.
fn new_credential(
    password_file: Option<&Path>,
    key_file: Option<&Path>,
    key_command: Option<&str>,
) -> Result<Credential, Failure> {
    match (password_file, key_file, key_command) {
        (Some(path), ..) => env::password_file(path),
        (None, Some(path), _) => env::make_key_file(path),
        (None, None, Some(command)) => env::key_command(command),
        (None, None, None) => env::ask_new(),
    }
}

fn add_writer(context: &Context, args: &KeyAddWriterArgs) -> Result<(), Failure> {
    let repo = context.repo()?;
    let duty = match args.duty {
        DutyArg::PutOnly => Duty::PutOnly,
        DutyArg::Backup => Duty::Backup,
        DutyArg::Reader => Duty::Reader,
        DutyArg::Maintainer => Duty::Maintainer,
        DutyArg::Admin => Duty::Admin,
    };
    let credential = new_credential(
        args.new_password_file.as_deref(),
        args.new_key_file.as_deref(),
        args.new_key_command.as_deref(),
    )?;
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
    let policy = match context.location()? {
        Location::S3 { bucket, prefix } => {
            let place = policy::Place {
                bucket: &bucket,
                prefix: &prefix,
                principal: None,
                lock_days: repo.config.lock.map(|lock| lock.retain_days),
                knows_condition: repo.config.gc.conditional_writes,
            };
            policy::document(place, &kid, duty.roles())
        }
        Location::Directory(_) => None,
    };
    if context.output.json {
        return context.output.json(&json!({
            "type": "holder_added", "version": 1, "key_id": kid.to_string(), "label": args.label, "kind": credential.noun(),
            "policy": policy,
        }));
    }
    context.output.say(format!(
        "added key {kid} for {}; its {} was tried out and opens the repository",
        printable(args.label.as_bytes()),
        credential.noun()
    ))?;
    let Some(policy) = policy else { return Ok(()) };
    context.output.say(
        "\nthe S3 policy for the user whose credentials that machine gets (`larder repo key policy` prints it again, \
         also for a bucket):\n",
    )?;
    tell_policy(context, &policy)
}

fn revoke(context: &Context, args: &KeyRevokeArgs) -> Result<(), Failure> {
    let repo = context.repo()?;
    let holder = holders::find(&repo, Some(&args.key))?;
    let report = crate::ops::revoke::run(&repo, &holder.kid, args.despite_gaps).doing("revoking a key")?;
    let ids = |sessions: &[SessionId]| sessions.iter().map(ToString::to_string).collect::<Vec<_>>();
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "type": "key_revoked", "version": 1, "key_id": holder.kid.to_string(), "label": holder.label,
            "was_revoked": report.was_revoked, "outcomes": report.outcomes, "ended": ids(&report.ended), "refused": ids(&report.refused),
        }));
    }
    let name = printable(args.key.as_bytes());
    output.say(match report.was_revoked {
        true => format!("key {name} had been revoked before; what was left to do is done"),
        false => format!("key {name} is revoked; what it has published up to now counts"),
    })?;
    if !report.ended.is_empty() {
        let count = count(report.ended.len() as u64, "session", "sessions");
        output.say(format!("ended {count} of it; what they have uploaded does not count"))?;
    }
    for session in &report.refused {
        output.warn(format!(
            "snapshot {} came at the same moment, and does not count",
            session.short()
        ));
    }
    output.note("whoever has it can still open what is there: `larder repo key rotate` keeps what is written from now on from him");
    output.note("take the credentials for the store away too, if it had any of its own");
    Ok(())
}

fn rotate(context: &Context) -> Result<(), Failure> {
    let repo = context.repo()?;
    let epoch = crate::ops::rotate::run(&repo).doing("rotating the keys")?;
    if context.output.json {
        return context
            .output
            .json(&json!({"type": "keys_rotated", "version": 1, "epoch": epoch}));
    }
    context.output.say(format!(
        "what is written from now on is sealed with the new secrets of epoch {epoch}"
    ))?;
    context.output.note(
        "what was written before stays readable to whoever had a key then; a backup that is running goes on with the secrets that it has",
    );
    Ok(())
}

fn tell_policy(context: &Context, policy: &serde_json::Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(policy).map_err(|error| Failure::new(Kind::Internal, error.to_string()))?;
    context.output.line(text)
}

fn print_policy(context: &Context, args: &KeyPolicyArgs) -> Result<(), Failure> {
    let Location::S3 { bucket, prefix } = context.location()? else {
        return Err(
            Failure::usage("a policy is for a repository on S3; here, the directory's permissions decide")
                .with_hint("a server in between that only takes new files does the same for directories"),
        );
    };
    let repo = context.repo()?;
    let row = holders::find(&repo, args.key.as_deref())?;
    let place = policy::Place {
        bucket: &bucket,
        prefix: &prefix,
        principal: args.principal.as_deref(),
        lock_days: repo.config.lock.map(|lock| lock.retain_days),
        knows_condition: repo.config.gc.conditional_writes && !args.no_condition,
    };
    let policy = policy::document(place, &row.kid, row.roles).ok_or_else(|| {
        Failure::usage("this key deletes or changes objects of others: the policy for it is all of the prefix")
            .with_hint("keep such a key away from the machines that are backed up")
    })?;
    if !place.knows_condition {
        context.output.warn(
            "without the condition, nothing in this policy keeps the machine from overwriting what it has written itself: have the \
             bucket keep all versions, or lock objects",
        );
    }
    tell_policy(context, &policy)
}

fn add_to(context: &Context, repo: &Repo, args: &KeyAddArgs) -> Result<(), Failure> {
    let credential = new_credential(
        args.new_password_file.as_deref(),
        args.new_key_file.as_deref(),
        args.new_key_command.as_deref(),
    )?;
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
        return context.output.json(&json!({
            "type": "key_removed", "version": 1, "number": removed.protector.number,
            "locked_until": removed.hidden_until.map(rfc3339),
        }));
    }
    context.output.say(format!(
        "removed number {} ({})",
        removed.protector.number, removed.protector.kind
    ))?;
    if let Some(until) = removed.hidden_until {
        context.output.warn(format!(
            "its object is locked in the bucket until {}: larder does not open the repository with it any more, but whoever may read \
             old versions and has the password or key still can",
            local_time(until)
        ));
    }
    context
        .output
        .note("whoever has used it before may have kept what it opened; it does not re-encrypt the repository");
    Ok(())
}
