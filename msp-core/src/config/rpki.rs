//! The RPKI caches, which say which AS may announce what.

use crate::bgp::cache;
use dataplane::settings::{Document, SettingsError, Text};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

/// The most caches: each holds a set of its own, of some 25 MB.
const MOST_CACHES: usize = 4;

/// A cache of validated ROA payloads.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheTable {
    name: String,
    address: Text<IpAddr>,
    #[serde(default = "default_port")]
    port: u16,
}

fn default_port() -> u16 {
    // IANA's "rpki-rtr" (RFC 8210, section 14).
    323
}

/// Checks the caches.
pub(super) fn check(tables: Vec<CacheTable>, document: &Document) -> Result<Vec<cache::Config>, SettingsError> {
    if tables.len() > MOST_CACHES {
        return Err(document.error("bgp.cache", format!("{}: expected at most {MOST_CACHES}", tables.len())));
    }
    let mut caches: Vec<cache::Config> = Vec::new();
    for (index, CacheTable { name, address: Text(address), port }) in tables.into_iter().enumerate() {
        let error = |key: &str, problem: &str| Err(document.error(&format!("bgp.cache[{index}].{key}"), problem));
        if name.is_empty() || caches.iter().any(|cache| cache.name == name) {
            return error("name", "expected a name that no other cache has");
        }
        if address.is_unspecified() || address.is_multicast() {
            return error("address", "expected the address of a cache");
        }
        if port == 0 {
            return error("port", "0 is no port: expected 323, or what the cache was told to listen on");
        }
        caches.push(cache::Config { name, address: SocketAddr::new(address, port) });
    }
    Ok(caches)
}
