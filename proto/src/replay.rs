//! Packets that are to be sent or were sent, and are not known to have arrived, kept so that another path can carry them.
//!
//! A packet is kept from the moment in which it is given to a path, which may have it wait ([`crate::shape`]), until any of
//! its transmissions is acknowledged, or until it is older than its use. Nothing here decides when to send: [`crate::peer`]
//! does, when there is room, when a path is suspected or has failed, and when flows move.

use crate::counters::{DropReason, Drops};
use crate::node::MAX_AGE;
use crate::outer;
use crate::packet::{set_ecn, traffic_class};
use crate::policy::{ClassId, MOST_COPIES, Priority};
use crate::shape::Waiting;
use crate::tunnel::PacketId;
use crate::wire::Sequence;
use crate::{Instant, MAX_PATHS};
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
const TRANSMISSIONS: usize = MOST_COPIES as usize;

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
    /// It went in one datagram, by the path of this number.
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
    /// `None`: it was not sent yet.
    origin: Option<Origin>,
    /// Its flow's queue where it waits.
    flow: u8,
    class: ClassId,
    priority: Priority,
    /// All paths that it is given to are to carry it.
    everywhere: bool,
    /// It waits for whichever path has room.
    queued: bool,
    /// Its place in its stream, if it is bonded.
    sequence: Option<Sequence>,
    /// Paths by which it was sent or for which it waits, a bit each.
    tried: u16,
    transmissions: u8,
    /// Datagrams of each transmission that are not acknowledged.
    open: [u8; TRANSMISSIONS],
}

/// What a packet is treated by, while it is kept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sort {
    /// The hash of its flow.
    pub(crate) flow: u64,
    pub(crate) class: ClassId,
    /// `None`: as its DSCP says.
    pub(crate) priority: Option<Priority>,
}

/// Whose packets go from one path to another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moving {
    Class(ClassId),
    /// Of the flow with this hash, and perhaps of some others.
    Flow(u64),
}

/// A packet that is to be sent.
pub(crate) struct Outgoing<'a> {
    pub(crate) packet: &'a [u8],
    /// What it is known by, if it was sent before.
    pub(crate) origin: Option<Origin>,
    /// Its place in its stream, if it is bonded.
    pub(crate) sequence: Option<Sequence>,
    /// For this transmission.
    pub(crate) ticket: Ticket,
    /// It is of a call or a game.
    pub(crate) urgent: bool,
}

impl Kept {
    fn is_urgent(&self) -> bool {
        self.priority == Priority::Realtime
    }

    /// It begins to wait.
    fn waiting(&self, now: Instant, place: u64, copy: bool) -> Waiting {
        let &Kept { ref packet, flow, priority, until, .. } = self;
        let marks = outer::takes_marks(packet);
        Waiting { place, len: packet.len() as u16, flow, priority, copy, marks, since: now, until }
    }
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

/// What a packet itself asks for by its DSCP: telephony, signalling of calls, interactive video and broadcast video are real time
/// (RFC 4594); lower effort (RFC 8622) and what was used for it before (RFC 8325, section 4.2.10) are background.
fn by_dscp(packet: &[u8]) -> Priority {
    match traffic_class(packet) >> 2 {
        // EF, VOICE-ADMIT, CS5, AF41 to AF43, CS4, CS3
        46 | 44 | 40 | 34 | 36 | 38 | 32 | 24 => Priority::Realtime,
        // LE, CS1
        1 | 8 => Priority::Background,
        _ => Priority::Normal,
    }
}

impl Replay {
    /// Keeps a packet, and says at which place. What must make room is counted.
    pub(crate) fn keep(&mut self, now: Instant, packet: &[u8], sort: Sort, drops: &mut Drops) -> u64 {
        self.used_at = now;
        self.expire(now, drops);
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
        let priority = sort.priority.unwrap_or_else(|| by_dscp(packet));
        let max_age = if priority == Priority::Realtime { REALTIME_MAX_AGE } else { MAX_AGE };
        self.kept.push_back(Kept {
            packet: buffer,
            at: now,
            until: now + max_age,
            origin: None,
            flow: sort.flow as u8,
            class: sort.class,
            priority,
            everywhere: false,
            queued: false,
            sequence: None,
            tried: 0,
            transmissions: 0,
            open: [0; TRANSMISSIONS],
        });
        self.first + self.kept.len() as u64 - 1
    }

