use super::*;
use crate::bgp::message::{Framer, Kind, MAX_MESSAGE};
use crate::bgp::update::{self, Context};
use proptest::prelude::*;

fn seconds(count: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(count)
}

fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

fn site(id: u32, prefix: &str, withdraw_after: Option<u64>) -> Site {
    Site {
        id: PeerId(id),
        prefixes: prefixes(&[prefix]).into_iter().collect(),
        withdraw_after: withdraw_after.map(Duration::from_secs),
    }
}

const HOME: PeerId = PeerId(1);

fn home(withdraw_after: Option<u64>) -> Liveness {
    let mut liveness = Liveness::default();
    liveness.set_sites(seconds(0), [site(1, "198.51.100.0/24", withdraw_after)]);
    liveness
}

#[test]
fn nothing_is_announced_before_the_first_path_is_up() {
    let mut liveness = home(Some(10));
    assert!(liveness.wanted().is_empty());
    // Down without ever having been up: still nothing, and nothing to wait for.
    liveness.unreachable(seconds(1), HOME);
    assert_eq!((liveness.wanted(), liveness.poll_timeout()), (BTreeSet::new(), None));
    liveness.reachable(HOME);
    assert_eq!(liveness.wanted(), prefixes(&["198.51.100.0/24"]));
}

#[test]
fn it_is_withdrawn_when_the_time_is_over_and_announced_again_at_once() {
    let mut liveness = home(Some(10));
    liveness.reachable(HOME);
    liveness.unreachable(seconds(100), HOME);
    assert_eq!(liveness.poll_timeout(), Some(seconds(110)));
    liveness.handle_timeout(seconds(109));
    assert_eq!(liveness.standing(HOME), Some(Standing::Lingering { since: seconds(100) }));
    liveness.handle_timeout(seconds(110));
    assert_eq!(liveness.standing(HOME), Some(Standing::Withdrawn { since: seconds(100) }));
    assert_eq!((liveness.wanted(), liveness.poll_timeout()), (BTreeSet::new(), None));
    liveness.reachable(HOME);
    assert!(!liveness.wanted().is_empty());
}

#[test]
fn a_path_that_comes_back_in_time_stops_the_clock() {
    let mut liveness = home(Some(10));
    liveness.reachable(HOME);
    liveness.unreachable(seconds(100), HOME);
    liveness.reachable(HOME);
    assert_eq!(liveness.poll_timeout(), None);
    // The next outage has its whole time again; news of the same outage does not lengthen it.
    liveness.unreachable(seconds(200), HOME);
    liveness.unreachable(seconds(205), HOME);
    assert_eq!(liveness.poll_timeout(), Some(seconds(210)));
}

#[test]
fn never_is_never_and_at_once_is_at_once() {
    let mut liveness = home(None);
    liveness.reachable(HOME);
    liveness.unreachable(seconds(1), HOME);
    liveness.handle_timeout(seconds(1_000_000));
    assert!(!liveness.wanted().is_empty());
    let mut liveness = home(Some(0));
    liveness.reachable(HOME);
    liveness.unreachable(seconds(1), HOME);
    assert!(liveness.wanted().is_empty());
}

#[test]
fn a_reload_leaves_others_alone_and_withdraws_what_is_gone() {
    let mut liveness = home(Some(10));
    liveness.set_sites(seconds(0), [site(1, "198.51.100.0/24", Some(10)), site(2, "192.0.2.0/24", None)]);
    liveness.reachable(HOME);
    liveness.reachable(PeerId(2));
    liveness.unreachable(seconds(100), HOME);
    // Site 2 goes, site 3 comes, and site 1 gets a time that is over already.
    liveness.set_sites(seconds(105), [site(1, "198.51.100.0/24", Some(5)), site(3, "203.0.113.0/24", None)]);
    assert!(liveness.wanted().is_empty());
    assert_eq!(liveness.standing(PeerId(3)), Some(Standing::NeverUp));
    assert_eq!(liveness.standing(PeerId(2)), None);
    liveness.reachable(PeerId(2));
    assert!(liveness.wanted().is_empty(), "news of a site that is gone announces nothing");
}

fn external() -> RouteAttributes {
    RouteAttributes {
        local_as: 64500,
        internal: false,
        four_octet_as: true,
        next_hop_v4: Some("203.0.113.2".parse().expect("an address")),
        next_hop_v6: Some("2001:db8:ffff::2".parse().expect("an address")),
        families: Families::ALL,
        extended_next_hop: false,
        max_message: MAX_MESSAGE,
        only_to_customer: None,
        graceful_shutdown: false,
    }
}

