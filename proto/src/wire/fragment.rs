//! FRAGMENT: a part of a packet that does not fit the path in one datagram.

use super::{PREFIX, take};

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +---------------+---------------+-------------------------------+
/// |   type (5)    |  length (8)   |            offset             |
/// +---------------+---------------+-------------------------------+
/// |                              id                               |
/// +-------------------------------+-------------------------------+
/// |       length of the packet    |  content: all that follows    |
/// +-------------------------------+                               |
/// |                     in the message ...                        |
/// ```
/// It is the last item of its message: the content stands behind the value, up to the message's end, because an item's
/// length ends at 255. A value that has grown (length above 8) moves the content behind it. Sent only to a peer that has
/// [`super::Hello::FRAGMENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Names the packet, among those whose fragments may be under way at once: each has the number after the one before.
    pub id: u32,
    /// Where the content begins in the packet.
    pub offset: u16,
    /// The packet's length.
    pub total: u16,
    /// What is at that place.
    pub content: &'a [u8],
}

/// Octets of the value.
const LEN: usize = 8;

/// What the header of a link message and a FRAGMENT take of the message.
const AROUND: usize = PREFIX + 2 + LEN;

impl<'a> Fragment<'a> {
    /// Cuts a packet into as few fragments as fit into messages of `size` octets, all of about one length: the
    /// datagrams of many packets then leave in one run. `size` has room for a content; a packet's length is at most 65,535.
    pub fn cut(packet: &'a [u8], id: u32, size: u16) -> impl Iterator<Item = Fragment<'a>> {
        let room = usize::from(size).saturating_sub(AROUND).max(1);
        let count = packet.len().div_ceil(room).max(1);
        let each = packet.len().div_ceil(count).max(1);
        packet.chunks(each).enumerate().map(move |(at, content)| Fragment {
            id,
            offset: (at * each) as u16,
            total: packet.len() as u16,
            content,
        })
    }

    /// Writes value and content, and says the value's length and the octets written.
    pub(super) fn write(&self, room: &mut [u8]) -> Option<(u8, usize)> {
        let room = room.get_mut(..LEN + self.content.len())?;
        room[..2].copy_from_slice(&self.offset.to_be_bytes());
        room[2..6].copy_from_slice(&self.id.to_be_bytes());
        room[6..8].copy_from_slice(&self.total.to_be_bytes());
        room[LEN..].copy_from_slice(self.content);
        Some((LEN as u8, room.len()))
    }

    pub(super) fn read(mut value: &[u8], content: &'a [u8]) -> Option<Fragment<'a>> {
        let from = &mut value;
        let offset = u16::from_be_bytes(take(from)?);
        let id = u32::from_be_bytes(take(from)?);
        let total = u16::from_be_bytes(take(from)?);
        Some(Fragment { id, offset, total, content })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Item, Writer, read};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As few as there can be, all but the last of one length, none larger than the path, and all of the packet.
        #[test]
        fn what_is_cut_fits_and_is_whole(len in 1usize..9_001, size in 516u16..1_413) {
            let packet: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
            let mut whole: Vec<u8> = Vec::new();
            let fragments: Vec<_> = Fragment::cut(&packet, 7, size).collect();
            prop_assert_eq!(fragments.len(), len.div_ceil(usize::from(size) - AROUND));
            for fragment in &fragments {
                let mut buffer = vec![0xaa; usize::from(size)];
                let mut writer = Writer::new(&mut buffer);
                prop_assert!(writer.add(&Item::Fragment(*fragment)));
                let message = writer.finish();
                prop_assert!(message.len() <= usize::from(size));
                let mut items = Vec::new();
                prop_assert_eq!(read(message, |item| items.push(item)), Ok(()));
                prop_assert_eq!(items, vec![Item::Fragment(*fragment)]);
                prop_assert_eq!(usize::from(fragment.offset), whole.len());
                prop_assert_eq!(usize::from(fragment.total), len);
                whole.extend(fragment.content);
            }
            prop_assert_eq!(whole, packet);
        }
    }
}
