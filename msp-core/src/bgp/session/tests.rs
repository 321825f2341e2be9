use super::*;
use crate::bgp::message::{self, HEADER, Kind};
use crate::bgp::open::Open;
use proptest::prelude::{any, prop_assert, proptest};

fn config(local_as: u32, remote_as: u32, id: u8, hold_time: u16) -> Config {
    Config {
        local_as,
        router_id: Ipv4Addr::new(192, 0, 2, id),
        remote_as,
        hold_time,
        passive: false,
        role: None,
        strict_role: false,
        add_path: false,
        extended_next_hop: false,
    }
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
        Action::Send(_, bytes) if bytes[18] == Kind::Notification as u8 => {
            Some(Notification::decode(&bytes.slice(HEADER..)))
        }
        _ => None,
    })
}

/// A session that has just sent its OPEN.
fn opening(config: Config) -> Session {
    let mut session = Session::new(config, 1, at(0));
    session.start(at(0));
    assert_eq!(actions(&mut session), [Action::Connect]);
    session.connected(at(10), Way::Out);
    assert!(matches!(actions(&mut session)[..], [Action::Take(Way::Out), Action::Send(Way::Out, _)]));
    assert_eq!(session.state().0, State::OpenSent);
    session
}

fn open_of(config: Config) -> Bytes {
    Open {
        asn: config.local_as,
        hold_time: config.hold_time,
        router_id: config.router_id,
        capabilities: config.capabilities(),
    }
    .encode()
}

/// A session that is established since 20 ms.
fn established(ours: Config, theirs: Config) -> Session {
    let mut session = opening(ours);
    session.received(at(20), Way::Out, &open_of(theirs));
    assert_eq!(session.state().0, State::OpenConfirm);
    session.received(at(20), Way::Out, &message::keepalive());
    assert_eq!(session.state().0, State::Established);
    assert!(matches!(actions(&mut session)[..], [Action::Send(Way::Out, _), Action::Up(Way::Out, _)]));
    session
}

#[test]
fn the_lower_hold_time_counts_and_keepalives_come_at_a_third_of_it() {
    let mut session = established(left(), right());
    assert_eq!(session.negotiated().expect("established").hold_time, 9);
    let due = session.poll_timeout().expect("a timer");
    let wait = due.since(at(20));
    assert!((Duration::from_millis(2250)..=Duration::from_secs(3)).contains(&wait), "{wait:?}");
    session.handle_timeout(due);
    assert_eq!(actions(&mut session), [Action::Send(Way::Out, message::keepalive())]);
    assert!(session.poll_timeout().expect("a timer") > due);
}

#[test]
fn an_update_of_ours_stands_for_a_keepalive() {
    let mut session = established(left(), right());
    let due = session.poll_timeout().expect("a timer");
    session.send(at(1500), message::keepalive());
    assert!(session.poll_timeout().expect("a timer") > due);
}

#[test]
fn silence_for_the_hold_time_ends_the_session_and_any_sign_of_life_restarts_it() {
    let mut session = established(left(), right());
    session.received(at(5_000), Way::Out, &message::keepalive());
    session.received(at(9_000), Way::Out, &[&[0xff; 16][..], &[0, 23, 2, 0, 0, 0, 0]].concat());
    actions(&mut session);
    let (end, last) = loop {
        let due = session.poll_timeout().expect("a timer");
        session.handle_timeout(due);
        let last = actions(&mut session);
        if session.state().0 != State::Established {
            break (due, last);
        }
        assert_eq!(last, [Action::Send(Way::Out, message::keepalive())]);
    };
    assert_eq!(end, at(18_000));
    assert_eq!(notification(&last), Some(Notification::new(4, 0)));
    assert!(
        matches!(&last[..], [Action::Send(..), Action::Close(Way::Out), Action::Down { reason: Reason::Sent(_), .. }]),
        "{last:?}"
    );
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
        session.received(at(20), Way::Out, &open_of(theirs));
        let sent = notification(&actions(&mut session)).expect("a NOTIFICATION");
        assert_eq!((sent.code, sent.subcode), code);
        assert_eq!(session.state().0, State::Idle);
    }
    // Between two, the same identifier is no matter (RFC 6286).
    let mut session = opening(left());
    session.received(at(20), Way::Out, &open_of(config(64501, 64500, 1, 9)));
    assert_eq!(session.state().0, State::OpenConfirm);
}

