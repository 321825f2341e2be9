//! The run's clock: CLOCK_MONOTONIC, counted from the start of the traffic.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::AsFd;

/// Nanoseconds since the start of the run's traffic; negative before.
pub(crate) type Nanos = i64;

/// Milliseconds, rounded to microseconds so that documents stay readable.
pub(crate) fn millis(nanos: Nanos) -> f64 {
    (nanos as f64 / 1e3).round() / 1e3
}

/// The run's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: i64,
}

impl Clock {
    pub(crate) fn new(start_ns: u64) -> Self {
        Clock { start: i64::try_from(start_ns).unwrap_or(i64::MAX) }
    }

    pub(crate) fn now(self) -> Nanos {
        nanos(clock_gettime(ClockId::Monotonic)) - self.start
    }

    /// A kernel's timestamp (which is CLOCK_REALTIME) on this clock. The offset between the two is taken now, not once:
    /// scenarios step the wall clock.
    pub(crate) fn at_realtime(self, realtime_ns: i64) -> Nanos {
        let offset = nanos(clock_gettime(ClockId::Realtime)) - nanos(clock_gettime(ClockId::Monotonic));
        realtime_ns - offset - self.start
    }

    /// Sleeps until a moment; returns at once if it has passed. The deadline is absolute: waking late once does not
    /// shift the ones that follow.
    pub(crate) fn sleep_until(self, moment: Nanos) {
        let at = (self.start + moment).max(0);
        let at = Timespec { tv_sec: at / 1_000_000_000, tv_nsec: at % 1_000_000_000 };
        while rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &at) == Err(Errno::INTR) {}
    }

    /// Waits until the socket has something to read (or to write) or the moment comes; whether it has.
    pub(crate) fn wait(self, socket: &impl AsFd, flags: PollFlags, until: Nanos) -> io::Result<bool> {
        loop {
            let left = (until - self.now()).max(0);
            let left = Timespec { tv_sec: left / 1_000_000_000, tv_nsec: left % 1_000_000_000 };
            match poll(&mut [PollFd::new(socket, flags)], Some(&left)) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }
}

fn nanos(t: Timespec) -> i64 {
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}
