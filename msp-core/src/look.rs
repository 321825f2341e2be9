//! `msp-core bgp`: what neighbours say of routes, and what is made of it. Asked for a page at a time, so that a million
//! routes go through the control socket without holding up anybody, and are printed as they come.

use crate::bgp::mrt;
use crate::bgp::rib::{Because, Explained, Found, PageRoute, Rejected};
use crate::bgp::routing::{Looker, Overview};
use crate::bgp::session::State;
use crate::bgp::update::Attributes;
use crate::config::Config;
use crate::status::Status;
use anyhow::{Context, bail};
use dataplane::settings::Written;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How many prefixes are looked at for a page: some hundred kilobytes of JSON, and less than a millisecond of the routes'
/// own thread.
const PAGE: u32 = 1_000;

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// The neighbours: sessions, and how many prefixes came and went
    Neighbors {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The routes that were received; `*` before those in use
    Routes {
        /// Of this neighbour alone
        #[arg(long, value_name = "NAME")]
        neighbor: Option<String>,
        /// Print JSON, a line for each prefix
        #[arg(long)]
        json: bool,
    },
    /// What the neighbours have been told, and what not, and why
    Announced {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask neighbours to drop packets for an address of a site (RFC 7999), or, with --remove, no more
    Blackhole {
        /// The address
        #[arg(value_name = "ADDRESS")]
        address: IpAddr,
        /// Ask this one alone [default: all that have "blackholes" in `announce`]
        #[arg(long, value_name = "NAME")]
        neighbor: Option<String>,
        /// For so long, such as 1h or 30m [default: until it is removed, or the core restarts]
        #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
        seconds: Option<u64>,
        /// Take it back
        #[arg(long, conflicts_with_all = ["neighbor", "seconds"])]
        remove: bool,
    },
    /// Why packets for a prefix or an address go where they go
    Explain {
        /// Such as 192.0.2.0/24 or 192.0.2.1
        #[arg(value_name = "PREFIX", value_parser = prefix)]
        prefix: IpNet,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the routes that were received to a file, as MRT (RFC 6396), for bgpdump and others
    Dump {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// An address is a prefix of full length.
fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| address())
        .map(|prefix| prefix.trunc())
        .map_err(|_| "expected an IPv4 or IPv6 prefix or address, such as 8.8.8.0/24 or 8.8.8.8".to_owned())
}

fn seconds(text: &str) -> Result<u64, String> {
    match Duration::read(text).map(|time| time.as_secs()) {
        Ok(0) | Err(_) => Err(format!("expected {}, a second at least", Duration::EXPECTED)),
        Ok(seconds) => Ok(seconds),
    }
}

/// The question `bgp blackhole …`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Blackhole {
    pub(crate) address: IpAddr,
    pub(crate) neighbor: Option<String>,
    pub(crate) seconds: Option<u64>,
    pub(crate) remove: bool,
}

/// The answer to `bgp announced`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Announced {
    routes: Vec<AnnouncedDocument>,
    blackholes: Vec<BlackholeDocument>,
}

/// A route that a neighbour has been told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AnnouncedDocument {
    prefix: IpNet,
    neighbor: String,
    #[serde(flatten)]
    said: SaidDocument,
}

/// An address for which neighbours are asked to drop packets.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct BlackholeDocument {
    prefix: IpNet,
    /// The one that is asked; all that may be, if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbor: Option<String>,
    /// How long yet, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_s: Option<f64>,
}

impl Announced {
    pub(crate) fn new(
        neighbors: Vec<(String, Vec<(IpNet, Attributes)>)>,
        blackholes: impl Iterator<Item = (IpNet, Option<String>, Option<Duration>)>,
    ) -> Announced {
        let routes = neighbors.into_iter().flat_map(|(neighbor, routes)| {
            let document = move |(prefix, said): (IpNet, Attributes)| AnnouncedDocument {
                prefix,
                neighbor: neighbor.clone(),
                said: SaidDocument::from(&said),
            };
            routes.into_iter().map(document)
        });
        let blackholes = blackholes.map(|(prefix, neighbor, left)| BlackholeDocument {
            prefix,
            neighbor,
            left_s: left.map(|left| left.as_secs_f64()),
        });
        Announced { routes: routes.collect(), blackholes: blackholes.collect() }
    }
}

