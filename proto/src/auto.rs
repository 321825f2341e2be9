//! Which of an uplink's two tunnels is used, where it may have either: the box decides, and tells the core.
//!
//! WireGuard is preferred: it costs least. QUIC is begun where WireGuard does not do, and not before; so it costs nothing while
//! all is well.
//!
//! ```text
//!                     no answer for a second, impaired, throttled
//!   [WireGuard leads] -------------------------------------------> QUIC is begun beside it; when it works and does better:
//!          ^                                                                                  |
//!          |    WireGuard has worked for a while, longer after each time that it failed       v
//!          +------------------------------------------------------------------------- [QUIC leads]
//! ```
//! The path that does not lead stands by: it is used where the other fails, as any other path. While QUIC leads because
//! WireGuard has no answer, WireGuard rests, and is tried now and then. Where it is throttled it goes on, since it answers:
//! [`crate::throttle`] finds out when that is over.
//!
//! Nothing is sent or measured here.

use crate::node::PathState;
use crate::throttle::Share;
use crate::{Instant, TunnelKind};
use std::time::Duration;

/// WireGuard has no answer for so long, and QUIC is begun: three initiations were lost, or one that takes longer than any way
/// on Earth. With its handshake over 300 ms, and what follows here, all is settled within 3 s.
const NO_ANSWER: Duration = Duration::from_secs(1);

/// QUIC has worked for so long, while WireGuard does not, before it leads. Where a link was dead for both, WireGuard may only
/// be some round trips later. Nothing waits for that: a path that stands by is used where it is the only one.
const GRACE: Duration = Duration::from_millis(300);

/// WireGuard has worked for so long before it leads again. Twice as long after each time that it failed then.
const HEAL: Duration = Duration::from_secs(2);
const MOST_HEAL: Duration = Duration::from_secs(120);
/// It has led for so long without failing, and that is forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// After WireGuard leads again QUIC goes on for so long: if it fails again it mostly does so at once.
const LINGER: Duration = Duration::from_secs(10);

/// WireGuard is tried for so long after QUIC leads: an answer may just be late.
const TRIED_ON: Duration = Duration::from_secs(2);
/// A WireGuard that rests is tried again after so long, then at twice the time each, and at least so often: some twenty
/// initiations each time.
const FIRST_LOOK: Duration = Duration::from_secs(5);
const MOST_BETWEEN: Duration = Duration::from_secs(120);
/// Each time for so long.
const LOOK: Duration = Duration::from_secs(3);

/// QUIC has no answer for so long while WireGuard has one, or does no better: it is left.
const NO_USE: Duration = Duration::from_secs(5);
/// And tried again after so long, then at twice the time each, and at least so often: each time the site's packets change
/// their path twice.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const MOST_RETRY: Duration = Duration::from_secs(3600);

/// A path, as far as this looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) state: PathState,
    /// Since when.
    pub(crate) since: Instant,
    /// Why, in words.
    pub(crate) reason: &'static str,
    /// It came back a moment ago.
    pub(crate) on_probation: bool,
    /// It carries far less than it is given: from here, or to here as the core says.
    pub(crate) throttled: Option<Throttling>,
}

/// Who has found a path to be throttled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Throttling {
    /// This end, by what arrived.
    Here(Share),
    /// The core, in its direction.
    There,
}

impl View {
    fn works(&self) -> bool {
        self.state == PathState::Up
    }

    /// It has an answer, and is no good.
    fn is_bad(&self) -> bool {
        self.state == PathState::Impaired || self.throttled.is_some()
    }
}

/// Why a tunnel is used.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Why {
    /// It is not known yet whether the preferred one works.
    Begun,
    Works,
    NoAnswer(Instant),
    Impaired(&'static str),
    Throttled(Throttling),
    /// QUIC was tried, and has no answer.
    NoQuic,
    /// QUIC was tried, and does no better.
    NoBetter,
}

