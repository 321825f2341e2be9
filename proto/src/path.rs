//! One path of a bundle: its tunnel, its health, the way there, and what is said on it.

mod handshake;
mod send;

use crate::balance::Berth;
use crate::config::PathConfig;
use crate::health::{Health, Surroundings, Transition, Wants};
use crate::mtu::Discovery;
use crate::node::PathState;
use crate::outer::Outer;
use crate::output::Route;
use crate::peer::Context;
use crate::policy::Measured;
use crate::received::ReceivedLog;
use crate::replay::{Replay, Ticket};
use crate::schedule::Standing;
use crate::sent::Judged;
use crate::shape::{Load, Popped, Progress, Shaper, Waiting};
use crate::snapshot::{Marks, PathSnapshot, Traffic};
use crate::throttle::{Look, Throttle};
use crate::tunnel::{Keys, PathRef, Role, Suite, Tunnel};
use crate::wire::{Item, Receipt};
use crate::{Instant, Keepalive, LinkId, PathId, PeerId, TunnelKind, Uplink};
use std::net::SocketAddr;
use std::time::Duration;

/// How often a tunnel's clock moves: at an initiator also the pace of the last tries of a handshake; a responder only expires
/// sessions, and a core has many.
const TICK_INITIATOR: Duration = Duration::from_millis(250);
const TICK_RESPONDER: Duration = Duration::from_secs(1);

/// A loss that is alone is repaired once in so many packets that arrive: what a break of a millisecond has swallowed is not
/// lost then, and what a way loses all the time costs two copies in a thousand and no more.
const REPAIR_COSTS: u32 = 512;
/// So many at once, if there were none for long.
const MOST_REPAIRS: u32 = 4;

/// A call's loss is repaired once in so many packets that arrive, also where a queue was full, which the call has not filled.
const CALL_REPAIR_COSTS: u32 = 16;

/// What may be repaired: earned by what arrives.
#[derive(Debug)]
struct Budget {
    earned: u32,
    costs: u32,
}

impl Budget {
    fn of(costs: u32) -> Budget {
        Budget { earned: costs * MOST_REPAIRS, costs }
    }

    fn earn(&mut self) {
        self.earned = (self.earned + 1).min(self.costs * MOST_REPAIRS);
    }

    /// Whether there is enough for one.
    fn spend(&mut self) -> bool {
        let enough = self.earned >= self.costs;
        if enough {
            self.earned -= self.costs;
        }
        enough
    }
}

/// One path: its tunnel, its health, and the way there.
pub(crate) struct Path {
    pub(crate) at: PathRef,
    pub(crate) config: PathConfig,
    pub(crate) tunnel: Box<dyn Tunnel>,
    /// Something came for the tunnel, which may have something to send.
    pub(crate) stirred: bool,
    pub(crate) health: Health,
    pub(crate) received: ReceivedLog,
    pub(crate) mtu: Discovery,
    pub(crate) shaper: Shaper,
    /// Where the peer may be, best first; an initiator's.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Where the peer is and how to get there.
    pub(crate) route: Option<Route>,
    /// When the tunnel's clock is to be moved; `None`: nothing has happened on it yet.
    pub(crate) tick_at: Option<Instant>,
    /// When HELLO is to be said again; `None`: it was answered, or has been said often enough.
    pub(crate) hello_at: Option<Instant>,
    pub(crate) hellos: u32,
    /// The epoch of the peer that has heard our HELLO by this path: it need not be said again with each session.
    pub(crate) told: Option<u64>,
    /// The peer has acknowledged a HELLO of ours.
    pub(crate) introduced: bool,
    /// What the outer headers of its datagrams show.
    pub(crate) outer: Outer,
    /// The peer hands on to a packet what its outer header has met.
    pub(crate) takes_marks: bool,
    pub(crate) marks: Marks,
    /// The place of this path in the order of the box, where the box is the other end and has said it.
    wished: Option<u8>,
    /// How the path is asked while idle, if that is known: a box's by its uplink, a core's by HELLO.
    pub(crate) keepalive: Option<Keepalive>,
    /// Of the policy in force here, of which HELLO tells.
    policy_hash: u64,
    /// Its link has carried what it may this month: only classes that may go on take it.
    pub(crate) capped: bool,
    /// The other path over its uplink is the one that is to carry the uplink's traffic.
    pub(crate) stands_by: bool,
    /// Its uplink may have either kind of tunnel: whether this one is throttled is looked at.
    pub(crate) either: bool,
    pub(crate) throttle: Throttle,
    /// The peer has found that it is, in its direction.
    pub(crate) throttled_there: bool,
    /// When we last began a handshake ourselves.
    pub(crate) initiated_at: Option<Instant>,
    /// Initiations since the path last worked: tells whose turn it is.
    pub(crate) attempts: usize,
    /// Losses that are alone.
    repairs: Budget,
    /// The same of calls.
    call_repairs: Budget,
    /// A handshake is wanted whatever the age of the session.
    pub(crate) initiation_wanted: bool,
    pub(crate) tx: Traffic,
    pub(crate) rx: Traffic,
}

