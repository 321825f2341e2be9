//! Policy: which links the packets of a class take, up and down.
//!
//! A policy is a list of classes. A packet is of the first class that matches it; one that matches everything is always the
//! last. Box and core have the same policy: the box decides by it how packets go up, the core how they come down. So what is
//! matched is said from the site's point of view, both ways: `src` is the site's end of a flow, `dst` the end outside.
//!
//! ```text
//!                      src, sport                              dst, dport
//!   host of the site ------------- box ===links=== core ------------------ host outside
//!                                  up -->       <-- down
//! ```
//!
//! Every class has links for each direction, and a mode that says how they are used. Whatever is in use fails over as without
//! policy: a list says which link is wanted, and the health of the paths which can be had.

mod index;

use crate::MAX_SLOTS;
use crate::outer::Outer;
use crate::packet::IpView;
use index::Index;
use ipnet::IpNet;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the site: the box decides.
    Up,
    /// To the site: the core decides.
    Down,
}

/// A class's place in its policy.
pub type ClassId = u8;

/// The name of the class that is there without being written.
pub const REST: &str = "rest";

/// A policy that can be put in force: checked, and with a last class that matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    links: [Link; MAX_SLOTS],
    classes: Vec<Class>,
    index: Index,
    /// The windows of its classes, each once.
    windows: Vec<Window>,
    /// For each class a bit set: its window's, by the place in `windows`. None: it is there at any time.
    within: Vec<u64>,
    zone: Option<Arc<str>>,
    hash: u64,
    when_isolated: WhenIsolated,
}

/// What becomes of the site's packets while no tunnel works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenIsolated {
    /// They wait for a tunnel, and are dropped when they are too old.
    #[default]
    Wait,
    /// New flows leave by the uplinks themselves, but those of classes that would rather be dropped than take another link.
    Direct,
}

/// The hash of no policy: FNV-1a of nothing.
pub const NO_POLICY: u64 = 0xcbf2_9ce4_8422_2325;

/// When the packets of a class are of it: some hours of some days of the week, as clocks at the site show them. A window
/// that ends on the day after belongs to the day on which it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The days on which it begins, a bit each; the lowest is Monday's.
    pub days: u8,
    /// The minute of the day at which it begins, 0 to 1439.
    pub from: u16,
    /// The minute at which it ends, 1 to 1440: of the same day if that is after `from`, else of the next.
    pub until: u16,
}

/// As many windows as a policy may have: a bit each says which are open.
pub const MOST_WINDOWS: usize = 64;

/// What is said of a link, by its slot. Links work without any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name for people.
    pub name: Option<Arc<str>>,
    /// What it carries up, in bits a second; `None`: that is measured.
    pub rate_up: Option<u64>,
    /// What it carries down, in bits a second; `None`: that is measured.
    pub rate_down: Option<u64>,
    /// The only direction in which it is used; `None`: both.
    pub only: Option<Direction>,
    /// How much it may carry; `None`: whatever comes.
    pub metered: Option<Metered>,
    /// What the outer headers of its datagrams show, both ways.
    pub outer: Outer,
}

/// A month's allowance of a link. What has been used of it, and what day it is, is for the box to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Octets a month, both ways together.
    pub cap: u64,
    /// The day on which a month begins, 1 to 31; where a month is shorter, its last.
    pub reset_day: u8,
    /// Days on which nothing is counted, a bit each; the lowest is Monday's.
    pub free: u8,
    /// The places of the classes that go on to take it beyond its cap.
    pub over: Vec<ClassId>,
}

impl Link {
    /// May packets of this direction take it at all?
    pub fn takes(&self, direction: Direction) -> bool {
        self.only.is_none_or(|only| only == direction)
    }

    /// What it carries in this direction, in bits a second, if that is said.
    pub fn rate(&self, direction: Direction) -> Option<u64> {
        match direction {
            Direction::Up => self.rate_up,
            Direction::Down => self.rate_down,
        }
    }
}

/// Packets that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its name for people; each class has another.
    pub name: Arc<str>,
    /// What it is made of.
    pub matches: Matches,
    /// How its packets go up.
    pub up: Treatment,
    /// How they come down.
    pub down: Treatment,
    /// What goes first where a link is full; `None`: as the packet's own DSCP says.
    pub priority: Option<Priority>,
    /// Its flows leave by an uplink itself and come back by it, and what is said of tunnels is for those that began
    /// elsewhere; `None`: all go by tunnels.
    pub direct: Option<Direct>,
    /// By whom its packets leave a core; `None`: as all of their site's.
    pub egress: Option<Egress>,
}

