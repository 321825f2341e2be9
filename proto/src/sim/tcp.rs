//! A TCP connection as far as a tunnel can tell: a window that grows and shrinks as CUBIC has it (RFC 9438), in packets that
//! are lost, late, or out of order as RACK sees them (RFC 8985). No handshake, no content, no flow control.

use super::Side;
use super::traffic::{HEADERS, packet};
use crate::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

const MARK: &[u8; 4] = b"tcps";
/// Of an acknowledgement.
const ACK: &[u8; 4] = b"tcpa";

/// Octets of a full packet, and of them of content (IPv4, TCP with time stamps).
const SIZE: usize = 1372;
/// What a full packet carries.
pub const CONTENT: usize = SIZE - 52;

/// RFC 9438, section 4.
const BETA: f64 = 0.7;
const C: f64 = 0.4;

/// RFC 6928.
const FIRST_WINDOW: f64 = 10.0;
/// What Linux lets a receiver have in its buffer: 6 MB.
const MOST_WINDOW: f64 = 4096.0;
/// RFC 6298 has a second, Linux this.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);

/// How a connection fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Octets of content that have arrived.
    pub octets: u64,
    /// Packets sent again.
    pub retransmitted: u64,
    /// Times that the window was cut.
    pub reductions: u64,
    /// Times that nothing came back for so long that all was sent again.
    pub timeouts: u64,
    /// Packets that may be under way now.
    pub window: u64,
}

/// What an acknowledgement says: kept here, since its packet has no room for it.
#[derive(Debug, Default)]
struct Acknowledged {
    numbers: Vec<u64>,
}

/// One connection: its sender and its receiver.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) from: Side,
    id: u32,
    end: Instant,
    // The sender.
    next: u64,
    outstanding: BTreeMap<u64, Instant>,
    again: Vec<u64>,
    window: f64,
    threshold: f64,
    /// The window before the last reduction and after it, and when that was.
    before: f64,
    after: f64,
    reduced_at: Option<Instant>,
    /// What was sent before then is of the last reduction.
    recovery: Instant,
    least_rtt: Option<Duration>,
    smoothed: Duration,
    /// HyStart (RFC 9406, section 4.2): when the round began, the least round trip of its first answers, and how many there were.
    round: (Instant, Duration, u32),
    /// The newest that has arrived was sent then.
    rack: Instant,
    heard: Instant,
    // The receiver.
    received: Vec<bool>,
    unsaid: Vec<u64>,
    acks: Vec<Acknowledged>,
    progress: Progress,
}

impl Connection {
    pub(super) fn new(id: u32, from: Side, now: Instant, end: Instant) -> Self {
        Connection {
            from,
            id,
            end,
            next: 0,
            outstanding: BTreeMap::new(),
            again: Vec::new(),
            window: FIRST_WINDOW,
            threshold: f64::INFINITY,
            before: 0.0,
            after: 0.0,
            reduced_at: None,
            recovery: Instant::ZERO,
            least_rtt: None,
            smoothed: Duration::from_secs(1),
            round: (now, Duration::MAX, 0),
            rack: Instant::ZERO,
            heard: now,
            received: Vec::new(),
            unsaid: Vec::new(),
            acks: Vec::new(),
            progress: Progress::default(),
        }
    }

    /// When [`Connection::on_timeout`] is to be called.
    pub(super) fn deadline(&self) -> Instant {
        self.heard + (self.smoothed * 2).max(LEAST_TIMEOUT)
    }

    /// Nothing has come back for long: all is lost.
    pub(super) fn on_timeout(&mut self, now: Instant) {
        if now < self.deadline() || self.outstanding.is_empty() {
            return;
        }
        self.progress.timeouts += 1;
        self.again.extend(std::mem::take(&mut self.outstanding).into_keys());
        self.reduce(now);
        self.window = 1.0;
        self.heard = now;
    }

    /// The next packet that may be sent now.
    pub(super) fn send(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now >= self.end || self.outstanding.len() as f64 >= self.window.min(MOST_WINDOW) {
            return None;
        }
        if self.outstanding.is_empty() {
            self.heard = now;
        }
        let number = match self.again.pop() {
            Some(number) => {
                self.progress.retransmitted += 1;
                number
            }
            None => {
                self.next += 1;
                self.next - 1
            }
        };
        self.outstanding.insert(number, now);
        Some(marked(self.from, self.id, number, SIZE, MARK))
    }

