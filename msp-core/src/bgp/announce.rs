//! What is announced: which sites are to be, and the UPDATEs that bring a neighbour from what it has to what it should
//! have.
//!
//! The set that leaves is a function of configuration, of the sites' liveness and of the withdraw timer, and of nothing
//! else: [`Liveness::wanted`] draws on the configured prefixes of sites alone, so a default or a learnt route has no
//! way in.

use super::message::{AS_TRANS, MAX_MESSAGE};
use super::session::{Config, Negotiated};
use super::{Families, Family};
use bgpkit_parser::models::{
    Afi, AsPath, AsnLength, AttrFlags, Attribute, AttributeValue, BgpMessage, BgpUpdateMessage, NetworkPrefix, Nlri,
    Origin, Safi,
};
use bytes::Bytes;
use ipnet::IpNet;
use proto::{Instant, PeerId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// LOCAL_PREF on internal sessions: the value that every implementation takes for neutral.
const LOCAL_PREF: u32 = 100;

/// One site, as far as announcing goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) id: PeerId,
    pub(crate) prefixes: Vec<IpNet>,
    /// How long after its last path went down it is withdrawn; never, if none.
    pub(crate) withdraw_after: Option<Duration>,
}

/// Whether a site is announced, and why or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No path has been up since the core started or the site was added.
    NeverUp,
    /// At least one path is up.
    Up,
    /// No path is up since then, and it is announced still.
    Lingering { since: Instant },
    /// No path is up since then, for so long that it was withdrawn.
    Withdrawn { since: Instant },
}

impl Standing {
    /// Is it announced?
    pub(crate) fn announced(self) -> bool {
        matches!(self, Standing::Up | Standing::Lingering { .. })
    }
}

/// The sites' liveness: announced at once when the first path is up, withdrawn some time after the last one went down.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    sites: BTreeMap<PeerId, (Site, Standing)>,
}

impl Liveness {
    /// Puts another set of sites in force. What stays keeps its standing; what goes is wanted no more at once.
    pub(crate) fn set_sites(&mut self, now: Instant, sites: impl IntoIterator<Item = Site>) {
        let mut old = std::mem::take(&mut self.sites);
        for site in sites {
            let standing = old.remove(&site.id).map_or(Standing::NeverUp, |(_, standing)| standing);
            self.sites.insert(site.id, (site, standing));
        }
        // A shorter time to withdrawal may have passed already.
        self.handle_timeout(now);
    }

    /// The first path of a site came up.
    pub(crate) fn reachable(&mut self, id: PeerId) {
        if let Some((_, standing)) = self.sites.get_mut(&id) {
            *standing = Standing::Up;
        }
    }

    /// The last path of a site went down.
    pub(crate) fn unreachable(&mut self, now: Instant, id: PeerId) {
        if let Some((_, standing @ Standing::Up)) = self.sites.get_mut(&id) {
            *standing = Standing::Lingering { since: now };
        }
        self.handle_timeout(now);
    }

    /// Withdraws what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for (site, standing) in self.sites.values_mut() {
            if let (Standing::Lingering { since }, Some(after)) = (*standing, site.withdraw_after)
                && since + after <= now
            {
                *standing = Standing::Withdrawn { since };
            }
        }
    }

    /// When the next site is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = |(site, standing): &(Site, Standing)| match standing {
            Standing::Lingering { since } => Some(*since + site.withdraw_after?),
            _ => None,
        };
        self.sites.values().filter_map(due).min()
    }

    /// A site's standing.
    pub(crate) fn standing(&self, id: PeerId) -> Option<Standing> {
        self.sites.get(&id).map(|&(_, standing)| standing)
    }

    /// The prefixes to be announced.
    pub(crate) fn wanted(&self) -> BTreeSet<IpNet> {
        let announced = self.sites.values().filter(|(_, standing)| standing.announced());
        announced.flat_map(|(site, _)| site.prefixes.iter().map(IpNet::trunc)).collect()
    }
}

