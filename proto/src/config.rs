//! What a node is told by its daemon: who it is, who its peers are, what may pass.

use crate::keys::{PublicKey, SecretKey};
use crate::policy::Policy;
use crate::tunnel::{HANDSHAKE_MAX, OVERHEAD, TunnelKind};
use crate::{LinkId, MAX_SLOTS, PeerId, path_number};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The largest MTU of a TUN that is supported, in octets: that of jumbo frames.
pub(crate) const MOST_MTU: u16 = 9_000;

/// One end's configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// What this end says of itself in HELLO.
    pub identity: Identity,
    /// The TUN's MTU, in octets: the largest inner packet. TCP segments are clamped to it.
    pub mtu: u16,
    /// The prefixes on this side: at the box, its site's; at the core, none (it stands for the Internet). Where there
    /// are any, a packet from the TUN must have its source in them, and a packet from a peer its destination.
    pub local: Vec<IpNet>,
    /// The private key that initiations are addressed to; only a core has one, and only a core answers.
    pub listen_key: Option<SecretKey>,
    /// The other ends.
    pub peers: Vec<PeerConfig>,
}

/// What HELLO says of the sender. Fit for several PoPs and boxes from the first day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// Names the box within its provider; 0 for a core.
    pub middlebox: u32,
    /// Names the PoP within its provider; 0 for a box.
    pub pop: u32,
}

/// What the peer is, and so what is expected of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A core: we initiate, it answers.
    Core,
    /// A middlebox: it initiates from up to eight slots, and says HELLO on each.
    Middlebox,
    /// A plain WireGuard client: it initiates on slot 0, knows nothing of HELLO, receipts and trailers, and is
    /// believed to be there for as long as its session lives.
    Client,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its name for the node.
    pub id: PeerId,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: PeerKind,
    /// What lies behind it: packets to these go to it, packets from it must come from these.
    pub prefixes: Vec<IpNet>,
    /// The place of the TUN that its packets are delivered to, among those that the caller has: what becomes of them
    /// there is the host's routing's to say. 0 where there is one. A class of the policy may have another.
    pub egress: u8,
    /// Which links what is sent to it takes.
    pub policy: Arc<Policy>,
    /// Which of the policy's windows are open, a bit each; later [`crate::Node::set_open_windows`] tells.
    pub open_windows: u64,
    /// Its paths: at most one of each kind of tunnel a slot. Where there are both, one of them carries what goes over the
    /// uplink, and the other stands by.
    pub paths: Vec<PathConfig>,
}

/// One path of a peer.
#[derive(Clone, Debug)]
pub struct PathConfig {
    /// The box's uplink slot, 0 to 7.
    pub slot: u8,
    /// What its tunnel is.
    pub kind: TunnelKind,
    /// Lower is preferred; ties go to the lower slot. A box's follows its [`Uplink`]. `None` at a core: as the box says
    /// in HELLO, and until then by slot.
    pub preference: Option<u8>,
    /// Our private key on this path.
    pub local_key: SecretKey,
    /// The peer's public key on this path.
    pub remote_key: PublicKey,
    /// The way out of this host, if it is known before the peer speaks: a box's uplink, of which
    /// [`crate::Node::set_uplink`] tells when and how it can be used.
    pub link: Option<LinkId>,
}

impl PathConfig {
    /// The path's number among those of its peer: see [`crate::MAX_PATHS`].
    pub(crate) fn number(&self) -> u8 {
        path_number(self.slot, self.kind)
    }
}

/// How an uplink of a box can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Addresses of the core that may be reached by it with WireGuard, best first. All are tried; the one that answers first is
    /// kept.
    pub endpoints: Vec<SocketAddr>,
    /// The same with QUIC.
    pub quic_endpoints: Vec<SocketAddr>,
    /// Lower is preferred; ties go to the lower slot.
    pub preference: u8,
    /// How often its path is asked while the bundle is idle.
    pub keepalive: Keepalive,
}

impl Uplink {
    /// Where the core may be reached with tunnels of this kind.
    pub fn endpoints(&self, kind: TunnelKind) -> &[SocketAddr] {
        match kind {
            TunnelKind::WireGuard => &self.endpoints,
            TunnelKind::Quic => &self.quic_endpoints,
        }
    }
}

