//! What neighbours announce: kept, judged, and turned into the kernel's routes. Without clock, socket and kernel.
//!
//! UPDATEs come in ([`Rib::apply`]), with news of sessions and of the ways to next hops; what the kernel is to be told is
//! taken out ([`Rib::operations`]), in pieces as large as the caller likes, so that news of a lost transit never waits
//! behind a million routes.
//!
//! | file | is |
//! | --- | --- |
//! | `accept` | which routes are let in |
//! | `table`, `column` | the routes, as columns |
//! | `shared` | what many routes have in common |
//! | `best` | the better of two |
//! | `egress` | next-hop objects, and what becomes of them when a transit is lost |
//! | `look` | what there is to show |

mod accept;
mod best;
mod column;
mod egress;
mod look;
mod shared;
mod table;

use super::Family;
use super::message::Notification;
use super::origin::{Changed, Origins, Validity};
use super::update::{Announced, Nlri, Update};
pub use accept::{Accept, Rejected, Session};
pub use best::Because;
use best::Candidate;
use column::{MOST_PATHS, Received, Unused};
use egress::Objects;
pub use egress::{OBJECTS, Operation, ROUTE_METRIC};
use ipnet::IpNet;
pub use look::{Counts, Explained, Found, Page, PageRoute};
use shared::{Hops, Shared};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use table::{Number, Table};

/// Both families, in the order of the tables.
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// How packets get to a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// The router on the link.
    pub address: IpAddr,
    /// The link's interface, by its number.
    pub interface: u32,
}

/// A neighbour, as far as its routes go.
#[derive(Clone, Debug)]
pub struct NeighborConfig {
    /// For people.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Both ASes.
    pub session: Session,
    /// What is wanted of it.
    pub accept: Accept,
    /// It may have several routes to a prefix, if it agrees (RFC 7911).
    pub add_path: bool,
    /// How many prefixes of each family it may have here, or routes, where it has several to a prefix; any number, if none
    /// is set.
    pub max_prefixes: [Option<u32>; 2],
}

/// An egress choice.
#[derive(Clone, Debug)]
pub struct ChoiceConfig {
    /// For people.
    pub name: String,
    /// The kernel's table.
    pub table: u32,
    /// Places of neighbours, the preferred first. Those that stand together are equals.
    pub transits: Vec<Vec<usize>>,
}

/// A neighbour has sent more prefixes than it may: it is to be told so (RFC 4486, subcode 1), and its routes are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} {family:?} prefixes")]
pub struct Exceeded {
    /// Of this family.
    pub family: Family,
    /// The bound.
    pub most: u32,
}

impl Exceeded {
    /// What the neighbour is told: Cease, Maximum Number of Prefixes Reached, with the family and the bound (RFC 4486,
    /// section 4).
    pub fn notification(&self) -> Notification {
        let afi = match self.family {
            Family::Ipv4 => 1,
            Family::Ipv6 => 2,
        };
        let [a, b, c, d] = self.most.to_be_bytes();
        Notification::with_data(6, 1, &[0, afi, 1, a, b, c, d])
    }
}

/// The share of a neighbour's bound at which a warning is due, in percent.
pub const WARN_AT: u64 = 80;

#[derive(Debug)]
struct Neighbor {
    config: NeighborConfig,
    /// While its session is established, or its routes are kept through a restart of it (RFC 4724).
    up: bool,
    router_id: Ipv4Addr,
    /// How many routes of each family are in its columns.
    prefixes: [u32; 2],
    /// How many routes were turned away, by [`Rejected::ALL`].
    rejected: [u64; Rejected::ALL.len()],
}

#[derive(Debug)]
struct Choice {
    config: ChoiceConfig,
    /// The neighbours' places with their ranks, the preferred first.
    transits: Vec<(usize, u8)>,
}

