//! Messages: a strict framer, OPEN, NOTIFICATION, ROUTE-REFRESH; and the writing of all that we send.
//!
//! bgpkit-parser reads archives, where a bad marker or an odd length is history and no threat: it takes a KEEPALIVE of
//! 25 octets and an OPEN whose parameters do not add up. A speaker must not (RFC 4271, section 6). So what comes in is
//! framed and walked here, and bgpkit-parser writes what goes out.

use super::{Families, Family};
use bgpkit_parser::models::capabilities::{
    BgpCapabilityType, FourOctetAsCapability, MultiprotocolExtensionsCapability, RouteRefreshCapability,
};
use bgpkit_parser::models::{
    Afi, Asn, AsnLength, BgpMessage, BgpOpenMessage, Capability, CapabilityValue, OptParam, ParamValue, Safi,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;
use std::net::Ipv4Addr;

/// Marker, length and type (RFC 4271, section 4.1).
pub const HEADER: usize = 19;
/// The longest message; more needs RFC 8654, which we do not offer.
pub const MAX_MESSAGE: usize = 4096;
/// What a speaker of two-octet AS numbers sees in place of a larger one (RFC 6793, section 9).
pub const AS_TRANS: u16 = 23456;

const MARKER: [u8; 16] = [0xff; 16];
/// The one version there is.
const VERSION: u8 = 4;

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

    /// The lengths a message of this kind can have, header included (RFC 4271, section 4; RFC 2918, section 3).
    fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Kind::Open => 29..=MAX_MESSAGE,
            Kind::Update => 23..=MAX_MESSAGE,
            Kind::Notification => 21..=MAX_MESSAGE,
            Kind::Keepalive => HEADER..=HEADER,
            // Longer ones carry filters (RFC 5291), which we do not offer.
            Kind::RouteRefresh => 23..=23,
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
#[derive(Debug, Default)]
pub struct Framer {
    buffer: BytesMut,
}

impl Framer {
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
        if !(HEADER..=MAX_MESSAGE).contains(&length) {
            return Err(bad_length());
        }
        let kind = Kind::from_wire(self.buffer[18]);
        let kind = kind.ok_or_else(|| Notification::with_data(1, 3, &self.buffer[18..19]))?;
        if !kind.lengths().contains(&length) {
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

/// What an OPEN says (RFC 4271, section 4.2), as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The AS number: the capability's where there is one, else the field's.
    pub asn: u32,
    /// In seconds; 0 is none, and 1 and 2 do not occur.
    pub hold_time: u16,
    /// The BGP identifier.
    pub router_id: Ipv4Addr,
    /// Four-octet AS numbers (RFC 6793).
    pub four_octet_as: bool,
    /// Route refresh (RFC 2918).
    pub route_refresh: bool,
    /// The families offered (RFC 4760); IPv4 alone where no capability says anything.
    pub families: Families,
}

impl Open {
    /// Reads the body of an OPEN. An error is the NOTIFICATION to answer with (RFC 4271, section 6.2; RFC 5492).
    pub fn decode(body: &Bytes) -> Result<Open, Notification> {
        let malformed = || Notification::new(2, 0);
        let mut body = body.clone();
        if body.len() < 10 {
            return Err(malformed());
        }
        let version = body.get_u8();
        if version != VERSION {
            return Err(Notification::with_data(2, 1, &u16::from(VERSION).to_be_bytes()));
        }
        let asn = body.get_u16();
        let hold_time = body.get_u16();
        let router_id = Ipv4Addr::from(body.get_u32());
        let mut length = usize::from(body.get_u8());
        // RFC 9072: 255 and a first parameter of type 255 mean that two-octet lengths follow.
        let extended = length == 255 && body.first() == Some(&255);
        if extended {
            if body.len() < 3 {
                return Err(malformed());
            }
            body.advance(1);
            length = usize::from(body.get_u16());
        }
        if body.len() != length {
            return Err(malformed());
        }
        let mut open = Open {
            asn: u32::from(asn),
            hold_time,
            router_id,
            four_octet_as: false,
            route_refresh: false,
            families: Families::default(),
        };
        let mut multiprotocol = false;
        while !body.is_empty() {
            let kind = body.get_u8();
            let mut value = take(&mut body, if extended { 2 } else { 1 }).ok_or_else(malformed)?;
            if kind != 2 {
                return Err(Notification::new(2, 4));
            }
            while !value.is_empty() {
                let code = value.get_u8();
                let capability = take(&mut value, 1).ok_or_else(malformed)?;
                open.capability(code, capability, &mut multiprotocol).ok_or_else(malformed)?;
            }
        }
        if !multiprotocol {
            open.families.insert(Family::Ipv4);
        }
        if open.asn == 0 {
            return Err(Notification::new(2, 2));
        }
        if matches!(open.hold_time, 1 | 2) {
            return Err(Notification::new(2, 6));
        }
        // RFC 6286: any number but zero.
        if open.router_id.is_unspecified() {
            return Err(Notification::new(2, 3));
        }
        Ok(open)
    }

    /// Takes note of one capability; nothing if it is malformed. Unknown ones are skipped (RFC 5492, section 3).
    fn capability(&mut self, code: u8, mut value: Bytes, multiprotocol: &mut bool) -> Option<()> {
        match (code, value.len()) {
            (1, 4) => {
                let (afi, _reserved, safi) = (value.get_u16(), value.get_u8(), value.get_u8());
                *multiprotocol = true;
                if let Some(family) = Family::from_afi_safi(afi, safi) {
                    self.families.insert(family);
                }
            }
            (2, 0) => self.route_refresh = true,
            (65, 4) => {
                self.four_octet_as = true;
                self.asn = value.get_u32();
            }
            (1 | 2 | 65, _) => return None,
            _ => {}
        }
        Some(())
    }

    /// The message.
    pub fn encode(&self) -> Bytes {
        let mut capabilities = Vec::new();
        for (offered, afi) in [(self.families.ipv4, Afi::Ipv4), (self.families.ipv6, Afi::Ipv6)] {
            if offered {
                capabilities.push(Capability {
                    ty: BgpCapabilityType::MULTIPROTOCOL_EXTENSIONS_FOR_BGP_4,
                    value: CapabilityValue::MultiprotocolExtensions(MultiprotocolExtensionsCapability::new(
                        afi,
                        Safi::Unicast,
                    )),
                });
            }
        }
        if self.route_refresh {
            capabilities.push(Capability {
                ty: BgpCapabilityType::ROUTE_REFRESH_CAPABILITY_FOR_BGP_4,
                value: CapabilityValue::RouteRefresh(RouteRefreshCapability::new()),
            });
        }
        if self.four_octet_as {
            capabilities.push(Capability {
                ty: BgpCapabilityType::SUPPORT_FOR_4_OCTET_AS_NUMBER_CAPABILITY,
                value: CapabilityValue::FourOctetAs(FourOctetAsCapability::new(self.asn)),
            });
        }
        let opt_params = match capabilities.is_empty() {
            true => Vec::new(),
            false => vec![OptParam { param_type: 2, param_value: ParamValue::Capacities(capabilities) }],
        };
        BgpMessage::Open(BgpOpenMessage {
            version: VERSION,
            asn: Asn::new_16bit(u16::try_from(self.asn).unwrap_or(AS_TRANS)),
            hold_time: self.hold_time,
            bgp_identifier: self.router_id,
            extended_length: false,
            opt_params,
        })
        .encode(AsnLength::Bits32)
        .expect("four capabilities are within 255 octets")
    }
}

/// A KEEPALIVE.
pub fn keepalive() -> Bytes {
    header(Kind::Keepalive, 0).freeze()
}

/// The family that a ROUTE-REFRESH asks for, if it is one of ours and it asks (RFC 2918; subtypes other than 0 are RFC
/// 7313's, which we do not offer, and are ignored as it says).
pub fn refresh(body: &Bytes) -> Option<Family> {
    match body[..] {
        [afi_high, afi_low, 0, safi] => Family::from_afi_safi(u16::from_be_bytes([afi_high, afi_low]), safi),
        _ => None,
    }
}

/// The header of a message whose body has `length` octets, with room for it.
fn header(kind: Kind, length: usize) -> BytesMut {
    let total = HEADER + length;
    debug_assert!(kind.lengths().contains(&total), "{kind:?} of {total} octets");
    let mut out = BytesMut::with_capacity(total);
    out.put_slice(&MARKER);
    out.put_u16(total as u16);
    out.put_u8(kind as u8);
    out
}

/// Cuts off a field that its length in `octets` octets stands before; nothing if it does not fit.
fn take(from: &mut Bytes, octets: usize) -> Option<Bytes> {
    let length = match octets {
        1 => usize::from(from.try_get_u8().ok()?),
        _ => usize::from(from.try_get_u16().ok()?),
    };
    (length <= from.len()).then(|| from.split_to(length))
}

#[cfg(test)]
mod tests;
