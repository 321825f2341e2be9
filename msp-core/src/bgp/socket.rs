//! TCP sockets for BGP: listening, connecting, and what protects them (TCP-MD5, RFC 2385; GTSM, RFC 5082).

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What leaves a router with the most that there is can have come from nobody farther away than its own neighbours, if it
/// arrives with it (RFC 5082).
const MAX_TTL: u8 = 255;
/// Connections that wait to be accepted. They are taken as they come; the kernel answers a flood with cookies.
const BACKLOG: i32 = 128;
/// How long the listener rests after accepting failed: the process is out of descriptors, say, and it is not to spin.
const REST: Duration = Duration::from_millis(100);

/// How the connections with one neighbour are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Our address; without it, the kernel's choice.
    pub(crate) source: Option<IpAddr>,
    /// The key of TCP-MD5.
    pub(crate) password: Option<Password>,
    /// What our packets are sent with; without it, the kernel's choice.
    pub(crate) ttl: Option<u8>,
    /// The least that the neighbour's packets must arrive with.
    pub(crate) least_ttl: Option<u8>,
}

impl Options {
    /// TTLs for a neighbour at most `hops` away: with GTSM packets start with the most, and must arrive with no less than
    /// those hops leave (RFC 5082, section 3).
    pub(crate) fn gtsm(hops: u8) -> (Option<u8>, Option<u8>) {
        (Some(MAX_TTL), Some(MAX_TTL - (hops - 1)))
    }

    /// Connects to the neighbour; gives our own address, too.
    pub(super) async fn connect(&self, remote: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
        let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        self.protect(&socket, remote.ip())?;
        if let Some(password) = &self.password {
            option::set_key(&socket, remote.ip(), password)?;
        }
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(remote).await?;
        // Messages are small, and are to leave at once.
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        Ok((stream, local))
    }

    /// Makes a connection that was accepted as one of our own would be.
    pub(super) fn adopt(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        self.protect(stream, stream.peer_addr()?.ip())?;
        stream.set_nodelay(true)?;
        stream.local_addr()
    }

    fn protect(&self, socket: &impl AsFd, remote: IpAddr) -> io::Result<()> {
        let options = SockRef::from(socket);
        if let Some(ttl) = self.ttl {
            match remote {
                IpAddr::V4(_) => options.set_ttl_v4(ttl.into())?,
                IpAddr::V6(_) => options.set_unicast_hops_v6(ttl.into())?,
            }
        }
        self.least_ttl.map_or(Ok(()), |least| option::set_least_ttl(socket, remote, least))
    }
}

/// A key of TCP-MD5. Shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(Box<[u8]>);

impl Password {
    /// The kernel's limit (TCP_MD5SIG_MAXKEYLEN).
    pub(crate) const MAX: usize = 80;

