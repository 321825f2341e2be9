//! A box and a core joined by seeded links, in virtual time.

use proto::sim::{Flow, LinkModel, Loss, PEER, Side, World, WorldConfig, at, ms};
use proto::tunnel::Ciphered;
use proto::wire::{Hello, Item, MAX_MESSAGE, Writer};
use proto::{DropReason, Event, Instant, PathState};
use std::net::SocketAddr;
use std::time::Duration;

/// Links of one model each, the same both ways.
fn world(links: &[LinkModel], seed: u64) -> World {
    World::new(WorldConfig::new(links, seed))
}

/// The same with real WireGuard. Its timers stand still in virtual time; what is tested with it needs none.
fn with_wireguard(links: &[LinkModel], seed: u64) -> World {
    World::new(WorldConfig { suite: || Box::<Ciphered>::default(), ..WorldConfig::new(links, seed) })
}

fn two_links(seed: u64) -> World {
    world(&[LinkModel { jitter: ms(2), ..LinkModel::default() }, LinkModel::default()], seed)
}

fn path_changes(world: &World, side: Side) -> u64 {
    world.snapshot(side).peers[0].path_changes
}

#[test]
fn both_paths_come_up_and_packets_pass_both_ways() {
    for make in [world, with_wireguard] {
        let mut world = make(&[LinkModel::default(); 2], 1);
        world.add_flow(Flow::steady(Side::Box, 500, 1500));
        world.add_flow(Flow::steady(Side::Core, 500, 1500));
        world.run_until(at(2000));
        for side in [Side::Box, Side::Core] {
            let snapshot = world.snapshot(side);
            assert!(snapshot.peers[0].paths.iter().all(|path| path.state == PathState::Up), "{snapshot:?}");
            assert_eq!(snapshot.peers[0].current_slot, Some(0));
            let rtt = snapshot.peers[0].paths[0].rtt_ms.expect("it was measured");
            assert!((19.0..25.0).contains(&rtt), "{rtt}");
        }
        for report in world.reports() {
            assert_eq!((report.sent, report.received, report.duplicated, report.reordered), (1000, 1000, 0, 0));
        }
    }
}

#[test]
fn a_silent_cut_is_overcome_within_the_bar_whenever_it_comes() {
    let mut longest = Duration::ZERO;
    for seed in 0..200 {
        let mut world = two_links(seed);
        world.add_flow(Flow::steady(Side::Box, 1000, 5000));
        world.add_flow(Flow::steady(Side::Core, 1000, 5000));
        world.run_until(Instant::from_nanos(2_000_000_000 + seed * 7_300_000));
        let before = path_changes(&world, Side::Box);
        world.set_cut_both(0, true);
        world.run_until(at(6000));
        for report in world.reports() {
            longest = longest.max(report.longest_gap.0);
            assert!(report.longest_gap.0 < ms(300), "seed {seed}: {report:?}");
            assert_eq!(report.duplicated, 0);
        }
        assert_eq!(path_changes(&world, Side::Box) - before, 1, "seed {seed}");
    }
    println!("longest gap of 200 silent cuts at RTT 20 ms: {longest:?}");
}

#[test]
fn a_cut_costs_a_slower_standby_no_more_than_its_own_way() {
    let (fast, slow) =
        (LinkModel { jitter: ms(2), ..LinkModel::default() }, LinkModel { delay: ms(40), ..LinkModel::default() });
    for seed in 0..40 {
        let mut world = world(&[fast, slow], seed);
        world.add_flow(Flow::steady(Side::Box, 1000, 4000));
        world.add_flow(Flow::steady(Side::Core, 1000, 4000));
        world.run_until(Instant::from_nanos(2_000_000_000 + seed * 7_300_000));
        world.set_cut_both(0, true);
        world.run_until(at(5000));
        for report in world.reports() {
            assert_eq!((report.received, report.duplicated, report.reordered), (report.sent, 0, 0), "seed {seed}");
            // Suspected after 20 + margins by the fast receipts, not after 50; then 40 on the way instead of 10.
            assert!(report.longest_gap.0 < ms(20 + 30 + 30), "seed {seed}: {report:?}");
        }
    }
}

