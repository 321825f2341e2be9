//! Attackers, and the watch that looks for what they got through. All are bounded in count and rate.

use super::clock::{Clock, Nanos, millis};
use super::initial::forgery;
use super::packet::{payload_to, replayable, spoofed};
use super::payload::{draw, marks, pattern};
use super::result::Seen;
use super::{AttackResult, EndResult, Garbage, Replay, Spoof, Watch, WatchResult};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, sockopt,
};
use rustix::event::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

/// Attackers send what has come due this often: at 20,000 packets per second, 20 at a time.
const TICK: Nanos = 1_000_000;

/// Datagrams recorded at most: some 64 MB of full ones, and more than a minute of a scenario's tunnel.
const MOST_RECORDED: usize = 65_536;

/// The largest packet recorded. What is longer is several datagrams in one, as segmentation offload leaves them.
const MOST_OCTETS: usize = 1_500;

/// Received by this host from itself (Linux's PACKET_OUTGOING).
const OUTGOING: u8 = libc::PACKET_OUTGOING;

/// Calls `send` for each number of `count` when its time has come, every [`TICK`] for all then due; `tick` between.
/// Returns when the last was sent.
fn paced(
    clock: Clock,
    (start, count, rate): (Nanos, u64, f64),
    mut send: impl FnMut(u64),
    mut tick: impl FnMut() -> io::Result<()>,
) -> io::Result<Nanos> {
    let mut sent = 0;
    let mut at = start;
    while sent < count {
        clock.sleep_until(at);
        let due = ((at - start) as f64 * rate / 1e9) as u64 + 1;
        while sent < due.min(count) {
            send(sent);
            sent += 1;
        }
        tick()?;
        at += TICK;
    }
    Ok(clock.now())
}

/// Sockets that send whole IP packets, of both families.
struct RawSender {
    v4: Socket,
    v6: Socket,
    sent: u64,
    refused: u64,
}

impl RawSender {
    fn new() -> io::Result<Self> {
        let raw = Some(Protocol::from(libc::IPPROTO_RAW));
        let (v4, v6) = (Socket::new(Domain::IPV4, Type::RAW, raw)?, Socket::new(Domain::IPV6, Type::RAW, raw)?);
        v4.set_header_included_v4(true)?;
        v6.set_header_included_v6(true)?;
        Ok(RawSender { v4, v6, sent: 0, refused: 0 })
    }

    fn send(&mut self, packet: &[u8], to: IpAddr) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        match socket.send_to(packet, &SocketAddr::new(to, 0).into()) {
            Ok(_) => self.sent += 1,
            Err(_) => self.refused += 1,
        }
    }

    fn result(self, name: &str, from: &str) -> AttackResult {
        AttackResult {
            name: name.to_owned(),
            from: from.to_owned(),
            sent: self.sent,
            refused: self.refused,
            ..AttackResult::default()
        }
    }
}

/// Sends packets with sources that are not its own.
pub(crate) struct Spoofer {
    id: u32,
    spoof: Spoof,
    raw: RawSender,
}

impl Spoofer {
    pub(crate) fn new(id: u32, spoof: Spoof) -> io::Result<Self> {
        Ok(Spoofer { id, spoof, raw: RawSender::new()? })
    }

    pub(crate) fn run(mut self, clock: Clock) -> io::Result<EndResult> {
        let Spoof { start, count, rate, to_address, .. } = self.spoof;
        let start = nanos(start);
        let send = |number| {
            for packet in spoofed(self.id, &self.spoof, number, clock.now()) {
                self.raw.send(&packet, to_address);
            }
        };
        let stop = paced(clock, (start, count, rate), send, || Ok(()))?;
        let result = self.raw.result(&self.spoof.name, &self.spoof.from);
        Ok(EndResult::Attack(AttackResult { id: self.id, start_ms: millis(start), stop_ms: millis(stop), ..result }))
    }
}

/// Sends garbage to a port, and counts what comes back.
pub(crate) struct Vandal {
    garbage: Garbage,
    seed: u64,
    socket: UdpSocket,
    back: Back,
}

/// What has come back.
#[derive(Default)]
struct Back {
    replies: u64,
    octets: u64,
    longest: u64,
    icmp: u64,
}