/// Work on many routes, done a piece at a time: up to which number of which table it has got.
#[derive(Debug)]
struct Chore {
    kind: ChoreKind,
    family: Family,
    next: Number,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChoreKind {
    /// A neighbour's routes go.
    Purge { neighbor: usize },
    /// A neighbour's routes are looked at again: a way has come or gone.
    Look { neighbor: usize },
    /// The VRPs have changed: origins are validated again, where [`Rib::changed`] says.
    Validate,
}

/// How many numbers of a table one call looks through: about a millisecond's work.
const STRIDE: Number = 64 * 1024;
/// The same where origins are validated, which takes up to a microsecond for each route.
const VALIDATED: Number = 2 * 1024;

/// The table of routes. After each call, [`Rib::operations`] may have something.
#[derive(Debug)]
pub struct Rib {
    neighbors: Vec<Neighbor>,
    choices: Vec<Choice>,
    own: accept::Own,
    origins: Arc<Origins>,
    /// Where routes have not all been validated by them yet.
    changed: Changed,
    tables: [Table; 2],
    shared: Shared,
    hops: Hops,
    objects: Objects,
    chores: VecDeque<Chore>,
    /// The covering default routes may not be what they should be.
    cover_stale: bool,
    /// What the kernel would not take.
    refused: Vec<(Family, Number)>,
}

impl Rib {
    /// An empty table. The choices name neighbours by their places in `neighbors`.
    pub fn new(neighbors: Vec<NeighborConfig>, choices: Vec<ChoiceConfig>) -> Rib {
        let add_path = || neighbors.iter().map(|neighbor| neighbor.add_path);
        let table = |family| Table::new(family, add_path(), choices.len());
        let tables = FAMILIES.map(table);
        let objects = Objects::new(choices.len());
        let neighbor = |config| Neighbor {
            config,
            up: false,
            router_id: Ipv4Addr::UNSPECIFIED,
            prefixes: [0; 2],
            rejected: [0; Rejected::ALL.len()],
        };
        let choice = |config: ChoiceConfig| {
            let ranked = config.transits.iter().zip(0u8..);
            let transits = ranked.flat_map(|(equals, rank)| equals.iter().map(move |&place| (place, rank))).collect();
            Choice { config, transits }
        };
        Rib {
            neighbors: neighbors.into_iter().map(neighbor).collect(),
            choices: choices.into_iter().map(choice).collect(),
            own: accept::Own::default(),
            origins: Arc::default(),
            changed: Changed::default(),
            tables,
            shared: Shared::default(),
            hops: Hops::default(),
            objects,
            chores: VecDeque::new(),
            cover_stale: false,
            refused: Vec::new(),
        }
    }

    /// A neighbour's session is established. What is kept of a session before counts as stale (RFC 4724, section 4.2).
    pub fn up(&mut self, neighbor: usize, router_id: Ipv4Addr) {
        // What is going of an earlier session must not take what comes with it.
        while self.chores.iter().any(|chore| chore.kind == ChoreKind::Purge { neighbor }) {
            self.chore();
        }
        let state = &mut self.neighbors[neighbor];
        state.up = true;
        // Its routes may be kept from before a restart (RFC 4724), and were the best by the old one.
        let is_another = std::mem::replace(&mut state.router_id, router_id) != router_id;
        if is_another && state.prefixes != [0; 2] {
            self.begin(ChoreKind::Look { neighbor });
        }
        self.cover_stale = true;
    }

    /// Its session has ended, and with it its routes. The kernel's next-hop objects are the first to change.
    pub fn down(&mut self, neighbor: usize) {
        if !std::mem::replace(&mut self.neighbors[neighbor].up, false) {
            return;
        }
        self.cover_stale = true;
        for place in 0..self.hops.list.len() as u16 {
            if self.hops.get(place).neighbor == neighbor {
                self.lost(place);
            }
        }
        self.begin(ChoreKind::Purge { neighbor });
    }

