//! Which ISP links can be used now and how, by the kernel's news and the resolvers' answers, and what the node is told.
//!
//! An uplink can be used while its interface exists and has carrier, an address of its own, and a route to one of the
//! core's addresses. Then it has a socket a family, bound to device and address, and the node knows all the addresses
//! by which the core may be reached from there. Nothing of one uplink is used for another, but what has proved right:
//! an address of the core on which a session was established.

use crate::breakout::{DirectStatus, Outlet};
use crate::config::{Config, Endpoint};
use crate::find::{Role, Slots, roles, within};
use crate::names::{Answers, Place, Question, Resolver, Server, servers};
use crate::nat64::{self, Pref64};
use crate::overlap::{Overlaps, examine};
use crate::state::{State, Store};
use dataplane::engine::Handle;
use dataplane::netlink::{Interface, Netlink};
use dataplane::udp::Socket;
use ipnet::IpNet;
use proto::direct::Exit;
use proto::snapshot::Snapshot;
use proto::{Keepalive, LinkId, MAX_SLOTS, PathState, TunnelChoice, Uplink};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::Notify;

/// How many addresses of the core an uplink is tried with: each costs a handshake message at each try.
const CANDIDATES: usize = 8;
/// How many proven addresses are kept: a core has one or two of each family, and may move.
const PROVEN: usize = 4;

/// An uplink, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UplinkStatus {
    /// Its slot.
    pub(crate) slot: u8,
    /// Its interface, as it is called now, or was when it was last there.
    pub(crate) interface: String,
    /// Why it cannot be used; nothing if it can.
    pub(crate) problem: Option<String>,
    /// Its address that the tunnel goes from.
    pub(crate) local: Option<SocketAddr>,
    /// The endpoint of the core that it goes to.
    pub(crate) endpoint: Option<SocketAddr>,
    /// All endpoints that are tried, best first.
    #[serde(default)]
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Its place in the order of preference: lower is preferred.
    #[serde(default)]
    pub(crate) preference: u8,
    /// Its addresses, with the lengths of their networks.
    #[serde(default)]
    pub(crate) addresses: Vec<IpNet>,
    /// Its next hops to everywhere.
    #[serde(default)]
    pub(crate) gateways: Vec<IpAddr>,
    /// Its resolvers, and how they are known.
    #[serde(default)]
    pub(crate) dns: Vec<Server>,
    /// What its resolvers did not answer, and why.
    #[serde(default)]
    pub(crate) unresolved: Vec<String>,
    /// The prefix by which IPv4 is reached from it, where it has none itself.
    #[serde(default)]
    pub(crate) nat64: Option<String>,
    /// In octets: the largest packet of its interface.
    #[serde(default)]
    pub(crate) mtu: Option<u32>,
    /// Its octets cost money.
    #[serde(default)]
    pub(crate) metered: bool,
    /// How often it is asked while nothing goes on, in seconds.
    #[serde(default)]
    pub(crate) idle_s: f64,
    /// What the operator should know besides.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// An interface that could be an uplink and is not used, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unused {
    /// Its name.
    pub(crate) interface: String,
    /// Why.
    pub(crate) reason: String,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) uplinks: Vec<UplinkStatus>,
    pub(crate) unused: Vec<Unused>,
    /// What leaves by them outside of the tunnels, if anything may.
    pub(crate) direct: Option<DirectStatus>,
}

/// What a look at the interfaces has found, before anything is done with it.
pub(crate) struct Found {
    /// The uplinks that are there and have a slot, by their numbers.
    pub(crate) uplinks: Vec<u32>,
    pub(crate) overlaps: Overlaps,
    unused: Vec<Unused>,
}

