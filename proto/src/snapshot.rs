//! What a node shows of itself: the content of `status`, of the metrics and of the lab's expectations.
//!
//! A part of the interface to people and scripts: fields are added, never renamed; readers skip what they don't know.

use crate::{Drops, PathId, PathState, PeerId, TunnelKind};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A node at a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Drops that no peer is to blame for.
    pub drops: Drops,
    /// The peers, in the order of their numbers.
    pub peers: Vec<PeerSnapshot>,
}

/// A peer at a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// Its number.
    pub id: PeerId,
    /// Its name.
    pub name: String,
    /// At least one path is up.
    pub reachable: bool,
    /// It has said that its policy is another one than ours.
    #[serde(default)]
    pub other_policy: bool,
    /// The slot that new flows take now, of all that is of no class of the policy.
    pub current_slot: Option<u8>,
    /// And of its two paths the one whose tunnel is of this kind.
    #[serde(default)]
    pub current_tunnel: Option<TunnelKind>,
    /// How often the path that they take has changed, since the start.
    pub path_changes: u64,
    /// The classes of the policy, in its order.
    #[serde(default)]
    pub classes: Vec<ClassSnapshot>,
    /// Inner packets and octets taken for the peer: sent, or waiting, or dropped later for a reason that is counted.
    pub tx: Traffic,
    /// Inner packets and octets received from the peer and delivered.
    pub rx: Traffic,
    /// Packets of `tx` that were sent in fragments, because they did not fit the path.
    #[serde(default)]
    pub fragmented: u64,
    /// Packets that were put together from fragments.
    #[serde(default)]
    pub reassembled: u64,
    /// Copies of packets sent, beside their first transmissions: replayed ones, and those sent on two paths while one was
    /// suspect. Octets are those of the datagrams, outer IP headers not counted.
    #[serde(default)]
    pub copies: Traffic,
    /// Packets that are not acknowledged yet, and kept in case that another path must carry them.
    #[serde(default)]
    pub kept: Traffic,
    /// Receipts sent: datagrams of their own, or trailers on data; octets of those datagrams or trailers.
    #[serde(default)]
    pub receipts: Traffic,
    /// Bonded packets that came and wait for those sent before them.
    #[serde(default)]
    pub unordered: Traffic,
    /// Bonded packets that came after their place was given up, and were delivered out of order.
    #[serde(default)]
    pub late: u64,
    /// What was dropped of this peer's.
    pub drops: Drops,
    /// Its paths, in the order of their slots.
    pub paths: Vec<PathSnapshot>,
    /// Of each uplink of this box that may have either kind of tunnel, which it has now.
    #[serde(default)]
    pub tunnels: Vec<TunnelSnapshot>,
}

/// Which kind of tunnel an uplink has, where it may have either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelSnapshot {
    /// The uplink's slot.
    pub slot: u8,
    /// The kind that carries what goes over it.
    pub tunnel: TunnelKind,
    /// Which, and why, in words: "wireguard: works".
    pub reason: String,
}

/// What is sent of a class, and by whom what comes of it leaves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClassSnapshot {
    /// Its name.
    pub name: String,
    /// Whether packets can be of it now: it has no window, or that is open.
    #[serde(default = "always")]
    pub open: bool,
    /// The slot that its new flows take now, where the class does not spread.
    pub current_slot: Option<u8>,
    /// The slots that its packets take now.
    #[serde(default)]
    pub slots: Vec<u8>,
    /// The slots of links that are beyond its limit: left while another is within.
    #[serde(default)]
    pub beyond_limit: Vec<u8>,
    /// How often that has changed from one path to another, since the policy is in force.
    pub path_changes: u64,
    /// Inner packets and octets of it since then: sent, or waiting, or dropped later for a reason that is counted.
    pub tx: Traffic,
    /// By which egress choice its packets leave the core; `None`: as all of their site's.
    #[serde(default)]
    pub egress: Option<String>,
    /// Inner packets and octets of it that came and were delivered, since then: at a core of whose policy some class has an
    /// egress choice. Elsewhere nobody looks which class comes.
    #[serde(default)]
    pub rx: Traffic,
    /// Packets of it, if it is bonded, that wait for whichever path has room.
    #[serde(default)]
    pub waiting: Traffic,
}

fn always() -> bool {
    true
}

/// A path at a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PathSnapshot {
    /// Which.
    pub id: PathId,
    /// Its state, as seen from this end.
    pub state: PathState,
    /// Why it is in that state, in words.
    pub reason: String,
    /// How long it has been in that state, in seconds.
    pub since_s: f64,
    /// Its link is at its cap, and only classes that may go on take it.
    #[serde(default)]
    pub capped: bool,
    /// The other path over its uplink is the one to be used.
    #[serde(default)]
    pub stands_by: bool,
    /// It was found to carry far less than it is given, by this end or by the other. Only looked at where its uplink may have
    /// either kind of tunnel.
    #[serde(default)]
    pub throttled: bool,
    /// Where the peer is, if known.
    pub endpoint: Option<SocketAddr>,
    /// Smoothed round-trip time, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Its variation (RFC 9002, section 5.3), in milliseconds.
    pub rtt_var_ms: Option<f64>,
    /// The least round-trip time of the last half to whole minute, in milliseconds: the way without a queue.
    #[serde(default)]
    pub rtt_min_ms: Option<f64>,
    /// The time that a packet takes to the peer, one way, as limits of policy count it ([`crate::policy::Limit`]), in milliseconds.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Share of the last packets that were lost, 0 to 1.
    pub loss: Option<f64>,
    /// The same over the last second, ten seconds and hundred seconds.
    #[serde(default)]
    pub loss_spans: [Option<f64>; 3],
    /// What the peer received by it in the last second, in bits a second, outer headers not counted.
    #[serde(default)]
    pub delivery_rate: u64,
    /// How much longer than at best in the last minute the last packet took to the peer, one way, in milliseconds.
    #[serde(default)]
    pub delay_change_ms: Option<f64>,
    /// Datagrams sent by it that must be lost, since the start: later ones have arrived, or the path went down before
    /// they were acknowledged.
    #[serde(default)]
    pub lost: u64,
    /// Packets that wait for it, as it has less room than is offered.
    #[serde(default)]
    pub waiting: Traffic,
    /// The rate that is not exceeded, in bits a second: the one that policy gives, as the link counts it, or one that was
    /// measured, outer IP headers not counted. `None`: it takes what is offered.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Packets that were told of congestion by a mark and not by a loss, since the start.
    #[serde(default)]
    pub marks: Marks,
    /// The largest inner packet that goes by it in one datagram, in octets: the TUN's MTU, or less on a narrow link, on
    /// which larger ones go as fragments. `None`: not known, or not asked for, as the peer knows no fragments.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Seconds since the last handshake.
    pub handshake_s: Option<f64>,
    /// Datagrams and octets sent, link messages and handshakes counted, outer IP headers not.
    pub tx: Traffic,
    /// The same, received and authenticated.
    pub rx: Traffic,
}

/// Congestion marks (RFC 3168).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Made here, as packets waited for the path for too long.
    pub made: u64,
    /// Of datagrams that came by it: made by somebody on the way.
    pub met: u64,
}

/// Packets and octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}
