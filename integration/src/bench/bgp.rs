//! A full table from each of two transits, into `msp-core` and into BIRD: how long until the kernel has the routes, and how
//! much memory they take. On this machine's kernel, in namespaces without names, since what is measured is real time.
//!
//! ```text
//!   transit a, 10.78.0.2 --.
//!                           >-- 10.78.0.1, 10.78.1.1: msp-core, or BIRD; the kernel's table 78001
//!   transit b, 10.78.1.2 --'
//! ```
//!
//! Both prefer a's route where both have one. Then a goes, and it is measured how long its packets take to go to b.

mod leak;
mod speaker;
mod table;

use crate::net::netns::Namespace;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use table::{Shape, Table, Transit};

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many IPv4 prefixes the table has.
    #[arg(long, default_value_t = 1_000_000)]
    ipv4: usize,
    /// How many IPv6 prefixes it has.
    #[arg(long, default_value_t = 200_000)]
    ipv6: usize,
    /// Decides which.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Instead of a table that is made: a file of plain BGP messages, as one neighbour sent them. Each transit tells it,
    /// with a next hop of its own in place of the file's.
    #[arg(long, value_name = "FILE", requires = "remote_as", requires = "next_hop")]
    updates: Option<PathBuf>,
    /// The AS of who sent it.
    #[arg(long)]
    remote_as: Option<u32>,
    /// It was sent within that AS, with LOCAL_PREF and what a route reflector adds, and is told so here: to a neighbour of
    /// another AS each of these is an error, and BIRD would write a line about each.
    #[arg(long, requires = "updates")]
    internal: bool,
    /// The next hop that the file has.
    #[arg(long)]
    next_hop: Option<Ipv4Addr>,
    /// How many egress choices msp-core has, each with a table of the kernel's; only the first is compared.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    choices: u8,
    /// Instead of comparing: the second transit may have a thousand prefixes, and leaks the table.
    #[arg(long)]
    leak: bool,
    /// Writes all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The bar of the comparison, in time and in memory.
const BAR: f64 = 1.5;
const LOCAL_AS: u32 = 64500;
const TABLE: u32 = 78_001;
/// How long nothing may change before it is believed that nothing will.
const QUIET: Duration = Duration::from_secs(3);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often the kernel is asked how many routes it has: its answer takes it some milliseconds of a full table.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Core,
    Bird,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Subject::Core => "msp-core",
            Subject::Bird => "BIRD",
        }
    }
}

/// What one run came to.
#[derive(Clone, Debug, serde::Serialize)]
struct Measured {
    subject: &'static str,
    /// From the first octet of the tables to the last route in the kernel.
    seconds: f64,
    /// The daemon's processor time in that.
    cpu_seconds: f64,
    /// Resident when all is there.
    resident_mib: f64,
    /// The most that was resident.
    peak_mib: f64,
    /// How much more the kernel has in its slabs, where routes are; of the whole machine.
    kernel_mib: f64,
    /// In the kernel's first table, IPv4 and IPv6.
    routes: [usize; 2],
    /// From the end of a's session to a packet that goes to b.
    moved_ms: f64,
    /// And to the last route that names b.
    settled_s: f64,
}

/// Measures both, and says whether the bar is met and both have the same routes in the kernel.
pub fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(crate::setup::is_root(), "this needs root: it makes network namespaces");
    crate::run::build_daemons()?;
    let feeds = Arc::new(feeds(arguments)?);
    if arguments.leak {
        return leak::run(&feeds);
    }
    let mut all = Vec::new();
    let mut kernel: Option<BTreeMap<String, String>> = None;
    let mut same = true;
    for run in 0..arguments.runs {
        for subject in [Subject::Bird, Subject::Core] {
            let (measured, routes) =
                once(subject, &feeds, arguments.choices).with_context(|| format!("run {run} of {}", subject.name()))?;
            println!("{}", line(&measured));
            all.push(measured);
            match &kernel {
                None => kernel = Some(routes),
                Some(expected) => same &= compare(expected, &routes),
            }
        }
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(verdict(&all) && same)
}