/// The uplinks, and what the node has been told of them.
pub(crate) struct Uplinks<'a> {
    config: &'a Config,
    handle: Handle,
    netlink: Netlink,
    slots: Slots,
    links: [Link; MAX_SLOTS],
    store: Store<State>,
    /// Addresses of the core on which a session was established and that the configuration does not give.
    proven: Vec<SocketAddr>,
    /// Whether each slot's tunnel worked at the last look; `None`: it had none.
    tunnels: [Option<bool>; MAX_SLOTS],
    shown: Shown,
}

/// What is known of the link of a slot.
struct Link {
    /// The interface that it is about.
    index: Option<u32>,
    told: Option<Told>,
    resolver: Resolver,
}

/// How a link is used: where one of these differs, it is used anew.
#[derive(Debug)]
struct Told {
    index: Option<u32>,
    /// Its own address of each family.
    local: [Option<IpAddr>; 2],
    /// The sockets there, which the loop has too.
    sockets: [Option<Socket>; 2],
    uplink: Uplink,
    /// The candidates that `uplink.endpoints` are.
    candidates: Vec<Candidate>,
}

/// An address by which the core may be reached, and the one that others reach it by: they differ behind a NAT64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    to: SocketAddr,
    core: SocketAddr,
}

impl<'a> Uplinks<'a> {
    /// None known yet; `news` is notified when a look is worth while.
    pub(crate) fn new(config: &'a Config, handle: Handle, netlink: Netlink, news: &Arc<Notify>) -> Self {
        let (state, store) = Store::<State>::open(&config.state);
        // Another core has other addresses.
        let proven = if state.core == config.core.public_key.to_string() { state.proven } else { Vec::new() };
        let names: Vec<String> = config
            .core
            .endpoints
            .iter()
            .filter_map(|endpoint| match endpoint {
                Endpoint::Name(name, _) => Some(name.clone()),
                Endpoint::Address(_) => None,
            })
            .collect();
        let link = |_| Link { index: None, told: None, resolver: Resolver::new(names.clone(), news.clone()) };
        Uplinks {
            config,
            handle,
            netlink,
            slots: Slots::new(config, &state.slots),
            links: std::array::from_fn(link),
            store,
            proven,
            tunnels: [None; MAX_SLOTS],
            shown: Shown::default(),
        }
    }

    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// The slot of an interface that is there.
    pub(crate) fn slot(&self, index: u32) -> Option<u8> {
        self.slots.of(index)
    }

    /// These uplinks as direct flows see them: whether each can be used without its tunnel, as of the last look, and where
    /// it is.
    /// `capped`: the slots of links that are at their caps, a bit each.
    pub(crate) fn exits(&self, uplinks: &[&Interface], capped: u8) -> (Vec<Exit>, Vec<Outlet>) {
        let preferences = self.slots.preferences();
        let with_slot = uplinks.iter().filter_map(|interface| Some((self.slots.of(interface.index)?, interface)));
        let exit = |(slot, interface): (u8, &&Interface)| {
            let place = usize::from(slot);
            let local = own_addresses(interface, &self.config.prefixes, [None; 2]);
            let ready = [true, false]
                .map(|ipv4| interface.running && local[usize::from(!ipv4)].is_some() && has_default(interface, ipv4));
            let preference = preferences.get(place).copied().unwrap_or(u8::MAX);
            let capped = capped >> slot & 1 == 1;
            let exit = Exit { slot, preference, ready, tunnel: self.tunnels[place], capped };
            (exit, Outlet { slot, interface: interface.name.clone(), mtu: interface.mtu })
        };
        with_slot.map(exit).unzip()
    }

