//! Names of the core, asked for through each uplink's own resolvers.
//!
//! Every uplink asks for itself: by sockets bound to it, the servers that its ISP gave. So what a resolver says of the
//! core concerns only its own uplink, and one that is dead, slow or lying harms no other. All of it happens beside the
//! packets, and nobody waits for it: an answer is news when it comes.

use crate::nat64;
use dataplane::netlink::Interface;
use dataplane::udp;
use serde::{Deserialize, Serialize};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question as Asked, RCODE, TYPE};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// Where resolvers listen (RFC 1035, section 4.2).
const PORT: u16 = 53;
/// How many of an uplink's servers are asked: an ISP gives two, of two families four.
const SERVERS: usize = 4;
/// How long the next server is held back: a round trip to an ISP's resolver and its cache take less.
const STAGGER: Duration = Duration::from_millis(200);
/// When a question is said again on its way to the same server; a link may lose it.
const AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(7)];
/// How long an answer is waited for. Resolvers that are overloaded or behind a slow forwarder take up to ten seconds.
const PATIENCE: Duration = Duration::from_secs(12);
/// How soon a question that got no answer is asked anew, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The latter where octets cost money: a month of it is below 2 MB.
const RETRY_METERED: Duration = Duration::from_secs(600);
/// Bounds of the time for which an answer is believed: below, the core's operator wants to move it at once, which the
/// tunnel's own endpoint follows sooner; above, a lie or a mistake must end.
const TTL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
/// How long it is believed that a name has no address of a family.
const NO_ADDRESS: Duration = Duration::from_secs(300);
/// How many addresses of one answer are taken: all candidates are tried at once, and they are bounded.
const ADDRESSES: usize = 4;
/// How many names an alias may lead through.
const ALIASES: usize = 8;

/// From whom a server's address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Learnt {
    /// The operator's file.
    Configuration,
    /// systemd-networkd, for this interface.
    Networkd,
    /// resolvconf, for this interface.
    Resolvconf,
    /// dhcpcd, for this interface.
    Dhcpcd,
    /// It is the uplink's next hop: home routers answer questions.
    Gateway,
}

impl fmt::Display for Learnt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Learnt::Configuration => "configured",
            Learnt::Networkd => "networkd",
            Learnt::Resolvconf => "resolvconf",
            Learnt::Dhcpcd => "dhcpcd",
            Learnt::Gateway => "gateway",
        })
    }
}

/// A resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// From whom it is known.
    pub(crate) learnt: Learnt,
}

/// The resolvers of an uplink: the configured ones, or else what a DHCP client wrote for its interface, and the next
/// hop at last.
pub(crate) fn servers(configured: &[IpAddr], interface: &Interface) -> Vec<Server> {
    if !configured.is_empty() {
        return listed(configured.iter().copied(), Learnt::Configuration, interface.index).collect();
    }
    let name = interface.name.as_str();
    let of_files = |folder: &str, learnt| {
        // One file for each source of the interface's settings: eth0.dhcp, eth0.ra.
        let files = Path::new(folder).read_dir().into_iter().flatten().flatten().filter(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|file| file.strip_prefix(name))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        let text = files.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect::<String>();
        listed(resolv_conf(&text), learnt, interface.index).collect::<Vec<_>>()
    };
    let networkd = || {
        let text = std::fs::read_to_string(format!("/run/systemd/netif/links/{}", interface.index)).unwrap_or_default();
        listed(networkd(&text), Learnt::Networkd, interface.index).collect::<Vec<_>>()
    };
    let mut servers = networkd();
    if servers.is_empty() {
        servers = of_files("/run/resolvconf/interface", Learnt::Resolvconf);
    }
    if servers.is_empty() {
        servers = of_files("/run/dhcpcd/hook-state/resolv.conf", Learnt::Dhcpcd);
    }
    servers.truncate(SERVERS - 1);
    let gateways = interface.defaults().into_iter().filter_map(|way| way.gateway);
    for gateway in listed(gateways, Learnt::Gateway, interface.index) {
        if !servers.iter().any(|server| server.address == gateway.address) {
            servers.push(gateway);
        }
    }
    servers.truncate(SERVERS);
    servers
}

fn listed(addresses: impl Iterator<Item = IpAddr>, learnt: Learnt, interface: u32) -> impl Iterator<Item = Server> {
    // A resolver on this host asks others by ways that are not ours to know.
    addresses.filter(|address| !address.is_loopback() && !address.is_unspecified()).map(move |address| {
        let address = match address {
            IpAddr::V6(address) if address.is_unicast_link_local() => {
                SocketAddrV6::new(address, PORT, 0, interface).into()
            }
            _ => SocketAddr::new(address, PORT),
        };
        Server { address, learnt }
    })
}