/// An egress choice of the core's: by which transits packets leave, the preferred first. Only the core knows which there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Its name.
    pub name: Arc<str>,
    /// The place of its TUN among those that the core has; `None` at a box.
    pub tun: Option<u8>,
}

/// Local breakout: flows that the site begins leave by an uplink, translated to its address ([`crate::direct`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The slots of the uplinks, the most wanted first. Empty: all of them, in the order that holds without policy.
    pub links: Vec<u8>,
    /// What happens while none of them can be used: "any" is by the tunnels.
    pub otherwise: Otherwise,
}

/// By which links packets go in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Treatment {
    /// The slots of the links, the most wanted first. Empty: all of them, in the order that holds without policy.
    pub links: Vec<u8>,
    /// How the links are used.
    pub mode: Mode,
    /// A link beyond it is not used while another is within.
    pub limit: Limit,
    /// What happens while none of the links can be used.
    pub otherwise: Otherwise,
}

/// How the packets of a class are spread over its links (the goals of draft-ernst-generic-goals-and-benefits, section 3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All by the most wanted link that works.
    #[default]
    Prefer,
    /// Each flow by one link, drawn by these weights, one for each of the links.
    Share(Vec<u16>),
    /// Each flow by the link that has most room, and by another when that one is full.
    Balance,
    /// Each packet by so many links at once, 2 to [`MOST_COPIES`]; the first copy is delivered.
    Duplicate(u8),
    /// Each packet by the link by which it arrives first, put back in order at the other end.
    Bond,
}

/// What a link may be like at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// The time that a packet takes, one way: half of the round trip by the fastest path, and what this one is later.
    pub latency: Option<Duration>,
    /// Of a million packets, how many are lost.
    pub loss_ppm: Option<u32>,
    /// How much that time varies (RFC 6298's RTTVAR).
    pub jitter: Option<Duration>,
}

/// What happens to the packets of a class that can use none of its links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Otherwise {
    /// They take any other that works.
    #[default]
    Any,
    /// They are dropped.
    Drop,
}

/// What goes first where a link is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A call, a game: before everything else, and of no use after 200 ms.
    Realtime,
    /// The rest: by turns, a flow at a time.
    Normal,
    /// What nobody waits for (RFC 8622): when nothing else wants to go, and a sixteenth of what goes where that never is.
    Background,
}

/// What a packet must be like. All that is said must hold; of a list, one element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    /// Where the site's end lies; empty: anywhere.
    pub src: Vec<IpNet>,
    /// Where the end outside lies; empty: anywhere.
    pub dst: Vec<IpNet>,
    /// The numbers of the protocols above IP; empty: any.
    pub proto: Vec<u8>,
    /// The ports of the site's end; empty: any, and packets that show none (fragments but the first).
    pub sport: Vec<RangeInclusive<u16>>,
    /// The ports of the end outside; the same.
    pub dport: Vec<RangeInclusive<u16>>,
    /// Differentiated services codepoints (RFC 2474), a bit each; 0: any.
    pub dscp: u64,
    /// When it is sent; `None`: at any time.
    pub window: Option<Window>,
}

