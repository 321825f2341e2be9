//! Two nodes joined by links, in virtual time, from a seed: the unit test of the protocol, and the lab's simulator.
//!
//! Time goes from event to event; a run of minutes takes milliseconds, and the same seed gives the same run to the
//! nanosecond. What is simulated is the world: links, traffic, cuts. The nodes are the real ones; only their tunnels
//! may be without a cipher ([`crate::tunnel::null`]).

mod config;
mod link;
mod nat;
mod tcp;
mod traffic;

pub use config::{PEER, WorldConfig, site_prefixes};
pub use link::{LinkModel, Loss, Sleep, Stalls};
pub use tcp::{CONTENT, Progress};
pub use traffic::{Arrival, Flow, Report, at, ms};

use crate::policy::Policy;
use crate::tunnel::TunnelKind;
use crate::{Datagram, Event, Instant, LinkId, Node, Output, PeerConfig, Uplink};
use config::kind_at;
use link::{Direction, Policer, Radio};
use nat::Outside;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tcp::Connection;
use traffic::Traffic;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The middlebox.
    Box,
    /// The core.
    Core,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Box => Side::Core,
            Side::Core => Side::Box,
        }
    }
}

struct End {
    node: Node,
    out: Output,
    /// All events, with their time.
    events: Vec<(Instant, Event)>,
    /// A killed process: nothing reaches it, and it does nothing.
    running: bool,
    /// A process that stands still: what comes waits for it.
    frozen: Option<Frozen>,
}

/// What waits for a process that stands still, as the kernel would keep it.
struct Frozen {
    since: Instant,
    datagrams: Vec<InFlight>,
    octets: usize,
    packets: Vec<Vec<u8>>,
}

impl Frozen {
    /// The receive buffer of a daemon's sockets, and a TUN's queue.
    const BUFFER: usize = 4 * 1024 * 1024;
    const QUEUE: usize = 500;

    fn new(since: Instant) -> Self {
        Frozen { since, datagrams: Vec::new(), octets: 0, packets: Vec::new() }
    }
}

struct InFlight {
    to: Side,
    link: usize,
    from: SocketAddr,
    /// The address it was sent to.
    to_address: SocketAddr,
    /// The ECN field of its header.
    ecn: u8,
    data: Vec<u8>,
}

/// What the simulation does next.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Datagram(usize),
    Packet(usize),
    /// A TCP connection may have something to do.
    Connection(usize),
}

/// A box, a core, and the links between them.
pub struct World {
    now: Instant,
    rng: StdRng,
    ends: [End; 2],
    links: Vec<[Direction; 2]>,
    radios: Vec<Radio>,
    outside: Vec<Outside>,
    /// What a side sends on a link to (the box) or from (the core) an address of the core is lost.
    black_holes: HashSet<(usize, Side, SocketAddr)>,
    /// How what a side sends on a link by tunnels of a kind is held down.
    policers: HashMap<(usize, Side, TunnelKind), Policer>,
    /// Datagrams that they have dropped.
    policed: u64,
    queue: BinaryHeap<Reverse<(Instant, u64, Next)>>,
    order: u64,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    traffic: Traffic,
    connections: Vec<Connection>,
    /// Of them, those that may have something to send.
    stirred: Vec<usize>,
    /// Sent by either kind of tunnel.
    datagrams: [u64; 2],
    /// The packet that came to each end's TUN last.
    delivered: [Vec<u8>; 2],
    /// Called with every datagram that is sent.
    tap: Option<Tap>,
    config: WorldConfig,
}

/// Called with the link, the sender and the bytes of every datagram; says whether it passes.
pub type Tap = Box<dyn FnMut(usize, Side, &[u8]) -> bool>;

