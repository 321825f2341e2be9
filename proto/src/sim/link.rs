//! A link's one direction: what happens to a datagram between two ends, drawn from a seed.

use crate::Instant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// How one direction of a link behaves. The same words as netem's, so that a scenario means the same in both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkModel {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much more or less, uniformly.
    pub jitter: Duration,
    /// Jitter never lets a datagram overtake another.
    pub ordered: bool,
    /// How datagrams are lost.
    pub loss: Loss,
    /// Those that can be marked as having met congestion (RFC 3168) are marked instead.
    pub ecn: bool,
    /// Bits a second; 0: without limit.
    pub rate: u64,
    /// Octets that wait where there is a rate; what comes beyond is lost.
    pub queue: usize,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
    /// The largest IP packet, outer headers counted; larger ones are lost, and nobody is told.
    pub mtu: usize,
    /// Moments in which nothing comes through.
    pub stalls: Option<Stalls>,
    /// A radio that sleeps while nothing is sent, in either direction.
    pub asleep: Option<Sleep>,
}

/// Moments in which nothing comes through, and nothing is lost: a radio changes its cell, or repeats a block until it is
/// understood. What is sent meanwhile comes at their end, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stalls {
    /// From the beginning of one to that of the next, on average: half of it to one and a half, uniformly, so that they
    /// do not keep step with anybody's timers.
    pub every: Duration,
    /// The least length.
    pub shortest: Duration,
    /// The most; the lengths between have a Pareto distribution.
    pub longest: Duration,
}

impl Stalls {
    /// Between 1 and 2 a Pareto distribution has a mean and no variance: most are short, and the longest cost the most,
    /// as with waiting times in networks. In the middle one stall in six takes more than three times the shortest, and
    /// one in thirty would take ten times as long. An assumption, not a measurement.
    const SHAPE: f64 = 1.5;

    /// How long after the beginning of one stall the next begins, and how long that one takes.
    pub fn draw(&self, rng: &mut impl Rng) -> (Duration, Duration) {
        let pause = self.every.mul_f64(rng.random_range(0.5..1.5));
        // The inverse of the distribution, cut off at the longest.
        let (least, most) = (self.shortest.as_secs_f64(), self.longest.max(self.shortest).as_secs_f64());
        if least <= 0.0 {
            return (pause, Duration::ZERO);
        }
        let beyond = (least / most).powf(Self::SHAPE);
        let share = rng.random_range(beyond..=1.0);
        (pause, Duration::from_secs_f64((least * share.powf(-1.0 / Self::SHAPE)).min(most)))
    }
}

/// A radio that sleeps while nothing is sent, as a phone's does. The first datagram that finds it asleep waits until it is
/// awake, and those behind wait with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// It falls asleep after this long without a datagram in either direction.
    pub after: Duration,
    /// How long it takes to wake.
    pub wakes_in: Duration,
}

/// How datagrams are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each alone, with this probability.
    Random(f64),
    /// In bursts (Gilbert-Elliott): the probabilities to turn bad and to turn good again, per datagram; in the bad
    /// state all are lost.
    Bursts {
        /// Good to bad.
        to_bad: f64,
        /// Bad to good.
        to_good: f64,
    },
}

impl Default for LinkModel {
    fn default() -> Self {
        LinkModel {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            ordered: true,
            loss: Loss::Random(0.0),
            ecn: false,
            rate: 0,
            queue: 256 * 1024,
            duplicate: 0.0,
            mtu: 1500,
            stalls: None,
            asleep: None,
        }
    }
}

/// What both directions of a link have in common: one radio.
#[derive(Debug, Default)]
pub(super) struct Radio {
    /// When it was last used; `None`: not yet, so that it sleeps.
    used: Option<Instant>,
    awake_at: Instant,
}

impl Radio {
    /// When what is sent now leaves.
    fn leaves_at(&mut self, now: Instant, sleep: Sleep) -> Instant {
        if self.used.is_none_or(|used| now.since(used) >= sleep.after) {
            self.awake_at = now + sleep.wakes_in;
        }
        let at = self.awake_at.max(now);
        self.used = Some(at);
        at
    }
}

