//! The core's configuration file.

mod egress;
mod ingress;
mod rpki;

use crate::bgp::cache;
use crate::bgp::ingress::Export;
use crate::bgp::role::Role;
use crate::bgp::routing::Transit;
use crate::bgp::session;
use crate::bgp::socket::{Options, Password};
use crate::bgp::transport::Neighbor;
use dataplane::settings::{self, Document, Schema, SettingsError, Text, Tun};
use egress::{AcceptWord, EgressTable, MaxPrefixes};
pub(crate) use egress::{Egress, SITES_TABLE};
pub(crate) use ingress::Ingress;
use ingress::{AggregateTable, IngressTable};
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for.
pub(crate) const DEFAULT_FILE: &str = "/etc/msp-core/msp-core.toml";
/// Overrides from the environment begin so: `MSP_CORE_TUN__MTU=1400`.
const ENVIRONMENT: &str = "MSP_CORE";

/// The configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// The number of this point of presence within its provider.
    pub(crate) pop: u32,
    pub(crate) private_key_file: PathBuf,
    /// Where the tunnels are listened for.
    pub(crate) listen: Vec<SocketAddr>,
    /// The folder of site files.
    pub(crate) sites: PathBuf,
    /// What the provider may announce: a site's prefixes lie within. Anything, if nothing is listed.
    pub(crate) holdings: Vec<IpNet>,
    /// How long after its last path went down a site is withdrawn, where its file says nothing; `None` is never.
    pub(crate) withdraw_after: Option<Duration>,
    pub(crate) control: PathBuf,
    pub(crate) tun: Tun,
    pub(crate) bgp: Option<Bgp>,
    /// By whom the sites' packets leave; by the main table, if none is given. The first is that of sites that name none.
    pub(crate) egress: Vec<Egress>,
    /// By whom they come in.
    pub(crate) ingress: Ingress,
}

/// The BGP speaker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bgp {
    pub(crate) local_as: u32,
    pub(crate) router_id: Ipv4Addr,
    /// Where neighbours may connect to.
    pub(crate) listen: Vec<SocketAddr>,
    /// The neighbours, each with what it may be told.
    pub(crate) neighbors: Vec<(Neighbor, Export)>,
    /// What is taken of each of them, in the same order.
    pub(crate) transits: Vec<Transit>,
    /// Who says which AS may announce what, the preferred first.
    pub(crate) caches: Vec<cache::Config>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "schema")]
    _schema: Schema,
    pop: u32,
    private_key_file: PathBuf,
    listen: Vec<Text<SocketAddr>>,
    sites: PathBuf,
    #[serde(default)]
    holdings: Vec<Text<IpNet>>,
    #[serde(default = "default_withdraw_after")]
    withdraw_after: Text<Option<Duration>>,
    #[serde(default = "default_control")]
    control: PathBuf,
    #[serde(default)]
    tun: Tun,
    bgp: Option<BgpTable>,
    #[serde(default)]
    egress: Vec<EgressTable>,
    #[serde(default)]
    ingress: Vec<IngressTable>,
    #[serde(default)]
    aggregate: Vec<AggregateTable>,
}

fn default_withdraw_after() -> Text<Option<Duration>> {
    // Long enough for a box to restart or a link to flap, and for no neighbour to damp the route.
    Text(Some(Duration::from_secs(60)))
}

