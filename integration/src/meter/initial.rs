//! Forged QUIC Initials (RFC 9000, section 17.2.2; RFC 9001, section 5): what anybody can send without knowing any key, since an
//! Initial is sealed with keys that are made of its own connection ID.

use super::payload::{draw, pattern};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use ring::hkdf::{self, KeyType, Prk, Salt};

/// A client's first datagram has so many octets at least (RFC 9000, section 14.1).
const LEAST: usize = 1200;

/// RFC 9001, section 5.2.
const SALT: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label of TLS 1.3 (RFC 8446, section 7.1) without a context. `None` never comes: no length here is beyond HKDF's
/// limit.
fn expand(secret: &Prk, label: &str, out: &mut [u8]) -> Option<()> {
    let len = u8::try_from(out.len()).ok()?;
    let label = [b"tls13 ", label.as_bytes()].concat();
    let head = [0, len, u8::try_from(label.len()).ok()?];
    secret.expand(&[&head, &label, &[0]], Length(out.len())).ok()?.fill(out).ok()
}

/// An Initial of a connection ID of its own, right in all that can be checked without TLS: what it carries is a PING, or the
/// beginning of a ClientHello that never ends.
fn forged(dice: u64, out: &mut Vec<u8>) -> Option<()> {
    let mut ids = [0; 16];
    pattern(dice, 0, &mut ids);
    let (dcid, scid) = ids.split_at(8);
    let initial = Salt::new(hkdf::HKDF_SHA256, &SALT).extract(dcid);
    let mut client = [0; 32];
    expand(&initial, "client in", &mut client)?;
    let client = Prk::new_less_safe(hkdf::HKDF_SHA256, &client);
    let (mut key, mut iv, mut header_key) = ([0; 16], [0; 12], [0; 16]);
    expand(&client, "quic key", &mut key)?;
    expand(&client, "quic iv", &mut iv)?;
    expand(&client, "quic hp", &mut header_key)?;

    out.clear();
    // Long header, Initial, a packet number of four octets; version 1.
    out.extend([0xc3, 0, 0, 0, 1, 8]);
    out.extend(dcid);
    out.push(8);
    out.extend(scid);
    out.push(0); // no token
    let rest = LEAST - out.len() - 2;
    out.extend((rest as u16 | 0x4000).to_be_bytes());
    let number_at = out.len();
    out.extend([0; 4]);
    let header = out.clone();
    let mut payload = vec![0; LEAST - header.len() - 16];
    let frame: &[u8] = match dice & 1 {
        0 => &[0x01],
        // CRYPTO at 0 with 4 octets: a ClientHello of 1,024.
        _ => &[0x06, 0, 4, 1, 0, 4, 0],
    };
    payload[..frame.len()].copy_from_slice(frame);
    let sealing = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?);
    // The nonce is the IV with the packet number, 0, added to it.
    sealing.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(&header), &mut payload).ok()?;
    out.extend(&payload);
    let mask = quic::HeaderProtectionKey::new(&quic::AES_128, &header_key).ok()?;
    let mask = mask.new_mask(&out[number_at + 4..number_at + 20]).ok()?;
    out[0] ^= mask[0] & 0x0f;
    for (octet, mask) in out[number_at..number_at + 4].iter_mut().zip(&mask[1..]) {
        *octet ^= mask;
    }
    Some(())
}

/// Number `number` of what is thrown at a port that speaks QUIC: forged Initials for the half, and for an eighth each, those cut
/// short, those of another version, those that are wrong behind the header, and noise that looks like packets of a connection.
pub(crate) fn forgery(seed: u64, number: u64, max: usize, out: &mut Vec<u8>) {
    let dice = draw(seed, number);
    if forged(dice >> 8, out).is_none() {
        out.clear();
    }
    match dice & 7 {
        0 => out.truncate((dice >> 40) as usize % LEAST),
        1 => out[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]),
        2 => {
            let at = 40 + (dice >> 40) as usize % 1000;
            out[at] ^= 1;
        }
        3 => {
            out.resize(21 + (dice >> 40) as usize % 1400, 0);
            pattern(dice, 0, out);
            out[0] = out[0] & 0x3f | 0x40;
        }
        _ => {}
    }
    out.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9001, appendix A.1.
    #[test]
    fn the_keys_are_those_of_the_rfc() {
        let dcid = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        let initial = Salt::new(hkdf::HKDF_SHA256, &SALT).extract(&dcid);
        let mut client = [0; 32];
        expand(&initial, "client in", &mut client).expect("a secret");
        let mut key = [0; 16];
        expand(&Prk::new_less_safe(hkdf::HKDF_SHA256, &client), "quic key", &mut key).expect("a key");
        assert_eq!(
            key,
            [0x1f, 0x36, 0x96, 0x13, 0xdd, 0x76, 0xd5, 0x46, 0x77, 0x30, 0xef, 0xcb, 0xe3, 0xb1, 0xa2, 0x2d]
        );
    }

    #[test]
    fn forgeries_are_of_all_kinds_bounded_and_the_same_again() {
        let (mut a, mut b, mut whole) = (Vec::new(), Vec::new(), 0);
        for number in 0..2000 {
            forgery(1, number, 1_472, &mut a);
            forgery(1, number, 1_472, &mut b);
            assert_eq!(a, b);
            assert!(a.len() <= 1_472);
            whole += u32::from(a.len() == LEAST && a[0] & 0xf0 == 0xc0 && a[1..5] == [0, 0, 0, 1]);
        }
        assert!((1100..1400).contains(&whole), "{whole}");
    }
}
