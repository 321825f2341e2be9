//! Bonding: the packets of one class, and even of one flow, by several paths at once.
//!
//! Packets wait in one queue for whichever path has room next, and are numbered when they leave it; the other end puts them
//! back in order ([`crate::resequence`]). A slower path takes part while so much waits that the faster ones would need longer
//! for it than the slower one's packets are later:
//!
//! ```text
//!   waits: 375 kB ---->  10 ms, 100 Mbit/s: needs 30 ms for all of it
//!                 \--->  40 ms,  50 Mbit/s: is 30 ms later, and so takes part from here on
//! ```
//! So what fits the fastest path is as fast as that path, and what does not has the sum of all. Once it takes part it goes on
//! to while the faster ones cannot keep up: then whatever waits only makes the round trip longer that a flow must fill. A flow
//! of which little waits is never sent by a slower path.
//!
//! Nothing is bound to a path before it leaves: one that turns out to be slow holds up nothing but what is on its way already.
//!
//! What a path loses goes a second time, by the best one, and the other end waits for it: a flow sees a delay where it would
//! have taken a loss for congestion, and have halved what it sends by all paths for what one of them has lost.

use super::{Context, Peer};
use crate::counters::DropReason;
use crate::node::PathState;
use crate::path::Path;
use crate::policy::{ClassId, Mode, Priority};
use crate::shape::{Popped, Queue, Waiting};
use crate::wire::Sequence;
use crate::{Instant, MAX_PATHS};
use std::time::Duration;

/// Paths of which one is later by more than this are not bonded with each other: the receiver's memory, and what a flow must
/// have under way to fill both, grow with the difference.
const MOST_LATER: Duration = Duration::from_millis(100);

/// A path that loses so much for so long is left out while there is another: each of its losses holds up what went by the
/// others, and a TCP connection of 100 Mbit/s over 50 ms falls to half of that where one in ten thousand is lost. What a flow
/// that begins makes of the queue of a link is over sooner.
const MOST_LOST: f64 = 0.01;
const LOST_FOR: Duration = Duration::from_secs(3);

/// Then it is tried again: one second in ten is what a path costs that never gets better.
const LEFT_OUT: Duration = Duration::from_secs(30);

/// Another set of paths must carry more by an eighth to be taken: rates are measured, and never twice the same.
const WORTH: u64 = 8;

/// A path that takes part goes on to while so much waits: more than pacing makes of a burst.
const BURST: Duration = Duration::from_millis(2);

/// Not even that for so long, beyond the time by which the path is later, and it takes no part any more.
const IDLE: Duration = Duration::from_millis(100);

/// What a path that died had under way is carried by the others within so long: 300 ms of it at most, beside what they carry.
const FAILOVER: Duration = Duration::from_secs(1);

/// A flow of which less waits can wait for the fastest path: two packets.
const LITTLE: u64 = 3000;

/// As many wait as are kept.
const MOST_WAITING: usize = 64 * 1024;

/// Streams that are numbered by themselves: see [`Sequence::stream`].
const STREAMS: usize = 256;

/// What waits of one class.
#[derive(Debug)]
pub(super) struct Bond {
    class: ClassId,
    queue: Queue,
    /// The paths that take part, a bit each.
    members: u16,
    /// When each of the slower ones has carried something last.
    engaged: [Option<Instant>; MAX_PATHS],
    /// Of each path what its losses have led to.
    lossy: [Lossy; MAX_PATHS],
    /// When one of them went.
    shrunk_at: Option<Instant>,
    /// When one of them has room, if no receipt comes before.
    ready_at: Option<Instant>,
}

/// What a path's losses have led to.
#[derive(Clone, Copy, Debug, Default)]
enum Lossy {
    /// Nothing.
    #[default]
    No,
    /// It loses too much since then.
    Since(Instant),
    /// It is left out until then.
    LeftOut(Instant),
}

impl Lossy {
    /// What becomes of it now that the path has lost this share in the last second.
    fn follow(self, now: Instant, lost: f64) -> Lossy {
        match self {
            Lossy::LeftOut(until) if now < until => self,
            Lossy::No | Lossy::LeftOut(_) if lost >= MOST_LOST => Lossy::Since(now),
            Lossy::Since(since) if lost >= MOST_LOST => match now.since(since) >= LOST_FOR {
                true => Lossy::LeftOut(now + LEFT_OUT),
                false => self,
            },
            _ => Lossy::No,
        }
    }
}

