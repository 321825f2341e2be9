//! Which packet numbers came by a path: the receiving half of receipts, and what finds out second copies.

use crate::counters::DropReason;
use crate::tunnel::PacketId;
use crate::wire::{Ranges, Receipt};
use crate::{Instant, wire};
use std::time::Duration;

/// Numbers below the largest that a receipt tells at least: WireGuard's own replay window in boringtun; older ones it would
/// not let in. At full speed more than that come in the time between two receipts, and a receipt tells all that the last two
/// have not told: both of them may be lost.
const TOLD: u64 = 1024;

/// The numbers of a session of which is known whether they came. What is sent again was sent first at most a second ago
/// ([`crate::node::MAX_AGE`]), or a little more by a slow path: at 50,000 packets a second that is this many. A session
/// takes 8 KiB for it at most, and 128 octets as long as it has carried little.
const LEAST_WINDOW: u64 = 1024;
const MOST_WINDOW: u64 = 64 * 1024;

/// Sessions remembered: the live one, the one before it (packets under way at a rekey), and two for handshakes that
/// cross or are repeated.
const SESSIONS: usize = 4;

/// A session of which nothing came for this long is forgotten when another begins: ten times as long as anything is
/// sent again after its first transmission.
const KEEP: Duration = Duration::from_secs(10);

/// What came by one path.
#[derive(Debug, Default)]
pub(crate) struct ReceivedLog {
    sessions: Vec<ReceivedSession>,
}

#[derive(Debug)]
struct ReceivedSession {
    session: u32,
    /// What came by this path.
    arrived: Window,
    /// What came as a copy, by whichever path. A receipt must not tell it: it says nothing of this path.
    copied: Window,
    largest_at: Instant,
    used_at: Instant,
    /// Where the last two receipts ended.
    told: [u64; 2],
    /// Something that asks for a receipt came since the last one.
    news: bool,
}

/// A set of numbers that mostly grow, as far back from the largest as it reaches.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The largest number, plus one.
    end: u64,
    /// Bit `n % capacity` for number n. A power of two of them; none until the first number comes.
    bits: Vec<u64>,
}

/// The whole number of which this is the low half: the one nearest to `near`.
pub(crate) fn nearest(low: u32, near: u64) -> u64 {
    let same = near & !u64::from(u32::MAX) | u64::from(low);
    let others = [same.checked_sub(1 << 32), same.checked_add(1 << 32)];
    others.into_iter().flatten().fold(same, |a, b| if b.abs_diff(near) < a.abs_diff(near) { b } else { a })
}

impl Window {
    fn capacity(&self) -> u64 {
        self.bits.len() as u64 * 64
    }

    fn place(&self, number: u64) -> (usize, u64) {
        let at = number % self.capacity();
        ((at / 64) as usize, 1 << (at % 64))
    }

    /// The largest number that was put in, plus one; 0: none was.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The whole number of which this is the low half: the one nearest to the largest.
    pub(crate) fn nearest(&self, low: u32) -> u64 {
        nearest(low, self.end)
    }

    /// Whether it is in the set; `None`: it is too old to tell.
    pub(crate) fn has(&self, number: u64) -> Option<bool> {
        if number >= self.end {
            return Some(false);
        }
        if self.end - number > self.capacity() {
            return None;
        }
        let (word, bit) = self.place(number);
        Some(self.bits[word] & bit != 0)
    }

    /// Puts it in the set, unless it is too old.
    pub(crate) fn insert(&mut self, number: u64) {
        if number >= self.capacity() && self.capacity() < MOST_WINDOW {
            // No number has been as large as the capacity yet, so each stays in its place.
            let wanted = number.saturating_add(1).checked_next_power_of_two().unwrap_or(MOST_WINDOW);
            let capacity = wanted.clamp(LEAST_WINDOW, MOST_WINDOW);
            self.bits.resize((capacity / 64) as usize, 0);
        }
        let capacity = self.capacity();
        if number >= self.end {
            for skipped in (self.end..number).rev().take(capacity as usize) {
                let (word, bit) = self.place(skipped);
                self.bits[word] &= !bit;
            }
            self.end = number + 1;
        } else if self.end - number > capacity {
            return;
        }
        let (word, bit) = self.place(number);
        self.bits[word] |= bit;
    }
}

