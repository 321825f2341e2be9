//! Received routes as an MRT dump: TABLE_DUMP_V2 (RFC 6396, section 4.3; RFC 8050, section 4), which bgpdump and others read.
//!
//! ```text
//! | timestamp, 4 octets | type 13, 2 | subtype, 2 | length, 4 |                                  each record
//! | collector, 4 | name length 0, 2 | peers, 2 | kind, 1 | identifier, 4 | address | AS, 4 | ... subtype 1, the first
//! | sequence, 4 | prefix length, 1 | prefix | entries, 2 |                                      subtypes 2, 4, 8 and 10
//! |   peer's place, 2 | originated, 4 | attributes' length, 2 | attributes |                    each entry of 2 and 4
//! |   peer's place, 2 | originated, 4 | path identifier, 4 | attributes' length, 2 | attributes |    of 8 and 10
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
const RIB_IPV4_UNICAST_ADDPATH: u16 = 8;
const RIB_IPV6_UNICAST_ADDPATH: u16 = 10;

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

/// A neighbour's route to a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The neighbour's place among those of the first record.
    pub(crate) peer: u16,
    /// Its name for the route, where it may have several to a prefix.
    pub(crate) path_id: Option<u32>,
    /// As [`attributes`] makes them.
    pub(crate) attributes: Vec<u8>,
}

/// A prefix with its routes, in a record of those that have an identifier and in one of those that have none; tells how many
/// records there are. When a route came is not kept; the dump's own time stands for it.
pub(crate) fn prefix(out: &mut Vec<u8>, timestamp: u32, sequence: u32, prefix: &IpNet, routes: &[Entry]) -> u32 {
    let subtypes = match Family::of(prefix) {
        Family::Ipv4 => [RIB_IPV4_UNICAST, RIB_IPV4_UNICAST_ADDPATH],
        Family::Ipv6 => [RIB_IPV6_UNICAST, RIB_IPV6_UNICAST_ADDPATH],
    };
    let length = prefix.prefix_len();
    let mut octets = Vec::with_capacity(16);
    address(&mut octets, prefix.network());
    let mut records = 0;
    for (subtype, add_path) in subtypes.into_iter().zip([false, true]) {
        let of_kind = || routes.iter().filter(|entry| entry.path_id.is_some() == add_path);
        if of_kind().next().is_none() {
            continue;
        }
        let mut body = (sequence + records).to_be_bytes().to_vec();
        body.push(length);
        body.extend_from_slice(&octets[..usize::from(length.div_ceil(8))]);
        body.extend_from_slice(&(of_kind().count() as u16).to_be_bytes());
        for Entry { peer, path_id, attributes } in of_kind() {
            body.extend_from_slice(&peer.to_be_bytes());
            body.extend_from_slice(&timestamp.to_be_bytes());
            body.extend(path_id.iter().flat_map(|id| id.to_be_bytes()));
            body.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
            body.extend_from_slice(attributes);
        }
        record(out, timestamp, subtype, &body);
        records += 1;
    }
    records
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
    use bgpkit_parser::models::{MetaCommunity, MrtMessage, MrtRecord, TableDumpV2Message};
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
        let entry = |peer, path_id, attributes: &Vec<u8>| Entry { peer, path_id, attributes: attributes.clone() };
        let mut put = |sequence, text: &str, entries: &[Entry]| {
            prefix(&mut out, 1_000, sequence, &text.parse().expect("a prefix"), entries)
        };
        let entries = [entry(0, None, &v4), entry(1, Some(7), &v4), entry(1, Some(9), &v4)];
        assert_eq!(put(0, first, &entries), 2, "with identifiers, and without");
        assert_eq!(put(2, second, &[entry(1, None, &attributes(&said, hop("2001:db8::2")))]), 1);
        let elements: Vec<_> = BgpkitParser::from_reader(Cursor::new(&out)).into_elem_iter().collect();
        let told: Vec<_> = elements
            .iter()
            .map(|e| (e.prefix.prefix.to_string(), e.peer_ip, e.peer_asn.to_u32(), e.next_hop))
            .collect();
        let is = |prefix: &str, peer: usize, next_hop: &str| {
            let Peer { address, asn, .. } = neighbors[peer];
            (prefix.to_owned(), address, asn, Some(next_hop.parse::<IpAddr>().expect("an address")))
        };
        let of_first = |peer| is(first, peer, "203.0.113.1");
        assert_eq!(told, [of_first(0), of_first(1), of_first(1), is(second, 1, "2001:db8::2")]);
        // Its elements leave out the identifiers, which its records have.
        let ids = |record: MrtRecord| match record.message {
            MrtMessage::TableDumpV2Message(TableDumpV2Message::RibAfi(rib)) => {
                rib.rib_entries.iter().map(|entry| entry.path_id).collect()
            }
            _ => Vec::new(),
        };
        let ids: Vec<_> = BgpkitParser::from_reader(Cursor::new(&out)).into_record_iter().flat_map(ids).collect();
        assert_eq!(ids, [None, Some(7), Some(9), None]);
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
