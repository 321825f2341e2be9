use super::*;
use crate::config::tests::load;
use dataplane::netlink::{Address, Way};
use proptest::prelude::*;

const FILE: &str = r#"schema = 1
prefixes = ["198.51.100.0/24"]
middlebox = 7
ignore = ["docker*"]
lan = ["vlan5"]
[core]
name = "pop-a"
public_key = "KEY"
endpoints = ["192.0.2.1:51820"]
"#;

fn config(more: &str) -> Config {
    load(&format!("{FILE}{more}")).expect("a good file")
}

/// An interface with an address of this network and, if a metric is given, a default route.
fn interface(index: u32, name: &str, address: &str, metric: Option<u32>) -> Interface {
    let net: IpNet = address.parse().expect("an address");
    let everywhere = "0.0.0.0/0".parse().expect("a prefix");
    Interface {
        index,
        name: name.into(),
        running: true,
        loopback: name == "lo",
        hardware: Some(format!("52:54:00:00:00:{index:02x}")),
        mtu: 1500,
        addresses: vec![Address { net, usable: true, secondary: false }],
        routes: metric.map(|metric| Way { prefix: everywhere, gateway: None, metric }).into_iter().collect(),
    }
}

fn all(interfaces: impl IntoIterator<Item = Interface>) -> BTreeMap<u32, Interface> {
    interfaces.into_iter().map(|interface| (interface.index, interface)).collect()
}

/// A box that looks again and again.
struct Middlebox {
    config: Config,
    slots: Slots,
}

impl Middlebox {
    fn new(more: &str, kept: &[Kept]) -> Self {
        let config = config(more);
        Middlebox { slots: Slots::new(&config, kept), config }
    }

    /// The slots after a look, as "slot name", and how many have none.
    fn look(&mut self, interfaces: &BTreeMap<u32, Interface>) -> (Vec<String>, usize) {
        let roles = roles(&self.config, interfaces, &self.slots);
        let uplinks = interfaces.values().filter(|interface| roles[&interface.index].is_uplink());
        let without = self.slots.assign(interfaces, uplinks);
        let of = |interface: &Interface| Some(format!("{} {}", self.slots.of(interface.index)?, interface.name));
        let mut found: Vec<String> = interfaces.values().filter_map(of).collect();
        found.sort();
        (found, without.len())
    }

    fn restart(&self, more: &str) -> Self {
        Middlebox::new(more, &self.slots.kept())
    }
}

#[test]
fn what_has_a_default_route_and_is_not_the_lan_is_an_uplink() {
    let slots = Slots::new(&config(""), &[]);
    let roles_of = |more: &str, interfaces: Vec<Interface>| {
        roles(&config(more), &all(interfaces), &slots).into_values().collect::<Vec<_>>()
    };
    let wan = |address| interface(9, "wan0", address, Some(100));
    let found = roles_of(
        "",
        vec![
            interface(1, "lo", "127.0.0.1/8", Some(1)),
            interface(2, "lan0", "198.51.100.1/24", None),
            interface(3, "msp0", "10.0.0.1/24", Some(1)),
            interface(4, "docker0", "172.17.0.1/16", Some(1)),
            interface(5, "vlan5", "192.168.5.1/24", Some(1)),
            interface(6, "eth6", "192.168.6.1/24", None),
            wan("192.168.1.2/24"),
        ],
    );
    assert_eq!(found, [Role::Neither, Role::Lan, Role::Neither, Role::Neither, Role::Lan, Role::Neither, Role::Uplink]);
    // An ISP that hands out the site's own network beside its LAN is an uplink; on the only cable it is the LAN,
    // unless the operator says that it is both.
    let lan = interface(2, "lan0", "198.51.100.1/24", None);
    assert_eq!(roles_of("", vec![lan, wan("198.51.100.9/24")]), [Role::Lan, Role::Uplink]);
    assert_eq!(roles_of("", vec![wan("198.51.100.9/24")]), [Role::Lan]);
    assert_eq!(roles_of("[[uplink]]\ninterface = \"wan0\"\n", vec![wan("198.51.100.9/24")]), [Role::Both]);
    let mut off = config("[[uplink]]\ninterface = \"wan0\"\n");
    off.find = false;
    let there = all([interface(8, "wan1", "192.168.2.2/24", Some(1)), wan("192.168.1.2/24")]);
    let found: Vec<Role> = roles(&off, &there, &Slots::new(&off, &[])).into_values().collect();
    assert_eq!(found, [Role::Neither, Role::Uplink], "only what the file names");
}

