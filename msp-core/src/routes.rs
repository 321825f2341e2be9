//! What the kernel is told of the sites: which packets go to the TUN, and that this host forwards.

use dataplane::host::{Change, Sysctl};
use dataplane::netlink::{MAIN, Route, Target};
use ipnet::IpNet;

/// The metric of the routes to the sites: the best, since what is a site's goes nowhere else.
const SITE: u32 = 1;
/// The metric of what stands behind them. While the TUN is away or the daemon restarts, a default route would send a
/// site's packets back to the transit, which would send them here again, and so on to the end of their TTL. Worse than
/// any metric that another program chooses: whoever else has a route for the prefix keeps it.
const BEHIND: u32 = u32::MAX - 1;

/// What is to be in force on the host for these prefixes behind this TUN.
pub(crate) fn wanted(tun: &str, prefixes: impl IntoIterator<Item = IpNet>) -> Vec<Change> {
    let sysctl = |key: String, value: &str| Change::Sysctl(Sysctl { key, value: value.into() });
    let mut changes = vec![
        sysctl("net/ipv4/ip_forward".into(), "1"),
        sysctl("net/ipv6/conf/all/forwarding".into(), "1"),
        // From one site to another a packet leaves by the interface that it came by, and there is no shorter way to
        // redirect its sender to. The kernel sends redirects if either of the two is set.
        sysctl("net/ipv4/conf/all/send_redirects".into(), "0"),
        sysctl(format!("net/ipv4/conf/{tun}/send_redirects"), "0"),
    ];
    for prefix in prefixes {
        // What is behind comes first: at no moment is the prefix the default route's.
        for (metric, target) in [(BEHIND, Target::Unreachable), (SITE, Target::Interface(tun.to_owned()))] {
            changes.push(Change::Route(Route { prefix, table: MAIN, metric, target }));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prefix_has_a_way_to_its_site_and_never_one_to_the_transit() {
        let prefixes: [IpNet; 2] = ["198.51.100.0/24", "2001:db8:100::/48"].map(|p| p.parse().expect("a prefix"));
        let changes = wanted("msp0", prefixes);
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
}
