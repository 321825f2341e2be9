//! The daemons of a run: what they are told, how they are started and ended, what they say, what they leave behind.

mod bird;
mod files;
mod services;
mod traces;

pub use bird::events as bgp_events;
pub use files::Files;
pub use traces::Traces;

use crate::net::build::Node;
use crate::scenario::Host;
use anyhow::{Context, Result, bail};
use proto::snapshot::Snapshot;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a daemon may take to end when it is asked to: longer than any of its own time-outs that it waits for then.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often something is looked at that cannot be waited for.
const POLL: Duration = Duration::from_millis(20);

/// What runs on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `mspmb`.
    Middlebox,
    /// `msp-core`.
    Core,
    /// BIRD.
    Bird,
    /// wireguard-go.
    WireGuard,
    /// dnsmasq.
    Dns,
    /// tayga.
    Nat64,
    /// A script of the scenario's.
    Script,
}

impl Kind {
    /// What runs on a host, if anything does.
    pub fn of(host: &Host) -> Option<Self> {
        if host.script.as_ref().is_some_and(|script| !script.run.is_empty()) {
            Some(Kind::Script)
        } else if host.core.is_some() {
            Some(Kind::Core)
        } else if host.bird.is_some() {
            Some(Kind::Bird)
        } else if host.middlebox.is_some() {
            Some(Kind::Middlebox)
        } else if host.wireguard.is_some() {
            Some(Kind::WireGuard)
        } else if host.dns.is_some() {
            Some(Kind::Dns)
        } else if host.nat64.is_some() {
            Some(Kind::Nat64)
        } else {
            None
        }
    }

    /// It is ours: it has a status, and must leave nothing behind.
    pub fn is_ours(self) -> bool {
        matches!(self, Kind::Middlebox | Kind::Core)
    }
}

/// A daemon, running or not.
#[derive(Debug)]
pub struct Daemon {
    /// The name of its host.
    pub host: String,
    /// What it is.
    pub kind: Kind,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    log: PathBuf,
    /// Where it is asked for its status.
    pub control: PathBuf,
    process: Option<Child>,
    /// It was stopped in its tracks, and cannot answer.
    frozen: Arc<AtomicBool>,
    /// The host before the daemon's first start.
    before: Option<Traces>,
}

/// How a daemon ended.
#[derive(Debug)]
pub struct Ended {
    /// As it should.
    pub clean: bool,
    /// What happened, in words.
    pub how: String,
}

impl Daemon {
    /// A daemon whose files are written.
    pub fn new(host: &str, kind: Kind, files: &Files, binaries: &Path) -> Self {
        let config = files.config(host).to_string_lossy().into_owned();
        let control = files.control(host);
        let run = |program: &str| (binaries.join(program), vec!["run".into(), "--config".into(), config.clone()]);
        let (program, arguments) = match kind {
            Kind::Middlebox => run("mspmb"),
            Kind::Core => run("msp-core"),
            Kind::Bird => {
                let socket = control.to_string_lossy().into_owned();
                (PathBuf::from("bird"), vec!["-f".into(), "-c".into(), config, "-s".into(), socket])
            }
            // Scripts, that end as the program.
            Kind::Dns | Kind::Nat64 | Kind::Script => {
                let script = files.script(host).to_string_lossy().into_owned();
                (PathBuf::from("sh"), vec!["-e".into(), script])
            }
            Kind::WireGuard => (PathBuf::from("wireguard-go"), vec!["-f".into(), files::CLIENT_TUN.into()]),
        };
        Daemon {
            host: host.to_owned(),
            kind,
            program,
            arguments,
            // BIRD writes local time into its log; wireguard-go warns at length unless it is told that we mean it.
            environment: vec![
                ("TZ", "UTC"),
                ("WG_PROCESS_FOREGROUND", "1"),
                ("LOG_LEVEL", "error"),
                ("GOMAXPROCS", "1"),
            ],
            log: files.log(host),
            control,
            process: None,
            frozen: Arc::default(),
            before: None,
        }
    }

    /// Starts it.
    pub fn start(&mut self, node: &Node) -> Result<()> {
        if self.process.is_some() {
            bail!("the daemon of {} runs already", self.host);
        }
        if self.before.is_none() && self.kind.is_ours() {
            self.before = Some(Traces::take(node).with_context(|| format!("cannot look at host {}", self.host))?);
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(node.spawn(&mut command)?);
        Ok(())
    }

    /// Whether it was started and not ended by us.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// If it ended by itself: how.
    pub fn failed(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.try_wait().ok().flatten()?;
        self.process = None;
        Some(format!("ended by itself: {status}; {}", self.last_words()))
    }

    /// SIGHUP.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> Result<()> {
        self.frozen.store(true, Ordering::Release);
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.frozen.store(false, Ordering::Release);
        Ok(())
    }

    /// Set while it is frozen: whoever asks it then waits in vain.
    pub fn frozen(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.frozen)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().with_context(|| format!("the daemon of {} does not run", self.host))?;
        let pid = Pid::from_raw(process.id().cast_signed()).context("a process has a number above 0")?;
        kill_process(pid, signal).with_context(|| format!("cannot send a signal to the daemon of {}", self.host))
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<Ended> {
        self.signal(Signal::KILL)?;
        self.frozen.store(false, Ordering::Release);
        if let Some(mut process) = self.process.take() {
            process.wait()?;
        }
        Ok(Ended { clean: true, how: "killed on purpose".into() })
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self) -> Result<Ended> {
        self.signal(Signal::TERM)?;
        if self.frozen.load(Ordering::Acquire) {
            self.thaw()?;
        }
        let Some(mut process) = self.process.take() else { bail!("the daemon of {} does not run", self.host) };
        let asked = Instant::now();
        loop {
            if let Some(status) = process.try_wait()? {
                return Ok(self.ended(status, asked.elapsed()));
            }
            if asked.elapsed() > PATIENCE {
                process.kill()?;
                process.wait()?;
                let how = format!("did not end within {} s of SIGTERM; killed", PATIENCE.as_secs());
                return Ok(Ended { clean: false, how });
            }
            std::thread::sleep(POLL);
        }
    }

    fn ended(&self, status: ExitStatus, took: Duration) -> Ended {
        let millis = took.as_millis();
        match status.success() {
            true => Ended { clean: true, how: format!("ended {millis} ms after SIGTERM") },
            false => Ended { clean: false, how: format!("SIGTERM: {status}; {}", self.last_words()) },
        }
    }

    /// What it left on the host since before its first start. Only while it does not run.
    pub fn left_over(&self, node: &Node) -> Result<Vec<String>> {
        let mut left = match &self.before {
            Some(before) => Traces::take(node)?.beyond(before),
            None => Vec::new(),
        };
        if self.kind.is_ours() && self.control.exists() {
            left.push(format!("socket {}", self.control.display()));
        }
        Ok(left)
    }

    /// What it says of itself now; `None` if it does not answer.
    pub fn status(control: &Path) -> Option<Snapshot> {
        /// The part of a status that the lab reads.
        #[derive(Deserialize)]
        struct Status {
            node: Snapshot,
        }
        let mut socket = UnixStream::connect(control).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        socket.write_all(b"status\n").ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok()?;
        serde_json::from_slice::<Status>(&answer).ok().map(|status| status.node)
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("{} ends with:\n{}", self.log.display(), lines[lines.len().saturating_sub(8)..].join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
