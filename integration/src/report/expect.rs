//! Expectations: the bars of a scenario, and the verdict on each.

use crate::meter::Span;
use crate::report::BgpChange;
use serde::{Deserialize, Serialize};

/// One `[[expect]]` entry: at most one subject (`stream`, `sizes`, `tcp`, `ping`, `attack`, `watch`, `node` or `link`) and one or
/// more bars on it. Each bar makes an [`Outcome`] of its own.
///
/// ```toml
/// [[expect]]
/// stream = "down"
/// longest_gap_ms = { max = 300 }
/// lost = { max = 60 }
/// back_within_ms = { after = "a_returns", max = 300 }
///
/// [[expect]]
/// bgp = { prefix = "198.51.100.0/24", change = "withdrawn", after = "both_dead", min_s = 10, max_s = 11 }
///
/// [[expect]]
/// node = "box"
/// path_changes = { from = "5s", max = 3 }
/// drops = { reason = "tun_source", min = 1000 }
/// clean_exit = true
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// What it is about, in words, for the report.
    pub title: Option<String>,
    /// Where it is asserted; without it, bars on time are asserted in virtual time only, all others everywhere.
    pub asserted: Option<Asserted>,

    /// Subject: a `udp` traffic entry.
    pub stream: Option<String>,
    /// Subject: a `sizes` traffic entry.
    pub sizes: Option<String>,
    /// Subject: a `tcp` traffic entry.
    pub tcp: Option<String>,
    /// Subject: a `ping` traffic entry.
    pub ping: Option<String>,
    /// Subject: a `spoof`, `garbage` or `replay` traffic entry.
    pub attack: Option<String>,
    /// Subject: a `watch` traffic entry that has a port.
    pub watch: Option<String>,
    /// Subject: the host of a daemon, or a router.
    pub node: Option<String>,
    /// Subject: a link.
    pub link: Option<String>,

    /// One run in twenty may miss its bars: twenty runs together are good if nineteen are.
    #[serde(default)]
    pub one_in_twenty: bool,
    /// Only what happens from then on counts (for `lost`, `longest_gap_ms`, `black_holes`, `handshakes`, `copies_percent`,
    /// `receipts_percent`, `octets_per_month`, `tcp_mbit`, `share_percent`, and a `path` that is never something).
    pub from: Option<Moment>,
    /// Only what happens before then counts (for the same, and for every `path`).
    pub until: Option<Moment>,

    /// Stream or ping: longest gap, in milliseconds.
    pub longest_gap_ms: Option<Bar>,
    /// Stream or ping: packets lost.
    pub lost: Option<Bar>,
    /// Stream or ping: packets lost beyond those that the filter of a link has dropped.
    pub lost_beyond: Option<Beyond>,
    /// Stream or ping: packets lost, as a share of those sent, in percent.
    pub lost_percent: Option<Bar>,
    /// Stream or ping: distinct packets that arrived.
    pub received: Option<Bar>,
    /// Stream or ping: second copies.
    pub duplicated: Option<Bar>,
    /// Stream: packets out of order.
    pub reordered: Option<Bar>,
    /// Stream: packets that came to the wrong receiver, or changed on the way.
    pub misdelivered: Option<Bar>,
    /// Stream: packets whose DSCP or ECN field was changed, but for marks of congestion.
    pub remarked: Option<Bar>,
    /// Stream: packets that were marked on the way as having met congestion.
    pub marked: Option<Bar>,
    /// The same, as a share of those that arrived, in percent.
    pub marked_percent: Option<Bar>,
    /// Stream or ping: median delay (for a ping: round-trip time), in milliseconds.
    pub delay_p50_ms: Option<Bar>,
    /// The 95th percentile.
    pub delay_p95_ms: Option<Bar>,
    /// The 99th percentile.
    pub delay_p99_ms: Option<Bar>,
    /// The longest.
    pub delay_max_ms: Option<Bar>,
    /// Stream or ping: time from a named event to the next arrival, in milliseconds.
    pub back_within_ms: Option<EventBar>,
    /// Stream or attack: hosts that may see its packets, of all that receive or watch; an empty list: nobody may.
    pub delivered_only_to: Option<Vec<String>>,

    /// One sizes entry, or without a subject all of them: packets that vanished, of which the sender heard nothing.
    pub black_holes: Option<Bar>,
    /// The same: the largest size, in octets, up to which all packets arrived; of several entries, the least.
    pub arrived_up_to: Option<Bar>,
    /// The same: the MTU that senders were told, in octets; each one must be within.
    pub told_mtu: Option<Bar>,

    /// One tcp entry, or without a subject all of them: connections broken.
    pub tcp_broken: Option<Bar>,
    /// The same: downloads completed.
    pub tcp_completed: Option<Bar>,
    /// The same: segments that their senders sent again.
    pub tcp_sent_again: Option<Bar>,
    /// The same: octets received.
    pub tcp_bytes: Option<Bar>,
    /// The same: octets of content received between `from` and `until`, in megabits a second.
    pub tcp_mbit: Option<Bar>,
    /// One tcp entry: octets of content received, in percent of those that another one received.
    pub tcp_percent_of: Option<PercentOf>,
    /// The same: longest stall, in milliseconds.
    pub tcp_stall_ms: Option<Bar>,
    /// The same: octets received in the two seconds after an event, in percent of those in the two seconds before it.
    pub tcp_goodput_percent: Option<EventBar>,

    /// Attack: packets sent (so that an attack that did not happen does not pass).
    pub sent: Option<Bar>,
    /// Attack: datagrams recorded for replay.
    pub recorded: Option<Bar>,
    /// Attack: datagrams that came back.
    pub replies: Option<Bar>,
    /// Attack: octets that came back, in percent of those sent.
    pub reply_percent: Option<Bar>,
    /// Attack: octets of the longest datagram that came back.
    pub longest_reply: Option<Bar>,

    /// Watch: datagrams that came to its port.
    pub datagrams: Option<Bar>,
    /// Watch: octets of payload of the longest of them.
    pub longest_datagram: Option<Bar>,

    /// Node: changes of path.
    pub path_changes: Option<PathChanges>,
    /// Node: octets of copies sent, in percent of the octets of packets that it sent to its peers.
    pub copies_percent: Option<Bar>,
    /// Node: octets of receipts sent, in percent of the same.
    pub receipts_percent: Option<Bar>,
    /// Node: packets dropped for a reason.
    pub drops: Option<DropsExpect>,
    /// Node: every exit of its daemon was clean and left nothing over; `true` is the only sensible value.
    pub clean_exit: Option<bool>,

    /// Node: states of its paths.
    pub path: Option<OneOrMore<PathExpect>>,
    /// Node: handshakes on a path.
    pub handshakes: Option<Handshakes>,
    /// Router: packets that its filters dropped (BCP 38, strict reverse path). Where no entry says otherwise, each run
    /// expects none at all its routers.
    pub filter_drops: Option<Bar>,

    /// Link: octets of both directions between `from` and `until`, in percent of those of it and of these other links.
    pub share_percent: Option<Share>,
    /// Link: octets of both directions between the events `from` and `until`, as they would be in a month of 30 days.
    pub octets_per_month: Option<Bar>,

    /// A route came or went at the right time.
    pub bgp: Option<BgpExpect>,
}

