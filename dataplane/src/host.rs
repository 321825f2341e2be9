//! What a daemon changes on its host, and how it is undone: at its end, or by its next start when it was killed.
//!
//! A daemon says what it wants to be in force ([`Host::set`]); what differs from that is added and removed. Rules and
//! routes carry a number of their owner ([`Owner`]), so those that a killed daemon left are recognised. A sysctl has no
//! room for that: its old value is noted in a journal before it is changed. There it is noted too that there is a table of
//! the packet filter, so that nothing of nftables is touched where there never was one.

use crate::netfilter::{self, FilterError};
use crate::netlink::{self, Netlink, Route, Rule};
use crate::tun::{self, Tun};
use nftables::schema::NfListObject;
use rustix::fs::{FlockOperation, flock};
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whose rules and routes they are: the number in their protocol field (rtnetlink(7)). 77 to 79 are assigned to
/// nobody in iproute2's tables; to see them by name, write `77 mspmb` to /etc/iproute2/rt_protos.d/msp.conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// A middlebox.
    Middlebox = 77,
    /// A core.
    Core = 78,
    /// A core, of the routes that it has learnt: of these there may be a million, and they go with their next-hop objects
    /// ([`crate::netlink::fib`]), so the host's own accounts are kept without them.
    CoreLearnt = 79,
}

/// Something that a daemon wants to be so on its host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// A kernel parameter.
    Sysctl(Sysctl),
    /// A routing rule.
    Rule(Rule),
    /// A route.
    Route(Route),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Sysctl(Sysctl { key, value }) => write!(f, "sysctl {key} = {value}"),
            Change::Rule(rule) => write!(f, "rule {rule}"),
            Change::Route(route) => write!(f, "route {route}"),
        }
    }
}

/// A kernel parameter and the value it is to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sysctl {
    /// Its path below /proc/sys, such as `net/ipv4/ip_forward`. A part such as `#3` stands for the name of interface
    /// number 3: the kernel moves the parameters of an interface when it is renamed, and they are found again.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// Why the host could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another daemon has changed this host, and runs.
    #[error("already running as pid {pid} (it holds {}); stop that one first, or give this one another `control`",
        journal.display())]
    Running {
        /// The other's process number, as it wrote it.
        pid: String,
        /// The journal.
        journal: PathBuf,
    },
    /// The journal cannot be used.
    #[error("cannot use {}: {cause}; its folder must be writable", journal.display())]
    Journal {
        /// The journal.
        journal: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The kernel refused something.
    #[error("cannot {action}: {cause}{}", hint(cause))]
    Refused {
        /// What was tried.
        action: String,
        /// Why.
        cause: io::Error,
    },
    /// The packet filter cannot be used.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; the daemon needs CAP_NET_ADMIN and CAP_NET_RAW (root has them)",
        Some(libc::EBUSY) => "; another program uses that name, choose another one",
        Some(libc::EEXIST) => "; somebody else has made the same, remove it or choose other numbers",
        Some(libc::ENOENT) => "; does this kernel have it?",
        _ => "",
    }
}

fn refused(action: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    let action = action.into();
    move |cause| HostError::Refused { action, cause }
}

/// A hold on the host, to change it and to give it back.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
    journal: Journal,
    filter: Option<Filter>,
}

/// The table of the packet filter that is in force.
#[derive(Debug)]
struct Filter {
    objects: Vec<NfListObject<'static>>,
    /// When it was last seen to be there.
    seen: Instant,
}

/// How long a table is believed to be there. Whoever sets up a firewall anew (`nft flush ruleset`) takes it away, and there
/// is no news of it.
const BELIEVED: Duration = Duration::from_secs(20);

impl Host {
    /// Takes hold of the host, within a tokio runtime: one daemon at a time has a journal. What a killed daemon left
    /// stays until the first [`Host::set`], so that no packet takes a forbidden way in between.
    pub async fn open(journal: &Path, owner: Owner) -> Result<Self, HostError> {
        let journal = Journal::open(journal)?;
        let netlink = Netlink::connect(owner as u8).map_err(refused("talk to the kernel by netlink"))?;
        let mut host = Host { netlink, journal, filter: None };
        let left = host.in_force().await?;
        if !left.is_empty() {
            tracing::info!(changes = left.len(), "an earlier run was killed; what it left is taken over or removed");
        }
        Ok(host)
    }