/// Of a neighbour's routes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NeighborRoutes {
    name: String,
    ipv4: u32,
    ipv6: u32,
    rejected: Vec<(Rejected, u64)>,
}

/// The answer to `bgp overview`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OverviewDocument {
    neighbors: Vec<NeighborRoutes>,
    ipv4: usize,
    ipv6: usize,
    attributes: usize,
    backlog: usize,
}

/// A neighbour's route.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RouteDocument {
    neighbor: String,
    /// The neighbour's name for it, where it may have several to a prefix (RFC 7911).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_id: Option<u32>,
    next_hop: IpAddr,
    #[serde(flatten)]
    said: SaidDocument,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
    /// Why it is not used, whatever others there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    unused: Option<String>,
    /// The egress choices that use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    used_by: Vec<String>,
    /// The neighbour's place and the attributes as they stand in an UPDATE, for a dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    wire: Option<(u16, Vec<u8>)>,
}

/// What is said of a route, by a neighbour or to one.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SaidDocument {
    as_path: String,
    origin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    med: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_pref: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    communities: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    extended_communities: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    large_communities: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    only_to_customer: Option<u32>,
}

impl From<&Attributes> for SaidDocument {
    fn from(said: &Attributes) -> SaidDocument {
        SaidDocument {
            as_path: said.as_path.to_string(),
            origin: said.origin.to_string(),
            med: said.med,
            local_pref: said.local_pref,
            communities: said.communities.iter().map(ToString::to_string).collect(),
            extended_communities: said.extended_communities.iter().map(ToString::to_string).collect(),
            large_communities: said.large_communities.iter().map(ToString::to_string).collect(),
            only_to_customer: said.only_to_customer,
        }
    }
}

impl SaidDocument {
    /// The communities of each kind there is, and numbers, each with its name.
    fn lines(&self) -> impl Iterator<Item = String> {
        let lists = [
            ("communities", &self.communities),
            ("extended communities", &self.extended_communities),
            ("large communities", &self.large_communities),
        ];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let numbers = [("MED", self.med), ("LOCAL_PREF", self.local_pref), ("OTC", self.only_to_customer)];
        let numbers = numbers.into_iter().filter_map(|(name, number)| Some(format!("{name} {}", number?)));
        lists.map(|(name, list)| format!("{name} {}", list.join(" "))).chain(numbers)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct FoundDocument {
    prefix: IpNet,
    routes: Vec<RouteDocument>,
}

/// The answer to `bgp page` and `bgp dump`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PageDocument {
    found: Vec<FoundDocument>,
    next: Option<u64>,
}

/// The answer to `bgp explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ExplainDocument {
    found: Option<FoundDocument>,
    /// Egress choice, neighbour, and why that one.
    choices: Vec<(String, Option<(String, Because)>)>,
    /// Neighbour, and why it would not be heard.
    rejected: Vec<(String, Rejected)>,
    /// It is a site's.
    own: bool,
}

/// The names behind the numbers.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) neighbors: Vec<String>,
    pub(crate) choices: Vec<String>,
}

impl Names {
    fn neighbor(&self, place: usize) -> String {
        self.neighbors.get(place).cloned().unwrap_or_default()
    }

    fn choice(&self, place: usize) -> String {
        self.choices.get(place).cloned().unwrap_or_default()
    }

    fn found(&self, found: Found, wire: bool) -> FoundDocument {
        let routes = found.routes.into_iter().map(|route| self.route(route, wire)).collect();
        FoundDocument { prefix: found.prefix, routes }
    }

    fn route(&self, route: PageRoute, wire: bool) -> RouteDocument {
        let PageRoute { neighbor, path_id, attributes: said, next_hop, stale, unused, used_by } = route;
        RouteDocument {
            neighbor: self.neighbor(neighbor),
            path_id,
            next_hop: next_hop.address,
            said: SaidDocument::from(&*said),
            stale,
            unused,
            used_by: used_by.into_iter().map(|choice| self.choice(choice)).collect(),
            wire: wire.then(|| (neighbor as u16, mrt::attributes(&said, next_hop))),
        }
    }
}

