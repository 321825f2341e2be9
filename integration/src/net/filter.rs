//! What a link or a router drops in silence, as some ISPs do: large packets, a traffic class, a family, ICMP errors; and what a
//! link marks as having met congestion.

use super::Rate;
use crate::meter::Family;
use crate::scenario::Direction;
use serde::Deserialize;
use std::fmt::Write as _;

/// A share is drawn in steps of a thousandth.
const SHARES: u32 = 1_000;

/// Which packets are marked as having met congestion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Those whose flows can be told so, as a sound queue does (RFC 3168).
    Capable,
    /// All, which no sound queue does.
    All,
}

/// What a link drops, or marks: packets that meet all of the conditions. Neighbour discovery always passes: without it the link
/// would be cut, which is another case.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// IP packets of more octets than this.
    pub longer_than: Option<u16>,
    /// Packets of this differentiated services code point (RFC 2474), 0 to 63.
    pub dscp: Option<u8>,
    /// Packets of this family.
    pub family: Option<Family>,
    /// WireGuard's handshake messages (types 1 to 3), and none of its data.
    #[serde(default)]
    pub handshakes: bool,
    /// UDP to this port, and its answers: the port of the far end.
    pub udp_port: Option<u16>,
    /// UDP to all ports but this one, and its answers: as where only HTTP/3 passes.
    pub udp_ports_but: Option<u16>,
    /// Only what exceeds this rate, each direction by itself and each family: a policer, which lets a tenth of a second of it pass
    /// at once.
    pub above: Option<Rate>,
    /// They are marked as having met congestion, and not dropped.
    pub mark: Option<Mark>,
    /// Only so large a share of them, 0 to 1, drawn for each; without it, all.
    pub share: Option<f64>,
    /// Only packets of this direction.
    pub direction: Option<Direction>,
}

impl Filter {
    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<&'static str> {
        let ports = self.udp_port.or(self.udp_ports_but).is_some();
        let any =
            self.longer_than.is_some() || self.dscp.is_some() || self.family.is_some() || self.handshakes || ports;
        if !any && self.mark.is_none() && self.above.is_none() {
            return Some(
                "a filter needs `longer_than`, `dscp`, `family`, `handshakes`, `udp_port`, `udp_ports_but`, `above` or `mark`; \
                 to drop everything, cut the link",
            );
        }
        if self.handshakes && ports {
            return Some("a filter has `handshakes`, or a port");
        }
        if self.share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Some("a share is from 0 to 1");
        }
        (self.dscp > Some(63)).then_some("a DSCP is from 0 to 63")
    }

    fn rule(&self, family: Family, direction: Direction) -> Option<String> {
        if self.family.is_some_and(|only| only != family) {
            return None;
        }
        // The length in an IPv6 header does not count the header's own 40 octets.
        let (name, uncounted) = match family {
            Family::V4 => ("ip", 0),
            Family::V6 => ("ip6", 40),
        };
        let mut rule = format!("meta protocol {name}");
        if let Some(octets) = self.longer_than {
            let _ = write!(rule, " {name} length > {}", octets.saturating_sub(uncounted));
        }
        if let Some(dscp) = self.dscp {
            let _ = write!(rule, " {name} dscp {dscp}");
        }
        if self.handshakes {
            // The first octet of UDP's payload, which begins 64 bits into the datagram.
            rule.push_str(" meta l4proto udp @th,64,8 1-3");
        }
        // The far end's port: what goes up has it as its destination.
        let port = if direction == Direction::Up { "dport" } else { "sport" };
        if let Some(number) = self.udp_port {
            let _ = write!(rule, " udp {port} {number}");
        }
        if let Some(number) = self.udp_ports_but {
            let _ = write!(rule, " udp {port} != {number}");
        }
        if let Some(Rate(bits)) = self.above {
            let octets = bits / 8;
            // Two datagrams at least, or nothing large would ever pass.
            let burst = (octets / 10).max(3_000);
            let _ = write!(rule, " limit rate over {octets} bytes/second burst {burst} bytes");
        }
        if let Some(share) = self.share {
            let _ = write!(rule, " numgen random mod {SHARES} < {}", (share * f64::from(SHARES)).round());
        }
        Some(match self.mark {
            None => rule + " counter drop\n",
            Some(Mark::Capable) => format!("{rule} {name} ecn != not-ect counter {name} ecn set ce\n"),
            Some(Mark::All) => format!("{rule} counter {name} ecn set ce\n"),
        })
    }
}

