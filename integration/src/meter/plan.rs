//! From a scenario's traffic to each host's ends, and from each host's results back to streams.

use super::account::{Schedule, count_tail};
use super::clock::millis;
use super::payload::HEADER;
use super::{End, EndResult, Family, HostResult, Span, SpecError, StreamResult, TcpEndResult, Traffic, TrafficResults};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Stream `id` uses this port plus `id`: above the well-known ones and below Linux's ephemeral range (32768), from which
/// a client could otherwise have drawn it.
const FIRST_PORT: u16 = 20_000;

/// So many entries fit between [`FIRST_PORT`] and the ephemeral range, and nobody writes as many.
const MOST_ENTRIES: usize = 10_000;

/// One process does not keep a higher pace, and what is due late would look like jitter of the network.
const MOST_RATE: f64 = 20_000.0;

/// Bounds an attack: 50 s at the highest rate.
const MOST_PACKETS: u64 = 1_000_000;

/// An Ethernet frame's.
const MOST_SIZE: usize = 1_500;

/// Payload that fits in an Ethernet frame over IPv4.
const MOST_PAYLOAD: usize = 1_472;

/// Makes each host's part of the traffic. `address` tells a host's address of a family.
///
/// # Errors
/// [`SpecError`] if an entry names an unknown host, has a number out of range, or the name of another.
pub fn plan(
    traffic: &[Traffic],
    address: impl Fn(&str, Family) -> Option<IpAddr>,
) -> Result<BTreeMap<String, Vec<End>>, SpecError> {
    let mut hosts: BTreeMap<String, Vec<End>> = BTreeMap::new();
    let mut names = HashMap::new();
    for (index, entry) in traffic.iter().enumerate() {
        check(entry)?;
        if names.insert(entry.name(), index).is_some() {
            return Err(SpecError::Twice { name: entry.name().to_owned() });
        }
        if index >= MOST_ENTRIES {
            return Err(range(entry, "traffic", index, "at most 10,000 entries"));
        }
        let id = stream_id(index);
        let port = FIRST_PORT + index as u16;
        let at = |host: &str, family: Family| {
            address(host, family).ok_or_else(|| SpecError::NoAddress {
                name: entry.name().to_owned(),
                host: host.to_owned(),
                family,
            })
        };
        let socket = |host: &str, family| at(host, family).map(|ip| SocketAddr::new(ip, port));
        // An attacker needs no address of the family it attacks with; it must exist all the same.
        let exists = |host: &str| at(host, Family::V4).or_else(|error| at(host, Family::V6).map_err(|_| error));
        let mut add = |host: &str, end| hosts.entry(host.to_owned()).or_default().push(end);
        match entry.clone() {
            Traffic::Udp(udp) => {
                let (local, remote) = (socket(&udp.from, udp.family)?, socket(&udp.to, udp.family)?);
                add(&udp.from.clone(), End::UdpSend { id, local, remote, udp: udp.clone() });
                add(&udp.to.clone(), End::UdpReceive { id, local: remote, udp });
            }
            Traffic::Sizes(sizes) => {
                let (local, remote) = (socket(&sizes.from, sizes.family)?, socket(&sizes.to, sizes.family)?);
                add(&sizes.from.clone(), End::Sweep { id, local, remote, sizes: sizes.clone() });
                add(&sizes.to.clone(), End::SweepReceive { id, local: remote, sizes });
            }
            Traffic::Tcp(tcp) => {
                let server = socket(&tcp.from, tcp.family)?;
                at(&tcp.to, tcp.family)?;
                add(&tcp.from.clone(), End::TcpServe { local: server, tcp: tcp.clone() });
                add(&tcp.to.clone(), End::TcpFetch { remote: server, tcp });
            }
            Traffic::Ping(ping) => {
                at(&ping.from, ping.family)?;
                let remote = at(&ping.to, ping.family)?;
                add(&ping.from.clone(), End::Ping { id, remote, ping });
            }
            Traffic::Iperf3(iperf3) => {
                let server = socket(&iperf3.to, iperf3.family)?;
                at(&iperf3.from, iperf3.family)?;
                add(&iperf3.to.clone(), End::Iperf3Serve { local: server, iperf3: iperf3.clone() });
                add(&iperf3.from.clone(), End::Iperf3Send { remote: server, iperf3 });
            }
            Traffic::Spoof(spoof) => {
                exists(&spoof.from)?;
                add(&spoof.from.clone(), End::Spoof { id, spoof });
            }
            Traffic::Garbage(garbage) => {
                exists(&garbage.from)?;
                add(&garbage.from.clone(), End::Garbage { garbage });
            }
            Traffic::Replay(replay) => {
                exists(&replay.from)?;
                add(&replay.from.clone(), End::Replay { replay });
            }
            Traffic::Watch(watch) => {
                exists(&watch.at)?;
                add(&watch.at.clone(), End::Watch { watch });
            }
        }
    }
    Ok(hosts)
}

