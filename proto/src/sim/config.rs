//! What a world is made of, and what each of its two ends is told of the other.

use super::{LinkModel, Side};
use crate::Uplink;
use crate::policy::Policy;
use crate::tunnel::{Suite, TunnelChoice, TunnelKind};
use crate::{
    Identity, Instant, Keepalive, LinkId, Node, NodeConfig, PathConfig, PeerConfig, PeerId, PeerKind, SecretKey,
};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a world is made of.
pub struct WorldConfig {
    /// The links, slot 0 first: the model from the box to the core, and back.
    pub links: Vec<(LinkModel, LinkModel)>,
    /// All that is random comes from it.
    pub seed: u64,
    /// What makes the tunnels of each end.
    pub suite: fn() -> Box<dyn Suite>,
    /// The prefixes that the box believes to be its own. An honest one has [`site_prefixes`].
    pub box_prefixes: Vec<IpNet>,
    /// The core's addresses, best first; every link leads to all of them.
    pub core_addresses: Vec<SocketAddr>,
    /// Which kind of tunnel each uplink has. QUIC goes to port 443 of the same addresses.
    pub tunnel: TunnelChoice,
    /// How the box is to ask on each link while idle.
    pub keepalive: Keepalive,
    /// What both ends go by.
    pub policy: Arc<Policy>,
}

impl WorldConfig {
    /// An honest box and core without a cipher, over links that behave the same both ways.
    pub fn new(links: &[LinkModel], seed: u64) -> Self {
        WorldConfig {
            links: links.iter().map(|&model| (model, model)).collect(),
            seed,
            suite: || Box::new(crate::tunnel::null::Null),
            box_prefixes: site_prefixes(),
            core_addresses: vec![SocketAddr::from(([192, 0, 2, 1], 51820))],
            tunnel: TunnelChoice::default(),
            keepalive: Keepalive::default(),
            policy: Arc::default(),
        }
    }

    /// How the box uses its uplink of a slot.
    pub(super) fn uplink(&self, slot: u8) -> Uplink {
        let [endpoints, quic_endpoints] =
            [TunnelKind::WireGuard, TunnelKind::Quic].map(|kind| self.addresses(kind).collect());
        Uplink { endpoints, quic_endpoints, preference: slot, keepalive: self.keepalive }
    }

    /// Where the core listens for tunnels of this kind.
    pub(super) fn addresses(&self, kind: TunnelKind) -> impl Iterator<Item = SocketAddr> + '_ {
        self.core_addresses.iter().map(move |address| match kind {
            TunnelKind::WireGuard => *address,
            TunnelKind::Quic => SocketAddr::new(address.ip(), QUIC_PORT),
        })
    }

    /// The kinds of tunnel that each uplink may have, as a side knows it: the core takes either.
    fn kinds(&self, side: Side) -> &'static [TunnelKind] {
        match (side, self.tunnel) {
            (Side::Core, _) | (_, TunnelChoice::Auto) => &[TunnelKind::WireGuard, TunnelKind::Quic],
            (_, TunnelChoice::WireGuard) => &[TunnelKind::WireGuard],
            (_, TunnelChoice::Quic) => &[TunnelKind::Quic],
        }
    }

    /// What the node of a side is told of the other one.
    pub(super) fn peer(&self, side: Side) -> PeerConfig {
        let (box_secret, core_secret) = secrets();
        let path = |slot: u8, kind: TunnelKind| match side {
            Side::Box => PathConfig {
                slot,
                kind,
                preference: None,
                local_key: box_secret.uplink(slot),
                remote_key: core_secret.public(),
                link: Some(LinkId(slot.into())),
            },
            Side::Core => PathConfig {
                slot,
                kind,
                preference: None,
                local_key: core_secret.clone(),
                remote_key: box_secret.uplink(slot).public(),
                link: None,
            },
        };
        let (kind, prefixes) = match side {
            Side::Box => {
                let everything = ["0.0.0.0/0", "::/0"].iter().filter_map(|prefix| prefix.parse().ok()).collect();
                (PeerKind::Core, everything)
            }
            Side::Core => (PeerKind::Middlebox, site_prefixes()),
        };
        PeerConfig {
            id: PEER,
            name: "peer".into(),
            kind,
            prefixes,
            egress: 0,
            policy: self.policy.clone(),
            open_windows: 0,
            paths: (0..self.links.len() as u8)
                .flat_map(|slot| self.kinds(side).iter().map(move |&kind| path(slot, kind)))
                .collect(),
        }
    }

    /// The node of a side, from its own seed.
    pub(super) fn node(&self, side: Side, seed: [u8; 32], now: Instant) -> Node {
        let config = NodeConfig {
            identity: match side {
                Side::Box => Identity { middlebox: 1, pop: 0 },
                Side::Core => Identity { middlebox: 0, pop: 1 },
            },
            mtu: MTU,
            local: if side == Side::Box { self.box_prefixes.clone() } else { Vec::new() },
            listen_key: (side == Side::Core).then(|| secrets().1),
            peers: vec![self.peer(side)],
        };
        let node = Node::with_suite(config, (self.suite)(), seed, now);
        let mut node = node.expect("the world's own configuration is sound");
        if side == Side::Box {
            for slot in 0..self.links.len() as u8 {
                node.set_uplink(now, LinkId(slot.into()), Some(self.uplink(slot)));
            }
        }
        node
    }
}

/// The peer's number at either end.
pub const PEER: PeerId = PeerId(1);

/// Where the core listens for QUIC.
const QUIC_PORT: u16 = 443;

/// Of what kind the tunnel is whose datagrams go to or from this address of the core.
pub(super) fn kind_at(core: SocketAddr) -> TunnelKind {
    if core.port() == QUIC_PORT { TunnelKind::Quic } else { TunnelKind::WireGuard }
}

/// The MTU of both TUNs.
const MTU: u16 = 1380;

/// The site's prefixes in every world.
pub fn site_prefixes() -> Vec<IpNet> {
    ["198.51.100.0/24", "2001:db8:100::/48"].iter().filter_map(|prefix| prefix.parse().ok()).collect()
}

/// The same keys in every world: what differs from run to run is the seed's.
fn secrets() -> (SecretKey, SecretKey) {
    (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]))
}
