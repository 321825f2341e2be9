//! From a scenario's hosts and links to namespaces with everything in them.

use super::change::Unplugged;
use super::{Filter, Namespace, Netem, Netlink, Protocol, filter, router};
use crate::scenario::{Direction, End, Host, Link, Route, Scenario};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Reads a script of nftables.
const NFT: &[&str] = &["nft", "-f", "-"];

/// The network of a run.
#[derive(Debug)]
pub struct Network {
    /// The hosts, by name.
    pub hosts: BTreeMap<String, Node>,
    /// The links, by name, with names and addresses as they are now.
    pub links: BTreeMap<String, Link>,
    /// Near ends that are not plugged in, by link.
    pub(super) unplugged: BTreeMap<String, Unplugged>,
    /// What each link does in its two directions at the moment, but for stalls.
    shaped: BTreeMap<String, [Netem; 2]>,
    /// The links that have a filter at any time.
    pub filtered: BTreeSet<String>,
    /// How often something was plugged in or a NAT rebound: each time is another one.
    pub(super) changes: u16,
}

/// A host that stands.
#[derive(Debug)]
pub struct Node {
    /// Its namespace.
    pub namespace: Namespace,
    /// For changes while the run is measured.
    pub netlink: Netlink,
    /// What the file says of it; its routes as they are now.
    pub(super) host: Host,
}

impl Network {
    /// Builds it all.
    pub fn build(scenario: &Scenario) -> Result<Self> {
        let mut hosts = BTreeMap::new();
        for (name, host) in &scenario.hosts {
            let node = Node::create(host).with_context(|| format!("cannot make the namespace of host {name}"))?;
            hosts.insert(name.clone(), node);
        }
        let (links, filtered) = (scenario.links.clone(), scenario.filtered());
        let (unplugged, shaped) = (BTreeMap::new(), BTreeMap::new());
        let mut network = Network { hosts, links, unplugged, shaped, filtered, changes: 0 };
        for (name, link) in &network.links {
            let (near, far) = (&link.near, &link.far);
            let mtu = link.mtu.map(|mtu| format!("mtu {mtu}")).unwrap_or_default();
            let there = network.host(&far.host)?.namespace.path();
            let script = format!(
                "link add {} {mtu} type veth peer name {} {mtu} netns {there}\n",
                near.interface, far.interface
            );
            network.ip(&near.host, &script).with_context(|| format!("cannot make link {name}"))?;
        }
        for (name, node) in &network.hosts {
            let script = network.addresses(name, &node.host);
            network.ip(name, &script).with_context(|| format!("cannot address host {name}"))?;
            router::set_up(node).with_context(|| format!("cannot set up the filters of router {name}"))?;
            if node.host.filter_icmp {
                let script = filter::icmp_errors();
                node.feed(NFT, &script).with_context(|| format!("cannot filter ICMP at host {name}"))?;
            }
        }
        for (name, link) in &scenario.links {
            if scenario.netem {
                network
                    .set_link(name)
                    .with_context(|| format!("cannot put netem on link {name}; does this kernel have it?"))?;
            }
            if network.filtered.contains(name) {
                network.set_filter(link, link.filter.as_ref()).with_context(|| format!("cannot filter link {name}"))?;
            }
            // A wire has no bundles (GSO). One that has a long packet in it would be dropped whole, the short ones too; netem
            // would lose one whole, and take it for one packet of its limit. So what comes to a link from elsewhere is sent one by
            // one, and at its own interface none can be made, since that adds no checksums.
            for (end, direction) in [(&link.near, Direction::Up), (&link.far, Direction::Down)] {
                if !scenario.bundles || scenario.lengths_matter() {
                    network.ip(&end.host, &format!("link set {} gso_max_segs 1\n", end.interface))?;
                }
                if !scenario.bundles && link.netem(direction).is_narrow() {
                    network.host(&end.host)?.feed(&["ethtool", "-K", &end.interface, "tx", "off"], "")?;
                }
            }
        }
        for (name, _) in scenario.links.iter().filter(|(_, link)| !link.plugged) {
            network.unplug(name)?;
        }
        Ok(network)
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Result<&Node> {
        self.hosts.get(name).with_context(|| format!("there is no host {name}"))
    }

    /// Makes a link what its file says.
    pub fn set_link(&mut self, name: &str) -> Result<()> {
        let link = self.link(name)?.clone();
        [Direction::Up, Direction::Down].into_iter().try_for_each(|d| self.shape(name, d, link.netem(d)))
    }

    /// The link of that name.
    pub fn link(&self, name: &str) -> Result<&Link> {
        self.links.get(name).with_context(|| format!("there is no link {name}"))
    }

    /// Says what one direction of a link does from now on.
    pub fn shape(&mut self, name: &str, direction: Direction, netem: Netem) -> Result<()> {
        self.set_netem(name, direction, &netem)?;
        self.shaped.entry(name.to_owned()).or_default()[usize::from(direction == Direction::Down)] = netem;
        Ok(())
    }

    /// Holds back what one direction of a link is given from now on: it waits so much longer, and nothing overtakes it.
    /// Packets that are under way already are not touched.
    pub fn hold(&self, name: &str, direction: Direction, longer: Duration) -> Result<()> {
        let shaped = self.shaped.get(name).map(|both| &both[usize::from(direction == Direction::Down)]);
        let mut netem = shaped.with_context(|| format!("there is no link {name}"))?.clone();
        netem.delay.0 += longer;
        self.set_netem(name, direction, &netem)
    }

    fn set_netem(&self, name: &str, direction: Direction, netem: &Netem) -> Result<()> {
        let link = self.link(name)?;
        let end = if direction == Direction::Up { &link.near } else { &link.far };
        Ok(self.host(&end.host)?.netlink.set_netem(&end.interface, netem)?)
    }

    /// Makes a link drop what a filter says, and nothing else.
    pub fn set_filter(&self, link: &Link, filter: Option<&Filter>) -> Result<()> {
        for (end, direction) in [(&link.far, Direction::Up), (&link.near, Direction::Down)] {
            let script = filter::arriving(&end.interface, direction, filter);
            self.host(&end.host)?.feed(NFT, &script)?;
        }
        Ok(())
    }

    /// Packets that the filter that each link has now has dropped, of those that have one at any time.
    pub fn dropped_by_links(&self) -> Result<BTreeMap<String, u64>> {
        let of = |name: &String| {
            let link = self.link(name)?;
            let ends = [&link.near, &link.far].into_iter();
            let dropped = ends.map(|end| router::dropped_at(self.host(&end.host)?, &end.interface));
            Ok((name.clone(), dropped.sum::<Result<u64>>()?))
        };
        self.filtered.iter().map(of).collect()
    }

    /// Gives both ends of a link an MTU.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        for end in [&link.near, &link.far] {
            self.host(&end.host)?.netlink.set_mtu(&end.interface, mtu)?;
        }
        Ok(())
    }

    /// Runs a script of `ip` commands on a host. In real time that stalls a guest for 20 ms: where a run is measured, only
    /// for what takes a host as long.
    pub(super) fn ip(&self, host: &str, script: &str) -> Result<()> {
        self.host(host)?.feed(&["ip", "-batch", "-"], script)
    }

    /// The `ip` commands that give a host its bridges, addresses and routes.
    fn addresses(&self, name: &str, host: &Host) -> String {
        let mut script = String::from("link set lo up\n");
        for (bridge, ports) in &host.bridges {
            let _ = writeln!(script, "link add {bridge} type bridge forward_delay 0\nlink set {bridge} up");
            for port in ports {
                let _ = writeln!(script, "link set {port} master {bridge}");
            }
        }
        for end in self.links.values().flat_map(|link| [&link.near, &link.far]).filter(|end| end.host == name) {
            script.push_str(&end_script(end));
        }
        host.routes.iter().for_each(|route| script.push_str(&route_script("add", route)));
        script
    }
}

