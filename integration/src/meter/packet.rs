//! Packets made by hand, for what no ordinary socket sends.

use super::payload::{HEADER, Header};
use super::{Shape, Spoof};
use std::net::IpAddr;

const ICMP: u8 = 1;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// The Internet checksum (RFC 1071) of `data`, on top of an unfolded sum.
pub(crate) fn checksum(sum: u32, data: &[u8]) -> u16 {
    let mut sum = sum + add(data);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn add(data: &[u8]) -> u32 {
    data.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// The unfolded sum of a pseudo-header (RFC 768, RFC 8200 section 8.1).
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u32 {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => add(&ip.octets()),
        IpAddr::V6(ip) => add(&ip.octets()),
    };
    address(from) + address(to) + u32::from(protocol) + length as u32
}

/// An IP packet; `from` and `to` are of one family.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, identification: u16, flags_offset: u16, body: &[u8]) -> Vec<u8> {
    let mut packet;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet = vec![0; IPV4_HEADER];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&((IPV4_HEADER + body.len()) as u16).to_be_bytes());
            packet[4..6].copy_from_slice(&identification.to_be_bytes());
            packet[6..8].copy_from_slice(&flags_offset.to_be_bytes());
            packet[8] = 64;
            packet[9] = protocol;
            packet[12..16].copy_from_slice(&from.octets());
            packet[16..20].copy_from_slice(&to.octets());
            let sum = checksum(0, &packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (from, to) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            packet = vec![0; IPV6_HEADER];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
            packet[6] = protocol;
            packet[7] = 64;
            packet[8..24].copy_from_slice(&octets(from));
            packet[24..40].copy_from_slice(&octets(to));
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// A UDP datagram with its checksum.
fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(UDP_HEADER + payload.len());
    datagram.extend_from_slice(&port.to_be_bytes());
    datagram.extend_from_slice(&port.to_be_bytes());
    datagram.extend_from_slice(&((UDP_HEADER + payload.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    sum_udp(from, to, &mut datagram);
    datagram
}

fn sum_udp(from: IpAddr, to: IpAddr, datagram: &mut [u8]) {
    datagram[6..8].fill(0);
    // A sum of zero is sent as all ones: zero means that there is none (RFC 768).
    let sum = match checksum(pseudo(from, to, UDP, datagram.len()), datagram) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// A piece of a fragmented packet, `offset` octets in.
fn fragment(from: IpAddr, to: IpAddr, identification: u16, offset: usize, more: bool, piece: &[u8]) -> Vec<u8> {
    let units = (offset / 8) as u16;
    if from.is_ipv4() {
        return ip(from, to, UDP, identification, units | u16::from(more) << 13, piece);
    }
    let mut body = vec![UDP, 0, 0, 0, 0, 0];
    body[2..4].copy_from_slice(&(units << 3 | u16::from(more)).to_be_bytes());
    body.extend_from_slice(&identification.to_be_bytes());
    body.extend_from_slice(piece);
    ip(from, to, FRAGMENT, 0, 0, &body)
}

/// The packets that make up number `number` of a spoofing entry; each piece carries the mark.
pub(crate) fn spoofed(id: u32, spoof: &Spoof, number: u64, now: i64) -> Vec<Vec<u8>> {
    let from = spoof.sources[(number % spoof.sources.len() as u64) as usize];
    let to = spoof.to_address;
    let mut mark = [0; HEADER];
    Header { stream: id, number, sent: now }.write(&mut mark);
    let identification = number as u16;
    match spoof.shape {
        Shape::Udp => vec![ip(from, to, UDP, identification, 0, &udp(from, to, spoof.port, &mark))],
        Shape::Fragments | Shape::LaterFragment => {
            // Two marks, so that each piece has one; a piece but the last is a multiple of eight octets, as 8 + 40 is.
            let datagram = udp(from, to, spoof.port, &[mark, mark].concat());
            let (first, second) = datagram.split_at(UDP_HEADER + HEADER);
            let second = fragment(from, to, identification, first.len(), false, second);
            match spoof.shape {
                Shape::Fragments => vec![fragment(from, to, identification, 0, true, first), second],
                _ => vec![second],
            }
        }
        Shape::IcmpError => {
            let quoted = spoof.quoted.unwrap_or(to);
            // What an error quotes went the other way: from the host that gets the error to the one that complains.
            let quote = ip(quoted, from, UDP, identification, 0, &udp(quoted, from, spoof.port, &mark));
            // Port unreachable: type 3, code 3 (RFC 792), and type 1, code 4 (RFC 4443).
            let (kind, code, protocol) = if to.is_ipv4() { (3, 3, ICMP) } else { (1, 4, ICMPV6) };
            let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&quote);
            let start = if to.is_ipv4() { 0 } else { pseudo(from, to, ICMPV6, message.len()) };
            let sum = checksum(start, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            vec![ip(from, to, protocol, identification, 0, &message)]
        }
    }
}

/// The addresses of a whole UDP packet, and where its datagram begins.
fn whole_udp(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    let (from, to, header): (IpAddr, IpAddr, usize) = match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER && packet[9] == UDP => {
            // More fragments, or an offset: not whole.
            if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
                return None;
            }
            let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four octets");
            (octets(12).into(), octets(16).into(), usize::from(packet[0] & 15) * 4)
        }
        6 if packet.len() >= IPV6_HEADER && packet[6] == UDP => {
            let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen octets");
            (octets(8).into(), octets(24).into(), IPV6_HEADER)
        }
        _ => return None,
    };
    let datagram = packet.get(header..).filter(|d| d.len() >= UDP_HEADER)?;
    (usize::from(u16::from_be_bytes([datagram[4], datagram[5]])) == datagram.len()).then_some((from, to, header))
}

/// The ports of a datagram, source first; it has a header.
fn ports(datagram: &[u8]) -> [u16; 2] {
    [u16::from_be_bytes([datagram[0], datagram[1]]), u16::from_be_bytes([datagram[2], datagram[3]])]
}

/// Where a recorded packet goes, if it is a whole UDP packet from or to one of the ports asked for; its checksum is made
/// anew. A packet seen on a virtual link has none yet: the kernel leaves it to the hardware.
pub(crate) fn replayable(packet: &mut [u8], asked: &[u16]) -> Option<IpAddr> {
    let (from, to, header) = whole_udp(packet)?;
    let datagram = packet.get_mut(header..)?;
    if !ports(datagram).iter().any(|port| asked.contains(port)) {
        return None;
    }
    sum_udp(from, to, datagram);
    Some(to)
}

/// Octets of payload of a whole UDP packet to one of the ports asked for; `None` if it is no such packet.
pub(crate) fn payload_to(packet: &[u8], asked: &[u16]) -> Option<usize> {
    let (_, _, header) = whole_udp(packet)?;
    let datagram = packet.get(header..)?;
    asked.contains(&ports(datagram)[1]).then_some(datagram.len() - UDP_HEADER)
}

#[cfg(test)]
mod tests {
    use super::super::payload::marks;
    use super::*;

    fn spoof(shape: Shape, from: &str, to: &str) -> Spoof {
        let json = serde_json::json!({
            "name": "s", "from": "h", "sources": [from], "to_address": to, "count": 1, "rate": 1.0, "shape": shape,
        });
        serde_json::from_value(json).expect("the entry is right")
    }

    /// Sums to zero over everything, checksum included.
    fn sums(start: u32, data: &[u8]) -> bool {
        checksum(start, data) == 0
    }

    #[test]
    fn every_piece_is_marked_and_every_checksum_right() {
        for (from, to) in [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8:1::2")] {
            let (from_ip, to_ip): (IpAddr, IpAddr) = (from.parse().expect("ip"), to.parse().expect("ip"));
            let header = if from_ip.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
            for (shape, pieces) in
                [(Shape::Udp, 1), (Shape::Fragments, 2), (Shape::LaterFragment, 1), (Shape::IcmpError, 1)]
            {
                let packets = spoofed(5, &spoof(shape, from, to), 3, 0);
                assert_eq!(packets.len(), pieces);
                for packet in &packets {
                    assert_eq!(marks(packet).collect::<Vec<_>>(), [5], "{shape:?}");
                    assert!(!from_ip.is_ipv4() || sums(0, &packet[..header]));
                }
                let body = &packets[0][header..];
                match shape {
                    Shape::Udp => assert!(sums(pseudo(from_ip, to_ip, UDP, body.len()), body)),
                    Shape::IcmpError if from_ip.is_ipv4() => assert!(sums(0, body)),
                    Shape::IcmpError => assert!(sums(pseudo(from_ip, to_ip, ICMPV6, body.len()), body)),
                    Shape::Fragments => {
                        let skip = if from_ip.is_ipv4() { header } else { header + 8 };
                        let whole = [&packets[0][skip..], &packets[1][skip..]].concat();
                        assert!(sums(pseudo(from_ip, to_ip, UDP, whole.len()), &whole));
                    }
                    Shape::LaterFragment => {}
                }
            }
        }
    }

    #[test]
    fn only_whole_udp_of_the_port_is_recorded_and_gets_its_checksum() {
        for (from, to) in [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8:1::2")] {
            let good = spoofed(5, &spoof(Shape::Udp, from, to), 3, 0).remove(0);
            let header = good.len() - HEADER - UDP_HEADER;
            let mut offloaded = good.clone();
            offloaded[header + 6..header + 8].fill(0x55);
            assert_eq!(replayable(&mut offloaded, &[8, 9]), Some(to.parse().expect("ip")));
            assert_eq!(offloaded, good);
            assert_eq!(replayable(&mut good.clone(), &[10]), None);
            assert_eq!((payload_to(&good, &[8, 9]), payload_to(&good, &[10])), (Some(HEADER), None));
            for cut in 0..good.len() {
                assert_eq!(replayable(&mut good[..cut].to_vec(), &[9]), None, "cut to {cut}");
            }
            for mut piece in spoofed(5, &spoof(Shape::Fragments, from, to), 3, 0) {
                assert_eq!(replayable(&mut piece, &[9]), None);
            }
        }
    }
}
