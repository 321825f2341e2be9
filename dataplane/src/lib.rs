//! Where the protocol touches the world: the one loop that both daemons run, and what they share besides.
//!
//! | module | is |
//! | --- | --- |
//! | [`engine`] | the loop: one thread that owns the `proto::Node`, its sockets and its TUN |
//! | [`udp`] | sockets of uplinks and of listening ports, in batches (GSO, GRO) |
//! | [`tun`] | the TUN device, in batches (virtio offload) |
//! | [`calendar`] | civil time: which windows of policies are open, and when a link's month begins |
//! | [`clock`] | time for the protocol; news of the wall clock being set |
//! | [`explain`] | what policy says of a packet, for people |
//! | [`host`] | what a daemon changes on its host (rules, routes, sysctls), and how it is undone |
//! | [`netfilter`] | nftables: a table of our own, and what it counts |
//! | [`netlink`] | rules and routes, the state of interfaces and news of it |
//! | [`settings`] | configuration files, with errors that name their place |
//! | [`control`] | the socket by which `status` asks |
//! | [`logging`] | logs |
//!
//! Nothing is decided here: which packet goes where, and what a path is worth, is `proto`'s.

pub mod calendar;
pub mod clock;
pub mod control;
pub mod engine;
pub mod explain;
pub mod host;
pub mod logging;
pub mod netfilter;
pub mod netlink;
pub mod settings;
pub mod tun;
pub mod udp;
