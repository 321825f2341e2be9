//! What all QUIC connections of a node share: the connection IDs by which datagrams find their path, and at a core
//! those who knock and are not known yet.
//!
//! Whoever sends an Initial costs us something before anything is known of him. These are the bounds:
//!
//! | what | at most |
//! | --- | --- |
//! | handshakes under way of addresses that may be forged | [`UNVALIDATED`]; the next ones are asked to come again (Retry, RFC 9000, section 8.1.2), and nothing is kept of them |
//! | handshakes under way in all | [`HALF_OPEN`], each [`HALF_OPEN_LIFE`] old at most; the oldest makes room |
//! | handshakes begun in a second | [`HANDSHAKES_PER_SECOND`] |
//! | sent to an address that may be forged | three times what came from it (RFC 9000, section 8.1), and the first answer to an Initial is no longer than that |
//!
//! Datagrams that belong to no connection are never answered: a stateless reset would tell a box of a core that started
//! anew, which its questions tell it as fast.

use super::identity;
use super::link::{Link, Outcome};
use crate::node::Datagram;
use crate::output::{Output, Route};
use crate::tunnel::PathRef;
use crate::{DropReason, Instant, PublicKey, SecretKey};
use bytes::BytesMut;
use quinn_proto::congestion::{Controller, ControllerFactory};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, ConnectionEvent, ConnectionHandle, DatagramEvent, EndpointConfig, EndpointEvent,
    IdleTimeout, Incoming, RandomConnectionIdGenerator, ServerConfig, TransportConfig,
};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Octets of the connection IDs that a core gives out: nobody outside guesses one of 64 bits.
pub(super) const CORE_ID: usize = 8;
/// Of those that a box gives out. They tell its own connections apart, of which each has five IDs; who guesses one has to
/// guess the keys as well.
pub(super) const BOX_ID: usize = 4;

/// Handshakes under way for which no address has been validated. Some boxes start at once after a break of power, and
/// spare the round trip of a Retry; a flood leaves as many behind and no more.
const UNVALIDATED: usize = 16;
/// Handshakes under way: some 20 KiB each, 5 MiB in all.
const HALF_OPEN: usize = 256;
/// How long a handshake may take: four of its three flights over a satellite, one of each lost.
const HALF_OPEN_LIFE: Duration = Duration::from_secs(5);
/// Each costs about 0.3 ms, as WireGuard's do: a flood of them takes less than a tenth of a core.
const HANDSHAKES_PER_SECOND: u32 = 250;

/// How long a connection on which nothing comes is kept: as long as WireGuard keeps a session (REJECT_AFTER_TIME).
const IDLE: Duration = Duration::from_secs(180);

/// The round trip that a handshake assumes: its first flights are said again after three times that, which is as long as a
/// box waits for an answer. The node has begun another one by then, and where octets cost money each Initial has 1,200.
const INITIAL_RTT: Duration = Duration::from_secs(1);

