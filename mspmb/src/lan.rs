//! What the host must look like for the site's packets to go through the TUN, and only they.
//!
//! | rule or route | so that |
//! | --- | --- |
//! | `iif UPLINK lookup 7701` | what comes in by an uplink and is not for this host never leaves by another uplink |
//! | `to PREFIX lookup 7701`, where an ISP's network overlaps it | the site's packets reach the LAN, whatever an ISP's router claims |
//! | `from PREFIX to PREFIX lookup main` | the site's own networks reach each other as before |
//! | `from PREFIX fwmark UPLINK lookup 7710` | a flow that leaves by an uplink itself does (`breakout.rs`) |
//! | `from PREFIX fwmark DIRECT lookup 7701` | or by nothing, while that has no route; both only if the policy has such flows |
//! | `from PREFIX lookup 7700` | what the site sends to anywhere else goes to the table below |
//! | table 7700: `default dev msp0` | it goes to the TUN |
//! | table 7700: `unreachable default`, last | it goes nowhere when there is no TUN: an ISP never sees it |
//! | table 7701: the main table's routes, but those out by uplinks | the LAN is reached as before |
//! | table 7701: `unreachable PREFIX` and `blackhole default`, last | and nothing else |
//! | `from ADDRESS lookup 7710`, for each address and slot (7710 to 7717) | what the kernel sends by itself from an uplink's address leaves by that uplink |
//! | table 7710: the uplink's routes and the LAN's | |
//! | `iif LAN from NETWORK lookup main`, for networks that the LAN has besides the site's | what they do is not ours to judge |
//! | `iif LAN lookup 7701` | what a host of the LAN sends with any other source leaves by no uplink |
//! | main: `unreachable PREFIX`, last | what comes for an address that nobody has is refused, not sent back |
//!
//! Packets from the TUN have the site's addresses as destination and are delivered by the main table. The box's own
//! traffic from other addresses, and everybody else's, meets none of this. Without the first rule the box would pass on
//! what comes for an address that its ISP has just taken back: by the default route, to the other ISP. Without the rules
//! by address the kernel would answer for a closed port of one uplink (ICMP) by the other, whose ISP filters it.

use crate::breakout;
use crate::overlap::Overlaps;
use dataplane::host::{Change, Sysctl, effective_rp_filter, read_sysctl};
use dataplane::netlink::{Interface, MAIN, Route, Rule, Target, Way};
use ipnet::IpNet;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The table of where packets from an uplink may go; its rules stand before all others of ours.
const INWARD: u32 = TABLE + 1;
/// The table of the uplink in slot 0; the others follow. Their rule stands after all others of ours.
const OF_UPLINK: u32 = TABLE + 10;
const FROM_OWN: u32 = TABLE + 4;
/// What is left of the LAN's packets: after those of the site's prefixes.
const FROM_OTHER_NETWORKS: u32 = TABLE + 5;
const FROM_NOWHERE: u32 = TABLE + 6;
const FROM_UPLINKS: u32 = TABLE - 2;
const TO_SITE: u32 = TABLE - 1;
/// The table of the site's packets; also where its rules stand among all. Any number that nobody else uses does; these
/// are before the main table's rule (32766).
const TABLE: u32 = 7700;
/// Traffic within the site is decided first.
const WITHIN: u32 = TABLE;
/// Then what leaves by an uplink itself, and what should and cannot now.
const DIRECT: u32 = TABLE + 1;
const DIRECT_NOWHERE: u32 = TABLE + 2;
/// Then all other traffic of the site.
const OUTWARD: u32 = TABLE + 3;
/// The metric of a way that must win over a last resort; as `ip route` for IPv6 has by default.
const ORDINARY: u32 = 1024;
/// The metric of a last resort: the highest there is, so that any other route to the same prefix wins.
const LAST: u32 = u32::MAX;

