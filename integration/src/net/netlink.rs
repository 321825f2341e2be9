//! What a run changes most while it is measured, as netlink messages from the running process: a netem queue, an
//! interface's administrative state, its MTU. Spawning `tc` or `ip` there would stall a User-Mode-Linux guest for 20 ms
//! and show up in the result. And what neither can do.

use super::Netem;
use super::netns::Namespace;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

// linux/netlink.h, linux/rtnetlink.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NEW_IFINDEX: u16 = 49;
const RTM_NEWQDISC: u16 = 36;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
// linux/pkt_sched.h
const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_CORR: u16 = 1;
const TCA_NETEM_REORDER: u16 = 3;
const TCA_NETEM_LOSS: u16 = 5;
const NETEM_LOSS_GE: u16 = 2;
const TCA_NETEM_RATE: u16 = 6;
const TCA_NETEM_ECN: u16 = 7;
const TCA_NETEM_RATE64: u16 = 8;
const TCA_NETEM_LATENCY64: u16 = 10;
const TCA_NETEM_JITTER64: u16 = 11;

// linux/netfilter/nfnetlink_conntrack.h: IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK
const CONNECTIONS_DELETE: u16 = 1 << 8 | 2;

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// rtnetlink: interfaces and queues.
    Route,
    /// nfnetlink: the connections that a NAT knows.
    Netfilter,
}

/// The one handle that our queues have, so that a second message changes the queue instead of replacing it: packets
/// under way in it stay under way, as they would on a wire.
const HANDLE: u32 = 1 << 16;

/// Fast enough to add nothing (0.001 ms for a full packet), and a rate at all is what makes netem keep packets in order
/// under jitter.
const ORDERING_RATE: u64 = 10_000_000_000;

/// A netlink socket in a namespace; usable from any thread.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Mutex<u32>,
}

impl Netlink {
    /// Opens one in the namespace.
    pub fn open(namespace: &Namespace, protocol: Protocol) -> io::Result<Self> {
        let protocol = match protocol {
            Protocol::Route => None, // its number is 0
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let socket = namespace.enter(|| {
            let socket =
                rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
            Ok::<_, io::Error>(socket)
        })??;
        Ok(Netlink { socket, sequence: Mutex::new(0) })
    }

    /// Sets what happens to packets that leave by the interface.
    pub fn set_netem(&self, interface: &str, netem: &Netem) -> io::Result<()> {
        let mut message = Vec::with_capacity(256);
        message.extend([0; 4]); // tcmsg: family, padding
        message.extend(self.index(interface)?.to_ne_bytes());
        for word in [HANDLE, TC_H_ROOT, 0] {
            message.extend(word.to_ne_bytes());
        }
        attribute(&mut message, TCA_KIND, b"netem\0");
        attribute(&mut message, TCA_OPTIONS, &options(netem));
        self.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &message)
    }

    /// Takes an interface up or down; of a veth pair, the other end loses or gains carrier.
    pub fn set_up(&self, interface: &str, up: bool) -> io::Result<()> {
        let mut message = Vec::with_capacity(16);
        message.extend([0; 4]); // ifinfomsg: family, padding, type
        message.extend(self.index(interface)?.to_ne_bytes());
        message.extend(if up { IFF_UP } else { 0 }.to_ne_bytes());
        message.extend(IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &message)
    }

    /// Moves an interface to another namespace, where it has the number `index`, or the one it has here.
    pub(super) fn move_to(&self, interface: &str, to: &Namespace, index: Option<u32>) -> io::Result<()> {
        let mut message = Vec::with_capacity(32);
        message.extend([0; 4]); // ifinfomsg: family, padding, type
        message.extend(self.index(interface)?.to_ne_bytes());
        message.extend([0; 8]); // no flag is changed
        attribute(&mut message, IFLA_NET_NS_FD, &to.as_fd().as_raw_fd().to_ne_bytes());
        if let Some(index) = index {
            attribute(&mut message, IFLA_NEW_IFINDEX, &index.to_ne_bytes());
        }
        self.request(RTM_NEWLINK, 0, &message)
    }

    /// Has the namespace forget all connections, and so all mappings of its NAT. A message of [`Protocol::Netfilter`].
    pub(super) fn forget_connections(&self) -> io::Result<()> {
        self.request(CONNECTIONS_DELETE, 0, &[0; 4]) // nfgenmsg: any family
    }

    /// Sets an interface's MTU.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> io::Result<()> {
        let mut message = Vec::with_capacity(24);
        message.extend([0; 4]); // ifinfomsg: family, padding, type
        message.extend(self.index(interface)?.to_ne_bytes());
        message.extend([0; 8]); // no flags, none changed
        attribute(&mut message, IFLA_MTU, &mtu.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &message)
    }

    fn index(&self, interface: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, interface)?)
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut sequence = self.sequence.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *sequence += 1;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        loop {
            let mut answer = [0u8; 4096];
            let (length, _) = rustix::net::recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
            let word = |at: usize| answer[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
            if length >= 20 && u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR && word(8) == *sequence {
                // The error is a negative errno, 0 for success.
                let errno = (word(16) as i32).wrapping_neg();
                return if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) };
            }
        }
    }
}

/// TCA_OPTIONS of a netem queue: `tc_netem_qopt`, then attributes. All of them always, because what a change leaves out
/// keeps its old value.
fn options(netem: &Netem) -> Vec<u8> {
    let nanos = |time: crate::meter::Span| i64::try_from(time.nanos()).unwrap_or(i64::MAX);
    // Chances are shares of 2^32; all of them is all.
    let share = |of: f64| (of.clamp(0.0, 1.0) * f64::from(u32::MAX)).round() as u32;
    let loss = share(netem.loss);
    let rate = match netem.rate.map(|rate| rate.0) {
        Some(rate) => rate,
        None if netem.ordered => ORDERING_RATE,
        None => 0,
    } / 8;
    let mut out = Vec::with_capacity(128);
    for word in [0, netem.limit, loss, 0, 0, 0] {
        out.extend(word.to_ne_bytes()); // latency, limit, loss, gap, duplicate, jitter
    }
    attribute(&mut out, TCA_NETEM_CORR, &[0; 12]);
    attribute(&mut out, TCA_NETEM_REORDER, &[0; 8]);
    // Left out, loss is by each packet alone again.
    if let Some(bursts) = &netem.bursts {
        let mut model = Vec::with_capacity(20);
        let mut chances = Vec::with_capacity(16);
        // tc_netem_gemodel: to bad, to good; passes while bad, is lost while good.
        for word in [share(bursts.to_bad), share(bursts.to_good), 0, 0] {
            chances.extend(word.to_ne_bytes());
        }
        attribute(&mut model, NETEM_LOSS_GE, &chances);
        attribute(&mut out, TCA_NETEM_LOSS, &model);
    }
    let mut bytes = [0; 16]; // rate, packet overhead, cell size, cell overhead
    bytes[..4].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    if rate > u64::from(u32::MAX) {
        attribute(&mut out, TCA_NETEM_RATE64, &rate.to_ne_bytes());
    }
    attribute(&mut out, TCA_NETEM_RATE, &bytes);
    attribute(&mut out, TCA_NETEM_ECN, &u32::from(netem.ecn).to_ne_bytes());
    attribute(&mut out, TCA_NETEM_LATENCY64, &nanos(netem.delay).to_ne_bytes());
    attribute(&mut out, TCA_NETEM_JITTER64, &nanos(netem.jitter).to_ne_bytes());
    out
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}
