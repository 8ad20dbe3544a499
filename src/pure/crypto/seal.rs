//! AES-256-GCM-SIV (RFC 8452): Seal and its inverse.

use super::Secret;

/// The tag does not fit: wrong key, wrong object or changed bytes. No plaintext has been released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seal does not open: the bytes are damaged, or belong elsewhere, or the key is another one")]
pub struct CannotOpen;

/// A key that is ready to use (key schedule done once).
pub struct Sealer { _private: () }

impl Sealer {
    /// Prepares a key.
    pub fn new(_key: &Secret) -> Sealer { todo!() }
    /// Returns ciphertext ‖ tag.
    pub fn seal(&self, _nonce: &[u8; 12], _plaintext: &[u8], _aad: &[u8]) -> Vec<u8> { todo!() }
    /// Seals `buffer[from..]` in place and appends the 16-byte tag.
    pub fn seal_in_place(&self, _nonce: &[u8; 12], _buffer: &mut Vec<u8>, _from: usize, _aad: &[u8]) { todo!() }
    /// Opens ciphertext ‖ tag into `out` (cleared first; empty on failure).
    pub fn open_into(&self, _nonce: &[u8; 12], _sealed: &[u8], _aad: &[u8], _out: &mut Vec<u8>) -> Result<(), CannotOpen> { todo!() }
    /// Opens ciphertext ‖ tag.
    pub fn open(&self, nonce: &[u8; 12], sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, CannotOpen> {
        let mut out = Vec::new();
        self.open_into(nonce, sealed, aad, &mut out)?;
        Ok(out)
    }
}

/// The key under which one session seals its blobs of one domain.
pub struct BlobKey { pub sealer: Sealer }
