//! What the lab needs beyond git and rustup, in one place, with reasons.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A package of Debian or Ubuntu.
struct Package {
    name: &'static str,
    /// A file that it installs: there, and nothing needs to be done.
    file: &'static str,
    /// Which command needs it for what.
    why: &'static str,
}

const fn package(name: &'static str, file: &'static str, why: &'static str) -> Package {
    Package { name, file, why }
}

const PACKAGES: &[Package] = &[
    package("gcc", "/usr/bin/cc", "links Rust programs; compiles a shim for processors with AMX"),
    package("libc6-dev", "/usr/include/stdio.h", "headers for the same"),
    package("iproute2", "/usr/sbin/tc", "addresses, routes and links of the lab's hosts"),
    package("nftables", "/usr/sbin/nft", "NAT and ingress filters of the ISPs, direct flows of the box"),
    package(
        "iptables",
        "/usr/sbin/iptables-legacy",
        "the same in Debian's User-Mode-Linux kernel, which has no nftables",
    ),
    package("iputils-ping", "/usr/bin/ping", "checks of a scenario by hand"),
    package("bird2", "/usr/sbin/bird", "the transit's router"),
    package("frr", "/usr/lib/frr/bgpd", "a transit's router"),
    package("gobgpd", "/usr/bin/gobgpd", "a transit's router"),
    package("openbgpd", "/usr/sbin/bgpctl", "a transit's router"),
    package("exabgp", "/usr/sbin/exabgp", "a transit's router, which says whatever octets it is told"),
    package("stayrtr", "/usr/bin/stayrtr", "an RPKI cache"),
    package("tshark", "/usr/bin/tshark", "a third reader of UPDATEs, beside ours and bgpkit-parser (120 MB)"),
    package("bgpdump", "/usr/bin/bgpdump", "reads what the core dumps of received routes"),
    package("wireguard-tools", "/usr/bin/wg", "configures the plain WireGuard client"),
    package("wireguard-go", "/usr/bin/wireguard-go", "the plain WireGuard client"),
    package(
        "python3-venv",
        "/usr/share/doc/python3-venv",
        "aioquic, an independent QUIC client, in a folder of the lab's",
    ),
    package("dnsmasq-base", "/usr/sbin/dnsmasq", "the ISPs' resolvers"),
    package("tayga", "/usr/sbin/tayga", "NAT64 of an IPv6-only ISP"),
    package("ethtool", "/usr/sbin/ethtool", "links on which netem meets each packet by itself"),
    package("iperf3", "/usr/bin/iperf3", "speed, where a scenario asks for it"),
    package("tcpdump", "/usr/bin/tcpdump", "--pcap"),
    package("user-mode-linux", "/usr/bin/linux.uml", "a kernel with netem where this machine's has none"),
    package("kmod", "/usr/sbin/modprobe", "modules of that kernel"),
    package("linux-source-6.1", "/usr/src/linux-source-6.1.tar.xz", "cargo lab kernel"),
    package("make", "/usr/bin/make", "cargo lab kernel"),
    package("flex", "/usr/bin/flex", "cargo lab kernel"),
    package("bison", "/usr/bin/bison", "cargo lab kernel"),
    package("bc", "/usr/bin/bc", "cargo lab kernel"),
    package("xz-utils", "/usr/bin/xz", "cargo lab kernel"),
];

/// Whether we may install packages and use this machine's kernel for a run.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What the machine is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The demonstration and single scenarios.
    Demo,
    /// `cargo lab test`.
    Test,
    /// All commands.
    Everything,
}

/// Installs what is missing, or says how.
pub fn setup(purpose: For) -> Result<()> {
    let all = purpose == For::Everything;
    let wanted = |p: &&Package| (all || p.why != "cargo lab kernel") && !Path::new(p.file).exists();
    let missing: Vec<&Package> = PACKAGES.iter().filter(wanted).collect();
    if missing.is_empty() {
        println!("all packages are there");
    } else {
        for package in &missing {
            println!("missing: {:<18} {}", package.name, package.why);
        }
        let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
        let line = format!("apt-get update && apt-get install --yes --no-install-recommends {}", names.join(" "));
        if !is_root() {
            bail!("packages are missing; as root run:\n{line}");
        }
        println!("installing: {line}");
        let status = Command::new("sh").args(["-ec", &line]).env("DEBIAN_FRONTEND", "noninteractive").status();
        if !status.context("cannot start a shell")?.success() {
            bail!("apt-get failed; see above. The line was:\n{line}");
        }
    }
    if purpose != For::Demo && aioquic::ready().is_err() {
        aioquic::install()?;
    }
    if purpose != For::Demo && !cargo_deny_is_there() {
        println!("installing cargo-deny, which checks licences and sources (some minutes, once)");
        let status = cargo().args(["install", "--locked", "cargo-deny"]).status();
        if !status.context("cannot start cargo")?.success() {
            bail!("cargo install --locked cargo-deny failed; see above");
        }
    }
    Ok(())
}

/// The independent QUIC client: aioquic of PyPI, in an environment of its own in the lab's cache. Nothing of the machine's
/// Python is changed.
pub mod aioquic {
    use super::{Command, Context, Path, Result, bail};
    use std::path::PathBuf;

    /// The program, which a scenario's script runs as `$PYTHON client.py`.
    pub const CLIENT: &str = include_str!("../aioquic/client.py");
    const REQUIREMENTS: &str = include_str!("../aioquic/requirements.txt");

    /// Made for these versions: others have another folder.
    fn folder() -> Result<PathBuf> {
        Ok(crate::kernel::cache()?.join(REQUIREMENTS.trim().replace("==", "-")))
    }

    /// The Python that has it.
    pub fn python() -> Result<PathBuf> {
        Ok(folder()?.join("bin/python"))
    }

    /// Whether it is there; an error says what to do.
    pub fn ready() -> Result<()> {
        // Written last.
        match folder()?.join("complete").exists() {
            true => Ok(()),
            false => bail!("aioquic is missing: cargo lab setup installs it"),
        }
    }

    pub(super) fn install() -> Result<()> {
        println!("installing {} of PyPI, an independent QUIC client", REQUIREMENTS.trim());
        let folder = folder()?;
        let run = |program: &Path, arguments: &[&str]| -> Result<()> {
            let status = Command::new(program).args(arguments).arg(&folder).status();
            match status.with_context(|| format!("cannot start {}", program.display()))?.success() {
                true => Ok(()),
                false => bail!("{} {} failed; see above", program.display(), arguments.join(" ")),
            }
        };
        run(Path::new("/usr/bin/python3"), &["-m", "venv", "--clear"])?;
        let status = Command::new(python()?).args(["-m", "pip", "install", "--quiet", REQUIREMENTS.trim()]).status();
        if !status.context("cannot start pip")?.success() {
            bail!("pip install {} failed; see above", REQUIREMENTS.trim());
        }
        std::fs::write(folder.join("complete"), "").context("cannot write into the lab's cache")
    }
}

/// Those of some packages that are not there.
pub fn missing(names: &[&'static str]) -> Vec<&'static str> {
    let there = |name: &str| PACKAGES.iter().any(|package| package.name == name && Path::new(package.file).exists());
    names.iter().copied().filter(|name| !there(name)).collect()
}

/// The cargo that started us, as if started by hand: of what it tells a program that it runs, build scripts take some for
/// a change (ring's, of the package's name), and everything above them would be built anew each time.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    command
}

fn cargo_deny_is_there() -> bool {
    let output = cargo().args(["deny", "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}
