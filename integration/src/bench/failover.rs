//! What a cut costs: kinds of cut x round trips x rates, with the real daemons, in the simulator, and with what is run today.
//!
//! A cell is a scenario (`failover`, or `failover-bfd` for today's way) with three values set; a run of it is a run as
//! `cargo lab run` makes it. The seed draws the instant of the cut, so all systems are cut at the same instants.

mod cells;
mod picture;
#[cfg(test)]
mod tests;

use crate::kernel::{Choice, Interrupted, Place};
use crate::report::{Kernel, Report};
use crate::run;
use crate::scenario::{self, Loaded};
use crate::setup;
use crate::simulate::Simulation;
use anyhow::{Context, Result, bail};
use cells::{Case, Figures, Grid, Kind, System, Void};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// One cell with one run of each system, to see that it works.
    #[arg(long)]
    quick: bool,
    /// What happens to the ISP in use; without it all of these, with --quick only cut.
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<Kind>,
    /// Round trips over either ISP, in milliseconds, with 2 ms of jitter each way that reorders nothing; without it 5,
    /// 20, 60 and 150, with --quick only 20.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(5..=500))]
    rtt: Vec<u32>,
    /// Packets of 1,000 octets a second, each way; without it 100, 1000 and 10000, with --quick only 1000.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(10..=20_000))]
    rate: Vec<u32>,
    /// Runs of each cell in a kernel; without it 5, with --quick 1.
    #[arg(long)]
    runs: Option<u64>,
    /// Runs of each cell in the simulator; without it 200, with --quick 20.
    #[arg(long)]
    seeds: Option<u64>,
    /// The seed of the first run; it and those that follow draw the instants of the cuts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What is measured: our daemons, the simulator, today's way (BGP and BFD over two WireGuard tunnels), or several.
    #[arg(long = "where", value_enum, value_delimiter = ',', default_value = "all")]
    places: Vec<Where>,
    /// Which kernel to run in.
    #[arg(long, value_enum, default_value_t)]
    kernel: Choice,
    /// Writes all figures, each run's too, as they come.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Goes on with what the JSON file has already: only what it lacks is run.
    #[arg(long, requires = "json")]
    resume: bool,
    /// Draws the figures: an HTML file, or SVG if the name ends so.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Where {
    /// The real daemons, in a kernel.
    Lab,
    /// The protocol in the simulator, with many seeds.
    Simulator,
    /// BIRD and wireguard-go, in a kernel.
    Today,
    /// All of these.
    All,
}

/// From a city to the other side of an ocean, and from a call to 80 Mbit/s.
const RTTS: [u32; 4] = [5, 20, 60, 150];
const RATES: [u32; 3] = [100, 1_000, 10_000];

/// With five the whole grid takes some hours, with the 20 that a bar wants most of a day.
const RUNS: u64 = 5;

/// So many that the 99th percentile is a run of its own and not the worst one.
const SEEDS: u64 = 200;

/// How often what came is written, in the midst of a cell: the file of a whole grid has some megabytes.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Packages without which there is nothing to compare with.
const TODAYS: [&str; 3] = ["bird2", "wireguard-go", "wireguard-tools"];

/// Measures, tells, and says whether every run could be made.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let mut grid = Grid::new(run::revision());
    if arguments.resume
        && let Some(file) = arguments.json.as_deref().filter(|file| file.exists())
    {
        grid.add_from(file)?;
    }
    let mut work = Work { grid, file: arguments.json.as_deref(), saved: Instant::now(), interrupted: None };
    let places = arguments.places()?;
    let wanted = |place: Where| places.contains(&place);
    // The simulator first: after seconds there is something to see.
    if wanted(Where::Simulator) {
        let cells = arguments.cells(&[System::Simulated])?;
        let seeds = arguments.seeds.unwrap_or(if arguments.quick { 20 } else { SEEDS });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        work.all(&cells, arguments.seed..arguments.seed + seeds, threads, |loaded, seed| {
            Ok(Simulation::of(loaded).with_context(|| format!("cannot simulate {}", loaded.name))?.run(seed))
        })?;
    }
    let mut systems = Vec::new();
    if wanted(Where::Lab) {
        systems.push(System::Ours);
    }
    if wanted(Where::Today) {
        systems.extend([System::Bfd100, System::Bfd20]);
    }
    if !systems.is_empty() {
        let place = Place::find(arguments.kernel)?;
        if systems.contains(&System::Ours) {
            run::build_daemons()?;
        }
        let cells = arguments.cells(&systems)?;
        let runs = arguments.runs.unwrap_or(if arguments.quick { 1 } else { RUNS });
        work.grid.kernel = Some(place.kernel);
        // On the native kernel time is real, and a second run beside the first would be a disturbance.
        let guests = if place.kernel == Kernel::Native { 1 } else { crate::suite::AT_ONCE };
        work.all(&cells, arguments.seed..arguments.seed + runs, guests, |loaded, seed| {
            run::measure(loaded, &place, seed)
        })?;
    }
    work.save()?;
    println!("\n{}", work.grid.text());
    if let Some(file) = &arguments.plot {
        picture::write(&work.grid, file)?;
    }
    if let Some(error) = work.interrupted {
        return Err(error).context("not all was measured; with --json and --resume it goes on from here");
    }
    Ok(work.grid.cells.iter().all(|cell| cell.void.is_empty()))
}