    /// Finds out which interfaces are uplinks, and gives them slots.
    pub(crate) fn find(&mut self, interfaces: &BTreeMap<u32, Interface>) -> Found {
        let config = self.config;
        let roles = roles(config, interfaces, &self.slots);
        let role = |interface: &Interface| roles.get(&interface.index).copied().unwrap_or(Role::Neither);
        let uplinks = interfaces.values().filter(|interface| role(interface).is_uplink());
        let without = self.slots.assign(interfaces, uplinks.clone());
        let mut unused = Vec::new();
        for interface in interfaces.values().filter(|interface| !interface.defaults().is_empty()) {
            let site = interface
                .addresses
                .iter()
                .find_map(|address| Some((address.net, within(&config.prefixes, &address.net)?)));
            let reason = match (role(interface), site) {
                (Role::Lan, Some((address, prefix))) => format!(
                    "it is taken for the LAN, since its address {address} lies in the site's own {prefix}; name it in \
                     [[uplink]] if it is an ISP's link"
                ),
                (Role::Uplink | Role::Both, _) if without.contains(&interface.index) => {
                    format!("all {MAX_SLOTS} slots are taken; name in `ignore` what is no uplink")
                }
                (Role::Neither, _) if !config.find && interface.name != config.tun.name => {
                    "`find = false`, and no [[uplink]] names it".to_owned()
                }
                _ => continue,
            };
            unused.push(Unused { interface: interface.name.clone(), reason });
        }
        let overlaps = examine(&config.prefixes, interfaces, &roles, &config.tun.name);
        let with_slot = |interface: &&Interface| !without.contains(&interface.index);
        Found { uplinks: uplinks.filter(with_slot).map(|interface| interface.index).collect(), overlaps, unused }
    }

    /// Tells the node what has changed. Whether all went well; if not, a later look may (an address can go between the
    /// looking and the binding).
    pub(crate) async fn look(&mut self, interfaces: &BTreeMap<u32, Interface>, found: Found) -> anyhow::Result<bool> {
        let (node, _) = self.handle.snapshot().await?;
        self.note_proven(&node);
        // Of two paths over an uplink the better one counts.
        self.tunnels = [None; MAX_SLOTS];
        for path in node.peers.iter().flat_map(|peer| &peer.paths) {
            let tunnel = &mut self.tunnels[usize::from(path.id.slot)];
            *tunnel = works(path.state).max(*tunnel);
        }
        let mut well = true;
        let preferences = self.slots.preferences();
        let mut uplinks = Vec::new();
        for (slot, preference) in (0..).zip(preferences) {
            let holder = self.slots.holder(slot).filter(|holder| holder.was_seen());
            let name = match (holder, self.slots.pin(slot)) {
                (Some(holder), _) => holder.name.clone(),
                (None, Some(pin)) => pin.to_owned(),
                (None, None) => continue,
            };
            let index = holder.and_then(|holder| holder.index);
            let interface =
                index.filter(|index| found.uplinks.contains(index)).and_then(|index| interfaces.get(&index));
            let mut status = self.describe(slot, name, preference, interface);
            status.warnings = index.and_then(|index| found.overlaps.warnings.get(&index)).cloned().unwrap_or_default();
            if index.is_some() && interface.is_none() {
                status.problem = Some("it is the LAN's now, or to be ignored".into());
            }
            well &= self.use_link(slot, interface, &mut status).await?;
            self.complete(&node, slot, &mut status);
            uplinks.push(status);
        }
        let shown = Shown { uplinks, unused: found.unused, direct: None };
        log_changes(&self.shown, &shown);
        self.shown = shown;
        let core = self.config.core.public_key.to_string();
        self.store.keep(State { slots: self.slots.kept(), core, proven: self.proven.clone() });
        Ok(well)
    }

    /// Remembers where sessions are, as the other uplinks would reach it.
    fn note_proven(&mut self, node: &Snapshot) {
        for path in node.peers.iter().flat_map(|peer| &peer.paths) {
            let told = self.links.get(usize::from(path.id.slot)).and_then(|link| link.told.as_ref());
            let works = path.state == PathState::Up;
            let (Some(told), Some(endpoint), true) = (told, path.endpoint, works) else { continue };
            // QUIC has a port of its own at the same address.
            let is = |candidate: &&Candidate| candidate.to.ip() == endpoint.ip();
            let Some(candidate) = told.candidates.iter().find(is) else { continue };
            let given = |endpoint: &Endpoint| *endpoint == Endpoint::Address(candidate.core);
            if !self.proven.contains(&candidate.core) && !self.config.core.endpoints.iter().any(given) {
                tracing::info!(core = %candidate.core, slot = path.id.slot, "reached at an address by name; kept for all uplinks");
                self.proven.insert(0, candidate.core);
                self.proven.truncate(PROVEN);
            }
        }
    }

