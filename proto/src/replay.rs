//! Packets that were sent and are not known to have arrived, kept so that another path can carry them.
//!
//! A packet is kept from its first transmission until any of its transmissions is acknowledged, or until it is older
//! than its use. Nothing here decides when to send again: [`crate::peer`] does, when a path is suspected or has failed,
//! and when flows move.

use crate::Instant;
use crate::counters::{DropReason, Drops};
use crate::node::MAX_AGE;
use crate::tunnel::PacketId;
use std::collections::VecDeque;
use std::time::Duration;

/// Octets kept for one peer. A gigabit a second for the tenth of a second that a receipt takes over a long path is
/// 12.5 MB; what is acknowledged is given back at once.
const MOST_OCTETS: usize = 16 * 1024 * 1024;

/// Packets kept for one peer, those counted that are acknowledged and still stand behind an older one that is not.
const MOST_PACKETS: usize = 64 * 1024;

/// How old a packet of a call or a game may become before it is of no use: what their jitter buffers allow at most
/// (ITU-T G.114 has 150 ms for a good conversation and 400 ms for a bearable one).
const REALTIME_MAX_AGE: Duration = Duration::from_millis(200);

/// Buffers are given back when nothing was kept for this long: most sites of a core are idle.
const KEEP_BUFFERS: Duration = Duration::from_secs(10);

/// Transmissions of a packet whose acknowledgements are told apart; there are no more than that.
const TRANSMISSIONS: usize = 4;

/// Names one transmission of a kept packet, for the log of what a path has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// Of what is not kept.
    pub(crate) const NONE: Ticket = Ticket(0);
    /// Of a HELLO, which is not kept either: its receipt tells that the peer knows who it deals with.
    pub(crate) const HELLO: Ticket = Ticket(1);

    fn new(place: u64, transmission: usize) -> Self {
        Ticket((place + 1) * TRANSMISSIONS as u64 + transmission as u64)
    }

    fn parts(self) -> Option<(u64, usize)> {
        let place = (self.0 / TRANSMISSIONS as u64).checked_sub(1)?;
        Some((place, (self.0 % TRANSMISSIONS as u64) as usize))
    }
}

/// What a packet is known by at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It went in one datagram, by the path of this slot.
    Whole(u8, PacketId),
    /// It went in fragments of this number.
    Fragments(u32),
}

#[derive(Debug)]
struct Kept {
    /// Empty once it is acknowledged.
    packet: Vec<u8>,
    at: Instant,
    /// It is of use until then.
    until: Instant,
    origin: Origin,
    /// Slots by which it was sent, a bit each.
    tried: u8,
    transmissions: u8,
    /// Datagrams of each transmission that are not acknowledged.
    open: [u8; TRANSMISSIONS],
}

/// A packet that is to be sent again.
pub(crate) struct Again<'a> {
    pub(crate) packet: &'a [u8],
    pub(crate) origin: Origin,
    /// For this transmission.
    pub(crate) ticket: Ticket,
}

/// The packets kept for one peer, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    kept: VecDeque<Kept>,
    /// The place of the first of `kept`: places are never used again.
    first: u64,
    /// Packets and octets that are not acknowledged.
    packets: usize,
    octets: usize,
    /// Buffers of packets that were acknowledged, for the next ones.
    spare: Vec<Vec<u8>>,
    used_at: Instant,
    orphans: bool,
}

/// How old a packet may become before it is of no use to its receiver, by its DSCP (RFC 4594): telephony, signalling of
/// calls, interactive video and broadcast video are real time.
fn max_age(packet: &[u8]) -> Duration {
    let dscp = match packet {
        [first, second, ..] if first >> 4 == 6 => (first << 2 | second >> 6) & 0x3f,
        [_, second, ..] => second >> 2,
        _ => 0,
    };
    match dscp {
        // EF, VOICE-ADMIT, CS5, AF41 to AF43, CS4, CS3
        46 | 44 | 40 | 34 | 36 | 38 | 32 | 24 => REALTIME_MAX_AGE,
        _ => MAX_AGE,
    }
}

impl Replay {
    /// The ticket for the first transmission of the packet that is kept next.
    pub(crate) fn next(&self) -> Ticket {
        Ticket::new(self.first + self.kept.len() as u64, 0)
    }

