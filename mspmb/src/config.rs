//! What the operator wrote.

use dataplane::settings::{self, Document, Schema, SettingsError, Text, Tun};
use ipnet::IpNet;
use proto::{Identity, LinkId, MAX_SLOTS, NodeConfig, PathConfig, PeerConfig, PeerId, PeerKind, PublicKey, SecretKey};
use serde::Deserialize;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the configuration is if nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/mspmb/mspmb.toml";
/// Variables that begin with this override the file.
const ENVIRONMENT: &str = "MSPMB";
/// The only core there is yet; a number for the node.
const CORE: PeerId = PeerId(1);

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "schema")]
    _schema: Schema,
    prefixes: Vec<Text<IpNet>>,
    #[serde(default = "default_secret_file")]
    secret_file: PathBuf,
    middlebox: u32,
    #[serde(default = "default_control")]
    control: PathBuf,
    #[serde(default)]
    tun: Tun,
    core: CoreTable,
    uplink: Vec<UplinkTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoreTable {
    name: String,
    public_key: Text<PublicKey>,
    endpoints: Vec<Text<SocketAddr>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UplinkTable {
    interface: String,
    slot: Option<u8>,
}

fn default_secret_file() -> PathBuf {
    "secret.key".into()
}

fn default_control() -> PathBuf {
    "/run/mspmb/control.sock".into()
}

/// The configuration, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) control: PathBuf,
    pub(crate) tun: Tun,
    pub(crate) core: Core,
    /// In order of preference.
    pub(crate) uplinks: Vec<Uplink>,
    secret: SecretKey,
    middlebox: u32,
}

/// The point of presence.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: String,
    public_key: PublicKey,
    /// In order of preference.
    pub(crate) endpoints: Vec<SocketAddr>,
}

/// An ISP link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) interface: String,
    pub(crate) slot: u8,
}

impl Uplink {
    /// Its name for the node.
    pub(crate) fn link(&self) -> LinkId {
        LinkId(self.slot.into())
    }
}

