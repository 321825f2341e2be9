//! How much may be under way on a path: a window that grows until the path shows a queue, and then the path's rate.
//!
//! ```text
//!             a queue grows on the way, or loses much of what is offered
//!   [Open] ---------------------------------------------------------------------> [Held]
//!     ^                                                                              |
//!     +-------- nothing has waited for a second, or the given rate arrives, ---------+
//!               or the queue stays although less is sent: it is not ours
//! ```
//! Open is RFC 9002's slow start, for a bundle and not for one flow. Held is what BBR does (its model is described in
//! draft-ietf-ccwg-bbr, sections 4 and 5): the most that arrived in any of the last rounds is the rate; two rounds of
//! eight ask for a quarter more, and the next one drains what they have put in the queue. Where that was in vain, the next
//! cycles do not ask.
//!
//! A TCP connection fills the queue of a link with what it may have under way, and none of it waits here: so a path is held
//! as soon as its queue stands, and what the connection has too much of waits here from then on, where a call overtakes it.
//! Whether the queue is ours at all is found out by sending a little less for a while.
//!
//! Where the operator has given the rate, there is nothing to learn: an open path sends at that rate from its first packet
//! on, and never above it. Should the link carry less, its queue tells, and the path is held to what arrives.

mod measure;

use self::measure::{Growth, LEAST_ROUND, Round};
use super::Load;
use crate::Instant;
use crate::health::RECEIPT_INTERVAL;
pub(crate) use measure::Progress;
use std::time::Duration;

/// What may be sent at once by a path that has carried nothing of late: what six new TCP connections send (RFC 6928), half a
/// tenth of a second at [`FIRST_RATE`], and what the queue of a slow access link holds.
const FIRST_WINDOW: u64 = 64 * 1024;

/// What may follow until receipts tell how much the path takes, in octets a second: 10 Mbit/s. A link that a site is to go
/// on by has that; more could fill a slow one's queue within the round trip in which nothing is known.
const FIRST_RATE: u64 = 1_250_000;

/// More than this is not kept for a replay either.
const MOST_WINDOW: u64 = 16 * 1024 * 1024;

/// This much goes in each round whatever the rate seems to be: four full packets keep receipts coming, and show it when there
/// is more (RFC 9002, section 7.2 allows two).
const LEAST_WINDOW: u64 = 6 * 1024;

/// Without traffic for this long a path is taken for unknown again: its other users have changed.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// A packet that took so much longer than the fastest of late, and an eighth of a round trip, has waited in a queue: more
/// than an access link's scheduler (DOCSIS, LTE: up to 10 ms) or a jitter of the way adds. The queue of a link of 10
/// Mbit/s has 20 kB then.
const QUEUE: Duration = Duration::from_millis(16);

/// Twice as much is a queue that has to go: the rate has fallen.
const LONG_QUEUE: Duration = Duration::from_millis(32);

/// Half of [`QUEUE`] may be a whole queue, and a full one: of 40 Mbit/s with 100 packets, of which a third is on its way, it never gets longer
/// than 20 ms, and what a receipt told before it overflowed was less.
const SHORT_QUEUE: Duration = Duration::from_millis(8);

/// A call goes by another path as well where its own would delay it by more: a little more than the queue that is let stand, so
/// that it is not always copied; twice is more than it can be late altogether.
const CALL_QUEUE: Duration = Duration::from_millis(20);

/// Where another path could take a part, less of a queue is reason enough, if it stands.
const SHARED_QUEUE: Duration = Duration::from_millis(5);

/// A queue stands that so many receipts in a row have shown, or 32 ms: jitter comes and goes. Where something waits here, two
/// do: then it grows.
const ROW: u32 = 4;

/// A queue that gets shorter by so much from one receipt to the next goes by itself: a quarter of their interval.
const GOES: Duration = Duration::from_millis(2);

