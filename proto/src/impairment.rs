//! Losses that make a path one to leave, though it is not dead.
//!
//! **A brown-out**: a tenth of all that is sent and more is lost, and not because a queue of ours overflows. It counts when
//! it is spread over the last 192 datagrams, which a cut is not, and lasts 200 ms, which the overrun of a short queue does not. It
//! is over when of the last 96 nearly all arrive.
//!
//! **Data that is lost while small packets pass**: by their size, mostly, on a link that drops what is large.
//! The path's questions are answered then, yet what it is for does not arrive. Receipts show it: for each class of lengths a cumulative sum (Page's CUSUM) of losses and arrivals runs, which random loss leaves near zero and
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
/// burst by a few; and what a connection overruns in a short queue is lost within two round trips of most ways.
const LASTS: Duration = Duration::from_millis(200);

/// So many questions of that length must arrive in a row: with 30 % of all lost that takes 16 questions on average, with
/// nearly all lost for ever.
const PROOFS: u8 = 3;

/// The last datagrams of which is known whether they arrived are looked at in so many parts of 32.
const PARTS: usize = 6;
/// In each part so many are lost: random loss of 3 % does that once in 1e10 datagrams, of 10 % once in some 200, of 30 %
/// nearly always; and bursts that lose three in a row, one in a thousand datagrams, once in 1e7. Where all of a part are
/// lost that was a cut.
const BROWN_OUT: std::ops::RangeInclusive<u32> = 4..=28;
/// It is over when in the last three parts at most so many are lost: with 10 % lost that is once in 2,000 times, with 1 %
/// three times in four. And for so long: of a burst that was sent in one moment, what has arrived is known before what was
/// lost. An idle path, which is asked five times a second with two datagrams, takes ten seconds for that.
const CLEAN: u32 = 1;
const CLEAN_FOR: Duration = Duration::from_secs(1);

/// What is known of losses on one path, in the direction in which this end sends.
#[derive(Debug, Default)]
pub(crate) struct Impairment {
    classes: [Class; CLASSES],
    proof: Option<Proof>,
    /// The newest lowest, a bit each: set for a lost one.
    recent: [u32; PARTS],
    /// The longest of those that were lost.
    longest_lost: u16,
    brown_out: bool,
    /// Since when it looks as if it were over, or as if there were none.
    clean_since: Option<Instant>,
    /// And since when it does not.
    lossy_since: Option<Instant>,
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
    /// Whether there is one.
    pub(crate) fn is_seen(&self) -> bool {
        self.proof.is_some() || self.brown_out
    }

