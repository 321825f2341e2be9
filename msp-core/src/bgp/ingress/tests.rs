use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn seconds(count: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(count)
}

fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

fn site(id: u32, prefix: &str, withdraw_after: Option<u64>) -> Site {
    Site {
        id: PeerId(id),
        name: format!("site-{id}"),
        prefixes: prefixes(&[prefix]).into_iter().collect(),
        withdraw_after: withdraw_after.map(Duration::from_secs),
    }
}

const HOME: PeerId = PeerId(1);

const TRANSIT: Export = Export { sites: true, blackholes: true };

/// No cache says anything.
fn vetted() -> Admission {
    Admission::new(64500, true)
}

/// One neighbour, and this policy.
fn with(policy: Policy) -> Ingress {
    Ingress::new(policy, None, vetted(), &[TRANSIT])
}

fn home(withdraw_after: Option<u64>) -> Ingress {
    let mut ingress = with(Policy::default());
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/24", withdraw_after)]);
    ingress
}

/// The prefixes to be announced to the first neighbour.
fn wanted(ingress: &Ingress) -> BTreeSet<IpNet> {
    ingress.tables[0].wanted.keys().copied().collect()
}

#[test]
fn nothing_is_announced_before_the_first_path_is_up() {
    let mut ingress = home(Some(10));
    assert!(wanted(&ingress).is_empty());
    // Down without ever having been up: still nothing, and nothing to wait for.
    ingress.unreachable(seconds(1), HOME);
    assert_eq!((wanted(&ingress), ingress.poll_timeout()), (BTreeSet::new(), None));
    ingress.reachable(HOME);
    assert_eq!(wanted(&ingress), prefixes(&["198.51.100.0/24"]));
}

#[test]
fn it_is_withdrawn_when_the_time_is_over_and_announced_again_at_once() {
    let mut ingress = home(Some(10));
    ingress.reachable(HOME);
    ingress.unreachable(seconds(100), HOME);
    assert_eq!(ingress.poll_timeout(), Some(seconds(110)));
    ingress.handle_timeout(seconds(109));
    assert_eq!(ingress.standing(HOME), Some(Standing::Lingering { since: seconds(100) }));
    ingress.handle_timeout(seconds(110));
    assert_eq!(ingress.standing(HOME), Some(Standing::Withdrawn { since: seconds(100) }));
    assert_eq!((wanted(&ingress), ingress.poll_timeout()), (BTreeSet::new(), None));
    ingress.reachable(HOME);
    assert!(!wanted(&ingress).is_empty());
}

#[test]
fn a_path_that_comes_back_in_time_stops_the_clock() {
    let mut ingress = home(Some(10));
    ingress.reachable(HOME);
    ingress.unreachable(seconds(100), HOME);
    ingress.reachable(HOME);
    assert_eq!(ingress.poll_timeout(), None);
    // The next outage has its whole time again; news of the same outage does not lengthen it.
    ingress.unreachable(seconds(200), HOME);
    ingress.unreachable(seconds(205), HOME);
    assert_eq!(ingress.poll_timeout(), Some(seconds(210)));
}

#[test]
fn never_is_never_and_at_once_is_at_once() {
    let mut ingress = home(None);
    ingress.reachable(HOME);
    ingress.unreachable(seconds(1), HOME);
    ingress.handle_timeout(seconds(1_000_000));
    assert!(!wanted(&ingress).is_empty());
    let mut ingress = home(Some(0));
    ingress.reachable(HOME);
    ingress.unreachable(seconds(1), HOME);
    assert!(wanted(&ingress).is_empty());
}

