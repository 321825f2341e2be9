//! The meter: what makes traffic in the lab, and what tells how it fared.
//!
//! The way through this module:
//!
//! 1. A scenario has [`Traffic`] entries; each names two hosts and what goes on between them.
//! 2. [`plan`] turns them into one [`MeterSpec`] per host that takes part: the stream ends that live there.
//! 3. The lab writes each spec to a file and starts `lab meter --spec FILE` inside that host's network namespace, which
//!    calls [`run`]. All of them share the kernel's CLOCK_MONOTONIC, so a start given on that clock synchronises them.
//! 4. Each writes a [`HostResult`] when it ends, and meanwhile a [`LiveLine`] every 100 ms.
//! 5. [`collect`] joins both ends of every stream into the figures that the report shows.
//!
//! It must run in a kernel whose clock moves only while everything sleeps (User-Mode Linux with `time-travel`): every
//! thread blocks in one wait with its timeout in nanoseconds, nothing spins or polls, and every sender has a rate.

pub(crate) mod account;
mod attack;
mod clock;
mod initial;
mod live;
mod packet;
mod payload;
mod ping;
mod plan;
mod result;
mod run;
mod sizes;
mod spec;
mod speed;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

pub use plan::{collect, plan};
pub use result::{
    AttackResult, EndResult, Flow, Gap, Hole, HostResult, LiveLine, LiveStream, PingResult, Seen, Series, SizeResult,
    SizesResult, SpeedResult, StreamResult, TcpEndResult, TcpResult, Told, TrafficResults, WatchResult,
};
pub use run::{MeterError, run};
pub use spec::{
    End, Family, Garbage, Iperf3, MeterSpec, Ping, Replay, Shape, Sizes, Span, SpecError, Spoof, Tcp, Traffic, Udp,
    Watch,
};
