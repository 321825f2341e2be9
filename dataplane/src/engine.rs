//! The one loop of a daemon: a thread that owns the `proto::Node`, its sockets and its TUNs, and waits in one place.
//!
//! Everything else a daemon does runs in tokio and talks to the loop through a [`Handle`]; what the node reports comes
//! out of a channel. In the steady state the loop makes no allocation and takes no lock for a packet.
//!
//! A round is: wait; UDP sockets to [`Node::handle_datagrams`]; TUNs to [`Node::handle_ip`]; commands;
//! [`Node::handle_timeout`]. After each of them what the node produced is sent and delivered, and its events are
//! passed on. All amounts are bounded, so that no source starves another; the wait is level-triggered, so what is left
//! comes in the next round.

use crate::clock::{self, ClockWatch};
use crate::tun::{self, Tun};
use crate::udp::{self, Received, Socket, Sockets};
use proto::config::ConfigError;
use proto::snapshot::Snapshot;
use proto::{Event, Instant, LinkId, Node, NodeConfig, Output, PeerConfig, Uplink};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc as tokio_mpsc, oneshot, watch};

/// Tokens of what is waited for besides sockets, whose tokens are small.
const WAKE: u64 = u64::MAX;
const CLOCK: u64 = u64::MAX - 1;
/// That of the first TUN; the next ones' follow.
const TUN: u64 = 1 << 63;

/// How many ready descriptors one wait reports: both families on each uplink, and the loop's own, with room; at a core
/// with more listening sockets the rest come in the next round.
const READY: usize = 32;

/// For how many rounds a passed deadline is put off while datagrams still wait to be read. What was in a socket's
/// buffer when the deadline passed (4 MiB) has been read after that many batches; with a flood behind it, time-outs
/// must happen all the same.
const PUT_OFF: u32 = 128;

/// A round that comes so much later than it should have: the process stood still (SIGSTOP, a paused machine, no
/// processor). Longer than any round of work, and than a busy machine lets a process wait; what is shorter does no harm,
/// since sockets are read before deadlines are judged.
const STALL: Duration = Duration::from_millis(300);

/// What the loop could not do, and how much it did, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Datagrams received, of whatever worth.
    pub udp_received: u64,
    /// Datagrams that the kernel took.
    pub udp_sent: u64,
    /// Datagrams dropped because the socket's or the device's queue was full.
    pub udp_queue_full: u64,
    /// Datagrams dropped because there was no way there: no route, no such host, device down, address gone.
    pub udp_unreachable: u64,
    /// Datagrams dropped because they were larger than the link.
    pub udp_too_large: u64,
    /// Datagrams dropped because a packet filter of this host forbids them.
    pub udp_forbidden: u64,
    /// Datagrams dropped for any other error in sending.
    pub udp_other_errors: u64,
    /// Datagrams dropped because their link had no socket (any more).
    pub udp_no_socket: u64,
    /// Errors reported instead of a received datagram.
    pub udp_receive_errors: u64,
    /// Packets read from the TUNs.
    pub tun_read: u64,
    /// Packets for the TUNs, before they are merged.
    pub tun_written: u64,
    /// Bursts from a TUN that could not be read.
    pub tun_read_errors: u64,
    /// Batches of which a TUN refused at least one packet; packets for a TUN that there is not.
    pub tun_write_errors: u64,
}

impl Counters {
    pub(crate) fn note_send_error(&mut self, error: &io::Error, datagrams: u64) {
        let counter = match error.raw_os_error() {
            _ if udp::is_full(error) => &mut self.udp_queue_full,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EADDRNOTAVAIL
                | libc::ENODEV
                | libc::ENXIO
                | libc::ECONNREFUSED,
            ) => &mut self.udp_unreachable,
            Some(libc::EMSGSIZE) => &mut self.udp_too_large,
            Some(libc::EPERM | libc::EACCES) => &mut self.udp_forbidden,
            _ => &mut self.udp_other_errors,
        };
        *counter += datagrams;
    }
}

/// Why the loop did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The node refused its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel refused something the loop needs.
    #[error("cannot set up the packet loop ({what}): {cause}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The wait itself failed.
    #[error("the packet loop cannot wait for packets: {0}")]
    Wait(io::Error),
    /// Somebody deleted the TUN.
    #[error("the TUN device {name} is gone ({cause}); restart the daemon to make it again")]
    TunGone {
        /// Its name.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The loop's thread panicked: a bug.
    #[error("the packet loop ended by a panic; please report it with the log")]
    Panicked,
}

