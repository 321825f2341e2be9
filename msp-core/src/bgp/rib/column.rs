//! A neighbour's routes to the prefixes of one family: its column of the table.
//!
//! A neighbour has one route to a prefix, which stands in the column itself. One that may have several (RFC 7911) tells them
//! apart by identifiers, and they make a list, of which the column has the beginning:
//!
//! ```text
//!   number    first        place   identifier   route   next
//!     0         2            1         7          12      -
//!     1         -            2         1           9      1        so 0 has two routes, 1 and 7
//!     2         3            3         1          12      -
//! ```
//!
//! So what such a neighbour costs grows with its routes and by nothing else.

use super::table::Number;

/// The most routes of one neighbour to one prefix. Speakers that send all they have send some ten; a list is walked for each
/// word about its prefix, so it must not grow with what somebody says.
pub(super) const MOST_PATHS: usize = 64;

/// A neighbour's route to a prefix: where its attributes stand, and three marks. Four octets, since a table has millions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received(u32);

impl Received {
    /// There is none.
    pub(super) const NONE: Received = Received(0);
    /// From before a restart or a refresh, and not confirmed since (RFC 4724, RFC 7313).
    const STALE: u32 = 1 << 31;
    const ROUTE: u32 = (1 << 29) - 1;

    /// `route` is below [`Received::MOST`].
    pub(super) fn new(route: u32, unused: Option<Unused>) -> Received {
        debug_assert!(route < Self::MOST);
        Received((route + 1) | unused.map_or(0, |why| why as u32))
    }

    /// How many sets of attributes can be told apart: more than there is memory for.
    pub(super) const MOST: u32 = Self::ROUTE;

    pub(super) fn route(self) -> Option<u32> {
        (self.0 & Self::ROUTE).checked_sub(1)
    }

    pub(super) fn is_stale(self) -> bool {
        self.0 & Self::STALE != 0
    }

    /// Why it is kept and not used.
    pub(super) fn unused(self) -> Option<Unused> {
        [Unused::Own, Unused::InvalidOrigin].into_iter().find(|&why| self.0 & why as u32 != 0)
    }

    pub(super) fn set_stale(&mut self) {
        if self.route().is_some() {
            self.0 |= Self::STALE;
        }
    }

    pub(super) fn set_unused(&mut self, unused: Option<Unused>) {
        if let Some(route) = self.route() {
            self.0 = self.0 & Self::STALE | Self::new(route, unused).0;
        }
    }
}

/// Why a route is kept and not used: what may pass without a word from its neighbour. Each is a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unused {
    /// Its prefix is a site's, or part of one.
    Own = 1 << 30,
    /// The VRPs forbid it (RFC 6811).
    InvalidOrigin = 1 << 29,
}

/// One of several routes to a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// The neighbour's name for it.
    id: u32,
    received: Received,
    /// The next one's place, from 1; 0 at the end.
    next: u32,
}

#[derive(Debug)]
pub(super) enum Column {
    /// One route to a prefix, of whatever identifier.
    One(Vec<Received>),
    /// Several.
    Many {
        /// Where each prefix's list begins, as in [`Path::next`].
        first: Vec<u32>,
        paths: Vec<Path>,
        /// Places of paths that are used by none.
        free: Vec<u32>,
    },
}

impl Column {
    pub(super) fn new(add_path: bool) -> Column {
        match add_path {
            false => Column::One(Vec::new()),
            true => Column::Many { first: Vec::new(), paths: Vec::new(), free: Vec::new() },
        }
    }

    /// Makes room for one number more.
    pub(super) fn push(&mut self) {
        match self {
            Column::One(routes) => routes.push(Received::NONE),
            Column::Many { first, .. } => first.push(0),
        }
    }

    pub(super) fn is_empty(&self, number: Number) -> bool {
        match self {
            Column::One(routes) => routes[number as usize] == Received::NONE,
            Column::Many { first, .. } => first[number as usize] == 0,
        }
    }

