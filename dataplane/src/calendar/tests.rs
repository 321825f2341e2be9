use super::*;
use proptest::prelude::*;
use proto::policy::{Class, Matches};

/// A policy with a class for each of these windows.
fn policy(zone: &str, windows: &[Window]) -> Policy {
    let class = |(place, window): (usize, &Window)| Class {
        matches: Matches { window: Some(*window), ..Matches::default() },
        ..Class::everything(&format!("{place}"))
    };
    let classes = windows.iter().enumerate().map(class).collect();
    Policy::new(Default::default(), classes).expect("a good policy").in_zone(Some(zone.into()))
}

fn at(text: &str) -> Duration {
    since_1970(text.parse().expect("a time"))
}

fn hours(from: u16, until: u16) -> Window {
    Window { days: 0x7f, from: from * 60, until: until * 60 }
}

/// When the only window of a policy is open, from one time to another: each change, as UTC has it.
fn changes(policy: &Policy, from: &str, until: &str) -> Vec<(String, bool)> {
    let (mut now, until) = (at(from), at(until));
    let mut changes: Vec<(String, bool)> = Vec::new();
    while now < until {
        let Open { windows, until: next } = open(policy, now);
        if changes.last().is_none_or(|(_, open)| *open != (windows == 1)) {
            changes.push((timestamp(now).expect("a time").to_string(), windows == 1));
        }
        now = next.expect("there is always another");
    }
    changes
}

#[test]
fn a_night_is_an_hour_shorter_or_longer_with_daylight_saving() {
    let night = policy("Europe/Berlin", &[hours(22, 6)]);
    let expected = |list: &[(&str, bool)]| list.iter().map(|(at, open)| ((*at).to_owned(), *open)).collect::<Vec<_>>();
    // From 2 to 3 o'clock on the 29th of March 2026: seven hours.
    let short = [("2026-03-28T12:00:00Z", false), ("2026-03-28T21:00:00Z", true), ("2026-03-29T04:00:00Z", false)];
    assert_eq!(changes(&night, "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z"), expected(&short));
    // From 3 to 2 o'clock on the 25th of October: nine.
    let long = [("2026-10-24T12:00:00Z", false), ("2026-10-24T20:00:00Z", true), ("2026-10-25T05:00:00Z", false)];
    assert_eq!(changes(&night, "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z"), expected(&long));
    // The same in the south, where summer ends in April: Sydney goes from 3 to 2 o'clock on the 5th.
    let south = policy("Australia/Sydney", &[hours(22, 6)]);
    let long = [("2026-04-04T02:00:00Z", false), ("2026-04-04T11:00:00Z", true), ("2026-04-04T20:00:00Z", false)];
    assert_eq!(changes(&south, "2026-04-04T02:00:00Z", "2026-04-05T02:00:00Z"), expected(&long));
}

#[test]
fn hours_that_a_night_does_not_have_or_has_twice_last_as_long_as_ever() {
    let of = |from, until| policy("Europe/Berlin", &[Window { days: 0x7f, from, until }]);
    // 2:15 to 2:45 is 3:15 to 3:45 of summer time when clocks go from 2 to 3, which is 1:15 by UTC.
    let skipped = changes(&of(135, 165), "2026-03-29T00:00:00Z", "2026-03-29T12:00:00Z");
    assert_eq!(skipped[1].0, "2026-03-29T01:15:00Z");
    assert_eq!(skipped[2].0, "2026-03-29T01:45:00Z");
    // When they go from 3 to 2 it is the first of the two.
    let twice = changes(&of(135, 165), "2026-10-25T00:00:00Z", "2026-10-25T12:00:00Z");
    assert_eq!([&twice[1].0, &twice[2].0], ["2026-10-25T00:15:00Z", "2026-10-25T00:45:00Z"]);
    assert_eq!(twice.len(), 3, "once: {twice:?}");
    // One that would end before it began is not there that night, and is the next.
    let swallowed = changes(&of(135, 180), "2026-03-29T00:00:00Z", "2026-03-30T12:00:00Z");
    assert_eq!(swallowed[1].0, "2026-03-30T00:15:00Z", "{swallowed:?}");
}

