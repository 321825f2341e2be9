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

/// The paths of a side, and the tunnels' handshakes' ages.
fn states(world: &World, side: Side) -> Vec<PathState> {
    world.snapshot(side).peers[0].paths.iter().map(|path| path.state).collect()
}

#[test]
fn a_steady_stream_each_way_loses_nothing() {
    let mut world = world(&[10], 2);
    world.run_until(at(1_000));
    world.add_flow(Flow::steady(Side::Box, 1_000, 11_000));
    world.add_flow(Flow::steady(Side::Core, 1_000, 11_000));
    world.run_until(at(12_000));
    println!("{:#?}", world.reports());
    println!("{:#?}", world.snapshot(Side::Box));
    println!("{:#?}", world.snapshot(Side::Core));
}

#[test]
fn a_silent_cut_of_one_of_two_loses_nothing() {
    let mut world = world(&[10, 20], 3);
    world.run_until(at(1_000));
    world.add_flow(Flow::steady(Side::Box, 1_000, 6_000));
    world.add_flow(Flow::steady(Side::Core, 1_000, 6_000));
    world.run_until(at(3_000));
    world.set_cut_both(0, true);
    world.run_until(at(7_000));
    println!("{:#?}", world.reports());
    println!("{:#?}", world.events(Side::Core));
}

#[test]
fn renumbered() {
    let mut world = world(&[20], 4);
    world.run_until(at(1_000));
    world.add_flow(Flow::steady(Side::Box, 1_000, 6_000));
    world.add_flow(Flow::steady(Side::Core, 1_000, 6_000));
    world.run_until(at(3_000));
    world.renumber(0, "203.0.113.77:4000".parse().expect("an address"));
    world.run_until(at(7_000));
    println!("{:#?}", world.reports());
    println!("{:#?}", world.events(Side::Core));
    println!("{:#?}", world.snapshot(Side::Core));
}
