//! The daemon: it starts the parts, passes on what each has to tell the others, and ends them in an order that leaves
//! nothing behind.

use crate::bgp::admission::Admission;
use crate::bgp::cache::{self, Caches};
use crate::bgp::ingress::{Blackhole, Export, Ingress};
use crate::bgp::message::Notification;
use crate::bgp::routing::{Looker, Routing};
use crate::bgp::socket::{Listener, Serving};
use crate::bgp::transport::{self, Learning, Tell};
use crate::bgp::update::Aggregator;
use crate::cli::{Loaded, entropy, load};
use crate::config::{self, Config, Egress};
use crate::sites::{Sites, Surroundings};
use crate::status::{BgpStatus, Reload, SiteStatus, Status};
use crate::{look, routes};
use anyhow::Context;
use dataplane::control::ControlSocket;
use dataplane::engine::{Dataplane, EngineError, Handle};
use dataplane::host::{Host, Owner};
use dataplane::udp::Socket;
use dataplane::{calendar, clock};
use ipnet::IpNet;
use proto::policy::Policy;
use proto::{Event, Identity, Instant, LinkId, NodeConfig, PathState, PeerId};
use std::collections::HashMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

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

/// What is ours, and learnt of nobody: the sites' prefixes, and the aggregates around them.
fn own(config: &Config, sites: &Sites) -> Vec<IpNet> {
    sites.prefixes().chain(config.ingress.policy.aggregates.iter().map(|aggregate| aggregate.prefix)).collect()
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
    /// What the neighbours have been told, and which addresses they are asked to drop packets for.
    Announced(oneshot::Sender<look::Announced>),
    /// Neighbours are to drop packets for an address, or no more; the answer may be why not.
    Blackhole(look::Blackhole, oneshot::Sender<Result<(), String>>),
}

/// The answer to a command, a JSON document.
async fn ask(questions: mpsc::Sender<Question>, command: String) -> Option<String> {
    match command.as_str() {
        "status" => {
            let (answer, answered) = oneshot::channel();
            questions.send(Question::Status(answer)).await.ok()?;
            serde_json::to_string(&answered.await.ok()?).ok()
        }
        "drain" | "drain end" => {
            let (answer, answered) = oneshot::channel();
            questions.send(Question::Drain(command == "drain", answer)).await.ok()?;
            answered.await.ok().map(|()| "{}".into())
        }
        "bgp announced" => {
            let (answer, answered) = oneshot::channel();
            questions.send(Question::Announced(answer)).await.ok()?;
            serde_json::to_string(&answered.await.ok()?).ok()
        }
        command => {
            let command = command.strip_prefix("bgp ")?;
            if let Some(asked) = command.strip_prefix("blackhole ") {
                return Some(blackhole(&questions, asked).await?.to_string());
            }
            let (answer, answered) = oneshot::channel();
            questions.send(Question::Routes(answer)).await.ok()?;
            let (looker, names) = answered.await.ok()?;
            look::answer(&looker, &names, command).await.map(|document| document.to_string())
        }
    }
}

async fn blackhole(questions: &mpsc::Sender<Question>, asked: &str) -> Option<serde_json::Value> {
    let refused = |why: String| Some(serde_json::json!({ "error": why }));
    let asked = match serde_json::from_str(asked) {
        Ok(asked) => asked,
        Err(error) => return refused(error.to_string()),
    };
    let (answer, answered) = oneshot::channel();
    questions.send(Question::Blackhole(asked, answer)).await.ok()?;
    match answered.await.ok()? {
        Ok(()) => Some(serde_json::json!({})),
        Err(why) => refused(why),
    }
}

