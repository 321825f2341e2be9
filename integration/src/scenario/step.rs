//! The timeline of a scenario: what happens when.

use super::Change;
use crate::meter::Span;
use crate::net;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

/// One entry of the timeline.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// When, since the start of the traffic: a time, `{ from, to }` between which the seed draws one, or `{ after, by }`:
    /// so long after an entry above.
    pub at: At,
    /// What.
    #[serde(rename = "do")]
    pub action: Action,
    /// The name by which expectations refer to it; without it, what was done and to what ("cut isp-a").
    pub name: Option<String>,
    /// The link it is done to.
    pub link: Option<String>,
    /// Or several links at the same moment.
    pub links: Option<Vec<String>>,
    /// The host it is done to.
    pub host: Option<String>,
    /// flap: the time between changes.
    pub period: Option<Span>,
    /// flap: for how long; at its end the link works. stall: how long.
    #[serde(rename = "for")]
    pub duration: Option<Span>,
    /// netem: what becomes different, in both directions.
    #[serde(default)]
    pub both: Change,
    /// netem: what becomes different from near to far.
    #[serde(default)]
    pub up: Change,
    /// netem: what becomes different from far to near.
    #[serde(default)]
    pub down: Change,
    /// mtu: the MTU that both ends of the link have from then on.
    pub mtu: Option<u32>,
    /// filter: what the link drops from then on.
    pub filter: Option<net::Filter>,
    /// exec: what is run in the host's namespace; it must end with status 0.
    pub command: Option<Vec<String>>,
    /// check: a line of shell that is true. It can use the `functions` of the host's script.
    pub line: Option<String>,
    /// check: by when; without it, at once.
    pub within: Option<Span>,
    /// renumber: the near end's new addresses.
    #[serde(default)]
    pub near: Vec<IpNet>,
    /// renumber: the far end's; the first of a family is the near end's new gateway.
    #[serde(default)]
    pub far: Vec<IpNet>,
    /// renumber: the new addresses come first, and the old ones stay for so long.
    pub keep: Option<Span>,
    /// renumber without `keep`: the time between the old addresses' going and the new ones' coming.
    pub gap: Option<Span>,
    /// rename: the near end's new name.
    pub to: Option<String>,
    /// rebind: the ISP's new public address; without it the address stays and the ports change.
    pub address: Option<IpNet>,
    /// set_clock: to what.
    pub clock: Option<WallClock>,
}

/// What the wall clock is set to. All hosts of a run have one clock between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WallClock {
    /// "1970-01-01": that day, UTC, as long after midnight as the guest runs, in seconds since 1970.
    Day(i64),
    /// "2026-03-28T21:59:58": to that moment, UTC, in seconds since 1970.
    Moment(i64),
    /// "+1d", "-1d": by so many seconds from what it shows.
    Step(i64),
    /// "right": to what it showed when the run began, and what has passed since.
    Right,
}

impl<'de> Deserialize<'de> for WallClock {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        WallClock::read(&text).ok_or_else(|| {
            let expected =
                "a day from 1970 to 2200 (\"1970-01-01\"), a moment of it, UTC (\"2026-03-28T21:59:58\"), days by which it is set (\"+1d\", \"-1d\"), or \"right\"";
            serde::de::Error::invalid_value(serde::de::Unexpected::Str(&text), &expected)
        })
    }
}

impl WallClock {
    fn read(text: &str) -> Option<Self> {
        const DAY: i64 = 86_400;
        if text == "right" {
            return Some(WallClock::Right);
        }
        if let Some(days) = text.strip_suffix('d') {
            // Without its sign it could be taken for a length of time.
            let signed = days.starts_with(['+', '-']);
            let days: i64 = days.parse().ok().filter(|days: &i64| signed && days.abs() <= 100_000)?;
            return Some(WallClock::Step(days * DAY));
        }
        if let Some((day, time)) = text.split_once('T') {
            let WallClock::Day(midnight) = WallClock::read(day)? else { return None };
            let mut parts = time.splitn(3, ':').map(|part| part.parse::<i64>().ok().filter(|part| *part >= 0));
            let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
            let within = hour < 24 && minute < 60 && second < 60;
            return within.then_some(WallClock::Moment(midnight + hour * 3_600 + minute * 60 + second));
        }
        let mut parts = text.splitn(3, '-').map(|part| part.parse::<i64>().ok());
        let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
        if !(1970..=2200).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Days since 1970 by years that begin in March, so that the leap day comes last.
        let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
        Some(WallClock::Day(days * DAY))
    }
}

/// A moment of the timeline.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a time such as \"5s\", { from = \"5s\", to = \"6s\" } between which the seed draws one, or \
                 { after = \"NAME\", by = \"30ms\" }"
)]
pub enum At {
    /// At that time.
    Time(Span),
    /// Somewhere in between.
    Between(Between),
    /// After another entry.
    After(After),
}

/// A moment after another one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// The name of an entry above.
    pub after: String,
    /// How long after it.
    pub by: Span,
}

/// Bounds of a moment.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Between {
    /// Not before.
    pub from: Span,
    /// Not after.
    pub to: Span,
}

