//! A made-up full table, of the sizes and shapes of the Internet's: prefix lengths, path lengths, how many prefixes share
//! their attributes, and what communities come with them. The same for a seed, as packed UPDATEs.
//!
//! The shares are those of the tables that public route collectors show in 2024, rounded: what they are for is that a
//! speaker's work and memory are those of a real table.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// How many IPv4 prefixes.
    pub(super) ipv4: usize,
    /// How many IPv6 prefixes.
    pub(super) ipv6: usize,
    /// Decides which.
    pub(super) seed: u64,
}

/// A prefix as it stands in an UPDATE: its length, and its octets.
type Wire = Vec<u8>;

/// How many in a thousand have which length.
const LENGTHS_IPV4: [(u8, u32); 12] = [
    (24, 610),
    (23, 100),
    (22, 112),
    (21, 50),
    (20, 45),
    (19, 27),
    (18, 15),
    (17, 9),
    (16, 14),
    (15, 6),
    (14, 6),
    (13, 6),
];
const LENGTHS_IPV6: [(u8, u32); 10] =
    [(48, 470), (32, 130), (44, 95), (40, 85), (36, 60), (46, 50), (47, 40), (29, 40), (45, 20), (33, 10)];
/// How many ASes a path has besides the neighbour's.
const PATHS: [(u8, u32); 8] = [(1, 60), (2, 240), (3, 330), (4, 200), (5, 100), (6, 40), (8, 20), (12, 10)];
/// How many prefixes share their attributes. On average 6.2.
const SHARED: [(u8, u32); 7] = [(1, 450), (2, 170), (4, 150), (8, 110), (16, 70), (40, 35), (100, 15)];
/// How many communities come with a route.
const COMMUNITIES: [(u8, u32); 6] = [(0, 180), (1, 130), (3, 300), (6, 250), (10, 100), (20, 40)];

fn draw(rng: &mut StdRng, table: &[(u8, u32)]) -> u8 {
    let mut point = rng.random_range(0..table.iter().map(|(_, share)| share).sum());
    for &(value, share) in table {
        match share > point {
            true => return value,
            false => point -= share,
        }
    }
    unreachable!("the point is below the sum of the shares")
}

/// Of the space that is announced: no special-purpose address.
fn is_global(address: u32) -> bool {
    let [a, b, c, _] = Ipv4Addr::from(address).octets();
    let special = match a {
        0 | 10 | 127 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || (b == 0 && (c == 0 || c == 2)),
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => a >= 224,
    };
    !special
}

fn ipv4(rng: &mut StdRng) -> (u32, u8) {
    loop {
        let length = draw(rng, &LENGTHS_IPV4);
        let address: u32 = rng.random::<u32>() & (u32::MAX << (32 - length));
        // Shorter ones may contain what is special; they must not be part of it.
        if is_global(address) {
            return (address, length);
        }
    }
}

fn ipv6(rng: &mut StdRng) -> (u128, u8) {
    // Where the registries' allocations are.
    let blocks = [0x2400u16, 0x2600, 0x2800, 0x2a00, 0x2c00];
    let length = draw(rng, &LENGTHS_IPV6);
    let block = u128::from(blocks[rng.random_range(0..blocks.len())] + rng.random_range(0..0x10)) << 112;
    let address = block | rng.random::<u128>() >> 16;
    (address & (u128::MAX << (128 - length)), length)
}

fn wire(octets: &[u8], length: u8) -> Wire {
    let mut wire = vec![length];
    wire.extend_from_slice(&octets[..usize::from(length.div_ceil(8))]);
    wire
}

/// What one transit announces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transit {
    /// Its AS.
    pub(super) asn: u32,
    /// Where packets go.
    pub(super) next_hop_v4: Ipv4Addr,
    /// The same of IPv6.
    pub(super) next_hop_v6: Ipv6Addr,
    /// Which of the transits it is: what it says of a prefix is its own, and one in fifty it does not have.
    pub(super) place: u64,
}

/// All prefixes of a shape, in groups of those that share their attributes.
#[derive(Debug)]
pub(super) struct Table {
    seed: u64,
    ipv4: Vec<Vec<Wire>>,
    ipv6: Vec<Vec<Wire>>,
}

