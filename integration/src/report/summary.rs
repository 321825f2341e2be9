//! A run in words, and many runs in a table.

use super::{BgpChange, Outcome, Report, Verdict};
use crate::meter::{SizeResult, SizesResult};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// A figure as people want it: whole above 100, else with as many places as it has, at most two.
pub(crate) fn figure(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{}", (value * 100.0).round() / 100.0) }
}

/// The main figures of a run, for the terminal.
pub fn summary(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_summary(&mut out, report);
    out
}

fn write_summary(out: &mut String, report: &Report) -> std::fmt::Result {
    let traffic = &report.traffic;
    let mut rows: Vec<[String; 7]> = Vec::new();
    let flows = traffic.streams.iter().map(|s| (s.name.clone(), s.sent, &s.flow));
    for (name, sent, flow) in flows.chain(traffic.pings.iter().map(|p| (format!("ping {}", p.name), p.sent, &p.flow))) {
        let gap = format!("{} ms at {:.1} s", figure(flow.longest_gap.length_ms), flow.longest_gap.at_ms / 1e3);
        let delay = match flow.received {
            0 => "–".to_owned(),
            _ => [flow.delay_p50_ms, flow.delay_p99_ms, flow.delay_max_ms].map(figure).join(" / "),
        };
        let counts = [sent, flow.lost, flow.duplicated, flow.reordered].map(|n| n.to_string());
        let [sent, lost, twice, order] = counts;
        rows.push([name, sent, lost, twice, order, gap, delay]);
    }
    if !rows.is_empty() {
        let head = ["stream", "sent", "lost", "twice", "disorder", "longest gap", "delay ms, 50 % / 99 % / max"];
        out.push_str(&table(&head, &rows));
        out.push('\n');
    }
    for sweep in &traffic.sizes {
        write_sweep(out, sweep)?;
    }
    for tcp in &traffic.tcp {
        let mbit = figure(tcp.goodput_bps / 1e6);
        let stall = figure(tcp.longest_stall.length_ms);
        writeln!(
            out,
            "TCP {}: {} connections, {} broken, {} completed, {mbit} Mbit/s, longest stall {stall} ms, {} sent again",
            tcp.name, tcp.connections, tcp.broken, tcp.completed, tcp.retransmits
        )?;
    }
    for speed in &traffic.speeds {
        match &speed.error {
            None => writeln!(out, "speed {}: {} Mbit/s", speed.name, figure(speed.bps / 1e6))?,
            Some(error) => writeln!(out, "speed {}: {error}", speed.name)?,
        }
    }
    for attack in &traffic.attacks {
        writeln!(out, "attack {}: {} sent, {} answers", attack.name, attack.sent, attack.replies)?;
    }
    for (event, seconds, after) in route_times(report) {
        writeln!(out, "{event} {} s after {after}", figure(seconds))?;
    }
    let count = |of: fn(Verdict) -> bool| report.outcomes.iter().filter(|o| of(o.verdict)).count();
    if !report.outcomes.is_empty() {
        let (good, bad) = (count(|v| v == Verdict::Pass), count(|v| !v.is_ok()));
        let only = report.outcomes.len() - good - bad;
        writeln!(out, "expectations: {good} met, {bad} not met, {only} only reported")?;
        for outcome in report.outcomes.iter().filter(|o| o.verdict != Verdict::Pass) {
            let measured = outcome.measured.map_or("never".to_owned(), |m| format!("{} {}", figure(m), outcome.unit));
            let word = match outcome.verdict {
                Verdict::Pass | Verdict::ReportedMet => "met",
                Verdict::ReportedMissed => "missed, not asserted here",
                Verdict::Fail => "FAILED",
                Verdict::Error => "ERROR",
            };
            writeln!(out, "  {word}: {} ({}): {} {}", outcome.what, outcome.bar, measured.trim_end(), outcome.note)?;
        }
    }
    Ok(())
}

/// A sweep, each run of sizes that fared alike in a line.
fn write_sweep(out: &mut String, sweep: &SizesResult) -> std::fmt::Result {
    writeln!(out, "sizes {}: {} packets, {} vanished", sweep.name, sweep.sent, sweep.holes.len())?;
    let fate = |row: &SizeResult| {
        let vanished = row.sent - row.arrived - row.told;
        match (row.arrived, row.told_mtu) {
            (arrived, _) if arrived == row.sent => "arrived".to_owned(),
            (0, Some(mtu)) if row.told == row.sent => format!("told to keep to {mtu}"),
            (0, None) => "vanished".to_owned(),
            _ => format!("of {}: {} arrived, {} told, {vanished} vanished", row.sent, row.arrived, row.told),
        }
    };
    for run in sweep.sizes.chunk_by(|a, b| fate(a) == fate(b)) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            writeln!(out, "  {:>4} to {:>4} octets  {}", first.size, last.size, fate(first))?;
        }
    }
    Ok(())
}

