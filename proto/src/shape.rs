//! Each path's room, and what waits for it before the cipher: a full link must not delay a call, and what is sent into a
//! queue that somebody else keeps cannot be taken back, overtaken, or sent elsewhere.
//!
//! A path that takes what is offered holds nothing back, and a packet is sent in the call that brought it.

mod queue;
mod room;

use crate::Instant;
use crate::node::MAX_AGE;
pub(crate) use queue::{Popped, Queue, Waiting};
pub(crate) use room::Progress;
use room::Room;
use std::time::Duration;

/// As many as are kept for a replay.
const MOST_WAITING: usize = 64 * 1024;

/// For so long after a failover, or until nothing waits any more, no flow is told to send less where the rate is given: what
/// was under way on the other path waits here at once, and that is no flow's fault. What has not gone by then never will.
const FAILOVER: Duration = MAX_AGE;

/// A path counts as shared for so long: some round trips.
const SHARED: Duration = Duration::from_secs(1);

/// What the shaper must know of its path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Octets of datagrams that are not acknowledged and not known to be lost.
    pub(crate) under_way: u64,
    /// When the oldest of these was sent; any later moment, if there is none.
    pub(crate) oldest: Instant,
    /// The least round trip of late.
    pub(crate) least_rtt: Duration,
    /// How long a packet takes to arrive, as far as is known.
    pub(crate) latency: Duration,
    /// How much longer than the fastest of late the last one took.
    pub(crate) queued: Duration,
}

/// The shaper of one path.
#[derive(Debug, Default)]
pub(crate) struct Shaper {
    room: Room,
    queue: Queue,
    /// Something waits elsewhere that would go by this path if it had room.
    wanted: bool,
    /// When something went by this path last that could have gone by another.
    shared: Option<Instant>,
    /// When this path had to carry what another one had been given, if that is not over.
    failover: Option<Instant>,
}

impl Shaper {
    /// Whether a packet may be sent at once: nothing waits before it, and the path has room.
    pub(crate) fn admits(&self, now: Instant, load: Load, urgent: bool) -> bool {
        !self.queue.is_before(urgent) && self.room.admits(now, load, urgent)
    }

    /// What the link carries in this direction, in octets a second; `None`: that is to be measured.
    pub(crate) fn give(&mut self, rate: Option<u64>) {
        self.room.give(rate);
    }

    /// The rate that was given, in octets a second.
    pub(crate) fn given(&self) -> Option<u64> {
        self.room.given()
    }

    /// Datagrams of `len` octets with a packet were sent.
    pub(crate) fn on_sent(&mut self, now: Instant, load: Load, len: u64, urgent: bool) {
        self.room.on_sent(now, load, len, urgent);
    }

    /// Datagrams of `len` octets were sent that wait for nothing: receipts, questions, handshakes.
    pub(crate) fn on_sent_own(&mut self, now: Instant, load: Load, len: u64) {
        self.room.on_sent_own(now, load, len);
    }

    /// Makes a packet wait. `false`: too many do.
    pub(crate) fn push(&mut self, packet: Waiting, load: Load) -> bool {
        let (waiting, _) = self.queue.held();
        if waiting == 0 {
            self.room.begin_to_wait(packet.since, load);
        }
        if packet.copy {
            self.failover = Some(packet.since);
        }
        if waiting < MOST_WAITING {
            self.queue.push(packet);
        }
        waiting < MOST_WAITING
    }

    /// Takes the next packet that need not wait any more.
    pub(crate) fn pop(&mut self, now: Instant, load: Load) -> Option<Popped> {
        if self.queue.held().0 == 0 {
            return None;
        }
        self.room.on_timeout(now, load);
        let Shaper { room, queue, failover, .. } = self;
        failover.take_if(|at| now.since(*at) >= FAILOVER || queue.held().0 == 1);
        let lasting = room.is_known(queue.held().1) || (room.given().is_some() && failover.is_none());
        let lasting = lasting.then_some(Duration::ZERO);
        queue.pop(now, load.latency, lasting, |urgent| room.admits(now, load, urgent))
    }

    /// When [`Shaper::pop`] has something, if no receipt comes before.
    pub(crate) fn ready_at(&self, now: Instant, load: Load) -> Option<Instant> {
        let urgencies = [true, false].into_iter().filter(|urgent| self.queue.has(*urgent));
        urgencies.map(|urgent| self.room.ready_at(now, load, urgent)).min()
    }

    /// A receipt came for what the path has carried.
    pub(crate) fn on_progress(&mut self, now: Instant, progress: &Progress) {
        self.room.on_progress(now, progress, self.wanted || self.queue.held().0 > 0, self.is_shared(now));
    }

    /// What is sent now could go by another path as well.
    pub(crate) fn share(&mut self, now: Instant) {
        self.shared = Some(now);
    }

    /// Whether something waits elsewhere that would go by this path if it had room.
    pub(crate) fn set_wanted(&mut self, now: Instant, load: Load, wanted: bool) {
        // While it is shared something waits now and then, and its rounds go on.
        if wanted && !self.wanted && !self.is_shared(now) && self.queue.held().0 == 0 {
            self.room.begin_to_wait(now, load);
        }
        self.wanted = wanted;
    }

    fn is_shared(&self, now: Instant) -> bool {
        self.shared.is_some_and(|at| now.since(at) < SHARED)
    }

    /// Time has passed: see [`Room::on_timeout`]. To be called before the room is asked for where nothing waits here.
    pub(crate) fn wake(&mut self, now: Instant, load: Load) {
        self.room.on_timeout(now, load);
    }

    /// When the path has room again, if no receipt comes before.
    pub(crate) fn room_at(&self, now: Instant, load: Load, urgent: bool) -> Instant {
        self.room.ready_at(now, load, urgent)
    }

    /// What the path carries, in octets a second, as far as is known.
    pub(crate) fn carries(&self, now: Instant, load: Load) -> u64 {
        self.room.rate().unwrap_or_else(|| self.room.growing_rate(now, load.least_rtt))
    }

    /// How long what is pushed now will wait, at the rate that the path has.
    pub(crate) fn wait(&self) -> Duration {
        let (_, octets) = self.queue.held();
        self.room
            .rate()
            .map_or(Duration::ZERO, |rate| Duration::from_nanos(octets.saturating_mul(1_000_000_000) / rate.max(1)))
    }

    /// The path cannot be used: nothing waits for it any more, and its room is unknown when it returns.
    pub(crate) fn clear(&mut self) {
        *self = Shaper { room: self.room.anew(), ..Shaper::default() };
    }

    /// What is offered fills a queue on the way: what is lost there is nobody's fault but the flows'.
    pub(crate) fn overflows(&self, load: Load) -> bool {
        self.room.overflows(load, self.queue.held().0 > 0)
    }

    /// A call that is sent now would wait in a queue on the way, for longer than it should.
    pub(crate) fn delays_calls(&self, now: Instant, load: Load) -> bool {
        self.room.delays_calls(now, load)
    }

    /// The path carries less than is offered, as far as is known by its queue.
    pub(crate) fn is_held(&self) -> bool {
        self.room.is_held()
    }

    /// Packets and octets that wait.
    pub(crate) fn held(&self) -> (usize, u64) {
        self.queue.held()
    }

    /// The rate that is given or held, in octets a second; `None`: the path takes what is offered, as far as is known.
    pub(crate) fn rate(&self) -> Option<u64> {
        self.room.rate()
    }
}
