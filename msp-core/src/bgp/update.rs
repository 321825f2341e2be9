//! What a received UPDATE is worth: RFC 4271, section 6.3, as revised by RFC 7606.
//!
//! One bad attribute of one route must not cost the session and with it all routes. So an error whose routes can still
//! be told makes them withdrawn; an error in an attribute that decides nothing drops that attribute; and only what
//! leaves the routes in doubt ends the session. Nothing is kept of what neighbours announce, for now: this walk stands
//! where the table of received routes will begin.
//!
//! bgpkit-parser guesses where this must not: it takes the octets `00 18 0a 00 00` (0.0.0.0/0 and 10.0.0.0/24) for one
//! route with a path identifier, and passes an attribute that overruns its block, trailing octets, an unknown
//! well-known attribute and a second MP_REACH_NLRI. Each has a test below.

use super::message::Notification;
use super::{Families, Family};
use bytes::{Buf, Bytes};

/// What an UPDATE came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// How many prefixes it announced. They count as withdrawn where `withdraw` is set.
    pub(crate) announced: usize,
    /// How many it withdrew.
    pub(crate) withdrawn: usize,
    /// Why its routes are taken for withdrawn, if they are (RFC 7606, section 2).
    pub(crate) withdraw: Option<&'static str>,
    /// How many attributes were left out as malformed and harmless.
    pub(crate) discarded: usize,
}

/// What the session's OPENs settled that the reading of an UPDATE depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    /// The families that may occur in it.
    pub(crate) families: Families,
    /// AS numbers have four octets (RFC 6793).
    pub(crate) four_octet_as: bool,
    /// The neighbour is in our own AS.
    pub(crate) internal: bool,
}

