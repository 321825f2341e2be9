//! Handshakes of a path: when one is begun and where to, and HELLO, by which both ends tell what they are.

use super::{Path, TICK_INITIATOR};
use crate::Instant;
use crate::config::PeerKind;
use crate::output::Route;
use crate::peer::Context;
use crate::replay::Ticket;
use crate::tunnel::{HANDSHAKE_MAX, Role};
use crate::wire::{Hello, Item, MAX_MESSAGE, Writer};
use std::net::SocketAddr;
use std::time::Duration;

/// How often HELLO is said until it is known to have been heard, and how often at most: five seconds, then the path is
/// silent or the peer knows no HELLO, and either is seen elsewhere.
const HELLO_INTERVAL: Duration = Duration::from_millis(250);
const HELLO_MOST: u32 = 20;

/// When a session is replaced: WireGuard's REKEY_AFTER_TIME (whitepaper, section 6.1). It ends at 180 s, and a path may
/// drop most handshakes; so it is tried each second, and in the last half minute with each tick: with 70 % lost each way
/// the chance that all of some 150 tries fail is 1e-6.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_INTERVAL: Duration = Duration::from_secs(1);
const LAST_TRIES: Duration = Duration::from_secs(150);

/// After so many tries what may take long is tried no more seldom: each four minutes.
const MOST_DOUBLED: usize = 8;

impl Path {
    /// See [`REKEY_AFTER`]. Never faster than a round trip: answers to all but the last two initiations are in vain.
    pub(crate) fn rekey_if_due(&mut self, ctx: &mut Context<'_>) {
        if !self.tunnel.rekeys() {
            return;
        }
        let Some(age) = self.tunnel.session_since().map(|since| ctx.now.since(since)) else { return };
        let interval = if age < LAST_TRIES { REKEY_INTERVAL } else { TICK_INITIATOR };
        let interval = self.health.rtt().map_or(interval, |(smoothed, _)| interval.max(smoothed));
        if age >= REKEY_AFTER && self.initiated_at.is_none_or(|at| ctx.now.since(at) >= interval) {
            self.initiate(ctx);
        }
    }

    /// When another connection is to be begun, if its own is to an address that the peer has no more. (WireGuard's session is good
    /// at any; a connection of QUIC only where it was begun.) It may go on for long, and none of the new ones may answer: twice as
    /// seldom with each try.
    pub(super) fn astray_at(&self) -> Option<Instant> {
        self.tunnel.route().filter(|way| !self.endpoints.is_empty() && !self.endpoints.contains(&way.to))?;
        let pause = REKEY_INTERVAL * (1 << self.attempts.min(MOST_DOUBLED));
        Some(self.initiated_at.map_or(Instant::ZERO, |at| at + pause))
    }

    /// Begins a handshake. While the path works, where it works; otherwise the same initiation goes to all addresses of
    /// the peer, which answers the first copy that comes, and the way of the first answer is kept. Every second one
    /// goes to one address alone, each in its turn: a way there that is fast and whose way back is broken would win
    /// every race. Of QUIC it is a connection for each address.
    pub(crate) fn initiate(&mut self, ctx: &mut Context<'_>) {
        self.initiated_at = Some(ctx.now);
        let Some(route) = self.route else { return };
        let race = !(self.alive() && self.tunnel.has_session()) || self.astray_at().is_some();
        let attempt = if race { self.attempts } else { 0 };
        if race {
            self.attempts = self.attempts.wrapping_add(1);
        }
        let mut ways = vec![route];
        if let Some(&to) = self.endpoints.get(attempt / 2 % self.endpoints.len().max(1))
            && attempt % 2 == 1
        {
            ways = vec![Route { to, ..route }];
        } else if race {
            let others = self.endpoints.iter().filter(|&&to| to != route.to);
            ways.extend(others.map(|&to| Route { to, ..route }));
        }
        let before = self.tx.packets;
        let first = ways.first().copied();
        self.send_own(ctx, first, |tunnel, now, indices, dst| (tunnel.initiate(now, &ways, indices, dst), None));
        if self.tx.packets > before {
            for way in &ways[1..] {
                ctx.out.repeat(way.to);
                self.tx.add(HANDSHAKE_MAX);
            }
        }
        self.flush(ctx);
    }

