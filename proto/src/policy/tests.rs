use super::*;
use crate::packet::tests::udp;
use proptest::prelude::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn class(name: &str, matches: Matches) -> Class {
    Class { name: name.into(), matches, ..Class::rest() }
}

fn facts(dst: &str, proto: u8, dport: u16, dscp: u8) -> Facts {
    Facts { src: address("198.51.100.7"), dst: address(dst), proto, ports: Some((40_000, dport)), dscp }
}

#[test]
fn the_first_class_that_matches_has_the_packet_and_the_rest_is_always_there() {
    let voice = class("voice", Matches { dscp: 1 << 46, ..Matches::default() });
    let web = class("web", Matches { proto: vec![6], dport: vec![80..=80, 443..=443], ..Matches::default() });
    let office = class("office", Matches { dst: vec![net("192.0.2.0/24")], ..Matches::default() });
    let policy = Policy::new(Default::default(), vec![voice, web, office]).expect("a good policy");
    assert_eq!(policy.classes().last().map(|class| &*class.name), Some(REST));
    for (facts, expected) in [
        (facts("192.0.2.1", 6, 443, 46), 0),
        (facts("192.0.2.1", 6, 443, 0), 1),
        (facts("192.0.2.1", 17, 443, 0), 2),
        (facts("192.0.2.1", 6, 22, 0), 2),
        (facts("203.0.113.1", 6, 22, 0), 3),
        (Facts { ports: None, ..facts("203.0.113.1", 6, 443, 0) }, 3),
    ] {
        assert_eq!(policy.classify(&facts, 0), expected, "{facts:?}");
    }
}

#[test]
fn both_directions_of_a_flow_are_of_one_class() {
    let (site, outside) = (address("198.51.100.7"), address("192.0.2.1"));
    let with_ports = |mut packet: Vec<u8>, source: u16, destination: u16| {
        packet[20..22].copy_from_slice(&source.to_be_bytes());
        packet[22..24].copy_from_slice(&destination.to_be_bytes());
        packet
    };
    let up = with_ports(udp(site, outside, 0, b"question"), 40_000, 53);
    let down = with_ports(udp(outside, site, 0, b"answer"), 53, 40_000);
    let facts = |packet: &[u8], direction| Facts::of(&IpView::parse(packet).expect("a packet"), packet, direction);
    let (up, down) = (facts(&up, Direction::Up), facts(&down, Direction::Down));
    assert_eq!(up, down);
    assert_eq!((up.src, up.dst, up.ports), (site, outside, Some((40_000, 53))));
}

#[test]
fn a_class_that_no_packet_can_be_of_is_refused_with_the_one_that_has_them() {
    let wide = class("office", Matches { dst: vec![net("192.0.2.0/24")], ..Matches::default() });
    let narrow = Matches { dst: vec![net("192.0.2.128/25")], proto: vec![6], ..Matches::default() };
    let error =
        Policy::new(Default::default(), vec![wide.clone(), class("mail", narrow.clone())]).expect_err("never reached");
    assert_eq!(
        error.to_string(),
        "no packet is ever of class \"mail\": all that it matches is of \"office\" before it; put it in front of that"
    );
    assert_eq!(error.class(), Some(1));
    Policy::new(Default::default(), vec![class("mail", narrow), wide]).expect("the other order is good");
    let error =
        Policy::new(Default::default(), vec![class("all", Matches::default()), class("late", Matches::default())]);
    assert!(matches!(error, Err(PolicyError::Unreachable { class: 1, .. })));
}

#[test]
fn a_class_with_a_window_has_its_packets_only_while_that_is_open() {
    let night = Window { days: 0b001_1111, from: 22 * 60, until: 6 * 60 };
    let weekend = Window { days: 0b110_0000, from: 0, until: 24 * 60 };
    let within = |name: &str, dport, window| {
        class(name, Matches { dport: vec![dport..=dport], window: Some(window), ..Matches::default() })
    };
    let classes = vec![within("backups", 873, night), within("games", 3074, weekend), within("mirror", 874, night)];
    let policy = Policy::new(Default::default(), classes).expect("a good policy");
    assert_eq!(policy.windows(), [night, weekend], "each once");
    let class = |dport, open| policy.classify(&facts("192.0.2.1", 6, dport, 0), open);
    assert_eq!([0b00, 0b01, 0b10, 0b11].map(|open| class(873, open)), [3, 0, 3, 0]);
    assert_eq!([0b00, 0b01, 0b10, 0b11].map(|open| class(3074, open)), [3, 3, 1, 1]);
    assert_eq!([0b00, 0b01, 0b10, 0b11].map(|open| class(874, open)), [3, 2, 3, 2]);
    assert_eq!([0, 1, 3].map(|at| policy.is_open(at, 0b01)), [true, false, true]);
    // The same packets at other hours, or at any time.
    let (at_night, always) = (within("a", 873, night), Matches { dport: vec![873..=873], ..Matches::default() });
    let later = [within("b", 873, weekend), Class { name: "b".into(), matches: always, ..Class::rest() }];
    for class in later {
        Policy::new(Default::default(), vec![at_night.clone(), class]).expect("it has packets at other hours");
    }
    let same = Policy::new(Default::default(), vec![at_night, within("b", 873, night)]);
    assert!(matches!(same, Err(PolicyError::Unreachable { class: 1, .. })));
    let many = (0..65).map(|n| within(&format!("{n}"), n, Window { days: 1, from: n, until: n + 1 }));
    let many = Policy::new(Default::default(), many.collect());
    assert_eq!(many, Err(PolicyError::TooManyWindows { class: 64 }));
}