#[test]
fn a_day_belongs_to_where_a_window_begins() {
    // Friday the 20th of November 2026 at ten in the evening until Saturday at six, and no other night.
    let friday = policy("Europe/Berlin", &[Window { days: 1 << 4, from: 22 * 60, until: 6 * 60 }]);
    let open_at = |time: &str| open(&friday, at(time)).windows == 1;
    assert!(!open_at("2026-11-20T02:00:00+01:00"), "that is Thursday's night");
    assert!(!open_at("2026-11-20T21:59:59+01:00"));
    assert!(open_at("2026-11-20T22:00:00+01:00"));
    assert!(open_at("2026-11-21T00:00:00+01:00"), "midnight");
    assert!(open_at("2026-11-21T05:59:59+01:00"));
    assert!(!open_at("2026-11-21T06:00:00+01:00"));
    assert!(!open_at("2026-11-21T23:00:00+01:00"));
    assert_eq!(open(&friday, at("2026-11-21T06:00:00+01:00")).until, Some(at("2026-11-27T22:00:00+01:00")));
    // Days without hours are whole ones.
    let weekend = policy("America/New_York", &[Window { days: 0b110_0000, from: 0, until: 24 * 60 }]);
    let open_at = |time: &str| open(&weekend, at(time)).windows == 1;
    assert!(!open_at("2026-11-20T23:59:59-05:00"));
    assert!(open_at("2026-11-21T00:00:00-05:00") && open_at("2026-11-22T23:59:59-05:00"));
    assert!(!open_at("2026-11-23T00:00:00-05:00"));
}

#[test]
fn nothing_is_open_while_nobody_knows_what_time_it_is() {
    let always = policy("UTC", &[hours(0, 24)]);
    assert_eq!(open(&always, Duration::from_secs(1_000)), Open::default());
    assert_eq!(open(&always, clock::EARLIEST).windows, 1);
    assert_eq!(open(&Policy::default(), clock::EARLIEST), Open::default());
}

#[test]
fn a_month_begins_on_its_day_or_on_the_last_of_a_shorter_one() {
    let site = policy("Europe/Berlin", &[]);
    let month = |day, now: &str| month(&site, day, at(now)).expect("a right clock");
    assert_eq!(month(14, "2026-11-13T23:59:59+01:00"), "2026-10-14");
    assert_eq!(month(14, "2026-11-14T00:00:00+01:00"), "2026-11-14");
    assert_eq!(month(1, "2026-12-31T23:59:59+01:00"), "2026-12-01");
    assert_eq!(month(1, "2027-01-01T00:00:00+01:00"), "2027-01-01");
    assert_eq!(month(31, "2027-02-27T12:00:00+01:00"), "2027-01-31");
    assert_eq!(month(31, "2027-02-28T00:00:00+01:00"), "2027-02-28");
    assert_eq!(month(31, "2027-03-30T12:00:00+02:00"), "2027-02-28");
    assert_eq!(month(31, "2028-02-28T12:00:00+01:00"), "2028-01-31");
    assert_eq!(month(30, "2028-02-29T00:00:00+01:00"), "2028-02-29", "a leap year");
    // The site's day, not that of UTC.
    assert_eq!(month(14, "2026-11-13T23:30:00Z"), "2026-11-14");
    assert_eq!(super::month(&site, 1, Duration::ZERO), None);
    assert!(is_one_of(&site, 0b110_0000, at("2026-11-20T23:30:00Z")), "Saturday in Berlin");
    assert!(!is_one_of(&site, 0b110_0000, at("2026-11-22T23:30:00Z")), "Monday");
    assert!(!is_one_of(&site, 0x7f, Duration::ZERO));
}

/// As one would do it by hand: looking at a clock of the site each minute.
fn shown(zone: &TimeZone, window: &Window, now: Duration) -> bool {
    let shows = zone.to_datetime(timestamp(now).expect("a time"));
    let minute = shows.hour() as u16 * 60 + shows.minute() as u16;
    let today = is_in(window.days, shows.date());
    let yesterday = is_in(window.days, shows.date().yesterday().expect("a day before"));
    if window.until > window.from {
        today && (window.from..window.until).contains(&minute)
    } else {
        (today && minute >= window.from) || (yesterday && minute < window.until)
    }
}

proptest! {
    #[test]
    fn windows_are_open_when_a_clock_shows_it(
        days in 1u8..0x80, from in 0u16..1440, length in 1u16..1440, minute in 0u64..7 * 1440,
    ) {
        let until = match (from + length) % 1440 { 0 => 1440, until => until };
        let window = Window { days, from, until };
        // A week without a change of the clocks.
        let now = at("2026-06-01T00:00:00Z") + Duration::from_secs(minute * 60);
        for name in ["Europe/Berlin", "America/St_Johns", "Asia/Kolkata", "Pacific/Auckland"] {
            let zone = TimeZone::get(name).expect("a zone");
            let found = open(&policy(name, &[window]), now);
            prop_assert_eq!(found.windows == 1, shown(&zone, &window, now), "{}", name);
            let until = found.until.expect("it begins or ends within a week");
            prop_assert!(until > now && until <= now + Duration::from_secs(8 * 86_400));
            // Until just before then it stays so.
            let before = until - Duration::from_secs(1);
            prop_assert_eq!(shown(&zone, &window, before), found.windows == 1, "{}", name);
        }
    }
}
