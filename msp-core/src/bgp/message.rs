//! Messages: a strict framer, and NOTIFICATION, ROUTE-REFRESH, KEEPALIVE.
//!
//! ```text
//! | marker: 16 octets of ones | length, of all (2) | type (1) | body |
//! ```
//! bgpkit-parser reads archives, where a bad marker or an odd length is history and no threat: it takes a KEEPALIVE of
//! 25 octets and an OPEN whose parameters do not add up. A speaker must not (RFC 4271, section 6). So what comes in is
//! framed and walked by us, and bgpkit-parser reads in tests what we write.

use super::Family;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;

/// Marker, length and type (RFC 4271, section 4.1).
pub const HEADER: usize = 19;
/// The longest message where nothing else was agreed on.
pub const MAX_MESSAGE: usize = 4096;
/// The longest message where RFC 8654 was agreed on.
pub const MAX_EXTENDED_MESSAGE: usize = 65_535;
/// What a speaker of two-octet AS numbers sees in place of a larger one (RFC 6793, section 9).
pub const AS_TRANS: u16 = 23456;

const MARKER: [u8; 16] = [0xff; 16];

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 4271, section 4.2.
    Open = 1,
    /// Section 4.3.
    Update = 2,
    /// Section 4.5.
    Notification = 3,
    /// Section 4.4.
    Keepalive = 4,
    /// RFC 2918.
    RouteRefresh = 5,
}

impl Kind {
    fn from_wire(octet: u8) -> Option<Kind> {
        [Kind::Open, Kind::Update, Kind::Notification, Kind::Keepalive, Kind::RouteRefresh]
            .into_iter()
            .find(|&kind| kind as u8 == octet)
    }

    /// The lengths a message of this kind can have, header included (RFC 4271, section 4; RFC 2918, section 3), if none
    /// is longer than `most`.
    fn lengths(self, most: usize) -> std::ops::RangeInclusive<usize> {
        match self {
            // RFC 8654, section 4: these two stay as they were.
            Kind::Open => 29..=MAX_MESSAGE,
            Kind::Keepalive => HEADER..=HEADER,
            Kind::Update => 23..=most,
            Kind::Notification => 21..=most,
            // Whether it is longer than that is its reader's matter (RFC 7313, section 5).
            Kind::RouteRefresh => 23..=most,
        }
    }
}

/// One message, its length fit for its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// What follows the header.
    pub body: Bytes,
}

/// Cuts a stream of bytes into messages. Holds less than a message between calls, if it is drained after each push.
#[derive(Debug)]
pub struct Framer {
    buffer: BytesMut,
    most: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Framer { buffer: BytesMut::new(), most: MAX_MESSAGE }
    }
}

impl Framer {
    /// From here on messages may be as long as RFC 8654 says.
    pub fn extend(&mut self) {
        self.most = MAX_EXTENDED_MESSAGE;
    }

    /// Takes bytes as they come. Call [`Framer::next_frame`] until it has no more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or the NOTIFICATION that the stream deserves: after one, nothing more can be read from
    /// it (RFC 4271, section 6.1).
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Notification> {
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        if self.buffer[..16] != MARKER {
            return Err(Notification::new(1, 1));
        }
        let length_field = [self.buffer[16], self.buffer[17]];
        let length = usize::from(u16::from_be_bytes(length_field));
        let bad_length = || Notification::with_data(1, 2, &length_field);
        if !(HEADER..=self.most).contains(&length) {
            return Err(bad_length());
        }
        let kind = Kind::from_wire(self.buffer[18]);
        let kind = kind.ok_or_else(|| Notification::with_data(1, 3, &self.buffer[18..19]))?;
        if !kind.lengths(self.most).contains(&length) {
            return Err(bad_length());
        }
        if self.buffer.len() < length {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(length);
        message.advance(HEADER);
        Ok(Some(Frame { kind, body: message.freeze() }))
    }
}

/// A NOTIFICATION: why a session ends (RFC 4271, section 4.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What went wrong.
    pub code: u8,
    /// What of it.
    pub subcode: u8,
    /// What was wrong, as its RFC says.
    pub data: Bytes,
}