/// The bonded classes of a peer.
#[derive(Debug, Default)]
pub(super) struct Bonds {
    list: Vec<Bond>,
    /// The next number of each stream. Made with the first packet.
    numbers: Vec<u32>,
}

impl Bonds {
    /// When something that waits can go.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.list.iter().filter_map(|bond| bond.ready_at).min()
    }

    /// Of a class the paths that take part, a bit each, and the packets and octets that wait for them.
    pub(super) fn of(&self, class: ClassId) -> (u16, (usize, u64)) {
        let bond = self.list.iter().find(|bond| bond.class == class);
        bond.map_or((0, (0, 0)), |bond| (bond.members, bond.queue.held()))
    }

    /// The policy is another one. What waited is to find a path as what has lost its own.
    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    fn next_number(&mut self, stream: u8) -> u32 {
        if self.numbers.is_empty() {
            self.numbers = vec![0; STREAMS];
        }
        let next = &mut self.numbers[usize::from(stream)];
        let number = *next;
        *next = number.wrapping_add(1);
        number
    }
}

/// A path that takes part.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// Its place among the peer's paths.
    at: usize,
    number: u8,
    /// By how much its packets are later than those of the fastest.
    later: Duration,
    /// What it carries, in octets a second, as far as is known.
    rate: u64,
    /// It is known to be no more.
    full: bool,
}

impl Member {
    /// What it and these faster ones carry together, if that is known.
    fn beside(&self, faster: Option<u64>) -> Option<u64> {
        faster.filter(|_| self.full).map(|rate| rate + self.rate)
    }
}

/// The set of paths, the fastest first, that carries most, of those that are no more than [`MOST_LATER`] apart. `before`: the
/// set until now.
fn choose(sorted: &[Member], before: u16) -> &[Member] {
    let group = |first: usize| {
        let within = sorted[first..].iter().take_while(|member| member.later - sorted[first].later <= MOST_LATER);
        &sorted[first..first + within.count()]
    };
    let rate = |group: &[Member]| group.iter().map(|member| member.rate).sum::<u64>();
    let groups = || (0..sorted.len()).map(group);
    let mut best = groups().next().unwrap_or(&[]);
    if let Some(same) = groups().find(|group| before != 0 && set(group) & before == before) {
        best = same;
    }
    for other in groups() {
        if rate(other) > rate(best) + rate(best) / WORTH {
            best = other;
        }
    }
    best
}

impl Peer {
    /// Has a kept packet of a bonded class wait for whichever path has room.
    pub(super) fn bond(&mut self, ctx: &mut Context<'_>, class: ClassId, place: u64) {
        let Some(waiting) = self.replay.wait_for_any(ctx.now, place) else { return };
        let at = self.bonds.list.iter().position(|bond| bond.class == class).unwrap_or_else(|| {
            self.bonds.list.push(Bond {
                class,
                queue: Queue::default(),
                members: 0,
                engaged: [None; MAX_PATHS],
                lossy: Default::default(),
                shrunk_at: None,
                ready_at: None,
            });
            self.bonds.list.len() - 1
        });
        let queue = &mut self.bonds.list[at].queue;
        if queue.held().0 < MOST_WAITING {
            queue.push(waiting);
            self.feed(ctx, at);
        } else if self.replay.give_up_waiting(place) {
            self.drops.add(DropReason::ReplayBound);
        }
    }

    /// Feeds the paths of all bonds that have something to send.
    pub(super) fn feed_all(&mut self, ctx: &mut Context<'_>) {
        for at in 0..self.bonds.list.len() {
            self.feed(ctx, at);
        }
    }