/// Bounds on a link's part of what several carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The other links.
    pub beside: OneOrMore,
    /// At least.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// Bounds on what a tcp entry received beside another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PercentOf {
    /// The other one.
    pub tcp: String,
    /// At least.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// Bounds on what was lost beyond what a link has dropped on purpose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beyond {
    /// The link, whose filter is there until the end.
    pub link: String,
    /// At most so many packets more.
    pub max: f64,
}

/// Where a bar is asserted; elsewhere it is only reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asserted {
    /// On every kernel.
    Always,
    /// In virtual time.
    Virtual,
    /// Nowhere.
    Never,
}

/// Bounds, both inclusive; at least one is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// At least.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// Bounds on the time after an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventBar {
    /// The event, or a time.
    pub after: Moment,
    /// At least, in the unit of the measure.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// A moment of a run: a time since the start of its traffic, or the name of a timeline event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Moment {
    /// A time.
    At(Span),
    /// The first event of that name.
    Event(String),
}

/// Bounds on changes of path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathChanges {
    /// Towards which peer; without it, all of them together.
    pub peer: Option<String>,
    /// Counted from then on; without it, from the first status seen.
    pub from: Option<Moment>,
    /// Counted until then; without it, until the last status seen.
    pub until: Option<Moment>,
    /// At least.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// Bounds on a counter of drops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropsExpect {
    /// The counter: a name of [`proto::DropReason`], or several of which the sum counts.
    pub reason: OneOrMore,
    /// At least.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// One thing (a name, most often) or a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore<T = String> {
    /// One.
    One(T),
    /// Several.
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    /// All of them.
    pub fn all(&self) -> &[T] {
        match self {
            OneOrMore::One(one) => std::slice::from_ref(one),
            OneOrMore::More(more) => more,
        }
    }
}