/// The number of the entry at `index`. From 1: 0 is what a packet without a mark has.
fn stream_id(index: usize) -> u32 {
    index as u32 + 1
}

fn range(entry: &Traffic, key: &'static str, value: impl ToString, expected: &'static str) -> SpecError {
    SpecError::Range { name: entry.name().to_owned(), key, value: value.to_string(), expected }
}

/// Refuses numbers that make no sense, or would keep the clock of a virtual-time kernel from moving.
fn check(entry: &Traffic) -> Result<(), SpecError> {
    let rate = |rate: f64| {
        let fits = rate > 0.0 && rate <= MOST_RATE;
        if fits { Ok(()) } else { Err(range(entry, "rate", rate, "above 0 and at most 20000 packets per second")) }
    };
    let count = |count: u64| {
        if count <= MOST_PACKETS { Ok(()) } else { Err(range(entry, "count", count, "at most 1000000")) }
    };
    let payload = |size: usize| {
        let fits = (HEADER..=MOST_PAYLOAD).contains(&size);
        if fits { Ok(()) } else { Err(range(entry, "size", size, "from 40 to 1472 octets")) }
    };
    let at_once = |n: u32| {
        if (1..=1000).contains(&n) { Ok(()) } else { Err(range(entry, "connections", n, "from 1 to 1000")) }
    };
    match entry {
        Traffic::Udp(udp) => {
            rate(udp.rate)?;
            payload(udp.size)?;
            if udp.dscp > 63 {
                return Err(range(entry, "dscp", udp.dscp, "from 0 to 63"));
            }
            if udp.ecn > 3 {
                return Err(range(entry, "ecn", udp.ecn, "from 0 to 3"));
            }
        }
        Traffic::Sizes(sizes) => {
            rate(sizes.rate)?;
            if sizes.smallest < sizes.least() {
                return Err(range(entry, "smallest", sizes.smallest, "68 octets or more, for IPv6 88"));
            }
            if sizes.largest < sizes.smallest || sizes.largest > MOST_SIZE {
                return Err(range(entry, "largest", sizes.largest, "from \"smallest\" to 1500 octets"));
            }
            if sizes.step == 0 {
                return Err(range(entry, "step", sizes.step, "1 octet or more"));
            }
            if sizes.fragmentable && sizes.family == Family::V6 {
                return Err(range(entry, "fragmentable", true, "false over IPv6, whose routers do not fragment"));
            }
        }
        Traffic::Tcp(tcp) => {
            if !(tcp.rate > 0.0 && tcp.rate <= 1e10) {
                return Err(range(entry, "rate", tcp.rate, "above 0 and at most 1e10 octets per second"));
            }
            at_once(tcp.connections)?;
            if tcp.every.is_some() && tcp.bytes.is_none() {
                return Err(range(entry, "bytes", "missing", "set where \"every\" is: the size of each answer"));
            }
            if tcp.every.is_some_and(|every| every.nanos() < 1_000_000) {
                return Err(range(entry, "every", "too short", "1ms or longer"));
            }
        }
        Traffic::Ping(ping) => {
            payload(ping.size)?;
            if ping.every.nanos() < 1_000_000 {
                return Err(range(entry, "every", ping.every, "1ms or longer"));
            }
        }
        Traffic::Iperf3(iperf3) => at_once(iperf3.connections)?,
        Traffic::Spoof(spoof) => {
            rate(spoof.rate)?;
            count(spoof.count)?;
            let same = |ip: &IpAddr| ip.is_ipv4() == spoof.to_address.is_ipv4();
            if spoof.sources.is_empty() || !spoof.sources.iter().chain(&spoof.quoted).all(same) {
                let written = format!("{:?}", spoof.sources);
                return Err(range(entry, "sources", written, "one address or more, all of to_address's family"));
            }
        }
        Traffic::Garbage(garbage) => {
            rate(garbage.rate)?;
            count(garbage.count)?;
            if garbage.max_size > MOST_PAYLOAD {
                return Err(range(entry, "max_size", garbage.max_size, "at most 1472 octets"));
            }
        }
        Traffic::Replay(replay) => {
            rate(replay.rate)?;
            count(replay.count)?;
            if replay.again <= replay.start {
                return Err(range(entry, "again", replay.again, "later than \"start\""));
            }
        }
        Traffic::Watch(_) => {}
    }
    Ok(())
}

