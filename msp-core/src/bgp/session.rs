//! The state machine of one BGP connection (RFC 4271, section 8), without clock and socket.
//!
//! Time and bytes come in, [`Action`]s and the next deadline are taken out. One `Session` has at most one connection.
//! It opens connections itself, and takes one that its owner accepted through [`Session::connected`]; resolving a
//! collision (section 6.8) is the work of an owner with two sessions for one neighbour, both of which show the OPENs'
//! router identifiers in [`Negotiated`].

use super::message::{self, Frame, Framer, Kind, Notification, Open};
use super::update::{self, Context, Update};
use super::{Families, Family};
use bytes::Bytes;
use proto::Instant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The first wait after a failure. RFC 4271 suggests 120 s, of a time when a router that restarted was busy for as
/// long; a neighbour that restarts today listens after a second.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest wait: what an operator who repaired the other end is willing to stand beside, and a SYN that nobody
/// notices.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A session that lasted as long starts its waits from the first again; one that did not is likely to fail again.
const STABLE: Duration = Duration::from_secs(30);
/// How long a TCP connection may take: SYNs at 0, 1, 3 and 7 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The hold timer until the OPEN has come: RFC 4271, section 8.2.2 suggests 4 minutes.
const OPEN_HOLD: Duration = Duration::from_secs(240);
/// The least send hold time (RFC 9687, section 4.4).
const SEND_HOLD_LEAST: Duration = Duration::from_secs(480);

/// Who both ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) local_as: u32,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) remote_as: u32,
    /// The hold time we offer, in seconds: 0 (none) or at least 3.
    pub(crate) hold_time: u16,
}

impl Config {
    /// Both ends are in one AS.
    pub(crate) fn internal(&self) -> bool {
        self.local_as == self.remote_as
    }
}

/// The states of RFC 4271, section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Stopped, or waiting after an error.
    Idle,
    /// A TCP connection is being made.
    Connect,
    /// Making one failed; waiting to try again, and glad of one from the other side.
    Active,
    /// Our OPEN is out.
    OpenSent,
    /// Theirs was good.
    OpenConfirm,
    /// Routes may be exchanged.
    Established,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Idle => "idle",
            State::Connect => "connect",
            State::Active => "active",
            State::OpenSent => "opensent",
            State::OpenConfirm => "openconfirm",
            State::Established => "established",
        })
    }
}

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// When to try (again) to connect; while connecting, when to give this attempt up.
    ConnectRetry,
    /// When to take the neighbour for dead.
    Hold,
    /// When to send the next KEEPALIVE.
    Keepalive,
    /// When to take the neighbour for one that reads no more (RFC 9687).
    SendHold,
}

const TIMERS: [Timer; 4] = [Timer::ConnectRetry, Timer::Hold, Timer::Keepalive, Timer::SendHold];

/// What the two OPENs settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) remote_router_id: Ipv4Addr,
    /// In seconds; 0 is none.
    pub(crate) hold_time: u16,
    pub(crate) four_octet_as: bool,
    pub(crate) families: Families,
}

/// Why a connection ended, or did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    /// By our own command.
    #[error("stopped here: {0}")]
    Stopped(Notification),
    /// No TCP connection.
    #[error("no connection: {0}")]
    NotConnected(String),
    /// The TCP connection ended without a NOTIFICATION.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// We ended it.
    #[error("ended here: {0}")]
    Sent(Notification),
    /// The neighbour ended it.
    #[error("ended by the neighbour: {0}")]
    Received(Notification),
}

/// What the owner is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make a TCP connection; answer with [`Session::connected`] or [`Session::connect_failed`].
    Connect,
    /// Write this, and say so with [`Session::written`].
    Send(Bytes),
    /// Close the connection, after what is to be sent, or give up making it.
    Close,
    /// The session is established: announce.
    Up(Negotiated),
    /// It was established, and is no more: what was announced is forgotten at the other end.
    Down(Reason),
    /// The neighbour has said this of its routes. It comes after [`Action::Up`], and nothing comes after
    /// [`Action::Down`].
    Update(Update),
    /// The neighbour wants everything of a family again (RFC 2918).
    Refresh(Family),
}

/// What a session has seen, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// UPDATEs received.
    pub(crate) updates_received: u64,
    /// Of these, how many were malformed and treated as withdraw (RFC 7606).
    pub(crate) treated_as_withdraw: u64,
    /// Attributes that were left out of UPDATEs, alone (RFC 7606, "attribute discard").
    pub(crate) attributes_discarded: u64,
    /// Messages received, all kinds.
    pub(crate) messages_received: u64,
    /// Messages sent, all kinds.
    pub(crate) messages_sent: u64,
    /// How often the session was established.
    pub(crate) established: u64,
}

/// One connection's state machine. After each call, take [`Session::poll_action`] until it has no more, then ask
/// [`Session::poll_timeout`]. After `handle_timeout(now)` the next deadline lies after `now`.
#[derive(Debug)]
pub(crate) struct Session {
    config: Config,
    state: State,
    timers: [Option<Instant>; TIMERS.len()],
    framer: Framer,
    actions: VecDeque<Action>,
    /// Jitter (RFC 4271, section 10) needs no secret, only that neighbours differ.
    rng: StdRng,
    /// Failures in a row, for the back-off.
    failures: u32,
    negotiated: Option<Negotiated>,
    since: Instant,
    last_error: Option<Reason>,
    counters: Counters,
}