    /// Nothing if it is empty or longer than [`Password::MAX`] octets.
    pub(crate) fn new(text: &str) -> Option<Password> {
        (1..=Self::MAX).contains(&text.len()).then(|| Password(text.as_bytes().into()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Sockets that neighbours may connect to.
#[derive(Debug)]
pub(crate) struct Listener(Vec<TcpListener>);

/// A listening that failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for BGP on {address}: {source}; if another BGP speaker is there or it may not be done, set bgp.listen \
     (none is listened for with `listen = []`)"
)]
pub(crate) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl Listener {
    /// Listens on these addresses, with the keys of these neighbours.
    pub(crate) fn bind<'a>(
        addresses: &[SocketAddr],
        neighbors: impl Iterator<Item = (IpAddr, &'a Options)> + Clone,
    ) -> Result<Listener, ListenError> {
        let bind = |address: &SocketAddr| {
            let socket = listening(*address)?;
            let neighbors = neighbors.clone().filter(|(remote, _)| remote.is_ipv4() == address.is_ipv4());
            // What comes from too far away is not even answered, and nothing of it is read before `adopt`; as far as that
            // can be said before it is known from whom it comes.
            if let Some(least) = neighbors.clone().map(|(_, options)| options.least_ttl.unwrap_or(0)).min()
                && least > 0
            {
                option::set_least_ttl(&socket, address.ip(), least)?;
            }
            for (remote, options) in neighbors {
                if let Some(password) = &options.password {
                    option::set_key(&socket, remote, password)?;
                }
            }
            TcpListener::from_std(socket.into())
        };
        let sockets =
            addresses.iter().map(|address| bind(address).map_err(|source| ListenError { address: *address, source }));
        sockets.collect::<Result<_, _>>().map(Listener)
    }

    /// Hands each neighbour the connections that it makes, and closes everyone else's at once.
    pub(crate) fn serve(self, doors: HashMap<IpAddr, mpsc::Sender<TcpStream>>) -> Serving {
        let strangers = Arc::new(AtomicU64::new(0));
        let doors = Arc::new(doors);
        let serve = |listener| tokio::spawn(accept(listener, Arc::clone(&doors), Arc::clone(&strangers)));
        let tasks = self.0.into_iter().map(serve).collect();
        Serving { strangers, tasks }
    }
}

/// The tasks that accept connections; they end with it.
#[derive(Debug)]
pub(crate) struct Serving {
    strangers: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Serving {
    /// How many connections were closed because they were no neighbour's.
    pub(crate) fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn listening(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // The kernel answers before we know to whom: a neighbour with GTSM must find even that good.
    if address.is_ipv4() {
        socket.set_ttl_v4(MAX_TTL.into())?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(MAX_TTL.into())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

async fn accept(
    listener: TcpListener,
    doors: Arc<HashMap<IpAddr, mpsc::Sender<TcpStream>>>,
    strangers: Arc<AtomicU64>,
) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a BGP connection");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let Some(door) = doors.get(&remote.ip().to_canonical()) else {
            // By a reset, which leaves nothing behind. The first of a flood says all that there is to say.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            if strangers.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
                tracing::info!(%remote, "closed a BGP connection of who is no neighbour");
            }
            continue;
        };
        // One that still waits is enough: the neighbour will try again.
        let _ = door.try_send(stream);
    }
}

/// The two options that std, tokio and socket2 lack.
mod option {
    // Linux's own structure and two numbers, and nothing that could outlive the call.
    #![allow(unsafe_code)]

    use super::Password;
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{AsFd, AsRawFd};

    /// `struct tcp_md5sig` of `linux/tcp.h`.
    #[repr(C)]
    struct TcpMd5Sig {
        address: [u8; size_of::<libc::sockaddr_storage>()],
        flags: u8,
        prefix_length: u8,
        key_length: u16,
        interface: i32,
        key: [u8; Password::MAX],
    }

    /// Segments to and from this address are signed with this key (RFC 2385).
    pub(super) fn set_key(socket: &impl AsFd, remote: IpAddr, password: &Password) -> io::Result<()> {
        let mut option = TcpMd5Sig {
            address: [0; _],
            flags: 0,
            prefix_length: 0,
            key_length: password.0.len() as u16,
            interface: 0,
            key: [0; _],
        };
        option.key[..password.0.len()].copy_from_slice(&password.0);
        let address = socket2::SockAddr::from(SocketAddr::new(remote, 0));
        // SAFETY: a `SockAddr` has as many initialised octets as its length says.
        let octets = unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), address.len() as usize) };
        option.address[..octets.len()].copy_from_slice(octets);
        set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &option).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => io::Error::other("this kernel has no TCP-MD5 (CONFIG_TCP_MD5SIG)"),
            _ => error,
        })
    }

    /// Packets that arrive with less are dropped (RFC 5082).
    pub(super) fn set_least_ttl(socket: &impl AsFd, remote: IpAddr, least: u8) -> io::Result<()> {
        let (level, name) = match remote {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
        };
        set(socket, level, name, &libc::c_int::from(least))
    }

    fn set<T>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: `value` is as long as is said and lives longer than the call, and the kernel only reads it.
        let result = unsafe {
            let length = size_of::<T>() as libc::socklen_t;
            libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests;
