//! What receipts tell of a path in the direction in which this end sends, for people and policies: loss over several
//! spans, rate, and how much longer than at best a packet is under way. Judges nothing: [`crate::health`] does.

use crate::Instant;
use std::time::Duration;

/// Losses and deliveries in a span that moves along, in tenths of it.
#[derive(Clone, Copy, Debug)]
struct Span {
    tenth: Duration,
    /// Of which tenths, counted from the origin of time, `buckets` are the last.
    newest: u64,
    buckets: [Bucket; Span::BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    arrived: u32,
    lost: u32,
    octets: u64,
}

impl Span {
    /// Ten whole ones and the one that is being filled.
    const BUCKETS: usize = 11;

    const fn of(tenth: Duration) -> Self {
        Span { tenth, newest: 0, buckets: [Bucket { arrived: 0, lost: 0, octets: 0 }; Span::BUCKETS] }
    }

    fn number(&self, now: Instant) -> u64 {
        (u128::from(now.as_nanos()) / self.tenth.as_nanos()) as u64
    }

    fn bucket(&mut self, now: Instant) -> &mut Bucket {
        let number = self.number(now).max(self.newest);
        for skipped in (self.newest + 1..=number).rev().take(Self::BUCKETS) {
            self.buckets[(skipped % Self::BUCKETS as u64) as usize] = Bucket::default();
        }
        self.newest = number;
        &mut self.buckets[(number % Self::BUCKETS as u64) as usize]
    }

    /// The sum over the last ten whole tenths.
    fn sum(&self, now: Instant) -> Bucket {
        let number = self.number(now);
        let within = (number.saturating_sub(10)..number).filter(|at| *at <= self.newest && at + 11 > self.newest);
        within.fold(Bucket::default(), |sum, at| {
            let bucket = self.buckets[(at % Self::BUCKETS as u64) as usize];
            Bucket {
                arrived: sum.arrived + bucket.arrived,
                lost: sum.lost + bucket.lost,
                octets: sum.octets + bucket.octets,
            }
        })
    }
}

/// A value's least of the last one to two spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Least<T> {
    before: Option<T>,
    this: Option<T>,
    since: Instant,
}

impl<T> Default for Least<T> {
    fn default() -> Self {
        Least { before: None, this: None, since: Instant::ZERO }
    }
}

impl<T: Copy + Ord> Least<T> {
    /// Half a minute: a route may change in a minute, and in half of one some packet finds the queues empty.
    const SPAN: Duration = Duration::from_secs(30);

    pub(crate) fn sample(&mut self, sample: T, now: Instant) {
        if now.since(self.since) >= Self::SPAN {
            *self = Least { before: self.this, this: None, since: now };
        }
        self.this = Some(self.this.map_or(sample, |least| least.min(sample)));
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.before.into_iter().chain(self.this).min()
    }
}

/// How long packets are under way in one direction, up to a constant that nobody knows: the two clocks have no common
/// origin. What differs from the least of late is a queue, or a longer way.
#[derive(Clone, Copy, Debug, Default)]
struct OneWay {
    /// The first difference of the clocks, in microseconds modulo 2^32: the others are told from it.
    origin: Option<u32>,
    /// Since that, in microseconds.
    last: i32,
    /// The same, smoothed as round trips are.
    smoothed: i32,
    least: Least<i32>,
}

impl OneWay {
    fn sample(&mut self, sent_at: Instant, received_us: u32, now: Instant) {
        let difference = received_us.wrapping_sub((sent_at.as_nanos() / 1000) as u32);
        let origin = *self.origin.get_or_insert(difference);
        self.last = difference.wrapping_sub(origin).cast_signed();
        self.smoothed = self.smoothed.saturating_add(self.last.saturating_sub(self.smoothed) / 8);
        self.least.sample(self.last, now);
    }

    /// The clocks' difference and the time under way, in microseconds modulo 2^32.
    fn transit(&self) -> Option<u32> {
        Some(self.origin?.wrapping_add_signed(self.smoothed))
    }