impl Session {
    /// A stopped session.
    pub(crate) fn new(config: Config, seed: u64, now: Instant) -> Session {
        Session {
            config,
            state: State::Idle,
            timers: [None; TIMERS.len()],
            framer: Framer::default(),
            actions: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            failures: 0,
            negotiated: None,
            since: now,
            last_error: None,
            counters: Counters::default(),
        }
    }

    /// Its state, and since when it is in it.
    pub(crate) fn state(&self) -> (State, Instant) {
        (self.state, self.since)
    }

    /// What was settled, while established.
    pub(crate) fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref().filter(|_| self.state == State::Established)
    }

    /// Why the last connection ended or did not come about.
    pub(crate) fn last_error(&self) -> Option<&Reason> {
        self.last_error.as_ref()
    }

    /// What it has seen.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Starts connecting, unless it has.
    pub(crate) fn start(&mut self, now: Instant) {
        if self.state == State::Idle {
            self.connect(now);
        }
    }

    /// Ends the session for good (or until the next start), with this NOTIFICATION if there is anyone to tell.
    pub(crate) fn stop(&mut self, now: Instant, notification: Notification) {
        self.end(now, Reason::Stopped(notification));
        self.timers = [None; TIMERS.len()];
        self.enter(now, State::Idle);
    }

    /// There is a TCP connection: the one asked for, or one that came from the other side.
    pub(crate) fn connected(&mut self, now: Instant) {
        if !matches!(self.state, State::Connect | State::Active) {
            return;
        }
        self.timers = [None; TIMERS.len()];
        self.enter(now, State::OpenSent);
        let open = Open {
            asn: self.config.local_as,
            hold_time: self.config.hold_time,
            router_id: self.config.router_id,
            four_octet_as: true,
            route_refresh: true,
            families: Families::ALL,
        };
        self.transmit(now, open.encode());
        self.set(Timer::Hold, now + OPEN_HOLD);
    }

    /// The TCP connection could not be made.
    pub(crate) fn connect_failed(&mut self, now: Instant, why: String) {
        if self.state == State::Connect {
            self.end(now, Reason::NotConnected(why));
        }
    }

    /// The TCP connection ended.
    pub(crate) fn closed(&mut self, now: Instant, why: String) {
        if matches!(self.state, State::OpenSent | State::OpenConfirm | State::Established) {
            self.end(now, Reason::Lost(why));
        }
    }

    /// Bytes came in.
    pub(crate) fn received(&mut self, now: Instant, bytes: &[u8]) {
        if !matches!(self.state, State::OpenSent | State::OpenConfirm | State::Established) {
            return;
        }
        self.framer.push(bytes);
        // A message may end the session, and with it the framer's bytes.
        loop {
            match self.framer.next_frame() {
                Ok(Some(frame)) => {
                    self.counters.messages_received += 1;
                    if let Err(notification) = self.handle(now, frame) {
                        self.end(now, Reason::Sent(notification));
                    }
                }
                Ok(None) => break,
                Err(notification) => self.end(now, Reason::Sent(notification)),
            }
        }
    }

    /// Some of what was to be sent has been taken by the neighbour's or the kernel's buffers, or all of it.
    pub(crate) fn written(&mut self, now: Instant, all: bool) {
        self.clear(Timer::SendHold);
        if !all {
            self.arm_send_hold(now);
        }
    }

    /// Sends an UPDATE that the owner made. Does nothing unless the session is established.
    pub(crate) fn send_update(&mut self, now: Instant, update: Bytes) {
        if self.state == State::Established {
            self.transmit(now, update);
            self.restart_keepalive(now);
        }
    }

    /// To be called when [`Session::poll_timeout`]'s moment has come. What the socket has to give is to be handed in
    /// first: a stall of this process is not a dead neighbour.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for timer in TIMERS {
            let slot = &mut self.timers[timer as usize];
            if slot.is_none_or(|at| at > now) {
                continue;
            }
            *slot = None;
            match timer {
                Timer::ConnectRetry if self.state == State::Connect => {
                    self.end(now, Reason::NotConnected(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())));
                }
                Timer::ConnectRetry => self.connect(now),
                Timer::Hold => self.end(now, Reason::Sent(Notification::new(4, 0))),
                Timer::Keepalive => {
                    self.transmit(now, message::keepalive());
                    self.restart_keepalive(now);
                }
                Timer::SendHold => self.end(now, Reason::Sent(Notification::new(8, 0))),
            }
        }
    }

    /// The earliest deadline, and its reason.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        TIMERS.into_iter().filter_map(|timer| Some((self.timers[timer as usize]?, timer))).min_by_key(|&(at, _)| at)
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn handle(&mut self, now: Instant, frame: Frame) -> Result<(), Notification> {
        match (self.state, frame.kind) {
            (_, Kind::Notification) => {
                self.end(now, Reason::Received(Notification::decode(&frame.body)));
            }
            (State::OpenSent, Kind::Open) => self.handle_open(now, Open::decode(&frame.body)?)?,
            (State::OpenConfirm, Kind::Keepalive) => {
                self.restart_hold(now);
                self.enter(now, State::Established);
                self.counters.established += 1;
                self.actions.extend(self.negotiated.map(Action::Up));
            }
            (State::Established, Kind::Keepalive) => self.restart_hold(now),
            (State::Established, Kind::Update) => {
                self.restart_hold(now);
                self.handle_update(&frame.body)?;
            }
            (State::Established, Kind::RouteRefresh) => {
                self.actions.extend(message::refresh(&frame.body).map(Action::Refresh));
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
    fn handle_open(&mut self, now: Instant, open: Open) -> Result<(), Notification> {
        if open.asn != self.config.remote_as {
            return Err(Notification::new(2, 2));
        }
        // RFC 6286: within one AS no two speakers have the same.
        if self.config.internal() && open.router_id == self.config.router_id {
            return Err(Notification::new(2, 3));
        }
        self.negotiated = Some(Negotiated {
            remote_router_id: open.router_id,
            hold_time: self.config.hold_time.min(open.hold_time),
            four_octet_as: open.four_octet_as,
            families: open.families,
        });
        self.transmit(now, message::keepalive());
        self.restart_hold(now);
        self.restart_keepalive(now);
        self.enter(now, State::OpenConfirm);
        Ok(())
    }

    fn handle_update(&mut self, body: &Bytes) -> Result<(), Notification> {
        self.counters.updates_received += 1;
        let context = Context {
            families: self.negotiated.map(|negotiated| negotiated.families).unwrap_or_default(),
            four_octet_as: self.negotiated.is_some_and(|negotiated| negotiated.four_octet_as),
            internal: self.config.internal(),
            add_path: Families::NONE,
            extended_next_hop: false,
        };
        let update = update::decode(body, &context)?;
        self.counters.attributes_discarded += update.discarded as u64;
        if let Some(fault) = update.fault {
            self.counters.treated_as_withdraw += 1;
            tracing::debug!(asn = self.config.remote_as, %fault, "an UPDATE is treated as a withdrawal (RFC 7606)");
        }
        self.actions.push_back(Action::Update(update));
        Ok(())
    }

    /// Begins to make a connection.
    fn connect(&mut self, now: Instant) {
        self.enter(now, State::Connect);
        self.actions.push_back(Action::Connect);
        self.set(Timer::ConnectRetry, now + CONNECT_TIMEOUT);
    }

    /// Ends whatever there is, and sets the time of the next attempt.
    fn end(&mut self, now: Instant, reason: Reason) {
        let connected = matches!(self.state, State::OpenSent | State::OpenConfirm | State::Established);
        if let (true, Reason::Stopped(notification) | Reason::Sent(notification)) = (connected, &reason) {
            self.counters.messages_sent += 1;
            self.actions.push_back(Action::Send(notification.encode()));
        }
        if connected || self.state == State::Connect {
            self.actions.push_back(Action::Close);
        }
        if self.state == State::Established {
            self.actions.push_back(Action::Down(reason.clone()));
            if now.since(self.since) >= STABLE {
                self.failures = 0;
            }
        }
        let failed_to_connect = matches!(reason, Reason::NotConnected(_));
        self.last_error = Some(reason);
        self.negotiated = None;
        self.framer = Framer::default();
        self.timers = [None; TIMERS.len()];
        let wait = (RETRY_FIRST * 2u32.saturating_pow(self.failures.min(31))).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        let wait = self.jitter(wait);
        self.set(Timer::ConnectRetry, now + wait);
        self.enter(now, if failed_to_connect { State::Active } else { State::Idle });
    }

    fn enter(&mut self, now: Instant, state: State) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    fn transmit(&mut self, now: Instant, message: Bytes) {
        self.counters.messages_sent += 1;
        self.actions.push_back(Action::Send(message));
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

    /// A third of the hold time (RFC 4271, section 4.4).
    fn restart_keepalive(&mut self, now: Instant) {
        match self.hold_time() {
            0 => self.clear(Timer::Keepalive),
            seconds => {
                let wait = self.jitter(Duration::from_secs(seconds.into()) / 3);
                self.set(Timer::Keepalive, now + wait);
            }
        }
    }

    /// The settled hold time, or what we offer as long as nothing is settled.
    fn hold_time(&self) -> u16 {
        self.negotiated.map_or(self.config.hold_time, |negotiated| negotiated.hold_time)
    }

    /// Three to four quarters of it (RFC 4271, section 10).
    fn jitter(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(self.rng.random_range(0.75..=1.0))
    }

    fn set(&mut self, timer: Timer, at: Instant) {
        self.timers[timer as usize] = Some(at);
    }

    fn clear(&mut self, timer: Timer) {
        self.timers[timer as usize] = None;
    }
}

#[cfg(test)]
mod tests;
