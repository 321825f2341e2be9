//! The registry of sites: a folder with a file for each, in force together or not at all.

use crate::bgp::ingress;
use crate::config::Config;
use dataplane::calendar;
use dataplane::settings::policy::Rule;
use dataplane::settings::{self, Document, Schema, SettingsError, Several, Text};
use ipnet::IpNet;
use proto::config::ConfigError;
use proto::policy::Policy;
use proto::{MAX_SLOTS, PathConfig, PeerConfig, PeerId, PeerKind, PublicKey, SecretKey, TunnelKind};
use serde::Deserialize;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The sites in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites {
    /// In the order of their file names.
    pub(crate) list: Vec<Site>,
    /// The place of each in the list.
    places: HashMap<PeerId, usize>,
}

/// A site.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// What the node is to know of it. Its number, name and prefixes are the site's.
    pub(crate) peer: PeerConfig,
    /// How long after its last path went down it is withdrawn; `None` is never.
    pub(crate) withdraw_after: Option<Duration>,
    /// The egress choice that its packets leave by, if there are any.
    pub(crate) egress: Option<String>,
    /// Who wrote each class of its policy, and where.
    pub(crate) rules: Vec<Rule>,
}

/// What the sites are judged by, besides each other.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// The key that tunnels come in on.
    pub(crate) key: SecretKey,
    /// For sites that say nothing.
    pub(crate) withdraw_after: Option<Duration>,
    /// The names of the egress choices, by their places. The first is for sites that say nothing.
    pub(crate) egress: Vec<String>,
    /// The core's own addresses and its neighbours', with a word for each: a site that had one of them would cut the
    /// core off.
    pub(crate) reserved: Vec<(IpAddr, String)>,
    /// What the provider may announce; anything, if nothing is listed.
    pub(crate) holdings: Vec<IpNet>,
}

impl Surroundings {
    /// Those of this configuration.
    pub(crate) fn new(config: &Config, key: &SecretKey) -> Surroundings {
        let listen = config.listen.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified());
        let mut reserved: Vec<_> = listen.map(|address| (address, "an address listened on".to_owned())).collect();
        for (neighbor, _) in config.bgp.iter().flat_map(|bgp| &bgp.neighbors) {
            reserved.push((neighbor.remote.ip(), format!("the BGP neighbour {}", neighbor.name)));
            reserved.extend(neighbor.next_hop_v4.map(|address| (address.into(), "a BGP next hop".to_owned())));
            reserved.extend(neighbor.next_hop_v6.map(|address| (address.into(), "a BGP next hop".to_owned())));
        }
        let egress = config.egress.iter().map(|choice| choice.name.clone()).collect();
        let (withdraw_after, holdings) = (config.withdraw_after, config.holdings.clone());
        Surroundings { key: key.clone(), withdraw_after, egress, reserved, holdings }
    }
}

impl Surroundings {
    /// Where the egress choice of this name stands among all. The error says what is there.
    fn place_of(&self, name: &str) -> Result<u8, String> {
        match self.egress.iter().zip(0..).find(|(known, _)| *known == name) {
            Some((_, place)) => Ok(place),
            None if self.egress.is_empty() => {
                Err(format!("there is no egress choice {name:?}: the core's file has no [[egress]]; leave this out"))
            }
            None => Err(format!("there is no egress choice {name:?}: the core knows {}", self.egress.join(", "))),
        }
    }
}

/// Why the sites were refused. Nothing of them has been put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SitesError {
    #[error("cannot read the folder of sites {}: {source}; make it, or name another with `sites`", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] SettingsError),
    /// In words of the node's: no file is to blame.
    #[error("the sites do not fit together: {0}")]
    Together(ConfigError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "schema")]
    _schema: Schema,
    id: u32,
    name: String,
    prefixes: Vec<Text<IpNet>>,
    withdraw_after: Option<Text<Option<Duration>>>,
    egress: Option<String>,
    #[serde(default)]
    policy: Several<PathBuf>,
    middlebox: Option<Middlebox>,
    client: Option<Client>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Middlebox {
    id: u32,
    uplink_keys: Vec<Text<PublicKey>>,
    #[serde(default)]
    prefer: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    public_key: Text<PublicKey>,
}

/// A site with the file that it came from, for errors.
struct Read {
    site: Site,
    /// The number of its box at the provider.
    middlebox: Option<u32>,
    document: Document,
    path: PathBuf,
}

impl Sites {
    /// Reads `*.toml` in the folder. The errors are of each file that has one, or of the first conflict between files.
    pub(crate) fn load(folder: &Path, surroundings: &Surroundings) -> Result<Sites, Vec<SitesError>> {
        let paths = list(folder).map_err(|source| vec![SitesError::Folder { path: folder.to_owned(), source }])?;
        let mut errors = Vec::new();
        let mut read = Vec::new();
        for path in paths {
            match Read::file(path, surroundings) {
                Ok(site) => read.push(site),
                Err(error) => errors.push(error.into()),
            }
        }
        if errors.is_empty() {
            errors.extend(conflict(&read).err());
        }
        if errors.is_empty() {
            let list: Vec<Site> = read.into_iter().map(|read| read.site).collect();
            let places = list.iter().enumerate().map(|(place, site)| (site.peer.id, place)).collect();
            Ok(Sites { list, places })
        } else {
            Err(errors)
        }
    }

