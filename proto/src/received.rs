//! Which packet numbers came by a path: the receiving half of receipts.

use crate::Instant;
use crate::tunnel::PacketId;
use crate::wire::{MAX_RANGES, Receipt};

/// Numbers remembered below the largest: WireGuard's own replay window in boringtun; older ones it would not let in.
const WINDOW: u64 = 1024;
const WORDS: usize = (WINDOW / 64) as usize;

/// Sessions remembered: the live one, the one before it (packets under way at a rekey), and two for handshakes that
/// cross or are repeated.
const SESSIONS: usize = 4;

/// What came by one path.
#[derive(Debug, Default)]
pub(crate) struct ReceivedLog {
    sessions: Vec<ReceivedSession>,
}

#[derive(Debug)]
struct ReceivedSession {
    session: u32,
    largest: u64,
    largest_at: Instant,
    /// Bit `n % WINDOW` for number n, for the numbers in (largest - WINDOW, largest].
    bits: [u64; WORDS],
    /// Something that asks for a receipt came since the last one.
    news: bool,
}

impl ReceivedSession {
    fn bit(number: u64) -> (usize, u64) {
        let at = number % WINDOW;
        ((at / 64) as usize, 1 << (at % 64))
    }

    fn has(&self, number: u64) -> bool {
        let (word, bit) = Self::bit(number);
        self.bits[word] & bit != 0
    }

    fn note(&mut self, number: u64, now: Instant) {
        if number > self.largest {
            for skipped in (self.largest + 1..=number).rev().take(WINDOW as usize) {
                let (word, bit) = Self::bit(skipped);
                self.bits[word] &= !bit;
            }
            self.largest = number;
            self.largest_at = now;
        }
        if self.largest - number < WINDOW {
            let (word, bit) = Self::bit(number);
            self.bits[word] |= bit;
        }
    }
}

impl ReceivedLog {
    /// Notes a packet that decrypted. `eliciting`: it asks for a receipt.
    pub(crate) fn note(&mut self, id: PacketId, now: Instant, eliciting: bool) {
        let at = match self.sessions.iter().position(|s| s.session == id.session) {
            Some(at) => at,
            None => {
                if self.sessions.len() == SESSIONS {
                    // The first is the oldest: sessions are only ever added at the end.
                    self.sessions.remove(0);
                }
                self.sessions.push(ReceivedSession {
                    session: id.session,
                    largest: id.number,
                    largest_at: now,
                    bits: [0; WORDS],
                    news: false,
                });
                self.sessions.len() - 1
            }
        };
        let session = &mut self.sessions[at];
        session.note(id.number, now);
        session.news |= eliciting;
    }

    /// Whether nothing of its session came that was sent later.
    pub(crate) fn is_newest(&self, id: PacketId) -> bool {
        self.sessions.iter().find(|s| s.session == id.session).is_none_or(|session| id.number > session.largest)
    }

    /// Whether a receipt is wanted.
    pub(crate) fn has_news(&self) -> bool {
        self.sessions.iter().any(|session| session.news)
    }

    /// Takes the receipts that are wanted.
    pub(crate) fn take_receipts(&mut self, slot: u8, now: Instant, mut each: impl FnMut(Receipt)) {
        for session in self.sessions.iter_mut().filter(|session| session.news) {
            session.news = false;
            let lowest = session.largest.saturating_sub(WINDOW - 1);
            let mut ranges: Vec<(u64, u64)> = Vec::new();
            for number in (lowest..=session.largest).rev() {
                if !session.has(number) {
                    continue;
                }
                let told = ranges.len();
                match ranges.last_mut() {
                    Some((first, _)) if *first == number + 1 => *first = number,
                    _ if told == MAX_RANGES => break,
                    _ => ranges.push((number, number)),
                }
            }
            let delay_us = u32::try_from(now.since(session.largest_at).as_micros()).unwrap_or(u32::MAX);
            each(Receipt { slot, session: session.session, largest: session.largest, delay_us, ranges });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn receipt(log: &mut ReceivedLog, now: Instant) -> Receipt {
        let mut taken = Vec::new();
        log.take_receipts(0, now, |receipt| taken.push(receipt));
        assert_eq!(taken.len(), 1);
        taken.remove(0)
    }

    proptest! {
        /// Against a plain set as the model: what a receipt says is exactly what came, as far as it reaches.
        #[test]
        fn a_receipt_says_what_came(numbers in proptest::collection::vec(0u64..3000, 1..400)) {
            let mut log = ReceivedLog::default();
            let mut model = BTreeSet::new();
            let mut largest = 0;
            for &number in &numbers {
                log.note(PacketId { session: 5, number }, Instant::ZERO, true);
                largest = largest.max(number);
                model.insert(number);
            }
            // A number that was below the window when it came would not have decrypted; the model forgets it too.
            let receipt = receipt(&mut log, Instant::ZERO);
            prop_assert_eq!(receipt.largest, largest);
            let lowest_told = receipt.ranges.last().expect("at least one range").0;
            let told: BTreeSet<u64> = receipt.ranges.iter().flat_map(|&(a, b)| a..=b).collect();
            let mut in_window = BTreeSet::new();
            let mut high = None::<u64>;
            for &number in &numbers {
                high = Some(high.map_or(number, |h| h.max(number)));
                if high.expect("set above") - number < WINDOW { in_window.insert(number); }
            }
            let expected: BTreeSet<u64> = in_window.into_iter().filter(|&n| n >= lowest_told && largest - n < WINDOW).collect();
            prop_assert_eq!(told, expected);
        }
    }

    #[test]
    fn sessions_are_told_apart_and_the_oldest_is_forgotten() {
        let mut log = ReceivedLog::default();
        for session in 0..6 {
            log.note(PacketId { session, number: 1 }, Instant::ZERO, true);
        }
        let mut sessions = Vec::new();
        log.take_receipts(0, Instant::ZERO, |receipt| sessions.push(receipt.session));
        assert_eq!(sessions, [2, 3, 4, 5]);
        assert!(!log.has_news());
    }
}
