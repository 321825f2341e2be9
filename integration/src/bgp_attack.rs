//! A BGP speaker that sends what it must not, and sees whether the core does what the RFCs say: octet for octet, against
//! the running daemon. It is a configured neighbour; what it breaks must stay its own.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Our AS number and identifier, as the scenario tells the core.
const ASN: u16 = 64666;
const ROUTER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
/// The core's name for us.
const NAME: &str = "attacker";
/// How long the core may hold us off for what we did, and take for an answer: its waits grow to 15 s.
const PATIENCE: Duration = Duration::from_secs(40);
/// What the core has not done by then it does not do.
const QUIET: Duration = Duration::from_secs(1);
/// How often something is looked at that cannot be waited for.
const POLL: Duration = Duration::from_millis(100);
/// How often the core is asked for a new session, while it holds us off.
const RETRY: Duration = Duration::from_secs(1);
/// Connections of who is no neighbour.
const STRANGERS: u64 = 1000;

/// Who is attacked, and from where.
#[derive(Debug)]
pub struct Attack {
    /// The core's BGP socket.
    pub core: SocketAddr,
    /// The core's control socket.
    pub control: PathBuf,
    /// An address of ours that is no neighbour's.
    pub stranger: IpAddr,
}

/// What the core has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// End the session with this NOTIFICATION.
    End(u8, u8),
    /// Treat the UPDATE's routes as withdrawn (RFC 7606).
    Withdraw,
    /// Leave the attribute out.
    Discard,
    /// Take it as it is.
    Nothing,
}
use Expected::{Discard, End, Nothing, Withdraw};

/// When it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// In place of our OPEN.
    First,
    /// In an established session.
    Established,
}

/// What the core says of itself, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
struct Status {
    bgp: Bgp,
}

#[derive(Clone, Debug, Deserialize)]
struct Bgp {
    strangers: u64,
    neighbors: Vec<Neighbor>,
}

#[derive(Clone, Debug, Deserialize)]
struct Neighbor {
    name: String,
    state: String,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct Counters {
    treated_as_withdraw: u64,
    attributes_discarded: u64,
    established: u64,
}

impl Attack {
    /// Tries everything. An error is the first thing that went wrong.
    pub fn run(&self) -> Result<()> {
        let others = self.others()?;
        for (name, when, bytes, expected) in cases() {
            self.one(when, &bytes, expected).with_context(|| format!("{name}, which is to be {expected:?}"))?;
            println!("{name}: {expected:?}");
        }
        self.deaf().context("a neighbour that asks and does not read")?;
        self.strangers().context("connections of who is no neighbour")?;
        ensure!(
            self.others()? == others,
            "other neighbours' sessions were harmed: {others:?} became {:?}",
            self.others()?
        );
        println!("all is well");
        Ok(())
    }

    /// How often each other neighbour's session was established: each must be, and stay so.
    fn others(&self) -> Result<Vec<(String, u64)>> {
        let others = self.status()?.bgp.neighbors.into_iter().filter(|neighbor| neighbor.name != NAME);
        others
            .map(|neighbor| {
                ensure!(neighbor.state == "established", "the session with {} is {}", neighbor.name, neighbor.state);
                Ok((neighbor.name, neighbor.counters.established))
            })
            .collect()
    }

    fn status(&self) -> Result<Status> {
        let mut socket = UnixStream::connect(&self.control)
            .with_context(|| format!("the core does not answer at {}", Path::new(&self.control).display()))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(b"status\n")?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        serde_json::from_slice(&answer).context("the core's status has another form")
    }

    fn own(&self) -> Result<Counters> {
        let status = self.status()?;
        let own = status.bgp.neighbors.into_iter().find(|neighbor| neighbor.name == NAME);
        Ok(own.context("we are no neighbour of the core")?.counters)
    }

    fn one(&self, when: When, bytes: &[u8], expected: Expected) -> Result<()> {
        let mut line = self.connect()?;
        if when == When::Established {
            line.establish()?;
        }
        let before = self.own()?;
        line.stream.write_all(bytes)?;
        match (expected, line.end(if matches!(expected, End(..)) { PATIENCE } else { QUIET })?) {
            (End(code, subcode), Some(got)) if got == (code, subcode) => return Ok(()),
            (End(..), got) => bail!("the session ended with {got:?}"),
            (_, Some(got)) => bail!("it ended the session with {got:?}"),
            (_, None) => {}
        }
        let after = self.own()?;
        let more = Counters {
            treated_as_withdraw: after.treated_as_withdraw - before.treated_as_withdraw,
            attributes_discarded: after.attributes_discarded - before.attributes_discarded,
            established: after.established - before.established,
        };
        let wanted = match expected {
            Withdraw => Counters { treated_as_withdraw: 1, ..more },
            Discard => Counters { treated_as_withdraw: 0, attributes_discarded: 1, established: 0 },
            _ => Counters::default(),
        };
        ensure!(more == wanted, "the core counted {more:?}");
        Ok(())
    }

