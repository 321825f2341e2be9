//! Which link a balanced flow takes: whole flows, each to where it gets most, and one of them elsewhere when that helps.

use crate::Instant;
use crate::flows::{Flow, FlowTable};
use crate::policy::ClassId;
use std::time::Duration;

/// How often flows are counted, and one moved at most. A flow that has moved needs some round trips to show what it gets.
const INTERVAL: Duration = Duration::from_secs(1);

/// A flow is moved if it gets so many quarters of what it has: less would be undone by the next measurement.
const WORTH: u64 = 5;

/// A flow that sends less than this part of what its link carries is no reason to move anything.
const PART: u64 = 32;

/// What a link is taken to carry at least while nobody knows: 10 Mbit/s, in octets a second.
const UNKNOWN: u64 = 1_250_000;

/// A link, as far as balancing looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Berth {
    /// The number of the path.
    pub(crate) path: u8,
    /// What it carries, in octets a second; `None`: all that was offered so far.
    pub(crate) rate: Option<u64>,
    /// What has arrived by it in the last second.
    pub(crate) delivered: u64,
}

impl Berth {
    /// Whether it carries all that it can.
    fn is_full(&self) -> bool {
        self.rate.is_some_and(|rate| self.delivered * 10 >= rate * 9)
    }
}

/// When a class's flows were counted last.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    counted_at: Instant,
}

/// What each link is taken to carry. One that was never full is hoped to carry as much as the best that was.
fn capacity(berths: &[Berth], of: &Berth) -> u64 {
    let known = berths.iter().filter_map(|berth| berth.rate).max().unwrap_or(UNKNOWN);
    of.rate.unwrap_or(known.max(of.delivered * 2))
}

/// The best of these for one more flow, where each has so many. The first of equals.
fn roomiest(berths: &[Berth], flows: impl Fn(u8) -> u64) -> Option<(u64, u8)> {
    let share = |berth: &Berth| (capacity(berths, berth) / (flows(berth.path) + 1), berth.path);
    berths.iter().map(share).reduce(|best, next| if next.0 > best.0 { next } else { best })
}

/// Where a new flow of the class goes; `berths` in the order of preference.
pub(crate) fn place(flows: &mut FlowTable, class: ClassId, now: Instant, berths: &[Berth]) -> Option<u8> {
    let mut count = [0; crate::MAX_PATHS];
    for path in flows.lively(class, now).filter_map(|flow| flow.place) {
        count[usize::from(path)] += 1;
    }
    roomiest(berths, |path| count[usize::from(path)]).map(|(_, path)| path)
}

impl Balance {
    /// Whether flows are to be counted again.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.since(self.counted_at) >= INTERVAL
    }

    /// Gives one flow of a full link another place, if it gets more there; at most once an [`INTERVAL`].
    pub(crate) fn move_one(&mut self, flows: &mut FlowTable, class: ClassId, now: Instant, berths: &[Berth]) {
        if !self.is_due(now) {
            return;
        }
        self.counted_at = now;
        let placed = |flow: &mut Flow| Some((usize::from(flow.place?), flow.octets));
        let (mut count, mut octets) = ([0; crate::MAX_PATHS], [0; crate::MAX_PATHS]);
        flows.lively(class, now).filter_map(placed).for_each(|(path, sent)| octets[path] += sent);
        let heavy = |(path, sent): &(usize, u64)| *sent > 0 && *sent * PART >= octets[*path];
        flows.lively(class, now).filter_map(placed).filter(heavy).for_each(|(path, _)| count[path] += 1);
        let flows_on = |path: u8| count[usize::from(path)];
        let share = |berth: &Berth| capacity(berths, berth) / flows_on(berth.path).max(1);
        let crowded = berths.iter().filter(|berth| berth.is_full() && flows_on(berth.path) > 1);
        if let Some(from) = crowded.min_by_key(|berth| share(berth))
            && let Some((gets, to)) = roomiest(berths, flows_on)
            && to != from.path
            && gets * 4 >= share(from) * WORTH
        {
            // The largest that leaves half behind; else what it takes along would be missed here.
            let half = octets[usize::from(from.path)] / 2;
            let here =
                |flow: &&mut Flow| flow.place == Some(from.path) && heavy(&(usize::from(from.path), flow.octets));
            let movable = flows.lively(class, now).filter(here);
            let best = movable.min_by_key(|flow| (flow.octets > half, flow.octets.abs_diff(half)));
            if let Some(flow) = best {
                flow.place = Some(to);
            }
        }
        flows.lively(class, now).for_each(|flow| flow.octets = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Flows that each send as much as their link leaves them, for so many seconds; how many are on each link at last.
    fn settle(rates: [u64; 2], flows: u64, all_on: Option<u8>, seconds: u64) -> ([u64; 2], u64) {
        let (mut table, mut balance, mut moves) = (FlowTable::default(), Balance::default(), 0);
        let mut places = vec![all_on; flows as usize];
        for second in 1..=seconds {
            let count =
                |places: &[Option<u8>], path| places.iter().filter(|place| **place == Some(path)).count() as u64;
            let berths = [0, 1].map(|path: u8| {
                let rate = rates[usize::from(path)];
                let busy = count(&places, path) > 0;
                Berth { path, rate: busy.then_some(rate), delivered: if busy { rate } else { 0 } }
            });
            for hash in 0..flows {
                let flow = table.find(hash * 7919, at(second * 1000));
                flow.class(|| 0);
                flow.place = places[hash as usize];
                if flow.place.is_none() {
                    let place = place(&mut table, 0, at(second * 1000), &berths);
                    table.find(hash * 7919, at(second * 1000)).place = place;
                    places[hash as usize] = place;
                }
            }
            for hash in 0..flows {
                let path = places[hash as usize].expect("it has a place");
                let octets = rates[usize::from(path)] / count(&places, path);
                let flow = table.find(hash * 7919, at(second * 1000));
                flow.octets = octets;
                flow.assign(at(second * 1000), path, [true; crate::MAX_PATHS], at(0), |_| Duration::ZERO);
            }
            balance.move_one(&mut table, 0, at(second * 1000), &berths);
            for hash in 0..flows {
                let place = table.find(hash * 7919, at(second * 1000)).place;
                moves += u64::from(place != places[hash as usize]);
                places[hash as usize] = place;
            }
        }
        ([0, 1].map(|path| places.iter().filter(|place| **place == Some(path)).count() as u64), moves)
    }

    #[test]
    fn flows_that_begin_at_once_are_dealt_out_evenly_and_stay() {
        assert_eq!(settle([1_000_000, 1_000_000], 16, None, 20), ([8, 8], 0));
    }

    #[test]
    fn flows_that_crowd_one_link_move_one_by_one_until_that_does_not_help() {
        let ([a, b], moves) = settle([1_000_000, 1_000_000], 16, Some(0), 30);
        assert_eq!((a + b, moves), (16, b));
        assert!((7..=9).contains(&b), "{a} and {b}");
        let ([a, b], moves) = settle([3_000_000, 1_000_000], 16, Some(1), 40);
        assert_eq!((a + b, moves), (16, a));
        assert!((11..=13).contains(&a), "three quarters: {a} and {b}");
    }

    #[test]
    fn a_single_flow_stays_where_it_is() {
        assert_eq!(settle([1_000_000, 1_500_000], 1, Some(0), 10), ([1, 0], 0));
    }
}