impl Path {
    pub(crate) fn new(
        config: PathConfig,
        at: PathRef,
        role: Role,
        suite: &dyn Suite,
        tun_mtu: u16,
        now: Instant,
    ) -> Self {
        let keys = Keys { local: config.local_key.clone(), remote: config.remote_key };
        let tunnel = suite.tunnel(config.kind, keys, role, now);
        let mtu = Discovery::new(tun_mtu, tunnel.overhead().most);
        Path {
            at,
            tunnel,
            stirred: false,
            // A responder's path is there as soon as somebody speaks on it; an initiator's when its uplink is.
            health: Health::new(now, role == Role::Responder),
            received: ReceivedLog::default(),
            mtu,
            shaper: Shaper::default(),
            endpoints: Vec::new(),
            route: None,
            tick_at: None,
            hello_at: None,
            hellos: 0,
            told: None,
            introduced: false,
            outer: Outer::default(),
            takes_marks: false,
            marks: Marks::default(),
            wished: None,
            keepalive: None,
            policy_hash: 0,
            capped: false,
            stands_by: role == Role::Responder && config.kind == TunnelKind::Quic,
            either: false,
            throttle: Throttle::default(),
            throttled_there: false,
            initiated_at: None,
            attempts: 0,
            repairs: Budget::of(REPAIR_COSTS),
            call_repairs: Budget::of(CALL_REPAIR_COSTS),
            initiation_wanted: false,
            tx: Traffic::default(),
            rx: Traffic::default(),
            config,
        }
    }

    /// By what it is told from the others of its bundle: see [`crate::MAX_PATHS`].
    pub(crate) fn number(&self) -> u8 {
        self.at.path
    }

    /// The name that the outside knows it by.
    pub(crate) fn id(&self, peer: PeerId) -> PathId {
        PathId { peer, slot: self.config.slot, tunnel: self.config.kind }
    }

    /// Takes the next packet that waited and need not any more.
    pub(crate) fn pop_waiting(&mut self, now: Instant) -> Option<Popped> {
        let load = self.load();
        self.shaper.pop(now, load)
    }

    /// What the shaper must know.
    fn load(&self) -> Load {
        let least_rtt = self.health.least_rtt().unwrap_or_default();
        // A queue that makes the round trip longer is taken for one on the way there. Where the way itself has changed the
        // variation says more of that than of the next packet.
        let latency = |(smoothed, variation): (Duration, Duration)| {
            smoothed + (variation * 4).clamp(Duration::from_millis(20), Duration::from_millis(50))
        };
        let latency = self.health.rtt().map_or(least_rtt, latency);
        let queued = self.health.quality().delay_change().unwrap_or_default();
        let (under_way, oldest) = self.health.under_way();
        Load { under_way, oldest, least_rtt, latency: latency.saturating_sub(least_rtt / 2), queued }
    }

