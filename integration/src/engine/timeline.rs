//! What happens when: draws the instants, and does it.

use crate::meter::Span;
use crate::net::Renumbering;
use crate::net::build::Network;
use crate::scenario::{Action, At, Change, Direction, Scenario, Step};
use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Something that is due.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    /// When, since the start of the traffic.
    pub(crate) at: Span,
    /// What; a flap has been taken apart into cuts and heals.
    pub(crate) action: Action,
    /// The entry it is from.
    pub(crate) step: Step,
    /// The name for expectations.
    pub(crate) name: String,
    /// For people.
    pub(crate) label: String,
    /// Which part of a renumbering.
    renumbering: Option<Renumbering>,
}

/// The time in which packets from old addresses that are under way reach the ISP, which then takes them no more: longer
/// than any queue of the scenarios holds one.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Between the old addresses and the new ones, where the scenario does not say: a DHCP client's exchange with its server.
const LEASE_GAP: Duration = Duration::from_millis(100);

/// The timeline in order of time, chance and flaps resolved.
pub(crate) fn plan(scenario: &Scenario, seed: u64) -> Vec<Due> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut plan = Vec::new();
    for step in &scenario.timeline {
        let at = match &step.at {
            At::Time(at) => *at,
            At::After(after) => {
                // A scenario is checked for it when it is read.
                let known = plan.iter().find(|due: &&Due| due.name == after.after).map(|due| due.at.0);
                Span(known.unwrap_or_default() + after.by.0)
            }
            At::Between(bounds) => {
                // Drawn in nanoseconds: an instant between two packets is an instant too.
                Span(Duration::from_nanos(chance.random_range(bounds.from.nanos()..=bounds.to.nanos())))
            }
        };
        let label = step.label();
        let name = step.named();
        let due = |at, action, name: &str, label: &str| Due {
            at,
            action,
            step: step.clone(),
            name: name.to_owned(),
            label: label.to_owned(),
            renumbering: None,
        };
        if step.action == Action::Renumber {
            let part = |after: Duration, renumbering, what: &str| Due {
                renumbering: Some(renumbering),
                ..due(Span(at.0 + after), step.action, &format!("{name}: {what}"), what)
            };
            let (come, go) = match step.keep {
                Some(keep) => (Duration::ZERO, keep.0),
                None => (step.gap.map_or(LEASE_GAP, |gap| gap.0), Duration::ZERO),
            };
            plan.push(due(at, Action::Mark, &name, &label));
            plan.push(part(come, Renumbering::Come, "new route"));
            plan.push(part(go, Renumbering::Go, "old gone"));
            plan.push(part(come.max(go) + UNDER_WAY, Renumbering::Over, "over"));
            continue;
        }
        plan.push(due(at, step.action, &name, &label));
        let (away, period) = match (step.action, step.period) {
            (Action::Flap, Some(period)) => (Action::Cut, period),
            (Action::FlapCarrier, Some(period)) => (Action::CarrierDown, period),
            _ => continue,
        };
        let end = at.0 + step.duration.unwrap_or_default().0;
        let (mut moment, mut gone) = (at.0, false);
        while moment < end {
            gone = !gone;
            let (action, what) = if gone { (away, "flap: away") } else { (Action::Heal, "flap: back") };
            plan.push(due(Span(moment), action, &format!("{name}: {what}"), what));
            moment += period.0;
        }
        plan.push(due(Span(end), Action::Heal, &format!("{name} ends"), "flap ends"));
    }
    plan.sort_by_key(|due| due.at);
    plan
}

/// A moment of a stall: from then on what a direction of a link is given waits so much longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) at: Duration,
    pub(crate) link: String,
    pub(crate) direction: Direction,
    pub(crate) longer: Duration,
}

/// A stall holds packets back by the rest of it, which is told to the link so often: what is sent at its last moment comes
/// late by less than that.
const HOLD_STEP: Duration = Duration::from_millis(1);

/// All stalls of a run, those of links and those of its plan, in order of time.
pub(crate) fn holds(scenario: &Scenario, plan: &[Due], seed: u64) -> Vec<Hold> {
    // Apart from the one that draws the plan: a link that stalls moves no cut.
    let mut chance = StdRng::seed_from_u64(!seed);
    let mut holds = Vec::new();
    let mut stall = |link: &str, direction, begin: Duration, length: Duration| {
        let steps = length.as_nanos().div_ceil(HOLD_STEP.as_nanos()) as u32;
        holds.extend((0..=steps).map(|step| {
            let passed = (HOLD_STEP * step).min(length);
            Hold { at: begin + passed, link: link.to_owned(), direction, longer: length - passed }
        }));
    };
    for (name, link) in &scenario.links {
        let Some(stalls) = link.stalls.map(proto::sim::Stalls::from) else { continue };
        for direction in [Direction::Up, Direction::Down] {
            let mut moment = Duration::ZERO;
            loop {
                let (pause, length) = stalls.draw(&mut chance);
                moment += pause;
                if moment >= scenario.length.0 {
                    break;
                }
                stall(name, direction, moment, length);
            }
        }
    }
    for due in plan.iter().filter(|due| due.action == Action::Stall) {
        for (link, length) in due.step.links().zip(std::iter::repeat(due.step.duration.unwrap_or_default().0)) {
            [Direction::Up, Direction::Down].into_iter().for_each(|d| stall(link, d, due.at.0, length));
        }
    }
    holds.sort_by_key(|hold| hold.at);
    holds
}

