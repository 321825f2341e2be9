//! What comes from a peer: handshakes, packets, and what the two ends say to each other.

use super::{Context, Peer};
use crate::Instant;
use crate::counters::DropReason;
use crate::node::{Datagram, MAX_AGE};
use crate::outer;
use crate::output::Route;
use crate::packet::{IpView, clamp_mss};
use crate::path::Path;
use crate::policy::{Direction, Facts};
use crate::replay::Ticket;
use crate::tunnel::quic::Parcel;
use crate::tunnel::{Opened, PacketId, Role};
use crate::wire::{self, Fragment, Hello, Item, MOST_TRAILER, ReadError, Receipt, Sequence};

impl Peer {
    /// A handshake message for one of its paths.
    pub(crate) fn on_handshake(
        &mut self,
        ctx: &mut Context<'_>,
        number: u8,
        datagram: &Datagram<'_>,
    ) -> Result<(), DropReason> {
        let (kind, role, epoch) = (self.config.kind, self.role, self.remote_epoch);
        let path = self.path_mut(number).ok_or(DropReason::HandshakeInvalid)?;
        path.tick_at.get_or_insert(ctx.now);
        // A responder answers to where the initiation came from and remembers nothing of it: an old initiation, played
        // again from elsewhere, moves no endpoint. An initiator confirms to where the answer came from, if it knows that
        // address for the peer's.
        let back = Route { link: datagram.link, to: datagram.from, from: datagram.to };
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
        number: u8,
        id: PacketId,
        datagram: &Datagram<'_>,
    ) -> Result<(), DropReason> {
        let role = self.role;
        (ctx.waited, ctx.ecn) = (datagram.waited, datagram.ecn);
        let path = self.path_mut(number).ok_or(DropReason::UnknownSession)?;
        let buffer = ctx.out.lend(datagram.data.len());
        let opened = path.tunnel.open(datagram.data, ctx.now, ctx.indices.of(path.at), buffer)?;
        path.rx.add(datagram.data.len());
        path.marks.met += u64::from(datagram.ecn == outer::CE);
        // A packet that was overtaken by others tells where the peer was, not where it is.
        if role == Role::Responder && opened.current && path.received.is_newest(id) {
            path.move_to(Route { link: datagram.link, to: datagram.from, from: datagram.to });
        }
        self.on_opened(ctx, number, id, opened)
    }

    /// A datagram for a connection of one of its paths.
    pub(crate) fn on_parcel(
        &mut self,
        ctx: &mut Context<'_>,
        number: u8,
        parcel: Parcel,
        datagram: &Datagram<'_>,
    ) -> Result<(), DropReason> {
        let (kind, role, epoch) = (self.config.kind, self.role, self.remote_epoch);
        (ctx.waited, ctx.ecn) = (datagram.waited, datagram.ecn);
        let path = self.path_mut(number).ok_or(DropReason::UnknownSession)?;
        path.tick_at.get_or_insert(ctx.now);
        path.stirred = true;
        let outcome = path.tunnel.accept(parcel, ctx.now, ctx.indices.of(path.at))?;
        path.rx.add(datagram.data.len());
        path.marks.met += u64::from(datagram.ecn == outer::CE);
        if let Some(id) = outcome.id {
            let len = path.tunnel.overhead().most;
            path.health.on_sent(id, len, ctx.now, false, Ticket::NONE);
        }
        if outcome.established {
            path.on_answer(datagram.from);
            path.on_session(ctx, kind, role, epoch);
        }
        path.follow();
        loop {
            let Some(path) = self.path_mut(number) else { return Ok(()) };
            let buffer = ctx.out.lend(datagram.data.len());
            let Some(packet) = path.tunnel.next(ctx.now, ctx.indices.of(path.at), buffer) else { return Ok(()) };
            path.follow();
            // One bad packet is no reason to leave the next one.
            if let Err(reason) = packet.and_then(|(id, opened)| self.on_opened(ctx, number, id, opened)) {
                self.count_drop(reason);
            }
        }
    }