impl ReceivedLog {
    fn session(&mut self, session: u32, now: Instant) -> &mut ReceivedSession {
        let at = match self.sessions.iter().position(|s| s.session == session) {
            Some(at) => at,
            None => {
                self.sessions.retain(|s| now.since(s.used_at) < KEEP);
                if self.sessions.len() == SESSIONS {
                    // The first is the oldest: sessions are only ever added at the end.
                    self.sessions.remove(0);
                }
                self.sessions.push(ReceivedSession {
                    session,
                    arrived: Window::default(),
                    copied: Window::default(),
                    largest_at: now,
                    used_at: now,
                    told: [0; 2],
                    news: false,
                });
                self.sessions.len() - 1
            }
        };
        let session = &mut self.sessions[at];
        session.used_at = now;
        session
    }

    /// Notes a packet that decrypted. `eliciting`: it asks for a receipt. Whether a copy of it had come already.
    pub(crate) fn note(&mut self, id: PacketId, now: Instant, eliciting: bool) -> bool {
        // The last number is never sent: a session has ended long before it.
        let number = id.number.min(u64::MAX - 1);
        let session = self.session(id.session, now);
        if number >= session.arrived.end {
            session.largest_at = now;
        }
        session.arrived.insert(number);
        session.news |= eliciting;
        session.copied.has(number) == Some(true)
    }

    /// Notes a copy of a packet that was sent first by this path, unless the packet has come already, or may have.
    pub(crate) fn note_copy(&mut self, copy: wire::Copy, now: Instant) -> Result<(), DropReason> {
        let session = self.session(copy.session, now);
        let newest = if session.arrived.end > session.copied.end { &session.arrived } else { &session.copied };
        let number = newest.nearest(copy.number);
        match (session.arrived.has(number), session.copied.has(number)) {
            (Some(true), _) | (_, Some(true)) => Err(DropReason::Duplicate),
            (None, _) | (_, None) => Err(DropReason::CopyStale),
            (Some(false), Some(false)) => {
                session.copied.insert(number);
                Ok(())
            }
        }
    }

    /// Whether nothing of its session came that was sent later.
    pub(crate) fn is_newest(&self, id: PacketId) -> bool {
        self.sessions.iter().find(|s| s.session == id.session).is_none_or(|session| id.number >= session.arrived.end)
    }

    /// Whether a receipt is wanted.
    pub(crate) fn has_news(&self) -> bool {
        self.sessions.iter().any(|session| session.news)
    }

    /// Takes the receipts that are wanted.
    pub(crate) fn take_receipts(&mut self, path: u8, now: Instant, mut each: impl FnMut(Receipt)) {
        for session in self.sessions.iter_mut().filter(|session| session.news) {
            session.news = false;
            let arrived = &session.arrived;
            let Some(largest) = arrived.end.checked_sub(1) else { continue };
            let [last, before] = session.told;
            session.told = [arrived.end, last];
            // What is older is not known, and a longer range has no room in a receipt.
            let known = arrived.end.saturating_sub(arrived.capacity().min(u16::MAX.into()));
            let lowest = arrived.end.saturating_sub(TOLD).min(before).max(known);
            let mut ranges = Ranges::default();
            for number in (lowest..=largest).rev() {
                if arrived.has(number) != Some(true) {
                    continue;
                }
                if let Some((first, _)) = ranges.last_mut()
                    && *first == number + 1
                {
                    *first = number;
                } else if !ranges.push((number, number)) {
                    break;
                }
            }
            let delay_us = u32::try_from(now.since(session.largest_at).as_micros()).unwrap_or(u32::MAX);
            let received_us = (session.largest_at.as_nanos() / 1000) as u32;
            each(Receipt { path, session: session.session, largest, delay_us, received_us, ranges });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MAX_RANGES;
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
            let receipt = receipt(&mut log, Instant::ZERO);
            prop_assert_eq!(receipt.largest, largest);
            let lowest_told = receipt.ranges.last().expect("at least one range").0;
            let told: BTreeSet<u64> = receipt.ranges.iter().flat_map(|&(a, b)| a..=b).collect();
            let expected: BTreeSet<u64> = model.range(lowest_told..).copied().collect();
            prop_assert_eq!(told, expected);
            prop_assert!(receipt.ranges.len() == MAX_RANGES || model.first() == Some(&lowest_told));
        }
    }

