//! UDP sockets in batches: many datagrams a system call, in both directions, with ECN and local addresses.

use crate::engine::Counters;
use proto::{Datagram, LinkId, Output, Transmit};
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, UdpSocketState};
use rustix::event::epoll;
use socket2::{Domain, Protocol, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a socket's buffers hold, in octets: 30 ms at 1 Gbit/s, longer than the loop is ever kept from a socket by the
/// others. The kernel books about twice that for its own structures.
const BUFFER: usize = 4 << 20;
/// The largest datagram, and so the largest run of them in one GSO or GRO message.
const LARGEST: usize = 65_535;
/// The most octets of payload in one GSO message: the length fields of IPv4 and UDP must hold it with their headers.
const LARGEST_RUN: usize = LARGEST - 20 - 8;
/// How many datagrams the node is given at a time: enough to spread the cost of a call and to merge packets for the
/// TUN, few enough that they are still in the cache when they are sent on.
const HANDED: usize = 128;

/// One UDP socket with what the kernel can do for it.
#[derive(Debug)]
pub struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Socket {
    /// A socket on an uplink of a box: bound to the device, because two ISPs may hand out the same network and gateway,
    /// and to the uplink's own address, because the ISP filters any other. The kernel chooses the port.
    pub fn on_uplink(device: &str, address: IpAddr) -> io::Result<Self> {
        Self::open(SocketAddr::new(address, 0), Some(device))
    }

    /// A socket that a core listens on. One for `[::]` does not take IPv4: that has a socket of its own.
    pub fn listening(address: SocketAddr) -> io::Result<Self> {
        Self::open(address, None)
    }

    fn open(address: SocketAddr, device: Option<&str>) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        // Beyond net.core.rmem_max with CAP_NET_ADMIN, which both daemons have for their TUN; up to it otherwise.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        socket.set_send_buffer_size(BUFFER)?;
        socket.bind(&address.into())?;
        let io = UdpSocket::from(socket);
        let state = UdpSocketState::new((&io).into())?;
        let local = io.local_addr()?;
        Ok(Socket { io, state, local })
    }

    /// The address it is bound to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    fn send(&self, bytes: &[u8], run: &[Transmit], counters: &mut Counters) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let segment = first.range.len();
        match self.send_message(first, &bytes[first.range.start..last.range.end], segment) {
            Ok(()) => counters.udp_sent += run.len() as u64,
            // The device cannot segment, or a segment does not fit the path: one by one tells which do.
            Err(error) if run.len() > 1 && !is_full(&error) => {
                for transmit in run {
                    match self.send_message(transmit, &bytes[transmit.range.clone()], transmit.range.len()) {
                        Ok(()) => counters.udp_sent += 1,
                        Err(error) => counters.note_send_error(&error, 1),
                    }
                }
            }
            Err(error) => counters.note_send_error(&error, run.len() as u64),
        }
    }

    fn send_message(&self, to: &Transmit, contents: &[u8], segment: usize) -> io::Result<()> {
        let message = quinn_udp::Transmit {
            destination: to.to,
            ecn: EcnCodepoint::from_bits(to.ecn),
            contents,
            segment_size: (segment < contents.len()).then_some(segment),
            src_ip: to.from,
        };
        self.state.try_send((&self.io).into(), &message)
    }
}

/// Whether a queue on the way was full: sending the same again at once would only find it full again.
pub(crate) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// The sockets of each link, and their places in the loop's wait.
#[derive(Debug)]
pub struct Sockets {
    epoll: OwnedFd,
    /// By link, then by family (IPv4, IPv6).
    links: Vec<[Option<Socket>; 2]>,
}

impl Sockets {
    /// None yet. The file descriptor is the epoll set in which they take their places.
    pub(crate) fn new(epoll: OwnedFd) -> Self {
        Sockets { epoll, links: Vec::new() }
    }

    /// Gives a link these sockets, at most one a family, in place of those it has.
    pub fn replace(&mut self, link: LinkId, sockets: impl IntoIterator<Item = Socket>) -> io::Result<()> {
        let index = usize::from(link.0);
        if self.links.len() <= index {
            self.links.resize_with(index + 1, Default::default);
        }
        for socket in self.links[index].iter_mut().filter_map(Option::take) {
            epoll::delete(&self.epoll, &socket)?;
        }
        for socket in sockets {
            let family = usize::from(socket.local.is_ipv6());
            let token = epoll::EventData::new_u64((index * 2 + family) as u64);
            epoll::add(&self.epoll, &socket, token, epoll::EventFlags::IN)?;
            self.links[index][family] = Some(socket);
        }
        Ok(())
    }

    /// The local address of a link's socket of one family.
    pub fn local(&self, link: LinkId, ipv6: bool) -> Option<SocketAddr> {
        Some(self.links.get(usize::from(link.0))?[usize::from(ipv6)].as_ref()?.local)
    }

