//! Which packet numbers were sent by a path and not yet acknowledged: the sending half of receipts.

use crate::Instant;
use crate::quality::Least;
use crate::replay::Ticket;
use crate::tunnel::PacketId;
use crate::wire::Receipt;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

/// As many as the receiver remembers.
const SESSIONS: usize = 4;

/// How long an acknowledged packet's time is kept: the same receipt comes again by a slower path, and its round trip is
/// measured too. Longer than any round trip that is of use.
const KEEP: Duration = Duration::from_secs(2);

/// Numbers kept of one session. Beyond the receiver's window of 1,024 no receipt names them; the rest is room for a
/// round trip at full speed.
const MAX_KEPT: usize = 16 * 1024;

/// How much later than a lost packet one must have been sent that arrived: half of what health takes for a late receipt at
/// least, so that a hole is seen as a hole before it makes the path look dead; above what a jitter of 2 ms reorders.
const LEAST_REORDERING: Duration = Duration::from_millis(5);

/// Of so many that were given up for lost is noticed that they came after all: those of a round trip on a way that reorders.
const LATE: usize = 64;

/// And at most: a way that reorders more is as good as one that loses.
const MOST_REORDERING: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Asks for a receipt and has none.
    Open,
    /// Asks for none.
    Quiet,
    Acknowledged,
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    /// Of the datagram, in octets; none is longer than UDP allows.
    len: u16,
    fate: Fate,
    /// What is kept of it.
    ticket: Ticket,
}

#[derive(Debug)]
struct SentSession {
    session: u32,
    /// The number of the first of `packets`.
    base: u64,
    packets: VecDeque<Sent>,
    /// All before this one are not open.
    open_from: usize,
    /// The oldest open one that had to make room, and when it was sent: at full speed over a long path the numbers kept
    /// are all younger than a round trip, and a dead path must still become overdue.
    pushed_out: Option<(u64, Instant)>,
    /// The numbers of the last ones that were given up for lost.
    lost: VecDeque<u64>,
    /// The last packet that was judged, if it was lost: the next one may make it the first of several in a row.
    lost_last: Option<Ticket>,
}

/// What was sent by one path.
#[derive(Debug, Default)]
pub(crate) struct SentLog {
    sessions: Vec<SentSession>,
    /// Octets of what is open.
    under_way: u64,
    /// How much later than one that was taken for lost, and arrived after all, another was sent that came before it: the most
    /// of late.
    overtaken: Least<Reverse<Duration>>,
    /// When the newest packet that arrived was sent.
    newest: Instant,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It arrived: the length of its datagram, and its ticket.
    Arrived(u16, Ticket),
    /// It is lost.
    Lost(u16, Ticket),
    /// It was one of several in a row that are lost, each of which is told as lost too.
    LostInARow(Ticket),
}

/// What a receipt told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learnt {
    /// Packets acknowledged for the first time.
    pub(crate) acknowledged: u32,
    /// Packets that must be lost: ones sent well after them have arrived.
    pub(crate) lost: u32,
    /// When the newest packet that the receipt names was sent.
    pub(crate) largest_sent_at: Option<Instant>,
    /// The same, unless it had been given up for lost: such a one has waited for something, a peer that stood still
    /// perhaps, and tells no round trip.
    pub(crate) sample_from: Option<Instant>,
}

impl SentLog {
    /// Notes a packet in a datagram of `len` octets. Numbers of one session only ever grow by one.
    pub(crate) fn note(&mut self, id: PacketId, len: usize, now: Instant, eliciting: bool, ticket: Ticket) {
        let at = match self.sessions.iter().position(|s| s.session == id.session && s.end() == id.number) {
            Some(at) => at,
            None => {
                // The peer draws the index, and may give two sessions the same: the one before is gone then. What was
                // settled long ago makes room too.
                self.sessions.retain(|s| s.session != id.session && !s.is_settled(now));
                if self.sessions.len() == SESSIONS {
                    self.sessions.remove(0);
                }
                self.under_way = self.sessions.iter().map(SentSession::open_octets).sum();
                self.sessions.push(SentSession {
                    session: id.session,
                    base: id.number,
                    packets: VecDeque::new(),
                    open_from: 0,
                    pushed_out: None,
                    lost: VecDeque::new(),
                    lost_last: None,
                });
                self.sessions.len() - 1
            }
        };
        let session = &mut self.sessions[at];
        let fate = if eliciting { Fate::Open } else { Fate::Quiet };
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        session.packets.push_back(Sent { at: now, len, fate, ticket });
        let pushed_out = session.trim(now);
        self.under_way -= pushed_out;
        if eliciting {
            self.under_way += u64::from(len);
        }
    }

