//! The words of a policy file: what stands for a prefix, a port, a codepoint, a rate.

use crate::calendar;
use crate::settings::{Several, Text, Written};
use ipnet::IpNet;
use proto::outer;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A prefix, or one address.
pub(super) struct Network(pub(super) IpNet);

impl Written for Network {
    const EXPECTED: &'static str = "a prefix or an address, such as 192.0.2.0/24 or 2001:db8::1";
    fn read(text: &str) -> Result<Self, Option<String>> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Network(address.into())),
            Err(_) => IpNet::read(text).map(Network),
        }
    }
}

/// A number, as `proto = 47`, or a word.
fn number_or_word<'de, D: Deserializer<'de>>(
    deserializer: D,
    most: u64,
    word: impl Fn(&str) -> Option<u64>,
    expected: &str,
) -> Result<u64, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let read = value.as_u64().or_else(|| word(value.as_str()?)).filter(|number| *number <= most);
    read.ok_or_else(|| D::Error::custom(format!("{value} is not understood: expected {expected}")))
}

/// A protocol above IP.
pub(super) struct Protocol(pub(super) u8);

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = |text: &str| match text {
            "icmp" => Some(1),
            "tcp" => Some(6),
            "udp" => Some(17),
            "gre" => Some(47),
            "esp" => Some(50),
            "icmpv6" => Some(58),
            "sctp" => Some(132),
            _ => None,
        };
        let expected = "\"tcp\", \"udp\", \"sctp\", \"icmp\", \"icmpv6\", \"gre\", \"esp\" or a number up to 255";
        number_or_word(deserializer, 255, word, expected).map(|number| Protocol(number as u8))
    }
}

/// A port, or a range of them with both its ends.
pub(super) struct Ports(pub(super) RangeInclusive<u16>);

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let one = |number: u64| u16::try_from(number).ok().map(|port| port..=port);
        let range = |text: &str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            let range = from.trim().parse().ok()?..=to.trim().parse().ok()?;
            (!range.is_empty()).then_some(range)
        };
        let read = value.as_u64().and_then(one).or_else(|| range(value.as_str()?));
        let expected = "a port up to 65535, such as 443, or a range such as \"5000-5010\"";
        read.map(Ports).ok_or_else(|| D::Error::custom(format!("{value} is not understood: expected {expected}")))
    }
}

/// A codepoint has six bits.
const MOST_CODEPOINT: u64 = 63;

/// A differentiated services codepoint.
pub(super) struct Codepoint(pub(super) u8);

impl<'de> Deserialize<'de> for Codepoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "\"ef\", \"va\", \"le\", \"df\", \"cs0\" to \"cs7\", \"af11\" to \"af43\" or a number up to 63";
        number_or_word(deserializer, MOST_CODEPOINT, codepoint, expected).map(|number| Codepoint(number as u8))
    }
}

/// What outer headers have as their DSCP.
pub(super) struct Shown(pub(super) outer::Dscp);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let fixed = |number: u64| (number <= MOST_CODEPOINT).then_some(outer::Dscp::Fixed(number as u8));
        let word = |text: &str| match text {
            "none" => fixed(0),
            "copy" => Some(outer::Dscp::Copy),
            name => codepoint(name).and_then(fixed),
        };
        let expected = "\"none\", \"copy\", a codepoint such as \"af21\" or a number up to 63";
        let read = value.as_u64().and_then(fixed).or_else(|| word(value.as_str()?));
        read.map(Shown).ok_or_else(|| D::Error::custom(format!("{value} is not understood: expected {expected}")))
    }
}

/// The names in RFC 2474 (CS), RFC 2597 (AF), RFC 3246 (EF), RFC 5865 (VA) and RFC 8622 (LE).
pub(super) fn codepoint(name: &str) -> Option<u64> {
    let digit = |text: &str, most| text.parse().ok().filter(|digit| text.len() == 1 && (0..=most).contains(digit));
    match name {
        "df" => Some(0),
        "le" => Some(1),
        "va" => Some(44),
        "ef" => Some(46),
        _ if name.starts_with("cs") => digit(&name[2..], 7).map(|class: u64| class * 8),
        _ if name.starts_with("af") && name.is_ascii() && name.len() == 4 => {
            let (class, drop) = (digit(&name[2..3], 4)?, digit(&name[3..], 3)?);
            (class > 0 && drop > 0).then_some(class * 8 + drop * 2)
        }
        _ => None,
    }
}

