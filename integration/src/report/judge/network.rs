//! Verdicts on paths, handshakes, links and filters.

use super::{COUNT, Judge, MILLIS, Measured, PACKETS, Scale};
use crate::report::{Bar, Expect, PathExpect, PathSample, PeerSample, Report, StatusSample};
use proto::{PathState, TunnelKind};

/// A month for budgets.
const MONTH_MS: f64 = 30.0 * 86_400e3;

/// What a path is at a moment depends on when things happened.
const TIMED: Scale = Scale { timed: true, ..COUNT };

const NONE: Bar = Bar { min: None, max: Some(0.0) };

/// What is expected of each router's filters of which no expectation speaks: that they drop nothing.
pub(super) fn filters_unsaid(report: &Report, expects: &[Expect]) -> Vec<Expect> {
    let said = |node: &String| expects.iter().any(|e| e.filter_drops.is_some() && e.node.as_ref() == Some(node));
    let unsaid = report.filters.iter().map(|filter| &filter.node).filter(|node| !said(node));
    unsaid.map(|node| Expect { node: Some(node.clone()), filter_drops: Some(NONE), ..Expect::default() }).collect()
}

/// A path is what an expectation wants of it.
enum Wanted {
    Current,
    State(PathState),
}

impl Wanted {
    fn read(word: &str) -> Result<Self, String> {
        match serde_json::from_value(word.into()) {
            _ if word == "current" => Ok(Wanted::Current),
            Ok(state) => Ok(Wanted::State(state)),
            Err(error) => Err(format!("a path is \"current\" or in a state: {error}")),
        }
    }

    fn is(&self, peer: &PeerSample, path: &PathSample) -> bool {
        match self {
            Wanted::Current => {
                peer.current_slot == Some(path.slot) && peer.current_tunnel.is_none_or(|current| current == path.tunnel)
            }
            Wanted::State(state) => path.state == *state,
        }
    }
}

/// A path as an expectation names it.
fn named(path: &PathExpect) -> String {
    path.tunnel.map_or_else(|| path.slot.to_string(), |tunnel| format!("{} ({tunnel})", path.slot))
}

