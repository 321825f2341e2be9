//! The meter against a real kernel: two hosts on one bridge, in network namespaces of their own. Needs root; the cases
//! do nothing without.

use super::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Hosts "a" and "b", and the bridge between them; gone when dropped.
struct Link {
    names: [String; 3],
    folder: PathBuf,
}

impl Link {
    /// `None` without root.
    fn new(test: &str) -> Option<Link> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("{test}: not root, so not run");
            return None;
        }
        let unique = format!("{test}-{}", std::process::id());
        let link = Link {
            names: ["a", "b", "bridge"].map(|h| format!("meter-{unique}-{h}")),
            folder: std::env::temp_dir().join(unique),
        };
        std::fs::create_dir_all(&link.folder).expect("a folder for results");
        for name in &link.names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        let [a, b, bridge] = &link.names;
        ip(&format!("-n {bridge} link add bridge type bridge"));
        ip(&format!("-n {bridge} link set bridge up"));
        for (name, n) in [(a, 1), (b, 2)] {
            ip(&format!("-n {name} link add eth0 type veth peer name port{n} netns {bridge}"));
            ip(&format!("-n {bridge} link set port{n} master bridge up"));
            ip(&format!("-n {name} address add 192.0.2.{n}/24 dev eth0"));
            ip(&format!("-n {name} address add 2001:db8::{n}/64 dev eth0 nodad"));
            ip(&format!("-n {name} link set eth0 up"));
            ip(&format!("-n {name} route add default dev eth0"));
            ip(&format!("-n {name} -6 route add default dev eth0"));
        }
        Some(link)
    }

    fn address(host: &str, family: Family) -> Option<IpAddr> {
        let n = match host {
            "a" => 1,
            "b" => 2,
            _ => return None,
        };
        Some(match family {
            Family::V4 => IpAddr::from([192, 0, 2, n]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()]),
        })
    }

    /// Runs traffic for some time; `meanwhile` gets the namespaces' names at its start.
    fn run(&self, traffic: &[Traffic], length: Span, meanwhile: impl FnOnce(&[String; 3])) -> TrafficResults {
        let ends = plan(traffic, Self::address).expect("the traffic is right");
        let start = clock::Clock::new(0).now() as u64 + 300_000_000;
        let mut meters = Vec::new();
        for (host, ends) in ends {
            let name = &self.names[usize::from(host == "b")];
            let namespace = File::open(format!("/run/netns/{name}")).expect("the namespace is there");
            let spec = MeterSpec {
                result: self.folder.join(&host),
                live: Some(self.folder.join(format!("{host}.live"))),
                drain: Span(Duration::from_millis(500)),
                start_ns: start,
                seed: 1,
                length,
                host,
                ends,
            };
            // What the lab writes and the meter reads must be the same.
            let spec: MeterSpec = serde_json::from_str(&serde_json::to_string(&spec).expect("json")).expect("json");
            meters.push(std::thread::spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
                let result = spec.result.clone();
                run(spec).expect("the meter works");
                serde_json::from_slice(&std::fs::read(result).expect("a result")).expect("its form is right")
            }));
        }
        clock::Clock::new(start).sleep_until(0);
        meanwhile(&self.names);
        let hosts = meters.into_iter().map(|m| m.join().expect("no panic")).collect();
        collect(traffic, length, hosts)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            // Nothing to do about one that will not go; the names are unique.
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn traffic(json: serde_json::Value) -> Vec<Traffic> {
    serde_json::from_value(json).expect("the traffic is right")
}

