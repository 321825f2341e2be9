//! The other end: its tunnels and paths, and the bundle that they make together.

mod bond;
mod either;
mod receive;
mod send;

pub(crate) use send::fragment_number;

use self::bond::Bonds;
use self::either::Either;
use crate::config::{PathConfig, PeerConfig, PeerKind};
use crate::counters::{DropReason, Drops};
use crate::flows::FlowTable;
use crate::health::{Surroundings, Transition};
use crate::node::{Event, PathState};
use crate::outer::Outer;
use crate::output::Output;
use crate::path::Path;
use crate::policy::{Class, ClassId, Direction, Policy};
use crate::reassembly::Reassembly;
use crate::replay::Replay;
use crate::resequence::Resequencer;
use crate::route::Routes;
use crate::schedule::{Candidate, Course, Standing};
use crate::snapshot::{ClassSnapshot, PeerSnapshot, Traffic};
use crate::timer::Armed;
use crate::tunnel::{Indices, PathRef, Role, Suite};
use crate::wire::{Hello, Item, MAX_MESSAGE, Sequence, Writer};
use crate::{Identity, Instant, LinkId, MAX_PATHS, Uplink, slot_of, slots_of};
use std::collections::VecDeque;
use std::time::Duration;

/// A bundle is active this long after its last inner packet: its standby paths are asked more often, so that a dead one
/// is known before it is needed.
const ACTIVE: Duration = Duration::from_secs(5);

/// Lives of the peer of which a late HELLO is known for what it is: as many restarts in the seconds that a datagram may be
/// under way.
const PAST_EPOCHS: usize = 4;

/// What a call of the node lends to its peers.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) out: &'a mut Output,
    pub(crate) indices: &'a mut Indices,
    pub(crate) events: &'a mut VecDeque<Event>,
    pub(crate) identity: Identity,
    pub(crate) epoch: u64,
    /// Which peer has an address.
    pub(crate) routes: &'a Routes<usize>,
    /// How long the datagram at hand has waited for this process.
    pub(crate) waited: Duration,
    /// The ECN field of its outer header; of a packet in pieces, of all of them.
    pub(crate) ecn: u8,
    /// This side's own prefixes; `None`: it stands for all that no peer has.
    pub(crate) local: Option<&'a Routes<()>>,
    /// The TUN's MTU.
    pub(crate) mtu: u16,
    /// What flows are told apart by.
    pub(crate) flow_key: u64,
    /// Where link messages are read and written.
    pub(crate) scratch: &'a mut Vec<u8>,
}

/// A path, as far as the choice looks at it: how good it is, how much it is preferred, whether it stands by, whether it is at its
/// cap, and whether it lives.
type View = (Option<Standing>, u8, bool, bool, bool);

/// How often limits are compared with what is measured: smoothed over some receipts, which come each 8 ms.
const MEASURE: Duration = Duration::from_millis(20);

/// One for each class.
fn courses(policy: &Policy) -> Vec<Course> {
    policy.classes().iter().map(|_| Course::default()).collect()
}

