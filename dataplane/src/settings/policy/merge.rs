//! Several hands write a policy: what a requirement says counts before what a wish says, and that before a default (RFC 6418,
//! sections 4.3 and 5, of what happens where nobody has said so).
//!
//! A wish is refused, with both places, where it contradicts a requirement:
//! - it says of a link, of the time zone, or of what happens to a site that is cut off, what a requirement says otherwise;
//! - it has a class of the name of a requirement's;
//! - all packets of a class of its are of one class of a requirement, which treats them otherwise.
//!
//! Elsewhere both hold: a packet that both want is of the requirement's class. A default gives way without a word, to all that
//! stands in its place. Two files that count the same contradict each other as two lines of one file do.

use super::words::{Rate, Shown, Zone};
use super::{Choices, ClassTable, DirectionWord, EcnWord, File, LinkTable, MeteredTable, Reader, hash};
use crate::settings::{Document, Place, SettingsError, Text};
use proto::MAX_SLOTS;
use proto::outer::{Dscp, Ecn, Outer};
use proto::policy::{Class, Direction, Link, Policy, REST, WhenIsolated};
use serde::Deserialize;
use std::fmt::{self, Display};

/// As what a policy file counts; what is less counts more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stands {
    /// The operator's, against which nobody may wish.
    Requirement,
    /// The customer's. So does a file that says nothing of it.
    #[default]
    Wish,
    /// The operator's, for customers who wish nothing else.
    Default,
}

impl Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stands::Requirement => "a requirement",
            Stands::Wish => "a wish",
            Stands::Default => "a default",
        })
    }
}

/// A policy as it was read.
#[derive(Debug, Default)]
pub struct Read {
    /// To be put in force.
    pub policy: Policy,
    /// Who wrote each of its classes, and where. The last is nobody's, if nobody wrote one of everything.
    pub rules: Vec<Rule>,
    /// Classes that are not in it since others stand in their place: a sentence each.
    pub left_out: Vec<String>,
}

/// Where a class comes from.
#[derive(Clone, Debug)]
pub struct Rule {
    /// As what it counts.
    pub stands: Stands,
    /// Where it is written.
    pub place: Place,
}

/// A file that was read.
pub(super) struct Sheet {
    pub(super) file: File,
    pub(super) document: Document,
}

impl Sheet {
    pub(super) fn stands(&self) -> Stands {
        self.file.stands
    }

    /// Whether what stands here is of no account beside what stands there.
    fn gives_way(&self, to: &Sheet) -> bool {
        self.stands() == Stands::Default && to.stands() != Stands::Default
    }
}

/// What somebody has said, and where.
struct Said<'a, T> {
    value: T,
    sheet: &'a Sheet,
    key: String,
}

/// Notes what a sheet says, if it does, and nothing that counts more was said of it before.
fn say<'a, T: PartialEq>(
    said: &mut Option<Said<'a, T>>,
    value: Option<T>,
    sheet: &'a Sheet,
    key: String,
) -> Result<(), SettingsError> {
    let Some(value) = value else { return Ok(()) };
    match said {
        None => *said = Some(Said { value, sheet, key }),
        Some(before) if before.value == value || sheet.gives_way(before.sheet) => {}
        Some(before) => {
            let (stands, place) = (before.sheet.stands(), before.sheet.document.place(&before.key));
            let problem = format!("{stands} says otherwise ({place}): leave it out, or have that changed");
            return Err(sheet.document.error(&key, problem));
        }
    }
    Ok(())
}

/// What all have said of a link.
struct LinkSaid<'a> {
    name: &'a str,
    /// Where it is mentioned first.
    first: (&'a Sheet, String),
    slot: Option<Said<'a, u8>>,
    rate_up: Option<Said<'a, u64>>,
    rate_down: Option<Said<'a, u64>>,
    only: Option<Said<'a, Direction>>,
    metered: Option<Said<'a, &'a MeteredTable>>,
    dscp: Option<Said<'a, Dscp>>,
    ecn: Option<Said<'a, Ecn>>,
}

