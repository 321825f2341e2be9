//! The traps of boringtun, one by one, at the port of a core: what anybody may send to it.

use boringtun::noise::{Tunn, TunnResult};
use proto::tunnel::HANDSHAKE_MAX;
use proto::{
    Datagram, DropReason, Identity, Instant, LinkId, Node, NodeConfig, Output, PathConfig, PathState, PeerConfig,
    PeerId, PeerKind, SecretKey,
};
use std::net::SocketAddr;
use std::time::Duration;
use x25519_dalek::{PublicKey, StaticSecret};

const CORE: [u8; 32] = [2; 32];
const CLIENT: [u8; 32] = [3; 32];

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn somewhere() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], 4242))
}

/// A core with one plain client.
fn core() -> Node {
    let peers = vec![site(0)];
    let listen_key = peers[0].paths.first().map(|path| path.local_key.clone());
    let identity = Identity { middlebox: 0, pop: 1 };
    let config = NodeConfig { identity, mtu: 1380, local: Vec::new(), listen_key, peers };
    Node::new(config, [7; 32], at(0)).expect("a sound configuration")
}

/// The client's site, whose packets go to the TUN at this place.
fn site(egress: u8) -> PeerConfig {
    let key = SecretKey::from_bytes(CORE);
    let path = PathConfig {
        slot: 0,
        kind: Default::default(),
        preference: None,
        local_key: key,
        remote_key: SecretKey::from_bytes(CLIENT).public(),
        link: None,
    };
    PeerConfig {
        id: PeerId(1),
        name: "client".into(),
        kind: PeerKind::Client,
        prefixes: vec!["198.51.100.0/24".parse().expect("a prefix")],
        egress,
        policy: Default::default(),
        open_windows: 0,
        paths: vec![path],
    }
}

/// What is to be delivered, to whichever TUN.
fn delivered(out: &mut Output) -> Vec<Vec<u8>> {
    out.deliveries().flatten().map(|packet| packet.clone()).collect()
}

/// A client as others make them: boringtun alone, knowing nothing of us.
fn client(secret: [u8; 32]) -> Tunn {
    let core = PublicKey::from(&StaticSecret::from(CORE));
    Tunn::new(StaticSecret::from(secret), core, None, None, 77, None)
}

fn give(node: &mut Node, now: Instant, from: SocketAddr, data: &[u8]) -> Output {
    let mut out = Output::new(0);
    node.handle_datagrams(
        now,
        [Datagram { link: LinkId(0), from, to: None, ecn: 0, waited: Duration::ZERO, data }],
        &mut out,
    );
    out
}

fn initiation(tunn: &mut Tunn) -> Vec<u8> {
    let mut dst = [0; 256];
    match tunn.format_handshake_initiation(&mut dst, true) {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("no initiation: {other:?}"),
    }
}

/// Hands a datagram to a client and returns what it sends.
fn take(tunn: &mut Tunn, datagram: &[u8]) -> Vec<u8> {
    let mut dst = [0; 2048];
    match tunn.decapsulate(Some([192, 0, 2, 1].into()), datagram, &mut dst) {
        TunnResult::WriteToNetwork(answer) => answer.to_vec(),
        TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
        other => panic!("nothing to send or deliver: {other:?}"),
    }
}

fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}

fn seal(tunn: &mut Tunn, packet: &[u8]) -> Vec<u8> {
    let mut dst = [0; 2048];
    match tunn.encapsulate(packet, &mut dst) {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("not sealed: {other:?}"),
    }
}

