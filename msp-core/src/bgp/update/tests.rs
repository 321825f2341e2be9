use super::*;
use bgpkit_parser::models::{AsnLength, BgpMessage, BgpUpdateMessage};
use bgpkit_parser::parser::bgp::parse_bgp_message;
use bytes::Bytes;
use proptest::prelude::*;

const EXTERNAL: Context = Context {
    families: Families::ALL,
    four_octet_as: true,
    internal: false,
    add_path: Families::NONE,
    extended_next_hop: false,
};
const INTERNAL: Context = Context { internal: true, ..EXTERNAL };

const GOOD_ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const GOOD_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfb, 0xf5];
const GOOD_NEXT_HOP: &[u8] = &[0x40, 3, 4, 203, 0, 113, 1];
/// 198.51.100.0/24.
const PREFIX: &[u8] = &[24, 198, 51, 100];

fn update(withdrawn: &[u8], attributes: &[&[u8]], announced: &[u8]) -> Bytes {
    let attributes = attributes.concat();
    let mut body = Vec::new();
    body.extend_from_slice(&(withdrawn.len() as u16).to_be_bytes());
    body.extend_from_slice(withdrawn);
    body.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
    body.extend_from_slice(&attributes);
    body.extend_from_slice(announced);
    body.into()
}

/// One route with good attributes, and this one besides.
fn with(extra: &[u8]) -> Bytes {
    update(&[], &[GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, extra], PREFIX)
}

/// What bgpkit-parser makes of it: each leniency below is one that this stands before.
fn bgpkit(body: &Bytes) -> Option<BgpUpdateMessage> {
    let length = (19 + body.len() as u16).to_be_bytes();
    let message = [&[0xff; 16], &length[..], &[2], body].concat();
    match parse_bgp_message(&mut message.into(), false, &AsnLength::Bits32) {
        Ok(BgpMessage::Update(update)) => Some(update),
        _ => None,
    }
}

fn check(body: &[u8], context: Context) -> Result<Update, Notification> {
    decode(body, &context)
}

fn nlri(prefix: &str) -> Nlri {
    Nlri { prefix: prefix.parse().expect("a prefix"), path_id: 0 }
}

/// 2001:db8:100::/48 by way of 2001:db8::1.
const REACH: &[u8] = &[
    0x80, 14, 28, 0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 48, 0x20, 1, 0xd, 0xb8, 1, 0,
];

#[test]
fn a_good_update_is_told_whole() {
    let extra: &[&[u8]] = &[
        &[0x80, 4, 4, 0, 0, 0, 50],
        &[0x40, 6, 0],
        &[0xc0, 7, 8, 0, 0, 0xfb, 0xf5, 192, 0, 2, 7],
        &[0xc0, 8, 8, 0xfb, 0xf5, 0, 1, 0xff, 0xff, 0, 0],
        &[0xc0, 16, 8, 0, 2, 0xfb, 0xf5, 0, 0, 0, 1],
        &[0xc0, 32, 12, 0, 0, 0xfb, 0xf5, 0, 0, 0, 1, 0, 0, 0, 2],
        &[0xc0, 35, 4, 0, 0, 0xfb, 0xf5],
    ];
    let update = check(&with(&extra.concat()), EXTERNAL).expect("a good UPDATE");
    let attributes = Attributes {
        origin: Origin::Igp,
        as_path: AsPath::sequence(&[64501]),
        med: Some(50),
        atomic_aggregate: true,
        aggregator: Some(Aggregator { asn: 64501, router_id: Ipv4Addr::new(192, 0, 2, 7) }),
        communities: [Community(64501 << 16 | 1), Community::GRACEFUL_SHUTDOWN].into(),
        extended_communities: [ExtendedCommunity([0, 2, 0xfb, 0xf5, 0, 0, 0, 1])].into(),
        large_communities: [LargeCommunity([64501, 1, 2])].into(),
        only_to_customer: Some(64501),
        ..Attributes::default()
    };
    let expected = Announced {
        next_hop: NextHop { address: Ipv4Addr::new(203, 0, 113, 1).into(), link_local: None },
        prefixes: vec![nlri("198.51.100.0/24")],
        attributes: Arc::new(attributes),
    };
    assert_eq!(update, Update { announced: vec![expected], ..Update::default() });
}