/// The loop has ended; its error comes from [`Dataplane::stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet loop has ended")]
pub struct Ended;

type Command = Box<dyn FnOnce(&mut Node, &mut Sockets, Instant) + Send>;

enum Message {
    Command(Command),
    Counters(oneshot::Sender<(Snapshot, Counters)>),
    Stop,
}

/// A way to talk to the loop. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    messages: mpsc::Sender<Message>,
    wake: Arc<OwnedFd>,
    clock_set: watch::Receiver<()>,
}

impl Handle {
    /// Runs `command` in the loop, between packets, and gives its result. It must not block: packets wait for it.
    pub async fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Node, &mut Sockets, Instant) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Command(Box::new(move |node, sockets, now| {
            // The caller may have gone; the command was carried out all the same.
            let _ = sender.send(command(node, sockets, now));
        })))?;
        receiver.await.map_err(|_| Ended)
    }

    /// What there is to show, of the node and of the loop.
    pub async fn snapshot(&self) -> Result<(Snapshot, Counters), Ended> {
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Counters(sender))?;
        receiver.await.map_err(|_| Ended)
    }

    /// Has a change whenever the wall clock is set.
    pub fn clock_set(&self) -> watch::Receiver<()> {
        self.clock_set.clone()
    }

    /// Puts another set of peers in force, whole or not at all ([`Node::set_peers`]).
    pub async fn set_peers(&self, peers: Vec<PeerConfig>) -> Result<Result<(), ConfigError>, Ended> {
        self.call(move |node, _, now| node.set_peers(now, peers)).await
    }

    /// An uplink can be used, or it cannot any more ([`Node::set_uplink`]). `sockets` take the place of the link's, at
    /// most one a family; `None` keeps those it has. Without `uplink` they are closed.
    pub async fn set_uplink(
        &self,
        link: LinkId,
        sockets: Option<Vec<Socket>>,
        uplink: Option<Uplink>,
    ) -> Result<io::Result<()>, Ended> {
        self.call(move |node, by_link, now| {
            let renumbered = sockets.is_some();
            let result = match (sockets, &uplink) {
                (_, None) => by_link.replace(link, None),
                (Some(sockets), Some(_)) => by_link.replace(link, sockets),
                (None, Some(_)) => Ok(()),
            };
            // Without its sockets the uplink is of no use, whatever the reason.
            node.set_uplink(now, link, uplink.filter(|_| result.is_ok()));
            if renumbered {
                node.renumbered(now, link);
            }
            result
        })
        .await
    }

    fn send(&self, message: Message) -> Result<(), Ended> {
        self.messages.send(message).map_err(|_| Ended)?;
        // Fails only when the counter is full, and then the loop has been woken 2^64 times already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

/// The running loop.
pub struct Dataplane {
    handle: Handle,
    thread: JoinHandle<Result<(), EngineError>>,
}

impl Dataplane {
    /// Starts the loop, with the sockets of a core, at most one a link and family (a box opens its own as its uplinks
    /// come). A peer's packets are delivered to the TUN at the place that its configuration names; what comes from any of
    /// them is for whichever peer has its destination.
    ///
    /// The receiver gives every [`Event`] of the node, in order; it must be read, and it ends when the loop ends,
    /// whatever the reason: then ask [`Dataplane::stop`] for it.
    pub fn start(
        config: NodeConfig,
        tuns: Vec<Tun>,
        sockets: Vec<(LinkId, Socket)>,
    ) -> Result<(Self, tokio_mpsc::UnboundedReceiver<Event>), EngineError> {
        let failed = |what| move |cause: rustix::io::Errno| EngineError::Setup { what, cause: cause.into() };
        let mut seed = [0; 32];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(failed("random numbers"))?;
        let node = Node::new(config, seed, clock::now())?;

        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll"))?;
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(failed("eventfd"))?);
        let clock = ClockWatch::new().map_err(|cause| EngineError::Setup { what: "the clock's timer", cause })?;
        let wait_for = |fd: std::os::fd::BorrowedFd<'_>, token| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN).map_err(failed("epoll"))
        };
        for (tun, token) in tuns.iter().zip(TUN..) {
            wait_for(tun.as_fd(), token)?;
        }
        wait_for(wake.as_fd(), WAKE)?;
        wait_for(clock.as_fd(), CLOCK)?;
        let mut by_link = Sockets::new(epoll.try_clone().map_err(|cause| EngineError::Setup { what: "epoll", cause })?);
        let mut grouped: BTreeMap<LinkId, Vec<Socket>> = BTreeMap::new();
        for (link, socket) in sockets {
            grouped.entry(link).or_default().push(socket);
        }
        for (link, sockets) in grouped {
            by_link.replace(link, sockets).map_err(|cause| EngineError::Setup { what: "a listening socket", cause })?;
        }

        let (messages, inbox) = mpsc::channel();
        let (events, event_receiver) = tokio_mpsc::unbounded_channel();
        let (clock_set, set) = watch::channel(());
        let engine = Engine {
            node,
            tuns,
            sockets: by_link,
            epoll,
            wake: wake.clone(),
            clock,
            clock_set,
            inbox,
            events,
            received: Received::new(),
            out: Output::new(tun::HEADROOM),
            counters: Counters::default(),
            now: clock::now(),
            stalled: Duration::ZERO,
        };
        let thread = std::thread::Builder::new()
            .name("packets".into())
            .spawn(move || engine.run())
            .map_err(|cause| EngineError::Setup { what: "a thread", cause })?;
        Ok((Dataplane { handle: Handle { messages, wake, clock_set: set }, thread }, event_receiver))
    }

    /// A way to talk to the loop.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends the loop, closes its sockets and its TUNs (which removes them), and tells how it ended: an error if it had
    /// ended by itself.
    pub fn stop(self) -> Result<(), EngineError> {
        // It may have ended already; then joining tells why.
        let _ = self.handle.send(Message::Stop);
        self.thread.join().unwrap_or(Err(EngineError::Panicked))
    }
}

