//! Store keys and prefixes, valid by construction: `[0-9a-z._-]` components joined by `/`, none of them `.` or `..`
//! (`.` and `_` come from hold names; format-spec, "Object names").

/// Name of an object relative to the repository root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreKey(String);

/// What a listing asks for: a whole number of components, ending in `/`, or the beginning of the last one (`idx/0-1a2b`).
#[derive(Clone, PartialEq, Eq)]
pub struct Prefix(String);

/// Whether every component is made of `[0-9a-z._-]`, none is empty, `.` or `..`, and the whole is not too long for any store.
fn valid(text: &str) -> bool {
    text.len() <= 512
        && text.split('/').all(|part| {
            !matches!(part, "" | "." | "..")
                && part
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'-' | b'_' | b'.'))
        })
}

impl StoreKey {
    /// Checks the text; `None` if it is not a key.
    pub fn new(text: impl Into<String>) -> Option<StoreKey> {
        let text = text.into();
        valid(&text).then_some(StoreKey(text))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Prefix {
    /// Checks the text (empty: everything).
    pub fn new(text: impl Into<String>) -> Option<Prefix> {
        let text = text.into();
        let body = text.strip_suffix('/').unwrap_or(&text);
        (text.is_empty() || valid(body)).then_some(Prefix(text))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leaves_the_repository() {
        for good in ["data/00/ab-cd", "hold/00/keep_2026.q3", "config/00000000", "a"] {
            assert!(StoreKey::new(good).is_some(), "{good}");
        }
        for bad in [
            "", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "A", "a b", "a\\b", "ä", "a\0",
        ] {
            assert!(StoreKey::new(bad).is_none(), "{bad:?}");
        }
        assert!(StoreKey::new("a".repeat(513)).is_none());
    }

    #[test]
    fn a_prefix_may_end_in_a_slash_but_not_climb() {
        for good in ["", "idx/", "idx/0-1a2b", "a"] {
            assert!(Prefix::new(good).is_some(), "{good}");
        }
        for bad in ["/", "a//", "../", "a/..", "/a"] {
            assert!(Prefix::new(bad).is_none(), "{bad:?}");
        }
    }
}
