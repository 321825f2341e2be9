//! The life of a table of received routes, told in octets: what three neighbours send, sessions that come and go, next hops,
//! sites and VRPs that change meanwhile. Any octets are a life. At its end the kernel's routes must be those of the model.
//!
//! ```text
//! | what, 1 octet | of whom, 1 | length, 2 | octets |      each step
//! ```

use crate::kernel::{Kernel, set_ways};
use crate::model::Model;
use ipnet::IpNet;
use msp_core::bgp::message::{Framer, Kind};
use msp_core::bgp::origin::{Origins, Vrp};
use msp_core::bgp::rib::{Accept, ChoiceConfig, NeighborConfig, Operation, Rib, Session};
use msp_core::bgp::update::{Context, decode};
use msp_core::bgp::{Families, Family};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

const LOCAL_AS: u32 = 64500;
/// Of the neighbours: the second and the third may have several routes to a prefix, and the third is in our own AS.
const ASES: [u32; 3] = [64501, 64502, LOCAL_AS];
const FIRST_TABLE: u32 = 1001;
/// How many IPv4 routes the first may have: fewer than there are prefixes below.
const MOST: u32 = 10;
/// Little enough that they meet.
const PREFIXES: [&str; 14] = [
    "8.0.0.0/8",
    "8.8.0.0/16",
    "8.8.8.0/24",
    "8.8.9.0/24",
    "9.9.9.0/24",
    "11.0.0.0/9",
    "12.1.0.0/16",
    "13.1.1.0/24",
    "10.1.0.0/16",
    "8.8.8.128/25",
    "14.0.0.0/12",
    "15.1.0.0/20",
    "16.0.0.0/8",
    "0.0.0.0/0",
];
const PREFIXES_V6: [&str; 8] = [
    "2600::/16",
    "2600:1::/32",
    "2600:1:1::/48",
    "2600:2::/32",
    "2a00::/16",
    "2001:db8::/32",
    "2600:1:1:8000::/49",
    "::/0",
];

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// An UPDATE with this body comes in.
    Update,
    /// So do these octets.
    Octets,
    Up,
    Down,
    Stale,
    Sweep,
    /// The sites' prefixes are others.
    Own,
    /// So are the VRPs.
    Vrps,
    /// So is who can be reached.
    Ways,
    /// The kernel is told a piece.
    Operations,
    /// The kernel is told all, and compared.
    Compare,
}

impl What {
    fn new(octet: u8) -> What {
        use What::*;
        // UPDATEs as often as all the rest.
        let all = [Octets, Up, Down, Stale, Sweep, Own, Vrps, Ways, Operations, Compare];
        all.get(usize::from(octet) % (2 * all.len())).copied().unwrap_or(Update)
    }
}

/// The steps of a life.
fn steps(mut octets: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    std::iter::from_fn(move || {
        let [what, of, high, low, rest @ ..] = octets else { return None };
        let (body, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes([*high, *low]))));
        octets = rest;
        Some((*what, *of, body))
    })
}

fn context(neighbor: usize) -> Context {
    let add_path = if neighbor > 0 { Families::ALL } else { Families::NONE };
    Context {
        families: Families::ALL,
        four_octet_as: true,
        internal: ASES[neighbor] == LOCAL_AS,
        add_path,
        extended_next_hop: neighbor == 1,
    }
}

struct World {
    rib: Rib,
    model: Model,
    kernel: Kernel,
    framers: [Framer; 3],
    /// What has happened, by which a life is judged worth to be kept.
    seen: BTreeSet<u64>,
}