    /// The socket that an event's token names; it may have been replaced since.
    pub(crate) fn by_token(&self, token: u64) -> Option<(LinkId, &Socket)> {
        let index = usize::try_from(token / 2).ok()?;
        let socket = self.links.get(index)?[usize::from(token % 2 == 1)].as_ref()?;
        Some((LinkId(u16::try_from(index).ok()?), socket))
    }

    /// All the tokens there may be.
    pub(crate) fn tokens(&self) -> std::ops::Range<u64> {
        0..self.links.len() as u64 * 2
    }

    /// Sends what a node wants sent, in runs. What cannot be sent is counted and dropped: waiting for one uplink would
    /// stop them all, and every protocol above has its own repetition.
    pub(crate) fn send(&self, out: &Output, counters: &mut Counters) {
        let mut rest = out.transmits();
        while let Some(first) = rest.first() {
            let Some(socket) = self
                .links
                .get(usize::from(first.link.0))
                .and_then(|families| families[usize::from(first.to.is_ipv6())].as_ref())
            else {
                counters.udp_no_socket += 1;
                rest = &rest[1..];
                continue;
            };
            let (run, after) = rest.split_at(run_length(rest, socket.state.max_gso_segments()));
            socket.send(out.bytes(), run, counters);
            rest = after;
        }
    }
}

/// How many of the first transmits can go out in one message: same addresses, side by side, of one length, of which
/// only the last may fall short.
fn run_length(transmits: &[Transmit], most: usize) -> usize {
    let Some(first) = transmits.first() else { return 0 };
    let segment = first.range.len();
    let mut count = 1;
    for pair in transmits.windows(2).take(most.saturating_sub(1)) {
        let (previous, next) = (&pair[0], &pair[1]);
        let same = (next.link, next.to, next.from, next.ecn) == (first.link, first.to, first.from, first.ecn);
        let fits = next.range.len() <= segment && next.range.end - first.range.start <= LARGEST_RUN;
        let follows = previous.range.len() == segment && next.range.start == previous.range.end;
        if !(same && fits && follows) || next.range.is_empty() {
            break;
        }
        count += 1;
    }
    count
}

/// Buffers for one batch of received messages, used again for each.
pub(crate) struct Received {
    buffers: Vec<Vec<u8>>,
    meta: [RecvMeta; BATCH_SIZE],
}

impl Received {
    pub(crate) fn new() -> Self {
        Received { buffers: vec![vec![0; LARGEST]; BATCH_SIZE], meta: [RecvMeta::default(); BATCH_SIZE] }
    }

    /// Reads one batch and hands it to `handle` in portions. Whether the socket may have more.
    pub(crate) fn drain(
        &mut self,
        link: LinkId,
        socket: &Socket,
        counters: &mut Counters,
        mut handle: impl FnMut(&mut dyn Iterator<Item = Datagram<'_>>, &mut Counters),
    ) -> bool {
        let count = {
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = {
                let mut buffers = self.buffers.iter_mut();
                std::array::from_fn(|_| IoSliceMut::new(buffers.next().map_or(&mut [], Vec::as_mut_slice)))
            };
            match socket.state.recv((&socket.io).into(), &mut slices, &mut self.meta) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Nothing to read, yet epoll may have reported an error that is waiting: taken, or it reports for ever.
                    if let Ok(Some(error)) = socket.io.take_error() {
                        tracing::debug!(%error, local = %socket.local, "error on a socket");
                        counters.udp_receive_errors += 1;
                    }
                    return false;
                }
                Err(error) => {
                    tracing::debug!(%error, local = %socket.local, "cannot receive");
                    counters.udp_receive_errors += 1;
                    return false;
                }
            }
        };
        let mut messages = self.meta[..count].iter().zip(&self.buffers).peekable();
        while messages.peek().is_some() {
            let mut handed = 0;
            let mut portion = std::iter::from_fn(|| {
                let message = if handed < HANDED { messages.next() } else { None };
                handed += message.map_or(0, |(meta, _)| meta.len.div_ceil(meta.stride.max(1)));
                message
            })
            .flat_map(|(meta, buffer)| split(link, meta, buffer));
            handle(&mut portion, counters);
            // A handler that stops early has dropped the rest: it must not get them again.
            portion.for_each(drop);
            counters.udp_received += handed as u64;
        }
        count == BATCH_SIZE
    }
}

/// The datagrams of one message, as GRO put them side by side.
fn split<'a>(link: LinkId, meta: &RecvMeta, buffer: &'a [u8]) -> impl Iterator<Item = Datagram<'a>> + use<'a> {
    let RecvMeta { addr: from, dst_ip: to, ecn, .. } = *meta;
    let ecn = ecn.map_or(0, |ecn| ecn as u8);
    // An empty datagram has no stride; it is no datagram of ours either, and goes uncounted like none.
    buffer[..meta.len].chunks(meta.stride.max(1)).map(move |data| Datagram { link, from, to, ecn, data })
}
