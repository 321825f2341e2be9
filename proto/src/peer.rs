//! The other end: its tunnels and paths, and the bundle that they make together.

use crate::config::{PathConfig, PeerConfig, PeerKind};
use crate::counters::{DropReason, Drops};
use crate::health::{LEAST_MARGIN, RECEIPT_INTERVAL, Surroundings, Transition};
use crate::node::{Datagram, Event, MAX_AGE, PathState};
use crate::output::{Output, Route};
use crate::packet::{IpView, clamp_mss};
use crate::path::Path;
use crate::reassembly::Reassembly;
use crate::replay::{Again, Origin, Replay};
use crate::route::Routes;
use crate::schedule::{Candidate, FlowTable, MOVE_GRACE, choose};
use crate::snapshot::{PeerSnapshot, Traffic};
use crate::timer::Armed;
use crate::tunnel::{Indices, OVERHEAD, PacketId, PathRef, Role, Suite};
use crate::wire::{self, Fragment, Hello, Item, MAX_MESSAGE, ReadError, Receipt, Writer};
use crate::{Identity, Instant, LinkId, MAX_SLOTS, PathId, Uplink};
use std::collections::VecDeque;
use std::time::Duration;

/// A bundle is active this long after its last inner packet: its standby paths are asked more often, so that a dead one
/// is known before it is needed.
const ACTIVE: Duration = Duration::from_secs(5);

/// How much before they are due receipts go with a packet that is sent anyway, and so cost 24 octets instead of 98: one
/// in a stream of a thousand packets a second.
const RIDES_EARLY: Duration = Duration::from_millis(1);

/// The longest trailer that is read: receipts for two sessions on each of two paths, with the most ranges, and a COPY.
const MOST_TRAILER: usize = 512;

/// What a call of the node lends to its peers.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) out: &'a mut Output,
    pub(crate) indices: &'a mut Indices,
    pub(crate) events: &'a mut VecDeque<Event>,
    pub(crate) identity: Identity,
    pub(crate) epoch: u64,
    /// Which peer has an address.
    pub(crate) routes: &'a Routes<usize>,
    /// How long the datagram at hand has waited for this process.
    pub(crate) waited: Duration,
    /// This side's own prefixes; `None`: it stands for all that no peer has.
    pub(crate) local: Option<&'a Routes<()>>,
    /// The TUN's MTU.
    pub(crate) mtu: u16,
    /// Where link messages are read and written.
    pub(crate) scratch: &'a mut Vec<u8>,
}

/// The other end.
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    at: usize,
    role: Role,
    paths: Vec<Path>,
    flows: FlowTable,
    current: Option<u8>,
    /// The last slot that was current: coming back to it is no change of path.
    last_slot: Option<u8>,
    moved_at: Instant,
    path_changes: u64,
    reachable: bool,
    /// The last inner packet, either way.
    last_traffic: Option<Instant>,
    receipt_due: Option<Instant>,
    /// Slots whose uplink went, of which the peer is to be told.
    lost: [bool; MAX_SLOTS],
    last_receipt: Option<Instant>,
    remote_epoch: Option<u64>,
    /// What the peer can do, by its last HELLO.
    capabilities: u32,
    /// Packets sent in fragments; by this the next one is numbered.
    fragmented: u64,
    reassembly: Reassembly,
    /// Packets put together from fragments.
    reassembled: u64,
    replay: Replay,
    /// A path is in doubt or has failed, or one works again: what is kept may want another path.
    rescue_wanted: bool,
    /// Flows that don't pause are to follow from the path of this slot, after a planned move.
    leaving: Option<u8>,
    copies: Traffic,
    receipts_sent: Traffic,
    tx: Traffic,
    rx: Traffic,
    drops: Drops,
    pub(crate) armed: Armed,
}

/// How much longer than another a path takes at most, one way: packets before a longer gap cannot be overtaken.
fn spread(paths: &[Path]) -> Duration {
    let trips = paths.iter().filter_map(|path| path.health.rtt());
    let (least, most) = trips.fold((Duration::MAX, Duration::ZERO), |(least, most), (smoothed, variation)| {
        (least.min(smoothed), most.max(smoothed + variation * 4))
    });
    most.saturating_sub(least)
}

/// Receipts that are about to be sent.
struct Receipts<'a> {
    /// As a link message.
    message: &'a [u8],
    /// The slots of the paths by which something came that asks for them.
    with_news: [bool; MAX_SLOTS],
}