/// What is said of every route to one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteAttributes {
    pub(crate) local_as: u32,
    pub(crate) internal: bool,
    pub(crate) four_octet_as: bool,
    /// IPv4 prefixes are announced only if there is one.
    pub(crate) next_hop_v4: Option<Ipv4Addr>,
    /// IPv6 prefixes are announced only if there is one.
    pub(crate) next_hop_v6: Option<Ipv6Addr>,
    /// What both ends speak.
    pub(crate) families: Families,
}

impl RouteAttributes {
    /// For a session just established from `local` (its own address, the next hop where none is configured).
    pub(crate) fn new(
        config: &Config,
        negotiated: &Negotiated,
        (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        local: IpAddr,
    ) -> RouteAttributes {
        let (local_v4, local_v6) = match local.to_canonical() {
            IpAddr::V4(address) => (Some(address), None),
            // A link-local address is no next hop for others (RFC 2545, section 3).
            IpAddr::V6(address) => (None, Some(address).filter(|address| !address.is_unicast_link_local())),
        };
        RouteAttributes {
            local_as: config.local_as,
            internal: config.internal(),
            four_octet_as: negotiated.four_octet_as,
            next_hop_v4: v4.or(local_v4),
            next_hop_v6: v6.or(local_v6),
            families: negotiated.families,
        }
    }

    /// Why no prefix of this family can be announced, if none can.
    pub(crate) fn why_not(&self, family: Family) -> Option<&'static str> {
        match family {
            _ if !self.families.contains(family) => Some("the neighbour does not speak this address family"),
            Family::Ipv4 if self.next_hop_v4.is_none() => Some("there is no IPv4 next hop: set next_hop_v4"),
            Family::Ipv6 if self.next_hop_v6.is_none() => Some("there is no IPv6 next hop: set next_hop_v6"),
            _ => None,
        }
    }

    /// ORIGIN, AS_PATH and what else goes with every route, in the order of their types (RFC 4271, section 5).
    fn values(&self, next_hop: Option<Ipv4Addr>) -> Vec<AttributeValue> {
        let path = |asn| if self.internal { AsPath::default() } else { AsPath::from_sequence([asn]) };
        let fits = self.four_octet_as || self.local_as <= u32::from(u16::MAX);
        let mut values = vec![
            AttributeValue::Origin(Origin::IGP),
            AttributeValue::AsPath(path(if fits { self.local_as } else { AS_TRANS.into() })),
        ];
        values.extend(next_hop.map(|address| AttributeValue::NextHop(address.into())));
        if self.internal {
            values.push(AttributeValue::LocalPreference(LOCAL_PREF));
        } else if !fits {
            // RFC 6793, section 4.2.2: the neighbour reads two octets, and passes the whole path on unread.
            values.push(AttributeValue::As4Path(path(self.local_as)));
        }
        values
    }
}

/// What one neighbour has been told, and what it is to be told yet.
#[derive(Debug, Default)]
pub(crate) struct Advertised {
    told: BTreeSet<IpNet>,
    /// Told, and to be withdrawn.
    surplus: BTreeSet<IpNet>,
    /// Not told, and to be announced.
    missing: BTreeSet<IpNet>,
}

impl Advertised {
    /// The neighbour has forgotten everything: the session ended.
    pub(crate) fn clear(&mut self) {
        *self = Advertised::default();
    }

    /// The neighbour wants a family again (RFC 2918); to be followed by [`Advertised::want`].
    pub(crate) fn forget(&mut self, family: Family) {
        self.told.retain(|prefix| Family::of(prefix) != family);
    }

    /// What it has been told.
    pub(crate) fn told(&self) -> &BTreeSet<IpNet> {
        &self.told
    }

    /// It is to be told this, as far as it can be, and nothing else.
    pub(crate) fn want(&mut self, wanted: &BTreeSet<IpNet>, attributes: &RouteAttributes) {
        let can = |prefix: &&IpNet| attributes.why_not(Family::of(prefix)).is_none();
        self.missing = wanted.difference(&self.told).filter(can).copied().collect();
        self.surplus = self.told.iter().filter(|prefix| !wanted.contains(prefix) || !can(prefix)).copied().collect();
    }