    /// When something that waits may go, if no receipt comes before.
    pub(crate) fn room_at(&self, now: Instant) -> Option<Instant> {
        self.shaper.ready_at(now, self.load())
    }

    /// Makes a packet wait. `false`: too many do.
    pub(crate) fn make_wait(&mut self, packet: Waiting) -> bool {
        let load = self.load();
        self.shaper.push(packet, load)
    }

    /// Whether a packet may be sent at once.
    pub(crate) fn has_room(&self, now: Instant, urgent: bool) -> bool {
        self.shaper.admits(now, self.load(), urgent)
    }

    /// Whether a call that is sent now would wait in a queue on the way, for longer than it should.
    pub(crate) fn delays_calls(&self, now: Instant) -> bool {
        self.shaper.delays_calls(now, self.load())
    }

    /// How long a packet takes to arrive, as far as is known.
    pub(crate) fn latency(&self) -> Duration {
        self.load().latency
    }

    /// What it carries, in octets a second, as far as is known.
    pub(crate) fn carries(&self, now: Instant) -> u64 {
        self.shaper.carries(now, self.load())
    }

    /// Time has passed.
    pub(crate) fn wake(&mut self, now: Instant) {
        let load = self.load();
        self.shaper.wake(now, load);
    }

    /// Whether something waits that would go by this path, as by others, if it had room.
    pub(crate) fn want_room(&mut self, now: Instant, wanted: bool) {
        let load = self.load();
        self.shaper.set_wanted(now, load, wanted);
    }

    /// When it has room again for that, if no receipt comes before.
    pub(crate) fn next_room_at(&self, now: Instant, urgent: bool) -> Instant {
        self.shaper.room_at(now, self.load(), urgent)
    }

    /// When a probe of the path MTU is due. Only a path that answers what is small is probed: elsewhere a lost probe would
    /// say nothing.
    pub(crate) fn probe_at(&self, active: bool) -> Option<Instant> {
        let answers = matches!(self.health.state(), PathState::Up | PathState::Impaired);
        self.mtu.deadline(active).filter(|_| answers && self.tunnel.has_session())
    }

    /// Sends the probe of the path MTU that is due: a PING as large as the size that is tried. It is no question to the
    /// path's health, which must not suffer by its loss.
    pub(crate) fn probe(&mut self, ctx: &mut Context<'_>, active: bool) {
        if self.probe_at(active).is_none_or(|at| at > ctx.now) {
            return;
        }
        let Some(size) = self.mtu.on_timeout(ctx.now, self.health.patience()) else { return };
        if let Some(id) = self.send_padded(ctx, size, false) {
            self.mtu.on_probe(id);
        }
    }

    /// Lower is preferred: as this end is told, or else as the other one wishes.
    pub(crate) fn preference(&self) -> u8 {
        self.config.preference.or(self.wished).unwrap_or(self.config.slot)
    }