impl Vandal {
    pub(crate) fn new(garbage: Garbage, seed: u64) -> io::Result<Self> {
        let any: SocketAddr =
            if garbage.to_address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        // Not connected: an answer from another address than the one asked is an answer too.
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        // ICMP errors are queued apart, so that they can be told from answers.
        if any.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        Ok(Vandal { garbage, seed, socket, back: Back::default() })
    }

    /// Sends, and listens until `end`.
    pub(crate) fn run(self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        let Vandal { garbage, seed, socket, mut back } = self;
        let to = SocketAddr::new(garbage.to_address, garbage.port);
        let start = nanos(garbage.start);
        let (mut sent, mut refused, mut sent_octets) = (0, 0, 0);
        let mut datagram = Vec::new();
        let send = |number| {
            let make = if garbage.quic { forgery } else { trash };
            make(seed, number, garbage.max_size, &mut datagram);
            // The first call after an ICMP error reports that error in place of its own; the second one counts.
            match socket.send_to(&datagram, to).or_else(|_| socket.send_to(&datagram, to)) {
                Ok(octets) => (sent, sent_octets) = (sent + 1, sent_octets + octets as u64),
                Err(_) => refused += 1,
            }
        };
        let stop = paced(clock, (start, garbage.count, garbage.rate), send, || {
            listen(&socket, &mut back);
            Ok(())
        })?;
        // What waits in the queue of errors makes the socket ready all the time: it is emptied in the same turn.
        while clock.wait(&socket, PollFlags::IN, end)? {
            listen(&socket, &mut back);
        }
        Ok(EndResult::Attack(AttackResult {
            name: garbage.name,
            from: garbage.from,
            sent,
            refused,
            replies: back.replies,
            sent_octets,
            reply_octets: back.octets,
            longest_reply: back.longest,
            icmp: back.icmp,
            start_ms: millis(start),
            stop_ms: millis(stop),
            ..AttackResult::default()
        }))
    }
}

/// Counts what has come back.
fn listen(socket: &UdpSocket, back: &mut Back) {
    let mut buffer = [0; 2048];
    let fd = socket.as_raw_fd();
    let errors = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    while nix::sys::socket::recv(fd, &mut buffer, errors).is_ok() {
        back.icmp += 1;
    }
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((octets, _)) => {
                back.replies += 1;
                back.octets += octets as u64;
                back.longest = back.longest.max(octets as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An ICMP error that is in the queue as well, and counted there; the next call goes on.
            Err(_) => {}
        }
    }
}

/// Lengths of WireGuard's messages by type (initiation, response, cookie reply, data without content): what is wrong
/// only behind the length comes further into a parser.
const WIREGUARD: [usize; 4] = [148, 92, 64, 32];

/// Garbage number `number`: a fourth each of noise of any length, of messages that are right in type and length, of
/// those cut short, and of those with a wrong type or reserved octets.
pub(crate) fn trash(seed: u64, number: u64, max: usize, out: &mut Vec<u8>) {
    let dice = draw(seed, number);
    let kind = (dice >> 8 & 3) as usize;
    let whole = WIREGUARD[kind] + if kind == 3 { 16 * (dice >> 32 & 63) as usize } else { 0 };
    let any = (dice >> 40) as usize;
    let length = match dice & 3 {
        0 => any % (max + 1),
        2 => any % whole,
        _ => whole,
    };
    out.clear();
    out.resize(length.min(max), 0);
    pattern(dice, 0, out);
    let head: [u8; 4] = match dice & 3 {
        0 => return,
        3 if dice & 0x10 == 0 => [kind as u8 + 1, 0, 1, 0],
        3 => [(dice >> 16 & 0xff) as u8 | 8, 0, 0, 0],
        _ => [kind as u8 + 1, 0, 0, 0],
    };
    for (octet, right) in out.iter_mut().zip(head) {
        *octet = right;
    }
}

/// A socket that sees every IP packet of this network namespace.
struct Tap {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Tap {
    fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        let socket = nix::sys::socket::socket(AddressFamily::Packet, SockType::Datagram, flags, all)?;
        // A burst must not be lost before it is looked at; the kernel may refuse more than net.core.rmem_max.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20));
        Ok(Tap { socket, buffer: vec![0; 1 << 16] })
    }

