//! Downloads over TCP: a server that sends a known stream at a rate, and a client that checks every octet.
//!
//! The client opens a connection and sends a request of 32 octets: the magic, the seed of the stream, its length
//! (all ones: until the client closes) and its rate in octets per second. The answer is the stream, then the end of the
//! connection.

use super::account::{bin, bin_length};
use super::clock::{Clock, Nanos, millis};
use super::live::Cell;
use super::payload::{MAGIC, draw, pattern};
use super::result::{Gap, Series};
use super::{EndResult, Tcp, TcpEndResult, TcpResult};
use rustix::event::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

const REQUEST: usize = 32;

/// The server sends what is due this often: a pause far below the gaps that a stall would be judged by.
const PACE: Nanos = 10_000_000;

/// The length that means "until the client closes".
const ENDLESS: u64 = u64::MAX;

/// Reasons kept, of connections that broke: enough to tell one cause from several.
const REASONS: usize = 5;

/// Serves downloads.
pub(crate) struct Server {
    name: String,
    listener: TcpListener,
}

impl Server {
    pub(crate) fn new(local: SocketAddr, tcp: &Tcp) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&local.into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        Ok(Server { name: tcp.name.clone(), listener: socket.into() })
    }

    /// Accepts and serves until `end`.
    pub(crate) fn run(self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        let retransmits = AtomicU64::new(0);
        thread::scope(|scope| -> io::Result<()> {
            while clock.wait(&self.listener, PollFlags::IN, end)? {
                match self.listener.accept() {
                    Ok((stream, _)) => {
                        let retransmits = &retransmits;
                        // How a connection ends is the client's to judge: an error here is one there too.
                        scope.spawn(move || drop(serve(stream, clock, end, retransmits)));
                    }
                    // Reset while it waited to be accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })?;
        Ok(EndResult::Tcp(TcpEndResult::Server { name: self.name, retransmits: retransmits.into_inner() }))
    }
}

fn serve(mut stream: TcpStream, clock: Clock, end: Nanos, retransmits: &AtomicU64) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    // Small pieces go out when they are due, not when the one before is acknowledged.
    stream.set_nodelay(true)?;
    let result = send(&mut stream, clock, end);
    retransmits.fetch_add(u64::from(segments_sent_again(&stream)), Relaxed);
    result
}

fn send(stream: &mut TcpStream, clock: Clock, end: Nanos) -> io::Result<()> {
    let mut request = [0; REQUEST];
    let mut have = 0;
    while have < REQUEST {
        if !clock.wait(stream, PollFlags::IN, end)? {
            return Ok(());
        }
        match stream.read(&mut request[have..]) {
            Ok(0) => return Ok(()),
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let word = |at: usize| u64::from_be_bytes(request[at..at + 8].try_into().expect("eight octets"));
    let (seed, length, rate) = (word(8), word(16), f64::from_bits(word(24)));
    if request[..8] != MAGIC || rate.is_nan() || rate <= 0.0 {
        return Ok(());
    }

    let mut piece = Vec::new();
    let (mut sent, mut due_since) = (0, clock.now());
    // Octets that may go out since `due_since`, as a fraction: slow rates must not be rounded away.
    let mut credit = 0.0;
    while sent < length {
        credit += rate * PACE as f64 / 1e9;
        let n = (credit as u64).min(length - sent);
        credit -= n as f64;
        piece.resize(n as usize, 0);
        pattern(seed, sent, &mut piece);
        if !write(stream, &piece, clock, end)? {
            return Ok(());
        }
        sent += n;
        // Time spent waiting for the peer's window is not made up for: a server with a rate limit does not either.
        due_since = (due_since + PACE).max(clock.now());
        if due_since >= end {
            return Ok(());
        }
        clock.sleep_until(due_since);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // Held until the client has closed, so that what is sent again until then is counted.
    if clock.wait(stream, PollFlags::IN, end)? {
        let _ = stream.read(&mut request)?;
    }
    Ok(())
}

/// Writes all; false if `end` came first.
fn write(stream: &mut TcpStream, mut piece: &[u8], clock: Clock, end: Nanos) -> io::Result<bool> {
    while !piece.is_empty() {
        match stream.write(piece) {
            Ok(n) => piece = &piece[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !clock.wait(stream, PollFlags::OUT, end)? {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The kernel's count of segments sent again on a connection; 0 if it cannot be asked.
#[allow(unsafe_code)]
fn segments_sent_again(stream: &TcpStream) -> u32 {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` has `length` octets, of which the kernel writes no more and says how many; tcp_info is plain
    // numbers, for which the zeroes that an older kernel leaves are valid.
    let info = unsafe {
        let done = libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
        if done != 0 {
            return 0;
        }
        info.assume_init()
    };
    info.tcpi_total_retrans
}

/// Downloads.
pub(crate) struct Client {
    pub(crate) remote: SocketAddr,
    pub(crate) tcp: Tcp,
    pub(crate) seed: u64,
    pub(crate) start: Nanos,
    pub(crate) stop: Nanos,
    pub(crate) cell: Arc<Cell>,
}

/// How a connection went.
enum Done {
    Completed { first: Nanos, last: Nanos },
    Unfinished,
    Broken { why: String, corrupt: bool },
}

/// What all connections of an entry add up to.
struct Tally {
    result: TcpResult,
    last: Nanos,
    stall: (Nanos, Nanos),
    octets: Vec<u32>,
}

impl Client {
    /// Opens connections from `start` and is back at `stop`.
    pub(crate) fn run(self, clock: Clock) -> EndResult {
        let length = bin_length(self.stop);
        let tally = Mutex::new(Tally {
            result: TcpResult {
                name: self.tcp.name.clone(),
                from: self.tcp.from.clone(),
                to: self.tcp.to.clone(),
                ..TcpResult::default()
            },
            last: self.start,
            stall: (self.start, 0),
            octets: vec![0; bin(self.stop, length) + 1],
        });
        thread::scope(|scope| {
            let (client, tally) = (&self, &tally);
            let mut opened = 0;
            let mut due = self.start;
            while due < self.stop {
                clock.sleep_until(due);
                for _ in 0..self.tcp.connections {
                    let seed = draw(self.seed, opened);
                    opened += 1;
                    scope.spawn(move || client.connection(clock, seed, tally));
                }
                match self.tcp.every {
                    Some(every) => due += i64::try_from(every.nanos()).unwrap_or(i64::MAX / 2),
                    None => break,
                }
            }
        });
        let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut result = tally.result;
        result.duration_ms = millis(tally.last - self.start);
        if result.duration_ms > 0.0 {
            result.goodput_bps = (result.bytes as f64 * 8e3 / result.duration_ms).round();
        }
        result.longest_stall = Gap { at_ms: millis(tally.stall.0), length_ms: millis(tally.stall.1) };
        result.series =
            Series { bin_ms: millis(length), received: tally.octets, lost: Vec::new(), delay_ms: Vec::new() };
        EndResult::Tcp(TcpEndResult::Client(Box::new(result)))
    }

    fn connection(&self, clock: Clock, seed: u64, tally: &Mutex<Tally>) {
        let done = self.download(clock, seed, tally).unwrap_or_else(|error| Done::Broken {
            why: format!("at {:.3} s: {error}", clock.now() as f64 / 1e9),
            corrupt: false,
        });
        let result = &mut tally.lock().unwrap_or_else(PoisonError::into_inner).result;
        result.connections += 1;
        match done {
            Done::Completed { first, last } => {
                result.completed += 1;
                result.slowest_ms = result.slowest_ms.max(millis(last - first));
            }
            Done::Unfinished => result.unfinished += 1,
            Done::Broken { why, corrupt } => {
                result.broken += 1;
                result.corrupt += u64::from(corrupt);
                if result.reasons.len() < REASONS {
                    result.reasons.push(why);
                }
                self.cell.broke();
            }
        }
    }

    fn download(&self, clock: Clock, seed: u64, tally: &Mutex<Tally>) -> io::Result<Done> {
        let patience = i64::try_from(self.tcp.patience.nanos()).unwrap_or(i64::MAX / 2);
        let broken = |why: String| Ok(Done::Broken { why, corrupt: false });
        let at = |moment: Nanos| format!("at {:.3} s", moment as f64 / 1e9);
        let opened = clock.now();
        let socket = Socket::new(Domain::for_address(self.remote), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.remote.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let until = self.stop.min(opened + patience);
        if !clock.wait(&socket, PollFlags::OUT, until)? {
            return if until == self.stop {
                Ok(Done::Unfinished)
            } else {
                broken(format!("{}: no connection within {}", at(until), self.tcp.patience))
            };
        }
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        let mut stream = TcpStream::from(socket);
        let length = self.tcp.bytes.unwrap_or(ENDLESS);
        stream.write_all(&request(seed, length, self.tcp.rate))?;

        let (mut got, mut last) = (0, clock.now());
        let (mut buffer, mut right) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            let until = self.stop.min(last + patience);
            if !clock.wait(&stream, PollFlags::IN, until)? {
                self.note(tally, (last, until), 0);
                return match (until == self.stop, length) {
                    (true, ENDLESS) => Ok(Done::Completed { first: opened, last: until }),
                    (true, _) => Ok(Done::Unfinished),
                    (false, _) => broken(format!("{}: nothing came for {}", at(until), self.tcp.patience)),
                };
            }
            let n = match stream.read(&mut buffer) {
                Ok(0) if got == length => return Ok(Done::Completed { first: opened, last }),
                Ok(0) => return broken(format!("{}: closed after {got} of {length} octets", at(clock.now()))),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let now = clock.now();
            pattern(seed, got, &mut right[..n]);
            if buffer[..n] != right[..n] {
                let why = format!("{}: a wrong octet among those from {got} on", at(now));
                return Ok(Done::Broken { why, corrupt: true });
            }
            self.note(tally, (last, now), n);
            self.cell.arrived(now, 0, n as u64);
            got += n as u64;
            last = now;
            if now >= self.stop {
                let whole = length == ENDLESS || got == length;
                return Ok(if whole { Done::Completed { first: opened, last } } else { Done::Unfinished });
            }
        }
    }

    /// Adds `n` octets that came at the end of a pause.
    fn note(&self, tally: &Mutex<Tally>, (before, now): (Nanos, Nanos), n: usize) {
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        if now - before > tally.stall.1 {
            tally.stall = (before, now - before);
        }
        if n == 0 {
            return;
        }
        tally.result.bytes += n as u64;
        tally.last = tally.last.max(now);
        let b = bin(now, bin_length(self.stop)).min(tally.octets.len() - 1);
        tally.octets[b] = tally.octets[b].saturating_add(n as u32);
    }
}

fn request(seed: u64, length: u64, rate: f64) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..8].copy_from_slice(&MAGIC);
    request[8..16].copy_from_slice(&seed.to_be_bytes());
    request[16..24].copy_from_slice(&length.to_be_bytes());
    request[24..].copy_from_slice(&rate.to_bits().to_be_bytes());
    request
}
