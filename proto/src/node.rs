//! One end, box or core: its functions stand in the order in which a packet meets them.

use crate::config::{ConfigError, NodeConfig, PathConfig, PeerConfig, check_peers};
use crate::counters::{DropReason, Drops};
use crate::mtu::BEYOND_MTU;
use crate::output::{Output, Route};
use crate::packet::{IpView, clamp_mss};
use crate::peer::{Context, Peer};
use crate::route::{Routes, to_peers};
use crate::snapshot::Snapshot;
use crate::timer::Timers;
use crate::tunnel::quic::{Arrival, Parcel};
use crate::tunnel::{Ciphered, Gate, HANDSHAKE_MAX, Header, Indices, PathRef, Suite, TunnelKind, is_quic};
use crate::{Identity, Instant, LinkId, PathId, PeerId, PeerKind, PublicKey, Uplink, path_number};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A datagram that came in.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The way it came in.
    pub link: LinkId,
    /// Who sent it.
    pub from: SocketAddr,
    /// The local address it came to, if the socket has several.
    pub to: Option<IpAddr>,
    /// The ECN bits of its outer header.
    pub ecn: u8,
    /// How long it waited before this call, at most; zero but after a stall of the process.
    pub waited: Duration,
    /// Its payload.
    pub data: &'a [u8],
}

/// A path's state, as seen from this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// The uplink is missing, has no address or no carrier.
    Absent,
    /// Nothing comes back.
    Down,
    /// Small packets arrive and larger ones do not. It is used where nothing better is there.
    Impaired,
    /// It worked until a moment ago, and something is overdue.
    Suspect,
    /// Packets are known to arrive.
    Up,
}

/// The earliest moment at which [`Node::handle_timeout`] has something to do, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// What, for logs and tests.
    pub reason: &'static str,
}

/// Something a daemon acts on or an operator wants to read.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A path changed its state.
    Path {
        /// Which.
        path: PathId,
        /// The old state.
        from: PathState,
        /// The new one.
        to: PathState,
        /// Why, in words.
        reason: &'static str,
    },
    /// The first path of a peer came up.
    Reachable(PeerId),
    /// The last path of a peer went down.
    Unreachable(PeerId),
    /// New flows of a class take another path now.
    Moved {
        /// The peer.
        peer: PeerId,
        /// The class of the policy.
        class: Arc<str>,
        /// The path they took.
        from: Option<PathId>,
        /// The path they take.
        to: Option<PathId>,
    },
}

/// An inner packet that waited longer is dropped: who sent it has sent it again or given it up, and a queue of old ones
/// would only be in the way of the new.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(1);

/// How often the gate begins to count initiations anew, as its limit is one per second.
const GATE_TICK: Duration = Duration::from_secs(1);

