//! Paths of QUIC: two nodes in virtual time, with the real tunnels.

use proto::sim::{Flow, LinkModel, Side, World, WorldConfig, at, ms};
use proto::tunnel::Ciphered;
use proto::{PathState, TunnelChoice};

/// A box and a core over links of these delays, with QUIC on each.
fn world(delays: &[u64], seed: u64) -> World {
    let links: Vec<LinkModel> =
        delays.iter().map(|&delay| LinkModel { delay: ms(delay), ..LinkModel::default() }).collect();
    World::new(WorldConfig {
        suite: || Box::<Ciphered>::default(),
        tunnel: TunnelChoice::Quic,
        ..WorldConfig::new(&links, seed)
    })
}

#[test]
fn data_both_ways() {
    let mut world = world(&[10], 1);
    world.run_until(at(1_000));
    for side in [Side::Box, Side::Core] {
        let snapshot = world.snapshot(side);
        println!("{snapshot:#?}");
        assert_eq!(snapshot.peers[0].paths[0].state, PathState::Up, "{side:?}");
    }
}