#[test]
fn withdrawals_and_ipv6_are_told_too() {
    let update = check(&update(&[PREFIX, &[0]].concat(), &[], &[]), EXTERNAL).expect("a good UPDATE");
    assert_eq!(update.withdrawn, [nlri("198.51.100.0/24"), nlri("0.0.0.0/0")]);
    let update = check(&with(REACH), EXTERNAL).expect("a good UPDATE");
    let [ipv4, ipv6] = &update.announced[..] else { panic!("two families: {update:?}") };
    assert_eq!(ipv4.prefixes, [nlri("198.51.100.0/24")]);
    assert_eq!(ipv6.prefixes, [nlri("2001:db8:100::/48")]);
    assert_eq!(ipv6.next_hop.address, "2001:db8::1".parse::<IpAddr>().expect("an address"));
    assert!(Arc::ptr_eq(&ipv4.attributes, &ipv6.attributes));
}

#[test]
fn bits_beyond_a_prefix_say_nothing() {
    let update = check(&update(&[20, 198, 51, 0xff], &[], &[]), EXTERNAL).expect("a good UPDATE");
    assert_eq!(update.withdrawn, [nlri("198.51.240.0/20")]);
}

/// RFC 4724, section 2: an empty UPDATE for IPv4, an empty MP_UNREACH_NLRI for any family.
#[test]
fn the_end_of_a_table_is_seen() {
    let unreach = |afi| [0x80, 15, 3, 0, afi, 1];
    let end = |body: &[u8]| check(body, EXTERNAL).expect("an UPDATE").end_of_rib;
    assert_eq!(end(&update(&[], &[], &[])), Some(Family::Ipv4));
    assert_eq!(end(&update(&[], &[&unreach(1)], &[])), Some(Family::Ipv4));
    assert_eq!(end(&update(&[], &[&unreach(2)], &[])), Some(Family::Ipv6));
    assert_eq!(end(&update(PREFIX, &[&unreach(2)], &[])), None);
    assert_eq!(end(&with(&unreach(2))), None);
    assert_eq!(end(&update(PREFIX, &[], &[])), None);
}

/// RFC 7911, section 3: only where it was agreed on.
#[test]
fn path_identifiers_are_read_where_they_were_agreed_on() {
    let context = Context { add_path: Families { ipv4: true, ipv6: false }, ..EXTERNAL };
    let announced = [&[0, 0, 0, 7][..], PREFIX, &[0, 0, 0, 8], PREFIX].concat();
    let update = check(&update(&[], &[GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, REACH], &announced), context);
    let update = update.expect("a good UPDATE");
    let prefix = nlri("198.51.100.0/24");
    assert_eq!(update.announced[0].prefixes, [Nlri { path_id: 7, ..prefix }, Nlri { path_id: 8, ..prefix }]);
    assert_eq!(update.announced[1].prefixes, [nlri("2001:db8:100::/48")]);
    assert!(check(&with(&[]), context).is_err(), "a prefix without its identifier");
}

/// RFC 8950: an IPv6 next hop of an IPv4 prefix, with a link-local address or without, where it was agreed on.
#[test]
fn ipv4_goes_by_an_ipv6_next_hop_where_that_was_agreed_on() {
    let global: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    let link_local: Ipv6Addr = "fe80::1".parse().expect("an address");
    let value = [&[0, 1, 1, 32][..], &global.octets(), &link_local.octets(), &[0], PREFIX].concat();
    let reach = [&[0x80, 14, value.len() as u8], &value[..]].concat();
    let body = update(&[], &[&reach, GOOD_ORIGIN, GOOD_PATH], &[]);
    let notification = check(&body, EXTERNAL).expect_err("not agreed on");
    assert_eq!((notification.code, notification.subcode), (3, 9));
    let update = check(&body, Context { extended_next_hop: true, ..EXTERNAL }).expect("a good UPDATE");
    assert_eq!(update.announced[0].next_hop, NextHop { address: global.into(), link_local: Some(link_local) });
    assert_eq!(update.announced[0].prefixes, [nlri("198.51.100.0/24")]);
}

