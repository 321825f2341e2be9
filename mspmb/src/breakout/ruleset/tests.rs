//! The table is read by an interpreter of the little of nftables that it is made of.

use super::*;
use ipnet::IpNet;
use proptest::prelude::*;
use proto::policy::{Class, Direct, Facts};
use std::net::IpAddr;

/// A packet that comes to `routed`.
#[derive(Clone)]
struct Packet {
    iifname: &'static str,
    facts: Facts,
    tcp_flags: u32,
    state: &'static str,
    flow: u32,
    mark: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accept,
    Drop,
    Return,
}

fn chain<'a>(table: &'a [NfListObject<'static>], name: &'a str) -> impl Iterator<Item = &'a Rule<'static>> {
    table.iter().filter_map(move |object| match object {
        NfListObject::Rule(rule) if rule.chain == name => Some(rule),
        _ => None,
    })
}

/// What the chain does with the packet.
fn pass(table: &[NfListObject<'static>], name: &str, packet: &mut Packet) -> End {
    for rule in chain(table, name) {
        for statement in rule.expr.iter() {
            match statement {
                Statement::Match(condition) if !holds(condition, packet) => break,
                Statement::Match(_) | Statement::Counter(_) => {}
                Statement::Mangle(mangle) => {
                    let value = number(&mangle.value, packet).expect("marks are numbers");
                    match &mangle.key {
                        Expression::Named(NamedExpression::CT(_)) => packet.flow = value,
                        _ => packet.mark = value,
                    }
                }
                Statement::Goto(target) => return pass(table, &target.target, packet),
                Statement::Accept(_) => return End::Accept,
                Statement::Drop(_) => return End::Drop,
                Statement::Return(_) => return End::Return,
                other => panic!("not understood: {other:?}"),
            }
        }
    }
    End::Return
}

/// A number that an expression stands for; `None` where the packet has none.
fn number(expression: &Expression<'static>, packet: &Packet) -> Option<u32> {
    match expression {
        Expression::Number(number) => Some(*number),
        Expression::BinaryOperation(operation) => match &**operation {
            BinaryOperation::AND(one, other) => Some(number(one, packet)? & number(other, packet)?),
            BinaryOperation::OR(all) => all.iter().try_fold(0, |bits, one| Some(bits | number(one, packet)?)),
            other => panic!("not understood: {other:?}"),
        },
        Expression::Named(NamedExpression::CT(_)) => Some(packet.flow),
        Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })) => Some(packet.mark),
        Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::L4proto })) => Some(packet.facts.proto.into()),
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => match &*field.field {
            "dscp" => Some(packet.facts.dscp.into()),
            "flags" => Some(packet.tcp_flags),
            "sport" => packet.facts.ports.map(|(sport, _)| sport.into()),
            "dport" => packet.facts.ports.map(|(_, dport)| dport.into()),
            other => panic!("not understood: {other}"),
        },
        other => panic!("not understood: {other:?}"),
    }
}

fn holds(condition: &Match<'static>, packet: &Packet) -> bool {
    let word = match &condition.left {
        Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Iifname })) => Some(packet.iifname),
        Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Nfproto })) => {
            Some(if packet.facts.src.is_ipv4() { "ipv4" } else { "ipv6" })
        }
        Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "state" => Some(packet.state),
        _ => None,
    };
    let address = match &condition.left {
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
            // What asks for a field of a family asks for the family.
            let family = match &*field.protocol {
                "ip" => Some(true),
                "ip6" => Some(false),
                _ => None,
            };
            if family.is_some_and(|ipv4| packet.facts.src.is_ipv4() != ipv4) {
                return false;
            }
            match &*field.field {
                "saddr" => Some(packet.facts.src),
                "daddr" => Some(packet.facts.dst),
                _ => None,
            }
        }
        _ => None,
    };
    let is = |item: &Expression<'static>| match item {
        Expression::String(text) => word.is_some_and(|word| word == text),
        Expression::Named(NamedExpression::Prefix(prefix)) => {
            let Expression::String(text) = &*prefix.addr else { panic!("not understood: {prefix:?}") };
            let net: IpNet = format!("{text}/{}", prefix.len).parse().expect("a prefix");
            address.is_some_and(|address| net.contains(&address))
        }
        Expression::Range(range) => {
            let [from, to] = range.range.each_ref().map(|end| number(end, packet).expect("ends are numbers"));
            number(&condition.left, packet).is_some_and(|number| (from..=to).contains(&number))
        }
        item => number(&condition.left, packet).is_some_and(|left| number(item, packet) == Some(left)),
    };
    let found = match &condition.right {
        Expression::Named(NamedExpression::Set(items)) => items.iter().any(|item| match item {
            SetItem::Element(item) => is(item),
            other => panic!("not understood: {other:?}"),
        }),
        Expression::List(items) => items.iter().any(is),
        item => is(item),
    };
    found != (condition.op == Operator::NEQ)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn class(name: &str, matches: Matches, direct: Option<Direct>) -> Class {
    Class { matches, direct, ..Class::everything(name) }
}

