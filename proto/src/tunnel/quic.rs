//! QUIC by quinn-proto (RFC 9000), with packets in DATAGRAM frames (RFC 9221): for networks that let QUIC pass and not
//! WireGuard. This file and its folder are the only ones that know quinn and rustls.
//!
//! What a tunnel carries is the same as in WireGuard, and one thing more, behind it: the packet's number, which receipts
//! name. QUIC's own numbers are hidden, and its own acknowledgements say nothing of a packet that is copied or cut.
//!
//! ```text
//!   octets
//! +-----+----------------+--------+-----+--------+------------------------------+--------+-----+
//! |  1  | 8 up, 4 down   | 1 to 4 |  1  | 1 or 2 |                              |   4    |  16 |
//! |flags| connection ID  |  QUIC  |type | length | IP packet, then trailer items | NUMBER | tag |
//! |     | of the receiver| number | 0x31|        | (as in WireGuard), or nothing |        |     |
//! +-----+----------------+--------+-----+--------+------------------------------+--------+-----+
//!  short header (RFC 9000, 17.3)  | DATAGRAM frame (RFC 9221, section 4)                  | AEAD
//! ```
//! NUMBER is the low half of a number of 64 bits, in network order, that counts what one end sends on one connection, from
//! 0. The receiver takes the whole number that is nearest to the one after the largest that has come: that is right as long
//! as no datagram is 2^31 others late. A session's name, the other half of [`PacketId`], is drawn by both ends out of the
//! handshake, one for each direction ([`link`]).
//!
//! | of QUIC | here |
//! | --- | --- |
//! | handshake | only a box begins one, and each time a new connection: beside the one in use, which goes on until the new one has carried data |
//! | congestion control, pacing | none: the path's shaper holds back what has no room, before it has a number |
//! | path MTU discovery | off: `mtu.rs` knows what fits |
//! | acknowledgements | one of 64 datagrams, or one in 100 ms (draft-ietf-quic-ack-frequency) |
//! | migration | how a box that was renumbered goes on; the path's way follows QUIC's, which is validated |
//! | streams, 0-RTT, session tickets, stateless resets | none |
//!
//! quinn reads no clock of its own but for the age of a Retry's token; keys are drawn inside.

pub(crate) mod endpoint;
mod identity;
pub(crate) mod link;

pub(crate) use endpoint::{Arrival, Clock};
pub use endpoint::{Endpoint, Parcel};

use self::endpoint::{BOX_ID, CORE_ID, Content};
use self::link::{Link, NUMBER, Outcome};
use super::{Handshake, Indices, Keys, Opened, Overhead, PacketId, Role, Sealed, Tunnel};
use crate::output::Route;
use crate::{DropReason, Instant};
use quinn_proto::{ClientConfig, ConnectionHandle};
use std::collections::VecDeque;
use std::time::Duration;

/// How many handshakes of a path may be under way. A box begins one at each of the core's addresses, eight at most, and
/// the next ones 0.2 to 1 s later: those before must have the time to be answered.
const CANDIDATES: usize = 16;
/// How long a handshake is waited for: a round trip of GPRS, and some 2G modems' queue.
const PATIENCE: Duration = Duration::from_secs(3);
/// At a core, connections that were agreed on and have carried nothing yet: a box that races uses one of them.
const UNUSED: usize = 8;
/// How long a connection that was replaced is kept for what is still under way on it.
const KEEP: Duration = Duration::from_secs(10);

/// A connection is gone.
fn forget(indices: &mut Indices, link: &Link) {
    if let Some(endpoint) = indices.quic() {
        endpoint.forget(link);
    }
}

/// One path's tunnel.
pub(super) struct QuicTunnel {
    keys: Keys,
    role: Role,
    /// Made when it is needed first, as a box has eight slots and mostly two uplinks.
    connect: Option<ClientConfig>,
    /// What we send by.
    live: Option<Link>,
    /// A box: handshakes under way. A core: connections on which nothing has come yet.
    candidates: Vec<Link>,
    /// What was live before, since `since`.
    old: Option<Link>,
    /// The connection on which something came last.
    touched: Option<ConnectionHandle>,
    /// Something is to be done at once, by the next [`Tunnel::on_timeout`].
    stirred: bool,
    /// What came out beside a packet, and goes at the next occasion.
    waiting: VecDeque<(Vec<u8>, Route)>,
    buffer: Vec<u8>,
}

impl QuicTunnel {
    pub(super) fn new(keys: Keys, role: Role) -> QuicTunnel {
        QuicTunnel {
            keys,
            role,
            connect: None,
            live: None,
            candidates: Vec::new(),
            old: None,
            touched: None,
            stirred: false,
            waiting: VecDeque::new(),
            buffer: Vec::new(),
        }
    }

    fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        self.live.iter_mut().chain(&mut self.candidates).chain(&mut self.old)
    }

    fn link(&mut self, handle: ConnectionHandle) -> Option<&mut Link> {
        self.links().find(|link| link.handle() == handle)
    }

    /// A connection has ended.
    fn lose(&mut self, handle: ConnectionHandle, indices: &mut Indices) {
        let is = |link: &mut Link| link.handle() == handle;
        self.live.take_if(is).iter().for_each(|link| forget(indices, link));
        self.old.take_if(is).iter().for_each(|link| forget(indices, link));
        if let Some(at) = self.candidates.iter().position(|link| link.handle() == handle) {
            forget(indices, &self.candidates.remove(at));
        }
    }

    /// Puts a candidate in use.
    fn promote(&mut self, handle: ConnectionHandle, now: Instant, indices: &mut Indices) {
        let Some(at) = self.candidates.iter().position(|link| link.handle() == handle) else { return };
        let mut link = self.candidates.remove(at);
        link.since = now;
        let replaced = self.live.replace(link);
        if let Some(mut replaced) = replaced {
            replaced.since = now;
            self.old.replace(replaced).iter().for_each(|older| forget(indices, older));
        }
        if self.role == Role::Initiator {
            // The others were begun for the same purpose. The core is told, lest it say its part again and again.
            for mut other in std::mem::take(&mut self.candidates) {
                self.part(&mut other, now);
                forget(indices, &other);
            }
        }
    }

    /// Says farewell on a connection that is not used any more.
    fn part(&mut self, link: &mut Link, now: Instant) {
        link.close(now);
        if let Some(way) = link.poll_transmit(now, &mut self.buffer) {
            self.waiting.push_back((self.buffer.clone(), way));
        }
    }

    /// What became of a connection after something came or time has passed.
    fn settle(
        &mut self,
        handle: ConnectionHandle,
        now: Instant,
        indices: &mut Indices,
    ) -> Result<Handshake, DropReason> {
        let Some(endpoint) = indices.quic() else { return Ok(Handshake::default()) };
        let Some(link) = self.link(handle) else { return Ok(Handshake::default()) };
        match link.pump(now, endpoint) {
            None => Ok(Handshake::default()),
            Some(Outcome::Lost(reason)) => {
                // What it has to say last it says now.
                self.drain(handle, now);
                self.lose(handle, indices);
                Err(reason)
            }
            Some(Outcome::Agreed) => {
                let (sends, receives) = link.sessions();
                let twice = |other: &Link| other.sessions().0 == sends || other.sessions().1 == receives;
                if self.live.iter().chain(&self.old).any(twice) {
                    // One in a thousand million: packets of the one would be taken for those of the other.
                    if let Some(at) = self.candidates.iter().position(|link| link.handle() == handle) {
                        let mut link = self.candidates.remove(at);
                        self.part(&mut link, now);
                        forget(indices, &link);
                    }
                    return Err(DropReason::HandshakeInvalid);
                }
                self.promote(handle, now, indices);
                // It confirms the connection to the core, in the datagram that ends the handshake.
                let id = self.live.as_mut().and_then(|live| live.queue(&[], now)).map(|(id, _)| id);
                Ok(Handshake { send: 0, id, established: true })
            }
        }
    }

    fn drain(&mut self, handle: ConnectionHandle, now: Instant) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let Some(link) = self.link(handle) else { return };
        let mut said = Vec::new();
        while let Some(way) = link.poll_transmit(now, &mut buffer) {
            said.push((buffer.clone(), way));
        }
        self.waiting.extend(said);
        self.buffer = buffer;
    }
}

impl Tunnel for QuicTunnel {
    fn overhead(&self) -> Overhead {
        // The flags, QUIC's number, type and length of the frame, our number, the tag.
        let (id, around) = (if self.role == Role::Initiator { CORE_ID } else { BOX_ID }, 1 + 1 + NUMBER + 16);
        Overhead { least: id + around + 1 + 1, most: id + around + 4 + 2 }
    }

    fn seal(&mut self, plaintext: &[u8], now: Instant, dst: &mut [u8]) -> Option<Sealed> {
        let QuicTunnel { live, waiting, buffer, .. } = self;
        live.as_mut()?.seal(plaintext, now, dst, buffer, |datagram, way| waiting.push_back((datagram.to_vec(), way)))
    }

    fn open(&mut self, _: &[u8], _: Instant, _: &mut Indices, _: &mut [u8]) -> Result<Opened, DropReason> {
        Err(DropReason::UnknownSession)
    }

    fn handshake(&mut self, _: &[u8], _: Instant, _: &mut Indices, _: &mut [u8]) -> Result<Handshake, DropReason> {
        Err(DropReason::HandshakeInvalid)
    }

