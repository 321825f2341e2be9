//! Scenarios: what stands where, what happens when, what goes over it, and what must come of it. Data, not code.
//!
//! A scenario file may build on another (`base = "two-isps"`): tables are merged, everything else is replaced. Any
//! value can be set from outside by its dotted path. [`load`] does both, and refuses keys that nobody reads.

mod load;
mod services;
mod step;

pub use load::{Loaded, list, load};
pub use services::{Dns, Nat64, Script};
pub use step::{Action, After, At, Between, Step, WallClock};

use crate::meter::{Span, Traffic};
use crate::net::{Bursts, Filter, Netem, Rate};
use crate::report::{Expect, OneOrMore};
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The version of scenario files that this code reads.
pub const SCHEMA: u32 = 1;

/// A scenario, merged and checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What it shows, in a line.
    pub about: String,
    /// The topology that it builds on; read before the merge.
    #[serde(rename = "base")]
    pub _base: Option<String>,
    /// How long the traffic lasts.
    #[serde(default = "default_length")]
    pub length: Span,
    /// How long receivers wait for stragglers afterwards.
    #[serde(default = "default_drain")]
    pub drain: Span,
    /// How many runs are needed to judge it; `--runs` overrides.
    #[serde(default = "one")]
    pub runs: u32,
    /// `cargo lab test` runs it.
    #[serde(default = "yes")]
    pub test: bool,
    /// It needs of its kernel what only that of `cargo lab kernel` is known to have: `cargo lab test` leaves it out where
    /// MSP_LAB_KERNEL names another one.
    #[serde(default)]
    pub own_kernel: bool,
    /// Our daemons are started; without, only the network and what is not ours stands.
    #[serde(default = "yes")]
    pub daemons: bool,
    /// The kernel sends and forwards datagrams in bundles (GSO), each of which netem takes for one packet: cheap, and wrong where
    /// a queue is short or losses count.
    #[serde(default = "yes")]
    pub bundles: bool,
    /// Its links are netem queues; without, wires that add nothing and never change, and any kernel will do.
    #[serde(default = "yes")]
    pub netem: bool,
    /// What the tunnels of its boxes are.
    #[serde(default)]
    pub tunnel: Tunnel,
    /// The hosts whose daemons are started at the beginning; without it, all of them.
    pub start: Option<Vec<String>>,
    /// What the wall clock shows before the daemons start; without it, the right time. Only in a guest.
    pub clock: Option<WallClock>,
    /// Wait until the daemons have a path before traffic starts.
    #[serde(default = "yes")]
    pub wait_for_paths: bool,
    /// The hosts, each a network namespace.
    pub hosts: BTreeMap<String, Host>,
    /// The links between them, each a veth pair.
    pub links: BTreeMap<String, Link>,
    /// What happens when.
    #[serde(default)]
    pub timeline: Vec<Step>,
    /// What goes over it.
    #[serde(default)]
    pub traffic: Vec<Traffic>,
    /// What must come of it.
    #[serde(default)]
    pub expect: Vec<Expect>,
}

/// What the tunnels of a scenario's boxes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// WireGuard on each uplink.
    #[default]
    WireGuard,
    /// QUIC on each uplink.
    Quic,
    /// On each uplink what works.
    Auto,
    /// WireGuard and QUIC in turns: on the first uplink the one, on the second the other.
    Mixed,
}

impl Tunnel {
    /// As the box's configuration names it, for the uplink of a place in the order.
    pub fn name(self, place: usize) -> &'static str {
        match self {
            Tunnel::Mixed if place % 2 == 1 => "quic",
            Tunnel::Mixed => "wireguard",
            Tunnel::WireGuard => "wireguard",
            Tunnel::Quic => "quic",
            Tunnel::Auto => "auto",
        }
    }
}

/// Long enough for a cut and what follows it.
fn default_length() -> Span {
    Span::seconds(10)
}

