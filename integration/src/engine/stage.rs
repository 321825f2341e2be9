//! The network and the daemons of a run, and what the timeline does to them.

use super::Job;
use super::clock::{Clock, Wall};
use super::live::{News, Wire};
use super::timeline::{self, Due, Hold};
use crate::daemon::{Daemon, Ended, Files, Kind, bgp_events};
use crate::net::build::Network;
use crate::report::{BgpChange, Exit, FilterCount, LinkCount, TimelineEvent};
use crate::scenario::{Action, Scenario};
use anyhow::{Context, Result, bail};
use proto::PathState;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the daemons may take until all is well: a handshake, a probe and a BGP session, with retries.
const READY: Duration = Duration::from_secs(20);

/// How often it is looked whether all is well.
const POLL: Duration = Duration::from_millis(50);

/// All that stands.
pub(super) struct Stage<'a> {
    scenario: &'a Scenario,
    /// Where events are shown.
    pub(super) wire: Option<Wire>,
    files: Files,
    pub(super) network: Network,
    pub(super) daemons: BTreeMap<String, Daemon>,
    pub(super) events: Vec<TimelineEvent>,
    pub(super) exits: Vec<Exit>,
    pub(super) notes: Vec<String>,
    pub(super) links: Vec<LinkCount>,
    wall: Wall,
}

