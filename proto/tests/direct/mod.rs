//! A box and a core joined directly, for tests that call the nodes themselves: what one sends the other has at once.

use proto::tunnel::Suite;
use proto::{
    Datagram, Identity, Instant, Keepalive, LinkId, Node, NodeConfig, Output, PathConfig, PeerConfig, PeerId, PeerKind,
    SecretKey, TunnelKind, Uplink,
};
use std::time::Duration;

pub(crate) struct Direct {
    pub(crate) now: Instant,
    pub(crate) ends: [Node; 2],
    /// What came to each end's TUN since it was last emptied.
    pub(crate) delivered: [usize; 2],
    /// What of it came to each of the core's TUNs, by their places.
    #[allow(dead_code)] // not all who use this have several
    pub(crate) by_tun: [usize; 4],
    /// Datagrams that are larger are lost.
    pub(crate) largest: usize,
    /// What the way makes of the ECN field of a datagram; the octets of the outer headers that it saw; those of the packets
    /// that came to each end.
    pub(crate) ecn: fn(u8) -> u8,
    pub(crate) outer: Vec<u8>,
    pub(crate) inner: [Vec<u8>; 2],
    outs: [Output; 2],
}

pub(crate) const BOX: usize = 0;
pub(crate) const CORE: usize = 1;

const ADDRESSES: [([u8; 4], u16); 2] = [([203, 0, 113, 1], 40000), ([192, 0, 2, 1], 51820)];

/// The site's box as the core knows it, with the keys of `secret`, by WireGuard.
pub(crate) fn site(secret: u8) -> PeerConfig {
    PeerConfig {
        id: PeerId(1),
        name: "site".into(),
        kind: PeerKind::Middlebox,
        prefixes: vec!["198.51.100.0/24".parse().expect("a prefix")],
        egress: 0,
        policy: Default::default(),
        open_windows: 0,
        paths: vec![PathConfig {
            slot: 0,
            kind: Default::default(),
            preference: None,
            local_key: SecretKey::from_bytes([2; 32]),
            remote_key: SecretKey::from_bytes([secret; 32]).uplink(0).public(),
            link: None,
        }],
    }
}

impl Direct {
    /// Both ends up, by WireGuard.
    pub(crate) fn new(suite: fn() -> Box<dyn Suite>) -> Direct {
        Direct::by(TunnelKind::WireGuard, suite)
    }

    /// Both ends up, by this kind of tunnel.
    pub(crate) fn by(kind: TunnelKind, suite: fn() -> Box<dyn Suite>) -> Direct {
        let site = |secret| {
            let mut site = site(secret);
            site.paths.iter_mut().for_each(|path| path.kind = kind);
            site
        };
        let core_key = SecretKey::from_bytes([2; 32]);
        let core = PeerConfig {
            kind: PeerKind::Core,
            name: "core".into(),
            prefixes: vec!["0.0.0.0/0".parse().expect("a prefix")],
            paths: vec![PathConfig {
                local_key: SecretKey::from_bytes([1; 32]).uplink(0),
                remote_key: core_key.public(),
                link: Some(LinkId(0)),
                ..site(1).paths[0].clone()
            }],
            ..site(1)
        };
        let node = |local: Vec<_>, listen_key, peer| {
            let config = NodeConfig { identity: Identity::default(), mtu: 1400, local, listen_key, peers: vec![peer] };
            Node::with_suite(config, suite(), [7; 32], Instant::ZERO).expect("a sound configuration")
        };
        let mut ends = [node(site(1).prefixes, None, core), node(Vec::new(), Some(core_key), site(1))];
        let endpoints = vec![ADDRESSES[CORE].into()];
        let uplink =
            Uplink { quic_endpoints: endpoints.clone(), endpoints, preference: 0, keepalive: Keepalive::default() };
        ends[BOX].set_uplink(Instant::ZERO, LinkId(0), Some(uplink));
        let outs = [Output::new(0), Output::new(0)];
        let mut direct = Direct {
            now: Instant::ZERO,
            ends,
            delivered: [0; 2],
            by_tun: [0; 4],
            largest: usize::MAX,
            ecn: |ecn| ecn,
            outer: Vec::new(),
            inner: Default::default(),
            outs,
        };
        direct.run_for(Duration::from_millis(1000));
        for (end, node) in direct.ends.iter().enumerate() {
            assert!(node.snapshot(direct.now).peers[0].reachable, "end {end}");
        }
        direct
    }

    /// Lets time pass in milliseconds, with all that is due.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.now < until {
            self.now += Duration::from_millis(1);
            self.timeouts();
        }
    }

    /// Calls the ends whose time has come.
    pub(crate) fn timeouts(&mut self) {
        for end in [BOX, CORE] {
            if self.ends[end].poll_timeout().is_some_and(|next| next.at <= self.now) {
                self.ends[end].handle_timeout(self.now, &mut self.outs[end]);
            }
            self.exchange();
        }
    }

    /// Gives an end a packet from its TUN.
    pub(crate) fn offer(&mut self, end: usize, packet: &mut [u8]) {
        self.ends[end].handle_ip(self.now, Duration::ZERO, [packet], &mut self.outs[end]);
        self.exchange();
    }

    fn exchange(&mut self) {
        while self.outs.iter().any(|out| !out.is_empty()) {
            for end in [BOX, CORE] {
                while self.ends[end].poll_event().is_some() {}
                let [of_box, of_core] = &mut self.outs;
                let (from, to) = if end == BOX { (of_box, of_core) } else { (of_core, of_box) };
                for packet in from.deliveries().flatten() {
                    self.delivered[end] += 1;
                    self.inner[end].push(packet[1]);
                }
                if end == CORE {
                    let counts = from.deliveries().map(|packets| packets.len());
                    self.by_tun.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                }
                self.outer.extend(from.transmits().iter().map(|transmit| transmit.traffic_class));
                let met = self.ecn;
                let fitting = from.transmits().iter().filter(|transmit| transmit.range.len() <= self.largest);
                let datagrams = fitting.map(|transmit| Datagram {
                    link: LinkId(0),
                    from: ADDRESSES[end].into(),
                    to: None,
                    ecn: met(transmit.traffic_class & 3),
                    waited: Duration::ZERO,
                    data: &from.bytes()[transmit.range.clone()],
                });
                self.ends[1 - end].handle_datagrams(self.now, datagrams, to);
                from.clear();
            }
        }
    }
}

/// A UDP packet of the site (to the core) or for it.
pub(crate) fn packet(from: usize, len: usize) -> Vec<u8> {
    let (site, host) = ([198, 51, 100, 10], [203, 0, 113, 200]);
    let (source, destination) = if from == BOX { (site, host) } else { (host, site) };
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}
