//! What is taken from neighbours, and by which of them the sites' packets leave.

use crate::bgp::rib::{Accept, ChoiceConfig};
use crate::bgp::routing::Transit;
use dataplane::settings::{Document, SettingsError, Text, check_interface};
use serde::Deserialize;
use std::time::Duration;

/// The most egress choices: each has a TUN, rules and a table of its own, and a full table takes a hundred megabytes of the
/// kernel's memory in each.
const MOST_CHOICES: usize = 16;
/// The kernel's table of the sites, which packets of every choice look into before their choice's own: named after the
/// routes' protocol number, and nobody else's.
pub(crate) const SITES_TABLE: u32 = 78_000;
/// The kernel's tables of the choices, from this number on.
const FIRST_TABLE: u32 = SITES_TABLE + 1;

/// An egress choice: by whom packets leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Egress {
    pub(crate) name: String,
    /// The TUN that its sites' packets come out of.
    pub(crate) tun: String,
    /// The kernel's table.
    pub(crate) table: u32,
    /// Places of neighbours, the preferred first; those together are equals.
    pub(crate) transits: Vec<Vec<usize>>,
}

impl Egress {
    pub(crate) fn choice(&self) -> ChoiceConfig {
        ChoiceConfig { name: self.name.clone(), table: self.table, transits: self.transits.clone() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EgressTable {
    name: String,
    transits: Vec<Place>,
}

/// A place in a list of transits: one of them, or several that are equals.
#[derive(Deserialize)]
#[serde(untagged)]
enum Place {
    One(String),
    Equals(Vec<String>),
}

/// What can be wanted of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AcceptWord {
    /// The default route.
    Default,
    /// Routes to what others announce.
    Table,
}

/// Both kinds, as far as they are named.
pub(super) fn accept(words: &[AcceptWord]) -> Accept {
    Accept { table: words.contains(&AcceptWord::Table), default: words.contains(&AcceptWord::Default) }
}

/// How much is taken of a neighbour, and when it is spoken to again after it sent more.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaxPrefixes {
    pub(super) ipv4: Option<u32>,
    pub(super) ipv6: Option<u32>,
    /// Never, if it is not given: somebody has to look first.
    pub(super) restart: Option<Text<Duration>>,
}

/// The name of a choice's TUN: the first has the one that is configured, and the next ones count on from it, as msp0,
/// msp1, msp2 do.
fn tun(first: &str, place: usize) -> String {
    let stem = first.trim_end_matches(|c: char| c.is_ascii_digit());
    let number: usize = first[stem.len()..].parse().unwrap_or(0);
    match place {
        0 => first.to_owned(),
        _ => format!("{stem}{}", number + place),
    }
}

/// Checks the choices against the neighbours, with the first one's TUN.
pub(super) fn check(
    tables: Vec<EgressTable>,
    transits: &[Transit],
    first_tun: &str,
    document: &Document,
) -> Result<Vec<Egress>, SettingsError> {
    if tables.len() > MOST_CHOICES {
        return Err(document.error("egress", format!("{}: expected at most {MOST_CHOICES}", tables.len())));
    }
    let mut choices: Vec<Egress> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let error = |key: String, problem: String| Err(document.error(&format!("egress[{index}].{key}"), problem));
        if table.name.is_empty() || choices.iter().any(|choice| choice.name == table.name) {
            return error("name".into(), "expected a name that no other choice has".into());
        }
        if table.transits.is_empty() {
            return error("transits".into(), "expected names of neighbours, the preferred first".into());
        }
        let (mut places, mut seen) = (Vec::new(), Vec::new());
        for (rank, place) in table.transits.iter().enumerate() {
            let names = match place {
                Place::One(name) => std::slice::from_ref(name),
                Place::Equals(names) => names,
            };
            let mut equals = Vec::new();
            for name in names {
                let key = format!("transits[{rank}]");
                let Some(neighbor) = transits.iter().position(|transit| transit.name == *name) else {
                    return error(key, format!("there is no neighbour {name:?}"));
                };
                if seen.contains(&neighbor) {
                    return error(key, format!("{name:?} is listed twice"));
                }
                if transits[neighbor].accept == Accept::default() {
                    let problem =
                        format!("nothing is taken of {name:?}: give it accept = [\"default\"] or [\"table\"]");
                    return error(key, problem);
                }
                seen.push(neighbor);
                equals.push(neighbor);
            }
            places.push(equals);
        }
        let tun = tun(first_tun, index);
        check_interface(document, "tun.name", &tun)?;
        choices.push(Egress { name: table.name, tun, table: FIRST_TABLE + index as u32, transits: places });
    }
    Ok(choices)
}
