//! The grid of cells: what a run showed of a cut, what many runs of a cell show together, as JSON and as a table.

use crate::meter::StreamResult;
use crate::report::{Kernel, PeerSample, Report, figure, table};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of the JSON document. It changes when a field is renamed, removed or changes its meaning.
const SCHEMA: u32 = 1;

/// What happens to the ISP in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// It falls silent, both ways.
    Cut,
    /// Packets from the home vanish.
    CutUp,
    /// Packets to the home vanish.
    CutDown,
    /// The box loses carrier.
    Carrier,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 4] = [Kind::Cut, Kind::CutUp, Kind::CutDown, Kind::Carrier];

    /// As it is given and shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Cut => "cut",
            Kind::CutUp => "cut-up",
            Kind::CutDown => "cut-down",
            Kind::Carrier => "carrier",
        }
    }

    /// The timeline's word.
    fn action(self) -> &'static str {
        match self {
            Kind::Cut => "cut",
            Kind::CutUp => "cut_up",
            Kind::CutDown => "cut_down",
            Kind::Carrier => "carrier_down",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum System {
    /// The real daemons.
    Ours,
    /// The protocol in the simulator.
    Simulated,
    /// BGP and BFD over WireGuard, BFD at its usual 100 ms x 3.
    Bfd100,
    /// The same at 20 ms x 3.
    Bfd20,
}

impl System {
    /// All of them, in the order of the table.
    pub(super) const ALL: [System; 4] = [System::Ours, System::Simulated, System::Bfd100, System::Bfd20];

    /// As it is shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            System::Ours => "ours",
            System::Simulated => "ours, simulated",
            System::Bfd100 => "BGP+BFD 100 ms x 3",
            System::Bfd20 => "BGP+BFD 20 ms x 3",
        }
    }

    /// What is run.
    pub(super) fn scenario(self) -> &'static str {
        match self {
            System::Ours | System::Simulated => "failover",
            System::Bfd100 => "failover-bfd@100ms",
            System::Bfd20 => "failover-bfd@20ms",
        }
    }
}

/// What a cell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Case {
    /// What happens.
    pub(super) kind: Kind,
    /// Round trip over either ISP, in milliseconds.
    pub(super) rtt_ms: u32,
    /// Packets per second, each way.
    pub(super) rate: u32,
    /// To whom.
    pub(super) system: System,
}

impl Case {
    /// What is set in the scenario.
    pub(super) fn settings(&self) -> Vec<String> {
        let Case { kind, rtt_ms, rate, .. } = self;
        let delay = format!("{}ms", f64::from(*rtt_ms) / 2.0);
        vec![
            format!("timeline.0.do={}", kind.action()),
            format!("links.isp-a.delay={delay}"),
            format!("links.isp-b.delay={delay}"),
            format!("traffic.0.rate={rate}"),
            format!("traffic.1.rate={rate}"),
        ]
    }

    /// A name for folders.
    pub(super) fn name(&self) -> String {
        let Case { kind, rtt_ms, rate, system } = self;
        format!("{}-{}-{rtt_ms}-{rate}", system.scenario(), kind.name())
    }

    /// For people.
    pub(super) fn title(&self) -> String {
        let Case { kind, rtt_ms, rate, system } = self;
        format!("{}, {rtt_ms} ms, {rate}/s: {}", kind.name(), system.name())
    }
}

/// One direction of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Way {
    /// The longest time without an arrival, in milliseconds.
    pub(super) gap_ms: f64,
    /// Packets that never arrived.
    pub(super) lost: u64,
    /// Second copies that were delivered.
    pub(super) duplicated: u64,
    /// Packets that arrived after a later one.
    pub(super) reordered: u64,
}

impl Way {
    fn of(stream: &StreamResult) -> Self {
        let flow = &stream.flow;
        Way {
            gap_ms: flow.longest_gap.length_ms,
            lost: flow.lost,
            duplicated: flow.duplicated,
            reordered: flow.reordered,
        }
    }
}

/// What both ends sent into their tunnels while there was traffic, in octets of WireGuard's datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Octets {
    /// All of it.
    pub(super) sent: u64,
    /// Copies, beside first transmissions.
    pub(super) copies: u64,
    /// Receipts.
    pub(super) receipts: u64,
}

impl Octets {
    /// A part in percent of all.
    fn percent(&self, part: u64) -> f64 {
        if self.sent == 0 { 0.0 } else { part as f64 * 100.0 / self.sent as f64 }
    }
}

/// What a run showed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    /// The seed.
    pub(super) seed: u64,
    /// When the cut was, in milliseconds since the start of the traffic.
    pub(super) cut_ms: f64,
    /// From the home.
    pub(super) up: Way,
    /// To the home.
    pub(super) down: Way,
    /// What it cost; today's way counts nothing of the kind.
    pub(super) octets: Option<Octets>,
}