#[test]
fn a_break_of_all_paths_that_is_shorter_than_a_second_loses_nothing() {
    for (links, lasts) in [(1, 40), (1, 150), (1, 700), (2, 150), (2, 700)] {
        for seed in 0..20 {
            let mut world = world(&vec![LinkModel { jitter: ms(2), ..LinkModel::default() }; links], seed);
            world.add_flow(Flow::steady(Side::Box, 1000, 4000));
            world.add_flow(Flow::steady(Side::Core, 1000, 4000));
            world.run_until(Instant::from_nanos(2_000_000_000 + seed * 7_300_000));
            (0..links).for_each(|link| world.set_cut_both(link, true));
            world.run_for(ms(lasts));
            (0..links).for_each(|link| world.set_cut_both(link, false));
            world.run_until(at(5000));
            for report in world.reports() {
                let whole = (report.received, report.duplicated) == (report.sent, 0);
                assert!(whole, "{links} links for {lasts} ms, seed {seed}: {report:?}");
            }
        }
    }
}

#[test]
fn one_direction_cut_moves_that_direction_alone() {
    for (cut, seed) in [(Side::Box, 1), (Side::Core, 2)] {
        let mut world = two_links(seed);
        world.add_flow(Flow::steady(Side::Box, 1000, 5000));
        world.add_flow(Flow::steady(Side::Core, 1000, 5000));
        world.run_until(at(2000));
        let before = [cut, cut.other()].map(|side| path_changes(&world, side));
        world.set_cut(0, cut, true);
        world.run_until(at(6000));
        for report in world.reports() {
            assert!(report.longest_gap.0 < ms(300), "{cut:?}: {report:?}");
        }
        assert_eq!(path_changes(&world, cut) - before[0], 1);
        assert_eq!(path_changes(&world, cut.other()) - before[1], 0, "the direction that works stays");
    }
}

#[test]
fn flapping_moves_traffic_once_and_a_healed_link_is_used_again() {
    for seed in 0..10 {
        let mut world = two_links(seed);
        world.add_flow(Flow::steady(Side::Box, 1000, 135_000));
        world.add_flow(Flow::steady(Side::Core, 1000, 135_000));
        world.run_until(at(2000));
        let mut after_five_seconds = [0; 2];
        for toggle in 0..60 {
            world.set_cut_both(0, toggle % 2 == 0);
            world.run_for(ms(500));
            if toggle == 9 {
                after_five_seconds = [path_changes(&world, Side::Box), path_changes(&world, Side::Core)];
            }
        }
        for (side, before) in [Side::Box, Side::Core].into_iter().zip(after_five_seconds) {
            assert!(path_changes(&world, side) - before <= 3, "seed {seed}, {side:?}");
        }
        world.set_cut_both(0, false);
        world.run_until(at(136_000));
        for side in [Side::Box, Side::Core] {
            assert_eq!(world.snapshot(side).peers[0].current_slot, Some(0), "back on the preferred path");
        }
        for report in world.reports() {
            assert!(report.longest_gap.0 < ms(300), "seed {seed}: {report:?}");
        }
    }
}

#[test]
fn after_both_were_dead_traffic_is_back_within_the_bar_of_the_first_that_returns() {
    for outage in [1_000, 20_000, 120_000, 200_000, 3_600_000] {
        for seed in 0..5 {
            let mut world = two_links(seed);
            let healed = 3000 + outage + seed * 37;
            world.add_flow(Flow { interval: ms(10), ..Flow::steady(Side::Box, 1000, healed + 3000) });
            world.add_flow(Flow { interval: ms(10), ..Flow::steady(Side::Core, 1000, healed + 3000) });
            world.run_until(at(3000));
            world.set_cut_both(0, true);
            world.set_cut_both(1, true);
            world.run_until(at(healed));
            let reachable = world.snapshot(Side::Core).peers[0].reachable;
            assert!(!reachable, "seed {seed}, outage {outage}");
            world.set_cut_both(1, false);
            world.run_until(at(healed + 3000));
            let bar = if outage < 300_000 { ms(300) } else { ms(1000) };
            for report in world.reports() {
                let (gap, from) = report.longest_gap;
                let back = (from + gap).since(at(healed));
                assert!(back < bar, "seed {seed}, outage {outage} ms: back after {back:?}");
            }
        }
    }
}