    /// Takes a receipt for packets of this path, which came by the path of number `via`.
    pub(crate) fn on_receipt(
        &mut self,
        receipt: &Receipt,
        via: u8,
        now: Instant,
        replay: &mut Replay,
    ) -> Option<Transition> {
        self.mtu.on_receipt(receipt, now);
        let queue = self.health.has_own_queue() || self.shaper.is_held();
        let load = self.load();
        let (oldest, overflows) = (load.oldest, self.shaper.overflows(load));
        let (number, introduced, mtu) = (self.number(), &mut self.introduced, &mut self.mtu);
        let (repairs, call_repairs) = (&mut self.repairs, &mut self.call_repairs);
        let (mut octets, mut packets, mut lost, mut lost_octets) = (0, 0, 0, 0);
        let transition = self.health.on_receipt(receipt, via, now, |judged| {
            let (len, arrived) = match judged {
                Judged::Arrived(len, ticket) => {
                    replay.on_acknowledged(ticket);
                    *introduced |= ticket == Ticket::HELLO;
                    (octets, packets) = (octets + u64::from(len), packets + 1);
                    repairs.earn();
                    call_repairs.earn();
                    (len, true)
                }
                Judged::Lost(len, ticket) => {
                    // A queue that was full is the flow's own to notice, where the path is its only one.
                    if replay.was_bonded(ticket)
                        || (replay.was_urgent(ticket) && call_repairs.spend())
                        || (!queue && repairs.spend())
                    {
                        replay.forget_try(ticket, number);
                    } else {
                        replay.on_lost(ticket, now);
                    }
                    (lost, lost_octets) = (lost + 1, lost_octets + u64::from(len));
                    (len, false)
                }
                // What a break has swallowed is sent again.
                Judged::LostInARow(ticket) => {
                    replay.forget_try(ticket, number);
                    return false;
                }
            };
            mtu.on_judged(len, arrived);
            len <= mtu.size() && !overflows
        });
        if self.either {
            self.throttle.on_judged(octets, packets, lost.into());
        }
        if packets > 0 {
            let Load { under_way, least_rtt, queued, .. } = self.load();
            let octets = octets + self.framing() * u64::from(packets);
            let received_us = receipt.received_us;
            let progress =
                Progress { octets, packets, lost, lost_octets, under_way, oldest, received_us, queued, least_rtt };
            self.shaper.on_progress(now, &progress);
        }
        if self.health.state() == PathState::Up && self.astray_at().is_none() {
            self.attempts = 0;
        }
        transition
    }

    /// The way to the peer is this one. Another address may be behind narrower links; another port is a NAT that forgot.
    pub(crate) fn move_to(&mut self, route: Route) {
        let place = |route: Route| (route.link, route.to.ip());
        if self.route.map(place) != Some(place(route)) {
            self.mtu.begin_anew();
        }
        self.route = Some(route);
    }

    /// How the uplink can be used now, if at all.
    pub(crate) fn set_uplink(&mut self, now: Instant, link: LinkId, uplink: Option<&Uplink>) -> Option<Transition> {
        self.endpoints = uplink.map_or(Vec::new(), |uplink| uplink.endpoints(self.config.kind).to_vec());
        let preference = uplink.map(|uplink| uplink.preference).or(self.config.preference);
        let moved = preference != std::mem::replace(&mut self.config.preference, preference);
        let keepalive = uplink.map(|uplink| uplink.keepalive).or(self.keepalive);
        let other = keepalive != std::mem::replace(&mut self.keepalive, keepalive);
        if (other || moved) && self.told.is_some() {
            self.begin_hello(now);
        }
        if self.route.is_some_and(|route| self.endpoints.contains(&route.to)) {
            return None;
        }
        let known = self.tunnel.route().filter(|route| self.endpoints.contains(&route.to));
        let route = known.or_else(|| self.endpoints.first().map(|&to| Route { link, to, from: None }));
        if self.route == route {
            return None;
        }
        match route {
            Some(route) => self.move_to(route),
            None => self.route = None,
        }
        self.attempts = 0;
        if route.is_some() {
            self.tick_at.get_or_insert(now);
            self.health.on_other_way();
        }
        self.health.on_presence(now, route.is_some())
    }

    /// The policy in force is the one with this hash. The peer is told.
    pub(crate) fn set_policy_hash(&mut self, now: Instant, hash: u64) {
        if std::mem::replace(&mut self.policy_hash, hash) != hash && self.told.is_some() {
            self.begin_hello(now);
        }
    }

    /// The uplink is there, and its other tunnel is used: nothing more goes by this one, and nothing is asked.
    pub(crate) fn rest(&mut self, now: Instant) -> Option<Transition> {
        self.endpoints.clear();
        self.route.take()?;
        self.health.rest(now)
    }

    /// Whether it rests. What the peer has sent before it knew is taken, and nothing is said to it: it would take the path for one
    /// that works.
    pub(crate) fn rests(&self) -> bool {
        self.either && self.config.link.is_some() && self.route.is_none()
    }

