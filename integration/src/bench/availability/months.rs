//! Months of outages, and what switching after a time would make of them: pure arithmetic, no packet.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::time::Duration;

/// A month.
pub(super) const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// One sort of outage of a home's link.
struct Sort {
    /// So many a month, on average.
    per_month: f64,
    /// They take as long, on average; how long each takes has an exponential distribution.
    mean: Duration,
}

/// What a link of 99.9 % is assumed to do in a month: 20 outages of some ten seconds (a modem that synchronises again, a
/// router of the ISP's that converges), 4 of some two minutes (a modem that starts anew), and one of an hour in two
/// months (somebody repairs). Together 2,480 s of 2,592,000. An assumption: what is published of homes' links counts
/// outages by the quarter of an hour or the hour, and the short ones, which are the most, are in no statistics that we know.
const SORTS: [Sort; 3] = [
    Sort { per_month: 20.0, mean: Duration::from_secs(10) },
    Sort { per_month: 4.0, mean: Duration::from_secs(120) },
    Sort { per_month: 0.5, mean: Duration::from_secs(3_600) },
];

/// A stretch of a month: a time in which a link, or both, carry nothing. From the month's beginning on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Outage {
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

impl Outage {
    pub(super) fn length(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }

    /// How long both last at once.
    pub(super) fn overlap(&self, other: &Outage) -> Duration {
        self.end.min(other.end).saturating_sub(self.begin.max(other.begin))
    }
}

/// Both links' outages in a month, in order of time. Those of one link do not overlap.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Month {
    pub(super) links: [Vec<Outage>; 2],
}

impl Month {
    /// Draws a month, each link independent of the other.
    pub(super) fn draw(seed: u64) -> Month {
        let mut rng = StdRng::seed_from_u64(seed);
        Month { links: [draw(&mut rng), draw(&mut rng)] }
    }

    /// When both links are dead, and so no system can help.
    pub(super) fn both(&self) -> Vec<Outage> {
        let [first, second] = &self.links;
        let overlap =
            |one: &Outage, other: &Outage| Outage { begin: one.begin.max(other.begin), end: one.end.min(other.end) };
        let both = first.iter().flat_map(|one| second.iter().map(move |other| overlap(one, other)));
        both.filter(|both| both.begin < both.end).collect()
    }

    /// How long a link is dead in all.
    pub(super) fn dead(&self, link: usize) -> Duration {
        self.links[link].iter().map(Outage::length).sum()
    }

    /// All beginnings and ends, in order of time.
    pub(super) fn edges(&self) -> Vec<Edge> {
        let mut edges: Vec<Edge> = Vec::new();
        for (link, outages) in self.links.iter().enumerate() {
            for outage in outages {
                let length = outage.length();
                edges.push(Edge { at: outage.begin, link, dies: true, length });
                edges.push(Edge { at: outage.end, link, dies: false, length });
            }
        }
        edges.sort_by_key(|edge| edge.at);
        edges
    }

    /// What is lost beside the time in which both links are dead, if flows leave a dead link `after` it died and nothing is
    /// sent again. They are on the first link whenever it lives, and the way back to it is taken to cost nothing.
    pub(super) fn switching(&self, after: Duration) -> Duration {
        let (mut dead, mut used, mut silent, mut lost) = ([false; 2], 0, Duration::ZERO, Duration::ZERO);
        let mut since = Duration::ZERO;
        let end = Edge { at: MONTH, link: 0, dies: false, length: Duration::ZERO };
        for edge in self.edges().into_iter().chain([end]) {
            let length = edge.at - since;
            since = edge.at;
            if !dead[0] {
                used = 0;
            }
            if !dead[used] {
                silent = Duration::ZERO;
            } else if dead[1 - used] {
                silent += length;
            } else {
                let rest = after.saturating_sub(silent);
                lost += rest.min(length);
                silent += length;
                if length >= rest {
                    (used, silent) = (1 - used, Duration::ZERO);
                }
            }
            dead[edge.link] = edge.dies;
        }
        lost
    }
}

/// A link dies or comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) at: Duration,
    pub(super) link: usize,
    pub(super) dies: bool,
    /// Of the outage that begins or ends.
    pub(super) length: Duration,
}

/// One link's outages: it works for an exponentially distributed time, then one of the sorts befalls it.
fn draw(rng: &mut StdRng) -> Vec<Outage> {
    let outages: f64 = SORTS.iter().map(|sort| sort.per_month).sum();
    let dead: f64 = SORTS.iter().map(|sort| sort.per_month * sort.mean.as_secs_f64()).sum();
    let works = (MONTH.as_secs_f64() - dead) / outages;
    let (mut found, mut at) = (Vec::new(), Duration::ZERO);
    loop {
        let begin = at + exponential(rng, works);
        if begin >= MONTH {
            return found;
        }
        let mut drawn = rng.random_range(0.0..outages);
        let sort = SORTS.iter().find(|sort| {
            drawn -= sort.per_month;
            drawn < 0.0
        });
        let end = begin + exponential(rng, sort.unwrap_or(&SORTS[0]).mean.as_secs_f64());
        found.push(Outage { begin, end: end.min(MONTH) });
        at = end;
    }
}

