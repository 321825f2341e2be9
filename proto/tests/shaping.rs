//! Links that are full, their rates given or not: both ends shape to them, and a call does not notice.

use proto::DropReason;
use proto::policy::{Link, Policy};
use proto::sim::{Flow, LinkModel, Side, World, WorldConfig, at, ms};
use std::sync::Arc;
use std::time::Duration;

const MBIT: u64 = 1_000_000;

/// Links of this round trip, with queues of 200 ms, of so many Mbit/s up and down; as is said to both ends of each.
fn world(rtt: u64, links: &[(u64, u64)], said: &[(u64, u64)], seed: u64) -> World {
    let model = |mbit: u64| LinkModel {
        delay: ms(rtt) / 2,
        rate: mbit * MBIT,
        queue: (mbit * MBIT / 8 / 5) as usize,
        ..LinkModel::default()
    };
    let mut facts: [Link; 8] = Default::default();
    for (link, &(up, down)) in facts.iter_mut().zip(said) {
        *link = Link { rate_up: Some(up * MBIT), rate_down: Some(down * MBIT), ..Link::default() };
    }
    let policy = Policy::new(facts, Vec::new()).expect("it says nothing of classes");
    World::new(WorldConfig {
        links: links.iter().map(|&(up, down)| (model(up), model(down))).collect(),
        policy: Arc::new(policy),
        ..WorldConfig::new(&[], seed)
    })
}

/// A call of 50 packets a second each way, and packets of 1,250 octets at so many Mbit/s up and down beside it.
fn load(world: &mut World, mbit: (u64, u64), start: u64, end: u64) {
    for (from, mbit) in [(Side::Box, mbit.0), (Side::Core, mbit.1)] {
        world.add_flow(Flow { interval: ms(20), size: 200, dscp: 46, ..Flow::steady(from, start, end) });
        let interval = Duration::from_nanos(1250 * 8 * 1000 / mbit);
        world.add_flow(Flow { interval, size: 1250, ..Flow::steady(from, start, end) });
    }
}

/// The median of a flow's delays, the 99th percentile, and the most.
fn delays(world: &World, flow: usize) -> [Duration; 3] {
    let mut delays: Vec<Duration> = world.arrivals(flow).iter().map(|a| a.at.since(a.sent_at)).collect();
    delays.sort();
    [50, 99, 100].map(|share| delays[(delays.len() * share).div_ceil(100) - 1])
}

#[test]
fn a_call_does_not_notice_that_a_link_of_a_given_rate_is_full_and_the_rest_has_all_that_is_left() {
    for seed in 0..10 {
        let mut world = world(20, &[(10, 50)], &[(10, 50)], seed);
        load(&mut world, (15, 75), 1500, 6500);
        world.run_until(at(8000));
        for (call, bulk, mbit) in [(0, 1, 10), (2, 3, 50)] {
            let reports = world.reports();
            assert_eq!(reports[call].received, reports[call].sent, "seed {seed}");
            let [median, most_of_them, most] = delays(&world, call);
            assert!(median <= ms(12) && most_of_them <= ms(14) && most <= ms(15), "seed {seed}: {median:?} {most:?}");
            // 5 s of the rate, and of each packet of 1,250 octets 1,328 on the link.
            let carried = reports[bulk].received * (1250 + 32 + 28 + 18) * 8;
            let share = carried as f64 / (5 * mbit * MBIT) as f64;
            assert!(share >= 0.95, "seed {seed}, {mbit} Mbit/s: {share}");
        }
    }
}

#[test]
fn a_link_that_carries_less_than_was_said_is_held_to_what_it_carries() {
    for seed in 0..10 {
        let mut world = world(20, &[(6, 30)], &[(10, 50)], seed);
        load(&mut world, (15, 75), 1500, 9500);
        world.run_until(at(11_000));
        for (call, bulk, mbit) in [(0, 1, 6), (2, 3, 30)] {
            let [_, most_of_them, _] = delays(&world, call);
            assert!(most_of_them <= ms(10 + 60), "seed {seed}: {most_of_them:?}");
            let share = (world.reports()[bulk].received * 1310 * 8) as f64 / (8 * mbit * MBIT) as f64;
            assert!(share >= 0.85, "seed {seed}, {mbit} Mbit/s: {share}");
        }
    }
}

#[test]
fn failover_to_a_link_of_a_given_rate_loses_nothing_that_it_can_carry() {
    for seed in 0..120 {
        let rtt = [20, 60, 150][seed as usize % 3];
        let mut world = world(rtt, &[(50, 50), (10, 10)], &[(50, 50), (10, 10)], seed);
        load(&mut world, (8, 8), 1500, 4500);
        world.run_until(at(2500) + Duration::from_micros(seed * 7_310 % 500_000));
        world.set_cut_both(0, true);
        if seed % 2 == 0 {
            world.set_uplink(0, false);
        }
        world.run_until(at(7000));
        for report in world.reports() {
            let lost = report.sent - report.received;
            assert_eq!((lost, report.duplicated), (0, 0), "seed {seed}: lost, twice; {report:?}");
        }
    }
}

