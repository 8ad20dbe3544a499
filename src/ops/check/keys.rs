//! Names, configurations, protectors and grants: what opens and guards the repository.

use super::report::Report;
use crate::edge::host;
use crate::ops::OpError;
use crate::pure::crypto::sign::BadSignature;
use crate::pure::format::FormatError;
use crate::pure::format::name::ObjectName;
use crate::pure::id::{KeyId, ObjectHash};
use crate::repo::error::{object_error, store_error};
use crate::repo::open::{prefix, read_whole};
use crate::repo::{Repo, RepoError};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Lists what is under a prefix. Names that version 1 does not know go to the report; they are never deleted.
pub(super) fn list(repo: &Repo, under: &str, report: &mut Report) -> Result<Vec<ObjectName>, OpError> {
    let mut names = Vec::new();
    repo.store
        .list(
            &prefix(under),
            &mut |listed| match ObjectName::parse(listed.key.as_str()) {
                Some(name) => names.push(name),
                None => report.unknown_name(listed.key),
            },
        )
        .map_err(store_error(format!("listing {under} of the repository")))?;
    Ok(names)
}

/// Looks for unknown names where nothing else of a check lists.
pub(super) fn check_names(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    ["idx/", "snap/", "attest/"]
        .iter()
        .try_for_each(|under| list(repo, under, report).map(drop))
}

/// Configurations that have been superseded are kept at least this long.
const CONFIGS_KEPT: i64 = 90 * 86_400 * 1_000_000_000;

/// Every object that opens or guards the repository decodes, and none that must be there is missing.
pub(super) fn check_keys(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    check_configs(repo, report)?;
    check_protectors(repo, report)?;
    check_grants(repo, report)
}

fn check_configs(repo: &Repo, report: &mut Report) -> Result<(), OpError> {
    use crate::pure::format::config::Config;
    let mut configs = BTreeMap::new();
    for name in list(repo, "config/", report)? {
        let ObjectName::Config(number) = name else { continue };
        match read_whole(&*repo.store, &name, "a configuration") {
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

/// The keys whose holders this key knows (an admin knows all) and that have not been revoked; its own first. Adding one that was
/// interrupted leaves a row of a key that the configuration does not have: nobody holds that.
fn known_holders(repo: &Repo) -> Vec<KeyId> {
    let valid = |kid: &KeyId| {
        repo.verifier
            .writer(kid)
            .is_some_and(|writer| writer.revoked_at.is_none())
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
    for name in list(repo, "keys/", report)? {
        let ObjectName::Protector(kid, _) = name else { continue };
        let result = read_whole(&*repo.store, &name, "a key").and_then(|bytes| {
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
    let listed = list(repo, "grants/", report)?;
    for name in &listed {
        let ObjectName::Grant(kid, number) = name else { continue };
        let Some(row) = rows.iter().find(|row| row.kid == *kid) else {
            continue;
        };
        let result = read_whole(&*repo.store, name, "a grant").and_then(|bytes| {
            Grant::decode(&bytes, kid, *number, &row.grant_key, &repo.config.repo, &repo.verifier)
                .map_err(object_error("opening", name))
        });
        match result {
            Ok(_) => {
                valid.insert((*kid, *number));
            }
            // What a former admin has issued was issued anew when it was revoked; whether it was is looked at below.
            Err(RepoError::Object {
                source: FormatError::Signature(BadSignature::Revoked(_)),
                ..
            }) => {}
            Err(error) => report.error(name, &error),
        }
    }
    let own = ObjectName::Grant(repo.kid, repo.grant_number);
    if !listed.contains(&own) {
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
