//! The best of several routes to one prefix: RFC 4271, section 9.1.2, as it applies to transits.

use super::accept;
use crate::bgp::update::Attributes;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// A route that could be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// Whose it is.
    pub(super) neighbor: usize,
    /// The neighbour's place in the choice's list: what is less is preferred.
    pub(super) rank: u8,
    pub(super) internal: bool,
    pub(super) router_id: Ipv4Addr,
    pub(super) address: IpAddr,
    /// The neighbour's name for it (RFC 7911), by which several of one neighbour differ.
    pub(super) path_id: u32,
    pub(super) attributes: &'a Attributes,
    /// The place of its next hop.
    pub(super) hop: u16,
}

/// What made a route the better one, in the order in which it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// There is no other.
    Only,
    /// The other is about to go (RFC 8326).
    GracefulShutdown,
    /// The choice's list names it first.
    Order,
    /// Its LOCAL_PREF is higher (internal neighbours only).
    LocalPref,
    /// Its AS_PATH is shorter: section 9.1.2.2 (a).
    AsPath,
    /// Its ORIGIN is lower: (b).
    Origin,
    /// Its MULTI_EXIT_DISC is lower, of the same neighbouring AS: (c).
    Med,
    /// It is of an external neighbour: (d).
    External,
    /// Its neighbour's router identifier is lower: (f).
    RouterId,
    /// Its neighbour's address is lower: (g).
    Address,
    /// Its path identifier is lower: of several of one neighbour, which are equal otherwise.
    PathId,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Because::Only => "the only one",
            Because::GracefulShutdown => "others are about to go (RFC 8326)",
            Because::Order => "first in the list of transits",
            Because::LocalPref => "highest LOCAL_PREF",
            Because::AsPath => "shortest AS_PATH",
            Because::Origin => "lowest ORIGIN",
            Because::Med => "lowest MULTI_EXIT_DISC",
            Because::External => "external",
            Because::RouterId => "lowest router identifier",
            Because::Address => "lowest neighbour address",
            Because::PathId => "lowest path identifier",
        })
    }
}

/// LOCAL_PREF where none is given: what every implementation takes.
const LOCAL_PREF: u32 = 100;

/// What an earlier step looks at weighs more than all later ones. Step (e), the cost to the next hop, has no meaning here:
/// no IGP is spoken, and every next hop is one hop away.
impl Candidate<'_> {
    fn before_med(&self) -> (bool, u8, Reverse<u32>, usize, u8) {
        let attributes = self.attributes;
        let local_pref = attributes.local_pref.filter(|_| self.internal).unwrap_or(LOCAL_PREF);
        let going = accept::is_going(attributes);
        (going, self.rank, Reverse(local_pref), attributes.as_path.length(), attributes.origin as u8)
    }

    fn after_med(&self) -> (bool, Ipv4Addr, IpAddr, u32) {
        // RFC 4456, section 9: a reflected route is of the router that it entered our AS by.
        (self.internal, self.attributes.originator_id.unwrap_or(self.router_id), self.address, self.path_id)
    }

    /// Missing is the lowest: section 9.1.2.2 (c).
    fn med(&self) -> u32 {
        self.attributes.med.unwrap_or(0)
    }
}

/// The best one's place. Nothing if there is none.
///
/// MULTI_EXIT_DISC compares only routes of one neighbouring AS, so that "better than" is no order: A may beat B, B beat C
/// and C beat A. As section 9.1.2.2 has it, what a route of its own AS beats there is removed before anything else is
/// compared, so the outcome does not depend on who comes first.
pub(super) fn best(candidates: &[Candidate]) -> Option<usize> {
    let first = match candidates {
        [] => return None,
        [_] => return Some(0),
        [..] => candidates.iter().map(Candidate::before_med).min()?,
    };
    let left = candidates.iter().enumerate().filter(|(_, c)| c.before_med() == first && !loses_by_med(candidates, c));
    left.min_by_key(|(_, candidate)| candidate.after_med()).map(|(place, _)| place)
}

fn loses_by_med(candidates: &[Candidate], candidate: &Candidate) -> bool {
    candidates.iter().any(|other| {
        other.before_med() == candidate.before_med()
            && other.attributes.as_path.first() == candidate.attributes.as_path.first()
            && other.med() < candidate.med()
    })
}