#[test]
fn a_slot_stays_with_its_link_through_rename_pull_and_restart() {
    let mut at = Middlebox::new("", &[]);
    let (a, b) = (interface(3, "wan0", "192.168.1.2/24", Some(200)), interface(4, "wan1", "192.168.1.3/24", Some(100)));
    assert_eq!(at.look(&all([a.clone(), b.clone()])).0, ["0 wan0", "1 wan1"]);
    assert_eq!(at.slots.preferences()[..2], [1, 0], "by the routes' metrics");
    // Its route is gone: it stays what it is, and moves nobody.
    let mut lost = b.clone();
    lost.routes.clear();
    assert_eq!(at.look(&all([a.clone(), lost])).0, ["0 wan0", "1 wan1"]);
    assert_eq!(at.slots.preferences()[..2], [1, 0]);
    let renamed = Interface { name: "isp-a".into(), ..a.clone() };
    assert_eq!(at.look(&all([renamed.clone(), b.clone()])).0, ["0 isp-a", "1 wan1"]);
    // Pulled, and plugged in again under another number and name.
    assert_eq!(at.look(&all([b.clone()])).0, ["1 wan1"]);
    let again = Interface { index: 7, name: "eth9".into(), ..renamed };
    assert_eq!(at.look(&all([b.clone(), again.clone()])).0, ["0 eth9", "1 wan1"]);
    // After a restart the numbers are others; a new card takes the place of an old one of its name.
    let mut at = at.restart("");
    let new_card = Interface { index: 21, hardware: Some("52:54:00:ff:ff:ff".into()), ..b };
    let first = Interface { index: 22, name: "wan0".into(), ..again };
    assert_eq!(at.look(&all([new_card, first])).0, ["0 wan0", "1 wan1"]);
}

#[test]
fn the_configuration_pins_slot_and_order_also_under_another_name() {
    let file = "[[uplink]]\ninterface = \"wan1\"\nslot = 5\n[[uplink]]\ninterface = \"wan0\"\nslot = 2\n";
    let mut at = Middlebox::new(file, &[]);
    let (a, b) = (interface(3, "wan0", "192.168.1.2/24", Some(1)), interface(4, "wan1", "192.168.1.3/24", Some(7)));
    let other = interface(5, "lte0", "10.0.0.2/24", Some(0));
    assert_eq!(at.look(&all([a.clone(), b.clone(), other])).0, ["0 lte0", "2 wan0", "5 wan1"]);
    let preferences = at.slots.preferences();
    assert_eq!((preferences[5], preferences[2], preferences[0]), (0, 1, 2));
    // Renamed while the box was off, it is known by its hardware.
    let mut at = at.restart(file);
    let renamed = Interface { index: 13, name: "eth3".into(), ..b };
    assert_eq!(at.look(&all([renamed.clone(), a.clone()])).0, ["2 wan0", "5 eth3"]);
    // A slot that the file gives to another interface from now on is not kept for it.
    let mut at = at.restart("[[uplink]]\ninterface = \"sfp0\"\nslot = 5\n");
    let new = interface(14, "sfp0", "10.0.0.3/24", None);
    assert_eq!(at.look(&all([renamed, a])).0, ["1 eth3", "2 wan0"], "0 is lte0's");
    assert_eq!(at.look(&all([new])).0, ["5 sfp0"]);
}

#[test]
fn vlans_of_one_card_keep_each_their_own() {
    let mut at = Middlebox::new("", &[]);
    let vlan = |index, name: &str| Interface {
        hardware: Some("one card".into()),
        ..interface(index, name, "10.0.0.1/24", Some(1))
    };
    assert_eq!(at.look(&all([vlan(3, "eth0.10"), vlan(4, "eth0.20")])).0, ["0 eth0.10", "1 eth0.20"]);
    let mut at = at.restart("");
    assert_eq!(at.look(&all([vlan(8, "eth0.20"), vlan(9, "eth0.10")])).0, ["0 eth0.10", "1 eth0.20"]);
}

#[test]
fn the_ninth_has_no_slot_until_one_is_away() {
    let mut at = Middlebox::new("", &[]);
    let nine: Vec<Interface> =
        (1..=9).map(|index| interface(index, &format!("wan{index}"), "10.0.0.1/24", Some(1))).collect();
    assert_eq!(at.look(&all(nine.clone())).1, 1);
    let (found, without) = at.look(&all(nine.into_iter().filter(|interface| interface.index != 4)));
    assert_eq!((without, found[3].as_str()), (0, "3 wan9"));
}

proptest! {
    /// Whatever comes, goes and is renamed: no slot has two links, nobody who is there loses its slot, and a slot is
    /// refused only when all are taken by who is there.
    #[test]
    fn slots_are_never_shared_or_lost(steps in prop::collection::vec(prop::collection::btree_map(1u32..14, 0u32..14, 0..12), 1..12)) {
        let mut at = Middlebox::new("[[uplink]]\ninterface = \"wan3\"\nslot = 6\n", &[]);
        let mut before: BTreeMap<u32, u8> = BTreeMap::new();
        for step in steps {
            let mut names = std::collections::HashSet::new();
            let there = step.into_iter().filter(|(_, name)| names.insert(*name));
            let there = all(there.map(|(index, name)| interface(index, &format!("wan{name}"), "10.0.0.1/24", Some(1))));
            let (found, without) = at.look(&there);
            let now: BTreeMap<u32, u8> =
                there.keys().filter_map(|&index| Some((index, at.slots.of(index)?))).collect();
            prop_assert_eq!(found.len() + without, there.len());
            prop_assert_eq!(now.values().collect::<std::collections::BTreeSet<_>>().len(), now.len());
            for (index, slot) in &before {
                prop_assert!(!there.contains_key(index) || now.get(index) == Some(slot));
            }
            // The pinned slot waits for its own.
            prop_assert!(without == 0 || now.len() + 1 >= MAX_SLOTS);
            before = now;
        }
    }
}