impl Figures {
    /// Takes them out of a report, or says why it shows nothing of a cut.
    pub(super) fn of(report: &Report, case: Case) -> Result<Self, String> {
        if !report.traffic.failed.is_empty() {
            return Err(report.traffic.failed.join("; "));
        }
        let missed = report.outcomes.iter().find(|outcome| !outcome.verdict.is_ok());
        if let Some(missed) = missed {
            return Err(format!("{} was not met ({}) {}", missed.what, missed.bar, missed.note));
        }
        let way = |name: &str| {
            let stream = report.traffic.streams.iter().find(|stream| stream.name == name);
            stream.filter(|stream| stream.sent > 0).map(Way::of).ok_or(format!("there was no traffic \"{name}\""))
        };
        let (up, down) = (way("up")?, way("down")?);
        let cut = report.events.iter().find(|event| event.name == "cut").ok_or("nothing was cut")?;
        let (seed, cut_ms) = (report.run.seed, cut.at_ms);
        let octets = match case.system {
            System::Ours | System::Simulated => {
                used(report, cut_ms)?;
                Some(octets(report)?)
            }
            System::Bfd100 | System::Bfd20 => None,
        };
        Ok(Figures { seed, cut_ms, up, down, octets })
    }

    fn ways(&self) -> [&Way; 2] {
        [&self.up, &self.down]
    }

    /// The longer gap of both directions.
    fn gap_ms(&self) -> f64 {
        self.up.gap_ms.max(self.down.gap_ms)
    }

    fn sum(&self, of: fn(&Way) -> u64) -> f64 {
        self.ways().into_iter().map(of).sum::<u64>() as f64
    }
}

/// Both ends must have used the link that was cut: if not, the run shows nothing.
fn used(report: &Report, cut_ms: f64) -> Result<(), String> {
    for node in ["box", "core"] {
        let last = report.status.iter().rfind(|sample| sample.node == node && sample.at_ms < cut_ms);
        let slots = last.ok_or(format!("{node} was not seen before the cut"))?.peers.iter().map(|p| p.current_slot);
        if let Some(slot) = slots.into_iter().find(|slot| *slot != Some(0)) {
            return Err(format!("{node} used slot {slot:?} when slot 0 was cut"));
        }
    }
    Ok(())
}

/// What both ends sent from the start of the traffic to the end of the run.
fn octets(report: &Report) -> Result<Octets, String> {
    let mut sum = Octets::default();
    for node in ["box", "core"] {
        let mut samples = report.status.iter().filter(|sample| sample.node == node && sample.at_ms >= 0.0);
        let (first, last) = (samples.next(), samples.next_back());
        let (Some(first), Some(last)) = (first, last) else { return Err(format!("{node} was not seen")) };
        let of = |count: fn(&PeerSample) -> u64| {
            let at = |peers: &[PeerSample]| peers.iter().map(count).sum::<u64>();
            at(&last.peers).saturating_sub(at(&first.peers))
        };
        sum.sent += of(|peer| peer.paths.iter().map(|path| path.tx.bytes).sum());
        sum.copies += of(|peer| peer.copies.bytes);
        sum.receipts += of(|peer| peer.receipts.bytes);
    }
    Ok(sum)
}

/// A run that shows nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Void {
    /// The seed.
    pub(super) seed: u64,
    /// What went wrong.
    pub(super) why: String,
}

/// A case and its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cell {
    /// What it is about.
    #[serde(flatten)]
    pub(super) case: Case,
    /// What its runs show together; nothing, if there is none.
    pub(super) summary: Option<Summary>,
    /// The runs.
    pub(super) runs: Vec<Figures>,
    /// Those that show nothing.
    pub(super) void: Vec<Void>,
}

/// How a figure spreads over runs: nearest-rank percentiles, each a value that was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The most.
    pub(super) max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(at).copied().unwrap_or_default()
        };
        Spread { p50: rank(50), p95: rank(95), p99: rank(99), max: rank(100) }
    }
}

/// What the runs of a cell show together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The longest gap of both directions, in milliseconds.
    pub(super) gap_ms: Spread,
    /// Packets lost, both directions.
    pub(super) lost: Spread,
    /// Second copies delivered, both directions.
    pub(super) duplicated: Spread,
    /// Packets out of order, both directions.
    pub(super) reordered: Spread,
    /// Copies in percent of the tunnels' octets.
    pub(super) copies_percent: Option<Spread>,
    /// Receipts in percent of them.
    pub(super) receipts_percent: Option<Spread>,
}

impl Summary {
    fn of(runs: &[Figures]) -> Option<Self> {
        let sum = |of: fn(&Way) -> u64| Spread::of(runs.iter().map(move |run| run.sum(of)));
        let share = |part: fn(&Octets) -> u64| {
            let of_run = |run: &Figures| run.octets.map(|octets| octets.percent(part(&octets)));
            let shares: Option<Vec<f64>> = runs.iter().map(of_run).collect();
            shares.map(|shares| Spread::of(shares.into_iter()))
        };
        (!runs.is_empty()).then(|| Summary {
            gap_ms: Spread::of(runs.iter().map(Figures::gap_ms)),
            lost: sum(|way| way.lost),
            duplicated: sum(|way| way.duplicated),
            reordered: sum(|way| way.reordered),
            copies_percent: share(|octets| octets.copies),
            receipts_percent: share(|octets| octets.receipts),
        })
    }
}