/// All UPDATEs towards `wanted`.
fn updates(advertised: &mut Advertised, wanted: &BTreeSet<IpNet>, attributes: &RouteAttributes) -> Vec<Bytes> {
    advertised.want(wanted, attributes);
    std::iter::from_fn(|| advertised.next_message(attributes)).collect()
}

/// Announced and withdrawn, as our strict reader counts them.
fn counts(update: &Bytes, attributes: &RouteAttributes) -> (usize, usize) {
    let mut framer = Framer::default();
    framer.extend();
    framer.push(update);
    let frame = framer.next_frame().expect("a good frame").expect("a whole one");
    assert_eq!(frame.kind, Kind::Update);
    let context = Context {
        families: Families::ALL,
        four_octet_as: attributes.four_octet_as,
        internal: attributes.internal,
        add_path: Families::NONE,
        extended_next_hop: attributes.extended_next_hop,
    };
    let update = update::decode(&frame.body, &context).expect("a good UPDATE");
    assert_eq!((update.fault, update.discarded), (None, 0));
    let announced = update.announced.iter().map(|announced| announced.prefixes.len()).sum();
    (announced, update.withdrawn.len())
}

/// The very octets that tshark 4.0 dissected without a complaint, and whose routes BIRD 2.0.12 showed.
#[test]
fn our_updates_are_octet_for_octet_what_bird_took() {
    let mut advertised = Advertised::default();
    let sent = updates(&mut advertised, &prefixes(&["198.51.100.0/24", "2001:db8:100::/48"]), &external());
    let marker = [0xff; 16];
    let ipv4: &[u8] = &[
        0, 47, 2, 0, 0, 0, 20, 0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfb, 0xf4, 0x40, 3, 4, 203, 0, 113, 2, 24, 198,
        51, 100,
    ];
    let ipv6: &[u8] = &[
        0, 68, 2, 0, 0, 0, 45, 0x90, 14, 0, 28, 0, 2, 1, 16, 0x20, 1, 0x0d, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 2, 0, 48, 0x20, 1, 0x0d, 0xb8, 1, 0, 0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfb, 0xf4,
    ];
    assert_eq!(sent, [[&marker, ipv4].concat(), [&marker, ipv6].concat()]);
    let sent = updates(&mut advertised, &prefixes(&["2001:db8:100::/48"]), &external());
    assert_eq!(sent, [[&marker, &[0, 27, 2, 0, 4, 24, 198, 51, 100, 0, 0][..]].concat()]);
    let sent = updates(&mut advertised, &BTreeSet::new(), &external());
    let unreach: &[u8] = &[0, 37, 2, 0, 0, 0, 14, 0x90, 15, 0, 10, 0, 2, 1, 48, 0x20, 1, 0x0d, 0xb8, 1, 0];
    assert_eq!(sent, [[&marker, unreach].concat()]);
}

#[test]
fn inside_our_as_the_path_is_empty_and_local_pref_is_there() {
    let attributes = RouteAttributes { internal: true, ..external() };
    let mut advertised = Advertised::default();
    let sent = updates(&mut advertised, &prefixes(&["198.51.100.0/24"]), &attributes);
    let values: &[u8] = &[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4, 203, 0, 113, 2, 0x40, 5, 4, 0, 0, 0, 100];
    assert_eq!(&sent[0][23..23 + values.len()], values);
    assert_eq!(counts(&sent[0], &attributes), (1, 0));
}

#[test]
fn a_speaker_of_two_octets_gets_as_trans_and_the_whole_path_beside() {
    let attributes = RouteAttributes { local_as: 4_200_000_000, four_octet_as: false, ..external() };
    let mut advertised = Advertised::default();
    let sent = updates(&mut advertised, &prefixes(&["198.51.100.0/24"]), &attributes);
    let values: &[u8] = &[
        0x40, 1, 1, 0, 0x40, 2, 4, 2, 1, 0x5b, 0xa0, 0x40, 3, 4, 203, 0, 113, 2, 0xc0, 17, 6, 2, 1, 0xfa, 0x56, 0xea, 0,
    ];
    assert_eq!(&sent[0][23..23 + values.len()], values);
    assert_eq!(counts(&sent[0], &attributes), (1, 0));
}