    /// The uplink is another one, or is gone: what was found of the one before says nothing of it.
    pub(crate) fn on_other_uplink(&mut self) {
        (self.throttle, self.throttled_there) = (Throttle::default(), false);
    }

    /// It works again, and the peer may not have heard what was said last.
    pub(crate) fn on_up_again(&mut self, now: Instant) {
        if self.told.is_none() && self.tunnel.has_session() {
            self.begin_hello(now);
        }
    }

    /// Whether it is the one over its uplink that stands by, and whether there is another. The peer is told.
    pub(crate) fn set_stands_by(&mut self, now: Instant, stands_by: bool) {
        let before = std::mem::replace(&mut self.stands_by, stands_by);
        if before != stands_by && self.tunnel.has_session() {
            self.begin_hello(now);
        }
    }

    /// What its tunnel's throttle is judged by.
    fn look(&self, may_try: bool) -> Look {
        let state = self.health.state();
        Look {
            failing: matches!(state, PathState::Impaired | PathState::Down),
            held: if self.shaper.is_held() { self.shaper.rate() } else { None },
            round_trip: self.health.rtt().map_or(Duration::ZERO, |(smoothed, _)| smoothed),
            may_try: may_try && self.stands_by && self.alive(),
        }
    }

    /// Judges whether it is throttled, where the uplink has another tunnel; the peer is told what is new. `may_try`: the other
    /// one carries traffic, and has room.
    pub(crate) fn judge_throttle(&mut self, now: Instant, may_try: bool) {
        if self.either && self.throttle.judge(now, self.look(may_try)) && self.tunnel.has_session() {
            self.begin_hello(now);
        }
    }

    /// When it is to be tried whether it is throttled still.
    pub(crate) fn train_at(&self, may_try: bool) -> Option<Instant> {
        self.throttle.deadline(self.look(may_try).may_try)
    }

    /// Sends the probe that is due of those that try it.
    pub(crate) fn send_train(&mut self, ctx: &mut Context<'_>, may_try: bool) {
        let (look, largest) = (self.look(may_try), self.mtu.size());
        if let Some(len) = self.throttle.probe(ctx.now, look, largest) {
            self.send_padded(ctx, len, true);
        }
    }

    /// Its link is at its cap, or not any more. The peer is told.
    pub(crate) fn set_capped(&mut self, now: Instant, capped: bool) {
        if std::mem::replace(&mut self.capped, capped) != capped && self.told.is_some() {
            self.begin_hello(now);
        }
    }

    pub(crate) fn standing(&self, now: Instant) -> Option<Standing> {
        let health = &self.health;
        let session = self.tunnel.has_session() && self.route.is_some();
        // A doubt makes an impaired path no better.
        let state = match health.state() {
            PathState::Suspect if health.is_impaired() => PathState::Impaired,
            state => state,
        };
        Standing::of(state, health.on_probation(now), now.since(health.since()), session)
    }

    /// What it has to offer to flows that are balanced.
    pub(crate) fn berth(&self, now: Instant) -> Berth {
        let delivered = self.health.quality().delivery_rate(now) / 8;
        Berth { path: self.number(), rate: self.shaper.rate(), delivered }
    }

    /// What it is like, if that is known. `fastest`: the round trip and [`crate::quality::Quality::transit_us`] of the path with
    /// the shortest of all round trips, of which half is the way there; by the receiver's clock the others compare with it.
    pub(crate) fn measured(&self, now: Instant, fastest: Option<(Duration, u32)>) -> Option<Measured> {
        let (_, jitter) = self.health.rtt()?;
        let (round_trip, transit) = fastest?;
        let later = self.health.quality().transit_us()?.wrapping_sub(transit).cast_signed();
        let later = Duration::from_micros(u64::try_from(later).unwrap_or(0));
        let [loss, ..] = self.health.quality().loss(now);
        Some(Measured { latency: round_trip / 2 + later, jitter, loss: loss.unwrap_or(0.0) })
    }