    fn change(&self) -> Option<Duration> {
        let change = self.last.saturating_sub(self.least.get()?);
        Some(Duration::from_micros(u64::try_from(change).unwrap_or(0)))
    }
}

/// What is known of a path.
#[derive(Debug)]
pub(crate) struct Quality {
    /// Over one second, ten, and a hundred.
    spans: [Span; 3],
    one_way: OneWay,
}

impl Default for Quality {
    fn default() -> Self {
        Quality {
            spans: [100, 1_000, 10_000].map(|ms| Span::of(Duration::from_millis(ms))),
            one_way: OneWay::default(),
        }
    }
}

impl Quality {
    /// A datagram of this length arrived or was lost, as is known now.
    pub(crate) fn on_judged(&mut self, len: u16, arrived: bool, now: Instant) {
        for span in &mut self.spans {
            let bucket = span.bucket(now);
            if arrived {
                bucket.arrived += 1;
                bucket.octets += u64::from(len);
            } else {
                bucket.lost += 1;
            }
        }
    }

    /// What was sent at `sent_at` was received when the receiver's clock showed so many microseconds, modulo 2^32.
    pub(crate) fn on_received(&mut self, sent_at: Instant, received_us: u32, now: Instant) {
        self.one_way.sample(sent_at, received_us, now);
    }

    /// The share lost, 0 to 1, over the last second, ten seconds, and hundred seconds; `None`: nothing is known.
    pub(crate) fn loss(&self, now: Instant) -> [Option<f64>; 3] {
        self.spans.each_ref().map(|span| {
            let Bucket { arrived, lost, .. } = span.sum(now);
            let all = u64::from(arrived) + u64::from(lost);
            (all > 0).then(|| f64::from(lost) / all as f64)
        })
    }

    /// What arrived in the last second, in bits a second, outer headers not counted.
    pub(crate) fn delivery_rate(&self, now: Instant) -> u64 {
        self.spans[0].sum(now).octets * 8
    }

    /// How long packets are under way to the peer, and a constant that is the same for all paths to it; in microseconds modulo
    /// 2^32.
    pub(crate) fn transit_us(&self) -> Option<u32> {
        self.one_way.transit()
    }

    /// How much longer than at best of late the last packet was under way to the peer.
    pub(crate) fn delay_change(&self) -> Option<Duration> {
        self.one_way.change()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn loss_and_rate_are_those_of_the_span_and_no_other() {
        let mut quality = Quality::default();
        for ms in 0..20_000 {
            quality.on_judged(1000, !(15_000..15_500).contains(&ms), at(ms));
        }
        assert_eq!(quality.loss(at(20_000))[0], Some(0.0));
        assert_eq!(quality.loss(at(20_000))[1], Some(0.05), "half a second of ten");
        assert_eq!(quality.loss(at(20_000))[2], Some(0.025), "two whole tenths are past");
        assert_eq!(quality.delivery_rate(at(20_000)), 8_000_000);
        assert_eq!(quality.delivery_rate(at(30_000)), 0);
        assert_eq!(quality.loss(at(21_500))[0], None);
    }

    #[test]
    fn a_queue_in_our_direction_is_seen_whatever_the_clocks_show() {
        for offset in [0, 77, u32::MAX - 500_000] {
            let mut quality = Quality::default();
            let received = |sent_ms: u64, delay_ms: u64| (((sent_ms + delay_ms) * 1000) as u32).wrapping_add(offset);
            for ms in 0..1000 {
                quality.on_received(at(ms), received(ms, 10), at(ms + 20));
            }
            assert_eq!(quality.delay_change(), Some(Duration::ZERO));
            quality.on_received(at(1000), received(1000, 60), at(1070));
            assert_eq!(quality.delay_change(), Some(Duration::from_millis(50)));
            quality.on_received(at(1001), received(1001, 8), at(1020));
            assert_eq!(quality.delay_change(), Some(Duration::ZERO), "a new least");
        }
    }
}
