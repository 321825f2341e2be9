//! The lab: topologies and scenarios as data, run in the simulator, in virtual time, or for real.

pub mod meter;
pub mod report;
