//! Links of every MTU that drop what is too large without a word, in virtual time.

use proto::sim::{Flow, LinkModel, Loss, Side, World, WorldConfig, at, ms};
use proto::snapshot::PathSnapshot;
use proto::wire::{Fragment, Item, Writer};
use proto::{DropReason, Event, Instant, PathState};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

const SIDES: [Side; 2] = [Side::Box, Side::Core];

fn link(mtu: usize) -> LinkModel {
    LinkModel { mtu, ..LinkModel::default() }
}

/// Links of these models; the tunnels' datagrams are IPv6 if so wanted.
fn world(links: &[LinkModel], ipv6: bool, seed: u64) -> World {
    let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 51820));
    let config = WorldConfig::new(links, seed);
    let core_addresses = if ipv6 { vec![v6] } else { config.core_addresses.clone() };
    World::new(WorldConfig { core_addresses, ..config })
}

fn flow(from: Side, size: usize, start: u64, end: u64) -> Flow {
    Flow { size, ..Flow::steady(from, start, end) }
}

fn path(world: &World, side: Side, slot: usize) -> PathSnapshot {
    world.snapshot(side).peers[0].paths[slot].clone()
}

/// What a link carries in one datagram, of the packets that the TUN (1,380) lets in.
fn fitting(mtu: usize, ipv6: bool) -> usize {
    (mtu - if ipv6 { 48 } else { 28 } - 32).min(1_380)
}

fn suspicions(world: &World, side: Side) -> usize {
    let suspect = |(_, event): &&(Instant, Event)| matches!(event, Event::Path { to: PathState::Suspect, .. });
    world.events(side).iter().filter(suspect).count()
}

#[test]
fn packets_of_every_size_arrive_over_links_of_every_mtu() {
    for ipv6 in [false, true] {
        for mtu in [1_500, 1_492, 1_300, 1_280] {
            let mut world = world(&[link(mtu)], ipv6, 1);
            // From the first moment on, while nothing is known of the path, and when all is.
            world.run_until(at(250));
            let mut sizes = Vec::new();
            for (size, start) in (576..=1_380).step_by(4).zip((250..).step_by(20)) {
                for side in SIDES {
                    world.add_flow(Flow { interval: ms(4), ..flow(side, size, start, start + 20) });
                    sizes.push(size);
                }
            }
            world.run_until(at(5_000));
            for (report, size) in world.reports().iter().zip(sizes) {
                assert_eq!((report.received, report.duplicated), (5, 0), "{size} over {mtu}, IPv6 {ipv6}: {report:?}");
            }
            for side in SIDES {
                let found = usize::from(path(&world, side, 0).mtu.expect("it was measured"));
                let expected = fitting(mtu, ipv6);
                assert!(found <= expected && expected - found < 8, "{found} of {expected}, {mtu}, IPv6 {ipv6}");
                let peer = &world.snapshot(side).peers[0];
                assert_eq!(peer.fragmented > 0, expected < 1_380, "{mtu}, IPv6 {ipv6}");
                assert_eq!(peer.drops.iter().map(|(_, count)| count).sum::<u64>(), 0, "{:?}", peer.drops);
                assert_eq!(suspicions(&world, side), 0, "a lost probe is no sign of a dead path");
            }
        }
    }
}

#[test]
fn each_direction_has_an_mtu_of_its_own() {
    let config = WorldConfig { links: vec![(link(1_300), link(1_500))], ..WorldConfig::new(&[], 1) };
    let mut world = World::new(config);
    world.run_until(at(5_000));
    let found = SIDES.map(|side| path(&world, side, 0).mtu.expect("it was measured"));
    assert!((1_233..=1_240).contains(&found[0]), "{found:?}");
    assert_eq!(found[1], 1_380);
}

#[test]
fn a_cut_of_a_wide_link_beside_a_narrow_one_costs_no_more_than_any() {
    let mut longest = Duration::ZERO;
    for seed in 0..20 {
        let mut world = world(&[link(1_500), link(1_300)], false, seed);
        for side in SIDES {
            for size in [1_280, 1_380] {
                world.add_flow(flow(side, size, 1_000, 5_000));
            }
        }
        world.run_until(Instant::from_nanos(2_000_000_000 + seed * 7_300_000));
        world.set_cut_both(0, true);
        world.run_until(at(6_000));
        for report in world.reports() {
            longest = longest.max(report.longest_gap.0);
            assert!(report.longest_gap.0 < ms(150), "seed {seed}: {report:?}");
            let (lost, gap) = (report.sent - report.received, report.longest_gap.0);
            assert!(u128::from(lost) <= gap.as_millis(), "nothing but what was under way: {report:?}");
        }
    }
    println!("longest gap of 20 cuts from 1,500 to 1,300 at RTT 20 ms: {longest:?}");
}

