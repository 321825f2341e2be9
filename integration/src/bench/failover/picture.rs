//! The picture of the grid: a column for each kind of cut; above the longest gap, below the packets lost, against the round
//! trip. A colour for each system, a dash for each rate.

use super::cells::{Case, Cell, Grid, Kind, Summary, System};
use crate::report::svg::Svg;
use crate::report::{self, figure};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// The lab's colours, and a class for each system and rate.
const STYLE: &str = concat!(include_str!("../../report/style.css"), include_str!("style.css"));

const LEFT: f64 = 64.0;
const TOP: f64 = 112.0;
/// A column's panel, and the room between two.
const PANEL: (f64, f64) = (260.0, 220.0);
const BETWEEN: (f64, f64) = (20.0, 82.0);
const MARK: f64 = 5.0;
/// From one entry of the legend to the next.
const ENTRY: f64 = 205.0;

/// What is aimed at: a gap of at most a round trip and so much longer, in milliseconds.
const AIM_MS: f64 = 30.0;

/// An axis of powers of ten.
struct Axis {
    /// Where a value stands, in decades.
    place: fn(f64) -> f64,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// For gaps: at least from 10 ms to a second.
    fn gaps(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().filter(|v| *v > 0.0).fold(10.0, f64::min).log10().floor();
        let most = values.fold(1_000.0, f64::max).log10().ceil();
        let decades = least as i32..=most as i32;
        let ticks = decades.flat_map(|d| [1.0, 3.0].map(|n| n * 10f64.powi(d))).filter(|t| *t <= 10f64.powf(most));
        Axis { place: |v| v.max(1e-3).log10(), from: least, to: most, ticks: ticks.collect() }
    }

    /// For losses: none has a place of its own, at the bottom.
    fn losses(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(100.0, f64::max).log10().ceil() as i32;
        let ticks = [0.0].into_iter().chain((0..=most).map(|d| 10f64.powi(d))).collect();
        Axis { place: |v| (1.0 + v).log10(), from: 0.0, to: f64::from(most), ticks }
    }

    fn y(&self, value: f64, top: f64) -> f64 {
        let share = ((self.place)(value) - self.from) / (self.to - self.from);
        top + PANEL.1 - share.clamp(0.0, 1.0) * (PANEL.1 - 8.0)
    }
}

/// Writes it, as an HTML page or as SVG if the name ends so.
pub(super) fn write(grid: &Grid, file: &Path) -> Result<()> {
    let is_svg = file.extension().is_some_and(|ending| ending == "svg");
    let picture = match is_svg {
        true => svg(grid),
        false => report::page("failover", &svg(grid), &format!("<pre>{}</pre>", report::svg::escape(&grid.text()))),
    };
    std::fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))?;
    println!("picture: {}", file.display());
    Ok(())
}

/// The cases of the cells that have a figure, and the figures.
fn measured(grid: &Grid) -> Vec<(Case, Summary)> {
    grid.cells.iter().filter_map(|Cell { case, summary, .. }| Some((*case, (*summary)?))).collect()
}

