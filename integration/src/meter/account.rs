//! Accounting: from the arrivals of numbered packets to figures. Pure functions.

use super::clock::{Nanos, millis};
use super::result::{Flow, Gap, Series};

/// Gaps above this are listed. 50 ms is where a listener begins to hear one: beyond the usual jitter buffer.
const LISTED_GAP: Nanos = 50_000_000;

/// At most so many gaps are listed, the longest: a link that is lossy all the time must not fill the disk.
const LISTED_GAPS: usize = 1_000;

/// A packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) at: Nanos,
    pub(crate) number: u64,
    /// Since it was sent.
    pub(crate) delay: Nanos,
}

/// When which packet of a stream is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) start: Nanos,
    pub(crate) stop: Nanos,
    /// Packets per second.
    pub(crate) rate: f64,
}

impl Schedule {
    /// When packet `number` is due. Computed from the start each time: a rate such as 300/s has no whole interval, and
    /// adding rounded ones would drift.
    pub(crate) fn due(&self, number: u64) -> Nanos {
        self.start + (number as f64 * 1e9 / self.rate).round() as Nanos
    }

    /// How many packets are due before the stop.
    pub(crate) fn total(&self) -> u64 {
        let mut n = ((self.stop - self.start).max(0) as f64 * self.rate / 1e9).ceil() as u64;
        // The product above and `due` may round differently in the last digit.
        while n > 0 && self.due(n - 1) >= self.stop {
            n -= 1;
        }
        n
    }
}

/// Length of a series' bins: 10 ms show a gap of 50 ms well; in a run of over ten minutes 100 ms keep the document small.
pub(crate) fn bin_length(stop: Nanos) -> Nanos {
    if stop <= 600_000_000_000 { 10_000_000 } else { 100_000_000 }
}

/// The bin in which a moment lies; moments before the start count to the first.
pub(crate) fn bin(at: Nanos, length: Nanos) -> usize {
    (at.max(0) / length) as usize
}

/// All that can be told of a stream from its arrivals, in the order of arrival: losses after the highest number received
/// not yet counted (see [`count_tail`]). Also returns the number after the highest received.
pub(crate) fn account(arrivals: &[Arrival], schedule: &Schedule) -> (Flow, u64) {
    let mut flow = Flow::default();
    let next = arrivals.iter().map(|a| a.number + 1).max().unwrap_or(0);
    let length = bin_length(schedule.stop);
    let last = arrivals.last().map_or(schedule.stop, |a| a.at.max(schedule.stop));
    let bins = bin(last, length) + 1;
    flow.series =
        Series { bin_ms: millis(length), received: vec![0; bins], lost: vec![0; bins], delay_ms: vec![None; bins] };

    let mut seen = vec![false; next as usize];
    let mut expected = 0;
    let mut delays = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        let first = !std::mem::replace(&mut seen[arrival.number as usize], true);
        if !first {
            flow.duplicated += 1;
            continue;
        }
        flow.received += 1;
        if arrival.number < expected {
            flow.reordered += 1;
        }
        expected = expected.max(arrival.number + 1);
        let delay = arrival.delay.max(0);
        delays.push(delay);
        let b = bin(arrival.at, length).min(bins - 1);
        flow.series.received[b] += 1;
        let shown = &mut flow.series.delay_ms[b];
        *shown = Some(shown.unwrap_or(0.0).max(millis(delay) as f32));
    }
    for number in (0..next).filter(|&n| !seen[n as usize]) {
        count_lost(&mut flow, number, schedule);
    }

    delays.sort_unstable();
    flow.delay_p50_ms = millis(percentile(&delays, 50.0));
    flow.delay_p95_ms = millis(percentile(&delays, 95.0));
    flow.delay_p99_ms = millis(percentile(&delays, 99.0));
    flow.delay_max_ms = millis(percentile(&delays, 100.0));
    // What the way takes at least is no gap before the first arrival: on a slow link it would be longer than a cut's.
    let begin = schedule.start + delays.first().copied().unwrap_or(0);
    (flow.longest_gap, flow.gaps) = gaps(arrivals.iter().map(|a| a.at), begin, schedule.stop);
    (flow, next)
}

