//! Path MTU discovery: the largest datagram that one path carries, in the direction in which this end sends.
//!
//! Datagram packetization layer path MTU discovery (RFC 8899). Probes are PINGs, padded to a size; a receipt says that one
//! arrived. Nothing else is believed: no ICMP message, which anybody could send and many filter, and no error of the
//! local socket. A datagram that is too large for an interface is a datagram that is lost.
//!
//! ```text
//!   BASE is assumed            MAX fits: most links, after one round trip
//!     |                    +----------------------------------------------> [Complete] ---- 600 s, if less
//!     v                    |                                                  ^    |        than MAX: again
//!   [Search: MAX] ---------+                                                  |    |
//!     ^      |  3 lost                                                        |    |
//!     |      +--> [Search: BASE] --> [Search: FULL, then the middle] ---------+    |
//!     |               |  3 lost: LEAST is assumed, search below BASE               |
//!     |                                                                            |
//!     +------------- three datagrams above BASE lost, none has arrived ------------+
//! ```
//! FULL is a packet of the TUN's MTU, sealed; MAX has room for a trailer behind it. All sizes are octets of UDP payload.
//! A probe is no data: its loss says nothing of the path's health.

use crate::Instant;
use crate::tunnel::PacketId;
use crate::wire::Receipt;
use std::time::Duration;

/// BASE_PLPMTU (RFC 8899, section 5.1.2): assumed until something is known. It fits the least MTU of IPv6 (1,280) with
/// the headers of IPv6 and UDP, and is what QUIC demands of every path (RFC 9000, section 14).
pub(crate) const BASE: u16 = 1_200;

/// MIN_PLPMTU: what remains where not even BASE fits. Every IPv4 host takes 576 octets (RFC 791, section 3.1), less the
/// headers of IPv4 and UDP; IPv6 has no such links.
const LEAST: u16 = 548;

/// Room for a trailer of link items behind the largest packet. With a TUN's MTU of 1,380 the largest datagram is 1,444:
/// what an Ethernet carries behind PPPoE (1,492) and IPv6.
const TRAILER: u16 = 32;

/// How much longer than the TUN's MTU a datagram ever is: the most that sealing adds (36 octets, of QUIC to a core), a
/// trailer, and 12 that quinn sets aside for headers that are longer than ours.
pub(crate) const BEYOND_MTU: u16 = 36 + TRAILER + 12;

/// A size is too large when so many probes of it are lost (RFC 8899, section 5.1.2).
const MAX_PROBES: u8 = 3;

/// The search ends when so little is left to gain: 8 octets of 1,200 are less than one in a hundred, and each halving
/// costs up to three probes.
const GRANULARITY: u16 = 8;

/// PMTU_RAISE_TIMER (RFC 8899, section 5.1.1): how long after a search that ended below the largest size the next one
/// begins.
const RAISE_AFTER: Duration = Duration::from_secs(600);

/// So many datagrams lost, and none as large arrived since, are a black hole (RFC 8899, section 4.3): as many as the
/// probes that refute a size.
const BLACK_HOLE: u8 = MAX_PROBES;

/// What is known of one path and direction.
#[derive(Debug)]
pub(crate) struct Discovery {
    /// What sealing adds to a packet, at most.
    overhead: u16,
    /// A packet of the TUN's MTU, sealed.
    full: u16,
    /// PLPMTU: the largest datagram that is sent.
    size: u16,
    /// `size` is more than an assumption.
    measured: bool,
    search: Option<Search>,
    /// When the next search begins, if none is under way.
    raise_at: Option<Instant>,
    /// Datagrams above BASE that were lost since one at least as large as the least of them arrived.
    missing: u8,
    least_missing: u16,
    /// The largest that the receipt at hand reports as arrived.
    arrived: u16,
}

