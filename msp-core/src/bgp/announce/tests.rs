use super::*;
use crate::bgp::message::{Framer, MAX_MESSAGE};
use crate::bgp::update::{self, Aggregator, Context, ExtendedCommunity, LargeCommunity};
use bgpkit_parser::models::{AsnLength, BgpMessage};
use proptest::prelude::*;

fn seconds(count: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(count)
}

fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

fn external() -> Terms {
    Terms {
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

/// A neighbour of whom each message is two minutes later than the one before: nothing has to wait.
struct Told {
    advertised: Advertised,
    now: Instant,
}

impl Told {
    /// A session on these terms.
    fn new(terms: Terms) -> Told {
        let mut advertised = Advertised::default();
        advertised.establish(seconds(0), terms);
        Told { advertised, now: seconds(0) }
    }

    /// All UPDATEs towards `wanted`.
    fn updates(&mut self, wanted: &BTreeSet<IpNet>) -> Vec<Bytes> {
        self.now += 2 * WINDOW;
        self.advertised.handle_timeout(self.now);
        for prefix in self.advertised.routes.keys().copied().filter(|p| !wanted.contains(p)).collect::<Vec<_>>() {
            self.advertised.want(self.now, prefix, None);
        }
        wanted.iter().for_each(|prefix| self.advertised.want(self.now, *prefix, Some(Arc::default())));
        drain(&mut self.advertised, self.now)
    }
}

/// All that is to be said now.
fn drain(advertised: &mut Advertised, now: Instant) -> Vec<Bytes> {
    std::iter::from_fn(|| advertised.next_message(now)).collect()
}

/// Announced and withdrawn, as our strict reader counts them.
fn counts(update: &Bytes, terms: &Terms) -> (usize, usize) {
    let mut framer = Framer::default();
    framer.extend();
    framer.push(update);
    let frame = framer.next_frame().expect("a good frame").expect("a whole one");
    assert_eq!(frame.kind, Kind::Update);
    let context = Context {
        families: Families::ALL,
        four_octet_as: terms.four_octet_as,
        internal: terms.internal,
        add_path: Families::NONE,
        extended_next_hop: terms.extended_next_hop,
    };
    let update = update::decode(&frame.body, &context).expect("a good UPDATE");
    assert_eq!((update.fault, update.discarded), (None, 0));
    let announced = update.announced.iter().map(|announced| announced.prefixes.len()).sum();
    (announced, update.withdrawn.len())
}

/// The very octets that tshark 4.0 dissected without a complaint, and whose routes BIRD 2.0.12 showed.
#[test]
fn our_updates_are_octet_for_octet_what_bird_took() {
    let mut told = Told::new(external());
    let sent = told.updates(&prefixes(&["198.51.100.0/24", "2001:db8:100::/48"]));
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
    let sent = told.updates(&prefixes(&["2001:db8:100::/48"]));
    assert_eq!(sent, [[&marker, &[0, 27, 2, 0, 4, 24, 198, 51, 100, 0, 0][..]].concat()]);
    let sent = told.updates(&BTreeSet::new());
    let unreach: &[u8] = &[0, 37, 2, 0, 0, 0, 14, 0x90, 15, 0, 10, 0, 2, 1, 48, 0x20, 1, 0x0d, 0xb8, 1, 0];
    assert_eq!(sent, [[&marker, unreach].concat()]);
}

#[test]
fn inside_our_as_the_path_is_empty_and_local_pref_is_there() {
    let terms = Terms { internal: true, ..external() };
    let mut told = Told::new(terms);
    let sent = told.updates(&prefixes(&["198.51.100.0/24"]));
    let values: &[u8] = &[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4, 203, 0, 113, 2, 0x40, 5, 4, 0, 0, 0, 100];
    assert_eq!(&sent[0][23..23 + values.len()], values);
    assert_eq!(counts(&sent[0], &terms), (1, 0));
}

#[test]
fn a_speaker_of_two_octets_gets_as_trans_and_the_whole_path_beside() {
    let terms = Terms { local_as: 4_200_000_000, four_octet_as: false, ..external() };
    let mut told = Told::new(terms);
    let sent = told.updates(&prefixes(&["198.51.100.0/24"]));
    let values: &[u8] = &[
        0x40, 1, 1, 0, 0x40, 2, 4, 2, 1, 0x5b, 0xa0, 0x40, 3, 4, 203, 0, 113, 2, 0xc0, 17, 6, 2, 1, 0xfa, 0x56, 0xea, 0,
    ];
    assert_eq!(&sent[0][23..23 + values.len()], values);
    assert_eq!(counts(&sent[0], &terms), (1, 0));
}

#[test]
fn a_family_without_next_hop_or_not_spoken_is_not_announced_and_says_so() {
    let wanted = prefixes(&["198.51.100.0/24", "2001:db8:100::/48"]);
    let no_hop = Terms { next_hop_v6: None, ..external() };
    let not_spoken = Terms { families: Families { ipv4: true, ipv6: false }, ..external() };
    for terms in [no_hop, not_spoken] {
        let mut told = Told::new(terms);
        assert_eq!(told.updates(&wanted).len(), 1);
        assert_eq!(told.advertised.prefixes().collect::<BTreeSet<_>>(), prefixes(&["198.51.100.0/24"]));
        let why = terms.why_not(Family::Ipv6).expect("a reason");
        assert_eq!(
            told.advertised.untold().collect::<Vec<_>>(),
            [("2001:db8:100::/48".parse().expect("a prefix"), why)]
        );
    }
}

#[test]
fn a_refresh_or_a_new_session_sends_everything_again() {
    let wanted = prefixes(&["198.51.100.0/24", "2001:db8:100::/48"]);
    let mut told = Told::new(external());
    assert_eq!(told.updates(&wanted).len(), 2);
    assert_eq!(told.updates(&wanted).len(), 0);
    told.advertised.repeat(told.now, Families::NONE.with(Family::Ipv6));
    assert_eq!(told.updates(&wanted).len(), 1);
    told.advertised.clear();
    assert_eq!(told.advertised.prefixes().count(), 0);
    told.advertised.establish(told.now, external());
    assert_eq!(told.updates(&wanted).len(), 2);
}

/// RFC 7313; a hundred requests that nobody reads the answers of are one.
#[test]
fn a_refresh_is_marked_once_however_often_it_is_asked_for() {
    let mut told = Told::new(external());
    let wanted = prefixes(&["198.51.100.0/24"]);
    assert_eq!(told.updates(&wanted).len(), 1);
    (0..100).for_each(|_| told.advertised.repeat_marked(told.now, Family::Ipv4));
    let sent = told.updates(&wanted);
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[0], Refresh::Begin(Family::Ipv4).encode());
    assert_eq!(sent[2], Refresh::End(Family::Ipv4).encode());
}

/// What a neighbour no longer wants to hear while it is being told again is withdrawn all the same.
#[test]
fn what_goes_during_a_refresh_is_withdrawn() {
    let wanted = prefixes(&["198.51.100.0/24"]);
    let mut told = Told::new(external());
    assert_eq!(told.updates(&wanted).len(), 1);
    told.advertised.repeat(told.now, Families::ALL);
    let sent = told.updates(&BTreeSet::new());
    assert_eq!(sent.iter().map(|update| counts(update, &external())).collect::<Vec<_>>(), [(0, 1)]);
    assert_eq!(told.advertised.prefixes().count(), 0);
}

/// RFC 4724, section 2, and RFC 7313, section 4: after all else.
#[test]
fn marks_come_when_all_has_been_said() {
    let mut told = Told::new(external());
    told.advertised.mark(Mark::EndOfRib(Family::Ipv4));
    told.advertised.mark(Mark::EndOfRib(Family::Ipv6));
    told.advertised.mark(Mark::EndOfRefresh(Family::Ipv4));
    let sent = told.updates(&prefixes(&["198.51.100.0/24"]));
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
    let terms = Terms {
        next_hop_v4: None,
        extended_next_hop: true,
        only_to_customer: Some(64500),
        graceful_shutdown: true,
        ..external()
    };
    assert_eq!(terms.why_not(Family::Ipv4), None);
    let sent = Told::new(terms).updates(&prefixes(&["198.51.100.0/24"]));
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
    let long = Terms { max_message: crate::bgp::message::MAX_EXTENDED_MESSAGE, ..external() };
    for (terms, most) in [(external(), 30), (Terms { internal: true, ..external() }, 30), (long, 3)] {
        let mut told = Told::new(terms);
        for (target, announced) in [(&wanted, 20_000), (&BTreeSet::new(), 0)] {
            let sent = told.updates(target);
            assert!(sent.len() <= most, "{} messages", sent.len());
            assert!(sent.iter().all(|update| update.len() <= terms.max_message));
            let total = sent.iter().map(|update| counts(update, &terms));
            let total = total.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            assert_eq!(total, (announced, 20_000 - announced));
        }
    }
}

/// All that policy can say, as bgpkit-parser reads it.
#[test]
fn what_policy_says_stands_in_the_update() {
    let said = Said {
        prepend: 2,
        med: Some(50),
        local_pref: Some(200),
        communities: [Community(64500 << 16 | 120), Community::NO_EXPORT].into(),
        extended_communities: [ExtendedCommunity([0, 2, 0xfb, 0xf4, 0, 0, 0, 1])].into(),
        large_communities: [LargeCommunity([64500, 1, 2])].into(),
        aggregator: Some(Aggregator { asn: 64500, router_id: Ipv4Addr::new(192, 0, 2, 1) }),
    };
    for (terms, path, local_pref) in
        [(external(), "64500 64500 64500", None), (Terms { internal: true, ..external() }, "", Some(200))]
    {
        let mut advertised = Advertised::default();
        advertised.establish(seconds(0), terms);
        let prefix = "198.51.100.0/24".parse().expect("a prefix");
        advertised.want(seconds(0), prefix, Some(Arc::new(said.clone())));
        let sent = drain(&mut advertised, seconds(0));
        let parsed = bgpkit_parser::parser::bgp::parse_bgp_message(&mut sent[0].clone(), false, &AsnLength::Bits32);
        let Ok(BgpMessage::Update(update)) = parsed else { panic!("not an UPDATE") };
        let read = &update.attributes;
        assert_eq!(read.validation_warnings(), []);
        assert_eq!(read.as_path().map(ToString::to_string).as_deref(), Some(path));
        assert_eq!((read.multi_exit_discriminator(), read.local_preference()), (Some(50), local_pref));
        assert_eq!(read.aggregator().map(|(asn, id)| (asn.to_u32(), id)), Some((64500, Ipv4Addr::new(192, 0, 2, 1))));
        assert!(!read.atomic_aggregate());
        let communities: Vec<String> = read.iter_communities().map(|community| community.to_string()).collect();
        // The third is how it writes a route target (RFC 4360, section 4).
        assert_eq!(communities, ["64500:120", "no-export", "0:2:64500:00000001", "64500:1:2"]);
        assert_eq!(advertised.told().collect::<Vec<_>>(), [(prefix, terms.attributes(&said))]);
    }
}

/// A neighbour with one prefix, and ways to say it.
struct One {
    advertised: Advertised,
    prefix: IpNet,
}

impl One {
    fn new() -> One {
        let mut advertised = Advertised::default();
        advertised.establish(seconds(0), external());
        One { advertised, prefix: "198.51.100.0/24".parse().expect("a prefix") }
    }

    /// From now on it is wanted with this MED, or not at all. What is said at once?
    fn want(&mut self, millis: u64, med: Option<u32>) -> Vec<Option<u32>> {
        let now = Instant::ZERO + Duration::from_millis(millis);
        let said = med.map(|med| Arc::new(Said { med: Some(med), ..Said::default() }));
        self.advertised.want(now, self.prefix, said);
        self.at(millis)
    }

    /// What is said by then: a MED, or a withdrawal.
    fn at(&mut self, millis: u64) -> Vec<Option<u32>> {
        let now = Instant::ZERO + Duration::from_millis(millis);
        if self.advertised.poll_timeout().is_some_and(|at| at <= now) {
            self.advertised.handle_timeout(now);
        }
        drain(&mut self.advertised, now).iter().map(|update| med(update).map(|(_, med)| med)).collect()
    }
}

/// The prefixes of an announcement, and its MED; nothing, if it is a withdrawal.
fn med(update: &Bytes) -> Option<(Vec<IpNet>, u32)> {
    let parsed = bgpkit_parser::parser::bgp::parse_bgp_message(&mut update.clone(), false, &AsnLength::Bits32);
    let Ok(BgpMessage::Update(update)) = parsed else { panic!("not an UPDATE") };
    let prefixes: Vec<IpNet> = update.announced_prefixes.iter().map(|prefix| prefix.prefix).collect();
    (!prefixes.is_empty()).then(|| (prefixes, update.attributes.multi_exit_discriminator().expect("a MED")))
}

#[test]
fn a_change_is_told_at_once_and_the_fourth_in_a_minute_waits() {
    let mut one = One::new();
    assert_eq!(one.want(0, Some(1)), [Some(1)]);
    assert_eq!(one.want(5_000, Some(2)), [Some(2)]);
    assert_eq!(one.want(10_000, Some(3)), [Some(3)]);
    assert_eq!(one.want(15_000, Some(4)), []);
    assert_eq!(one.want(20_000, Some(5)), []);
    assert_eq!(one.advertised.poll_timeout(), Some(seconds(60)));
    assert_eq!(one.at(59_999), []);
    assert_eq!(one.at(60_000), [Some(5)], "what is wanted then, and not what was when it began to wait");
    assert_eq!(one.want(61_000, Some(6)), []);
    assert_eq!(one.at(65_000), [Some(6)]);
}

#[test]
fn a_withdrawal_never_waits_and_what_comes_back_too_often_does() {
    let mut one = One::new();
    for millis in [0, 2_000, 4_000] {
        assert_eq!(one.want(millis, Some(1)), [Some(1)], "a home that is back is not left waiting");
        assert_eq!(one.want(millis + 1_000, None), [None]);
    }
    assert_eq!(one.want(6_000, Some(1)), []);
    let why = "it has come and gone too often in the last minute";
    assert_eq!(one.advertised.untold().collect::<Vec<_>>(), [(one.prefix, why)]);
    assert_eq!(one.at(60_000), [Some(1)]);
    assert_eq!(one.want(61_000, None), [None]);
    // What is not wanted back is not remembered for longer than it matters.
    one.at(200_000);
    assert!(one.advertised.routes.is_empty());
}

#[test]
fn what_goes_back_in_time_is_never_said() {
    let mut one = One::new();
    (0..3).for_each(|n| drop(one.want(n * 1_000, Some(n as u32))));
    assert_eq!(one.want(4_000, Some(1)), []);
    assert_eq!(one.want(5_000, Some(2)), []);
    assert_eq!(one.at(300_000), []);
}

/// A refresh tells what was told; what has to wait waits all the same.
#[test]
fn a_refresh_brings_no_change_forward() {
    let mut one = One::new();
    (0..4).for_each(|n| drop(one.want(n * 1_000, Some(n as u32))));
    one.advertised.repeat(seconds(5), Families::ALL);
    assert_eq!(one.at(5_000), [Some(2)]);
    assert_eq!(one.at(60_000), [Some(3)]);
}

#[test]
fn what_comes_within_a_tenth_of_a_second_goes_together() {
    let mut advertised = Advertised::default();
    advertised.establish(seconds(0), external());
    let prefix = |n: u32| IpNet::new(Ipv4Addr::from(0x0a00_0000 + n * 256).into(), 24).expect("a prefix");
    let (mut now, mut sent) = (seconds(0), Vec::new());
    // A thousand sites within a second.
    for number in 0..1_000 {
        now = Instant::ZERO + Duration::from_millis(number.into());
        if advertised.poll_timeout().is_some_and(|at| at <= now) {
            advertised.handle_timeout(now);
        }
        advertised.want(now, prefix(number), Some(Arc::default()));
        sent.extend(drain(&mut advertised, now).iter().map(|update| counts(update, &external()).0));
    }
    assert_eq!(sent.len(), 10);
    assert_eq!((sent[0], sent[1]), (1, 100), "the first at once, the next hundred together");
    advertised.handle_timeout(now + GATHER);
    assert_eq!(drain(&mut advertised, now + GATHER).len(), 1);
    assert_eq!(advertised.prefixes().count(), 1_000);
}

proptest! {
    /// Whatever is wanted when: no prefix is announced more than three times in any minute, no withdrawal waits for longer than
    /// what is gathered, and in the end it is told what is wanted.
    #[test]
    fn no_flapping_of_ours_becomes_a_flapping_route(
        steps in proptest::collection::vec((0u64..9_000, 0usize..3, proptest::option::of(0u32..3)), 1..120),
    ) {
        let prefixes: Vec<IpNet> = (0..3).map(|n| format!("10.{n}.0.0/16").parse().expect("a prefix")).collect();
        let mut advertised = Advertised::default();
        advertised.establish(seconds(0), external());
        let mut wanted: BTreeMap<IpNet, u32> = BTreeMap::new();
        let mut told: BTreeMap<IpNet, u32> = BTreeMap::new();
        let mut spoken: BTreeMap<IpNet, Vec<Instant>> = BTreeMap::new();
        let mut gone: BTreeMap<IpNet, Instant> = BTreeMap::new();
        let mut now = seconds(0);
        let end = (120_000, 0, None);
        for (wait, which, med_wanted) in steps.into_iter().chain([end, end]) {
            let until = now + Duration::from_millis(wait);
            // Every deadline on the way, as the daemon meets them.
            loop {
                let at = advertised.poll_timeout().filter(|&at| at <= until);
                prop_assert!(at.is_none_or(|at| at > now || at == seconds(0)), "no deadline lies in the past");
                now = at.unwrap_or(until).max(now);
                advertised.handle_timeout(now);
                for update in drain(&mut advertised, now) {
                    let said: Vec<(IpNet, Option<u32>)> = match med(&update) {
                        Some((prefixes, med)) => prefixes.into_iter().map(|prefix| (prefix, Some(med))).collect(),
                        None => withdrawn(&update).into_iter().map(|prefix| (prefix, None)).collect(),
                    };
                    for (prefix, said) in said {
                        let times = spoken.entry(prefix).or_default();
                        times.extend(said.map(|_| now));
                        let minute = times.iter().filter(|&&at| at + WINDOW > now).count();
                        prop_assert!(minute <= 3, "{} in a minute", minute);
                        match said {
                            Some(med) => told.insert(prefix, med),
                            None => told.remove(&prefix),
                        };
                    }
                }
                for (prefix, since) in &gone {
                    prop_assert!(!told.contains_key(prefix) || now < *since + GATHER, "{} waits", prefix);
                }
                if at.is_none() {
                    break;
                }
            }
            let prefix = prefixes[which];
            match med_wanted {
                Some(med) => {
                    wanted.insert(prefix, med);
                    gone.remove(&prefix);
                }
                None => {
                    wanted.remove(&prefix);
                    gone.entry(prefix).or_insert(now);
                }
            }
            let said = med_wanted.map(|med| Arc::new(Said { med: Some(med), ..Said::default() }));
            advertised.want(now, prefix, said);
        }
        now += 2 * WINDOW;
        advertised.handle_timeout(now);
        for update in drain(&mut advertised, now) {
            told.retain(|prefix, _| !withdrawn(&update).contains(prefix));
        }
        prop_assert_eq!(&told, &wanted);
        let own: BTreeSet<IpNet> = advertised.prefixes().collect();
        prop_assert_eq!(own, wanted.keys().copied().collect::<BTreeSet<_>>());
    }
}

fn withdrawn(update: &Bytes) -> Vec<IpNet> {
    let parsed = bgpkit_parser::parser::bgp::parse_bgp_message(&mut update.clone(), false, &AsnLength::Bits32);
    let Ok(BgpMessage::Update(update)) = parsed else { panic!("not an UPDATE") };
    update.withdrawn_prefixes.iter().map(|prefix| prefix.prefix).collect()
}
