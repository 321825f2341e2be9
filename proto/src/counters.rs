//! Why a packet or a datagram was dropped: every drop has a reason, and every reason a counter.

use serde::{Deserialize, Serialize};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why something was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum DropReason { $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+ }

        impl DropReason {
            /// All of them, in the order of declaration.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)+];

            /// The counter's name, as `status` and the metrics show it.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// What it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// from the TUN: not a whole IPv4 or IPv6 packet
    TunMalformed => "tun_malformed",
    /// from the TUN: a link-local address or next header 59, which are the link messages' own
    TunReserved => "tun_reserved",
    /// from the TUN: the source is not in this site's prefixes
    TunSource => "tun_source",
    /// from the TUN: no peer has the destination
    TunNoPeer => "tun_no_peer",
    /// from the TUN: the peer has no path that works
    NoPath => "no_path",
    /// datagram: too short, or of no known type
    DatagramMalformed => "datagram_malformed",
    /// datagram: a handshake whose first MAC is wrong, so not meant for this key
    HandshakeMac => "handshake_mac",
    /// datagram: a handshake refused under load; a cookie was sent if the sender could be an honest one
    HandshakeLoad => "handshake_load",
    /// datagram: a handshake from a key that nobody here has
    HandshakeUnknownKey => "handshake_unknown_key",
    /// datagram: a handshake that is old, replayed, answers nothing or fails its check
    HandshakeInvalid => "handshake_invalid",
    /// datagram: data for a session that does not exist
    UnknownSession => "unknown_session",
    /// datagram: data that does not decrypt
    DataInvalid => "data_invalid",
    /// datagram: data whose number was seen before, or is too old to tell
    DataReplayed => "data_replayed",
    /// from a peer: not a whole IPv4 or IPv6 packet
    PeerMalformed => "peer_malformed",
    /// from a peer: the source is not one of its prefixes
    PeerSource => "peer_source",
    /// from a peer: the destination is not ours to deliver to
    PeerDestination => "peer_destination",
    /// from a peer: an ICMP error that quotes a packet the peer cannot have received
    PeerQuote => "peer_quote",
    /// from the TUN or a peer: it waited for more than a second, while this process stood still
    Stale => "stale",
    /// from a peer: a packet that had come already, by another path or by this one
    Duplicate => "duplicate",
    /// from a peer: a copy of a packet so old that whether it had come already is forgotten
    CopyStale => "copy_stale",
    /// to a peer: too old to be of use when there was room or a path for it, at first or once more
    Aged => "aged",
    /// to a peer: not acknowledged yet, and no longer kept for another try, as later ones needed the room
    ReplayBound => "replay_bound",
    /// to a peer: its path has less room than is offered, and its flow is to send less
    Congestion => "congestion",
    /// from a peer: the way was congested and marked it, and its flow cannot be told but by a loss (RFC 6040, section 4.2)
    NotEcnCapable => "not_ecn_capable",
    /// from a peer: a link message that cannot be read
    LinkMessageMalformed => "link_message_malformed",
    /// from a peer: a version of the link messages that we don't speak
    LinkMessageVersion => "link_message_version",
    /// from a peer: a fragment that cannot be part of a packet, or contradicts another of the same
    FragmentMalformed => "fragment_malformed",
    /// from a peer: a fragment that had come already
    FragmentDuplicate => "fragment_duplicate",
    /// from a peer: a packet of which a fragment did not come within half a second
    FragmentTimeout => "fragment_timeout",
    /// from a peer: a packet in pieces that had to make room for later ones
    FragmentOverflow => "fragment_overflow",
}

/// One counter a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one.
    pub fn add(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// How many there were of one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Reasons and counts, those of zero too.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.get(reason)))
    }
}

impl Serialize for Drops {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.iter().map(|(reason, count)| (reason.name(), count)))
    }
}

impl<'de> Deserialize<'de> for Drops {
    /// Unknown names are skipped: an old `status` meets a new daemon.
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let by_name = std::collections::BTreeMap::<String, u64>::deserialize(d)?;
        let mut drops = Drops::default();
        for &reason in DropReason::ALL {
            drops.0[reason as usize] = by_name.get(reason.name()).copied().unwrap_or(0);
        }
        Ok(drops)
    }
}
