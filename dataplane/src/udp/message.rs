//! A datagram, or a run of them, for the kernel: its octets, and beside them what sendmsg(2) takes as control messages.
//!
//! quinn-udp, which receives, could send as well, but for the outer DSCP: it sets the whole octet of the header from two bits.

use rustix::io::Errno;
use socket2::{MsgHdr, SockAddr, SockRef};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// What is sent in one call.
pub(super) struct Message<'a> {
    pub(super) to: SocketAddr,
    /// The source address; `None`: the socket's own, or the kernel's choice.
    pub(super) from: Option<IpAddr>,
    /// The octet of the outer header with DSCP and ECN field.
    pub(super) traffic_class: u8,
    pub(super) contents: &'a [u8],
    /// The contents are datagrams of so many octets, of which the last may be shorter, and the kernel or the device cuts them
    /// (udp(7), UDP_SEGMENT); `None`: they are one.
    pub(super) segment: Option<u16>,
}

impl Message<'_> {
    /// Sends it, if the socket has room for it at once.
    pub(super) fn send(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut control = Control::default();
        let class = i32::from(self.traffic_class).to_ne_bytes();
        match self.to {
            SocketAddr::V4(_) => control.add(libc::IPPROTO_IP, libc::IP_TOS, &class),
            SocketAddr::V6(_) => control.add(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
        }
        if let Some(segment) = self.segment {
            control.add(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match self.from {
            // struct in_pktinfo: an interface, this address, and one that only a receiver is told.
            Some(IpAddr::V4(from)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&from.octets());
                control.add(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            // struct in6_pktinfo: this address, and an interface.
            Some(IpAddr::V6(from)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&from.octets());
                control.add(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        let (to, contents) = (SockAddr::from(self.to), [IoSlice::new(self.contents)]);
        let message = MsgHdr::new().with_addr(&to).with_buffers(&contents).with_control(control.written());
        loop {
            match SockRef::from(socket).sendmsg(&message, 0) {
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                sent => return sent.map(|_| ()),
            }
        }
    }
}

/// Control messages, one behind the other (cmsg(3)):
///
/// ```text
/// +----------------+-------+------+-------+---------------------------+
/// | length, a long | level | type | value | up to a multiple of longs |
/// +----------------+-------+------+-------+---------------------------+
/// ```
struct Control {
    room: [u8; Control::ROOM],
    used: usize,
}

impl Default for Control {
    fn default() -> Self {
        Control { room: [0; Control::ROOM], used: 0 }
    }
}

impl Control {
    const LONG: usize = size_of::<usize>();
    const HEADER: usize = Control::LONG + 2 * size_of::<i32>();
    /// A traffic class (4 octets), a segment (2) and an address (20 at most), each with its header.
    const ROOM: usize = 3 * Control::HEADER + 8 + 8 + 24;

    fn add(&mut self, level: i32, kind: i32, value: &[u8]) {
        let len = Self::HEADER + value.len();
        for octets in [&len.to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), value] {
            self.room[self.used..self.used + octets.len()].copy_from_slice(octets);
            self.used += octets.len();
        }
        self.used = self.used.next_multiple_of(Self::LONG);
    }

    fn written(&self) -> &[u8] {
        &self.room[..self.used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use std::io::IoSliceMut;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::fd::AsRawFd;

    #[test]
    fn datagrams_have_the_class_and_the_source_that_they_are_to_have() {
        for local in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let [from, to] = [(); 2].map(|()| UdpSocket::bind((local, 0)).expect("a socket"));
            let options = SockRef::from(&to);
            match local {
                IpAddr::V4(_) => options.set_recv_tos_v4(true).expect("an option"),
                IpAddr::V6(_) => options.set_recv_tclass_v6(true).expect("an option"),
            }
            let to_address = to.local_addr().expect("its address");
            for (traffic_class, segment, from_address) in
                [(46 << 2 | 1, None, None), (3, Some(100), Some(local)), (0, Some(60), None), (0xff, None, Some(local))]
            {
                let message =
                    Message { to: to_address, from: from_address, traffic_class, contents: &[7; 150], segment };
                message.send(&from).expect("room");
                let mut lengths = Vec::new();
                while lengths.iter().sum::<usize>() < 150 {
                    let (mut buffer, mut control) = ([0; 200], nix::cmsg_space!([u8; 64]));
                    let mut slices = [IoSliceMut::new(&mut buffer)];
                    let received = recvmsg::<SockaddrStorage>(
                        to.as_raw_fd(),
                        &mut slices,
                        Some(&mut control),
                        MsgFlags::MSG_DONTWAIT,
                    );
                    let received = received.expect("loopback delivers within the call that sends");
                    lengths.push(received.bytes);
                    let class = received.cmsgs().expect("control messages").find_map(|control| match control {
                        ControlMessageOwned::Ipv4Tos(class) => Some(class),
                        ControlMessageOwned::Ipv6TClass(class) => Some(class as u8),
                        _ => None,
                    });
                    assert_eq!(class, Some(traffic_class), "{local}");
                }
                let expected: &[usize] = match segment {
                    None => &[150],
                    Some(100) => &[100, 50],
                    _ => &[60, 60, 30],
                };
                assert_eq!(lengths, expected);
            }
        }
    }
}
