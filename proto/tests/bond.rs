//! One TCP connection over several links at once, in virtual time: what it gets of their sum.

use proto::policy::{Class, Mode, Policy, Treatment};
use proto::sim::{LinkModel, Progress, Side, World, WorldConfig, at, ms};
use std::time::Duration;

/// Octets that a full segment takes of a link: its packet, its place in its stream, WireGuard's header and padding, UDP and
/// IPv4.
const SEGMENT: f64 = 1440.0;

/// A link with a queue of one bandwidth-delay product.
fn link(mbit: u64, delay: u64) -> LinkModel {
    let queue = (mbit * 125 * delay * 2) as usize;
    LinkModel { delay: ms(delay), rate: mbit * 1_000_000, queue: queue.max(30_000), ..LinkModel::default() }
}

fn world(links: &[LinkModel], mode: Mode, seed: u64) -> World {
    let treatment = Treatment { mode, ..Treatment::default() };
    let class = Class { up: treatment.clone(), down: treatment, ..Class::everything("all") };
    let policy = Policy::new(Default::default(), vec![class]).expect("a good policy");
    World::new(WorldConfig { policy: policy.into(), ..WorldConfig::new(links, seed) })
}

/// What a connection gets in ten seconds, in percent of what the links carry.
fn share(links: &[LinkModel], from: Side, seed: u64) -> (f64, Progress) {
    let mut world = world(links, Mode::Bond, seed);
    world.run_until(at(1000));
    let connection = world.add_tcp(from, at(11_000));
    if std::env::var("TRACE").is_ok() {
        let mut last = 0;
        for t in 0..100 {
            world.run_until(at(1000 + t * 100));
            let p = world.progress(connection);
            let s = world.snapshot(from);
            let r = world.snapshot(from.other());
            let peer = &s.peers[0];
            println!(
                "{:5} {:6.1} Mbit/s re {} red {} cwnd {} wait {} slots {:?} held {} late {} drops {:?} | {:?}",
                t * 100,
                (p.octets - last) as f64 * 8.0 / 1e5,
                p.retransmitted,
                p.reductions,
                p.window,
                peer.classes[0].waiting.packets,
                peer.classes[0].slots,
                r.peers[0].unordered.packets,
                r.peers[0].late,
                peer.drops.iter().filter(|d| d.1 > 0).collect::<Vec<_>>(),
                peer.paths
                    .iter()
                    .map(|x| format!(
                        "{} rate {:.1} rtt {:.0} min {:.0} q {:.0} lost {} {:?}",
                        x.id.slot,
                        x.rate.unwrap_or(0) as f64 / 1e6,
                        x.rtt_ms.unwrap_or(0.0),
                        x.rtt_min_ms.unwrap_or(0.0),
                        x.delay_change_ms.unwrap_or(0.0),
                        x.lost,
                        x.state
                    ))
                    .collect::<Vec<_>>()
            );
            last = p.octets;
        }
    }
    world.run_until(at(11_000));
    let progress = world.progress(connection);
    let sum: u64 = links.iter().map(|link| link.rate).sum();
    let content = sum as f64 * proto::sim::CONTENT as f64 / SEGMENT;
    if std::env::var("TRACE").is_ok() {
        let snapshot = world.snapshot(from);
        println!("{:#?}", snapshot.peers[0]);
    }
    (progress.octets as f64 * 8.0 / 10.0 / content * 100.0, progress)
}

#[test]
fn one_connection_has_the_sum_of_two_links() {
    for from in [Side::Core, Side::Box] {
        for (links, least) in [([link(100, 10), link(50, 40)], 90.0), ([link(50, 10), link(50, 30)], 95.0)] {
            let (share, progress) = share(&links, from, 1);
            println!("{from:?}: {share:.1} % {progress:?}");

            if std::env::var("TRY").is_err() {
                assert!(share >= least, "{from:?}: {share:.1} % {progress:?}");
            }
        }
    }
    let _ = Duration::ZERO;
}
