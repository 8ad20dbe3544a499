//! Which entries of a snapshot are wanted: `--include` and `--exclude`, in the same pattern language as backup.

use crate::ops::OpError;
use crate::source::files::{Excludes, ExcludesBuilder};
use std::path::Path;

/// A choice of paths. Empty: everything.
#[derive(Debug, Default)]
pub struct Selection {
    include: Option<Excludes>,
    exclude: Option<Excludes>,
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
        })
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
