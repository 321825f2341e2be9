//! What access networks do to a path: several addresses of the core of which some are dead, renumbering, NATs that
//! forget.

use proto::sim::{Flow, LinkModel, Side, World, WorldConfig, at, ms};
use proto::{Keepalive, PathState, TunnelKind};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

fn core_v6() -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 1, 0, 0, 0, 0, 1], 51820))
}

fn core_v4() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 51820))
}

/// Links that lead to the core by IPv6, which is preferred, and by IPv4.
fn dual_stack(links: usize, seed: u64) -> World {
    let links = vec![LinkModel::default(); links];
    World::new(WorldConfig { core_addresses: vec![core_v6(), core_v4()], ..WorldConfig::new(&links, seed) })
}

/// The state and the endpoint of the path of slot 0, as the box sees it.
fn first_path(world: &World) -> (PathState, Option<SocketAddr>) {
    let path = &world.snapshot(Side::Box).peers[0].paths[0];
    (path.state, path.endpoint)
}

fn path_changes(world: &World, side: Side) -> u64 {
    world.snapshot(side).peers[0].path_changes
}

/// Counts the datagrams that begin a handshake.
fn count_initiations(world: &mut World) -> Rc<Cell<u32>> {
    let initiations = Rc::new(Cell::new(0));
    let count = initiations.clone();
    world.set_tap(Some(Box::new(move |_, _, data| {
        count.set(count.get() + u32::from(data[0] == 1));
        true
    })));
    initiations
}

#[test]
fn of_two_families_the_one_that_answers_is_used_and_nothing_is_sent_by_the_other() {
    for (dead, left) in [(core_v6(), core_v4()), (core_v4(), core_v6())] {
        let mut world = dual_stack(1, 1);
        world.set_black_hole(0, Side::Box, dead, true);
        world.run_until(at(100));
        assert_eq!(first_path(&world), (PathState::Up, Some(left)), "the first initiation goes to both");
    }
    let mut world = dual_stack(1, 1);
    world.run_until(at(1000));
    assert_eq!(first_path(&world), (PathState::Up, Some(core_v6())), "both answer at once: the preferred one");
    let initiations = count_initiations(&mut world);
    world.add_flow(Flow::steady(Side::Box, 1000, 300_000));
    world.run_until(at(300_000));
    assert!((2..=4).contains(&initiations.get()), "rekeys, to one address: {}", initiations.get());
}

/// The core has no order of its own: the box's holds for packets to the site too, and when it changes both follow.
#[test]
fn the_core_follows_the_order_of_the_box() {
    let mut world = dual_stack(2, 1);
    world.run_until(at(1000));
    let current = |world: &World| [Side::Box, Side::Core].map(|side| world.snapshot(side).peers[0].current_slot);
    assert_eq!(current(&world), [Some(0); 2]);
    let flows = [Side::Box, Side::Core].map(|from| world.add_flow(Flow::steady(from, 1000, 4000)));
    world.prefer(0, 7);
    world.run_until(at(4200));
    assert_eq!(current(&world), [Some(1); 2]);
    for report in flows.map(|flow| world.reports()[flow].clone()) {
        assert_eq!((report.sent, report.received), (3000, 3000), "a planned move loses nothing");
    }
}

#[test]
fn a_way_whose_return_is_broken_wins_every_race_and_is_not_waited_for() {
    let mut world = dual_stack(1, 2);
    // What comes by IPv4 is slower, so the core answers the copy that came by IPv6, to where nothing arrives.
    world.set_black_hole(0, Side::Core, core_v6(), true);
    world.run_until(at(3000));
    assert_eq!(first_path(&world), (PathState::Up, Some(core_v4())));
}

#[test]
fn a_family_that_dies_in_mid_session_costs_less_than_a_second() {
    for side in [vec![Side::Box, Side::Core], vec![Side::Box], vec![Side::Core]] {
        for seed in 0..10 {
            let mut world = dual_stack(1, seed);
            let flows = [Side::Box, Side::Core].map(|from| world.add_flow(Flow::steady(from, 1000, 8000)));
            world.run_until(at(2000 + seed * 17));
            for &side in &side {
                world.set_black_hole(0, side, core_v6(), true);
            }
            world.run_until(at(8000));
            assert_eq!(first_path(&world), (PathState::Up, Some(core_v4())), "{side:?}");
            for flow in flows {
                let report = &world.reports()[flow];
                assert!(report.longest_gap.0 < ms(1000), "{side:?}, seed {seed}: {report:?}");
            }
        }
    }
}

#[test]
fn an_uplink_whose_addresses_change_goes_on_with_its_session() {
    let mut world = dual_stack(2, 3);
    let flows = [Side::Box, Side::Core].map(|from| world.add_flow(Flow::steady(from, 1000, 8000)));
    world.run_until(at(2000));
    let initiations = count_initiations(&mut world);
    world.renumber(0, SocketAddr::from(([0x2001, 0xdb8, 0xfe, 0, 0, 0, 0, 9], 40000)));
    world.run_until(at(4000));
    // With a gap, in which the other link carries: back within a second.
    world.set_cut_both(0, true);
    world.set_uplink(0, false);
    world.run_until(at(5000));
    let away = path_changes(&world, Side::Core);
    world.rebind(0, SocketAddr::from(([0x2001, 0xdb8, 0xfe, 0, 0, 0, 0, 10], 40000)));
    world.set_cut_both(0, false);
    world.set_uplink(0, true);
    world.run_until(at(6000));
    for side in [Side::Box, Side::Core] {
        assert_eq!(world.snapshot(side).peers[0].current_slot, Some(0), "{side:?}");
    }
    let before = world.snapshot(Side::Core).peers[0].paths[0].rx.packets;
    world.run_until(at(6500));
    let carried = world.snapshot(Side::Core).peers[0].paths[0].rx.packets - before;
    assert!(carried > 450, "flows that never pause are back too: {carried}");
    world.run_until(at(8000));
    assert_eq!(path_changes(&world, Side::Core), away + 1);
    assert!(initiations.get() <= 4, "the session lives: {}", initiations.get());
    for flow in flows {
        let report = &world.reports()[flow];
        assert!(report.longest_gap.0 < ms(60), "{report:?}");
    }
}