/// The codes and subcodes that we send or explain (IANA, "BGP Error Codes"). Subcode 0 of the first six is
/// "unspecific".
const ERRORS: &[(u8, u8, &str)] = &[
    (1, 1, "message header: connection not synchronised"),
    (1, 2, "message header: bad message length"),
    (1, 3, "message header: bad message type"),
    (1, 0, "message header error"),
    (2, 1, "OPEN: unsupported version number"),
    (2, 2, "OPEN: bad peer AS"),
    (2, 3, "OPEN: bad BGP identifier"),
    (2, 4, "OPEN: unsupported optional parameter"),
    (2, 6, "OPEN: unacceptable hold time"),
    (2, 7, "OPEN: unsupported capability"),
    (2, 11, "OPEN: role mismatch"),
    (2, 0, "OPEN error"),
    (3, 1, "UPDATE: malformed attribute list"),
    (3, 2, "UPDATE: unrecognised well-known attribute"),
    (3, 3, "UPDATE: missing well-known attribute"),
    (3, 4, "UPDATE: attribute flags error"),
    (3, 5, "UPDATE: attribute length error"),
    (3, 6, "UPDATE: invalid ORIGIN"),
    (3, 8, "UPDATE: invalid NEXT_HOP"),
    (3, 9, "UPDATE: optional attribute error"),
    (3, 10, "UPDATE: invalid network field"),
    (3, 11, "UPDATE: malformed AS_PATH"),
    (3, 0, "UPDATE error"),
    (4, 0, "hold timer expired"),
    (5, 1, "unexpected message in OpenSent"),
    (5, 2, "unexpected message in OpenConfirm"),
    (5, 3, "unexpected message in Established"),
    (5, 0, "state machine error"),
    (6, 1, "cease: maximum number of prefixes reached"),
    (6, 2, "cease: administrative shutdown"),
    (6, 3, "cease: peer de-configured"),
    (6, 4, "cease: administrative reset"),
    (6, 5, "cease: connection rejected"),
    (6, 6, "cease: other configuration change"),
    (6, 7, "cease: connection collision resolution"),
    (6, 8, "cease: out of resources"),
    (6, 9, "cease: hard reset"),
    (6, 0, "cease"),
    (7, 1, "ROUTE-REFRESH: invalid message length"),
    (8, 0, "send hold timer expired"),
];

impl Notification {
    /// One without data.
    pub const fn new(code: u8, subcode: u8) -> Notification {
        Notification { code, subcode, data: Bytes::new() }
    }

    /// One with data: what was wrong, as its RFC says.
    pub fn with_data(code: u8, subcode: u8, data: &[u8]) -> Notification {
        Notification { code, subcode, data: Bytes::copy_from_slice(data) }
    }

    /// Cease, administrative shutdown, with a message for the neighbour's operator (RFC 9003).
    pub fn shutdown(message: &str) -> Notification {
        // The length is one octet; RFC 9003 lets the text have 255 of them.
        let mut end = message.len().min(255);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let mut data = BytesMut::with_capacity(end + 1);
        data.put_u8(end as u8);
        data.put_slice(&message.as_bytes()[..end]);
        Notification { code: 6, subcode: 2, data: data.freeze() }
    }

    /// Reads the body of a NOTIFICATION; its length was checked by the framer.
    pub fn decode(body: &Bytes) -> Notification {
        let (code, subcode) = (body.first().copied().unwrap_or(0), body.get(1).copied().unwrap_or(0));
        Notification { code, subcode, data: body.slice(2.min(body.len())..) }
    }

    /// The message.
    pub fn encode(&self) -> Bytes {
        let data = &self.data[..self.data.len().min(MAX_MESSAGE - HEADER - 2)];
        let mut out = header(Kind::Notification, 2 + data.len());
        out.put_u8(self.code);
        out.put_u8(self.subcode);
        out.put_slice(data);
        out.freeze()
    }