#[derive(Debug)]
struct Search {
    /// The largest size known to fit.
    fits: u16,
    /// The least size known not to.
    too_large: u16,
    /// See [`Discovery`].
    full: u16,
    /// The size that is tried.
    candidate: u16,
    /// Its probes so far: an answer to any of them will do.
    probes: [Option<PacketId>; MAX_PROBES as usize],
    tries: u8,
    /// When the next probe is to be sent, or the last one is given up.
    due: Instant,
}

impl Search {
    /// A search in which `fits` is known to.
    fn new(fits: u16, full: u16) -> Search {
        let (probes, most) = ([None; MAX_PROBES as usize], full + TRAILER);
        Search { fits, too_large: most + 1, full, candidate: most, probes, tries: 0, due: Instant::ZERO }
    }

    /// Goes on to the next size. `false`: there is none.
    fn next(&mut self) -> bool {
        if self.too_large - self.fits <= GRANULARITY {
            return false;
        }
        let open = self.fits + 1..self.too_large;
        let telling = [BASE, self.full].into_iter().find(|size| open.contains(size));
        self.candidate = telling.unwrap_or(self.fits.midpoint(self.too_large));
        self.again();
        true
    }

    /// Tries the same size anew.
    fn again(&mut self) {
        (self.probes, self.tries, self.due) = ([None; MAX_PROBES as usize], 0, Instant::ZERO);
    }
}

impl Discovery {
    /// Nothing known; a search begins as soon as [`Discovery::on_timeout`] is called.
    /// `overhead`: what sealing adds to a packet, at most.
    pub(crate) fn new(tun_mtu: u16, overhead: usize) -> Self {
        let overhead = overhead as u16;
        let full = tun_mtu + overhead;
        Discovery {
            overhead,
            full,
            size: BASE,
            measured: false,
            search: Some(Search::new(LEAST, full)),
            raise_at: None,
            missing: 0,
            least_missing: 0,
            arrived: 0,
        }
    }

    /// The largest datagram that is to be sent as it is. Before the first answer that is BASE: a round trip of fragments
    /// costs a few headers, while a wrong guess upwards would cost all that is sent until three losses have been seen.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// The largest datagram, once something is known of it.
    pub(crate) fn measured(&self) -> Option<u16> {
        self.measured.then_some(self.size)
    }

    /// Another way to the peer: nothing is known of it.
    pub(crate) fn begin_anew(&mut self) {
        *self = Discovery::new(self.full - self.overhead, self.overhead.into());
    }

    /// The path works again: probes that were under way when it did not say nothing.
    pub(crate) fn on_up(&mut self) {
        if let Some(search) = &mut self.search {
            search.again();
        }
    }

    /// When [`Discovery::on_timeout`] has something to do, as long as the path is up. `active`: the bundle carries
    /// traffic; without it nothing depends on a size that may have grown, and octets may cost money.
    pub(crate) fn deadline(&self, active: bool) -> Option<Instant> {
        match &self.search {
            Some(search) => Some(search.due),
            None => self.raise_at.filter(|_| active),
        }
    }

    /// The size of the probe that is to be sent now; its number is told to [`Discovery::on_probe`]. `patience`: how long a
    /// receipt takes at most. Each probe is given twice the time of the one before: on a slow line a large datagram
    /// takes far longer than those whose round trips are known (180 ms for 1,444 octets at 64 kbit/s).
    pub(crate) fn on_timeout(&mut self, now: Instant, patience: Duration) -> Option<u16> {
        if self.search.is_none() && self.raise_at.take_if(|at| *at <= now).is_some() {
            self.search = Some(Search::new(self.size, self.full));
        }
        let search = self.search.as_mut().filter(|search| search.due <= now)?;
        if search.tries == MAX_PROBES {
            search.too_large = search.candidate;
            if self.size >= search.candidate {
                self.size = LEAST;
            }
            self.go_on(now);
        }
        let search = self.search.as_mut()?;
        search.due = now + patience * (1 << search.tries);
        Some(search.candidate)
    }

    /// A probe was sent.
    pub(crate) fn on_probe(&mut self, id: PacketId) {
        if let Some(search) = &mut self.search
            && let Some(probe) = search.probes.get_mut(usize::from(search.tries))
        {
            *probe = Some(id);
            search.tries += 1;
        }
    }

