//! Which received routes are let in (RFC 8212: none that no policy asks for).
//!
//! A route that can never be used is counted and forgotten at once, so that it costs no memory. One that is kept from
//! use by what may change (which prefixes are our sites' is the operator's to change at any time) is kept, marked.

use super::column::Unused;
use crate::bgp::Family;
use crate::bgp::role::Role;
use crate::bgp::update::{Attributes, Community};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What is wanted of a neighbour. Nothing, unless it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Routes to what others announce.
    pub table: bool,
    /// The default route, of both families.
    pub default: bool,
}

/// Why a route is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejected {
    /// No policy asks this neighbour for routes (RFC 8212).
    NoPolicy,
    /// A default route, and none is wanted of it.
    Default,
    /// Something else than a default route, and that alone is wanted of it.
    NotDefault,
    /// Longer than /24 or /48, which the Internet does not carry.
    TooSpecific,
    /// Shorter than any allocation.
    TooBroad,
    /// Not the Internet's address space.
    Bogon,
    /// Our own AS is in its path (RFC 4271, section 9.1.2).
    OwnAs,
    /// Its path does not begin with the neighbour's AS (RFC 4271, section 6.3).
    FirstAs,
    /// The neighbour passes on what it has no business to (RFC 9234).
    Leak,
    /// It is, or is part of, a site's prefix: the way there is ours to tell.
    OwnPrefix,
    /// The neighbour uses more next hops than are kept.
    NextHops,
    /// The neighbour has more routes to the prefix than are kept (RFC 7911).
    Paths,
    /// The AS that its path ends with may not announce the prefix (RFC 6811).
    InvalidOrigin,
}

impl From<Unused> for Rejected {
    fn from(why: Unused) -> Rejected {
        match why {
            Unused::Own => Rejected::OwnPrefix,
            Unused::InvalidOrigin => Rejected::InvalidOrigin,
        }
    }
}

impl Rejected {
    /// All of them, in the order of their counters.
    pub const ALL: [Rejected; 13] = [
        Rejected::NoPolicy,
        Rejected::Default,
        Rejected::NotDefault,
        Rejected::TooSpecific,
        Rejected::TooBroad,
        Rejected::Bogon,
        Rejected::OwnAs,
        Rejected::FirstAs,
        Rejected::Leak,
        Rejected::OwnPrefix,
        Rejected::NextHops,
        Rejected::Paths,
        Rejected::InvalidOrigin,
    ];
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rejected::NoPolicy => "no `accept` of this neighbour asks for routes (RFC 8212)",
            Rejected::Default => "a default route is not asked for: `accept` lacks \"default\"",
            Rejected::NotDefault => "only a default route is asked for: `accept` lacks \"table\"",
            Rejected::TooSpecific => "longer than /24 or /48",
            Rejected::TooBroad => "shorter than any allocation",
            Rejected::Bogon => "not the Internet's address space",
            Rejected::OwnAs => "our own AS is in its path",
            Rejected::FirstAs => "its path does not begin with the neighbour's AS",
            Rejected::Leak => "a leak (RFC 9234)",
            Rejected::OwnPrefix => "it is a site's prefix, or part of one",
            Rejected::NextHops => "the neighbour uses too many next hops",
            Rejected::Paths => "the neighbour has too many routes to the prefix",
            Rejected::InvalidOrigin => "its origin may not announce it (RFC 6811)",
        })
    }
}

/// The longest prefixes that networks take from each other (RFC 7454, section 6.1.3).
const LONGEST_IPV4: u8 = 24;
/// The same of IPv6.
const LONGEST_IPV6: u8 = 48;
/// Regional registries are given /8 of IPv4 and /12 of IPv6: nobody is given more.
const SHORTEST_IPV4: u8 = 8;
/// The same of IPv6.
const SHORTEST_IPV6: u8 = 12;

const fn v4(a: u8, b: u8, c: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), length)
}

const fn v6(a: u16, b: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), length)
}

/// What is not globally reachable (RFC 6890 and IANA's registry of special-purpose addresses), and multicast.
const BOGONS_IPV4: [Ipv4Net; 14] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];

/// All IPv6 that is global begins so.
const GLOBAL_IPV6: Ipv6Net = v6(0x2000, 0, 3);

