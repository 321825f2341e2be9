//! Path attributes: what each says, the form it must have, and what becomes of a route where it has not.

use super::update::{Context, Fault};
use std::fmt;
use std::net::Ipv4Addr;

/// What a route says of itself besides prefix and next hop. Equal for many routes of a table, and made to be shared:
/// lists that are empty take no memory, and equal values have equal hashes.
///
/// Attributes that we do not know are not kept: no route that is received is ever passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// ORIGIN (RFC 4271, section 5.1.1).
    pub origin: Origin,
    /// AS_PATH (section 5.1.2), merged with AS4_PATH where the neighbour writes two octets.
    pub as_path: AsPath,
    /// MULTI_EXIT_DISC (section 5.1.4).
    pub med: Option<u32>,
    /// LOCAL_PREF (section 5.1.5); from internal neighbours only.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE (section 5.1.6).
    pub atomic_aggregate: bool,
    /// AGGREGATOR (section 5.1.7), merged with AS4_AGGREGATOR.
    pub aggregator: Option<Aggregator>,
    /// COMMUNITIES (RFC 1997), in the order in which they came.
    pub communities: Box<[Community]>,
    /// EXTENDED COMMUNITIES (RFC 4360).
    pub extended_communities: Box<[ExtendedCommunity]>,
    /// LARGE_COMMUNITY (RFC 8092).
    pub large_communities: Box<[LargeCommunity]>,
    /// ORIGINATOR_ID (RFC 4456); from internal neighbours only.
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456); from internal neighbours only.
    pub cluster_list: Box<[u32]>,
    /// ONLY_TO_CUSTOMER (RFC 9234, section 5): the AS that let the route go downhill first.
    pub only_to_customer: Option<u32>,
}

/// Where a route came from in the first place; what is less is better (RFC 4271, section 9.1.2.2 (b)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From inside its AS.
    #[default]
    Igp,
    /// By the protocol EGP.
    Egp,
    /// By other means.
    Incomplete,
}

impl Origin {
    fn from_wire(octet: u8) -> Option<Origin> {
        [Origin::Igp, Origin::Egp, Origin::Incomplete].get(usize::from(octet)).copied()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Origin::Igp => "IGP",
            Origin::Egp => "EGP",
            Origin::Incomplete => "incomplete",
        })
    }
}

/// Who aggregated a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    /// Its AS.
    pub asn: u32,
    /// Its router identifier.
    pub router_id: Ipv4Addr,
}

/// A standard community (RFC 1997).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

impl Community {
    /// GRACEFUL_SHUTDOWN: the route will go soon (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);
    /// BLACKHOLE: packets for this prefix are to be dropped (RFC 7999).
    pub const BLACKHOLE: Community = Community(0xffff_029a);
    /// NO_EXPORT: not beyond the AS (RFC 1997).
    pub const NO_EXPORT: Community = Community(0xffff_ff01);
    /// NO_ADVERTISE: to no other speaker (RFC 1997).
    pub const NO_ADVERTISE: Community = Community(0xffff_ff02);
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// An extended community (RFC 4360), as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub [u8; 8]);

impl fmt::Display for ExtendedCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", u64::from_be_bytes(self.0))
    }
}

/// A large community (RFC 8092): who defines it, and two numbers of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity(pub [u32; 3]);

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [administrator, first, second] = self.0;
        write!(f, "{administrator}:{first}:{second}")
    }
}

/// The ASes a route went through, the last one first. One allocation, whatever its segments: each is a word of its kind
/// and count, and then its numbers.
///
/// ```text
/// |  kind << 8 | count  |  AS  |  AS  |  ...  |  kind << 8 | count  |  AS  |  ...
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath(Box<[u32]>);

/// What a part of a path is. The confederation's two (RFC 5065) have no place here: we are in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// AS_SET: one or more of these, in no order.
    Set = 1,
    /// AS_SEQUENCE: these, one after the other.
    Sequence = 2,
}

/// A part of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// What it is.
    pub kind: SegmentKind,
    /// Its ASes: 1 to 255 of them.
    pub numbers: &'a [u32],
}

