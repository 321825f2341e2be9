//! What policy costs a packet: the first of a flow, whose class is found rule by rule, and the others, whose class is remembered.
//!
//! It measures real time: build with `--release`, and leave the machine alone.

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proto::policy::{Class, Facts, Matches, Policy};
use proto::tunnel::null::Null;
use proto::{Identity, Instant, Node, NodeConfig, Output, PathConfig, PeerConfig, PeerId, PeerKind, SecretKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many classes a policy has, besides the one of the rest.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=254))]
    rules: u16,
    /// How often it is measured.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Writes all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What finding the class of a new flow may take: half of what sealing a full packet does, some 950 ns on a core of 2023.
const BAR_NS: f64 = 500.0;
/// Packets of a run: enough for a millisecond and more, which a clock can tell.
const PACKETS: usize = 20_000;
/// Flows that take turns where each packet is to be of a new one: more than are remembered.
const FLOWS: u16 = 4_096;

/// What the classes of a policy ask for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Ports,
    Codepoints,
    Prefixes,
    Ipv6Prefixes,
    /// Four prefixes, and then a port.
    Lists,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Ports, "a protocol and a port each"),
    (Kind::Codepoints, "a codepoint and a port each"),
    (Kind::Prefixes, "an IPv4 prefix each"),
    (Kind::Ipv6Prefixes, "an IPv6 prefix each"),
    (Kind::Lists, "four prefixes and a port each"),
];

impl Kind {
    /// What the class of this number matches. None of them has the packets that are asked for, which is the longest way.
    fn matches(self, number: u16) -> Matches {
        let [high, low] = number.to_be_bytes();
        let v4 = |last: u8| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, high, low, last), 26));
        let port = vec![10_000 + number..=10_000 + number];
        match self {
            Kind::Ports => Matches { proto: vec![17], dport: port, ..Matches::default() },
            Kind::Codepoints => Matches { dscp: 1, dport: port, ..Matches::default() },
            Kind::Prefixes => Matches { dst: vec![v4(0)], ..Matches::default() },
            Kind::Ipv6Prefixes => {
                let net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, 0), 48);
                Matches { dst: vec![IpNet::V6(net)], ..Matches::default() }
            }
            Kind::Lists => {
                Matches { dst: [0, 64, 128, 192].map(v4).to_vec(), sport: vec![1..=2_000], ..Matches::default() }
            }
        }
    }

    fn policy(self, rules: u16) -> Result<Policy> {
        let class = |number: u16| {
            let everything = Class::everything(&number.to_string());
            Class { matches: self.matches(number), ..everything }
        };
        Ok(Policy::new(Default::default(), (0..rules).map(class).collect())?)
    }

    fn facts(self, rng: &mut StdRng) -> Facts {
        let ports = Some((rng.random_range(1..1_000), rng.random_range(1..10_000)));
        let (src, dst): (IpAddr, IpAddr) = match self {
            Kind::Ipv6Prefixes => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::from(rng.random::<u128>() | 1 << 127).into()),
            _ => (Ipv4Addr::new(198, 51, 100, 1).into(), Ipv4Addr::from(rng.random::<u32>() | 1 << 31).into()),
        };
        Facts { src, dst, proto: 17, ports, dscp: 0 }
    }
}

/// A figure over all runs, in nanoseconds a packet.
#[derive(Debug, serde::Serialize)]
struct Figure {
    what: String,
    least: f64,
    median: f64,
    most: f64,
}

impl Figure {
    fn of(what: String, mut runs: Vec<f64>) -> Figure {
        runs.sort_by(f64::total_cmp);
        let at = |place: usize| runs.get(place).copied().unwrap_or(f64::NAN);
        let figure = Figure { what, least: at(0), median: at(runs.len() / 2), most: at(runs.len().saturating_sub(1)) };
        println!("{:<44} {:>8.0} {:>8.0} {:>8.0}", figure.what, figure.least, figure.median, figure.most);
        figure
    }
}

