//! A tunnel without a cipher, for simulations: WireGuard's formats, sessions, numbers, replay window, rekeys and
//! expiry, on the simulator's clock. Real WireGuard keeps its time inside, so a simulated month would be a real one.
//!
//! Not a toy beside the real one: the node cannot tell them apart. What it leaves out is secrecy alone.

use super::{Gate, Handshake, Header, Indices, Keys, OVERHEAD, Opened, PacketId, Refusal, Role, Sealed, Suite, Tunnel};
use super::{HANDSHAKE_MAX, packet_id};
use super::{TunnelKind, quic};
use crate::output::Route;
use crate::{DropReason, Instant, PublicKey, SecretKey};
use rand::rngs::StdRng;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

/// WireGuard's REJECT_AFTER_TIME (whitepaper, section 6.1).
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// boringtun's replay window.
const WINDOW: u64 = 1024;
/// boringtun answers to the last two initiations only.
const PENDING: usize = 2;

/// Where an initiation says which kind of tunnel it is for: all formats here are WireGuard's.
const KIND: usize = 40;

/// The suite without a cipher.
#[derive(Debug, Default)]
pub struct Null;

impl Suite for Null {
    fn gate(&self, _local: &SecretKey) -> Box<dyn Gate> {
        Box::new(NullGate)
    }

    fn tunnel(&self, kind: TunnelKind, keys: Keys, role: Role, _now: Instant) -> Box<dyn Tunnel> {
        Box::new(NullTunnel {
            kind,
            public: keys.local.public(),
            role,
            base: None,
            counter: 0,
            pending: VecDeque::new(),
            sessions: Vec::new(),
            current: None,
        })
    }

    fn endpoint(&self, _listen: Option<&SecretKey>, _largest: u16, _rng: &mut StdRng) -> Option<quic::Endpoint> {
        None
    }
}

struct NullGate;

impl Gate for NullGate {
    fn initiator(&mut self, initiation: &[u8], _from: IpAddr, _dst: &mut [u8]) -> Result<PublicKey, Refusal> {
        let key = initiation.get(8..40).and_then(|key| <[u8; 32]>::try_from(key).ok());
        key.map(PublicKey::unchecked).ok_or(Refusal { reason: DropReason::HandshakeUnknownKey, reply: 0 })
    }

    fn kind(&self, initiation: &[u8]) -> TunnelKind {
        if initiation.get(KIND) == Some(&1) { TunnelKind::Quic } else { TunnelKind::WireGuard }
    }

    fn tick(&mut self) {}
}

struct Session {
    local: u32,
    remote: u32,
    since: Instant,
    next_number: u64,
    /// Numbers received, as far back as the window: the highest plus one, and a bit each below it.
    next_expected: u64,
    seen: VecDeque<bool>,
    /// At a responder: data has come.
    confirmed: bool,
}

impl Session {
    fn accept(&mut self, number: u64) -> bool {
        // The last number is never sent: a session has ended long before it.
        if number == u64::MAX {
            return false;
        }
        if number >= self.next_expected {
            for _ in self.next_expected..number.min(self.next_expected + WINDOW) {
                self.seen.push_front(false);
            }
            self.seen.push_front(true);
            self.seen.truncate(WINDOW as usize);
            self.next_expected = number + 1;
            return true;
        }
        let back = (self.next_expected - 1 - number) as usize;
        match self.seen.get_mut(back) {
            Some(seen) if !*seen => {
                *seen = true;
                true
            }
            _ => false,
        }
    }
}

struct NullTunnel {
    kind: TunnelKind,
    public: PublicKey,
    role: Role,
    base: Option<u32>,
    counter: u8,
    pending: VecDeque<u32>,
    sessions: Vec<Session>,
    current: Option<u32>,
}

impl NullTunnel {
    fn next_index(&mut self, indices: &mut Indices) -> u32 {
        let base = *self.base.get_or_insert_with(|| indices.draw());
        self.counter = self.counter.wrapping_add(1);
        base << 8 | u32::from(self.counter)
    }

