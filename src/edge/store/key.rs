//! Store keys and prefixes, valid by construction: `[0-9a-z-]` components joined by `/`.

/// Name of an object relative to the repository root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreKey(String);

/// What a listing asks for: a whole number of components, ending in `/`, or the beginning of the last one (`idx/0-1a2b`).
#[derive(Clone, PartialEq, Eq)]
pub struct Prefix(String);

/// Whether every component is made of `[0-9a-z-]`, none is empty, and the whole is not too long for any store.
fn valid(text: &str) -> bool {
    text.len() <= 512
        && text.split('/').all(|part| !part.is_empty() && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'-')))
}

impl StoreKey {
    /// Checks the text; `None` if it is not a key.
    pub fn new(text: impl Into<String>) -> Option<StoreKey> {
        let text = text.into();
        valid(&text).then_some(StoreKey(text))
    }
    pub fn as_str(&self) -> &str { &self.0 }
}

impl Prefix {
    /// Checks the text (empty: everything).
    pub fn new(text: impl Into<String>) -> Option<Prefix> {
        let text = text.into();
        let body = text.strip_suffix('/').unwrap_or(&text);
        (text.is_empty() || valid(body)).then_some(Prefix(text))
    }
    pub fn as_str(&self) -> &str { &self.0 }
}

impl std::fmt::Display for StoreKey { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) } }
impl std::fmt::Debug for StoreKey { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) } }
impl std::fmt::Display for Prefix { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) } }
impl std::fmt::Debug for Prefix { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) } }
