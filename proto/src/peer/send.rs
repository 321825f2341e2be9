//! What this end sends to a peer: packets by the paths that their flows take, again where a path fails them, and receipts.

use super::{Context, Peer};
use crate::balance::{self, Berth};
use crate::counters::DropReason;
use crate::flows::FlowTable;
use crate::health::RECEIPT_INTERVAL;
use crate::node::PathState;
use crate::packet::IpView;
use crate::path::Path;
use crate::policy::{ClassId, Facts, Mode, Order, Preference, Priority};
use crate::replay::{Moving, Outgoing, Sort, Ticket};
use crate::schedule::{Course, MOVE_GRACE, draw, same_uplink};
use crate::shape::Popped;
use crate::wire::{self, Hello, Item, MAX_MESSAGE, MOST_TRAILER, Writer};
use crate::{Instant, MAX_PATHS, slot_of};
use std::time::Duration;

/// How much before they are due receipts go with a packet that is sent anyway, and so cost 26 octets instead of 102: one
/// in a stream of a thousand packets a second.
const RIDES_EARLY: Duration = Duration::from_millis(1);

/// By how much a packet by one path may arrive later than one that goes by the other at the same time.
fn later_by(paths: &[Path], slow: u8, fast: u8) -> Duration {
    let path = |number| paths.iter().find(|path| path.number() == number);
    path(slow)
        .zip(path(fast))
        .map_or(Duration::ZERO, |(slow, fast)| slow.shaper.wait() + slow.health.later_than(&fast.health))
}

/// Receipts that are about to be sent.
struct Receipts<'a> {
    /// As a link message.
    message: &'a [u8],
    /// The paths by which something came that asks for them.
    with_news: [bool; MAX_PATHS],
}

/// What the fragments of a packet carry: each life of this end counts from a number of its own, so that what is under way
/// of the one before is not taken for another packet's.
pub(crate) fn fragment_number(epoch: u64, count: u64) -> u32 {
    (epoch as u32).wrapping_add(count as u32)
}

/// Where a flow of a balanced class goes: it has a place, or gets one; and now and then one of the class gets another.
fn balanced(
    paths: &[Path],
    flows: &mut FlowTable,
    (class, course): (ClassId, &mut Course),
    (flow, now): (u64, Instant),
) -> Option<u8> {
    let spread = course.spread;
    let place = flows.find(flow, now).place.and_then(|path| same_uplink(spread, path));
    if place.is_some() && !course.balance.is_due(now) {
        return place;
    }
    let mut berths = [Berth::default(); MAX_PATHS];
    let used = paths.iter().filter(|path| spread & 1 << path.number() != 0);
    let count = berths.iter_mut().zip(used).map(|(berth, path)| *berth = path.berth(now)).count();
    course.balance.move_one(flows, class, now, &berths[..count]);
    let place = place.or_else(|| balance::place(flows, class, now, &berths[..count]));
    flows.find(flow, now).place = place;
    place
}

/// The paths that live, the best first: without an order of policy's, all; else without those that are not to be
/// taken.
fn ranked(paths: &[Path], now: Instant, order: Option<Order<'_>>) -> [Option<u8>; MAX_PATHS] {
    let mut ranked = [None; MAX_PATHS];
    let standing = paths.iter().filter(|path| path.alive()).filter_map(|path| {
        let place = path.preference();
        let mut preference = match order {
            Some(order) => order.preference(path.config.slot, place, path.capped)?,
            None => Preference { within_limit: true, listed: true, stands_by: false, place },
        };
        preference.stands_by = path.stands_by;
        Some((path.standing(now)?, preference, path.number()))
    });
    for (place, of) in ranked.iter_mut().zip(standing) {
        *place = Some(of);
    }
    ranked.sort_unstable_by_key(|of| (of.is_none(), *of));
    ranked.map(|of| of.map(|(_, _, path)| path))
}

