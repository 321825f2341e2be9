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
        let at = match step.at {
            At::Time(at) => at,
            At::Between(bounds) => {
                // Drawn in nanoseconds: an instant between two packets is an instant too.
                Span(Duration::from_nanos(chance.random_range(bounds.from.nanos()..=bounds.to.nanos())))
            }
        };
        let label = step.label();
        let name = step.name.clone().unwrap_or_else(|| label.clone());
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
        let link = network.links.get(name).with_context(|| format!("there is no link {name}"))?;
        let ends = [(&link.near, Direction::Up), (&link.far, Direction::Down)];
        let lose = |direction: Direction| -> Result<()> {
            let (end, _) = ends[usize::from(direction == Direction::Down)];
            let netem = Change { loss: Some(1.0), ..Change::default() }.apply(&link.netem(direction));
            Ok(network.host(&end.host)?.netlink.set_netem(&end.interface, &netem)?)
        };
        match due.action {
            Action::Cut => [Direction::Up, Direction::Down].into_iter().try_for_each(lose)?,
            Action::CutUp => lose(Direction::Up)?,
            Action::CutDown => lose(Direction::Down)?,
            Action::CarrierDown => network.host(&link.far.host)?.netlink.set_up(&link.far.interface, false)?,
            Action::Heal => {
                network.set_link(link)?;
                if network.filtered.contains(name) {
                    network.set_filter(link, link.filter.as_ref())?;
                }
                network.host(&link.far.host)?.netlink.set_up(&link.far.interface, true)?;
            }
            Action::Netem => {
                for (end, direction) in ends {
                    let own = if direction == Direction::Up { &step.up } else { &step.down };
                    let netem = own.apply(&step.both.apply(&link.netem(direction)));
                    network.host(&end.host)?.netlink.set_netem(&end.interface, &netem)?;
                }
            }
            Action::Mtu => network.set_mtu(link, step.mtu.context("mtu is checked when a scenario is read")?)?,
            Action::Filter => network.set_filter(link, step.filter.as_ref())?,
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
