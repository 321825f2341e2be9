//! What daemons are told: configurations and keys, written into the run's folder.

use super::{Kind, bird, services};
use crate::net::build::Network;
use crate::scenario::{Core, Dns, Middlebox, Scenario, Script, Tunnel, WireGuard};
use crate::setup::aioquic;
use anyhow::{Context, Result};
use ipnet::IpNet;
use proto::{MAX_SLOTS, SecretKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The interface of a WireGuard client.
pub(super) const CLIENT_TUN: &str = "wg0";

/// Where boxes look for QUIC, if their configuration does not say.
const QUIC_PORT: u16 = 443;

/// Where a run's files are.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
    run: PathBuf,
    seed: u64,
}

impl Files {
    /// In the run's folder, sockets apart: their names must be short, and a guest's view of its host has no sockets.
    pub fn create(folder: &Path, seed: u64) -> Result<Self> {
        let run = PathBuf::from(format!("/run/msp-lab-{}", std::process::id()));
        for folder in [folder, &run] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Files { folder: folder.to_owned(), run, seed })
    }

    /// A daemon's main configuration file.
    pub fn config(&self, host: &str) -> PathBuf {
        self.folder.join(host).join("config.toml")
    }

    /// What starts a daemon that is no single program.
    pub fn script(&self, host: &str) -> PathBuf {
        self.folder.join(host).join("run.sh")
    }

    /// What tells whether a script's host is ready.
    pub fn ready(&self, host: &str) -> PathBuf {
        self.folder.join(host).join("ready.sh")
    }

    /// What a daemon prints.
    pub fn log(&self, host: &str) -> PathBuf {
        self.folder.join(format!("{host}.log"))
    }

    /// What BIRD logs.
    pub fn bird_log(&self, host: &str) -> PathBuf {
        self.folder.join(format!("{host}-bird.log"))
    }

    /// A daemon's control socket.
    pub fn control(&self, host: &str) -> PathBuf {
        self.run.join(format!("{host}.sock"))
    }

    /// The secret of a host: the same in every run of the same seed.
    fn secret(&self, host: &str) -> SecretKey {
        // FNV-1a over the name, so that hosts of one seed differ.
        let name = host
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut bytes = [0; 32];
        StdRng::seed_from_u64(self.seed ^ name).fill(&mut bytes);
        SecretKey::from_bytes(bytes)
    }

    /// Writes all that the daemon of a host reads.
    pub fn write(&self, scenario: &Scenario, name: &str, kind: Kind) -> Result<()> {
        let host = scenario.hosts.get(name).with_context(|| format!("there is no host {name}"))?;
        match (kind, &host.middlebox, &host.core, &host.bird, &host.wireguard) {
            (Kind::Middlebox, Some(middlebox), ..) => self.middlebox(scenario, name, middlebox),
            (Kind::Core, _, Some(core), ..) => self.core(scenario, name, core),
            (Kind::Bird, _, _, Some(bird), _) => {
                self.put(name, "config.toml", &bird::config(bird, &self.bird_log(name)), 0o644)
            }
            (Kind::WireGuard, .., Some(client)) => {
                let core = scenario.hosts.get(&client.core).and_then(|host| host.core.as_ref());
                let core = core.with_context(|| format!("host {} has no core", client.core))?;
                let endpoint = core.endpoints.get(client.endpoint).context("the core has no such endpoint")?;
                let text = format!(
                    "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = {endpoint}\n\
                     AllowedIPs = 0.0.0.0/0, ::/0\nPersistentKeepalive = {}\n",
                    self.secret(name).expose_base64(),
                    self.secret(&client.core).public(),
                    client.keepalive,
                );
                self.put(name, "wg.conf", &text, 0o600)
            }
            (Kind::Dns, ..) => self.dns(scenario, name, host.dns.as_ref().context("the host has no resolver")?),
            (Kind::Nat64, ..) => {
                let nat64 = host.nat64.as_ref().context("the host has no NAT64")?;
                let data = self.folder.join(name);
                self.put(name, "config.toml", &services::tayga(nat64, &data), 0o644)?;
                self.put(name, "run.sh", &services::run_tayga(nat64, &self.config(name)), 0o644)
            }
            (Kind::Script, ..) => {
                let script = host.script.as_ref().context("the host has no script")?;
                if script.aioquic {
                    aioquic::ready()?;
                    self.put(name, "client.py", aioquic::CLIENT, 0o644)?;
                }
                let environment = self.environment(name, Some(script))?;
                self.put(name, "run.sh", &format!("{environment}{}", script.run), 0o644)?;
                self.put(name, "ready.sh", &format!("{environment}{}", script.ready), 0o644)
            }
            _ => Ok(()),
        }
    }

    /// What a script of a host begins with.
    pub fn environment(&self, name: &str, script: Option<&Script>) -> Result<String> {
        services::environment(script, &self.folder.join(name), &self.control(name))
    }

    fn dns(&self, scenario: &Scenario, name: &str, dns: &Dns) -> Result<()> {
        let ends = scenario.links.values().flat_map(|link| [&link.near, &link.far]);
        let interfaces: Vec<&str> = ends.filter(|end| end.host == name).map(|end| end.interface.as_str()).collect();
        let hosts = self.folder.join(name).join("hosts");
        self.put(name, "hosts", &services::records(dns), 0o644)?;
        let log = self.folder.join(format!("{name}-queries.log"));
        self.put(name, "config.toml", &services::dnsmasq(&hosts, &log), 0o644)?;
        self.put(name, "run.sh", &services::run_dnsmasq(dns, &interfaces, &self.config(name)), 0o644)
    }

    fn put(&self, host: &str, file: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.folder.join(host).join(file);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&path)?;
            std::io::Write::write_all(&mut file, text.as_bytes())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    fn middlebox(&self, scenario: &Scenario, name: &str, middlebox: &Middlebox) -> Result<()> {
        let core = scenario.hosts.get(&middlebox.core).and_then(|host| host.core.as_ref());
        let core = core.with_context(|| format!("host {} has no core", middlebox.core))?;
        let endpoints = match &middlebox.endpoints {
            Some(endpoints) => quoted(endpoints),
            None => quoted(&core.endpoints),
        };
        let mut text = format!(
            "schema = 1\nprefixes = {}\nsecret_file = \"secret.key\"\nmiddlebox = {}\ncontrol = \"{}\"\n\
             state = \"state\"\ntunnel = \"{}\"\n{}[tun]\nname = \"msp0\"\nmtu = {}\n[core]\nname = \"{}\"\npublic_key = \"{}\"\nendpoints = {}\n",
            quoted(&middlebox.prefixes),
            middlebox.number,
            self.control(name).display(),
            scenario.tunnel.name(0),
            if middlebox.policy.is_some() { "policy = \"policy.toml\"\n" } else { "" },
            middlebox.mtu,
            middlebox.core,
            self.secret(&middlebox.core).public(),
            endpoints,
        );
        if let Some(policy) = &middlebox.policy {
            self.put(name, "policy.toml", policy, 0o644)?;
        }
        // Where each uplink has a tunnel of its own, each is named; the others are found.
        let mut uplinks: Vec<String> = middlebox.named_uplinks().into_iter().cloned().collect();
        if scenario.tunnel == Tunnel::Mixed {
            let known = scenario.uplinks(name).into_iter();
            let others: Vec<String> = known.filter(|uplink| !uplinks.contains(uplink)).collect();
            uplinks.extend(others);
        }
        for (place, uplink) in uplinks.iter().enumerate() {
            let _ = write!(text, "[[uplink]]\ninterface = \"{uplink}\"\n");
            if scenario.tunnel == Tunnel::Mixed {
                let _ = writeln!(text, "tunnel = \"{}\"", scenario.tunnel.name(place));
            }
            if middlebox.metered.contains(uplink) {
                text.push_str("metered = true\n");
            }
            if let Some(servers) = middlebox.dns.get(uplink) {
                let _ = writeln!(text, "dns = {}", quoted(servers));
            }
            if let Some(prefix) = middlebox.nat64.get(uplink) {
                let _ = writeln!(text, "nat64 = \"{prefix}\"");
            }
        }
        self.put(name, "config.toml", &text, 0o644)?;
        self.put(name, "secret.key", &format!("{}\n", self.secret(name).expose_base64()), 0o600)
    }

    fn core(&self, scenario: &Scenario, name: &str, core: &Core) -> Result<()> {
        // Each port serves both kinds of tunnels; boxes look for QUIC at the second one.
        let ports =
            core.endpoints.iter().flat_map(|endpoint| [endpoint.port(), QUIC_PORT].map(|port| (endpoint, port)));
        let listen: BTreeSet<String> = ports
            .map(|(endpoint, port)| match endpoint.is_ipv4() {
                true => format!("\"0.0.0.0:{port}\""),
                false => format!("\"[::]:{port}\""),
            })
            .collect();
        let listen: Vec<String> = listen.into_iter().collect();
        let mut text = format!(
            "schema = 1\npop = {}\nprivate_key_file = \"private.key\"\nlisten = [{}]\nsites = \"sites.d\"\n\
             holdings = {}\nwithdraw_after = \"{}\"\ncontrol = \"{}\"\n[tun]\nname = \"msp0\"\nmtu = {}\n",
            core.pop,
            listen.join(", "),
            quoted(&core.holdings),
            core.withdraw_after,
            self.control(name).display(),
            core.mtu,
        );
        if let Some(bgp) = &core.bgp {
            let neighbor = scenario.hosts.get(&bgp.neighbor).and_then(|host| host.bird.as_ref());
            let neighbor = neighbor.with_context(|| format!("host {} has no bird", bgp.neighbor))?;
            let _ = write!(
                text,
                "[bgp]\nlocal_as = {}\nrouter_id = \"{}\"\n[[bgp.neighbor]]\nname = \"{}\"\naddress = \"{}\"\n\
                 remote_as = {}\n",
                bgp.local_as, bgp.router_id, bgp.neighbor, bgp.neighbor_address, neighbor.local_as,
            );
            if let Some(next_hop) = bgp.next_hop_v4 {
                let _ = writeln!(text, "next_hop_v4 = \"{next_hop}\"");
            }
            if let Some(next_hop) = bgp.next_hop_v6 {
                let _ = writeln!(text, "next_hop_v6 = \"{next_hop}\"");
            }
            // What follows a header is of another table.
            let mut own = bgp.settings.iter().take_while(|setting| !setting.starts_with('['));
            if !own.any(|setting| setting.starts_with("announce ")) {
                text.push_str("announce = [\"sites\"]\n");
            }
            for setting in &bgp.settings {
                let _ = writeln!(text, "{setting}");
            }
        }
        text.push_str(&core.configuration);
        self.put(name, "config.toml", &text, 0o644)?;
        self.put(name, "private.key", &format!("{}\n", self.secret(name).expose_base64()), 0o600)?;
        for (site_name, site) in &core.sites {
            let mut text = format!("schema = 1\nid = {}\nname = \"{site_name}\"\n", site.id);
            if let Some(host) = &site.middlebox {
                let middlebox = scenario.hosts.get(host).and_then(|host| host.middlebox.as_ref());
                let middlebox = middlebox.with_context(|| format!("host {host} has no middlebox"))?;
                let _ = writeln!(text, "prefixes = {}", quoted(&middlebox.prefixes));
                self.site_extras(site, &mut text);
                if let Some(policy) = &middlebox.policy {
                    let _ = writeln!(text, "policy = \"../{site_name}.policy.toml\"");
                    self.put(name, &format!("{site_name}.policy.toml"), policy, 0o644)?;
                }
                let secret = self.secret(host);
                let slots = (0..MAX_SLOTS as u8).map(|slot| format!("\"{}\"", secret.uplink(slot).public()));
                let keys = slots.collect::<Vec<_>>().join(", ");
                let _ = write!(text, "[middlebox]\nid = {}\nuplink_keys = [{keys}]\n", middlebox.number);
                if let Some(prefer) = &site.prefer {
                    let _ = writeln!(text, "prefer = {prefer:?}");
                }
            }
            if let Some(host) = &site.client {
                let client = scenario.hosts.get(host).and_then(|host| host.wireguard.as_ref());
                let client = client.with_context(|| format!("host {host} has no wireguard section"))?;
                let own: Vec<IpNet> = client.addresses.iter().map(IpNet::trunc).collect();
                let _ = writeln!(text, "prefixes = {}", quoted(&own));
                self.site_extras(site, &mut text);
                let _ = write!(text, "[client]\npublic_key = \"{}\"\n", self.secret(host).public());
            }
            if let Some(key) = &site.public_key {
                let _ = writeln!(text, "prefixes = {}", quoted(&site.prefixes));
                self.site_extras(site, &mut text);
                let _ = write!(text, "[client]\npublic_key = \"{key}\"\n");
            }
            self.put(&format!("{name}/sites.d"), &format!("{site_name}.toml"), &text, 0o644)?;
        }
        Ok(())
    }

    fn site_extras(&self, site: &crate::scenario::Site, text: &mut String) {
        if let Some(after) = &site.withdraw_after {
            let _ = writeln!(text, "withdraw_after = \"{after}\"");
        }
        if let Some(choice) = &site.egress {
            let _ = writeln!(text, "egress = \"{choice}\"");
        }
    }

    /// Gives a started WireGuard client its key, peer, addresses and routes. Everything goes through the tunnel but the
    /// tunnel itself.
    pub fn configure_client(&self, network: &Network, name: &str, client: &WireGuard) -> Result<()> {
        let node = network.host(name)?;
        let conf = self.folder.join(name).join("wg.conf");
        let set = node.spawn(Command::new("wg").args(["setconf", CLIENT_TUN]).arg(&conf))?.wait()?;
        anyhow::ensure!(set.success(), "wg setconf failed on {name}: {set}");
        let mut script = format!("link set {CLIENT_TUN} mtu 1380 up\n");
        for address in &client.addresses {
            let _ = writeln!(script, "address add {address} dev {CLIENT_TUN}");
        }
        for half in ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"] {
            let _ = writeln!(script, "route add {half} dev {CLIENT_TUN}");
        }
        node.feed(&["ip", "-batch", "-"], &script)
    }
}

/// A list as TOML has it.
fn quoted<T: std::fmt::Display>(list: &[T]) -> String {
    let quoted: Vec<String> = list.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
