//! Policy files: the language that box and core read alike, with the place of whatever is wrong in it.
//!
//! ```toml
//! schema = 1
//! stands = "wish"          # or "requirement", "default": where there are several files
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

mod merge;
mod words;

pub use merge::{Read, Rule, Stands};

use super::{Document, Octets, Schema, SettingsError, Several, Text, load, nearest};
use merge::Sheet;
use proto::policy::{
    Class, Direct, Egress, Limit, MOST_COPIES, Matches, Metered, Mode, Otherwise, Priority, Treatment, WhenIsolated,
    Window,
};
use serde::Deserialize;
use std::path::PathBuf;
use words::{Codepoint, Days, Delay, Hours, Network, Ports, Protocol, Rate, Share, Shown, Zone};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "schema")]
    _schema: Schema,
    #[serde(default)]
    stands: Stands,
    timezone: Option<Text<Zone>>,
    when_isolated: Option<IsolatedWord>,
    #[serde(default)]
    link: Vec<LinkTable>,
    #[serde(default)]
    class: Vec<ClassTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkTable {
    name: String,
    /// Said once, in whichever file.
    slot: Option<u8>,
    #[serde(default)]
    rate: RateTable,
    direction: Option<DirectionWord>,
    metered: Option<MeteredTable>,
    /// The DSCP of its outer headers.
    dscp: Option<Shown>,
    /// Their ECN field.
    ecn: Option<EcnWord>,
}

