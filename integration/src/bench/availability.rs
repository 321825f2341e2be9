//! Months of outages, on real nodes in virtual time: what a home with two links of 99.9 % gets, and what failover costs it.
//!
//! The nodes, their sessions, rekeys and timers are the real ones, and live through the whole month; only the cipher is
//! left out. Traffic goes from five seconds before each beginning or end of an outage to ten seconds after, both ways;
//! between these windows the bundle is idle, as a home at night. Links fall silent, and nobody is told.

mod months;
mod picture;

use anyhow::{Context, Result};
use months::{Edge, MONTH, Month, Outage, availability, nines};
use proto::Instant;
use proto::sim::{Arrival, Flow, LinkModel, Report, Side, World, WorldConfig, ms};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many months, each with a seed of its own.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Round trip of both links, in milliseconds; they jitter by 2 ms.
    #[arg(long, default_value_t = 20)]
    rtt: u64,
    /// Packets of 1,000 octets a second, each way.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Months simulated at once; by default as many as there are processors.
    #[arg(long)]
    jobs: Option<usize>,
    /// Writes all figures, each outage's too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws them, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Before the month begins: sessions are there, and round trips known.
const WARM_UP: Duration = Duration::from_secs(60);
/// Traffic before and after each beginning and end of an outage.
const BEFORE: Duration = Duration::from_secs(5);
const AFTER: Duration = Duration::from_secs(10);
/// For what is still under way when a flow has ended: nothing is sent again later than a second.
const DRAIN: Duration = Duration::from_secs(2);
const JITTER: Duration = Duration::from_millis(2);
const SIDES: [Side; 2] = [Side::Box, Side::Core];

/// The times of switching that are set beside it: BFD at its usual 100 ms x 3 and faster, a slow health check, what routers
/// with tunnels take as shipped, and BGP's hold time (RFC 4271, section 10).
const ALTERNATIVES: [(f64, &str); 5] = [
    (0.1, "switching after 0.1 s, nothing sent again"),
    (0.3, "switching after 0.3 s"),
    (1.0, "switching after 1 s"),
    (6.5, "switching after 6.5 s"),
    (90.0, "switching after BGP's hold time, 90 s"),
];

/// What the system added to one beginning or end of an outage.
#[derive(Clone, Debug, Serialize)]
struct Added {
    /// When, in seconds since the beginning of the month.
    at_s: f64,
    link: usize,
    what: What,
    /// The longest time without an arrival, of both directions; where both links were dead, what of it came after one was back.
    gap_ms: f64,
    /// Packets that never arrived, both directions.
    lost: u64,
    /// Packets that arrived after a later one.
    reordered: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// The link in use died, and the other lived.
    Failover,
    /// The other one died.
    StandbyDied,
    /// A link came back while the other lived.
    Return,
    /// A link came back, or died, and the other was dead.
    BothDead,
    /// A link was silent for so short a time that nobody could know of it before it was over.
    Blip,
}

/// What a month showed.
#[derive(Debug, Serialize)]
struct Measured {
    seed: u64,
    month: Month,
    added: Vec<Added>,
    /// Packets offered in all windows, both ways.
    offered: u64,
    /// Packets offered while both links were dead, that never arrived.
    unavoidable: u64,
    /// Packets delivered twice.
    twice: u64,
    /// Octets of copies and of receipts, as shares of those sent first.
    copies: f64,
    receipts: f64,
    /// How long the simulation took, in seconds of real time, and of a processor's: where others use the machine too, the
    /// first says nothing of this.
    took_s: f64,
    processor_s: f64,
}

/// Runs the months, tells, and says whether all bars are met.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let jobs = arguments.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let (next, (sender, receiver)) = (AtomicU64::new(0), mpsc::channel());
    let mut measured: Vec<Measured> = std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= arguments.seeds || sender.send(month(arguments, arguments.seed + at)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        receiver.iter().inspect(|month| println!("{}", line(month))).collect()
    });
    measured.sort_by_key(|month| month.seed);
    let result = Outcome::of(arguments, measured);
    println!("\n{}", result.text());
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&result)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &arguments.plot {
        std::fs::write(file, picture::svg(&result)).with_context(|| format!("cannot write {}", file.display()))?;
        println!("picture: {}", file.display());
    }
    Ok(result.bars.iter().all(|bar| bar.met))
}

