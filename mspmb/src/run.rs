//! The daemon: what starts, what it listens to, and what is undone when it ends.

use crate::breakout::{self, Breakout, Counts};
use crate::config::{CORE, Config};
use crate::lan;
use crate::meter::{self, Meter, MeterStatus};
use crate::status::{self, Status};
use crate::uplinks::{Shown, Uplinks, works};
use anyhow::Context;
use dataplane::control::ControlSocket;
use dataplane::engine::{Dataplane, Handle};
use dataplane::host::{Host, Owner};
use dataplane::logging;
use dataplane::netlink::Watch;
use dataplane::{calendar, clock};
use proto::policy::Policy;
use proto::{Event, PathState, PeerId, direct};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

/// When to look at the uplinks again after something went wrong that should not have. The kernel's news alone would
/// do if nothing did.
const AGAIN: Duration = Duration::from_secs(1);

/// When to look again although there is no news: what DHCP clients write of resolvers comes without.
const REFRESH: Duration = Duration::from_secs(30);

/// The policy of each peer, of which a box has one.
pub(crate) type Policies = Vec<(PeerId, Arc<Policy>)>;

/// The box's own.
pub(crate) fn in_force(policies: &Policies) -> Arc<Policy> {
    policies.first().map(|(_, policy)| policy.clone()).unwrap_or_default()
}

/// Runs until a signal says otherwise.
pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    logging::start();
    // One thread is enough for everything but packets, which have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(supervise(path, config))
}

/// Takes hold of the host, serves, and gives the host back, whatever happened in between.
async fn supervise(path: &Path, config: Config) -> anyhow::Result<()> {
    let mut host = Host::open(&config.journal(), Owner::Middlebox).await?;
    let served = serve(path, &config, &mut host).await;
    host.restore().await;
    if served.is_ok() {
        tracing::info!("ended; everything is as it was");
    }
    served
}

async fn serve(path: &Path, config: &Config, host: &mut Host) -> anyhow::Result<()> {
    breakout::check(&config.policy)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?;
    let control = ControlSocket::bind(&config.control)?;
    let tun = host.open_tun(&config.tun.name, config.tun.mtu).await?;
    let (dataplane, mut events) = Dataplane::start(config.node(), vec![tun], Vec::new())?;
    let handle = dataplane.handle();
    let news = Arc::new(Notify::new());
    let policy = watch::Sender::new(vec![(CORE, config.policy.clone())]);
    // Before the table of direct flows is made anew: what one of a daemon that was killed has counted is read first.
    let mut meter = Meter::open(&config.state, &config.policy).await;
    let mut site = Site::new(config, host, handle.clone(), news.clone(), policy.subscribe(), meter.shown());
    let control = tokio::spawn(control.serve(answers(handle.clone(), site.shown.subscribe(), meter.shown())));
    tracing::info!(prefixes = ?config.prefixes, core = config.core.name, tun = config.tun.name, "running");
    if clock::unix_time() < clock::EARLIEST {
        let unix_time = clock::unix_time().as_secs();
        tracing::warn!(unix_time, "the clock is wrong: it stands before this program was written; set it, by NTP best");
    }

    let moves = policy.subscribe();
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // It never ends but by an error.
        result = site.follow() => result,
        () = log_events(&mut events, &config.core.name, &news, &moves) => Err(anyhow::anyhow!("stopping")),
        result = async {
            loop {
                hangup.recv().await;
                reload_policy(path, config, &handle, &policy).await?;
                news.notify_one();
            }
        } => result,
        ended = meter.follow(&handle, policy.subscribe(), &news) => Err(ended.into()),
        ended = calendar::keep_windows(&handle, policy.subscribe()) => Err(ended.into()),
    };
    control.abort();
    // Waited for, so that the socket is gone when we are; that it was aborted is no news.
    let _ = control.await;
    let last = in_force(&policy.borrow());
    meter.close(&handle, &last).await;
    // If the loop has ended by itself, its own error says more.
    dataplane.stop()?;
    ended
}

/// Reads the policy again, and puts it in force whole or not at all. An error is the end of the loop.
async fn reload_policy(
    path: &Path,
    config: &Config,
    handle: &Handle,
    policy: &watch::Sender<Policies>,
) -> anyhow::Result<()> {
    let read = Config::load(path).map_err(anyhow::Error::from).and_then(|new| {
        breakout::check(&new.policy)?;
        Ok(new.policy)
    });
    let new = match read {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(%error, "the policy was not read; the one before stays in force");
            return Ok(());
        }
    };
    let mut peers = config.node().peers;
    for peer in &mut peers {
        (peer.policy, peer.open_windows) = (new.clone(), calendar::open_now(&new));
    }
    match handle.set_peers(peers).await? {
        Ok(()) => {
            tracing::info!(classes = new.classes().len(), "the policy is in force; other changes wait for a restart");
            policy.send_replace(vec![(CORE, new)]);
        }
        Err(error) => tracing::error!(%error, "the policy was refused; the one before stays in force"),
    }
    Ok(())
}

/// The site's side of the host, and the uplinks: they change together.
struct Site<'a> {
    config: &'a Config,
    host: &'a mut Host,
    uplinks: Uplinks<'a>,
    breakout: Breakout<'a>,
    metered: watch::Receiver<Vec<MeterStatus>>,
    shown: watch::Sender<Shown>,
    /// Notified when a look is worth while: an answer of a resolver, a path that came up.
    news: Arc<Notify>,
    /// What was last wrong with the host, to say it once.
    problem: Option<String>,
}