    /// What there is to say of a slot, whatever becomes of it.
    fn describe(&self, slot: u8, name: String, preference: u8, interface: Option<&Interface>) -> UplinkStatus {
        let pin = self.config.uplinks.iter().find(|uplink| uplink.slot == slot);
        let keepalive = pin.map_or_else(Keepalive::default, |pin| pin.keepalive);
        UplinkStatus {
            slot,
            interface: name,
            problem: None,
            local: None,
            endpoint: None,
            endpoints: Vec::new(),
            preference,
            addresses: interface.map(|it| it.addresses.iter().map(|address| address.net).collect()).unwrap_or_default(),
            gateways: interface
                .map(|it| it.defaults().into_iter().filter_map(|way| way.gateway).collect())
                .unwrap_or_default(),
            dns: interface.map(|it| servers(pin.map_or(&[], |pin| &pin.dns), it)).unwrap_or_default(),
            unresolved: Vec::new(),
            nat64: None,
            mtu: interface.map(|it| it.mtu),
            metered: keepalive.metered,
            idle_s: keepalive.idle.as_secs_f64(),
            warnings: Vec::new(),
        }
    }

    /// Uses a link as it can be used now, and says in `status` why it cannot. Whether all went well.
    async fn use_link(
        &mut self,
        slot: u8,
        interface: Option<&Interface>,
        status: &mut UplinkStatus,
    ) -> anyhow::Result<bool> {
        let pin = self.config.uplinks.iter().find(|uplink| uplink.slot == slot);
        let link = &mut self.links[usize::from(slot)];
        let index = interface.map(|interface| interface.index);
        if link.index != index && index.is_some() {
            // Another cable: what its resolver said is not this one's.
            link.resolver.forget();
        }
        let same = link.index == index;
        link.index = index.or(link.index);

        let before = link.told.as_ref().filter(|_| same).map_or([None; 2], |told| told.local);
        let local = interface.map_or([None; 2], |interface| own_addresses(interface, &self.config.prefixes, before));
        let ready = interface.is_some_and(|interface| interface.running) && local != [None; 2];
        // Where IPv4 has no way out, it may have one by IPv6.
        let ipv4 = local[0].is_some() && interface.is_some_and(|interface| has_default(interface, true));
        let nat64 = local[1].is_some() && !ipv4;
        let configured = pin.and_then(|pin| pin.nat64);
        link.resolver.ask_from(interface.filter(|_| ready).map(|interface| Place {
            interface: interface.index,
            local,
            servers: status.dns.clone(),
            nat64: nat64 && configured.is_none(),
            metered: status.metered,
        }));
        let answers = link.resolver.answers();
        let prefix = configured.or_else(|| discovered(&answers).filter(|_| nat64));
        status.nat64 = prefix.map(|prefix| prefix.to_string());
        status.unresolved = answers
            .iter()
            .filter(|(question, _)| nat64 || question.name != nat64::NAME)
            .filter_map(|(question, answer)| Some(format!("{question}: {}", answer.problem.as_ref()?)))
            .collect();

        let mut candidates = candidates(&self.config.core.endpoints, &answers, &self.proven, prefix, nat64);
        let inside = |to: &Candidate| self.config.prefixes.iter().any(|prefix| prefix.contains(&to.to.ip()));
        candidates.retain(|candidate| local[usize::from(candidate.to.is_ipv6())].is_some() && !inside(candidate));
        let first = candidates.first().copied();
        let mut reachable = Vec::new();
        for candidate in candidates {
            let from = local[usize::from(candidate.to.is_ipv6())];
            if let (Some(interface), Some(from), true) = (interface, from, ready && reachable.len() < CANDIDATES)
                && self.netlink.has_route(interface.index, from, candidate.to.ip()).await?
            {
                reachable.push(candidate);
            }
        }
        let wanted = (!reachable.is_empty()).then(|| Uplink {
            endpoints: reachable.iter().map(|candidate| candidate.to).collect(),
            quic_endpoints: quic_endpoints(&reachable, self.config.core.quic_port),
            preference: status.preference,
            keepalive: pin.map_or_else(Keepalive::default, |pin| pin.keepalive),
        });
        if wanted.is_none() && status.problem.is_none() {
            let asked = if answers.is_empty() { &self.config.core.endpoints[..] } else { &[] };
            let asked = asked.iter().find(|endpoint| matches!(endpoint, Endpoint::Name(..)));
            let unresolved = match asked {
                Some(name) => vec![format!("{name}: no answer yet")],
                None => status.unresolved.clone(),
            };
            status.problem = Some(why_not(interface, local, first, &unresolved, &self.config.prefixes));
        }
        self.tell(slot, interface, local, wanted, reachable, status).await
    }