impl<'a> Stage<'a> {
    /// Builds the network and writes the daemons' files.
    pub(super) fn set(job: &Job, scenario: &'a Scenario) -> Result<Self> {
        let wall = Wall::new(job.kernel);
        if let Some(clock) = scenario.clock {
            wall.set(clock)?;
        }
        let network = Network::build(scenario)?;
        let files = Files::create(&job.folder, job.seed)?;
        let mut daemons = BTreeMap::new();
        for (name, host) in &scenario.hosts {
            if let Some(kind) = Kind::of(host)
                && (scenario.daemons || !kind.is_ours())
            {
                files.write(scenario, name, kind).with_context(|| format!("cannot set up the daemon of {name}"))?;
                daemons.insert(name.clone(), Daemon::new(name, kind, &files, &job.binaries));
            }
        }
        let (events, exits, notes, links) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Stage { scenario, wire: None, files, network, daemons, events, exits, notes, links, wall })
    }

    /// Starts all daemons, and waits until all is well.
    pub(super) fn start_all(&mut self) -> Result<()> {
        // The far ones first, so that nobody speaks to somebody who is not there yet.
        for kind in [Kind::Dns, Kind::Nat64, Kind::Bird, Kind::Script, Kind::Core, Kind::Middlebox, Kind::WireGuard] {
            for daemon in self.daemons.values_mut().filter(|daemon| daemon.kind == kind) {
                if self.scenario.start.as_ref().is_some_and(|start| !start.contains(&daemon.host)) {
                    continue;
                }
                daemon.start(self.network.host(&daemon.host)?)?;
            }
        }
        let clients: Vec<String> = self
            .daemons
            .values()
            .filter(|d| d.kind == Kind::WireGuard && d.is_started())
            .map(|d| d.host.clone())
            .collect();
        for name in clients {
            self.configure_client(&name)?;
        }
        if self.scenario.wait_for_paths { self.wait() } else { Ok(()) }
    }

    fn configure_client(&mut self, name: &str) -> Result<()> {
        let Some(client) = self.scenario.hosts.get(name).and_then(|host| host.wireguard.as_ref()) else {
            return Ok(());
        };
        // It has no way to say that its interface is there but the interface.
        let begun = Instant::now();
        loop {
            match self.files.configure_client(&self.network, name, client) {
                Err(error) if begun.elapsed() > READY => return Err(error),
                Err(_) => std::thread::sleep(POLL),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            for daemon in self.daemons.values_mut() {
                if let Some(how) = daemon.failed() {
                    bail!("the daemon of {} {how}", daemon.host);
                }
            }
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > READY {
                bail!(
                    "not ready after {} s: {}; look into the logs, or set wait_for_paths = false",
                    READY.as_secs(),
                    missing.join("; ")
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// What is not well yet.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for daemon in self.daemons.values().filter(|daemon| daemon.kind.is_ours() && daemon.is_started()) {
            let host = &daemon.host;
            let Some(snapshot) = Daemon::status(&daemon.control) else {
                missing.push(format!("{host} does not answer at its control socket"));
                continue;
            };
            for peer in &snapshot.peers {
                // A box knows which of its uplinks could work; a core only hears of those that do.
                let sick = peer.paths.iter().filter(|path| !matches!(path.state, PathState::Up | PathState::Absent));
                let sick: Vec<String> = match daemon.kind {
                    Kind::Middlebox => sick.map(|path| format!("slot {} is {:?}", path.id.slot, path.state)).collect(),
                    _ => Vec::new(),
                };
                if !peer.reachable {
                    missing.push(format!("{host} has no path to {}", peer.name));
                } else if !sick.is_empty() {
                    missing.push(format!("at {host}, of {}: {}", peer.name, sick.join(", ")));
                }
            }
        }
        for daemon in self.daemons.values().filter(|daemon| daemon.kind == Kind::Script && daemon.is_started()) {
            let ready = self.files.ready(&daemon.host);
            let asked = self.network.host(&daemon.host).and_then(|node| {
                node.feed(&["sh", "-e", &ready.to_string_lossy()], "").context("its script says that it is not ready")
            });
            if let Err(error) = asked {
                missing.push(format!("{}: {error:#}", daemon.host));
            }
        }
        let announces = self.scenario.hosts.iter().filter_map(|(name, host)| Some((name, host.core.as_ref()?)));
        for (name, core) in announces {
            let by_bird = core.bgp.as_ref().and_then(|bgp| self.daemons.get(&bgp.neighbor));
            if by_bird.is_some_and(|neighbor| neighbor.kind == Kind::Bird)
                && self.daemons.get(name).is_some_and(Daemon::is_started)
            {
                let announced = self
                    .bird_logs()
                    .iter()
                    .any(|log| bgp_events(log, 0).iter().any(|event| event.change == BgpChange::Announced));
                if !announced {
                    missing.push(format!("BIRD has no route from {name}"));
                }
            }
        }
        missing
    }

    /// Plays the timeline, and the stalls of links.
    pub(super) fn play(&mut self, plan: &[Due], holds: &[Hold], clock: Clock) -> Result<()> {
        let mut holds = holds.iter().peekable();
        let mut hold_until = |network: &Network, moment: Duration| -> Result<()> {
            while let Some(hold) = holds.next_if(|hold| hold.at <= moment) {
                clock.sleep_until(hold.at);
                network
                    .hold(&hold.link, hold.direction, hold.longer)
                    .with_context(|| format!("cannot have link {} stall", hold.link))?;
            }
            Ok(())
        };
        for due in plan {
            hold_until(&self.network, due.at.0)?;
            clock.sleep_until(due.at.0);
            self.event(clock, &due.name, &due.label)?;
            let done = timeline::act(&mut self.network, due).and_then(|printed| {
                self.notes.extend(printed);
                self.act(due, clock)
            });
            done.with_context(|| format!("timeline at {}: {}", due.at, due.label))?;
        }
        hold_until(&self.network, Duration::MAX)
    }

    fn event(&mut self, clock: Clock, name: &str, label: &str) -> Result<()> {
        let at_ms = clock.now_ms();
        let event = TimelineEvent { at_ms, name: name.to_owned(), label: label.to_owned() };
        if let Some(wire) = &self.wire {
            wire.tell(|| News::Event(event.clone()));
        }
        self.events.push(event);
        if self.scenario.expect.iter().any(|expect| expect.link.is_some()) {
            for (link, [up, down]) in self.network.octets()? {
                self.links.push(LinkCount { event: name.to_owned(), at_ms, link, up, down });
            }
        }
        Ok(())
    }

    /// What the filters of the network have dropped.
    pub(super) fn filtered(&self) -> Result<Vec<FilterCount>> {
        let mut counts = Vec::new();
        for (node, at) in &self.network.hosts {
            if let Some((dropped, by)) = crate::net::dropped(at)? {
                counts.push(FilterCount { node: node.clone(), dropped, by });
            }
        }
        Ok(counts)
    }

    /// Waits until a line of shell is true.
    fn check(&mut self, host: &str, due: &Due, clock: Clock) -> Result<()> {
        let script = self.scenario.hosts.get(host).and_then(|host| host.script.as_ref());
        let line = due.step.line.as_deref().context("line is checked when a scenario is read")?;
        let text = format!("{}{line}\n", self.files.environment(host, script)?);
        let within = due.step.within.unwrap_or_default().0;
        let begun = Instant::now();
        loop {
            match self.network.host(host)?.feed(&["sh", "-e"], &text) {
                Ok(()) => return self.event(clock, &format!("{}: true", due.name), &format!("{}: true", due.label)),
                Err(error) if begun.elapsed() >= within => {
                    return Err(error).with_context(|| format!("not true within {} ms: {line}", within.as_millis()));
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// What is due to daemons.
    fn act(&mut self, due: &Due, clock: Clock) -> Result<()> {
        if let (Action::SetClock, Some(to)) = (due.action, due.step.clock) {
            return self.wall.set(to);
        }
        let Some(host) = &due.step.host else { return Ok(()) };
        if due.action == Action::Check {
            return self.check(host, due, clock);
        }
        let node = self.network.host(host)?;
        let Some(daemon) = self.daemons.get_mut(host) else {
            return match due.action {
                Action::Exec | Action::Mark | Action::Rebind => Ok(()),
                _ => bail!("no daemon runs on {host}"),
            };
        };
        let ended = match due.action {
            Action::Start => {
                daemon.start(node)?;
                None
            }
            Action::Reload => {
                daemon.reload()?;
                None
            }
            Action::Freeze => {
                daemon.freeze()?;
                None
            }
            Action::Thaw => {
                daemon.thaw()?;
                None
            }
            Action::Kill => Some(daemon.kill()?),
            Action::Stop | Action::Restart => Some(daemon.stop()?),
            _ => None,
        };
        if let Some(ended) = ended {
            // What a killed daemon leaves, its next start has to clean: looked at in the end.
            let left_over = if due.action == Action::Kill { Vec::new() } else { daemon.left_over(node)? };
            self.exits.push(exit(clock, host, ended, left_over));
        }
        if due.action == Action::Restart {
            daemon.start(node)?;
        }
        let is_client = daemon.kind == Kind::WireGuard;
        if is_client && matches!(due.action, Action::Start | Action::Restart) {
            self.configure_client(host)?;
        }
        if due.action == Action::Restart {
            self.event(clock, &format!("{}: started", due.name), &format!("{host} started again"))?;
        }
        Ok(())
    }

    /// Ends all daemons, and looks what they leave.
    pub(super) fn stop_all(&mut self, clock: Clock) {
        for kind in [Kind::Middlebox, Kind::WireGuard, Kind::Core, Kind::Script, Kind::Bird, Kind::Nat64, Kind::Dns] {
            for daemon in self.daemons.values_mut().filter(|daemon| daemon.kind == kind) {
                let crashed = daemon.failed();
                let (ended, stopped) = match crashed {
                    Some(how) => (Ok(Ended { clean: false, how }), true),
                    // Go's runtime spins while it ends, which in virtual time never ends. What a script has started, nobody knows.
                    None if daemon.is_started() && matches!(kind, Kind::WireGuard | Kind::Script) => {
                        (daemon.kill(), true)
                    }
                    None if daemon.is_started() => (daemon.stop(), true),
                    None => (Ok(Ended { clean: true, how: "did not run at the end".into() }), kind.is_ours()),
                };
                if !stopped || !kind.is_ours() {
                    continue;
                }
                let left_over = self.network.host(&daemon.host).and_then(|node| daemon.left_over(node));
                let (ended, left_over) = match (ended, left_over) {
                    (Ok(ended), Ok(left_over)) => (ended, left_over),
                    (Err(error), _) | (_, Err(error)) => {
                        (Ended { clean: false, how: format!("cannot tell how it ended: {error:#}") }, Vec::new())
                    }
                };
                self.exits.push(exit(clock, &daemon.host, ended, left_over));
            }
        }
    }

    /// Where the BIRDs log.
    pub(super) fn bird_log_files(&self) -> Vec<PathBuf> {
        let birds = self.daemons.values().filter(|daemon| daemon.kind == Kind::Bird);
        birds.map(|bird| self.files.bird_log(&bird.host)).collect()
    }

    /// What they logged.
    pub(super) fn bird_logs(&self) -> Vec<String> {
        self.bird_log_files().iter().map(|log| std::fs::read_to_string(log).unwrap_or_default()).collect()
    }
}

fn exit(clock: Clock, host: &str, ended: Ended, left_over: Vec<String>) -> Exit {
    Exit { at_ms: clock.now_ms(), node: host.to_owned(), clean: ended.clean, how: ended.how, left_over }
}
