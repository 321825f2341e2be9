//! A neighbour: when to connect, which of two connections stays, what of its routes is stale (RFC 4271, sections 6.8 and
//! 8; RFC 4724), without clock and socket.
//!
//! Time and bytes come in, [`Action`]s and the next deadline are taken out. A session makes a connection of its own and
//! takes one of the neighbour's; each is a state machine of its own ([`super::connection`]), and where both come about,
//! the BGP identifiers decide which one stays.

pub(crate) use super::connection::Negotiated;
use super::connection::{Connection, Happening};
use super::message::{Notification, Refresh};
use super::open::{Capabilities, GracefulRestart};
use super::role::Role;
use super::update::Update;
use super::{Families, Family};
use bytes::Bytes;
use proto::Instant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::AddAssign;
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
/// How long stale routes are kept after a restarted neighbour is back, if it never says that it has said all (RFC 4724,
/// section 4.2 wants a bound): a full table takes half a minute, and a router that boots is slow.
const END_OF_RIB_TIMEOUT: Duration = Duration::from_secs(360);

/// Who both ends are, and what they may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) local_as: u32,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) remote_as: u32,
    /// The hold time we offer, in seconds: 0 (none) or at least 3.
    pub(crate) hold_time: u16,
    /// We wait for the neighbour to connect.
    pub(crate) passive: bool,
    /// What we are to the neighbour (RFC 9234).
    pub(crate) role: Option<Role>,
    /// A neighbour that does not say what it is to us is refused.
    pub(crate) strict_role: bool,
    /// We take several routes to one prefix (RFC 7911).
    pub(crate) add_path: bool,
    /// We take IPv6 next hops of IPv4 routes (RFC 8950).
    pub(crate) extended_next_hop: bool,
}

impl Config {
    /// Both ends are in one AS.
    pub(crate) fn internal(&self) -> bool {
        self.local_as == self.remote_as
    }

    /// What we say that we can do.
    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities {
            families: Families::ALL,
            four_octet_as: true,
            route_refresh: true,
            enhanced_route_refresh: true,
            extended_message: true,
            extended_next_hop: self.extended_next_hop,
            add_path_receive: if self.add_path { Families::ALL } else { Families::NONE },
            add_path_send: Families::NONE,
            // Of no family: what we forward ends with this process, so nothing of ours is to be kept when it does.
            graceful_restart: Some(GracefulRestart::default()),
            role: self.role,
        }
    }
}

/// The states of RFC 4271, section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Stopped, or waiting after an error.
    Idle,
    /// A TCP connection is being made.
    Connect,
    /// Waiting for one from the other side, or to try again.
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

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// We did.
    Out,
    /// The neighbour did.
    In,
}

impl Way {
    pub(super) const BOTH: [Way; 2] = [Way::Out, Way::In];

    fn other(self) -> Way {
        match self {
            Way::Out => Way::In,
            Way::In => Way::Out,
        }
    }
}

/// What the owner is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make a TCP connection; answer with [`Session::connected`] or [`Session::connect_failed`].
    Connect,
    /// The connection that was told of last is wanted: it is this one from here on.
    Take(Way),
    /// Write this to the connection, and say so with [`Session::written`].
    Send(Way, Bytes),
    /// Close the connection, after what is to be sent, or give up making it.
    Close(Way),
    /// The session is established on this connection: announce.
    Up(Way, Negotiated),
    /// The neighbour says this of its routes. Comes between [`Action::Up`] and [`Action::Down`].
    Update(Update),
    /// What there is of its routes of this family is stale from now on: in use until it is said again, or swept.
    Stale(Family),
    /// What is still stale of its routes of this family is to go.
    Sweep(Family),
    /// The neighbour wants everything of a family again (RFC 2918).
    Refresh(Family),
    /// It was established, and is no more: what was announced is forgotten at the other end. Its routes are to go; but
    /// those of the families in `keep` are stale (RFC 4724), and a [`Action::Sweep`] comes for each of them.
    Down { reason: Reason, keep: Families },
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

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        self.updates_received += other.updates_received;
        self.treated_as_withdraw += other.treated_as_withdraw;
        self.attributes_discarded += other.attributes_discarded;
        self.messages_received += other.messages_received;
        self.messages_sent += other.messages_sent;
        self.established += other.established;
    }
}

/// What the neighbour's session waits for, beside its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// When to try (again) to connect; while connecting, when to give this attempt up.
    ConnectRetry,
    /// When stale routes go, because the neighbour is not back, or does not come to an end.
    Stale,
}

const TIMERS: [Timer; 2] = [Timer::ConnectRetry, Timer::Stale];

