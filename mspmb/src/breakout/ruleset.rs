//! Where direct flows go, as a table of the packet filter. Pure: decisions and uplinks go in, the table comes out.
//!
//! ```text
//!   from a host of the site                                                      to the Internet, from the uplink's address
//!    |                                                                                                  ^
//!    v prerouting                    routing                forward               postrouting           |
//!   [routed]    -> mark the flow -> fwmark: table 7710 -> [through] ---------> [translate] -> [guard] --'
//!    | first class that matches      of that uplink        count, MSS           masquerade     nothing untranslated
//!    '-> no mark: the TUN, as ever
//! ```
//!
//! What is known of a flow is in its connection's mark, and a part of that in the mark of its packets:
//!
//! ```text
//!     3 3 2 2 2 2 2 2 2 2 2 2 1                             0
//!     1 0 9 8 7 6 5 4 3 2 1 0 9              ...            0
//!    +-+-----+---------------+-+-----------------------------+      D: direct
//!    |D| slot|     class     |W|      others', left alone    |      W: waits, nobody has answered it yet
//!    +-+-----+---------------+-+-----------------------------+
//!     `-v---'
//!     the mark of its packets
//! ```
//!
//! What waits has not begun: it is forgotten when new flows go another way, so that the next try goes that way too.
//!
//! A flow keeps its mark for as long as the kernel remembers it, whatever is decided of new ones in the meantime, and also
//! while the daemon restarts. Of a policy that is read again its class keeps the number only.

use dataplane::netlink::Mark;
use ipnet::IpNet;
use nftables::expr::{
    BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range, SetItem,
    TcpOption, Verdict,
};
use nftables::schema::{Chain, NfListObject, Rule};
use nftables::stmt::{self, JumpTarget, Mangle, Match, Operator, Statement, VerdictMap};
use nftables::types::{NfChainType, NfFamily, NfHook};
use proto::MAX_SLOTS;
use proto::direct::{Decision, Leaves};
use proto::policy::{ClassId, Matches, Policy, WhenIsolated};
use std::ops::RangeInclusive;

/// The table's name.
pub(crate) const TABLE: &str = "mspmb";

/// Set in the mark of every direct flow and of its packets.
pub(crate) const DIRECT: Mark = Mark { value: 1 << 31, mask: 1 << 31 };
/// Where the slot stands in both marks.
const SLOT: u32 = 28;
/// Where the class stands in a flow's mark.
const CLASS: u32 = 20;
/// The bits of a packet's mark that are ours.
const OF_PACKET: u32 = 0xf000_0000;
/// The bits of a flow's mark that are ours.
const OF_FLOW: u32 = 0xfff8_0000;
/// Set in the mark of a flow that nobody has answered.
const WAITS: u32 = 1 << 19;
/// The bits of a flow's mark that tell its class.
const OF_CLASS: u32 = 0x0ff0_0000;

/// The priorities of nftables' own names: `mangle`, and `srcnat` with the place behind it.
const MANGLE: i32 = -150;
const SOURCE_NAT: i32 = 100;
const TRANSLATED: i32 = SOURCE_NAT + 1;

const TCP: u8 = 6;
/// The protocols whose ports are matched: those that begin with both ports, as `proto::packet` has it.
const WITH_PORTS: [u8; 3] = [TCP, 17, 132];

/// An uplink that is there, whether it can be used or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outlet {
    pub(crate) slot: u8,
    pub(crate) interface: String,
    /// In octets: its largest packet.
    pub(crate) mtu: u32,
}

/// The mark of packets that leave by the uplink in this slot.
pub(crate) fn mark(slot: u8) -> Mark {
    Mark { value: DIRECT.value | u32::from(slot) << SLOT, mask: OF_PACKET }
}

/// The mark of the flows of a class that went this way and wait for an answer; nothing, where none is let through.
pub(crate) fn waiting(class: ClassId, leaves: Leaves) -> Option<Mark> {
    let way = match leaves {
        Leaves::ByTunnel => 0,
        Leaves::ByUplink(slot) => mark(slot).value,
        Leaves::Nowhere => return None,
    };
    Some(Mark { value: way | u32::from(class) << CLASS | WAITS, mask: OF_FLOW })
}

/// The name of the counter of a class's packets that leave, and of those that come back.
pub(crate) fn counters(class: ClassId) -> [String; 2] {
    [format!("up-{class}"), format!("down-{class}")]
}