/// One month.
fn month(arguments: &Arguments, seed: u64) -> Measured {
    let (started, processor) = (std::time::Instant::now(), processor_time());
    let month = Month::draw(seed);
    let link = LinkModel { delay: ms(arguments.rtt) / 2, jitter: JITTER, ..LinkModel::default() };
    let mut world = World::new(WorldConfig::new(&[link; 2], seed));
    let mut measured = Measured {
        seed,
        added: Vec::new(),
        offered: 0,
        unavoidable: 0,
        twice: 0,
        copies: 0.0,
        receipts: 0.0,
        took_s: 0.0,
        processor_s: 0.0,
        month,
    };
    let (both, edges) = (measured.month.both(), measured.month.edges());
    for window in windows(&edges) {
        let (begin, end) = (window[0].at.saturating_sub(BEFORE), window[window.len() - 1].at + AFTER);
        world.run_until(instant(begin));
        let interval = Duration::from_secs_f64(1.0 / arguments.rate as f64);
        let flow =
            |from| Flow { from, interval, size: 1000, dscp: 0, ecn: 0, start: instant(begin), end: instant(end) };
        let flows = SIDES.map(|from| world.add_flow(flow(from)));
        let mut used = Vec::new();
        for edge in window {
            world.run_until(instant(edge.at));
            used.push(world.snapshot(Side::Box).peers[0].current_slot);
            world.set_cut_both(edge.link, edge.dies);
        }
        world.run_until(instant(end + DRAIN));
        let rtt = ms(arguments.rtt);
        let added = (window.iter().zip(used)).map(|(edge, used)| what(edge, used, &both, noticed(rtt)));
        let mut added: Vec<Added> = added.collect();
        let window = Window { edges: window, both: &both, begin, end, interval, rtt };
        for flow in flows {
            let (report, arrivals) = world.end_flow(flow);
            measured.offered += report.sent;
            measured.twice += report.duplicated;
            measured.unavoidable += window.judge(&report, &arrivals, &mut added);
        }
        measured.added.extend(added);
    }
    world.run_until(instant(MONTH));
    let (mut copies, mut receipts, mut first) = (0, 0, 0);
    for side in SIDES {
        let peer = &world.snapshot(side).peers[0];
        (copies, receipts, first) = (copies + peer.copies.bytes, receipts + peer.receipts.bytes, first + peer.tx.bytes);
    }
    (measured.copies, measured.receipts) = (copies as f64 / first as f64, receipts as f64 / first as f64);
    measured.took_s = started.elapsed().as_secs_f64();
    measured.processor_s = (processor_time() - processor).as_secs_f64();
    measured
}

/// How long this thread has had a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // It never goes below zero.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A moment of the month, on the world's clock.
fn instant(at: Duration) -> Instant {
    Instant::ZERO + WARM_UP + at
}

/// The beginnings and ends, in groups whose windows of traffic touch.
fn windows(edges: &[Edge]) -> impl Iterator<Item = &[Edge]> {
    edges.chunk_by(|one, next| next.at - one.at < BEFORE + AFTER + DRAIN)
}

/// After so long without a receipt a path is suspected at the latest, which is the bar of the gap.
fn noticed(rtt: Duration) -> Duration {
    rtt + ms(30)
}

/// What an edge is, before anything is measured. What is shorter than `noticed` is over before it can be acted on.
fn what(edge: &Edge, used: Option<u8>, both: &[Outage], noticed: Duration) -> Added {
    let what = match edge.dies {
        _ if both.iter().any(|both| both.begin == edge.at || both.end == edge.at) => What::BothDead,
        _ if edge.length < noticed => What::Blip,
        false => What::Return,
        true if used.map(usize::from) == Some(edge.link) => What::Failover,
        true => What::StandbyDied,
    };
    Added { at_s: edge.at.as_secs_f64(), link: edge.link, what, gap_ms: 0.0, lost: 0, reordered: 0 }
}

/// A stretch of traffic about some beginnings and ends.
struct Window<'a> {
    edges: &'a [Edge],
    /// When both links are dead, in the whole month.
    both: &'a [Outage],
    begin: Duration,
    end: Duration,
    interval: Duration,
    rtt: Duration,
}

