//! Reading again what seems damaged (I-8): a network or a memory that is bad at times is not a damaged repository.

use super::RepoError;

/// How often something is read before its damage is believed.
pub(super) const READS_BEFORE_DAMAGE: usize = 3;

/// Repeats `read`, which reads an object and opens it, while what came is not acceptable.
///
/// # Errors
/// The last one, or any other at once.
pub(super) fn until_sound<T>(mut read: impl FnMut() -> Result<T, RepoError>) -> Result<T, RepoError> {
    for _ in 1..READS_BEFORE_DAMAGE {
        match read() {
            Err(RepoError::Object { .. }) => {}
            done => return done,
        }
    }
    read()
}