    /// Where the packet at `place` stands in `kept`, if it is still there.
    fn at(&self, place: u64) -> Option<usize> {
        let at = usize::try_from(place.checked_sub(self.first)?).ok()?;
        self.kept.get(at).filter(|kept| !kept.packet.is_empty()).map(|_| at)
    }

    /// Forgets one, which keeps its place until the older ones are gone.
    fn forget(&mut self, at: usize) {
        let buffer = std::mem::take(&mut self.kept[at].packet);
        self.octets -= buffer.len();
        self.packets -= 1;
        self.spare.push(buffer);
    }

    /// All paths that the packet at `place` is given to are to carry it, and not only the first that can.
    pub(crate) fn wants_all(&mut self, place: u64) {
        if let Some(at) = self.at(place) {
            self.kept[at].everywhere = true;
        }
    }

    /// Whether the packet at `place` is of a call or a game.
    pub(crate) fn is_urgent(&self, place: u64) -> bool {
        self.at(place).is_some_and(|at| self.kept[at].is_urgent())
    }

    /// The same of what this transmission was of.
    pub(crate) fn was_urgent(&self, ticket: Ticket) -> bool {
        ticket.parts().is_some_and(|(place, _)| self.is_urgent(place))
    }

    /// Whether this transmission was of a bonded packet, which the other end waits for.
    pub(crate) fn was_bonded(&self, ticket: Ticket) -> bool {
        let at = ticket.parts().and_then(|(place, _)| self.at(place));
        at.is_some_and(|at| self.kept[at].sequence.is_some())
    }

    /// Gives the packet at `place` to `path`: it is sent there next, or waits there like this.
    pub(crate) fn assign(&mut self, now: Instant, place: u64, path: u8) -> Option<Waiting> {
        let at = self.at(place)?;
        let kept = &mut self.kept[at];
        let copy = kept.transmissions > 0 || kept.tried & !(1 << path) != 0;
        kept.tried |= 1 << path;
        Some(kept.waiting(now, place, copy))
    }

    /// The packet at `place` waits for whichever path has room.
    pub(crate) fn wait_for_any(&mut self, now: Instant, place: u64) -> Option<Waiting> {
        let at = self.at(place)?;
        let kept = &mut self.kept[at];
        kept.queued = true;
        Some(kept.waiting(now, place, false))
    }

    /// The packet at `place` goes by `path`, with this place in its stream. `false`: it need not any more.
    pub(crate) fn leave_queue(&mut self, now: Instant, place: u64, path: u8, sequence: Sequence) -> bool {
        let Some(at) = self.at(place) else { return false };
        let kept = &mut self.kept[at];
        if !std::mem::take(&mut kept.queued) {
            return false;
        }
        kept.sequence = Some(sequence);
        self.assign(now, place, path).is_some()
    }

    /// The packet at `place` is not waited for any more. Whether it still was.
    pub(crate) fn give_up_waiting(&mut self, place: u64) -> bool {
        let Some(at) = self.at(place) else { return false };
        let queued = std::mem::take(&mut self.kept[at].queued);
        if queued {
            self.forget(at);
        }
        queued
    }

    /// Nothing waits for whichever path has room any more: it is to find one as what has lost its own.
    pub(crate) fn leave_queues(&mut self) {
        self.kept.iter_mut().for_each(|kept| kept.queued = false);
    }

