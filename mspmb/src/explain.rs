//! What policy says of a packet, and by which link it would go now.

use crate::config::{self, Config};
use crate::status::Status;
use anyhow::Context;
use dataplane::{control, explain};
use proto::policy::Direction;
use std::net::IpAddr;
use std::path::Path;

/// A packet, as it is asked for.
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
    let &Packet { dst, proto, sport, dport, dscp, .. } = packet;
    let packet = explain::Packet { src, dst, proto, sport, dport, dscp };
    let status = config::control_socket(path).ok().and_then(|socket| control::ask(&socket, "status").ok());
    let status = status.and_then(|document| serde_json::from_value::<Status>(document).ok());
    let uplinks = status.iter().flat_map(|status| &status.uplinks);
    let interfaces: Vec<_> = uplinks.map(|uplink| (uplink.slot, uplink.interface.clone())).collect();
    let end = explain::End {
        decides: Direction::Up,
        other: "ask the provider for `msp-core explain`",
        peer: status.as_ref().and_then(|status| status.node.peers.first()),
        interfaces: &interfaces,
    };
    crate::print(&explain::explain(&config.policy, &config.rules, &packet, &end))
}