    /// The next UPDATE, withdrawals first; nothing if the neighbour has been told everything. As full as the message's
    /// limit allows, so that ten thousand sites are some twenty messages.
    pub(crate) fn next_update(&mut self, attributes: &RouteAttributes) -> Option<Bytes> {
        if let Some(family) = self.surplus.first().map(Family::of) {
            let gone = fill(&self.surplus, family, withdrawal(Vec::new(), family), attributes);
            for prefix in &gone {
                self.surplus.remove(prefix);
                self.told.remove(prefix);
            }
            return Some(encode(withdrawal(gone, family), attributes));
        }
        let family = self.missing.first().map(Family::of)?;
        let new = fill(&self.missing, family, announcement(Vec::new(), family, attributes), attributes);
        for prefix in &new {
            self.missing.remove(prefix);
            self.told.insert(*prefix);
        }
        Some(encode(announcement(new, family, attributes), attributes))
    }
}

/// As many prefixes of the family as fit into a message that has this much without them.
fn fill(
    prefixes: &BTreeSet<IpNet>,
    family: Family,
    empty: BgpUpdateMessage,
    attributes: &RouteAttributes,
) -> Vec<IpNet> {
    let mut left = MAX_MESSAGE - encode(empty, attributes).len();
    let of_family = prefixes.iter().copied().filter(|prefix| Family::of(prefix) == family);
    of_family
        .map_while(|prefix| {
            left = left.checked_sub(1 + usize::from(prefix.prefix_len().div_ceil(8)))?;
            Some(prefix)
        })
        .collect()
}

fn nlri(prefixes: Vec<IpNet>) -> Vec<NetworkPrefix> {
    prefixes.into_iter().map(|prefix| NetworkPrefix::new(prefix, None)).collect()
}

fn withdrawal(prefixes: Vec<IpNet>, family: Family) -> BgpUpdateMessage {
    match family {
        Family::Ipv4 => BgpUpdateMessage { withdrawn_prefixes: nlri(prefixes), ..Default::default() },
        Family::Ipv6 => BgpUpdateMessage {
            attributes: [multiprotocol(AttributeValue::MpUnreachNlri(ipv6_nlri(prefixes, None)))].into_iter().collect(),
            ..Default::default()
        },
    }
}

fn announcement(prefixes: Vec<IpNet>, family: Family, attributes: &RouteAttributes) -> BgpUpdateMessage {
    match family {
        Family::Ipv4 => BgpUpdateMessage {
            attributes: attributes.values(attributes.next_hop_v4).into_iter().collect(),
            announced_prefixes: nlri(prefixes),
            ..Default::default()
        },
        Family::Ipv6 => {
            let reach = multiprotocol(AttributeValue::MpReachNlri(ipv6_nlri(prefixes, attributes.next_hop_v6)));
            // RFC 7606, section 5.1: first, so that a reader finds the prefixes whatever is wrong with the rest.
            let attributes = std::iter::once(reach).chain(attributes.values(None).into_iter().map(Attribute::from));
            BgpUpdateMessage { attributes: attributes.collect(), ..Default::default() }
        }
    }
}

/// Both MP attributes are optional and not transitive (RFC 4760); a list of prefixes outgrows one octet of length.
fn multiprotocol(value: AttributeValue) -> Attribute {
    Attribute { value, flag: AttrFlags::OPTIONAL | AttrFlags::EXTENDED }
}

fn ipv6_nlri(prefixes: Vec<IpNet>, next_hop: Option<Ipv6Addr>) -> Nlri {
    Nlri {
        afi: Afi::Ipv6,
        safi: Safi::Unicast,
        next_hop: next_hop.map(|address| IpAddr::V6(address).into()),
        prefixes: nlri(prefixes),
        labeled_prefixes: None,
        link_state_nlris: None,
        flowspec_nlris: None,
    }
}

fn encode(update: BgpUpdateMessage, attributes: &RouteAttributes) -> Bytes {
    let length = if attributes.four_octet_as { AsnLength::Bits32 } else { AsnLength::Bits16 };
    BgpMessage::Update(update).encode(length).expect("the prefixes were counted to fit the message")
}

#[cfg(test)]
mod tests;