/// Why a policy was refused. What was in force stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// More classes than a policy may have.
    #[error("{0} classes: expected at most {MOST_CLASSES}")]
    TooMany(usize),
    /// More windows than a policy may have.
    #[error("more than {MOST_WINDOWS} different windows: expected that some classes have the same hours and days")]
    TooManyWindows {
        /// The place of the class that has one more.
        class: usize,
    },
    /// A class without a name of its own.
    #[error("there are two classes \"{name}\": give each a name of its own")]
    NameTwice {
        /// The place of the second.
        class: usize,
        /// The name.
        name: Arc<str>,
    },
    /// A class that no packet can be of.
    #[error(
        "no packet is ever of class \"{name}\": all that it matches is of \"{before}\" before it; put it in front of that"
    )]
    Unreachable {
        /// Its place.
        class: usize,
        /// Its name.
        name: Arc<str>,
        /// The name of the class that has all its packets.
        before: Arc<str>,
    },
    /// A slot that does not exist, or that a list names twice.
    #[error("class \"{name}\" names slot {slot}, which {problem}")]
    Slot {
        /// The place of the class.
        class: usize,
        /// Its name.
        name: Arc<str>,
        /// The slot.
        slot: u8,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl PolicyError {
    /// The place of the class that is wrong, if it is one.
    pub fn class(&self) -> Option<usize> {
        match self {
            PolicyError::TooMany(_) => None,
            PolicyError::TooManyWindows { class }
            | PolicyError::NameTwice { class, .. }
            | PolicyError::Unreachable { class, .. }
            | PolicyError::Slot { class, .. } => Some(*class),
        }
    }
}

/// As many as one octet of what is remembered for a flow and for a packet tells apart; nobody reads more.
pub const MOST_CLASSES: usize = 255;

/// By so many links at once a packet can be sent: as many of its transmissions are told apart in receipts.
pub const MOST_COPIES: u8 = 4;

impl Default for Policy {
    /// One class of everything, in the order that the links have.
    fn default() -> Self {
        let (links, windows, zone, when_isolated) = Default::default();
        let classes = vec![Class::rest()];
        let index = Index::new(&classes);
        Policy { links, classes, index, windows, within: vec![0], zone, hash: NO_POLICY, when_isolated }
    }
}

impl Class {
    fn rest() -> Self {
        Class::everything(REST)
    }

    /// A class of this name of everything, treated as without policy.
    pub fn everything(name: &str) -> Self {
        let (matches, up, down) = Default::default();
        Class { name: name.into(), matches, up, down, priority: None, direct: None, egress: None }
    }

    /// How its packets go this way.
    pub fn treatment(&self, direction: Direction) -> &Treatment {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

impl Policy {
    /// Checks these classes. What none of them matches is of one more, called [`REST`].
    pub fn new(links: [Link; MAX_SLOTS], mut classes: Vec<Class>) -> Result<Policy, PolicyError> {
        if classes.last().is_none_or(|last| last.matches != Matches::default()) {
            classes.push(Class::rest());
        }
        if classes.len() > MOST_CLASSES {
            return Err(PolicyError::TooMany(classes.len()));
        }
        for (at, class) in classes.iter().enumerate() {
            let name = &class.name;
            if classes[..at].iter().any(|other| other.name == *name) {
                return Err(PolicyError::NameTwice { class: at, name: name.clone() });
            }
            if let Some(before) = classes[..at].iter().find(|before| before.matches.covers(&class.matches)) {
                let before = before.name.clone();
                return Err(PolicyError::Unreachable { class: at, name: name.clone(), before });
            }
            let direct = class.direct.iter().map(|direct| &direct.links);
            for links in [&class.up.links, &class.down.links].into_iter().chain(direct) {
                for (place, &slot) in links.iter().enumerate() {
                    let problem = match slot {
                        _ if usize::from(slot) >= MAX_SLOTS => "does not exist; slots are 0 to 7",
                        _ if links[..place].contains(&slot) => "the list has twice",
                        _ => continue,
                    };
                    return Err(PolicyError::Slot { class: at, name: name.clone(), slot, problem });
                }
            }
        }
        let (mut windows, mut within) = (Vec::new(), Vec::new());
        for (at, class) in classes.iter().enumerate() {
            let Some(window) = class.matches.window else {
                within.push(0);
                continue;
            };
            let place = windows.iter().position(|other| *other == window).unwrap_or_else(|| {
                windows.push(window);
                windows.len() - 1
            });
            if place >= MOST_WINDOWS {
                return Err(PolicyError::TooManyWindows { class: at });
            }
            within.push(1 << place);
        }
        let (index, when_isolated) = (Index::new(&classes), WhenIsolated::default());
        Ok(Policy { links, classes, index, windows, within, zone: None, hash: NO_POLICY, when_isolated })
    }

    /// The same with the name of the time zone in which its windows are meant.
    pub fn in_zone(self, zone: Option<Arc<str>>) -> Policy {
        Policy { zone, ..self }
    }

    /// The same with the hash of what was written. Box and core tell each other theirs, which are to be the same.
    pub fn with_hash(self, hash: u64) -> Policy {
        Policy { hash, ..self }
    }

    /// The hash of what was written; [`NO_POLICY`] if nothing was.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The name of the time zone in which its windows are meant, as the tz database has it.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Its windows, each once. Which of them are open is for the caller to know: a bit each, by their places here.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The same, with something else while no tunnel works.
    pub fn with_isolation(self, when_isolated: WhenIsolated) -> Policy {
        Policy { when_isolated, ..self }
    }

    /// What becomes of the site's packets while no tunnel works.
    pub fn when_isolated(&self) -> WhenIsolated {
        self.when_isolated
    }

    /// Whether packets can be of a class while these windows are open.
    pub fn is_open(&self, class: usize, open: u64) -> bool {
        self.within.get(class).is_none_or(|window| window & !open == 0)
    }

    /// What is said of each link, by its slot.
    pub fn links(&self) -> &[Link; MAX_SLOTS] {
        &self.links
    }

    /// Its classes, in their order; the last matches everything.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Whether packets of a class take the link of a slot also when that is at its cap.
    pub(crate) fn goes_on(&self, slot: u8, class: ClassId) -> bool {
        let metered = self.links.get(usize::from(slot)).and_then(|link| link.metered.as_ref());
        metered.is_none_or(|metered| metered.over.contains(&class))
    }

    /// A class; the last, if there is none at this place (it may be of a policy that was in force before).
    pub(crate) fn class(&self, class: ClassId) -> &Class {
        &self.classes[usize::from(class).min(self.classes.len() - 1)]
    }

    /// Whether any class has a limit.
    pub(crate) fn limits(&self) -> bool {
        let limited = |treatment: &Treatment| treatment.limit != Limit::default();
        self.classes.iter().any(|class| limited(&class.up) || limited(&class.down))
    }

    /// Whether packets of any class leave this end, a core, by another choice than their site's.
    pub(crate) fn chooses_egress(&self) -> bool {
        self.classes.iter().any(|class| class.egress.as_ref().is_some_and(|egress| egress.tun.is_some()))
    }

    /// Whether packets of any class are bonded in this direction.
    pub(crate) fn bonds(&self, direction: Direction) -> bool {
        self.classes.iter().any(|class| class.treatment(direction).mode == Mode::Bond)
    }

    /// The order of the links for packets of a class that go in this direction.
    pub(crate) fn order(&self, class: ClassId, direction: Direction) -> Order<'_> {
        Order { links: &self.links, direction, class, treatment: self.class(class).treatment(direction) }
    }

    /// The class that a packet is of while these windows are open.
    pub fn classify(&self, facts: &Facts, open: u64) -> ClassId {
        for (word, mut classes) in self.index.matches(facts).into_iter().enumerate() {
            while classes != 0 {
                let class = word * 64 + classes.trailing_zeros() as usize;
                if self.is_open(class, open) {
                    // There are at most 255.
                    return class as ClassId;
                }
                classes &= classes - 1;
            }
        }
        // The last matches everything, at any time.
        (self.classes.len() - 1) as ClassId
    }
}

/// What is matched of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The site's end.
    pub src: IpAddr,
    /// The end outside.
    pub dst: IpAddr,
    /// The protocol above IP.
    pub proto: u8,
    /// The ports of both, the site's first, where the packet shows them.
    pub ports: Option<(u16, u16)>,
    /// The differentiated services codepoint, 0 to 63.
    pub dscp: u8,
}

impl Facts {
    /// Of a packet that goes in this direction.
    pub fn of(view: &IpView, packet: &[u8], direction: Direction) -> Facts {
        let (proto, dscp, ports) = (view.protocol, view.dscp(packet), view.ports(packet));
        match direction {
            Direction::Up => Facts { src: view.source, dst: view.destination, proto, ports, dscp },
            Direction::Down => {
                let ports = ports.map(|(source, destination)| (destination, source));
                Facts { src: view.destination, dst: view.source, proto, ports, dscp }
            }
        }
    }
}

impl Matches {
    /// Does a packet with these facts match, at a time that does?
    pub fn matches(&self, facts: &Facts) -> bool {
        let within = |list: &[IpNet], address| list.is_empty() || list.iter().any(|net| net.contains(&address));
        let port = |list: &[RangeInclusive<u16>], port: Option<u16>| {
            list.is_empty() || port.is_some_and(|port| list.iter().any(|range| range.contains(&port)))
        };
        // The cheapest first: with two hundred rules most are told by these.
        (self.dscp == 0 || self.dscp >> facts.dscp & 1 == 1)
            && (self.proto.is_empty() || self.proto.contains(&facts.proto))
            && port(&self.dport, facts.ports.map(|(_, dport)| dport))
            && port(&self.sport, facts.ports.map(|(sport, _)| sport))
            && within(&self.dst, facts.dst)
            && within(&self.src, facts.src)
    }

    /// Does this match all that the other one does? May say no where several elements together do, or longer hours.
    pub fn covers(&self, other: &Matches) -> bool {
        fn each<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            wide.is_empty()
                || (!narrow.is_empty() && narrow.iter().all(|one| wide.iter().any(|wide| covers(wide, one))))
        }
        let net = |wide: &IpNet, narrow: &IpNet| wide.contains(narrow);
        let range = |wide: &RangeInclusive<u16>, narrow: &RangeInclusive<u16>| {
            wide.start() <= narrow.start() && narrow.end() <= wide.end()
        };
        each(&self.src, &other.src, net)
            && each(&self.dst, &other.dst, net)
            && each(&self.proto, &other.proto, u8::eq)
            && each(&self.sport, &other.sport, range)
            && each(&self.dport, &other.dport, range)
            && (self.dscp == 0 || (other.dscp != 0 && other.dscp & !self.dscp == 0))
            && (self.window.is_none() || self.window == other.window)
    }
}

