//! Numbered packets, and what became of them.

use super::Side;
use crate::Instant;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A flow of UDP packets, each with its number.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Who sends.
    pub from: Side,
    /// The time between two packets.
    pub interval: Duration,
    /// Octets of each, at least 48.
    pub size: usize,
    /// Its DSCP: 0 to 63.
    pub dscp: u8,
    /// Its ECN field (RFC 3168): 0 to 3.
    pub ecn: u8,
    /// When the first is sent.
    pub start: Instant,
    /// When no more are sent.
    pub end: Instant,
}

impl Flow {
    /// A packet of 1,000 octets each millisecond, from one time to another, in milliseconds since the start of the world.
    pub fn steady(from: Side, start: u64, end: u64) -> Flow {
        Flow { from, interval: ms(1), size: 1000, dscp: 0, ecn: 0, start: at(start), end: at(end) }
    }
}

/// So many milliseconds.
pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// So many milliseconds after the start of the world.
pub fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

/// How a flow fared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Packets offered.
    pub sent: u64,
    /// Packets of these that found no process to take them, or one that stood still and a full queue.
    pub refused: u64,
    /// Packets that arrived, doubles not counted.
    pub received: u64,
    /// Packets that arrived again.
    pub duplicated: u64,
    /// Packets that arrived after a later one.
    pub reordered: u64,
    /// The longest time without an arrival, from the first packet sent on, and when it began.
    pub longest_gap: (Duration, Instant),
    /// The longest time from offer to arrival.
    pub longest_delay: Duration,
    /// When the last one arrived.
    pub last_arrival: Option<Instant>,
}

/// A packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// Its number in the flow.
    pub number: u64,
    /// When it was offered.
    pub sent_at: Instant,
    /// The octet of its header with DSCP and ECN field.
    pub traffic_class: u8,
}

#[derive(Debug)]
struct Running {
    flow: Flow,
    report: Report,
    seen: Vec<bool>,
    sent_at: Vec<Instant>,
    arrivals: Vec<Arrival>,
    highest: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Traffic {
    flows: Vec<Running>,
}

/// Of IPv4 and UDP.
pub(super) const HEADERS: usize = 28;
const MARK: &[u8; 4] = b"flow";

impl Traffic {
    pub(super) fn add(&mut self, flow: Flow) -> usize {
        self.flows.push(Running::new(flow));
        self.flows.len() - 1
    }

    /// What came of it; its place stays, and what still comes is nobody's.
    pub(super) fn end(&mut self, at: usize, now: Instant) -> (Report, Vec<Arrival>) {
        let running = &mut self.flows[at];
        running.note_gap(now.min(running.flow.end));
        let flow = Flow { end: running.flow.start, ..running.flow };
        let ended = std::mem::replace(running, Running::new(flow));
        (ended.report, ended.arrivals)
    }

    /// The next packet of flow `at`, who sends it, and when the one after it is due.
    pub(super) fn send(&mut self, at: usize, now: Instant) -> Option<(Side, Vec<u8>, Option<Instant>)> {
        let running = &mut self.flows[at];
        if now >= running.flow.end {
            return None;
        }
        let number = running.report.sent;
        running.report.sent += 1;
        running.seen.push(false);
        running.sent_at.push(now);
        let next = now + running.flow.interval;
        let mut packet = packet(running.flow.from, at as u32, number, running.flow.size);
        packet[1] = running.flow.dscp << 2 | running.flow.ecn;
        Some((running.flow.from, packet, (next < running.flow.end).then_some(next)))
    }

    /// The packet sent last was not taken.
    pub(super) fn refuse(&mut self, at: usize) {
        self.flows[at].report.refused += 1;
    }

    pub(super) fn arrive(&mut self, at: Side, packet: &[u8], now: Instant) {
        let Some(body) = packet.get(HEADERS..).filter(|body| body.len() >= 16 && body.starts_with(MARK)) else {
            return;
        };
        let flow = u32::from_be_bytes([body[4], body[5], body[6], body[7]]) as usize;
        let number = body[8..16].iter().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        let Some(running) = self.flows.get_mut(flow).filter(|running| running.flow.from != at) else { return };
        let Some(seen) = running.seen.get_mut(number as usize) else { return };
        let sent_at = running.sent_at[number as usize];
        running.arrivals.push(Arrival { at: now, number, sent_at, traffic_class: packet[1] });
        if std::mem::replace(seen, true) {
            running.report.duplicated += 1;
            return;
        }
        running.report.received += 1;
        if running.highest.is_some_and(|highest| number < highest) {
            running.report.reordered += 1;
        }
        running.highest = Some(running.highest.map_or(number, |highest| highest.max(number)));
        running.note_gap(now);
        running.report.last_arrival = Some(now);
        let delay = now.since(running.sent_at[number as usize]);
        running.report.longest_delay = running.report.longest_delay.max(delay);
    }

    pub(super) fn arrivals(&self, at: usize) -> &[Arrival] {
        &self.flows[at].arrivals
    }

    pub(super) fn reports(&self, now: Instant) -> Vec<Report> {
        let report = |running: &Running| {
            let mut at_end = Running { report: running.report.clone(), ..Running::new(running.flow) };
            // A flow that has fallen silent has a gap that lasts.
            at_end.note_gap(now.min(running.flow.end));
            at_end.report
        };
        self.flows.iter().map(report).collect()
    }
}

impl Running {
    fn new(flow: Flow) -> Self {
        let (seen, sent_at, arrivals) = (Vec::new(), Vec::new(), Vec::new());
        Running { flow, report: Report::default(), seen, sent_at, arrivals, highest: None }
    }

    fn note_gap(&mut self, now: Instant) {
        let from = self.report.last_arrival.unwrap_or(self.flow.start);
        let gap = now.since(from);
        if gap > self.report.longest_gap.0 {
            self.report.longest_gap = (gap, from);
        }
    }
}

/// An IPv4 UDP packet between the site's host and one on the Internet.
pub(super) fn packet(from: Side, flow: u32, number: u64, size: usize) -> Vec<u8> {
    let (site, internet) = (Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(203, 0, 113, 200));
    let (source, destination) = match from {
        Side::Box => (site, internet),
        Side::Core => (internet, site),
    };
    debug_assert!(IpAddr::from(source).is_ipv4());
    let size = size.max(HEADERS + 16);
    let mut packet = vec![0; size];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let port = 5000 + flow as u16;
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[24..26].copy_from_slice(&((size - 20) as u16).to_be_bytes());
    packet[28..32].copy_from_slice(MARK);
    packet[32..36].copy_from_slice(&flow.to_be_bytes());
    packet[36..44].copy_from_slice(&number.to_be_bytes());
    packet
}