impl AsPath {
    /// A path of one AS_SEQUENCE; of several, if there are more than 255 numbers.
    pub fn sequence(numbers: &[u32]) -> AsPath {
        let mut words = Vec::with_capacity(numbers.len() + numbers.len().div_ceil(255));
        for part in numbers.chunks(255) {
            put_segment(&mut words, Segment { kind: SegmentKind::Sequence, numbers: part });
        }
        AsPath(words.into())
    }

    /// Its parts, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let mut words = &self.0[..];
        std::iter::from_fn(move || {
            let (&head, rest) = words.split_first()?;
            let (numbers, rest) = rest.split_at((head & 0xff) as usize);
            words = rest;
            let kind = if head >> 8 == SegmentKind::Set as u32 { SegmentKind::Set } else { SegmentKind::Sequence };
            Some(Segment { kind, numbers })
        })
    }

    /// How long it is where routes are compared: a set counts as one (RFC 4271, section 9.1.2.2 (a)).
    pub fn length(&self) -> usize {
        self.segments().map(|segment| segment.length()).sum()
    }

    /// The AS that the route came from last: the neighbour's, unless that is a route server. Nothing if the path is
    /// empty or begins with a set.
    pub fn first(&self) -> Option<u32> {
        let segment = self.segments().next().filter(|segment| segment.kind == SegmentKind::Sequence)?;
        segment.numbers.first().copied()
    }

    /// The AS that announced it first (RFC 6811, section 2). Nothing if the path is empty or ends with a set.
    pub fn origin(&self) -> Option<u32> {
        let segment = self.segments().last().filter(|segment| segment.kind == SegmentKind::Sequence)?;
        segment.numbers.last().copied()
    }

    /// Has the route been through this AS?
    pub fn contains(&self, asn: u32) -> bool {
        self.segments().any(|segment| segment.numbers.contains(&asn))
    }

    /// Reads what [`well_formed`] found good.
    fn read(mut value: &[u8], octets: usize) -> AsPath {
        let mut words = Vec::with_capacity(as_path_words(value, octets).unwrap_or(0));
        while let [kind, count, rest @ ..] = value {
            let (numbers, rest) = rest.split_at(usize::from(*count) * octets);
            // Segments of a confederation are left out where they are no error: in AS4_PATH (RFC 6793, section 3).
            if *kind <= SegmentKind::Sequence as u8 {
                words.push(u32::from(*kind) << 8 | u32::from(*count));
                words.extend(numbers.chunks_exact(octets).map(number));
            }
            value = rest;
        }
        AsPath(words.into())
    }

    /// The path of which a neighbour of two octets passed on `as4_path` unread: what was put before that since then, and
    /// then that (RFC 6793, section 4.2.3).
    fn merged(self, as4_path: &AsPath) -> AsPath {
        let Some(mut before) = self.length().checked_sub(as4_path.length()) else { return self };
        let mut words = Vec::with_capacity(self.0.len());
        for segment in self.segments() {
            if before == 0 {
                break;
            }
            let taken = match segment.kind {
                SegmentKind::Set => segment,
                SegmentKind::Sequence => {
                    let count = before.min(segment.numbers.len());
                    Segment { numbers: &segment.numbers[..count], ..segment }
                }
            };
            before -= taken.length();
            put_segment(&mut words, taken);
        }
        words.extend_from_slice(&as4_path.0);
        AsPath(words.into())
    }
}

impl Segment<'_> {
    fn length(&self) -> usize {
        match self.kind {
            SegmentKind::Set => 1,
            SegmentKind::Sequence => self.numbers.len(),
        }
    }
}

fn put_segment(words: &mut Vec<u32>, segment: Segment) {
    words.push((segment.kind as u32) << 8 | segment.numbers.len() as u32);
    words.extend_from_slice(segment.numbers);
}

impl fmt::Display for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for segment in self.segments() {
            let numbers: Vec<String> = segment.numbers.iter().map(u32::to_string).collect();
            match segment.kind {
                SegmentKind::Sequence => write!(f, "{space}{}", numbers.join(" "))?,
                SegmentKind::Set => write!(f, "{space}{{{}}}", numbers.join(","))?,
            }
            space = " ";
        }
        Ok(())
    }
}

