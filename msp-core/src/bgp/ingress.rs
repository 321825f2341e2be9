//! By whom packets for the sites come in: what each neighbour is to be told of which prefix.
//!
//! The routes that leave are a function of the configuration, of the sites' liveness, of the withdraw timer and of what an
//! operator has asked to be blackholed, and of nothing else: all of them are a site's prefix, an address within one, or a
//! configured aggregate around some. So a default or a learnt route has no way in.
//!
//! ```text
//!   events of paths --> liveness --.
//!   rules, aggregates -------------+--> may it leave? --> wanted, of each neighbour --> what has changed in it
//!   blackholes --------------------'
//! ```
//!
//! One event costs what one site costs: of ten thousand others nothing is looked at.

mod liveness;
mod policy;

pub(crate) use liveness::{Liveness, Site, Standing};
pub(crate) use policy::{Aggregate, Announce, AnyCommunity, Pattern, Policy, Rule, Slots, When};

use super::admission::{Admission, Refusal};
use super::origin::Origins;
use super::update::{Aggregator, Community, ExtendedCommunity, LargeCommunity};
use ipnet::IpNet;
use liveness::Life;
use proto::{Instant, PathId, PeerId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The most addresses that are blackholed at a time: more than any neighbour takes of one customer, and a bound for a script
/// that has gone wrong.
const MOST_BLACKHOLES: usize = 1_000;

/// What policy says of a route, beside what is said of every route of ours. Equal for many, and shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Said {
    /// How often our AS stands in the path once more (external sessions).
    pub(crate) prepend: u8,
    /// MULTI_EXIT_DISC.
    pub(crate) med: Option<u32>,
    /// LOCAL_PREF (internal sessions).
    pub(crate) local_pref: Option<u32>,
    pub(crate) communities: Box<[Community]>,
    pub(crate) extended_communities: Box<[ExtendedCommunity]>,
    pub(crate) large_communities: Box<[LargeCommunity]>,
    /// Who put several routes together into this one.
    pub(crate) aggregator: Option<Aggregator>,
}

impl Said {
    /// Packets for this address are to be dropped, and nobody farther away needs to know of it (RFC 7999, section 3.2).
    fn blackhole() -> Said {
        Said { communities: [Community::BLACKHOLE, Community::NO_EXPORT].into(), ..Said::default() }
    }
}

/// What a neighbour may be told at all (RFC 8212).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Export {
    /// Sites' prefixes and aggregates.
    pub(crate) sites: bool,
    /// Addresses that it is to drop packets for.
    pub(crate) blackholes: bool,
}

/// An address for which neighbours drop packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blackhole {
    /// The neighbour that is asked to; all of them that may be, if none is given.
    pub(crate) neighbor: Option<usize>,
    /// Until when; until it is taken back, if none is given.
    pub(crate) until: Option<Instant>,
}

/// Why an address is not blackholed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlackholeError {
    #[error("{0} is no site's: only addresses of sites can be blackholed; see `msp-core sites`")]
    NoSite(IpAddr),
    #[error("{address} is of site {site}, which is not announced now: there is nothing to blackhole")]
    NotAnnounced { address: IpAddr, site: String },
    #[error(
        "no neighbour is to be told: give one `announce = [\"sites\", \"blackholes\"]`, if its operator takes them"
    )]
    NoNeighbor,
    #[error("{MOST_BLACKHOLES} addresses are blackholed already; remove some")]
    TooMany,
}

/// What all neighbours are to be told, kept up to date.
#[derive(Debug)]
pub(crate) struct Ingress {
    policy: Policy,
    /// We, as far as aggregates say who made them.
    aggregator: Option<Aggregator>,
    liveness: Liveness,
    blackholes: BTreeMap<IpNet, Blackhole>,
    /// Which of the prefixes may leave.
    admission: Admission,
    tables: Vec<Table>,
}

/// Of one neighbour.
#[derive(Debug, Default)]
struct Table {
    export: Export,
    wanted: BTreeMap<IpNet, Arc<Said>>,
    /// What is not as it was when it was taken last.
    changes: Changes,
    /// Of each aggregate, the sites that it stands for.
    within: Vec<BTreeSet<PeerId>>,
}

/// Prefixes, each with what is to be said of it from now on; without that it is to be withdrawn.
pub(crate) type Changes = BTreeMap<IpNet, Option<Arc<Said>>>;

impl Table {
    fn set(&mut self, prefix: IpNet, said: Option<Arc<Said>>) {
        let old = match &said {
            Some(said) => self.wanted.insert(prefix, said.clone()),
            None => self.wanted.remove(&prefix),
        };
        if old != said {
            self.changes.insert(prefix, said);
        }
    }
}