    /// Which, in words.
    pub(crate) fn reason(&self) -> &'static str {
        if self.brown_out {
            "a tenth and more of all that is sent is lost"
        } else {
            "larger datagrams are lost while small ones arrive"
        }
    }

    /// A datagram of this length arrived or was lost, as is known now. `own_queue`: what we send fills a queue on the way.
    pub(crate) fn on_judged(&mut self, len: u16, arrived: bool, own_queue: bool, now: Instant) {
        if !own_queue {
            let mut carry = u32::from(!arrived);
            for part in &mut self.recent {
                carry = std::mem::replace(part, *part << 1 | carry) >> 31;
            }
            let lost = self.recent.map(u32::count_ones);
            match lost.iter().sum::<u32>() {
                0 => self.longest_lost = 0,
                _ if !arrived => self.longest_lost = self.longest_lost.max(len),
                _ => {}
            }
            let clean = lost[..PARTS / 2].iter().sum::<u32>() <= CLEAN;
            self.clean_since = if clean { self.clean_since.or(Some(now)) } else { None };
            self.lossy_since = if clean { None } else { self.lossy_since.or(Some(now)) };
            let lasts = self.lossy_since.is_some_and(|since| now.since(since) >= LASTS);
            if self.brown_out {
                self.brown_out = self.clean_since.is_none_or(|since| now.since(since) < CLEAN_FOR);
            } else if lasts && lost.iter().all(|lost| BROWN_OUT.contains(lost)) {
                self.brown_out = true;
                // It may be only the larger ones that are lost, and what is asked is small.
                self.proof.get_or_insert(Proof { len: self.longest_lost, arrived: 0 });
            }
        }
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
                    (self.classes, self.proof) = Default::default();
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
            seen.on_judged(106, true, false, at(ms));
            seen.on_judged(1032, false, false, at(ms));
            seen.is_seen()
        });
        assert!(first.is_some_and(|first| first <= 200), "{first:?}");
        assert_eq!(seen.question(1444), Some(1032));
    }

    #[test]
    fn random_loss_is_never_taken_for_it() {
        for share in [1, 10, 30, 40] {
            let (mut seen, mut state) = (Impairment::default(), share);
            for packet in 0..1_000_000u64 {
                seen.on_judged(1032, draw(&mut state) >= share, false, at(packet));
                assert!(seen.brown_out || seen.proof.is_none(), "{share} % at {packet}");
            }
        }
    }

    #[test]
    fn a_brown_out_is_seen_within_a_quarter_of_a_thousand_packets_and_over_when_all_arrive() {
        for (share, bar) in [(30, 250), (20, 600), (15, 3_000)] {
            let (mut seen, mut state) = (Impairment::default(), 7);
            for packet in 0..1000 {
                seen.on_judged(1032, true, false, at(packet));
            }
            let first = (0..10_000).find(|&packet| {
                seen.on_judged(1032, draw(&mut state) >= share, false, at(1000 + packet));
                seen.is_seen()
            });
            assert!(first.is_some_and(|first| first < bar), "{share} %: {first:?}");
            let over = (1..2000).find(|&packet| {
                seen.on_judged(1032, true, false, at(20_000 + packet));
                !seen.is_seen()
            });
            assert!(over.is_some_and(|over| (1_064..=1_096).contains(&over)), "{share} %: {over:?}");
        }
    }

    #[test]
    fn little_loss_a_short_cut_and_a_queue_that_overflows_are_no_brown_out() {
        let (mut seen, mut state) = (Impairment::default(), 9);
        for packet in 0..1_000_000u64 {
            let cut = packet % 1000 < 90;
            seen.on_judged(1032, !cut && draw(&mut state) >= 1, false, at(packet));
            assert!(!seen.is_seen(), "at {packet}");
        }
        for packet in 0..10_000 {
            seen.on_judged(1032, draw(&mut state) >= 30, true, at(packet));
            assert!(!seen.brown_out, "at {packet}");
        }
        // A connection of 50 Mbit/s overruns a queue that is too short to be seen, three times a second for 60 ms.
        let mut seen = Impairment::default();
        for packet in 0..100_000 {
            let overrun = packet / 4 % 300 < 60;
            seen.on_judged(1032, !overrun || draw(&mut state) >= 20, false, at(packet / 4));
            assert!(!seen.is_seen(), "at {packet}");
        }
    }

    #[test]
    fn a_cut_that_ended_is_none_however_long_it_was() {
        let mut seen = Impairment::default();
        for _ in 0..1000 {
            seen.on_judged(1032, false, false, at(700));
        }
        for ms in 700..2000 {
            seen.on_judged(1032, true, false, at(ms));
            seen.on_judged(1032, ms % 7 != 0, false, at(ms));
        }
        assert!(!seen.is_seen());
    }

    #[test]
    fn only_questions_as_long_as_what_was_lost_clear_it() {
        let mut seen = Impairment::default();
        for ms in 0..300 {
            seen.on_judged(1032, false, false, at(ms));
        }
        for ms in 300..600 {
            seen.on_judged(106, true, false, at(ms));
        }
        assert!(seen.is_seen());
        for (arrived, left) in [(true, true), (true, true), (false, true), (true, true), (true, true), (true, false)] {
            seen.on_judged(1032, arrived, false, at(700));
            assert_eq!(seen.is_seen(), left);
        }
        for ms in 1000..1300 {
            seen.on_judged(1412, false, false, at(ms));
        }
        assert_eq!(seen.question(1200), Some(1200), "no longer than the path carries");
    }
}
