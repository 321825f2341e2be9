//! Civil time: which windows of a policy are open.
//!
//! What a clock at the site shows is found by the tz database: that of the host, which its updates keep current, or else the
//! one in this program (docs/decisions/0023-the-sites-clock.md). The moment is an argument, in time since 1970; only [`open_now`] and [`keep_windows`] read the clock.

use crate::clock;
use crate::engine::{Ended, Handle};
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use proto::PeerId;
use proto::policy::{Policy, Window};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What is open at a moment, and for how long that is so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// A bit for each of the policy's windows.
    pub windows: u64,
    /// The time since 1970 at which the next of them begins or ends.
    pub until: Option<Duration>,
}

/// Whether the tz database has a zone of this name.
pub fn is_zone(name: &str) -> bool {
    TimeZone::get(name).is_ok()
}

/// Which windows of a policy are open at a moment. While the clock stands before [`clock::EARLIEST`] nobody knows what time it
/// is, and none is.
pub fn open(policy: &Policy, now: Duration) -> Open {
    let mut open = Open::default();
    let Some(at) = timestamp(now).filter(|_| now >= clock::EARLIEST) else { return open };
    let zone = zone(policy);
    let today = zone.to_datetime(at).date();
    for (place, window) in policy.windows().iter().enumerate() {
        // One that has begun yesterday may still be open; each comes again within a week, and one that daylight saving has
        // swallowed a week later.
        let first = today.yesterday().unwrap_or(today);
        for day in first.series(1.day()).take(16).filter(|day| is_in(window.days, *day)) {
            let Some((from, until)) = interval(&zone, window, day) else { continue };
            if from <= at && at < until {
                open.windows |= 1 << place;
            }
            let next = [from, until].into_iter().filter(|next| *next > at).map(since_1970).min();
            open.until = [open.until, next].into_iter().flatten().min();
            if from > at {
                break;
            }
        }
    }
    open
}

/// The day on which the month of a link has begun, by its place in the calendar: "2026-11-14". `None`: before
/// [`clock::EARLIEST`], when nobody knows.
pub fn month(policy: &Policy, reset_day: u8, now: Duration) -> Option<String> {
    let today = today(policy, now)?;
    // Of the month of this day, on its last one if it has none of that number.
    let reset = |of: Date| of.first_of_month().checked_add((of.days_in_month().min(reset_day as i8) - 1).days()).ok();
    let this = reset(today)?;
    let began = if this <= today { this } else { reset(today.first_of_month().yesterday().ok()?)? };
    Some(began.to_string())
}

/// Whether it is one of these days, a bit each, the lowest Monday's. While nobody knows it is none.
pub fn is_one_of(policy: &Policy, days: u8, now: Duration) -> bool {
    today(policy, now).is_some_and(|today| is_in(days, today))
}

fn today(policy: &Policy, now: Duration) -> Option<Date> {
    timestamp(now).filter(|_| now >= clock::EARLIEST).map(|at| zone(policy).to_datetime(at).date())
}

/// Which windows are open now, for the configuration of a peer.
pub fn open_now(policy: &Policy) -> u64 {
    open(policy, clock::unix_time()).windows
}

/// The zone of a policy. It was there when the policy was read; should it be gone, UTC is as good as any.
fn zone(policy: &Policy) -> TimeZone {
    policy.zone().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC)
}

fn timestamp(since_1970: Duration) -> Option<Timestamp> {
    Timestamp::UNIX_EPOCH.checked_add(since_1970).ok()
}

fn since_1970(at: Timestamp) -> Duration {
    Duration::try_from(at.as_duration()).unwrap_or_default()
}

fn is_in(days: u8, day: Date) -> bool {
    days >> day.weekday().to_monday_zero_offset() & 1 == 1
}

/// From when until when a window is open that begins on this day. `None`: it is one that daylight saving has swallowed.
///
/// A time that clocks do not show that night (they go from 2:00 to 3:00) is as much later as the clock has jumped; of one that
/// they show twice the first counts (as in RFC 5545, section 3.3.5).
fn interval(zone: &TimeZone, window: &Window, day: Date) -> Option<(Timestamp, Timestamp)> {
    let at = |day: Date, minute: u16| {
        // 24:00 is 0:00 of the next day.
        let (day, minute) = if minute < 24 * 60 { (day, minute) } else { (day.tomorrow().ok()?, minute - 24 * 60) };
        let time = Time::new((minute / 60) as i8, (minute % 60) as i8, 0, 0).ok()?;
        zone.to_ambiguous_timestamp(day.to_datetime(time)).compatible().ok()
    };
    let last = if window.until > window.from { day } else { day.tomorrow().ok()? };
    let (from, until) = (at(day, window.from)?, at(last, window.until)?);
    (from < until).then_some((from, until))
}

/// How long a window that opens or closes may be waited for by a timer, which knows nothing of clocks that are slewed and of
/// machines that sleep: what the fastest slew of Linux (500 ppm) makes of it is 30 ms.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Tells the node which windows are open, whenever that changes: as time goes by, when the wall clock is set, and when there
/// are other policies. Goes on until the packet loop ends, or there is nobody left who could have others.
pub async fn keep_windows(packets: &Handle, mut policies: watch::Receiver<Vec<(PeerId, Arc<Policy>)>>) -> Ended {
    let mut set = packets.clock_set();
    loop {
        // Before the clock is read: if it is set afterwards, that is news.
        set.borrow_and_update();
        let now = clock::unix_time();
        let (mut all, mut until) = (HashMap::new(), None::<Duration>);
        for (peer, policy) in policies.borrow_and_update().iter().filter(|(_, policy)| !policy.windows().is_empty()) {
            let open = open(policy, now);
            until = [until, open.until].into_iter().flatten().min();
            all.insert(*peer, open.windows);
        }
        if !all.is_empty() {
            let told = packets.call(move |node, _, now| node.set_open_windows(now, &all)).await;
            if let Err(ended) = told {
                return ended;
            }
        }
        let wait = until.map(|until| until.saturating_sub(now).min(LOOK_AGAIN));
        tokio::select! {
            () = clock::until(wait.map(|wait| clock::now() + wait)) => {}
            changed = set.changed() => if changed.is_err() { return Ended },
            changed = policies.changed() => if changed.is_err() { return Ended },
        }
    }
}

#[cfg(test)]
mod tests;