impl Peer {
    /// An inner packet for the peer, cut to its length.
    pub(crate) fn send_packet(&mut self, ctx: &mut Context<'_>, view: &IpView, packet: &[u8], flow: u64) {
        self.last_traffic = Some(ctx.now);
        let direction = self.direction();
        let Peer { paths, flows, courses, config, drops, .. } = self;
        let known = flows.find(flow, ctx.now);
        let class = known.class(|| config.policy.classify(&Facts::of(view, packet, direction), config.open_windows));
        let course = courses.get_mut(usize::from(class)).map(|course| {
            course.used = Some(ctx.now);
            (course.current, course)
        });
        let Some((Some(current), course)) = course else {
            drops.add(DropReason::NoPath);
            return;
        };
        let mode = &config.policy.class(class).treatment(direction).mode;
        let by_itself = matches!(mode, Mode::Share(_) | Mode::Balance);
        let (wanted, moved_at) = match mode {
            Mode::Share(_) => {
                let treatment = config.policy.class(class).treatment(direction);
                let drawn = draw(flow, course.spread, |slot| treatment.weight(slot));
                (drawn.unwrap_or(current), course.spread_at)
            }
            Mode::Balance => {
                let place = balanced(paths, flows, (class, course), (flow, ctx.now));
                (place.unwrap_or(current), course.spread_at)
            }
            Mode::Prefer | Mode::Duplicate(_) | Mode::Bond => (current, course.moved_at),
        };
        let known = flows.find(flow, ctx.now);
        known.octets += packet.len() as u64;
        let mut alive = [false; MAX_PATHS];
        for path in &*paths {
            // An impaired one keeps nobody: what flows there is lost.
            alive[usize::from(path.number())] = path.alive() && path.health.state() != PathState::Impaired;
        }
        let (path, left) = known.assign(ctx.now, wanted, alive, moved_at, |from| later_by(paths, from, wanted));
        course.tx.add(packet.len());
        if !by_itself
            && ctx.now.since(moved_at) >= MOVE_GRACE
            && let Some(from) = course.leaving.take()
        {
            self.overtake(ctx, from, wanted, Moving::Class(class));
        } else if let Some(from) = left.filter(|_| by_itself || moved_at <= self.policy_since) {
            // It was balanced anew, or before that it was of a class that went another way.
            self.overtake(ctx, from, wanted, Moving::Flow(flow));
        }
        if !self.takes_copies() {
            self.send_unkept(ctx, path, packet);
            return;
        }
        self.tx.add(packet.len());
        let class_of = self.config.policy.class(class);
        let sort = Sort { flow, class, priority: class_of.priority };
        let (copies, bonds) = match class_of.treatment(direction).mode {
            Mode::Duplicate(copies) => (usize::from(copies), false),
            Mode::Bond => (1, self.can(Hello::SEQUENCES)),
            Mode::Prefer | Mode::Share(_) | Mode::Balance => (1, false),
        };
        let place = self.replay.keep(ctx.now, packet, sort, &mut self.drops);
        if bonds {
            self.bond(ctx, class, place);
            return;
        }
        if copies > 1 {
            self.offer_copies(ctx, place, (class, path), copies);
            return;
        }
        let (now, urgent) = (ctx.now, self.replay.is_urgent(place));
        let of = |number: u8| self.paths.iter().find(move |path| path.number() == number);
        let doubtful = of(path).is_some_and(|path| path.health.state() == PathState::Suspect);
        let slow = urgent && of(path).is_some_and(|path| path.delays_calls(now));
        // What is suspected may be dead, and the other may be dead as well and not be known to be. And what a call sends into a
        // queue that is to be emptied first comes too late, if not by another path as well: that is worth its few octets
        // where they cost nothing.
        let relieves =
            |other: &Path| slot_of(other.number()) != slot_of(path) && !other.metered() && !other.delays_calls(now);
        let helps = |other: &u8| of(*other).is_some_and(|other| doubtful || relieves(other));
        let other = (doubtful || slow)
            .then(|| self.ranked(now, class).into_iter().flatten().find(|other| *other != path && helps(other)))
            .flatten();
        self.offer(ctx, path, place);
        if let Some(other) = other {
            self.offer(ctx, other, place);
        }
    }

    /// Gives a kept packet to so many paths at once: to `path`, and to others over which its class spreads, the best
    /// first.
    fn offer_copies(&mut self, ctx: &mut Context<'_>, place: u64, (class, path): (ClassId, u8), copies: usize) {
        self.replay.wants_all(place);
        let spread = self.courses.get(usize::from(class)).map_or(0, |course| course.spread);
        let ranked = self.ranked(ctx.now, class);
        let others = ranked.into_iter().flatten().filter(|other| *other != path && spread & 1 << other != 0);
        self.offer(ctx, path, place);
        for other in others.take(copies - 1) {
            self.offer(ctx, other, place);
        }
    }

    /// A packet for a peer that takes no copies, or does not know yet that this end has started anew. It is not kept, since it
    /// could not be sent again, and does not wait: what room there is only receipts would tell.
    fn send_unkept(&mut self, ctx: &mut Context<'_>, number: u8, packet: &[u8]) {
        let (cut, eliciting) = (self.puts_together(), self.receipts());
        let Peer { paths, fragmented, .. } = self;
        let Some(path) = paths.iter_mut().find(|path| path.number() == number) else { return };
        let sent = if cut {
            let outgoing = Outgoing { packet, origin: None, sequence: None, ticket: Ticket::NONE, urgent: false };
            path.send_packet(ctx, &outgoing, &[], cut, fragmented).is_some()
        } else {
            path.send_whole(ctx, packet, &[], Ticket::NONE, eliciting).is_some()
        };
        match sent {
            true => self.tx.add(packet.len()),
            false => self.drops.add(DropReason::NoPath),
        }
    }

