//! Puts packets back in order that came by several paths ([`Sequence`]), and waits for the missing no longer than they can
//! be late.
//!
//! ```text
//!   came       1 2 . 4 5 . .        3 comes by a slower path, or its wait is over
//!   delivered  1 2         4 5
//! ```
//! A path keeps the order of what it carries. So what is missing was lost if each path in use has brought something that was
//! sent later; while one has not, it may just have a queue, and is given the time that a queue takes.
//!
//! What comes after its place was given up is delivered at once, out of order: late is better than never.

use crate::wire::Sequence;
use crate::{Instant, MAX_PATHS};
use std::collections::VecDeque;
use std::time::Duration;

/// Octets that wait at most: a gigabit a second for a tenth of a second, the longest that paths of one bond differ by.
const MOST_OCTETS: usize = 12 * 1024 * 1024;

/// A number so far ahead is of another life of the sender, or of a stream that was silent while its numbers went on: nothing
/// between is waited for. At a gigabit a second so many packets come in a fifth of a second.
const MOST_AHEAD: u32 = 16 * 1024;

/// How much longer than the sender thinks a path may take that has brought nothing newer yet: what it sends into a link
/// whose rate falls makes a queue of 32 ms before it is held back ([`crate::shape`]), and as much is under way by then.
const QUEUE: Duration = Duration::from_millis(64);

/// A path that has brought nothing for so long is not waited for: it is not in use.
const IN_USE: Duration = Duration::from_millis(500);

/// Streams of one peer: as many as an octet tells apart.
const STREAMS: usize = 256;

/// A packet that waits for those before it.
#[derive(Debug)]
struct Held {
    packet: Vec<u8>,
    /// Those before it are waited for until then.
    until: Instant,
}

/// A stream: a sequence of numbers of its own.
#[derive(Debug, Default)]
struct Stream {
    /// The number that is to be delivered next; `None`: nothing has come yet.
    next: Option<u32>,
    /// From `next` on. The first is missing, the last is not.
    held: VecDeque<Option<Held>>,
    /// The newest number that each path has brought.
    newest: [Option<u32>; MAX_PATHS],
}

impl Stream {
    /// How many at the front are missing.
    fn gap(&self) -> usize {
        self.held.iter().take_while(|held| held.is_none()).count()
    }

    /// Until when the gap at the front is waited for; `in_use`: the paths that may still bring what is missing.
    fn until(&self, in_use: u16) -> Option<Instant> {
        let gap = self.gap();
        let until = self.held.get(gap)?.as_ref()?.until;
        let last_missing = self.next?.wrapping_add(gap as u32).wrapping_sub(1);
        let is_past = |newest: &Option<u32>| newest.is_some_and(|n| n.wrapping_sub(last_missing).cast_signed() > 0);
        let lost = self.newest.iter().enumerate().all(|(path, newest)| in_use & 1 << path == 0 || is_past(newest));
        Some(if lost { until } else { until + QUEUE })
    }

    /// Gives up the first so many numbers.
    fn skip(&mut self, count: usize) {
        self.held.drain(..count);
        self.next = self.next.map(|next| next.wrapping_add(count as u32));
    }

    /// Gives up all that is missing: what is held are the numbers just before `next`.
    fn close_up(&mut self, next: u32) {
        self.held.retain(Option::is_some);
        self.next = Some(next.wrapping_sub(self.held.len() as u32));
    }
}

/// What waits of one peer.
#[derive(Debug, Default)]
pub(crate) struct Resequencer {
    /// Made with the first packet that is numbered.
    streams: Vec<Stream>,
    /// Those of which something waits.
    waiting: Vec<u8>,
    /// When each path has brought something last.
    used: [Option<Instant>; MAX_PATHS],
    octets: usize,
    packets: usize,
    spare: Vec<Vec<u8>>,
    /// Packets that came after their place was given up.
    late: u64,
}