pub(super) const OPTIONAL: u8 = 0x80;
pub(super) const TRANSITIVE: u8 = 0x40;
/// The length has two octets.
pub(super) const EXTENDED_LENGTH: u8 = 0x10;

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
const MED: u8 = 4;
pub(super) const LOCAL_PREF: u8 = 5;
const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const COMMUNITIES: u8 = 8;
const ORIGINATOR_ID: u8 = 9;
const CLUSTER_LIST: u8 = 10;
pub(super) const MP_REACH: u8 = 14;
pub(super) const MP_UNREACH: u8 = 15;
const EXTENDED_COMMUNITIES: u8 = 16;
const AS4_PATH: u8 = 17;
const AS4_AGGREGATOR: u8 = 18;
const LARGE_COMMUNITIES: u8 = 32;
const ONLY_TO_CUSTOMER: u8 = 35;

/// The form of an attribute's value.
#[derive(Clone, Copy)]
enum Form {
    /// One octet: 0, 1 or 2.
    Origin,
    /// Segments, each of a known kind, not empty and whole, with no AS 0 in them (RFC 7607). `four` are of four octets
    /// whatever was negotiated.
    Path { four: bool },
    /// Four octets that are a host's address (RFC 4271, section 6.3).
    Host,
    /// So many octets.
    Octets(usize),
    /// An AS number, not 0, and a router identifier.
    Aggregator { four: bool },
    /// One or more items of so many octets.
    List(usize),
    /// Read by itself, in `update`.
    Multiprotocol,
}

/// What is done about an attribute that is malformed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Malformed {
    /// Its routes are treated as withdrawn.
    Withdraw,
    /// It alone is left out.
    Discard,
    /// It is left out even if it is well formed: it has no business here.
    Unwelcome,
    /// The session ends, as its routes cannot be told.
    Reset,
}

/// One row of RFC 7606.
pub(super) struct Rule {
    kind: u8,
    pub(super) name: &'static str,
    /// Optional and transitive bits. Where they are wrong, the routes are withdrawn (RFC 7606, section 3 (c)).
    flags: u8,
    form: Form,
    external: Malformed,
    internal: Malformed,
}

const WELL_KNOWN: u8 = TRANSITIVE;
const PASSED_ON: u8 = OPTIONAL | TRANSITIVE;

/// Every attribute that we read, with the section of RFC 7606 (where no other RFC is named) that says what becomes of a
/// malformed one.
#[rustfmt::skip]
const RULES: &[Rule] = {
    use Malformed::{Discard, Reset, Unwelcome, Withdraw};
    const fn rule(kind: u8, name: &'static str, flags: u8, form: Form, external: Malformed, internal: Malformed) -> Rule {
        Rule { kind, name, flags, form, external, internal }
    }
    &[
        /* 7.1  */ rule(ORIGIN,               "ORIGIN",               WELL_KNOWN, Form::Origin,                     Withdraw,  Withdraw),
        /* 7.2  */ rule(AS_PATH,              "AS_PATH",              WELL_KNOWN, Form::Path { four: false },       Withdraw,  Withdraw),
        /* 7.3  */ rule(NEXT_HOP,             "NEXT_HOP",             WELL_KNOWN, Form::Host,                       Withdraw,  Withdraw),
        /* 7.4  */ rule(MED,                  "MULTI_EXIT_DISC",      OPTIONAL,   Form::Octets(4),                  Withdraw,  Withdraw),
        /* 7.5  */ rule(LOCAL_PREF,           "LOCAL_PREF",           WELL_KNOWN, Form::Octets(4),                  Unwelcome, Withdraw),
        /* 7.6  */ rule(ATOMIC_AGGREGATE,     "ATOMIC_AGGREGATE",     WELL_KNOWN, Form::Octets(0),                  Discard,   Discard),
        /* 7.7  */ rule(AGGREGATOR,           "AGGREGATOR",           PASSED_ON,  Form::Aggregator { four: false }, Discard,   Discard),
        /* 7.8  */ rule(COMMUNITIES,          "COMMUNITIES",          PASSED_ON,  Form::List(4),                    Withdraw,  Withdraw),
        /* 7.9  */ rule(ORIGINATOR_ID,        "ORIGINATOR_ID",        OPTIONAL,   Form::Octets(4),                  Unwelcome, Withdraw),
        /* 7.10 */ rule(CLUSTER_LIST,         "CLUSTER_LIST",         OPTIONAL,   Form::List(4),                    Unwelcome, Withdraw),
        /* 7.11 */ rule(MP_REACH,             "MP_REACH_NLRI",        OPTIONAL,   Form::Multiprotocol,              Reset,     Reset),
        /* 7.12 */ rule(MP_UNREACH,           "MP_UNREACH_NLRI",      OPTIONAL,   Form::Multiprotocol,              Reset,     Reset),
        /* 7.14 */ rule(EXTENDED_COMMUNITIES, "EXTENDED COMMUNITIES", PASSED_ON,  Form::List(8),                    Withdraw,  Withdraw),
        /* RFC 6793, section 6 */
                   rule(AS4_PATH,             "AS4_PATH",             PASSED_ON,  Form::Path { four: true },        Discard,   Discard),
                   rule(AS4_AGGREGATOR,       "AS4_AGGREGATOR",       PASSED_ON,  Form::Aggregator { four: true },  Discard,   Discard),
        /* RFC 8092, section 6 */
                   rule(LARGE_COMMUNITIES,    "LARGE_COMMUNITY",      PASSED_ON,  Form::List(12),                   Withdraw,  Withdraw),
        /* RFC 9234, section 5 */
                   rule(ONLY_TO_CUSTOMER,     "ONLY_TO_CUSTOMER",     PASSED_ON,  Form::Octets(4),                  Withdraw,  Withdraw),
    ]
};

