//! BIRD, as the transit's router: its configuration, and what its log tells of routes.

use crate::report::{BgpChange, BgpEvent};
use crate::scenario::Bird;
use std::fmt::Write as _;
use std::path::Path;

/// The name of the session with the core; channels are `core.ipv4` and `core.ipv6`.
const SESSION: &str = "core";

/// The configuration file.
pub(super) fn config(bird: &Bird, log: &Path) -> String {
    let Bird { local_as, router_id, core_as, core_address, interface, next_hop_v6, announces } = bird;
    let routes = |v4: bool| -> String {
        let announces = announces.iter().filter(|prefix| prefix.addr().is_ipv4() == v4);
        announces.map(|prefix| format!(" route {prefix} unreachable;")).collect()
    };
    let (routes_v4, routes_v6) = (routes(true), routes(false));
    let next_hop_v6 = next_hop_v6.map(|a| format!("next hop address {a};")).unwrap_or_default();
    let mut text = String::new();
    // Route events with microseconds: what the lab reads.
    let _ = write!(
        text,
        r#"log "{log}" all;
timeformat log iso long us;
router id {router_id};
protocol device {{}}
protocol direct {{ ipv4; ipv6; interface "{interface}"; }}
protocol kernel {{ ipv4 {{ export where source = RTS_BGP; import none; }}; }}
protocol kernel {{ ipv6 {{ export where source = RTS_BGP; import none; }}; }}
protocol static {{ ipv4; route 0.0.0.0/0 unreachable;{routes_v4} }}
protocol static {{ ipv6; route ::/0 unreachable;{routes_v6} }}
protocol bgp {SESSION} {{
  local as {local_as};
  neighbor {core_address} as {core_as};
  interface "{interface}";
  direct;
  connect delay time 1;
  error wait time 1, 5;
  debug {{ states, routes, events }};
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
  ipv6 {{ import all; export where source = RTS_STATIC; {next_hop_v6} }};
}}
"#,
        log = log.display(),
    );
    text
}

/// Routes that came and went, by the log. `start_unix_ns` is the wall clock at the start of the traffic.
pub fn events(log: &str, start_unix_ns: i64) -> Vec<BgpEvent> {
    let mut events: Vec<BgpEvent> = log.lines().filter_map(|line| event(line, start_unix_ns)).collect();
    // BIRD logs a route that is replaced by a better one as added again: only changes count.
    let mut announced = std::collections::BTreeSet::new();
    events.retain(|event| match event.change {
        BgpChange::Announced => announced.insert(event.prefix.clone()),
        BgpChange::Withdrawn => announced.remove(&event.prefix),
    });
    events
}

/// `2026-11-22 01:07:08.123456 <TRACE> core.ipv4 > added [best] 198.51.100.0/24 …`
fn event(line: &str, start_unix_ns: i64) -> Option<BgpEvent> {
    let (stamp, rest) = line.split_once(" <TRACE> ")?;
    let rest = rest.strip_prefix(SESSION)?.strip_prefix('.')?;
    let (_channel, rest) = rest.split_once(" > ")?;
    let mut words = rest.split_whitespace();
    let change = match words.next()? {
        "added" => BgpChange::Announced,
        "removed" => BgpChange::Withdrawn,
        _ => return None,
    };
    let prefix = words.find(|word| word.contains('/'))?.to_owned();
    Some(BgpEvent { at_ms: (unix_ns(stamp)? - start_unix_ns) as f64 / 1e6, prefix, change })
}

/// A date and time in UTC as nanoseconds since 1970.
fn unix_ns(stamp: &str) -> Option<i64> {
    let mut numbers = stamp.split(['-', ' ', ':', '.']).map(str::parse::<i64>);
    let mut next = || numbers.next()?.ok();
    let (year, month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let micros = next().unwrap_or(0);
    // Days since 1970 in the Gregorian calendar, with March as the first month so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000_000 + micros * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_comes_is_repeated_and_goes() {
        assert_eq!(unix_ns("1970-01-01 00:00:00"), Some(0));
        assert_eq!(unix_ns("2026-11-22 01:07:08.000001"), Some(1_795_309_628_000_001_000));
        assert_eq!(unix_ns("2024-02-29 00:00:00"), Some(1_709_164_800_000_000_000));
        let log = "\
2026-11-22 01:07:09.500000 <TRACE> core.ipv4 > added [best] 198.51.100.0/24 0L 1G unicast
2026-11-22 01:07:10.000000 <TRACE> core.ipv4 > added [best] 198.51.100.0/24 0L 1G unicast
2026-11-22 01:07:10.000000 <TRACE> core.ipv4 < added 0.0.0.0/0 0L 1G unreachable
2026-11-22 01:07:11.000000 <TRACE> core.ipv4 > removed 198.51.100.0/24 0L 1G unicast
2026-11-22 01:07:12.000000 <INFO> Reconfigured
";
        let events = events(log, 1_795_309_628_000_000_000);
        let events: Vec<_> = events.iter().map(|e| (e.at_ms, e.change)).collect();
        assert_eq!(events, [(1500.0, BgpChange::Announced), (3000.0, BgpChange::Withdrawn)]);
    }
}
