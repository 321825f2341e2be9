//! Tunnels: what turns a packet into a datagram that only the peer can read, and numbers it on the way.
//!
//! [`wireguard`] is the only file that knows boringtun; [`null`] (simulator only) keeps sessions, numbers and rekeys
//! without a cipher, on the simulator's clock. Both speak WireGuard's formats, which this file reads as far as they
//! stand in clear:
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
pub mod wireguard;

use crate::{DropReason, Instant, PublicKey, SecretKey};
use rand::{Rng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

/// What sealing adds to a packet: the header of 16 octets above, and the authentication tag.
pub const OVERHEAD: usize = 32;
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

/// One path's tunnel. `dst` has room for the packet and [`OVERHEAD`], and at least for [`HANDSHAKE_MAX`].
pub trait Tunnel: Send {
    /// Seals `plaintext` into `dst` with the session in use. `None`: there is no session yet, or no longer; nothing
    /// is queued.
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
    /// Writes a new initiation into `dst`, whether or not one is under way; initiator only (0 otherwise).
    fn initiate(&mut self, now: Instant, indices: &mut Indices, dst: &mut [u8]) -> usize;
    /// To be called several times a second (an initiator) or once a second (a responder): expires sessions,
    /// keeps alive. Never begins a handshake: the node does.
    fn tick(&mut self, now: Instant, indices: &mut Indices, dst: &mut [u8]) -> Handshake;
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
    /// Its length.
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

/// Which path each session index belongs to. An index is 24 bits drawn at random, by which the datagrams find their
/// path, and 8 bits by which a tunnel counts its sessions.
pub struct Indices {
    owners: HashMap<u32, PathRef>,
    rng: StdRng,
    current: PathRef,
}

/// Where a path stands in the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PathRef {
    pub(crate) peer: usize,
    /// The path's number: see [`crate::MAX_PATHS`].
    pub(crate) path: u8,
}

impl Indices {
    pub(crate) fn new(rng: StdRng) -> Self {
        Indices { owners: HashMap::new(), rng, current: PathRef { peer: 0, path: 0 } }
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

    pub(crate) fn owner(&self, session: u32) -> Option<PathRef> {
        self.owners.get(&(session >> 8)).copied()
    }
}
