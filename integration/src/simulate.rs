//! Scenarios in the simulator: the same files, the real protocol, and no kernel at all.
//!
//! A run takes milliseconds and is the same to the nanosecond for a seed, so a scenario can be repeated with thousands of
//! seeds. What a scenario must be made of for that is in [`Simulation::of`]: what happens in it must mean something here.
//! Downloads, pings and BGP beside the streams of packets are left out, and the report says so.

use crate::engine::timeline::{self, Due};
use crate::meter::account::{Arrival, Schedule, account, count_tail};
use crate::meter::{StreamResult, Traffic, TrafficResults, Udp};
use crate::net::{Bursts, Netem};
use crate::report::{self, Expect, Kernel, Report, StatusSample, TimelineEvent};
use crate::scenario::{Action, Change, Direction, Link, Loaded, Scenario, Tunnel};
use anyhow::{Context, Result, bail};
use proto::policy::{Matches, Policy};
use proto::sim::{Flow, LinkModel, Loss, Side, World, WorldConfig};
use proto::{Instant, TunnelChoice};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often both ends' status is noted, as in a run with a kernel.
const SAMPLE: Duration = Duration::from_millis(100);

/// How long the paths may take to come up before traffic starts all the same.
const READY: Duration = Duration::from_secs(10);

/// Between that moment and the start of the traffic, as in a run with a kernel.
const LEAD: Duration = Duration::from_secs(1);

/// Octets that one packet of a queue's limit stands for.
const QUEUED: usize = 1_500;

/// The MTU of a link that has none in the file: a veth's.
const MTU: u32 = 1_500;

/// What lies between an ISP's router and the core.
#[derive(Clone, Copy)]
struct Beyond {
    delay: Duration,
    /// The least of its links.
    mtu: u32,
}

impl Beyond {
    fn of(way: &[(&String, &Link)]) -> Result<Self> {
        let mtu = way.iter().map(|(_, link)| link.mtu.unwrap_or(MTU)).min().unwrap_or(MTU);
        let delay = way.iter().map(|(name, link)| delay_of(name, link)).sum::<Result<Duration>>()?;
        Ok(Beyond { delay, mtu })
    }
}

/// Reads a policy that the simulator can follow: its hosts and ports are others, it has no clock, and nothing leaves it but by
/// the tunnels.
fn read_policy(text: &str) -> Result<Policy> {
    let file = std::env::temp_dir().join(format!("lab-{}.policy.toml", std::process::id()));
    std::fs::write(&file, text).context("writing the policy of a scenario")?;
    let read =
        dataplane::settings::policy::read(std::slice::from_ref(&file), &dataplane::settings::policy::at_the_core);
    std::fs::remove_file(&file).context("removing the policy of a scenario")?;
    let policy = read.context("the scenario's policy")?.policy;
    for class in policy.classes() {
        let Matches { dscp: _, ref src, ref dst, ref proto, ref sport, ref dport, ref window } = class.matches;
        let by_dscp = [src, dst].iter().all(|list| list.is_empty())
            && [sport, dport].iter().all(|list| list.is_empty())
            && proto.is_empty()
            && window.is_none();
        if !by_dscp || class.direct.is_some() {
            bail!(
                "the class \"{}\" asks for more than a DSCP, or leaves the tunnels, which needs a kernel",
                class.name
            );
        }
    }
    Ok(policy)
}

/// A scenario as the simulator runs it.
pub struct Simulation<'a> {
    loaded: &'a Loaded,
    site: &'a str,
    core: &'a str,
    /// The uplinks' links, slot 0 first, and what lies behind each on the way to the core.
    uplinks: Vec<(&'a str, &'a Link, Beyond)>,
    flows: Vec<(&'a Udp, Side)>,
    /// The policy of both ends.
    policy: Arc<Policy>,
    /// What the tunnels of its uplinks are.
    tunnel: TunnelChoice,
    expect: Vec<Expect>,
    /// What only a kernel has, and so is not in the report.
    left_out: Vec<String>,
}

