//! One TCP connection over several links at once, in virtual time: what it gets of their sum.

use proto::policy::{Class, Mode, Policy, Treatment};
use proto::sim::{CONTENT, Flow, LinkModel, Loss, Progress, Side, World, WorldConfig, at, ms};
use std::time::Duration;

/// Octets that a full segment takes of a link: its packet of 1,372, its place in its stream, padding, WireGuard's header and
/// tag, UDP and IPv4.
const SEGMENT: f64 = 1440.0;

/// A link with a queue of one bandwidth-delay product.
fn link(mbit: u64, delay: u64) -> LinkModel {
    let queue = (mbit * 125 * delay * 2) as usize;
    LinkModel { delay: ms(delay), rate: mbit * 1_000_000, queue: queue.max(30_000), ..LinkModel::default() }
}

/// The two pairs of links that a connection is to have the sum of, and that sum. Nothing in them happens by chance: it is their
/// delay that each try has a little more of.
fn pairs(more: u64) -> [([LinkModel; 2], f64); 2] {
    let later = |links: [LinkModel; 2]| {
        let more = [more * 137, more * 431].map(Duration::from_micros);
        [0, 1].map(|at| LinkModel { delay: links[at].delay + more[at], ..links[at] })
    };
    [(later([link(100, 10), link(50, 40)]), 150.0), (later([link(50, 10), link(50, 30)]), 100.0)]
}

fn world(links: &[LinkModel], seed: u64) -> World {
    let treatment = Treatment { mode: Mode::Bond, ..Treatment::default() };
    let class = Class { up: treatment.clone(), down: treatment, ..Class::everything("all") };
    let policy = Policy::new(Default::default(), vec![class]).expect("a good policy");
    World::new(WorldConfig { policy: policy.into(), ..WorldConfig::new(links, seed) })
}

/// What a connection gets in ten seconds, in megabits a second of content; `midway` happens after five of them.
fn goodput(links: &[LinkModel], from: Side, seed: u64, midway: impl FnOnce(&mut World)) -> (f64, Progress) {
    let mut world = world(links, seed);
    world.run_until(at(1000));
    let connection = world.add_tcp(from, at(11_000));
    world.run_until(at(6000));
    midway(&mut world);
    world.run_until(at(11_000));
    let progress = world.progress(connection);
    (progress.octets as f64 * 8.0 / 10e6, progress)
}

/// What links of so many megabits a second carry of content.
fn content(mbit: f64) -> f64 {
    mbit * CONTENT as f64 / SEGMENT
}

#[test]
fn one_connection_has_the_sum_of_two_links() {
    for from in [Side::Core, Side::Box] {
        // The links as they are in the scenarios, and a millisecond apart from that.
        for (more, bar) in [(0, 0.96), (3, 0.945)] {
            for (links, sum) in pairs(more) {
                let (goodput, progress) = goodput(&links, from, 1, |_| ());
                assert!(goodput >= bar * content(sum), "{from:?}, {sum}: {goodput:.1} Mbit/s {progress:?}");
            }
        }
    }
}

/// The queue of each link is full before anybody can know it: what it loses goes again, and the connection sees none of it.
#[test]
fn what_a_short_queue_loses_is_no_loss_of_the_connection() {
    for from in [Side::Core, Side::Box] {
        for (links, sum) in [pairs(0), pairs(3)].into_iter().flatten() {
            let links = links.map(|link| LinkModel { queue: link.queue / 2, ..link });
            let (goodput, progress) = goodput(&links, from, 1, |_| ());
            assert!(goodput >= 0.93 * content(sum), "{from:?}, {sum}: {goodput:.1} Mbit/s {progress:?}");
            // The one that our own queue drops to tell it that there is no more.
            assert!(progress.retransmitted <= 1, "{from:?}, {sum}: {progress:?}");
        }
    }
}

#[test]
fn a_link_that_would_drag_the_others_down_does_not() {
    let two = [link(100, 10), link(50, 40)];
    let third = LinkModel { loss: Loss::Random(0.03), ..link(5, 300) };
    for seed in 0..3 {
        let (without, _) = goodput(&two, Side::Core, seed, |_| ());
        let (with, progress) = goodput(&[two[0], two[1], third], Side::Core, seed, |_| ());
        assert!(with >= 0.95 * without, "{with:.1} of {without:.1} Mbit/s: {progress:?}");
    }
}