/// Longer than any queue of the scenarios holds a packet.
fn default_drain() -> Span {
    Span::seconds(1)
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// A host. The section that it has (`middlebox`, `core`, …) says what runs there; without one it is a plain host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Forwards packets (a router); the sections below that need it imply it.
    #[serde(default)]
    pub forward: bool,
    /// The interface whose first addresses are the host's own for traffic; without it, the first by name that has some.
    pub main: Option<String>,
    /// It drops ICMP errors of both families, its own and those that it should forward, as some ISPs do: nobody hears
    /// packet-too-big.
    #[serde(default)]
    pub filter_icmp: bool,
    /// Settings below /proc/sys, by path.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Bridges by name, each with the interfaces that are its ports: a switch between hosts of one subnet.
    #[serde(default)]
    pub bridges: BTreeMap<String, Vec<String>>,
    /// Forwards nothing from an interface by which it would not answer (RFC 3704, strict reverse path).
    #[serde(default)]
    pub strict_rp: bool,
    /// An ISP's router.
    pub isp: Option<Isp>,
    /// A middlebox, `mspmb`.
    pub middlebox: Option<Middlebox>,
    /// A point of presence, `msp-core`.
    pub core: Option<Core>,
    /// A transit's router: BIRD.
    pub bird: Option<Bird>,
    /// A plain WireGuard client: wireguard-go.
    pub wireguard: Option<WireGuard>,
    /// A resolver: dnsmasq.
    pub dns: Option<Dns>,
    /// A NAT64: tayga.
    pub nat64: Option<Nat64>,
    /// Something that the lab knows nothing of, in place of whatever else the host has.
    pub script: Option<Script>,
}

/// A route.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A prefix, or "default" of the family of `via`.
    pub to: String,
    /// The next hop.
    pub via: IpAddr,
    /// The interface, where the next hop alone does not tell.
    pub interface: Option<String>,
    /// Lower wins.
    pub metric: Option<u32>,
}

/// What an ISP's router does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Isp {
    /// The interface towards the customer, or several.
    pub customer: OneOrMore,
    /// The interface towards the rest of the world.
    pub network: String,
    /// How IPv4 goes out; without it, as it came.
    pub nat: Option<Nat>,
    /// After how long a silent UDP mapping of the NAT is forgotten; without it, the kernel's 120 s (RFC 4787 demands
    /// them, carriers' NATs have less).
    pub nat_timeout: Option<Span>,
    /// The sources that are let in from the customer (BCP 38); none given: all.
    #[serde(default)]
    pub ingress: Vec<IpNet>,
}

/// How an ISP's router translates addresses (RFC 4787).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    /// With the router's address and, if it is free, the port that it came with.
    Masquerade,
    /// With the router's address and a port drawn for each destination.
    Symmetric,
}

/// What a box is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Middlebox {
    /// Its number at the provider.
    pub number: u32,
    /// The host of its core.
    pub core: String,
    /// Its uplinks, in order of preference; without them, it finds them itself.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// Those of its uplinks whose octets cost money.
    #[serde(default)]
    pub metered: Vec<String>,
    /// The site's own prefixes.
    pub prefixes: Vec<IpNet>,
    /// The core's addresses or names, with ports; without them, the core's own `endpoints`.
    pub endpoints: Option<Vec<String>>,
    /// The resolvers that it is told to use, by uplink.
    #[serde(default)]
    pub dns: BTreeMap<String, Vec<IpAddr>>,
    /// The prefix of the NAT64 that it is told of, by uplink.
    #[serde(default)]
    pub nat64: BTreeMap<String, IpNet>,
    /// The TUN's MTU.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// The policy that it and its core have, as the text of a file.
    pub policy: Option<String>,
}

fn default_mtu() -> u16 {
    1380
}

impl Middlebox {
    /// The uplinks that the box is told of by name: those in order, then those of which something else is said.
    pub fn named_uplinks(&self) -> Vec<&String> {
        let mut named: Vec<&String> = self.uplinks.iter().collect();
        for uplink in self.metered.iter().chain(self.dns.keys()).chain(self.nat64.keys()) {
            if !named.contains(&uplink) {
                named.push(uplink);
            }
        }
        named
    }
}

/// What a core is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Core {
    /// Its number at the provider.
    pub pop: u32,
    /// Where it is reached, in the order in which boxes prefer it.
    pub endpoints: Vec<SocketAddr>,
    /// How long the last path may be down before a site's prefixes are withdrawn: a time or "never".
    pub withdraw_after: String,
    /// What it may announce at all; anything, if nothing is listed.
    #[serde(default)]
    pub holdings: Vec<IpNet>,
    /// The TUN's MTU.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Its sites, by name.
    pub sites: BTreeMap<String, Site>,
    /// Its BGP session.
    pub bgp: Option<Bgp>,
    /// Further lines at the end of its configuration: more neighbours, egress choices.
    #[serde(default)]
    pub configuration: String,
}

/// A site as its core knows it: exactly one of `middlebox` and `client` names its host, or `public_key` is that of a client
/// that the scenario runs itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its number.
    pub id: u32,
    /// The host of its box.
    pub middlebox: Option<String>,
    /// The host of its WireGuard client.
    pub client: Option<String>,
    /// The key of a client of which the lab knows nothing else.
    pub public_key: Option<String>,
    /// That one's prefixes.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
    /// Overrides the core's.
    pub withdraw_after: Option<String>,
    /// Slots in order of preference, for packets to the site.
    pub prefer: Option<Vec<u8>>,
    /// The core's egress choice that its packets leave by.
    pub egress: Option<String>,
}