    /// Has `send` transmit the packet at `place` by `path`, and say what it is known by now and in how many
    /// datagrams it went; 0: it could not. Whether there still was such a packet.
    pub(crate) fn transmit(
        &mut self,
        place: u64,
        path: u8,
        send: impl FnOnce(Outgoing<'_>) -> Option<(Origin, u8)>,
    ) -> bool {
        let Some(at) = self.at(place) else { return false };
        let kept = &mut self.kept[at];
        let transmission = usize::from(kept.transmissions);
        if transmission == TRANSMISSIONS {
            return false;
        }
        let ticket = Ticket::new(place, transmission);
        let (origin, sequence, urgent) = (kept.origin, kept.sequence, kept.is_urgent());
        match send(Outgoing { packet: &kept.packet, origin, sequence, ticket, urgent }) {
            Some((origin, datagrams)) => {
                kept.origin.get_or_insert(origin);
                kept.open[transmission] = datagrams;
                kept.transmissions += 1;
            }
            None => kept.tried &= !(1 << path),
        }
        true
    }

    /// Whether the packet at `place` was sent, by whatever path.
    pub(crate) fn is_sent(&self, place: u64) -> bool {
        self.at(place).is_none_or(|at| self.kept[at].transmissions > 0)
    }

    /// Whether `path` is to send what has waited for it. Where it was the only one to be asked, another may have
    /// sent the packet since; it is that one's then, unless it has lost it.
    pub(crate) fn claim(&mut self, waiting: &Waiting, path: u8) -> bool {
        let Some(at) = self.at(waiting.place) else { return false };
        let kept = &mut self.kept[at];
        let claimed = waiting.copy || kept.everywhere || kept.transmissions == 0 || kept.tried == 1 << path;
        if !claimed {
            kept.tried &= !(1 << path);
        }
        claimed
    }

    /// The packet at `place`, whose flow can be told so, has met congestion here.
    pub(crate) fn mark(&mut self, place: u64) {
        if let Some(at) = self.at(place) {
            set_ecn(&mut self.kept[at].packet, outer::CE);
        }
    }

    /// The `path` will not carry the packet at `place`. Whether nobody will, and it is forgotten.
    pub(crate) fn give_up(&mut self, place: u64, path: u8) -> bool {
        let Some(at) = self.at(place) else { return false };
        let kept = &mut self.kept[at];
        kept.tried &= !(1 << path);
        let forgotten = kept.tried == 0;
        if forgotten {
            self.forget(at);
        }
        forgotten
    }

    /// Forgets the oldest. Whether it was not acknowledged.
    fn pop(&mut self) -> bool {
        let open = self.kept.front().is_some_and(|oldest| !oldest.packet.is_empty());
        if open {
            self.forget(0);
        }
        self.first += u64::from(self.kept.pop_front().is_some());
        open
    }

    /// A datagram of this transmission is acknowledged.
    pub(crate) fn on_acknowledged(&mut self, ticket: Ticket) {
        let Some((place, transmission)) = ticket.parts() else { return };
        let Some(at) = self.at(place) else { return };
        let kept = &mut self.kept[at];
        kept.open[transmission] = kept.open[transmission].saturating_sub(1);
        if kept.open[transmission] == 0 {
            self.forget(at);
            while self.kept.front().is_some_and(|kept| kept.packet.is_empty()) {
                self.pop();
            }
        }
    }

    /// Forgets what is too old for anybody, and counts what was never sent.
    pub(crate) fn expire(&mut self, now: Instant, drops: &mut Drops) {
        while let Some(oldest) = self.kept.front()
            && (oldest.packet.is_empty() || now.since(oldest.at) > MAX_AGE)
        {
            let sent = oldest.transmissions > 0;
            if self.pop() && !sent {
                drops.add(DropReason::Aged);
            }
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

    /// The peer has started anew: what was sent to the one before will never be acknowledged, and must not be sent again.
    pub(crate) fn forget_sent(&mut self) {
        for at in 0..self.kept.len() {
            if self.kept[at].transmissions > 0 && !self.kept[at].packet.is_empty() {
                self.forget(at);
            }
        }
    }

    /// This path works again: what was sent by it before is as lost as if it had not been.
    pub(crate) fn forget_tries(&mut self, path: u8) {
        for kept in &mut self.kept {
            kept.tried &= !(1 << path);
        }
    }

    /// This transmission was lost, alone as far as is known, and by a path that works: its flow has noticed, and what is
    /// sent again for another reason much later would only be late.
    pub(crate) fn on_lost(&mut self, ticket: Ticket, now: Instant) {
        /// As long as it takes to see that a path loses many.
        const BROWN_OUT_SEEN: Duration = Duration::from_millis(300);
        if let Some(at) = ticket.parts().and_then(|(place, _)| self.at(place)) {
            let kept = &mut self.kept[at];
            kept.until = kept.until.min(now + BROWN_OUT_SEEN);
        }
    }

    /// This transmission by this path was lost.
    pub(crate) fn forget_try(&mut self, ticket: Ticket, path: u8) {
        if let Some(at) = ticket.parts().and_then(|(place, _)| self.at(place)) {
            let kept = &mut self.kept[at];
            kept.tried &= !(1 << path);
            self.orphans |= kept.tried == 0;
        }
    }

    /// Whether something is kept, since this was asked last, of which all transmissions are known to be lost.
    pub(crate) fn take_orphans(&mut self) -> bool {
        std::mem::take(&mut self.orphans)
    }

    /// Lists, as path and place, real time first and then the oldest first, what was given to a path in `bad` or to none,
    /// and to none in `good` (a bit for each path), with the first of the `targets` of its class that was not given it yet.
    /// What is too old is forgotten and counted.
    pub(crate) fn rescue(
        &mut self,
        now: Instant,
        bad: u16,
        good: u16,
        targets: impl Fn(ClassId) -> [Option<u8>; MAX_PATHS],
        drops: &mut Drops,
        list: &mut Vec<(u8, u64)>,
    ) {
        // Mostly all are of one class.
        let mut ranked: Option<(ClassId, _)> = None;
        // What cannot wait goes first: the rest may fill a queue on the way.
        for urgent in [true, false] {
            for at in 0..self.kept.len() {
                let kept = &self.kept[at];
                let wanted = kept.tried & good == 0 && (kept.tried & bad != 0 || kept.tried == 0);
                if kept.packet.is_empty() || !wanted || kept.is_urgent() != urgent || kept.queued {
                    continue;
                }
                let (_, targets) = match ranked {
                    Some(of) if of.0 == kept.class => of,
                    _ => *ranked.insert((kept.class, targets(kept.class))),
                };
                let mut targets = targets.into_iter().flatten();
                let Some(path) = targets.find(|path| kept.tried & 1 << path == 0) else { continue };
                if now > kept.until {
                    self.forget(at);
                    drops.add(DropReason::Aged);
                    continue;
                }
                list.push((path, self.first + at as u64));
            }
        }
    }

    /// Lists, as path and place, the oldest first, what moves of what was given to the path `from` alone and was not sent yet,
    /// or is of at most `age` ago, to go by the path `to`.
    pub(crate) fn overtake(
        &self,
        now: Instant,
        age: Duration,
        (from, to): (u8, u8),
        who: Moving,
        list: &mut Vec<(u8, u64)>,
    ) {
        for (kept, place) in self.kept.iter().zip(self.first..) {
            let late = kept.transmissions == 0 || now.since(kept.at) <= age;
            let moves = match who {
                Moving::Class(class) => kept.class == class,
                Moving::Flow(flow) => kept.flow == flow as u8,
            };
            if !kept.packet.is_empty() && kept.tried == 1 << from && moves && late {
                list.push((to, place));
            }
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

    /// Sends what is kept at `place`, and says with which ticket.
    fn send(replay: &mut Replay, place: u64, path: u8, origin: Origin, datagrams: u8) -> Ticket {
        let mut ticket = Ticket::NONE;
        replay.assign(at(0), place, path).expect("it is kept");
        assert!(replay.transmit(place, path, |outgoing| {
            ticket = outgoing.ticket;
            Some((outgoing.origin.unwrap_or(origin), datagrams))
        }));
        ticket
    }

    fn kept(count: u64) -> (Replay, Vec<Ticket>, Drops) {
        let (mut replay, mut drops, mut tickets) = (Replay::default(), Drops::default(), Vec::new());
        for number in 0..count {
            let place = replay.keep(at(number), &packet(number), Sort::default(), &mut drops);
            tickets.push(send(&mut replay, place, 0, Origin::Whole(0, PacketId { session: 1, number }), 1));
        }
        (replay, tickets, drops)
    }

    /// What a rescue sends, by path and number.
    fn rescued(replay: &mut Replay, now: u64, good: u16, targets: &[u8], drops: &mut Drops) -> Vec<(u8, u64)> {
        let (mut list, mut sent) = (Vec::new(), Vec::new());
        replay.rescue(
            at(now),
            !good,
            good,
            |_| std::array::from_fn(|place| targets.get(place).copied()),
            drops,
            &mut list,
        );
        for (path, place) in list {
            replay.assign(at(now), place, path);
            replay.transmit(place, path, |outgoing| {
                let Some(Origin::Whole(_, id)) = outgoing.origin else { panic!("they were whole") };
                assert_eq!(outgoing.packet, packet(id.number));
                sent.push((path, id.number));
                Some((Origin::Fragments(99), 1))
            });
        }
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
        let place = replay.keep(at(0), &packet(0), Sort::default(), &mut drops);
        let first = send(&mut replay, place, 0, Origin::Fragments(7), 2);
        let second = send(&mut replay, place, 1, Origin::Fragments(7), 2);
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
        let place = replay.keep(at(3), &call, Sort::default(), &mut drops);
        send(&mut replay, place, 0, Origin::Fragments(1), 1);
        assert_eq!(rescued(&mut replay, 300, 0, &[1], &mut drops).len(), 3);
        assert_eq!(drops.get(DropReason::Aged), 1);
        replay.keep(at(3), &packet(4), Sort::default(), &mut drops);
        replay.expire(at(1001), &mut drops);
        assert_eq!(replay.held().0, 3);
        replay.expire(at(1010), &mut drops);
        assert_eq!((replay.held().0, drops.get(DropReason::Aged)), (0, 2), "one was never sent");
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
            replay.keep(at(0), &[0x45; 1000], Sort::default(), &mut drops);
            assert!(replay.held().1 <= MOST_OCTETS);
        }
        assert_eq!(drops.get(DropReason::ReplayBound), 40_000 - (MOST_OCTETS / 1000) as u64);
        let mut replay = Replay::default();
        for _ in 0..MOST_PACKETS + 10 {
            replay.keep(at(0), &[0x45; 20], Sort::default(), &mut drops);
        }
        assert_eq!(replay.held().0, MOST_PACKETS);
        replay.expire(at(11_000), &mut drops);
        assert_eq!((replay.held(), replay.spare.capacity(), replay.kept.capacity()), ((0, 0), 0, 0));
    }

    #[test]
    fn a_planned_move_takes_along_what_is_still_under_way() {
        let (mut replay, tickets, _) = kept(50);
        for &ticket in &tickets[..20] {
            replay.on_acknowledged(ticket);
        }
        let (mut list, mut drops) = (Vec::new(), Drops::default());
        replay.overtake(at(50), Duration::from_millis(20), (0, 1), Moving::Class(0), &mut list);
        assert_eq!(list, (30..50).map(|place| (1, place)).collect::<Vec<_>>());
        let place = replay.keep(at(50), &packet(50), Sort::default(), &mut drops);
        replay.assign(at(50), place, 0);
        list.clear();
        replay.overtake(at(90), Duration::from_millis(20), (0, 1), Moving::Class(0), &mut list);
        assert_eq!(list, [(1, 50)], "what waits is not under way for as long as it waits");
    }

    #[test]
    fn what_waits_for_one_path_and_was_sent_by_another_is_that_one_s_unless_it_lost_it() {
        let (mut replay, mut drops) = (Replay::default(), Drops::default());
        for lost in [false, true] {
            let place = replay.keep(at(0), &packet(0), Sort::default(), &mut drops);
            let waiting = replay.assign(at(0), place, 0).expect("it is kept");
            let ticket = send(&mut replay, place, 1, Origin::Fragments(7), 1);
            if lost {
                replay.forget_try(ticket, 1);
            }
            assert_eq!(replay.claim(&waiting, 0), lost);
            replay.forget_try(ticket, 1);
            assert_eq!(replay.take_orphans(), !lost);
        }
    }

    #[test]
    fn what_a_path_gives_up_is_forgotten_if_no_other_has_it() {
        let (mut replay, mut drops) = (Replay::default(), Drops::default());
        let place = replay.keep(at(0), &packet(0), Sort::default(), &mut drops);
        assert_eq!(replay.assign(at(0), place, 0).map(|waiting| waiting.copy), Some(false));
        assert_eq!(replay.assign(at(1), place, 1).map(|waiting| waiting.copy), Some(true));
        assert!(!replay.is_sent(place));
        assert!(!replay.give_up(place, 0));
        assert!(replay.give_up(place, 1));
        assert!(replay.is_sent(place), "nobody need send it");
        let place = replay.keep(at(0), &packet(1), Sort::default(), &mut drops);
        let ticket = send(&mut replay, place, 0, Origin::Fragments(1), 1);
        replay.forget_try(ticket, 0);
        assert_eq!(replay.assign(at(1), place, 0).map(|waiting| waiting.copy), Some(true), "again by the same path");
        replay.on_acknowledged(ticket);
        assert_eq!(replay.held(), (0, 0));
    }
}
