//! The table of received routes told naively, from the RFCs: maps of everything, nothing shared, nothing remembered. What the
//! real one comes to must be the same.

use ipnet::IpNet;
use msp_core::bgp::Family;
use msp_core::bgp::origin::Vrp;
use msp_core::bgp::rib::{Accept, ChoiceConfig, NeighborConfig};
use msp_core::bgp::update::{Attributes, Community, NextHop, SegmentKind, Update};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The most routes of one neighbour to one prefix.
const MOST_PATHS: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct Route {
    attributes: Arc<Attributes>,
    next_hop: NextHop,
    stale: bool,
}

/// Neighbour, prefix and identifier.
type Key = (usize, IpNet, u32);

#[derive(Debug)]
pub(crate) struct Model {
    neighbors: Vec<NeighborConfig>,
    choices: Vec<ChoiceConfig>,
    pub(crate) up: BTreeMap<usize, Ipv4Addr>,
    pub(crate) routes: BTreeMap<Key, Route>,
    pub(crate) own: Vec<IpNet>,
    pub(crate) vrps: Vec<Vrp>,
    /// Next hops that cannot be reached.
    pub(crate) dead: BTreeSet<IpAddr>,
}

impl Model {
    pub(crate) fn new(neighbors: Vec<NeighborConfig>, choices: Vec<ChoiceConfig>) -> Model {
        Model {
            neighbors,
            choices,
            up: BTreeMap::new(),
            routes: BTreeMap::new(),
            own: Vec::new(),
            vrps: Vec::new(),
            dead: BTreeSet::new(),
        }
    }

    pub(crate) fn down(&mut self, neighbor: usize) {
        self.up.remove(&neighbor);
        self.routes.retain(|(of, ..), _| *of != neighbor);
    }

    pub(crate) fn mark_stale(&mut self, neighbor: usize, family: Family) {
        for ((of, prefix, _), route) in &mut self.routes {
            route.stale |= *of == neighbor && Family::of(prefix) == family;
        }
    }

    pub(crate) fn sweep(&mut self, neighbor: usize, family: Family) {
        self.routes.retain(|(of, prefix, _), route| *of != neighbor || Family::of(prefix) != family || !route.stale);
    }

    /// How many routes of a family the neighbour has.
    pub(crate) fn count(&self, neighbor: usize, family: Family) -> u32 {
        self.routes.keys().filter(|(of, prefix, _)| *of == neighbor && Family::of(prefix) == family).count() as u32
    }

    /// Whether the neighbour stayed within its bound.
    pub(crate) fn apply(&mut self, neighbor: usize, update: &Update) -> bool {
        if !self.up.contains_key(&neighbor) {
            return true;
        }
        let NeighborConfig { accept, max_prefixes, .. } = self.neighbors[neighbor].clone();
        for nlri in &update.withdrawn {
            self.routes.remove(&(neighbor, nlri.prefix, nlri.path_id));
        }
        for group in &update.announced {
            let path_is_good = self.is_path_good(neighbor, &group.attributes);
            for nlri in &group.prefixes {
                let key = (neighbor, nlri.prefix, nlri.path_id);
                let family = Family::of(&nlri.prefix);
                let beside =
                    self.routes.keys().filter(|(of, prefix, _)| (*of, *prefix) == (neighbor, nlri.prefix)).count();
                let is_new = !self.routes.contains_key(&key);
                if !path_is_good || !is_prefix_good(&nlri.prefix, accept) || (is_new && beside >= MOST_PATHS) {
                    self.routes.remove(&key);
                    continue;
                }
                if is_new && max_prefixes[family as usize].is_some_and(|most| self.count(neighbor, family) >= most) {
                    self.down(neighbor);
                    return false;
                }
                let route = Route { attributes: group.attributes.clone(), next_hop: group.next_hop, stale: false };
                self.routes.insert(key, route);
            }
        }
        if let Some(family) = update.end_of_rib {
            self.sweep(neighbor, family);
        }
        true
    }

    fn is_path_good(&self, neighbor: usize, attributes: &Attributes) -> bool {
        let session = self.neighbors[neighbor].session;
        let segments: Vec<_> = attributes.as_path.segments().collect();
        let is_ours = segments.iter().any(|segment| segment.numbers.contains(&session.local_as));
        let first = segments.first().filter(|segment| segment.kind == SegmentKind::Sequence);
        let first = first.and_then(|segment| segment.numbers.first());
        !is_ours && (session.local_as == session.remote_as || first == Some(&session.remote_as))
    }

    /// Where a choice's packets for each prefix go.
    pub(crate) fn best(&self, choice: usize) -> BTreeMap<IpNet, IpAddr> {
        let prefixes: BTreeSet<IpNet> = self.routes.keys().map(|(_, prefix, _)| *prefix).collect();
        prefixes.into_iter().filter_map(|prefix| Some((prefix, self.best_of(choice, &prefix)?))).collect()
    }

