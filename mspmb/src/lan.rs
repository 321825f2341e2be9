//! What the host must look like for the site's packets to go through the TUN, and only they.
//!
//! | rule or route | so that |
//! | --- | --- |
//! | `from PREFIX to PREFIX lookup main` | the site's own networks reach each other as before |
//! | `from PREFIX lookup 7700` | what the site sends to anywhere else goes to the table below |
//! | table 7700: `default dev msp0` | it goes to the TUN |
//! | table 7700: `unreachable default`, last | it goes nowhere when there is no TUN: an ISP never sees it |
//! | main: `unreachable PREFIX`, last | what comes for an address that nobody has is refused, not sent back |
//!
//! And where an ISP's network overlaps the prefix ([`crate::overlap`]), before all of them:
//!
//! | rule or route | so that |
//! | --- | --- |
//! | `to PREFIX lookup 7701` | the site's packets are delivered by the table below, whatever the ISP's router claims |
//! | table 7701: the site's own routes of the main table | they reach the LAN |
//! | table 7701: `unreachable PREFIX`, last | and nothing else |
//!
//! Packets from the TUN have the site's addresses as destination and are delivered by the main table. The box's own
//! traffic and everybody else's has other sources, and meets none of this.

use crate::overlap::Overlaps;
use dataplane::host::{Change, Sysctl, effective_rp_filter, read_sysctl};
use dataplane::netlink::{MAIN, Route, Rule, Target};
use ipnet::IpNet;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The table of the site's own networks, where an ISP's overlaps them; its rule stands before all others of ours.
const OWN: u32 = TABLE + 1;
const BEFORE: u32 = TABLE - 1;
/// The table of the site's packets; also where its rules stand among all. Any number that nobody else uses does; these
/// are before the main table's rule (32766).
const TABLE: u32 = 7700;
/// Traffic within the site is decided first.
const WITHIN: u32 = TABLE;
/// Then all other traffic of the site.
const OUTWARD: u32 = TABLE + 1;
/// The metric of a way that must win over a last resort; as `ip route` for IPv6 has by default.
const ORDINARY: u32 = 1024;
/// The metric of a last resort: the highest there is, so that any other route to the same prefix wins.
const LAST: u32 = u32::MAX;

/// Rules and routes for these prefixes of the site and this TUN, in the order in which they must come.
pub(crate) fn routing(prefixes: &[IpNet], tun: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for everywhere in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let everywhere = IpNet::new_assert(everywhere, 0);
        let family: Vec<IpNet> = prefixes.iter().copied().filter(|prefix| same_family(prefix, &everywhere)).collect();
        if family.is_empty() {
            continue;
        }
        let to = |target, metric| Change::Route(Route { prefix: everywhere, table: TABLE, metric, target });
        changes.push(to(Target::Unreachable, LAST));
        changes.push(to(Target::Interface(tun.into()), ORDINARY));
        for &prefix in &family {
            changes.push(Change::Route(Route { prefix, table: MAIN, metric: LAST, target: Target::Unreachable }));
        }
        for &from in &family {
            for &to in &family {
                changes.push(Change::Rule(Rule { from, to: Some(to), table: MAIN, priority: WITHIN }));
            }
        }
        for &from in &family {
            changes.push(Change::Rule(Rule { from, to: None, table: TABLE, priority: OUTWARD }));
        }
    }
    changes
}

/// What keeps the site's packets from going by an ISP's routes, in the order in which it must come.
pub(crate) fn protection(overlaps: &Overlaps) -> Vec<Change> {
    let mut changes = Vec::new();
    for (interface, way) in &overlaps.own {
        let target = match way.gateway {
            Some(gateway) => Target::Gateway(gateway, interface.clone()),
            None => Target::Interface(interface.clone()),
        };
        // IPv6 takes 0 for "no metric given" and makes it this one.
        let metric = if way.metric == 0 { ORDINARY } else { way.metric };
        changes.push(Change::Route(Route { prefix: way.prefix, table: OWN, metric, target }));
    }
    // A table has one route for a prefix and a metric: of two, the main table takes the first.
    let mut seen = HashSet::new();
    changes.retain(|change| !matches!(change, Change::Route(route) if !seen.insert((route.prefix, route.metric))));
    for &prefix in &overlaps.prefixes {
        changes.push(Change::Route(Route { prefix, table: OWN, metric: LAST, target: Target::Unreachable }));
    }
    for &prefix in &overlaps.prefixes {
        let from = IpNet::new_assert(
            if prefix.addr().is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() },
            0,
        );
        changes.push(Change::Rule(Rule { from, to: Some(prefix), table: OWN, priority: BEFORE }));
    }
    changes
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

