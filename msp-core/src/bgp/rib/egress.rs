//! From routes to the kernel: next-hop objects, and what becomes of them when a transit is lost.
//!
//! A kernel route names a next-hop object (ip-nexthop(8)), and the object a gateway: a million routes are turned to another
//! gateway by one message. Each egress choice has for each next hop and family an object of its own, since what follows
//! a transit in one choice's list is not what follows it in another's:
//!
//! ```text
//!     table 1001                    objects                gateways
//!   8.8.8.0/24   ----.
//!   1.1.1.0/24   -----+-->  choice 1, transit a  ------>  203.0.113.1        a is lost: one message turns the first
//!   ...               |                            .-->   203.0.113.129      object to b's gateway, and routes follow
//!   9.9.9.0/24   -----+-->  choice 1, transit b  --'                         to b's object in their own time
//! ```
//!
//! An object turned so is *retired*: it takes no more routes, is never turned back, and goes with its last route. So
//! whatever happens meanwhile, a route's packets go to a transit that works.
//!
//! An interface that goes down or loses its carrier takes its objects with it, and they their routes: the kernel removes
//! them before anyone is told. For that moment each table has default routes by every transit that is up, with metrics
//! worse than any route's, which *cover* what is missing.

use super::shared::Hops;
use super::{FAMILIES, Gateway, Rib};
use crate::bgp::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The kernel's number of our first next-hop object: "MS" in the upper half, where no other program begins to count.
pub const OBJECTS: u32 = 0x4d53_0000;
/// The metric of routes that are learnt.
pub const ROUTE_METRIC: u32 = 100;
/// The metric of the first covering default route; the next ones have the numbers after it.
const COVER_METRIC: u32 = 1000;

