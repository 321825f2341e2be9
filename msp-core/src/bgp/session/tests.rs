use super::*;
use proptest::prelude::{any, prop_assert, proptest};

fn config(local_as: u32, remote_as: u32, id: u8, hold_time: u16) -> Config {
    Config { local_as, router_id: Ipv4Addr::new(192, 0, 2, id), remote_as, hold_time }
}

fn left() -> Config {
    config(64500, 64501, 1, 9)
}

fn right() -> Config {
    config(64501, 64500, 2, 30)
}

fn at(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn actions(session: &mut Session) -> Vec<Action> {
    std::iter::from_fn(|| session.poll_action()).collect()
}

/// The NOTIFICATION among the actions.
fn notification(actions: &[Action]) -> Option<Notification> {
    actions.iter().find_map(|action| match action {
        Action::Send(bytes) if bytes[18] == Kind::Notification as u8 => {
            Some(Notification::decode(&bytes.slice(message::HEADER..)))
        }
        _ => None,
    })
}

/// A session that has just sent its OPEN.
fn opening(config: Config) -> Session {
    let mut session = Session::new(config, 1, at(0));
    session.start(at(0));
    assert_eq!(actions(&mut session), [Action::Connect]);
    session.connected(at(10));
    assert_eq!(actions(&mut session).len(), 1);
    assert_eq!(session.state().0, State::OpenSent);
    session
}

fn open_of(config: Config) -> Bytes {
    Open {
        asn: config.local_as,
        hold_time: config.hold_time,
        router_id: config.router_id,
        four_octet_as: true,
        route_refresh: true,
        families: Families::ALL,
    }
    .encode()
}

/// A session that is established since 20 ms.
fn established(ours: Config, theirs: Config) -> Session {
    let mut session = opening(ours);
    session.received(at(20), &open_of(theirs));
    assert_eq!(session.state().0, State::OpenConfirm);
    session.received(at(20), &message::keepalive());
    assert_eq!(session.state().0, State::Established);
    assert!(matches!(actions(&mut session)[..], [Action::Send(_), Action::Up(_)]));
    session
}

#[test]
fn the_lower_hold_time_counts_and_keepalives_come_at_a_third_of_it() {
    let mut session = established(left(), right());
    assert_eq!(session.negotiated().expect("established").hold_time, 9);
    let (due, timer) = session.poll_timeout().expect("a timer");
    assert_eq!(timer, Timer::Keepalive);
    let wait = due.since(at(20));
    assert!((Duration::from_millis(2250)..=Duration::from_secs(3)).contains(&wait), "{wait:?}");
    session.handle_timeout(due);
    assert_eq!(actions(&mut session), [Action::Send(message::keepalive())]);
    assert!(session.poll_timeout().expect("a timer").0 > due);
}

#[test]
fn an_update_of_ours_stands_for_a_keepalive() {
    let mut session = established(left(), right());
    let (due, _) = session.poll_timeout().expect("a timer");
    session.send_update(at(1500), message::keepalive());
    assert!(session.poll_timeout().expect("a timer").0 > due);
}

#[test]
fn silence_for_the_hold_time_ends_the_session_and_any_sign_of_life_restarts_it() {
    let mut session = established(left(), right());
    session.received(at(5_000), &message::keepalive());
    session.received(at(9_000), &[&[0xff; 16][..], &[0, 23, 2, 0, 0, 0, 0]].concat());
    while session.poll_timeout().expect("a timer").1 == Timer::Keepalive {
        let (due, _) = session.poll_timeout().expect("a timer");
        session.handle_timeout(due);
    }
    assert_eq!(session.poll_timeout(), Some((at(18_000), Timer::Hold)));
    actions(&mut session);
    session.handle_timeout(at(18_000));
    let last = actions(&mut session);
    assert_eq!(notification(&last), Some(Notification::new(4, 0)));
    assert!(matches!(&last[..], [Action::Send(_), Action::Close, Action::Down(Reason::Sent(_))]), "{last:?}");
}

#[test]
fn a_hold_time_of_zero_means_no_timers() {
    let session = established(config(64500, 64501, 1, 0), right());
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn whom_we_do_not_expect_is_told_so() {
    for (ours, theirs, code) in [
        (left(), config(64999, 64500, 2, 9), (2, 2)),
        // Within one AS, our own identifier.
        (config(64500, 64500, 1, 9), config(64500, 64500, 1, 9), (2, 3)),
    ] {
        let mut session = opening(ours);
        session.received(at(20), &open_of(theirs));
        let sent = notification(&actions(&mut session)).expect("a NOTIFICATION");
        assert_eq!((sent.code, sent.subcode), code);
        assert_eq!(session.state().0, State::Idle);
    }
    // Between two, the same identifier is no matter (RFC 6286).
    let mut session = opening(left());
    session.received(at(20), &open_of(config(64501, 64500, 1, 9)));
    assert_eq!(session.state().0, State::OpenConfirm);
}

#[test]
fn an_as_number_of_four_octets_is_believed_over_as_trans() {
    let mut session = opening(config(64500, 4_200_000_000, 1, 9));
    session.received(at(20), &open_of(config(4_200_000_000, 64500, 2, 9)));
    assert_eq!(session.state().0, State::OpenConfirm);
}

#[test]
fn messages_out_of_turn_are_refused_with_their_type() {
    let update = [&[0xff; 16][..], &[0, 23, 2, 0, 0, 0, 0]].concat();
    let refresh = [&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat();
    for (state, bytes, subcode, kind) in [
        (State::OpenSent, message::keepalive().to_vec(), 1, 4),
        (State::OpenSent, update.clone(), 1, 2),
        (State::OpenConfirm, update, 2, 2),
        (State::OpenConfirm, refresh, 2, 5),
        (State::Established, open_of(right()).to_vec(), 3, 1),
    ] {
        let mut session = match state {
            State::Established => established(left(), right()),
            _ => opening(left()),
        };
        if state == State::OpenConfirm {
            session.received(at(20), &open_of(right()));
        }
        actions(&mut session);
        session.received(at(30), &bytes);
        assert_eq!(notification(&actions(&mut session)), Some(Notification::with_data(5, subcode, &[kind])));
    }
}

#[test]
fn a_notification_is_not_answered_and_what_follows_it_is_not_read() {
    let mut session = established(left(), right());
    let bytes = [Notification::shutdown("tea").encode(), open_of(right())].concat();
    session.received(at(30), &bytes);
    let last = actions(&mut session);
    assert!(matches!(&last[..], [Action::Close, Action::Down(Reason::Received(_))]), "{last:?}");
    assert_eq!(
        session.last_error().expect("an error").to_string(),
        "ended by the neighbour: cease: administrative shutdown (6/2): \"tea\""
    );
}

#[test]
fn a_malformed_route_costs_the_route_and_not_the_session() {
    let mut session = established(left(), right());
    // ORIGIN 9, and 10.0.0.0/8.
    session.received(at(30), &[&[0xff; 16][..], &[0, 29, 2, 0, 0, 0, 4, 0x40, 1, 1, 9, 8, 10]].concat());
    assert_eq!(session.state().0, State::Established);
    assert_eq!(session.counters().treated_as_withdraw, 1);
    // A prefix of 33 bits: nobody knows where the next one begins.
    session.received(at(40), &[&[0xff; 16][..], &[0, 24, 2, 0, 0, 0, 0, 33]].concat());
    assert_eq!(notification(&actions(&mut session)).map(|sent| (sent.code, sent.subcode)), Some((3, 10)));
}

#[test]
fn a_refresh_is_passed_on() {
    let mut session = established(left(), right());
    session.received(at(30), &[&[0xff; 16][..], &[0, 23, 5, 0, 2, 0, 1]].concat());
    assert_eq!(actions(&mut session), [Action::Refresh(Family::Ipv6)]);
}

#[test]
fn stopping_says_why_and_stays_stopped() {
    let mut session = established(left(), right());
    session.stop(at(30), Notification::shutdown("bye"));
    let last = actions(&mut session);
    assert_eq!(notification(&last), Some(Notification::shutdown("bye")));
    assert!(matches!(last[1..], [Action::Close, Action::Down(Reason::Stopped(_))]));
    assert_eq!((session.state().0, session.poll_timeout()), (State::Idle, None));
    session.start(at(40));
    assert_eq!(actions(&mut session), [Action::Connect]);
}

#[test]
fn a_neighbour_that_reads_no_more_is_given_up() {
    let mut session = established(left(), right());
    session.written(at(30), true);
    session.send_update(at(1_000), message::keepalive());
    // It goes on talking; what it is told stays where it is.
    let mut now = at(1_000);
    let end = loop {
        now += Duration::from_secs(1);
        session.received(now, &message::keepalive());
        session.handle_timeout(now);
        if let Some(sent) = notification(&actions(&mut session)) {
            break sent;
        }
    };
    assert_eq!((end, now), (Notification::new(8, 0), at(481_000)));
}

#[test]
fn waits_grow_to_a_bound_and_start_again_after_a_session_that_lasted() {
    let mut session = Session::new(left(), 7, at(0));
    session.start(at(0));
    let mut now = at(0);
    let mut fail = |session: &mut Session, expected: u64| {
        session.connect_failed(now, "refused".into());
        assert_eq!(session.state().0, State::Active);
        let (due, timer) = session.poll_timeout().expect("a timer");
        assert_eq!(timer, Timer::ConnectRetry);
        let wait = due.since(now).as_secs_f64() / expected as f64;
        assert!((0.75..=1.0).contains(&wait), "{wait} of {expected} s");
        now = due;
        session.handle_timeout(now);
        assert_eq!(session.state().0, State::Connect);
        now
    };
    for expected in [1, 2, 4, 8, 15, 15, 15] {
        fail(&mut session, expected);
    }
    let up = fail(&mut session, 15);
    session.connected(up);
    session.received(up, &open_of(right()));
    session.received(up, &message::keepalive());
    let down = up + STABLE;
    session.closed(down, "reset".into());
    let (due, _) = session.poll_timeout().expect("a timer");
    assert!(due.since(down) <= RETRY_FIRST);
}

#[test]
fn a_connection_that_never_comes_is_given_up() {
    let mut session = Session::new(left(), 7, at(0));
    session.start(at(0));
    actions(&mut session);
    session.handle_timeout(at(10_000));
    assert_eq!(actions(&mut session), [Action::Close]);
    assert_eq!(session.state().0, State::Active);
    // One from the other side is welcome now.
    session.connected(at(10_100));
    assert_eq!(session.state().0, State::OpenSent);
}

/// Two sessions and the line between them, in virtual time: bytes are delayed and cut anywhere, and the line breaks.
/// The left one connects, the right one is connected to.
struct Pair {
    ends: [Session; 2],
    now: Instant,
    rng: StdRng,
    /// Bytes under way to each end: when they arrive, and on which line.
    wires: [VecDeque<(Instant, Bytes)>; 2],
    line: bool,
    up: [bool; 2],
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let ends = [Session::new(left(), seed, at(0)), Session::new(right(), !seed, at(0))];
        let rng = StdRng::seed_from_u64(seed);
        let mut pair = Pair { ends, now: at(0), rng, wires: Default::default(), line: false, up: [false; 2] };
        pair.ends.iter_mut().for_each(|end| end.start(at(0)));
        pair.act();
        pair
    }

    fn act(&mut self) {
        for side in [0, 1] {
            while let Some(action) = self.ends[side].poll_action() {
                match action {
                    Action::Connect if side == 1 => self.ends[1].connect_failed(self.now, "nobody listens".into()),
                    Action::Connect => {
                        if self.ends[1].state().0 == State::Active {
                            self.line = true;
                            self.wires = Default::default();
                            self.ends[1].connected(self.now);
                            self.ends[0].connected(self.now);
                            return self.act();
                        }
                        self.ends[0].connect_failed(self.now, "refused".into());
                    }
                    Action::Send(bytes) => self.send(1 - side, bytes),
                    Action::Close => self.cut(),
                    Action::Up(_) => self.up[side] = true,
                    Action::Down(_) => self.up[side] = false,
                    Action::Refresh(_) | Action::Update(_) => {}
                }
            }
            self.ends[side].written(self.now, true);
        }
    }

    fn send(&mut self, to: usize, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let piece = bytes.split_to(self.rng.random_range(1..=bytes.len()));
            let earliest = self.wires[to].back().map_or(self.now, |(at, _)| *at);
            let delay = Duration::from_micros(self.rng.random_range(0..200_000));
            self.wires[to].push_back((earliest.max(self.now) + delay, piece));
        }
    }

    /// The line breaks: what is under way is lost, and both ends learn of it.
    fn cut(&mut self) {
        if std::mem::take(&mut self.line) {
            self.wires = Default::default();
            for end in &mut self.ends {
                end.closed(self.now, "cut".into());
            }
            self.act();
        }
    }

    /// Goes on to the next thing that happens, but not beyond `until`.
    fn step(&mut self, until: Instant) -> bool {
        let arrivals = self.wires.iter().filter_map(|wire| wire.front().map(|(at, _)| *at));
        let deadlines = self.ends.iter().filter_map(|end| end.poll_timeout().map(|(at, _)| at));
        let Some(next) = arrivals.chain(deadlines).min().filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        for side in [0, 1] {
            while self.wires[side].front().is_some_and(|(at, _)| *at <= self.now) {
                if let Some((_, bytes)) = self.wires[side].pop_front() {
                    self.ends[side].received(self.now, &bytes);
                }
                self.act();
            }
        }
        for end in &mut self.ends {
            end.handle_timeout(self.now);
            assert!(end.poll_timeout().is_none_or(|(at, _)| at > self.now), "a deadline that does not move");
        }
        self.act();
        for (end, up) in self.ends.iter().zip(self.up) {
            assert_eq!(end.state().0 == State::Established, up, "Up and Down tell the state");
        }
        true
    }

    fn run(&mut self, for_: Duration) {
        let until = self.now + for_;
        while self.step(until) {}
    }
}

#[test]
fn two_sessions_find_each_other_stay_and_come_back_after_every_cut() {
    for seed in 0..50 {
        let mut pair = Pair::new(seed);
        for round in 0..6 {
            pair.run(Duration::from_secs(60));
            assert_eq!(pair.up, [true, true], "seed {seed}, round {round}");
            let before = pair.ends[0].counters().established;
            pair.run(Duration::from_secs(600));
            assert_eq!(pair.ends[0].counters().established, before, "seed {seed}: it is stable");
            let wait = Duration::from_millis(pair.rng.random_range(0..3000));
            pair.run(wait);
            pair.cut();
            assert_eq!(pair.up, [false, false]);
        }
    }
}

#[test]
fn two_sessions_survive_cuts_at_any_moment_of_their_opening() {
    for seed in 0..200 {
        let mut pair = Pair::new(seed);
        for _ in 0..20 {
            let wait = Duration::from_millis(pair.rng.random_range(0..1500));
            pair.run(wait);
            pair.cut();
        }
        pair.run(Duration::from_secs(60));
        assert_eq!(pair.up, [true, true], "seed {seed}");
    }
}

proptest! {
    /// No bytes and no order of events panic, and none leave a session that neither waits nor is stopped.
    #[test]
    fn any_bytes_in_any_state_are_survived(
        steps in proptest::collection::vec((0u8..8, proptest::collection::vec(any::<u8>(), 0..60), 0u64..20_000), 1..40),
    ) {
        let mut session = Session::new(left(), 3, at(0));
        session.start(at(0));
        let mut now = at(0);
        for (what, bytes, wait) in steps {
            now += Duration::from_millis(wait);
            match what {
                0 => session.connected(now),
                1 => session.closed(now, "closed".into()),
                2 => session.connect_failed(now, "refused".into()),
                3 => session.received(now, &open_of(right())),
                4 => session.received(now, &message::keepalive()),
                5 => session.received(now, &[&[0xff; 16][..], &[0, 19 + bytes.len() as u8, 2], &bytes].concat()),
                6 => session.received(now, &bytes),
                _ => session.written(now, bytes.is_empty()),
            }
            session.handle_timeout(now);
            actions(&mut session);
            prop_assert!(session.poll_timeout().is_some_and(|(at, _)| at > now));
        }
    }
}
