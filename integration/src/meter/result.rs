//! What comes out: one document a host, and the figures of each stream once both ends are joined.
//!
//! Times are milliseconds since the start of the run's traffic, exact to a microsecond.

use serde::{Deserialize, Serialize};

/// A time in which nothing arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// When the last packet before it arrived (or the stream started).
    pub at_ms: f64,
    /// How long it lasted.
    pub length_ms: f64,
}

impl Gap {
    /// When the next packet arrived (or the stream ended).
    pub fn end_ms(&self) -> f64 {
        self.at_ms + self.length_ms
    }
}

/// A stream over time, in bins of equal length from the start of the run; all vectors are equally long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Length of a bin.
    pub bin_ms: f64,
    /// Packets (or octets, for TCP) that arrived in the bin, second copies not counted.
    pub received: Vec<u32>,
    /// Packets sent (or due to be sent) in the bin that never arrived. Empty for TCP.
    pub lost: Vec<u32>,
    /// The longest one-way delay (for pings: round-trip time) of those that arrived in the bin, in milliseconds; `None`
    /// where nothing arrived. Empty for TCP.
    pub delay_ms: Vec<Option<f32>>,
}

/// How a stream of numbered UDP packets fared, from its sender's first packet to its last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamResult {
    /// The traffic entry's name.
    pub name: String,
    /// The stream's number in the run.
    pub id: u32,
    /// The sending host.
    pub from: String,
    /// The receiving host.
    pub to: String,
    /// Packets per second.
    pub rate: f64,
    /// When the first packet was due.
    pub start_ms: f64,
    /// When the sender stopped.
    pub stop_ms: f64,
    /// Packets numbered and given to the sender's kernel.
    pub sent: u64,
    /// Of those, how many the sender's own kernel refused (no route, say). They count as sent, and so as lost.
    pub refused: u64,
    /// What was received.
    #[serde(flatten)]
    pub flow: Flow,
}

/// What a receiver knows of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Distinct packets that arrived.
    pub received: u64,
    /// Packets sent that never arrived.
    pub lost: u64,
    /// Arrivals of a packet that had arrived before.
    pub duplicated: u64,
    /// Packets that arrived after one with a higher number (RFC 4737, type-P-reordered).
    pub reordered: u64,
    /// Packets that arrived here and were not this stream's: another's stream number, or octets changed on the way.
    pub misdelivered: u64,
    /// Arrivals with another DSCP or ECN field than the stream's, but for marks of congestion.
    pub remarked: u64,
    /// Arrivals that were marked as having met congestion on the way (RFC 3168).
    #[serde(default)]
    pub marked: u64,
    /// The longest time between two arrivals, from the stream's start (and the least delay of any packet) to the first and
    /// from the last to its end too.
    pub longest_gap: Gap,
    /// All gaps over 50 ms (at most the 1,000 longest), in order of time.
    pub gaps: Vec<Gap>,
    /// One-way delay, in milliseconds: the median; 0 if nothing arrived.
    pub delay_p50_ms: f64,
    /// The 95th percentile.
    pub delay_p95_ms: f64,
    /// The 99th percentile.
    pub delay_p99_ms: f64,
    /// The longest.
    pub delay_max_ms: f64,
    /// Over time.
    pub series: Series,
}

impl Flow {
    /// Notes the octet of an arrival's header with DSCP and ECN field, where it was sent with this one.
    pub(crate) fn note_class(&mut self, sent: u8, came: u8) {
        const CE: u8 = 0b11;
        match came ^ sent {
            0 => {}
            changed if came & CE == CE && changed & !CE == 0 => self.marked += 1,
            _ => self.remarked += 1,
        }
    }
}

/// How packets of many sizes fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SizesResult {
    /// The traffic entry's name.
    pub name: String,
    /// The stream's number in the run.
    pub id: u32,
    /// The sending host.
    pub from: String,
    /// The receiving host.
    pub to: String,
    /// Packets sent, those included that the sender's own kernel refused.
    pub sent: u64,
    /// Packets that arrived here and were not this stream's, or were changed on the way.
    pub misdelivered: u64,
    /// By size, the smallest first.
    pub sizes: Vec<SizeResult>,
    /// Packets that neither arrived nor came to anything that their sender could know of, in order of time.
    pub holes: Vec<Hole>,
}

