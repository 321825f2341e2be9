//! The picture, the words and the table of a made-up run that has everything: two ISPs, one cut, both dead, back.

use super::*;
use crate::meter::{Flow, Gap, LiveLine, LiveStream, Series, StreamResult, TcpResult};

const LENGTH: f64 = 60_000.0;

fn gap(at_ms: f64, length_ms: f64) -> Gap {
    Gap { at_ms, length_ms }
}

fn stream(name: &str, from: &str, to: &str, gaps: Vec<Gap>, delay: f32) -> StreamResult {
    let bins = (LENGTH / 10.0) as usize;
    let mut series =
        Series { bin_ms: 10.0, received: vec![2; bins], lost: vec![0; bins], delay_ms: vec![Some(delay); bins] };
    for (i, d) in series.delay_ms.iter_mut().enumerate() {
        // Over ISP B it is slower.
        let slower = if (1_000..3_000).contains(&i) { 14.0 } else { 0.0 };
        *d = Some(delay + slower + (i as u64 * 2_654_435_761 % 97) as f32 / 40.0);
    }
    for gap in &gaps {
        let range = (gap.at_ms / 10.0) as usize..(gap.end_ms() / 10.0) as usize;
        series.received[range.clone()].fill(0);
        series.lost[range.clone()].fill(2);
        series.delay_ms[range].fill(None);
    }
    let lost = series.lost.iter().map(|&n| u64::from(n)).sum();
    let longest_gap = gaps.iter().copied().max_by(|a, b| a.length_ms.total_cmp(&b.length_ms)).unwrap_or_default();
    let flow = Flow {
        received: 12_000 - lost,
        lost,
        longest_gap,
        gaps,
        delay_p50_ms: f64::from(delay),
        delay_p99_ms: f64::from(delay) + 16.0,
        delay_max_ms: f64::from(delay) + 17.0,
        series,
        ..Flow::default()
    };
    let (name, from, to) = (name.into(), from.into(), to.into());
    StreamResult { name, from, to, rate: 200.0, stop_ms: LENGTH, sent: 12_000, flow, ..StreamResult::default() }
}

fn story() -> Report {
    let both = gap(38_000.0, 14_210.0);
    let mut octets = vec![2_500; (LENGTH / 10.0) as usize];
    octets[3_800..5_260].fill(0);
    let tcp = TcpResult {
        name: "download".into(),
        connections: 1,
        completed: 1,
        bytes: 10_000_000,
        goodput_bps: 1.5e6,
        retransmits: 41,
        longest_stall: gap(38_000.0, 14_600.0),
        series: Series { bin_ms: 10.0, received: octets, ..Series::default() },
        ..TcpResult::default()
    };
    let mut status = Vec::new();
    for i in 0..600 {
        let at_ms = f64::from(i) * 100.0;
        let state = |from: f64, until: f64| match at_ms {
            t if t < from || t >= until => PathState::Up,
            t if t < from + 300.0 => PathState::Suspect,
            _ => PathState::Down,
        };
        let a = if at_ms < 34_000.0 { state(10_000.0, 30_000.0) } else { state(36_000.0, 57_000.0) };
        let b = state(38_000.0, 52_000.0);
        let current = match (a, b) {
            (PathState::Up, _) => Some(0),
            (_, PathState::Up) => Some(1),
            _ => None,
        };
        for (node, peer) in [("box", "pop-a"), ("core", "home")] {
            let path = |slot, state| PathSample {
                slot,
                tunnel: Default::default(),
                stands_by: false,
                state,
                rtt_ms: Some(20.0),
                loss: None,
                handshake_s: None,
                mtu: None,
                lost: 0,
                tx: Traffic::default(),
                rx: Traffic::default(),
            };
            status.push(StatusSample {
                at_ms,
                node: node.into(),
                drops: BTreeMap::new(),
                peers: vec![PeerSample {
                    name: peer.into(),
                    reachable: current.is_some(),
                    current_slot: current,
                    current_tunnel: None,
                    path_changes: 0,
                    fragmented: 0,
                    reassembled: 0,
                    tx: Traffic::default(),
                    copies: Traffic::default(),
                    receipts: Traffic::default(),
                    drops: BTreeMap::new(),
                    paths: vec![path(0, a), path(1, b)],
                }],
            });
        }
    }
    let event = |at_ms, name: &str, label: &str| TimelineEvent { at_ms, name: name.into(), label: label.into() };
    let bgp = |prefix: &str| {
        [(-800.0, BgpChange::Announced), (48_300.0, BgpChange::Withdrawn), (52_400.0, BgpChange::Announced)]
            .map(|(at_ms, change)| BgpEvent { at_ms, prefix: prefix.into(), change })
    };
    let mut report = Report {
        schema: SCHEMA,
        run: Run {
            scenario: "demo".into(),
            title: "A home behind two ISPs: one goes silent, returns, both die, one comes back".into(),
            seed: 1,
            kernel: Kernel::Virtual,
            revision: Some("0580927".into()),
            when: "2026-11-22T01:10:00Z".into(),
            set: BTreeMap::new(),
            length_ms: LENGTH,
        },
        traffic: TrafficResults {
            streams: vec![
                stream("down", "server", "laptop", vec![gap(10_000.0, 240.0), both], 11.0),
                stream("up", "laptop", "server", vec![gap(10_000.0, 260.0), both], 11.0),
            ],
            tcp: vec![tcp],
            ..TrafficResults::default()
        },
        bgp: bgp("198.51.100.0/24").into_iter().chain(bgp("2001:db8:100::/48")).collect(),
        status,
        links: Vec::new(),
        filters: Vec::new(),
        dropped_by_links: Default::default(),
        events: vec![
            event(10_000.0, "cut_a", "ISP A goes silent"),
            event(30_000.0, "heal_a", "ISP A returns"),
            event(36_000.0, "kill_a", "ISP A dies"),
            event(38_000.0, "both_dead", "ISP B dies: both are dead"),
            event(52_000.0, "heal_b", "ISP B returns"),
            event(57_000.0, "heal_a2", "ISP A returns"),
        ],
        exits: Vec::new(),
        outcomes: Vec::new(),
        notes: Vec::new(),
    };
    let expects: Vec<Expect> = serde_json::from_value(serde_json::json!([
        { "stream": "down", "longest_gap_ms": { "max": 300 }, "until": "both_dead" },
        { "tcp_broken": { "max": 0 } },
        { "bgp": { "prefix": "198.51.100.0/24", "change": "withdrawn", "after": "both_dead", "min_s": 10, "max_s": 11 } },
        { "stream": "up", "lost": { "max": 100 } },
    ]))
    .expect("the expectations are right");
    report.outcomes = evaluate(&report, &expects);
    report
}

