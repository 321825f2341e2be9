//! What a packet costs in a tunnel of each kind: two nodes in one process, one sends at full speed, and what it sends the other has
//! at once. So it is the nodes' own work that is measured, without the kernel's, which is the same for both.
//!
//! It measures the time that the processor spends on it: build with `--release`. What else the machine does still costs caches.

use anyhow::{Context, Result};
use proto::{Datagram, Identity, Instant, Keepalive, LinkId, Node, NodeConfig, Output, PathConfig, PeerConfig, PeerId};
use proto::{PeerKind, SecretKey, TunnelKind, Uplink};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Octets of each packet.
    #[arg(long, default_value_t = 1_380, value_parser = clap::value_parser!(u16).range(64..=1_380))]
    size: u16,
    /// How often it is measured, the kinds in turns.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Writes all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What QUIC must reach of WireGuard's speed.
pub(super) const BAR: f64 = 0.6;
/// What is compared.
pub(super) const KINDS: [TunnelKind; 2] = [TunnelKind::WireGuard, TunnelKind::Quic];
/// Packets of a run, and of one call: as many as the daemons' loop takes at once.
const PACKETS: u32 = 200_000;
const BATCH: usize = 64;
/// Nodes are told that so much time has passed with each batch: a full Gbit/s.
const STEP: Duration = Duration::from_micros(700);

const ADDRESSES: [([u8; 4], u16); 2] = [([203, 0, 113, 1], 40_000), ([192, 0, 2, 1], 443)];
const BOX: usize = 0;
const CORE: usize = 1;

/// What the processor has spent on this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// A box and a core, and the time that each has taken.
struct Pair {
    now: Instant,
    nodes: [Node; 2],
    outs: [Output; 2],
    taken: [Duration; 2],
    delivered: u64,
}

impl Pair {
    fn new(kind: TunnelKind) -> Result<Pair> {
        let (secret, core) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        let node = |end: usize| {
            let (local, remote) =
                if end == BOX { (secret.uplink(0), &core) } else { (core.clone(), &secret.uplink(0)) };
            let path = PathConfig {
                slot: 0,
                kind,
                preference: None,
                local_key: local,
                remote_key: remote.public(),
                link: (end == BOX).then_some(LinkId(0)),
            };
            let prefix = if end == BOX { "0.0.0.0/0" } else { "198.51.100.0/24" };
            let peer = PeerConfig {
                id: PeerId(1),
                name: "peer".into(),
                kind: if end == BOX { PeerKind::Core } else { PeerKind::Middlebox },
                prefixes: vec![prefix.parse()?],
                egress: 0,
                policy: Default::default(),
                open_windows: 0,
                paths: vec![path],
            };
            let config = NodeConfig {
                identity: Identity::default(),
                mtu: 1_380,
                local: if end == BOX { vec!["198.51.100.0/24".parse()?] } else { Vec::new() },
                listen_key: (end == CORE).then(|| core.clone()),
                peers: vec![peer],
            };
            Ok::<_, anyhow::Error>(Node::new(config, [7; 32], Instant::ZERO)?)
        };
        let mut nodes = [node(BOX)?, node(CORE)?];
        let to = vec![SocketAddr::from(ADDRESSES[CORE])];
        let uplink =
            Uplink { endpoints: to.clone(), quic_endpoints: to, preference: 0, keepalive: Keepalive::default() };
        nodes[BOX].set_uplink(Instant::ZERO, LinkId(0), Some(uplink));
        let outs = [Output::new(0), Output::new(0)];
        let mut pair = Pair { now: Instant::ZERO, nodes, outs, taken: Default::default(), delivered: 0 };
        for _ in 0..5_000 {
            pair.pass();
        }
        let up = pair.nodes.iter().all(|node| node.snapshot(pair.now).peers.iter().any(|peer| peer.reachable));
        anyhow::ensure!(up, "no path came up");
        Ok(pair)
    }

    /// What `end` does, and the time it takes.
    fn timed(&mut self, end: usize, work: impl FnOnce(&mut Node, &mut Output)) {
        let before = processor_time();
        work(&mut self.nodes[end], &mut self.outs[end]);
        self.taken[end] += processor_time() - before;
    }

    /// Time passes, and what is due is done.
    fn pass(&mut self) {
        self.now += STEP;
        let now = self.now;
        for end in [BOX, CORE] {
            if self.nodes[end].poll_timeout().is_some_and(|deadline| deadline.at <= now) {
                self.timed(end, |node, out| node.handle_timeout(now, out));
            }
            self.exchange();
        }
    }

