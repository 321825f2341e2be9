//! What a policy says moves flows as failover does: nothing lost, nothing twice, in order.

use proto::policy::{Class, Matches, Policy, Treatment, Window};
use proto::sim::{Flow, LinkModel, Side, World, WorldConfig, at, ms};
use std::time::Duration;

const SIDES: [Side; 2] = [Side::Box, Side::Core];

/// Two links, of which the second takes 20 ms longer, and a class that takes it while its window is open.
fn world(seed: u64) -> World {
    let matches = Matches { window: Some(Window { days: 0x7f, from: 0, until: 60 }), ..Matches::default() };
    let by_b = Treatment { links: vec![1], ..Treatment::default() };
    let class = Class { name: "by night".into(), matches, up: by_b.clone(), down: by_b, priority: None };
    let policy = Policy::new(Default::default(), vec![class]).expect("a good policy").into();
    let links = [10, 30].map(|delay| LinkModel { delay: ms(delay), jitter: ms(2), ..LinkModel::default() });
    World::new(WorldConfig { policy, ..WorldConfig::new(&links, seed) })
}

/// The packets of that class so far, up and down.
fn by_night(world: &World) -> [u64; 2] {
    SIDES.map(|side| world.snapshot(side).peers[0].classes[0].tx.packets)
}

#[test]
fn a_window_that_opens_and_closes_takes_live_flows_along() {
    for seed in 0..40 {
        let mut world = world(seed);
        for from in SIDES {
            world.add_flow(Flow::steady(from, 1000, 4000));
            // One that pauses for longer than the links differ.
            world.add_flow(Flow { interval: ms(50), ..Flow::steady(from, 1000, 4000) });
        }
        let open = at(2000) + Duration::from_micros(seed * 731);
        // Until when, which windows are open before it, and how many packets are of the class.
        for (until, windows, expected) in [(open, 0, 0..=0), (open + ms(900), 1, 915..=920), (at(4500), 0, 0..=0)] {
            SIDES.iter().for_each(|&side| world.set_open_windows(side, windows));
            let before = by_night(&world);
            world.run_until(until);
            let sent = [0, 1].map(|side| by_night(&world)[side] - before[side]);
            assert!(sent.iter().all(|packets| expected.contains(packets)), "seed {seed}, {windows}: {sent:?}");
        }
        for report in world.reports() {
            let unlike = (report.sent - report.received, report.duplicated, report.reordered);
            assert_eq!(unlike, (0, 0, 0), "seed {seed}: lost, twice, out of order; {report:?}");
            assert!(report.longest_delay >= ms(30), "seed {seed}: none went by the slow link; {report:?}");
        }
    }
}
