//! RPKI caches: a task for each, and whose word counts of several (RFC 8210, section 10).
//!
//! All of them are listened to all the time. The first in the order of the configuration that is there counts; if none is
//! there, the first whose data has not expired; if there is none, nothing is known, and no route is invalid.

use super::origin::Origins;
use super::rtr::{Answer, Client, Fault, MOST_VRPS, NO_DATA, Serial, Timing};
use dataplane::clock;
use proto::Instant;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How long a core that starts waits for its caches, before it announces without them: they are near, and half a minute's
/// outage of a cache is not to be an outage of the sites.
const START: Duration = Duration::from_secs(10);
/// The first wait after a connection was lost.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest wait for a cache that is not there. One that breaks the protocol waits for as long as it has said itself.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a TCP connection may take: SYNs at 0, 1, 3 and 7 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A query has twelve octets: whoever does not take them in that time reads nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Reads are taken in pieces of this size: three thousand VRPs, and less than a millisecond's work.
const READ: usize = 64 * 1024;

/// A cache, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

/// What is known, by all caches together.
#[derive(Clone, Debug)]
pub(crate) struct Caches {
    list: Vec<Cache>,
    /// Until when the first answers are waited for.
    patience: Instant,
}

#[derive(Clone, Debug)]
struct Cache {
    config: Config,
    held: Option<Held>,
    /// Its connection is up, and what is held is what it says.
    live: bool,
    answers: u64,
    failures: u64,
    last_error: Option<String>,
}

/// What a cache has said.
#[derive(Clone, Debug)]
struct Held {
    origins: Arc<Origins>,
    serial: Serial,
    /// When it was confirmed last.
    at: Instant,
    expires: Instant,
}

impl Caches {
    pub(crate) fn new(now: Instant, configs: Vec<Config>) -> Caches {
        let cache = |config| Cache { config, held: None, live: false, answers: 0, failures: 0, last_error: None };
        Caches { list: configs.into_iter().map(cache).collect(), patience: now + START }
    }

    fn answered(&mut self, now: Instant, place: usize, origins: Arc<Origins>, serial: Serial, timing: Timing) {
        let cache = &mut self.list[place];
        cache.held = Some(Held { origins, serial, at: now, expires: now + timing.expire });
        cache.live = true;
        cache.answers += 1;
    }

    fn failed(&mut self, place: usize, reason: String) {
        let cache = &mut self.list[place];
        cache.live = false;
        cache.failures += 1;
        cache.last_error = Some(reason);
    }

    /// Forgets what has expired. A cache that is there and silent is asked long before.
    fn handle_timeout(&mut self, now: Instant) {
        for cache in &mut self.list {
            if cache.held.take_if(|held| held.expires <= now).is_some() {
                cache.live = false;
            }
        }
        if self.patience <= now {
            self.patience = Instant::ZERO;
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let expiries = self.list.iter().filter_map(|cache| Some(cache.held.as_ref()?.expires));
        expiries.chain((!self.settled()).then_some(self.patience)).min()
    }

    /// The place of the cache whose word counts.
    fn counting(&self) -> Option<usize> {
        let first = |live: bool| self.list.iter().position(|cache| cache.held.is_some() && (cache.live || !live));
        first(true).or_else(|| first(false))
    }

    /// Has all been heard that is worth waiting for at the start? Whoever is preferred to the one that counts has failed
    /// once, or the time is over.
    pub(crate) fn settled(&self) -> bool {
        let silent = |cache: &Cache| cache.held.is_none() && cache.failures == 0;
        let preferred = self.counting().unwrap_or(self.list.len());
        self.patience == Instant::ZERO || !self.list[..preferred].iter().any(silent)
    }

    /// What is known. Nothing if no cache has said anything, or nothing that has not expired.
    pub(crate) fn origins(&self) -> Option<&Arc<Origins>> {
        Some(&self.list[self.counting()?].held.as_ref()?.origins)
    }

    /// What there is to show.
    pub(crate) fn status(&self, now: Instant) -> Vec<CacheStatus> {
        let counting = self.counting();
        let status = |(place, cache): (usize, &Cache)| CacheStatus {
            name: cache.config.name.clone(),
            address: cache.config.address,
            connected: cache.live,
            counts: counting == Some(place),
            vrps: cache.held.as_ref().map(|held| held.origins.len()),
            serial: cache.held.as_ref().map(|held| held.serial.to_string()),
            confirmed_s: cache.held.as_ref().map(|held| now.since(held.at).as_secs_f64()),
            expires_in_s: cache.held.as_ref().map(|held| held.expires.since(now).as_secs_f64()),
            answers: cache.answers,
            failures: cache.failures,
            last_error: cache.last_error.clone(),
        };
        self.list.iter().enumerate().map(status).collect()
    }
}

/// What there is to show of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CacheStatus {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) connected: bool,
    /// Its word counts: no better one is there.
    pub(crate) counts: bool,
    /// How many are held of it; nothing if it has said nothing, or that has expired.
    pub(crate) vrps: Option<usize>,
    /// The state of its data.
    pub(crate) serial: Option<String>,
    /// How long ago it was confirmed.
    pub(crate) confirmed_s: Option<f64>,
    /// For how long it is believed without being confirmed.
    pub(crate) expires_in_s: Option<f64>,
    pub(crate) answers: u64,
    /// How often a connection could not be made, or ended.
    pub(crate) failures: u64,
    pub(crate) last_error: Option<String>,
}

