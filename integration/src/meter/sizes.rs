//! A sweep of packet sizes: which sizes arrive, of which the sender is told that they are too big, and which vanish.
//!
//! Each packet goes out whole, whatever the kernel has learnt of the path (IP_PMTUDISC_PROBE), so that each size is
//! tried on the wire and an answer to one says nothing of another. What comes back is read from the socket's error
//! queue: ICMP errors with the packet that they quote, and the own kernel's refusals.

use super::account::{Arrival, Schedule};
use super::clock::{Clock, Nanos, millis};
use super::payload::{HEADER, Header};
use super::udp::{Receiver, bind};
use super::{EndResult, Family, Hole, SizeResult, Sizes, SizesResult, Told};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use socket2::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// An own refusal is tried so often: each time, an error that had come for an earlier packet may have been in the way.
const TRIES: usize = 4;

impl Sizes {
    /// Octets of IP and UDP header before the payload.
    pub(crate) fn headers(&self) -> usize {
        match self.family {
            Family::V4 => 20 + 8,
            Family::V6 => 40 + 8,
        }
    }

    /// The least size in which the meter's own header fits.
    pub(crate) fn least(&self) -> usize {
        self.headers() + HEADER
    }

    /// How many sizes there are.
    pub(crate) fn count(&self) -> u64 {
        ((self.largest - self.smallest) / self.step + 1) as u64
    }

    /// The size of packet `number`: one of each size in turn, and again.
    pub(crate) fn size_of(&self, number: u64) -> usize {
        self.smallest + (number % self.count()) as usize * self.step
    }
}

/// Sends the sweep.
pub(crate) struct Sweeper {
    id: u32,
    socket: Socket,
    remote: SocketAddr,
    sizes: Sizes,
    schedule: Schedule,
}

/// What an error queue had.
enum Heard {
    /// A packet of ours is too big for a link of that MTU on its way.
    TooBig { number: u64, mtu: u32 },
    /// The own kernel does not send what it was just given: its link has that MTU.
    Refused { mtu: u32 },
    /// Something else.
    Other,
}

impl Sweeper {
    pub(crate) fn new(
        id: u32,
        local: SocketAddr,
        remote: SocketAddr,
        sizes: Sizes,
        schedule: Schedule,
    ) -> io::Result<Self> {
        let socket = bind(local)?;
        if local.is_ipv4() {
            let discovery = if sizes.fragmentable { Ipv4PathMtuDiscovery::DONT } else { Ipv4PathMtuDiscovery::PROBE };
            set_ip_mtu_discover(&socket, discovery)?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        Ok(Sweeper { id, socket, remote, sizes, schedule })
    }

    pub(crate) fn run(self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        let mut payload = vec![0; self.sizes.largest - self.sizes.headers()];
        let mut told = BTreeMap::new();
        let total = self.schedule.total();
        for number in 0..total {
            clock.sleep_until(self.schedule.due(number));
            self.hear(&mut told, None)?;
            let payload = &mut payload[..self.sizes.size_of(number) - self.sizes.headers()];
            Header { stream: self.id, number, sent: clock.now() }.write(payload);
            for _ in 0..TRIES {
                let sent = self.socket.send_to(payload, &self.remote.into());
                // An error may also be that of an earlier packet, which the kernel reports in place of sending this one.
                if sent.is_ok() || self.hear(&mut told, Some(number))? {
                    break;
                }
            }
        }
        clock.sleep_until(end);
        self.hear(&mut told, None)?;
        let told = told.into_iter().map(|(number, mtu)| Told { number, mtu }).collect();
        Ok(EndResult::Swept { id: self.id, sent: total, told })
    }

    /// Empties the error queue. Whether the own kernel refused a packet, which then was number `now`.
    fn hear(&self, told: &mut BTreeMap<u64, u32>, now: Option<u64>) -> io::Result<bool> {
        let mut refused = false;
        while let Some(heard) = self.next_error()? {
            match (heard, now) {
                (Heard::TooBig { number, mtu }, _) => drop(told.insert(number, mtu)),
                (Heard::Refused { mtu }, Some(number)) => {
                    told.insert(number, mtu);
                    refused = true;
                }
                (Heard::Refused { .. } | Heard::Other, _) => {}
            }
        }
        Ok(refused)
    }

    fn next_error(&self) -> io::Result<Option<Heard>> {
        // What an error quotes of a packet begins with our payload; only its header is wanted.
        let mut quote = [0; HEADER];
        let mut control = nix::cmsg_space!([u8; 128]);
        let mut slices = [IoSliceMut::new(&mut quote)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags)
        {
            Ok(message) => message,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let error = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _) => Some(error),
            ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error),
            _ => None,
        });
        let length = message.bytes;
        Ok(Some(match error {
            Some(e) if e.ee_errno != libc::EMSGSIZE as u32 => Heard::Other,
            Some(e) if e.ee_origin == libc::SO_EE_ORIGIN_LOCAL => Heard::Refused { mtu: e.ee_info },
            Some(e) => match Header::peek(&quote[..length.min(HEADER)]) {
                Some(header) if header.stream == self.id => Heard::TooBig { number: header.number, mtu: e.ee_info },
                _ => Heard::Other,
            },
            None => Heard::Other,
        }))
    }
}