impl Resequencer {
    /// A packet came by `path`. `true`: it is to be delivered now. [`Resequencer::pop`] has what follows it.
    pub(crate) fn insert(&mut self, now: Instant, path: u8, sequence: Sequence, packet: &[u8]) -> bool {
        if self.streams.is_empty() {
            self.streams.resize_with(STREAMS, Stream::default);
        }
        let full = self.octets + packet.len() > MOST_OCTETS;
        let stream = &mut self.streams[usize::from(sequence.stream)];
        self.used[usize::from(path)] = Some(now);
        let newest = stream.newest[usize::from(path)].get_or_insert(sequence.number);
        if sequence.number.wrapping_sub(*newest).cast_signed() > 0 {
            *newest = sequence.number;
        }
        let next = *stream.next.get_or_insert(sequence.number);
        let mut ahead = sequence.number.wrapping_sub(next);
        if ahead.cast_signed() < 0 {
            self.late += 1;
            return true;
        }
        if ahead > MOST_AHEAD || full {
            stream.close_up(sequence.number);
            ahead = stream.held.len() as u32;
        }
        if ahead == 0 {
            stream.next = Some(sequence.number.wrapping_add(1));
            stream.held.pop_front();
            return true;
        }
        let place = ahead as usize;
        if stream.held.len() <= place {
            stream.held.resize_with(place + 1, || None);
        }
        let held = &mut stream.held[place];
        if held.is_some() {
            return true; // of another life of the sender, since copies are known before they come here
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        *held = Some(Held { packet: buffer, until: now + sequence.wait });
        if !self.waiting.contains(&sequence.stream) {
            self.waiting.push(sequence.stream);
        }
        (self.octets, self.packets) = (self.octets + packet.len(), self.packets + 1);
        false
    }

    /// Takes the next packet that need not wait any more; its buffer is to be given back.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let in_use = self.in_use(now);
        for at in 0..self.waiting.len() {
            let stream = &mut self.streams[usize::from(self.waiting[at])];
            if stream.until(in_use).is_some_and(|until| until <= now) {
                stream.skip(stream.gap());
            }
            let Some(held) = stream.held.front_mut().and_then(Option::take) else { continue };
            stream.held.pop_front();
            stream.next = stream.next.map(|next| next.wrapping_add(1));
            if stream.held.is_empty() {
                self.waiting.swap_remove(at);
            }
            (self.octets, self.packets) = (self.octets - held.packet.len(), self.packets - 1);
            return Some(held.packet);
        }
        None
    }

    /// Takes back a buffer, for the next packet that waits.
    pub(crate) fn give_back(&mut self, buffer: Vec<u8>) {
        /// As many as wait in a usual bond; the rest is not kept.
        const SPARE: usize = 1024;
        if self.spare.len() < SPARE {
            self.spare.push(buffer);
        }
    }

    /// The paths that are in use, a bit each.
    fn in_use(&self, now: Instant) -> u16 {
        let recent = |path: &usize| self.used[*path].is_some_and(|at| now.since(at) < IN_USE);
        (0..MAX_PATHS).filter(recent).fold(0, |paths, path| paths | 1 << path)
    }