    /// Keeps a packet that was just sent, in so many datagrams, by the path of `slot`. What must make room is counted.
    pub(crate) fn keep(
        &mut self,
        now: Instant,
        packet: &[u8],
        origin: Origin,
        slot: u8,
        datagrams: u8,
        drops: &mut Drops,
    ) {
        self.used_at = now;
        self.expire(now);
        while self.octets + packet.len() > MOST_OCTETS || self.kept.len() >= MOST_PACKETS {
            if self.pop() {
                drops.add(DropReason::ReplayBound);
            }
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.octets += packet.len();
        self.packets += 1;
        let mut open = [0; TRANSMISSIONS];
        open[0] = datagrams;
        let until = now + max_age(packet);
        self.kept.push_back(Kept { packet: buffer, at: now, until, origin, tried: 1 << slot, transmissions: 1, open });
    }

    /// Forgets the oldest. Whether it was not acknowledged.
    fn pop(&mut self) -> bool {
        let Some(mut oldest) = self.kept.pop_front() else { return false };
        self.first += 1;
        let open = !oldest.packet.is_empty();
        if open {
            self.give_back(std::mem::take(&mut oldest.packet));
        }
        open
    }

    fn give_back(&mut self, buffer: Vec<u8>) {
        self.octets -= buffer.len();
        self.packets -= 1;
        self.spare.push(buffer);
    }

    /// A datagram of this transmission is acknowledged.
    pub(crate) fn on_acknowledged(&mut self, ticket: Ticket) {
        let Some((place, transmission)) = ticket.parts() else { return };
        let Some(at) = place.checked_sub(self.first) else { return };
        let Some(kept) = self.kept.get_mut(at as usize).filter(|kept| !kept.packet.is_empty()) else { return };
        kept.open[transmission] = kept.open[transmission].saturating_sub(1);
        if kept.open[transmission] == 0 {
            let buffer = std::mem::take(&mut kept.packet);
            self.give_back(buffer);
            while self.kept.front().is_some_and(|kept| kept.packet.is_empty()) {
                self.pop();
            }
        }
    }

    /// Forgets what is too old for anybody.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self.kept.front().is_some_and(|kept| kept.packet.is_empty() || now.since(kept.at) > MAX_AGE) {
            self.pop();
        }
        if self.kept.is_empty() && !self.spare.is_empty() && now.since(self.used_at) >= KEEP_BUFFERS {
            self.spare = Vec::new();
            self.kept = VecDeque::new();
        }
    }

    /// When [`Replay::expire`] has something to do that matters to nobody but this host's memory.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        (!self.spare.is_empty() || !self.kept.is_empty()).then(|| self.used_at + KEEP_BUFFERS)
    }

    /// All that is kept is forgotten: the peer has started anew, or does not take copies.
    pub(crate) fn clear(&mut self) {
        while !self.kept.is_empty() {
            self.pop();
        }
    }

    /// The path of this slot works again: what was sent by it before is as lost as if it had not been.
    pub(crate) fn forget_tries(&mut self, slot: u8) {
        for kept in &mut self.kept {
            kept.tried &= !(1 << slot);
        }
    }

    /// This transmission was lost, alone as far as is known, and by a path that works: its flow has noticed, and what is
    /// sent again for another reason much later would only be late.
    pub(crate) fn on_lost(&mut self, ticket: Ticket, now: Instant) {
        /// As long as it takes to see that a path loses many.
        const BROWN_OUT_SEEN: Duration = Duration::from_millis(300);
        let at = ticket.parts().and_then(|(place, _)| place.checked_sub(self.first));
        if let Some(kept) = at.and_then(|at| self.kept.get_mut(at as usize)) {
            kept.until = kept.until.min(now + BROWN_OUT_SEEN);
        }
    }

    /// This transmission by the path of this slot was lost.
    pub(crate) fn forget_try(&mut self, ticket: Ticket, slot: u8) {
        let at = ticket.parts().and_then(|(place, _)| place.checked_sub(self.first));
        if let Some(kept) = at.and_then(|at| self.kept.get_mut(at as usize)) {
            kept.tried &= !(1 << slot);
            self.orphans |= kept.tried == 0 && !kept.packet.is_empty();
        }
    }

    /// Whether something is kept, since this was asked last, of which all transmissions are known to be lost.
    pub(crate) fn take_orphans(&mut self) -> bool {
        std::mem::take(&mut self.orphans)
    }

    /// Has `send` transmit the packet kept last by the path of `slot` too, and say in how many datagrams it did; 0: it
    /// could not.
    pub(crate) fn double(&mut self, slot: u8, send: impl FnMut(Again<'_>) -> u8) {
        if let Some(last) = self.kept.len().checked_sub(1) {
            self.again(last, slot, send);
        }
    }

    /// Has `send` transmit, real time first and then the oldest first, what was sent by a path in `bad` or by none, and by none in `good` (a bit for each
    /// slot), by the first of the paths of `targets` by which it was not sent yet. What is too old is forgotten and counted.
    pub(crate) fn rescue(
        &mut self,
        now: Instant,
        bad: u8,
        good: u8,
        targets: &[u8],
        drops: &mut Drops,
        mut send: impl FnMut(u8, Again<'_>) -> u8,
    ) {
        // What cannot wait goes first: the rest may fill a queue on the way.
        for realtime in [true, false] {
            for at in 0..self.kept.len() {
                let kept = &self.kept[at];
                let wanted = kept.tried & good == 0 && (kept.tried & bad != 0 || kept.tried == 0);
                if kept.packet.is_empty() || !wanted {
                    continue;
                }
                if (max_age(&kept.packet) == REALTIME_MAX_AGE) != realtime {
                    continue;
                }
                let Some(&slot) = targets.iter().find(|&&slot| kept.tried & 1 << slot == 0) else { continue };
                if now > kept.until {
                    let buffer = std::mem::take(&mut self.kept[at].packet);
                    self.give_back(buffer);
                    drops.add(DropReason::Aged);
                    continue;
                }
                self.again(at, slot, |again| send(slot, again));
            }
        }
    }

    /// Has `send` transmit by the path `to`, oldest first, what was sent by the path `from` alone, at most `age` ago.
    pub(crate) fn overtake(
        &mut self,
        now: Instant,
        age: Duration,
        from: u8,
        to: u8,
        mut send: impl FnMut(Again<'_>) -> u8,
    ) {
        let first = self.kept.partition_point(|kept| now.since(kept.at) > age);
        for at in first..self.kept.len() {
            let kept = &self.kept[at];
            if !kept.packet.is_empty() && kept.tried == 1 << from {
                self.again(at, to, &mut send);
            }
        }
    }

    fn again(&mut self, at: usize, slot: u8, mut send: impl FnMut(Again<'_>) -> u8) {
        let kept = &mut self.kept[at];
        let transmission = usize::from(kept.transmissions);
        if kept.packet.is_empty() || transmission == TRANSMISSIONS {
            return;
        }
        let ticket = Ticket::new(self.first + at as u64, transmission);
        let datagrams = send(Again { packet: &kept.packet, origin: kept.origin, ticket });
        if datagrams > 0 {
            kept.open[transmission] = datagrams;
            kept.transmissions += 1;
            kept.tried |= 1 << slot;
        }
    }

    /// Packets and octets that are kept.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.packets, self.octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn packet(number: u64) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend(number.to_be_bytes());
        packet
    }

    fn kept(count: u64) -> (Replay, Vec<Ticket>, Drops) {
        let (mut replay, mut drops, mut tickets) = (Replay::default(), Drops::default(), Vec::new());
        for number in 0..count {
            tickets.push(replay.next());
            let origin = Origin::Whole(0, PacketId { session: 1, number });
            replay.keep(at(number), &packet(number), origin, 0, 1, &mut drops);
        }
        (replay, tickets, drops)
    }

    /// What a rescue sends, by slot and number.
    fn rescued(replay: &mut Replay, now: u64, good: u8, targets: &[u8], drops: &mut Drops) -> Vec<(u8, u64)> {
        let mut sent = Vec::new();
        replay.rescue(at(now), !good, good, targets, drops, |slot, again| {
            let Origin::Whole(_, id) = again.origin else { panic!("they were whole") };
            assert_eq!(again.packet, packet(id.number));
            sent.push((slot, id.number));
            1
        });
        sent
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_once_by_each_other_path_oldest_first() {
        let (mut replay, tickets, mut drops) = kept(5);
        replay.on_acknowledged(tickets[1]);
        assert_eq!(rescued(&mut replay, 10, 0b10, &[1, 2], &mut drops), [(1, 0), (1, 2), (1, 3), (1, 4)]);
        assert_eq!(rescued(&mut replay, 11, 0b10, &[1, 2], &mut drops), [], "path 1 is good and has them");
        assert_eq!(rescued(&mut replay, 12, 0b100, &[1, 2], &mut drops), [(2, 0), (2, 2), (2, 3), (2, 4)]);
        assert_eq!(rescued(&mut replay, 13, 0, &[1, 2], &mut drops), []);
        replay.forget_tries(1);
        assert_eq!(rescued(&mut replay, 14, 0, &[1, 2], &mut drops), [(1, 0), (1, 2), (1, 3), (1, 4)]);
        assert_eq!(drops, Drops::default());
    }

    #[test]
    fn any_of_its_transmissions_acknowledges_a_packet_if_all_of_its_datagrams_have_come() {
        let (mut replay, mut drops) = (Replay::default(), Drops::default());
        let first = replay.next();
        replay.keep(at(0), &packet(0), Origin::Fragments(7), 0, 2, &mut drops);
        let mut second = Ticket::NONE;
        replay.double(1, |again| {
            second = again.ticket;
            2
        });
        replay.on_acknowledged(first);
        replay.on_acknowledged(second);
        assert_eq!(replay.held().0, 1, "a half by each path is no packet");
        replay.on_acknowledged(second);
        assert_eq!(replay.held(), (0, 0));
        replay.on_acknowledged(first);
        replay.on_acknowledged(Ticket::NONE);
    }

    #[test]
    fn what_is_too_old_is_not_sent_and_a_call_is_sooner_too_old_than_a_download() {
        let (mut replay, _, mut drops) = kept(3);
        let mut call = packet(3);
        call[1] = 46 << 2;
        replay.keep(at(3), &call, Origin::Fragments(1), 0, 1, &mut drops);
        assert_eq!(rescued(&mut replay, 300, 0, &[1], &mut drops).len(), 3);
        assert_eq!(drops.get(DropReason::Aged), 1);
        replay.expire(at(1001));
        assert_eq!(replay.held().0, 2);
    }

    #[test]
    fn what_was_lost_alone_is_soon_of_no_use() {
        let (mut replay, tickets, mut drops) = kept(3);
        replay.on_lost(tickets[1], at(30));
        assert_eq!(rescued(&mut replay, 331, 0, &[1], &mut drops), [(1, 0), (1, 2)]);
        assert_eq!(drops.get(DropReason::Aged), 1);
    }

    #[test]
    fn memory_is_bounded_in_octets_and_packets_and_given_back() {
        let (mut replay, mut drops) = (Replay::default(), Drops::default());
        for _ in 0..40_000 {
            replay.keep(at(0), &[0x45; 1000], Origin::Fragments(0), 0, 1, &mut drops);
            assert!(replay.held().1 <= MOST_OCTETS);
        }
        assert_eq!(drops.get(DropReason::ReplayBound), 40_000 - (MOST_OCTETS / 1000) as u64);
        let mut replay = Replay::default();
        for _ in 0..MOST_PACKETS + 10 {
            replay.keep(at(0), &[0x45; 20], Origin::Fragments(0), 0, 1, &mut drops);
        }
        assert_eq!(replay.held().0, MOST_PACKETS);
        replay.clear();
        replay.expire(at(10_000));
        assert_eq!((replay.held(), replay.spare.capacity(), replay.kept.capacity()), ((0, 0), 0, 0));
    }

    #[test]
    fn a_planned_move_takes_along_what_is_still_under_way() {
        let (mut replay, tickets, _) = kept(50);
        for &ticket in &tickets[..20] {
            replay.on_acknowledged(ticket);
        }
        let mut sent = 0;
        replay.overtake(at(50), Duration::from_millis(20), 0, 1, |_| {
            sent += 1;
            1
        });
        assert_eq!(sent, 20);
    }
}
