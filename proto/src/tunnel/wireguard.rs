//! WireGuard by boringtun's `noise`: the only file that knows it, and where its traps are handled.
//!
//! | trap | what is done here |
//! | --- | --- |
//! | a session's slot is its index mod 8, and each initiation takes an index: retries overwrite the live session, at both ends | handshakes never touch the `Tunn` in use: each has a candidate, which is put in use when it has succeeded |
//! | `update_timers` retries and rekeys by itself, at an end that should only answer too | only keepalives of what it returns are sent; the node says when to [`Tunnel::initiate`] |
//! | after 90 s without an answer `update_timers` returns an error for ever | [`Tunnel::initiate`] forces an initiation, the node asks for one while the path is down |
//! | and throws away all sessions then, also where a path that was silent for 15 s works again | once a `Tunn` in use has begun a handshake by itself its clock stands still, and its sessions are expired here |
//! | without a session `encapsulate` queues packets and sends them stale | `seal` asks for a session first |
//! | the time stamp of handshakes is taken once, in `new` | [`Tunnel::clock_stepped`] makes a new `Tunn`; at the responder a stale time stamp leads to a new candidate, at most one a second |
//! | `decapsulate` without a source address sends no cookie under load | the gate has the limiter, and the address |
//! | `dst` too small panics | lengths are checked before each call |
//!
//! boringtun reads the clock and draws ephemeral keys inside: the one exception to this crate's rule.

use super::{Gate, Handshake, Indices, Keys, OVERHEAD, Opened, Refusal, Role, Sealed, Tunnel};
use super::{HANDSHAKE_MAX, packet_id};
use crate::output::Route;
use crate::{DropReason, Instant, PublicKey, SecretKey};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use x25519_dalek as x25519;

/// Initiations answered in a second without asking for a cookie. Each costs about 0.3 ms; 250 keep a flood below a
/// tenth of a core, and let 10,000 sites reconnect in less than a minute even if none of them could do cookies.
const INITIATIONS_PER_SECOND: u64 = 250;

/// A session is refused this long after its handshake (WireGuard's REJECT_AFTER_TIME), so a `Tunn` that was replaced
/// has nothing left to open after it.
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// How soon after a candidate's last answer another may be made when the time stamp is stale: whoever replays old
/// initiations costs us one a second and cannot take away the answer that an honest box is about to confirm, and one
/// whose clock was set back waits no longer than that.
const CANDIDATE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct WireGuardGate {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: RateLimiter,
}

impl WireGuardGate {
    pub(super) fn new(local: &SecretKey) -> WireGuardGate {
        let public = x25519::PublicKey::from(local.x25519());
        let limiter = RateLimiter::new(&public, INITIATIONS_PER_SECOND);
        WireGuardGate { private: local.x25519().clone(), public, limiter }
    }
}

impl Gate for WireGuardGate {
    fn initiator(&mut self, initiation: &[u8], from: IpAddr, dst: &mut [u8]) -> Result<PublicKey, Refusal> {
        let refuse = |reason| Refusal { reason, reply: 0 };
        let packet = match self.limiter.verify_packet(Some(from), initiation, dst) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                return Err(Refusal { reason: DropReason::HandshakeLoad, reply: cookie.len() });
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => return Err(refuse(DropReason::HandshakeMac)),
            Err(_) => return Err(refuse(DropReason::HandshakeInvalid)),
        };
        let Packet::HandshakeInit(packet) = packet else { return Err(refuse(DropReason::HandshakeInvalid)) };
        let half = parse_handshake_anon(&self.private, &self.public, &packet)
            .map_err(|_| refuse(DropReason::HandshakeInvalid))?;
        Ok(PublicKey::unchecked(half.peer_static_public))
    }

    fn tick(&mut self) {
        self.limiter.reset_count();
    }
}

/// A `Tunn` and its 24-bit index.
struct Generation {
    tunn: Tunn,
    index: u32,
    /// Since when it is what it is; for a responder's candidate, when it answered last.
    since: Instant,
    /// When its session in use was agreed on.
    session_since: Option<Instant>,
    /// boringtun's clock in it is not moved any more: see [`Generation::tick`].
    stopped: bool,
}

impl Generation {
    fn new(keys: &Keys, now: Instant, indices: &mut Indices) -> Box<Self> {
        let index = indices.draw();
        let local = keys.local.x25519().clone();
        // The gate has counted and checked initiations already; this limiter only parses.
        let open_limiter = Arc::new(RateLimiter::new(&x25519::PublicKey::from(&local), u64::MAX));
        let remote = x25519::PublicKey::from(*keys.remote.as_bytes());
        let tunn = Tunn::new(local, remote, None, None, index, Some(open_limiter));
        Box::new(Generation { tunn, index, since: now, session_since: None, stopped: false })
    }

