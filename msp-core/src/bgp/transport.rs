//! TCP under a session: one task per neighbour, so that one that hangs holds up nobody else.

use super::Families;
use super::announce::{Advertised, Mark, Terms};
use super::attribute::Attributes;
use super::ingress::Changes;
use super::message::Notification;
use super::routing::{Feed, News, Order, Room};
use super::session::{Action, Config, Counters, Reason, Session, State, Way};
use super::socket::Options;
use bytes::{Buf, Bytes, BytesMut};
use dataplane::clock;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

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
    pub(crate) socket: Options,
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
    /// What it has been told, in order.
    pub(crate) announced: Vec<IpNet>,
    /// What it should be told and has not been, in order, each with the reason.
    pub(crate) not_announced: Vec<(IpNet, String)>,
    pub(crate) last_error: Option<String>,
    pub(crate) counters: Counters,
}

/// A running neighbour's task.
#[derive(Debug)]
pub(crate) struct Handle {
    questions: mpsc::Sender<Question>,
    orders: mpsc::UnboundedSender<Tell>,
    door: mpsc::Sender<TcpStream>,
    stop: watch::Sender<Option<Notification>>,
    task: JoinHandle<()>,
}

impl Handle {
    /// What there is to show of it now; nothing if its task has ended.
    pub(crate) async fn status(&self) -> Option<NeighborStatus> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::Status(answer)).await.ok()?;
        answered.await.ok()
    }

    /// What it has been told, all of it, if its task has not ended.
    pub(crate) async fn announced(&self) -> Option<Vec<(IpNet, Attributes)>> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::Announced(answer)).await.ok()?;
        answered.await.ok()
    }

    /// What it is to be told from now on.
    pub(crate) fn tell(&self, tell: Tell) {
        // Send fails only when the task has ended.
        let _ = self.orders.send(tell);
    }

    /// Where connections that the neighbour has made are handed in.
    pub(crate) fn door(&self) -> mpsc::Sender<TcpStream> {
        self.door.clone()
    }

    /// Says farewell and waits until it is said.
    pub(crate) async fn stop(self, notification: Notification) {
        // Send fails only when the task has ended.
        let _ = self.stop.send(Some(notification));
        let _ = self.task.await;
    }
}

/// What a neighbour is to be told from now on.
#[derive(Debug)]
pub(crate) enum Tell {
    /// This of these prefixes; of all others what it was before.
    Routes(Changes),
    /// That the routes will go soon, or that they stay after all (RFC 8326).
    GracefulShutdown(bool),
}

/// What somebody wants to know of a neighbour.
#[derive(Debug)]
enum Question {
    Status(oneshot::Sender<NeighborStatus>),
    Announced(oneshot::Sender<Vec<(IpNet, Attributes)>>),
}

/// Where what the neighbour says of routes goes.
#[derive(Debug)]
pub(crate) struct Learning {
    pub(crate) feed: Feed,
    /// What the thread that keeps routes wants done.
    pub(crate) orders: mpsc::Receiver<Order>,
    /// How long it is not spoken to when it has said more than it may; for good, if none.
    pub(crate) restart: Option<Duration>,
}

/// Starts a neighbour. Without `learning` nothing is kept of what it says.
pub(crate) fn spawn(neighbor: Neighbor, learning: Option<Learning>, seed: u64) -> Handle {
    let session = Session::new(neighbor.session, seed, clock::now());
    let (stop, stopped) = watch::channel(None);
    let mut task = Task {
        neighbor,
        session,
        lines: Default::default(),
        advertised: Advertised::default(),
        graceful_shutdown: false,
        established: None,
        reported: None,
        offered: None,
        farewells: JoinSet::new(),
        learning,
        news: VecDeque::new(),
    };
    let (questions, asked) = mpsc::channel(1);
    // Without a bound, since the task takes all of it whatever the neighbour does.
    let (orders, told) = mpsc::unbounded_channel();
    let (door, visitors) = mpsc::channel(1);
    let task = tokio::spawn(async move { task.run(Requests { stopped, told, asked, visitors }).await });
    Handle { questions, orders, door, stop, task }
}

/// A TCP connection, or the making of one.
#[derive(Default)]
enum Link {
    #[default]
    None,
    Connecting(JoinHandle<io::Result<(TcpStream, SocketAddr)>>),
    Open {
        stream: TcpStream,
        /// Our address on it.
        local: IpAddr,
    },
}

