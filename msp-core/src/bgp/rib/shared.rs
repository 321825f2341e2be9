//! What many routes have in common, kept once: attributes, and next hops with the way to them.

use super::Gateway;
use crate::bgp::Family;
use crate::bgp::update::{Attributes, NextHop};
use hashbrown::HashTable;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What a route says besides its prefix: attributes and next hop, counted by the routes that say it.
#[derive(Debug)]
struct Said {
    attributes: Arc<Attributes>,
    next_hop: u16,
    routes: u32,
}

/// All that routes say, each once. A full table of a million routes has some 170,000 of them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    index: HashTable<u32>,
    hash: RandomState,
    list: Vec<Option<Said>>,
    free: Vec<u32>,
}

impl Shared {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Finds or adds it, counted for no route yet: to be followed by [`Shared::count`] or [`Shared::settle`].
    pub(super) fn put(&mut self, attributes: &Arc<Attributes>, next_hop: u16) -> u32 {
        let hash = self.hash.hash_one((attributes, next_hop));
        let same = |&place: &u32| {
            self.list[place as usize].as_ref().is_some_and(|said| {
                said.next_hop == next_hop
                    && (Arc::ptr_eq(&said.attributes, attributes) || said.attributes == *attributes)
            })
        };
        if let Some(&place) = self.index.find(hash, same) {
            return place;
        }
        let said = Some(Said { attributes: attributes.clone(), next_hop, routes: 0 });
        let place = match self.free.pop() {
            Some(place) => {
                self.list[place as usize] = said;
                place
            }
            None => {
                self.list.push(said);
                self.list.len() as u32 - 1
            }
        };
        let (list, state) = (&self.list, &self.hash);
        self.index.insert_unique(hash, place, |&other| {
            list[other as usize].as_ref().map_or(0, |said| state.hash_one((&said.attributes, said.next_hop)))
        });
        place
    }

    /// One more route says it.
    pub(super) fn count(&mut self, place: u32) {
        if let Some(said) = &mut self.list[place as usize] {
            said.routes += 1;
        }
    }

    /// One route less says it.
    pub(super) fn discount(&mut self, place: u32) {
        if let Some(said) = &mut self.list[place as usize] {
            said.routes -= 1;
            self.settle(place);
        }
    }

    /// Forgets it if no route says it.
    pub(super) fn settle(&mut self, place: u32) {
        let Some(said) = self.list[place as usize].take_if(|said| said.routes == 0) else { return };
        let hash = self.hash.hash_one((&said.attributes, said.next_hop));
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == place) {
            entry.remove();
        }
        self.free.push(place);
    }

    /// Attributes and next hop at a place that a route names.
    pub(super) fn get(&self, place: u32) -> Option<(&Arc<Attributes>, u16)> {
        self.list[place as usize].as_ref().map(|said| (&said.attributes, said.next_hop))
    }
}

/// A next hop of one neighbour.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    pub(super) neighbor: usize,
    pub(super) next_hop: NextHop,
    /// How many routes of each family have it.
    pub(super) routes: [u32; 2],
    /// How packets get there, if they do.
    pub(super) way: Option<Gateway>,
    /// How many next-hop objects are made for it.
    pub(super) objects: u32,
}

/// The most next hops that all neighbours together may use. A route server's thousand members fit; and the kernel's
/// objects for 16 choices can be counted in two octets.
const MOST: usize = 2048;

/// The next hops.
#[derive(Debug, Default)]
pub(super) struct Hops {
    index: HashMap<(usize, NextHop), u16>,
    pub(super) list: Vec<Hop>,
    /// Those whose way is to be asked for.
    unasked: Vec<u16>,
}

impl Hops {
    /// Finds or adds it. Nothing if there are too many.
    pub(super) fn put(&mut self, neighbor: usize, next_hop: NextHop) -> Option<u16> {
        if let Some(&place) = self.index.get(&(neighbor, next_hop)) {
            return Some(place);
        }
        let hop = Hop { neighbor, next_hop, routes: [0; 2], way: None, objects: 0 };
        let place = if self.list.len() < MOST {
            self.list.push(hop);
            self.list.len() - 1
        } else {
            // One that nothing refers to makes room.
            let idle = self.list.iter().position(|hop| hop.routes == [0; 2] && hop.objects == 0)?;
            let old = std::mem::replace(&mut self.list[idle], hop);
            self.index.remove(&(old.neighbor, old.next_hop));
            idle
        } as u16;
        self.index.insert((neighbor, next_hop), place);
        self.unasked.push(place);
        Some(place)
    }

    pub(super) fn get(&self, place: u16) -> &Hop {
        &self.list[usize::from(place)]
    }

    pub(super) fn get_mut(&mut self, place: u16) -> &mut Hop {
        &mut self.list[usize::from(place)]
    }

    /// Those whose way has not been asked for since they came.
    pub(super) fn take_unasked(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.unasked)
    }

    /// The way by which most of a neighbour's routes of a family go.
    pub(super) fn main_way(&self, neighbor: usize, family: Family) -> Option<(u16, Gateway)> {
        let of_neighbor = self.list.iter().zip(0..).filter(|(hop, _)| hop.neighbor == neighbor);
        let used = of_neighbor.filter(|(hop, _)| hop.routes[family as usize] > 0);
        let with_way = used.filter_map(|(hop, place)| Some((hop.routes[family as usize], place, hop.way?)));
        with_way.max_by_key(|&(routes, ..)| routes).map(|(_, place, way)| (place, way))
    }
}