/// Counts the packets from `next` on, of `sent`, as lost.
pub(crate) fn count_tail(flow: &mut Flow, next: u64, sent: u64, schedule: &Schedule) {
    for number in next..sent {
        count_lost(flow, number, schedule);
    }
}

fn count_lost(flow: &mut Flow, number: u64, schedule: &Schedule) {
    flow.lost += 1;
    let b = bin(schedule.due(number), bin_length(schedule.stop));
    if let Some(bin) = flow.series.lost.get_mut(b) {
        *bin += 1;
    }
}

/// The longest time without an arrival between `start` and `stop`, and all that are worth listing. Second copies count
/// as arrivals here: something did come through. After `stop` nothing is due any more, so that nothing waits for it: what
/// still comes then makes no gap, however late it is, and if it does not come it is lost.
pub(crate) fn gaps(arrivals: impl Iterator<Item = Nanos>, start: Nanos, stop: Nanos) -> (Gap, Vec<Gap>) {
    let mut listed: Vec<(Nanos, Nanos)> = Vec::new();
    let mut longest = (start, 0);
    let mut last = start;
    for at in arrivals.take_while(|&at| at < stop).chain([stop]) {
        let length = at - last;
        if length > longest.1 {
            longest = (last, length);
        }
        if length > LISTED_GAP {
            listed.push((last, length));
        }
        last = last.max(at);
    }
    if listed.len() > LISTED_GAPS {
        listed.sort_unstable_by_key(|&(_, length)| std::cmp::Reverse(length));
        listed.truncate(LISTED_GAPS);
        listed.sort_unstable();
    }
    let gap = |(at, length): (Nanos, Nanos)| Gap { at_ms: millis(at), length_ms: millis(length) };
    (gap(longest), listed.into_iter().map(gap).collect())
}