impl<'a> LinkSaid<'a> {
    fn say(&mut self, table: &'a LinkTable, sheet: &'a Sheet, key: &str) -> Result<(), SettingsError> {
        let at = |name: &str| format!("{key}.{name}");
        let only = table.direction.map(|word| match word {
            DirectionWord::Up => Direction::Up,
            DirectionWord::Down => Direction::Down,
        });
        let dscp = table.dscp.as_ref().map(|Shown(dscp)| *dscp);
        let ecn = table.ecn.map(|word| match word {
            EcnWord::Copy => Ecn::Copy,
            EcnWord::None => Ecn::Clear,
        });
        let rate = |rate: Option<Text<Rate>>| rate.map(|Text(Rate(rate))| rate);
        if let Some(slot) = table.slot.filter(|slot| usize::from(*slot) >= MAX_SLOTS) {
            let problem = format!("{slot} does not exist; slots are 0 to 7, as `mspmb status` shows them");
            return Err(sheet.document.error(&at("slot"), problem));
        }
        say(&mut self.slot, table.slot, sheet, at("slot"))?;
        say(&mut self.rate_up, rate(table.rate.up), sheet, at("rate.up"))?;
        say(&mut self.rate_down, rate(table.rate.down), sheet, at("rate.down"))?;
        say(&mut self.only, only, sheet, at("direction"))?;
        say(&mut self.dscp, dscp, sheet, at("dscp"))?;
        say(&mut self.ecn, ecn, sheet, at("ecn"))?;
        say(&mut self.metered, table.metered.as_ref(), sheet, at("metered"))
    }
}

/// What is said of links, each with all that is said of it.
fn links(sheets: &[Sheet]) -> Result<Vec<LinkSaid<'_>>, SettingsError> {
    let mut links: Vec<LinkSaid<'_>> = Vec::new();
    for sheet in sheets {
        for (index, table) in sheet.file.link.iter().enumerate() {
            let key = format!("link[{index}]");
            if sheet.file.link[..index].iter().any(|other| other.name == table.name) {
                let problem = "there are two links of this name: expected one [[link]] for each uplink";
                return Err(sheet.document.error(&format!("{key}.name"), problem));
            }
            let place = links.iter().position(|link| link.name == table.name).unwrap_or_else(|| {
                let (slot, rate_up, rate_down, only, metered, dscp, ecn) = Default::default();
                let first = (sheet, key.clone());
                links.push(LinkSaid { name: &table.name, first, slot, rate_up, rate_down, only, metered, dscp, ecn });
                links.len() - 1
            });
            links[place].say(table, sheet, &key)?;
        }
    }
    for (place, link) in links.iter().enumerate() {
        let Some(slot) = &link.slot else {
            let problem =
                format!("nobody says which uplink \"{}\" is: expected `slot`, as `mspmb status` shows it", link.name);
            return Err(link.first.0.document.error(&link.first.1, problem));
        };
        let other =
            links[..place].iter().find(|other| other.slot.as_ref().is_some_and(|other| other.value == slot.value));
        if let Some(other) = other {
            let problem = format!("it is \"{}\"'s: expected one [[link]] for each uplink", other.name);
            return Err(slot.sheet.document.error(&slot.key, problem));
        }
    }
    Ok(links)
}

/// A class, and where it is written.
struct Written<'a> {
    class: Class,
    sheet: &'a Sheet,
    key: String,
}

impl Written<'_> {
    fn place(&self) -> Place {
        self.sheet.document.place(&self.key)
    }

    fn named(&self) -> String {
        format!("\"{}\", {} ({})", self.class.name, self.sheet.stands(), self.place())
    }

    /// Whether this one is in force beside another that counts more. `Ok(Some)`: it is left out, and why.
    fn beside(&self, other: &Written<'_>) -> Result<Option<String>, SettingsError> {
        let same_name = self.class.name == other.class.name;
        if self.sheet.stands() == other.sheet.stands()
            || !(same_name || other.class.matches.covers(&self.class.matches))
        {
            return Ok(None);
        }
        let alike = self.class.up == other.class.up
            && self.class.down == other.class.down
            && self.class.direct == other.class.direct
            && self.class.priority == other.class.priority;
        if self.sheet.stands() == Stands::Default || (alike && !same_name) {
            return Ok(Some(format!("class {} is left out beside {}", self.named(), other.named())));
        }
        let problem = match same_name {
            true => format!("there is a class {}: give it another name, or leave it out", other.named()),
            false => format!(
                "all its packets are of class {}, which treats them otherwise: leave it out, or have that changed",
                other.named()
            ),
        };
        Err(self.sheet.document.error(&self.key, problem))
    }
}