/// Why the one at `place` is the best: the last step at which another route was still in the running.
pub(super) fn why(candidates: &[Candidate], place: usize) -> Because {
    let Some(winner) = candidates.get(place) else { return Because::Only };
    let lost_at = |other: &Candidate| {
        let (a, b) = (winner.before_med(), other.before_med());
        let (c, d) = (winner.after_med(), other.after_med());
        let steps = [
            (a.0 != b.0, Because::GracefulShutdown),
            (a.1 != b.1, Because::Order),
            (a.2 != b.2, Because::LocalPref),
            (a.3 != b.3, Because::AsPath),
            (a.4 != b.4, Because::Origin),
            (loses_by_med(candidates, other), Because::Med),
            (c.0 != d.0, Because::External),
            (c.1 != d.1, Because::RouterId),
            (c.2 != d.2, Because::Address),
        ];
        steps.into_iter().find(|(lost, _)| *lost).map_or(Because::PathId, |(_, because)| because)
    };
    let others = candidates.iter().enumerate().filter(|&(other, _)| other != place);
    others.map(|(_, other)| lost_at(other)).max_by_key(|&because| because as u8).unwrap_or(Because::Only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::update::{AsPath, Community, Origin};

    fn candidate(neighbor: usize, attributes: &Attributes) -> Candidate<'_> {
        let last = neighbor as u8 + 1;
        Candidate {
            neighbor,
            rank: 0,
            internal: false,
            router_id: Ipv4Addr::new(192, 0, 2, last),
            address: Ipv4Addr::new(203, 0, 113, last).into(),
            path_id: 1,
            attributes,
            hop: 0,
        }
    }

    fn decide(candidates: &[Candidate]) -> Option<(usize, Because)> {
        best(candidates).map(|place| (place, why(candidates, place)))
    }

    fn path(numbers: &[u32]) -> Attributes {
        Attributes { as_path: AsPath::sequence(numbers), ..Attributes::default() }
    }

    #[test]
    fn each_step_decides_where_all_before_it_are_equal() {
        let plain = path(&[1, 9]);
        let going = Attributes { communities: [Community::GRACEFUL_SHUTDOWN].into(), ..plain.clone() };
        let incomplete = Attributes { origin: Origin::Incomplete, ..plain.clone() };
        let med = Attributes { med: Some(1), ..plain.clone() };
        let longer = path(&[1, 9, 9]);
        let c = candidate;
        let ranked = |neighbor, rank| Candidate { rank, ..c(neighbor, &longer) };
        for (first, second, expected) in [
            (c(0, &going), Candidate { rank: 1, ..c(1, &longer) }, (1, Because::GracefulShutdown)),
            (ranked(0, 1), ranked(1, 0), (1, Because::Order)),
            (c(0, &longer), c(1, &plain), (1, Because::AsPath)),
            (c(0, &incomplete), c(1, &plain), (1, Because::Origin)),
            (c(0, &med), c(1, &plain), (1, Because::Med)),
            (Candidate { internal: true, ..c(0, &plain) }, c(1, &plain), (1, Because::External)),
            (c(1, &plain), c(0, &plain), (1, Because::RouterId)),
            (Candidate { router_id: Ipv4Addr::new(192, 0, 2, 1), ..c(1, &plain) }, c(0, &plain), (1, Because::Address)),
            (c(0, &plain), Candidate { path_id: 0, ..c(0, &plain) }, (1, Because::PathId)),
        ] {
            assert_eq!(decide(&[first, second]), Some(expected), "{expected:?}");
            assert_eq!(decide(&[second, first]), Some((0, expected.1)), "the order of arrival is nothing");
        }
        let high = Attributes { local_pref: Some(200), ..longer.clone() };
        let internal = |neighbor, attributes| Candidate { internal: true, ..c(neighbor, attributes) };
        assert_eq!(decide(&[internal(0, &plain), internal(1, &high)]), Some((1, Because::LocalPref)));
        assert_eq!(decide(&[c(0, &plain), c(1, &high)]), Some((0, Because::AsPath)), "no LOCAL_PREF from outside");
        assert_eq!(decide(&[]), None);
        assert_eq!(decide(&[c(0, &plain)]), Some((0, Because::Only)));
    }

    /// The three of RFC 3345's kind: pairwise each is beaten by another.
    #[test]
    fn med_decides_before_the_router_identifier_whoever_comes_first() {
        let (a, b, c) = (
            path(&[1, 9]),
            Attributes { med: Some(10), ..path(&[2, 9]) },
            Attributes { med: Some(5), ..path(&[2, 9]) },
        );
        // By router identifier: b (0), a (1), c (2). c beats b by MED, b beats a, a beats c.
        let routes = [candidate(0, &b), candidate(1, &a), candidate(2, &c)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let routes = order.map(|place| routes[place]);
            let place = best(&routes).expect("one of them");
            assert_eq!(routes[place].neighbor, 1);
        }
    }
}