    fn best_of(&self, choice: usize, prefix: &IpNet) -> Option<IpAddr> {
        if self.own.iter().any(|own| own.contains(prefix)) {
            return None;
        }
        let rank = |neighbor| self.choices[choice].transits.iter().position(|equals| equals.contains(&neighbor));
        let usable = |key: &&Key, route: &Route| {
            key.1 == *prefix
                && self.up.contains_key(&key.0)
                && rank(key.0).is_some()
                && !self.dead.contains(&route.next_hop.address)
                && !self.is_invalid(key, route)
        };
        let mut left: Vec<(&Key, &Route)> = self.routes.iter().filter(|(key, route)| usable(key, route)).collect();
        // RFC 8326; the choice's list; then RFC 4271, section 9.1.2.2, step by step.
        keep_least(&mut left, |_, route| route.attributes.communities.contains(&Community::GRACEFUL_SHUTDOWN));
        keep_least(&mut left, |key, _| rank(key.0));
        keep_least(&mut left, |key, route| {
            Reverse(if self.is_internal(key.0) { route.attributes.local_pref.unwrap_or(100) } else { 100 })
        });
        keep_least(&mut left, |_, route| length(&route.attributes));
        keep_least(&mut left, |_, route| route.attributes.origin as u8);
        let neighboring = |route: &Route| {
            let segments: Vec<_> = route.attributes.as_path.segments().collect();
            let first = segments.first().filter(|segment| segment.kind == SegmentKind::Sequence)?;
            first.numbers.first().copied()
        };
        let med = |route: &Route| route.attributes.med.unwrap_or(0);
        let before = left.clone();
        left.retain(|(_, route)| {
            !before.iter().any(|(_, other)| neighboring(other) == neighboring(route) && med(other) < med(route))
        });
        keep_least(&mut left, |key, _| self.is_internal(key.0));
        keep_least(&mut left, |key, route| route.attributes.originator_id.unwrap_or(self.up[&key.0]));
        keep_least(&mut left, |key, _| self.neighbors[key.0].address);
        keep_least(&mut left, |key, _| key.2);
        left.first().map(|(_, route)| route.next_hop.address)
    }

    fn is_internal(&self, neighbor: usize) -> bool {
        let session = self.neighbors[neighbor].session;
        session.local_as == session.remote_as
    }

    /// RFC 6811, section 2, word by word.
    fn is_invalid(&self, (neighbor, prefix, _): &Key, route: &Route) -> bool {
        let segments: Vec<_> = route.attributes.as_path.segments().collect();
        let origin = match segments.last() {
            None => Some(self.neighbors[*neighbor].session.local_as),
            Some(last) => last.numbers.last().copied().filter(|_| last.kind == SegmentKind::Sequence),
        };
        let mut covering = self.vrps.iter().filter(|vrp| vrp.prefix.contains(prefix)).peekable();
        let matches = |vrp: &Vrp| prefix.prefix_len() <= vrp.max_length && vrp.asn != 0 && Some(vrp.asn) == origin;
        covering.peek().is_some() && !covering.any(matches)
    }
}

/// Leaves those for which the value is the least.
fn keep_least<T: Ord>(left: &mut Vec<(&Key, &Route)>, value: impl Fn(&Key, &Route) -> T) {
    if let Some(least) = left.iter().map(|(key, route)| value(key, route)).min() {
        left.retain(|(key, route)| value(key, route) == least);
    }
}

/// Each AS of a sequence counts, and a set counts once.
fn length(attributes: &Attributes) -> usize {
    let of = |kind, numbers: usize| if kind == SegmentKind::Sequence { numbers } else { 1 };
    attributes.as_path.segments().map(|segment| of(segment.kind, segment.numbers.len())).sum()
}

/// What is taken: nothing but what is asked for; of a table, what the Internet carries.
fn is_prefix_good(prefix: &IpNet, accept: Accept) -> bool {
    if prefix.prefix_len() == 0 {
        return accept.default;
    }
    let within = |list: &[&str]| list.iter().any(|net| net.parse::<IpNet>().expect("a prefix").contains(prefix));
    accept.table
        && match prefix {
            IpNet::V4(net) => {
                let special = [
                    "0.0.0.0/8",
                    "10.0.0.0/8",
                    "100.64.0.0/10",
                    "127.0.0.0/8",
                    "169.254.0.0/16",
                    "172.16.0.0/12",
                    "192.0.0.0/24",
                    "192.0.2.0/24",
                    "192.168.0.0/16",
                    "198.18.0.0/15",
                    "198.51.100.0/24",
                    "203.0.113.0/24",
                    "224.0.0.0/4",
                    "240.0.0.0/4",
                ];
                (8..=24).contains(&net.prefix_len()) && !within(&special)
            }
            IpNet::V6(net) => {
                let special = [
                    "2001:2::/48",
                    "2001:10::/28",
                    "2001:20::/28",
                    "2001:db8::/32",
                    "2002::/16",
                    "3ffe::/16",
                    "3fff::/20",
                ];
                (12..=48).contains(&net.prefix_len()) && within(&["2000::/3"]) && !within(&special)
            }
        }
}