/// Sends a kept packet by the path of `slot`, and counts it.
fn send_again(
    paths: &mut [Path],
    ctx: &mut Context<'_>,
    slot: u8,
    again: &Again<'_>,
    copies: &mut Traffic,
    fragmented: &mut u64,
) -> u8 {
    let Some(path) = paths.iter_mut().find(|path| path.config.slot == slot) else { return 0 };
    let before = path.tx.bytes;
    let datagrams = path.send_again(ctx, again, fragmented);
    if datagrams > 0 {
        copies.add((path.tx.bytes - before) as usize);
    }
    datagrams
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, at: usize, suite: &dyn Suite, mtu: u16, now: Instant) -> Self {
        let role = if config.kind == PeerKind::Core { Role::Initiator } else { Role::Responder };
        let path =
            |path: &PathConfig| Path::new(path.clone(), PathRef { peer: at, slot: path.slot }, role, suite, mtu, now);
        Peer {
            paths: config.paths.iter().map(path).collect(),
            config,
            at,
            role,
            flows: FlowTable::default(),
            current: None,
            last_slot: None,
            moved_at: Instant::ZERO,
            path_changes: 0,
            reachable: false,
            last_traffic: None,
            receipt_due: None,
            lost: [false; MAX_SLOTS],
            last_receipt: None,
            remote_epoch: None,
            capabilities: 0,
            fragmented: 0,
            reassembly: Reassembly::default(),
            reassembled: 0,
            replay: Replay::default(),
            rescue_wanted: false,
            leaving: None,
            copies: Traffic::default(),
            receipts_sent: Traffic::default(),
            tx: Traffic::default(),
            rx: Traffic::default(),
            drops: Drops::default(),
            armed: Armed::default(),
        }
    }

    /// Takes another configuration of the same peer; paths that stay keep their sessions.
    pub(crate) fn reconfigure(
        &mut self,
        config: PeerConfig,
        suite: &dyn Suite,
        mtu: u16,
        now: Instant,
        indices: &mut Indices,
    ) {
        let mut old = std::mem::take(&mut self.paths);
        for wanted in &config.paths {
            let same = |path: &Path| {
                path.config.slot == wanted.slot
                    && path.config.remote_key == wanted.remote_key
                    && path.config.local_key == wanted.local_key
                    && path.config.link == wanted.link
            };
            let path = match old.iter().position(same) {
                Some(at) => {
                    let mut path = old.swap_remove(at);
                    path.config.preference = wanted.preference;
                    path
                }
                None => {
                    Path::new(wanted.clone(), PathRef { peer: self.at, slot: wanted.slot }, self.role, suite, mtu, now)
                }
            };
            self.paths.push(path);
        }
        for mut path in old {
            path.tunnel.retire(indices);
        }
        self.config = config;
    }

    pub(crate) fn retire(&mut self, indices: &mut Indices) {
        for path in &mut self.paths {
            path.tunnel.retire(indices);
        }
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.drops.add(reason);
    }

    fn receipts(&self) -> bool {
        self.config.kind != PeerKind::Client
    }

    /// The peer puts fragments together: only then it is worth knowing what fits a path.
    fn puts_together(&self) -> bool {
        self.capabilities & Hello::FRAGMENTS != 0
    }

    /// The peer drops second copies: only then a packet may be sent twice.
    fn takes_copies(&self) -> bool {
        self.capabilities & Hello::COPIES != 0
    }

    fn path_mut(&mut self, slot: u8) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.config.slot == slot)
    }

    // ---- what this end sends -------------------------------------------------------------------------------------

    /// An inner packet for the peer, cut to its length.
    pub(crate) fn send_packet(&mut self, ctx: &mut Context<'_>, packet: &[u8], flow: u64) {
        self.last_traffic = Some(ctx.now);
        let Some(current) = self.current else {
            self.drops.add(DropReason::NoPath);
            return;
        };
        let mut alive = [false; MAX_SLOTS];
        for path in &self.paths {
            // An impaired one keeps nobody: what flows there is lost.
            alive[usize::from(path.config.slot)] = path.alive() && path.health.state() != PathState::Impaired;
        }
        let slot = self.flows.assign(flow, ctx.now, current, alive, self.moved_at, || spread(&self.paths));
        let fragments = self.puts_together();
        if ctx.now.since(self.moved_at) >= MOVE_GRACE
            && let Some(from) = self.leaving.take()
        {
            self.overtake(ctx, from, current);
        }
        let mut buffer = [0; MAX_MESSAGE];
        let receipts = self.receipts_to_ride(ctx.now, &mut buffer);
        let (eliciting, id, ticket) = (self.receipts(), self.fragmented, self.replay.next());
        let Some(path) = self.path_mut(slot) else { return };
        let origin = if !fragments || path.fits(packet.len()) {
            let trailer = receipts.as_ref().map_or(&[][..], |receipts| wire::items_of(receipts.message));
            let trailer = if path.fits(packet.len() + trailer.len()) { trailer } else { &[] };
            let id = path.send_whole(ctx, packet, trailer, ticket, eliciting);
            id.map(|id| (Origin::Whole(slot, id), 1, trailer.len()))
        } else {
            let datagrams = path.send_fragments(ctx, packet, id as u32, None, ticket);
            (datagrams > 0).then_some((Origin::Fragments(id as u32), datagrams, 0))
        };
        let doubtful = path.health.state() == PathState::Suspect;
        if let Some(receipts) = receipts {
            let ridden = origin.is_some_and(|(.., trailer)| trailer > 0).then_some(slot);
            self.send_receipts(ctx, &receipts, ridden);
        }
        let Some((origin, datagrams, _)) = origin else {
            self.drops.add(DropReason::NoPath);
            return;
        };
        self.tx.add(packet.len());
        self.fragmented += u64::from(matches!(origin, Origin::Fragments(_)));
        if self.takes_copies() {
            self.replay.keep(ctx.now, packet, origin, slot, datagrams, &mut self.drops);
            if doubtful {
                self.double(ctx, slot);
            }
        }
    }

    /// Sends the packet kept last by the best path but this one, too: what is suspected may be dead, and the other may be
    /// dead as well and not be known to be.
    fn double(&mut self, ctx: &mut Context<'_>, first: u8) {
        let Some(&slot) = self.ranked(ctx.now).iter().flatten().find(|slot| **slot != first) else { return };
        let Peer { paths, replay, copies, fragmented, .. } = self;
        replay.double(slot, |again| send_again(paths, ctx, slot, &again, copies, fragmented));
    }

    /// Sends again what no path that works has carried, by the best that have not.
    fn rescue(&mut self, ctx: &mut Context<'_>) {
        if !std::mem::take(&mut self.rescue_wanted) {
            return;
        }
        let works = |path: &&Path| path.health.state() == PathState::Up && path.standing(ctx.now).is_some();
        let good = self.paths.iter().filter(works).fold(0, |good, path| good | 1 << path.config.slot);
        let (ranked, mut targets, mut count) = (self.ranked(ctx.now), [0; MAX_SLOTS], 0);
        for slot in ranked.into_iter().flatten() {
            targets[count] = slot;
            count += 1;
        }
        let Peer { paths, replay, copies, fragmented, drops, .. } = self;
        replay.rescue(ctx.now, good, &targets[..count], drops, |slot, again| {
            send_again(paths, ctx, slot, &again, copies, fragmented)
        });
    }

    /// Flows that do not pause go from one path to a faster one, with what they have under way: all that might still
    /// arrive by the old path after what is sent by the new one goes by the new one too, in front of it. So they keep
    /// their order, and nobody has to wait for the slower path.
    fn overtake(&mut self, ctx: &mut Context<'_>, from: u8, to: u8) {
        if from == to || !self.takes_copies() {
            return;
        }
        // At most the difference of the round trips, if all of it lies in our direction.
        let trip = |slot| {
            let path = self.paths.iter().find(|path: &&Path| path.config.slot == slot)?;
            path.health.rtt()
        };
        let (Some((slow, variation)), Some((fast, _))) = (trip(from), trip(to)) else { return };
        let under_way = (slow + (variation * 4).max(LEAST_MARGIN)).saturating_sub(fast);
        let Peer { paths, replay, copies, fragmented, .. } = self;
        replay.overtake(ctx.now, under_way, from, to, |again| send_again(paths, ctx, to, &again, copies, fragmented));
    }

    /// The slots of the paths that live, the best first.
    fn ranked(&self, now: Instant) -> [Option<u8>; MAX_SLOTS] {
        let mut ranked = [None; MAX_SLOTS];
        let alive = self.paths.iter().filter(|path| path.alive());
        let standing = alive.filter_map(|path| Some((path.standing(now)?, path.preference(), path.config.slot)));
        for (place, of) in ranked.iter_mut().zip(standing) {
            *place = Some(of);
        }
        ranked.sort_unstable_by_key(|of| (of.is_none(), *of));
        ranked.map(|of| of.map(|(_, _, slot)| slot))
    }

    // ---- what comes from the peer --------------------------------------------------------------------------------

    /// A handshake message for one of its paths.
    pub(crate) fn on_handshake(
        &mut self,
        ctx: &mut Context<'_>,
        slot: u8,
        datagram: &Datagram<'_>,
    ) -> Result<(), DropReason> {
        let (kind, role, epoch) = (self.config.kind, self.role, self.remote_epoch);
        let path = self.path_mut(slot).ok_or(DropReason::HandshakeInvalid)?;
        path.tick_at.get_or_insert(ctx.now);
        // A responder answers to where the initiation came from and remembers nothing of it: an old initiation, played
        // again from elsewhere, moves no endpoint. An initiator confirms to where the answer came from, if it knows that
        // address for the peer's.
        let back = Route { link: datagram.link, to: datagram.from, from: datagram.to, ecn: 0 };
        let route = match role {
            Role::Responder => Some(back),
            Role::Initiator if path.endpoints.contains(&datagram.from) => Some(Route { from: None, ..back }),
            Role::Initiator => path.route,
        };
        let mut outcome = Err(DropReason::HandshakeInvalid);
        path.send_own(ctx, route, |tunnel, now, indices, dst| {
            outcome = tunnel.handshake(datagram.data, now, indices, dst);
            outcome.map_or((0, None), |handshake| (handshake.send, handshake.id))
        });
        if outcome?.established {
            path.rx.add(datagram.data.len());
            path.on_answer(datagram.from);
            path.on_session(ctx, kind, role, epoch);
        }
        Ok(())
    }

    /// A data message for one of its paths.
    pub(crate) fn on_data(
        &mut self,
        ctx: &mut Context<'_>,
        slot: u8,
        id: PacketId,
        datagram: &Datagram<'_>,
    ) -> Result<(), DropReason> {
        let (kind, role, epoch, receipts) = (self.config.kind, self.role, self.remote_epoch, self.receipts());
        ctx.waited = datagram.waited;
        let path = self.path_mut(slot).ok_or(DropReason::UnknownSession)?;
        let buffer = ctx.out.lend(datagram.data.len());
        let opened = path.tunnel.open(datagram.data, ctx.now, ctx.indices.of(path.at), buffer)?;
        path.rx.add(datagram.data.len());
        if opened.established {
            path.on_session(ctx, kind, role, epoch);
        }
        // A packet that was overtaken by others tells where the peer was, not where it is.
        if role == Role::Responder && opened.current && path.received.is_newest(id) {
            path.move_to(Route { link: datagram.link, to: datagram.from, from: datagram.to, ecn: 0 });
        }
        path.health.on_heard(ctx.now);
        let transition = if receipts { None } else { path.health.on_session(ctx.now, true) };
        let packet = &ctx.out.lend(datagram.data.len())[..opened.ip];
        if packet.is_empty() {
            path.received.note(id, ctx.now, false);
            self.report(ctx, slot, transition);
            return Ok(());
        }
        if receipts && wire::is_link_message(packet) {
            let mut message = std::mem::take(ctx.scratch);
            message.clear();
            message.extend_from_slice(packet);
            self.report(ctx, slot, transition);
            let outcome = self.on_link_message(ctx, slot, id, &message);
            *ctx.scratch = message;
            return outcome;
        }
        let mut trailer = [0; MOST_TRAILER];
        let behind = opened.plaintext - opened.ip;
        if receipts && behind > 0 {
            let whole = &ctx.out.lend(datagram.data.len())[opened.ip..opened.plaintext];
            trailer.get_mut(..behind).ok_or(DropReason::LinkMessageMalformed)?.copy_from_slice(whole);
        }
        let came_as_copy = path.received.note(id, ctx.now, true);
        self.report(ctx, slot, transition);
        if receipts {
            self.want_receipt(ctx.now, false);
            match self.on_trailer(ctx, slot, &trailer[..behind.min(MOST_TRAILER)])? {
                Some(copy) => self.note_copy(ctx.now, copy)?,
                None if came_as_copy => return Err(DropReason::Duplicate),
                None => {}
            }
        }
        self.on_packet(ctx, opened.ip)
    }

    /// What stands behind a packet: receipts, and whether the packet is a copy.
    fn on_trailer(
        &mut self,
        ctx: &mut Context<'_>,
        slot: u8,
        trailer: &[u8],
    ) -> Result<Option<wire::Copy>, DropReason> {
        let mut copy = None;
        let read = wire::read_trailer(trailer, |item| match item {
            Item::Copy(of) => copy = Some(of),
            Item::Receipt(receipt) => self.on_receipt(ctx, slot, &receipt),
            // Nothing else is sent so.
            _ => {}
        });
        read.map(|()| copy).map_err(|_| DropReason::LinkMessageMalformed)
    }

    /// A copy of a packet is to be delivered: only the first.
    fn note_copy(&mut self, now: Instant, copy: wire::Copy) -> Result<(), DropReason> {
        let path = self.path_mut(copy.slot).ok_or(DropReason::LinkMessageMalformed)?;
        path.received.note_copy(copy, now)
    }

    /// A receipt that came by the path of slot `via`.
    fn on_receipt(&mut self, ctx: &mut Context<'_>, via: u8, receipt: &Receipt) {
        let Peer { paths, replay, .. } = self;
        if let Some(path) = paths.iter_mut().find(|path| path.config.slot == receipt.slot) {
            let transition = path.on_receipt(receipt, via, ctx.now, replay);
            self.report(ctx, receipt.slot, transition);
        }
    }

    /// An inner packet, which lies in the buffer lent last.
    fn on_packet(&mut self, ctx: &mut Context<'_>, len: usize) -> Result<(), DropReason> {
        if ctx.waited > MAX_AGE {
            return Err(DropReason::Stale);
        }
        let packet = &mut ctx.out.lend(len)[..len];
        let view = IpView::parse(packet).filter(|view| view.len == len).ok_or(DropReason::PeerMalformed)?;
        let own = |address| ctx.routes.lookup(address) == Some(self.at);
        let ours = |address| ctx.local.is_none_or(|local| local.lookup(address).is_some());
        if view.is_reserved() || !own(view.source) || (ctx.local.is_some() && ours(view.source)) {
            return Err(DropReason::PeerSource);
        }
        if !ours(view.destination) {
            return Err(DropReason::PeerDestination);
        }
        // Only who received a packet can complain of it: its destination lies behind the peer. At a box the peer is the
        // rest of the world, of which that is always true.
        if view.quoted(packet).is_some_and(|(_, destination)| !own(destination)) {
            return Err(DropReason::PeerQuote);
        }
        // A SYN's MSS governs the segments that go back to its sender: those take our direction of the path.
        let current = self.paths.iter().find(|path| Some(path.config.slot) == self.current);
        clamp_mss(&view, packet, current.map_or(ctx.mtu, |path| path.packet_mtu(ctx.mtu)));
        self.last_traffic = Some(ctx.now);
        self.rx.add(len);
        ctx.out.deliver(len);
        Ok(())
    }

    /// A part of an inner packet, which was sent before if `copy` says so.
    fn on_fragment(
        &mut self,
        ctx: &mut Context<'_>,
        fragment: &Fragment<'_>,
        copy: Option<wire::Copy>,
    ) -> Result<(), DropReason> {
        let Some(packet) = self.reassembly.insert(ctx.now, fragment, &mut self.drops) else { return Ok(()) };
        self.reassembled += 1;
        let len = packet.len();
        ctx.out.lend(len).copy_from_slice(packet);
        if let Some(copy) = copy {
            self.note_copy(ctx.now, copy)?;
        }
        self.on_packet(ctx, len)
    }

    fn on_link_message(
        &mut self,
        ctx: &mut Context<'_>,
        slot: u8,
        id: PacketId,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let (mut eliciting, mut asked, mut hello, mut fragment, mut copy) = (false, false, None, None, None);
        let read = wire::read(message, |item| match item {
            Item::Ping => (eliciting, asked) = (true, true),
            // A message has one; of more, which would each be answered with a datagram, the last one counts.
            Item::Hello(said) => hello = Some(said),
            Item::Fragment(part) => (eliciting, fragment) = (true, Some(part)),
            Item::Lost(gone) => {
                eliciting = true;
                // What came by a path is no sign that this path is gone, whatever it says.
                if let Some(path) = self.path_mut(gone).filter(|_| gone != slot) {
                    let transition = path.health.on_lost(ctx.now);
                    self.report(ctx, gone, transition);
                }
            }
            Item::Receipt(receipt) => self.on_receipt(ctx, slot, &receipt),
            Item::Copy(of) => copy = Some(of),
        });
        if let Some(hello) = hello {
            eliciting = true;
            self.on_hello(ctx, slot, &hello);
        }
        if let Some(path) = self.path_mut(slot) {
            path.received.note(id, ctx.now, eliciting);
        }
        if eliciting {
            self.want_receipt(ctx.now, asked);
        }
        read.map_err(|error| match error {
            ReadError::Malformed => DropReason::LinkMessageMalformed,
            ReadError::Version(_) => DropReason::LinkMessageVersion,
        })?;
        fragment.map_or(Ok(()), |fragment| self.on_fragment(ctx, &fragment, copy))
    }

    fn on_hello(&mut self, ctx: &mut Context<'_>, slot: u8, hello: &Hello) {
        if hello.least_version > wire::VERSION {
            self.drops.add(DropReason::LinkMessageVersion);
            return;
        }
        if self.remote_epoch.replace(hello.epoch).is_some_and(|epoch| epoch != hello.epoch) {
            // It started anew, and will never acknowledge what went to the one before.
            for path in &mut self.paths {
                path.health.forget_open();
            }
            self.reassembly.clear();
            self.replay.clear();
        }
        self.capabilities = hello.capabilities;
        if let Some(path) = self.path_mut(slot) {
            path.on_hello(ctx, hello);
        }
    }

    /// Something came that asks for a receipt: at once if that was all it was for or none went out lately, else when
    /// the interval is over.
    fn want_receipt(&mut self, now: Instant, at_once: bool) {
        let due = match self.last_receipt {
            Some(last) if !at_once => (last + RECEIPT_INTERVAL).max(now),
            _ => now,
        };
        self.receipt_due = Some(self.receipt_due.map_or(due, |other| other.min(due)));
    }

    /// Takes the receipts that are wanted, as a link message.
    fn take_receipts<'a>(&mut self, now: Instant, buffer: &'a mut [u8; MAX_MESSAGE]) -> Option<Receipts<'a>> {
        self.receipt_due = None;
        self.last_receipt = Some(now);
        let mut message = Writer::new(buffer);
        let mut with_news = [false; MAX_SLOTS];
        for path in &mut self.paths {
            let slot = path.config.slot;
            with_news[usize::from(slot)] = path.received.has_news();
            path.received.take_receipts(slot, now, |receipt| {
                message.add(&Item::Receipt(receipt));
            });
        }
        (!message.is_empty()).then(|| Receipts { message: message.finish(), with_news })
    }

    /// Takes the receipts that are wanted, if a packet that is about to be sent can carry them.
    fn receipts_to_ride<'a>(&mut self, now: Instant, buffer: &'a mut [u8; MAX_MESSAGE]) -> Option<Receipts<'a>> {
        let due = self.receipt_due? <= now + RIDES_EARLY && self.takes_copies();
        if due { self.take_receipts(now, buffer) } else { None }
    }

    /// Sends the receipts that are due by themselves.
    fn send_due_receipts(&mut self, ctx: &mut Context<'_>) {
        if self.receipt_due.is_none_or(|due| due > ctx.now) {
            return;
        }
        let mut buffer = [0; MAX_MESSAGE];
        if let Some(receipts) = self.take_receipts(ctx.now, &mut buffer) {
            self.send_receipts(ctx, &receipts, None);
        }
    }

    /// Sends receipts on every path with news and, for the case that this one's way back is broken, on one more. That one
    /// costs: on a metered path, or when nobody waits, only where there is a doubt. `ridden`: they went with a packet by
    /// the path of this slot.
    fn send_receipts(&mut self, ctx: &mut Context<'_>, receipts: &Receipts<'_>, ridden: Option<u8>) {
        let &Receipts { message, mut with_news } = receipts;
        let (mut sent, mut doubt) = (0, false);
        for path in self.paths.iter_mut().filter(|path| with_news[usize::from(path.config.slot)]) {
            doubt |= path.health.state() != PathState::Up;
            if Some(path.config.slot) == ridden {
                self.receipts_sent.add(wire::items_of(message).len());
                sent += 1;
            } else if path.send(ctx, message, false) {
                self.receipts_sent.add(message.len() + OVERHEAD);
                sent += 1;
            }
        }
        let active = self.is_active(ctx.now);
        for path in &self.paths {
            with_news[usize::from(path.config.slot)] |= !doubt && (path.metered() || !active);
        }
        if let Some(ridden) = ridden {
            with_news[usize::from(ridden)] = true;
        }
        if sent < 2
            && let Some(path) = self.best_alive(ctx.now, with_news)
            && path.send(ctx, message, false)
        {
            self.receipts_sent.add(message.len() + OVERHEAD);
        }
    }

    /// The best path that lives, of those whose slots are not in `except`.
    fn best_alive(&mut self, now: Instant, except: [bool; MAX_SLOTS]) -> Option<&mut Path> {
        let others = self.paths.iter_mut().filter(|path| path.alive() && !except[usize::from(path.config.slot)]);
        let standing = others.filter_map(|path| Some((path.standing(now)?, path)));
        standing.min_by_key(|(standing, path)| (*standing, path.preference(), path.config.slot)).map(|(_, path)| path)
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    fn is_active(&self, now: Instant) -> bool {
        self.last_traffic.is_some_and(|at| now.since(at) < ACTIVE)
    }

    fn surroundings(&self, path: &Path, now: Instant) -> Surroundings {
        let slot = path.config.slot;
        Surroundings {
            initiator: self.role == Role::Initiator,
            other_up: self.paths.iter().any(|p| p.config.slot != slot && p.health.state() == PathState::Up),
            several_ways: path.endpoints.len() > 1,
            active: self.is_active(now) && !(path.metered() && self.current != Some(slot)),
            keepalive: path.keepalive,
            largest: path.mtu.size(),
        }
    }

    /// When [`Peer::on_timeout`] has something to do, and what.
    pub(crate) fn deadline(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let receipts = self.receipt_due.map(|at| (at, "receipt"));
        let lost = self.lost.contains(&true).then_some((now, "an uplink is gone"));
        let rescue = self.rescue_wanted.then_some((now, "replay"));
        let expiry = self.replay.expires_at().map(|at| (at, "memory"));
        let paths = self.paths.iter().flat_map(|path| {
            let around = self.surroundings(path, now);
            let health = if self.receipts() { path.health.deadline(around, now) } else { None };
            [
                health.filter(|_| path.tick_at.is_some()),
                path.tick_at.map(|at| (at, "tunnel")),
                path.hello_at.map(|at| (at, "hello")),
                path.probe_at(around.active).filter(|_| self.puts_together()).map(|at| (at, "path MTU")),
                path.health.probation_end(now).map(|at| (at, "probation")),
            ]
        });
        paths.chain([receipts, lost, rescue, expiry]).flatten().min()
    }

    pub(crate) fn on_timeout(&mut self, ctx: &mut Context<'_>) {
        for at in 0..self.paths.len() {
            let slot = self.paths[at].config.slot;
            let around = self.surroundings(&self.paths[at], ctx.now);
            let (receipts, role) = (self.receipts(), self.role);
            let path = &mut self.paths[at];
            let transition = path.on_timeout(ctx, around, receipts, role);
            self.report(ctx, slot, transition);
        }
        self.send_due_receipts(ctx);
        self.tell_lost(ctx);
        self.rescue(ctx);
        self.replay.expire(ctx.now);
        self.reassembly.expire(ctx.now, &mut self.drops);
        // Last: where one does not fit the interface, the kernel refuses a whole run of datagrams that begins with it.
        if self.puts_together() {
            for at in 0..self.paths.len() {
                let active = self.surroundings(&self.paths[at], ctx.now).active;
                self.paths[at].probe(ctx, active);
            }
        }
    }

    /// Tells the peer of uplinks that went, by the best path that lives; without one there is nobody to tell.
    fn tell_lost(&mut self, ctx: &mut Context<'_>) {
        let lost = std::mem::take(&mut self.lost);
        let mut buffer = [0; MAX_MESSAGE];
        let mut message = Writer::new(&mut buffer);
        for slot in (0..MAX_SLOTS as u8).filter(|slot| lost[usize::from(*slot)]) {
            message.add(&Item::Lost(slot));
        }
        if !message.is_empty()
            && let Some(path) = self.best_alive(ctx.now, lost)
        {
            path.send(ctx, message.finish(), true);
        }
    }

    /// After a batch: what is due at once goes out, and the choice of path follows what was learnt.
    pub(crate) fn settle(&mut self, ctx: &mut Context<'_>) {
        self.send_due_receipts(ctx);
        self.rescue(ctx);
        self.choose_path(ctx);
    }

    /// The choice of path follows what was learnt. Sends nothing.
    pub(crate) fn choose_path(&mut self, ctx: &mut Context<'_>) {
        let candidates = self.paths.iter().filter_map(|path| {
            let (slot, preference) = (path.config.slot, path.preference());
            Some(Candidate { slot, preference, standing: path.standing(ctx.now)? })
        });
        let chosen = choose(candidates, self.current);
        if chosen == self.current {
            return;
        }
        let from = std::mem::replace(&mut self.current, chosen);
        // A path that lives is left as planned; from one that does not, all has been sent again already.
        let lives = |slot: &u8| self.paths.iter().any(|path| path.config.slot == *slot && path.alive());
        self.leaving = from.filter(lives);
        if let Some(slot) = chosen {
            if self.last_slot.replace(slot).is_some_and(|last| last != slot) {
                self.path_changes += 1;
            }
            self.moved_at = ctx.now;
        }
        ctx.events.push_back(Event::Moved { peer: self.config.id, from, to: chosen });
    }

    fn report(&mut self, ctx: &mut Context<'_>, slot: u8, transition: Option<Transition>) {
        let Some(Transition { from, to, reason }) = transition else { return };
        if from == PathState::Down
            && let Some(path) = self.path_mut(slot)
        {
            path.mtu.on_up();
        }
        if to == PathState::Up && from != PathState::Suspect {
            self.replay.forget_tries(slot);
        }
        self.rescue_wanted = true;
        let path = PathId { peer: self.config.id, slot };
        ctx.events.push_back(Event::Path { path, from, to, reason });
        self.report_reachability(ctx);
    }

    /// After paths have changed their state, or their number.
    pub(crate) fn report_reachability(&mut self, ctx: &mut Context<'_>) {
        let reachable = self.paths.iter().any(Path::alive);
        if std::mem::replace(&mut self.reachable, reachable) != reachable {
            let peer = self.config.id;
            ctx.events.push_back(if reachable { Event::Reachable(peer) } else { Event::Unreachable(peer) });
        }
    }

    // ---- news from the daemon ------------------------------------------------------------------------------------

    /// An uplink can be used, or cannot.
    pub(crate) fn set_uplink(&mut self, ctx: &mut Context<'_>, link: LinkId, uplink: Option<&Uplink>) {
        for at in 0..self.paths.len() {
            let path = &mut self.paths[at];
            if path.config.link != Some(link) {
                continue;
            }
            let (slot, transition) = (path.config.slot, path.set_uplink(ctx.now, link, uplink));
            if let Some(transition) = transition {
                self.lost[usize::from(slot)] = transition.to == PathState::Absent;
            }
            self.report(ctx, slot, transition);
        }
    }

    /// The box's address on a link is another one.
    pub(crate) fn renumbered(&mut self, link: LinkId) {
        for path in self.paths.iter_mut().filter(|path| path.config.link == Some(link)) {
            path.health.ask_now();
            path.mtu.begin_anew();
        }
    }

    /// This end stood still until now.
    pub(crate) fn stood_still(&mut self, now: Instant) {
        for path in &mut self.paths {
            path.health.on_stall(now);
            path.mtu.on_up();
        }
    }

    /// Old time stamps are of no use from now on: shake hands anew, beside the session in use.
    pub(crate) fn clock_stepped(&mut self, now: Instant) {
        for path in self.paths.iter_mut().filter(|path| self.role == Role::Initiator && path.tick_at.is_some()) {
            path.tunnel.clock_stepped();
            path.initiation_wanted = true;
            path.tick_at = Some(now);
        }
    }

    pub(crate) fn snapshot(&self, mtu: u16, now: Instant) -> PeerSnapshot {
        // Both ends know eight slots; those that never had an uplink, or on which nobody has spoken, are nothing to show.
        let mut paths: Vec<_> = self
            .paths
            .iter()
            .filter(|path| path.tick_at.is_some())
            .map(|path| path.snapshot(self.config.id, mtu, now))
            .collect();
        paths.sort_by_key(|path| path.id.slot);
        PeerSnapshot {
            id: self.config.id,
            name: self.config.name.clone(),
            reachable: self.reachable,
            current_slot: self.current,
            path_changes: self.path_changes,
            tx: self.tx,
            rx: self.rx,
            fragmented: self.fragmented,
            reassembled: self.reassembled,
            copies: self.copies,
            kept: Traffic { packets: self.replay.held().0 as u64, bytes: self.replay.held().1 as u64 },
            receipts: self.receipts_sent,
            drops: self.drops.clone(),
            paths,
        }
    }
}