/// The servers in a file as resolv.conf(5).
fn resolv_conf(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once(char::is_whitespace)?;
        (key == "nameserver").then(|| without_scope(value))?
    })
}

/// The servers in systemd-networkd's file of a link.
fn networkd(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| line.strip_prefix("DNS=")).flat_map(str::split_whitespace).filter_map(without_scope)
}

/// An address without the interface (`%eth0`) and the name for TLS (`#dns.example`) that may follow it.
fn without_scope(text: &str) -> Option<IpAddr> {
    text.trim().split(['%', '#']).next()?.parse().ok()
}

/// A question of a name for its addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    pub(crate) name: String,
    pub(crate) ipv6: bool,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, if self.ipv6 { "AAAA" } else { "A" })
    }
}

/// What is known of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The addresses of the last answer, also when it is older than it should be: better than none.
    pub(crate) addresses: Vec<IpAddr>,
    /// Why there is no newer one.
    pub(crate) problem: Option<String>,
}

/// All that an uplink's resolvers have said.
pub(crate) type Answers = BTreeMap<Question, Answer>;

/// Where questions are asked from, and whom. Where it changes, all are asked anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) interface: u32,
    /// Its address of each family.
    pub(crate) local: [Option<IpAddr>; 2],
    pub(crate) servers: Vec<Server>,
    /// Its prefix for IPv4 is to be found out.
    pub(crate) nat64: bool,
    /// Octets cost money: answers are believed for as long as they ever are.
    pub(crate) metered: bool,
}

/// Keeps an uplink's answers fresh, in the background.
pub(crate) struct Resolver {
    names: Vec<String>,
    place: Option<Arc<Place>>,
    tasks: JoinSet<()>,
    answers: watch::Sender<Answers>,
    news: Arc<Notify>,
}

impl Resolver {
    /// One for these names, asking nobody yet. `news` is notified of each new answer.
    pub(crate) fn new(names: Vec<String>, news: Arc<Notify>) -> Self {
        Resolver { names, place: None, tasks: JoinSet::new(), answers: watch::Sender::default(), news }
    }

    /// Asks from here from now on; from nowhere with `None`. What is known stays so.
    pub(crate) fn ask_from(&mut self, place: Option<Place>) {
        if self.place.as_deref() == place.as_ref() {
            return;
        }
        // Those of before are stopped, wherever they wait.
        self.tasks = JoinSet::new();
        self.place = place.map(Arc::new);
        let Some(place) = &self.place else { return };
        let both = self.names.iter().flat_map(|name| [false, true].map(|ipv6| Question { name: name.clone(), ipv6 }));
        let nat64 = place.nat64.then(|| Question { name: nat64::NAME.into(), ipv6: true });
        for question in both.chain(nat64) {
            self.tasks.spawn(keep_asking(place.clone(), question, self.answers.clone(), self.news.clone()));
        }
    }

    /// Nothing is known any more, and nobody asked.
    pub(crate) fn forget(&mut self) {
        self.ask_from(None);
        self.answers.send_replace(Answers::default());
    }

    /// What is known now.
    pub(crate) fn answers(&self) -> Answers {
        self.answers.borrow().clone()
    }
}

/// Asks, and asks again when the answer has grown old or there was none.
async fn keep_asking(place: Arc<Place>, question: Question, answers: watch::Sender<Answers>, news: Arc<Notify>) {
    let mut retry = RETRY.0;
    loop {
        let result = ask_all(&place, &question).await;
        let (answer, wait) = match result {
            Ok(Reply { addresses, ttl }) => {
                retry = RETRY.0;
                let least = if place.metered { TTL.1 } else { TTL.0 };
                let wait = if addresses.is_empty() { NO_ADDRESS } else { ttl.clamp(least, TTL.1) };
                (Answer { addresses, problem: None }, wait)
            }
            Err(problem) => {
                let addresses =
                    answers.borrow().get(&question).map(|known| known.addresses.clone()).unwrap_or_default();
                let wait = retry;
                retry = (retry * 2).min(if place.metered { RETRY_METERED } else { RETRY.1 });
                (Answer { addresses, problem: Some(problem) }, wait)
            }
        };
        let changed = answers.send_if_modified(|all| {
            let changed = all.get(&question) != Some(&answer);
            all.insert(question.clone(), answer);
            changed
        });
        if changed {
            news.notify_one();
        }
        sleep(wait).await;
    }
}