#[test]
fn the_picture_is_whole_and_needs_nothing_else() {
    let report = story();
    let page = html(&report);
    if let Ok(folder) = std::env::var("LAB_TEST_PICTURES") {
        std::fs::write(format!("{folder}/demo.html"), &page).expect("the folder is there");
        std::fs::write(format!("{folder}/demo.svg"), svg(&report)).expect("the folder is there");
    }
    for part in ["ISP A goes silent", "14.2 s", "198.51.100.0/24", "suspect", "prefers-color-scheme", "FAILED"] {
        assert!(page.contains(part), "{part}");
    }
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http") && !outside.contains("<script"));
    assert!(page.len() < 1_000_000, "{}", page.len());
    // A run that showed nothing has a picture too.
    let empty = Report {
        traffic: TrafficResults::default(),
        bgp: vec![],
        status: vec![],
        events: vec![],
        outcomes: vec![],
        ..report
    };
    assert!(svg(&empty).ends_with("</svg>\n"));
}

#[test]
fn the_summary_has_the_figures() {
    let text = summary(&story());
    for part in [
        "down",
        "14210 ms at 38.0 s",
        "TCP download: 1 connections, 0 broken",
        "10.3 s after both_dead",
        "3 met, 1 not met",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn several_runs_spread() {
    let runs: Vec<Report> = (1..=20)
        .map(|n| {
            let mut run = story();
            run.traffic.streams[0].flow.longest_gap.length_ms = f64::from(n) * 10.0;
            run
        })
        .collect();
    let all = spreads(&runs);
    let gaps = all.iter().find(|s| s.what == "down: longest gap").expect("it is there");
    assert_eq!((gaps.runs, gaps.min, gaps.median, gaps.p95, gaps.max), (20, 10.0, 100.0, 190.0, 200.0));
    assert!(summary_of_runs(&runs).contains("0 of 20 runs met all"));
    assert!(spreads(&[]).is_empty());
}

#[test]
fn the_table_moves_on_a_terminal_and_prints_a_line_a_second_elsewhere() {
    let draw = |moving| {
        let mut out = Vec::new();
        let mut table = Table::new(&mut out, moving);
        let story = story();
        table.status(story.status[0].clone());
        table.route(&story.bgp[0]);
        for i in 0..=30 {
            let at_ms = f64::from(i) * 100.0;
            let stream =
                LiveStream { name: "down".into(), received: 1, lost: 7, rate: 200.0, gap_ms: 240.0, broken: None };
            table.meter(LiveLine { host: "laptop".into(), at_ms, streams: vec![stream] });
            if i == 15 {
                table.event(story.events[0].clone()).expect("memory");
            }
            table.draw(at_ms).expect("memory");
        }
        String::from_utf8(out).expect("text")
    };
    let lines = draw(false);
    assert_eq!(lines.lines().count(), 5, "{lines}");
    assert!(lines.contains("== ISP A goes silent") && lines.contains("pop-a/0* up") && !lines.contains('\x1b'));
    let moving = draw(true);
    assert_eq!(moving.matches("\x1b[J").count(), 30);
    // The fourth line, the first without and the rest with the event's.
    assert!(moving.contains("\x1b[4F") && moving.contains("\x1b[5F") && moving.contains("lost        7"));
}
