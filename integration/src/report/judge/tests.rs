use super::*;
use crate::meter::{AttackResult, Gap, Seen, Series, SizeResult, Span, StreamResult, TrafficResults, WatchResult};
use crate::report::{BgpChange, BgpEvent, Exit, PathSample, PeerSample, Run, SCHEMA, TimelineEvent};
use crate::report::{Kernel, all_good};
use proto::PathState;
use std::collections::BTreeMap;

/// A stream "down" of 100 packets a second for ten seconds, which was cut from 2 s to 2.4 s and heals at "heal", 2.2 s.
fn report(kernel: Kernel) -> Report {
    let mut received = vec![1; 1_001];
    received[200..240].fill(0);
    let mut lost = vec![0; 1_001];
    lost[200..240].fill(1);
    let gap = Gap { at_ms: 1_995.0, length_ms: 410.0 };
    let flow = Flow {
        received: 960,
        lost: 40,
        marked: 24,
        longest_gap: gap,
        gaps: vec![gap],
        delay_p99_ms: 12.0,
        series: Series { bin_ms: 10.0, received, lost, delay_ms: vec![None; 1_001] },
        ..Flow::default()
    };
    let stream = StreamResult {
        name: "down".into(),
        id: 1,
        from: "server".into(),
        to: "laptop".into(),
        sent: 1_000,
        stop_ms: 10_000.0,
        flow,
        ..StreamResult::default()
    };
    // Two seconds at full speed, then at half of it.
    let octets = (0..1_000).map(|bin| if bin < 200 { 100 } else { 50 }).collect();
    let series = Series { bin_ms: 10.0, received: octets, ..Series::default() };
    let tcp = TcpResult {
        name: "web".into(),
        connections: 2,
        completed: 1,
        unfinished: 1,
        retransmits: 3,
        series,
        ..TcpResult::default()
    };
    let spoof = AttackResult { name: "spoof".into(), id: 3, sent: 50, ..AttackResult::default() };
    let watch = |at: &str, seen: &[(&str, u64)]| WatchResult {
        name: format!("watch-{at}"),
        at: at.into(),
        seen: seen.iter().map(|&(name, packets)| Seen { id: 0, name: name.into(), packets }).collect(),
        datagrams: (at == "laptop").then_some(3),
        longest: 148,
    };
    let sent = |at_ms: f64, a_second: f64| Traffic { packets: 0, bytes: (at_ms / 1e3 * a_second) as u64 };
    let sample = |at_ms: f64, path_changes, drops| StatusSample {
        at_ms,
        node: "box".into(),
        drops: BTreeMap::from([("tun_source".to_owned(), drops)]),
        peers: vec![PeerSample {
            name: "core".into(),
            reachable: true,
            current_slot: Some(0),
            current_tunnel: None,
            path_changes,
            fragmented: 0,
            reassembled: 0,
            // Of each second's 100 packets of 100 octets two are sent twice, and a receipt of 20 octets is sent for ten.
            tx: sent(at_ms, 10_000.0),
            copies: sent(at_ms, 200.0),
            receipts: sent(at_ms, 100.0),
            drops: BTreeMap::from([("data_replayed".to_owned(), 1)]),
            // Down at 3 s and at no other look.
            paths: vec![PathSample {
                slot: 0,
                tunnel: Default::default(),
                stands_by: false,
                state: if at_ms == 3_000.0 { PathState::Down } else { PathState::Up },
                rtt_ms: None,
                loss: None,
                handshake_s: None,
                mtu: None,
                lost: 0,
                tx: Traffic::default(),
                rx: Traffic::default(),
            }],
        }],
    };
    let event = |at_ms, name: &str| TimelineEvent { at_ms, name: name.into(), label: String::new() };
    let bgp = |at_ms, change| BgpEvent { at_ms, prefix: "198.51.100.0/24".into(), change };
    Report {
        schema: SCHEMA,
        run: Run { kernel, length_ms: 10_000.0, ..Run::default() },
        traffic: TrafficResults {
            streams: vec![stream],
            tcp: vec![tcp],
            attacks: vec![spoof],
            watches: vec![watch("laptop", &[("down", 960)]), watch("neighbour", &[("spoof", 2)])],
            ..TrafficResults::default()
        },
        bgp: vec![bgp(-500.0, BgpChange::Announced), bgp(7_500.0, BgpChange::Withdrawn)],
        // The daemon was restarted between the third and the fourth.
        status: vec![sample(0.0, 1, 5), sample(3_000.0, 2, 8), sample(5_000.0, 4, 9), sample(8_000.0, 1, 2)],
        links: Vec::new(),
        filters: Vec::new(),
        dropped_by_links: Default::default(),
        events: vec![event(2_000.0, "cut"), event(2_200.0, "heal"), event(6_000.0, "both_dead")],
        exits: vec![Exit { at_ms: 6e3, node: "box".into(), clean: true, how: "asked".into(), left_over: Vec::new() }],
        outcomes: Vec::new(),
        notes: Vec::new(),
    }
}