    /// The next packet that came from outside this host, from its IP header on; `None` if there is none now.
    fn next(&mut self) -> io::Result<Option<&mut [u8]>> {
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
                Ok((_, Some(from))) if from.pkttype() == OUTGOING => {}
                Ok((n, _)) => return Ok(Some(&mut self.buffer[..n])),
                Err(nix::Error::EAGAIN) => return Ok(None),
                // An interface went down: others are still there.
                Err(nix::Error::EINTR | nix::Error::ENETDOWN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Counts marked packets, and datagrams to some ports.
pub(crate) struct Watcher {
    watch: Watch,
    tap: Tap,
}

impl Watcher {
    pub(crate) fn new(watch: Watch) -> io::Result<Self> {
        Ok(Watcher { watch, tap: Tap::new()? })
    }

    pub(crate) fn run(mut self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut datagrams, mut longest) = ((!self.watch.ports.is_empty()).then_some(0), 0);
        while clock.now() < end && clock.wait(&self.tap.socket, PollFlags::IN, end)? {
            while let Some(packet) = self.tap.next()? {
                for id in marks(packet) {
                    *seen.entry(id).or_default() += 1;
                }
                if let Some(octets) = payload_to(packet, &self.watch.ports) {
                    datagrams = datagrams.map(|known| known + 1);
                    longest = longest.max(octets as u64);
                }
            }
        }
        let seen = seen.into_iter().map(|(id, packets)| Seen { id, name: String::new(), packets }).collect();
        Ok(EndResult::Watch(WatchResult { name: self.watch.name, at: self.watch.at, seen, datagrams, longest }))
    }
}

/// Records datagrams and sends them again.
pub(crate) struct Replayer {
    replay: Replay,
    tap: Tap,
    raw: RawSender,
}

impl Replayer {
    pub(crate) fn new(replay: Replay) -> io::Result<Self> {
        Ok(Replayer { replay, tap: Tap::new()?, raw: RawSender::new()? })
    }

    pub(crate) fn run(mut self, clock: Clock) -> io::Result<EndResult> {
        let (start, again) = (nanos(self.replay.start), nanos(self.replay.again));
        clock.sleep_until(start);
        while self.tap.next()?.is_some() {}
        let mut recorded: Vec<(IpAddr, Vec<u8>)> = Vec::new();
        while clock.now() < again && clock.wait(&self.tap.socket, PollFlags::IN, again)? {
            while let Some(packet) = self.tap.next()? {
                if packet.len() <= MOST_OCTETS
                    && recorded.len() < MOST_RECORDED
                    && let Some(to) = replayable(packet, &self.replay.ports)
                {
                    recorded.push((to, packet.to_vec()));
                }
            }
        }
        let count = if recorded.is_empty() { 0 } else { self.replay.count };
        let send = |number: u64| {
            let (to, packet) = &recorded[(number % recorded.len() as u64) as usize];
            self.raw.send(packet, *to);
        };
        let stop = paced(clock, (again, count, self.replay.rate), send, || Ok(()))?;
        Ok(EndResult::Attack(AttackResult {
            recorded: recorded.len() as u64,
            start_ms: millis(again),
            stop_ms: millis(stop),
            ..self.raw.result(&self.replay.name, &self.replay.from)
        }))
    }
}

fn nanos(span: super::Span) -> Nanos {
    i64::try_from(span.nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_of_all_kinds_bounded_and_the_same_again() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut whole = [0; 4];
        let mut lengths = std::collections::BTreeSet::new();
        for number in 0..10_000 {
            trash(1, number, 1_200, &mut a);
            trash(1, number, 1_200, &mut b);
            assert_eq!(a, b);
            assert!(a.len() <= 1_200);
            lengths.insert(a.len());
            for (i, length) in WIREGUARD.iter().enumerate() {
                whole[i] += u32::from(a.len() >= *length && a[..4] == [i as u8 + 1, 0, 0, 0]);
            }
        }
        assert!(lengths.contains(&0) && lengths.contains(&1) && lengths.len() > 500);
        assert!(whole.iter().all(|&n| n > 300), "{whole:?}");
    }
}