#[test]
fn what_cannot_be_is_refused() {
    let of = |links: &[u8]| Class {
        up: Treatment { links: links.to_vec(), ..Treatment::default() },
        ..class("voice", Matches { dscp: 1, ..Matches::default() })
    };
    for (classes, expected) in [
        (vec![of(&[8])], "class \"voice\" names slot 8, which does not exist; slots are 0 to 7"),
        (vec![of(&[1, 0, 1])], "class \"voice\" names slot 1, which the list has twice"),
        (
            vec![of(&[]), class("voice", Matches { dscp: 2, ..Matches::default() })],
            "there are two classes \"voice\": give each a name of its own",
        ),
    ] {
        assert_eq!(Policy::new(Default::default(), classes).expect_err("wrong").to_string(), expected);
    }
    let many = (0..300).map(|n| class(&format!("{n}"), Matches { dport: vec![n..=n], ..Matches::default() }));
    assert_eq!(Policy::new(Default::default(), many.collect()), Err(PolicyError::TooMany(301)));
}

#[test]
fn links_of_the_list_come_first_in_its_order_and_others_only_where_they_may() {
    let with = |links: &[u8], otherwise| Treatment { links: links.to_vec(), otherwise, ..Treatment::default() };
    let order = |treatment: &Treatment| {
        let mut slots: Vec<u8> = (0..3).filter(|slot| treatment.preference(*slot, *slot).is_some()).collect();
        slots.sort_by_key(|slot| treatment.preference(*slot, *slot));
        slots
    };
    assert_eq!(order(&with(&[], Otherwise::Any)), [0, 1, 2]);
    assert_eq!(order(&with(&[2, 0], Otherwise::Any)), [2, 0, 1]);
    assert_eq!(order(&with(&[2], Otherwise::Drop)), [2]);
}

fn any_matches() -> impl Strategy<Value = Matches> {
    let nets = || {
        let net = (0u8..4, 24u8..=32).prop_map(|(last, len)| {
            IpNet::new(IpAddr::from([192, 0, 2, last * 64]), len).expect("a length of IPv4").trunc()
        });
        proptest::collection::vec(net, 0..3)
    };
    let ports = || proptest::collection::vec((0u16..8, 0u16..4).prop_map(|(from, more)| from..=from + more), 0..3);
    let protos = proptest::collection::vec(prop_oneof![Just(6u8), Just(17u8)], 0..3);
    (nets(), nets(), protos, ports(), ports(), 0u64..8).prop_map(|(src, dst, proto, sport, dport, dscp)| Matches {
        src,
        dst,
        proto,
        sport,
        dport,
        dscp,
        window: None,
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let end = || any::<u8>().prop_map(|last| IpAddr::from([192, 0, 2, last]));
    let ports = proptest::option::of((0u16..12, 0u16..12));
    (end(), end(), prop_oneof![Just(6u8), Just(17u8)], ports, 0u8..4).prop_map(|(src, dst, proto, ports, dscp)| Facts {
        src,
        dst,
        proto,
        ports,
        dscp,
    })
}

proptest! {
    #[test]
    fn what_covers_another_matches_all_that_it_matches(
        wide in any_matches(), narrow in any_matches(), facts in proptest::collection::vec(any_facts(), 50),
    ) {
        prop_assert!(wide.covers(&wide));
        if wide.covers(&narrow) {
            for facts in facts.iter().filter(|facts| narrow.matches(facts)) {
                prop_assert!(wide.matches(facts));
            }
        }
    }

    #[test]
    fn the_first_of_all_that_match_is_found_however_many_there_are(
        matches in proptest::collection::vec(any_matches(), 0..150),
        facts in proptest::collection::vec(any_facts(), 50),
    ) {
        // Those that could never have a packet are left out, as a policy is refused that has them.
        let mut classes: Vec<Class> = Vec::new();
        for matches in matches {
            if !classes.iter().any(|class| class.matches.covers(&matches)) {
                classes.push(class(&format!("{}", classes.len()), matches));
            }
        }
        let policy = Policy::new(Default::default(), classes).expect("a good policy");
        for facts in &facts {
            let first = policy.classes().iter().position(|class| class.matches.matches(facts));
            prop_assert_eq!(Some(usize::from(policy.classify(facts, 0))), first);
        }
    }
}

#[test]
fn a_range_that_ends_before_it_begins_matches_nothing() {
    let (from, to) = (5, 3);
    let backwards = Matches { dport: vec![from..=to], ..Matches::default() };
    let policy = Policy::new(Default::default(), vec![Class { matches: backwards, ..Class::everything("none") }]);
    let policy = policy.expect("it does no harm");
    let [src, dst] = ["198.51.100.1", "192.0.2.1"].map(|text| text.parse().expect("an address"));
    for port in 2..=6 {
        let facts = Facts { src, dst, proto: 6, ports: Some((1, port)), dscp: 0 };
        assert!(!policy.classes()[0].matches.matches(&facts));
        assert_eq!(policy.classify(&facts, 0), 1, "port {port}");
    }
}