/// One of the two connections that there may be.
#[derive(Default)]
struct Line {
    link: Link,
    /// What waits to be written. Its size is bounded: [`BACKLOG`], a message, and a KEEPALIVE now and then until the
    /// send hold timer runs out.
    outgoing: BytesMut,
}

impl Line {
    /// Waits until something can be done with it; what comes in can wait, if it must.
    async fn ready(&mut self, way: Way, reading: bool) -> Wake {
        match &mut self.link {
            Link::None => std::future::pending().await,
            Link::Connecting(task) => Wake::Connected(task.await.unwrap_or_else(|error| Err(io::Error::other(error)))),
            Link::Open { stream, .. } => tokio::select! {
                // An error shows in the read or write that follows.
                _ = stream.readable(), if reading => Wake::Readable(way),
                _ = stream.writable(), if !self.outgoing.is_empty() => Wake::Writable,
                else => std::future::pending().await,
            },
        }
    }
}

struct Task {
    neighbor: Neighbor,
    session: Session,
    /// By who opened it.
    lines: [Line; 2],
    advertised: Advertised,
    /// The routes will go soon (RFC 8326).
    graceful_shutdown: bool,
    /// While established: by which connection.
    established: Option<Way>,
    /// The reason that the log has last.
    reported: Option<Reason>,
    /// A connection that the session has been told of, and its address here.
    offered: Option<(TcpStream, IpAddr)>,
    /// Connections before, taking their leave.
    farewells: JoinSet<()>,
    learning: Option<Learning>,
    /// What was read and waits for room at the thread that keeps routes. Nothing more is read while there is any, so it is
    /// what one buffer had.
    news: VecDeque<News>,
}

/// Who wants something of the task.
struct Requests {
    stopped: watch::Receiver<Option<Notification>>,
    told: mpsc::UnboundedReceiver<Tell>,
    asked: mpsc::Receiver<Question>,
    visitors: mpsc::Receiver<TcpStream>,
}

/// What woke the task.
enum Wake {
    Connected(io::Result<(TcpStream, SocketAddr)>),
    Visitor(TcpStream),
    Readable(Way),
    Writable,
    Deadline,
    Tell(Tell),
    Question(Question),
    Farewell,
    Order(Order),
    Told,
    Stop(Notification),
}

impl Task {
    async fn run(&mut self, mut requests: Requests) {
        self.session.start(clock::now());
        let mut buffer = vec![0; READ];
        loop {
            self.act();
            match self.wait(&mut requests).await {
                Wake::Connected(Ok((stream, local))) => self.connected(Way::Out, stream, local.ip()),
                Wake::Connected(Err(error)) => {
                    self.lines[Way::Out as usize] = Line::default();
                    self.session.connect_failed(clock::now(), error.to_string());
                }
                Wake::Visitor(stream) => match self.neighbor.socket.adopt(&stream) {
                    Ok(local) => self.connected(Way::In, stream, local.ip()),
                    // It is gone already.
                    Err(error) => tracing::debug!(neighbor = self.neighbor.name, %error, "a connection was not taken"),
                },
                Wake::Readable(way) => self.read(way, &mut buffer),
                Wake::Writable => self.write(),
                Wake::Deadline => {
                    // What has come in is worth more than a timer that says that nothing did.
                    for way in Way::BOTH {
                        self.read(way, &mut buffer);
                    }
                    self.session.handle_timeout(clock::now());
                    self.advertised.handle_timeout(clock::now());
                }
                Wake::Tell(Tell::Routes(changes)) => {
                    let now = clock::now();
                    changes.into_iter().for_each(|(prefix, said)| self.advertised.want(now, prefix, said));
                }
                Wake::Tell(Tell::GracefulShutdown(soon)) => {
                    self.graceful_shutdown = soon;
                    self.advertised.set_graceful_shutdown(clock::now(), soon);
                }
                // Whoever asked may have gone.
                Wake::Question(Question::Status(answer)) => drop(answer.send(self.status())),
                Wake::Question(Question::Announced(answer)) => drop(answer.send(self.advertised.told().collect())),
                Wake::Farewell | Wake::Told => {}
                Wake::Order(Order::LinkLost) => {
                    for way in Way::BOTH {
                        self.session.closed(clock::now(), way, "the link to the neighbour is down".into());
                    }
                }
                Wake::Order(Order::Exceeded(exceeded)) => {
                    let wait = self.learning.as_ref().and_then(|learning| learning.restart);
                    self.session.cease(clock::now(), exceeded.notification(), wait);
                }
                Wake::Stop(notification) => {
                    self.session.stop(clock::now(), notification);
                    self.act();
                    // They end by themselves, in time; how it went concerns nobody.
                    while self.farewells.join_next().await.is_some() {}
                    return;
                }
            }
        }
    }