impl SizesResult {
    /// The largest size up to which all packets arrived; `None` if not even all of the smallest did.
    pub fn arrived_up_to(&self) -> Option<usize> {
        self.sizes.iter().take_while(|row| row.arrived == row.sent).last().map(|row| row.size)
    }
}

/// How packets of one size fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SizeResult {
    /// Octets of the IP packet.
    pub size: usize,
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub arrived: u64,
    /// Packets of which the sender heard that they are too big: from a router, or from its own kernel.
    pub told: u64,
    /// The least MTU that it was told.
    pub told_mtu: Option<u32>,
}

/// A packet that vanished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hole {
    /// When it was due to be sent.
    pub at_ms: f64,
    /// Octets of the IP packet.
    pub size: usize,
}

/// A packet of which its sender heard that it is too big.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The packet.
    pub number: u64,
    /// What would fit.
    pub mtu: u32,
}

/// How downloads fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpResult {
    /// The traffic entry's name.
    pub name: String,
    /// The server's host.
    pub from: String,
    /// The client's host.
    pub to: String,
    /// Connections tried.
    pub connections: u64,
    /// Connections that got all they asked for, checked.
    pub completed: u64,
    /// Connections that were still well when the traffic was stopped.
    pub unfinished: u64,
    /// Connections that could not be opened, were reset, timed out, ended early or brought a wrong octet.
    pub broken: u64,
    /// Why the first few broke.
    pub reasons: Vec<String>,
    /// Connections that brought a wrong octet; part of `broken`.
    pub corrupt: u64,
    /// Octets received and found right.
    pub bytes: u64,
    /// From the first connect to the last octet.
    pub duration_ms: f64,
    /// Bits per second over that time.
    pub goodput_bps: f64,
    /// Segments that the server's kernel sent again (RFC 4898's SegsRetrans, from TCP_INFO).
    pub retransmits: u64,
    /// The longest time in which an open connection brought nothing.
    pub longest_stall: Gap,
    /// The longest time from connect to the last octet, of those that completed.
    pub slowest_ms: f64,
    /// Octets over time.
    pub series: Series,
}

/// How pings fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PingResult {
    /// The traffic entry's name.
    pub name: String,
    /// The host that asked.
    pub from: String,
    /// The host that answered.
    pub to: String,
    /// Requests sent.
    pub sent: u64,
    /// What came back; its delays are round-trip times.
    #[serde(flatten)]
    pub flow: Flow,
}

/// What iperf3 measured. Reported, never asserted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedResult {
    /// The traffic entry's name.
    pub name: String,
    /// The sending host.
    pub from: String,
    /// The receiving host.
    pub to: String,
    /// Bits per second received.
    pub bps: f64,
    /// Why there is no figure.
    pub error: Option<String>,
}

/// What an attacker did and got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttackResult {
    /// The traffic entry's name.
    pub name: String,
    /// The number in its packets' marks; 0 where they have none.
    pub id: u32,
    /// The attacker's host.
    pub from: String,
    /// Packets sent.
    pub sent: u64,
    /// Packets that the attacker's own kernel refused to send.
    pub refused: u64,
    /// Datagrams recorded to be sent again.
    pub recorded: u64,
    /// Datagrams that came back.
    pub replies: u64,
    /// Octets sent, without headers; counted where garbage is sent.
    #[serde(default)]
    pub sent_octets: u64,
    /// Octets that came back.
    #[serde(default)]
    pub reply_octets: u64,
    /// Octets of the longest datagram that came back.
    #[serde(default)]
    pub longest_reply: u64,
    /// ICMP errors that came back (an unreachable port answers so, and it is no answer of a daemon).
    pub icmp: u64,
    /// When the first packet was sent.
    pub start_ms: f64,
    /// When the last was sent.
    pub stop_ms: f64,
}

/// What of the meter's traffic was seen at a host that watches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WatchResult {
    /// The traffic entry's name.
    pub name: String,
    /// The host.
    pub at: String,
    /// Packets towards this host or through it, in the order of the streams' numbers. What the host sends itself is not
    /// counted.
    pub seen: Vec<Seen>,
    /// Datagrams to the watched port, if one is.
    pub datagrams: Option<u64>,
    /// Octets of payload of the longest of them.
    pub longest: u64,
}

