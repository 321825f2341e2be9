//! What there is to show, a page at a time: nobody who looks keeps the routes waiting.

use super::accept::{self, Rejected};
use super::best::{self, Because, Candidate};
use super::column::{Received, Unused};
use super::table::Number;
use super::{FAMILIES, Rib};
use crate::bgp::Family;
use crate::bgp::update::{Attributes, NextHop};
use ipnet::IpNet;
use std::sync::Arc;

/// A neighbour's route to a prefix.
#[derive(Clone, Debug)]
pub struct PageRoute {
    /// Whose it is.
    pub neighbor: usize,
    /// The neighbour's name for it, where it may have several to a prefix (RFC 7911).
    pub path_id: Option<u32>,
    /// What it says.
    pub attributes: Arc<Attributes>,
    /// Where its packets go.
    pub next_hop: NextHop,
    /// From before a restart or refresh that is not over yet.
    pub stale: bool,
    /// Why it is not used, whatever other routes there are.
    pub unused: Option<String>,
    /// The choices by which it is used.
    pub used_by: Vec<usize>,
}

/// A prefix with all neighbours' routes to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The prefix.
    pub prefix: IpNet,
    /// One a neighbour, or several where that was agreed on.
    pub routes: Vec<PageRoute>,
}

/// Some of the routes, and where the next ones begin.
#[derive(Clone, Debug)]
pub struct Page {
    /// In no order.
    pub found: Vec<Found>,
    /// To be asked for next; nothing at the end. What comes or goes between two pages may be missed or told.
    pub next: Option<u64>,
}

/// Why a prefix's packets go where they go.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The prefix that counts: the one asked for, or the longest that contains it.
    pub found: Option<Found>,
    /// For each choice, the neighbour used and why.
    pub choices: Vec<Option<(usize, Because)>>,
    /// For each neighbour that a route to the prefix as asked would not be taken from, why.
    pub rejected: Vec<(usize, Rejected)>,
    /// It is a site's, or part of one.
    pub own: bool,
}

/// What is kept of a neighbour, in numbers.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Prefixes of IPv4 and IPv6, or routes, where it has several to a prefix.
    pub prefixes: [u32; 2],
    /// How many routes were turned away, by reason; those that never happened are left out.
    pub rejected: Vec<(Rejected, u64)>,
}

impl Rib {
    /// The numbers of a neighbour.
    pub fn counts(&self, neighbor: usize) -> Counts {
        let neighbor = &self.neighbors[neighbor];
        let rejected = Rejected::ALL.into_iter().zip(neighbor.rejected).filter(|(_, count)| *count > 0);
        Counts { prefixes: neighbor.prefixes, rejected: rejected.collect() }
    }

    /// How many prefixes of each family there are, and how many different sets of attributes.
    pub fn sizes(&self) -> ([usize; 2], usize) {
        ([0, 1].map(|family: usize| self.tables[family].prefixes()), self.shared.len())
    }

    /// How many prefixes wait to be looked at.
    pub fn backlog(&self) -> usize {
        self.tables.iter().map(|table| table.touched()).sum()
    }

    /// The page that begins at a place: 0, or the `next` of the page before. It looks at `most` prefixes at most.
    pub fn page(&self, from: u64, most: Number) -> Page {
        let (family, first) = ((from >> 32) as usize, from as Number);
        let Some(table) = self.tables.get(family) else { return Page { found: Vec::new(), next: None } };
        let end = table.len().min(first.saturating_add(most));
        let found = (first..end).filter_map(|number| self.found(FAMILIES[family], number)).collect();
        let next = if end < table.len() {
            Some((family as u64) << 32 | u64::from(end))
        } else {
            Some(family as u64 + 1).filter(|&family| family < 2).map(|family| family << 32)
        };
        Page { found, next }
    }

    fn found(&self, family: Family, number: Number) -> Option<Found> {
        let table = &self.tables[family as usize];
        let prefix = table.prefix(number)?;
        let used: Vec<_> = (0..self.choices.len()).map(|choice| self.used(choice, family, number)).collect();
        let route = |neighbor: usize, id: u32, received: Received| {
            let (attributes, hop) = self.shared.get(received.route()?)?;
            let hop = self.hops.get(hop);
            let unused = match (received.unused(), hop.way) {
                (Some(Unused::InvalidOrigin), _) => {
                    Some(format!("{}: {}", Rejected::InvalidOrigin, self.origins.forbidden_by(&prefix)))
                }
                (Some(why), _) => Some(Rejected::from(why).to_string()),
                (None, None) => Some("there is no way to its next hop".into()),
                (None, Some(_)) => None,
            };
            let used_by = used.iter().enumerate().filter(|(_, by)| by.is_some_and(|(by, _)| by == (neighbor, id)));
            Some(PageRoute {
                neighbor,
                path_id: self.neighbors[neighbor].config.add_path.then_some(id),
                attributes: attributes.clone(),
                next_hop: hop.next_hop,
                stale: received.is_stale(),
                unused,
                used_by: used_by.map(|(choice, _)| choice).collect(),
            })
        };
        let received = table.received.iter().enumerate();
        let received = received.flat_map(|(neighbor, column)| column.routes(number).map(move |of| (neighbor, of)));
        let routes: Vec<_> = received.filter_map(|(neighbor, (id, received))| route(neighbor, id, received)).collect();
        (!routes.is_empty()).then_some(Found { prefix, routes })
    }

    /// The neighbour whose route a choice uses, the neighbour's name for it, and why it does.
    fn used(&self, choice: usize, family: Family, number: Number) -> Option<((usize, u32), Because)> {
        let candidates: Vec<Candidate> = self.candidates(choice, family, number).collect();
        let place = best::best(&candidates)?;
        let Candidate { neighbor, path_id, .. } = candidates[place];
        Some(((neighbor, path_id), best::why(&candidates, place)))
    }

    /// Why packets for a prefix or an address (a prefix of full length) go where they go.
    pub fn explain(&self, asked: &IpNet) -> Explained {
        let family = Family::of(asked);
        let table = &self.tables[family as usize];
        let held = |number: &Number| table.received.iter().any(|column| !column.is_empty(*number));
        let broader = (0..=asked.prefix_len()).rev().filter_map(|length| IpNet::new(asked.addr(), length).ok());
        let number = broader.filter_map(|prefix| table.find(&prefix)).find(held);
        let used = |choice| {
            let ((neighbor, _), because) = self.used(choice, family, number?)?;
            Some((neighbor, because))
        };
        let neighbors = self.neighbors.iter().enumerate();
        let exact = number.is_some_and(|number| table.prefix(number) == Some(asked.trunc()));
        let host = asked.prefix_len() == family.bits();
        Explained {
            found: number.and_then(|number| self.found(family, number)),
            choices: (0..self.choices.len()).map(used).collect(),
            rejected: neighbors
                .filter(|_| !exact && !host)
                .filter_map(|(place, neighbor)| {
                    accept::check_prefix(asked, neighbor.config.accept).err().map(|why| (place, why))
                })
                .collect(),
            own: self.own.covers(asked),
        }
    }
}
