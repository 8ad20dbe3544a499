//! S3 policies for keys that write or read and do nothing else: what the store must allow to them, and no more
//! (format-spec chapter 16.6). The store's credentials decide who can delete; this is how they are to be limited.

use crate::pure::crypto::sign::role;
use crate::pure::id::KeyId;
use serde_json::{Value, json};

/// What a policy depends on beside the key.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub bucket: &'a str,
    pub prefix: &'a str,
    /// Whom it is about, for the policy of a bucket.
    pub principal: Option<&'a str>,
    /// For how many days the repository has its objects locked, if it has.
    pub lock_days: Option<u32>,
    /// Whether the store can be told to allow nothing but creating. Some do create conditionally, and do not know this condition.
    pub knows_condition: bool,
}

/// Returns the policy for a key holder. `None` for keys that delete, or that write under the names of others.
pub fn document(place: Place<'_>, kid: &KeyId, roles: u32) -> Option<Value> {
    let Place {
        bucket,
        prefix,
        principal,
        lock_days,
        knows_condition,
    } = place;
    if roles & (role::ADMIN | role::MAINTAIN | role::FORGET | role::HOLD | role::ATTEST) != 0 {
        return None;
    }
    let base = if prefix.is_empty() {
        String::new()
    } else {
        format!("{prefix}/")
    };
    let objects = |names: Vec<String>| -> Vec<String> {
        let names = names.into_iter();
        names
            .map(|name| format!("arn:aws:s3:::{bucket}/{base}{name}"))
            .collect()
    };
    let mut statements = Vec::new();
    if roles & role::WRITE != 0 {
        let mut put = json!({"Effect": "Allow", "Action": "s3:PutObject", "Resource": objects(written(kid))});
        if knows_condition {
            // Only with "create if absent", so nothing can be overwritten.
            put["Condition"] = json!({"Null": {"s3:if-none-match": "false"}});
        }
        statements.push(put);
        if let Some(days) = lock_days {
            // Locking what one writes, and for no longer than that: a lock is as hard to take back as a deletion. A day more, because
            // services do not say how they round.
            let days = days.saturating_add(1);
            let mut lock =
                json!({"Effect": "Allow", "Action": "s3:PutObjectRetention", "Resource": objects(written(kid))});
            if knows_condition {
                lock["Condition"] =
                    json!({"NumericLessThanEquals": {"s3:object-lock-remaining-retention-days": days.to_string()}});
            }
            statements.push(lock);
        }
    }
    statements.push(json!({"Effect": "Allow", "Action": "s3:GetObject", "Resource": objects(read(kid, roles))}));
    let mut list =
        json!({"Effect": "Allow", "Action": "s3:ListBucket", "Resource": [format!("arn:aws:s3:::{bucket}")]});
    if !base.is_empty() {
        list["Condition"] = json!({"StringLike": {"s3:prefix": format!("{base}*")}});
    }
    statements.push(list);
    // What is not allowed need not be forbidden, but for the rights that some stores give to whoever has written an object.
    let all = objects(vec!["*".into()]);
    let changes = [
        "s3:DeleteObject",
        "s3:DeleteObjectVersion",
        "s3:PutObjectAcl",
        "s3:BypassGovernanceRetention",
    ];
    statements.push(json!({"Effect": "Deny", "Action": changes, "Resource": all}));
    if !reads(roles) {
        let packs = objects(vec!["data/*".into(), "meta/*".into()]);
        statements
            .push(json!({"Effect": "Deny", "Action": ["s3:GetObject", "s3:GetObjectVersion"], "Resource": packs}));
    }
    if let Some(principal) = principal {
        for statement in &mut statements {
            statement["Principal"] = json!({"AWS": [principal]});
        }
    }
    Some(json!({"Version": "2012-10-17", "Statement": statements}))
}

/// Names that sessions of a key holder create: each has its writer tag.
fn written(kid: &KeyId) -> Vec<String> {
    let tag = tag(kid);
    vec![
        format!("data/*-{tag}*"),
        format!("meta/*-{tag}*"),
        format!("idx/0-{tag}*"),
        format!("sess/{tag}*"),
        format!("snap/{tag}*"),
    ]
}

/// What is read by everybody, and packs and holds by those who can open them.
fn read(kid: &KeyId, roles: u32) -> Vec<String> {
    let tag = tag(kid);
    let mut names = vec![
        "config/*".into(),
        format!("keys/{kid}/*"),
        format!("grants/{kid}/*"),
        "idx/*".into(),
        "snap/*".into(),
        "gc/*".into(),
        "drop/*".into(),
    ];
    if reads(roles) {
        names.extend(["data/*", "meta/*", "hold/*", "sess/*"].map(str::to_owned));
    } else {
        names.push(format!("sess/{tag}*"));
    }
    names
}

fn reads(roles: u32) -> bool {
    roles & (role::READ_META | role::READ_DATA) != 0
}