    fn owns(&self, session: u32) -> bool {
        session >> 8 == self.index
    }

    /// Moves the clock of one that has been in use, and returns the datagram that is to be sent: a keepalive or
    /// nothing. An initiation is never sent, so nobody answers it, and 90 s later boringtun would throw away all
    /// sessions, also those that work: it gets no occasion to.
    fn tick<'a>(&mut self, dst: &'a mut [u8]) -> Option<&'a [u8]> {
        if self.stopped {
            return None;
        }
        let TunnResult::WriteToNetwork(datagram) = self.tunn.update_timers(dst) else { return None };
        self.stopped = packet_id(datagram).is_none();
        (!self.stopped).then_some(datagram)
    }

    fn refresh(&mut self, now: Instant) {
        self.session_since = self.tunn.time_since_last_handshake().map(|age| before(now, age));
    }
}

fn before(now: Instant, age: Duration) -> Instant {
    Instant::from_nanos(now.as_nanos().saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

pub(super) struct WireGuardTunnel {
    keys: Keys,
    role: Role,
    /// What we send with; opens too.
    live: Option<Box<Generation>>,
    /// Has begun (an initiator) or answered (a responder) a handshake that has not succeeded yet.
    candidate: Option<Box<Generation>>,
    /// What was live before; opens until its sessions are too old.
    old: Option<Box<Generation>>,
    /// The wall clock was set since the last initiation: the next one needs a new `Tunn`.
    stepped: bool,
}

impl WireGuardTunnel {
    pub(super) fn new(keys: Keys, role: Role) -> WireGuardTunnel {
        WireGuardTunnel { keys, role, live: None, candidate: None, old: None, stepped: false }
    }

    fn promote(&mut self, now: Instant, indices: &mut Indices) {
        let Some(mut candidate) = self.candidate.take() else { return };
        candidate.since = now;
        if let Some(mut live) = self.live.replace(candidate) {
            live.since = now;
            if let Some(old) = self.old.replace(live) {
                indices.free(old.index);
            }
        }
    }

    fn generation(&mut self, session: u32) -> Option<&mut Generation> {
        [&mut self.live, &mut self.candidate, &mut self.old]
            .into_iter()
            .filter_map(|slot| slot.as_deref_mut())
            .find(|generation| generation.owns(session))
    }
}

impl Tunnel for WireGuardTunnel {
    fn seal(&mut self, plaintext: &[u8], _now: Instant, dst: &mut [u8]) -> Option<Sealed> {
        let live = self.live.as_mut().filter(|live| live.session_since.is_some())?;
        if dst.len() < (plaintext.len() + OVERHEAD).max(HANDSHAKE_MAX) {
            return None;
        }
        match live.tunn.encapsulate(plaintext, dst) {
            TunnResult::WriteToNetwork(datagram) => Some(Sealed { len: datagram.len(), id: packet_id(datagram)? }),
            _ => None,
        }
    }

    fn open(
        &mut self,
        datagram: &[u8],
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Opened, DropReason> {
        let id = packet_id(datagram).ok_or(DropReason::DatagramMalformed)?;
        if dst.len() < datagram.len() {
            return Err(DropReason::DatagramMalformed);
        }
        let generation = self.generation(id.session).ok_or(DropReason::UnknownSession)?;
        let ip = match generation.tunn.decapsulate(None, datagram, dst) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => Ok(packet.len()),
            TunnResult::Done => Ok(0),
            TunnResult::Err(error) => Err(match error {
                WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::UnknownSession,
                WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::DataReplayed,
                // The cipher was right and the content is no packet: it is the peer's fault.
                WireGuardError::InvalidPacket => DropReason::PeerMalformed,
                _ => DropReason::DataInvalid,
            }),
            TunnResult::WriteToNetwork(_) => Err(DropReason::DataInvalid),
        }?;
        let established = self.role == Role::Responder && self.candidate.as_ref().is_some_and(|c| c.owns(id.session));
        if established {
            self.promote(now, indices);
        }
        let live = self.live.as_deref_mut().filter(|live| live.owns(id.session));
        let current = live.is_some();
        if let Some(live) = live
            && live.session_since.is_none()
        {
            live.refresh(now);
        }
        Ok(Opened { ip, plaintext: datagram.len() - OVERHEAD, current, established })
    }

    fn handshake(
        &mut self,
        datagram: &[u8],
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Handshake, DropReason> {
        match super::Header::parse(datagram).ok_or(DropReason::DatagramMalformed)? {
            super::Header::Initiation if self.role == Role::Responder => self.answer(datagram, now, indices, dst),
            super::Header::Response { receiver } if self.role == Role::Initiator => {
                let generation = self.generation(receiver).ok_or(DropReason::HandshakeInvalid)?;
                let (send, id) = match generation.tunn.decapsulate(None, datagram, dst) {
                    TunnResult::WriteToNetwork(keepalive) => (keepalive.len(), packet_id(keepalive)),
                    _ => return Err(DropReason::HandshakeInvalid),
                };
                generation.refresh(now);
                // An answer to an initiation before the one that succeeded finds its `Tunn` live already.
                if self.candidate.as_ref().is_some_and(|candidate| candidate.owns(receiver)) {
                    self.promote(now, indices);
                }
                Ok(Handshake { send, id, established: true })
            }
            super::Header::Cookie { receiver } => {
                let generation = self.generation(receiver).ok_or(DropReason::HandshakeInvalid)?;
                match generation.tunn.decapsulate(None, datagram, dst) {
                    TunnResult::Done => Ok(Handshake::default()),
                    _ => Err(DropReason::HandshakeInvalid),
                }
            }
            _ => Err(DropReason::HandshakeInvalid),
        }
    }

    fn initiate(&mut self, now: Instant, _ways: &[Route], indices: &mut Indices, dst: &mut [u8]) -> usize {
        if self.role == Role::Responder || dst.len() < HANDSHAKE_MAX {
            return 0;
        }
        if std::mem::take(&mut self.stepped)
            && let Some(outdated) = self.candidate.take()
        {
            indices.free(outdated.index);
        }
        let generation = self.candidate.get_or_insert_with(|| Generation::new(&self.keys, now, indices));
        match generation.tunn.format_handshake_initiation(dst, true) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            _ => 0,
        }
    }

    fn tick(&mut self, now: Instant, indices: &mut Indices, dst: &mut [u8]) -> Handshake {
        for slot in [&mut self.old, &mut self.candidate] {
            if let Some(outdated) = slot.take_if(|generation| now.since(generation.since) >= REJECT_AFTER) {
                indices.free(outdated.index);
            }
        }
        let expired = |live: &mut Box<Generation>| live.session_since.is_none_or(|at| now.since(at) >= REJECT_AFTER);
        if let Some(expired) = self.live.take_if(expired) {
            indices.free(expired.index);
        }
        // Their clocks move; what they would send is not ours to send: only the live one speaks.
        if let Some(candidate) = &mut self.candidate {
            let _ = candidate.tunn.update_timers(dst);
        }
        if let Some(old) = &mut self.old {
            let _ = old.tick(dst);
        }
        let Some(live) = &mut self.live else { return Handshake::default() };
        let keepalive = live.tick(dst).map(|datagram| Handshake {
            send: datagram.len(),
            id: packet_id(datagram),
            established: false,
        });
        live.refresh(now);
        keepalive.unwrap_or_default()
    }

    fn has_session(&self) -> bool {
        self.session_since().is_some()
    }

    fn session_since(&self) -> Option<Instant> {
        self.live.as_ref()?.session_since
    }

    fn clock_stepped(&mut self) {
        self.stepped = self.role == Role::Initiator;
    }

    fn retire(&mut self, indices: &mut Indices) {
        for slot in [&mut self.live, &mut self.candidate, &mut self.old] {
            if let Some(generation) = slot.take() {
                indices.free(generation.index);
            }
        }
    }
}

impl WireGuardTunnel {
    /// Answers an initiation by a candidate.
    fn answer(
        &mut self,
        datagram: &[u8],
        now: Instant,
        indices: &mut Indices,
        dst: &mut [u8],
    ) -> Result<Handshake, DropReason> {
        if dst.len() < HANDSHAKE_MAX {
            return Err(DropReason::HandshakeInvalid);
        }
        for attempt in 0..2 {
            if self.candidate.is_none() {
                self.candidate = Some(Generation::new(&self.keys, now, indices));
            }
            let Some(candidate) = &mut self.candidate else { break };
            match candidate.tunn.decapsulate(None, datagram, dst) {
                TunnResult::WriteToNetwork(response) => {
                    candidate.since = now;
                    return Ok(Handshake { send: response.len(), id: None, established: false });
                }
                TunnResult::Err(WireGuardError::WrongTai64nTimestamp)
                    if attempt == 0 && now.since(candidate.since) >= CANDIDATE_INTERVAL =>
                {
                    indices.free(candidate.index);
                    self.candidate = None;
                }
                _ => break,
            }
        }
        Err(DropReason::HandshakeInvalid)
    }
}
