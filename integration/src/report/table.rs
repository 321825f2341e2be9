//! The table that moves while a run goes on; where it cannot move, a line a second.

use super::{BgpChange, BgpEvent, StatusSample, TimelineEvent};
use crate::meter::{LiveLine, LiveStream};
use proto::PathState;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

/// What is known of a run at a moment. Feed it what the run brings, and [`Table::draw`] it as often as wanted; each
/// draw of a moving table replaces the one before.
#[derive(Debug)]
pub struct Table<W: Write> {
    out: W,
    moving: bool,
    streams: BTreeMap<String, LiveStream>,
    nodes: BTreeMap<String, StatusSample>,
    routes: BTreeMap<String, bool>,
    events: Vec<TimelineEvent>,
    drawn: usize,
    next_line_ms: f64,
}

/// Between lines, where nothing moves: a log of a minute stays a page.
const LINE_EVERY_MS: f64 = 1_000.0;

/// Events that a moving table keeps in sight.
const EVENTS: usize = 3;

impl<W: Write> Table<W> {
    /// A table on `out`, which `moving` says to be a terminal that knows ANSI's cursor movements.
    pub fn new(out: W, moving: bool) -> Self {
        Table {
            out,
            moving,
            streams: BTreeMap::new(),
            nodes: BTreeMap::new(),
            routes: BTreeMap::new(),
            events: Vec::new(),
            drawn: 0,
            next_line_ms: 0.0,
        }
    }

    /// What a host's meter shows.
    pub fn meter(&mut self, line: LiveLine) {
        self.streams.extend(line.streams.into_iter().map(|stream| (stream.name.clone(), stream)));
    }

    /// What a daemon's status shows.
    pub fn status(&mut self, sample: StatusSample) {
        self.nodes.insert(sample.node.clone(), sample);
    }

    /// A route came or went.
    pub fn route(&mut self, event: &BgpEvent) {
        self.routes.insert(event.prefix.clone(), event.change == BgpChange::Announced);
    }

    /// The timeline did something. Where nothing moves it is written at once.
    ///
    /// # Errors
    /// The output's.
    pub fn event(&mut self, event: TimelineEvent) -> io::Result<()> {
        if !self.moving {
            writeln!(self.out, "{:7.1} s  == {}", event.at_ms / 1e3, label(&event))?;
        }
        self.events.push(event);
        Ok(())
    }

    /// Draws the moment `at_ms`.
    ///
    /// # Errors
    /// The output's.
    pub fn draw(&mut self, at_ms: f64) -> io::Result<()> {
        if self.moving {
            let text = self.text(at_ms);
            if self.drawn > 0 {
                // Back to the first line of the last drawing, and away with it.
                write!(self.out, "\x1b[{}F\x1b[J", self.drawn)?;
            }
            self.drawn = text.lines().count();
            self.out.write_all(text.as_bytes())?;
        } else if at_ms >= self.next_line_ms {
            self.next_line_ms = (at_ms / LINE_EVERY_MS).floor() * LINE_EVERY_MS + LINE_EVERY_MS;
            let line = self.line(at_ms);
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn line(&self, at_ms: f64) -> String {
        let mut line = format!("{:7.1} s ", at_ms / 1e3);
        let streams = self.streams.values().map(|s| match s.broken {
            Some(broken) => format!("{} {:.2} Mbit/s, {broken} broken", s.name, s.rate * 8.0 / 1e6),
            None => format!("{} {:.0}/s, {} lost, gap {:.0} ms", s.name, s.rate, s.lost, s.gap_ms),
        });
        let paths = self.nodes.values().map(|node| format!("{} {}", node.node, paths(node, false)));
        let routes = self.routes.iter().map(|(prefix, there)| format!("{prefix} {}", route(*there)));
        for part in streams.chain(paths).chain(routes) {
            let _ = write!(line, " | {part}");
        }
        line
    }

    fn text(&self, at_ms: f64) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:.1} s", at_ms / 1e3);
        for s in self.streams.values() {
            let name = &s.name;
            let _ = match s.broken {
                Some(broken) => {
                    let rate = s.rate * 8.0 / 1e6;
                    writeln!(out, "  {name:<16} {rate:7.2} Mbit/s  broken {broken:>6}  gap {:>7.0} ms", s.gap_ms)
                }
                None => {
                    writeln!(out, "  {name:<16} {:7.0} /s      lost {:>8}  gap {:>7.0} ms", s.rate, s.lost, s.gap_ms)
                }
            };
        }
        for node in self.nodes.values() {
            let _ = writeln!(out, "  {:<16} {}", node.node, paths(node, true));
        }
        for (prefix, there) in &self.routes {
            let colour = if *there { GREEN } else { RED };
            let _ = writeln!(out, "  {prefix:<16} {colour}{}\x1b[0m", route(*there));
        }
        for event in self.events.iter().rev().take(EVENTS).rev() {
            let _ = writeln!(out, "  {:7.1} s  {}", event.at_ms / 1e3, label(event));
        }
        out
    }
}

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const GREY: &str = "\x1b[90m";

fn label(event: &TimelineEvent) -> &str {
    if event.label.is_empty() { &event.name } else { &event.label }
}

fn route(there: bool) -> &'static str {
    if there { "route in BIRD" } else { "no route" }
}

/// Each path of a node with its state, the one in use with a star.
fn paths(node: &StatusSample, colours: bool) -> String {
    let mut shown = Vec::new();
    for peer in &node.peers {
        for path in &peer.paths {
            let (word, colour) = match path.state {
                PathState::Up => ("up", GREEN),
                PathState::Suspect => ("suspect", YELLOW),
                PathState::Impaired => ("impaired", YELLOW),
                PathState::Down => ("down", RED),
                PathState::Absent => ("absent", GREY),
            };
            let star = if peer.current_slot == Some(path.slot) { "*" } else { "" };
            let (on, off) = if colours { (colour, "\x1b[0m") } else { ("", "") };
            shown.push(format!("{}/{}{star} {on}{word}{off}", peer.name, path.slot));
        }
    }
    shown.join("  ")
}
