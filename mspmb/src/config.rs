//! What the operator wrote.

use crate::nat64::Pref64;
use dataplane::calendar;
use dataplane::settings::policy::Rule;
use dataplane::settings::{self, Document, Octets, Schema, SettingsError, Several, Text, Tun, Written};
use ipnet::IpNet;
use proto::policy::Policy;
use proto::{
    Identity, Keepalive, LinkId, MAX_SLOTS, NodeConfig, PathConfig, PeerConfig, PeerId, PeerKind, PublicKey, SecretKey,
    TunnelChoice, TunnelKind,
};
use serde::Deserialize;
use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the configuration is if nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/mspmb/mspmb.toml";
/// Variables that begin with this override the file.
const ENVIRONMENT: &str = "MSPMB";
/// The only core there is yet; a number for the node.
pub(crate) const CORE: PeerId = PeerId(1);

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
    #[serde(default = "default_state")]
    state: PathBuf,
    #[serde(default = "default_find")]
    find: bool,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    lan: Vec<String>,
    #[serde(default)]
    tun: Tun,
    #[serde(default)]
    tunnel: TunnelChoice,
    #[serde(default)]
    policy: Several<PathBuf>,
    core: CoreTable,
    #[serde(default)]
    uplink: Vec<UplinkTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoreTable {
    name: String,
    public_key: Text<PublicKey>,
    endpoints: Vec<Text<Endpoint>>,
    #[serde(default = "default_quic_port")]
    quic_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UplinkTable {
    interface: String,
    slot: Option<u8>,
    metered: Option<bool>,
    keepalive_budget: Option<Text<Octets>>,
    #[serde(default)]
    dns: Vec<Text<IpAddr>>,
    nat64: Option<Text<IpNet>>,
    tunnel: Option<TunnelChoice>,
}

/// Where the core is, as it is written: an address, or a name that each uplink's own resolver is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Address and port.
    Address(SocketAddr),
    /// Name and port.
    Name(String, u16),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Address(address) => address.fmt(f),
            Endpoint::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl Written for Endpoint {
    const EXPECTED: &'static str =
        "an address or a name with a port, such as 192.0.2.1:51820, [2001:db8::1]:51820 or core.example.net:51820";
    fn read(text: &str) -> Result<Self, Option<String>> {
        if let Ok(address) = text.parse() {
            return Ok(Endpoint::Address(address));
        }
        let (name, port) = text.rsplit_once(':').ok_or(None)?;
        let name = name.strip_suffix('.').unwrap_or(name);
        if !is_host_name(name) {
            return Err(None);
        }
        Ok(Endpoint::Name(name.to_ascii_lowercase(), port.parse().map_err(|_| None)?))
    }
}

/// RFC 1123, section 2.1, with the underscore that some use; the last label is not a number (RFC 3696, section 2), or
/// a mistyped address would be one.
fn is_host_name(name: &str) -> bool {
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    // 255 octets on the wire are 253 characters with their dots (RFC 1035, section 2.3.4).
    name.len() <= 253 && name.split('.').all(good) && !name.rsplit('.').next().is_some_and(number)
}

fn default_secret_file() -> PathBuf {
    "secret.key".into()
}

fn default_control() -> PathBuf {
    "/run/mspmb/control.sock".into()
}

fn default_state() -> PathBuf {
    "/var/lib/mspmb".into()
}

/// HTTP/3's, which most networks let pass.
fn default_quic_port() -> u16 {
    443
}

fn default_find() -> bool {
    true
}

/// The configuration, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) control: PathBuf,
    /// The folder for what is to be known after a restart.
    pub(crate) state: PathBuf,
    /// Interfaces with a default route are uplinks, also those that the file does not name.
    pub(crate) find: bool,
    /// Interfaces that are none of this program's business; a `*` at the end stands for any rest.
    pub(crate) ignore: Vec<String>,
    /// Interfaces of the LAN besides those with an address of the site.
    pub(crate) lan: Vec<String>,
    pub(crate) tun: Tun,
    /// Which uplinks the site's packets take.
    pub(crate) policy: Arc<Policy>,
    /// Who wrote each of its classes, and where.
    pub(crate) rules: Vec<Rule>,
    /// Classes that others stand in the place of: a sentence each.
    pub(crate) left_out: Vec<String>,
    pub(crate) core: Core,
    /// The uplinks that the file names, in order of preference.
    pub(crate) uplinks: Vec<Uplink>,
    /// The kind of tunnel of uplinks of which the file says nothing else.
    tunnel: TunnelChoice,
    secret: SecretKey,
    middlebox: u32,
}

/// The point of presence.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) public_key: PublicKey,
    /// In order of preference.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Where it listens for QUIC, at the same addresses.
    pub(crate) quic_port: u16,
}