/// Lives it; what has happened, as numbers.
pub(crate) fn live(octets: &[u8]) -> BTreeSet<u64> {
    let neighbors: Vec<NeighborConfig> = (0..3u8)
        .map(|place| NeighborConfig {
            name: format!("n{place}"),
            // The two that differ in nothing else differ in this.
            address: Ipv4Addr::new(192, 0, 2, 9 - place).into(),
            session: Session { local_as: LOCAL_AS, remote_as: ASES[usize::from(place)], role: None },
            accept: Accept { table: true, default: place != 1 },
            add_path: place > 0,
            max_prefixes: [Some(MOST).filter(|_| place == 0), None],
        })
        .collect();
    let transits = [vec![vec![0], vec![1, 2]], vec![vec![2, 0, 1]]];
    let choices: Vec<ChoiceConfig> = (FIRST_TABLE..)
        .zip(transits)
        .map(|(table, transits)| ChoiceConfig { name: table.to_string(), table, transits })
        .collect();
    let mut world = World {
        rib: Rib::new(neighbors.clone(), choices.clone()),
        model: Model::new(neighbors, choices),
        kernel: Kernel::default(),
        framers: Default::default(),
        seen: BTreeSet::new(),
    };
    (0..3).for_each(|neighbor| world.up(neighbor, 1));
    for (what, of, body) in steps(octets) {
        world.step(What::new(what), usize::from(of) % 3, of, body);
    }
    world.compare();
    // Nothing is left of it when all have gone.
    (0..3).for_each(|neighbor| world.down(neighbor));
    world.compare();
    assert_eq!(world.rib.sizes(), ([0, 0], 0));
    assert!(world.kernel.objects.is_empty() && world.kernel.routes.is_empty(), "{:?}", world.kernel);
    world.seen
}

impl World {
    fn step(&mut self, what: What, neighbor: usize, of: u8, body: &[u8]) {
        let family = if of & 128 == 0 { Family::Ipv4 } else { Family::Ipv6 };
        let chosen = |place: usize| body.get(place / 8).is_some_and(|octet| octet & 1 << (place % 8) != 0);
        match what {
            What::Update => {
                let length = (body.len() as u16).saturating_add(19);
                self.hear(neighbor, &[&[0xff; 16][..], &length.to_be_bytes(), &[2], body].concat());
            }
            What::Octets => self.hear(neighbor, body),
            What::Up => self.up(neighbor, of),
            What::Down => self.down(neighbor),
            What::Stale => {
                self.rib.mark_stale(neighbor, family);
                self.model.mark_stale(neighbor, family);
            }
            What::Sweep => {
                self.rib.sweep(neighbor, family);
                self.model.sweep(neighbor, family);
            }
            What::Own => {
                self.model.own =
                    prefixes().enumerate().filter(|(place, _)| chosen(*place)).map(|(_, net)| net).collect();
                self.rib.set_own(self.model.own.clone());
            }
            What::Vrps => {
                let vrp = |(place, prefix): (usize, IpNet)| {
                    let asn = [0, ASES[0], 7, 9][usize::from(body.get(place + 3).copied().unwrap_or(0)) % 4];
                    Vrp { prefix, max_length: prefix.prefix_len().saturating_add(of % 9).min(32), asn }
                };
                let chosen =
                    prefixes().enumerate().filter(|(place, prefix)| chosen(*place) && prefix.prefix_len() <= 32);
                self.model.vrps = chosen.map(vrp).collect();
                self.rib.set_origins(Arc::new(Origins::new(self.model.vrps.clone())));
            }
            What::Ways => {
                self.model.dead =
                    (0..8).filter(|place| chosen(*place)).map(|place| hop_v4(place as u8).into()).collect();
                set_ways(&mut self.rib, true, |address| !self.model.dead.contains(&address));
            }
            What::Operations => {
                set_ways(&mut self.rib, false, |address| !self.model.dead.contains(&address));
                let mut operations = Vec::new();
                self.rib.operations(usize::from(of % 8) + 1, &mut operations);
                operations.iter().for_each(|operation| match operation {
                    Operation::SetObject { .. } => self.see(("object", 0)),
                    Operation::RemoveObject { .. } => self.see(("object", 1)),
                    Operation::SetRoute { .. } => self.see(("route", 0)),
                    Operation::RemoveRoute { .. } => self.see(("route", 1)),
                });
                self.kernel.take(&operations);
            }
            What::Compare => self.compare(),
        }
    }

    fn see(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.seen.insert(hasher.finish());
    }

    fn up(&mut self, neighbor: usize, id: u8) {
        let router_id = Ipv4Addr::new(192, 0, 2, id);
        self.framers[neighbor] = Framer::default();
        self.rib.up(neighbor, router_id);
        self.model.up.insert(neighbor, router_id);
    }