impl<'a> Simulation<'a> {
    /// Finds the simulator's parts in a scenario, or says what it names that only a kernel has.
    pub fn of(loaded: &'a Loaded) -> Result<Self> {
        let scenario = &loaded.scenario;
        let mut boxes = scenario.hosts.iter().filter(|(_, host)| host.middlebox.is_some());
        let (Some((site, host)), None) = (boxes.next(), boxes.next()) else {
            bail!("the simulator has one middlebox; {} has none or several", loaded.name);
        };
        let tunnel = match scenario.tunnel {
            Tunnel::WireGuard => TunnelChoice::WireGuard,
            Tunnel::Quic => TunnelChoice::Quic,
            Tunnel::Auto => TunnelChoice::Auto,
            Tunnel::Mixed => bail!("uplinks with tunnels of different kinds need a kernel"),
        };
        let Some(middlebox) = host.middlebox.as_ref().filter(|_| scenario.daemons && scenario.start.is_none()) else {
            bail!("the simulator starts both daemons at the beginning");
        };
        let expect = scenario.expect.iter().filter_map(without_kernel).collect();
        let policy = middlebox.policy.as_deref().map(read_policy).transpose()?.unwrap_or_default().into();
        let (uplinks, flows, left_out) = (Vec::new(), Vec::new(), Vec::new());
        let mut simulation =
            Simulation { loaded, site, core: &middlebox.core, uplinks, flows, policy, tunnel, expect, left_out };
        let mut ways = Vec::new();
        for interface in &scenario.uplinks(site) {
            let link = scenario.links.iter().find(|(_, l)| l.near.host == *site && l.near.interface == *interface);
            let (name, link) = link.with_context(|| format!("no link has its near end at {site} {interface}"))?;
            let way = simulation.way_to_core(&link.far.host, name)?;
            simulation.uplinks.push((name, link, Beyond::of(&way)?));
            ways.push(name.as_str());
            ways.extend(way.iter().map(|(name, _)| name.as_str()));
        }
        let strange = |name: &str, link: &Link| link.filter.is_some() || (link.mtu.is_some() && !ways.contains(&name));
        if let Some((name, _)) = scenario.links.iter().find(|(name, link)| strange(name, link)) {
            bail!("link {name} has a filter, or an MTU and is on no tunnel's way, which needs a kernel");
        }
        simulation.check_timeline()?;
        for traffic in &scenario.traffic {
            match traffic {
                Traffic::Udp(udp) => {
                    let sides = [&udp.from, &udp.to].map(|host| simulation.side(host, &middlebox.prefixes));
                    match sides {
                        [from, to] if from != to => simulation.flows.push((udp, from)),
                        _ => bail!("the traffic \"{}\" does not cross the tunnels", udp.name),
                    }
                }
                Traffic::Sizes(_) | Traffic::Tcp(_) | Traffic::Ping(_) | Traffic::Iperf3(_) | Traffic::Watch(_) => {
                    simulation.left_out.push(format!("the traffic \"{}\"", traffic.name()));
                }
                // Without the attack the scenario would show nothing.
                Traffic::Spoof(_) | Traffic::Garbage(_) | Traffic::Replay(_) => {
                    bail!("the traffic \"{}\" needs a kernel", traffic.name())
                }
            }
        }
        if simulation.flows.is_empty() || simulation.expect.is_empty() {
            bail!("nothing that {} expects is about streams of packets or paths", loaded.name);
        }
        if simulation.expect != scenario.expect {
            simulation.left_out.push("what it expects of downloads, pings, BGP and the daemons' ends".into());
        }
        Ok(simulation)
    }

