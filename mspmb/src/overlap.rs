//! Networks of ISPs that overlap the site's own: what goes wrong then, and what keeps it right.
//!
//! An ISP's router can hand out anything, and what it hands out becomes a route of the main table, by which packets for
//! the site's hosts are delivered too. The tunnel minds nothing of it: its sockets are bound to device and address. So:
//!
//! | an uplink has | then |
//! | --- | --- |
//! | an address within the site's prefixes | it is not used: replies to it would be the site's; others of the uplink are |
//! | a route to the site's prefix or a part of it | the other interfaces' routes are put before it, in a table of their own |
//! | a network around the site's prefix | nothing: the site's routes are more specific, or refuse |
//! | the network of another uplink | nothing: each socket is bound to its device |
//! | a network that the LAN has besides its prefix | the tunnel works; the box itself reaches only one of the two: a warning |

use crate::find::{Role, within};
use dataplane::netlink::{Interface, Way};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overlaps {
    /// The uplinks' names, but of one that the LAN is on as well.
    pub(crate) uplinks: Vec<String>,
    /// The routes out of all other interfaces, with their names: by them packets from an uplink may go on, and by no
    /// others.
    pub(crate) inward: Vec<(String, Way)>,
    /// The site's prefixes of which an ISP's route takes a part.
    pub(crate) prefixes: Vec<IpNet>,
    /// The LAN's interfaces, but for one that is an uplink as well, with the networks that they have besides the site's.
    pub(crate) lans: Vec<(String, Vec<IpNet>)>,
    /// What the operator should know, by the uplink's number.
    pub(crate) warnings: BTreeMap<u32, Vec<String>>,
}

/// Looks at all routes and addresses. `tun` is ours, and no way to the site's hosts.
pub(crate) fn examine(
    prefixes: &[IpNet],
    interfaces: &BTreeMap<u32, Interface>,
    roles: &BTreeMap<u32, Role>,
    tun: &str,
) -> Overlaps {
    let of = |wanted: fn(Role) -> bool| {
        let wanted = move |interface: &&Interface| roles.get(&interface.index).is_some_and(|&role| wanted(role));
        interfaces.values().filter(wanted)
    };
    let lan: Vec<&Interface> = of(Role::is_lan).collect();
    let mut found = Overlaps::default();
    for uplink in of(|role| role == Role::Uplink) {
        let mut warnings = Vec::new();
        for address in &uplink.addresses {
            if let Some(prefix) = within(prefixes, &address.net) {
                warnings.push(format!(
                    "its address {} lies in the site's own {prefix} and is not used; have the ISP's router hand out \
                     another network",
                    address.net
                ));
            }
        }
        for way in uplink.routes.iter().filter(|way| way.prefix.prefix_len() != 0) {
            let taken = prefixes.iter().find(|prefix| prefix.contains(&way.prefix));
            if let (Some(prefix), Some(own)) = (taken, lan.first()) {
                if !found.prefixes.contains(prefix) {
                    found.prefixes.push(*prefix);
                }
                warnings.push(format!(
                    "its network {} overlaps the site's {prefix} on {}; the site's packets are kept on their way by a \
                     rule; have the ISP's router hand out another network",
                    way.prefix, own.name
                ));
            } else if let Some((theirs, own)) = shared(uplink, way, &lan, prefixes) {
                warnings.push(format!(
                    "its network {} overlaps {theirs} on {own}; the tunnel works, but the box itself reaches hosts on \
                     one of the two only; give the LAN or the ISP's router another network",
                    way.prefix
                ));
            }
        }
        warnings.dedup();
        if !warnings.is_empty() {
            found.warnings.insert(uplink.index, warnings);
        }
    }
    let others = |lan: &Interface| {
        let networks = lan.addresses.iter().map(|address| address.net.trunc());
        // What has a link-local source goes no farther than the box (RFC 4291, section 2.5.6).
        let forwarded =
            networks.filter(|network| !matches!(network, IpNet::V6(v6) if v6.addr().is_unicast_link_local()));
        forwarded.filter(|network| within(prefixes, network).is_none()).collect()
    };
    found.lans = of(|role| role == Role::Lan).map(|lan| (lan.name.clone(), others(lan))).collect();
    found.uplinks = of(|role| role == Role::Uplink).map(|uplink| uplink.name.clone()).collect();
    let others = of(|role| role != Role::Uplink).filter(|interface| !interface.loopback && interface.name != tun);
    let ways = others.flat_map(|interface| interface.routes.iter().map(|way| (interface.name.clone(), way.clone())));
    found.inward = ways.filter(|(_, way)| way.prefix.prefix_len() != 0 && way.is_plain()).collect();
    // A next hop must be known before a route leads to it.
    found.inward.sort_by_key(|(_, way)| way.gateway.is_some());
    found
}

