//! The meters of a run, one a host, and packet captures.

use super::clock::Clock;
use super::Job;
use crate::meter::{Family, HostResult, MeterSpec, TrafficResults, collect, plan};
use crate::net::build::Network;
use crate::scenario::Scenario;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The meters that run.
#[derive(Debug)]
pub(super) struct Meters {
    running: Vec<(String, Child, PathBuf)>,
}

impl Meters {
    pub(super) fn start(job: &Job, scenario: &Scenario, network: &Network, clock: Clock) -> Result<Self> {
        let address = |host: &str, family: Family| {
            let (v4, v6) = scenario.addresses(host);
            match family {
                Family::V4 => v4.map(IpAddr::V4),
                Family::V6 => v6.map(IpAddr::V6),
            }
        };
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut meters = Meters { running: Vec::new() };
        for (host, ends) in plan(&scenario.traffic, address)? {
            let file = |what: &str| job.folder.join(format!("meter-{host}{what}"));
            let result = file(".json");
            let spec = MeterSpec {
                host: host.clone(),
                seed: job.seed,
                start_ns: clock.start_ns(),
                length: scenario.length,
                drain: scenario.drain,
                ends,
                result: result.clone(),
                live: job.live.then(|| file("-live.jsonl")),
            };
            std::fs::write(file("-spec.json"), serde_json::to_vec_pretty(&spec)?)?;
            let log = File::create(file(".log"))?;
            let mut command = Command::new(&program);
            command.arg("meter").arg("--spec").arg(file("-spec.json"));
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let child = network.host(&host)?.spawn(&mut command)?;
            meters.running.push((host, child, result));
        }
        Ok(meters)
    }

    /// Waits until all have ended, and joins what they saw. A meter that fails makes the run void.
    pub(super) fn finish(mut self, scenario: &Scenario) -> Result<TrafficResults> {
        let mut results = Vec::new();
        let mut failed = Vec::new();
        for (host, mut child, file) in self.running.drain(..) {
            let status = child.wait()?;
            let log = file.with_extension("log");
            match std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<HostResult>(&text).ok()) {
                Some(result) if status.success() => results.push(result),
                _ => {
                    let text = std::fs::read_to_string(&log).unwrap_or_default();
                    failed.push(format!("the meter at {host} failed ({status}): {}", text.trim()));
                }
            }
        }
        let mut joined = collect(&scenario.traffic, scenario.length, results);
        joined.failed.extend(failed);
        Ok(joined)
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        for (_, child, _) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts to record packets at all hosts, if that was asked for.
pub(super) fn capture(job: &Job, network: &Network) -> Result<Vec<Child>> {
    let mut captures = Vec::new();
    if job.pcap {
        for (name, node) in &network.hosts {
            let file = job.folder.join(format!("{name}.pcap"));
            let mut command = Command::new("tcpdump");
            command.args(["-i", "any", "-n", "-s", "256", "-Z", "root", "-w"]).arg(&file);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            captures.push(node.spawn(&mut command).context("--pcap needs tcpdump: `cargo lab setup` installs it")?);
        }
    }
    Ok(captures)
}

/// Ends the recording.
pub(super) fn end(captures: Vec<Child>) -> Result<()> {
    for mut capture in captures {
        if let Some(pid) = Pid::from_raw(capture.id().cast_signed()) {
            kill_process(pid, Signal::TERM)?;
        }
        capture.wait()?;
    }
    Ok(())
}
