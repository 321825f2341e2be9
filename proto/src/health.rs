//! Health of one path, in the direction in which this end sends.
//!
//! The peer's receipts are the only evidence: what it acknowledges has arrived. Nothing else is believed, neither what
//! we hear from it (that is the other direction) nor what the kernel says of a link.
//!
//! ```text
//!                  a receipt for something new
//!     +--------------------------------------------------+
//!     v                                                  |
//!   [Up] --- the oldest unacknowledged is overdue ---> [Suspect] --- asked again, still nothing ---> [Down]
//!     ^                                                                                                |
//!     +------------------------------ a receipt for something new ------------------------------------+
//!
//!   [Up], [Suspect] --- large ones or many of all are lost ---> [Impaired] --- such ones arrive again ---> [Up]
//!
//!   any --- the uplink is gone ---> [Absent] --- the uplink is there ---> [Down]
//! ```
//! Suspicion is early and harmless: what the path has not acknowledged goes by another one too, and so does all that is
//! new, until a receipt clears it or the path is given up. The path is asked meanwhile (a PING each 20 ms), and one lost
//! packet at the end of a burst is forgiven a round trip later. A path that loses a tenth of all is impaired as well, and
//! is left for one that does not. A path that came back is on probation: it is used where nothing better is
//! there, and takes flows back from another only after having held for a while, the longer the more often it failed.

use crate::impairment::Impairment;
use crate::node::PathState;
use crate::quality::{Least, Quality};
use crate::replay::Ticket;
use crate::sent::{Judged, SentLog};
use crate::tunnel::PacketId;
use crate::wire::Receipt;
use crate::{Instant, Keepalive, MAX_PATHS};
use std::time::Duration;

/// The receiver's longest wait before it sends a receipt while traffic flows. It is a part of each failover's gap (round
/// trip + margin + this + rounding) and of what the tunnels carry: 1.8 % of the octets at 1,000 packets of 1,000 octets a
/// second each way, where one of two receipts rides on data, and 0.2 % at ten times the rate (`cargo lab run steady`).
pub(crate) const RECEIPT_INTERVAL: Duration = Duration::from_millis(8);

/// The least margin above the smoothed round trip before something is overdue. Variance shrinks towards zero on a quiet
/// path when each receipt is a sample; with a margin of 1 ms a simulation raised 142 false suspicions a minute, with
/// 10 ms none.
const LEAST_MARGIN: Duration = Duration::from_millis(10);

/// Where no round trip is known: RFC 9002's initial one of 333 ms, and as much again.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(666);

/// While suspect, how often the path is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// The least time from suspicion to down; or three round trips where that is longer. Nothing is lost meanwhile, since all
/// goes by two paths, so there is time to find out: the cell change of an LTE modem takes 100 ms and more, a change of
/// path for nothing costs its flows another round trip.
const LEAST_CONFIRM: Duration = Duration::from_millis(250);

/// How often a quiet path is asked while its bundle carries traffic: so often that a dead standby is known before it is
/// needed. Otherwise the box asks as its [`Keepalive`] says, and the core listens.
const PROBE_ACTIVE: Duration = Duration::from_millis(200);
/// How often either end asks an idle path whose box has not said how it asks.
const PROBE_IDLE: Duration = Duration::from_secs(1);
/// For so many of the box's intervals nothing is heard on an idle path before the core doubts it: two questions may be
/// lost, as with BFD's usual multiplier (RFC 5880).
const SILENT_INTERVALS: u32 = 3;
/// A metered path that is down is asked as seldom as an idle one after this long, while another works: the first tries
/// find a short break, and questions that nobody answers cost as much as others.
const METERED_DOWN: Duration = Duration::from_secs(10);

/// How often a path that is down is asked, by the initiator. Traffic is to be back within 300 ms of the moment in
/// which the path works again, of which two round trips are needed for a handshake.
const PROBE_DOWN: Duration = Duration::from_millis(200);
/// After a long time down less often, yet often enough to be back within a second.
const PROBE_LONG_DOWN: Duration = Duration::from_millis(800);
const LONG_DOWN: Duration = Duration::from_secs(300);
/// The most time between initiations on a path that never worked: its round trip is unknown, and boringtun knows only
/// the answers to its last two initiations.
const PROBE_UNKNOWN_MOST: Duration = Duration::from_secs(1);
/// While down with a session, every third question comes with an initiation: the peer may have lost the session.
const QUESTIONS_PER_INITIATION: u32 = 3;

