//! One run from inside: network, daemons, timeline, traffic, report.

mod clock;
mod live;
mod stage;
pub(crate) mod timeline;
mod traffic;
mod watch;

use crate::daemon::bgp_events;
use crate::report::{self, Kernel, Report};
use crate::scenario::{Loaded, Scenario};
use anyhow::{Context, Result};
use clock::Clock;
use serde::{Deserialize, Serialize};
use stage::Stage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// When it was started: UTC, RFC 3339.
    pub when: String,
    /// The project's revision.
    pub revision: Option<String>,
    /// Record packets.
    pub pcap: bool,
    /// Show what happens.
    pub live: bool,
    /// To a terminal.
    pub terminal: bool,
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

/// Does one host's part of a run's traffic.
pub fn meter(spec: &Path) -> Result<()> {
    let text = std::fs::read(spec).with_context(|| format!("cannot read {}", spec.display()))?;
    let spec = serde_json::from_slice(&text).context("the meter's part cannot be read: a bug of the lab")?;
    Ok(crate::meter::run(spec)?)
}

/// Between the moment when all is ready and the start of traffic: the meters must be up by then.
const LEAD: Duration = Duration::from_secs(1);

fn run(job: &Job, scenario: &Scenario) -> Result<Report> {
    let mut stage = Stage::set(job, scenario)?;
    stage.start_all()?;
    let captures = traffic::capture(job, &stage.network)?;
    let clock = Clock::starting_in(LEAD);
    let meters = traffic::Meters::start(job, scenario, &stage.network, clock)?;
    let live = live::Live::start(job, clock, stage.bird_log_files());
    stage.wire = Some(live.wire());
    let watch = watch::Watch::start(&stage.daemons, clock, live.wire());

    let plan = timeline::plan(scenario, job.seed);
    stage.play(&plan, &timeline::holds(scenario, &plan, job.seed), clock)?;
    let results = meters.finish(scenario)?;
    clock.sleep_until(scenario.length.0 + scenario.drain.0);

    let status = watch.finish();
    live.end();
    traffic::end(captures)?;
    // What the end of the daemons does to routes, and what the kernel says of their closed ports, is no part of the run.
    let over_ms = clock.now_ms();
    let filters = stage.filtered()?;
    let dropped_by_links = stage.network.dropped_by_links()?;
    stage.stop_all(clock);
    if scenario.sets_clock() {
        stage.notes.push("the wall clock was set: when BIRD saw routes cannot be told, and is left out".to_owned());
    }
    let bgp = stage.bird_logs().iter().flat_map(|log| bgp_events(log, clock.start_unix_ns())).collect();
    let mut report = Report {
        schema: report::SCHEMA,
        run: report::Run {
            scenario: job.name.clone(),
            title: scenario.about.clone(),
            seed: job.seed,
            kernel: job.kernel,
            revision: job.revision.clone(),
            when: job.when.clone(),
            set: job.set.clone(),
            length_ms: scenario.length.millis(),
        },
        traffic: results,
        bgp,
        status,
        links: stage.links,
        filters,
        dropped_by_links,
        events: stage.events,
        exits: stage.exits,
        outcomes: Vec::new(),
        notes: stage.notes,
    };
    // BIRD writes the wall clock's time.
    report.bgp.retain(|event| event.at_ms <= over_ms && !scenario.sets_clock());
    report.bgp.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    report.outcomes = report::evaluate(&report, &scenario.expect);
    Ok(report)
}