    #[test]
    fn at_full_speed_a_receipt_tells_what_two_that_were_lost_have_not() {
        let mut log = ReceivedLog::default();
        for (end, lowest) in [(3000, 0), (6000, 0), (9000, 3000), (12_000, 6000), (12_001, 9000), (12_002, 10_978)] {
            for number in log.sessions.first().map_or(0, |session| session.arrived.end)..end {
                log.note(PacketId { session: 5, number }, Instant::ZERO, true);
            }
            assert_eq!(*receipt(&mut log, Instant::ZERO).ranges, [(lowest, end - 1)]);
        }
    }

    proptest! {
        /// Against a plain set as the model: whatever comes in whatever order, as a copy or not, each packet is let in
        /// once, and only what is far behind the newest is refused without being known.
        #[test]
        fn each_packet_is_let_in_once(
            arrivals in proptest::collection::vec((0u64..200_000, any::<bool>()), 1..400),
            base in prop_oneof![Just(0u64), Just((1u64 << 32) - 100_000)],
        ) {
            let mut log = ReceivedLog::default();
            let (mut seen, mut own, mut newest) = (BTreeSet::new(), BTreeSet::new(), base);
            log.note(PacketId { session: 5, number: base }, Instant::ZERO, true);
            own.insert(base);
            seen.insert(base);
            for (number, is_copy) in arrivals {
                let number = number + base;
                if !is_copy && !own.insert(number) {
                    continue; // WireGuard lets no number in twice
                }
                let id = PacketId { session: 5, number };
                let let_in = if is_copy {
                    let outcome = log.note_copy(wire::Copy::of(0, id), Instant::ZERO);
                    prop_assert!(outcome != Err(DropReason::CopyStale) || newest - number >= LEAST_WINDOW);
                    outcome.is_ok()
                } else {
                    // What is far behind would not have come in; the tunnel's window is narrower than ours.
                    if number + LEAST_WINDOW <= newest { own.remove(&number); continue; }
                    !log.note(id, Instant::ZERO, true)
                };
                if let_in {
                    prop_assert!(seen.insert(number), "{} came twice", number);
                }
                newest = newest.max(number);
            }
        }
    }

    #[test]
    fn a_copy_is_no_news_of_the_path_that_its_packet_was_sent_by() {
        let mut log = ReceivedLog::default();
        log.note(PacketId { session: 5, number: 1 }, Instant::ZERO, true);
        assert_eq!(log.note_copy(wire::Copy { path: 0, session: 5, number: 2 }, Instant::ZERO), Ok(()));
        assert_eq!(*receipt(&mut log, Instant::ZERO).ranges, [(1, 1)]);
        assert!(log.note(PacketId { session: 5, number: 2 }, Instant::ZERO, true), "the copy was first");
        let again = log.note_copy(wire::Copy { path: 0, session: 5, number: 2 }, Instant::ZERO);
        assert_eq!(again, Err(DropReason::Duplicate));
    }

    #[test]
    fn memory_grows_with_what_a_session_carries_up_to_its_bound_and_goes_with_the_session() {
        let mut log = ReceivedLog::default();
        let octets = |log: &ReceivedLog| {
            log.sessions.iter().map(|s| (s.arrived.bits.len() + s.copied.bits.len()) * 8).sum::<usize>()
        };
        log.note(PacketId { session: 1, number: 0 }, Instant::ZERO, true);
        assert_eq!(octets(&log), 128);
        for number in 0..300_000 {
            log.note(PacketId { session: 1, number }, Instant::ZERO, true);
        }
        assert_eq!(octets(&log), 8192);
        log.note(PacketId { session: 2, number: 0 }, Instant::ZERO + KEEP, true);
        assert_eq!(octets(&log), 128);
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