    /// Gives what waits to the paths that take part and have room.
    fn feed(&mut self, ctx: &mut Context<'_>, at: usize) {
        let bond = &mut self.bonds.list[at];
        if bond.queue.held().0 == 0 {
            return;
        }
        let (mut queue, mut engaged) = (std::mem::take(&mut bond.queue), bond.engaged);
        let mut members = [Member::default(); MAX_PATHS];
        for path in &self.paths {
            let lossy = &mut self.bonds.list[at].lossy[usize::from(path.number())];
            *lossy = lossy.follow(ctx.now, path.health.quality().loss(ctx.now)[0].unwrap_or(0.0));
        }
        let count = self.members(ctx.now, at, &mut members);
        let members = &members[..count];
        for member in members {
            self.paths[member.at].wake(ctx.now);
        }
        let bond = &mut self.bonds.list[at];
        if bond.members & !set(members) != 0 {
            bond.shrunk_at = Some(ctx.now);
        }
        // Where any path has not shown yet what it carries, or others must carry what one that died had, a wait is nobody's
        // fault.
        let settled = bond.shrunk_at.is_none_or(|shrunk| ctx.now.since(shrunk) >= FAILOVER);
        let lasting = settled && members.iter().all(|member| member.full);
        let latest = members.last().map_or(Duration::ZERO, |member| member.later);
        while let Some(member) = self.next_member(ctx.now, members, &queue, &engaged) {
            engaged[usize::from(member.number)] = Some(ctx.now);
            let latency = self.paths[member.at].latency();
            match queue.pop(ctx.now, latency, lasting.then_some(latest), |_| true) {
                Some(Popped::Send(waiting)) => self.send_bonded(ctx, members, &member, &waiting),
                Some(Popped::Aged(waiting)) => self.drop_bonded(&waiting, DropReason::Aged),
                Some(Popped::Mark(waiting)) => {
                    self.mark(member.number, waiting.place);
                    self.send_bonded(ctx, members, &member, &waiting);
                }
                Some(Popped::Drop(waiting)) => self.drop_bonded(&waiting, DropReason::Congestion),
                None => break,
            }
        }
        let (packets, octets) = queue.held();
        let mut ready_at = None;
        let mut faster = Some(0);
        for member in members {
            let path = &mut self.paths[member.at];
            let wanted = packets > 0
                && is_worth(ctx.now, octets, faster, member, &engaged)
                && !path.has_room(ctx.now, queue.is_before(true));
            faster = member.beside(faster);
            path.want_room(ctx.now, wanted);
            if wanted {
                let at = path.next_room_at(ctx.now, queue.is_before(true));
                ready_at = Some(ready_at.map_or(at, |other: Instant| other.min(at)));
            }
        }
        let bond = &mut self.bonds.list[at];
        (bond.queue, bond.members, bond.engaged, bond.ready_at) = (queue, set(members), engaged, ready_at);
    }

    /// The path by which the next packet of `queue` goes, if it is to go now.
    fn next_member(
        &self,
        now: Instant,
        members: &[Member],
        queue: &Queue,
        engaged: &[Option<Instant>; MAX_PATHS],
    ) -> Option<Member> {
        let (packets, octets) = queue.held();
        if packets == 0 {
            return None;
        }
        let urgent = queue.is_before(true);
        let mut faster = Some(0);
        for member in members {
            if !is_worth(now, octets, faster, member, engaged) || (faster != Some(0) && queue.next_flow() < LITTLE) {
                return None;
            }
            if self.paths[member.at].has_room(now, urgent) {
                return Some(*member);
            }
            faster = member.beside(faster);
        }
        None
    }

    fn send_bonded(&mut self, ctx: &mut Context<'_>, members: &[Member], member: &Member, waiting: &Waiting) {
        let path = &self.paths[member.at];
        let others = members.iter().filter(|other| other.at != member.at);
        let late = others.map(|other| self.paths[other.at].health.later_than(&path.health)).max().unwrap_or_default();
        // What was lost comes a second time when its path's receipts have told so. A call cannot wait for that.
        let again = members.iter().map(|member| self.paths[member.at].health.patience()).max().unwrap_or_default();
        let wait = if waiting.priority == Priority::Realtime { late } else { late.max(again) };
        if members.len() > 1 {
            self.paths[member.at].shaper.share(ctx.now);
        }
        let number = self.bonds.next_number(waiting.flow);
        let sequence = Sequence { stream: waiting.flow, wait, number };
        if self.replay.leave_queue(ctx.now, waiting.place, member.number, sequence) {
            self.paths[member.at].throttle.on_offered(usize::from(waiting.len));
            self.transmit(ctx, member.number, waiting.place);
        }
    }

    fn drop_bonded(&mut self, waiting: &Waiting, reason: DropReason) {
        if self.replay.give_up_waiting(waiting.place) {
            self.drops.add(reason);
        }
    }