impl World {
    /// Both ends started, nothing sent yet.
    pub fn new(config: WorldConfig) -> World {
        let slots = config.links.len();
        let mut rng = StdRng::seed_from_u64(config.seed);
        let ends = [Side::Box, Side::Core].map(|side| {
            let node = config.node(side, rng.random(), Instant::ZERO);
            End { node, out: Output::new(0), events: Vec::new(), running: true, frozen: None }
        });
        let directions = |(link, &(up, down)): (u64, &(LinkModel, LinkModel))| {
            // Not next to each other's, nor to those of a world with the next seed.
            let seed = |direction: u64| config.seed ^ (2 * link + direction + 1).rotate_right(16);
            [Direction::new(up, seed(0)), Direction::new(down, seed(1))]
        };
        World {
            now: Instant::ZERO,
            rng,
            ends,
            links: (0..).zip(&config.links).map(directions).collect(),
            radios: config.links.iter().map(|_| Radio::default()).collect(),
            outside: (0..slots).map(Outside::new).collect(),
            black_holes: HashSet::new(),
            policers: HashMap::new(),
            policed: 0,
            queue: BinaryHeap::new(),
            order: 0,
            in_flight: Vec::new(),
            free: Vec::new(),
            traffic: Traffic::default(),
            connections: Vec::new(),
            stirred: Vec::new(),
            datagrams: [0; 2],
            delivered: [Vec::new(), Vec::new()],
            tap: None,
            config,
        }
    }

    /// The present moment.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// An end's node.
    pub fn node_of(&self, side: Side) -> &Node {
        &self.ends[side as usize].node
    }

    /// What an end shows.
    pub fn snapshot(&self, side: Side) -> crate::snapshot::Snapshot {
        self.ends[side as usize].node.snapshot(self.now)
    }

    /// What happened at an end, with its time.
    pub fn events(&self, side: Side) -> &[(Instant, Event)] {
        &self.ends[side as usize].events
    }