/// Each change of a route, with the time since the timeline's last event before it.
fn route_times(report: &Report) -> Vec<(String, f64, String)> {
    let changes = report.bgp.iter().filter_map(|change| {
        let cause = report.events.iter().rev().find(|event| event.at_ms <= change.at_ms)?;
        let word = match change.change {
            BgpChange::Announced => "announced",
            BgpChange::Withdrawn => "withdrawn",
        };
        Some((format!("{} {word}", change.prefix), (change.at_ms - cause.at_ms) / 1e3, cause.name.clone()))
    });
    changes.collect()
}

/// How a figure spread over several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The figure.
    pub what: String,
    /// Its unit.
    pub unit: String,
    /// In how many runs it was measured.
    pub runs: usize,
    /// The least.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The 95th percentile (nearest rank).
    pub p95: f64,
    /// The most.
    pub max: f64,
}

/// The spreads of several runs' figures, in the order of the first run: streams, TCP, routes, then each expectation.
pub fn spreads(reports: &[Report]) -> Vec<Spread> {
    let mut figures: Vec<(String, String, Vec<f64>)> = Vec::new();
    let mut add = |what: String, unit: &str, value: f64| match figures.iter_mut().find(|f| f.0 == what && f.1 == unit) {
        Some(figure) => figure.2.push(value),
        None => figures.push((what, unit.to_owned(), vec![value])),
    };
    for report in reports {
        for stream in &report.traffic.streams {
            add(format!("{}: longest gap", stream.name), "ms", stream.flow.longest_gap.length_ms);
            add(format!("{}: lost", stream.name), "packets", stream.flow.lost as f64);
            add(format!("{}: out of order", stream.name), "packets", stream.flow.reordered as f64);
        }
        for sweep in &report.traffic.sizes {
            add(format!("{}: vanished", sweep.name), "packets", sweep.holes.len() as f64);
        }
        for tcp in &report.traffic.tcp {
            add(format!("{}: connections broken", tcp.name), "", tcp.broken as f64);
            add(format!("{}: longest stall", tcp.name), "ms", tcp.longest_stall.length_ms);
        }
        for (what, seconds, after) in route_times(report) {
            add(format!("{what} after {after}"), "s", seconds);
        }
        for outcome in &report.outcomes {
            if let Some(measured) = outcome.measured {
                add(format!("expected {}: {}", outcome.bar, outcome.what), &outcome.unit, measured);
            }
        }
    }
    let spread = |(what, unit, mut values): (String, String, Vec<f64>)| {
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| values[(values.len() * percent).div_ceil(100).max(1) - 1];
        Spread { what, unit, runs: values.len(), min: values[0], median: rank(50), p95: rank(95), max: rank(100) }
    };
    figures.into_iter().map(spread).collect()
}

/// Spreads as a table, with how many of the runs were good.
pub fn summary_of_runs(reports: &[Report]) -> String {
    let rows: Vec<[String; 7]> = spreads(reports)
        .into_iter()
        .map(|s| {
            let [min, median, p95, max] = [s.min, s.median, s.p95, s.max].map(figure);
            [s.what, s.unit, s.runs.to_string(), min, median, p95, max]
        })
        .collect();
    let good = reports.iter().filter(|r| r.outcomes.iter().all(|o| o.verdict.is_ok())).count();
    let together = if good < reports.len() && all_good(reports) { ", and the rest as often as they must" } else { "" };
    let head = ["figure", "unit", "runs", "min", "median", "95 %", "max"];
    format!("{}\n{good} of {} runs met all that is asserted{together}\n", table(&head, &rows), reports.len())
}

/// Whether these runs together are good: a bar that one run in twenty may miss was missed no more often.
pub fn all_good(reports: &[Report]) -> bool {
    let allowed = |missed: &Outcome, scenario: &str| {
        let runs = || reports.iter().filter(|report| report.run.scenario == scenario);
        let same = |o: &&Outcome| o.what == missed.what && o.bar == missed.bar && !o.verdict.is_ok();
        let misses = runs().flat_map(|report| report.outcomes.iter().filter(same)).count();
        missed.one_in_twenty && missed.verdict == Verdict::Fail && misses * 20 <= runs().count()
    };
    reports.iter().all(|report| report.outcomes.iter().all(|o| o.verdict.is_ok() || allowed(o, &report.run.scenario)))
}

/// Columns wide enough for what is in them: the first to the left, the others to the right.
pub(crate) fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([head[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: &[String; N]| {
        let cells = cells.iter().zip(&widths).enumerate();
        let padded = cells.map(|(i, (c, &w))| if i == 0 { format!("{c:<w$}") } else { format!("{c:>w$}") });
        padded.collect::<Vec<_>>().join("  ") + "\n"
    };
    [line(&head.map(str::to_owned))].into_iter().chain(rows.iter().map(line)).collect()
}
