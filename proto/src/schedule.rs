//! Which path a flow takes: a ranking of the paths, a choice with hysteresis for each class, and a memory of flows.

use crate::node::PathState;
use crate::policy::ClassId;
use crate::snapshot::Traffic;
use crate::{Instant, MAX_SLOTS};
use std::time::Duration;

/// A path as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) slot: u8,
    pub(crate) preference: u8,
    pub(crate) standing: Standing,
}

/// How good a path is; better ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Up, and off probation.
    Settled,
    /// Up, and came back a moment ago.
    Probation,
    /// Asked whether it is alive.
    Suspect,
    /// Loses what is large.
    Impaired,
    /// Down since a moment: the least bad where there is no other.
    LastResort,
}

impl Standing {
    /// `None`: the path cannot be used at all.
    pub(crate) fn of(state: PathState, on_probation: bool, down_for: Duration, has_session: bool) -> Option<Standing> {
        /// How long packets go on to be sent into the last path that went down. After that they would only be a burst
        /// of stale ones for whoever keeps them queued.
        const LAST_RESORT: Duration = Duration::from_secs(2);
        match state {
            _ if !has_session => None,
            PathState::Up if on_probation => Some(Standing::Probation),
            PathState::Up => Some(Standing::Settled),
            PathState::Suspect => Some(Standing::Suspect),
            PathState::Impaired => Some(Standing::Impaired),
            PathState::Down if down_for < LAST_RESORT => Some(Standing::LastResort),
            PathState::Down | PathState::Absent => None,
        }
    }

    /// Whether flows stay where nothing is preferred.
    fn holds(self) -> bool {
        self < Standing::Impaired
    }
}

impl Candidate {
    fn rank(&self) -> (Standing, u8, u8) {
        (self.standing, self.preference, self.slot)
    }
}

/// The slot that new flows take. The one in use stays while it lives; it is left for a preferred one only when that is
/// off probation, so a flapping path cannot draw flows to and fro.
pub(crate) fn choose(candidates: impl IntoIterator<Item = Candidate>, current: Option<u8>) -> Option<u8> {
    let (mut best, mut now) = (None::<Candidate>, None);
    for candidate in candidates {
        if best.is_none_or(|best| candidate.rank() < best.rank()) {
            best = Some(candidate);
        }
        if Some(candidate.slot) == current {
            now = Some(candidate);
        }
    }
    let best = best?;
    let Some(now) = now else { return Some(best.slot) };
    let preferred = (best.preference, best.slot) < (now.preference, now.slot);
    let leave = if now.standing.holds() {
        best.standing == Standing::Settled && preferred
    } else {
        best.standing < now.standing
    };
    Some(if leave { best.slot } else { now.slot })
}

/// The way that the packets of one class take.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// The slot that new flows take.
    pub(crate) current: Option<u8>,
    /// The last slot that was current: coming back to it is no change of path.
    last: Option<u8>,
    pub(crate) moved_at: Instant,
    pub(crate) changes: u64,
    /// Flows that don't pause are to follow from the path of this slot, after a planned move.
    pub(crate) leaving: Option<u8>,
    /// What has been sent of the class.
    pub(crate) tx: Traffic,
    /// When that was last.
    pub(crate) used: Option<Instant>,
}

impl Course {
    /// Follows what has become of the paths; `lives`: whether one can still carry what it has. The slots moved from and to,
    /// if new flows take another one now.
    pub(crate) fn follow(
        &mut self,
        now: Instant,
        candidates: impl IntoIterator<Item = Candidate>,
        lives: impl Fn(u8) -> bool,
    ) -> Option<(Option<u8>, Option<u8>)> {
        let to = choose(candidates, self.current);
        if to == self.current {
            return None;
        }
        let from = std::mem::replace(&mut self.current, to);
        // A path that lives is left as planned; from one that does not, all has been sent again already.
        self.leaving = from.filter(|slot| lives(*slot));
        if let Some(slot) = to {
            self.changes += u64::from(self.last.replace(slot).is_some_and(|last| last != slot));
            self.moved_at = now;
        }
        Some((from, to))
    }
}

/// After a planned move (back to a preferred path), flows follow at their first pause; those that never pause follow
/// after this long. TCP's bursts pause once a round trip, and by then a preferred path that fell again has been noticed.
pub(crate) const MOVE_GRACE: Duration = Duration::from_millis(300);

const SETS: usize = 128;
const WAYS: usize = 2;

/// What is remembered of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    hash: u64,
    class: Option<ClassId>,
    slot: Option<u8>,
    last: Instant,
}

/// Which flow is of which class, and took which path last. A flow that is pushed out by others (beyond 256 at once) is just a
/// new one.
#[derive(Default)]
pub(crate) struct FlowTable {
    /// Made with the first packet: most sites of a core are idle.
    flows: Vec<[Option<Flow>; WAYS]>,
}

