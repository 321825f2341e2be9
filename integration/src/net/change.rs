//! What the timeline does to interfaces, addresses and NATs while a run goes on, as ISPs, DHCP clients and people's hands
//! do it.

use super::build::{Network, end_script, route_script};
use super::netlink::Protocol;
use super::router::{self, Binding};
use super::{Namespace, Netlink};
use crate::scenario::{Link, Route};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A near end that is not plugged in: it waits in a namespace of its own.
#[derive(Debug)]
pub(super) struct Unplugged {
    namespace: Namespace,
    netlink: Netlink,
}

/// What a renumbering has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renumbering {
    /// The near end gets its new addresses and its new default route.
    Come,
    /// The near end's old ones go.
    Go,
    /// The ISP's old gateway goes, and the ISP lets in no source of before.
    Over,
}

/// Far above what a host gets by itself.
const PLUGGED_INDEX: u32 = 1_000;

impl Network {
    fn link_mut(&mut self, name: &str) -> Result<&mut Link> {
        self.links.get_mut(name).with_context(|| format!("there is no link {name}"))
    }

    /// One step of a renumbering from what the ends have now to `near` and `far`.
    pub(crate) fn renumber(&mut self, name: &str, step: Renumbering, near: &[IpNet], far: &[IpNet]) -> Result<()> {
        let link = self.link_mut(name)?.clone();
        match step {
            Renumbering::Come => {
                let mut script = String::new();
                far.iter().for_each(|address| add(&mut script, address, &link.far.interface));
                self.ip(&link.far.host, &script)?;
                self.let_in(&link, &[&link.near.addresses, near])?;
                let mut script = String::new();
                near.iter().for_each(|address| add(&mut script, address, &link.near.interface));
                self.gateways(&link, far).for_each(|(_, new)| script.push_str(&route_script("replace", &new)));
                self.ip(&link.near.host, &script)
            }
            Renumbering::Go => {
                let mut script = String::new();
                for (old, _) in self.gateways(&link, far) {
                    // The new route may have replaced it.
                    if self.has_route(&link.near.host, &old)? {
                        script.push_str(&route_script("del", &old));
                    }
                }
                let gone = link.near.addresses.iter().filter(|old| !near.contains(old));
                gone.for_each(|old| del(&mut script, old, &link.near.interface));
                self.ip(&link.near.host, &script)
            }
            Renumbering::Over => {
                let mut script = String::new();
                let gone = link.far.addresses.iter().filter(|old| !far.contains(old));
                gone.for_each(|old| del(&mut script, old, &link.far.interface));
                self.ip(&link.far.host, &script)?;
                self.let_in(&link, &[near])?;
                let moved: Vec<(Route, Route)> = self.gateways(&link, far).collect();
                let routes = self.hosts.get_mut(&link.near.host).map(|node| &mut node.host.routes);
                for route in routes.into_iter().flatten() {
                    if let Some((_, new)) = moved.iter().find(|(old, _)| same(old, route)) {
                        *route = new.clone();
                    }
                }
                let link = self.link_mut(name)?;
                (link.near.addresses, link.far.addresses) = (near.to_vec(), far.to_vec());
                Ok(())
            }
        }
    }