/// Datagrams that QUIC may not send yet wait within it: only after a migration, until the new address is validated, a
/// round trip. 256 KiB are 50 Mbit/s for 40 ms; the oldest make room.
pub(super) const SEND_BUFFER: usize = 256 * 1024;
/// Datagrams are taken out as they come in; this is the room of a batch.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// Of so many datagrams one is acknowledged by QUIC itself, or one in [`ACK_DELAY`]: what has arrived the receipts tell.
const ACK_EACH: u32 = 63;
/// RFC 9000's default (section 18.2) is 25 ms. With a longer one QUIC's timer for lost acknowledgements fires later, too.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// The clock that quinn's is made of: it knows no other than the system's, of which only differences count. So the origin
/// is read once, and all else is the node's own time.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::disallowed_types)] // see above
pub(crate) struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    #[allow(clippy::disallowed_methods, clippy::disallowed_types)] // see above
    pub(crate) fn new() -> Clock {
        Clock { origin: std::time::Instant::now() }
    }

    #[allow(clippy::disallowed_types)] // see above
    pub(super) fn at(&self, now: Instant) -> std::time::Instant {
        self.origin + Duration::from_nanos(now.as_nanos())
    }

    #[allow(clippy::disallowed_types)] // see above
    pub(super) fn back(&self, at: std::time::Instant) -> Instant {
        let nanos = at.saturating_duration_since(self.origin).as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// No congestion control: how much may be under way is the business of the path's shaper, which knows more of the path and
/// has what waits in order. A window above 2^32 also turns quinn's pacer off.
#[derive(Clone, Copy, Debug)]
struct Unlimited;

impl Controller for Unlimited {
    #[allow(clippy::disallowed_types)] // quinn's
    fn on_congestion_event(&mut self, _: std::time::Instant, _: std::time::Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        u64::MAX
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        u64::MAX
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Unlimited {
    #[allow(clippy::disallowed_types)] // quinn's
    fn build(self: Arc<Self>, _: std::time::Instant, _: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

/// `largest`: the longest datagram that is ever sent.
fn transport(largest: u16) -> TransportConfig {
    let mut config = TransportConfig::default();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_EACH.into()).max_ack_delay(Some(ACK_DELAY)).reordering_threshold(0u32.into());
    config
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        .initial_rtt(INITIAL_RTT)
        // What fits the path `mtu.rs` knows, and cuts before. So quinn is told of the largest there may be, and looks for
        // nothing itself. Initials stay at 1,200 octets, its `min_mtu`.
        .initial_mtu(largest)
        .mtu_discovery_config(None)
        .ack_frequency_config(Some(acks))
        .allow_spin(false)
        .enable_segmentation_offload(false)
        .datagram_send_buffer_size(SEND_BUFFER)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .congestion_controller_factory(Arc::new(Unlimited));
    config
}

/// What a datagram was for.
pub(crate) enum Arrival {
    /// For the connection of a path.
    Path(PathRef, Parcel),
    /// It completed the handshake of whoever has this key.
    Newcomer(PublicKey, Parcel),
    /// It was dealt with.
    Done,
}

/// What is handed to a path's tunnel ([`crate::tunnel::Tunnel::accept`]).
pub struct Parcel(pub(super) Content);

/// See [`Parcel`].
#[allow(clippy::large_enum_variant)] // the larger one comes with each datagram, and is to be no allocation
pub(super) enum Content {
    /// Something came for a connection of its.
    Event(ConnectionHandle, ConnectionEvent, Route),
    /// A connection that its peer has begun, and on which something may have come already.
    Link(Box<Link>),
}

/// A handshake under way whose path is not known yet.
struct HalfOpen {
    link: Box<Link>,
    since: Instant,
    validated: bool,
}

/// A core's part.
struct Server {
    secret: SecretKey,
    half_open: Vec<HalfOpen>,
    /// The second that is counted, and how many handshakes it has had.
    second: (Instant, u32),
}

/// See the module.
pub struct Endpoint {
    inner: quinn_proto::Endpoint,
    clock: Clock,
    transport: Arc<TransportConfig>,
    server: Option<Server>,
    /// Whose a connection is; not among them while it is half open.
    owners: HashMap<ConnectionHandle, PathRef>,
    /// Where datagrams are copied to for quinn, which takes them apart in place: one allocation for many.
    input: BytesMut,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("connections", &self.owners.len()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// `listen`: the key of a core, which answers; a box has none. `largest`: the longest datagram that is ever sent.
    pub(crate) fn new(clock: Clock, listen: Option<&SecretKey>, largest: u16, seed: [u8; 32]) -> Endpoint {
        let length = if listen.is_some() { CORE_ID } else { BOX_ID };
        let mut config = EndpointConfig::default();
        config
            .grease_quic_bit(false)
            .cid_generator(move || Box::new(RandomConnectionIdGenerator::new(length)))
            .max_udp_payload_size(65_527)
            .expect("the most that UDP carries is within quinn's bounds");
        let transport = Arc::new(transport(largest));
        let mut endpoint = Endpoint {
            inner: quinn_proto::Endpoint::new(Arc::new(config), None, false, Some(seed)),
            clock,
            transport,
            server: listen.map(|secret| Server {
                secret: secret.clone(),
                half_open: Vec::new(),
                second: (Instant::ZERO, 0),
            }),
            owners: HashMap::new(),
            input: BytesMut::new(),
            scratch: Vec::new(),
        };
        endpoint.set_known(HashSet::new());
        endpoint
    }

    /// Whose handshakes are answered from now on, at a core.
    pub(crate) fn set_known(&mut self, known: HashSet<PublicKey>) {
        let Some(server) = &self.server else { return };
        let tls = identity::server(&server.secret, Arc::new(known))
            .ok()
            .and_then(|tls| QuicServerConfig::try_from(tls).ok())
            .expect("ring has the ciphers that `identity` names, and QUIC's initial one is of them");
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        let mut tokens = quinn_proto::ValidationTokenConfig::default();
        tokens.sent(0);
        config
            .transport_config(self.transport.clone())
            .validation_token_config(tokens)
            .migration(true)
            // Each is decided on at once; nothing waits.
            .max_incoming(1)
            .incoming_buffer_size(0)
            .incoming_buffer_size_total(0);
        self.inner.set_server_config(Some(Arc::new(config)));
    }

    /// What a box connects with.
    pub(super) fn client_config(&self, local: &SecretKey, core: PublicKey) -> Option<ClientConfig> {
        let tls = QuicClientConfig::try_from(identity::client(local, core).ok()?).ok()?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(self.transport.clone());
        Some(config)
    }

    /// Begins a connection of a path.
    pub(super) fn connect(&mut self, now: Instant, config: ClientConfig, way: Route, path: PathRef) -> Option<Link> {
        // The name is not sent, and nobody checks it: keys tell who is who.
        let (handle, connection) = self.inner.connect(self.clock.at(now), config, way.to, "msp").ok()?;
        self.owners.insert(handle, path);
        Some(Link::new(handle, connection, way, self.clock, now))
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, link: &Link) {
        self.owners.remove(&link.handle());
        if !link.is_drained() {
            self.inner.handle_event(link.handle(), EndpointEvent::drained());
        }
    }

    /// A connection has something for what all share.
    pub(super) fn on_event(&mut self, handle: ConnectionHandle, event: EndpointEvent) -> Option<ConnectionEvent> {
        self.inner.handle_event(handle, event)
    }

    // ---- what comes ----------------------------------------------------------------------------------------------

    /// Takes a datagram. What is to be answered before anybody is known is answered.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        datagram: &Datagram<'_>,
        out: &mut Output,
    ) -> Result<Arrival, DropReason> {
        /// How much is allocated at once: some forty datagrams.
        const CHUNK: usize = 64 * 1024;
        if self.input.capacity() < datagram.data.len() {
            self.input.reserve(CHUNK.max(datagram.data.len()));
        }
        self.input.extend_from_slice(datagram.data);
        let data = self.input.split();
        let way = Route { link: datagram.link, to: datagram.from, from: datagram.to };
        self.scratch.clear();
        // Congestion marks are the flows' within (`outer.rs`); QUIC's own are none.
        let at = self.clock.at(now);
        let event = self.inner.handle(at, way.to, way.from, None, data, &mut self.scratch);
        let Some(event) = event else {
            // Below 0x80 it is of a connection that is gone, if it is of any.
            let short = datagram.data.first().is_some_and(|first| first & 0x80 == 0);
            return Err(if short { DropReason::UnknownSession } else { DropReason::HandshakeInvalid });
        };
        match event {
            DatagramEvent::ConnectionEvent(handle, event) => match self.owners.get(&handle) {
                Some(&path) => Ok(Arrival::Path(path, Parcel(Content::Event(handle, event, way)))),
                None => self.on_half_open(now, handle, event, way, out),
            },
            DatagramEvent::NewConnection(incoming) => self.on_incoming(now, incoming, way, out),
            DatagramEvent::Response(transmit) => {
                let answer = self.scratch.get(..transmit.size).unwrap_or_default();
                // An Initial that cannot be answered otherwise; never a reset. A version that is not spoken is not answered either
                // (RFC 9000, section 6.1 lets a server): every box speaks this one, and who tries ports with anything at all
                // is not told that there is one. Version 0 is that answer's (section 17.2.1).
                let long = answer.first().is_some_and(|first| first & 0x80 != 0);
                let of_versions = answer.get(1..5) == Some(&[0; 4]);
                if long && !of_versions && answer.len() <= datagram.data.len() {
                    send(out, answer, way);
                }
                Err(DropReason::HandshakeInvalid)
            }
        }
    }

    /// Somebody begins a handshake.
    fn on_incoming(
        &mut self,
        now: Instant,
        incoming: Incoming,
        way: Route,
        out: &mut Output,
    ) -> Result<Arrival, DropReason> {
        let Some(server) = &mut self.server else {
            self.inner.ignore(incoming);
            return Err(DropReason::HandshakeInvalid);
        };
        if now.since(server.second.0) >= Duration::from_secs(1) {
            server.second = (now, 0);
        }
        let validated = incoming.remote_address_validated();
        let unvalidated = server.half_open.iter().filter(|other| !other.validated).count();
        if !validated && (unvalidated >= UNVALIDATED || server.second.1 >= HANDSHAKES_PER_SECOND / 2) {
            match self.inner.retry(incoming, &mut self.scratch) {
                Ok(transmit) => send(out, &self.scratch[..transmit.size], way),
                Err(refused) => self.inner.ignore(refused.into_incoming()),
            }
            return Err(DropReason::HandshakeLoad);
        }
        if server.second.1 >= HANDSHAKES_PER_SECOND {
            self.inner.ignore(incoming);
            return Err(DropReason::HandshakeLoad);
        }
        server.second.1 += 1;
        if server.half_open.len() >= HALF_OPEN {
            // Kept in the order in which they came.
            let oldest = server.half_open.remove(0);
            self.forget(&oldest.link);
        }
        match self.inner.accept(incoming, self.clock.at(now), &mut self.scratch, None) {
            Ok((handle, connection)) => {
                let link = Box::new(Link::new(handle, connection, way, self.clock, now));
                if let Some(server) = &mut self.server {
                    server.half_open.push(HalfOpen { link, since: now, validated });
                    let at = server.half_open.len() - 1;
                    return self.advance(now, at, out);
                }
                Err(DropReason::HandshakeInvalid)
            }
            Err(refused) => {
                if let Some(transmit) = refused.response {
                    send(out, &self.scratch[..transmit.size], way);
                }
                Err(DropReason::HandshakeInvalid)
            }
        }
    }

    fn on_half_open(
        &mut self,
        now: Instant,
        handle: ConnectionHandle,
        event: ConnectionEvent,
        way: Route,
        out: &mut Output,
    ) -> Result<Arrival, DropReason> {
        let of = |server: &Server| server.half_open.iter().position(|half_open| half_open.link.handle() == handle);
        let at = self.server.as_ref().and_then(of).ok_or(DropReason::UnknownSession)?;
        if let Some(server) = &mut self.server {
            server.half_open[at].link.take(now, event, way);
        }
        self.advance(now, at, out)
    }

    /// Sends what the half-open connection at this place wants to send, and sees what became of it.
    fn advance(&mut self, now: Instant, at: usize, out: &mut Output) -> Result<Arrival, DropReason> {
        let Some(server) = &mut self.server else { return Ok(Arrival::Done) };
        // Taken out meanwhile, since it needs the endpoint itself.
        let mut half_open = server.half_open.remove(at);
        let link = &mut half_open.link;
        let outcome = link.pump(now, self);
        // It goes by the way by which something of the peer's came, and by no other.
        let _ = link.has_learnt();
        while let Some(way) = link.poll_transmit(now, &mut self.scratch) {
            send(out, &self.scratch, way);
        }
        match outcome {
            Some(Outcome::Agreed) => {
                let Some(key) = link.peer_key() else {
                    self.forget(&half_open.link);
                    return Err(DropReason::HandshakeInvalid);
                };
                Ok(Arrival::Newcomer(key, Parcel(Content::Link(half_open.link))))
            }
            Some(Outcome::Lost(reason)) => {
                self.forget(&half_open.link);
                Err(reason)
            }
            None => {
                if let Some(server) = &mut self.server {
                    server.half_open.insert(at, half_open);
                }
                Ok(Arrival::Done)
            }
        }
    }

    /// A newcomer's path is this one.
    pub(crate) fn adopt(&mut self, parcel: &Parcel, path: PathRef) {
        if let Parcel(Content::Link(link)) = parcel {
            self.owners.insert(link.handle(), path);
        }
    }

    /// Nobody here has a newcomer's key any more.
    pub(crate) fn refuse(&mut self, parcel: Parcel) {
        if let Parcel(Content::Link(link)) = parcel {
            self.forget(&link);
        }
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    /// When [`Endpoint::handle_timeout`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let due = |half_open: &HalfOpen| {
            let end = half_open.since + HALF_OPEN_LIFE;
            half_open.link.due().map_or(end, |due| due.min(end))
        };
        self.server.as_ref()?.half_open.iter().map(due).min()
    }

    /// Half-open connections say again what may be lost, and end.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Output, mut dropped: impl FnMut(DropReason)) {
        let mut at = 0;
        while let Some(half_open) = self.server.as_mut().and_then(|server| server.half_open.get_mut(at)) {
            let before = half_open.link.handle();
            if now.since(half_open.since) >= HALF_OPEN_LIFE {
                if let Some(server) = &mut self.server {
                    let late = server.half_open.remove(at);
                    self.forget(&late.link);
                }
                dropped(DropReason::HandshakeInvalid);
                continue;
            }
            if half_open.link.due().is_some_and(|due| due <= now) {
                half_open.link.on_timeout(now);
                match self.advance(now, at, out) {
                    // A handshake is completed by a datagram, never by time alone.
                    Ok(Arrival::Newcomer(_, parcel)) => self.refuse(parcel),
                    Ok(_) => {}
                    Err(reason) => dropped(reason),
                }
            }
            let stays = |server: &Server| server.half_open.get(at).is_some_and(|it| it.link.handle() == before);
            if self.server.as_ref().is_some_and(stays) {
                at += 1;
            }
        }
    }
}

fn send(out: &mut Output, datagram: &[u8], way: Route) {
    out.transmit(datagram.len(), 0, |dst| {
        dst.copy_from_slice(datagram);
        Some((datagram.len(), way, ()))
    });
}