/// A core's BGP session.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bgp {
    /// The core's AS.
    pub local_as: u32,
    /// The core's identifier.
    pub router_id: Ipv4Addr,
    /// The host of the neighbour, which has a `bird` section.
    pub neighbor: String,
    /// The neighbour's address.
    pub neighbor_address: IpAddr,
    /// Further lines of the neighbour's table in the core's configuration, and other neighbours' tables after it.
    #[serde(default)]
    pub settings: Vec<String>,
    /// The next hop announced for IPv4.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// The next hop announced for IPv6.
    pub next_hop_v6: Option<Ipv6Addr>,
}

/// What BIRD is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bird {
    /// Its AS.
    pub local_as: u32,
    /// Its identifier.
    pub router_id: Ipv4Addr,
    /// The core's AS.
    pub core_as: u32,
    /// The core's address.
    pub core_address: IpAddr,
    /// The interface towards the core.
    pub interface: String,
    /// The next hop that it announces for IPv6.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// What it announces besides the default routes.
    #[serde(default)]
    pub announces: Vec<IpNet>,
}

/// What a WireGuard client is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireGuard {
    /// The host of its core.
    pub core: String,
    /// Its addresses inside; they are its site's prefixes.
    pub addresses: Vec<IpNet>,
    /// Which of the core's endpoints it uses.
    #[serde(default)]
    pub endpoint: usize,
    /// Seconds between keepalives, as a client behind NAT has them.
    #[serde(default = "default_keepalive")]
    pub keepalive: u16,
}

/// What WireGuard's own quick start recommends behind NAT.
fn default_keepalive() -> u16 {
    25
}

/// A link. What it does to packets is for both directions, unless `up` (from near to far) or `down` says otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The end nearer to the site.
    pub near: End,
    /// The other.
    pub far: End,
    /// The MTU of both ends.
    pub mtu: Option<u32>,
    /// The near end's interface is there from the start; if not, `plug` brings it.
    #[serde(default = "yes")]
    pub plugged: bool,
    /// What it drops in silence.
    pub filter: Option<Filter>,
    /// One-way delay.
    pub delay: Option<Span>,
    /// Its variation, to either side.
    pub jitter: Option<Span>,
    /// Whether packets keep their order under jitter (default: they do).
    pub ordered: Option<bool>,
    /// The share lost, 0 to 1, each packet alone.
    pub loss: Option<f64>,
    /// Lost in bursts instead.
    pub bursts: Option<Bursts>,
    /// What would be lost so is marked as having met congestion instead, if it can be (RFC 3168).
    pub ecn: Option<bool>,
    /// Bits per second.
    pub rate: Option<Rate>,
    /// Packets that wait or are under way at most.
    pub limit: Option<u32>,
    /// Moments in which nothing comes through, of each direction its own; needs `ordered`.
    pub stalls: Option<Stalls>,
    /// From near to far.
    #[serde(default)]
    pub up: Change,
    /// From far to near.
    #[serde(default)]
    pub down: Change,
}

/// An end of a link.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The host.
    pub host: String,
    /// The interface's name there.
    pub interface: String,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

/// What one direction of a link does differently.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// One-way delay.
    pub delay: Option<Span>,
    /// Its variation, to either side.
    pub jitter: Option<Span>,
    /// Whether packets keep their order under jitter.
    pub ordered: Option<bool>,
    /// The share lost, 0 to 1, each packet alone.
    pub loss: Option<f64>,
    /// Lost in bursts instead.
    pub bursts: Option<Bursts>,
    /// What would be lost so is marked as having met congestion instead, if it can be (RFC 3168).
    pub ecn: Option<bool>,
    /// Bits per second.
    pub rate: Option<Rate>,
    /// Packets that wait or are under way at most.
    pub limit: Option<u32>,
}

/// Moments in which a link carries nothing and loses nothing: what is sent meanwhile comes at their end, in order. When and
/// how long, the seed draws ([`proto::sim::Stalls`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stalls {
    /// From the beginning of one to that of the next, on average.
    pub every: Span,
    /// The least length.
    pub shortest: Span,
    /// The most.
    pub longest: Span,
}

impl From<Stalls> for proto::sim::Stalls {
    fn from(stalls: Stalls) -> Self {
        proto::sim::Stalls { every: stalls.every.0, shortest: stalls.shortest.0, longest: stalls.longest.0 }
    }
}

