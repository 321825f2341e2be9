//! The commands of `cargo lab`.

use crate::bench::{self, Bench};
use crate::kernel::{Choice, Place};
use crate::report::Report;
use crate::run::{self, Options};
use crate::scenario::{self, Loaded};
use crate::simulate::Simulation;
use crate::{bgp_attack, demo, engine, report, setup, suite};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
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
    /// Runs everything that must pass: format, lints, licences, unit tests, all scenarios.
    Test,
    /// Measures over many runs, and sets what it finds beside the bars.
    #[command(subcommand)]
    Bench(Bench),
    /// Shows it: two ISPs, one home prefix; an ISP dies, both die, and the home stays reachable.
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
    /// A BGP speaker that sends what it must not, inside a run; fails if the core does anything but what the RFCs say.
    #[command(hide = true)]
    BgpAttack {
        /// The core.
        #[arg(long)]
        core: SocketAddr,
        /// The core's control socket.
        #[arg(long)]
        control: PathBuf,
        /// An address of this host that is no neighbour's.
        #[arg(long)]
        stranger: IpAddr,
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
    /// Names (see `cargo lab list`) or files; NAME@VARIANT for one of several variants.
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
    /// Prints the verdict of each run in a line, and nothing else.
    #[arg(long)]
    quiet: bool,
    /// Draws the run: an HTML file, or SVG if the name ends so; with several runs one each, its seed in the name.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::List => list(),
        Command::Run(arguments) => run(&arguments),
        Command::Test => suite::test(),
        Command::Bench(what) => bench::bench(&what),
        Command::Demo { kernel } => demo::demo(kernel),
        Command::Kernel => crate::kernel::build::build().map(|()| true),
        Command::Setup => setup::setup(setup::For::Everything).map(|()| true),
        Command::Inside { job } => engine::inside(&job).map(|()| true),
        Command::BgpAttack { core, control, stranger } => {
            bgp_attack::Attack { core, control, stranger }.run().map(|()| true)
        }
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
        let about = loaded.first().map(|one| one.scenario.about.as_str()).unwrap_or_default();
        println!("{name:<24} {about}");
        let variants: Vec<&str> = loaded.iter().filter_map(|one| Some(one.name.rsplit_once('@')?.1)).collect();
        if !variants.is_empty() {
            println!("{:<24}   @ {}", "", variants.join(", "));
        }
    }
    Ok(true)
}

fn run(arguments: &RunArguments) -> Result<bool> {
    let loaded: Vec<Vec<Loaded>> =
        arguments.scenarios.iter().map(|name| scenario::load(name, &arguments.set)).collect::<Result<_>>()?;
    let loaded = loaded.concat();
    let reports = match arguments.kernel {
        Choice::Simulator => simulate(arguments, &loaded)?,
        _ => run_in_a_kernel(arguments, &loaded)?,
    };
    if reports.len() > 1 && !arguments.quiet {
        println!("{}", report::summary_of_runs(&reports));
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&reports)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &arguments.plot {
        for report in &reports {
            let file = if reports.len() == 1 { file.clone() } else { numbered(file, &report.run) };
            draw(report, &file)?;
        }
    }
    Ok(report::all_good(&reports))
}

/// The seeds that a scenario is run with.
fn seeds(arguments: &RunArguments, loaded: &Loaded) -> impl Iterator<Item = u64> {
    (arguments.seed..).take(arguments.runs.unwrap_or(loaded.scenario.runs).max(1) as usize)
}

fn simulate(arguments: &RunArguments, loaded: &[Loaded]) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for loaded in loaded {
        let simulation = Simulation::of(loaded).with_context(|| format!("cannot simulate {}", loaded.name))?;
        for seed in seeds(arguments, loaded) {
            let report = simulation.run(seed);
            tell(&report, !arguments.quiet && seeds(arguments, loaded).count() == 1);
            reports.push(report);
        }
    }
    Ok(reports)
}

fn run_in_a_kernel(arguments: &RunArguments, loaded: &[Loaded]) -> Result<Vec<Report>> {
    let place = Place::find(arguments.kernel)?;
    if loaded.iter().any(|l| l.scenario.has_daemons()) {
        run::build_daemons()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    let mut reports = Vec::new();
    for loaded in loaded {
        for seed in seeds(arguments, loaded) {
            let alone = !arguments.quiet && seeds(arguments, loaded).count() == 1;
            let options = Options { pcap: arguments.pcap.is_some(), live: alone };
            let (report, folder) = runtime.block_on(run::once(loaded, &place, seed, &options))?;
            tell(&report, alone);
            println!("logs: {}", folder.display());
            if let Some(to) = &arguments.pcap {
                collect_captures(&folder, to, &format!("{}-{seed}", loaded.name))?;
            }
            reports.push(report);
        }
    }
    Ok(reports)
}

fn tell(report: &Report, alone: bool) {
    println!("{}", if alone { report::summary(report) } else { verdict_line(report) });
}

/// `out/cut.html` for the seed 7 of the scenario silent-cut: `out/cut-silent-cut-7.html`.
fn numbered(file: &Path, run: &report::Run) -> PathBuf {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = file.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    file.with_file_name(format!("{stem}-{}-{}{ending}", run.scenario, run.seed))
}

fn draw(report: &Report, file: &Path) -> Result<()> {
    let svg = file.extension().is_some_and(|ending| ending == "svg");
    let picture = if svg { report::svg(report) } else { report::html(report) };
    std::fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))?;
    println!("picture: {}", file.display());
    Ok(())
}

/// A run of several in a line: what it missed, if anything.
fn verdict_line(report: &Report) -> String {
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

/// Copies a run's captures to where they were asked for.
fn collect_captures(from: &Path, to: &Path, prefix: &str) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in from.read_dir().with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "pcap") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(&path, to.join(format!("{prefix}-{name}")))?;
        }
    }
    Ok(())
}