fn tag(kid: &KeyId) -> String {
    kid.to_string()[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::format::name::{ObjectName, PackKind};
    use crate::pure::id::{PackId, SessionId};

    const PLACE: Place<'static> = Place {
        bucket: "bucket",
        prefix: "some/where",
        principal: None,
        lock_days: None,
        knows_condition: true,
    };

    /// As S3 compares: a star is any text.
    fn fits(pattern: &str, text: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == text,
            Some((start, rest)) => text
                .strip_prefix(start)
                .is_some_and(|text| (0..=text.len()).any(|at| text.is_char_boundary(at) && fits(rest, &text[at..]))),
        }
    }

    /// Whether a statement of the policy allows an action.
    fn allows(policy: &Value, action: &str, name: &ObjectName) -> bool {
        let resource = format!("arn:aws:s3:::bucket/some/where/{name}");
        policy["Statement"].as_array().unwrap().iter().any(|statement| {
            let fit = |pattern: &Value| fits(pattern.as_str().unwrap(), &resource);
            statement["Effect"] == "Allow"
                && statement["Action"] == action
                && statement["Resource"].as_array().unwrap().iter().any(fit)
        })
    }

    #[test]
    fn a_writer_creates_its_own_names_and_reads_no_packs() {
        let kid = KeyId([0x1a; 16]);
        let session = |byte| SessionId([byte; 16]);
        let policy = document(PLACE, &kid, role::WRITE).unwrap();
        let names = |byte| {
            [
                ObjectName::Pack(PackKind::Data, PackId([7; 16]), session(byte)),
                ObjectName::Pack(PackKind::Meta, PackId([7; 16]), session(byte)),
                ObjectName::Run(session(byte), 3),
                ObjectName::Session(session(byte), 12),
                ObjectName::Outcome(session(byte)),
            ]
        };
        for name in names(0x1a) {
            assert!(allows(&policy, "s3:PutObject", &name), "{name}");
        }
        let others = [
            ObjectName::Config(4),
            ObjectName::Grant(kid, 1),
            ObjectName::Protector(kid, 1),
            ObjectName::Condemnation(session(0x1a)),
            ObjectName::Drop(session(0x1a)),
            ObjectName::Hold(session(0x1a), "x".into()),
        ];
        for name in names(0x2b).iter().chain(&others) {
            assert!(!allows(&policy, "s3:PutObject", name), "{name}");
        }
        for name in names(0x1a).iter().chain(&names(0x2b)) {
            let is_pack = matches!(name, ObjectName::Pack(..));
            let of_another = matches!(name, ObjectName::Session(session, _) if session.0[0] == 0x2b);
            assert_eq!(allows(&policy, "s3:GetObject", name), !is_pack && !of_another, "{name}");
            assert!(!allows(&policy, "s3:DeleteObject", name), "{name}");
        }
        for name in [
            ObjectName::Config(4),
            ObjectName::Grant(kid, 1),
            ObjectName::Condemnation(session(9)),
            ObjectName::Drop(session(9)),
        ] {
            assert!(allows(&policy, "s3:GetObject", &name), "{name}");
        }
        assert!(!allows(&policy, "s3:GetObject", &ObjectName::Grant(KeyId([2; 16]), 0)));
        assert!(!allows(
            &policy,
            "s3:GetObject",
            &ObjectName::Protector(KeyId([2; 16]), 0)
        ));
        assert_eq!(policy["Statement"][0]["Condition"]["Null"]["s3:if-none-match"], "false");
        let unknown = Place {
            knows_condition: false,
            ..PLACE
        };
        let policy = document(unknown, &kid, role::WRITE).unwrap();
        assert_eq!(policy["Statement"][0].get("Condition"), None);
    }

    #[test]
    fn where_objects_are_locked_a_writer_may_lock_its_own_and_no_longer_than_it_has_to() {
        let kid = KeyId([0x1a; 16]);
        let locked = Place {
            lock_days: Some(30),
            ..PLACE
        };
        let own = ObjectName::Outcome(SessionId([0x1a; 16]));
        let of_another = ObjectName::Outcome(SessionId([0x2b; 16]));
        let policy = document(locked, &kid, role::WRITE).unwrap();
        assert!(allows(&policy, "s3:PutObjectRetention", &own));
        assert!(!allows(&policy, "s3:PutObjectRetention", &of_another));
        let condition = &policy["Statement"][1]["Condition"]["NumericLessThanEquals"];
        assert_eq!(condition["s3:object-lock-remaining-retention-days"], "31");
        for policy in [
            document(PLACE, &kid, role::WRITE).unwrap(),
            document(locked, &kid, role::READ_META | role::READ_DATA).unwrap(),
        ] {
            assert!(!allows(&policy, "s3:PutObjectRetention", &own));
        }
    }

    #[test]
    fn whoever_may_read_gets_packs_and_whoever_deletes_gets_no_policy() {
        let kid = KeyId([0x1a; 16]);
        let pack = ObjectName::Pack(PackKind::Data, PackId([7; 16]), SessionId([9; 16]));
        let reader = role::READ_META | role::READ_DATA;
        let policy = document(
            Place {
                principal: Some("arn:x"),
                ..PLACE
            },
            &kid,
            reader,
        )
        .unwrap();
        assert!(allows(&policy, "s3:GetObject", &pack) && !allows(&policy, "s3:PutObject", &pack));
        let statements = policy["Statement"].as_array().unwrap();
        assert!(
            statements
                .iter()
                .all(|statement| statement["Principal"]["AWS"][0] == "arn:x")
        );
        for roles in [
            role::ADMIN,
            role::MAINTAIN | role::READ_META,
            role::WRITE | role::FORGET,
        ] {
            assert_eq!(document(PLACE, &kid, roles), None);
        }
    }
}
