//! A neighbour that may have a thousand prefixes leaks a full table, beside a transit that has told one: how long until its
//! session is ended, how much memory that takes, and whether the transit and its routes stay as they are.

use super::{Feed, PATIENCE, QUIET, Subject, address, host, join, memory, routes, settle, speaker, start};
use crate::net::netns::Namespace;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How many prefixes of a family the neighbour may have.
const MOST: u32 = 1_000;
/// The bars: how long it may take, and how many MiB more the daemon may have at its peak. What waits for the routes' thread
/// is bounded by 64 UPDATEs of 64 KiB at most, and what the kernel's socket holds is not the daemon's.
const WITHIN: Duration = Duration::from_secs(1);
const MIB: f64 = 8.0;

/// Says what came of it, and whether it is within the bars.
pub(super) fn run(feeds: &Arc<[Feed; 2]>) -> Result<bool> {
    let folder = crate::run::folder("bgp-leak", 0)?;
    std::fs::create_dir_all(folder.join("sites.d"))?;
    let here = Namespace::create().context("cannot make a namespace")?;
    let transits = [Namespace::create()?, Namespace::create()?];
    for (place, transit) in (0u8..).zip(&transits) {
        join(&here, transit, place)?;
    }
    let _host = host(&here)?;
    let (shaken, all_shaken) = mpsc::channel();
    let [(tell, told), (leak, leaked)] = [mpsc::channel::<()>(), mpsc::channel()];
    let (end, ended) = mpsc::channel();
    let [transit, peer] = transits;
    let hands = |namespace: Namespace, place: u8, shaken: mpsc::Sender<bool>| {
        let asn = feeds[usize::from(place)].asn;
        let listen = SocketAddr::new(address(place, 2).into(), 179);
        move || {
            let hands = namespace.enter(|| speaker::shake_hands(listen, asn, address(place, 2), PATIENCE))?;
            shaken.send(hands.is_ok())?;
            hands
        }
    };
    let (first, second) = (hands(transit, 0, shaken.clone()), hands(peer, 1, shaken));
    let (first_feed, second_feed) = (feeds.clone(), feeds.clone());
    let transit = std::thread::spawn(move || -> Result<()> {
        let stream = first()?;
        told.recv()?;
        speaker::tell(stream, &first_feed[0].octets, &ended)
    });
    let peer = std::thread::spawn(move || {
        let stream = second()?;
        leaked.recv()?;
        speaker::leak(stream, &second_feed[1].octets)
    });
    let daemon = start(Subject::Core, &here, &folder, feeds, (1, Some(MOST)))?;
    let pid = daemon.0.id();
    for _ in 0..2 {
        anyhow::ensure!(all_shaken.recv_timeout(PATIENCE)?, "a session does not come up");
    }
    // Whoever waits for these is there until it has them.
    let _ = tell.send(());
    settle(pid, Instant::now())?;
    let (before, told) = (memory(pid)?.1, routes(&here)?);
    let _ = leak.send(());
    let (took, code) = peer.join().map_err(|_| anyhow::anyhow!("the leaking speaker panicked"))??;
    std::thread::sleep(QUIET);
    let grown = memory(pid)?.1 - before;
    // The covering default route by the peer is gone, as it should be, and not among these.
    let is_untouched = !transit.is_finished() && routes(&here)? == told;
    let good = took <= WITHIN && code == (6, 1) && grown <= MIB && is_untouched;
    println!(
        "leak: ceased with {}/{} after {:.0} ms (at most {} ms, 6/1); {grown:.1} MiB more at its peak (at most {MIB}); the \
         transit's session and its {} routes are {}: {}",
        code.0,
        code.1,
        took.as_secs_f64() * 1e3,
        WITHIN.as_millis(),
        told.len(),
        if is_untouched { "untouched" } else { "NOT what they were" },
        if good { "good" } else { "MISSED" },
    );
    let _ = end.send(());
    drop(daemon);
    // It may have found the daemon gone first, which is no error of its.
    let _ = transit.join();
    Ok(good)
}