fn default_control() -> PathBuf {
    "/run/msp-core/control.sock".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BgpTable {
    local_as: u32,
    router_id: Text<IpAddr>,
    #[serde(default = "default_bgp_listen")]
    listen: Vec<Text<SocketAddr>>,
    #[serde(default)]
    neighbor: Vec<NeighborTable>,
    #[serde(default)]
    cache: Vec<rpki::CacheTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NeighborTable {
    name: String,
    address: Text<IpAddr>,
    #[serde(default = "default_port")]
    port: u16,
    remote_as: u32,
    #[serde(default = "default_hold_time")]
    hold_time: Text<Duration>,
    /// We wait for it to connect.
    #[serde(default)]
    passive: bool,
    /// Our address on the session.
    source: Option<Text<IpAddr>>,
    /// The key of TCP-MD5.
    password: Option<String>,
    /// A file that has it.
    password_file: Option<PathBuf>,
    /// How many hops away it may be; what comes from farther is dropped (GTSM).
    ttl_security: Option<u8>,
    /// How many hops away it is.
    multihop: Option<u8>,
    /// What we are to it.
    role: Option<Role>,
    #[serde(default)]
    strict_role: bool,
    #[serde(default)]
    add_path: bool,
    #[serde(default)]
    extended_next_hop: bool,
    next_hop_v4: Option<Text<IpAddr>>,
    next_hop_v6: Option<Text<IpAddr>>,
    #[serde(default)]
    announce: Vec<Announce>,
    #[serde(default)]
    accept: Vec<AcceptWord>,
    max_prefixes: Option<MaxPrefixes>,
}

/// What a neighbour can be told. Nothing is, unless it is named (RFC 8212).
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Announce {
    /// Sites' prefixes, and aggregates around them.
    Sites,
    /// Addresses of sites that it is to drop packets for, when an operator asks for it.
    Blackholes,
}

fn default_port() -> u16 {
    179
}

fn default_bgp_listen() -> Vec<Text<SocketAddr>> {
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        .map(|address| Text(SocketAddr::new(address, default_port())))
        .into()
}

fn default_hold_time() -> Text<Duration> {
    // RFC 4271, section 10.
    Text(Duration::from_secs(90))
}

impl Config {
    /// The TUNs' names, one for each egress choice. What is for the sites goes to the first.
    pub(crate) fn tuns(&self) -> Vec<&str> {
        match &self.egress[..] {
            [] => vec![&self.tun.name],
            choices => choices.iter().map(|choice| choice.tun.as_str()).collect(),
        }
    }

    /// Reads and checks the file.
    pub(crate) fn load(path: &Path) -> Result<Config, SettingsError> {
        let (file, document): (File, Document) = settings::load(path, Some(ENVIRONMENT))?;
        let error = |key: &str, problem: &str| Err(document.error(key, problem));
        if file.pop == 0 {
            return error("pop", "0 stands for none: expected the number of this point of presence, from 1");
        }
        if file.listen.is_empty() {
            return error(
                "listen",
                "nothing to listen on: expected addresses such as [\"0.0.0.0:51820\", \"[::]:51820\"]",
            );
        }
        let mut addresses = HashSet::new();
        for (index, Text(address)) in file.listen.iter().enumerate() {
            if !addresses.insert(address) {
                return Err(document.error(&format!("listen[{index}]"), format!("{address} is listed twice")));
            }
        }
        file.tun.check(&document)?;
        let bgp = file.bgp.map(|table| table.check(&document)).transpose()?;
        let transits = bgp.as_ref().map_or(&[][..], |bgp| &bgp.transits);
        let egress = egress::check(file.egress, transits, &file.tun.name, &document)?;
        let ingress = ingress::check(file.ingress, file.aggregate, transits, &document)?;
        Ok(Config {
            pop: file.pop,
            private_key_file: document.resolve(&file.private_key_file),
            listen: file.listen.iter().map(|listen| listen.0).collect(),
            sites: document.resolve(&file.sites),
            holdings: file.holdings.iter().map(|prefix| prefix.0).collect(),
            withdraw_after: file.withdraw_after.0,
            control: file.control,
            tun: file.tun,
            bgp,
            egress,
            ingress,
        })
    }
}

impl BgpTable {
    fn check(self, document: &Document) -> Result<Bgp, SettingsError> {
        check_as(self.local_as).map_err(|problem| document.error("bgp.local_as", problem))?;
        let router_id = match self.router_id.0 {
            IpAddr::V4(id) if !id.is_unspecified() => id,
            _ => {
                let problem = "expected four octets written as an IPv4 address other than 0.0.0.0 (RFC 6286)";
                return Err(document.error("bgp.router_id", problem));
            }
        };
        let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
        let (mut neighbors, mut transits) = (Vec::new(), Vec::new());
        for (index, table) in self.neighbor.into_iter().enumerate() {
            let place = |key: &str| format!("bgp.neighbor[{index}].{key}");
            if table.name.is_empty() || !names.insert(table.name.clone()) {
                return Err(document.error(&place("name"), "expected a name that no other neighbour has"));
            }
            if !addresses.insert(table.address.0) {
                let problem = format!("{} is the address of two neighbours", table.address.0);
                return Err(document.error(&place("address"), problem));
            }
            transits.push(table.transit(self.local_as));
            let neighbor = table.check(self.local_as, router_id, document);
            neighbors.push(neighbor.map_err(|(key, problem)| document.error(&place(key), problem))?);
        }
        let listen = self.listen.iter().map(|listen| listen.0).collect();
        let caches = rpki::check(self.cache, document)?;
        Ok(Bgp { local_as: self.local_as, router_id, listen, neighbors, transits, caches })
    }
}

impl NeighborTable {
    /// What is taken of it.
    fn transit(&self, local_as: u32) -> Transit {
        let most = self.max_prefixes.as_ref();
        Transit {
            name: self.name.clone(),
            address: self.address.0,
            local_as,
            remote_as: self.remote_as,
            role: self.role,
            accept: egress::accept(&self.accept),
            add_path: self.add_path,
            max_prefixes: [most.and_then(|most| most.ipv4), most.and_then(|most| most.ipv6)],
            restart: most.and_then(|most| Some(most.restart.as_ref()?.0)),
            multihop: self.multihop.is_some() || self.ttl_security.is_some_and(|hops| hops > 1),
        }
    }

    /// An error is the key and what is wrong with it.
    fn check(
        self,
        local_as: u32,
        router_id: Ipv4Addr,
        document: &Document,
    ) -> Result<(Neighbor, Export), (&'static str, String)> {
        check_as(self.remote_as).map_err(|problem| ("remote_as", problem.to_owned()))?;
        let address = self.address.0;
        if address.is_unspecified() || address.is_multicast() {
            return Err(("address", format!("{address} is no neighbour's address")));
        }
        let hold_time = match self.hold_time.0 {
            time if time.subsec_nanos() == 0 && time.as_secs() != 1 && time.as_secs() != 2 => time.as_secs(),
            _ => return Err(("hold_time", "expected whole seconds: \"0s\" (none) or 3 s and more (RFC 4271)".into())),
        };
        let hold_time = u16::try_from(hold_time)
            .map_err(|_| ("hold_time", "expected at most \"65535s\", which is what the message can hold".to_owned()))?;
        let next_hop_v4 = match self.next_hop_v4 {
            None => None,
            Some(Text(IpAddr::V4(address))) if is_next_hop(address.into()) => Some(address),
            Some(_) => return Err(("next_hop_v4", "expected the IPv4 address of this host on that link".into())),
        };
        let next_hop_v6: Option<Ipv6Addr> = match self.next_hop_v6 {
            None => None,
            Some(Text(IpAddr::V6(address))) if is_next_hop(address.into()) => Some(address),
            Some(_) => {
                return Err(("next_hop_v6", "expected the global IPv6 address of this host on that link".into()));
            }
        };
        let socket = self.socket(local_as, document)?;
        if self.role.is_some() && local_as == self.remote_as {
            return Err(("role", "roles are for sessions between two ASes (RFC 9234)".into()));
        }
        if self.strict_role && self.role.is_none() {
            return Err(("strict_role", "there is no `role` that the neighbour could confirm".into()));
        }
        let session = session::Config {
            local_as,
            router_id,
            remote_as: self.remote_as,
            hold_time,
            passive: self.passive,
            role: self.role,
            strict_role: self.strict_role,
            add_path: self.add_path,
            extended_next_hop: self.extended_next_hop,
        };
        let remote = SocketAddr::new(address, self.port);
        let export = Export {
            sites: self.announce.contains(&Announce::Sites),
            blackholes: self.announce.contains(&Announce::Blackholes),
        };
        Ok((Neighbor { name: self.name, remote, session, socket, next_hop_v4, next_hop_v6 }, export))
    }
}

impl NeighborTable {
    /// How connections with it are made.
    fn socket(&self, local_as: u32, document: &Document) -> Result<Options, (&'static str, String)> {
        let source = self.source.as_ref().map(|source| source.0);
        if source.is_some_and(|source| source.is_ipv4() != self.address.0.is_ipv4() || source.is_unspecified()) {
            return Err(("source", "expected an address of this host, of the same family as the neighbour's".into()));
        }
        let password = match (&self.password, &self.password_file) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(("password", "there is a `password_file` too: expected one of them".into()));
            }
            (Some(text), None) => Some(password(text).map_err(|problem| ("password", problem))?),
            (None, Some(file)) => {
                let path = document.resolve(file);
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| ("password_file", format!("cannot read {}: {error}", path.display())))?;
                Some(password(text.trim_end_matches(['\r', '\n'])).map_err(|problem| ("password_file", problem))?)
            }
        };
        let (ttl, least_ttl) = match (self.ttl_security, self.multihop) {
            (Some(_), Some(_)) => {
                let problem = "there is `multihop` too: expected one of them; ttl_security counts the hops as well";
                return Err(("ttl_security", problem.into()));
            }
            (Some(0), _) => {
                return Err(("ttl_security", "expected the number of hops, from 1 (directly connected)".into()));
            }
            (_, Some(0)) => {
                return Err(("multihop", "expected the number of hops, from 1 (directly connected)".into()));
            }
            (Some(hops), None) => Options::gtsm(hops),
            (None, Some(hops)) => (Some(hops), None),
            // A session between two ASes is over one link unless something else is said, as everywhere.
            (None, None) if self.remote_as != local_as => (Some(1), None),
            (None, None) => (None, None),
        };
        Ok(Options { source, password, ttl, least_ttl })
    }
}

