//! What goes in: the traffic of a scenario, and each host's part of it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A length of time as scenario files write it: `"250ms"`, `"10s"`, `"2m"`, or a number of seconds. Not negative, kept
/// in whole nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }

    /// In nanoseconds; a span over 584 years is cut to that.
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// In milliseconds.
    pub fn millis(self) -> f64 {
        self.0.as_secs_f64() * 1e3
    }
}

impl FromStr for Span {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Span { text: text.to_owned() };
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim() {
            "us" => 1e-6,
            "ms" => 1e-3,
            "" | "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        // Rounded to nanoseconds, so that "0.3s" and "300ms" are equal.
        Duration::try_from_secs_f64((number * factor * 1e9).round() / 1e9).map(Span).map_err(|_| wrong())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 { write!(f, "{}s", self.0.as_secs()) } else { write!(f, "{}ms", self.millis()) }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as \"250ms\", \"10s\", \"2m\" or a number of seconds")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Span, E> {
                u64::try_from(n).map(Span::seconds).map_err(|_| E::custom("a time cannot be negative"))
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Span, E> {
                Ok(Span::seconds(n))
            }
            fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Span, E> {
                Duration::try_from_secs_f64(n).map(Span).map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// What can be wrong in traffic and its plan.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not a length of time.
    #[error("\"{text}\" is not a time: write \"250ms\", \"10s\" or \"2m\"")]
    Span {
        /// What was written.
        text: String,
    },
    /// Two entries of one name.
    #[error("traffic \"{name}\" is there twice: give each entry a name of its own")]
    Twice {
        /// The name.
        name: String,
    },
    /// A host that the scenario has not, or that has no address of that family.
    #[error(
        "traffic \"{name}\" names host \"{host}\", which has no {family} address in this scenario: check the name and the family"
    )]
    NoAddress {
        /// The traffic.
        name: String,
        /// The host.
        host: String,
        /// The family asked for.
        family: Family,
    },
    /// A number outside what makes sense.
    #[error("traffic \"{name}\": {key} is {value}, but must be {expected}")]
    Range {
        /// The traffic.
        name: String,
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One `[[traffic]]` entry of a scenario. Times count from the start of the run's traffic; without `stop` an entry
/// lasts until the end of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Traffic {
    /// A stream of numbered UDP packets, one direction.
    Udp(Udp),
    /// UDP packets of many sizes, one direction: each arrives, or its sender is told that it is too big, or it vanishes.
    Sizes(Sizes),
    /// TCP downloads, checked octet by octet.
    Tcp(Tcp),
    /// ICMP or ICMPv6 echo.
    Ping(Ping),
    /// iperf3, where a speed is asked for; never asserted. Its server runs at `to`.
    Iperf3(Iperf3),
    /// Packets with sources that are not the sender's own.
    Spoof(Spoof),
    /// Datagrams that mean nothing.
    Garbage(Garbage),
    /// Datagrams seen on a link, sent again later.
    Replay(Replay),
    /// Looks at every packet that a host sees, for those of the meter: so that a stray one is found.
    Watch(Watch),
}

impl Udp {
    /// The octet of its packets' headers with DSCP and ECN field.
    pub fn traffic_class(&self) -> u8 {
        self.dscp << 2 | self.ecn
    }
}

impl Traffic {
    /// The entry's name, by which expectations refer to it.
    pub fn name(&self) -> &str {
        match self {
            Traffic::Udp(t) => &t.name,
            Traffic::Sizes(t) => &t.name,
            Traffic::Tcp(t) => &t.name,
            Traffic::Ping(t) => &t.name,
            Traffic::Iperf3(t) => &t.name,
            Traffic::Spoof(t) => &t.name,
            Traffic::Garbage(t) => &t.name,
            Traffic::Replay(t) => &t.name,
            Traffic::Watch(t) => &t.name,
        }
    }
}

/// A stream of numbered UDP packets from one host to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// Its name.
    pub name: String,
    /// The sending host.
    pub from: String,
    /// The receiving host.
    pub to: String,
    /// Over IPv4 or IPv6.
    #[serde(default)]
    pub family: Family,
    /// Packets per second, above 0 and at most 20,000 (beyond, one process cannot keep the pace).
    pub rate: f64,
    /// Octets of UDP payload, 40 (the meter's own header) to 1,472.
    #[serde(default = "default_size")]
    pub size: usize,
    /// Differentiated services code point (RFC 2474), 0 to 63.
    #[serde(default)]
    pub dscp: u8,
    /// ECN field (RFC 3168): 0 cannot be marked, 1 and 2 can (ECT(1), ECT(0)), 3 is marked (CE).
    #[serde(default)]
    pub ecn: u8,
    /// When the first packet goes.
    #[serde(default)]
    pub start: Span,
    /// When no more packet goes.
    pub stop: Option<Span>,
}

/// 200 octets: a voice packet, small enough to load no link of any scenario.
fn default_size() -> usize {
    200
}

