//! A link's one direction: what happens to a datagram between two ends, drawn from a seed.

use crate::Instant;
use rand::Rng;
use rand::rngs::StdRng;
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
    /// Bits a second; 0: without limit.
    pub rate: u64,
    /// Octets that wait where there is a rate; what comes beyond is lost.
    pub queue: usize,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
    /// The largest IP packet, outer headers counted; larger ones are lost, and nobody is told.
    pub mtu: usize,
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
            rate: 0,
            queue: 256 * 1024,
            duplicate: 0.0,
            mtu: 1500,
        }
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
}

impl Direction {
    pub(super) fn new(model: LinkModel) -> Self {
        Direction { model, cut: false, bad: false, busy_until: Instant::ZERO, last_arrival: Instant::ZERO }
    }

    /// When an IP packet of `len` octets that is sent now arrives; the second is for its double. Empty: it is lost.
    pub(super) fn pass(&mut self, now: Instant, len: usize, rng: &mut StdRng) -> [Option<Instant>; 2] {
        let lost = match self.model.loss {
            Loss::Random(p) => p > 0.0 && rng.random_bool(p),
            Loss::Bursts { to_bad, to_good } => {
                self.bad = if self.bad { !rng.random_bool(to_good) } else { rng.random_bool(to_bad) };
                self.bad
            }
        };
        if self.cut || lost || len > self.model.mtu {
            return [None, None];
        }
        let mut at = now;
        if self.model.rate > 0 {
            let start = self.busy_until.max(now);
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
        if self.model.ordered {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        let double = self.model.duplicate > 0.0 && rng.random_bool(self.model.duplicate);
        [Some(at), double.then_some(at)]
    }
}