    /// Octets of datagrams that ask for a receipt, have none, and are not known to be lost.
    pub(crate) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Takes a receipt. A packet is lost when one has arrived that was sent well after it: later than the way was seen to
    /// reorder, as in RFC 8985, section 6.2. `judged` hears of each one that asked for a receipt what became of it, when that
    /// is first known.
    pub(crate) fn on_receipt(&mut self, receipt: &Receipt, now: Instant, mut judged: impl FnMut(Judged)) -> Learnt {
        let mut learnt = Learnt::default();
        let Some(session) = self.sessions.iter_mut().find(|s| s.session == receipt.session) else { return learnt };
        if receipt.largest >= session.end() {
            return learnt; // says that something arrived which was never sent
        }
        if session.pushed_out.take_if(|(number, _)| *number <= receipt.largest).is_some() {
            learnt.acknowledged += 1;
        }
        let largest = receipt.largest.checked_sub(session.base).map(|at| session.packets[at as usize]);
        learnt.largest_sent_at = largest.map(|packet| packet.at);
        learnt.sample_from = largest.filter(|packet| packet.fate != Fate::Lost).map(|packet| packet.at);
        let open_from = session.base + session.open_from as u64;
        let mut overtaken = Duration::ZERO;
        // What was given up for lost may come after all; it counts as arrived then.
        session.lost.retain(|&number| {
            let came = receipt.ranges.iter().any(|(first, last)| (*first..=*last).contains(&number));
            if came
                && let Some(packet) =
                    number.checked_sub(session.base).and_then(|at| session.packets.get_mut(at as usize))
            {
                packet.fate = Fate::Acknowledged;
                overtaken = overtaken.max(self.newest.since(packet.at));
                learnt.acknowledged += 1;
                judged(Judged::Arrived(packet.len, packet.ticket));
            }
            !came && number >= session.base
        });
        for &(first, last) in receipt.ranges.iter() {
            for number in first.max(open_from)..=last {
                let packet = &mut session.packets[(number - session.base) as usize];
                if packet.fate == Fate::Open {
                    self.under_way -= u64::from(packet.len);
                    learnt.acknowledged += 1;
                    judged(Judged::Arrived(packet.len, packet.ticket));
                }
                packet.fate = Fate::Acknowledged;
            }
        }
        // Of any session: what was sent last with the one before is never acknowledged by itself.
        let Some(newest) = learnt.largest_sent_at else { return learnt };
        if overtaken > Duration::ZERO {
            self.overtaken.sample(Reverse(overtaken), now);
        }
        self.newest = self.newest.max(newest);
        let reordering = self.overtaken.get().map_or(LEAST_REORDERING, |Reverse(most)| most + most / 4);
        let reordering = reordering.clamp(LEAST_REORDERING, MOST_REORDERING);
        for session in &mut self.sessions {
            session.pushed_out.take_if(|(_, at)| newest.since(*at) >= reordering);
            let (mut in_a_row, mut before) = (false, session.lost_last.take());
            for (number, packet) in (session.base..).zip(&mut session.packets).skip(session.open_from) {
                if newest.since(packet.at) < reordering {
                    break;
                }
                match packet.fate {
                    Fate::Open => {
                        packet.fate = Fate::Lost;
                        self.under_way -= u64::from(packet.len);
                        learnt.lost += 1;
                        if session.lost.len() == LATE {
                            session.lost.pop_front();
                        }
                        session.lost.push_back(number);
                        judged(Judged::Lost(packet.len, packet.ticket));
                        if let Some(before) = before.replace(packet.ticket) {
                            if !std::mem::replace(&mut in_a_row, true) {
                                judged(Judged::LostInARow(before));
                            }
                            judged(Judged::LostInARow(packet.ticket));
                        }
                    }
                    Fate::Acknowledged => (in_a_row, before) = (false, None),
                    Fate::Lost | Fate::Quiet => {}
                }
            }
            session.lost_last = before;
            session.advance();
        }
        learnt
    }

    /// When the oldest packet that still waits for its receipt was sent.
    pub(crate) fn oldest_open(&self) -> Option<Instant> {
        let oldest = |s: &SentSession| {
            s.pushed_out.map(|(_, at)| at).or_else(|| s.packets.get(s.open_from).map(|packet| packet.at))
        };
        self.sessions.iter().filter_map(oldest).min()
    }

    /// Forgets all: this end stood still, and how long anything took is not known.
    pub(crate) fn forget(&mut self) {
        *self = SentLog::default();
    }

