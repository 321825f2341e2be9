//! Echo requests (RFC 792, RFC 4443 section 4) and their answers.

use super::account::{Arrival, Schedule, account, count_tail};
use super::clock::{Clock, Nanos};
use super::live::Cell;
use super::packet::checksum;
use super::payload::Header;
use super::{EndResult, Ping, PingResult};
use rustix::event::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Octets before an echo's payload.
const ICMP_HEADER: usize = 8;

/// Sends echo requests and takes their answers.
pub(crate) struct Pinger {
    pub(crate) id: u32,
    pub(crate) ping: Ping,
    pub(crate) remote: IpAddr,
    pub(crate) socket: Socket,
    pub(crate) schedule: Schedule,
    pub(crate) cell: Arc<Cell>,
}

impl Pinger {
    pub(crate) fn new(id: u32, remote: IpAddr, ping: &Ping, schedule: Schedule, cell: Arc<Cell>) -> io::Result<Self> {
        let (domain, protocol) =
            if remote.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        Ok(Pinger { id, ping: ping.clone(), remote, socket, schedule, cell })
    }

    /// Sends until the stop and receives until `end`.
    pub(crate) fn run(mut self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        let to = SocketAddr::new(self.remote, 0).into();
        let total = self.schedule.total();
        let mut arrivals = Vec::new();
        let mut next = 0;
        loop {
            let until = if next < total { self.schedule.due(next) } else { end };
            if clock.wait(&self.socket, PollFlags::IN, until)? {
                self.receive(clock, total, &mut arrivals)?;
            }
            let now = clock.now();
            if next < total && now >= self.schedule.due(next) {
                // Refused requests are lost ones: the schedule counts them as sent.
                let _ = self.socket.send_to(&self.request(next, now), &to);
                next += 1;
            } else if next >= total && now >= end {
                break;
            }
        }
        let (mut flow, highest) = account(&arrivals, &self.schedule);
        count_tail(&mut flow, highest, total, &self.schedule);
        let Ping { name, from, to, .. } = self.ping;
        Ok(EndResult::Ping(PingResult { name, from, to, sent: total, flow }))
    }

    /// The echo identifier: the low half of the stream's number.
    fn identifier(&self) -> [u8; 2] {
        (self.id as u16).to_be_bytes()
    }

    fn request(&self, number: u64, now: Nanos) -> Vec<u8> {
        let mut message = vec![0; ICMP_HEADER + self.ping.size];
        message[0] = if self.remote.is_ipv4() { 8 } else { 128 };
        message[4..6].copy_from_slice(&self.identifier());
        message[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        Header { stream: self.id, number, sent: now }.write(&mut message[ICMP_HEADER..]);
        if self.remote.is_ipv4() {
            // For ICMPv6 the kernel fills it in, which knows the pseudo-header (RFC 3542, section 3.1).
            let sum = checksum(0, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// Takes all answers that are there. A raw socket sees every ICMP message to this host: others' are passed over.
    fn receive(&mut self, clock: Clock, total: u64, arrivals: &mut Vec<Arrival>) -> io::Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let n = match (&self.socket).read(&mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let at = clock.now();
            // An IPv4 raw socket hands out the IP header too.
            let skip = if self.remote.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let Some(message) = buffer[..n].get(skip..).filter(|m| m.len() > ICMP_HEADER) else { continue };
            let reply = if self.remote.is_ipv4() { 0 } else { 129 };
            if message[0] != reply || message[4..6] != self.identifier() {
                continue;
            }
            if let Some(header) = Header::read(&message[ICMP_HEADER..])
                && header.stream == self.id
                && header.number < total
            {
                arrivals.push(Arrival { at, number: header.number, delay: at - header.sent });
                self.cell.arrived(at, header.number, 1);
            }
        }
    }
}
