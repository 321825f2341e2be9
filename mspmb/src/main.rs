//! The middlebox at a site: a tunnel over every ISP link, the site's packets in them, and nothing else touched.
//!
//! | module | is |
//! | --- | --- |
//! | [`config`] | what the operator wrote |
//! | [`run`] | the daemon |
//! | [`find`] | which interfaces are uplinks, and which slot each has |
//! | [`uplinks`] | which of them can be used now and how, and what the node is told |
//! | [`names`] | the core's names, asked for through each uplink's own resolver |
//! | [`nat64`] | how IPv4 is reached from an uplink that has only IPv6 |
//! | [`overlap`] | ISPs' networks that overlap the site's |
//! | [`lan`] | what the host must look like for the site's packets |
//! | [`breakout`] | flows that leave by an uplink itself |
//! | [`meter`] | what metered links have carried, and whether that is what they may |
//! | [`state`] | what is known again after a restart |
//! | [`status`] | what is shown |
//! | [`explain`] | what policy says of a packet, asked for by its command |

mod breakout;
mod config;
mod explain;
mod find;
mod lan;
mod meter;
mod names;
mod nat64;
mod overlap;
mod run;
mod state;
mod status;
mod uplinks;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use config::Config;
use dataplane::explain::Packet;
use dataplane::settings;
use proto::{MAX_SLOTS, SecretKey};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The middlebox of a multihomed site.
///
/// It keeps an encrypted tunnel over every ISP link to the provider's core, and sends the site's packets through the
/// best one. When an ISP fails, connections go on over another.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct File {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the middlebox until SIGTERM or SIGINT
    ///
    /// Needs CAP_NET_ADMIN and CAP_NET_RAW. Logs go to stderr; RUST_LOG (for example RUST_LOG=debug) says how much.
    /// Whatever it changes on this host (routing rules, routes, sysctls, a table of nftables) is undone when it ends, or by its next start
    /// if it was killed. Every key of the configuration can be overridden by a variable: MSPMB_TUN__MTU=1400 sets `mtu`
    /// in [tun]. SIGHUP has it read the policy again.
    Run(File),
    /// Checks the configuration, the policy and the secret, and changes nothing
    Check(File),
    /// Shows what the running middlebox does
    Status {
        #[command(flatten)]
        file: File,
        /// Print the daemon's answer as JSON
        #[arg(long)]
        json: bool,
        /// Show it anew every second, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Tells what the policy says of a packet: its class, and which links it takes
    ///
    /// For example: mspmb explain --dst 192.0.2.7 --dport 443
    Explain {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        packet: Packet,
    },
    /// Makes the box's secret, and prints the public keys that the core needs
    ///
    /// The secret stays in its file, readable by its owner only. The line on stdout goes into the site's file at the
    /// core, below [middlebox].
    Keygen {
        #[command(flatten)]
        file: File,
        /// The file for the secret [default: the configuration's `secret_file`]
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
        /// Replace a secret that exists: the core will not know this box until it has the new keys
        #[arg(long)]
        force: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(file) => run::run(&file.config),
        Command::Check(file) => check(&file),
        Command::Status { file, json, watch } => status::show(&file.config, json, watch),
        Command::Explain { file, packet } => explain::explain(&file.config, &packet),
        Command::Keygen { file, secret_file, force } => keygen(&file, secret_file, force),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain in one line: it goes to a log as often as to a terminal.
            eprintln!("mspmb: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &File) -> anyhow::Result<()> {
    let config = Config::load(&file.config)?;
    breakout::check(&config.policy)?;
    let mut uplinks: Vec<_> = config.uplinks.iter().map(|uplink| uplink.interface.as_str()).collect();
    if config.find {
        uplinks.push("whatever has a default route");
    }
    print(&format!(
        "{} is good: {} over {} to {}\n",
        file.config.display(),
        config.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        uplinks.join(", "),
        config.core.name,
    ))?;
    print(&config.tunnels_text())?;
    config.left_out.iter().try_for_each(|left_out| print(&format!("{left_out}\n")))?;
    config.policy.classes().iter().filter_map(explain::leaves_by).try_for_each(|leaves| print(&leaves))
}

fn keygen(file: &File, secret_file: Option<PathBuf>, force: bool) -> anyhow::Result<()> {
    let path = match secret_file {
        Some(path) => path,
        None => config::secret_file(&file.config)?,
    };
    let mut entropy = [0; 32];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
        .context("cannot get random numbers from the kernel")?;
    let secret = SecretKey::from_bytes(entropy);
    settings::write_key(&path, &secret, force)?;
    eprintln!("The secret is in {}. For the site's file at the core, below [middlebox]:", path.display());
    let keys: Vec<String> =
        (0..MAX_SLOTS as u8).map(|slot| format!("    \"{}\",\n", secret.uplink(slot).public())).collect();
    print(&format!("uplink_keys = [\n{}]\n", keys.concat()))
}

/// Writes to stdout. A reader that has seen enough (`head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to stdout"),
    }
}