#[test]
fn a_restart_of_either_end_is_overcome_within_three_seconds() {
    for side in [Side::Box, Side::Core] {
        for seed in 0..10 {
            let mut world = two_links(seed);
            world.add_flow(Flow::steady(Side::Box, 1000, 20_000));
            world.add_flow(Flow::steady(Side::Core, 1000, 20_000));
            world.run_until(at(2000 + seed * 13));
            world.kill(side);
            world.run_for(ms(4000));
            let started = world.now();
            world.start(side);
            world.run_until(at(20_000));
            for report in world.reports() {
                let (gap, from) = report.longest_gap;
                let back = (from + gap).since(started);
                assert!(back < ms(1500), "{side:?}, seed {seed}: back after {back:?}");
            }
        }
    }
}

#[test]
fn rekeys_lose_nothing_even_with_most_handshakes_lost() {
    let mut world = two_links(5);
    world.add_flow(Flow { interval: ms(5), ..Flow::steady(Side::Box, 1000, 900_000) });
    world.add_flow(Flow { interval: ms(5), ..Flow::steady(Side::Core, 1000, 900_000) });
    world.run_until(at(2000));
    // Seven of ten handshake messages lost, by a fixed pattern; data passes.
    let mut count = 0u32;
    world.set_tap(Some(Box::new(move |_, _, data| {
        if data[0] == 4 {
            return true;
        }
        count = count.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (count >> 16) % 10 >= 7
    })));
    world.run_until(at(901_000));
    for report in world.reports() {
        assert_eq!((report.received, report.duplicated), (report.sent, 0), "{report:?}");
    }
}

#[test]
fn loss_jitter_and_reordering_are_not_taken_for_death() {
    let cases = [
        ("1 % loss", LinkModel { loss: Loss::Random(0.01), ..LinkModel::default() }),
        ("bursts", LinkModel { loss: Loss::Bursts { to_bad: 0.001, to_good: 0.3 }, ..LinkModel::default() }),
        ("jitter that reorders", LinkModel { jitter: ms(3), ordered: false, ..LinkModel::default() }),
        ("a satellite", LinkModel { delay: ms(300), jitter: ms(5), ..LinkModel::default() }),
    ];
    for (name, model) in cases {
        for seed in 0..5 {
            let mut world = world(&[model, LinkModel::default()], seed);
            world.add_flow(Flow::steady(Side::Box, 5000, 65_000));
            world.add_flow(Flow::steady(Side::Core, 5000, 65_000));
            // A sparse flow, whose every loss looks like a path that has died.
            world.add_flow(Flow { interval: ms(250), ..Flow::steady(Side::Box, 5000, 65_000) });
            world.run_until(at(5000));
            let before = [Side::Box, Side::Core].map(|side| path_changes(&world, side));
            world.run_until(at(66_000));
            for (side, before) in [Side::Box, Side::Core].into_iter().zip(before) {
                assert_eq!(
                    path_changes(&world, side) - before,
                    0,
                    "{name}, seed {seed}, {side:?}: {:?}",
                    world.events(side)
                );
                assert_eq!(world.snapshot(side).peers[0].current_slot, Some(0), "{name}");
            }
        }
    }
}

#[test]
fn garbage_truncation_and_replay_do_nothing_and_are_answered_with_nothing() {
    for make in [world, with_wireguard] {
        garbage_truncation_and_replay(make(&[LinkModel::default(); 2], 3));
    }
}

