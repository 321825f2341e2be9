//! The UPDATEs that bring a neighbour from what it has to what it should have: which prefixes, with which attributes, when.
//!
//! Prefixes with equal attributes go together, in messages as full as the neighbour takes them. A prefix is announced at most
//! three times in any minute, and what it is told then is what is wanted then; withdrawals never wait:
//!
//! ```text
//!   seconds   0   1   5   7   9  20              60
//!   wanted    A   B   A   B   A   -    A
//!   told      A   B   A           -               A
//! ```

use super::attribute::{self, AsPath, Attributes};
use super::ingress::Said;
use super::message::{HEADER, Kind, Refresh, header};
use super::session::{Config, Negotiated};
use super::update::Community;
use super::{Families, Family};
use bytes::Bytes;
use ipnet::IpNet;
use proto::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

/// LOCAL_PREF on internal sessions where policy says nothing: the value that every implementation takes for neutral.
const LOCAL_PREF: u32 = 100;
/// In any span of this length a prefix is announced to a neighbour [`MOST`] times at most: 20 s apart on average, as RFC 4271
/// has it with its MinRouteAdvertisementInterval of 30 s (section 9.2.1.1), but without a wait for the first of them. With the
/// withdrawals between them it stays below what RFC 7196 lets flap damping hold for a flapping route: six in some minutes.
const WINDOW: Duration = Duration::from_secs(60);
/// See there. A link that fails, comes back and fails again is told of as it happens.
const MOST: usize = 3;
/// The first change goes at once, what follows it within this time goes together: ten thousand sites that come up within
/// some seconds are some dozens of full messages, and nobody notices a tenth of a second beside what a route takes to get
/// round the world.
const GATHER: Duration = Duration::from_millis(100);

/// What holds for every route that is announced on one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
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

