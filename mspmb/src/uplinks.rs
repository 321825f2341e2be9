//! Which ISP links can be used now, by the kernel's news.
//!
//! An uplink can be used while its interface exists and has carrier, an address of the family of one of the core's
//! endpoints, and a route to that endpoint. Then it has a socket bound to device and address, and the node knows of it.

use crate::config::Uplink;
use dataplane::engine::Handle;
use dataplane::netlink::{Interface, Netlink};
use dataplane::udp::Socket;
use ipnet::IpNet;
use proto::Keepalive;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// An uplink, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UplinkStatus {
    /// Its slot.
    pub(crate) slot: u8,
    /// Its interface.
    pub(crate) interface: String,
    /// Why it cannot be used; nothing if it can.
    pub(crate) problem: Option<String>,
    /// Its address that the tunnel goes from.
    pub(crate) local: Option<SocketAddr>,
    /// The endpoint of the core that it goes to.
    pub(crate) endpoint: Option<SocketAddr>,
}

/// How an uplink is used: where one of these differs, it is used anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usable {
    index: u32,
    local: IpAddr,
    endpoint: SocketAddr,
}

/// The uplinks, and what the node has been told of them.
pub(crate) struct Uplinks {
    handle: Handle,
    netlink: Netlink,
    prefixes: Vec<IpNet>,
    endpoints: Vec<SocketAddr>,
    uplinks: Vec<(Uplink, Option<Usable>)>,
    status: Vec<UplinkStatus>,
}

impl Uplinks {
    pub(crate) fn new(
        handle: Handle,
        netlink: Netlink,
        prefixes: Vec<IpNet>,
        endpoints: Vec<SocketAddr>,
        uplinks: &[Uplink],
    ) -> Self {
        let status = uplinks
            .iter()
            .map(|uplink| UplinkStatus {
                slot: uplink.slot,
                interface: uplink.interface.clone(),
                problem: Some("not looked at yet".into()),
                local: None,
                endpoint: None,
            })
            .collect();
        let uplinks = uplinks.iter().map(|uplink| (uplink.clone(), None)).collect();
        Uplinks { handle, netlink, prefixes, endpoints, uplinks, status }
    }

    pub(crate) fn status(&self) -> &[UplinkStatus] {
        &self.status
    }

    /// Looks at the interfaces and tells the node what has changed. Whether all went well; if not, a later look may
    /// (an address can go between the looking and the binding).
    pub(crate) async fn look(&mut self, interfaces: &BTreeMap<String, Interface>) -> anyhow::Result<bool> {
        let mut well = true;
        for (((uplink, told), status), preference) in self.uplinks.iter_mut().zip(&mut self.status).zip(0..) {
            let place = (&self.netlink, self.prefixes.as_slice(), self.endpoints.as_slice());
            let found = match interfaces.get(&uplink.interface) {
                None => Err("there is no such interface".to_owned()),
                Some(interface) => usable(place, interface, *told).await?,
            };
            let wanted = found.as_ref().ok().copied();
            let mut problem = found.err();
            if wanted != *told {
                // The socket of before goes first: the new one may want its address.
                *told = None;
                let opened =
                    wanted.map(|way| Socket::on_uplink(&uplink.interface, way.local).map(|socket| (way, socket)));
                let opened = match opened.transpose() {
                    Ok(opened) => opened,
                    Err(error) => {
                        well = false;
                        problem = Some(format!("cannot open a socket on it: {error}"));
                        None
                    }
                };
                let local = opened.as_ref().map(|(_, socket)| socket.local());
                let way = opened.as_ref().map(|(way, _)| *way);
                let usable = way.map(|way| proto::Uplink {
                    endpoints: vec![way.endpoint],
                    preference,
                    keepalive: Keepalive::default(),
                });
                let sockets = opened.map(|(_, socket)| vec![socket]);
                if let Err(error) = self.handle.set_uplink(uplink.link(), sockets, usable).await? {
                    well = false;
                    problem = Some(format!("cannot listen on it: {error}"));
                } else {
                    *told = way;
                }
                let way = *told;
                *status = UplinkStatus {
                    problem: status.problem.take(),
                    local: local.filter(|_| way.is_some()),
                    endpoint: way.map(|way| way.endpoint),
                    ..status.clone()
                };
                if let (Some(way), Some(local)) = (way, local) {
                    let (interface, endpoint) = (&uplink.interface, way.endpoint);
                    tracing::info!(interface, slot = uplink.slot, %local, %endpoint, "uplink in use");
                }
            }
            if let Some(problem) = problem.as_ref().filter(|_| problem != status.problem) {
                tracing::info!(interface = uplink.interface, slot = uplink.slot, problem, "uplink not in use");
            }
            status.problem = problem;
        }
        Ok(well)
    }
}

/// How an interface can be used, or why it cannot. What is in use stays so if it can.
async fn usable(
    (netlink, prefixes, endpoints): (&Netlink, &[IpNet], &[SocketAddr]),
    interface: &Interface,
    now: Option<Usable>,
) -> std::io::Result<Result<Usable, String>> {
    if !interface.running {
        return Ok(Err("it is down or has no carrier".into()));
    }
    let candidates = candidates(interface, prefixes, endpoints, now);
    for &way in &candidates {
        if netlink.has_route(interface.index, way.local, way.endpoint.ip()).await? {
            return Ok(Ok(way));
        }
    }
    Ok(Err(match candidates.first() {
        None => "it has no address of a family in which the core can be reached".into(),
        Some(way) => format!("there is no route to {} out of it", way.endpoint.ip()),
    }))
}

/// The ways to try, best first: endpoints in their order, and of the addresses of that family the one in use first, so
/// that an address that comes in addition (a privacy address, every day) moves nothing. An address of the site itself
/// is none of the ISP's.
fn candidates(interface: &Interface, prefixes: &[IpNet], endpoints: &[SocketAddr], now: Option<Usable>) -> Vec<Usable> {
    let of_the_isp: Vec<IpAddr> = interface
        .addresses
        .iter()
        .filter(|address| address.usable)
        .map(|address| address.net.addr())
        .filter(|address| !prefixes.iter().any(|prefix| prefix.contains(address)))
        .collect();
    let mut ways = Vec::new();
    for &endpoint in endpoints {
        let family = of_the_isp.iter().copied().filter(|address| address.is_ipv4() == endpoint.is_ipv4());
        let mut family: Vec<Usable> = family.map(|local| Usable { index: interface.index, local, endpoint }).collect();
        family.sort_by_key(|way| Some(way.local) != now.map(|now| now.local));
        ways.extend(family);
    }
    ways
}