fn outlets() -> [Outlet; 2] {
    [(0, "wan0", 1500), (3, "wan1", 1492)].map(|(slot, interface, mtu)| Outlet {
        slot,
        interface: interface.to_owned(),
        mtu,
    })
}

fn table(policy: &Policy, decisions: &[[Leaves; 2]]) -> Vec<NfListObject<'static>> {
    let decisions: Vec<_> =
        decisions.iter().map(|both| both.map(|leaves| Decision { leaves, why: "for a test" })).collect();
    let prefixes = [net("198.51.100.0/24"), net("2001:db8:100::/48")];
    ruleset(&prefixes, "msp0", (policy, 0), &|_| true, &decisions, &outlets())
}

/// A datagram from a host of the site that begins a flow.
fn packet(dst: &str, dport: u16) -> Packet {
    let dst = address(dst);
    let src = address(if dst.is_ipv4() { "198.51.100.7" } else { "2001:db8:100::7" });
    let facts = Facts { src, dst, proto: 17, ports: Some((40_000, dport)), dscp: 0 };
    Packet { iifname: "lan0", facts, tcp_flags: 0, state: "new", flow: 0, mark: 0 }
}

/// Films leave, the rest does not.
fn films() -> (Policy, Vec<NfListObject<'static>>) {
    let matches = Matches { dst: vec![net("192.0.2.0/24"), net("2001:db8:9::/48")], ..Matches::default() };
    let policy = Policy::new(Default::default(), vec![class("films", matches, Some(Direct::default()))]);
    let policy = policy.expect("a good policy");
    let table = table(&policy, &[[Leaves::ByUplink(0), Leaves::ByUplink(3)], [Leaves::ByTunnel; 2]]);
    (policy, table)
}

