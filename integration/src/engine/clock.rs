//! The run's clock: CLOCK_MONOTONIC, counted from the start of the traffic.

use crate::report::Kernel;
use crate::scenario::WallClock;
use anyhow::{Context, Result, bail};
use rustix::fs::Timespec;
use rustix::time::{ClockId, clock_gettime, clock_settime};
use std::time::Duration;

/// The wall clock of a guest, which a scenario may set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wall {
    /// CLOCK_REALTIME less CLOCK_MONOTONIC, while it was right.
    right_ns: i64,
    kernel: Kernel,
}

impl Wall {
    pub(super) fn new(kernel: Kernel) -> Self {
        let right_ns = nanos(clock_gettime(ClockId::Realtime)) - nanos(clock_gettime(ClockId::Monotonic));
        Wall { right_ns, kernel }
    }

    /// Sets it.
    pub(super) fn set(self, to: WallClock) -> Result<()> {
        if !matches!(self.kernel, Kernel::Virtual | Kernel::Uml) {
            bail!("the wall clock is set only in a guest, never this machine's own: use --kernel virtual or uml");
        }
        let to_ns = match to {
            // Linux lets no clock show less than the time since the start: in 1970 a machine without a battery does just that.
            WallClock::Day(seconds) => seconds * 1_000_000_000 + nanos(clock_gettime(ClockId::Monotonic)),
            WallClock::Moment(seconds) => seconds * 1_000_000_000,
            WallClock::Step(seconds) => nanos(clock_gettime(ClockId::Realtime)) + seconds * 1_000_000_000,
            WallClock::Right => nanos(clock_gettime(ClockId::Monotonic)) + self.right_ns,
        };
        let to = Timespec { tv_sec: to_ns.div_euclid(1_000_000_000), tv_nsec: to_ns.rem_euclid(1_000_000_000) };
        clock_settime(ClockId::Realtime, to).context("cannot set the guest's clock")
    }
}

/// The run's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start_ns: i64,
    /// CLOCK_REALTIME less CLOCK_MONOTONIC, when the clock was made.
    unix_offset_ns: i64,
}

fn nanos(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

impl Clock {
    pub(super) fn starting_in(lead: Duration) -> Self {
        let monotonic = nanos(clock_gettime(ClockId::Monotonic));
        let unix_offset_ns = nanos(clock_gettime(ClockId::Realtime)) - monotonic;
        Clock { start_ns: monotonic + lead.as_nanos() as i64, unix_offset_ns }
    }

    /// The start, on CLOCK_MONOTONIC.
    pub(super) fn start_ns(self) -> u64 {
        self.start_ns.max(0).cast_unsigned()
    }

    /// The start, since 1970.
    pub(super) fn start_unix_ns(self) -> i64 {
        self.start_ns + self.unix_offset_ns
    }

    /// Milliseconds since the start, negative before.
    pub(super) fn now_ms(self) -> f64 {
        (nanos(clock_gettime(ClockId::Monotonic)) - self.start_ns) as f64 / 1e6
    }

    /// Sleeps until a moment after the start; returns at once if it has passed.
    pub(super) fn sleep_until(self, moment: Duration) {
        let at = self.start_ns.saturating_add(i64::try_from(moment.as_nanos()).unwrap_or(i64::MAX));
        let at = Timespec { tv_sec: at / 1_000_000_000, tv_nsec: at % 1_000_000_000 };
        while rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &at) == Err(rustix::io::Errno::INTR) {}
    }
}