fn password(text: &str) -> Result<Password, String> {
    Password::new(text).ok_or_else(|| format!("expected 1 to {} octets, which is what TCP-MD5 takes", Password::MAX))
}

fn check_as(number: u32) -> Result<(), &'static str> {
    match number {
        0 | u32::MAX => Err("expected an AS number; 0 and 4294967295 are none (RFC 7607, RFC 7300)"),
        23456 => Err("23456 stands for numbers that a neighbour cannot read (RFC 6793); expected your own"),
        _ => Ok(()),
    }
}

fn is_next_hop(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
schema = 1
pop = 1
private_key_file = "private.key"
listen = ["0.0.0.0:51820", "[::]:51820"]
sites = "sites.d"

[bgp]
local_as = 64500
router_id = "192.0.2.1"
[[bgp.neighbor]]
name = "transit"
address = "203.0.113.1"
remote_as = 64501
announce = ["sites"]
"#;

    /// What loading the text says: the configuration, or the error without the file's folder.
    fn load(text: &str) -> Result<Config, String> {
        let folder = crate::scratch::Folder::new();
        let path = folder.write("msp-core.toml", text);
        Config::load(&path).map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = load(GOOD).expect("a good file");
        assert_eq!(config.withdraw_after, Some(Duration::from_secs(60)));
        assert_eq!(config.control, Path::new("/run/msp-core/control.sock"));
        assert_eq!(config.tun, Tun { name: "msp0".into(), mtu: 1380 });
        let bgp = config.bgp.expect("a BGP table");
        let (neighbor, export) = &bgp.neighbors[0];
        assert_eq!(*export, Export { sites: true, blackholes: false });
        assert_eq!(neighbor.remote, "203.0.113.1:179".parse().expect("an address"));
        assert_eq!(neighbor.session.hold_time, 90);
        assert!(config.sites.is_absolute(), "relative to the file");
    }

    #[test]
    fn nothing_is_announced_to_a_neighbour_without_policy() {
        let config = load(&GOOD.replace("announce = [\"sites\"]\n", "")).expect("a good file");
        assert_eq!(config.bgp.expect("a BGP table").neighbors[0].1, Export::default());
    }

    #[test]
    fn each_egress_choice_has_a_tun_and_a_table_of_its_own() {
        let choice = |name: &str| format!("[[egress]]\nname = \"{name}\"\ntransits = [\"transit\"]\n");
        let with = |tun: &str, choices: usize| {
            let taken = GOOD.replace("announce", "accept = [\"table\"]\nannounce");
            let choices: String = (0..choices).map(|place| choice(&format!("choice {place}"))).collect();
            load(&format!("{taken}{choices}[tun]\nname = \"{tun}\"\n"))
        };
        let tuns = |tun: &str, choices| -> Vec<String> {
            with(tun, choices).expect("a good file").tuns().into_iter().map(str::to_owned).collect()
        };
        assert_eq!(tuns("msp0", 0), ["msp0"], "also where there are no choices");
        assert_eq!(tuns("msp9", 3), ["msp9", "msp10", "msp11"]);
        assert_eq!(tuns("msp", 2), ["msp", "msp1"]);
        let tables: Vec<u32> =
            with("msp0", 16).expect("as many as there can be").egress.iter().map(|choice| choice.table).collect();
        assert_eq!(tables, (78_001..=78_016).collect::<Vec<_>>());
        let error = with("msp0", 17).expect_err("too many");
        assert!(error.contains("egress: 17: expected at most 16"), "{error}");
        let error = with("a-name-of-15-ch", 2).expect_err("the second TUN's name is too long");
        assert!(error.contains("tun.name: \"a-name-of-15-ch1\" is no name of an interface"), "{error}");
    }

    #[test]
    fn errors_name_file_line_key_and_what_was_expected() {
        for (from, to, expected) in [
            ("pop = 1", "pop = 0", "msp-core.toml:3:7: pop: 0 stands for none"),
            ("pop = 1", "pope = 1", "msp-core.toml:3:1: unknown key \"pope\"; did you mean \"pop\"?"),
            ("[\"0.0.0.0:51820\", \"[::]:51820\"]", "[]", "msp-core.toml:5:10: listen: nothing to listen on"),
            ("[::]:51820", "0.0.0.0:51820", "msp-core.toml:5:28: listen[1]: 0.0.0.0:51820 is listed twice"),
            ("[bgp]", "[tun]\nmtu = 600\n[bgp]", "msp-core.toml:9:7: tun.mtu: 600 does not work: expected 1280"),
            (
                "[bgp]",
                "[tun]\nname = \"a b\"\n[bgp]",
                "msp-core.toml:9:8: tun.name: \"a b\" is no name of an interface: expected",
            ),
            ("64500", "23456", "msp-core.toml:9:12: bgp.local_as: 23456 stands for"),
            ("192.0.2.1", "0.0.0.0", "msp-core.toml:10:13: bgp.router_id: expected four octets"),
            ("64501", "64501\nhold_time = \"2s\"", "msp-core.toml:15:13: bgp.neighbor[0].hold_time: expected whole"),
            ("64501", "64501\nhold_time = \"20h\"", "msp-core.toml:15:13: bgp.neighbor[0].hold_time: expected at most"),
            ("64501", "64501\nnext_hop_v6 = \"fe80::1\"", "msp-core.toml:15:15: bgp.neighbor[0].next_hop_v6: expected"),
            (
                "[[bgp.neighbor]]",
                "[[bgp.cache]]\nname = \"a\"\naddress = \"192.0.2.1\"\nport = 0\n[[bgp.neighbor]]",
                "msp-core.toml:14:8: bgp.cache[0].port: 0 is no port",
            ),
            (
                "[\"sites\"]",
                "[\"sites\"]\n[[egress]]\nname = \"all\"\ntransits = [\"transit\"]",
                "msp-core.toml:18:13: egress[0].transits[0]: nothing is taken of \"transit\"",
            ),
            ("[\"sites\"]", "[\"all\"]", "msp-core.toml:15:13: bgp.neighbor[0].announce[0]: unknown variant `all`"),
        ] {
            let error = load(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
        }
    }
}