/// One direction of a link at work.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) model: LinkModel,
    /// Nothing passes, and nobody is told.
    pub(super) cut: bool,
    bad: bool,
    /// When the last octet that was let in will have left.
    busy_until: Instant,
    last_arrival: Instant,
    /// The stall that comes next or lasts: its beginning and its end.
    stall: Option<(Instant, Instant)>,
    /// Draws the stalls, so that they are the same for a seed whatever is sent.
    stalls: StdRng,
}

impl Direction {
    pub(super) fn new(model: LinkModel, seed: u64) -> Self {
        Direction {
            model,
            cut: false,
            bad: false,
            busy_until: Instant::ZERO,
            last_arrival: Instant::ZERO,
            stall: None,
            stalls: StdRng::seed_from_u64(seed),
        }
    }

    /// When an IP packet of `len` octets that is sent now arrives; the second is for its double. Empty: it is lost. `ecn`: the
    /// field of its header, before and after.
    pub(super) fn pass(
        &mut self,
        now: Instant,
        len: usize,
        ecn: &mut u8,
        radio: &mut Radio,
        rng: &mut StdRng,
    ) -> [Option<Instant>; 2] {
        let mut lost = match self.model.loss {
            Loss::Random(p) => p > 0.0 && rng.random_bool(p),
            Loss::Bursts { to_bad, to_good } => {
                self.bad = if self.bad { !rng.random_bool(to_good) } else { rng.random_bool(to_bad) };
                self.bad
            }
        };
        if lost && self.model.ecn && *ecn != 0 {
            (lost, *ecn) = (false, 3);
        }
        if self.cut || lost || len > self.model.mtu {
            return [None, None];
        }
        let mut at = self.leaves_at(now, radio);
        let held = at > now;
        if self.model.rate > 0 {
            let start = self.busy_until.max(at);
            let waiting = start.since(now).as_secs_f64() * self.model.rate as f64 / 8.0;
            if waiting as usize + len > self.model.queue {
                return [None, None];
            }
            at = start + Duration::from_secs_f64(len as f64 * 8.0 / self.model.rate as f64);
            self.busy_until = at;
        }
        let jitter = self.model.jitter.as_secs_f64();
        let shift = if jitter > 0.0 { rng.random_range(-jitter..=jitter) } else { 0.0 };
        at += Duration::from_secs_f64((self.model.delay.as_secs_f64() + shift).max(0.0));
        if self.model.ordered || held {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        let double = self.model.duplicate > 0.0 && rng.random_bool(self.model.duplicate);
        [Some(at), double.then_some(at)]
    }

    /// When what is sent now leaves, as far as the radio goes.
    fn leaves_at(&mut self, now: Instant, radio: &mut Radio) -> Instant {
        let mut at = match self.model.asleep {
            Some(sleep) => radio.leaves_at(now, sleep),
            None => now,
        };
        if let Some(stalls) = self.model.stalls.filter(|stalls| stalls.every > Duration::ZERO) {
            let mut stall = self.stall.unwrap_or((now, now));
            while stall.1 <= at {
                let (pause, length) = stalls.draw(&mut self.stalls);
                let begins = stall.0 + pause;
                stall = (begins, begins + length);
            }
            if stall.0 <= at {
                at = stall.1;
            }
            self.stall = Some(stall);
        }
        at
    }
}

/// Drops what exceeds a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policer {
    /// Bits a second.
    rate: u64,
    /// Octets that may pass now.
    tokens: f64,
    filled: Instant,
}

impl Policer {
    pub(super) fn new(rate: u64) -> Self {
        Policer { rate, tokens: 0.0, filled: Instant::ZERO }
    }