    /// For the node, with the windows that are open now.
    pub(crate) fn peers(&self) -> Vec<PeerConfig> {
        let peer =
            |site: &Site| PeerConfig { open_windows: calendar::open_now(&site.peer.policy), ..site.peer.clone() };
        self.list.iter().map(peer).collect()
    }

    /// The policies that have windows, which open and close.
    pub(crate) fn with_windows(&self) -> Vec<(PeerId, Arc<Policy>)> {
        let with = self.list.iter().filter(|site| !site.peer.policy.windows().is_empty());
        with.map(|site| (site.peer.id, site.peer.policy.clone())).collect()
    }

    /// For the announcements.
    pub(crate) fn announcements(&self) -> impl Iterator<Item = ingress::Site> {
        self.list.iter().map(|site| ingress::Site {
            id: site.peer.id,
            name: site.peer.name.clone(),
            prefixes: site.peer.prefixes.clone(),
            withdraw_after: site.withdraw_after,
        })
    }

    /// A site's name.
    pub(crate) fn name(&self, id: PeerId) -> Option<&str> {
        self.list.get(*self.places.get(&id)?).map(|site| site.peer.name.as_str())
    }

    /// All that is routed to sites.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.list.iter().flat_map(|site| site.peer.prefixes.iter().copied())
    }
}

/// The site files of a folder, sorted; hidden ones are editors' business.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl Read {
    fn file(path: PathBuf, surroundings: &Surroundings) -> Result<Read, SettingsError> {
        let (file, document): (File, Document) = settings::load(&path, None)?;
        // Names stand in logs, tables and metrics.
        if file.name.is_empty() || file.name.len() > 64 || file.name.contains(char::is_control) {
            return Err(document.error("name", "expected a name of 1 to 64 characters"));
        }
        if file.prefixes.is_empty() {
            return Err(document.error("prefixes", "a site has at least one: expected [\"198.51.100.0/24\"], say"));
        }
        for (index, Text(prefix)) in file.prefixes.iter().enumerate() {
            check_prefix(prefix, surroundings)
                .map_err(|problem| document.error(&format!("prefixes[{index}]"), format!("{prefix} {problem}")))?;
        }
        let middlebox = file.middlebox.as_ref().map(|middlebox| middlebox.id);
        if middlebox == Some(0) {
            return Err(document.error("middlebox.id", "0 stands for none: expected the box's number, from 1"));
        }
        let (kind, paths) = match (file.middlebox, file.client) {
            (Some(middlebox), None) => (PeerKind::Middlebox, middlebox.paths(&surroundings.key, &document)?),
            (None, Some(client)) => {
                (PeerKind::Client, paths_to(0, None, &surroundings.key, client.public_key.0).into())
            }
            (Some(_), Some(_)) => return Err(document.error("client", "a site has [middlebox] or [client], not both")),
            (None, None) => {
                return Err(document.error("", "neither [middlebox] nor [client] is there: expected one of them"));
            }
        };
        let egress = match &file.egress {
            None => 0,
            Some(name) => surroundings.place_of(name).map_err(|problem| document.error("egress", problem))?,
        };
        let policies: Vec<PathBuf> = file.policy.0.iter().map(|path| document.resolve(path)).collect();
        let choices = |name: &str| surroundings.place_of(name).map(Some);
        let settings::policy::Read { policy, rules, .. } = settings::policy::read(&policies, &choices)?;
        let peer = PeerConfig {
            id: PeerId(file.id),
            name: file.name,
            kind,
            prefixes: file.prefixes.into_iter().map(|prefix| prefix.0).collect(),
            egress,
            policy: policy.into(),
            open_windows: 0,
            paths,
        };
        let withdraw_after = file.withdraw_after.map_or(surroundings.withdraw_after, |after| after.0);
        let egress = surroundings.egress.get(usize::from(egress)).cloned();
        Ok(Read { site: Site { peer, withdraw_after, egress, rules }, middlebox, document, path })
    }

    fn name(&self) -> &str {
        &self.site.peer.name
    }
}

impl Middlebox {
    fn paths(self, key: &SecretKey, document: &Document) -> Result<Vec<PathConfig>, SettingsError> {
        let count = self.uplink_keys.len();
        if !(1..=MAX_SLOTS).contains(&count) {
            let problem =
                format!("{count} keys: expected 1 to {MAX_SLOTS}, as `mspmb keygen` prints them, slot 0 first");
            return Err(document.error("middlebox.uplink_keys", problem));
        }
        for (index, slot) in self.prefer.iter().enumerate() {
            let place = format!("middlebox.prefer[{index}]");
            if usize::from(*slot) >= count {
                let problem = format!("slot {slot} has no key: uplink_keys has slots 0 to {}", count - 1);
                return Err(document.error(&place, problem));
            }
            if self.prefer[..index].contains(slot) {
                return Err(document.error(&place, format!("slot {slot} is listed twice")));
            }
        }
        // Slots that are not listed come after those that are; without a list the box's order holds.
        let preference = |slot: u8| match self.prefer.iter().position(|&listed| listed == slot) {
            _ if self.prefer.is_empty() => None,
            Some(place) => Some(place as u8),
            None => Some(self.prefer.len() as u8 + slot),
        };
        let keys = self.uplink_keys.iter().enumerate();
        Ok(keys.flat_map(|(slot, remote)| paths_to(slot as u8, preference(slot as u8), key, remote.0)).collect())
    }
}

