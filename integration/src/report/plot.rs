//! The picture of a run: one time axis, and on it what was done, what arrived, how the paths were, and the routes.

use super::svg::{Svg, escape};
use super::{BgpChange, Report, StatusSample, Verdict};
use crate::meter::{Flow, Gap, Series, StreamResult};
use proto::PathState;
use std::collections::BTreeMap;

/// Colours, in light and dark.
const STYLE: &str = include_str!("style.css");

const WIDTH: f64 = 1200.0;
/// Room for the names at the left and the axes' highest figures at the right.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 84.0;
const PANEL: f64 = 84.0;
const DELAY_PANEL: f64 = 48.0;
const BAND: f64 = 20.0;
const LANE: f64 = 17.0;
/// Mean width of a letter of the 12-pixel text, on the safe side: labels must not overlap.
const LETTER: f64 = 6.9;
/// Columns narrower than this cannot be told apart.
const COLUMN: f64 = 2.0;
/// Packets in a column, at the stream's rate: with fewer, the rounding of their number would look like loss.
const PACKETS_PER_COLUMN: f64 = 8.0;
/// More would hide the columns.
const LABELLED_GAPS: usize = 8;

/// The picture alone.
pub fn svg(report: &Report) -> String {
    Plot::new(report).draw()
}

/// A page with the picture and the figures, which needs nothing else: no script, no font, no network.
pub fn html(report: &Report) -> String {
    let mut rows = String::new();
    for outcome in &report.outcomes {
        let (class, verdict) = match outcome.verdict {
            Verdict::Pass => ("good", "pass"),
            Verdict::Fail => ("bad", "fail"),
            Verdict::ReportedMet => ("", "met (not asserted here)"),
            Verdict::ReportedMissed => ("", "missed (not asserted here)"),
            Verdict::Error => ("bad", "error"),
        };
        let measured = outcome.measured.map_or("–".to_owned(), |m| format!("{} {}", super::figure(m), outcome.unit));
        let cells = [&outcome.what, &outcome.bar, &measured].map(|cell| format!("<td>{}</td>", escape(cell))).concat();
        let note = escape(&outcome.note);
        rows += &format!("<tr>{cells}<td class=\"{class}\">{verdict}</td><td>{note}</td></tr>\n");
    }
    let expected = if rows.is_empty() {
        String::new()
    } else {
        format!(
            "<h2>Expected and measured</h2>\n<table><tr><th>what</th><th>bar</th><th>measured</th><th>verdict</th>\
             <th></th></tr>\n{rows}</table>\n"
        )
    };
    let notes: String = report.notes.iter().map(|note| format!("<p>{}</p>\n", escape(note))).collect();
    let figures = escape(&super::summary(report));
    let figures = format!("<h2>Figures</h2>\n<pre>{figures}</pre>\n{expected}{notes}");
    page(&report.run.scenario, &svg(report), &figures)
}

/// A page with a picture and what follows it, in HTML.
pub(crate) fn page(title: &str, picture: &str, rest: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\n\
         <style>{PAGE_STYLE}</style></head><body>\n{picture}\n{rest}</body></html>\n",
        escape(title)
    )
}

const PAGE_STYLE: &str = "body { max-width: 1200px; margin: 24px auto; padding: 0 16px; font: 14px system-ui, sans-serif; \
    background: #fff; color: #20242a } svg { width: 100%; height: auto } table { border-collapse: collapse } \
    th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid #dfe2e7 } h2 { font-size: 16px } \
    .good { color: #1d7a48; font-weight: 600 } .bad { color: #b02a2a; font-weight: 600 } \
    pre { overflow-x: auto } \
    @media (prefers-color-scheme: dark) { body { background: #15181d; color: #e6e9ee } th, td { border-color: #2d333c } \
    .good { color: #5fd497 } .bad { color: #ff9c98 } }";

struct Plot<'a> {
    report: &'a Report,
    svg: Svg,
    length: f64,
    /// Where the next row begins.
    y: f64,
    /// The events' labels, placed.
    labels: Vec<Label>,
}

/// An event's label, and where its line starts.
struct Label {
    at: f64,
    x: f64,
    y: f64,
    width: f64,
    text: String,
}

impl<'a> Plot<'a> {
    fn new(report: &'a Report) -> Self {
        let length = report.run.length_ms.max(1.0);
        Plot { report, svg: Svg::default(), length, y: 0.0, labels: Vec::new() }
    }