    fn session(&mut self, local: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.local == local)
    }

    fn install(&mut self, local: u32, remote: u32, now: Instant) {
        // As many as boringtun keeps, the one in use never among those that go.
        if self.sessions.len() >= 8
            && let Some(at) = self.sessions.iter().position(|session| Some(session.local) != self.current)
        {
            self.sessions.remove(at);
        }
        self.sessions.push(Session {
            local,
            remote,
            since: now,
            next_number: 0,
            next_expected: 0,
            seen: VecDeque::new(),
            confirmed: false,
        });
    }

    fn word(datagram: &[u8], at: usize) -> u32 {
        datagram.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

impl Tunnel for NullTunnel {
    fn seal(&mut self, plaintext: &[u8], _now: Instant, dst: &mut [u8]) -> Option<Sealed> {
        let current = self.current?;
        let session = self.session(current)?;
        let id = PacketId { session: session.remote, number: session.next_number };
        session.next_number += 1;
        let len = plaintext.len() + OVERHEAD;
        dst[..4].copy_from_slice(&4u32.to_le_bytes());
        dst[4..8].copy_from_slice(&id.session.to_le_bytes());
        dst[8..16].copy_from_slice(&id.number.to_le_bytes());
        dst[16..16 + plaintext.len()].copy_from_slice(plaintext);
        // In place of the tag: a mark by which a flipped header is noticed.
        let mark = u64::from(id.session) ^ id.number.rotate_left(17) ^ plaintext.len() as u64;
        dst[len - 16..len - 8].copy_from_slice(&mark.to_le_bytes());
        dst[len - 8..len].fill(0);
        Some(Sealed { len, id })
    }

    fn open(
        &mut self,
        datagram: &[u8],
        now: Instant,
        _indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Opened, DropReason> {
        let id = packet_id(datagram).ok_or(DropReason::DatagramMalformed)?;
        let plaintext = &datagram[16..datagram.len() - 16];
        let mark = u64::from(id.session) ^ id.number.rotate_left(17) ^ plaintext.len() as u64;
        let session = self.session(id.session).ok_or(DropReason::UnknownSession)?;
        if datagram[datagram.len() - 16..datagram.len() - 8] != mark.to_le_bytes() {
            return Err(DropReason::DataInvalid);
        }
        if now.since(session.since) >= REJECT_AFTER || !session.accept(id.number) {
            return Err(DropReason::DataReplayed);
        }
        let established = !std::mem::replace(&mut session.confirmed, true) && self.role == Role::Responder;
        if established {
            self.current = Some(id.session);
        }
        dst[..plaintext.len()].copy_from_slice(plaintext);
        let ip = if plaintext.is_empty() {
            0
        } else {
            crate::packet::IpView::parse(plaintext).ok_or(DropReason::PeerMalformed)?.len
        };
        Ok(Opened { ip, plaintext: plaintext.len(), current: self.current == Some(id.session), established })
    }

    fn handshake(
        &mut self,
        datagram: &[u8],
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Handshake, DropReason> {
        match Header::parse(datagram) {
            Some(Header::Initiation) if self.role == Role::Responder => {
                let (local, remote) = (self.next_index(indices), Self::word(datagram, 4));
                self.install(local, remote, now);
                dst[..92].fill(0);
                dst[0] = 2;
                dst[4..8].copy_from_slice(&local.to_le_bytes());
                dst[8..12].copy_from_slice(&remote.to_le_bytes());
                Ok(Handshake { send: 92, id: None, established: false })
            }
            Some(Header::Response { receiver }) if self.pending.contains(&receiver) => {
                self.pending.retain(|&index| index != receiver);
                self.install(receiver, Self::word(datagram, 4), now);
                self.current = Some(receiver);
                let sealed = self.seal(&[], now, dst).ok_or(DropReason::HandshakeInvalid)?;
                Ok(Handshake { send: sealed.len, id: Some(sealed.id), established: true })
            }
            _ => Err(DropReason::HandshakeInvalid),
        }
    }

    fn initiate(&mut self, _now: Instant, _ways: &[Route], indices: &mut Indices, dst: &mut [u8]) -> usize {
        if self.role == Role::Responder {
            return 0;
        }
        let index = self.next_index(indices);
        self.pending.push_back(index);
        if self.pending.len() > PENDING {
            self.pending.pop_front();
        }
        dst[..HANDSHAKE_MAX].fill(0);
        dst[0] = 1;
        dst[4..8].copy_from_slice(&index.to_le_bytes());
        dst[8..40].copy_from_slice(self.public.as_bytes());
        dst[KIND] = u8::from(self.kind == TunnelKind::Quic);
        HANDSHAKE_MAX
    }

    fn tick(&mut self, now: Instant, _indices: &mut Indices, _dst: &mut [u8]) -> Handshake {
        self.sessions.retain(|session| now.since(session.since) < REJECT_AFTER);
        if self.current.is_some_and(|current| self.session(current).is_none()) {
            self.current = None;
        }
        Handshake::default()
    }

    fn has_session(&self) -> bool {
        self.current.is_some()
    }

    fn session_since(&self) -> Option<Instant> {
        self.sessions.iter().find(|session| Some(session.local) == self.current).map(|session| session.since)
    }

    fn clock_stepped(&mut self) {}

    fn retire(&mut self, indices: &mut Indices) {
        if let Some(base) = self.base.take() {
            indices.free(base);
        }
    }
}
