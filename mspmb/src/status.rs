//! What the daemon shows of itself, and how it is shown.

use crate::breakout::{DirectClass, DirectStatus, Outward};
use crate::config;
use crate::meter::MeterStatus;
use crate::uplinks::{Unused, UplinkStatus};
use anyhow::Context;
use dataplane::control;
use dataplane::engine::Counters;
use proto::PathState;
use proto::snapshot::{ClassSnapshot, PathSnapshot, PeerSnapshot, Snapshot};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// The format of the document.
pub(crate) const SCHEMA: u32 = 1;
/// Who speaks.
pub(crate) const DAEMON: &str = "mspmb";
/// How often `--watch` asks.
const PERIOD: Duration = Duration::from_secs(1);

/// The document that the control socket answers `status` with. Fields are added, never renamed; readers skip what they
/// don't know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) schema: u32,
    pub(crate) daemon: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_s: f64,
    pub(crate) uplinks: Vec<UplinkStatus>,
    /// Interfaces that could be uplinks and are not used.
    #[serde(default)]
    pub(crate) unused: Vec<Unused>,
    /// What leaves by an uplink itself, if the policy has such flows.
    #[serde(default)]
    pub(crate) direct: Option<DirectStatus>,
    /// What metered links have carried in this month of theirs.
    #[serde(default)]
    pub(crate) metered: Vec<MeterStatus>,
    pub(crate) node: Snapshot,
    /// What the packet loop counted.
    pub(crate) dataplane: Counters,
}

/// Asks the daemon of this configuration and prints, once or every second.
pub(crate) fn show(path: &Path, json: bool, watch: bool) -> anyhow::Result<()> {
    let socket = config::control_socket(path)?;
    let redraw = watch && !json && std::io::stdout().is_terminal();
    loop {
        let document = control::ask(&socket, "status")?;
        let text = if json {
            format!("{document}\n")
        } else {
            if let Some(error) = document.get("error") {
                anyhow::bail!("the daemon did not answer: {error}");
            }
            let status: Status = serde_json::from_value(document)
                .context("the daemon's answer is of another version than this program")?;
            table(&status)
        };
        // Home, the text, and then what an earlier, longer text left: it does not flicker as clearing first would.
        crate::print(&if redraw { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text })?;
        if !watch {
            return Ok(());
        }
        std::thread::sleep(PERIOD);
    }
}