/// Receives the sweep until `end`.
pub(crate) fn receive(id: u32, receiver: &Receiver, clock: Clock, end: Nanos) -> io::Result<EndResult> {
    let arrivals = receiver.collect(clock, end)?;
    let numbers: BTreeSet<u64> = arrivals.packets.iter().map(|a: &Arrival| a.number).collect();
    Ok(EndResult::SweepReceived { id, arrived: numbers.into_iter().collect(), misdelivered: arrivals.misdelivered })
}

/// Both ends' figures joined.
pub(crate) fn join(
    id: u32,
    sizes: &Sizes,
    schedule: &Schedule,
    (sent, told): (u64, Vec<Told>),
    (arrived, misdelivered): (Vec<u64>, u64),
) -> SizesResult {
    let arrived: BTreeSet<u64> = arrived.into_iter().collect();
    let told: BTreeMap<u64, u32> = told.into_iter().map(|t| (t.number, t.mtu)).collect();
    let mut rows: BTreeMap<usize, SizeResult> = BTreeMap::new();
    let mut holes = Vec::new();
    for number in 0..sent {
        let size = sizes.size_of(number);
        let row = rows.entry(size).or_insert_with(|| SizeResult { size, ..SizeResult::default() });
        row.sent += 1;
        if arrived.contains(&number) {
            row.arrived += 1;
        } else if let Some(&mtu) = told.get(&number) {
            row.told += 1;
            row.told_mtu = Some(row.told_mtu.map_or(mtu, |known| known.min(mtu)));
        } else {
            holes.push(Hole { at_ms: millis(schedule.due(number)), size });
        }
    }
    SizesResult {
        name: sizes.name.clone(),
        id,
        from: sizes.from.clone(),
        to: sizes.to.clone(),
        sent,
        misdelivered,
        sizes: rows.into_values().collect(),
        holes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep() -> Sizes {
        let json = serde_json::json!({
            "name": "s", "from": "a", "to": "b", "rate": 100.0, "smallest": 1372, "largest": 1384, "step": 4,
        });
        serde_json::from_value(json).expect("the entry is right")
    }

    #[test]
    fn each_packet_arrived_was_too_big_or_vanished() {
        let schedule = Schedule { start: 0, stop: 90_000_000, rate: 100.0 };
        // Sizes 1372, 1376, 1380, 1384 twice, then 1372: 5 (of 1376) vanishes, 3 and 7 are too big.
        let told = vec![Told { number: 3, mtu: 1380 }, Told { number: 7, mtu: 1300 }, Told { number: 4, mtu: 9 }];
        let result = join(1, &sweep(), &schedule, (9, told), (vec![0, 1, 2, 4, 6, 8], 0));
        let row = |size, sent, arrived, told, told_mtu| SizeResult { size, sent, arrived, told, told_mtu };
        assert_eq!(
            result.sizes,
            [
                row(1372, 3, 3, 0, None),
                row(1376, 2, 1, 0, None),
                row(1380, 2, 2, 0, None),
                row(1384, 2, 0, 2, Some(1300))
            ]
        );
        assert_eq!(result.holes, [Hole { at_ms: 50.0, size: 1376 }]);
        assert_eq!(result.arrived_up_to(), Some(1372), "1376 vanished once");
    }
}