/// The other end.
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    at: usize,
    role: Role,
    paths: Vec<Path>,
    /// The uplinks that may have either kind of tunnel; a box's.
    either: Vec<Either>,
    flows: FlowTable,
    /// The flows that come from it, where their class says by whom they leave: packets of the other direction are of others.
    arrivals: FlowTable,
    /// Some class leaves by another egress choice than all of the peer's.
    chooses_egress: bool,
    /// Of each class of the policy, by its place. The last is that of everything else.
    courses: Vec<Course>,
    /// The paths that are some class's current one, a bit each.
    carrying: u16,
    /// What the choice of path was made of last, and when; `None`: it is to be made anew.
    views: Option<[Option<View>; MAX_PATHS]>,
    chosen_at: Instant,
    /// Some class has a limit, and is left and taken as what is measured says.
    limits: bool,
    /// When the policy was put in force, or a window of it opened or closed last: flows find their classes anew from then on.
    policy_since: Instant,
    /// Octets that are left free in each packet for its place in its stream: none where nothing is bonded.
    numbering: u16,
    reachable: bool,
    /// The last inner packet, either way.
    last_traffic: Option<Instant>,
    receipt_due: Option<Instant>,
    /// Paths whose uplink went, of which the peer is to be told.
    lost: [bool; MAX_PATHS],
    last_receipt: Option<Instant>,
    remote_epoch: Option<u64>,
    /// Its epochs before that one: a HELLO of an earlier life may still be under way, by a slow path.
    past_epochs: [Option<u64>; PAST_EPOCHS],
    /// The hash of the peer's policy, by its last HELLO; 0: not said.
    policy_hash: u64,
    /// What the peer can do, by its last HELLO.
    capabilities: u32,
    /// Packets sent in fragments; by this the next one is numbered.
    fragmented: u64,
    reassembly: Reassembly,
    /// Packets put together from fragments.
    reassembled: u64,
    replay: Replay,
    /// What waits of bonded classes.
    bonds: Bonds,
    /// What came of the peer's bonded classes, and waits for what was sent before.
    resequencer: Resequencer,
    /// Paths and places of packets that are about to be given to a path: used again for each such list.
    list: Vec<(u8, u64)>,
    /// Paths by which nothing more may have come, a bit each, since what is kept was sent again last: what went by
    /// them, or found no path, wants another one.
    rescue: Option<u16>,
    copies: Traffic,
    receipts_sent: Traffic,
    tx: Traffic,
    rx: Traffic,
    drops: Drops,
    pub(crate) armed: Armed,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, at: usize, suite: &dyn Suite, mtu: u16, now: Instant) -> Self {
        let role = if config.kind == PeerKind::Core { Role::Initiator } else { Role::Responder };
        let path = |path: &PathConfig| {
            Path::new(path.clone(), PathRef { peer: at, path: path.number() }, role, suite, mtu, now)
        };
        let mut peer = Peer {
            paths: config.paths.iter().map(path).collect(),
            at,
            role,
            either: Vec::new(),
            flows: FlowTable::default(),
            arrivals: FlowTable::default(),
            chooses_egress: config.policy.chooses_egress(),
            courses: courses(&config.policy),
            limits: config.policy.limits(),
            config,
            carrying: 0,
            views: None,
            chosen_at: now,
            policy_since: now,
            numbering: 0,
            reachable: false,
            last_traffic: None,
            receipt_due: None,
            lost: [false; MAX_PATHS],
            last_receipt: None,
            remote_epoch: None,
            past_epochs: [None; PAST_EPOCHS],
            policy_hash: 0,
            capabilities: 0,
            fragmented: 0,
            reassembly: Reassembly::default(),
            reassembled: 0,
            replay: Replay::default(),
            bonds: Bonds::default(),
            resequencer: Resequencer::default(),
            list: Vec::new(),
            rescue: None,
            copies: Traffic::default(),
            receipts_sent: Traffic::default(),
            tx: Traffic::default(),
            rx: Traffic::default(),
            drops: Drops::default(),
            armed: Armed::default(),
        };
        peer.numbering = peer.numbering();
        peer.find_either(now);
        peer.tell_links();
        peer.tell_policy(now);
        peer
    }

    fn numbering(&self) -> u16 {
        if self.config.policy.bonds(self.direction()) { Sequence::ROOM as u16 } else { 0 }
    }

    /// Tells each path what the policy says of its link: what it carries, and what its outer headers show.
    fn tell_links(&mut self) {
        let direction = self.direction();
        for path in &mut self.paths {
            let link = self.config.policy.links().get(usize::from(path.config.slot));
            path.shaper.give(link.and_then(|link| link.rate(direction)).map(|bits| bits / 8));
            path.outer = link.map_or(Outer::default(), |link| link.outer);
        }
    }

    /// Takes another configuration of the same peer; paths that stay keep their sessions.
    pub(crate) fn reconfigure(
        &mut self,
        config: PeerConfig,
        suite: &dyn Suite,
        mtu: u16,
        now: Instant,
        indices: &mut Indices,
    ) {
        let mut old = std::mem::take(&mut self.paths);
        for wanted in &config.paths {
            let same = |path: &Path| {
                path.config.slot == wanted.slot
                    && path.config.kind == wanted.kind
                    && path.config.remote_key == wanted.remote_key
                    && path.config.local_key == wanted.local_key
                    && path.config.link == wanted.link
            };
            let path = match old.iter().position(same) {
                Some(at) => {
                    let mut path = old.swap_remove(at);
                    path.config.preference = wanted.preference;
                    path
                }
                None => Path::new(
                    wanted.clone(),
                    PathRef { peer: self.at, path: wanted.number() },
                    self.role,
                    suite,
                    mtu,
                    now,
                ),
            };
            self.paths.push(path);
        }
        for mut path in old {
            path.tunnel.retire(indices);
        }
        if config.policy != self.config.policy {
            self.courses = courses(&config.policy);
            self.policy_since = now;
            self.forget_classes();
            self.bonds.clear();
            self.replay.leave_queues();
            self.rescue.get_or_insert(0);
        }
        self.set_open_windows(now, config.open_windows);
        self.config = config;
        self.find_either(now);
        self.tell_policy(now);
        self.numbering = self.numbering();
        (self.limits, self.views) = (self.config.policy.limits(), None);
        self.chooses_egress = self.config.policy.chooses_egress();
        self.tell_links();
    }

    /// Each path tells the peer which policy is in force, if it has not.
    fn tell_policy(&mut self, now: Instant) {
        let hash = self.config.policy.hash();
        self.paths.iter_mut().for_each(|path| path.set_policy_hash(now, hash));
    }

    /// These windows of the policy are open from now on, a bit each.
    pub(crate) fn set_open_windows(&mut self, now: Instant, open: u64) {
        if std::mem::replace(&mut self.config.open_windows, open) != open {
            self.policy_since = now;
            self.forget_classes();
        }
    }

    /// Each flow's class is to be found anew.
    fn forget_classes(&mut self) {
        self.flows.forget_classes();
        self.arrivals.forget_classes();
    }

    pub(crate) fn retire(&mut self, indices: &mut Indices) {
        for path in &mut self.paths {
            path.tunnel.retire(indices);
        }
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.drops.add(reason);
    }

    fn receipts(&self) -> bool {
        self.config.kind != PeerKind::Client
    }

    /// The peer puts fragments together: only then it is worth knowing what fits a path.
    fn puts_together(&self) -> bool {
        self.can(Hello::FRAGMENTS)
    }

    /// The peer drops second copies: only then a packet may be sent twice.
    fn takes_copies(&self) -> bool {
        self.can(Hello::COPIES)
    }

    /// Whether the peer has a capability, and knows that this end has started anew if it has: until then it takes our
    /// numbers for those of our life before, and forgets what it has of them when it learns better.
    fn can(&self, capability: u32) -> bool {
        self.capabilities & capability != 0 && self.paths.iter().any(|path| path.introduced)
    }

    /// Which way packets to it go.
    fn direction(&self) -> Direction {
        match self.config.kind {
            PeerKind::Core => Direction::Up,
            PeerKind::Middlebox | PeerKind::Client => Direction::Down,
        }
    }

    /// The path of this number is one that packets take now: of the class of everything else, or of one that is in use.
    fn in_use(&self, now: Instant, number: u8) -> bool {
        let recent = |course: &Course| course.used.is_some_and(|at| now.since(at) < ACTIVE);
        let direction = self.direction();
        let takes =
            |(course, class): &(&Course, &Class)| course.paths(&class.treatment(direction).mode) & 1 << number != 0;
        let mut courses = self.courses.iter().zip(self.config.policy.classes()).rev();
        courses.next().as_ref().is_some_and(takes) || courses.any(|of| takes(&of) && recent(of.0))
    }

    fn path_mut(&mut self, number: u8) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.number() == number)
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    fn is_active(&self, now: Instant) -> bool {
        self.last_traffic.is_some_and(|at| now.since(at) < ACTIVE)
    }

    fn surroundings(&self, path: &Path, now: Instant) -> Surroundings {
        let number = path.number();
        Surroundings {
            initiator: self.role == Role::Initiator,
            other_up: self.paths.iter().any(|p| p.number() != number && p.health.state() == PathState::Up),
            several_ways: path.endpoints.len() > 1,
            active: self.is_active(now) && (!path.metered() || self.in_use(now, number)),
            keepalive: path.keepalive,
            largest: path.mtu.size(),
        }
    }

    /// When [`Peer::on_timeout`] has something to do, and what.
    pub(crate) fn deadline(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let receipts = self.receipt_due.map(|at| (at, "receipt"));
        let lost = self.lost.contains(&true).then_some((now, "an uplink is gone"));
        let rescue = self.rescue.map(|_| (now, "replay"));
        let bonds = self.bonds.ready_at().map(|at| (at, "bond"));
        let order = self.resequencer.deadline(now).map(|at| (at, "order"));
        let expiry = self.replay.expires_at().map(|at| (at, "memory"));
        let either = self.either_deadline(now);
        // A core has many on which nobody ever speaks.
        let begun = self.paths.iter().filter(|path| path.tick_at.is_some());
        let paths = begun.flat_map(|path| {
            let around = self.surroundings(path, now);
            let health = if self.receipts() { path.health.deadline(around, now) } else { None };
            [
                health,
                path.tick_at.map(|at| (at, "tunnel")),
                path.tunnel.deadline().map(|at| (at, "quic")),
                path.hello_at.map(|at| (at, "hello")),
                path.probe_at(around.active).filter(|_| self.puts_together()).map(|at| (at, "path MTU")),
                path.health.probation_end(now).map(|at| (at, "probation")),
                path.room_at(now).map(|at| (at, "room")),
            ]
        });
        paths.chain([receipts, lost, rescue, bonds, order, expiry, either]).flatten().min()
    }

    pub(crate) fn on_timeout(&mut self, ctx: &mut Context<'_>) {
        for at in 0..self.paths.len() {
            let number = self.paths[at].number();
            let around = self.surroundings(&self.paths[at], ctx.now);
            let (receipts, role) = (self.receipts(), self.role);
            let path = &mut self.paths[at];
            let transition = path.on_timeout(ctx, around, receipts, role);
            self.report(ctx, number, transition);
        }
        self.send_due_receipts(ctx);
        self.tell_lost(ctx);
        self.rescue(ctx);
        self.release(ctx);
        self.deliver_resequenced(ctx);
        self.replay.expire(ctx.now, &mut self.drops);
        self.reassembly.expire(ctx.now, &mut self.drops);
        self.send_trains(ctx);
        // Last: where one does not fit the interface, the kernel refuses a whole run of datagrams that begins with it.
        if self.puts_together() {
            for at in 0..self.paths.len() {
                let active = self.surroundings(&self.paths[at], ctx.now).active;
                self.paths[at].probe(ctx, active);
            }
        }
    }

    /// Tells the peer of uplinks that went, by the best path that lives; without one there is nobody to tell.
    fn tell_lost(&mut self, ctx: &mut Context<'_>) {
        let lost = std::mem::take(&mut self.lost);
        let mut buffer = [0; MAX_MESSAGE];
        let mut message = Writer::new(&mut buffer);
        for path in (0..MAX_PATHS as u8).filter(|path| lost[usize::from(*path)]) {
            message.add(&Item::Lost(path));
        }
        if !message.is_empty()
            && let Some(path) = self.best_alive(ctx.now, lost)
        {
            path.send(ctx, message.finish(), true);
        }
    }

    /// After a batch: what is due at once goes out, and the choice of path follows what was learnt.
    pub(crate) fn settle(&mut self, ctx: &mut Context<'_>) {
        self.send_due_receipts(ctx);
        self.rescue(ctx);
        self.release(ctx);
        // Last: what a tunnel has to say for itself has found place in its packets by then, or goes alone.
        self.paths.iter_mut().filter(|path| path.stirred).for_each(|path| path.flush(ctx));
        self.choose_path(ctx);
    }

    /// The shortest round trip, and the transit time of its path by the receiver's clock: with it the latencies of all compare.
    fn fastest(&self) -> Option<(Duration, u32)> {
        let trip = |path: &Path| Some((path.health.shortest_rtt()?, path.health.quality().transit_us()?));
        self.paths.iter().filter(|path| path.alive()).filter_map(trip).min_by_key(|(round_trip, _)| *round_trip)
    }

    /// The choice of path, of each class, follows what was learnt. Sends nothing.
    pub(crate) fn choose_path(&mut self, ctx: &mut Context<'_>) {
        self.choose_tunnels(ctx);
        let direction = self.direction();
        let mut views = [None; MAX_PATHS];
        for (view, path) in views.iter_mut().zip(&self.paths) {
            *view = Some((path.standing(ctx.now), path.preference(), path.stands_by, path.capped, path.alive()));
        }
        // It would say the same as before; with many classes it costs much more than a packet.
        let measures = self.limits && ctx.now.since(self.chosen_at) >= MEASURE;
        if self.views == Some(views) && !measures {
            return;
        }
        (self.views, self.chosen_at) = (Some(views), ctx.now);
        let fastest = self.fastest();
        let Peer { paths, courses, config, .. } = self;
        for (class, course) in courses.iter_mut().enumerate() {
            let order = config.policy.order(class as ClassId, direction);
            let limit = &order.treatment.limit;
            let mut candidates = [None; MAX_PATHS];
            for (candidate, path) in candidates.iter_mut().zip(&*paths) {
                let number = path.number();
                *candidate = path.standing(ctx.now).and_then(|standing| {
                    let mut preference = order.preference(path.config.slot, path.preference(), path.capped)?;
                    preference.stands_by = path.stands_by;
                    preference.within_limit = course.is_within(ctx.now, number, limit, path.measured(ctx.now, fastest));
                    Some(Candidate { path: number, preference, standing })
                });
            }
            let candidates = candidates.into_iter().flatten();
            let lives = |number| paths.iter().any(|path| path.number() == number && path.alive());
            if let Some((from, to)) = course.follow(ctx.now, candidates, lives) {
                let class = config.policy.class(class as ClassId).name.clone();
                let id =
                    |number: Option<u8>| Some(paths.iter().find(|path| Some(path.number()) == number)?.id(config.id));
                ctx.events.push_back(Event::Moved { peer: config.id, class, from: id(from), to: id(to) });
            }
        }
        self.carrying = 0;
        for (course, class) in self.courses.iter().zip(self.config.policy.classes()) {
            self.carrying |= course.paths(&class.treatment(direction).mode);
        }
    }

    fn report(&mut self, ctx: &mut Context<'_>, number: u8, transition: Option<Transition>) {
        let Some(Transition { from, to, reason }) = transition else { return };
        let peer = self.config.id;
        if from == PathState::Down
            && let Some(path) = self.path_mut(number)
        {
            path.mtu.on_up();
        }
        if to == PathState::Up && from != PathState::Suspect {
            self.replay.forget_tries(number);
            let (now, says) = (ctx.now, self.config.kind != PeerKind::Client);
            if let Some(path) = self.path_mut(number).filter(|_| says) {
                path.on_up_again(now);
            }
        }
        if matches!(to, PathState::Down | PathState::Absent)
            && let Some(path) = self.path_mut(number)
        {
            // What waits is kept, and goes by another path, or by this one when it works again.
            path.shaper.clear();
        }
        // Where a path works again, all that has found no other may go by it.
        *self.rescue.get_or_insert(0) |= if to == PathState::Up { !0 } else { 1 << number };
        if let Some(path) = self.path_mut(number).map(|path| path.id(peer)) {
            ctx.events.push_back(Event::Path { path, from, to, reason });
        }
        self.report_reachability(ctx);
    }

    /// After paths have changed their state, or their number.
    pub(crate) fn report_reachability(&mut self, ctx: &mut Context<'_>) {
        let reachable = self.paths.iter().any(Path::alive);
        if std::mem::replace(&mut self.reachable, reachable) != reachable {
            let peer = self.config.id;
            ctx.events.push_back(if reachable { Event::Reachable(peer) } else { Event::Unreachable(peer) });
        }
    }

    // ---- news from the daemon ------------------------------------------------------------------------------------

    /// An uplink can be used, or cannot.
    pub(crate) fn set_uplink(&mut self, ctx: &mut Context<'_>, link: LinkId, uplink: Option<&Uplink>) {
        if self.set_either(ctx, link, uplink) {
            return;
        }
        for at in 0..self.paths.len() {
            let path = &mut self.paths[at];
            if path.config.link != Some(link) {
                continue;
            }
            let (number, transition) = (path.number(), path.set_uplink(ctx.now, link, uplink));
            if let Some(transition) = transition {
                self.lost[usize::from(number)] = transition.to == PathState::Absent;
            }
            self.report(ctx, number, transition);
        }
    }

    /// The box's address on a link is another one.
    pub(crate) fn renumbered(&mut self, link: LinkId) {
        for path in self.paths.iter_mut().filter(|path| path.config.link == Some(link)) {
            path.tunnel.renumbered();
            path.health.ask_now();
            path.mtu.begin_anew();
        }
    }

    /// These slots' links, a bit each, are at their cap, and the others are not.
    pub(crate) fn set_capped(&mut self, now: Instant, slots: u8) {
        for path in &mut self.paths {
            path.set_capped(now, slots >> path.config.slot & 1 == 1);
        }
    }

    /// This end stood still until now.
    pub(crate) fn stood_still(&mut self, now: Instant) {
        for path in &mut self.paths {
            path.health.on_stall(now);
            path.mtu.on_up();
        }
    }

    /// Old time stamps are of no use from now on: shake hands anew, beside the session in use.
    pub(crate) fn clock_stepped(&mut self, now: Instant) {
        let stamps = |path: &&mut Path| path.tick_at.is_some() && path.tunnel.rekeys();
        for path in self.paths.iter_mut().filter(|path| self.role == Role::Initiator && stamps(path)) {
            path.tunnel.clock_stepped();
            path.initiation_wanted = true;
            path.tick_at = Some(now);
        }
    }

    /// What is to be shown of each class.
    fn classes(&self) -> Vec<ClassSnapshot> {
        let direction = self.direction();
        let of = |(number, (course, class)): (usize, (&Course, &Class))| {
            let mode = &class.treatment(direction).mode;
            let (members, (packets, bytes)) = self.bonds.of(number as ClassId);
            let paths = if members == 0 { course.paths(mode) } else { members };
            ClassSnapshot {
                name: class.name.to_string(),
                open: self.config.policy.is_open(number, self.config.open_windows),
                current_slot: course.current.map(slot_of),
                slots: slots_of(paths),
                beyond_limit: course.beyond_limit(),
                path_changes: course.changes,
                tx: course.tx,
                egress: class.egress.as_ref().map(|egress| egress.name.to_string()),
                rx: course.rx,
                waiting: Traffic { packets: packets as u64, bytes },
            }
        };
        self.courses.iter().zip(self.config.policy.classes()).enumerate().map(of).collect()
    }

    pub(crate) fn snapshot(&self, mtu: u16, now: Instant) -> PeerSnapshot {
        let fastest = self.fastest();
        // Both ends know eight slots, and the core two paths over each; those that never had an uplink, or on which nobody has spoken, are nothing to show.
        let mut paths: Vec<_> = self
            .paths
            .iter()
            .filter(|path| path.tick_at.is_some())
            .map(|path| path.snapshot(self.config.id, mtu, fastest, now))
            .collect();
        paths.sort_by_key(|path| (path.id.slot, path.id.tunnel));
        let current = self.courses.last().and_then(|rest| rest.current);
        PeerSnapshot {
            id: self.config.id,
            name: self.config.name.clone(),
            other_policy: self.policy_hash != 0 && self.policy_hash != self.config.policy.hash(),
            reachable: self.reachable,
            current_slot: current.map(slot_of),
            current_tunnel: self.paths.iter().find(|path| Some(path.number()) == current).map(|path| path.config.kind),
            path_changes: self.courses.last().map_or(0, |rest| rest.changes),
            classes: self.classes(),
            tx: self.tx,
            rx: self.rx,
            fragmented: self.fragmented,
            reassembled: self.reassembled,
            copies: self.copies,
            kept: Traffic { packets: self.replay.held().0 as u64, bytes: self.replay.held().1 as u64 },
            receipts: self.receipts_sent,
            unordered: {
                let (packets, bytes) = self.resequencer.held();
                Traffic { packets: packets as u64, bytes: bytes as u64 }
            },
            late: self.resequencer.late(),
            drops: self.drops.clone(),
            paths,
            tunnels: self.tunnels(now),
        }
    }
}
