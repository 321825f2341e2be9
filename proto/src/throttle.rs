//! Whether a path carries far less than it is given, in the direction in which this end sends: an ISP may hold down a kind of
//! traffic, and by its round trips such a path looks well.
//!
//! ```text
//!   [fair] --- little of what is offered arrives, for a second ---> [throttled] --- a train of probes arrives ---> [fair]
//!                                                                        |  ^
//!                                                                        +--+ another train, twice as long after this one
//! ```
//! It is judged only where the uplink has another kind of tunnel that could do better. A path that is left for that one carries
//! nothing by which it could be seen to have healed; so it is tried with a train of probes: a second and a half at four times
//! the rate that it had. That is little beside what the other path carries then, and the site's packets are not risked.

use crate::Instant;
use std::time::Duration;

/// What is offered and what arrives are compared in steps of this.
const STEP: Duration = Duration::from_millis(100);
/// Over so many of them: a second, as long as packets are kept and may wait.
const STEPS: usize = 10;
/// And as many before, since what is offered arrives a round trip later.
const MEMORY: usize = 2 * STEPS;

/// It must be so for so many steps on end. Slow start over a satellite's round trip of 600 ms offers more than twice what
/// arrives for that long.
const LASTS: u32 = 10;

/// Where it fails altogether so many are enough: it is left anyway, and what of it arrived must be known.
const SEEN: u32 = 3;

/// Less than this is offered, in octets a second (256 kbit/s), and nobody is throttled: a call passes through what is worth
/// calling a throttle.
const LEAST_OFFERED: u64 = 32_000;

/// Of what is offered, less than one part in so many arrives. A slow link that is offered twice what it carries is only slow.
const PARTS: u64 = 3;

/// Or one datagram in so many is lost, of so many at least: a policer drops, and TCP then offers no more than that lets pass.
const LOST: u64 = 10;
const LEAST_JUDGED: u64 = 20;

/// Or a path that is held carries less than one part in so many of what it carried before.
const FORMER: u64 = 4;
/// By so much of itself the former rate fades with each step in which the path is used: half of it in a minute.
const FADES: u64 = 1024;

/// A path that is used and carries what it is offered for so long is not throttled any more.
const FAIR: Duration = Duration::from_secs(5);

/// Trains of probes: the first after so long, then at twice the time each, and at most so seldom: it costs 70 kB for a
/// throttle of 100 kbit/s.
const FIRST_TRAIN: Duration = Duration::from_secs(10);
const MOST_BETWEEN: Duration = Duration::from_secs(300);
/// Without being throttled for so long, and the next train comes early again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// A train lasts so long. A policer lets a burst pass first (a tenth of a second at full speed, or 10 to 64 kB).
const TRAIN: Duration = Duration::from_millis(1500);
/// It is so many times as fast as what arrived when the path was throttled, in octets a second within these bounds: 256 kbit/s,
/// and 2 Mbit/s, which would be much beside what a slow link carries.
const TIMES: u64 = 4;
const TRAIN_RATES: (u64, u64) = (32_000, 250_000);
/// Datagrams of a train are so long, or as long as fit the path.
const PROBE: u16 = 1200;
/// Of the train so many percent must arrive.
const ARRIVES: u64 = 90;

/// What arrived of what was offered, in bits a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) arrived: u64,
    pub(crate) offered: u64,
}

/// What has been counted up to a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Octets of packets that were given to the path.
    offered: u64,
    /// Octets of datagrams that arrived.
    arrived: u64,
    /// Datagrams that arrived, and that were lost.
    delivered: u64,
    lost: u64,
}

impl Sums {
    fn since(&self, before: &Sums) -> Sums {
        Sums {
            offered: self.offered - before.offered,
            arrived: self.arrived - before.arrived,
            delivered: self.delivered - before.delivered,
            lost: self.lost - before.lost,
        }
    }
}

/// What a path is like at the moment, for the judgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// It is impaired, or nothing is acknowledged any more: what is bad need not last.
    pub(crate) failing: bool,
    /// The rate that it is held to, in octets a second.
    pub(crate) held: Option<u64>,
    /// Its round trip.
    pub(crate) round_trip: Duration,
    /// The other path over the uplink carries the traffic, there is some, and it has room.
    pub(crate) may_try: bool,
}

/// A train of probes.
#[derive(Clone, Copy, Debug)]
struct Train {
    next: Instant,
    every: Duration,
    ends: Instant,
    /// Octets sent, and octets that had arrived before. Not datagrams: a path in doubt is asked often, and what is small passes.
    sent: u64,
    before: u64,
}

