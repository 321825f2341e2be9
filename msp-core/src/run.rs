//! The daemon: it starts the parts, passes on what each has to tell the others, and ends them in an order that leaves
//! nothing behind.

use crate::bgp::announce::Liveness;
use crate::bgp::message::Notification;
use crate::bgp::routing::{Looker, Routing};
use crate::bgp::socket::{Listener, Serving};
use crate::bgp::transport::{self, Learning, Wanted};
use crate::cli::{Loaded, entropy, load};
use crate::config::{Config, Egress};
use crate::sites::{Sites, Surroundings};
use crate::status::{BgpStatus, Reload, SiteStatus, Status};
use crate::{look, routes};
use anyhow::Context;
use dataplane::clock;
use dataplane::control::ControlSocket;
use dataplane::engine::{Dataplane, EngineError, Handle};
use dataplane::host::{Host, Owner};
use dataplane::udp::Socket;
use proto::{Event, Identity, Instant, LinkId, NodeConfig};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Runs the core until it is told to end.
pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    dataplane::logging::start();
    let loaded = load(path)?;
    // Packets have a thread of their own; what is left is little.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        // From here on a signal ends the core in good order.
        let signals = Signals::new()?;
        // Before all else on the host: a second core must not touch what the first one uses.
        let mut host = Host::open(&loaded.config.control.with_extension("journal"), Owner::Core).await?;
        let result = serve(signals, path, loaded, &mut host).await;
        host.restore().await;
        result
    })
}

/// The signals that mean something to the daemon.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

async fn serve(signals: Signals, path: &Path, loaded: Loaded, host: &mut Host) -> anyhow::Result<()> {
    let Loaded { config, key, surroundings, sites } = loaded;
    let node = NodeConfig {
        identity: Identity { middlebox: 0, pop: config.pop },
        mtu: config.tun.mtu,
        local: Vec::new(),
        listen_key: Some(key),
        peers: sites.peers(),
    };
    let control = ControlSocket::bind(&config.control)?;
    let sockets = listen(&config)?;
    let mut tuns = Vec::new();
    for name in config.tuns() {
        tuns.push(host.open_tun(name, config.tun.mtu).await?);
    }
    host.set(&routes::wanted(&config, sites.prefixes())).await?;
    let (dataplane, events) = Dataplane::start(node, tuns, sockets)?;
    let (questions, asked) = mpsc::channel(1);
    let serving = tokio::spawn(control.serve(move |command| ask(questions.clone(), command)));
    let result = match Core::start(path, config, surroundings, sites, dataplane.handle(), host) {
        Ok(core) => core.serve(events, asked, signals).await,
        Err(error) => Err(error),
    };
    serving.abort();
    let ended = tokio::task::spawn_blocking(|| dataplane.stop()).await.unwrap_or(Err(EngineError::Panicked));
    result.and(ended.map_err(anyhow::Error::from))
}

/// The sockets that tunnels come in on, each a link of its own.
fn listen(config: &Config) -> anyhow::Result<Vec<(LinkId, Socket)>> {
    let open = |(address, link): (&std::net::SocketAddr, u16)| {
        let socket = Socket::listening(*address).with_context(|| {
            format!("cannot listen on {address} (UDP); is something else there, or the address missing?")
        })?;
        Ok((LinkId(link), socket))
    };
    config.listen.iter().zip(0..).map(open).collect()
}

/// A question on the control socket.
enum Question {
    /// All that is shown of everything but routes.
    Status(oneshot::Sender<Status>),
    /// Whether the routes will go soon is said from now on, or no more (RFC 8326); answered when it is.
    Drain(bool, oneshot::Sender<()>),
    /// Who can be asked for routes.
    Routes(oneshot::Sender<(Looker, look::Names)>),
}

async fn ask(questions: mpsc::Sender<Question>, command: String) -> Option<serde_json::Value> {
    if let Some(command) = command.strip_prefix("bgp ") {
        let (answer, answered) = oneshot::channel();
        questions.send(Question::Routes(answer)).await.ok()?;
        let (looker, names) = answered.await.ok()?;
        return look::answer(&looker, &names, command).await;
    }
    if let "drain" | "drain end" = command.as_str() {
        let (answer, answered) = oneshot::channel();
        questions.send(Question::Drain(command == "drain", answer)).await.ok()?;
        return answered.await.ok().map(|()| serde_json::json!({}));
    }
    if command != "status" {
        return None;
    }
    let (answer, answered) = oneshot::channel();
    questions.send(Question::Status(answer)).await.ok()?;
    serde_json::to_value(answered.await.ok()?).ok()
}

