//! Many routes at once: a table of a million is written in seconds.
//!
//! rtnetlink's requests are answered one by one, each a message there, a message back and a task woken: that is the rest of
//! the program's way, and right for some hundred routes. Here some hundred messages go in one call, and only the last asks
//! for an answer: the kernel works through them in order within that call, and speaks up for each that it refuses.
//!
//! ```text
//! | nlmsghdr 16 | rtmsg 12 | RTA_DST | RTA_TABLE | RTA_PRIORITY | RTA_NH_ID |     RTM_NEWROUTE, 60 octets for IPv4
//! | nlmsghdr 16 | nhmsg 8 | NHA_ID | NHA_OIF | NHA_GATEWAY |                      RTM_NEWNEXTHOP
//! ```
//!
//! Routes name next-hop objects (ip-nexthop(8), Linux 5.3), which carry a number of their owner as routes do: with the
//! objects, the kernel removes the routes. Everything here blocks its thread, for some milliseconds.

use ipnet::IpNet;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How much is sent in one call: some 270 messages. If each is refused, with up to a kilobyte of the kernel's memory, the
/// answers still fit the buffer that every socket has (212,992 octets, of which the kernel counts each twice).
const BATCH: usize = 16 * 1024;
/// Dumps come in pieces of up to this size.
const ANSWERS: usize = 64 * 1024;

const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
const NLM_F_REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// linux/rtnetlink.h; libc does not have them.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// linux/nexthop.h.
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// linux/rtnetlink.h.
const RTA_NH_ID: u16 = 30;
/// The kernel's header before every message.
const HEADER: usize = 16;

/// A message that the kernel has refused.
#[derive(Debug)]
pub struct Refused {
    /// Its place among those put since the last [`Fib::commit`], from 0.
    pub place: usize,
    /// Why.
    pub cause: io::Error,
}

/// How packets get to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The next router on the way; none if the address is on the link.
    pub via: Option<IpAddr>,
    /// The interface, by its number.
    pub interface: u32,
}

/// A connection to the kernel for many routes of one owner.
pub struct Fib {
    socket: Socket,
    protocol: u8,
    /// Sequence number of the next message.
    sequence: u32,
    /// Messages that wait to be sent.
    batch: Vec<u8>,
    /// Where the last of them begins.
    last: usize,
    /// The number of the first message since the last commit.
    first: u32,
    refused: Vec<Refused>,
    answers: Vec<u8>,
}