/// The daemon's side: the answer to what follows `bgp ` in a command. Nothing if that is no command, or at the end.
pub(crate) async fn answer(looker: &Looker, names: &Names, command: &str) -> Option<serde_json::Value> {
    let mut words = command.split_whitespace();
    let document = match (words.next()?, words.next()) {
        ("overview", None) => {
            let Overview { neighbors, prefixes: [ipv4, ipv6], attributes, backlog } =
                looker.overview(names.neighbors.len()).await?;
            let neighbors = neighbors.into_iter().zip(&names.neighbors).map(|(counts, name)| NeighborRoutes {
                name: name.clone(),
                ipv4: counts.prefixes[0],
                ipv6: counts.prefixes[1],
                rejected: counts.rejected,
            });
            serde_json::to_value(OverviewDocument { neighbors: neighbors.collect(), ipv4, ipv6, attributes, backlog })
        }
        (kind @ ("page" | "dump"), Some(from)) => {
            let page = looker.page(from.parse().ok()?, PAGE).await?;
            let found = page.found.into_iter().map(|found| names.found(found, kind == "dump")).collect();
            serde_json::to_value(PageDocument { found, next: page.next })
        }
        ("explain", Some(prefix)) => {
            let Explained { found, choices, rejected, own } = looker.explain(prefix.parse().ok()?).await?;
            let choice = |(place, used): (usize, Option<(usize, Because)>)| {
                (names.choice(place), used.map(|(neighbor, because)| (names.neighbor(neighbor), because)))
            };
            serde_json::to_value(ExplainDocument {
                found: found.map(|found| names.found(found, false)),
                choices: choices.into_iter().enumerate().map(choice).collect(),
                rejected: rejected.into_iter().map(|(place, why)| (names.neighbor(place), why)).collect(),
                own,
            })
        }
        _ => return None,
    };
    document.ok()
}

/// Asks the running daemon.
fn ask<T: serde::de::DeserializeOwned>(control: &Path, command: &str) -> anyhow::Result<T> {
    let answer = dataplane::control::ask(control, command)?;
    if let Some(error) = answer.get("error") {
        bail!("the daemon refused: {error}");
    }
    serde_json::from_value(answer).context("the daemon's answer is of another version")
}

/// Every page from the first to the last.
fn pages(control: &Path, kind: &str, mut each: impl FnMut(FoundDocument) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut next = Some(0);
    while let Some(from) = next {
        let page: PageDocument = ask(control, &format!("bgp {kind} {from}"))?;
        page.found.into_iter().try_for_each(&mut each)?;
        next = page.next;
    }
    Ok(())
}

