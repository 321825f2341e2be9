use super::*;

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

const ALONE: Surroundings = Surroundings {
    initiator: true,
    other_up: false,
    several_ways: false,
    active: true,
    keepalive: None,
    largest: 1444,
};
const PAIRED: Surroundings =
    Surroundings { initiator: true, other_up: true, several_ways: false, active: true, keepalive: None, largest: 1444 };

/// A path that has sent a packet each millisecond for 200 ms and had a receipt each 10 ms, 20 ms after.
fn settled() -> (Health, u64) {
    let mut health = Health::new(at(0), true);
    let mut next = 0;
    for ms in 0..200 {
        health.on_sent(PacketId { session: 1, number: next }, 100, at(ms), true, Ticket::NONE);
        next += 1;
        if ms >= 20 && ms % 10 == 0 {
            let largest = ms - 20;
            let ranges = [(0, largest)].into_iter().collect();
            health.on_receipt(
                &Receipt { path: 0, session: 1, largest, delay_us: 0, received_us: 0, ranges },
                0,
                at(ms),
                |_| true,
            );
        }
        health.on_timeout(PAIRED, at(ms));
    }
    assert_eq!(health.state(), PathState::Up);
    (health, next)
}

#[test]
fn a_silent_path_is_suspected_then_down_and_sends_do_not_put_that_off() {
    let (mut health, mut next) = settled();
    let mut seen = Vec::new();
    for ms in 200..600 {
        health.on_sent(PacketId { session: 1, number: next }, 100, at(ms), true, Ticket::NONE);
        next += 1;
        let (transition, _) = health.on_timeout(PAIRED, at(ms));
        seen.extend(transition.map(|t| (ms, t.to)));
    }
    // The oldest unacknowledged was sent at 171: + 20 (RTT) + 10 (margin) + 8 (receipt interval) and rounding.
    assert_eq!(seen[0].1, PathState::Suspect);
    assert!((200..=222).contains(&seen[0].0), "{seen:?}");
    assert_eq!(seen[1], (seen[0].0 + 250, PathState::Down));
}

#[test]
fn suspicion_is_forgiven_when_a_question_is_answered() {
    let (mut health, next) = settled();
    let (transition, wants) = health.on_timeout(PAIRED, at(240));
    assert_eq!(transition.map(|t| t.to), Some(PathState::Suspect));
    assert!(wants.ping);
    health.on_sent(PacketId { session: 1, number: next }, 100, at(240), true, Ticket::NONE);
    let receipt = Receipt {
        path: 0,
        session: 1,
        largest: next,
        delay_us: 0,
        received_us: 0,
        ranges: [(next, next), (0, 190)].into_iter().collect(),
    };
    let transition = health.on_receipt(&receipt, 0, at(260), |_| true);
    assert_eq!(transition.map(|t| t.to), Some(PathState::Up));
    assert!(!health.on_probation(at(260)), "it did not fail");
    assert!(health.loss() > 0.0, "what came before the question is lost, and said to be");
}

#[test]
fn the_last_path_is_given_more_time() {
    let (mut health, _) = settled();
    health.on_timeout(ALONE, at(240));
    assert_eq!(health.state(), PathState::Suspect);
    health.on_timeout(ALONE, at(240 + 240));
    assert_eq!(health.state(), PathState::Suspect);
    health.on_timeout(ALONE, at(240 + 260));
    assert_eq!(health.state(), PathState::Down);
}

#[test]
fn probation_doubles_with_each_failure_up_to_a_minute_and_is_forgiven() {
    let mut health = Health::new(at(0), true);
    let (mut now, mut number) = (0, 0);
    let mut probations = Vec::new();
    for _ in 0..8 {
        health.on_sent(PacketId { session: 1, number }, 100, at(now), true, Ticket::NONE);
        health.on_receipt(
            &Receipt {
                path: 0,
                session: 1,
                largest: number,
                delay_us: 0,
                received_us: 0,
                ranges: [(number, number)].into_iter().collect(),
            },
            0,
            at(now + 20),
            |_| true,
        );
        assert_eq!(health.state(), PathState::Up);
        probations.push(health.probation_until.since(at(now + 20)).as_secs());
        health.on_sent(PacketId { session: 1, number: number + 1 }, 100, at(now + 30), true, Ticket::NONE);
        health.on_timeout(PAIRED, at(now + 2000));
        health.on_timeout(PAIRED, at(now + 4000));
        assert_eq!(health.state(), PathState::Down);
        now += 5000;
        number += 2;
    }
    assert_eq!(probations, [0, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn only_the_initiator_asks_on_a_path_that_is_down() {
    let mut health = Health::new(at(0), true);
    let core = Surroundings {
        initiator: false,
        other_up: false,
        several_ways: false,
        active: false,
        keepalive: None,
        largest: 1444,
    };
    assert_eq!(health.deadline(core, at(0)), None);
    assert_eq!(health.on_timeout(core, at(10_000)).1, Wants::default());
    let (_, wants) = health.on_timeout(ALONE, at(10_000));
    assert!(wants.ping);
}

#[test]
fn after_a_timeout_the_next_deadline_lies_ahead() {
    let (mut health, mut number) = settled();
    let mut now = at(200);
    for _ in 0..1000 {
        let (_, wants) = health.on_timeout(PAIRED, now);
        if wants.ping {
            health.on_sent(PacketId { session: 1, number }, 100, now, true, Ticket::NONE);
            number += 1;
        }
        let (next, reason) = health.deadline(PAIRED, now).expect("a path that is present has one");
        assert!(next > now, "{reason} at {next:?}, now {now:?}");
        now = next;
    }
}

/// Nobody asks a path without a session: one that was taken for alive would be due for ever.
#[test]
fn a_path_whose_session_has_ended_is_down_whatever_it_was() {
    for state in [PathState::Up, PathState::Suspect, PathState::Impaired] {
        let (mut health, _) = settled();
        health.state = state;
        let transition = health.on_session(at(200), false);
        assert_eq!(transition.map(|transition| transition.to), Some(PathState::Down), "{state:?}");
    }
}
