//! Which classes a packet may be of, looked up by each of its facts: walking through two hundred classes takes microseconds.
//!
//! The values of a fact are cut where a class begins or ends to accept them, and each piece has the classes that accept it, a
//! bit each. A packet matches those that the pieces of all its facts have in common (the bit vectors of Lakshman and Stiliadis,
//! SIGCOMM 1998).
//!
//! ```text
//!   dport:   0       443   444       5000        5011      65535
//!            |--------|-----|----------|-----------|---------|
//!              rest    web,       rest   games, rest    rest
//!                      rest
//! ```

use super::{Class, Facts, MOST_CLASSES};
use ipnet::IpNet;
use std::net::IpAddr;

/// A bit for each class, by its place.
pub(super) type Classes = [u64; MOST_CLASSES.div_ceil(64)];

/// An address as it is ordered: those of IPv4 come first.
type Address = (bool, u128);

/// All facts, each with its pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    src: Pieces<Address>,
    dst: Pieces<Address>,
    proto: Pieces<u8>,
    sport: Pieces<u16>,
    dport: Pieces<u16>,
    dscp: Pieces<u8>,
}

/// The values of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pieces<T> {
    /// Where each begins; the first at the least value.
    from: Vec<T>,
    /// The classes that accept it.
    classes: Vec<Classes>,
    /// Those that accept packets which do not show the fact.
    any: Classes,
}

impl<T: Ord + Copy> Pieces<T> {
    /// `accepted`: of each class the first and the last value of all that it accepts; none: any. `after`: the next value.
    fn new(least: T, after: impl Fn(T) -> Option<T>, accepted: &[Vec<(T, T)>]) -> Self {
        let mut from = vec![least];
        // A range that ends before it begins has nothing in it.
        let not_empty = |(first, last): &&(T, T)| first <= last;
        for &(first, last) in accepted.iter().flatten().filter(not_empty) {
            from.push(first);
            from.extend(after(last));
        }
        from.sort_unstable();
        from.dedup();
        let mut classes = vec![Classes::default(); from.len()];
        let mut any = Classes::default();
        for (class, ranges) in accepted.iter().enumerate() {
            let (word, bit) = (class / 64, 1 << (class % 64));
            if ranges.is_empty() {
                any[word] |= bit;
                classes.iter_mut().for_each(|classes| classes[word] |= bit);
            }
            for (first, last) in ranges.iter().filter(not_empty) {
                let pieces = from.partition_point(|at| at < first)..from.partition_point(|at| at <= last);
                classes[pieces].iter_mut().for_each(|classes| classes[word] |= bit);
            }
        }
        Pieces { from, classes, any }
    }

    fn of(&self, value: T) -> &Classes {
        // The first piece begins at the least value there is.
        self.classes.get(self.from.partition_point(|at| *at <= value).wrapping_sub(1)).unwrap_or(&self.any)
    }
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => (false, u32::from(address).into()),
        IpAddr::V6(address) => (true, address.into()),
    }
}

fn networks(list: &[IpNet]) -> Vec<(Address, Address)> {
    list.iter().map(|net| (address(net.network()), address(net.broadcast()))).collect()
}

impl Index {
    pub(super) fn new(classes: &[Class]) -> Self {
        fn of<T>(classes: &[Class], accepted: impl Fn(&Class) -> Vec<(T, T)>) -> Vec<Vec<(T, T)>> {
            classes.iter().map(accepted).collect()
        }
        let after = |(v6, address): Address| Some((v6, address.checked_add(1)?));
        let src = of(classes, |class| networks(&class.matches.src));
        let dst = of(classes, |class| networks(&class.matches.dst));
        let proto = of(classes, |class| class.matches.proto.iter().map(|proto| (*proto, *proto)).collect());
        let sport =
            of(classes, |class| class.matches.sport.iter().map(|range| (*range.start(), *range.end())).collect());
        let dport =
            of(classes, |class| class.matches.dport.iter().map(|range| (*range.start(), *range.end())).collect());
        let dscp = of(classes, |class| {
            (0..64).filter(|dscp| class.matches.dscp >> dscp & 1 == 1).map(|dscp| (dscp, dscp)).collect()
        });
        Index {
            src: Pieces::new((false, 0), after, &src),
            dst: Pieces::new((false, 0), after, &dst),
            proto: Pieces::new(0, |proto| proto.checked_add(1), &proto),
            sport: Pieces::new(0, |port| port.checked_add(1), &sport),
            dport: Pieces::new(0, |port| port.checked_add(1), &dport),
            dscp: Pieces::new(0, |dscp| dscp.checked_add(1), &dscp),
        }
    }

    /// The classes that match a packet, at whatever time.
    pub(super) fn matches(&self, facts: &Facts) -> Classes {
        let (sport, dport) = match facts.ports {
            Some((sport, dport)) => (self.sport.of(sport), self.dport.of(dport)),
            None => (&self.sport.any, &self.dport.any),
        };
        let (src, dst) = (self.src.of(address(facts.src)), self.dst.of(address(facts.dst)));
        let (proto, dscp) = (self.proto.of(facts.proto), self.dscp.of(facts.dscp));
        std::array::from_fn(|word| src[word] & dst[word] & proto[word] & sport[word] & dport[word] & dscp[word])
    }
}