fn judge(kernel: Kernel, expect: serde_json::Value) -> Vec<Outcome> {
    let expect: Expect = serde_json::from_value(expect).expect("the expectation is right");
    evaluate(&report(kernel), &[expect])
}

/// The one outcome's verdict and measure, in virtual time.
fn one(expect: serde_json::Value) -> (Verdict, Option<f64>) {
    let outcomes = judge(Kernel::Virtual, expect.clone());
    assert_eq!(outcomes.len(), 1, "{expect}: {outcomes:?}");
    (outcomes[0].verdict, outcomes[0].measured)
}

macro_rules! expect {
    ($($json:tt)+) => { one(serde_json::json!({ $($json)+ })) };
}

use Verdict::{Error, Fail, Pass, ReportedMet, ReportedMissed};

#[test]
fn bars_on_packets() {
    assert_eq!(expect!("stream": "down", "longest_gap_ms": { "max": 500 }), (Pass, Some(410.0)));
    assert_eq!(expect!("stream": "down", "longest_gap_ms": { "max": 300 }), (Fail, Some(410.0)));
    assert_eq!(expect!("stream": "down", "longest_gap_ms": { "max": 60 }, "from": "heal"), (Fail, Some(205.0)));
    assert_eq!(expect!("stream": "down", "longest_gap_ms": { "max": 60 }, "from": "3s"), (Pass, Some(50.0)));
    assert_eq!(expect!("stream": "down", "longest_gap_ms": { "max": 40 }, "from": "3s"), (Error, None));
    assert_eq!(expect!("stream": "down", "lost": { "max": 40 }), (Pass, Some(40.0)));
    assert_eq!(expect!("stream": "down", "lost": { "max": 10 }, "from": "heal", "until": "5s"), (Fail, Some(20.0)));
    assert_eq!(expect!("stream": "down", "lost": { "max": 0 }, "until": "cut"), (Pass, Some(0.0)));
    assert_eq!(expect!("stream": "down", "lost": { "max": 0 }, "from": "5s", "until": "cut"), (Error, None));
    assert_eq!(expect!("stream": "down", "lost_percent": { "max": 4 }), (Pass, Some(4.0)));
    assert_eq!(expect!("stream": "down", "received": { "min": 961 }), (Fail, Some(960.0)));
    assert_eq!(expect!("stream": "down", "delay_p99_ms": { "max": 12 }), (Pass, Some(12.0)));
}

#[test]
fn traffic_comes_back_after_an_event() {
    assert_eq!(
        expect!("stream": "down", "back_within_ms": { "after": "heal", "max": 300 }),
        (Pass, Some(205.0)),
        "in a gap it is exact"
    );
    assert_eq!(expect!("stream": "down", "back_within_ms": { "after": "heal", "max": 200 }), (Fail, Some(205.0)));
    assert_eq!(expect!("stream": "down", "back_within_ms": { "after": "both_dead", "max": 20 }), (Pass, Some(10.0)));
    assert_eq!(expect!("stream": "down", "back_within_ms": { "after": "11s", "max": 20 }), (Error, None));
    let mut ended = report(Kernel::Virtual);
    let flow = &mut ended.traffic.streams[0].flow;
    flow.series.received[700..].fill(0);
    flow.gaps.push(Gap { at_ms: 6_995.0, length_ms: 3_005.0 });
    let expects = |after: &str| {
        let json = serde_json::json!({ "stream": "down", "back_within_ms": { "after": after, "max": 1e9 } });
        serde_json::from_value(json).expect("right")
    };
    for after in ["8s", "6.992s"] {
        let outcome = evaluate(&ended, &[expects(after)]).remove(0);
        assert_eq!((outcome.verdict, outcome.measured), (Fail, None), "{after}: never is no pass");
    }
}

