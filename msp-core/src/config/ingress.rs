//! What the sites' prefixes are announced with, and to whom: `[[ingress]]` and `[[aggregate]]`.

use crate::bgp::ingress::{Aggregate, Announce, AnyCommunity, Pattern, Policy, Rule, Said, Slots, When};
use crate::bgp::routing::Transit;
use crate::sites::Sites;
use dataplane::settings::{Document, SettingsError, Text, Written};
use ipnet::IpNet;
use proto::MAX_SLOTS;
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::Arc;

/// The longest prepending: a path that is longer by as much loses to any other, and some networks refuse paths of more than 50.
const MOST_PREPENDED: u8 = 16;
/// How many communities a route may have: half a message is left for prefixes, whatever their kinds.
const MOST_COMMUNITIES: usize = 64;
/// How many aggregates there may be. Each is looked at for each site.
const MOST_AGGREGATES: usize = 256;

/// A rule, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IngressTable {
    sites: Option<Vec<String>>,
    aggregates: Option<Vec<String>>,
    neighbors: Option<Vec<String>>,
    #[serde(default)]
    when: WhenTable,
    announce: Option<Announce>,
    #[serde(default)]
    prepend: u8,
    med: Option<u32>,
    local_pref: Option<u32>,
    #[serde(default)]
    communities: Vec<Text<AnyCommunity>>,
}

#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhenTable {
    only: Option<Vec<u8>>,
    any: Option<Vec<u8>>,
    none: Option<Vec<u8>>,
    at_least: Option<u32>,
    at_most: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AggregateTable {
    name: String,
    prefix: Text<IpNet>,
    #[serde(default)]
    always: bool,
}

impl Written for AnyCommunity {
    const EXPECTED: &'static str = "a community such as \"64500:120\", \"64500:1:2\", \"rt:64500:1\" or \"no-export\"";
    fn read(text: &str) -> Result<Self, Option<String>> {
        AnyCommunity::read(text).ok_or(None)
    }
}

/// Rules and aggregates, and what is to be checked when the sites are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ingress {
    pub(crate) policy: Policy,
    /// Sites that are named, each with what is to be said if there is none of that name.
    sites: Vec<(String, String)>,
    /// What is to be said, before the reason, if an aggregate does not go with the sites.
    aggregates: Vec<String>,
}

impl Ingress {
    /// Do policy and sites go together? The error names file, line and key.
    pub(crate) fn check(&self, sites: &Sites) -> Result<(), String> {
        let names: HashSet<&str> = sites.list.iter().map(|site| site.peer.name.as_str()).collect();
        if let Some((_, problem)) = self.sites.iter().find(|(name, _)| !names.contains(name.as_str())) {
            return Err(problem.clone());
        }
        for (aggregate, place) in self.policy.aggregates.iter().zip(&self.aggregates) {
            if let Some(prefix) = sites.prefixes().find(|prefix| prefix.contains(&aggregate.prefix)) {
                return Err(format!("{place} {} is within {prefix} of a site: it would hide it", aggregate.prefix));
            }
        }
        Ok(())
    }
}

/// Checks rules and aggregates against the neighbours.
pub(super) fn check(
    rules: Vec<IngressTable>,
    aggregates: Vec<AggregateTable>,
    neighbors: &[Transit],
    document: &Document,
) -> Result<Ingress, SettingsError> {
    let mut policy = Policy::default();
    let at = |key: String, problem: String| document.error(&key, problem).to_string();
    let places = 0..aggregates.len();
    let places: Vec<String> =
        places.map(|index| at(format!("aggregate[{index}].prefix"), String::new()).trim_end().to_owned()).collect();
    for (index, AggregateTable { name, prefix: Text(prefix), always }) in aggregates.into_iter().enumerate() {
        let error = |key: &str, problem: String| Err(document.error(&format!("aggregate[{index}].{key}"), problem));
        if index >= MOST_AGGREGATES {
            return error("name", format!("there are more than {MOST_AGGREGATES} aggregates"));
        }
        if name.is_empty() || policy.aggregates.iter().any(|other| other.name == name) {
            return error("name", "expected a name that no other aggregate has".into());
        }
        let overlaps = |other: &&Aggregate| other.prefix.contains(&prefix) || prefix.contains(&other.prefix);
        if let Some(other) = policy.aggregates.iter().find(overlaps) {
            return error("prefix", format!("{prefix} overlaps {} of aggregate {:?}", other.prefix, other.name));
        }
        policy.aggregates.push(Aggregate { name, prefix, always });
    }
    let mut sites = Vec::new();
    for (index, table) in rules.into_iter().enumerate() {
        let exact = |(place, name): (usize, &String)| {
            let name = Pattern(name.clone()).exact()?.to_owned();
            let problem = at(format!("ingress[{index}].sites[{place}]"), format!("there is no site {name:?}"));
            Some((name, problem))
        };
        sites.extend(table.sites.iter().flatten().enumerate().filter_map(exact));
        let rule = table.check(&policy.aggregates, neighbors);
        let place = |(key, problem): (String, String)| document.error(&format!("ingress[{index}].{key}"), problem);
        policy.rules.push(rule.map_err(place)?);
    }
    Ok(Ingress { policy, sites, aggregates: places })
}

