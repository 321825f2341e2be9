//! Classes that take several links, in virtual time: shared, balanced and duplicated, with limits and one-way links.

use proto::policy::{Class, Direction, Limit, Link, Mode, Policy, Treatment};
use proto::sim::{CONTENT, Flow, LinkModel, Loss, Side, World, WorldConfig, at, ms};
use std::cell::RefCell;
use std::rc::Rc;

fn policy(links: [Link; proto::MAX_SLOTS], treatment: Treatment) -> Policy {
    let class = Class { up: treatment.clone(), down: treatment, ..Class::everything("all") };
    Policy::new(links, vec![class]).expect("a good policy")
}

fn world(links: &[LinkModel], treatment: Treatment, seed: u64) -> World {
    let policy = policy(Default::default(), treatment).into();
    let mut world = World::new(WorldConfig { policy, ..WorldConfig::new(links, seed) });
    world.run_until(at(1000));
    world
}

/// Octets that a side sends by each link from now on.
fn count(world: &mut World, from: Side) -> Rc<RefCell<[u64; 8]>> {
    let sent = Rc::new(RefCell::new([0; 8]));
    let counted = sent.clone();
    world.set_tap(Some(Box::new(move |link, side, data| {
        if side == from {
            counted.borrow_mut()[link] += data.len() as u64;
        }
        true
    })));
    sent
}

#[test]
fn four_hundred_flows_are_shared_as_the_weights_say() {
    let treatment = Treatment { links: vec![0, 1], mode: Mode::Share(vec![3, 1]), ..Treatment::default() };
    for (seed, from) in [(1, Side::Box), (2, Side::Core), (3, Side::Box)] {
        let mut world = world(&[LinkModel::default(); 2], treatment.clone(), seed);
        let sent = count(&mut world, from);
        for flow in 0..400 {
            world.add_flow(Flow { interval: ms(20), ..Flow::steady(from, 1000 + flow, 3000 + flow) });
        }
        world.run_until(at(4000));
        let [a, b, ..] = *sent.borrow();
        let share = a as f64 * 100.0 / (a + b) as f64;
        assert!((70.0..=80.0).contains(&share), "{share:.1} % by the link that is to have 75");
        for report in world.reports() {
            assert_eq!((report.received, report.reordered, report.duplicated), (report.sent, 0, 0));
        }
    }
}

#[test]
fn shared_flows_move_when_a_link_dies_and_back_and_lose_nothing() {
    let treatment = Treatment { mode: Mode::Share(vec![]), ..Treatment::default() };
    for seed in 0..10 {
        let mut world = world(&[LinkModel::default(); 2], treatment.clone(), seed);
        for _ in 0..20 {
            world.add_flow(Flow { interval: ms(5), ..Flow::steady(Side::Core, 1000, 12_000) });
        }
        world.run_until(at(2003 + seed * 7));
        world.set_cut_both(0, true);
        world.run_until(at(4000));
        world.set_cut_both(0, false);
        world.run_until(at(13_000));
        for report in world.reports() {
            assert_eq!((report.received, report.duplicated), (report.sent, 0), "seed {seed}");
        }
    }
}

#[test]
fn balanced_connections_fill_both_links() {
    let link = LinkModel { rate: 20_000_000, queue: 50_000, ..LinkModel::default() };
    let treatment = Treatment { mode: Mode::Balance, ..Treatment::default() };
    for seed in 0..3 {
        let mut world = world(&[link; 2], treatment.clone(), seed);
        let connections: Vec<usize> = (0..16).map(|_| world.add_tcp(Side::Core, at(21_000))).collect();
        world.run_until(at(6000));
        let octets = |world: &World| connections.iter().map(|at| world.progress(*at).octets).sum::<u64>();
        let (before, sent) = (octets(&world), count(&mut world, Side::Core));
        world.run_until(at(21_000));
        // The same without a place in a stream: 1,440 octets carry as much.
        let used = sent.borrow()[..2].iter().map(|octets| *octets as f64 * 8.0 / 15.0 / 20e6).collect::<Vec<_>>();
        let goodput = (octets(&world) - before) as f64 * 8.0 / 15.0 / (40e6 * CONTENT as f64 / 1440.0);
        assert!(used.iter().all(|used| *used >= 0.95), "{used:?} of the links, {goodput:.3} of the content");
    }
}