#[test]
fn what_is_not_there_is_an_error() {
    assert_eq!(expect!("stream": "up", "lost": { "max": 9 }), (Error, None));
    assert_eq!(expect!("lost": { "max": 9 }), (Error, None));
    assert_eq!(expect!("stream": "down", "lost": {}), (Error, None));
    assert_eq!(expect!("stream": "down"), (Error, None));
    assert_eq!(expect!("stream": "down", "tcp": "web", "lost": { "max": 9 }), (Error, None));
    assert_eq!(expect!("stream": "down", "lost": { "max": 9 }, "from": "never_happened"), (Error, None));
    assert_eq!(expect!("stream": "down", "back_within_ms": { "after": "healed", "max": 300 }), (Error, None));
    assert_eq!(expect!("tcp": "ftp", "tcp_broken": { "max": 0 }), (Error, None));
    assert_eq!(expect!("attack": "x", "replies": { "max": 0 }), (Error, None));
    assert_eq!(expect!("node": "bax", "path_changes": { "max": 9 }), (Error, None));
    assert_eq!(expect!("node": "box", "path_changes": { "peer": "x", "max": 9 }), (Error, None));
    assert_eq!(expect!("node": "box", "drops": { "reason": "typo", "max": 9 }), (Error, None));
    assert_eq!(expect!("node": "core", "clean_exit": true), (Error, None));
    assert_eq!(expect!("node": "box", "clean_exit": false), (Error, None));
    let mut void = report(Kernel::Native);
    void.traffic.failed.push("down at laptop: no".into());
    assert_eq!(evaluate(&void, &[]).remove(0).verdict, Error);
    assert!(serde_json::from_value::<Expect>(serde_json::json!({ "strem": "down" })).is_err());
}

#[test]
fn deadlines_are_asserted_in_virtual_time_only() {
    let missed = serde_json::json!({ "stream": "down", "longest_gap_ms": { "max": 300 }, "lost": { "max": 9 } });
    let verdicts = |kernel| judge(kernel, missed.clone()).iter().map(|o| o.verdict).collect::<Vec<_>>();
    assert_eq!(verdicts(Kernel::Virtual), [Fail, Fail]);
    assert_eq!(verdicts(Kernel::Uml), [ReportedMissed, ReportedMissed], "how many are lost in a failover is its time");
    let none_lost = serde_json::json!({ "stream": "down", "lost": { "max": 0 } });
    assert_eq!(judge(Kernel::Uml, none_lost)[0].verdict, Fail);
    let met = serde_json::json!({ "stream": "down", "longest_gap_ms": { "max": 500 } });
    assert_eq!(judge(Kernel::Native, met)[0].verdict, ReportedMet);
    let always = serde_json::json!({ "stream": "down", "longest_gap_ms": { "max": 1 }, "asserted": "always" });
    assert_eq!(judge(Kernel::Native, always)[0].verdict, Fail);
    let wrong = serde_json::json!({ "stream": "x", "longest_gap_ms": { "max": 1 } });
    assert_eq!(judge(Kernel::Native, wrong)[0].verdict, Error, "a wrong scenario is wrong on each kernel");
}

#[test]
fn tcp_nodes_and_attacks() {
    assert_eq!(expect!("tcp_broken": { "max": 0 }), (Pass, Some(0.0)));
    assert_eq!(expect!("tcp": "web", "tcp_completed": { "min": 2 }), (Fail, Some(1.0)));
    assert_eq!(expect!("tcp": "web", "tcp_sent_again": { "max": 0 }), (Fail, Some(3.0)));
    assert_eq!(expect!("stream": "down", "marked_percent": { "max": 2.5 }), (Pass, Some(2.5)));
    assert_eq!(expect!("stream": "down", "marked": { "max": 0 }), (Fail, Some(24.0)));
    assert_eq!(expect!("stream": "down", "tcp_broken": { "max": 0 }), (Error, None));
    // 1 -> 2 -> 4, then a restart and 1 more.
    assert_eq!(expect!("node": "box", "path_changes": { "max": 4 }), (Pass, Some(4.0)));
    assert_eq!(expect!("node": "box", "path_changes": { "from": "4s", "max": 2 }), (Fail, Some(3.0)));
    assert_eq!(expect!("node": "box", "path_changes": { "until": "3s", "max": 1 }), (Pass, Some(1.0)));
    assert_eq!(expect!("node": "box", "drops": { "reason": "tun_source", "min": 11 }), (Pass, Some(11.0)));
    let both = ["tun_source", "data_replayed"];
    assert_eq!(expect!("node": "box", "drops": { "reason": both, "max": 11 }), (Fail, Some(13.0)));
    assert_eq!(expect!("node": "box", "clean_exit": true), (Pass, Some(0.0)));
    assert_eq!(expect!("attack": "spoof", "sent": { "min": 50 }), (Pass, Some(50.0)));
    assert_eq!(expect!("attack": "spoof", "delivered_only_to": []), (Fail, Some(2.0)));
    assert_eq!(expect!("attack": "spoof", "delivered_only_to": ["neighbour"]), (Pass, Some(0.0)));
    assert_eq!(expect!("stream": "down", "delivered_only_to": ["laptop"]), (Pass, Some(0.0)));
    assert_eq!(expect!("stream": "down", "delivered_only_to": ["laptop", "neighbour"]), (Error, None));
    assert_eq!(expect!("stream": "down", "delivered_only_to": ["nobody"]), (Error, None));
}