/// The choice for one uplink.
#[derive(Debug)]
pub(crate) struct Auto {
    leads: TunnelKind,
    why: Why,
    since: Instant,
    /// QUIC is begun, or goes on.
    quic: Option<Instant>,
    /// Since when WireGuard has had no answer.
    silent: Option<Instant>,
    /// Since when it has worked, as far as this end and the core see.
    calm: Option<Instant>,
    /// When it led again last, and how often it has failed soon after that.
    returned: Option<Instant>,
    failures: u32,
    /// When WireGuard rests, or is tried, from or until then.
    rests: Option<Rest>,
    looks: u32,
    /// When QUIC may be tried again and why it was in vain, and how often it was.
    retry: Option<(Instant, Why)>,
    retries: u32,
    next: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Rest {
    TriedUntil(Instant),
    Until(Instant),
}

/// Doubled so often, up to a bound.
fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

impl Auto {
    pub(crate) fn new(now: Instant) -> Self {
        Auto {
            leads: TunnelKind::WireGuard,
            why: Why::Begun,
            since: now,
            quic: None,
            silent: None,
            calm: None,
            returned: None,
            failures: 0,
            rests: None,
            looks: 0,
            retry: None,
            retries: 0,
            next: None,
        }
    }

    /// The uplink is another one, or is gone: what was found says nothing of the next.
    pub(crate) fn restart(&mut self, now: Instant) {
        *self = Auto::new(now);
    }

    /// The kind that carries the uplink's traffic.
    pub(crate) fn leads(&self) -> TunnelKind {
        self.leads
    }

    /// Whether a path of this kind is to be there now.
    pub(crate) fn wants(&self, kind: TunnelKind) -> bool {
        match kind {
            TunnelKind::WireGuard => !matches!(self.rests, Some(Rest::Until(_))),
            TunnelKind::Quic => self.quic.is_some(),
        }
    }

    /// When [`Auto::follow`] has something to do, if nothing comes before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    fn lead(&mut self, now: Instant, leads: TunnelKind, why: Why) {
        if self.leads != leads {
            (self.leads, self.since) = (leads, now);
        }
        self.why = why;
    }