    fn accept(&mut self, parcel: Parcel, now: Instant, indices: &mut Indices) -> Result<Handshake, DropReason> {
        match parcel.0 {
            Content::Event(handle, event, mut way) => {
                // A box has one address a socket, and it may be another one when this is answered.
                way.from = way.from.filter(|_| self.role == Role::Responder);
                let link = self.link(handle).ok_or(DropReason::UnknownSession)?;
                link.take(now, event, way);
                self.touched = Some(handle);
                let outcome = self.settle(handle, now, indices)?;
                let learnt = self.link(handle).is_none_or(Link::has_learnt);
                match learnt {
                    true => Ok(outcome),
                    false => Err(DropReason::DataInvalid),
                }
            }
            Content::Link(mut link) => {
                link.since = now;
                self.touched = Some(link.handle());
                self.candidates.push(*link);
                if self.candidates.len() > UNUSED {
                    forget(indices, &self.candidates.remove(0));
                }
                Ok(Handshake::default())
            }
        }
    }

    fn next(
        &mut self,
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Option<Result<(PacketId, Opened), DropReason>> {
        let handle = self.touched?;
        let packet = self.link(handle).and_then(|link| link.next_packet(dst));
        let Some(packet) = packet else {
            self.touched = None;
            return None;
        };
        let (id, ip, plaintext) = match packet {
            Ok(packet) => packet,
            Err(reason) => return Some(Err(reason)),
        };
        // The first one of a new connection: its box uses it. (A box puts one in use by itself.)
        let established = self.candidates.iter().any(|link| link.handle() == handle);
        if established {
            self.promote(handle, now, indices);
        }
        let current = self.live.as_ref().is_some_and(|live| live.handle() == handle);
        Some(Ok((id, Opened { ip, plaintext, current, established })))
    }

    fn initiate(&mut self, now: Instant, ways: &[Route], indices: &mut Indices, _: &mut [u8]) -> usize {
        if self.role == Role::Responder {
            return 0;
        }
        let path = indices.current;
        let Some(endpoint) = indices.quic() else { return 0 };
        if self.connect.is_none() {
            self.connect = endpoint.client_config(&self.keys.local, self.keys.remote);
        }
        for &way in ways {
            let Some(config) = self.connect.clone() else { return 0 };
            let Some(mut link) = endpoint.connect(now, config, way, path) else { continue };
            if let Some(way) = link.poll_transmit(now, &mut self.buffer) {
                self.waiting.push_back((self.buffer.clone(), way));
            }
            self.candidates.push(link);
        }
        while self.candidates.len() > CANDIDATES {
            endpoint.forget(&self.candidates.remove(0));
        }
        0
    }

    fn tick(&mut self, now: Instant, indices: &mut Indices, _: &mut [u8]) -> Handshake {
        let late = |link: &mut Link| link.agreed.is_none() && now.since(link.since) >= PATIENCE;
        self.candidates.extract_if(.., late).for_each(|link| forget(indices, &link));
        if let Some(mut old) = self.old.take_if(|old| now.since(old.since) >= KEEP) {
            if self.role == Role::Initiator {
                self.part(&mut old, now);
            }
            forget(indices, &old);
        }
        Handshake::default()
    }

    fn deadline(&self) -> Option<Instant> {
        if self.stirred || !self.waiting.is_empty() {
            return Some(Instant::ZERO);
        }
        self.live.iter().chain(&self.candidates).chain(&self.old).filter_map(Link::due).min()
    }

    fn on_timeout(&mut self, now: Instant, indices: &mut Indices) {
        self.stirred = false;
        let due: Vec<ConnectionHandle> = self
            .links()
            .filter(|link| link.due().is_some_and(|due| due <= now))
            .map(|link| {
                link.on_timeout(now);
                link.handle()
            })
            .collect();
        for handle in due {
            // Handshakes are completed by datagrams, and what has ended is seen by its absence.
            let _ = self.settle(handle, now, indices);
        }
    }

    fn poll_transmit(&mut self, now: Instant) -> Option<(&[u8], Route)> {
        if let Some((datagram, way)) = self.waiting.pop_front() {
            self.buffer = datagram;
            return Some((&self.buffer, way));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let way = self.links().find_map(|link| link.poll_transmit(now, &mut buffer));
        self.buffer = buffer;
        Some((&self.buffer, way?))
    }

    fn route(&self) -> Option<Route> {
        self.live.as_ref().map(Link::way)
    }

    fn renumbered(&mut self) {
        for link in self.links() {
            link.on_other_address();
        }
        self.stirred = true;
    }

    fn rekeys(&self) -> bool {
        false
    }

    fn has_session(&self) -> bool {
        self.live.is_some()
    }

    fn session_since(&self) -> Option<Instant> {
        self.live.as_ref()?.agreed
    }

    fn clock_stepped(&mut self) {}

    fn retire(&mut self, indices: &mut Indices) {
        let candidates = std::mem::take(&mut self.candidates);
        for link in candidates.into_iter().chain(self.live.take()).chain(self.old.take()) {
            forget(indices, &link);
        }
        self.waiting.clear();
    }
}
