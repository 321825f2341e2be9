//! What a daemon could leave on a host: interfaces, rules, routes, addresses, firewall rules, sysctls.

use crate::net::build::Node;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// The state of a host, as lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traces(BTreeSet<String>);

/// What is looked at. Neighbours, route caches and counters change by themselves and are left out.
const COMMANDS: &[&[&str]] = &[
    &["ip", "-oneline", "link", "show"],
    &["ip", "-oneline", "address", "show"],
    &["ip", "-4", "rule", "show"],
    &["ip", "-6", "rule", "show"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
];

/// Not ours: learnt or counted by the kernel.
const MOVING_SYSCTLS: &[&str] = &["nf_conntrack_count", "flush", "stat_refresh"];

impl Traces {
    /// Looks.
    pub fn take(node: &Node) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for command in COMMANDS {
            let output = node
                .spawn(Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::piped()))?
                .wait_with_output()?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let what = format!("{} {}", command[1].trim_start_matches("-oneline"), command[2]);
                lines.insert(format!("{}: {}", what.trim(), without_state(line)));
            }
        }
        node.namespace.enter(|| sysctls(Path::new("/proc/sys/net"), &mut lines)).context("cannot enter the host")?;
        Ok(Traces(lines))
    }

    /// What is there now and was not, and what was and is no more.
    pub fn beyond(&self, before: &Traces) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|line| format!("new: {line}"));
        let gone = before.0.difference(&self.0).map(|line| format!("gone: {line}"));
        new.chain(gone).collect()
    }
}

/// Without what the world changes: carrier and queue numbers of links that the timeline cuts, interface numbers of those
/// that it plugs in again, ages of routes.
fn without_state(line: &str) -> String {
    let mut words = Vec::new();
    let mut skip = false;
    for (place, word) in line.split_whitespace().enumerate() {
        if std::mem::take(&mut skip) {
            continue;
        }
        match word {
            "state" | "expires" | "qdisc" | "link-netnsid" => skip = true,
            "linkdown" | "dead" | "NO-CARRIER" => {}
            flags if flags.starts_with('<') => {}
            number if place == 0 && number.ends_with(':') => {}
            // "wan0@if2:", with the number of its other end.
            name if name.ends_with(':') && name.contains("@if") => words.extend(name.split('@').next()),
            _ => words.push(word),
        }
    }
    words.join(" ")
}

fn sysctls(folder: &Path, lines: &mut BTreeSet<String>) {
    // Files that cannot be read (write-only ones) say nothing.
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sysctls(&path, lines);
        } else if let Ok(value) = std::fs::read_to_string(&path)
            && !MOVING_SYSCTLS.iter().any(|moving| path.ends_with(moving))
        {
            lines.insert(format!("sysctl {} = {}", path.display(), value.trim().replace(['\t', '\n'], " ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_link_is_no_trace_and_a_rule_is_one() {
        let line = "2: wan0@if2: <BROADCAST,UP> mtu 1500 qdisc netem state UP mode DEFAULT";
        let cut = "2: wan0@if2: <NO-CARRIER,BROADCAST,UP> mtu 1500 qdisc noqueue state DOWN mode DEFAULT";
        assert_eq!(without_state(line), without_state(cut));
        let plugged_in_again =
            "1001: wan0@if7: <BROADCAST,UP> mtu 1500 qdisc netem state UP mode DEFAULT link-netnsid 0";
        assert_eq!(without_state(line), without_state(plugged_in_again));
        let before = Traces(["rule: a".to_owned()].into());
        let after = Traces(["rule: a".to_owned(), "rule: b".to_owned()].into());
        assert_eq!(after.beyond(&before), ["new: rule: b"]);
        assert_eq!(before.beyond(&after), ["gone: rule: b"]);
    }
}