impl Ingress {
    /// For these neighbours, in the order of their places.
    pub(crate) fn new(
        policy: Policy,
        aggregator: Option<Aggregator>,
        admission: Admission,
        neighbors: &[Export],
    ) -> Ingress {
        let tables = neighbors.iter().map(|&export| Table { export, ..Table::default() }).collect();
        let (liveness, blackholes) = Default::default();
        let mut ingress = Ingress { policy, aggregator, liveness, blackholes, admission, tables };
        ingress.rebuild();
        ingress
    }

    /// Puts another policy in force.
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.rebuild();
    }

    /// Puts another set of sites in force. What stays keeps its standing; what goes is wanted no more at once.
    pub(crate) fn set_sites(&mut self, now: Instant, sites: impl IntoIterator<Item = Site>) {
        self.liveness.set_sites(now, sites);
        while self.liveness.take_changed().is_some() {}
        self.rebuild();
    }

    /// The RPKI caches say this now; see [`Admission::set_origins`].
    pub(crate) fn set_origins(&mut self, origins: Option<Arc<Origins>>, settled: bool) {
        self.admission.set_origins(origins, settled);
        self.rebuild();
    }

    /// What would be announced and may not leave, with the reasons.
    pub(crate) fn refused(&self) -> &BTreeMap<IpNet, Refusal> {
        self.admission.refused()
    }

    /// Why other networks may refuse a prefix that is announced, if they may.
    pub(crate) fn doubt(&self, prefix: &IpNet) -> Option<&Refusal> {
        self.admission.doubt(prefix)
    }

    /// A path of a site came up, or went down.
    pub(crate) fn path(&mut self, path: PathId, up: bool) {
        self.liveness.path(path, up);
        self.work_out();
    }

    /// The first path of a site came up.
    pub(crate) fn reachable(&mut self, id: PeerId) {
        self.liveness.reachable(id);
        self.work_out();
    }

    /// The last path of a site went down.
    pub(crate) fn unreachable(&mut self, now: Instant, id: PeerId) {
        self.liveness.unreachable(now, id);
        self.work_out();
    }

    /// What is due, is done.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.liveness.handle_timeout(now);
        self.work_out();
        let over = |blackhole: &Blackhole| blackhole.until.is_some_and(|until| until <= now);
        let over: Vec<IpNet> = self.blackholes.iter().filter(|(_, b)| over(b)).map(|(prefix, _)| *prefix).collect();
        for prefix in over {
            self.end_blackhole(&prefix);
        }
    }

    /// When [`Ingress::handle_timeout`] is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let blackholes = self.blackholes.values().filter_map(|blackhole| blackhole.until);
        self.liveness.poll_timeout().into_iter().chain(blackholes).min()
    }

    /// Asks neighbours to drop packets for an address (RFC 7999). Asked for again, the last word counts.
    pub(crate) fn blackhole(&mut self, address: IpAddr, blackhole: Blackhole) -> Result<(), BlackholeError> {
        let owner = self.liveness.iter().find(|life| life.site.prefixes.iter().any(|prefix| prefix.contains(&address)));
        let owner = owner.ok_or(BlackholeError::NoSite(address))?;
        if !owner.standing.announced() {
            return Err(BlackholeError::NotAnnounced { address, site: owner.site.name.clone() });
        }
        let (id, prefix) = (owner.site.id, IpNet::from(address));
        let is_asked = |(place, table): (usize, &Table)| blackhole.asks(place, table);
        if !self.tables.iter().enumerate().any(is_asked) {
            return Err(BlackholeError::NoNeighbor);
        }
        if self.blackholes.len() >= MOST_BLACKHOLES && !self.blackholes.contains_key(&prefix) {
            return Err(BlackholeError::TooMany);
        }
        self.blackholes.insert(prefix, blackhole);
        self.update_site(id);
        Ok(())
    }

    /// Takes it back. Was there one?
    pub(crate) fn end_blackhole(&mut self, prefix: &IpNet) -> bool {
        let ended = self.blackholes.remove(prefix).is_some();
        if ended {
            // It may be a site's own prefix too, or nobody's any more.
            let owner = self.liveness.iter().find(|life| life.site.prefixes.iter().any(|own| own.contains(prefix)));
            self.tables.iter_mut().for_each(|table| table.set(*prefix, None));
            owner.map(|life| life.site.id).into_iter().for_each(|id| self.update_site(id));
        }
        ended
    }

    /// The addresses that are blackholed.
    pub(crate) fn blackholes(&self) -> &BTreeMap<IpNet, Blackhole> {
        &self.blackholes
    }

    /// A site's standing.
    pub(crate) fn standing(&self, id: PeerId) -> Option<Standing> {
        self.liveness.standing(id)
    }

    /// The routes that stand for a site at a neighbour: some of its own prefixes, or aggregates around them. An error says why
    /// one of them may not leave, or why there is none although the site could be announced.
    pub(crate) fn routes_of(&self, id: PeerId, neighbor: usize) -> Result<Vec<IpNet>, String> {
        let (Some(table), Some(life)) = (self.tables.get(neighbor), self.liveness.get(id)) else {
            return Ok(Vec::new());
        };
        let around = self.policy.aggregates.iter().zip(&table.within).filter(|(_, sites)| sites.contains(&id));
        let around = around.map(|(aggregate, _)| aggregate.prefix);
        let candidates: Vec<IpNet> = life.site.prefixes.iter().map(IpNet::trunc).chain(around).collect();
        if let Some(why) = candidates.iter().find_map(|prefix| self.refused().get(prefix)) {
            return Err(why.to_string());
        }
        let routes: Vec<IpNet> = candidates.into_iter().filter(|prefix| table.wanted.contains_key(prefix)).collect();
        match routes.is_empty() {
            true => Err("the policy in [[ingress]] announces nothing of it there".to_owned()),
            false => Ok(routes),
        }
    }

    /// What is to be said to a neighbour that was not when this was called last.
    pub(crate) fn take_changes(&mut self, neighbor: usize) -> Changes {
        self.tables.get_mut(neighbor).map(|table| std::mem::take(&mut table.changes)).unwrap_or_default()
    }

    /// Works out what is new of the sites that have changed.
    fn work_out(&mut self) {
        while let Some(id) = self.liveness.take_changed() {
            self.update_site(id);
        }
    }

    fn update_site(&mut self, id: PeerId) {
        let Some(life) = self.liveness.get(id) else { return };
        let places = 0..self.tables.len();
        let exact = |prefix: IpNet| (prefix, places.clone().map(|place| self.exact(place, life, &prefix)).collect());
        let own: Vec<(IpNet, Vec<_>)> = life.site.prefixes.iter().map(IpNet::trunc).map(exact).collect();
        let within: Vec<_> = places.map(|place| self.aggregates_of(place, life)).collect();
        own.into_iter().for_each(|(prefix, said)| self.set(prefix, said));
        for number in 0..self.policy.aggregates.len() {
            let mut news = false;
            for (table, within) in self.tables.iter_mut().zip(&within) {
                let sites = &mut table.within[number];
                let before = sites.is_empty();
                match within.contains(&number) {
                    true => sites.insert(id),
                    false => sites.remove(&id),
                };
                news |= before != sites.is_empty();
            }
            if news {
                self.update_aggregate(number);
            }
        }
        if !self.blackholes.is_empty() {
            self.update_blackholes(id);
        }
    }

    fn update_aggregate(&mut self, number: usize) {
        let said = (0..self.tables.len()).map(|place| self.aggregate(place, number)).collect();
        self.set(self.policy.aggregates[number].prefix, said);
    }

    /// A site's blackholes are there while a route is that leads to them.
    fn update_blackholes(&mut self, id: PeerId) {
        let Some(life) = self.liveness.get(id) else { return };
        let own: BTreeSet<IpNet> = life.site.prefixes.iter().map(IpNet::trunc).collect();
        let around = self.policy.aggregates.iter().map(|aggregate| aggregate.prefix);
        let routes: Vec<IpNet> = own.iter().copied().chain(around).collect();
        let is_there = |prefix: &IpNet| self.tables.iter().any(|table| table.wanted.contains_key(prefix));
        let routes: Vec<IpNet> = routes.into_iter().filter(is_there).collect();
        let holes = self.blackholes.iter().filter(|(hole, _)| own.iter().any(|own| own.contains(*hole)));
        for (hole, blackhole) in holes {
            let leads = routes.iter().any(|route| route.contains(hole));
            for (place, table) in self.tables.iter_mut().enumerate() {
                match leads && blackhole.asks(place, table) {
                    true => table.set(*hole, Some(Arc::new(Said::blackhole()))),
                    // It may be a site of one address.
                    false if own.contains(hole) => {}
                    false => table.set(*hole, None),
                }
            }
        }
    }

    /// Sets what is to be said of a prefix, to each neighbour, as far as it may leave.
    fn set(&mut self, prefix: IpNet, said: Vec<Option<Arc<Said>>>) {
        let wanted = said.iter().any(Option::is_some);
        if !wanted {
            self.admission.release(&prefix);
        }
        let leaves = wanted && self.admission.want(prefix);
        for (table, said) in self.tables.iter_mut().zip(said) {
            table.set(prefix, said.filter(|_| leaves));
        }
    }

    /// Works out everything, and finds what has changed in it.
    fn rebuild(&mut self) {
        let old: Vec<_> = self.tables.iter_mut().map(|table| std::mem::take(&mut table.wanted)).collect();
        let changes: Vec<_> = self.tables.iter_mut().map(|table| std::mem::take(&mut table.changes)).collect();
        let aggregates = self.policy.aggregates.len();
        for table in &mut self.tables {
            table.within = vec![BTreeSet::new(); aggregates];
        }
        let sites = self.liveness.iter().flat_map(|life| life.site.prefixes.iter().map(IpNet::trunc));
        let configured: BTreeSet<IpNet> =
            sites.chain(self.policy.aggregates.iter().map(|aggregate| aggregate.prefix)).collect();
        let gone: Vec<IpNet> = self.admission.wanted().filter(|prefix| !configured.contains(prefix)).collect();
        gone.iter().for_each(|prefix| self.admission.release(prefix));
        self.admission.set_configured(configured);
        (0..aggregates).for_each(|number| self.update_aggregate(number));
        let ids: Vec<PeerId> = self.liveness.iter().map(|life| life.site.id).collect();
        ids.into_iter().for_each(|id| self.update_site(id));
        for ((table, old), changes) in self.tables.iter_mut().zip(old).zip(changes) {
            table.changes = changes;
            for prefix in old.keys().filter(|prefix| !table.wanted.contains_key(*prefix)) {
                table.changes.insert(*prefix, None);
            }
            for (prefix, said) in table.wanted.iter().filter(|(prefix, said)| old.get(*prefix) != Some(*said)) {
                table.changes.insert(*prefix, Some(said.clone()));
            }
        }
    }

    /// What is to be said of a site's prefix, if it may leave.
    fn exact(&self, place: usize, life: &Life, prefix: &IpNet) -> Option<Arc<Said>> {
        let (announce, said) = self.policy(place, life, prefix);
        let exact = matches!(announce, Announce::Exact | Announce::Both);
        (life.standing.announced() && exact).then_some(said)
    }

    /// What policy says of a site's prefix.
    fn policy(&self, place: usize, life: &Life, prefix: &IpNet) -> (Announce, Arc<Said>) {
        if !self.tables[place].export.sites {
            return (Announce::Nothing, Arc::default());
        }
        let rule = self.policy.of_site(&life.site.name, life.judged, place);
        let announce = rule.and_then(|rule| rule.announce).unwrap_or_else(|| {
            // Who has an aggregate has it for sites that are too small to be announced themselves.
            if self.policy.aggregate_of(prefix).is_some() { Announce::Aggregate } else { Announce::Exact }
        });
        (announce, rule.map(|rule| rule.said.clone()).unwrap_or_default())
    }

    /// The aggregates that stand for a site.
    fn aggregates_of(&self, place: usize, life: &Life) -> Vec<usize> {
        if !life.standing.announced() {
            return Vec::new();
        }
        let stand = life
            .site
            .prefixes
            .iter()
            .filter(|prefix| matches!(self.policy(place, life, prefix).0, Announce::Aggregate | Announce::Both));
        stand.filter_map(|prefix| self.policy.aggregate_of(prefix)).collect()
    }

    /// What is to be said of an aggregate. ATOMIC_AGGREGATE has no place in it: sites are in no AS of their own, so no path is
    /// lost (RFC 4271, section 5.1.6).
    fn aggregate(&self, place: usize, number: usize) -> Option<Arc<Said>> {
        let (table, aggregate) = (&self.tables[place], &self.policy.aggregates[number]);
        let there = aggregate.always || !table.within[number].is_empty();
        if !there || !table.export.sites {
            return None;
        }
        let rule = self.policy.of_aggregate(&aggregate.name, place);
        let nothing = rule.is_some_and(|rule| rule.announce == Some(Announce::Nothing));
        let said = rule.map(|rule| Said::clone(&rule.said)).unwrap_or_default();
        (!nothing).then(|| Arc::new(Said { aggregator: self.aggregator, ..said }))
    }
}

impl Blackhole {
    /// Is the neighbour at this place asked?
    fn asks(&self, place: usize, table: &Table) -> bool {
        table.export.blackholes && self.neighbor.is_none_or(|neighbor| neighbor == place)
    }
}

#[cfg(test)]
mod tests;
