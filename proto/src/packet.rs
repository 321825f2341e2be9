//! Checked views of IPv4 (RFC 791) and IPv6 (RFC 8200) packets, and the few changes the way through makes to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of an IPv4 header without options.
const IPV4_HEADER: usize = 20;
/// Length of the IPv6 header.
pub(crate) const IPV6_HEADER: usize = 40;
/// Next header 59: nothing follows (RFC 8200, section 4.7). Our link messages use it.
pub(crate) const NO_NEXT_HEADER: u8 = 59;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// What the way through needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpView {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// The upper-layer protocol, behind IPv6 extension headers too; for a fragment that isn't the first, as it says.
    pub protocol: u8,
    /// The packet's length by its own header; what lies behind is not part of it.
    pub len: usize,
    /// Where the upper layer begins; `None` in a fragment that isn't the first.
    upper: Option<usize>,
}

impl IpView {
    /// Reads the headers. `None`: not a whole IPv4 or IPv6 packet.
    pub fn parse(packet: &[u8]) -> Option<IpView> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<IpView> {
        let header = packet.get(..IPV4_HEADER)?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < IPV4_HEADER || len < header_len || packet.len() < len {
            return None;
        }
        let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        Some(IpView {
            source: Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16]).ok()?).into(),
            destination: Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).ok()?).into(),
            protocol: header[9],
            len,
            upper: (fragment_offset == 0).then_some(header_len),
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<IpView> {
        let header = packet.get(..IPV6_HEADER)?;
        let len = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if packet.len() < len {
            return None;
        }
        let (mut protocol, mut at, mut first_fragment) = (header[6], IPV6_HEADER, true);
        // The extension headers that a host may put before the upper layer (RFC 8200, section 4.1).
        while matches!(protocol, 0 | 43 | 44 | 51 | 60) {
            let extension = packet[..len].get(at..at + 8)?;
            let next = extension[0];
            match protocol {
                44 => {
                    first_fragment = u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0;
                    at += 8;
                }
                51 => at += (usize::from(extension[1]) + 2) * 4, // RFC 4302, section 2.2: in 32-bit words, minus 2
                _ => at += (usize::from(extension[1]) + 1) * 8,
            }
            protocol = next;
            if !first_fragment {
                break;
            }
        }
        if at > len {
            return None;
        }
        Some(IpView {
            source: Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?).into(),
            destination: Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?).into(),
            protocol,
            len,
            upper: first_fragment.then_some(at),
        })
    }

    /// A number that is the same for all packets of a flow and hardly ever for those of two: addresses, protocol and,
    /// where they can be seen, ports (or the ICMP echo identifier). Fragments that aren't the first show no ports, so
    /// every fragment of a packet but the first may go another way; that costs order, never the packet.
    pub fn flow_hash(&self, packet: &[u8], key: u64) -> u64 {
        let mut hash = FlowHasher(key);
        match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                hash.mix(u64::from(u32::from(s)) << 32 | u64::from(u32::from(d)));
            }
            (s, d) => {
                for address in [s, d] {
                    let bits = match address {
                        IpAddr::V4(a) => u128::from(u32::from(a)),
                        IpAddr::V6(a) => u128::from(a),
                    };
                    hash.mix((bits >> 64) as u64);
                    hash.mix(bits as u64);
                }
            }
        }
        let ports = match (self.upper, self.protocol) {
            (Some(at), ICMP | ICMPV6) => packet[..self.len].get(at + 4..at + 6),
            _ => self.port_octets(packet),
        };
        let ports = ports.map_or(0, |bytes| bytes.iter().fold(0u64, |acc, &b| acc << 8 | u64::from(b)));
        hash.mix(ports << 8 | u64::from(self.protocol));
        hash.0
    }

    /// The octets of both ports, where there are any to be seen.
    fn port_octets<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        match (self.upper, self.protocol) {
            (Some(at), TCP | UDP | SCTP) => packet[..self.len].get(at..at + 4),
            _ => None,
        }
    }

    /// Source and destination port. `None`: its protocol has none, or it is a fragment that isn't the first.
    pub fn ports(&self, packet: &[u8]) -> Option<(u16, u16)> {
        let octets: [u8; 4] = self.port_octets(packet)?.try_into().ok()?;
        let [source, destination] = [[octets[0], octets[1]], [octets[2], octets[3]]].map(u16::from_be_bytes);
        Some((source, destination))
    }

    /// The differentiated services codepoint (RFC 2474), 0 to 63.
    pub fn dscp(&self, packet: &[u8]) -> u8 {
        traffic_class(packet) >> 2
    }

    /// The addresses of the packet that an ICMP error quotes: (source, destination). `None`: this is no ICMP error, or
    /// it quotes too little to tell.
    pub fn quoted(&self, packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
        let message = packet[..self.len].get(self.upper?..)?;
        let is_error = match self.protocol {
            ICMP => matches!(message.first()?, 3 | 4 | 5 | 11 | 12), // RFC 1122, section 3.2.2
            ICMPV6 => *message.first()? < 128,                       // RFC 4443, section 2.1
            _ => false,
        };
        if !is_error {
            return None;
        }
        // A quote is cut short by its sender, so only its addresses are read, not its length.
        let quote = message.get(8..)?;
        match quote.first()? >> 4 {
            4 if quote.len() >= IPV4_HEADER => Some((
                Ipv4Addr::from(<[u8; 4]>::try_from(&quote[12..16]).ok()?).into(),
                Ipv4Addr::from(<[u8; 4]>::try_from(&quote[16..20]).ok()?).into(),
            )),
            6 if quote.len() >= IPV6_HEADER => Some((
                Ipv6Addr::from(<[u8; 16]>::try_from(&quote[8..24]).ok()?).into(),
                Ipv6Addr::from(<[u8; 16]>::try_from(&quote[24..40]).ok()?).into(),
            )),
            _ => None,
        }
    }

    /// Whether the packet must not enter a tunnel: its addresses have no meaning beyond a link or a host, or it looks
    /// like one of our link messages.
    pub fn is_reserved(&self) -> bool {
        self.protocol == NO_NEXT_HEADER || stays_on_link(self.source) || stays_on_link(self.destination)
    }
}