    /// The neighbour says everything of a family again, or has come back from a restart through which its routes were
    /// kept: what it does not say by the end is gone (RFC 4724, RFC 7313).
    pub fn mark_stale(&mut self, neighbor: usize, family: Family) {
        let table = &mut self.tables[family as usize];
        for number in 0..table.len() {
            table.received[neighbor].mark(number, Received::set_stale);
        }
    }

    /// It has said everything: what is stale still is gone.
    pub fn sweep(&mut self, neighbor: usize, family: Family) {
        for number in 0..self.tables[family as usize].len() {
            let routes = self.tables[family as usize].received[neighbor].routes(number);
            let stale: Vec<u32> = routes.filter(|(_, received)| received.is_stale()).map(|(id, _)| id).collect();
            stale.into_iter().for_each(|id| self.remove(neighbor, family, number, id));
        }
    }

    /// Puts an UPDATE in. At an error the neighbour's routes are gone, as after [`Rib::down`], and nothing was kept of what
    /// was too much.
    pub fn apply(&mut self, neighbor: usize, update: &Update) -> Result<(), Exceeded> {
        if !self.neighbors[neighbor].up {
            return Ok(());
        }
        for nlri in &update.withdrawn {
            self.withdraw(neighbor, nlri);
        }
        for announced in &update.announced {
            if let Err(exceeded) = self.announce(neighbor, announced) {
                self.down(neighbor);
                return Err(exceeded);
            }
        }
        if let Some(family) = update.end_of_rib {
            self.sweep(neighbor, family);
        }
        Ok(())
    }

    fn withdraw(&mut self, neighbor: usize, nlri: &Nlri) {
        let family = Family::of(&nlri.prefix);
        if let Some(number) = self.tables[family as usize].find(&nlri.prefix) {
            self.remove(neighbor, family, number, nlri.path_id);
        }
    }

    fn announce(&mut self, neighbor: usize, announced: &Announced) -> Result<(), Exceeded> {
        let Neighbor { config, .. } = &self.neighbors[neighbor];
        let (accept, most) = (config.accept, config.max_prefixes);
        let origin = accept::origin(&announced.attributes, config.session);
        let said = accept::check_attributes(&announced.attributes, config.session).and_then(|()| {
            let hop = self.hops.put(neighbor, announced.next_hop).ok_or(Rejected::NextHops)?;
            Ok((self.shared.put(&announced.attributes, hop), hop))
        });
        let result = announced.prefixes.iter().try_for_each(|nlri| {
            let Nlri { prefix, path_id } = nlri;
            let family = Family::of(prefix);
            let column = &self.tables[family as usize].received[neighbor];
            let number = self.tables[family as usize].find(prefix);
            let known = number.filter(|&number| column.get(number, *path_id) != Received::NONE);
            let room = known.is_some() || number.is_none_or(|number| column.routes(number).count() < MOST_PATHS);
            let enough = if room { Ok(()) } else { Err(Rejected::Paths) };
            let (route, hop) = match accept::check_prefix(prefix, accept).and(enough).and(said) {
                Ok(said) => said,
                Err(why) => {
                    self.neighbors[neighbor].rejected[why as usize] += 1;
                    // It replaces what the neighbour said of the prefix before.
                    self.withdraw(neighbor, nlri);
                    return Ok(());
                }
            };
            let unused = unused(&self.own, &self.origins, prefix, origin);
            if let Some(why) = unused {
                self.neighbors[neighbor].rejected[Rejected::from(why) as usize] += 1;
            }
            let table = &mut self.tables[family as usize];
            if known.is_none() {
                let count = &mut self.neighbors[neighbor].prefixes[family as usize];
                if let Some(most) = most[family as usize].filter(|most| *count >= *most) {
                    return Err(Exceeded { family, most });
                }
                *count += 1;
            }
            // The policy lets in nothing that is too long for a key.
            let Some(number) = number.or_else(|| table.find_or_insert(prefix)) else { return Ok(()) };
            let old = table.received[neighbor].put(number, *path_id, Received::new(route, unused));
            if old.route() != Some(route) || old.unused() != unused {
                table.touch(number);
            }
            if old.route() != Some(route) {
                self.shared.count(route);
                let routes = &mut self.hops.get_mut(hop).routes[family as usize];
                self.cover_stale |= *routes == 0;
                *routes += 1;
                self.forget(family, old);
            }
            Ok(())
        });
        if let Ok((route, _)) = said {
            self.shared.settle(route);
        }
        result
    }

