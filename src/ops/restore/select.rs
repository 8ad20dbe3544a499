//! Which entries of a snapshot are wanted: `--include` and `--exclude`, in the same pattern language as backup.

use crate::ops::OpError;
use crate::source::files::{Excludes, ExcludesBuilder};
use std::path::Path;

/// A choice of paths. Empty: everything.
#[derive(Debug, Default)]
pub struct Selection {
    include: Option<Excludes>,
    exclude: Option<Excludes>,
    places: Option<Vec<Vec<Vec<u8>>>>,
}

impl Selection {
    /// Builds a choice from patterns that are matched against full paths.
    ///
    /// # Errors
    /// When a pattern is malformed.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Selection, OpError> {
        let build = |patterns: &[String]| -> Result<Option<Excludes>, OpError> {
            if patterns.is_empty() {
                return Ok(None);
            }
            let mut builder = ExcludesBuilder::default();
            for pattern in patterns {
                builder.add(pattern.as_bytes());
            }
            builder
                .build(Path::new("/"))
                .map(Some)
                .map_err(|error| OpError::Usage(error.to_string()))
        };
        Ok(Selection {
            include: build(include)?,
            exclude: build(exclude)?,
            places: if include.is_empty() { None } else { places_of(include) },
        })
    }

    /// The places at or below which everything lies that is included, as components of full paths, none below another;
    /// `None` when it may be anywhere.
    pub fn places(&self) -> Option<&[Vec<Vec<u8>>]> {
        self.places.as_deref()
    }

    /// Whether an entry is wanted: it, or a directory above it, is included, and neither it nor one above is excluded.
    /// Directories above something included are not wanted themselves; they are made as needed.
    pub fn accepts(&self, path: &[u8], is_dir: bool) -> bool {
        let hit = |patterns: &Excludes| {
            let path = path.strip_prefix(b"/").unwrap_or(path);
            let ends = path
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .map(|(end, _)| end);
            ends.map(|end| (&path[..end], true))
                .chain(std::iter::once((path, is_dir)))
                .any(|(part, is_dir)| patterns.exclude(part, is_dir))
        };
        self.include.as_ref().is_none_or(hit) && !self.exclude.as_ref().is_some_and(hit)
    }
}

/// Takes from each pattern what is literal at its beginning. A pattern that is not anchored can match anywhere.
fn places_of(patterns: &[String]) -> Option<Vec<Vec<Vec<u8>>>> {
    let mut places = Vec::new();
    for pattern in patterns {
        // These take back what others include, or mean nothing.
        if pattern.is_empty() || pattern.starts_with(['!', '#']) {
            continue;
        }
        places.push(place_of(pattern.as_bytes())?);
    }
    places.sort();
    // What begins with another one comes right after it, or after others that do.
    places.dedup_by(|later, earlier| later.starts_with(earlier));
    Some(places)
}

fn place_of(pattern: &[u8]) -> Option<Vec<Vec<u8>>> {
    // White space at the end means nothing, except where it does: such patterns are too rare to be clever about.
    if !pattern.last().is_some_and(u8::is_ascii_graphic) {
        return None;
    }
    let body = pattern.strip_suffix(b"/").unwrap_or(pattern);
    if !body.contains(&b'/') {
        return None;
    }
    let place: Vec<Vec<u8>> = body
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .take_while(|part| !part.iter().any(|byte| b"*?[]{}\\".contains(byte)))
        .map(<[u8]>::to_vec)
        .collect();
    (!place.is_empty()).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(patterns: &[&str]) -> Option<Vec<String>> {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let selection = Selection::new(&patterns, &[]).unwrap();
        let joined = |place: &Vec<Vec<u8>>| String::from_utf8(place.join(&b'/')).unwrap();
        selection.places().map(|places| places.iter().map(joined).collect())
    }

    fn some(places: &[&str]) -> Option<Vec<String>> {
        Some(places.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn included_paths_say_where_to_look() {
        assert_eq!(places(&[]), None);
        assert_eq!(places(&["/etc/fstab"]), some(&["etc/fstab"]));
        assert_eq!(
            places(&["/home/ada/", "/etc/*.conf", "!/etc/x.conf"]),
            some(&["etc", "home/ada"])
        );
        assert_eq!(
            places(&["etc/fstab"]),
            some(&["etc/fstab"]),
            "a slash in the middle anchors"
        );
        assert_eq!(places(&["/a/b", "/a/b/c", "/a", "/a-b", "/a/c"]), some(&["a", "a-b"]));
        for anywhere in ["*.jpg", "fstab", "fstab/", "/*", "**/x/y", "/", "/a/b ", "/a\\ "] {
            assert_eq!(places(&["/etc", anywhere]), None, "{anywhere:?}");
        }
    }

    /// What is accepted lies at or below one of the places: nothing is passed over.
    #[test]
    fn places_hide_nothing_that_is_accepted() {
        let patterns = [
            "/a/b", "/a/*/c", "x/y", "/q/r?/s", "/w/", "/a/b c", "/[t]/u", "/a/{b,c}", "/l/**", "!/a/b/no",
        ];
        let parts = ["a", "b", "b c", "c", "x", "y", "q", "r1", "s", "w", "t", "u", "no", "l"];
        let mut paths: Vec<String> = vec![String::new()];
        for _ in 0..3 {
            let longer = paths.iter().flat_map(|path| parts.map(|part| format!("{path}/{part}")));
            paths = paths.iter().cloned().chain(longer).collect();
            paths.sort();
            paths.dedup();
        }
        let mut accepted = 0;
        for first in patterns {
            for second in patterns {
                let selection = Selection::new(&[first.to_string(), second.to_string()], &[]).unwrap();
                let Some(places) = selection.places() else { continue };
                for path in &paths {
                    if selection.accepts(path.as_bytes(), true) {
                        accepted += 1;
                        let components: Vec<Vec<u8>> =
                            path[1..].split('/').map(|part| part.as_bytes().to_vec()).collect();
                        let is_there = places.iter().any(|place| components.starts_with(place));
                        assert!(is_there, "{path} by {first} and {second}, but {places:?}");
                    }
                }
            }
        }
        assert!(accepted > 1000, "{accepted}");
    }
}