#[derive(Clone, Copy, Debug)]
struct Throttled {
    share: Share,
    next_train: Instant,
    train: Option<Train>,
    /// Since when it carries what it is offered, as far as it is used.
    fair_since: Option<Instant>,
}

/// The judgement on one path.
#[derive(Debug)]
pub(crate) struct Throttle {
    sums: Sums,
    /// The sums of the last steps, the newest first.
    steps: [Sums; MEMORY],
    stepped: Instant,
    bad: u32,
    /// What it carried at best, in octets a second.
    former: u64,
    throttled: Option<Throttled>,
    /// The time to the next train, and since when the path was fair.
    interval: Duration,
    fair_at: Instant,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle {
            sums: Sums::default(),
            steps: [Sums::default(); MEMORY],
            stepped: Instant::ZERO,
            bad: 0,
            former: 0,
            throttled: None,
            interval: FIRST_TRAIN,
            fair_at: Instant::ZERO,
        }
    }
}

impl Throttle {
    /// A packet of this length was given to the path.
    pub(crate) fn on_offered(&mut self, len: usize) {
        self.sums.offered += len as u64;
    }

    /// What a receipt has told: octets and datagrams that arrived, and datagrams that were lost.
    pub(crate) fn on_judged(&mut self, octets: u64, delivered: u32, lost: u64) {
        self.sums.arrived += octets;
        self.sums.delivered += u64::from(delivered);
        self.sums.lost += lost;
    }

    /// What arrived of what was offered when the path was found to be throttled; `None`: it is not.
    pub(crate) fn share(&self) -> Option<Share> {
        self.throttled.map(|throttled| throttled.share)
    }

    /// Forgets that it is throttled: what was seen says nothing any more.
    pub(crate) fn forget(&mut self, now: Instant) {
        if self.throttled.take().is_some() {
            (self.fair_at, self.bad) = (now, 0);
        }
    }

