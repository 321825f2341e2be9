//! Which peer has an address: longest match for destinations, and the check that a source belongs to its sender
//! (BCP 38: RFC 2827).

use crate::config::PeerConfig;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use std::net::IpAddr;

/// Prefixes and what has them.
#[derive(Clone)]
pub(crate) struct Routes<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Routes { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<T: Copy> Routes<T> {
    pub(crate) fn insert(&mut self, prefix: IpNet, value: T) {
        match prefix {
            IpNet::V4(p) => self.v4.insert(p.trunc(), value),
            IpNet::V6(p) => self.v6.insert(p.trunc(), value),
        };
    }

    /// What has `address`, by longest match.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::from(a)).map(|(_, value)| *value),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::from(a)).map(|(_, value)| *value),
        }
    }
}

/// The routes to a set of peers; the value is what `index` says of each.
pub(crate) fn to_peers<'a, T: Copy>(
    peers: impl IntoIterator<Item = &'a PeerConfig>,
    index: impl Fn(&PeerConfig) -> T,
) -> Routes<T> {
    let mut routes = Routes::default();
    for peer in peers {
        for &prefix in &peer.prefixes {
            routes.insert(prefix, index(peer));
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let mut routes = Routes::default();
        routes.insert("0.0.0.0/0".parse().expect("a prefix"), 0);
        routes.insert("198.51.100.0/24".parse().expect("a prefix"), 1);
        routes.insert("198.51.100.128/25".parse().expect("a prefix"), 2);
        routes.insert("2001:db8::/32".parse().expect("a prefix"), 3);
        for (address, owner) in [
            ("192.0.2.1", Some(0)),
            ("198.51.100.1", Some(1)),
            ("198.51.100.200", Some(2)),
            ("2001:db8::1", Some(3)),
            ("2001:db9::1", None),
        ] {
            assert_eq!(routes.lookup(address.parse().expect("an address")), owner, "{address}");
        }
    }
}