/// Nanoseconds that a packet takes.
fn time(mut each: impl FnMut(usize)) -> f64 {
    let before = std::time::Instant::now();
    (0..PACKETS).for_each(&mut each);
    before.elapsed().as_nanos() as f64 / PACKETS as f64
}

/// A box with this policy and no uplink: what comes is classified, and then dropped.
fn node(policy: Policy) -> Result<Node> {
    let secret = SecretKey::from_bytes([1; 32]);
    let path = PathConfig {
        slot: 0,
        kind: Default::default(),
        preference: None,
        local_key: secret.uplink(0),
        remote_key: SecretKey::from_bytes([2; 32]).public(),
        link: None,
    };
    let peer = PeerConfig {
        id: PeerId(1),
        name: "core".into(),
        kind: PeerKind::Core,
        prefixes: vec!["0.0.0.0/0".parse()?],
        egress: 0,
        policy: Arc::new(policy),
        open_windows: 0,
        paths: vec![path],
    };
    let config = NodeConfig {
        identity: Identity { middlebox: 1, pop: 0 },
        mtu: 1380,
        local: vec!["198.51.100.0/24".parse()?],
        listen_key: None,
        peers: vec![peer],
    };
    Ok(Node::with_suite(config, Box::new(Null), [7; 32], Instant::ZERO)?)
}

/// A UDP packet of the flow of this number.
fn packet(flow: u16) -> Vec<u8> {
    let mut packet = vec![0; 100];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 100]);
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..20].copy_from_slice(&[198, 51, 100, 7, 203, 0, 113, 9]);
    packet[20..22].copy_from_slice(&flow.to_be_bytes());
    packet[22..24].copy_from_slice(&443u16.to_be_bytes());
    packet[24..26].copy_from_slice(&80u16.to_be_bytes());
    packet
}

/// What a packet takes of the node, up to where its class is known: one of `flows` flows that take turns.
fn handled(arguments: &Arguments, rules: u16, flows: u16) -> Result<Vec<f64>> {
    let policy = if rules == 0 { Policy::default() } else { Kind::Ports.policy(rules)? };
    let mut node = node(policy)?;
    let mut packets: Vec<Vec<u8>> = (0..flows).map(packet).collect();
    let mut out = Output::new(0);
    let mut run = || {
        time(|number| {
            let packet = &mut packets[number % usize::from(flows)][..];
            node.handle_ip(Instant::ZERO, Duration::ZERO, [packet], &mut out);
        })
    };
    run();
    Ok((0..arguments.runs).map(|_| run()).collect())
}

/// Measures, and says whether the bar is met.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let rules = arguments.rules;
    println!("{rules} classes, none of which has the packet; nanoseconds a packet, {} runs", arguments.runs);
    println!("{:<44} {:>8} {:>8} {:>8}", "", "least", "median", "most");
    let mut figures = Vec::new();
    let mut slowest: f64 = 0.0;
    for (kind, words) in KINDS {
        let (policy, mut rng) = (kind.policy(rules)?, StdRng::seed_from_u64(1));
        let facts: Vec<Facts> = (0..1_024).map(|_| kind.facts(&mut rng)).collect();
        let run = |_| {
            time(|number| {
                black_box(policy.classify(black_box(&facts[number % facts.len()]), 0));
            })
        };
        run(0);
        let figure = Figure::of(format!("classify: {words}"), (0..arguments.runs).map(run).collect());
        slowest = slowest.max(figure.median);
        figures.push(figure);
    }
    for (rules, flows, words) in [
        (0, 1, "a known flow, no policy"),
        (rules, 1, "a known flow, a port each"),
        (0, FLOWS, "new flows, no policy"),
        (rules, FLOWS, "new flows, a port each"),
    ] {
        figures.push(Figure::of(format!("node: {words}"), handled(arguments, rules, flows)?));
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    let met = slowest <= BAR_NS;
    println!(
        "finding a class takes {slowest:.0} ns at most; wanted at most {BAR_NS:.0}: {}",
        if met { "met" } else { "MISSED" }
    );
    Ok(met)
}