    /// Notes a moment at which something may be due.
    fn look_at(&mut self, now: Instant, at: Instant) {
        if at > now {
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
    }

    /// Whether so much time has passed; if not, it is looked at again when it has.
    fn has_passed(&mut self, now: Instant, since: Instant, time: Duration) -> bool {
        self.look_at(now, since + time);
        now >= since + time
    }

    /// Follows what has become of the uplink's two paths.
    pub(crate) fn follow(&mut self, now: Instant, wireguard: View, quic: View) {
        self.next = None;
        if wireguard.works() {
            self.silent = None;
        } else if matches!(wireguard.state, PathState::Down | PathState::Absent) {
            self.silent.get_or_insert(wireguard.since.max(self.since));
        }
        // A doubt is neither.
        if wireguard.works() && !wireguard.is_bad() && !wireguard.on_probation {
            self.calm.get_or_insert(now);
        } else if wireguard.state != PathState::Suspect {
            self.calm = None;
        }
        match self.leads {
            TunnelKind::WireGuard => self.while_wireguard(now, wireguard, quic),
            TunnelKind::Quic => self.while_quic(now, wireguard, quic),
        }
    }

    fn while_wireguard(&mut self, now: Instant, wireguard: View, quic: View) {
        let silent = self.silent;
        let unanswered = silent.is_some_and(|since| self.has_passed(now, since, NO_ANSWER));
        if unanswered || wireguard.is_bad() {
            self.why = match wireguard {
                View { throttled: Some(by), .. } => Why::Throttled(by),
                View { state: PathState::Impaired, reason, .. } => Why::Impaired(reason),
                _ => Why::NoAnswer(silent.unwrap_or(now)),
            };
            self.begin_quic(now, wireguard);
        } else if wireguard.works() {
            let since = self.calm.map(|calm| calm.max(self.returned.unwrap_or(calm)));
            let calm = since.is_some_and(|since| self.has_passed(now, since, LINGER));
            if calm {
                self.quic = None;
            }
            if calm || matches!(self.why, Why::Begun) || self.returned.is_some() {
                self.why = Why::Works;
            }
        }
        let Some(begun) = self.quic else { return };
        let better = match wireguard.state {
            PathState::Up | PathState::Impaired => wireguard.is_bad() && !quic.is_bad(),
            PathState::Down | PathState::Absent => unanswered,
            PathState::Suspect => wireguard.throttled.is_some() && !quic.is_bad(),
        };
        if quic.works() && better {
            // Where WireGuard is known to be bad nothing is gained by waiting.
            if wireguard.is_bad() || self.has_passed(now, quic.since, GRACE) {
                let soon = self.returned.take().is_some_and(|at| now.since(at) < FORGIVEN_AFTER);
                self.failures = if soon { self.failures + 1 } else { 0 };
                let tried = Rest::TriedUntil(now + TRIED_ON);
                self.rests = matches!(self.why, Why::NoAnswer(_)).then_some(tried);
                (self.looks, self.calm) = (0, None);
                self.lead(now, TunnelKind::Quic, self.why);
                self.look_at(now, now + TRIED_ON);
            }
        } else if wireguard.is_bad() && !unanswered && self.has_passed(now, begun.max(wireguard.since), NO_USE) {
            // After an outage of both QUIC has its time, too. Where WireGuard does well it is only not needed.
            self.leave_quic(now, if quic.works() { Why::NoBetter } else { Why::NoQuic });
        }
    }

    /// Begins QUIC, if it was not in vain a moment ago. Where nothing at all has an answer it costs no other's traffic.
    fn begin_quic(&mut self, now: Instant, wireguard: View) {
        let answered = !matches!(wireguard.state, PathState::Down | PathState::Absent);
        if let Some((at, why)) = self.retry.filter(|(at, _)| answered && now < *at) {
            self.look_at(now, at);
            self.why = why;
            return;
        }
        self.quic.get_or_insert(now);
    }

    fn leave_quic(&mut self, now: Instant, why: Why) {
        let retry = now + doubled(FIRST_RETRY, self.retries, MOST_RETRY);
        (self.quic, self.retry, self.retries) = (None, Some((retry, why)), self.retries + 1);
        self.rests = None;
        self.lead(now, TunnelKind::WireGuard, why);
        self.look_at(now, retry);
    }

    fn while_quic(&mut self, now: Instant, wireguard: View, quic: View) {
        if quic.is_bad() && (wireguard.works() || wireguard.state == PathState::Impaired) {
            self.leave_quic(now, Why::NoBetter);
            return;
        }
        let failing = matches!(quic.state, PathState::Down | PathState::Absent);
        match self.rests {
            // It is all there may be.
            Some(_) if failing => self.rests = Some(Rest::TriedUntil(now + LOOK)),
            Some(_) if wireguard.works() => self.rests = None,
            Some(Rest::TriedUntil(until)) if now >= until => {
                let at = now + doubled(FIRST_LOOK, self.looks, MOST_BETWEEN);
                self.looks += 1;
                self.rests = Some(Rest::Until(at));
            }
            Some(Rest::Until(at)) if now >= at => self.rests = Some(Rest::TriedUntil(now + LOOK)),
            None => {
                // It had an answer, and has none any more: again, or where it was only bad.
                let again = matches!(self.why, Why::NoAnswer(_));
                let wait = if again { Duration::ZERO } else { NO_ANSWER };
                if let Some(since) = self.silent
                    && self.has_passed(now, since, wait)
                {
                    if !again {
                        self.why = Why::NoAnswer(since);
                    }
                    self.rests = Some(Rest::TriedUntil(now + TRIED_ON));
                }
            }
            _ => {}
        }
        if let Some(Rest::TriedUntil(at) | Rest::Until(at)) = self.rests {
            self.look_at(now, at);
        }
        if let Some(by) = wireguard.throttled.filter(|_| self.silent.is_none()) {
            self.why = Why::Throttled(by);
        }
        let heal = doubled(HEAL, self.failures, MOST_HEAL);
        let healed = self.calm.is_some_and(|since| self.has_passed(now, since, heal));
        let only = failing && wireguard.works() && self.has_passed(now, quic.since, GRACE);
        if healed || only {
            (self.rests, self.retries, self.retry, self.returned) = (None, 0, None, Some(now));
            self.lead(now, TunnelKind::WireGuard, Why::Works);
        }
    }

    /// What is used and why, in words, as `status` shows it. `wireguard_port`: where it is tried, if that is known.
    pub(crate) fn words(&self, now: Instant, wireguard_port: Option<u16>) -> String {
        let port = wireguard_port.map_or(String::new(), |port| format!(" on port {port}"));
        let because = match self.why {
            Why::Begun => "begun".to_owned(),
            Why::Works => "works".to_owned(),
            Why::NoAnswer(since) => {
                format!("no answer to WireGuard{port} for {:.0} s", now.since(since).as_secs_f64())
            }
            Why::Impaired(reason) => format!("WireGuard{port} is impaired: {reason}"),
            Why::Throttled(Throttling::Here(Share { arrived, offered })) => {
                format!("WireGuard{port} is throttled: {} of {} arrived", bits(arrived), bits(offered))
            }
            Why::Throttled(Throttling::There) => format!("WireGuard{port} is throttled on the way here, the core says"),
            Why::NoQuic => "it is bad, and QUIC has no answer".to_owned(),
            Why::NoBetter => "it is slow, and QUIC does no better".to_owned(),
        };
        format!("{}: {because}", self.leads)
    }
}

/// A rate in words.
fn bits(rate: u64) -> String {
    match rate {
        0..1_000_000 => format!("{} kbit/s", rate / 1000),
        _ => format!("{:.1} Mbit/s", rate as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TunnelKind::{Quic, WireGuard};

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// What the network lets pass at a moment.
    #[derive(Clone, Copy)]
    struct Network {
        wireguard: bool,
        quic: bool,
        /// It loses most of WireGuard's packets.
        impairs: bool,
    }

    const ALL: Network = Network { wireguard: true, quic: true, impairs: false };
    const ONLY_QUIC: Network = Network { wireguard: false, ..ALL };
    const ONLY_WIREGUARD: Network = Network { quic: false, ..ALL };
    const NEITHER: Network = Network { wireguard: false, ..ONLY_WIREGUARD };

    /// A path that is up so long after it is wanted and passes, and down as soon as one of these is not so.
    struct Way {
        state: PathState,
        since: Instant,
        begun: Option<Instant>,
    }

    const HANDSHAKE: Duration = Duration::from_millis(100);

    impl Way {
        fn follow(&mut self, now: Instant, passes: bool, impaired: bool) -> View {
            self.begun = if passes { self.begun.or(Some(now)) } else { None };
            let state = match self.begun.is_some_and(|begun| now >= begun + HANDSHAKE) {
                true if impaired => PathState::Impaired,
                true => PathState::Up,
                false => PathState::Down,
            };
            if state != std::mem::replace(&mut self.state, state) {
                self.since = now;
            }
            View { state, since: self.since, reason: "loss", on_probation: false, throttled: None }
        }
    }

    /// Which tunnel leads from when on, in milliseconds, and in how many milliseconds each kind was there at all, WireGuard first.
    fn run(until: u64, network: impl Fn(u64) -> Network) -> (Vec<(u64, TunnelKind)>, [u64; 2], Auto) {
        watched(until, network, |_, _| {})
    }

    /// The same, with a look at it after each millisecond.
    fn watched(
        until: u64,
        network: impl Fn(u64) -> Network,
        mut watch: impl FnMut(u64, &Auto),
    ) -> (Vec<(u64, TunnelKind)>, [u64; 2], Auto) {
        let way = || Way { state: PathState::Down, since: at(0), begun: None };
        let (mut auto, mut ways, mut led, mut there) = (Auto::new(at(0)), [way(), way()], Vec::new(), [0, 0]);
        for ms in 0..until {
            let (now, net) = (at(ms), network(ms));
            let [first, second] = &mut ways;
            let wireguard = first.follow(now, net.wireguard && auto.wants(WireGuard), net.impairs);
            let quic = second.follow(now, net.quic && auto.wants(Quic), false);
            let before = auto.leads();
            auto.follow(now, wireguard, quic);
            if auto.leads() != before {
                led.push((ms, auto.leads()));
            }
            there[0] += u64::from(auto.wants(WireGuard));
            there[1] += u64::from(auto.wants(Quic));
            watch(ms, &auto);
        }
        (led, there, auto)
    }

    #[test]
    fn while_wireguard_works_nothing_is_spent_on_quic() {
        let (led, there, auto) = run(60_000, |_| ALL);
        assert_eq!((led, there), (vec![], [60_000, 0]));
        assert_eq!(auto.words(at(60_000), Some(51820)), "wireguard: works");
    }

    #[test]
    fn quic_leads_within_three_seconds_where_wireguard_has_no_answer_and_wireguard_again_when_it_has() {
        let (led, _, _) = run(60_000, |ms| if ms < 20_000 { ONLY_QUIC } else { ALL });
        let [(first, Quic), (second, WireGuard)] = led[..] else { panic!("{led:?}") };
        assert!((1_000..3_000).contains(&first), "{led:?}");
        // The look that was next, a handshake, and some time in which it works.
        let next = 20_000 + MOST_BETWEEN.as_millis() as u64;
        assert!((22_000..next).contains(&second), "{led:?}");
        let (led, _, _) = run(60_000, |ms| if ms < 20_000 { ALL } else { ONLY_QUIC });
        assert!(matches!(led[..], [(21_000..23_000, Quic)]), "also later: {led:?}");
    }

    #[test]
    fn wireguard_that_never_answers_is_tried_ever_more_seldom() {
        let (led, there, auto) = run(3_600_000, |_| ONLY_QUIC);
        assert!(matches!(led[..], [(_, Quic)]), "{led:?}");
        assert!(there[0] < 120_000, "tried for {} s of an hour", there[0] / 1000);
        assert_eq!(auto.words(at(3_600_000), Some(51820)), "quic: no answer to WireGuard on port 51820 for 3600 s");
    }

    #[test]
    fn where_nothing_passes_the_first_that_does_is_used() {
        for (net, expected) in [(ONLY_QUIC, Some(Quic)), (ONLY_WIREGUARD, None), (ALL, None)] {
            let (led, _, _) = run(60_000, |ms| if ms < 30_000 { NEITHER } else { net });
            assert_eq!(led.first().map(|led| led.1), expected, "{led:?}");
            assert!(led.iter().all(|(ms, _)| *ms < 33_000), "{led:?}");
        }
    }

    #[test]
    fn what_is_impaired_is_left_at_once_if_quic_does_better_and_quic_that_has_no_answer_is_not_waited_for() {
        let bad = |quic| move |ms| Network { impairs: ms >= 5_000, quic, ..ALL };
        let (led, _, auto) = run(30_000, bad(true));
        assert!(matches!(led[..], [(5_100..5_200, Quic)]), "{led:?}");
        assert_eq!(auto.words(at(30_000), None), "quic: WireGuard is impaired: loss");
        let (led, there, auto) = run(600_000, bad(false));
        assert_eq!(led, []);
        assert_eq!(auto.words(at(30_000), None), "wireguard: it is bad, and QUIC has no answer");
        // Five seconds each at 5, 70, 195, 440 s.
        assert!((15_000..25_000).contains(&there[1]), "tried for {} ms", there[1]);
    }

    #[test]
    fn a_wireguard_that_comes_and_goes_is_trusted_less_each_time() {
        // It passes for ten seconds of each twenty.
        let (led, _, _) = run(1_200_000, |ms| if ms / 10_000 % 2 == 0 { ALL } else { ONLY_QUIC });
        assert!(led.len() <= 12, "{} changes in twenty minutes: {led:?}", led.len());
    }

    #[test]
    fn quic_goes_on_for_a_while_after_wireguard_leads_again_however_often_that_was() {
        // WireGuard passes for 60 s of each 80, and heals for longer each time.
        let (mut led, mut returns) = (WireGuard, Vec::new());
        let net = |ms| if ms % 80_000 < 60_000 { ALL } else { ONLY_QUIC };
        watched(600_000, net, |ms, auto| {
            if (led, auto.leads()) == (Quic, WireGuard) {
                returns.push((ms, None));
            }
            led = auto.leads();
            if let Some((_, ended @ None)) = returns.last_mut().filter(|_| !auto.wants(Quic)) {
                *ended = Some(ms);
            }
        });
        assert!(returns.len() >= 4, "{returns:?}");
        for (at, ended) in returns {
            assert!(
                ended.is_none_or(|ended| ended >= at + 10_000),
                "it led again at {at} ms, and QUIC ended at {ended:?}"
            );
        }
    }

    #[test]
    fn an_outage_of_both_does_not_speak_against_quic() {
        for later in [0, 1_000, 4_000] {
            let mut said = Vec::new();
            let net = move |ms| match ms % 30_000 {
                0..10_000 => Network { quic: ms % 30_000 >= later, ..ALL },
                10_000..20_000 => ALL,
                _ => NEITHER,
            };
            let (_, _, auto) = watched(600_000, net, |ms, auto| {
                said.push(auto.words(at(ms), None));
            });
            assert!(!said.iter().any(|words| words.contains("it is bad")), "QUIC passes {later} ms later");
            assert_eq!(auto.retries, 0);
        }
    }

    #[test]
    fn a_wireguard_that_was_bad_and_has_no_answer_any_more_rests() {
        let net = |ms| Network { wireguard: ms < 60_000, impairs: ms >= 5_000, ..ALL };
        let (led, there, auto) = run(3_600_000, net);
        assert!(matches!(led[..], [(_, Quic)]), "{led:?}");
        assert!(there[0] < 200_000, "there for {} s of an hour", there[0] / 1000);
        assert_eq!(auto.words(at(3_600_000), None), "quic: no answer to WireGuard for 3540 s");
    }
}
