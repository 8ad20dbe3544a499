//! What is left out: patterns as in `.gitignore`.
//!
//! A pattern with a slash at its beginning or in its middle is anchored at the root of the source, others match at any
//! depth; a slash at the end means directories only; `!` takes back; the last pattern that matches decides. What lies
//! below an excluded directory is never looked at, so it cannot be taken back. A pattern that begins with the path of
//! the source itself (`/home/*/.cache` for the source `/home`) means the same as the rest of it.
//!
//! Names and patterns are bytes. `ignore` matches paths as bytes but takes patterns as text, so when a pattern is not
//! UTF-8, all patterns and all paths are read as ISO 8859-1 on their way in, which keeps different bytes different.
//! (The one effect: a `?` then stands for half of a byte beyond ASCII, as otherwise for one byte of its UTF-8 form.)

use crate::pure::base::{Explain, Kind};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why patterns were not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ExcludeError {
    #[error("the exclude pattern {} is not valid", pattern.escape_ascii())]
    Pattern {
        pattern: Vec<u8>,
        #[source]
        error: ignore::Error,
    },
    #[error("cannot read the exclude file {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
}

impl Explain for ExcludeError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Collects patterns; later ones win.
#[derive(Clone, Debug, Default)]
pub struct ExcludesBuilder {
    patterns: Vec<Vec<u8>>,
}

impl ExcludesBuilder {
    /// Adds a pattern; empty ones and those that begin with `#` mean nothing.
    pub fn add(&mut self, pattern: &[u8]) -> &mut ExcludesBuilder {
        self.patterns.push(pattern.to_vec());
        self
    }

    /// Adds every line of a file.
    pub fn add_file(&mut self, path: &Path) -> Result<&mut ExcludesBuilder, ExcludeError> {
        let bytes = std::fs::read(path).map_err(|error| ExcludeError::File {
            path: path.to_owned(),
            error,
        })?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        self.patterns
            .extend(bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec));
        Ok(self)
    }

    /// Makes the matcher for one source.
    pub fn build(&self, root: &Path) -> Result<Excludes, ExcludeError> {
        let as_latin = self
            .patterns
            .iter()
            .any(|pattern| std::str::from_utf8(pattern).is_err());
        let mut builder = GitignoreBuilder::new("");
        for pattern in &self.patterns {
            let relative = below_root(pattern, root.as_os_str().as_bytes());
            let text = if as_latin { latin(&relative) } else { relative };
            let invalid = |error| ExcludeError::Pattern {
                pattern: pattern.clone(),
                error,
            };
            let text = std::str::from_utf8(&text).expect("either it was checked above, or it was just made so");
            builder.add_line(None, text).map_err(invalid)?;
        }
        let invalid = |error| ExcludeError::Pattern {
            pattern: Vec::new(),
            error,
        };
        Ok(Excludes {
            matcher: builder.build().map_err(invalid)?,
            as_latin,
        })
    }
}

/// Decides by path what is left out.
#[derive(Clone, Debug)]
pub struct Excludes {
    matcher: Gitignore,
    as_latin: bool,
}

impl Default for Excludes {
    fn default() -> Excludes {
        Excludes {
            matcher: Gitignore::empty(),
            as_latin: false,
        }
    }
}

impl Excludes {
    /// Whether nothing is ever excluded.
    pub fn is_empty(&self) -> bool {
        self.matcher.is_empty()
    }

    /// Whether the path (below the root, joined by `/`) is left out, given that its directory is not.
    pub fn exclude(&self, path: &[u8], is_directory: bool) -> bool {
        if self.is_empty() {
            return false;
        }
        let path = if self.as_latin {
            Cow::Owned(latin(path))
        } else {
            Cow::Borrowed(path)
        };
        self.matcher
            .matched(Path::new(OsStr::from_bytes(&path)), is_directory)
            .is_ignore()
    }
}

/// Makes UTF-8 of bytes by taking each as the character of that number.
fn latin(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .map(|&byte| char::from(byte))
        .collect::<String>()
        .into_bytes()
}

/// Takes the path of the root off the beginning of a pattern.
fn below_root(pattern: &[u8], root: &[u8]) -> Vec<u8> {
    let (negation, body) = match pattern {
        [b'!', body @ ..] => (&b"!"[..], body),
        body => (&b""[..], body),
    };
    let mut root = root;
    while let [head @ .., b'/'] = root {
        root = head;
    }
    match body.strip_prefix(root) {
        Some(rest) if root.starts_with(b"/") && rest.len() > 1 && rest[0] == b'/' => [negation, rest].concat(),
        _ => pattern.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &[&[u8]]) -> Excludes {
        let mut builder = ExcludesBuilder::default();
        patterns.iter().for_each(|pattern| {
            builder.add(pattern);
        });
        builder.build(Path::new("/srv/data")).unwrap()
    }

    #[test]
    fn patterns_mean_what_they_mean_in_gitignore() {
        let rules = excludes(&[b"*.tmp", b"/top", b"cache/", b"a/*/z", b"# comment", b"", b"!keep.tmp"]);
        assert!(rules.exclude(b"x.tmp", false) && rules.exclude(b"deep/er/x.tmp", false));
        assert!(!rules.exclude(b"deep/keep.tmp", false));
        assert!(rules.exclude(b"top", false) && !rules.exclude(b"deep/top", false));
        assert!(rules.exclude(b"x/cache", true) && !rules.exclude(b"x/cache", false));
        assert!(rules.exclude(b"a/b/z", false) && !rules.exclude(b"a/b/c/z", false));
        assert!(!Excludes::default().exclude(b"x", true));
    }

    #[test]
    fn patterns_below_the_root_may_be_absolute() {
        let rules = excludes(&[b"/srv/data/*/secret", b"!/srv/data/b/secret"]);
        assert!(rules.exclude(b"a/secret", false));
        assert!(!rules.exclude(b"b/secret", false) && !rules.exclude(b"a/b/secret", false));
        assert!(!excludes(&[b"/srv/database"]).exclude(b"base", false));
    }

    #[test]
    fn patterns_and_names_that_are_not_text_are_told_apart() {
        let rules = excludes(&[b"caf\xe9", "grün*".as_bytes()]);
        assert!(rules.exclude(b"x/caf\xe9", false));
        assert!(!rules.exclude("x/café".as_bytes(), false) && !rules.exclude(b"x/caf\xe8", false));
        assert!(rules.exclude("grünes".as_bytes(), false));
        // Without such a pattern, names that are not text are matched as they are.
        let rules = excludes(&[b"caf*"]);
        assert!(rules.exclude(b"caf\xff\xe9", false) && !rules.exclude(b"kaf\xff", false));
    }

    #[test]
    fn a_broken_pattern_is_refused() {
        let mut builder = ExcludesBuilder::default();
        assert!(matches!(
            builder.add(b"{a,b").build(Path::new("/")),
            Err(ExcludeError::Pattern { .. })
        ));
    }
}
