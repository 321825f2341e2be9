//! What policy says of a packet, and by which link it would go up now.

use crate::config::{self, Config};
use crate::status::Status;
use anyhow::Context;
use dataplane::control;
use dataplane::explain::{self, End, Packet};
use proto::policy::Direction;
use std::path::Path;

/// Prints the class of the packet, and what becomes of it. Links are asked of the daemon, if it runs.
pub(crate) fn explain(path: &Path, packet: &Packet) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let facts = packet.facts(&config.prefixes).context("the site has no prefix of this family: give --src")?;
    let status = config::control_socket(path).ok().and_then(|socket| control::ask(&socket, "status").ok());
    let status = status.and_then(|document| serde_json::from_value::<Status>(document).ok());
    let uplinks = status.iter().flat_map(|status| &status.uplinks);
    let interfaces: Vec<_> = uplinks.map(|uplink| (uplink.slot, uplink.interface.clone())).collect();
    let end = End {
        decides: Direction::Up,
        other: "ask the provider for `msp-core explain`",
        peer: status.as_ref().and_then(|status| status.node.peers.first()),
        interfaces: &interfaces,
    };
    crate::print(&explain::explain(&config.policy, &config.rules, &facts, &end))
}