/// The first probation after silence. Two seconds of good receipts are some hundred samples; what was a flap has shown
/// itself.
const PROBATION: Duration = Duration::from_secs(2);
/// The first probation after a loss that was announced (carrier, address or route gone) and remedied: the cause is known
/// and over. With [`crate::schedule`]'s grace for flows that never pause, all is back within a second of the remedy.
const PROBATION_ANNOUNCED: Duration = Duration::from_millis(500);
/// The longest one: a path that keeps failing costs its flows at most a failover a minute.
const PROBATION_MOST: Duration = Duration::from_secs(60);
/// This long without failing, and the failures are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Round-trip time as RFC 9002, section 5, estimates it.
#[derive(Clone, Copy, Debug)]
struct Rtt {
    smoothed: Duration,
    variation: Duration,
    least: Least<Duration>,
    sampled_at: Instant,
}

impl Rtt {
    fn sample(this: &mut Option<Rtt>, sample: Duration, now: Instant) {
        match this {
            None => {
                let mut least = Least::default();
                least.sample(sample, now);
                *this = Some(Rtt { smoothed: sample, variation: sample / 2, least, sampled_at: now });
            }
            Some(rtt) => {
                rtt.variation = (rtt.variation * 3 + rtt.smoothed.abs_diff(sample)) / 4;
                rtt.smoothed = (rtt.smoothed * 7 + sample) / 8;
                rtt.least.sample(sample, now);
                rtt.sampled_at = now;
            }
        }
    }

    fn patience(&self) -> Duration {
        self.smoothed + (self.variation * 4).max(LEAST_MARGIN) + RECEIPT_INTERVAL
    }
}

/// A change of state, for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: PathState,
    pub(crate) to: PathState,
    pub(crate) reason: &'static str,
}

/// What the path wants sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// A PING, if there is a session.
    pub(crate) ping: bool,
    /// A second one, in a datagram of this length.
    pub(crate) large: Option<u16>,
    /// An initiation, if this end initiates.
    pub(crate) initiation: bool,
}

/// What the health of a path depends on outside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    /// This end begins handshakes, and so is the one that asks while the path is down.
    pub(crate) initiator: bool,
    /// Another path of the bundle is up.
    pub(crate) other_up: bool,
    /// The peer may be reached at more than one address.
    pub(crate) several_ways: bool,
    /// The bundle carries traffic, so the path is asked often; a metered one only if it is the one in use.
    pub(crate) active: bool,
    /// How the box asks on the path while that is not so; `None`: it has not said.
    pub(crate) keepalive: Option<Keepalive>,
    /// The largest datagram that the path carries.
    pub(crate) largest: u16,
}

/// Health of one path.
#[derive(Debug)]
pub(crate) struct Health {
    state: PathState,
    since: Instant,
    reason: &'static str,
    sent: SentLog,
    /// The least round trip of the last half to whole minute: what the way takes without a queue.
    least: Least<Duration>,
    quality: Quality,
    /// By the path that the receipt came by: a receipt by a slow path is no news of a slow data path. Empty until the first
    /// came: a core has many paths on which nobody ever speaks.
    rtt: Vec<Option<Rtt>>,
    /// Share of packets lost, smoothed over about the last 64.
    loss: f64,
    lost: u64,
    /// When something was last sent that asks for a receipt; `None`: ask now.
    last_asked: Option<Instant>,
    /// Questions since the path went down.
    asked: u32,
    /// The uplink is there again, with the session that it had: that is asked first, and a handshake only follows.
    returned: bool,
    impairment: Impairment,
    /// When something was last acknowledged.
    acknowledged_at: Instant,
    /// Something came from the peer by this path since it was last asked.
    heard: bool,
    /// When something came from the peer by this path, or a receipt for it by another.
    sign_of_life: Instant,
    failures: u32,
    /// The probation that the last failure asks for, before it is doubled for the earlier ones.
    probation: Duration,
    probation_until: Instant,
}

impl Health {
    pub(crate) fn new(now: Instant, present: bool) -> Self {
        Health {
            state: if present { PathState::Down } else { PathState::Absent },
            since: now,
            reason: if present { "no answer yet" } else { "the uplink is not there yet" },
            sent: SentLog::default(),
            least: Least::default(),
            quality: Quality::default(),
            rtt: Vec::new(),
            loss: 0.0,
            lost: 0,
            last_asked: None,
            asked: 0,
            returned: false,
            impairment: Impairment::default(),
            acknowledged_at: now,
            heard: false,
            sign_of_life: now,
            failures: 0,
            probation: PROBATION,
            probation_until: Instant::ZERO,
        }
    }

