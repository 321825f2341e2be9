//! The verdicts: expectations against what a run showed. Pure functions.

mod network;

use super::expect::{Asserted, Bar, BgpExpect, EventBar, Expect, Moment, Outcome, PercentOf, Verdict};
use super::{Report, StatusSample};
use crate::meter::{Flow, Hole, SizesResult, TcpResult, WatchResult};
use proto::snapshot::Traffic;

/// What was measured (`None`: it never happened), with a remark; or why it could not be, which is the scenario's fault.
type Measured = Result<(Option<f64>, String), String>;

/// A bar as judged: bounds, and how they and the figure read.
#[derive(Clone, Copy)]
struct Scale {
    unit: &'static str,
    /// A deadline: asserted in virtual time only, unless the expectation says otherwise.
    timed: bool,
}

const PACKETS: Scale = Scale { unit: "packets", timed: false };
const COUNT: Scale = Scale { unit: "", timed: false };
const OCTETS: Scale = Scale { unit: "octets", timed: false };
const MILLIS: Scale = Scale { unit: "ms", timed: true };

/// Judges a run. An expectation that names what the run has not is an [`Verdict::Error`], as is traffic that did not
/// happen. No router's filter may have dropped anything, unless an expectation bounds it.
pub fn evaluate(report: &Report, expects: &[Expect]) -> Vec<Outcome> {
    let void = report.traffic.failed.iter().map(|why| Outcome {
        what: "the traffic of the run".to_owned(),
        bar: "happens".to_owned(),
        measured: None,
        unit: String::new(),
        verdict: Verdict::Error,
        note: why.clone(),
        one_in_twenty: false,
    });
    let unsaid = network::filters_unsaid(report, expects);
    let expects = expects.iter().chain(&unsaid);
    void.chain(expects.flat_map(|expect| Judge { report, expect, outcomes: Vec::new() }.all())).collect()
}

struct Judge<'a> {
    report: &'a Report,
    expect: &'a Expect,
    outcomes: Vec<Outcome>,
}

/// Numbered packets, of a stream or of pings.
struct Packets<'a> {
    sent: u64,
    start_ms: f64,
    stop_ms: f64,
    flow: &'a Flow,
}