/// A proper answer; without addresses, the name has none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

/// Asks all servers, one shortly after the other, and takes the first proper answer.
async fn ask_all(place: &Arc<Place>, question: &Question) -> Result<Reply, String> {
    let mut asking = JoinSet::new();
    for (server, position) in place.servers.iter().zip(0..) {
        let (server, place, question) = (server.address, place.clone(), question.clone());
        asking.spawn(async move {
            sleep(STAGGER * position).await;
            ask(&place, server, &question).await.map_err(|error| format!("{}: {error}", server.ip()))
        });
    }
    let mut problems = Vec::new();
    while let Some(asked) = asking.join_next().await {
        match asked {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(problem)) => problems.push(problem),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems.sort();
    Err(if problems.is_empty() { "it has no resolver".into() } else { problems.join("; ") })
}

/// Asks one server, until it answers or patience ends.
async fn ask(place: &Place, server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let local = match server.ip() {
        // The kernel has an address of the link for it.
        IpAddr::V6(address) if address.is_unicast_link_local() => None,
        address => match place.local[usize::from(address.is_ipv6())] {
            Some(local) => Some(local),
            None => return Err(io::Error::other("the uplink has no address of its family")),
        },
    };
    let socket = UdpSocket::from_std(udp::question(place.interface, local, server)?)?;
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = u16::from_ne_bytes(id);
    let query = query(id, question).map_err(io::Error::other)?;
    let start = Instant::now();
    // 4096 octets: more than a resolver sends to who does not say that it takes more than 512.
    let mut buffer = [0; 4096];
    for until in AGAIN.into_iter().chain([PATIENCE]) {
        socket.send(&query).await?;
        while let Ok(received) = timeout_at(start + until, socket.recv(&mut buffer)).await {
            match read(id, question, &buffer[..received?]) {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(code)) => return Err(io::Error::other(format!("it says {code:?}"))),
                // Not an answer to this: noise, or somebody guessing.
                None => {}
            }
        }
    }
    Err(io::Error::other(format!("no answer within {} s", PATIENCE.as_secs())))
}

fn query(id: u16, question: &Question) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let kind = if question.ipv6 { TYPE::AAAA } else { TYPE::A };
    let name = Name::new(&question.name)?;
    packet.questions.push(Asked::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec()
}

/// What a datagram says of our question; `None` if it is no answer to it.
fn read(id: u16, question: &Question, datagram: &[u8]) -> Option<Result<Reply, RCODE>> {
    let packet = Packet::parse(datagram).ok()?;
    let name = Name::new(&question.name).ok()?;
    let kind = if question.ipv6 { TYPE::AAAA } else { TYPE::A };
    let asked = packet.questions.first()?;
    let ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && asked.qname == name
        && asked.qtype == QTYPE::TYPE(kind);
    if !ours {
        return None;
    }
    if packet.rcode() != RCODE::NoError {
        return Some(Err(packet.rcode()));
    }
    // Aliases first, in whatever order they come; an answer cut to fit (TC) has at least some of the addresses.
    let mut names = vec![name];
    for _ in 0..ALIASES {
        let next = packet.answers.iter().find_map(|record| match &record.rdata {
            RData::CNAME(alias) if names.last() == Some(&record.name) => Some(alias.0.clone()),
            _ => None,
        });
        let Some(next) = next.filter(|next| !names.contains(next)) else { break };
        names.push(next);
    }
    let mut reply = Reply { addresses: Vec::new(), ttl: TTL.1 };
    for record in packet.answers.iter().filter(|record| record.class == CLASS::IN && names.contains(&record.name)) {
        let address: IpAddr = match &record.rdata {
            RData::A(address) if !question.ipv6 => std::net::Ipv4Addr::from(address.address).into(),
            RData::AAAA(address) if question.ipv6 => Ipv6Addr::from(address.address).into(),
            _ => continue,
        };
        reply.ttl = reply.ttl.min(Duration::from_secs(record.ttl.into()));
        if may_be_a_core(address) && reply.addresses.len() < ADDRESSES && !reply.addresses.contains(&address) {
            reply.addresses.push(address);
        }
    }
    Some(Ok(reply))
}

/// Blocking resolvers answer with addresses that are nobody's.
fn may_be_a_core(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local)
}

#[cfg(test)]
mod tests;
