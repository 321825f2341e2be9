//! How a cache tells its VRPs: the RPKI to Router Protocol (RFC 8210; with a cache that knows no other, RFC 6810), without
//! clock and socket.
//!
//! ```text
//!   0          8          16         24        31
//!   +----------+----------+---------------------+
//!   | version  | PDU type | session, error code |
//!   +----------+----------+---------------------+
//!   | length of all, this header included       |
//!   +-------------------------------------------+
//!
//!   us                                  cache
//!     --- Reset Query ------------------>          everything, or Serial Query (session, serial): what is new
//!     <-- Cache Response (session) ------
//!     <-- IPv4 Prefix, IPv6 Prefix ... --
//!     <-- End of Data (session, serial, timing)
//!     ...
//!     <-- Serial Notify -----------------          there is news; else we ask after the refresh interval
//! ```
//!
//! A cache is believed in what it says, and in nothing that concerns our health: what it may make us hold, and how long it
//! may take, is bounded, and one octet that is wrong ends the connection.

use super::origin::{Change, Inconsistent, Vrp};
use bytes::{Buf, BufMut, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proto::Instant;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The version that is asked for first: RFC 8210's. The next one adds what is not used here.
const VERSION: u8 = 1;
/// RFC 6810's.
const OLD_VERSION: u8 = 0;
const HEADER: usize = 8;
/// The longest PDU: a router key has some hundred octets, and an error report a PDU and a sentence.
const MAX_PDU: usize = 16 * 1024;
/// The most VRPs: three times what the world had in 2026. A set takes 77 MB then, and its making twice that.
pub(crate) const MOST_VRPS: usize = 2_000_000;
/// How long a cache may take for an answer: all the world's VRPs over a line of 1 Mbit/s.
const ANSWER: Duration = Duration::from_secs(120);
/// From an answer to the next question at least, whatever the cache says: RFC 8210's least refresh interval.
const PAUSE: Duration = Duration::from_secs(1);

mod pdu {
    pub(super) const SERIAL_NOTIFY: u8 = 0;
    pub(super) const SERIAL_QUERY: u8 = 1;
    pub(super) const RESET_QUERY: u8 = 2;
    pub(super) const CACHE_RESPONSE: u8 = 3;
    pub(super) const IPV4_PREFIX: u8 = 4;
    pub(super) const IPV6_PREFIX: u8 = 6;
    pub(super) const END_OF_DATA: u8 = 7;
    pub(super) const CACHE_RESET: u8 = 8;
    pub(super) const ROUTER_KEY: u8 = 9;
    pub(super) const ERROR_REPORT: u8 = 10;
}

/// The error of a cache that has just started, and no fault of anybody's (RFC 8210, section 12).
pub(crate) const NO_DATA: u16 = 2;
/// The error that says that another version is to be spoken (RFC 8210, section 12).
const UNSUPPORTED_VERSION: u16 = 4;

/// Why a connection with a cache ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It has said so itself.
    #[error("the cache reports: {}{}", error_name(*code), colon(text))]
    Reported {
        /// RFC 8210, section 12.
        code: u16,
        /// In its words.
        text: String,
    },
    /// In no version that we know, or in another one than before.
    #[error("the cache speaks version {0}, which was not agreed on")]
    Version(u8),
    /// Of a type that there is not, or that is not for a router.
    #[error("the cache sent a PDU of type {0}, which no router expects")]
    Type(u8),
    /// A length that its type cannot have.
    #[error("the cache sent a PDU of type {0} with a length of {1} octets")]
    Length(u8, u32),
    /// Well framed, and wrong.
    #[error("the cache sent {0}")]
    Corrupt(&'static str),
    /// More than we hold.
    #[error("the cache has more than {MOST_VRPS} VRPs")]
    TooMany,
    /// Its news does not fit what it told before.
    #[error("the cache {0}")]
    Inconsistent(#[from] Inconsistent),
    /// It takes too long.
    #[error("the cache did not finish its answer within {} s", ANSWER.as_secs())]
    Slow,
}

fn error_name(code: u16) -> String {
    let name = match code {
        0 => "corrupt data",
        1 => "internal error",
        NO_DATA => "no data available yet",
        3 => "invalid request",
        UNSUPPORTED_VERSION => "unsupported protocol version",
        5 => "unsupported PDU type",
        6 => "withdrawal of an unknown record",
        7 => "duplicate announcement",
        8 => "unexpected protocol version",
        _ => return format!("error {code}"),
    };
    name.into()
}

fn colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl Fault {
    /// What the cache is told of it (RFC 8210, section 12), if it is: an error report is not answered by one.
    fn code(&self) -> Option<u16> {
        match self {
            Fault::Reported { .. } | Fault::Slow | Fault::Length(pdu::ERROR_REPORT, _) => None,
            Fault::Length(..) | Fault::Corrupt(_) => Some(0),
            Fault::TooMany => Some(1),
            Fault::Type(_) => Some(5),
            Fault::Inconsistent(Inconsistent::Unknown(_)) => Some(6),
            Fault::Inconsistent(Inconsistent::Duplicate(_)) => Some(7),
            Fault::Version(_) => Some(8),
        }
    }
}

/// Which state of a cache's data we have: it outlives a connection (RFC 8210, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// Of the cache's life.
    pub session: u16,
    /// Of its data in that life.
    pub serial: u32,
}

/// When a cache is asked again, and how long what it said is believed (RFC 8210, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After how long it is asked, if it does not say that there is news.
    pub refresh: Duration,
    /// The longest wait after a failure.
    pub retry: Duration,
    /// How long data is used without a word from the cache.
    pub expire: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing::new(3600, 600, 7200)
    }
}

