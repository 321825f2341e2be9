//! One family's routes, as columns: a prefix has a number, and a neighbour's routes to it stand at that place in the
//! neighbour's column.
//!
//! ```text
//!               a neighbour each          an egress choice each
//!   number   key        | a | b |            | 1 | 2 |
//!     0    8.8.8.0/24   | 7 | 9 |            | 1 | 1 |     the next-hop object that the kernel's route has
//!     1    1.1.1.0/24   | 7 | - |            | 1 | 3 |
//!     2    (free)       | - | - |            | - | - |
//! ```
//!
//! A speaker looks routes up by exactly the prefix that an UPDATE names, a million times a second, and by the longest
//! match only when an operator asks; so a hash of four octets an entry does, and no tree is kept
//! (`docs/decisions/0016-columns-for-routes.md`).

use super::column::Column;
use crate::bgp::Family;
use hashbrown::HashTable;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A prefix in eight octets: the address's bits first, its length in the last octet.
///
/// ```text
/// | 24 zero bits | IPv4 address, 32 bits | length, 8 bits |
/// | the first 56 bits of an IPv6 address | length, 8 bits |
/// ```
///
/// So a prefix longer than /56 has none; the policy lets nothing in that is longer than /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u64);

/// The longest IPv6 prefix that a [`Key`] holds.
const LONGEST_IPV6: u8 = 56;

impl Key {
    /// At a number that stands for no prefix. No IPv4 address has these bits, and no prefix length is 255.
    const FREE: Key = Key(u64::MAX);

    /// Bits of the address beyond the prefix's length do not count.
    pub(super) fn new(prefix: &IpNet) -> Option<Key> {
        let prefix = prefix.trunc();
        let address = match prefix {
            IpNet::V4(net) => u64::from(u32::from(net.addr())),
            IpNet::V6(net) if net.prefix_len() <= LONGEST_IPV6 => (u128::from(net.addr()) >> 72) as u64,
            IpNet::V6(_) => return None,
        };
        Some(Key(address << 8 | u64::from(prefix.prefix_len())))
    }

    fn prefix(self, family: Family) -> Option<IpNet> {
        let (address, length) = (self.0 >> 8, self.0 as u8);
        match family {
            Family::Ipv4 => Ipv4Net::new(Ipv4Addr::from(address as u32), length).ok().map(IpNet::V4),
            Family::Ipv6 => Ipv6Net::new(Ipv6Addr::from(u128::from(address) << 72), length).ok().map(IpNet::V6),
        }
    }
}

/// A prefix's number. It is another prefix's after this one has gone.
pub(super) type Number = u32;

/// Which next-hop object a kernel's route refers to: its place, from 1; 0 where the kernel has no route.
pub(super) type Installed = u16;

/// One family's table.
#[derive(Debug)]
pub(super) struct Table {
    family: Family,
    index: HashTable<Number>,
    /// Neighbours choose the prefixes: a hash that they can foretell would let them make all of them collide.
    hash: RandomState,
    keys: Vec<Key>,
    free: Vec<Number>,
    /// A column for each neighbour.
    pub(super) received: Vec<Column>,
    /// A column for each egress choice.
    installed: Vec<Vec<Installed>>,
    /// Numbers whose kernel routes may not be what they should be, in the order in which that was noticed; each once, by
    /// the bits beside it.
    dirty: std::collections::VecDeque<Number>,
    is_dirty: Vec<u64>,
}

impl Table {
    /// For neighbours of which some may have several routes to a prefix.
    pub(super) fn new(family: Family, add_path: impl IntoIterator<Item = bool>, choices: usize) -> Table {
        Table {
            family,
            index: HashTable::new(),
            hash: RandomState::new(),
            keys: Vec::new(),
            free: Vec::new(),
            received: add_path.into_iter().map(Column::new).collect(),
            installed: vec![Vec::new(); choices],
            dirty: Default::default(),
            is_dirty: Vec::new(),
        }
    }

    /// How many numbers there are, with those that are free.
    pub(super) fn len(&self) -> Number {
        self.keys.len() as Number
    }

    /// How many prefixes there are.
    pub(super) fn prefixes(&self) -> usize {
        self.index.len()
    }

    pub(super) fn find(&self, prefix: &IpNet) -> Option<Number> {
        let key = Key::new(prefix)?;
        self.index.find(self.hash.hash_one(key), |&number| self.keys[number as usize] == key).copied()
    }

