//! What a path sends: packets whole or cut, what stands beside them, and link messages.

use super::Path;
use crate::Instant;
use crate::output::Route;
use crate::peer::{Context, fragment_number};
use crate::replay::{Origin, Outgoing, Ticket};
use crate::tunnel::{HANDSHAKE_MAX, Indices, OVERHEAD, PacketId, Tunnel};
use crate::wire::{Copy, Fragment, Item, LEAST_MESSAGE, MAX_MESSAGE, MOST_TRAILER, Sequence, Writer};

/// What an access link counts of a packet beside its IP headers, as far as is known: an Ethernet header and its check, as
/// DOCSIS does (CM-SP-MULPIv3.1, section 7.7.4: from the destination address to the CRC). PPPoE has 8 octets more, ATM a
/// tenth of all: there the rate is to be given with that taken off.
const FRAME: u64 = 18;

/// What stands beside a packet for the one who receives it.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// It was sent before.
    copy: Option<Copy>,
    /// It is bonded.
    sequence: Option<Sequence>,
}

impl Marks {
    /// Octets that they take at most.
    const MOST: usize = Copy::ROOM + Sequence::ROOM;

    /// Octets that they take.
    fn room(&self) -> usize {
        self.copy.map_or(0, |_| Copy::ROOM) + self.sequence.map_or(0, |_| Sequence::ROOM)
    }

    fn add_to(&self, message: &mut Writer<'_>) {
        let copy = self.copy.map(Item::Copy);
        copy.iter().chain(&self.sequence.map(Item::Sequence)).for_each(|item| {
            message.add(item);
        });
    }

    /// As a trailer.
    fn write<'a>(&self, room: &'a mut [u8]) -> &'a [u8] {
        let mut trailer = Writer::trailer(room);
        self.add_to(&mut trailer);
        trailer.finish()
    }
}

impl Path {
    /// Seals and sends what waits for no room. `false`: there is no session or no way.
    pub(crate) fn send(&mut self, ctx: &mut Context<'_>, plaintext: &[u8], eliciting: bool) -> bool {
        self.send_own_numbered(ctx, plaintext, eliciting, Ticket::NONE).is_some()
    }

    pub(super) fn send_own_numbered(
        &mut self,
        ctx: &mut Context<'_>,
        plaintext: &[u8],
        eliciting: bool,
        ticket: Ticket,
    ) -> Option<PacketId> {
        let id = self.send_numbered(ctx, plaintext, self.outer.of_own(), eliciting, ticket)?;
        self.charge_own(ctx.now, plaintext.len() + self.tunnel.overhead().most);
        Some(id)
    }

    /// A datagram of `len` octets was sent that waited for no room.
    pub(super) fn charge_own(&mut self, now: Instant, len: usize) {
        let (load, framing) = (self.load(), self.framing());
        self.shaper.on_sent_own(now, load, len as u64 + framing);
    }

    /// What a datagram costs on the link beside its own octets. It counts where a link's rate is given; what is measured
    /// is measured in datagrams.
    pub(super) fn framing(&self) -> u64 {
        const UDP: u64 = 8;
        let ip = if self.route.is_some_and(|route| route.to.is_ipv6()) { 40 } else { 20 };
        if self.shaper.given().is_some() { FRAME + ip + UDP } else { 0 }
    }

    /// Sends a packet in one datagram, with a trailer that may be empty.
    pub(crate) fn send_whole(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &[u8],
        trailer: &[u8],
        ticket: Ticket,
        eliciting: bool,
    ) -> Option<PacketId> {
        let class = self.outer.of_packet(packet, self.takes_marks);
        if trailer.is_empty() {
            return self.send_numbered(ctx, packet, class, eliciting, ticket);
        }
        let mut both = std::mem::take(ctx.scratch);
        both.clear();
        both.extend_from_slice(packet);
        both.extend_from_slice(trailer);
        let id = self.send_numbered(ctx, &both, class, eliciting, ticket);
        *ctx.scratch = both;
        id
    }

