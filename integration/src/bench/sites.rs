//! Ten thousand sites come up, and go down, at one core: how soon its neighbour knows, in how many messages, and what the
//! core's start, a reload and its status take. On this machine's kernel, in namespaces without names, since what is measured
//! is real time.
//!
//! ```text
//!   10.80.0.2: nodes with as many tunnels, each of a box of its own
//!       |
//!   10.80.0.1, 10.78.0.1: msp-core
//!       |
//!   10.78.0.2: BIRD, which writes down every message that it reads, and is asked how many routes it has
//! ```
//!
//! A site's own time is the core's word, in its log: from when on it could be reached, or no more.

use super::bgp::{Daemon, cpu_seconds, ip, memory};
use crate::net::netns::Namespace;
use anyhow::{Context, Result, bail, ensure};
use proto::{
    Datagram, Identity, Instant as NodeInstant, Keepalive, LinkId, Node, NodeConfig, Output, PathConfig, PeerConfig,
    PeerId, PeerKind, SecretKey, Uplink,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many sites there are, each with an IPv4 and an IPv6 prefix.
    #[arg(long, default_value_t = 10_000)]
    sites: u32,
    /// Within how many seconds all of them begin to connect.
    #[arg(long, default_value_t = 2.0)]
    within: f64,
    /// How often it is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Writes all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Of announcing and of withdrawing: how long after the last site's own time the neighbour has to know.
const BAR_S: f64 = 2.0;
/// A message has room for a thousand prefixes of /24 and for some six hundred of /48.
const FULL: f64 = 600.0;
const CORE: &str = "10.80.0.1";
const WITHDRAW_AFTER: Duration = Duration::from_secs(5);
/// How often a box asks on its idle path. The core gives it up after three of them without a word.
const IDLE: Duration = Duration::from_secs(3);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the neighbour is asked what it has.
const LOOK: Duration = Duration::from_millis(20);
/// Sites that begin to connect at the same moment.
const GROUP: usize = 100;

/// What one run came to; times in seconds.
#[derive(Clone, serde::Serialize)]
struct Measured {
    sites: u32,
    /// From the core's start until it runs.
    start: f64,
    /// From the first site that could be reached to the last.
    up_span: f64,
    /// From the last to the moment in which the neighbour has all routes.
    up_lag: f64,
    /// UPDATEs that the neighbour read in that time.
    up_messages: usize,
    /// From a SIGHUP until the same sites are in force again.
    reload: f64,
    /// UPDATEs that the neighbour read in that time.
    reload_messages: usize,
    /// How long `status` takes, and its octets.
    status: f64,
    status_octets: usize,
    /// From the first site whose time is over to the last.
    down_span: f64,
    /// From the last to the moment in which the neighbour has no route.
    down_lag: f64,
    down_messages: usize,
    /// The core's processor time, and the most of its memory, in MiB.
    cpu: f64,
    peak_mib: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} sites, the core's start {:.1} s", self.sites, self.start)?;
        let way = |span: f64, lag: f64, messages: usize| {
            format!("over {span:.1} s; {lag:.2} s after the last the neighbour is told, in {messages} UPDATEs")
        };
        writeln!(f, "  up    {}", way(self.up_span, self.up_lag, self.up_messages))?;
        writeln!(f, "  down  {}", way(self.down_span, self.down_lag, self.down_messages))?;
        writeln!(f, "  a reload {:.1} s, {} UPDATEs", self.reload, self.reload_messages)?;
        let megabytes = self.status_octets as f64 / 1e6;
        writeln!(f, "  status {:.1} s for {megabytes:.1} MB", self.status)?;
        write!(f, "  {:.1} s of processor, {:.0} MiB at most", self.cpu, self.peak_mib)
    }
}

/// Measures, and says whether the bars are met.
pub fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(crate::setup::is_root(), "this needs root: it makes network namespaces");
    crate::run::build_daemons()?;
    let mut all = Vec::new();
    for run in 0..arguments.runs {
        let measured = once(arguments, run as u64).with_context(|| format!("run {run}"))?;
        println!("run {}: {measured}", run + 1);
        all.push(measured);
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut good = true;
    // What a span of this length is told in at the most: a message of each family each tenth of a second, and the full ones.
    let most = |span: f64, lag: f64, sites: u32| 2.0 * 10.0 * (span + lag + 1.0) + 2.0 * f64::from(sites) / FULL;
    for m in &all {
        let up_most = most(m.up_span, m.up_lag, m.sites);
        let down_most = most(m.down_span, m.down_lag, m.sites);
        good &= m.up_lag <= BAR_S && m.down_lag <= BAR_S && m.reload_messages == 0;
        good &= (m.up_messages as f64) <= up_most && (m.down_messages as f64) <= down_most;
    }
    let word = if good { "good" } else { "MISSED" };
    println!("within {BAR_S} s of the last site's time, in packed UPDATEs, and none for a reload: {word}");
    Ok(good)
}