    /// Tells the node, if it is news.
    async fn tell(
        &mut self,
        slot: u8,
        interface: Option<&Interface>,
        local: [Option<IpAddr>; 2],
        wanted: Option<Uplink>,
        candidates: Vec<Candidate>,
        status: &mut UplinkStatus,
    ) -> anyhow::Result<bool> {
        let link = &mut self.links[usize::from(slot)];
        let before = link.told.as_ref().filter(|told| told.index == link.index);
        let same_sockets = before.is_some_and(|told| told.local == local);
        if link.told.as_ref().map(|told| &told.uplink) == wanted.as_ref() && (same_sockets || wanted.is_none()) {
            return Ok(true);
        }
        let (mut well, mut sockets) = (true, [None, None]);
        for (family, address) in local.into_iter().enumerate() {
            let (Some(address), Some(interface), true) = (address, interface, wanted.is_some()) else { continue };
            // A family's socket goes on as it is, with its port, when the other's address changes.
            let kept = before
                .filter(|told| told.local[family] == Some(address))
                .and_then(|told| told.sockets[family].as_ref());
            match kept.map_or_else(|| Socket::on_uplink(&interface.name, address), Socket::share) {
                Ok(socket) => sockets[family] = Some(socket),
                Err(error) => {
                    well = false;
                    status.problem = Some(format!("cannot open a socket on {address}: {error}"));
                }
            }
        }
        let usable = wanted.filter(|_| sockets.iter().any(Option::is_some));
        let shared = match same_sockets {
            true => Ok(None),
            false => sockets.iter().flatten().map(Socket::share).collect::<Result<Vec<_>, _>>().map(Some),
        };
        link.told = None;
        let told = match shared {
            Ok(shared) => self.handle.set_uplink(LinkId(slot.into()), shared, usable.clone()).await?,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            status.problem = Some(format!("cannot listen on it: {error}"));
            return Ok(false);
        }
        // Only where there is a socket: for the other family the next look tries again.
        let local = [0, 1].map(|family| local[family].filter(|_| sockets[family].is_some()));
        link.told = usable.map(|uplink| Told { index: link.index, local, sockets, uplink, candidates });
        Ok(well)
    }

