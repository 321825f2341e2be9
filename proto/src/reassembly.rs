//! Puts fragments together: the receiving half of what [`crate::wire::Fragment::cut`] does.
//!
//! Bounded in memory and time, whatever a peer sends: what does not become whole within [`PATIENCE`] is given up, and what
//! would take more than [`MOST_MEMORY`] makes the oldest give way. Fragments may come in any order, by any path of the
//! bundle, and again in other pieces where a packet is sent again by a narrower path. One that contradicts another of its
//! packet condemns the packet (as RFC 5722 has it for IPv6): nobody honest sends that. A packet becomes whole once: what
//! comes of it later is known by its number.

use crate::Instant;
use crate::config::MOST_MTU;
use crate::counters::{DropReason, Drops};
use crate::outer::{NOT_ECT, joined};
use crate::received::Window;
use crate::wire::Fragment;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a packet waits for its last fragment. Fragments leave together; by paths that differ by more than this, or
/// later than this, a packet is of no use to anybody.
const PATIENCE: Duration = Duration::from_millis(500);

/// Octets of packets in pieces, and of buffers kept for later ones, a peer: 180 packets of 1,380 octets, of which each
/// waits for the way's jitter.
const MOST_MEMORY: usize = 256 * 1024;

/// Fragments of one packet at most: 9,000 octets over the narrowest path make 20.
const MOST_PIECES: usize = 32;

/// Buffers are given back when no fragment came for this long: most sites never see one.
const KEEP: Duration = Duration::from_secs(10);

/// Packets of one peer that are not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    /// The oldest first.
    partial: VecDeque<Partial>,
    /// Used again for later packets; the one that became whole last is at the end.
    spare: Vec<Buffer>,
    /// Octets of all buffers, those in `partial` and in `spare`.
    held: usize,
    last: Instant,
    /// The numbers of packets that became whole: of the peer's present life, and of the one before it, of which some may
    /// still be under way. Each life begins with a number of its own.
    whole: [Window; 2],
}

/// Numbers of one life lie no farther apart than this while they are under way.
const LIFE: u64 = 1 << 20;

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Places of the octets that have come, as first and end; none touches another.
    pieces: Vec<(usize, usize)>,
    /// What the outer headers of these have met.
    ecn: u8,
}

#[derive(Debug)]
struct Partial {
    id: u32,
    since: Instant,
    buffer: Buffer,
}

impl Reassembly {
    /// Takes a fragment, whose outer header has this ECN field, and returns the packet, with that of all its fragments, if that
    /// makes it whole. What is given up is counted in `drops`.
    pub(crate) fn insert(
        &mut self,
        now: Instant,
        fragment: &Fragment<'_>,
        ecn: u8,
        drops: &mut Drops,
    ) -> Option<(&[u8], u8)> {
        self.expire(now, drops);
        self.last = now;
        let (first, total) = (usize::from(fragment.offset), usize::from(fragment.total));
        let end = first + fragment.content.len();
        if first == end || end > total || total > usize::from(MOST_MTU) {
            drops.add(DropReason::FragmentMalformed);
            return None;
        }
        let whole = Self::life(&mut self.whole, fragment.id);
        let number = whole.nearest(fragment.id);
        if whole.has(number) != Some(false) {
            drops.add(DropReason::FragmentDuplicate);
            return None;
        }
        // From the newest: fragments of a packet mostly come one behind the other.
        let at = match self.partial.iter().rposition(|partial| partial.id == fragment.id) {
            Some(at) => at,
            None => {
                let buffer = self.buffer(total, drops);
                self.partial.push_back(Partial { id: fragment.id, since: now, buffer });
                self.partial.len() - 1
            }
        };
        let Buffer { bytes, pieces, ecn: met } = &mut self.partial[at].buffer;
        let agrees = bytes.len() == total
            && pieces.iter().filter(|piece| first < piece.1 && piece.0 < end).all(|&(its_first, its_end)| {
                let (from, to) = (first.max(its_first), end.min(its_end));
                bytes[from..to] == fragment.content[from - first..to - first]
            });
        if !agrees || pieces.len() == MOST_PIECES {
            drops.add(DropReason::FragmentMalformed);
            self.give_up(at);
            return None;
        }
        if pieces.iter().any(|&(its_first, its_end)| its_first <= first && end <= its_end) {
            drops.add(DropReason::FragmentDuplicate);
            return None;
        }
        bytes[first..end].copy_from_slice(fragment.content);
        *met = joined(*met, ecn);
        let mut joined = (first, end);
        pieces.retain(|&(its_first, its_end)| {
            let touches = its_first <= joined.1 && joined.0 <= its_end;
            if touches {
                joined = (joined.0.min(its_first), joined.1.max(its_end));
            }
            !touches
        });
        pieces.push(joined);
        if joined != (0, total) {
            return None;
        }
        Self::life(&mut self.whole, fragment.id).insert(number);
        self.give_up(at);
        self.spare.last().map(|buffer| (buffer.bytes.as_slice(), buffer.ecn))
    }