#[test]
fn a_reload_leaves_others_alone_and_withdraws_what_is_gone() {
    let mut ingress = home(Some(10));
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/24", Some(10)), site(2, "192.0.2.0/24", None)]);
    ingress.reachable(HOME);
    ingress.reachable(PeerId(2));
    ingress.unreachable(seconds(100), HOME);
    // Site 2 goes, site 3 comes, and site 1 gets a time that is over already.
    ingress.set_sites(seconds(105), [site(1, "198.51.100.0/24", Some(5)), site(3, "203.0.113.0/24", None)]);
    assert!(wanted(&ingress).is_empty());
    assert_eq!(ingress.standing(PeerId(3)), Some(Standing::NeverUp));
    assert_eq!(ingress.standing(PeerId(2)), None);
    ingress.reachable(PeerId(2));
    assert!(wanted(&ingress).is_empty(), "news of a site that is gone announces nothing");
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
        let mut ingress = with(Policy::default());
        let mut told = BTreeSet::new();
        let mut now = seconds(0);
        // The model: configured, up now, and when it was last up.
        let mut configured = [true; 4];
        let mut up: [bool; 4] = [false; 4];
        let mut last_up: [Option<Instant>; 4] = [None; 4];
        ingress.set_sites(now, all.clone());
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
                    ingress.reachable(PeerId(which));
                    if configured[at] {
                        (up[at], last_up[at]) = (true, Some(now));
                    }
                }
                2 | 3 => {
                    ingress.unreachable(now, PeerId(which));
                    up[at] = false;
                }
                _ => {
                    configured[at] = !configured[at];
                    (up[at], last_up[at]) = (false, None);
                    ingress.set_sites(now, all.iter().filter(|site| configured[site.id.0 as usize]).cloned());
                }
            }
            ingress.handle_timeout(now);
            let expected: BTreeSet<IpNet> = all
                .iter()
                .enumerate()
                .filter(|(n, site)| {
                    let recent = |last: Instant| site.withdraw_after.is_none_or(|after| last + after > now);
                    configured[*n] && (up[*n] || last_up[*n].is_some_and(recent))
                })
                .flat_map(|(_, site)| site.prefixes.clone())
                .collect();
            prop_assert_eq!(wanted(&ingress), expected.clone());
            for (prefix, said) in ingress.take_changes(0) {
                match said {
                    Some(_) => prop_assert!(told.insert(prefix), "{} is no change", prefix),
                    None => prop_assert!(told.remove(&prefix), "{} is no change", prefix),
                }
            }
            prop_assert_eq!(&told, &expected);
        }
    }
}

/// A rule that says nothing and is of everything.
fn rule() -> Rule {
    let when = When::default();
    Rule { sites: None, aggregates: None, neighbors: None, when, announce: None, said: Arc::default() }
}

fn patterns(names: &[&str]) -> Option<Vec<Pattern>> {
    Some(names.iter().map(|name| Pattern((*name).to_owned())).collect())
}

fn prepend(times: u8) -> Arc<Said> {
    Arc::new(Said { prepend: times, ..Said::default() })
}