/// The whole, for people.
fn table(status: &Status) -> String {
    let mut rows = vec![
        ["SLOT", "UPLINK", "TUNNEL", "STATE", "SINCE", "RTT", "LOSS", "MTU", "SENT", "RECEIVED", "FROM", "TO", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    let peer = status.node.peers.first();
    for uplink in &status.uplinks {
        // Where there are two, the one that carries what goes over the uplink.
        let paths = peer.into_iter().flat_map(|peer| peer.paths.iter());
        let path = paths.filter(|path| path.id.slot == uplink.slot).min_by_key(|path| path.stands_by);
        let used = peer.is_some_and(|peer| peer.current_slot == Some(uplink.slot));
        rows.push(row(uplink, path, used));
    }
    let mut text = format!("{} {}, pid {}, up {}", status.daemon, status.version, status.pid, span(status.uptime_s));
    if let Some(peer) = peer {
        let reachable = if peer.reachable { "reachable" } else { "NOT reachable" };
        let _ = write!(
            text,
            "; core {} {reachable}, {} path changes\nsite sent {} packets ({}), received {} ({})",
            peer.name,
            peer.path_changes,
            peer.tx.packets,
            octets(peer.tx.bytes),
            peer.rx.packets,
            octets(peer.rx.bytes)
        );
        if peer.fragmented + peer.reassembled > 0 {
            let _ = write!(text, "; in fragments {} sent, {} received", peer.fragmented, peer.reassembled);
        }
        if peer.copies.packets > 0 {
            let _ = write!(text, "; {} copies sent ({})", peer.copies.packets, octets(peer.copies.bytes));
        }
    }
    if let Some(peer) = peer.filter(|peer| peer.other_policy) {
        let _ = write!(text, "\nthe core {} has another policy: each end goes by its own", peer.name);
    }
    text.push_str("\n\n");
    text.push_str(&aligned(&rows));
    text.push('\n');
    text.push_str(&aligned(&networks(&status.uplinks)));
    for tunnel in peer.iter().flat_map(|peer| &peer.tunnels) {
        let _ = writeln!(text, "{}, {}", interface(tunnel.slot, &status.uplinks), tunnel.reason);
    }
    if let Some(peer) = peer.filter(|peer| peer.classes.len() > 1) {
        text.push('\n');
        text.push_str(&aligned(&classes(peer, &status.uplinks)));
    }
    if !status.metered.is_empty() {
        text.push('\n');
    }
    for link in &status.metered {
        let _ = writeln!(text, "{}", metered(link));
    }
    if let Some(direct) = &status.direct {
        if direct.isolated {
            text.push_str("\nNO TUNNEL works: where the policy lets them, new flows leave by the uplinks themselves\n");
        }
        if let Some(problem) = &direct.problem {
            let _ = writeln!(text, "\ndirect flows go by the tunnels: {problem}");
        }
        text.push('\n');
        text.push_str(&aligned(&outside_of_tunnels(direct, &status.uplinks)));
    }
    for uplink in &status.uplinks {
        for note in uplink.warnings.iter().chain(&uplink.unresolved) {
            let _ = writeln!(text, "{}: {note}", uplink.interface);
        }
    }
    for unused in &status.unused {
        let _ = writeln!(text, "{} is not used: {}", unused.interface, unused.reason);
    }
    let drops: Vec<String> = [Some(&status.node.drops), peer.map(|peer| &peer.drops)]
        .into_iter()
        .flatten()
        .flat_map(|drops| drops.iter())
        .filter(|&(_, count)| count > 0)
        .map(|(reason, count)| format!("{} {count}", reason.name()))
        .collect();
    if !drops.is_empty() {
        let _ = write!(text, "\ndropped: {}\n", drops.join(", "));
    }
    text
}

/// What an uplink is called.
fn interface(slot: u8, uplinks: &[UplinkStatus]) -> String {
    let uplink = uplinks.iter().find(|uplink| uplink.slot == slot);
    uplink.map_or_else(|| format!("slot {slot}"), |uplink| uplink.interface.clone())
}

/// The classes of which something leaves by an uplink itself, or did.
fn outside_of_tunnels(direct: &DirectStatus, uplinks: &[UplinkStatus]) -> Vec<Vec<String>> {
    let header = ["DIRECT", "IPV4", "IPV6", "SENT", "PACKETS", "RECEIVED", "PACKETS", "DROPPED", ""];
    let by = |outward: &Outward| match outward.slot {
        Some(slot) => interface(slot, uplinks),
        None if outward.nowhere => "nowhere".to_owned(),
        None => "tunnels".to_owned(),
    };
    let counted = |class: &DirectClass| class.sent.packets + class.received.packets + class.dropped.packets > 0;
    let leaves = |outward: &Outward| outward.slot.is_some() || outward.nowhere;
    let shown = direct.classes.iter().filter(|class| counted(class) || class.families.iter().any(leaves));
    let row = |class: &DirectClass| {
        let [ipv4, ipv6] = &class.families;
        let why = if ipv4.why == ipv6.why { ipv4.why.clone() } else { format!("{}; IPv6: {}", ipv4.why, ipv6.why) };
        vec![
            class.name.clone(),
            by(ipv4),
            by(ipv6),
            octets(class.sent.bytes),
            class.sent.packets.to_string(),
            octets(class.received.bytes),
            class.received.packets.to_string(),
            class.dropped.packets.to_string(),
            why,
        ]
    };
    std::iter::once(header.map(str::to_owned).to_vec()).chain(shown.map(row)).collect()
}

/// The classes of the policy, and what goes up of each.
fn classes(peer: &PeerSnapshot, uplinks: &[UplinkStatus]) -> Vec<Vec<String>> {
    let header = ["CLASS", "UP BY", "SENT", "PACKETS", "CHANGES"].map(str::to_owned).to_vec();
    let row = |class: &ClassSnapshot| {
        let by = match &class.slots[..] {
            _ if !class.open => "closed".to_owned(),
            [] => "no link".to_owned(),
            slots => slots.iter().map(|slot| interface(*slot, uplinks)).collect::<Vec<_>>().join(", "),
        };
        let ClassSnapshot { name, tx, path_changes, .. } = class;
        vec![name.clone(), by, octets(tx.bytes), tx.packets.to_string(), path_changes.to_string()]
    };
    std::iter::once(header).chain(peer.classes.iter().map(row)).collect()
}

/// What a metered link has carried.
fn metered(link: &MeterStatus) -> String {
    let since = if link.since.is_empty() { "the clock is wrong" } else { &link.since };
    let state = match link {
        MeterStatus { capped: true, .. } => "; at its cap",
        MeterStatus { free: true, .. } => "; free today",
        _ => "",
    };
    format!("{} (slot {}): {} of {} since {since}{state}", link.link, link.slot, octets(link.octets), octets(link.cap))
}

fn row(uplink: &UplinkStatus, path: Option<&PathSnapshot>, used: bool) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = match path.map(|path| path.state) {
        None => "?",
        Some(PathState::Absent) => "absent",
        Some(PathState::Down) => "DOWN",
        Some(PathState::Suspect) => "suspect",
        Some(PathState::Impaired) => "IMPAIRED",
        Some(PathState::Up) if used => "up, used",
        Some(PathState::Up) => "up",
    };
    let why = match (&uplink.problem, path) {
        (Some(problem), _) => problem.clone(),
        (None, Some(path)) => match path.rate {
            Some(rate) if path.waiting.packets > 0 => {
                format!("{}; full: {} packets wait, held to {}", path.reason, path.waiting.packets, bits(rate))
            }
            Some(rate) => format!("{}; held to {}", path.reason, bits(rate)),
            None => path.reason.clone(),
        },
        (None, None) => String::new(),
    };
    vec![
        uplink.slot.to_string(),
        uplink.interface.clone(),
        path.map_or_else(dash, |path| path.id.tunnel.to_string()),
        state.to_owned(),
        path.map_or_else(dash, |path| span(path.since_s)),
        path.and_then(|path| path.rtt_ms).map_or_else(dash, |rtt| format!("{rtt:.1} ms")),
        path.and_then(|path| path.loss).map_or_else(dash, |loss| format!("{:.1} %", loss * 100.0)),
        path.and_then(|path| path.mtu).map_or_else(dash, |mtu| mtu.to_string()),
        path.map_or_else(dash, |path| octets(path.tx.bytes)),
        path.map_or_else(dash, |path| octets(path.rx.bytes)),
        uplink.local.map_or_else(dash, |local| local.to_string()),
        path.and_then(|path| path.endpoint).or(uplink.endpoint).map_or_else(dash, |endpoint| endpoint.to_string()),
        why,
    ]
}

/// What each uplink's network gives it.
fn networks(uplinks: &[UplinkStatus]) -> Vec<Vec<String>> {
    let header = ["SLOT", "UPLINK", "MTU", "IDLE", "ADDRESSES", "GATEWAYS", "RESOLVERS", "NAT64", "TRIED"];
    let listed = |texts: Vec<String>| if texts.is_empty() { "-".to_owned() } else { texts.join(" ") };
    let row = |uplink: &UplinkStatus| {
        vec![
            uplink.slot.to_string(),
            uplink.interface.clone(),
            uplink.mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
            format!("{:.0} s{}", uplink.idle_s, if uplink.metered { ", metered" } else { "" }),
            listed(uplink.addresses.iter().map(ToString::to_string).collect()),
            listed(uplink.gateways.iter().map(ToString::to_string).collect()),
            listed(uplink.dns.iter().map(|server| format!("{} ({})", server.address.ip(), server.learnt)).collect()),
            uplink.nat64.clone().unwrap_or_else(|| "-".to_owned()),
            listed(uplink.endpoints.iter().map(ToString::to_string).collect()),
        ]
    };
    std::iter::once(header.map(str::to_owned).to_vec()).chain(uplinks.iter().map(row)).collect()
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A time, in the two units that matter.
fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Octets in decimal units, as links are sold.
fn octets(count: u64) -> String {
    in_units(count, ["B", "kB", "MB", "GB", "TB"])
}

/// A rate in bits a second, in the same.
fn bits(rate: u64) -> String {
    in_units(rate, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

fn in_units(count: u64, units: [&str; 5]) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["A".to_owned(), "LONG".into(), "".into()], vec!["wider".into(), "x".into(), "end".into()]];
        assert_eq!(aligned(&rows), "A      LONG\nwider  x     end\n");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [span(0.25), span(61.0), span(7_260.0), span(90_000.0)],
            ["0.2 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]
        );
        assert_eq!([octets(999), octets(1_500), octets(2_000_000)], ["999 B", "1.5 kB", "2.0 MB"]);
        assert_eq!([bits(800), bits(9_340_000)], ["800 bit/s", "9.3 Mbit/s"]);
    }
}