    /// On which side of the tunnels a host is.
    fn side(&self, host: &str, site: &[ipnet::IpNet]) -> Side {
        let (v4, v6) = self.loaded.scenario.addresses(host);
        let addresses = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)];
        let inside = addresses.into_iter().flatten().any(|address| site.iter().any(|prefix| prefix.contains(&address)));
        if inside { Side::Box } else { Side::Core }
    }

    /// The links between an ISP's router and the core: a breadth-first search by hosts.
    fn way_to_core(&self, from: &'a str, uplink: &str) -> Result<Vec<(&'a String, &'a Link)>> {
        let mut reached: Vec<(&str, Vec<(&'a String, &'a Link)>)> = vec![(from, Vec::new())];
        let mut at = 0;
        while let Some((host, way)) = reached.get(at).cloned() {
            if host == self.core {
                return Ok(way);
            }
            at += 1;
            for named in &self.loaded.scenario.links {
                let (near, far) = (named.1.near.host.as_str(), named.1.far.host.as_str());
                let next = if near == host { far } else { near };
                let leads_on = (near == host || far == host) && next != self.site;
                if leads_on && !reached.iter().any(|(known, _)| *known == next) {
                    reached.push((next, [way.as_slice(), &[named]].concat()));
                }
            }
        }
        bail!("no way leads from {from} (link {uplink}) to {}", self.core)
    }

    fn check_timeline(&self) -> Result<()> {
        for step in &self.loaded.scenario.timeline {
            let known = match step.action {
                Action::Cut | Action::CutUp | Action::CutDown | Action::CarrierDown | Action::Heal => true,
                Action::Flap | Action::FlapCarrier | Action::Netem | Action::Mark => true,
                Action::Kill | Action::Start => step.host.as_deref().is_some_and(|host| self.end(host).is_some()),
                // Processes, interfaces, NATs, filters and clocks are the kernel's.
                _ => false,
            };
            let uplinks_only = step.links().all(|link| self.slot(link).is_some());
            if !known || !uplinks_only {
                bail!("\"{}\" in its timeline needs a kernel", step.label());
            }
        }
        Ok(())
    }

    fn slot(&self, link: &str) -> Option<usize> {
        self.uplinks.iter().position(|(name, ..)| *name == link)
    }

    fn end(&self, host: &str) -> Option<Side> {
        if host == self.site { Some(Side::Box) } else { (host == self.core).then_some(Side::Core) }
    }

    fn model(link: &Link, netem: &Netem, beyond: Beyond) -> LinkModel {
        LinkModel {
            delay: netem.delay.0 + beyond.delay,
            jitter: netem.jitter.0,
            ordered: netem.ordered,
            ecn: netem.ecn,
            loss: match netem.bursts {
                Some(Bursts { to_bad, to_good }) => Loss::Bursts { to_bad, to_good },
                None => Loss::Random(netem.loss),
            },
            rate: netem.rate.map_or(0, |rate| rate.0),
            queue: netem.limit as usize * QUEUED,
            mtu: link.mtu.unwrap_or(MTU).min(beyond.mtu) as usize,
            stalls: link.stalls.map(Into::into),
            ..LinkModel::default()
        }
    }

    /// Runs it once.
    pub fn run(&self, seed: u64) -> Report {
        let scenario = &self.loaded.scenario;
        let model = |direction| {
            move |(_, link, beyond): &(&str, &Link, Beyond)| Self::model(link, &link.netem(direction), *beyond)
        };
        let (ups, downs) =
            (self.uplinks.iter().map(model(Direction::Up)), self.uplinks.iter().map(model(Direction::Down)));
        let (links, policy) = (ups.zip(downs).collect(), self.policy.clone());
        let mut world = World::new(WorldConfig { links, policy, tunnel: self.tunnel, ..WorldConfig::new(&[], seed) });
        while scenario.wait_for_paths && world.now() < Instant::ZERO + READY && !all_up(&world) {
            world.run_for(SAMPLE);
        }
        let start = world.now() + LEAD;
        for (udp, from) in &self.flows {
            world.add_flow(Flow {
                from: *from,
                interval: Duration::from_secs_f64(1.0 / udp.rate),
                // The meter's size is that of the payload.
                size: udp.size + 28,
                dscp: udp.dscp,
                ecn: udp.ecn,
                start: start + udp.start.0,
                end: start + udp.stop.unwrap_or(scenario.length).0,
            });
        }
        let (status, events) = self.play(&mut world, start, seed);
        let mut report = Report {
            schema: report::SCHEMA,
            run: report::Run {
                scenario: self.loaded.name.clone(),
                title: scenario.about.clone(),
                seed,
                kernel: Kernel::Simulator,
                set: self.loaded.set.clone(),
                length_ms: scenario.length.millis(),
                ..report::Run::default()
            },
            traffic: TrafficResults { streams: self.streams(&world, start), ..TrafficResults::default() },
            bgp: Vec::new(),
            status,
            links: Vec::new(),
            filters: Vec::new(),
            dropped_by_links: Default::default(),
            events,
            exits: Vec::new(),
            outcomes: Vec::new(),
            notes: vec!["no kernel took part: links and traffic are the simulator's, the protocol is real".into()],
        };
        report.notes.extend(self.left_out.iter().map(|what| format!("left out: {what}")));
        report.outcomes = report::evaluate(&report, &self.expect);
        report
    }

    /// The timeline, with both ends' status noted on the way.
    fn play(&self, world: &mut World, start: Instant, seed: u64) -> (Vec<StatusSample>, Vec<TimelineEvent>) {
        let scenario = &self.loaded.scenario;
        let end = start + scenario.length.0 + scenario.drain.0;
        let (mut status, mut events) = (Vec::new(), Vec::new());
        let mut plan = timeline::plan(scenario, seed).into_iter().peekable();
        while world.now() < end {
            let next = (world.now() + SAMPLE).min(end);
            while let Some(due) = plan.next_if(|due| start + due.at.0 <= next) {
                world.run_until(start + due.at.0);
                self.act(world, scenario, &due);
                events.push(TimelineEvent { at_ms: due.at.millis(), name: due.name, label: due.label });
            }
            world.run_until(next);
            let at_ms = relative(world.now(), start) as f64 / 1e6;
            for (host, side) in [(self.site, Side::Box), (self.core, Side::Core)] {
                status.push(StatusSample::new(at_ms, host, &world.snapshot(side)));
            }
        }
        (status, events)
    }

    fn act(&self, world: &mut World, scenario: &Scenario, due: &Due) {
        for (name, slot) in due.step.links().filter_map(|name| Some((name, self.slot(name)?))) {
            match due.action {
                Action::Cut => world.set_cut_both(slot, true),
                Action::CutUp => world.set_cut(slot, Side::Box, true),
                Action::CutDown => world.set_cut(slot, Side::Core, true),
                Action::CarrierDown => {
                    world.set_cut_both(slot, true);
                    world.set_uplink(slot, false);
                }
                Action::Heal => {
                    self.set_models(world, scenario, name, slot, [&Change::default(); 3]);
                    world.set_cut_both(slot, false);
                    world.set_uplink(slot, true);
                }
                Action::Netem => {
                    self.set_models(world, scenario, name, slot, [&due.step.both, &due.step.up, &due.step.down]);
                }
                _ => {}
            }
        }
        if let Some(side) = due.step.host.as_deref().and_then(|host| self.end(host)) {
            match due.action {
                Action::Kill => world.kill(side),
                Action::Start => world.start(side),
                _ => {}
            }
        }
    }

    fn set_models(
        &self,
        world: &mut World,
        scenario: &Scenario,
        name: &str,
        slot: usize,
        [both, up, down]: [&Change; 3],
    ) {
        let link = &scenario.links[name];
        let beyond = self.uplinks[slot].2;
        for (side, direction, own) in [(Side::Box, Direction::Up, up), (Side::Core, Direction::Down, down)] {
            let netem = own.apply(&both.apply(&link.netem(direction)));
            world.set_model(slot, side, Self::model(link, &netem, beyond));
        }
    }

    fn streams(&self, world: &World, start: Instant) -> Vec<StreamResult> {
        let stream = |(id, (udp, _)): (usize, &(&Udp, Side))| {
            let stop = udp.stop.unwrap_or(self.loaded.scenario.length);
            let schedule = Schedule { start: udp.start.nanos() as i64, stop: stop.nanos() as i64, rate: udp.rate };
            let arrivals: Vec<Arrival> = world
                .arrivals(id)
                .iter()
                .map(|a| Arrival { at: relative(a.at, start), number: a.number, delay: relative(a.at, a.sent_at) })
                .collect();
            let sent = world.reports()[id].sent;
            let (mut flow, next) = account(&arrivals, &schedule);
            count_tail(&mut flow, next, sent, &schedule);
            world.arrivals(id).iter().for_each(|a| flow.note_class(udp.traffic_class(), a.traffic_class));
            StreamResult {
                name: udp.name.clone(),
                id: id as u32,
                from: udp.from.clone(),
                to: udp.to.clone(),
                rate: udp.rate,
                start_ms: udp.start.millis(),
                stop_ms: stop.millis(),
                sent,
                refused: 0,
                flow,
            }
        };
        self.flows.iter().enumerate().map(stream).collect()
    }
}

