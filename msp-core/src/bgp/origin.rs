//! Who may announce what: route origin validation (RFC 6811), without clock or socket.
//!
//! A cache has checked the signatures and hands out VRPs: a prefix, the longest part of it that may be announced, and the AS
//! that may. [`Origins`] is a whole set of them, made once, shared by all who ask, and never changed; the next set is
//! another one, and [`Changed`] says whose verdict may be another by it.
//!
//! The set is one sorted list a family, in which each prefix names the next shorter one that contains it:
//!
//! ```text
//!   place   prefix            parent   VRPs
//!     0     10.0.0.0/8          -      /8  AS 1
//!     1     10.1.0.0/16         0      /24 AS 2, /16 AS 3
//!     2     10.1.2.0/24         1      /24 AS 4
//!     3     192.0.2.0/24        -      /24 AS 0
//! ```
//!
//! What sorts last of all that does not sort after a route's prefix is its longest match or has it among its parents. So a
//! verdict is one binary search and a few steps up: 0.3 µs in a set of 600,000, which takes 25 MB.

use super::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::cmp::Ordering;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A validated ROA payload (RFC 6811, section 2): this AS may announce the prefix, and parts of it up to this length.
///
/// AS 0 may announce nothing: such a VRP says that nobody shall (RFC 6483, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrp {
    /// Without bits beyond its length.
    pub prefix: IpNet,
    /// From the prefix's length to the family's.
    pub max_length: u8,
    /// Who may.
    pub asn: u32,
}

impl fmt::Display for Vrp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} AS {}", self.prefix, self.max_length, self.asn)
    }
}

/// What the VRPs say of a route (RFC 6811, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// One of them allows it.
    Valid,
    /// There are some for its prefix, and none of them allows it.
    Invalid,
    /// There is none for its prefix.
    NotFound,
}

/// A whole set of VRPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    tables: [Table; 2],
}

/// Both families, in the order of the tables.
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    nodes: Vec<Node>,
    /// Of all nodes, in their order.
    roas: Vec<Roa>,
}

/// A prefix that has VRPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    bits: u128,
    length: u8,
    /// The place of the longest one that contains it, or [`NO_PARENT`].
    parent: u32,
    /// Where its VRPs end; they begin where those of the node before end.
    end: u32,
}

const NO_PARENT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Roa {
    asn: u32,
    max_length: u8,
}

/// A prefix as bits, the address's first one first whatever its family, and a length.
fn bits(prefix: &IpNet) -> (u128, u8) {
    match prefix.trunc() {
        IpNet::V4(net) => (u128::from(u32::from(net.addr())) << 96, net.prefix_len()),
        IpNet::V6(net) => (u128::from(net.addr()), net.prefix_len()),
    }
}

fn prefix(family: Family, bits: u128, length: u8) -> Option<IpNet> {
    match family {
        Family::Ipv4 => Ipv4Net::new(Ipv4Addr::from((bits >> 96) as u32), length).ok().map(IpNet::V4),
        Family::Ipv6 => Ipv6Net::new(Ipv6Addr::from(bits), length).ok().map(IpNet::V6),
    }
}

/// The bits that a prefix of this length leaves open.
fn open(length: u8) -> u128 {
    u128::MAX.checked_shr(length.into()).unwrap_or(0)
}

impl Node {
    fn contains(&self, (bits, length): (u128, u8)) -> bool {
        self.length <= length && (self.bits ^ bits) & !open(self.length) == 0
    }
}

impl Table {
    /// Of VRPs in ascending order, each once.
    fn new(vrps: &[Vrp]) -> Table {
        let mut table = Table::default();
        let mut path: Vec<u32> = Vec::new();
        for of_prefix in vrps.chunk_by(|a, b| a.prefix == b.prefix) {
            let (bits, length) = bits(&of_prefix[0].prefix);
            while path.last().is_some_and(|&parent| !table.nodes[parent as usize].contains((bits, length))) {
                path.pop();
            }
            let parent = path.last().copied().unwrap_or(NO_PARENT);
            path.push(table.nodes.len() as u32);
            table.roas.extend(of_prefix.iter().map(|vrp| Roa { asn: vrp.asn, max_length: vrp.max_length }));
            table.nodes.push(Node { bits, length, parent, end: table.roas.len() as u32 });
        }
        table.nodes.shrink_to_fit();
        table.roas.shrink_to_fit();
        table
    }

    fn roas(&self, place: usize) -> &[Roa] {
        let begin = place.checked_sub(1).map_or(0, |before| self.nodes[before].end);
        &self.roas[begin as usize..self.nodes[place].end as usize]
    }

    /// The prefixes that contain this one, the longest first.
    fn containing(&self, prefix: (u128, u8)) -> impl Iterator<Item = usize> {
        let after = self.nodes.partition_point(|node| (node.bits, node.length) <= prefix);
        let parent = |place: usize| Some(self.nodes[place].parent).filter(|&parent| parent != NO_PARENT);
        let up = std::iter::successors(after.checked_sub(1), move |&place| Some(parent(place)? as usize));
        up.filter(move |&place| self.nodes[place].contains(prefix))
    }
}