    /// What came out of a tunnel, in the buffer lent last.
    fn on_opened(&mut self, ctx: &mut Context<'_>, number: u8, id: PacketId, opened: Opened) -> Result<(), DropReason> {
        let (kind, role, epoch, receipts) = (self.config.kind, self.role, self.remote_epoch, self.receipts());
        let path = self.path_mut(number).ok_or(DropReason::UnknownSession)?;
        if opened.established {
            path.on_session(ctx, kind, role, epoch);
        }
        path.health.on_heard(ctx.now);
        let transition = if receipts { None } else { path.health.on_session(ctx.now, true) };
        let packet = &ctx.out.lend(opened.plaintext)[..opened.ip];
        if packet.is_empty() {
            path.received.note(id, ctx.now, false);
            self.report(ctx, number, transition);
            return Ok(());
        }
        if receipts && wire::is_link_message(packet) {
            let mut message = std::mem::take(ctx.scratch);
            message.clear();
            message.extend_from_slice(packet);
            self.report(ctx, number, transition);
            let outcome = self.on_link_message(ctx, number, id, &message);
            *ctx.scratch = message;
            return outcome;
        }
        let mut trailer = [0; MOST_TRAILER];
        let behind = opened.plaintext - opened.ip;
        if receipts && behind > 0 {
            let whole = &ctx.out.lend(opened.plaintext)[opened.ip..];
            trailer.get_mut(..behind).ok_or(DropReason::LinkMessageMalformed)?.copy_from_slice(whole);
        }
        let came_as_copy = path.received.note(id, ctx.now, true);
        self.report(ctx, number, transition);
        let mut place = None;
        if receipts {
            self.want_receipt(ctx.now, false);
            let (copy, sequence) = self.on_trailer(ctx, number, &trailer[..behind.min(MOST_TRAILER)])?;
            match copy {
                Some(copy) => self.note_copy(ctx.now, copy)?,
                None if came_as_copy => return Err(DropReason::Duplicate),
                None => {}
            }
            place = sequence;
        }
        self.on_packet(ctx, opened.ip, place.map(|place| (number, place)))
    }

    /// What stands behind a packet: receipts, whether the packet is a copy, and its place in its stream.
    fn on_trailer(
        &mut self,
        ctx: &mut Context<'_>,
        number: u8,
        trailer: &[u8],
    ) -> Result<(Option<wire::Copy>, Option<Sequence>), DropReason> {
        let (mut copy, mut sequence) = (None, None);
        let read = wire::read_trailer(trailer, |item| match item {
            Item::Copy(of) => copy = Some(of),
            Item::Sequence(of) => sequence = Some(of),
            Item::Receipt(receipt) => self.on_receipt(ctx, number, &receipt),
            // Nothing else is sent so.
            _ => {}
        });
        read.map(|()| (copy, sequence)).map_err(|_| DropReason::LinkMessageMalformed)
    }

    /// A copy of a packet is to be delivered: only the first.
    fn note_copy(&mut self, now: Instant, copy: wire::Copy) -> Result<(), DropReason> {
        let path = self.path_mut(copy.path).ok_or(DropReason::LinkMessageMalformed)?;
        path.received.note_copy(copy, now)
    }

    /// A receipt that came by the path of number `via`.
    fn on_receipt(&mut self, ctx: &mut Context<'_>, via: u8, receipt: &Receipt) {
        let Peer { paths, replay, .. } = self;
        if let Some(path) = paths.iter_mut().find(|path| path.number() == receipt.path) {
            let transition = path.on_receipt(receipt, via, ctx.now, replay);
            if replay.take_orphans() {
                self.rescue.get_or_insert(0);
            }
            self.report(ctx, receipt.path, transition);
        }
    }

    /// An inner packet, which lies in the buffer lent last; `sequence`: by which path it came and its place in its
    /// stream, if it is bonded.
    fn on_packet(
        &mut self,
        ctx: &mut Context<'_>,
        len: usize,
        sequence: Option<(u8, Sequence)>,
    ) -> Result<(), DropReason> {
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
        outer::decapsulate(packet, ctx.ecn).ok_or(DropReason::NotEcnCapable)?;
        // A SYN's MSS governs the segments that go back to its sender: those take our direction of the path.
        let used = self.paths.iter().filter(|path| self.carrying & 1 << path.number() != 0);
        let mtu = used.map(|path| path.packet_mtu(ctx.mtu)).min().unwrap_or(ctx.mtu);
        clamp_mss(&view, packet, mtu - self.numbering);
        self.last_traffic = Some(ctx.now);
        self.rx.add(len);
        let Some((path, sequence)) = sequence else {
            self.deliver(ctx, len);
            return Ok(());
        };
        if self.resequencer.insert(ctx.now, path, sequence, &ctx.out.lend(len)[..len]) {
            self.deliver(ctx, len);
        }
        self.deliver_resequenced(ctx);
        Ok(())
    }

    /// Delivers bonded packets that need not wait for others any more.
    pub(super) fn deliver_resequenced(&mut self, ctx: &mut Context<'_>) {
        while let Some(packet) = self.resequencer.pop(ctx.now) {
            ctx.out.lend(packet.len()).copy_from_slice(&packet);
            self.deliver(ctx, packet.len());
            self.resequencer.give_back(packet);
        }
    }

    /// Delivers the packet that lies in the buffer lent last.
    fn deliver(&mut self, ctx: &mut Context<'_>, len: usize) {
        let egress = if self.chooses_egress { self.egress(ctx, len) } else { None };
        ctx.out.deliver(egress.unwrap_or(self.config.egress), len);
    }