#[test]
fn an_as_number_of_four_octets_is_believed_over_as_trans() {
    let mut session = opening(config(64500, 4_200_000_000, 1, 9));
    session.received(at(20), Way::Out, &open_of(config(4_200_000_000, 64500, 2, 9)));
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
            session.received(at(20), Way::Out, &open_of(right()));
        }
        actions(&mut session);
        session.received(at(30), Way::Out, &bytes);
        assert_eq!(notification(&actions(&mut session)), Some(Notification::with_data(5, subcode, &[kind])));
    }
}

#[test]
fn a_notification_is_not_answered_and_what_follows_it_is_not_read() {
    let mut session = established(left(), right());
    let bytes = [Notification::shutdown("tea").encode(), open_of(right())].concat();
    session.received(at(30), Way::Out, &bytes);
    let last = actions(&mut session);
    assert!(
        matches!(&last[..], [Action::Close(Way::Out), Action::Down { reason: Reason::Received(_), .. }]),
        "{last:?}"
    );
    assert_eq!(
        session.last_error().expect("an error").to_string(),
        "ended by the neighbour: cease: administrative shutdown (6/2): \"tea\""
    );
}

#[test]
fn a_malformed_route_costs_the_route_and_not_the_session() {
    let mut session = established(left(), right());
    // ORIGIN 9, and 10.0.0.0/8.
    session.received(at(30), Way::Out, &[&[0xff; 16][..], &[0, 29, 2, 0, 0, 0, 4, 0x40, 1, 1, 9, 8, 10]].concat());
    assert_eq!(session.state().0, State::Established);
    assert_eq!(session.counters().treated_as_withdraw, 1);
    // A prefix of 33 bits: nobody knows where the next one begins.
    session.received(at(40), Way::Out, &[&[0xff; 16][..], &[0, 24, 2, 0, 0, 0, 0, 33]].concat());
    assert_eq!(notification(&actions(&mut session)).map(|sent| (sent.code, sent.subcode)), Some((3, 10)));
}

#[test]
fn a_refresh_is_passed_on() {
    let mut session = established(left(), right());
    session.received(at(30), Way::Out, &[&[0xff; 16][..], &[0, 23, 5, 0, 2, 0, 1]].concat());
    assert_eq!(actions(&mut session), [Action::Refresh(Family::Ipv6)]);
}

#[test]
fn stopping_says_why_and_stays_stopped() {
    let mut session = established(left(), right());
    session.stop(at(30), Notification::shutdown("bye"));
    let last = actions(&mut session);
    assert_eq!(notification(&last), Some(Notification::shutdown("bye")));
    assert!(matches!(last[1..], [Action::Close(Way::Out), Action::Down { reason: Reason::Stopped(_), .. }]));
    assert_eq!((session.state().0, session.poll_timeout()), (State::Idle, None));
    session.start(at(40));
    assert_eq!(actions(&mut session), [Action::Connect]);
}

