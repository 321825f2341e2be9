//! What a received UPDATE says: RFC 4271, section 6.3, as revised by RFC 7606.
//!
//! One bad attribute of one route must not cost the session and with it all routes. So an error whose routes can still
//! be told makes them withdrawn; an error in an attribute that decides nothing drops that attribute; and only what
//! leaves the routes in doubt ends the session. Which is which is a table, in [`super::attribute`].
//!
//! ```text
//! | withdrawn length | withdrawn IPv4 prefixes | attributes' length | attributes | announced IPv4 prefixes |
//! ```
//!
//! bgpkit-parser guesses where this must not: it takes the octets `00 18 0a 00 00` (0.0.0.0/0 and 10.0.0.0/24) for one
//! route with a path identifier, and passes an attribute that overruns its block, trailing octets, an unknown
//! well-known attribute and a second MP_REACH_NLRI. Each has a test below.

use super::attribute::{self, Builder, EXTENDED_LENGTH, Verdict};
pub use super::attribute::{
    Aggregator, AsPath, Attributes, Community, ExtendedCommunity, LargeCommunity, Origin, Segment, SegmentKind,
};
use super::message::Notification;
use super::{Families, Family};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// One route's key in an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri {
    /// Without bits beyond its length.
    pub prefix: IpNet,
    /// Tells several routes of one neighbour to one prefix apart (RFC 7911); 0 where that was not negotiated.
    pub path_id: u32,
}

/// What an UPDATE says, after RFC 7606's dispositions. To be taken in order: what is withdrawn, then what is announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Gone. Has also what was announced and is treated as withdrawn.
    pub withdrawn: Vec<Nlri>,
    /// New, or new in what is said of it: at most one of IPv4's own field, and one of MP_REACH_NLRI.
    pub announced: Vec<Announced>,
    /// All that the neighbour has of a family has been said (RFC 4724, section 2).
    pub end_of_rib: Option<Family>,
    /// Why what it announced is treated as withdrawn, if it is.
    pub fault: Option<Fault>,
    /// How many attributes were left out: malformed and harmless, a second one of a type, or none of the neighbour's
    /// business.
    pub discarded: usize,
}

/// Prefixes of one family with what is said of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Where their packets go.
    pub next_hop: NextHop,
    /// One or more.
    pub prefixes: Vec<Nlri>,
    /// The same for all of them.
    pub attributes: Arc<Attributes>,
}

/// Where packets go (RFC 4271, section 5.1.3; RFC 2545, section 3; RFC 8950).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// An IPv6 one can be of an IPv4 route (RFC 8950), and can be link-local where nothing else was given.
    pub address: IpAddr,
    /// Its link-local address, if the neighbour is on our link and said it.
    pub link_local: Option<Ipv6Addr>,
}

/// Why the routes of an UPDATE are treated as withdrawn (RFC 7606).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Section 7, and what the RFCs since then say of their own.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// Section 3 (c).
    #[error("the flags of {0} do not fit its type")]
    Flags(&'static str),
    /// Section 3 (d).
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Section 4.
    #[error("an attribute overruns the block of attributes")]
    Overrun,
    /// RFC 4271, section 6.3, for MP_REACH_NLRI.
    #[error("the next hop is no host's address")]
    NextHop,
}

/// What the session's OPENs settled that the reading of an UPDATE depends on.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The families that may occur in it.
    pub families: Families,
    /// AS numbers have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The neighbour is in our own AS.
    pub internal: bool,
    /// The families whose prefixes have an identifier before them (RFC 7911).
    pub add_path: Families,
    /// An IPv4 route can have an IPv6 next hop (RFC 8950).
    pub extended_next_hop: bool,
}

impl Context {
    pub(super) fn as_octets(&self) -> usize {
        if self.four_octet_as { 4 } else { 2 }
    }
}

