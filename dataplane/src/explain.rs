//! What policy says of a packet, and by which link it would go now: for people, at both ends.

use crate::calendar;
use crate::settings::policy::Rule;
use ipnet::IpNet;
use proto::policy::{Class, Direction, Facts, Limit, Link, Mode, Otherwise, Policy, Treatment};
use proto::snapshot::{PathSnapshot, PeerSnapshot};
use proto::{MAX_SLOTS, PathState};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// A packet, as far as policy looks at it, as both daemons' commands take it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Packet {
    /// The host of the site, whichever way the packet goes [default: the first address of the site]
    #[arg(long, value_name = "ADDRESS")]
    pub src: Option<IpAddr>,
    /// The host outside
    #[arg(long, value_name = "ADDRESS")]
    pub dst: IpAddr,
    /// The number of the protocol above IP: 6 is TCP, 17 is UDP
    #[arg(long, value_name = "NUMBER", default_value_t = 6)]
    pub proto: u8,
    /// The port of the site's host
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub sport: u16,
    /// The port outside
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub dport: u16,
    /// The differentiated services codepoint
    #[arg(long, value_name = "0-63", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..64))]
    pub dscp: u8,
}

impl Packet {
    /// What is matched of it. `None`: no source is given, and the site has no prefix of the family.
    pub fn facts(&self, site: &[IpNet]) -> Option<Facts> {
        let &Packet { src, dst, proto, sport, dport, dscp } = self;
        let own = site.iter().find(|prefix| prefix.addr().is_ipv4() == dst.is_ipv4());
        let src = src.or(own.map(IpNet::addr))?;
        Some(Facts { src, dst, proto, ports: Some((sport, dport)), dscp })
    }
}

/// Who explains.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The direction of which this end decides.
    pub decides: Direction,
    /// Who decides of the other, and is to be asked for it.
    pub other: &'a str,
    /// The other end, as this one sees it; `None`: the daemon does not answer.
    pub peer: Option<&'a PeerSnapshot>,
    /// The interface of each slot, where it is known.
    pub interfaces: &'a [(u8, String)],
    /// Where a new flow of the class goes outside of the tunnels, if it does: a sentence.
    pub outside: Option<&'a str>,
}

/// The class of a packet with whose rule that is, what becomes of it in both directions, each link with why it may carry it or
/// not, and the link that it takes in the direction that this end decides of.
pub fn explain(policy: &Policy, rules: &[Rule], facts: &Facts, end: &End<'_>) -> String {
    let open = calendar::open_now(policy);
    let number = usize::from(policy.classify(facts, open));
    let class = &policy.classes()[number];
    let mut text = format!("class {:?}, number {} of {}", class.name, number + 1, policy.classes().len());
    let _ = match rules.get(number) {
        Some(rule) => writeln!(text, ": {}, {}", rule.stands, rule.place),
        None => writeln!(text, ": what is of no other"),
    };
    for (before, other) in policy.classes()[..number].iter().enumerate() {
        if !policy.is_open(before, open) && other.matches.matches(facts) {
            let _ = writeln!(text, "  it would be of class {:?}, whose hours these are not", other.name);
        }
    }
    if let Some(direct) = &class.direct {
        let links: Vec<String> = direct.links.iter().map(|slot| name(policy, *slot)).collect();
        let links =
            if links.is_empty() { "all links, the most preferred first".to_owned() } else { links.join(", then ") };
        let otherwise = match direct.otherwise {
            Otherwise::Any => "then by the tunnels",
            Otherwise::Drop => "and by nothing else",
        };
        let _ = writeln!(text, "outside of the tunnels, by an uplink itself: {links}, {otherwise}");
    }
    let running = end.peer.and_then(|peer| peer.classes.get(number)).filter(|running| running.name == *class.name);
    for (direction, word) in [(Direction::Up, "up"), (Direction::Down, "down")] {
        let treatment = class.treatment(direction);
        let _ = writeln!(text, "{word}: {}", order(policy, treatment));
        for slot in 0..MAX_SLOTS as u8 {
            let of_slot = |path: &&PathSnapshot| path.id.slot == slot;
            let path = end.peer.and_then(|peer| peer.paths.iter().filter(of_slot).min_by_key(|path| path.stands_by));
            let link = &policy.links()[usize::from(slot)];
            if path.is_none() && link.name.is_none() {
                continue;
            }
            let interface = end.interfaces.iter().find(|(of, _)| *of == slot).map(|(_, interface)| interface.as_str());
            let eligible = eligible(number, class, direction, link, slot, path);
            // What is measured of it is how it carries what this end sends.
            let beyond =
                running.filter(|_| direction == end.decides).map(|running| running.beyond_limit.contains(&slot));
            let limits = beyond.zip(path).and_then(|(beyond, path)| limits(&treatment.limit, path, beyond));
            let limits = limits.map_or(String::new(), |limits| format!("; {limits}"));
            let _ = writeln!(text, "  {}: {eligible}{limits}", label(policy, slot, interface));
        }
        let _ = match (end.peer, running) {
            (None, _) => writeln!(text, "the daemon does not answer: how its links are is not known"),
            _ if direction == end.decides && end.outside.is_some() => {
                writeln!(text, "{}", end.outside.unwrap_or_default())
            }
            _ if direction != end.decides => {
                writeln!(text, "which of them it takes {word} is known there: {}", end.other)
            }
            (Some(_), None) => {
                writeln!(text, "the policy in force is another one than in the file: send the daemon a SIGHUP")
            }
            (Some(_), Some(running)) => {
                let mut slots: Vec<u8> = running.slots.clone();
                slots.extend(running.current_slot.filter(|_| slots.is_empty()));
                let slots: Vec<String> = slots.iter().map(|slot| label(policy, *slot, None)).collect();
                match slots.is_empty() {
                    true => writeln!(text, "goes {word} by no link now: it is dropped"),
                    false => writeln!(text, "goes {word} by {} now", slots.join(", ")),
                }
            }
        };
    }
    text
}