fn garbage_truncation_and_replay(mut world: World) {
    let captured = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let tap = captured.clone();
    world.set_tap(Some(Box::new(move |link, side, data| {
        tap.borrow_mut().push((link, side, data.to_vec()));
        true
    })));
    world.add_flow(Flow { interval: ms(10), ..Flow::steady(Side::Box, 1000, 5000) });
    world.add_flow(Flow { interval: ms(10), ..Flow::steady(Side::Core, 1000, 5000) });
    world.run_until(at(2000));
    world.set_tap(None);
    // What is still under way would be a race between two copies of the same datagram, which either may win.
    world.run_for(ms(50));
    let captured = captured.take();
    assert!(captured.iter().any(|(_, _, data)| data[0] == 1), "initiations are among them");
    let endpoints =
        |world: &World| world.snapshot(Side::Core).peers[0].paths.iter().map(|p| p.endpoint).collect::<Vec<_>>();
    let before = endpoints(&world);
    let elsewhere = SocketAddr::from(([203, 0, 113, 99], 9));
    for (link, side, data) in &captured {
        world.inject(side.other(), *link, elsewhere, data);
        for cut in [0, 3, 15, 31, data.len() - 1] {
            world.inject(side.other(), *link, elsewhere, &data[..cut.min(data.len() - 1)]);
        }
        let mut flipped = data.clone();
        flipped[data.len() / 2] ^= 0x40;
        world.inject(side.other(), *link, elsewhere, &flipped);
    }
    world.run_until(at(6000));
    assert_eq!(endpoints(&world), before, "what is played again moves nothing");
    for report in world.reports() {
        assert_eq!((report.received, report.duplicated), (report.sent, 0), "{report:?}");
    }
    let core = world.snapshot(Side::Core);
    assert!(core.peers[0].drops.get(DropReason::DataReplayed) > 100, "{core:?}");
    assert!(core.drops.get(DropReason::DatagramMalformed) > 100, "{core:?}");
}

#[test]
fn a_rebound_nat_is_followed_without_a_handshake() {
    let mut world = two_links(4);
    world.add_flow(Flow::steady(Side::Core, 1000, 5000));
    world.add_flow(Flow::steady(Side::Box, 1000, 5000));
    world.run_until(at(2000));
    world.rebind(0, SocketAddr::from(([203, 0, 113, 77], 1234)));
    let since = world.now();
    world.run_until(at(5000));
    let endpoint = world.snapshot(Side::Core).peers[0].paths[0].endpoint;
    assert_eq!(endpoint, Some(SocketAddr::from(([203, 0, 113, 77], 1234))));
    let report = &world.reports()[0];
    assert!(report.longest_gap.0 < ms(40), "{report:?}");
    assert!(
        world.snapshot(Side::Core).peers[0].paths[0].handshake_s.expect("a session")
            > world.now().since(since).as_secs_f64()
    );
}

#[test]
fn carrier_loss_that_is_known_moves_the_box_at_once() {
    let mut world = two_links(6);
    world.add_flow(Flow::steady(Side::Box, 1000, 8000));
    world.add_flow(Flow::steady(Side::Core, 1000, 8000));
    world.run_until(at(2000));
    world.set_cut_both(0, true);
    world.set_uplink(0, false);
    world.run_until(at(4000));
    let reports = world.reports();
    assert!(reports[0].longest_gap.0 <= ms(15), "up: {:?}", reports[0]);
    // The news takes the other path's 10 ms, and the first packet sent there as long again.
    assert!(reports[1].longest_gap.0 <= ms(25), "down: {:?}", reports[1]);
    world.set_cut_both(0, false);
    world.set_uplink(0, true);
    world.run_until(at(8000));
    assert_eq!(world.snapshot(Side::Box).peers[0].current_slot, Some(0));
}