    /// Gives a kept packet to the path of this number: it goes at once, or waits there.
    fn offer(&mut self, ctx: &mut Context<'_>, number: u8, place: u64) {
        let Peer { paths, replay, drops, .. } = self;
        let Some(path) = paths.iter_mut().find(|path| path.number() == number) else { return };
        let Some(waiting) = replay.assign(ctx.now, place, number) else { return };
        if !waiting.copy {
            path.throttle.on_offered(usize::from(waiting.len));
        }
        if path.has_room(ctx.now, waiting.priority == Priority::Realtime) {
            self.transmit(ctx, number, place);
        } else if !path.make_wait(waiting) && replay.give_up(place, number) {
            drops.add(DropReason::ReplayBound);
        }
    }

    /// Sends a kept packet by the path of this number. Receipts that are wanted ride on it.
    pub(super) fn transmit(&mut self, ctx: &mut Context<'_>, number: u8, place: u64) {
        let first = !self.replay.is_sent(place);
        let mut buffer = [0; MAX_MESSAGE];
        let receipts = if first { self.receipts_to_ride(ctx.now, number, &mut buffer) } else { None };
        let cut = self.puts_together();
        let Peer { paths, replay, copies, fragmented, .. } = self;
        let Some(path) = paths.iter_mut().find(|path| path.number() == number) else { return };
        let trailer = receipts.as_ref().map_or(&[][..], |receipts| wire::items_of(receipts.message));
        let trailer = if trailer.len() <= MOST_TRAILER { trailer } else { &[] };
        let (before, mut ridden) = (path.tx.bytes, false);
        replay.transmit(place, number, |outgoing| {
            let (origin, datagrams, rode) = path.send_packet(ctx, &outgoing, trailer, cut, fragmented)?;
            ridden = rode;
            if !first {
                copies.add((path.tx.bytes - before) as usize);
            }
            Some((origin, datagrams))
        });
        if let Some(receipts) = receipts {
            self.send_receipts(ctx, &receipts, ridden.then_some(number));
        }
    }

    /// Marks a kept packet, which the path of this number has made wait for too long.
    pub(super) fn mark(&mut self, number: u8, place: u64) {
        self.replay.mark(place);
        if let Some(path) = self.path_mut(number) {
            path.marks.made += 1;
        }
    }

    /// Sends what waits and need not wait any more.
    pub(super) fn release(&mut self, ctx: &mut Context<'_>) {
        for at in 0..self.paths.len() {
            let number = self.paths[at].number();
            while let Some(popped) = self.paths[at].pop_waiting(ctx.now) {
                let (reason, waiting) = match popped {
                    Popped::Send(waiting) | Popped::Mark(waiting) => {
                        if self.replay.claim(&waiting, number) {
                            if matches!(popped, Popped::Mark(_)) {
                                self.mark(number, waiting.place);
                            }
                            self.transmit(ctx, number, waiting.place);
                        }
                        continue;
                    }
                    Popped::Aged(waiting) => (DropReason::Aged, waiting),
                    Popped::Drop(waiting) => (DropReason::Congestion, waiting),
                };
                if self.replay.give_up(waiting.place, number) {
                    self.drops.add(reason);
                }
            }
        }
        self.feed_all(ctx);
    }

    /// Sends again what no path that works has carried, by the best that have not.
    pub(super) fn rescue(&mut self, ctx: &mut Context<'_>) {
        let Some(bad) = self.rescue.take() else { return };
        let works = |path: &&Path| path.health.state() == PathState::Up && path.standing(ctx.now).is_some();
        let good = self.paths.iter().filter(works).fold(0, |good, path| good | 1 << path.number());
        let mut list = std::mem::take(&mut self.list);
        let direction = self.direction();
        let Peer { paths, replay, drops, config, .. } = self;
        let targets = |class| ranked(paths, ctx.now, Some(config.policy.order(class, direction)));
        replay.rescue(ctx.now, bad, good, targets, drops, &mut list);
        self.offer_all(ctx, list);
    }

    /// Flows that do not pause go from one path to a faster one, with what they have under way: all that might still
    /// arrive by the old path after what is sent by the new one goes by the new one too, in front of it. So they keep
    /// their order, and nobody has to wait for the slower path.
    fn overtake(&mut self, ctx: &mut Context<'_>, from: u8, to: u8, who: Moving) {
        if from == to || !self.takes_copies() {
            return;
        }
        let under_way = later_by(&self.paths, from, to);
        let mut list = std::mem::take(&mut self.list);
        self.replay.overtake(ctx.now, under_way, (from, to), who, &mut list);
        self.offer_all(ctx, list);
    }

