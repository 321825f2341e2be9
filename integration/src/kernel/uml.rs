//! Runs a command in a throw-away User-Mode-Linux guest on the host's own files: no root, no KVM.
//!
//! Learnt on the way, and the reasons for what is odd here: UML makes its console descriptors non-blocking and cannot
//! poll plain files, so it gets pipes only. All its processes are in the process group of the first one, so killing the
//! group leaves nothing behind. A boot hangs now and then on a loaded host (4 of 90): a boot is tried again, a run never.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// A boot takes 1 to 5 s; on a machine with much else to do, some more.
const BOOT: Duration = Duration::from_secs(30);
const BOOT_TRIES: u32 = 3;

/// A sparse file: what a guest does not touch costs nothing.
const MEMORY: &str = "1G";

/// Where Debian's kernel has its modules.
const MODULES: &str = "/usr/lib/uml/modules";

/// What timeout(1) returns.
const TIMED_OUT: i32 = 124;

/// A guest to be.
pub(super) struct Guest<'a> {
    pub(super) image: &'a Path,
    pub(super) virtual_time: bool,
    pub(super) shared: &'a [&'a Path],
}

/// How a try ended.
enum End {
    Status(i32),
    NoBoot,
    Died,
}

/// A folder that goes when its owner goes.
struct Scratch(PathBuf);

impl Scratch {
    fn create(parent: &Path) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("msp-lab.{}.{number}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All processes of a guest, killed when their owner goes.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Guest<'_> {
    /// See [`super::Place::run`].
    pub(super) async fn run(&self, command: &[String], timeout: Duration) -> Result<i32> {
        // Not below /tmp, which the guest hides behind one of its own.
        let scratch = Scratch::create(Path::new("/var/tmp"))?;
        self.write(&scratch.0, command)?;
        for attempt in 1..=BOOT_TRIES {
            let (end, log) = self.attempt(&scratch.0, attempt, timeout).await?;
            let log = log.trim();
            match end {
                End::Status(status) => return Ok(status),
                End::Died => bail!("the guest died; its kernel said:\n{log}"),
                End::NoBoot if attempt == BOOT_TRIES => {
                    bail!(
                        "the guest did not boot in {BOOT_TRIES} tries; its kernel ({}) said:\n{log}",
                        self.image.display()
                    )
                }
                End::NoBoot => eprintln!("the guest did not boot (try {attempt}), once more"),
            }
        }
        unreachable!("the last try returns")
    }

    /// What init needs.
    fn write(&self, scratch: &Path, command: &[String]) -> Result<()> {
        let mut vars = String::new();
        for name in ["PATH", "HOME", "LANG", "RUST_LOG", "RUST_BACKTRACE"] {
            if let Ok(value) = std::env::var(name) {
                let _ = writeln!(vars, "export {name}={}", quote(&value));
            }
        }
        let directory = std::env::current_dir().context("cannot tell the current folder")?;
        let shares: BTreeSet<&Path> = self.shared.iter().copied().chain([directory.as_path()]).collect();
        let shares =
            shares.into_iter().map(|share| share.to_string_lossy().into_owned()).collect::<Vec<_>>().join("\n");
        let words = command.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        let _ = writeln!(vars, "DIRECTORY={}", quote(&directory.to_string_lossy()));
        let _ = writeln!(vars, "MODULES={MODULES}");
        // Split at line ends only: a folder may have a space in its name.
        let _ = writeln!(vars, "IFS='\n'");
        let _ = writeln!(vars, "SHARES={}", quote(&shares));
        let _ = writeln!(vars, "COMMAND={}", quote(&words));
        std::fs::write(scratch.join("vars"), vars)?;
        let init = scratch.join("init");
        std::fs::write(&init, include_str!("../../kernel/init.sh"))?;
        std::fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(())
    }

    async fn attempt(&self, scratch: &Path, attempt: u32, timeout: Duration) -> Result<(End, String)> {
        // In memory where there is some; else where temporary files go (which must not be mounted noexec).
        let memory = Scratch::create(Path::new("/dev/shm")).or_else(|_| Scratch::create(&std::env::temp_dir()))?;
        let (output, output_writer) = std::io::pipe().context("cannot make a pipe")?;
        let (log, log_writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut output = pipe::Receiver::from_owned_fd(output.into())?;
        let mut log = BufReader::new(pipe::Receiver::from_owned_fd(log.into())?).split(b'\n');
        let mut guest = Group(self.spawn(scratch, &memory.0, attempt, output_writer.into(), log_writer.into())?);

        let mut signals = Signals::new()?;
        let mut kernel_log = String::new();
        let mut limit = tokio::time::Instant::now() + BOOT;
        let mut up = false;
        let mut buffer = vec![0; 1 << 16];
        let mut output_open = true;
        let end = loop {
            tokio::select! {
                // Output first: all of it is in the pipe before the status is said.
                biased;
                signal = signals.next() => return Err(signal),
                read = output.read(&mut buffer), if output_open => match read? {
                    0 => output_open = false,
                    length => {
                        let mut stdout = std::io::stdout().lock();
                        stdout.write_all(&buffer[..length])?;
                        stdout.flush()?;
                    }
                },
                line = log.next_segment() => match line? {
                    Some(line) => {
                        let line = String::from_utf8_lossy(&line);
                        let line = line.trim_end();
                        match line.strip_prefix("@lab ") {
                            Some("up") => (up, limit) = (true, tokio::time::Instant::now() + timeout),
                            Some(status) => {
                                let status = status.strip_prefix("status ").and_then(|s| s.parse().ok());
                                break End::Status(status.context("the guest's init said something strange")?);
                            }
                            None => kernel_log.extend([line, "\n"]),
                        }
                    }
                    None => break if up { End::Died } else { End::NoBoot },
                },
                _ = guest.0.wait() => break if up { End::Died } else { End::NoBoot },
                () = tokio::time::sleep_until(limit) => {
                    if up {
                        eprintln!("killed after {} s, the time that this run may take", timeout.as_secs());
                        break End::Status(TIMED_OUT);
                    }
                    break End::NoBoot;
                }
            }
        };
        Ok((end, kernel_log))
    }

    fn spawn(&self, scratch: &Path, memory: &Path, attempt: u32, output: OwnedFd, log: OwnedFd) -> Result<Child> {
        let mut command = Command::new(self.image);
        command
            .arg(format!("mem={MEMORY}"))
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "loglevel=4"])
            .args(["panic=-1", "noreboot", "selinux=0", "ssl=null", "con=null"])
            .arg(format!("init={}/init", scratch.display()))
            .arg(format!("uml_dir={}", scratch.display()))
            .arg(format!("umid=guest{attempt}"))
            // The kernel's log and the channel to init leave by 1, the command's output by 0 (a descriptor has one user only).
            .args(["con0=null,fd:1", "con1=null,fd:0"])
            .args(self.virtual_time.then_some("time-travel=inf-cpu"))
            .env("TMPDIR", memory)
            .stdin(Stdio::from(output))
            .stderr(Stdio::from(log.try_clone()?))
            .stdout(Stdio::from(log))
            .process_group(0);
        if let Some(preload) = super::build::xstate_shim()? {
            command.env("LD_PRELOAD", preload);
        }
        command.spawn().with_context(|| format!("cannot start {}", self.image.display()))
    }
}