/// Reads the body of an UPDATE. An error is the NOTIFICATION that ends the session: its routes cannot be told.
pub fn decode(body: &[u8], context: &Context) -> Result<Update, Notification> {
    // RFC 4271, section 6.3: lengths that do not fit the message leave everything in doubt.
    let malformed_list = || Notification::new(3, 1);
    let invalid_network = || Notification::new(3, 10);
    let (withdrawn, rest) = field(body).ok_or_else(malformed_list)?;
    let (block, announced) = field(rest).ok_or_else(malformed_list)?;
    // RFC 7606, section 5.3: prefixes that cannot be told apart cannot be withdrawn either.
    let mut update = Update {
        withdrawn: prefixes(withdrawn, Family::Ipv4, context).ok_or_else(invalid_network)?,
        ..Update::default()
    };
    let announced = prefixes(announced, Family::Ipv4, context).ok_or_else(invalid_network)?;
    let mut walk = Walk { block, seen: [0; 4] };
    let mut attributes = Builder::default();
    let (mut reach, mut unreach) = (None, None);
    let mut fault = None;
    while let Some(next) = walk.next() {
        let (flags, kind, value) = match next {
            Ok(attribute) => attribute,
            Err(overrun) => {
                // The block's own length still bounds it, and the prefixes after it are sound.
                fault.get_or_insert(overrun);
                break;
            }
        };
        if walk.repeats(kind) {
            // RFC 7606, section 3 (g).
            if matches!(kind, attribute::MP_REACH | attribute::MP_UNREACH) {
                return Err(malformed_list());
            }
            update.discarded += 1;
            continue;
        }
        let Some(rule) = attribute::rule(kind) else {
            if flags & attribute::OPTIONAL == 0 {
                return Err(Notification::with_data(3, 2, &wire(flags, kind, value)));
            }
            continue;
        };
        let undecidable = || Notification::with_data(3, 9, &wire(flags, kind, value));
        match rule.judge(flags, value, context) {
            Verdict::Read => attributes.read(kind, value, context),
            Verdict::Discard => update.discarded += 1,
            Verdict::Withdraw(why) => {
                fault.get_or_insert(why);
            }
        }
        // Read whatever the verdict: its prefixes must be known to be withdrawn.
        match kind {
            attribute::MP_REACH => reach = Some(Multiprotocol::reach(value, context).ok_or_else(undecidable)?),
            attribute::MP_UNREACH => unreach = Some(Multiprotocol::unreach(value, context).ok_or_else(undecidable)?),
            _ => {}
        }
    }

    if body.len() == 4 {
        update.end_of_rib = Some(Family::Ipv4);
    } else if let Some(Multiprotocol { family: Some(family), prefixes, .. }) = &unreach
        && prefixes.is_empty()
        && walk.saw_only(attribute::MP_UNREACH)
        && update.withdrawn.is_empty()
        && announced.is_empty()
    {
        update.end_of_rib = Some(*family);
    }
    update.withdrawn.extend(unreach.into_iter().flat_map(|unreach| unreach.prefixes));

    if fault.is_some_and(|fault| fault == Fault::Overrun || !walk.saw_only(attribute::MP_UNREACH))
        && announced.is_empty()
        && reach.as_ref().is_none_or(|reach| reach.family.is_some() && reach.prefixes.is_empty())
    {
        // RFC 7606, section 5.2: attributes without routes, and something is wrong with them: who can say that its
        // routes were not overlooked?
        return Err(malformed_list());
    }
    let reach = reach.filter(|reach| !reach.prefixes.is_empty());
    if !announced.is_empty() || reach.is_some() {
        let missing = walk.missing(!announced.is_empty(), context).map(Fault::Missing);
        let no_host = reach.as_ref().is_some_and(|reach| !reach.next_hop.is_some_and(NextHop::is_host));
        update.fault = fault.or(missing).or(no_host.then_some(Fault::NextHop));
        let own = attributes.next_hop.map(|address| NextHop { address: address.into(), link_local: None });
        let attributes = Arc::new(attributes.finish());
        let own = (own, announced);
        for (next_hop, prefixes) in
            [Some(own), reach.map(|reach| (reach.next_hop, reach.prefixes))].into_iter().flatten()
        {
            match next_hop {
                _ if prefixes.is_empty() => {}
                Some(next_hop) if update.fault.is_none() => {
                    update.announced.push(Announced { next_hop, prefixes, attributes: attributes.clone() });
                }
                _ => update.withdrawn.extend(prefixes),
            }
        }
    } else {
        update.fault = fault;
    }
    Ok(update)
}