/// A neighbour's state machine. After each call, take [`Session::poll_action`] until it has no more, then ask
/// [`Session::poll_timeout`]. After `handle_timeout(now)` the next deadline lies after `now`.
#[derive(Debug)]
pub(crate) struct Session {
    config: Config,
    /// Without regard to connections: [`State::Idle`], [`State::Connect`] or [`State::Active`].
    dial: State,
    dial_since: Instant,
    connections: [Option<Connection>; 2],
    timers: [Option<Instant>; TIMERS.len()],
    actions: VecDeque<Action>,
    rng: StdRng,
    /// When the last session came up.
    established_at: Instant,
    /// Failures in a row, for the back-off.
    failures: u32,
    /// Families whose routes are stale since the neighbour went away (RFC 4724).
    stale: Families,
    last_error: Option<Reason>,
    /// Of connections that are over.
    counters: Counters,
}

impl Session {
    /// A stopped session.
    pub(crate) fn new(config: Config, seed: u64, now: Instant) -> Session {
        Session {
            config,
            dial: State::Idle,
            dial_since: now,
            connections: [None, None],
            timers: [None; TIMERS.len()],
            actions: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            established_at: now,
            failures: 0,
            stale: Families::NONE,
            last_error: None,
            counters: Counters::default(),
        }
    }

    /// The state of the connection that has come furthest, and since when it is in it.
    pub(crate) fn state(&self) -> (State, Instant) {
        let connections = self.connections.iter().flatten().map(Connection::state);
        connections.max_by_key(|&(state, _)| state).unwrap_or((self.dial, self.dial_since))
    }

    /// What was settled, while established.
    pub(crate) fn negotiated(&self) -> Option<&Negotiated> {
        self.connections[self.established()? as usize].as_ref()?.negotiated()
    }

    /// Why the last connection ended or did not come about.
    pub(crate) fn last_error(&self) -> Option<&Reason> {
        self.last_error.as_ref()
    }