impl FlowTable {
    /// The flow `hash`, of which a packet is to be sent.
    pub(crate) fn find(&mut self, hash: u64, now: Instant) -> &mut Flow {
        if self.flows.is_empty() {
            self.flows = vec![[None; WAYS]; SETS];
        }
        let set = &mut self.flows[hash as usize % SETS];
        let place = set.iter().position(|flow| flow.is_some_and(|flow| flow.hash == hash)).unwrap_or_else(|| {
            let last = |way: &usize| set[*way].map_or(Instant::ZERO, |flow| flow.last);
            let oldest = (0..WAYS).min_by_key(last).unwrap_or(0);
            set[oldest] = None;
            oldest
        });
        set[place].get_or_insert(Flow { hash, class: None, slot: None, last: now })
    }

    /// The policy is another one: each flow's class is to be found anew.
    pub(crate) fn forget_classes(&mut self) {
        self.flows.iter_mut().flatten().flatten().for_each(|flow| flow.class = None);
    }
}

impl Flow {
    /// Its class; `classify` is asked once.
    pub(crate) fn class(&mut self, classify: impl FnOnce() -> ClassId) -> ClassId {
        *self.class.get_or_insert_with(classify)
    }

    /// The slot for its next packet: `current`, or, after a planned move, the one that it is on while it does not pause; and
    /// the one that it leaves without a pause. `alive`: the slots that can be used; `pause`: asked only then, how long a gap
    /// must be so that the packets before it, which went by the slot given, cannot be overtaken.
    pub(crate) fn assign(
        &mut self,
        now: Instant,
        current: u8,
        alive: [bool; MAX_SLOTS],
        moved_at: Instant,
        pause: impl FnOnce(u8) -> Duration,
    ) -> (u8, Option<u8>) {
        let last = std::mem::replace(&mut self.last, now);
        let old = self.slot.filter(|&slot| slot != current && alive[usize::from(slot)]);
        let going_on = old.filter(|&slot| now.since(last) < pause(slot));
        if let Some(slot) = going_on
            && now.since(moved_at) < MOVE_GRACE
        {
            return (slot, None);
        }
        self.slot = Some(current);
        (current, going_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::*;

    fn pick(paths: &[(u8, Standing)], current: Option<u8>) -> Option<u8> {
        let candidates = paths.iter().map(|&(slot, standing)| Candidate { slot, preference: slot, standing });
        choose(candidates, current)
    }

    #[test]
    fn the_choice_in_every_situation() {
        for (paths, current, chosen, why) in [
            (&[][..], Some(0), None, "nothing there"),
            (&[(0, Settled), (1, Settled)], None, Some(0), "the preferred one first"),
            (&[(1, Settled)], Some(0), Some(1), "the one in use is gone"),
            (&[(0, Probation), (1, Settled)], Some(1), Some(1), "not back before probation ends"),
            (&[(0, Settled), (1, Settled)], Some(1), Some(0), "back when it has held"),
            (&[(0, Suspect), (1, Settled)], Some(0), Some(0), "a suspicion moves nothing"),
            (&[(0, Suspect), (1, Settled)], None, Some(1), "but new choices avoid it"),
            (&[(0, Probation), (1, Settled)], Some(0), Some(0), "in use while on probation: stays"),
            (&[(0, LastResort), (1, LastResort)], Some(1), Some(1), "all down: where we were"),
            (&[(0, LastResort), (1, Probation)], Some(0), Some(1), "anything alive is better than down"),
            (&[(0, Impaired), (1, Probation)], Some(0), Some(1), "whole and new is better than impaired"),
            (&[(0, Impaired), (1, LastResort)], Some(1), Some(0), "impaired is better than down"),
            (&[(0, Impaired), (1, Impaired)], Some(1), Some(1), "no better, no move"),
            (&[(0, Settled), (1, Suspect)], Some(1), Some(0), "a preferred settled one, away from a suspect"),
        ] {
            assert_eq!(pick(paths, current), chosen, "{why}");
        }
    }

    #[test]
    fn a_flow_follows_a_planned_move_at_its_first_pause() {
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut flows = FlowTable::default();
        let mut alive = [false; MAX_SLOTS];
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
            let slot = assign(9, ms, 0, alive, 50);
            assert_eq!(slot, if ms < 350 { 1 } else { 0 }, "at {ms}: a flow that never pauses");
        }
        alive[1] = false;
        assert_eq!(assign(10, 2000, 1, alive, 0), 1);
        assert_eq!(assign(10, 2001, 0, alive, 2000), 0, "its path died: at once");
    }
}