#[test]
fn zero_and_ten_are_two_routes_and_not_a_path_identifier() {
    let body = update(&[], &[GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP], &[0, 24, 10, 0, 0]);
    let update = check(&body, EXTERNAL).expect("a good UPDATE");
    assert_eq!(update.announced[0].prefixes, [nlri("0.0.0.0/0"), nlri("10.0.0.0/24")]);
    let guessed = bgpkit(&body).expect("it is lenient").announced_prefixes;
    assert_eq!(guessed.len(), 1, "bgpkit-parser has learnt: {guessed:?}");
}

#[test]
fn what_leaves_the_routes_in_doubt_ends_the_session() {
    let good = [GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP];
    let overlong_withdrawn = Bytes::from_static(&[0, 5, 0, 0]);
    let overlong_attributes = Bytes::from_static(&[0, 0, 0, 9, 0]);
    let reach_of = |value: &[u8]| [&[0x80, 14, value.len() as u8], value].concat();
    // A next hop of 5 octets; a prefix of 129 bits; one cut off.
    let bad_next_hop = reach_of(&[0, 2, 1, 5, 1, 2, 3, 4, 5, 0]);
    let bad_prefix = reach_of(&[&[0, 2, 1, 16][..], &[0; 17], &[129], &[0; 17]].concat());
    let cut_off = reach_of(&[&[0, 2, 1, 16][..], &[0; 17], &[64, 1]].concat());
    let unreach_cut = [0x80, 15, 2, 0, 2];
    let unreach = [0x80, 15, 3, 0, 2, 1];
    for (body, code) in [
        (overlong_withdrawn, (3, 1)),
        (overlong_attributes, (3, 1)),
        (Bytes::from_static(&[0]), (3, 1)),
        (update(&[33, 1, 2, 3, 4, 5], &[], &[]), (3, 10)),
        (update(&[24, 1, 2], &[], &[]), (3, 10)),
        (update(&[], &good, &[33, 1, 2, 3, 4, 5]), (3, 10)),
        (update(&[], &good, &[24, 1]), (3, 10)),
        (update(&[], &[&bad_next_hop], &[]), (3, 9)),
        (update(&[], &[&bad_prefix], &[]), (3, 9)),
        (update(&[], &[&cut_off], &[]), (3, 9)),
        (update(&[], &[&unreach_cut], &[]), (3, 9)),
        // Twice (RFC 7606, section 3 (g)).
        (update(&[], &[&unreach, &unreach], &[]), (3, 1)),
        // Well-known, and not known (RFC 4271, section 6.3).
        (with(&[0x40, 99, 1, 0]), (3, 2)),
        // Wrong attributes, and no routes in sight that could be withdrawn for it (RFC 7606, section 5.2).
        (update(&[], &[&[0x40, 1, 1, 3]], &[]), (3, 1)),
        (update(PREFIX, &[&[0xc0]], &[]), (3, 1)),
    ] {
        let notification = check(&body, EXTERNAL).expect_err("the session ends");
        assert_eq!((notification.code, notification.subcode), code, "{body:?}");
    }
    // Leniencies of bgpkit-parser's that stand behind this.
    assert!(bgpkit(&with(&[0x40, 99, 1, 0])).is_some());
    assert!(bgpkit(&update(&[], &[&unreach, &unreach], &[])).is_some());
}