    /// The TUN that the class of that packet is delivered to, if it has one of its own. The class is that of its flow's first
    /// packet, as at the box, whatever marks the next ones bear.
    fn egress(&mut self, ctx: &mut Context<'_>, len: usize) -> Option<u8> {
        let packet = &ctx.out.lend(len)[..len];
        let view = IpView::parse(packet)?;
        let Peer { arrivals, courses, config, .. } = self;
        let classify = || config.policy.classify(&Facts::of(&view, packet, Direction::Up), config.open_windows);
        let class = arrivals.class(view.flow_hash(packet, ctx.flow_key), ctx.now, classify);
        if let Some(course) = courses.get_mut(usize::from(class)) {
            course.rx.add(len);
        }
        config.policy.class(class).egress.as_ref()?.tun
    }

    /// A part of an inner packet, which was sent before if `copy` says so.
    fn on_fragment(
        &mut self,
        ctx: &mut Context<'_>,
        number: u8,
        fragment: &Fragment<'_>,
        (copy, sequence): (Option<wire::Copy>, Option<Sequence>),
    ) -> Result<(), DropReason> {
        let whole = self.reassembly.insert(ctx.now, fragment, ctx.ecn, &mut self.drops);
        let Some((packet, ecn)) = whole else { return Ok(()) };
        ctx.ecn = ecn;
        self.reassembled += 1;
        let len = packet.len();
        ctx.out.lend(len).copy_from_slice(packet);
        if let Some(copy) = copy {
            self.note_copy(ctx.now, copy)?;
        }
        self.on_packet(ctx, len, sequence.map(|sequence| (number, sequence)))
    }

    fn on_link_message(
        &mut self,
        ctx: &mut Context<'_>,
        number: u8,
        id: PacketId,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let (mut eliciting, mut asked, mut hello, mut fragment) = (false, false, None, None);
        let (mut copy, mut sequence) = (None, None);
        let read = wire::read(message, |item| match item {
            Item::Ping => (eliciting, asked) = (true, true),
            // A message has one; of more, which would each be answered with a datagram, the last one counts.
            Item::Hello(said) => hello = Some(said),
            Item::Fragment(part) => (eliciting, fragment) = (true, Some(part)),
            Item::Lost(gone) => {
                eliciting = true;
                // What came by a path is no sign that this path is gone, whatever it says.
                if let Some(path) = self.path_mut(gone).filter(|_| gone != number) {
                    let transition = path.health.on_lost(ctx.now);
                    self.report(ctx, gone, transition);
                }
            }
            Item::Receipt(receipt) => self.on_receipt(ctx, number, &receipt),
            Item::Copy(of) => copy = Some(of),
            Item::Sequence(of) => sequence = Some(of),
        });
        if let Some(hello) = hello {
            eliciting = true;
            self.on_hello(ctx, number, &hello);
        }
        if let Some(path) = self.path_mut(number) {
            path.received.note(id, ctx.now, eliciting);
        }
        if eliciting {
            self.want_receipt(ctx.now, asked);
        }
        read.map_err(|error| match error {
            ReadError::Malformed => DropReason::LinkMessageMalformed,
            ReadError::Version(_) => DropReason::LinkMessageVersion,
        })?;
        fragment.map_or(Ok(()), |fragment| self.on_fragment(ctx, number, &fragment, (copy, sequence)))
    }

    fn on_hello(&mut self, ctx: &mut Context<'_>, number: u8, hello: &Hello) {
        if hello.least_version > wire::VERSION {
            self.drops.add(DropReason::LinkMessageVersion);
            return;
        }
        if self.past_epochs.contains(&Some(hello.epoch)) {
            return; // said before the restart that we know of, and late
        }
        if let Some(past) = self.remote_epoch.replace(hello.epoch).filter(|epoch| *epoch != hello.epoch) {
            self.past_epochs.rotate_right(1);
            self.past_epochs[0] = Some(past);
            // It started anew, and will never acknowledge what went to the one before.
            for path in &mut self.paths {
                path.health.forget_open();
            }
            self.replay.forget_sent();
            self.resequencer.restart();
            self.deliver_resequenced(ctx);
        }
        self.capabilities = hello.capabilities;
        self.paths.iter_mut().for_each(|path| path.takes_marks = hello.capabilities & Hello::ECN != 0);
        self.policy_hash = hello.policy_hash;
        if let Some(path) = self.path_mut(number) {
            path.on_hello(ctx, hello);
            let slot = path.config.slot;
            if self.role == Role::Responder && (hello.either || !hello.stands_by) {
                // One of the two leads. Said by either path, since what is said by the other may be overtaken, or come late.
                let other = |path: &&mut Path| path.config.slot == slot && path.number() != number;
                self.paths.iter_mut().filter(other).for_each(|other| other.stands_by = !hello.stands_by);
            }
        }
    }
}
