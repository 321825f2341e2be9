//! What the kernel does with operations, and where it would refuse one.

use super::{Gateway, Operation, ROUTE_METRIC, Rib};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) objects: BTreeMap<u32, Gateway>,
    /// By table, prefix and metric, the object.
    pub(crate) routes: BTreeMap<(u32, IpNet, u32), u32>,
}

impl Kernel {
    pub(crate) fn take(&mut self, operations: &[Operation]) {
        for operation in operations {
            match *operation {
                Operation::SetObject { id, gateway } => drop(self.objects.insert(id, gateway)),
                Operation::RemoveObject { id } => {
                    self.objects.remove(&id).expect("an object that is there");
                    self.routes.retain(|_, route| *route != id);
                }
                Operation::SetRoute { table, prefix, metric, id } => {
                    assert!(self.objects.contains_key(&id), "the kernel refuses a route to no object");
                    self.routes.insert((table, prefix, metric), id);
                }
                Operation::RemoveRoute { table, prefix, metric } => {
                    self.routes.remove(&(table, prefix, metric)).expect("a route that is there");
                }
            }
        }
    }

    /// Does all there is to do. A new next hop is on our link, if `is_there` says so.
    pub(crate) fn settle(&mut self, rib: &mut Rib, is_there: impl Fn(IpAddr) -> bool) {
        loop {
            set_ways(rib, false, &is_there);
            if rib.is_idle() {
                return;
            }
            let mut operations = Vec::new();
            rib.operations(16, &mut operations);
            self.take(&operations);
        }
    }

    /// Where a table's packets for learnt prefixes go.
    pub(crate) fn learnt_in(&self, of: u32) -> BTreeMap<IpNet, IpAddr> {
        let learnt = self.routes.iter().filter(|((table, _, metric), _)| *table == of && *metric == ROUTE_METRIC);
        learnt.map(|((_, prefix, _), id)| (*prefix, self.objects[id].address)).collect()
    }
}

/// Answers for next hops: those that are new, or all of them.
pub(crate) fn set_ways(rib: &mut Rib, all: bool, is_there: impl Fn(IpAddr) -> bool) {
    for (place, _, next_hop) in rib.next_hops(all) {
        let gateway = Gateway { address: next_hop.address, interface: 2 };
        rib.set_way(place, is_there(next_hop.address).then_some(gateway));
    }
}