    pub(super) fn lets_pass(&mut self, now: Instant, len: usize) -> bool {
        let rate = self.rate as f64 / 8.0;
        let burst = if self.rate == 0 { 0.0 } else { (rate / 20.0).max(3000.0) };
        self.tokens = (self.tokens + now.since(self.filled).as_secs_f64() * rate).min(burst);
        self.filled = now;
        let passes = self.tokens >= len as f64;
        if passes {
            self.tokens -= len as f64;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{at, ms};
    use super::*;

    /// When datagrams of 100 octets arrive, of which one is sent each millisecond.
    fn stream(model: LinkModel, seconds: u64) -> Vec<Instant> {
        let (mut direction, mut radio) = (Direction::new(model, 7), Radio::default());
        let mut rng = StdRng::seed_from_u64(1);
        (0..seconds * 1000).filter_map(|sent| direction.pass(at(sent), 100, &mut 0, &mut radio, &mut rng)[0]).collect()
    }

    #[test]
    fn stalls_hold_what_is_sent_lose_nothing_and_have_the_lengths_and_the_number_asked_for() {
        let stalls = Stalls { every: ms(1000), shortest: ms(10), longest: ms(100) };
        for (jitter, ordered) in [(ms(0), true), (ms(1), false)] {
            let model = LinkModel { stalls: Some(stalls), jitter, ordered, ..LinkModel::default() };
            let arrivals = stream(model, 1000);
            assert_eq!(arrivals.len(), 1_000_000);
            let mut sorted = arrivals.clone();
            sorted.sort();
            let gaps: Vec<Duration> =
                sorted.windows(2).map(|two| two[1].since(two[0])).filter(|g| *g > ms(9)).collect();
            assert!((950..1050).contains(&gaps.len()), "{}", gaps.len());
            // The jitter of the ones before and behind.
            let slack = jitter * 2 + ms(1);
            assert!(gaps.iter().all(|gap| *gap <= ms(100) + slack), "{:?}", gaps.iter().max());
            let long = gaps.iter().filter(|gap| **gap > ms(30)).count();
            assert!((120..220).contains(&long), "one in six is three times the shortest: {long}");
        }
    }

    #[test]
    fn stalls_are_the_same_for_a_seed_whatever_is_sent() {
        let stalls = Stalls { every: ms(200), shortest: ms(10), longest: ms(100) };
        let model = LinkModel { stalls: Some(stalls), ..LinkModel::default() };
        let alone = |times: &[u64]| {
            let (mut direction, mut radio) = (Direction::new(model, 3), Radio::default());
            let mut rng = StdRng::seed_from_u64(1);
            direction.pass(at(0), 100, &mut 0, &mut radio, &mut rng);
            let mut sent = |&sent: &u64| direction.pass(at(sent), 100, &mut 0, &mut radio, &mut rng)[0];
            times.iter().filter_map(&mut sent).last()
        };
        for last in [1000, 1010, 1500, 60_000] {
            assert_eq!(alone(&[last]), alone(&[100, 200, 400, 990, last]));
        }
    }

    #[test]
    fn an_idle_radio_keeps_the_first_and_those_behind_it_until_it_is_awake() {
        let model = LinkModel { asleep: Some(Sleep { after: ms(5000), wakes_in: ms(300) }), ..LinkModel::default() };
        let (mut up, mut down) = (Direction::new(model, 1), Direction::new(model, 2));
        let (mut radio, mut rng) = (Radio::default(), StdRng::seed_from_u64(1));
        let mut pass = |direction: &mut Direction, sent| direction.pass(at(sent), 100, &mut 0, &mut radio, &mut rng)[0];
        for (sent, arrives, why) in [
            (1000, 1310, "asleep at first"),
            (1100, 1310, "behind the first"),
            (1300, 1310, "awake"),
            (6200, 6210, "not yet asleep again"),
            (11_200, 11_510, "asleep"),
        ] {
            assert_eq!(pass(&mut up, sent), Some(at(arrives)), "{why}");
        }
        assert_eq!(pass(&mut down, 11_300), Some(at(11_510)), "one radio for both directions");
        assert_eq!(pass(&mut down, 15_000), Some(at(15_010)));
        assert_eq!(pass(&mut up, 19_000), Some(at(19_010)), "kept awake by the other direction");
    }
}