/// A direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From near to far.
    Up,
    /// From far to near.
    Down,
}

/// netem counts packets under way too, so this is 100 ms of a gigabit of full packets.
const DEFAULT_LIMIT: u32 = 10_000;

impl Link {
    /// What the link does in a direction as the file has it.
    pub fn netem(&self, direction: Direction) -> Netem {
        let own = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        Netem {
            delay: own.delay.or(self.delay).unwrap_or_default(),
            jitter: own.jitter.or(self.jitter).unwrap_or_default(),
            ordered: own.ordered.or(self.ordered).unwrap_or(true),
            loss: own.loss.or(self.loss).unwrap_or_default(),
            bursts: own.bursts.or(self.bursts.filter(|_| own.loss.is_none())),
            ecn: own.ecn.or(self.ecn).unwrap_or(false),
            rate: own.rate.or(self.rate),
            limit: own.limit.or(self.limit).unwrap_or(DEFAULT_LIMIT),
        }
    }
}

impl Link {
    /// Why it cannot have these stalls, if it cannot.
    fn cannot_stall(&self, stalls: &Stalls) -> Option<&'static str> {
        let ordered = [Direction::Up, Direction::Down].into_iter().all(|direction| self.netem(direction).ordered);
        match () {
            () if !ordered => Some("a stall holds packets back in order: it needs `ordered`"),
            () if stalls.shortest.0.is_zero() || stalls.longest < stalls.shortest => {
                Some("`shortest` is above 0, and `longest` not below it")
            }
            // The next may begin after half of `every`.
            () if stalls.every.0 < stalls.longest.0 * 2 => Some("`every` is at least twice `longest`"),
            () => None,
        }
    }
}

impl Change {
    /// Applies the change to what is in force.
    pub fn apply(&self, netem: &Netem) -> Netem {
        Netem {
            delay: self.delay.unwrap_or(netem.delay),
            jitter: self.jitter.unwrap_or(netem.jitter),
            ordered: self.ordered.unwrap_or(netem.ordered),
            loss: self.loss.unwrap_or(netem.loss),
            bursts: self.bursts.or(netem.bursts.filter(|_| self.loss.is_none())),
            ecn: self.ecn.unwrap_or(netem.ecn),
            rate: self.rate.or(netem.rate),
            limit: self.limit.unwrap_or(netem.limit),
        }
    }
}

