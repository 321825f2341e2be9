//! The state machine of one connection, from its OPEN to its end (RFC 4271, section 8: OpenSent, OpenConfirm and
//! Established), without clock and socket.

use super::Families;
use super::message::{self, Frame, Framer, Kind, MAX_EXTENDED_MESSAGE, MAX_MESSAGE, Notification, Refresh};
use super::open::{Capabilities, GracefulRestart, Open};
use super::role::Role;
use super::session::{Config, Counters, Reason, State};
use super::update::{self, Context, Update};
use bytes::Bytes;
use proto::Instant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The hold timer until the OPEN has come: RFC 4271, section 8.2.2 suggests 4 minutes.
const OPEN_HOLD: Duration = Duration::from_secs(240);
/// The least send hold time (RFC 9687, section 4.4).
const SEND_HOLD_LEAST: Duration = Duration::from_secs(480);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// When to take the neighbour for dead.
    Hold,
    /// When to send the next KEEPALIVE.
    Keepalive,
    /// When to take the neighbour for one that reads no more (RFC 9687).
    SendHold,
}

const TIMERS: [Timer; 3] = [Timer::Hold, Timer::Keepalive, Timer::SendHold];

/// What the two OPENs settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) remote_router_id: Ipv4Addr,
    /// In seconds; 0 is none.
    pub(crate) hold_time: u16,
    pub(crate) four_octet_as: bool,
    pub(crate) families: Families,
    /// The neighbour answers a request for its routes (RFC 2918).
    pub(crate) route_refresh: bool,
    /// And marks where the answer begins and ends (RFC 7313).
    pub(crate) enhanced_route_refresh: bool,
    /// The longest message, both ways (RFC 8654).
    pub(crate) max_message: usize,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub(crate) extended_next_hop: bool,
    /// The neighbour may send several routes to one prefix (RFC 7911).
    pub(crate) add_path: Families,
    /// What the neighbour keeps over a restart (RFC 4724).
    pub(crate) graceful_restart: Option<GracefulRestart>,
    /// What the neighbour says that it is to us (RFC 9234).
    pub(crate) remote_role: Option<Role>,
}

impl Negotiated {
    fn new(config: &Config, open: &Open) -> Negotiated {
        let (ours, theirs) = (config.capabilities(), open.capabilities);
        Negotiated {
            remote_router_id: open.router_id,
            hold_time: config.hold_time.min(open.hold_time),
            four_octet_as: theirs.four_octet_as,
            families: theirs.families.and(ours.families),
            route_refresh: theirs.route_refresh,
            enhanced_route_refresh: theirs.route_refresh && theirs.enhanced_route_refresh,
            max_message: if theirs.extended_message { MAX_EXTENDED_MESSAGE } else { MAX_MESSAGE },
            extended_next_hop: ours.extended_next_hop && theirs.extended_next_hop,
            add_path: theirs.add_path_send.and(ours.add_path_receive).and(theirs.families),
            graceful_restart: theirs.graceful_restart,
            remote_role: theirs.role,
        }
    }

    /// How an UPDATE of the neighbour's is to be read.
    fn context(&self, config: &Config) -> Context {
        Context {
            families: self.families,
            four_octet_as: self.four_octet_as,
            internal: config.internal(),
            add_path: self.add_path,
            extended_next_hop: self.extended_next_hop,
        }
    }
}

/// What happens on a connection.
#[derive(Debug)]
pub(super) enum Happening {
    /// To be written.
    Send(Bytes),
    /// The neighbour's OPEN was good: whether this connection is the one that stays can be decided.
    Opened,
    /// Both OPENs are confirmed.
    Established(Negotiated),
    /// The neighbour says this of its routes.
    Update(Update),
    /// It asks for ours, or marks where its own begin and end.
    Refresh(Refresh),
    /// It is over. What is to be sent has been said before.
    Ended(Reason),
}

/// One connection. After each call take what happened with [`Connection::next`] until there is no more.
#[derive(Debug)]
pub(super) struct Connection {
    config: Config,
    state: State,
    since: Instant,
    timers: [Option<Instant>; TIMERS.len()],
    framer: Framer,
    happened: VecDeque<Happening>,
    /// Jitter (RFC 4271, section 10) needs no secret, only that neighbours differ.
    rng: StdRng,
    negotiated: Option<Negotiated>,
    counters: Counters,
}

