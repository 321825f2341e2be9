//! No packet is lost when a link dies: what is asked of failover, case by case, over many seeds.
//!
//! A failing case names its seed, and the same seed is the same run to the nanosecond.

use proto::sim::{Flow, LinkModel, Loss, Report, Side, Sleep, Stalls, World, WorldConfig, at, ms};
use proto::{Event, Instant, Keepalive, PathState};
use std::time::Duration;

const SIDES: [Side; 2] = [Side::Box, Side::Core];

/// A link of this round trip that jitters by 2 ms and keeps the order.
fn link(rtt: u64) -> LinkModel {
    LinkModel { delay: ms(rtt) / 2, jitter: ms(2), ..LinkModel::default() }
}

/// What an LTE modem does: it jitters, and now and then holds what it has for a tenth of a second at most.
fn lte(every: u64) -> LinkModel {
    let stalls = Stalls { every: ms(every), shortest: ms(10), longest: ms(100) };
    LinkModel { delay: ms(25), jitter: ms(10), stalls: Some(stalls), ..LinkModel::default() }
}

fn world(links: &[LinkModel], seed: u64) -> World {
    World::new(WorldConfig::new(links, seed))
}

/// A flow each way of 1,000 packets a second.
fn flows(world: &mut World, start: u64, end: u64) {
    for from in SIDES {
        world.add_flow(Flow::steady(from, start, end));
    }
}

/// A moment that falls differently for each seed to the packets, the receipts and the questions of all timers.
fn moment(from: u64, seed: u64) -> Instant {
    at(from) + Duration::from_micros(seed * 7_310 % 500_000)
}

fn path_changes(world: &World) -> [u64; 2] {
    SIDES.map(|side| world.snapshot(side).peers[0].path_changes)
}

/// Copies, as a share of the octets that were sent first.
fn copies(world: &World, side: Side) -> f64 {
    let peer = &world.snapshot(side).peers[0];
    peer.copies.bytes as f64 / peer.tx.bytes as f64
}

/// Whether a path's state was another one since then, at either end: such a one.
fn ever(world: &World, since: Instant, state: PathState) -> bool {
    let entered =
        |(at, event): &(Instant, Event)| *at >= since && matches!(event, Event::Path { to, .. } if *to == state);
    SIDES.iter().any(|&side| world.events(side).iter().any(entered))
}

/// Nothing lost, nothing twice.
fn whole(report: &Report, what: &str) {
    let lost = report.sent - report.received;
    assert_eq!((lost, report.duplicated), (0, 0), "{what}: lost, twice; {report:?}");
}

/// The value that so many of a hundred do not exceed.
fn percentile(values: &mut [Duration], share: usize) -> Duration {
    values.sort();
    values[(values.len() * share).div_ceil(100) - 1]
}

/// Runs a world for each seed, and holds what came of it against the bar: nothing lost, nothing twice, and 19 of 20 gaps
/// within it.
fn within(bar: Duration, seeds: std::ops::Range<u64>, what: &str, run: impl Fn(u64) -> World) {
    let mut gaps = Vec::new();
    for seed in seeds {
        let world = run(seed);
        for (report, from) in world.reports().iter().zip(SIDES) {
            whole(report, &format!("{what}, seed {seed}, from {from:?}"));
        }
        gaps.extend(world.reports().iter().map(|report| report.longest_gap.0));
    }
    let (half, most) = (percentile(&mut gaps, 50), percentile(&mut gaps, 100));
    let of_twenty = percentile(&mut gaps, 95);
    println!("{what}: gaps of {half:?} (p50), {of_twenty:?} (p95), {most:?} (most); the bar is {bar:?}");
    assert!(of_twenty <= bar, "{what}: {of_twenty:?}, the bar is {bar:?}");
}

