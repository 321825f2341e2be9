use super::*;
use crate::bgp::origin::Vrp;
use crate::bgp::update::{AsPath, Attributes, Community, NextHop};
use kernel::Kernel;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

// The fuzz target's: `tests/fuzz/life.rs` has any number of lives of this table, against a model.
#[path = "../../../tests/fuzz/kernel.rs"]
mod kernel;

const LOCAL_AS: u32 = 64500;
const BOTH: Accept = Accept { table: true, default: true };

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// The tables of the two choices.
const FIRST: u32 = 1001;
const SECOND: u32 = 1002;
/// The neighbour that may have several routes to a prefix.
const ADD_PATH: usize = 1;

/// Neighbour 0 is AS 1 at 192.0.2.1, and so on. The first choice lists them in order; the second from the last on, without
/// the first of them.
fn rib(neighbors: usize, accept: Accept, most: Option<u32>) -> Rib {
    let neighbor = |place: usize| NeighborConfig {
        name: format!("n{place}"),
        address: hop(place).address,
        session: Session { local_as: LOCAL_AS, remote_as: place as u32 + 1, role: None },
        accept,
        add_path: place == ADD_PATH,
        max_prefixes: [most; 2],
    };
    let choice = |table: u32, transits| ChoiceConfig { name: table.to_string(), table, transits };
    let in_order = choice(FIRST, (0..neighbors).map(|place| vec![place]).collect());
    let from_behind = choice(SECOND, (1..neighbors).rev().map(|place| vec![place]).collect());
    let mut rib = Rib::new((0..neighbors).map(neighbor).collect(), vec![in_order, from_behind]);
    (0..neighbors).for_each(|place| rib.up(place, Ipv4Addr::new(192, 0, 2, place as u8 + 1)));
    rib
}

fn hop(neighbor: usize) -> NextHop {
    NextHop { address: Ipv4Addr::new(192, 0, 2, neighbor as u8 + 1).into(), link_local: None }
}

fn nlri(prefix: IpNet) -> Nlri {
    Nlri { prefix, path_id: 0 }
}

/// The next hop of a neighbour's route with this identifier.
fn hop_of(neighbor: usize, id: u32) -> NextHop {
    NextHop { address: Ipv4Addr::new(192, 0, 2 + id as u8, neighbor as u8 + 1).into(), link_local: None }
}

/// One of several routes to a prefix.
fn announce_path(neighbor: usize, id: u32, path: &[u32], prefix: IpNet) -> Update {
    let mut update = announce(neighbor, path, &[prefix]);
    update.announced[0].prefixes[0].path_id = id;
    update.announced[0].next_hop = hop_of(neighbor, id);
    update
}

fn withdraw_path(id: u32, prefix: IpNet) -> Update {
    Update { withdrawn: vec![Nlri { prefix, path_id: id }], ..Update::default() }
}

fn announce(neighbor: usize, path: &[u32], prefixes: &[IpNet]) -> Update {
    let path: Vec<u32> = std::iter::once(neighbor as u32 + 1).chain(path.iter().copied()).collect();
    let attributes = Attributes { as_path: AsPath::sequence(&path), ..Attributes::default() };
    said(neighbor, attributes, prefixes)
}

fn said(neighbor: usize, attributes: Attributes, prefixes: &[IpNet]) -> Update {
    let prefixes = prefixes.iter().copied().map(nlri).collect();
    let announced = Announced { next_hop: hop(neighbor), prefixes, attributes: Arc::new(attributes) };
    Update { announced: vec![announced], ..Update::default() }
}

fn withdraw(prefixes: &[IpNet]) -> Update {
    Update { withdrawn: prefixes.iter().copied().map(nlri).collect(), ..Update::default() }
}

impl Kernel {
    /// Does all there is to do, where every next hop is on our link.
    fn settle_all(&mut self, rib: &mut Rib) {
        self.settle(rib, |_| true);
    }

    /// Where the first choice's packets for learnt prefixes go.
    fn learnt(&self) -> BTreeMap<IpNet, IpAddr> {
        self.learnt_in(FIRST)
    }

    fn gateway(&self, prefix: &str) -> Option<IpAddr> {
        self.learnt().get(&net(prefix)).copied()
    }
}