fn once(arguments: &Arguments, seed: u64) -> Result<Measured> {
    let sites = arguments.sites;
    let folder = crate::run::folder("sites", seed)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut draw = || SecretKey::from_bytes(rng.random());
    let core_key = draw();
    let keys: Vec<SecretKey> = (0..sites).map(|_| draw()).collect();
    write_files(&folder, &core_key, &keys)?;

    let (here, neighbor, boxes) = (Namespace::create()?, Namespace::create()?, Namespace::create()?);
    join(&here, &neighbor, "bgp0", "10.78.0")?;
    join(&here, &boxes, "wan0", "10.80.0")?;
    let bird = start(&neighbor, &folder, "bird", "/usr/sbin/bird", &["-f", "-c", "bird.conf", "-s", "bird.ctl"])?;
    let program = crate::run::binaries()?.join("msp-core");
    let begin = Instant::now();
    let core = start(&here, &folder, "core", &program.to_string_lossy(), &["--config", "config.toml", "run"])?;
    let log = folder.join("core.log");
    wait("the core runs", || Ok(said(&log, "the core is running")? == 1))?;
    let start = begin.elapsed().as_secs_f64();
    wait("the session is there", || Ok(said(&log, "BGP session established")? == 1))?;

    let (end, ended) = mpsc::channel::<()>();
    let mut connecting = Vec::new();
    for some in keys.chunks(GROUP) {
        let socket = boxes.enter(|| UdpSocket::bind("10.80.0.2:0"))?.context("cannot bind a socket of the boxes")?;
        connecting.push(Boxes::new(core_key.public(), some, socket)?);
    }
    let within = Duration::from_secs_f64(arguments.within);
    let driver = std::thread::spawn(move || drive(connecting, within, &ended));
    let routes = 2 * sites as usize;
    let known = until_routes(&folder, routes)?;
    let (first_up, last_up) = span(&log, "reachable")?;
    let up_messages = updates(&folder)?;

    let before = said(&log, "sites reloaded")?;
    let begin = Instant::now();
    let hangup = rustix::process::Signal::HUP;
    let pid = rustix::process::Pid::from_raw(core.0.id().cast_signed()).context("a process has a number above 0")?;
    rustix::process::kill_process(pid, hangup)?;
    wait("the sites are reloaded", || Ok(said(&log, "sites reloaded")? > before))?;
    let reload = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let status =
        Command::new(&program).args(["--config", "config.toml", "status", "--json"]).current_dir(&folder).output()?;
    ensure!(status.status.success(), "no status: {}", String::from_utf8_lossy(&status.stderr));
    let status = (begin.elapsed().as_secs_f64(), status.stdout.len());
    let reload_messages = updates(&folder)? - up_messages;
    ensure!(bird_routes(&folder)? == routes, "routes were lost in the reload");

    // All of them fall silent.
    let _ = end.send(());
    if driver.join().is_err() {
        bail!("the boxes' thread has panicked");
    }
    let gone = until_routes(&folder, 0)?;
    let (first_down, last_down) = span(&log, "unreachable")?;
    let down_messages = updates(&folder)? - up_messages - reload_messages;
    let measured = Measured {
        sites,
        start,
        up_span: seconds(first_up, last_up),
        up_lag: seconds(last_up, known),
        up_messages,
        reload,
        reload_messages,
        status: status.0,
        status_octets: status.1,
        down_span: seconds(first_down, last_down),
        down_lag: seconds(last_down + WITHDRAW_AFTER, gone),
        down_messages,
        cpu: cpu_seconds(core.0.id())?,
        peak_mib: memory(core.0.id())?.1,
    };
    drop((core, bird));
    Ok(measured)
}

fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}

/// A link from here to another namespace, .1 and .2.
fn join(here: &Namespace, other: &Namespace, name: &str, network: &str) -> Result<()> {
    ip(here, &["link", "add", name, "type", "veth", "peer", "name", "core0", "netns", &other.path()])?;
    for (namespace, interface, host) in [(here, name, 1), (other, "core0", 2)] {
        ip(namespace, &["address", "add", &format!("{network}.{host}/24"), "dev", interface])?;
        // On the neighbour's link: the next hop of IPv6 routes. An address that is checked for duplicates is none at first.
        ip(namespace, &["address", "add", &format!("fd78::{host}/64"), "dev", interface, "nodad"])?;
        ip(namespace, &["link", "set", interface, "up"])?;
    }
    ip(here, &["link", "set", "lo", "up"])
}

