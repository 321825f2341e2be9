//! Data that is lost while small packets pass: by their size, mostly, on a link that drops what is large.
//!
//! A path is not dead then, and its questions are answered, yet what it is for does not arrive. Receipts show it: for each
//! class of lengths a cumulative sum (Page's CUSUM) of losses and arrivals runs, which random loss leaves near zero and
//! which a loss of nearly all drives up. What was seen is undone only by proof of the same kind: questions as long as
//! what was lost, that arrive.

use crate::Instant;
use std::time::Duration;

/// Classes of datagrams by their length, 256 octets each; the last is open above.
const CLASSES: usize = 6;
const CLASS: u16 = 256;

/// A loss adds one and an arrival takes three away, so the sum grows where more than three of four are lost. At 20 the
/// random loss of 40 % is a false alarm once in 2.39^20 = 4e7 packets (2.39 solves 0.4 x + 0.6 / x^3 = 1); 20 packets are
/// few enough for a second of a call.
const ALARM: u8 = 20;
const ARRIVAL: u8 = 3;

/// And for so long since the first of these losses was known: a cut of all packets that ends is told by one receipt, a
/// burst by a few.
const LASTS: Duration = Duration::from_millis(200);

/// So many questions of that length must arrive in a row: with 30 % of all lost that takes 16 questions on average, with
/// nearly all lost for ever.
const PROOFS: u8 = 3;

/// What is known of losses by length on one path, in the direction in which this end sends.
#[derive(Debug, Default)]
pub(crate) struct Impairment {
    classes: [Class; CLASSES],
    proof: Option<Proof>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Class {
    sum: u8,
    /// When the first loss of those in the sum was known.
    since: Instant,
}

/// What is asked for before the path counts as whole again.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The largest datagram that was lost, at most what the path carries.
    len: u16,
    /// Datagrams as long that arrived since the last one was lost.
    arrived: u8,
}

impl Impairment {
    /// Whether larger datagrams are lost while smaller ones arrive.
    pub(crate) fn is_seen(&self) -> bool {
        self.proof.is_some()
    }

    /// A datagram of this length arrived or was lost, as is known now.
    pub(crate) fn on_judged(&mut self, len: u16, arrived: bool, now: Instant) {
        let class = &mut self.classes[usize::from(len / CLASS).min(CLASSES - 1)];
        if arrived {
            class.sum = class.sum.saturating_sub(ARRIVAL);
        } else {
            if class.sum == 0 {
                class.since = now;
            }
            class.sum = (class.sum + 1).min(ALARM);
        }
        let alarm = !arrived && class.sum == ALARM && now.since(class.since) >= LASTS;
        match &mut self.proof {
            Some(proof) if arrived && len >= proof.len => {
                proof.arrived += 1;
                if proof.arrived == PROOFS {
                    *self = Impairment::default();
                }
            }
            Some(proof) if !arrived => {
                proof.len = proof.len.max(len);
                proof.arrived = 0;
            }
            None if alarm => self.proof = Some(Proof { len, arrived: 0 }),
            _ => {}
        }
    }

    /// The length of the question that would be a proof, at most `most`, if one is needed.
    pub(crate) fn question(&mut self, most: u16) -> Option<u16> {
        let proof = self.proof.as_mut()?;
        proof.len = proof.len.min(most);
        Some(proof.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// A generator of our own: no test needs better numbers than these.
    fn draw(state: &mut u32) -> u32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) % 100
    }

    #[test]
    fn large_ones_that_are_lost_while_small_ones_arrive_are_seen_in_a_quarter_of_a_second() {
        let mut seen = Impairment::default();
        let first = (0..1000).find(|&ms| {
            seen.on_judged(106, true, at(ms));
            seen.on_judged(1032, false, at(ms));
            seen.is_seen()
        });
        assert_eq!(first, Some(200));
        assert_eq!(seen.question(1444), Some(1032));
    }

    #[test]
    fn random_loss_is_never_taken_for_it() {
        for share in [1, 10, 30, 40] {
            let (mut seen, mut state) = (Impairment::default(), share);
            for packet in 0..1_000_000u64 {
                seen.on_judged(1032, draw(&mut state) >= share, at(packet));
                assert!(!seen.is_seen(), "{share} % at {packet}");
            }
        }
    }

    #[test]
    fn a_cut_that_ended_is_none_however_long_it_was() {
        let mut seen = Impairment::default();
        for _ in 0..1000 {
            seen.on_judged(1032, false, at(700));
        }
        for ms in 700..2000 {
            seen.on_judged(1032, true, at(ms));
            seen.on_judged(1032, ms % 7 != 0, at(ms));
        }
        assert!(!seen.is_seen());
    }

    #[test]
    fn only_questions_as_long_as_what_was_lost_clear_it() {
        let mut seen = Impairment::default();
        for ms in 0..300 {
            seen.on_judged(1032, false, at(ms));
        }
        for ms in 300..600 {
            seen.on_judged(106, true, at(ms));
        }
        assert!(seen.is_seen());
        for (arrived, left) in [(true, true), (true, true), (false, true), (true, true), (true, true), (true, false)] {
            seen.on_judged(1032, arrived, at(700));
            assert_eq!(seen.is_seen(), left);
        }
        for ms in 1000..1300 {
            seen.on_judged(1412, false, at(ms));
        }
        assert_eq!(seen.question(1200), Some(1200), "no longer than the path carries");
    }
}
