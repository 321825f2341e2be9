//! Local breakout: flows that leave by an uplink itself, translated to its address, and come back by it.
//!
//! Which do, and by which uplink, is decided in [`proto::direct`]; [`ruleset`] makes a table of the packet filter of it, and
//! `lan.rs` the rules that lead the packets it marks to their uplink. Here they meet the daemon: what is known of the uplinks
//! goes in, and what is in force and has been counted comes out.

mod ruleset;

pub(crate) use ruleset::{DIRECT, Outlet, mark};

use crate::config::Config;
use crate::run::{Policies, in_force};
use dataplane::host::Host;
use dataplane::netfilter::{self, Counted};
use dataplane::{calendar, clock};
use proto::direct::{self, Decision, Exit, Isolation, Leaves};
use proto::policy::{ClassId, Policy};
use proto::{Instant, MAX_SLOTS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// What `status` shows of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DirectStatus {
    /// No tunnel has worked for a second.
    pub(crate) isolated: bool,
    /// Why it is not in force, if it is not.
    pub(crate) problem: Option<String>,
    /// All classes of the policy, in its order.
    pub(crate) classes: Vec<DirectClass>,
}

/// A class, as far as its flows leave by an uplink itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DirectClass {
    /// Its name.
    pub(crate) name: String,
    /// Where new flows go, in IPv4 and in IPv6.
    pub(crate) families: [Outward; 2],
    /// What has left by uplinks of direct flows, since this policy is in force.
    pub(crate) sent: Counted,
    /// What has come back of them.
    pub(crate) received: Counted,
    /// What was dropped since no uplink could be used.
    pub(crate) dropped: Counted,
}

/// Where new flows of a class go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outward {
    /// The slot of the uplink by which they leave; none: they do not.
    pub(crate) slot: Option<u8>,
    /// They go nowhere.
    pub(crate) nowhere: bool,
    /// Why.
    pub(crate) why: String,
}

impl From<&Decision> for Outward {
    fn from(decision: &Decision) -> Self {
        let (slot, nowhere) = match decision.leaves {
            Leaves::ByTunnel => (None, false),
            Leaves::ByUplink(slot) => (Some(slot), false),
            Leaves::Nowhere => (None, true),
        };
        Outward { slot, nowhere, why: decision.why.to_owned() }
    }
}

/// Keeps the packet filter as the policy and the uplinks want it.
pub(crate) struct Breakout<'a> {
    config: &'a Config,
    policy: watch::Receiver<Policies>,
    isolation: Isolation,
    /// The policy that the table was made for, and where new flows go by it.
    in_force: Option<(Arc<Policy>, Vec<[Decision; 2]>)>,
    /// How many policies the table has been made for: each counts from nothing.
    edition: u32,
    /// When another window of the policy opens or closes, and other classes have packets.
    windows_change: Option<Instant>,
    isolated: bool,
    problem: Option<String>,
}

impl<'a> Breakout<'a> {
    pub(crate) fn new(config: &'a Config, policy: watch::Receiver<Policies>, now: Instant) -> Self {
        let isolation = Isolation::begin(now);
        let (in_force, windows_change, problem) = Default::default();
        Breakout { config, policy, isolation, in_force, edition: 0, windows_change, isolated: false, problem }
    }

    /// Whether the host is to be made ready for direct flows. Once there may be some it stays so, since they stay where they
    /// began when the policy becomes another.
    pub(crate) fn is_wanted(&self) -> bool {
        self.in_force.is_some() || direct::concerns(&in_force(&self.policy.borrow()))
    }

    /// When to look again though there is no news.
    pub(crate) fn due(&self, now: Instant) -> Option<Duration> {
        let due = [self.isolation.due(now), self.windows_change.filter(|due| *due > now)];
        due.into_iter().flatten().min().filter(|_| self.is_wanted()).map(|due| due.since(now))
    }

