//! Configurations of dnsmasq and tayga, and what a scenario's own script starts with.

use crate::kernel::quote;
use crate::scenario::{Dns, Nat64, Script};
use crate::setup::aioquic;
use anyhow::Result;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The translator's interface.
const NAT64_TUN: &str = "nat64";

/// What dnsmasq reads: it answers from `hosts` and forwards nothing. All of its files are named: it must not find any
/// of the machine's.
pub(super) fn dnsmasq(hosts: &Path, log: &Path) -> String {
    format!(
        "keep-in-foreground\nno-resolv\nno-hosts\naddn-hosts={}\nserver=/#/\nlocal-ttl=60\nuser=root\ngroup=root\n\
         pid-file=\nlog-queries\nlog-facility={}\n",
        hosts.display(),
        log.display(),
    )
}

/// Its records, as in /etc/hosts.
pub(super) fn records(dns: &Dns) -> String {
    let lines = dns.records.iter().flat_map(|(name, addresses)| addresses.iter().map(move |a| format!("{a} {name}\n")));
    lines.collect()
}

/// A script that runs dnsmasq, and has its answers wait first where it is slow: netem for what comes from its port.
pub(super) fn run_dnsmasq(dns: &Dns, interfaces: &[&str], config: &Path) -> String {
    let mut script = String::new();
    for interface in interfaces.iter().filter(|_| dns.delay.is_some()) {
        let delay = dns.delay.unwrap_or_default().millis();
        let bands = "prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let _ = writeln!(script, "tc qdisc replace dev {interface} root handle 2: {bands}");
        let _ = writeln!(script, "tc qdisc add dev {interface} parent 2:2 netem delay {delay}ms");
        for (protocol, family) in [("ip", "ip"), ("ipv6", "ip6")] {
            let port = "sport 53 0xffff flowid 2:2";
            let _ = writeln!(
                script,
                "tc filter add dev {interface} parent 2: protocol {protocol} u32 match {family} {port}"
            );
        }
    }
    let _ = writeln!(script, "exec dnsmasq --conf-file={}", config.display());
    script
}

/// What tayga reads.
pub(super) fn tayga(nat64: &Nat64, data: &Path) -> String {
    let own = nat64.pool.hosts().next().unwrap_or_else(|| nat64.pool.network());
    format!(
        "tun-device {NAT64_TUN}\nipv4-addr {own}\nipv6-addr {}\nprefix {}\ndynamic-pool {}\ndata-dir {}\n",
        nat64.address,
        nat64.prefix,
        nat64.pool,
        data.display(),
    )
}

/// A script that makes its interface, leads both sides' packets there, and becomes tayga.
pub(super) fn run_tayga(nat64: &Nat64, config: &Path) -> String {
    let config = config.display();
    format!(
        "tayga --mktun --config {config}\nip link set {NAT64_TUN} up\nip route add {} dev {NAT64_TUN}\n\
         ip route add {} dev {NAT64_TUN}\nexec tayga --nodetach --config {config}\n",
        nat64.pool, nat64.prefix,
    )
}

/// The folder and the environment of a host's script, and its functions, as its first lines. A host without a script has
/// them for a `check`.
pub(super) fn environment(script: Option<&Script>, folder: &Path, control: &Path) -> Result<String> {
    let lab = std::env::current_exe().unwrap_or_default();
    let python = if script.is_some_and(|script| script.aioquic) { aioquic::python()? } else { PathBuf::new() };
    let own =
        [("CONTROL", control.to_string_lossy()), ("LAB", lab.to_string_lossy()), ("PYTHON", python.to_string_lossy())];
    let given = script.iter().flat_map(|script| &script.environment);
    let given = given.map(|(name, value)| (name.as_str(), value.as_str().into()));
    let folder_name = quote(&folder.to_string_lossy());
    // A host with no daemon has none yet.
    let mut lines = format!("mkdir -p {folder_name} && cd {folder_name}\n");
    for (name, value) in own.into_iter().chain(given) {
        let _ = writeln!(lines, "export {name}={}", quote(&value));
    }
    if let Some(script) = script {
        let _ = writeln!(lines, "{}", script.functions);
    }
    Ok(lines)
}