impl Terms {
    /// For a session just established from `local` (its own address, the next hop where none is configured).
    pub(crate) fn new(
        config: &Config,
        negotiated: &Negotiated,
        (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        local: IpAddr,
    ) -> Terms {
        let (local_v4, local_v6) = match local.to_canonical() {
            IpAddr::V4(address) => (Some(address), None),
            // A link-local address is no next hop for others (RFC 2545, section 3).
            IpAddr::V6(address) => (None, Some(address).filter(|address| !address.is_unicast_link_local())),
        };
        Terms {
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

    /// All that is said of a route to which policy says this.
    pub(crate) fn attributes(&self, said: &Said) -> Attributes {
        // Our own AS again and again makes the path longer, and means nothing within it.
        let own = vec![self.local_as; if self.internal { 0 } else { 1 + usize::from(said.prepend) }];
        let local_pref = match self.graceful_shutdown {
            // RFC 8326, section 4: inside the AS it is said by the least preference.
            true => 0,
            false => said.local_pref.unwrap_or(LOCAL_PREF),
        };
        let mut communities = said.communities.to_vec();
        communities.extend(self.graceful_shutdown.then_some(Community::GRACEFUL_SHUTDOWN));
        Attributes {
            as_path: AsPath::sequence(&own),
            med: said.med,
            local_pref: self.internal.then_some(local_pref),
            aggregator: said.aggregator,
            communities: communities.into(),
            extended_communities: said.extended_communities.clone(),
            large_communities: said.large_communities.clone(),
            only_to_customer: self.only_to_customer,
            ..Attributes::default()
        }
    }
}

/// What one neighbour has been told, and what it is to be told yet.
#[derive(Debug, Default)]
pub(crate) struct Advertised {
    /// While the session is established.
    terms: Option<Terms>,
    routes: BTreeMap<IpNet, Route>,
    /// To be announced with this; sorted so that what goes into one message lies together.
    announce: BTreeSet<(Arc<Said>, IpNet)>,
    withdraw: BTreeSet<IpNet>,
    /// Not to be spoken of before then.
    later: BTreeSet<(Instant, IpNet)>,
    /// What is to be said may be said now.
    open: bool,
    /// When more may be said.
    next: Option<Instant>,
    /// Families of which is to be said that they are told again (RFC 7313), before they are.
    beginning: Families,
    /// What is to be said when nothing else is.
    marks: Vec<Mark>,
}

/// A prefix, as far as one neighbour is concerned.
#[derive(Debug, Default)]
struct Route {
    wanted: Option<Arc<Said>>,
    told: Option<Arc<Said>>,
    /// To be told again, whether or not it is news.
    again: bool,
    /// When it was announced last with something new, and the times before.
    recent: [Option<Instant>; MOST],
    place: Place,
}

/// In which set a prefix is.
#[derive(Clone, Debug, Default, PartialEq)]
enum Place {
    #[default]
    Nowhere,
    Announce(Arc<Said>),
    Withdraw,
    Later(Instant),
}

impl Route {
    /// From when on it may be announced.
    fn free_at(&self) -> Option<Instant> {
        self.recent[MOST - 1].map(|at| at + WINDOW)
    }

    /// When nothing of it needs to be remembered.
    fn forgotten_at(&self) -> Option<Instant> {
        self.recent[0].map(|at| at + WINDOW)
    }

    fn note(&mut self, now: Instant) {
        self.recent.rotate_right(1);
        self.recent[0] = Some(now);
    }
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
    /// The session is there: everything is to be told on these terms.
    pub(crate) fn establish(&mut self, now: Instant, terms: Terms) {
        self.terms = Some(terms);
        self.settle_all(now);
    }

    /// The neighbour has forgotten everything: the session ended.
    pub(crate) fn clear(&mut self) {
        let routes = std::mem::take(&mut self.routes);
        let kept = routes.into_iter().filter(|(_, route)| route.wanted.is_some());
        let routes = kept.map(|(prefix, route)| (prefix, Route { wanted: route.wanted, ..Route::default() })).collect();
        *self = Advertised { routes, ..Advertised::default() };
    }

    /// From now on it is to be told this of a prefix, or, without it, that the prefix is gone.
    pub(crate) fn want(&mut self, now: Instant, prefix: IpNet, said: Option<Arc<Said>>) {
        self.routes.entry(prefix).or_default().wanted = said;
        self.settle(now, prefix);
        self.open(now);
    }

    /// The routes will go soon, or stay after all: it is told so of each of them.
    pub(crate) fn set_graceful_shutdown(&mut self, now: Instant, soon: bool) {
        if let Some(terms) = &mut self.terms
            && std::mem::replace(&mut terms.graceful_shutdown, soon) != soon
        {
            self.repeat(now, Families::ALL);
        }
    }

    /// It is to be told everything of these families again.
    pub(crate) fn repeat(&mut self, now: Instant, families: Families) {
        for (_, route) in self.routes.iter_mut().filter(|(prefix, _)| families.contains(Family::of(prefix))) {
            route.again = route.told.is_some();
        }
        self.settle_all(now);
    }

    /// The same, between the marks of RFC 7313. Asked for again before it is over, it is still one: who asks without
    /// reading costs us no memory.
    pub(crate) fn repeat_marked(&mut self, now: Instant, family: Family) {
        if !self.marks.contains(&Mark::EndOfRefresh(family)) {
            self.beginning.insert(family);
            self.marks.push(Mark::EndOfRefresh(family));
        }
        self.repeat(now, Families::NONE.with(family));
    }

    /// It is to be told this when it has been told everything.
    pub(crate) fn mark(&mut self, mark: Mark) {
        if !self.marks.contains(&mark) {
            self.marks.push(mark);
        }
    }

    /// What it has been told, with all that was said of it.
    pub(crate) fn told(&self) -> impl Iterator<Item = (IpNet, Attributes)> {
        let told = self.routes.iter().filter_map(|(prefix, route)| Some((*prefix, route.told.as_ref()?)));
        told.filter_map(|(prefix, said)| Some((prefix, self.terms.as_ref()?.attributes(said))))
    }

    /// The prefixes that it has been told, in order.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.routes.iter().filter(|(_, route)| route.told.is_some()).map(|(prefix, _)| *prefix)
    }

    /// What it should be told and has not been, in order, each with the reason.
    pub(crate) fn untold(&self) -> impl Iterator<Item = (IpNet, &'static str)> {
        let untold = self.routes.iter().filter(|(_, route)| route.wanted.is_some() && route.told.is_none());
        untold.map(|(prefix, route)| match (&self.terms, &route.place) {
            (None, _) => (*prefix, "the session is not established"),
            (_, Place::Later(_)) => (*prefix, "it has come and gone too often in the last minute"),
            (Some(terms), _) => (*prefix, terms.why_not(Family::of(prefix)).unwrap_or("waiting to be sent")),
        })
    }

    /// When [`Advertised::handle_timeout`] is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.next.filter(|_| !self.open && self.has_something());
        [next, self.later.first().map(|(at, _)| *at)].into_iter().flatten().min()
    }

    /// What had to wait until now is to be told.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, prefix)) = self.later.first()
            && at <= now
        {
            self.settle(now, prefix);
        }
        self.open(now);
    }