fn line(m: &Measured) -> String {
    format!(
        "{:<8}  {:6.2} s to {} + {} routes ({:.2} s of processor)  {:6.1} MiB (peak {:.1}), kernel {:.0} MiB  lost a: moved {:.0} ms, settled {:.2} s",
        m.subject,
        m.seconds,
        m.routes[0],
        m.routes[1],
        m.cpu_seconds,
        m.resident_mib,
        m.peak_mib,
        m.kernel_mib,
        m.moved_ms,
        m.settled_s
    )
}

/// The medians beside each other.
fn verdict(all: &[Measured]) -> bool {
    let median = |subject: Subject, of: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = all.iter().filter(|m| m.subject == subject.name()).map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let mut good = true;
    for (what, of) in [
        ("time", (|m| m.seconds) as fn(&Measured) -> f64),
        ("resident memory", |m| m.resident_mib),
        ("peak memory", |m| m.peak_mib),
    ] {
        let (core, bird) = (median(Subject::Core, of), median(Subject::Bird, of));
        let met = core <= BAR * bird;
        good &= met;
        let word = if met { "good" } else { "MISSED" };
        println!("{what}: {core:.2} against {bird:.2}, {:.2} times BIRD's (at most {BAR}): {word}", core / bird);
    }
    good
}

/// Says what differs.
fn compare(expected: &BTreeMap<String, String>, routes: &BTreeMap<String, String>) -> bool {
    let missing: Vec<_> = expected.iter().filter(|(prefix, via)| routes.get(*prefix) != Some(via)).collect();
    let more: Vec<_> = routes.keys().filter(|prefix| !expected.contains_key(*prefix)).collect();
    if !missing.is_empty() || !more.is_empty() {
        println!(
            "the kernel's routes differ: {} missing or other ({:?}), {} too many ({:?})",
            missing.len(),
            missing.first(),
            more.len(),
            more.first()
        );
    }
    missing.is_empty() && more.is_empty()
}

/// What one transit tells.
struct Feed {
    asn: u32,
    /// The AS of whom it tells it.
    local_as: u32,
    octets: Vec<u8>,
}

fn address(place: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, place, host)
}

fn address_v6(place: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd78, u16::from(place), 0, 0, 0, 0, 0, host)
}

fn feeds(arguments: &Arguments) -> Result<[Feed; 2]> {
    if let (Some(file), Some(asn), Some(next_hop)) = (&arguments.updates, arguments.remote_as, arguments.next_hop) {
        let octets = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let local_as = if arguments.internal { asn } else { LOCAL_AS };
        let octets = |place| with_next_hop(&octets, next_hop, address(place, 2));
        return Ok([0, 1].map(|place| Feed { asn, local_as, octets: octets(place) }));
    }
    let table = Table::new(&Shape { ipv4: arguments.ipv4, ipv6: arguments.ipv6, seed: arguments.seed });
    Ok([0, 1].map(|place| {
        let asn = 64501 + u32::from(place);
        let transit =
            Transit { asn, next_hop_v4: address(place, 2), next_hop_v6: address_v6(place, 2), place: u64::from(place) };
        Feed { asn, local_as: LOCAL_AS, octets: table.updates(&transit).0 }
    }))
}

/// With every NEXT_HOP attribute that has the one address having the other.
fn with_next_hop(octets: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let attribute = |address: Ipv4Addr| [&[0x40, 3, 4][..], &address.octets()].concat();
    let (from, to) = (attribute(from), attribute(to));
    let mut out = octets.to_vec();
    let places: Vec<usize> =
        octets.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(place, _)| place).collect();
    for place in places {
        out[place..place + to.len()].copy_from_slice(&to);
    }
    out
}