impl Judge<'_> {
    pub(super) fn network(&mut self) {
        let e = self.expect;
        for path in e.path.iter().flat_map(|paths| paths.all()) {
            match (&path.after, path.within_ms, path.never) {
                (None, None, true) => {
                    let measured = self.ever(path);
                    self.judge(&format!("looks that found slot {} {}", named(path), path.is), TIMED, NONE, measured);
                }
                (Some(after), Some(within), false) => {
                    let what = format!("slot {} {} after {}", named(path), path.is, super::moment_words(after));
                    let measured = self.becomes(path, after);
                    self.judge(&what, MILLIS, Bar { min: None, max: Some(within) }, measured);
                }
                (None, None, false) => {
                    let what = match &e.until {
                        Some(until) => {
                            format!("slot {} not {} at {}", named(path), path.is, super::moment_words(until))
                        }
                        None => format!("slot {} not {} at the end", named(path), path.is),
                    };
                    let measured = self.is_not(path);
                    self.judge(&what, TIMED, NONE, measured);
                }
                _ => self.wrong("a path has both `after` and `within_ms`, or neither, or else `never`".to_owned()),
            }
        }
        if let Some(handshakes) = &e.handshakes {
            let measured = self.handshakes(handshakes.slot);
            let what = format!("handshakes of slot {}", handshakes.slot);
            self.judge(&what, COUNT, Bar { min: handshakes.min, max: handshakes.max }, measured);
        }
        self.maybe("dropped by its filters", PACKETS, e.filter_drops, |j| {
            let node = j.expect.node.as_ref().ok_or("this bar needs a node as its subject")?;
            let filter = j.report.filters.iter().find(|filter| filter.node == *node);
            let filter = filter.ok_or_else(|| format!("\"{node}\" has no filter"))?;
            Ok((Some(filter.dropped as f64), filter.by.join("; ")))
        });
        if let Some(share) = &e.share_percent {
            let what = format!("share beside {}", share.beside.all().join(", "));
            let measured = self.share(share.beside.all());
            let scale = Scale { unit: "%", timed: false };
            self.judge(&what, scale, Bar { min: share.min, max: share.max }, measured);
        }
        self.maybe("octets in a month", Scale { unit: "octets", timed: false }, e.octets_per_month, Self::octets);
    }

    /// The path of a slot and kind at a moment: none, if the status does not show it. Of no kind: the one that is to be used.
    fn slot(sample: &StatusSample, slot: u8, kind: Option<TunnelKind>) -> Option<(&PeerSample, &PathSample)> {
        sample.peers.iter().find_map(|peer| {
            let mut of_slot = peer.paths.iter().filter(|path| path.slot == slot);
            let path = match kind {
                Some(kind) => of_slot.find(|path| path.tunnel == kind),
                None => of_slot.min_by_key(|path| path.stands_by),
            };
            Some((peer, path?))
        })
    }

    /// The node's status between the two moments, if any of it shows the slot.
    fn samples_of(
        &self,
        (slot, kind): (u8, Option<TunnelKind>),
        (from, until): (f64, f64),
    ) -> Result<Vec<&StatusSample>, String> {
        let all = self.samples()?;
        if !all.iter().any(|sample| Self::slot(sample, slot, kind).is_some()) {
            return Err(format!("its status never shows a slot {slot}"));
        }
        let window: Vec<_> = all.into_iter().filter(|s| s.at_ms >= from && s.at_ms <= until).collect();
        if window.is_empty() { Err("no status was seen in that time".to_owned()) } else { Ok(window) }
    }

    fn becomes(&self, path: &PathExpect, after: &crate::report::Moment) -> Measured {
        let wanted = Wanted::read(&path.is)?;
        let (after, (_, until)) = (self.moment(after)?, self.window()?);
        let samples = self.samples_of((path.slot, path.tunnel), (after, until))?;
        let is =
            |s: &&StatusSample| Self::slot(s, path.slot, path.tunnel).is_some_and(|(peer, path)| wanted.is(peer, path));
        let first = samples.iter().rposition(|s| !is(s)).map_or(0, |last| last + 1);
        Ok(match samples.get(first) {
            Some(sample) => (Some(sample.at_ms - after), String::new()),
            None => (None, "at the last look it was not so".to_owned()),
        })
    }

    fn is_not(&self, path: &PathExpect) -> Measured {
        let wanted = Wanted::read(&path.is)?;
        let (_, until) = self.window()?;
        let samples = self.samples_of((path.slot, path.tunnel), (f64::NEG_INFINITY, until))?;
        Ok(match samples.last().and_then(|sample| Self::slot(sample, path.slot, path.tunnel)) {
            Some((peer, path)) if wanted.is(peer, path) => (Some(0.0), String::new()),
            Some((peer, path)) => (Some(1.0), format!("it is {:?}; current: {:?}", path.state, peer.current_slot)),
            None => (Some(1.0), "it is not there".to_owned()),
        })
    }

    /// At how many looks it is so.
    fn ever(&self, path: &PathExpect) -> Measured {
        let wanted = Wanted::read(&path.is)?;
        let samples = self.samples_of((path.slot, path.tunnel), self.window()?)?;
        let is = |s: &&&StatusSample| {
            Self::slot(s, path.slot, path.tunnel).is_some_and(|(peer, path)| wanted.is(peer, path))
        };
        let note = samples.iter().find(is).map_or_else(String::new, |s| format!("first at {:.1} s", s.at_ms / 1e3));
        Ok((Some(samples.iter().filter(is).count() as f64), note))
    }

    /// How often the time of the last handshake moved.
    fn handshakes(&self, slot: u8) -> Measured {
        let samples = self.samples_of((slot, None), self.window()?)?;
        let begun = samples.iter().filter_map(|sample| {
            let (_, path) = Self::slot(sample, slot, None)?;
            Some(sample.at_ms - path.handshake_s? * 1e3)
        });
        let begun: Vec<f64> = begun.collect();
        if begun.len() < 2 {
            return Err("fewer than two samples of that time show a handshake".to_owned());
        }
        // The time of a sample and the age in it are taken one after the other.
        const TAKEN_APART_MS: f64 = 50.0;
        Ok((Some(begun.windows(2).filter(|w| w[1] > w[0] + TAKEN_APART_MS).count() as f64), String::new()))
    }

    /// Octets of a link, up and down, between two events, and how many milliseconds lie between these.
    fn counted(&self, link: &str) -> Result<(u64, u64, f64), String> {
        let at = |moment: &Option<crate::report::Moment>| match moment {
            Some(crate::report::Moment::Event(name)) => {
                let count = self.report.links.iter().find(|count| count.event == *name && count.link == *link);
                count.ok_or_else(|| format!("there was no event \"{name}\", or no link \"{link}\" then"))
            }
            _ => Err("octets are counted from an event to an event: give it `from` and `until` by name".to_owned()),
        };
        let (from, until) = (at(&self.expect.from)?, at(&self.expect.until)?);
        let length = until.at_ms - from.at_ms;
        if length <= 0.0 {
            return Err("\"from\" is not before \"until\"".to_owned());
        }
        Ok((until.up.saturating_sub(from.up), until.down.saturating_sub(from.down), length))
    }

    fn octets(&self) -> Measured {
        let link = self.expect.link.as_ref().ok_or("this bar needs a link as its subject")?;
        let (up, down, length) = self.counted(link)?;
        let note = format!("{up} up and {down} down in {:.0} s", length / 1e3);
        Ok((Some((up + down) as f64 * MONTH_MS / length), note))
    }

    fn share(&self, beside: &[String]) -> Measured {
        let link = self.expect.link.as_ref().ok_or("this bar needs a link as its subject")?;
        let octets = |link: &String| self.counted(link).map(|(up, down, _)| up + down);
        let own = octets(link)?;
        let mut all = own;
        for other in beside {
            all += octets(other)?;
        }
        match all {
            0 => Err("none of these links carried anything".to_owned()),
            _ => Ok((Some(own as f64 * 100.0 / all as f64), format!("{own} of {all} octets"))),
        }
    }
}
