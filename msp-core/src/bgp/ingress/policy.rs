//! What an operator wants said of which route to whom: rules, of which the first that fits counts.

use super::Said;
use crate::bgp::update::{Community, ExtendedCommunity, LargeCommunity};
use ipnet::IpNet;
use proto::MAX_SLOTS;
use serde::Deserialize;
use std::sync::Arc;

/// A set of uplink slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots(u8);

const _: () = assert!(MAX_SLOTS <= u8::BITS as usize, "a bit for each slot");

impl Slots {
    pub(crate) const NONE: Slots = Slots(0);

    /// The set with a slot, or without it.
    pub(crate) fn with(self, slot: u8, inside: bool) -> Slots {
        // A slot above 7 is nobody's.
        let bit = 1u8.checked_shl(slot.into()).unwrap_or(0);
        Slots(if inside { self.0 | bit } else { self.0 & !bit })
    }

    pub(crate) fn or(self, other: Slots) -> Slots {
        Slots(self.0 | other.0)
    }

    fn and(self, other: Slots) -> Slots {
        Slots(self.0 & other.0)
    }

    fn count(self) -> u32 {
        self.0.count_ones()
    }
}

impl FromIterator<u8> for Slots {
    fn from_iter<T: IntoIterator<Item = u8>>(slots: T) -> Slots {
        slots.into_iter().fold(Slots::NONE, |set, slot| set.with(slot, true))
    }
}

/// A name, or the beginning of names: `home-*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(pub(crate) String);

impl Pattern {
    pub(crate) fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }

    /// The name, if it stands for one alone.
    pub(crate) fn exact(&self) -> Option<&str> {
        (!self.0.ends_with('*')).then_some(&self.0)
    }
}

/// What must be true of a site's paths, all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct When {
    /// No other path is up than some of these.
    pub(crate) only: Option<Slots>,
    /// One of these is up.
    pub(crate) any: Option<Slots>,
    /// None of these is up.
    pub(crate) none: Option<Slots>,
    /// So many are up.
    pub(crate) at_least: Option<u32>,
    /// No more than so many are up.
    pub(crate) at_most: Option<u32>,
}

impl When {
    pub(super) fn holds(&self, up: Slots) -> bool {
        self.only.is_none_or(|only| up.and(only) == up)
            && self.any.is_none_or(|any| up.and(any) != Slots::NONE)
            && self.none.is_none_or(|none| up.and(none) == Slots::NONE)
            && self.at_least.is_none_or(|least| up.count() >= least)
            && self.at_most.is_none_or(|most| up.count() <= most)
    }
}

/// Which routes stand for a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Announce {
    /// None.
    Nothing,
    /// Its own prefixes.
    Exact,
    /// The aggregates that they are within.
    Aggregate,
    /// Both.
    Both,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The sites that it is of; all of them, if neither these nor aggregates are given.
    pub(crate) sites: Option<Vec<Pattern>>,
    /// The aggregates that it is of.
    pub(crate) aggregates: Option<Vec<Pattern>>,
    /// The places of the neighbours that it is about; all of them, if none are given.
    pub(crate) neighbors: Option<Vec<usize>>,
    pub(crate) when: When,
    /// Without it, a prefix within an aggregate is announced as that, and any other as it is.
    pub(crate) announce: Option<Announce>,
    pub(crate) said: Arc<Said>,
}

impl Rule {
    fn is_about(&self, neighbor: usize) -> bool {
        self.neighbors.as_ref().is_none_or(|neighbors| neighbors.contains(&neighbor))
    }

    fn is_of_site(&self, name: &str, up: Slots) -> bool {
        let of = match (&self.sites, &self.aggregates) {
            (Some(sites), _) => sites.iter().any(|pattern| pattern.matches(name)),
            (None, aggregates) => aggregates.is_none(),
        };
        of && self.when.holds(up)
    }

    fn is_of_aggregate(&self, name: &str) -> bool {
        match (&self.aggregates, &self.sites) {
            (Some(aggregates), _) => aggregates.iter().any(|pattern| pattern.matches(name)),
            // Conditions are of a site's paths, and an aggregate has none.
            (None, sites) => sites.is_none() && self.when == When::default(),
        }
    }
}

