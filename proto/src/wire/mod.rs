//! Link messages: what the two ends of a bundle say to each other, inside the tunnels.
//!
//! A link message is an IPv6 packet with next header 59 (no next header: RFC 8200, section 4.7) between link-local
//! addresses, which a plain WireGuard peer ignores and which cannot come from outside: [`crate::packet`] refuses both
//! from the TUN. Its content is a version and items:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1   (big endian)
//! +---------------------------------------------------------------+
//! |          IPv6 header (40 octets): next header 59,             |
//! |          fe80::6d73:70:1 -> fe80::6d73:70:2                   |
//! +---------------+-----------------------------------------------+
//! |    version    |                reserved (0)                   |
//! +---------------+---------------+-------------------------------+
//! |     type      |    length     |   value (length octets) ...
//! +---------------+---------------+-------------------------------+
//! |     type      |    length     |   ...
//! ```
//!
//! Type 0 is one octet of padding, without a length. FRAGMENT ends its message: its content follows its value.
//!
//! The same items, but for FRAGMENT, ride behind an IP packet as its trailer, where WireGuard has its padding: a plain
//! peer, which cuts a packet to its IP length, never sees them. COPY, SEQUENCE and RECEIPT are sent so, and only to a peer that
//! has [`Hello::COPIES`].
//!
//! The rule for changes: an item of an unknown type is skipped by its length, so new types need no new version; a
//! known item may grow at its end, and readers ignore what is beyond what they know; anything else needs a new
//! version, which is spoken only to a peer whose HELLO says that it understands it.

mod copy;
mod fragment;
mod hello;
mod receipt;
mod sequence;

pub use copy::Copy;
pub use fragment::Fragment;
pub use hello::Hello;
pub use receipt::{MAX_RANGES, Ranges, Receipt};
pub use sequence::Sequence;

use crate::packet::{IPV6_HEADER, NO_NEXT_HEADER};

/// The version of link messages that this code speaks, and the least that it understands.
pub const VERSION: u8 = 1;
/// The least version that this code understands.
pub const LEAST_VERSION: u8 = 1;

/// Octets in front of the first item.
const PREFIX: usize = IPV6_HEADER + 4;
/// The shortest link message that says anything: a PING.
pub(crate) const LEAST_MESSAGE: usize = PREFIX + 2;
/// The longest link message but for probes of the path MTU and fragments, which know what fits: sealed and with outer
/// headers, it fits into the least MTU of IPv6 (1,280).
pub const MAX_MESSAGE: usize = 1024;

/// The longest trailer that is sent and read: receipts for two sessions on each of two paths, with the most ranges, a COPY and a
/// SEQUENCE take 363 octets. Receipts that are longer go by themselves.
pub(crate) const MOST_TRAILER: usize = 512;

const ADDRESS_BASE: [u8; 15] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0x6d, 0x73, 0, 0x70, 0];

/// Types of items. Those without a reader yet are reserved by the design for what comes next.
mod kind {
    pub(super) const PADDING: u8 = 0;
    pub(super) const COPY: u8 = 1;
    pub(super) const SEQUENCE: u8 = 2;
    pub(super) const RECEIPT: u8 = 3;
    pub(super) const FRAGMENT: u8 = 5;
    pub(super) const HELLO: u8 = 6;
    pub(super) const PING: u8 = 7;
    pub(super) const LOST: u8 = 8;
}

/// What an item says.
#[allow(clippy::large_enum_variant, reason = "it is handed from a reader to a closure, never kept")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Who the sender is.
    Hello(Hello),
    /// What arrived of what we sent.
    Receipt(Receipt),
    /// Asks for a receipt.
    Ping,
    /// This path is gone at the sender, by its number, as its uplink is: nothing that is sent there arrives. One octet. It is said once, by
    /// another path; if that is lost, the absence of receipts tells the same a little later.
    Lost(u8),
    /// The packet that this goes with is not a first transmission.
    Copy(Copy),
    /// Where the packet that this goes with stands in its stream.
    Sequence(Sequence),
    /// A part of a packet; nothing follows it.
    Fragment(Fragment<'a>),
}

/// Why a link message could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Lengths or contents that don't fit.
    #[error("a link message that cannot be read")]
    Malformed,
    /// A version that this code doesn't understand.
    #[error("a link message of version {0}; this end speaks {VERSION}")]
    Version(u8),
}

