//! What is announced: which sites are to be, and the UPDATEs that bring a neighbour from what it has to what it should
//! have.
//!
//! The set that leaves is a function of configuration, of the sites' liveness and of the withdraw timer, and of nothing
//! else: [`Liveness::wanted`] draws on the configured prefixes of sites alone, so a default or a learnt route has no
//! way in.

use super::message::{AS_TRANS, Refresh};
use super::session::{Config, Negotiated};
use super::update::Community;
use super::{Families, Family};
use bgpkit_parser::models::{
    Afi, AsPath, Asn, AsnLength, AttrFlags, Attribute, AttributeValue, BgpMessage, BgpUpdateMessage,
    Community as WireCommunity, NetworkPrefix, Nlri, Origin, Safi,
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
    /// IPv4 prefixes may go by the IPv6 next hop (RFC 8950).
    pub(crate) extended_next_hop: bool,
    /// The longest message.
    pub(crate) max_message: usize,
    /// The AS that lets the routes go to customers only (RFC 9234).
    pub(crate) only_to_customer: Option<u32>,
    /// The routes will go soon: others are to be preferred from now on (RFC 8326).
    pub(crate) graceful_shutdown: bool,
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
            extended_next_hop: negotiated.extended_next_hop,
            max_message: negotiated.max_message,
            // Our own routes have none yet, so none of them can be a leak.
            only_to_customer: config.role.and_then(|role| role.egress(None, config.local_as).ok()).flatten(),
            graceful_shutdown: false,
        }
    }

    /// Where packets for prefixes of this family go.
    fn next_hop(&self, family: Family) -> Option<IpAddr> {
        let (v4, v6) = (self.next_hop_v4.map(IpAddr::V4), self.next_hop_v6.map(IpAddr::V6));
        match family {
            Family::Ipv4 if self.extended_next_hop => v4.or(v6),
            Family::Ipv4 => v4,
            Family::Ipv6 => v6,
        }
    }

    /// Why no prefix of this family can be announced, if none can.
    pub(crate) fn why_not(&self, family: Family) -> Option<&'static str> {
        match family {
            _ if !self.families.contains(family) => Some("the neighbour does not speak this address family"),
            _ if self.next_hop(family).is_some() => None,
            Family::Ipv4 => Some("there is no IPv4 next hop: set next_hop_v4"),
            Family::Ipv6 => Some("there is no IPv6 next hop: set next_hop_v6"),
        }
    }

    /// ORIGIN, AS_PATH and what else goes with every route, in the order of their types (RFC 4271, section 5).
    fn values(&self, next_hop: Option<IpAddr>) -> Vec<AttributeValue> {
        let path = |asn| if self.internal { AsPath::default() } else { AsPath::from_sequence([asn]) };
        let fits = self.four_octet_as || self.local_as <= u32::from(u16::MAX);
        let mut values = vec![
            AttributeValue::Origin(Origin::IGP),
            AttributeValue::AsPath(path(if fits { self.local_as } else { AS_TRANS.into() })),
        ];
        values.extend(next_hop.map(AttributeValue::NextHop));
        if self.internal {
            // RFC 8326, section 4: inside the AS it is said by the least preference.
            values.push(AttributeValue::LocalPreference(if self.graceful_shutdown { 0 } else { LOCAL_PREF }));
        }
        if self.graceful_shutdown {
            let Community(number) = Community::GRACEFUL_SHUTDOWN;
            let (defined_by, value) = (Asn::new_16bit((number >> 16) as u16), number as u16);
            values.push(AttributeValue::Communities(vec![WireCommunity::Custom(defined_by, value)]));
        }
        if !self.internal && !fits {
            // RFC 6793, section 4.2.2: the neighbour reads two octets, and passes the whole path on unread.
            values.push(AttributeValue::As4Path(path(self.local_as)));
        }
        values.extend(self.only_to_customer.map(|asn| AttributeValue::OnlyToCustomer(asn.into())));
        values
    }
}

/// What one neighbour has been told, and what it is to be told yet.
#[derive(Debug, Default)]
pub(crate) struct Advertised {
    told: BTreeSet<IpNet>,
    /// Told, and to be told again.
    again: BTreeSet<IpNet>,
    /// Told, and to be withdrawn.
    surplus: BTreeSet<IpNet>,
    /// To be announced.
    missing: BTreeSet<IpNet>,
    /// Families of which is to be said that they are told again (RFC 7313), before they are.
    beginning: Families,
    /// What is to be said when nothing is missing.
    marks: Vec<Mark>,
}

/// What is said about all that was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The first time (RFC 4724, section 2).
    EndOfRib(Family),
    /// Again, where that was asked for (RFC 7313).
    EndOfRefresh(Family),
}

