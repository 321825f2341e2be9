//! Which path a flow takes: a ranking of the paths, and a choice with hysteresis for each class.

use crate::balance::Balance;
use crate::node::PathState;
use crate::policy::{Limit, Measured, Mode, Preference};
use crate::snapshot::Traffic;
use crate::{Instant, MAX_PATHS, paths_in, slot_of, slots_of};
use std::time::Duration;

/// A path as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The number of the path.
    pub(crate) path: u8,
    pub(crate) preference: Preference,
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
    fn rank(&self) -> (Standing, Preference, u8) {
        (self.standing, self.preference, self.path)
    }
}

/// The path that new flows take. The one in use stays while it lives; it is left for a preferred one only when that is
/// off probation, so a flapping path cannot draw flows to and fro.
pub(crate) fn choose(candidates: impl IntoIterator<Item = Candidate>, current: Option<u8>) -> Option<u8> {
    let (mut best, mut now) = (None::<Candidate>, None);
    for candidate in candidates {
        if best.is_none_or(|best| candidate.rank() < best.rank()) {
            best = Some(candidate);
        }
        if Some(candidate.path) == current {
            now = Some(candidate);
        }
    }
    let best = best?;
    let Some(now) = now else { return Some(best.path) };
    let preferred = (best.preference, best.path) < (now.preference, now.path);
    let leave = if now.standing.holds() {
        best.standing == Standing::Settled && preferred
    } else {
        best.standing < now.standing
    };
    Some(if leave { best.path } else { now.path })
}

/// The paths, a bit each, over which a class may spread: of the links that are wanted most those that hold. One on probation
/// does only where there is nothing else, so a flapping path cannot draw flows to and fro. Of two paths over one uplink the
/// one that stands by takes no part: together they carry no more than one.
pub(crate) fn spread(candidates: impl Iterator<Item = Candidate> + Clone) -> u16 {
    let rank = |candidate: &Candidate| (candidate.standing == Standing::Probation, candidate.preference.tier());
    let holding = candidates.filter(|candidate| candidate.standing.holds());
    let best = holding.clone().map(|candidate| rank(&candidate)).min();
    let chosen = holding.filter(move |candidate| Some(rank(candidate)) == best);
    let firsts = chosen.clone().filter(|candidate| !candidate.preference.stands_by);
    let leads = firsts.fold(0u16, |slots, candidate| slots | 1 << slot_of(candidate.path));
    let takes_part = |of: &Candidate| !of.preference.stands_by || leads & 1 << slot_of(of.path) == 0;
    chosen.filter(takes_part).fold(0, |paths, candidate| paths | 1 << candidate.path)
}

/// Of these paths, a bit each, the one that goes over the same uplink as `path`; `path` itself if it is one of them.
pub(crate) fn same_uplink(paths: u16, path: u8) -> Option<u8> {
    let over = |other: &u8| slot_of(*other) == slot_of(path);
    if paths & 1 << path != 0 { Some(path) } else { paths_in(paths).find(over) }
}

/// Which of these paths a flow of this hash is drawn to: of many flows, each gets as many as the weight of its uplink says. If
/// one is gone, only its own flows are drawn anew (weighted rendezvous hashing: Thaler and Ravishankar, 1998); and none where
/// an uplink has another tunnel now.
pub(crate) fn draw(flow: u64, paths: u16, weight: impl Fn(u8) -> u16) -> Option<u8> {
    let score = |path: u8| {
        let slot = slot_of(path);
        // The finalizer of SplitMix64: every bit of the flow's hash and of the slot counts.
        let mut bits = flow ^ u64::from(slot + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // Uniform in (0, 1); its logarithm over the weight is exponential with the weight as its rate.
        let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / f64::from(weight(slot).max(1))
    };
    paths_in(paths).map(|path| (score(path), path)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, path)| path)
}