impl Timing {
    /// In seconds, held to the ranges of RFC 8210, section 6. The cache is asked, and once more after a failure, before what it
    /// said expires, also where it says otherwise: what is believed must not go because nobody asked.
    fn new(refresh: u32, retry: u32, expire: u32) -> Timing {
        let seconds = |value: u32, least, most| Duration::from_secs(value.clamp(least, most).into());
        let expire = seconds(expire, 600, 172_800);
        Timing {
            refresh: seconds(refresh, 1, 86_400).min(expire / 2),
            retry: seconds(retry, 1, 7200).min(expire / 4),
            expire,
        }
    }
}

/// A whole answer, to be put in force together.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// It is everything there is; else it is what has changed since the [`Serial`] before.
    pub reset: bool,
    /// In order.
    pub changes: Vec<Change>,
    /// What is known with it.
    pub serial: Serial,
    /// What holds from it on.
    pub timing: Timing,
}

#[derive(Debug)]
enum State {
    /// A query is out.
    Asked { reset: bool, since: Instant },
    /// Its answer is coming in.
    Told { reset: bool, since: Instant, session: u16, changes: Vec<Change> },
    /// Everything is known until then; `since` is when the last answer ended.
    Waiting { since: Instant, until: Instant },
}

/// Our end of a connection with a cache.
#[derive(Debug)]
pub struct Client {
    version: u8,
    /// The cache has shown that it speaks that version.
    agreed: bool,
    state: State,
    serial: Option<Serial>,
    /// What the cache has said while it was answering that there is.
    news: Option<Serial>,
    input: BytesMut,
    output: BytesMut,
}

impl Client {
    /// On a connection just made. `serial` is what is known of the cache from before, and `old` whether it speaks RFC 6810
    /// alone.
    pub fn new(now: Instant, serial: Option<Serial>, old: bool) -> Client {
        let version = if old { OLD_VERSION } else { VERSION };
        let mut client = Client {
            version,
            agreed: false,
            state: State::Waiting { since: now, until: now },
            serial,
            news: None,
            input: BytesMut::new(),
            output: BytesMut::new(),
        };
        client.ask(now);
        client
    }

    /// What is to be written to the cache.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Does the cache speak RFC 6810 alone?
    pub fn is_old(&self) -> bool {
        self.version == OLD_VERSION
    }

