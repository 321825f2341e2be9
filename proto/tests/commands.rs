//! What a daemon tells a node while packets pass.

mod direct;

use direct::{BOX, CORE, Direct, packet, site};
use proto::policy::{Class, Egress, Matches, Policy, Window};
use proto::tunnel::null::Null;
use proto::{Event, PeerConfig, PeerId};
use std::time::Duration;

fn pair() -> Direct {
    Direct::new(|| Box::new(Null))
}

#[test]
fn a_command_does_not_swallow_a_receipt_that_is_due() {
    let mut pair = pair();
    pair.offer(BOX, &mut packet(BOX, 1000));
    pair.offer(BOX, &mut packet(BOX, 1000));
    // The core was busy, and a command is what it takes up first.
    pair.now += Duration::from_millis(15);
    pair.ends[CORE].set_peers(pair.now, vec![site(1)]).expect("the same site");
    pair.run_for(Duration::from_millis(40));
    let path = &pair.ends[BOX].snapshot(pair.now).peers[0].paths[0];
    assert_eq!(path.reason, "receipts arrive", "the path was never suspected");
}

#[test]
fn a_site_whose_last_path_is_taken_away_is_unreachable() {
    let mut pair = pair();
    pair.ends[CORE].set_peers(pair.now, vec![site(9)]).expect("the same site with other keys");
    assert!(!pair.ends[CORE].snapshot(pair.now).peers[0].reachable);
    assert_eq!(pair.ends[CORE].poll_event(), Some(Event::Unreachable(PeerId(1))));
}

/// A packet of the site, of a flow for each source port.
fn of_flow(sport: u16, dport: u16, dscp: u8) -> Vec<u8> {
    let mut packet = packet(BOX, 1000);
    packet[1] = dscp << 2;
    packet[20..22].copy_from_slice(&sport.to_be_bytes());
    packet[22..24].copy_from_slice(&dport.to_be_bytes());
    packet
}

#[test]
fn a_packet_leaves_by_the_egress_choice_of_its_flows_class() {
    let class = |name: &str, matches, tun| {
        let egress = Some(Egress { name: name.into(), tun: Some(tun) });
        Class { matches, egress, ..Class::everything(name) }
    };
    let by_night = Window { days: 0x7f, from: 0, until: 60 };
    let classes = vec![
        class("calls", Matches { dscp: 1 << 46, ..Matches::default() }, 3),
        class("by night", Matches { dport: vec![873..=873], window: Some(by_night), ..Matches::default() }, 1),
    ];
    let policy = Policy::new(Default::default(), classes).expect("a good policy");
    let mut pair = pair();
    let with_policy = PeerConfig { egress: 2, policy: policy.into(), ..site(1) };
    pair.ends[CORE].set_peers(pair.now, vec![with_policy]).expect("a sound site");
    let leaves_by = |pair: &mut Direct, sport, dport, dscp| {
        let before = pair.by_tun;
        pair.offer(BOX, &mut of_flow(sport, dport, dscp));
        let came: Vec<usize> = (0..4).filter(|&tun| pair.by_tun[tun] > before[tun]).collect();
        came
    };
    assert_eq!(leaves_by(&mut pair, 1, 443, 46), [3]);
    assert_eq!(leaves_by(&mut pair, 2, 443, 0), [2], "as all of its site");
    assert_eq!(leaves_by(&mut pair, 1, 443, 0), [3], "a known flow, whatever its packets bear now");
    assert_eq!(leaves_by(&mut pair, 2, 443, 46), [2]);
    assert_eq!(leaves_by(&mut pair, 3, 873, 0), [2], "it is not night");
    pair.ends[CORE].set_open_windows(pair.now, &[(PeerId(1), 1)].into());
    assert_eq!(leaves_by(&mut pair, 3, 873, 0), [1], "the flow moves when the window opens");
    let classes = pair.ends[CORE].snapshot(pair.now).peers[0].classes.clone();
    let counted = classes.iter().map(|class| (class.egress.as_deref(), class.rx.packets));
    assert_eq!(counted.collect::<Vec<_>>(), [(Some("calls"), 2), (Some("by night"), 1), (None, 3)]);
    pair.ends[CORE].set_peers(pair.now, vec![site(1)]).expect("a sound site");
    assert_eq!(leaves_by(&mut pair, 1, 443, 46), [0], "without policy");
    assert_eq!(pair.ends[CORE].snapshot(pair.now).peers[0].classes[0].rx.packets, 0, "nobody looks");
}
