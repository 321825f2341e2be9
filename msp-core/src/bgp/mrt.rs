//! Received routes as an MRT dump: TABLE_DUMP_V2 (RFC 6396, section 4.3), which bgpdump and others read.
//!
//! ```text
//! | timestamp, 4 octets | type 13, 2 | subtype, 2 | length, 4 |                                  each record
//! | collector, 4 | name length 0, 2 | peers, 2 | kind, 1 | identifier, 4 | address | AS, 4 | ... subtype 1, the first
//! | sequence, 4 | prefix length, 1 | prefix | entries, 2 |                                      subtypes 2 and 4
//! |   peer's place, 2 | originated, 4 | attributes' length, 2 | attributes |                    each entry
//! ```

use super::Family;
use super::attribute;
use super::update::{Attributes, NextHop};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

const TABLE_DUMP_V2: u16 = 13;
const PEER_INDEX_TABLE: u16 = 1;
const RIB_IPV4_UNICAST: u16 = 2;
const RIB_IPV6_UNICAST: u16 = 4;

/// A neighbour, as the dump names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) router_id: Ipv4Addr,
    pub(crate) address: IpAddr,
    pub(crate) asn: u32,
}

fn record(out: &mut Vec<u8>, timestamp: u32, subtype: u16, body: &[u8]) {
    out.extend_from_slice(&timestamp.to_be_bytes());
    out.extend_from_slice(&TABLE_DUMP_V2.to_be_bytes());
    out.extend_from_slice(&subtype.to_be_bytes());
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
}

/// The first record: who the routes are of. There are fewer than 65,536 of them.
pub(crate) fn peers(out: &mut Vec<u8>, timestamp: u32, collector: Ipv4Addr, peers: &[Peer]) {
    let mut body = collector.octets().to_vec();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&(peers.len() as u16).to_be_bytes());
    for peer in peers {
        // Bit 0: an IPv6 address. Bit 1: an AS number of four octets.
        body.push(2 | u8::from(peer.address.is_ipv6()));
        body.extend_from_slice(&peer.router_id.octets());
        address(&mut body, peer.address);
        body.extend_from_slice(&peer.asn.to_be_bytes());
    }
    record(out, timestamp, PEER_INDEX_TABLE, &body);
}

/// A prefix with its routes: of each the neighbour's place and its attributes, as [`attributes`] makes them. When a route
/// came is not kept; the dump's own time stands for it.
pub(crate) fn prefix(out: &mut Vec<u8>, timestamp: u32, sequence: u32, prefix: &IpNet, routes: &[(u16, Vec<u8>)]) {
    let mut body = sequence.to_be_bytes().to_vec();
    let length = prefix.prefix_len();
    let mut octets = Vec::with_capacity(16);
    address(&mut octets, prefix.network());
    body.push(length);
    body.extend_from_slice(&octets[..usize::from(length.div_ceil(8))]);
    body.extend_from_slice(&(routes.len() as u16).to_be_bytes());
    for (peer, attributes) in routes {
        body.extend_from_slice(&peer.to_be_bytes());
        body.extend_from_slice(&timestamp.to_be_bytes());
        body.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
        body.extend_from_slice(attributes);
    }
    let subtype = match Family::of(prefix) {
        Family::Ipv4 => RIB_IPV4_UNICAST,
        Family::Ipv6 => RIB_IPV6_UNICAST,
    };
    record(out, timestamp, subtype, &body);
}

/// Path attributes as they stand in an UPDATE, with AS numbers of four octets, and of MP_REACH_NLRI nothing but the next hop
/// (section 4.3.4).
pub(crate) fn attributes(said: &Attributes, next_hop: NextHop) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let ipv4 = match next_hop.address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => {
            let local = next_hop.link_local.map(|address| address.octets());
            let octets: Vec<u8> = address.octets().into_iter().chain(local.into_iter().flatten()).collect();
            attribute::put(&mut out, attribute::MP_REACH, &[&[octets.len() as u8], &octets[..]].concat());
            None
        }
    };
    said.write(&mut out, ipv4, true);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::update::{Aggregator, AsPath, Community, LargeCommunity, Origin};
    use bgpkit_parser::BgpkitParser;
    use bgpkit_parser::models::MetaCommunity;
    use std::io::Cursor;

    /// Another's reader finds in it what we put there.
    #[test]
    fn what_is_dumped_is_read_by_bgpkit_parser() {
        let neighbors = [
            Peer { router_id: Ipv4Addr::new(192, 0, 2, 1), address: Ipv4Addr::new(203, 0, 113, 1).into(), asn: 64501 },
            Peer {
                router_id: Ipv4Addr::new(192, 0, 2, 2),
                address: "2001:db8::2".parse().expect("an address"),
                asn: 4_200_000_001,
            },
        ];
        let said = Attributes {
            origin: Origin::Incomplete,
            as_path: AsPath::sequence(&[64501, 4_200_000_000, 7]),
            med: Some(5),
            atomic_aggregate: true,
            aggregator: Some(Aggregator { asn: 4_200_000_000, router_id: Ipv4Addr::new(192, 0, 2, 9) }),
            // More than 255 octets.
            communities: (0..70).map(Community).collect(),
            large_communities: [LargeCommunity([1, 2, 3])].into(),
            only_to_customer: Some(64501),
            ..Attributes::default()
        };
        let hop = |text: &str| NextHop { address: text.parse().expect("an address"), link_local: None };
        let (first, second) = ("8.8.8.0/23", "2600:1::/32");
        let mut out = Vec::new();
        peers(&mut out, 1_000, Ipv4Addr::new(192, 0, 2, 9), &neighbors);
        let v4 = attributes(&said, hop("203.0.113.1"));
        prefix(&mut out, 1_000, 0, &first.parse().expect("a prefix"), &[(0, v4.clone()), (1, v4)]);
        prefix(&mut out, 1_000, 1, &second.parse().expect("a prefix"), &[(1, attributes(&said, hop("2001:db8::2")))]);
        let elements: Vec<_> = BgpkitParser::from_reader(Cursor::new(out)).into_elem_iter().collect();
        let told: Vec<_> = elements
            .iter()
            .map(|e| (e.prefix.prefix.to_string(), e.peer_ip, e.peer_asn.to_u32(), e.next_hop))
            .collect();
        let is = |prefix: &str, peer: usize, next_hop: &str| {
            let Peer { address, asn, .. } = neighbors[peer];
            (prefix.to_owned(), address, asn, Some(next_hop.parse::<IpAddr>().expect("an address")))
        };
        assert_eq!(told, [is(first, 0, "203.0.113.1"), is(first, 1, "203.0.113.1"), is(second, 1, "2001:db8::2")]);
        for element in elements {
            assert_eq!(element.as_path.map(|path| path.to_string()).as_deref(), Some("64501 4200000000 7"));
            assert_eq!(
                (element.med, element.atomic, element.only_to_customer.map(|asn| asn.to_u32())),
                (Some(5), true, Some(64501))
            );
            let communities = element.communities.unwrap_or_default();
            assert_eq!(communities.iter().filter(|c| matches!(c, MetaCommunity::Plain(_))).count(), 70);
            assert_eq!(communities.iter().filter(|c| matches!(c, MetaCommunity::Large(_))).count(), 1);
        }
    }
}