/// Addresses that no router forwards (RFC 6890), multicast with them: there is no multicast routing here.
fn stays_on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_broadcast() || a.octets()[0] == 0
        }
        IpAddr::V6(a) => {
            a.is_loopback()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some()
        }
    }
}

/// One multiplication and a fold per word (the finaliser of splitmix64): flows are told apart by a key that is drawn
/// at random, so nobody outside can make them collide on purpose.
struct FlowHasher(u64);

impl FlowHasher {
    fn mix(&mut self, word: u64) {
        let mut z = self.0 ^ word;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }
}

/// Lowers the maximum segment size in a TCP SYN to what fits into `mtu` (RFC 9293, section 3.7.1): hosts behind the box
/// know an MTU of 1,500, and path MTU discovery must not be needed for TCP to run. Never below the 536 octets that every
/// host takes unasked, which some take for an attack; what IPv6 takes unasked (1,220) is no such bound, as fragments are
/// dearer than smaller segments. Returns whether it changed anything.
pub fn clamp_mss(view: &IpView, packet: &mut [u8], mtu: u16) -> bool {
    const SYN: u8 = 0x02;
    const TCP_HEADER: usize = 20;
    const LEAST: u16 = 536;
    let Some(upper) = view.upper else { return false };
    if view.protocol != TCP {
        return false;
    }
    let ip_header = if view.source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    let fitting = mtu.saturating_sub((ip_header + TCP_HEADER) as u16).max(LEAST);
    let Some(tcp) = packet[..view.len].get_mut(upper..) else { return false };
    if tcp.len() < TCP_HEADER || tcp[13] & SYN == 0 {
        return false;
    }
    let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let mut at = TCP_HEADER;
    while at < end {
        match tcp[at] {
            0 => break,
            1 => at += 1,
            kind => {
                let Some(&len) = tcp[..end].get(at + 1) else { break };
                let len = usize::from(len);
                if len < 2 || at + len > end {
                    break;
                }
                if kind == 2 && len == 4 {
                    let old = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                    if old <= fitting {
                        return false;
                    }
                    tcp[at + 2..at + 4].copy_from_slice(&fitting.to_be_bytes());
                    let sum = u16::from_be_bytes([tcp[16], tcp[17]]);
                    // A value at an odd offset enters the sum with its octets swapped.
                    let (old, new) =
                        if at.is_multiple_of(2) { (old, fitting) } else { (old.swap_bytes(), fitting.swap_bytes()) };
                    tcp[16..18].copy_from_slice(&update_checksum(sum, old, new).to_be_bytes());
                    return true;
                }
                at += len;
            }
        }
    }
    false
}