#[test]
fn all_kinds_of_traffic_over_a_good_link() {
    let Some(link) = Link::new("good") else { return };
    let entries = traffic(serde_json::json!([
        { "kind": "udp", "name": "forth", "from": "a", "to": "b", "rate": 200.0, "dscp": 46 },
        { "kind": "udp", "name": "back6", "from": "b", "to": "a", "family": "v6", "rate": 333.3, "size": 1400,
          "start": "500ms", "stop": "1s" },
        { "kind": "tcp", "name": "download", "from": "a", "to": "b", "rate": 1e6, "bytes": 500_000 },
        { "kind": "tcp", "name": "endless6", "from": "a", "to": "b", "rate": 1e5, "family": "v6", "connections": 2 },
        { "kind": "tcp", "name": "small", "from": "b", "to": "a", "rate": 1e6, "bytes": 1000, "every": "100ms",
          "stop": "1s" },
        { "kind": "ping", "name": "ping", "from": "a", "to": "b", "every": "100ms" },
        { "kind": "ping", "name": "ping6", "from": "a", "to": "b", "family": "v6", "every": "100ms" },
    ]));
    let results = link.run(&entries, Span::seconds(2), |_| {});
    assert_eq!(results.failed, Vec::<String>::new());

    let [forth, back6] = &results.streams[..] else { panic!("two streams, not {:?}", results.streams) };
    for (stream, sent) in [(forth, 400), (back6, 167)] {
        assert_eq!((stream.sent, stream.refused), (sent, 0));
        let flow = &stream.flow;
        assert_eq!((flow.received, flow.lost, flow.duplicated, flow.reordered), (sent, 0, 0, 0), "{}", stream.name);
        assert_eq!((flow.misdelivered, flow.remarked), (0, 0));
        assert!(flow.delay_p50_ms < 20.0 && flow.delay_max_ms < 1000.0);
    }
    let [download, endless, small] = &results.tcp[..] else { panic!("three, not {:?}", results.tcp) };
    assert_eq!((download.completed, download.broken, download.bytes), (1, 0, 500_000), "{:?}", download.reasons);
    assert!((400.0..1500.0).contains(&download.duration_ms), "{}", download.duration_ms);
    assert_eq!((endless.connections, endless.completed, endless.broken), (2, 2, 0), "{:?}", endless.reasons);
    assert!((300_000..=402_000).contains(&endless.bytes), "{}", endless.bytes);
    assert_eq!((small.connections, small.completed, small.bytes), (10, 10, 10_000), "{:?}", small.reasons);
    for ping in &results.pings {
        assert_eq!((ping.sent, ping.flow.received, ping.flow.duplicated), (20, 20, 0));
    }
    assert_eq!(results.pings.len(), 2);

    let lines = std::fs::read_to_string(link.folder.join("b.live")).expect("live lines");
    let last: LiveLine = serde_json::from_str(lines.lines().last().expect("lines")).expect("their form is right");
    assert_eq!(lines.lines().count(), 25);
    assert!(last.streams.iter().any(|s| s.name == "forth" && s.received == 400 && s.lost == 0));
}

#[test]
fn an_outage_is_measured() {
    let Some(link) = Link::new("outage") else { return };
    let entries = traffic(serde_json::json!([
        { "kind": "udp", "name": "forth", "from": "a", "to": "b", "rate": 100.0 },
        { "kind": "tcp", "name": "download", "from": "a", "to": "b", "rate": 1e5 },
        { "kind": "tcp", "name": "impatient", "from": "a", "to": "b", "rate": 1e5, "patience": "300ms" },
    ]));
    let results = link.run(&entries, Span::seconds(3), |[_, _, bridge]| {
        std::thread::sleep(Duration::from_millis(500));
        // Silence: both hosts' links stay up.
        ip(&format!("-n {bridge} link set port2 nomaster"));
        std::thread::sleep(Duration::from_millis(1_000));
        ip(&format!("-n {bridge} link set port2 master bridge"));
    });
    assert_eq!(results.failed, Vec::<String>::new());
    let stream = &results.streams[0];
    assert_eq!(stream.sent, 300);
    assert_eq!(stream.refused, 0, "the sender was told nothing");
    assert!((80..=140).contains(&stream.flow.lost), "{}", stream.flow.lost);
    assert!((900.0..1400.0).contains(&stream.flow.longest_gap.length_ms), "{:?}", stream.flow.longest_gap);
    assert!((400.0..700.0).contains(&stream.flow.longest_gap.at_ms), "{:?}", stream.flow.longest_gap);
    let [patient, impatient] = &results.tcp[..] else { panic!("two") };
    assert_eq!((patient.broken, patient.completed), (0, 1), "{:?}", patient.reasons);
    assert!(patient.longest_stall.length_ms > 900.0, "{:?}", patient.longest_stall);
    assert!(patient.retransmits > 0);
    assert_eq!((impatient.broken, impatient.completed), (1, 0));
}

