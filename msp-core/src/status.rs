//! What the core shows of itself: a JSON document for scripts, tables for people.
//!
//! Part of the interface: fields are added, never renamed; readers skip what they do not know.

use crate::bgp::cache::CacheStatus;
use crate::bgp::ingress::{Export, Ingress, Standing};
use crate::bgp::session::State;
use crate::bgp::transport::NeighborStatus;
use crate::sites::Site;
use dataplane::engine::Counters;
use ipnet::IpNet;
use proto::snapshot::{PathSnapshot, PeerSnapshot, Snapshot};
use proto::{Instant, PeerId};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::time::Duration;

/// The format of the document.
const SCHEMA: u32 = 1;

/// The answer to `status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    schema: u32,
    daemon: String,
    version: String,
    pid: u32,
    uptime_s: f64,
    sites: Vec<SiteStatus>,
    /// Absent where no BGP is configured.
    bgp: Option<BgpStatus>,
    reload: Reload,
    dataplane: Counters,
    node: Snapshot,
}

/// A site, as the registry and the announcements have it; its paths are in the node's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SiteStatus {
    id: PeerId,
    name: String,
    prefixes: Vec<IpNet>,
    state: SiteState,
    /// The BGP neighbours that have been told all routes that stand for it there: its own prefixes or aggregates.
    announced_to: Vec<String>,
    /// Why it is not announced to all of them that should know it.
    not_announced: Option<String>,
    /// Prefixes that other networks may refuse, though they are announced, and why.
    #[serde(default)]
    doubtful: Vec<(IpNet, String)>,
    /// Seconds until it is withdrawn, where that is due.
    withdraw_in_s: Option<f64>,
    /// The egress choice that its packets leave by; the main table, if there is none.
    #[serde(default)]
    egress: Option<String>,
}

/// A site's liveness, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SiteState {
    /// No path has been up since the core started or the site was added.
    NeverUp,
    /// At least one path is up.
    Up,
    /// No path is up, and it is announced still.
    Lingering,
    /// No path is up, and it was withdrawn.
    Withdrawn,
}

/// The BGP speaker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BgpStatus {
    pub(crate) local_as: u32,
    pub(crate) router_id: Ipv4Addr,
    /// Connections that were closed because they were no neighbour's.
    pub(crate) strangers: u64,
    /// The neighbours are told that the routes will go soon (RFC 8326).
    pub(crate) draining: bool,
    pub(crate) neighbors: Vec<NeighborStatus>,
    /// The names of those to which nothing is announced, for want of a policy (RFC 8212).
    #[serde(default)]
    pub(crate) without_policy: Vec<String>,
    /// The RPKI caches, the preferred first.
    #[serde(default)]
    pub(crate) caches: Vec<CacheStatus>,
}

/// How reloading the sites went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reload {
    /// How often it was asked for.
    pub(crate) count: u64,
    /// What was wrong the last time: the sites of before are in force.
    pub(crate) errors: Vec<String>,
}