    pub(crate) fn state(&self) -> PathState {
        self.state
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    pub(crate) fn on_probation(&self, now: Instant) -> bool {
        now < self.probation_until
    }

    /// When probation ends, if that lies ahead.
    pub(crate) fn probation_end(&self, now: Instant) -> Option<Instant> {
        (self.state == PathState::Up && self.on_probation(now)).then_some(self.probation_until)
    }

    pub(crate) fn loss(&self) -> f64 {
        self.loss
    }

    /// Datagrams lost since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Smoothed round trip and its variation, by the receipt path that is sampled last.
    pub(crate) fn rtt(&self) -> Option<(Duration, Duration)> {
        self.latest_rtt().map(|rtt| (rtt.smoothed, rtt.variation))
    }

    /// The shortest of the smoothed round trips, by whichever path the receipts come.
    pub(crate) fn shortest_rtt(&self) -> Option<Duration> {
        self.rtt.iter().flatten().map(|rtt| rtt.smoothed).min()
    }

    fn latest_rtt(&self) -> Option<&Rtt> {
        self.rtt.iter().flatten().max_by_key(|rtt| rtt.sampled_at)
    }

    /// Whether it loses what a working path would not, though it lives.
    pub(crate) fn is_impaired(&self) -> bool {
        self.impairment.is_seen()
    }

    /// Octets of datagrams that are not acknowledged and not known to be lost, and when the oldest of them was sent.
    pub(crate) fn under_way(&self) -> (u64, Instant) {
        (self.sent.under_way(), self.sent.oldest_open().unwrap_or(Instant::NEVER))
    }

    pub(crate) fn quality(&self) -> &Quality {
        &self.quality
    }

    /// The least round trip of the last minute.
    pub(crate) fn least_rtt(&self) -> Option<Duration> {
        self.least.get()
    }

    /// Whether what is sent waits in a queue on the way: the round trip is half longer than without, and by more than any
    /// jitter of the way. What is lost then the queue had no room for.
    pub(crate) fn has_own_queue(&self) -> bool {
        const JITTER: Duration = Duration::from_millis(20);
        let (Some((smoothed, _)), Some(least)) = (self.rtt(), self.least.get()) else { return false };
        smoothed > least + least / 2 + JITTER
    }

    fn change(&mut self, now: Instant, to: PathState, reason: &'static str) -> Option<Transition> {
        let from = std::mem::replace(&mut self.state, to);
        self.reason = reason;
        if from == to {
            return None;
        }
        self.since = now;
        Some(Transition { from, to, reason })
    }

    /// Notes a packet sent by this path.
    pub(crate) fn on_sent(&mut self, id: PacketId, len: usize, now: Instant, eliciting: bool, ticket: Ticket) {
        self.sent.note(id, len, now, eliciting, ticket);
        if eliciting {
            self.last_asked = Some(now);
        }
    }

    /// Takes a receipt for packets of this path, which came by the path of number `via`. `judged` hears what became of each
    /// datagram that asked for one, and says whether that tells anything of the path: one that is larger than the path
    /// carries tells nothing.
    pub(crate) fn on_receipt(
        &mut self,
        receipt: &Receipt,
        via: u8,
        now: Instant,
        mut judged: impl FnMut(Judged) -> bool,
    ) -> Option<Transition> {
        let was_impaired = self.impairment.is_seen();
        let own_queue = self.has_own_queue();
        let (impairment, quality) = (&mut self.impairment, &mut self.quality);
        let learnt = self.sent.on_receipt(receipt, now, |what| {
            let telling = judged(what);
            let (len, arrived) = match what {
                Judged::Arrived(len, _) => (len, true),
                Judged::Lost(len, _) => (len, false),
                Judged::LostInARow(_) => return,
            };
            quality.on_judged(len, arrived, now);
            if telling {
                impairment.on_judged(len, arrived, own_queue, now);
            }
        });
        if learnt.sample_from.is_some() && self.rtt.is_empty() {
            self.rtt = vec![None; MAX_PATHS];
        }
        if let (Some(sent_at), Some(rtt)) = (learnt.sample_from, self.rtt.get_mut(usize::from(via))) {
            let delay = Duration::from_micros(receipt.delay_us.into());
            let sample = now.since(sent_at).saturating_sub(delay);
            Rtt::sample(rtt, sample, now);
            self.least.sample(sample, now);
        }
        if let Some(sent_at) = learnt.largest_sent_at {
            self.quality.on_received(sent_at, receipt.received_us, now);
        }
        for _ in 0..learnt.acknowledged {
            self.loss -= self.loss / 64.0;
        }
        self.lost += u64::from(learnt.lost);
        for _ in 0..learnt.lost {
            self.loss += (1.0 - self.loss) / 64.0;
        }
        if learnt.acknowledged == 0 {
            return None;
        }
        self.sign_of_life = now;
        self.acknowledged_at = now;
        match self.state {
            PathState::Up | PathState::Suspect | PathState::Down if self.impairment.is_seen() => {
                if !was_impaired {
                    self.failures += 1;
                    self.probation = PROBATION;
                }
                self.change(now, PathState::Impaired, self.impairment.reason())
            }
            PathState::Suspect => {
                let begun = self.since;
                for rtt in &mut self.rtt {
                    rtt.take_if(|rtt| rtt.sampled_at < begun);
                }
                self.change(now, PathState::Up, "receipts arrive again")
            }
            PathState::Impaired if !self.impairment.is_seen() => {
                self.begin_probation(now);
                self.change(now, PathState::Up, "what was lost arrives again")
            }
            PathState::Down => {
                self.begin_probation(now);
                self.change(now, PathState::Up, "receipts arrive")
            }
            PathState::Up if self.failures > 0 && now.since(self.since) >= FORGIVEN_AFTER => {
                self.failures = 0;
                None
            }
            PathState::Up | PathState::Impaired | PathState::Absent => None,
        }
    }

    fn begin_probation(&mut self, now: Instant) {
        if self.failures > 0 {
            let doublings = (self.failures - 1).min(7);
            self.probation_until = now + (self.probation * 2u32.pow(doublings)).min(PROBATION_MOST);
        }
    }

    /// The uplink appeared or vanished.
    pub(crate) fn on_presence(&mut self, now: Instant, present: bool) -> Option<Transition> {
        match (present, self.state) {
            (true, PathState::Absent) => {
                self.impairment = Impairment::default();
                self.asked = 0;
                self.returned = true;
                self.last_asked = None;
                self.change(now, PathState::Down, "the uplink is there; no answer yet")
            }
            (false, PathState::Absent) | (true, _) => None,
            (false, _) => self.fail(now, PathState::Absent, PROBATION_ANNOUNCED, "the uplink is gone"),
        }
    }

    /// It is not to be used for now, though its uplink is there: no failure, and nothing is asked.
    pub(crate) fn rest(&mut self, now: Instant) -> Option<Transition> {
        self.sent.abandon();
        self.change(now, PathState::Absent, "it rests: the uplink's other tunnel is used")
    }

    /// The path leads to another address of the peer: what is under way by the old one is not waited for, and how long
    /// the new one takes is not known.
    pub(crate) fn on_other_way(&mut self) {
        self.sent.abandon();
        self.rtt.clear();
        self.least = Least::default();
        self.quality = Quality::default();
        self.impairment = Impairment::default();
        self.last_asked = None;
    }

    /// This end stood still until now: what was under way is forgotten, nothing is judged by it, and all is asked anew.
    pub(crate) fn on_stall(&mut self, now: Instant) {
        self.sent.forget();
        self.last_asked = None;
        self.sign_of_life = now;
        self.acknowledged_at = now;
        if self.state == PathState::Suspect {
            self.since = now;
        }
    }

    /// The peer started anew, or there is a session where there was none: what is open will never be acknowledged.
    pub(crate) fn forget_open(&mut self) {
        self.sent.abandon();
    }

    /// Whether there is a session. A plain WireGuard client sends no receipts and is believed to be there while there
    /// is; any path is down when there is none.
    pub(crate) fn on_session(&mut self, now: Instant, alive: bool) -> Option<Transition> {
        match (alive, self.state) {
            (true, PathState::Down | PathState::Suspect) => self.change(now, PathState::Up, "a session is alive"),
            (false, PathState::Up | PathState::Suspect | PathState::Impaired) => {
                self.fail(now, PathState::Down, PROBATION, "the session has ended")
            }
            _ => None,
        }
    }

    /// A session was agreed on: ask at once whether it carries data.
    pub(crate) fn ask_now(&mut self) {
        self.last_asked = None;
    }

    /// The peer says that its uplink is gone.
    pub(crate) fn on_lost(&mut self, now: Instant) -> Option<Transition> {
        if !matches!(self.state, PathState::Up | PathState::Suspect | PathState::Impaired) {
            return None;
        }
        self.fail(now, PathState::Down, PROBATION_ANNOUNCED, "the peer says that its uplink is gone")
    }

    /// Something came from the peer by this path: no evidence for the direction in which we send, but an occasion to
    /// ask.
    pub(crate) fn on_heard(&mut self, now: Instant) {
        self.heard = true;
        self.sign_of_life = now;
    }

    fn fail(&mut self, now: Instant, to: PathState, probation: Duration, reason: &'static str) -> Option<Transition> {
        let lost = self.sent.abandon();
        self.lost += u64::from(lost);
        for _ in 0..lost {
            self.loss += (1.0 - self.loss) / 64.0;
        }
        if matches!(self.state, PathState::Up | PathState::Suspect) {
            self.failures += 1;
            self.probation = probation;
        }
        self.asked = 0;
        self.change(now, to, reason)
    }

    /// How long receipts may take, by each of the paths by which some came of late.
    fn patiences(&self) -> impl Iterator<Item = Duration> {
        /// A pair not sampled for this much longer than the freshest says nothing any more: three idle probes.
        const STALE: Duration = Duration::from_secs(3);
        let newest = self.rtt.iter().flatten().map(|rtt| rtt.sampled_at).max().unwrap_or(Instant::ZERO);
        self.rtt.iter().flatten().filter(move |rtt| newest.since(rtt.sampled_at) < STALE).map(Rtt::patience)
    }

    /// The longest that a receipt may take.
    pub(crate) fn patience(&self) -> Duration {
        self.patiences().max().unwrap_or(UNKNOWN_PATIENCE)
    }

    /// When the path is suspected. The fastest receipts count: where they end and slower ones go on, the first of those
    /// clears the suspicion, and it is them that count from then on.
    fn overdue_at(&self) -> Option<Instant> {
        self.sent.oldest_open().map(|at| at + self.patiences().min().unwrap_or(UNKNOWN_PATIENCE))
    }

    /// By how much a packet that goes by this path may arrive later than one that goes by `other` at the same time. A queue
    /// that the other one has now may be gone by then.
    pub(crate) fn later_than(&self, other: &Health) -> Duration {
        self.compare(other, |ours, theirs| {
            let fastest = theirs.least.get().unwrap_or(theirs.smoothed);
            (ours.smoothed + (ours.variation * 4).max(LEAST_MARGIN)).saturating_sub(fastest)
        })
    }

    /// By how much packets by this path are mostly later than those by `other`.
    pub(crate) fn beyond(&self, other: &Health) -> Duration {
        self.compare(other, |ours, theirs| ours.smoothed.saturating_sub(theirs.smoothed))
    }

    /// Where both round trips are known by the same receipt path, its way back is in both of them and cancels out.
    fn compare(&self, other: &Health, later: impl Fn(&Rtt, &Rtt) -> Duration) -> Duration {
        let pairs = self.rtt.iter().zip(&other.rtt).filter_map(|(ours, theirs)| ours.as_ref().zip(theirs.as_ref()));
        let any = || self.latest_rtt().zip(other.latest_rtt()).map(|(ours, theirs)| later(ours, theirs));
        pairs.map(|(ours, theirs)| later(ours, theirs)).max().or_else(any).unwrap_or_default()
    }

    /// When an impaired path, which loses most of what is sent, counts as one that may be dead: not even a small question
    /// was answered.
    fn unanswered_at(&self, around: Surroundings, now: Instant) -> Option<Instant> {
        self.sent.oldest_open()?;
        Some(self.acknowledged_at + self.ask_interval(around, now)? + self.patience())
    }

    /// When the core doubts an idle path on which it only listens.
    fn silent_at(&self, around: Surroundings) -> Option<Instant> {
        let keepalive = around.keepalive.filter(|_| !around.initiator && !around.active)?;
        Some(self.sign_of_life + keepalive.idle * SILENT_INTERVALS + self.patience())
    }

    fn confirm_at(&self) -> Instant {
        let round_trip = self.rtt().map_or(Duration::ZERO, |(smoothed, _)| smoothed);
        self.since + LEAST_CONFIRM.max(round_trip * 3)
    }

    fn ask_interval(&self, around: Surroundings, now: Instant) -> Option<Duration> {
        match self.state {
            PathState::Absent => None,
            PathState::Up if around.active => Some(PROBE_ACTIVE),
            PathState::Up => match around.keepalive {
                Some(keepalive) => around.initiator.then_some(keepalive.idle),
                None => Some(PROBE_IDLE),
            },
            PathState::Impaired if around.active => Some(PROBE_ACTIVE),
            PathState::Impaired => Some(around.keepalive.map_or(PROBE_IDLE, |keepalive| keepalive.idle)),
            PathState::Suspect => Some(ASK_INTERVAL),
            // A box that asks on a path that is down here is answered by asking back: that proves this direction.
            PathState::Down if !around.initiator => self.heard.then_some(ASK_INTERVAL),
            PathState::Down => Some(match self.rtt() {
                _ if let Some(keepalive) = around.keepalive
                    && keepalive.metered
                    && around.other_up
                    && now.since(self.since) >= METERED_DOWN =>
                {
                    keepalive.idle
                }
                // Two questions must not be all that is under way: an answer to the one before the last is in vain.
                Some((smoothed, _)) => {
                    let interval = if now.since(self.since) < LONG_DOWN { PROBE_DOWN } else { PROBE_LONG_DOWN };
                    interval.max(smoothed)
                }
                None => (PROBE_DOWN * (self.asked / 4 + 1)).min(PROBE_UNKNOWN_MOST),
            }),
        }
    }

    fn ask_at(&self, around: Surroundings, now: Instant) -> Option<Instant> {
        let interval = self.ask_interval(around, now)?;
        Some(self.last_asked.map_or(Instant::ZERO, |at| at + interval))
    }

    /// When [`Health::on_timeout`] has something to do, and what.
    pub(crate) fn deadline(&self, around: Surroundings, now: Instant) -> Option<(Instant, &'static str)> {
        let ask = self.ask_at(around, now).map(|at| (at, "ask"));
        let judge = match self.state {
            PathState::Up => {
                let overdue = self.overdue_at().map(|at| (at, "overdue"));
                let silent = self.silent_at(around).map(|at| (at, "silent"));
                [overdue, silent].into_iter().flatten().min()
            }
            PathState::Impaired => self.unanswered_at(around, now).map(|at| (at, "unanswered")),
            PathState::Suspect => Some((self.confirm_at(), "confirm")),
            _ => None,
        };
        [ask, judge].into_iter().flatten().min()
    }

    /// Judges and asks. The caller sends what is wanted and tells [`Health::on_sent`].
    pub(crate) fn on_timeout(&mut self, around: Surroundings, now: Instant) -> (Option<Transition>, Wants) {
        let mut transition = None;
        match self.state {
            PathState::Up if self.overdue_at().is_some_and(|at| at <= now) => {
                self.last_asked = None;
                transition = self.change(now, PathState::Suspect, "a receipt is overdue");
            }
            PathState::Up if self.silent_at(around).is_some_and(|at| at <= now) => {
                self.last_asked = None;
                transition = self.change(now, PathState::Suspect, "the box has not asked for three intervals");
            }
            PathState::Impaired if self.unanswered_at(around, now).is_some_and(|at| at <= now) => {
                self.last_asked = None;
                transition = self.change(now, PathState::Suspect, "nothing is acknowledged, not even what is small");
            }
            PathState::Suspect if self.confirm_at() <= now => {
                self.last_asked = None;
                transition = self.fail(now, PathState::Down, PROBATION, "nothing is acknowledged any more");
            }
            _ => {}
        }
        let mut wants = Wants::default();
        if self.ask_at(around, now).is_some_and(|at| at <= now) {
            wants.ping = true;
            wants.large = self.impairment.question(around.largest).filter(|_| self.state == PathState::Impaired);
            self.heard = false;
            self.last_asked = Some(now);
            if self.state == PathState::Down {
                // A way to another address may work while this one is dead, and only a handshake finds it.
                let every = if around.several_ways { 1 } else { QUESTIONS_PER_INITIATION };
                wants.initiation = !std::mem::take(&mut self.returned) && self.asked % every == every - 1;
                self.asked = self.asked.saturating_add(1);
            }
        }
        (transition, wants)
    }
}

#[cfg(test)]
mod tests;
