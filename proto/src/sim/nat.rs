//! The NAT between a box and its core.

use crate::Instant;
use std::net::SocketAddr;
use std::time::Duration;

/// The box's addresses on a link as the core sees them: IPv6 as it is, IPv4 by a NAT.
pub(super) struct Outside {
    pub(super) v4: SocketAddr,
    pub(super) v6: SocketAddr,
    /// The NAT forgets a binding after this long without a datagram from inside.
    pub(super) timeout: Option<Duration>,
    pub(super) last_from_inside: Instant,
}

impl Outside {
    pub(super) fn new(link: usize) -> Self {
        let number = link as u8 + 1;
        Outside {
            v4: SocketAddr::from(([203, 0, 113, number], 40000)),
            v6: SocketAddr::from(([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, number.into()], 40000)),
            timeout: None,
            last_from_inside: Instant::ZERO,
        }
    }

    pub(super) fn forgotten(&self, now: Instant) -> bool {
        self.timeout.is_some_and(|timeout| now.since(self.last_from_inside) >= timeout)
    }

    /// The address that a datagram from inside has outside; a binding that was forgotten is made anew.
    pub(super) fn translate(&mut self, now: Instant, ipv6: bool) -> SocketAddr {
        if ipv6 {
            return self.v6;
        }
        if self.forgotten(now) {
            self.v4.set_port(self.v4.port() + 1);
        }
        self.last_from_inside = now;
        self.v4
    }

    /// Whether a datagram to this address comes in here.
    pub(super) fn lets_in(&self, now: Instant, to: SocketAddr) -> bool {
        to == self.v6 || (to == self.v4 && !self.forgotten(now))
    }
}
