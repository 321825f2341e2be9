//! Whatever the links do, and the world around them: what must hold after any sequence of events.
//!
//! proptest prints the shortest sequence that it finds to fail, with the world's seed: it replays exactly.

use proptest::prelude::*;
use proto::sim::{Arrival, Flow, LinkModel, Loss, Side, Sleep, Stalls, World, WorldConfig, at, ms, site_prefixes};
use proto::snapshot::Snapshot;
use proto::{DropReason, Instant};
use std::net::SocketAddr;
use std::time::Duration;

const SIDES: [Side; 2] = [Side::Box, Side::Core];

/// Octets that are kept for a peer in case another path must carry them, at most.
const MOST_KEPT: u64 = 16 * 1024 * 1024;

/// Something that happens to a world.
#[derive(Clone, Debug)]
enum Step {
    Cut {
        link: usize,
        from: Side,
        cut: bool,
    },
    Model {
        link: usize,
        from: Side,
        model: LinkModel,
    },
    /// The NAT takes another port.
    Rebind {
        link: usize,
        port: u16,
    },
    NatTimeout {
        link: usize,
        seconds: u64,
    },
    /// The box's own address changes, and it knows.
    Renumber {
        link: usize,
        host: u8,
    },
    Uplink {
        link: usize,
        present: bool,
    },
    Prefer {
        link: usize,
        preference: u8,
    },
    ClockSet(Side),
    Freeze {
        side: Side,
        length: u64,
    },
    Restart {
        side: Side,
        after: u64,
    },
    /// The box sends a packet from an address that is not its site's.
    Spoof,
}

fn any_side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Box), Just(Side::Core)]
}

fn any_link() -> impl Strategy<Value = LinkModel> {
    let loss = prop_oneof![
        (0.0..0.3f64).prop_map(Loss::Random),
        (0.0..0.05f64, 0.05..1.0f64).prop_map(|(to_bad, to_good)| Loss::Bursts { to_bad, to_good }),
    ];
    let stalls = (100..5000u64, 1..50u64, 1..500u64).prop_map(|(every, shortest, longer)| Stalls {
        every: ms(every),
        shortest: ms(shortest),
        longest: ms(shortest + longer),
    });
    let asleep = (100..5000u64, 1..500u64).prop_map(|(after, wakes)| Sleep { after: ms(after), wakes_in: ms(wakes) });
    (
        (0..200u64, 0..50u64, any::<bool>(), loss),
        (prop_oneof![Just(0), 200_000..10_000_000u64], 0.0..0.1f64, 600..1501usize),
        (proptest::option::of(stalls), proptest::option::of(asleep)),
    )
        .prop_map(|((delay, jitter, ordered, loss), (rate, duplicate, mtu), (stalls, asleep))| LinkModel {
            delay: ms(delay),
            jitter: ms(jitter),
            ordered,
            loss,
            rate,
            duplicate,
            mtu,
            stalls,
            asleep,
            ..LinkModel::default()
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4usize, any_side(), any::<bool>()).prop_map(|(link, from, cut)| Step::Cut { link, from, cut }),
        2 => (0..4usize, any_side(), any_link()).prop_map(|(link, from, model)| Step::Model { link, from, model }),
        1 => (0..4usize, 1024..60_000u16).prop_map(|(link, port)| Step::Rebind { link, port }),
        1 => (0..4usize, 1..30u64).prop_map(|(link, seconds)| Step::NatTimeout { link, seconds }),
        1 => (0..4usize, 10..250u8).prop_map(|(link, host)| Step::Renumber { link, host }),
        2 => (0..4usize, any::<bool>()).prop_map(|(link, present)| Step::Uplink { link, present }),
        1 => (0..4usize, 0..8u8).prop_map(|(link, preference)| Step::Prefer { link, preference }),
        1 => any_side().prop_map(Step::ClockSet),
        1 => (any_side(), 1..3000u64).prop_map(|(side, length)| Step::Freeze { side, length }),
        1 => (any_side(), 0..2000u64).prop_map(|(side, after)| Step::Restart { side, after }),
        2 => Just(Step::Spoof),
    ]
}