impl Judge<'_> {
    fn all(mut self) -> Vec<Outcome> {
        let e = self.expect;
        let subjects = [&e.stream, &e.sizes, &e.tcp, &e.ping, &e.attack, &e.watch, &e.node, &e.link];
        if subjects.iter().filter(|s| s.is_some()).count() > 1 {
            self.wrong("an expectation has one subject: make several entries of it".to_owned());
            return self.outcomes;
        }
        self.packets();
        self.sizes();
        self.tcp();
        self.attack();
        self.node();
        self.network();
        if let Some(bgp) = &e.bgp {
            self.bgp(bgp);
        }
        if self.outcomes.is_empty() {
            self.wrong("it bounds nothing: give it a bar, such as lost = { max = 0 }".to_owned());
        }
        self.outcomes
    }

    /// What the report calls the expectation's subject.
    fn subject(&self) -> String {
        let e = self.expect;
        let of = |kind: &str, name: &Option<String>| name.as_ref().map(|n| format!("{kind} {n}"));
        let subject = of("stream", &e.stream)
            .or_else(|| of("sizes", &e.sizes))
            .or_else(|| of("tcp", &e.tcp))
            .or_else(|| of("ping", &e.ping))
            .or_else(|| of("attack", &e.attack))
            .or_else(|| of("watch", &e.watch))
            .or_else(|| of("node", &e.node))
            .or_else(|| of("link", &e.link))
            .unwrap_or_default();
        match &e.title {
            Some(title) if subject.is_empty() => title.clone(),
            Some(title) => format!("{title} ({subject})"),
            None => subject,
        }
    }

    fn wrong(&mut self, why: String) {
        let what = self.subject();
        let verdict = Verdict::Error;
        let (bar, unit) = (String::new(), String::new());
        self.outcomes.push(Outcome { what, bar, measured: None, unit, verdict, note: why, one_in_twenty: false });
    }

    fn judge(&mut self, what: &str, scale: Scale, bar: Bar, measured: Measured) {
        let subject = self.subject();
        let what = if subject.is_empty() { what.to_owned() } else { format!("{subject}: {what}") };
        let (measured, note, met) = match measured {
            _ if bar.min.is_none() && bar.max.is_none() => (None, Err("it has neither min nor max".to_owned()), false),
            Ok((value, note)) => (value, Ok(note), value.is_some_and(|v| within(bar, v))),
            Err(why) => (None, Err(why), false),
        };
        let asserted = match self.expect.asserted {
            Some(Asserted::Always) => true,
            Some(Asserted::Never) => false,
            Some(Asserted::Virtual) => self.report.run.kernel.is_exact(),
            None => !scale.timed || self.report.run.kernel.is_exact(),
        };
        let verdict = match (&note, asserted, met) {
            (Err(_), ..) => Verdict::Error,
            (_, true, true) => Verdict::Pass,
            (_, true, false) => Verdict::Fail,
            (_, false, true) => Verdict::ReportedMet,
            (_, false, false) => Verdict::ReportedMissed,
        };
        let note = note.unwrap_or_else(|why| why);
        self.outcomes.push(Outcome {
            what,
            bar: words(bar, scale),
            measured,
            unit: scale.unit.to_owned(),
            verdict,
            note,
            one_in_twenty: self.expect.one_in_twenty,
        });
    }

    fn maybe(&mut self, what: &str, scale: Scale, bar: Option<Bar>, measured: impl FnOnce(&Self) -> Measured) {
        if let Some(bar) = bar {
            let measured = measured(self);
            self.judge(what, scale, bar, measured);
        }
    }

    /// The packets of the subject.
    fn flow(&self) -> Result<Packets<'_>, String> {
        let report = self.report;
        match (&self.expect.stream, &self.expect.ping) {
            (Some(name), _) => {
                let stream = report.traffic.streams.iter().find(|s| s.name == *name);
                let stream = stream.ok_or_else(|| format!("there is no stream \"{name}\""))?;
                let (start_ms, stop_ms) = (stream.start_ms, stream.stop_ms);
                Ok(Packets { sent: stream.sent, start_ms, stop_ms, flow: &stream.flow })
            }
            (_, Some(name)) => {
                let ping = report.traffic.pings.iter().find(|p| p.name == *name);
                let ping = ping.ok_or_else(|| format!("there is no ping \"{name}\""))?;
                Ok(Packets { sent: ping.sent, start_ms: 0.0, stop_ms: report.run.length_ms, flow: &ping.flow })
            }
            _ => Err("this bar needs a stream or a ping as its subject".to_owned()),
        }
    }

    fn lost_beyond(&self, link: &str) -> Measured {
        let lost = self.flow()?.flow.lost as f64;
        let dropped = self.report.dropped_by_links.get(link);
        let dropped = *dropped.ok_or_else(|| format!("\"{link}\" has no filter, or this kernel has none"))?;
        Ok((Some(lost - dropped as f64), format!("{lost} lost, {dropped} dropped")))
    }

    fn packets(&mut self) {
        let e = self.expect;
        let count = |of: fn(&Flow) -> u64| move |j: &Self| Ok((Some(of(j.flow()?.flow) as f64), String::new()));
        let delay = |of: fn(&Flow) -> f64| {
            move |j: &Self| {
                let flow = j.flow()?.flow;
                Ok(if flow.received == 0 {
                    (None, "nothing arrived".to_owned())
                } else {
                    (Some(of(flow)), String::new())
                })
            }
        };
        self.maybe("longest gap", MILLIS, e.longest_gap_ms, Self::longest_gap);
        // Where some may be lost, how many depends on how long a failover takes; where none may, it is no matter of time.
        let allows_some = |bar: Option<Bar>| bar.and_then(|bar| bar.max).is_some_and(|max| max > 0.0);
        let packets = Scale { timed: allows_some(e.lost), ..PACKETS };
        self.maybe("lost", packets, e.lost, |j| Ok((Some(j.lost()?), String::new())));
        self.maybe("lost", Scale { unit: "%", timed: allows_some(e.lost_percent) }, e.lost_percent, |j| {
            let packets = j.flow()?;
            match packets.sent {
                0 => Err("nothing was sent".to_owned()),
                sent => Ok((Some(packets.flow.lost as f64 * 100.0 / sent as f64), String::new())),
            }
        });
        if let Some(beyond) = &e.lost_beyond {
            let measured = self.lost_beyond(&beyond.link);
            let what = format!("lost beyond what {} has dropped", beyond.link);
            self.judge(&what, PACKETS, Bar { min: None, max: Some(beyond.max) }, measured);
        }
        self.maybe("received", PACKETS, e.received, count(|f| f.received));
        self.maybe("duplicated", PACKETS, e.duplicated, count(|f| f.duplicated));
        self.maybe("out of order", PACKETS, e.reordered, count(|f| f.reordered));
        self.maybe("misdelivered", PACKETS, e.misdelivered, count(|f| f.misdelivered));
        self.maybe("with another DSCP or ECN field", PACKETS, e.remarked, count(|f| f.remarked));
        self.maybe("marked", PACKETS, e.marked, count(|f| f.marked));
        self.maybe("marked", Scale { unit: "%", timed: false }, e.marked_percent, |j| {
            let flow = j.flow()?.flow;
            let share = (flow.received > 0).then(|| flow.marked as f64 * 100.0 / flow.received as f64);
            Ok((share, String::new()))
        });
        self.maybe("median delay", MILLIS, e.delay_p50_ms, delay(|f| f.delay_p50_ms));
        self.maybe("delay, 95th percentile", MILLIS, e.delay_p95_ms, delay(|f| f.delay_p95_ms));
        self.maybe("delay, 99th percentile", MILLIS, e.delay_p99_ms, delay(|f| f.delay_p99_ms));
        self.maybe("longest delay", MILLIS, e.delay_max_ms, delay(|f| f.delay_max_ms));
        if let Some(EventBar { after, min, max }) = &e.back_within_ms {
            let measured = self.back(after);
            let what = format!("next arrival after {}", moment_words(after));
            self.judge(&what, MILLIS, Bar { min: *min, max: *max }, measured);
        }
        if let Some(hosts) = &e.delivered_only_to {
            let measured = self.strays(hosts);
            let what = if hosts.is_empty() {
                "seen by anyone".to_owned()
            } else {
                format!("seen by others than {}", hosts.join(", "))
            };
            self.judge(&what, PACKETS, Bar { min: None, max: Some(0.0) }, measured);
        }
    }

    /// The span that `from` and `until` leave.
    fn window(&self) -> Result<(f64, f64), String> {
        let from = self.expect.from.as_ref().map_or(Ok(f64::NEG_INFINITY), |m| self.moment(m))?;
        let until = self.expect.until.as_ref().map_or(Ok(f64::INFINITY), |m| self.moment(m))?;
        if from < until { Ok((from, until)) } else { Err("\"from\" is not before \"until\"".to_owned()) }
    }

    fn moment(&self, moment: &Moment) -> Result<f64, String> {
        match moment {
            Moment::At(span) => Ok(span.millis()),
            Moment::Event(name) => {
                let event = self.report.events.iter().find(|event| event.name == *name);
                event.map(|event| event.at_ms).ok_or_else(|| format!("there was no event \"{name}\""))
            }
        }
    }

    fn longest_gap(&self) -> Measured {
        let flow = self.flow()?.flow;
        let (from, until) = self.window()?;
        if from == f64::NEG_INFINITY && until == f64::INFINITY {
            let at = flow.longest_gap.at_ms / 1e3;
            return Ok((Some(flow.longest_gap.length_ms), format!("at {at:.3} s")));
        }
        let inside = |gap: &&crate::meter::Gap| gap.end_ms() > from && gap.at_ms < until;
        let length = |gap: &crate::meter::Gap| gap.end_ms().min(until) - gap.at_ms.max(from);
        let longest = flow.gaps.iter().filter(inside).map(length).fold(0.0, f64::max);
        if longest > 50.0 {
            return Ok((Some(longest), String::new()));
        }
        // Shorter ones are not listed: only the bound is known.
        if self.expect.longest_gap_ms.is_some_and(|bar| bar.min.is_some() || bar.max.is_some_and(|max| max < 50.0)) {
            return Err("with \"from\" or \"until\", a gap can only be bounded from above, by 50 ms or more".to_owned());
        }
        Ok((Some(50.0), "no gap over 50 ms".to_owned()))
    }

    fn lost(&self) -> Result<f64, String> {
        let flow = self.flow()?.flow;
        let (from, until) = self.window()?;
        if from == f64::NEG_INFINITY && until == f64::INFINITY {
            return Ok(flow.lost as f64);
        }
        let in_window = |i: usize| {
            let at = i as f64 * flow.series.bin_ms;
            at >= from && at < until
        };
        Ok(flow.series.lost.iter().enumerate().filter(|&(i, _)| in_window(i)).map(|(_, &n)| f64::from(n)).sum())
    }

    /// Time from a moment to the next arrival: exact where it lies in a gap that is listed, else to a bin's length.
    fn back(&self, after: &Moment) -> Measured {
        let at = self.moment(after)?;
        let packets = self.flow()?;
        if at < packets.start_ms || at >= packets.stop_ms {
            return Err(format!("nothing is sent at {:.3} s, so nothing could come back", at / 1e3));
        }
        let flow = packets.flow;
        let bin_ms = flow.series.bin_ms;
        let arrives_after = |ms: f64| {
            let first = (ms / bin_ms).ceil() as usize;
            flow.series.received.iter().enumerate().skip(first).find(|&(_, &n)| n > 0).map(|(i, _)| i)
        };
        if let Some(gap) = flow.gaps.iter().find(|gap| gap.at_ms <= at && at < gap.end_ms()) {
            let ended_by_arrival = gap.end_ms() < packets.stop_ms || arrives_after(packets.stop_ms).is_some();
            return Ok(if ended_by_arrival {
                (Some(gap.end_ms() - at), String::new())
            } else {
                (None, "nothing came any more".to_owned())
            });
        }
        Ok(match arrives_after(at) {
            Some(bin) => (Some((bin + 1) as f64 * bin_ms - at), format!("to {bin_ms} ms")),
            None => (None, "nothing came any more".to_owned()),
        })
    }

    /// Packets of the subject that were seen at other hosts than those named.
    fn strays(&self, allowed: &[String]) -> Measured {
        let traffic = &self.report.traffic;
        let (name, receiver) = match (&self.expect.stream, &self.expect.attack) {
            (Some(name), _) => {
                let stream = traffic.streams.iter().find(|s| s.name == *name);
                let stream = stream.ok_or_else(|| format!("there is no stream \"{name}\""))?;
                (name, Some((&stream.to, stream.flow.received)))
            }
            (_, Some(name)) => {
                let attack = traffic.attacks.iter().find(|a| a.name == *name);
                let attack = attack.ok_or_else(|| format!("there is no attack \"{name}\""))?;
                if attack.id == 0 {
                    return Err(format!("the packets of \"{name}\" have no mark to know them by"));
                }
                (name, None)
            }
            _ => return Err("this bar needs a stream or an attack as its subject".to_owned()),
        };
        let watched = traffic.watches.iter().map(|w| &w.at).chain(receiver.map(|(to, _)| to)).collect::<Vec<_>>();
        if let Some(unknown) = allowed.iter().find(|host| !watched.contains(host)) {
            return Err(format!("nobody watches at \"{unknown}\", nor receives this there"));
        }
        if traffic.watches.iter().all(|w| allowed.contains(&w.at)) {
            return Err("nobody watches anywhere else: add traffic of kind \"watch\" where it must not come".to_owned());
        }
        let mut strays: Vec<(&str, u64)> = Vec::new();
        for watch in traffic.watches.iter().filter(|w| !allowed.contains(&w.at)) {
            let packets = watch.seen.iter().filter(|seen| seen.name == *name).map(|seen| seen.packets).sum();
            strays.push((&watch.at, packets));
        }
        if let Some((to, received)) = receiver
            && !watched_by(traffic, to)
            && !allowed.contains(to)
        {
            strays.push((to, received));
        }
        let places: Vec<_> = strays.iter().filter(|(_, n)| *n > 0).map(|(at, n)| format!("{n} at {at}")).collect();
        Ok((Some(strays.iter().map(|(_, n)| *n as f64).sum()), places.join(", ")))
    }

    /// The sweeps that are the subject.
    fn sweeps(&self) -> Result<Vec<&SizesResult>, String> {
        let e = self.expect;
        if [&e.stream, &e.tcp, &e.ping, &e.attack, &e.watch, &e.node].into_iter().any(Option::is_some) {
            return Err("this bar needs a sizes entry as its subject, or none for all of them".to_owned());
        }
        let of_name = |s: &&SizesResult| e.sizes.as_ref().is_none_or(|name| *name == s.name);
        let sweeps: Vec<_> = self.report.traffic.sizes.iter().filter(of_name).collect();
        match &e.sizes {
            Some(name) if sweeps.is_empty() => Err(format!("there is no sizes traffic \"{name}\"")),
            None if sweeps.is_empty() => Err("there is no sizes traffic".to_owned()),
            _ => Ok(sweeps),
        }
    }

    fn sizes(&mut self) {
        let e = self.expect;
        self.maybe("vanished", PACKETS, e.black_holes, |j| {
            let (sweeps, (from, until)) = (j.sweeps()?, j.window()?);
            let counts = |hole: &&Hole| hole.at_ms >= from && hole.at_ms < until;
            let holes = |s: &SizesResult| s.holes.iter().filter(counts).map(|hole| hole.size).collect::<Vec<_>>();
            let note = |s: &&SizesResult| {
                let holes = holes(s);
                let (least, most) = (holes.iter().min()?, holes.iter().max()?);
                Some(format!("{}: of {least} to {most} octets", s.name))
            };
            let notes: Vec<String> = sweeps.iter().filter_map(note).collect();
            Ok((Some(sweeps.iter().map(|s| holes(s).len() as f64).sum()), notes.join("; ")))
        });
        self.maybe("arrived up to", OCTETS, e.arrived_up_to, |j| {
            let least = j.sweeps()?.into_iter().min_by_key(|s| s.arrived_up_to());
            let least = least.ok_or("there is no sizes traffic")?;
            let figure = least.arrived_up_to().map(|size| size as f64);
            Ok((figure, figure.map_or_else(|| format!("{}: not even the smallest", least.name), |_| String::new())))
        });
        if let Some(bar) = e.told_mtu {
            let told =
                |s: &SizesResult| s.sizes.iter().filter_map(|row| row.told_mtu).map(f64::from).collect::<Vec<_>>();
            let measured = self.sweeps().map(|sweeps| {
                let told: Vec<f64> = sweeps.into_iter().flat_map(told).collect();
                let outside = told.iter().copied().find(|&mtu| !within(bar, mtu));
                let note = if told.is_empty() { "no sender was told any" } else { "" };
                (outside.or(told.first().copied()), note.to_owned())
            });
            self.judge("MTU told", OCTETS, bar, measured);
        }
    }

    fn tcp(&mut self) {
        let e = self.expect;
        let entries = |j: &Self| -> Result<Vec<TcpResult>, String> {
            let of_name = |t: &&TcpResult| j.expect.tcp.as_ref().is_none_or(|name| *name == t.name);
            let entries: Vec<_> = j.report.traffic.tcp.iter().filter(of_name).cloned().collect();
            match &j.expect.tcp {
                _ if j.expect.stream.is_some()
                    || j.expect.sizes.is_some()
                    || j.expect.ping.is_some()
                    || j.expect.node.is_some() =>
                {
                    Err("this bar needs a tcp entry as its subject, or none for all of them".to_owned())
                }
                Some(name) if entries.is_empty() => Err(format!("there is no tcp traffic \"{name}\"")),
                None if entries.is_empty() => Err("there is no tcp traffic".to_owned()),
                _ => Ok(entries),
            }
        };
        let sum = |of: fn(&TcpResult) -> u64| {
            move |j: &Self| Ok((Some(entries(j)?.iter().map(|t| of(t) as f64).sum()), String::new()))
        };
        let connections = Scale { unit: "connections", timed: false };
        self.maybe("TCP connections broken", connections, e.tcp_broken, |j| {
            let entries = entries(j)?;
            if entries.iter().all(|t| t.connections == 0) {
                return Err("no connection was tried".to_owned());
            }
            let reasons = entries.iter().flat_map(|t| t.reasons.clone()).collect::<Vec<_>>().join("; ");
            Ok((Some(entries.iter().map(|t| t.broken as f64).sum()), reasons))
        });
        self.maybe("downloads completed", COUNT, e.tcp_completed, sum(|t| t.completed));
        self.maybe("sent again", Scale { unit: "segments", timed: false }, e.tcp_sent_again, sum(|t| t.retransmits));
        self.maybe("octets downloaded", OCTETS, e.tcp_bytes, sum(|t| t.bytes));
        self.maybe("goodput", Scale { unit: "Mbit/s", timed: true }, e.tcp_mbit, |j| {
            let (entries, (from, until)) = (entries(j)?, j.window()?);
            if !from.is_finite() || !until.is_finite() {
                return Err("goodput needs `from` and `until`".to_owned());
            }
            let octets: f64 = entries.iter().map(|t| octets(t, from, until)).sum();
            Ok((Some(octets * 8.0 / ((until - from) * 1e3)), String::new()))
        });
        if let Some(PercentOf { tcp, min, max }) = &e.tcp_percent_of {
            let other = self.report.traffic.tcp.iter().find(|other| other.name == *tcp);
            let measured = entries(self).and_then(|entries| match other {
                Some(other) if other.bytes > 0 => {
                    let octets: u64 = entries.iter().map(|entry| entry.bytes).sum();
                    Ok((
                        Some(octets as f64 * 100.0 / other.bytes as f64),
                        format!("{octets} of {} octets", other.bytes),
                    ))
                }
                _ => Err(format!("there is no tcp entry \"{tcp}\", or it received nothing")),
            });
            let scale = Scale { unit: "%", timed: true };
            self.judge(&format!("downloaded beside {tcp}"), scale, Bar { min: *min, max: *max }, measured);
        }
        self.maybe("longest stall", MILLIS, e.tcp_stall_ms, |j| {
            let stalls = entries(j)?.into_iter().map(|t| t.longest_stall.length_ms);
            Ok((Some(stalls.fold(0.0, f64::max)), String::new()))
        });
        if let Some(EventBar { after, min, max }) = &e.tcp_goodput_percent {
            // As the project's aims have it: what a user notices of a download, and time enough for TCP's recovery.
            const SPAN_MS: f64 = 2_000.0;
            let measured = self.moment(after).and_then(|at| {
                let entries = entries(self)?;
                let octets = |from: f64| -> f64 { entries.iter().map(|t| octets(t, from, from + SPAN_MS)).sum() };
                match octets(at - SPAN_MS) {
                    0.0 => Err("nothing came in the two seconds before".to_owned()),
                    before => Ok((Some(octets(at) * 100.0 / before), String::new())),
                }
            });
            let what = format!("goodput after {}", moment_words(after));
            self.judge(&what, Scale { unit: "%", timed: true }, Bar { min: *min, max: *max }, measured);
        }
    }

    fn attack(&mut self) {
        let e = self.expect;
        let count = |of: fn(&crate::meter::AttackResult) -> u64| {
            move |j: &Self| {
                let name = j.expect.attack.as_ref().ok_or("this bar needs an attack as its subject")?;
                let attack = j.report.traffic.attacks.iter().find(|a| a.name == *name);
                let attack = attack.ok_or_else(|| format!("there is no attack \"{name}\""))?;
                Ok((Some(of(attack) as f64), String::new()))
            }
        };
        self.maybe("sent", PACKETS, e.sent, count(|a| a.sent));
        self.maybe("recorded", PACKETS, e.recorded, count(|a| a.recorded));
        self.maybe("answers", PACKETS, e.replies, count(|a| a.replies));
        self.maybe("longest answer", OCTETS, e.longest_reply, count(|a| a.longest_reply));
        self.maybe("octets answered", Scale { unit: "%", timed: false }, e.reply_percent, |j| {
            let [sent, replied] = [count(|a| a.sent_octets)(j)?.0, count(|a| a.reply_octets)(j)?.0];
            let note = format!("{replied:?} of {sent:?} octets");
            Ok((sent.filter(|sent| *sent > 0.0).zip(replied).map(|(sent, replied)| replied * 100.0 / sent), note))
        });
        let watched = |of: fn(&WatchResult) -> Option<u64>| {
            move |j: &Self| {
                let name = j.expect.watch.as_ref().ok_or("this bar needs a watch as its subject")?;
                let watch = j.report.traffic.watches.iter().find(|w| w.name == *name);
                let watch = watch.ok_or_else(|| format!("there is no watch \"{name}\""))?;
                let figure = of(watch).ok_or_else(|| format!("the watch \"{name}\" has no port"))?;
                Ok((Some(figure as f64), String::new()))
            }
        };
        self.maybe("datagrams to its port", PACKETS, e.datagrams, watched(|w| w.datagrams));
        self.maybe("longest datagram", OCTETS, e.longest_datagram, watched(|w| w.datagrams.and(Some(w.longest))));
    }

    fn node(&mut self) {
        let e = self.expect;
        if let Some(changes) = &e.path_changes {
            let measured = self.path_changes(changes);
            let what = match &changes.peer {
                Some(peer) => format!("changes of path towards {peer}"),
                None => "changes of path".to_owned(),
            };
            // A loaded machine can make a path look dead: the number is only sure in virtual time.
            self.judge(&what, Scale { unit: "", timed: true }, Bar { min: changes.min, max: changes.max }, measured);
        }
        // How much is sent twice or acknowledged depends on when things happened.
        let percent = Scale { unit: "%", timed: true };
        self.maybe("copies sent", percent, e.copies_percent, |j| j.share_of_tx(|peer| peer.copies));
        self.maybe("receipts sent", percent, e.receipts_percent, |j| j.share_of_tx(|peer| peer.receipts));
        if let Some(drops) = &e.drops {
            let measured = self.drops(drops.reason.all());
            let names = drops.reason.all().join(" + ");
            self.judge(&format!("dropped as {names}"), PACKETS, Bar { min: drops.min, max: drops.max }, measured);
        }
        if let Some(clean) = e.clean_exit {
            let measured = self.unclean(clean);
            self.judge("exits that were not clean", COUNT, Bar { min: None, max: Some(0.0) }, measured);
        }
    }

    /// The subject node's status, in order of time.
    fn samples(&self) -> Result<Vec<&StatusSample>, String> {
        let node = self.expect.node.as_ref().ok_or("this bar needs a node as its subject")?;
        let samples: Vec<_> = self.report.status.iter().filter(|s| s.node == *node).collect();
        if samples.is_empty() { Err(format!("no status of \"{node}\" was seen")) } else { Ok(samples) }
    }

    fn path_changes(&self, changes: &super::PathChanges) -> Measured {
        let samples = self.samples()?;
        let from = changes.from.as_ref().map_or(Ok(f64::NEG_INFINITY), |m| self.moment(m))?;
        let until = changes.until.as_ref().map_or(Ok(f64::INFINITY), |m| self.moment(m))?;
        let of_peer = |p: &&super::PeerSample| changes.peer.as_ref().is_none_or(|name| *name == p.name);
        if !samples.iter().any(|s| s.peers.iter().any(|p| of_peer(&p))) {
            return Err("its status shows no such peer".to_owned());
        }
        let counter = |s: &&StatusSample| s.peers.iter().filter(of_peer).map(|p| p.path_changes).sum::<u64>();
        // From the last status before `from`, as what happened between the two may belong to the window.
        let first = samples.iter().rposition(|s| s.at_ms <= from).unwrap_or(0);
        let window: Vec<u64> = samples[first..].iter().take_while(|s| s.at_ms <= until).map(counter).collect();
        if window.len() < 2 {
            return Err("fewer than two status samples lie between \"from\" and \"until\"".to_owned());
        }
        Ok((Some(grown(&window) as f64), String::new()))
    }

    /// Octets of a kind in percent of those of packets, both sent from `from` to `until`.
    fn share_of_tx(&self, kind: fn(&super::PeerSample) -> Traffic) -> Measured {
        let (from, until) = self.window()?;
        let samples = self.samples()?;
        // From the last status before `from`, as for changes of path.
        let first = samples.iter().rposition(|s| s.at_ms <= from).unwrap_or(0);
        let window: Vec<_> = samples[first..].iter().take_while(|s| s.at_ms <= until).collect();
        let octets = |of: fn(&super::PeerSample) -> Traffic| {
            let sums = window.iter().map(|s| s.peers.iter().map(|peer| of(peer).bytes).sum::<u64>());
            grown(&sums.collect::<Vec<_>>())
        };
        match (octets(kind), octets(|peer| peer.tx)) {
            (_, 0) => Err("it sent no packet between \"from\" and \"until\"".to_owned()),
            (of_kind, all) => Ok((Some(of_kind as f64 * 100.0 / all as f64), format!("{of_kind} of {all} octets"))),
        }
    }

    fn drops(&self, reasons: &[String]) -> Measured {
        let known = |name: &&String| !proto::DropReason::ALL.iter().any(|r| r.name() == name.as_str());
        if let Some(unknown) = reasons.iter().find(known) {
            return Err(format!("there is no counter \"{unknown}\": `status` lists them"));
        }
        let samples = self.samples()?;
        let count = |s: &&StatusSample| {
            let all = s.peers.iter().map(|p| &p.drops).chain([&s.drops]);
            all.map(|drops| reasons.iter().filter_map(|r| drops.get(r)).sum::<u64>()).sum::<u64>()
        };
        // The counters start at zero with the daemon, which may have been before the first sample.
        let values: Vec<u64> = [0].into_iter().chain(samples.iter().map(count)).collect();
        Ok((Some(grown(&values) as f64), String::new()))
    }

    fn unclean(&self, wanted: bool) -> Measured {
        let node = self.expect.node.as_ref().ok_or("this bar needs a node as its subject")?;
        if !wanted {
            return Err("clean_exit = false asks for nothing: leave it out".to_owned());
        }
        let exits: Vec<_> = self.report.exits.iter().filter(|exit| exit.node == *node).collect();
        if exits.is_empty() {
            return Err(format!("no daemon ended at \"{node}\""));
        }
        let bad: Vec<_> = exits.iter().filter(|exit| !exit.clean || !exit.left_over.is_empty()).collect();
        let notes: Vec<_> = bad
            .iter()
            .map(|exit| {
                let left = exit.left_over.join(", ");
                if left.is_empty() { exit.how.clone() } else { format!("{}; left over: {left}", exit.how) }
            })
            .collect();
        Ok((Some(bad.len() as f64), notes.join("; ")))
    }

    fn bgp(&mut self, bgp: &BgpExpect) {
        let change = match bgp.change {
            super::BgpChange::Announced => "announced",
            super::BgpChange::Withdrawn => "withdrawn",
        };
        let what = format!("{} {change} after {}", bgp.prefix, moment_words(&bgp.after));
        let scale = Scale { unit: "s", timed: true };
        let first = self.moment(&bgp.after).map(|after| {
            let mut changes = self.report.bgp.iter().filter(|b| b.prefix == bgp.prefix && b.change == bgp.change);
            changes.find(|b| b.at_ms >= after).map(|b| (b.at_ms - after) / 1e3)
        });
        if !bgp.never {
            let measured = first.map(|s| (s, if s.is_none() { "it never was".to_owned() } else { String::new() }));
            self.judge(&what, scale, Bar { min: bgp.min_s, max: bgp.max_s }, measured);
            return;
        }
        let known = self.report.bgp.iter().any(|b| b.prefix == bgp.prefix);
        let measured = match first {
            _ if bgp.min_s.is_some() || bgp.max_s.is_some() => {
                Err("\"never\" takes neither min_s nor max_s".to_owned())
            }
            _ if !known => Err(format!("{} was never seen at all: is it written as BIRD does?", bgp.prefix)),
            Ok(Some(seconds)) => Ok((Some(1.0), format!("{seconds:.3} s after"))),
            Ok(None) => Ok((Some(0.0), String::new())),
            Err(why) => Err(why),
        };
        self.judge(&what, COUNT, Bar { min: None, max: Some(0.0) }, measured);
    }
}

