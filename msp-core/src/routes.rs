//! What the kernel is told of the sites: which packets go to the TUN, and that this host forwards.

use crate::config::{Config, SITES_TABLE};
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

/// The place of the rules that send what comes out of a TUN to the sites' table, and of those that send what is for no
/// site to its egress choice's: before the main table's, and behind what an operator puts first. Named after the routes'
/// protocol number.
const TO_SITES: u32 = 7_800;
const TO_CHOICE: u32 = 7_801;

/// What is to be in force on the host for these prefixes. The sites' packets leave by their egress choices; by the main
/// table, if there are none. What is in an aggregate and no site's is refused.
pub(crate) fn wanted(config: &Config, prefixes: impl IntoIterator<Item = IpNet>) -> Vec<Change> {
    let sysctl = |key: String, value: &str| Change::Sysctl(Sysctl { key, value: value.into() });
    let to_sites = &config.tun.name;
    let mut changes = vec![
        sysctl("net/ipv4/ip_forward".into(), "1"),
        sysctl("net/ipv6/conf/all/forwarding".into(), "1"),
        // From one site to another a packet leaves by the interface that it came by, and there is no shorter way to
        // redirect its sender to. The kernel sends redirects if either of the two is set.
        sysctl("net/ipv4/conf/all/send_redirects".into(), "0"),
        sysctl(format!("net/ipv4/conf/{to_sites}/send_redirects"), "0"),
    ];
    // From one site to another there is no way out: each choice's packets look for a site first. That has a table of its
    // own, and is not in each choice's: with many sites and choices those would be many routes.
    let tables = if config.egress.is_empty() { &[MAIN][..] } else { &[MAIN, SITES_TABLE] };
    for aggregate in &config.ingress.policy.aggregates {
        // The transits send packets for all of it, and would get back what is no site's.
        let prefix = aggregate.prefix;
        let route = |&table| Change::Route(Route { prefix, table, metric: BEHIND, target: Target::Unreachable });
        changes.extend(tables.iter().map(route));
    }
    for prefix in prefixes {
        for &table in tables {
            // What is behind comes first: at no moment is the prefix the default route's.
            for (metric, target) in [(BEHIND, Target::Unreachable), (SITE, Target::Interface(to_sites.clone()))] {
                changes.push(Change::Route(Route { prefix, table, metric, target }));
            }
        }
    }
    if !config.egress.is_empty() {
        // Else the kernel tells each route again, with its gateway, to whoever may listen, when an object is turned: for a
        // million routes that takes it a second, in which nobody can change anything.
        changes.push(sysctl("net/ipv4/nexthop_compat_mode".into(), "0"));
    }
    for choice in &config.egress {
        for everywhere in EVERYWHERE {
            // What no transit of the choice has a route for is refused, and does not leave by the host's own default route.
            let (table, target) = (choice.table, Target::Unreachable);
            changes.push(Change::Route(Route { prefix: everywhere, table, metric: BEHIND, target }));
            for (priority, table) in [(TO_SITES, SITES_TABLE), (TO_CHOICE, choice.table)] {
                let by = Some(choice.tun.clone());
                changes.push(Change::Rule(Rule { by, mark: None, from: everywhere, to: None, table, priority }));
            }
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
    use crate::scratch::Folder;

    const SITE_PREFIX: &str = "198.51.100.0/24";

    /// With these choices, the last part of a configuration.
    fn changes(egress: &str) -> Vec<Change> {
        let folder = Folder::new();
        let text = format!(
            r#"
schema = 1
pop = 1
private_key_file = "private.key"
listen = ["0.0.0.0:51820"]
sites = "sites.d"
[bgp]
local_as = 64500
router_id = "192.0.2.1"
[[bgp.neighbor]]
name = "a"
address = "203.0.113.1"
remote_as = 64501
accept = ["table"]
{egress}"#
        );
        let config = Config::load(&folder.write("msp-core.toml", &text)).expect("a good file");
        wanted(&config, [SITE_PREFIX, "2001:db8:100::/48"].map(net))
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn routes(changes: &[Change], to: &str, of: u32) -> Vec<(u32, Target)> {
        let route = |change: &Change| match change {
            Change::Route(Route { prefix, table, metric, target }) if *prefix == net(to) && *table == of => {
                Some((*metric, target.clone()))
            }
            _ => None,
        };
        changes.iter().filter_map(route).collect()
    }

    #[test]
    fn each_prefix_has_a_way_to_its_site_and_never_one_to_the_transit() {
        let changes = changes("");
        for prefix in [SITE_PREFIX, "2001:db8:100::/48"] {
            let way = [(BEHIND, Target::Unreachable), (SITE, Target::Interface("msp0".into()))];
            assert_eq!(routes(&changes, prefix, MAIN), way);
        }
        assert!(!changes.iter().any(|change| matches!(change, Change::Rule(_))));
    }

    /// Else a packet for an address of it that no site has would go round between us and the transit.
    #[test]
    fn what_is_in_an_aggregate_and_no_site_s_is_refused() {
        let changes = changes(
            "[[egress]]\nname = \"x\"\ntransits = [\"a\"]\n[[aggregate]]\nname = \"p\"\nprefix = \"198.51.0.0/16\"\n",
        );
        for table in [MAIN, SITES_TABLE] {
            assert_eq!(routes(&changes, "198.51.0.0/16", table), [(BEHIND, Target::Unreachable)]);
        }
    }

    #[test]
    fn each_choice_s_packets_look_for_a_site_then_into_its_table_and_that_ends_in_nothing() {
        let egress = "[[egress]]\nname = \"x\"\ntransits = [\"a\"]\n[[egress]]\nname = \"y\"\ntransits = [\"a\"]\n";
        let changes = changes(egress);
        let way = [(BEHIND, Target::Unreachable), (SITE, Target::Interface("msp0".into()))];
        assert_eq!(routes(&changes, SITE_PREFIX, SITES_TABLE), way, "whichever choice they are of");
        for (tun, table) in [("msp0", 78_001), ("msp1", 78_002)] {
            assert_eq!(routes(&changes, "0.0.0.0/0", table), [(BEHIND, Target::Unreachable)]);
            assert_eq!(routes(&changes, SITE_PREFIX, table), []);
            let rules: Vec<_> = changes
                .iter()
                .filter_map(|change| match change {
                    Change::Rule(rule) if rule.by.as_deref() == Some(tun) && rule.from == net("0.0.0.0/0") => {
                        Some((rule.priority, rule.table))
                    }
                    _ => None,
                })
                .collect();
            assert_eq!(rules, [(TO_SITES, SITES_TABLE), (TO_CHOICE, table)]);
            // From its first moment on a rule leads to what is to be there.
            let first_rule =
                changes.iter().position(|change| matches!(change, Change::Rule(rule) if rule.table == table));
            let nothing =
                Change::Route(Route { prefix: net("0.0.0.0/0"), table, metric: BEHIND, target: Target::Unreachable });
            assert!(changes.iter().position(|change| *change == nothing) < first_rule);
        }
    }
}