/// What the daemon's one task owns.
struct Core<'a> {
    host: &'a mut Host,
    path: &'a Path,
    config: Config,
    surroundings: Surroundings,
    sites: Sites,
    packets: Handle,
    /// The policies whose windows open and close.
    windows: watch::Sender<Vec<(PeerId, Arc<Policy>)>>,
    /// What the RPKI caches say.
    caches: watch::Receiver<Caches>,
    ingress: Ingress,
    /// The neighbours are told that the routes will go soon (RFC 8326).
    draining: bool,
    neighbors: Vec<Neighbor>,
    routing: Routing,
    bgp_listening: Option<Serving>,
    started: Instant,
    reload: Reload,
}

struct Neighbor {
    handle: transport::Handle,
    export: Export,
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
        let routing = Routing::start(transits.to_vec(), choices, own(&config, &sites), orders)
            .context("cannot write routes to the kernel; the daemon needs CAP_NET_ADMIN, and Linux 5.3 or later")?;
        let mut neighbors = Vec::new();
        let mut doors = HashMap::new();
        let configured = config.bgp.iter().flat_map(|bgp| bgp.neighbors.iter().zip(&bgp.transits));
        for (place, (((neighbor, export), transit), orders)) in configured.zip(ordered).enumerate() {
            if !export.sites {
                tracing::warn!(
                    neighbor = neighbor.name,
                    "nothing is announced to this neighbour: it has no `announce = [\"sites\"]` (RFC 8212)"
                );
            }
            let learning = Learning { feed: routing.feed(place), orders, restart: transit.restart };
            let seed = u64::from_ne_bytes(entropy()?);
            let handle = transport::spawn(neighbor.clone(), Some(learning), seed);
            doors.insert(neighbor.remote.ip(), handle.door());
            neighbors.push(Neighbor { handle, export: *export });
        }
        let bgp_listening = bgp_listener.map(|listener| listener.serve(doors));
        let caches = cache::start(config.bgp.as_ref().map_or(&[][..], |bgp| &bgp.caches).to_vec());
        let local_as = config.bgp.as_ref().map_or(0, |bgp| bgp.local_as);
        let admission = Admission::new(local_as, caches.borrow().settled());
        let aggregator = config.bgp.as_ref().map(|bgp| Aggregator { asn: bgp.local_as, router_id: bgp.router_id });
        let exports: Vec<Export> = neighbors.iter().map(|neighbor| neighbor.export).collect();
        let mut ingress = Ingress::new(config.ingress.policy.clone(), aggregator, admission, &exports);
        ingress.set_sites(started, sites.announcements());
        Ok(Core {
            host,
            path,
            config,
            surroundings,
            windows: watch::Sender::new(sites.with_windows()),
            sites,
            packets,
            caches,
            ingress,
            draining: false,
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
        let mut loading: Option<JoinHandle<_>> = None;
        let packets = self.packets.clone();
        let mut windows = pin!(calendar::keep_windows(&packets, self.windows.subscribe()));
        loop {
            let due = self.ingress.poll_timeout();
            let loaded = async {
                match &mut loading {
                    Some(task) => task.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The loop's own error says why.
                _ = &mut windows => break,
                event = events.recv() => match event {
                    Some(event) => self.note(event),
                    // Here too.
                    None => break,
                },
                () = clock::until(due) => self.ingress.handle_timeout(clock::now()),
                Ok(()) = self.caches.changed() => self.origins().await,
                Some(question) = questions.recv() => match question {
                    Question::Status(answer) => self.answer(answer).await,
                    Question::Drain(draining, answer) => {
                        self.drain(draining);
                        // Whoever asked may have gone.
                        let _ = answer.send(());
                    }
                    // Here too.
                    Question::Routes(answer) => drop(answer.send((self.routing.looker(), self.names()))),
                    Question::Announced(answer) => drop(answer.send(self.announced().await)),
                    Question::Blackhole(asked, answer) => drop(answer.send(self.blackhole(&asked))),
                },
                // If one is under way, its files were read too early.
                _ = signals.hangup.recv() => loading = Some(self.load()),
                loaded = loaded => {
                    loading = None;
                    self.reload(loaded.unwrap_or_else(|error| Err(vec![error.to_string()]))).await;
                }
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
        let works = |state| matches!(state, PathState::Up | PathState::Suspect | PathState::Impaired);
        let name = |id| self.sites.name(id).unwrap_or("(removed)");
        match event {
            Event::Path { path, from, to, reason } => {
                tracing::info!(site = name(path.peer), %path, ?from, ?to, reason, "path");
                self.ingress.path(path, works(to));
            }
            Event::Reachable(id) => {
                tracing::info!(site = name(id), "reachable");
                self.ingress.reachable(id);
            }
            Event::Unreachable(id) => {
                tracing::warn!(site = name(id), "unreachable");
                self.ingress.unreachable(clock::now(), id);
            }
            Event::Moved { peer, class, from, to } => {
                let [from, to] = [from, to].map(|path| path.map(tracing::field::display));
                tracing::info!(site = name(peer), %class, from, to, "moved")
            }
        }
    }

    /// From now on the neighbours are told that the routes will go soon, or that they stay after all.
    fn drain(&mut self, draining: bool) {
        tracing::info!(draining, "graceful shutdown (RFC 8326)");
        self.draining = draining;
        self.neighbors.iter().for_each(|neighbor| neighbor.handle.tell(Tell::GracefulShutdown(draining)));
    }

    /// The RPKI caches have said something.
    async fn origins(&mut self) {
        let caches = self.caches.borrow_and_update().clone();
        self.ingress.set_origins(caches.origins().cloned(), caches.settled());
        // What is out comes first, then what others say.
        self.announce();
        self.routing.set_origins(caches.origins().cloned().unwrap_or_default()).await;
    }

    /// Tells the neighbours' tasks what is new for them.
    fn announce(&mut self) {
        for (place, neighbor) in self.neighbors.iter().enumerate() {
            let changes = self.ingress.take_changes(place);
            if changes.is_empty() {
                continue;
            }
            for (prefix, said) in &changes {
                let what = if said.is_some() { "to be announced" } else { "to be withdrawn" };
                tracing::info!(%prefix, neighbor = self.neighbor(place), "{what}");
            }
            neighbor.handle.tell(Tell::Routes(changes));
        }
    }

    fn neighbor(&self, place: usize) -> &str {
        self.config.bgp.as_ref().and_then(|bgp| bgp.neighbors.get(place)).map_or("", |(neighbor, _)| &neighbor.name)
    }

    /// Has neighbours drop packets for an address, or no more.
    fn blackhole(&mut self, asked: &look::Blackhole) -> Result<(), String> {
        let address = asked.address;
        if asked.remove {
            if !self.ingress.end_blackhole(&address.into()) {
                return Err(format!("{address} is not blackholed; see `msp-core bgp announced`"));
            }
            tracing::info!(%address, "blackhole removed");
            return Ok(());
        }
        let neighbors = self.config.bgp.iter().flat_map(|bgp| &bgp.neighbors);
        let neighbor = match &asked.neighbor {
            None => None,
            Some(name) => match neighbors.enumerate().find(|(_, (neighbor, _))| neighbor.name == *name) {
                Some((_, (_, export))) if !export.blackholes => {
                    return Err(format!("{name} is told of no blackholes: its `announce` lacks \"blackholes\""));
                }
                Some((place, _)) => Some(place),
                None => return Err(format!("there is no neighbour {name:?}; see `msp-core bgp neighbors`")),
            },
        };
        let until = asked.seconds.map(|seconds| clock::now() + Duration::from_secs(seconds));
        self.ingress.blackhole(address, Blackhole { neighbor, until }).map_err(|error| error.to_string())?;
        tracing::warn!(%address, neighbor = asked.neighbor, seconds = asked.seconds, "blackhole (RFC 7999)");
        Ok(())
    }

    /// What the neighbours have been told.
    async fn announced(&self) -> look::Announced {
        let now = clock::now();
        let mut neighbors = Vec::new();
        for (place, neighbor) in self.neighbors.iter().enumerate() {
            let routes = neighbor.handle.announced().await.unwrap_or_default();
            neighbors.push((self.neighbor(place).to_owned(), routes));
        }
        let blackholes = self.ingress.blackholes().iter().map(|(prefix, blackhole)| {
            let neighbor = blackhole.neighbor.map(|place| self.neighbor(place).to_owned());
            (*prefix, neighbor, blackhole.until.map(|until| until.since(now)))
        });
        look::Announced::new(neighbors, blackholes)
    }

    /// Reads the files, in a thread of its own: of ten thousand sites that takes a second, in which nobody's time is to run out
    /// unnoticed.
    fn load(&self) -> JoinHandle<Result<(Config, Sites), Vec<String>>> {
        let (path, folder, surroundings) = (self.path.to_owned(), self.config.sites.clone(), self.surroundings.clone());
        tokio::task::spawn_blocking(move || {
            let config = Config::load(&path).map_err(|error| vec![error.to_string()]);
            let sites = Sites::load(&folder, &surroundings)
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>());
            match (config, sites) {
                (Ok(config), Ok(sites)) => {
                    config.ingress.check(&sites).map_err(|error| vec![error])?;
                    Ok((config, sites))
                }
                (Err(errors), Err(more)) => Err([errors, more].concat()),
                (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => Err(errors),
            }
        })
    }

    /// Puts the files' sites and what is said of them in force, all of it or nothing.
    async fn reload(&mut self, loaded: Result<(Config, Sites), Vec<String>>) {
        self.reload.count += 1;
        let result = match loaded {
            Ok((config, sites)) => {
                if (Config { ingress: config.ingress.clone(), ..self.config.clone() }) != config {
                    tracing::warn!(
                        "{} has changed: a reload is of the sites, [[ingress]] and [[aggregate]]; the rest takes a restart",
                        self.path.display()
                    );
                }
                self.put_in_force(config.ingress, sites).await
            }
            Err(errors) => Err(errors),
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

    async fn put_in_force(&mut self, policy: config::Ingress, sites: Sites) -> Result<(), Vec<String>> {
        let peers = sites.peers();
        let set = self.packets.call(move |node, _, now| node.set_peers(now, peers).map(|()| node.snapshot(now)));
        let snapshot = match set.await {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(refused)) => return Err(vec![refused.to_string()]),
            Err(ended) => return Err(vec![ended.to_string()]),
        };
        let now = clock::now();
        // One change of the whole, of which nothing is told before it is complete.
        self.ingress.set_policy(policy.policy.clone());
        self.ingress.set_sites(now, sites.announcements());
        self.config.ingress = policy;
        self.windows.send_replace(sites.with_windows());
        self.sites = sites;
        self.routing.set_own(own(&self.config, &self.sites)).await;
        // A site that kept its number and lost its keys is another one: what the node says counts.
        for peer in &snapshot.peers {
            match peer.reachable {
                true => self.ingress.reachable(peer.id),
                false => self.ingress.unreachable(now, peer.id),
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
            let Some(mut status) = neighbor.handle.status().await else { continue };
            if neighbor.export.sites {
                let refused = self.ingress.refused().iter().map(|(prefix, why)| (*prefix, why.to_string()));
                status.not_announced.extend(refused);
                status.not_announced.sort_unstable();
            }
            neighbors.push((status, neighbor.export));
        }
        let sites = self.sites.list.iter();
        let sites: Vec<_> = sites.map(|site| SiteStatus::new(now, site, &self.ingress, &neighbors)).collect();
        let bgp = self.config.bgp.as_ref().map(|bgp| BgpStatus {
            local_as: bgp.local_as,
            router_id: bgp.router_id,
            draining: self.draining,
            strangers: self.bgp_listening.as_ref().map_or(0, Serving::strangers),
            caches: self.caches.borrow().status(now),
            without_policy: neighbors.iter().filter(|(_, export)| !export.sites).map(|(n, _)| n.name.clone()).collect(),
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
