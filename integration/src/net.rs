//! The network of a run: namespaces, links between them, addresses, routes, NAT and ingress filters.

pub mod build;
mod change;
mod filter;
mod netlink;
pub(crate) mod netns;
mod router;

pub(crate) use change::Renumbering;
pub use filter::Filter;
pub use netlink::{Netlink, Protocol};
pub use netns::Namespace;
pub(crate) use router::dropped;

use crate::meter::Span;
use serde::{Deserialize, Deserializer};

/// What a link does to packets of one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Netem {
    /// One-way delay.
    pub delay: Span,
    /// Its variation, to either side.
    pub jitter: Span,
    /// Whether packets keep their order under jitter.
    pub ordered: bool,
    /// The share that is lost, 0 to 1, each packet alone.
    pub loss: f64,
    /// Packets lost in bursts, and `loss` not looked at.
    pub bursts: Option<Bursts>,
    /// Packets that would be lost so are marked instead, if they can be (RFC 3168).
    pub ecn: bool,
    /// Bits per second; `None`: no limit.
    pub rate: Option<Rate>,
    /// Packets that wait or are under way at most; more are dropped.
    pub limit: u32,
}

impl Netem {
    /// Whether it does nothing.
    pub fn is_wire(&self) -> bool {
        self.delay.0.is_zero() && self.jitter.0.is_zero() && !self.is_narrow()
    }

    /// Whether it makes a difference to it what one packet is.
    pub fn is_narrow(&self) -> bool {
        self.rate.is_some() || self.loss > 0.0 || self.bursts.is_some()
    }
}

/// Loss in bursts (Gilbert, and Elliott): in a burst all packets are lost, else none.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "BurstsWritten")]
pub struct Bursts {
    /// The chance of a packet to begin a burst.
    pub to_bad: f64,
    /// The chance of a packet in a burst to end it.
    pub to_good: f64,
}

/// As scenario files have it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BurstsWritten {
    /// The share lost, above 0 and below 1.
    share: f64,
    /// Packets in a burst on average, 1 or more.
    length: f64,
}

impl TryFrom<BurstsWritten> for Bursts {
    type Error = &'static str;

    fn try_from(written: BurstsWritten) -> Result<Self, Self::Error> {
        let BurstsWritten { share, length } = written;
        let to_good = 1.0 / length;
        // In the long run as many bursts begin as end: (1 - share) * to_bad = share * to_good.
        let to_bad = share * to_good / (1.0 - share);
        let fits = share > 0.0 && share < 1.0 && length >= 1.0 && to_bad <= 1.0;
        fits.then_some(Bursts { to_bad, to_good }).ok_or(
            "bursts have a share above 0 and below 1, and a length of 1 packet or more that leaves room for both",
        )
    }
}

/// A rate as scenario files write it: `"20mbit"`, `"800kbit"`, `"1gbit"`, or bits per second as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Rate;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a rate such as \"20mbit\", \"800kbit\", or a number of bits per second above 0")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rate, E> {
                let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
                let factor = match unit.trim() {
                    "" | "bit" => 1,
                    "kbit" => 1_000,
                    "mbit" => 1_000_000,
                    "gbit" => 1_000_000_000,
                    _ => return Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                };
                match number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)) {
                    Some(rate) if rate > 0 => Ok(Rate(rate)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Rate, E> {
                match u64::try_from(n) {
                    Ok(rate) if rate > 0 => Ok(Rate(rate)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Signed(n), &self)),
                }
            }
        }
        d.deserialize_any(Visitor)
    }
}
