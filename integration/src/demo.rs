//! `cargo lab demo`: the story, from nothing to a picture, with one command.

use crate::kernel::{Choice, Place};
use crate::report::{self, Report};
use crate::run::{self, Options};
use crate::scenario;
use crate::setup::{self, For};
use anyhow::{Context, Result};
use std::path::Path;

/// The story: two ISPs, one home prefix.
pub fn demo(choice: Choice) -> Result<bool> {
    if setup::is_root() {
        setup::setup(For::Demo)?;
    } else if let Err(error) = setup::setup(For::Demo) {
        println!("without root nothing can be installed, and User-Mode Linux needs none to run. {error:#}");
        return Ok(false);
    }
    println!("building the daemons");
    run::build_daemons()?;
    let place = Place::find(choice)?;
    let loaded = scenario::load("demo", &[])?.into_iter().next().context("the demo has no variants")?;
    println!("{}, on the {:?} kernel; {} of traffic\n", loaded.scenario.about, place.kernel, loaded.scenario.length);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    let (report, folder) = runtime.block_on(run::once(&loaded, &place, 1, &Options { pcap: false, live: true }))?;
    println!("\n{}", report::summary(&report));
    for line in missed(&report) {
        println!("missed: {line}");
    }
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("out");
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    std::fs::write(out.join("demo.html"), report::html(&report))?;
    std::fs::write(out.join("demo.json"), serde_json::to_vec_pretty(&report)?)?;
    println!("picture: {0}/demo.html   figures: {0}/demo.json   logs: {1}", out.display(), folder.display());
    Ok(missed(&report).is_empty())
}

/// What a run missed, a line each.
fn missed(report: &Report) -> Vec<String> {
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