    /// There is a connection, which the session may want or not.
    fn connected(&mut self, way: Way, stream: TcpStream, local: IpAddr) {
        if way == Way::Out {
            self.lines[Way::Out as usize] = Line::default();
        }
        self.offered = Some((stream, local));
        self.session.connected(clock::now(), way);
        self.act_on_session();
        self.offered = None;
    }

    async fn wait(&mut self, requests: &mut Requests) -> Wake {
        let deadline = self.session.poll_timeout().into_iter().chain(self.advertised.poll_timeout()).min();
        let reading = self.news.is_empty();
        let [out, incoming] = &mut self.lines;
        let (feed, mut orders) = match &mut self.learning {
            Some(learning) => (Some(&learning.feed), Some(&mut learning.orders)),
            None => (None, None),
        };
        let news = &mut self.news;
        let tell = async {
            match feed {
                Some(feed) if !reading => tell(feed.room().await, news),
                _ => std::future::pending().await,
            }
        };
        let order = async {
            match &mut orders {
                Some(orders) => orders.recv().await,
                None => std::future::pending().await,
            }
        };
        let stop = async {
            match requests.stopped.wait_for(Option::is_some).await {
                Ok(notification) => notification.clone().unwrap_or_else(|| Notification::shutdown("")),
                // The owner is gone without a word.
                Err(_) => Notification::shutdown(""),
            }
        };
        tokio::select! {
            biased;
            notification = stop => Wake::Stop(notification),
            () = clock::until(deadline) => Wake::Deadline,
            Some(told) = requests.told.recv() => Wake::Tell(told),
            Some(answer) = requests.asked.recv() => Wake::Question(answer),
            Some(stream) = requests.visitors.recv() => Wake::Visitor(stream),
            Some(_) = self.farewells.join_next() => Wake::Farewell,
            Some(order) = order => Wake::Order(order),
            () = tell => Wake::Told,
            // Last: a neighbour that always has something to say keeps none of the others waiting.
            wake = out.ready(Way::Out, reading) => wake,
            wake = incoming.ready(Way::In, reading) => wake,
        }
    }