/// Rules and routes for these prefixes of the site and this TUN, in the order in which they must come.
pub(crate) fn routing(prefixes: &[IpNet], tun: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for (everywhere, family) in families(prefixes) {
        let to = |target, metric| Change::Route(Route { prefix: everywhere, table: TABLE, metric, target });
        changes.push(to(Target::Unreachable, LAST));
        changes.push(to(Target::Interface(tun.into()), ORDINARY));
        for &prefix in &family {
            changes.push(Change::Route(Route { prefix, table: MAIN, metric: LAST, target: Target::Unreachable }));
        }
        let rule = |from, to, table, priority| Change::Rule(Rule { by: None, mark: None, from, to, table, priority });
        for &from in &family {
            changes.extend(family.iter().map(|&to| rule(from, Some(to), MAIN, WITHIN)));
        }
        changes.extend(family.iter().map(|&from| rule(from, None, TABLE, OUTWARD)));
    }
    changes
}

/// What keeps packets from the uplinks, for the site, and with sources that nobody has here, from going out by an uplink, in
/// the order in which it must come.
pub(crate) fn inward(prefixes: &[IpNet], overlaps: &Overlaps) -> Vec<Change> {
    let mut changes = Vec::new();
    for (everywhere, family) in families(prefixes) {
        let to = |prefix, metric, target| Change::Route(Route { prefix, table: INWARD, metric, target });
        changes.push(to(everywhere, LAST, Target::Blackhole));
        changes.extend(family.iter().map(|&prefix| to(prefix, LAST, Target::Unreachable)));
        for (interface, way) in overlaps.inward.iter().filter(|(_, way)| same_family(&way.prefix, &everywhere)) {
            changes.push(Change::Route(copy(interface, way, INWARD)));
        }
        let rule =
            |by, to, priority| Change::Rule(Rule { by, mark: None, from: everywhere, to, table: INWARD, priority });
        changes.extend(overlaps.uplinks.iter().map(|uplink| rule(Some(uplink.clone()), None, FROM_UPLINKS)));
        let overlapping = overlaps.prefixes.iter().filter(|prefix| same_family(prefix, &everywhere));
        changes.extend(overlapping.map(|&prefix| rule(None, Some(prefix), TO_SITE)));
        for (lan, networks) in &overlaps.lans {
            for &from in networks.iter().filter(|network| same_family(network, &everywhere)) {
                let by = Some(lan.clone());
                changes.push(Change::Rule(Rule {
                    by,
                    mark: None,
                    from,
                    to: None,
                    table: MAIN,
                    priority: FROM_OTHER_NETWORKS,
                }));
            }
            changes.push(rule(Some(lan.clone()), None, FROM_NOWHERE));
        }
    }
    without_twins(changes)
}

/// What keeps packets from an uplink's address on that uplink, for the uplinks by their slots, in the order in which it
/// must come. Our own sockets are bound, and need none of it.
pub(crate) fn outward(prefixes: &[IpNet], uplinks: &[(u8, &Interface)], overlaps: &Overlaps) -> Vec<Change> {
    let mut changes = Vec::new();
    for (slot, uplink) in uplinks {
        let table = OF_UPLINK + u32::from(*slot);
        let of_the_site = |net: &IpNet| prefixes.iter().any(|prefix| prefix.contains(net));
        let mut own: Vec<&Way> =
            uplink.routes.iter().filter(|way| way.is_plain() && !of_the_site(&way.prefix)).collect();
        // A next hop must be known before a route leads to it.
        own.sort_by_key(|way| way.gateway.is_some());
        let own = own.into_iter().map(|way| (&uplink.name, way));
        for (interface, way) in own.chain(overlaps.inward.iter().map(|(name, way)| (name, way))) {
            changes.push(Change::Route(copy(interface, way, table)));
        }
        for address in uplink.usable().map(IpNet::from).filter(|address| !of_the_site(address)) {
            changes.push(Change::Rule(Rule {
                by: None,
                mark: None,
                from: address,
                to: None,
                table,
                priority: FROM_OWN,
            }));
        }
    }
    without_twins(changes)
}

/// What leads the packets of direct flows to their uplinks, by the slots that there are, in the order in which it must come.
pub(crate) fn direct(prefixes: &[IpNet], slots: &[u8]) -> Vec<Change> {
    let rule = |from, mark, table, priority| {
        Change::Rule(Rule { by: None, mark: Some(mark), from, to: None, table, priority })
    };
    let mut changes: Vec<Change> =
        prefixes.iter().map(|&from| rule(from, breakout::DIRECT, INWARD, DIRECT_NOWHERE)).collect();
    for &slot in slots {
        let table = OF_UPLINK + u32::from(slot);
        changes.extend(prefixes.iter().map(|&from| rule(from, breakout::mark(slot), table, DIRECT)));
    }
    changes
}

