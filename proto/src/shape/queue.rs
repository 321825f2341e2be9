//! What waits for a path: real time first, background last, and what is of one tier by turns, a flow at a time, with as short a
//! queue as each flow can be taught (RFC 8290: fair queueing with CoDel).

use crate::Instant;
use crate::policy::Priority;
use std::collections::VecDeque;
use std::time::Duration;

/// A packet that waits for its turn on a path. The packet itself is kept by [`crate::replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Where it is kept.
    pub(crate) place: u64,
    /// In octets.
    pub(crate) len: u16,
    /// Its flow's queue.
    pub(crate) flow: u8,
    /// Its tier.
    pub(crate) priority: Priority,
    /// It was sent before, or another path has been asked to carry it as well. Who thinks that he is the only one to send it
    /// need not if he turns out not to be.
    pub(crate) copy: bool,
    /// Its flow can be told by a mark to send less, and need lose nothing for it (RFC 3168).
    pub(crate) marks: bool,
    /// Since when it waits.
    pub(crate) since: Instant,
    /// Until when it is of use at the other end.
    pub(crate) until: Instant,
}

/// What became of a packet that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Popped {
    /// It is its turn.
    Send(Waiting),
    /// It has waited for too long to be of use.
    Aged(Waiting),
    /// It is its turn, and its flow is to be told to send less.
    Mark(Waiting),
    /// The same, and it is to be dropped, as its flow can be told in no other way.
    Drop(Waiting),
}

/// How many flows have queues of their own. A home has some dozens at a time; two that meet in one share their turns.
const FLOWS: usize = 256;

/// What a flow may send in its turn: a full packet (RFC 8290, section 5.2.4).
const QUANTUM: i64 = 1514;

/// How long a queue that stands may be (RFC 8289, section 4.2).
const TARGET: Duration = Duration::from_millis(5);
/// For how long a queue may be longer: a round trip of the Internet (the same).
const INTERVAL: Duration = Duration::from_millis(100);

/// CoDel's state for one flow (RFC 8289, section 5).
#[derive(Clone, Copy, Debug, Default)]
struct CoDel {
    /// When packets are dropped, if the queue stays as long until then.
    first_above: Option<Instant>,
    dropping: bool,
    drop_next: Instant,
    count: u32,
    last_count: u32,
}

impl CoDel {
    /// Whether the packet at the head, which has waited for so long before `backlog` octets, is to be dropped or marked. `interval`:
    /// for how long a queue may be too long.
    fn tells(&mut self, now: Instant, waited: Duration, backlog: u64, interval: Duration) -> bool {
        let long = waited >= TARGET && backlog > QUANTUM as u64;
        let due = match self.first_above {
            _ if !long => {
                self.first_above = None;
                false
            }
            None => {
                self.first_above = Some(now + interval);
                false
            }
            Some(at) => now >= at,
        };
        if !due {
            self.dropping = false;
            return false;
        }
        if !self.dropping {
            self.dropping = true;
            // Where it was left a moment ago: what has begun to help goes on (section 5.5).
            let since = self.count.saturating_sub(self.last_count);
            let recent = since > 1 && now.since(self.drop_next) < interval * 16;
            self.count = if recent { since } else { 1 };
            self.last_count = self.count;
            self.drop_next = self.control_law(now, interval);
            return true;
        }
        let drops = now >= self.drop_next;
        if drops {
            self.count += 1;
            self.drop_next = self.control_law(self.drop_next, interval);
        }
        drops
    }

    fn control_law(&self, from: Instant, interval: Duration) -> Instant {
        from + interval.div_f64(f64::from(self.count).sqrt())
    }
}

#[derive(Debug, Default)]
struct Flow {
    waiting: VecDeque<Waiting>,
    octets: u64,
    /// What is left of its turn, in octets; less than nothing once that is over.
    credit: i64,
    listed: bool,
    codel: CoDel,
}

/// What waits of one tier, a queue for each flow.
#[derive(Debug, Default)]
struct Tier {
    /// Made when something waits.
    flows: Vec<Flow>,
    /// Flows that have just begun to wait have the first turn, so that what sends little waits little.
    new: VecDeque<u8>,
    old: VecDeque<u8>,
    packets: usize,
}

impl Tier {
    fn push(&mut self, packet: Waiting) {
        if self.flows.is_empty() {
            self.flows.resize_with(FLOWS, Flow::default);
        }
        self.packets += 1;
        let flow = &mut self.flows[usize::from(packet.flow)];
        flow.octets += u64::from(packet.len);
        flow.waiting.push_back(packet);
        if !std::mem::replace(&mut flow.listed, true) {
            flow.credit = QUANTUM;
            self.new.push_back(packet.flow);
        }
    }