/// Where the secret is to be, by the configuration; beside it, if there is none yet.
pub(crate) fn secret_file(path: &Path) -> Result<PathBuf, SettingsError> {
    match settings::load::<File>(path, Some(ENVIRONMENT)) {
        Ok((file, document)) => Ok(document.resolve(&file.secret_file)),
        Err(SettingsError::Read { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            Ok(path.with_file_name(default_secret_file()))
        }
        Err(error) => Err(error),
    }
}

/// Where the daemon answers, by the configuration. The secret is not needed to ask it.
pub(crate) fn control_socket(path: &Path) -> Result<PathBuf, SettingsError> {
    settings::load::<File>(path, Some(ENVIRONMENT)).map(|(file, _)| file.control)
}

impl Config {
    /// Reads and checks the file, the environment and the secret.
    pub(crate) fn load(path: &Path) -> Result<Self, SettingsError> {
        let (file, document) = settings::load::<File>(path, Some(ENVIRONMENT))?;
        check_prefixes(&file, &document)?;
        check_core(&file, &document)?;
        let uplinks = uplinks(&file, &document)?;
        file.tun.check(&document)?;
        if file.middlebox == 0 {
            return Err(document.error("middlebox", "0 is no number of a box: expected the one the provider gave"));
        }
        if file.control.is_relative() {
            return Err(document.error("control", "expected a path that begins with /"));
        }
        let secret = settings::read_key(&document.resolve(&file.secret_file))?;
        Ok(Config {
            prefixes: file.prefixes.into_iter().map(|prefix| prefix.0).collect(),
            control: file.control,
            tun: file.tun,
            core: Core {
                name: file.core.name,
                public_key: file.core.public_key.0,
                endpoints: file.core.endpoints.into_iter().map(|endpoint| endpoint.0).collect(),
            },
            uplinks,
            secret,
            middlebox: file.middlebox,
        })
    }

    /// The journal of changes to this host.
    pub(crate) fn journal(&self) -> PathBuf {
        self.control.with_extension("journal")
    }

    /// What the node is told. It has a path for each slot there may be; which have an uplink it hears later.
    pub(crate) fn node(&self) -> NodeConfig {
        let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let paths = (0..MAX_SLOTS as u8)
            .map(|slot| PathConfig {
                slot,
                preference: slot,
                local_key: self.secret.uplink(slot),
                remote_key: self.core.public_key,
                link: Some(LinkId(slot.into())),
            })
            .collect();
        NodeConfig {
            identity: Identity { middlebox: self.middlebox, pop: 0 },
            mtu: self.tun.mtu,
            local: self.prefixes.clone(),
            listen_key: None,
            peers: vec![PeerConfig {
                id: CORE,
                name: self.core.name.clone(),
                kind: PeerKind::Core,
                prefixes: everywhere
                    .map(|address| IpNet::new(address, 0).expect("0 is a length of prefixes of both families"))
                    .to_vec(),
                paths,
            }],
        }
    }
}

fn check_prefixes(file: &File, document: &Document) -> Result<(), SettingsError> {
    if file.prefixes.is_empty() {
        return Err(document.error("prefixes", "expected at least one prefix: the site's own"));
    }
    for (index, Text(prefix)) in file.prefixes.iter().enumerate() {
        let key = format!("prefixes[{index}]");
        if !may_be_a_sites(prefix) {
            return Err(
                document.error(&key, format!("{prefix} cannot be a site's: expected a unicast prefix of its own"))
            );
        }
        if let Some(Text(other)) =
            file.prefixes[..index].iter().find(|Text(other)| other.contains(prefix) || prefix.contains(other))
        {
            return Err(document.error(&key, format!("{prefix} overlaps {other}: expected each address once")));
        }
    }
    Ok(())
}

/// Not everything, and not what has a meaning of its own on every host.
fn may_be_a_sites(prefix: &IpNet) -> bool {
    let special: [IpNet; 5] = [
        IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8).trunc(),
        IpNet::new_assert(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        IpNet::new_assert(Ipv4Addr::new(224, 0, 0, 0).into(), 3),
        IpNet::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
        IpNet::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    ];
    prefix.prefix_len() != 0
        && !prefix.contains(&IpAddr::V6(Ipv6Addr::LOCALHOST))
        && !special.iter().any(|special| special.contains(prefix) || prefix.contains(special))
}

fn check_core(file: &File, document: &Document) -> Result<(), SettingsError> {
    if file.core.endpoints.is_empty() {
        return Err(document.error("core.endpoints", "expected at least one address of the core, with its port"));
    }
    for (index, Text(endpoint)) in file.core.endpoints.iter().enumerate() {
        let key = format!("core.endpoints[{index}]");
        let address = endpoint.ip();
        if endpoint.port() == 0 || address.is_unspecified() || address.is_multicast() {
            return Err(document.error(&key, format!("{endpoint} is nowhere: expected the core's address and port")));
        }
        if let Some(Text(prefix)) = file.prefixes.iter().find(|Text(prefix)| prefix.contains(&address)) {
            let problem = format!("{endpoint} lies in the site's own {prefix}: the tunnel would go through itself");
            return Err(document.error(&key, problem));
        }
    }
    Ok(())
}

fn uplinks(file: &File, document: &Document) -> Result<Vec<Uplink>, SettingsError> {
    if file.uplink.is_empty() || file.uplink.len() > MAX_SLOTS {
        return Err(document.error("uplink", format!("expected 1 to {MAX_SLOTS} of them, one for each ISP link")));
    }
    let mut interfaces = HashSet::from([file.tun.name.as_str()]);
    let mut slots = HashSet::new();
    let mut uplinks = Vec::new();
    for ((index, table), position) in file.uplink.iter().enumerate().zip(0..) {
        let key = format!("uplink[{index}].interface");
        settings::check_interface(document, &key, &table.interface)?;
        if !interfaces.insert(&table.interface) {
            let problem = format!("\"{}\" is used already, by another uplink or the TUN", table.interface);
            return Err(document.error(&key, problem));
        }
        let slot = table.slot.unwrap_or(position);
        let key = format!("uplink[{index}].slot");
        if usize::from(slot) >= MAX_SLOTS {
            return Err(document.error(&key, format!("{slot} does not exist: expected 0 to {}", MAX_SLOTS - 1)));
        }
        if !slots.insert(slot) {
            return Err(document.error(&key, format!("{slot} is used by an earlier uplink: expected one of its own")));
        }
        uplinks.push(Uplink { interface: table.interface.clone(), slot });
    }
    Ok(uplinks)
}

#[cfg(test)]
mod tests;
