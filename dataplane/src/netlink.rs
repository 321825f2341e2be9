//! rtnetlink: rules and routes of our own, and the state of interfaces, with news of their changes.

pub mod fib;
mod interfaces;

pub use interfaces::{Address, Interface, Way};

use futures_util::{FutureExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::constants::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_LINK};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The main routing table, where the host's own routes are.
pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// A rule: packets from (and to) a prefix look into a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// The interface that the packets came in by; any, and this host itself, if it is not given.
    pub by: Option<String>,
    /// What the packets must be marked with, of the bits that count; any packets if it is not given.
    pub mark: Option<Mark>,
    /// The packets' source.
    pub from: IpNet,
    /// The packets' destination; anywhere if it is not given.
    pub to: Option<IpNet>,
    /// The table they look into.
    pub table: u32,
    /// Its place among all rules: lower comes first; the main table is at 32766.
    pub priority: u32,
}

/// A mark that the packet filter leaves on packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// What these bits are.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub prefix: IpNet,
    /// The table it is in.
    pub table: u32,
    /// Lower is preferred.
    pub metric: u32,
    /// What happens to the packets.
    pub target: Target,
}

/// As `ip rule` writes it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from {}", self.priority, self.from)?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(by) = &self.by {
            write!(f, " iif {by}")?;
        }
        if let Some(Mark { value, mask }) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

/// As `ip route` writes it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Unreachable => write!(f, "unreachable {}", self.prefix)?,
            Target::Blackhole => write!(f, "blackhole {}", self.prefix)?,
            Target::Interface(name) => write!(f, "{} dev {name}", self.prefix)?,
            Target::Gateway(gateway, name) => write!(f, "{} via {gateway} dev {name}", self.prefix)?,
        }
        write!(f, " table {} metric {}", self.table, self.metric)
    }
}

/// What a route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Out of this interface, to neighbours on it.
    Interface(String),
    /// To this next hop, out of this interface.
    Gateway(IpAddr, String),
    /// Refused, and the sender told so by ICMP.
    Unreachable,
    /// Nowhere, and nobody is told.
    Blackhole,
}

/// A connection to the kernel. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    protocol: RouteProtocol,
}

impl Netlink {
    /// Connects, within a tokio runtime. Rules and routes made through it carry `protocol`, by which they are known
    /// again.
    pub(crate) fn connect(protocol: u8) -> io::Result<Self> {
        // Strict checking makes the kernel apply a dump's filters: a core may hold a full table besides our few routes.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Netlink { handle, protocol: protocol.into() })
    }

    /// Whether there is a route to `to` out of an interface, from one of its addresses.
    pub async fn has_route(&self, interface: u32, from: IpAddr, to: IpAddr) -> io::Result<bool> {
        let mut message = RouteMessage::default();
        let host = IpNet::from(to).prefix_len();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = host;
        message.header.source_prefix_length = host;
        // The route as configured: without this, Linux believes any IPv4 address to be a neighbour on an interface that
        // has no route for it.
        message.header.flags = RouteFlags::FibMatch;
        message.attributes = vec![
            RouteAttribute::Destination(to.into()),
            RouteAttribute::Source(from.into()),
            RouteAttribute::Oif(interface),
        ];
        match self.handle.route().get(message).execute().try_next().await {
            Ok(route) => Ok(route.is_some_and(|route| route.header.kind == RouteType::Unicast)),
            Err(rtnetlink::Error::NetlinkError(error)) => match error.to_io().raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENODEV) => Ok(false),
                _ => Err(error.to_io()),
            },
            Err(error) => Err(to_io(error)),
        }
    }

    /// Tells a TUN into how many packets a burst may fall.
    pub(crate) async fn limit_bursts(&self, interface: u32, segments: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        message.attributes.push(LinkAttribute::GsoMaxSegs(segments));
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    /// The rules that carry our number; those that this program would not make, as the kernel gave them.
    pub(crate) async fn rules(&self) -> io::Result<Vec<(Option<Rule>, RuleMessage)>> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut dump = self.handle.rule().get(version).execute();
            while let Some(message) = dump.try_next().await.map_err(to_io)? {
                if message.attributes.contains(&RuleAttribute::Protocol(self.protocol)) {
                    rules.push((rule_from(&message), message));
                }
            }
        }
        Ok(rules)
    }

    /// The routes that carry our number; those that this program would not make, as the kernel gave them.
    pub(crate) async fn routes(&self) -> io::Result<Vec<(Option<Route>, RouteMessage)>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = self.protocol;
            let mut dump = self.handle.route().get(filter).execute();
            while let Some(message) = dump.try_next().await.map_err(to_io)? {
                // Kernels before 4.20 ignore the filter.
                if message.header.protocol == self.protocol {
                    routes.push((route_from(&message), message));
                }
            }
        }
        Ok(routes)
    }

    pub(crate) async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = self.rule_message(rule);
        request.execute().await.map_err(to_io)
    }

    pub(crate) async fn delete_rule(&self, rule: &Rule) -> io::Result<()> {
        self.delete_rule_message(self.rule_message(rule)).await
    }

    /// Deletes a rule that may have gone already.
    pub(crate) async fn delete_rule_message(&self, message: RuleMessage) -> io::Result<()> {
        forgive(libc::ENOENT, self.handle.rule().del(message).execute().await)
    }

    pub(crate) async fn add_route(&self, route: &Route) -> io::Result<()> {
        let message = self.route_message(route)?;
        self.handle.route().add(message).execute().await.map_err(to_io)
    }

    /// Deletes a route that may have gone already, with its interface above all.
    pub(crate) async fn delete_route(&self, route: &Route) -> io::Result<()> {
        match self.route_message(route) {
            Ok(message) => self.delete_route_message(message).await,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn delete_route_message(&self, message: RouteMessage) -> io::Result<()> {
        forgive(libc::ESRCH, self.handle.route().del(message).execute().await)
    }

    fn rule_message(&self, rule: &Rule) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(rule.from.addr());
        message.header.src_len = rule.from.prefix_len();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Source(rule.from.network()),
            RuleAttribute::Priority(rule.priority),
            RuleAttribute::Table(rule.table),
            RuleAttribute::Protocol(self.protocol),
        ];
        if let Some(to) = rule.to {
            message.header.dst_len = to.prefix_len();
            message.attributes.push(RuleAttribute::Destination(to.network()));
        }
        if let Some(by) = &rule.by {
            message.attributes.push(RuleAttribute::Iifname(by.clone()));
        }
        if let Some(Mark { value, mask }) = rule.mark {
            message.attributes.extend([RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]);
        }
        message
    }

    fn route_message(&self, route: &Route) -> io::Result<RouteMessage> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.prefix.addr());
        message.header.destination_prefix_length = route.prefix.prefix_len();
        message.header.protocol = self.protocol;
        message.header.scope = RouteScope::Universe;
        message.attributes = vec![
            RouteAttribute::Destination(route.prefix.network().into()),
            RouteAttribute::Table(route.table),
            RouteAttribute::Priority(route.metric),
        ];
        match &route.target {
            Target::Interface(name) => {
                message.header.kind = RouteType::Unicast;
                if route.prefix.addr().is_ipv4() {
                    message.header.scope = RouteScope::Link;
                }
                message.attributes.push(RouteAttribute::Oif(index_of(name)?));
            }
            Target::Gateway(gateway, name) => {
                message.header.kind = RouteType::Unicast;
                message.attributes.push(RouteAttribute::Gateway((*gateway).into()));
                message.attributes.push(RouteAttribute::Oif(index_of(name)?));
            }
            Target::Unreachable => message.header.kind = RouteType::Unreachable,
            Target::Blackhole => message.header.kind = RouteType::BlackHole,
        }
        Ok(message)
    }
}

