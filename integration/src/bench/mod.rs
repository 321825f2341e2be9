//! `cargo lab bench`: what is measured over many runs.

pub mod availability;
pub mod bgp;
pub mod failover;
pub mod policy;
pub mod sites;
pub mod throughput;
pub mod tunnels;

use anyhow::Result;

/// What is to be measured.
#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// Months of outages on two links of 99.9 %, in the simulator: what failover adds to them, and how many nines are left.
    Availability(availability::Arguments),
    /// A full table from each of two transits, into msp-core and into BIRD: time, memory, and the kernel's routes compared;
    /// and how long the loss of one takes. Needs root; measures real time, so this machine should have nothing else to do.
    Bgp(bgp::Arguments),
    /// What a cut costs, by its kind, round trip and rate: longest gap, packets lost, doubled, out of order, and octets
    /// spent; with the real daemons, in the simulator, and with what is run today.
    Failover(failover::Arguments),
    /// What a policy of two hundred classes costs the first packet of a flow, and the others. Measures real time.
    Policy(policy::Arguments),
    /// Ten thousand sites that come up and go down at one core, and how soon BIRD knows. Needs root; measures real time.
    Sites(sites::Arguments),
    /// What one TCP connection and several have by a tunnel of WireGuard and by one of QUIC: the real daemons on this machine's own
    /// kernel, without netem. Needs root and iperf3; measures real time.
    Throughput(throughput::Arguments),
    /// What a packet costs in a tunnel of WireGuard and in one of QUIC, in the nodes alone. Measures real time.
    Tunnels(tunnels::Arguments),
}

/// Measures, and says whether all bars are met.
pub fn bench(bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Availability(arguments) => availability::run(arguments),
        Bench::Bgp(arguments) => bgp::run(arguments),
        Bench::Failover(arguments) => failover::run(arguments),
        Bench::Policy(arguments) => policy::run(arguments),
        Bench::Sites(arguments) => sites::run(arguments),
        Bench::Throughput(arguments) => throughput::run(arguments),
        Bench::Tunnels(arguments) => tunnels::run(arguments),
    }
}