#[test]
fn a_plain_client_reaches_and_is_reached() {
    let (mut node, mut tunn) = (core(), client(CLIENT));
    let out = give(&mut node, at(0), somewhere(), &initiation(&mut tunn));
    let confirmation = take(&mut tunn, out.bytes());
    let mut down = packet([8, 8, 8, 8], [198, 51, 100, 9]);
    let mut out = Output::new(0);
    node.handle_ip(at(1), Duration::ZERO, [&mut down[..]], &mut out);
    assert!(out.is_empty(), "an unconfirmed session is not sent on, and nothing is queued to be sent stale");
    give(&mut node, at(10), somewhere(), &confirmation);
    assert_eq!(node.snapshot(at(10)).peers[0].paths[0].state, PathState::Up);
    let up = packet([198, 51, 100, 9], [8, 8, 8, 8]);
    let mut out = give(&mut node, at(20), somewhere(), &seal(&mut tunn, &up));
    assert_eq!(delivered(&mut out), [up]);
    let mut out = Output::new(0);
    node.handle_ip(at(30), Duration::ZERO, [&mut down[..]], &mut out);
    assert_eq!(out.transmits().len(), 1);
    assert_eq!(take(&mut tunn, out.bytes()), down);
    // No HELLO, no question, no receipt: it would not know what to do with them.
    while let Some(deadline) = node.poll_timeout().filter(|deadline| deadline.at < at(20_000)) {
        let mut out = Output::new(0);
        node.handle_timeout(deadline.at, &mut out);
        assert!(out.transmits().iter().all(|transmit| transmit.range.len() == 32), "keepalives at the most");
    }
}

#[test]
fn strangers_and_wrong_macs_get_no_answer() {
    let mut node = core();
    let mut wrong_mac = initiation(&mut client(CLIENT));
    wrong_mac[120] ^= 1;
    for (datagram, reason) in [
        (wrong_mac, DropReason::HandshakeMac),
        (initiation(&mut client([9; 32])), DropReason::HandshakeUnknownKey),
        (vec![1; 148], DropReason::DatagramMalformed),
        ([vec![2, 0, 0, 0], vec![5; 88]].concat(), DropReason::HandshakeInvalid),
        ([vec![3, 0, 0, 0], vec![5; 60]].concat(), DropReason::HandshakeInvalid),
        ([vec![4, 0, 0, 0], vec![5; 60]].concat(), DropReason::UnknownSession),
        (vec![], DropReason::DatagramMalformed),
    ] {
        let before = node.snapshot(at(0)).drops.get(reason);
        assert!(give(&mut node, at(0), somewhere(), &datagram).is_empty(), "{reason:?}");
        assert_eq!(node.snapshot(at(0)).drops.get(reason), before + 1, "{reason:?}");
    }
}

#[test]
fn under_a_flood_an_answer_is_a_cookie_never_longer_than_the_question_and_an_honest_client_gets_in() {
    let (mut node, mut stranger) = (core(), client([9; 32]));
    let flood = initiation(&mut stranger);
    let mut cookies = 0;
    for n in 0..1000u32 {
        let from = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 7));
        let out = give(&mut node, at(1), from, &flood);
        for transmit in out.transmits() {
            assert!(transmit.range.len() <= HANDSHAKE_MAX && transmit.to == from);
            cookies += 1;
        }
    }
    assert!(
        (700..=800).contains(&cookies),
        "250 a second are looked at, the others are asked to come again: {cookies}"
    );
    let mut tunn = client(CLIENT);
    let out = give(&mut node, at(2), somewhere(), &initiation(&mut tunn));
    assert_eq!(out.bytes().len(), 64, "a cookie");
    let mut dst = [0; 256];
    assert!(matches!(tunn.decapsulate(Some([192, 0, 2, 1].into()), out.bytes(), &mut dst), TunnResult::Done));
    let out = give(&mut node, at(3), somewhere(), &initiation(&mut tunn));
    assert_eq!(out.bytes().len(), 92, "a response");
}

#[test]
fn a_time_stamp_that_went_back_is_accepted_again_within_a_second_and_costs_the_live_session_nothing() {
    let (mut node, mut tunn) = (core(), client(CLIENT));
    let older = initiation(&mut client(CLIENT));
    let newer = initiation(&mut tunn);
    let out = give(&mut node, at(0), somewhere(), &newer);
    let confirmation = take(&mut tunn, out.bytes());
    give(&mut node, at(10), somewhere(), &confirmation);
    let endpoint = node.snapshot(at(10)).peers[0].paths[0].endpoint;
    assert_eq!(endpoint, Some(somewhere()));
    // Somebody plays an old initiation again, from elsewhere, and another one with an older stamp still.
    let elsewhere = SocketAddr::from(([10, 9, 8, 7], 6));
    assert_eq!(give(&mut node, at(2000), elsewhere, &newer).bytes().len(), 92, "answered, as WireGuard does");
    assert!(give(&mut node, at(2100), elsewhere, &older).is_empty(), "at most one candidate a second");
    assert_eq!(give(&mut node, at(3100), elsewhere, &older).bytes().len(), 92);
    assert_eq!(node.snapshot(at(3100)).peers[0].paths[0].endpoint, endpoint, "no endpoint moved");
    let mut down = packet([8, 8, 8, 8], [198, 51, 100, 9]);
    let mut out = Output::new(0);
    node.handle_ip(at(3200), Duration::ZERO, [&mut down[..]], &mut out);
    assert_eq!(out.transmits()[0].to, somewhere());
    assert_eq!(take(&mut tunn, out.bytes()), down, "on the session that was confirmed");
}