    /// Datagrams sent by both ends so far.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.iter().sum()
    }

    /// Of them, those of tunnels of this kind.
    pub fn datagrams_of(&self, kind: TunnelKind) -> u64 {
        self.datagrams[kind as usize]
    }

    /// How the flows have fared.
    pub fn reports(&self) -> Vec<Report> {
        self.traffic.reports(self.now)
    }

    /// The packets of a flow that came, second copies too, in the order in which they did.
    pub fn arrivals(&self, flow: usize) -> &[Arrival] {
        self.traffic.arrivals(flow)
    }

    /// Ends a flow, and gives what came of it; nothing is kept. For runs with so many flows that their arrivals would fill
    /// the memory.
    pub fn end_flow(&mut self, flow: usize) -> (Report, Vec<Arrival>) {
        self.traffic.end(flow, self.now)
    }

    /// The packet that came to an end's TUN last.
    pub fn last_delivered(&self, side: Side) -> &[u8] {
        &self.delivered[side as usize]
    }

    /// Sees, and may stop, every datagram from now on.
    pub fn set_tap(&mut self, tap: Option<Tap>) {
        self.tap = tap;
    }

    /// Stops (silently) or lets pass what `from` sends over `link`.
    pub fn set_cut(&mut self, link: usize, from: Side, cut: bool) {
        self.links[link][from as usize].cut = cut;
    }

    /// Stops (silently) or lets pass both directions of `link`.
    pub fn set_cut_both(&mut self, link: usize, cut: bool) {
        self.set_cut(link, Side::Box, cut);
        self.set_cut(link, Side::Core, cut);
    }

    /// What is under way on `link` to an end is lost. A cut alone leaves it: that is at the sender's end.
    pub fn lose_under_way(&mut self, link: usize, to: Side) {
        for datagram in &mut self.in_flight {
            datagram.take_if(|datagram| datagram.link == link && datagram.to == to);
        }
    }

    /// Another behaviour of what `from` sends over `link`.
    pub fn set_model(&mut self, link: usize, from: Side, model: LinkModel) {
        self.links[link][from as usize].model = model;
    }

    /// The NAT of `link` gives the box another address or port.
    pub fn rebind(&mut self, link: usize, outside: SocketAddr) {
        if outside.is_ipv6() {
            self.outside[link].v6 = outside;
        } else {
            self.outside[link].v4 = outside;
        }
    }

    /// The NAT of `link` forgets a binding after this long without a datagram from the box.
    pub fn set_nat_timeout(&mut self, link: usize, timeout: Duration) {
        self.outside[link].timeout = Some(timeout);
    }

    /// The box's own address on `link` is another one, and the box knows.
    pub fn renumber(&mut self, link: usize, outside: SocketAddr) {
        self.rebind(link, outside);
        let now = self.now;
        self.ends[Side::Box as usize].node.renumbered(now, LinkId(link as u16));
    }

    /// What `from` sends over `link` to or from this address of the core is lost, silently; or not any more.
    pub fn set_black_hole(&mut self, link: usize, from: Side, core: SocketAddr, lost: bool) {
        if lost {
            self.black_holes.insert((link, from, core));
        } else {
            self.black_holes.remove(&(link, from, core));
        }
    }

    /// What `from` sends over `link` by tunnels of this kind is held to so many bits a second, with a burst of a twentieth of a
    /// second and two datagrams at least; 0: nothing passes; `None`: all does.
    pub fn set_policer(&mut self, link: usize, from: Side, kind: TunnelKind, rate: Option<u64>) {
        match rate {
            Some(rate) => self.policers.insert((link, from, kind), Policer::new(rate)),
            None => self.policers.remove(&(link, from, kind)),
        };
    }

    /// Datagrams that policers have dropped so far.
    pub fn policed(&self) -> u64 {
        self.policed
    }

    /// The box's uplink appears or vanishes, and the box knows.
    pub fn set_uplink(&mut self, link: usize, present: bool) {
        self.tell_uplink(link, present.then(|| self.config.uplink(link as u8)));
    }

    /// The box gives a link another place in its order: lower is preferred.
    pub fn prefer(&mut self, link: usize, preference: u8) {
        self.tell_uplink(link, Some(Uplink { preference, ..self.config.uplink(link as u8) }));
    }

    /// The box is told that the core has these of its addresses, and no others.
    pub fn set_core_addresses(&mut self, link: usize, wireguard: &[SocketAddr], quic: &[SocketAddr]) {
        let (endpoints, quic_endpoints) = (wireguard.to_vec(), quic.to_vec());
        self.tell_uplink(link, Some(Uplink { endpoints, quic_endpoints, ..self.config.uplink(link as u8) }));
    }

    fn tell_uplink(&mut self, link: usize, uplink: Option<Uplink>) {
        let now = self.now;
        self.ends[Side::Box as usize].node.set_uplink(now, LinkId(link as u16), uplink);
        self.settle(Side::Box);
    }

    /// An end is given another policy.
    pub fn set_policy(&mut self, side: Side, policy: Policy) {
        let now = self.now;
        let peer = PeerConfig { policy: policy.into(), ..self.config.peer(side) };
        self.ends[side as usize].node.set_peers(now, vec![peer]).expect("the world's own configuration is sound");
        self.settle(side);
    }

    /// An end's daemon says which windows of the policy are open, a bit each.
    pub fn set_open_windows(&mut self, side: Side, open: u64) {
        let now = self.now;
        self.ends[side as usize].node.set_open_windows(now, &[(PEER, open)].into());
    }

    /// The box's links of these slots, a bit each, are at their cap, and the others are not.
    pub fn set_capped(&mut self, slots: u8) {
        let now = self.now;
        self.ends[Side::Box as usize].node.set_capped(now, slots);
        self.settle(Side::Box);
    }

    /// An end's wall clock is set.
    pub fn step_clock(&mut self, side: Side) {
        let now = self.now;
        self.ends[side as usize].node.clock_stepped(now);
    }

    /// An end's process is killed: what it knew is gone.
    pub fn kill(&mut self, side: Side) {
        self.ends[side as usize].running = false;
    }

    /// An end's process stands still (SIGSTOP, a paused machine).
    pub fn freeze(&mut self, side: Side) {
        self.ends[side as usize].frozen = Some(Frozen::new(self.now));
    }

    /// It goes on: as the daemons' loop does it, with all that has waited.
    pub fn thaw(&mut self, side: Side) {
        let Some(frozen) = self.ends[side as usize].frozen.take() else { return };
        let waited = self.now.since(frozen.since);
        self.ends[side as usize].node.stood_still(self.now);
        for datagram in frozen.datagrams {
            self.receive(&datagram, waited);
        }
        let end = &mut self.ends[side as usize];
        for mut packet in frozen.packets {
            end.node.handle_ip(self.now, waited, [&mut packet[..]], &mut end.out);
        }
        self.settle(side);
    }

    /// An end's process is started anew.
    pub fn start(&mut self, side: Side) {
        let seed = self.rng.random();
        let node = self.config.node(side, seed, self.now);
        let end = &mut self.ends[side as usize];
        (end.node, end.running, end.frozen) = (node, true, None);
        self.settle(side);
    }

    /// Adds a flow of numbered packets; returns its place in [`World::reports`].
    pub fn add_flow(&mut self, flow: Flow) -> usize {
        let at = self.traffic.add(flow);
        self.schedule(flow.start.max(self.now), Next::Packet(at));
        at
    }

    /// Has a TCP connection send as much as it may from now until `end`; returns its place for [`World::progress`].
    pub fn add_tcp(&mut self, from: Side, end: Instant) -> usize {
        let at = self.connections.len();
        self.connections.push(Connection::new(at as u32, from, self.now, end));
        let now = self.now;
        self.schedule(now, Next::Connection(at));
        at
    }

    /// How a TCP connection fares.
    pub fn progress(&self, connection: usize) -> Progress {
        self.connections[connection].progress()
    }

    /// Lets a connection send what it may.
    fn stir(&mut self, at: usize) {
        let (now, from) = (self.now, self.connections[at].from);
        while let Some(mut packet) = self.connections[at].send(now) {
            self.offer(from, &mut packet);
        }
    }

    /// Puts a datagram before an end, as if it had come from `from` by `link`.
    pub fn inject(&mut self, to: Side, link: usize, from: SocketAddr, data: &[u8]) {
        let now = self.now;
        let to_address = self.config.core_addresses[0];
        self.put_in_flight(now, InFlight { to, link, from, to_address, ecn: 0, data: data.to_vec() });
    }

    /// Gives an end a packet from its TUN. `false`: there is no process to take it, or it stands still and the queue is full.
    pub fn offer(&mut self, side: Side, packet: &mut [u8]) -> bool {
        let end = &mut self.ends[side as usize];
        if !end.running {
            return false;
        }
        if let Some(frozen) = &mut end.frozen {
            let room = frozen.packets.len() < Frozen::QUEUE;
            if room {
                frozen.packets.push(packet.to_vec());
            }
            return room;
        }
        end.node.handle_ip(self.now, Duration::ZERO, [packet], &mut end.out);
        self.settle(side);
        true
    }

    /// Lets time pass, event by event, up to `until`.
    pub fn run_until(&mut self, until: Instant) {
        loop {
            let queued = self.queue.peek().map(|entry| entry.0.0);
            let timer = [Side::Box, Side::Core]
                .into_iter()
                .filter(|&side| self.ends[side as usize].running && self.ends[side as usize].frozen.is_none())
                .filter_map(|side| Some((self.ends[side as usize].node.poll_timeout()?.at, side)))
                .min();
            let next = [queued, timer.map(|timer| timer.0)].into_iter().flatten().min();
            let Some(next) = next.filter(|&next| next <= until) else { break };
            self.now = self.now.max(next);
            // Datagrams before timers: a stall of the process is not a dead path.
            if queued.is_some_and(|at| at <= self.now) {
                if let Some(Reverse((_, _, event))) = self.queue.pop() {
                    self.happen(event);
                }
            } else if let Some((_, side)) = timer {
                let end = &mut self.ends[side as usize];
                end.node.handle_timeout(self.now, &mut end.out);
                self.settle(side);
            }
        }
        self.now = self.now.max(until);
    }

    /// Lets `duration` pass.
    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    fn happen(&mut self, event: Next) {
        match event {
            Next::Datagram(at) => {
                let datagram = self.in_flight[at].take();
                self.free.push(at);
                // It was lost on its way.
                let Some(datagram) = datagram else { return };
                let end = &mut self.ends[datagram.to as usize];
                if !end.running {
                    return;
                }
                if let Some(frozen) = &mut end.frozen {
                    if frozen.octets + datagram.data.len() <= Frozen::BUFFER {
                        frozen.octets += datagram.data.len();
                        frozen.datagrams.push(datagram);
                    }
                    return;
                }
                self.receive(&datagram, Duration::ZERO);
            }
            Next::Connection(at) => {
                self.connections[at].on_timeout(self.now);
                self.stir(at);
                // Its time-out moves with each answer; looking as often as the least of them is late by no more than that.
                let next = self.connections[at].deadline().max(self.now + Duration::from_millis(50));
                self.schedule(next, Next::Connection(at));
            }
            Next::Packet(at) => {
                if let Some((side, mut packet, next)) = self.traffic.send(at, self.now) {
                    if let Some(next) = next {
                        self.schedule(next, Next::Packet(at));
                    }
                    if !self.offer(side, &mut packet) {
                        self.traffic.refuse(at);
                    }
                }
            }
        }
    }

    /// An end reads a datagram.
    fn receive(&mut self, datagram: &InFlight, waited: Duration) {
        let (link, to) = match datagram.to {
            // As sockets tell it; and see below.
            Side::Box => (LinkId(datagram.link as u16), Some(IpAddr::from([192, 168, 1, 100]))),
            Side::Core => (LinkId(kind_at(datagram.to_address) as u16), Some(datagram.to_address.ip())),
        };
        let view = Datagram { link, from: datagram.from, to, ecn: datagram.ecn, waited, data: &datagram.data };
        let end = &mut self.ends[datagram.to as usize];
        end.node.handle_datagrams(self.now, [view], &mut end.out);
        self.settle(datagram.to);
    }

    /// Takes what an end has produced.
    fn settle(&mut self, side: Side) {
        let now = self.now;
        let end = &mut self.ends[side as usize];
        while let Some(event) = end.node.poll_event() {
            end.events.push((now, event));
        }
        let mut out = std::mem::replace(&mut end.out, Output::new(0));
        let mut answers = Vec::new();
        for packet in out.deliveries().flatten() {
            self.traffic.arrive(side, packet, now);
            self.delivered[side as usize].clone_from(packet);
            if let Some((id, body)) = tcp::of(packet) {
                answers.extend(self.connections[id].arrive(side, now, body));
                self.stirred.push(id);
            }
        }
        for transmit in out.transmits() {
            let data = &out.bytes()[transmit.range.clone()];
            let (link, from, core) = match side {
                Side::Box => {
                    assert_eq!(transmit.from, None, "the socket's, which is another when the box was renumbered");
                    let link = usize::from(transmit.link.0);
                    (link, self.outside[link].translate(now, transmit.to.is_ipv6()), transmit.to)
                }
                // By the address that the core answers to; an address that no NAT has any more leads nowhere.
                Side::Core => {
                    let kind = if transmit.link.0 == 0 { TunnelKind::WireGuard } else { TunnelKind::Quic };
                    let mut core = self.config.addresses(kind);
                    let first = core.next().expect("a core has an address");
                    let is_from = |core: &SocketAddr| Some(core.ip()) == transmit.from;
                    let from = core.find(is_from).unwrap_or(first);
                    match self.outside.iter().position(|outside| outside.lets_in(now, transmit.to)) {
                        Some(link) => (link, from, from),
                        None => continue,
                    }
                }
            };
            self.datagrams[kind_at(core) as usize] += 1;
            if self.black_holes.contains(&(link, side, core)) {
                continue;
            }
            if let Some(police) = self.policers.get_mut(&(link, side, kind_at(core)))
                && !police.lets_pass(now, data.len())
            {
                self.policed += 1;
                continue;
            }
            if self.tap.as_mut().is_some_and(|tap| !tap(link, side, data)) {
                continue;
            }
            // Outer headers: IPv4 or IPv6, and UDP.
            let len = data.len() + if transmit.to.is_ipv6() { 48 } else { 28 };
            let direction = &mut self.links[link][side as usize];
            let mut ecn = transmit.traffic_class & 3;
            let arrivals = direction.pass(now, len, &mut ecn, &mut self.radios[link], &mut self.rng);
            for at in arrivals.into_iter().flatten() {
                let (to, to_address, data) = (side.other(), transmit.to, data.to_vec());
                self.put_in_flight(at, InFlight { to, link, from, to_address, ecn, data });
            }
        }
        out.clear();
        self.ends[side as usize].out = out;
        for mut answer in answers {
            self.offer(side, &mut answer);
        }
        while let Some(at) = self.stirred.pop() {
            self.stir(at);
        }
    }

    fn put_in_flight(&mut self, at: Instant, datagram: InFlight) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        self.in_flight[place] = Some(datagram);
        self.schedule(at, Next::Datagram(place));
    }

    fn schedule(&mut self, at: Instant, next: Next) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, next)));
    }
}