    /// Gives each packet listed to its path. The list is emptied and used again.
    fn offer_all(&mut self, ctx: &mut Context<'_>, mut list: Vec<(u8, u64)>) {
        for (path, place) in list.drain(..) {
            self.offer(ctx, path, place);
        }
        self.list = list;
    }

    /// The paths that live, the best for packets of a class first, without those that they never take.
    fn ranked(&self, now: Instant, class: ClassId) -> [Option<u8>; MAX_PATHS] {
        ranked(&self.paths, now, Some(self.config.policy.order(class, self.direction())))
    }

    // ---- receipts ------------------------------------------------------------------------------------------------

    /// Something came that asks for a receipt: at once if that was all it was for or none went out lately, else when
    /// the interval is over.
    pub(super) fn want_receipt(&mut self, now: Instant, at_once: bool) {
        let due = match self.last_receipt {
            Some(last) if !at_once => (last + RECEIPT_INTERVAL).max(now),
            _ => now,
        };
        self.receipt_due = Some(self.receipt_due.map_or(due, |other| other.min(due)));
    }

    /// Takes the receipts that are wanted, as a link message.
    fn take_receipts<'a>(&mut self, now: Instant, buffer: &'a mut [u8; MAX_MESSAGE]) -> Option<Receipts<'a>> {
        self.receipt_due = None;
        self.last_receipt = Some(now);
        let mut message = Writer::new(buffer);
        let mut with_news = [false; MAX_PATHS];
        for path in self.paths.iter_mut().filter(|path| !path.rests()) {
            let number = path.number();
            with_news[usize::from(number)] = path.received.has_news();
            path.received.take_receipts(number, now, |receipt| {
                message.add(&Item::Receipt(receipt));
            });
        }
        (!message.is_empty()).then(|| Receipts { message: message.finish(), with_news })
    }

    /// Takes the receipts that are wanted, if a packet that is about to be sent by the path of this number can carry them: only
    /// where they go by themselves on another one too. What drops the large packets of a path would drop them as well.
    fn receipts_to_ride<'a>(
        &mut self,
        now: Instant,
        number: u8,
        buffer: &'a mut [u8; MAX_MESSAGE],
    ) -> Option<Receipts<'a>> {
        if self.receipt_due? > now + RIDES_EARLY || !self.takes_copies() {
            return None;
        }
        let others = self.paths.iter().filter(|path| path.number() != number && path.alive() && !path.metered());
        if others.count() == 0 {
            return None;
        }
        self.take_receipts(now, buffer)
    }

    /// Sends the receipts that are due by themselves.
    pub(super) fn send_due_receipts(&mut self, ctx: &mut Context<'_>) {
        if self.receipt_due.is_none_or(|due| due > ctx.now) {
            return;
        }
        let mut buffer = [0; MAX_MESSAGE];
        if let Some(receipts) = self.take_receipts(ctx.now, &mut buffer) {
            self.send_receipts(ctx, &receipts, None);
        }
    }

    /// Sends receipts on every path with news and, for the case that this one's way back is broken, on one more. That one
    /// costs: on a metered path, or when nobody waits, only where there is a doubt. `ridden`: they went with a packet by
    /// the path of this number.
    fn send_receipts(&mut self, ctx: &mut Context<'_>, receipts: &Receipts<'_>, ridden: Option<u8>) {
        let &Receipts { message, mut with_news } = receipts;
        let (mut sent, mut doubt) = (0, false);
        for path in self.paths.iter_mut().filter(|path| with_news[usize::from(path.number())]) {
            doubt |= path.health.state() != PathState::Up;
            if Some(path.number()) == ridden {
                self.receipts_sent.add(wire::items_of(message).len());
                sent += 1;
            } else if path.send(ctx, message, false) {
                self.receipts_sent.add(message.len() + path.tunnel.overhead().most);
                sent += 1;
            }
        }
        let active = self.is_active(ctx.now);
        for path in &self.paths {
            with_news[usize::from(path.number())] |= !doubt && (path.metered() || !active);
        }
        if let Some(ridden) = ridden {
            with_news[usize::from(ridden)] = true;
        }
        if sent < 2
            && let Some(path) = self.best_alive(ctx.now, with_news)
            && path.send(ctx, message, false)
        {
            let len = message.len() + path.tunnel.overhead().most;
            self.receipts_sent.add(len);
        }
    }

    /// The best path that lives, whatever policy says, of those that are not in `except`.
    pub(super) fn best_alive(&mut self, now: Instant, except: [bool; MAX_PATHS]) -> Option<&mut Path> {
        let path = ranked(&self.paths, now, None).into_iter().flatten().find(|path| !except[usize::from(*path)])?;
        self.path_mut(path)
    }
}