    /// Gives up what is open: the path is down, or the peer has started anew and will never acknowledge it.
    pub(crate) fn abandon(&mut self) -> u32 {
        let mut lost = 0;
        self.under_way = 0;
        for session in &mut self.sessions {
            session.pushed_out = None;
            for packet in session.packets.range_mut(session.open_from..) {
                if packet.fate == Fate::Open {
                    packet.fate = Fate::Lost;
                    lost += 1;
                }
            }
            session.advance();
        }
        lost
    }
}

impl SentSession {
    /// The number that comes next.
    fn end(&self) -> u64 {
        self.base + self.packets.len() as u64
    }

    fn open_octets(&self) -> u64 {
        let open = self.packets.range(self.open_from..).filter(|packet| packet.fate == Fate::Open);
        open.map(|packet| u64::from(packet.len)).sum()
    }

    /// No receipt for it is waited for or of use any more.
    fn is_settled(&self, now: Instant) -> bool {
        self.open_from == self.packets.len() && self.packets.back().is_none_or(|packet| now.since(packet.at) > KEEP)
    }

    fn advance(&mut self) {
        while let Some(packet) = self.packets.get(self.open_from).filter(|packet| packet.fate != Fate::Open) {
            if packet.fate == Fate::Acknowledged {
                // What is lost after it is not lost in a row with what was lost before it.
                self.lost_last = None;
            }
            self.open_from += 1;
        }
    }

