//! The clocks: `proto`'s [`Instant`] from CLOCK_BOOTTIME, the wall clock, and news of the latter being set.

use proto::Instant;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Now. Counts from the machine's start, suspended time included: a path that was silent while the machine slept was
/// silent.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    Instant::from_nanos(nanos(time))
}

/// The wall clock: time since 1970, zero if it stands before.
pub fn unix_time() -> Duration {
    Duration::from_nanos(nanos(clock_gettime(ClockId::Realtime)))
}

/// The earliest time that a right clock can show: the start of 2025, before this was written. A machine without a battery
/// begins in 1970, until it is told the time.
pub const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// Waits until then; for ever without one.
///
/// What has passed is over when first looked at. A timer of tokio's never is, however short: a task that makes one anew in
/// each round, and always has something else to do, would never see its end.
pub async fn until(deadline: Option<Instant>) {
    match deadline.map(|at| at.since(now())) {
        None => std::future::pending().await,
        Some(Duration::ZERO) => {}
        Some(wait) => tokio::time::sleep(wait).await,
    }
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Becomes readable when somebody sets the wall clock, without ever waking for anything else.
///
/// A timer on CLOCK_REALTIME that is cancelled when the clock is set (timerfd_create(2)); it never expires by itself
/// within a life of this process.
#[derive(Debug)]
pub struct ClockWatch(OwnedFd);

/// Ten years: later than any start of a daemon, and far from the kernel's limit for a timer.
const FAR: i64 = 10 * 366 * 86_400;

impl ClockWatch {
    /// Begins to watch.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let watch = ClockWatch(fd);
        watch.arm()?;
        Ok(watch)
    }

    fn arm(&self) -> io::Result<()> {
        let mut at = clock_gettime(ClockId::Realtime);
        at.tv_sec += FAR;
        let when = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &when)?;
        Ok(())
    }

    /// To be called when it is readable: whether the clock was set, and watches on.
    pub fn was_set(&self) -> bool {
        let mut expirations = [0; 8];
        match rustix::io::read(&self.0, &mut expirations) {
            Err(rustix::io::Errno::AGAIN) => false,
            // ECANCELED is the news; an expiry can only come of a clock that was moved ten years ahead.
            Err(_) | Ok(_) => {
                if let Err(error) = self.arm() {
                    tracing::warn!(%error, "cannot watch the wall clock any more; after it is set, handshakes may fail");
                }
                true
            }
        }
    }
}

impl AsFd for ClockWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_passed_is_over_when_first_looked_at() {
        let mut passed = std::pin::pin!(until(Some(now())));
        let first = std::future::poll_fn(|context| std::task::Poll::Ready(passed.as_mut().poll(context))).await;
        assert!(first.is_ready());
        let soon = now() + Duration::from_millis(2);
        until(Some(soon)).await;
        assert!(now() >= soon);
    }

    #[test]
    fn a_clock_that_nobody_sets_is_quiet() {
        let watch = ClockWatch::new().expect("a timerfd");
        assert!(!watch.was_set());
        let first = now();
        assert!(now() >= first);
        // Any time since this was written: the unit, not the clock, is tested.
        assert!(unix_time() > Duration::from_secs(1_700_000_000));
    }
}