/// What is left of an expectation where there is no kernel; nothing, if all of it needs one.
fn without_kernel(expect: &Expect) -> Option<Expect> {
    if [&expect.sizes, &expect.tcp, &expect.ping, &expect.attack, &expect.link].into_iter().any(Option::is_some) {
        return None;
    }
    let rest = Expect {
        bgp: None,
        clean_exit: None,
        delivered_only_to: None,
        black_holes: None,
        arrived_up_to: None,
        told_mtu: None,
        tcp_broken: None,
        tcp_completed: None,
        tcp_sent_again: None,
        tcp_bytes: None,
        tcp_stall_ms: None,
        tcp_mbit: None,
        tcp_goodput_percent: None,
        handshakes: None,
        filter_drops: None,
        ..expect.clone()
    };
    let Expect { title, asserted, stream, node, from, until, .. } = rest.clone();
    let barless = Expect { title, asserted, stream, node, from, until, ..Expect::default() };
    (rest != barless).then_some(rest)
}

/// Nanoseconds from `origin` to `at`, negative before it.
fn relative(at: Instant, origin: Instant) -> i64 {
    at.as_nanos() as i64 - origin.as_nanos() as i64
}

/// What a link behind the uplinks adds.
fn delay_of(name: &str, link: &Link) -> Result<Duration> {
    let [up, down] = [link.netem(Direction::Up), link.netem(Direction::Down)];
    let plain = Netem { delay: up.delay, ordered: true, limit: up.limit, ..Netem::default() };
    if up != down || up != plain {
        bail!("link {name} does more than delay packets; the simulator shapes only the uplinks");
    }
    Ok(up.delay.0)
}

