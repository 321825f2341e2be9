//! OPEN: who speaks, and what they can do (RFC 4271, section 4.2; capabilities: RFC 5492).
//!
//! ```text
//! | version (1) | AS (2) | hold time (2) | BGP identifier (4) | parameters' length (1) | parameters |
//!
//! parameter:   | type (1) | length (1) | value |          type 2: capabilities
//! capability:  | code (1) | length (1) | value |
//! ```
//! Where the parameters are longer than 255 octets, 255 and 255 stand in place of length and first type, and all lengths
//! of parameters have two octets (RFC 9072).

use super::message::{AS_TRANS, Kind, Notification, header, take};
use super::role::Role;
use super::{Families, Family};
use bytes::{Buf, BufMut, Bytes};
use std::net::Ipv4Addr;

/// The one version there is.
const VERSION: u8 = 4;
/// The one type of parameter there is.
const CAPABILITIES: u8 = 2;

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const EXTENDED_NEXT_HOP: u8 = 5;
const EXTENDED_MESSAGE: u8 = 6;
const ROLE: u8 = 9;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;
const ADD_PATH: u8 = 69;
const ENHANCED_ROUTE_REFRESH: u8 = 70;

/// What an OPEN says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The AS number: the capability's where there is one, else the field's.
    pub asn: u32,
    /// In seconds; 0 is none, and 1 and 2 do not occur.
    pub hold_time: u16,
    /// The BGP identifier.
    pub router_id: Ipv4Addr,
    /// What the speaker can do.
    pub capabilities: Capabilities,
}

/// What a speaker can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The families offered (RFC 4760); IPv4 alone where no capability says anything.
    pub families: Families,
    /// Four-octet AS numbers (RFC 6793).
    pub four_octet_as: bool,
    /// Route refresh (RFC 2918).
    pub route_refresh: bool,
    /// Route refresh with its beginning and end marked (RFC 7313).
    pub enhanced_route_refresh: bool,
    /// Messages of up to 65,535 octets (RFC 8654).
    pub extended_message: bool,
    /// IPv4 routes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Families of which it takes several routes to one prefix (RFC 7911).
    pub add_path_receive: Families,
    /// Families of which it would send several routes to one prefix.
    pub add_path_send: Families,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: Option<GracefulRestart>,
    /// What it is to us (RFC 9234).
    pub role: Option<Role>,
}

