//! Table, JSON and picture of made-up cells.

use super::cells::{Case, Figures, Grid, Kind, Octets, System, Void, Way};
use super::picture;
use crate::meter::{Flow, Gap, StreamResult};
use crate::report::{PathSample, PeerSample, Report, StatusSample, TimelineEvent};
use proto::PathState;
use proto::snapshot::Traffic;

fn case(system: System, rtt_ms: u32) -> Case {
    Case { kind: Kind::Cut, rtt_ms, rate: 1_000, system }
}

fn figures(seed: u64, gap_ms: f64, lost: u64) -> Figures {
    Figures {
        seed,
        cut_ms: 1_500.0,
        up: Way { gap_ms, lost, ..Way::default() },
        down: Way { gap_ms: gap_ms / 2.0, lost: 1, duplicated: 0, reordered: seed },
        octets: Some(Octets { sent: 1_000, copies: 80, receipts: 21 }),
    }
}

fn void(seed: u64) -> Void {
    Void { seed, why: "the guest died".into() }
}

/// Ours with 20 runs of gaps from 20 to 1 ms, today's way with one.
fn grid() -> Grid {
    let mut grid = Grid::new(Some("abc".into()));
    for seed in (1..=20).rev() {
        grid.add(case(System::Ours, 20), Ok(figures(seed, 21.0 - seed as f64, 0)));
    }
    let today = Figures { octets: None, ..figures(1, 280.0, 277) };
    grid.add(case(System::Bfd100, 20), Ok(today));
    grid.add(case(System::Bfd100, 20), Err(void(2)));
    grid
}

#[test]
fn percentiles_are_nearest_rank_and_gaps_are_the_worse_direction() {
    let grid = grid();
    let cell = grid.cell(case(System::Ours, 20)).expect("it was added");
    assert!(cell.runs.is_sorted_by_key(|run| run.seed));
    let summary = cell.summary.expect("it has runs");
    let gap = summary.gap_ms;
    assert_eq!((gap.p50, gap.p95, gap.p99, gap.max), (10.0, 19.0, 20.0, 20.0));
    assert_eq!((summary.lost.max, summary.reordered.max), (1.0, 20.0), "both directions");
    let percent = |of: Option<super::cells::Spread>| of.expect("ours counts them").p50;
    assert!((percent(summary.copies_percent) - 8.0).abs() < 1e-9);
    assert!((percent(summary.receipts_percent) - 2.1).abs() < 1e-9);
}

