//! Which path a flow takes: a ranking of the paths, a choice with hysteresis, and a memory of flows.

use crate::node::PathState;
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

/// After a planned move (back to a preferred path), flows follow at their first pause; those that never pause follow
/// after this long. TCP's bursts pause once a round trip, and by then a preferred path that fell again has been noticed.
pub(crate) const MOVE_GRACE: Duration = Duration::from_millis(300);

const SETS: usize = 128;
const WAYS: usize = 2;

#[derive(Clone, Copy)]
struct Flow {
    hash: u64,
    slot: u8,
    last: Instant,
}

/// Which flow took which path last. A flow that is pushed out by others (beyond 256 at once) just takes the path of new
/// flows.
#[derive(Default)]
pub(crate) struct FlowTable {
    /// Made with the first packet: most sites of a core are idle.
    flows: Vec<[Option<Flow>; WAYS]>,
}

impl FlowTable {
    /// The slot for a packet of flow `hash`: `current`, or, after a planned move, the one that the flow is on while it
    /// does not pause. `alive`: the slots that can be used; `pause`: asked only then, how long a gap must be so that the
    /// packets before it, which went by the slot given, cannot be overtaken.
    pub(crate) fn assign(
        &mut self,
        hash: u64,
        now: Instant,
        current: u8,
        alive: [bool; MAX_SLOTS],
        moved_at: Instant,
        pause: impl FnOnce(u8) -> Duration,
    ) -> u8 {
        if self.flows.is_empty() {
            self.flows = vec![[None; WAYS]; SETS];
        }
        let set = &mut self.flows[hash as usize % SETS];
        if let Some(flow) = set.iter_mut().flatten().find(|flow| flow.hash == hash) {
            let stay = flow.slot != current
                && alive[usize::from(flow.slot)]
                && now.since(flow.last) < pause(flow.slot)
                && now.since(moved_at) < MOVE_GRACE;
            if !stay {
                flow.slot = current;
            }
            flow.last = now;
            return flow.slot;
        }
        let oldest = set.iter_mut().min_by_key(|flow| flow.map_or(Instant::ZERO, |flow| flow.last));
        if let Some(place) = oldest {
            *place = Some(Flow { hash, slot: current, last: now });
        }
        current
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
        let pause = |_| Duration::from_millis(20);
        assert_eq!(flows.assign(7, at(0), 1, alive, at(0), pause), 1);
        assert_eq!(flows.assign(7, at(10), 0, alive, at(5), pause), 1, "no pause yet");
        assert_eq!(flows.assign(8, at(10), 0, alive, at(5), pause), 0, "a new flow goes at once");
        assert_eq!(flows.assign(7, at(40), 0, alive, at(5), pause), 0, "it paused");
        assert_eq!(flows.assign(9, at(50), 1, alive, at(0), pause), 1);
        for ms in 51..1100 {
            let slot = flows.assign(9, at(ms), 0, alive, at(50), pause);
            assert_eq!(slot, if ms < 350 { 1 } else { 0 }, "at {ms}: a flow that never pauses");
        }
        alive[1] = false;
        assert_eq!(flows.assign(10, at(2000), 1, alive, at(0), pause), 1);
        assert_eq!(flows.assign(10, at(2001), 0, alive, at(2000), pause), 0, "its path died: at once");
    }
}
