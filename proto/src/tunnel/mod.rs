//! Tunnels: what turns a packet into a datagram that only the peer can read, and numbers it on the way.
//!
//! [`wireguard`] is the only file that knows boringtun, [`quic`] the only one that knows quinn; [`null`] (simulator only)
//! keeps sessions, numbers and rekeys without a cipher, on the simulator's clock. One port serves both kinds: the second
//! highest bit of the first octet is set in each datagram of QUIC (RFC 9000, section 17: the fixed bit, which neither end
//! greases) and in none of WireGuard. The rest is WireGuard's, as far as it stands in clear; the null tunnel speaks it, too:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1   (little endian)
//! +---------------+-----------------------------------------------+
//! |     type      |                 reserved (0)                  |
//! +---------------+-----------------------------------------------+
//! | initiation (1), response (2): the sender's index              |
//! | cookie reply (3), data (4): the receiver's index              |
//! +---------------------------------------------------------------+
//! | response: the receiver's index; data: the packet number, low  |
//! +---------------------------------------------------------------+
//! | data: the packet number, high                                 |
//! +---------------------------------------------------------------+
//! ```

#[cfg(feature = "sim")]
pub mod null;
pub mod quic;
mod wireguard;

use crate::output::Route;
use crate::{DropReason, Instant, PublicKey, SecretKey};
use rand::{Rng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

/// What WireGuard's sealing adds to a packet: the header of 16 octets above, and the authentication tag.
pub const OVERHEAD: usize = 32;

/// What sealing adds to a packet, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    /// At least.
    pub least: usize,
    /// At most: a packet that fits with this always fits.
    pub most: usize,
}

impl Overhead {
    /// WireGuard's.
    pub const WIREGUARD: Overhead = Overhead { least: OVERHEAD, most: OVERHEAD };
}

/// The longest handshake message (an initiation); every buffer given to a tunnel has room for it.
pub const HANDSHAKE_MAX: usize = 148;
/// The length of a cookie reply: shorter than what it answers, so nothing is amplified.
pub(crate) const COOKIE_REPLY: usize = 64;

/// What a path's tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// WireGuard: costs least.
    #[default]
    WireGuard,
    /// QUIC with DATAGRAM frames (RFC 9221): passes where unknown UDP does not.
    Quic,
}

/// Which kind of tunnel an uplink is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChoice {
    /// WireGuard, and QUIC where that does not work.
    Auto,
    /// WireGuard alone.
    #[default]
    WireGuard,
    /// QUIC alone.
    Quic,
}

impl fmt::Display for TunnelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TunnelKind::WireGuard => "wireguard",
            TunnelKind::Quic => "quic",
        })
    }
}

/// Tunnels of both kinds: makes their parts.
pub trait Suite: Send + fmt::Debug {
    /// What stands before all tunnels of one local key and sorts out the initiations.
    fn gate(&self, local: &SecretKey) -> Box<dyn Gate>;
    /// One path's tunnel.
    fn tunnel(&self, kind: TunnelKind, keys: Keys, role: Role, now: Instant) -> Box<dyn Tunnel>;
    /// What all tunnels of QUIC share; `None`: there are none. `listen`: a core's key. `largest`: the longest datagram that
    /// is ever sent, in octets.
    fn endpoint(&self, listen: Option<&SecretKey>, largest: u16, rng: &mut StdRng) -> Option<quic::Endpoint>;
}

/// The real tunnels.
#[derive(Debug)]
pub struct Ciphered {
    clock: quic::Clock,
}

impl Default for Ciphered {
    fn default() -> Self {
        Ciphered { clock: quic::Clock::new() }
    }
}

impl Suite for Ciphered {
    fn gate(&self, local: &SecretKey) -> Box<dyn Gate> {
        Box::new(wireguard::WireGuardGate::new(local))
    }

    fn tunnel(&self, kind: TunnelKind, keys: Keys, role: Role, _now: Instant) -> Box<dyn Tunnel> {
        match kind {
            TunnelKind::WireGuard => Box::new(wireguard::WireGuardTunnel::new(keys, role)),
            TunnelKind::Quic => Box::new(quic::QuicTunnel::new(keys, role)),
        }
    }

    fn endpoint(&self, listen: Option<&SecretKey>, largest: u16, rng: &mut StdRng) -> Option<quic::Endpoint> {
        Some(quic::Endpoint::new(self.clock, listen, largest, rng.random()))
    }
}