    pub(crate) fn metered(&self) -> bool {
        self.keepalive.is_some_and(|keepalive| keepalive.metered)
    }

    pub(crate) fn alive(&self) -> bool {
        matches!(self.health.state(), PathState::Up | PathState::Suspect | PathState::Impaired)
    }

    /// Sends the questions that its health wants asked.
    pub(crate) fn ask(&mut self, ctx: &mut Context<'_>, wants: Wants, role: Role) {
        let asked = wants.ping && self.send_item(ctx, &Item::Ping);
        if let Some(len) = wants.large {
            self.send_padded(ctx, len, true);
        }
        if role == Role::Initiator && (wants.initiation || (wants.ping && !asked)) {
            self.initiate(ctx);
        }
    }

    /// What is due on it. `receipts`: the peer sends them.
    pub(crate) fn on_timeout(
        &mut self,
        ctx: &mut Context<'_>,
        around: Surroundings,
        receipts: bool,
        role: Role,
    ) -> Option<Transition> {
        if self.tunnel.deadline().is_some_and(|at| at <= ctx.now) {
            self.tunnel.on_timeout(ctx.now, ctx.indices.of(self.at));
            self.flush(ctx);
        }
        if self.tick_at? <= ctx.now {
            self.tick_at = Some(ctx.now + if role == Role::Initiator { TICK_INITIATOR } else { TICK_RESPONDER });
            // A peer that sends receipts has no use for WireGuard's own keepalives.
            let route = self.route.filter(|_| !receipts);
            self.send_own(ctx, route, |tunnel, now, indices, dst| {
                let handshake = tunnel.tick(now, indices, dst);
                (handshake.send, handshake.id)
            });
            self.flush(ctx);
            if role == Role::Initiator {
                if std::mem::take(&mut self.initiation_wanted) || self.astray_at().is_some_and(|at| at <= ctx.now) {
                    self.initiate(ctx);
                }
                self.rekey_if_due(ctx);
            }
        }
        self.say_hello_if_due(ctx);
        let session = self.tunnel.has_session();
        if receipts && (session || !self.alive()) {
            let (transition, wants) = self.health.on_timeout(around, ctx.now);
            self.ask(ctx, wants, role);
            transition
        } else {
            self.health.on_session(ctx.now, session)
        }
    }

    /// `fastest`: as for [`Path::measured`].
    pub(crate) fn snapshot(
        &self,
        peer: PeerId,
        tun_mtu: u16,
        fastest: Option<(Duration, u32)>,
        now: Instant,
    ) -> PathSnapshot {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let rtt = self.health.rtt();
        PathSnapshot {
            id: self.id(peer),
            state: self.health.state(),
            reason: self.health.reason().to_owned(),
            since_s: now.since(self.health.since()).as_secs_f64(),
            capped: self.capped,
            stands_by: self.stands_by,
            throttled: self.throttle.share().is_some() || self.throttled_there,
            endpoint: self.route.map(|route| route.to),
            rtt_ms: rtt.map(|(smoothed, _)| ms(smoothed)),
            rtt_var_ms: rtt.map(|(_, variation)| ms(variation)),
            rtt_min_ms: self.health.least_rtt().map(ms),
            latency_ms: self.measured(now, fastest).map(|measured| ms(measured.latency)),
            loss: rtt.map(|_| self.health.loss()),
            loss_spans: self.health.quality().loss(now),
            delivery_rate: self.health.quality().delivery_rate(now),
            delay_change_ms: self.health.quality().delay_change().map(ms),
            lost: self.health.lost(),
            waiting: Traffic { packets: self.shaper.held().0 as u64, bytes: self.shaper.held().1 },
            rate: self.shaper.rate().map(|octets| octets * 8),
            marks: self.marks,
            mtu: self.mtu.measured().map(|_| self.packet_mtu(tun_mtu)),
            handshake_s: self.tunnel.session_since().map(|since| now.since(since).as_secs_f64()),
            tx: self.tx,
            rx: self.rx,
        }
    }
}
