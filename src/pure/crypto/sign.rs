//! Ed25519 signatures over named CBOR maps (format-spec chapter 2).

use super::{Secret, derive};
use crate::pure::id::{KeyId, ObjectHash, RepoId};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

/// Signs as one key holder.
pub struct Signer {
    kid: KeyId,
    /// Wiped on drop by its own type.
    key: SigningKey,
}

impl Signer {
    /// Derives the signing key of a key holder: seed = DK("larder v1 ed25519 seed", kid_secret ‖ R).
    pub fn new(kid: KeyId, kid_secret: &Secret, repo: &RepoId) -> Signer {
        let seed = derive("larder v1 ed25519 seed", &[kid_secret.expose(), repo.as_bytes()]);
        Signer {
            kid,
            key: SigningKey::from_bytes(seed.expose()),
        }
    }

    /// Returns whose signatures these are.
    pub fn kid(&self) -> KeyId {
        self.kid
    }

    /// Returns what others verify with.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Signs `"larder v1 sign" ‖ 00 ‖ name ‖ 00 ‖ body`.
    pub fn sign(&self, name: &str, body: &[u8]) -> [u8; 64] {
        self.key.sign(&message(name, body)).to_bytes()
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.kid)
    }
}

/// The signature does not fit the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    #[error("signed by key {0}, which the configuration does not name")]
    UnknownKey(KeyId),
    #[error("signed by key {0}, which has been revoked")]
    Revoked(KeyId),
    #[error("signed by key {0}, which does not have the role for it")]
    Role(KeyId),
    #[error("the signature of key {0} does not fit the object")]
    Wrong(KeyId),
}

/// What a configuration says about one writer key (config key 17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterKey {
    pub kid: KeyId,
    pub public_key: [u8; 32],
    /// Role bits: 0 write, 1 read-meta, 2 read-data, 3 maintain, 4 forget, 5 hold, 6 admin, 7 attest.
    pub roles: u32,
    pub from_config: u64,
    /// Configuration that revoked the key: it signs nothing new.
    pub revoked_at: Option<u64>,
    /// Sequence and hash of the last outcome of a revoked key that counts; none: no outcome of it does.
    pub chain_end: Option<(u64, ObjectHash)>,
}

/// Knows every public key and role of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    pub writers: Vec<WriterKey>,
}

/// Role bits (format-spec chapter 2).
pub mod role {
    pub const WRITE: u32 = 1;
    pub const READ_META: u32 = 1 << 1;
    pub const READ_DATA: u32 = 1 << 2;
    pub const MAINTAIN: u32 = 1 << 3;
    pub const FORGET: u32 = 1 << 4;
    pub const HOLD: u32 = 1 << 5;
    pub const ADMIN: u32 = 1 << 6;
    pub const ATTEST: u32 = 1 << 7;
}

impl WriterKey {
    /// Whether the key holds at least one of the `roles` bits; an admin holds all.
    pub fn has_role(&self, roles: u32) -> bool {
        self.roles & (roles | role::ADMIN) != 0
    }
}

impl Verifier {
    /// Returns what the configuration says about a key.
    pub fn writer(&self, kid: &KeyId) -> Option<&WriterKey> {
        self.writers.iter().find(|writer| writer.kid == *kid)
    }

    /// Whether `kid` is named and holds at least one of the `roles` bits (admin implies all).
    pub fn has_role(&self, kid: &KeyId, roles: u32) -> bool {
        self.writer(kid).is_some_and(|writer| writer.has_role(roles))
    }

    /// Checks that the outcome `sequence` of `kid`, whose object has the hash `hash`, is not later than the key's revocation: of a
    /// revoked key, outcomes up to the end of its chain count, and the last of them is the one that is named there.
    ///
    /// # Errors
    /// [`BadSignature::Revoked`].
    pub fn check_in_time(&self, kid: &KeyId, sequence: u64, hash: &ObjectHash) -> Result<(), BadSignature> {
        let Some(writer) = self.writer(kid).filter(|writer| writer.revoked_at.is_some()) else {
            return Ok(());
        };
        match &writer.chain_end {
            Some((end, last)) if sequence < *end || (sequence == *end && hash == last) => Ok(()),
            _ => Err(BadSignature::Revoked(*kid)),
        }
    }

    /// Checks a signature by `kid`, which must hold at least one of the `roles` bits (admin implies all).
    ///
    /// # Errors
    /// The key is not named, has been revoked, lacks the role, or did not make this signature.
    pub fn verify(
        &self,
        kid: &KeyId,
        roles: u32,
        name: &str,
        body: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), BadSignature> {
        let revoked = self.writer(kid).is_some_and(|writer| writer.revoked_at.is_some());
        if revoked && !chaos!("revoked-keys-count") {
            return Err(BadSignature::Revoked(*kid));
        }
        self.verify_even_if_revoked(kid, roles, name, body, signature)
    }

