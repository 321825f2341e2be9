//! What is in the meter's packets: a header that says which and when, and a filler that shows any change.
//!
//! ```text
//!  0                   1                   2                   3
//! +---------------------------------------------------------------+
//! |                     magic "MSPmeter" (8)                      |
//! +-------------------------------+-------------------------------+
//! |          stream (4)           |          length (4)           |
//! +-------------------------------+-------------------------------+
//! |                          number (8)                           |
//! +---------------------------------------------------------------+
//! |        sent, nanoseconds of CLOCK_MONOTONIC's run (8)         |
//! +---------------------------------------------------------------+
//! |      check: FNV-1a of all before and of all behind (8)        |
//! +---------------------------------------------------------------+
//! |        filler: the pattern of stream and number …             |
//! ```
//! All numbers are big-endian.

/// Octets before the filler: the least length of a payload.
pub(crate) const HEADER: usize = 40;

/// Marks a packet as the meter's, wherever it is found.
pub(crate) const MAGIC: [u8; 8] = *b"MSPmeter";

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) stream: u32,
    pub(crate) number: u64,
    pub(crate) sent: i64,
}

impl Header {
    /// Fills a payload; `payload` has at least [`HEADER`] octets.
    pub(crate) fn write(self, payload: &mut [u8]) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        payload[..8].copy_from_slice(&MAGIC);
        payload[8..12].copy_from_slice(&self.stream.to_be_bytes());
        payload[12..16].copy_from_slice(&length.to_be_bytes());
        payload[16..24].copy_from_slice(&self.number.to_be_bytes());
        payload[24..32].copy_from_slice(&self.sent.to_be_bytes());
        pattern(self.filler_seed(), 0, &mut payload[HEADER..]);
        let check = check(payload);
        payload[32..40].copy_from_slice(&check.to_be_bytes());
    }

    /// Reads a payload; `None` if it is not the meter's, or not as it was sent.
    pub(crate) fn read(payload: &[u8]) -> Option<Header> {
        let header = Header::peek(payload)?;
        let (length, sum) = (word(payload, 8) as u32, word(payload, 32));
        (length as usize == payload.len() && sum == check(payload)).then_some(header)
    }

    /// Reads the header of what may be cut behind it, as an ICMP error quotes it: unchecked.
    pub(crate) fn peek(payload: &[u8]) -> Option<Header> {
        if payload.len() < HEADER || payload[..8] != MAGIC {
            return None;
        }
        let stream = (word(payload, 8) >> 32) as u32;
        Some(Header { stream, number: word(payload, 16), sent: word(payload, 24) as i64 })
    }

    fn filler_seed(self) -> u64 {
        u64::from(self.stream) << 40 ^ self.number
    }
}

/// `at` and the seven octets behind it are there.
fn word(payload: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight octets"))
}

/// The streams whose marks stand in a packet, in any place: also in fragments, quotes of ICMP errors, merged packets.
pub(crate) fn marks(packet: &[u8]) -> impl Iterator<Item = u32> + '_ {
    packet.windows(MAGIC.len() + 4).filter(|w| w[..8] == MAGIC).map(|w| u32::from_be_bytes([w[8], w[9], w[10], w[11]]))
}

/// FNV-1a (64 bits) of a payload without its check. Finds what a faulty program does to a packet, not what an attacker
/// does.
fn check(payload: &[u8]) -> u64 {
    let octets = payload[..32].iter().chain(&payload[HEADER..]);
    octets.fold(0xcbf2_9ce4_8422_2325, |hash, &octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3))
}

/// The octets of an endless pseudo-random stream from `offset` on: any part of it can be made, and checked, by itself.
pub(crate) fn pattern(seed: u64, offset: u64, out: &mut [u8]) {
    let mut at = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = (at % 8) as usize;
        let word = draw(seed, at / 8).to_be_bytes();
        let n = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&word[skip..skip + n]);
        rest = later;
        at += n as u64;
    }
}

/// The `index`th number of the stream of `seed`: SplitMix64's output function over a counter.
pub(crate) fn draw(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip_and_every_changed_octet_is_seen() {
        let header = Header { stream: 7, number: 1 << 40, sent: -5 };
        for size in [HEADER, HEADER + 1, 200] {
            let mut payload = vec![0; size];
            header.write(&mut payload);
            assert_eq!(Header::read(&payload), Some(header));
            assert_eq!(Header::read(&payload[..size - 1]), None);
            for i in 0..size {
                let mut changed = payload.clone();
                changed[i] ^= 0x10;
                assert_eq!(Header::read(&changed), None, "octet {i} of {size}");
            }
        }
    }

    #[test]
    fn pattern_is_the_same_in_any_pieces() {
        let mut whole = [0; 100];
        pattern(3, 5, &mut whole);
        let mut pieces = [0; 100];
        let (a, b) = pieces.split_at_mut(37);
        pattern(3, 5, a);
        pattern(3, 42, b);
        assert_eq!(whole, pieces);
        let mut other = [0; 100];
        pattern(4, 5, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn marks_are_found_anywhere() {
        let mut packet = vec![0xaa; 300];
        Header { stream: 1, number: 0, sent: 0 }.write(&mut packet[28..88]);
        Header { stream: 9, number: 0, sent: 0 }.write(&mut packet[101..151]);
        assert_eq!(marks(&packet).collect::<Vec<_>>(), [1, 9]);
        assert_eq!(marks(b"MSPmeter").count(), 0);
    }
}