/// Does what the command line says.
pub(crate) fn look(path: &Path, command: &Command) -> anyhow::Result<()> {
    let control = Config::load(path)?.control;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match command {
        Command::Neighbors { json } => neighbors(&control, *json, &mut out),
        Command::Routes { neighbor, json } => pages(&control, "page", |mut found| {
            found.routes.retain(|route| neighbor.as_ref().is_none_or(|name| *name == route.neighbor));
            if found.routes.is_empty() {
                return Ok(());
            }
            match json {
                true => writeln!(out, "{}", serde_json::to_string(&found)?)?,
                false => out.write_all(lines(&found).as_bytes())?,
            }
            Ok(())
        }),
        Command::Announced { json } => announced(&control, *json, &mut out),
        Command::Blackhole { address, neighbor, seconds, remove } => {
            let (address, neighbor, seconds, remove) = (*address, neighbor.clone(), *seconds, *remove);
            let asked = serde_json::to_string(&Blackhole { address, neighbor, seconds, remove })?;
            ask::<serde_json::Value>(&control, &format!("bgp blackhole {asked}")).map(drop)
        }
        Command::Explain { prefix, json } => {
            let explained: ExplainDocument = ask(&control, &format!("bgp explain {prefix}"))?;
            match json {
                true => writeln!(out, "{}", serde_json::to_string(&explained)?)?,
                false => {
                    out.write_all(explanation(prefix, &explained).as_bytes())?;
                    // A site's prefix is not only routed: it is announced, or it is not.
                    if explained.own {
                        let status: Status = ask(&control, "status")?;
                        let about = |other: &IpNet| other.contains(prefix) || prefix.contains(other);
                        for (neighbor, prefix) in status.announced().filter(|(_, prefix)| about(prefix)) {
                            writeln!(out, "{prefix}  to {neighbor}")?;
                        }
                        out.write_all(withheld(&status, about).as_bytes())?;
                    }
                }
            }
            Ok(())
        }
        Command::Dump { file } => dump(&control, file),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        // Whoever reads it has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

fn announced(control: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let told: Announced = ask(control, "bgp announced")?;
    if json {
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
        return Ok(());
    }
    for AnnouncedDocument { prefix, neighbor, said } in &told.routes {
        let rest: Vec<String> = said.lines().collect();
        let path = if said.as_path.is_empty() { "(empty)" } else { &said.as_path };
        writeln!(out, "{prefix:<20}  to {neighbor:<12}  path {path}  {}", rest.join(", "))?;
    }
    for BlackholeDocument { prefix, neighbor, left_s } in &told.blackholes {
        let to = neighbor.as_deref().unwrap_or("all that take them");
        let left = left_s.map_or("until it is removed".into(), |left| format!("for {left:.0} s yet"));
        writeln!(out, "blackhole {prefix}, at {to}, {left}")?;
    }
    let status: Status = ask(control, "status")?;
    out.write_all(withheld(&status, |_| true).as_bytes())?;
    for neighbor in status.without_policy() {
        writeln!(out, "nothing to {neighbor}: it has no `announce = [\"sites\"]` (RFC 8212)")?;
    }
    Ok(())
}

/// What of some prefixes the neighbours have not been told, or other networks may refuse, and why.
fn withheld(status: &Status, about: impl Fn(&IpNet) -> bool) -> String {
    let mut text = String::new();
    for (neighbor, prefix, why) in status.not_announced().filter(|(_, prefix, _)| about(prefix)) {
        let _ = writeln!(text, "{prefix}  not to {neighbor}: {why}");
    }
    for (prefix, why) in status.doubtful().filter(|(prefix, _)| about(prefix)) {
        let _ = writeln!(text, "{prefix}  may be refused by other networks: {why}");
    }
    text
}

fn neighbors(control: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let status: Status = ask(control, "status")?;
    let overview: OverviewDocument = ask(control, "bgp overview")?;
    if json {
        writeln!(out, "{}", serde_json::json!({ "sessions": status.sessions(), "routes": overview }))?;
        return Ok(());
    }
    let header = ["NEIGHBOUR", "STATE", "IPV4", "IPV6", "ANNOUNCED", "REJECTED"];
    let mut rows = vec![header.map(str::to_owned)];
    for (session, routes) in status.sessions().iter().zip(&overview.neighbors) {
        let rejected: Vec<String> = routes.rejected.iter().map(|(why, count)| format!("{count} {why}")).collect();
        rows.push([
            crate::status::printable(&session.name),
            session.state.to_string(),
            routes.ipv4.to_string(),
            routes.ipv6.to_string(),
            session.announced.len().to_string(),
            if rejected.is_empty() { "-".into() } else { rejected.join("; ") },
        ]);
    }
    write!(out, "{}", crate::status::table(&rows))?;
    writeln!(
        out,
        "\n{} IPv4 and {} IPv6 prefixes, {} different sets of attributes; {} prefixes wait to be written to the kernel",
        overview.ipv4, overview.ipv6, overview.attributes, overview.backlog
    )?;
    let down = status.sessions().iter().filter(|session| session.state != State::Established);
    for session in down {
        let why = session.last_error.as_deref().unwrap_or("it has not been up yet");
        writeln!(out, "{}: {}", crate::status::printable(&session.name), crate::status::printable(why))?;
    }
    Ok(())
}

impl RouteDocument {
    /// Whose it is, and which of several.
    fn from(&self) -> String {
        let id = self.path_id.map(|id| format!("#{id}")).unwrap_or_default();
        format!("{}{id}", self.neighbor)
    }
}

/// A line for each route.
fn lines(found: &FoundDocument) -> String {
    let mut text = String::new();
    for route in &found.routes {
        let mark = if route.used_by.is_empty() { ' ' } else { '*' };
        let _ = write!(
            text,
            "{mark} {:<20} via {:<15} {:<12} {} {}",
            found.prefix.to_string(),
            route.next_hop,
            route.from(),
            route.said.as_path,
            route.said.origin
        );
        let _ = match &route.unused {
            Some(why) => writeln!(text, "  (not used: {why})"),
            None => writeln!(text),
        };
    }
    text
}

fn explanation(asked: &IpNet, explained: &ExplainDocument) -> String {
    let mut text = String::new();
    let _ = match &explained.found {
        _ if explained.own => writeln!(text, "{asked} is a site's: nothing is learnt of it"),
        None => writeln!(text, "{asked}: no neighbour has a route to it, nor to anything that contains it"),
        Some(found) => writeln!(text, "{asked}: {} counts", found.prefix),
    };
    for (choice, used) in &explained.choices {
        let _ = match used {
            Some((neighbor, because)) => writeln!(text, "  egress {choice}: by {neighbor}, {because}"),
            None => writeln!(text, "  egress {choice}: refused, no transit of it has a route that can be used"),
        };
    }
    for route in explained.found.iter().flat_map(|found| &found.routes) {
        let _ = writeln!(text, "  from {}, via {}", route.from(), route.next_hop);
        let _ = writeln!(text, "    path {}, {}", route.said.as_path, route.said.origin);
        for line in route.said.lines() {
            let _ = writeln!(text, "    {line}");
        }
        if let Some(why) = &route.unused {
            let _ = writeln!(text, "    not used: {why}");
        }
        if route.stale {
            text.push_str("    stale: from before a restart or refresh that is not over\n");
        }
    }
    for (neighbor, why) in &explained.rejected {
        let _ = writeln!(text, "  from {neighbor} it would not be taken: {why}");
    }
    text
}

/// By whom packets for an address leave, by the egress choice of this name: completes "leaves by …".
pub(crate) fn leaves_by(control: &Path, choice: &str, address: IpAddr) -> String {
    let explained: ExplainDocument = match ask(control, &format!("bgp explain {}", IpNet::from(address))) {
        Ok(explained) => explained,
        Err(error) => return format!("by whom that is now is not known: {error}"),
    };
    let used = explained.choices.iter().find(|(name, _)| name == choice).map(|(_, used)| used);
    match (used, explained.found) {
        _ if explained.own => format!("{address} is a site's, and it leaves by nobody"),
        (Some(Some((neighbor, because))), Some(found)) => format!("by {neighbor} now, {because} to {}", found.prefix),
        (Some(_), _) => format!("refused now: no transit of it has a route to {address} that can be used"),
        (None, _) => "the running daemon has no such choice: it takes a restart".to_owned(),
    }
}

fn dump(control: &Path, file: &Path) -> anyhow::Result<()> {
    let status: Status = ask(control, "status")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as u32;
    let cannot = || format!("cannot write {}", file.display());
    let mut out = io::BufWriter::new(std::fs::File::create(file).with_context(cannot)?);
    let peers: Vec<mrt::Peer> = status
        .sessions()
        .iter()
        .map(|session| mrt::Peer {
            router_id: session.remote_router_id.unwrap_or(Ipv4Addr::UNSPECIFIED),
            address: session.remote.ip(),
            asn: session.remote_as,
        })
        .collect();
    let mut record = Vec::new();
    mrt::peers(&mut record, now, status.router_id().unwrap_or(Ipv4Addr::UNSPECIFIED), &peers);
    out.write_all(&record).with_context(cannot)?;
    let (mut sequence, mut prefixes) = (0, 0u64);
    pages(control, "dump", |found| {
        let entry = |route: RouteDocument| {
            let (peer, attributes) = route.wire?;
            Some(mrt::Entry { peer, path_id: route.path_id, attributes })
        };
        let routes: Vec<_> = found.routes.into_iter().filter_map(entry).collect();
        record.clear();
        sequence += mrt::prefix(&mut record, now, sequence, &found.prefix, &routes);
        prefixes += 1;
        out.write_all(&record).with_context(cannot)
    })?;
    out.flush().with_context(cannot)?;
    println!("{}: {prefixes} prefixes", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_prefix_and_bits_beyond_its_length_do_not_count() {
        for (text, expected) in [
            ("8.8.8.8", Some("8.8.8.8/32")),
            ("8.8.8.8/24", Some("8.8.8.0/24")),
            ("2600::1", Some("2600::1/128")),
            ("8.8.8", None),
        ] {
            assert_eq!(prefix(text).ok().map(|prefix| prefix.to_string()).as_deref(), expected, "{text}");
        }
    }
}