impl Treatment {
    /// How much a link is wanted that has this preference without policy: less is more. `None`: packets never take it.
    fn preference(&self, slot: u8, preference: u8) -> Option<Preference> {
        let some = |listed, place| Some(Preference { within_limit: true, listed, stands_by: false, place });
        match self.links.iter().position(|link| *link == slot) {
            // At most eight slots are in a list.
            Some(place) => some(true, place as u8),
            None if self.links.is_empty() => some(true, preference),
            None if self.otherwise == Otherwise::Drop => None,
            None => some(false, preference),
        }
    }

    /// The weight that a link has among those that share.
    pub(crate) fn weight(&self, slot: u8) -> u16 {
        let place = self.links.iter().position(|link| *link == slot);
        match (&self.mode, place) {
            (Mode::Share(weights), Some(place)) => weights.get(place).copied().unwrap_or(1),
            _ => 1,
        }
    }
}

/// In which order links are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    links: &'a [Link; MAX_SLOTS],
    direction: Direction,
    class: ClassId,
    pub(crate) treatment: &'a Treatment,
}

impl Order<'_> {
    /// How much the link of a slot is wanted that has this preference without policy, and is at its cap or not. `None`: packets
    /// never take it.
    pub(crate) fn preference(&self, slot: u8, preference: u8, capped: bool) -> Option<Preference> {
        let goes_on = |link: &Link| link.metered.as_ref().is_none_or(|metered| metered.over.contains(&self.class));
        let may = |link: &Link| link.takes(self.direction) && (!capped || goes_on(link));
        let takes = self.links.get(usize::from(slot)).is_none_or(may);
        self.treatment.preference(slot, preference).filter(|_| takes)
    }
}

