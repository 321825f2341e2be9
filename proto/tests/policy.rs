//! What a policy says moves flows as failover does: nothing lost, nothing twice, in order.

use proto::MAX_SLOTS;
use proto::policy::{Class, Link, Matches, Metered, Policy, Treatment, Window};
use proto::sim::{Flow, LinkModel, Report, Side, World, WorldConfig, at, ms};
use std::time::Duration;

const SIDES: [Side; 2] = [Side::Box, Side::Core];

/// Two links, of which the second takes 20 ms longer.
fn world(policy: Policy, seed: u64) -> World {
    let links = [10, 30].map(|delay| LinkModel { delay: ms(delay), jitter: ms(2), ..LinkModel::default() });
    World::new(WorldConfig { policy: policy.into(), ..WorldConfig::new(&links, seed) })
}

fn class(name: &str, matches: Matches, links: &[u8]) -> Class {
    let way = Treatment { links: links.to_vec(), ..Treatment::default() };
    Class { matches, up: way.clone(), down: way, ..Class::everything(name) }
}

/// Each way one flow that never pauses, and one that pauses for longer than the links differ.
fn flows(world: &mut World, dscp: u8) {
    for from in SIDES {
        let steady = Flow { dscp, ..Flow::steady(from, 1000, 4000) };
        world.add_flow(Flow { interval: ms(50), ..steady });
        world.add_flow(steady);
    }
}

/// Nothing lost, nothing twice, in order; and some by the slow link.
fn moved_whole(report: &Report, seed: u64) {
    let unlike = (report.sent - report.received, report.duplicated, report.reordered);
    assert_eq!(unlike, (0, 0, 0), "seed {seed}: lost, twice, out of order; {report:?}");
    assert!(report.longest_delay >= ms(30), "seed {seed}: none went by the slow link; {report:?}");
}

/// The packets of that class so far, up and down.
fn by_night(world: &World) -> [u64; 2] {
    SIDES.map(|side| world.snapshot(side).peers[0].classes[0].tx.packets)
}

/// The slots that the classes take.
fn slots(world: &World, side: Side) -> [Option<u8>; 2] {
    let peer = &world.snapshot(side).peers[0];
    [0, 1].map(|class| peer.classes[class].current_slot)
}

#[test]
fn a_window_that_opens_and_closes_takes_live_flows_along() {
    for seed in 0..40 {
        let matches = Matches { window: Some(Window { days: 0x7f, from: 0, until: 60 }), ..Matches::default() };
        let policy = Policy::new(Default::default(), vec![class("by night", matches, &[1])]).expect("a good policy");
        let mut world = world(policy, seed);
        flows(&mut world, 0);
        let open = at(2000) + Duration::from_micros(seed * 731);
        // Until when, which windows are open before it, and how many packets are of the class.
        for (until, windows, expected) in [(open, 0, 0..=0), (open + ms(900), 1, 915..=920), (at(4500), 0, 0..=0)] {
            SIDES.iter().for_each(|&side| world.set_open_windows(side, windows));
            let before = by_night(&world);
            world.run_until(until);
            let sent = [0, 1].map(|side| by_night(&world)[side] - before[side]);
            assert!(sent.iter().all(|packets| expected.contains(packets)), "seed {seed}, {windows}: {sent:?}");
        }
        world.reports().iter().for_each(|report| moved_whole(report, seed));
    }
}

#[test]
fn a_link_at_its_cap_is_left_by_all_but_those_that_may_go_on() {
    for seed in 0..40 {
        let mut links: [Link; MAX_SLOTS] = Default::default();
        links[0].metered = Some(Metered { cap: 1, reset_day: 1, free: 0, over: vec![0] });
        let voice = class("voice", Matches { dscp: 1 << 46, ..Matches::default() }, &[]);
        let mut world = world(Policy::new(links, vec![voice]).expect("a good policy"), seed);
        flows(&mut world, 0);
        flows(&mut world, 46);
        let moment = at(2000) + Duration::from_micros(seed * 731);
        let carries = |world: &World| SIDES.map(|side| slots(world, side));
        world.run_until(moment);
        assert_eq!(carries(&world), [[Some(0), Some(0)]; 2]);
        world.set_capped(1);
        // The core is told by a HELLO, and what never pauses stays for 300 ms.
        world.run_until(moment + ms(900));
        assert_eq!(carries(&world), [[Some(0), Some(1)]; 2], "seed {seed}");
        world.set_capped(0);
        world.run_until(at(4500));
        assert_eq!(carries(&world), [[Some(0), Some(0)]; 2], "seed {seed}: a month has begun");
        let reports = world.reports();
        reports[..4].iter().for_each(|report| moved_whole(report, seed));
        for voice in &reports[4..] {
            assert!(voice.longest_delay < ms(15) && voice.received == voice.sent, "seed {seed}: as ever; {voice:?}");
        }
    }
}

#[test]
fn a_link_at_its_cap_is_no_way_out_when_the_others_die() {
    let mut links: [Link; MAX_SLOTS] = Default::default();
    links[0].metered = Some(Metered { cap: 1, reset_day: 1, free: 0, over: Vec::new() });
    let mut world = world(Policy::new(links, Vec::new()).expect("a good policy"), 1);
    flows(&mut world, 0);
    world.run_until(at(1500));
    world.set_capped(1);
    world.run_until(at(2000));
    let before = SIDES.map(|side| world.snapshot(side).peers[0].paths[0].tx.bytes);
    world.set_cut_both(1, true);
    world.run_until(at(4500));
    let after = SIDES.map(|side| world.snapshot(side).peers[0].paths[0].tx.bytes);
    // Questions and receipts go on, which is a few octets.
    assert!([0, 1].iter().all(|&side| after[side] - before[side] < 100_000), "{before:?} {after:?}");
    assert!(world.reports().iter().all(|report| report.received < report.sent));
}

#[test]
fn both_ends_tell_when_their_policies_are_not_the_same() {
    let policy = |hash| Policy::default().with_hash(hash);
    let mut world = world(policy(7), 1);
    let differ = |world: &World| SIDES.map(|side| world.snapshot(side).peers[0].other_policy);
    world.run_until(at(1000));
    assert_eq!(differ(&world), [false; 2]);
    world.set_policy(Side::Core, policy(8));
    world.run_until(at(2000));
    assert_eq!(differ(&world), [true; 2], "the core has another one");
    world.set_policy(Side::Box, Policy::default());
    world.run_until(at(3000));
    assert_eq!(differ(&world), [true; 2], "the box has none");
    world.set_policy(Side::Box, policy(8));
    world.run_until(at(4000));
    assert_eq!(differ(&world), [false; 2]);
}