    /// Nothing if the prefix is longer than any that is kept.
    pub(super) fn find_or_insert(&mut self, prefix: &IpNet) -> Option<Number> {
        let key = Key::new(prefix)?;
        let hash = self.hash.hash_one(key);
        if let Some(&number) = self.index.find(hash, |&number| self.keys[number as usize] == key) {
            return Some(number);
        }
        let number = match self.free.pop() {
            Some(number) => {
                self.keys[number as usize] = key;
                number
            }
            None => {
                self.keys.push(key);
                self.received.iter_mut().for_each(Column::push);
                self.installed.iter_mut().for_each(|column| column.push(0));
                if self.is_dirty.len() * 64 < self.keys.len() {
                    self.is_dirty.push(0);
                }
                self.len() - 1
            }
        };
        let (keys, state) = (&self.keys, &self.hash);
        self.index.insert_unique(hash, number, |&other| state.hash_one(keys[other as usize]));
        Some(number)
    }

    /// Nothing if the number is free.
    pub(super) fn prefix(&self, number: Number) -> Option<IpNet> {
        self.keys.get(number as usize)?.prefix(self.family)
    }

    pub(super) fn installed(&self, number: Number, choice: usize) -> Installed {
        self.installed[choice][number as usize]
    }

    pub(super) fn set_installed(&mut self, number: Number, choice: usize, object: Installed) {
        self.installed[choice][number as usize] = object;
    }

    /// Its kernel routes are to be looked at again.
    pub(super) fn touch(&mut self, number: Number) {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if self.is_dirty[word] & bit == 0 {
            self.is_dirty[word] |= bit;
            self.dirty.push_back(number);
        }
    }

    /// How many are to be looked at.
    pub(super) fn touched(&self) -> usize {
        self.dirty.len()
    }

    /// The next one to be looked at.
    pub(super) fn next_touched(&mut self) -> Option<Number> {
        let number = self.dirty.pop_front()?;
        self.is_dirty[number as usize / 64] &= !(1 << (number % 64));
        // A full table leaves a queue of megabytes behind that is not needed again for weeks.
        if self.dirty.is_empty() {
            self.dirty.shrink_to(4096);
        }
        Some(number)
    }

    /// Gives the number free if nobody has a route to its prefix and the kernel has none.
    pub(super) fn release(&mut self, number: Number) {
        let at = number as usize;
        let key = self.keys[at];
        let wanted = self.received.iter().any(|column| !column.is_empty(number))
            || self.installed.iter().any(|column| column[at] != 0)
            || self.is_dirty[at / 64] & 1 << (number % 64) != 0;
        if wanted || key == Key::FREE {
            return;
        }
        if let Ok(entry) = self.index.find_entry(self.hash.hash_one(key), |&other| other == number) {
            entry.remove();
        }
        self.keys[at] = Key::FREE;
        self.free.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::column::Received;
    use super::*;

    #[test]
    fn a_key_is_its_prefix_and_a_number_is_used_again() {
        let prefixes: [IpNet; 5] = ["0.0.0.0/0", "255.255.255.255/32", "8.8.8.0/24", "::/0", "2001:db8:ffff:ff00::/56"]
            .map(|text| text.parse().expect("a prefix"));
        for prefix in &prefixes {
            let mut table = Table::new(Family::of(prefix), [false], 1);
            let number = table.find_or_insert(prefix).expect("a number");
            assert_eq!(table.prefix(number), Some(*prefix));
            assert_eq!(table.find(prefix), Some(number));
            table.received[0].put(number, 0, Received::new(0, None));
            table.release(number);
            assert_eq!(table.find(prefix), Some(number), "there is a route to it");
            table.received[0].take(number, 0);
            table.release(number);
            assert_eq!((table.find(prefix), table.prefix(number), table.prefixes()), (None, None, 0));
            assert_eq!(table.find_or_insert(prefix), Some(number));
        }
        assert_eq!(
            Table::new(Family::Ipv6, [false], 1).find_or_insert(&"2001:db8::/57".parse().expect("a prefix")),
            None
        );
    }

    #[test]
    fn what_is_touched_twice_is_looked_at_once() {
        let mut table = Table::new(Family::Ipv4, [], 0);
        for text in ["8.0.0.0/8", "9.0.0.0/8"] {
            let number = table.find_or_insert(&text.parse().expect("a prefix")).expect("a number");
            table.touch(number);
            table.touch(number);
        }
        assert_eq!([table.next_touched(), table.next_touched(), table.next_touched()], [Some(0), Some(1), None]);
        table.touch(0);
        table.release(0);
        assert_eq!(table.next_touched(), Some(0), "kept until it has been looked at");
    }
}