/// Whether an opened packet is a link message: next header 59 and a link-local source.
pub fn is_link_message(packet: &[u8]) -> bool {
    packet.len() >= IPV6_HEADER && packet[0] >> 4 == 6 && packet[6] == NO_NEXT_HEADER && packet[8..23] == ADDRESS_BASE
}

/// Writes a link message, or a trailer, into a buffer, as far as there is room.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    /// Where the first item is: 0 in a trailer.
    first: usize,
    len: usize,
}

impl<'a> Writer<'a> {
    /// Begins one. Panics if the buffer has no room for the header, or for more than an IPv6 packet: that is this
    /// crate's own doing.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        assert!(buffer.len() <= usize::from(u16::MAX), "an IPv6 packet has no more octets");
        buffer[..PREFIX].fill(0);
        buffer[0] = 0x60;
        buffer[6] = NO_NEXT_HEADER;
        buffer[7] = 1; // hop limit: it never leaves the tunnel
        buffer[8..23].copy_from_slice(&ADDRESS_BASE);
        buffer[23] = 1;
        buffer[24..39].copy_from_slice(&ADDRESS_BASE);
        buffer[39] = 2;
        buffer[IPV6_HEADER] = VERSION;
        Writer { buffer, first: PREFIX, len: PREFIX }
    }

    /// Begins a trailer: items alone, to stand behind a packet.
    pub fn trailer(buffer: &'a mut [u8]) -> Self {
        Writer { buffer, first: 0, len: 0 }
    }

    /// Nothing has been added yet.
    pub fn is_empty(&self) -> bool {
        self.len == self.first
    }

    /// Adds an item; `false`: there is no room left.
    pub fn add(&mut self, item: &Item<'_>) -> bool {
        let Some(room) = self.buffer[self.len..].get_mut(2..) else { return false };
        let whole = |written: usize| (written as u8, written);
        let (kind, written) = match item {
            Item::Ping => (kind::PING, Some((0, 0))),
            Item::Lost(path) => (kind::LOST, room.first_mut().map(|octet| *octet = *path).map(|()| whole(1))),
            Item::Hello(hello) => (kind::HELLO, hello.write(room).map(whole)),
            Item::Receipt(receipt) => (kind::RECEIPT, receipt.write(room).map(whole)),
            Item::Copy(copy) => (kind::COPY, copy.write(room).map(whole)),
            Item::Sequence(sequence) => (kind::SEQUENCE, sequence.write(room).map(whole)),
            Item::Fragment(fragment) => (kind::FRAGMENT, fragment.write(room)),
        };
        let Some((len, written)) = written else { return false };
        self.buffer[self.len] = kind;
        self.buffer[self.len + 1] = len;
        self.len += 2 + written;
        true
    }

    /// Fills the buffer with padding.
    pub fn pad(&mut self) {
        self.buffer[self.len..].fill(kind::PADDING);
        self.len = self.buffer.len();
    }

    /// The message, or the trailer.
    pub fn finish(self) -> &'a [u8] {
        if self.first == PREFIX {
            let payload = (self.len - IPV6_HEADER) as u16;
            self.buffer[4..6].copy_from_slice(&payload.to_be_bytes());
        }
        &self.buffer[..self.len]
    }
}

/// Reads a link message: calls `each` for every item it knows.
pub fn read<'a>(message: &'a [u8], each: impl FnMut(Item<'a>)) -> Result<(), ReadError> {
    let header = message.get(IPV6_HEADER..PREFIX).ok_or(ReadError::Malformed)?;
    if !(LEAST_VERSION..=VERSION).contains(&header[0]) {
        return Err(ReadError::Version(header[0]));
    }
    read_items(&message[PREFIX..], each)
}

/// The items of a link message that was written here, to stand behind a packet as its trailer.
pub(crate) fn items_of(message: &[u8]) -> &[u8] {
    &message[PREFIX..]
}

/// Reads a trailer in the same way.
pub fn read_trailer<'a>(trailer: &'a [u8], each: impl FnMut(Item<'a>)) -> Result<(), ReadError> {
    read_items(trailer, each)
}