/// Puts together what all have said. The sheets are in the order in which they count.
pub(super) fn merge(mut sheets: Vec<Sheet>, choices: Choices<'_>) -> Result<Read, SettingsError> {
    let tables: Vec<Vec<ClassTable>> = sheets.iter_mut().map(|sheet| std::mem::take(&mut sheet.file.class)).collect();
    let Some(last) = sheets.last() else { return Ok(Read::default()) };
    let (sheets, mut zone, mut isolated, mut said) = (&sheets[..], None, None, String::new());
    for sheet in sheets {
        let name = sheet.file.timezone.as_ref().map(|Text(Zone(name))| name.as_str());
        say(&mut zone, name, sheet, "timezone".to_owned())?;
        let when_isolated = sheet.file.when_isolated.map(WhenIsolated::from);
        say(&mut isolated, when_isolated, sheet, "when_isolated".to_owned())?;
        said += &sheet.document.canonical()?;
    }
    let clock = |sheet: &Sheet, key: &str| match &zone {
        Some(_) => Ok(()),
        None => {
            let problem = "days of which clock? Expected `timezone` at the top of the file, such as \"Europe/Berlin\"";
            Err(sheet.document.error(key, problem))
        }
    };
    let links = links(sheets)?;
    let names: Vec<(String, u8)> =
        links.iter().filter_map(|link| Some((link.name.to_owned(), link.slot.as_ref()?.value))).collect();
    let (mut classes, mut left_out): (Vec<Written<'_>>, Vec<String>) = (Vec::new(), Vec::new());
    for (sheet, tables) in sheets.iter().zip(tables) {
        let reader = Reader { links: &names, choices, stands: sheet.stands(), document: &sheet.document };
        for (index, table) in tables.into_iter().enumerate() {
            let key = format!("class[{index}]");
            if table.name.trim().is_empty() {
                return Err(sheet.document.error(&format!("{key}.name"), "expected a name"));
            }
            let class = table.compile(&key, &reader)?;
            if class.matches.window.is_some() {
                clock(sheet, &format!("{key}.match"))?;
            }
            let written = Written { class, sheet, key };
            let mut why = None;
            for other in &classes {
                why = why.or(written.beside(other)?);
            }
            match why {
                Some(why) => left_out.push(why),
                None => classes.push(written),
            }
        }
    }
    let mut class_names: Vec<String> = classes.iter().map(|written| written.class.name.to_string()).collect();
    class_names.push(REST.to_owned());
    let mut compiled: [Link; MAX_SLOTS] = Default::default();
    for link in &links {
        let Some(slot) = &link.slot else { continue };
        let metered = link.metered.as_ref().map(|said| {
            clock(said.sheet, &said.key)?;
            said.value.compile(&said.key, &class_names, &said.sheet.document)
        });
        compiled[usize::from(slot.value)] = Link {
            name: Some(link.name.into()),
            rate_up: link.rate_up.as_ref().map(|said| said.value),
            rate_down: link.rate_down.as_ref().map(|said| said.value),
            only: link.only.as_ref().map(|said| said.value),
            metered: metered.transpose()?,
            outer: Outer {
                dscp: link.dscp.as_ref().map_or_else(Dscp::default, |said| said.value),
                ecn: link.ecn.as_ref().map_or_else(Ecn::default, |said| said.value),
            },
        };
    }
    let rules: Vec<Rule> =
        classes.iter().map(|written| Rule { stands: written.sheet.stands(), place: written.place() }).collect();
    let policy = Policy::new(compiled, classes.iter().map(|written| written.class.clone()).collect());
    let policy = policy.map_err(|error| match error.class().and_then(|class| classes.get(class)) {
        Some(written) => written.sheet.document.error(&written.key, error),
        None => last.document.error("class", error),
    })?;
    let zone = zone.map(|said| said.value.into());
    let when_isolated = isolated.map_or_else(WhenIsolated::default, |said| said.value);
    let policy = policy.in_zone(zone).with_isolation(when_isolated).with_hash(hash(&said));
    Ok(Read { policy, rules, left_out })
}