#[test]
fn what_failover_costs_and_what_a_path_never_is() {
    assert_eq!(expect!("node": "box", "copies_percent": { "max": 2 }, "from": "0s", "until": "5s"), (Pass, Some(2.0)));
    assert_eq!(
        expect!("node": "box", "receipts_percent": { "max": 0.5 }, "from": "3s", "until": "5s"),
        (Fail, Some(1.0))
    );
    assert_eq!(expect!("node": "box", "copies_percent": { "max": 2 }, "from": "9s"), (Error, None), "one look");
    assert_eq!(expect!("node": "core", "copies_percent": { "max": 2 }), (Error, None));
    let never = |is: &str, slot| serde_json::json!({ "slot": slot, "is": is, "never": true });
    assert_eq!(expect!("node": "box", "path": never("down", 0)), (Fail, Some(1.0)));
    assert_eq!(expect!("node": "box", "path": never("down", 0), "from": "4s"), (Pass, Some(0.0)));
    assert_eq!(expect!("node": "box", "path": never("down", 1)), (Error, None), "there is no such slot");
    assert_eq!(expect!("node": "box", "path": never("dead", 0)), (Error, None));
    assert_eq!(expect!("tcp": "web", "tcp_goodput_percent": { "after": "cut", "min": 70 }), (Fail, Some(50.0)));
    assert_eq!(expect!("tcp": "web", "tcp_goodput_percent": { "after": "both_dead", "min": 70 }), (Pass, Some(100.0)));
    assert_eq!(expect!("tcp": "web", "tcp_goodput_percent": { "after": "0s", "min": 70 }), (Error, None));
}

#[test]
fn one_run_in_twenty_may_miss_what_is_marked_so() {
    let run = |gap_max: f64, marked: bool| {
        let mut run = report(Kernel::Virtual);
        let bar = Some(Bar { min: None, max: Some(300.0) });
        run.traffic.streams[0].flow.longest_gap.length_ms = gap_max;
        let expect =
            Expect { stream: Some("down".into()), longest_gap_ms: bar, one_in_twenty: marked, ..Expect::default() };
        run.outcomes = evaluate(&run, &[expect]);
        run
    };
    let runs = |marked, count, missed| -> Vec<Report> {
        (0..count).map(|i| run(if i < missed { 301.0 } else { 300.0 }, marked)).collect()
    };
    assert!(all_good(&runs(false, 20, 0)) && !all_good(&runs(false, 20, 1)));
    assert!(all_good(&runs(true, 20, 1)) && !all_good(&runs(true, 20, 2)) && !all_good(&runs(true, 19, 1)));
    assert!(all_good(&runs(true, 40, 2)));
}

