//! UDP sockets in batches: many datagrams a system call, in both directions, with ECN and local addresses.

mod message;

use crate::engine::Counters;
use crate::netlink;
use message::Message;
use proto::{Datagram, LinkId, Output, Transmit};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use rustix::event::epoll;
use socket2::{Domain, Protocol, Type};
use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

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
    /// The most datagrams that the kernel takes in one message; one, once the device has shown that it cannot cut them.
    most: Cell<usize>,
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
        Self::of(socket.into())
    }

    /// The same socket once more: open until both are closed.
    pub fn share(&self) -> io::Result<Self> {
        Self::of(self.io.try_clone()?)
    }

    fn of(io: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&io).into())?;
        let (most, local) = (Cell::new(state.max_gso_segments()), io.local_addr()?);
        Ok(Socket { io, state, most, local })
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
                if error.raw_os_error() == Some(libc::EIO) {
                    self.most.set(1);
                }
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
        // A run has no more octets than 16 bits can count.
        let segment = (segment < contents.len()).then_some(segment as u16);
        let &Transmit { to, from, traffic_class, .. } = to;
        Message { to, from, traffic_class, contents, segment }.send(&self.io)
    }
}

/// A socket for a daemon's own questions by an uplink (DNS): bound as the tunnel's are, so that each ISP is asked by its
/// own link. Without `local` the kernel chooses the address on it: a link-local one for a link-local server.
pub fn question(interface: u32, local: Option<IpAddr>, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(netlink::name_of(interface)?.as_bytes()))?;
    if let Some(local) = local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    // Answers from anywhere else are not let through.
    socket.connect(&server.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
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
            let (run, after) = rest.split_at(run_length(rest, socket.most.get()));
            socket.send(out.bytes(), run, counters);
            rest = after;
        }
    }
}

/// How many of the first transmits can go out in one message: same addresses and marks, side by side, of one length,
/// of which only the last may fall short.
fn run_length(transmits: &[Transmit], most: usize) -> usize {
    let Some(first) = transmits.first() else { return 0 };
    let segment = first.range.len();
    let mut count = 1;
    for pair in transmits.windows(2).take(most.saturating_sub(1)) {
        let (previous, next) = (&pair[0], &pair[1]);
        let way = |of: &Transmit| (of.link, of.to, of.from, of.traffic_class);
        let same = way(next) == way(first);
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
    /// How many of them were read last.
    filled: usize,
}

impl Received {
    pub(crate) fn new() -> Self {
        Received { buffers: vec![vec![0; LARGEST]; BATCH_SIZE], meta: [RecvMeta::default(); BATCH_SIZE], filled: 0 }
    }

    /// Reads one batch, for [`Received::hand`]. Whether the socket may have more.
    pub(crate) fn read(&mut self, socket: &Socket, counters: &mut Counters) -> bool {
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = {
            let mut buffers = self.buffers.iter_mut();
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().map_or(&mut [], Vec::as_mut_slice)))
        };
        self.filled = match socket.state.recv((&socket.io).into(), &mut slices, &mut self.meta) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Nothing to read, yet epoll may have reported an error that is waiting: taken, or it reports for ever.
                if let Ok(Some(error)) = socket.io.take_error() {
                    tracing::debug!(%error, local = %socket.local, "error on a socket");
                    counters.udp_receive_errors += 1;
                }
                0
            }
            Err(error) => {
                tracing::debug!(%error, local = %socket.local, "cannot receive");
                counters.udp_receive_errors += 1;
                0
            }
        };
        self.filled == BATCH_SIZE
    }

    /// Hands what was read last, by a link, to `handle` in portions. It has waited for so long at most.
    pub(crate) fn hand(
        &mut self,
        link: LinkId,
        waited: Duration,
        counters: &mut Counters,
        mut handle: impl FnMut(&mut dyn Iterator<Item = Datagram<'_>>, &mut Counters),
    ) {
        let mut messages = self.meta[..self.filled].iter().zip(&self.buffers).peekable();
        while messages.peek().is_some() {
            let mut handed = 0;
            let mut portion = std::iter::from_fn(|| {
                let message = if handed < HANDED { messages.next() } else { None };
                handed += message.map_or(0, |(meta, _)| datagrams_in(meta));
                message
            })
            .flat_map(|(meta, buffer)| split(link, waited, meta, buffer));
            handle(&mut portion, counters);
            // A handler that stops early has dropped the rest: it must not get them again.
            portion.for_each(drop);
            counters.udp_received += handed as u64;
        }
    }
}