#[test]
fn a_link_that_narrows_in_mid_flow_is_seen_within_a_second() {
    for (interval, bar) in [(1, ms(300)), (100, ms(1_000))] {
        let mut longest = Duration::ZERO;
        for seed in 0..10 {
            let mut world = world(&[link(1_500); 2], false, seed);
            for side in SIDES {
                world.add_flow(Flow { interval: ms(interval), ..flow(side, 1_380, 1_000, 10_000) });
            }
            world.run_until(at(3_000 + seed * 7));
            let before: Vec<_> = SIDES.iter().map(|&side| path(&world, side, 0).state).collect();
            assert_eq!(before, [PathState::Up; 2]);
            for side in SIDES {
                world.set_model(0, side, link(1_300));
            }
            world.run_until(at(10_500));
            for report in world.reports() {
                longest = longest.max(report.longest_gap.0);
                assert!(report.longest_gap.0 < bar, "each {interval} ms, seed {seed}: {report:?}");
                assert!(report.last_arrival.is_some_and(|last| last > at(9_900)), "{report:?}");
            }
            for side in SIDES {
                let found = path(&world, side, 0).mtu;
                assert!(found.is_some_and(|mtu| (1_233..=1_240).contains(&mtu)), "{found:?}");
                assert_eq!(world.snapshot(side).peers[0].path_changes, 0, "a narrow path is as good as any");
            }
        }
        println!("longest gap, a packet each {interval} ms, as the link narrows at RTT 20 ms: {longest:?}");
    }
}

#[test]
fn loss_slows_the_search_and_harms_nothing_else() {
    let lossy = LinkModel { loss: Loss::Random(0.3), ..link(1_300) };
    let (mut right, seeds) = (0, 50);
    for seed in 0..seeds {
        // The other link keeps the receipts coming, as it does while there is traffic: it is the probes that are tested.
        let mut world = world(&[lossy, link(1_500)], false, seed);
        world.add_flow(Flow { interval: ms(50), ..flow(Side::Core, 100, 0, 20_000) });
        world.run_until(at(20_000));
        for side in SIDES {
            let found = path(&world, side, 0).mtu.expect("it was measured");
            assert!(found <= 1_240, "{found}: what is larger cannot have been answered");
            right += u32::from(found > 1_232);
            assert_eq!(path(&world, side, 1).mtu, Some(1_380));
        }
    }
    println!("the largest size that fits was found in {right} of {} searches with 30 % loss", 2 * seeds);
    // Probe and receipt both arrive in half of all tries; the search needs about three sizes to be answered in three
    // tries each, which comes to 0.65. What it misses by is a fragment, not a packet.
    assert!(right * 2 > 2 * seeds as u32, "{right} of {}", 2 * seeds);
}

#[test]
fn a_burst_of_losses_costs_one_round_trip_of_fragments() {
    let mut world = world(&[link(1_500)], false, 1);
    world.add_flow(flow(Side::Box, 1_380, 1_000, 5_000));
    world.run_until(at(2_000));
    let fragmented = world.snapshot(Side::Box).peers[0].fragmented;
    world.set_cut(0, Side::Box, true);
    world.run_for(ms(40));
    world.set_cut(0, Side::Box, false);
    world.run_until(at(5_500));
    let after = world.snapshot(Side::Box).peers[0].fragmented - fragmented;
    assert!(after <= 60, "{after} packets went in fragments");
    assert_eq!(path(&world, Side::Box, 0).mtu, Some(1_380));
}

#[test]
fn another_address_is_another_path_and_another_port_is_not() {
    let mut world = world(&[link(1_500)], false, 1);
    world.add_flow(flow(Side::Box, 1_380, 1_000, 6_000));
    world.add_flow(flow(Side::Core, 1_380, 1_000, 6_000));
    world.run_until(at(2_000));
    let fragmented = |world: &World| world.snapshot(Side::Core).peers[0].fragmented;
    let before = fragmented(&world);
    world.rebind(0, SocketAddr::from(([203, 0, 113, 1], 1234)));
    world.run_until(at(3_000));
    assert_eq!(fragmented(&world), before, "a NAT that has forgotten");
    world.rebind(0, SocketAddr::from(([203, 0, 113, 77], 1234)));
    world.run_until(at(4_000));
    let searched = fragmented(&world) - before;
    assert!((1..=60).contains(&searched), "{searched} packets until it was measured");
    assert_eq!(path(&world, Side::Core, 0).mtu, Some(1_380));
}

/// A SYN between the site's host and one on the Internet, which says that its sender takes segments of 1,460 octets.
fn syn(from: Side) -> Vec<u8> {
    let mut packet = vec![0; 44];
    packet[0] = 0x45;
    packet[3] = 44;
    packet[9] = 6;
    let (site, internet) = ([198, 51, 100, 10], [203, 0, 113, 200]);
    let (source, destination) = if from == Side::Box { (site, internet) } else { (internet, site) };
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet[32..34].copy_from_slice(&[0x60, 0x02]);
    packet[40..44].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    packet
}

