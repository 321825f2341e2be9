//! The core at a point of presence: it ends the sites' tunnels, carries their packets, and announces their prefixes.
//!
//! | file | is |
//! | --- | --- |
//! | [`cli`] | the commands |
//! | `config` | the configuration file |
//! | `sites` | the registry: a file a site |
//! | `run` | the daemon: who starts, who is told what, who ends |
//! | `routes` | what of the sites the kernel is told |
//! | [`bgp`] | what of the sites the Internet's routers are told |
//! | `status`, `look` | what is shown |
//!
//! It is a library for the fuzz target and the tests; `msp-core` is its program.

pub mod bgp;
pub mod cli;
mod config;
mod look;
mod routes;
mod run;
#[cfg(test)]
mod scratch;
mod sites;
mod status;