    /// Takes a neighbour's route to a prefix out: the one with this identifier.
    fn remove(&mut self, neighbor: usize, family: Family, number: Number, id: u32) {
        let table = &mut self.tables[family as usize];
        let old = table.received[neighbor].take(number, id);
        if old == Received::NONE {
            return;
        }
        table.touch(number);
        self.neighbors[neighbor].prefixes[family as usize] -= 1;
        self.forget(family, old);
    }

    /// A route that has been taken out counts no more.
    fn forget(&mut self, family: Family, old: Received) {
        let Some(route) = old.route() else { return };
        if let Some((_, hop)) = self.shared.get(route) {
            let routes = &mut self.hops.get_mut(hop).routes[family as usize];
            *routes -= 1;
            self.cover_stale |= *routes == 0;
        }
        self.shared.discount(route);
    }

    /// The sites' prefixes are these: nobody else's word counts for them.
    pub fn set_own(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        let own = accept::Own::new(prefixes);
        if own == self.own {
            return;
        }
        self.own = own;
        for family in FAMILIES {
            for number in 0..self.tables[family as usize].len() {
                let table = &self.tables[family as usize];
                let Some(prefix) = table.prefix(number) else { continue };
                let own = self.own.covers(&prefix);
                let mut routes = table.received.iter().flat_map(|column| column.routes(number));
                let news = routes.any(|(_, received)| (received.unused() == Some(Unused::Own)) != own);
                drop(routes);
                if news {
                    self.judge(family, number);
                }
            }
        }
    }

    /// The VRPs are these from now on: what they change of the routes that are here is worked out in pieces, as all that
    /// concerns many.
    pub fn set_origins(&mut self, origins: Arc<Origins>) {
        if Arc::ptr_eq(&self.origins, &origins) {
            return;
        }
        let changed = self.origins.changed(&origins);
        self.origins = origins;
        if changed.is_empty() {
            return;
        }
        // A walk that is not over is begun again: what it has passed may be in the new changes.
        self.chores.retain(|chore| chore.kind != ChoreKind::Validate);
        self.changed.add(changed);
        self.begin(ChoreKind::Validate);
    }

    /// Looks again at what keeps the routes to a prefix from use.
    fn judge(&mut self, family: Family, number: Number) {
        let Rib { tables, neighbors, shared, own, origins, .. } = self;
        let table = &mut tables[family as usize];
        let Some(prefix) = table.prefix(number) else { return };
        let mut news = false;
        for (column, neighbor) in table.received.iter_mut().zip(neighbors) {
            column.mark(number, |received| {
                let Some((attributes, _)) = received.route().and_then(|route| shared.get(route)) else { return };
                let unused = unused(own, origins, &prefix, accept::origin(attributes, neighbor.config.session));
                news |= received.unused() != unused;
                received.set_unused(unused);
            });
        }
        if news {
            table.touch(number);
        }
    }

    /// The next hops whose ways are to be asked for: new ones, or all of them. Each is to be answered by [`Rib::set_way`].
    pub fn next_hops(&mut self, all: bool) -> Vec<(u16, usize, super::update::NextHop)> {
        let unasked = self.hops.take_unasked();
        let places = if all { (0..self.hops.list.len() as u16).collect() } else { unasked };
        let next_hop = |place: u16| {
            let hop = self.hops.get(place);
            (place, hop.neighbor, hop.next_hop)
        };
        places.into_iter().map(next_hop).collect()
    }