    /// The text that a Cease carries (RFC 9003), made safe for a terminal and a log.
    fn communication(&self) -> Option<String> {
        if self.code != 6 || !matches!(self.subcode, 2 | 4) {
            return None;
        }
        let (&length, text) = self.data.split_first()?;
        let text = text.get(..usize::from(length)).filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).escape_debug().collect())
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named =
            |code, subcode| ERRORS.iter().find(|&&(c, s, _)| (c, s) == (code, subcode)).map(|&(_, _, name)| name);
        match named(self.code, self.subcode).or_else(|| named(self.code, 0)) {
            Some(name) => write!(f, "{name} ({}/{})", self.code, self.subcode)?,
            None => write!(f, "error {}/{}", self.code, self.subcode)?,
        }
        match self.communication() {
            Some(text) => write!(f, ": \"{text}\""),
            None => Ok(()),
        }
    }
}

/// A KEEPALIVE.
pub fn keepalive() -> Bytes {
    header(Kind::Keepalive, 0).freeze()
}

/// A ROUTE-REFRESH (RFC 2918, section 3; its second octet is RFC 7313's).
///
/// ```text
/// | AFI (2) | 0: request, 1: beginning, 2: end (1) | SAFI (1) |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// Everything of a family is to be said again.
    Request(Family),
    /// From here on everything of a family is said again.
    Begin(Family),
    /// It has been said.
    End(Family),
}

impl Refresh {
    /// Reads the body of one. Nothing if it is of a family that is not ours, or of another kind: those are ignored.
    /// `enhanced`: beginning and end were agreed on (RFC 7313).
    pub fn decode(body: &Bytes, enhanced: bool) -> Result<Option<Refresh>, Notification> {
        let [afi_high, afi_low, kind, safi] = body[..] else {
            if enhanced && matches!(body.get(2), Some(1 | 2)) {
                // RFC 7313, section 5: with the whole message.
                let mut message = header(Kind::RouteRefresh, body.len());
                message.put_slice(body);
                return Err(Notification::with_data(7, 1, &message));
            }
            // Longer ones carry filters (RFC 5291), which we do not offer.
            return Err(Notification::with_data(1, 2, &((HEADER + body.len()) as u16).to_be_bytes()));
        };
        let family = Family::from_afi_safi(u16::from_be_bytes([afi_high, afi_low]), safi);
        Ok(family.and_then(|family| match kind {
            0 => Some(Refresh::Request(family)),
            1 if enhanced => Some(Refresh::Begin(family)),
            2 if enhanced => Some(Refresh::End(family)),
            _ => None,
        }))
    }

    /// The message.
    pub fn encode(self) -> Bytes {
        let (kind, family) = match self {
            Refresh::Request(family) => (0, family),
            Refresh::Begin(family) => (1, family),
            Refresh::End(family) => (2, family),
        };
        let (afi, safi) = family.afi_safi();
        let mut out = header(Kind::RouteRefresh, 4);
        out.put_slice(&[0, afi, kind, safi]);
        out.freeze()
    }
}

/// The header of a message whose body has `length` octets, with room for it.
pub(super) fn header(kind: Kind, length: usize) -> BytesMut {
    let total = HEADER + length;
    debug_assert!(kind.lengths(MAX_EXTENDED_MESSAGE).contains(&total), "{kind:?} of {total} octets");
    let mut out = BytesMut::with_capacity(total);
    out.put_slice(&MARKER);
    out.put_u16(total as u16);
    out.put_u8(kind as u8);
    out
}

/// Cuts off a field that its length in `octets` octets stands before; nothing if it does not fit.
pub(super) fn take(from: &mut Bytes, octets: usize) -> Option<Bytes> {
    let length = match octets {
        1 => usize::from(from.try_get_u8().ok()?),
        _ => usize::from(from.try_get_u16().ok()?),
    };
    (length <= from.len()).then(|| from.split_to(length))
}

#[cfg(test)]
mod tests;