impl NextHop {
    fn is_host(self) -> bool {
        match self.address {
            IpAddr::V4(address) => attribute::is_host(address),
            IpAddr::V6(address) => !address.is_unspecified() && !address.is_loopback() && !address.is_multicast(),
        }
    }
}

/// The attributes of a block, one after the other.
struct Walk<'a> {
    block: &'a [u8],
    /// A bit for each type.
    seen: [u64; 4],
}

/// Flags, type and value:
///
/// ```text
/// | flags | type | length (1 octet, or 2 with the flag 0x10) | value |
/// ```
type Attribute<'a> = (u8, u8, &'a [u8]);

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Attribute<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let (flags, kind, rest) = match *self.block {
            [] => return None,
            [flags, kind, ref rest @ ..] => (flags, kind, rest),
            _ => return Some(Err(Fault::Overrun)),
        };
        let cut = match (flags & EXTENDED_LENGTH, rest) {
            (0, [length, rest @ ..]) => rest.split_at_checked(usize::from(*length)),
            (EXTENDED_LENGTH, [high, low, rest @ ..]) => {
                rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
            }
            _ => None,
        };
        let Some((value, rest)) = cut else { return Some(Err(Fault::Overrun)) };
        self.block = rest;
        Some(Ok((flags, kind, value)))
    }
}

impl Walk<'_> {
    /// Takes note of a type; has it been seen before?
    fn repeats(&mut self, kind: u8) -> bool {
        let bit = 1 << (kind % 64);
        let word = &mut self.seen[usize::from(kind / 64)];
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    fn saw(&self, kind: u8) -> bool {
        self.seen[usize::from(kind / 64)] & 1 << (kind % 64) != 0
    }

    fn saw_only(&self, kind: u8) -> bool {
        self.saw(kind) && self.seen.iter().map(|word| word.count_ones()).sum::<u32>() == 1
    }

    /// The mandatory attribute that is missing (RFC 7606, section 3 (d)). MP_REACH_NLRI brings a next hop of its own.
    fn missing(&self, ipv4_announced: bool, context: &Context) -> Option<&'static str> {
        let mandatory = [
            (attribute::ORIGIN, true),
            (attribute::AS_PATH, true),
            (attribute::NEXT_HOP, ipv4_announced),
            (attribute::LOCAL_PREF, context.internal),
        ];
        let (kind, _) = mandatory.into_iter().find(|&(kind, needed)| needed && !self.saw(kind))?;
        attribute::rule(kind).map(|rule| rule.name)
    }
}

/// MP_REACH_NLRI or MP_UNREACH_NLRI (RFC 4760, sections 3 and 4).
///
/// ```text
/// | AFI (2) | SAFI (1) | next hop's length (1) | next hop | reserved (1) | prefixes |
/// | AFI (2) | SAFI (1) | prefixes |
/// ```
struct Multiprotocol {
    /// None if it is not one that was agreed on: then it is not ours to judge (RFC 4760, section 7), and says nothing.
    family: Option<Family>,
    next_hop: Option<NextHop>,
    prefixes: Vec<Nlri>,
}

impl Multiprotocol {
    const FOREIGN: Multiprotocol = Multiprotocol { family: None, next_hop: None, prefixes: Vec::new() };

    /// Nothing if its prefixes cannot be told.
    fn reach(value: &[u8], context: &Context) -> Option<Multiprotocol> {
        let [afi_high, afi_low, safi, next_hop_length, rest @ ..] = value else { return None };
        let (next_hop, rest) = rest.split_at_checked(usize::from(*next_hop_length))?;
        let (_reserved, rest) = rest.split_first()?;
        let Some(family) = family([*afi_high, *afi_low], *safi, context) else { return Some(Self::FOREIGN) };
        let next_hop = next_hop_of(next_hop, family, context)?;
        Some(Multiprotocol {
            family: Some(family),
            next_hop: Some(next_hop),
            prefixes: prefixes(rest, family, context)?,
        })
    }