#[test]
fn a_neighbour_that_reads_no_more_is_given_up() {
    let mut session = established(left(), right());
    session.written(at(30), Way::Out, true);
    session.send(at(1_000), message::keepalive());
    // It goes on talking; what it is told stays where it is.
    let mut now = at(1_000);
    let end = loop {
        now += Duration::from_secs(1);
        session.received(now, Way::Out, &message::keepalive());
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
        let due = session.poll_timeout().expect("a timer");
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
    session.connected(up, Way::Out);
    session.received(up, Way::Out, &open_of(right()));
    session.received(up, Way::Out, &message::keepalive());
    let down = up + STABLE;
    session.closed(down, Way::Out, "reset".into());
    let due = session.poll_timeout().expect("a timer");
    assert!(due.since(down) <= RETRY_FIRST);
}

#[test]
fn a_connection_that_never_comes_is_given_up() {
    let mut session = Session::new(left(), 7, at(0));
    session.start(at(0));
    actions(&mut session);
    session.handle_timeout(at(10_000));
    assert_eq!(actions(&mut session), [Action::Close(Way::Out)]);
    assert_eq!(session.state().0, State::Active);
    // One from the other side is welcome now.
    session.connected(at(10_100), Way::In);
    assert_eq!(session.state().0, State::OpenSent);
}

/// Two sessions and the lines between them, in virtual time: bytes are delayed and cut anywhere, and the lines break.
struct Pair {
    ends: [Session; 2],
    now: Instant,
    rng: StdRng,
    /// SYNs under way: who sent them, and when they arrive.
    calls: VecDeque<(Instant, usize)>,
    /// Bytes under way to each end, by who opened the line: when they arrive.
    wires: [[VecDeque<(Instant, Bytes)>; 2]; 2],
    /// Lines that there are, by who opened them.
    lines: [bool; 2],
    up: [bool; 2],
}

/// The way of a line at this end.
fn way(end: usize, opener: usize) -> Way {
    if end == opener { Way::Out } else { Way::In }
}

impl Pair {
    /// The right end waits for the left one, or both call.
    fn new(seed: u64, both: bool) -> Pair {
        let right = Config { passive: !both, ..right() };
        let ends = [Session::new(left(), seed, at(0)), Session::new(right, !seed, at(0))];
        let rng = StdRng::seed_from_u64(seed);
        let mut pair = Pair {
            ends,
            now: at(0),
            rng,
            calls: VecDeque::new(),
            wires: Default::default(),
            lines: [false; 2],
            up: [false; 2],
        };
        pair.ends.iter_mut().for_each(|end| end.start(at(0)));
        pair.act();
        pair
    }

    fn act(&mut self) {
        for end in [0, 1] {
            while let Some(action) = self.ends[end].poll_action() {
                let opener = |way| if way == Way::Out { end } else { 1 - end };
                match action {
                    Action::Connect => {
                        let delay = Duration::from_micros(self.rng.random_range(0..200_000));
                        self.calls.push_back((self.now + delay, end));
                    }
                    Action::Send(way, bytes) => self.send(1 - end, opener(way), bytes),
                    Action::Close(way) => self.close(end, opener(way)),
                    Action::Up(..) => self.up[end] = true,
                    Action::Down { .. } => self.up[end] = false,
                    Action::Take(_) | Action::Refresh(_) | Action::Update(_) | Action::Stale(_) | Action::Sweep(_) => {}
                }
            }
            for way in Way::BOTH {
                self.ends[end].written(self.now, way, true);
            }
        }
    }

    fn send(&mut self, to: usize, opener: usize, mut bytes: Bytes) {
        while self.lines[opener] && !bytes.is_empty() {
            let piece = bytes.split_to(self.rng.random_range(1..=bytes.len()));
            let wire = &mut self.wires[to][opener];
            let earliest = wire.back().map_or(self.now, |(at, _)| *at);
            let delay = Duration::from_micros(self.rng.random_range(0..200_000));
            wire.push_back((earliest.max(self.now) + delay, piece));
        }
    }

    /// An end closes a line: the other learns of it after what is under way.
    fn close(&mut self, end: usize, opener: usize) {
        self.calls.retain(|&(_, caller)| caller != end || opener != end);
        if std::mem::take(&mut self.lines[opener]) {
            let rest: Vec<Bytes> = self.wires[1 - end][opener].drain(..).map(|(_, bytes)| bytes).collect();
            self.wires[end][opener].clear();
            for bytes in rest {
                self.ends[1 - end].received(self.now, way(1 - end, opener), &bytes);
            }
            self.ends[1 - end].closed(self.now, way(1 - end, opener), "closed".into());
        }
    }

    /// The lines break: what is under way is lost, and both ends learn of it.
    fn cut(&mut self) {
        self.wires = Default::default();
        for opener in [0, 1] {
            if std::mem::take(&mut self.lines[opener]) {
                for end in [0, 1] {
                    self.ends[end].closed(self.now, way(end, opener), "cut".into());
                }
            }
        }
        self.act();
    }

    /// A SYN has arrived.
    fn call(&mut self, caller: usize) {
        let callee = 1 - caller;
        let listens = matches!(self.ends[callee].state().0, State::Idle | State::Established);
        if listens {
            return self.ends[caller].connect_failed(self.now, "refused".into());
        }
        self.lines[caller] = true;
        self.ends[callee].connected(self.now, Way::In);
        self.ends[caller].connected(self.now, Way::Out);
    }

    /// Goes on to the next thing that happens, but not beyond `until`.
    fn step(&mut self, until: Instant) -> bool {
        let arrivals = self.wires.iter().flatten().filter_map(|wire| wire.front().map(|(at, _)| *at));
        let calls = self.calls.iter().map(|(at, _)| *at);
        let deadlines = self.ends.iter().filter_map(Session::poll_timeout);
        let Some(next) = arrivals.chain(calls).chain(deadlines).min().filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while let Some(index) = self.calls.iter().position(|(at, _)| *at <= self.now) {
            if let Some((_, caller)) = self.calls.remove(index) {
                self.call(caller);
            }
            self.act();
        }
        for (end, opener) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            while self.wires[end][opener].front().is_some_and(|(at, _)| *at <= self.now) {
                if let Some((_, bytes)) = self.wires[end][opener].pop_front() {
                    self.ends[end].received(self.now, way(end, opener), &bytes);
                }
                self.act();
            }
        }
        for end in &mut self.ends {
            end.handle_timeout(self.now);
            assert!(end.poll_timeout().is_none_or(|at| at > self.now), "a deadline that does not move");
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
        let mut pair = Pair::new(seed, seed % 2 == 0);
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
        let mut pair = Pair::new(seed, seed % 2 == 0);
        for _ in 0..20 {
            let wait = Duration::from_millis(pair.rng.random_range(0..1500));
            pair.run(wait);
            pair.cut();
        }
        pair.run(Duration::from_secs(60));
        assert_eq!(pair.up, [true, true], "seed {seed}");
        assert_eq!(pair.lines.iter().filter(|line| **line).count(), 1, "seed {seed}: one connection is left");
    }
}

/// A session with one connection of each way, whose neighbour has sent its OPEN on both.
fn collided(ours: Config, theirs: Config) -> (Session, Vec<Action>) {
    let mut session = opening(ours);
    session.connected(at(15), Way::In);
    session.received(at(20), Way::Out, &open_of(theirs));
    actions(&mut session);
    session.received(at(20), Way::In, &open_of(theirs));
    let then = actions(&mut session);
    (session, then)
}

/// RFC 4271, section 6.8; RFC 6286, section 2.3.
#[test]
fn of_two_connections_the_one_of_the_higher_identifier_stays() {
    for (ours, theirs, goes) in [
        (config(64500, 64501, 1, 9), config(64501, 64500, 2, 9), Way::Out),
        (config(64500, 64501, 3, 9), config(64501, 64500, 2, 9), Way::In),
        // Equal identifiers: the higher AS number.
        (config(64500, 64501, 2, 9), config(64501, 64500, 2, 9), Way::Out),
        (config(64502, 64501, 2, 9), config(64501, 64502, 2, 9), Way::In),
    ] {
        let (mut session, then) = collided(ours, theirs);
        assert_eq!(notification(&then), Some(Notification::new(6, 7)), "{then:?}");
        assert_eq!(then.last(), Some(&Action::Close(goes)));
        session.received(at(30), goes.other(), &message::keepalive());
        assert_eq!(session.state().0, State::Established);
    }
}

#[test]
fn an_established_session_takes_no_second_connection() {
    let mut session = established(left(), right());
    session.connected(at(100), Way::In);
    assert_eq!(actions(&mut session), []);
    // Nor one that had come before, and says its OPEN late.
    let mut session = opening(left());
    session.connected(at(15), Way::In);
    session.received(at(20), Way::Out, &[open_of(right()), message::keepalive()].concat());
    let then = actions(&mut session);
    assert!(then.contains(&Action::Close(Way::In)) && !then.contains(&Action::Close(Way::Out)), "{then:?}");
}

#[test]
fn a_passive_session_waits_to_be_called() {
    let mut session = Session::new(Config { passive: true, ..left() }, 1, at(0));
    session.start(at(0));
    assert_eq!((actions(&mut session), session.poll_timeout()), (vec![], None));
    session.connected(at(10), Way::In);
    session.received(at(20), Way::In, &[open_of(right()), message::keepalive()].concat());
    assert_eq!(session.state().0, State::Established);
    session.closed(at(30), Way::In, "gone".into());
    session.handle_timeout(at(60_000));
    assert!(!actions(&mut session).contains(&Action::Connect));
    session.connected(at(60_010), Way::In);
    assert_eq!(session.state().0, State::OpenSent);
}

/// RFC 9234, section 4.2.
#[test]
fn a_role_that_does_not_fit_is_refused() {
    let with = |role, config| Config { role, ..config };
    for (ours, strict, theirs, fits) in [
        (Some(Role::Customer), false, Some(Role::Provider), true),
        (Some(Role::Customer), false, Some(Role::Peer), false),
        (Some(Role::Peer), false, Some(Role::Peer), true),
        (Some(Role::Customer), false, None, true),
        (Some(Role::Customer), true, None, false),
        (None, false, Some(Role::Peer), true),
    ] {
        let mut session = opening(Config { strict_role: strict, ..with(ours, left()) });
        session.received(at(20), Way::Out, &open_of(with(theirs, right())));
        let refused = notification(&actions(&mut session));
        assert_eq!(refused, (!fits).then(|| Notification::new(2, 11)), "{ours:?} {theirs:?}");
    }
}

/// A neighbour that keeps IPv4 and IPv6 for 60 s, and whether it went on forwarding them.
fn restarting(forwarding: Families) -> Bytes {
    let restart = GracefulRestart { restarted: false, time: 60, families: Families::ALL, forwarding };
    let capabilities = Capabilities { graceful_restart: Some(restart), ..right().capabilities() };
    Open { asn: 64501, hold_time: 30, router_id: right().router_id, capabilities }.encode()
}

fn end_of_rib(family: Family) -> Vec<u8> {
    match family {
        Family::Ipv4 => [&[0xff; 16][..], &[0, 23, 2, 0, 0, 0, 0]].concat(),
        Family::Ipv6 => [&[0xff; 16][..], &[0, 29, 2, 0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1]].concat(),
    }
}

/// A session that was lost at 1 s, and what became of it.
fn lost(opening: &Bytes) -> (Session, Vec<Action>) {
    let mut session = self::opening(left());
    session.received(at(20), Way::Out, &[opening, &message::keepalive()[..]].concat());
    actions(&mut session);
    session.closed(at(1_000), Way::Out, "reset".into());
    let then = actions(&mut session);
    (session, then)
}

/// RFC 4724, section 4.2: the routes stay until the neighbour is back and has said all.
#[test]
fn a_neighbour_that_restarts_gracefully_keeps_its_routes() {
    let (mut session, then) = lost(&restarting(Families::NONE));
    assert!(matches!(then[..], [Action::Close(Way::Out), Action::Down { keep: Families::ALL, .. }]), "{then:?}");
    session.connected(at(2_000), Way::In);
    session.received(at(2_000), Way::In, &restarting(Families::NONE.with(Family::Ipv6)));
    session.received(at(2_000), Way::In, &message::keepalive());
    let then = actions(&mut session);
    // It did not go on forwarding IPv4.
    assert!(matches!(then[..], [.., Action::Up(Way::In, _), Action::Sweep(Family::Ipv4)]), "{then:?}");
    session.received(at(3_000), Way::In, &end_of_rib(Family::Ipv6));
    let then = actions(&mut session);
    assert!(matches!(then[..], [Action::Update(_), Action::Sweep(Family::Ipv6)]), "{then:?}");
}

#[test]
fn routes_of_a_neighbour_that_does_not_come_back_in_time_go() {
    let (mut session, _) = lost(&restarting(Families::ALL));
    let mut swept = None;
    while swept.is_none() {
        let due = session.poll_timeout().expect("a timer");
        session.handle_timeout(due);
        session.connect_failed(due, "refused".into());
        swept = actions(&mut session).contains(&Action::Sweep(Family::Ipv4)).then_some(due);
    }
    assert_eq!(swept, Some(at(61_000)));
    // And of one that said farewell, or keeps nothing, at once.
    let mut session = established(left(), right());
    session.received(at(30), Way::Out, &Notification::shutdown("bye").encode());
    let down = actions(&mut session).pop();
    assert!(matches!(down, Some(Action::Down { keep: Families::NONE, .. })), "{down:?}");
}

/// RFC 4724, section 5: a new connection of who restarted, while the old one seems to be there still.
#[test]
fn a_neighbour_that_restarted_unnoticed_is_taken_back() {
    let mut session = opening(left());
    session.received(at(20), Way::Out, &[&restarting(Families::ALL), &message::keepalive()[..]].concat());
    actions(&mut session);
    session.connected(at(5_000), Way::In);
    let then = actions(&mut session);
    assert!(
        matches!(
            then[..],
            [
                Action::Close(Way::Out),
                Action::Down { keep: Families::ALL, .. },
                Action::Take(Way::In),
                Action::Send(..)
            ]
        ),
        "{then:?}"
    );
}

/// RFC 7313, section 4.
#[test]
fn what_is_not_said_between_the_marks_of_a_refresh_is_swept() {
    let mut session = established(left(), right());
    for (mark, expected) in [
        (Refresh::Begin(Family::Ipv6), Action::Stale(Family::Ipv6)),
        (Refresh::End(Family::Ipv6), Action::Sweep(Family::Ipv6)),
    ] {
        session.received(at(30), Way::Out, &mark.encode());
        assert_eq!(actions(&mut session), [expected]);
    }
}

#[test]
fn a_neighbour_without_a_family_of_ours_is_refused() {
    let mut session = opening(left());
    let capabilities = [2, 6, 1, 4, 0, 25, 0, 70];
    let open = [&[0xff; 16][..], &[0, 37, 1, 4, 0xfb, 0xf5, 0, 9, 192, 0, 2, 2, 8], &capabilities].concat();
    session.received(at(20), Way::Out, &open);
    let refused = notification(&actions(&mut session)).expect("a NOTIFICATION");
    assert_eq!((refused.code, refused.subcode), (2, 7));
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
                0 => session.connected(now, if bytes.len() % 2 == 0 { Way::In } else { Way::Out }),
                1 => session.closed(now, Way::Out, "closed".into()),
                2 => session.connect_failed(now, "refused".into()),
                3 => session.received(now, Way::Out, &open_of(right())),
                4 => session.received(now, Way::Out, &message::keepalive()),
                5 => session.received(now, Way::Out, &[&[0xff; 16][..], &[0, 19 + bytes.len() as u8, 2], &bytes].concat()),
                6 => session.received(now, Way::Out, &bytes),
                _ => session.written(now, Way::Out, bytes.is_empty()),
            }
            session.handle_timeout(now);
            actions(&mut session);
            prop_assert!(session.poll_timeout().is_some_and(|at| at > now));
        }
    }
}