impl Window<'_> {
    /// Adds what one flow met to the edges that are to blame. Returns how many of its packets no system could have saved.
    fn judge(&self, report: &Report, arrivals: &[Arrival], added: &mut [Added]) -> u64 {
        let since = |at: Instant| at.since(instant(Duration::ZERO));
        // The flow's own beginning and end count as arrivals, so that a silence at either is none the less one.
        let mut last = self.begin + self.rtt;
        let mut seen = vec![false; report.sent as usize];
        let mut highest = 0;
        for arrival in arrivals {
            let at = since(arrival.at);
            if std::mem::replace(&mut seen[arrival.number as usize], true) {
                continue;
            }
            self.note_gap(last, at, added);
            last = last.max(at);
            if arrival.number < highest {
                added[self.blamed(at)].reordered += 1;
            }
            highest = highest.max(arrival.number);
        }
        self.note_gap(last, self.end, added);
        let mut unavoidable = 0;
        for number in (0..report.sent).filter(|&number| !seen[number as usize]) {
            let offered = self.begin + self.interval * number as u32;
            // What was under way when the second link died is lost with it.
            let dead = |both: &Outage| both.begin <= offered + self.rtt && offered < both.end;
            if self.both.iter().any(dead) {
                unavoidable += 1;
            } else {
                added[self.blamed(offered + self.rtt)].lost += 1;
            }
        }
        unavoidable
    }

    /// The last edge before a moment.
    fn blamed(&self, at: Duration) -> usize {
        self.edges.partition_point(|edge| edge.at <= at).saturating_sub(1)
    }

    fn note_gap(&self, from: Duration, to: Duration, added: &mut [Added]) {
        let gap = to.saturating_sub(from);
        // What the jitter alone does.
        if gap <= self.interval + 2 * JITTER {
            return;
        }
        let gap_of = Outage { begin: from, end: to };
        let dead: Duration = self.both.iter().map(|both| both.overlap(&gap_of)).sum();
        let blamed = &mut added[self.blamed(to)];
        blamed.gap_ms = blamed.gap_ms.max(gap.saturating_sub(dead).as_secs_f64() * 1e3);
    }
}

/// A row of the table of nines.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Seconds in a month without traffic, on average.
    seconds: f64,
    availability: f64,
    nines: Option<f64>,
}

/// How a sort of event fared.
#[derive(Debug, Serialize)]
struct Spread {
    what: What,
    name: &'static str,
    events: usize,
    gap_p50_ms: f64,
    gap_p95_ms: f64,
    gap_max_ms: f64,
    lost: u64,
    reordered: u64,
}

/// Something that must be so.
#[derive(Debug, Serialize)]
struct Bar {
    what: String,
    met: bool,
    measured: String,
}

/// All that came out.
#[derive(Debug, Serialize)]
struct Outcome {
    rtt_ms: u64,
    rate: u64,
    rows: Vec<Row>,
    spreads: Vec<Spread>,
    bars: Vec<Bar>,
    months: Vec<Measured>,
}

/// The value that so large a share does not exceed; 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

impl Outcome {
    fn of(arguments: &Arguments, months: Vec<Measured>) -> Outcome {
        let spreads: Vec<Spread> = [
            (What::Failover, "the link in use dies"),
            (What::StandbyDied, "the other one dies"),
            (What::Return, "a link comes back"),
            (What::BothDead, "both are dead, one comes back"),
            (What::Blip, "a link is silent for less than RTT + 30 ms"),
        ]
        .into_iter()
        .map(|(what, name)| Spread::of(what, name, &months))
        .collect();
        let rows = rows(arguments, &months);
        let bars = bars(arguments, &spreads, &months);
        Outcome { rtt_ms: arguments.rtt, rate: arguments.rate, rows, spreads, bars, months }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} months, two links of 99.9 % each, RTT {} ms, {} packets a second each way around each outage\n",
            self.months.len(),
            self.rtt_ms,
            self.rate
        );
        let _ = writeln!(out, "{:<44} {:>12} {:>14} {:>6}", "", "s in a month", "availability", "nines");
        for row in &self.rows {
            let nines = row.nines.map_or("all".into(), |nines| format!("{nines:.1}"));
            let share = row.availability * 100.0;
            let _ = writeln!(out, "{:<44} {:>12.3} {share:>12.6} % {nines:>6}", row.name, row.seconds);
        }
        let _ = writeln!(
            out,
            "\n{:<44} {:>7} {:>9} {:>9} {:>9} {:>6} {:>9}",
            "what is added when", "events", "gap p50", "p95", "most", "lost", "reordered"
        );
        for spread in &self.spreads {
            let _ = writeln!(
                out,
                "{:<44} {:>7} {:>6.1} ms {:>6.1} ms {:>6.1} ms {:>6} {:>9}",
                spread.name,
                spread.events,
                spread.gap_p50_ms,
                spread.gap_p95_ms,
                spread.gap_max_ms,
                spread.lost,
                spread.reordered
            );
        }
        let _ = writeln!(out);
        for bar in &self.bars {
            let verdict = if bar.met { "met" } else { "MISSED" };
            let _ = writeln!(out, "{verdict:<7} {}: {}", bar.what, bar.measured);
        }
        out
    }
}