/// The `ip` commands that address an interface and take it up.
pub(super) fn end_script(end: &End) -> String {
    let mut script = String::new();
    for address in &end.addresses {
        let nodad = if address.addr().is_ipv6() { "nodad" } else { "" };
        // "replace", as a renamed interface still has some.
        let _ = writeln!(script, "address replace {address} dev {} {nodad}", end.interface);
    }
    let _ = writeln!(script, "link set {} up", end.interface);
    script
}

/// The `ip` command that adds, replaces or deletes a route.
pub(super) fn route_script(verb: &str, route: &Route) -> String {
    // `ip -batch` takes no family for each line: "default" needs one, and is told by its prefix.
    let to = match (route.to.as_str(), route.via.is_ipv6()) {
        ("default", false) => "0.0.0.0/0",
        ("default", true) => "::/0",
        (to, _) => to,
    };
    let mut script = format!("route {verb} {to} via {}", route.via);
    if let Some(interface) = &route.interface {
        let _ = write!(script, " dev {interface}");
    }
    if let Some(metric) = route.metric {
        let _ = write!(script, " metric {metric}");
    }
    script.push('\n');
    script
}

impl Node {
    fn create(host: &Host) -> Result<Self> {
        let namespace = Namespace::create()?;
        let forwards =
            host.forward || host.isp.is_some() || host.bird.is_some() || host.strict_rp || host.nat64.is_some();
        // Our daemons' hosts are as their users have them: that they forward is the daemons' doing, and is undone.
        let mut settings = vec![
            // Addresses must be usable at once; nobody else is on these links.
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv4/ip_unprivileged_port_start", "0"),
            ("net/ipv4/ping_group_range", "0 2147483647"),
        ];
        if forwards {
            settings.extend([("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]);
        }
        let forgets = host.isp.as_ref().and_then(|isp| isp.nat_timeout).map(|t| t.0.as_secs().to_string());
        if let Some(seconds) = &forgets {
            // Before the first answer, and for a mapping that has carried packets both ways.
            settings.push(("net/netfilter/nf_conntrack_udp_timeout", seconds));
            settings.push(("net/netfilter/nf_conntrack_udp_timeout_stream", seconds));
        }
        settings.extend(host.sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        namespace.enter(|| {
            settings.into_iter().try_for_each(|(key, value)| {
                std::fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("cannot set {key} to {value}"))
            })
        })??;
        let netlink = Netlink::open(&namespace, Protocol::Route)?;
        Ok(Node { namespace, netlink, host: host.clone() })
    }

    /// Starts a program on the host.
    pub fn spawn(&self, command: &mut Command) -> Result<std::process::Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.namespace.enter(|| command.spawn())?.with_context(|| format!("cannot start {program}"))
    }

    /// Runs a program on the host with a script as its input, and fails if it fails.
    pub fn feed(&self, command: &[&str], script: &str) -> Result<()> {
        let mut child = self.spawn(
            Command::new(command[0])
                .args(&command[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        )?;
        if let Some(mut input) = child.stdin.take() {
            // A program that ends early says why on stderr.
            let _ = input.write_all(script.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed: {}\n{script}", command.join(" "), error.trim());
        }
        Ok(())
    }
}
