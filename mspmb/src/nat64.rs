//! IPv4 addresses inside IPv6 ones, for an access network that has only IPv6 (RFC 6052), and how its prefix for them is
//! found out (RFC 7050).

use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The name whose IPv6 addresses, made by the resolver of a network with NAT64, show its prefix (RFC 7050, section 3).
pub(crate) const NAME: &str = "ipv4only.arpa";
/// The addresses that the name has, and so those found within (RFC 7050, section 2.2).
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// The lengths that a prefix may have (RFC 6052, section 2.2).
const LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// The prefix of a NAT64.
///
/// ```text
///     octet  0        4    5    6    7    8    9   10   11   12       15
///     +-----------------+--------------------+----+--------------------+
/// /32 | prefix          | v4 (32)            | 0  | suffix (0)         |
/// /40 | prefix          |    | v4 (24)       | 0  | (8)| suffix        |
/// /48 | prefix          |         | v4 (16)  | 0  | (16)    | suffix   |
/// /56 | prefix          |              |(8)  | 0  |  v4 (24)     |     |
/// /64 | prefix          |                    | 0  |   v4 (32)          |
/// /96 | prefix                                         | v4 (32)       |
///     +-----------------+--------------------+----+--------------------+
/// ```
///
/// (RFC 6052, section 2.2; octet 8 is zero in all of them.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pref64 {
    address: Ipv6Addr,
    length: u8,
}

impl Pref64 {
    /// What networks use that have no prefix of their own (RFC 6052, section 2.1).
    pub(crate) const WELL_KNOWN: Pref64 = Pref64 { address: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), length: 96 };

    /// A prefix that may be one; the error completes "nat64: …".
    pub(crate) fn new(prefix: IpNet) -> Result<Self, String> {
        match prefix.network() {
            IpAddr::V6(address) if LENGTHS.contains(&prefix.prefix_len()) && address.octets()[8] == 0 => {
                Ok(Pref64 { address, length: prefix.prefix_len() })
            }
            _ => Err(format!(
                "{prefix} is no prefix of a NAT64: expected one of IPv6 with a length of 32, 40, 48, 56, 64 or 96, such \
                 as 64:ff9b::/96"
            )),
        }
    }

    /// The octets that carry the IPv4 address.
    fn places(self) -> impl Iterator<Item = usize> {
        (usize::from(self.length / 8)..16).filter(|&place| place != 8).take(4)
    }

    /// The address by which an IPv4 host is reached.
    pub(crate) fn embed(self, address: Ipv4Addr) -> Ipv6Addr {
        let mut octets = self.address.octets();
        for (place, octet) in self.places().zip(address.octets()) {
            octets[place] = octet;
        }
        octets.into()
    }

    /// The IPv4 host that is reached by an address, if it is one of this prefix.
    pub(crate) fn extract(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = address.octets();
        let mut inner = [0; 4];
        for (octet, place) in inner.iter_mut().zip(self.places()) {
            *octet = octets[place];
        }
        let inner = Ipv4Addr::from(inner);
        // What comes behind the address is zero in what a NAT64 makes; anything else is not of its making.
        (self.embed(inner) == address).then_some(inner)
    }

    /// The prefix that shows in an answer for [`NAME`]: where one of the well-known addresses stands. The longest
    /// prefix is looked for first: it leaves the fewest octets to chance.
    pub(crate) fn discover(answer: Ipv6Addr) -> Option<Self> {
        LENGTHS.into_iter().find_map(|length| {
            let mut octets = answer.octets();
            octets[usize::from(length / 8)..].fill(0);
            let prefix = Pref64 { address: octets.into(), length };
            let found = prefix.extract(answer).is_some_and(|inner| WELL_KNOWN.contains(&inner));
            (found && octets[8] == 0).then_some(prefix)
        })
    }
}

impl fmt::Display for Pref64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Pref64 {
        Pref64::new(text.parse().expect("a prefix")).expect("one of a NAT64")
    }

    /// RFC 6052, section 2.4, tables 2 and 3.
    const EXAMPLES: [(&str, &str); 7] = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn the_examples_of_rfc_6052() {
        let inner = Ipv4Addr::new(192, 0, 2, 33);
        for (text, expected) in EXAMPLES {
            let expected: Ipv6Addr = expected.parse().expect("an address");
            assert_eq!(prefix(text).embed(inner), expected, "{text}");
            assert_eq!(prefix(text).extract(expected), Some(inner), "{text}");
        }
    }

    #[test]
    fn the_prefix_of_every_length_is_found_in_the_answer() {
        for (text, _) in EXAMPLES {
            for well_known in WELL_KNOWN {
                let found = Pref64::discover(prefix(text).embed(well_known));
                assert_eq!(found.map(|found| found.to_string()), Some(text.to_owned()));
            }
        }
        for other in ["2001:db8::1", "2001:db8::c000:ac", "::", "64:ff9b::1.2.3.4"] {
            assert_eq!(Pref64::discover(other.parse().expect("an address")), None, "{other}");
        }
    }

    #[test]
    fn an_address_that_no_nat64_made_is_not_taken_for_one() {
        for (text, address) in [
            ("64:ff9b::/96", "2001:db8::192.0.2.33"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:1c0:2:2100::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:1"),
        ] {
            assert_eq!(prefix(text).extract(address.parse().expect("an address")), None, "{text} {address}");
        }
    }

    #[test]
    fn only_what_rfc_6052_allows_is_a_prefix() {
        for text in ["64:ff9b::/95", "192.0.2.0/24", "::/0", "2001:db8:0:0:100::/96"] {
            let error = Pref64::new(text.parse().expect("a prefix")).expect_err("it is none");
            assert!(error.starts_with(text) && error.contains("64:ff9b::/96"), "{error}");
        }
    }
}