impl Spread {
    fn of(what: What, name: &'static str, months: &[Measured]) -> Spread {
        let events: Vec<&Added> =
            months.iter().flat_map(|month| &month.added).filter(|added| added.what == what).collect();
        let mut gaps: Vec<f64> = events.iter().map(|added| added.gap_ms).collect();
        gaps.sort_by(f64::total_cmp);
        Spread {
            what,
            name,
            events: events.len(),
            gap_p50_ms: percentile(&gaps, 0.5),
            gap_p95_ms: percentile(&gaps, 0.95),
            gap_max_ms: percentile(&gaps, 1.0),
            lost: events.iter().map(|added| added.lost).sum(),
            reordered: events.iter().map(|added| added.reordered).sum(),
        }
    }
}

/// Seconds in a month without traffic: of one link, of the best that two can do, of this system, and of the others.
fn rows(arguments: &Arguments, months: &[Measured]) -> Vec<Row> {
    let total = |seconds: &dyn Fn(&Measured) -> f64| months.iter().map(seconds).fold(0.0, std::ops::Add::add);
    let both = total(&|month| month.month.both().iter().map(Outage::length).sum::<Duration>().as_secs_f64());
    let gaps = total(&|month| month.added.iter().map(|added| added.gap_ms / 1e3).sum());
    // Of two flows: what one direction loses alone is half a loss.
    let lost = total(&|month| month.added.iter().map(|added| added.lost).sum::<u64>() as f64);
    let lost = lost / (2 * arguments.rate) as f64;
    let mut rows = vec![
        ("one link alone, the better of the two".to_owned(), {
            [0, 1].map(|link| total(&|month| month.month.dead(link).as_secs_f64())).into_iter().fold(f64::MAX, f64::min)
        }),
        ("both links dead: nothing can help".to_owned(), both),
        ("this system, packets lost".to_owned(), both + lost),
        ("this system, packets late counted as lost".to_owned(), both + gaps),
    ];
    for (after, name) in ALTERNATIVES {
        let after = Duration::from_secs_f64(after);
        rows.push((name.to_owned(), both + total(&|month| month.month.switching(after).as_secs_f64())));
    }
    let row = |(name, seconds): (String, f64)| {
        let availability = availability(seconds, months.len());
        Row { name, seconds: seconds / months.len() as f64, availability, nines: nines(availability) }
    };
    rows.into_iter().map(row).collect()
}

fn bars(arguments: &Arguments, spreads: &[Spread], months: &[Measured]) -> Vec<Bar> {
    let single = || spreads.iter().filter(|spread| spread.what != What::BothDead);
    let gap = single().map(|spread| spread.gap_max_ms).fold(0.0, f64::max);
    let lost: u64 = single().map(|spread| spread.lost).sum();
    let blips: u64 = spreads.iter().filter(|spread| spread.what == What::Blip).map(|spread| spread.lost).sum();
    let twice: u64 = months.iter().map(|month| month.twice).sum();
    let slowest = months.iter().map(|month| month.processor_s).fold(0.0, f64::max);
    let most = arguments.rtt + 30;
    vec![
        Bar {
            what: format!("gap added by an outage, at most RTT + 30 = {most} ms"),
            met: gap <= most as f64,
            measured: format!("{gap:.1} ms at most"),
        },
        Bar {
            what: "packets lost while a link lives, none".into(),
            met: lost == 0,
            measured: format!(
                "{lost} of {}, {blips} of them in breaks too short to be noticed",
                months.iter().map(|month| month.offered).sum::<u64>()
            ),
        },
        Bar { what: "packets delivered twice, none".into(), met: twice == 0, measured: twice.to_string() },
        Bar {
            what: "a month in less than 60 s of one processor".into(),
            met: slowest < 60.0,
            measured: format!("{slowest:.1} s at most"),
        },
    ]
}

