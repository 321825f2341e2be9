//! The report: what a run showed, as data, as a verdict, as a picture, and in words.
//!
//! [`Report`] is the JSON document that `--json` writes. [`evaluate`] judges it by the scenario's [`Expect`] entries.

mod expect;
mod judge;
mod plot;
mod summary;
pub(crate) mod svg;
mod table;
#[cfg(test)]
mod tests;

pub use expect::{
    Asserted, Bar, BgpExpect, DropsExpect, EventBar, Expect, Handshakes, Moment, OneOrMore, Outcome, PathChanges,
    PathExpect, Verdict,
};

pub use judge::evaluate;
pub(crate) use plot::page;
pub use plot::{html, svg};
pub use summary::{Spread, all_good, spreads, summary, summary_of_runs};
pub use table::Table;

pub(crate) use summary::{figure, table};

use crate::meter::TrafficResults;
use proto::snapshot::{Snapshot, Traffic};
use proto::{PathState, TunnelKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Report`] that this code writes. It changes when a field is renamed, removed or changes its meaning;
/// a new field does not change it.
pub const SCHEMA: u32 = 1;

/// Everything that a run showed. Times are milliseconds since the start of the run's traffic; before it, negative.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What ran, and where.
    pub run: Run,
    /// What its traffic met.
    #[serde(flatten)]
    pub traffic: TrafficResults,
    /// Routes as BIRD saw them come and go, in order of time.
    pub bgp: Vec<BgpEvent>,
    /// The daemons' status, in order of time.
    pub status: Vec<StatusSample>,
    /// What links had carried at each event of the timeline, if an expectation is about links.
    #[serde(default)]
    pub links: Vec<LinkCount>,
    /// What the filters of routers had dropped in the end.
    #[serde(default)]
    pub filters: Vec<FilterCount>,
    /// Packets that the filters of links have dropped, as they were at the end.
    #[serde(default)]
    pub dropped_by_links: BTreeMap<String, u64>,
    /// What the timeline did, in order of time.
    pub events: Vec<TimelineEvent>,
    /// How daemons ended, in order of time.
    pub exits: Vec<Exit>,
    /// Each expectation with its verdict; see [`evaluate`].
    pub outcomes: Vec<Outcome>,
    /// What a reader must know to read this right.
    pub notes: Vec<String>,
}

/// What ran, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// What it shows, in a line.
    pub title: String,
    /// The seed.
    pub seed: u64,
    /// The kernel it ran on.
    pub kernel: Kernel,
    /// The git revision of the project, with "-dirty" behind it if files were changed; `None` outside a repository.
    pub revision: Option<String>,
    /// When it ran: UTC, RFC 3339.
    pub when: String,
    /// Numbers of the scenario that were set from outside, as KEY and VALUE.
    pub set: BTreeMap<String, String>,
    /// How long its traffic lasted, in milliseconds.
    pub length_ms: f64,
}

/// The kernel that a run had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// The machine's own.
    #[default]
    Native,
    /// User-Mode Linux on the machine's clock.
    Uml,
    /// User-Mode Linux in virtual time: a deadline missed here is the software's fault, not the machine's load.
    Virtual,
    /// None: the protocol alone, in the simulator. Exact as well.
    Simulator,
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kernel::Native => "the native kernel",
            Kernel::Uml => "User-Mode Linux",
            Kernel::Virtual => "virtual time",
            Kernel::Simulator => "the simulator",
        })
    }
}

impl Kernel {
    /// Whether a deadline missed there is the software's fault, and not the machine's load.
    pub fn is_exact(self) -> bool {
        matches!(self, Kernel::Virtual | Kernel::Simulator)
    }
}

/// A route that BIRD learnt or lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpEvent {
    /// When.
    pub at_ms: f64,
    /// The prefix, as BIRD writes it ("198.51.100.0/24").
    pub prefix: String,
    /// Come or gone.
    pub change: BgpChange,
}

/// What happened to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BgpChange {
    /// It came.
    Announced,
    /// It went.
    Withdrawn,
}

/// A daemon's status at a moment, as much of it as expectations and pictures need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusSample {
    /// When.
    pub at_ms: f64,
    /// The host of the daemon.
    pub node: String,
    /// Drops that no peer is to blame for, by reason; those of zero left out.
    pub drops: BTreeMap<String, u64>,
    /// Its peers.
    pub peers: Vec<PeerSample>,
}

/// A peer at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerSample {
    /// Its name.
    pub name: String,
    /// At least one path is up.
    pub reachable: bool,
    /// The slot that new flows take.
    pub current_slot: Option<u8>,
    /// And the kind of the tunnel.
    #[serde(default)]
    pub current_tunnel: Option<TunnelKind>,
    /// Changes of that slot since the daemon's start.
    pub path_changes: u64,
    /// Packets sent in fragments.
    #[serde(default)]
    pub fragmented: u64,
    /// Packets put together from fragments.
    #[serde(default)]
    pub reassembled: u64,
    /// Inner packets and octets sent.
    #[serde(default)]
    pub tx: Traffic,
    /// Copies of packets sent, beside their first transmissions.
    #[serde(default)]
    pub copies: Traffic,
    /// Receipts sent.
    #[serde(default)]
    pub receipts: Traffic,
    /// What was dropped of this peer's, by reason; those of zero left out.
    pub drops: BTreeMap<String, u64>,
    /// Its paths.
    pub paths: Vec<PathSample>,
}

/// A path at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathSample {
    /// The uplink slot of the box.
    pub slot: u8,
    /// What its tunnel is.
    #[serde(default)]
    pub tunnel: TunnelKind,
    /// The other path over its uplink is the one to be used.
    #[serde(default)]
    pub stands_by: bool,
    /// Its state.
    pub state: PathState,
    /// Smoothed round-trip time.
    pub rtt_ms: Option<f64>,
    /// Share lost, 0 to 1.
    pub loss: Option<f64>,
    /// Seconds since the last handshake.
    #[serde(default)]
    pub handshake_s: Option<f64>,
    /// The largest inner packet that goes in one datagram.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Datagrams sent that must be lost.
    #[serde(default)]
    pub lost: u64,
    /// Datagrams and octets sent.
    #[serde(default)]
    pub tx: Traffic,
    /// The same, received.
    #[serde(default)]
    pub rx: Traffic,
}

impl StatusSample {
    /// What a daemon's `status` showed: its `node` part.
    pub fn new(at_ms: f64, node: &str, snapshot: &Snapshot) -> Self {
        let nonzero = |drops: &proto::Drops| {
            drops.iter().filter(|&(_, n)| n > 0).map(|(reason, n)| (reason.name().to_owned(), n)).collect()
        };
        let peers = snapshot.peers.iter().map(|peer| PeerSample {
            name: peer.name.clone(),
            reachable: peer.reachable,
            current_slot: peer.current_slot,
            current_tunnel: peer.current_tunnel,
            path_changes: peer.path_changes,
            fragmented: peer.fragmented,
            reassembled: peer.reassembled,
            tx: peer.tx,
            copies: peer.copies,
            receipts: peer.receipts,
            drops: nonzero(&peer.drops),
            paths: peer
                .paths
                .iter()
                .map(|p| PathSample {
                    slot: p.id.slot,
                    tunnel: p.id.tunnel,
                    stands_by: p.stands_by,
                    state: p.state,
                    rtt_ms: p.rtt_ms,
                    loss: p.loss,
                    mtu: p.mtu,
                    handshake_s: p.handshake_s,
                    lost: p.lost,
                    tx: p.tx,
                    rx: p.rx,
                })
                .collect(),
        });
        StatusSample { at_ms, node: node.to_owned(), drops: nonzero(&snapshot.drops), peers: peers.collect() }
    }
}

/// What a link's near end had sent and received at an event of the timeline: octets of IP and ARP packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkCount {
    /// The event.
    pub event: String,
    /// When.
    pub at_ms: f64,
    /// The link.
    pub link: String,
    /// From near to far.
    pub up: u64,
    /// From far to near.
    pub down: u64,
}

/// What the filters of a router have dropped: ingress filter and strict reverse path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilterCount {
    /// The host.
    pub node: String,
    /// Packets.
    pub dropped: u64,
    /// The rules that dropped any, as the firewall shows them.
    pub by: Vec<String>,
}

/// Something that the timeline did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// When it was done.
    pub at_ms: f64,
    /// The name by which expectations refer to it; need not be unique (the first one counts).
    pub name: String,
    /// What it was, in a few words, for the picture.
    pub label: String,
}

/// How a daemon ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// When.
    pub at_ms: f64,
    /// The host of the daemon.
    pub node: String,
    /// It was asked to end and did so with status 0 in time, or was killed on purpose.
    pub clean: bool,
    /// What happened, in words.
    pub how: String,
    /// What it left on the host: rules, routes, interfaces, sockets.
    pub left_over: Vec<String>,
}
