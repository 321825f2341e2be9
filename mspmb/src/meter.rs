//! What metered links have carried in their months, and whether that is what they may.
//!
//! Counted are the datagrams of the tunnels, sent and received by a link, with their outer IP and UDP headers: what the box has
//! sent whether it has arrived or not, and of what the core has sent what arrived; and the packets of direct flows, by the packet
//! filter's counters. What else the box or others send by that interface (names that are asked for, DHCP) is not.
//!
//! The counts are on the disk every half minute, and when a cap is reached: so much is lost when the power fails. While the disk
//! takes nothing they go on in memory. They are kept by the beginning of the month, so that a clock that was wrong for a while has
//! made them none the less.

use crate::breakout;
use crate::state::{Store, Stored};
use dataplane::engine::{Ended, Handle};
use dataplane::{calendar, clock};
use proto::policy::Policy;
use proto::snapshot::Snapshot;
use proto::{Instant, MAX_SLOTS, PeerId, TunnelKind, direct};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How often is counted. What goes beyond a cap is what a link carries in that time, and in the 300 ms for which flows that do not
/// pause stay on it.
const COUNT: Duration = Duration::from_secs(1);

/// How often the counts are written: they outlive a failure of the power but for these, and a flash disk a year of it.
const WRITE: Duration = Duration::from_secs(30);

/// So many months of a link are kept. Nobody needs more than the one; of a clock that is set to and fro there may be some beside it.
const MONTHS: usize = 4;

/// What each link has carried, by its name and by the day on which the month began, "2026-11-14"; "" while no clock had told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    links: BTreeMap<String, BTreeMap<String, u64>>,
    /// What the packet filter's counter of each slot had counted when this was written: it goes on when the daemon is killed.
    #[serde(default)]
    direct: [u64; MAX_SLOTS],
}

impl Stored for Usage {
    const FILE: &'static str = "usage.json";
    const WHAT: &'static str = "the counts of metered links";
}

impl Usage {
    /// Adds to what a link has carried in the month that began then (`None`: nobody knows), and says what that is now, and of
    /// which month.
    fn add(&mut self, link: &str, month: Option<String>, octets: u64) -> (String, u64) {
        let months = self.links.entry(link.to_owned()).or_default();
        let month = month.or_else(|| months.last_key_value().map(|(last, _)| last.clone())).unwrap_or_default();
        let before = if month.is_empty() { 0 } else { months.remove("").unwrap_or(0) };
        let count = months.entry(month.clone()).or_default();
        *count += octets + before;
        let count = *count;
        while months.len() > MONTHS {
            let Some(oldest) = months.keys().find(|other| **other != month).cloned() else { break };
            months.remove(&oldest);
        }
        (month, count)
    }
}

/// A metered link, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MeterStatus {
    /// Its slot.
    pub(crate) slot: u8,
    /// Its name in the policy.
    pub(crate) link: String,
    /// The day on which its month began; empty while the clock is wrong.
    pub(crate) since: String,
    /// What it has carried since, in octets.
    pub(crate) octets: u64,
    /// What it may carry, in octets.
    pub(crate) cap: u64,
    /// Nothing is counted today.
    pub(crate) free: bool,
    /// It is at its cap, and only classes that the policy names take it.
    pub(crate) capped: bool,
}

/// Counts, keeps, and tells the node.
pub(crate) struct Meter {
    usage: Usage,
    store: Store<Usage>,
    written: Option<Instant>,
    /// What the paths of each slot had carried when that was last counted.
    before: [[Carried; 2]; MAX_SLOTS],
    /// What direct flows have carried by each slot and is not counted yet.
    outside: [u64; MAX_SLOTS],
    /// Whether there may be direct flows: those of a policy of before stay where they began.
    direct: bool,
    shown: watch::Sender<Vec<MeterStatus>>,
}