/// How often the kernel asks for an uplink's next hop (ARP, neighbour discovery), in milliseconds: as often as the node
/// asks on a path that is down, so that traffic is back within 300 ms of the link.
const NEIGHBOUR_RETRANSMISSION_MS: &str = "200";

/// The kernel parameters for these prefixes and for the uplinks that exist, by their numbers, in the order in which they
/// must come. It depends on what they are now, and asks for the same again once they are in force.
pub(crate) fn parameters(prefixes: &[IpNet], uplinks: &[u32]) -> Vec<Change> {
    let has = |ipv4: bool| prefixes.iter().any(|prefix| prefix.addr().is_ipv4() == ipv4);
    let mut changes = Vec::new();
    let mut set = |key: String, value: &str| changes.push(Change::Sysctl(Sysctl { key, value: value.into() }));
    for uplink in uplinks {
        // Answers come in by the uplink they belong to, whatever the main table thinks is the way back to the core:
        // the strict filter (1) would drop them.
        if effective_rp_filter(&format!("#{uplink}")) != 0 {
            set(format!("net/ipv4/conf/#{uplink}/rp_filter"), "2");
        }
        // Two uplinks may be on one network (two cables to one router): each asks and answers for its own address only,
        // or the router sends the packets of both to one.
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            let key = format!("net/ipv4/conf/#{uplink}/{key}");
            if read_sysctl(&key).is_ok_and(|now| now == "0" || now == value) {
                set(key, value);
            }
        }
        // On a link that returns after a minute the next hop has been forgotten, and is asked for once a second by
        // default; the tunnels ask five times a second, and need not wait for it.
        for family in ["ipv4", "ipv6"] {
            let retransmission = format!("net/{family}/neigh/#{uplink}/retrans_time_ms");
            if read_sysctl(&retransmission).is_ok() {
                set(retransmission, NEIGHBOUR_RETRANSMISSION_MS);
            }
        }
        // A host that forwards IPv6 forgets what routers advertised, unless told to listen all the same (2).
        let accept_ra = format!("net/ipv6/conf/#{uplink}/accept_ra");
        if has(false) && read_sysctl(&accept_ra).is_ok_and(|value| value != "0") {
            set(accept_ra, "2");
        }
    }
    if has(true) {
        set("net/ipv4/ip_forward".into(), "1");
    }
    if has(false) {
        set("net/ipv6/conf/all/forwarding".into(), "1");
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(prefixes: &[&str]) -> Vec<String> {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
        routing(&prefixes, "msp0").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_last_resorts_stand_before_the_rule_that_leads_to_them() {
        assert_eq!(
            shown(&["198.51.100.0/24"]),
            [
                "route unreachable 0.0.0.0/0 table 7700 metric 4294967295",
                "route 0.0.0.0/0 dev msp0 table 7700 metric 1024",
                "route unreachable 198.51.100.0/24 table 254 metric 4294967295",
                "rule 7700: from 198.51.100.0/24 to 198.51.100.0/24 lookup 254",
                "rule 7701: from 198.51.100.0/24 lookup 7700",
            ]
        );
    }

    #[test]
    fn every_pair_of_one_family_stays_within_the_site() {
        let shown = shown(&["198.51.100.0/25", "2001:db8:100::/48", "203.0.113.0/24"]);
        let within: Vec<_> = shown.iter().filter(|line| line.contains(" to ")).collect();
        assert_eq!(within.len(), 2 * 2 + 1, "{within:?}");
        assert!(!within.iter().any(|line| line.contains("198.51.100.0/25 to 2001")));
        assert!(shown.contains(&"route unreachable ::/0 table 7700 metric 4294967295".to_owned()));
    }
}
