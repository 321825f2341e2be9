//! Uplinks that may have either kind of tunnel: which is used where an ISP drops or holds down one of them, what a change costs,
//! and what it costs while nothing is wrong.

use proto::sim::{Flow, LinkModel, Report, Side, World, WorldConfig, at, ms};
use proto::tunnel::Ciphered;
use proto::{Event, Instant, PathState, TunnelChoice, TunnelKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const BOTH: [Side; 2] = [Side::Box, Side::Core];
const WIREGUARD: TunnelKind = TunnelKind::WireGuard;
const QUIC: TunnelKind = TunnelKind::Quic;

fn world(links: &[LinkModel], seed: u64) -> World {
    World::new(WorldConfig { tunnel: TunnelChoice::Auto, ..WorldConfig::new(links, seed) })
}

/// What the uplink of slot 0 has, and why.
fn tunnel(world: &World) -> (TunnelKind, String) {
    let tunnel = world.snapshot(Side::Box).peers[0].tunnels[0].clone();
    (tunnel.tunnel, tunnel.reason)
}

/// The kind of the path by which a side sends now that which is of no class.
fn used(world: &World, side: Side, slot: u8) -> Option<TunnelKind> {
    let peer = world.snapshot(side).peers.remove(0);
    let leads = |path: &&proto::snapshot::PathSnapshot| path.id.slot == slot && !path.stands_by;
    let path = peer.paths.iter().find(leads)?;
    (path.state == PathState::Up && peer.current_slot == Some(slot)).then_some(path.id.tunnel)
}

/// Drops all of one kind on a link, both ways; or lets it pass.
fn set_dropped(world: &mut World, link: usize, kind: TunnelKind, dropped: bool) {
    BOTH.into_iter().for_each(|from| world.set_policer(link, from, kind, dropped.then_some(0)));
}

/// Milliseconds from now until both ends use this kind on slot 0, within so many.
fn until_used(world: &mut World, kind: TunnelKind, within: u64) -> Option<u64> {
    let begun = world.now();
    (0..within / 10).map(|tens| tens * 10).find(|&ms_later| {
        world.run_until(begun + ms(ms_later));
        BOTH.into_iter().all(|side| used(world, side, 0) == Some(kind))
    })
}

/// A flow of 100 packets a second each way, from now on for so long.
fn flows(world: &mut World, lasts: Duration) -> [usize; 2] {
    let (start, end) = (world.now(), world.now() + lasts);
    BOTH.map(|from| world.add_flow(Flow { interval: ms(10), size: 500, start, end, ..Flow::steady(from, 0, 0) }))
}

fn lost(report: &Report) -> u64 {
    report.sent - report.received
}

#[test]
fn while_wireguard_works_nothing_of_quic_is_sent() {
    let mut world = world(&[LinkModel::default(); 2], 1);
    world.run_until(at(1000));
    flows(&mut world, Duration::from_secs(300));
    world.run_until(at(310_000));
    assert_eq!(tunnel(&world), (WIREGUARD, "wireguard: works".into()));
    assert_eq!(world.datagrams_of(QUIC), 0);
    assert!(world.reports().iter().all(|report| lost(report) == 0 && report.reordered == 0));
}

#[test]
fn where_wireguard_is_dropped_from_the_start_quic_is_used_within_three_seconds_and_wireguard_when_it_passes_again() {
    for seed in 0..20 {
        let mut world = world(&[LinkModel::default()], seed);
        set_dropped(&mut world, 0, WIREGUARD, true);
        let settled = until_used(&mut world, QUIC, 5000);
        assert!(settled.is_some_and(|ms| ms <= 3000), "{settled:?}");
        world.run_until(at(30_000));
        let said = tunnel(&world).1;
        assert!(said.starts_with("quic: no answer to WireGuard on port 51820 for 30 s"), "{said}");
        let flows = flows(&mut world, Duration::from_secs(100));
        set_dropped(&mut world, 0, WIREGUARD, false);
        let returned = until_used(&mut world, WIREGUARD, 100_000);
        assert!(returned.is_some_and(|ms| ms <= 60_000), "{returned:?}");
        world.run_until(at(140_000));
        for flow in flows {
            let report = &world.reports()[flow];
            assert_eq!((lost(report), report.reordered, report.duplicated), (0, 0, 0), "{report:?}");
        }
    }
}

#[test]
fn where_quic_is_dropped_wireguard_goes_on() {
    let mut world = world(&[LinkModel::default()], 1);
    set_dropped(&mut world, 0, QUIC, true);
    assert!(until_used(&mut world, WIREGUARD, 3000).is_some_and(|ms| ms <= 200));
}

#[test]
fn where_wireguard_is_dropped_amid_traffic_the_uplink_itself_goes_on_by_quic() {
    for seed in 0..20 {
        let mut world = world(&[LinkModel::default()], seed);
        world.run_until(at(5000 + seed * 7));
        let flows = flows(&mut world, Duration::from_secs(60));
        world.run_for(ms(1000));
        set_dropped(&mut world, 0, WIREGUARD, true);
        let settled = until_used(&mut world, QUIC, 5000);
        assert!(settled.is_some_and(|ms| ms <= 3000), "{settled:?}");
        world.run_for(ms(70_000));
        for flow in flows {
            let report = &world.reports()[flow];
            assert!(report.longest_gap.0 <= ms(2000), "{report:?}");
        }
    }
}

/// Two uplinks: the other one carries it meanwhile, and nothing is lost.
#[test]
fn with_another_uplink_that_loses_nothing() {
    for seed in 0..20 {
        let mut world = world(&[LinkModel::default(), LinkModel { delay: ms(25), ..LinkModel::default() }], seed);
        world.run_until(at(5000 + seed * 7));
        let flows = flows(&mut world, Duration::from_secs(60));
        world.run_for(ms(1000));
        set_dropped(&mut world, 0, WIREGUARD, true);
        let settled = until_used(&mut world, QUIC, 5000);
        assert!(settled.is_some_and(|ms| ms <= 3000), "{settled:?}");
        world.run_for(ms(20_000));
        set_dropped(&mut world, 0, WIREGUARD, false);
        let returned = until_used(&mut world, WIREGUARD, 60_000);
        assert!(returned.is_some(), "{}", tunnel(&world).1);
        world.run_for(ms(60_000));
        for flow in flows {
            let report = &world.reports()[flow];
            assert_eq!((lost(report), report.reordered, report.duplicated), (0, 0, 0), "{report:?}");
        }
    }
}

/// Now one of the two is dropped on an uplink, now the other, now none; never both.
#[test]
fn whatever_an_isp_drops_of_the_two_nothing_is_lost_and_both_ends_agree() {
    for seed in 0..30 {
        let mut world = world(&[LinkModel::default(), LinkModel { delay: ms(25), ..LinkModel::default() }], seed);
        let mut rng = StdRng::seed_from_u64(seed);
        world.run_until(at(2000));
        let flows = flows(&mut world, Duration::from_secs(400));
        for _ in 0..30 {
            let dropped = [None, Some(WIREGUARD), Some(QUIC)][rng.random_range(0..3)];
            for kind in [WIREGUARD, QUIC] {
                set_dropped(&mut world, 0, kind, dropped == Some(kind));
            }
            world.run_for(ms(rng.random_range(20..20_000)));
        }
        for kind in [WIREGUARD, QUIC] {
            set_dropped(&mut world, 0, kind, false);
        }
        world.run_for(Duration::from_secs(400));
        for flow in flows {
            let report = &world.reports()[flow];
            assert_eq!((lost(report), report.duplicated), (0, 0), "seed {seed}: {report:?}");
        }
        assert_eq!(BOTH.map(|side| used(&world, side, 0)), [Some(WIREGUARD); 2], "seed {seed}: {}", tunnel(&world).1);
        assert_eq!(tunnel(&world).1, "wireguard: works", "seed {seed}");
        // What rests costs nothing.
        let before = world.datagrams_of(QUIC);
        world.run_for(Duration::from_secs(300));
        assert_eq!(world.datagrams_of(QUIC), before, "seed {seed}");
    }
}

/// What the box says by one tunnel may wait in a queue, and what it says by the other overtakes it.
#[test]
fn what_was_said_before_quic_led_may_come_after_it() {
    let config = WorldConfig { tunnel: TunnelChoice::Auto, ..WorldConfig::new(&[LinkModel::default()], 1) };
    let mut world = World::new(WorldConfig { suite: || Box::<Ciphered>::default(), ..config });
    world.run_until(at(1_000));
    let flows = flows(&mut world, Duration::from_secs(20));
    // From now on WireGuard's datagrams wait on the way to the core.
    let waiting = Rc::new(RefCell::new(Vec::new()));
    let kept = waiting.clone();
    world.set_tap(Some(Box::new(move |_, from, data| {
        let waits = from == Side::Box && matches!(data, [1..=4, 0, 0, 0, ..]);
        if waits {
            kept.borrow_mut().push(data.to_vec());
        }
        !waits
    })));
    // A HELLO goes, of a path that leads.
    world.set_capped(1);
    world.set_capped(0);
    assert!(until_used(&mut world, QUIC, 5_000).is_some());
    world.set_tap(None);
    let late = waiting.take();
    assert!(late.len() > 10);
    for datagram in late {
        world.inject(Side::Core, 0, "203.0.113.1:40000".parse().expect("an address"), &datagram);
    }
    let now = world.now();
    world.run_until(now + ms(100));
    assert_eq!(BOTH.map(|side| used(&world, side, 0)), [Some(QUIC); 2]);
    world.run_until(at(30_000));
    assert!(flows.iter().all(|flow| world.reports()[*flow].duplicated == 0));
}

/// 5 Mbit/s.
fn load(from: Side, start: Instant, end: Instant) -> Flow {
    Flow { interval: Duration::from_micros(1600), size: 1000, start, end, ..Flow::steady(from, 0, 0) }
}

#[test]
fn a_throttled_wireguard_is_left_within_five_seconds_and_what_is_lost_the_policer_has_dropped() {
    for (links, from, seed) in cases() {
        let mut world = world(&vec![LinkModel::default(); links], seed);
        let why = format!("{links} links, from {from:?}, seed {seed}");
        world.run_until(at(3000 + seed * 11));
        let begun = world.now();
        let flow = world.add_flow(load(from, begun, begun + ms(150_000)));
        world.run_for(ms(2000));
        world.set_policer(0, from, WIREGUARD, Some(100_000));
        let settled = until_used(&mut world, QUIC, 10_000);
        assert!(settled.is_some_and(|ms| ms <= 5000), "{why}: {settled:?}");
        // Probes that ask whether it has healed tell that it has not.
        for _ in 0..60 {
            world.run_for(ms(1000));
            assert_eq!(used(&world, Side::Box, 0), Some(QUIC), "{why}: {}", tunnel(&world).1);
        }
        let said = tunnel(&world).1;
        assert!(said.starts_with("quic: WireGuard on port 51820 is throttled"), "{why}: {said}");
        let policed = world.policed();
        world.set_policer(0, from, WIREGUARD, None);
        let returned = until_used(&mut world, WIREGUARD, 60_000);
        assert!(returned.is_some(), "{why}: {}", tunnel(&world).1);
        world.run_until(begun + ms(151_000));
        assert_eq!(tunnel(&world).1, "wireguard: works", "{why}");
        let report = &world.reports()[flow];
        assert!(lost(report) <= policed, "{why}: {policed} policed, {report:?}");
        assert!(lost(report) <= 200, "{why}: what is lost is lost in the first moments; {report:?}");
    }
}

/// One uplink and two, both ways, some seeds.
fn cases() -> impl Iterator<Item = (usize, Side, u64)> {
    (0..32).map(|case| (1 + case % 2, BOTH[case / 2 % 2], case as u64))
}

/// Both kinds are held to the same: then WireGuard is as good, and the traffic is not moved to and fro.
#[test]
fn a_link_that_is_only_slow_keeps_wireguard() {
    for (_, from, seed) in cases().step_by(2) {
        let slow = LinkModel { rate: 1_000_000, queue: 64 * 1024, ..LinkModel::default() };
        let mut world = world(&[slow], seed);
        world.run_until(at(3000 + seed * 11));
        let begun = world.now();
        world.add_flow(load(from, begun, begun + ms(300_000)));
        world.run_for(ms(300_000));
        let moved = world.events(Side::Box).iter().filter(|(_, event)| matches!(event, Event::Moved { .. })).count();
        assert!(moved <= 1 + 2 * 3, "to QUIC and back after one minute, two and four: {moved}");
        assert_eq!(tunnel(&world).0, WIREGUARD, "{}", tunnel(&world).1);
    }
}
