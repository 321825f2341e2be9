//! `cargo lab test`: everything that must pass, and `cargo lab demo`: the story.

use crate::kernel::{Choice, Place};
use crate::report::{self, Report};
use crate::run::{self, Options};
use crate::scenario::{self, Loaded};
use crate::setup::{self, cargo};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Guests at the same time: one a core of the machine that CI has. In virtual time the load disturbs no result.
const AT_ONCE: usize = 2;

/// What passes and what fails.
#[derive(Debug, Default)]
struct Score {
    passed: u32,
    failed: Vec<String>,
}

impl Score {
    fn note(&mut self, what: &str, good: bool, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        println!("{} {what} ({seconds:.0} s)", if good { "ok    " } else { "FAILED" });
        match good {
            true => self.passed += 1,
            false => self.failed.push(what.to_owned()),
        }
    }
}

/// The steps before the scenarios: a name, and cargo's arguments.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("lint", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    // Not `advisories`: their database would have to be fetched, and a test needs no network.
    (
        "licences, bans and sources",
        &["deny", "--offline", "--log-level", "error", "check", "licenses", "bans", "sources"],
    ),
    ("unit tests", &["test", "--quiet", "--workspace"]),
];

/// Runs it all. Whether all of it passed.
pub fn test(choice: Choice, only_scenarios: bool) -> Result<bool> {
    let begun = Instant::now();
    let mut score = Score::default();
    if !only_scenarios {
        for (what, arguments) in STEPS {
            println!("...... {what}: cargo {}", arguments.join(" "));
            let step = Instant::now();
            let status = Command::new(cargo())
                .args(*arguments)
                .current_dir(root())
                .stdin(Stdio::null())
                .status()
                .context("cannot start cargo")?;
            score.note(what, status.success(), step);
        }
    }
    let place = Place::find(choice)?;
    run::build_daemons()?;
    println!("...... scenarios: {AT_ONCE} at a time, kernel {:?}", place.kernel);
    let mut jobs = Vec::new();
    for (_, path) in scenario::list()? {
        let loaded = Arc::new(scenario::load(&path.to_string_lossy(), &[])?);
        if loaded.scenario.test {
            jobs.extend((1..=u64::from(loaded.scenario.runs)).map(|seed| (Arc::clone(&loaded), seed)));
        }
    }
    let total = jobs.len();
    let mut done = 0;
    many(jobs, &place, &Options::default(), |loaded, seed, result, took| {
        done += 1;
        let head = format!("[{done}/{total}] {} seed {seed}", loaded.name);
        match result {
            Ok((report, folder)) => {
                let missed = missed(&report);
                score.note(&head, missed.is_empty(), took);
                for line in &missed {
                    println!("       {line}");
                }
                match missed.is_empty() {
                    true => drop(std::fs::remove_dir_all(folder)),
                    false => println!("       logs: {}", folder.display()),
                }
            }
            Err(error) => {
                score.note(&head, false, took);
                println!("       {error:#}");
            }
        }
    })?;
    println!("in {} s", begun.elapsed().as_secs());
    for what in &score.failed {
        println!("failed: {what}");
    }
    println!("{} passed, {} failed", score.passed, score.failed.len());
    Ok(score.failed.is_empty())
}

/// What a run missed, a line each.
pub fn missed(report: &Report) -> Vec<String> {
    let missed = report.outcomes.iter().filter(|outcome| !outcome.verdict.is_ok());
    missed
        .map(|o| {
            let measured = o.measured.map_or("nothing".into(), |m| format!("{m:.1} {}", o.unit));
            let extra: Vec<&str> = report.exits.iter().flat_map(|e| &e.left_over).map(String::as_str).collect();
            let extra = if o.what.contains("exits") { extra.join("; ") } else { String::new() };
            format!("{}: {measured}, wanted {} {} {extra}", o.what, o.bar, o.note)
        })
        .collect()
}

/// Runs jobs, some at a time, and tells of each as it ends.
pub fn many(
    jobs: Vec<(Arc<Loaded>, u64)>,
    place: &Place,
    options: &Options,
    mut ended: impl FnMut(&Loaded, u64, Result<(Report, PathBuf)>, Instant),
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(async {
        let mut jobs = jobs.into_iter();
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some((loaded, seed)) = jobs.next()
            {
                let (place, options) = (place.clone(), options.clone());
                running.spawn(async move {
                    let begun = Instant::now();
                    let result = run::once(&loaded, &place, seed, &options).await;
                    (loaded, seed, result, begun)
                });
            }
            match running.join_next().await {
                None => return Ok(()),
                Some(job) => {
                    let (loaded, seed, result, begun) = job.context("a run's task panicked: a bug of the lab")?;
                    ended(&loaded, seed, result, begun);
                }
            }
        }
    })
}

/// The project's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The story: two ISPs, one home prefix.
pub fn demo(choice: Choice) -> Result<bool> {
    if setup::is_root() {
        setup::setup(setup::For::Runs)?;
    } else if let Err(error) = setup::setup(setup::For::Runs) {
        println!("without root nothing can be installed, and User-Mode Linux needs none to run. {error:#}");
        return Ok(false);
    }
    println!("building the daemons");
    run::build_daemons()?;
    let place = Place::find(choice)?;
    let loaded = scenario::load("demo", &[])?;
    println!("{}, on the {:?} kernel; {} of traffic\n", loaded.scenario.about, place.kernel, loaded.scenario.length);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    let (report, folder) = runtime.block_on(run::once(&loaded, &place, 1, &Options { pcap: false, live: true }))?;
    println!("\n{}", report::summary(&report));
    for line in missed(&report) {
        println!("missed: {line}");
    }
    let out = root().join("out");
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    std::fs::write(out.join("demo.html"), report::html(&report))?;
    std::fs::write(out.join("demo.json"), serde_json::to_vec_pretty(&report)?)?;
    println!("picture: {0}/demo.html   figures: {0}/demo.json   logs: {1}", out.display(), folder.display());
    Ok(missed(&report).is_empty())
}
