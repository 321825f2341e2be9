//! A host's meter: all its ends, each a thread that blocks until it has something to do.

use super::account::Schedule;
use super::attack::{Replayer, Spoofer, Vandal, Watcher};
use super::clock::{Clock, Nanos};
use super::live::{self, Cell};
use super::ping::Pinger;
use super::plan::schedule;
use super::sizes::{self, Sweeper};
use super::speed::{serve, speed};
use super::tcp::{Client, Server};
use super::udp::{Receiver, Sender};
use super::{End, EndResult, HostResult, MeterSpec};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// Why a meter could not do its work. A single end that fails is no such reason: it is in the result.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// It was told to start in the past, so the first packets would come in a burst.
    #[error("the meter at {host} came up {late_ms} ms after its start: give the meters more time to come up")]
    Late {
        /// The host.
        host: String,
        /// By how much.
        late_ms: i64,
    },
    /// A file could not be written.
    #[error("cannot write the meter's results to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread could be had.
    #[error("cannot start a thread for a stream: {0}; allow more processes (ulimit -u)")]
    Thread(io::Error),
}

type Job = Box<dyn FnOnce() -> io::Result<EndResult> + Send>;

/// Does a host's part of a run: opens all sockets, waits for the start, sends and receives, and writes the result.
/// Returns when the receivers' time is over.
///
/// # Errors
/// [`MeterError`]; an end that cannot open its sockets or breaks is an [`EndResult::Failed`] in the result instead.
pub fn run(spec: MeterSpec) -> Result<(), MeterError> {
    let clock = Clock::new(spec.start_ns);
    let end = moment(spec.length).saturating_add(moment(spec.drain));
    let mut cells = Vec::new();
    let jobs: Vec<_> = spec.ends.iter().map(|part| (name(part), open(part, &spec, clock, end, &mut cells))).collect();
    let live = spec.live.as_deref().map(append).transpose()?;
    let late = clock.now();
    if late > 0 {
        return Err(MeterError::Late { host: spec.host, late_ms: late / 1_000_000 + 1 });
    }

    let ends = thread::scope(|scope| {
        if let Some(file) = live {
            let (host, cells) = (&spec.host, &cells);
            // A display that cannot be written is no reason to give up the measurement.
            spawn(scope, move || drop(live::run(clock, end, host, cells, file)))?;
        }
        let mut started = Vec::new();
        for (name, job) in jobs {
            started.push((name, job.map(|job| spawn(scope, job))));
        }
        let mut ends = Vec::new();
        for (name, job) in started {
            let done = match job {
                Ok(handle) => {
                    handle?.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked: see the meter's log")))
                }
                Err(error) => Err(error),
            };
            ends.push(done.unwrap_or_else(|error| EndResult::Failed { name, error: error.to_string() }));
        }
        Ok(ends)
    })?;
    write(&spec.result, &HostResult { schema: 1, host: spec.host, start_ns: spec.start_ns, ends })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    job: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>, MeterError> {
    thread::Builder::new().spawn_scoped(scope, job).map_err(MeterError::Thread)
}

fn moment(span: super::Span) -> Nanos {
    // Half of the range, so that sums of two stay in it.
    i64::try_from(span.nanos()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

fn name(end: &End) -> String {
    match end {
        End::UdpSend { udp, .. } | End::UdpReceive { udp, .. } => udp.name.clone(),
        End::Sweep { sizes, .. } | End::SweepReceive { sizes, .. } => sizes.name.clone(),
        End::TcpServe { tcp, .. } | End::TcpFetch { tcp, .. } => tcp.name.clone(),
        End::Ping { ping, .. } => ping.name.clone(),
        End::Iperf3Serve { iperf3, .. } | End::Iperf3Send { iperf3, .. } => iperf3.name.clone(),
        End::Spoof { spoof, .. } => spoof.name.clone(),
        End::Garbage { garbage } => garbage.name.clone(),
        End::Replay { replay } => replay.name.clone(),
        End::Watch { watch } => watch.name.clone(),
    }
}

/// Opens an end's sockets, so that all is there before the first packet; what it returns does the work.
fn open(part: &End, spec: &MeterSpec, clock: Clock, end: Nanos, cells: &mut Vec<Arc<Cell>>) -> io::Result<Job> {
    let mut cell = |name: &str, s: &Schedule, connections| {
        let cell = Cell::new(name, s.start, s.stop, connections);
        cells.push(cell.clone());
        cell
    };
    Ok(match part.clone() {
        End::UdpSend { id, local, remote, udp } => {
            let schedule = schedule(udp.start, udp.stop, spec.length, udp.rate);
            let sender = Sender::new(id, local, remote, &udp, schedule)?;
            Box::new(move || Ok(sender.run(clock)))
        }
        End::UdpReceive { id, local, udp } => {
            let schedule = schedule(udp.start, udp.stop, spec.length, udp.rate);
            let cell = cell(&udp.name, &schedule, false);
            let receiver = Receiver::new(id, local, udp.traffic_class(), schedule, cell)?;
            Box::new(move || receiver.run(clock, end))
        }
        End::Sweep { id, local, remote, sizes } => {
            let schedule = schedule(sizes.start, sizes.stop, spec.length, sizes.rate);
            let sweeper = Sweeper::new(id, local, remote, sizes, schedule)?;
            Box::new(move || sweeper.run(clock, end))
        }
        End::SweepReceive { id, local, sizes } => {
            let schedule = schedule(sizes.start, sizes.stop, spec.length, sizes.rate);
            let cell = cell(&sizes.name, &schedule, false);
            let receiver = Receiver::new(id, local, 0, schedule, cell)?;
            Box::new(move || sizes::receive(id, &receiver, clock, end))
        }
        End::TcpServe { local, tcp } => {
            let server = Server::new(local, &tcp)?;
            Box::new(move || server.run(clock, end))
        }
        End::TcpFetch { remote, tcp } => {
            let schedule = schedule(tcp.start, tcp.stop, spec.length, 1.0);
            let cell = cell(&tcp.name, &schedule, true);
            let Schedule { start, stop, .. } = schedule;
            let client = Client { remote, tcp, seed: spec.seed, start, stop, cell };
            Box::new(move || Ok(client.run(clock)))
        }
        End::Ping { id, remote, ping } => {
            let rate = 1e9 / ping.every.nanos().max(1) as f64;
            let schedule = schedule(ping.start, ping.stop, spec.length, rate);
            let cell = cell(&ping.name, &schedule, false);
            let pinger = Pinger::new(id, remote, &ping, schedule, cell)?;
            Box::new(move || pinger.run(clock, end))
        }
        End::Iperf3Serve { local, iperf3 } => {
            let server = serve(local)?;
            let stop = moment(iperf3.stop.unwrap_or(spec.length)).max(end);
            Box::new(move || server.run(clock, stop))
        }
        End::Iperf3Send { remote, iperf3 } => {
            let length = spec.length;
            Box::new(move || Ok(EndResult::Speed(speed(clock, remote, &iperf3, length))))
        }
        End::Spoof { id, spoof } => {
            let spoofer = Spoofer::new(id, spoof)?;
            Box::new(move || spoofer.run(clock))
        }
        End::Garbage { garbage } => {
            let vandal = Vandal::new(garbage, spec.seed)?;
            Box::new(move || vandal.run(clock, end))
        }
        End::Replay { replay } => {
            let replayer = Replayer::new(replay)?;
            Box::new(move || replayer.run(clock))
        }
        End::Watch { watch } => {
            let watcher = Watcher::new(watch)?;
            Box::new(move || watcher.run(clock, end))
        }
    })
}

fn append(path: &Path) -> Result<File, MeterError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|source| MeterError::Write { path: path.to_owned(), source })
}

/// Writes a result whole: a reader that finds the file finds all of it.
fn write(path: &Path, result: &HostResult) -> Result<(), MeterError> {
    let wrong = |source| MeterError::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec(result).map_err(|error| wrong(error.into()))?;
    let partial = path.with_extension("partial");
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).map_err(wrong)
}