#[test]
fn the_first_of_the_list_is_used_and_the_next_where_it_has_no_route() {
    let (mut rib, mut kernel) = (rib(2, BOTH, None), Kernel::default());
    rib.apply(0, &announce(0, &[7, 8, 9], &[net("8.8.8.0/24")])).expect("no bound");
    rib.apply(1, &announce(1, &[9], &[net("8.8.8.0/24"), net("9.9.9.0/24")])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(0).address), "the list comes before the path's length");
    assert_eq!(kernel.gateway("9.9.9.0/24"), Some(hop(1).address));
    rib.apply(0, &withdraw(&[net("8.8.8.0/24")])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(1).address));
    rib.apply(1, &withdraw(&[net("8.8.8.0/24"), net("9.9.9.0/24")])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert!(kernel.routes.is_empty() && kernel.objects.is_empty(), "{kernel:?}");
    assert_eq!(rib.sizes(), ([0, 0], 0), "nothing is left of it");
}

#[test]
fn a_lost_transit_is_one_update_and_no_prefix_is_without_a_route() {
    let (mut rib, mut kernel) = (rib(3, BOTH, None), Kernel::default());
    let prefixes: Vec<IpNet> = (0..200).map(|i| net(&format!("8.8.{i}.0/24"))).collect();
    for neighbor in 0..3 {
        rib.apply(neighbor, &announce(neighbor, &[9], &prefixes)).expect("no bound");
    }
    kernel.settle_all(&mut rib);
    rib.down(0);
    let mut operations = Vec::new();
    rib.operations(16, &mut operations);
    assert!(
        matches!(operations[..], [Operation::SetObject { gateway, .. }] if gateway.address == hop(1).address),
        "{operations:?}"
    );
    kernel.take(&operations);
    // And the second one before the routes of the first have followed.
    rib.operations(16, &mut operations);
    rib.down(1);
    loop {
        kernel.take(&operations);
        for prefix in &prefixes {
            assert_ne!(kernel.learnt().get(prefix), None, "without a route");
            assert_ne!(kernel.learnt().get(prefix), Some(&hop(0).address), "to who is lost");
        }
        if rib.is_idle() {
            break;
        }
        operations.clear();
        rib.operations(16, &mut operations);
    }
    assert!(kernel.learnt().values().all(|gateway| *gateway == hop(2).address));
    assert_eq!(kernel.objects.len(), 2, "one a choice: retired objects go with their last route");
    rib.down(2);
    kernel.settle_all(&mut rib);
    assert!(kernel.routes.is_empty() && kernel.objects.is_empty(), "{kernel:?}");
}