    /// Takes bytes as they come. Call [`Client::answer`] until it has no more.
    pub fn received(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// When [`Client::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        match &self.state {
            State::Asked { since, .. } | State::Told { since, .. } => *since + ANSWER,
            State::Waiting { until, .. } => *until,
        }
    }

    /// Asks again, or gives up.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Fault> {
        match self.state {
            _ if now < self.poll_timeout() => Ok(()),
            State::Waiting { .. } => {
                self.ask(now);
                Ok(())
            }
            State::Asked { .. } | State::Told { .. } => Err(Fault::Slow),
        }
    }

    /// Writes the last word of a connection that ends for this reason.
    pub fn fail(&mut self, fault: &Fault) {
        let Some(code) = fault.code() else { return };
        let text = fault.to_string();
        // An error report about no PDU in particular: type, length of the PDU (none), length of the text, text.
        self.header(pdu::ERROR_REPORT, code, 8 + text.len());
        self.output.put_u32(0);
        self.output.put_u32(text.len() as u32);
        self.output.put_slice(text.as_bytes());
    }

    fn header(&mut self, kind: u8, session: u16, body: usize) {
        self.output.put_u8(self.version);
        self.output.put_u8(kind);
        self.output.put_u16(session);
        self.output.put_u32((HEADER + body) as u32);
    }

    fn ask(&mut self, now: Instant) {
        match self.serial {
            Some(Serial { session, serial }) => {
                self.header(pdu::SERIAL_QUERY, session, 4);
                self.output.put_u32(serial);
            }
            None => self.header(pdu::RESET_QUERY, 0, 0),
        }
        self.state = State::Asked { reset: self.serial.is_none(), since: now };
    }

    /// The next whole answer. After an error nothing more can be read, and [`Client::fail`] is due.
    pub fn answer(&mut self, now: Instant) -> Result<Option<Answer>, Fault> {
        while let Some((kind, session, mut body)) = self.next_pdu()? {
            if kind == pdu::ERROR_REPORT {
                return Err(reported(session, body));
            }
            match (&mut self.state, kind) {
                (State::Asked { .. } | State::Told { .. }, pdu::SERIAL_NOTIFY) => {
                    self.news = Some(Serial { session, serial: body.get_u32() });
                }
                (State::Waiting { since, until }, pdu::SERIAL_NOTIFY) => {
                    if self.serial != Some(Serial { session, serial: body.get_u32() }) {
                        *until = (*since + PAUSE).clamp(now, (*until).max(now));
                    }
                }
                (State::Asked { reset, since }, pdu::CACHE_RESPONSE) => {
                    if !*reset && self.serial.is_some_and(|serial| serial.session != session) {
                        return Err(Fault::Corrupt("news of another session than it was asked for"));
                    }
                    self.state = State::Told { reset: *reset, since: *since, session, changes: Vec::new() };
                }
                (State::Asked { reset: false, .. }, pdu::CACHE_RESET) => {
                    self.serial = None;
                    self.ask(now);
                }
                (State::Told { reset, changes, .. }, pdu::IPV4_PREFIX | pdu::IPV6_PREFIX) => {
                    let change = change(kind, body)?;
                    if *reset && !change.announce {
                        return Err(Fault::Corrupt("a withdrawal where it was asked for everything"));
                    }
                    if changes.len() == MOST_VRPS {
                        return Err(Fault::TooMany);
                    }
                    changes.push(change);
                }
                // Of BGPsec, which is not spoken here.
                (State::Told { .. }, pdu::ROUTER_KEY) => {}
                (State::Told { reset, session: told, changes, .. }, pdu::END_OF_DATA) => {
                    if *told != session {
                        return Err(Fault::Corrupt("the end of another session's data"));
                    }
                    let serial = Serial { session, serial: body.get_u32() };
                    let timing = match self.version {
                        OLD_VERSION => Timing::default(),
                        _ => Timing::new(body.get_u32(), body.get_u32(), body.get_u32()),
                    };
                    let answer = Answer { reset: *reset, changes: std::mem::take(changes), serial, timing };
                    self.serial = Some(serial);
                    let more = self.news.take().is_some_and(|news| news != serial);
                    self.state = State::Waiting { since: now, until: now + if more { PAUSE } else { timing.refresh } };
                    return Ok(Some(answer));
                }
                _ => return Err(Fault::Corrupt("a PDU out of turn")),
            }
        }
        Ok(None)
    }

    /// Type, the header's second word, and what follows the header: as long as the type wants it.
    fn next_pdu(&mut self) -> Result<Option<(u8, u16, BytesMut)>, Fault> {
        let Some(header) = self.input.get(..HEADER) else { return Ok(None) };
        let (version, kind) = (header[0], header[1]);
        let session = u16::from_be_bytes([header[2], header[3]]);
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let lengths = match kind {
            pdu::SERIAL_NOTIFY => 12..=12,
            pdu::CACHE_RESPONSE | pdu::CACHE_RESET => 8..=8,
            pdu::IPV4_PREFIX => 20..=20,
            pdu::IPV6_PREFIX => 32..=32,
            pdu::END_OF_DATA if version == OLD_VERSION => 12..=12,
            pdu::END_OF_DATA => 24..=24,
            pdu::ROUTER_KEY if version != OLD_VERSION => 32..=MAX_PDU as u32,
            pdu::ERROR_REPORT => 16..=MAX_PDU as u32,
            _ => return Err(Fault::Type(kind)),
        };
        if !lengths.contains(&length) {
            return Err(Fault::Length(kind, length));
        }
        if self.input.len() < length as usize {
            return Ok(None);
        }
        let mut body = self.input.split_to(length as usize);
        body.advance(HEADER);
        self.check_version(version, kind, session)?;
        Ok(Some((kind, session, body)))
    }

    /// RFC 8210, section 7: the cache answers in our version, or in the older one, and keeps to it.
    fn check_version(&mut self, version: u8, kind: u8, session: u16) -> Result<(), Fault> {
        match kind {
            // Before the first answer it means nothing, whatever its version.
            pdu::SERIAL_NOTIFY if !self.agreed => return Ok(()),
            pdu::ERROR_REPORT => {
                // The next connection is the one to speak the older version on.
                if !self.agreed && session == UNSUPPORTED_VERSION && version == OLD_VERSION {
                    self.version = OLD_VERSION;
                }
                return Ok(());
            }
            _ => {}
        }
        if version != self.version {
            if self.agreed || version != OLD_VERSION {
                return Err(Fault::Version(version));
            }
            self.version = version;
        }
        self.agreed = true;
        Ok(())
    }
}

