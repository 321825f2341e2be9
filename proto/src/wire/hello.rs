//! HELLO: who the sender is and what it understands.

use super::{LEAST_VERSION, VERSION, take};
use crate::Keepalive;
use std::time::Duration;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +---------------+---------------+---------------+---------------+
/// |    version    | least version |    flags    |A|     path      |
/// +---------------+---------------+---------------+---------------+
/// |                         capabilities                          |
/// +---------------------------------------------------------------+
/// |                    middlebox (0 from a core)                  |
/// +---------------------------------------------------------------+
/// |                        PoP (0 from a box)                     |
/// +---------------------------------------------------------------+
/// |                          boot epoch                           |
/// |                                                               |
/// +---------------------------------------------------------------+
/// |                   policy hash (0: not said)                   |
/// |                                                               |
/// +-------------------------------+---------------+-------------+-+
/// |       idle interval, ms       |  preference   | res |T|O|S|C|M|
/// +-------------------------------+---------------+-----+-+-+-+-+-+
/// ```
/// Policy hash: of what the sender's policy says; the same at both ends, or `status` tells.
/// A: this answers the receiver's HELLO, which need not be said again; without it, an answer is asked for.
/// Idle interval: how often the sender, a box, asks on this path while the bundle is idle; 0 from a core, which does not
/// ask then. Preference: the place of this path among the box's, lower is preferred; of a box only. M: octets on it cost
/// the box money. C: its link has carried what it may this month, and only classes that the policy names go on to take it.
/// S: the other path over the uplink is the one to be used; the core repeats what it has taken in. O: the uplink may have either
/// kind of tunnel, so each end is to look whether this one is throttled. T: the sender has found that this path, in its
/// direction, carries far less than it is given.
/// The last line was added later: without it nothing is known of any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version of link messages that the sender would speak.
    pub version: u8,
    /// The least version that it understands.
    pub least_version: u8,
    /// It answers ours.
    pub answer: bool,
    /// The number of the path that this goes over: see [`crate::MAX_PATHS`].
    pub path: u8,
    /// What it can do beyond its version, a bit each: see [`Hello::FRAGMENTS`].
    pub capabilities: u32,
    /// The box's number.
    pub middlebox: u32,
    /// The PoP's number.
    pub pop: u32,
    /// Another one after each start: what was in flight before is not waited for.
    pub epoch: u64,
    /// Of the policy in force; 0: not said.
    pub policy_hash: u64,
    /// How this path is asked while the bundle is idle; only a box says it.
    pub keepalive: Option<Keepalive>,
    /// The place of this path among the box's: lower is preferred. Without meaning where `keepalive` is `None`.
    pub preference: u8,
    /// The link is at its cap. Without meaning where `keepalive` is `None`.
    pub capped: bool,
    /// The other path over the uplink is the one to be used.
    pub stands_by: bool,
    /// The uplink may have either kind of tunnel; only a box says it.
    pub either: bool,
    /// This path carries far less than it is given, in the sender's direction.
    pub throttled: bool,
}

/// Octets on the wire.
const LEN: usize = 36;
const ANSWER: u8 = 0x01;
const METERED: u8 = 0x01;
const CAPPED: u8 = 0x02;
const STANDS_BY: u8 = 0x04;
const EITHER: u8 = 0x08;
const THROTTLED: u8 = 0x10;

impl Default for Hello {
    fn default() -> Self {
        Hello {
            version: VERSION,
            least_version: LEAST_VERSION,
            answer: false,
            path: 0,
            capabilities: 0,
            middlebox: 0,
            pop: 0,
            epoch: 0,
            policy_hash: 0,
            keepalive: None,
            preference: 0,
            capped: false,
            stands_by: false,
            either: false,
            throttled: false,
        }
    }
}

impl Hello {
    /// The capability to put fragments together.
    pub const FRAGMENTS: u32 = 1 << 0;
    /// The capability to read trailers, and to drop what came already of packets that are sent again.
    pub const COPIES: u32 = 1 << 1;
    /// The capability to put packets back in order that go by several paths.
    pub const SEQUENCES: u32 = 1 << 2;
    /// The capability to hand on to a packet what its outer header has met (RFC 6040, section 4.2).
    pub const ECN: u32 = 1 << 3;

    pub(super) fn write(&self, room: &mut [u8]) -> Option<usize> {
        let room = room.get_mut(..LEN)?;
        let flags = if self.answer { ANSWER } else { 0 };
        room[..4].copy_from_slice(&[self.version, self.least_version, flags, self.path]);
        room[4..8].copy_from_slice(&self.capabilities.to_be_bytes());
        room[8..12].copy_from_slice(&self.middlebox.to_be_bytes());
        room[12..16].copy_from_slice(&self.pop.to_be_bytes());
        room[16..24].copy_from_slice(&self.epoch.to_be_bytes());
        room[24..32].copy_from_slice(&self.policy_hash.to_be_bytes());
        let idle = self.keepalive.map_or(0, |keepalive| keepalive.idle.as_millis().min(u16::MAX.into()) as u16);
        room[32..34].copy_from_slice(&idle.to_be_bytes());
        room[34] = self.preference;
        let metered = self.keepalive.is_some_and(|keepalive| keepalive.metered);
        room[35] = [
            (metered, METERED),
            (self.capped, CAPPED),
            (self.stands_by, STANDS_BY),
            (self.either, EITHER),
            (self.throttled, THROTTLED),
        ]
        .into_iter()
        .fold(0, |flags, (is_set, flag)| if is_set { flags | flag } else { flags });
        Some(LEN)
    }

    pub(super) fn read(mut value: &[u8]) -> Option<Hello> {
        let from = &mut value;
        let [version, least_version, flags, path] = take(from)?;
        let mut hello = Hello {
            version,
            least_version,
            answer: flags & ANSWER != 0,
            path,
            capabilities: u32::from_be_bytes(take(from)?),
            middlebox: u32::from_be_bytes(take(from)?),
            pop: u32::from_be_bytes(take(from)?),
            epoch: u64::from_be_bytes(take(from)?),
            policy_hash: u64::from_be_bytes(take(from)?),
            keepalive: None,
            preference: 0,
            capped: false,
            stands_by: false,
            either: false,
            throttled: false,
        };
        if let Some(idle) = take(from).map(u16::from_be_bytes)
            && let Some([preference, flags]) = take(from)
        {
            if idle > 0 {
                hello.keepalive = Some(Keepalive::new(Duration::from_millis(idle.into()), flags & METERED != 0));
                hello.preference = preference;
                hello.capped = flags & CAPPED != 0;
            }
            hello.stands_by = flags & STANDS_BY != 0;
            hello.either = flags & EITHER != 0;
            hello.throttled = flags & THROTTLED != 0;
        }
        Some(hello)
    }
}