#[test]
fn each_choice_has_a_best_of_its_own_and_a_lost_transit_is_one_update_in_each() {
    let (mut rib, mut kernel) = (rib(3, BOTH, None), Kernel::default());
    let prefixes: Vec<IpNet> = (0..200).map(|i| net(&format!("8.8.{i}.0/24"))).collect();
    for neighbor in 0..3 {
        rib.apply(neighbor, &announce(neighbor, &[9], &prefixes)).expect("no bound");
    }
    kernel.settle_all(&mut rib);
    let all_by = |kernel: &Kernel, table, neighbor| {
        let learnt = kernel.learnt_in(table);
        learnt.len() == prefixes.len() && learnt.values().all(|gateway| *gateway == hop(neighbor).address)
    };
    assert!(all_by(&kernel, FIRST, 0) && all_by(&kernel, SECOND, 2));
    // The second's first, and the first's last: of that only a covering route is turned.
    rib.down(2);
    let mut operations = Vec::new();
    rib.operations(16, &mut operations);
    let turned: Vec<IpAddr> = operations
        .iter()
        .map(|operation| match operation {
            Operation::SetObject { gateway, .. } => gateway.address,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(turned.len(), 2, "one a choice");
    assert!(turned.contains(&hop(0).address) && turned.contains(&hop(1).address), "what is next in each: {turned:?}");
    kernel.take(&operations);
    assert!(all_by(&kernel, FIRST, 0) && all_by(&kernel, SECOND, 1), "at once");
    kernel.settle_all(&mut rib);
    // Of the second, nobody is left: it has no route, whatever the first has.
    rib.down(1);
    kernel.settle_all(&mut rib);
    assert!(all_by(&kernel, FIRST, 0));
    assert!(!kernel.routes.keys().any(|(table, ..)| *table == SECOND), "{kernel:?}");
}

#[test]
fn several_routes_of_one_neighbour_to_a_prefix_come_and_go_by_their_identifiers() {
    let (mut rib, mut kernel) = (rib(2, BOTH, Some(3)), Kernel::default());
    let prefix = net("8.8.8.0/24");
    for (id, path) in [(7, &[8, 9][..]), (1, &[9]), (0, &[9])] {
        rib.apply(ADD_PATH, &announce_path(ADD_PATH, id, path, prefix)).expect("as many as may be");
    }
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop_of(ADD_PATH, 0).address), "the lowest of those that are equal");
    let found = rib.explain(&prefix).found.expect("it is there");
    let mut shown: Vec<_> = found.routes.iter().map(|route| (route.path_id, route.used_by.len())).collect();
    shown.sort();
    assert_eq!(shown, [(Some(0), 2), (Some(1), 0), (Some(7), 0)]);
    assert_eq!(rib.explain(&prefix).choices[0], Some((ADD_PATH, Because::PathId)));
    // The same again is no more; and what is withdrawn leaves the others.
    rib.apply(ADD_PATH, &announce_path(ADD_PATH, 7, &[8, 9], prefix)).expect("no more than before");
    for (id, left) in [(0, Some(1)), (1, Some(7)), (7, None)] {
        rib.apply(ADD_PATH, &withdraw_path(id, prefix)).expect("a withdrawal");
        kernel.settle_all(&mut rib);
        assert_eq!(kernel.gateway("8.8.8.0/24"), left.map(|id| hop_of(ADD_PATH, id).address));
    }
    assert_eq!(rib.sizes(), ([0, 0], 0));
    let exceeded = (0..4).map(|id| rib.apply(ADD_PATH, &announce_path(ADD_PATH, id, &[9], prefix)));
    assert_eq!(exceeded.filter(Result::is_err).count(), 1, "each of them counts");
}

#[test]
fn a_neighbour_cannot_have_any_number_of_routes_to_a_prefix() {
    let (mut rib, mut kernel) = (rib(2, BOTH, None), Kernel::default());
    let prefix = net("8.8.8.0/24");
    for id in 0..200 {
        rib.apply(ADD_PATH, &announce_path(ADD_PATH, id, &[9], prefix)).expect("no bound");
    }
    kernel.settle_all(&mut rib);
    let counts = rib.counts(ADD_PATH);
    assert_eq!((counts.prefixes, counts.rejected), ([64, 0], vec![(Rejected::Paths, 136)]));
    rib.down(ADD_PATH);
    kernel.settle_all(&mut rib);
    assert_eq!(rib.sizes(), ([0, 0], 0));
}

#[test]
fn a_way_that_goes_is_a_transit_lost_and_what_the_kernel_dropped_is_made_again() {
    let (mut rib, mut kernel) = (rib(2, BOTH, None), Kernel::default());
    let prefixes = [net("8.8.8.0/24"), net("2600::/32")];
    for neighbor in 0..2 {
        rib.apply(neighbor, &announce(neighbor, &[9], &prefixes)).expect("no bound");
    }
    kernel.settle_all(&mut rib);
    let of_first: Vec<u32> =
        kernel.objects.iter().filter(|(_, to)| to.address == hop(0).address).map(|(id, _)| *id).collect();
    assert_eq!(of_first.len(), 2, "one a family");
    // The interface lost its carrier: the kernel drops its objects, and the covering route of the other stays.
    kernel.objects.retain(|id, _| !of_first.contains(id));
    kernel.routes.retain(|_, id| !of_first.contains(id));
    assert_eq!(kernel.routes.keys().filter(|(table, ..)| *table == FIRST).count(), 2, "{kernel:?}");
    let place = rib.next_hops(true).iter().find(|(_, neighbor, _)| *neighbor == 0).expect("its next hop").0;
    rib.set_way(place, None);
    let known: BTreeSet<u32> = kernel.objects.keys().copied().collect();
    rib.objects_are(|id| known.contains(&id));
    kernel.routes.retain(|_, id| known.contains(id));
    while !rib.is_idle() {
        let mut operations = Vec::new();
        rib.operations(16, &mut operations);
        // The kernel forgives what is gone already.
        operations.retain(|operation| match operation {
            Operation::RemoveObject { id } => kernel.objects.contains_key(id),
            Operation::RemoveRoute { table, prefix, metric } => kernel.routes.contains_key(&(*table, *prefix, *metric)),
            _ => true,
        });
        kernel.take(&operations);
    }
    for prefix in prefixes {
        assert_eq!(kernel.learnt().get(&prefix), Some(&hop(1).address));
    }
    rib.set_way(place, Some(Gateway { address: hop(0).address, interface: 2 }));
    kernel.settle_all(&mut rib);
    for prefix in prefixes {
        assert_eq!(kernel.learnt().get(&prefix), Some(&hop(0).address), "back again");
    }
}

