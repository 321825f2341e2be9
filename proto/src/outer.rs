//! What the outer header of a datagram shows of the packet within, and what of it arrives at that: congestion marks (RFC 3168,
//! RFC 6040) and the differentiated services codepoint (RFC 2474, RFC 2983).
//!
//! ```text
//!   0   1   2   3   4   5   6   7
//! +---+---+---+---+---+---+---+---+     the traffic class of an IPv6 header (RFC 8200, section 3),
//! |         DSCP          |  ECN  |     the type of service of an IPv4 one (RFC 791)
//! +---+---+---+---+---+---+---+---+
//!
//! packet ---- as the link's Outer says ----> outer header ==== way, may mark CE, may change DSCP ====> outer header
//!     \                                                                                                    | ECN
//!      \---------------------------------- through the cipher ----------------------------> packet <-------+ figure 4
//! ```
//!
//! An inner DSCP leaves the tunnel as it came in, whatever the outer one has met (RFC 2983, section 3.1, the pipe model): the
//! ISP's codepoints are none of the site's.

use crate::packet::{set_ecn, traffic_class};

/// Its flow cannot be told of congestion but by a loss.
pub(crate) const NOT_ECT: u8 = 0b00;
/// Its flow can be told.
const ECT_0: u8 = 0b10;
/// The same; RFC 9331 gives it another meaning, for queues that know it.
const ECT_1: u8 = 0b01;
/// It has met congestion.
pub(crate) const CE: u8 = 0b11;
/// The bits of the octet that are the ECN field.
const ECN: u8 = 0b11;

/// What the outer headers of a link's datagrams show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outer {
    /// Their DSCP.
    pub dscp: Dscp,
    /// Their ECN field.
    pub ecn: Ecn,
}

/// The outer DSCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// This one, 0 to 63, whatever is within, link messages and handshakes too.
    Fixed(u8),
    /// The packet's own; 0 of link messages and handshakes.
    Copy,
}

impl Default for Dscp {
    /// The ISP does not learn which packets are a call, and cannot treat them worse: many networks clear or misread what they
    /// did not set themselves.
    fn default() -> Self {
        Dscp::Fixed(0)
    }
}

/// The outer ECN field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// The packet's own, if the peer hands on what that meets (RFC 6040, section 4.1: normal mode).
    #[default]
    Copy,
    /// Not-ECT, so that the way drops rather than marks (the same: compatibility mode).
    Clear,
}

impl Outer {
    /// The outer octet of a packet. `told`: the peer hands on to it what the outer header has met.
    pub(crate) fn of_packet(self, packet: &[u8], told: bool) -> u8 {
        let inner = traffic_class(packet);
        let ecn = if told && self.ecn == Ecn::Copy { inner & ECN } else { NOT_ECT };
        match self.dscp {
            Dscp::Fixed(dscp) => dscp << 2 | ecn,
            Dscp::Copy => inner & !ECN | ecn,
        }
    }

    /// The outer octet of what a tunnel says for itself. Nobody there would slow down for a mark.
    pub(crate) fn of_own(self) -> u8 {
        match self.dscp {
            Dscp::Fixed(dscp) => dscp << 2 | NOT_ECT,
            Dscp::Copy => NOT_ECT,
        }
    }
}

/// Gives a packet that leaves the tunnel the mark that its outer header has met, this ECN field. `None`: it met congestion, its
/// flow cannot be told but by a loss, and it is to be dropped (RFC 6040, section 4.2).
pub(crate) fn decapsulate(packet: &mut [u8], outer: u8) -> Option<()> {
    let inner = traffic_class(packet) & ECN;
    let ecn = decapsulated(inner, outer)?;
    if ecn != inner {
        set_ecn(packet, ecn);
    }
    Some(())
}

/// RFC 6040, section 4.2, figure 4.
fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (CE, _) | (_, CE) => Some(CE),
        (_, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// The outer field of a packet that came in pieces with these: a mark on any is one on all (RFC 3168, section 5.3), and what
/// would count more for the packet in figure 4 counts more here.
pub(crate) fn joined(one: u8, other: u8) -> u8 {
    [CE, ECT_1, ECT_0].into_iter().find(|ecn| [one, other].contains(ecn)).unwrap_or(NOT_ECT)
}

/// Whether the flow of a packet can be told of congestion by a mark.
pub(crate) fn takes_marks(packet: &[u8]) -> bool {
    traffic_class(packet) & ECN != NOT_ECT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::udp;

    const ALL: [u8; 4] = [NOT_ECT, ECT_0, ECT_1, CE];

    #[test]
    fn figure_4_of_rfc_6040() {
        for (inner, expected) in [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ] {
            assert_eq!(ALL.map(|outer| decapsulated(inner, outer)), expected, "inner {inner:02b}");
        }
    }

    #[test]
    fn the_outer_octet_is_what_the_link_shows_and_the_peer_can_take() {
        // DSCP EF.
        const EF: u8 = 46 << 2;
        let (copy, clear) = (Outer::default(), Outer { ecn: Ecn::Clear, ..Outer::default() });
        for (source, destination) in [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:1::2")] {
            let mut packet = udp(source.parse().expect("one"), destination.parse().expect("one"), 7, b"x");
            let place = if packet[0] >> 4 == 4 { 0 } else { 4 };
            for ecn in ALL {
                (packet[0], packet[1]) =
                    (packet[0] & 0xf0 | EF >> 4 & if place == 4 { 0xf } else { 0 }, EF << place | ecn << place);
                assert_eq!(traffic_class(&packet), EF | ecn);
                assert_eq!(copy.of_packet(&packet, true), ecn);
                assert_eq!(copy.of_packet(&packet, false), NOT_ECT, "compatibility mode");
                assert_eq!(clear.of_packet(&packet, true), NOT_ECT);
                let show = Outer { dscp: Dscp::Copy, ..copy };
                assert_eq!((show.of_packet(&packet, true), show.of_own()), (EF | ecn, 0));
                let fixed = Outer { dscp: Dscp::Fixed(1), ..copy };
                assert_eq!((fixed.of_packet(&packet, true), fixed.of_own()), (1 << 2 | ecn, 1 << 2));
            }
        }
    }

    #[test]
    fn a_mark_on_a_piece_is_one_on_the_packet() {
        for one in ALL {
            assert_eq!(joined(one, one), one);
            for other in ALL {
                assert_eq!(joined(one, other), joined(other, one));
                assert!(one != CE || joined(one, other) == CE);
            }
        }
        assert_eq!((joined(ECT_0, ECT_1), joined(NOT_ECT, ECT_0)), (ECT_1, ECT_0));
    }
}