    fn down(&mut self, neighbor: usize) {
        self.rib.down(neighbor);
        self.model.down(neighbor);
    }

    fn hear(&mut self, neighbor: usize, octets: &[u8]) {
        if !self.model.up.contains_key(&neighbor) {
            return;
        }
        self.framers[neighbor].push(octets);
        loop {
            let update = match self.framers[neighbor].next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) if frame.kind != Kind::Update => continue,
                Ok(Some(frame)) => decode(&frame.body, &context(neighbor)),
                Err(notification) => Err(notification),
            };
            let update = match update {
                Ok(update) => update,
                Err(notification) => {
                    self.see((neighbor, notification.code, notification.subcode));
                    return self.down(neighbor);
                }
            };
            if let Some(fault) = update.fault {
                self.see((neighbor, fault.to_string()));
            }
            let within = self.rib.apply(neighbor, &update).is_ok();
            assert_eq!(within, self.model.apply(neighbor, &update), "max_prefixes");
            if !within {
                return self.see("exceeded");
            }
        }
    }

    /// Does all that is to be done, and compares.
    fn compare(&mut self) {
        let World { rib, model, kernel, .. } = self;
        kernel.settle(rib, |address| !model.dead.contains(&address));
        for (choice, table) in (0..2).zip(FIRST_TABLE..) {
            assert_eq!(kernel.learnt_in(table), model.best(choice), "choice {choice}");
        }
        let mut shown = BTreeSet::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let page = rib.page(from, 7);
            for found in &page.found {
                let keys = found.routes.iter().map(|route| (route.neighbor, found.prefix, route.path_id.unwrap_or(0)));
                shown.extend(keys);
            }
            next = page.next;
        }
        assert_eq!(shown, model.routes.keys().copied().collect());
        for neighbor in 0..3 {
            let counts = self.rib.counts(neighbor);
            let expected = [Family::Ipv4, Family::Ipv6].map(|family| self.model.count(neighbor, family));
            assert_eq!(counts.prefixes, expected);
            // How many, to the power of two.
            counts.prefixes.iter().for_each(|count| self.see((neighbor, count.checked_ilog2())));
            counts.rejected.iter().for_each(|(why, count)| self.see((neighbor, *why, count.checked_ilog2())));
        }
        for prefix in prefixes() {
            let choices = self.rib.explain(&prefix).choices;
            choices.iter().enumerate().for_each(|(choice, used)| self.see((choice, format!("{used:?}"))));
        }
    }
}

fn prefixes() -> impl Iterator<Item = IpNet> {
    PREFIXES.iter().chain(&PREFIXES_V6).map(|text| text.parse().expect("a prefix"))
}

fn hop_v4(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 100 + place)
}

/// A life that goes on as this one does, or another way.
pub(crate) fn mutate(
    life: &[u8],
    other: &[u8],
    rng: &mut StdRng,
    octets: impl Fn(&mut Vec<u8>, &mut StdRng),
) -> Vec<u8> {
    let mut steps: Vec<(u8, u8, Vec<u8>)> = steps(life).map(|(what, of, body)| (what, of, body.to_vec())).collect();
    let others: Vec<_> = self::steps(other).map(|(what, of, body)| (what, of, body.to_vec())).collect();
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..=steps.len());
        match rng.random_range(0..8) {
            0 if at < steps.len() => drop(steps.remove(at)),
            1 if at < steps.len() => octets(&mut steps[at].2, rng),
            2 if at < steps.len() => steps[at].1 = rng.random(),
            3 => steps.extend(others.choose(rng).cloned()),
            _ => steps.insert(at, step(rng)),
        }
    }
    // A life that is longer costs time, and meets nothing that a short one does not.
    steps.truncate(80);
    let mut life = Vec::new();
    for (what, of, body) in steps {
        life.extend_from_slice(&[what, of]);
        life.extend_from_slice(&(body.len() as u16).to_be_bytes());
        life.extend_from_slice(&body);
    }
    life
}