    fn exchange(&mut self) {
        while self.outs.iter().any(|out| !out.is_empty()) {
            for end in [BOX, CORE] {
                while self.nodes[end].poll_event().is_some() {}
                let now = self.now;
                let mut from = std::mem::replace(&mut self.outs[end], Output::new(0));
                self.delivered += if end == CORE { from.deliveries().flatten().count() as u64 } else { 0 };
                let datagrams = from.transmits().iter().map(|transmit| Datagram {
                    link: LinkId(0),
                    from: ADDRESSES[end].into(),
                    to: None,
                    ecn: 0,
                    waited: Duration::ZERO,
                    data: &from.bytes()[transmit.range.clone()],
                });
                self.timed(1 - end, |node, out| node.handle_datagrams(now, datagrams, out));
                from.clear();
                self.outs[end] = from;
            }
        }
    }

    /// Sends the packets of a run, and says what one of them costs each end, in nanoseconds.
    fn run(&mut self, size: u16) -> Result<[f64; 2]> {
        let mut packet = vec![0; usize::from(size)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&size.to_be_bytes());
        packet[9] = 17;
        packet[12..16].copy_from_slice(&[198, 51, 100, 10]);
        packet[16..20].copy_from_slice(&[203, 0, 113, 200]);
        let mut batch = vec![packet; BATCH];
        (self.taken, self.delivered) = Default::default();
        for _ in 0..PACKETS / BATCH as u32 {
            let now = self.now;
            self.timed(BOX, |node, out| {
                node.handle_ip(now, Duration::ZERO, batch.iter_mut().map(Vec::as_mut_slice), out);
            });
            self.exchange();
            self.pass();
        }
        let sent = u64::from(PACKETS) / BATCH as u64 * BATCH as u64;
        // What waits at the end for a moment of room is no loss.
        anyhow::ensure!(self.delivered + 1_000 >= sent, "{} of {sent} packets arrived", self.delivered);
        Ok(self.taken.map(|taken| taken.as_nanos() as f64 / self.delivered as f64))
    }
}

/// What a kind of tunnel costs.
#[derive(Debug, serde::Serialize)]
struct Figure {
    tunnel: TunnelKind,
    /// Nanoseconds a packet at the end that sends, in the median.
    sender_ns: f64,
    /// The same at the end that receives.
    receiver_ns: f64,
    /// What the slower end carries with one core, in Gbit/s of packets.
    gbit_per_s: f64,
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures, and says whether the bar is met.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let mut pairs = KINDS.map(Pair::new).into_iter().collect::<Result<Vec<_>>>()?;
    let mut costs = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..arguments.runs.max(1) {
        for (pair, costs) in pairs.iter_mut().zip(&mut costs) {
            for (cost, costs) in pair.run(arguments.size)?.into_iter().zip(costs) {
                costs.push(cost);
            }
        }
    }
    let figures: Vec<Figure> = KINDS
        .into_iter()
        .zip(costs)
        .map(|(tunnel, costs)| {
            let [sender_ns, receiver_ns] = costs.map(median);
            let gbit_per_s = f64::from(arguments.size) * 8.0 / sender_ns.max(receiver_ns);
            Figure { tunnel, sender_ns, receiver_ns, gbit_per_s }
        })
        .collect();
    println!("packets of {} octets; nanoseconds each, median of {} runs", arguments.size, arguments.runs.max(1));
    println!("{:<12} {:>8} {:>8} {:>12}", "tunnel", "sender", "receiver", "one core");
    for figure in &figures {
        let &Figure { ref tunnel, sender_ns, receiver_ns, gbit_per_s } = figure;
        println!("{:<12} {sender_ns:>8.0} {receiver_ns:>8.0} {gbit_per_s:>5.2} Gbit/s", tunnel.to_string());
    }
    let speed = |kind| figures.iter().find(|figure| figure.tunnel == kind).map_or(f64::NAN, |figure| figure.gbit_per_s);
    let ratio = speed(TunnelKind::Quic) / speed(TunnelKind::WireGuard);
    let met = ratio >= BAR;
    println!("QUIC has {ratio:.2} of WireGuard's speed; the bar is {BAR}: {}", if met { "met" } else { "NOT met" });
    if let Some(file) = &arguments.json {
        let document = serde_json::to_string_pretty(&figures)?;
        std::fs::write(file, document).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(met)
}
