use super::*;
use std::collections::VecDeque;

const PACKET: u64 = 1280;

/// Of a path that carries nothing.
const IDLE: Load = Load {
    under_way: 0,
    oldest: Instant::NEVER,
    least_rtt: Duration::ZERO,
    latency: Duration::ZERO,
    queued: Duration::ZERO,
};

/// A path with a bottleneck of so many Mbit/s and a queue, which is offered more than it takes.
struct Path {
    room: Room,
    now: Instant,
    rtt: Duration,
    rate: u64,
    queue: Duration,
    /// When the bottleneck is free.
    free: Instant,
    /// When each packet that is under way arrives; `None`: it was lost.
    sent: VecDeque<Option<Instant>>,
    /// Acknowledgements that are under way: when they come, and what they say.
    receipts: VecDeque<(Instant, Progress)>,
    next_receipt: Instant,
    under_way: u64,
    /// When each packet was sent of which no receipt has told.
    open: VecDeque<Instant>,
    lost: u32,
    arrived: u64,
    longest_queue: Duration,
    /// What goes by it could go by another.
    shared: bool,
}

impl Path {
    fn new(rtt_ms: u64, mbit: u64, queue_ms: u64) -> Path {
        let mut room = Room::default();
        let now = Instant::from_nanos(60_000_000_000);
        room.begin_to_wait(now, IDLE);
        Path {
            room,
            now,
            rtt: Duration::from_millis(rtt_ms),
            rate: mbit * 125_000,
            queue: Duration::from_millis(queue_ms),
            free: now,
            sent: VecDeque::new(),
            receipts: VecDeque::new(),
            next_receipt: now,
            under_way: 0,
            open: VecDeque::new(),
            lost: 0,
            arrived: 0,
            longest_queue: Duration::ZERO,
            shared: false,
        }
    }

    fn load(&self) -> Load {
        let (oldest, queued) = (self.oldest(), Duration::ZERO);
        Load { under_way: self.under_way, oldest, least_rtt: self.rtt, latency: self.rtt / 2, queued }
    }

    fn oldest(&self) -> Instant {
        self.open.front().copied().unwrap_or(self.now)
    }

    /// Goes on for so long, always with something that waits. What arrived, in Mbit/s, the longest queue, and what was
    /// lost.
    fn run(&mut self, ms: u64) -> (f64, Duration, u32) {
        let end = self.now + Duration::from_millis(ms);
        (self.arrived, self.longest_queue, self.lost) = (0, Duration::ZERO, 0);
        while self.now < end {
            self.now += Duration::from_micros(100);
            self.step();
        }
        (self.arrived as f64 * 8.0 / (ms as f64 * 1000.0), self.longest_queue, self.lost)
    }

    fn step(&mut self) {
        self.room.on_timeout(self.now, self.load());
        while self.room.admits(self.now, self.load(), false) {
            let waits = self.free.max(self.now).since(self.now);
            self.longest_queue = self.longest_queue.max(waits.min(self.queue));
            self.under_way += PACKET;
            let lost = waits > self.queue;
            if !lost {
                self.free = self.free.max(self.now) + Duration::from_nanos(PACKET * 1_000_000_000 / self.rate);
            }
            self.lost += u32::from(lost);
            self.open.push_back(self.now);
            self.sent.push_back((!lost).then(|| self.free + self.rtt / 2));
            self.room.on_sent(self.now, self.load(), PACKET, false);
        }
        if self.now >= self.next_receipt {
            self.next_receipt = self.now + RECEIPT_INTERVAL;
            let (mut packets, mut lost, mut last) = (0, 0, None);
            while let Some(&arrival) = self.sent.front()
                && arrival.is_none_or(|arrival| arrival <= self.now)
            {
                match arrival {
                    Some(arrival) => (packets, last) = (packets + 1, Some(arrival)),
                    None => lost += 1,
                }
                self.sent.pop_front();
            }
            if let Some(last) = last {
                // What the newest has waited for is what was before it, a packet's own time apart.
                let queued = self.free.max(self.now).since(self.now);
                let progress = Progress {
                    octets: u64::from(packets) * PACKET,
                    packets,
                    lost,
                    lost_octets: u64::from(lost) * PACKET,
                    under_way: 0,
                    oldest: self.now,
                    received_us: (last.as_nanos() / 1000) as u32,
                    queued,
                    least_rtt: self.rtt,
                };
                self.receipts.push_back((self.now + self.rtt / 2, progress));
            }
        }
        while let Some((_, mut progress)) = self.receipts.pop_front_if(|(at, _)| *at <= self.now) {
            self.under_way -= progress.octets + progress.lost_octets;
            (progress.under_way, progress.oldest) = (self.under_way, self.oldest());
            self.open.drain(..(progress.packets + progress.lost) as usize);
            self.arrived += progress.octets;
            self.room.on_progress(self.now, &progress, true, self.shared);
        }
    }
}