#[test]
fn events_tell_the_daemon_when_the_peer_is_reachable() {
    let mut world = two_links(7);
    world.run_until(at(5000));
    world.set_cut_both(0, true);
    world.run_until(at(50_000));
    world.set_cut_both(1, true);
    world.run_until(at(100_000));
    world.set_cut_both(1, false);
    world.run_until(at(105_000));
    let events: Vec<_> = world
        .events(Side::Core)
        .iter()
        .filter(|(_, event)| matches!(event, Event::Reachable(_) | Event::Unreachable(_)))
        .collect();
    let kinds: Vec<_> = events.iter().map(|(_, event)| event.clone()).collect();
    assert_eq!(kinds, [Event::Reachable(PEER), Event::Unreachable(PEER), Event::Reachable(PEER)]);
    let noticed = events[1].0.since(at(50_000));
    assert!(noticed < ms(31_000), "an idle path is known to be dead after three of the box's intervals: {events:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = world(
            &[LinkModel { loss: Loss::Random(0.02), jitter: ms(4), ordered: false, ..LinkModel::default() }; 2],
            seed,
        );
        world.add_flow(Flow::steady(Side::Box, 500, 3000));
        world.add_flow(Flow::steady(Side::Core, 500, 3000));
        world.run_until(at(1500));
        world.set_cut_both(0, true);
        world.run_until(at(4000));
        (world.reports(), world.datagrams())
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

/// An IPv4 UDP packet with any addresses.
fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x45;
    packet[3] = 48;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}

/// An ICMP "port unreachable" that quotes a packet.
fn icmp_error(source: [u8; 4], destination: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut error = packet(source, destination);
    error.truncate(20);
    error[9] = 1;
    error.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    error.extend(&quoted[..28]);
    error[3] = error.len() as u8;
    error
}

#[test]
fn a_box_that_lies_about_its_addresses_gets_nothing_through() {
    let everything: Vec<_> = ["0.0.0.0/0", "::/0"].iter().filter_map(|prefix| prefix.parse().ok()).collect();
    let config = WorldConfig { box_prefixes: everything, ..WorldConfig::new(&[LinkModel::default()], 8) };
    let mut world = World::new(config);
    world.run_until(at(1000));
    let (site, host) = ([198, 51, 100, 10], [203, 0, 113, 200]);
    let spoofed = [[203, 0, 113, 5], [10, 0, 0, 1], [192, 0, 2, 1], [8, 8, 8, 8], [198, 51, 101, 1]];
    for source in spoofed {
        world.offer(Side::Box, &mut packet(source, host));
        let mut fragment = packet(source, host);
        fragment[6..8].copy_from_slice(&0x0010u16.to_be_bytes());
        world.offer(Side::Box, &mut fragment);
    }
    // Complains of a packet that never went to it: would end somebody else's connection.
    let theirs = packet(host, [203, 0, 113, 7]);
    world.offer(Side::Box, &mut icmp_error(site, host, &theirs));
    // Complains of one that did.
    world.offer(Side::Box, &mut icmp_error(site, host, &packet(host, site)));
    world.run_until(at(1100));
    let core = &world.snapshot(Side::Core).peers[0];
    assert_eq!(core.drops.get(DropReason::PeerSource), 2 * spoofed.len() as u64, "{core:?}");
    assert_eq!(core.drops.get(DropReason::PeerQuote), 1, "{core:?}");
    assert_eq!(core.rx.packets, 1, "only the honest complaint came through: {core:?}");
}

