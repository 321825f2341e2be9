//! What boringtun does with time: rekeys, expiry, its own retries. Its clock is moved by hand, so this is a build apart:
//! `cargo test -p proto --features mock-clock --test wireguard_clock`.

use mock_instant::MockClock;
use proto::sim::{Flow, LinkModel, Side, World, WorldConfig, at, ms};
use proto::tunnel::Ciphered;
use proto::{Event, Instant, PathState};
use std::cell::Cell;
use std::rc::Rc;

/// Both clocks together, in steps below the 250 ms in which a tunnel's clock is moved.
fn run_until(world: &mut World, until: Instant) {
    while world.now() < until {
        MockClock::advance(ms(50));
        world.run_for(ms(50));
    }
}

fn world(links: usize) -> World {
    let config = WorldConfig::new(&vec![LinkModel::default(); links], 1);
    World::new(WorldConfig { suite: || Box::<Ciphered>::default(), ..config })
}

fn flows(world: &mut World, end: u64) {
    for from in [Side::Box, Side::Core] {
        world.add_flow(Flow { from, interval: ms(10), size: 200, dscp: 0, ecn: 0, start: at(1000), end: at(end) });
    }
}

/// Counts initiations by side, and loses handshake messages by a fixed pattern.
fn watch(world: &mut World, lost_of_ten: u32) -> Rc<[Cell<u32>; 2]> {
    let counts = Rc::new([Cell::new(0), Cell::new(0)]);
    let (seen, mut draw) = (counts.clone(), 1u32);
    world.set_tap(Some(Box::new(move |_, side, data| {
        if data[0] == 1 {
            let count = &seen[side as usize];
            count.set(count.get() + 1);
        }
        draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        data[0] == 4 || (draw >> 16) % 10 >= lost_of_ten
    })));
    counts
}

#[test]
fn rekeys_lose_nothing_and_only_the_box_begins_them() {
    let mut world = world(2);
    let initiations = watch(&mut world, 0);
    flows(&mut world, 900_000);
    run_until(&mut world, at(901_000));
    for report in world.reports() {
        assert_eq!((report.received, report.duplicated, report.reordered), (report.sent, 0, 0));
    }
    let by_box = initiations[Side::Box as usize].get();
    assert!((14..=24).contains(&by_box), "two paths, one each 120 s: {by_box}");
    assert_eq!(initiations[Side::Core as usize].get(), 0);
}

#[test]
fn sessions_survive_a_path_that_drops_most_handshakes() {
    let mut world = world(1);
    flows(&mut world, 1_800_000);
    run_until(&mut world, at(900));
    watch(&mut world, 7);
    run_until(&mut world, at(1_801_000));
    for report in world.reports() {
        assert_eq!((report.received, report.duplicated), (report.sent, 0), "{report:?}");
    }
}

#[test]
fn after_any_outage_the_path_is_back_within_the_bar_and_nothing_stale_comes() {
    for outage in [10_000, 100_000, 115_000, 170_000, 185_000, 300_000, 1_000_000] {
        let mut world = world(1);
        let healed = 5_000 + outage;
        flows(&mut world, healed + 3_000);
        run_until(&mut world, at(5_000));
        world.set_cut_both(0, true);
        run_until(&mut world, at(healed));
        world.set_cut_both(0, false);
        run_until(&mut world, at(healed + 4_000));
        let bar = if outage <= 300_000 { ms(300) } else { ms(1000) };
        for report in world.reports() {
            let (gap, from) = report.longest_gap;
            let back = (from + gap).since(at(healed));
            assert!(back < bar, "outage {outage} ms: back after {back:?}");
            assert!(report.longest_delay < ms(100), "nothing was queued and sent later: {report:?}");
        }
        assert_eq!(world.snapshot(Side::Box).peers[0].paths[0].state, PathState::Up);
    }
}

#[test]
fn an_idle_hour_keeps_the_tunnel_and_the_core_silent_about_handshakes() {
    let mut world = world(2);
    let initiations = watch(&mut world, 0);
    run_until(&mut world, at(3_600_000));
    assert_eq!(initiations[Side::Core as usize].get(), 0);
    for side in [Side::Box, Side::Core] {
        assert!(world.snapshot(side).peers[0].paths.iter().all(|path| path.state == PathState::Up));
    }
}

/// boringtun begins a handshake by itself after 15 s of silence, and 90 s later throws away all sessions if nobody has
/// answered; nobody can, as it is never sent.
#[test]
fn a_session_that_outlived_an_outage_is_not_lost_later() {
    for cut in [[true, true], [true, false], [false, true]] {
        let mut world = world(2);
        flows(&mut world, 130_000);
        run_until(&mut world, at(5_000));
        world.set_cut(0, Side::Box, cut[0]);
        world.set_cut(0, Side::Core, cut[1]);
        // Handshakes do not pass until much later, so it is the old session that comes back.
        watch(&mut world, 10);
        run_until(&mut world, at(25_000));
        world.set_cut_both(0, false);
        run_until(&mut world, at(30_000));
        world.set_tap(None);
        run_until(&mut world, at(131_000));
        for side in [Side::Box, Side::Core] {
            let late: Vec<_> = world.events(side).iter().filter(|(when, _)| *when > at(30_000)).collect();
            let down = |event: &Event| matches!(event, Event::Path { to: PathState::Down | PathState::Suspect, .. });
            assert!(!late.iter().any(|(_, event)| down(event)), "{cut:?}, {side:?}: {late:?}");
        }
    }
}

/// A keepalive is numbered by the tunnel whether or not there is a way to send it.
#[test]
fn an_uplink_that_was_away_comes_back_on_its_session() {
    let mut world = world(2);
    run_until(&mut world, at(5_000));
    world.set_uplink(0, false);
    run_until(&mut world, at(25_000));
    // Handshakes do not pass: the session has to do.
    watch(&mut world, 10);
    world.set_uplink(0, true);
    run_until(&mut world, at(26_000));
    assert_eq!(world.snapshot(Side::Box).peers[0].paths[0].state, PathState::Up);
}