#[test]
fn routes() {
    let bgp = |more: serde_json::Value| {
        let mut bgp = serde_json::json!({ "prefix": "198.51.100.0/24", "change": "withdrawn", "after": "both_dead" });
        bgp.as_object_mut().expect("a table").extend(more.as_object().expect("a table").clone());
        one(serde_json::json!({ "bgp": bgp }))
    };
    assert_eq!(bgp(serde_json::json!({ "min_s": 1, "max_s": 2 })), (Pass, Some(1.5)));
    assert_eq!(bgp(serde_json::json!({ "min_s": 1.6, "max_s": 2 })), (Fail, Some(1.5)));
    assert_eq!(bgp(serde_json::json!({ "change": "announced", "max_s": 2 })), (Fail, None));
    assert_eq!(bgp(serde_json::json!({ "after": "x", "max_s": 2 })), (Error, None));
    assert_eq!(bgp(serde_json::json!({ "never": true })), (Fail, Some(1.0)));
    assert_eq!(bgp(serde_json::json!({ "never": true, "after": "8s" })), (Pass, Some(0.0)));
    assert_eq!(bgp(serde_json::json!({ "never": true, "prefix": "x" })), (Error, None));
    assert_eq!(bgp(serde_json::json!({ "never": true, "max_s": 2 })), (Error, None));
    assert_eq!(bgp(serde_json::json!({})), (Error, None));
}

#[test]
fn a_report_survives_its_file() {
    let mut before = report(Kernel::Virtual);
    before.outcomes = judge(Kernel::Virtual, serde_json::json!({ "stream": "down", "lost": { "max": 9 } }));
    let text = serde_json::to_string(&before).expect("json");
    let after: Report = serde_json::from_str(&text).expect("its form is right");
    assert_eq!(serde_json::to_string(&after).expect("json"), text);
}

#[test]
fn sizes_are_judged_by_packets_that_vanished_and_by_what_senders_heard() {
    let row = |size, arrived, told, told_mtu| SizeResult { size, sent: 2, arrived, told, told_mtu };
    let sweep = |name: &str, rows: Vec<SizeResult>, holes: &[(f64, usize)]| SizesResult {
        name: name.into(),
        sizes: rows,
        holes: holes.iter().map(|&(at_ms, size)| Hole { at_ms, size }).collect(),
        ..SizesResult::default()
    };
    let mut run = report(Kernel::Virtual);
    let good = vec![row(576, 2, 0, None), row(1380, 2, 0, None), row(1384, 0, 2, Some(1380))];
    let bad = vec![row(576, 2, 0, None), row(1380, 1, 0, None), row(1384, 0, 2, Some(1300))];
    run.traffic.sizes = vec![sweep("good", good, &[]), sweep("bad", bad, &[(4_000.0, 1380)])];
    let judged = |expect: Expect| evaluate(&run, &[expect]).remove(0);
    let bar = |min, max| Some(Bar { min, max });
    let of = |name: &str| Expect { sizes: Some(name.into()), ..Expect::default() };

    let none = bar(None, Some(0.0));
    assert_eq!(judged(Expect { black_holes: none, ..of("good") }).verdict, Verdict::Pass);
    let vanished = judged(Expect { black_holes: none, ..Expect::default() });
    assert_eq!((vanished.verdict, vanished.measured), (Verdict::Fail, Some(1.0)));
    assert_eq!(vanished.note, "bad: of 1380 to 1380 octets");
    let later = Expect { black_holes: none, from: Some(Moment::At(Span::seconds(5))), ..Expect::default() };
    assert_eq!(judged(later).verdict, Verdict::Pass);

    let all = bar(Some(1380.0), None);
    assert_eq!(judged(Expect { arrived_up_to: all, ..of("good") }).measured, Some(1380.0));
    assert_eq!(judged(Expect { arrived_up_to: all, ..Expect::default() }).measured, Some(576.0), "the least of both");
    let exact = bar(Some(1380.0), Some(1380.0));
    assert_eq!(judged(Expect { told_mtu: exact, ..of("good") }).verdict, Verdict::Pass);
    assert_eq!(judged(Expect { told_mtu: exact, ..Expect::default() }).measured, Some(1300.0));
    assert_eq!(judged(Expect { black_holes: none, ..of("ugly") }).verdict, Verdict::Error);
}

#[test]
fn what_comes_to_a_watched_port_is_bounded_in_number_and_length() {
    assert_eq!(expect!("watch": "watch-laptop", "datagrams": { "min": 1 }), (Pass, Some(3.0)));
    assert_eq!(expect!("watch": "watch-laptop", "longest_datagram": { "max": 148 }), (Pass, Some(148.0)));
    assert_eq!(expect!("watch": "watch-laptop", "longest_datagram": { "max": 100 }), (Fail, Some(148.0)));
    assert_eq!(expect!("watch": "watch-neighbour", "longest_datagram": { "max": 148 }), (Error, None), "no port");
}
