//! From a scenario's hosts and links to namespaces with everything in them.

use super::{Filter, Namespace, Netlink, filter};
use crate::scenario::{Direction, Host, Isp, Link, Scenario};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Reads a script of nftables.
const NFT: &[&str] = &["nft", "-f", "-"];

/// The network of a run.
#[derive(Debug)]
pub struct Network {
    /// The hosts, by name.
    pub hosts: BTreeMap<String, Node>,
}

/// A host that stands.
#[derive(Debug)]
pub struct Node {
    /// Its namespace.
    pub namespace: Namespace,
    /// For changes while the run is measured.
    pub netlink: Netlink,
}

impl Network {
    /// Builds it all.
    pub fn build(scenario: &Scenario) -> Result<Self> {
        let mut hosts = BTreeMap::new();
        for (name, host) in &scenario.hosts {
            let node = Node::create(host).with_context(|| format!("cannot make the namespace of host {name}"))?;
            hosts.insert(name.clone(), node);
        }
        let network = Network { hosts };
        for (name, link) in &scenario.links {
            let (near, far) = (&link.near, &link.far);
            let mtu = link.mtu.map(|mtu| format!("mtu {mtu}")).unwrap_or_default();
            let there = network.host(&far.host)?.namespace.path();
            let script = format!(
                "link add {} {mtu} type veth peer name {} {mtu} netns {there}\n",
                near.interface, far.interface
            );
            network.ip(&near.host, &script).with_context(|| format!("cannot make link {name}"))?;
        }
        for (name, host) in &scenario.hosts {
            network
                .ip(name, &addresses(scenario, name, host))
                .with_context(|| format!("cannot address host {name}"))?;
            if let Some(isp) = &host.isp {
                network.filter(name, isp).with_context(|| format!("cannot set up the filters of ISP router {name}"))?;
            }
            if host.filter_icmp {
                let script = filter::icmp_errors();
                let node = network.host(name)?;
                node.feed(NFT, &script).with_context(|| format!("cannot filter ICMP at host {name}"))?;
            }
        }
        for (name, link) in &scenario.links {
            network
                .set_link(link)
                .with_context(|| format!("cannot put netem on link {name}; does this kernel have it?"))?;
            if scenario.filters(name) {
                network.prepare_filters(link).with_context(|| format!("cannot filter link {name}"))?;
            }
        }
        Ok(network)
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Result<&Node> {
        self.hosts.get(name).with_context(|| format!("there is no host {name}"))
    }

    /// Makes a link what its file says.
    pub fn set_link(&self, link: &Link) -> Result<()> {
        for (end, direction) in [(&link.near, Direction::Up), (&link.far, Direction::Down)] {
            self.host(&end.host)?.netlink.set_netem(&end.interface, &link.netem(direction))?;
        }
        Ok(())
    }

    /// A filter tells packets by their lengths, so none may pass in a bundle that the kernel would split later (GSO).
    fn prepare_filters(&self, link: &Link) -> Result<()> {
        for end in [&link.near, &link.far] {
            self.ip(&end.host, &format!("link set {} gso_max_segs 1\n", end.interface))?;
        }
        self.set_filter(link, link.filter.as_ref())
    }

    /// Makes a link drop what a filter says, and nothing else.
    pub fn set_filter(&self, link: &Link, filter: Option<&Filter>) -> Result<()> {
        for (end, direction) in [(&link.far, Direction::Up), (&link.near, Direction::Down)] {
            let script = filter::arriving(&end.interface, direction, filter);
            self.host(&end.host)?.feed(NFT, &script)?;
        }
        Ok(())
    }

    /// Gives both ends of a link an MTU.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        for end in [&link.near, &link.far] {
            self.host(&end.host)?.netlink.set_mtu(&end.interface, mtu)?;
        }
        Ok(())
    }

    /// Runs a script of `ip` commands on a host; not to be used while the run is measured.
    fn ip(&self, host: &str, script: &str) -> Result<()> {
        self.host(host)?.feed(&["ip", "-batch", "-"], script)
    }

    fn filter(&self, name: &str, isp: &Isp) -> Result<()> {
        let node = self.host(name)?;
        match node.feed(NFT, &nftables(isp)) {
            Ok(()) => Ok(()),
            // Debian's User-Mode-Linux kernel has no nftables.
            Err(nft) => {
                node.feed(&["sh", "-e"], &iptables(isp)).with_context(|| format!("neither with nftables: {nft:#}"))
            }
        }
    }
}

