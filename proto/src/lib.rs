//! The protocol: what a packet and a path go through, on the middlebox and on the core alike.
//!
//! Every decision about a packet or a path is taken here, by code that has no clock, no socket, no randomness of its
//! own, no async and no lock. Time comes in as [`Instant`], seeds and bytes as arguments; datagrams, packets, events
//! and deadlines are taken out. So a month of outages can be simulated in seconds, a failure replays from its seed,
//! and a fuzzer can drive the whole system. `clippy.toml` beside this crate has the machine check.
//!
//! [`Node`] is one end, box or core, and the place to begin reading: its functions stand in the order in which a
//! packet meets them. The one exception to "no clock, no entropy" is confined to [`tunnel`]: the WireGuard library
//! reads both inside, and the QUIC library draws keys and knows no clock but the system's.
//!
//! | a packet from the TUN meets | a datagram from an uplink meets |
//! | --- | --- |
//! | [`packet`]: is it one, whole and ours to carry | [`tunnel`]: whose is it, does it open |
//! | [`route`]: which peer has the destination | [`path`]: note its number for the next receipt |
//! | [`policy`]: of which class is it | [`wire`]: is it a link message |
//! | [`schedule`]: which path for this flow | [`reassembly`]: is it a part of a packet |
//! | [`replay`]: keep it until it is acknowledged | [`route`]: may this peer use this source |
//! | [`shape`]: has the path room, or does it wait | the TUN |
//! | [`mtu`]: does it fit in one datagram | |
//! | [`tunnel`]: seal | |
//! | [`path`]: remember number and time | |
//!
//! What leaves by an uplink itself meets none of it: [`direct`] says which flows do.

mod auto;
mod balance;
pub mod config;
mod counters;
pub mod direct;
mod flows;
mod health;
mod impairment;
pub mod keys;
mod mtu;
pub mod node;
pub mod outer;
pub mod output;
pub mod packet;
mod path;
mod peer;
pub mod policy;
mod quality;
mod reassembly;
mod received;
mod replay;
mod resequence;
mod route;
mod schedule;
mod sent;
mod shape;
#[cfg(feature = "sim")]
pub mod sim;
pub mod snapshot;
mod throttle;
pub mod time;
mod timer;
pub mod tunnel;
pub mod wire;

pub use config::{Identity, Keepalive, NodeConfig, PathConfig, PeerConfig, PeerKind, Uplink};
pub use counters::{DropReason, Drops};
pub use keys::{PublicKey, SecretKey};
pub use node::{Datagram, Deadline, Event, Node, PathState};
pub use output::{Output, Transmit};
pub use time::Instant;
pub use tunnel::{TunnelChoice, TunnelKind};

use serde::{Deserialize, Serialize};
use std::fmt;

/// How many uplinks a box can have; each has a slot and a WireGuard key of its own.
pub const MAX_SLOTS: usize = 8;

/// How many paths there can be between two ends: one of each kind of tunnel over each uplink. A path's number is its slot
/// where its tunnel is WireGuard, and eight more where it is QUIC.
pub const MAX_PATHS: usize = 2 * MAX_SLOTS;

/// The number of the path over the uplink of this slot whose tunnel is of this kind.
pub(crate) fn path_number(slot: u8, kind: TunnelKind) -> u8 {
    match kind {
        TunnelKind::WireGuard => slot,
        TunnelKind::Quic => slot + MAX_SLOTS as u8,
    }
}

/// The slot of the uplink that the path of this number runs over.
pub(crate) fn slot_of(path: u8) -> u8 {
    path % MAX_SLOTS as u8
}

/// The slots of the uplinks of these paths, a bit each: each once.
pub(crate) fn slots_of(paths: u16) -> Vec<u8> {
    let slots = (paths | paths >> MAX_SLOTS) as u8;
    (0..MAX_SLOTS as u8).filter(|slot| slots & 1 << slot != 0).collect()
}

/// The numbers of the paths in a set, a bit each.
pub(crate) fn paths_in(set: u16) -> impl Iterator<Item = u8> + Clone {
    (0..MAX_PATHS as u8).filter(move |path| set & 1 << path != 0)
}

/// Names a peer of this node: a site's box at the core, the core at the box. Chosen by the daemon, stable for as long
/// as the peer is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerId(pub u32);

/// Names a path: a peer, one of its uplink slots (0 to 7), and the kind of its tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PathId {
    /// The peer at the other end.
    pub peer: PeerId,
    /// The uplink slot of the box that the path runs over.
    pub slot: u8,
    /// What its tunnel is.
    #[serde(default)]
    pub tunnel: TunnelKind,
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} ({})", self.slot, self.tunnel)
    }
}

/// Names a way out of this host, opaque to the node: an uplink of the box (its slot), a listening port of the core.
/// The dataplane maps it to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkId(pub u16);
