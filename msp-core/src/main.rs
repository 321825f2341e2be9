//! The core at a point of presence: sites, tunnels, BGP.

mod bgp;
mod config;
#[cfg(test)]
mod scratch;
mod sites;

fn main() {}