/// A route of the main table for another one.
fn copy(interface: &str, way: &Way, table: u32) -> Route {
    let target = match way.gateway {
        Some(gateway) => Target::Gateway(gateway, interface.to_owned()),
        None => Target::Interface(interface.to_owned()),
    };
    // IPv6 takes 0 for "no metric given" and makes it this one.
    Route { prefix: way.prefix, table, metric: if way.metric == 0 { ORDINARY } else { way.metric }, target }
}

/// A table has one route for a prefix and a metric: of two, the first is taken, as the main table does.
fn without_twins(mut changes: Vec<Change>) -> Vec<Change> {
    let mut seen = HashSet::new();
    changes.retain(|change| match change {
        Change::Route(route) => seen.insert((route.table, route.prefix, route.metric)),
        _ => true,
    });
    changes
}

/// Those of each family that there are, behind the prefix of everything.
fn families(prefixes: &[IpNet]) -> impl Iterator<Item = (IpNet, Vec<IpNet>)> {
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].into_iter().filter_map(|unspecified| {
        let everywhere = IpNet::new_assert(unspecified, 0);
        let family: Vec<IpNet> = prefixes.iter().copied().filter(|prefix| same_family(prefix, &everywhere)).collect();
        (!family.is_empty()).then_some((everywhere, family))
    })
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

/// How often the kernel asks for an uplink's next hop (ARP, neighbour discovery), in milliseconds: as often as the node
/// asks on a path that is down, so that traffic is back within 300 ms of the link.
const NEIGHBOUR_RETRANSMISSION_MS: &str = "200";
/// How often in a row it asks before it gives up: never, in effect (two days). By default it gives up after the third
/// question and begins anew with the next packet; one that came just before the end of such a round waited for another
/// round, and traffic for 400 ms instead of 200.
const NEIGHBOUR_QUESTIONS: &str = "1000000";
/// What may wait for the answer, in octets: two datagrams as the kernel counts them. Since it does not give up, more
/// would be a burst of stale ones when the link returns.
const NEIGHBOUR_QUEUE: &str = "4608";

