//! The commands of `cargo lab`.

use crate::kernel::{Choice, Place};
use crate::run::{self, Options};
use crate::scenario;
use crate::{engine, report, setup, suite};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

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
    /// Everything that must pass: format, lint, licences, unit tests, scenarios.
    Test {
        /// Which kernel to run scenarios in.
        #[arg(long, value_enum, default_value_t)]
        kernel: Choice,
        /// Only the scenarios.
        #[arg(long)]
        scenarios: bool,
    },
    /// The story: one ISP dies, both die, and the home stays reachable.
    Demo {
        /// Which kernel to run in.
        #[arg(long, value_enum, default_value_t)]
        kernel: Choice,
    },
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
    /// Draws the first run: a picture (.svg) or a page (.html).
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::List => list(),
        Command::Run(arguments) => run(&arguments),
        Command::Test { kernel, scenarios } => suite::test(kernel, scenarios),
        Command::Demo { kernel } => suite::demo(kernel),
        Command::Kernel => crate::kernel::build::build().map(|()| true),
        Command::Setup => setup::setup(setup::For::Everything).map(|()| true),
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
    let loaded: Vec<_> = arguments
        .scenarios
        .iter()
        .map(|name| scenario::load(name, &arguments.set).map(Arc::new))
        .collect::<Result<_>>()?;
    if loaded.iter().any(|l| l.scenario.has_daemons()) {
        run::build_daemons()?;
    }
    let mut reports = Vec::new();
    let mut good = true;
    for loaded in &loaded {
        let runs = arguments.runs.unwrap_or(loaded.scenario.runs).max(1);
        let options = Options { pcap: arguments.pcap.is_some(), live: runs == 1 };
        let jobs = (arguments.seed..).take(runs as usize).map(|seed| (Arc::clone(loaded), seed)).collect();
        let mut of_this = Vec::new();
        suite::many(jobs, &place, &options, |loaded, seed, result, _| match result {
            Ok((report, folder)) => {
                let missed = suite::missed(&report);
                let verdict = if missed.is_empty() { "good" } else { "MISSED" };
                println!("{} seed {seed}: {verdict}   {}", loaded.name, folder.display());
                for line in missed {
                    println!("    {line}");
                }
                of_this.push((report, folder));
            }
            Err(error) => {
                good = false;
                println!("{} seed {seed}: {error:#}", loaded.name);
            }
        })?;
        of_this.sort_by_key(|(report, _)| report.run.seed);
        for (report, folder) in &of_this {
            if let Some(pcap) = &arguments.pcap {
                collect_captures(folder, pcap, &format!("{}-{}", loaded.name, report.run.seed))?;
            }
        }
        let of_this: Vec<_> = of_this.into_iter().map(|(report, _)| report).collect();
        match of_this.as_slice() {
            [] => {}
            [report] => println!("{}", report::summary(report)),
            several => println!("{}", report::summary_of_runs(several)),
        }
        reports.extend(of_this);
    }
    if let Some(file) = &arguments.json {
        let text = match reports.as_slice() {
            [report] => serde_json::to_vec_pretty(report)?,
            several => serde_json::to_vec_pretty(several)?,
        };
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let (Some(file), Some(report)) = (&arguments.plot, reports.first()) {
        let text = match file.extension().is_some_and(|e| e == "svg") {
            true => report::svg(report),
            false => report::html(report),
        };
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(good && reports.iter().all(|report| report.outcomes.iter().all(|outcome| outcome.verdict.is_ok())))
}

/// Copies a run's captures to where they were asked for.
fn collect_captures(from: &Path, to: &Path, prefix: &str) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in from.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "pcap") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(&path, to.join(format!("{prefix}-{name}")))?;
        }
    }
    Ok(())
}
