//! What a node has produced: datagrams to send and packets to deliver, in buffers that are used again.
//!
//! Owned by the caller and lent to each call of [`crate::Node`], which only appends. The caller sends and delivers what
//! is in it, then clears it. Nothing is allocated once the buffers have grown to the size of a batch.

use crate::LinkId;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// A datagram to send. Its bytes are in [`Output::bytes`]; consecutive ones with the same `link`, `to`, `from` and
/// `traffic_class` lie side by side there, so that a run of equal lengths can go out in one GSO call as it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The way out of this host.
    pub link: LinkId,
    /// Where to.
    pub to: SocketAddr,
    /// The local address to send from; `None`: the socket's own.
    pub from: Option<IpAddr>,
    /// The octet of the outer header with its DSCP and its ECN field: see [`crate::outer`].
    pub traffic_class: u8,
    /// Where it lies in [`Output::bytes`].
    pub range: Range<usize>,
}

/// Buffers for datagrams to send and packets to deliver.
#[derive(Debug)]
pub struct Output {
    /// The datagrams' bytes; only the first `used` are meaningful.
    arena: Vec<u8>,
    used: usize,
    transmits: Vec<Transmit>,
    /// What was lent last, and is not kept yet.
    lent: Vec<u8>,
    /// Of each TUN, by its place.
    deliveries: Vec<Deliveries>,
    headroom: usize,
}

/// Packets for one TUN, each behind the headroom; only the first `count` are meaningful.
#[derive(Debug, Default)]
struct Deliveries {
    packets: Vec<Vec<u8>>,
    count: usize,
}

impl Output {
    /// Buffers whose packets for a TUN have `headroom` bytes in front (for a virtio header).
    pub fn new(headroom: usize) -> Self {
        Output {
            arena: Vec::new(),
            used: 0,
            transmits: Vec::new(),
            lent: Vec::new(),
            deliveries: vec![Deliveries::default()],
            headroom,
        }
    }

    /// Datagrams to send, in order.
    pub fn transmits(&self) -> &[Transmit] {
        &self.transmits
    }

    /// The bytes that the ranges of [`Transmit`] point into.
    pub fn bytes(&self) -> &[u8] {
        &self.arena[..self.used]
    }

    /// Packets for each TUN, by its place ([`crate::PeerConfig::egress`]), in order, each behind `headroom` bytes. The
    /// caller may change them at will (merge them for GSO, say), but leaves the vector its elements.
    pub fn deliveries(&mut self) -> impl Iterator<Item = &mut [Vec<u8>]> {
        self.deliveries.iter_mut().map(|tun| &mut tun.packets[..tun.count])
    }

    /// Nothing to send and nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.transmits.is_empty() && self.deliveries.iter().all(|tun| tun.count == 0)
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.transmits.clear();
        self.deliveries.iter_mut().for_each(|tun| tun.count = 0);
    }

    /// Lets `fill` write a datagram of at most `max` bytes and say its length and where it goes; `None` sends nothing.
    pub(crate) fn transmit<T>(
        &mut self,
        max: usize,
        traffic_class: u8,
        fill: impl FnOnce(&mut [u8]) -> Option<(usize, Route, T)>,
    ) -> Option<T> {
        if self.arena.len() < self.used + max {
            self.arena.resize((self.used + max).next_power_of_two(), 0);
        }
        let (len, route, result) = fill(&mut self.arena[self.used..self.used + max])?;
        let range = self.used..self.used + len;
        self.used += len;
        self.transmits.push(Transmit { link: route.link, to: route.to, from: route.from, traffic_class, range });
        Some(result)
    }

    /// Sends the datagram sent last to one more address.
    pub(crate) fn repeat(&mut self, to: SocketAddr) {
        if let Some(last) = self.transmits.last().cloned() {
            self.transmits.push(Transmit { to, ..last });
        }
    }

    /// Lends a buffer of `max` bytes for a packet to a TUN; [`Output::deliver`] keeps it, otherwise the next call
    /// lends it again.
    pub(crate) fn lend(&mut self, max: usize) -> &mut [u8] {
        self.lent.resize(self.headroom + max, 0);
        &mut self.lent[self.headroom..]
    }

    /// Keeps the buffer lent last for the TUN at place `egress`, with the packet's `len` bytes at its beginning.
    pub(crate) fn deliver(&mut self, egress: u8, len: usize) {
        let egress = usize::from(egress);
        if self.deliveries.len() <= egress {
            self.deliveries.resize_with(egress + 1, Deliveries::default);
        }
        let Deliveries { packets, count } = &mut self.deliveries[egress];
        if packets.len() == *count {
            packets.push(Vec::new());
        }
        self.lent.truncate(self.headroom + len);
        // What is lent next is a buffer that was used before.
        std::mem::swap(&mut packets[*count], &mut self.lent);
        *count += 1;
    }
}

/// Where a datagram goes: the addressing part of a [`Transmit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The way out of this host.
    pub link: LinkId,
    /// Where to.
    pub to: SocketAddr,
    /// The local address to send from; `None`: the socket's own.
    pub from: Option<IpAddr>,
}