/// The octet of a header with the differentiated services codepoint and the ECN field (drawn at [`crate::outer`]); of what is no
/// IP packet, 0.
pub(crate) fn traffic_class(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        [first, second, ..] if first >> 4 == 4 => *second,
        _ => 0,
    }
}

/// Sets the ECN field of a whole IP packet; the checksum of an IPv4 header follows.
pub(crate) fn set_ecn(packet: &mut [u8], ecn: u8) {
    match packet {
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !0x30 | ecn << 4,
        [first, second, _, _, _, _, _, _, _, _, high, low, ..] if *first >> 4 == 4 => {
            let old = u16::from_be_bytes([*first, *second]);
            *second = *second & !0x03 | ecn;
            let sum = update_checksum(u16::from_be_bytes([*high, *low]), old, u16::from_be_bytes([*first, *second]));
            [*high, *low] = sum.to_be_bytes();
        }
        _ => {}
    }
}

/// The Internet checksum after one 16-bit word has changed (RFC 1624, equation 3).
fn update_checksum(sum: u16, old: u16, new: u16) -> u16 {
    let mut acc = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    !(acc as u16)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A UDP packet, for tests here and elsewhere.
    pub(crate) fn udp(source: IpAddr, destination: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
        let udp_len = (8 + payload.len()) as u16;
        let mut packet = header(source, destination, UDP, udp_len);
        packet.extend(port.to_be_bytes());
        packet.extend(port.to_be_bytes());
        packet.extend(udp_len.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        packet
    }

    fn header(source: IpAddr, destination: IpAddr, protocol: u8, upper_len: u16) -> Vec<u8> {
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let mut packet = vec![0x45, 0];
                packet.extend((20 + upper_len).to_be_bytes());
                packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
                packet.extend(s.octets());
                packet.extend(d.octets());
                packet
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(upper_len.to_be_bytes());
                packet.extend([protocol, 64]);
                packet.extend(s.octets());
                packet.extend(d.octets());
                packet
            }
            _ => unreachable!("a packet has one family"),
        }
    }

    #[test]
    fn only_the_ecn_field_changes_and_the_checksum_with_it() {
        for (source, destination) in [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:1::2")] {
            let mut packet = udp(source.parse().expect("one"), destination.parse().expect("one"), 7, b"x");
            let v4 = packet[0] >> 4 == 4;
            // One's complement: a header with its checksum adds up to this (RFC 1071, section 1).
            let sound = |packet: &[u8]| {
                let words = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
                let sum = words.sum::<u32>();
                !v4 || (sum & 0xffff) + (sum >> 16) == 0xffff
            };
            (packet[0], packet[1]) = if v4 { (0x45, 46 << 2) } else { (0x6b, 0x80 | 0x05) };
            if v4 {
                let sum = packet[..20].chunks(2).fold(0, |sum, w| sum + u32::from(u16::from_be_bytes([w[0], w[1]])));
                packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
            }
            assert!(sound(&packet) && traffic_class(&packet) == 46 << 2);
            for ecn in [0b10, 0b11, 0b01, 0b00, 0b11] {
                let before = packet.clone();
                set_ecn(&mut packet, ecn);
                assert_eq!(traffic_class(&packet), 46 << 2 | ecn);
                assert!(sound(&packet), "ECN {ecn:02b}");
                let others = |packet: &[u8]| [&packet[..1], &packet[2..10], &packet[12..]].concat();
                assert_eq!(others(&packet), others(&before));
            }
            assert!(v4 || packet[1] & 0x0f == 0x05, "the flow label stays");
        }
        for short in 0..12 {
            set_ecn(&mut vec![0x45; short], 3);
        }
    }

    fn syn(v6: bool, options: &[u8]) -> Vec<u8> {
        let (s, d): (IpAddr, IpAddr) = if v6 {
            ("2001:db8::1".parse().expect("an address"), "2001:db8::2".parse().expect("an address"))
        } else {
            ("10.0.0.1".parse().expect("an address"), "10.0.0.2".parse().expect("an address"))
        };
        let mut tcp = vec![0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x02, 0xff, 0xff, 0, 0, 0, 0];
        tcp[12] = (((20 + options.len()) / 4) << 4) as u8;
        tcp.extend(options);
        let mut packet = header(s, d, TCP, tcp.len() as u16);
        let at = packet.len();
        packet.extend(&tcp);
        let sum = full_checksum(&packet, at);
        packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// The TCP checksum from scratch (RFC 9293, section 3.1): the oracle for the incremental one.
    fn full_checksum(packet: &[u8], upper: usize) -> u16 {
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        let mut data = addresses.to_vec();
        data.extend(((packet.len() - upper) as u32).to_be_bytes());
        data.extend([0, 0, 0, TCP]);
        data.extend(&packet[upper..]);
        data[addresses.len() + 8 + 16] = 0;
        data[addresses.len() + 8 + 17] = 0;
        if data.len() % 2 == 1 {
            data.push(0);
        }
        let mut acc: u32 = data.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        while acc >> 16 != 0 {
            acc = (acc & 0xffff) + (acc >> 16);
        }
        !(acc as u16)
    }

    #[test]
    fn mss_is_clamped_with_a_right_checksum_wherever_the_option_stands() {
        for v6 in [false, true] {
            for options in [&[2, 4, 0x05, 0xb4][..], &[1, 2, 4, 0x05, 0xb4, 1, 1, 1], &[1, 1, 4, 2, 2, 4, 0x05, 0xb4]] {
                let mut packet = syn(v6, options);
                let view = IpView::parse(&packet).expect("a packet");
                let upper = view.upper.expect("a TCP header");
                assert!(clamp_mss(&view, &mut packet, 1380));
                let expected: u16 = if v6 { 1320 } else { 1340 };
                let at = upper + 20 + options.windows(2).position(|w| w == [2, 4]).expect("the option");
                assert_eq!(packet[at + 2..at + 4], expected.to_be_bytes());
                assert_eq!(packet[upper + 16..upper + 18], full_checksum(&packet, upper).to_be_bytes());
                assert!(!clamp_mss(&view, &mut packet, 1380), "the second time there is nothing to do");
                assert!(clamp_mss(&view, &mut packet, 516));
                assert_eq!(packet[at + 2..at + 4], 536u16.to_be_bytes(), "on the narrowest path");
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_no_packets() {
        let good = udp("10.0.0.1".parse().expect("an address"), "10.0.0.2".parse().expect("an address"), 7, b"x");
        assert_eq!(IpView::parse(&good).map(|v| v.len), Some(good.len()));
        assert_eq!(IpView::parse(&good[..good.len() - 1]), None);
        let mut short_header = good.clone();
        short_header[0] = 0x44;
        assert_eq!(IpView::parse(&short_header), None);
        let mut padded = good.clone();
        padded.extend([0; 9]);
        assert_eq!(IpView::parse(&padded).map(|v| v.len), Some(good.len()), "what lies behind is not part of it");
    }

    #[test]
    fn the_quote_in_an_icmp_error_is_read() {
        let (a, b): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().expect("an address"), "10.0.0.2".parse().expect("an address"));
        let quote = udp(b, a, 7, b"quoted");
        let mut error = header(a, b, ICMP, 8 + 28);
        error.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        error.extend(&quote[..28]);
        let view = IpView::parse(&error).expect("a packet");
        assert_eq!(view.quoted(&error), Some((b, a)));
    }

    proptest! {
        #[test]
        fn nothing_panics_whatever_comes(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 0u8..8) {
            if let Some(b) = bytes.first_mut() { *b = if first % 2 == 0 { 0x45 } else { 0x60 } }
            if let Some(view) = IpView::parse(&bytes) {
                prop_assert!(view.len <= bytes.len());
                view.quoted(&bytes);
                view.flow_hash(&bytes, 1);
                clamp_mss(&view, &mut bytes, 1380);
            }
        }
    }
}