/// The link in use falls silent, for packets of `cut`.
fn silent_cut(rtt: u64, interval: Duration, cut: &[Side], seed: u64) -> World {
    let mut world = world(&[link(rtt); 2], seed);
    for from in SIDES {
        world.add_flow(Flow { interval, ..Flow::steady(from, 1500, 3500) });
    }
    world.run_until(moment(2000, seed));
    for &side in cut {
        world.set_cut(0, side, true);
    }
    world.run_until(at(5000));
    world
}

#[test]
fn a_silent_cut_loses_nothing() {
    for rtt in [20, 60, 150] {
        within(ms(rtt + 30), 0..200, &format!("silent cut, RTT {rtt} ms"), |seed| silent_cut(rtt, ms(1), &SIDES, seed));
    }
}

#[test]
fn a_cut_of_one_direction_loses_nothing() {
    for rtt in [20, 60, 150] {
        within(ms(rtt + 30), 0..200, &format!("one direction cut, RTT {rtt} ms"), |seed| {
            silent_cut(rtt, ms(1), &SIDES[seed as usize % 2..][..1], seed)
        });
    }
}

#[test]
fn at_ten_thousand_packets_a_second_too() {
    for rtt in [20, 60, 150] {
        within(ms(rtt + 30), 0..5, &format!("silent cut at 10,000 packets a second, RTT {rtt} ms"), |seed| {
            silent_cut(rtt, Duration::from_micros(100), &SIDES, seed)
        });
    }
}

#[test]
fn at_full_speed_nothing_is_taken_for_lost() {
    // Some thousand packets come between two receipts, more than WireGuard's replay window has numbers.
    let mut world = world(&[LinkModel { delay: ms(1), ..LinkModel::default() }, link(20)], 1);
    for from in SIDES {
        world.add_flow(Flow { interval: Duration::from_micros(3), ..Flow::steady(from, 1000, 1300) });
    }
    world.run_until(at(3000));
    for (report, side) in world.reports().iter().zip(SIDES) {
        whole(report, &format!("full speed, from {side:?}"));
        let peer = &world.snapshot(side).peers[0];
        let lost: Vec<_> = peer.paths.iter().map(|path| path.lost).collect();
        assert_eq!((lost, peer.copies.packets, report.reordered), (vec![0, 0], 0, 0), "{side:?}");
    }
}

/// 80 Mbit/s and a call each way on a link of 100 Mbit/s, which is cut; the other one has 10 Mbit/s, and a queue of 100 ms.
#[test]
fn a_call_is_whole_where_the_link_that_is_left_is_full() {
    for seed in 0..5 {
        let limited =
            |mbit: u64, packets: usize| LinkModel { rate: mbit * 1_000_000, queue: packets * 1250, ..link(20) };
        let mut world = world(&[limited(100, 800), limited(10, 80)], seed);
        for from in SIDES {
            world.add_flow(Flow { interval: Duration::from_micros(125), size: 1222, ..Flow::steady(from, 1000, 5000) });
            let call = Flow { interval: ms(10), size: 200, dscp: 46, ..Flow::steady(from, 1000, 5000) };
            world.add_flow(call);
        }
        world.run_until(moment(2000, seed));
        let before = path_changes(&world);
        world.set_cut_both(0, true);
        world.run_until(at(7000));
        for (at, report) in world.reports().iter().enumerate() {
            let (bulk, what) = (at % 2 == 0, format!("seed {seed}, flow {at}"));
            assert_eq!(report.duplicated, 0, "{what}");
            if bulk {
                assert!(report.longest_delay <= ms(1000), "{what}: {report:?}");
            } else {
                whole(report, &what);
                assert!(report.longest_delay <= ms(200), "{what}: {report:?}");
            }
        }
        assert_eq!(path_changes(&world), before.map(|changes| changes + 1), "seed {seed}");
    }
}