fn through(table: &[NfListObject<'static>], mut packet: Packet) -> (End, u32, u32) {
    let end = pass(table, "routed", &mut packet);
    (end, packet.flow, packet.mark)
}

#[test]
fn a_new_flow_is_marked_with_uplink_and_class_and_bits_of_others_stay() {
    let (_, table) = films();
    let others = Packet { flow: 0x1234, mark: 0x5678, ..packet("192.0.2.1", 443) };
    assert_eq!(through(&table, others), (End::Accept, 0x8008_1234, 0x8000_5678));
    assert_eq!(waiting(0, Leaves::ByUplink(0)), Some(Mark { value: 0x8008_0000, mask: 0xfff8_0000 }));
    assert_eq!(through(&table, packet("2001:db8:9::1", 443)), (End::Accept, 0xb008_0000, 0xb000_0000));
    assert_eq!(through(&table, packet("192.0.3.1", 443)), (End::Return, 0, 0));
}

#[test]
fn a_class_whose_hours_are_over_has_no_packets() {
    let (policy, _) = films();
    let decision = |leaves| [Decision { leaves, why: "for a test" }; 2];
    let decisions = [decision(Leaves::ByUplink(0)), decision(Leaves::ByUplink(3))];
    let prefixes = [net("198.51.100.0/24")];
    let table = ruleset(&prefixes, "msp0", (&policy, 0), &|id| id != 0, &decisions, &outlets());
    assert_eq!(through(&table, packet("192.0.2.1", 443)).2, mark(3).value);
}

#[test]
fn a_flow_stays_where_it_began() {
    let (policy, films) = films();
    let elsewhere = table(&policy, &[[Leaves::ByUplink(3); 2], [Leaves::ByTunnel; 2]]);
    let known = Packet { state: "established", flow: 0x8000_0000, ..packet("192.0.2.1", 443) };
    assert_eq!(through(&elsewhere, known.clone()), (End::Accept, 0x8000_0000, 0x8000_0000));
    // Also one that nobody answers: it is new for as long, and has its mark.
    assert_eq!(through(&elsewhere, Packet { state: "new", ..known.clone() }), (End::Accept, 0x8000_0000, 0x8000_0000));
    // What comes back has its mark too.
    let back = Packet { iifname: "wan0", ..known.clone() };
    assert_eq!(through(&elsewhere, back), (End::Accept, 0x8000_0000, 0x8000_0000));
    let in_tunnel = Packet { state: "established", ..packet("192.0.2.1", 443) };
    assert_eq!(through(&films, in_tunnel), (End::Return, 0, 0));
    // Its uplink is not there.
    let gone = Packet { state: "established", flow: 0xd000_0000, ..packet("192.0.2.1", 443) };
    assert_eq!(through(&films, gone).0, End::Drop);
}

#[test]
fn what_is_not_the_sites_or_for_it_is_left_alone() {
    let (_, table) = films();
    let alone = (End::Return, 0, 0);
    assert_eq!(through(&table, Packet { iifname: "wan1", ..packet("192.0.2.1", 443) }), alone);
    assert_eq!(through(&table, Packet { iifname: "msp0", ..packet("192.0.2.1", 443) }), alone);
    let mut foreign = packet("192.0.2.1", 443);
    foreign.facts.src = address("192.168.7.7");
    assert_eq!(through(&table, foreign), alone);
    assert_eq!(through(&table, packet("198.51.100.9", 443)), alone);
}

#[test]
fn tcp_in_its_midst_stays_in_the_tunnels_and_what_is_nothing_is_dropped() {
    let (_, table) = films();
    let tcp = |tcp_flags, state| {
        let mut packet = packet("192.0.2.1", 443);
        (packet.facts.proto, packet.tcp_flags, packet.state) = (6, tcp_flags, state);
        through(&table, packet)
    };
    assert_eq!(tcp(0x02, "new").0, End::Accept);
    assert_eq!(tcp(0x10, "new"), (End::Return, 0, 0));
    assert_eq!(tcp(0x12, "new"), (End::Return, 0, 0));
    assert_eq!(tcp(0x10, "invalid").0, End::Drop);
}

#[test]
fn what_nobody_has_answered_waits_where_it_may_leave_later() {
    let policy = Policy::default().with_isolation(WhenIsolated::Direct);
    let table = table(&policy, &[[Leaves::ByTunnel; 2]]);
    let waiting = waiting(0, Leaves::ByTunnel).expect("it has a mark").value;
    assert_eq!(through(&table, packet("192.0.2.1", 443)), (End::Return, waiting, 0));
    let answer = Packet { iifname: "msp0", state: "established", flow: WAITS | 7, ..packet("192.0.2.1", 443) };
    assert_eq!(through(&table, answer.clone()), (End::Return, 7, 0));
    assert_eq!(through(&table, Packet { state: "related", ..answer }), (End::Return, WAITS | 7, 0));
}

#[test]
fn another_policy_counts_anew_and_uplinks_go_on() {
    let (policy, first) = films();
    let counts = |table: &[NfListObject<'static>]| -> Vec<(String, String)> {
        let counting = table.iter().filter_map(|object| match object {
            NfListObject::Rule(rule) => Some((rule.comment.as_ref()?.to_string(), rule.chain.to_string())),
            _ => None,
        });
        counting.filter(|(name, _)| !name.starts_with("untranslated")).collect()
    };
    let decisions = [[Decision { leaves: Leaves::ByTunnel, why: "for a test" }; 2]; 2];
    let second = ruleset(&[], "msp0", (&policy, 1), &|_| true, &decisions, &[]);
    let (first, second) = (counts(&first), counts(&second));
    assert_eq!(first.len(), 2 * 3 + MAX_SLOTS);
    for ((name, before), (same, after)) in first.iter().zip(&second) {
        assert_eq!(name, same);
        assert_eq!(before == after, name.starts_with("slot"), "{name} in {before} and {after}");
    }
}

#[test]
fn nothing_leaves_untranslated_and_the_mss_fits_the_uplink() {
    let (_, table) = films();
    let shown = |name| {
        let rules = chain(&table, name).map(|rule| serde_json::to_string(&rule.expr).expect("it can be written"));
        rules.collect::<Vec<_>>()
    };
    let [by0, by3] = &shown("translate")[..] else { panic!("{table:?}") };
    assert!(by0.contains("\"wan0\"") && by0.contains("2147483648") && by0.ends_with("{\"masquerade\":null}]"), "{by0}");
    assert!(by3.contains("\"wan1\"") && by3.contains("2952790016") && by3.ends_with("{\"masquerade\":null}]"), "{by3}");
    let [guard4, guard6] = &shown("guard")[..] else { panic!("{table:?}") };
    assert!(guard4.contains("198.51.100.0") && guard4.contains("\"wan1\"") && guard4.ends_with("{\"drop\":null}]"));
    assert!(guard6.contains("2001:db8:100::") && guard6.contains("\"wan1\"") && guard6.ends_with("{\"drop\":null}]"));
    for (rule, size) in shown("through").iter().zip([1460, 1440, 1452, 1432]) {
        assert!(rule.contains("maxseg") && rule.contains(&size.to_string()), "{rule}");
    }
}

fn some_net() -> impl Strategy<Value = IpNet> {
    let text = prop_oneof![
        Just("192.0.2.0/24"),
        Just("192.0.2.128/25"),
        Just("203.0.113.7/32"),
        Just("2001:db8:9::/48"),
        Just("2001:db8:9:1::/64"),
        Just("0.0.0.0/0"),
    ];
    text.prop_map(net)
}

fn some_matches() -> impl Strategy<Value = Matches> {
    let few = |size| proptest::collection::vec(some_net(), 0..size);
    let protocols = proptest::collection::vec(prop_oneof![Just(1), Just(6), Just(17), Just(47), Just(132)], 0..3);
    let ports = || proptest::collection::vec((0u16..6, 0u16..4).prop_map(|(from, more)| from..=from + more), 0..3);
    (few(3), protocols, ports(), ports(), prop_oneof![Just(0u64), any::<u64>()])
        .prop_map(|(dst, proto, sport, dport, dscp)| Matches { dst, proto, sport, dport, dscp, ..Matches::default() })
}

proptest! {
    /// The packet filter finds the class that `proto` finds, whatever the classes before it are.
    #[test]
    fn the_first_class_that_matches_is_the_same_as_in_proto(
        matches in proptest::collection::vec(some_matches(), 1..6),
        dst in prop_oneof![
            Just("192.0.2.1"), Just("192.0.2.200"), Just("203.0.113.7"), Just("2001:db8:9::1"), Just("2001:db8:9:1::1")
        ],
        proto in prop_oneof![Just(1u8), Just(6), Just(17), Just(47), Just(132)],
        ports in (0u16..8, 0u16..8),
        dscp in 0u8..64,
    ) {
        let classes = matches.into_iter().enumerate().map(|(at, matches)| class(&at.to_string(), matches, None));
        // What could never have a packet is no policy.
        let Ok(policy) = Policy::new(Default::default(), classes.collect()) else { return Ok(()) };
        let table = table(&policy, &vec![[Leaves::ByUplink(0); 2]; policy.classes().len()]);
        let mut packet = packet(dst, 0);
        let has_ports = WITH_PORTS.contains(&proto);
        packet.facts = Facts { proto, ports: has_ports.then_some(ports), dscp, ..packet.facts };
        packet.tcp_flags = 0x02;
        let class = policy.classify(&packet.facts, 0);
        let (end, flow, _) = through(&table, packet);
        prop_assert_eq!((end, flow), (End::Accept, DIRECT.value | u32::from(class) << CLASS | WAITS));
    }
}