/// What a cache's task tells.
enum Heard {
    Answered { place: usize, origins: Arc<Origins>, serial: Serial, timing: Timing },
    Failed { place: usize, reason: String },
}

/// Starts the tasks. What is known is in the channel, now and whenever it changes; the tasks end when nobody listens.
pub(crate) fn start(configs: Vec<Config>) -> watch::Receiver<Caches> {
    let caches = Caches::new(clock::now(), configs);
    // Sets are large: a cache that sends them faster than they are put in force waits.
    let (hear, heard) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    for (place, cache) in caches.list.iter().enumerate() {
        tasks.spawn(attend(place, cache.config.address, hear.clone()));
    }
    let (known, receiver) = watch::channel(caches);
    if !tasks.is_empty() {
        tokio::spawn(keep(known, heard, tasks));
    }
    receiver
}

/// Keeps what is known. The tasks end with it.
async fn keep(known: watch::Sender<Caches>, mut heard: mpsc::Receiver<Heard>, _tasks: JoinSet<()>) {
    loop {
        let due = known.borrow().poll_timeout();
        let heard = tokio::select! {
            // Nobody is left who could say anything, if their tasks have died: what is known expires in its time.
            Some(heard) = heard.recv() => Some(heard),
            () = clock::until(due) => None,
            () = known.closed() => return,
        };
        let before = known.borrow().counting();
        known.send_modify(|caches| {
            let now = clock::now();
            match heard {
                Some(Heard::Answered { place, origins, serial, timing }) => {
                    caches.answered(now, place, origins, serial, timing)
                }
                Some(Heard::Failed { place, reason }) => {
                    let Cache { config, last_error, .. } = &caches.list[place];
                    // It fails every minute for as long as it is away: only a new reason is news.
                    if last_error.as_ref() != Some(&reason) {
                        tracing::warn!(cache = config.name, address = %config.address, reason, "no RPKI cache");
                    }
                    caches.failed(place, reason);
                }
                None => {}
            }
            caches.handle_timeout(now);
        });
        report(before, &known.borrow());
    }
}

fn report(before: Option<usize>, caches: &Caches) {
    let counting = caches.counting();
    match counting.map(|place| &caches.list[place]) {
        Some(cache) if before != counting => {
            let vrps = caches.origins().map_or(0, |origins| origins.len());
            tracing::info!(cache = cache.config.name, vrps, "origins are validated by this RPKI cache");
        }
        None if before.is_some() => {
            tracing::warn!("what the RPKI caches said has expired: no origin is invalid any more");
        }
        _ => {}
    }
}

