use super::*;
use bgpkit_parser::models::{AsnLength, BgpMessage, BgpUpdateMessage};
use bgpkit_parser::parser::bgp::parse_bgp_message;
use proptest::prelude::*;

const EXTERNAL: Context = Context { families: Families::ALL, four_octet_as: true, internal: false };
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

#[test]
fn good_updates_are_counted() {
    let received = check(&with(&[]), EXTERNAL).expect("a good UPDATE");
    assert_eq!(received, Received { announced: 1, ..Received::default() });
    let received = check(&update(&[PREFIX, &[0]].concat(), &[], &[]), EXTERNAL).expect("a good UPDATE");
    assert_eq!(received, Received { withdrawn: 2, ..Received::default() });
    // 2001:db8:100::/48 by MP_REACH_NLRI, without a NEXT_HOP; and the end of a table (RFC 4724).
    let reach: &[u8] = &[
        0x80, 14, 28, 0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 48, 0x20, 1, 0xd, 0xb8,
        1, 0,
    ];
    let received = check(&update(&[], &[reach, GOOD_ORIGIN, GOOD_PATH], &[]), EXTERNAL).expect("a good UPDATE");
    assert_eq!(received, Received { announced: 1, ..Received::default() });
    let unreach: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    assert_eq!(check(&update(&[], &[unreach], &[]), EXTERNAL), Ok(Received::default()));
    assert_eq!(check(&update(&[], &[], &[]), EXTERNAL), Ok(Received::default()));
}

#[test]
fn zero_and_ten_are_two_routes_and_not_a_path_identifier() {
    let body = update(&[], &[GOOD_ORIGIN, GOOD_PATH, GOOD_NEXT_HOP], &[0, 24, 10, 0, 0]);
    assert_eq!(check(&body, EXTERNAL).expect("a good UPDATE").announced, 2);
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
        let received = check(&update(&[], &attributes, PREFIX), EXTERNAL).expect(what);
        assert!(received.withdraw.is_some(), "{what}");
        assert_eq!(received.announced, 1, "{what}");
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
        ("a second ORIGIN", &[0x40, 1, 1, 9]),
    ] {
        let received = check(&with(extra), EXTERNAL).expect(what);
        assert_eq!((received.discarded, received.withdraw), (1, None), "{what}");
    }
    // Unknown and optional: passed over, transitive or not (trust.md 14).
    for flags in [0x80, 0xc0, 0xe0, 0xd0] {
        let extra: &[u8] = if flags == 0xd0 { &[flags, 99, 0, 2, 1, 2] } else { &[flags, 99, 2, 1, 2] };
        let received = check(&with(extra), EXTERNAL).expect("an unknown attribute");
        assert_eq!((received.discarded, received.withdraw), (0, None));
    }
}

#[test]
fn inside_an_as_local_pref_is_needed_and_checked() {
    assert!(check(&with(&[]), INTERNAL).expect("an UPDATE").withdraw.is_some());
    assert!(check(&with(&[0x40, 5, 3, 0, 0, 1]), INTERNAL).expect("an UPDATE").withdraw.is_some());
    assert_eq!(check(&with(&[0x40, 5, 4, 0, 0, 0, 1]), INTERNAL).expect("an UPDATE").withdraw, None);
}

#[test]
fn a_family_that_was_not_offered_is_not_judged() {
    let evpn: &[u8] = &[0x80, 14, 9, 0, 25, 70, 4, 1, 2, 3, 4, 0];
    assert_eq!(check(&update(&[], &[evpn], &[]), EXTERNAL).expect("an UPDATE"), Received::default());
    let ipv4_only = Context { families: Families { ipv4: true, ipv6: false }, ..EXTERNAL };
    let ipv6: &[u8] = &[0x80, 14, 6, 0, 2, 1, 0, 0, 255];
    assert_eq!(check(&update(&[], &[ipv6], &[]), ipv4_only).expect("an UPDATE"), Received::default());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = check(&Bytes::from(bytes), EXTERNAL);
    }

    /// Bytes that get past the first lengths.
    #[test]
    fn any_attributes_are_survived(
        attributes in proptest::collection::vec(any::<u8>(), 0..200),
        announced in proptest::collection::vec(any::<u8>(), 0..20),
        internal: bool,
        four_octet_as: bool,
    ) {
        let context = Context { internal, four_octet_as, ..EXTERNAL };
        let _ = check(&update(&[], &[&attributes], &announced), context);
    }

    /// One octet changed in a good UPDATE never makes a different number of routes pass as good ones.
    #[test]
    fn one_flipped_octet_in_the_attributes_never_adds_a_route(at in 4usize..24, value: u8) {
        let mut body = with(&[]).to_vec();
        body[at] = value;
        if let Ok(received) = check(&Bytes::from(body), EXTERNAL) {
            prop_assert_eq!(received.announced, 1);
        }
    }
}