#[test]
fn a_path_that_a_call_has_used_gets_no_more_at_once_than_a_new_one() {
    let at = |ms: u64| Instant::from_nanos((60_000 + ms) * 1_000_000);
    let load = |under_way| Load { under_way, least_rtt: Duration::from_millis(60), ..IDLE };
    for calls in [0, 100, 3_000] {
        let mut room = Room::default();
        for call in 0..calls {
            room.on_sent(at(call * 10), load(1_000), 200, true);
        }
        let (now, mut under_way) = (calls * 10 + 10, 1_000);
        let mut go = |now: u64| {
            while room.admits(at(now), load(under_way), false) {
                room.on_sent(at(now), load(under_way), PACKET, false);
                under_way += PACKET;
            }
            under_way
        };
        let first = go(now);
        assert!(
            (FIRST_WINDOW..FIRST_WINDOW + 2 * PACKET).contains(&first),
            "{first} octets, {calls} packets of a call before"
        );
        // From then on 10 Mbit/s.
        let more = (now..now + 40).map(go).last().unwrap_or_default() - FIRST_WINDOW;
        assert!((48_000..52_000).contains(&more), "{more} octets in 40 ms");
    }
}

#[test]
fn a_path_without_a_bottleneck_is_not_held_and_carries_a_hundred_times_as_much_soon() {
    for rtt in [2, 20, 150] {
        let mut path = Path::new(rtt, 100_000, 50);
        path.run(10 * (rtt + 8));
        let (rate, _, lost) = path.run(200);
        assert!(rate > 500.0 && lost == 0, "RTT {rtt} ms: {rate} Mbit/s, {lost} lost");
        assert_eq!(path.room.rate(), None);
    }
}

#[test]
fn the_first_packets_fill_no_queue_of_a_slow_link() {
    for rtt in [5, 20, 60, 150] {
        let (_, queue, lost) = Path::new(rtt, 10, 100).run(3000);
        assert!(queue <= Duration::from_millis(70) && lost == 0, "RTT {rtt} ms: {queue:?}, {lost} lost");
    }
}

#[test]
fn the_rate_of_a_bottleneck_is_found_and_its_queue_kept_short() {
    for (rtt, mbit) in [(5, 5), (20, 10), (20, 100), (60, 40), (150, 20)] {
        let mut path = Path::new(rtt, mbit, 200);
        path.run(3000);
        let (rate, queue, lost) = path.run(10_000);
        assert!(rate >= 0.9 * mbit as f64 && lost == 0, "RTT {rtt} ms, {mbit}: {rate} Mbit/s, {lost} lost");
        assert!(queue <= Duration::from_millis(45), "RTT {rtt} ms, {mbit}: {queue:?}");
    }
}