fn all_up(world: &World) -> bool {
    [Side::Box, Side::Core].into_iter().all(|side| {
        let peers = world.snapshot(side).peers;
        peers.iter().flat_map(|peer| &peer.paths).all(|path| path.state == proto::PathState::Up)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;
    use crate::scenario::load;

    fn scenario(name: &str, more: &str) -> Loaded {
        let file = std::env::temp_dir().join(format!("msp-lab-simulate-{}-{name}.toml", std::process::id()));
        let text = format!(
            "schema = 1\nabout = \"a cut\"\nbase = \"two-isps\"\nlength = \"6s\"\n\
             [[traffic]]\nkind = \"udp\"\nname = \"down\"\nfrom = \"internet\"\nto = \"home\"\nrate = 1000\n{more}"
        );
        std::fs::write(&file, text).expect("the temporary folder is writable");
        let loaded = load(&file.to_string_lossy(), &[]);
        std::fs::remove_file(&file).expect("it was written above");
        loaded.expect("a sound scenario").remove(0)
    }

    const CUT: &str = "[[timeline]]\nat = { from = \"2s\", to = \"3s\" }\ndo = \"cut\"\nlink = \"isp-a\"\n\
                       [[expect]]\nstream = \"down\"\nlongest_gap_ms = { min = 30, max = 300 }\n";

    #[test]
    fn a_cut_is_seen_judged_and_the_same_for_its_seed() {
        let loaded = scenario("cut", CUT);
        let simulation = Simulation::of(&loaded).expect("it names nothing that only a kernel has");
        assert_eq!(simulation.uplinks.len(), 2);
        let report = simulation.run(7);
        assert_eq!(report.outcomes.len(), 1);
        assert_eq!(report.outcomes[0].verdict, Verdict::Pass, "{:?}", report.outcomes);
        assert_eq!(report.traffic.streams[0].sent, 6000);
        assert_eq!(simulation.run(7).traffic, report.traffic);
        assert_ne!(simulation.run(8).traffic, report.traffic);
    }

    #[test]
    fn what_only_a_kernel_has_is_said_by_name() {
        let exec = "[[timeline]]\nat = \"1s\"\ndo = \"exec\"\nhost = \"box\"\ncommand = [\"true\"]\n";
        let attack = "[[traffic]]\nkind = \"garbage\"\nname = \"noise\"\nfrom = \"internet\"\n\
                      to_address = \"192.0.2.1\"\nport = 51820\ncount = 10\nrate = 10\n";
        let mtu = "[links.lan]\nmtu = 1400\n";
        for (name, more, named) in [("exec", exec, "exec box"), ("attack", attack, "\"noise\""), ("mtu", mtu, "lan")] {
            let error = Simulation::of(&scenario(name, more)).err().expect("it needs a kernel").to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
