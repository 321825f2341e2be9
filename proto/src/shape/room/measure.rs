//! What receipts tell of a path: how fast things arrive, and whether it is a queue that makes them late.

use crate::Instant;
use crate::health::RECEIPT_INTERVAL;
use std::time::Duration;

/// The least time over which a rate is measured: three receipts.
pub(super) const LEAST_ROUND: Duration = Duration::from_millis(24);

/// The least time in which a rate can be seen at all: a receipt's interval, less the jitter of its sending.
const LEAST_SAMPLE_US: u32 = 5_000;

/// A queue gets longer by what arrives from it, so at the rate at which things arrive. What got longer while so many times less
/// arrived than does now is the way.
const LESS: u64 = 2;

/// What a receipt tells of a path's room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Octets of datagrams acknowledged for the first time.
    pub(crate) octets: u64,
    /// Datagrams acknowledged for the first time.
    pub(crate) packets: u32,
    /// Datagrams that are lost, as is known now.
    pub(crate) lost: u32,
    /// Octets of these.
    pub(crate) lost_octets: u64,
    /// Octets of datagrams that are not acknowledged yet and not known to be lost.
    pub(crate) under_way: u64,
    /// When the oldest was sent that was not acknowledged before this.
    pub(crate) oldest: Instant,
    /// When the newest one arrived, by the receiver's clock, modulo 2^32.
    pub(crate) received_us: u32,
    /// How much longer it was under way than the fastest of late.
    pub(crate) queued: Duration,
    /// The least round trip of late.
    pub(crate) least_rtt: Duration,
}

/// What arrived between two receipts, by the receiver's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) began_us: u32,
    pub(super) lasted_us: u32,
    pub(super) octets: u64,
    pub(super) packets: u32,
    pub(super) lost: u32,
    /// The least that a packet waited, and the most.
    pub(super) queued: Duration,
    pub(super) longest: Duration,
}

impl Round {
    pub(super) fn after(progress: &Progress) -> Self {
        let (began_us, queued) = (progress.received_us, Duration::MAX);
        Round { began_us, lasted_us: 0, octets: 0, packets: 0, lost: 0, queued, longest: Duration::ZERO }
    }

    pub(super) fn extend(&mut self, progress: &Progress) {
        self.octets += progress.octets;
        self.packets += progress.packets;
        self.lost += progress.lost;
        self.queued = self.queued.min(progress.queued);
        self.longest = self.longest.max(progress.queued);
        // Modulo 2^32; what seems to be before the beginning is a receipt that another has overtaken.
        let since = progress.received_us.wrapping_sub(self.began_us);
        self.lasted_us = self.lasted_us.max(if since <= u32::MAX / 2 { since } else { 0 });
    }

    /// In octets a second; `None`: it was too short to tell.
    pub(super) fn rate(&self) -> Option<u64> {
        (self.lasted_us >= LEAST_SAMPLE_US).then(|| self.octets * 1_000_000 / u64::from(self.lasted_us))
    }

    pub(super) fn is_whole(&self, least_rtt: Duration) -> bool {
        Duration::from_micros(self.lasted_us.into()) >= LEAST_ROUND.max(least_rtt + RECEIPT_INTERVAL)
    }

    /// Whether one of so many was lost, and more than by chance.
    pub(super) fn loses(&self, one_of: u32) -> bool {
        self.lost >= 3 && self.lost * one_of >= self.packets + self.lost
    }
}

/// At which rate things arrived while packets began to take longer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    /// When the newest packet had arrived by the receipt before.
    received_us: Option<u32>,
    /// What is acknowledged since then.
    octets: u64,
    /// The longest that one took since there was no queue.
    peak: Duration,
    /// By how much that has grown, in microseconds, and the same times the rates.
    grown: u64,
    at_rates: u128,
}

impl Growth {
    /// `none`: as long as this there is no queue.
    pub(super) fn extend(&mut self, progress: &Progress, none: Duration) {
        self.octets += progress.octets;
        let since = progress.received_us.wrapping_sub(self.received_us.unwrap_or(progress.received_us));
        if (1..=u32::MAX / 2).contains(&since) {
            let rate = self.octets * 1_000_000 / u64::from(since);
            let more = progress.queued.saturating_sub(self.peak).as_micros() as u64;
            self.grown += more;
            self.at_rates += u128::from(more) * u128::from(rate);
            self.peak = self.peak.max(progress.queued);
            (self.received_us, self.octets) = (Some(progress.received_us), 0);
        }
        self.received_us.get_or_insert(progress.received_us);
        if progress.queued <= none {
            self.begin_anew(progress.queued);
        }
    }

    pub(super) fn begin_anew(&mut self, peak: Duration) {
        *self = Growth { peak, grown: 0, at_rates: 0, ..*self };
    }

    /// Whether the way became longer, and not a queue, if `rate` arrives now.
    pub(super) fn is_of_the_way(&self, rate: u64) -> bool {
        self.grown > 0 && self.at_rates / u128::from(self.grown) * u128::from(LESS) < u128::from(rate)
    }
}
