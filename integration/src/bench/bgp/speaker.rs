//! A transit that shakes hands, tells all that it was given to tell, and keeps the session.

use anyhow::{Context, Result, bail};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const MARKER: [u8; 16] = [0xff; 16];
const OPEN: u8 = 1;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
/// Long enough for a table to be taken in by whoever is slow, without a word in between.
const HOLD_TIME: u16 = 600;

/// Waits for a neighbour at `listen`, which is in this thread's namespace, and shakes hands with it.
pub(super) fn shake_hands(listen: SocketAddr, asn: u32, router_id: Ipv4Addr, patience: Duration) -> Result<TcpStream> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    listener.set_nonblocking(true)?;
    let until = Instant::now() + patience;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error).context("no neighbour has connected"),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&open(asn, router_id))?;
    stream.write_all(&message(KEEPALIVE, &[]))?;
    // Their OPEN, and the KEEPALIVE that says that ours is good.
    for expected in [OPEN, KEEPALIVE] {
        let mut header = [0; 19];
        stream.read_exact(&mut header).context("the neighbour does not shake hands")?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[16], header[17]])).saturating_sub(19)];
        stream.read_exact(&mut body)?;
        if header[18] != expected {
            bail!("the neighbour sent a message of type {}, where {expected} was due: {body:?}", header[18]);
        }
    }
    Ok(stream)
}

/// Tells it all as fast as it is taken; then keeps the session until `ended`, or the neighbour, says to end it. What the
/// neighbour says is read and dropped.
pub(super) fn tell(mut stream: TcpStream, octets: &[u8], ended: &mpsc::Receiver<()>) -> Result<()> {
    let mut reader = stream.try_clone()?;
    reader.set_read_timeout(None)?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while reader.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    stream.write_all(octets).context("the neighbour ended the session while it was told the table")?;
    loop {
        match ended.recv_timeout(Duration::from_secs(u64::from(HOLD_TIME) / 3)) {
            Err(mpsc::RecvTimeoutError::Timeout) => stream.write_all(&message(KEEPALIVE, &[]))?,
            _ => {
                stream.shutdown(std::net::Shutdown::Both)?;
                return Ok(());
            }
        }
    }
}

/// Tells it all as fast as it is taken, until the neighbour ends the session: how long that took, and the code and subcode of
/// its NOTIFICATION.
pub(super) fn leak(stream: TcpStream, octets: &[u8]) -> Result<(Duration, (u8, u8))> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        // It ends with the session, whatever is left to be told.
        scope.spawn(|| (&stream).write_all(octets));
        let ended = loop {
            let mut header = [0; 19];
            if let Err(error) = reader.read_exact(&mut header) {
                break Err(error).context("the neighbour ended the session without a NOTIFICATION, or did not end it");
            }
            let mut body = vec![0; usize::from(u16::from_be_bytes([header[16], header[17]])).saturating_sub(19)];
            if let Err(error) = reader.read_exact(&mut body) {
                break Err(error).context("the neighbour's message is cut off");
            }
            if let (NOTIFICATION, [code, subcode, ..]) = (header[18], &body[..]) {
                break Ok((begin.elapsed(), (*code, *subcode)));
            }
        };
        stream.shutdown(std::net::Shutdown::Both)?;
        ended
    })
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = MARKER.to_vec();
    out.extend_from_slice(&(body.len() as u16 + 19).to_be_bytes());
    out.push(kind);
    out.extend_from_slice(body);
    out
}

/// Both families, and AS numbers of four octets.
fn open(asn: u32, router_id: Ipv4Addr) -> Vec<u8> {
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4];
    capabilities.extend_from_slice(&asn.to_be_bytes());
    let short = u16::try_from(asn).unwrap_or(23456);
    let mut body = vec![4];
    body.extend_from_slice(&short.to_be_bytes());
    body.extend_from_slice(&HOLD_TIME.to_be_bytes());
    body.extend_from_slice(&router_id.octets());
    body.extend_from_slice(&[capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    body.extend_from_slice(&capabilities);
    message(OPEN, &body)
}