    /// The paths that take part, the fastest first, and how many.
    fn members(&self, now: Instant, bond: usize, members: &mut [Member; MAX_PATHS]) -> usize {
        let &Bond { class, members: before, lossy, .. } = &self.bonds.list[bond];
        let Some(course) = self.courses.get(usize::from(class)) else { return 0 };
        let within = course.paths(&Mode::Bond);
        let usable = |path: &Path| within & 1 << path.number() != 0 && path.standing(now).is_some();
        let sound = |path: &Path| {
            let left_out = matches!(lossy[usize::from(path.number())], Lossy::LeftOut(_));
            path.health.state() == PathState::Up && !left_out
        };
        let any_sound = self.paths.iter().any(|path| usable(path) && sound(path));
        let taken = |path: &&Path| usable(path) && (sound(path) || !any_sound);
        // Round trips compare only where the receipts came by the same path.
        let faster = |one: &Path, other: &Path| one.health.beyond(&other.health) <= other.health.beyond(&one.health);
        let fastest = self.paths.iter().filter(taken).reduce(|one, other| if faster(one, other) { one } else { other });
        let Some(fastest) = fastest else { return 0 };
        let mut count = 0;
        for (at, path) in self.paths.iter().enumerate().filter(|(_, path)| taken(path)) {
            let later = path.health.beyond(&fastest.health);
            members[count] = Member {
                at,
                number: path.number(),
                later,
                rate: path.carries(now),
                full: path.shaper.rate().is_some(),
            };
            count += 1;
        }
        members[..count].sort_unstable_by_key(|member| (member.later, member.number));
        let chosen = choose(&members[..count], before);
        let (first, count) = (chosen.first().map_or(0, |member| member.number), chosen.len());
        let first = members.iter().position(|member| member.number == first).unwrap_or(0);
        let fastest = members[first].later;
        members.copy_within(first..first + count, 0);
        members[..count].iter_mut().for_each(|member| member.later -= fastest);
        count
    }
}

/// Whether a path takes part, while so much waits that the faster ones carry at so many octets a second; `None`: one of them
/// may have more room than is known.
fn is_worth(
    now: Instant,
    octets: u64,
    faster: Option<u64>,
    member: &Member,
    engaged: &[Option<Instant>; MAX_PATHS],
) -> bool {
    let Some(faster) = faster else { return false };
    let goes_on = engaged[usize::from(member.number)].is_some_and(|at| now.since(at) < member.later + IDLE);
    let needed = if goes_on { member.later.min(BURST) } else { member.later };
    let needs = octets.saturating_mul(1_000_000) / faster.max(1);
    u128::from(needs) >= needed.as_micros()
}

fn set(members: &[Member]) -> u16 {
    members.iter().fold(0, |set, member| set | 1 << member.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u8, later_ms: u64, mbit: u64) -> Member {
        Member { at: number.into(), number, later: Duration::from_millis(later_ms), rate: mbit * 125_000, full: true }
    }

    #[test]
    fn paths_are_bonded_that_are_not_too_far_apart_and_carry_most() {
        for (paths, before, expected, why) in [
            (&[member(0, 0, 100), member(1, 30, 50)][..], 0, 0b11, "both"),
            (&[member(0, 0, 100), member(1, 30, 50), member(2, 290, 5)], 0, 0b11, "the third is far away"),
            (&[member(0, 0, 1), member(1, 130, 50)], 0, 0b10, "never less than the best single one"),
            (&[member(0, 0, 50), member(1, 130, 52)], 0b01, 0b01, "no change for next to nothing"),
            (&[member(0, 0, 50), member(1, 130, 60)], 0b01, 0b10, "but for more"),
            (&[member(0, 0, 10), member(1, 80, 10), member(2, 160, 10)], 0b110, 0b110, "the set in use, of equals"),
            (&[], 0, 0, "none"),
        ] {
            assert_eq!(set(choose(paths, before)), expected, "{why}");
        }
    }

    #[test]
    fn a_slower_path_takes_part_while_the_faster_need_longer_for_what_waits_than_it_is_later() {
        let (now, path) = (Instant::from_nanos(1_000_000_000), member(1, 30, 50));
        let takes_part = |octets, faster_mbit: u64, idle_ms: Option<u64>| {
            let at = idle_ms.map(|ms| Instant::from_nanos(1_000_000_000 - ms * 1_000_000));
            let mut engaged = [None; MAX_PATHS];
            engaged[1] = at;
            is_worth(now, octets, Some(faster_mbit * 125_000), &path, &engaged)
        };
        assert!(!takes_part(374_000, 100, None));
        assert!(takes_part(376_000, 100, None));
        assert!(takes_part(26_000, 100, Some(129)), "it goes on");
        assert!(!takes_part(24_000, 100, Some(10)), "a burst is none of its business");
        assert!(!takes_part(26_000, 100, Some(131)), "it has stopped");
        assert!(is_worth(now, 0, Some(0), &member(0, 0, 100), &[None; MAX_PATHS]), "the fastest always does");
        assert!(!is_worth(now, 1 << 30, None, &path, &[None; MAX_PATHS]), "nobody knows that it is needed");
    }
}