/// A network of the LAN outside the site's prefixes of which an uplink's route takes a part or its address is one, and
/// the LAN's interface. A wider route takes nothing.
fn shared<'a>(uplink: &Interface, way: &Way, lan: &[&'a Interface], prefixes: &[IpNet]) -> Option<(IpNet, &'a str)> {
    let own = lan.iter().flat_map(|interface| interface.routes.iter().map(|own| (own.prefix, interface.name.as_str())));
    own.filter(|(own, _)| own.prefix_len() != 0 && !prefixes.iter().any(|prefix| prefix.contains(own))).find(
        |(own, _)| {
            let within = || uplink.addresses.iter().any(|address| own.contains(&address.net.addr()));
            own.contains(&way.prefix) || (way.prefix.contains(own) && within())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::netlink::Address;

    fn interface(index: u32, name: &str, addresses: &[&str], routes: &[&str]) -> Interface {
        let net = |text: &&str| text.parse::<IpNet>().expect("an address");
        let connected = addresses.iter().map(|text| net(text).trunc());
        Interface {
            index,
            name: name.into(),
            running: true,
            loopback: false,
            hardware: None,
            mtu: 1500,
            addresses: addresses
                .iter()
                .map(|text| Address { net: net(text), usable: true, secondary: false })
                .collect(),
            routes: connected
                .map(|prefix| Way { prefix, gateway: None, metric: 0 })
                .chain(routes.iter().map(|text| {
                    let (prefix, gateway) = text.split_once(" via ").expect("a route");
                    Way { prefix: net(&prefix), gateway: gateway.parse().ok(), metric: 100 }
                }))
                .collect(),
        }
    }

    /// The LAN has 198.51.100.0/25 of the site's /24 (and 192.168.5.0/24 for its own use), a router of the LAN the rest.
    fn look(uplink: Interface) -> (Overlaps, Vec<String>) {
        let lan = interface(
            2,
            "lan0",
            &["198.51.100.1/25", "192.168.5.1/24", "2001:db8:100::1/64"],
            &["198.51.100.128/25 via 198.51.100.2"],
        );
        let all = [lan, uplink].map(|interface| (interface.index, interface)).into();
        let roles = [(2, Role::Lan), (3, Role::Uplink)].into();
        let prefixes = ["198.51.100.0/24", "2001:db8:100::/48"].map(|text| text.parse().expect("a prefix"));
        let mut found = examine(&prefixes, &all, &roles, "msp0");
        let warnings = found.warnings.remove(&3).unwrap_or_default();
        (found, warnings)
    }

    #[test]
    fn networks_apart_or_around_need_nothing() {
        for uplink in [
            interface(3, "wan0", &["192.168.1.2/24"], &["0.0.0.0/0 via 192.168.1.1"]),
            // Around: the site's routes are longer.
            interface(3, "wan0", &["198.51.7.2/16"], &["0.0.0.0/0 via 198.51.0.1"]),
            interface(3, "wan0", &["10.0.0.2/24"], &["0.0.0.0/1 via 10.0.0.1", "128.0.0.0/1 via 10.0.0.1"]),
            interface(3, "wan0", &["2001:db8:1::2/64"], &["::/0 via fe80::1"]),
        ] {
            let (found, warnings) = look(uplink);
            assert_eq!((found.prefixes, warnings), (vec![], vec![]));
            assert_eq!(found.lans, [("lan0".to_owned(), vec!["192.168.5.0/24".parse().expect("a network")])]);
        }
    }

    #[test]
    fn a_network_within_or_equal_to_the_sites_takes_nothing_from_the_lan() {
        for (uplink, prefix, refused) in [
            (interface(3, "wan0", &["198.51.100.200/24"], &["0.0.0.0/0 via 198.51.100.254"]), "198.51.100.0/24", true),
            (interface(3, "wan0", &["198.51.100.9/29"], &[]), "198.51.100.0/24", true),
            // A route by DHCP (RFC 3442), to draw the site's packets out.
            (interface(3, "wan0", &["10.0.0.2/24"], &["198.51.100.0/25 via 10.0.0.1"]), "198.51.100.0/24", false),
            // An on-link prefix of a router advertisement.
            (interface(3, "wan0", &["2001:db8:100::5/64"], &[]), "2001:db8:100::/48", true),
        ] {
            let (found, warnings) = look(uplink);
            assert_eq!(found.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>(), [prefix]);
            let mentions = |text: &str| warnings.iter().any(|warning| warning.contains(text));
            assert!(mentions("kept on their way by a rule") && mentions("on lan0"), "{warnings:?}");
            assert_eq!(mentions("is not used"), refused, "{warnings:?}");
            let own: Vec<String> = found.inward.iter().map(|(name, way)| format!("{} {name}", way.prefix)).collect();
            let expected =
                ["198.51.100.0/25 lan0", "192.168.5.0/24 lan0", "2001:db8:100::/64 lan0", "198.51.100.128/25 lan0"];
            assert_eq!(own, expected, "the next hop's network comes first");
            assert_eq!(found.uplinks, ["wan0"]);
        }
    }

    #[test]
    fn a_network_that_the_lan_has_besides_is_a_warning() {
        for address in ["192.168.5.9/24", "192.168.5.129/25", "192.168.5.9/16"] {
            let (found, warnings) = look(interface(3, "wan0", &[address], &["0.0.0.0/0 via 192.168.5.254"]));
            assert_eq!(found.prefixes, []);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains("192.168.5.0/24 on lan0") && warnings[0].contains("the tunnel works"));
        }
    }

    #[test]
    fn uplink_and_lan_on_one_cable_take_nothing_from_each_other() {
        let both = interface(3, "eth0", &["198.51.100.1/24", "192.168.1.2/24"], &["0.0.0.0/0 via 192.168.1.1"]);
        let prefixes = ["198.51.100.0/24".parse().expect("a prefix")];
        let found = examine(&prefixes, &[(3, both)].into(), &[(3, Role::Both)].into(), "msp0");
        assert_eq!((found.uplinks.len(), found.prefixes.len(), found.warnings.len()), (0, 0, 0));
    }
}
