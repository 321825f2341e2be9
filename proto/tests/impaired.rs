//! Paths that drop data while their small questions are answered.

use proto::sim::{Flow, LinkModel, Loss, Side, World, WorldConfig, at, ms};
use proto::{Event, Instant, PathState};

const SIDES: [Side; 2] = [Side::Box, Side::Core];

fn path_changes(world: &World, side: Side) -> u64 {
    world.snapshot(side).peers[0].path_changes
}

/// Two links with a flow each way, from second 1 to the end.
fn world(seed: u64, end: u64) -> World {
    let mut world = World::new(WorldConfig::new(&[LinkModel::default(); 2], seed));
    for from in SIDES {
        world.add_flow(Flow::steady(from, 1000, end));
    }
    world.run_until(at(2000));
    world
}

/// Drops datagrams of more than 600 octets on the first link, of these senders.
fn drop_large(world: &mut World, senders: &'static [Side]) {
    world.set_tap(Some(Box::new(move |link, side, data| link != 0 || data.len() <= 600 || !senders.contains(&side))));
}

#[test]
fn data_that_is_dropped_by_its_size_is_seen_and_moved_within_a_second() {
    for senders in [&[Side::Box][..], &[Side::Core], &SIDES] {
        let mut world = world(1, 60_000);
        drop_large(&mut world, senders);
        world.run_until(at(30_000));
        for (side, report) in SIDES.into_iter().zip(world.reports()) {
            let moved = senders.contains(&side);
            let path = &world.snapshot(side).peers[0].paths[0];
            assert_eq!(path.state, if moved { PathState::Impaired } else { PathState::Up }, "{side:?}: {path:?}");
            assert_eq!(path_changes(&world, side), u64::from(moved), "{side:?} stays away while it lasts");
            println!("dropped from {senders:?}, {side:?}: longest gap {:?}", report.longest_gap.0);
            assert!(report.longest_gap.0 < ms(500), "{side:?}: {report:?}");
        }
        world.set_tap(None);
        world.run_until(at(60_000));
        for side in SIDES {
            assert_eq!(world.snapshot(side).peers[0].current_slot, Some(0), "{side:?} is back");
        }
    }
}

#[test]
fn the_only_path_is_used_though_it_is_impaired() {
    let mut world = World::new(WorldConfig::new(&[LinkModel::default()], 2));
    for from in SIDES {
        world.add_flow(Flow::steady(from, 1000, 30_000));
        world.add_flow(Flow { size: 200, ..Flow::steady(from, 1000, 30_000) });
    }
    world.run_until(at(2000));
    drop_large(&mut world, &SIDES);
    world.run_until(at(25_000));
    for side in SIDES {
        let path = &world.snapshot(side).peers[0].paths[0];
        assert_eq!(path.state, PathState::Impaired, "{path:?}");
        let changes = world.events(side).iter().filter(|(_, event)| matches!(event, Event::Path { .. })).count();
        assert!(changes < 20, "{side:?}: it does not flap: {:?}", world.events(side));
    }
    world.set_tap(None);
    world.run_until(at(31_000));
    for (at_flow, report) in world.reports().into_iter().enumerate() {
        if at_flow % 2 == 1 {
            assert_eq!(report.received, report.sent, "small packets pass all the time");
        }
    }
    for side in SIDES {
        assert_eq!(world.snapshot(side).peers[0].paths[0].state, PathState::Up);
    }
}

#[test]
fn a_path_that_falls_silent_while_impaired_is_down() {
    let mut world = world(3, 20_000);
    drop_large(&mut world, &SIDES);
    world.run_until(at(5000));
    world.set_cut_both(0, true);
    world.run_until(at(10_000));
    for side in SIDES {
        assert_eq!(world.snapshot(side).peers[0].paths[0].state, PathState::Down);
    }
    world.set_cut_both(0, false);
    world.run_until(at(20_000));
    for side in SIDES {
        assert_eq!(world.snapshot(side).peers[0].paths[0].state, PathState::Impaired, "nothing has proved otherwise");
    }
}

#[test]
fn heavy_random_loss_on_all_paths_moves_nothing_to_and_fro() {
    for share in [0.1, 0.3, 0.4] {
        for seed in 0..3 {
            let lossy = LinkModel { loss: Loss::Random(share), ..LinkModel::default() };
            let mut world = World::new(WorldConfig::new(&[lossy; 2], seed));
            for from in SIDES {
                world.add_flow(Flow::steady(from, 1000, 61_000));
            }
            world.run_until(at(61_000));
            for side in SIDES {
                let down = |(when, event): &&(Instant, Event)| {
                    *when > at(1000) && matches!(event, Event::Path { to: PathState::Down, .. })
                };
                assert_eq!(world.events(side).iter().filter(down).count(), 0, "{share}, seed {seed}");
                let changes = path_changes(&world, side);
                assert!(
                    changes <= 4,
                    "{share} lost both ways, seed {seed}, {side:?}: {changes} changes: {:?}",
                    world.events(side)
                );
            }
        }
    }
}