/// Days of the week, a bit each; the lowest is Monday's.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Days(pub(super) u8);

impl Days {
    /// What a list of them has together.
    pub(super) fn all(list: &Several<Text<Days>>) -> u8 {
        list.0.iter().fold(0, |bits, Text(Days(days))| bits | days)
    }
}

impl Written for Days {
    const EXPECTED: &'static str = "days such as \"mon-fri\", \"sat,sun\" or \"wed\"";
    fn read(text: &str) -> Result<Self, Option<String>> {
        const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let day = |name: &str| NAMES.iter().position(|day| *day == name.trim()).ok_or(None);
        text.split(',').try_fold(Days(0), |Days(bits), part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            // "fri-mon" goes over the end of the week.
            let range = (0..=(last + 7 - first) % 7).fold(0, |range, more| range | 1 << ((first + more) % 7));
            Ok(Days(bits | range))
        })
    }
}

/// From when until when, in minutes of the day; what ends before it begins ends on the next day.
#[derive(Clone, Copy)]
pub(super) struct Hours(pub(super) u16, pub(super) u16);

impl Written for Hours {
    const EXPECTED: &'static str = "hours such as \"08:00-18:00\", or \"22:00-06:00\" for a night";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let minute = |text: &str| {
            let (hour, minute) = text.trim().split_once(':').filter(|(_, minute)| minute.len() == 2).ok_or(None)?;
            let (hour, minute): (u16, u16) = (hour.parse().map_err(|_| None)?, minute.parse().map_err(|_| None)?);
            let within = hour < 24 && minute < 60 || (hour, minute) == (24, 0);
            within.then_some(hour * 60 + minute).ok_or(None)
        };
        let (from, until) = text.split_once('-').ok_or(None)?;
        match (minute(from)?, minute(until)?) {
            (1440, _) | (_, 0) => {
                Err(Some("does not say which midnight: expected it to begin at 00:00, or to end at 24:00".into()))
            }
            (from, until) if from == until => {
                Err(Some("is empty; for the whole day leave it out, or write \"00:00-24:00\"".into()))
            }
            (from, until) => Ok(Hours(from, until)),
        }
    }
}

/// A time zone, by its name in the tz database.
pub(super) struct Zone(pub(super) String);

impl Written for Zone {
    const EXPECTED: &'static str = "the name of a time zone, such as \"Europe/Berlin\" or \"UTC\"";
    fn read(text: &str) -> Result<Self, Option<String>> {
        if calendar::is_zone(text) { Ok(Zone(text.to_owned())) } else { Err(None) }
    }
}

/// A number with a unit behind it, such as "12.5 Mbit/s": how many of `units` it is.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..unit].parse().ok()?;
    let (_, factor) = units.iter().find(|(name, _)| *name == text[unit..].trim_start())?;
    Some(number * factor)
}

/// What a link carries, in bits a second.
#[derive(Clone, Copy)]
pub(super) struct Rate(pub(super) u64);

impl Written for Rate {
    const EXPECTED: &'static str = "a rate such as \"10 Mbit/s\", from 8 kbit/s to 100 Gbit/s";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let rate = quantity(text, &[("bit/s", 1.0), ("kbit/s", 1e3), ("Mbit/s", 1e6), ("Gbit/s", 1e9)]);
        rate.filter(|rate| (8e3..=100e9).contains(rate)).map(|rate| Rate(rate as u64)).ok_or(None)
    }
}

/// A delay, as a limit.
#[derive(Clone, Copy)]
pub(super) struct Delay(pub(super) Duration);

impl Written for Delay {
    const EXPECTED: &'static str = "a delay such as \"150 ms\", up to 10 s";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let seconds = quantity(text, &[("ms", 1e-3), ("s", 1.0)]);
        seconds.filter(|s| *s > 0.0 && *s <= 10.0).map(|s| Delay(Duration::from_secs_f64(s))).ok_or(None)
    }
}

/// A part of a whole, in millionths.
#[derive(Clone, Copy)]
pub(super) struct Share(pub(super) u32);

impl Written for Share {
    const EXPECTED: &'static str = "a part such as \"2 %\", up to 100 %";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let percent = quantity(text, &[("%", 1.0)]);
        percent.filter(|percent| *percent <= 100.0).map(|percent| Share((percent * 1e4) as u32)).ok_or(None)
    }
}
