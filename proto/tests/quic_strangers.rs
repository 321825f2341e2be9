//! What anybody may send to a core's port for QUIC: how much is answered, and how much is kept.

use proto::tunnel::Ciphered;
use proto::{
    Datagram, DropReason, Identity, Instant, Keepalive, LinkId, Node, NodeConfig, Output, PathConfig, PathState,
    PeerConfig, PeerId, PeerKind, SecretKey, TunnelKind, Uplink,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

/// The system's allocator, which knows what this thread has.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn note(octets: isize) {
    // Not there any more while a thread ends.
    let _ = HELD.try_with(|held| held.set(held.get() + octets));
}

#[allow(unsafe_code)] // an allocator cannot be written without
// SAFETY: the calls are passed on as they are; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const CORE: [u8; 32] = [2; 32];
const SITE: [u8; 32] = [1; 32];

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn core_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 443))
}

fn peer(kind: PeerKind, paths: Vec<PathConfig>) -> PeerConfig {
    let prefix = if kind == PeerKind::Core { "0.0.0.0/0" } else { "198.51.100.0/24" };
    PeerConfig {
        id: PeerId(1),
        name: "peer".into(),
        kind,
        prefixes: vec![prefix.parse().expect("a prefix")],
        egress: 0,
        policy: Default::default(),
        open_windows: 0,
        paths,
    }
}

fn node(kind: PeerKind, local: SecretKey, remote: SecretKey, link: Option<LinkId>) -> Node {
    let path = PathConfig {
        slot: 0,
        kind: TunnelKind::Quic,
        preference: None,
        local_key: local.clone(),
        remote_key: remote.public(),
        link,
    };
    let config = NodeConfig {
        identity: Identity::default(),
        mtu: 1_380,
        local: Vec::new(),
        listen_key: (kind == PeerKind::Middlebox).then_some(local),
        peers: vec![peer(kind, vec![path])],
    };
    Node::with_suite(config, Box::<Ciphered>::default(), [7; 32], at(0)).expect("a sound configuration")
}

/// A core that knows one site.
fn core() -> Node {
    node(PeerKind::Middlebox, SecretKey::from_bytes(CORE), SecretKey::from_bytes(SITE), None)
}

/// A box with the key of this secret, which believes the core to have the other.
fn a_box(secret: [u8; 32], core: [u8; 32], now: Instant) -> Node {
    let mut node = node(PeerKind::Core, SecretKey::from_bytes(secret), SecretKey::from_bytes(core), Some(LinkId(0)));
    let (endpoints, quic_endpoints) = (Vec::new(), vec![core_address()]);
    let uplink = Uplink { endpoints, quic_endpoints, preference: 0, keepalive: Keepalive::default() };
    node.set_uplink(now, LinkId(0), Some(uplink));
    node
}

/// Hands a datagram to a node and gives what it sends.
fn give(node: &mut Node, now: Instant, from: SocketAddr, data: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut out = Output::new(0);
    let datagram = Datagram { link: LinkId(0), from, to: None, ecn: 0, waited: Duration::ZERO, data };
    node.handle_datagrams(now, [datagram], &mut out);
    taken(&out)
}

fn taken(out: &Output) -> Vec<(SocketAddr, Vec<u8>)> {
    out.transmits().iter().map(|transmit| (transmit.to, out.bytes()[transmit.range.clone()].to_vec())).collect()
}

fn wake(node: &mut Node, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut out = Output::new(0);
    if node.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
        node.handle_timeout(now, &mut out);
    }
    taken(&out)
}

/// Lets a box and a core talk, 10 ms each way, for so long.
fn talk(core: &mut Node, site: &mut Node, address: SocketAddr, begin: u64, length: u64) {
    talk_while(core, site, address, begin, length, |_, _| {});
}

/// The same, with something else that the core has to do in each millisecond.
fn talk_while(
    core: &mut Node,
    site: &mut Node,
    address: SocketAddr,
    begin: u64,
    length: u64,
    mut meanwhile: impl FnMut(&mut Node, Instant),
) {
    let mut way: Vec<(u64, bool, Vec<u8>)> = Vec::new();
    for time in begin..begin + length {
        let now = at(time);
        meanwhile(core, now);
        let arrived: Vec<_> = way.extract_if(.., |(due, ..)| *due <= time).collect();
        let mut sent = Vec::new();
        for (_, to_core, data) in arrived {
            let answers = match to_core {
                true => give(core, now, address, &data),
                false => give(site, now, core_address(), &data),
            };
            sent.extend(answers.into_iter().map(|(_, data)| (!to_core, data)));
        }
        sent.extend(wake(core, now).into_iter().filter(|(to, _)| *to == address).map(|(_, data)| (false, data)));
        sent.extend(wake(site, now).into_iter().map(|(_, data)| (true, data)));
        way.extend(sent.into_iter().map(|(to_core, data)| (time + 10, to_core, data)));
    }
}

fn state(node: &Node, now: Instant) -> Option<PathState> {
    node.snapshot(now).peers[0].paths.first().map(|path| path.state)
}