/// The way that the packets of one class take.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// The path that new flows take, where the class does not spread.
    pub(crate) current: Option<u8>,
    /// The paths over which it spreads if it does, a bit each.
    pub(crate) spread: u16,
    /// When that last became another set.
    pub(crate) spread_at: Instant,
    /// Where its flows are balanced.
    pub(crate) balance: Balance,
    /// The paths whose links are beyond the limit of the class.
    beyond: Beyond,
    /// The last path that was current: coming back to it is no change of path.
    last: Option<u8>,
    pub(crate) moved_at: Instant,
    pub(crate) changes: u64,
    /// Flows that don't pause are to follow from this path, after a planned move.
    pub(crate) leaving: Option<u8>,
    /// What has been sent of the class.
    pub(crate) tx: Traffic,
    /// What has come of it, where that is looked at.
    pub(crate) rx: Traffic,
    /// When that was last.
    pub(crate) used: Option<Instant>,
}

impl Course {
    /// The paths that packets take now, a bit each, in this mode.
    pub(crate) fn paths(&self, mode: &Mode) -> u16 {
        match mode {
            Mode::Share(_) | Mode::Balance | Mode::Duplicate(_) | Mode::Bond if self.spread != 0 => self.spread,
            _ => self.current.map_or(0, |path| 1 << path),
        }
    }

    /// Follows what has become of the paths; `lives`: whether one can still carry what it has. The paths moved from and to,
    /// if new flows take another one now.
    pub(crate) fn follow(
        &mut self,
        now: Instant,
        candidates: impl IntoIterator<Item = Candidate, IntoIter: Clone>,
        lives: impl Fn(u8) -> bool,
    ) -> Option<(Option<u8>, Option<u8>)> {
        let candidates = candidates.into_iter();
        let spread = spread(candidates.clone());
        if std::mem::replace(&mut self.spread, spread) != spread {
            self.spread_at = now;
        }
        let to = choose(candidates, self.current);
        if to == self.current {
            return None;
        }
        let from = std::mem::replace(&mut self.current, to);
        // A path that lives is left as planned; from one that does not, all has been sent again already.
        self.leaving = from.filter(|path| lives(*path));
        if let Some(path) = to {
            self.changes += u64::from(self.last.replace(path).is_some_and(|last| last != path));
            self.moved_at = now;
        }
        Some((from, to))
    }
}

/// Which links are beyond the limit of a class.
#[derive(Debug, Default)]
struct Beyond {
    paths: u16,
    /// Since when each has been well within it.
    calm_since: [Option<Instant>; MAX_PATHS],
}

/// A link that was beyond its class's limit is within it again after so long without: as long as a path that was down is
/// on probation for, if it was not down before.
const CALM: Duration = Duration::from_secs(5);

impl Course {
    /// Notes what the link of `path` is like now, by that path, and says whether it is within the limit of the class.
    pub(crate) fn is_within(&mut self, now: Instant, path: u8, limit: &Limit, measured: Option<Measured>) -> bool {
        let Some(measured) = measured.filter(|_| *limit != Limit::default()) else { return true };
        let (bit, calm_since) = (1 << path, &mut self.beyond.calm_since[usize::from(path)]);
        let before = self.beyond.paths & bit != 0;
        if limit.is_exceeded(before, measured) {
            self.beyond.paths |= bit;
            *calm_since = None;
        } else if before && now.since(*calm_since.get_or_insert(now)) >= CALM {
            self.beyond.paths &= !bit;
        }
        self.beyond.paths & bit == 0
    }

    /// The slots of the links that were beyond the limit of the class when that was looked at last.
    pub(crate) fn beyond_limit(&self) -> Vec<u8> {
        slots_of(self.beyond.paths)
    }
}

/// After a planned move (back to a preferred path), flows follow at their first pause; those that never pause follow
/// after this long. TCP's bursts pause once a round trip, and by then a preferred path that fell again has been noticed.
pub(crate) const MOVE_GRACE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::*;

    fn pick(paths: &[(u8, Standing)], current: Option<u8>) -> Option<u8> {
        let preference = |place| Preference { within_limit: true, listed: true, stands_by: false, place };
        let candidates =
            paths.iter().map(|&(path, standing)| Candidate { path, preference: preference(path), standing });
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
}