/// How much a link is wanted. What is less is wanted more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preference {
    pub(crate) within_limit: bool,
    /// It is in the list of its class, or its class has none.
    pub(crate) listed: bool,
    /// The other path over its uplink is the one to be used.
    pub(crate) stands_by: bool,
    /// Its place in the list, or in the order that holds without policy.
    pub(crate) place: u8,
}

impl Preference {
    /// What all links have in common that are as good as this one, but for their order. Not which of two paths over a link is to
    /// be used: a link whose path that stands by is all that works is as good as another.
    pub(crate) fn tier(self) -> (bool, bool) {
        (!self.within_limit, !self.listed)
    }
}

impl PartialOrd for Preference {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Preference {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.tier(), self.stands_by, self.place).cmp(&(other.tier(), other.stands_by, other.place))
    }
}

impl Limit {
    /// To be within it again, what is measured must be below so much of it: a link at its limit is not left and taken in
    /// turns.
    const RETURN: f64 = 0.8;

    /// Is a link that is like this beyond the limit? `before`: it was until now.
    pub(crate) fn is_exceeded(&self, before: bool, measured: Measured) -> bool {
        let factor = if before { Limit::RETURN } else { 1.0 };
        let time =
            |limit: Option<Duration>, measured: Duration| limit.is_some_and(|limit| measured > limit.mul_f64(factor));
        let loss = self.loss_ppm.is_some_and(|limit| measured.loss > f64::from(limit) * 1e-6 * factor);
        time(self.latency, measured.latency) || time(self.jitter, measured.jitter) || loss
    }
}

/// What a link is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) latency: Duration,
    pub(crate) jitter: Duration,
    /// The share of packets, 0 to 1.
    pub(crate) loss: f64,
}

#[cfg(test)]
mod tests;