/// The name of the counter of a class's packets that go nowhere.
pub(crate) fn dropped(class: ClassId) -> String {
    format!("dropped-{class}")
}

/// The name of the counter of all that direct flows carry by the uplink in this slot, both ways.
pub(crate) fn carried_by(slot: u8) -> String {
    format!("slot-{slot}")
}

/// The chain of all that goes through by the uplink in this slot: the same in every table, so that it goes on counting.
fn slot_chain(slot: u8) -> String {
    format!("slot{slot}")
}

/// What the table has in it.
///
/// `tun` is where the site's packets come from and go to otherwise. `edition` is another for each policy, whose classes count from
/// nothing. `active` says which classes have packets at this time,
/// and `decisions` where those go.
pub(crate) fn ruleset(
    prefixes: &[IpNet],
    tun: &str,
    (policy, edition): (&Policy, u32),
    active: &dyn Fn(ClassId) -> bool,
    decisions: &[[Decision; 2]],
    outlets: &[Outlet],
) -> Vec<NfListObject<'static>> {
    let mut table = Builder { edition, objects: Vec::new() };
    table.counts(policy);
    table.routed(prefixes, tun, outlets);
    let may_wait = policy.when_isolated() == WhenIsolated::Direct;
    for (family, number) in FAMILIES.iter().zip(0..) {
        for ((class, decision), id) in policy.classes().iter().zip(decisions).zip(0..).filter(|(_, id)| active(*id)) {
            table.class(family, id, &class.matches, decision[number].leaves, may_wait);
        }
    }
    table.through(policy, outlets);
    table.translate(prefixes, outlets);
    table.objects
}

/// What differs between IPv4 and IPv6.
struct Family {
    ipv4: bool,
    /// nftables' name of its header.
    header: &'static str,
    /// Its number (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
    name: &'static str,
    /// The chain of its classes.
    chain: &'static str,
    /// The octets of the IP and TCP headers, without options (RFC 9293, section 3.7.1).
    headers: u32,
}

const FAMILIES: [Family; 2] = [
    Family { ipv4: true, header: "ip", name: "ipv4", chain: "classes4", headers: 40 },
    Family { ipv4: false, header: "ip6", name: "ipv6", chain: "classes6", headers: 60 },
];

impl Family {
    fn of<'a>(&self, networks: &'a [IpNet]) -> Vec<&'a IpNet> {
        networks.iter().filter(|network| network.addr().is_ipv4() == self.ipv4).collect()
    }

    fn field(&self, field: &'static str) -> Expression<'static> {
        payload(self.header, field)
    }

    fn is(&self) -> Statement<'static> {
        equal(meta(MetaKey::Nfproto), text(self.name))
    }
}

struct Builder {
    edition: u32,
    objects: Vec<NfListObject<'static>>,
}

impl Builder {
    /// The chain of a class's packets that go through.
    fn count_chain(&self, class: ClassId) -> String {
        format!("class{class}-policy{}", self.edition)
    }

    /// The chain of a class's packets that go nowhere.
    fn drop_chain(&self, class: ClassId) -> String {
        format!("class{class}-policy{}-dropped", self.edition)
    }

    fn chain(&mut self, name: &str) {
        self.base(name, None);
    }