impl Origins {
    /// Of these, in any order; what is said twice counts once.
    pub fn new(mut vrps: Vec<Vrp>) -> Origins {
        vrps.sort_unstable();
        vrps.dedup();
        // All of IPv4 sorts before IPv6.
        let ipv6 = vrps.partition_point(|vrp| Family::of(&vrp.prefix) == Family::Ipv4);
        Origins { tables: [Table::new(&vrps[..ipv6]), Table::new(&vrps[ipv6..])] }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|table| table.roas.len()).sum()
    }

    /// Is there none? Then all routes are [`Validity::NotFound`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Vrp> {
        FAMILIES.into_iter().flat_map(move |family| {
            (0..self.tables[family as usize].nodes.len()).flat_map(move |place| self.vrps(family, place))
        })
    }

    fn vrps(&self, family: Family, place: usize) -> impl Iterator<Item = Vrp> {
        let table = &self.tables[family as usize];
        let node = table.nodes[place];
        let vrp = move |roa: &Roa| {
            let prefix = prefix(family, node.bits, node.length)?;
            Some(Vrp { prefix, max_length: roa.max_length, asn: roa.asn })
        };
        table.roas(place).iter().filter_map(vrp)
    }

    /// May this AS announce this prefix? A route whose AS_PATH ends with a set has no origin, and nothing allows it
    /// (RFC 6811, section 2; RFC 6907, section 7.1.8).
    pub fn validate(&self, prefix: &IpNet, origin: Option<u32>) -> Validity {
        let table = &self.tables[Family::of(prefix) as usize];
        let prefix = bits(prefix);
        // AS 0 is nobody's: no VRP with it ever allows anything.
        let allows = |roa: &Roa| roa.asn != 0 && Some(roa.asn) == origin && prefix.1 <= roa.max_length;
        let mut found = false;
        for place in table.containing(prefix) {
            if table.roas(place).iter().any(allows) {
                return Validity::Valid;
            }
            found = true;
        }
        if found { Validity::Invalid } else { Validity::NotFound }
    }

    /// The VRPs by which a prefix is judged, of its longest match first.
    pub fn covering(&self, prefix: &IpNet) -> impl Iterator<Item = Vrp> {
        let family = Family::of(prefix);
        self.tables[family as usize].containing(bits(prefix)).flat_map(move |place| self.vrps(family, place))
    }

    /// Why a route of this origin is invalid, for people: names a few of the VRPs that forbid it.
    pub fn forbidden_by(&self, prefix: &IpNet) -> String {
        /// What fits a line; a prefix seldom has more.
        const SHOWN: usize = 3;
        let mut covering = self.covering(prefix);
        let shown: Vec<String> = covering.by_ref().take(SHOWN).map(|vrp| format!("ROA {vrp}")).collect();
        match covering.count() {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    /// Whose verdict may be another in the other set.
    pub fn changed(&self, other: &Origins) -> Changed {
        Changed(FAMILIES.map(|family| changed(&self.tables[family as usize], &other.tables[family as usize])))
    }
}

/// The prefixes within which verdicts may be others than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed([Vec<(u128, u128)>; 2]);

/// With more changes than this everything is looked at: a first set changes half a million, and to look for a route in so
/// many costs as much as its verdict.
const MOST_CHANGES: usize = 16 * 1024;

/// The first and last address of each prefix of which the two tables do not say the same; none within another.
fn changed(a: &Table, b: &Table) -> Vec<(u128, u128)> {
    let mut ranges: Vec<(u128, u128)> = Vec::new();
    let (mut left, mut right) = (0, 0);
    loop {
        let order = match (a.nodes.get(left), b.nodes.get(right)) {
            (None, None) => return ranges,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => (a.bits, a.length).cmp(&(b.bits, b.length)),
        };
        let node = if order.is_gt() { b.nodes[right] } else { a.nodes[left] };
        let same = order.is_eq() && a.roas(left) == b.roas(right);
        left += usize::from(order.is_le());
        right += usize::from(order.is_ge());
        let last = node.bits | open(node.length);
        // They come in ascending order, what contains another before it.
        if !same && ranges.last().is_none_or(|range| range.1 < last) {
            ranges.push((node.bits, last));
        }
        if ranges.len() > MOST_CHANGES {
            return vec![(0, u128::MAX)];
        }
    }
}

impl Changed {
    /// Nowhere.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// May the verdict on a route to this prefix be another?
    pub fn touches(&self, prefix: &IpNet) -> bool {
        let ranges = &self.0[Family::of(prefix) as usize];
        let (bits, length) = bits(prefix);
        let after = ranges.partition_point(|range| range.0 <= bits);
        after.checked_sub(1).is_some_and(|place| ranges[place].1 >= bits | open(length))
    }

    /// These too.
    pub fn add(&mut self, more: Changed) {
        for (ranges, more) in self.0.iter_mut().zip(more.0) {
            ranges.extend(more);
            // What contains another comes before it.
            ranges.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            let mut end = None;
            ranges.retain(|range| {
                let within = end.is_some_and(|end| range.1 <= end);
                end = end.max(Some(range.1));
                !within
            });
            if ranges.len() > MOST_CHANGES {
                *ranges = vec![(0, u128::MAX)];
            }
        }
    }
}

#[cfg(test)]
mod tests;