/// What RFC 7606 wants done about an attribute.
enum Disposition {
    Fine,
    Discard,
    Withdraw(&'static str),
}

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const EXTENDED_LENGTH: u8 = 0x10;

const ORIGIN: u8 = 1;
const AS_PATH: u8 = 2;
const NEXT_HOP: u8 = 3;
const MED: u8 = 4;
const LOCAL_PREF: u8 = 5;
const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const COMMUNITIES: u8 = 8;
const ORIGINATOR_ID: u8 = 9;
const CLUSTER_LIST: u8 = 10;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
const EXTENDED_COMMUNITIES: u8 = 16;
const AS4_PATH: u8 = 17;
const AS4_AGGREGATOR: u8 = 18;
const LARGE_COMMUNITIES: u8 = 32;

/// Optional and transitive bits of each type that we know (RFC 4271, section 5; RFC 1997, 4456, 4360, 4760, 6793,
/// 8092).
fn flags_of(kind: u8) -> Option<u8> {
    match kind {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => Some(TRANSITIVE),
        MED | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH | MP_UNREACH => Some(OPTIONAL),
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR | LARGE_COMMUNITIES => {
            Some(OPTIONAL | TRANSITIVE)
        }
        _ => None,
    }
}

/// Walks the body of an UPDATE. An error is the NOTIFICATION that ends the session: its routes cannot be told.
pub(crate) fn check(body: &Bytes, context: Context) -> Result<Received, Notification> {
    // RFC 4271, section 6.3: lengths that do not fit the message leave everything in doubt.
    let malformed_list = || Notification::new(3, 1);
    let invalid_network = || Notification::new(3, 10);
    let mut rest = body.clone();
    let withdrawn = field(&mut rest).ok_or_else(malformed_list)?;
    let mut attributes = field(&mut rest).ok_or_else(malformed_list)?;
    // RFC 7606, section 5.3: prefixes that cannot be told apart cannot be withdrawn either.
    let mut received = Received {
        withdrawn: prefixes(&withdrawn, Family::Ipv4).ok_or_else(invalid_network)?,
        announced: prefixes(&rest, Family::Ipv4).ok_or_else(invalid_network)?,
        ..Received::default()
    };
    let ipv4_announced = received.announced > 0;
    let mut seen = [false; 256];
    let mut multiprotocol_announced = false;
    while !attributes.is_empty() {
        let Some((flags, kind, value)) = attribute(&mut attributes) else {
            // RFC 7606, section 4: the block's own length still bounds it, and the prefixes after it are sound.
            received.withdraw.get_or_insert("an attribute overruns the block of attributes");
            break;
        };
        if std::mem::replace(&mut seen[usize::from(kind)], true) {
            // RFC 7606, section 3 (g).
            if matches!(kind, MP_REACH | MP_UNREACH) {
                return Err(malformed_list());
            }
            received.discarded += 1;
            continue;
        }
        match flags_of(kind) {
            None if flags & OPTIONAL == 0 => return Err(Notification::with_data(3, 2, &wire(flags, kind, &value))),
            None => continue,
            Some(expected) if flags & (OPTIONAL | TRANSITIVE) != expected => {
                received.withdraw.get_or_insert("an attribute's flags do not fit its type");
                // What it says is read all the same: its prefixes must be known to be withdrawn.
            }
            Some(_) => {}
        }
        match kind {
            MP_REACH => {
                let count =
                    reach(&value, context).ok_or_else(|| Notification::with_data(3, 9, &wire(flags, kind, &value)))?;
                multiprotocol_announced |= count > 0;
                received.announced += count;
            }
            MP_UNREACH => {
                let count = unreach(&value, context)
                    .ok_or_else(|| Notification::with_data(3, 9, &wire(flags, kind, &value)))?;
                received.withdrawn += count;
            }
            _ => match judge(kind, &value, context) {
                Disposition::Fine => {}
                Disposition::Discard => received.discarded += 1,
                Disposition::Withdraw(why) => {
                    received.withdraw.get_or_insert(why);
                }
            },
        }
    }
    // RFC 7606, section 3 (d). MP_REACH_NLRI brings a next hop of its own.
    let has = |kind: u8| seen[usize::from(kind)];
    if ipv4_announced || multiprotocol_announced {
        let missing = !has(ORIGIN)
            || !has(AS_PATH)
            || (ipv4_announced && !has(NEXT_HOP))
            || (context.internal && !has(LOCAL_PREF));
        if missing {
            received.withdraw.get_or_insert("a mandatory attribute is missing");
        }
    }
    Ok(received)
}

/// The disposition of an attribute that is neither MP_REACH_NLRI nor MP_UNREACH_NLRI (RFC 7606, section 7).
fn judge(kind: u8, value: &[u8], context: Context) -> Disposition {
    let withdraw_unless = |fine: bool, why| if fine { Disposition::Fine } else { Disposition::Withdraw(why) };
    let discard_unless = |fine: bool| if fine { Disposition::Fine } else { Disposition::Discard };
    let list_of = |octets: usize| !value.is_empty() && value.len().is_multiple_of(octets);
    match kind {
        ORIGIN => withdraw_unless(matches!(value, [0..=2]), "ORIGIN is malformed"),
        AS_PATH => withdraw_unless(as_path(value, if context.four_octet_as { 4 } else { 2 }), "AS_PATH is malformed"),
        NEXT_HOP => withdraw_unless(value.len() == 4, "NEXT_HOP is malformed"),
        MED => withdraw_unless(value.len() == 4, "MULTI_EXIT_DISC is malformed"),
        // These three have no business on an external session (RFC 7606, sections 7.5, 7.9 and 7.10).
        LOCAL_PREF | ORIGINATOR_ID | CLUSTER_LIST if !context.internal => Disposition::Discard,
        LOCAL_PREF => withdraw_unless(value.len() == 4, "LOCAL_PREF is malformed"),
        ORIGINATOR_ID => withdraw_unless(value.len() == 4, "ORIGINATOR_ID is malformed"),
        CLUSTER_LIST => withdraw_unless(list_of(4), "CLUSTER_LIST is malformed"),
        ATOMIC_AGGREGATE => discard_unless(value.is_empty()),
        AGGREGATOR => discard_unless(value.len() == if context.four_octet_as { 8 } else { 6 }),
        COMMUNITIES => withdraw_unless(list_of(4), "COMMUNITIES is malformed"),
        EXTENDED_COMMUNITIES => withdraw_unless(list_of(8), "EXTENDED COMMUNITIES is malformed"),
        // RFC 8092, section 6.
        LARGE_COMMUNITIES => withdraw_unless(list_of(12), "LARGE_COMMUNITY is malformed"),
        // RFC 6793, section 6; from a speaker of four octets they say nothing (section 4.1).
        AS4_PATH => discard_unless(!context.four_octet_as && as_path(value, 4)),
        AS4_AGGREGATOR => discard_unless(!context.four_octet_as && value.len() == 8),
        _ => Disposition::Fine,
    }
}

/// Is this a list of segments, each of a known type, not empty, and whole (RFC 7606, section 7.2)?
fn as_path(mut value: &[u8], octets: usize) -> bool {
    while !value.is_empty() {
        // AS_SET, AS_SEQUENCE, and the confederation's two (RFC 5065).
        let [1..=4, count @ 1..=255, rest @ ..] = value else { return false };
        let Some(rest) = rest.get(usize::from(*count) * octets..) else { return false };
        value = rest;
    }
    true
}

/// How many prefixes an MP_REACH_NLRI announces (RFC 4760, section 3); nothing if they cannot be told.
fn reach(value: &Bytes, context: Context) -> Option<usize> {
    let mut value = value.clone();
    let (afi, safi, next_hop) = (value.try_get_u16().ok()?, value.try_get_u8().ok()?, value.try_get_u8().ok()?);
    if value.len() < usize::from(next_hop) + 1 {
        return None;
    }
    // The next hop, and an octet that is reserved.
    value.advance(usize::from(next_hop) + 1);
    let Some(family) = Family::from_afi_safi(afi, safi).filter(|&family| context.families.contains(family)) else {
        // Not offered by us, so not ours to judge (RFC 4760, section 7).
        return Some(0);
    };
    let lengths: &[u8] = match family {
        Family::Ipv4 => &[4],
        // One global address, or with a link-local one after it (RFC 2545, section 3).
        Family::Ipv6 => &[16, 32],
    };
    if !lengths.contains(&next_hop) {
        return None;
    }
    prefixes(&value, family)
}

/// How many prefixes an MP_UNREACH_NLRI withdraws (RFC 4760, section 4); nothing if they cannot be told.
fn unreach(value: &Bytes, context: Context) -> Option<usize> {
    let mut value = value.clone();
    let (afi, safi) = (value.try_get_u16().ok()?, value.try_get_u8().ok()?);
    match Family::from_afi_safi(afi, safi).filter(|&family| context.families.contains(family)) {
        Some(family) => prefixes(&value, family),
        None => Some(0),
    }
}

/// How many prefixes these octets are; nothing if one is too long for its family or is cut off.
fn prefixes(mut octets: &[u8], family: Family) -> Option<usize> {
    let mut count = 0;
    while let Some((&bits, rest)) = octets.split_first() {
        if bits > family.bits() {
            return None;
        }
        octets = rest.get(usize::from(bits.div_ceil(8))..)?;
        count += 1;
    }
    Some(count)
}

/// Cuts off a field with a two-octet length before it.
fn field(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::from(rest.try_get_u16().ok()?);
    (length <= rest.len()).then(|| rest.split_to(length))
}

/// Cuts off one attribute: flags, type and value.
fn attribute(rest: &mut Bytes) -> Option<(u8, u8, Bytes)> {
    let (flags, kind) = (rest.try_get_u8().ok()?, rest.try_get_u8().ok()?);
    let length = match flags & EXTENDED_LENGTH {
        0 => usize::from(rest.try_get_u8().ok()?),
        _ => usize::from(rest.try_get_u16().ok()?),
    };
    (length <= rest.len()).then(|| (flags, kind, rest.split_to(length)))
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