/// What anybody can send is nobody's: a peer's own counters tell of what it did itself.
fn blame(peer: &mut Peer, outcome: Result<(), DropReason>) -> Result<(), DropReason> {
    match outcome {
        Err(reason @ (DropReason::UnknownSession | DropReason::DataInvalid | DropReason::HandshakeInvalid)) => {
            Err(reason)
        }
        Err(reason) => {
            peer.count_drop(reason);
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// One end of any number of bundles.
///
/// | call | when | what to do after |
/// | --- | --- | --- |
/// | [`Node::handle_ip`] | packets came from the TUN | send and deliver what is in the [`Output`] |
/// | [`Node::handle_datagrams`] | datagrams came from a link | the same |
/// | [`Node::handle_timeout`] | the time of [`Node::poll_timeout`] has come and all sockets are drained | the same |
/// | [`Node::poll_event`] | after any of these | until it returns `None` |
/// | [`Node::poll_timeout`] | after any call | wait no longer than until then; it may already be past |
///
/// After a stall of the process: [`Node::stood_still`], and then all that has waited, with the time it has.
///
/// Calls come from one thread, with `now` never going backwards. A datagram that cannot be sent may be dropped: the
/// peer's receipts tell. The same calls with the same arguments and seed give the same results (with real WireGuard,
/// but for its keys).
pub struct Node {
    identity: Identity,
    mtu: u16,
    suite: Box<dyn Suite>,
    /// Where initiations are answered; a box has none.
    gate: Option<Box<dyn Gate>>,
    gate_tick: Option<Instant>,
    /// Which path each session belongs to.
    indices: Indices,
    /// Which uplink each static key belongs to, by its path of WireGuard: the same key serves both kinds of tunnel.
    keys: HashMap<PublicKey, PathRef>,
    routes: Routes<usize>,
    local: Option<Routes<()>>,
    /// Places stay as they are while a peer is configured; free ones are used again.
    peers: Vec<Option<Peer>>,
    timers: Timers,
    events: VecDeque<Event>,
    drops: Drops,
    /// Drawn at the start: HELLO tells it, so that the peer notices a restart.
    epoch: u64,
    /// Keys the flow hash.
    flow_key: u64,
    /// Where link messages are read and written, used again for each.
    scratch: Vec<u8>,
}

impl Node {
    /// A node with real tunnels that has sent nothing yet. `seed` is entropy from the caller.
    pub fn new(config: NodeConfig, seed: [u8; 32], now: Instant) -> Result<Node, ConfigError> {
        Node::with_suite(config, Box::new(Ciphered::default()), seed, now)
    }

    /// The same with another kind of tunnel.
    pub fn with_suite(
        config: NodeConfig,
        suite: Box<dyn Suite>,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<Node, ConfigError> {
        config.check()?;
        let mut rng = StdRng::from_seed(seed);
        let mut local = None;
        for &prefix in &config.local {
            local.get_or_insert_with(Routes::default).insert(prefix, ());
        }
        let (epoch, flow_key) = (rng.random(), rng.random());
        let endpoint = suite.endpoint(config.listen_key.as_ref(), config.mtu + BEYOND_MTU, &mut rng);
        let mut node = Node {
            identity: config.identity,
            mtu: config.mtu,
            gate: config.listen_key.as_ref().map(|key| suite.gate(key)),
            suite,
            gate_tick: None,
            epoch,
            flow_key,
            indices: Indices::new(rng, endpoint),
            keys: HashMap::new(),
            routes: Routes::default(),
            local,
            peers: Vec::new(),
            timers: Timers::default(),
            events: VecDeque::new(),
            drops: Drops::default(),
            scratch: Vec::new(),
        };
        node.set_peers(now, config.peers)?;
        Ok(node)
    }

    // ---- from the TUN to a link ----------------------------------------------------------------------------------

    /// Packets from the TUN, which have waited there for so long at most (zero but after a stall of the process). They
    /// may be changed in place (MSS clamp).
    pub fn handle_ip<'a>(
        &mut self,
        now: Instant,
        waited: Duration,
        packets: impl IntoIterator<Item = &'a mut [u8]>,
        out: &mut Output,
    ) {
        let mut touched = None;
        for packet in packets {
            if waited > MAX_AGE {
                self.drops.add(DropReason::Stale);
                continue;
            }
            match self.peer_for(packet) {
                Ok((at, view)) => {
                    self.settle_before(now, &mut touched, at, out);
                    let packet = &mut packet[..view.len];
                    clamp_mss(&view, packet, self.mtu);
                    let flow = view.flow_hash(packet, self.flow_key);
                    self.with_peer(at, now, out, |peer, ctx| peer.send_packet(ctx, &view, packet, flow));
                }
                Err(reason) => self.drops.add(reason),
            }
        }
        self.settle_after(now, touched, out);
    }

    /// Whose it is, if it may pass at all.
    fn peer_for(&self, packet: &[u8]) -> Result<(usize, IpView), DropReason> {
        let view = IpView::parse(packet).ok_or(DropReason::TunMalformed)?;
        if view.is_reserved() {
            return Err(DropReason::TunReserved);
        }
        if self.local.as_ref().is_some_and(|local| local.lookup(view.source).is_none()) {
            return Err(DropReason::TunSource);
        }
        let at = self.routes.lookup(view.destination).ok_or(DropReason::TunNoPeer)?;
        // From the Internet, with the site's own address as its source: at a box the peer has all addresses, so this
        // asks of a core only.
        if self.local.is_none() && self.routes.lookup(view.source) == Some(at) {
            return Err(DropReason::TunSource);
        }
        Ok((at, view))
    }

    // ---- from a link to the TUN ----------------------------------------------------------------------------------

    /// Datagrams from the links.
    pub fn handle_datagrams<'a>(
        &mut self,
        now: Instant,
        datagrams: impl IntoIterator<Item = Datagram<'a>>,
        out: &mut Output,
    ) {
        let mut touched = None;
        for datagram in datagrams {
            if let Err(reason) = self.handle_datagram(now, &datagram, &mut touched, out) {
                self.drops.add(reason);
            }
        }
        self.settle_after(now, touched, out);
    }

    /// One datagram. An error is a drop that no peer can be blamed for; the peers count their own.
    fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: &Datagram<'_>,
        touched: &mut Option<usize>,
        out: &mut Output,
    ) -> Result<(), DropReason> {
        if is_quic(datagram.data) {
            return self.handle_quic(now, datagram, touched, out);
        }
        let header = Header::parse(datagram.data).ok_or(DropReason::DatagramMalformed)?;
        let path = match header {
            Header::Initiation => self.initiator(now, datagram, out)?,
            Header::Response { receiver } | Header::Cookie { receiver } => {
                self.indices.owner(receiver).ok_or(DropReason::HandshakeInvalid)?
            }
            Header::Data(id) => self.indices.owner(id.session).ok_or(DropReason::UnknownSession)?,
        };
        self.settle_before(now, touched, path.peer, out);
        self.with_peer(path.peer, now, out, |peer, ctx| {
            let outcome = match header {
                Header::Data(id) => peer.on_data(ctx, path.path, id, datagram),
                _ => peer.on_handshake(ctx, path.path, datagram),
            };
            blame(peer, outcome)
        })
        .unwrap_or(Err(DropReason::UnknownSession))
    }

    /// One of QUIC.
    fn handle_quic(
        &mut self,
        now: Instant,
        datagram: &Datagram<'_>,
        touched: &mut Option<usize>,
        out: &mut Output,
    ) -> Result<(), DropReason> {
        let endpoint = self.indices.quic().ok_or(DropReason::DatagramMalformed)?;
        let (path, parcel) = match endpoint.receive(now, datagram, out)? {
            Arrival::Path(path, parcel) => (path, parcel),
            Arrival::Newcomer(key, parcel) => self.welcome(key, parcel)?,
            Arrival::Done => return Ok(()),
        };
        self.settle_before(now, touched, path.peer, out);
        self.with_peer(path.peer, now, out, |peer, ctx| {
            let outcome = peer.on_parcel(ctx, path.path, parcel, datagram);
            blame(peer, outcome)
        })
        .unwrap_or(Err(DropReason::UnknownSession))
    }

    /// Gives the connection of whoever has this key to its path.
    fn welcome(&mut self, key: PublicKey, parcel: Parcel) -> Result<(PathRef, Parcel), DropReason> {
        let path = self.path_of(&key, TunnelKind::Quic);
        let endpoint = self.indices.quic().ok_or(DropReason::DatagramMalformed)?;
        let Some(path) = path else {
            // It was known when its handshake began.
            endpoint.refuse(parcel);
            return Err(DropReason::HandshakeUnknownKey);
        };
        endpoint.adopt(&parcel, path);
        Ok((path, parcel))
    }

    /// Whose initiation it is. A cookie goes back where the gate wants one.
    fn initiator(&mut self, now: Instant, datagram: &Datagram<'_>, out: &mut Output) -> Result<PathRef, DropReason> {
        let gate = self.gate.as_mut().ok_or(DropReason::HandshakeInvalid)?;
        self.gate_tick.get_or_insert(now + GATE_TICK);
        let route = Route { link: datagram.link, to: datagram.from, from: datagram.to };
        let (mut key, kind) = (Err(DropReason::HandshakeInvalid), gate.kind(datagram.data));
        out.transmit(HANDSHAKE_MAX, 0, |dst| match gate.initiator(datagram.data, datagram.from.ip(), dst) {
            Ok(found) => {
                key = Ok(found);
                None
            }
            Err(refusal) => {
                key = Err(refusal.reason);
                (refusal.reply > 0).then_some((refusal.reply, route, ()))
            }
        });
        self.path_of(&key?, kind).ok_or(DropReason::HandshakeUnknownKey)
    }

    /// The path of this kind over the uplink that has this key.
    fn path_of(&self, key: &PublicKey, kind: TunnelKind) -> Option<PathRef> {
        self.keys.get(key).map(|&PathRef { peer, path }| PathRef { peer, path: path_number(path, kind) })
    }

    // ---- time and events -----------------------------------------------------------------------------------------

    /// To be called when [`Node::poll_timeout`]'s moment has come (calling it early does no harm). Sockets are to be
    /// drained first: a stall of this process is not a dead path.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Output) {
        if self.gate_tick.take_if(|at| *at <= now).is_some()
            && let Some(gate) = &mut self.gate
        {
            gate.tick();
        }
        if self.indices.quic_deadline().is_some_and(|at| at <= now)
            && let Some(endpoint) = self.indices.quic()
        {
            endpoint.handle_timeout(now, out, |reason| self.drops.add(reason));
        }
        while let Some((at, peer)) = self.timers.pop_due(now) {
            self.with_peer(peer, now, out, |peer, ctx| {
                if peer.armed.at == at {
                    peer.armed = Default::default();
                    peer.on_timeout(ctx);
                    peer.settle(ctx);
                }
            });
            self.arm(peer, now);
        }
        debug_assert!(self.poll_timeout().is_none_or(|next| next.at > now), "{:?} at {now:?}", self.poll_timeout());
    }

    /// The earliest deadline. Ask after each call of another function; after `handle_timeout(now)` it is after `now`.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let gate = self.gate_tick.map(|at| Deadline { at, reason: "gate" });
        let peer = self.timers.next().map(|(at, peer)| {
            let armed = self.peers[peer].as_ref().map(|peer| peer.armed).filter(|armed| armed.at == at);
            Deadline { at, reason: armed.map_or("a deadline that was moved", |armed| armed.reason) }
        });
        let quic = self.indices.quic_deadline().map(|at| Deadline { at, reason: "quic" });
        [gate, quic, peer].into_iter().flatten().min_by_key(|deadline| deadline.at)
    }

    /// The next event. Drain after each batch.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // ---- news from the daemon ------------------------------------------------------------------------------------

    /// An uplink of this box can be used (`Some`: it has carrier, an address and a route) or cannot (`None`). The same
    /// value again changes nothing; an uplink without endpoints cannot be used.
    pub fn set_uplink(&mut self, now: Instant, link: LinkId, uplink: Option<Uplink>) {
        self.with_each_peer(now, |peer, ctx| peer.set_uplink(ctx, link, uplink.as_ref()));
    }

    /// What goes out by this link comes from another address now: its paths are asked at once, by the sessions they
    /// have, and the peer follows.
    pub fn renumbered(&mut self, now: Instant, link: LinkId) {
        self.with_each_peer(now, |peer, _| peer.renumbered(link));
    }

    /// This process stood still until now (SIGSTOP, a paused machine, no processor): whatever was or was not heard in
    /// that time says nothing of any path. To be called before what has waited meanwhile is handled.
    pub fn stood_still(&mut self, now: Instant) {
        self.with_each_peer(now, |peer, ctx| peer.stood_still(ctx.now));
    }

    /// The wall clock was set: handshakes from now on carry the new time.
    pub fn clock_stepped(&mut self, now: Instant) {
        self.with_each_peer(now, |peer, _| peer.clock_stepped(now));
    }

    /// Windows of policies have opened or closed: which are open for each peer named, a bit each. Flows under way take their
    /// other class's way from now on, without loss and in order.
    pub fn set_open_windows(&mut self, now: Instant, open: &HashMap<PeerId, u64>) {
        for peer in self.peers.iter_mut().flatten() {
            if let Some(&open) = open.get(&peer.config.id) {
                peer.set_open_windows(now, open);
            }
        }
    }

    /// The links of these slots, a bit each, have carried what they may this month, and the others have not: a box's, which
    /// tells the core. Flows that may not go on by them move without loss and in order, as after a link that came back.
    pub fn set_capped(&mut self, now: Instant, slots: u8) {
        self.with_each_peer(now, |peer, _| peer.set_capped(now, slots));
    }

    /// Puts another set of peers in force, whole or not at all. Peers and paths that stay as they were keep their
    /// sessions and lose no packet. A peer that goes is gone without an event: its owner knows.
    pub fn set_peers(&mut self, now: Instant, peers: Vec<PeerConfig>) -> Result<(), ConfigError> {
        check_peers(&peers)?;
        let wanted: HashMap<PeerId, PeerKind> = peers.iter().map(|peer| (peer.id, peer.kind)).collect();
        for place in &mut self.peers {
            if let Some(mut gone) = place.take_if(|peer| wanted.get(&peer.config.id) != Some(&peer.config.kind)) {
                gone.retire(&mut self.indices);
            }
        }
        let mut places: HashMap<PeerId, usize> =
            self.peers.iter().enumerate().filter_map(|(at, peer)| Some((peer.as_ref()?.config.id, at))).collect();
        let mut free: Vec<usize> = (0..self.peers.len()).filter(|&at| self.peers[at].is_none()).collect();
        for config in peers {
            if let Some(peer) = places.get(&config.id).and_then(|&at| self.peers[at].as_mut()) {
                peer.reconfigure(config, self.suite.as_ref(), self.mtu, now, &mut self.indices);
                continue;
            }
            let at = free.pop().unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            });
            places.insert(config.id, at);
            self.peers[at] = Some(Peer::new(config, at, self.suite.as_ref(), self.mtu, now));
        }
        self.keys.clear();
        for (at, peer) in self.peers.iter().enumerate().filter_map(|(at, peer)| Some((at, peer.as_ref()?))) {
            for path in &peer.config.paths {
                self.keys.insert(path.remote_key, PathRef { peer: at, path: path.slot });
            }
        }
        let quic = |path: &&PathConfig| path.kind == TunnelKind::Quic;
        let known = self.peers.iter().flatten().flat_map(|peer| peer.config.paths.iter().filter(quic));
        let known = known.map(|path| path.remote_key).collect();
        if let Some(endpoint) = self.indices.quic() {
            endpoint.set_known(known);
        }
        self.routes = to_peers(self.peers.iter().flatten().map(|peer| &peer.config), |peer| places[&peer.id]);
        // A path that went may have been the last one that lived.
        self.with_each_peer(now, |peer, ctx| peer.report_reachability(ctx));
        Ok(())
    }

    /// What there is to show.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let mut peers: Vec<_> = self.peers.iter().flatten().map(|peer| peer.snapshot(self.mtu, now)).collect();
        peers.sort_by_key(|peer| peer.id);
        Snapshot { drops: self.drops.clone(), peers }
    }

    // ---- how the calls above reach a peer ------------------------------------------------------------------------

    fn with_peer<R>(
        &mut self,
        at: usize,
        now: Instant,
        out: &mut Output,
        call: impl FnOnce(&mut Peer, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let mut ctx = Context {
            now,
            out,
            indices: &mut self.indices,
            events: &mut self.events,
            identity: self.identity,
            epoch: self.epoch,
            routes: &self.routes,
            local: self.local.as_ref(),
            waited: Duration::ZERO,
            ecn: 0,
            mtu: self.mtu,
            flow_key: self.flow_key,
            scratch: &mut self.scratch,
        };
        Some(call(self.peers.get_mut(at)?.as_mut()?, &mut ctx))
    }

    /// For calls that send nothing themselves: what they lead to is sent by the next [`Node::handle_timeout`], which is
    /// due at once.
    fn with_each_peer(&mut self, now: Instant, mut call: impl FnMut(&mut Peer, &mut Context<'_>)) {
        let mut nothing = Output::new(0);
        for at in 0..self.peers.len() {
            self.with_peer(at, now, &mut nothing, |peer, ctx| {
                call(peer, ctx);
                peer.choose_path(ctx);
            });
            self.arm(at, now);
        }
        debug_assert!(nothing.is_empty());
    }

    /// Batches mostly concern one peer: it is settled once, when the next one's turn comes or the batch ends.
    fn settle_before(&mut self, now: Instant, touched: &mut Option<usize>, next: usize, out: &mut Output) {
        if *touched != Some(next) {
            let done = touched.replace(next);
            self.settle_after(now, done, out);
        }
    }

    fn settle_after(&mut self, now: Instant, touched: Option<usize>, out: &mut Output) {
        if let Some(at) = touched {
            self.with_peer(at, now, out, |peer, ctx| peer.settle(ctx));
            self.arm(at, now);
        }
    }

    fn arm(&mut self, at: usize, now: Instant) {
        if let Some(peer) = &mut self.peers[at] {
            let deadline = peer.deadline(now);
            self.timers.arm(at, &mut peer.armed, deadline);
        }
    }
}