/// The graceful restart capability (RFC 4724, section 3). Without families: the speaker keeps nothing over a restart of
/// its own, and helps others over theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// It has just restarted.
    pub restarted: bool,
    /// How long it may take to be back, in seconds; 12 bits.
    pub time: u16,
    /// What it can go on forwarding meanwhile.
    pub families: Families,
    /// What it did go on forwarding.
    pub forwarding: Families,
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
        let mut open = Open { asn: u32::from(asn), hold_time, router_id, capabilities: Capabilities::default() };
        let mut multiprotocol = false;
        while !body.is_empty() {
            let kind = body.get_u8();
            let mut value = take(&mut body, if extended { 2 } else { 1 }).ok_or_else(malformed)?;
            if kind != CAPABILITIES {
                return Err(Notification::new(2, 4));
            }
            while !value.is_empty() {
                let code = value.get_u8();
                let capability = take(&mut value, 1).ok_or_else(malformed)?;
                multiprotocol |= code == MULTIPROTOCOL;
                open.capability(code, capability)?;
            }
        }
        if !multiprotocol {
            open.capabilities.families.insert(Family::Ipv4);
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

    /// Takes note of one capability. Unknown ones are skipped (RFC 5492, section 3).
    fn capability(&mut self, code: u8, mut value: Bytes) -> Result<(), Notification> {
        let ours = &mut self.capabilities;
        match (code, value.len()) {
            (MULTIPROTOCOL, 4) => {
                let (afi, _reserved, safi) = (value.get_u16(), value.get_u8(), value.get_u8());
                Family::from_afi_safi(afi, safi).into_iter().for_each(|family| ours.families.insert(family));
            }
            (ROUTE_REFRESH, 0) => ours.route_refresh = true,
            (ENHANCED_ROUTE_REFRESH, 0) => ours.enhanced_route_refresh = true,
            (EXTENDED_MESSAGE, 0) => ours.extended_message = true,
            // AFI, SAFI and the next hop's AFI, each of two octets.
            (EXTENDED_NEXT_HOP, length) if length % 6 == 0 => {
                ours.extended_next_hop |= value.chunks_exact(6).any(|item| item == [0, 1, 0, 1, 0, 2]);
            }
            (ROLE, 1) => {
                let role = Role::from_wire(value.get_u8()).ok_or_else(|| Notification::new(2, 11))?;
                // RFC 9234, section 4.2: one that says two things is not to be believed.
                if ours.role.replace(role).is_some_and(|before| before != role) {
                    return Err(Notification::new(2, 11));
                }
            }
            (GRACEFUL_RESTART, length @ 2..) if length % 4 == 2 => {
                let head = value.get_u16();
                let mut restart = GracefulRestart {
                    restarted: head & 0x8000 != 0,
                    time: head & 0x0fff,
                    ..GracefulRestart::default()
                };
                while value.len() >= 4 {
                    let (afi, safi, flags) = (value.get_u16(), value.get_u8(), value.get_u8());
                    if let Some(family) = Family::from_afi_safi(afi, safi) {
                        restart.families.insert(family);
                        if flags & 0x80 != 0 {
                            restart.forwarding.insert(family);
                        }
                    }
                }
                ours.graceful_restart = Some(restart);
            }
            (FOUR_OCTET_AS, 4) => {
                ours.four_octet_as = true;
                self.asn = value.get_u32();
            }
            (ADD_PATH, length) if length % 4 == 0 => {
                while value.len() >= 4 {
                    let (afi, safi, direction) = (value.get_u16(), value.get_u8(), value.get_u8());
                    // RFC 7911, section 4: an entry with another direction is passed over.
                    if let Some(family) = Family::from_afi_safi(afi, safi).filter(|_| direction <= 3) {
                        if direction & 1 != 0 {
                            ours.add_path_receive.insert(family);
                        }
                        if direction & 2 != 0 {
                            ours.add_path_send.insert(family);
                        }
                    }
                }
            }
            (
                MULTIPROTOCOL
                | ROUTE_REFRESH
                | ENHANCED_ROUTE_REFRESH
                | EXTENDED_MESSAGE
                | EXTENDED_NEXT_HOP
                | ROLE
                | GRACEFUL_RESTART
                | FOUR_OCTET_AS
                | ADD_PATH,
                _,
            ) => return Err(Notification::new(2, 0)),
            _ => {}
        }
        Ok(())
    }

    /// The message.
    pub fn encode(&self) -> Bytes {
        let capabilities = self.capabilities.encode(self.asn);
        // One parameter holds them all, and they are fewer than 253 octets.
        let parameters = if capabilities.is_empty() { 0 } else { 2 + capabilities.len() };
        let mut out = header(Kind::Open, 10 + parameters);
        out.put_u8(VERSION);
        out.put_u16(u16::try_from(self.asn).unwrap_or(AS_TRANS));
        out.put_u16(self.hold_time);
        out.put_u32(self.router_id.into());
        out.put_u8(parameters as u8);
        if !capabilities.is_empty() {
            out.put_u8(CAPABILITIES);
            out.put_u8(capabilities.len() as u8);
            out.put_slice(&capabilities);
        }
        out.freeze()
    }
}

impl Capabilities {
    /// All of them, one after the other.
    pub(super) fn encode(&self, asn: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |code: u8, value: &[u8]| {
            out.extend_from_slice(&[code, value.len() as u8]);
            out.extend_from_slice(value);
        };
        for family in self.families.iter() {
            let (afi, safi) = family.afi_safi();
            put(MULTIPROTOCOL, &[0, afi, 0, safi]);
        }
        if self.route_refresh {
            put(ROUTE_REFRESH, &[]);
        }
        if self.extended_next_hop {
            put(EXTENDED_NEXT_HOP, &[0, 1, 0, 1, 0, 2]);
        }
        if self.extended_message {
            put(EXTENDED_MESSAGE, &[]);
        }
        if let Some(role) = self.role {
            put(ROLE, &[role as u8]);
        }
        if let Some(restart) = self.graceful_restart {
            let head = u16::from(restart.restarted) << 15 | restart.time & 0x0fff;
            let mut value = head.to_be_bytes().to_vec();
            for family in restart.families.iter() {
                let (afi, safi) = family.afi_safi();
                value.extend_from_slice(&[0, afi, safi, u8::from(restart.forwarding.contains(family)) << 7]);
            }
            put(GRACEFUL_RESTART, &value);
        }
        if self.four_octet_as {
            put(FOUR_OCTET_AS, &asn.to_be_bytes());
        }
        let mut add_path = Vec::new();
        for family in Families::ALL.iter() {
            let (receive, send) = (self.add_path_receive.contains(family), self.add_path_send.contains(family));
            if receive || send {
                let (afi, safi) = family.afi_safi();
                add_path.extend_from_slice(&[0, afi, safi, u8::from(receive) | u8::from(send) << 1]);
            }
        }
        if !add_path.is_empty() {
            put(ADD_PATH, &add_path);
        }
        if self.enhanced_route_refresh {
            put(ENHANCED_ROUTE_REFRESH, &[]);
        }
        out
    }
}

#[cfg(test)]
mod tests;