impl Fib {
    /// Connects. What is made through it carries `protocol`, by which it is known again.
    pub fn open(protocol: u8) -> io::Result<Fib> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Refusals without a copy of what is refused.
        socket.set_cap_ack(true)?;
        // The kernel honours a dump's filters only with this.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Fib {
            socket,
            protocol,
            sequence: 1,
            batch: Vec::with_capacity(BATCH),
            last: 0,
            first: 1,
            refused: Vec::new(),
            answers: Vec::with_capacity(ANSWERS),
        })
    }

    /// Makes a next-hop object, or turns it and with it all its routes.
    pub fn set_object(&mut self, id: u32, gateway: IpAddr, interface: u32) -> io::Result<()> {
        self.begin(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE)?;
        self.batch.extend_from_slice(&[family(gateway), 0, self.protocol, 0, 0, 0, 0, 0]);
        self.attribute(NHA_ID, &id.to_ne_bytes());
        self.attribute(NHA_OIF, &interface.to_ne_bytes());
        self.address(NHA_GATEWAY, gateway);
        self.end();
        Ok(())
    }

    /// Removes an object, and all routes that name it. One that has gone already is no error.
    pub fn remove_object(&mut self, id: u32) -> io::Result<()> {
        self.begin(RTM_DELNEXTHOP, 0)?;
        self.batch.extend_from_slice(&[0; 8]);
        self.attribute(NHA_ID, &id.to_ne_bytes());
        self.end();
        Ok(())
    }

    /// Makes a route that names an object, or has it name another.
    pub fn set_route(&mut self, table: u32, prefix: IpNet, metric: u32, object: u32) -> io::Result<()> {
        self.begin(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)?;
        self.route(table, prefix, metric, Some(object));
        Ok(())
    }

    /// Removes a route. One that has gone already is no error.
    pub fn remove_route(&mut self, table: u32, prefix: IpNet, metric: u32) -> io::Result<()> {
        self.begin(libc::RTM_DELROUTE, 0)?;
        self.route(table, prefix, metric, None);
        Ok(())
    }

    /// ```text
    /// | family | destination length | source length | TOS | table | protocol | scope | type | flags, 4 octets |
    /// ```
    fn route(&mut self, table: u32, prefix: IpNet, metric: u32, object: Option<u32>) {
        let family = family(prefix.addr());
        let kind = if object.is_some() { libc::RTN_UNICAST } else { libc::RTN_UNSPEC };
        // A removal fits any scope.
        let scope = if object.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_NOWHERE };
        let header = [family, prefix.prefix_len(), 0, 0, libc::RT_TABLE_UNSPEC, self.protocol, scope, kind, 0, 0, 0, 0];
        self.batch.extend_from_slice(&header);
        self.address(libc::RTA_DST, prefix.network());
        self.attribute(libc::RTA_TABLE, &table.to_ne_bytes());
        self.attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes());
        if let Some(object) = object {
            self.attribute(RTA_NH_ID, &object.to_ne_bytes());
        }
        self.end();
    }

    /// Sends what waits, and tells what was refused of all that was put since the last call.
    pub fn commit(&mut self) -> io::Result<Vec<Refused>> {
        self.send()?;
        self.first = self.sequence;
        Ok(std::mem::take(&mut self.refused))
    }

    fn begin(&mut self, kind: u16, flags: u16) -> io::Result<()> {
        // A message takes less than 128 octets.
        if self.batch.len() + 128 > BATCH {
            self.send()?;
        }
        self.last = self.batch.len();
        self.batch.extend_from_slice(&0u32.to_ne_bytes());
        self.batch.extend_from_slice(&kind.to_ne_bytes());
        self.batch.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.batch.extend_from_slice(&self.sequence.to_ne_bytes());
        self.batch.extend_from_slice(&0u32.to_ne_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    /// Type and value, filled up to a multiple of four octets.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.batch.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.batch.extend_from_slice(&kind.to_ne_bytes());
        self.batch.extend_from_slice(value);
        self.batch.resize(self.batch.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    fn end(&mut self) {
        let length = (self.batch.len() - self.last) as u32;
        self.batch[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn send(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let flags = self.last + 6;
        let asked = u16::from_ne_bytes([self.batch[flags], self.batch[flags + 1]]) | NLM_F_ACK;
        self.batch[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        let sent = self.socket.send(&self.batch, 0);
        self.batch.clear();
        sent?;
        let last = self.sequence.wrapping_sub(1);
        let (first, mut refused) = (self.first, std::mem::take(&mut self.refused));
        let result = self.answers(last, |message| {
            if let Some(cause) = message.error().filter(|cause| !is_gone(cause)) {
                refused.push(Refused { place: message.sequence.wrapping_sub(first) as usize, cause });
            }
        });
        self.refused = refused;
        result
    }

    /// Reads answers until the one to message `last` is there.
    fn answers(&mut self, last: u32, mut each: impl FnMut(&Message)) -> io::Result<()> {
        loop {
            self.answers.clear();
            self.socket.recv(&mut self.answers, 0)?;
            let mut rest = &self.answers[..];
            while let Some((message, behind)) = Message::read(rest) {
                each(&message);
                rest = behind;
                if message.sequence == last && matches!(message.kind, NLMSG_ERROR | NLMSG_DONE) {
                    return Ok(());
                }
            }
        }
    }

    /// The next-hop objects of this owner.
    pub fn objects(&mut self) -> io::Result<BTreeSet<u32>> {
        let sequence = self.question(RTM_GETNEXTHOP, NLM_F_DUMP, &[0; 8], None)?;
        let (mut objects, protocol) = (BTreeSet::new(), self.protocol);
        let mut failed = None;
        self.answers(sequence, |message| match message.kind {
            // | family | scope | protocol | reserved | flags, 4 octets |
            RTM_NEWNEXTHOP if message.body.get(2) == Some(&protocol) => {
                objects.extend(message.number(8, NHA_ID));
            }
            _ => failed = message.error(),
        })?;
        failed.map_or(Ok(objects), Err)
    }

    /// Removes all objects of this owner, and with them all routes: what a killed daemon left. Tells how many.
    pub fn sweep(&mut self) -> io::Result<usize> {
        let objects = self.objects()?;
        for object in &objects {
            self.remove_object(*object)?;
        }
        match self.commit()?.into_iter().next() {
            Some(refused) => Err(refused.cause),
            None => Ok(objects.len()),
        }
    }

    /// How this host's own packets get to an address; nothing if they do not, or by an interface without carrier.
    pub fn hop(&mut self, to: IpAddr) -> io::Result<Option<Hop>> {
        let bits = if to.is_ipv4() { 32 } else { 128 };
        let header = [family(to), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let sequence = self.question(libc::RTM_GETROUTE, NLM_F_ACK, &header, Some((libc::RTA_DST, to)))?;
        let mut hop = None;
        self.answers(sequence, |message| {
            if message.kind == libc::RTM_NEWROUTE && message.body.get(7) == Some(&libc::RTN_UNICAST) {
                let via = message.attribute(12, libc::RTA_GATEWAY).and_then(address);
                hop = message.number(12, libc::RTA_OIF).map(|interface| Hop { via, interface });
            }
        })?;
        match hop {
            Some(hop) if self.runs(hop.interface)? => Ok(Some(hop)),
            _ => Ok(None),
        }
    }

    /// Is the interface up, with carrier?
    fn runs(&mut self, interface: u32) -> io::Result<bool> {
        // | family | padding | type, 2 octets | index, 4 octets | flags, 4 octets | change, 4 octets |
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&interface.to_ne_bytes());
        let sequence = self.question(libc::RTM_GETLINK, NLM_F_ACK, &header, None)?;
        let wanted = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
        let mut runs = false;
        self.answers(sequence, |message| {
            if let (libc::RTM_NEWLINK, Some(flags)) = (message.kind, message.body.get(8..12)) {
                runs = flags.try_into().is_ok_and(|flags| u32::from_ne_bytes(flags) & wanted == wanted);
            }
        })?;
        Ok(runs)
    }

    /// Asks something, after all that waits has been sent.
    fn question(&mut self, kind: u16, flags: u16, header: &[u8], about: Option<(u16, IpAddr)>) -> io::Result<u32> {
        self.send()?;
        self.begin(kind, flags)?;
        self.batch.extend_from_slice(header);
        if let Some((kind, address)) = about {
            self.address(kind, address);
        }
        self.end();
        let sent = self.socket.send(&self.batch, 0);
        self.batch.clear();
        sent?;
        // A question is none of what is committed.
        self.first = self.sequence;
        Ok(self.sequence.wrapping_sub(1))
    }
}

/// What is to be removed and is not there needs no removing.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// A message of the kernel's.
///
/// ```text
/// | length, 4 octets | type, 2 | flags, 2 | sequence, 4 | port, 4 | body, filled up to a multiple of four octets
/// ```
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn read(octets: &'a [u8]) -> Option<(Message<'a>, &'a [u8])> {
        let header = octets.get(..HEADER)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let body = octets.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        Some((Message { kind, sequence, body }, octets.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }

    /// The error that it tells, if it does. 0 stands for none.
    fn error(&self) -> Option<io::Error> {
        let number = i32::from_ne_bytes(self.body.get(..4)?.try_into().ok()?);
        (self.kind == NLMSG_ERROR && number != 0).then(|| io::Error::from_raw_os_error(-number))
    }

    /// An attribute's value, behind a header of so many octets.
    fn attribute(&self, header: usize, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = self.body.get(header..)?;
        loop {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
            let value = rest.get(4..length)?;
            if kind == wanted {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }

    fn number(&self, header: usize, wanted: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.attribute(header, wanted)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_by_their_lengths_and_no_further() {
        let mut octets = vec![0; 40];
        octets[..4].copy_from_slice(&36u32.to_ne_bytes());
        octets[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        octets[8..12].copy_from_slice(&7u32.to_ne_bytes());
        octets[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        let (message, rest) = Message::read(&octets).expect("it is whole");
        assert_eq!((message.sequence, rest.len()), (7, 4));
        assert_eq!(message.error().and_then(|error| error.raw_os_error()), Some(libc::EEXIST));
        assert!(Message::read(rest).is_none(), "less than a header");
        assert!(Message::read(&octets[..35]).is_none(), "cut off");
        for length in [0u32, 15] {
            octets[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(Message::read(&octets).is_none(), "less than its own header");
        }
    }

    #[test]
    fn attributes_that_overrun_are_none() {
        let body = [8, 0, 1, 0, 1, 2, 3, 4, 5, 0, 2, 0, 9, 0, 0, 0, 9, 0, 3, 0];
        let message = Message { kind: 0, sequence: 0, body: &body };
        assert_eq!(message.attribute(0, 1), Some(&[1, 2, 3, 4][..]));
        assert_eq!(message.attribute(0, 2), Some(&[9][..]));
        assert_eq!(message.attribute(0, 3), None, "longer than the message");
        let message = Message { body: &[0, 0, 1, 0], ..message };
        assert_eq!(message.attribute(0, 2), None, "an attribute without length ends the search");
    }
}
