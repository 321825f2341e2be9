//! Policy files: the language that box and core read alike, with the place of whatever is wrong in it.
//!
//! ```toml
//! schema = 1
//!
//! [[link]]                 # gives an uplink a name
//! name = "lte"
//! slot = 1                 # as `mspmb status` shows it
//!
//! [[class]]                # a packet is of the first that it matches
//! name = "voice"
//! match = { dscp = ["ef", "cs5"] }
//! links = ["lte"]          # the most wanted first, both ways
//! priority = "realtime"
//! ```

use super::{Document, Schema, SettingsError, Text, Written, load, nearest};
use ipnet::IpNet;
use proto::policy::{Class, Matches, Otherwise, Policy, Priority, Treatment};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "schema")]
    _schema: Schema,
    #[serde(default)]
    link: Vec<Link>,
    #[serde(default)]
    class: Vec<ClassTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    name: String,
    slot: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassTable {
    name: String,
    #[serde(default, rename = "match")]
    matches: MatchTable,
    links: Option<Vec<String>>,
    otherwise: Option<OtherwiseWord>,
    up: Option<WayTable>,
    down: Option<WayTable>,
    priority: Option<PriorityWord>,
}

/// One direction of a class, where it is not as the other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WayTable {
    links: Vec<String>,
    #[serde(default)]
    otherwise: OtherwiseWord,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MatchTable {
    src: Several<Text<Network>>,
    dst: Several<Text<Network>>,
    proto: Several<Protocol>,
    sport: Several<Ports>,
    dport: Several<Ports>,
    dscp: Several<Codepoint>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OtherwiseWord {
    #[default]
    Any,
    Drop,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PriorityWord {
    Realtime,
    Normal,
}

/// One value, or a list of them.
struct Several<T>(Vec<T>);

impl<T> Default for Several<T> {
    fn default() -> Self {
        Several(Vec::new())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Array(values) if values.is_empty() => {
                return Err(D::Error::custom(
                    "the list is empty: nothing would match; leave it out to match everything",
                ));
            }
            serde_json::Value::Array(values) => values,
            value => vec![value],
        };
        let read = values.into_iter().map(|value| T::deserialize(value).map_err(D::Error::custom));
        Ok(Several(read.collect::<Result<_, _>>()?))
    }
}

/// A prefix, or one address.
struct Network(IpNet);

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
struct Protocol(u8);

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
struct Ports(RangeInclusive<u16>);

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

/// A differentiated services codepoint.
struct Codepoint(u8);

impl<'de> Deserialize<'de> for Codepoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "\"ef\", \"va\", \"le\", \"df\", \"cs0\" to \"cs7\", \"af11\" to \"af43\" or a number up to 63";
        number_or_word(deserializer, 63, codepoint, expected).map(|number| Codepoint(number as u8))
    }
}