    /// Forgets what is settled or takes too much room, and says how many octets of it were open.
    fn trim(&mut self, now: Instant) -> u64 {
        let mut open = 0;
        self.advance();
        while self.packets.len() > 1
            && self.packets.front().is_some_and(|packet| self.open_from > 0 && now.since(packet.at) > KEEP)
            || self.packets.len() > MAX_KEPT
        {
            let gone = self.packets.pop_front().filter(|packet| packet.fate == Fate::Open);
            if let Some(packet) = gone {
                self.pushed_out.get_or_insert((self.base, packet.at));
                open += u64::from(packet.len);
            }
            self.base += 1;
            self.open_from = self.open_from.saturating_sub(1);
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Drops;
    use crate::replay::{Origin, Replay, Sort};

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn receipt(largest: u64, ranges: &[(u64, u64)]) -> Receipt {
        Receipt { path: 0, session: 1, largest, delay_us: 0, received_us: 0, ranges: ranges.iter().copied().collect() }
    }

    fn log(count: u64) -> SentLog {
        let mut log = SentLog::default();
        for number in 0..count {
            log.note(PacketId { session: 1, number }, 100, at(number), true, Ticket::NONE);
        }
        log
    }

    #[test]
    fn the_oldest_open_one_counts_and_new_sends_never_move_it() {
        let mut log = log(10);
        assert_eq!(log.oldest_open(), Some(at(0)));
        let learnt = log.on_receipt(&receipt(4, &[(0, 4)]), Instant::ZERO, |_| {});
        let four = Some(at(4));
        assert_eq!(learnt, Learnt { acknowledged: 5, lost: 0, largest_sent_at: four, sample_from: four });
        assert_eq!(log.oldest_open(), Some(at(5)));
        log.note(PacketId { session: 1, number: 10 }, 100, at(99), true, Ticket::NONE);
        assert_eq!(log.oldest_open(), Some(at(5)));
    }

    #[test]
    fn a_gap_is_lost_once_later_ones_have_arrived_and_may_still_turn_up() {
        let mut log = log(10);
        let learnt = log.on_receipt(&receipt(4, &[(3, 4), (0, 1)]), Instant::ZERO, |_| {});
        assert_eq!((learnt.acknowledged, learnt.lost), (4, 0), "two milliseconds later may be reordering");
        let learnt = log.on_receipt(&receipt(8, &[(3, 8), (0, 1)]), Instant::ZERO, |_| {});
        assert_eq!((learnt.acknowledged, learnt.lost), (4, 1));
        assert_eq!(log.oldest_open(), Some(at(9)));
    }

    /// Sends twenty packets, one each millisecond, and takes these receipts: which of them are told to be lost in a row.
    fn broken(receipts: impl Iterator<Item = Receipt>) -> Vec<u64> {
        let (mut log, mut replay, mut tickets) = (SentLog::default(), Replay::default(), Vec::new());
        for number in 0..20 {
            let place = replay.keep(at(number), &[0x45; 20], Sort::default(), &mut Drops::default());
            replay.transmit(place, 0, |outgoing| {
                tickets.push(outgoing.ticket);
                Some((Origin::Fragments(0), 1))
            });
            log.note(PacketId { session: 1, number }, 100, at(number), true, tickets[number as usize]);
        }
        let mut broken = Vec::new();
        for receipt in receipts {
            log.on_receipt(&receipt, Instant::ZERO, |judged| {
                if let Judged::LostInARow(ticket) = judged {
                    broken.extend(tickets.iter().position(|sent| *sent == ticket).map(|number| number as u64));
                }
            });
        }
        broken.dedup();
        broken
    }

    #[test]
    fn losses_in_a_row_are_told_as_such_also_if_they_become_known_one_by_one() {
        // 3 is lost alone, 6 to 8 in a row.
        let receipts = (9..20).map(|largest| receipt(largest, &[(9, largest), (4, 5), (0, 2)]));
        assert_eq!(broken(receipts), [6, 7, 8]);
    }

    #[test]
    fn losses_that_become_known_one_by_one_with_arrivals_between_them_are_no_row() {
        // 3, 9 and 15 are lost: what follows each one is acknowledged by the receipt by which it is judged, and not looked at then.
        let receipts = (0..20).map(|largest| {
            let runs = [(16, 19), (10, 14), (4, 8), (0, 2)].into_iter().filter(|(first, _)| *first <= largest);
            receipt(largest, &runs.map(|(first, last)| (first, last.min(largest))).collect::<Vec<_>>())
        });
        assert_eq!(broken(receipts), []);
    }

    #[test]
    fn the_end_of_an_old_session_is_lost_when_the_new_one_is_acknowledged() {
        let mut log = log(10);
        log.note(PacketId { session: 2, number: 0 }, 100, at(100), true, Ticket::NONE);
        let second = Receipt { session: 2, ..receipt(0, &[(0, 0)]) };
        assert_eq!(log.on_receipt(&second, Instant::ZERO, |_| {}).lost, 10);
        assert_eq!(log.oldest_open(), None);
    }

    #[test]
    fn more_packets_than_are_kept_do_not_hide_that_the_oldest_is_overdue() {
        let mut log = SentLog::default();
        let all = 3 * MAX_KEPT as u64;
        for number in 0..all {
            log.note(PacketId { session: 1, number }, 100, at(number / 1000), true, Ticket::NONE);
        }
        assert_eq!(log.oldest_open(), Some(at(0)));
        let learnt = log.on_receipt(&receipt(2000, &[(0, 2000)]), Instant::ZERO, |_| {});
        assert_eq!((learnt.acknowledged, learnt.largest_sent_at), (1, None), "how many and when is forgotten");
        assert_eq!(log.oldest_open(), Some(at((all - MAX_KEPT as u64) / 1000)));
        log.on_receipt(&receipt(all - 1, &[(0, all - 1)]), Instant::ZERO, |_| {});
        assert_eq!(log.oldest_open(), None);
    }

    #[test]
    fn an_index_that_the_peer_uses_again_begins_anew() {
        let mut log = log(10);
        log.note(PacketId { session: 1, number: 0 }, 100, at(100), true, Ticket::NONE);
        assert_eq!(log.oldest_open(), Some(at(100)));
        assert_eq!(log.on_receipt(&receipt(0, &[(0, 0)]), Instant::ZERO, |_| {}).largest_sent_at, Some(at(100)));
    }

    #[test]
    fn receipts_that_claim_too_much_or_nothing_known_teach_nothing() {
        let mut log = log(3);
        assert_eq!(log.on_receipt(&receipt(3, &[(0, 3)]), Instant::ZERO, |_| {}), Learnt::default());
        let foreign = Receipt { session: 9, ..receipt(1, &[(0, 1)]) };
        assert_eq!(log.on_receipt(&foreign, Instant::ZERO, |_| {}), Learnt::default());
        assert_eq!(log.oldest_open(), Some(at(0)));
    }

    #[test]
    fn quiet_packets_are_never_waited_for_and_memory_is_bounded() {
        let mut log = SentLog::default();
        for number in 0..100_000 {
            log.note(PacketId { session: 1, number }, 100, at(number / 100), false, Ticket::NONE);
        }
        assert_eq!(log.oldest_open(), None);
        assert!(log.sessions[0].packets.len() <= MAX_KEPT);
        for session in 2..20 {
            log.note(PacketId { session, number: 0 }, 100, at(0), true, Ticket::NONE);
        }
        assert_eq!(log.sessions.len(), SESSIONS);
        assert_eq!(log.abandon(), 4);
        log.note(PacketId { session: 20, number: 0 }, 100, at(10_000), true, Ticket::NONE);
        assert_eq!(log.sessions.len(), 1, "the memory of what is settled is given back");
        log.abandon();
        assert_eq!(log.oldest_open(), None);
    }
}
