//! RECEIPT: which packets of a session came, and when the last one did.

use super::take;
use crate::tunnel::PacketId;

/// The most ranges in one receipt. More gaps than that within a window mean a path so bad that the older ones are told
/// by the next receipt's absence of them.
pub const MAX_RANGES: usize = 16;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +---------------+---------------+-------------------------------+
/// |     path      |  reserved (0) |  count of the first range     |
/// +---------------+---------------+-------------------------------+
/// |       session: the receiver's index, as the data carries it   |
/// +---------------------------------------------------------------+
/// |            largest number received                            |
/// |                                                               |
/// +---------------------------------------------------------------+
/// |  time since it was received, microseconds                     |
/// +---------------------------------------------------------------+
/// |  when it was received: the receiver's clock, microseconds,    |
/// |  modulo 2^32, from an origin of its own                       |
/// +-------------------------------+-------------------------------+
/// |  missing below that range     |  count of the next range      |   0 to 15 times
/// +-------------------------------+-------------------------------+
/// ```
/// Ranges run downwards from the largest number, as in QUIC's ACK frame (RFC 9000, section 19.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The number of the path that the packets came by: see [`crate::MAX_PATHS`].
    pub path: u8,
    /// Their session's index at the receiver.
    pub session: u32,
    /// The largest number received.
    pub largest: u64,
    /// How long ago it was, in microseconds.
    pub delay_us: u32,
    /// When it was received, in microseconds modulo 2^32 since an origin that only the receiver knows: differences tell
    /// how the delay of one direction changes.
    pub received_us: u32,
    /// Numbers received, (first, last) inclusive, the highest range first; at most [`MAX_RANGES`].
    pub ranges: Ranges,
}

/// Ranges of numbers, (first, last) inclusive; in place, since receipts are written between packets of a batch. Beyond
/// [`MAX_RANGES`] nothing is added.
#[derive(Clone, Copy, Default)]
pub struct Ranges {
    ranges: [(u64, u64); MAX_RANGES],
    len: usize,
}

impl Ranges {
    /// Adds one below the others; `false`: there is no room.
    pub fn push(&mut self, range: (u64, u64)) -> bool {
        let room = self.ranges.get_mut(self.len).map(|place| *place = range).is_some();
        self.len += usize::from(room);
        room
    }

    /// The lowest one.
    pub(crate) fn last_mut(&mut self) -> Option<&mut (u64, u64)> {
        self.ranges[..self.len].last_mut()
    }
}

impl std::ops::Deref for Ranges {
    type Target = [(u64, u64)];

    fn deref(&self) -> &Self::Target {
        &self.ranges[..self.len]
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(ranges: T) -> Self {
        let mut all = Ranges::default();
        for range in ranges {
            all.push(range);
        }
        all
    }
}

impl PartialEq for Ranges {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Ranges {}

impl std::fmt::Debug for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.iter().collect::<Vec<_>>().fmt(f)
    }
}

const FIXED: usize = 24;

impl Receipt {
    /// Whether it says that this packet came.
    pub(crate) fn names(&self, id: PacketId) -> bool {
        self.session == id.session && self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&id.number))
    }

    pub(super) fn write(&self, room: &mut [u8]) -> Option<usize> {
        let (&(first, last), more) = self.ranges.split_first()?;
        debug_assert_eq!(last, self.largest);
        let len = FIXED + 4 * more.len();
        let room = room.get_mut(..len)?;
        room[0] = self.path;
        room[1] = 0;
        room[2..4].copy_from_slice(&clip(last - first + 1).to_be_bytes());
        room[4..8].copy_from_slice(&self.session.to_be_bytes());
        room[8..16].copy_from_slice(&self.largest.to_be_bytes());
        room[16..20].copy_from_slice(&self.delay_us.to_be_bytes());
        room[20..24].copy_from_slice(&self.received_us.to_be_bytes());
        let mut above = first;
        for (pair, &(first, last)) in room[FIXED..].chunks_exact_mut(4).zip(more) {
            pair[..2].copy_from_slice(&clip(above - last - 1).to_be_bytes());
            pair[2..].copy_from_slice(&clip(last - first + 1).to_be_bytes());
            above = first;
        }
        Some(len)
    }

    pub(super) fn read(mut value: &[u8]) -> Option<Receipt> {
        let from = &mut value;
        let [path, _] = take(from)?;
        let count = u64::from(u16::from_be_bytes(take(from)?));
        let session = u32::from_be_bytes(take(from)?);
        let largest = u64::from_be_bytes(take(from)?);
        let delay_us = u32::from_be_bytes(take(from)?);
        let received_us = u32::from_be_bytes(take(from)?);
        let mut first = largest.checked_sub(count.checked_sub(1)?)?;
        let mut ranges = Ranges::from_iter([(first, largest)]);
        while ranges.len() < MAX_RANGES && !from.is_empty() {
            let missing = u64::from(u16::from_be_bytes(take(from)?));
            let count = u64::from(u16::from_be_bytes(take(from)?));
            let last = first.checked_sub(missing)?.checked_sub(1)?;
            first = last.checked_sub(count.checked_sub(1)?)?;
            ranges.push((first, last));
        }
        Some(Receipt { path, session, largest, delay_us, received_us, ranges })
    }
}

/// Receipts cover at most 65,535 numbers, so nothing is ever clipped.
fn clip(count: u64) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