/// What the file says of an ISP link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) interface: String,
    pub(crate) slot: u8,
    pub(crate) keepalive: Keepalive,
    /// The resolvers to ask, in place of those found.
    pub(crate) dns: Vec<IpAddr>,
    /// The prefix of its NAT64, in place of the one found.
    pub(crate) nat64: Option<Pref64>,
    /// The kind of its tunnel, if the file says it for this uplink.
    pub(crate) tunnel: Option<TunnelChoice>,
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
        check_interfaces(&file, &document)?;
        file.tun.check(&document)?;
        if file.middlebox == 0 {
            return Err(document.error("middlebox", "0 is no number of a box: expected the one the provider gave"));
        }
        if file.control.is_relative() {
            return Err(document.error("control", "expected a path that begins with /"));
        }
        let secret = settings::read_key(&document.resolve(&file.secret_file))?;
        let policies: Vec<PathBuf> = file.policy.0.iter().map(|path| document.resolve(path)).collect();
        let settings::policy::Read { policy, rules, left_out } =
            settings::policy::read(&policies, &settings::policy::at_the_core)?;
        Ok(Config {
            policy: policy.into(),
            rules,
            left_out,
            prefixes: file.prefixes.into_iter().map(|prefix| prefix.0).collect(),
            control: file.control,
            state: document.resolve(&file.state),
            find: file.find,
            ignore: file.ignore,
            lan: file.lan,
            tun: file.tun,
            core: Core {
                name: file.core.name,
                public_key: file.core.public_key.0,
                endpoints: file.core.endpoints.into_iter().map(|endpoint| endpoint.0).collect(),
                quic_port: file.core.quic_port,
            },
            uplinks,
            tunnel: file.tunnel,
            secret,
            middlebox: file.middlebox,
        })
    }

    /// The journal of changes to this host.
    pub(crate) fn journal(&self) -> PathBuf {
        self.control.with_extension("journal")
    }

    /// The kind of tunnel that the uplink of a slot is to have.
    pub(crate) fn tunnel(&self, slot: u8) -> TunnelChoice {
        let own = self.uplinks.iter().find(|uplink| uplink.slot == slot).and_then(|uplink| uplink.tunnel);
        own.unwrap_or(self.tunnel)
    }

    /// Which kinds of tunnels the uplinks have, and where the core is to listen for them, for people.
    pub(crate) fn tunnels_text(&self) -> String {
        let quic = format!("QUIC, at UDP port {} of the core", self.core.quic_port);
        let said = |choice| match choice {
            TunnelChoice::WireGuard => "WireGuard".to_owned(),
            TunnelChoice::Quic => quic.clone(),
            TunnelChoice::Auto => format!("WireGuard, and where that does not work {quic}"),
        };
        let mut text = format!("tunnels: {}\n", said(self.tunnel));
        for uplink in self.uplinks.iter().filter(|uplink| uplink.tunnel.is_some_and(|own| own != self.tunnel)) {
            text += &format!("over {}: {}\n", uplink.interface, said(self.tunnel(uplink.slot)));
        }
        text
    }

    /// What the node is told. It has paths for each slot there may be; which have an uplink it hears later.
    pub(crate) fn node(&self) -> NodeConfig {
        let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let kinds = |slot| match self.tunnel(slot) {
            TunnelChoice::WireGuard => &[TunnelKind::WireGuard][..],
            TunnelChoice::Quic => &[TunnelKind::Quic],
            TunnelChoice::Auto => &[TunnelKind::WireGuard, TunnelKind::Quic],
        };
        let paths = (0..MAX_SLOTS as u8)
            .flat_map(|slot| kinds(slot).iter().map(move |&kind| (slot, kind)))
            .map(|(slot, kind)| PathConfig {
                slot,
                kind,
                preference: None,
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
                egress: 0,
                policy: self.policy.clone(),
                open_windows: calendar::open_now(&self.policy),
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
        return Err(
            document.error("core.endpoints", "expected at least one address or name of the core, with its port")
        );
    }
    for (index, Text(endpoint)) in file.core.endpoints.iter().enumerate() {
        let key = format!("core.endpoints[{index}]");
        let (port, address) = match endpoint {
            Endpoint::Address(address) => (address.port(), Some(address.ip())),
            Endpoint::Name(_, port) => (*port, None),
        };
        if port == 0 || address.is_some_and(|address| address.is_unspecified() || address.is_multicast()) {
            return Err(document.error(&key, format!("{endpoint} is nowhere: expected the core's address and port")));
        }
        let within = |address| file.prefixes.iter().find(|Text(prefix)| prefix.contains(&address));
        if let Some(Text(prefix)) = address.and_then(within) {
            let problem = format!("{endpoint} lies in the site's own {prefix}: the tunnel would go through itself");
            return Err(document.error(&key, problem));
        }
    }
    if file.core.quic_port == 0 {
        return Err(document.error("core.quic_port", "0 is no port: expected the one where the core listens for QUIC"));
    }
    Ok(())
}

/// What the file says of interfaces that are no uplinks.
fn check_interfaces(file: &File, document: &Document) -> Result<(), SettingsError> {
    for (index, name) in file.ignore.iter().enumerate() {
        let key = format!("ignore[{index}]");
        // What stands before a star may be nothing: "*" turns finding off as `find = false` does.
        let fixed = name.strip_suffix('*').unwrap_or(name);
        if !(fixed.is_empty() && name == "*") {
            settings::check_interface(document, &key, fixed)?;
        }
        if let Some(uplink) = file.uplink.iter().find(|uplink| matches(name, &uplink.interface)) {
            let problem = format!("\"{name}\" is an uplink of this file (\"{}\"): it cannot be both", uplink.interface);
            return Err(document.error(&key, problem));
        }
    }
    for (index, name) in file.lan.iter().enumerate() {
        let key = format!("lan[{index}]");
        settings::check_interface(document, &key, name)?;
        if *name == file.tun.name {
            return Err(document.error(&key, format!("\"{name}\" is the TUN's name, which is no interface of the LAN")));
        }
    }
    if !file.find && file.uplink.is_empty() {
        let problem = "with `find = false` expected at least one [[uplink]]; or leave `find` out, to have them found";
        return Err(document.error("find", problem));
    }
    Ok(())
}

/// Whether an interface is meant by a name in `ignore`.
pub(crate) fn matches(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(fixed) => interface.starts_with(fixed),
        None => pattern == interface,
    }
}

