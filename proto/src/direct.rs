//! Local breakout: which flows leave by an uplink itself, translated to its address, and by which.
//!
//! A class may say so ([`crate::policy::Direct`]), and the policy may say so for as long as no tunnel works
//! ([`WhenIsolated`]). Decided is only where *new* flows go. A flow stays where it began: its address outside is the uplink's,
//! and dies with it. So what is decided here may change at any moment, and breaks nothing.
//!
//! Whether an uplink works is known of its tunnel, which is asked all the time: one whose tunnel is down while another's works
//! is taken for dead, whatever its carrier says. While none works nothing tells a dead uplink from a dead core, and
//! carrier, address and route must do.

use crate::Instant;
use crate::policy::{Class, ClassId, Otherwise, Policy, WhenIsolated};
use std::time::Duration;

/// How long no tunnel may work before the site is isolated. A shorter break is ridden out: what was sent in it is kept for
/// that long, and goes by the first tunnel that returns.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// An uplink, as flows see it that leave by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its slot.
    pub slot: u8,
    /// Lower is preferred, where the policy names no order.
    pub preference: u8,
    /// It has carrier, an address of its own and a default route, in IPv4 and in IPv6.
    pub ready: [bool; 2],
    /// Whether its tunnel works; `None`: it has none, and nothing is known by it.
    pub tunnel: Option<bool>,
    /// It has carried what it may this month, and takes only classes that the policy names.
    pub capped: bool,
}

/// Where new flows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Into a tunnel, as the scheduler has it.
    ByTunnel,
    /// By the uplink in this slot, translated to its address.
    ByUplink(u8),
    /// Nowhere: they are dropped.
    Nowhere,
}

/// Where new flows of a class and family go, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub leaves: Leaves,
    /// Why, in words.
    pub why: &'static str,
}

/// Does anything in this policy need to be decided here?
pub fn concerns(policy: &Policy) -> bool {
    policy.when_isolated() == WhenIsolated::Direct || policy.classes().iter().any(|class| class.direct.is_some())
}

/// Where new flows go, by class, in IPv4 and in IPv6.
pub fn decide(policy: &Policy, exits: &[Exit], isolated: bool) -> Vec<[Decision; 2]> {
    // A flow goes both ways by its uplink.
    let both_ways = |exit: &&Exit| policy.links().get(usize::from(exit.slot)).is_none_or(|link| link.only.is_none());
    let mut exits: Vec<Exit> = exits.iter().filter(both_ways).copied().collect();
    exits.sort_by_key(|exit| exit.preference);
    // While none works nothing is known by any.
    if !exits.iter().any(|exit| exit.tunnel == Some(true)) {
        exits.iter_mut().for_each(|exit| exit.tunnel = None);
    }
    let decide = |(class, id): (&Class, ClassId)| {
        let takes = |exit: &&Exit| !exit.capped || policy.goes_on(exit.slot, id);
        let exits: Vec<Exit> = exits.iter().filter(takes).copied().collect();
        [0, 1].map(|family| of_class(class, &exits, family, isolated, policy.when_isolated()))
    };
    policy.classes().iter().zip(0..).map(decide).collect()
}

/// `exits`: the most preferred first.
fn of_class(class: &Class, exits: &[Exit], family: usize, isolated: bool, when_isolated: WhenIsolated) -> Decision {
    let decision = |leaves, why| Decision { leaves, why };
    let ready = |exit: &&Exit| exit.ready[family];
    let Some(direct) = &class.direct else {
        if !isolated || when_isolated == WhenIsolated::Wait {
            return decision(Leaves::ByTunnel, "the class is not a direct one");
        }
        if class.up.otherwise == Otherwise::Drop {
            return decision(Leaves::ByTunnel, "no tunnel works, and the class takes nothing else");
        }
        let listed = listed(&class.up.links, exits);
        let others = exits.iter().filter(|exit| !class.up.links.contains(&exit.slot));
        return match listed.into_iter().chain(others).find(ready) {
            Some(exit) => decision(Leaves::ByUplink(exit.slot), "no tunnel works"),
            None => decision(
                Leaves::ByTunnel,
                "no tunnel works, and no uplink that it may take has carrier, address and route",
            ),
        };
    };
    let listed = if direct.links.is_empty() { exits.iter().collect() } else { listed(&direct.links, exits) };
    let alive = |exit: &&Exit| exit.ready[family] && exit.tunnel != Some(false);
    if let Some(exit) = listed.iter().copied().find(alive) {
        return decision(Leaves::ByUplink(exit.slot), "the most wanted uplink that works");
    }
    match (direct.otherwise, listed.into_iter().find(ready)) {
        (Otherwise::Any, _) => decision(Leaves::ByTunnel, "none of its uplinks works, and has not reached its cap"),
        (Otherwise::Drop, Some(exit)) => {
            decision(Leaves::ByUplink(exit.slot), "its tunnel is down, but no other may be")
        }
        (Otherwise::Drop, None) => {
            decision(Leaves::Nowhere, "none of its uplinks has carrier, address and route, and has not reached its cap")
        }
    }
}