impl Advertised {
    /// The neighbour has forgotten everything: the session ended.
    pub(crate) fn clear(&mut self) {
        *self = Advertised::default();
    }

    /// It is to be told everything of these families again; to be followed by [`Advertised::want`].
    pub(crate) fn repeat(&mut self, families: Families) {
        self.again.extend(self.told.iter().filter(|prefix| families.contains(Family::of(prefix))));
    }

    /// The same, between the marks of RFC 7313. Asked for again before it is over, it is still one: who asks without
    /// reading costs us no memory.
    pub(crate) fn repeat_marked(&mut self, family: Family) {
        if !self.marks.contains(&Mark::EndOfRefresh(family)) {
            self.beginning.insert(family);
            self.marks.push(Mark::EndOfRefresh(family));
        }
        self.repeat(Families::NONE.with(family));
    }

    /// It is to be told this when it has been told everything.
    pub(crate) fn mark(&mut self, mark: Mark) {
        if !self.marks.contains(&mark) {
            self.marks.push(mark);
        }
    }

    /// What it has been told.
    pub(crate) fn told(&self) -> &BTreeSet<IpNet> {
        &self.told
    }

    /// It is to be told this, as far as it can be, and nothing else.
    pub(crate) fn want(&mut self, wanted: &BTreeSet<IpNet>, attributes: &RouteAttributes) {
        let can = |prefix: &&IpNet| attributes.why_not(Family::of(prefix)).is_none();
        let is_missing = |prefix: &&IpNet| !self.told.contains(prefix) || self.again.contains(prefix);
        self.missing = wanted.iter().filter(can).filter(is_missing).copied().collect();
        self.surplus = self.told.iter().filter(|prefix| !wanted.contains(prefix) || !can(prefix)).copied().collect();
    }

    /// The next message, withdrawals first; nothing if the neighbour has been told everything. As full as the message's
    /// limit allows, so that ten thousand sites are some twenty messages.
    pub(crate) fn next_message(&mut self, attributes: &RouteAttributes) -> Option<Bytes> {
        if let Some(family) = self.beginning.iter().next() {
            self.beginning.remove(family);
            return Some(Refresh::Begin(family).encode());
        }
        if let Some(family) = self.surplus.first().map(Family::of) {
            let gone = fill(&self.surplus, family, withdrawal(Vec::new(), family), attributes);
            for prefix in &gone {
                self.surplus.remove(prefix);
                self.again.remove(prefix);
                self.told.remove(prefix);
            }
            return Some(encode(withdrawal(gone, family), attributes));
        }
        if let Some(family) = self.missing.first().map(Family::of) {
            let new = fill(&self.missing, family, announcement(Vec::new(), family, attributes), attributes);
            for prefix in &new {
                self.missing.remove(prefix);
                self.again.remove(prefix);
                self.told.insert(*prefix);
            }
            return Some(encode(announcement(new, family, attributes), attributes));
        }
        (!self.marks.is_empty()).then(|| match self.marks.remove(0) {
            Mark::EndOfRib(family) => encode(withdrawal(Vec::new(), family), attributes),
            Mark::EndOfRefresh(family) => Refresh::End(family).encode(),
        })
    }
}

/// As many prefixes of the family as fit into a message that has this much without them.
fn fill(
    prefixes: &BTreeSet<IpNet>,
    family: Family,
    empty: BgpUpdateMessage,
    attributes: &RouteAttributes,
) -> Vec<IpNet> {
    let mut left = attributes.max_message - encode(empty, attributes).len();
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
            attributes: [multiprotocol(AttributeValue::MpUnreachNlri(mp_nlri(family, prefixes, None)))]
                .into_iter()
                .collect(),
            ..Default::default()
        },
    }
}

fn announcement(prefixes: Vec<IpNet>, family: Family, attributes: &RouteAttributes) -> BgpUpdateMessage {
    match (family, attributes.next_hop(family)) {
        (Family::Ipv4, next_hop @ Some(IpAddr::V4(_))) => BgpUpdateMessage {
            attributes: attributes.values(next_hop).into_iter().collect(),
            announced_prefixes: nlri(prefixes),
            ..Default::default()
        },
        (family, next_hop) => {
            let reach = multiprotocol(AttributeValue::MpReachNlri(mp_nlri(family, prefixes, next_hop)));
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

fn mp_nlri(family: Family, prefixes: Vec<IpNet>, next_hop: Option<IpAddr>) -> Nlri {
    Nlri {
        afi: match family {
            Family::Ipv4 => Afi::Ipv4,
            Family::Ipv6 => Afi::Ipv6,
        },
        safi: Safi::Unicast,
        next_hop: next_hop.map(Into::into),
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