/// Joins what the hosts' meters wrote; `length` as in their specs. What is missing is named in
/// [`TrafficResults::failed`].
pub fn collect(traffic: &[Traffic], length: Span, hosts: Vec<HostResult>) -> TrafficResults {
    let mut results = TrafficResults::default();
    let mut sent = HashMap::new();
    let mut received = HashMap::new();
    let mut swept = HashMap::new();
    let mut sweep_received = HashMap::new();
    let mut retransmits: HashMap<String, u64> = HashMap::new();
    for (host, end) in hosts.into_iter().flat_map(|h| h.ends.into_iter().map(move |end| (h.host.clone(), end))) {
        match end {
            EndResult::Sent { id, sent: n, refused } => drop(sent.insert(id, (n, refused))),
            EndResult::Received { id, flow, next } => drop(received.insert(id, (flow, next))),
            EndResult::Swept { id, sent, told } => drop(swept.insert(id, (sent, told))),
            EndResult::SweepReceived { id, arrived, misdelivered } => {
                sweep_received.insert(id, (arrived, misdelivered));
            }
            EndResult::Tcp(TcpEndResult::Server { name, retransmits: n }) => {
                *retransmits.entry(name).or_default() += n;
            }
            EndResult::Tcp(TcpEndResult::Client(tcp)) => results.tcp.push(*tcp),
            EndResult::Ping(ping) => results.pings.push(ping),
            EndResult::Speed(speed) => results.speeds.push(speed),
            EndResult::Attack(attack) => results.attacks.push(attack),
            EndResult::Watch(watch) => results.watches.push(watch),
            EndResult::Failed { name, error } => results.failed.push(format!("{name} at {host}: {error}")),
            EndResult::Nothing => {}
        }
    }
    for tcp in &mut results.tcp {
        tcp.retransmits = retransmits.get(&tcp.name).copied().unwrap_or(0);
    }
    for (index, entry) in traffic.iter().enumerate() {
        let id = stream_id(index);
        if let Traffic::Sizes(sizes) = entry
            && let (Some(sent), Some(received)) = (swept.remove(&id), sweep_received.remove(&id))
        {
            let schedule = schedule(sizes.start, sizes.stop, length, sizes.rate);
            let result = super::sizes::join(id, sizes, &schedule, sent, received);
            let (tried, all) = (result.sizes.len() as u64, sizes.count());
            results.sizes.push(result);
            if tried < all {
                let why = format!("{}: only {tried} of {all} sizes had their turn: raise its rate", sizes.name);
                results.failed.push(why);
            }
        }
        let Traffic::Udp(udp) = entry else { continue };
        match (sent.remove(&id), received.remove(&id)) {
            (Some((sent, refused)), Some((mut flow, next))) => {
                let schedule = schedule(udp.start, udp.stop, length, udp.rate);
                count_tail(&mut flow, next, sent, &schedule);
                results.streams.push(StreamResult {
                    name: udp.name.clone(),
                    id,
                    from: udp.from.clone(),
                    to: udp.to.clone(),
                    rate: udp.rate,
                    start_ms: millis(schedule.start),
                    stop_ms: millis(schedule.stop),
                    sent,
                    refused,
                    flow,
                });
            }
            (sent, _) => {
                let side = if sent.is_none() { &udp.from } else { &udp.to };
                results.failed.push(format!("{}: nothing was heard from the meter at {side}", udp.name));
            }
        }
    }
    let name_of = |id: u32| id.checked_sub(1).and_then(|i| traffic.get(i as usize)).map(|t| t.name().to_owned());
    for seen in results.watches.iter_mut().flat_map(|w| &mut w.seen) {
        seen.name = name_of(seen.id).unwrap_or_default();
    }
    missing(traffic, &mut results);
    order(traffic, &mut results);
    results
}

/// Entries other than streams of which nothing was heard at all.
fn missing(traffic: &[Traffic], results: &mut TrafficResults) {
    for entry in traffic {
        let name = entry.name();
        let heard = match entry {
            Traffic::Udp(_) => true,
            Traffic::Sizes(_) => results.sizes.iter().any(|t| t.name == name),
            Traffic::Tcp(_) => results.tcp.iter().any(|t| t.name == name),
            Traffic::Ping(_) => results.pings.iter().any(|t| t.name == name),
            Traffic::Iperf3(_) => results.speeds.iter().any(|t| t.name == name),
            Traffic::Spoof(_) | Traffic::Garbage(_) | Traffic::Replay(_) => {
                results.attacks.iter().any(|t| t.name == name)
            }
            Traffic::Watch(_) => results.watches.iter().any(|t| t.name == name),
        };
        if !heard && !results.failed.iter().any(|f| f.starts_with(&format!("{name} "))) {
            results.failed.push(format!("{name}: nothing was heard from its meter"));
        }
    }
}

/// Puts results in the order of the scenario, so that two runs' documents can be compared.
fn order(traffic: &[Traffic], results: &mut TrafficResults) {
    let place = |name: &str| traffic.iter().position(|t| t.name() == name);
    results.tcp.sort_by_key(|t| place(&t.name));
    results.pings.sort_by_key(|t| place(&t.name));
    results.speeds.sort_by_key(|t| place(&t.name));
    results.attacks.sort_by_key(|t| place(&t.name));
    results.watches.sort_by_key(|t| place(&t.name));
}

/// When packets of an entry are due.
pub(crate) fn schedule(start: Span, stop: Option<Span>, length: Span, rate: f64) -> Schedule {
    let nanos = |span: Span| i64::try_from(span.nanos()).unwrap_or(i64::MAX);
    Schedule { start: nanos(start), stop: nanos(stop.unwrap_or(length)), rate }
}