    /// What it has seen.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = self.counters;
        self.connections.iter().flatten().for_each(|connection| sum += connection.counters());
        sum
    }

    /// Starts connecting, or waiting for a connection, unless it has.
    pub(crate) fn start(&mut self, now: Instant) {
        if self.dial == State::Idle {
            self.dial(now);
        }
    }

    /// Ends the session for good (or until the next start), with this NOTIFICATION if there is anyone to tell.
    pub(crate) fn stop(&mut self, now: Instant, notification: Notification) {
        self.give_up_dialling();
        let reason = Reason::Stopped(notification);
        for way in Way::BOTH {
            self.end(now, way, reason.clone());
        }
        self.last_error = Some(reason);
        self.sweep(Families::ALL);
        self.timers = [None; TIMERS.len()];
        self.enter(now, State::Idle);
    }

    /// Ends the session with this NOTIFICATION, and neither connects nor takes connections for so long; for good, if it is
    /// not said for how long (RFC 4271, section 8.1.1: AutomaticStop).
    pub(crate) fn cease(&mut self, now: Instant, notification: Notification, wait: Option<Duration>) {
        self.give_up_dialling();
        let reason = Reason::Sent(notification);
        for way in Way::BOTH {
            self.end(now, way, reason.clone());
        }
        self.last_error = Some(reason);
        self.sweep(Families::ALL);
        self.timers = [None; TIMERS.len()];
        if let Some(wait) = wait {
            self.set(Timer::ConnectRetry, now + wait);
        }
        self.enter(now, State::Idle);
    }

    /// There is a TCP connection: the one asked for, or one that the neighbour made. It is wanted if [`Action::Take`]
    /// says so.
    pub(crate) fn connected(&mut self, now: Instant, way: Way) {
        match way {
            Way::Out if self.dial != State::Connect => return,
            Way::Out => {
                self.clear(Timer::ConnectRetry);
                self.enter(now, State::Active);
            }
            // Stopped, or too soon after an error.
            Way::In if self.dial == State::Idle => return,
            Way::In => match self.established() {
                // RFC 4724, section 5: it has restarted, and the old connection is of its life before.
                Some(old) if self.keeps(old) != Families::NONE => {
                    self.end(now, old, Reason::Lost("the neighbour has restarted".into()));
                    self.clear(Timer::ConnectRetry);
                    self.enter(now, State::Active);
                }
                Some(_) => return,
                // The neighbour knows best which of its connections it still has.
                None => self.end(now, Way::In, Reason::Lost("the neighbour has made another one".into())),
            },
        }
        let seed = self.rng.random();
        self.connections[way as usize] = Some(Connection::new(self.config, seed, now));
        self.actions.push_back(Action::Take(way));
        self.pump(now, way);
    }

    /// The TCP connection that was asked for could not be made.
    pub(crate) fn connect_failed(&mut self, now: Instant, why: String) {
        if self.dial == State::Connect {
            self.failed(now, Reason::NotConnected(why));
        }
    }

    /// The TCP connection ended.
    pub(crate) fn closed(&mut self, now: Instant, way: Way, why: String) {
        self.end(now, way, Reason::Lost(why));
    }

    /// Bytes came in.
    pub(crate) fn received(&mut self, now: Instant, way: Way, bytes: &[u8]) {
        if let Some(connection) = &mut self.connections[way as usize] {
            connection.received(bytes);
            self.pump(now, way);
        }
    }

    /// Some of what was to be sent has been taken by the neighbour's or the kernel's buffers, or all of it.
    pub(crate) fn written(&mut self, now: Instant, way: Way, all: bool) {
        if let Some(connection) = &mut self.connections[way as usize] {
            connection.written(now, all);
        }
    }

    /// Sends an UPDATE or ROUTE-REFRESH that the owner made. Does nothing unless the session is established.
    pub(crate) fn send(&mut self, now: Instant, message: Bytes) {
        if let Some(way) = self.established()
            && let Some(connection) = &mut self.connections[way as usize]
        {
            connection.send_established(now, message);
            self.pump(now, way);
        }
    }

    /// To be called when [`Session::poll_timeout`]'s moment has come. What the sockets have to give is to be handed in
    /// first: a stall of this process is not a dead neighbour.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for way in Way::BOTH {
            if let Some(connection) = &mut self.connections[way as usize] {
                connection.handle_timeout(now);
                self.pump(now, way);
            }
        }
        for timer in TIMERS {
            let slot = &mut self.timers[timer as usize];
            if slot.is_none_or(|at| at > now) {
                continue;
            }
            *slot = None;
            match timer {
                Timer::ConnectRetry if self.dial == State::Connect => {
                    self.actions.push_back(Action::Close(Way::Out));
                    let why = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                    self.failed(now, Reason::NotConnected(why));
                }
                Timer::ConnectRetry => self.dial(now),
                Timer::Stale => self.sweep(Families::ALL),
            }
        }
    }

    /// The earliest deadline.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let connections = self.connections.iter().flatten();
        let deadlines = connections.filter_map(|connection| connection.poll_timeout().map(|(at, _)| at));
        deadlines.chain(self.timers.iter().flatten().copied()).min()
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The connection that is established.
    fn established(&self) -> Option<Way> {
        let is =
            |way: &Way| self.connections[*way as usize].as_ref().is_some_and(|c| c.state().0 == State::Established);
        Way::BOTH.into_iter().find(is)
    }

    /// What is kept of the neighbour's routes if this connection is lost without a word (RFC 4724, section 4.2).
    fn keeps(&self, way: Way) -> Families {
        let negotiated = self.connections[way as usize].as_ref().and_then(Connection::negotiated);
        let restart = negotiated.and_then(|negotiated| Some((negotiated.graceful_restart?, negotiated.families)));
        match restart {
            Some((restart, families)) if restart.time > 0 => restart.families.and(families),
            _ => Families::NONE,
        }
    }

    /// Takes what happened on a connection.
    fn pump(&mut self, now: Instant, way: Way) {
        while let Some(connection) = &mut self.connections[way as usize]
            && let Some(happening) = connection.next(now)
        {
            match happening {
                Happening::Send(bytes) => self.actions.push_back(Action::Send(way, bytes)),
                Happening::Opened => self.resolve_collision(now, way),
                Happening::Established(negotiated) => self.up(now, way, negotiated),
                Happening::Update(update) => {
                    let end_of_rib = update.end_of_rib;
                    self.actions.push_back(Action::Update(update));
                    if let Some(family) = end_of_rib {
                        self.sweep(Families::NONE.with(family));
                    }
                }
                Happening::Refresh(Refresh::Request(family)) => self.actions.push_back(Action::Refresh(family)),
                // RFC 7313, section 4: not before all has been told once after a restart.
                Happening::Refresh(Refresh::Begin(family) | Refresh::End(family)) if self.stale.contains(family) => {}
                Happening::Refresh(Refresh::Begin(family)) => self.actions.push_back(Action::Stale(family)),
                Happening::Refresh(Refresh::End(family)) => self.actions.push_back(Action::Sweep(family)),
                Happening::Ended(reason) => self.ended(now, way, reason),
            }
        }
    }

    /// RFC 4271, section 6.8: of two connections that have both come as far, the one that the end with the higher
    /// identifier made stays. One that is established stays in any case.
    fn resolve_collision(&mut self, now: Instant, way: Way) {
        let Some(remote) = self.connections[way as usize].as_ref().and_then(Connection::negotiated) else { return };
        // RFC 6286, section 2.3: with equal identifiers the higher AS number decides.
        let ours_is_higher = (u32::from(self.config.router_id), self.config.local_as)
            > (u32::from(remote.remote_router_id), self.config.remote_as);
        let stays = if ours_is_higher { Way::Out } else { Way::In };
        let other = self.connections[way.other() as usize].as_ref().map(|connection| connection.state().0);
        let goes = match other {
            Some(State::Established) => way,
            Some(State::OpenConfirm) => stays.other(),
            _ => return,
        };
        self.end(now, goes, Reason::Sent(Notification::new(6, 7)));
    }

    fn up(&mut self, now: Instant, way: Way, negotiated: Negotiated) {
        self.give_up_dialling();
        self.end(now, way.other(), Reason::Sent(Notification::new(6, 7)));
        self.clear(Timer::ConnectRetry);
        self.enter(now, State::Active);
        self.established_at = now;
        self.actions.push_back(Action::Up(way, negotiated));
        // RFC 4724, section 4.2: what it did not go on forwarding goes at once, and the rest when it has said all.
        let forwarding = negotiated.graceful_restart.map(|restart| restart.forwarding).unwrap_or_default();
        let lost = self.stale.iter().filter(|&family| !forwarding.contains(family));
        self.sweep(lost.fold(Families::NONE, Families::with));
        if self.stale != Families::NONE {
            self.set(Timer::Stale, now + END_OF_RIB_TIMEOUT);
        }
    }

    /// Ends a connection, if there is one.
    fn end(&mut self, now: Instant, way: Way, reason: Reason) {
        if let Some(connection) = &mut self.connections[way as usize] {
            connection.end(now, reason);
            self.pump(now, way);
        }
    }

    /// A connection has ended.
    fn ended(&mut self, now: Instant, way: Way, reason: Reason) {
        let keep = if matches!(reason, Reason::Lost(_)) { self.keeps(way) } else { Families::NONE };
        let Some(connection) = self.connections[way as usize].take() else { return };
        let counters = connection.counters();
        self.counters += counters;
        self.actions.push_back(Action::Close(way));
        if counters.established > 0 {
            if now.since(self.established_at) >= STABLE {
                self.failures = 0;
            }
            self.stale = keep;
            match connection.negotiated().and_then(|negotiated| negotiated.graceful_restart) {
                Some(restart) if keep != Families::NONE => {
                    self.set(Timer::Stale, now + Duration::from_secs(restart.time.into()));
                }
                _ => self.clear(Timer::Stale),
            }
            self.actions.push_back(Action::Down { reason: reason.clone(), keep });
        }
        if self.connections.iter().any(Option::is_some) || self.dial == State::Connect {
            return;
        }
        self.failed(now, reason);
    }

    /// Nothing is left to become a session: waits before the next attempt.
    fn failed(&mut self, now: Instant, reason: Reason) {
        // Who broke the protocol is not listened to for that long (RFC 4271, section 8.2.2: Idle); any other may call.
        let next = if matches!(reason, Reason::Sent(_)) { State::Idle } else { State::Active };
        self.last_error = Some(reason);
        if self.connections.iter().any(Option::is_some) {
            // One of the neighbour's may still become one.
            self.enter(now, State::Active);
            return;
        }
        let wait = (RETRY_FIRST * 2u32.saturating_pow(self.failures.min(31))).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        // RFC 4271, section 10.
        let wait = wait.mul_f64(self.rng.random_range(0.75..=1.0));
        self.set(Timer::ConnectRetry, now + wait);
        self.enter(now, next);
    }

    /// Begins to make a connection, or to wait for one.
    fn dial(&mut self, now: Instant) {
        if self.config.passive {
            self.enter(now, State::Active);
            return;
        }
        self.enter(now, State::Connect);
        self.actions.push_back(Action::Connect);
        self.set(Timer::ConnectRetry, now + CONNECT_TIMEOUT);
    }

    fn give_up_dialling(&mut self) {
        if self.dial == State::Connect {
            self.actions.push_back(Action::Close(Way::Out));
        }
    }

    /// What is still stale of these families is to go.
    fn sweep(&mut self, families: Families) {
        for family in families.and(self.stale).iter() {
            self.stale.remove(family);
            self.actions.push_back(Action::Sweep(family));
        }
        if self.stale == Families::NONE {
            self.clear(Timer::Stale);
        }
    }

    fn enter(&mut self, now: Instant, state: State) {
        if self.dial != state {
            self.dial = state;
            self.dial_since = now;
        }
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