#[test]
fn the_table_has_a_row_for_each_cell_and_says_what_is_void() {
    let text = grid().text();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    let row = |name: &str| {
        let row = rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        row[1..].iter().copied().filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(row("cut, 20 ms, 1000/s: ours"), ["20", "10", "19", "20", "1", "1", "0", "20", "8.0", "2.1"]);
    let today = row("cut, 20 ms, 1000/s: BGP+BFD 100 ms x 3");
    assert_eq!(today, ["1 (1 void)", "280", "280", "280", "278", "278", "0", "1", "–", "–"]);
    let line = grid().line(case(System::Bfd100, 20));
    assert!(line.ends_with("gap 280 ms (95 %: 280), at most 278 lost; seed 2 is void: the guest died"), "{line}");
}

#[test]
fn what_a_file_has_is_not_measured_again_and_what_was_void_is() {
    let grid = grid();
    let file = std::env::temp_dir().join(format!("msp-lab-failover-{}.json", std::process::id()));
    std::fs::write(&file, serde_json::to_vec(&grid).expect("it has string keys only")).expect("a writable folder");
    let mut again = Grid::new(Some("abc".into()));
    again.add_from(&file).expect("the same revision");
    assert!(again.has(case(System::Ours, 20), 20) && !again.has(case(System::Ours, 20), 21));
    assert!(grid.has(case(System::Bfd100, 20), 2) && !again.has(case(System::Bfd100, 20), 2));
    let error = Grid::new(Some("def".into())).add_from(&file).expect_err("another revision").to_string();
    assert!(error.contains("at revision abc, and this is def"), "{error}");
    std::fs::write(&file, "[]").expect("it was written above");
    let error = Grid::new(None).add_from(&file).expect_err("a list").to_string();
    assert!(error.contains("is no file of this bench"), "{error}");
    std::fs::remove_file(&file).expect("it was written above");
}

#[test]
fn the_document_names_its_cells_and_their_figures() {
    let json = serde_json::to_value(grid()).expect("it has string keys only");
    let cell = &json["cells"][1];
    assert_eq!(json["schema"], 1);
    assert_eq!((cell["kind"].as_str(), cell["system"].as_str()), (Some("cut"), Some("bfd100")));
    assert_eq!((cell["rtt_ms"].as_u64(), cell["rate"].as_u64()), (Some(20), Some(1_000)));
    assert_eq!(cell["summary"]["lost"]["p50"], 278.0);
    assert_eq!(cell["runs"][0]["up"]["lost"], 277);
}

/// A run in which slot `used` of both ends was cut.
fn report(used: u8) -> Report {
    let stream = |name: &str, length_ms: f64| StreamResult {
        name: name.into(),
        sent: 3_000,
        flow: Flow { lost: 7, longest_gap: Gap { at_ms: 1_400.0, length_ms }, ..Flow::default() },
        ..StreamResult::default()
    };
    let mut report: Report = serde_json::from_value(serde_json::json!({
        "schema": 1, "run": crate::report::Run { seed: 9, ..Default::default() }, "streams": [], "sizes": [], "tcp": [],
        "pings": [], "speeds": [], "attacks": [], "watches": [], "failed": [], "bgp": [], "status": [], "events": [],
        "exits": [], "outcomes": [], "notes": []
    }))
    .expect("all that a report must have");
    report.traffic.streams = vec![stream("up", 40.0), stream("down", 41.5)];
    report.events = vec![TimelineEvent { at_ms: 1_400.0, name: "cut".into(), label: "cut isp-a".into() }];
    for (at_ms, current, octets) in
        [(-50.0, used, 0), (50.0, used, 1_000), (1_350.0, used, 9_000), (3_050.0, 1, 11_000)]
    {
        for node in ["box", "core"] {
            let traffic = |bytes| Traffic { packets: 1, bytes };
            let path = PathSample {
                slot: 0,
                tunnel: Default::default(),
                stands_by: false,
                state: PathState::Up,
                rtt_ms: None,
                loss: None,
                handshake_s: None,
                mtu: None,
                lost: 0,
                tx: traffic(octets),
                rx: traffic(0),
            };
            let peer = PeerSample {
                name: "peer".into(),
                reachable: true,
                current_slot: Some(current),
                current_tunnel: None,
                path_changes: 0,
                fragmented: 0,
                reassembled: 0,
                tx: traffic(octets),
                copies: traffic(octets / 10),
                receipts: traffic(octets / 100),
                drops: Default::default(),
                paths: vec![path],
            };
            let status = StatusSample { at_ms, node: node.into(), drops: Default::default(), peers: vec![peer] };
            report.status.push(status);
        }
    }
    report
}

#[test]
fn figures_are_taken_from_a_report_and_a_run_that_shows_nothing_is_void() {
    let ours = case(System::Ours, 20);
    let figures = Figures::of(&report(0), ours).expect("a sound run");
    assert_eq!((figures.seed, figures.cut_ms, figures.up.gap_ms, figures.down.gap_ms), (9, 1_400.0, 40.0, 41.5));
    // From the first sample after the start: what was sent before is not of this run.
    assert_eq!(figures.octets, Some(Octets { sent: 20_000, copies: 2_000, receipts: 200 }));
    assert_eq!(Figures::of(&report(0), case(System::Bfd20, 20)).map(|figures| figures.octets), Ok(None));

    let error = Figures::of(&report(1), ours).expect_err("the other link was used");
    assert!(error.contains("box used slot Some(1) when slot 0 was cut"), "{error}");
    let mut failed = report(0);
    failed.traffic.failed = vec!["the meter at home failed".into()];
    assert_eq!(Figures::of(&failed, ours), Err("the meter at home failed".into()));
    let mut uncut = report(0);
    uncut.events.clear();
    assert_eq!(Figures::of(&uncut, ours), Err("nothing was cut".into()));
    let mut silent = report(0);
    silent.traffic.streams[1].sent = 0;
    assert_eq!(Figures::of(&silent, ours), Err("there was no traffic \"down\"".into()));
}

#[test]
fn the_picture_has_a_line_for_each_system_and_higher_is_worse() {
    let mut grid = grid();
    grid.add(case(System::Ours, 60), Ok(figures(1, 80.0, 0)));
    grid.add(case(System::Bfd100, 60), Ok(figures(1, 320.0, 300)));
    let svg = picture::svg(&grid);
    let lines: Vec<&str> = svg.lines().filter(|line| line.starts_with("<path class=\"system")).collect();
    // Gaps and losses of two systems.
    assert_eq!(lines.len(), 4, "{svg}");
    let heights = |class: &str| -> Vec<f64> {
        let line = lines.iter().find(|line| line.contains(class)).expect("it is drawn");
        let d = line.split("d=\"M").nth(1).and_then(|d| d.split('"').next()).expect("a path");
        d.split('L').map(|point| point.split(' ').nth(1).expect("x and y").parse().expect("a number")).collect()
    };
    let (ours, today) = (heights("s0"), heights("s2"));
    assert!(ours[0] > ours[1] && today[0] > today[1] && ours[1] > today[1], "{ours:?} {today:?}");
    assert!(svg.contains("<title>cut, 60 ms, 1000/s: BGP+BFD 100 ms x 3: 320 ms</title>"), "{svg}");
}