    /// Asks for everything again and again, and reads nothing: the core goes on answering others, and its status.
    fn deaf(&self) -> Result<()> {
        let mut line = self.connect()?;
        line.establish()?;
        line.stream.set_nonblocking(true)?;
        let request = message(5, &[0, 1, 0, 1]);
        let (length, requests) = (request.len(), request.repeat(1000));
        let (mut sent, mut full) = (0, false);
        // Until the core reads no more, or 2 MB went in: 87,000 requests, each of which it takes and logs. Ten times as many take
        // a guest nine minutes.
        while sent < 2_000_000 {
            // What went in last may have ended in the midst of one.
            match line.stream.write(&requests[sent % length..]) {
                Ok(more) => (sent, full) = (sent + more, false),
                Err(error) if error.kind() == ErrorKind::WouldBlock && full => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(POLL);
                    full = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.others().map(drop)
    }

    fn strangers(&self) -> Result<()> {
        let before = self.status()?.bgp.strangers;
        let mut lines = Vec::new();
        for _ in 0..STRANGERS {
            let socket = Socket::new(Domain::for_address(self.core), Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::new(self.stranger, 0).into())?;
            match socket.connect_timeout(&self.core.into(), PATIENCE) {
                Ok(()) => lines.push(TcpStream::from(socket)),
                // Closed before we saw that it was open.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error.into()),
            }
        }
        for line in &mut lines {
            line.set_read_timeout(Some(PATIENCE))?;
            let read = line.read(&mut [0; 64]);
            let closed =
                matches!(&read, Ok(0)) || matches!(&read, Err(error) if error.kind() == ErrorKind::ConnectionReset);
            ensure!(closed, "the core spoke to a stranger: {read:?}");
        }
        let closed = self.status()?.bgp.strangers - before;
        ensure!(closed == STRANGERS, "{closed} of {STRANGERS} were counted");
        // And we, who are one, get through.
        self.connect()?.establish()
    }

    /// A connection on which the core has said its OPEN. For a while after what we did it takes none.
    fn connect(&self) -> Result<Line> {
        let begun = Instant::now();
        loop {
            let stream = TcpStream::connect(self.core).context("cannot connect to the core")?;
            SockRef::from(&stream).set_tcp_nodelay(true)?;
            let mut line = Line { stream };
            match line.next(PATIENCE) {
                Ok(Some((1, _))) => return Ok(line),
                Ok(other) if begun.elapsed() > PATIENCE => bail!("no OPEN but {other:?}"),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error).context("no OPEN"),
                _ => std::thread::sleep(RETRY),
            }
        }
    }
}

/// A connection with the core.
struct Line {
    stream: TcpStream,
}

impl Line {
    /// The next message: its type and body. Nothing if the core has ended the connection, an error if nothing comes.
    fn next(&mut self, patience: Duration) -> Result<Option<(u8, Vec<u8>)>> {
        self.stream.set_read_timeout(Some(patience))?;
        let mut header = [0; 19];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("nothing comes from the core"),
        }
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length.checked_sub(19).context("the core sent a wrong length")?];
        self.stream.read_exact(&mut body)?;
        Ok(Some((header[18], body)))
    }

    fn establish(&mut self) -> Result<()> {
        self.stream.write_all(&[open(|_| {}), message(4, &[])].concat())?;
        loop {
            match self.next(PATIENCE)?.context("the core ended the session")? {
                (3, body) => bail!("the core refused the session: {:?}", &body[..2]),
                // The first UPDATE shows that it is established there, too.
                (2, _) => return Ok(()),
                _ => {}
            }
        }
    }

    /// The NOTIFICATION with which the core ends the session within this time, if it does.
    fn end(&mut self, within: Duration) -> Result<Option<(u8, u8)>> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
            match self.next(left) {
                Ok(Some((3, body))) => return Ok(Some((body[0], body[1]))),
                Ok(Some(_)) if Instant::now() >= deadline => return Ok(None),
                Ok(Some(_)) => {}
                Ok(None) => bail!("the connection ended without a word"),
                Err(_) if Instant::now() >= deadline => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// A message with a good header.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    raw(19 + body.len() as u16, kind, body)
}

fn raw(length: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// An OPEN with four-octet AS numbers, of both families, with one thing changed in its body.
fn open(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let capabilities = [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 0];
    let mut body = vec![4];
    body.extend_from_slice(&ASN.to_be_bytes());
    body.extend_from_slice(&[0, 90]);
    body.extend_from_slice(&ROUTER_ID.octets());
    body.extend_from_slice(&[22, 2, 20]);
    body.extend_from_slice(&capabilities);
    body.extend_from_slice(&ASN.to_be_bytes());
    change(&mut body);
    message(1, &body)
}

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfc, 0x9a];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 203, 0, 114, 3];
/// 192.0.2.0/24.
const PREFIX: &[u8] = &[24, 192, 0, 2];