impl Meter {
    /// With the counts in this folder, and what direct flows have carried while there was no daemon. To be called before the
    /// table of those is made; within a tokio runtime.
    pub(crate) async fn open(folder: &Path, policy: &Policy) -> Meter {
        let (usage, store) = Store::open(folder);
        let (before, outside, shown) = Default::default();
        let mut meter = Meter { usage, store, written: None, before, outside, direct: false, shown };
        meter.direct = meter.usage.direct != [0; MAX_SLOTS];
        meter.read_direct(policy).await;
        meter
    }

    /// Asks what direct flows have carried, if there is a link for which that counts.
    async fn read_direct(&mut self, policy: &Policy) {
        self.direct |= direct::concerns(policy);
        if self.direct && policy.links().iter().any(|link| link.metered.is_some()) {
            match breakout::carried().await {
                Some(counted) => self.note_direct(counted),
                None => tracing::debug!("there is no table of direct flows, or it cannot be read now"),
            }
        }
    }

    /// The packet filter's counters show this now.
    fn note_direct(&mut self, counted: [u64; MAX_SLOTS]) {
        for ((outside, now), before) in self.outside.iter_mut().zip(counted).zip(&mut self.usage.direct) {
            *outside += difference(now, std::mem::replace(before, now));
        }
    }

    /// What there is to show.
    pub(crate) fn shown(&self) -> watch::Receiver<Vec<MeterStatus>> {
        self.shown.subscribe()
    }

    /// Goes on until the packet loop ends. Who decides of `direct` flows is notified when a link reaches its cap, or may be used
    /// again.
    pub(crate) async fn follow(
        &mut self,
        packets: &Handle,
        mut policies: watch::Receiver<Vec<(PeerId, Arc<Policy>)>>,
        direct: &Notify,
    ) -> Ended {
        let mut told = 0;
        loop {
            let policy = policies.borrow_and_update().first().map(|(_, policy)| policy.clone()).unwrap_or_default();
            self.read_direct(&policy).await;
            let Ok((node, _)) = packets.snapshot().await else { return Ended };
            let capped = self.count(&policy, clock::unix_time(), carried(&node));
            let news = capped != told;
            if news {
                told = capped;
                if packets.call(move |node, _, now| node.set_capped(now, capped)).await.is_err() {
                    return Ended;
                }
                direct.notify_one();
            }
            self.keep(news);
            let metered = policy.links().iter().any(|link| link.metered.is_some());
            tokio::select! {
                () = clock::until(metered.then(|| clock::now() + COUNT)) => {}
                changed = policies.changed() => if changed.is_err() { return Ended },
            }
        }
    }

    /// Counts what came since it was last done, and waits until that is on the disk.
    pub(crate) async fn close(mut self, packets: &Handle, policy: &Policy) {
        self.read_direct(policy).await;
        // The table goes with the daemon, and the next one's counts from nothing.
        self.usage.direct = [0; MAX_SLOTS];
        // If the loop has ended by itself, what it carried last is not known.
        if let Ok((node, _)) = packets.snapshot().await {
            self.count(policy, clock::unix_time(), carried(&node));
        }
        self.keep(true);
        self.store.close().await;
    }

    /// Counts what the paths of each slot have carried in all, at this time since 1970; the slots at their caps, a bit each.
    fn count(&mut self, policy: &Policy, now: Duration, carried: [[Carried; 2]; MAX_SLOTS]) -> u8 {
        let mut shown = Vec::new();
        for (slot, link) in policy.links().iter().enumerate() {
            let before = std::mem::replace(&mut self.before[slot], carried[slot]);
            let outside = std::mem::take(&mut self.outside[slot]);
            let (Some(metered), Some(name)) = (&link.metered, &link.name) else { continue };
            let free = calendar::is_one_of(policy, metered.free, now);
            let by_paths: u64 = carried[slot].iter().zip(before).map(|(now, before)| now.since(before)).sum();
            let octets = if free { 0 } else { by_paths + outside };
            let (since, octets) = self.usage.add(name, calendar::month(policy, metered.reset_day, now), octets);
            let status = MeterStatus {
                slot: slot as u8,
                link: name.to_string(),
                since,
                octets,
                cap: metered.cap,
                free,
                capped: octets >= metered.cap && !free,
            };
            shown.push(status);
        }
        let capped = capped(&shown);
        self.shown.send_if_modified(|before| {
            for link in &shown {
                let was = before.iter().any(|other| other.slot == link.slot && other.capped);
                match (was, link.capped) {
                    (false, true) => {
                        tracing::warn!(link = link.link, since = link.since, "a metered link is at its cap")
                    }
                    (true, false) => {
                        tracing::info!(link = link.link, since = link.since, "a metered link may be used again")
                    }
                    _ => {}
                }
            }
            let news = *before != shown;
            *before = shown;
            news
        });
        capped
    }