fn start(namespace: &Namespace, folder: &Path, name: &str, program: &str, arguments: &[&str]) -> Result<Daemon> {
    let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = namespace.enter(move || command.spawn())?.with_context(|| format!("cannot start {program}"))?;
    Ok(Daemon(child))
}

fn write_files(folder: &Path, core_key: &SecretKey, keys: &[SecretKey]) -> Result<()> {
    let _ = std::fs::remove_dir_all(folder.join("sites.d"));
    std::fs::create_dir_all(folder.join("sites.d"))?;
    let config = format!(
        "schema = 1\npop = 1\nprivate_key_file = \"private.key\"\nlisten = [\"0.0.0.0:51820\"]\nsites = \"sites.d\"\n\
         control = \"{}\"\nwithdraw_after = \"{}s\"\n[bgp]\nlocal_as = 64500\nrouter_id = \"192.0.2.1\"\n\
         [[bgp.neighbor]]\nname = \"bird\"\naddress = \"10.78.0.2\"\nremote_as = 64501\nnext_hop_v6 = \"fd78::1\"\n\
         announce = [\"sites\"]\n",
        folder.join("control.sock").display(),
        WITHDRAW_AFTER.as_secs(),
    );
    std::fs::write(folder.join("config.toml"), config)?;
    let private = folder.join("private.key");
    std::fs::write(&private, format!("{}\n", core_key.expose_base64()))?;
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let mut text = String::new();
    for (key, number) in keys.iter().zip(0u32..) {
        text.clear();
        let (high, low) = (number >> 8, number & 0xff);
        let _ = write!(
            text,
            "schema = 1\nid = {id}\nname = \"site-{id}\"\nprefixes = [\"10.{high}.{low}.0/24\", \"2001:db8:{number:x}::/48\"]\n\
             [middlebox]\nid = {id}\nuplink_keys = [\"{}\"]\n",
            key.public(),
            id = number + 1,
        );
        std::fs::write(folder.join(format!("sites.d/{number}.toml")), &text)?;
    }
    let bird = "router id 192.0.2.2;\nlog stderr all;\nmrtdump \"messages.mrt\";\nmrtdump protocols { messages };\nprotocol device {}\n\
                protocol bgp core {\n  local 10.78.0.2 as 64501;\n  neighbor 10.78.0.1 as 64500;\n  connect delay time 1;\n  \
                error wait time 1, 2;\n  hold time 600;\n  ipv4 { import all; export none; };\n  \
                ipv6 { import all; export none; };\n}\n";
    let _ = std::fs::remove_file(folder.join("messages.mrt"));
    std::fs::write(folder.join("bird.conf"), bird)?;
    Ok(())
}