#[test]
fn a_slower_standby_takes_over_without_loss() {
    // Half of the one's round trip to the receiver, half of the other's for the later receipt, and as much to send again;
    // no more than the slower one's round trip and the margin.
    for (used, standby) in [(20, 80), (80, 20), (20, 150)] {
        within(
            ms(used.max(standby) + 30),
            0..100,
            &format!("silent cut, RTT {used} ms, standby {standby} ms"),
            |seed| {
                let mut world = world(&[link(used), link(standby)], seed);
                flows(&mut world, 1000, 4000);
                world.run_until(moment(2000, seed));
                world.set_cut_both(0, true);
                world.run_until(at(6000));
                world
            },
        );
    }
}

#[test]
fn a_carrier_that_is_lost_costs_the_way_of_the_news() {
    // The box knows at once; the core when the news has come, and what it sends again takes as long. A flow's first packet
    // is waited for as long as its way takes: that, too, is a gap here.
    for (used, standby, up, down) in [(20, 20, 15, 35), (20, 60, 35, 75), (60, 20, 35, 35)] {
        let mut most = [Duration::ZERO; 2];
        for seed in 0..100 {
            let mut world = world(&[link(used), link(standby)], seed);
            flows(&mut world, 1000, 4000);
            world.run_until(moment(2000, seed));
            world.set_cut_both(0, true);
            // What has left the box goes on; what comes to it finds nobody.
            world.lose_under_way(0, Side::Box);
            world.set_uplink(0, false);
            world.run_until(at(6000));
            for (at, report) in world.reports().iter().enumerate() {
                whole(report, &format!("carrier lost, RTT {used} and {standby} ms, seed {seed}, from {:?}", SIDES[at]));
                most[at] = most[at].max(report.longest_gap.0);
            }
        }
        println!("carrier lost, RTT {used} and {standby} ms: gaps of at most {:?} up, {:?} down", most[0], most[1]);
        assert!(most[0] <= ms(up) && most[1] <= ms(down), "RTT {used} and {standby} ms: {most:?}, {up} and {down} ms");
    }
}

#[test]
fn a_thousand_failbacks_lose_nothing_and_keep_the_order() {
    for seed in 0..1000 {
        let mut world = world(&[link(20), link(60)], seed);
        flows(&mut world, 300, 4000);
        world.run_until(moment(500, seed));
        world.set_cut_both(0, true);
        // So long that both ends have moved.
        world.run_for(ms(400));
        let (healed, before) = (world.now(), path_changes(&world));
        world.set_cut_both(0, false);
        world.run_until(at(5000));
        for (flow, from) in SIDES.into_iter().enumerate() {
            whole(&world.reports()[flow], &format!("failback, seed {seed}, from {from:?}"));
            let since: Vec<u64> =
                world.arrivals(flow).iter().filter(|arrival| arrival.sent_at > healed).map(|a| a.number).collect();
            assert!(since.is_sorted(), "failback, seed {seed}, from {from:?}: the order is kept");
        }
        assert_eq!(path_changes(&world), before.map(|changes| changes + 1), "seed {seed}: back once");
    }
}

#[test]
fn a_flapping_link_loses_nothing() {
    for seed in 0..20 {
        let mut world = world(&[link(20); 2], seed);
        flows(&mut world, 1000, 35_000);
        world.run_until(moment(2000, seed));
        let mut after_five_seconds = [0; 2];
        for toggle in 0..60 {
            world.set_cut_both(0, toggle % 2 == 0);
            world.run_for(ms(500));
            if toggle == 9 {
                after_five_seconds = path_changes(&world);
            }
        }
        world.set_cut_both(0, false);
        world.run_until(at(37_000));
        for (at, report) in world.reports().iter().enumerate() {
            whole(report, &format!("flapping, seed {seed}, from {:?}", SIDES[at]));
            let changes = path_changes(&world)[at] - after_five_seconds[at];
            assert!(changes <= 3, "flapping, seed {seed}: {changes} changes");
        }
    }
}