    /// Does what the session wants, tells the neighbour what is new, and writes what can be written.
    fn act(&mut self) {
        let before = self.session.state().0;
        loop {
            self.act_on_session();
            if !self.announce_one() {
                break;
            }
        }
        self.write();
        // Writing may have found the connection lost.
        self.act_on_session();
        if let Some(Learning { feed, .. }) = &self.learning {
            while !self.news.is_empty()
                && let Some(room) = feed.room_now()
            {
                tell(Some(room), &mut self.news);
            }
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

    fn act_on_session(&mut self) {
        while let Some(action) = self.session.poll_action() {
            self.do_one(action);
        }
    }

    fn do_one(&mut self, action: Action) {
        let name = &self.neighbor.name;
        match action {
            Action::Connect => {
                let (remote, options) = (self.neighbor.remote, self.neighbor.socket.clone());
                let connecting = tokio::spawn(async move { options.connect(remote).await });
                self.lines[Way::Out as usize].link = Link::Connecting(connecting);
            }
            Action::Take(way) => {
                if let Some((stream, local)) = self.offered.take() {
                    self.lines[way as usize] = Line { link: Link::Open { stream, local }, outgoing: BytesMut::new() };
                }
            }
            Action::Send(way, bytes) => self.lines[way as usize].outgoing.extend_from_slice(&bytes),
            Action::Close(way) => self.close(way),
            Action::Up(way, negotiated) => {
                let Link::Open { local, .. } = &self.lines[way as usize].link else { return };
                let configured = (self.neighbor.next_hop_v4, self.neighbor.next_hop_v6);
                let mut terms = Terms::new(&self.neighbor.session, &negotiated, configured, *local);
                terms.graceful_shutdown = self.graceful_shutdown;
                self.established = Some(way);
                tracing::info!(
                    neighbor = name,
                    remote = %self.neighbor.remote,
                    router_id = %negotiated.remote_router_id,
                    hold_time = negotiated.hold_time,
                    "BGP session established"
                );
                if negotiated.graceful_restart.is_some() {
                    negotiated.families.iter().for_each(|family| self.advertised.mark(Mark::EndOfRib(family)));
                }
                self.advertised.establish(clock::now(), terms);
                self.learn(News::Up { router_id: negotiated.remote_router_id });
            }
            Action::Down { reason, keep } => {
                tracing::warn!(neighbor = name, %reason, "BGP session down");
                self.reported = Some(reason);
                self.advertised.clear();
                self.established = None;
                self.learn(News::Down { keep });
            }
            Action::Update(update) => self.learn(News::Update(update)),
            Action::Stale(family) => self.learn(News::Stale(family)),
            Action::Sweep(family) => self.learn(News::Sweep(family)),
            Action::Refresh(family) => {
                tracing::info!(neighbor = name, ?family, "route refresh");
                match self.session.negotiated().is_some_and(|negotiated| negotiated.enhanced_route_refresh) {
                    true => self.advertised.repeat_marked(clock::now(), family),
                    false => self.advertised.repeat(clock::now(), Families::NONE.with(family)),
                }
            }
        }
    }

    fn learn(&mut self, news: News) {
        if self.learning.is_some() {
            self.news.push_back(news);
        }
    }

    /// Queues one message, if there is one to send and room for it.
    fn announce_one(&mut self) -> bool {
        let Some(way) = self.established else { return false };
        if self.lines[way as usize].outgoing.len() >= BACKLOG {
            self.write();
            if self.lines[way as usize].outgoing.len() >= BACKLOG {
                return false;
            }
        }
        match self.advertised.next_message(clock::now()) {
            Some(message) => {
                self.session.send(clock::now(), message);
                true
            }
            None => false,
        }
    }

    /// One buffer at most: a neighbour that floods does not keep the task from its other work.
    fn read(&mut self, way: Way, buffer: &mut [u8]) {
        let Link::Open { stream, .. } = &self.lines[way as usize].link else { return };
        let result = stream.try_read(buffer);
        let now = clock::now();
        match result {
            Ok(0) => self.session.closed(now, way, "closed by the neighbour".into()),
            Ok(length) => self.session.received(now, way, &buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.session.closed(now, way, error.to_string()),
        }
    }

    fn write(&mut self) {
        for way in Way::BOTH {
            let line = &mut self.lines[way as usize];
            while !line.outgoing.is_empty()
                && let Link::Open { stream, .. } = &line.link
            {
                let result = stream.try_write(&line.outgoing);
                let now = clock::now();
                match result {
                    Ok(length) => {
                        line.outgoing.advance(length);
                        self.session.written(now, way, line.outgoing.is_empty());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        line.outgoing.clear();
                        self.session.closed(now, way, error.to_string());
                    }
                }
            }
        }
    }

    /// Closes the connection after what waits to be written, which is left to a task of its own, for a moment.
    fn close(&mut self, way: Way) {
        let line = std::mem::take(&mut self.lines[way as usize]);
        match line.link {
            Link::None => {}
            Link::Connecting(task) => task.abort(),
            Link::Open { stream, .. } => drop(self.farewells.spawn(farewell(stream, line.outgoing.freeze()))),
        }
    }

    fn status(&self) -> NeighborStatus {
        let (state, since) = self.session.state();
        let negotiated = self.session.negotiated();
        NeighborStatus {
            name: self.neighbor.name.clone(),
            remote: self.neighbor.remote,
            remote_as: self.neighbor.session.remote_as,
            state,
            since_s: clock::now().since(since).as_secs_f64(),
            hold_time: negotiated.map(|negotiated| negotiated.hold_time),
            remote_router_id: negotiated.map(|negotiated| negotiated.remote_router_id),
            announced: self.advertised.prefixes().collect(),
            not_announced: self.advertised.untold().map(|(prefix, why)| (prefix, why.to_owned())).collect(),
            last_error: self.session.last_error().map(ToString::to_string),
            counters: self.session.counters(),
        }
    }
}

/// Hands on what was read first. Without room there is nobody left to hear it.
fn tell(room: Option<Room>, news: &mut VecDeque<News>) {
    let first = news.pop_front();
    if let (Some(room), Some(first)) = (room, first) {
        room.tell(first);
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