    /// Has the packet filter be as it should with these uplinks; what there is to show of it, if it is of use at all.
    pub(crate) async fn look(
        &mut self,
        now: Instant,
        host: &mut Host,
        exits: &[Exit],
        outlets: &[Outlet],
    ) -> Option<DirectStatus> {
        let policy = in_force(&self.policy.borrow());
        let isolated = self.isolation.note(now, exits.iter().any(|exit| exit.tunnel == Some(true)));
        let wanted = self.is_wanted();
        let decisions = direct::decide(&policy, exits, isolated);
        let (prefixes, tun) = (&self.config.prefixes, &self.config.tun.name);
        let unix_time = clock::unix_time();
        let open = calendar::open(&policy, unix_time);
        self.windows_change = open.until.map(|until| now + until.saturating_sub(unix_time));
        let active = |class: ClassId| policy.is_open(class.into(), open.windows);
        let anew = self.in_force.as_ref().is_none_or(|(before, _)| !Arc::ptr_eq(before, &policy));
        let edition = self.edition.wrapping_add(u32::from(anew));
        let objects = wanted.then(|| ruleset::ruleset(prefixes, tun, (&policy, edition), &active, &decisions, outlets));
        let mut problem = host.set_filter(ruleset::TABLE, objects).await.err().map(|error| error.to_string());
        if problem.is_none() && wanted {
            let before = self.in_force.as_ref().filter(|_| !anew).map(|(_, before)| &before[..]);
            match forget_waiting(before.unwrap_or_default(), &decisions) {
                Ok(()) => (self.in_force, self.edition) = (Some((policy.clone(), decisions.clone())), edition),
                Err(error) => problem = Some(format!("cannot have flows forgotten that nobody has answered: {error}")),
            }
        }
        self.log(wanted && isolated, &problem);
        let classes = policy.classes().iter().zip(&decisions).map(|(class, families)| DirectClass {
            name: class.name.to_string(),
            families: families.each_ref().map(Outward::from),
            ..DirectClass::default()
        });
        wanted.then(|| DirectStatus { isolated, problem, classes: classes.collect() })
    }

    /// Whether what is in force is what is wanted.
    pub(crate) fn is_well(&self) -> bool {
        self.problem.is_none()
    }

    /// Says what is new.
    fn log(&mut self, isolated: bool, problem: &Option<String>) {
        if isolated && !self.isolated {
            tracing::warn!("no tunnel works; where the policy lets them, new flows leave by the uplinks themselves");
        } else if self.isolated && !isolated {
            tracing::info!("a tunnel works again; new flows go by the tunnels");
        }
        if *problem != self.problem {
            match problem {
                Some(problem) => tracing::warn!(problem, "direct flows go by the tunnels"),
                None => tracing::info!("direct flows leave by the uplinks again"),
            }
        }
        self.isolated = isolated;
        self.problem.clone_from(problem);
    }
}

/// Has the kernel forget what nobody has answered of flows whose like goes another way now. Other packets of the same flow,
/// the next tries of a connection, go that way then.
fn forget_waiting(before: &[[Decision; 2]], now: &[[Decision; 2]]) -> std::io::Result<()> {
    for ((before, now), class) in before.iter().zip(now).zip(0..) {
        let moved = before.iter().zip(now).filter(|(before, now)| before.leaves != now.leaves);
        for mark in moved.filter_map(|(before, _)| ruleset::waiting(class, before.leaves)) {
            netfilter::forget(mark)?;
        }
    }
    Ok(())
}

/// How old counts may be that are shown: asking for them runs a program.
const FRESH: Duration = Duration::from_secs(1);

/// The packet filter's counters, as they were when they were last asked for.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    last: Arc<Mutex<Option<Asked>>>,
}

struct Asked {
    at: std::time::Instant,
    counted: BTreeMap<String, Counted>,
}

impl Counts {
    /// Writes into `status` what has been counted; where nothing can be known, nothing.
    pub(crate) async fn fill(&self, status: &mut DirectStatus) {
        let mut last = self.last.lock().await;
        if last.as_ref().is_none_or(|asked| asked.at.elapsed() >= FRESH) {
            // Before the table is made there is none, and so is nothing counted.
            let counted = netfilter::counters(ruleset::TABLE).await.unwrap_or_default();
            *last = Some(Asked { at: std::time::Instant::now(), counted });
        }
        let Some(Asked { counted, .. }) = &*last else { return };
        let of = |name: &str| counted.get(name).copied().unwrap_or_default();
        for (class, id) in status.classes.iter_mut().zip(0..) {
            let [up, down] = ruleset::counters(id);
            (class.sent, class.received, class.dropped) = (of(&up), of(&down), of(&ruleset::dropped(id)));
        }
    }
}

/// What direct flows have carried by the uplink of each slot since there is the table, both ways, in octets from the IP header on;
/// `None`: there is none, or it cannot be read now.
pub(crate) async fn carried() -> Option<[u64; MAX_SLOTS]> {
    let counted = netfilter::counters(ruleset::TABLE).await.ok()?;
    let by = |slot: usize| counted.get(&ruleset::carried_by(slot as u8)).map_or(0, |counted| counted.bytes);
    Some(std::array::from_fn(by))
}

/// Whether this host can do what the policy asks for.
pub(crate) fn check(policy: &Policy) -> anyhow::Result<()> {
    if direct::concerns(policy) {
        netfilter::available().map_err(|error| {
            anyhow::anyhow!("the policy has flows leave by an uplink itself (\"direct\"), but {error}")
        })?;
    }
    Ok(())
}