    /// A handshake that this end began was answered from `from`: that way works, both ways.
    pub(crate) fn on_answer(&mut self, from: SocketAddr) {
        if let Some(route) = self.route.filter(|route| route.to != from)
            && self.endpoints.contains(&from)
        {
            self.move_to(Route { to: from, ..route });
            self.health.on_other_way();
        }
    }

    /// Follows the tunnel, where that knows better where the peer is.
    pub(crate) fn follow(&mut self) {
        if let Some(route) = self.tunnel.route().filter(|route| Some(*route) != self.route)
            && (self.config.link.is_none() || self.endpoints.contains(&route.to))
        {
            self.move_to(route);
        }
    }

    /// Says HELLO once more, if it is not known to have been heard.
    pub(super) fn say_hello_if_due(&mut self, ctx: &mut Context<'_>) {
        if self.hello_at.is_some_and(|at| at <= ctx.now) {
            self.hellos += 1;
            self.hello_at = (self.hellos < HELLO_MOST).then_some(ctx.now + HELLO_INTERVAL);
            self.say_hello(ctx, false);
        }
    }

    pub(crate) fn say_hello(&mut self, ctx: &mut Context<'_>, answer: bool) {
        let hello = Item::Hello(Hello {
            answer,
            path: self.number(),
            middlebox: ctx.identity.middlebox,
            pop: ctx.identity.pop,
            epoch: ctx.epoch,
            // Only a box has uplinks to say that of.
            keepalive: self.keepalive.filter(|_| self.config.link.is_some()),
            preference: self.preference(),
            capped: self.capped,
            stands_by: self.stands_by,
            either: self.either && self.config.link.is_some(),
            throttled: self.throttle.share().is_some(),
            policy_hash: self.policy_hash,
            capabilities: Hello::FRAGMENTS | Hello::COPIES | Hello::SEQUENCES | Hello::ECN,
            ..Hello::default()
        });
        let mut buffer = [0; MAX_MESSAGE];
        let mut message = Writer::new(&mut buffer);
        message.add(&hello);
        self.send_own_numbered(ctx, message.finish(), true, Ticket::HELLO);
    }

    /// A new session is in use. `remote_epoch`: the peer's, if it is known.
    pub(crate) fn on_session(&mut self, ctx: &Context<'_>, kind: PeerKind, role: Role, remote_epoch: Option<u64>) {
        self.tick_at.get_or_insert(ctx.now);
        // One end's question is enough while the path works.
        if role == Role::Initiator || !self.alive() {
            self.health.ask_now();
        }
        self.health.on_heard(ctx.now);
        if kind != PeerKind::Client && (self.told.is_none() || self.told != remote_epoch) {
            self.begin_hello(ctx.now);
        }
    }

    /// Says HELLO until it is known to have been heard.
    pub(super) fn begin_hello(&mut self, now: Instant) {
        self.hellos = 0;
        self.told = None;
        self.hello_at = Some(now);
    }

    /// The peer of this epoch has said HELLO. If it does not know ours it says its own until it has our answer.
    pub(crate) fn on_hello(&mut self, ctx: &mut Context<'_>, hello: &Hello) {
        if self.config.link.is_none() {
            self.keepalive = hello.keepalive;
            self.wished = hello.keepalive.map(|_| hello.preference);
            self.capped = hello.capped;
            (self.stands_by, self.either) = (hello.stands_by, hello.either);
        }
        self.throttled_there = hello.throttled;
        self.hello_at = None;
        self.told = Some(hello.epoch);
        if !hello.answer {
            self.say_hello(ctx, true);
        }
        // Its answer was to what was said before, and what is said since may be lost.
        if self.either && self.config.link.is_some() && hello.stands_by != self.stands_by {
            self.begin_hello(ctx.now);
        }
    }
}
