//! Over the loopback: what only a socket shows.

use super::*;
use crate::bgp::Families;
use crate::bgp::message::{self, Frame, Framer, Kind};
use crate::bgp::open::{Capabilities, Open};
use std::sync::Arc;
use tokio::net::TcpListener;

/// The other end: it listens, and does what a test wants.
struct Router {
    listener: TcpListener,
}

/// A connection that the neighbour's task made.
struct Line {
    stream: TcpStream,
    framer: Framer,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Router {
    async fn new() -> Router {
        Router { listener: TcpListener::bind("127.0.0.1:0").await.expect("a port") }
    }

    fn neighbor(&self) -> Neighbor {
        Neighbor {
            name: "router".into(),
            remote: self.listener.local_addr().expect("an address"),
            session: Config {
                local_as: 64500,
                router_id: Ipv4Addr::new(192, 0, 2, 1),
                remote_as: 64501,
                hold_time: 90,
                passive: false,
                role: None,
                strict_role: false,
                add_path: false,
                extended_next_hop: false,
            },
            socket: Options { source: None, password: None, ttl: None, least_ttl: None },
            next_hop_v4: None,
            next_hop_v6: None,
        }
    }

    async fn accept(&self) -> Line {
        let accepted = tokio::time::timeout(PATIENCE, self.listener.accept()).await;
        let (stream, _) = accepted.expect("a connection in time").expect("a connection");
        Line { stream, framer: Framer::default() }
    }

    /// A session that is established.
    async fn establish(&self) -> Line {
        let mut line = self.accept().await;
        assert_eq!(line.next().await.expect("an OPEN").kind, Kind::Open);
        let open = Open {
            asn: 64501,
            hold_time: 90,
            router_id: Ipv4Addr::new(192, 0, 2, 2),
            capabilities: Capabilities {
                four_octet_as: true,
                route_refresh: true,
                families: Families::ALL,
                ..Capabilities::default()
            },
        };
        line.write(&[open.encode(), message::keepalive()].concat()).await;
        assert_eq!(line.next().await.expect("a KEEPALIVE").kind, Kind::Keepalive);
        line
    }
}

impl Line {
    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("writing");
    }

    /// The next message; nothing if the connection ends.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.framer.next_frame().expect("well-formed messages") {
                return Some(frame);
            }
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("something in time");
            match read.expect("no reset") {
                0 => return None,
                length => self.framer.push(&buffer[..length]),
            }
        }
    }
}

/// So many prefixes from a number on.
fn prefixes(from: u32, count: u32) -> Tell {
    let prefix = |n| IpNet::new(Ipv4Addr::from(0x0a00_0000 + n * 256).into(), 24).expect("a prefix");
    Tell::Routes((from..from + count).map(|n| (prefix(n), Some(Arc::default()))).collect())
}

/// Reads UPDATEs of prefixes of /24 until the table that they build, of `size` so far, has `target` of them.
async fn grows(line: &mut Line, size: &mut usize, target: usize) {
    while *size != target {
        let frame = line.next().await.expect("an UPDATE");
        if frame.kind == Kind::Update {
            let field = |at: usize| usize::from(u16::from_be_bytes([frame.body[at], frame.body[at + 1]]));
            let withdrawn = field(0);
            let announced = frame.body.len() - 4 - withdrawn - field(2 + withdrawn);
            *size = *size + announced / 4 - withdrawn / 4;
        }
    }
}

/// A table larger than the backlog comes without waiting for a timer or another cause to wake up.
#[tokio::test]
async fn a_large_table_comes_in_one_go() {
    let router = Router::new().await;
    let handle = spawn(router.neighbor(), None, 1);
    handle.tell(prefixes(0, 60_000));
    let mut line = router.establish().await;
    let begun = tokio::time::Instant::now();
    let mut size = 0;
    grows(&mut line, &mut size, 60_000).await;
    // The first KEEPALIVE would come after 22 s at the earliest.
    assert!(begun.elapsed() < Duration::from_secs(20));
    handle.tell(prefixes(60_000, 1));
    grows(&mut line, &mut size, 60_001).await;
    assert_eq!(handle.status().await.expect("it runs").announced.len(), 60_001);
    handle.stop(Notification::shutdown("done")).await;
    let last = line.next().await.expect("a NOTIFICATION");
    assert_eq!(Notification::decode(&last.body), Notification::shutdown("done"));
    assert!(line.next().await.is_none());
}