    fn settle_all(&mut self, now: Instant) {
        let prefixes: Vec<IpNet> = self.routes.keys().copied().collect();
        prefixes.into_iter().for_each(|prefix| self.settle(now, prefix));
        self.open(now);
    }

    /// Is there anything to be said that need not wait for its pace?
    fn has_something(&self) -> bool {
        !self.announce.is_empty() || !self.withdraw.is_empty()
    }

    /// Lets what is to be said go, unless something went just now.
    fn open(&mut self, now: Instant) {
        if self.has_something() && !self.open && self.next.is_none_or(|next| next <= now) {
            self.open = true;
            self.next = Some(now + GATHER);
        }
    }

    /// Puts a prefix where it belongs.
    fn settle(&mut self, now: Instant, prefix: IpNet) {
        let Some(route) = self.routes.get_mut(&prefix) else { return };
        match std::mem::take(&mut route.place) {
            Place::Nowhere => {}
            Place::Announce(said) => drop(self.announce.remove(&(said, prefix))),
            Place::Withdraw => drop(self.withdraw.remove(&prefix)),
            Place::Later(at) => drop(self.later.remove(&(at, prefix))),
        }
        let can = self.terms.as_ref().is_some_and(|terms| terms.why_not(Family::of(&prefix)).is_none());
        let wanted = route.wanted.as_ref().filter(|_| can);
        let wait = route.free_at().filter(|&at| at > now);
        route.place = match (wanted, &route.told, wait) {
            (None, Some(_), _) => Place::Withdraw,
            (None, None, _) => match route.forgotten_at().filter(|&at| at > now) {
                Some(at) => Place::Later(at),
                None if route.wanted.is_none() => {
                    self.routes.remove(&prefix);
                    return;
                }
                None => Place::Nowhere,
            },
            (Some(wanted), Some(told), _) if wanted == told && !route.again => Place::Nowhere,
            (Some(wanted), Some(told), _) if wanted == told => Place::Announce(wanted.clone()),
            (Some(wanted), _, None) => Place::Announce(wanted.clone()),
            // What is told again meanwhile is what it has been told.
            (Some(_), Some(told), Some(_)) if route.again => Place::Announce(told.clone()),
            (Some(_), _, Some(at)) => Place::Later(at),
        };
        match &route.place {
            Place::Nowhere => {}
            Place::Announce(said) => drop(self.announce.insert((said.clone(), prefix))),
            Place::Withdraw => drop(self.withdraw.insert(prefix)),
            Place::Later(at) => drop(self.later.insert((*at, prefix))),
        }
    }

    /// The next message; nothing if the neighbour has been told all that it can be now. Announcements first: what takes the
    /// place of something is there before that goes. As full as the message's limit allows, so that ten thousand sites are
    /// some twenty messages.
    pub(crate) fn next_message(&mut self, now: Instant) -> Option<Bytes> {
        let terms = self.terms?;
        if let Some(family) = self.beginning.iter().next() {
            self.beginning.remove(family);
            return Some(Refresh::Begin(family).encode());
        }
        if self.open {
            if let Some((said, first)) = self.announce.first() {
                let (said, first) = (said.clone(), *first);
                return Some(self.announcement(now, &terms, &said, first));
            }
            if let Some(first) = self.withdraw.first() {
                let family = Family::of(first);
                return Some(self.withdrawal(now, &terms, family));
            }
            self.open = false;
        }
        if self.has_something() || self.marks.is_empty() {
            return None;
        }
        Some(match self.marks.remove(0) {
            Mark::EndOfRib(Family::Ipv4) => update(&[], &[], &[]),
            Mark::EndOfRib(family) => update(&[], &multiprotocol(attribute::MP_UNREACH, family, None, &[]), &[]),
            Mark::EndOfRefresh(family) => Refresh::End(family).encode(),
        })
    }