/// What a link is called.
fn name(policy: &Policy, slot: u8) -> String {
    let name = policy.links().get(usize::from(slot)).and_then(|link| link.name.as_deref());
    name.map_or_else(|| format!("slot {slot}"), str::to_owned)
}

/// The same, with all by which it may be known.
fn label(policy: &Policy, slot: u8, interface: Option<&str>) -> String {
    let named = policy.links().get(usize::from(slot)).is_some_and(|link| link.name.is_some());
    let known: Vec<String> =
        named.then(|| format!("slot {slot}")).into_iter().chain(interface.map(str::to_owned)).collect();
    match known.is_empty() {
        true => name(policy, slot),
        false => format!("{} ({})", name(policy, slot), known.join(", ")),
    }
}

/// Each limit that there is: its name, how much of it there may be, how much of it a path has, and the unit of both.
fn figures(limit: &Limit, path: Option<&PathSnapshot>) -> Vec<(&'static str, f64, Option<f64>, &'static str)> {
    let time = |limit: Option<Duration>| limit.map(|limit| limit.as_micros() as f64 / 1e3);
    let loss = path.and_then(|path| path.loss_spans[0]).map(|share| share * 100.0);
    let all = [
        ("latency", time(limit.latency), path.and_then(|path| path.latency_ms), "ms"),
        ("loss", limit.loss_ppm.map(|ppm| f64::from(ppm) / 1e4), loss, "%"),
        ("jitter", time(limit.jitter), path.and_then(|path| path.rtt_var_ms), "ms"),
    ];
    all.into_iter().filter_map(|(word, most, measured, unit)| Some((word, most?, measured, unit))).collect()
}

/// What the limits of a class mean for a link now: what is measured of it, and what may be. `None`: there are none.
fn limits(limit: &Limit, path: &PathSnapshot, beyond: bool) -> Option<String> {
    let figures = figures(limit, Some(path));
    let exceeded = figures.iter().any(|(_, most, measured, _)| measured.is_some_and(|measured| measured > *most));
    let verdict = match (beyond, exceeded) {
        (true, true) => "beyond its limits, and left while another is within",
        (true, false) => "was beyond its limits: taken again when it has been below four fifths of them for 5 s",
        (false, _) => "within its limits",
    };
    let said = |&(word, most, measured, unit): &(&str, f64, Option<f64>, &str)| match measured {
        Some(measured) => format!("{word} {measured:.1} {unit} of {most} {unit}"),
        None => format!("{word} not known yet, of {most} {unit}"),
    };
    let said: Vec<String> = figures.iter().map(said).collect();
    (!said.is_empty()).then(|| format!("{verdict} ({})", said.join(", ")))
}