    fn base(&mut self, name: &str, hook: Option<(NfChainType, NfHook, i32)>) {
        self.objects.push(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.to_owned().into(),
            _type: hook.map(|(kind, ..)| kind),
            hook: hook.map(|(_, hook, _)| hook),
            prio: hook.map(|(.., priority)| priority),
            ..Chain::default()
        }));
    }

    fn rule(&mut self, chain: &str, statements: impl IntoIterator<Item = Statement<'static>>) {
        self.objects.push(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: chain.to_owned().into(),
            expr: statements.into_iter().collect::<Vec<_>>().into(),
            ..Rule::default()
        }));
    }

    /// A rule that counts what meets its conditions, under this name, and then does this with it.
    ///
    /// It is not one of nftables' named counters: kernels before 6.2 may be built without what a rule needs to use one.
    fn counting(&mut self, chain: &str, name: &str, conditions: Vec<Statement<'static>>, then: Statement<'static>) {
        self.rule(chain, conditions.into_iter().chain([Statement::Counter(stmt::Counter::Anonymous(None)), then]));
        if let Some(NfListObject::Rule(rule)) = self.objects.last_mut() {
            rule.comment = Some(name.to_owned().into());
        }
    }

    /// What is routed: packets of direct flows are marked as their flows are, and what comes from a host of the site for the
    /// Internet is of a class if it begins a flow.
    fn routed(&mut self, prefixes: &[IpNet], tun: &str, outlets: &[Outlet]) {
        const CHAIN: &str = "routed";
        const KNOWN: &str = "known";
        for chain in [KNOWN, FAMILIES[0].chain, FAMILIES[1].chain] {
            self.chain(chain);
        }
        for outlet in outlets {
            let slot = equal(and(ct("mark"), OF_PACKET), Expression::Number(mark(outlet.slot).value));
            self.rule(KNOWN, [slot, mark_packet(outlet.slot), Statement::Accept(None)]);
        }
        // Its uplink is not there: it ends with it.
        self.rule(KNOWN, [Statement::Drop(None)]);

        self.base(CHAIN, Some((NfChainType::Filter, NfHook::Prerouting, MANGLE)));
        let elsewhere = outlets.iter().map(|outlet| outlet.interface.clone()).chain([tun.to_owned()]);
        let elsewhere = set(elsewhere.map(|name| Expression::String(name.into())));
        let by = || equal(meta(MetaKey::Iifname), elsewhere.clone());
        let waits = equal(and(ct("mark"), WAITS), Expression::Number(WAITS));
        let answered = compare(ct("state"), Operator::IN, text("established"));
        self.rule(CHAIN, [by(), answered, waits, set_bits(ct("mark"), WAITS, 0)]);
        // All packets of a direct flow have its mark, also those that come back: by it the reverse path filter finds that they
        // come by the right uplink, even while there is no TUN.
        let direct = equal(and(ct("mark"), DIRECT.mask), Expression::Number(DIRECT.value));
        self.rule(CHAIN, [direct, goto(KNOWN.into())]);
        self.rule(CHAIN, [by(), Statement::Return(None)]);
        for family in &FAMILIES {
            let own = family.of(prefixes);
            if own.is_empty() {
                self.rule(CHAIN, [family.is(), Statement::Return(None)]);
                continue;
            }
            let own = || set(own.iter().map(|network| prefix(network)));
            self.rule(CHAIN, [compare(family.field("saddr"), Operator::NEQ, own()), Statement::Return(None)]);
            self.rule(CHAIN, [equal(family.field("daddr"), own()), Statement::Return(None)]);
        }
        // A flow that is in the tunnels stays there, and so does what comes back of one that began outside.
        let others = Expression::List(["established", "related", "untracked"].map(text).into());
        self.rule(CHAIN, [compare(ct("state"), Operator::IN, others), Statement::Return(None)]);
        for family in &FAMILIES {
            self.rule(CHAIN, [family.is(), goto(family.chain.into())]);
        }
    }

    /// What becomes of a new flow of this class; nothing, where no packet of this family can be of it. One in a tunnel `may_wait`
    /// if it could go by an uplink later.
    fn class(&mut self, family: &Family, id: ClassId, matches: &Matches, leaves: Leaves, may_wait: bool) {
        let Some(mut rule) = conditions(family, matches) else { return };
        match leaves {
            // Where tunnels are all there is, nobody asks.
            Leaves::ByTunnel if !may_wait => rule.push(Statement::Return(None)),
            Leaves::ByTunnel => {
                let flow = u32::from(id) << CLASS | WAITS;
                rule.extend([set_bits(ct("mark"), OF_FLOW, flow), Statement::Return(None)]);
            }
            Leaves::Nowhere => rule.push(goto(self.drop_chain(id))),
            Leaves::ByUplink(slot) => {
                let chain = format!("class{id}-by{slot}");
                // Both families have one.
                let there = |object: &NfListObject<'_>| matches!(object, NfListObject::Chain(it) if *it.name == *chain);
                if !self.objects.iter().any(there) {
                    self.leave(&chain, id, slot);
                }
                rule.push(goto(chain));
            }
        }
        self.rule(family.chain, rule);
    }

    /// A new flow of a class leaves by an uplink.
    fn leave(&mut self, chain: &str, id: ClassId, slot: u8) {
        const FIN_SYN_RST_ACK: u32 = 0x17;
        const SYN: u32 = 0x02;
        self.chain(chain);
        // What connection tracking can make nothing of could not be translated; and by a tunnel it would show the other end
        // the site's own address, and be answered with a reset that kills the flow it is of.
        self.rule(chain, [compare(ct("state"), Operator::IN, text("invalid")), Statement::Drop(None)]);
        // In the midst of a connection that nobody here remembers: it began in the tunnels, before there was this table.
        let tcp = equal(meta(MetaKey::L4proto), Expression::Number(TCP.into()));
        let flags = and(payload("tcp", "flags"), FIN_SYN_RST_ACK);
        self.rule(chain, [tcp, compare(flags, Operator::NEQ, Expression::Number(SYN)), Statement::Return(None)]);
        let flow = mark(slot).value | u32::from(id) << CLASS | WAITS;
        self.rule(chain, [set_bits(ct("mark"), OF_FLOW, flow), mark_packet(slot), Statement::Accept(None)]);
    }

    /// What counts the packets of each class: of flows that go through, both ways, and of those that go nowhere; and those of each
    /// uplink.
    fn counts(&mut self, policy: &Policy) {
        for id in (0..).take(policy.classes().len()) {
            let [up, down] = counters(id);
            let (through, nowhere) = (self.count_chain(id), self.drop_chain(id));
            self.chain(&through);
            let there = vec![equal(ct("direction"), text("original"))];
            self.counting(&through, &up, there, Statement::Accept(None));
            self.counting(&through, &down, Vec::new(), Statement::Accept(None));
            self.chain(&nowhere);
            self.counting(&nowhere, &dropped(id), Vec::new(), Statement::Drop(None));
        }
        // Also of uplinks that are not there: one that comes back goes on counting.
        for slot in 0..MAX_SLOTS as u8 {
            self.chain(&slot_chain(slot));
            self.counting(&slot_chain(slot), &carried_by(slot), Vec::new(), Statement::Return(None));
        }
    }

    /// What goes through, both ways: TCP is told what fits the uplink (RFC 9293, section 3.7.1), and all of it is counted.
    fn through(&mut self, policy: &Policy, outlets: &[Outlet]) {
        const CHAIN: &str = "through";
        const SYN: u32 = 0x02;
        self.base(CHAIN, Some((NfChainType::Filter, NfHook::Forward, MANGLE)));
        for outlet in outlets {
            for family in &FAMILIES {
                let size = outlet.mtu.saturating_sub(family.headers);
                let slot = equal(and(ct("mark"), OF_PACKET), Expression::Number(mark(outlet.slot).value));
                let syn = equal(and(payload("tcp", "flags"), SYN), Expression::Number(SYN));
                // The kernel only ever lowers it.
                let option = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
                let key = Expression::Named(NamedExpression::TcpOption(option));
                let lower = Statement::Mangle(Mangle { key, value: Expression::Number(size) });
                self.rule(CHAIN, [slot, family.is(), syn, lower]);
            }
        }
        for outlet in outlets {
            let slot = equal(and(ct("mark"), OF_PACKET), Expression::Number(mark(outlet.slot).value));
            self.rule(CHAIN, [slot, Statement::Jump(JumpTarget { target: slot_chain(outlet.slot).into() })]);
        }
        let target = |id: ClassId| {
            let flow = Expression::Number(DIRECT.value | u32::from(id) << CLASS);
            let verdict = Verdict::Goto(JumpTarget { target: self.count_chain(id).into() });
            SetItem::Mapping(flow, Expression::Verdict(verdict))
        };
        let data = Expression::Named(NamedExpression::Set((0..).take(policy.classes().len()).map(target).collect()));
        let key = and(ct("mark"), DIRECT.mask | OF_CLASS);
        self.rule(CHAIN, [Statement::VerdictMap(VerdictMap { key, data })]);
    }

    /// What leaves by an uplink gets its address, and nothing of the site's own leaves with another.
    fn translate(&mut self, prefixes: &[IpNet], outlets: &[Outlet]) {
        const TRANSLATE: &str = "translate";
        const GUARD: &str = "guard";
        const UNTRANSLATED: &str = "untranslated";
        self.base(TRANSLATE, Some((NfChainType::NAT, NfHook::Postrouting, SOURCE_NAT)));
        for outlet in outlets {
            let by = equal(meta(MetaKey::Oifname), Expression::String(outlet.interface.clone().into()));
            let slot = equal(and(ct("mark"), OF_PACKET), Expression::Number(mark(outlet.slot).value));
            self.rule(TRANSLATE, [by, slot, Statement::Masquerade(None)]);
        }
        self.base(GUARD, Some((NfChainType::Filter, NfHook::Postrouting, TRANSLATED)));
        let uplinks = || set(outlets.iter().map(|outlet| Expression::String(outlet.interface.clone().into())));
        for family in FAMILIES.iter().filter(|family| !outlets.is_empty() && !family.of(prefixes).is_empty()) {
            let own = set(family.of(prefixes).into_iter().map(prefix));
            let marked = equal(and(meta(MetaKey::Mark), DIRECT.mask), Expression::Number(DIRECT.value));
            let by = equal(meta(MetaKey::Oifname), uplinks());
            let name = format!("{UNTRANSLATED}-{}", family.header);
            self.counting(GUARD, &name, vec![marked, by, equal(family.field("saddr"), own)], Statement::Drop(None));
        }
    }
}