/// Of that, what is not: benchmarks, ORCHID, documentation (RFC 3849, RFC 9637), 6to4 (RFC 7526) and the 6bone.
const BOGONS_IPV6: [Ipv6Net; 7] = [
    v6(0x2001, 0x2, 48),
    v6(0x2001, 0x10, 28),
    v6(0x2001, 0x20, 28),
    v6(0x2001, 0xdb8, 32),
    v6(0x2002, 0, 16),
    v6(0x3ffe, 0, 16),
    v6(0x3fff, 0, 20),
];

/// Why no neighbour's route to this prefix is let in, if none is.
pub(super) fn check_prefix(prefix: &IpNet, accept: Accept) -> Result<(), Rejected> {
    let length = prefix.prefix_len();
    if accept == Accept::default() {
        return Err(Rejected::NoPolicy);
    }
    match (length == 0, accept) {
        (true, Accept { default: true, .. }) => return Ok(()),
        (true, _) => return Err(Rejected::Default),
        (false, Accept { table: false, .. }) => return Err(Rejected::NotDefault),
        (false, _) => {}
    }
    let (shortest, longest, bogon) = match prefix {
        IpNet::V4(net) => (SHORTEST_IPV4, LONGEST_IPV4, BOGONS_IPV4.iter().any(|bogon| bogon.contains(net))),
        IpNet::V6(net) => {
            let bogon = !GLOBAL_IPV6.contains(net) || BOGONS_IPV6.iter().any(|bogon| bogon.contains(net));
            (SHORTEST_IPV6, LONGEST_IPV6, bogon)
        }
    };
    match length {
        _ if length < shortest => Err(Rejected::TooBroad),
        _ if bogon => Err(Rejected::Bogon),
        _ if length > longest => Err(Rejected::TooSpecific),
        _ => Ok(()),
    }
}

/// Who says it and who we are, as far as a path is judged by it.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Our AS.
    pub local_as: u32,
    /// The neighbour's.
    pub remote_as: u32,
    /// What we are to the neighbour (RFC 9234), if that was said. A route server leaves itself out of paths (RFC 7947,
    /// section 2.2.2.1).
    pub role: Option<Role>,
}

/// Why no route with these attributes is let in, if none is.
pub(super) fn check_attributes(attributes: &Attributes, session: Session) -> Result<(), Rejected> {
    let external = session.local_as != session.remote_as;
    if attributes.as_path.contains(session.local_as) {
        return Err(Rejected::OwnAs);
    }
    let route_server = session.role == Some(Role::RouteServerClient);
    if external && !route_server && attributes.as_path.first() != Some(session.remote_as) {
        return Err(Rejected::FirstAs);
    }
    let leak = |role: Role| role.ingress(attributes.only_to_customer, session.remote_as).is_err();
    if session.role.is_some_and(leak) {
        return Err(Rejected::Leak);
    }
    Ok(())
}

/// The AS that announced it first, as far as it can be told (RFC 6811, section 2): an empty path is of our own.
pub(super) fn origin(attributes: &Attributes, session: Session) -> Option<u32> {
    match attributes.as_path.segments().next() {
        None => Some(session.local_as),
        Some(_) => attributes.as_path.origin(),
    }
}

/// A route that its neighbour is about to take away (RFC 8326): used where there is no other.
pub(super) fn is_going(attributes: &Attributes) -> bool {
    attributes.communities.contains(&Community::GRACEFUL_SHUTDOWN)
}

/// Prefixes of which nothing is learnt: those of our sites. Looked up by every length that one of them has, which are
/// few, so that ten thousand sites cost a full table no more than one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    prefixes: HashSet<IpNet>,
    /// Of each family, ascending.
    lengths: [Vec<u8>; 2],
}

impl Own {
    /// Of these.
    pub(super) fn new(prefixes: impl IntoIterator<Item = IpNet>) -> Own {
        let mut own = Own::default();
        for prefix in prefixes {
            let lengths = &mut own.lengths[Family::of(&prefix) as usize];
            if let Err(place) = lengths.binary_search(&prefix.prefix_len()) {
                lengths.insert(place, prefix.prefix_len());
            }
            own.prefixes.insert(prefix.trunc());
        }
        own
    }