#[test]
fn a_malformed_attribute_withdraws_its_routes_and_no_more() {
    for (what, attributes) in [
        ("ORIGIN of two octets", vec![&[0x40, 1, 2, 0, 0], GOOD_PATH, GOOD_NEXT_HOP]),
        ("ORIGIN 3", vec![&[0x40, 1, 1, 3], GOOD_PATH, GOOD_NEXT_HOP]),
        ("ORIGIN with flags of an optional", vec![&[0xc0, 1, 1, 0], GOOD_PATH, GOOD_NEXT_HOP]),
        ("AS_PATH segment type 5", vec![GOOD_ORIGIN, &[0x40, 2, 6, 5, 1, 0, 0, 0, 1], GOOD_NEXT_HOP]),
        ("AS_PATH segment overrun", vec![GOOD_ORIGIN, &[0x40, 2, 6, 2, 2, 0, 0, 0, 1], GOOD_NEXT_HOP]),
        ("AS_PATH one octet left", vec![GOOD_ORIGIN, &[0x40, 2, 7, 2, 1, 0, 0, 0, 1, 2], GOOD_NEXT_HOP]),
        ("AS_PATH empty segment", vec![GOOD_ORIGIN, &[0x40, 2, 2, 2, 0], GOOD_NEXT_HOP]),
        // RFC 7607, and RFC 5065, section 5.
        ("AS 0 in AS_PATH", vec![GOOD_ORIGIN, &[0x40, 2, 6, 2, 1, 0, 0, 0, 0], GOOD_NEXT_HOP]),
        ("AS_CONFED_SEQUENCE", vec![GOOD_ORIGIN, &[0x40, 2, 6, 3, 1, 0, 0, 0, 1], GOOD_NEXT_HOP]),
        ("NEXT_HOP 0.0.0.0", vec![GOOD_ORIGIN, GOOD_PATH, &[0x40, 3, 4, 0, 0, 0, 0]]),
        ("NEXT_HOP 224.0.0.1", vec![GOOD_ORIGIN, GOOD_PATH, &[0x40, 3, 4, 224, 0, 0, 1]]),
        ("ONLY_TO_CUSTOMER of three", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 35, 3, 0, 0, 1]]),
        ("NEXT_HOP of five", vec![GOOD_ORIGIN, GOOD_PATH, &[0x40, 3, 5, 1, 2, 3, 4, 5]]),
        ("MED of three", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0x80, 4, 3, 0, 0, 1]]),
        ("COMMUNITIES of three", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 8, 3, 0, 0, 1]]),
        ("COMMUNITIES empty", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 8, 0]]),
        ("EXTENDED COMMUNITIES of four", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 16, 4, 0, 0, 0, 1]]),
        ("LARGE_COMMUNITY of four", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 32, 4, 0, 0, 0, 1]]),
        ("no ORIGIN", vec![GOOD_PATH, GOOD_NEXT_HOP]),
        ("no AS_PATH", vec![GOOD_ORIGIN, GOOD_NEXT_HOP]),
        ("no NEXT_HOP", vec![GOOD_ORIGIN, GOOD_PATH]),
        ("an attribute beyond the block", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 8, 8, 0, 0, 0, 1]]),
        ("two octets left over", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0, 8]]),
        ("one octet left over", vec![GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP, &[0xc0]]),
    ] {
        let attributes: Vec<&[u8]> = attributes;
        let update = check(&update(&[], &attributes, PREFIX), EXTERNAL).expect(what);
        assert!(update.fault.is_some(), "{what}");
        assert_eq!((&update.withdrawn[..], &update.announced[..]), (&[nlri("198.51.100.0/24")][..], &[][..]), "{what}");
    }
    // Which bgpkit-parser passes without a word: an attribute that overruns its block, and octets left over.
    for extra in [&[0xc0, 8, 8, 0, 0, 0, 1][..], &[0xc0, 8], &[0xc0]] {
        assert!(bgpkit(&with(extra)).is_some_and(|update| !update.attributes.has_validation_warnings()));
    }
}

