//! Session keys wrapped for others: HPKE (RFC 9180), single-shot, `mode_psk`, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! AES-256-GCM (format-spec chapter 3.2, method 2). Who wraps needs a public key and S_psk, and cannot open again what it has wrapped.

use super::Secret;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, PskBundle, Serializable};
use std::convert::Infallible;
use zeroize::Zeroizing;

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey;

/// What an exchange is bound to, beside the two keys.
pub(super) struct Context<'a> {
    pub psk: &'a Secret,
    pub psk_id: &'a [u8],
    pub info: &'a [u8],
    pub aad: &'a [u8],
}

impl Context<'_> {
    fn psk(&self) -> Option<PskBundle<'_>> {
        PskBundle::new(self.psk.expose(), self.psk_id).ok()
    }
}

/// Opens what was wrapped for its public key.
pub(super) struct Recipient {
    /// Wiped on drop by its own type.
    private: PrivateKey,
    public: PublicKey,
}

impl Recipient {
    /// Derives the key pair (`DeriveKeyPair` of RFC 9180) of key material.
    pub(super) fn new(key_material: &Secret) -> Recipient {
        let (private, public) = X25519HkdfSha256::derive_keypair(key_material.expose());
        Recipient { private, public }
    }

    /// Returns what others wrap for.
    pub(super) fn public_key(&self) -> [u8; 32] {
        self.public.to_bytes().into()
    }

    /// Opens `sealed`, whose sender has left the key `encapsulated`. `None` if it does not open.
    pub(super) fn open(&self, context: &Context<'_>, encapsulated: &[u8], sealed: &[u8]) -> Option<Secret> {
        let encapsulated = Encapsulated::from_bytes(encapsulated).ok()?;
        let opened = hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Psk(context.psk()?),
            &self.private,
            &encapsulated,
            context.info,
            sealed,
            context.aad,
        );
        let opened = Zeroizing::new(opened.ok()?);
        Secret::from_slice(&opened)
    }
}

/// Wraps a secret for a public key. `chance` is 32 random bytes, used for nothing else. Returns the encapsulated key and the
/// sealed secret; `None` for a public key that nobody can have (a point of low order).
pub(super) fn seal(
    public: &[u8; 32],
    context: &Context<'_>,
    secret: &Secret,
    chance: &[u8; 32],
) -> Option<([u8; 32], [u8; 48])> {
    let public = PublicKey::from_bytes(public).ok()?;
    let (encapsulated, sealed) = hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Psk(context.psk()?),
        &public,
        context.info,
        secret.expose(),
        context.aad,
        &mut Chance(Some(Zeroizing::new(*chance))),
    )
    .ok()?;
    Some((encapsulated.to_bytes().into(), sealed.try_into().ok()?))
}

/// Random bytes that the caller has drawn: this ring draws none. HPKE asks once, for the key material of the ephemeral key.
struct Chance(Option<Zeroizing<[u8; 32]>>);

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("HPKE asks for the bytes of one key")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("HPKE asks for the bytes of one key")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        // The same bytes twice would be worse than stopping.
        let bytes = self.0.take().expect("HPKE asks once");
        out.copy_from_slice(&bytes[..]);
        Ok(())
    }
}

impl TryCryptoRng for Chance {}

#[cfg(test)]
mod tests {
    use super::super::vectors::{counting, hex};
    use super::*;

    /// RFC 9180 A.1.2 is of another AEAD; what it says of keys is that of ours.
    #[test]
    fn key_pairs_are_those_of_the_rfc() {
        let material =
            Secret::from_slice(&hex("78628c354e46f3e169bd231be7b2ff1c77aa302460a26dbfa15515684c00130b")).unwrap();
        assert_eq!(
            Recipient::new(&material).public_key()[..],
            hex("0ad0950d9fb9588e59690b74f1237ecdf1d775cd60be2eca57af5a4b0471c91b")
        );
    }

    #[test]
    fn only_the_recipient_with_the_same_context_opens() {
        let recipient = Recipient::new(&Secret::new([1; 32]));
        let psk = Secret::new([2; 32]);
        let context = Context {
            psk: &psk,
            psk_id: b"id",
            info: b"info",
            aad: b"aad",
        };
        let secret = Secret::new([3; 32]);
        let (encapsulated, sealed) = seal(&recipient.public_key(), &context, &secret, &counting(0)).unwrap();
        assert_eq!(recipient.open(&context, &encapsulated, &sealed).unwrap(), secret);
        let other_psk = Secret::new([4; 32]);
        let others = [
            Context {
                psk: &other_psk,
                ..context
            },
            Context {
                psk_id: b"other",
                ..context
            },
            Context {
                info: b"other",
                ..context
            },
            Context {
                aad: b"other",
                ..context
            },
        ];
        for other in &others {
            assert!(recipient.open(other, &encapsulated, &sealed).is_none());
        }
        let somebody = Recipient::new(&Secret::new([5; 32]));
        assert!(somebody.open(&context, &encapsulated, &sealed).is_none());
        assert!(recipient.open(&context, &[0; 32], &sealed).is_none());
        assert!(recipient.open(&context, &encapsulated[1..], &sealed).is_none());
        assert!(seal(&[0; 32], &context, &secret, &counting(0)).is_none());
        // Other chance, other bytes.
        let again = seal(&recipient.public_key(), &context, &secret, &counting(1)).unwrap();
        assert_ne!((encapsulated, sealed), again);
    }
}
