//! TCP under a session: one task per neighbour, so that one that hangs holds up nobody else.

use super::Family;
use super::announce::{Advertised, RouteAttributes};
use super::message::Notification;
use super::session::{Action, Config, Counters, Reason, Session, State};
use bytes::{Buf, Bytes, BytesMut};
use dataplane::clock;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// No further UPDATE is made while as much is waiting to be written: what a neighbour does not read yet is not worked
/// out yet, and is still the newest when it is.
const BACKLOG: usize = 64 * 1024;
/// Reads are taken in pieces of this size; sixteen messages of the greatest length.
const READ: usize = 64 * 1024;
/// How long a last NOTIFICATION may take to leave: it fits the socket's buffer unless that is full, and then the
/// neighbour does not read.
const FAREWELL: Duration = Duration::from_secs(1);

/// A neighbour, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbor {
    pub(crate) name: String,
    pub(crate) remote: SocketAddr,
    pub(crate) session: Config,
    pub(crate) next_hop_v4: Option<Ipv4Addr>,
    pub(crate) next_hop_v6: Option<Ipv6Addr>,
}

/// What there is to show of a neighbour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NeighborStatus {
    pub(crate) name: String,
    pub(crate) remote: SocketAddr,
    pub(crate) remote_as: u32,
    pub(crate) state: State,
    /// How long it has been in that state, in seconds.
    pub(crate) since_s: f64,
    /// The hold time in force, in seconds, while established.
    pub(crate) hold_time: Option<u16>,
    pub(crate) remote_router_id: Option<Ipv4Addr>,
    /// What it has been told.
    pub(crate) announced: Vec<IpNet>,
    /// What it should be told and cannot be, each with the reason.
    pub(crate) not_announced: Vec<(IpNet, String)>,
    pub(crate) last_error: Option<String>,
    pub(crate) counters: Counters,
}

/// A running neighbour's task.
#[derive(Debug)]
pub(crate) struct Handle {
    questions: mpsc::Sender<oneshot::Sender<NeighborStatus>>,
    stop: watch::Sender<Option<Notification>>,
    task: JoinHandle<()>,
}

impl Handle {
    /// What there is to show of it now; nothing if its task has ended.
    pub(crate) async fn status(&self) -> Option<NeighborStatus> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(answer).await.ok()?;
        answered.await.ok()
    }

    /// Says farewell and waits until it is said.
    pub(crate) async fn stop(self, notification: Notification) {
        // Send fails only when the task has ended.
        let _ = self.stop.send(Some(notification));
        let _ = self.task.await;
    }
}

/// Starts a neighbour. `wanted` is what it is to be told, now and whenever it changes.
pub(crate) fn spawn(neighbor: Neighbor, wanted: watch::Receiver<Arc<BTreeSet<IpNet>>>, seed: u64) -> Handle {
    let session = Session::new(neighbor.session, seed, clock::now());
    let (stop, stopped) = watch::channel(None);
    let mut task = Task {
        neighbor,
        session,
        wanted,
        link: Link::None,
        outgoing: BytesMut::new(),
        advertised: Advertised::default(),
        attributes: None,
        reported: None,
        farewell: None,
    };
    let (questions, asked) = mpsc::channel(1);
    let task = tokio::spawn(async move { task.run(stopped, asked).await });
    Handle { questions, stop, task }
}

/// The TCP connection, or the making of one.
enum Link {
    None,
    Connecting(JoinHandle<io::Result<(TcpStream, SocketAddr)>>),
    Open {
        stream: TcpStream,
        /// Our address on it.
        local: IpAddr,
    },
}

struct Task {
    neighbor: Neighbor,
    session: Session,
    wanted: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    link: Link,
    /// What waits to be written. Its size is bounded: [`BACKLOG`], a message, and a KEEPALIVE now and then until the
    /// send hold timer runs out.
    outgoing: BytesMut,
    advertised: Advertised,
    /// While established.
    attributes: Option<RouteAttributes>,
    /// The reason that the log has last.
    reported: Option<Reason>,
    /// The connection before this one, taking its leave.
    farewell: Option<JoinHandle<()>>,
}

/// What woke the task.
enum Wake {
    Connected(io::Result<(TcpStream, SocketAddr)>),
    Readable,
    Writable,
    Deadline,
    Wanted,
    Question(oneshot::Sender<NeighborStatus>),
    Stop(Notification),
}