impl SiteStatus {
    /// `neighbors` are all BGP neighbours, each with what it may be told.
    pub(crate) fn new(
        now: Instant,
        site: &Site,
        ingress: &Ingress,
        neighbors: &[(NeighborStatus, Export)],
    ) -> SiteStatus {
        let standing = ingress.standing(site.peer.id).unwrap_or(Standing::NeverUp);
        let ago = |since: Instant| duration(now.since(since));
        let (mut announced_to, mut missing) = (Vec::new(), Vec::new());
        let due = neighbors.iter().enumerate().filter(|(_, (_, export))| export.sites && standing.announced());
        for (place, (neighbor, _)) in due {
            let routes = ingress.routes_of(site.peer.id, place);
            // In order, both: of ten thousand sites each looks for a few of some ten thousand.
            let untold = |prefix: &&IpNet| neighbor.announced.binary_search(prefix).is_err();
            match routes.as_ref().map(|routes| routes.iter().find(untold)) {
                Ok(None) => announced_to.push(neighbor.name.clone()),
                Ok(Some(prefix)) => {
                    let why = neighbor.not_announced.binary_search_by_key(prefix, |(prefix, _)| *prefix);
                    let why = why.map_or("waiting to be sent", |place| neighbor.not_announced[place].1.as_str());
                    missing.push(format!("{}: {why}", neighbor.name));
                }
                Err(why) => missing.push(format!("{}: {why}", neighbor.name)),
            }
        }
        let not_announced = match standing {
            Standing::NeverUp => Some("no path has been up yet".to_owned()),
            Standing::Withdrawn { since } => Some(format!("withdrawn: no path is up, for {}", ago(since))),
            _ if neighbors.is_empty() => Some("no BGP neighbour is configured".to_owned()),
            _ if announced_to.is_empty() && missing.is_empty() => {
                Some("no neighbour has `announce = [\"sites\"]`".to_owned())
            }
            _ => missing.into_iter().next(),
        };
        let doubtful = site.peer.prefixes.iter().filter_map(|prefix| Some((*prefix, ingress.doubt(&prefix.trunc())?)));
        let (state, withdraw_in_s) = match standing {
            Standing::NeverUp => (SiteState::NeverUp, None),
            Standing::Up => (SiteState::Up, None),
            Standing::Withdrawn { .. } => (SiteState::Withdrawn, None),
            Standing::Lingering { since } => {
                (SiteState::Lingering, site.withdraw_after.map(|after| (since + after).since(now).as_secs_f64()))
            }
        };
        SiteStatus {
            id: site.peer.id,
            name: site.peer.name.clone(),
            prefixes: site.peer.prefixes.clone(),
            state,
            announced_to,
            not_announced,
            doubtful: doubtful.map(|(prefix, why)| (prefix, why.to_string())).collect(),
            withdraw_in_s,
            egress: site.egress.clone(),
        }
    }

    /// The state for people.
    fn state_text(&self) -> String {
        match (self.state, self.withdraw_in_s) {
            (SiteState::NeverUp, _) => "never up".into(),
            (SiteState::Up, _) => "up".into(),
            (SiteState::Lingering, Some(left)) => format!("down, withdrawn in {left:.0} s"),
            (SiteState::Lingering, None) => "down, never withdrawn".into(),
            (SiteState::Withdrawn, _) => "down".into(),
        }
    }