    /// The routes to a prefix, with their identifiers.
    pub(super) fn routes(&self, number: Number) -> impl Iterator<Item = (u32, Received)> {
        let (mut one, paths, mut next) = match self {
            Column::One(routes) => (Some(routes[number as usize]).filter(|one| *one != Received::NONE), &[][..], 0),
            Column::Many { first, paths, .. } => (None, &paths[..], first[number as usize]),
        };
        std::iter::from_fn(move || {
            if let Some(one) = one.take() {
                return Some((0, one));
            }
            let path: &Path = paths.get((next as usize).checked_sub(1)?)?;
            next = path.next;
            Some((path.id, path.received))
        })
    }

    /// The route with this identifier.
    pub(super) fn get(&self, number: Number, id: u32) -> Received {
        match self {
            Column::One(routes) => routes[number as usize],
            Column::Many { .. } => {
                self.routes(number).find(|(other, _)| *other == id).map_or(Received::NONE, |(_, received)| received)
            }
        }
    }

    /// Puts a route in the place of the one with its identifier, which it gives back.
    pub(super) fn put(&mut self, number: Number, id: u32, new: Received) -> Received {
        match self {
            Column::One(routes) => std::mem::replace(&mut routes[number as usize], new),
            Column::Many { first, paths, free } => {
                let mut next = first[number as usize];
                while let Some(path) = (next as usize).checked_sub(1).map(|at| &mut paths[at]) {
                    if path.id == id {
                        return std::mem::replace(&mut path.received, new);
                    }
                    next = path.next;
                }
                let path = Path { id, received: new, next: first[number as usize] };
                first[number as usize] = match free.pop() {
                    Some(place) => {
                        paths[place as usize - 1] = path;
                        place
                    }
                    None => {
                        paths.push(path);
                        paths.len() as u32
                    }
                };
                Received::NONE
            }
        }
    }

    /// Takes the route with this identifier out.
    pub(super) fn take(&mut self, number: Number, id: u32) -> Received {
        match self {
            Column::One(routes) => std::mem::take(&mut routes[number as usize]),
            Column::Many { first, paths, free } => {
                let (mut before, mut place) = (0, first[number as usize]);
                while place != 0 {
                    let Path { id: other, received, next } = paths[place as usize - 1];
                    if other == id {
                        match before {
                            0 => first[number as usize] = next,
                            _ => paths[before as usize - 1].next = next,
                        }
                        free.push(place);
                        return received;
                    }
                    (before, place) = (place, next);
                }
                Received::NONE
            }
        }
    }

    /// Has each route to a prefix changed in its marks.
    pub(super) fn mark(&mut self, number: Number, mut mark: impl FnMut(&mut Received)) {
        match self {
            Column::One(routes) => mark(&mut routes[number as usize]),
            Column::Many { first, paths, .. } => {
                let mut next = first[number as usize];
                while let Some(path) = (next as usize).checked_sub(1).map(|at| &mut paths[at]) {
                    mark(&mut path.received);
                    next = path.next;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// A map of number and identifier says the same.
        #[test]
        fn several_routes_to_a_prefix_are_told_apart(
            steps in prop::collection::vec((0u32..4, 0u32..6, prop::option::of(0u32..9)), 0..120)
        ) {
            let mut column = Column::new(true);
            (0..4).for_each(|_| column.push());
            let mut model = BTreeMap::new();
            for (number, id, route) in steps {
                let (old, expected) = match route {
                    Some(route) => {
                        let new = Received::new(route, None);
                        (column.put(number, id, new), model.insert((number, id), new))
                    }
                    None => (column.take(number, id), model.remove(&(number, id))),
                };
                prop_assert_eq!(old, expected.unwrap_or_default());
                for number in 0..4 {
                    let mut routes: Vec<_> = column.routes(number).collect();
                    routes.sort_by_key(|(id, _)| *id);
                    let expected: Vec<_> =
                        model.range((number, 0)..(number + 1, 0)).map(|(&(_, id), &received)| (id, received)).collect();
                    prop_assert_eq!(column.is_empty(number), expected.is_empty());
                    prop_assert_eq!(routes, expected);
                }
            }
            let Column::Many { paths, free, .. } = &column else { panic!("it is one for several routes") };
            prop_assert_eq!(paths.len() - free.len(), model.len(), "what is gone is used again");
        }
    }
}
