//! The commands of `cargo lab`.

use crate::kernel::{Choice, Place};
use crate::run::{self, Options};
use crate::scenario;
use crate::{engine, report, setup};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// The lab: scenarios, tests and the demonstration.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the scenarios.
    List,
    /// Runs scenarios, by name or by file.
    Run(RunArguments),
    /// Builds the kernel with virtual time, once.
    Kernel,
    /// Installs the packages that the other commands need, or says which, without root.
    Setup,
    /// One run, inside the kernel that was chosen for it.
    #[command(hide = true)]
    Inside {
        /// What is to be run.
        job: PathBuf,
    },
    /// One host's traffic, inside a run.
    #[command(hide = true)]
    Meter {
        /// What is to be sent and received.
        #[arg(long)]
        spec: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Names (see `cargo lab list`) or files.
    #[arg(required = true, value_name = "NAME-or-FILE")]
    scenarios: Vec<String>,
    /// Sets a value of the scenario, by its dotted path: links.isp-a.delay=50ms, timeline.0.at=3s.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Draws what the scenario leaves to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Repeats with the seeds that follow, and sums up; by default what the scenario says.
    #[arg(long)]
    runs: Option<u32>,
    /// Which kernel to run in.
    #[arg(long, value_enum, default_value_t)]
    kernel: Choice,
    /// Writes the report, or a list of them for several runs.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Records the packets at all hosts.
    #[arg(long, value_name = "DIR")]
    pcap: Option<PathBuf>,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::List => list(),
        Command::Run(arguments) => run(&arguments),
        Command::Kernel => crate::kernel::build::build().map(|()| true),
        Command::Setup => setup::setup(true).map(|()| true),
        Command::Inside { job } => engine::inside(&job).map(|()| true),
        Command::Meter { spec } => engine::meter(&spec).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<bool> {
    for (name, path) in scenario::list()? {
        let loaded = scenario::load(&path.to_string_lossy(), &[])?;
        println!("{name:<24} {}", loaded.scenario.about);
    }
    Ok(true)
}

fn run(arguments: &RunArguments) -> Result<bool> {
    let place = Place::find(arguments.kernel)?;
    let loaded: Vec<_> =
        arguments.scenarios.iter().map(|name| scenario::load(name, &arguments.set)).collect::<Result<_>>()?;
    if loaded.iter().any(|l| l.scenario.has_daemons()) {
        run::build_daemons()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    let mut reports = Vec::new();
    for loaded in &loaded {
        let runs = arguments.runs.unwrap_or(loaded.scenario.runs).max(1);
        for seed in (arguments.seed..).take(runs as usize) {
            let options = Options { pcap: arguments.pcap.is_some(), live: runs == 1 };
            let (report, folder) = runtime.block_on(run::once(loaded, &place, seed, &options))?;
            if runs == 1 {
                println!("{}", report::summary(&report));
            } else {
                println!("{}", verdict_line(&report));
            }
            println!("logs: {}", folder.display());
            reports.push(report);
        }
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&reports)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(reports.iter().all(|report| report.outcomes.iter().all(|outcome| outcome.verdict.is_ok())))
}

/// A run of several in a line: what it missed, if anything.
fn verdict_line(report: &report::Report) -> String {
    let missed: Vec<String> = report
        .outcomes
        .iter()
        .filter(|outcome| !outcome.verdict.is_ok())
        .map(|o| {
            let measured = o.measured.map_or("nothing".into(), |m| format!("{m:.1} {}", o.unit));
            format!("{}: {measured}, wanted {} {}", o.what, o.bar, o.note)
        })
        .collect();
    let head = format!("{} seed {}", report.run.scenario, report.run.seed);
    match missed.is_empty() {
        true => format!("{head}: good"),
        false => format!("{head}: MISSED {}", missed.join("; ")),
    }
}