#[test]
fn segments_are_as_large_as_the_way_that_they_will_take() {
    let config = WorldConfig { links: vec![(link(1_500), link(1_300))], ..WorldConfig::new(&[], 1) };
    let mut world = World::new(config);
    world.run_until(at(5_000));
    for from in SIDES {
        world.offer(from, &mut syn(from));
        world.run_for(ms(100));
        let arrived = world.last_delivered(from.other());
        let mss = u16::from_be_bytes([arrived[42], arrived[43]]);
        let back = path(&world, from.other(), 0).mtu.expect("it was measured");
        assert_eq!(mss, back - 40, "the answers to a SYN from {from:?}");
        assert_eq!(mss == 1_340, from == Side::Core, "{mss}");
    }
}

#[test]
fn a_box_that_lies_about_its_addresses_gets_nothing_through_in_fragments() {
    let everything: Vec<_> = ["0.0.0.0/0", "::/0"].iter().filter_map(|prefix| prefix.parse().ok()).collect();
    let mut world = World::new(WorldConfig { box_prefixes: everything, ..WorldConfig::new(&[link(1_300)], 1) });
    world.run_until(at(5_000));
    for source in [[203, 0, 113, 5], [192, 0, 2, 1], [198, 51, 101, 1]] {
        let mut packet = vec![0; 1_380];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&1_380u16.to_be_bytes());
        packet[9] = 17;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&[203, 0, 113, 200]);
        world.offer(Side::Box, &mut packet);
    }
    world.run_for(ms(100));
    let core = &world.snapshot(Side::Core).peers[0];
    assert_eq!((core.reassembled, core.drops.get(DropReason::PeerSource), core.rx.packets), (3, 3, 0));
}

/// A link message of one item.
fn message(item: Item<'_>) -> Vec<u8> {
    let mut buffer = [0; 1_000];
    let mut message = Writer::new(&mut buffer);
    assert!(message.add(&item));
    message.finish().to_vec()
}

#[test]
fn nothing_but_packets_is_taken_out_of_fragments() {
    let mut world = world(&[link(1_500), link(1_500)], false, 1);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let tap = seen.clone();
    world.set_tap(Some(Box::new(move |link, side, data| {
        if (link, side, data[0]) == (0, Side::Box, 4) {
            *tap.borrow_mut() = data.to_vec();
        }
        true
    })));
    world.run_until(at(5_000));
    let of_box = seen.borrow().clone();
    let session = u32::from_le_bytes([of_box[4], of_box[5], of_box[6], of_box[7]]);
    let ping = message(Item::Ping);
    let whole =
        |id, content: &[u8]| message(Item::Fragment(Fragment { id, offset: 0, total: content.len() as u16, content }));
    let nested = whole(1, &ping);
    let longer_than_it_says = [syn(Side::Box), vec![0; 9]].concat();
    let contents = [&ping, &nested, &syn(Side::Box), &longer_than_it_says];
    // A box that speaks as it likes: as the tunnel without a cipher seals, with numbers of its own.
    for ((number, id), content) in (1_000_000u64..).zip(1..).zip(contents) {
        let message = whole(id, content);
        let mark = u64::from(session) ^ number.rotate_left(17) ^ message.len() as u64;
        let header = [&of_box[..8], &number.to_le_bytes()].concat();
        let datagram = [&header[..], &message, &mark.to_le_bytes(), &[0; 8]].concat();
        world.inject(Side::Core, 0, SocketAddr::from(([203, 0, 113, 1], 40_000)), &datagram);
    }
    world.run_for(ms(1));
    let core = &world.snapshot(Side::Core).peers[0];
    let count = |reason| core.drops.get(reason);
    assert_eq!(count(DropReason::PeerSource), 2, "a link message, and a fragment of one: {:?}", core.drops);
    assert_eq!(count(DropReason::PeerMalformed), 1, "longer than its header says: {:?}", core.drops);
    assert_eq!((core.reassembled, core.rx.packets), (4, 1), "the packet");
}

#[test]
fn a_lone_link_that_narrows_below_what_is_assumed_is_used_as_far_as_it_goes() {
    let mut world = world(&[link(1_500)], false, 1);
    for side in SIDES {
        world.add_flow(flow(side, 1_380, 1_000, 10_000));
        world.add_flow(flow(side, 1_100, 1_000, 10_000));
    }
    world.run_until(at(3_000));
    for side in SIDES {
        world.set_model(0, side, link(1_000));
    }
    world.run_until(at(10_500));
    for report in world.reports() {
        assert!(report.longest_gap.0 < ms(2_000), "{report:?}");
        assert!(report.last_arrival.is_some_and(|last| last > at(9_900)), "{report:?}");
    }
    for side in SIDES {
        let found = path(&world, side, 0);
        assert!(found.mtu.is_some_and(|mtu| (933..=940).contains(&mtu)), "{found:?}");
    }
}