#[test]
fn attacks_are_sent_answered_recorded_and_seen() {
    let Some(link) = Link::new("attacks") else { return };
    let spoof = |name: &str, shape: &str, source: &str, to: &str| {
        serde_json::json!({ "kind": "spoof", "name": name, "from": "a", "sources": [source], "to_address": to,
            "count": 50, "rate": 1000.0, "shape": shape })
    };
    let entries = traffic(serde_json::json!([
        spoof("udp", "udp", "203.0.113.7", "192.0.2.2"),
        spoof("udp6", "udp", "2001:db8:9::7", "2001:db8::2"),
        spoof("fragments", "fragments", "203.0.113.7", "192.0.2.2"),
        spoof("fragments6", "fragments", "2001:db8:9::7", "2001:db8::2"),
        spoof("later6", "later_fragment", "2001:db8:9::7", "2001:db8::2"),
        spoof("icmp", "icmp_error", "203.0.113.7", "192.0.2.2"),
        spoof("icmp6", "icmp_error", "2001:db8:9::7", "2001:db8::2"),
        { "kind": "garbage", "name": "closed", "from": "a", "to_address": "192.0.2.2", "port": 7, "count": 2000,
          "rate": 5000.0 },
        // The receiver of "stream" says nothing, and takes none of it for its own.
        { "kind": "garbage", "name": "open", "from": "a", "to_address": "192.0.2.2", "port": 20009, "count": 2000,
          "rate": 5000.0, "start": "100ms" },
        { "kind": "udp", "name": "stream", "from": "a", "to": "b", "rate": 100.0, "stop": "1s" },
        { "kind": "replay", "name": "replay", "from": "b", "ports": [20011], "again": "1s", "count": 150, "rate": 1000.0 },
        { "kind": "udp", "name": "recorded", "from": "a", "to": "b", "rate": 100.0, "start": "100ms", "stop": "900ms" },
        { "kind": "watch", "name": "watch", "at": "b" },
    ]));
    let results = link.run(&entries, Span::seconds(2), |_| {});
    assert_eq!(results.failed, Vec::<String>::new());
    let seen: BTreeMap<&str, u64> = results.watches[0].seen.iter().map(|s| (s.name.as_str(), s.packets)).collect();
    let wanted = [
        ("udp", 50),
        ("udp6", 50),
        ("fragments", 100),
        ("fragments6", 100),
        ("later6", 50),
        ("icmp", 50),
        ("icmp6", 50),
        ("stream", 100),
        ("recorded", 80 + 150),
    ];
    assert_eq!(seen, BTreeMap::from(wanted));
    let attack = |name: &str| results.attacks.iter().find(|a| a.name == name).expect("it is there");
    assert!(results.attacks.iter().all(|a| a.refused == 0), "{:?}", results.attacks);
    assert_eq!((attack("open").sent, attack("open").replies, attack("open").icmp), (2000, 0, 0));
    assert_eq!((attack("closed").sent, attack("closed").replies), (2000, 0));
    assert!(attack("closed").icmp > 0, "a closed port says so, at a limited rate");
    let stream = &results.streams[0].flow;
    assert_eq!((stream.received, stream.lost), (100, 0));
    assert_eq!(stream.misdelivered, 2000);
    // Sent at b to b's own address with b's neighbour as the source: the second copies come in by loopback.
    assert_eq!((attack("replay").recorded, attack("replay").sent), (80, 150));
    let recorded = &results.streams[1].flow;
    assert_eq!((recorded.received, recorded.lost, recorded.duplicated), (80, 0, 150));
}

#[test]
fn a_plan_refuses_what_cannot_work() {
    let refused = |json: serde_json::Value, part: &str| {
        let error = plan(&traffic(json), Link::address).expect_err("it is wrong").to_string();
        assert!(error.contains(part), "{error}");
    };
    let udp = |key: &str, value: serde_json::Value| {
        let mut entry = serde_json::json!({ "kind": "udp", "name": "x", "from": "a", "to": "b", "rate": 1.0 });
        entry[key] = value;
        serde_json::json!([entry])
    };
    refused(udp("to", "c".into()), "host \"c\"");
    refused(udp("rate", 0.into()), "rate is 0");
    refused(udp("rate", 1e6.into()), "rate");
    refused(udp("size", 39.into()), "size is 39");
    refused(udp("dscp", 64.into()), "dscp is 64");
    refused(serde_json::json!([udp("rate", 1.into())[0], udp("rate", 1.into())[0]]), "twice");
    refused(
        serde_json::json!([{ "kind": "tcp", "name": "x", "from": "a", "to": "b", "rate": 1.0, "every": "1s" }]),
        "bytes is missing",
    );
}

#[test]
fn what_a_silent_host_leaves_out_is_named() {
    let entries = traffic(serde_json::json!([
        { "kind": "udp", "name": "forth", "from": "a", "to": "b", "rate": 100.0 },
        { "kind": "ping", "name": "ping", "from": "b", "to": "a" },
        { "kind": "watch", "name": "watch", "at": "b" },
    ]));
    let heard = HostResult {
        schema: 1,
        host: "a".into(),
        start_ns: 0,
        ends: vec![EndResult::Sent { id: 1, sent: 100, refused: 0 }],
    };
    let results = collect(&entries, Span::seconds(1), vec![heard]);
    assert_eq!(results.failed.len(), 3);
    assert!(results.failed[0].contains("forth") && results.failed[0].contains('b'));
}

#[test]
fn spans() {
    let span = |text: &str| text.parse::<Span>();
    for (text, ms) in [("250ms", 250.0), ("10s", 10_000.0), ("0.3s", 300.0), ("2m", 120_000.0), ("1.5", 1500.0)] {
        assert_eq!(span(text).expect(text).millis(), ms);
    }
    assert_eq!(span("0.3s").expect("right"), span("300ms").expect("right"));
    for text in ["", "s", "-1s", "1 day", "both_dead", "1e9", "9999999999999999999h"] {
        assert!(span(text).is_err(), "{text}");
    }
    assert_eq!(Span::seconds(10).to_string(), "10s");
    assert_eq!(span("250ms").expect("right").to_string(), "250ms");
}