impl Table {
    /// Makes the prefixes: each is there once.
    pub(super) fn new(shape: &Shape) -> Table {
        let mut rng = StdRng::seed_from_u64(shape.seed);
        let (mut seen_v4, mut seen_v6) = (HashSet::new(), HashSet::new());
        let (mut v4, mut v6) = (Vec::with_capacity(shape.ipv4), Vec::with_capacity(shape.ipv6));
        while v4.len() < shape.ipv4 {
            let (address, length) = ipv4(&mut rng);
            if seen_v4.insert((address, length)) {
                v4.push(wire(&address.to_be_bytes(), length));
            }
        }
        while v6.len() < shape.ipv6 {
            let (address, length) = ipv6(&mut rng);
            if seen_v6.insert((address, length)) {
                v6.push(wire(&address.to_be_bytes(), length));
            }
        }
        let mut group = |prefixes: Vec<Wire>| {
            let (mut groups, mut prefixes) = (Vec::new(), prefixes.into_iter());
            loop {
                let size = usize::from(draw(&mut rng, &SHARED));
                let group: Vec<Wire> = prefixes.by_ref().take(size).collect();
                if group.is_empty() {
                    return groups;
                }
                groups.push(group);
            }
        };
        Table { seed: shape.seed, ipv4: group(v4), ipv6: group(v6) }
    }

    /// The UPDATEs of a transit that announces all of it, ending with both End-of-RIB markers; and how many prefixes of
    /// each family they announce.
    pub(super) fn updates(&self, transit: &Transit) -> (Vec<u8>, [usize; 2]) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ (transit.place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut out, mut counts) = (Vec::new(), [0; 2]);
        let mut groups: Vec<(bool, &Vec<Wire>)> =
            self.ipv4.iter().map(|group| (false, group)).chain(self.ipv6.iter().map(|group| (true, group))).collect();
        // No two transits tell in the same order.
        groups.shuffle(&mut rng);
        for (is_v6, group) in groups {
            if rng.random_ratio(1, 50) {
                continue;
            }
            counts[usize::from(is_v6)] += group.len();
            let attributes = attributes(&mut rng, transit.asn);
            match is_v6 {
                false => update_ipv4(&mut out, &attributes, transit.next_hop_v4, group),
                true => update_ipv6(&mut out, &attributes, transit.next_hop_v6, group),
            }
        }
        message(&mut out, &[0, 0, 0, 0]);
        message(&mut out, &[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1]);
        (out, counts)
    }
}

fn asn(rng: &mut StdRng) -> u32 {
    // Half of the ASes have numbers that took four octets.
    if rng.random() { rng.random_range(1..23_000) } else { rng.random_range(131_072..400_000) }
}

/// ORIGIN, AS_PATH, and what else a route has, without next hop: flags, type, length and value each, ascending by type but
/// for what comes before and after NEXT_HOP, of which the place is told.
fn attributes(rng: &mut StdRng, first: u32) -> (Vec<u8>, Vec<u8>) {
    let origin = if rng.random_ratio(9, 10) { 0 } else { 2 };
    let mut before = vec![0x40, 1, 1, origin];
    let mut path = vec![first];
    for _ in 0..draw(rng, &PATHS) {
        let next = asn(rng);
        // One in twelve is prepended.
        let times = if rng.random_ratio(1, 12) { rng.random_range(2..5) } else { 1 };
        path.extend(std::iter::repeat_n(next, times));
    }
    before.extend_from_slice(&[0x50, 2, 0, (2 + path.len() * 4) as u8, 2, path.len() as u8]);
    path.iter().for_each(|asn| before.extend_from_slice(&asn.to_be_bytes()));
    let mut after = Vec::new();
    if rng.random_ratio(1, 4) {
        after.extend_from_slice(&[0x80, 4, 4]);
        after.extend_from_slice(&rng.random_range(0u32..200).to_be_bytes());
    }
    if rng.random_ratio(1, 12) {
        after.extend_from_slice(&[0xc0, 7, 8]);
        after.extend_from_slice(&asn(rng).to_be_bytes());
        after.extend_from_slice(&rng.random::<u32>().to_be_bytes());
    }
    let communities = draw(rng, &COMMUNITIES);
    if communities > 0 {
        after.extend_from_slice(&[0xc0, 8, communities * 4]);
        for _ in 0..communities {
            // The transit's own, mostly, and few different ones.
            after.extend_from_slice(
                &(rng.random_range(1_000u32..1_200) << 16 | rng.random_range(0..3_000)).to_be_bytes(),
            );
        }
    }
    if rng.random_ratio(1, 8) {
        after.extend_from_slice(&[0xc0, 32, 24]);
        for _ in 0..2 {
            after.extend_from_slice(&asn(rng).to_be_bytes());
            after.extend_from_slice(&rng.random_range(0u32..50).to_be_bytes());
            after.extend_from_slice(&rng.random_range(0u32..5_000).to_be_bytes());
        }
    }
    (before, after)
}

