//! The core's BGP speaker: it tells its neighbours which prefixes can be reached here, and reads what they say.
//!
//! | file | what it decides | knows of time, sockets |
//! | --- | --- | --- |
//! | [`message`] | where a message begins and ends; how ours are written | neither |
//! | [`open`], [`role`] | what the two ends can do and are to each other | neither |
//! | [`update`], `attribute` | what a received UPDATE says, and what becomes of a malformed one (RFC 7606) | neither |
//! | [`origin`] | which AS may announce which prefix (RFC 6811) | neither |
//! | [`rib`] | which received routes are let in, which is best, and what the kernel is told of it | neither |
//! | `connection` | the state machine of one connection, from its OPEN on (RFC 4271, section 8) | time, as an argument |
//! | `session` | the neighbour: when to connect, which connection stays, what is stale | time, as an argument |
//! | `mrt` | how received routes are dumped for other programs (RFC 6396) | neither |
//! | `routing` | nothing: the thread that has the routes, and the kernel's | both |
//! | `announce` | what is to be announced, and the UPDATEs that bring a neighbour there | time, as an argument |
//! | `socket` | nothing: it listens, connects, and sets what protects a connection | sockets |
//! | `transport` | nothing: it owns the TCP connections of a neighbour and moves bytes | both |

pub(crate) mod announce;
mod attribute;
mod connection;
pub mod message;
pub(crate) mod mrt;
pub mod open;
pub mod origin;
pub mod rib;
pub mod role;
pub(crate) mod routing;
pub(crate) mod session;
pub(crate) mod socket;
pub(crate) mod transport;
pub mod update;

/// An address family that a route can be of; always unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4,
    /// AFI 2, SAFI 1.
    Ipv6,
}

impl Family {
    /// The family that AFI and SAFI name, if it is one of ours.
    pub fn from_afi_safi(afi: u16, safi: u8) -> Option<Family> {
        match (afi, safi) {
            (1, 1) => Some(Family::Ipv4),
            (2, 1) => Some(Family::Ipv6),
            _ => None,
        }
    }

    /// The family of a prefix.
    pub fn of(prefix: &ipnet::IpNet) -> Family {
        match prefix {
            ipnet::IpNet::V4(_) => Family::Ipv4,
            ipnet::IpNet::V6(_) => Family::Ipv6,
        }
    }

    /// AFI, of which the first octet is zero, and SAFI.
    pub(crate) const fn afi_safi(self) -> (u8, u8) {
        match self {
            Family::Ipv4 => (1, 1),
            Family::Ipv6 => (2, 1),
        }
    }

    /// How many bits an address has.
    pub const fn bits(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }
}

/// A set of address families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4 unicast.
    pub ipv4: bool,
    /// IPv6 unicast.
    pub ipv6: bool,
}

impl Families {
    /// None of them.
    pub const NONE: Families = Families { ipv4: false, ipv6: false };
    /// Both.
    pub const ALL: Families = Families { ipv4: true, ipv6: true };

    /// Is it one of them?
    pub const fn contains(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }

    /// Adds one.
    pub fn insert(&mut self, family: Family) {
        match family {
            Family::Ipv4 => self.ipv4 = true,
            Family::Ipv6 => self.ipv6 = true,
        }
    }

    /// Takes one away.
    pub fn remove(&mut self, family: Family) {
        match family {
            Family::Ipv4 => self.ipv4 = false,
            Family::Ipv6 => self.ipv6 = false,
        }
    }

    /// The set with one more.
    pub fn with(mut self, family: Family) -> Families {
        self.insert(family);
        self
    }

    /// Those of both sets.
    pub const fn and(self, other: Families) -> Families {
        Families { ipv4: self.ipv4 && other.ipv4, ipv6: self.ipv6 && other.ipv6 }
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        [Family::Ipv4, Family::Ipv6].into_iter().filter(move |&family| self.contains(family))
    }
}
