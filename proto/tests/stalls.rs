//! A process that stands still: stopped, starved, or in a machine that was paused.

use proto::sim::{Flow, LinkModel, Side, World, WorldConfig, at, ms};
use proto::{DropReason, PathState};

const SIDES: [Side; 2] = [Side::Box, Side::Core];

#[test]
fn after_a_stall_of_either_end_all_is_back_within_a_second_and_nothing_stale_is_delivered() {
    for side in SIDES {
        for stall in [500, 2_000, 60_000, 200_000] {
            let mut world = World::new(WorldConfig::new(&[LinkModel::default(); 2], stall));
            let thawed = 2000 + stall;
            let flows = SIDES.map(|from| world.add_flow(Flow::steady(from, 1000, thawed + 5000)));
            world.run_until(at(2000));
            world.freeze(side);
            world.run_until(at(thawed));
            world.thaw(side);
            world.run_until(at(thawed + 1000));
            for end in SIDES {
                for path in &world.snapshot(end).peers[0].paths {
                    assert_eq!(path.state, PathState::Up, "{side:?} stood still for {stall} ms; at {end:?}: {path:?}");
                    let rtt = path.rtt_ms.expect("it was measured");
                    assert!(rtt < 100.0, "the stall is no round trip: {path:?}");
                }
            }
            world.run_until(at(thawed + 6000));
            for flow in flows {
                let report = &world.reports()[flow];
                let back =
                    world.arrivals(flow).iter().find(|arrival| arrival.at > at(thawed) && arrival.sent_at > at(thawed));
                let back = back.map(|arrival| arrival.at.since(at(thawed)));
                println!("{side:?}, {stall} ms, flow {flow}: back after {back:?}");
                assert!(back.is_some_and(|back| back < ms(500)), "{side:?}, {stall}: {report:?}");
                let stale = world.arrivals(flow).iter().filter(|a| a.at.since(a.sent_at) > ms(1200)).count();
                assert_eq!(stale, 0, "{side:?}, {stall} ms, flow {flow}");
            }
            if stall > 1000 {
                let snapshot = world.snapshot(side);
                let stale = snapshot.drops.get(DropReason::Stale) + snapshot.peers[0].drops.get(DropReason::Stale);
                assert!(stale > 0, "they are counted");
            }
        }
    }
}

#[test]
fn a_stall_makes_no_path_fail_at_the_end_that_stood_still() {
    for side in SIDES {
        let mut world = World::new(WorldConfig::new(&[LinkModel::default(); 2], 1));
        for from in SIDES {
            world.add_flow(Flow::steady(from, 1000, 40_000));
        }
        world.run_until(at(2000));
        world.freeze(side);
        world.run_for(ms(30_000));
        let before = world.events(side).len();
        world.thaw(side);
        world.run_until(at(40_000));
        assert_eq!(world.events(side).len(), before, "{:?}", &world.events(side)[before..]);
    }
}
