//! What the outer header has met arrives at the inner packet (RFC 6040), and it shows of the packet what policy says (RFC 2983).

mod direct;

use direct::{BOX, CORE, Direct, packet, site};
use proto::outer::{Dscp, Ecn, Outer};
use proto::policy::{Link, Policy};
use proto::tunnel::Ciphered;
use proto::tunnel::null::Null;
use proto::{DropReason, PeerConfig, TunnelKind};
use std::time::Duration;

/// DSCP EF.
const EF: u8 = 46 << 2;

/// An end sends a packet of each ECN field, of this length: the octets of the outer headers that the way saw of their
/// datagrams, and those of the packets that arrived.
fn each(direct: &mut Direct, from: usize, len: usize) -> (Vec<u8>, Vec<u8>) {
    let datagrams = len.div_ceil(direct.largest);
    let mut outer = Vec::new();
    direct.inner[1 - from].clear();
    for ecn in 0..4 {
        let mut packet = packet(from, len);
        packet[1] = EF | ecn;
        direct.outer.clear();
        direct.offer(from, &mut packet);
        outer.extend_from_slice(&direct.outer[..datagrams]);
        direct.run_for(Duration::from_millis(20));
    }
    (outer, direct.inner[1 - from].clone())
}

fn dropped(direct: &Direct, end: usize) -> u64 {
    direct.ends[end].snapshot(direct.now).peers[0].drops.get(DropReason::NotEcnCapable)
}

#[test]
fn the_outer_field_is_the_inner_one_and_what_it_met_arrives() {
    for (kind, from, len) in [
        (TunnelKind::WireGuard, BOX, 500usize),
        (TunnelKind::WireGuard, CORE, 500),
        (TunnelKind::WireGuard, BOX, 1300),
        (TunnelKind::Quic, BOX, 500),
        (TunnelKind::Quic, CORE, 500),
        (TunnelKind::Quic, BOX, 1300),
    ] {
        let mut direct = Direct::by(kind, || Box::<Ciphered>::default());
        // What is longer goes in two pieces, marked alike, once it is known to vanish.
        direct.largest = 1000;
        for _ in 0..500 {
            direct.offer(from, &mut packet(from, len));
            direct.run_for(Duration::from_millis(10));
        }
        let [none, all, marked] =
            [vec![0, 1, 2, 3], vec![EF, EF | 1, EF | 2, EF | 3], vec![EF, EF | 3, EF | 3, EF | 3]];
        let none: Vec<u8> = none.into_iter().flat_map(|ecn| vec![ecn; len.div_ceil(1000)]).collect();
        assert_eq!(each(&mut direct, from, len), (none.clone(), all.clone()));
        direct.ecn = |ecn| if ecn > 0 { 3 } else { 0 };
        assert_eq!(each(&mut direct, from, len), (none.clone(), marked.clone()));
        direct.ecn = |_| 0;
        assert_eq!(each(&mut direct, from, len), (none.clone(), all), "a way that clears it breaks nothing");
        assert_eq!(dropped(&direct, 1 - from), 0);
        direct.ecn = |_| 3;
        assert_eq!(each(&mut direct, from, len), (none, marked[1..].to_vec()), "it cannot be told but by a loss");
        assert_eq!(dropped(&direct, 1 - from), 1);
    }
}

#[test]
fn a_link_shows_of_a_packet_what_policy_says_and_nothing_comes_back_of_it() {
    let mut direct = Direct::new(|| Box::new(Null));
    for (outer, [packets, own]) in [
        (Outer { dscp: Dscp::Copy, ecn: Ecn::Copy }, [vec![EF, EF | 1, EF | 2, EF | 3], vec![0]]),
        (Outer { dscp: Dscp::Fixed(1), ecn: Ecn::Clear }, [vec![4; 4], vec![4]]),
        (Outer::default(), [vec![0, 1, 2, 3], vec![0]]),
    ] {
        let mut links: [Link; 8] = Default::default();
        links[0].outer = outer;
        let policy = Policy::new(links, Vec::new()).expect("it says nothing of classes");
        direct.ends[CORE]
            .set_peers(direct.now, vec![PeerConfig { policy: policy.into(), ..site(1) }])
            .expect("a sound configuration");
        direct.run_for(Duration::from_millis(20));
        assert_eq!(each(&mut direct, CORE, 500), (packets, vec![EF, EF | 1, EF | 2, EF | 3]), "{outer:?}");
        // The core's receipt for a packet of the box, whose own has no mark.
        direct.run_for(Duration::from_millis(20));
        direct.outer.clear();
        direct.offer(BOX, &mut packet(BOX, 500));
        direct.run_for(Duration::from_millis(20));
        assert_eq!(direct.outer[1..2], own, "{outer:?}");
    }
}