#[test]
fn what_is_sent_by_two_links_is_lost_when_both_lose_it() {
    let link = LinkModel { loss: Loss::Random(0.05), ..LinkModel::default() };
    let treatment = Treatment { mode: Mode::Duplicate(2), ..Treatment::default() };
    for (seed, from) in [(1, Side::Box), (2, Side::Core), (3, Side::Core)] {
        let mut world = world(&[link, LinkModel { delay: ms(25), ..link }], treatment.clone(), seed);
        world.add_flow(Flow { interval: ms(2), ..Flow::steady(from, 1000, 61_000) });
        world.run_until(at(62_000));
        let report = &world.reports()[0];
        let lost = (report.sent - report.received) as f64 * 100.0 / report.sent as f64;
        assert!(lost <= 0.4 && report.duplicated == 0, "{lost:.2} % lost of {report:?}");
    }
}

#[test]
fn neither_link_s_death_is_felt_where_both_carry_all() {
    let treatment = Treatment { mode: Mode::Duplicate(2), ..Treatment::default() };
    for seed in 0..40 {
        let links = [LinkModel::default(), LinkModel { delay: ms(25), ..LinkModel::default() }];
        let mut world = world(&links, treatment.clone(), seed);
        world.add_flow(Flow::steady(Side::Box, 1000, 5000));
        world.add_flow(Flow::steady(Side::Core, 1000, 5000));
        world.run_until(at(3000) + ms(1) * (seed as u32 / 2));
        world.set_cut_both(seed as usize % 2, true);
        world.run_until(at(6000));
        for report in world.reports() {
            assert_eq!((report.received, report.duplicated), (report.sent, 0), "seed {seed}: {report:?}");
            assert!(report.longest_gap.0 <= ms(15 + 10), "seed {seed}: {report:?}");
        }
    }
}

#[test]
fn a_link_beyond_the_limit_is_left_without_loss_and_taken_again_when_it_is_well_within() {
    let limit = Limit { latency: Some(ms(40)), ..Limit::default() };
    let treatment = Treatment { links: vec![0, 1], limit, ..Treatment::default() };
    for seed in 0..10 {
        let links = [LinkModel::default(), LinkModel { delay: ms(30), ..LinkModel::default() }];
        let mut world = world(&links, treatment.clone(), seed);
        world.add_flow(Flow::steady(Side::Core, 1000, 25_000));
        world.run_until(at(3000));
        let current = |world: &World| world.snapshot(Side::Core).peers[0].classes[0].current_slot;
        assert_eq!(current(&world), Some(0));
        for (from, delay, until, expected) in
            [(Side::Core, 100, 6000, 1), (Side::Core, 60, 12_000, 1), (Side::Core, 10, 22_000, 0)]
        {
            for side in [from, from.other()] {
                world.set_model(0, side, LinkModel { delay: ms(delay), ..links[0] });
            }
            world.run_until(at(until));
            let paths = world.snapshot(Side::Core).peers[0].paths.clone();
            assert_eq!(current(&world), Some(expected), "seed {seed}: {delay} ms {paths:?}");
        }
        world.run_until(at(26_000));
        let report = &world.reports()[0];
        assert_eq!((report.received, report.duplicated), (report.sent, 0), "seed {seed}: {report:?}");
    }
}

#[test]
fn a_link_for_one_direction_carries_nothing_in_the_other() {
    let mut links: [Link; proto::MAX_SLOTS] = Default::default();
    links[0].only = Some(Direction::Down);
    let policy = policy(links, Treatment::default()).into();
    let mut world = World::new(WorldConfig { policy, ..WorldConfig::new(&[LinkModel::default(); 2], 1) });
    world.add_flow(Flow::steady(Side::Box, 1000, 4000));
    world.add_flow(Flow::steady(Side::Core, 1000, 4000));
    world.run_until(at(5000));
    let slot = |side| world.snapshot(side).peers[0].current_slot;
    assert_eq!((slot(Side::Box), slot(Side::Core)), (Some(1), Some(0)));
    assert!(world.reports().iter().all(|report| report.received == report.sent));
}