/// UDP packets of many sizes from one host to another: one of each size in turn, and again until the stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Its name.
    pub name: String,
    /// The sending host.
    pub from: String,
    /// The receiving host.
    pub to: String,
    /// Over IPv4 or IPv6.
    #[serde(default)]
    pub family: Family,
    /// Octets of the smallest IP packet, 68 (IPv6: 88) or more.
    #[serde(default = "default_smallest")]
    pub smallest: usize,
    /// Octets of the largest IP packet, at most 1,500.
    #[serde(default = "default_largest")]
    pub largest: usize,
    /// Octets from one size to the next.
    #[serde(default = "default_step")]
    pub step: usize,
    /// IPv4 only: routers may fragment the packets, which are sent without DF (RFC 791).
    #[serde(default)]
    pub fragmentable: bool,
    /// Packets per second, above 0 and at most 20,000; until the stop each size must have its turn.
    pub rate: f64,
    /// When the first packet goes.
    #[serde(default)]
    pub start: Span,
    /// When no more packet goes.
    pub stop: Option<Span>,
}

/// What every host must be able to receive over IPv4 (RFC 791), and what DNS and others long kept to for that reason.
fn default_smallest() -> usize {
    576
}

/// Ethernet's.
fn default_largest() -> usize {
    1500
}

/// Fine enough to meet 1,280, 1,380 and each of the tunnel's own limits within its four octets.
fn default_step() -> usize {
    4
}

/// TCP downloads by one host from another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Its name.
    pub name: String,
    /// The server's host.
    pub from: String,
    /// The client's host, which connects and downloads.
    pub to: String,
    /// Over IPv4 or IPv6.
    #[serde(default)]
    pub family: Family,
    /// Octets per second at which the server sends on each connection, above 0: in virtual time a sender without a rate
    /// would never let the clock move.
    pub rate: f64,
    /// Octets of each download; without it, one that lasts until `stop`.
    pub bytes: Option<u64>,
    /// Connections at the same time.
    #[serde(default = "one")]
    pub connections: u32,
    /// Without it each connection does one download. With it, new connections are opened this long after another, each
    /// with a request and an answer of `bytes`.
    pub every: Option<Span>,
    /// A connection that shows nothing for so long is given up and counts as broken.
    #[serde(default = "default_patience")]
    pub patience: Span,
    /// When the first connects.
    #[serde(default)]
    pub start: Span,
    /// When a download still running is ended, which does not count as broken.
    pub stop: Option<Span>,
}

fn one() -> u32 {
    1
}

/// 30 seconds: about when a user reloads, and longer than any outage that a connection should survive unnoticed.
fn default_patience() -> Span {
    Span::seconds(30)
}

/// Echo requests from one host to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// Its name.
    pub name: String,
    /// The host that asks.
    pub from: String,
    /// The host that answers.
    pub to: String,
    /// Over IPv4 or IPv6.
    #[serde(default)]
    pub family: Family,
    /// Time between requests.
    #[serde(default = "default_ping_every")]
    pub every: Span,
    /// Octets of payload, 40 (the meter's own header) to 1,472.
    #[serde(default = "default_ping_size")]
    pub size: usize,
    /// When the first is sent.
    #[serde(default)]
    pub start: Span,
    /// When no more is sent.
    pub stop: Option<Span>,
}

fn default_ping_every() -> Span {
    Span(Duration::from_millis(200))
}

/// What `ping` sends.
fn default_ping_size() -> usize {
    56
}

/// A measurement of speed by iperf3.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iperf3 {
    /// Its name.
    pub name: String,
    /// The sending host.
    pub from: String,
    /// The receiving host, where the server runs.
    pub to: String,
    /// Over IPv4 or IPv6.
    #[serde(default)]
    pub family: Family,
    /// Bits per second for UDP; without it TCP as fast as it goes, which needs a native kernel or a link with a rate.
    pub udp_rate: Option<u64>,
    /// Connections at the same time.
    #[serde(default = "one")]
    pub connections: u32,
    /// When it starts.
    #[serde(default)]
    pub start: Span,
    /// When it ends.
    pub stop: Option<Span>,
}

/// How a spoofed packet is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// A UDP packet.
    #[default]
    Udp,
    /// A UDP packet in two fragments.
    Fragments,
    /// Only a fragment that is not the first, so that no port is there to look at.
    LaterFragment,
    /// An ICMP or ICMPv6 error (port unreachable) from `source` that quotes a UDP packet from `quoted`.
    IcmpError,
}

/// Packets with a source address that is not the sender's own, each marked so that a watch recognises it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spoof {
    /// Its name.
    pub name: String,
    /// The host that sends them.
    pub from: String,
    /// The sources they claim, in turn; all of the family of `to_address`.
    pub sources: Vec<IpAddr>,
    /// Their destination.
    pub to_address: IpAddr,
    /// Their destination port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// How they are built.
    #[serde(default)]
    pub shape: Shape,
    /// For [`Shape::IcmpError`]: the source of the packet that the error quotes; without it, `to_address`, as an honest
    /// error would have it.
    pub quoted: Option<IpAddr>,
    /// How many, at most 1,000,000.
    pub count: u64,
    /// Packets per second, above 0 and at most 20,000.
    pub rate: f64,
    /// When the first is sent.
    #[serde(default)]
    pub start: Span,
}