impl Task {
    async fn run(
        &mut self,
        mut stopped: watch::Receiver<Option<Notification>>,
        mut questions: mpsc::Receiver<oneshot::Sender<NeighborStatus>>,
    ) {
        self.session.start(clock::now());
        let mut buffer = vec![0; READ];
        loop {
            self.act();
            match self.wait(&mut stopped, &mut questions).await {
                Wake::Connected(Ok((stream, local))) => {
                    self.link = Link::Open { stream, local: local.ip() };
                    self.session.connected(clock::now());
                }
                Wake::Connected(Err(error)) => {
                    self.link = Link::None;
                    self.session.connect_failed(clock::now(), error.to_string());
                }
                Wake::Readable => self.read(&mut buffer),
                Wake::Writable => self.write(),
                Wake::Deadline => {
                    // What has come in is worth more than a timer that says that nothing did.
                    self.read(&mut buffer);
                    self.session.handle_timeout(clock::now());
                }
                Wake::Wanted => self.want(),
                // Whoever asked may have gone.
                Wake::Question(answer) => drop(answer.send(self.status())),
                Wake::Stop(notification) => {
                    self.session.stop(clock::now(), notification);
                    self.act();
                    if let Some(farewell) = self.farewell.take() {
                        // It ends by itself, in time; how it went concerns nobody.
                        let _ = farewell.await;
                    }
                    return;
                }
            }
        }
    }