impl Scenario {
    /// What the types alone do not rule out. Returns what is wrong, and the dotted path of the place.
    pub fn check(&self) -> Result<(), (String, String)> {
        let host = |name: &str, at: String| match self.hosts.contains_key(name) {
            true => Ok(()),
            false => Err((at, format!("there is no host \"{name}\"; there are {}", names(self.hosts.keys())))),
        };
        if self.schema != SCHEMA {
            return Err(("schema".into(), format!("schema is {}, but this lab reads schema {SCHEMA}", self.schema)));
        }
        for (name, link) in &self.links {
            host(&link.near.host, format!("links.{name}.near.host"))?;
            host(&link.far.host, format!("links.{name}.far.host"))?;
            if let Some(problem) = link.filter.as_ref().and_then(Filter::problem) {
                return Err((format!("links.{name}.filter"), problem.into()));
            }
            let wire = [Direction::Up, Direction::Down].into_iter().all(|direction| link.netem(direction).is_wire());
            if !self.netem && (!wire || link.stalls.is_some()) {
                let problem = format!("link {name} adds a delay, a loss or a rate, which takes netem = true");
                return Err((format!("links.{name}"), problem));
            }
            if let Some(problem) = link.stalls.as_ref().and_then(|stalls| link.cannot_stall(stalls)) {
                return Err((format!("links.{name}.stalls"), problem.into()));
            }
        }
        for (number, step) in self.timeline.iter().enumerate() {
            let at = |key: &str| format!("timeline.{number}.{key}");
            for link in step.links() {
                if !self.links.contains_key(link) {
                    let all = names(self.links.keys());
                    return Err((at("link"), format!("there is no link \"{link}\"; there are {all}")));
                }
            }
            if let Some(name) = &step.host {
                host(name, at("host"))?;
            }
            if !self.netem && step.action.takes_netem() {
                return Err((at("do"), format!("{} takes netem = true", step.label())));
            }
            let lacks = step.lacks();
            if let Some(key) = lacks {
                return Err((at("do"), format!("{} needs `{key}`", step.label())));
            }
            match &step.at {
                At::Between(between) if between.from > between.to => {
                    return Err((at("at"), format!("from {} is after to {}", between.from, between.to)));
                }
                At::After(after) if !self.timeline[..number].iter().any(|step| step.named() == after.after) => {
                    return Err((at("at"), format!("no entry above it has the name \"{}\"", after.after)));
                }
                _ => {}
            }
            if let Some(problem) = step.filter.as_ref().and_then(Filter::problem) {
                return Err((at("filter"), problem.into()));
            }
        }
        for (name, it) in &self.hosts {
            if let Some(middlebox) = &it.middlebox {
                self.core_at(&middlebox.core, format!("hosts.{name}.middlebox.core"))?;
            }
            if let Some(client) = &it.wireguard {
                let core = self.core_at(&client.core, format!("hosts.{name}.wireguard.core"))?;
                if client.endpoint >= core.endpoints.len() {
                    let count = core.endpoints.len();
                    let at = format!("hosts.{name}.wireguard.endpoint");
                    return Err((at, format!("core {} has {count} endpoints, counted from 0", client.core)));
                }
            }
            for (site_name, site) in it.core.iter().flat_map(|core| &core.sites) {
                let at = format!("hosts.{name}.core.sites.{site_name}");
                let is = |host: &str, test: fn(&Host) -> bool| self.hosts.get(host).is_some_and(test);
                match (&site.middlebox, &site.client) {
                    (None, None) if site.public_key.is_some() && !site.prefixes.is_empty() => {}
                    (Some(host), None) if is(host, |h| h.middlebox.is_some()) => {}
                    (None, Some(host)) if is(host, |h| h.wireguard.is_some()) => {}
                    _ => {
                        return Err((
                            at,
                            "a site names exactly one host: `middlebox`, one with a middlebox section, or \
                                         `client`, one with a wireguard section; or it has a `public_key` and `prefixes`"
                                .into(),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn core_at(&self, name: &str, at: String) -> Result<&Core, (String, String)> {
        let core = self.hosts.get(name).and_then(|host| host.core.as_ref());
        core.ok_or_else(|| (at, format!("\"{name}\" is not a host with a core section")))
    }

    /// A host's own addresses for traffic: of IPv4 and of IPv6.
    pub fn addresses(&self, host: &str) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let main = self.hosts.get(host).and_then(|h| h.main.as_deref());
        let ends = self.links.values().flat_map(|link| [&link.near, &link.far]);
        let inside = self.hosts.get(host).and_then(|h| h.wireguard.as_ref()).map(|w| w.addresses.as_slice());
        let addresses: Vec<IpAddr> = match inside {
            Some(inside) => inside.iter().map(IpNet::addr).collect(),
            None => ends
                .filter(|end| end.host == host && main.is_none_or(|main| main == end.interface))
                .flat_map(|end| end.addresses.iter().map(IpNet::addr))
                .collect(),
        };
        let v4 = addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
        let v6 = addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
        (v4, v6)
    }

    /// Whether the wall clock is set, for which only a guest will do.
    pub fn sets_clock(&self) -> bool {
        self.clock.is_some() || self.timeline.iter().any(|step| step.action == Action::SetClock)
    }

    /// The uplinks of a box in order of preference: as it is told, or as it finds them by its default routes.
    pub fn uplinks(&self, host: &str) -> Vec<String> {
        let Some(host) = self.hosts.get(host) else { return Vec::new() };
        let mut uplinks = host.middlebox.as_ref().map(|middlebox| middlebox.uplinks.clone()).unwrap_or_default();
        if uplinks.is_empty() {
            let mut routes: Vec<&Route> = host.routes.iter().filter(|route| route.to == "default").collect();
            routes.sort_by_key(|route| route.metric);
            for interface in routes.into_iter().filter_map(|route| route.interface.as_ref()) {
                if !uplinks.contains(interface) {
                    uplinks.push(interface.clone());
                }
            }
        }
        uplinks
    }

    /// The links that have a filter at any time.
    pub fn filtered(&self) -> BTreeSet<String> {
        let steps = self.timeline.iter().filter(|step| step.action == Action::Filter).flat_map(Step::links);
        let links = self.links.iter().filter(|(_, link)| link.filter.is_some()).map(|(name, _)| name.as_str());
        steps.chain(links).map(str::to_owned).collect()
    }

    /// Whether packets fare by their lengths anywhere: some link has a filter or an MTU, or will have.
    pub fn lengths_matter(&self) -> bool {
        let mut steps = self.timeline.iter();
        steps.any(|step| step.action == Action::Mtu)
            || !self.filtered().is_empty()
            || self.links.values().any(|link| link.mtu.is_some())
    }

    /// Whether our own daemons take part.
    pub fn has_daemons(&self) -> bool {
        self.daemons && self.hosts.values().any(|host| host.middlebox.is_some() || host.core.is_some())
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}