/// A month in a line.
fn line(month: &Measured) -> String {
    let failovers = month.added.iter().filter(|added| added.what == What::Failover);
    let most = failovers.clone().map(|added| added.gap_ms).fold(0.0, f64::max);
    let lost: u64 = month.added.iter().map(|added| added.lost).sum();
    format!(
        "month {:>3}: {} failovers, gap {most:.1} ms at most, {lost} lost, {:.2} % copies, {:.2} % receipts; {:.1} s \
         ({:.1} s of a processor)",
        month.seed,
        failovers.count(),
        month.copies * 100.0,
        month.receipts * 100.0,
        month.took_s,
        month.processor_s
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn edge(at: f64, link: usize, dies: bool) -> Edge {
        Edge { at: s(at), link, dies, length: s(10.0) }
    }

    /// Judges a flow of 100 packets a second from second 5 to 25, of which those arrive, 10 ms later, that are not offered
    /// in `silent`. Returns what is added to each edge, and how many packets nobody could have saved.
    fn judge(edges: &[Edge], both: &[(f64, f64)], silent: &[(f64, f64)], last: f64) -> (Vec<Added>, u64) {
        let both: Vec<Outage> = both.iter().map(|&(begin, end)| Outage { begin: s(begin), end: s(end) }).collect();
        let window = Window { edges, both: &both, begin: s(5.0), end: s(25.0), interval: ms(10), rtt: ms(20) };
        let offered = |number: u64| s(5.0) + ms(10) * number as u32;
        let passes = |number: &u64| {
            let at = offered(*number).as_secs_f64();
            at < last && !silent.iter().any(|(from, to)| (*from..*to).contains(&at))
        };
        let arrival = |number: u64| {
            let sent_at = instant(offered(number));
            Arrival { at: sent_at + ms(10), number, sent_at, traffic_class: 0 }
        };
        let arrivals: Vec<Arrival> = (0..2000).filter(passes).map(arrival).collect();
        let mut added: Vec<Added> = edges.iter().map(|edge| what(edge, Some(0), &both, ms(50))).collect();
        let unavoidable = window.judge(&Report { sent: 2000, ..Report::default() }, &arrivals, &mut added);
        (added, unavoidable)
    }

    #[test]
    fn a_gap_and_what_is_lost_in_it_are_the_failovers() {
        let (added, unavoidable) = judge(&[edge(10.0, 0, true), edge(20.0, 0, false)], &[], &[(10.0, 10.3)], 25.0);
        assert_eq!((added[0].what, added[0].lost, unavoidable), (What::Failover, 30, 0));
        assert!((added[0].gap_ms - 310.0).abs() < 1e-6, "{added:?}");
        assert_eq!((added[1].what, added[1].lost, added[1].gap_ms), (What::Return, 0, 0.0));
    }

    #[test]
    fn while_both_are_dead_nothing_is_added_and_after_that_what_it_takes_to_come_back() {
        let edges = [edge(10.0, 1, true), edge(12.0, 0, true), edge(15.0, 0, false)];
        let (added, unavoidable) = judge(&edges, &[(12.0, 15.0)], &[(12.0, 15.2)], 25.0);
        assert_eq!(
            added.iter().map(|added| added.what).collect::<Vec<_>>(),
            [What::StandbyDied, What::BothDead, What::BothDead]
        );
        assert_eq!((unavoidable, added[0].lost, added[1].lost, added[2].lost), (300, 0, 0, 20));
        // The last one arrived 10 ms after it was offered, as the first one did.
        assert!((added[2].gap_ms - 210.0).abs() < 1e-6, "{added:?}");
        assert_eq!((added[0].gap_ms, added[1].gap_ms), (0.0, 0.0));
    }

    #[test]
    fn a_flow_that_never_comes_back_has_a_gap_to_its_end() {
        let (added, _) = judge(&[edge(10.0, 0, true)], &[], &[], 10.0);
        assert_eq!(added[0].lost, 1500);
        assert!((added[0].gap_ms - 15_000.0).abs() < 1e-6, "{added:?}");
    }

    #[test]
    fn windows_that_touch_are_one() {
        let edges = [10.0, 20.0, 100.0, 130.0].map(|at| edge(at, 0, true));
        assert_eq!(windows(&edges).map(<[Edge]>::len).collect::<Vec<_>>(), [2, 1, 1]);
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!([0.0, 0.5, 0.95, 1.0].map(|share| percentile(&sorted, share)), [1.0, 2.0, 4.0, 4.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
