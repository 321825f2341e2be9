//! The earliest deadline of many peers, without looking at all of them.

use crate::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// When which peer wants to be called. Deadlines mostly move later (a receipt arrived): those are left where they stand
/// and cost one early call, which finds nothing due and arms anew. Each peer has at most one entry that counts.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
}

/// The entry of one peer that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Armed {
    pub(crate) at: Instant,
    pub(crate) reason: &'static str,
}

impl Default for Armed {
    fn default() -> Self {
        Armed { at: Instant::NEVER, reason: "nothing" }
    }
}

impl Timers {
    /// Makes sure that the peer is called at `deadline` at the latest.
    pub(crate) fn arm(&mut self, peer: usize, armed: &mut Armed, deadline: Option<(Instant, &'static str)>) {
        if let Some((at, reason)) = deadline
            && at < armed.at
        {
            *armed = Armed { at, reason };
            self.heap.push(Reverse((at, peer)));
        }
    }

    /// The next entry, which may be one that counts no longer.
    pub(crate) fn next(&self) -> Option<(Instant, usize)> {
        self.heap.peek().map(|entry| entry.0)
    }

    /// Takes the next entry that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, usize)> {
        if self.next()?.0 > now {
            return None;
        }
        self.heap.pop().map(|entry| entry.0)
    }
}