#[test]
fn what_decides_nothing_is_dropped_alone() {
    for (what, extra) in [
        ("LOCAL_PREF from outside", &[0x40, 5, 3, 0, 0, 1][..]),
        ("ORIGINATOR_ID from outside", &[0x80, 9, 1, 0]),
        ("CLUSTER_LIST from outside", &[0x80, 10, 1, 0]),
        ("ATOMIC_AGGREGATE with content", &[0x40, 6, 1, 0]),
        ("AGGREGATOR of six", &[0xc0, 7, 6, 0, 1, 1, 2, 3, 4]),
        ("AS4_PATH from a speaker of four octets", &[0xc0, 17, 6, 2, 1, 0, 0, 0, 1]),
        ("AGGREGATOR of AS 0", &[0xc0, 7, 8, 0, 0, 0, 0, 1, 2, 3, 4]),
        ("a second ORIGIN", &[0x40, 1, 1, 9]),
    ] {
        let update = check(&with(extra), EXTERNAL).expect(what);
        assert_eq!((update.discarded, update.fault, update.announced.len()), (1, None, 1), "{what}");
        assert_eq!(update.announced[0].attributes.local_pref, None);
    }
    // Unknown and optional: passed over, transitive or not (trust.md 14).
    for flags in [0x80, 0xc0, 0xe0, 0xd0] {
        let extra: &[u8] = if flags == 0xd0 { &[flags, 99, 0, 2, 1, 2] } else { &[flags, 99, 2, 1, 2] };
        let update = check(&with(extra), EXTERNAL).expect("an unknown attribute");
        assert_eq!((update.discarded, update.fault, update.announced.len()), (0, None, 1));
    }
}

#[test]
fn inside_an_as_local_pref_is_needed_and_checked() {
    let fault = |extra: &[u8]| check(&with(extra), INTERNAL).expect("an UPDATE").fault;
    assert_eq!(fault(&[]), Some(Fault::Missing("LOCAL_PREF")));
    assert_eq!(fault(&[0x40, 5, 3, 0, 0, 1]), Some(Fault::Malformed("LOCAL_PREF")));
    assert_eq!(fault(&[0x40, 5, 4, 0, 0, 0, 1]), None);
}

#[test]
fn a_family_that_was_not_offered_is_not_judged() {
    let evpn: &[u8] = &[0x80, 14, 9, 0, 25, 70, 4, 1, 2, 3, 4, 0];
    assert_eq!(check(&update(&[], &[evpn], &[]), EXTERNAL).expect("an UPDATE"), Update::default());
    let ipv4_only = Context { families: Families { ipv4: true, ipv6: false }, ..EXTERNAL };
    let ipv6: &[u8] = &[0x80, 14, 6, 0, 2, 1, 0, 0, 255];
    assert_eq!(check(&update(&[], &[ipv6], &[]), ipv4_only).expect("an UPDATE"), Update::default());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = check(&bytes, EXTERNAL);
    }

    /// Bytes that get past the first lengths.
    #[test]
    fn any_attributes_are_survived(
        attributes in proptest::collection::vec(any::<u8>(), 0..200),
        announced in proptest::collection::vec(any::<u8>(), 0..20),
        internal: bool,
        four_octet_as: bool,
        extended_next_hop: bool,
        add_path: bool,
    ) {
        let add_path = Families { ipv4: add_path, ipv6: add_path };
        let context = Context { internal, four_octet_as, add_path, extended_next_hop, ..EXTERNAL };
        let _ = check(&update(&[], &[&attributes], &announced), context);
    }

    /// One octet changed in a good UPDATE never makes a different number of routes pass as good ones.
    #[test]
    fn one_flipped_octet_in_the_attributes_never_adds_a_route(at in 4usize..24, value: u8) {
        let mut body = with(&[]).to_vec();
        body[at] = value;
        if let Ok(update) = check(&body, EXTERNAL) {
            let announced: usize = update.announced.iter().map(|announced| announced.prefixes.len()).sum();
            prop_assert_eq!(announced + update.withdrawn.len(), 1);
        }
    }
}