/// Does what is due to links, for which nothing is spawned where a run is measured to the millisecond; and runs a
/// command, of which it returns what it printed.
pub(crate) fn act(network: &mut Network, due: &Due) -> Result<Option<String>> {
    let step = &due.step;
    for name in step.links() {
        match (due.action, &due.renumbering, &step.to) {
            (Action::Renumber, Some(part), _) => network.renumber(name, *part, &step.near, &step.far)?,
            (Action::Unplug, ..) => network.unplug(name)?,
            (Action::Plug, ..) => network.plug(name)?,
            (Action::Rename, _, Some(to)) => network.rename(name, to)?,
            _ => {}
        }
        let link = network.link(name)?.clone();
        let mut lose = |direction: Direction| {
            let netem = Change { loss: Some(1.0), ..Change::default() }.apply(&link.netem(direction));
            network.shape(name, direction, netem)
        };
        match due.action {
            Action::Cut => [Direction::Up, Direction::Down].into_iter().try_for_each(lose)?,
            Action::CutUp => lose(Direction::Up)?,
            Action::CutDown => lose(Direction::Down)?,
            Action::CarrierDown => network.host(&link.far.host)?.netlink.set_up(&link.far.interface, false)?,
            Action::Heal => {
                network.set_link(name)?;
                if network.filtered.contains(name) {
                    network.set_filter(&link, link.filter.as_ref())?;
                }
                network.host(&link.far.host)?.netlink.set_up(&link.far.interface, true)?;
            }
            Action::Netem => {
                for (direction, own) in [(Direction::Up, &step.up), (Direction::Down, &step.down)] {
                    network.shape(name, direction, own.apply(&step.both.apply(&link.netem(direction))))?;
                }
            }
            Action::Mtu => network.set_mtu(&link, step.mtu.context("mtu is checked when a scenario is read")?)?,
            Action::Filter => network.set_filter(&link, step.filter.as_ref())?,
            _ => {}
        }
    }
    if due.action == Action::Rebind
        && let Some(host) = &step.host
    {
        network.rebind(host, step.address)?;
    }
    if due.action == Action::Exec
        && let (Some(host), Some(command)) = (&step.host, &step.command)
    {
        let output = network
            .host(host)?
            .spawn(
                Command::new(&command[0])
                    .args(&command[1..])
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped()),
            )?
            .wait_with_output()?;
        let text = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
        if !output.status.success() {
            bail!("{} on {host} failed ({}): {}", command.join(" "), output.status, text.trim());
        }
        return Ok(Some(format!("{host}: {}\n{}", command.join(" "), text.trim())));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::load;
    use std::collections::BTreeMap;

    #[test]
    fn stalls_are_drawn_from_the_seed_and_hold_back_until_their_end() {
        let file = std::env::temp_dir().join(format!("msp-lab-stalls-{}.toml", std::process::id()));
        let text = "schema = 1\nabout = \"x\"\nbase = \"two-isps\"\nlength = \"600s\"\n\
                    [links.isp-a.stalls]\nevery = \"5s\"\nshortest = \"10ms\"\nlongest = \"100ms\"\n\
                    [[timeline]]\nat = { from = \"2s\", to = \"3s\" }\ndo = \"cut\"\nlink = \"isp-a\"\nname = \"dies\"\n\
                    [[timeline]]\nat = { after = \"dies\", by = \"20ms\" }\ndo = \"stall\"\nlink = \"isp-b\"\nfor = \"300ms\"\n";
        std::fs::write(&file, text).expect("the temporary folder is writable");
        let loaded = load(&file.to_string_lossy(), &[]);
        std::fs::remove_file(&file).expect("it was written above");
        let scenario = loaded.expect("a sound scenario").remove(0).scenario;

        let planned = plan(&scenario, 7);
        assert_eq!(planned[1].at.0, planned[0].at.0 + Duration::from_millis(20));
        let all = holds(&scenario, &planned, 7);
        assert_eq!(all, holds(&scenario, &planned, 7));
        assert_ne!(all, holds(&scenario, &planned, 8));
        let woken: Vec<&Hold> = all.iter().filter(|h| h.link == "isp-b" && h.direction == Direction::Up).collect();
        assert_eq!((woken[0].at, woken[0].longer), (planned[1].at.0, Duration::from_millis(300)));
        assert!(woken.iter().all(|hold| hold.at + hold.longer == planned[1].at.0 + Duration::from_millis(300)));
        assert_eq!(woken.last().map(|hold| hold.longer), Some(Duration::ZERO));

        // By where they end: how long each is.
        let mut stalls: BTreeMap<Duration, Duration> = BTreeMap::new();
        for hold in all.iter().filter(|h| h.link == "isp-a" && h.direction == Direction::Down) {
            let longest = stalls.entry(hold.at + hold.longer).or_default();
            *longest = hold.longer.max(*longest);
        }
        assert!((100..=140).contains(&stalls.len()), "{} in 600 s", stalls.len());
        let bounds = Duration::from_millis(10)..=Duration::from_millis(100);
        assert!(stalls.values().all(|length| bounds.contains(length)), "{stalls:?}");
    }
}