    /// As many of the prefixes from this one on as can be said in one message.
    fn announcement(&mut self, now: Instant, terms: &Terms, said: &Arc<Said>, first: IpNet) -> Bytes {
        let family = Family::of(&first);
        let next_hop = terms.next_hop(family);
        let own = match next_hop {
            Some(IpAddr::V4(address)) if family == Family::Ipv4 => Some(address),
            _ => None,
        };
        let mut attributes = Vec::new();
        terms.attributes(said).write(&mut attributes, own, terms.four_octet_as);
        let mut fixed = EMPTY_UPDATE + attributes.len();
        if own.is_none() {
            fixed += multiprotocol(attribute::MP_REACH, family, next_hop, &[]).len();
        }
        let like_it = self.announce.range((said.clone(), first)..).take_while(|(other, _)| other == said);
        let (prefixes, nlri) = fill(like_it.map(|(_, prefix)| prefix), family, terms.max_message.saturating_sub(fixed));
        for prefix in prefixes {
            if let Some(route) = self.routes.get_mut(&prefix) {
                if route.told.as_ref() != Some(said) {
                    route.note(now);
                }
                (route.told, route.again) = (Some(said.clone()), false);
            }
            self.settle(now, prefix);
        }
        match own {
            Some(_) => update(&[], &attributes, &nlri),
            None => {
                // RFC 7606, section 5.1: first, so that a reader finds the prefixes whatever is wrong with the rest.
                let reach = multiprotocol(attribute::MP_REACH, family, next_hop, &nlri);
                update(&[], &[reach, attributes].concat(), &[])
            }
        }
    }

    fn withdrawal(&mut self, now: Instant, terms: &Terms, family: Family) -> Bytes {
        let fixed = match family {
            Family::Ipv4 => EMPTY_UPDATE,
            Family::Ipv6 => EMPTY_UPDATE + multiprotocol(attribute::MP_UNREACH, family, None, &[]).len(),
        };
        let (prefixes, nlri) = fill(self.withdraw.iter(), family, terms.max_message - fixed);
        for prefix in prefixes {
            if let Some(route) = self.routes.get_mut(&prefix) {
                (route.told, route.again) = (None, false);
            }
            self.settle(now, prefix);
        }
        match family {
            Family::Ipv4 => update(&nlri, &[], &[]),
            Family::Ipv6 => update(&[], &multiprotocol(attribute::MP_UNREACH, family, None, &nlri), &[]),
        }
    }
}

/// Header, and the lengths of what is withdrawn and of the attributes.
const EMPTY_UPDATE: usize = HEADER + 4;

/// ```text
/// | length of the withdrawn (2) | withdrawn | length of the attributes (2) | attributes | announced |
/// ```
fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Bytes {
    let length = |part: &[u8]| (part.len() as u16).to_be_bytes();
    let parts = [&length(withdrawn), withdrawn, &length(attributes), attributes, announced];
    let mut out = header(Kind::Update, parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.freeze()
}

/// The prefixes of this family at the front, as many as fit, and how they are written: the length in bits, and no more octets
/// than that needs.
fn fill<'a>(prefixes: impl Iterator<Item = &'a IpNet>, family: Family, room: usize) -> (Vec<IpNet>, Vec<u8>) {
    let (mut taken, mut nlri) = (Vec::new(), Vec::new());
    for prefix in prefixes.take_while(|prefix| Family::of(prefix) == family) {
        let octets = usize::from(prefix.prefix_len().div_ceil(8));
        if nlri.len() + 1 + octets > room {
            break;
        }
        nlri.push(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(address) => nlri.extend_from_slice(&address.octets()[..octets]),
            IpAddr::V6(address) => nlri.extend_from_slice(&address.octets()[..octets]),
        }
        taken.push(*prefix);
    }
    (taken, nlri)
}

/// MP_REACH_NLRI with a next hop, MP_UNREACH_NLRI without (RFC 4760, sections 3 and 4), the whole attribute.
///
/// ```text
/// | AFI (2) | SAFI (1) | next hop's length (1) | next hop | reserved (1) | prefixes |
/// | AFI (2) | SAFI (1) | prefixes |
/// ```
fn multiprotocol(kind: u8, family: Family, next_hop: Option<IpAddr>, nlri: &[u8]) -> Vec<u8> {
    let (afi, safi) = family.afi_safi();
    let mut value = vec![0, afi, safi];
    if kind == attribute::MP_REACH {
        match next_hop {
            Some(IpAddr::V4(address)) => {
                value.push(4);
                value.extend_from_slice(&address.octets());
            }
            Some(IpAddr::V6(address)) => {
                value.push(16);
                value.extend_from_slice(&address.octets());
            }
            None => value.push(0),
        }
        value.push(0);
    }
    value.extend_from_slice(nlri);
    let mut out = Vec::with_capacity(value.len() + 4);
    attribute::put(&mut out, kind, &value);
    out
}

#[cfg(test)]
mod tests;