    /// What is in force of ours, as the kernel and the journal have it; what this program would not make is removed.
    async fn in_force(&mut self) -> Result<Vec<Change>, HostError> {
        let failed = || refused("see or remove what is in force of ours");
        let mut current: Vec<Change> = self
            .journal
            .entries
            .iter()
            .map(|entry| Change::Sysctl(Sysctl { key: entry.key.clone(), value: entry.new.clone() }))
            .collect();
        // In the order in which they are made: it is turned round to undo them.
        for (route, message) in self.netlink.routes().await.map_err(failed())? {
            match route {
                Some(route) => current.push(Change::Route(route)),
                None => self.netlink.delete_route_message(message).await.map_err(failed())?,
            }
        }
        for (rule, message) in self.netlink.rules().await.map_err(failed())? {
            match rule {
                Some(rule) => current.push(Change::Rule(rule)),
                None => self.netlink.delete_rule_message(message).await.map_err(failed())?,
            }
        }
        Ok(current)
    }

    /// The connection to the kernel, to ask about interfaces and routes.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Makes the TUN device and brings it up.
    ///
    /// It gets no IPv6 address of its own and listens to no router advertisements: whatever the kernel would send by
    /// itself there is noise for the other end. Reverse path filtering is off or loose, as the rest of the host allows,
    /// since packets from anywhere come out of it.
    pub async fn open_tun(&self, name: &str, mtu: u16) -> Result<Tun, HostError> {
        let tun = Tun::open(name, mtu).map_err(refused(format!("make the TUN device {name}")))?;
        // These go with the device, so they are not in the journal.
        let loose = if effective_rp_filter("all") == 0 { "0" } else { "2" };
        write_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), loose)
            .map_err(refused(format!("turn reverse path filtering off on {name}")))?;
        for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0")] {
            match write_sysctl(&format!("net/ipv6/conf/{name}/{key}"), value) {
                // No IPv6 in this kernel, or turned off: nothing to quieten.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(refused(format!("quieten IPv6 on {name}")))?,
            }
        }
        let index = tun.index().map_err(refused(format!("find {name}")))?;
        if let Err(error) = self.netlink.limit_bursts(index, tun::SEGMENTS as u32).await {
            tracing::debug!(%error, tun = name, "the kernel sets no bound on a burst's segments; too long ones are lost");
        }
        tun.set_up().map_err(refused(format!("bring {name} up")))?;
        Ok(tun)
    }

    /// Makes `wanted` to be in force, and nothing else of ours: adds in the order given, then removes. What somebody
    /// else has removed in the meantime (the kernel drops the routes of a TUN that is set down) is made again.
    ///
    /// It stops at an error, with some of it in force; another call, or [`Host::restore`], goes on from there.
    pub async fn set(&mut self, wanted: &[Change]) -> Result<(), HostError> {
        let current = self.in_force().await?;
        let (add, remove) = plan(&current, wanted);
        for change in add {
            tracing::debug!(%change, "setting");
            self.add(&change).await?;
        }
        for change in remove {
            tracing::debug!(%change, "removing");
            self.remove(&change).await?;
        }
        Ok(())
    }

    /// Makes `objects` to be the table `name` of the packet filter, in one step; only what a killed daemon left is removed if
    /// there are none. Chains that do not change go on counting.
    pub async fn set_filter(
        &mut self,
        name: &'static str,
        objects: Option<Vec<NfListObject<'static>>>,
    ) -> Result<(), HostError> {
        let Some(objects) = objects else {
            return self.remove_filter().await;
        };
        let mut before = self.filter.take();
        if let Some(filter) = before.take_if(|filter| filter.seen.elapsed() > BELIEVED) {
            let there = netfilter::counters(name).await.is_ok();
            before = there.then(|| Filter { seen: Instant::now(), ..filter });
        }
        if let Some(filter) = before.take_if(|filter| filter.objects == objects) {
            self.filter = Some(filter);
            return Ok(());
        }
        self.journal.note_table(name)?;
        tracing::debug!(table = name, "replacing the table of the packet filter");
        let known = before.map(|filter| filter.objects);
        netfilter::replace(name, known.as_deref(), &objects).await?;
        self.filter = Some(Filter { objects, seen: Instant::now() });
        Ok(())
    }

    async fn remove_filter(&mut self) -> Result<(), HostError> {
        self.filter = None;
        while let Some(name) = self.journal.tables.last().cloned() {
            netfilter::remove(&name).await?;
            self.journal.note_table_gone(&name)?;
        }
        Ok(())
    }

    /// Undoes everything, the last first, and goes on over errors, which are logged. The TUN is not this function's.
    pub async fn restore(mut self) {
        if let Err(error) = self.remove_filter().await {
            tracing::warn!(%error, "a table of the packet filter stays on this host");
        }
        match self.in_force().await {
            Ok(current) => {
                for change in current.iter().rev() {
                    if let Err(error) = self.remove(change).await {
                        tracing::warn!(%error, "something stays changed on this host");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "this host stays changed"),
        }
        self.journal.remove();
    }

    async fn add(&mut self, change: &Change) -> Result<(), HostError> {
        match change {
            Change::Sysctl(sysctl) => {
                let old = read_sysctl(&sysctl.key).map_err(refused(format!("read the sysctl {}", sysctl.key)))?;
                if old == sysctl.value {
                    // Nothing to change, and so nothing to undo.
                    return Ok(());
                }
                self.journal.note(Entry { key: sysctl.key.clone(), old, new: sysctl.value.clone() })?;
                write_sysctl(&sysctl.key, &sysctl.value)
                    .map_err(refused(format!("set the sysctl {} to {}", sysctl.key, sysctl.value)))
            }
            Change::Rule(rule) => self.netlink.add_rule(rule).await.map_err(refused(format!("add the rule {rule}"))),
            Change::Route(route) => {
                self.netlink.add_route(route).await.map_err(refused(format!("add the route {route}")))
            }
        }
    }

    async fn remove(&mut self, change: &Change) -> Result<(), HostError> {
        match change {
            Change::Sysctl(sysctl) => self.journal.restore(&sysctl.key),
            Change::Rule(rule) => {
                self.netlink.delete_rule(rule).await.map_err(refused(format!("remove the rule {rule}")))
            }
            Change::Route(route) => {
                self.netlink.delete_route(route).await.map_err(refused(format!("remove the route {route}")))
            }
        }
    }
}

/// What to add, in the order wanted, and what to remove, the last first, to come from `current` to `wanted`.
fn plan(current: &[Change], wanted: &[Change]) -> (Vec<Change>, Vec<Change>) {
    let mut known: HashSet<&Change> = current.iter().collect();
    let add = wanted.iter().filter(|change| known.insert(change)).cloned().collect();
    let wanted: HashSet<&Change> = wanted.iter().collect();
    let remove = current.iter().rev().filter(|change| !wanted.contains(change)).cloned().collect();
    (add, remove)
}

/// What an interface (`all`, a name, or `#3` for interface number 3) says of reverse path filtering: 0 off, 1 strict,
/// 2 loose. The kernel takes the larger of what it and `all` say.
pub fn effective_rp_filter(interface: &str) -> u8 {
    let of = |name: &str| -> u8 {
        read_sysctl(&format!("net/ipv4/conf/{name}/rp_filter")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    of("all").max(of(interface))
}

/// Reads a kernel parameter, by its key as in [`Sysctl`].
pub fn read_sysctl(key: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(sysctl_path(key)?)?.trim().to_owned())
}

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    std::fs::write(sysctl_path(key)?, value)
}

/// Where a parameter is now.
fn sysctl_path(key: &str) -> io::Result<PathBuf> {
    let mut path = PathBuf::from("/proc/sys");
    for part in key.split('/') {
        match part.strip_prefix('#').and_then(|index| index.parse().ok()) {
            Some(index) => path.push(netlink::name_of(index)?),
            None => path.push(part),
        }
    }
    Ok(path)
}

/// A sysctl, the value it had and the one we gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: String,
    old: String,
    new: String,
}