/// In which order links are taken, and how.
fn order(policy: &Policy, treatment: &Treatment) -> String {
    let how = match &treatment.mode {
        Mode::Prefer => "by the first that works".to_owned(),
        Mode::Share(weights) => {
            let weights: Vec<String> = weights.iter().map(ToString::to_string).collect();
            format!("each flow by one, drawn {}", weights.join(":"))
        }
        Mode::Balance => "each flow by the one with most room".to_owned(),
        Mode::Duplicate(copies) => format!("by {copies} at once at most, the first copy counts"),
        Mode::Bond => "each packet by whichever has room".to_owned(),
    };
    let limits = figures(&treatment.limit, None);
    let limits: Vec<_> = limits.iter().map(|(word, most, _, unit)| format!("{word} {most} {unit}")).collect();
    let limited = match limits.is_empty() {
        true => String::new(),
        false => format!(", first those within its limits ({})", limits.join(", ")),
    };
    if treatment.links.is_empty() {
        return format!("of all links, the most preferred first, {how}{limited}");
    }
    let names: Vec<String> = treatment.links.iter().map(|slot| name(policy, *slot)).collect();
    let otherwise = match treatment.otherwise {
        Otherwise::Drop => "and no other",
        _ => "then any other",
    };
    format!("of {}, {how}{limited}; {otherwise}", names.join(", "))
}