    /// As [`Self::verify`], for objects that outlive their signer: what a key signed before it was revoked stays
    /// valid where something else (an accepted outcome, the end of the chain) says that it was there in time.
    ///
    /// # Errors
    /// The key is not named, lacks the role, or did not make this signature.
    pub fn verify_even_if_revoked(
        &self,
        kid: &KeyId,
        roles: u32,
        name: &str,
        body: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), BadSignature> {
        let writer = self.writer(kid).ok_or(BadSignature::UnknownKey(*kid))?;
        if !writer.has_role(roles) && !chaos!("roles-are-not-asked") {
            return Err(BadSignature::Role(*kid));
        }
        let key = VerifyingKey::from_bytes(&writer.public_key).map_err(|_| BadSignature::Wrong(*kid))?;
        // Strict: refuses weak keys and the second form of a signature that looser verifiers let through.
        key.verify_strict(&message(name, body), &Signature::from_bytes(signature))
            .or_else(|error| {
                if chaos!("signatures-are-not-verified") {
                    Ok(())
                } else {
                    Err(error)
                }
            })
            .map_err(|_| BadSignature::Wrong(*kid))
    }
}

fn message(name: &str, body: &[u8]) -> Vec<u8> {
    [b"larder v1 sign\0", name.as_bytes(), b"\0", body].concat()
}

#[cfg(test)]
mod tests {
    use super::super::vectors::*;
    use super::*;

    #[test]
    fn the_published_session_object_has_the_published_signature() {
        assert_eq!(
            signer().public_key()[..],
            hex("b33893bb7fd8aa9d2cab3f4128acdf61d31e8293c1ba3b9446647240ba255304")
        );
        let name = "sess/11111111111111111111111111111111/0000";
        // The session map without its key 15: the count of the map is one less, and the signature is cut off.
        let signed = hex(
            "a70001015011111111222222222222222222222222021b17979cfe362a00000300048005686c61726465722f310f584027e792108a285f44ce49fd538b415c0b2419776bc9e8991ac2505e39cf31a2f61dff87b4e99960a6b0266aa5e3d0a8b95cba5bf11c21ca6f499bc9264ca9710c",
        );
        let (body, signature) = signed.split_at(signed.len() - 67);
        let mut body = body.to_vec();
        body[0] -= 1;
        let signature: [u8; 64] = signature[3..].try_into().unwrap();
        assert_eq!(signer().sign(name, &body), signature);
        let verifier = verifier(role::WRITE);
        assert_eq!(verifier.verify(&kid(), role::WRITE, name, &body, &signature), Ok(()));
        for bit in 0..512 {
            let mut other = signature;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                verifier.verify(&kid(), role::WRITE, name, &body, &other),
                Err(BadSignature::Wrong(kid())),
                "bit {bit}"
            );
        }
        for bit in 0..body.len() * 8 {
            let mut other = body.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(
                verifier.verify(&kid(), role::WRITE, name, &other, &signature).is_err(),
                "bit {bit}"
            );
        }
        let moved = "sess/11111111111111111111111111111111/0001";
        assert!(verifier.verify(&kid(), role::WRITE, moved, &body, &signature).is_err());
    }

    #[test]
    fn only_a_named_key_with_the_role_is_believed() {
        let signature = signer().sign("n", b"b");
        let check = |verifier: &Verifier| verifier.verify(&kid(), role::MAINTAIN, "n", b"b", &signature);
        assert_eq!(check(&verifier(role::MAINTAIN)), Ok(()));
        assert_eq!(check(&verifier(role::ADMIN)), Ok(()));
        assert_eq!(check(&verifier(role::WRITE)), Err(BadSignature::Role(kid())));
        assert_eq!(check(&Verifier::default()), Err(BadSignature::UnknownKey(kid())));
        let mut revoked = verifier(role::MAINTAIN);
        revoked.writers[0].revoked_at = Some(4);
        assert_eq!(check(&revoked), Err(BadSignature::Revoked(kid())));
        assert_eq!(
            revoked.verify_even_if_revoked(&kid(), role::MAINTAIN, "n", b"b", &signature),
            Ok(())
        );
        let mut other = verifier(role::MAINTAIN);
        other.writers[0].public_key = Signer::new(kid(), &Secret::new([9; 32]), &REPO).public_key();
        assert_eq!(check(&other), Err(BadSignature::Wrong(kid())));
        other.writers[0].public_key = [0xff; 32];
        assert_eq!(check(&other), Err(BadSignature::Wrong(kid())));
    }
}