/// Octets of both directions of a link, with IPv4 and UDP headers, from now on.
fn count_octets(world: &mut World, link: usize) -> Rc<Cell<u64>> {
    let octets = Rc::new(Cell::new(0));
    let count = octets.clone();
    world.set_tap(Some(Box::new(move |on, _, data| {
        if on == link {
            count.set(count.get() + data.len() as u64 + 28);
        }
        true
    })));
    octets
}

const MONTH: f64 = 30.0 * 86_400.0;

#[test]
fn an_idle_path_stays_within_fifty_megabytes_a_month() {
    for (keepalive, most) in [
        (Keepalive { idle: ms(25_000), metered: true }, 50e6),
        (Keepalive::metered(50_000_000, TunnelKind::WireGuard), 50e6),
    ] {
        let links = [LinkModel::default(); 2];
        let mut world = World::new(WorldConfig { keepalive, ..WorldConfig::new(&links, 4) });
        world.run_until(at(30_000));
        let octets = count_octets(&mut world, 0);
        world.run_for(ms(600_000));
        let month = octets.get() as f64 / 600.0 * MONTH;
        println!("idle, asked each {:?}: {:.1} MB a month", keepalive.idle, month / 1e6);
        assert!(month <= most, "{keepalive:?}: {month}");
        for side in [Side::Box, Side::Core] {
            let snapshot = world.snapshot(side);
            assert!(snapshot.peers[0].paths.iter().all(|path| path.state == PathState::Up), "{snapshot:?}");
        }
    }
}

#[test]
fn a_metered_standby_costs_no_more_while_the_other_path_carries_traffic() {
    let keepalive = Keepalive { idle: ms(25_000), metered: true };
    let mut world = World::new(WorldConfig { keepalive, ..WorldConfig::new(&[LinkModel::default(); 2], 5) });
    world.run_until(at(2000));
    for from in [Side::Box, Side::Core] {
        world.add_flow(Flow { interval: ms(10), ..Flow::steady(from, 2000, 605_000) });
    }
    world.run_until(at(5000));
    let octets = count_octets(&mut world, 1);
    world.run_for(ms(600_000));
    let month = octets.get() as f64 / 600.0 * MONTH;
    assert!(month <= 50e6, "{month}");
    // And it is there when it is needed.
    world.add_flow(Flow::steady(Side::Core, 605_000, 610_000));
    world.run_until(at(606_000));
    world.set_cut_both(0, true);
    world.run_until(at(610_000));
    assert!(world.reports()[2].longest_gap.0 < ms(300), "{:?}", world.reports());
}

#[test]
fn the_first_packet_after_ten_idle_minutes_arrives_through_a_nat_that_forgets_after_thirty_seconds() {
    for keepalive in [Keepalive::default(), Keepalive::metered(0, TunnelKind::WireGuard)] {
        for from in [Side::Box, Side::Core] {
            let mut world = World::new(WorldConfig { keepalive, ..WorldConfig::new(&[LinkModel::default(); 2], 6) });
            for link in 0..2 {
                world.set_nat_timeout(link, ms(30_000));
            }
            world.add_flow(Flow::steady(from, 600_000, 601_000));
            world.run_until(at(602_000));
            let report = &world.reports()[0];
            assert_eq!((report.sent, report.received), (1000, 1000), "{keepalive:?}, from {from:?}: {report:?}");
            assert_eq!(path_changes(&world, from), 0);
        }
    }
}

#[test]
fn a_path_that_died_while_idle_is_noticed_by_the_first_packet() {
    for from in [Side::Box, Side::Core] {
        let mut world = World::new(WorldConfig::new(&[LinkModel::default(); 2], 7));
        world.run_until(at(100_000));
        world.set_cut_both(0, true);
        world.add_flow(Flow::steady(from, 100_500, 103_000));
        world.run_until(at(103_000));
        let lost = world.reports()[0].sent - world.reports()[0].received;
        assert!(lost < 300, "{from:?}: {:?}", world.reports());
    }
}

#[test]
fn a_restart_after_which_nobody_spoke_is_found_by_hello() {
    // The core restarts while all is idle, and the box's first word after that is a rekey: neither knows of the other's
    // state, and the interval is told again.
    let keepalive = Keepalive { idle: ms(25_000), metered: true };
    let mut world = World::new(WorldConfig { keepalive, ..WorldConfig::new(&[LinkModel::default()], 8) });
    world.run_until(at(60_000));
    world.kill(Side::Core);
    world.start(Side::Core);
    world.run_until(at(200_000));
    let octets = count_octets(&mut world, 0);
    world.run_for(ms(100_000));
    assert_eq!(world.snapshot(Side::Core).peers[0].paths[0].state, PathState::Up);
    assert!(octets.get() < 4000, "the core listens again: {}", octets.get());
}