    /// Has the counts written, at once or when it is time.
    fn keep(&mut self, at_once: bool) {
        let now = clock::now();
        if at_once || self.written.is_none_or(|written| now.since(written) >= WRITE) {
            self.written = Some(now);
            self.store.keep(self.usage.clone());
        }
    }
}

/// The slots of links that are at their caps, a bit each.
pub(crate) fn capped(metered: &[MeterStatus]) -> u8 {
    metered.iter().fold(0, |slots, link| slots | u8::from(link.capped) << link.slot)
}

/// What a counter has counted since it showed `before`; one that shows less was made anew, and counts from nothing.
fn difference(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// What a path has carried, both ways together.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    datagrams: u64,
    /// Of the datagrams, without outer headers.
    octets: u64,
    /// The length of those, as the path is now.
    headers: u64,
}

impl Carried {
    /// The octets since then, outer headers counted. A path that was made anew counts from nothing.
    fn since(self, before: Carried) -> u64 {
        difference(self.octets, before.octets) + difference(self.datagrams, before.datagrams) * self.headers
    }
}

/// What the paths of each slot have carried, one of each kind of tunnel.
fn carried(node: &Snapshot) -> [[Carried; 2]; MAX_SLOTS] {
    let mut carried = [[Carried::default(); 2]; MAX_SLOTS];
    for path in node.peers.iter().flat_map(|peer| &peer.paths) {
        if let Some(both) = carried.get_mut(usize::from(path.id.slot)) {
            let carried = &mut both[usize::from(path.id.tunnel == TunnelKind::Quic)];
            // IPv4 and UDP are 28 octets, IPv6 and UDP 48. While the core's address is not known there is nothing to count.
            let headers = if path.endpoint.is_some_and(|to| to.is_ipv4()) { 28 } else { 48 };
            let (datagrams, octets) = (path.tx.packets + path.rx.packets, path.tx.bytes + path.rx.bytes);
            *carried = Carried { datagrams, octets, headers };
        }
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::policy::{Link, Metered};

    /// One link of 1000 octets a month that begins on the 14th, free on Sundays.
    fn policy() -> Policy {
        let mut links: [Link; MAX_SLOTS] = Default::default();
        let metered = Metered { cap: 1000, reset_day: 14, free: 1 << 6, over: Vec::new() };
        links[1] = Link { name: Some("lte".into()), metered: Some(metered), ..Link::default() };
        Policy::new(links, Vec::new()).expect("a good policy")
    }

    /// What it has carried, a tenth of it by QUIC.
    fn lte(octets: u64) -> [[Carried; 2]; MAX_SLOTS] {
        let mut carried = [[Carried::default(); 2]; MAX_SLOTS];
        carried[1] = [octets - octets / 10, octets / 10].map(|octets| Carried { datagrams: 0, octets, headers: 28 });
        carried
    }

    /// So many days after Friday the 13th of November 2026, at noon.
    fn day(days: u64) -> Duration {
        Duration::from_secs(1_794_571_200 + days * 86_400)
    }

    fn folder(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("mspmb-{name}-{}", std::process::id()))
    }

    #[tokio::test]
    async fn a_month_ends_on_its_day_free_days_do_not_count_and_a_restart_forgets_nothing() {
        let (folder, policy) = (folder("meter"), policy());
        let mut meter = Meter::open(&folder, &policy).await;
        assert_eq!(meter.count(&policy, day(0), lte(900)), 0);
        assert_eq!(meter.count(&policy, day(0), lte(1000)), 0b10, "it has carried all that it may");
        assert_eq!(meter.count(&policy, day(1), lte(1100)), 0, "a month begins");
        assert_eq!(meter.count(&policy, day(2), lte(5100)), 0, "a free day");
        let shown = meter.shown().borrow().clone();
        let [MeterStatus { octets: 100, free: true, capped: false, ref since, .. }] = shown[..] else {
            panic!("{shown:?}")
        };
        assert_eq!(since, "2026-11-14");
        assert_eq!(meter.count(&policy, day(3), lte(6000)), 0b10);
        assert_eq!(meter.count(&policy, day(9), lte(6000)), 0, "a free day of a link at its cap");
        assert_eq!(meter.count(&policy, day(10), lte(6000)), 0b10);
        meter.keep(true);
        meter.store.close().await;
        let mut meter = Meter::open(&folder, &policy).await;
        assert_eq!(meter.count(&policy, day(10), lte(0)), 0b10, "after a restart");
        assert_eq!(meter.shown().borrow()[0].octets, 1000);
        std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
    }

    #[tokio::test]
    async fn a_clock_that_is_wrong_loses_no_count() {
        let (folder, policy) = (folder("meter-clock"), policy());
        let mut meter = Meter::open(&folder, &policy).await;
        assert_eq!(meter.count(&policy, Duration::ZERO, lte(300)), 0);
        assert_eq!(meter.count(&policy, day(3), lte(500)), 0, "what came before the clock was set is of this month");
        assert_eq!(meter.shown().borrow()[0].octets, 500);
        meter.count(&policy, Duration::ZERO, lte(600));
        meter.count(&policy, day(3650), lte(650));
        meter.count(&policy, day(3), lte(700));
        assert_eq!(meter.shown().borrow()[0].octets, 650, "but for what was counted for another year");
        for month in 2..9 {
            meter.count(&policy, day(month * 30), lte(700));
        }
        assert_eq!(meter.usage.links["lte"].len(), MONTHS);
    }

    #[tokio::test]
    async fn what_leaves_outside_of_the_tunnels_counts_too_and_a_table_made_anew_counts_from_nothing() {
        let (folder, policy) = (folder("meter-direct"), policy());
        let slot_1 = |octets| {
            let mut counted = [7; MAX_SLOTS];
            counted[1] = octets;
            counted
        };
        let mut meter = Meter::open(&folder, &policy).await;
        meter.note_direct(slot_1(300));
        assert_eq!(meter.count(&policy, day(0), lte(100)), 0);
        meter.note_direct(slot_1(500));
        meter.note_direct(slot_1(600));
        assert_eq!(meter.count(&policy, day(0), lte(150)), 0);
        assert_eq!(meter.shown().borrow()[0].octets, 750, "both");
        meter.note_direct(slot_1(100));
        assert_eq!(meter.count(&policy, day(0), lte(150)), 0);
        assert_eq!(meter.shown().borrow()[0].octets, 850, "another table");
        meter.keep(true);
        meter.store.close().await;
        // The daemon was killed, and flows went on.
        let (usage, store) = Store::open(&folder);
        let (before, outside, shown) = Default::default();
        let mut meter = Meter { usage, store, written: None, before, outside, direct: true, shown };
        meter.note_direct(slot_1(350));
        assert_eq!(meter.count(&policy, day(0), lte(0)), 0b10);
        assert_eq!(capped(&meter.shown().borrow()), 0b10);
        assert_eq!(meter.shown().borrow()[0].octets, 1100);
        std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
    }

    #[test]
    fn what_a_path_carried_is_counted_with_its_headers_as_they_were() {
        let before = Carried { datagrams: 100, octets: 50_000, headers: 28 };
        let later = Carried { datagrams: 110, octets: 51_000, headers: 48 };
        assert_eq!(later.since(before), 1_000 + 10 * 48);
        assert_eq!(Carried { datagrams: 1, octets: 100, headers: 28 }.since(before), 128, "made anew");
    }
}