impl<'a> Site<'a> {
    fn new(
        config: &'a Config,
        host: &'a mut Host,
        handle: Handle,
        news: Arc<Notify>,
        policy: watch::Receiver<Policies>,
        metered: watch::Receiver<Vec<MeterStatus>>,
    ) -> Self {
        let uplinks = Uplinks::new(config, handle, host.netlink().clone(), &news);
        let breakout = Breakout::new(config, policy, clock::now());
        Site { config, host, uplinks, breakout, metered, shown: watch::Sender::default(), news, problem: None }
    }

    /// Looks, and looks again at each news.
    async fn follow(&mut self) -> anyhow::Result<()> {
        // Before the first look: what changes during it is heard.
        let mut kernel = Watch::new().context("cannot listen to the kernel's news of interfaces")?;
        let own = self.news.clone();
        loop {
            let again = if self.look().await? { REFRESH } else { AGAIN };
            let due = self.breakout.due(clock::now()).unwrap_or(again);
            tokio::select! {
                heard = kernel.changed() => heard.context("cannot hear the kernel's news of interfaces any more")?,
                () = own.notified() => {}
                () = tokio::time::sleep(again.min(due)) => {}
            }
        }
    }

    /// Whether all went well.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let interfaces = self.host.netlink().interfaces().await.context("cannot ask the kernel for the interfaces")?;
        let found = self.uplinks.find(&interfaces);
        let mut wanted = lan::parameters(&self.config.prefixes, &found.uplinks, self.breakout.is_wanted());
        wanted.extend(lan::routing(&self.config.prefixes, &self.config.tun.name));
        // Last: whatever stands in the main table, a route that cannot be repeated must not keep the rest from being set.
        wanted.extend(lan::inward(&self.config.prefixes, &found.overlaps));
        let uplinks: Vec<_> = found.uplinks.iter().filter_map(|index| interfaces.get(index)).collect();
        let slots = uplinks.iter().filter_map(|&uplink| Some((self.uplinks.slot(uplink.index)?, uplink)));
        let slots: Vec<_> = slots.collect();
        wanted.extend(lan::outward(&self.config.prefixes, &slots, &found.overlaps));
        if self.breakout.is_wanted() {
            let slots: Vec<u8> = slots.iter().map(|(slot, _)| *slot).collect();
            wanted.extend(lan::direct(&self.config.prefixes, &slots));
        }
        // An interface can go between the looking and the setting, or somebody has set the TUN down.
        let problem = self.host.set(&wanted).await.err().map(|error| error.to_string());
        if problem != self.problem {
            match &problem {
                Some(problem) => tracing::warn!(problem, "the host is not as it should be"),
                None => tracing::info!("the host is as it should be again"),
            }
            self.problem = problem;
        }
        let well = self.uplinks.look(&interfaces, found).await?;
        let capped = meter::capped(&self.metered.borrow());
        let (exits, outlets) = self.uplinks.exits(&uplinks, capped);
        let direct = self.breakout.look(clock::now(), self.host, &exits, &outlets).await;
        self.shown.send_replace(Shown { direct, ..self.uplinks.shown().clone() });
        Ok(well && self.problem.is_none() && self.breakout.is_well())
    }
}

/// What the control socket answers.
fn answers(
    handle: Handle,
    shown: watch::Receiver<Shown>,
    metered: watch::Receiver<Vec<MeterStatus>>,
) -> impl Fn(String) -> std::pin::Pin<Box<dyn Future<Output = Option<String>> + Send>> + Send + Sync {
    let started = Instant::now();
    let counts = Counts::default();
    move |command| {
        let (handle, Shown { uplinks, unused, mut direct }) = (handle.clone(), shown.borrow().clone());
        let (counts, metered) = (counts.clone(), metered.borrow().clone());
        Box::pin(async move {
            if command != "status" {
                return None;
            }
            if let Some(direct) = &mut direct {
                counts.fill(direct).await;
            }
            let (node, dataplane) = handle.snapshot().await.ok()?;
            serde_json::to_string(&Status {
                schema: status::SCHEMA,
                daemon: status::DAEMON.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_s: started.elapsed().as_secs_f64(),
                uplinks,
                unused,
                direct,
                metered,
                node,
                dataplane,
            })
            .ok()
        })
    }
}

/// Logs what the node reports, until the loop ends.
async fn log_events(
    events: &mut mpsc::UnboundedReceiver<Event>,
    core: &str,
    news: &Notify,
    policy: &watch::Receiver<Policies>,
) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Path { path, from, to, reason } => {
                tracing::info!(core, %path, ?from, ?to, reason, "path");
                // Where it came up is an address that has proved right; and direct flows go by what works.
                let moves = works(from) != works(to) && direct::concerns(&in_force(&policy.borrow()));
                if to == PathState::Up || moves {
                    news.notify_one();
                }
            }
            Event::Reachable(_) => tracing::info!(core, "reachable"),
            Event::Unreachable(_) => tracing::warn!(core, "unreachable"),
            Event::Moved { class, from, to, .. } => {
                let [from, to] = [from, to].map(|path| path.map(tracing::field::display));
                tracing::info!(core, %class, from, to, "moved")
            }
        }
    }
}