/// The table of what is dropped of what arrives at an interface.
pub(super) fn table(interface: &str) -> String {
    format!("lab-{interface}")
}

/// A script for nft that has `filter`, in place of what was there, drop what arrives at an interface. Dropped there, the
/// sender notices nothing, as on a wire.
pub(super) fn arriving(interface: &str, direction: Direction, filter: Option<&Filter>) -> String {
    // Added first, for what does not exist cannot be deleted; all of a script happens at once.
    let table = format!("table netdev {}", table(interface));
    let mut script = format!("add {table}\ndelete {table}\n");
    let rules = filter.filter(|filter| filter.direction.is_none_or(|only| only == direction));
    if let Some(filter) = rules {
        let _ = write!(
            script,
            "{table} {{\nchain arriving {{\ntype filter hook ingress device \"{interface}\" priority 0;\n\
             icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
             {}{}}}\n}}\n",
            filter.rule(Family::V4, direction).unwrap_or_default(),
            filter.rule(Family::V6, direction).unwrap_or_default(),
        );
    }
    script
}

/// A script for nft that drops ICMP errors (RFC 792, RFC 4443), a router's own and those that it should forward.
pub(super) fn icmp_errors() -> String {
    let chains = ["forward", "output"].map(|hook| {
        format!(
            "chain {hook} {{\ntype filter hook {hook} priority filter;\n\
             icmp type {{ destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }} drop\n\
             icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} drop\n}}\n"
        )
    });
    format!("table inet lab-icmp {{\n{}}}\n", chains.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_says_what_it_drops_in_each_family_and_direction() {
        let size = Filter { longer_than: Some(600), direction: Some(Direction::Up), ..Filter::default() };
        let script = arriving("wan0", Direction::Up, Some(&size));
        assert!(script.contains("meta protocol ip ip length > 600 counter drop"), "{script}");
        assert!(script.contains("meta protocol ip6 ip6 length > 560 counter drop"), "{script}");
        let none = "add table netdev lab-wan0\ndelete table netdev lab-wan0\n";
        assert_eq!(arriving("wan0", Direction::Down, Some(&size)), none);
        assert_eq!(arriving("wan0", Direction::Up, None), none);
        let class = Filter { dscp: Some(46), family: Some(Family::V6), ..Filter::default() };
        let script = arriving("wan0", Direction::Down, Some(&class));
        assert!(script.contains("ip6 dscp 46") && !script.contains("ip dscp"), "{script}");
        let handshakes = Filter { handshakes: true, share: Some(0.7), ..Filter::default() };
        let script = arriving("wan0", Direction::Up, Some(&handshakes));
        let rule = "meta protocol ip meta l4proto udp @th,64,8 1-3 numgen random mod 1000 < 700 counter drop";
        assert!(script.contains(rule) && handshakes.problem().is_none(), "{script}");
        let queue = Filter { mark: Some(Mark::Capable), ..Filter::default() };
        let script = arriving("wan0", Direction::Up, Some(&queue));
        assert!(script.contains("meta protocol ip ip ecn != not-ect counter ip ecn set ce"), "{script}");
        assert!(queue.problem().is_none() && !script.contains("drop"), "{script}");
        assert!(Filter { share: Some(7.0), ..handshakes }.problem().is_some());
        assert!(Filter::default().problem().is_some() && class.problem().is_none());
        let web = Filter { udp_ports_but: Some(443), ..Filter::default() };
        let rules = [Direction::Up, Direction::Down].map(|direction| arriving("wan0", direction, Some(&web)));
        assert!(rules[0].contains("meta protocol ip udp dport != 443 counter drop"), "{rules:?}");
        assert!(rules[1].contains("meta protocol ip6 udp sport != 443 counter drop"), "{rules:?}");
        let policer = Filter { udp_port: Some(51820), above: Some(Rate(100_000)), ..Filter::default() };
        let script = arriving("wan0", Direction::Up, Some(&policer));
        let rule = "ip udp dport 51820 limit rate over 12500 bytes/second burst 3000 bytes counter drop";
        assert!(script.contains(rule) && policer.problem().is_none() && web.problem().is_none(), "{script}");
    }
}
