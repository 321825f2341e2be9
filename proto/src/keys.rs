//! X25519 keys as the configuration writes them (base64, as `wg` does), and the key of each uplink slot.

use blake2::digest::Mac;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use x25519_dalek as x25519;

/// A peer's public key. Low-order points, the all-zero key among them, cannot be made into one: a handshake with such
/// a key has a shared secret that anybody knows (RFC 7748, section 6.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// A private key, or the secret of a box from which its slots' keys come. Shown in no output: `Debug` prints a
/// placeholder. The text form exists for one purpose, the key file.
#[derive(Clone)]
pub struct SecretKey(x25519::StaticSecret);

/// Why a key was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 44 characters of base64 for 32 bytes.
    #[error("a key is 32 bytes in base64: 44 characters, the last one '='")]
    Encoding,
    /// A point of low order.
    #[error("this public key is a point of low order: anybody could read the tunnel; make a new key pair")]
    LowOrder,
}

impl PublicKey {
    /// Checks and takes the 32 bytes of a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        // A low-order point gives the all-zero secret with any scalar (clamping makes it a multiple of eight), so one
        // fixed scalar finds them all, non-canonical encodings included.
        let probe = x25519::StaticSecret::from([0x40; 32]);
        let shared = probe.diffie_hellman(&x25519::PublicKey::from(bytes));
        if shared.was_contributory() { Ok(PublicKey(bytes)) } else { Err(KeyError::LowOrder) }
    }

    /// A key as it came in a handshake: only good for being looked up among those that were checked.
    pub(crate) fn unchecked(bytes: [u8; 32]) -> Self {
        PublicKey(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl SecretKey {
    /// Takes 32 bytes of entropy, from the caller, as a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        SecretKey(x25519::StaticSecret::from(bytes))
    }

    /// The public key that belongs to this one.
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519::PublicKey::from(&self.0).as_bytes())
    }

    /// The key of one uplink slot of the box whose secret this is. The core learns all eight public keys when the box
    /// is enrolled, so an uplink plugged in later needs nobody.
    ///
    /// BLAKE2s keyed with the secret, over a label and the slot: one slot's key tells nothing of another's.
    pub fn uplink(&self, slot: u8) -> SecretKey {
        let mut mac = <blake2::Blake2sMac<blake2::digest::consts::U32> as Mac>::new_from_slice(&self.0.to_bytes())
            .expect("a key of 32 bytes is within BLAKE2s's limit of 32");
        mac.update(b"msp uplink key v1");
        mac.update(&[slot]);
        SecretKey::from_bytes(mac.finalize().into_bytes().into())
    }

    /// The text for the key file. Nothing else may call this.
    pub fn expose_base64(&self) -> String {
        base64::encode(&self.0.to_bytes())
    }

    pub(crate) fn x25519(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

/// For the operator's keys, old and new: no attacker chooses either, so the time it takes tells nobody anything.
impl PartialEq for SecretKey {
    fn eq(&self, other: &SecretKey) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        PublicKey::from_bytes(base64::decode(s).ok_or(KeyError::Encoding)?)
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Ok(SecretKey::from_bytes(base64::decode(s).ok_or(KeyError::Encoding)?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64::encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Base64 of exactly 32 bytes.
mod base64 {
    use ::base64::{Engine, engine::general_purpose::STANDARD};

    pub(super) fn encode(bytes: &[u8; 32]) -> String {
        STANDARD.encode(bytes)
    }

    pub(super) fn decode(text: &str) -> Option<[u8; 32]> {
        STANDARD.decode(text.trim()).ok()?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_order_points_are_refused() {
        // The list of RFC 7748's implementers (cr.yp.to/ecdh.html#validate), with non-canonical encodings.
        let p = {
            let mut p = [0xff; 32];
            p[0] = 0xed;
            p[31] = 0x7f;
            p
        };
        let (mut p_minus_1, mut p_plus_1) = (p, p);
        p_minus_1[0] -= 1;
        p_plus_1[0] += 1;
        let one = {
            let mut one = [0; 32];
            one[0] = 1;
            one
        };
        for point in [[0; 32], one, p, p_minus_1, p_plus_1] {
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder), "{point:?}");
        }
        assert!(SecretKey::from_bytes([7; 32]).public().to_string().parse::<PublicKey>().is_ok());
    }

    #[test]
    fn each_slot_has_its_own_key_and_always_the_same() {
        let secret = SecretKey::from_bytes([1; 32]);
        let keys: Vec<_> = (0..8).map(|slot| secret.uplink(slot).public()).collect();
        let again: Vec<_> = (0..8).map(|slot| secret.uplink(slot).public()).collect();
        assert_eq!(keys, again);
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), 8);
        assert!(!keys.contains(&secret.public()));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", SecretKey::from_bytes([9; 32])), "SecretKey(hidden)");
    }
}