#[test]
fn nothing_that_is_not_the_sites_enters_or_leaves_by_the_tun() {
    let mut world = two_links(9);
    world.run_until(at(1000));
    let (site, host) = ([198, 51, 100, 10], [203, 0, 113, 200]);
    for (side, mut bytes, reason) in [
        (Side::Box, packet(host, site), DropReason::TunSource),
        (Side::Core, packet(site, site), DropReason::TunSource),
        (Side::Core, packet(host, [198, 51, 101, 1]), DropReason::TunNoPeer),
        (Side::Core, packet(host, [224, 0, 0, 1]), DropReason::TunReserved),
        (Side::Box, packet([169, 254, 0, 1], host), DropReason::TunReserved),
        (Side::Box, packet(site, host)[..47].to_vec(), DropReason::TunMalformed),
    ] {
        let before = world.snapshot(side).drops.get(reason);
        world.offer(side, &mut bytes);
        assert_eq!(world.snapshot(side).drops.get(reason), before + 1, "{side:?}: {reason:?}");
    }
    let mut message = vec![0; 44];
    (message[0], message[5], message[6], message[40]) = (0x60, 4, 59, 1);
    message[8] = 0x20;
    message[24] = 0x20;
    world.offer(Side::Core, &mut message);
    assert_eq!(world.snapshot(Side::Core).drops.get(DropReason::TunReserved), 2, "next header 59 is ours");
}

#[test]
fn a_step_of_the_clock_is_followed_by_a_new_handshake_without_a_gap() {
    for make in [world, with_wireguard] {
        let mut world = make(&[LinkModel::default(); 2], 10);
        world.add_flow(Flow::steady(Side::Box, 1000, 5000));
        world.add_flow(Flow::steady(Side::Core, 1000, 5000));
        world.run_until(at(2000));
        let initiations = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = initiations.clone();
        world.set_tap(Some(Box::new(move |_, _, data| {
            count.set(count.get() + u32::from(data[0] == 1));
            true
        })));
        world.step_clock(Side::Box);
        world.run_until(at(6000));
        assert_eq!(initiations.get(), 2, "one on each path");
        for report in world.reports() {
            assert_eq!((report.received, report.duplicated), (report.sent, 0), "{report:?}");
        }
    }
}

#[test]
fn a_message_full_of_hellos_is_answered_once() {
    let mut world = two_links(11);
    world.run_until(at(2000));
    let sent = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let tap = sent.clone();
    world.set_tap(Some(Box::new(move |link, side, data| {
        tap.borrow_mut().push((link, side, data.to_vec()));
        true
    })));
    world.run_until(at(13_000));
    let of_box = |(link, side, data): &&(usize, Side, Vec<u8>)| *link == 0 && *side == Side::Box && data[0] == 4;
    let newest = sent.borrow().iter().rfind(of_box).expect("the box asks each ten seconds").2.clone();
    // As the tunnel without a cipher seals, with a number of its own.
    let mut buffer = [0; MAX_MESSAGE];
    let mut message = Writer::new(&mut buffer);
    while message.add(&Item::Hello(Hello::default())) {}
    let message = message.finish();
    let session = u32::from_le_bytes([newest[4], newest[5], newest[6], newest[7]]);
    let number = 1_000_000u64;
    let mark = u64::from(session) ^ number.rotate_left(17) ^ message.len() as u64;
    let header = [&newest[..8], &number.to_le_bytes()].concat();
    let forged = [&header[..], message, &mark.to_le_bytes(), &[0; 8]].concat();
    sent.borrow_mut().clear();
    world.inject(Side::Core, 0, SocketAddr::from(([203, 0, 113, 1], 40000)), &forged);
    world.run_for(Duration::from_millis(1));
    let hellos = sent.borrow().iter().filter(|(_, side, data)| *side == Side::Core && data.len() == 114).count();
    assert_eq!(hellos, 1);
}

#[test]
fn the_news_of_a_lost_uplink_raises_no_suspicion_on_an_idle_bundle() {
    let mut world = two_links(12);
    world.run_until(at(5000));
    world.set_cut_both(0, true);
    world.set_uplink(0, false);
    world.run_until(at(8000));
    let suspect = |(_, event): &&(Instant, Event)| matches!(event, Event::Path { to: PathState::Suspect, .. });
    for side in [Side::Box, Side::Core] {
        assert_eq!(world.events(side).iter().filter(suspect).count(), 0, "{:?}", world.events(side));
    }
    assert_eq!(world.snapshot(Side::Core).peers[0].paths[0].state, PathState::Down);
}
