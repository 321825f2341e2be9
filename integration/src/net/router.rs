//! What a router refuses, translates and counts: BCP 38 at an ISP's edge, strict reverse path, NAT.

use super::build::Node;
use super::filter;
use crate::scenario::{Host, Isp, Nat};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

/// Sets up what the host's file asks for.
pub(super) fn set_up(node: &Node) -> Result<()> {
    if !has_filter(&node.host) && node.host.isp.as_ref().is_none_or(|isp| isp.nat.is_none()) {
        return Ok(());
    }
    match node.feed(&["nft", "-f", "-"], &nftables(&node.host)) {
        Ok(()) => Ok(()),
        // Debian's User-Mode-Linux kernel has no nftables.
        Err(nft) => {
            node.feed(&["sh", "-e"], &iptables(&node.host)).with_context(|| format!("neither with nftables: {nft:#}"))
        }
    }
}

fn has_filter(host: &Host) -> bool {
    host.strict_rp || host.isp.as_ref().is_some_and(|isp| !isp.ingress.is_empty())
}

/// How many packets the filter of what arrives at an interface of the host has dropped.
pub(super) fn dropped_at(node: &Node, interface: &str) -> Result<u64> {
    let rules = list(node, &format!("nft list table netdev {}", filter::table(interface)))?;
    Ok(rules.lines().filter_map(count).sum())
}

/// What a command says on a host, if it is there and has something to say.
fn list(node: &Node, command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    let output = node
        .spawn(command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()))?
        .wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many packets the host's filters have dropped, and by which rules; nothing if it has none.
pub(crate) fn dropped(node: &Node) -> Result<Option<(u64, Vec<String>)>> {
    if !has_filter(&node.host) {
        return Ok(None);
    }
    let list = |command| list(node, command);
    let mut rules = list("nft list table inet lab")?;
    if rules.is_empty() {
        rules = [list("iptables-legacy-save -c")?, list("ip6tables-legacy-save -c")?].concat();
    }
    let counts = rules.lines().filter_map(|rule| Some((count(rule)?, rule.trim().to_owned())));
    let (mut sum, mut by) = (0, Vec::new());
    for (packets, rule) in counts.filter(|(packets, _)| *packets > 0) {
        sum += packets;
        by.push(rule);
    }
    Ok(Some((sum, by)))
}

/// The packets that a rule has dropped, as nft or iptables-save write it.
fn count(rule: &str) -> Option<u64> {
    let rule = rule.trim();
    if let Some(rest) = rule.strip_suffix(" drop") {
        return rest.split("counter packets ").nth(1)?.split(' ').next()?.parse().ok();
    }
    let dropped = rule.strip_suffix(" -j DROP")?.strip_prefix('[')?;
    dropped.split(':').next()?.parse().ok()
}

fn networks(of: &[IpNet], v6: bool) -> String {
    let own: Vec<String> = of.iter().filter(|net| net.addr().is_ipv6() == v6).map(IpNet::to_string).collect();
    own.join(", ")
}

fn interfaces(isp: &Isp) -> String {
    isp.customer.all().join(", ")
}

fn nftables(host: &Host) -> String {
    let mut script = String::from("table inet lab {\n");
    if let Some(isp) = &host.isp {
        for (set, kind, v6) in [("customer4", "ipv4_addr", false), ("customer6", "ipv6_addr", true)] {
            let networks = networks(&isp.ingress, v6);
            if !networks.is_empty() {
                let _ = writeln!(script, "set {set} {{ type {kind}; flags interval; elements = {{ {networks} }}; }}");
            }
        }
    }
    script.push_str("chain forwarded { type filter hook forward priority filter;\n");
    if let Some(isp) = &host.isp {
        for (family, set, v6) in [("ip", "customer4", false), ("ip6", "customer6", true)] {
            if !networks(&isp.ingress, v6).is_empty() {
                let _ = writeln!(script, "iifname {{ {} }} {family} saddr != @{set} counter drop", interfaces(isp));
            }
        }
    }
    if host.strict_rp {
        script.push_str("fib saddr . iif oif missing counter drop\n");
    }
    script.push_str("}\n}\n");
    if let Some(isp) = &host.isp
        && let Some(rule) = nat_rule(isp, None)
    {
        let _ = writeln!(
            script,
            "table ip lab-nat {{\nchain out {{ type nat hook postrouting priority srcnat; {rule}\n}}\n}}"
        );
    }
    script
}