/// Those in the list, in its order.
fn listed<'a>(slots: &[u8], exits: &'a [Exit]) -> Vec<&'a Exit> {
    slots.iter().filter_map(|slot| exits.iter().find(|exit| exit.slot == *slot)).collect()
}

/// Whether the site is cut off from its core for so long that it should not wait any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Since when no tunnel works.
    since: Option<Instant>,
}

impl Isolation {
    /// At the start of a daemon, with no tunnel yet.
    pub fn begin(now: Instant) -> Self {
        Isolation { since: Some(now) }
    }

    /// Whether a tunnel works now. Whether the site is isolated.
    pub fn note(&mut self, now: Instant, works: bool) -> bool {
        self.since = if works { None } else { self.since.or(Some(now)) };
        self.since.is_some_and(|since| now >= since + PATIENCE)
    }

    /// When it will be, if no tunnel works until then; nothing if it is already, or one works.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE).filter(|due| *due > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Direct, Direction, Link, Matches, Metered, Treatment};

    const BOTH: [bool; 2] = [true, true];

    fn exit(slot: u8, ready: [bool; 2], tunnel: Option<bool>) -> Exit {
        Exit { slot, preference: slot, ready, tunnel, capped: false }
    }

    fn policy(direct: Option<Direct>, up: Treatment) -> Policy {
        let class = Class { up, direct, ..Class::everything("all") };
        Policy::new(Default::default(), vec![class]).expect("a good policy")
    }

    fn direct(links: &[u8], otherwise: Otherwise) -> Policy {
        policy(Some(Direct { links: links.into(), otherwise }), Treatment::default())
    }

    fn leaves(policy: &Policy, exits: &[Exit], isolated: bool) -> [Leaves; 2] {
        decide(policy, exits, isolated)[0].map(|decision| decision.leaves)
    }

    #[test]
    fn the_most_wanted_uplink_that_works_is_taken_in_each_family() {
        let exits = [exit(0, [true, false], Some(true)), exit(1, BOTH, Some(true))];
        let any = direct(&[], Otherwise::Any);
        assert_eq!(leaves(&any, &exits, false), [Leaves::ByUplink(0), Leaves::ByUplink(1)]);
        assert_eq!(leaves(&direct(&[1, 0], Otherwise::Any), &exits, false), [Leaves::ByUplink(1); 2]);
        let only = direct(&[0], Otherwise::Any);
        assert_eq!(leaves(&only, &exits, false), [Leaves::ByUplink(0), Leaves::ByTunnel]);
        let only = direct(&[0], Otherwise::Drop);
        assert_eq!(leaves(&only, &exits, false), [Leaves::ByUplink(0), Leaves::Nowhere]);
    }

    #[test]
    fn an_uplink_is_dead_whose_tunnel_is_while_another_works() {
        let any = direct(&[], Otherwise::Any);
        let (dead, alive) = (exit(0, BOTH, Some(false)), exit(1, BOTH, Some(true)));
        assert_eq!(leaves(&any, &[dead, alive], false), [Leaves::ByUplink(1); 2]);
        assert_eq!(leaves(&direct(&[0], Otherwise::Any), &[dead, alive], false), [Leaves::ByTunnel; 2]);
        // It may be the tunnel alone that is dead, and there is nothing else.
        assert_eq!(leaves(&direct(&[0], Otherwise::Drop), &[dead, alive], false), [Leaves::ByUplink(0); 2]);
        // With no tunnel at all, or none ever by this uplink, nothing is known.
        assert_eq!(leaves(&any, &[dead, exit(1, BOTH, Some(false))], false), [Leaves::ByUplink(0); 2]);
        assert_eq!(leaves(&any, &[exit(0, BOTH, None), alive], false), [Leaves::ByUplink(0); 2]);
    }