/// The state of the loop, all of it owned by its thread.
struct Engine {
    node: Node,
    tuns: Vec<Tun>,
    sockets: Sockets,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    clock: ClockWatch,
    clock_set: watch::Sender<()>,
    inbox: mpsc::Receiver<Message>,
    events: tokio_mpsc::UnboundedSender<Event>,
    received: Received,
    out: Output,
    counters: Counters,
    /// As the clock was last read.
    now: Instant,
    /// After a stall, how long what is read now may have waited, until all of it has been read.
    stalled: Duration,
}

impl Engine {
    fn run(mut self) -> Result<(), EngineError> {
        let mut ready = Vec::with_capacity(READY);
        let mut put_off = 0;
        loop {
            let deadline = self.node.poll_timeout().map(|deadline| deadline.at);
            self.wait(&mut ready)?;
            self.read_clock(deadline);
            if self.stalled > Duration::ZERO {
                self.catch_up()?;
            }
            // A deadline that has passed proves silence only of what was listened to: then all sockets are read, also
            // those that became readable between the wait and the reading of the clock.
            let due = self.node.poll_timeout().is_some_and(|deadline| deadline.at <= self.now);
            let mut all_read = true;
            if due {
                for token in self.sockets.tokens() {
                    all_read &= !self.drain_socket(token)?;
                }
            } else {
                for event in ready.iter().filter(|event| event.data.u64() < TUN) {
                    self.drain_socket(event.data.u64())?;
                }
            }
            let has = |token| ready.iter().any(|event| event.data.u64() == token);
            for (place, token) in (0..self.tuns.len()).zip(TUN..) {
                if has(token) {
                    self.drain_tun(place)?;
                }
            }
            if has(CLOCK) && self.clock.was_set() {
                tracing::info!(unix_time = clock::unix_time().as_secs(), "the wall clock was set");
                self.node.clock_stepped(self.now);
                self.clock_set.send_replace(());
            }
            if has(WAKE) && self.take_messages() {
                return Ok(());
            }
            if due {
                if all_read || put_off >= PUT_OFF {
                    put_off = 0;
                    self.node.handle_timeout(self.now, &mut self.out);
                    debug_assert!(self.node.poll_timeout().is_none_or(|deadline| deadline.at > self.now));
                    self.flush()?;
                } else {
                    put_off += 1;
                }
            }
            self.pass_events();
        }
    }

    /// Reads the clock, which nobody expects to stand before `expected`. Where it is far beyond that, and beyond the last
    /// reading, the process stood still in between, and the node is told.
    fn read_clock(&mut self, expected: Option<Instant>) {
        let before = std::mem::replace(&mut self.now, clock::now());
        if expected.is_some_and(|at| self.now.since(at.max(before)) >= STALL) {
            self.stalled = self.now.since(before);
            self.node.stood_still(self.now);
        }
    }