/// Octets of downloads that came in the bins from one moment until another.
fn octets(tcp: &TcpResult, from: f64, until: f64) -> f64 {
    let bin = |ms: f64| ((ms / tcp.series.bin_ms).max(0.0) as usize).min(tcp.series.received.len());
    tcp.series.received[bin(from)..bin(until)].iter().map(|&n| f64::from(n)).sum()
}

fn watched_by(traffic: &crate::meter::TrafficResults, host: &str) -> bool {
    traffic.watches.iter().any(|w| w.at == host)
}

/// How much a counter grew, if it starts at zero again after a restart.
fn grown(values: &[u64]) -> u64 {
    values.windows(2).map(|w| if w[1] >= w[0] { w[1] - w[0] } else { w[1] }).sum()
}

fn within(bar: Bar, value: f64) -> bool {
    bar.min.is_none_or(|min| value >= min) && bar.max.is_none_or(|max| value <= max)
}

fn words(bar: Bar, scale: Scale) -> String {
    let bounds = match (bar.min, bar.max) {
        (Some(min), Some(max)) if min == max => format!("exactly {min}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(0.0)) if !scale.timed => return "none".to_owned(),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => return "nothing".to_owned(),
    };
    format!("{bounds} {}", scale.unit).trim_end().to_owned()
}

fn moment_words(moment: &Moment) -> String {
    match moment {
        Moment::At(span) => span.to_string(),
        Moment::Event(name) => name.clone(),
    }
}

#[cfg(test)]
mod tests;
