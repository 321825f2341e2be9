//! Which interfaces are uplinks, and which slot each has. Nothing here asks the kernel: it is told.
//!
//! An interface is an uplink if the configuration names it, or if the main table has a default route out of it and it
//! is not the LAN's. It keeps its slot, and so its keys, its tunnel and its place in the provider's books, for as long
//! as it can be recognised: by its number while it is there, by hardware address and name after it was unplugged or the
//! box restarted.

use crate::config::{Config, matches};
use crate::state::Kept;
use dataplane::netlink::Interface;
use ipnet::IpNet;
use proto::MAX_SLOTS;
use std::collections::BTreeMap;

/// What an interface is to the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// An ISP's link.
    Uplink,
    /// The site's own network.
    Lan,
    /// Both on one cable: named as an uplink, and the only one with an address of the site.
    Both,
    /// Nothing: loopback, our TUN, what is to be ignored, what leads nowhere.
    Neither,
}

impl Role {
    pub(crate) fn is_uplink(self) -> bool {
        matches!(self, Role::Uplink | Role::Both)
    }

    pub(crate) fn is_lan(self) -> bool {
        matches!(self, Role::Lan | Role::Both)
    }
}

/// The roles of all interfaces, by their numbers. `slots` knows which of them have been uplinks: those stay so, or a
/// link that has lost its route would be forgotten.
pub(crate) fn roles(config: &Config, interfaces: &BTreeMap<u32, Interface>, slots: &Slots) -> BTreeMap<u32, Role> {
    let of_no_interest = |interface: &Interface| {
        interface.loopback
            || interface.name == config.tun.name
            || config.ignore.iter().any(|pattern| matches(pattern, &interface.name))
    };
    let named_lan = |interface: &Interface| config.lan.contains(&interface.name);
    let has_site = |interface: &Interface| {
        interface.addresses.iter().any(|address| within(&config.prefixes, &address.net).is_some())
    };
    // Who has an address of the site and leads nowhere is the LAN beyond doubt.
    let certain = |interface: &Interface| {
        !of_no_interest(interface)
            && (named_lan(interface) || (has_site(interface) && interface.defaults().is_empty()))
            && !slots.pinned(config, interface)
    };
    let role = |interface: &Interface| {
        let elsewhere = || interfaces.values().any(|other| other.index != interface.index && certain(other));
        if of_no_interest(interface) {
            Role::Neither
        } else if slots.pinned(config, interface) {
            let both = named_lan(interface) || (has_site(interface) && !elsewhere());
            if both { Role::Both } else { Role::Uplink }
        } else if certain(interface) || (has_site(interface) && !elsewhere()) {
            Role::Lan
        } else if config.find && (!interface.defaults().is_empty() || slots.of(interface.index).is_some()) {
            Role::Uplink
        } else {
            Role::Neither
        }
    };
    interfaces.values().map(|interface| (interface.index, role(interface))).collect()
}

/// The site's prefix that a network's address lies in.
pub(crate) fn within<'a>(prefixes: &'a [IpNet], net: &IpNet) -> Option<&'a IpNet> {
    prefixes.iter().find(|prefix| prefix.contains(&net.addr()))
}

/// Who has a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) name: String,
    hardware: Option<String>,
    /// Its number, while it is there.
    pub(crate) index: Option<u32>,
    /// The metric of its best default route when it last had one.
    metric: u32,
    /// When it was last there, in looks.
    seen: u64,
}

impl Holder {
    /// It has been there since the start.
    pub(crate) fn was_seen(&self) -> bool {
        self.seen > 0
    }
}

/// The eight slots.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Names of the configuration, by slot, with their place in the order of preference.
    pins: [Option<(String, u8)>; MAX_SLOTS],
    holders: [Option<Holder>; MAX_SLOTS],
    looks: u64,
}

impl Slots {
    /// As the configuration pins them and as they were before the restart.
    pub(crate) fn new(config: &Config, kept: &[Kept]) -> Self {
        let mut slots = Slots { pins: Default::default(), holders: Default::default(), looks: 0 };
        for (uplink, order) in config.uplinks.iter().zip(0..) {
            slots.pins[usize::from(uplink.slot)] = Some((uplink.interface.clone(), order));
        }
        for kept in kept {
            // A slot that the operator has since given to another interface is that one's.
            let pin = slots.pin(kept.slot);
            if pin.is_some_and(|pin| kept.pin.as_deref() != Some(pin) && kept.name != pin) {
                continue;
            }
            if let Some(holder) = slots.holders.get_mut(usize::from(kept.slot)) {
                let (name, hardware) = (kept.name.clone(), kept.hardware.clone());
                *holder = Some(Holder { name, hardware, index: None, metric: u32::MAX, seen: 0 });
            }
        }
        slots
    }

