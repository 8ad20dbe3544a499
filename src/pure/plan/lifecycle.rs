//! What the lifecycle rules of a bucket would do to a repository in it.
//!
//! Rules count days since an object was written. In a deduplicated repository the oldest packs are those that every snapshot refers to,
//! and an outcome is needed as long as its writer's history is: a rule that deletes or archives by age destroys it, from the oldest,
//! years after somebody thought of it as housekeeping.

/// A rule, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub id: String,
    pub is_enabled: bool,
    /// The names that it is for begin with this.
    pub prefix: String,
    /// Whether it is for objects with certain tags only. Those of a repository have none.
    pub needs_tags: bool,
    /// When it deletes current objects.
    pub expires: Option<When>,
    /// How many days after they were replaced or hidden it deletes old versions.
    pub expires_old: Option<i32>,
    /// When it moves current objects, and to which storage class.
    pub moves: Vec<(When, String)>,
}

/// When a rule acts on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Days after it was written.
    Days(i32),
    /// On a day for all, as text.
    Date(String),
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            When::Days(days) => write!(f, "{days} days after it was written"),
            When::Date(date) => write!(f, "on {date}"),
        }
    }
}

/// After how many days rules delete old versions of a repository whose names begin with `prefix`; `None` if none does.
pub fn old_versions_kept(rules: &[Rule], prefix: &str) -> Option<i32> {
    let is_meant = |rule: &&Rule| {
        let overlaps = prefix.starts_with(&rule.prefix) || rule.prefix.starts_with(prefix);
        rule.is_enabled && !rule.needs_tags && overlaps
    };
    rules.iter().filter(is_meant).filter_map(|rule| rule.expires_old).min()
}

/// What a rule does to a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: disabled, for other names, or only about old versions and unfinished uploads.
    Harmless,
    /// It costs money or time, and loses nothing.
    Costly(String),
    /// Data that is needed will be gone, or cannot be read without thawing.
    Destructive(String),
}

/// Classes from which an object has to be thawed for hours before it can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// Judges a rule for a repository whose names begin with `prefix` (empty: the whole bucket).
pub fn judge(rule: &Rule, prefix: &str) -> Effect {
    let overlaps = prefix.starts_with(&rule.prefix) || rule.prefix.starts_with(prefix);
    if !rule.is_enabled || rule.needs_tags || !overlaps {
        return Effect::Harmless;
    }
    let mut destroys = Vec::new();
    if let Some(when) = &rule.expires {
        destroys.push(format!("deletes each object {when}"));
    }
    let mut costs = Vec::new();
    for (when, class) in &rule.moves {
        if ARCHIVES.contains(&class.as_str()) {
            destroys.push(format!(
                "moves each object to {class}, from where it cannot be read, {when}"
            ));
        } else {
            costs.push(format!("moves each object to {class} {when}"));
        }
    }
    match (destroys.is_empty(), costs.is_empty()) {
        (false, _) => Effect::Destructive(destroys.join(", and ")),
        (true, false) => Effect::Costly(costs.join(", and ")),
        (true, true) => Effect::Harmless,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
        let mut rule = Rule {
            id: "a rule".into(),
            is_enabled: true,
            ..Rule::default()
        };
        change(&mut rule);
        rule
    }

    /// A rule as manuals for backup buckets have it: colder each quarter, deleted after seven years.
    fn tiering() -> Rule {
        rule(|rule| {
            rule.moves = [(30, "STANDARD_IA"), (90, "GLACIER"), (365, "DEEP_ARCHIVE")]
                .map(|(days, class)| (When::Days(days), class.to_owned()))
                .into();
            rule.expires = Some(When::Days(2555));
        })
    }

    #[test]
    fn tiering_by_age_destroys_a_deduplicated_repository() {
        for prefix in ["", "backup/", "deep/er/"] {
            let Effect::Destructive(what) = judge(&tiering(), prefix) else {
                panic!("{prefix:?}");
            };
            assert!(
                what.contains("2555 days") && what.contains("GLACIER") && what.contains("DEEP_ARCHIVE"),
                "{what}"
            );
        }
    }

    #[test]
    fn only_rules_for_our_names_count_and_only_while_they_are_enabled() {
        let at = |prefix: &str| Rule {
            prefix: prefix.into(),
            ..tiering()
        };
        for (prefix, ours, hits) in [
            ("", "backup/", true),
            ("back", "backup/", true),
            ("backup/data/", "backup/", true),
            ("backup/", "backup/", true),
            ("logs/", "backup/", false),
            ("backup2/", "backup/", false),
            ("logs/", "", true),
        ] {
            assert_eq!(
                judge(&at(prefix), ours) != Effect::Harmless,
                hits,
                "{prefix:?} for {ours:?}"
            );
        }
        let off = Rule {
            is_enabled: false,
            ..tiering()
        };
        let tagged = Rule {
            needs_tags: true,
            ..tiering()
        };
        assert_eq!(
            (judge(&off, ""), judge(&tagged, "")),
            (Effect::Harmless, Effect::Harmless)
        );
    }

    #[test]
    fn each_part_of_a_rule_is_seen_by_itself() {
        let archive = rule(|rule| rule.moves = vec![(When::Days(1), "DEEP_ARCHIVE".into())]);
        assert!(matches!(judge(&archive, ""), Effect::Destructive(_)));
        let once = rule(|rule| rule.expires = Some(When::Date("2031-01-01".into())));
        assert!(matches!(judge(&once, ""), Effect::Destructive(_)));
        for class in ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"] {
            let cold = rule(|rule| rule.moves = vec![(When::Days(30), class.into())]);
            assert!(matches!(judge(&cold, ""), Effect::Costly(_)), "{class}");
        }
        // What is left of a rule about old versions and unfinished uploads.
        assert_eq!(judge(&rule(|_| {}), ""), Effect::Harmless);
    }
}