/// What an end has counted, through all its lives.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Packets offered to it, and what became of them at once.
    offered: u64,
    /// Packets delivered.
    delivered: u64,
    /// Of packets that it sent: lost on the way, or given up.
    missing: u64,
    /// Of packets that came: not delivered.
    dropped: u64,
    /// Packets from a source that is not the peer's.
    foreign: u64,
}

impl Counted {
    fn add(&mut self, snapshot: &Snapshot) {
        let peer = &snapshot.peers[0];
        let drops = |reasons: &[DropReason]| reasons.iter().map(|reason| peer.drops.get(*reason)).sum::<u64>();
        // What waited for longer than a second when a process stood still.
        let stale = snapshot.drops.get(DropReason::Stale);
        let no_path = drops(&[DropReason::NoPath]);
        self.offered += peer.tx.packets + no_path + stale;
        self.delivered += peer.rx.packets;
        let lost: u64 = peer.paths.iter().map(|path| path.lost).sum();
        self.missing +=
            no_path + stale + lost + drops(&[DropReason::Aged, DropReason::Congestion, DropReason::ReplayBound]);
        self.dropped += drops(&[
            DropReason::Stale,
            DropReason::CopyStale,
            DropReason::FragmentTimeout,
            DropReason::FragmentOverflow,
        ]);
        self.foreign += drops(&[DropReason::PeerSource]);
    }
}

/// A world in which things happen, and what is known of it.
struct Trial {
    world: World,
    links: usize,
    counted: [Counted; 2],
    /// When an end was killed, and when it was there again.
    restarts: Vec<Instant>,
    spoofed: u64,
    stood_still: bool,
}

impl Trial {
    fn new(links: Vec<(LinkModel, LinkModel)>, seed: u64, [start, end]: [u64; 2]) -> Trial {
        let count = links.len();
        let mut box_prefixes = site_prefixes();
        box_prefixes.extend("10.9.0.0/16".parse::<ipnet::IpNet>());
        let mut world = World::new(WorldConfig { links, box_prefixes, ..WorldConfig::new(&[], seed) });
        world.add_flow(Flow { interval: ms(5), size: 1380, ..Flow::steady(Side::Box, start, end) });
        world.add_flow(Flow { interval: ms(5), ..Flow::steady(Side::Core, start, end) });
        Trial { world, links: count, counted: Default::default(), restarts: Vec::new(), spoofed: 0, stood_still: false }
    }

    fn step(&mut self, step: &Step) {
        let (world, links) = (&mut self.world, self.links);
        match *step {
            Step::Cut { link, from, cut } => world.set_cut(link % links, from, cut),
            Step::Model { link, from, model } => world.set_model(link % links, from, model),
            Step::Rebind { link, port } => {
                let outside = SocketAddr::from(([203, 0, 113, (link % links) as u8 + 1], port));
                world.rebind(link % links, outside);
            }
            Step::NatTimeout { link, seconds } => world.set_nat_timeout(link % links, ms(seconds * 1000)),
            Step::Renumber { link, host } => {
                // A different network for each link: no two have the same address.
                let outside = SocketAddr::from(([198, 18, (link % links) as u8, host], 40000));
                world.renumber(link % links, outside);
            }
            Step::Uplink { link, present } => world.set_uplink(link % links, present),
            Step::Prefer { link, preference } => world.prefer(link % links, preference),
            Step::ClockSet(side) => world.step_clock(side),
            Step::Freeze { side, length } => {
                self.stood_still = true;
                world.freeze(side);
                world.run_for(ms(length));
                world.thaw(side);
            }
            Step::Restart { side, after } => {
                self.counted[side as usize].add(&world.snapshot(side));
                self.restarts.push(world.now());
                world.kill(side);
                world.run_for(ms(after));
                world.start(side);
                self.restarts.push(world.now());
            }
            Step::Spoof => self.spoofed += u64::from(world.offer(Side::Box, &mut spoofed())),
        }
    }

