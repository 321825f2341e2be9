//! The lab: topologies and scenarios as data, run in virtual time or for real.
//!
//! | module | is |
//! | --- | --- |
//! | [`cli`] | the commands of `cargo lab` |
//! | [`scenario`] | what stands where, what happens when, what must come of it: read from TOML |
//! | [`run`] | one run from outside: finds a kernel, starts [`engine`] in it, reads the report |
//! | [`kernel`] | this machine's kernel or a User-Mode-Linux one, best in virtual time |
//! | [`simulate`] | the same without a kernel: the protocol in the simulator |
//! | [`engine`] | one run from inside: network, daemons, timeline, traffic, report |
//! | [`net`] | namespaces, links, addresses, netem |
//! | [`daemon`] | the daemons of a run: what they are told, and what they say |
//! | [`meter`] | traffic and what became of it |
//! | [`bgp_attack`] | a BGP speaker that sends what it must not |
//! | [`report`] | results, verdicts, pictures |
//! | [`bench`] | what is measured over many runs |
//! | [`setup`], [`suite`] | the packages that all this needs; everything that must pass |

pub mod bench;
pub mod bgp_attack;
pub mod cli;
pub mod daemon;
pub mod demo;
pub mod engine;
pub mod kernel;
pub mod meter;
pub mod net;
pub mod report;
pub mod run;
pub mod scenario;
pub mod setup;
pub mod simulate;
pub mod suite;
