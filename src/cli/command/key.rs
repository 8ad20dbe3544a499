//! `repo key`: passwords and key files.

use crate::cli::args::{KeyAddArgs, KeyCommand, KeyRemoveArgs};
use crate::cli::context::Context;
use crate::cli::env;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::{local_time, rfc3339};
use crate::cli::output::printable;
use crate::ops::keys;
use serde_json::json;

pub fn run(context: &Context, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::List => list(context),
        KeyCommand::Add(args) => add(context, &args),
        KeyCommand::Remove(args) => remove(context, &args),
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
    let repo = context.repo()?;
    let credential = match (&args.new_password_file, &args.new_key_file) {
        (Some(path), _) => env::password_file(path)?,
        (None, Some(path)) => env::make_key_file(path)?,
        (None, None) => env::ask_new()?,
    };
    let number = keys::add(&repo, &credential, args.hint.clone()).doing("adding a key")?;
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