/// Packets of one stream, seen by a watch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The stream's number.
    pub id: u32,
    /// The name of its traffic entry; empty until both ends are joined, and if there is none of that number.
    pub name: String,
    /// Packets.
    pub packets: u64,
}

/// What a host's meter writes at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostResult {
    /// 1.
    pub schema: u32,
    /// The host.
    pub host: String,
    /// The start of the run's traffic, as in the spec.
    pub start_ns: u64,
    /// In the order of the spec's ends.
    pub ends: Vec<EndResult>,
}

/// What one end knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum EndResult {
    /// Of [`super::End::UdpSend`].
    Sent {
        /// The stream's number.
        id: u32,
        /// Packets numbered.
        sent: u64,
        /// Packets refused by the kernel.
        refused: u64,
    },
    /// Of [`super::End::UdpReceive`]: what can be told without the sender.
    Received {
        /// The stream's number.
        id: u32,
        /// The figures, losses after the highest number received not yet counted.
        flow: Flow,
        /// The number after the highest received.
        next: u64,
    },
    /// Of [`super::End::Sweep`].
    Swept {
        /// The stream's number.
        id: u32,
        /// Packets sent.
        sent: u64,
        /// Those that were too big.
        told: Vec<Told>,
    },
    /// Of [`super::End::SweepReceive`].
    SweepReceived {
        /// The stream's number.
        id: u32,
        /// The packets that arrived.
        arrived: Vec<u64>,
        /// Packets that were not this stream's, or changed on the way.
        misdelivered: u64,
    },
    /// Of [`super::End::TcpServe`] and [`super::End::TcpFetch`].
    Tcp(TcpEndResult),
    /// Of [`super::End::Ping`].
    Ping(PingResult),
    /// Of [`super::End::Iperf3Send`].
    Speed(SpeedResult),
    /// Of an attacker.
    Attack(AttackResult),
    /// Of [`super::End::Watch`].
    Watch(WatchResult),
    /// The end failed; its traffic did not happen, or not whole.
    Failed {
        /// The traffic entry's name.
        name: String,
        /// Why.
        error: String,
    },
    /// Nothing to tell.
    Nothing,
}

/// One end of downloads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "side", rename_all = "snake_case")]
pub enum TcpEndResult {
    /// The server's.
    Server {
        /// The traffic entry's name.
        name: String,
        /// Segments sent again.
        retransmits: u64,
    },
    /// The client's, with all but the retransmits.
    Client(Box<TcpResult>),
}

/// The traffic of a run, each stream's ends joined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficResults {
    /// Numbered packets.
    pub streams: Vec<StreamResult>,
    /// Packets of many sizes.
    #[serde(default)]
    pub sizes: Vec<SizesResult>,
    /// Downloads.
    pub tcp: Vec<TcpResult>,
    /// Pings.
    pub pings: Vec<PingResult>,
    /// Speeds.
    pub speeds: Vec<SpeedResult>,
    /// Attacks.
    pub attacks: Vec<AttackResult>,
    /// What was seen where.
    pub watches: Vec<WatchResult>,
    /// Traffic that did not happen, with the reason: the run is void.
    pub failed: Vec<String>,
}

/// What a host's meter shows while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveLine {
    /// The host.
    pub host: String,
    /// When.
    pub at_ms: f64,
    /// The streams received here.
    pub streams: Vec<LiveStream>,
}

/// A stream at a moment, as its receiver sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveStream {
    /// The traffic entry's name.
    pub name: String,
    /// Packets (octets for TCP) so far.
    pub received: u64,
    /// Packets lost so far: numbers below the highest received that have not arrived.
    pub lost: u64,
    /// Per second, over the last 100 ms: packets, or for TCP octets.
    pub rate: f64,
    /// The longest gap so far, one that lasts still included, in milliseconds.
    pub gap_ms: f64,
    /// TCP connections broken so far; `None` for a stream of packets.
    pub broken: Option<u64>,
}