    /// When [`Resequencer::pop`] has something, if nothing comes before.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let in_use = self.in_use(now);
        self.waiting.iter().filter_map(|stream| self.streams[usize::from(*stream)].until(in_use)).min()
    }

    /// The sender has started anew: its numbers begin again. What waits need not wait.
    pub(crate) fn restart(&mut self) {
        for stream in &mut self.streams {
            let next = stream.next.unwrap_or(0);
            stream.close_up(next);
            stream.newest = Default::default();
            if stream.held.is_empty() {
                stream.next = None;
            }
        }
    }

    /// Packets and octets that wait.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.packets, self.octets)
    }

    /// Packets that came after their place was given up.
    pub(crate) fn late(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// What is delivered when packet `number` of a stream comes.
    fn come(resequencer: &mut Resequencer, ms: u64, stream: u8, number: u32, wait: u64) -> Vec<u32> {
        let sequence = Sequence { stream, number, wait: Duration::from_millis(wait) };
        let now = resequencer.insert(at(ms), 0, sequence, &number.to_be_bytes());
        let mut delivered = if now { vec![number] } else { Vec::new() };
        delivered.extend(due(resequencer, ms));
        delivered
    }

    fn due(resequencer: &mut Resequencer, ms: u64) -> Vec<u32> {
        let mut delivered = Vec::new();
        while let Some(packet) = resequencer.pop(at(ms)) {
            delivered.push(u32::from_be_bytes(packet[..4].try_into().expect("four octets")));
            resequencer.give_back(packet);
        }
        delivered
    }

    #[test]
    fn what_overtook_waits_for_what_it_overtook() {
        for first in [0, u32::MAX - 1] {
            let mut resequencer = Resequencer::default();
            let number = |n: u32| first.wrapping_add(n);
            assert_eq!(come(&mut resequencer, 0, 0, first, 30), [first]);
            assert_eq!(come(&mut resequencer, 1, 0, number(3), 30), []);
            assert_eq!(come(&mut resequencer, 2, 0, number(2), 30), []);
            assert_eq!(resequencer.held().0, 2);
            assert_eq!(come(&mut resequencer, 3, 0, number(1), 0), [number(1), number(2), number(3)]);
            assert_eq!((resequencer.held(), resequencer.deadline(at(3))), ((0, 0), None));
        }
    }

    #[test]
    fn what_cannot_come_any_more_is_not_waited_for_and_each_stream_waits_for_itself() {
        let mut resequencer = Resequencer::default();
        come(&mut resequencer, 0, 0, 0, 30);
        come(&mut resequencer, 0, 1, 0, 30);
        assert_eq!(come(&mut resequencer, 10, 0, 2, 30), []);
        assert_eq!(come(&mut resequencer, 20, 0, 4, 30), []);
        assert_eq!(come(&mut resequencer, 25, 1, 1, 30), [1], "the other stream is whole");
        assert_eq!(resequencer.deadline(at(25)), Some(at(40)));
        assert_eq!(due(&mut resequencer, 39), []);
        assert_eq!(due(&mut resequencer, 40), [2], "4 waits on for 3");
        assert_eq!(come(&mut resequencer, 41, 0, 1, 0), [1], "late, and delivered");
        assert_eq!(resequencer.late(), 1);
        assert_eq!(due(&mut resequencer, 50), [4]);
        assert_eq!(come(&mut resequencer, 51, 0, 5, 30), [5]);
    }

    #[test]
    fn a_path_that_has_brought_nothing_newer_may_have_a_queue() {
        let mut resequencer = Resequencer::default();
        let mut come = |ms: u64, path: u8, number: u32| {
            let sequence = Sequence { stream: 0, number, wait: Duration::from_millis(30) };
            let now = resequencer.insert(at(ms), path, sequence, &number.to_be_bytes());
            let mut delivered = if now { vec![number] } else { Vec::new() };
            delivered.extend(due(&mut resequencer, ms));
            (delivered, resequencer.deadline(at(ms)))
        };
        assert_eq!(come(0, 0, 0), (vec![0], None));
        assert_eq!(come(1, 1, 1), (vec![1], None));
        assert_eq!(come(2, 0, 3), (vec![], Some(at(2 + 30 + 64))), "the other one may bring 2");
        assert_eq!(come(40, 1, 4), (vec![3, 4], None), "it has not: 2 is lost, and its time is over");
        assert_eq!(come(41, 0, 6), (vec![], Some(at(41 + 30 + 64))));
        assert_eq!(come(50, 1, 7), (vec![], Some(at(71))), "5 is lost, unless the path has changed the order");
    }

    #[test]
    fn a_jump_of_the_numbers_and_a_sender_that_started_anew_lose_nothing() {
        let mut resequencer = Resequencer::default();
        come(&mut resequencer, 0, 0, 0, 500);
        assert_eq!(come(&mut resequencer, 1, 0, 2, 500), []);
        assert_eq!(come(&mut resequencer, 2, 0, 1_000_000, 500), [2, 1_000_000]);
        assert_eq!(come(&mut resequencer, 3, 0, 1_000_002, 500), []);
        resequencer.restart();
        assert_eq!(due(&mut resequencer, 3), [1_000_002]);
        resequencer.restart();
        assert_eq!(come(&mut resequencer, 4, 0, 0, 500), [0]);
        assert_eq!(come(&mut resequencer, 5, 0, 1, 500), [1]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut resequencer = Resequencer::default();
        let wait = Duration::from_secs(1);
        resequencer.insert(at(0), 0, Sequence { stream: 0, number: 0, wait }, &[0; 1400]);
        let mut delivered = 1;
        for number in 2..20_000 {
            delivered += u32::from(resequencer.insert(at(0), 0, Sequence { stream: 0, number, wait }, &[0; 1400]));
            while let Some(packet) = resequencer.pop(at(0)) {
                delivered += 1;
                resequencer.give_back(packet);
            }
            assert!(resequencer.held().1 <= MOST_OCTETS);
        }
        assert_eq!(delivered, 19_999, "once there is no room the gap is given up");
    }

    proptest! {
        /// Whatever comes in whatever order, each packet is delivered once, and in order if none was later than the wait.
        #[test]
        fn each_is_delivered_once_and_in_order_if_none_is_too_late(
            delays in proptest::collection::vec((0u64..40, any::<bool>()), 1..200),
        ) {
            let mut resequencer = Resequencer::default();
            // One packet a millisecond, by a way of 10 ms or by one of up to 50; some are lost.
            let mut arrivals: Vec<(u64, u32)> = delays.iter().enumerate()
                .filter(|(number, (delay, lost))| *number == 0 || !(*lost && delay % 4 == 0))
                .map(|(number, (delay, _))| (number as u64 + 10 + if number == 0 { 0 } else { *delay }, number as u32))
                .collect();
            arrivals.sort();
            let expected: Vec<u32> = { let mut all: Vec<u32> = arrivals.iter().map(|a| a.1).collect(); all.sort(); all };
            let (mut delivered, mut ms) = (Vec::new(), 0);
            for (arrival, number) in arrivals {
                while ms < arrival { delivered.extend(due(&mut resequencer, ms)); ms += 1; }
                delivered.extend(come(&mut resequencer, arrival, 7, number, 40));
            }
            while let Some(at) = resequencer.deadline(at(ms)) {
                delivered.extend(due(&mut resequencer, at.as_nanos() / 1_000_000));
            }
            prop_assert_eq!(delivered, expected);
        }
    }
}