    fn x(&self, ms: f64) -> f64 {
        LEFT + (ms / self.length).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn draw(mut self) -> String {
        // The paper is drawn first, but its height is known last: it is larger than any picture, and cut by the view.
        self.svg.rect("paper", (0.0, 0.0), (WIDTH, 1e5), "");
        self.header();
        self.place_labels();
        for stream in &self.report.traffic.streams {
            self.stream(stream);
        }
        for ping in &self.report.traffic.pings {
            let title = format!("ping {}", ping.name);
            self.delay(&title, &ping.flow, "round trip");
        }
        for tcp in &self.report.traffic.tcp {
            self.downloads(&tcp.name, &tcp.series, tcp.longest_stall);
        }
        self.paths();
        self.routes();
        self.axis();
        self.events();
        self.legend();
        self.svg.finish((WIDTH, self.y + 12.0), STYLE)
    }

    fn header(&mut self) {
        let run = &self.report.run;
        self.svg.text("title", (24.0, 36.0), &run.scenario);
        let kernel = match run.kernel {
            super::Kernel::Native => "native kernel",
            super::Kernel::Uml => "User-Mode Linux",
            super::Kernel::Virtual => "User-Mode Linux, virtual time",
            super::Kernel::Simulator => "simulator",
        };
        self.svg.text("sub", (24.0, 57.0), &run.title);
        let revision = run.revision.as_ref().map_or(String::new(), |r| format!(" · {r}"));
        let about = format!("{kernel} · seed {}{revision} · {}", run.seed, run.when);
        self.svg.text("sub", (24.0, 75.0), &about);
        self.y = 98.0;
    }

    /// Places the events' labels, each in the first lane in which it overlaps none before.
    fn place_labels(&mut self) {
        let mut lanes: Vec<f64> = Vec::new();
        let mut labels = Vec::new();
        for event in self.shown_events() {
            let width = event.1.chars().count() as f64 * LETTER + 10.0;
            // A label near the right edge ends there.
            let x = (self.x(event.0) + 4.0).min(WIDTH - 8.0 - width);
            let lane = lanes.iter().position(|&end| end <= x).unwrap_or(lanes.len());
            if lane == lanes.len() {
                lanes.push(0.0);
            }
            lanes[lane] = x + width;
            labels.push(Label { at: event.0, x, y: self.y + lane as f64 * LANE, width, text: event.1 });
        }
        self.labels = labels;
        self.y += lanes.len() as f64 * LANE + 2.0 - if lanes.is_empty() { 0.0 } else { LANE / 2.0 };
    }

    /// When and what; what happened before the traffic is not shown, what happened at one time shares a label.
    fn shown_events(&self) -> Vec<(f64, String)> {
        let mut shown: Vec<(f64, String)> = Vec::new();
        for event in self.report.events.iter().filter(|e| e.at_ms >= 0.0 && e.at_ms <= self.length) {
            let label = if event.label.is_empty() { &event.name } else { &event.label };
            match shown.last_mut() {
                Some((at, labels)) if (event.at_ms - *at).abs() < 1.0 => *labels += &format!(", {label}"),
                _ => shown.push((event.at_ms, label.clone())),
            }
        }
        shown
    }

    /// The events' lines, then their labels on paper of their own: a line does not go through another's text.
    fn events(&mut self) {
        let bottom = self.y - 26.0;
        for label in &self.labels {
            let x = self.x(label.at);
            self.svg.line("event", (x, label.y - 9.0), (x, bottom));
        }
        for label in std::mem::take(&mut self.labels) {
            self.svg.rect("paper", (label.x - 1.0, label.y - 12.0), (label.width - 6.0, 15.0), "");
            self.svg.text("label", (label.x, label.y), &label.text);
        }
    }

    /// An empty panel with its name; returns its top.
    fn panel(&mut self, title: &str, sub: &str, height: f64) -> f64 {
        let y = self.y;
        self.svg.rect("panel", (LEFT, y), (WIDTH - LEFT - RIGHT, height), "");
        self.svg.text("head", (24.0, y + 15.0), &cut(title, 18));
        self.svg.text("tick", (24.0, y + 31.0), &cut(sub, 21));
        self.y += height + 8.0;
        y
    }

    fn stream(&mut self, stream: &StreamResult) {
        let flow = &stream.flow;
        let y = self.panel(&stream.name, &format!("{} → {}", stream.from, stream.to), PANEL);
        let gap = &flow.longest_gap;
        self.svg.text("tick", (24.0, y + 50.0), &format!("{} of {} lost", flow.lost, stream.sent));
        self.svg.text("tick", (24.0, y + 65.0), &format!("longest gap {}", millis(gap.length_ms)));
        let series = &flow.series;
        let column = column(series.bin_ms, self.length, PACKETS_PER_COLUMN / stream.rate.max(1e-9) * 1e3);
        let received = columns(series, &series.received, column, self.length);
        let lost = columns(series, &series.lost, column, self.length);
        let most = received.iter().zip(&lost).map(|(r, l)| r + l).fold(stream.rate, f64::max);
        let scale = (PANEL - 6.0) / most;
        let base = y + PANEL;
        self.steps("received", &received, column, base, scale, None);
        self.steps("lost", &lost, column, base, scale, Some(&received));
        self.gaps(&flow.gaps, y, PANEL);
        self.svg.text("tick", (WIDTH - RIGHT + 6.0, y + 10.0), &format!("{}/s", super::figure(most.round())));
        self.y -= 4.0;
        self.delay("", flow, "delay");
    }

    /// Columns as outlines, one for each run of them without an empty one, on top of `below` where given.
    fn steps(&mut self, class: &str, values: &[f64], ms: f64, base: f64, scale: f64, below: Option<&[f64]>) {
        let under = |i: usize| below.and_then(|b| b.get(i)).copied().unwrap_or(0.0);
        let mut at = 0;
        while at < values.len() {
            if values[at] <= 0.0 {
                at += 1;
                continue;
            }
            let run = values[at..].iter().position(|&v| v <= 0.0).map_or(values.len(), |n| at + n);
            let (mut upper, mut lower) = (Vec::new(), Vec::new());
            for (i, value) in values.iter().enumerate().take(run).skip(at) {
                for edge in [i, i + 1] {
                    let x = self.x(edge as f64 * ms);
                    upper.push((x, base - (under(i) + value) * scale));
                    lower.push((x, base - under(i) * scale));
                }
            }
            upper.extend(lower.into_iter().rev());
            self.svg.curve(class, &upper, None);
            at = run;
        }
    }

    /// Bands where nothing arrived.
    fn gaps(&mut self, gaps: &[Gap], y: f64, height: f64) {
        for gap in gaps {
            let (x, end) = (self.x(gap.at_ms), self.x(gap.end_ms()));
            let tip = format!("{} at {:.3} s", millis(gap.length_ms), gap.at_ms / 1e3);
            self.svg.rect("gap", (x, y), ((end - x).max(1.0), height), &tip);
        }
        // The longest ones say how long they were, as far as there is room.
        let mut by_length: Vec<&Gap> = gaps.iter().collect();
        by_length.sort_by(|a, b| b.length_ms.total_cmp(&a.length_ms));
        let mut taken: Vec<(f64, f64)> = Vec::new();
        for gap in by_length.into_iter().take(LABELLED_GAPS) {
            let text = millis(gap.length_ms);
            // The label is bold, and so wider.
            let width = text.chars().count() as f64 * LETTER * 1.15 + 6.0;
            let end = self.x(gap.end_ms()) + 3.0;
            let x = if end + width < WIDTH - RIGHT { end } else { self.x(gap.at_ms) - 3.0 - width };
            if taken.iter().any(|&(from, until)| x < until && x + width > from) {
                continue;
            }
            taken.push((x, x + width));
            // On the panel's colour, so that it can be read in front of the columns.
            self.svg.rect("panel", (x, y + 5.0), (width, 16.0), "");
            self.svg.text("gap-label", (x + 3.0, y + 17.0), &text);
        }
    }

    fn delay(&mut self, title: &str, flow: &Flow, what: &str) {
        let y = self.panel(title, what, DELAY_PANEL);
        let series = &flow.series;
        let per_column = (column(series.bin_ms, self.length, 0.0) / series.bin_ms).round().max(1.0) as usize;
        let most = flow.delay_max_ms.max(1.0);
        let (base, scale) = (y + DELAY_PANEL, (DELAY_PANEL - 6.0) / most);
        let mut run: Vec<(f64, f64)> = Vec::new();
        for (i, bins) in series.delay_ms.chunks(per_column).enumerate() {
            let at = i as f64 * per_column as f64 * series.bin_ms;
            let longest = bins.iter().flatten().copied().fold(None, |m: Option<f32>, d| Some(m.unwrap_or(d).max(d)));
            match longest {
                Some(delay) if at <= self.length => run.push((self.x(at), base - f64::from(delay) * scale)),
                // A slow stream has empty columns between its packets: only a real gap ends the line.
                _ if !flow.gaps.iter().any(|gap| gap.at_ms < at && at < gap.end_ms()) => {}
                _ => {
                    self.svg.curve("delay", &run, None);
                    run.clear();
                }
            }
        }
        self.svg.curve("delay", &run, None);
        self.svg.text("tick", (WIDTH - RIGHT + 6.0, y + 10.0), &millis(most));
    }

    fn downloads(&mut self, name: &str, series: &Series, stall: Gap) {
        let y = self.panel(name, "TCP download", PANEL);
        // A server sends every 10 ms: columns of 50 ms do not show its pace.
        let column = column(series.bin_ms.max(1e-3), self.length, 50.0);
        let octets = columns(series, &series.received, column, self.length);
        let most = octets.iter().copied().fold(1.0, f64::max);
        self.steps("received", &octets, column, y + PANEL, (PANEL - 6.0) / most, None);
        if stall.length_ms > 50.0 {
            self.gaps(&[stall], y, PANEL);
        }
        let rate = format!("{} Mbit/s", super::figure((most * 8.0 / 1e4).round() / 1e2));
        self.svg.text("tick", (WIDTH - RIGHT + 6.0, y + 10.0), &rate);
    }

    /// A band for each path of each peer of each node.
    fn paths(&mut self) {
        let mut nodes: Vec<&str> = Vec::new();
        for sample in &self.report.status {
            if !nodes.contains(&sample.node.as_str()) {
                nodes.push(&sample.node);
            }
        }
        for node in nodes {
            let samples: Vec<&StatusSample> = self.report.status.iter().filter(|s| s.node == node).collect();
            let mut rows: BTreeMap<(String, u8), Vec<PathAt>> = BTreeMap::new();
            for sample in samples {
                for peer in &sample.peers {
                    for path in &peer.paths {
                        let current = peer.current_slot == Some(path.slot);
                        let row = rows.entry((peer.name.clone(), path.slot)).or_default();
                        row.push((sample.at_ms, path.state, current));
                    }
                }
            }
            if rows.is_empty() {
                continue;
            }
            self.y += 4.0;
            self.svg.text("head", (24.0, self.y + 14.0), &cut(node, 8));
            for ((peer, slot), row) in rows {
                self.svg.text("tick end", (LEFT - 8.0, self.y + 14.0), &format!("{} · {slot}", cut(&peer, 8)));
                self.path(&row);
                self.y += BAND + 4.0;
            }
        }
    }

    fn path(&mut self, row: &[PathAt]) {
        let y = self.y;
        self.svg.rect("panel", (LEFT, y), (WIDTH - LEFT - RIGHT, BAND), "");
        let spread = typical_step(row.iter().map(|r| r.0));
        let mut start = 0;
        while start < row.len() {
            let (at, state, current) = row[start];
            let mut end = start + 1;
            // A pause in the samples ends the band too: the daemon did not answer.
            while end < row.len()
                && row[end].1 == state
                && row[end].2 == current
                && row[end].0 - row[end - 1].0 < spread
            {
                end += 1;
            }
            let until = match row.get(end) {
                Some(next) if next.0 - row[end - 1].0 < spread => next.0,
                Some(_) => row[end - 1].0,
                None => self.length,
            };
            let (class, word) = match state {
                PathState::Up => ("up", "up"),
                PathState::Suspect => ("suspect", "suspect"),
                PathState::Impaired => ("suspect", "impaired"),
                PathState::Down => ("down", "down"),
                PathState::Absent => ("absent", "absent"),
            };
            let (x, x_end) = (self.x(at), self.x(until));
            let tip = format!("{word}, {:.1} to {:.1} s{}", at / 1e3, until / 1e3, if current { ", used" } else { "" });
            self.svg.rect(class, (x, y), (x_end - x, BAND), &tip);
            if current {
                self.svg.rect("current", (x, y + BAND - 3.0), (x_end - x, 3.0), "");
            }
            if x_end - x > word.len() as f64 * LETTER + 8.0 {
                self.svg.text("on", ((x + x_end) / 2.0, y + 13.5), word);
            }
            start = end;
        }
    }

    /// A band for each prefix, where the router has it.
    fn routes(&mut self) {
        let mut rows: BTreeMap<&str, Vec<(f64, BgpChange)>> = BTreeMap::new();
        for event in &self.report.bgp {
            rows.entry(&event.prefix).or_default().push((event.at_ms, event.change));
        }
        if rows.is_empty() {
            return;
        }
        self.y += 4.0;
        for (prefix, changes) in rows {
            let y = self.y;
            self.svg.text("tick end", (LEFT - 8.0, y + 14.0), &cut(prefix, 21));
            self.svg.rect("panel", (LEFT, y), (WIDTH - LEFT - RIGHT, BAND), "");
            let mut since = None;
            for (at, change) in changes.into_iter().chain([(self.length, BgpChange::Withdrawn)]) {
                match (change, since) {
                    (BgpChange::Announced, None) => since = Some(at),
                    (BgpChange::Withdrawn, Some(from)) => {
                        let (x, end) = (self.x(from), self.x(at));
                        let tip = format!("{prefix} known, {:.1} to {:.1} s", from / 1e3, at / 1e3);
                        self.svg.rect("route", (x, y), (end - x, BAND), &tip);
                        if end - x > 15.0 * LETTER {
                            self.svg.text("on", ((x + end) / 2.0, y + 14.0), "route in BIRD");
                        }
                        since = None;
                    }
                    _ => {}
                }
            }
            self.y += BAND + 4.0;
        }
    }

    fn axis(&mut self) {
        let step = tick_step(self.length);
        let mut at = 0.0;
        while at <= self.length + 1e-6 {
            let x = self.x(at);
            self.svg.line("grid", (x, self.y), (x, self.y + 5.0));
            self.svg.text("tick mid", (x, self.y + 18.0), &format!("{} s", super::figure(at / 1e3)));
            at += step;
        }
        self.y += 30.0;
    }

    fn legend(&mut self) {
        let mut x = LEFT;
        let y = self.y + 4.0;
        let entries = [
            ("received", "received"),
            ("lost", "sent, never arrived"),
            ("gap", "nothing arrived"),
            ("up", "path up"),
            ("suspect", "suspect"),
            ("down", "down"),
            ("absent", "absent"),
            ("current", "used"),
        ];
        for (class, word) in entries {
            let height = if class == "current" { 3.0 } else { 11.0 };
            self.svg.rect(class, (x, y + 11.0 - height), (16.0, height), "");
            self.svg.text("tick", (x + 22.0, y + 10.0), word);
            x += 22.0 + word.len() as f64 * LETTER + 16.0;
        }
        self.y += 24.0;
    }
}

/// A path at a moment: its state, and whether it is the one in use.
type PathAt = (f64, PathState, bool);

/// Length of a column: a multiple of the bins', wide enough to be seen, and at least `least`.
fn column(bin: f64, length: f64, least: f64) -> f64 {
    let seen = length * COLUMN / (WIDTH - LEFT - RIGHT);
    (seen.max(least) / bin).ceil().max(1.0) * bin
}

/// Per second, in columns.
fn columns(series: &Series, bins: &[u32], column: f64, length: f64) -> Vec<f64> {
    let per_column = (column / series.bin_ms).round().max(1.0) as usize;
    let shown = &bins[..bins.len().min((length / series.bin_ms).ceil() as usize)];
    // The last column may be a short one.
    let per_second = |bins: &[u32]| {
        let sum: f64 = bins.iter().map(|&n| f64::from(n)).sum();
        sum * 1e3 / (bins.len() as f64 * series.bin_ms)
    };
    shown.chunks(per_column).map(per_second).collect()
}

/// Thrice the median distance of samples: what is farther apart has a hole between.
fn typical_step(times: impl Iterator<Item = f64>) -> f64 {
    let times: Vec<f64> = times.collect();
    let mut steps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    steps.sort_by(f64::total_cmp);
    steps.get(steps.len() / 2).map_or(f64::INFINITY, |median| median * 3.0)
}

/// A round step that gives at most a dozen ticks.
fn tick_step(length: f64) -> f64 {
    let steps = [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
    let sub_second = [10.0, 50.0, 100.0, 200.0, 500.0];
    let all = sub_second.into_iter().chain(steps.into_iter().map(|s| s * 1e3));
    all.into_iter().find(|step| length / step <= 12.0).unwrap_or(length / 10.0)
}

fn millis(ms: f64) -> String {
    if ms >= 10_000.0 { format!("{:.1} s", ms / 1e3) } else { format!("{} ms", super::figure(ms)) }
}

/// Text of at most so many letters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}