/// A queue of our own has what is under way in it. What is longer than that would be at this rate, in octets a second, is the way:
/// 256 kbit/s, less than any link that is worth having has.
const LEAST_RATE: u64 = 32_000;

/// What is sent, in eighths of the rate, to find out whether a queue is ours: so little less that what waits for it meanwhile
/// is not late by more than a quarter of a round trip.
const TRIAL: u64 = 7;
/// After a round trip of that a queue is less by an eighth of it, if it is ours, and ours or most of it if it is less by one part
/// of so many.
const DRAINED: u32 = 16;

/// How many rounds a rate is remembered for: one cycle of asking for more.
const ROUNDS: usize = 8;

/// What each round of a cycle sends, in eighths of the rate, and what one does while there seems to be much more. What is sent
/// in a round arrives in the next one: so two ask for more, and the second shows the answer to the first.
const GAINS: [u64; ROUNDS + 2] = [10, 10, 4, 8, 8, 8, 8, 8, 12, 7];
/// The same of a path that is shared: what asks for more may go by another path meanwhile, and one round of it must do, since a
/// drain that drains nothing is a loss. And it asks for less: for what the queue of one link cannot hold the flow waits a round
/// trip, while the others have nothing to do. With a quarter, a link of 50 Mbit/s whose queue takes 10 ms lost three packets in each
/// third of a second, and the bond a tenth of what it carries.
const SHARED_GAINS: [u64; ROUNDS + 2] = [9, 8, 7, 8, 8, 8, 8, 8, 12, 7];
/// The round of a cycle that shows whether there is more, the one that drains the queue that was made by asking, the one that goes on
/// asking, and the first one of a cycle without: the rate is the most that arrived of late, so a queue grows by sending at it.
const SHOW: usize = 1;
const DRAIN: usize = 2;
const CLIMB: usize = ROUNDS;
const EASE: usize = ROUNDS + 1;

/// A path that was asked for more, and had only a queue for it, is not asked in so many cycles: for half a second of a link of 20 ms
/// (BBR waits for two to three). Each time costs what is urgent the delay of that queue, and what does not fit it is lost.
const SPARED: u8 = 3;

/// For how long more than a round trip and a receipt's interval there may be something under way.
const SLACK: Duration = Duration::from_millis(24);

/// When nothing has waited for this long, the path has room again.
const AMPLE_AFTER: Duration = Duration::from_secs(1);

/// Without a receipt for so long (or three round trips) what is under way is taken for lost, as a first packet and a
/// time-out do in RFC 9002, section 7.6: else nothing would ever be sent that a receipt could answer.
const SILENCE: Duration = Duration::from_millis(250);

/// How far ahead of its time a packet may go, so that not each one needs a deadline of its own.
const AHEAD: Duration = Duration::from_millis(1);

/// How much of a delay of this process is made good at once.
const BURST: Duration = Duration::from_millis(2);

/// What is urgent may have all of a given rate but one part of so many: what is marked as a call, and is not, leaves something
/// for who wants to find out why nothing else goes.
const PARTS: u32 = 16;

/// How far ahead of the given rate what is urgent may go: a frame of a video call, which comes all at once, at half of the
/// rate. What is more waits as well: it would only wait in the link's own queue, and never be given up there.
const URGENT_AHEAD: Duration = Duration::from_millis(10);

fn octets_in(time: Duration, rate: u64) -> u64 {
    (time.as_micros() as u64).saturating_mul(rate) / 1_000_000
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Open {
        /// Receipts in a row that have shown a queue.
        queued: u32,
        /// How long it was by the last of them.
        last: Duration,
    },
    Held {
        /// Octets a second that arrived in the last rounds.
        rates: [u64; ROUNDS],
        /// Where the cycle is.
        at: usize,
    },
}

/// A little less is sent since then.
#[derive(Clone, Copy, Debug)]
struct Trial {
    since: Instant,
    /// A round trip with the queue.
    takes: Duration,
    /// The longest that a packet waited that was sent before.
    queued: Duration,
    /// The round is one of packets that were all sent a round trip after that or later.
    counts: bool,
}

