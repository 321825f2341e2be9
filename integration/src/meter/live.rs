//! What a meter shows while it runs: each end writes to its cell, one thread reads them all every 100 ms.

use super::clock::{Clock, Nanos, millis};
use super::{LiveLine, LiveStream};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// How often a line is written: as fast as an eye follows a table.
const EVERY: Nanos = 100_000_000;

/// What an end shows. Its figures are only for show, and need not be of the same instant.
#[derive(Debug)]
pub(crate) struct Cell {
    name: String,
    start: Nanos,
    stop: Nanos,
    connections: bool,
    received: AtomicU64,
    next: AtomicU64,
    last: AtomicI64,
    gap: AtomicI64,
    broken: AtomicU64,
}

impl Cell {
    /// For a stream of packets, or (with `connections`) for downloads.
    pub(crate) fn new(name: &str, start: Nanos, stop: Nanos, connections: bool) -> Arc<Self> {
        Arc::new(Cell {
            name: name.to_owned(),
            start,
            stop,
            connections,
            received: AtomicU64::new(0),
            next: AtomicU64::new(0),
            last: AtomicI64::new(start),
            gap: AtomicI64::new(0),
            broken: AtomicU64::new(0),
        })
    }

    /// Something arrived: packet `number`, or `count` octets.
    pub(crate) fn arrived(&self, at: Nanos, number: u64, count: u64) {
        self.received.fetch_add(count, Relaxed);
        self.next.fetch_max(number + 1, Relaxed);
        let last = self.last.fetch_max(at, Relaxed);
        self.gap.fetch_max(at - last, Relaxed);
    }

    /// A connection broke.
    pub(crate) fn broke(&self) {
        self.broken.fetch_add(1, Relaxed);
    }

    fn read(&self, now: Nanos, before: u64) -> (LiveStream, u64) {
        let received = self.received.load(Relaxed);
        let lasting = now.min(self.stop) - self.last.load(Relaxed);
        let gap = if now < self.start { 0 } else { self.gap.load(Relaxed).max(lasting) };
        let lost = if self.connections { 0 } else { self.next.load(Relaxed).saturating_sub(received) };
        let line = LiveStream {
            name: self.name.clone(),
            received,
            lost,
            rate: (received - before) as f64 * 1e9 / EVERY as f64,
            gap_ms: millis(gap),
            broken: self.connections.then(|| self.broken.load(Relaxed)),
        };
        (line, received)
    }
}

/// Writes a line every 100 ms until `end`.
pub(crate) fn run(clock: Clock, end: Nanos, host: &str, cells: &[Arc<Cell>], mut out: File) -> io::Result<()> {
    let mut before = vec![0; cells.len()];
    let mut at = 0;
    while at < end {
        at += EVERY;
        clock.sleep_until(at);
        let streams = cells.iter().zip(&mut before).map(|(cell, before)| {
            let (line, received) = cell.read(at, *before);
            *before = received;
            line
        });
        let line = LiveLine { host: host.to_owned(), at_ms: millis(at), streams: streams.collect() };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        // One write a line: a reader at the other side of the file never sees half of one that is followed by another.
        out.write_all(&text)?;
    }
    Ok(())
}