fn exponential(rng: &mut StdRng, mean: f64) -> Duration {
    // In (0, 1], of which the logarithm is finite.
    Duration::from_secs_f64(-mean * (1.0 - rng.random_range(0.0..1.0_f64)).ln())
}

/// The share of a month that is left.
pub(super) fn availability(lost: f64, months: usize) -> f64 {
    1.0 - lost / (MONTH.as_secs_f64() * months as f64)
}

/// 0.999 has three nines. `None`: nothing at all was lost.
pub(super) fn nines(availability: f64) -> Option<f64> {
    (availability < 1.0).then(|| -(1.0 - availability).log10())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn month(first: &[(f64, f64)], second: &[(f64, f64)]) -> Month {
        let outages =
            |list: &[(f64, f64)]| list.iter().map(|&(begin, end)| Outage { begin: s(begin), end: s(end) }).collect();
        Month { links: [outages(first), outages(second)] }
    }

    #[test]
    fn a_link_has_three_nines_and_the_outages_that_are_assumed() {
        let months: Vec<Month> = (0..2000).map(Month::draw).collect();
        let dead: f64 =
            months.iter().flat_map(|month| [month.dead(0), month.dead(1)]).map(|dead| dead.as_secs_f64()).sum();
        let share = dead / (MONTH.as_secs_f64() * 4000.0);
        assert!((0.00092..0.00100).contains(&share), "{share}");
        let outages: usize = months.iter().map(|month| month.links[0].len()).sum();
        assert!((24.0..25.0).contains(&(outages as f64 / 2000.0)), "{outages}");
        let short = months.iter().flat_map(|month| &month.links[1]).filter(|outage| outage.length() < s(10.0)).count();
        // Of the first sort 63 %, of the second 8 %.
        assert!((12.4..13.6).contains(&(short as f64 / 2000.0)), "{short}");
    }

    #[test]
    fn both_dead_is_the_product_of_their_shares() {
        let both: f64 =
            (0..4000).flat_map(|seed| Month::draw(seed).both()).map(|both| both.length().as_secs_f64()).sum();
        // 2,480 s in the square over a month: 2.4 s; a few long ones make it vary.
        assert!((1.8..3.0).contains(&(both / 4000.0)), "{}", both / 4000.0);
    }

    #[test]
    fn a_month_is_the_same_for_a_seed_and_in_order() {
        let (one, same) = (Month::draw(7), Month::draw(7));
        assert_eq!(one.links, same.links);
        assert_ne!(one.links, Month::draw(8).links);
        for outages in one.links {
            assert!(outages.windows(2).all(|two| two[0].end < two[1].begin));
        }
    }

    #[test]
    fn what_switching_costs_in_every_situation() {
        for (first, second, after, lost, both, why) in [
            (&[(10.0, 20.0)][..], &[][..], 1.0, 1.0, 0.0, "the time of the switch"),
            (&[(10.0, 10.5)], &[], 1.0, 0.5, 0.0, "it came back before"),
            (&[], &[(10.0, 20.0)], 1.0, 0.0, 0.0, "not in use"),
            (&[(10.0, 20.0), (25.0, 30.0)], &[], 1.0, 2.0, 0.0, "back on the first link between"),
            (&[(10.0, 20.0)], &[(15.0, 18.0)], 1.0, 1.0, 3.0, "both dead, and the one in use comes back"),
            (&[(10.0, 20.0)], &[(15.0, 30.0)], 1.0, 1.0, 5.0, "both dead, and the other comes back"),
            (&[(10.0, 20.0)], &[(9.0, 12.0)], 1.0, 0.0, 2.0, "it was known when the second came back"),
            (&[(10.0, 20.0)], &[(9.0, 12.0)], 5.0, 3.0, 2.0, "three seconds more, then it was known"),
            (&[(10.0, 20.0)], &[(10.5, 10.7)], 1.0, 0.8, 0.2, "a short end of both while waiting"),
            (&[(10.0, 20.0)], &[], 90.0, 10.0, 0.0, "a hold time outlasts it"),
        ] {
            let month = month(first, second);
            let (measured, dead) =
                (month.switching(s(after)), month.both().iter().map(Outage::length).sum::<Duration>());
            assert!((measured.as_secs_f64() - lost).abs() < 1e-6, "{why}: {measured:?}, wanted {lost} s");
            assert!((dead.as_secs_f64() - both).abs() < 1e-6, "{why}: both {dead:?}");
        }
    }

    #[test]
    fn what_never_switches_has_one_links_availability() {
        let month = Month::draw(3);
        let both: Duration = month.both().iter().map(Outage::length).sum();
        assert_eq!(month.switching(Duration::MAX) + both, month.dead(0));
    }

    #[test]
    fn nines_are_counted() {
        assert_eq!(availability(2592.0, 1), 0.999);
        assert!((nines(0.999).expect("some") - 3.0).abs() < 1e-9);
        assert_eq!(nines(availability(0.0, 100)), None);
    }
}
