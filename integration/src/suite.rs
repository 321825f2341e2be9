//! `cargo lab test`: everything that must pass, in the order in which it fails fastest.

use crate::kernel::{Choice, KERNEL_VARIABLE, Place};
use crate::report::Kernel;
use crate::scenario::{self, Loaded};
use crate::simulate::Simulation;
use crate::{run, setup};
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How many seeds of a scenario the suite runs in a kernel, where the file asks for more; its variants share them, and each
/// has one at least. Those runs take a quarter of a minute each; the simulator's cost nothing, and `cargo lab run` makes as
/// many as the file says.
const RUNS_IN_A_KERNEL: u32 = 2;

/// How many seeds of each scenario the simulator runs.
const RUNS_IN_THE_SIMULATOR: u64 = 50;

/// Guests at the same time. Each has one processor; in virtual time a slow one is none the worse.
pub(crate) const AT_ONCE: usize = 2;

/// How much of a failed step's output is shown.
const SHOWN_LINES: usize = 60;

/// What is run before the scenarios: a name and cargo's arguments.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--", "--check"]),
    ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    // The advisories' database is fetched from the network, which a test may not need: `cargo deny check` by hand.
    ("licences, sources, duplicates", &["deny", "check", "licenses", "bans", "sources"]),
    ("unit tests", &["test", "--quiet", "--workspace"]),
    // A build apart: the feature moves boringtun's clock for everything in it.
    (
        "WireGuard's timers",
        &["test", "--quiet", "--package", "proto", "--features", "mock-clock", "--test", "wireguard_clock"],
    ),
];

/// How many passed and failed.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: Vec<String>,
}

impl Tally {
    fn note(&mut self, name: &str, took: Duration, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                println!("ok      {:>6.1} s  {name}", took.as_secs_f64());
                self.passed += 1;
            }
            Err(why) => {
                println!("FAILED  {:>6.1} s  {name}\n{why}", took.as_secs_f64());
                self.failed.push(name.to_owned());
            }
        }
    }
}

/// Runs all of it. Whether everything passed.
pub fn test() -> Result<bool> {
    let begun = Instant::now();
    setup::setup(setup::For::Test)?;
    let logs = run::binaries()?.with_file_name("lab-test");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let mut tally = Tally::default();
    for (name, arguments) in STEPS {
        let mut command = setup::cargo();
        command.args(*arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(""));
        let begun = Instant::now();
        let outcome = logged(&mut command, &logs.join(format!("{}.log", name.replace([' ', ','], "-"))));
        tally.note(name, begun.elapsed(), outcome);
    }
    let all: Vec<Vec<Loaded>> = scenario::list()?
        .into_iter()
        .map(|(_, path)| scenario::load(&path.to_string_lossy(), &[]))
        .collect::<Result<_>>()?;
    let all: Vec<Loaded> = all.into_iter().flatten().filter(|loaded| loaded.scenario.test).collect();
    simulated(&all, &mut tally);
    in_a_kernel(&all, &logs, &mut tally)?;
    println!("\n{:.0} s; logs are in {}", begun.elapsed().as_secs_f64(), logs.display());
    for name in &tally.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    Ok(tally.failed.is_empty())
}