    /// `class`: the octet of the outer header.
    fn send_numbered(
        &mut self,
        ctx: &mut Context<'_>,
        plaintext: &[u8],
        class: u8,
        eliciting: bool,
        ticket: Ticket,
    ) -> Option<PacketId> {
        let route = self.route?;
        let most = plaintext.len() + self.tunnel.overhead().most;
        let room = most.max(HANDSHAKE_MAX).max(self.mtu.size().into());
        let route = self.tunnel.route().unwrap_or(route);
        let (tunnel, now) = (&mut self.tunnel, ctx.now);
        let mut waits = None;
        let sealed = ctx.out.transmit(room, class, |dst| {
            let sealed = tunnel.seal(plaintext, now, dst)?;
            waits = Some(sealed).filter(|sealed| sealed.len == 0);
            (sealed.len > 0).then_some((sealed.len, route, sealed))
        });
        let sealed = sealed.or(waits)?;
        // What waits in the tunnel is counted when it goes.
        if sealed.len > 0 {
            self.tx.add(sealed.len);
        }
        let len = if sealed.len > 0 { sealed.len } else { most };
        self.health.on_sent(sealed.id, len, ctx.now, eliciting, ticket);
        Some(sealed.id)
    }

    /// Whether a packet of this length goes in one datagram, as far as is known.
    pub(crate) fn fits(&self, len: usize) -> bool {
        len + self.tunnel.overhead().most <= usize::from(self.mtu.size())
    }

    /// The largest packet that goes in one datagram, or the TUN's MTU while nothing is known: segments that turn out too
    /// large cost fragments, and ones that need not be small would stay small for as long as the connection lives.
    pub(crate) fn packet_mtu(&self, tun_mtu: u16) -> u16 {
        self.mtu.measured().map_or(tun_mtu, |size| tun_mtu.min(size - self.tunnel.overhead().most as u16))
    }

    /// Seals and sends a packet that does not fit, and says in how many datagrams. 0: there is no session or no way. A path
    /// loses both between two datagrams of one call at most when its session's numbers end, after two million years.
    fn send_fragments(&mut self, ctx: &mut Context<'_>, packet: &[u8], id: u32, marks: Marks, ticket: Ticket) -> u8 {
        let size = self.mtu.size();
        let room = size - self.tunnel.overhead().most as u16 - marks.room() as u16;
        let class = self.outer.of_packet(packet, self.takes_marks);
        let mut buffer = std::mem::take(ctx.scratch);
        let mut sent = 0;
        for fragment in Fragment::cut(packet, id, room) {
            buffer.resize(usize::from(size), 0);
            let mut message = Writer::new(&mut buffer);
            marks.add_to(&mut message);
            message.add(&Item::Fragment(fragment));
            if self.send_numbered(ctx, message.finish(), class, true, ticket).is_none() {
                break;
            }
            sent += 1;
        }
        *ctx.scratch = buffer;
        sent
    }

    /// Sends a packet, for the first time or again, and says what it is known by and in how many datagrams it went. `trailer`
    /// goes with it the first time, if all fits one datagram; whether it did. `cut`: the peer puts fragments together, which
    /// are numbered by `fragmented`.
    pub(crate) fn send_packet(
        &mut self,
        ctx: &mut Context<'_>,
        outgoing: &Outgoing<'_>,
        trailer: &[u8],
        cut: bool,
        fragmented: &mut u64,
    ) -> Option<(Origin, u8, bool)> {
        let &Outgoing { packet, origin, sequence, ticket, urgent } = outgoing;
        let (before, path) = (self.tx.bytes, self.number());
        let mut number = || {
            let number = fragment_number(ctx.epoch, *fragmented);
            *fragmented += 1;
            number
        };
        let copy = match origin {
            Some(Origin::Whole(first, id)) => Some(Copy::of(first, id)),
            Some(Origin::Fragments(_)) | None => None,
        };
        let marks = Marks { copy, sequence };
        let whole = !matches!(origin, Some(Origin::Fragments(_))) && self.fits(packet.len() + marks.room());
        let (origin, datagrams, rode) = if whole || (origin.is_none() && !cut) {
            let rides =
                origin.is_none() && !trailer.is_empty() && self.fits(packet.len() + marks.room() + trailer.len());
            let mut room = [0; Marks::MOST + MOST_TRAILER];
            let marked = marks.write(&mut room).len();
            let end = if rides { marked + trailer.len() } else { marked };
            if rides {
                room[marked..end].copy_from_slice(trailer);
            }
            let id = self.send_whole(ctx, packet, &room[..end], ticket, true)?;
            (origin.unwrap_or(Origin::Whole(path, id)), 1, rides)
        } else {
            // The fragments of a packet that went so before have its number again; a copy of a whole one has its own.
            let id = match origin {
                Some(Origin::Fragments(id)) => id,
                _ => number(),
            };
            let datagrams = self.send_fragments(ctx, packet, id, marks, ticket);
            (origin.unwrap_or(Origin::Fragments(id)), datagrams, false)
        };
        let (load, framing) = (self.load(), self.framing() * u64::from(datagrams));
        self.shaper.on_sent(ctx.now, load, self.tx.bytes - before + framing, urgent);
        (datagrams > 0).then_some((origin, datagrams, rode))
    }