/// The datagrams of one message, as GRO put them side by side.
fn split<'a>(
    link: LinkId,
    waited: Duration,
    meta: &RecvMeta,
    buffer: &'a [u8],
) -> impl Iterator<Item = Datagram<'a>> + use<'a> {
    let RecvMeta { addr: from, dst_ip: to, ecn, len, stride } = *meta;
    let ecn = ecn.map_or(0, |ecn| ecn as u8);
    (0..datagrams_in(meta)).map(move |index| {
        let data = &buffer[index * stride..len.min((index + 1) * stride)];
        Datagram { link, from, to, ecn, waited, data }
    })
}

/// How many datagrams a message is. An empty one is one, too: the node counts what it is worth.
fn datagrams_in(meta: &RecvMeta) -> usize {
    meta.len.div_ceil(meta.stride.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn run(to: SocketAddr, lengths: &[usize]) -> Vec<Transmit> {
        let mut start = 0;
        let transmit = |&length| {
            start += length;
            Transmit { link: LinkId(0), to, from: None, traffic_class: 46 << 2 | 2, range: start - length..start }
        };
        lengths.iter().map(transmit).collect()
    }

    #[test]
    fn a_run_is_of_one_length_but_for_its_last_and_of_one_address() {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert_eq!(run_length(&[], 64), 0);
        assert_eq!(run_length(&run(to, &[100]), 64), 1);
        assert_eq!(run_length(&run(to, &[100, 100, 60, 60]), 64), 3);
        assert_eq!(run_length(&run(to, &[100, 120]), 64), 1, "only shorter ones follow");
        assert_eq!(run_length(&run(to, &[100, 0]), 64), 1, "an empty datagram is no segment");
        assert_eq!(run_length(&run(to, &[100; 80]), 64), 64, "as many as the kernel takes");
        assert_eq!(run_length(&run(to, &[100; 80]), 1), 1, "no segmentation");
        assert_eq!(run_length(&run(to, &[1400; 64]), 64), LARGEST_RUN / 1400);
        for change in [
            |transmit: &mut Transmit| transmit.link = LinkId(1),
            |transmit: &mut Transmit| transmit.to.set_port(10),
            |transmit: &mut Transmit| transmit.from = Some(Ipv4Addr::LOCALHOST.into()),
            |transmit: &mut Transmit| transmit.traffic_class = 46 << 2,
            |transmit: &mut Transmit| transmit.range = transmit.range.start + 1..transmit.range.end,
        ] {
            let mut transmits = run(to, &[100, 100, 100]);
            change(&mut transmits[2]);
            assert_eq!(run_length(&transmits, 64), 2);
        }
    }

    /// What a socket receives, as (octets, ECN bits, to).
    fn drain(received: &mut Received, socket: &Socket, counters: &mut Counters) -> Vec<(Vec<u8>, u8, Option<IpAddr>)> {
        let mut all = Vec::new();
        received.read(socket, counters);
        received.hand(LinkId(3), Duration::ZERO, counters, |datagrams, _| {
            all.extend(datagrams.map(|datagram| {
                assert_eq!(datagram.link, LinkId(3));
                (datagram.data.to_vec(), datagram.ecn, datagram.to)
            }));
        });
        all
    }

    #[test]
    fn a_run_arrives_as_the_datagrams_it_was_made_of() {
        let mut received = Received::new();
        for local in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let mut counters = Counters::default();
            let to = Socket::listening((local, 0).into()).expect("a socket to send to");
            let from = Socket::listening((local, 0).into()).expect("a socket to send from");
            let lengths = [100, 100, 100, 40];
            let bytes: Vec<u8> = (0..340u16).map(|byte| byte as u8).collect();
            from.send(&bytes, &run(to.local(), &lengths), &mut counters);
            // Loopback delivers within the call that sends.
            let all = drain(&mut received, &to, &mut counters);
            assert_eq!(all.iter().map(|(data, ..)| data.len()).collect::<Vec<_>>(), lengths);
            assert_eq!(all.iter().flat_map(|(data, ..)| data.clone()).collect::<Vec<u8>>(), bytes);
            assert!(all.iter().all(|&(_, ecn, to)| ecn == 2 && to == Some(local)), "{all:?}");
            let expected = Counters { udp_sent: 4, udp_received: 4, ..Counters::default() };
            assert_eq!(counters, expected);
            assert!(drain(&mut received, &to, &mut counters).is_empty());
            from.send(&[], &run(to.local(), &[0]), &mut counters);
            assert_eq!(drain(&mut received, &to, &mut counters), [(vec![], 2, Some(local))]);
        }
    }

    #[test]
    fn what_cannot_be_sent_is_counted_by_its_cause() {
        let mut counters = Counters::default();
        let from = Socket::listening((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
        // Nothing leads from a loopback address to the outside.
        from.send(&[0; 200], &run(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)), &[100, 100]), &mut counters);
        let lost = counters.udp_unreachable + counters.udp_other_errors + counters.udp_forbidden;
        assert_eq!((lost, counters.udp_sent), (2, 0), "{counters:?}");
        for (errno, expected) in [
            (libc::ENETUNREACH, Counters { udp_unreachable: 1, ..Counters::default() }),
            (libc::EAGAIN, Counters { udp_queue_full: 1, ..Counters::default() }),
            (libc::ENOBUFS, Counters { udp_queue_full: 1, ..Counters::default() }),
            (libc::EMSGSIZE, Counters { udp_too_large: 1, ..Counters::default() }),
            (libc::EPERM, Counters { udp_forbidden: 1, ..Counters::default() }),
            (libc::EIO, Counters { udp_other_errors: 1, ..Counters::default() }),
        ] {
            let mut counters = Counters::default();
            counters.note_send_error(&io::Error::from_raw_os_error(errno), 1);
            assert_eq!(counters, expected);
        }
    }

    #[test]
    fn a_links_sockets_are_replaced_and_the_wait_follows() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll set");
        let mut sockets = Sockets::new(epoll.try_clone().expect("its copy"));
        let open = || Socket::listening((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
        let (first, second) = (open(), open());
        let (old, new) = (first.local(), second.local());
        sockets.replace(LinkId(2), [first]).expect("a first socket");
        sockets.replace(LinkId(2), [second]).expect("another one");
        assert_eq!((sockets.local(LinkId(2), false), sockets.local(LinkId(2), true)), (Some(new), None));
        let sender = open();
        let mut counters = Counters::default();
        for to in [old, new] {
            sender.send(&[1; 10], &run(to, &[10]), &mut counters);
        }
        let mut ready = Vec::with_capacity(8);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut ready), Some(&at_once)).expect("no wait");
        let tokens: Vec<u64> = ready.iter().map(|event| event.data.u64()).collect();
        assert_eq!(tokens.len(), 1);
        let (link, socket) = sockets.by_token(tokens[0]).expect("its socket");
        assert_eq!((link, socket.local()), (LinkId(2), new));
        sockets.replace(LinkId(2), None).expect("none");
        assert!(sockets.by_token(tokens[0]).is_none());
    }
}