    /// Whether it is time to judge again.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.since(self.stepped) >= STEP
    }

    /// Judges, if it is time. Whether it is throttled now and was not, or the other way round.
    pub(crate) fn judge(&mut self, now: Instant, look: Look) -> bool {
        if !self.is_due(now) {
            return false;
        }
        // After a pause the old sums would be taken for those of the last second.
        let missed = (now.since(self.stepped).as_millis() / STEP.as_millis()) as usize;
        self.stepped = now;
        for _ in 0..missed.min(MEMORY) {
            self.steps.rotate_right(1);
            self.steps[0] = self.sums;
        }
        let lag = (look.round_trip.as_millis() / STEP.as_millis()) as usize;
        let lag = lag.min(MEMORY - STEPS - 1);
        let last = self.steps[0].since(&self.steps[STEPS]);
        let offered = self.steps[lag].since(&self.steps[lag + STEPS]).offered;
        let used = offered >= LEAST_OFFERED;
        let judged = last.delivered + last.lost;
        let bad = used
            && (last.arrived * PARTS < offered
                || (judged >= LEAST_JUDGED && last.lost * LOST >= judged)
                || look.held.is_some_and(|held| held * FORMER < self.former && last.arrived * FORMER < self.former));
        self.bad = if bad { self.bad + 1 } else { 0 };
        if used {
            self.former = (self.former - self.former / FADES).max(last.arrived);
        }
        match &mut self.throttled {
            None if bad && (self.bad >= LASTS || (look.failing && self.bad >= SEEN)) => {
                if now.since(self.fair_at) >= FORGIVEN_AFTER {
                    self.interval = FIRST_TRAIN;
                }
                // Over the time in which it was so, as far as a second reaches.
                let over = (self.bad as usize).min(STEPS);
                let rate = |octets: u64| octets * 8 * STEPS as u64 / over as u64;
                let arrived = rate(self.steps[0].since(&self.steps[over]).arrived);
                let offered = rate(self.steps[lag].since(&self.steps[lag + over]).offered).max(arrived);
                let share = Share { arrived, offered };
                let next_train = now + self.interval;
                self.throttled = Some(Throttled { share, next_train, train: None, fair_since: None });
                true
            }
            None => false,
            Some(throttled) => {
                let fair = used && !bad && throttled.train.is_none() && !look.failing;
                throttled.fair_since = if fair { throttled.fair_since.or(Some(now)) } else { None };
                let healed = throttled.fair_since.is_some_and(|since| now.since(since) >= FAIR)
                    || self.passed(now, look.round_trip);
                if healed {
                    self.forget(now);
                }
                healed
            }
        }
    }

    /// Whether a train has ended, and all of it has arrived.
    fn passed(&mut self, now: Instant, round_trip: Duration) -> bool {
        let arrived = self.sums.arrived;
        let Some(throttled) = &mut self.throttled else { return false };
        // What is answered late was in a queue that the train has made.
        let late = round_trip * 2 + STEP;
        let Some(train) = throttled.train.filter(|train| now >= train.ends + late) else { return false };
        throttled.train = None;
        self.interval = (self.interval * 2).min(MOST_BETWEEN);
        throttled.next_train = now + self.interval;
        arrived - train.before >= train.sent * ARRIVES / 100
    }

    /// When [`Throttle::judge`] or [`Throttle::probe`] has something to do that no receipt brings about.
    pub(crate) fn deadline(&self, may_try: bool) -> Option<Instant> {
        let throttled = self.throttled.as_ref()?;
        match throttled.train {
            Some(train) if train.next < train.ends => Some(train.next),
            Some(_) => Some(self.stepped + STEP),
            None => may_try.then_some(throttled.next_train.max(self.stepped + STEP)),
        }
    }

    /// The length of the probe that is to be sent now, if one is. `largest`: the longest datagram that the path carries.
    pub(crate) fn probe(&mut self, now: Instant, look: Look, largest: u16) -> Option<u16> {
        let (len, before) = (PROBE.min(largest), self.sums.arrived);
        let throttled = self.throttled.as_mut()?;
        if throttled.train.is_none() && look.may_try && now >= throttled.next_train {
            let rate = (throttled.share.arrived / 8 * TIMES).clamp(TRAIN_RATES.0, TRAIN_RATES.1);
            let every = Duration::from_micros(u64::from(len) * 1_000_000 / rate);
            throttled.train = Some(Train { next: now, every, ends: now + TRAIN, sent: 0, before });
        }
        let train = throttled.train.as_mut().filter(|train| train.next <= now && train.next < train.ends)?;
        train.sent += u64::from(len);
        // Where this process was late, the train is slower, and not a burst.
        train.next = now + train.every;
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    const LOOK: Look = Look { failing: false, held: None, round_trip: Duration::from_millis(40), may_try: true };

    /// Milliseconds until the path is found to be throttled, if it is within 20 s: so many octets are offered each
    /// millisecond, and these parts of a thousand arrive.
    fn throttled_after(offered: u64, arrives: u64, from: u64) -> Option<u64> {
        let mut throttle = Throttle::default();
        (0..20_000).find(|&ms| {
            throttle.on_offered(offered as usize);
            let share = if ms >= from { arrives } else { 1000 };
            throttle.on_judged(offered * share / 1000, u32::from(ms % 2 == 0), 0);
            throttle.judge(at(ms), LOOK)
        })
    }

    #[test]
    fn a_path_that_carries_far_less_than_it_is_given_is_throttled_and_one_that_is_only_full_is_not() {
        for (offered, arrives, within, why) in [
            (625, 1000, None, "all arrives"),
            (625, 20, Some(5000..7200), "5 Mbit/s by a policer of 100 kbit/s"),
            (625, 500, None, "a link that is offered twice what it carries"),
            (20, 100, None, "too little is offered to tell"),
        ] {
            let found = throttled_after(offered, arrives, 5000);
            match within {
                Some(within) => assert!(found.is_some_and(|ms| within.contains(&ms)), "{why}: {found:?}"),
                None => assert_eq!(found, None, "{why}"),
            }
        }
    }

    /// A throttled path that stands by, of whose probes these parts of a hundred arrive: seconds until it has healed, and the
    /// octets of probes in ten minutes.
    fn trains(arrives: u32) -> (Option<u64>, u64) {
        let (mut throttle, mut octets, mut healed, mut sent) = (Throttle::default(), 0, None, 0);
        for ms in 0..600_000 {
            let offered = if ms < 3000 { 625 } else { 0 };
            throttle.on_offered(offered);
            throttle.on_judged(offered as u64 / 50, 1, 0);
            if throttle.judge(at(ms), LOOK) && ms > 3000 {
                healed.get_or_insert(ms / 1000);
            }
            if let Some(len) = throttle.probe(at(ms), LOOK, 1452) {
                octets += u64::from(len);
                sent += 1;
                let arrived = u32::from(sent % 10 < arrives / 10);
                throttle.on_judged(u64::from(len) * u64::from(arrived), arrived, 1 - u64::from(arrived));
            }
        }
        (healed, octets)
    }

    #[test]
    fn a_throttle_that_is_gone_is_found_by_the_first_train_and_one_that_stays_costs_little() {
        let (healed, octets) = trains(100);
        assert!(healed.is_some_and(|s| s < 15), "{healed:?}");
        assert!(octets < 100_000, "{octets}");
        let (healed, octets) = trains(30);
        assert_eq!(healed, None);
        assert!((200_000..600_000).contains(&octets), "six trains in ten minutes: {octets}");
    }
}