    /// The packet whose turn it is.
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let (list, is_new) = if self.new.is_empty() { (&mut self.old, false) } else { (&mut self.new, true) };
            let at = *list.front()?;
            let flow = &mut self.flows[usize::from(at)];
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                list.pop_front();
                self.old.push_back(at);
                continue;
            }
            if let Some(&head) = flow.waiting.front() {
                return Some(head);
            }
            list.pop_front();
            // One round among the old ones keeps a flow from being new with each of its packets.
            if is_new && !self.old.is_empty() {
                self.old.push_back(at);
            } else {
                flow.listed = false;
            }
        }
    }

    /// Takes that packet, which [`Tier::next`] has just named. `lasting`: see [`Queue::pop`].
    fn take(&mut self, now: Instant, head: Waiting, aged: bool, lasting: Option<Duration>) -> Popped {
        let flow = &mut self.flows[usize::from(head.flow)];
        let told = lasting.is_some_and(|wanted| {
            let waited = now.since(head.since).saturating_sub(wanted);
            // A flow is told, notices and sends less in a round trip, in which that wait is twice: here, and where its packets are put
            // in order. And in another the queue goes that stood here. Who is told again before that sends less than all.
            flow.codel.tells(now, waited, flow.octets, INTERVAL + wanted * 3) && !head.copy
        });
        flow.waiting.pop_front();
        flow.octets -= u64::from(head.len);
        self.packets -= 1;
        match told {
            _ if aged => Popped::Aged(head),
            true if !head.marks => Popped::Drop(head),
            marked => {
                flow.credit -= i64::from(head.len);
                if marked { Popped::Mark(head) } else { Popped::Send(head) }
            }
        }
    }
}

/// What background has where the rest, but for real time, wants all: a sixteenth of that, as the lowest tin of CAKE, and as real
/// time leaves to others. None at all would be lower effort as well (RFC 8622, section 3), but connections that get nothing for
/// minutes break, and what they have sent was in vain.
const BACKGROUND_SHARE: u64 = 16;

/// The packets that wait for one path.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    urgent: VecDeque<Waiting>,
    normal: Tier,
    background: Tier,
    /// Octets that the rest has sent while background waited, and for which that had no turn yet.
    before: u64,
    packets: usize,
    octets: u64,
}

impl Queue {
    /// Packets and octets that wait.
    pub(crate) fn held(&self) -> (usize, u64) {
        (self.packets, self.octets)
    }

    /// Whether something waits that is as urgent as this or more.
    pub(crate) fn is_before(&self, urgent: bool) -> bool {
        if urgent { !self.urgent.is_empty() } else { self.packets > 0 }
    }

    /// Octets that wait of the flow whose turn is next; of real time, none.
    pub(crate) fn next_flow(&self) -> u64 {
        let tier = if self.normal.packets > 0 { &self.normal } else { &self.background };
        let next = tier.new.front().or(tier.old.front()).filter(|_| self.urgent.is_empty());
        next.map_or(0, |at| tier.flows[usize::from(*at)].octets)
    }

    /// Whether something waits that is urgent, or something that is not.
    pub(crate) fn has(&self, urgent: bool) -> bool {
        if urgent { !self.urgent.is_empty() } else { self.packets > self.urgent.len() }
    }

    /// Puts a packet behind those of its flow.
    pub(crate) fn push(&mut self, packet: Waiting) {
        self.packets += 1;
        self.octets += u64::from(packet.len);
        match packet.priority {
            Priority::Realtime => self.urgent.push_back(packet),
            Priority::Normal => self.normal.push(packet),
            Priority::Background => self.background.push(packet),
        }
    }

    /// Takes the packet whose turn it is, if there is room for one of its kind; what is too old needs none. What is sent
    /// takes `latency` to arrive. `lasting`: what is offered is more than the path can carry, and flows that send too much
    /// are to be told; but a wait of so long is wanted.
    pub(crate) fn pop(
        &mut self,
        now: Instant,
        latency: Duration,
        lasting: Option<Duration>,
        admits: impl Fn(bool) -> bool,
    ) -> Option<Popped> {
        // By a path that takes longer than half of its life a packet is late in any case, and not for having waited.
        let aged = |packet: &Waiting| now + latency.min(packet.until.since(packet.since) / 2) > packet.until;
        let urgent = self.urgent.front().copied().filter(|head| aged(head) || admits(true));
        let head = match urgent {
            Some(head) => head,
            None => self.next().filter(|head| aged(head) || admits(false))?,
        };
        let popped = match head.priority {
            Priority::Realtime => {
                self.urgent.pop_front();
                if aged(&head) { Popped::Aged(head) } else { Popped::Send(head) }
            }
            Priority::Normal => self.normal.take(now, head, aged(&head), lasting),
            Priority::Background => self.background.take(now, head, aged(&head), lasting),
        };
        let len = u64::from(head.len);
        (self.packets, self.octets) = (self.packets - 1, self.octets - len);
        if matches!(popped, Popped::Send(_) | Popped::Mark(_)) {
            self.before = match head.priority {
                _ if self.background.packets == 0 => 0,
                // That would take from the rest what a call has.
                Priority::Realtime => self.before,
                Priority::Normal => self.before + len,
                Priority::Background => self.before.saturating_sub(len * (BACKGROUND_SHARE - 1)),
            };
        }
        Some(popped)
    }