fn uplinks(file: &File, document: &Document) -> Result<Vec<Uplink>, SettingsError> {
    if file.uplink.len() > MAX_SLOTS {
        return Err(document.error("uplink", format!("expected at most {MAX_SLOTS} of them, one for each ISP link")));
    }
    let mut interfaces = HashSet::from([file.tun.name.as_str()]);
    let mut slots = HashSet::new();
    let mut uplinks = Vec::new();
    for ((index, table), position) in file.uplink.iter().enumerate().zip(0..) {
        let key = |key: &str| format!("uplink[{index}].{key}");
        settings::check_interface(document, &key("interface"), &table.interface)?;
        if !interfaces.insert(&table.interface) {
            let problem = format!("\"{}\" is used already, by another uplink or the TUN", table.interface);
            return Err(document.error(&key("interface"), problem));
        }
        let slot = table.slot.unwrap_or(position);
        if usize::from(slot) >= MAX_SLOTS {
            let problem = format!("{slot} does not exist: expected 0 to {}", MAX_SLOTS - 1);
            return Err(document.error(&key("slot"), problem));
        }
        if !slots.insert(slot) {
            let problem = format!("{slot} is used by an earlier uplink: expected one of its own");
            return Err(document.error(&key("slot"), problem));
        }
        let nat64 = match table.nat64 {
            None => None,
            Some(Text(prefix)) => Some(Pref64::new(prefix).map_err(|error| document.error(&key("nat64"), error))?),
        };
        uplinks.push(Uplink {
            interface: table.interface.clone(),
            slot,
            keepalive: keepalive(table, table.tunnel.unwrap_or(file.tunnel), document, &key("keepalive_budget"))?,
            dns: table.dns.iter().map(|server| server.0).collect(),
            nat64,
            tunnel: table.tunnel,
        });
    }
    Ok(uplinks)
}

/// What an idle month may cost on a link that is paid by the octet, if the file does not say: a twentieth of the
/// smallest plans sold.
const BUDGET: Octets = Octets(50_000_000);

fn keepalive(
    table: &UplinkTable,
    tunnel: TunnelChoice,
    document: &Document,
    key: &str,
) -> Result<Keepalive, SettingsError> {
    let kind = if tunnel == TunnelChoice::Quic { TunnelKind::Quic } else { TunnelKind::WireGuard };
    if table.keepalive_budget.is_some() && table.metered == Some(false) {
        return Err(document.error(key, "only a metered uplink has a budget: leave it out, or `metered = false`"));
    }
    if table.keepalive_budget.is_none() && table.metered != Some(true) {
        return Ok(Keepalive::default());
    }
    let Octets(budget) = table.keepalive_budget.map_or(BUDGET, |text| text.0);
    let keepalive = Keepalive::metered(budget, kind);
    // What cannot be kept is brought to the longest interval there is, as a budget of nothing is.
    if keepalive == Keepalive::metered(0, kind) {
        let problem = format!(
            "{} MB cannot be kept: a path is asked at least each {} s, lest a NAT forget it; expected \"46 MB\" or more",
            budget / 1_000_000,
            keepalive.idle.as_secs()
        );
        return Err(document.error(key, problem));
    }
    Ok(keepalive)
}

#[cfg(test)]
pub(crate) mod tests;
