//! SEQUENCE: where a packet stands among those of its stream, which go by several paths.

use super::take;
use std::time::Duration;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +---------------+---------------+---------------+---------------+
/// |   type (2)    |  length (6)   |    stream     |     wait      |
/// +---------------+---------------+---------------+---------------+
/// |                            number                             |
/// +---------------------------------------------------------------+
/// ```
/// Stands in the trailer of a packet, or in front of a FRAGMENT (in each one of the packet). Sent only to a peer that has
/// [`super::Hello::SEQUENCES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Flows of one hash: what is lost of one stream holds up no other.
    pub stream: u8,
    /// How much later what was sent before this packet may come than it, by a slower path or a second time: 0 to 510 ms, in
    /// steps of 2 ms. What has not come by then is not waited for.
    pub wait: Duration,
    /// Counts the packets of the stream, modulo 2^32, from 0 in each life of the sender.
    pub number: u32,
}

/// Octets of the value.
const LEN: usize = 6;
/// The unit of `wait`.
const STEP: Duration = Duration::from_millis(2);

impl Sequence {
    /// Octets on the wire, type and length counted.
    pub(crate) const ROOM: usize = 2 + LEN;

    pub(super) fn write(&self, room: &mut [u8]) -> Option<usize> {
        let room = room.get_mut(..LEN)?;
        room[0] = self.stream;
        room[1] = u8::try_from(self.wait.as_nanos().div_ceil(STEP.as_nanos())).unwrap_or(u8::MAX);
        room[2..6].copy_from_slice(&self.number.to_be_bytes());
        Some(LEN)
    }

    pub(super) fn read(mut value: &[u8]) -> Option<Sequence> {
        let from = &mut value;
        let [stream, wait] = take(from)?;
        Some(Sequence { stream, wait: STEP * u32::from(wait), number: u32::from_be_bytes(take(from)?) })
    }
}
