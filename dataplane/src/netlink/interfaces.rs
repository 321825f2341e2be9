//! The interfaces of the host: carrier, addresses, and where the main table sends packets by them.

use super::{MAIN, Netlink, to_io, unspecified};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia,
};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

/// An interface at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it, which stays through a rename.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Up, with carrier.
    pub running: bool,
    /// It leads to this host itself.
    pub loopback: bool,
    /// What its hardware was given by its maker, or else the hardware address it has now, as `52:54:00:12:34:56`;
    /// nothing on a link without such addresses (PPP).
    pub hardware: Option<String>,
    /// In octets: the largest packet of the link.
    pub mtu: u32,
    /// Its addresses of global scope (private ones are) and their networks.
    pub addresses: Vec<Address>,
    /// What the main table sends out by it.
    pub routes: Vec<Way>,
}

/// An address of an interface, and its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Address and length of its network.
    pub net: IpNet,
    /// Packets can be sent from it now: checked for duplicates, not deprecated.
    pub usable: bool,
    /// The kernel replaces it from time to time (RFC 8981), or has it besides another of its network.
    pub secondary: bool,
}

/// A route of the main table out by an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub prefix: IpNet,
    /// The next hop; none where the destinations are neighbours, or at the other end of a point-to-point link.
    pub gateway: Option<IpAddr>,
    /// Lower is preferred.
    pub metric: u32,
}

impl Way {
    /// Its next hop is of its own family, as a [`super::Route`] can say it (RFC 5549 has others).
    pub fn is_plain(&self) -> bool {
        self.gateway.is_none_or(|gateway| gateway.is_ipv4() == self.prefix.addr().is_ipv4())
    }
}

impl Interface {
    /// Its addresses that packets can be sent from now; those that stay before those that change.
    pub fn usable(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let of =
            |secondary| self.addresses.iter().filter(move |address| address.usable && address.secondary == secondary);
        of(false).chain(of(true)).map(|address| address.net.addr())
    }

    /// Its routes to everywhere, best first.
    pub fn defaults(&self) -> Vec<&Way> {
        let mut ways: Vec<&Way> = self.routes.iter().filter(|way| way.prefix.prefix_len() == 0).collect();
        ways.sort_by_key(|way| way.metric);
        ways
    }
}

impl Netlink {
    /// All interfaces by their numbers.
    pub async fn interfaces(&self) -> io::Result<BTreeMap<u32, Interface>> {
        let mut interfaces = self.links().await?;
        self.add_addresses(&mut interfaces).await?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            self.add_routes(family, &mut interfaces).await?;
        }
        Ok(interfaces)
    }

    async fn links(&self) -> io::Result<BTreeMap<u32, Interface>> {
        let mut interfaces = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(to_io)? {
            let (mut name, mut mtu, mut permanent, mut now) = (None, 0, None, None);
            for attribute in &link.attributes {
                match attribute {
                    LinkAttribute::IfName(value) => name = Some(value.clone()),
                    LinkAttribute::Mtu(value) => mtu = *value,
                    LinkAttribute::PermAddress(value) => permanent = hardware(value),
                    LinkAttribute::Address(value) => now = hardware(value),
                    _ => {}
                }
            }
            let (flags, index) = (link.header.flags, link.header.index);
            let Some(name) = name else { continue };
            let interface = Interface {
                index,
                name,
                running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
                loopback: flags.contains(LinkFlags::Loopback),
                hardware: permanent.or(now),
                mtu,
                addresses: Vec::new(),
                routes: Vec::new(),
            };
            interfaces.insert(index, interface);
        }
        Ok(interfaces)
    }

    async fn add_addresses(&self, interfaces: &mut BTreeMap<u32, Interface>) -> io::Result<()> {
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(to_io)? {
            let (mut address, mut local) = (None, None);
            // The header has the flags' low bits only, but all that matter here; the attribute repeats them.
            let mut flags = AddressFlags::from_bits_truncate(message.header.flags.bits().into());
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Address(value) => address = Some(*value),
                    // On a point-to-point link the address is the other end's, and this is ours.
                    AddressAttribute::Local(value) => local = Some(*value),
                    AddressAttribute::Flags(value) => flags |= *value,
                    _ => {}
                }
            }
            let useless = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
            let net = local.or(address).and_then(|address| IpNet::new(address, message.header.prefix_len).ok());
            let interface = interfaces.get_mut(&message.header.index);
            if let (AddressScope::Universe, Some(net), Some(interface)) = (message.header.scope, net, interface) {
                interface.addresses.push(Address {
                    net,
                    usable: !flags.intersects(useless),
                    secondary: flags.contains(AddressFlags::Secondary),
                });
            }
        }
        Ok(())
    }

    async fn add_routes(&self, family: AddressFamily, interfaces: &mut BTreeMap<u32, Interface>) -> io::Result<()> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        let mut dump = self.handle.route().get(filter).execute();
        loop {
            let message = match dump.try_next().await.map_err(to_io) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                // A table that has never had a route does not exist.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            };
            for (index, way) in ways(&message) {
                if let Some(interface) = interfaces.get_mut(&index) {
                    interface.routes.push(way);
                }
            }
        }
    }
}