#[test]
fn a_link_that_stalls_is_not_taken_for_dead() {
    for (every, bar) in [(5000, 0.02), (1000, 0.06)] {
        let mut most: f64 = 0.0;
        for seed in 0..4 {
            let mut world = world(&[lte(every), link(20)], seed);
            flows(&mut world, 1000, 121_000);
            world.run_until(at(5000));
            let before = path_changes(&world);
            world.run_until(at(123_000));
            assert_eq!(path_changes(&world), before, "stalls each {every} ms, seed {seed}");
            assert!(!ever(&world, at(5000), PathState::Down), "stalls each {every} ms, seed {seed}");
            for (report, side) in world.reports().iter().zip(SIDES) {
                whole(report, &format!("stalls each {every} ms, seed {seed}, from {side:?}"));
                most = most.max(copies(&world, side));
            }
        }
        println!("stalls each {every} ms: at most {:.2} % copies; the bar is {} %", most * 100.0, bar * 100.0);
        assert!(most <= bar, "stalls each {every} ms: {most}");
    }
}

#[test]
fn a_link_that_stalls_and_dies_loses_nothing() {
    within(ms(150), 0..100, "LTE-like link cut", |seed| {
        let mut world = world(&[lte(1000), link(50)], seed);
        flows(&mut world, 1000, 8000);
        world.run_until(moment(6000, seed));
        world.set_cut_both(0, true);
        world.run_until(at(10_000));
        world
    });
}

#[test]
fn a_break_of_a_millisecond_loses_nothing() {
    // One packet or two, each way: nobody can tell it from a loss by chance.
    for seed in 0..200 {
        let mut world = world(&[link(20), link(60)], seed);
        flows(&mut world, 1000, 3000);
        for _ in 0..3 {
            world.run_until(moment(1500, seed).max(world.now() + ms(300)));
            world.set_cut_both(0, true);
            world.run_for(ms(1));
            world.set_cut_both(0, false);
        }
        world.run_until(at(5000));
        for (report, from) in world.reports().iter().zip(SIDES) {
            whole(report, &format!("breaks of a millisecond, seed {seed}, from {from:?}"));
        }
    }
}

/// Runs a minute in which nothing is cut: no path changes, and next to no copies are made.
fn quiet(what: &str, seed: u64, first: LinkModel, mut change: impl FnMut(&mut World)) {
    let mut world = world(&[first, link(20)], seed);
    flows(&mut world, 1000, 66_000);
    world.run_until(at(5000));
    let before = path_changes(&world);
    world.run_until(moment(30_000, seed));
    change(&mut world);
    world.run_until(at(68_000));
    assert_eq!(path_changes(&world), before, "{what}, seed {seed}");
    for side in SIDES {
        let share = copies(&world, side);
        println!("{what}, seed {seed}, {side:?}: {:.3} % copies", share * 100.0);
        assert!(share <= 0.005, "{what}, seed {seed}, {side:?}: {share}");
    }
}

#[test]
fn loss_of_one_in_a_hundred_is_no_alarm() {
    for seed in 0..5 {
        quiet("1 % loss", seed, LinkModel { loss: Loss::Random(0.01), ..link(20) }, |_| {});
    }
}

#[test]
fn a_delay_that_grows_by_a_step_is_no_alarm() {
    for seed in 0..5 {
        quiet("a step of 100 ms", seed, link(20), |world| {
            for side in SIDES {
                world.set_model(0, side, LinkModel { delay: ms(110), ..link(20) });
            }
        });
    }
}

#[test]
fn a_queue_of_our_own_is_no_alarm() {
    // 10 Mbit/s, of which the flow takes 8.5; a second one of 2 fills 200 ms of queue in 4 s.
    let narrow = LinkModel { rate: 10_000_000, queue: 300_000, ..link(20) };
    for seed in 0..5 {
        quiet("an own queue of 200 ms", seed, narrow, |world| {
            for from in SIDES {
                let (start, end) = (world.now(), world.now() + ms(4000));
                world.add_flow(Flow { start, end, interval: ms(4), ..Flow::steady(from, 0, 0) });
            }
        });
    }
}