/// What a timeline entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A link carries nothing any more, in silence.
    Cut,
    /// From near to far it carries nothing any more.
    CutUp,
    /// From far to near it carries nothing any more.
    CutDown,
    /// The near end loses carrier.
    CarrierDown,
    /// A link is as the file has it again, carrier included.
    Heal,
    /// A link comes and goes: cut, healed, cut, … each `period`.
    Flap,
    /// The same with carrier.
    FlapCarrier,
    /// A link's settings change.
    Netem,
    /// A link holds back what is sent, in both directions, and lets it go when `for` is over: a radio that has to wake.
    Stall,
    /// A link's MTU changes; `heal` does not give it back.
    Mtu,
    /// A link drops what matches `filter`, in silence, until it heals.
    Filter,
    /// A daemon is asked to end, and started again when it has.
    Restart,
    /// A daemon is killed (SIGKILL).
    Kill,
    /// A daemon is asked to end.
    Stop,
    /// A daemon is started.
    Start,
    /// A daemon is told to read its files again (SIGHUP).
    Reload,
    /// A command is run on a host.
    Exec,
    /// A line of shell on a host is true within a time; if not, the run fails. It comes at "NAME: true".
    Check,
    /// Nothing: gives a moment a name.
    Mark,
    /// The ISP gives the near end other addresses and another gateway, and takes the old ones back. The new default
    /// route comes at "NAME: new route", the old addresses go at "NAME: old gone".
    Renumber,
    /// The near end's interface is pulled out: it is there no more.
    Unplug,
    /// It is plugged in again: under its name, with its addresses and routes, but another interface to the kernel.
    Plug,
    /// The near end's interface gets another name.
    Rename,
    /// An ISP's NAT forgets all it knew, and uses other ports or another address from then on.
    Rebind,
    /// A daemon is stopped in its tracks (SIGSTOP).
    Freeze,
    /// It goes on (SIGCONT).
    Thaw,
    /// The wall clock is set. Only in a guest: this machine's own clock is left alone.
    SetClock,
}

impl Action {
    /// It changes what a netem queue does, or sets it as it was.
    pub(super) fn takes_netem(self) -> bool {
        use Action::{Cut, CutDown, CutUp, Flap, FlapCarrier, Heal, Netem, Stall};
        matches!(self, Cut | CutUp | CutDown | Flap | FlapCarrier | Heal | Netem | Stall)
    }
}

impl Step {
    /// The links that it is done to.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.link.iter().map(String::as_str).chain(self.links.iter().flatten().map(String::as_str))
    }

    /// The name by which expectations and other entries refer to it.
    pub fn named(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.label())
    }

    /// What is done and to what.
    pub fn label(&self) -> String {
        let action = match self.action {
            Action::Cut => "cut",
            Action::CutUp => "cut up",
            Action::CutDown => "cut down",
            Action::CarrierDown => "carrier down",
            Action::Heal => "heal",
            Action::Flap => "flap",
            Action::FlapCarrier => "flap carrier",
            Action::Netem => "netem",
            Action::Stall => "stall",
            Action::Mtu => "mtu",
            Action::Filter => "filter",
            Action::Restart => "restart",
            Action::Kill => "kill -9",
            Action::Stop => "stop",
            Action::Start => "start",
            Action::Reload => "reload",
            Action::Exec => "exec",
            Action::Check => "check",
            Action::Mark => "mark",
            Action::Renumber => "renumber",
            Action::Unplug => "unplug",
            Action::Plug => "plug",
            Action::Rename => "rename",
            Action::Rebind => "rebind",
            Action::Freeze => "freeze",
            Action::Thaw => "thaw",
            Action::SetClock => "set clock",
        };
        let mut label = action.to_owned();
        for of in self.links().chain(self.host.as_deref()) {
            label.push(' ');
            label.push_str(of);
        }
        label
    }

    /// The key that the action needs and that is not there.
    pub(super) fn lacks(&self) -> Option<&'static str> {
        use Action::*;
        let no_link = self.links().next().is_none();
        match self.action {
            Cut | CutUp | CutDown | CarrierDown | Heal | Netem | Stall | Flap | FlapCarrier if no_link => Some("link"),
            Renumber | Unplug | Plug | Rename | Mtu | Filter if no_link => Some("link"),
            Flap | FlapCarrier if self.period.is_none_or(|p| p.0.is_zero()) => Some("period"),
            Stall | Flap | FlapCarrier if self.duration.is_none() => Some("for"),
            // 68 octets is the least that IPv4 knows (RFC 791).
            Mtu if self.mtu.is_none_or(|mtu| !(68..=65_535).contains(&mtu)) => Some("mtu"),
            Filter if self.filter.is_none() => Some("filter"),
            Restart | Kill | Stop | Start | Reload | Exec | Check | Rebind | Freeze | Thaw if self.host.is_none() => {
                Some("host")
            }
            Exec if self.command.as_ref().is_none_or(Vec::is_empty) => Some("command"),
            Check if self.line.is_none() => Some("line"),
            Mark if self.name.is_none() => Some("name"),
            Renumber if self.near.is_empty() => Some("near"),
            Renumber if self.far.is_empty() => Some("far"),
            Rename if self.to.is_none() => Some("to"),
            SetClock if self.clock.is_none() => Some("clock"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::WallClock;

    #[test]
    fn a_clock_is_set_to_a_day_by_days_or_right() {
        for (text, clock) in [
            ("1970-01-01", WallClock::Day(0)),
            ("2000-02-29", WallClock::Day(951_782_400)),
            ("2026-11-22", WallClock::Day(1_795_305_600)),
            ("+1d", WallClock::Step(86_400)),
            ("-3650d", WallClock::Step(-315_360_000)),
            ("right", WallClock::Right),
            ("2026-11-22T01:02:03", WallClock::Moment(1_795_309_323)),
        ] {
            assert_eq!(WallClock::read(text), Some(clock), "{text}");
        }
        for text in [
            "",
            "1d",
            "d",
            "1969-12-31",
            "1970-13-01",
            "1970-01",
            "noon",
            "+1h",
            "+1dT01:00:00",
            "2026-11-22T24:00:00",
            "2026-11-22T1:00",
        ] {
            assert_eq!(WallClock::read(text), None, "{text}");
        }
    }
}
