//! The commands of `msp-core`.

use crate::config::{self, Config};
use crate::look;
use crate::sites::{Sites, SitesError, Surroundings};
use crate::status::Status;
use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use dataplane::calendar;
use dataplane::explain::{End, Packet};
use proto::SecretKey;
use proto::policy::Direction;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The core of a Multihoming Service Provider, at a point of presence.
#[derive(Debug, Parser)]
#[command(name = "msp-core", version)]
struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the core, until SIGTERM; SIGHUP reloads the sites, and what is said of them ([[ingress]], [[aggregate]])
    Run,
    /// Check the configuration and all site files, and say what is wrong
    Check,
    /// Show sites, paths and BGP neighbours of the running core
    Status {
        #[command(flatten)]
        view: View,
    },
    /// List the sites of the running core: announced, or why not
    Sites {
        #[command(flatten)]
        view: View,
    },
    /// Tell what the policy of a site says of a packet: its class, and which links it takes
    ///
    /// For example: msp-core explain home --dst 192.0.2.7 --dport 443
    Explain {
        /// The name of the site
        site: String,
        #[command(flatten)]
        packet: Packet,
    },
    /// Show what BGP neighbours say of routes, and what is made of it
    #[command(subcommand)]
    Bgp(look::Command),
    /// Tell the BGP neighbours that the routes will go soon, so that traffic moves first (RFC 8326)
    Drain {
        /// Tell them that the routes stay after all
        #[arg(long)]
        end: bool,
    },
    /// Make the private key file, and print the public key
    Keygen {
        /// The file for the key [default: the configuration's `private_key_file`]
        #[arg(long, value_name = "FILE")]
        private_key_file: Option<PathBuf>,
        /// Replace an existing key; every box must then learn the new one
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
struct View {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show it again every second
    #[arg(long)]
    watch: bool,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run => crate::run::run(&arguments.config),
        Command::Check => check(&arguments.config),
        Command::Status { view } => show(&arguments.config, &view, Status::table),
        Command::Sites { view } => show(&arguments.config, &view, Status::sites_table),
        Command::Explain { site, packet } => explain_packet(&arguments.config, &site, &packet),
        Command::Bgp(command) => look::look(&arguments.config, &command),
        Command::Drain { end } => drain(&arguments.config, end),
        Command::Keygen { private_key_file, force } => keygen(&arguments.config, private_key_file, force),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msp-core: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, where they say more than it says itself.
fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        said if said.contains(&cause) => text,
        said => format!("{said}: {cause}"),
    })
}

/// Configuration, key and sites, all of them checked.
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) key: SecretKey,
    pub(crate) surroundings: Surroundings,
    pub(crate) sites: Sites,
}

pub(crate) fn load(path: &Path) -> anyhow::Result<Loaded> {
    let config = Config::load(path)?;
    let key = dataplane::settings::read_key(&config.private_key_file)?;
    let surroundings = Surroundings::new(&config, &key);
    // All that is wrong, a line each.
    let lines = |errors: Vec<SitesError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let sites = Sites::load(&config.sites, &surroundings).map_err(|errors| anyhow::Error::msg(lines(errors)))?;
    config.ingress.check(&sites).map_err(anyhow::Error::msg)?;
    Ok(Loaded { config, key, surroundings, sites })
}

fn check(path: &Path) -> anyhow::Result<()> {
    let loaded = load(path)?;
    let neighbors = loaded.config.bgp.map_or(0, |bgp| bgp.neighbors.len());
    println!("{}: good; sites: {}, BGP neighbours: {neighbors}", path.display(), loaded.sites.list.len());
    println!("public key: {}", loaded.key.public());
    Ok(())
}

/// What becomes of a packet. Links are asked of the daemon, if it runs.
fn explain_packet(path: &Path, site: &str, packet: &Packet) -> anyhow::Result<()> {
    let loaded = load(path)?;
    let found = loaded.sites.list.iter().find(|known| known.peer.name == site);
    let site = found.with_context(|| format!("there is no site {site:?}; see `msp-core sites`"))?;
    let status = dataplane::control::ask(&loaded.config.control, "status").ok();
    let status = status.and_then(|document| serde_json::from_value::<Status>(document).ok());
    let end = End {
        decides: Direction::Down,
        other: "`mspmb explain` at the box",
        peer: status.as_ref().and_then(|status| status.peer(site.peer.id)),
        interfaces: &[],
        outside: None,
    };
    let facts = packet.facts(&site.peer.prefixes).context("the site has no prefix of this family: give --src")?;
    print!("{}", dataplane::explain::explain(&site.peer.policy, &site.rules, &facts, &end));
    let policy = &site.peer.policy;
    let class = &policy.classes()[usize::from(policy.classify(&facts, calendar::open_now(policy)))];
    let own = class.egress.as_ref().map(|egress| (&*egress.name, format!("of class {:?}", class.name)));
    match own.or(site.egress.as_deref().map(|choice| (choice, "of its site".to_owned()))) {
        Some((choice, whose)) => {
            let by = look::leaves_by(&loaded.config.control, choice, facts.dst);
            println!("leaves by egress choice {choice:?}, {whose}: {by}");
        }
        None => println!("leaves as the main table says: the core has no [[egress]]"),
    }
    Ok(())
}

fn keygen(path: &Path, file: Option<PathBuf>, force: bool) -> anyhow::Result<()> {
    let file = match file {
        Some(file) => file,
        None => Config::load(path).context("name the key's file with --private-key-file")?.private_key_file,
    };
    let key = SecretKey::from_bytes(entropy()?);
    dataplane::settings::write_key(&file, &key, force)?;
    println!("{}", key.public());
    Ok(())
}

fn drain(path: &Path, end: bool) -> anyhow::Result<()> {
    let control = Config::load(path)?.control;
    let answer = dataplane::control::ask(&control, if end { "drain end" } else { "drain" })?;
    match answer.get("error") {
        Some(error) => bail!("the daemon refused: {error}"),
        None => Ok(()),
    }
}

fn show(path: &Path, view: &View, table: fn(&Status) -> String) -> anyhow::Result<()> {
    let control = Config::load(path)?.control;
    loop {
        let answer = dataplane::control::ask(&control, "status")?;
        if let Some(error) = answer.get("error") {
            bail!("the daemon refused: {error}");
        }
        let text = if view.json {
            format!("{answer}\n")
        } else {
            let status = serde_json::from_value(answer).context("the daemon's answer is of another version")?;
            table(&status)
        };
        if !view.watch {
            print!("{text}");
            return Ok(());
        }
        // Home, the text, and clear what is left below: without a flicker.
        let text = if view.json { text } else { format!("\x1b[H\x1b[2J{text}") };
        print!("{text}");
        std::io::Write::flush(&mut std::io::stdout()).context("cannot write to the terminal")?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Entropy of the kernel's.
pub(crate) fn entropy<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Fewer than 256 octets come whole (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("cannot get random numbers")?;
    Ok(bytes)
}