/// The keys of one path.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Our private key.
    pub local: SecretKey,
    /// The peer's public key.
    pub remote: PublicKey,
}

/// Who begins handshakes. One end only: with both, each other's retries would replace sessions that live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This end (a box).
    Initiator,
    /// The peer; this end only answers (a core).
    Responder,
}

/// Sorts out initiations before anything is spent on them.
pub trait Gate: Send {
    /// Whose initiation this is. On `Err(Refusal { reply, .. })` the first `reply` octets of `dst` (at least
    /// [`HANDSHAKE_MAX`] long) are to be sent back to where it came from: a cookie under load, never longer than the
    /// initiation.
    fn initiator(&mut self, initiation: &[u8], from: IpAddr, dst: &mut [u8]) -> Result<PublicKey, Refusal>;
    /// What the tunnel is that this initiation is for. The simulator's tunnels of both kinds have one gate.
    fn kind(&self, _initiation: &[u8]) -> TunnelKind {
        TunnelKind::WireGuard
    }
    /// To be called once a second: begins a new second's count of initiations.
    fn tick(&mut self);
}

/// Why an initiation goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the counter.
    pub reason: DropReason,
    /// The length of the answer in the caller's buffer; 0: there is none.
    pub reply: usize,
}

/// One path's tunnel. `dst` has room for the packet and [`Tunnel::overhead`], and at least for [`HANDSHAKE_MAX`].
///
/// Of QUIC datagrams come by [`Tunnel::accept`] and packets are taken out by [`Tunnel::next`]; of WireGuard by
/// [`Tunnel::open`] and [`Tunnel::handshake`].
pub trait Tunnel: Send {
    /// What sealing adds to a packet.
    fn overhead(&self) -> Overhead {
        Overhead::WIREGUARD
    }
    /// Seals `plaintext` into `dst` with the session in use. `None`: there is no session yet, or no longer; nothing
    /// is queued. The datagram is no longer than `dst`.
    fn seal(&mut self, plaintext: &[u8], now: Instant, dst: &mut [u8]) -> Option<Sealed>;
    /// Opens a data message into `dst`. At a responder the first one of a new session puts the session in use.
    fn open(
        &mut self,
        datagram: &[u8],
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Opened, DropReason>;
    /// Takes a handshake message (types 1 to 3) that [`Gate`] and [`Indices`] have found to be this tunnel's, and
    /// writes the answer into `dst`.
    fn handshake(
        &mut self,
        datagram: &[u8],
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Handshake, DropReason>;
    /// Takes what came for one of its connections. What it sends then is to be had from [`Tunnel::poll_transmit`].
    fn accept(
        &mut self,
        _parcel: quic::Parcel,
        _now: Instant,
        _indices: &mut Indices,
    ) -> Result<Handshake, DropReason> {
        Err(DropReason::UnknownSession)
    }
    /// The next packet of what was accepted last, opened into `dst`, until there is none.
    fn next(
        &mut self,
        _now: Instant,
        _indices: &mut Indices,
        _dst: &mut [u8],
    ) -> Option<Result<(PacketId, Opened), DropReason>> {
        None
    }
    /// Begins a handshake, whether or not one is under way; initiator only. A message written into `dst`, if there is one (0
    /// octets otherwise), goes by all of `ways`; or [`Tunnel::poll_transmit`] has one for each.
    fn initiate(&mut self, now: Instant, ways: &[Route], indices: &mut Indices, dst: &mut [u8]) -> usize;
    /// To be called several times a second (an initiator) or once a second (a responder): expires sessions,
    /// keeps alive. Never begins a handshake: the node does.
    fn tick(&mut self, now: Instant, indices: &mut Indices, dst: &mut [u8]) -> Handshake;
    /// When [`Tunnel::on_timeout`] has something to do, beside the ticks.
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// [`Tunnel::deadline`]'s moment has come; [`Tunnel::poll_transmit`] has what is to be sent.
    fn on_timeout(&mut self, _now: Instant, _indices: &mut Indices) {}
    /// The next datagram that the tunnel sends by itself, and where to.
    fn poll_transmit(&mut self, _now: Instant) -> Option<(&[u8], Route)> {
        None
    }
    /// Where the peer is, if the tunnel knows that better than who hands it datagrams.
    fn route(&self) -> Option<Route> {
        None
    }
    /// What this end sends comes from another address from now on.
    fn renumbered(&mut self) {}
    /// Whether its sessions are to be replaced as they grow old.
    fn rekeys(&self) -> bool {
        true
    }
    /// Whether [`Tunnel::seal`] would do.
    fn has_session(&self) -> bool;
    /// When the session in use was agreed on.
    fn session_since(&self) -> Option<Instant>;
    /// The wall clock was set: handshake time stamps come from the new time from now on. What is sealed with the old
    /// sessions still opens.
    fn clock_stepped(&mut self);
    /// Gives its indices back; to be called before it is dropped.
    fn retire(&mut self, indices: &mut Indices);
}

/// A sealed datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its length. 0: it waits within the tunnel, and is numbered and sent as far as anybody else is concerned.
    pub len: usize,
    /// What it is numbered by.
    pub id: PacketId,
}

/// What names a data message between two ends: the receiver's index of its session, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketId {
    /// The session's index at the receiver.
    pub session: u32,
    /// The packet number.
    pub number: u64,
}

