//! One QUIC connection, and what is ours about it: numbers of packets, names of sessions, ways.

use super::endpoint::{Clock, Endpoint, SEND_BUFFER};
use super::identity;
use crate::output::Route;
use crate::packet::IpView;
use crate::received::nearest;
use crate::tunnel::{PacketId, Sealed};
use crate::{DropReason, Instant, PublicKey};
use bytes::{Bytes, BytesMut};
use quinn_proto::{Connection, ConnectionError, ConnectionEvent, ConnectionHandle, Event, SendDatagramError, Side};
use quinn_proto::{TransportErrorCode, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;

/// Octets of a packet's number in a DATAGRAM frame.
pub(super) const NUMBER: usize = 4;

/// By this label both ends draw the same names for the sessions out of the handshake (RFC 8446, section 7.5; labels that
/// begin so need no registration, RFC 5705, section 4). Another number at its end names something else.
const EXPORTER: &[u8] = b"EXPERIMENTAL-msp-session-1";

/// TLS's access_denied (RFC 8446, section 6): what is said to a key that is not known.
const ACCESS_DENIED: u8 = 49;

/// How much is allocated at once for packets that quinn takes: some forty of them.
const CHUNK: usize = 64 * 1024;

/// What became of a handshake.
pub(super) enum Outcome {
    /// It was completed.
    Agreed,
    /// The connection has ended.
    Lost(DropReason),
}

/// A connection.
pub(crate) struct Link {
    handle: ConnectionHandle,
    connection: Connection,
    clock: Clock,
    /// The ways by which datagrams came last, the newest first; at first the one by which it was begun.
    ways: [Route; 2],
    /// The way by which something came of which it is not known yet whether it is the peer's.
    came: Option<Route>,
    drained: bool,
    /// When quinn has something to do.
    due: Option<Instant>,
    /// When it became what it is: begun, agreed on, put in use, replaced.
    pub(super) since: Instant,
    /// When the handshake was completed.
    pub(super) agreed: Option<Instant>,
    /// What the packets are known by that are sent, and those that come.
    sessions: (u32, u32),
    /// The number of the next packet.
    next: u64,
    /// The largest number that came, plus one.
    end: u64,
    /// Packets lie here for quinn, which wants to own them.
    payloads: BytesMut,
    /// For [`Link::has_learnt`]: packets came; frames that came and are none.
    brought: bool,
    others: u64,
}

impl Link {
    pub(super) fn new(
        handle: ConnectionHandle,
        connection: Connection,
        way: Route,
        clock: Clock,
        now: Instant,
    ) -> Link {
        let mut link = Link {
            handle,
            connection,
            clock,
            ways: [way; 2],
            came: None,
            drained: false,
            due: None,
            since: now,
            agreed: None,
            sessions: (0, 0),
            next: 0,
            end: 0,
            payloads: BytesMut::new(),
            brought: false,
            others: 0,
        };
        link.refresh(now);
        link
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle
    }

    /// quinn's endpoint has forgotten it already.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// When [`Link::on_timeout`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is due already is due in a moment: the loop that waits for it never turns without time passing. And not later than
    /// was said before, however much comes meanwhile.
    fn refresh(&mut self, now: Instant) {
        let said = self.due.filter(|due| *due <= now + TICK).unwrap_or(now + TICK);
        let due = |at: Instant| if at <= now { said } else { at.max(now + TICK) };
        self.due = self.connection.poll_timeout().map(|at| due(self.clock.back(at)));
    }

    /// Where the peer is.
    pub(super) fn way(&self) -> Route {
        self.way_to(self.connection.remote_address())
    }

    fn way_to(&self, remote: SocketAddr) -> Route {
        let [newest, _] = self.ways;
        self.ways.into_iter().find(|way| way.to == remote).unwrap_or(Route { to: remote, ..newest })
    }

    /// What the packets that are sent are known by, and those that come.
    pub(super) fn sessions(&self) -> (u32, u32) {
        self.sessions
    }

    /// The key that the peer has shown, once the handshake is completed.
    pub(super) fn peer_key(&self) -> Option<PublicKey> {
        let shown = self.connection.crypto_session().peer_identity()?;
        let chain = shown.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        identity::key_of(chain.first()?)
    }

    /// Takes a datagram.
    pub(super) fn take(&mut self, now: Instant, event: ConnectionEvent, way: Route) {
        self.came = Some(way);
        self.connection.handle_event(event);
        self.refresh(now);
    }

    /// Whether anything was in the datagrams that were taken since the last call. What was not the peer's brings nothing: anybody
    /// who has seen a connection ID can send that, from any address and to any, and so it is no way to the peer.
    pub(super) fn has_learnt(&mut self) -> bool {
        let learnt = std::mem::take(&mut self.brought) | self.has_heard();
        let [newest, _] = self.ways;
        if let Some(way) = self.came.take().filter(|way| learnt && *way != newest) {
            self.ways = [way, newest];
        }
        learnt
    }

    /// Whether there were other frames than packets.
    fn has_heard(&mut self) -> bool {
        let frames = self.connection.stats().frame_rx;
        let rare = frames.new_connection_id + frames.retire_connection_id + frames.connection_close + frames.crypto;
        let paths = frames.path_challenge + frames.path_response + u64::from(frames.handshake_done);
        let others = frames.acks + frames.ack_frequency + frames.immediate_ack + frames.ping + paths + rare;
        std::mem::replace(&mut self.others, others) != others
    }

    /// Time has passed.
    pub(super) fn on_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(self.clock.at(now));
        self.due = None;
        self.refresh(now);
    }

    /// Has the endpoint and quinn settle what they have to settle, and says what became of the handshake, if it is news.
    pub(super) fn pump(&mut self, now: Instant, endpoint: &mut Endpoint) -> Option<Outcome> {
        while let Some(event) = self.connection.poll_endpoint_events() {
            self.drained |= event.is_drained();
            if let Some(answer) = endpoint.on_event(self.handle, event) {
                self.connection.handle_event(answer);
            }
        }
        let mut outcome = None;
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => outcome = Some(self.agree(now)),
                Event::ConnectionLost { reason } => outcome = Some(Outcome::Lost(why(&reason))),
                Event::DatagramReceived => self.brought = true,
                // There are no streams, and nothing waits for room.
                Event::HandshakeDataReady | Event::Stream(_) | Event::DatagramsUnblocked => {}
            }
        }
        self.refresh(now);
        outcome
    }

    fn agree(&mut self, now: Instant) -> Outcome {
        let mut names = [0; 8];
        if self.connection.crypto_session().export_keying_material(&mut names, EXPORTER, b"").is_err() {
            return Outcome::Lost(DropReason::HandshakeInvalid);
        }
        let [a, b, c, d, e, f, g, h] = names;
        let (up, down) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        self.sessions = if self.connection.side() == Side::Client { (up, down) } else { (down, up) };
        self.agreed = Some(now);
        Outcome::Agreed
    }

    /// The box's address is another one: the core hears of it by what is sent from now on (RFC 9000, section 9.2), with
    /// another connection ID.
    pub(super) fn on_other_address(&mut self) {
        self.connection.local_address_changed();
    }

    /// Says farewell; what [`Link::poll_transmit`] gives then is to be sent once.
    pub(super) fn close(&mut self, now: Instant) {
        self.connection.close(self.clock.at(now), VarInt::from_u32(0), Default::default());
    }

    /// The next datagram that quinn wants to send by itself, written into `buffer`, and where it goes.
    pub(super) fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Route> {
        buffer.clear();
        let sent = self.connection.poll_transmit(self.clock.at(now), 1, buffer);
        self.refresh(now);
        Some(self.way_to(sent?.destination))
    }

    /// Gives quinn a packet: the next [`Link::poll_transmit`] has it, with whatever else is to be said.
    pub(super) fn queue(&mut self, plaintext: &[u8], now: Instant) -> Option<(PacketId, Bytes)> {
        let len = plaintext.len() + NUMBER;
        if self.payloads.capacity() < len {
            self.payloads.reserve(CHUNK.max(len));
        }
        self.payloads.extend_from_slice(plaintext);
        // The low half is enough: the other end knows the rest, see `nearest`.
        self.payloads.extend_from_slice(&(self.next as u32).to_be_bytes());
        let payload = self.payloads.split().freeze();
        let mut sent = self.connection.datagrams().send(payload.clone(), true);
        if matches!(sent, Err(SendDatagramError::TooLarge)) {
            // quinn takes losses of large packets for a narrower path, and would never look again.
            self.connection.path_changed(self.clock.at(now));
            sent = self.connection.datagrams().send(payload.clone(), true);
        }
        sent.ok()?;
        let id = PacketId { session: self.sessions.0, number: self.next };
        self.next += 1;
        Some((id, payload))
    }

    /// Seals a packet into `dst`. What quinn puts before it is handed to `before`. Nothing longer than `dst` comes out.
    pub(super) fn seal(
        &mut self,
        plaintext: &[u8],
        now: Instant,
        dst: &mut [u8],
        buffer: &mut Vec<u8>,
        mut before: impl FnMut(&[u8], Route),
    ) -> Option<Sealed> {
        let (id, payload) = self.queue(plaintext, now)?;
        let at = self.clock.at(now);
        let mut retried = false;
        let sealed = loop {
            buffer.clear();
            let Some(transmit) = self.connection.poll_transmit(at, 1, buffer) else {
                // It may not be sent to an address that is not validated: it waits within.
                break Sealed { len: 0, id };
            };
            if self.connection.datagrams().send_buffer_space() < SPACE {
                before(buffer, self.way_to(transmit.destination));
                continue;
            }
            if let Some(dst) = dst.get_mut(..buffer.len()) {
                dst.copy_from_slice(buffer);
                break Sealed { len: buffer.len(), id };
            }
            if retried || self.connection.datagrams().send(payload.clone(), true).is_err() {
                before(buffer, self.way_to(transmit.destination));
                break Sealed { len: 0, id };
            }
            // An acknowledgement that quinn has put behind it has made it longer than the path carries. Now that it was
            // given away it puts none there again, and whatever else was in it it says again.
            retried = true;
        };
        self.refresh(now);
        Some(sealed)
    }

    /// Takes the next packet that has come into `dst`: its number and length, or why it is none.
    pub(super) fn next_packet(&mut self, dst: &mut [u8]) -> Option<Result<(PacketId, usize, usize), DropReason>> {
        let payload = self.connection.datagrams().recv()?;
        let Some((plaintext, number)) = payload.split_last_chunk::<NUMBER>() else {
            return Some(Err(DropReason::PeerMalformed));
        };
        let number = nearest(u32::from_be_bytes(*number), self.end);
        // The last number is never sent, as everywhere.
        self.end = self.end.max(number.saturating_add(1));
        let ip = match plaintext.len() {
            0 => Some(0),
            _ => IpView::parse(plaintext).map(|view| view.len),
        };
        let (Some(ip), Some(dst)) = (ip, dst.get_mut(..plaintext.len())) else {
            return Some(Err(DropReason::PeerMalformed));
        };
        dst.copy_from_slice(plaintext);
        Some(Ok((PacketId { session: self.sessions.1, number }, ip, plaintext.len())))
    }
}

/// The least time between two timeouts: quinn's TIMER_GRANULARITY, RFC 9002's kGranularity (section 6.1.2).
const TICK: std::time::Duration = std::time::Duration::from_millis(1);

/// What quinn's buffer has room for while nothing is in it.
const SPACE: usize = SEND_BUFFER - size_of::<quinn_proto::Datagram>();

fn why(reason: &ConnectionError) -> DropReason {
    match reason {
        ConnectionError::TransportError(error) if error.code == TransportErrorCode::crypto(ACCESS_DENIED) => {
            DropReason::HandshakeUnknownKey
        }
        _ => DropReason::HandshakeInvalid,
    }
}