    /// Nothing if its prefixes cannot be told.
    fn unreach(value: &[u8], context: &Context) -> Option<Multiprotocol> {
        let [afi_high, afi_low, safi, rest @ ..] = value else { return None };
        let Some(family) = family([*afi_high, *afi_low], *safi, context) else { return Some(Self::FOREIGN) };
        Some(Multiprotocol { family: Some(family), next_hop: None, prefixes: prefixes(rest, family, context)? })
    }
}

fn family(afi: [u8; 2], safi: u8, context: &Context) -> Option<Family> {
    Family::from_afi_safi(u16::from_be_bytes(afi), safi).filter(|&family| context.families.contains(family))
}

/// A next hop's length says what it is: an IPv4 address, a global IPv6 one, or that with a link-local one after it.
fn next_hop_of(octets: &[u8], family: Family, context: &Context) -> Option<NextHop> {
    let ipv6 = family == Family::Ipv6 || context.extended_next_hop;
    let address = |octets: &[u8]| <[u8; 16]>::try_from(octets).ok().map(Ipv6Addr::from);
    match octets.len() {
        4 if family == Family::Ipv4 => {
            let octets = <[u8; 4]>::try_from(octets).ok()?;
            Some(NextHop { address: Ipv4Addr::from(octets).into(), link_local: None })
        }
        16 if ipv6 => Some(NextHop { address: address(octets)?.into(), link_local: None }),
        32 if ipv6 => Some(NextHop {
            address: address(&octets[..16])?.into(),
            link_local: address(&octets[16..]).filter(Ipv6Addr::is_unicast_link_local),
        }),
        _ => None,
    }
}

/// Prefixes, each with its length in bits and no more octets than that needs, and an identifier before that where it was
/// agreed on (RFC 7911). Nothing if one is too long for its family or is cut off.
fn prefixes(mut octets: &[u8], family: Family, context: &Context) -> Option<Vec<Nlri>> {
    let add_path = context.add_path.contains(family);
    // Most prefixes of a table take three octets and one for the length.
    let mut found = Vec::with_capacity(octets.len() / if add_path { 8 } else { 4 });
    while !octets.is_empty() {
        let mut path_id = 0;
        if add_path {
            let (identifier, rest) = octets.split_first_chunk()?;
            path_id = u32::from_be_bytes(*identifier);
            octets = rest;
        }
        let (&bits, rest) = octets.split_first()?;
        if bits > family.bits() {
            return None;
        }
        let (address, rest) = rest.split_at_checked(usize::from(bits.div_ceil(8)))?;
        // What stands beyond the length is of no significance (RFC 4271, section 4.3).
        let prefix = match family {
            Family::Ipv4 => IpNet::V4(Ipv4Net::new(Ipv4Addr::from(padded(address)), bits).ok()?.trunc()),
            Family::Ipv6 => IpNet::V6(Ipv6Net::new(Ipv6Addr::from(padded(address)), bits).ok()?.trunc()),
        };
        found.push(Nlri { prefix, path_id });
        octets = rest;
    }
    Some(found)
}

/// The octets, and zeros after them.
fn padded<const N: usize>(octets: &[u8]) -> [u8; N] {
    let mut whole = [0; N];
    whole[..octets.len()].copy_from_slice(octets);
    whole
}

/// Cuts off a field with a two-octet length before it.
fn field(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = octets.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// An attribute as it stood on the wire, for the data of a NOTIFICATION.
fn wire(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![flags, kind];
    match flags & EXTENDED_LENGTH {
        0 => out.push(value.len() as u8),
        _ => out.extend_from_slice(&(value.len() as u16).to_be_bytes()),
    }
    out.extend_from_slice(value);
    out
}

#[cfg(test)]
mod tests;
