//! `cargo lab bench`: what is measured over many runs.

pub mod availability;
pub mod failover;

use anyhow::Result;

/// What is to be measured.
#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// Months of outages on two links of 99.9 %, in the simulator: what failover adds to them, and how many nines are left.
    Availability(availability::Arguments),
    /// What a cut costs, by its kind, round trip and rate: longest gap, packets lost, doubled, out of order, and octets
    /// spent; with the real daemons, in the simulator, and with what is run today.
    Failover(failover::Arguments),
}

/// Measures, and says whether all bars are met.
pub fn bench(bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Availability(arguments) => availability::run(arguments),
        Bench::Failover(arguments) => failover::run(arguments),
    }
}