/// An Initial as anybody can make it: QUIC's keys for it are no secret (RFC 9001, section 5.2). What it says is no ClientHello.
fn forged(rng: &mut StdRng) -> Vec<u8> {
    use rustls::quic::{Keys, Version};
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("TLS 1.3's");
    let id: [u8; 8] = rng.random();
    let keys = Keys::initial(Version::V1, suite, suite.quic.expect("of use for QUIC"), &id, rustls::Side::Client);
    // Long header, Initial, a number of four octets; version 1; both connection IDs; no token; the length of what follows.
    let mut datagram = vec![0xc3, 0, 0, 0, 1, 8];
    datagram.extend(id);
    datagram.extend([8]);
    datagram.extend(rng.random::<[u8; 8]>());
    datagram.extend([0]);
    let length = 1_200 - datagram.len() - 2;
    datagram.extend((0x4000 | length as u16).to_be_bytes());
    let header = datagram.len();
    datagram.extend([0; 4]);
    let mut payload = vec![0; 1_200 - datagram.len() - 16];
    // CRYPTO at offset 0, of 200 octets.
    payload[..4].copy_from_slice(&[6, 0, 0x40, 200]);
    rng.fill(&mut payload[4..204]);
    let tag = keys.local.packet.encrypt_in_place(0, &datagram, &mut payload).expect("it fits");
    datagram.extend(payload);
    datagram.extend(tag.as_ref());
    let (first, rest) = datagram.split_at_mut(1);
    let (number, rest) = rest[header - 1..].split_at_mut(4);
    keys.local.header.encrypt_in_place(&rest[..16], &mut first[0], number).expect("a sample of 16 octets");
    datagram
}

fn somewhere(number: u32) -> SocketAddr {
    SocketAddr::from((number.to_be_bytes(), 4_242))
}

/// 100,000 Initials of as many addresses in ten seconds: hardly anything is kept, no answer is longer than what asked, and who
/// has a key gets in meanwhile.
#[test]
fn a_flood_of_forged_initials_costs_little_memory_and_keeps_nobody_out() {
    let (mut core, mut rng) = (core(), StdRng::seed_from_u64(1));
    let mut site = a_box(SITE, CORE, at(0));
    let address = SocketAddr::from(([203, 0, 113, 1], 40_000));
    talk(&mut core, &mut site, address, 0, 1_000);
    assert_eq!(state(&core, at(1_000)), Some(PathState::Up));
    let sample: Vec<Vec<u8>> = (0..1_000).map(|_| forged(&mut rng)).collect();
    let (before, mut most) = (HELD.get(), 0);
    let mut retries = 0;
    for number in 0..100_000_u32 {
        let now = at(1_000 + u64::from(number) / 10);
        let mut datagram = sample[(number % 1_000) as usize].clone();
        if number >= 1_000 {
            datagram = forged(&mut rng);
        }
        let from = somewhere(0x0a00_0000 + number);
        let mut octets = 0;
        for (to, answer) in give(&mut core, now, from, &datagram) {
            assert_eq!(to, from);
            octets += answer.len();
            retries += u32::from(answer[0] & 0xf0 == 0xf0);
        }
        assert!(octets <= datagram.len(), "{octets} octets for {}", datagram.len());
        wake(&mut core, now);
        most = most.max(HELD.get() - before);
    }
    // What is no ClientHello ends at once; half of what may be begun in a second is left for addresses that are validated.
    assert!(most < 256 << 10, "{most} octets");
    assert!(retries > 98_000, "{retries}");
    // What was begun ends, and nothing is left.
    for second in 11..30 {
        wake(&mut core, at(second * 1_000));
    }
    assert!(HELD.get() - before < 1 << 20, "{} octets left", HELD.get() - before);
    // Under the flood another box with the same key begins anew, and is there within two seconds.
    let mut again = a_box(SITE, CORE, at(30_000));
    let address = SocketAddr::from(([203, 0, 113, 2], 40_001));
    talk_while(&mut core, &mut again, address, 30_000, 2_000, |core, now| {
        for _ in 0..10 {
            give(core, now, somewhere(rng.random()), &forged(&mut rng));
        }
    });
    assert_eq!(state(&again, at(32_000)), Some(PathState::Up));
}

