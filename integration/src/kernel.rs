//! The kernel that a run has: this machine's, or a User-Mode-Linux one, best in virtual time.
//!
//! In virtual time (`time-travel=inf-cpu`) processing takes no time and idle time is skipped: a gap is exact to a
//! millisecond whatever the machine's load, so deadlines are asserted there and only reported elsewhere.

pub mod build;
mod uml;

pub(crate) use uml::{Interrupted, quote};

use crate::report::Kernel;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What `--kernel` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// Virtual time where its kernel is there, else this machine's kernel if it has netem, else Debian's UML.
    #[default]
    Auto,
    /// This machine's kernel; needs root and netem.
    Native,
    /// Debian's User-Mode Linux, on the machine's clock.
    Uml,
    /// User-Mode Linux in virtual time; see `cargo lab kernel`.
    Virtual,
    /// No kernel: the protocol alone, for scenarios that name nothing that only a kernel has.
    Simulator,
}

/// Where a run takes place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of which kind.
    pub kernel: Kernel,
    /// The User-Mode-Linux binary.
    image: Option<PathBuf>,
}

/// Names a ready virtual-time kernel.
pub const KERNEL_VARIABLE: &str = "MSP_LAB_KERNEL";

impl Place {
    /// Finds the kernel for a choice.
    pub fn find(choice: Choice) -> Result<Self> {
        let place = |kernel, image| Place { kernel, image };
        let native = || crate::setup::is_root() && native_has_netem();
        match choice {
            Choice::Virtual => Ok(place(
                Kernel::Virtual,
                Some(virtual_image()?.context(
                    "there is no virtual-time kernel yet: `cargo lab kernel` builds it once (10 to 20 minutes), or \
                 MSP_LAB_KERNEL names one",
                )?),
            )),
            Choice::Simulator => bail!("the simulator is no kernel: only `cargo lab run` knows it"),
            Choice::Native if native() => Ok(place(Kernel::Native, None)),
            Choice::Native if !crate::setup::is_root() => bail!("--kernel native needs root; --kernel uml does not"),
            Choice::Native => bail!("this machine's kernel has no netem (CONFIG_NET_SCH_NETEM); use --kernel uml"),
            Choice::Uml => match debian_image() {
                Some(image) => Ok(place(Kernel::Uml, Some(image))),
                None => bail!("there is no User-Mode Linux: `cargo lab setup` installs it (package user-mode-linux)"),
            },
            Choice::Auto => match (virtual_image()?, native(), debian_image()) {
                (Some(image), ..) => Ok(place(Kernel::Virtual, Some(image))),
                (None, true, _) => Ok(place(Kernel::Native, None)),
                (None, false, Some(image)) => Ok(place(Kernel::Uml, Some(image))),
                (None, false, None) => bail!(
                    "no kernel to run in: this one has no netem or we are not root, and there is no User-Mode Linux; \
                     `cargo lab setup` installs one, `cargo lab kernel` builds a better one"
                ),
            },
        }
    }

    /// This machine's kernel, for what needs no netem: where speed is measured.
    pub fn wires() -> Result<Self> {
        if !crate::setup::is_root() {
            bail!("this measures this machine's kernel, and needs root for namespaces");
        }
        Ok(Place { kernel: Kernel::Native, image: None })
    }

    /// Runs a command there as root, its output streamed to ours, and returns its exit status. `shared` are folders of
    /// the host that it must see (a guest has its own /tmp and /run). After `timeout`, or when this process is told to
    /// end, everything is killed.
    pub async fn run(&self, command: &[String], shared: &[&Path], timeout: Duration) -> Result<i32> {
        match &self.image {
            Some(image) => {
                uml::Guest { image, virtual_time: self.kernel == Kernel::Virtual, shared }.run(command, timeout).await
            }
            None => uml::native(command, timeout).await,
        }
    }
}

/// Whether this kernel has netem, found out by using it.
fn native_has_netem() -> bool {
    Command::new("unshare")
        .args(["--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Where things are kept that take long to make.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache")
        }
    };
    let folder = base.join("msp-lab");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The virtual-time kernel: the one named from outside, or the one built here.
fn virtual_image() -> Result<Option<PathBuf>> {
    if let Some(named) = std::env::var_os(KERNEL_VARIABLE).filter(|v| !v.is_empty()) {
        let named = PathBuf::from(named);
        if !named.is_file() {
            bail!("{KERNEL_VARIABLE} names {}, which is no file", named.display());
        }
        return Ok(Some(named));
    }
    let built = build::image()?;
    Ok(built.is_file().then_some(built))
}

fn debian_image() -> Option<PathBuf> {
    ["/usr/bin/linux.uml", "/usr/bin/linux"].map(PathBuf::from).into_iter().find(|path| path.is_file())
}
