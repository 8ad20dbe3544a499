//! The gear table, derived per repository from S_cdc (format-spec chapters on keys and on chunking).

use crate::pure::crypto::{Secret, derive_into};
use crate::pure::id::RepoId;
use zeroize::Zeroizing;

/// 256 little-endian words of DK("larder v1 gear table", S_cdc ‖ R, 2048).
pub fn table(cdc_secret: &Secret, repo: &RepoId) -> Box<[u64; 256]> {
    let mut bytes = Zeroizing::new([0; 2048]);
    derive_into(
        "larder v1 gear table",
        &[cdc_secret.expose(), repo.as_bytes()],
        &mut *bytes,
    );
    let mut words = Box::new([0; 256]);
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::vectors::REPO;

    #[test]
    fn the_table_is_the_published_one() {
        let gear = table(&Secret::new([2; 32]), &REPO);
        assert_eq!(
            (gear[0], gear[1], gear[255]),
            (0xe4b6_a509_e533_3426, 0xaae4_ba3d_d79c_0c40, 0x0e20_9d7a_78aa_d37f)
        );
    }
}
