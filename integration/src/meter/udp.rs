//! Both ends of a stream of numbered UDP packets.

use super::account::{Arrival, Schedule, account};
use super::clock::{Clock, Nanos};
use super::live::Cell;
use super::payload::Header;
use super::{EndResult, Udp};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rustix::event::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// Room for what arrives while the process waits for its turn: 4 MiB are two seconds at 1,000 full packets per second.
/// The kernel may give less (net.core.rmem_max).
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket bound to `local`.
pub(crate) fn bind(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&local.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sets DSCP and ECN field of what the socket sends.
fn set_traffic_class(socket: &Socket, local: SocketAddr, class: u8) -> io::Result<()> {
    let octet = u32::from(class);
    if local.is_ipv4() { socket.set_tos_v4(octet) } else { socket.set_tclass_v6(octet) }
}

/// Sends packet after packet, each when it is due.
///
/// The socket is not connected: an ICMP error for one packet must not be reported in place of sending the next.
pub(crate) struct Sender {
    pub(crate) id: u32,
    pub(crate) socket: Socket,
    pub(crate) remote: SocketAddr,
    pub(crate) size: usize,
    pub(crate) schedule: Schedule,
}

impl Sender {
    pub(crate) fn new(
        id: u32,
        local: SocketAddr,
        remote: SocketAddr,
        udp: &Udp,
        schedule: Schedule,
    ) -> io::Result<Self> {
        let socket = bind(local)?;
        set_traffic_class(&socket, local, udp.traffic_class())?;
        Ok(Sender { id, socket, remote, size: udp.size, schedule })
    }

    pub(crate) fn run(self, clock: Clock) -> EndResult {
        let to = self.remote.into();
        let mut payload = vec![0; self.size];
        let (total, mut refused) = (self.schedule.total(), 0);
        for number in 0..total {
            clock.sleep_until(self.schedule.due(number));
            Header { stream: self.id, number, sent: clock.now() }.write(&mut payload);
            if self.socket.send_to(&payload, &to).is_err() {
                refused += 1;
            }
        }
        EndResult::Sent { id: self.id, sent: total, refused }
    }
}

/// Receives a stream.
pub(crate) struct Receiver {
    id: u32,
    socket: Socket,
    traffic_class: u8,
    schedule: Schedule,
    cell: std::sync::Arc<Cell>,
}

/// What a receiver got.
#[derive(Default)]
pub(crate) struct Arrivals {
    pub(crate) packets: Vec<Arrival>,
    /// Of another stream, or changed on the way.
    pub(crate) misdelivered: u64,
    /// The octet of each one's header with DSCP and ECN field.
    pub(crate) classes: Vec<u8>,
}

/// One datagram off a socket.
struct Datagram {
    length: usize,
    at: Nanos,
    traffic_class: Option<u8>,
}

impl Receiver {
    pub(crate) fn new(
        id: u32,
        local: SocketAddr,
        traffic_class: u8,
        schedule: Schedule,
        cell: std::sync::Arc<Cell>,
    ) -> io::Result<Self> {
        let socket = bind(local)?;
        // The kernel notes when a packet came: a process that got its turn late must not look like a gap.
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        if local.is_ipv4() {
            socket.set_recv_tos_v4(true)?
        } else {
            socket.set_recv_tclass_v6(true)?
        }
        Ok(Receiver { id, socket, traffic_class, schedule, cell })
    }

    /// Receives until `end`, and tells how the stream fared.
    pub(crate) fn run(self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        let Arrivals { packets, misdelivered, classes } = self.collect(clock, end)?;
        let (mut flow, next) = account(&packets, &self.schedule);
        flow.misdelivered = misdelivered;
        classes.into_iter().for_each(|class| flow.note_class(self.traffic_class, class));
        Ok(EndResult::Received { id: self.id, flow, next })
    }

    /// Receives until `end`.
    pub(crate) fn collect(&self, clock: Clock, end: Nanos) -> io::Result<Arrivals> {
        let mut buffer = vec![0; 65_536];
        let mut control = nix::cmsg_space!(libc::timespec, [u8; 64]);
        let mut arrivals = Arrivals::default();
        let total = self.schedule.total();
        while clock.wait(&self.socket, PollFlags::IN, end)? {
            while let Some(datagram) = self.receive(clock, &mut buffer, &mut control)? {
                match Header::read(&buffer[..datagram.length]) {
                    Some(header) if header.stream == self.id && header.number < total => {
                        let delay = datagram.at - header.sent;
                        arrivals.packets.push(Arrival { at: datagram.at, number: header.number, delay });
                        arrivals.classes.extend(datagram.traffic_class);
                        self.cell.arrived(datagram.at, header.number, 1);
                    }
                    _ => arrivals.misdelivered += 1,
                }
            }
            if clock.now() >= end {
                break;
            }
        }
        Ok(arrivals)
    }

    /// The next datagram, if there is one.
    fn receive(&self, clock: Clock, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Option<Datagram>> {
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = match recvmsg::<SockaddrStorage>(fd, &mut slices, Some(control), MsgFlags::MSG_DONTWAIT) {
            Ok(message) => message,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut datagram = Datagram { length: message.bytes, at: clock.now(), traffic_class: None };
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::ScmTimestampns(t) => {
                    datagram.at = clock.at_realtime(t.tv_sec() * 1_000_000_000 + t.tv_nsec());
                }
                ControlMessageOwned::Ipv4Tos(tos) => datagram.traffic_class = Some(tos),
                ControlMessageOwned::Ipv6TClass(class) => datagram.traffic_class = Some(class as u8),
                _ => {}
            }
        }
        Ok(Some(datagram))
    }
}