#[test]
fn a_family_without_next_hop_or_not_spoken_is_not_announced_and_says_so() {
    let wanted = prefixes(&["198.51.100.0/24", "2001:db8:100::/48"]);
    let no_hop = RouteAttributes { next_hop_v6: None, ..external() };
    let not_spoken = RouteAttributes { families: Families { ipv4: true, ipv6: false }, ..external() };
    for attributes in [no_hop, not_spoken] {
        let mut advertised = Advertised::default();
        assert_eq!(updates(&mut advertised, &wanted, &attributes).len(), 1);
        assert_eq!(advertised.told(), &prefixes(&["198.51.100.0/24"]));
        assert!(attributes.why_not(Family::Ipv6).is_some());
    }
}

#[test]
fn a_refresh_or_a_new_session_sends_everything_again() {
    let wanted = prefixes(&["198.51.100.0/24", "2001:db8:100::/48"]);
    let mut advertised = Advertised::default();
    assert_eq!(updates(&mut advertised, &wanted, &external()).len(), 2);
    assert_eq!(updates(&mut advertised, &wanted, &external()).len(), 0);
    advertised.repeat(Families::NONE.with(Family::Ipv6));
    assert_eq!(updates(&mut advertised, &wanted, &external()).len(), 1);
    advertised.clear();
    assert_eq!(updates(&mut advertised, &wanted, &external()).len(), 2);
}

/// RFC 7313; a hundred requests that nobody reads the answers of are one.
#[test]
fn a_refresh_is_marked_once_however_often_it_is_asked_for() {
    let mut advertised = Advertised::default();
    let wanted = prefixes(&["198.51.100.0/24"]);
    assert_eq!(updates(&mut advertised, &wanted, &external()).len(), 1);
    (0..100).for_each(|_| advertised.repeat_marked(Family::Ipv4));
    let sent = updates(&mut advertised, &wanted, &external());
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[0], Refresh::Begin(Family::Ipv4).encode());
    assert_eq!(sent[2], Refresh::End(Family::Ipv4).encode());
}

/// What a neighbour no longer wants to hear while it is being told again is withdrawn all the same.
#[test]
fn what_goes_during_a_refresh_is_withdrawn() {
    let wanted = prefixes(&["198.51.100.0/24"]);
    let mut advertised = Advertised::default();
    assert_eq!(updates(&mut advertised, &wanted, &external()).len(), 1);
    advertised.repeat(Families::ALL);
    let sent = updates(&mut advertised, &BTreeSet::new(), &external());
    assert_eq!(sent.iter().map(|update| counts(update, &external())).collect::<Vec<_>>(), [(0, 1)]);
    assert!(advertised.told().is_empty());
}

/// RFC 4724, section 2, and RFC 7313, section 4: after all else.
#[test]
fn marks_come_when_all_has_been_said() {
    let mut advertised = Advertised::default();
    advertised.mark(Mark::EndOfRib(Family::Ipv4));
    advertised.mark(Mark::EndOfRib(Family::Ipv6));
    advertised.mark(Mark::EndOfRefresh(Family::Ipv4));
    let sent = updates(&mut advertised, &prefixes(&["198.51.100.0/24"]), &external());
    assert_eq!(sent.len(), 4);
    let end = |message: &Bytes| {
        let context = Context {
            families: Families::ALL,
            four_octet_as: true,
            internal: false,
            add_path: Families::NONE,
            extended_next_hop: false,
        };
        update::decode(&message[crate::bgp::message::HEADER..], &context).expect("an UPDATE").end_of_rib
    };
    assert_eq!(sent[..3].iter().map(end).collect::<Vec<_>>(), [None, Some(Family::Ipv4), Some(Family::Ipv6)]);
    assert_eq!(sent[3], Refresh::End(Family::Ipv4).encode());
}

/// RFC 8950, RFC 9234 and RFC 8326, each as another reader sees it.
#[test]
fn what_was_agreed_on_is_said() {
    let attributes = RouteAttributes {
        next_hop_v4: None,
        extended_next_hop: true,
        only_to_customer: Some(64500),
        graceful_shutdown: true,
        ..external()
    };
    assert_eq!(attributes.why_not(Family::Ipv4), None);
    let sent = updates(&mut Advertised::default(), &prefixes(&["198.51.100.0/24"]), &attributes);
    let context = Context {
        families: Families::ALL,
        four_octet_as: true,
        internal: false,
        add_path: Families::NONE,
        extended_next_hop: true,
    };
    let update = update::decode(&sent[0][crate::bgp::message::HEADER..], &context).expect("a good UPDATE");
    let announced = &update.announced[0];
    assert_eq!(announced.next_hop.address, "2001:db8:ffff::2".parse::<IpAddr>().expect("an address"));
    assert_eq!(announced.attributes.only_to_customer, Some(64500));
    assert_eq!(announced.attributes.communities[..], [Community::GRACEFUL_SHUTDOWN]);
}