/// What it may carry in a month, and what happens then.
#[derive(PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeteredTable {
    cap: Text<Octets>,
    reset_day: Option<u8>,
    #[serde(default)]
    free: Several<Text<Days>>,
    /// "stop", which it does too if nothing is said, or the names of the classes that go on.
    #[serde(default)]
    over: Several<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateTable {
    up: Option<Text<Rate>>,
    down: Option<Text<Rate>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DirectionWord {
    Up,
    Down,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EcnWord {
    Copy,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassTable {
    name: String,
    #[serde(default, rename = "match")]
    matches: MatchTable,
    mode: Option<ModeWord>,
    links: Option<Vec<String>>,
    weights: Option<Vec<u16>>,
    copies: Option<u8>,
    otherwise: Option<OtherwiseWord>,
    limit: Option<LimitTable>,
    #[serde(default)]
    up: WayTable,
    #[serde(default)]
    down: WayTable,
    priority: Option<PriorityWord>,
    egress: Option<String>,
}

/// One direction of a class. What it leaves out is as the class has it.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WayTable {
    mode: Option<ModeWord>,
    links: Option<Vec<String>>,
    weights: Option<Vec<u16>>,
    copies: Option<u8>,
    otherwise: Option<OtherwiseWord>,
    limit: Option<LimitTable>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeWord {
    #[default]
    Prefer,
    Share,
    Balance,
    Duplicate,
    Bond,
    Direct,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum IsolatedWord {
    Wait,
    Direct,
}

impl From<IsolatedWord> for WhenIsolated {
    fn from(word: IsolatedWord) -> Self {
        match word {
            IsolatedWord::Wait => WhenIsolated::Wait,
            IsolatedWord::Direct => WhenIsolated::Direct,
        }
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitTable {
    latency: Option<Text<Delay>>,
    loss: Option<Text<Share>>,
    jitter: Option<Text<Delay>>,
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
    hours: Option<Text<Hours>>,
    days: Several<Text<Days>>,
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
    Background,
}

/// Who knows the core's egress choices by their names: the place of the TUN of each. The error says which there are, and a way
/// out.
pub type Choices<'a> = &'a dyn Fn(&str) -> Result<Option<u8>, String>;

/// Everybody but the core, who knows none and takes any name for good.
pub fn at_the_core(_: &str) -> Result<Option<u8>, String> {
    Ok(None)
}

/// Reads and checks the files of a policy, of which there may be none.
pub fn read(paths: &[PathBuf], choices: Choices<'_>) -> Result<Read, SettingsError> {
    let sheet = |path: &PathBuf| load(path, None).map(|(file, document)| Sheet { file, document });
    let mut sheets: Vec<Sheet> = paths.iter().map(sheet).collect::<Result<_, _>>()?;
    sheets.sort_by_key(Sheet::stands);
    merge::merge(sheets, choices)
}

/// FNV-1a: box and core need not fear that anybody makes two texts of one hash, who could as well write what he likes.
fn hash(text: &str) -> u64 {
    let octet = |hash: u64, octet: u8| (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3);
    text.bytes().fold(proto::policy::NO_POLICY, octet)
}

impl MeteredTable {
    /// `classes`: the names of all.
    fn compile(&self, key: &str, classes: &[String], document: &Document) -> Result<Metered, SettingsError> {
        let Text(Octets(cap)) = self.cap;
        if cap == 0 {
            return Err(document.error(&format!("{key}.cap"), "nothing could ever go by it: expected \"50 GB\", say"));
        }
        let reset_day = self.reset_day.unwrap_or(1);
        if !(1..=31).contains(&reset_day) {
            let problem =
                format!("{reset_day} is in no month: expected 1 to 31, which is the last day of a shorter one");
            return Err(document.error(&format!("{key}.reset_day"), problem));
        }
        let over = match &self.over.0[..] {
            [stop] if stop == "stop" => &[],
            names => names,
        };
        let class = |(place, name): (usize, &String)| {
            let found = classes.iter().position(|class| class == name).and_then(|place| u8::try_from(place).ok());
            found.ok_or_else(|| {
                let hint = nearest(name, classes).map(|near| format!("did you mean \"{near}\"?"));
                let hint = hint.unwrap_or_else(|| format!("expected \"stop\", or some of {}", classes.join(", ")));
                let key = if over.len() > 1 { format!("{key}.over[{place}]") } else { format!("{key}.over") };
                document.error(&key, format!("there is no class \"{name}\": {hint}"))
            })
        };
        Ok(Metered {
            cap,
            reset_day,
            free: Days::all(&self.free),
            over: over.iter().enumerate().map(class).collect::<Result<_, _>>()?,
        })
    }
}

/// What a class is read with.
struct Reader<'a> {
    links: &'a [(String, u8)],
    choices: Choices<'a>,
    stands: Stands,
    document: &'a Document,
}

impl ClassTable {
    fn compile(self, key: &str, reader: &Reader<'_>) -> Result<Class, SettingsError> {
        if self.mode == Some(ModeWord::Direct) {
            return self.compile_direct(key, reader);
        }
        let both = WayTable {
            mode: self.mode,
            links: self.links,
            weights: self.weights,
            copies: self.copies,
            otherwise: self.otherwise,
            limit: self.limit,
        };
        if let (Some(_), Some(_), Some(_)) = (&both.links, &self.up.links, &self.down.links) {
            let problem = "`up` and `down` have links too, and nothing is left for it: leave it out";
            return Err(reader.document.error(&format!("{key}.links"), problem));
        }
        let way = |way: WayTable, word: &str| {
            let place =
                |own: bool, name: &str| if own { format!("{key}.{word}.{name}") } else { format!("{key}.{name}") };
            let places = [
                place(way.mode.is_some(), "mode"),
                place(way.links.is_some(), "links"),
                place(way.weights.is_some(), "weights"),
                place(way.copies.is_some(), "copies"),
                place(way.otherwise.is_some(), "otherwise"),
            ];
            way.or(&both).compile(&places, reader)
        };
        Ok(Class {
            egress: self.egress.map(|name| reader.egress(&name, &format!("{key}.egress"))).transpose()?,
            name: self.name.into(),
            up: way(self.up, "up")?,
            down: way(self.down, "down")?,
            matches: self.matches.compile(),
            priority: self.priority.map(|word| match word {
                PriorityWord::Realtime => Priority::Realtime,
                PriorityWord::Normal => Priority::Normal,
                PriorityWord::Background => Priority::Background,
            }),
            direct: None,
        })
    }

    /// A class whose flows leave by an uplink itself: whole, both ways, and nothing of it is scheduled.
    fn compile_direct(self, key: &str, reader: &Reader<'_>) -> Result<Class, SettingsError> {
        let meaningless = [
            ("up", self.up.is_written(), "a flow comes back by the uplink by which it left"),
            ("down", self.down.is_written(), "a flow comes back by the uplink by which it left"),
            ("weights", self.weights.is_some(), "only mode = \"share\" draws links by weight"),
            ("copies", self.copies.is_some(), "only mode = \"duplicate\" sends copies"),
            ("limit", self.limit.is_some(), "outside of the tunnels nothing is measured"),
            ("priority", self.priority.is_some(), "outside of the tunnels nothing waits its turn"),
            ("egress", self.egress.is_some(), "outside of the tunnels nothing comes to the core"),
        ];
        if let Some((word, _, reason)) = meaningless.iter().find(|(_, written, _)| *written) {
            let problem = format!("mode = \"direct\" has none, since {reason}: leave it out");
            return Err(reader.document.error(&format!("{key}.{word}"), problem));
        }
        let links = self.links.map_or(Ok(Vec::new()), |names| reader.slots(&names, &format!("{key}.links")))?;
        let direct = Direct { links, otherwise: self.otherwise.unwrap_or_default().into() };
        let everything = Class::everything(&self.name);
        Ok(Class { matches: self.matches.compile(), direct: Some(direct), ..everything })
    }
}

impl WayTable {
    fn is_written(&self) -> bool {
        let WayTable { mode, links, weights, copies, otherwise, limit } = self;
        mode.is_some()
            || links.is_some()
            || weights.is_some()
            || copies.is_some()
            || otherwise.is_some()
            || limit.is_some()
    }

    /// What it leaves out as `both` has it. Another mode has nothing to do with the weights and copies of that one.
    fn or(self, both: &WayTable) -> WayTable {
        let same = self.mode.is_none_or(|mode| Some(mode) == both.mode);
        WayTable {
            mode: self.mode.or(both.mode),
            links: self.links.or_else(|| both.links.clone()),
            weights: self.weights.or_else(|| both.weights.clone().filter(|_| same)),
            copies: self.copies.or(both.copies.filter(|_| same)),
            otherwise: self.otherwise.or(both.otherwise),
            limit: self.limit.or_else(|| both.limit.clone()),
        }
    }

    /// `places`: where its mode, links, weights, copies and otherwise are written.
    fn compile(self, places: &[String; 5], reader: &Reader<'_>) -> Result<Treatment, SettingsError> {
        let [mode_at, links_at, weights_at, copies_at, otherwise_at] = places;
        let wrong = |key: &str, problem: &str| Err(reader.document.error(key, problem));
        if self.links.is_none() && self.otherwise.is_some() {
            return wrong(otherwise_at, "there are no `links` beside it that could fail: expected both");
        }
        let links = self.links.map_or(Ok(Vec::new()), |names| reader.slots(&names, links_at))?;
        let mode = self.mode.unwrap_or_default();
        if self.weights.is_some() && mode != ModeWord::Share {
            return wrong(weights_at, "only mode = \"share\" draws links by weight: expected that, or no weights");
        }
        if self.copies.is_some() && mode != ModeWord::Duplicate {
            return wrong(copies_at, "only mode = \"duplicate\" sends copies: expected that, or no copies");
        }
        let mode = match mode {
            ModeWord::Prefer => Mode::Prefer,
            ModeWord::Balance => Mode::Balance,
            ModeWord::Bond => Mode::Bond,
            ModeWord::Direct => {
                return wrong(
                    mode_at,
                    "a flow comes back by the uplink by which it left: expected it for the whole class",
                );
            }
            ModeWord::Share => {
                if links.is_empty() {
                    return wrong(mode_at, "expected `links`, and `weights` of as many numbers");
                }
                let weights = self.weights.unwrap_or_else(|| vec![1; links.len()]);
                if weights.len() != links.len() || weights.contains(&0) {
                    return wrong(weights_at, "expected a number of at least 1 for each of the links");
                }
                Mode::Share(weights)
            }
            ModeWord::Duplicate => match self.copies.unwrap_or(MOST_COPIES) {
                copies @ 2..=MOST_COPIES => Mode::Duplicate(copies),
                _ => return wrong(copies_at, "expected 2 to 4 links at once"),
            },
        };
        let limit = self.limit.unwrap_or_default();
        Ok(Treatment {
            links,
            mode,
            otherwise: self.otherwise.unwrap_or_default().into(),
            limit: Limit {
                latency: limit.latency.map(|Text(Delay(delay))| delay),
                loss_ppm: limit.loss.map(|Text(Share(ppm))| ppm),
                jitter: limit.jitter.map(|Text(Delay(delay))| delay),
            },
        })
    }
}

impl Reader<'_> {
    /// The slots of the links of these names.
    fn slots(&self, names: &[String], key: &str) -> Result<Vec<u8>, SettingsError> {
        if names.is_empty() {
            let problem = "the list is empty: leave it out for all links, or name one";
            return Err(self.document.error(key, problem));
        }
        let slot = |(place, name): (usize, &String)| {
            let key = format!("{key}[{place}]");
            if names[..place].contains(name) {
                return Err(self.document.error(&key, format!("\"{name}\" is in the list twice")));
            }
            let found = self.links.iter().find(|(link, _)| link == name).map(|(_, slot)| *slot);
            found.ok_or_else(|| self.document.error(&key, unknown_link(name, self.links)))
        };
        names.iter().enumerate().map(slot).collect()
    }

    /// The egress choice of this name.
    fn egress(&self, name: &str, key: &str) -> Result<Egress, SettingsError> {
        if self.stands == Stands::Wish {
            let problem = "by whom packets leave the core is the operator's to say, who pays for it: expected it in a file \
                           that has stands = \"requirement\" or \"default\" at its top";
            return Err(self.document.error(key, problem));
        }
        let tun = (self.choices)(name).map_err(|problem| self.document.error(key, problem))?;
        Ok(Egress { name: name.into(), tun })
    }
}

impl MatchTable {
    /// When it is sent, if that is said.
    fn window(&self) -> Option<Window> {
        if self.hours.is_none() && self.days.0.is_empty() {
            return None;
        }
        let days = Days::all(&self.days);
        let (from, until) = self.hours.map_or((0, 24 * 60), |Text(Hours(from, until))| (from, until));
        Some(Window { days: if days == 0 { 0x7f } else { days }, from, until })
    }

    fn compile(self) -> Matches {
        let networks = |list: Several<Text<Network>>| list.0.into_iter().map(|Text(Network(net))| net).collect();
        let ports = |list: Several<Ports>| list.0.into_iter().map(|Ports(range)| range).collect();
        Matches {
            window: self.window(),
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

fn unknown_link(name: &str, links: &[(String, u8)]) -> String {
    let names: Vec<String> = links.iter().map(|(link, _)| link.clone()).collect();
    let hint = match nearest(name, &names) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None if names.is_empty() => "give its uplink one: [[link]], name = …, slot = …".to_owned(),
        None => format!("known are {}", names.join(", ")),
    };
    format!("there is no link \"{name}\": {hint}")
}

#[cfg(test)]
mod tests;