/// The discard port (RFC 863): nobody listens there.
fn default_port() -> u16 {
    9
}

/// Random and truncated datagrams to one port, and a count of what comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Garbage {
    /// Its name.
    pub name: String,
    /// The host that sends them.
    pub from: String,
    /// Their destination.
    pub to_address: IpAddr,
    /// Their destination port.
    pub port: u16,
    /// How many, at most 1,000,000.
    pub count: u64,
    /// Datagrams per second, above 0 and at most 20,000.
    pub rate: f64,
    /// Octets of the longest, at most 1,472.
    #[serde(default = "default_garbage_size")]
    pub max_size: usize,
    /// Forged QUIC Initials, and what looks like them, in place of what looks like WireGuard.
    #[serde(default)]
    pub quic: bool,
    /// When the first is sent.
    #[serde(default)]
    pub start: Span,
}

/// What fits in an Ethernet frame over IPv4.
fn default_garbage_size() -> usize {
    1472
}

/// Records UDP datagrams that pass a host and sends them again, with their own addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// Its name.
    pub name: String,
    /// The host at whose interfaces they are seen, and which sends them again (a router on the way).
    pub from: String,
    /// Only those from or to one of these UDP ports.
    pub ports: Vec<u16>,
    /// When recording begins.
    #[serde(default)]
    pub start: Span,
    /// When recording ends and sending begins.
    pub again: Span,
    /// How many are sent, at most 1,000,000: what was recorded (at most 65,536) in its order, from the beginning again
    /// after the last.
    pub count: u64,
    /// Datagrams per second, above 0 and at most 20,000.
    pub rate: f64,
}

/// Counts the meter's own packets, by stream, at all interfaces of a host, and the datagrams to some ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Its name.
    pub name: String,
    /// The host.
    pub at: String,
    /// UDP ports: how many datagrams come to them, and how long the longest is, whoever they are for.
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// What one host does in a run: written by the lab, read by `lab meter`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeterSpec {
    /// The host's name.
    pub host: String,
    /// The run's seed: garbage and downloads are drawn from it.
    pub seed: u64,
    /// When traffic starts, on CLOCK_MONOTONIC, in nanoseconds. All times below count from here. Must be far enough in
    /// the future for all hosts' meters to be up.
    pub start_ns: u64,
    /// When senders without a `stop` stop.
    pub length: Span,
    /// How long receivers wait for stragglers after `length`.
    pub drain: Span,
    /// The stream ends on this host.
    pub ends: Vec<End>,
    /// Where the [`super::HostResult`] is written, whole (under another name first, then renamed).
    pub result: PathBuf,
    /// Where a [`super::LiveLine`] is appended every 100 ms; `None`: nowhere.
    pub live: Option<PathBuf>,
}

/// One end of a stream: what [`super::plan`] makes of a [`Traffic`] for a host. `id` numbers the stream in the run and
/// is in every packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// Sends numbered packets.
    UdpSend {
        /// The stream's number.
        id: u32,
        /// The local address to send from.
        local: SocketAddr,
        /// Where to.
        remote: SocketAddr,
        /// The rest.
        udp: Udp,
    },
    /// Receives them.
    UdpReceive {
        /// The stream's number.
        id: u32,
        /// The address to receive at.
        local: SocketAddr,
        /// The rest.
        udp: Udp,
    },
    /// Sends packets of many sizes.
    Sweep {
        /// The stream's number.
        id: u32,
        /// The local address to send from.
        local: SocketAddr,
        /// Where to.
        remote: SocketAddr,
        /// The rest.
        sizes: Sizes,
    },
    /// Receives them.
    SweepReceive {
        /// The stream's number.
        id: u32,
        /// The address to receive at.
        local: SocketAddr,
        /// The rest.
        sizes: Sizes,
    },
    /// Serves downloads.
    TcpServe {
        /// The address to listen at.
        local: SocketAddr,
        /// The rest.
        tcp: Tcp,
    },
    /// Downloads.
    TcpFetch {
        /// The server.
        remote: SocketAddr,
        /// The rest.
        tcp: Tcp,
    },
    /// Pings.
    Ping {
        /// The stream's number, from which the echo identifier is made.
        id: u32,
        /// Whom.
        remote: IpAddr,
        /// The rest.
        ping: Ping,
    },
    /// An iperf3 server.
    Iperf3Serve {
        /// The address to listen at.
        local: SocketAddr,
        /// The rest.
        iperf3: Iperf3,
    },
    /// An iperf3 client, which sends.
    Iperf3Send {
        /// The server.
        remote: SocketAddr,
        /// The rest.
        iperf3: Iperf3,
    },
    /// Sends spoofed packets.
    Spoof {
        /// The number in their marks.
        id: u32,
        /// The rest.
        spoof: Spoof,
    },
    /// Sends garbage.
    Garbage {
        /// The rest.
        garbage: Garbage,
    },
    /// Records and sends again.
    Replay {
        /// The rest.
        replay: Replay,
    },
    /// Looks for strays.
    Watch {
        /// The rest.
        watch: Watch,
    },
}