/// As people write it; nothing where there is no address, or one of zeros.
fn hardware(octets: &[u8]) -> Option<String> {
    let text = octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
    octets.iter().any(|&octet| octet != 0).then_some(text)
}

/// What a route of the main table says for each interface it leads out by.
fn ways(message: &RouteMessage) -> Vec<(u32, Way)> {
    let header = &message.header;
    let (mut to, mut metric, mut table) = (unspecified(header.address_family), 0, u32::from(header.table));
    let mut hops: Vec<(u32, Option<IpAddr>)> = Vec::new();
    let (mut gateway, mut out) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address).unwrap_or(to),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(index) => out = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = next_hop(attribute),
            RouteAttribute::MultiPath(several) => {
                hops.extend(several.iter().map(|hop| (hop.interface_index, hop.attributes.iter().find_map(next_hop))));
            }
            _ => {}
        }
    }
    hops.extend(out.map(|out| (out, gateway)));
    let prefix = IpNet::new(to, header.destination_prefix_length).ok();
    let of_interest = header.kind == RouteType::Unicast && table == MAIN && !header.flags.contains(RouteFlags::Dead);
    let Some(prefix) = prefix.filter(|_| of_interest && !is_link_local(to)) else { return Vec::new() };
    hops.into_iter().map(|(out, gateway)| (out, Way { prefix, gateway, metric })).collect()
}

/// Such networks are on every link and say nothing.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    }
}

fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        // An IPv4 route by an IPv6 next hop (RFC 5549).
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::route::RouteNextHop;
    use std::net::Ipv4Addr;

    #[test]
    fn a_route_of_several_next_hops_is_a_way_out_by_each() {
        let gateway = |last| RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 168, 1, last)));
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        let hop = |interface_index, last| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = interface_index;
            hop.attributes = vec![gateway(last)];
            hop
        };
        message.attributes = vec![RouteAttribute::Priority(100), RouteAttribute::MultiPath(vec![hop(3, 1), hop(4, 2)])];
        let found = ways(&message);
        let shown: Vec<_> = found.iter().map(|(out, way)| format!("{out} {:?} {}", way.gateway, way.metric)).collect();
        assert_eq!(shown, ["3 Some(192.168.1.1) 100", "4 Some(192.168.1.2) 100"]);
        message.attributes = vec![RouteAttribute::Oif(5), gateway(9)];
        assert_eq!(ways(&message)[0].1.gateway, Some(Ipv4Addr::new(192, 168, 1, 9).into()));
        message.header.flags |= RouteFlags::Dead;
        assert!(ways(&message).is_empty());
    }

    #[test]
    fn hardware_of_zeros_is_none() {
        assert_eq!(hardware(&[0; 6]), None);
        assert_eq!(hardware(&[]), None);
        assert_eq!(hardware(&[0x52, 0x54, 0, 1, 2, 3]).as_deref(), Some("52:54:00:01:02:03"));
    }

    #[test]
    fn addresses_that_stay_come_before_those_that_change() {
        let address =
            |text: &str, usable, secondary| Address { net: text.parse().expect("an address"), usable, secondary };
        let interface = Interface {
            index: 1,
            name: "wan0".into(),
            running: true,
            loopback: false,
            hardware: None,
            mtu: 1500,
            addresses: vec![
                address("2001:db8::f00d/64", true, true),
                address("2001:db8::2/64", true, false),
                address("192.168.1.2/24", false, false),
            ],
            routes: Vec::new(),
        };
        let usable: Vec<String> = interface.usable().map(|address| address.to_string()).collect();
        assert_eq!(usable, ["2001:db8::2", "2001:db8::f00d"]);
    }
}
