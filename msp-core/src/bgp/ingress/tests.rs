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

/// One neighbour, and this policy.
fn with(policy: Policy) -> Ingress {
    Ingress::new(policy, None, &[TRANSIT])
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