/// The row of a type, if we read it.
pub(super) fn rule(kind: u8) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.kind == kind)
}

/// What is to be done with an attribute whose form is not [`Form::Multiprotocol`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Read,
    Discard,
    Withdraw(Fault),
}

impl Rule {
    /// Are these the flags of its type? The partial and extended length bits may be either.
    pub(super) fn has_flags(&self, flags: u8) -> bool {
        flags & (OPTIONAL | TRANSITIVE) == self.flags
    }

    /// Judges an attribute of this type.
    pub(super) fn judge(&self, flags: u8, value: &[u8], context: &Context) -> Verdict {
        let malformed = if context.internal { self.internal } else { self.external };
        // Section 4.1 of RFC 6793: between speakers of four octets these two say nothing.
        let idle = context.four_octet_as && matches!(self.kind, AS4_PATH | AS4_AGGREGATOR);
        if malformed == Malformed::Unwelcome || idle {
            Verdict::Discard
        } else if !self.has_flags(flags) {
            Verdict::Withdraw(Fault::Flags(self.name))
        } else if well_formed(self.form, value, context) {
            Verdict::Read
        } else if malformed == Malformed::Discard {
            Verdict::Discard
        } else {
            Verdict::Withdraw(Fault::Malformed(self.name))
        }
    }
}

fn well_formed(form: Form, value: &[u8], context: &Context) -> bool {
    match form {
        Form::Origin => matches!(value, [0..=2]),
        Form::Path { four: false } => {
            // RFC 5065, section 5: from who is not in our confederation its segments are an error, and we are in none.
            as_path_words(value, context.as_octets()).is_some() && !has_confederation(value, context.as_octets())
        }
        Form::Path { four: true } => as_path_words(value, 4).is_some(),
        Form::Host => <[u8; 4]>::try_from(value).is_ok_and(|octets| is_host(octets.into())),
        Form::Octets(count) => value.len() == count,
        Form::Aggregator { four } => {
            let octets = if four { 4 } else { context.as_octets() };
            value.len() == octets + 4 && number(&value[..octets]) != 0
        }
        Form::List(item) => !value.is_empty() && value.len().is_multiple_of(item),
        Form::Multiprotocol => true,
    }
}

/// Can a packet be sent to it?
pub(super) fn is_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !address.is_broadcast()
}