#[test]
fn a_rate_that_falls_or_rises_is_followed() {
    for shared in [false, true] {
        let mut path = Path { shared, ..Path::new(20, 40, 500) };
        path.run(3000);
        path.rate = 5 * 125_000;
        path.run(1000);
        let (rate, queue, _) = path.run(3000);
        assert!(rate >= 4.5 && queue <= Duration::from_millis(60), "{shared}: {rate} Mbit/s, {queue:?}");
        path.rate = 40 * 125_000;
        path.run(4000);
        let (rate, queue, _) = path.run(3000);
        assert!(rate >= 36.0 && queue <= Duration::from_millis(45), "{shared}: {rate} Mbit/s, {queue:?}");
    }
}

/// What is urgent finds a long queue only while a path is asked for more.
#[test]
fn a_path_that_had_no_more_is_asked_for_it_seldom() {
    let mut path = Path::new(20, 40, 200);
    path.run(3000);
    let long = (0..1000).filter(|_| path.run(10).1 > Duration::from_millis(8)).count();
    assert!(long <= 250, "{long} of 1000 times");
}

/// A third of a bandwidth-delay product.
#[test]
fn a_path_of_a_bond_is_used_whole_and_asks_for_no_more_than_a_short_queue_holds() {
    for (rtt, mbit) in [(20, 50), (20, 100), (60, 50), (80, 20)] {
        let mut path = Path { shared: true, ..Path::new(rtt, mbit, rtt / 3) };
        path.run(3000);
        let (rate, queue, lost) = path.run(10_000);
        assert!(rate >= 0.97 * mbit as f64 && lost == 0, "RTT {rtt} ms, {mbit}: {rate} Mbit/s, {queue:?}, {lost} lost");
    }
}

#[test]
fn a_rate_that_seemed_to_be_next_to_nothing_is_found_again() {
    let mut path = Path::new(20, 10, 100);
    path.run(2000);
    path.room.hold([1; ROUNDS], DRAIN, path.rtt);
    path.run(2000);
    let (rate, _, _) = path.run(1000);
    assert!(rate >= 9.0, "{rate} Mbit/s");
}

#[test]
fn a_given_rate_is_kept_from_the_first_packet_and_fills_no_queue() {
    for (rtt, mbit) in [(5, 5), (20, 10), (20, 100), (60, 40), (150, 20)] {
        let mut path = Path::new(rtt, mbit, 200);
        path.room.give(Some(path.rate));
        let (rate, queue, lost) = path.run(10_000);
        // What is still under way at the end is not counted.
        let all = mbit as f64 * (1.0 - (rtt + 8) as f64 / 10_000.0);
        assert!(rate >= 0.998 * all && lost == 0, "RTT {rtt} ms, {mbit}: {rate} Mbit/s, {lost} lost");
        let ahead = AHEAD + BURST + Duration::from_nanos(PACKET * 1_000_000_000 / path.rate);
        assert!(queue <= ahead, "RTT {rtt} ms, {mbit}: {queue:?}");
        assert!(!path.room.is_held());
    }
}

#[test]
fn a_given_rate_that_the_link_has_not_is_not_believed_until_it_has_it() {
    let mut path = Path::new(20, 6, 200);
    path.room.give(Some(10 * 125_000));
    path.run(1000);
    let (rate, queue, lost) = path.run(5000);
    assert!(rate >= 5.4 && lost == 0, "{rate} Mbit/s, {lost} lost");
    assert!(queue <= Duration::from_millis(45), "{queue:?}");
    path.rate = 20 * 125_000;
    path.run(2000);
    let (rate, queue, _) = path.run(3000);
    assert!((9.9..10.1).contains(&rate) && queue <= Duration::from_millis(3), "{rate} Mbit/s, {queue:?}");
    assert!(!path.room.is_held());
}

#[test]
fn what_is_urgent_waits_at_a_given_rate_only_for_its_like_and_leaves_something_to_the_rest() {
    let (mut room, rate) = (Room::default(), 1_250_000);
    room.give(Some(rate));
    let load = IDLE;
    let mut now = Instant::from_nanos(60_000_000_000);
    let (mut urgent, mut rest) = (0, 0);
    while now < Instant::from_nanos(70_000_000_000) {
        now += Duration::from_micros(100);
        while room.admits(now, load, true) {
            room.on_sent(now, load, PACKET, true);
            urgent += PACKET;
        }
        if room.admits(now, load, false) {
            room.on_sent(now, load, PACKET, false);
            rest += PACKET;
        }
    }
    let (parts, ahead) = (12_500_000 / 16, 12_500 + 2 * PACKET);
    assert!((15 * parts..15 * parts + ahead).contains(&urgent), "{urgent}");
    assert!((parts - ahead..=parts).contains(&rest), "{rest}");
}