/// Something that the kernel is to do, in the order in which it is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Make a next-hop object, or turn it to this gateway.
    SetObject {
        /// Its number.
        id: u32,
        /// Where its packets go.
        gateway: Gateway,
    },
    /// Remove an object, and all routes that name it.
    RemoveObject {
        /// Its number.
        id: u32,
    },
    /// Make a route, or have it name this object.
    SetRoute {
        /// The table.
        table: u32,
        /// Where to.
        prefix: IpNet,
        /// What is less is preferred.
        metric: u32,
        /// The object.
        id: u32,
    },
    /// Remove a route.
    RemoveRoute {
        /// The table.
        table: u32,
        /// Where to.
        prefix: IpNet,
        /// As it was made.
        metric: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Purpose {
    choice: usize,
    family: Family,
    hop: u16,
}

#[derive(Clone, Debug)]
struct Object {
    purpose: Purpose,
    /// Where it sends packets, as the kernel has been told.
    gateway: Gateway,
    /// Whose gateway that is.
    to: u16,
    routes: u32,
}

/// The next-hop objects, by their places, from 1.
#[derive(Debug)]
pub(super) struct Objects {
    list: Vec<Option<Object>>,
    free: Vec<u16>,
    /// Those that take routes. Retired ones are not in it.
    current: HashMap<Purpose, u16>,
    /// What is to be said before any route.
    urgent: VecDeque<Operation>,
    /// Of each choice and family, the objects of its covering default routes, by metric.
    cover: Vec<[Vec<u16>; 2]>,
}

impl Objects {
    pub(super) fn new(choices: usize) -> Objects {
        Objects {
            list: Vec::new(),
            free: Vec::new(),
            current: HashMap::new(),
            urgent: VecDeque::new(),
            cover: vec![Default::default(); choices],
        }
    }

    pub(super) fn id(object: u16) -> u32 {
        OBJECTS + u32::from(object)
    }

    fn get_mut(&mut self, object: u16) -> Option<&mut Object> {
        self.list.get_mut(usize::from(object).checked_sub(1)?)?.as_mut()
    }

    /// The object for a purpose, made if there is none. Nothing while there are more than can be numbered.
    fn get_or_make(&mut self, purpose: Purpose, gateway: Gateway, hops: &mut Hops, out: &mut Vec<Operation>) -> u16 {
        if let Some(&object) = self.current.get(&purpose) {
            return object;
        }
        let object = match self.free.pop() {
            Some(object) => object,
            None if self.list.len() < usize::from(u16::MAX) => {
                self.list.push(None);
                self.list.len() as u16
            }
            None => return 0,
        };
        self.list[usize::from(object) - 1] = Some(Object { purpose, gateway, to: purpose.hop, routes: 0 });
        self.current.insert(purpose, object);
        hops.get_mut(purpose.hop).objects += 1;
        out.push(Operation::SetObject { id: Self::id(object), gateway });
        object
    }

    fn count(&mut self, object: u16) {
        if let Some(object) = self.get_mut(object) {
            object.routes += 1;
        }
    }

    /// A route less names it; the last one takes it along.
    fn discount(&mut self, place: u16, hops: &mut Hops, out: &mut Vec<Operation>) {
        let Some(object) = self.get_mut(place) else { return };
        object.routes -= 1;
        if object.routes == 0 {
            out.push(Operation::RemoveObject { id: Self::id(place) });
            self.drop(place, hops);
        }
    }

    fn drop(&mut self, place: u16, hops: &mut Hops) {
        let Some(object) = self.list[usize::from(place) - 1].take() else { return };
        hops.get_mut(object.purpose.hop).objects -= 1;
        if self.current.get(&object.purpose) == Some(&place) {
            self.current.remove(&object.purpose);
        }
        self.free.push(place);
    }

    /// The way to a next hop is another one.
    pub(super) fn moved(&mut self, hop: u16, gateway: Gateway) {
        for (object, place) in self.list.iter_mut().zip(1..) {
            if let Some(object) = object.as_mut().filter(|object| object.to == hop) {
                object.gateway = gateway;
                self.urgent.push_back(Operation::SetObject { id: Self::id(place), gateway });
            }
        }
    }
}

impl Rib {
    /// Nothing can be sent to this next hop any more: all that goes there goes to the next best transit, at once.
    pub(super) fn lost(&mut self, hop: u16) {
        for at in 0..self.objects.list.len() {
            let place = at as u16 + 1;
            let Some(object) = self.objects.list[at].as_ref().filter(|object| object.to == hop) else { continue };
            let purpose = object.purpose;
            if self.objects.current.get(&purpose) == Some(&place) {
                self.objects.current.remove(&purpose);
            }
            match self.fallback(purpose.choice, purpose.family, hop) {
                Some((to, gateway)) => {
                    if let Some(object) = &mut self.objects.list[at] {
                        (object.to, object.gateway) = (to, gateway);
                    }
                    self.objects.urgent.push_back(Operation::SetObject { id: Objects::id(place), gateway });
                }
                // Nobody is left: what is not known to lead anywhere is no route.
                None => {
                    self.objects.urgent.push_back(Operation::RemoveObject { id: Objects::id(place) });
                    self.vanished(place);
                }
            }
        }
    }

    /// An object and the routes that named it are not in the kernel any more.
    fn vanished(&mut self, place: u16) {
        let Some(Object { purpose: Purpose { choice, family, .. }, .. }) = self.objects.list[usize::from(place) - 1]
        else {
            return;
        };
        let table = &mut self.tables[family as usize];
        for number in 0..table.len() {
            if table.installed(number, choice) == place {
                table.set_installed(number, choice, 0);
                table.touch(number);
            }
        }
        for cover in self.objects.cover[choice][family as usize].iter_mut().filter(|cover| **cover == place) {
            *cover = 0;
        }
        self.cover_stale = true;
        self.objects.drop(place, &mut self.hops);
    }

    /// What follows a lost next hop in a choice.
    fn fallback(&self, choice: usize, family: Family, lost: u16) -> Option<(u16, Gateway)> {
        let up = self.choices[choice].transits.iter().filter(|(place, _)| self.neighbors[*place].up);
        let mut ways = up.filter_map(|&(place, _)| self.hops.main_way(place, family));
        ways.find(|&(hop, _)| hop != lost)
    }

    /// Of all next-hop objects that the kernel should have, it has these alone: the others' routes are gone with them.
    pub fn objects_are(&mut self, has: impl Fn(u32) -> bool) {
        for place in 1..=self.objects.list.len() as u16 {
            if self.objects.get_mut(place).is_some() && !has(Objects::id(place)) {
                self.vanished(place);
            }
        }
    }

    /// The kernel has refused this. It is tried again after the next [`Rib::retry`].
    pub fn refused(&mut self, operation: &Operation) {
        match *operation {
            Operation::SetRoute { table, prefix, metric: ROUTE_METRIC, .. } => {
                let family = Family::of(&prefix);
                let choice = self.choices.iter().position(|choice| choice.config.table == table);
                let number = self.tables[family as usize].find(&prefix);
                let (Some(choice), Some(number)) = (choice, number) else { return };
                let old = self.tables[family as usize].installed(number, choice);
                self.tables[family as usize].set_installed(number, choice, 0);
                let mut out = Vec::new();
                self.objects.discount(old, &mut self.hops, &mut out);
                self.objects.urgent.extend(out);
                self.refused.push((family, number));
            }
            // No way, then, until it is asked for again.
            Operation::SetObject { id, .. } => {
                let place = (id - OBJECTS) as u16;
                let Some(hop) = self.objects.get_mut(place).map(|object| object.to) else { return };
                self.vanished(place);
                self.set_way(hop, None);
            }
            // A covering route that is not there is missed only in the moment that it is for.
            Operation::SetRoute { .. } | Operation::RemoveObject { .. } | Operation::RemoveRoute { .. } => {}
        }
    }

    /// Has the routes that were refused looked at again.
    pub fn retry(&mut self) {
        for (family, number) in std::mem::take(&mut self.refused) {
            self.tables[family as usize].touch(number);
        }
    }

    /// Is there anything for the kernel to do, or to be worked out?
    pub fn is_idle(&self) -> bool {
        self.objects.urgent.is_empty()
            && !self.cover_stale
            && self.chores.is_empty()
            && self.tables.iter().all(|table| table.touched() == 0)
    }

    /// What the kernel is to do next, by looking at `most` prefixes at most: what concerns many routes comes first.
    pub fn operations(&mut self, most: usize, out: &mut Vec<Operation>) {
        if !self.objects.urgent.is_empty() {
            // By itself, so that nothing is worked out before it has been said.
            out.extend(self.objects.urgent.drain(..));
            return;
        }
        if std::mem::take(&mut self.cover_stale) {
            self.cover(out);
        }
        if !self.chores.is_empty() {
            self.chore();
        }
        for family in FAMILIES {
            // Half for each: IPv6 does not wait until all of IPv4 is done.
            for _ in 0..most.div_ceil(2) {
                let Some(number) = self.tables[family as usize].next_touched() else { break };
                self.look_at(family, number, out);
            }
        }
    }

    /// Has the kernel's routes to a prefix be those that are best.
    fn look_at(&mut self, family: Family, number: u32, out: &mut Vec<Operation>) {
        for choice in 0..self.choices.len() {
            let table = self.choices[choice].config.table;
            let old = self.tables[family as usize].installed(number, choice);
            let hop = self.choose(choice, family, number);
            let new = hop.and_then(|hop| Some((hop, self.hops.get(hop).way?))).map_or(0, |(hop, gateway)| {
                self.objects.get_or_make(Purpose { choice, family, hop }, gateway, &mut self.hops, out)
            });
            if new == old {
                continue;
            }
            let Some(prefix) = self.tables[family as usize].prefix(number) else { continue };
            self.tables[family as usize].set_installed(number, choice, new);
            out.push(match new {
                0 => Operation::RemoveRoute { table, prefix, metric: ROUTE_METRIC },
                _ => Operation::SetRoute { table, prefix, metric: ROUTE_METRIC, id: Objects::id(new) },
            });
            self.objects.count(new);
            self.objects.discount(old, &mut self.hops, out);
        }
        self.tables[family as usize].release(number);
    }

    /// Has the covering default routes be those of the transits that are up.
    fn cover(&mut self, out: &mut Vec<Operation>) {
        for choice in 0..self.choices.len() {
            for family in FAMILIES {
                let up = self.choices[choice].transits.iter().filter(|(place, _)| self.neighbors[*place].up);
                let ways: Vec<_> = up.filter_map(|&(place, _)| self.hops.main_way(place, family)).collect();
                let new: Vec<u16> = ways
                    .into_iter()
                    .map(|(hop, gateway)| {
                        let purpose = Purpose { choice, family, hop };
                        self.objects.get_or_make(purpose, gateway, &mut self.hops, out)
                    })
                    .collect();
                let old = std::mem::replace(&mut self.objects.cover[choice][family as usize], new.clone());
                let (table, prefix) = (self.choices[choice].config.table, everywhere(family));
                for place in 0..old.len().max(new.len()) {
                    let (from, to) = (old.get(place).copied().unwrap_or(0), new.get(place).copied().unwrap_or(0));
                    let metric = COVER_METRIC + place as u32;
                    match (from, to) {
                        _ if from == to => continue,
                        (_, 0) => out.push(Operation::RemoveRoute { table, prefix, metric }),
                        _ => out.push(Operation::SetRoute { table, prefix, metric, id: Objects::id(to) }),
                    }
                    self.objects.count(to);
                }
                // After all of them have been counted: an object that only changes its metric stays.
                for (place, &from) in old.iter().enumerate() {
                    if new.get(place) != Some(&from) {
                        self.objects.discount(from, &mut self.hops, out);
                    }
                }
            }
        }
    }
}

/// The default route's prefix.
fn everywhere(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Family::Ipv6 => Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