/// The kernel parameters for these prefixes and for the uplinks that exist, by their numbers, in the order in which they
/// must come. `direct`: flows may leave by them. It depends on what they are now, and asks for the same again once they are in
/// force.
pub(crate) fn parameters(prefixes: &[IpNet], uplinks: &[u32], direct: bool) -> Vec<Change> {
    let has = |ipv4: bool| prefixes.iter().any(|prefix| prefix.addr().is_ipv4() == ipv4);
    let mut changes = Vec::new();
    let mut set = |key: String, value: &str| changes.push(Change::Sysctl(Sysctl { key, value: value.into() }));
    for uplink in uplinks {
        // Answers come in by the uplink they belong to, whatever the main table thinks is the way back to the core:
        // the strict filter (1) would drop them.
        if effective_rp_filter(&format!("#{uplink}")) != 0 {
            set(format!("net/ipv4/conf/#{uplink}/rp_filter"), "2");
        }
        // The way back of a direct flow is its uplink's table, which its mark leads to: the filter has to look at that.
        if direct && has(true) {
            set(format!("net/ipv4/conf/#{uplink}/src_valid_mark"), "1");
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
            for (key, value) in [
                ("retrans_time_ms", NEIGHBOUR_RETRANSMISSION_MS),
                ("mcast_solicit", NEIGHBOUR_QUESTIONS),
                ("unres_qlen_bytes", NEIGHBOUR_QUEUE),
            ] {
                let key = format!("net/{family}/neigh/#{uplink}/{key}");
                if read_sysctl(&key).is_ok() {
                    set(key, value);
                }
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
    use dataplane::netlink::Address;

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
                "rule 7703: from 198.51.100.0/24 lookup 7700",
            ]
        );
    }

    #[test]
    fn a_direct_flow_leaves_by_its_uplink_or_by_nothing() {
        let prefixes: [IpNet; 1] = ["198.51.100.0/24".parse().expect("a prefix")];
        let shown: Vec<String> = direct(&prefixes, &[0, 3]).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "rule 7702: from 198.51.100.0/24 fwmark 0x80000000/0x80000000 lookup 7701",
                "rule 7701: from 198.51.100.0/24 fwmark 0x80000000/0xf0000000 lookup 7710",
                "rule 7701: from 198.51.100.0/24 fwmark 0xb0000000/0xf0000000 lookup 7713",
            ]
        );
    }

    #[test]
    fn what_comes_by_an_uplink_goes_to_the_lan_or_nowhere() {
        let prefixes: [IpNet; 1] = ["198.51.100.0/24".parse().expect("a prefix")];
        let way = |prefix: &str, gateway: Option<&str>, metric| {
            let gateway = gateway.map(|text| text.parse().expect("an address"));
            ("lan0".to_owned(), Way { prefix: prefix.parse().expect("a prefix"), gateway, metric })
        };
        let mut overlaps = Overlaps {
            uplinks: vec!["wan0".into()],
            inward: vec![
                way("198.51.100.0/25", None, 0),
                way("2001:db8::/64", None, 256),
                way("198.51.100.128/25", Some("198.51.100.2"), 20),
                way("198.51.100.128/25", Some("198.51.100.3"), 20),
            ],
            ..Overlaps::default()
        };
        let shown =
            |overlaps: &Overlaps| inward(&prefixes, overlaps).iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut expected = vec![
            "route blackhole 0.0.0.0/0 table 7701 metric 4294967295",
            "route unreachable 198.51.100.0/24 table 7701 metric 4294967295",
            "route 198.51.100.0/25 dev lan0 table 7701 metric 1024",
            "route 198.51.100.128/25 via 198.51.100.2 dev lan0 table 7701 metric 20",
            "rule 7698: from 0.0.0.0/0 iif wan0 lookup 7701",
        ];
        assert_eq!(shown(&overlaps), expected);
        overlaps.prefixes = prefixes.into();
        expected.push("rule 7699: from 0.0.0.0/0 to 198.51.100.0/24 lookup 7701");
        assert_eq!(shown(&overlaps), expected);
        let others = ["192.168.5.0/24", "2001:db8::/64"].map(|net| net.parse().expect("a network"));
        overlaps.lans = vec![("lan0".into(), others.into())];
        expected.push("rule 7705: from 192.168.5.0/24 iif lan0 lookup 254");
        expected.push("rule 7706: from 0.0.0.0/0 iif lan0 lookup 7701");
        assert_eq!(shown(&overlaps), expected);
    }

    #[test]
    fn what_is_sent_from_an_uplinks_address_leaves_by_it_or_goes_to_the_lan() {
        let prefixes: [IpNet; 1] = ["198.51.100.0/24".parse().expect("a prefix")];
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        let way = |prefix, gateway: Option<&str>| Way {
            prefix: net(prefix),
            gateway: gateway.map(|text| text.parse().expect("an address")),
            metric: 100,
        };
        let uplink = Interface {
            index: 3,
            name: "wan0".into(),
            running: true,
            loopback: false,
            hardware: None,
            mtu: 1500,
            addresses: ["192.168.1.2/24", "198.51.100.9/24"]
                .map(|text| Address { net: net(text), usable: true, secondary: false })
                .into(),
            routes: vec![
                way("0.0.0.0/0", Some("192.168.1.1")),
                way("192.168.1.0/24", None),
                way("198.51.100.0/24", None),
            ],
        };
        let overlaps = Overlaps {
            inward: vec![("lan0".into(), way("198.51.100.0/24", None)), ("lan0".into(), way("192.168.1.0/24", None))],
            ..Overlaps::default()
        };
        let shown: Vec<String> =
            outward(&prefixes, &[(2, &uplink)], &overlaps).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "route 192.168.1.0/24 dev wan0 table 7712 metric 100",
                "route 0.0.0.0/0 via 192.168.1.1 dev wan0 table 7712 metric 100",
                "route 198.51.100.0/24 dev lan0 table 7712 metric 100",
                "rule 7704: from 192.168.1.2/32 lookup 7712",
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