/// What is known of a cache from one connection to the next.
#[derive(Default)]
struct Memory {
    origins: Arc<Origins>,
    serial: Option<Serial>,
    answers: u64,
    /// It speaks RFC 6810 alone.
    old: bool,
    timing: Timing,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the connection is lost: {0}")]
    Lost(#[from] io::Error),
    #[error("closed by the cache")]
    Closed,
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Nobody listens any more.
    #[error("msp-core ends")]
    Unheard,
}

/// Speaks with a cache for as long as somebody listens.
async fn attend(place: usize, address: SocketAddr, hear: mpsc::Sender<Heard>) {
    let mut memory = Memory::default();
    let mut wait = RETRY_FIRST;
    loop {
        let (answers, old) = (memory.answers, memory.old);
        let Err(ended) = converse(place, address, &mut memory, &hear).await;
        let answered = memory.answers != answers;
        if answered {
            wait = RETRY_FIRST;
        }
        let pause = match &ended {
            Ended::Unheard => return,
            // It was told that it may be spoken to in its own version.
            _ if memory.old != old => Duration::ZERO,
            Ended::Fault(Fault::Reported { code: NO_DATA, .. } | Fault::Slow) | Ended::Connect(_) => wait,
            Ended::Fault(_) => {
                // What it says does not fit: from the beginning, then.
                memory.serial = None;
                memory.timing.retry.max(wait)
            }
            Ended::Lost(_) | Ended::Closed => {
                // StayRTR closes where it is asked about a life before its own; a Cache Reset would be the word for that.
                if !answered && memory.serial.take().is_some() {
                    wait = RETRY_FIRST;
                }
                wait
            }
        };
        wait = (wait * 2).min(RETRY_MAX);
        if hear.send(Heard::Failed { place, reason: ended.to_string() }).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// One connection, from its beginning to its end.
async fn converse(
    place: usize,
    address: SocketAddr,
    memory: &mut Memory,
    hear: &mpsc::Sender<Heard>,
) -> Result<std::convert::Infallible, Ended> {
    let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let mut stream = connect.unwrap_or_else(|elapsed| Err(elapsed.into())).map_err(Ended::Connect)?;
    let mut client = Client::new(clock::now(), memory.serial, memory.old);
    let mut buffer = vec![0; READ];
    loop {
        write(&mut stream, &mut client).await?;
        let wait = client.poll_timeout().since(clock::now());
        let mut result = Ok(());
        match tokio::time::timeout(wait, stream.read(&mut buffer)).await {
            Err(_) => {}
            Ok(Ok(0)) => return Err(Ended::Closed),
            Ok(Ok(length)) => {
                client.received(&buffer[..length]);
                result = take(place, &mut client, memory, hear).await;
            }
            Ok(Err(error)) => return Err(Ended::Lost(error)),
        };
        // Also where there is always something to read: who never stops talking puts off no deadline.
        let result = result.and_then(|()| client.handle_timeout(clock::now()).map_err(Ended::Fault));
        memory.old = client.is_old();
        if let Err(ended) = result {
            if let Ended::Fault(fault) = &ended {
                client.fail(fault);
                write(&mut stream, &mut client).await?;
            }
            return Err(ended);
        }
    }
}

async fn write(stream: &mut TcpStream, client: &mut Client) -> io::Result<()> {
    let output = client.output().split();
    tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&output)).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
}

/// Passes on what has come in.
async fn take(place: usize, client: &mut Client, memory: &mut Memory, hear: &mpsc::Sender<Heard>) -> Result<(), Ended> {
    while let Some(answer) = client.answer(clock::now())? {
        let (serial, timing) = (answer.serial, answer.timing);
        let old = memory.origins.clone();
        // A tenth of a second's work for a full set: not for a thread that has other tasks.
        let made = tokio::task::spawn_blocking(move || apply(old, answer)).await;
        memory.origins = made.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        memory.serial = Some(serial);
        memory.timing = timing;
        memory.answers += 1;
        let heard = Heard::Answered { place, origins: memory.origins.clone(), serial, timing };
        hear.send(heard).await.map_err(|_| Ended::Unheard)?;
    }
    Ok(())
}

fn apply(old: Arc<Origins>, answer: Answer) -> Result<Arc<Origins>, Fault> {
    let new = match answer.reset {
        true => Origins::new(answer.changes.into_iter().map(|change| change.vrp).collect()),
        false if answer.changes.is_empty() => return Ok(old),
        false => old.with(&answer.changes)?,
    };
    match new.len() {
        0..=MOST_VRPS => Ok(Arc::new(new)),
        _ => Err(Fault::TooMany),
    }
}

#[cfg(test)]
mod tests;