    /// All links work again, as links should, and the world has a minute to settle.
    fn calm(&mut self, until: Instant) {
        for link in 0..self.links {
            self.world.set_cut_both(link, false);
            self.world.set_uplink(link, true);
            for from in SIDES {
                self.world.set_model(link, from, LinkModel::default());
            }
        }
        self.world.run_until(until);
        for side in SIDES {
            self.counted[side as usize].add(&self.world.snapshot(side));
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (flow, from) in SIDES.into_iter().enumerate() {
            let (sender, receiver) = (&self.counted[from as usize], &self.counted[from.other() as usize]);
            let report = &self.world.reports()[flow];
            let spoofed = if from == Side::Box { self.spoofed } else { 0 };
            prop_assert_eq!(
                sender.offered,
                report.sent - report.refused + spoofed,
                "{:?} counts what it is offered",
                from
            );
            prop_assert_eq!(
                receiver.delivered,
                report.received + report.duplicated,
                "what comes out is the flow's and nothing else's, from {:?}",
                from
            );
            for (first, again) in twice(self.world.arrivals(flow)) {
                let restarted = self.restarts.iter().any(|at| (first..=again).contains(at));
                prop_assert!(restarted, "delivered at {:?} and again at {:?}, from {:?}", first, again, from);
            }
            // Who is killed or stands still forgets what is under way.
            if self.restarts.is_empty() && !self.stood_still {
                let missing = report.sent - report.refused - report.received;
                prop_assert!(
                    missing <= sender.missing + receiver.dropped,
                    "{missing} missing from {from:?}: {sender:?}, {receiver:?}"
                );
            }
        }
        prop_assert!(self.counted[Side::Core as usize].foreign <= self.spoofed);
        for side in SIDES {
            prop_assert!(
                self.world.snapshot(side).peers[0].reachable,
                "a minute after all, {:?} reaches the other",
                side
            );
        }
        Ok(())
    }
}

/// The packets that came twice: when, and when again.
fn twice(arrivals: &[Arrival]) -> Vec<(Instant, Instant)> {
    let mut sorted = arrivals.to_vec();
    sorted.sort_by_key(|arrival| (arrival.number, arrival.at));
    let same = |two: &&[Arrival]| two[0].number == two[1].number;
    sorted.windows(2).filter(same).map(|two| (two[0].at, two[1].at)).collect()
}

/// A UDP packet from 10.9.9.9 to a host on the Internet.
fn spoofed() -> Vec<u8> {
    let mut packet = vec![0; 40];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 40, 64, 17);
    packet[12..16].copy_from_slice(&[10, 9, 9, 9]);
    packet[16..20].copy_from_slice(&[203, 0, 113, 200]);
    packet[25] = 20;
    packet
}

proptest! {
    /// Nothing is delivered twice but across a restart, nothing from a foreign source, and what is missing was counted.
    #[test]
    fn whatever_happens(
        links in proptest::collection::vec((any_link(), any_link()), 1..4),
        steps in proptest::collection::vec((any_step(), 1..2000u64), 0..24),
        seed in any::<u64>(),
    ) {
        let mut trial = Trial::new(links, seed, [100, 15_000]);
        for (step, pause) in &steps {
            trial.step(step);
            trial.world.run_for(ms(*pause));
            for side in SIDES {
                let kept = trial.world.snapshot(side).peers[0].kept.bytes;
                prop_assert!(kept <= MOST_KEPT, "{side:?} keeps {kept} octets");
            }
        }
        let end = trial.world.now().max(at(15_000));
        trial.calm(end + ms(60_000));
        trial.check()?;
    }
}

proptest! {
    // Each takes as long as a few of the other's.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    /// While another link lives that loses nothing, no packet is lost and none comes twice, whatever befalls the first. (A
    /// cut that ends before anybody can know of it is loss on a path that lives, so cuts last half a second at least.)
    #[test]
    fn one_link_at_a_time(
        links in (sound_link(), sound_link()),
        troubles in proptest::collection::vec((0..2usize, any_trouble(), 500..3000u64, 0..1000u64), 1..6),
        seed in any::<u64>(),
    ) {
        let links = [links.0, links.1];
        let mut trial = Trial::new(links.map(|link| (link, link)).to_vec(), seed, [1000, 40_000]);
        trial.world.run_until(at(2000));
        for (link, trouble, length, pause) in troubles {
            trouble.begin(&mut trial.world, link, links[link]);
            trial.world.run_for(ms(length));
            trouble.end(&mut trial.world, link, links[link]);
            // So long that the link is known to be back before the other one fails.
            trial.world.run_for(ms(3000 + pause));
        }
        trial.calm(at(60_000));
        trial.check()?;
        for (report, from) in trial.world.reports().iter().zip(SIDES) {
            prop_assert_eq!((report.sent - report.received, report.duplicated), (0, 0), "lost, twice, from {:?}", from);
        }
    }
}