    /// After a stall: what has piled up meanwhile is read to its end, and the node knows how old it may be. What comes
    /// during that is taken for as old: little, and of a kind that is sent again.
    fn catch_up(&mut self) -> Result<(), EngineError> {
        let seconds = self.stalled.as_secs_f64();
        tracing::warn!(seconds, "the process stood still; packets that waited for more than a second are dropped");
        for token in self.sockets.tokens() {
            for _ in 0..PUT_OFF {
                if !self.drain_socket(token)? {
                    break;
                }
            }
        }
        for place in 0..self.tuns.len() {
            for _ in 0..PUT_OFF {
                if !self.drain_tun(place)? {
                    break;
                }
            }
        }
        self.stalled = Duration::ZERO;
        Ok(())
    }

    /// Sleeps until something is readable or the node's deadline has come. The kernel takes nanoseconds and never
    /// returns early, so a deadline is not met by spinning the last millisecond before it.
    fn wait(&self, ready: &mut Vec<epoll::Event>) -> Result<(), EngineError> {
        ready.clear();
        let timeout = self.node.poll_timeout().map(|deadline| {
            let left = deadline.at.since(clock::now());
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(ready), timeout.as_ref()) {
            // A signal, or the process was stopped and goes on: nothing is ready that the next round would not find.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(EngineError::Wait(error.into())),
        }
    }

    /// Reads one batch from a socket; whether there may be more.
    fn drain_socket(&mut self, token: u64) -> Result<bool, EngineError> {
        let Some((link, socket)) = self.sockets.by_token(token) else { return Ok(false) };
        let more = self.received.read(socket, &mut self.counters);
        // A process is stopped where it leaves the kernel: with what it has just read, which may be old by now.
        self.read_clock(Some(self.now));
        let Engine { node, tuns, sockets, received, out, counters, now, stalled, .. } = self;
        let mut delivered = Ok(());
        received.hand(link, *stalled, counters, |datagrams, counters| {
            node.handle_datagrams(*now, datagrams, out);
            sockets.send(out, counters);
            if let Err(gone) = deliver(tuns, out, counters) {
                delivered = Err(gone);
            }
            out.clear();
        });
        delivered.map(|()| more)
    }

    /// Reads one batch from the TUN at a place; whether there was anything.
    fn drain_tun(&mut self, place: usize) -> Result<bool, EngineError> {
        let tun = &mut self.tuns[place];
        tun.receive(&mut self.counters).map_err(|cause| gone(tun, cause))?;
        self.read_clock(Some(self.now));
        let tun = &mut self.tuns[place];
        self.node.handle_ip(self.now, self.stalled, tun.packets(), &mut self.out);
        let more = !tun.is_empty();
        self.flush()?;
        Ok(more)
    }

    fn flush(&mut self) -> Result<(), EngineError> {
        self.sockets.send(&self.out, &mut self.counters);
        let result = deliver(&mut self.tuns, &mut self.out, &mut self.counters);
        self.out.clear();
        result
    }

    /// Carries out what was asked; whether to stop.
    fn take_messages(&mut self) -> bool {
        let mut count = [0; 8];
        // Read before the messages: one that comes in between wakes the loop again.
        let _ = rustix::io::read(&*self.wake, &mut count);
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Command(command) => command(&mut self.node, &mut self.sockets, self.now),
                Message::Counters(sender) => {
                    // Whoever asked may have gone.
                    let _ = sender.send((self.node.snapshot(self.now), self.counters));
                }
                Message::Stop => return true,
            }
        }
        false
    }

    fn pass_events(&mut self) {
        while let Some(event) = self.node.poll_event() {
            // Nobody reads them while the daemon shuts down.
            let _ = self.events.send(event);
        }
    }
}

/// Gives each TUN its packets. An error is the end of one of them.
fn deliver(tuns: &mut [Tun], out: &mut Output, counters: &mut Counters) -> Result<(), EngineError> {
    let mut result = Ok(());
    for (place, packets) in out.deliveries().enumerate() {
        match tuns.get_mut(place) {
            Some(tun) => {
                if let Err(cause) = tun.send(packets, counters) {
                    result = Err(gone(tun, cause));
                }
            }
            None => counters.tun_write_errors += packets.len() as u64,
        }
    }
    result
}

fn gone(tun: &Tun, cause: io::Error) -> EngineError {
    EngineError::TunGone { name: tun.name().to_owned(), cause }
}