    async fn wait(
        &mut self,
        stopped: &mut watch::Receiver<Option<Notification>>,
        questions: &mut mpsc::Receiver<oneshot::Sender<NeighborStatus>>,
    ) -> Wake {
        let deadline = self.session.poll_timeout().map(|(at, _)| at.since(clock::now()));
        let deadline = async {
            match deadline {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let writing = !self.outgoing.is_empty();
        let link = async {
            match &mut self.link {
                Link::None => std::future::pending().await,
                Link::Connecting(task) => {
                    Wake::Connected(task.await.unwrap_or_else(|error| Err(io::Error::other(error))))
                }
                Link::Open { stream, .. } => tokio::select! {
                    // An error shows in the read or write that follows.
                    _ = stream.readable() => Wake::Readable,
                    _ = stream.writable(), if writing => Wake::Writable,
                },
            }
        };
        let stop = async {
            match stopped.wait_for(Option::is_some).await {
                Ok(notification) => notification.clone().unwrap_or_else(|| Notification::shutdown("")),
                // The owner is gone without a word.
                Err(_) => Notification::shutdown(""),
            }
        };
        tokio::select! {
            biased;
            notification = stop => Wake::Stop(notification),
            () = deadline => Wake::Deadline,
            Ok(()) = self.wanted.changed() => Wake::Wanted,
            Some(answer) = questions.recv() => Wake::Question(answer),
            // Last: a neighbour that always has something to say keeps none of the others waiting.
            wake = link => wake,
        }
    }

    /// Does what the session wants, tells the neighbour what is new, and writes what can be written.
    fn act(&mut self) {
        let before = self.session.state().0;
        loop {
            while let Some(action) = self.session.poll_action() {
                self.do_one(action);
            }
            if !self.announce_one() {
                break;
            }
        }
        self.write();
        // Writing may have found the connection lost.
        while let Some(action) = self.session.poll_action() {
            self.do_one(action);
        }
        let (after, _) = self.session.state();
        if before != after {
            tracing::debug!(neighbor = self.neighbor.name, from = %before, to = %after, "BGP session state");
        }
        // An attempt fails every few seconds for as long as the neighbour is away: only a new reason is news.
        if let Some(reason) = self.session.last_error()
            && self.reported.as_ref() != Some(reason)
        {
            tracing::warn!(neighbor = self.neighbor.name, remote = %self.neighbor.remote, %reason, "no BGP session");
            self.reported = Some(reason.clone());
        }
    }

    fn do_one(&mut self, action: Action) {
        let name = &self.neighbor.name;
        match action {
            Action::Connect => {
                let remote = self.neighbor.remote;
                self.link = Link::Connecting(tokio::spawn(async move {
                    let stream = TcpStream::connect(remote).await?;
                    // Messages are small, and are to leave at once.
                    stream.set_nodelay(true)?;
                    let local = stream.local_addr()?;
                    Ok((stream, local))
                }));
            }
            Action::Send(bytes) => self.outgoing.extend_from_slice(&bytes),
            Action::Close => self.close(),
            Action::Up(negotiated) => {
                let Link::Open { local, .. } = &self.link else { return };
                let configured = (self.neighbor.next_hop_v4, self.neighbor.next_hop_v6);
                self.attributes = Some(RouteAttributes::new(&self.neighbor.session, &negotiated, configured, *local));
                tracing::info!(
                    neighbor = name,
                    remote = %self.neighbor.remote,
                    router_id = %negotiated.remote_router_id,
                    hold_time = negotiated.hold_time,
                    "BGP session established"
                );
                self.want();
            }
            Action::Down(reason) => {
                tracing::warn!(neighbor = name, %reason, "BGP session down");
                self.reported = Some(reason);
                self.advertised.clear();
                self.attributes = None;
            }
            // Nothing is kept of what neighbours announce, for now.
            Action::Update(_) => {}
            Action::Refresh(family) => {
                tracing::info!(neighbor = name, ?family, "route refresh");
                self.advertised.forget(family);
                self.want();
            }
        }
    }

    /// Works out what the neighbour is to be told now.
    fn want(&mut self) {
        if let Some(attributes) = &self.attributes {
            self.advertised.want(&self.wanted.borrow_and_update(), attributes);
        }
    }

    /// Queues one UPDATE, if there is one to send and room for it.
    fn announce_one(&mut self) -> bool {
        let Some(attributes) = self.attributes else { return false };
        if self.outgoing.len() >= BACKLOG {
            self.write();
            if self.outgoing.len() >= BACKLOG {
                return false;
            }
        }
        match self.advertised.next_update(&attributes) {
            Some(update) => {
                self.session.send_update(clock::now(), update);
                true
            }
            None => false,
        }
    }

    /// One buffer at most: a neighbour that floods does not keep the task from its other work.
    fn read(&mut self, buffer: &mut [u8]) {
        let Link::Open { stream, .. } = &self.link else { return };
        let result = stream.try_read(buffer);
        let now = clock::now();
        match result {
            Ok(0) => self.session.closed(now, "closed by the neighbour".into()),
            Ok(length) => self.session.received(now, &buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.session.closed(now, error.to_string()),
        }
    }

    fn write(&mut self) {
        while !self.outgoing.is_empty()
            && let Link::Open { stream, .. } = &self.link
        {
            let result = stream.try_write(&self.outgoing);
            let now = clock::now();
            match result {
                Ok(length) => {
                    self.outgoing.advance(length);
                    self.session.written(now, self.outgoing.is_empty());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.outgoing.clear();
                    self.session.closed(now, error.to_string());
                }
            }
        }
    }

    /// Closes the connection after what waits to be written, which is left to a task of its own, for a moment.
    fn close(&mut self) {
        let rest = std::mem::take(&mut self.outgoing).freeze();
        match std::mem::replace(&mut self.link, Link::None) {
            Link::None => {}
            Link::Connecting(task) => task.abort(),
            Link::Open { stream, .. } => self.farewell = Some(tokio::spawn(farewell(stream, rest))),
        }
    }

    fn status(&self) -> NeighborStatus {
        let (state, since) = self.session.state();
        let negotiated = self.session.negotiated();
        let announced = self.advertised.told();
        let wanted = self.wanted.borrow();
        let why_not = |prefix: &IpNet| {
            let family = Family::of(prefix);
            match &self.attributes {
                None => "the session is not established".to_owned(),
                Some(attributes) => attributes.why_not(family).unwrap_or("waiting to be sent").to_owned(),
            }
        };
        NeighborStatus {
            name: self.neighbor.name.clone(),
            remote: self.neighbor.remote,
            remote_as: self.neighbor.session.remote_as,
            state,
            since_s: clock::now().since(since).as_secs_f64(),
            hold_time: negotiated.map(|negotiated| negotiated.hold_time),
            remote_router_id: negotiated.map(|negotiated| negotiated.remote_router_id),
            announced: announced.iter().copied().collect(),
            not_announced: wanted.difference(announced).map(|prefix| (*prefix, why_not(prefix))).collect(),
            last_error: self.session.last_error().map(ToString::to_string),
            counters: self.session.counters(),
        }
    }
}

/// Writes the last words, and closes in an order that lets the neighbour read them.
async fn farewell(mut stream: TcpStream, rest: Bytes) {
    let words = async {
        stream.write_all(&rest).await?;
        stream.shutdown().await?;
        // Closing with something unread would send a reset, and that overtakes the words.
        while stream.read(&mut [0; 4096]).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever does not take them in time, or is gone, is not waited for.
    let _ = tokio::time::timeout(FAREWELL, words).await;
}

#[cfg(test)]
mod tests;