/// A link that loses nothing.
fn sound_link() -> impl Strategy<Value = LinkModel> {
    (1..100u64, 0..10u64, any::<bool>()).prop_map(|(delay, jitter, ordered)| LinkModel {
        delay: ms(delay),
        jitter: ms(jitter),
        ordered,
        ..LinkModel::default()
    })
}

/// What befalls a link for a while.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Cut,
    CutFrom(Side),
    Carrier,
    Slower(u64),
    Stalls(u64),
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        Just(Trouble::Cut),
        any_side().prop_map(Trouble::CutFrom),
        Just(Trouble::Carrier),
        (1..300u64).prop_map(Trouble::Slower),
        (100..2000u64).prop_map(Trouble::Stalls),
    ]
}

impl Trouble {
    fn begin(self, world: &mut World, link: usize, model: LinkModel) {
        match self {
            Trouble::Cut => world.set_cut_both(link, true),
            Trouble::CutFrom(side) => world.set_cut(link, side, true),
            Trouble::Carrier => {
                world.set_cut_both(link, true);
                world.lose_under_way(link, Side::Box);
                world.lose_under_way(link, Side::Core);
                world.set_uplink(link, false);
            }
            Trouble::Slower(more) => Self::model(world, link, LinkModel { delay: model.delay + ms(more), ..model }),
            Trouble::Stalls(every) => {
                let stalls = Stalls { every: ms(every), shortest: ms(10), longest: ms(100) };
                Self::model(world, link, LinkModel { stalls: Some(stalls), ..model });
            }
        }
    }

    fn end(self, world: &mut World, link: usize, model: LinkModel) {
        world.set_cut_both(link, false);
        world.set_uplink(link, true);
        Self::model(world, link, model);
    }

    fn model(world: &mut World, link: usize, model: LinkModel) {
        for from in SIDES {
            world.set_model(link, from, model);
        }
    }
}

/// 46 MB a second, of which no receipt comes for a second, are more than may be kept.
#[test]
fn memory_stays_in_its_bound_and_what_makes_room_is_counted() {
    let slow = LinkModel { delay: ms(450), ..LinkModel::default() };
    let mut world = World::new(WorldConfig::new(&[slow; 2], 1));
    world.run_until(at(10_000));
    let interval = Duration::from_micros(30);
    world.add_flow(Flow { interval, size: 1380, ..Flow::steady(Side::Box, 10_000, 12_000) });
    world.run_until(at(11_500));
    world.set_cut_both(0, true);
    let mut most = 0;
    while world.now() < at(20_000) {
        world.run_for(ms(20));
        let kept = world.snapshot(Side::Box).peers[0].kept;
        most = most.max(kept.bytes);
        assert!(kept.bytes <= MOST_KEPT, "{kept:?}");
    }
    assert!(most > MOST_KEPT / 2, "the bound was near: {most}");
    let (report, peer) = (&world.reports()[0], &world.snapshot(Side::Box).peers[0]);
    assert_eq!(report.duplicated, 0);
    let lost: u64 = peer.paths.iter().map(|path| path.lost).sum();
    let gone = peer.drops.get(DropReason::ReplayBound) + peer.drops.get(DropReason::Aged) + lost;
    assert!(peer.drops.get(DropReason::ReplayBound) > 0, "{peer:?}");
    assert!(report.sent - report.received <= gone, "{report:?}, {peer:?}");
    assert_eq!(peer.kept.packets, 0, "in the end nothing is kept");
}