/// What begins as an honest handshake does, from addresses that never answer.
#[test]
fn handshakes_that_nobody_goes_on_with_are_few_and_end() {
    let mut core = core();
    let initials: Vec<Vec<u8>> = (0..1_000_u32)
        .map(|number| {
            let mut secret = [9; 32];
            secret[..4].copy_from_slice(&number.to_be_bytes());
            let mut stranger = a_box(secret, CORE, at(0));
            wake(&mut stranger, at(0)).remove(0).1
        })
        .collect();
    let (before, mut most, mut begun) = (HELD.get(), 0, 0);
    for (number, initial) in (0..).zip(&initials) {
        let now = at(u64::from(number));
        for (_, answer) in give(&mut core, now, somewhere(number), initial) {
            assert!(answer.len() <= initial.len());
            begun += u32::from(answer[0] & 0xf0 == 0xc0);
        }
        most = most.max(HELD.get() - before);
    }
    assert_eq!(begun, 16, "the others are asked to come again");
    assert!(most < 16 * 64 * 1024, "{most} octets");
    // RFC 9000, section 8.1: three times what came, over all their lives.
    let mut said = 0;
    for time in 1_000..10_000 {
        said += wake(&mut core, at(time)).iter().map(|(_, answer)| answer.len()).sum::<usize>();
    }
    assert!(said <= 16 * 2 * 1_200, "{said} octets");
    // What datagrams are copied to, and tables that have grown.
    assert!(HELD.get() - before < 128 * 1024, "{} octets are left", HELD.get() - before);
}

#[test]
fn a_key_that_nobody_has_is_refused_and_counted_and_so_is_a_core_that_is_another() {
    let (mut core, address) = (core(), SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let mut stranger = a_box([9; 32], CORE, at(0));
    talk(&mut core, &mut stranger, address, 0, 3_000);
    assert_ne!(state(&stranger, at(3_000)), Some(PathState::Up));
    let counted = core.snapshot(at(3_000)).drops.get(DropReason::HandshakeUnknownKey);
    assert!((1..=20).contains(&counted), "{counted}");
    // The other way round: a box that expects another core gives up on this one before it has said who it is.
    let mut astray = a_box(SITE, [8; 32], at(3_000));
    talk(&mut core, &mut astray, address, 3_000, 3_000);
    assert_ne!(state(&astray, at(6_000)), Some(PathState::Up));
    assert_eq!(core.snapshot(at(6_000)).drops.get(DropReason::HandshakeUnknownKey), counted);
    let mut right = a_box(SITE, CORE, at(6_000));
    talk(&mut core, &mut right, address, 6_000, 1_000);
    assert_eq!(state(&right, at(7_000)), Some(PathState::Up));
}

#[test]
fn no_answer_is_longer_than_what_asked() {
    let (mut core, mut rng) = (core(), StdRng::seed_from_u64(3));
    for number in 0..50_000_u32 {
        let mut datagram = match number % 5 {
            // Any version, any length.
            0 => (0..rng.random_range(1..1_500)).map(|_| rng.random()).collect(),
            1 => {
                let mut datagram = forged(&mut rng);
                datagram[1..5].copy_from_slice(&rng.random::<[u8; 4]>());
                datagram
            }
            2 => {
                let mut datagram = forged(&mut rng);
                datagram.truncate(rng.random_range(0..1_200));
                datagram
            }
            // Short headers.
            3 => (0..rng.random_range(21..1_500)).map(|_| rng.random()).collect(),
            _ => forged(&mut rng),
        };
        if let Some(first) = datagram.first_mut() {
            *first |= 0x40;
            if number % 5 == 3 {
                *first &= 0x7f;
            }
        }
        let answers = give(&mut core, at(u64::from(number)), somewhere(number), &datagram);
        assert_eq!(number % 5 == 4, !answers.is_empty(), "an Initial of our version is answered, and nothing else");
        let octets: usize = answers.iter().map(|(_, answer)| answer.len()).sum();
        assert!(octets <= datagram.len(), "{octets} octets for {}", datagram.len());
    }
}

#[test]
fn what_is_not_the_peers_is_no_way_to_it() {
    let (mut core, mut site) = (core(), a_box(SITE, CORE, at(0)));
    let address = SocketAddr::from(([203, 0, 113, 9], 40_000));
    talk(&mut core, &mut site, address, 0, 1_000);
    // What the box asks next, seen on its way, and wrong in one octet: anybody can send that, with the box's address and to another
    // port of the core.
    let asked = (1_000..60_000).find_map(|ms| wake(&mut site, at(ms)).pop());
    let (_, mut seen) = asked.expect("it asks an idle path now and then");
    if let Some(last) = seen.last_mut() {
        *last ^= 1;
    }
    let stray = Datagram { link: LinkId(1), from: address, to: None, ecn: 0, waited: Duration::ZERO, data: &seen };
    core.handle_datagrams(at(1_002), [stray], &mut Output::new(0));
    let snapshot = core.snapshot(at(1_002));
    let counted = [&snapshot.drops, &snapshot.peers[0].drops].map(|drops| drops.get(DropReason::DataInvalid));
    assert_eq!(counted.iter().sum::<u64>(), 1);
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&40_u16.to_be_bytes());
    packet[12..16].copy_from_slice(&[203, 0, 113, 200]);
    packet[16..20].copy_from_slice(&[198, 51, 100, 10]);
    let mut out = Output::new(0);
    core.handle_ip(at(1_003), Duration::ZERO, [&mut packet[..]], &mut out);
    let ways: Vec<_> = out.transmits().iter().map(|transmit| (transmit.link, transmit.to)).collect();
    assert!(!ways.is_empty() && ways.iter().all(|way| *way == (LinkId(0), address)), "{ways:?}");
}
