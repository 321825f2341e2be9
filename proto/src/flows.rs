//! What is remembered of each flow: its class, the path that it took last, and how much it sends.

use crate::policy::ClassId;
use crate::schedule::MOVE_GRACE;
use crate::{Instant, MAX_PATHS};
use std::time::Duration;

/// Sets that the table has at first: 256 flows, as many as a home has at a time.
const FEWEST_SETS: usize = 128;
/// And at most: 8,192 flows, or half a megabyte, for an office that has them.
const MOST_SETS: usize = 4096;
const WAYS: usize = 2;

/// A flow that sent nothing for so long has ended, or may as well begin anew.
pub(crate) const LIVELY: Duration = Duration::from_secs(1);

/// What is remembered of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    hash: u64,
    class: Option<ClassId>,
    /// The path by which its last packet went.
    path: Option<u8>,
    /// The path that it is to take, where its class has it balanced.
    pub(crate) place: Option<u8>,
    last: Instant,
    /// Sent since flows were counted last.
    pub(crate) octets: u64,
}

/// The flows of one peer, in sets of [`WAYS`]. One that is pushed out by others is just a new one; while they all live, the
/// table grows.
#[derive(Default)]
pub(crate) struct FlowTable {
    /// Made with the first packet: most sites of a core are idle.
    flows: Vec<[Option<Flow>; WAYS]>,
}

impl FlowTable {
    /// The flow `hash`, of which a packet is to be sent.
    pub(crate) fn find(&mut self, hash: u64, now: Instant) -> &mut Flow {
        if self.flows.is_empty() {
            self.flows = vec![[None; WAYS]; FEWEST_SETS];
        }
        let mut at = self.place(hash);
        if at.is_none() && self.is_crowded(hash, now) && self.flows.len() < MOST_SETS {
            self.grow();
            at = self.place(hash);
        }
        let sets = self.flows.len();
        let set = &mut self.flows[hash as usize % sets];
        let way = at.unwrap_or_else(|| {
            let last = |way: &usize| set[*way].map_or(Instant::ZERO, |flow| flow.last);
            let oldest = (0..WAYS).min_by_key(last).unwrap_or(0);
            set[oldest] = None;
            oldest
        });
        set[way].get_or_insert(Flow { hash, class: None, path: None, place: None, last: now, octets: 0 })
    }

    fn set(&self, hash: u64) -> &[Option<Flow>; WAYS] {
        &self.flows[hash as usize % self.flows.len()]
    }

    /// In which way of its set it is.
    fn place(&self, hash: u64) -> Option<usize> {
        self.set(hash).iter().position(|flow| flow.is_some_and(|flow| flow.hash == hash))
    }

    /// To remember it, one that lives would have to go.
    fn is_crowded(&self, hash: u64, now: Instant) -> bool {
        self.set(hash).iter().all(|flow| flow.is_some_and(|flow| now.since(flow.last) < LIVELY))
    }

    /// Twice as many sets: each one's flows go to itself and to a new one.
    fn grow(&mut self) {
        let sets = self.flows.len() * 2;
        let old = std::mem::replace(&mut self.flows, vec![[None; WAYS]; sets]);
        for flow in old.into_iter().flatten().flatten() {
            let set = &mut self.flows[flow.hash as usize % sets];
            if let Some(free) = set.iter_mut().find(|way| way.is_none()) {
                *free = Some(flow);
            }
        }
    }

    /// The class of the flow `hash`, of which a packet has come; `classify` is asked once.
    pub(crate) fn class(&mut self, hash: u64, now: Instant, classify: impl FnOnce() -> ClassId) -> ClassId {
        let flow = self.find(hash, now);
        flow.last = now;
        flow.class(classify)
    }

    /// The policy is another one: each flow's class is to be found anew.
    pub(crate) fn forget_classes(&mut self) {
        self.flows.iter_mut().flatten().flatten().for_each(|flow| flow.class = None);
    }

    /// The flows of a class that have sent of late.
    pub(crate) fn lively(&mut self, class: ClassId, now: Instant) -> impl Iterator<Item = &mut Flow> {
        let flows = self.flows.iter_mut().flatten().flatten();
        flows.filter(move |flow| flow.class == Some(class) && now.since(flow.last) < LIVELY)
    }
}

impl Flow {
    /// Its class; `classify` is asked once.
    pub(crate) fn class(&mut self, classify: impl FnOnce() -> ClassId) -> ClassId {
        *self.class.get_or_insert_with(classify)
    }

    /// The path for its next packet: `current`, or, after a planned move, the one that it is on while it does not pause; and
    /// the one that it leaves without a pause. `alive`: the paths that can be used; `pause`: asked only then, how long a gap
    /// must be so that the packets before it, which went by the one given, cannot be overtaken.
    pub(crate) fn assign(
        &mut self,
        now: Instant,
        current: u8,
        alive: [bool; MAX_PATHS],
        moved_at: Instant,
        pause: impl FnOnce(u8) -> Duration,
    ) -> (u8, Option<u8>) {
        let last = std::mem::replace(&mut self.last, now);
        let old = self.path.filter(|&path| path != current && alive[usize::from(path)]);
        let going_on = old.filter(|&path| now.since(last) < pause(path));
        if let Some(path) = going_on
            && now.since(moved_at) < MOVE_GRACE
        {
            return (path, None);
        }
        self.path = Some(current);
        (current, going_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_follows_a_planned_move_at_its_first_pause() {
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut flows = FlowTable::default();
        let mut alive = [false; MAX_PATHS];
        (alive[0], alive[1]) = (true, true);
        let mut assign = |hash, ms: u64, current, alive, moved_at| {
            let flow = flows.find(hash, at(ms));
            flow.assign(at(ms), current, alive, at(moved_at), |_| Duration::from_millis(20)).0
        };
        assert_eq!(assign(7, 0, 1, alive, 0), 1);
        assert_eq!(assign(7, 10, 0, alive, 5), 1, "no pause yet");
        assert_eq!(assign(8, 10, 0, alive, 5), 0, "a new flow goes at once");
        assert_eq!(assign(7, 40, 0, alive, 5), 0, "it paused");
        assert_eq!(assign(9, 50, 1, alive, 0), 1);
        for ms in 51..1100 {
            let path = assign(9, ms, 0, alive, 50);
            assert_eq!(path, if ms < 350 { 1 } else { 0 }, "at {ms}: a flow that never pauses");
        }
        alive[1] = false;
        assert_eq!(assign(10, 2000, 1, alive, 0), 1);
        assert_eq!(assign(10, 2001, 0, alive, 2000), 0, "its path died: at once");
    }
}