/// A route that stands for all sites within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aggregate {
    pub(crate) name: String,
    pub(crate) prefix: IpNet,
    /// It is announced whether or not a site within it can be reached.
    pub(crate) always: bool,
}

/// The whole policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) rules: Vec<Rule>,
    /// None of them overlaps another.
    pub(crate) aggregates: Vec<Aggregate>,
}

impl Policy {
    /// What is said of a site with these paths up, and its rule.
    pub(super) fn of_site(&self, name: &str, up: Slots, neighbor: usize) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.is_about(neighbor) && rule.is_of_site(name, up))
    }

    /// What is said of an aggregate.
    pub(super) fn of_aggregate(&self, name: &str, neighbor: usize) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.is_about(neighbor) && rule.is_of_aggregate(name))
    }

    /// The aggregate that a prefix is within.
    pub(super) fn aggregate_of(&self, prefix: &IpNet) -> Option<usize> {
        self.aggregates.iter().position(|aggregate| aggregate.prefix.contains(prefix))
    }
}

/// A community of any of the three kinds, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnyCommunity {
    Standard(Community),
    Extended(ExtendedCommunity),
    Large(LargeCommunity),
}

impl AnyCommunity {
    /// `64500:120` or a well-known name; `64500:1:2`; `rt:64500:1`, `soo:…` (RFC 4360, section 4 and 5; RFC 5668), or any
    /// extended one as 16 hexadecimal digits after `0x`.
    pub(crate) fn read(text: &str) -> Option<AnyCommunity> {
        let well_known = [
            ("no-export", Community::NO_EXPORT),
            ("no-advertise", Community::NO_ADVERTISE),
            ("graceful-shutdown", Community::GRACEFUL_SHUTDOWN),
        ];
        if let Some((_, community)) = well_known.into_iter().find(|(name, _)| *name == text) {
            return Some(AnyCommunity::Standard(community));
        }
        if let Some(octets) = text.strip_prefix("0x").filter(|digits| digits.len() == 16) {
            let number = u64::from_str_radix(octets, 16).ok()?;
            return Some(AnyCommunity::Extended(ExtendedCommunity(number.to_be_bytes())));
        }
        let parts: Vec<&str> = text.split(':').collect();
        Some(match *parts {
            [kind @ ("rt" | "soo"), administrator, value] => {
                let subtype = if kind == "rt" { 2 } else { 3 };
                AnyCommunity::Extended(ExtendedCommunity(extended(subtype, administrator, value)?))
            }
            [administrator, value] => {
                let (administrator, value): (u16, u16) = (administrator.parse().ok()?, value.parse().ok()?);
                AnyCommunity::Standard(Community(u32::from(administrator) << 16 | u32::from(value)))
            }
            [administrator, first, second] => AnyCommunity::Large(LargeCommunity([
                administrator.parse().ok()?,
                first.parse().ok()?,
                second.parse().ok()?,
            ])),
            _ => return None,
        })
    }
}

/// ```text
/// | 0, an AS of two octets  | subtype | AS (2)      | value (4) |      RFC 4360, section 3.1
/// | 1, an address           | subtype | address (4) | value (2) |      section 3.2
/// | 2, an AS of four octets | subtype | AS (4)      | value (2) |      RFC 5668, section 2
/// ```
fn extended(subtype: u8, administrator: &str, value: &str) -> Option<[u8; 8]> {
    let value: u32 = value.parse().ok()?;
    let (kind, administrator) = match administrator.parse::<u32>() {
        Ok(asn) => match u16::try_from(asn) {
            Ok(asn) => {
                let (a, v) = (asn.to_be_bytes(), value.to_be_bytes());
                return Some([0, subtype, a[0], a[1], v[0], v[1], v[2], v[3]]);
            }
            Err(_) => (2, asn.to_be_bytes()),
        },
        Err(_) => (1, administrator.parse::<std::net::Ipv4Addr>().ok()?.octets()),
    };
    let ([a, b, c, d], [v, w]) = (administrator, u16::try_from(value).ok()?.to_be_bytes());
    Some([kind, subtype, a, b, c, d, v, w])
}