impl Arguments {
    /// What is measured, without what is not installed.
    fn places(&self) -> Result<Vec<Where>> {
        let all = [Where::Lab, Where::Simulator, Where::Today];
        let mut places: Vec<Where> = match self.places.contains(&Where::All) {
            true => all.to_vec(),
            false => self.places.clone(),
        };
        let missing = setup::missing(&TODAYS);
        if !missing.is_empty() && places.contains(&Where::Today) {
            let text = format!("today's way needs {}, which `cargo lab setup` installs", missing.join(", "));
            if !self.places.contains(&Where::All) {
                bail!(text);
            }
            println!("note: {text}: left out");
            places.retain(|place| *place != Where::Today);
        }
        Ok(places)
    }

    /// The cells of these systems, in the order in which they are measured.
    fn cells(&self, systems: &[System]) -> Result<Vec<(Case, Loaded)>> {
        fn or<T: Clone>(given: &[T], quick: bool, middle: T, all: &[T]) -> Vec<T> {
            match (given.is_empty(), quick) {
                (false, _) => given.to_vec(),
                (true, true) => vec![middle],
                (true, false) => all.to_vec(),
            }
        }
        let mut cells = Vec::new();
        for kind in or(&self.kind, self.quick, Kind::Cut, &Kind::ALL) {
            for rtt_ms in or(&self.rtt, self.quick, 20, &RTTS) {
                for rate in or(&self.rate, self.quick, 1_000, &RATES) {
                    for &system in systems {
                        let case = Case { kind, rtt_ms, rate, system };
                        let mut loaded = scenario::load(system.scenario(), &case.settings())?.remove(0);
                        // Runs of several cells stand beside each other, and their folders have the scenario's name.
                        loaded.name = case.name();
                        cells.push((case, loaded));
                    }
                }
            }
        }
        Ok(cells)
    }
}

/// What is done, and where it is kept.
struct Work<'a> {
    grid: Grid,
    file: Option<&'a Path>,
    saved: Instant,
    /// Whoever sat before it wanted an end.
    interrupted: Option<anyhow::Error>,
}

impl Work<'_> {
    /// Runs all of these cells with these seeds, so many at once.
    fn all(
        &mut self,
        cells: &[(Case, Loaded)],
        seeds: std::ops::Range<u64>,
        at_once: usize,
        run: impl Fn(&Loaded, u64) -> Result<Report> + Sync,
    ) -> Result<()> {
        let jobs: VecDeque<(usize, u64)> = (0..cells.len())
            .flat_map(|cell| seeds.clone().map(move |seed| (cell, seed)))
            .filter(|&(cell, seed)| !self.grid.has(cells[cell].0, seed))
            .collect();
        println!("{} runs in {} cells, {at_once} at once; a line for each cell", jobs.len(), cells.len());
        let (jobs, begun, work) = (Mutex::new(jobs), Instant::now(), Mutex::new((self, Ok(()))));
        let next = || lock(&jobs).pop_front();
        let worker = || {
            while let Some((cell, seed)) = next() {
                let (case, loaded) = &cells[cell];
                let outcome = run(loaded, seed);
                let mut held = lock(&work);
                let (work, error) = &mut *held;
                let outcome = match outcome {
                    Err(why) if why.is::<Interrupted>() => {
                        lock(&jobs).clear();
                        work.interrupted = Some(why);
                        return;
                    }
                    Err(why) => Err(format!("{why:#}")),
                    Ok(report) => Figures::of(&report, *case),
                };
                work.grid.add(*case, outcome.map_err(|why| Void { seed, why }));
                let complete = seeds.clone().all(|seed| work.grid.has(*case, seed));
                if complete {
                    println!("{:>5.0} s  {}", begun.elapsed().as_secs_f64(), work.grid.line(*case));
                }
                if (complete || work.saved.elapsed() > SAVE_EVERY)
                    && let Err(why) = work.save()
                {
                    lock(&jobs).clear();
                    *error = Err(why);
                }
            }
        };
        std::thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(worker))));
        let (_, error) = work.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        error
    }

    /// Writes what there is; the file is whole at any moment.
    fn save(&mut self) -> Result<()> {
        self.saved = Instant::now();
        let Some(file) = self.file else { return Ok(()) };
        let mut beside = file.as_os_str().to_owned();
        beside.push(".new");
        std::fs::write(&beside, serde_json::to_vec(&self.grid)?)
            .and_then(|()| std::fs::rename(&beside, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// A panic of another worker is reported by the scope; what it left is whole at any moment.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