    /// What is in use, now that the node knows.
    fn complete(&self, node: &Snapshot, slot: u8, status: &mut UplinkStatus) {
        let Some(told) = &self.links[usize::from(slot)].told else { return };
        let paths = node.peers.iter().flat_map(|peer| &peer.paths);
        let of_slot = paths.filter(|path| path.id.slot == slot);
        let in_use = of_slot.min_by_key(|path| path.stands_by).and_then(|path| path.endpoint);
        let choice = self.config.tunnel(slot);
        let wireguard = told.uplink.endpoints.iter().filter(|_| choice != TunnelChoice::Quic);
        let quic = told.uplink.quic_endpoints.iter().filter(|_| choice != TunnelChoice::WireGuard);
        status.endpoints = wireguard.chain(quic).copied().collect();
        status.endpoint = in_use.filter(|to| status.endpoints.contains(to)).or(status.endpoints.first().copied());
        status.local =
            status.endpoint.and_then(|to| told.sockets[usize::from(to.is_ipv6())].as_ref()).map(Socket::local);
    }
}

/// The same addresses, each once, with QUIC's port.
fn quic_endpoints(candidates: &[Candidate], port: u16) -> Vec<SocketAddr> {
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for candidate in candidates {
        let to = SocketAddr::new(candidate.to.ip(), port);
        if !endpoints.contains(&to) {
            endpoints.push(to);
        }
    }
    endpoints
}

/// Whether a family's packets have a way out to everywhere.
fn has_default(interface: &Interface, ipv4: bool) -> bool {
    interface.defaults().iter().any(|way| way.prefix.addr().is_ipv4() == ipv4)
}

/// The address of each family to send from: none of the site's own, one of the Internet before one of a private
/// IPv6 network (RFC 4193), and the one in use before others, so that an address that comes in addition (a privacy
/// address, every day) moves nothing.
fn own_addresses(interface: &Interface, prefixes: &[IpNet], before: [Option<IpAddr>; 2]) -> [Option<IpAddr>; 2] {
    let private = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unique_local());
    [false, true].map(|ipv6| {
        let family = interface.usable().filter(|address| address.is_ipv6() == ipv6);
        let own = family.filter(|address| !prefixes.iter().any(|prefix| prefix.contains(address)));
        let in_use = before[usize::from(ipv6)];
        own.min_by_key(|address| (private(address), Some(*address) != in_use))
    })
}

/// The prefix that the answers show.
fn discovered(answers: &Answers) -> Option<Pref64> {
    let answer = answers.get(&Question { name: nat64::NAME.into(), ipv6: true })?;
    answer.addresses.iter().find_map(|address| match address {
        IpAddr::V6(address) => Pref64::discover(*address),
        IpAddr::V4(_) => None,
    })
}

/// The addresses by which the core may be reached, best first: those that the operator wrote, those that this uplink's
/// own resolvers gave for the names, those that have proved right on any uplink. `prefix` is that of the uplink's
/// NAT64; with `nat64` it has no IPv4 of its own, and without a prefix the well-known one is tried last.
fn candidates(
    endpoints: &[Endpoint],
    answers: &Answers,
    proven: &[SocketAddr],
    prefix: Option<Pref64>,
    nat64: bool,
) -> Vec<Candidate> {
    let mut cores: Vec<SocketAddr> = endpoints
        .iter()
        .filter_map(|endpoint| match endpoint {
            Endpoint::Address(address) => Some(*address),
            Endpoint::Name(..) => None,
        })
        .collect();
    for endpoint in endpoints {
        let Endpoint::Name(name, port) = endpoint else { continue };
        for ipv6 in [true, false] {
            let answer = answers.get(&Question { name: name.clone(), ipv6 });
            cores.extend(answer.into_iter().flat_map(|answer| &answer.addresses).map(|ip| SocketAddr::new(*ip, *port)));
        }
    }
    cores.extend(proven);
    let by = |prefix: Pref64, core: SocketAddr| match core.ip() {
        IpAddr::V4(address) => Some(Candidate { to: SocketAddr::new(prefix.embed(address).into(), core.port()), core }),
        IpAddr::V6(_) => None,
    };
    // A resolver of such a network makes addresses itself (DNS64): other uplinks know the core by the one within.
    let made = |address: IpAddr| match address {
        IpAddr::V6(address) => {
            prefix.into_iter().chain([Pref64::WELL_KNOWN]).find_map(|prefix| prefix.extract(address)).map(IpAddr::V4)
        }
        IpAddr::V4(_) => None,
    };
    let mut all: Vec<Candidate> = Vec::new();
    let mut last = Vec::new();
    for core in cores {
        let synthesised = prefix.and_then(|prefix| by(prefix, core));
        let native = Candidate { to: core, core: SocketAddr::new(made(core.ip()).unwrap_or(core.ip()), core.port()) };
        match (synthesised, nat64) {
            (Some(synthesised), true) => all.extend([synthesised, native]),
            (Some(synthesised), false) => {
                all.push(native);
                last.push(synthesised);
            }
            (None, _) => all.push(native),
        }
        if nat64 && prefix.is_none() {
            last.extend(by(Pref64::WELL_KNOWN, core));
        }
    }
    all.append(&mut last);
    let mut seen = std::collections::HashSet::new();
    all.retain(|candidate| seen.insert(candidate.to));
    all
}