    /// A receipt came; what it tells of datagrams follows by [`Discovery::on_judged`].
    pub(crate) fn on_receipt(&mut self, receipt: &Receipt, now: Instant) {
        self.arrived = 0;
        if let Some(search) = &mut self.search
            && search.probes.iter().flatten().any(|probe| receipt.names(*probe))
        {
            search.fits = search.candidate;
            self.size = search.candidate;
            self.go_on(now);
        }
    }

    /// A datagram has arrived or is lost; of one receipt, those that have arrived come first.
    pub(crate) fn on_judged(&mut self, len: u16, arrived: bool) {
        if len <= BASE {
            return;
        }
        if arrived {
            self.arrived = self.arrived.max(len);
            if len >= self.least_missing {
                self.missing = 0;
            }
        } else if len > self.arrived && len <= self.size {
            self.least_missing = if self.missing == 0 { len } else { self.least_missing.min(len) };
            self.missing += 1;
            if self.missing == BLACK_HOLE {
                // A narrower way, or a burst of losses: what it is the search finds out, beginning with the largest.
                (self.missing, self.size) = (0, BASE);
                self.search = Some(Search::new(LEAST, self.full));
            }
        }
    }

    fn go_on(&mut self, now: Instant) {
        self.measured = true;
        if self.search.take_if(|search| !search.next()).is_some() {
            self.raise_at = (self.size < self.full + TRAILER).then_some(now + RAISE_AFTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: u16 = 1_444;
    const PATIENCE: Duration = Duration::from_millis(50);

    /// A path that drops what is larger than `limit`, and a clock.
    struct Link {
        discovery: Discovery,
        now: Instant,
        number: u64,
        probes: u32,
    }

    impl Link {
        fn new() -> Link {
            Link { discovery: Discovery::new(1_380, crate::tunnel::OVERHEAD), now: Instant::ZERO, number: 0, probes: 0 }
        }

        fn receipt(&self) -> Receipt {
            let largest = self.number - 1;
            Receipt {
                path: 0,
                session: 1,
                largest,
                delay_us: 0,
                received_us: 0,
                ranges: [(largest, largest)].into_iter().collect(),
            }
        }

        /// Sends what is due; `passes` says of each probe whether it arrives. Returns when nothing more is due within a
        /// minute, or panics if that never comes.
        fn settle(&mut self, mut passes: impl FnMut(u16) -> bool) {
            let begun = self.now;
            while let Some(due) = self.discovery.deadline(true).filter(|due| *due < begun + Duration::from_secs(60)) {
                self.now = self.now.max(due);
                let Some(size) = self.discovery.on_timeout(self.now, PATIENCE) else { continue };
                self.probes += 1;
                self.discovery.on_probe(PacketId { session: 1, number: self.number });
                self.number += 1;
                if passes(size) {
                    self.now += Duration::from_millis(20);
                    self.discovery.on_receipt(&self.receipt(), self.now);
                }
                assert!(self.probes < 1_000, "the search never ends");
            }
        }

        /// A receipt for data: lengths that arrived, and those that are lost.
        fn data(&mut self, arrived: &[u16], lost: &[u16]) {
            let foreign = Receipt { session: 9, ..self.receipt() };
            self.discovery.on_receipt(&foreign, self.now);
            arrived.iter().for_each(|&len| self.discovery.on_judged(len, true));
            lost.iter().for_each(|&len| self.discovery.on_judged(len, false));
        }
    }

    #[test]
    fn most_links_are_known_after_one_probe() {
        let mut link = Link::new();
        assert_eq!((link.discovery.size(), link.discovery.measured()), (BASE, None));
        link.settle(|_| true);
        assert_eq!((link.discovery.measured(), link.probes), (Some(MOST), 1));
        assert_eq!(link.discovery.deadline(true), None, "there is nothing more to find");
    }

    #[test]
    fn what_just_fits_full_packets_is_found_to_the_octet() {
        let mut link = Link::new();
        link.settle(|size| size <= 1_412);
        assert_eq!(link.discovery.size(), 1_412);
    }

    proptest! {
        #[test]
        fn the_search_finds_what_fits(limit in LEAST..1_500) {
            let mut link = Link::new();
            link.settle(|size| size <= limit);
            let found = link.discovery.measured().expect("a search that has ended");
            prop_assert!(found <= limit.min(MOST) && limit.min(MOST) - found < GRANULARITY, "{} of {}", found, limit);
            // Ten sizes at worst, each given 7 times 50 ms.
            prop_assert!(link.now < Instant::ZERO + Duration::from_secs(4), "it took until {:?}", link.now);
            prop_assert!(link.probes <= 30, "{} probes", link.probes);
        }
    }

    #[test]
    fn a_lost_probe_or_two_refute_no_size_and_a_late_answer_counts() {
        let mut link = Link::new();
        let mut sent = 0;
        link.settle(|_| {
            sent += 1;
            sent == 3
        });
        assert_eq!((link.discovery.size(), link.probes), (MOST, 3));
        let mut link = Link::new();
        for number in 0..2 {
            link.now += PATIENCE;
            assert_eq!(link.discovery.on_timeout(link.now, PATIENCE), Some(MOST));
            link.discovery.on_probe(PacketId { session: 1, number });
        }
        link.number = 1;
        link.discovery.on_receipt(&link.receipt(), link.now);
        assert_eq!(link.discovery.size(), MOST, "an answer to the first, after the second was sent");
    }

    #[test]
    fn a_narrower_link_is_tried_again_after_ten_minutes_of_use() {
        let mut link = Link::new();
        link.settle(|size| size <= 1_272);
        let again = link.discovery.deadline(true).expect("it is not the largest size");
        assert_eq!(again.since(link.now), RAISE_AFTER);
        assert_eq!(link.discovery.deadline(false), None, "idle: nothing depends on it");
        link.now = again;
        link.settle(|_| true);
        assert_eq!(link.discovery.size(), MOST);
    }

    #[test]
    fn a_link_that_narrows_is_seen_by_the_loss_of_what_no_longer_fits() {
        let mut link = Link::new();
        link.settle(|_| true);
        link.data(&[1_412; 8], &[1_412; 2]);
        assert_eq!(link.discovery.size(), MOST, "as large ones have arrived: loss like any other");
        link.data(&[100], &[1_412; 2]);
        link.data(&[1_250; 5], &[1_412]);
        assert_eq!(link.discovery.size(), BASE, "what is smaller refutes nothing");
        link.data(&[100], &[1_412; 50]);
        link.settle(|size| size <= 1_272);
        let found = link.discovery.size();
        assert!((1_264..=1_272).contains(&found), "{found}");
        link.data(&[100], &[1_412; 50]);
        assert_eq!(link.discovery.size(), found, "what was sent before it was known");
        link.data(&[100], &[1_000; 50]);
        assert_eq!(link.discovery.size(), found, "what BASE would not let pass either");
    }

    #[test]
    fn sparse_losses_among_arrivals_never_add_up() {
        let mut link = Link::new();
        link.settle(|_| true);
        for _ in 0..100 {
            link.data(&[100], &[1_412]);
            link.data(&[1_412], &[]);
            link.data(&[100], &[1_412]);
            link.data(&[1_412], &[1_412]);
        }
        assert_eq!(link.discovery.size(), MOST);
    }

    #[test]
    fn probes_sent_into_a_path_that_was_down_refute_nothing() {
        let mut link = Link::new();
        for number in 0..u64::from(MAX_PROBES) {
            assert_eq!(link.discovery.on_timeout(link.now, PATIENCE), Some(MOST));
            link.discovery.on_probe(PacketId { session: 1, number });
            link.now = link.discovery.deadline(true).expect("the search goes on");
        }
        link.discovery.on_up();
        link.number = 3;
        link.settle(|_| true);
        assert_eq!(link.discovery.size(), MOST);
    }
}
