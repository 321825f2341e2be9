//! One end, box or core.

use crate::config::{ConfigError, NodeConfig, PeerConfig};
use crate::snapshot::Snapshot;
use crate::{Instant, LinkId, Output, PathId, PeerId};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
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
    /// New flows take another path now.
    Moved {
        /// The peer.
        peer: PeerId,
        /// The slot they took.
        from: Option<u8>,
        /// The slot they take.
        to: Option<u8>,
    },
}

/// One end.
pub struct Node {}

impl Node {
    /// A node that has sent nothing yet. `seed` is entropy from the caller; `unix_time` is the wall clock's time since
    /// 1970, whatever it may be worth.
    pub fn new(_config: NodeConfig, _seed: [u8; 32], _now: Instant, _unix_time: Duration) -> Result<Node, ConfigError> {
        Ok(Node {})
    }

    /// Packets from the TUN. They may be changed in place (MSS clamp).
    pub fn handle_ip<'a>(
        &mut self,
        _now: Instant,
        _packets: impl IntoIterator<Item = &'a mut [u8]>,
        _out: &mut Output,
    ) {
    }

    /// Datagrams from the links.
    pub fn handle_datagrams<'a>(
        &mut self,
        _now: Instant,
        _datagrams: impl IntoIterator<Item = Datagram<'a>>,
        _out: &mut Output,
    ) {
    }

    /// To be called when [`Node::poll_timeout`]'s moment has come (calling it early does no harm). Sockets are to be
    /// drained first: a stall of this process is not a dead path.
    pub fn handle_timeout(&mut self, _now: Instant, _out: &mut Output) {}

    /// The earliest deadline. Ask after each call of another function; after `handle_timeout(now)` it is after `now`.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        None
    }

    /// The next event. Drain after each batch.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// An uplink of this box can be used (`Some`: it has carrier, an address and a route; the endpoint of the core to
    /// use from it) or cannot (`None`). The same value again changes nothing; another endpoint restarts its paths.
    pub fn set_uplink(&mut self, _now: Instant, _link: LinkId, _endpoint: Option<SocketAddr>) {}

    /// Puts another set of peers in force, whole or not at all. Peers and paths that stay as they were keep their
    /// sessions and lose no packet.
    pub fn set_peers(&mut self, _now: Instant, _peers: Vec<PeerConfig>) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The wall clock was set: handshakes from now on carry the new time.
    pub fn clock_stepped(&mut self, _now: Instant, _unix_time: Duration) {}

    /// What there is to show.
    pub fn snapshot(&self, _now: Instant) -> Snapshot {
        Snapshot { drops: Default::default(), peers: Vec::new() }
    }
}
