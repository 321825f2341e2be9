//! One run from inside: network, daemons, timeline, traffic, report.

mod timeline;

use crate::meter::Span;
use crate::net::build::Network;
use crate::report::{self, Kernel, Report};
use crate::scenario::{Loaded, Scenario};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is to be run; written outside, read inside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The scenario's name.
    pub name: String,
    /// The scenario, merged.
    pub merged: String,
    /// What was set in it from outside.
    pub set: BTreeMap<String, String>,
    /// Draws what is left to chance.
    pub seed: u64,
    /// Where we are.
    pub kernel: Kernel,
    /// Where everything is left.
    pub folder: PathBuf,
    /// Where the daemons are.
    pub binaries: PathBuf,
    /// The project's revision.
    pub revision: Option<String>,
    /// Record packets.
    pub pcap: bool,
    /// Print what happens.
    pub live: bool,
}

/// Runs a job and leaves `report.json` in its folder.
pub fn inside(job: &Path) -> Result<()> {
    let job = std::fs::read(job).with_context(|| format!("cannot read {}", job.display()))?;
    let job: Job = serde_json::from_slice(&job).context("the job cannot be read: a bug of the lab")?;
    let scenario = Loaded::parse(&job.name, &job.merged)?;
    let report = run(&job, &scenario)?;
    std::fs::write(job.folder.join("report.json"), serde_json::to_vec(&report)?)
        .with_context(|| format!("cannot write the report into {}", job.folder.display()))
}

fn run(job: &Job, scenario: &Scenario) -> Result<Report> {
    let network = Network::build(scenario)?;
    let plan = timeline::plan(scenario, job.seed);
    let start = Instant::now() + LEAD;
    let mut events = Vec::new();
    for due in &plan {
        sleep_until(start + due.at.0);
        timeline::act(&network, scenario, due).with_context(|| format!("timeline at {}: {}", due.at, due.label))?;
        events.push(report::TimelineEvent {
            at_ms: start.elapsed().as_secs_f64() * 1e3,
            name: due.name.clone(),
            label: due.label.clone(),
        });
    }
    sleep_until(start + scenario.length.0);
    Ok(Report {
        schema: report::SCHEMA,
        run: report::Run {
            scenario: job.name.clone(),
            title: scenario.about.clone(),
            seed: job.seed,
            kernel: job.kernel,
            revision: job.revision.clone(),
            when: String::new(),
            set: job.set.clone(),
            length_ms: Span(scenario.length.0).millis(),
        },
        traffic: Default::default(),
        bgp: Vec::new(),
        status: Vec::new(),
        events,
        exits: Vec::new(),
        outcomes: Vec::new(),
        notes: Vec::new(),
    })
}

/// Between the moment when all is ready and the start of traffic: the meters must be up by then.
const LEAD: Duration = Duration::from_secs(1);

fn sleep_until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}