/// How often an idle path is asked, and what its bytes cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// The time between two questions, 1 s to 25 s.
    pub idle: Duration,
    /// Bytes on it cost money.
    pub metered: bool,
}

impl Keepalive {
    /// The bounds of the interval. Less than a second is no idling; NATs are known that forget after 30 s, and a question
    /// that was lost is asked again well before that.
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(25);

    /// With the interval brought within its bounds, 1 s to 25 s.
    pub fn new(idle: Duration, metered: bool) -> Self {
        Keepalive { idle: idle.clamp(Self::SHORTEST, Self::LONGEST), metered }
    }

    /// The interval at which an idle path stays within so many octets in 30 days, both directions and outer headers
    /// counted. A budget below some 46 MB cannot be kept: the interval is 25 s then, since a NAT that forgets the path
    /// would cost the first packets of whoever calls.
    /// `kind`: what the path's tunnel is; what a handshake of QUIC costs is little beside all else, as there is no other while the
    /// path works.
    pub fn metered(octets_per_month: u64, kind: TunnelKind) -> Self {
        /// IPv6 and UDP: the larger of the two families' headers.
        const OUTER: u64 = 40 + 8;
        /// A question and its receipt, sealed.
        const QUESTION: u64 = 2 * (OUTER + OVERHEAD as u64) + 46 + 70;
        /// The same by QUIC, where the receipt brings an acknowledgement and is answered by one.
        const QUIC_QUESTION: u64 = 3 * OUTER + (36 + 46) + (32 + 70 + 8) + 36;
        /// Initiation, response, keepalive; a question follows, and is no extra one: it puts the next off.
        const REKEY: u64 = 3 * OUTER + HANDSHAKE_MAX as u64 + 92 + OVERHEAD as u64;
        /// How often a session is replaced: WireGuard's REKEY_AFTER_TIME.
        const REKEYS: u64 = 30 * 86_400 / 120;
        // The rest is for what is asked twice since the first was lost, for probes of the path MTU, and for ARP.
        let usable = octets_per_month / 20 * 17;
        let questions = match kind {
            TunnelKind::WireGuard => usable.saturating_sub(REKEYS * REKEY) / QUESTION,
            TunnelKind::Quic => usable / QUIC_QUESTION,
        };
        let idle = Duration::from_secs(30 * 86_400).checked_div(u32::try_from(questions).unwrap_or(u32::MAX));
        Keepalive::new(idle.unwrap_or(Self::LONGEST), true)
    }
}

impl Default for Keepalive {
    /// Ten seconds: a third of the 30 s after which the hastiest NATs forget (RFC 4787, REQ-5, wants two minutes), so
    /// that two questions may be lost.
    fn default() -> Self {
        Keepalive { idle: Duration::from_secs(10), metered: false }
    }
}

/// Why a configuration was refused. Nothing of it has been put in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A slot beyond the eight there are.
    #[error("peer {peer}: slot {slot} does not exist; slots are 0 to 7")]
    Slot {
        /// The peer's name.
        peer: String,
        /// The slot given.
        slot: u8,
    },
    /// Two paths of one kind on one slot.
    #[error("peer {peer}: slot {slot} is used by two paths of one kind")]
    SlotTwice {
        /// The peer's name.
        peer: String,
        /// The slot given.
        slot: u8,
    },
    /// Two peers with one number.
    #[error("peers {first} and {second} have the same number")]
    IdTwice {
        /// The peers' names.
        first: String,
        /// The other.
        second: String,
    },
    /// A prefix behind two peers, or one within another's: a packet to it would have two owners.
    #[error("{first} has {prefix}, which overlaps {other} of {second}")]
    PrefixTwice {
        /// The one peer's name.
        first: String,
        /// Its prefix.
        prefix: IpNet,
        /// The other peer's name.
        second: String,
        /// Its prefix.
        other: IpNet,
    },
    /// A public key used by two paths: an initiation shows nothing but its key, and would name neither.
    #[error("the key {key} is used by both {first} and {second}")]
    KeyTwice {
        /// The key.
        key: PublicKey,
        /// One user.
        first: String,
        /// The other.
        second: String,
    },
    /// An MTU that IPv6 does not allow (RFC 8200, section 5) or that no datagram can carry.
    #[error("an MTU of {0} does not work: IPv6 needs 1280 (RFC 8200), and {MOST_MTU} is the most that is supported")]
    Mtu(u16),
}