/// The names in RFC 2474 (CS), RFC 2597 (AF), RFC 3246 (EF), RFC 5865 (VA) and RFC 8622 (LE).
fn codepoint(name: &str) -> Option<u64> {
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

/// Reads and checks a policy file.
pub fn read(path: &Path) -> Result<Policy, SettingsError> {
    let (file, document): (File, Document) = load(path, None)?;
    for (index, link) in file.link.iter().enumerate() {
        let wrong = |key: &str, problem: String| Err(document.error(&format!("link[{index}].{key}"), problem));
        if usize::from(link.slot) >= proto::MAX_SLOTS {
            return wrong(
                "slot",
                format!("{} does not exist; slots are 0 to 7, as `mspmb status` shows them", link.slot),
            );
        }
        if let Some(other) = file.link[..index].iter().find(|other| other.slot == link.slot || other.name == link.name)
        {
            let what =
                if other.name == link.name { "there are two links of this name" } else { "it is another link's" };
            let key = if other.name == link.name { "name" } else { "slot" };
            return wrong(key, format!("{what}: expected one [[link]] for each uplink"));
        }
    }
    let classes = file.class.into_iter().enumerate().map(|(index, table)| {
        let key = format!("class[{index}]");
        if table.name.trim().is_empty() {
            return Err(document.error(&format!("{key}.name"), "expected a name"));
        }
        table.compile(&key, &file.link, &document)
    });
    let classes: Vec<Class> = classes.collect::<Result<_, _>>()?;
    Policy::new(classes).map_err(|error| {
        let key = error.class().map_or("class".to_owned(), |class| format!("class[{class}]"));
        document.error(&key, error)
    })
}

impl ClassTable {
    fn compile(self, key: &str, links: &[Link], document: &Document) -> Result<Class, SettingsError> {
        if self.links.is_none() && self.otherwise.is_some() {
            let problem = "there are no `links` beside it that could fail: expected both, or `up` and `down`";
            return Err(document.error(&format!("{key}.otherwise"), problem));
        }
        if let (Some(_), Some(_), Some(_)) = (&self.links, &self.up, &self.down) {
            let problem = "there are `up` and `down` too, and nothing is left for it: leave it out";
            return Err(document.error(&format!("{key}.links"), problem));
        }
        let slots = |names: &[String], key: &str| -> Result<Vec<u8>, SettingsError> {
            if names.is_empty() {
                return Err(document.error(key, "the list is empty: leave it out for all links, or name one"));
            }
            let slot = |(place, name): (usize, &String)| {
                let key = format!("{key}[{place}]");
                if names[..place].contains(name) {
                    return Err(document.error(&key, format!("\"{name}\" is in the list twice")));
                }
                let found = links.iter().find(|link| link.name == *name).map(|link| link.slot);
                found.ok_or_else(|| document.error(&key, unknown_link(name, links)))
            };
            names.iter().enumerate().map(slot).collect()
        };
        let both = Treatment {
            links: self.links.map_or(Ok(Vec::new()), |names| slots(&names, &format!("{key}.links")))?,
            otherwise: self.otherwise.unwrap_or_default().into(),
        };
        let way = |table: Option<WayTable>, word: &str| match table {
            None => Ok(both.clone()),
            Some(table) => Ok(Treatment {
                links: slots(&table.links, &format!("{key}.{word}.links"))?,
                otherwise: table.otherwise.into(),
            }),
        };
        Ok(Class {
            name: self.name.into(),
            up: way(self.up, "up")?,
            down: way(self.down, "down")?,
            matches: self.matches.compile(),
            priority: self.priority.map(|word| match word {
                PriorityWord::Realtime => Priority::Realtime,
                PriorityWord::Normal => Priority::Normal,
            }),
        })
    }
}

impl MatchTable {
    fn compile(self) -> Matches {
        let networks = |list: Several<Text<Network>>| list.0.into_iter().map(|Text(Network(net))| net).collect();
        let ports = |list: Several<Ports>| list.0.into_iter().map(|Ports(range)| range).collect();
        Matches {
            src: networks(self.src),
            dst: networks(self.dst),
            proto: self.proto.0.into_iter().map(|Protocol(number)| number).collect(),
            sport: ports(self.sport),
            dport: ports(self.dport),
            dscp: self.dscp.0.into_iter().fold(0, |bits, Codepoint(number)| bits | 1 << number),
        }
    }
}

impl From<OtherwiseWord> for Otherwise {
    fn from(word: OtherwiseWord) -> Self {
        match word {
            OtherwiseWord::Any => Otherwise::Any,
            OtherwiseWord::Drop => Otherwise::Drop,
        }
    }
}

fn unknown_link(name: &str, links: &[Link]) -> String {
    let names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    let hint = match nearest(name, &names) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None if names.is_empty() => "give its uplink one: [[link]], name = …, slot = …".to_owned(),
        None => format!("known are {}", names.join(", ")),
    };
    format!("there is no link \"{name}\": {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::with_file;

    const LINKS: &str = "schema = 1\n[[link]]\nname = \"dsl\"\nslot = 0\n[[link]]\nname = \"lte\"\nslot = 1\n";

    fn policy(classes: &str) -> Result<Policy, String> {
        with_file("policy.toml", &format!("{LINKS}{classes}"), read)
    }

    #[test]
    fn what_is_written_is_what_is_in_force() {
        let policy = policy(
            "[[class]]\nname = \"voice\"\nmatch = { dscp = [\"ef\", \"cs5\", 44] }\nlinks = [\"lte\", \"dsl\"]\n\
             priority = \"realtime\"\n[[class]]\nname = \"records\"\nmatch = { dst = \"192.0.2.1\", proto = \"tcp\", \
             dport = [443, \"5000-5010\"] }\nup = { links = [\"lte\"], otherwise = \"drop\" }\n",
        );
        let policy = policy.expect("a good policy");
        let [voice, records, rest] = policy.classes() else { panic!("{policy:?}") };
        assert_eq!(voice.matches.dscp, 1 << 46 | 1 << 40 | 1 << 44);
        assert_eq!((&voice.up.links, &voice.down, voice.priority), (&vec![1, 0], &voice.up, Some(Priority::Realtime)));
        assert_eq!(records.matches.dst, ["192.0.2.1/32".parse().expect("a prefix")]);
        assert_eq!((&records.matches.proto, &records.matches.dport), (&vec![6], &vec![443..=443, 5000..=5010]));
        assert_eq!(records.up, Treatment { links: vec![1], otherwise: Otherwise::Drop });
        assert_eq!(records.down, Treatment::default());
        assert_eq!(&*rest.name, proto::policy::REST);
    }

    #[test]
    fn the_manuals_example_is_a_good_policy() {
        let manual = include_str!("../../../docs/policy.md");
        let (_, example) = manual.split_once("```toml\n").expect("there is an example");
        let (example, _) = example.split_once("```").expect("it ends");
        let policy = with_file("policy.toml", example, read).expect("a good policy");
        let names: Vec<&str> = policy.classes().iter().map(|class| &*class.name).collect();
        assert_eq!(names, ["voice", "records", "backups", "rest"]);
    }

    #[test]
    fn names_of_codepoints_are_those_of_their_rfcs() {
        let names = [("af11", 10), ("af43", 38), ("cs0", 0), ("cs7", 56), ("le", 1), ("ef", 46), ("va", 44)];
        for (name, number) in names {
            assert_eq!(codepoint(name), Some(number), "{name}");
        }
        for name in ["af44", "af53", "af1", "af001", "cs8", "cs", "cs+1", "af+1", "EF", "", "afé1"] {
            assert_eq!(codepoint(name), None, "{name}");
        }
    }

    #[test]
    fn errors_name_the_line_and_the_way_out() {
        for (class, expected) in [
            (
                "links = [\"lt\"]",
                "policy.toml:10:10: class[0].links[0]: there is no link \"lt\": did you mean \"lte\"?",
            ),
            ("links = [\"lte\", \"lte\"]", "policy.toml:10:17: class[0].links[1]: \"lte\" is in the list twice"),
            ("links = []", "policy.toml:10:9: class[0].links: the list is empty"),
            ("otherwise = \"drop\"", "policy.toml:10:13: class[0].otherwise: there are no `links` beside it"),
            (
                "match = { dst = \"192.0.2.1/24\" }",
                "policy.toml:10:17: class[0].match.dst: \"192.0.2.1/24\" has bits set",
            ),
            (
                "match = { dport = 70000 }",
                "policy.toml:10:19: class[0].match.dport: 70000 is not understood: expected a",
            ),
            ("match = { dport = \"9-1\" }", "policy.toml:10:19: class[0].match.dport: \"9-1\" is not understood"),
            ("match = { proto = \"tpc\" }", "policy.toml:10:19: class[0].match.proto: \"tpc\" is not understood: exp"),
            ("match = { dscp = [] }", "policy.toml:10:18: class[0].match.dscp: the list is empty: nothing would match"),
            (
                "match = { port = 1 }",
                "policy.toml:10:11: unknown key \"port\" in [class[0].match]; did you mean \"dport\"?",
            ),
            ("mode = \"bond\"", "policy.toml:10:1: unknown key \"mode\" in [class[0]]"),
            (
                "[[class]]\nname = \"b\"\nmatch = { proto = \"tcp\" }",
                "policy.toml:10:1: class[1]: no packet is ever of class \"b\": all that it matches is of \"a\" before it",
            ),
        ] {
            let error = policy(&format!("[[class]]\nname = \"a\"\n{class}\n")).expect_err(class);
            assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
        }
    }
}