/// This process was told to end.
#[derive(Debug, thiserror::Error)]
#[error("ended by {0}")]
pub(crate) struct Interrupted(&'static str);

/// What tells this process to end.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let one = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals([one(SignalKind::interrupt())?, one(SignalKind::terminate())?, one(SignalKind::hangup())?]))
    }

    async fn next(&mut self) -> anyhow::Error {
        let [interrupt, terminate, hangup] = &mut self.0;
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        };
        Interrupted(name).into()
    }
}

/// The same without a guest.
pub(super) async fn native(command: &[String], timeout: Duration) -> Result<i32> {
    let mut signals = Signals::new()?;
    let mut run = Group(
        // In a PID namespace, so that nothing outlives the command, however it ends.
        Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"])
            .args(command)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start unshare (package util-linux)")?,
    );
    tokio::select! {
        signal = signals.next() => Err(signal),
        status = run.0.wait() => Ok(status?.code().unwrap_or(TIMED_OUT)),
        () = tokio::time::sleep(timeout) => {
            eprintln!("killed after {} s, the time that this run may take", timeout.as_secs());
            Ok(TIMED_OUT)
        }
    }
}

/// A word for a POSIX shell.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn quoted_words_survive_a_shell() {
        for word in ["", "a b", "it's", "$HOME `x` \\ \"", "line\nbreak"] {
            let script = format!("printf %s {}", super::quote(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("there is a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }
}