/// The header, and the body.
fn message(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&(body.len() as u16 + 19).to_be_bytes());
    out.push(2);
    out.extend_from_slice(body);
}

fn update_ipv4(out: &mut Vec<u8>, (before, after): &(Vec<u8>, Vec<u8>), next_hop: Ipv4Addr, prefixes: &[Wire]) {
    let length = before.len() + 7 + after.len();
    let mut body = vec![0, 0];
    body.extend_from_slice(&(length as u16).to_be_bytes());
    body.extend_from_slice(before);
    body.extend_from_slice(&[0x40, 3, 4]);
    body.extend_from_slice(&next_hop.octets());
    body.extend_from_slice(after);
    prefixes.iter().for_each(|prefix| body.extend_from_slice(prefix));
    message(out, &body);
}

fn update_ipv6(out: &mut Vec<u8>, (before, after): &(Vec<u8>, Vec<u8>), next_hop: Ipv6Addr, prefixes: &[Wire]) {
    let mut reach = vec![0, 2, 1, 16];
    reach.extend_from_slice(&next_hop.octets());
    reach.push(0);
    prefixes.iter().for_each(|prefix| reach.extend_from_slice(prefix));
    let length = before.len() + after.len() + 4 + reach.len();
    let mut body = vec![0, 0];
    body.extend_from_slice(&(length as u16).to_be_bytes());
    body.extend_from_slice(&[0x90, 14]);
    body.extend_from_slice(&(reach.len() as u16).to_be_bytes());
    body.extend_from_slice(&reach);
    body.extend_from_slice(before);
    body.extend_from_slice(after);
    message(out, &body);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { ipv4: 20_000, ipv6: 4_000, seed: 7 };

    #[test]
    fn a_table_is_the_same_for_a_seed_and_whole() {
        let transit =
            Transit { asn: 64501, next_hop_v4: Ipv4Addr::new(10, 0, 0, 1), next_hop_v6: Ipv6Addr::LOCALHOST, place: 0 };
        let table = Table::new(&SHAPE);
        let (octets, [v4, v6]) = table.updates(&transit);
        assert_eq!(octets, Table::new(&SHAPE).updates(&transit).0);
        assert!((19_000..20_000).contains(&v4) && (3_800..4_000).contains(&v6), "{v4} {v6}: all but one in fifty");
        assert_ne!(octets, table.updates(&Transit { place: 1, ..transit }).0);
        let (mut rest, mut updates) = (&octets[..], 0);
        while !rest.is_empty() {
            assert_eq!(rest[..16], [0xff; 16]);
            let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
            assert!(length <= 4096, "{length}");
            rest = &rest[length..];
            updates += 1;
        }
        let shared = (v4 + v6) as f64 / f64::from(updates);
        assert!((5.0..8.0).contains(&shared), "{shared} prefixes an UPDATE");
    }

    #[test]
    fn lengths_are_drawn_as_they_are_spread() {
        let table = Table::new(&SHAPE);
        let all: Vec<&Wire> = table.ipv4.iter().flatten().collect();
        let longest = all.iter().filter(|prefix| prefix[0] == 24).count() as f64 / all.len() as f64;
        assert!((0.59..0.64).contains(&longest), "{longest}");
    }
}