/// How much may be under way on one path.
#[derive(Debug)]
pub(crate) struct Room {
    window: u64,
    phase: Phase,
    round: Option<Round>,
    growth: Growth,
    /// How much longer than the fastest of late packets take whatever is sent: the way may have become longer, or others fill
    /// its queue, and to hold back here helps against neither.
    base: Duration,
    /// The same when something began to wait here: a stall may have made it, and it goes by itself.
    began: Duration,
    /// Less is sent since a queue was seen, to find out whether it is ours.
    trial: Option<Trial>,
    /// Something waited here when the path was held last.
    sure: bool,
    /// The round is the one after it was asked whether there is more.
    asked: bool,
    /// In so many cycles the path is not asked.
    spared: u8,
    /// What was under way when the path was taken for silent: it takes no room any more.
    written_off: u64,
    /// The last receipt for something new, or when something began to wait.
    progress: Instant,
    /// When a receipt last found something waiting.
    scarce: Instant,
    /// When the next packet goes that is not urgent.
    next: Instant,
    /// When the path was used last.
    used: Option<Instant>,
    /// Since when there is more under way than next to nothing.
    busy_from: Instant,
    /// What the link carries, in octets a second, as its operator says.
    given: Option<u64>,
    /// When the next packet goes that is urgent, if there were no others: where the rate is given.
    next_urgent: Instant,
    /// Octets that were under way when a receipt came that was late, and of which nothing is known yet: until then nobody can
    /// tell what the path takes.
    stuck: Option<u64>,
    /// What goes by this path could go by another.
    shared: bool,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            window: FIRST_WINDOW,
            phase: Phase::Open { queued: 0, last: Duration::ZERO },
            round: None,
            growth: Growth::default(),
            base: Duration::ZERO,
            began: Duration::ZERO,
            trial: None,
            sure: false,
            asked: false,
            spared: 0,
            written_off: 0,
            progress: Instant::ZERO,
            scarce: Instant::ZERO,
            next: Instant::ZERO,
            used: None,
            busy_from: Instant::ZERO,
            given: None,
            next_urgent: Instant::ZERO,
            stuck: None,
            shared: false,
        }
    }
}

impl Room {
    /// What the link carries, in octets a second; `None`: that is to be measured.
    pub(crate) fn give(&mut self, rate: Option<u64>) {
        if self.given != rate {
            *self = Room { given: rate, ..Room::default() };
        }
    }

    /// The rate that was given, in octets a second.
    pub(crate) fn given(&self) -> Option<u64> {
        self.given
    }

    /// Of which nothing is known but what was given.
    pub(crate) fn anew(&self) -> Room {
        Room { given: self.given, ..Room::default() }
    }

    /// What is lost now has met a queue that what is offered here has filled. Little under way fills none.
    pub(crate) fn overflows(&self, load: Load, waits: bool) -> bool {
        (waits || load.under_way > FIRST_WINDOW) && load.queued > SHORT_QUEUE + self.base + load.least_rtt / 8
    }

    /// A call that is sent now would be late: what was sent last has waited long, or is late itself.
    pub(crate) fn delays_calls(&self, now: Instant, load: Load) -> bool {
        load.queued > CALL_QUEUE + self.base + load.least_rtt / 8
            || self.is_late(now, load.oldest, load.least_rtt, load.under_way)
    }

    /// A packet that has waited for longer was in a queue that has to go.
    fn long(&self, least_rtt: Duration) -> Duration {
        LONG_QUEUE + self.base + least_rtt / 8
    }