/// Paths that the peer opens, wherever it is, by whichever kind of tunnel.
fn paths_to(slot: u8, preference: Option<u8>, local_key: &SecretKey, remote_key: PublicKey) -> [PathConfig; 2] {
    [TunnelKind::WireGuard, TunnelKind::Quic].map(|kind| PathConfig {
        slot,
        kind,
        preference,
        local_key: local_key.clone(),
        remote_key,
        link: None,
    })
}

/// Is this what a site can have and a core can announce? The error completes "PREFIX …".
fn check_prefix(prefix: &IpNet, surroundings: &Surroundings) -> Result<(), String> {
    // Broader than any allocation to one organisation (RFC 7020's registries hand out /8 and /12 at most to
    // themselves): a slip of the pen, and a default if it were let through.
    let (broadest, special) = match prefix {
        IpNet::V4(net) => {
            let address = net.addr();
            (8, address.is_loopback() || address.is_multicast() || address.is_link_local() || address.octets()[0] == 0)
        }
        IpNet::V6(net) => {
            let address = net.addr();
            (16, address.is_loopback() || address.is_multicast() || address.is_unicast_link_local())
        }
    };
    if prefix.prefix_len() < broadest {
        return Err(format!("is broader than any site: expected /{broadest} or longer"));
    }
    if special {
        return Err("is not unicast space that can be routed to a site".into());
    }
    let Surroundings { reserved, holdings, .. } = surroundings;
    if !holdings.is_empty() && !holdings.iter().any(|held| held.contains(prefix)) {
        return Err("is not within what this provider may announce: see to it, or add it to `holdings`".into());
    }
    match reserved.iter().find(|(address, _)| prefix.contains(address)) {
        Some((address, what)) => {
            Err(format!("contains {address}, {what}: routed to the site, it would cut the core off"))
        }
        None => Ok(()),
    }
}

/// Do the sites get along? In the words of the files: which key in which, and which other file.
fn conflict(read: &[Read]) -> Result<(), SitesError> {
    let mut names: HashMap<&str, &Read> = HashMap::new();
    for site in read {
        if let Some(first) = names.insert(site.name(), site) {
            let problem = format!("{:?} is the name of {} too", site.name(), first.path.display());
            return Err(site.document.error("name", problem).into());
        }
    }
    let mut boxes: HashMap<u32, &Read> = HashMap::new();
    for (site, number) in read.iter().filter_map(|site| Some((site, site.middlebox?))) {
        if let Some(first) = boxes.insert(number, site) {
            let problem = format!("{number} is the number of the box of {} too", first.path.display());
            return Err(site.document.error("middlebox.id", problem).into());
        }
    }
    let peers: Vec<PeerConfig> = read.iter().map(|read| read.site.peer.clone()).collect();
    let Err(error) = proto::config::check_peers(&peers) else { return Ok(()) };
    Err(explain(&error, &names).map_or(SitesError::Together(error), SitesError::File))
}

/// Finds the files behind the node's error.
fn explain(error: &ConfigError, names: &HashMap<&str, &Read>) -> Option<SettingsError> {
    let site = |name: &str| names.get(name).copied();
    // A key's user is "NAME slot N".
    let user = |user: &str| {
        let (name, slot) = user.rsplit_once(" slot ")?;
        Some((site(name)?, slot.to_owned()))
    };
    Some(match error {
        ConfigError::IdTwice { first, second } => {
            let (first, second) = (site(first)?, site(second)?);
            let problem = format!("{} is the number of {} too", second.site.peer.id.0, first.path.display());
            second.document.error("id", problem)
        }
        ConfigError::PrefixTwice { first, prefix, second, other } => {
            let (first, second) = (site(first)?, site(second)?);
            let index = second.site.peer.prefixes.iter().position(|mine| mine == other)?;
            let problem = format!("{other} overlaps {prefix} of {}", first.path.display());
            second.document.error(&format!("prefixes[{index}]"), problem)
        }
        ConfigError::KeyTwice { key, first, second } => {
            let ((first, _), (second, slot)) = (user(first)?, user(second)?);
            let place = match second.site.peer.kind {
                PeerKind::Client => "client.public_key".to_owned(),
                PeerKind::Core | PeerKind::Middlebox => format!("middlebox.uplink_keys[{slot}]"),
            };
            second.document.error(&place, format!("{key} is used by {} too", first.path.display()))
        }
        ConfigError::Slot { .. } | ConfigError::SlotTwice { .. } | ConfigError::Mtu(_) => return None,
    })
}

#[cfg(test)]
mod tests;