/// Hears that interfaces, addresses or routes have changed; what they are now is to be asked.
pub struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Begins to listen, within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let addresses = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        Self::listen(RTMGRP_LINK | addresses | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)
    }

    /// The same, but of interfaces and addresses alone: who writes a million routes need not hear of each.
    pub fn interfaces() -> io::Result<Self> {
        Self::listen(RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
    }

    fn listen(groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        // Of what is heard nothing is kept: a longer message may be cut.
        Ok(Watch { socket, buffer: Vec::with_capacity(4096) })
    }

    /// Returns when something has changed since the last call. All the news there are count as one.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.heard().await?;
        while let Some(heard) = self.heard().now_or_never() {
            heard?;
        }
        Ok(())
    }

    async fn heard(&mut self) -> io::Result<()> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(_) => Ok(()),
            // The kernel had more news than its queue holds, and dropped some: that is news.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What the kernel's message says, if it is a rule as [`Netlink::add_rule`] makes it.
fn rule_from(message: &RuleMessage) -> Option<Rule> {
    let (mut to, mut by, mut priority, mut value, mut mask) = (None, None, None, None, None);
    // The kernel does not repeat a source that is everywhere.
    let mut from = IpNet::new(unspecified(message.header.family), 0).ok();
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => from = IpNet::new(*address, message.header.src_len).ok(),
            RuleAttribute::Destination(address) => to = IpNet::new(*address, message.header.dst_len).ok(),
            RuleAttribute::Iifname(name) => by = Some(name.clone()),
            RuleAttribute::Priority(value) => priority = Some(*value),
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::FwMark(number) => value = Some(*number),
            RuleAttribute::FwMask(number) => mask = Some(*number),
            _ => {}
        }
    }
    let mark = value.zip(mask).map(|(value, mask)| Mark { value, mask });
    Some(Rule { by, mark, from: from?, to, table, priority: priority? })
}

/// What the kernel's message says, if it is a route as [`Netlink::add_route`] makes it.
fn route_from(message: &RouteMessage) -> Option<Route> {
    let (mut to, mut metric, mut interface, mut gateway) =
        (unspecified(message.header.address_family), None, None, None);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = (*address).into(),
            RouteAttribute::Priority(value) => metric = Some(*value),
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some((*address).into()),
            _ => {}
        }
    }
    let target = match message.header.kind {
        RouteType::Unreachable => Target::Unreachable,
        RouteType::BlackHole => Target::Blackhole,
        RouteType::Unicast => match (name_of(interface?).ok()?, gateway) {
            (name, Some(gateway)) => Target::Gateway(gateway, name),
            (name, None) => Target::Interface(name),
        },
        _ => return None,
    };
    let prefix = IpNet::new(to, message.header.destination_prefix_length).ok()?;
    Some(Route { prefix, table, metric: metric?, target })
}

fn index_of(interface: &str) -> io::Result<u32> {
    // The question goes to any socket.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    rustix::net::netdevice::name_to_index(socket, interface).map_err(|error| match error {
        rustix::io::Errno::NODEV => io::Error::new(io::ErrorKind::NotFound, format!("no interface {interface}")),
        other => other.into(),
    })
}

/// What an interface is called now.
pub(crate) fn name_of(interface: u32) -> io::Result<String> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    Ok(rustix::net::netdevice::index_to_name(socket, interface)?)
}

fn unspecified(family: AddressFamily) -> IpAddr {
    match family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// What is already gone need not be deleted.
fn forgive(errno: i32, result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(to_io) {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        result => result,
    }
}
