use super::*;
use proptest::prelude::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn vrp(text: &str, max_length: u8, asn: u32) -> Vrp {
    Vrp { prefix: net(text), max_length, asn }
}

/// RFC 6811 as it is written: each VRP is asked.
fn by_the_letter(vrps: &[Vrp], prefix: &IpNet, origin: Option<u32>) -> Validity {
    let covering = vrps.iter().filter(|vrp| vrp.prefix.contains(prefix));
    let allows = |vrp: &Vrp| vrp.asn != 0 && Some(vrp.asn) == origin && prefix.prefix_len() <= vrp.max_length;
    let covering: Vec<&Vrp> = covering.collect();
    match covering.iter().any(|vrp| allows(vrp)) {
        true => Validity::Valid,
        false if covering.is_empty() => Validity::NotFound,
        false => Validity::Invalid,
    }
}

#[test]
fn a_route_is_valid_if_any_vrp_allows_it_and_invalid_if_only_others_are_there() {
    use Validity::{Invalid, NotFound, Valid};
    let origins = Origins::new(vec![
        vrp("10.0.0.0/8", 8, 1),
        vrp("10.1.0.0/16", 24, 2),
        vrp("10.1.0.0/16", 16, 3),
        vrp("10.1.2.0/24", 24, 4),
        vrp("192.0.2.0/24", 24, 0),
        vrp("2001:db8::/32", 48, 2),
        // AS 0 beside another takes nothing from it (RFC 6483, section 4).
        vrp("2001:db8::/32", 32, 0),
    ]);
    for (prefix, origin, expected) in [
        ("10.0.0.0/8", Some(1), Valid),
        ("10.2.0.0/16", Some(1), Invalid),
        ("10.1.0.0/16", Some(2), Valid),
        ("10.1.0.0/16", Some(3), Valid),
        ("10.1.2.0/24", Some(4), Valid),
        // Its longest match forbids it, a broader VRP allows it.
        ("10.1.2.0/24", Some(2), Valid),
        ("10.1.2.0/24", Some(3), Invalid),
        ("10.1.2.0/25", Some(4), Invalid),
        ("10.1.3.0/24", Some(4), Invalid),
        ("10.1.2.0/24", None, Invalid),
        ("0.0.0.0/0", Some(1), NotFound),
        ("11.0.0.0/8", Some(1), NotFound),
        ("11.0.0.0/8", None, NotFound),
        ("192.0.2.0/24", Some(0), Invalid),
        ("192.0.2.0/24", Some(1), Invalid),
        ("192.0.3.0/24", Some(1), NotFound),
        ("2001:db8:1::/48", Some(2), Valid),
        ("2001:db8:1::/49", Some(2), Invalid),
        ("2001:db9::/32", Some(2), NotFound),
    ] {
        assert_eq!(origins.validate(&net(prefix), origin), expected, "{prefix} of {origin:?}");
    }
    assert_eq!(
        origins.forbidden_by(&net("10.1.2.0/24")),
        "ROA 10.1.2.0/24-24 AS 4, ROA 10.1.0.0/16-16 AS 3, ROA 10.1.0.0/16-24 AS 2 and 1 more"
    );
    assert_eq!(origins.forbidden_by(&net("192.0.2.0/24")), "ROA 192.0.2.0/24-24 AS 0");
}

#[test]
fn everything_may_be_forbidden() {
    let origins = Origins::new(vec![vrp("0.0.0.0/0", 32, 0), vrp("::/0", 128, 0)]);
    for prefix in ["0.0.0.0/0", "8.8.8.0/24", "255.255.255.255/32", "::/0", "2600::/12"] {
        assert_eq!(origins.validate(&net(prefix), Some(1)), Validity::Invalid);
    }
}

/// Few bits, so that prefixes often contain each other.
fn prefixes() -> impl Strategy<Value = IpNet> {
    let v4 = (0u32..16, 0u8..=6).prop_map(|(bits, length)| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from(bits << 26), length).expect("a length")).trunc()
    });
    let v6 = (0u128..16, 0u8..=6).prop_map(|(bits, length)| {
        IpNet::V6(Ipv6Net::new(Ipv6Addr::from(bits << 122), length).expect("a length")).trunc()
    });
    prop_oneof![v4, v6]
}

fn sets() -> impl Strategy<Value = Vec<Vrp>> {
    let one = (prefixes(), 0u8..4, 0u32..4).prop_map(|(prefix, more, asn)| Vrp {
        prefix,
        max_length: prefix.prefix_len() + more,
        asn,
    });
    prop::collection::vec(one, 0..24)
}

proptest! {
    #[test]
    fn verdicts_are_those_of_the_rfc(set in sets(), routes in prop::collection::vec((prefixes(), 0u32..5), 32)) {
        let origins = Origins::new(set.clone());
        for (prefix, origin) in routes {
            let origin = Some(origin).filter(|&origin| origin < 4);
            prop_assert_eq!(origins.validate(&prefix, origin), by_the_letter(&set, &prefix, origin));
        }
    }

    #[test]
    fn a_set_tells_what_it_was_made_of(mut set in sets()) {
        let origins = Origins::new(set.clone());
        set.sort();
        set.dedup();
        prop_assert_eq!(origins.len(), set.len());
        prop_assert_eq!(origins.iter().collect::<Vec<_>>(), set);
    }

    /// No verdict changes where no change is told of, over two sets and over three.
    #[test]
    fn what_changes_is_touched(
        sets in prop::array::uniform3(sets()),
        routes in prop::collection::vec((prefixes(), 0u32..4), 32),
    ) {
        let [a, b, c] = sets.map(Origins::new);
        let mut changed = a.changed(&b);
        prop_assert_eq!(changed.is_empty(), a == b);
        for round in [&b, &c] {
            for (prefix, origin) in &routes {
                let (old, new) = (a.validate(prefix, Some(*origin)), round.validate(prefix, Some(*origin)));
                prop_assert!(old == new || changed.touches(prefix), "{prefix}: {old:?}, {new:?}");
            }
            changed.add(b.changed(&c));
        }
    }
}

#[test]
fn only_what_lies_within_a_change_is_touched() {
    let old = Origins::new(vec![vrp("10.0.0.0/8", 8, 1), vrp("11.0.0.0/8", 8, 1)]);
    let new = Origins::new(vec![vrp("10.0.0.0/8", 8, 2), vrp("11.0.0.0/8", 8, 1), vrp("10.1.0.0/16", 16, 1)]);
    let changed = old.changed(&new);
    for (prefix, touched) in [("10.0.0.0/8", true), ("10.1.0.0/16", true), ("0.0.0.0/0", false), ("11.0.0.0/8", false)]
    {
        assert_eq!(changed.touches(&net(prefix)), touched, "{prefix}");
    }
}

#[test]
fn a_first_set_changes_everything() {
    let many: Vec<Vrp> = (0..MOST_CHANGES as u32 + 1)
        .map(|n| Vrp {
            prefix: IpNet::V4(Ipv4Net::new(Ipv4Addr::from(n << 8), 24).expect("a length")),
            max_length: 24,
            asn: 1,
        })
        .collect();
    let changed = Origins::default().changed(&Origins::new(many));
    assert!(changed.touches(&net("223.255.255.0/24")));
}