/// What a packet of this family must be like to be of a class, as [`Matches::matches`] has it; `None` where none can be.
///
/// One thing is better than there: fragments are whole here, since connection tracking puts them together, so all of them show
/// the ports of the first.
fn conditions(family: &Family, matches: &Matches) -> Option<Vec<Statement<'static>>> {
    let mut conditions = Vec::new();
    for (networks, field) in [(&matches.src, "saddr"), (&matches.dst, "daddr")] {
        let own = family.of(networks);
        match (networks.is_empty(), own.is_empty()) {
            (true, _) => {}
            (false, true) => return None,
            (false, false) => conditions.push(equal(family.field(field), set(own.into_iter().map(prefix)))),
        }
    }
    if matches.dscp != 0 {
        let codepoints = (0..64).filter(|bit| matches.dscp >> bit & 1 == 1);
        conditions.push(equal(family.field("dscp"), set(codepoints.map(Expression::Number))));
    }
    let with_ports = !matches.sport.is_empty() || !matches.dport.is_empty();
    let any = if with_ports { &WITH_PORTS[..] } else { &[] };
    let protocols: Vec<u8> = match matches.proto.is_empty() {
        true => any.to_vec(),
        false => matches.proto.iter().copied().filter(|number| !with_ports || any.contains(number)).collect(),
    };
    if protocols.is_empty() && (with_ports || !matches.proto.is_empty()) {
        return None;
    }
    if !protocols.is_empty() {
        let numbers = set(protocols.into_iter().map(|number| Expression::Number(number.into())));
        conditions.push(equal(meta(MetaKey::L4proto), numbers));
    }
    for (ports, field) in [(&matches.sport, "sport"), (&matches.dport, "dport")] {
        if !ports.is_empty() {
            conditions.push(equal(payload("th", field), set(ports.iter().map(range))));
        }
    }
    Some(conditions)
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn text(text: &'static str) -> Expression<'static> {
    Expression::String(text.into())
}

fn set(items: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

fn prefix(network: &IpNet) -> Expression<'static> {
    let addr = Box::new(Expression::String(network.network().to_string().into()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: network.prefix_len().into() }))
}

fn range(ports: &RangeInclusive<u16>) -> Expression<'static> {
    let [from, to] = [*ports.start(), *ports.end()].map(|port| Expression::Number(port.into()));
    if from == to { from } else { Expression::Range(Box::new(Range { range: [from, to] })) }
}

fn and(expression: Expression<'static>, bits: u32) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(expression, Expression::Number(bits))))
}

fn compare(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn equal(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::EQ, right)
}

fn goto(chain: String) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

/// Sets those bits of a mark that are ours, and leaves the others.
fn set_bits(key: Expression<'static>, ours: u32, bits: u32) -> Statement<'static> {
    let others = and(key.clone(), !ours);
    let value = match bits {
        0 => others,
        _ => Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![others, Expression::Number(bits)]))),
    };
    Statement::Mangle(Mangle { key, value })
}

fn mark_packet(slot: u8) -> Statement<'static> {
    set_bits(meta(MetaKey::Mark), OF_PACKET, mark(slot).value)
}

#[cfg(test)]
mod tests;