/// Waits until something is so.
fn wait(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        ensure!(begin.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// How often a log says something.
fn said(log: &Path, what: &str) -> Result<usize> {
    Ok(std::fs::read_to_string(log)?.matches(what).count())
}

/// When a log says a message the first and the last time.
fn span(log: &Path, message: &str) -> Result<(SystemTime, SystemTime)> {
    let text = std::fs::read_to_string(log)?;
    let mut times = text.lines().filter(|line| line.split_whitespace().any(|word| word == message)).filter_map(time);
    let first = times.next().with_context(|| format!("the log has no line {message:?}"))?;
    Ok((first, times.next_back().unwrap_or(first)))
}

/// The time at the beginning of a line of the core's: 2026-11-22T15:04:05.123456Z. Its day does not matter here.
fn time(line: &str) -> Option<SystemTime> {
    let (_, time) = line.split_whitespace().find(|word| word.contains('T') && word.ends_with('Z'))?.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let (hours, minutes): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    let of_day = Duration::from_secs(hours * 3_600 + minutes * 60) + Duration::try_from_secs_f64(seconds).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let midnight = now - Duration::new(now.as_secs() % 86_400, now.subsec_nanos());
    Some(SystemTime::UNIX_EPOCH + midnight + of_day)
}

/// Waits until the neighbour has so many routes, and says when it has.
fn until_routes(folder: &Path, count: usize) -> Result<SystemTime> {
    let begin = Instant::now();
    loop {
        let (routes, now) = (bird_routes(folder)?, SystemTime::now());
        if routes == count {
            return Ok(now);
        }
        ensure!(begin.elapsed() < PATIENCE, "the neighbour has {routes} routes and not {count}");
        std::thread::sleep(LOOK);
    }
}

/// How many routes the neighbour has, by its own account.
fn bird_routes(folder: &Path) -> Result<usize> {
    let mut birdc = Command::new("birdc");
    let output = birdc.args(["-r", "-s"]).arg(folder.join("bird.ctl")).args(["show", "route", "count"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "N of N routes for N networks in table master4"
    let counts = text.lines().filter_map(|line| line.split_once(" of ")?.0.parse::<usize>().ok());
    Ok(counts.sum())
}

/// How many UPDATEs the neighbour has read that have more in them than an end, by its own record (RFC 6396, section 4.4).
///
/// ```text
/// | timestamp (4) | type 16 (2) | subtype 4 (2) | length (4) | AS (4) | AS (4) | interface (2) | AFI (2) | addresses | message |
/// ```
fn updates(folder: &Path) -> Result<usize> {
    let octets = std::fs::read(folder.join("messages.mrt"))?;
    let mut rest = octets.as_slice();
    let mut count = 0;
    while let Some((header, behind)) = rest.split_first_chunk::<12>() {
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((record, behind)) = behind.split_at_checked(length) else { break };
        rest = behind;
        // After four octets of each AS, interface and family, two IPv4 addresses; then the message's marker.
        let message = record.windows(16).position(|window| window == [0xff; 16]).map(|place| &record[place..]);
        let Some(message) = message else { continue };
        let from_core = record.get(..4) == Some(&64500u32.to_be_bytes());
        count += usize::from(from_core && message.get(18) == Some(&2) && message.len() > 30);
    }
    Ok(count)
}

/// Some of the boxes: a node with a tunnel for each, behind one socket.
struct Boxes {
    node: Node,
    socket: UdpSocket,
}

impl Boxes {
    fn new(core: proto::PublicKey, keys: &[SecretKey], socket: UdpSocket) -> Result<Boxes> {
        let peer = |(key, number): (&SecretKey, u32)| PeerConfig {
            id: PeerId(number),
            name: format!("core of {number}"),
            kind: PeerKind::Core,
            prefixes: Vec::new(),
            egress: 0,
            policy: Default::default(),
            open_windows: 0,
            paths: vec![PathConfig {
                slot: 0,
                kind: Default::default(),
                preference: None,
                local_key: key.clone(),
                remote_key: core,
                link: Some(LinkId(0)),
            }],
        };
        let config = NodeConfig {
            identity: Identity { middlebox: 1, pop: 0 },
            mtu: 1380,
            local: vec!["10.0.0.0/8".parse()?],
            listen_key: None,
            peers: keys.iter().zip(0..).map(peer).collect(),
        };
        socket.set_nonblocking(true)?;
        Ok(Boxes { node: Node::new(config, [1; 32], NodeInstant::ZERO)?, socket })
    }

    fn connect(&mut self, now: NodeInstant, core: SocketAddr) {
        let uplink = Uplink {
            endpoints: vec![core],
            quic_endpoints: vec![core],
            preference: 0,
            keepalive: Keepalive::new(IDLE, false),
        };
        self.node.set_uplink(now, LinkId(0), Some(uplink));
    }

    /// Does what there is to do. Was there anything?
    fn turn(&mut self, now: NodeInstant, out: &mut Output, buffer: &mut [u8]) -> bool {
        let mut busy = false;
        while let Ok((length, from)) = self.socket.recv_from(buffer) {
            let data = &buffer[..length];
            let datagram = Datagram { link: LinkId(0), from, to: None, ecn: 0, waited: Duration::ZERO, data };
            self.node.handle_datagrams(now, [datagram], out);
            busy = true;
        }
        if self.node.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.node.handle_timeout(now, out);
            busy = true;
        }
        while self.node.poll_event().is_some() {}
        for transmit in out.transmits() {
            // What the socket has no room for is lost, as elsewhere.
            let _ = self.socket.send_to(&out.bytes()[transmit.range.clone()], transmit.to);
        }
        out.clear();
        busy
    }
}

/// Connects the boxes, some after the others, and keeps their tunnels until it is told to end: then all fall silent.
fn drive(mut boxes: Vec<Boxes>, within: Duration, ended: &mpsc::Receiver<()>) -> Result<()> {
    let core: SocketAddr = format!("{CORE}:51820").parse()?;
    let (begun, mut connected) = (Instant::now(), 0);
    let (mut out, mut buffer) = (Output::new(0), [0; 2048]);
    let all = boxes.len();
    while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
        let now = || NodeInstant::ZERO + begun.elapsed();
        if connected < all && begun.elapsed() >= within * connected as u32 / all as u32 {
            boxes[connected].connect(now(), core);
            connected += 1;
        }
        let mut busy = false;
        for some in &mut boxes[..connected] {
            busy |= some.turn(now(), &mut out, &mut buffer);
        }
        if !busy {
            // Short beside all that is waited for.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}