#[test]
fn ten_thousand_sites_go_in_few_full_messages() {
    let wanted: BTreeSet<IpNet> = (0..10_000u32)
        .flat_map(|n| {
            let v4 = Ipv4Addr::from(0x0a00_0000 + n * 256);
            let v6 = Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n) << 80);
            [(IpAddr::V4(v4), 24), (IpAddr::V6(v6), 48)]
        })
        .map(|(address, length)| IpNet::new(address, length).expect("a prefix"))
        .collect();
    let long = RouteAttributes { max_message: crate::bgp::message::MAX_EXTENDED_MESSAGE, ..external() };
    for (attributes, most) in [(external(), 30), (RouteAttributes { internal: true, ..external() }, 30), (long, 3)] {
        let mut advertised = Advertised::default();
        for (target, announced) in [(&wanted, 20_000), (&BTreeSet::new(), 0)] {
            let sent = updates(&mut advertised, target, &attributes);
            assert!(sent.len() <= most, "{} messages", sent.len());
            assert!(sent.iter().all(|update| update.len() <= attributes.max_message));
            let total = sent.iter().map(|update| counts(update, &attributes));
            let total = total.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            assert_eq!(total, (announced, 20_000 - announced));
        }
    }
}

proptest! {
    /// Whatever happens to the sites, what a neighbour has been told is what is wanted, and wanted is only what is
    /// configured and was up within its time (trust.md, 12).
    #[test]
    fn the_exported_set_is_a_function_of_sites_and_their_liveness(
        steps in proptest::collection::vec((0u32..4, 0u32..5, 0u64..20), 1..60),
    ) {
        let all: Vec<Site> =
            (0..4).map(|n| site(n, &format!("10.{n}.0.0/16"), [Some(10), None, Some(0), Some(3)][n as usize])).collect();
        let mut liveness = Liveness::default();
        let mut advertised = Advertised::default();
        let mut told = BTreeSet::new();
        let mut now = seconds(0);
        // The model: configured, up now, and when it was last up.
        let mut configured = [true; 4];
        let mut up: [bool; 4] = [false; 4];
        let mut last_up: [Option<Instant>; 4] = [None; 4];
        liveness.set_sites(now, all.clone());
        for (which, what, wait) in steps {
            now += Duration::from_secs(wait);
            let at = which as usize;
            for (up, last) in up.iter().zip(&mut last_up) {
                if *up {
                    *last = Some(now);
                }
            }
            match what {
                0 | 1 => {
                    liveness.reachable(PeerId(which));
                    if configured[at] {
                        (up[at], last_up[at]) = (true, Some(now));
                    }
                }
                2 | 3 => {
                    liveness.unreachable(now, PeerId(which));
                    up[at] = false;
                }
                _ => {
                    configured[at] = !configured[at];
                    (up[at], last_up[at]) = (false, None);
                    liveness.set_sites(now, all.iter().filter(|site| configured[site.id.0 as usize]).cloned());
                }
            }
            liveness.handle_timeout(now);
            let expected: BTreeSet<IpNet> = all
                .iter()
                .enumerate()
                .filter(|(n, site)| {
                    let recent = |last: Instant| site.withdraw_after.is_none_or(|after| last + after > now);
                    configured[*n] && (up[*n] || last_up[*n].is_some_and(recent))
                })
                .flat_map(|(_, site)| site.prefixes.clone())
                .collect();
            prop_assert_eq!(liveness.wanted(), expected.clone());
            for update in updates(&mut advertised, &liveness.wanted(), &external()) {
                apply(&update, &mut told);
            }
            prop_assert_eq!(&told, &expected);
        }
    }
}

/// What a neighbour makes of an UPDATE of IPv4 routes, by another reader than ours.
fn apply(update: &Bytes, table: &mut BTreeSet<IpNet>) {
    let parsed = bgpkit_parser::parser::bgp::parse_bgp_message(&mut update.clone(), false, &AsnLength::Bits32);
    let Ok(BgpMessage::Update(update)) = parsed else { panic!("not an UPDATE") };
    for gone in update.withdrawn_prefixes {
        assert!(table.remove(&gone.prefix), "{} was not there", gone.prefix);
    }
    for new in update.announced_prefixes {
        assert!(table.insert(new.prefix), "{} was there", new.prefix);
    }
}