/// A step of any kind; mostly an UPDATE that is good.
fn step(rng: &mut StdRng) -> (u8, u8, Vec<u8>) {
    let (what, of) = (rng.random(), rng.random());
    let body = match What::new(what) {
        What::Update => update(rng, usize::from(of) % 3),
        _ => {
            let mut body = vec![0; rng.random_range(0..28)];
            rng.fill_bytes(&mut body);
            body
        }
    };
    (what, of, body)
}

/// The body of an UPDATE that its neighbour may send.
fn update(rng: &mut StdRng, neighbor: usize) -> Vec<u8> {
    let add_path = neighbor > 0;
    let some = |of: &[&str], rng: &mut StdRng| -> Vec<u8> {
        let count = rng.random_range(0..4);
        let wire = |text: &&str, rng: &mut StdRng| {
            let net: IpNet = text.parse().expect("a prefix");
            let octets = match net.network() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let id = if add_path { rng.random_range(0u32..3).to_be_bytes().to_vec() } else { Vec::new() };
            [&id[..], &[net.prefix_len()], &octets[..usize::from(net.prefix_len().div_ceil(8))]].concat()
        };
        (0..count).flat_map(|_| wire(&of[rng.random_range(0..of.len())], rng)).collect()
    };
    let withdrawn = if rng.random() { some(&PREFIXES, rng) } else { Vec::new() };
    let mut attributes = Vec::new();
    if rng.random_ratio(1, 3) {
        let gone = some(&PREFIXES_V6, rng);
        attributes.extend_from_slice(&[0x80, 15, 3 + gone.len() as u8, 0, 2, 1]);
        attributes.extend_from_slice(&gone);
    }
    let announced = if rng.random_ratio(3, 4) { some(&PREFIXES, rng) } else { Vec::new() };
    let announced_v6 = if rng.random_ratio(1, 3) { some(&PREFIXES_V6, rng) } else { Vec::new() };
    if !announced.is_empty() || !announced_v6.is_empty() {
        attributes.extend_from_slice(&[0x40, 1, 1, rng.random_range(0..3)]);
        let mut path: Vec<u32> = if ASES[neighbor] == LOCAL_AS { Vec::new() } else { vec![ASES[neighbor]] };
        path.extend((0..rng.random_range(0..3)).map(|_| [7u32, 9, 23, LOCAL_AS][rng.random_range(0..4)]));
        let segment = if path.is_empty() { Vec::new() } else { vec![2, path.len() as u8] };
        attributes.extend_from_slice(&[0x40, 2, (segment.len() + 4 * path.len()) as u8]);
        attributes.extend_from_slice(&segment);
        path.iter().for_each(|asn| attributes.extend_from_slice(&asn.to_be_bytes()));
        if !announced.is_empty() {
            attributes.extend_from_slice(&[0x40, 3, 4]);
            attributes.extend_from_slice(&hop_v4(rng.random_range(0..4)).octets());
        }
        if rng.random_ratio(1, 3) {
            attributes.extend_from_slice(&[0x80, 4, 4, 0, 0, 0, rng.random_range(0..3)]);
        }
        if ASES[neighbor] == LOCAL_AS {
            attributes.extend_from_slice(&[0x40, 5, 4, 0, 0, 0, rng.random_range(99..102)]);
            if rng.random_ratio(1, 3) {
                attributes.extend_from_slice(&[0x80, 9, 4, 192, 0, 2, rng.random_range(0..4)]);
            }
        }
        if rng.random_ratio(1, 6) {
            // GRACEFUL_SHUTDOWN.
            attributes.extend_from_slice(&[0xc0, 8, 4, 0xff, 0xff, 0, 0]);
        }
        if !announced_v6.is_empty() {
            attributes.extend_from_slice(&[0x80, 14, 21 + announced_v6.len() as u8, 0, 2, 1, 16]);
            let [a, b, c, d] = hop_v4(rng.random_range(0..4)).octets();
            attributes.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 0]);
            attributes.extend_from_slice(&announced_v6);
        }
    }
    let lengths = [withdrawn.len(), attributes.len()].map(|length| (length as u16).to_be_bytes());
    [&lengths[0][..], &withdrawn, &lengths[1], &attributes, &announced].concat()
}