/// An opened data message: an IP packet and, behind it, the trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Length of the IP packet at the beginning of the buffer; 0: a keepalive.
    pub ip: usize,
    /// Length of all the plaintext: what lies behind the IP packet is the trailer, or padding.
    pub plaintext: usize,
    /// It came by the session in use for sending, not by one that was replaced.
    pub current: bool,
    /// It was the first of a new session, which is in use now.
    pub established: bool,
}

/// What a handshake message led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Handshake {
    /// Length of a datagram in the buffer that is to be sent; 0: none.
    pub send: usize,
    /// Its number, if it is a data message (the keepalive that confirms a session).
    pub id: Option<PacketId>,
    /// A new session is in use for sending.
    pub established: bool,
}

/// The part of a datagram that stands in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Initiation,
    Response { receiver: u32 },
    Cookie { receiver: u32 },
    Data(PacketId),
}

/// Whether a datagram is one of QUIC.
pub(crate) fn is_quic(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x40 != 0)
}

impl Header {
    /// Reads it. `None`: no message has this type and length.
    pub(crate) fn parse(datagram: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?));
        match (word(0)?, datagram.len()) {
            (1, 148) => Some(Header::Initiation),
            (2, 92) => Some(Header::Response { receiver: word(8)? }),
            (3, COOKIE_REPLY) => Some(Header::Cookie { receiver: word(4)? }),
            (4, OVERHEAD..) => Some(Header::Data(PacketId {
                session: word(4)?,
                number: u64::from(word(8)?) | u64::from(word(12)?) << 32,
            })),
            _ => None,
        }
    }
}

/// Reads the identity of a data message that was just sealed.
pub(crate) fn packet_id(datagram: &[u8]) -> Option<PacketId> {
    match Header::parse(datagram)? {
        Header::Data(id) => Some(id),
        _ => None,
    }
}

/// Which path each session index belongs to, and each connection of QUIC. An index is 24 bits drawn at random, by which the
/// datagrams find their path, and 8 bits by which a tunnel counts its sessions.
pub struct Indices {
    owners: HashMap<u32, PathRef>,
    rng: StdRng,
    current: PathRef,
    quic: Option<quic::Endpoint>,
}

/// Where a path stands in the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PathRef {
    pub(crate) peer: usize,
    /// The path's number: see [`crate::MAX_PATHS`].
    pub(crate) path: u8,
}

impl Indices {
    pub(crate) fn new(rng: StdRng, quic: Option<quic::Endpoint>) -> Self {
        Indices { owners: HashMap::new(), rng, current: PathRef { peer: 0, path: 0 }, quic }
    }

    /// Says for which path the next ones are drawn.
    pub(crate) fn of(&mut self, path: PathRef) -> &mut Self {
        self.current = path;
        self
    }

    /// A new index of 24 bits, random so that nobody outside can guess it, and unique.
    pub fn draw(&mut self) -> u32 {
        loop {
            let index = self.rng.random::<u32>() >> 8;
            if let std::collections::hash_map::Entry::Vacant(entry) = self.owners.entry(index) {
                entry.insert(self.current);
                return index;
            }
        }
    }

    /// Gives an index back.
    pub fn free(&mut self, index: u32) {
        self.owners.remove(&index);
    }

    /// What the connections of QUIC share.
    pub(crate) fn quic(&mut self) -> Option<&mut quic::Endpoint> {
        self.quic.as_mut()
    }

    pub(crate) fn quic_deadline(&self) -> Option<Instant> {
        self.quic.as_ref()?.deadline()
    }

    pub(crate) fn owner(&self, session: u32) -> Option<PathRef> {
        self.owners.get(&(session >> 8)).copied()
    }
}