impl IngressTable {
    /// An error is the key and what is wrong with it.
    fn check(self, aggregates: &[Aggregate], neighbors: &[Transit]) -> Result<Rule, (String, String)> {
        let error = |key: String, problem: String| Err((key, problem));
        for (key, list) in [("sites", &self.sites), ("aggregates", &self.aggregates), ("neighbors", &self.neighbors)] {
            let list = list.iter().flatten().enumerate();
            if let Some((place, _)) = list.clone().find(|(_, name)| name.trim_end_matches('*').contains('*')) {
                return error(format!("{key}[{place}]"), "a `*` stands at the end of a name alone".into());
            }
            if let Some((place, _)) = list.clone().find(|(_, name)| name.is_empty()) {
                return error(format!("{key}[{place}]"), "expected a name, or the beginning of names and `*`".into());
            }
        }
        let patterns =
            |names: Option<Vec<String>>| names.map(|names| names.into_iter().map(Pattern).collect::<Vec<_>>());
        let (sites, around) = (patterns(self.sites), patterns(self.aggregates));
        for (place, pattern) in around.iter().flatten().enumerate() {
            if !aggregates.iter().any(|aggregate| pattern.matches(&aggregate.name)) {
                let known = known(aggregates.iter().map(|aggregate| &aggregate.name));
                return error(
                    format!("aggregates[{place}]"),
                    format!("there is no aggregate {:?}: {known}", pattern.0),
                );
            }
        }
        let mut places = None;
        for (place, pattern) in patterns(self.neighbors).iter().flatten().enumerate() {
            let places = places.get_or_insert_with(Vec::new);
            let before = places.len();
            let named = neighbors.iter().enumerate().filter(|(_, neighbor)| pattern.matches(&neighbor.name));
            places.extend(named.map(|(number, _)| number));
            if places.len() == before {
                let known = known(neighbors.iter().map(|neighbor| &neighbor.name));
                return error(format!("neighbors[{place}]"), format!("there is no neighbour {:?}: {known}", pattern.0));
            }
        }
        if self.when != WhenTable::default() && around.is_some() {
            return error("when".into(), "conditions are of a site's paths, and an aggregate has none".into());
        }
        if self.prepend > MOST_PREPENDED {
            return error("prepend".into(), format!("{}: expected 0 to {MOST_PREPENDED}", self.prepend));
        }
        if self.communities.len() > MOST_COMMUNITIES {
            return error("communities".into(), format!("expected {MOST_COMMUNITIES} at most"));
        }
        let (mut standard, mut extended, mut large) = (Vec::new(), Vec::new(), Vec::new());
        for Text(community) in &self.communities {
            match community {
                AnyCommunity::Standard(community) => standard.push(*community),
                AnyCommunity::Extended(community) => extended.push(*community),
                AnyCommunity::Large(community) => large.push(*community),
            }
        }
        let said = Said {
            prepend: self.prepend,
            med: self.med,
            local_pref: self.local_pref,
            communities: standard.into(),
            extended_communities: extended.into(),
            large_communities: large.into(),
            aggregator: None,
        };
        let when = self.when.check()?;
        Ok(Rule { sites, aggregates: around, neighbors: places, when, announce: self.announce, said: Arc::new(said) })
    }
}

impl WhenTable {
    fn check(self) -> Result<When, (String, String)> {
        let slots = |key: &str, slots: Option<Vec<u8>>| -> Result<Option<Slots>, (String, String)> {
            let Some(list) = slots else { return Ok(None) };
            if list.is_empty() {
                return Err((format!("when.{key}"), "expected one slot at least".into()));
            }
            match list.iter().position(|&slot| usize::from(slot) >= MAX_SLOTS) {
                Some(place) => {
                    let problem = format!("slot {}: expected 0 to {}", list[place], MAX_SLOTS - 1);
                    Err((format!("when.{key}[{place}]"), problem))
                }
                None => Ok(Some(list.into_iter().collect())),
            }
        };
        Ok(When {
            only: slots("only", self.only)?,
            any: slots("any", self.any)?,
            none: slots("none", self.none)?,
            at_least: self.at_least,
            at_most: self.at_most,
        })
    }
}