/// Draws it.
pub(super) fn svg(grid: &Grid) -> String {
    let cells = measured(grid);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| cells.iter().any(|(c, _)| c.kind == *kind)).collect();
    let rtts: Vec<u32> = cells.iter().map(|(case, _)| case.rtt_ms).collect::<BTreeSet<_>>().into_iter().collect();
    let rates: Vec<u32> = cells.iter().map(|(case, _)| case.rate).collect::<BTreeSet<_>>().into_iter().collect();
    // At least as wide as the words above and below.
    let columns = kinds.len().max(3) as f64;
    let width = LEFT + columns * (PANEL.0 + BETWEEN.0) + 12.0;
    let below = TOP + PANEL.1 + BETWEEN.1;
    let height = below + PANEL.1 + 108.0;
    let mut svg = Svg::default();
    svg.rect("paper", (0.0, 0.0), (width, height), "");
    svg.text("title", (24.0, 36.0), "What a cut of the ISP in use costs");
    let kernel = grid.kernel.map_or(String::new(), |kernel| format!(", real daemons in {kernel}"));
    let runs = cells.iter().filter_map(|(case, _)| grid.cell(*case)).map(|cell| cell.runs.len());
    let (least, most) = (runs.clone().min().unwrap_or(0), runs.max().unwrap_or(0));
    let runs = if least == most { most.to_string() } else { format!("{least} to {most}") };
    let about = format!("the 95th percentile of {runs} runs a point, both directions{kernel}; against the round trip");
    svg.text("sub", (24.0, 57.0), &about);

    let gaps = Axis::gaps(cells.iter().map(|(_, s)| s.gap_ms.p95));
    let losses = Axis::losses(cells.iter().map(|(_, s)| s.lost.p95));
    let x = |column: usize, rtt: usize| {
        let step = PANEL.0 / rtts.len().max(1) as f64;
        LEFT + column as f64 * (PANEL.0 + BETWEEN.0) + (rtt as f64 + 0.5) * step
    };
    for (axis, top, title) in [(&gaps, TOP, "longest gap, ms"), (&losses, below, "packets lost")] {
        svg.text("head", (LEFT, top - 26.0), title);
        for (column, kind) in kinds.iter().enumerate() {
            let left = LEFT + column as f64 * (PANEL.0 + BETWEEN.0);
            svg.rect("panel", (left, top), PANEL, "");
            svg.text("tick", (left, top - 7.0), title_of(*kind));
            for tick in &axis.ticks {
                let y = axis.y(*tick, top);
                svg.line("grid", (left, y), (left + PANEL.0, y));
                if column == 0 {
                    svg.text("tick end", (left - 7.0, y + 4.0), &figure(*tick));
                }
            }
            for (at, rtt) in rtts.iter().enumerate() {
                svg.text("tick mid", (x(column, at), top + PANEL.1 + 16.0), &format!("{rtt} ms"));
            }
        }
    }
    for column in 0..kinds.len() {
        let aim: Vec<(f64, f64)> =
            rtts.iter().enumerate().map(|(at, rtt)| (x(column, at), gaps.y(f64::from(*rtt) + AIM_MS, TOP))).collect();
        svg.curve("aim", &aim, None);
    }
    for (column, kind) in kinds.iter().enumerate() {
        for (number, system) in System::ALL.into_iter().enumerate() {
            for rate in &rates {
                let of = |case: &Case| (case.kind, case.system, case.rate) == (*kind, system, *rate);
                let line: Vec<&(Case, Summary)> = cells.iter().filter(|(case, _)| of(case)).collect();
                let class = format!("system s{number} {}", dash(&rates, *rate));
                for (axis, top, value) in
                    [(&gaps, TOP, (|s| s.gap_ms.p95) as fn(&Summary) -> f64), (&losses, below, |s| s.lost.p95)]
                {
                    let place = |case: &Case| rtts.iter().position(|rtt| *rtt == case.rtt_ms).unwrap_or(0);
                    let points: Vec<(f64, f64)> =
                        line.iter().map(|(case, s)| (x(column, place(case)), axis.y(value(s), top))).collect();
                    svg.curve(&class, &points, None);
                    for ((case, s), (x, y)) in line.iter().zip(points) {
                        let unit = if top == TOP { "ms" } else { "lost" };
                        let tip = format!("{}: {} {unit}", case.title(), figure(value(s)));
                        svg.rect(&format!("mark m{number}"), (x - MARK / 2.0, y - MARK / 2.0), (MARK, MARK), &tip);
                    }
                }
            }
        }
    }
    legend(&mut svg, &cells, &rates, height - 56.0);
    svg.finish((width, height), STYLE)
}

fn title_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Cut => "cut: both directions, in silence",
        Kind::CutUp => "cut-up: only from the home",
        Kind::CutDown => "cut-down: only to the home",
        Kind::Carrier => "carrier lost at the box",
    }
}

/// The slowest rate is dotted, the fastest dashed, one alone or in the middle drawn through.
fn dash(rates: &[u32], rate: u32) -> &'static str {
    match rates {
        [_] => "through",
        [first, ..] if *first == rate => "dotted",
        [.., last] if *last == rate => "dashed",
        _ => "through",
    }
}

fn legend(svg: &mut Svg, cells: &[(Case, Summary)], rates: &[u32], y: f64) {
    let mut x = LEFT;
    for (number, system) in System::ALL.into_iter().enumerate() {
        if cells.iter().any(|(case, _)| case.system == system) {
            svg.line(&format!("system s{number} through"), (x, y), (x + 26.0, y));
            svg.text("tick", (x + 33.0, y + 4.0), system.name());
            x += ENTRY;
        }
    }
    let y = y + 24.0;
    let mut x = LEFT;
    for rate in rates {
        svg.line(&format!("system {}", dash(rates, *rate)), (x, y), (x + 26.0, y));
        svg.text("tick", (x + 33.0, y + 4.0), &format!("{rate} packets/s each way"));
        x += ENTRY;
    }
    svg.line("aim", (x, y), (x + 26.0, y));
    svg.text("tick", (x + 33.0, y + 4.0), "RTT + 30 ms");
}