/// What the daemon's one task owns.
struct Core<'a> {
    host: &'a mut Host,
    path: &'a Path,
    config: Config,
    surroundings: Surroundings,
    sites: Sites,
    packets: Handle,
    liveness: Liveness,
    /// What neighbours with the policy to announce sites are to be told.
    wanted: watch::Sender<Arc<Wanted>>,
    neighbors: Vec<Neighbor>,
    routing: Routing,
    bgp_listening: Option<Serving>,
    started: Instant,
    reload: Reload,
}

struct Neighbor {
    handle: transport::Handle,
    announce: bool,
}

impl Core<'_> {
    fn start<'a>(
        path: &'a Path,
        config: Config,
        surroundings: Surroundings,
        sites: Sites,
        packets: Handle,
        host: &'a mut Host,
    ) -> anyhow::Result<Core<'a>> {
        let started = clock::now();
        let (wanted, _) = watch::channel(Arc::default());
        let (nothing, _) = watch::channel(Arc::default());
        let bgp_listener = match &config.bgp {
            Some(bgp) => {
                let neighbors = bgp.neighbors.iter().map(|(neighbor, _)| (neighbor.remote.ip(), &neighbor.socket));
                Some(Listener::bind(&bgp.listen, neighbors)?)
            }
            None => None,
        };
        let transits = config.bgp.as_ref().map_or(&[][..], |bgp| &bgp.transits);
        let (orders, ordered): (Vec<_>, Vec<_>) = transits.iter().map(|_| mpsc::channel(1)).unzip();
        let choices = config.egress.iter().map(Egress::choice).collect();
        let routing = Routing::start(transits.to_vec(), choices, sites.prefixes(), orders)
            .context("cannot write routes to the kernel; the daemon needs CAP_NET_ADMIN, and Linux 5.3 or later")?;
        let mut neighbors = Vec::new();
        let mut doors = HashMap::new();
        let configured = config.bgp.iter().flat_map(|bgp| bgp.neighbors.iter().zip(&bgp.transits));
        for (place, (((neighbor, announce), transit), orders)) in configured.zip(ordered).enumerate() {
            if !announce {
                tracing::warn!(
                    neighbor = neighbor.name,
                    "nothing is announced to this neighbour: it has no `announce = [\"sites\"]` (RFC 8212)"
                );
            }
            let told = if *announce { wanted.subscribe() } else { nothing.subscribe() };
            let learning = Learning { feed: routing.feed(place), orders, restart: transit.restart };
            let seed = u64::from_ne_bytes(entropy()?);
            let handle = transport::spawn(neighbor.clone(), told, Some(learning), seed);
            doors.insert(neighbor.remote.ip(), handle.door());
            neighbors.push(Neighbor { handle, announce: *announce });
        }
        let bgp_listening = bgp_listener.map(|listener| listener.serve(doors));
        let mut liveness = Liveness::default();
        liveness.set_sites(started, sites.announcements());
        Ok(Core {
            host,
            path,
            config,
            surroundings,
            sites,
            packets,
            liveness,
            wanted,
            neighbors,
            routing,
            bgp_listening,
            started,
            reload: Reload::default(),
        })
    }

    /// Serves until a signal says to end, or the packet loop ends.
    async fn serve(
        mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut questions: mpsc::Receiver<Question>,
        mut signals: Signals,
    ) -> anyhow::Result<()> {
        tracing::info!(sites = self.sites.list.len(), listen = ?self.config.listen, "the core is running");
        loop {
            let due = self.liveness.poll_timeout().map(|at| at.since(clock::now()));
            let due = async {
                match due {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.note(event),
                    // The loop's own error says why.
                    None => break,
                },
                () = due => self.liveness.handle_timeout(clock::now()),
                Some(question) = questions.recv() => match question {
                    Question::Status(answer) => self.answer(answer).await,
                    Question::Drain(draining, answer) => {
                        self.drain(draining);
                        // Whoever asked may have gone.
                        let _ = answer.send(());
                    }
                    // Here too.
                    Question::Routes(answer) => drop(answer.send((self.routing.looker(), self.names()))),
                },
                _ = signals.hangup.recv() => self.reload().await,
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
            self.announce();
        }
        tracing::info!("ending");
        let farewell = Notification::shutdown("msp-core is stopped");
        for neighbor in self.neighbors {
            neighbor.handle.stop(farewell.clone()).await;
        }
        self.routing.stop().await;
        Ok(())
    }

    fn note(&mut self, event: Event) {
        let name = |id| self.sites.name(id).unwrap_or("(removed)");
        match event {
            Event::Path { path, from, to, reason } => {
                tracing::info!(site = name(path.peer), slot = path.slot, ?from, ?to, reason, "path");
            }
            Event::Reachable(id) => {
                tracing::info!(site = name(id), "reachable");
                self.liveness.reachable(id);
            }
            Event::Unreachable(id) => {
                tracing::warn!(site = name(id), "unreachable");
                self.liveness.unreachable(clock::now(), id);
            }
            Event::Moved { peer, class, from, to } => tracing::info!(site = name(peer), %class, ?from, ?to, "moved"),
        }
    }

    /// From now on the neighbours are told that the routes will go soon, or that they stay after all.
    fn drain(&self, draining: bool) {
        tracing::info!(draining, "graceful shutdown (RFC 8326)");
        self.wanted.send_if_modified(|old| {
            let news = old.graceful_shutdown != draining;
            if news {
                *old = Arc::new(Wanted { graceful_shutdown: draining, ..Wanted::clone(old) });
            }
            news
        });
    }

    /// Tells the neighbours' tasks, if there is news.
    fn announce(&self) {
        let prefixes = self.liveness.wanted();
        self.wanted.send_if_modified(|old| {
            let news = old.prefixes != prefixes;
            if news {
                for prefix in prefixes.difference(&old.prefixes) {
                    tracing::info!(%prefix, "to be announced");
                }
                for prefix in old.prefixes.difference(&prefixes) {
                    tracing::info!(%prefix, "to be withdrawn");
                }
                *old = Arc::new(Wanted { prefixes, ..Wanted::clone(old) });
            }
            news
        });
    }

    /// Puts the files' sites in force, all of them or none.
    async fn reload(&mut self) {
        self.reload.count += 1;
        match Config::load(self.path) {
            Ok(config) if config == self.config => {}
            Ok(_) => {
                tracing::warn!("{} has changed: that takes a restart, a reload is of the sites", self.path.display())
            }
            Err(error) => tracing::warn!("the next start would fail: {error}"),
        }
        let result = match Sites::load(&self.config.sites, &self.surroundings) {
            Ok(sites) => self.put_in_force(sites).await,
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
        };
        match result {
            Ok(()) => {
                tracing::info!(sites = self.sites.list.len(), "sites reloaded");
                self.reload.errors.clear();
            }
            Err(errors) => {
                for error in &errors {
                    tracing::error!("sites not reloaded, the old ones stay in force: {error}");
                }
                self.reload.errors = errors;
            }
        }
    }

    async fn put_in_force(&mut self, sites: Sites) -> Result<(), Vec<String>> {
        let peers = sites.peers();
        let set = self.packets.call(move |node, _, now| node.set_peers(now, peers).map(|()| node.snapshot(now)));
        let snapshot = match set.await {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(refused)) => return Err(vec![refused.to_string()]),
            Err(ended) => return Err(vec![ended.to_string()]),
        };
        let now = clock::now();
        self.liveness.set_sites(now, sites.announcements());
        self.sites = sites;
        self.routing.set_own(self.sites.prefixes().collect()).await;
        // A site that kept its number and lost its keys is another one: what the node says counts.
        for peer in &snapshot.peers {
            match peer.reachable {
                true => self.liveness.reachable(peer.id),
                false => self.liveness.unreachable(now, peer.id),
            }
        }
        // Before the routes, of which there may be many.
        self.announce();
        // The sites are in force: a route that cannot be set is an error to show, and no reason to go back.
        let wanted = routes::wanted(&self.config, self.sites.prefixes());
        self.host.set(&wanted).await.map_err(|error| vec![error.to_string()])
    }

    fn names(&self) -> look::Names {
        let neighbors = self.config.bgp.iter().flat_map(|bgp| &bgp.neighbors);
        look::Names {
            neighbors: neighbors.map(|(neighbor, _)| neighbor.name.clone()).collect(),
            choices: self.config.egress.iter().map(|egress| egress.name.clone()).collect(),
        }
    }

    /// The packet loop's part takes a moment, and is waited for in a task of its own.
    async fn answer(&self, answer: oneshot::Sender<Status>) {
        let now = clock::now();
        let mut neighbors = Vec::new();
        for neighbor in &self.neighbors {
            neighbors.extend(neighbor.handle.status().await.map(|status| (status, neighbor.announce)));
        }
        let sites = self.sites.list.iter();
        let sites: Vec<_> = sites.map(|site| SiteStatus::new(now, site, &self.liveness, &neighbors)).collect();
        let bgp = self.config.bgp.as_ref().map(|bgp| BgpStatus {
            local_as: bgp.local_as,
            router_id: bgp.router_id,
            draining: self.wanted.borrow().graceful_shutdown,
            strangers: self.bgp_listening.as_ref().map_or(0, Serving::strangers),
            neighbors: neighbors.into_iter().map(|(status, _)| status).collect(),
        });
        let reload = self.reload.clone();
        let uptime = now.since(self.started);
        let packets = self.packets.clone();
        tokio::spawn(async move {
            // Without an answer the client is told that there is none: the daemon is ending.
            if let Ok((node, counters)) = packets.snapshot().await {
                let status = Status::new(uptime, sites, bgp, reload, counters, node);
                // The client may have gone.
                let _ = answer.send(status);
            }
        });
    }
}