    /// Gives up what has waited too long. To be called now and then also where nothing comes.
    pub(crate) fn expire(&mut self, now: Instant, drops: &mut Drops) {
        while self.partial.front().is_some_and(|partial| now.since(partial.since) >= PATIENCE) {
            drops.add(DropReason::FragmentTimeout);
            self.give_up(0);
        }
        if self.partial.is_empty() && now.since(self.last) >= KEEP {
            *self = Reassembly::default();
        }
    }

    /// The numbers of the life that a packet's number belongs to, those of the present one first.
    fn life(whole: &mut [Window; 2], id: u32) -> &mut Window {
        let near = |window: &Window| window.end() > 0 && window.nearest(id).abs_diff(window.end()) < LIFE;
        if !near(&whole[0]) && (near(&whole[1]) || whole[0].end() > 0) {
            whole.swap(0, 1);
            if !near(&whole[0]) {
                whole[0] = Window::default();
            }
        }
        &mut whole[0]
    }

    fn give_up(&mut self, at: usize) {
        if let Some(partial) = self.partial.remove(at) {
            self.spare.push(partial.buffer);
        }
    }

    /// A buffer of this length, for which the oldest packets give way if need be.
    fn buffer(&mut self, len: usize, drops: &mut Drops) -> Buffer {
        loop {
            if let Some(at) = self.spare.iter().rposition(|buffer| buffer.bytes.capacity() >= len) {
                let mut buffer = self.spare.swap_remove(at);
                buffer.bytes.clear();
                buffer.bytes.resize(len, 0);
                buffer.pieces.clear();
                buffer.ecn = NOT_ECT;
                return buffer;
            }
            if self.held + len <= MOST_MEMORY {
                let buffer = Buffer { bytes: vec![0; len], pieces: Vec::new(), ecn: NOT_ECT };
                self.held += buffer.bytes.capacity();
                return buffer;
            }
            // All of the spare ones are too small.
            if let Some(small) = self.spare.pop() {
                self.held -= small.bytes.capacity();
            } else {
                drops.add(DropReason::FragmentOverflow);
                self.give_up(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outer::CE;
    use proptest::prelude::*;

    fn packet(id: u32, len: usize) -> Vec<u8> {
        (0..len).map(|at| (at as u32 * 7 + id * 13) as u8).collect()
    }

    fn memory(reassembly: &Reassembly) -> usize {
        let buffers = reassembly.spare.iter().chain(reassembly.partial.iter().map(|partial| &partial.buffer));
        buffers.map(|buffer| buffer.bytes.capacity()).sum()
    }

    fn total(drops: &Drops) -> u64 {
        drops.iter().map(|(_, count)| count).sum()
    }

    proptest! {
        /// Whatever is lost, doubled and shuffled: what comes out is a packet that was sent, and each of which all
        /// fragments came.
        #[test]
        fn what_comes_out_is_what_was_sent(
            lens in proptest::collection::vec(1usize..9_001, 1..12),
            size in 548u16..1_445,
            draws in proptest::collection::vec((any::<u32>(), 0u8..10), 300),
        ) {
            let packets: Vec<_> = lens.iter().zip(0..).map(|(&len, id)| packet(id, len)).collect();
            let mut sent = Vec::new();
            for (packet, id) in packets.iter().zip(0..) {
                sent.extend(Fragment::cut(packet, id, size));
            }
            let mut arriving: Vec<_> = sent
                .iter()
                .zip(draws.iter().cycle())
                .flat_map(|(fragment, &(key, fate))| {
                    let copies = match fate { 0 => 0, 1 => 2, _ => 1 };
                    let ecn = if fate == 2 { CE } else { NOT_ECT };
                    (0..copies).map(move |copy: u32| (key.rotate_left(copy * 16), *fragment, ecn))
                })
                .collect();
            arriving.sort_by_key(|(key, ..)| *key);
            let marked = |id| arriving.iter().any(|(_, fragment, ecn)| fragment.id == id && *ecn == CE);
            let (mut reassembly, mut drops) = (Reassembly::default(), Drops::default());
            let mut whole = Vec::new();
            for (_, fragment, ecn) in &arriving {
                if let Some((bytes, ecn)) = reassembly.insert(Instant::ZERO, fragment, *ecn, &mut drops) {
                    prop_assert_eq!(bytes, &packets[fragment.id as usize]);
                    let marked = marked(fragment.id);
                    prop_assert_eq!(ecn, if marked { CE } else { NOT_ECT }, "a mark on any piece is one on the packet");
                    whole.push(fragment.id);
                }
                prop_assert!(memory(&reassembly) == reassembly.held && reassembly.held <= MOST_MEMORY);
            }
            for id in 0..packets.len() as u32 {
                let came = |sent: &&Fragment<'_>| arriving.iter().any(|(_, fragment, _)| fragment == *sent);
                let all = sent.iter().filter(|fragment| fragment.id == id).all(|fragment| came(&fragment));
                prop_assert_eq!(whole.contains(&id), all, "packet {}", id);
            }
            prop_assert_eq!(drops.get(DropReason::FragmentMalformed), 0);
        }

        /// Whatever a peer makes up: no panic, and no more memory than there may be.
        #[test]
        fn made_up_fragments_do_no_harm(
            made_up in proptest::collection::vec((0u32..40, 0u16..9_100, 0u16..9_100, 0usize..1_500, 0u64..40), 1..400),
        ) {
            let (mut reassembly, mut drops, mut now) = (Reassembly::default(), Drops::default(), Instant::ZERO);
            for (id, offset, total, len, later) in made_up {
                now += Duration::from_millis(later);
                let content = vec![id as u8; len];
                let fragment = Fragment { id, offset: offset / 100 * 100, total, content: &content };
                if let Some((whole, _)) = reassembly.insert(now, &fragment, NOT_ECT, &mut drops) {
                    prop_assert_eq!(whole.len(), usize::from(total));
                }
                prop_assert!(memory(&reassembly) == reassembly.held && reassembly.held <= MOST_MEMORY);
                prop_assert!(reassembly.partial.iter().all(|partial| partial.buffer.pieces.len() <= MOST_PIECES));
            }
            reassembly.expire(now + KEEP, &mut drops);
            prop_assert_eq!(memory(&reassembly), 0, "given back");
        }
    }

    #[test]
    fn what_lies_is_dropped_and_counted() {
        let piece = |offset, total, content| Fragment { id: 1, offset, total, content };
        let whole: &[u8] = &[1; 100];
        for (fragments, reason, why) in [
            (&[piece(0, 100, b"")][..], DropReason::FragmentMalformed, "empty"),
            (&[piece(90, 100, &whole[..11])], DropReason::FragmentMalformed, "beyond the end"),
            (&[piece(0, u16::MAX, whole)], DropReason::FragmentMalformed, "larger than any packet"),
            (
                &[piece(0, 100, &whole[..60]), piece(50, 100, &[2; 50])],
                DropReason::FragmentMalformed,
                "two contents where they overlap",
            ),
            (
                &[piece(0, 100, &whole[..60]), piece(60, 110, &whole[..50])],
                DropReason::FragmentMalformed,
                "two lengths",
            ),
            (&[piece(0, 100, &whole[..60]), piece(0, 100, &[2; 60])], DropReason::FragmentMalformed, "two contents"),
            (&[piece(0, 100, &whole[..60]), piece(0, 100, &whole[..60])], DropReason::FragmentDuplicate, "twice"),
        ] {
            let (mut reassembly, mut drops) = (Reassembly::default(), Drops::default());
            for fragment in fragments {
                assert_eq!(reassembly.insert(Instant::ZERO, fragment, NOT_ECT, &mut drops), None, "{why}");
            }
            assert_eq!((drops.get(reason), total(&drops)), (1, 1), "{why}");
        }
        let (mut reassembly, mut drops) = (Reassembly::default(), Drops::default());
        for at in 0..=MOST_PIECES as u16 {
            reassembly.insert(Instant::ZERO, &piece(2 * at, 100, &[1]), NOT_ECT, &mut drops);
        }
        assert_eq!(drops.get(DropReason::FragmentMalformed), 1, "too many");
    }

    proptest! {
        /// A packet that is sent again in other pieces, some of either lost, becomes whole once, when all octets are there.
        #[test]
        fn pieces_of_two_sizes_make_one_packet(
            len in 1_000usize..3_000,
            sizes in (548u16..1_445, 548u16..1_445),
            lost in any::<u16>(),
        ) {
            let packet = packet(1, len);
            let pieces: Vec<_> = Fragment::cut(&packet, 1, sizes.0).chain(Fragment::cut(&packet, 1, sizes.1)).collect();
            let (mut reassembly, mut drops) = (Reassembly::default(), Drops::default());
            let (mut have, mut whole) = (vec![false; len], 0);
            for (at, piece) in pieces.iter().enumerate().filter(|(at, _)| lost >> at & 1 == 0) {
                let first = usize::from(piece.offset);
                have[first..first + piece.content.len()].fill(true);
                let complete = have.iter().all(|&have| have) && whole == 0;
                let came = reassembly.insert(Instant::ZERO, piece, NOT_ECT, &mut drops);
                prop_assert_eq!(came.is_some(), complete, "piece {}", at);
                if let Some((came, _)) = came {
                    prop_assert_eq!(came, &packet);
                    whole += 1;
                }
            }
            prop_assert_eq!(drops.get(DropReason::FragmentMalformed), 0);
        }
    }

    #[test]
    fn two_lives_of_a_peer_are_told_apart_and_each_packet_of_either_comes_once() {
        let (mut reassembly, mut drops) = (Reassembly::default(), Drops::default());
        let mut came = |id, at: usize| {
            let content = &[7; 50];
            let fragment = Fragment { id, offset: 50 * at as u16, total: 100, content };
            reassembly.insert(Instant::ZERO, &fragment, NOT_ECT, &mut drops).is_some()
        };
        let (old, new) = (u32::MAX - 1, 1 << 30);
        // The old life's numbers begin anew at zero in the middle of it.
        for id in [old, old + 1, 0, 1] {
            assert!(!came(id, 0) && came(id, 1));
        }
        assert!(!came(new, 0), "the first of the new life is not whole yet");
        assert!(!came(1, 0) && !came(1, 1), "of the old life, late");
        assert!(came(new, 1));
        assert!(!came(2, 0) && came(2, 1) && !came(old, 0) && !came(old, 1));
        assert!(!came(new, 0) && !came(new, 1));
    }

    #[test]
    fn what_never_becomes_whole_is_given_up_in_time_and_for_what_comes_later() {
        let (mut reassembly, mut drops) = (Reassembly::default(), Drops::default());
        let half = |id| Fragment { id, offset: 0, total: 1_380, content: &[0; 690] };
        let fit = (MOST_MEMORY / 1_380) as u32;
        for id in 0..fit + 10 {
            assert_eq!(reassembly.insert(Instant::ZERO, &half(id), NOT_ECT, &mut drops), None);
        }
        assert_eq!(drops.get(DropReason::FragmentOverflow), 10);
        let rest = |id| Fragment { id, offset: 690, total: 1_380, content: &[0; 690] };
        assert!(reassembly.insert(Instant::ZERO, &rest(fit + 9), NOT_ECT, &mut drops).is_some(), "the newest are kept");
        reassembly.expire(Instant::ZERO + PATIENCE, &mut drops);
        assert_eq!(drops.get(DropReason::FragmentTimeout), u64::from(fit) - 1);
    }
}
