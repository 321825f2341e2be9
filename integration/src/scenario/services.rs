//! What else runs on hosts: a resolver, a translator for an IPv6-only access network, and anything by a script.

use crate::meter::Span;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// A resolver: dnsmasq, at all of the host's addresses. It knows its records and nothing else: one with wrong records
/// lies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// The addresses of each name, of both families.
    pub records: BTreeMap<String, Vec<IpAddr>>,
    /// It answers so much later. The host's links then have no other delay from it.
    pub delay: Option<Span>,
}

/// A stateful NAT64 (RFC 6146): tayga, which gives each IPv6 host an IPv4 address out of a pool; the host's `isp.nat`
/// then has them all share its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat64 {
    /// The prefix behind which the IPv4 Internet is (RFC 6052).
    pub prefix: Ipv6Net,
    /// The IPv4 addresses that it gives; the first is its own.
    pub pool: Ipv4Net,
    /// Its own IPv6 address, outside of the prefix.
    pub address: Ipv6Addr,
}

/// A shell script (`sh -e`), run on the host in a folder of its own. Its environment has CONTROL, a name for a socket (another
/// host's is beside it, under that host's name), and LAB, this program.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Sets everything up, and ends as the program that stays (`exec`). What it leaves in the background ends with the run.
    /// Without it the host runs what it would run without a script, and has `functions` and `environment` for `check`.
    #[serde(default)]
    pub run: String,
    /// It runs `$PYTHON client.py`, aioquic: see `integration/aioquic`.
    #[serde(default)]
    pub aioquic: bool,
    /// A second script, which fails as long as not all is well: traffic waits for it.
    #[serde(default)]
    pub ready: String,
    /// Shell functions for both, and for `check`.
    #[serde(default)]
    pub functions: String,
    /// What else is in the environment of both: figures that variants set.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}