impl Node {
    fn create(host: &Host) -> Result<Self> {
        let namespace = Namespace::create()?;
        let forwards = host.forward
            || host.isp.is_some()
            || host.bird.is_some()
            || host.middlebox.is_some()
            || host.core.is_some();
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
        settings.extend(host.sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        namespace.enter(|| {
            settings.into_iter().try_for_each(|(key, value)| {
                std::fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("cannot set {key} to {value}"))
            })
        })??;
        let netlink = Netlink::open(&namespace)?;
        Ok(Node { namespace, netlink })
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

/// The `ip` commands that give a host its addresses and routes.
fn addresses(scenario: &Scenario, name: &str, host: &Host) -> String {
    let mut script = String::from("link set lo up\n");
    for end in scenario.links.values().flat_map(|link| [&link.near, &link.far]).filter(|end| end.host == name) {
        for address in &end.addresses {
            let nodad = if address.addr().is_ipv6() { "nodad" } else { "" };
            let _ = writeln!(script, "address add {address} dev {} {nodad}", end.interface);
        }
        let _ = writeln!(script, "link set {} up", end.interface);
    }
    for route in &host.routes {
        // `ip -batch` takes no family for each line: "default" needs one, and is told by its prefix.
        let to = match (route.to.as_str(), route.via.is_ipv6()) {
            ("default", false) => "0.0.0.0/0",
            ("default", true) => "::/0",
            (to, _) => to,
        };
        let _ = write!(script, "route add {to} via {}", route.via);
        if let Some(interface) = &route.interface {
            let _ = write!(script, " dev {interface}");
        }
        if let Some(metric) = route.metric {
            let _ = write!(script, " metric {metric}");
        }
        script.push('\n');
    }
    script
}

fn sources(isp: &Isp, v6: bool) -> Vec<String> {
    isp.ingress.iter().filter(|net| net.addr().is_ipv6() == v6).map(IpNet::to_string).collect()
}

fn nftables(isp: &Isp) -> String {
    let Isp { customer, network, .. } = isp;
    let mut script = String::from("table inet lab {\n");
    if !isp.ingress.is_empty() {
        script.push_str("chain ingress { type filter hook forward priority filter;\n");
        for (family, v6) in [("ip", false), ("ip6", true)] {
            let sources = sources(isp, v6);
            if !sources.is_empty() {
                let sources = sources.join(", ");
                let _ = writeln!(script, "iifname {customer} {family} saddr != {{ {sources} }} counter drop");
            }
        }
        script.push_str("}\n");
    }
    script.push_str("}\n");
    if isp.nat {
        let _ = writeln!(
            script,
            "table ip lab-nat {{ chain out {{ type nat hook postrouting priority srcnat; oifname {network} masquerade; }} }}"
        );
    }
    script
}

fn iptables(isp: &Isp) -> String {
    let Isp { customer, network, .. } = isp;
    let mut script = String::new();
    for (command, v6) in [("iptables-legacy", false), ("ip6tables-legacy", true)] {
        let sources = sources(isp, v6);
        if !sources.is_empty() {
            let _ = writeln!(script, "{command} -N lab-ingress");
            for source in sources {
                let _ = writeln!(script, "{command} -A lab-ingress -s {source} -j RETURN");
            }
            let _ = writeln!(script, "{command} -A lab-ingress -j DROP");
            let _ = writeln!(script, "{command} -A FORWARD -i {customer} -j lab-ingress");
        }
    }
    if isp.nat {
        let _ = writeln!(script, "iptables-legacy -t nat -A POSTROUTING -o {network} -j MASQUERADE");
    }
    script
}