fn aggregate(always: bool) -> Aggregate {
    Aggregate { name: "pool".into(), prefix: net("198.51.100.0/24"), always }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// How often each prefix is prepended towards a neighbour.
fn prepended(ingress: &Ingress, neighbor: usize) -> Vec<(String, u8)> {
    ingress.tables[neighbor].wanted.iter().map(|(prefix, said)| (prefix.to_string(), said.prepend)).collect()
}

#[test]
fn the_first_rule_that_fits_counts() {
    let rules = vec![
        Rule { sites: patterns(&["site-1"]), neighbors: Some(vec![1]), said: prepend(1), ..rule() },
        Rule { sites: patterns(&["site-*"]), said: prepend(2), ..rule() },
        Rule { said: prepend(3), ..rule() },
    ];
    let mut ingress = Ingress::new(Policy { rules, aggregates: Vec::new() }, None, vetted(), &[TRANSIT; 2]);
    let other = Site { name: "home".into(), ..site(2, "203.0.113.0/24", None) };
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/24", None), other]);
    [1, 2].into_iter().for_each(|id| ingress.reachable(PeerId(id)));
    let told = |first, second| vec![("198.51.100.0/24".to_owned(), first), ("203.0.113.0/24".to_owned(), second)];
    assert_eq!(prepended(&ingress, 0), told(2, 3));
    assert_eq!(prepended(&ingress, 1), told(1, 3));
    // Another policy: what stays as it is, is no change.
    (0..2).for_each(|place| drop(ingress.take_changes(place)));
    ingress.set_policy(Policy { rules: vec![Rule { said: prepend(3), ..rule() }], aggregates: Vec::new() });
    assert_eq!(ingress.take_changes(0).into_keys().collect::<Vec<_>>(), [net("198.51.100.0/24")]);
    assert_eq!(prepended(&ingress, 1), told(3, 3));
}

fn path(slot: u8) -> PathId {
    PathId { peer: HOME, slot, tunnel: proto::TunnelKind::WireGuard }
}

/// Slot 2 is the site's LTE.
#[test]
fn a_site_with_only_its_lte_up_has_a_longer_path() {
    let when = When { only: Some([2].into_iter().collect()), ..When::default() };
    let mut ingress = with(Policy { rules: vec![Rule { when, said: prepend(2), ..rule() }], aggregates: Vec::new() });
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/24", Some(10))]);
    let mut told = Vec::new();
    let mut note = |ingress: &mut Ingress| {
        for (_, said) in ingress.take_changes(0) {
            told.push(said.map(|said| said.prepend));
        }
    };
    for (slot, up) in [(0, true), (2, true), (0, false), (0, true), (0, false)] {
        ingress.path(path(slot), up);
        ingress.reachable(HOME);
        note(&mut ingress);
    }
    // The last path too: what is said stays as it was until it is withdrawn.
    ingress.path(path(2), false);
    ingress.unreachable(seconds(100), HOME);
    note(&mut ingress);
    ingress.handle_timeout(seconds(110));
    note(&mut ingress);
    assert_eq!(told, [Some(0), Some(2), Some(0), Some(2), None]);
}

#[test]
fn conditions_hold_together() {
    let slots = |list: &[u8]| Some(list.iter().copied().collect::<Slots>());
    let all = When::default();
    for (when, up, holds) in [
        (all, &[][..], true),
        (When { only: slots(&[1, 2]), ..all }, &[1], true),
        (When { only: slots(&[1, 2]), ..all }, &[1, 3], false),
        (When { any: slots(&[1, 2]), ..all }, &[2, 7], true),
        (When { any: slots(&[1, 2]), ..all }, &[7], false),
        (When { none: slots(&[0]), ..all }, &[1], true),
        (When { none: slots(&[0]), ..all }, &[0, 1], false),
        (When { at_least: Some(2), ..all }, &[0], false),
        (When { at_least: Some(2), at_most: Some(2), ..all }, &[0, 7], true),
        (When { at_least: Some(2), at_most: Some(2), ..all }, &[0, 1, 7], false),
        (When { none: slots(&[0]), at_least: Some(2), ..all }, &[1], false),
    ] {
        assert_eq!(when.holds(up.iter().copied().collect()), holds, "{when:?} with {up:?} up");
    }
}

#[test]
fn an_aggregate_is_there_while_a_site_within_it_is_and_hides_it() {
    let mut ingress = with(Policy { rules: Vec::new(), aggregates: vec![aggregate(false)] });
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/29", Some(10)), site(2, "198.51.100.8/29", Some(10))]);
    assert!(wanted(&ingress).is_empty());
    ingress.reachable(PeerId(1));
    ingress.reachable(PeerId(2));
    assert_eq!(wanted(&ingress), prefixes(&["198.51.100.0/24"]));
    assert_eq!(ingress.routes_of(HOME, 0), Ok(vec![net("198.51.100.0/24")]));
    assert_eq!(ingress.take_changes(0).len(), 1);
    ingress.unreachable(seconds(100), PeerId(1));
    ingress.handle_timeout(seconds(110));
    assert!(ingress.take_changes(0).is_empty(), "the other one is there yet");
    ingress.unreachable(seconds(200), PeerId(2));
    ingress.handle_timeout(seconds(210));
    assert_eq!(ingress.take_changes(0), [(net("198.51.100.0/24"), None)].into());
    ingress.set_policy(Policy { rules: Vec::new(), aggregates: vec![aggregate(true)] });
    assert_eq!(wanted(&ingress), prefixes(&["198.51.100.0/24"]), "always");
}

#[test]
fn a_rule_says_whether_site_aggregate_or_both_are_announced() {
    let said = |ingress: &Ingress| ingress.tables[0].wanted.get(&net("198.51.100.0/24")).cloned();
    let router = Aggregator { asn: 64500, router_id: std::net::Ipv4Addr::new(192, 0, 2, 1) };
    for (announce, expected) in [
        (Announce::Nothing, &[][..]),
        (Announce::Exact, &["198.51.100.0/29"]),
        (Announce::Aggregate, &["198.51.100.0/24"]),
        (Announce::Both, &["198.51.100.0/24", "198.51.100.0/29"]),
    ] {
        let rules = vec![
            Rule { aggregates: patterns(&["pool"]), said: prepend(1), ..rule() },
            Rule { announce: Some(announce), ..rule() },
        ];
        let policy = Policy { rules, aggregates: vec![aggregate(false)] };
        let mut ingress = Ingress::new(policy, Some(router), vetted(), &[TRANSIT]);
        ingress.set_sites(seconds(0), [site(1, "198.51.100.0/29", None)]);
        ingress.reachable(HOME);
        assert_eq!(wanted(&ingress), prefixes(expected), "{announce:?}");
        if let Some(said) = said(&ingress) {
            assert_eq!((said.prepend, said.aggregator), (1, Some(router)));
        }
    }
}

#[test]
fn only_an_address_of_a_site_that_is_announced_is_blackholed_and_only_where_that_is_wanted() {
    let silent = Export { sites: true, blackholes: false };
    let mut ingress = Ingress::new(Policy::default(), None, vetted(), &[TRANSIT, silent]);
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/24", Some(10))]);
    let (address, hole) = ("198.51.100.7".parse().expect("an address"), net("198.51.100.7/32"));
    let ask = Blackhole { neighbor: None, until: None };
    let elsewhere = "203.0.113.7".parse().expect("an address");
    assert_eq!(ingress.blackhole(elsewhere, ask), Err(BlackholeError::NoSite(elsewhere)));
    let not_announced = BlackholeError::NotAnnounced { address, site: "site-1".into() };
    assert_eq!(ingress.blackhole(address, ask), Err(not_announced));
    ingress.reachable(HOME);
    let only_silent = Blackhole { neighbor: Some(1), until: None };
    assert_eq!(ingress.blackhole(address, only_silent), Err(BlackholeError::NoNeighbor));
    assert_eq!(ingress.blackhole(address, Blackhole { neighbor: None, until: Some(seconds(50)) }), Ok(()));
    let said = ingress.tables[0].wanted.get(&hole).cloned().unwrap_or_default();
    assert_eq!(said.communities[..], [Community::BLACKHOLE, Community::NO_EXPORT]);
    assert!(!ingress.tables[1].wanted.contains_key(&hole));
    // It goes with its site, and comes back with it.
    ingress.unreachable(seconds(10), HOME);
    ingress.handle_timeout(seconds(20));
    assert!(wanted(&ingress).is_empty());
    ingress.reachable(HOME);
    assert_eq!(wanted(&ingress).len(), 2);
    assert_eq!(ingress.poll_timeout(), Some(seconds(50)));
    ingress.handle_timeout(seconds(50));
    assert_eq!(wanted(&ingress), prefixes(&["198.51.100.0/24"]));
    assert!(!ingress.end_blackhole(&hole));
    // A site that is no more takes its blackholes with it.
    assert_eq!(ingress.blackhole(address, ask), Ok(()));
    ingress.set_sites(seconds(60), [site(2, "203.0.113.0/24", None)]);
    assert!(wanted(&ingress).is_empty());
}

/// A site too small to be announced is never asked about; its aggregate is.
#[test]
fn what_the_vrps_forbid_does_not_leave_and_nothing_within_it_is_blackholed() {
    use crate::bgp::origin::Vrp;
    let vrp = |text: &str, asn| Vrp { prefix: net(text), max_length: net(text).prefix_len(), asn };
    let origins = |list: &[Vrp]| Some(Arc::new(Origins::new(list.to_vec())));
    let mut ingress = with(Policy { rules: Vec::new(), aggregates: vec![aggregate(false)] });
    ingress.set_origins(origins(&[vrp("198.51.100.0/24", 64999), vrp("203.0.113.0/24", 64999)]), true);
    ingress.set_sites(seconds(0), [site(1, "198.51.100.0/29", None), site(2, "203.0.113.0/24", None)]);
    [1, 2].into_iter().for_each(|id| ingress.reachable(PeerId(id)));
    let ask = Blackhole { neighbor: None, until: None };
    assert_eq!(ingress.blackhole("203.0.113.7".parse().expect("an address"), ask), Ok(()));
    assert!(wanted(&ingress).is_empty());
    assert_eq!(
        ingress.refused().keys().copied().collect::<BTreeSet<_>>(),
        prefixes(&["198.51.100.0/24", "203.0.113.0/24"])
    );
    let why = ingress.routes_of(PeerId(1), 0).expect_err("a reason");
    assert!(why.starts_with("AS 64500 may not announce it"), "{why}");
    ingress.set_origins(origins(&[vrp("198.51.100.0/24", 64500), vrp("203.0.113.0/24", 64500)]), true);
    assert_eq!(wanted(&ingress), prefixes(&["198.51.100.0/24", "203.0.113.0/24", "203.0.113.7/32"]));
    // What has left stays, whatever a cache says later.
    ingress.set_origins(origins(&[vrp("0.0.0.0/0", 0)]), true);
    assert_eq!(wanted(&ingress).len(), 3);
    assert!(ingress.doubt(&net("203.0.113.0/24")).is_some());
}

#[test]
fn communities_are_written_as_everywhere() {
    let standard = |high: u32, low: u32| Some(AnyCommunity::Standard(Community(high << 16 | low)));
    let extended = |octets| Some(AnyCommunity::Extended(ExtendedCommunity(octets)));
    for (text, expected) in [
        ("64500:120", standard(64500, 120)),
        ("no-export", Some(AnyCommunity::Standard(Community::NO_EXPORT))),
        ("65536:1", None),
        ("64500:1:2", Some(AnyCommunity::Large(LargeCommunity([64500, 1, 2])))),
        ("4200000000:4294967295:0", Some(AnyCommunity::Large(LargeCommunity([4_200_000_000, u32::MAX, 0])))),
        ("rt:64500:1", extended([0, 2, 0xfb, 0xf4, 0, 0, 0, 1])),
        ("soo:192.0.2.1:7", extended([1, 3, 192, 0, 2, 1, 0, 7])),
        ("rt:4200000000:7", extended([2, 2, 0xfa, 0x56, 0xea, 0, 0, 7])),
        ("rt:4200000000:65536", None),
        ("0x4300000000000001", extended([0x43, 0, 0, 0, 0, 0, 0, 1])),
        ("64500", None),
        ("", None),
    ] {
        assert_eq!(AnyCommunity::read(text), expected, "{text}");
    }
}