    fn announced_text(&self) -> String {
        let yes = (!self.announced_to.is_empty()).then(|| format!("to {}", self.announced_to.join(", ")));
        let no = self.not_announced.as_ref().map(|why| format!("no ({why})"));
        let doubtful = self.doubtful.first().map(|(prefix, why)| format!("other networks may refuse {prefix}: {why}"));
        [yes, no, doubtful].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

impl Status {
    /// Of this process.
    pub(crate) fn new(
        uptime: Duration,
        sites: Vec<SiteStatus>,
        bgp: Option<BgpStatus>,
        reload: Reload,
        dataplane: Counters,
        node: Snapshot,
    ) -> Status {
        Status {
            schema: SCHEMA,
            daemon: "msp-core".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: uptime.as_secs_f64(),
            sites,
            bgp,
            reload,
            dataplane,
            node,
        }
    }

    /// The BGP sessions, in the order of the configuration.
    pub(crate) fn sessions(&self) -> &[NeighborStatus] {
        self.bgp.as_ref().map_or(&[], |bgp| &bgp.neighbors)
    }

    /// Our identifier towards BGP neighbours.
    pub(crate) fn router_id(&self) -> Option<Ipv4Addr> {
        Some(self.bgp.as_ref()?.router_id)
    }

    /// Which neighbour is not told which prefix that it should be, and why.
    pub(crate) fn not_announced(&self) -> impl Iterator<Item = (&str, IpNet, &str)> {
        self.sessions().iter().flat_map(|session| {
            session.not_announced.iter().map(|(prefix, why)| (session.name.as_str(), *prefix, why.as_str()))
        })
    }

    /// The neighbours to which nothing is announced, for want of a policy.
    pub(crate) fn without_policy(&self) -> impl Iterator<Item = &str> {
        self.bgp.iter().flat_map(|bgp| bgp.without_policy.iter().map(String::as_str))
    }

    /// Which prefix is announced though other networks may refuse it, and why.
    pub(crate) fn doubtful(&self) -> impl Iterator<Item = (IpNet, &str)> {
        self.sites.iter().flat_map(|site| site.doubtful.iter().map(|(prefix, why)| (*prefix, why.as_str())))
    }

    /// Which neighbour has been told which prefix.
    pub(crate) fn announced(&self) -> impl Iterator<Item = (&str, IpNet)> {
        let of = |session: &'_ NeighborStatus| -> Vec<IpNet> { session.announced.clone() };
        self.sessions()
            .iter()
            .flat_map(move |session| of(session).into_iter().map(|prefix| (session.name.as_str(), prefix)))
    }

    /// What `sites` prints.
    pub(crate) fn sites_table(&self) -> String {
        let mut rows = vec![["SITE", "ID", "STATE", "PREFIXES", "ANNOUNCED"].map(str::to_owned)];
        rows.extend(self.sites.iter().map(|site| {
            let prefixes: Vec<_> = site.prefixes.iter().map(ToString::to_string).collect();
            let name = printable(&site.name);
            [name, site.id.0.to_string(), site.state_text(), prefixes.join(" "), site.announced_text()]
        }));
        self.reload_errors() + &table(&rows)
    }

    /// What `status` prints.
    pub(crate) fn table(&self) -> String {
        let uptime = duration(Duration::try_from_secs_f64(self.uptime_s).unwrap_or_default());
        let mut text = format!("{} {}, pid {}, up {uptime}\n", self.daemon, self.version, self.pid);
        text += &self.reload_errors();
        text += "\n";
        let header = [
            "SITE", "STATE", "PATH", "TUNNEL", "STATE", "SINCE", "RTT", "LOSS", "MTU", "ENDPOINT", "SENT", "RECEIVED",
            "REASON",
        ];
        let mut rows = vec![header.map(str::to_owned)];
        for site in &self.sites {
            let peer = self.peer(site.id);
            let paths = peer.into_iter().flat_map(|peer| peer.paths.iter().map(move |path| (peer, path)));
            let mut first = Some([printable(&site.name), site.state_text()]);
            // A box has eight slots, and seldom as many uplinks.
            for (peer, path) in paths.filter(|(_, path)| path.endpoint.is_some()) {
                let [name, state] = first.take().unwrap_or_default();
                rows.push(path_row(name, state, peer, path));
            }
            if let Some([name, state]) = first {
                let mut row = <[String; 13]>::default();
                (row[0], row[1], row[12]) = (name, state, "no path has been up yet".into());
                rows.push(row);
            }
        }
        text += &table(&rows);
        let leaving = self.leaving_rows();
        if leaving.len() > 1 {
            text.push('\n');
            text += &table(&leaving);
        }
        for peer in self.node.peers.iter().filter(|peer| peer.other_policy) {
            text += &format!("{} has another policy than its box: each end goes by its own\n", printable(&peer.name));
        }
        if let Some(bgp) = &self.bgp {
            let draining = if bgp.draining { ", draining: neighbours are asked to prefer other routes" } else { "" };
            text += &format!("\nAS {}, router id {}{draining}\n", bgp.local_as, bgp.router_id);
            text += &table(&bgp.rows());
            if !bgp.caches.is_empty() {
                text.push('\n');
                text += &table(&bgp.cache_rows());
            }
        }
        let drops: Vec<_> = self.node.drops.iter().filter(|(_, count)| *count > 0).collect();
        if !drops.is_empty() {
            text += "\ndropped, of no site\n";
            for (reason, count) in drops {
                text += &format!("{count:>10}  {}\n", reason.meaning().trim());
            }
        }
        text
    }

    /// By whom packets leave, class by class, of sites whose policies say so.
    fn leaving_rows(&self) -> Vec<[String; 5]> {
        let mut rows = vec![["SITE", "CLASS", "LEAVES BY", "RECEIVED", "PACKETS"].map(str::to_owned)];
        let sites = self.sites.iter().filter_map(|site| Some((site, self.peer(site.id)?)));
        for (site, peer) in sites.filter(|(_, peer)| peer.classes.iter().any(|class| class.egress.is_some())) {
            let mut name = Some(printable(&site.name));
            rows.extend(peer.classes.iter().map(|class| {
                let choice = class.egress.as_deref().or(site.egress.as_deref()).unwrap_or("-");
                let (octets, packets) = (bytes(class.rx.bytes), class.rx.packets.to_string());
                [name.take().unwrap_or_default(), printable(&class.name), printable(choice), octets, packets]
            }));
        }
        rows
    }

    /// What the node says of a site.
    pub(crate) fn peer(&self, id: PeerId) -> Option<&PeerSnapshot> {
        // They are in the order of their numbers.
        let place = self.node.peers.binary_search_by_key(&id, |peer| peer.id).ok()?;
        self.node.peers.get(place)
    }

    fn reload_errors(&self) -> String {
        let lines = self.reload.errors.iter().map(|error| format!("  {}\n", printable(error)));
        match self.reload.errors.is_empty() {
            true => String::new(),
            false => {
                format!("the last reload was refused, the sites of before are in force:\n{}", lines.collect::<String>())
            }
        }
    }
}

impl BgpStatus {
    fn rows(&self) -> Vec<[String; 7]> {
        let header = ["NEIGHBOUR", "ADDRESS", "AS", "STATE", "SINCE", "ANNOUNCED", "LAST ERROR"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(self.neighbors.iter().map(|neighbor| {
            let missing = match (neighbor.state, neighbor.not_announced.first()) {
                (State::Established, Some((prefix, why))) => format!(", not {prefix}: {why}"),
                _ => String::new(),
            };
            [
                printable(&neighbor.name),
                neighbor.remote.to_string(),
                neighbor.remote_as.to_string(),
                neighbor.state.to_string(),
                duration(Duration::try_from_secs_f64(neighbor.since_s).unwrap_or_default()),
                format!("{}{missing}", neighbor.announced.len()),
                printable(neighbor.last_error.as_deref().unwrap_or("-")),
            ]
        }));
        rows
    }
}

impl BgpStatus {
    fn cache_rows(&self) -> Vec<[String; 7]> {
        let header = ["RPKI CACHE", "ADDRESS", "STATE", "VRPS", "CONFIRMED", "EXPIRES IN", "LAST ERROR"];
        let mut rows = vec![header.map(str::to_owned)];
        let time = |seconds: Option<f64>| {
            seconds.map_or("-".into(), |seconds| duration(Duration::try_from_secs_f64(seconds).unwrap_or_default()))
        };
        rows.extend(self.caches.iter().map(|cache| {
            let counts = if cache.counts { ", counts" } else { "" };
            [
                printable(&cache.name),
                cache.address.to_string(),
                format!("{}{counts}", if cache.connected { "up" } else { "down" }),
                cache.vrps.map_or("-".into(), |vrps| vrps.to_string()),
                time(cache.confirmed_s),
                time(cache.expires_in_s),
                printable(cache.last_error.as_deref().unwrap_or("-")),
            ]
        }));
        rows
    }
}

fn path_row(name: String, state: String, peer: &PeerSnapshot, path: &PathSnapshot) -> [String; 13] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let current = if peer.current_slot == Some(path.id.slot) && !path.stands_by { "*" } else { "" };
    [
        name,
        state,
        format!("{}{current}", path.id.slot),
        path.id.tunnel.to_string(),
        format!("{:?}", path.state).to_lowercase(),
        duration(Duration::try_from_secs_f64(path.since_s).unwrap_or_default()),
        or_dash(path.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
        or_dash(path.loss.map(|loss| format!("{:.1} %", loss * 100.0))),
        or_dash(path.mtu.map(|mtu| mtu.to_string())),
        or_dash(path.endpoint.map(|endpoint| endpoint.to_string())),
        bytes(path.tx.bytes),
        bytes(path.rx.bytes),
        printable(&path.reason),
    ]
}

/// Columns, each as wide as its widest cell, the last one as it is.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names come from files and from the network: none may steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A duration in the two units that matter.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Octets, in powers of ten.
fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::admission::Admission;
    use crate::bgp::ingress::{self, Policy};
    use crate::bgp::session::Counters as SessionCounters;
    use proto::{PeerConfig, PeerKind};

    const HOME: PeerId = PeerId(1);

    fn prefix() -> IpNet {
        "198.51.100.0/24".parse().expect("a prefix")
    }

    fn seconds(count: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(count)
    }

    /// A neighbour to which sites are announced, as it stands after 100 s.
    fn neighbor(announced: bool) -> (NeighborStatus, Export) {
        let status = NeighborStatus {
            name: "transit".into(),
            remote: "203.0.113.1:179".parse().expect("an address"),
            remote_as: 64501,
            state: if announced { State::Established } else { State::Active },
            since_s: 1.0,
            hold_time: None,
            remote_router_id: None,
            announced: announced.then(prefix).into_iter().collect(),
            not_announced: (!announced)
                .then(|| (prefix(), "the session is not established".into()))
                .into_iter()
                .collect(),
            last_error: None,
            counters: SessionCounters::default(),
        };
        (status, Export { sites: true, blackholes: false })
    }

    /// What is shown of a site after 100 s of a life that this made.
    fn shown(live: impl FnOnce(&mut Ingress), neighbors: &[(NeighborStatus, Export)]) -> SiteStatus {
        let peer = PeerConfig {
            id: HOME,
            name: "home".into(),
            kind: PeerKind::Middlebox,
            prefixes: vec![prefix()],
            egress: 0,
            policy: Default::default(),
            open_windows: 0,
            paths: Vec::new(),
        };
        let withdraw_after = Some(Duration::from_secs(60));
        let exports: Vec<Export> = neighbors.iter().map(|(_, export)| *export).collect();
        let mut ingress = Ingress::new(Policy::default(), None, Admission::new(64500, true), &exports);
        let site = ingress::Site { id: HOME, name: "home".into(), prefixes: vec![prefix()], withdraw_after };
        ingress.set_sites(seconds(0), [site]);
        live(&mut ingress);
        SiteStatus::new(
            seconds(100),
            &Site { peer, withdraw_after, egress: None, rules: Vec::new() },
            &ingress,
            neighbors,
        )
    }

    #[test]
    fn a_site_says_where_it_is_announced_or_why_not() {
        let down_since = |since| {
            move |ingress: &mut Ingress| {
                ingress.reachable(HOME);
                ingress.unreachable(seconds(since), HOME);
                ingress.handle_timeout(seconds(100));
            }
        };
        let up = |ingress: &mut Ingress| ingress.reachable(HOME);
        let unasked = (neighbor(false).0, Export::default());
        for (site, state, announced) in [
            (shown(|_| {}, &[neighbor(false)]), "never up", "no (no path has been up yet)"),
            (shown(up, &[neighbor(true)]), "up", "to transit"),
            (shown(up, &[neighbor(false)]), "up", "no (transit: the session is not established)"),
            (shown(up, &[]), "up", "no (no BGP neighbour is configured)"),
            (shown(up, &[unasked]), "up", "no (no neighbour has `announce = [\"sites\"]`)"),
            (shown(down_since(90), &[neighbor(true)]), "down, withdrawn in 50 s", "to transit"),
            (shown(down_since(10), &[neighbor(false)]), "down", "no (withdrawn: no path is up, for 1 min 30 s)"),
        ] {
            assert_eq!((site.state_text().as_str(), site.announced_text().as_str()), (state, announced));
        }
    }

    #[test]
    fn no_name_steers_a_terminal() {
        assert_eq!(printable("\x1b[2Jhome\n"), "?[2Jhome?");
    }
}