impl Connection {
    /// There is a TCP connection: the OPEN goes out.
    pub(super) fn new(config: Config, seed: u64, now: Instant) -> Connection {
        let mut connection = Connection {
            config,
            state: State::OpenSent,
            since: now,
            timers: [None; TIMERS.len()],
            framer: Framer::default(),
            happened: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            negotiated: None,
            counters: Counters::default(),
        };
        let open = Open {
            asn: config.local_as,
            hold_time: config.hold_time,
            router_id: config.router_id,
            capabilities: config.capabilities(),
        };
        connection.send(now, open.encode());
        connection.set(Timer::Hold, now + OPEN_HOLD);
        connection
    }

    /// Its state, and since when it is in it.
    pub(super) fn state(&self) -> (State, Instant) {
        (self.state, self.since)
    }

    /// What was settled, from the neighbour's OPEN on.
    pub(super) fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// What it has seen.
    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes bytes as they come.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        self.framer.push(bytes);
    }

    /// What happened next, of what was called for and of what came in. A message is looked at when all before it has
    /// been taken: nothing happens on a connection that was given up in the meantime.
    pub(super) fn next(&mut self, now: Instant) -> Option<Happening> {
        loop {
            if let Some(happening) = self.happened.pop_front() {
                return Some(happening);
            }
            if self.state == State::Idle {
                return None;
            }
            let outcome = match self.framer.next_frame() {
                Ok(Some(frame)) => {
                    self.counters.messages_received += 1;
                    self.handle(now, frame)
                }
                Ok(None) => return None,
                Err(notification) => Err(notification),
            };
            if let Err(notification) = outcome {
                self.end(now, Reason::Sent(notification));
            }
        }
    }

    /// Ends it, with a NOTIFICATION where the reason is ours.
    pub(super) fn end(&mut self, now: Instant, reason: Reason) {
        if self.state == State::Idle {
            return;
        }
        if let Reason::Stopped(notification) | Reason::Sent(notification) = &reason {
            self.send(now, notification.encode());
        }
        self.timers = [None; TIMERS.len()];
        self.enter(now, State::Idle);
        self.happened.push_back(Happening::Ended(reason));
    }

    /// Some of what was to be sent has been taken by the neighbour's or the kernel's buffers, or all of it.
    pub(super) fn written(&mut self, now: Instant, all: bool) {
        self.clear(Timer::SendHold);
        if !all && self.state != State::Idle {
            self.arm_send_hold(now);
        }
    }

    /// Sends a message that stands for a KEEPALIVE. Does nothing unless it is established.
    pub(super) fn send_established(&mut self, now: Instant, message: Bytes) {
        if self.state == State::Established {
            self.send(now, message);
            self.restart_keepalive(now);
        }
    }

    /// To be called when [`Connection::poll_timeout`]'s moment has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for timer in TIMERS {
            let slot = &mut self.timers[timer as usize];
            if slot.is_none_or(|at| at > now) {
                continue;
            }
            *slot = None;
            match timer {
                Timer::Hold => self.end(now, Reason::Sent(Notification::new(4, 0))),
                Timer::Keepalive => {
                    self.send(now, message::keepalive());
                    self.restart_keepalive(now);
                }
                Timer::SendHold => self.end(now, Reason::Sent(Notification::new(8, 0))),
            }
        }
    }

    /// The earliest deadline, and its reason.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        TIMERS.into_iter().filter_map(|timer| Some((self.timers[timer as usize]?, timer))).min_by_key(|&(at, _)| at)
    }

    fn handle(&mut self, now: Instant, frame: Frame) -> Result<(), Notification> {
        match (self.state, frame.kind) {
            (_, Kind::Notification) => {
                self.end(now, Reason::Received(Notification::decode(&frame.body)));
            }
            (State::OpenSent, Kind::Open) => self.handle_open(now, &Open::decode(&frame.body)?)?,
            (State::OpenConfirm, Kind::Keepalive) => {
                self.restart_hold(now);
                self.enter(now, State::Established);
                self.counters.established += 1;
                self.happened.extend(self.negotiated.map(Happening::Established));
            }
            (State::Established, Kind::Keepalive) => self.restart_hold(now),
            (State::Established, Kind::Update) => {
                self.restart_hold(now);
                self.handle_update(&frame.body)?;
            }
            (State::Established, Kind::RouteRefresh) => {
                let enhanced = self.negotiated.is_some_and(|negotiated| negotiated.enhanced_route_refresh);
                self.happened.extend(Refresh::decode(&frame.body, enhanced)?.map(Happening::Refresh));
            }
            // RFC 6608: which state found the message unexpected, and of what type it was.
            (state, kind) => {
                let subcode = match state {
                    State::OpenSent => 1,
                    State::OpenConfirm => 2,
                    _ => 3,
                };
                return Err(Notification::with_data(5, subcode, &[kind as u8]));
            }
        }
        Ok(())
    }

    /// RFC 4271, section 6.2: what of an OPEN depends on who we expect.
    fn handle_open(&mut self, now: Instant, open: &Open) -> Result<(), Notification> {
        if open.asn != self.config.remote_as {
            return Err(Notification::new(2, 2));
        }
        // RFC 6286: within one AS no two speakers have the same.
        if self.config.internal() && open.router_id == self.config.router_id {
            return Err(Notification::new(2, 3));
        }
        self.check_role(open.capabilities.role)?;
        let negotiated = Negotiated::new(&self.config, open);
        if negotiated.families == Families::NONE {
            // RFC 5492, section 3: what is missing.
            return Err(Notification::with_data(
                2,
                7,
                &Capabilities { families: Families::ALL, ..Capabilities::default() }.encode(0),
            ));
        }
        if negotiated.max_message > MAX_MESSAGE {
            self.framer.extend();
        }
        self.negotiated = Some(negotiated);
        self.send(now, message::keepalive());
        self.restart_hold(now);
        self.restart_keepalive(now);
        self.enter(now, State::OpenConfirm);
        self.happened.push_back(Happening::Opened);
        Ok(())
    }

    /// RFC 9234, section 4.2.
    fn check_role(&self, theirs: Option<Role>) -> Result<(), Notification> {
        let Some(ours) = self.config.role else { return Ok(()) };
        match theirs {
            Some(theirs) if theirs == ours.counterpart() => Ok(()),
            None if !self.config.strict_role => Ok(()),
            _ => Err(Notification::new(2, 11)),
        }
    }

    fn handle_update(&mut self, body: &[u8]) -> Result<(), Notification> {
        let Some(negotiated) = &self.negotiated else { return Ok(()) };
        self.counters.updates_received += 1;
        let update = update::decode(body, &negotiated.context(&self.config))?;
        self.counters.attributes_discarded += update.discarded as u64;
        if let Some(fault) = update.fault {
            self.counters.treated_as_withdraw += 1;
            tracing::debug!(asn = self.config.remote_as, %fault, "an UPDATE is treated as a withdrawal (RFC 7606)");
        }
        self.happened.push_back(Happening::Update(update));
        Ok(())
    }

    fn enter(&mut self, now: Instant, state: State) {
        self.state = state;
        self.since = now;
    }

    fn send(&mut self, now: Instant, message: Bytes) {
        self.counters.messages_sent += 1;
        self.happened.push_back(Happening::Send(message));
        if self.timers[Timer::SendHold as usize].is_none() {
            self.arm_send_hold(now);
        }
    }

    /// RFC 9687, section 4.4; without a hold time there is none.
    fn arm_send_hold(&mut self, now: Instant) {
        let hold = Duration::from_secs(self.hold_time().into());
        if !hold.is_zero() {
            self.set(Timer::SendHold, now + SEND_HOLD_LEAST.max(2 * hold));
        }
    }

    fn restart_hold(&mut self, now: Instant) {
        match self.hold_time() {
            0 => self.clear(Timer::Hold),
            seconds => self.set(Timer::Hold, now + Duration::from_secs(seconds.into())),
        }
    }

    /// A third of the hold time (RFC 4271, section 4.4), and three to four quarters of that (section 10).
    fn restart_keepalive(&mut self, now: Instant) {
        match self.hold_time() {
            0 => self.clear(Timer::Keepalive),
            seconds => {
                let wait = Duration::from_secs(seconds.into()).mul_f64(self.rng.random_range(0.75..=1.0) / 3.0);
                self.set(Timer::Keepalive, now + wait);
            }
        }
    }

    /// The settled hold time, or what we offer as long as nothing is settled.
    fn hold_time(&self) -> u16 {
        self.negotiated.map_or(self.config.hold_time, |negotiated| negotiated.hold_time)
    }

    fn set(&mut self, timer: Timer, at: Instant) {
        self.timers[timer as usize] = Some(at);
    }

    fn clear(&mut self, timer: Timer) {
        self.timers[timer as usize] = None;
    }
}