/// Runs a command with its output in a file; on failure the error is the end of it.
fn logged(command: &mut Command, log: &Path) -> Result<(), String> {
    let mut result = || -> Result<bool> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).status()?;
        Ok(status.success())
    };
    match result() {
        Ok(true) => Ok(()),
        Ok(false) => {
            let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            Err(format!("{shown}\n(all of it: {})", log.display()))
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Those that the simulator can run, with many seeds.
fn simulated(all: &[Loaded], tally: &mut Tally) {
    let can = |loaded| Some((loaded, Simulation::of(loaded).ok()?));
    let (mut jobs, tally) = (all.iter().filter_map(can).collect::<Vec<_>>(), Mutex::new(tally));
    // The longest first, so that the last ones to end are short.
    jobs.sort_by_key(|(loaded, _)| std::cmp::Reverse(loaded.scenario.length));
    at_once(AT_ONCE, jobs, |(loaded, simulation)| {
        let begun = Instant::now();
        let missed = (1..=RUNS_IN_THE_SIMULATOR).find_map(|seed| {
            let report = simulation.run(seed);
            let missed = report.outcomes.iter().find(|outcome| !outcome.verdict.is_ok())?;
            let again = format!("cargo lab run {} --kernel simulator --runs 1 --seed {seed}", loaded.name);
            Some(format!("{missed:?}\nagain: {again}"))
        });
        let name = format!("{} ({RUNS_IN_THE_SIMULATOR} seeds, simulator)", loaded.name);
        lock(&tally).note(&name, begun.elapsed(), missed.map_or(Ok(()), Err));
    });
}

/// Does each job, in this order, so many at once.
fn at_once<T: Send>(workers: usize, jobs: Vec<T>, each: impl Fn(T) + Sync) {
    let waiting = Mutex::new(VecDeque::from(jobs));
    let work = || {
        // Not in the condition of the loop: the lock would be held as long as the job takes.
        let next = || lock(&waiting).pop_front();
        while let Some(job) = next() {
            each(job);
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
}

/// All of them with the real daemons, [`AT_ONCE`] guests at a time.
fn in_a_kernel(all: &[Loaded], logs: &Path, tally: &mut Tally) -> Result<()> {
    let place = Place::find(Choice::Auto)?;
    if place.kernel != Kernel::Virtual {
        println!(
            "note: no virtual-time kernel, so deadlines are reported and not asserted; `cargo lab kernel` builds one"
        );
    }
    run::build_daemons()?;
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    // The longest first, so that the last ones to end are short.
    let is_guest = place.kernel != Kernel::Native;
    let mut order: Vec<&Loaded> = all.iter().filter(|loaded| is_guest || !loaded.scenario.sets_clock()).collect();
    if order.len() < all.len() {
        println!("note: {} scenarios set the clock, which only a guest may: left out", all.len() - order.len());
    }
    let before = order.len();
    let another = std::env::var_os(KERNEL_VARIABLE).is_some();
    order.retain(|loaded| !(another && loaded.scenario.own_kernel));
    if order.len() < before {
        let left_out = before - order.len();
        println!(
            "note: {left_out} scenarios need the kernel of `cargo lab kernel`, and {KERNEL_VARIABLE} names one: left out"
        );
    }
    order.sort_by_key(|loaded| std::cmp::Reverse(loaded.scenario.length));
    let tally = Mutex::new(tally);
    // On the native kernel time is real, and a second run beside the first would be a disturbance.
    let workers = if place.kernel == Kernel::Native { 1 } else { AT_ONCE };
    at_once(workers, order, |loaded| {
        let (seed, runs) = seeds(all, loaded);
        let log: PathBuf = logs.join(format!("{}.log", loaded.name));
        let mut command = Command::new(&program);
        // Quiet, so that the end of the output is why a run failed, and not how it went.
        command.args(["run", &loaded.name, "--quiet", "--runs", &runs.to_string(), "--seed", &seed.to_string()]);
        let begun = Instant::now();
        let outcome = logged(&mut command, &log);
        lock(&tally).note(&format!("{} ({runs} in {})", loaded.name, place.kernel), begun.elapsed(), outcome);
    });
    Ok(())
}

/// With which seed a scenario's runs in a kernel begin, and how many they are: each variant of a file has its own.
fn seeds(all: &[Loaded], loaded: &Loaded) -> (u32, u32) {
    let file = |name: &str| name.split('@').next().map(str::to_owned);
    let mut variants = all.iter().filter(|other| file(&other.name) == file(&loaded.name));
    let before = variants.by_ref().take_while(|other| other.name != loaded.name).count() as u32;
    let count = before + 1 + variants.count() as u32;
    let runs = loaded.scenario.runs.clamp(1, (RUNS_IN_A_KERNEL / count).max(1));
    (1 + before * runs, runs)
}

/// A panic of another worker is reported by the scope; what it left is a list and a count, whole at any moment.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_share_the_seeds_of_their_scenario() {
        let loaded = |name: &str, runs: u32| {
            let mut one = scenario::load("silent-cut", &[]).expect("it is there").remove(0);
            (one.name, one.scenario.runs) = (name.to_owned(), runs);
            one
        };
        let mut all = vec![loaded("a", 20), loaded("b", 1)];
        all.extend(["c@1", "c@2"].map(|name| loaded(name, 20)));
        all.extend(["d@1", "d@2", "d@3", "d@4"].map(|name| loaded(name, 1)));
        let seeds: Vec<_> = all.iter().map(|one| seeds(&all, one)).collect();
        assert_eq!(seeds, [(1, 2), (1, 1), (1, 1), (2, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    }
}
