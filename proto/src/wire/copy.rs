//! COPY: of which packet this is another transmission.

use super::take;
use crate::tunnel::PacketId;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +---------------+---------------+---------------+---------------+
/// |   type (1)    |  length (9)   |     path      |    session:
/// +---------------+---------------+---------------+---------------+
///   the receiver's index, as the data carried it  |  packet number,
/// +---------------+---------------+---------------+---------------+
///   low half                                      |
/// +---------------+---------------+---------------+
/// ```
/// What a packet is known by is the path, the session and the number of its first transmission, however often and by
/// whichever paths it is sent again. It stands in the trailer of a packet, or in front of a FRAGMENT; in each fragment of
/// the packet, then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The number of the path by which the packet was sent first: see [`crate::MAX_PATHS`].
    pub path: u8,
    /// The session's index at the receiver.
    pub session: u32,
    /// The low half of its number there. A session lasts three minutes, so the high half is that of its neighbours.
    pub number: u32,
}

const LEN: usize = 9;

impl Copy {
    /// Octets on the wire, type and length counted.
    pub(crate) const ROOM: usize = 2 + LEN;

    /// Of a packet that was sent first by this path.
    pub(crate) fn of(path: u8, id: PacketId) -> Self {
        Copy { path, session: id.session, number: id.number as u32 }
    }

    pub(super) fn write(&self, room: &mut [u8]) -> Option<usize> {
        let room = room.get_mut(..LEN)?;
        room[0] = self.path;
        room[1..5].copy_from_slice(&self.session.to_be_bytes());
        room[5..9].copy_from_slice(&self.number.to_be_bytes());
        Some(LEN)
    }

    pub(super) fn read(mut value: &[u8]) -> Option<Copy> {
        let from = &mut value;
        let [path] = take(from)?;
        Some(Copy { path, session: u32::from_be_bytes(take(from)?), number: u32::from_be_bytes(take(from)?) })
    }
}