    /// Sends a message of one item that asks for a receipt.
    pub(crate) fn send_item(&mut self, ctx: &mut Context<'_>, item: &Item<'_>) -> bool {
        let mut buffer = [0; MAX_MESSAGE];
        let mut message = Writer::new(&mut buffer);
        message.add(item);
        self.send(ctx, message.finish(), true)
    }

    /// A PING that fills a datagram of this length, or a little more where the tunnel's own part varies.
    pub(super) fn send_padded(&mut self, ctx: &mut Context<'_>, datagram: u16, eliciting: bool) -> Option<PacketId> {
        let mut buffer = std::mem::take(ctx.scratch);
        buffer.resize(usize::from(datagram).saturating_sub(self.tunnel.overhead().least).max(LEAST_MESSAGE), 0);
        let mut message = Writer::new(&mut buffer);
        message.add(&Item::Ping);
        message.pad();
        let id = self.send_own_numbered(ctx, message.finish(), eliciting, Ticket::NONE);
        *ctx.scratch = buffer;
        id
    }

    /// Sends what the tunnel has to say by itself.
    pub(crate) fn flush(&mut self, ctx: &mut Context<'_>) {
        self.stirred = false;
        // An uplink that is gone has no socket.
        let nowhere = self.config.link.is_some() && self.route.is_none();
        let mut octets = 0;
        while let Some((datagram, route)) = self.tunnel.poll_transmit(ctx.now) {
            if nowhere {
                continue;
            }
            let len = datagram.len();
            ctx.out.transmit(len, self.outer.of_own(), |dst| {
                dst.copy_from_slice(datagram);
                Some((len, route, ()))
            });
            self.tx.add(len);
            octets += len;
        }
        if octets > 0 {
            self.charge_own(ctx.now, octets);
        }
    }

    /// Sends what a tunnel wrote by itself: a handshake message, or a keepalive with a number.
    pub(crate) fn send_own(
        &mut self,
        ctx: &mut Context<'_>,
        route: Option<Route>,
        write: impl FnOnce(&mut dyn Tunnel, Instant, &mut Indices, &mut [u8]) -> (usize, Option<PacketId>),
    ) {
        let indices = ctx.indices.of(self.at);
        let (tunnel, now) = (&mut self.tunnel, ctx.now);
        let mut number = None;
        let written = ctx.out.transmit(HANDSHAKE_MAX.max(OVERHEAD), self.outer.of_own(), |dst| {
            let (len, id) = write(tunnel.as_mut(), now, indices, dst);
            number = id;
            (len > 0).then_some(())?;
            Some((len, route?, len))
        });
        // Numbered is numbered, also where there was no way to send it.
        if let Some(id) = number {
            self.health.on_sent(id, OVERHEAD, ctx.now, false, Ticket::NONE);
        }
        if let Some(len) = written {
            self.tx.add(len);
            self.charge_own(ctx.now, len);
        }
    }
}
