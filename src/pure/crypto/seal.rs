//! AES-256-GCM-SIV (RFC 8452): Seal and its inverse (format-spec chapter 1).
//!
//! Everything is done in place, so that the buffers of the caller are the only ones.

use super::{Domain, Secret};
use aes_gcm_siv::aead::Key;
use aes_gcm_siv::{AeadInOut, Aes256GcmSiv, KeyInit, Nonce, Tag};

/// Bytes that a seal adds.
pub const TAG_LEN: usize = 16;

/// The tag does not fit: wrong key, wrong object or changed bytes. No plaintext has been released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seal does not open: the bytes are damaged, or belong elsewhere, or the key is another one")]
pub struct CannotOpen;

/// A key that is ready to use (key schedule done once).
#[derive(Clone)]
pub struct Sealer {
    cipher: Aes256GcmSiv,
}

impl Sealer {
    /// Prepares a key.
    pub fn new(key: &Secret) -> Sealer {
        Sealer {
            cipher: Aes256GcmSiv::new(<&Key<Aes256GcmSiv>>::from(key.expose())),
        }
    }

    /// Returns ciphertext ‖ tag.
    pub fn seal(&self, nonce: &[u8; 12], plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(plaintext.len() + TAG_LEN);
        sealed.extend_from_slice(plaintext);
        self.seal_in_place(nonce, &mut sealed, 0, aad);
        sealed
    }

    /// Seals `buffer[from..]` in place and appends the 16-byte tag.
    ///
    /// # Panics
    /// If `from` lies behind the buffer's end.
    pub fn seal_in_place(&self, nonce: &[u8; 12], buffer: &mut Vec<u8>, from: usize, aad: &[u8]) {
        let tag = self
            .cipher
            .encrypt_inout_detached(<&Nonce>::from(nonce), aad, (&mut buffer[from..]).into())
            .expect("no buffer in this program reaches the 64 GiB that RFC 8452 allows");
        buffer.extend_from_slice(&tag);
    }

    /// Opens ciphertext ‖ tag into `out` (cleared first; empty on failure).
    ///
    /// # Errors
    /// [`CannotOpen`] when the tag does not fit or is not there.
    pub fn open_into(&self, nonce: &[u8; 12], sealed: &[u8], aad: &[u8], out: &mut Vec<u8>) -> Result<(), CannotOpen> {
        out.clear();
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(CannotOpen)?;
        out.extend_from_slice(ciphertext);
        let opened = self.cipher.decrypt_inout_detached(
            <&Nonce>::from(nonce),
            aad,
            out.as_mut_slice().into(),
            <&Tag>::from(tag),
        );
        opened.map_err(|_| {
            out.clear();
            CannotOpen
        })
    }

    /// Opens ciphertext ‖ tag.
    ///
    /// # Errors
    /// [`CannotOpen`] when the tag does not fit or is not there.
    pub fn open(&self, nonce: &[u8; 12], sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, CannotOpen> {
        let mut out = Vec::new();
        self.open_into(nonce, sealed, aad, &mut out)?;
        Ok(out)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// The key under which one session seals its blobs of one domain.
#[derive(Clone, Debug)]
pub struct BlobKey {
    pub domain: Domain,
    /// The epoch of the slot that wraps it: ids of what it sealed are of that epoch.
    pub epoch: u32,
    pub sealer: Sealer,
}

#[cfg(test)]
mod tests {
    use super::super::vectors::*;
    use super::*;

    /// RFC 8452 appendix C.2, the case with 8 bytes of plaintext and 1 byte of additional data.
    #[test]
    fn a_test_case_of_the_rfc_seals_and_opens() {
        let mut key = [0; 32];
        key[0] = 1;
        let sealer = Sealer::new(&Secret::new(key));
        let mut nonce = [0; 12];
        nonce[0] = 3;
        let sealed = sealer.seal(&nonce, &hex("0200000000000000"), &[1]);
        assert_eq!(sealed, hex("1de22967237a813291213f267e3b452f02d01ae33e4ec854"));
        assert_eq!(sealer.open(&nonce, &sealed, &[1]).unwrap(), hex("0200000000000000"));
    }

    #[test]
    fn any_changed_bit_of_key_nonce_text_tag_or_additional_data_keeps_it_shut_and_releases_nothing() {
        let key = counting(1);
        let nonce = counting(50);
        let sealed = Sealer::new(&Secret::new(key)).seal(&nonce, b"some text", b"more");
        let open = |key: [u8; 32], nonce: [u8; 12], sealed: &[u8], aad: &[u8]| {
            let mut out = b"left over".to_vec();
            let result = Sealer::new(&Secret::new(key)).open_into(&nonce, sealed, aad, &mut out);
            (result, out)
        };
        let shut = (Err(CannotOpen), Vec::new());
        assert_eq!(open(key, nonce, &sealed, b"more"), (Ok(()), b"some text".to_vec()));
        for bit in 0..32 * 8 {
            let mut other = key;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(other, nonce, &sealed, b"more"), shut);
        }
        for bit in 0..12 * 8 {
            let mut other = nonce;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(key, other, &sealed, b"more"), shut);
        }
        for bit in 0..sealed.len() * 8 {
            let mut other = sealed.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(key, nonce, &other, b"more"), shut);
        }
        for len in 0..sealed.len() {
            assert_eq!(open(key, nonce, &sealed[..len], b"more"), shut);
        }
        assert_eq!(open(key, nonce, &sealed, b"mor"), shut);
    }

    #[test]
    fn sealing_in_place_leaves_what_lies_before_alone() {
        let sealer = Sealer::new(&Secret::new([1; 32]));
        let mut buffer = b"headtext".to_vec();
        sealer.seal_in_place(&[0; 12], &mut buffer, 4, b"");
        assert_eq!(buffer[..4], *b"head");
        assert_eq!(buffer[4..], sealer.seal(&[0; 12], b"text", b""));
    }
}