/// The way out where a name is not there.
fn known<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names[..] {
        [] => "none is configured; make it, or leave this out".into(),
        _ => format!("expected one of {}, or the beginning of some with a *", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::scratch::Folder;

    const BEGINNING: &str = r#"schema = 1
pop = 1
private_key_file = "private.key"
listen = ["0.0.0.0:51820"]
sites = "sites.d"
[bgp]
local_as = 64500
router_id = "192.0.2.1"
[[bgp.neighbor]]
name = "transit-a"
address = "203.0.113.1"
remote_as = 64501
[[bgp.neighbor]]
name = "transit-b"
address = "203.0.114.1"
remote_as = 64502
"#;

    /// What loading such rules says, without the file's folder.
    fn load(rules: &str) -> Result<Ingress, String> {
        let folder = Folder::new();
        let path = folder.write("msp-core.toml", &format!("{BEGINNING}{rules}"));
        let error = |error: SettingsError| error.to_string().replace(&format!("{}/", folder.path().display()), "");
        Config::load(&path).map(|config| config.ingress).map_err(error)
    }

    #[test]
    fn the_manual_s_examples_are_good() {
        let manual = include_str!("../../../docs/ingress.md");
        let blocks = manual.split("```toml\n").skip(1).filter_map(|block| block.split_once("```"));
        let examples: String = blocks.map(|(block, _)| block).collect();
        let Ingress { policy, sites, .. } = load(&examples).expect("good examples");
        assert_eq!((policy.rules.len(), policy.aggregates.len()), (5, 1));
        let lte = &policy.rules[0];
        assert_eq!((lte.neighbors.as_deref(), lte.said.prepend, lte.said.med), (Some(&[0][..]), 2, Some(200)));
        assert_eq!(
            lte.said.communities.len() + lte.said.extended_communities.len() + lte.said.large_communities.len(),
            4
        );
        assert_eq!(lte.when, When { only: Some([2].into_iter().collect()), ..When::default() });
        let named: Vec<&str> = sites.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["office", "test-1", "office"]);
    }

    #[test]
    fn errors_name_file_line_key_and_what_was_expected() {
        for (rules, expected) in [
            (
                "[[ingress]]\nneighbors = [\"transit-c\"]",
                "18:14: ingress[0].neighbors[0]: there is no neighbour \"transit-c\"",
            ),
            ("[[ingress]]\naggregates = [\"x\"]", "18:15: ingress[0].aggregates[0]: there is no aggregate \"x\""),
            ("[[ingress]]\nsites = [\"a*b\"]", "18:10: ingress[0].sites[0]: a `*` stands at the end of a name"),
            ("[[ingress]]\nwhen = { only = [0, 8] }", "18:21: ingress[0].when.only[1]: slot 8: expected 0 to 7"),
            ("[[ingress]]\nwhen = { any = [] }", "18:16: ingress[0].when.any: expected one slot at least"),
            ("[[ingress]]\nprepend = 17", "18:11: ingress[0].prepend: 17: expected 0 to 16"),
            ("[[ingress]]\nannounce = \"all\"", "18:12: ingress[0].announce: unknown variant `all`"),
            (
                "[[ingress]]\ncommunities = [\"64500:1\", \"64500:65536\"]",
                "18:27: ingress[0].communities[1]: \"64500:65536\" is not understood: expected a community such as",
            ),
            (
                "[[aggregate]]\nname = \"a\"\nprefix = \"10.0.0.0/8\"\n[[aggregate]]\nname = \"b\"\nprefix = \"10.1.0.0/16\"",
                "22:10: aggregate[1].prefix: 10.1.0.0/16 overlaps 10.0.0.0/8 of aggregate \"a\"",
            ),
            (
                "[[aggregate]]\nname = \"a\"\nprefix = \"10.0.0.0/8\"\n[[ingress]]\naggregates = [\"*\"]\nwhen = { at_most = 1 }",
                "22:8: ingress[0].when: conditions are of a site's paths",
            ),
        ] {
            let error = load(rules).expect_err(rules);
            assert!(error.starts_with(&format!("msp-core.toml:{expected}")), "{error}\nexpected: {expected}");
        }
    }

    #[test]
    fn policy_and_sites_must_go_together() {
        let folder = Folder::new();
        let key = proto::SecretKey::from_bytes([7; 32]);
        let text =
            "schema = 1\nid = 1\nname = \"home\"\nprefixes = [\"198.51.100.0/24\"]\n[client]\npublic_key = \"KEY\"\n";
        folder.write("home.toml", &text.replace("KEY", &proto::SecretKey::from_bytes([8; 32]).public().to_string()));
        let path = Folder::new();
        let path = Config::load(&path.write("msp-core.toml", BEGINNING)).expect("a good file");
        let surroundings = crate::sites::Surroundings::new(&path, &key);
        let sites = Sites::load(folder.path(), &surroundings).expect("a good site");
        for (rules, expected) in [
            ("[[ingress]]\nsites = [\"home\", \"h*\", \"x*\"]", None),
            (
                "[[ingress]]\nsites = [\"home\", \"homer\"]",
                Some("18:18: ingress[0].sites[1]: there is no site \"homer\""),
            ),
            ("[[aggregate]]\nname = \"a\"\nprefix = \"198.51.0.0/16\"", None),
            (
                "[[aggregate]]\nname = \"a\"\nprefix = \"198.51.100.0/24\"",
                Some("19:10: aggregate[0].prefix: 198.51.100.0/24 is within 198.51.100.0/24 of a site"),
            ),
        ] {
            let error = load(rules).expect("good rules").check(&sites).err();
            let starts =
                error.as_ref().zip(expected).is_some_and(|(error, expected)| error.contains(&format!(":{expected}")));
            assert!(starts || (error.is_none() && expected.is_none()), "{error:?}\nexpected: {expected:?}");
        }
    }
}
