//! What TCP has by a tunnel of each kind, in turns: the real daemons on this machine's own kernel, and nothing on the links that
//! would hold them up.
//!
//! It measures real time, and everything shares this machine: the hosts' TCP, both daemons, and all routers between them.

use super::tunnels::{BAR, KINDS, median};
use crate::kernel::Place;
use crate::run;
use crate::scenario;
use anyhow::{Context, Result, bail};
use proto::TunnelKind;
use std::path::PathBuf;

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often it is measured, the kinds in turns.
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// Writes all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A run's two measurements, as the scenario names them.
const DIRECTIONS: [&str; 2] = ["down", "up"];

/// What one run gave, in Mbit/s.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Figure {
    tunnel: TunnelKind,
    run: u64,
    down: f64,
    up: f64,
}

/// Measures, and says whether the bar is met.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let missing = crate::setup::missing(&["iperf3"]);
    if !missing.is_empty() {
        bail!("this needs {}, which `cargo lab setup` installs", missing.join(", "));
    }
    let place = Place::wires()?;
    run::build_daemons()?;
    let mut figures = Vec::new();
    for run in 1..=arguments.runs.max(1) {
        for tunnel in KINDS {
            let loaded = scenario::load("throughput", &[format!("tunnel={tunnel}")])?;
            let loaded = loaded.first().context("the scenario throughput is gone")?;
            let report = run::measure(loaded, &place, run)?;
            let speed = |name: &str| {
                let speed = report
                    .traffic
                    .speeds
                    .iter()
                    .find(|speed| speed.name == name)
                    .context("there is no such measurement")?;
                match &speed.error {
                    Some(error) => bail!("{name} by {tunnel} gave no figure: {error}"),
                    None => Ok(speed.bps / 1e6),
                }
            };
            let [down, up] = DIRECTIONS.map(speed);
            let figure = Figure { tunnel, run, down: down?, up: up? };
            println!("run {run}: {:<10} {:>6.0} Mbit/s down, {:>6.0} up", tunnel.to_string(), figure.down, figure.up);
            figures.push(figure);
        }
    }
    if let Some(file) = &arguments.json {
        let document = serde_json::to_string_pretty(&figures)?;
        std::fs::write(file, document).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut met = true;
    for (direction, of) in DIRECTIONS.iter().zip([(|figure| figure.down) as fn(&Figure) -> f64, |figure| figure.up]) {
        let speed = |kind| median(figures.iter().filter(|figure| figure.tunnel == kind).map(of).collect());
        let [wireguard, quic] = KINDS.map(speed);
        let ratio = quic / wireguard;
        met &= ratio >= BAR;
        println!(
            "{direction}: QUIC has {ratio:.2} of WireGuard's {wireguard:.0} Mbit/s (medians); the bar is {BAR}: {}",
            if ratio >= BAR { "met" } else { "NOT met" }
        );
    }
    Ok(met)
}