#[test]
fn a_call_hardly_notices_that_the_rate_changes_which_nobody_has_said() {
    for (seed, both) in [(0, true), (1, false), (2, true)] {
        // A queue of one bandwidth-delay product at the higher rate.
        let model = |mbit: u64| LinkModel { delay: ms(10), rate: mbit * MBIT, queue: 100_000, ..LinkModel::default() };
        let mut world = World::new(WorldConfig::new(&[model(40)], seed));
        load(&mut world, (60, 60), 1500, 41_500);
        for (phase, mbit) in [40, 5, 40, 5].into_iter().enumerate() {
            world.set_model(0, Side::Box, model(mbit));
            if both {
                world.set_model(0, Side::Core, model(mbit));
            }
            world.run_until(at(11_500 + 10_000 * phase as u64));
        }
        let [_, most_of_them, _] = delays(&world, 0);
        assert!(most_of_them <= ms(40), "seed {seed}: {most_of_them:?}");
        let share = (world.reports()[1].received * 1310 * 8) as f64 / (900 * MBIT) as f64;
        assert!(share >= 0.9, "seed {seed}: {share}");
    }
}

/// A call beside four TCP connections each way for forty seconds, over a link of which nobody has said what it carries and which
/// has a queue of so many octets, and perhaps another link. The rate becomes another each ten seconds. Of the call and of the
/// connections, up and down: the 99th percentile of the delays, and the octets.
fn beside_tcp(queue: usize, other: bool, mbit: [u64; 4], seed: u64) -> [(Duration, u64); 2] {
    let model = |mbit: u64| LinkModel { delay: ms(10), rate: mbit * MBIT, queue, ..LinkModel::default() };
    let links = [model(mbit[0]), LinkModel { delay: ms(15), ..LinkModel::default() }];
    let mut world = World::new(WorldConfig::new(if other { &links } else { &links[..1] }, seed));
    for from in [Side::Box, Side::Core] {
        world.add_flow(Flow { interval: ms(10), size: 200, dscp: 46, ..Flow::steady(from, 1500, 41_500) });
    }
    world.run_until(at(1500));
    let sides = [Side::Box, Side::Core].into_iter().cycle().take(8);
    let connections: Vec<_> = sides.map(|from| world.add_tcp(from, at(41_500))).collect();
    for (phase, mbit) in mbit.into_iter().enumerate() {
        world.set_model(0, Side::Box, model(mbit));
        world.set_model(0, Side::Core, model(mbit));
        world.run_until(at(11_500 + seed * 37 + 10_000 * phase as u64));
    }
    [0, 1].map(|way| {
        let octets = connections.iter().skip(way).step_by(2).map(|of| world.progress(*of).octets);
        (delays(&world, way)[1], octets.sum())
    })
}

#[test]
fn a_call_does_not_stand_in_the_queue_that_tcp_makes_of_a_link() {
    for seed in 0..4 {
        // A queue of 200 ms at 40 Mbit/s.
        for (most_of_them, octets) in beside_tcp(1_000_000, false, [40; 4], seed) {
            assert!(most_of_them <= ms(40), "seed {seed}: {most_of_them:?}");
            assert!(octets >= 160_000_000, "seed {seed}: {octets} of 183,000,000");
        }
    }
}

#[test]
fn a_call_goes_by_another_link_too_while_the_queue_of_its_own_is_long() {
    for seed in 0..4 {
        for (most_of_them, octets) in beside_tcp(100_000, true, [40, 5, 40, 5], seed) {
            assert!(most_of_them <= ms(40), "seed {seed}: {most_of_them:?}");
            assert!(octets >= 82_000_000, "seed {seed}: {octets} of 103,000,000");
        }
    }
}

#[test]
fn a_full_link_marks_the_flow_that_can_be_told_so_and_drops_of_the_other() {
    for seed in 0..5 {
        let mut world = world(20, &[(10, 50)], &[(10, 50)], seed);
        // Each has half of the link and wants four fifths, for as long as what waits does not become too old.
        let flow = Flow { interval: Duration::from_micros(1250), size: 1250, ..Flow::steady(Side::Box, 1500, 2700) };
        let [told, deaf] = [Flow { ecn: 2, ..flow }, flow].map(|flow| world.add_flow(flow));
        world.run_until(at(6000));
        let marks = |flow: usize| world.arrivals(flow).iter().filter(|a| a.traffic_class & 3 == 3).count() as u64;
        let reports = world.reports();
        let drops = &world.snapshot(Side::Box).peers[0].drops;
        assert_eq!(reports[told].received, reports[told].sent, "seed {seed}");
        assert_eq!(reports[deaf].sent - reports[deaf].received, drops.get(DropReason::Congestion), "seed {seed}");
        assert!(drops.get(DropReason::Congestion) > 10 && drops.get(DropReason::Aged) == 0, "seed {seed}: {drops:?}");
        assert!(marks(told) > 10 && marks(deaf) == 0, "seed {seed}: {}", marks(told));
        assert_eq!(world.snapshot(Side::Box).peers[0].paths[0].marks.made, marks(told), "seed {seed}");
    }
}