    /// To know them again after a restart.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let holder = |(holder, slot): (&Option<Holder>, u8)| {
            let Holder { name, hardware, .. } = holder.clone()?;
            Some(Kept { slot, name, hardware, pin: self.pin(slot).map(str::to_owned) })
        };
        self.holders.iter().zip(0..).filter_map(holder).collect()
    }

    /// The slot of an interface that is there.
    pub(crate) fn of(&self, index: u32) -> Option<u8> {
        (0..)
            .zip(&self.holders)
            .find(|(_, holder)| holder.as_ref().is_some_and(|holder| holder.index == Some(index)))
            .map(|(slot, _)| slot)
    }

    pub(crate) fn holder(&self, slot: u8) -> Option<&Holder> {
        self.holders.get(usize::from(slot))?.as_ref()
    }

    /// What the configuration calls the interface of a slot.
    pub(crate) fn pin(&self, slot: u8) -> Option<&str> {
        self.pins.get(usize::from(slot))?.as_ref().map(|(name, _)| name.as_str())
    }

    /// Whether the configuration names this interface as an uplink, by the name it has or by the one it had.
    fn pinned(&self, config: &Config, interface: &Interface) -> bool {
        match self.of(interface.index) {
            Some(slot) => self.pin(slot).is_some(),
            None => {
                config.uplinks.iter().any(|uplink| uplink.interface == interface.name)
                    || self.remembered(interface).is_some_and(|slot| self.pin(slot).is_some())
            }
        }
    }

    /// The slot that an interface of this hardware had before it went or the box restarted.
    fn remembered(&self, interface: &Interface) -> Option<u8> {
        let same = |holder: &&Holder| {
            holder.index.is_none() && holder.hardware.is_some() && holder.hardware == interface.hardware
        };
        (0..).zip(&self.holders).find(|(_, holder)| holder.as_ref().filter(same).is_some()).map(|(slot, _)| slot)
    }

    /// Takes note of what is there now, and gives slots to uplinks that have none. Returns those for which none is left.
    pub(crate) fn assign<'a>(
        &mut self,
        interfaces: &BTreeMap<u32, Interface>,
        uplinks: impl IntoIterator<Item = &'a Interface>,
    ) -> Vec<u32> {
        self.looks += 1;
        for holder in self.holders.iter_mut().flatten() {
            match holder.index.and_then(|index| interfaces.get(&index)) {
                Some(interface) => {
                    holder.name.clone_from(&interface.name);
                    holder.seen = self.looks;
                }
                None => holder.index = None,
            }
        }
        let mut new: Vec<&Interface> =
            uplinks.into_iter().filter(|interface| self.of(interface.index).is_none()).collect();
        // The best match for each before a lesser one for any: of two VLANs on one card, each its own.
        type Fits = fn(&Slots, u8, &Interface) -> bool;
        let matches: [Fits; 5] = [
            |slots, slot, new| slots.pin(slot) == Some(new.name.as_str()),
            |slots, slot, new| {
                slots.holder(slot).is_some_and(|old| old.name == new.name && old.hardware == new.hardware)
            },
            |slots, slot, new| {
                slots.holder(slot).is_some_and(|old| old.hardware.is_some() && old.hardware == new.hardware)
            },
            |slots, slot, new| slots.holder(slot).is_some_and(|old| old.name == new.name),
            |slots, slot, _| slots.holder(slot).is_none() && slots.pin(slot).is_none(),
        ];
        for fits in matches {
            new.retain(|interface| {
                let free = |&slot: &u8| self.holder(slot).is_none_or(|holder| holder.index.is_none());
                let slot = (0..MAX_SLOTS as u8).filter(free).find(|&slot| fits(self, slot, interface));
                slot.map(|slot| self.give(slot, interface)).is_none()
            });
        }
        // Then the slot of whoever has been away for longest.
        new.retain(|interface| {
            let away =
                |&slot: &u8| self.pin(slot).is_none() && self.holder(slot).is_some_and(|old| old.index.is_none());
            let slot = (0..MAX_SLOTS as u8).filter(away).min_by_key(|&slot| self.holder(slot).map(|old| old.seen));
            slot.map(|slot| self.give(slot, interface)).is_none()
        });
        for holder in self.holders.iter_mut().flatten() {
            let interface = holder.index.and_then(|index| interfaces.get(&index));
            if let Some(best) = interface.and_then(|interface| interface.defaults().first().map(|way| way.metric)) {
                holder.metric = best;
            }
        }
        new.iter().map(|interface| interface.index).collect()
    }

    fn give(&mut self, slot: u8, interface: &Interface) {
        self.holders[usize::from(slot)] = Some(Holder {
            name: interface.name.clone(),
            hardware: interface.hardware.clone(),
            index: Some(interface.index),
            metric: u32::MAX,
            seen: self.looks,
        });
    }

    /// The place of each slot in the order of preference: those of the configuration in its order, then the others by
    /// the metrics of their routes, as they last were: one that loses its route does not move the others.
    pub(crate) fn preferences(&self) -> [u8; MAX_SLOTS] {
        let mut order: Vec<usize> = (0..MAX_SLOTS).collect();
        order.sort_by_key(|&slot| {
            let pin = self.pins[slot].as_ref().map_or(u8::MAX, |(_, order)| *order);
            (pin, self.holders[slot].as_ref().map_or(u32::MAX, |holder| holder.metric), slot)
        });
        let mut preferences = [0; MAX_SLOTS];
        for (slot, preference) in order.into_iter().zip(0..) {
            preferences[slot] = preference;
        }
        preferences
    }
}

#[cfg(test)]
mod tests;
