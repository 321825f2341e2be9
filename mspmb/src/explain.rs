//! What policy says of a packet, and by which link it would go now.

use crate::config::{self, Config};
use crate::status::Status;
use anyhow::Context;
use dataplane::{calendar, control};
use proto::PathState;
use proto::policy::{Direct, Direction, Facts, Otherwise, Treatment};
use proto::snapshot::PathSnapshot;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

/// A packet, as far as policy looks at it.
#[derive(clap::Args)]
pub(crate) struct Packet {
    /// The host of the site
    #[arg(long, value_name = "ADDRESS")]
    src: Option<IpAddr>,
    /// The host outside
    #[arg(long, value_name = "ADDRESS")]
    dst: IpAddr,
    /// The number of the protocol above IP: 6 is TCP, 17 is UDP
    #[arg(long, value_name = "NUMBER", default_value_t = 6)]
    proto: u8,
    /// The port of the site's host
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    sport: u16,
    /// The port outside
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    dport: u16,
    /// The differentiated services codepoint
    #[arg(long, value_name = "0-63", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..64))]
    dscp: u8,
}

/// Prints the class of the packet, and what becomes of it. Links are asked of the daemon, if it runs.
pub(crate) fn explain(path: &Path, packet: &Packet) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let own = config.prefixes.iter().find(|prefix| prefix.addr().is_ipv4() == packet.dst.is_ipv4());
    let src =
        packet.src.or(own.map(ipnet::IpNet::addr)).context("the site has no prefix of this family: give --src")?;
    let ports = Some((packet.sport, packet.dport));
    let facts = Facts { src, dst: packet.dst, proto: packet.proto, ports, dscp: packet.dscp };
    let status = config::control_socket(path).ok().and_then(|socket| control::ask(&socket, "status").ok());
    let status = status.and_then(|document| serde_json::from_value::<Status>(document).ok());
    crate::print(&text(&config, &facts, status.as_ref()))
}

fn text(config: &Config, facts: &Facts, status: Option<&Status>) -> String {
    let number = config.policy.classify(facts, calendar::open_now(&config.policy));
    let class = &config.policy.classes()[usize::from(number)];
    let mut text = format!("class {:?}, number {} of {}\n", class.name, number + 1, config.policy.classes().len());
    if let Some(direct) = &class.direct {
        let Direct { links, otherwise } = direct.clone();
        let otherwise = match otherwise {
            Otherwise::Any => "then by the tunnels",
            Otherwise::Drop => "and by nothing else",
        };
        let _ = writeln!(text, "outside of the tunnels, by an uplink itself: {}, {otherwise}", slots(&links));
    }
    for (direction, word) in [(Direction::Up, "up"), (Direction::Down, "down")] {
        let what = if class.direct.is_some() { "by the tunnels " } else { "" };
        let _ = writeln!(text, "{what}{word}: {}", order(class.treatment(direction)));
    }
    let Some(status) = status else {
        text.push_str("the middlebox does not answer: how its links are is not known\n");
        return text;
    };
    let peer = status.node.peers.first();
    for uplink in &status.uplinks {
        let path = peer.and_then(|peer| peer.paths.iter().find(|path| path.id.slot == uplink.slot));
        let _ = writeln!(text, "  slot {} ({}): {}", uplink.slot, uplink.interface, may(&class.up, uplink.slot, path));
    }
    let running = peer.and_then(|peer| peer.classes.get(usize::from(number)));
    let direct = status.direct.as_ref().and_then(|direct| direct.classes.get(usize::from(number)));
    let direct = direct.filter(|direct| direct.name == *class.name);
    if let Some(outward) = direct.map(|direct| &direct.families[usize::from(facts.dst.is_ipv6())]) {
        let why = &outward.why;
        let _ = match outward.slot {
            Some(slot) => {
                let name = status.uplinks.iter().find(|uplink| uplink.slot == slot).map(|uplink| &uplink.interface);
                let name = name.map_or_else(|| format!("slot {slot}"), Clone::clone);
                writeln!(text, "a new flow leaves by uplink {name} itself, translated to its address: {why}")
            }
            None if outward.nowhere => writeln!(text, "a new flow goes nowhere: {why}"),
            None => writeln!(text, "a new flow goes by the tunnels: {why}"),
        };
        if outward.slot.is_some() || outward.nowhere {
            return text;
        }
    }
    let _ = match running.filter(|running| running.name == *class.name).map(|running| running.current_slot) {
        Some(Some(slot)) => writeln!(text, "goes up by slot {slot} now"),
        Some(None) => writeln!(text, "goes up by no link now: it is dropped"),
        None => writeln!(text, "the policy in force is another one than in the file: send the middlebox a SIGHUP"),
    };
    text
}

fn order(treatment: &Treatment) -> String {
    if treatment.links.is_empty() {
        return slots(&[]);
    }
    let otherwise = match treatment.otherwise {
        Otherwise::Any => "then any other",
        Otherwise::Drop => "and no other",
    };
    format!("{}, {otherwise}", slots(&treatment.links))
}

fn slots(links: &[u8]) -> String {
    if links.is_empty() {
        return "all links, the most preferred first".into();
    }
    links.iter().map(|slot| format!("slot {slot}")).collect::<Vec<_>>().join(", then ")
}

fn may(treatment: &Treatment, slot: u8, path: Option<&PathSnapshot>) -> String {
    let listed = treatment.links.is_empty() || treatment.links.contains(&slot);
    let policy = match treatment.otherwise {
        _ if listed => "may carry it",
        Otherwise::Any => "may carry it while no link of the list can",
        Otherwise::Drop => "never carries it",
    };
    match path.map(|path| (path.state, &path.reason)) {
        Some((PathState::Up, _)) => format!("up; {policy}"),
        Some((state, reason)) => format!("{state:?}, {reason}; {policy}").to_lowercase(),
        None => format!("no path; {policy}"),
    }
}