/// Whether a path in this state carries packets; `None`: there is none that could be judged.
pub(crate) fn works(state: PathState) -> Option<bool> {
    match state {
        PathState::Absent => None,
        PathState::Down => Some(false),
        PathState::Impaired | PathState::Suspect | PathState::Up => Some(true),
    }
}

/// Why a link cannot be used, in words.
fn why_not(
    interface: Option<&Interface>,
    local: [Option<IpAddr>; 2],
    first: Option<Candidate>,
    unresolved: &[String],
    prefixes: &[IpNet],
) -> String {
    let Some(interface) = interface else { return "there is no such interface".into() };
    if !interface.running {
        return "it is down or has no carrier".into();
    }
    if local == [None; 2] {
        let of_the_site = interface.usable().any(|address| prefixes.iter().any(|prefix| prefix.contains(&address)));
        return if of_the_site {
            "all its addresses lie in the site's own prefixes; have the ISP's router hand out another network".into()
        } else {
            "it has no address".into()
        };
    }
    match first {
        Some(candidate) => format!("there is no route to {} out of it", candidate.to.ip()),
        None if unresolved.is_empty() => "it has no address of a family in which the core can be reached".into(),
        None => format!("the core's address is not known: {}", unresolved.join("; ")),
    }
}

/// Says what is new.
fn log_changes(before: &Shown, now: &Shown) {
    for status in &now.uplinks {
        let UplinkStatus { slot, interface, .. } = status;
        let old = before.uplinks.iter().find(|old| old.slot == *slot);
        if let Some(old) = old.filter(|old| old.interface != *interface) {
            tracing::info!(slot, from = old.interface, to = interface, "the uplink's interface is another, or renamed");
        }
        for warning in status.warnings.iter().filter(|warning| old.is_none_or(|old| !old.warnings.contains(warning))) {
            tracing::warn!(interface, slot, warning, "uplink");
        }
        let told = |status: &UplinkStatus| (status.local, status.endpoints.clone());
        if !status.endpoints.is_empty() && old.map(told) != Some(told(status)) {
            let endpoints = status.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let local = status.local.map(|local| local.to_string());
            tracing::info!(interface, slot, local, endpoints, nat64 = status.nat64, "uplink in use");
        }
        if let Some(problem) = status.problem.as_ref().filter(|_| old.is_none_or(|old| old.problem != status.problem)) {
            tracing::info!(interface, slot, problem, "uplink not in use");
        }
    }
    for unused in now.unused.iter().filter(|unused| !before.unused.contains(unused)) {
        tracing::warn!(interface = unused.interface, reason = unused.reason, "not used as an uplink");
    }
}

#[cfg(test)]
mod tests;