/// ```text
/// | flags (1) | length (1) | longest (1) | zero (1) | prefix (4 or 16) | AS (4) |
/// ```
/// Of the flags the lowest counts: announced, or withdrawn.
fn change(kind: u8, mut body: BytesMut) -> Result<Change, Fault> {
    let announce = body.get_u8() & 1 == 1;
    let (length, max_length) = (body.get_u8(), body.get_u8());
    body.advance(1);
    let (prefix, most) = match kind {
        pdu::IPV4_PREFIX => (Ipv4Net::new(Ipv4Addr::from(body.get_u32()), length).map(IpNet::V4), 32),
        _ => (Ipv6Net::new(Ipv6Addr::from(body.get_u128()), length).map(IpNet::V6), 128),
    };
    let prefix = prefix.map_err(|_| Fault::Corrupt("a prefix longer than its address"))?.trunc();
    if !(length..=most).contains(&max_length) {
        return Err(Fault::Corrupt("a maximum length that its prefix cannot have"));
    }
    Ok(Change { announce, vrp: Vrp { prefix, max_length, asn: body.get_u32() } })
}

/// ```text
/// | length (4) | the PDU that it is about | length (4) | text |
/// ```
fn reported(code: u16, mut body: BytesMut) -> Fault {
    /// As much as a line of a log has room for.
    const SHOWN: usize = 200;
    let mut take = || {
        let length = if body.len() < 4 { 0 } else { body.get_u32() as usize };
        (length <= body.len()).then(|| body.split_to(length))
    };
    let text = take().and_then(|_| take()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).chars().take(SHOWN).collect();
    Fault::Reported { code, text }
}

/// For people.
impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of session {}", self.serial, self.session)
    }
}

#[cfg(test)]
mod tests;
