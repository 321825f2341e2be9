//! Which sites can be reached, and by which of their paths: announced at once when the first path is up, withdrawn some time
//! after the last one went down.

use super::policy::Slots;
use ipnet::IpNet;
use proto::{Instant, PathId, PeerId, TunnelKind};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One site, as far as announcing goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) id: PeerId,
    pub(crate) name: String,
    pub(crate) prefixes: Vec<IpNet>,
    /// How long after its last path went down it is withdrawn; never, if none.
    pub(crate) withdraw_after: Option<Duration>,
}

/// Whether a site is announced, and why or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No path has been up since the core started or the site was added.
    NeverUp,
    /// At least one path is up.
    Up,
    /// No path is up since then, and it is announced still.
    Lingering { since: Instant },
    /// No path is up since then, for so long that it was withdrawn.
    Withdrawn { since: Instant },
}

impl Standing {
    /// Is it announced?
    pub(crate) fn announced(self) -> bool {
        matches!(self, Standing::Up | Standing::Lingering { .. })
    }
}

/// A site and how it is doing.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) site: Site,
    pub(super) standing: Standing,
    /// Those with a path that is up, for each kind of tunnel: an uplink works if either does.
    up: [Slots; 2],
    /// The paths that policy judges by: those that are up, or, when none is, those that were up last. An outage of all of
    /// them is the withdraw timer's matter, and changes nothing of what is said until then.
    pub(super) judged: Slots,
}

/// The sites' liveness.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    sites: BTreeMap<PeerId, Life>,
    /// When which lingering site is to be withdrawn.
    due: BTreeSet<(Instant, PeerId)>,
    /// The sites that are not what they were when they were last asked for.
    changed: BTreeSet<PeerId>,
}

impl Liveness {
    /// Puts another set of sites in force. What stays keeps its standing; what goes is wanted no more at once.
    pub(super) fn set_sites(&mut self, now: Instant, sites: impl IntoIterator<Item = Site>) {
        let mut old = std::mem::take(&mut self.sites);
        self.due.clear();
        for site in sites {
            let (standing, up, judged) = match old.remove(&site.id) {
                Some(life) => (life.standing, life.up, life.judged),
                None => (Standing::NeverUp, [Slots::NONE; 2], Slots::NONE),
            };
            if let (Standing::Lingering { since }, Some(after)) = (standing, site.withdraw_after) {
                self.due.insert((since + after, site.id));
            }
            self.changed.insert(site.id);
            self.sites.insert(site.id, Life { site, standing, up, judged });
        }
        self.changed.extend(old.into_keys());
        // A shorter time to withdrawal may have passed already.
        self.handle_timeout(now);
    }

    /// A path came up, or went down.
    pub(super) fn path(&mut self, path: PathId, up: bool) {
        let Some(life) = self.sites.get_mut(&path.peer) else { return };
        let of_kind = &mut life.up[usize::from(path.tunnel == TunnelKind::Quic)];
        *of_kind = of_kind.with(path.slot, up);
        let up = life.up[0].or(life.up[1]);
        if up != Slots::NONE && up != life.judged {
            life.judged = up;
            self.changed.insert(path.peer);
        }
    }

    /// The first path of a site came up.
    pub(super) fn reachable(&mut self, id: PeerId) {
        if let Some(life) = self.sites.get_mut(&id) {
            if let (Standing::Lingering { since }, Some(after)) = (life.standing, life.site.withdraw_after) {
                self.due.remove(&(since + after, id));
            }
            life.standing = Standing::Up;
            self.changed.insert(id);
        }
    }

    /// The last path of a site went down.
    pub(super) fn unreachable(&mut self, now: Instant, id: PeerId) {
        if let Some(life) = self.sites.get_mut(&id)
            && life.standing == Standing::Up
        {
            life.standing = Standing::Lingering { since: now };
            self.changed.insert(id);
            self.due.extend(life.site.withdraw_after.map(|after| (now + after, id)));
        }
        self.handle_timeout(now);
    }

    /// Withdraws what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            if let Some(life) = self.sites.get_mut(&id)
                && let Standing::Lingering { since } = life.standing
            {
                life.standing = Standing::Withdrawn { since };
                self.changed.insert(id);
            }
        }
    }

    /// When the next site is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A site's standing.
    pub(crate) fn standing(&self, id: PeerId) -> Option<Standing> {
        self.sites.get(&id).map(|life| life.standing)
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Life> {
        self.sites.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Life> {
        self.sites.values()
    }

    /// One of the sites that have changed since it was last taken.
    pub(super) fn take_changed(&mut self) -> Option<PeerId> {
        self.changed.pop_first()
    }
}
