//! What policy says of a packet, and by which link it would go up now.

use crate::config::{self, Config};
use crate::status::Status;
use anyhow::Context;
use dataplane::explain::{self, End, Packet};
use dataplane::{calendar, control};
use proto::policy::{Class, ClassId, Direction, Egress, Facts};
use std::path::Path;

/// Prints the class of the packet, and what becomes of it. Links are asked of the daemon, if it runs.
pub(crate) fn explain(path: &Path, packet: &Packet) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let facts = packet.facts(&config.prefixes).context("the site has no prefix of this family: give --src")?;
    let status = config::control_socket(path).ok().and_then(|socket| control::ask(&socket, "status").ok());
    let status = status.and_then(|document| serde_json::from_value::<Status>(document).ok());
    let uplinks = status.iter().flat_map(|status| &status.uplinks);
    let interfaces: Vec<_> = uplinks.map(|uplink| (uplink.slot, uplink.interface.clone())).collect();
    let class = config.policy.classify(&facts, calendar::open_now(&config.policy));
    let outside = status.as_ref().and_then(|status| outside(class, &config, &facts, status));
    let (by_tunnel, outside) = match outside {
        Some((false, sentence)) => (None, Some(sentence)),
        Some((true, sentence)) => (Some(sentence), None),
        None => (None, None),
    };
    let end = End {
        decides: Direction::Up,
        other: "ask the provider for `msp-core explain`",
        peer: status.as_ref().and_then(|status| status.node.peers.first()),
        interfaces: &interfaces,
        outside: outside.as_deref(),
    };
    let mut text = explain::explain(&config.policy, &config.rules, &facts, &end);
    text.extend(by_tunnel.map(|sentence| format!("{sentence}\n")));
    text.extend(config.policy.classes().get(usize::from(class)).and_then(leaves_by));
    crate::print(&text)
}

/// What the box can say of by whom packets of a class leave the core.
pub(crate) fn leaves_by(class: &Class) -> Option<String> {
    let Egress { name, .. } = class.egress.as_ref()?;
    Some(format!(
        "class {:?} leaves the core by its egress choice {name:?}; whether it has that, and by whom it is, the core knows\n",
        class.name
    ))
}

/// Where flows may leave by an uplink itself: whether a new one of a class goes by the tunnels all the same, and why it goes
/// where it goes.
fn outside(class: ClassId, config: &Config, facts: &Facts, status: &Status) -> Option<(bool, String)> {
    let class = usize::from(class);
    let direct = status.direct.as_ref()?.classes.get(class)?;
    if direct.name != *config.policy.classes()[class].name {
        return None;
    }
    let outward = &direct.families[usize::from(facts.dst.is_ipv6())];
    let why = &outward.why;
    match outward.slot {
        Some(slot) => {
            let name = status.uplinks.iter().find(|uplink| uplink.slot == slot).map(|uplink| &uplink.interface);
            let name = name.map_or_else(|| format!("slot {slot}"), Clone::clone);
            Some((false, format!("a new flow leaves by uplink {name} itself, translated to its address: {why}")))
        }
        None if outward.nowhere => Some((false, format!("a new flow goes nowhere: {why}"))),
        None => Some((true, format!("a new flow goes by the tunnels: {why}"))),
    }
}