    /// The near host's default routes by the link as they are, and as they are to be.
    fn gateways<'a>(&'a self, link: &'a Link, far: &'a [IpNet]) -> impl Iterator<Item = (Route, Route)> + 'a {
        let routes = self.hosts.get(&link.near.host).map(|node| node.host.routes.as_slice()).unwrap_or_default();
        let by_link = routes.iter().filter(|route| {
            route.to == "default"
                && route.interface.as_ref().is_none_or(|interface| *interface == link.near.interface)
                && link.far.addresses.iter().any(|gateway| gateway.addr() == route.via)
        });
        by_link.filter_map(|old| {
            let via = far.iter().map(IpNet::addr).find(|new| new.is_ipv4() == old.via.is_ipv4())?;
            let interface = Some(link.near.interface.clone());
            Some((Route { interface: interface.clone(), ..old.clone() }, Route { via, interface, ..old.clone() }))
        })
    }

    fn has_route(&self, host: &str, route: &Route) -> Result<bool> {
        let family = if route.via.is_ipv6() { "-6" } else { "-4" };
        let via = route.via.to_string();
        let output = self
            .host(host)?
            .spawn(
                std::process::Command::new("ip")
                    .args([family, "route", "show", "default", "via", &via])
                    .stdin(std::process::Stdio::null())
                    .stdout(std::process::Stdio::piped()),
            )?
            .wait_with_output()?;
        let by = route.interface.as_deref().unwrap_or_default();
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().any(|line| line.split(' ').skip_while(|word| *word != "dev").nth(1) == Some(by)))
    }

    /// Lets the networks of these addresses in, if the ISP at the far end filters.
    fn let_in(&self, link: &Link, addresses: &[&[IpNet]]) -> Result<()> {
        let node = self.host(&link.far.host)?;
        let Some(isp) = node.host.isp.as_ref().filter(|isp| !isp.ingress.is_empty()) else { return Ok(()) };
        let mut networks: Vec<IpNet> = addresses.iter().copied().flatten().map(IpNet::trunc).collect();
        networks.sort();
        networks.dedup();
        router::set_ingress(node, isp, &networks)
    }

    /// Pulls the near end out.
    pub(crate) fn unplug(&mut self, name: &str) -> Result<()> {
        let interface = self.link_mut(name)?.near.interface.clone();
        let namespace = Namespace::create()?;
        let netlink = Netlink::open(&namespace, Protocol::Route)?;
        self.host(&self.links[name].near.host)?
            .netlink
            .move_to(&interface, &namespace, None)
            .with_context(|| format!("cannot unplug {interface}"))?;
        self.unplugged.insert(name.to_owned(), Unplugged { namespace, netlink });
        Ok(())
    }

    /// Plugs it in again. To the kernel it is another interface.
    pub(crate) fn plug(&mut self, name: &str) -> Result<()> {
        let link = self.link_mut(name)?.clone();
        let waits = self.unplugged.remove(name).with_context(|| format!("link {name} is plugged in"))?;
        self.changes += 1;
        let node = self.host(&link.near.host)?;
        waits
            .netlink
            .move_to(&link.near.interface, &node.namespace, Some(PLUGGED_INDEX + u32::from(self.changes)))
            .with_context(|| format!("cannot plug {} in", link.near.interface))?;
        drop(waits.namespace);
        self.set_link(name)?;
        self.ip(&link.near.host, &self.up_again(&link))
    }

    /// Gives the near end's interface another name. Linux wants it down for that, as whoever renames interfaces at boot
    /// has it.
    pub(crate) fn rename(&mut self, name: &str, to: &str) -> Result<()> {
        let old = self.link_mut(name)?.near.interface.clone();
        let link = self.link_mut(name)?;
        link.near.interface = to.to_owned();
        let link = link.clone();
        let node =
            self.hosts.get_mut(&link.near.host).with_context(|| format!("there is no host {}", link.near.host))?;
        for route in node.host.routes.iter_mut().filter(|route| route.interface.as_ref() == Some(&old)) {
            route.interface = Some(to.to_owned());
        }
        let script = format!("link set {old} down\nlink set {old} name {to}\n");
        self.ip(&link.near.host, &(script + &self.up_again(&link)))
    }

    /// What brings an interface up with its addresses and the routes that name it.
    fn up_again(&self, link: &Link) -> String {
        let mut script = end_script(&link.near);
        let routes = self.hosts.get(&link.near.host).map(|node| node.host.routes.as_slice()).unwrap_or_default();
        let own = routes.iter().filter(|route| route.interface.as_ref() == Some(&link.near.interface));
        own.for_each(|route| script.push_str(&route_script("replace", route)));
        script
    }

    /// Rebinds the NAT of an ISP's router: to another address of its own, or to other ports.
    pub(crate) fn rebind(&mut self, host: &str, address: Option<IpNet>) -> Result<()> {
        self.changes += 1;
        let node = self.host(host)?;
        let isp = node.host.isp.as_ref().with_context(|| format!("{host} is no ISP's router"))?;
        let to = match address {
            Some(address) => {
                node.feed(&["ip", "-batch", "-"], &format!("address replace {address} dev {}\n", isp.network))?;
                Binding::Address(address)
            }
            None => {
                // Each time other ones: a thousand from 20,000 on, a range of a carrier's NAT for one customer.
                let from = 20_000 + 1_000 * (self.changes % 40);
                Binding::Ports(from, from + 999)
            }
        };
        router::rebind(node, isp, &to)?;
        Netlink::open(&node.namespace, Protocol::Netfilter)?
            .forget_connections()
            .with_context(|| format!("cannot have the NAT of {host} forget its mappings"))
    }

    /// Octets of packets, without their Ethernet headers, that the near end of each link has sent and received.
    pub(crate) fn octets(&self) -> Result<BTreeMap<String, [u64; 2]>> {
        let mut octets = BTreeMap::new();
        for (name, link) in &self.links {
            let namespace = &self.host(&link.near.host)?.namespace;
            let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
            if let Some(counted) = interface_octets(&text, &link.near.interface) {
                octets.insert(name.clone(), counted);
            }
        }
        Ok(octets)
    }
}

/// An Ethernet header: the interface's counters include it.
const ETHERNET: u64 = 14;

/// What /proc/net/dev says of an interface: sent, received.
fn interface_octets(text: &str, interface: &str) -> Option<[u64; 2]> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Received: octets, packets and six more; then sent.
    let net = |at: usize| Some(numbers.get(at)?.saturating_sub(ETHERNET * numbers.get(at + 1)?));
    Some([net(8)?, net(0)?])
}

fn same(a: &Route, b: &Route) -> bool {
    a.to == b.to && a.via == b.via && (b.interface.is_none() || a.interface == b.interface)
}

fn add(script: &mut String, address: &IpNet, interface: &str) {
    let nodad = if address.addr().is_ipv6() { "nodad" } else { "" };
    let _ = writeln!(script, "address replace {address} dev {interface} {nodad}");
}

fn del(script: &mut String, address: &IpNet, interface: &str) {
    let _ = writeln!(script, "address del {address} dev {interface}");
}

#[cfg(test)]
mod tests {
    use super::interface_octets;

    #[test]
    fn octets_are_those_of_packets() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes\n    lo:  10  1 0 0 0 0 0 0  10 1 0 0 0 0 0 0\n  \
                    wan0: 1140   10    0    0    0     0          0         0      228       2    0    0    0     0       0          0\n";
        assert_eq!(interface_octets(text, "wan0"), Some([200, 1000]));
        assert_eq!(interface_octets(text, "wan"), None);
    }
}