    #[test]
    fn a_link_of_one_direction_takes_no_flow() {
        let mut links: [Link; crate::MAX_SLOTS] = Default::default();
        links[0].only = Some(Direction::Down);
        let class = Class { direct: Some(Direct::default()), ..Class::everything("all") };
        let policy = Policy::new(links, vec![class]).expect("a good policy");
        let exits = [exit(0, BOTH, Some(true)), exit(1, BOTH, Some(true))];
        assert_eq!(leaves(&policy, &exits, false), [Leaves::ByUplink(1); 2]);
    }

    #[test]
    fn an_uplink_at_its_cap_takes_only_classes_that_may_go_on() {
        let mut links: [Link; crate::MAX_SLOTS] = Default::default();
        links[0].metered = Some(Metered { cap: 1, reset_day: 1, free: 0, over: vec![1] });
        let direct = || Some(Direct::default());
        let films = Class {
            matches: Matches { dscp: 2, ..Matches::default() },
            direct: direct(),
            ..Class::everything("films")
        };
        let all = Class { direct: direct(), ..Class::everything("all") };
        let policy = Policy::new(links, vec![films, all]).expect("a good policy").with_isolation(WhenIsolated::Direct);
        let capped = Exit { capped: true, ..exit(0, BOTH, Some(true)) };
        let to = |exits: &[Exit]| decide(&policy, exits, false).iter().map(|both| both[0].leaves).collect::<Vec<_>>();
        assert_eq!(to(&[capped, exit(1, BOTH, Some(true))]), [Leaves::ByUplink(1), Leaves::ByUplink(0)]);
        assert_eq!(to(&[capped]), [Leaves::ByTunnel, Leaves::ByUplink(0)]);
        // Its tunnel works still, and tells that the other uplink is dead.
        assert_eq!(to(&[capped, exit(1, BOTH, Some(false))]), [Leaves::ByTunnel, Leaves::ByUplink(0)]);
    }

    #[test]
    fn an_isolated_site_goes_out_if_its_policy_lets_it() {
        let exits = [exit(0, BOTH, Some(false)), exit(1, [true, false], Some(false))];
        let plain = policy(None, Treatment::default());
        assert_eq!(leaves(&plain, &exits, true), [Leaves::ByTunnel; 2]);
        let lets = plain.with_isolation(WhenIsolated::Direct);
        assert_eq!(leaves(&lets, &exits, false), [Leaves::ByTunnel; 2]);
        assert_eq!(leaves(&lets, &exits, true), [Leaves::ByUplink(0); 2]);
        assert_eq!(leaves(&lets, &[], true), [Leaves::ByTunnel; 2]);
        // A class's own order holds, and one that takes no other link than those of its list takes none of these.
        let up = |otherwise| Treatment { links: vec![1], otherwise, ..Treatment::default() };
        let listed = policy(None, up(Otherwise::Any)).with_isolation(WhenIsolated::Direct);
        assert_eq!(leaves(&listed, &exits, true), [Leaves::ByUplink(1), Leaves::ByUplink(0)]);
        let strict = policy(None, up(Otherwise::Drop)).with_isolation(WhenIsolated::Direct);
        assert_eq!(leaves(&strict, &exits, true), [Leaves::ByTunnel; 2]);
    }

    #[test]
    fn a_short_break_is_no_isolation() {
        let start = Instant::from_nanos(0);
        let after = |ms| start + Duration::from_millis(ms);
        let mut isolation = Isolation::begin(start);
        assert!(!isolation.note(after(100), true));
        assert!(!isolation.note(after(5_000), false));
        assert_eq!(isolation.due(after(5_000)), Some(after(6_000)));
        assert!(!isolation.note(after(5_900), true));
        assert!(!isolation.note(after(6_000), false));
        assert!(isolation.note(after(7_000), false));
        assert_eq!(isolation.due(after(7_000)), None);
        assert!(!isolation.note(after(7_001), true));
    }
}