/// All that was measured: the JSON document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Grid {
    /// [`SCHEMA`].
    schema: u32,
    /// The project's revision.
    pub(super) revision: Option<String>,
    /// The kernel of the runs that had one.
    pub(super) kernel: Option<Kernel>,
    /// In the order of their cases.
    pub(super) cells: Vec<Cell>,
}

impl Grid {
    /// An empty one.
    pub(super) fn new(revision: Option<String>) -> Self {
        Grid { schema: SCHEMA, revision, kernel: None, cells: Vec::new() }
    }

    /// Takes over the runs that a file has; they must have been made with the same code.
    pub(super) fn add_from(&mut self, file: &Path) -> Result<()> {
        let name = file.display();
        let text = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
        let other: Grid = serde_json::from_slice(&text).with_context(|| format!("{name} is no file of this bench"))?;
        if (other.schema, &other.revision) != (SCHEMA, &self.revision) {
            let revision = |of: &Option<String>| of.clone().unwrap_or("an unknown one".into());
            bail!(
                "{name} was measured at revision {}, and this is {}: name another file, or leave out --resume",
                revision(&other.revision),
                revision(&self.revision)
            );
        }
        *self = other;
        // What went wrong is tried again.
        self.cells.iter_mut().for_each(|cell| cell.void.clear());
        Ok(())
    }

    /// Whether a run was made.
    pub(super) fn has(&self, case: Case, seed: u64) -> bool {
        self.cell(case).is_some_and(|cell| {
            cell.runs.iter().any(|run| run.seed == seed) || cell.void.iter().any(|void| void.seed == seed)
        })
    }

    pub(super) fn cell(&self, case: Case) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.case == case)
    }

    /// Adds a run.
    pub(super) fn add(&mut self, case: Case, run: Result<Figures, Void>) {
        let at = self.cells.binary_search_by_key(&case, |cell| cell.case).unwrap_or_else(|at| {
            self.cells.insert(at, Cell { case, summary: None, runs: Vec::new(), void: Vec::new() });
            at
        });
        let cell = &mut self.cells[at];
        match run {
            Ok(run) => {
                let at = cell.runs.partition_point(|other| other.seed < run.seed);
                cell.runs.insert(at, run);
                cell.summary = Summary::of(&cell.runs);
            }
            Err(void) => cell.void.push(void),
        }
    }

    /// A cell in a line.
    pub(super) fn line(&self, case: Case) -> String {
        let Some(cell) = self.cell(case) else { return String::new() };
        let figures = match &cell.summary {
            Some(s) => {
                let [p50, p95, most] = [s.gap_ms.p50, s.gap_ms.p95, s.lost.max].map(figure);
                format!("gap {p50} ms (95 %: {p95}), at most {most} lost")
            }
            None => "nothing was measured".to_owned(),
        };
        let void: String = cell.void.iter().map(|void| format!("; seed {} is void: {}", void.seed, void.why)).collect();
        format!("{}: {figures}{void}", case.title())
    }

    /// All cells as a table, and what must be known to read it.
    pub(super) fn text(&self) -> String {
        let mut rows: Vec<[String; 11]> = Vec::new();
        for cell in &self.cells {
            let Some(s) = &cell.summary else { continue };
            let runs = match cell.void.len() {
                0 => cell.runs.len().to_string(),
                void => format!("{} ({void} void)", cell.runs.len()),
            };
            let [p50, p95, p99] = [s.gap_ms.p50, s.gap_ms.p95, s.gap_ms.p99].map(figure);
            let [lost, worst] = [s.lost.p50, s.lost.max].map(figure);
            let [twice, disorder] = [s.duplicated.max, s.reordered.max].map(figure);
            let share = |of: Option<Spread>| of.map_or("–".to_owned(), |percent| format!("{:.1}", percent.p50));
            let [copies, receipts] = [s.copies_percent, s.receipts_percent].map(share);
            rows.push([cell.case.title(), runs, p50, p95, p99, lost, worst, twice, disorder, copies, receipts]);
        }
        let head = [
            "cell",
            "runs",
            "gap 50 %",
            "95 %",
            "99 %",
            "lost 50 %",
            "max",
            "twice",
            "disorder",
            "copies %",
            "receipts %",
        ];
        let kernel = self.kernel.map_or(String::new(), |kernel| format!(" Real daemons ran in {kernel}."));
        let revision = self.revision.as_ref().map_or(String::new(), |revision| format!(" Revision {revision}."));
        format!(
            "{}\nGap: the longest of both directions, in ms. Lost: of both directions. Twice, disorder: the most of any \
             run.\nCopies, receipts: in percent of the octets in both ends' tunnels during the run; its median.{kernel}{revision}\n",
            table(&head, &rows)
        )
    }
}