#[test]
fn traffic_leaves_a_link_that_loses_a_third() {
    for seed in 0..20 {
        let mut world = world(&[link(20); 2], seed);
        flows(&mut world, 1000, 12_000);
        let brown = moment(2000, seed);
        world.run_until(brown);
        for side in SIDES {
            world.set_model(0, side, LinkModel { loss: Loss::Random(0.3), ..link(20) });
        }
        world.run_until(at(14_000));
        for (flow, side) in SIDES.into_iter().enumerate() {
            let report = &world.reports()[flow];
            let mut numbers: Vec<u64> = world.arrivals(flow).iter().map(|arrival| arrival.number).collect();
            numbers.sort();
            assert_eq!(report.duplicated, 0, "seed {seed}, {side:?}: {report:?}");
            // Packets leave at whole milliseconds, the first at one second.
            let missing = (0..report.sent).filter(|number| numbers.binary_search(number).is_err());
            let late = missing.filter(|number| at(1000 + number) >= brown + ms(300)).count();
            assert_eq!(late, 0, "lost 300 ms after the link began to lose, seed {seed}, {side:?}");
            assert_eq!(world.snapshot(side).peers[0].current_slot, Some(1), "seed {seed}, {side:?}");
        }
    }
}

#[test]
fn a_standby_that_sleeps_is_woken() {
    let sleepy = LinkModel { asleep: Some(Sleep { after: ms(5000), wakes_in: ms(300) }), ..link(20) };
    within(ms(300 + 20 + 30), 0..40, "silent cut, standby asleep", |seed| {
        // It costs money, so it is asked so seldom that it sleeps.
        let keepalive = Keepalive::new(ms(25_000), true);
        let mut world = World::new(WorldConfig { keepalive, ..WorldConfig::new(&[link(20), sleepy], seed) });
        flows(&mut world, 10_000, 20_000);
        world.run_until(moment(17_000, seed));
        world.set_cut_both(0, true);
        world.run_until(at(22_000));
        world
    });
}

#[test]
fn a_false_suspicion_while_the_standby_is_dead_costs_nothing() {
    within(ms(50), 0..100, "false suspicion, standby dead", |seed| {
        let mut world = world(&[link(20); 2], seed);
        flows(&mut world, 1000, 4000);
        world.run_until(moment(2000, seed));
        world.set_cut_both(1, true);
        // So soon that nobody knows yet. What is under way is held for 45 ms, in order: longer than a receipt takes.
        world.run_for(ms(seed % 20));
        let held = world.now() + ms(45);
        while world.now() < held {
            for side in SIDES {
                world.set_model(0, side, LinkModel { delay: ms(10) + held.since(world.now()), ..link(20) });
            }
            world.run_for(ms(1));
        }
        for side in SIDES {
            world.set_model(0, side, link(20));
        }
        world.run_until(at(6000));
        let suspected = |(_, event): &(Instant, Event)| matches!(event, Event::Path { path, to: PathState::Suspect, .. } if path.slot == 0);
        assert!(SIDES.iter().all(|&side| world.events(side).iter().any(suspected)), "seed {seed}: it was suspected");
        world
    });
}

#[test]
fn a_cut_while_sessions_are_replaced_loses_nothing() {
    for lost in [0, 70] {
        within(ms(50), 0..60, &format!("silent cut about a rekey, {lost} % of handshakes lost"), |seed| {
            let mut world = world(&[link(20); 2], seed);
            world.run_until(at(1000));
            let mut state = seed as u32;
            world.set_tap(Some(Box::new(move |_, _, data| {
                if data[0] == 4 {
                    return true;
                }
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) % 100 >= lost
            })));
            flows(&mut world, 118_000, 128_000);
            // Sessions are replaced after 120 s; with most handshakes lost that takes a few tries, one a second.
            world.run_until(at(119_900) + ms(seed * 97 % if lost == 0 { 300 } else { 6000 }));
            world.set_cut_both(0, true);
            world.run_until(at(130_000));
            world
        });
    }
}