fn update(withdrawn: &[u8], attributes: &[&[u8]], announced: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let (first, second) = ((withdrawn.len() as u16).to_be_bytes(), (attributes.len() as u16).to_be_bytes());
    message(2, &[&first[..], withdrawn, &second, &attributes, announced].concat())
}

/// One route with good attributes, and this one besides.
fn with(extra: &[u8]) -> Vec<u8> {
    update(&[], &[ORIGIN, AS_PATH, NEXT_HOP, extra], PREFIX)
}

/// One route with these attributes.
fn of(attributes: &[&[u8]]) -> Vec<u8> {
    update(&[], attributes, PREFIX)
}

/// MP_REACH_NLRI of IPv6 with this next hop and these prefixes.
fn reach(next_hop: &[u8], prefixes: &[u8]) -> Vec<u8> {
    let value = [&[0, 2, 1, next_hop.len() as u8][..], next_hop, &[0], prefixes].concat();
    update(&[], &[&[&[0x80, 14, value.len() as u8][..], &value].concat(), ORIGIN, AS_PATH], &[])
}

/// What is sent, and what has to come of it: RFC 4271, section 6, RFC 7606, and what bgpkit-parser would let pass.
fn cases() -> Vec<(&'static str, When, Vec<u8>, Expected)> {
    use When::{Established, First};
    let mut bad_marker = message(4, &[]);
    bad_marker[7] = 0;
    let unreach: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    let address: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    vec![
        ("a wrong marker", Established, bad_marker, End(1, 1)),
        ("a message of 18 octets", Established, raw(18, 4, &[]), End(1, 2)),
        ("a message of 4097 octets", Established, raw(4097, 2, &[]), End(1, 2)),
        ("a KEEPALIVE of 25 octets", Established, message(4, &[0; 6]), End(1, 2)),
        ("an UPDATE of 22 octets", Established, raw(22, 2, &[0; 3]), End(1, 2)),
        ("an unknown type", Established, message(9, &[]), End(1, 3)),
        ("an OPEN of 28 octets", First, raw(28, 1, &[0; 9]), End(1, 2)),
        ("an OPEN of 19 octets", First, raw(19, 1, &[]), End(1, 2)),
        ("version 3", First, open(|body| body[0] = 3), End(2, 1)),
        ("another AS", First, open(|body| *body.last_mut().expect("it is not empty") = 1), End(2, 2)),
        ("identifier 0.0.0.0", First, open(|body| body[5..9].fill(0)), End(2, 3)),
        ("parameters that do not add up", First, open(|body| body[9] = 23), End(2, 0)),
        ("a capability beyond its parameter", First, open(|body| body[13] = 40), End(2, 0)),
        ("a hold time of 1 s", First, open(|body| body[4] = 1), End(2, 6)),
        ("an UPDATE before the OPEN", First, update(&[], &[], &[]), End(5, 1)),
        ("a second OPEN", Established, open(|_| {}), End(5, 3)),
        ("withdrawn routes beyond the message", Established, message(2, &[0, 5, 0, 0]), End(3, 1)),
        ("attributes beyond the message", Established, message(2, &[0, 0, 0, 9, 0]), End(3, 1)),
        ("a withdrawn prefix of 33 bits", Established, update(&[33, 1, 2, 3, 4, 5], &[], &[]), End(3, 10)),
        (
            "a prefix of 33 bits",
            Established,
            update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[33, 1, 2, 3, 4, 5]),
            End(3, 10),
        ),
        ("a prefix cut off", Established, update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[24, 1]), End(3, 10)),
        ("an IPv6 next hop of 5 octets", Established, reach(&[1; 5], &[]), End(3, 9)),
        (
            "an IPv6 prefix of 129 bits",
            Established,
            reach(&address, &[129, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8]),
            End(3, 9),
        ),
        ("an IPv6 prefix cut off", Established, reach(&address, &[64, 1]), End(3, 9)),
        ("MP_UNREACH_NLRI cut off", Established, update(&[], &[&[0x80, 15, 2, 0, 2]], &[]), End(3, 9)),
        ("MP_UNREACH_NLRI twice", Established, update(&[], &[unreach, unreach], &[]), End(3, 1)),
        ("an unknown well-known attribute", Established, with(&[0x40, 99, 1, 0]), End(3, 2)),
        ("a wrong attribute and no routes", Established, update(&[], &[&[0x40, 1, 1, 3]], &[]), End(3, 1)),
        ("ORIGIN of two octets", Established, of(&[&[0x40, 1, 2, 0, 0], AS_PATH, NEXT_HOP]), Withdraw),
        ("ORIGIN 3", Established, of(&[&[0x40, 1, 1, 3], AS_PATH, NEXT_HOP]), Withdraw),
        ("ORIGIN with wrong flags", Established, of(&[&[0xc0, 1, 1, 0], AS_PATH, NEXT_HOP]), Withdraw),
        (
            "an AS_PATH segment of type 5",
            Established,
            of(&[ORIGIN, &[0x40, 2, 6, 5, 1, 0, 0, 0, 1], NEXT_HOP]),
            Withdraw,
        ),
        ("an AS_PATH segment cut off", Established, of(&[ORIGIN, &[0x40, 2, 6, 2, 2, 0, 0, 0, 1], NEXT_HOP]), Withdraw),
        ("an AS_PATH segment of none", Established, of(&[ORIGIN, &[0x40, 2, 2, 2, 0], NEXT_HOP]), Withdraw),
        ("an octet after AS_PATH", Established, of(&[ORIGIN, &[0x40, 2, 7, 2, 1, 0, 0, 0, 1, 2], NEXT_HOP]), Withdraw),
        ("AS 0", Established, of(&[ORIGIN, &[0x40, 2, 6, 2, 1, 0, 0, 0, 0], NEXT_HOP]), Withdraw),
        ("AS_CONFED_SEQUENCE", Established, of(&[ORIGIN, &[0x40, 2, 6, 3, 1, 0, 0, 0, 1], NEXT_HOP]), Withdraw),
        ("NEXT_HOP of five octets", Established, of(&[ORIGIN, AS_PATH, &[0x40, 3, 5, 1, 2, 3, 4, 5]]), Withdraw),
        ("NEXT_HOP 224.0.0.1", Established, of(&[ORIGIN, AS_PATH, &[0x40, 3, 4, 224, 0, 0, 1]]), Withdraw),
        ("MULTI_EXIT_DISC of three octets", Established, with(&[0x80, 4, 3, 0, 0, 1]), Withdraw),
        ("COMMUNITIES of three octets", Established, with(&[0xc0, 8, 3, 0, 0, 1]), Withdraw),
        ("COMMUNITIES of none", Established, with(&[0xc0, 8, 0]), Withdraw),
        ("EXTENDED COMMUNITIES of four octets", Established, with(&[0xc0, 16, 4, 0, 0, 0, 1]), Withdraw),
        ("LARGE_COMMUNITY of four octets", Established, with(&[0xc0, 32, 4, 0, 0, 0, 1]), Withdraw),
        ("ONLY_TO_CUSTOMER of three octets", Established, with(&[0xc0, 35, 3, 0, 0, 1]), Withdraw),
        ("no ORIGIN", Established, of(&[AS_PATH, NEXT_HOP]), Withdraw),
        ("no AS_PATH", Established, of(&[ORIGIN, NEXT_HOP]), Withdraw),
        ("no NEXT_HOP", Established, of(&[ORIGIN, AS_PATH]), Withdraw),
        ("an attribute beyond the attributes", Established, with(&[0xc0, 8, 8, 0, 0, 0, 1]), Withdraw),
        ("two octets after the attributes", Established, with(&[0xc0, 8]), Withdraw),
        ("LOCAL_PREF from outside", Established, with(&[0x40, 5, 4, 0, 0, 0, 1]), Discard),
        ("ORIGINATOR_ID from outside", Established, with(&[0x80, 9, 1, 0]), Discard),
        ("CLUSTER_LIST from outside", Established, with(&[0x80, 10, 1, 0]), Discard),
        ("ATOMIC_AGGREGATE with content", Established, with(&[0x40, 6, 1, 0]), Discard),
        ("AGGREGATOR of six octets", Established, with(&[0xc0, 7, 6, 0, 1, 1, 2, 3, 4]), Discard),
        ("AS4_PATH from a speaker of four octets", Established, with(&[0xc0, 17, 6, 2, 1, 0, 0, 0, 1]), Discard),
        ("a second ORIGIN", Established, with(ORIGIN), Discard),
        ("an unknown transitive attribute", Established, with(&[0xe0, 99, 2, 1, 2]), Nothing),
        ("an unknown optional attribute", Established, with(&[0x80, 99, 2, 1, 2]), Nothing),
        (
            "a family that was not agreed on",
            Established,
            update(&[], &[&[0x80, 14, 9, 0, 25, 70, 4, 1, 2, 3, 4, 0]], &[]),
            Nothing,
        ),
        ("a refresh of a family that was not agreed on", Established, message(5, &[0, 25, 0, 70]), Nothing),
        (
            "0.0.0.0/0 and 10.0.0.0/24",
            Established,
            update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[0, 24, 10, 0, 0]),
            Nothing,
        ),
    ]
}