/// Whether a link may carry packets of a class this way now, and why.
fn eligible(
    number: usize,
    class: &Class,
    direction: Direction,
    link: &Link,
    slot: u8,
    path: Option<&PathSnapshot>,
) -> String {
    let treatment = class.treatment(direction);
    let place = treatment.links.iter().position(|listed| *listed == slot);
    let goes_on = |link: &Link| link.metered.as_ref().is_none_or(|m| m.over.iter().any(|c| usize::from(*c) == number));
    let policy = match (place, treatment.otherwise) {
        _ if !link.takes(direction) => "never: it is for the other direction".to_owned(),
        _ if path.is_some_and(|path| path.capped) && !goes_on(link) => "not this month: it is at its cap".to_owned(),
        (Some(place), _) => format!("wanted, number {} of its list", place + 1),
        (None, _) if treatment.links.is_empty() => "wanted".to_owned(),
        (None, Otherwise::Drop) => "never: its list has only others".to_owned(),
        (None, _) => "where none of its list works".to_owned(),
    };
    match path.map(|path| (path.state, &path.reason)) {
        Some((PathState::Up, _)) => format!("up; {policy}"),
        Some((state, reason)) => format!("{}, {reason}; {policy}", format!("{state:?}").to_lowercase()),
        None => format!("no path; {policy}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Place;
    use crate::settings::policy::Stands;
    use proto::policy::{Matches, Metered};
    use proto::snapshot::{ClassSnapshot, Traffic};
    use proto::{PathId, PeerId};

    fn path(slot: u8, state: PathState, capped: bool) -> PathSnapshot {
        let document = serde_json::json!({
            "id": PathId { peer: PeerId(1), slot, tunnel: Default::default() }, "state": state, "reason": "nothing is acknowledged any more", "capped": capped,
            "since_s": 1.0, "endpoint": null, "rtt_ms": null, "rtt_var_ms": null, "loss": null, "handshake_s": null,
            "tx": Traffic::default(), "rx": Traffic::default(),
        });
        serde_json::from_value(document).expect("a path")
    }

    #[test]
    fn a_link_beyond_a_limit_says_by_how_much_and_until_when() {
        let games = Limit {
            latency: Some(Duration::from_millis(35)),
            loss_ppm: Some(3_000),
            jitter: Some(Duration::from_micros(2_500)),
        };
        let measured = |latency_ms, loss, rtt_var_ms| PathSnapshot {
            latency_ms,
            loss_spans: [loss, None, None],
            rtt_var_ms,
            ..path(0, PathState::Up, false)
        };
        for (path, beyond, expected) in [
            (
                measured(Some(101.26), Some(0.0), Some(1.0)),
                true,
                "beyond its limits, and left while another is within \
                 (latency 101.3 ms of 35 ms, loss 0.0 % of 0.3 %, jitter 1.0 ms of 2.5 ms)",
            ),
            (
                measured(Some(30.0), None, Some(1.0)),
                true,
                "was beyond its limits: taken again when it has been below four fifths of them for 5 s \
                 (latency 30.0 ms of 35 ms, loss not known yet, of 0.3 %, jitter 1.0 ms of 2.5 ms)",
            ),
            (
                measured(Some(10.0), Some(0.001), Some(1.0)),
                false,
                "within its limits (latency 10.0 ms of 35 ms, loss 0.1 % of 0.3 %, jitter 1.0 ms of 2.5 ms)",
            ),
        ] {
            assert_eq!(limits(&games, &path, beyond).as_deref(), Some(expected));
        }
        let path = path(0, PathState::Up, false);
        assert_eq!(limits(&Limit::default(), &path, false), None);
        let treatment =
            Treatment { limit: Limit { latency: games.latency, ..Limit::default() }, ..Treatment::default() };
        let said = order(&Policy::default(), &treatment);
        assert!(said.ends_with("by the first that works, first those within its limits (latency 35 ms)"), "{said}");
    }

    #[test]
    fn each_link_is_named_with_why_it_may_carry_a_packet_or_not() {
        let link = |name: &str| Link { name: Some(name.into()), ..Link::default() };
        let metered = Metered { cap: 1, reset_day: 1, free: 0, over: Vec::new() };
        let mut links: [Link; MAX_SLOTS] = Default::default();
        links[0] = link("dsl");
        links[1] = Link { metered: Some(metered), ..link("lte") };
        links[2] = Link { only: Some(Direction::Down), ..link("satellite") };
        let way = |links: &[u8], otherwise| Treatment { links: links.to_vec(), otherwise, ..Treatment::default() };
        let class = Class {
            matches: Matches { dscp: 1 << 46, ..Matches::default() },
            up: way(&[1, 0], Otherwise::Any),
            down: way(&[0], Otherwise::Drop),
            ..Class::everything("voice")
        };
        let policy = Policy::new(links, vec![class]).expect("a good policy");
        let place = Place::File { path: "wishes.toml".into(), position: Some((5, 1)) };
        let rules = [Rule { stands: Stands::Wish, place }];
        let running = |name: &str, slot| -> ClassSnapshot {
            let document = serde_json::json!({
                "name": name, "current_slot": slot, "path_changes": 0, "tx": Traffic::default(),
            });
            serde_json::from_value(document).expect("a class")
        };
        let peer = serde_json::json!({
            "id": 1, "name": "core", "reachable": true, "current_slot": 0, "path_changes": 0,
            "classes": [running("voice", Some(0)), running("rest", Some(0))],
            "tx": Traffic::default(), "rx": Traffic::default(), "drops": proto::Drops::default(),
            "paths": [path(0, PathState::Up, false), path(1, PathState::Up, true), path(2, PathState::Down, false)],
        });
        let peer: PeerSnapshot = serde_json::from_value(peer).expect("a peer");
        let packet = Packet {
            src: None,
            dst: "203.0.113.1".parse().expect("an address"),
            proto: 17,
            sport: 0,
            dport: 0,
            dscp: 46,
        };
        let interfaces = [(0, "wan0".to_owned())];
        let end = End {
            decides: Direction::Up,
            other: "msp-core explain home",
            peer: Some(&peer),
            interfaces: &interfaces,
            outside: None,
        };
        let expected = "class \"voice\", number 1 of 2: a wish, wishes.toml:5:1\n\
            up: of lte, dsl, by the first that works; then any other\n  \
              dsl (slot 0, wan0): up; wanted, number 2 of its list\n  \
              lte (slot 1): up; not this month: it is at its cap\n  \
              satellite (slot 2): down, nothing is acknowledged any more; never: it is for the other direction\n\
            goes up by dsl (slot 0) now\n\
            down: of dsl, by the first that works; and no other\n  \
              dsl (slot 0, wan0): up; wanted, number 1 of its list\n  \
              lte (slot 1): up; not this month: it is at its cap\n  \
              satellite (slot 2): down, nothing is acknowledged any more; never: its list has only others\n\
            which of them it takes down is known there: msp-core explain home\n";
        let site = ["198.51.100.0/24".parse().expect("a prefix")];
        let facts = packet.facts(&site).expect("a prefix of the family");
        assert_eq!(facts.src, site[0].addr());
        assert_eq!(packet.facts(&[]), None);
        assert_eq!(explain(&policy, &rules, &facts, &end), expected);
        let rest = explain(&policy, &rules, &Facts { dscp: 0, ..facts }, &End { peer: None, ..end });
        assert!(
            rest.starts_with(
                "class \"rest\", number 2 of 2: what is of no other\nup: of all links, the most preferred"
            ),
            "{rest}"
        );
    }
}