#[test]
fn more_than_the_bound_ends_the_session_and_costs_no_memory() {
    let (mut rib, mut kernel) = (rib(2, BOTH, Some(10)), Kernel::default());
    let prefixes: Vec<IpNet> = (0..200).map(|i| net(&format!("8.8.{i}.0/24"))).collect();
    rib.apply(1, &announce(1, &[9], &prefixes[..10])).expect("as many as may be");
    rib.apply(1, &announce(1, &[9, 9], &prefixes[..10])).expect("they are no more");
    let exceeded = rib.apply(0, &announce(0, &[9], &prefixes)).expect_err("too many");
    assert_eq!(exceeded, Exceeded { family: Family::Ipv4, most: 10 });
    assert_eq!(rib.sizes().0, [10, 0]);
    rib.apply(0, &announce(0, &[9], &prefixes)).expect("not heard: its session is over");
    kernel.settle_all(&mut rib);
    assert_eq!(rib.counts(0).prefixes, [0, 0]);
    assert_eq!(rib.counts(1).prefixes, [10, 0], "others are untouched");
    assert!(kernel.learnt().values().all(|gateway| *gateway == hop(1).address));
}

#[test]
fn a_route_that_is_going_is_used_where_there_is_no_other() {
    let (mut rib, mut kernel) = (rib(2, BOTH, None), Kernel::default());
    let prefixes = [net("8.8.8.0/24"), net("9.9.9.0/24")];
    let communities = [Community::GRACEFUL_SHUTDOWN].into();
    let going = Attributes { as_path: AsPath::sequence(&[1, 9]), communities, ..Attributes::default() };
    rib.apply(0, &said(0, going, &prefixes)).expect("no bound");
    rib.apply(1, &announce(1, &[5, 6, 7, 9], &prefixes[..1])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(1).address));
    assert_eq!(kernel.gateway("9.9.9.0/24"), Some(hop(0).address));
}

#[test]
fn a_site_s_prefix_is_nobody_else_s_to_announce() {
    let (mut rib, mut kernel) = (rib(1, BOTH, None), Kernel::default());
    let prefixes = [net("8.8.8.0/24"), net("8.8.0.0/16")];
    rib.apply(0, &announce(0, &[9], &prefixes)).expect("no bound");
    kernel.settle_all(&mut rib);
    rib.set_own([net("8.8.8.0/23")]);
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), None);
    assert!(kernel.gateway("8.8.0.0/16").is_some());
    rib.apply(0, &announce(0, &[8, 9], &prefixes)).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), None);
    rib.set_own([]);
    kernel.settle_all(&mut rib);
    assert!(kernel.gateway("8.8.8.0/24").is_some(), "kept, and used again");
}

#[test]
fn a_refresh_ends_with_what_was_not_said_again() {
    let (mut rib, mut kernel) = (rib(1, BOTH, None), Kernel::default());
    let prefixes = [net("8.8.8.0/24"), net("9.9.9.0/24"), net("2600::/32")];
    rib.apply(0, &announce(0, &[9], &prefixes)).expect("no bound");
    rib.mark_stale(0, Family::Ipv4);
    rib.apply(0, &announce(0, &[9], &prefixes[..1])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.learnt().len(), 3, "used until the end is said");
    rib.apply(0, &Update { end_of_rib: Some(Family::Ipv4), ..Update::default() }).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.learnt().into_keys().collect::<Vec<_>>(), [prefixes[0], prefixes[2]]);
}

