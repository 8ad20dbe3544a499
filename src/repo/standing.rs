//! Whether a place is the one that is written to (format-spec chapter 4.1). A repository and its replicas have one identity and one
//! history: two places that both grow would have two. So there is one primary, which the newest configuration names; a mark in the
//! store tells the places apart.

use super::error::RepoError;
use crate::pure::format::config::Config;
use crate::pure::id::{PlaceId, RepoId};
use std::path::{Path, PathBuf};

/// What a place is in the life of its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Writers may write.
    Primary,
    /// Only `repo replicate` writes.
    Replica(PlaceId),
    /// Was the primary; its own configuration names another place.
    Superseded,
    /// Would be the primary, but this machine has seen a later configuration that names another place.
    LeftBehind {
        /// Number of that configuration.
        seen: u64,
    },
}

impl Standing {
    /// Judges from the newest configuration and the marks beside it. The first mark counts as the place's own.
    pub fn of(config: &Config, marks: &[PlaceId]) -> Standing {
        match (config.primary, marks.first()) {
            (None, None) => Standing::Primary,
            (Some(primary), _) if marks.contains(&primary) => Standing::Primary,
            (_, Some(own)) => Standing::Replica(*own),
            (Some(_), None) => Standing::Superseded,
        }
    }

    /// As [`Self::of`], with what this machine has seen at other places of the repository, and remembers it.
    pub(super) fn known_here(config: &Config, marks: &[PlaceId], cache_dir: &Path) -> Standing {
        let standing = Standing::of(config, marks);
        let memory = memory_file(cache_dir, &config.repo);
        let seen: Option<u64> = std::fs::read_to_string(&memory)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if config.primary.is_some() && seen.is_none_or(|seen| seen < config.sequence) {
            // Losing this costs a warning, nothing else.
            let _ = memory.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(&memory, config.sequence.to_string());
        }
        match (standing, seen) {
            (Standing::Primary, Some(seen)) if seen > config.sequence => Standing::LeftBehind { seen },
            _ => standing,
        }
    }

    /// Refuses to write anywhere but to the primary.
    ///
    /// # Errors
    /// When this is not the primary.
    pub fn require_primary(self, location: impl FnOnce() -> String, newest: u64) -> Result<(), RepoError> {
        match self {
            Standing::Primary => Ok(()),
            Standing::Replica(_) => Err(RepoError::IsReplica { location: location() }),
            Standing::Superseded => Err(RepoError::Superseded { location: location() }),
            Standing::LeftBehind { seen } => Err(RepoError::ConfigRollback { seen, found: newest }),
        }
    }
}

/// Where a machine remembers the number of the last configuration that named a primary.
fn memory_file(cache_dir: &Path, repo: &RepoId) -> PathBuf {
    cache_dir.join("primaries").join(repo.to_string())
}

/// Name of the folder of local state: each place of a repository has its own, because a replica may be behind.
pub(super) fn state_name(repo: &RepoId, own: Option<&PlaceId>) -> String {
    match own {
        None => repo.to_string(),
        Some(place) => format!("{repo}-{}", &place.to_string()[..8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::base::Timestamp;
    use crate::pure::crypto::sign::{WriterKey, role};
    use crate::pure::id::KeyId;

    fn config(sequence: u64, primary: Option<PlaceId>) -> Config {
        let admin = WriterKey {
            kid: KeyId([1; 16]),
            public_key: [2; 32],
            roles: role::ADMIN,
            from_config: 0,
            revoked_at: None,
            chain_end: None,
        };
        Config {
            sequence,
            primary,
            ..Config::first(RepoId([3; 16]), Timestamp(0), admin)
        }
    }

    #[test]
    fn exactly_one_place_is_the_primary() {
        let (a, b) = (PlaceId([1; 16]), PlaceId([2; 16]));
        let places: [&[PlaceId]; 3] = [&[], &[a], &[b]];
        for (primary, expected) in [(None, 0), (Some(a), 1), (Some(b), 2)] {
            for (number, marks) in places.iter().enumerate() {
                let is_primary = Standing::of(&config(1, primary), marks) == Standing::Primary;
                assert_eq!(is_primary, number == expected, "{primary:?} {marks:?}");
            }
        }
    }

    #[test]
    fn a_machine_that_has_seen_the_new_primary_writes_to_the_old_one_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = PlaceId([1; 16]);
        let judge =
            |sequence, primary, marks: &[PlaceId]| Standing::known_here(&config(sequence, primary), marks, dir.path());
        assert_eq!(judge(4, None, &[]), Standing::Primary);
        assert_eq!(judge(5, Some(place), &[place]), Standing::Primary);
        assert_eq!(judge(4, None, &[]), Standing::LeftBehind { seen: 5 });
        assert_eq!(judge(5, Some(place), &[]), Standing::Superseded);
        assert_eq!(judge(6, None, &[]), Standing::Primary);
        assert!(judge(4, None, &[]).require_primary(String::new, 4).is_err());
    }
}