/// Garbage, of which more follows than is read: the NOTIFICATION arrives all the same, and the next try finds a router
/// that has come to its senses.
#[tokio::test]
async fn garbage_is_answered_and_the_next_try_is_made() {
    let router = Router::new().await;
    let handle = spawn(router.neighbor(), None, 1);
    handle.tell(prefixes(0, 1));
    // An OPEN of 28 octets, of which GoBGP 3.10 dies.
    let short_open = [&[0xff; 16][..], &[0, 28, 1], &[4; 9]].concat();
    for (garbage, expected) in [
        ([short_open, vec![7; 2_000]].concat(), Notification::with_data(1, 2, &[0, 28])),
        (vec![0; 100_000], Notification::new(1, 1)),
    ] {
        let mut line = router.accept().await;
        assert_eq!(line.next().await.expect("an OPEN").kind, Kind::Open);
        line.write(&garbage).await;
        let answer = line.next().await.expect("a NOTIFICATION");
        assert_eq!((answer.kind, Notification::decode(&answer.body)), (Kind::Notification, expected));
    }
    let mut line = router.establish().await;
    grows(&mut line, &mut 0, 1).await;
    let status = handle.status().await.expect("it runs");
    assert_eq!((status.state, status.counters.established), (State::Established, 1));
    assert_eq!(status.last_error.as_deref(), Some("ended here: message header: connection not synchronised (1/1)"));
}

/// A neighbour that does not read holds up neither the others nor the end, and takes bounded memory.
#[tokio::test]
async fn a_neighbour_that_does_not_read_is_its_own_problem() {
    let (deaf, lively) = (Router::new().await, Router::new().await);
    let handles = [spawn(deaf.neighbor(), None, 1), spawn(lively.neighbor(), None, 2)];
    let _deaf = deaf.establish().await;
    let mut line = lively.establish().await;
    handles.iter().for_each(|handle| handle.tell(prefixes(0, 60_000)));
    grows(&mut line, &mut 0, 60_000).await;
    // Each time that all of them are said again is a quarter of a megabyte; the sockets hold less than twenty of them.
    for soon in [true, false].repeat(10) {
        handles.iter().for_each(|handle| handle.tell(Tell::GracefulShutdown(soon)));
        grows(&mut line, &mut 0, 60_000).await;
    }
    let [deaf, lively] = handles;
    let status = deaf.status().await.expect("it runs");
    assert_eq!(status.state, State::Established);
    let other = lively.status().await.expect("it runs");
    assert!(status.counters.messages_sent < other.counters.messages_sent, "what is not read is not made");
    for handle in [deaf, lively] {
        tokio::time::timeout(PATIENCE, handle.stop(Notification::shutdown("done"))).await.expect("an end in time");
    }
}

/// A neighbour that never pauses is told what is new all the same, and so is whoever asks for the status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_floods_keeps_nobody_waiting() {
    let router = Router::new().await;
    let handle = spawn(router.neighbor(), None, 1);
    let Line { stream, framer } = router.establish().await;
    let (mut reader, mut writer) = stream.into_split();
    let flood = tokio::spawn(async move {
        let keepalives = message::keepalive().repeat(10_000);
        while writer.write_all(&keepalives).await.is_ok() {}
    });
    let told = async {
        let mut framer = framer;
        let mut buffer = [0; 4096];
        for count in 1..=20 {
            handle.tell(prefixes(count - 1, 1));
            // One UPDATE for each, besides KEEPALIVEs.
            while framer.next_frame().expect("well-formed messages").is_none_or(|frame| frame.kind != Kind::Update) {
                let length = reader.read(&mut buffer).await.expect("no reset");
                framer.push(&buffer[..length]);
            }
            assert_eq!(handle.status().await.expect("it runs").announced.len(), count as usize);
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("twenty announcements in time");
    flood.abort();
    handle.stop(Notification::shutdown("done")).await;
}
