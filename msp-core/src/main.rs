//! The core at a point of presence: sites, tunnels, BGP.

mod bgp;

fn main() {}