/// What a path must be: at the end of the run (or at `until`) without `within_ms`, else soon after `after`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathExpect {
    /// Its slot.
    pub slot: u8,
    /// The kind of its tunnel; without it, of two paths over an uplink the one that does not stand by.
    pub tunnel: Option<proto::TunnelKind>,
    /// "current" for the path that new flows take, or a name of [`proto::PathState`].
    pub is: String,
    /// Measured: the time from then until it is so, and is so ever after (up to `until`).
    pub after: Option<Moment>,
    /// At most so long.
    pub within_ms: Option<f64>,
    /// It must not be so at any look between `from` and `until`; without `after` and `within_ms`. There are ten looks a
    /// second.
    #[serde(default)]
    pub never: bool,
}

/// Bounds on the handshakes of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handshakes {
    /// Its slot.
    pub slot: u8,
    /// At least.
    pub min: Option<f64>,
    /// At most.
    pub max: Option<f64>,
}

/// A route coming or going. Measured: seconds from `after` to the first such change at or after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BgpExpect {
    /// The prefix, as BIRD writes it.
    pub prefix: String,
    /// What must happen to it.
    pub change: BgpChange,
    /// After what.
    pub after: Moment,
    /// Not sooner.
    pub min_s: Option<f64>,
    /// Not later.
    pub max_s: Option<f64>,
    /// It must not happen at all, until the end of the run; without `min_s` and `max_s`.
    #[serde(default)]
    pub never: bool,
}

/// The verdict on one bar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was judged: "stream down: longest gap".
    pub what: String,
    /// The bar, in words: "at most 300 ms".
    pub bar: String,
    /// What was measured, in the bar's unit; `None`: it never happened, or could not be measured.
    pub measured: Option<f64>,
    /// The unit of `measured`: "ms", "s", "%", "packets", ….
    pub unit: String,
    /// The verdict.
    pub verdict: Verdict,
    /// What else is to say, such as why it could not be judged.
    pub note: String,
    /// One run in twenty may miss it.
    #[serde(default)]
    pub one_in_twenty: bool,
}

/// Whether a bar was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Met.
    Pass,
    /// Not met.
    Fail,
    /// Met, but not asserted on this kernel.
    ReportedMet,
    /// Not met, but not asserted on this kernel.
    ReportedMissed,
    /// The expectation names something that the run has not, or bounds nothing: the scenario is wrong. Never a pass.
    Error,
}

impl Verdict {
    /// The run may count as good.
    pub fn is_ok(self) -> bool {
        !matches!(self, Verdict::Fail | Verdict::Error)
    }
}