/// The file that outlives a kill, locked for as long as its daemon lives. Lines are only ever added:
///
/// ```text
/// pid     1234                            a daemon took hold
/// set     net/ipv4/ip_forward  0  1       about to change this, from, to
/// set     net/ipv4/conf/#3/rp_filter 1 2  the same of interface number 3, whatever its name is by then
/// undone  net/ipv4/ip_forward             it has its old value again
/// table   mspmb                           about to make this table of the packet filter
/// gone    mspmb                           it is no more
/// ```
///
/// (fields separated by tabs). It is not synced to the disk: what it speaks of goes with the kernel, as /run does.
#[derive(Debug)]
struct Journal {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    /// The tables of the packet filter that there may be.
    tables: Vec<String>,
}

impl Journal {
    fn open(path: &Path) -> Result<Self, HostError> {
        let failed = |cause| HostError::Journal { journal: path.to_owned(), cause };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        loop {
            let mut file = File::options().read(true).append(true).create(true).open(path).map_err(failed)?;
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed)?;
            match locked {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let pid = text.lines().filter_map(|line| line.strip_prefix("pid\t")).next_back();
                    return Err(HostError::Running { pid: pid.unwrap_or("?").into(), journal: path.to_owned() });
                }
                Err(error) => return Err(failed(error.into())),
            }
            // A daemon that ended between our opening and our locking has removed the file: then this is another one.
            let ours = file.metadata().map_err(failed)?;
            let there = std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
            if !there.is_ok_and(|there| there == (ours.dev(), ours.ino())) {
                continue;
            }
            let (entries, tables) = Self::parse(&text);
            let mut journal = Journal { path: path.to_owned(), file, entries, tables };
            // What a kill cut short gets an end of its own, so that it does not spoil the line after it.
            let torn = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            journal.write(&format!("{torn}pid\t{}\n", std::process::id()))?;
            return Ok(journal);
        }
    }

    /// What is still to be undone, by a journal's text. A line cut short is skipped: it was never acted upon, since a
    /// line is written before what it speaks of is done.
    fn parse(text: &str) -> (Vec<Entry>, Vec<String>) {
        let (mut entries, mut tables) = (Vec::new(), Vec::new());
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match *line.split('\t').collect::<Vec<_>>() {
                ["set", key, old, new] => {
                    Self::merge(&mut entries, Entry { key: key.into(), old: old.into(), new: new.into() });
                }
                ["undone", key] => entries.retain(|entry: &Entry| entry.key != key),
                ["table", name] => tables.push(name.to_owned()),
                ["gone", name] => tables.retain(|table| table != name),
                _ => {}
            }
        }
        (entries, tables)
    }

    /// A sysctl that we set twice goes back to the value it had before the first time.
    fn merge(entries: &mut Vec<Entry>, entry: Entry) {
        match entries.iter_mut().find(|other| other.key == entry.key) {
            Some(earlier) => earlier.new = entry.new,
            None => entries.push(entry),
        }
    }

    fn write(&mut self, line: &str) -> Result<(), HostError> {
        // One call, so that a kill leaves the line whole or cut, and nothing behind it.
        self.file.write_all(line.as_bytes()).map_err(|cause| HostError::Journal { journal: self.path.clone(), cause })
    }

    fn note(&mut self, entry: Entry) -> Result<(), HostError> {
        self.write(&format!("set\t{}\t{}\t{}\n", entry.key, entry.old, entry.new))?;
        Self::merge(&mut self.entries, entry);
        Ok(())
    }

    /// Gives a sysctl its old value, if it still has the one that we gave it: otherwise somebody has set it since, or
    /// its interface is gone.
    fn restore(&mut self, key: &str) -> Result<(), HostError> {
        let Some(index) = self.entries.iter().position(|entry| entry.key == key) else { return Ok(()) };
        let entry = self.entries.remove(index);
        if read_sysctl(key).is_ok_and(|value| value == entry.new) {
            write_sysctl(key, &entry.old).map_err(refused(format!("set the sysctl {key} back to {}", entry.old)))?;
        }
        self.write(&format!("undone\t{key}\n"))
    }

    /// Notes that there may be a table from now on.
    fn note_table(&mut self, name: &str) -> Result<(), HostError> {
        if !self.tables.iter().any(|table| table == name) {
            self.write(&format!("table\t{name}\n"))?;
            self.tables.push(name.to_owned());
        }
        Ok(())
    }

    fn note_table_gone(&mut self, name: &str) -> Result<(), HostError> {
        self.tables.retain(|table| table != name);
        self.write(&format!("gone\t{name}\n"))
    }

    fn remove(self) {
        // Still locked: nobody has taken it over.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, journal = %self.path.display(), "cannot remove the journal");
        }
    }
}

#[cfg(test)]
mod tests;