    /// Is it one of them, or part of one?
    pub(super) fn covers(&self, prefix: &IpNet) -> bool {
        let lengths = &self.lengths[Family::of(prefix) as usize];
        let mut lengths = lengths.iter().take_while(|&&length| length <= prefix.prefix_len());
        lengths.any(|&length| IpNet::new(prefix.addr(), length).is_ok_and(|net| self.prefixes.contains(&net.trunc())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::update::AsPath;

    const ALL: Accept = Accept { table: true, default: true };

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn nothing_without_a_policy_and_only_what_it_asks_for() {
        for prefix in ["0.0.0.0/0", "::/0", "8.8.8.0/24"] {
            assert_eq!(check_prefix(&net(prefix), Accept::default()), Err(Rejected::NoPolicy));
        }
        let table = Accept { table: true, default: false };
        assert_eq!(check_prefix(&net("::/0"), table), Err(Rejected::Default));
        assert_eq!(check_prefix(&net("8.8.8.0/24"), table), Ok(()));
        let default = Accept { table: false, default: true };
        assert_eq!(check_prefix(&net("0.0.0.0/0"), default), Ok(()));
        assert_eq!(check_prefix(&net("8.8.8.0/24"), default), Err(Rejected::NotDefault));
    }

    #[test]
    fn bounds_of_length_and_space() {
        for (prefix, verdict) in [
            ("8.8.8.0/24", Ok(())),
            ("8.8.8.0/25", Err(Rejected::TooSpecific)),
            ("8.0.0.0/8", Ok(())),
            ("8.0.0.0/7", Err(Rejected::TooBroad)),
            ("100.128.0.0/10", Ok(())),
            ("100.64.1.0/24", Err(Rejected::Bogon)),
            ("10.1.2.3/32", Err(Rejected::Bogon)),
            ("2600::/12", Ok(())),
            ("2a00::/11", Err(Rejected::TooBroad)),
            ("2a00:1450::/48", Ok(())),
            ("2a00:1450::/49", Err(Rejected::TooSpecific)),
            ("2001:db8:1::/48", Err(Rejected::Bogon)),
            ("fd00::/16", Err(Rejected::Bogon)),
        ] {
            assert_eq!(check_prefix(&net(prefix), ALL), verdict, "{prefix}");
        }
    }

    #[test]
    fn paths_begin_with_the_neighbour_and_have_not_been_here() {
        let session = Session { local_as: 64500, remote_as: 64501, role: None };
        let attributes = |path: &[u32]| Attributes { as_path: AsPath::sequence(path), ..Attributes::default() };
        assert_eq!(check_attributes(&attributes(&[64501, 1]), session), Ok(()));
        assert_eq!(check_attributes(&attributes(&[64501, 64500, 1]), session), Err(Rejected::OwnAs));
        assert_eq!(check_attributes(&attributes(&[2, 1]), session), Err(Rejected::FirstAs));
        assert_eq!(check_attributes(&attributes(&[]), session), Err(Rejected::FirstAs));
        assert_eq!(
            check_attributes(&attributes(&[2, 1]), Session { role: Some(Role::RouteServerClient), ..session }),
            Ok(())
        );
        assert_eq!(check_attributes(&attributes(&[]), Session { remote_as: 64500, ..session }), Ok(()));
        let leaked = Attributes { only_to_customer: Some(7), ..attributes(&[64501, 7]) };
        assert_eq!(check_attributes(&leaked, session), Ok(()));
        assert_eq!(check_attributes(&leaked, Session { role: Some(Role::Peer), ..session }), Err(Rejected::Leak));
    }

    #[test]
    fn a_site_s_prefix_covers_itself_and_its_parts() {
        let own = Own::new(["198.51.100.0/24", "198.0.0.0/16", "2001:db8:100::/48"].map(net));
        for (prefix, covered) in [
            ("198.51.100.0/24", true),
            ("198.51.100.128/25", true),
            ("198.51.0.0/16", false),
            ("198.0.7.0/24", true),
            ("0.0.0.0/0", false),
            ("2001:db8:100:1::/64", true),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(own.covers(&net(prefix)), covered, "{prefix}");
        }
    }
}