/// How many words [`AsPath`] takes for it; nothing if it is no path.
fn as_path_words(mut value: &[u8], octets: usize) -> Option<usize> {
    let mut words = 0;
    while !value.is_empty() {
        // AS_SET, AS_SEQUENCE, and the confederation's two.
        let [1..=4, count @ 1..=255, rest @ ..] = value else { return None };
        let (numbers, rest) = rest.split_at_checked(usize::from(*count) * octets)?;
        if numbers.chunks_exact(octets).any(|asn| number(asn) == 0) {
            return None;
        }
        words += 1 + usize::from(*count);
        value = rest;
    }
    Some(words)
}

fn has_confederation(mut value: &[u8], octets: usize) -> bool {
    while let [kind, count, rest @ ..] = value {
        if *kind > SegmentKind::Sequence as u8 {
            return true;
        }
        value = rest.get(usize::from(*count) * octets..).unwrap_or_default();
    }
    false
}

impl Attributes {
    /// Writes them as they stand in an UPDATE, in the order of their types (RFC 4271, section 5). A next hop that is not an
    /// IPv4 address is in MP_REACH_NLRI, which is not written here. Without `four_octet_as`, what does not fit two octets
    /// stands in AS4_PATH and AS4_AGGREGATOR (RFC 6793, section 4.2.2).
    pub(super) fn write(&self, out: &mut Vec<u8>, next_hop: Option<Ipv4Addr>, four_octet_as: bool) {
        let some = |number: Option<u32>| number.map(u32::to_be_bytes).into_iter().flatten().collect::<Vec<_>>();
        let fits = |asn: u32| four_octet_as || asn <= u32::from(u16::MAX);
        let long_path = self.as_path.segments().any(|segment| !segment.numbers.iter().all(|&asn| fits(asn)));
        let long_aggregator = self.aggregator.is_some_and(|aggregator| !fits(aggregator.asn));
        put(out, ORIGIN, &[self.origin as u8]);
        put(out, AS_PATH, &self.as_path.wire(four_octet_as));
        if let Some(address) = next_hop {
            put(out, NEXT_HOP, &address.octets());
        }
        put_some(out, MED, &some(self.med));
        put_some(out, LOCAL_PREF, &some(self.local_pref));
        if self.atomic_aggregate {
            put(out, ATOMIC_AGGREGATE, &[]);
        }
        if let Some(aggregator) = self.aggregator {
            put(out, AGGREGATOR, &aggregator.wire(four_octet_as));
        }
        put_some(out, COMMUNITIES, &octets(&self.communities, |community| community.0.to_be_bytes()));
        put_some(
            out,
            ORIGINATOR_ID,
            &self.originator_id.map(|id| id.octets()).into_iter().flatten().collect::<Vec<_>>(),
        );
        put_some(out, CLUSTER_LIST, &octets(&self.cluster_list, |cluster| cluster.to_be_bytes()));
        put_some(out, EXTENDED_COMMUNITIES, &octets(&self.extended_communities, |community| community.0));
        if long_path {
            put(out, AS4_PATH, &self.as_path.wire(true));
        }
        if let Some(aggregator) = self.aggregator.filter(|_| long_aggregator) {
            put(out, AS4_AGGREGATOR, &aggregator.wire(true));
        }
        let large = self.large_communities.iter().flat_map(|community| community.0);
        put_some(out, LARGE_COMMUNITIES, &large.flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        put_some(out, ONLY_TO_CUSTOMER, &some(self.only_to_customer));
    }
}

impl AsPath {
    fn wire(&self, four_octet_as: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for segment in self.segments() {
            out.extend_from_slice(&[segment.kind as u8, segment.numbers.len() as u8]);
            segment.numbers.iter().for_each(|&asn| put_as(&mut out, asn, four_octet_as));
        }
        out
    }
}

impl Aggregator {
    fn wire(self, four_octet_as: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        put_as(&mut out, self.asn, four_octet_as);
        out.extend_from_slice(&self.router_id.octets());
        out
    }
}

fn put_as(out: &mut Vec<u8>, asn: u32, four_octet_as: bool) {
    match u16::try_from(asn) {
        _ if four_octet_as => out.extend_from_slice(&asn.to_be_bytes()),
        Ok(short) => out.extend_from_slice(&short.to_be_bytes()),
        Err(_) => out.extend_from_slice(&super::message::AS_TRANS.to_be_bytes()),
    }
}

/// Writes an attribute with the flags of its type, and the extended length where it is needed. MP_REACH_NLRI and
/// MP_UNREACH_NLRI always have it: how long their lists of prefixes will be is not known where they begin.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let flags = rule(kind).map_or(OPTIONAL, |rule| rule.flags);
    match u8::try_from(value.len()) {
        Ok(length) if !matches!(kind, MP_REACH | MP_UNREACH) => out.extend_from_slice(&[flags, kind, length]),
        _ => {
            out.extend_from_slice(&[flags | EXTENDED_LENGTH, kind]);
            out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// An empty value is none.
fn put_some(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if !value.is_empty() {
        put(out, kind, value);
    }
}

fn octets<T, const N: usize>(list: &[T], item: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    list.iter().flat_map(item).collect()
}

/// A number of two or four octets.
fn number(octets: &[u8]) -> u32 {
    octets.iter().fold(0, |number, &octet| number << 8 | u32::from(octet))
}

/// Attributes in the making.
#[derive(Default)]
pub(super) struct Builder<'a> {
    attributes: Attributes,
    pub(super) next_hop: Option<Ipv4Addr>,
    as4_path: Option<&'a [u8]>,
    as4_aggregator: Option<&'a [u8]>,
}

impl<'a> Builder<'a> {
    /// Takes what [`Rule::judge`] let pass.
    pub(super) fn read(&mut self, kind: u8, value: &'a [u8], context: &Context) {
        let out = &mut self.attributes;
        match kind {
            ORIGIN => out.origin = value.first().and_then(|&octet| Origin::from_wire(octet)).unwrap_or_default(),
            AS_PATH => out.as_path = AsPath::read(value, context.as_octets()),
            NEXT_HOP => self.next_hop = Some(number(value).into()),
            MED => out.med = Some(number(value)),
            LOCAL_PREF => out.local_pref = Some(number(value)),
            ATOMIC_AGGREGATE => out.atomic_aggregate = true,
            AGGREGATOR => out.aggregator = Some(aggregator(value, context.as_octets())),
            COMMUNITIES => out.communities = list(value, |item: &[u8; 4]| Community(u32::from_be_bytes(*item))),
            ORIGINATOR_ID => out.originator_id = Some(number(value).into()),
            CLUSTER_LIST => out.cluster_list = list(value, |item| u32::from_be_bytes(*item)),
            EXTENDED_COMMUNITIES => out.extended_communities = list(value, |item| ExtendedCommunity(*item)),
            AS4_PATH => self.as4_path = Some(value),
            AS4_AGGREGATOR => self.as4_aggregator = Some(value),
            LARGE_COMMUNITIES => {
                out.large_communities = list(value, |item: &[u8; 12]| {
                    LargeCommunity([number(&item[..4]), number(&item[4..8]), number(&item[8..])])
                });
            }
            ONLY_TO_CUSTOMER => out.only_to_customer = Some(number(value)),
            _ => {}
        }
    }

    /// Puts together what a neighbour of two octets had to say in two places (RFC 6793, section 4.2.3).
    pub(super) fn finish(self) -> Attributes {
        let mut out = self.attributes;
        match (out.aggregator, self.as4_aggregator) {
            // Aggregated since then by a speaker of two octets, which knew nothing of AS4_PATH: that is out of date.
            (Some(since), Some(_)) if since.asn != u32::from(super::message::AS_TRANS) => return out,
            (Some(_), Some(value)) => out.aggregator = Some(aggregator(value, 4)),
            _ => {}
        }
        if let Some(value) = self.as4_path {
            out.as_path = out.as_path.merged(&AsPath::read(value, 4));
        }
        out
    }
}

fn aggregator(value: &[u8], octets: usize) -> Aggregator {
    let (asn, router_id) = value.split_at(octets);
    Aggregator { asn: number(asn), router_id: number(router_id).into() }
}

fn list<T, const N: usize>(value: &[u8], item: impl Fn(&[u8; N]) -> T) -> Box<[T]> {
    value.as_chunks().0.iter().map(item).collect()
}

#[cfg(test)]
mod tests;
