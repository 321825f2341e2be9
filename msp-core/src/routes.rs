//! What the kernel is told of the sites: which packets go to the TUN, and that this host forwards.

use crate::config::Egress;
use dataplane::host::{Change, Sysctl};
use dataplane::netlink::{MAIN, Route, Rule, Target};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The metric of the routes to the sites: the best, since what is a site's goes nowhere else.
const SITE: u32 = 1;
/// The metric of what stands behind them. While the TUN is away or the daemon restarts, a default route would send a
/// site's packets back to the transit, which would send them here again, and so on to the end of their TTL. Worse than
/// any metric that another program chooses: whoever else has a route for the prefix keeps it.
const BEHIND: u32 = u32::MAX - 1;

/// The place of the rules that send what comes out of a TUN to its egress choice's table: before the main table's, and
/// behind what an operator puts first. Named after the routes' protocol number.
const RULE: u32 = 7_800;

/// What is to be in force on the host for these prefixes behind this TUN, whose packets leave by this choice; by the main
/// table, if there is none. What is in an aggregate and no site's is refused.
pub(crate) fn wanted(
    tun: &str,
    prefixes: impl IntoIterator<Item = IpNet>,
    aggregates: impl IntoIterator<Item = IpNet>,
    egress: Option<&Egress>,
) -> Vec<Change> {
    let sysctl = |key: String, value: &str| Change::Sysctl(Sysctl { key, value: value.into() });
    let mut changes = vec![
        sysctl("net/ipv4/ip_forward".into(), "1"),
        sysctl("net/ipv6/conf/all/forwarding".into(), "1"),
        // From one site to another a packet leaves by the interface that it came by, and there is no shorter way to
        // redirect its sender to. The kernel sends redirects if either of the two is set.
        sysctl("net/ipv4/conf/all/send_redirects".into(), "0"),
        sysctl(format!("net/ipv4/conf/{tun}/send_redirects"), "0"),
    ];
    let tables: Vec<u32> = std::iter::once(MAIN).chain(egress.map(|egress| egress.table)).collect();
    for prefix in aggregates {
        // The transits send packets for all of it, and would get back what is no site's.
        let route = |&table| Change::Route(Route { prefix, table, metric: BEHIND, target: Target::Unreachable });
        changes.extend(tables.iter().map(route));
    }
    for prefix in prefixes {
        // From one site to another there is no way out: the choice's table knows the sites too.
        for &table in &tables {
            // What is behind comes first: at no moment is the prefix the default route's.
            for (metric, target) in [(BEHIND, Target::Unreachable), (SITE, Target::Interface(tun.to_owned()))] {
                changes.push(Change::Route(Route { prefix, table, metric, target }));
            }
        }
    }
    if let Some(&Egress { table, .. }) = egress {
        // Else the kernel tells each route again, with its gateway, to whoever may listen, when an object is turned: for a
        // million routes that takes it a second, in which nobody can change anything.
        changes.push(sysctl("net/ipv4/nexthop_compat_mode".into(), "0"));
        for everywhere in EVERYWHERE {
            // What no transit of the choice has a route for is refused, and does not leave by the host's own default route.
            changes.push(Change::Route(Route {
                prefix: everywhere,
                table,
                metric: BEHIND,
                target: Target::Unreachable,
            }));
            let rule = Rule { by: Some(tun.to_owned()), from: everywhere, to: None, table, priority: RULE };
            changes.push(Change::Rule(rule));
        }
    }
    changes
}

const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prefix_has_a_way_to_its_site_and_never_one_to_the_transit() {
        let prefixes: [IpNet; 2] = ["198.51.100.0/24", "2001:db8:100::/48"].map(|p| p.parse().expect("a prefix"));
        let changes = wanted("msp0", prefixes, [], None);
        for prefix in prefixes {
            let routes: Vec<_> = changes
                .iter()
                .filter_map(|change| match change {
                    Change::Route(route) if route.prefix == prefix => Some((route.metric, route.target.clone())),
                    _ => None,
                })
                .collect();
            assert_eq!(routes, [(BEHIND, Target::Unreachable), (SITE, Target::Interface("msp0".into()))]);
        }
    }

    /// Else a packet for an address of it that no site has would go round between us and the transit.
    #[test]
    fn what_is_in_an_aggregate_and_no_site_s_is_refused() {
        let site: IpNet = "198.51.100.0/26".parse().expect("a prefix");
        let aggregate: IpNet = "198.51.100.0/24".parse().expect("a prefix");
        let egress = Egress { name: "all".into(), table: 78_001, transits: Vec::new() };
        let changes = wanted("msp0", [site], [aggregate], Some(&egress));
        for table in [MAIN, 78_001] {
            let route = Route { prefix: aggregate, table, metric: BEHIND, target: Target::Unreachable };
            assert!(changes.contains(&Change::Route(route)));
        }
    }

    #[test]
    fn a_choice_s_table_knows_the_sites_and_ends_in_nothing() {
        let egress = Egress { name: "all".into(), table: 78_001, transits: Vec::new() };
        let site: IpNet = "198.51.100.0/24".parse().expect("a prefix");
        let changes = wanted("msp0", [site], [], Some(&egress));
        let in_table =
            |prefix, metric, target| changes.contains(&Change::Route(Route { prefix, table: 78_001, metric, target }));
        assert!(in_table(site, SITE, Target::Interface("msp0".into())));
        for everywhere in EVERYWHERE {
            assert!(in_table(everywhere, BEHIND, Target::Unreachable));
            let rule = Rule { by: Some("msp0".into()), from: everywhere, to: None, table: 78_001, priority: RULE };
            let place = changes.iter().position(|change| *change == Change::Rule(rule.clone()));
            assert!(place.is_some_and(|place| place > 3), "after the routes of its table");
        }
    }
}