/// What an ISP's NAT does from now on, as a rule of its chain.
fn nat_rule(isp: &Isp, to: Option<&Binding>) -> Option<String> {
    let how = match (isp.nat?, to) {
        (Nat::Masquerade, None) => "masquerade".to_owned(),
        (Nat::Masquerade, Some(Binding::Ports(from, until))) => {
            format!("meta l4proto udp masquerade to :{from}-{until}")
        }
        (Nat::Symmetric, None | Some(Binding::Ports(..))) => "masquerade fully-random".to_owned(),
        (Nat::Masquerade, Some(Binding::Address(address))) => format!("snat to {}", address.addr()),
        (Nat::Symmetric, Some(Binding::Address(address))) => format!("snat to {} fully-random", address.addr()),
    };
    Some(format!("oifname {} {how}", isp.network))
}

/// What a NAT is bound to anew.
pub(super) enum Binding {
    /// Other ports.
    Ports(u16, u16),
    /// Another address of its own.
    Address(IpNet),
}

/// Has the NAT of an ISP's router use something else from now on; what is known of connections must be forgotten too.
pub(super) fn rebind(node: &Node, isp: &Isp, to: &Binding) -> Result<()> {
    let rule = nat_rule(isp, Some(to)).context("the router has no NAT that could be rebound")?;
    node.feed(&["nft", "-f", "-"], &format!("flush chain ip lab-nat out\nadd rule ip lab-nat out {rule}\n"))
        .context("a NAT can be rebound only with nftables")
}

/// Lets other sources in from the customer.
pub(super) fn set_ingress(node: &Node, isp: &Isp, sources: &[IpNet]) -> Result<()> {
    let mut script = String::new();
    for (set, v6) in [("customer4", false), ("customer6", true)] {
        // A family that is not filtered has no set.
        if !networks(&isp.ingress, v6).is_empty() {
            let _ = writeln!(script, "flush set inet lab {set}");
            let networks = networks(sources, v6);
            if !networks.is_empty() {
                let _ = writeln!(script, "add element inet lab {set} {{ {networks} }}");
            }
        }
    }
    node.feed(&["nft", "-f", "-"], &script).context("an ISP's filter can be changed only with nftables")
}

fn iptables(host: &Host) -> String {
    let mut script = String::new();
    for (command, v6) in [("iptables-legacy", false), ("ip6tables-legacy", true)] {
        if let Some(isp) = &host.isp
            && !networks(&isp.ingress, v6).is_empty()
        {
            let _ = writeln!(script, "{command} -N lab-ingress");
            for source in isp.ingress.iter().filter(|net| net.addr().is_ipv6() == v6) {
                let _ = writeln!(script, "{command} -A lab-ingress -s {source} -j RETURN");
            }
            let _ = writeln!(script, "{command} -A lab-ingress -j DROP");
            for customer in isp.customer.all() {
                let _ = writeln!(script, "{command} -A FORWARD -i {customer} -j lab-ingress");
            }
        }
        if host.strict_rp {
            // This tool can look only at all that arrives. What is never forwarded is no matter of this filter: a report of
            // multicast groups may come from an interface before the route of its link is there.
            let (multicast, link_local) =
                if v6 { ("ff00::/8", "fe80::/10") } else { ("224.0.0.0/4", "169.254.0.0/16") };
            for never in [format!("-d {multicast}"), format!("-s {link_local}")] {
                let _ = writeln!(script, "{command} -t raw -A PREROUTING {never} -j RETURN");
            }
            let _ = writeln!(script, "{command} -t raw -A PREROUTING -m rpfilter --invert -j DROP");
        }
    }
    if let Some(isp) = &host.isp
        && let Some(nat) = isp.nat
    {
        let random = if nat == Nat::Symmetric { "--random-fully" } else { "" };
        let _ = writeln!(script, "iptables-legacy -t nat -A POSTROUTING -o {} -j MASQUERADE {random}", isp.network);
    }
    script
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn drops_are_counted_as_either_tool_writes_them() {
        for (rule, packets) in [
            ("\t\tiifname \"lan0\" ip saddr != @customer4 counter packets 7 bytes 420 drop", Some(7)),
            ("fib saddr . iif oif missing counter packets 0 bytes 0 drop", Some(0)),
            ("[12:720] -A lab-ingress -j DROP", Some(12)),
            ("[5:300] -A lab-ingress -s 192.168.1.0/24 -j RETURN", None),
            ("type filter hook forward priority filter; policy accept;", None),
        ] {
            assert_eq!(count(rule), packets, "{rule}");
        }
    }
}