impl NodeConfig {
    /// Checks what [`crate::Node`] relies on.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1280..=MOST_MTU).contains(&self.mtu) {
            return Err(ConfigError::Mtu(self.mtu));
        }
        check_peers(&self.peers)
    }
}

/// Checks a set of peers for what would make a packet or a handshake ambiguous.
pub fn check_peers(peers: &[PeerConfig]) -> Result<(), ConfigError> {
    let mut ids: HashMap<PeerId, &str> = HashMap::new();
    let mut keys: HashMap<PublicKey, (PeerId, u8, String)> = HashMap::new();
    for peer in peers {
        if let Some(first) = ids.insert(peer.id, &peer.name) {
            return Err(ConfigError::IdTwice { first: first.into(), second: peer.name.clone() });
        }
        let mut slots = HashSet::new();
        for path in &peer.paths {
            if usize::from(path.slot) >= MAX_SLOTS {
                return Err(ConfigError::Slot { peer: peer.name.clone(), slot: path.slot });
            }
            if !slots.insert((path.slot, path.kind)) {
                return Err(ConfigError::SlotTwice { peer: peer.name.clone(), slot: path.slot });
            }
            // A core is reached from every slot by the same key: there the local keys tell the paths apart.
            if peer.kind != PeerKind::Core {
                let user = format!("{} slot {}", peer.name, path.slot);
                // One key serves both kinds of tunnel: a handshake shows which it is of.
                let (id, slot, first) = keys.entry(path.remote_key).or_insert((peer.id, path.slot, user.clone()));
                if (*id, *slot) != (peer.id, path.slot) {
                    let first = first.clone();
                    return Err(ConfigError::KeyTwice { key: path.remote_key, first, second: user });
                }
            }
        }
    }
    // Sorted, a prefix comes right after all that contain it: a stack of the open ones finds every overlap.
    let mut prefixes: Vec<(IpNet, &str)> =
        peers.iter().flat_map(|peer| peer.prefixes.iter().map(|p| (p.trunc(), peer.name.as_str()))).collect();
    prefixes.sort();
    let mut open: Vec<(IpNet, &str)> = Vec::new();
    for (inner, second) in prefixes {
        while open.last().is_some_and(|(outer, _)| !outer.contains(&inner)) {
            open.pop();
        }
        if let Some(&(outer, first)) = open.iter().find(|(_, first)| *first != second) {
            return Err(ConfigError::PrefixTwice {
                first: first.into(),
                prefix: outer,
                second: second.into(),
                other: inner,
            });
        }
        open.push((inner, second));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u32, prefixes: &[&str]) -> PeerConfig {
        PeerConfig {
            id: PeerId(id),
            name: format!("site-{id}"),
            kind: PeerKind::Middlebox,
            prefixes: prefixes.iter().map(|p| p.parse().expect("a prefix")).collect(),
            egress: 0,
            policy: Arc::default(),
            open_windows: 0,
            paths: Vec::new(),
        }
    }

    #[test]
    fn a_prefix_within_anothers_is_refused_wherever_it_stands_in_the_order() {
        let sites = [peer(1, &["10.0.0.0/8", "10.0.0.0/16"]), peer(2, &["10.1.0.0/16"])];
        assert!(matches!(check_peers(&sites), Err(ConfigError::PrefixTwice { .. })));
        let sites = [peer(1, &["10.0.0.0/9", "2001:db8::/32"]), peer(2, &["10.128.0.0/9", "2001:db9::/32"])];
        assert_eq!(check_peers(&sites), Ok(()));
        let sites = [peer(1, &["10.0.0.0/24"]), peer(2, &["10.0.0.0/24"])];
        assert!(matches!(check_peers(&sites), Err(ConfigError::PrefixTwice { .. })));
    }
}