#[test]
fn what_is_let_in_no_more_replaces_what_was() {
    let (mut rib, mut kernel) = (rib(1, BOTH, None), Kernel::default());
    rib.apply(0, &announce(0, &[9], &[net("8.8.8.0/24")])).expect("no bound");
    rib.apply(0, &announce(0, &[LOCAL_AS, 9], &[net("8.8.8.0/24"), net("10.0.0.0/8")])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.learnt(), BTreeMap::new());
    let rejected = rib.counts(0).rejected;
    assert_eq!(rejected, [(Rejected::Bogon, 1), (Rejected::OwnAs, 1)]);
}

fn vrps(list: &[(&str, u32)]) -> Arc<Origins> {
    let vrp = |&(prefix, asn): &(&str, u32)| Vrp { prefix: net(prefix), max_length: 24, asn };
    Arc::new(Origins::new(list.iter().map(vrp).collect()))
}

#[test]
fn a_route_of_an_invalid_origin_is_kept_and_not_used_for_as_long_as_it_is() {
    let (mut rib, mut kernel) = (rib(2, BOTH, None), Kernel::default());
    let (stolen, other) = (net("8.8.8.0/24"), net("9.9.9.0/24"));
    rib.set_origins(vrps(&[("8.8.8.0/24", 15)]));
    // The first transit of the list is taken in, the second has the right one.
    rib.apply(0, &announce(0, &[666], &[stolen, other])).expect("no bound");
    rib.apply(1, &announce(1, &[15], &[stolen, other])).expect("no bound");
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(1).address));
    assert_eq!(kernel.gateway("9.9.9.0/24"), Some(hop(0).address), "nobody says anything of it");
    assert_eq!(rib.counts(0).rejected, [(Rejected::InvalidOrigin, 1)]);
    let found = rib.explain(&stolen).found.expect("both are kept");
    let unused: Vec<_> = found.routes.iter().map(|route| route.unused.as_deref()).collect();
    let why = "its origin may not announce it (RFC 6811): ROA 8.8.8.0/24-24 AS 15";
    assert_eq!(unused, [Some(why), None]);
    // The set changes, is lost, and comes again: what it does not speak of is not touched.
    for (set, gateway) in [(vrps(&[("8.8.8.0/24", 666)]), 0), (vrps(&[]), 0), (vrps(&[("8.0.0.0/8", 15)]), 1)] {
        rib.set_origins(set);
        assert!(!rib.is_idle());
        kernel.settle_all(&mut rib);
        assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(gateway).address));
        assert_eq!(kernel.gateway("9.9.9.0/24"), Some(hop(0).address));
    }
    // Two sets in a row, the second before the first has been worked out.
    rib.set_origins(vrps(&[("9.9.9.0/24", 15)]));
    rib.set_origins(vrps(&[]));
    rib.set_origins(vrps(&[("9.9.9.0/24", 15)]));
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(0).address));
    assert_eq!(kernel.gateway("9.9.9.0/24"), Some(hop(1).address));
    // What is a site's stays unused whatever the VRPs say.
    rib.set_own([stolen]);
    rib.set_origins(vrps(&[("8.8.8.0/24", 666)]));
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), None);
    rib.set_own([]);
    kernel.settle_all(&mut rib);
    assert_eq!(kernel.gateway("8.8.8.0/24"), Some(hop(0).address));
}

#[test]
fn an_empty_path_is_of_our_own_as() {
    let session = |remote_as| Session { local_as: LOCAL_AS, remote_as, role: None };
    let attributes = |as_path| Attributes { as_path, ..Attributes::default() };
    let (empty, plain) = (attributes(AsPath::default()), attributes(AsPath::sequence(&[1, 15])));
    assert_eq!(accept::origin(&empty, session(LOCAL_AS)), Some(LOCAL_AS));
    assert_eq!(accept::origin(&plain, session(1)), Some(15));
}