    /// How packets get to a next hop, if they do.
    pub fn set_way(&mut self, place: u16, way: Option<Gateway>) {
        let hop = self.hops.get_mut(place);
        let (old, neighbor) = (std::mem::replace(&mut hop.way, way), hop.neighbor);
        if old == way {
            return;
        }
        self.cover_stale = true;
        match way {
            Some(gateway) if old.is_some() => self.objects.moved(place, gateway),
            Some(_) => self.begin(ChoreKind::Look { neighbor }),
            None => {
                self.lost(place);
                self.begin(ChoreKind::Look { neighbor });
            }
        }
    }

    fn begin(&mut self, kind: ChoreKind) {
        for family in FAMILIES {
            self.chores.push_back(Chore { kind, family, next: 0 });
        }
    }

    /// Does a piece of the work on many routes, if there is any.
    fn chore(&mut self) {
        let Some(mut chore) = self.chores.pop_front() else { return };
        let stride = if chore.kind == ChoreKind::Validate { VALIDATED } else { STRIDE };
        let end = self.tables[chore.family as usize].len().min(chore.next.saturating_add(stride));
        for number in chore.next..end {
            match chore.kind {
                ChoreKind::Purge { neighbor } => {
                    let first = |rib: &Rib| rib.tables[chore.family as usize].received[neighbor].routes(number).next();
                    while let Some((id, _)) = first(self) {
                        self.remove(neighbor, chore.family, number, id);
                    }
                }
                ChoreKind::Look { neighbor } => {
                    let table = &mut self.tables[chore.family as usize];
                    if !table.received[neighbor].is_empty(number) {
                        table.touch(number);
                    }
                }
                ChoreKind::Validate => {
                    let prefix = self.tables[chore.family as usize].prefix(number);
                    if prefix.is_some_and(|prefix| self.changed.touches(&prefix)) {
                        self.judge(chore.family, number);
                    }
                }
            }
        }
        chore.next = end;
        if end < self.tables[chore.family as usize].len() {
            self.chores.push_front(chore);
        } else if self.chores.iter().all(|chore| chore.kind != ChoreKind::Validate) {
            self.changed = Changed::default();
        }
    }

    /// The routes to a prefix that could be used by a choice, the preferred transits' first.
    fn candidates(&self, choice: usize, family: Family, number: Number) -> impl Iterator<Item = Candidate<'_>> {
        let up = self.choices[choice].transits.iter().filter(|(place, _)| self.neighbors[*place].up);
        up.flat_map(move |&(place, rank)| {
            let neighbor = &self.neighbors[place];
            let routes = self.tables[family as usize].received[place].routes(number);
            routes.filter_map(move |(path_id, received)| {
                let (attributes, hop) = self.shared.get(received.route().filter(|_| received.unused().is_none())?)?;
                self.hops.get(hop).way?;
                let Session { local_as, remote_as, .. } = neighbor.config.session;
                Some(Candidate {
                    neighbor: place,
                    rank,
                    internal: local_as == remote_as,
                    router_id: neighbor.router_id,
                    address: neighbor.config.address,
                    path_id,
                    attributes,
                    hop,
                })
            })
        })
    }

    /// The next hop that a choice's packets for a prefix take.
    fn choose(&self, choice: usize, family: Family, number: Number) -> Option<u16> {
        let mut candidates = self.candidates(choice, family, number);
        let first = candidates.next()?;
        let Some(second) = candidates.next() else { return Some(first.hop) };
        let list: Vec<Candidate> = [first, second].into_iter().chain(candidates).collect();
        best::best(&list).map(|place| list[place].hop)
    }
}

/// Why a route is kept and not used, if it is.
fn unused(own: &accept::Own, origins: &Origins, prefix: &IpNet, origin: Option<u32>) -> Option<Unused> {
    if own.covers(prefix) {
        return Some(Unused::Own);
    }
    (origins.validate(prefix, origin) == Validity::Invalid).then_some(Unused::InvalidOrigin)
}

#[cfg(test)]
mod tests;