fn read_items<'a>(mut rest: &'a [u8], mut each: impl FnMut(Item<'a>)) -> Result<(), ReadError> {
    while let Some((&kind, after)) = rest.split_first() {
        if kind == kind::PADDING {
            rest = after;
            continue;
        }
        let (&len, after) = after.split_first().ok_or(ReadError::Malformed)?;
        let (value, after) = after.split_at_checked(usize::from(len)).ok_or(ReadError::Malformed)?;
        rest = after;
        match kind {
            kind::PING => each(Item::Ping),
            kind::LOST => each(Item::Lost(*value.first().ok_or(ReadError::Malformed)?)),
            kind::HELLO => each(Item::Hello(Hello::read(value).ok_or(ReadError::Malformed)?)),
            kind::COPY => each(Item::Copy(Copy::read(value).ok_or(ReadError::Malformed)?)),
            kind::SEQUENCE => each(Item::Sequence(Sequence::read(value).ok_or(ReadError::Malformed)?)),
            kind::RECEIPT => each(Item::Receipt(Receipt::read(value).ok_or(ReadError::Malformed)?)),
            kind::FRAGMENT => {
                let content = std::mem::take(&mut rest);
                each(Item::Fragment(Fragment::read(value, content).ok_or(ReadError::Malformed)?));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes `N` octets off the front.
fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = from.split_first_chunk::<N>()?;
    *from = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(items: &[Item<'_>]) -> Vec<u8> {
        let mut buffer = vec![0xaa; MAX_MESSAGE];
        let mut writer = Writer::new(&mut buffer);
        for item in items {
            assert!(writer.add(item));
        }
        writer.finish().to_vec()
    }

    fn items(message: &[u8]) -> Result<Vec<Item<'_>>, ReadError> {
        let mut items = Vec::new();
        read(message, |item| items.push(item))?;
        Ok(items)
    }

    #[test]
    fn what_is_written_is_read_and_is_a_whole_ipv6_packet() {
        let all = vec![
            Item::Ping,
            Item::Lost(5),
            Item::Hello(Hello {
                epoch: 7,
                path: 3,
                middlebox: 9,
                keepalive: Some(crate::Keepalive { idle: std::time::Duration::from_secs(25), metered: true }),
                capped: true,
                preference: 5,
                ..Hello::default()
            }),
            Item::Receipt(Receipt {
                path: 1,
                session: 0xdead_beef,
                largest: 1 << 40,
                delay_us: 77,
                received_us: 1 << 31,
                ranges: [(1 << 40, 1 << 40), ((1 << 40) - 400, (1 << 40) - 7)].into_iter().collect(),
            }),
            Item::Copy(Copy { path: 7, session: 1 << 31, number: 9 }),
            Item::Sequence(Sequence { stream: 200, wait: std::time::Duration::from_millis(34), number: 1 << 31 }),
            Item::Fragment(Fragment { id: 1 << 31, offset: 700, total: 1380, content: &[7; 680] }),
        ];
        let message = message(&all);
        assert!(is_link_message(&message));
        let view = crate::packet::IpView::parse(&message).expect("a whole packet");
        assert_eq!(view.len, message.len());
        assert!(view.is_reserved(), "it must not be accepted from the TUN");
        assert_eq!(items(&message), Ok(all));
    }

    #[test]
    fn unknown_items_are_skipped_known_ones_may_grow_and_other_versions_are_refused() {
        let mut grown = message(&[Item::Ping]);
        grown.extend([200, 3, 1, 2, 3, 0, 0, 7, 2, 9, 9]);
        assert_eq!(items(&grown), Ok(vec![Item::Ping, Item::Ping]));
        grown.push(200);
        assert_eq!(items(&grown), Err(ReadError::Malformed));
        let mut fragment = message(&[Item::Fragment(Fragment { id: 1, offset: 0, total: 3, content: b"" })]);
        fragment[45] = 10;
        fragment.extend([9, 9, kind::PING, 0, 0]);
        let grown = Fragment { id: 1, offset: 0, total: 3, content: &[kind::PING, 0, 0] };
        assert_eq!(items(&fragment), Ok(vec![Item::Fragment(grown)]), "behind it nothing is an item");
        let mut newer = message(&[Item::Ping]);
        newer[40] = 2;
        assert_eq!(items(&newer), Err(ReadError::Version(2)));
    }

    #[test]
    fn padding_fills_the_buffer_and_says_nothing() {
        let mut buffer = vec![0xaa; 1_412];
        let mut writer = Writer::new(&mut buffer);
        writer.add(&Item::Ping);
        writer.pad();
        let message = writer.finish();
        assert_eq!(message.len(), 1_412);
        assert_eq!(crate::packet::IpView::parse(message).map(|view| view.len), Some(1_412));
        assert_eq!(items(message), Ok(vec![Item::Ping]));
    }

    proptest! {
        #[test]
        fn nothing_panics_whatever_comes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut message = message(&[]);
            message.extend(bytes);
            let _ = items(&message);
        }
    }
}