    /// The packet whose turn it is of what is not urgent.
    fn next(&mut self) -> Option<Waiting> {
        let due = |head: &Waiting| self.before >= u64::from(head.len) * (BACKGROUND_SHARE - 1);
        self.background.next().filter(due).or_else(|| self.normal.next()).or_else(|| self.background.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    const TIERS: [Priority; 3] = [Priority::Realtime, Priority::Normal, Priority::Background];

    fn packet(place: u64, flow: u8) -> Waiting {
        let (since, until) = (at(0), at(1000));
        Waiting { place, len: 1000, flow, priority: Priority::Normal, copy: false, marks: false, since, until }
    }

    fn pop(queue: &mut Queue, now: u64, lasting: bool) -> Option<Popped> {
        queue.pop(at(now), Duration::ZERO, lasting.then_some(Duration::ZERO), |_| true)
    }

    /// The places of what is sent, as long as there is something.
    fn sent(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| pop(queue, 1, false))
            .map(|popped| match popped {
                Popped::Send(packet) => packet.place,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn real_time_goes_first_and_the_rest_by_turns() {
        let mut queue = Queue::default();
        for place in 0..4 {
            queue.push(packet(place, 7));
        }
        queue.push(packet(4, 8));
        queue.push(Waiting { priority: Priority::Realtime, ..packet(5, 7) });
        assert_eq!(sent(&mut queue), [5, 0, 1, 4, 2, 3], "a turn is a full packet, and may end in the midst of one");
        assert_eq!(queue.held(), (0, 0));
    }

    #[test]
    fn a_flow_that_sends_little_waits_for_no_other() {
        let mut queue = Queue::default();
        for place in 0..100 {
            queue.push(packet(place, 7));
        }
        for round in 0..10 {
            assert!(matches!(pop(&mut queue, 1, false), Some(Popped::Send(packet)) if packet.flow == 7));
            assert!(matches!(pop(&mut queue, 1, false), Some(Popped::Send(packet)) if packet.flow == 7));
            queue.push(packet(1000 + round, 8));
            assert!(matches!(pop(&mut queue, 1, false), Some(Popped::Send(packet)) if packet.flow == 8));
        }
    }

    #[test]
    fn without_room_only_what_is_too_old_goes_and_real_time_has_its_own() {
        let mut queue = Queue::default();
        queue.push(packet(0, 7));
        queue.push(Waiting { until: at(100), priority: Priority::Realtime, ..packet(1, 7) });
        queue.push(Waiting { priority: Priority::Realtime, ..packet(2, 7) });
        let pop = |queue: &mut Queue, ms, urgent| {
            queue.pop(at(ms), Duration::from_millis(20), Some(Duration::ZERO), |u| u && urgent)
        };
        assert_eq!(pop(&mut queue, 80, false), None);
        assert!(
            matches!(pop(&mut queue, 81, false), Some(Popped::Aged(packet)) if packet.place == 1),
            "20 ms to arrive"
        );
        assert_eq!(pop(&mut queue, 82, false), None);
        assert!(matches!(pop(&mut queue, 82, true), Some(Popped::Send(packet)) if packet.place == 2));
        assert_eq!(pop(&mut queue, 82, true), None);
        assert!(matches!(pop(&mut queue, 981, false), Some(Popped::Aged(packet)) if packet.place == 0));
        assert_eq!(queue.held(), (0, 0));
    }

    /// A flow that sends 5 % too much for two seconds, in packets of this kind: when it is told. `lasting`: how many milliseconds it
    /// is to wait, if the queue lasts.
    fn told(lasting: Option<u64>, kind: Waiting) -> Vec<u64> {
        let lasting = lasting.map(Duration::from_millis);
        let (mut queue, mut told) = (Queue::default(), Vec::new());
        for ms in 0..2000 {
            queue.push(Waiting { place: ms, since: at(ms), until: at(ms + 1000), ..kind });
            if ms % 20 == 0 {
                continue;
            }
            loop {
                match queue.pop(at(ms), Duration::ZERO, lasting, |_| true) {
                    Some(Popped::Drop(_)) if !kind.marks => told.push(ms),
                    Some(Popped::Mark(_)) if kind.marks => {
                        told.push(ms);
                        break;
                    }
                    Some(Popped::Send(_)) | None => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        told
    }

    #[test]
    fn a_queue_that_stands_is_shortened_flow_by_flow_as_codel_does() {
        let told = told(Some(0), packet(0, 7));
        // 5 ms of queue after 80 to 100 ms, and 100 ms more for which it may be so; then after 100 / sqrt(n) ms.
        assert!((180..210).contains(&told[0]), "{told:?}");
        let waits: Vec<_> = told.windows(2).take(3).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            waits.iter().zip([100, 71, 58]).all(|(wait, wanted): (_, u64)| wait.abs_diff(wanted) <= 2),
            "{waits:?}"
        );
    }

    #[test]
    fn a_flow_that_is_to_wait_is_told_so_much_later_as_it_can_have_noticed() {
        let (at_once, later) = (told(Some(0), packet(0, 7)), told(Some(20), packet(0, 7)));
        // 20 ms more of queue after 400 ms, and 60 ms more for which it may be so.
        assert!((440..480).contains(&(later[0] - at_once[0])), "{at_once:?} {later:?}");
        assert!((later[1] - later[0]).abs_diff(160) <= 2, "{later:?}");
    }

    #[test]
    fn a_flow_that_understands_marks_is_told_by_them_and_loses_nothing() {
        let (lost, marked) = (told(Some(0), packet(0, 7)), told(Some(0), Waiting { marks: true, ..packet(0, 7) }));
        assert_eq!(lost[0], marked[0]);
        assert!(marked.len() >= lost.len(), "a mark makes the queue no shorter by itself: {marked:?}");
    }

    #[test]
    fn nobody_is_told_while_the_room_is_only_not_known_nor_by_the_loss_of_a_copy() {
        assert_eq!(told(None, packet(0, 7)), []);
        assert_eq!(told(Some(0), Waiting { copy: true, ..packet(0, 7) }), []);
    }

    #[test]
    fn background_goes_last_and_has_a_sixteenth_where_the_rest_wants_all() {
        let mut queue = Queue::default();
        for place in 0..4 {
            queue.push(Waiting { priority: Priority::Background, ..packet(place, 7) });
        }
        queue.push(packet(4, 8));
        queue.push(Waiting { priority: Priority::Realtime, ..packet(5, 7) });
        assert_eq!(sent(&mut queue), [5, 4, 0, 1, 2, 3]);
        for place in 0..1600 {
            let priority = if place % 2 == 0 { Priority::Background } else { Priority::Normal };
            queue.push(Waiting { priority, ..packet(place, 7) });
        }
        let first: Vec<u64> = sent(&mut queue).into_iter().take(800).collect();
        assert_eq!(first.iter().filter(|place| *place % 2 == 0).count(), 800 / 16);
        // A call is not counted: it would take from the rest what it has itself.
        for place in 0..160 {
            queue.push(Waiting { priority: Priority::Background, ..packet(place, 7) });
            queue.push(Waiting { priority: Priority::Realtime, ..packet(1000 + place, 7) });
        }
        queue.push(packet(5000, 8));
        assert_eq!(sent(&mut queue)[160], 5000);
    }

    proptest! {
        /// Whatever comes and goes: all that was pushed comes out once, a flow's packets in their order.
        #[test]
        fn what_goes_in_comes_out_once_and_in_order(
            steps in proptest::collection::vec((any::<bool>(), 0u8..4, 1u16..2000, 0usize..3), 1..300),
        ) {
            let (mut queue, mut model) = (Queue::default(), BTreeMap::<(u8, usize), VecDeque<u64>>::new());
            let (mut octets, mut now) = (0, 0);
            for (place, (push, flow, len, tier)) in steps.into_iter().enumerate() {
                now += 10;
                if push {
                    let place = place as u64;
                    model.entry((flow, tier)).or_default().push_back(place);
                    octets += u64::from(len);
                    let priority = TIERS[tier];
                    queue.push(Waiting { len, priority, since: at(now), until: at(now + 500), ..packet(place, flow) });
                } else if let Some(popped) = pop(&mut queue, now, true) {
                    let (Popped::Send(out) | Popped::Aged(out) | Popped::Mark(out) | Popped::Drop(out)) = popped;
                    let tier = TIERS.iter().position(|tier| *tier == out.priority).expect("one of them");
                    // Real time has one order for all its flows.
                    let first = model.get_mut(&(out.flow, tier)).and_then(VecDeque::pop_front);
                    prop_assert_eq!(first, Some(out.place));
                    octets -= u64::from(out.len);
                }
                let left: usize = model.values().map(VecDeque::len).sum();
                prop_assert_eq!(queue.held(), (left, octets));
            }
            let left: usize = model.values().map(VecDeque::len).sum();
            prop_assert_eq!(std::iter::from_fn(|| pop(&mut queue, now, true)).count(), left);
        }
    }
}