#[test]
fn two_links_are_never_worse_than_the_better_one() {
    let (fast, slow) = (link(1000, 2), link(100, 30));
    let (alone, _) = goodput(&[fast], Side::Core, 1, |_| ());
    let (both, progress) = goodput(&[fast, slow], Side::Core, 1, |_| ());
    assert!(both >= alone * 0.99, "{both:.1} of {alone:.1} Mbit/s: {progress:?}");
    // Of two equal links one falls to a tenth in the middle.
    let links = [link(50, 20), link(50, 20)];
    let (alone, _) = goodput(&links[..1], Side::Core, 1, |_| ());
    let (both, progress) = goodput(&links, Side::Core, 1, |world| {
        world.set_model(1, Side::Core, LinkModel { rate: 5_000_000, ..links[1] });
    });
    assert!(both >= alone, "{both:.1} of {alone:.1} Mbit/s: {progress:?}");
}

#[test]
fn a_bonded_flow_outlives_a_link_s_death_and_loses_nothing() {
    for seed in 0..20 {
        let roomy = |link: LinkModel| LinkModel { queue: link.queue * 2, ..link };
        let links = [link(20, 10), link(20, 25), link(20, 30)].map(roomy);
        let mut world = world(&links, seed);
        // 24 Mbit/s each way: more than one of them carries. What it takes to find that out is not what is tested here.
        let flow = |from, start, end| Flow {
            interval: Duration::from_micros(400),
            size: 1200,
            ..Flow::steady(from, start, end)
        };
        for from in [Side::Box, Side::Core] {
            world.add_flow(flow(from, 1000, 3000));
        }
        let flows = [Side::Box, Side::Core].map(|from| world.add_flow(flow(from, 3000, 8000)));
        world.run_until(at(5000) + ms(seed * 3));
        world.set_cut_both(seed as usize % 2, true);
        world.run_until(at(9000));
        for flow in flows {
            let report = &world.reports()[flow];
            let drops = world.snapshot(Side::Box).peers[0].drops.clone();
            assert_eq!((report.received, report.duplicated), (report.sent, 0), "seed {seed}: {report:?} {drops:?}");
        }
    }
}

#[test]
fn a_connection_has_what_is_left_when_a_link_dies_and_all_when_it_is_back() {
    for dead in [0, 1] {
        let links = [link(50, 10), link(50, 30)];
        let mut world = world(&links, 1);
        world.run_until(at(1000));
        let connection = world.add_tcp(Side::Core, at(31_000));
        let rate = |world: &mut World, from: u64, until: u64| {
            world.run_until(at(from));
            let before = world.progress(connection).octets;
            world.run_until(at(until));
            (world.progress(connection).octets - before) as f64 * 8e-3 / (until - from) as f64
        };
        rate(&mut world, 1000, 6000);
        world.set_cut_both(dead, true);
        let alone = rate(&mut world, 7000, 11_000);
        world.set_cut_both(dead, false);
        // Cubic takes its time to grow into what it has again.
        let both = rate(&mut world, 27_000, 31_000);
        let progress = world.progress(connection);
        assert!(alone >= 0.85 * content(50.0), "link {dead} dead: {alone:.1} Mbit/s {progress:?}");
        assert!(both >= 0.95 * content(100.0), "link {dead} back: {both:.1} Mbit/s {progress:?}");
        assert_eq!(progress.timeouts, 0, "link {dead} dead: {progress:?}");
    }
}

#[test]
fn a_connection_has_the_sum_also_after_one_the_other_way() {
    for pause in [2000, 7000] {
        let mut world = world(&[link(100, 10), link(50, 40)], pause);
        world.run_until(at(1000));
        world.add_tcp(Side::Core, at(6000));
        let start = 6000 + pause;
        world.run_until(at(start));
        let connection = world.add_tcp(Side::Box, at(start + 10_000));
        world.run_until(at(start + 10_000));
        let progress = world.progress(connection);
        let goodput = progress.octets as f64 * 8.0 / 10e6;
        assert!(goodput >= 0.9 * content(150.0), "after {pause} ms: {goodput:.1} Mbit/s {progress:?}");
    }
}