    /// A packet came to `at`. The acknowledgement that it calls for, if any; RFC 9293 has one for each second packet, and one at
    /// once for what is out of order.
    pub(super) fn arrive(&mut self, at: Side, now: Instant, body: &[u8]) -> Option<Vec<u8>> {
        let number = body.get(8..16)?.iter().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        if body.starts_with(ACK) && at == self.from {
            self.on_acknowledgement(now, number as usize);
            return None;
        }
        if !body.starts_with(MARK) || at == self.from {
            return None;
        }
        let place = number as usize;
        let in_order = place == 0 || self.received.get(place - 1).copied().unwrap_or(false);
        if self.received.len() <= place {
            self.received.resize(place + 1, false);
        }
        if !std::mem::replace(&mut self.received[place], true) {
            self.progress.octets += CONTENT as u64;
        }
        self.unsaid.push(number);
        if in_order && self.unsaid.len() < 2 {
            return None;
        }
        self.acks.push(Acknowledged { numbers: std::mem::take(&mut self.unsaid) });
        Some(marked(self.from.other(), self.id, self.acks.len() as u64 - 1, 52, ACK))
    }

    fn on_acknowledgement(&mut self, now: Instant, number: usize) {
        self.heard = now;
        // Selective acknowledgements repeat what the last ones said (RFC 2018): one that is lost loses nothing.
        for ack in number.saturating_sub(3)..=number {
            for number in std::mem::take(&mut self.acks[ack].numbers) {
                self.on_arrived(now, number);
            }
        }
        // RFC 8985, section 6.2: later ones have arrived, by more than packets may change their order.
        let patience = self.least_rtt.unwrap_or_default() / 4;
        let rack = self.rack;
        let lost = self.outstanding.iter().filter(|(_, sent)| **sent + patience < rack);
        let lost: Vec<(u64, Instant)> = lost.map(|(number, sent)| (*number, *sent)).collect();
        for (number, sent) in lost {
            self.outstanding.remove(&number);
            self.again.push(number);
            if sent >= self.recovery {
                self.reduce(now);
            }
        }
        self.again.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn on_arrived(&mut self, now: Instant, number: u64) {
        self.again.retain(|lost| *lost != number);
        let Some(sent) = self.outstanding.remove(&number) else { return };
        let rtt = now.since(sent);
        self.rack = self.rack.max(sent);
        let least = self.least_rtt.map_or(rtt, |least| least.min(rtt));
        self.least_rtt = Some(least);
        self.smoothed = if self.smoothed == Duration::from_secs(1) { rtt } else { (self.smoothed * 7 + rtt) / 8 };
        if self.window < self.threshold {
            self.window += 1.0;
            if sent >= self.round.0 {
                self.round = (now, Duration::MAX, 0);
            }
            let (_, in_round, answers) = &mut self.round;
            if *answers < 8 {
                (*in_round, *answers) = ((*in_round).min(rtt), *answers + 1);
            }
            // The round trip has grown, so a queue has.
            let grown = (least / 8).clamp(Duration::from_millis(4), Duration::from_millis(16));
            if *answers == 8 && *in_round > least + grown && self.window > 16.0 {
                (self.threshold, self.before, self.after) = (self.window, self.window, self.window);
                self.reduced_at = Some(now);
            }
            return;
        }
        let since = self.reduced_at.map_or(0.0, |at| (now + self.smoothed).since(at).as_secs_f64());
        let k = ((self.before - self.after).max(0.0) / C).cbrt();
        let cubic = C * (since - k).powi(3) + self.before;
        let rtts = since / self.smoothed.as_secs_f64().max(1e-3);
        let reno = self.after + 3.0 * (1.0 - BETA) / (1.0 + BETA) * rtts;
        let target = cubic.max(reno).clamp(self.window, self.window * 1.5);
        self.window += (target - self.window) / self.window;
    }

    /// How it fares.
    pub(super) fn progress(&self) -> Progress {
        Progress { window: self.window as u64, ..self.progress }
    }

    fn reduce(&mut self, now: Instant) {
        self.progress.reductions += 1;
        self.recovery = now;
        // Fast convergence (section 4.7).
        self.before = if self.window < self.before { self.window * (1.0 + BETA) / 2.0 } else { self.window };
        self.window = (self.window * BETA).max(2.0);
        (self.threshold, self.after, self.reduced_at) = (self.window, self.window, Some(now));
    }
}

fn marked(from: Side, id: u32, number: u64, size: usize, mark: &[u8; 4]) -> Vec<u8> {
    let mut packet = packet(from, id, number, size);
    packet[HEADERS..HEADERS + 4].copy_from_slice(mark);
    packet
}

/// The connection that a packet is of, and what it says.
pub(super) fn of(packet: &[u8]) -> Option<(usize, &[u8])> {
    let body = packet.get(HEADERS..).filter(|body| body.starts_with(MARK) || body.starts_with(ACK))?;
    let id = body.get(4..8)?.iter().fold(0usize, |acc, &b| acc << 8 | usize::from(b));
    Some((id, body))
}
