//! The daemon: what starts, what it listens to, and what is undone when it ends.

use crate::config::Config;
use crate::lan;
use crate::status::{self, Status};
use crate::uplinks::{UplinkStatus, Uplinks};
use anyhow::Context;
use dataplane::control::ControlSocket;
use dataplane::engine::{Dataplane, Handle};
use dataplane::host::{Host, Owner};
use dataplane::logging;
use dataplane::netlink::{Interface, Watch};
use proto::{Event, PathId};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// When to look at the uplinks again after something went wrong that should not have. The kernel's news alone would
/// do if nothing did.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs until a signal says otherwise.
pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    logging::start();
    // One thread is enough for everything but packets, which have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(supervise(config))
}

/// Takes hold of the host, serves, and gives the host back, whatever happened in between.
async fn supervise(config: Config) -> anyhow::Result<()> {
    let mut host = Host::open(&config.journal(), Owner::Middlebox).await?;
    let served = serve(&config, &mut host).await;
    host.restore().await;
    if served.is_ok() {
        tracing::info!("ended; everything is as it was");
    }
    served
}

async fn serve(config: &Config, host: &mut Host) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let control = ControlSocket::bind(&config.control)?;
    let tun = host.open_tun(&config.tun.name, config.tun.mtu).await?;
    let (dataplane, mut events) = Dataplane::start(config.node(), tun, Vec::new())?;
    let handle = dataplane.handle();
    let mut site = Site::new(config, host, handle.clone());
    let control = tokio::spawn(control.serve(answers(handle, site.shown.subscribe())));
    tracing::info!(prefixes = ?config.prefixes, core = config.core.name, tun = config.tun.name, "running");

    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // It never ends but by an error.
        result = site.follow() => result,
        () = log_events(&mut events, &config.core.name) => Err(anyhow::anyhow!("stopping")),
    };
    control.abort();
    // Waited for, so that the socket is gone when we are; that it was aborted is no news.
    let _ = control.await;
    // If the loop has ended by itself, its own error says more.
    dataplane.stop()?;
    ended
}

/// The site's side of the host, and the uplinks: they change together.
struct Site<'a> {
    config: &'a Config,
    host: &'a mut Host,
    uplinks: Uplinks,
    shown: watch::Sender<Vec<UplinkStatus>>,
    /// What was last wrong with the host, to say it once.
    problem: Option<String>,
}

impl<'a> Site<'a> {
    fn new(config: &'a Config, host: &'a mut Host, handle: Handle) -> Self {
        let netlink = host.netlink().clone();
        let uplinks =
            Uplinks::new(handle, netlink, config.prefixes.clone(), config.core.endpoints.clone(), &config.uplinks);
        let shown = watch::Sender::new(uplinks.status().to_vec());
        Site { config, host, uplinks, shown, problem: None }
    }

    /// Looks, and looks again at each news.
    async fn follow(&mut self) -> anyhow::Result<()> {
        // Before the first look: what changes during it is heard.
        let mut news = Watch::new().context("cannot listen to the kernel's news of interfaces")?;
        loop {
            let well = self.look().await?;
            let changed =
                async { news.changed().await.context("cannot hear the kernel's news of interfaces any more") };
            if well {
                changed.await?;
            } else if let Ok(heard) = tokio::time::timeout(AGAIN, changed).await {
                heard?;
            }
        }
    }

    /// Whether all went well.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let interfaces = self.host.netlink().interfaces().await.context("cannot ask the kernel for the interfaces")?;
        let interfaces: BTreeMap<String, Interface> =
            interfaces.into_values().map(|interface| (interface.name.clone(), interface)).collect();
        let present = self.config.uplinks.iter().map(|uplink| uplink.interface.as_str());
        let present = present.filter(|name| interfaces.contains_key(*name));
        let mut wanted = lan::parameters(&self.config.prefixes, present);
        wanted.extend(lan::routing(&self.config.prefixes, &self.config.tun.name));
        // An interface can go between the looking and the setting, or somebody has set the TUN down.
        let problem = self.host.set(&wanted).await.err().map(|error| error.to_string());
        if problem != self.problem {
            match &problem {
                Some(problem) => tracing::warn!(problem, "the host is not as it should be"),
                None => tracing::info!("the host is as it should be again"),
            }
            self.problem = problem;
        }
        let well = self.uplinks.look(&interfaces).await?;
        self.shown.send_replace(self.uplinks.status().to_vec());
        Ok(well && self.problem.is_none())
    }
}

/// What the control socket answers.
fn answers(
    handle: Handle,
    uplinks: watch::Receiver<Vec<UplinkStatus>>,
) -> impl Fn(String) -> std::pin::Pin<Box<dyn Future<Output = Option<serde_json::Value>> + Send>> + Send + Sync {
    let started = Instant::now();
    move |command| {
        let (handle, uplinks) = (handle.clone(), uplinks.borrow().clone());
        Box::pin(async move {
            if command != "status" {
                return None;
            }
            let (node, dataplane) = handle.snapshot().await.ok()?;
            serde_json::to_value(Status {
                schema: status::SCHEMA,
                daemon: status::DAEMON.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_s: started.elapsed().as_secs_f64(),
                uplinks,
                node,
                dataplane,
            })
            .ok()
        })
    }
}

/// Logs what the node reports, until the loop ends.
async fn log_events(events: &mut mpsc::UnboundedReceiver<Event>, core: &str) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Path { path: PathId { slot, .. }, from, to, reason } => {
                tracing::info!(core, slot, ?from, ?to, reason, "path");
            }
            Event::Reachable(_) => tracing::info!(core, "reachable"),
            Event::Unreachable(_) => tracing::warn!(core, "unreachable"),
            Event::Moved { from, to, .. } => tracing::info!(core, ?from, ?to, "moved"),
        }
    }
}