#[test]
fn a_path_that_falls_silent_is_tried_again_with_little() {
    let mut path = Path::new(20, 100, 50);
    path.run(1000);
    // Nothing comes back any more.
    let load = Load { under_way: MOST_WINDOW * 2, ..path.load() };
    assert!(!path.room.admits(path.now, load, true));
    let ready = path.room.ready_at(path.now, load, false);
    assert_eq!(ready.since(path.room.progress), SILENCE);
    path.room.on_timeout(ready, load);
    assert!(path.room.admits(ready, load, false));
    let more = Load { under_way: load.under_way + FIRST_WINDOW, ..load };
    assert!(!path.room.admits(ready, more, false), "a first window, and no more until a receipt comes");
}

#[test]
fn a_path_that_has_room_again_is_not_held() {
    let mut path = Path::new(20, 10, 100);
    path.run(2000);
    assert!(path.room.rate().is_some());
    let mut progress = path.receipts.back().expect("it is busy").1;
    for _ in 0..200 {
        path.now += RECEIPT_INTERVAL;
        progress.oldest = path.now;
        progress.received_us = progress.received_us.wrapping_add(8000);
        path.room.on_progress(path.now, &progress, false, false);
    }
    assert_eq!(path.room.rate(), None);
}

/// A receipt each 8 ms for what arrives at so many octets a second, with the last packet so late.
fn receipts(growth: &mut Growth, at_us: &mut u32, rate: u64, delays_ms: impl IntoIterator<Item = u64>) {
    for delay in delays_ms {
        *at_us += 8_000;
        growth.extend(&told(rate * 8 / 1000, *at_us, delay), QUEUE);
    }
}

fn told(octets: u64, received_us: u32, queued_ms: u64) -> Progress {
    Progress {
        octets,
        packets: (octets / PACKET) as u32,
        lost: 0,
        lost_octets: 0,
        under_way: 100_000,
        oldest: Instant::ZERO,
        received_us,
        queued: Duration::from_millis(queued_ms),
        least_rtt: Duration::from_millis(20),
    }
}

#[test]
fn a_queue_grows_at_the_rate_at_which_things_arrive_and_a_way_while_next_to_nothing_does() {
    let rate = 625_000;
    let (mut growth, mut at_us) = (Growth::default(), 0);
    receipts(&mut growth, &mut at_us, rate, (0..20).map(|n| n * 7));
    assert!(!growth.is_of_the_way(rate), "a link of 5 Mbit/s that is offered more: {growth:?}");

    let (mut growth, mut at_us) = (Growth::default(), 0);
    receipts(&mut growth, &mut at_us, rate, [0; 20]);
    at_us += 150_000;
    receipts(&mut growth, &mut at_us, rate, [150; 20]);
    assert!(growth.is_of_the_way(rate), "{growth:?}");
    // And then there is a queue as well.
    growth.begin_anew(Duration::from_millis(150));
    receipts(&mut growth, &mut at_us, rate, (150..200).step_by(7));
    assert!(!growth.is_of_the_way(rate), "{growth:?}");
}

#[test]
fn what_so_little_under_way_cannot_explain_is_the_way() {
    let mut room = Room::default();
    for n in 0..100 {
        let queued = if n < 50 { 0 } else { 250 };
        let question = Progress { under_way: 80, ..told(80, n * 200_000, queued) };
        room.on_progress(Instant::ZERO, &question, false, false);
    }
    assert!(room.base >= Duration::from_millis(240), "{room:?}");
}