#[test]
fn an_old_initiation_played_at_the_wrong_moment_does_not_break_a_handshake() {
    let (mut node, mut tunn) = (core(), client(CLIENT));
    let older = [initiation(&mut client(CLIENT)), initiation(&mut client(CLIENT))];
    let elsewhere = SocketAddr::from(([10, 9, 8, 7], 6));
    // A candidate that is old enough to be replaced, the honest handshake, and a stale one before it is confirmed.
    give(&mut node, at(0), elsewhere, &older[1]);
    let out = give(&mut node, at(2000), somewhere(), &initiation(&mut tunn));
    let confirmation = take(&mut tunn, out.bytes());
    assert!(give(&mut node, at(2010), elsewhere, &older[0]).is_empty());
    give(&mut node, at(2020), somewhere(), &confirmation);
    assert_eq!(node.snapshot(at(2020)).peers[0].paths[0].state, PathState::Up);
}

#[test]
fn many_unconfirmed_handshakes_do_not_replace_the_live_session() {
    let (mut node, mut tunn) = (core(), client(CLIENT));
    let out = give(&mut node, at(0), somewhere(), &initiation(&mut tunn));
    let confirmation = take(&mut tunn, out.bytes());
    give(&mut node, at(10), somewhere(), &confirmation);
    // Their answers are lost: boringtun alone would have put the ninth in the place of the session in use.
    for n in 0..40 {
        give(&mut node, at(100 + n), somewhere(), &initiation(&mut tunn));
    }
    let up = packet([198, 51, 100, 9], [8, 8, 8, 8]);
    let mut out = give(&mut node, at(200), somewhere(), &seal(&mut tunn, &up));
    assert_eq!(delivered(&mut out), [up]);
    let mut down = packet([8, 8, 8, 8], [198, 51, 100, 9]);
    let mut out = Output::new(0);
    node.handle_ip(at(300), Duration::ZERO, [&mut down[..]], &mut out);
    assert_eq!(take(&mut tunn, out.bytes()), down);
}

#[test]
fn packets_are_delivered_to_the_tun_of_their_site_also_when_that_changes() {
    let (mut node, mut tunn) = (core(), client(CLIENT));
    let out = give(&mut node, at(0), somewhere(), &initiation(&mut tunn));
    let confirmation = take(&mut tunn, out.bytes());
    give(&mut node, at(10), somewhere(), &confirmation);
    let up = packet([198, 51, 100, 9], [8, 8, 8, 8]);
    for (time, egress) in [(20, 0), (30, 3), (40, 1)] {
        node.set_peers(at(time), vec![site(egress)]).expect("a sound site");
        let mut out = give(&mut node, at(time), somewhere(), &seal(&mut tunn, &up));
        let places: Vec<usize> = out.deliveries().map(|packets| packets.len()).collect();
        let expected: Vec<usize> = (0..=egress).map(|place| usize::from(place == egress)).collect();
        assert_eq!(places, expected);
        out.clear();
        assert!(out.is_empty());
    }
}

#[test]
fn a_core_never_initiates() {
    let (mut node, mut tunn) = (core(), client(CLIENT));
    let out = give(&mut node, at(0), somewhere(), &initiation(&mut tunn));
    let confirmation = take(&mut tunn, out.bytes());
    give(&mut node, at(10), somewhere(), &confirmation);
    for second in 1..60 {
        let mut out = Output::new(0);
        let mut down = packet([8, 8, 8, 8], [198, 51, 100, 9]);
        node.handle_ip(at(second * 1000), Duration::ZERO, [&mut down[..]], &mut out);
        node.handle_timeout(at(second * 1000), &mut out);
        assert!(out.transmits().iter().all(|transmit| out.bytes()[transmit.range.start] == 4));
    }
}