/// A daemon that is killed when it is dropped.
pub(super) struct Daemon(pub(super) Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn once(subject: Subject, feeds: &Arc<[Feed; 2]>, choices: u8) -> Result<(Measured, BTreeMap<String, String>)> {
    let folder = crate::run::folder(&format!("bgp-{}", subject.name()), 0)?;
    std::fs::create_dir_all(folder.join("sites.d"))?;
    let here = Namespace::create().context("cannot make a namespace")?;
    let transits = [Arc::new(Namespace::create()?), Arc::new(Namespace::create()?)];
    for (place, transit) in (0u8..).zip(&transits) {
        join(&here, transit, place)?;
    }
    let host = host(&here)?;
    // The tables are told when both have shaken hands.
    let (shaken, all_shaken) = mpsc::channel();
    let mut going = Vec::new();
    let mut endings = Vec::new();
    let mut speakers = Vec::new();
    for (place, transit) in (0u8..).zip(transits.clone()) {
        let (go, gone) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel();
        let (feeds, shaken) = (feeds.clone(), shaken.clone());
        speakers.push(std::thread::spawn(move || -> Result<()> {
            let feed = &feeds[usize::from(place)];
            let listen = SocketAddr::new(address(place, 2).into(), 179);
            let hands = transit.enter(|| speaker::shake_hands(listen, feed.asn, address(place, 2), PATIENCE))?;
            shaken.send(hands.as_ref().map(|_| ()).map_err(|error| format!("{error:#}")))?;
            gone.recv()?;
            speaker::tell(hands?, &feed.octets, &ended)
        }));
        going.push(go);
        endings.push(end);
    }
    let daemon = start(subject, &here, &folder, feeds, (choices, None))?;
    let pid = daemon.0.id();
    for _ in &speakers {
        all_shaken.recv_timeout(PATIENCE).context("a session does not come up")?.map_err(anyhow::Error::msg)?;
    }
    let (cpu_before, slabs_before) = (cpu_seconds(pid)?, slabs_mib()?);
    let begin = Instant::now();
    for go in &going {
        let _ = go.send(());
    }
    let last = settle(pid, begin)?;
    let (memory, kernel_mib) = (memory(pid)?, slabs_mib()? - slabs_before);
    let cpu = cpu_seconds(pid)? - cpu_before;
    let routes = routes(&here)?;
    let count = |v6: bool| routes.keys().filter(|prefix| prefix.contains(':') == v6).count();
    let counts = [count(false), count(true)];
    // A prefix that goes by a, to see it go by b.
    let sample = routes.iter().rev().find(|(prefix, via)| !prefix.contains(':') && **via == address(0, 2).to_string());
    let sample = sample.context("no route goes by a")?.0.split('/').next().unwrap_or_default().to_owned();
    let sample: Ipv4Addr = sample.parse()?;
    let moved = moved(&host, &transits[1], sample, || {
        // It waits for this.
        let _ = endings[0].send(());
    })?;
    let settled = settle_cpu(pid, Instant::now())?.saturating_add(moved);
    for end in &endings {
        // The speaker may have ended.
        let _ = end.send(());
    }
    drop(daemon);
    for speaker in speakers {
        // A daemon that was killed has closed its side: that is no error of the speaker's.
        let _ = speaker.join();
    }
    let measured = Measured {
        subject: subject.name(),
        seconds: last.as_secs_f64(),
        cpu_seconds: cpu,
        resident_mib: memory.0,
        peak_mib: memory.1,
        kernel_mib,
        routes: counts,
        moved_ms: moved.as_secs_f64() * 1e3,
        settled_s: settled.as_secs_f64(),
    };
    Ok((measured, routes))
}

/// A link from here to a transit, with addresses.
fn join(here: &Namespace, transit: &Namespace, place: u8) -> Result<()> {
    let name = format!("t{place}");
    ip(here, &["link", "add", &name, "type", "veth", "peer", "name", "core0", "netns", &transit.path()])?;
    for (namespace, interface, host) in [(here, name.as_str(), 1u8), (transit, "core0", 2)] {
        // No address but ours: one that is checked for duplicates would change the kernel's count of routes a second later.
        ip(namespace, &["link", "set", interface, "addrgenmode", "none"])?;
        ip(namespace, &["address", "add", &format!("{}/24", address(place, host)), "dev", interface])?;
        let v6 = format!("{}/64", address_v6(place, host.into()));
        ip(namespace, &["address", "add", &v6, "dev", interface, "nodad"])?;
        ip(namespace, &["link", "set", interface, "up"])?;
    }
    ip(here, &["link", "set", "lo", "up"])
}

pub(super) fn ip(namespace: &Namespace, arguments: &[&str]) -> Result<()> {
    output(namespace, arguments).map(drop)
}

/// What `ip` prints.
fn output(namespace: &Namespace, arguments: &[&str]) -> Result<String> {
    let run = || Command::new("ip").args(arguments).output();
    let output = namespace.enter(run)?.context("cannot start ip")?;
    ensure!(output.status.success(), "ip {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts it. msp-core has so many choices, and of the second transit takes so many prefixes of a family at most, if that is
/// given.
fn start(
    subject: Subject,
    here: &Namespace,
    folder: &Path,
    feeds: &[Feed; 2],
    (choices, most): (u8, Option<u32>),
) -> Result<Daemon> {
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = match subject {
        Subject::Core => {
            let config = folder.join("config.toml");
            std::fs::write(&config, core_config(folder, feeds, choices, most))?;
            let program = crate::run::binaries()?.join("msp-core");
            let key = Command::new(&program).args(["--config"]).arg(&config).args(["keygen", "--force"]).output()?;
            ensure!(key.status.success(), "msp-core keygen failed: {}", String::from_utf8_lossy(&key.stderr));
            let mut command = Command::new(program);
            command.arg("--config").arg(config).arg("run");
            command
        }
        Subject::Bird => {
            let config = folder.join("bird.conf");
            std::fs::write(&config, bird_config(feeds))?;
            let mut command = Command::new("/usr/sbin/bird");
            command.arg("-f").arg("-c").arg(config).arg("-s").arg(folder.join("bird.ctl"));
            command
        }
    };
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = here.enter(move || command.spawn())?.with_context(|| format!("cannot start {}", subject.name()))?;
    Ok(Daemon(child))
}

fn core_config(folder: &Path, feeds: &[Feed; 2], choices: u8, most: Option<u32>) -> String {
    let mut text = format!(
        "schema = 1\npop = 1\nprivate_key_file = \"private.key\"\nlisten = [\"0.0.0.0:51820\"]\nsites = \"sites.d\"\n\
         control = \"{}\"\n[bgp]\nlocal_as = {}\nrouter_id = \"192.0.2.1\"\n",
        folder.join("control.sock").display(),
        feeds[0].local_as
    );
    for (place, feed) in (0u8..).zip(feeds) {
        let _ = write!(
            text,
            "[[bgp.neighbor]]\nname = \"t{place}\"\naddress = \"{}\"\nremote_as = {}\naccept = [\"table\"]\n",
            address(place, 2),
            feed.asn
        );
    }
    if let Some(most) = most {
        let _ = writeln!(text, "max_prefixes = {{ ipv4 = {most}, ipv6 = {most} }}");
    }
    for choice in 0..choices {
        let _ = writeln!(text, "[[egress]]\nname = \"choice {choice}\"\ntransits = [\"t0\", \"t1\"]");
    }
    text
}

/// The same policy as ours, in BIRD's words; of itself 2.0.12 takes AS 0 in a path (RFC 7607).
fn bird_config(feeds: &[Feed; 2]) -> String {
    let local_as = feeds[0].local_as;
    // Without a log of its own it would use syslog(3), and where there is none, that writes to the machine's console.
    let mut text = format!(
        r#"log stderr all;
router id 192.0.2.2;
protocol device {{}}
protocol kernel {{ kernel table {TABLE}; metric 100; ipv4 {{ export where source = RTS_BGP; import none; }}; }}
protocol kernel {{ kernel table {TABLE}; metric 100; ipv6 {{ export where source = RTS_BGP; import none; }}; }}
function good4() {{
  if net.len < 8 || net.len > 24 then return false;
  if net ~ [ 0.0.0.0/8+, 10.0.0.0/8+, 100.64.0.0/10+, 127.0.0.0/8+, 169.254.0.0/16+, 172.16.0.0/12+, 192.0.0.0/24+,
    192.0.2.0/24+, 192.168.0.0/16+, 198.18.0.0/15+, 198.51.100.0/24+, 203.0.113.0/24+, 224.0.0.0/4+, 240.0.0.0/4+ ]
    then return false;
  return bgp_path !~ [0, {local_as}];
}}
function good6() {{
  if net.len < 12 || net.len > 48 then return false;
  if net !~ [ 2000::/3+ ] then return false;
  if net ~ [ 2001:2::/48+, 2001:10::/28+, 2001:20::/28+, 2001:db8::/32+, 2002::/16+, 3ffe::/16+, 3fff::/20+ ]
    then return false;
  return bgp_path !~ [0, {local_as}];
}}
"#
    );
    for (place, feed) in (0u8..).zip(feeds) {
        let preference = 200 - u32::from(place);
        let _ = write!(
            text,
            r#"protocol bgp t{place} {{
  local as {local_as};
  neighbor {} as {};
  direct;
  connect delay time 1;
  hold time 600;
  ipv4 {{ import filter {{ if ! good4() then reject; bgp_local_pref = {preference}; accept; }}; export none; }};
  ipv6 {{ import filter {{ if ! good6() then reject; bgp_local_pref = {preference}; accept; }}; export none; }};
}}
"#,
            address(place, 2),
            feed.asn
        );
    }
    text
}

/// How many routes the kernel has, as seen by a process of the namespace.
fn route_count(pid: u32) -> Result<u64> {
    let triestat = std::fs::read_to_string(format!("/proc/{pid}/net/fib_triestat"))?;
    let of_table = triestat.split(&format!("Id {TABLE}:")).nth(1).unwrap_or_default();
    let prefixes = of_table.lines().find_map(|line| line.trim().strip_prefix("Prefixes:"));
    let ipv4: u64 = prefixes.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    let stats = std::fs::read_to_string(format!("/proc/{pid}/net/rt6_stats"))?;
    let entries = stats.split_whitespace().nth(3).context("no count of IPv6 routes")?;
    Ok(ipv4 + u64::from_str_radix(entries, 16)?)
}

/// Waits until the kernel's routes change no more, and tells when they last did.
fn settle(pid: u32, begin: Instant) -> Result<Duration> {
    let (mut last, mut count) = (begin, route_count(pid)?);
    loop {
        std::thread::sleep(LOOK);
        let (now, new) = (Instant::now(), route_count(pid)?);
        if new != count {
            (last, count) = (now, new);
        }
        if last > begin && now - last > QUIET {
            return Ok(last - begin);
        }
        if now - begin > PATIENCE {
            bail!("the kernel's routes keep changing, or do not come: {count} after {PATIENCE:?}");
        }
    }
}

/// Waits until the daemon has nothing to do, and tells when it last had.
fn settle_cpu(pid: u32, begin: Instant) -> Result<Duration> {
    let (mut last, mut used) = (begin, cpu_seconds(pid)?);
    loop {
        std::thread::sleep(LOOK);
        let (now, new) = (Instant::now(), cpu_seconds(pid)?);
        // A clock's tick or two are timers.
        if new - used > 0.025 {
            (last, used) = (now, new);
        }
        if now - last > QUIET {
            return Ok(last - begin);
        }
        if now - begin > PATIENCE {
            bail!("the daemon is not done after {PATIENCE:?}");
        }
    }
}

/// A host whose packets leave by the table.
fn host(here: &Namespace) -> Result<Namespace> {
    let host = Namespace::create()?;
    ip(here, &["link", "add", "host0", "type", "veth", "peer", "name", "eth0", "netns", &host.path()])?;
    ip(here, &["address", "add", "10.79.0.1/24", "dev", "host0"])?;
    ip(here, &["link", "set", "host0", "up"])?;
    ip(&host, &["address", "add", "10.79.0.2/24", "dev", "eth0"])?;
    ip(&host, &["link", "set", "eth0", "up"])?;
    ip(&host, &["route", "add", "default", "via", "10.79.0.1"])?;
    ip(here, &["rule", "add", "priority", "99", "iif", "host0", "lookup", &TABLE.to_string()])?;
    let settings = [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/host0/rp_filter", "0")];
    here.enter(|| {
        settings.iter().try_for_each(|(key, value)| std::fs::write(format!("/proc/sys/net/ipv4/{key}"), value))
    })??;
    Ok(host)
}

/// How long it takes until the host's packets for an address come to b, from when a is lost: a packet each millisecond.
fn moved(host: &Namespace, b: &Namespace, to: Ipv4Addr, lose: impl FnOnce()) -> Result<Duration> {
    ip(b, &["link", "set", "lo", "up"])?;
    ip(b, &["address", "add", &format!("{to}/32"), "dev", "lo"])?;
    let target = SocketAddr::new(to.into(), 9);
    let receiver = b.enter(|| UdpSocket::bind(target))?.context("cannot listen at b")?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let sender = host.enter(|| UdpSocket::bind("10.79.0.2:0"))?.context("cannot send from the host")?;
    let (stop, stopped) = mpsc::channel::<()>();
    let sending = std::thread::spawn(move || {
        while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_millis(1)) {
            // Refused while there is no route.
            let _ = sender.send_to(&[0], target);
        }
    });
    // As long as a is there, nothing comes by b.
    receiver.set_nonblocking(true)?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(receiver.recv(&mut [0]).is_err(), "packets for {to} went to b while a was there");
    receiver.set_nonblocking(false)?;
    let lost = Instant::now();
    lose();
    let came = receiver.recv(&mut [0]).with_context(|| format!("packets for {to} do not go to b"));
    let moved = lost.elapsed();
    let _ = stop.send(());
    let _ = sending.join();
    came.map(|_| moved)
}

/// The kernel's learnt routes, as prefix and gateway.
fn routes(here: &Namespace) -> Result<BTreeMap<String, String>> {
    let mut routes = BTreeMap::new();
    let mut objects = BTreeMap::new();
    for line in output(here, &["nexthop", "show"])?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["id", id, "via", via, ..] = words[..] {
            objects.insert(id.to_owned(), via.to_owned());
        }
    }
    for family in ["-4", "-6"] {
        let shown = match output(here, &[family, "route", "show", "table", &TABLE.to_string()]) {
            // A family of which there is no route has no table.
            Err(error) if error.to_string().contains("FIB table does not exist") => String::new(),
            shown => shown?,
        };
        for line in shown.lines() {
            let mut words = line.split_whitespace();
            let Some(prefix) = words.next().filter(|prefix| !matches!(*prefix, "default" | "unreachable")) else {
                continue;
            };
            let words: Vec<&str> = words.collect();
            let of = |key: &str| words.iter().skip_while(|word| **word != key).nth(1).copied();
            let via = of("nhid").and_then(|id| objects.get(id).map(String::as_str)).or(of("via"));
            let via = via.with_context(|| format!("no gateway: {line}"))?;
            routes.insert(prefix.to_owned(), via.to_owned());
        }
    }
    Ok(routes)
}

/// Resident memory and the most of it so far, in MiB.
pub(super) fn memory(pid: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    of("VmRSS:").zip(of("VmHWM:")).context("no memory in the status")
}

/// What the kernel has in its slabs, in MiB: its routes among other things, of all namespaces.
fn slabs_mib() -> Result<f64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let slabs = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kib = slabs.and_then(|slabs| slabs.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).context("no slabs in /proc/meminfo")
}

/// Processor time used so far, of the process itself and of the kernel for it.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok());
    // utime and stime, fields 14 and 15 of proc(5); a tick is 10 ms.
    ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / 100.0).context("no times in the stat")
}