    /// The link carries less than is offered, or than was given.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held { .. })
    }

    /// The same, and what waits here, so many octets, waits for its own flow's sake: whether a queue was ours that stood while
    /// nothing waited only a queue here proves.
    pub(crate) fn is_known(&self, waiting: u64) -> bool {
        self.is_held() && self.trial.is_none() && (self.sure || waiting > FIRST_WINDOW)
    }

    /// Whether a packet may go while `under_way` octets are; one that is `urgent` has a quarter more, and need not wait
    /// for its turn at the rate.
    pub(crate) fn admits(&self, now: Instant, load: Load, urgent: bool) -> bool {
        let (window, under_way) = (self.window(now, load.least_rtt), load.under_way.saturating_sub(self.written_off));
        match urgent {
            true => under_way < window + window / 4 && self.next_urgent <= now + URGENT_AHEAD,
            false => under_way < window && self.next <= now + AHEAD && !self.is_stuck(now, load),
        }
    }

    /// Receipts are late while much is under way, or were, and tell of an earlier time. What follows would only make the queue
    /// longer that they or the packets are in.
    fn is_stuck(&self, now: Instant, load: Load) -> bool {
        !self.shared
            && self.is_held()
            && self.trial.is_none()
            && (self.stuck.is_some() || self.is_late(now, load.oldest, load.least_rtt, load.under_way))
    }

    /// Nothing is known of a packet that was sent so long ago, while others are under way.
    fn is_late(&self, now: Instant, oldest: Instant, least_rtt: Duration, under_way: u64) -> bool {
        under_way > LEAST_WINDOW && now >= oldest + least_rtt + least_rtt / 4 + RECEIPT_INTERVAL + LONG_QUEUE
    }

    /// How much may be under way now.
    fn window(&self, now: Instant, least_rtt: Duration) -> u64 {
        match self.phase {
            Phase::Held { .. } => self.window,
            Phase::Open { .. } => {
                if let Some(rate) = self.given {
                    // The rate limits what goes; this only ends what nothing comes back from.
                    return octets_in(least_rtt + SILENCE, rate).max(FIRST_WINDOW);
                }
                let since = now.since(self.busy_from).min(least_rtt + RECEIPT_INTERVAL);
                self.window + octets_in(since, FIRST_RATE)
            }
        }
    }

    /// Datagrams of `len` octets were sent with a packet.
    pub(crate) fn on_sent(&mut self, now: Instant, load: Load, len: u64, urgent: bool) {
        if self.used.is_none_or(|used| now.since(used) >= FORGET_AFTER) {
            *self = Room { progress: now, ..self.anew() };
        }
        if load.under_way <= LEAST_WINDOW {
            self.busy_from = now;
        }
        self.used = Some(now);
        self.charge(now, load.least_rtt, len, urgent);
    }

    /// Datagrams of `len` octets were sent that ask for no room: receipts, questions, handshakes. At a given rate the rest
    /// goes later for it; a measured one was measured beside them.
    pub(crate) fn on_sent_own(&mut self, now: Instant, load: Load, len: u64) {
        if self.given.is_some() {
            self.charge(now, load.least_rtt, len, false);
        }
    }

    fn charge(&mut self, now: Instant, least_rtt: Duration, len: u64, urgent: bool) {
        let (pace, burst) = self.pace(now, least_rtt);
        let takes = |octets| Duration::from_nanos(octets * 1_000_000_000 / pace);
        // Whoever has sent nothing for a while has saved up no more than a burst.
        self.next = self.next.max(now.before(takes(burst))) + takes(len);
        if urgent && self.given.is_some() {
            self.next_urgent = self.next_urgent.max(now) + takes(len) * PARTS / (PARTS - 1);
        }
    }

    /// Something begins to wait.
    pub(crate) fn begin_to_wait(&mut self, now: Instant, load: Load) {
        self.progress = self.progress.max(now);
        self.began = load.queued;
        if matches!(self.phase, Phase::Open { .. }) {
            // What arrived before was what was offered, and says nothing of what the path takes.
            self.round = None;
        }
    }

    /// When something that waits may go, if no receipt comes before. `urgent`: if that is.
    pub(crate) fn ready_at(&self, now: Instant, load: Load, urgent: bool) -> Instant {
        let under_way = load.under_way.saturating_sub(self.written_off);
        if under_way < self.window(now, load.least_rtt) && !self.is_stuck(now, load) {
            return match (urgent, self.given) {
                (true, Some(_)) => self.next_urgent.before(URGENT_AHEAD),
                _ => self.next,
            };
        }
        let silent = self.silent_at(load.least_rtt);
        match self.phase {
            Phase::Held { .. } => silent,
            Phase::Open { .. } if self.given.is_some() => silent,
            Phase::Open { .. } => {
                // When enough time has passed for what is under way, if that is ever so.
                let takes = (under_way + 1).saturating_sub(self.window) * 1_000_000 / FIRST_RATE + 1;
                let takes = Duration::from_micros(takes);
                if takes <= load.least_rtt + RECEIPT_INTERVAL { self.busy_from + takes } else { silent }
            }
        }
    }

    /// Gives up what is under way, if nothing has come back for so long that it must be lost.
    pub(crate) fn on_timeout(&mut self, now: Instant, load: Load) {
        let window = self.window(now, load.least_rtt);
        let full = load.under_way.saturating_sub(self.written_off) >= window || self.is_stuck(now, load);
        if full && now >= self.silent_at(load.least_rtt) {
            let written_off = load.under_way;
            *self = Room { written_off, progress: now, used: Some(now), busy_from: now, ..self.anew() };
        }
    }

    fn silent_at(&self, least_rtt: Duration) -> Instant {
        self.progress + SILENCE.max(least_rtt * 3)
    }

    /// The rate that is given or held, whichever is less, in octets a second.
    pub(crate) fn rate(&self) -> Option<u64> {
        let held = match self.phase {
            Phase::Open { .. } => None,
            Phase::Held { rates, .. } => rates.into_iter().max(),
        };
        held.into_iter().chain(self.given).min()
    }

    /// What the window lets pass in a round trip, in octets a second: as much the path carries at least, as far as is known.
    pub(crate) fn growing_rate(&self, now: Instant, least_rtt: Duration) -> u64 {
        self.window(now, least_rtt) * 1_000_000 / (least_rtt + RECEIPT_INTERVAL).as_micros() as u64
    }

    /// How fast packets go, in octets a second, and what may go at once, in octets. While the window grows, twice as fast as
    /// would fill it in a round trip, so that it can grow by as much; the queue of a link on the way would have no room for
    /// all of it at once (RFC 9002, section 7.7).
    fn pace(&self, now: Instant, least_rtt: Duration) -> (u64, u64) {
        match self.phase {
            Phase::Open { .. } => {
                if let Some(rate) = self.given {
                    return (rate, octets_in(BURST, rate));
                }
                let round_trip = (least_rtt + RECEIPT_INTERVAL).as_micros() as u64;
                let pace = self.window(now, least_rtt) * 2_000_000 / round_trip;
                (pace, FIRST_WINDOW.max(octets_in(BURST, pace)))
            }
            Phase::Held { at, .. } => {
                let gains = if self.shared { &SHARED_GAINS } else { &GAINS };
                let least = LEAST_WINDOW * 1_000_000 / (least_rtt + RECEIPT_INTERVAL + LEAST_ROUND).as_micros() as u64;
                let pace = match self.trial {
                    Some(_) => self.rate().unwrap_or(0) / 8 * TRIAL,
                    None => self.rate().unwrap_or(0) * gains[at] / 8,
                };
                let pace = pace.max(least);
                let pace = self.given.map_or(pace, |given| pace.min(given));
                (pace, octets_in(BURST, pace))
            }
        }
    }

    /// Takes what a receipt told. `waits`: something waits for room; `shared`: what goes by this path could go by another.
    pub(crate) fn on_progress(&mut self, now: Instant, progress: &Progress, waits: bool, shared: bool) {
        self.progress = now;
        self.shared = shared;
        self.growth.extend(progress, QUEUE + self.base + progress.least_rtt / 8);
        let was_stuck = self.stuck.is_some();
        if let Some(open) = self.stuck {
            self.stuck = open.checked_sub(progress.octets + progress.lost_octets).filter(|open| *open > LEAST_WINDOW);
        } else if self.is_held()
            && self.trial.is_none()
            && !shared
            && progress.under_way > LEAST_WINDOW
            && (progress.queued > self.long(progress.least_rtt)
                || self.is_late(now, progress.oldest, progress.least_rtt, progress.under_way))
        {
            // From this one on the receiver's clock tells how fast the rest arrives.
            (self.stuck, self.round) = (Some(progress.under_way), None);
        }
        self.written_off = 0;
        // Before anything waits again: what was measured while little was offered says nothing of what the path takes.
        let ample = now.since(self.scarce) >= AMPLE_AFTER;
        if waits {
            self.scarce = now;
        }
        let Some(mut round) = self.round else {
            self.round = Some(Round::after(progress));
            return;
        };
        round.extend(progress);
        // Neither more than was measured, nor less than what is under way can explain.
        let most_of_ours = Duration::from_micros((progress.under_way + progress.octets) * 1_000_000 / LEAST_RATE);
        self.base = self.base.max(progress.queued.saturating_sub(most_of_ours)).min(progress.queued);
        self.began = self.began.min(progress.queued);
        let whole = if was_stuck { self.stuck.is_none() } else { round.is_whole(progress.least_rtt) };
        let slack = self.base + progress.least_rtt / 8;
        let mut over = whole;
        let unhold = self.is_held() && (self.is_others(progress, &round, whole, &mut over) || ample);
        match self.phase {
            Phase::Open { queued, last } => {
                // It grows while something waits, or stands while nothing does: one that goes by itself a stall has made, and
                // one that little is under way in somebody else.
                let grows = waits && progress.queued > QUEUE + slack + self.began;
                let stands = !waits
                    && progress.queued > QUEUE + slack
                    && progress.queued + GOES >= last
                    && progress.under_way > FIRST_WINDOW;
                let shows = grows || stands || (shared && progress.queued > SHARED_QUEUE + slack);
                let queued = if shows { queued + 1 } else { 0 };
                if waits && queued == 0 {
                    self.window = (self.window + progress.octets).min(MOST_WINDOW);
                }
                // A way that always loses some carries its rate all the same, if that is known; a policer loses more.
                let much = if self.given.is_some() { 5 } else { 20 };
                let row = if grows { 2 } else { ROW };
                let full = queued >= row || ((waits || shared) && round.loses(much));
                match round.rate().filter(|_| full) {
                    Some(rate) if self.growth.is_of_the_way(rate) => {
                        self.take_for_the_way(round.queued);
                        (self.phase, over) = (Phase::Open { queued: 0, last: progress.queued }, true);
                    }
                    Some(rate) => {
                        // What is under way comes at this rate in the time that it takes, unless the rate has fallen.
                        let takes = (progress.least_rtt + progress.queued).max(RECEIPT_INTERVAL);
                        let falls = rate < progress.under_way * 500_000 / takes.as_micros() as u64;
                        let trial = Trial { since: now, takes, queued: progress.queued, counts: false };
                        self.trial = (stands && !falls).then_some(trial);
                        self.sure = !stands;
                        self.hold([rate; ROUNDS], DRAIN, progress.least_rtt);
                        (self.scarce, over) = (now, true);
                    }
                    None => {
                        self.phase = Phase::Open { queued, last: progress.queued };
                        // Nothing need have waited before: what arrives from now on, while there is a queue, is the rate.
                        over |= (shared || !waits) && queued == 1;
                    }
                }
            }
            Phase::Held { .. } if unhold => {
                let window = self.window.max(FIRST_WINDOW);
                let &mut Room { base, used, busy_from, .. } = self;
                *self = Room { window, base, progress: now, used, busy_from, ..self.anew() };
                return;
            }
            Phase::Held { .. } if self.trial.is_some() => {}
            Phase::Held { mut rates, mut at } => {
                if let Some(rate) = round.rate().filter(|_| whole) {
                    let known = rates.into_iter().max().unwrap_or(0);
                    if round.queued > QUEUE + slack && self.growth.is_of_the_way(rate) {
                        self.take_for_the_way(round.queued);
                    }
                    let slack = self.base + progress.least_rtt / 8;
                    // Where there was half of what was asked for, and no queue for it, there may be much more.
                    let part = if shared { 16 } else { 8 };
                    let more = waits && rate > known + known / part && round.queued <= QUEUE + slack;
                    let full = round.longest > SHORT_QUEUE + slack && !more;
                    if full && (at == SHOW || at == DRAIN && self.asked) {
                        self.spared = SPARED;
                    }
                    self.asked = at == SHOW;
                    at = match at {
                        SHOW | CLIMB if more => CLIMB,
                        CLIMB => DRAIN,
                        // Where nobody asked for more there is nothing to drain.
                        SHOW if !waits && round.queued <= SHARED_QUEUE + slack => DRAIN + 1,
                        _ if at + 1 == ROUNDS && self.spared > 0 => {
                            self.spared -= 1;
                            EASE
                        }
                        EASE => DRAIN + 1,
                        _ => (at + 1) % ROUNDS,
                    };
                    // What is lost after that may have been sent before.
                    let loses = at != DRAIN + 1 && round.loses(5);
                    if round.queued > self.long(progress.least_rtt) || loses || (was_stuck && rate < known) {
                        // What arrives is all there is, and the queue is to be emptied.
                        (rates, at) = ([rate; ROUNDS], DRAIN);
                    } else if waits || rate > known {
                        rates.rotate_right(1);
                        rates[0] = rate;
                    }
                    self.hold(rates, at, progress.least_rtt);
                    // All that may be sent arrives, and fills no queue.
                    let all = self.given.is_some_and(|given| rate + given / 32 >= given);
                    if all && round.queued <= QUEUE + slack {
                        self.phase = Phase::Open { queued: 0, last: Duration::ZERO };
                    }
                }
            }
        }
        self.round = Some(if over { Round::after(progress) } else { round });
    }

    /// The way takes so much longer than the fastest of late.
    fn take_for_the_way(&mut self, queued: Duration) {
        self.base = queued;
        self.growth.begin_anew(queued);
    }

    /// Whether the queue that was seen stays although less is sent. Then it is what the way is like, and what is seen beyond
    /// it tells of the next one. `over`: the round is to end.
    fn is_others(&mut self, progress: &Progress, round: &Round, whole: bool, over: &mut bool) -> bool {
        let Some(trial) = &mut self.trial else { return false };
        if progress.oldest < trial.since {
            trial.queued = trial.queued.max(progress.queued);
        } else if progress.oldest < trial.since + trial.takes {
            // It is getting less, if it is ours.
        } else if !trial.counts {
            (trial.counts, *over) = (true, true);
        } else if whole {
            let stays = round.longest + trial.takes / DRAINED > trial.queued;
            self.trial = None;
            if stays {
                self.base = round.queued;
            }
            return stays;
        }
        false
    }

    fn hold(&mut self, rates: [u64; ROUNDS], at: usize, least_rtt: Duration) {
        self.phase = Phase::Held { rates, at };
        // As long as it is not known whose the queue is, there is place for it.
        let queued = self.trial.map_or(Duration::ZERO, |trial| trial.queued);
        // Where there was more, what asks for still more must have the room for it.
        let round_trip = (least_rtt + RECEIPT_INTERVAL) * if at == CLIMB { 5 } else { 4 } / 4;
        let window = octets_in(round_trip + queued + SLACK, self.rate().unwrap_or(0));
        self.window = window.clamp(LEAST_WINDOW, MOST_WINDOW);
    }
}

#[cfg(test)]
mod tests;