/// The nearest-rank percentile of sorted values; 0 of none.
pub(crate) fn percentile(sorted: &[Nanos], percent: f64) -> Nanos {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn schedule() -> Schedule {
        Schedule { start: 1_000 * MS, stop: 2_000 * MS, rate: 100.0 }
    }

    /// Each number with its delay in milliseconds, in the order of arrival.
    fn arrivals(of: &[(u64, i64)]) -> Vec<Arrival> {
        let mut all: Vec<_> = of
            .iter()
            .map(|&(number, delay)| Arrival { at: schedule().due(number) + delay * MS, number, delay: delay * MS })
            .collect();
        all.sort_by_key(|a| a.at);
        all
    }

    fn whole(of: &[(u64, i64)]) -> Flow {
        let s = schedule();
        let (mut flow, next) = account(&arrivals(of), &s);
        count_tail(&mut flow, next, s.total(), &s);
        let sum = flow.series.lost.iter().sum::<u32>();
        assert_eq!(u64::from(sum), flow.lost, "every loss has a bin");
        assert_eq!(u64::from(flow.series.received.iter().sum::<u32>()), flow.received);
        assert_eq!(flow.received + flow.lost, s.total());
        flow
    }

    #[test]
    fn a_perfect_stream() {
        let flow = whole(&(0..100).map(|n| (n, 10)).collect::<Vec<_>>());
        assert_eq!((flow.received, flow.lost, flow.duplicated, flow.reordered), (100, 0, 0, 0));
        assert_eq!(flow.longest_gap, Gap { at_ms: 1010.0, length_ms: 10.0 });
        assert!(flow.gaps.is_empty());
        assert_eq!((flow.delay_p50_ms, flow.delay_max_ms), (10.0, 10.0));
    }

    #[test]
    fn nothing_arrives() {
        let flow = whole(&[]);
        assert_eq!((flow.received, flow.lost), (0, 100));
        assert_eq!(flow.longest_gap, Gap { at_ms: 1000.0, length_ms: 1000.0 });
        assert_eq!(flow.gaps.len(), 1);
        assert_eq!(flow.delay_max_ms, 0.0);
    }

    #[test]
    fn gaps_at_start_middle_and_end() {
        // 0..10 missing at the start, 40..60 in the middle, 80.. at the end.
        let of: Vec<_> = (10..40).chain(60..80).map(|n| (n, 5)).collect();
        let flow = whole(&of);
        assert_eq!(flow.lost, 50);
        let lengths: Vec<_> = flow.gaps.iter().map(|g| (g.at_ms, g.length_ms)).collect();
        assert_eq!(lengths, [(1005.0, 100.0), (1395.0, 210.0), (1795.0, 205.0)]);
        assert_eq!(flow.longest_gap, Gap { at_ms: 1395.0, length_ms: 210.0 });
        // Losses lie where the packets were due.
        assert_eq!(flow.series.lost[99..102], [0, 1, 1]);
        assert_eq!(flow.series.lost[139..142], [0, 1, 1]);
        assert_eq!(flow.series.lost[179..182], [0, 1, 1]);
    }

    #[test]
    fn second_copies_and_order() {
        // Number 3 comes late, after 5; number 7 comes twice.
        let mut of: Vec<_> = (0..100).map(|n| (n, if n == 3 { 25 } else { 1 })).collect();
        of.push((7, 31));
        let flow = whole(&of);
        assert_eq!((flow.received, flow.duplicated, flow.reordered, flow.lost), (100, 1, 1, 0));
        assert_eq!(flow.delay_max_ms, 25.0, "a second copy's delay is not the stream's");
    }

    #[test]
    fn one_late_packet_is_one_reordered_one_early_packet_makes_many() {
        let early: Vec<_> = (0..100).map(|n| (n, if n == 10 { 1 } else { 40 })).collect();
        // Number 10 overtakes 7, 8 and 9 (and those due within 39 ms before it).
        assert_eq!(whole(&early).reordered, 3);
    }

    #[test]
    fn an_arrival_after_the_stop_is_no_gap_and_has_a_bin() {
        let of: Vec<_> = (0..100).map(|n| (n, if n == 99 { 500 } else { 0 })).collect();
        let flow = whole(&of);
        assert_eq!(flow.series.received.len(), 250);
        assert_eq!(flow.series.received[249], 1);
        // From 1980 ms, when the one before came, to the stop.
        assert_eq!(flow.longest_gap, Gap { at_ms: 1980.0, length_ms: 20.0 });
        assert_eq!((flow.delay_max_ms, flow.lost), (500.0, 0), "it is late, which its delay says");
    }

    #[test]
    fn gap_threshold_is_exclusive_and_the_list_is_bounded() {
        let (_, listed) = gaps([50 * MS, 100 * MS + 1].into_iter(), 0, 100 * MS + 1);
        assert_eq!(listed.len(), 1);
        let many = (1..=3_000).map(|n| n * 60 * MS + if n == 1_500 { MS } else { 0 });
        let (longest, listed) = gaps(many, 0, 3_000 * 60 * MS);
        assert_eq!(listed.len(), LISTED_GAPS);
        assert_eq!(longest.length_ms, 61.0);
        assert!(listed.contains(&longest));
        assert!(listed.windows(2).all(|w| w[0].at_ms < w[1].at_ms));
    }

    #[test]
    fn schedules_do_not_drift_and_end_before_the_stop() {
        for rate in [0.5, 1.0, 3.0, 300.0, 333.3, 10_000.0] {
            let s = Schedule { start: 7, stop: 7 + 10_000_000_000, rate };
            let total = s.total();
            assert!(s.due(total - 1) < s.stop && s.due(total) >= s.stop, "{rate}: {total}");
        }
        assert_eq!(Schedule { start: 5, stop: 5, rate: 100.0 }.total(), 0);
        assert_eq!(Schedule { start: 6, stop: 5, rate: 100.0 }.total(), 0);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let sorted: Vec<Nanos> = (1..=100).collect();
        assert_eq!(percentile(&sorted, 50.0), 50);
        assert_eq!(percentile(&sorted, 99.0), 99);
        assert_eq!(percentile(&sorted, 100.0), 100);
        assert_eq!(percentile(&[42], 50.0), 42);
        assert_eq!(percentile(&[], 50.0), 0);
    }
}
