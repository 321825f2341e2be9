//! What a neighbour can send, with octets changed at random. Nothing panics, and what is found holds together: streams of
//! messages, from the framer to the decoded UPDATE; and whole lives of a table, from the framer to the kernel's routes, which
//! must be those of a model told naively from the RFCs. The corpora are beside this folder, each entry kept for what it
//! reaches.
//!
//! Lives are guided by what happens in them: one in which something new does is kept, and changed further. That takes the
//! place of coverage by instrumentation, which needs another compiler or unsafe code of ours, and sees what a table comes to,
//! which branches alone do not show.
//!
//! It takes some seconds as a test; for longer, and with another seed:
//! `FUZZ_SECONDS=600 FUZZ_SEED=7 cargo test --release --package msp-core --test fuzz`. A finding is written to the
//! folder for temporary files, to be kept in the corpus with what it taught.

mod kernel;
mod life;
mod model;

use msp_core::bgp::message::{Framer, Kind, Notification, Refresh};
use msp_core::bgp::open::Open;
use msp_core::bgp::rib::{Gateway, Operation, ROUTE_METRIC, Rib};
use msp_core::bgp::update::{Context, Nlri, Update, decode};
use msp_core::bgp::{Families, Family};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long it takes where nothing is said.
const SECONDS: u64 = 3;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("it can be read")).collect()
}

/// Every way in which a session can have been settled.
fn contexts() -> impl Iterator<Item = Context> {
    (0u8..32).map(|bits| {
        let bit = |n: u8| bits & 1 << n != 0;
        let add_path = if bit(2) { Families::ALL } else { Families::NONE };
        Context {
            families: Families { ipv4: true, ipv6: bit(0) },
            four_octet_as: bit(1),
            internal: bit(3),
            add_path,
            extended_next_hop: bit(4),
        }
    })
}

/// Reads a stream as a session would, and checks what comes out.
fn read(stream: &[u8], extended: bool, context: &Context) {
    let mut framer = Framer::default();
    if extended {
        framer.extend();
    }
    framer.push(stream);
    let mut left = stream.len();
    while let Ok(Some(frame)) = framer.next_frame() {
        let length = frame.body.len() + 19;
        assert!(length <= left, "more comes out than went in");
        left -= length;
        match frame.kind {
            Kind::Open => {
                // Written by us it says the same; but of one that offers foreign families alone nothing is left, which
                // would mean IPv4.
                if let Ok(open) = Open::decode(&frame.body)
                    && open.capabilities.families != Families::NONE
                {
                    let again = open.encode().slice(19..);
                    assert_eq!(Open::decode(&again).expect("ours is good").capabilities, open.capabilities);
                }
            }
            Kind::Update => check(&frame.body, context),
            Kind::Notification => drop(Notification::decode(&frame.body).to_string()),
            Kind::RouteRefresh => drop(Refresh::decode(&frame.body, extended)),
            Kind::Keepalive => assert!(frame.body.is_empty()),
        }
    }
}

fn check(body: &[u8], context: &Context) {
    let Ok(update) = decode(body, context) else { return };
    let Update { withdrawn, announced, end_of_rib, fault, .. } = &update;
    let good = |nlri: &Nlri| {
        assert_eq!(nlri.prefix, nlri.prefix.trunc(), "bits beyond the prefix");
        let family = Family::of(&nlri.prefix);
        // IPv4's own field is there whatever was agreed on.
        assert!(family == Family::Ipv4 || context.families.contains(family));
        assert!(nlri.path_id == 0 || context.add_path.contains(family));
    };
    withdrawn.iter().for_each(good);
    for group in announced {
        assert!(fault.is_none() && !group.prefixes.is_empty());
        group.prefixes.iter().for_each(good);
        let path = &group.attributes.as_path;
        let numbers: usize = path.segments().map(|segment| segment.numbers.len()).sum();
        assert!(path.length() <= numbers && !path.contains(0));
        assert!(context.internal || group.attributes.local_pref.is_none());
        drop(path.to_string());
    }
    assert!(end_of_rib.is_none() || announced.is_empty() && withdrawn.is_empty());
    // Nothing is told that the octets do not hold.
    let told = withdrawn.len() + announced.iter().map(|group| group.prefixes.len()).sum::<usize>();
    assert!(told <= body.len());
}

/// Changes a stream as one that is hostile or broken would: octets, lengths, pieces left out, doubled or taken from
/// another.
fn mutate(stream: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=6) {
        let at = rng.random_range(0..=stream.len());
        let end = rng.random_range(at..=stream.len().min(at + 40));
        match rng.random_range(0..6) {
            0 if at < stream.len() => stream[at] = rng.random(),
            1 if at < stream.len() => stream[at] = stream[at].wrapping_add(if rng.random() { 1 } else { 255 }),
            2 => drop(stream.drain(at..end)),
            3 => {
                let piece = stream[at..end].to_vec();
                stream.splice(at..at, piece);
            }
            4 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                let to = rng.random_range(from..=other.len().min(from + 60));
                stream.splice(at..end, other[from..to].iter().copied());
            }
            _ if at < stream.len() => {
                // A value at the border of something.
                const BORDERS: [u8; 10] = [0, 1, 4, 16, 32, 33, 64, 127, 128, 255];
                stream[at] = BORDERS[rng.random_range(0..BORDERS.len())];
            }
            _ => {}
        }
    }
    // Most of them should get past the header.
    if rng.random_bool(0.8) {
        mend(stream);
    }
}

/// Gives each message a good marker, and the first a length that fits what there is of it.
fn mend(stream: &mut [u8]) {
    let mut at = 0;
    while stream.len() - at >= 19 {
        stream[at..at + 16].fill(0xff);
        let said = usize::from(u16::from_be_bytes([stream[at + 16], stream[at + 17]]));
        let length = said.clamp(19, stream.len() - at);
        stream[at + 16..at + 18].copy_from_slice(&(length as u16).to_be_bytes());
        at += length;
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn what_a_neighbour_can_send_is_survived() {
    let corpus = corpus("corpus");
    let contexts: Vec<Context> = contexts().collect();
    for stream in &corpus {
        for context in &contexts {
            read(stream, false, context);
            read(stream, true, context);
        }
    }
    let mut rng = StdRng::seed_from_u64(number("FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", SECONDS));
    let mut tried = 0u64;
    while Instant::now() < end {
        for _ in 0..1000 {
            let mut stream = corpus[rng.random_range(0..corpus.len())].clone();
            mutate(&mut stream, &corpus[rng.random_range(0..corpus.len())], &mut rng);
            let (extended, context) = (rng.random(), &contexts[rng.random_range(0..contexts.len())]);
            or_write(&stream, &format!("{context:?}, extended: {extended}"), || read(&stream, extended, context));
            tried += 1;
        }
    }
    println!("{tried} streams");
}

/// Tries it; octets that make it panic are written down first.
fn or_write<T>(octets: &[u8], what: &str, attempt: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    match std::panic::catch_unwind(attempt) {
        Ok(result) => result,
        Err(panic) => {
            let file = std::env::temp_dir().join(format!("bgp-finding-{}", std::process::id()));
            std::fs::write(&file, octets).expect("a finding can be written");
            eprintln!("a finding: {} ({what})", file.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_table_comes_to_what_a_naive_model_says_whatever_neighbours_send() {
    let streams = corpus("corpus");
    let mut kept = corpus("lives");
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    for life in &kept {
        seen.extend(or_write(life, "of the corpus", || life::live(life)));
    }
    let mut rng = StdRng::seed_from_u64(number("FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", SECONDS));
    let mut tried = 0u64;
    while Instant::now() < end {
        let [life, other] = [(); 2].map(|()| kept.get(rng.random_range(0..=kept.len())).cloned().unwrap_or_default());
        let stream = &streams[rng.random_range(0..streams.len())];
        let life = life::mutate(&life, &other, &mut rng, |octets, rng| mutate(octets, stream, rng));
        let happened = or_write(&life, "a life", || life::live(&life));
        // How much that is new makes a life worth keeping grows, so that the corpus does not.
        let news = happened.difference(&seen).count();
        if news > kept.len() / 200 {
            seen.extend(happened);
            kept.push(life);
        }
        tried += 1;
    }
    println!("{tried} lives, of which {} were kept; {} things happened", kept.len(), seen.len());
    if let Some(folder) = std::env::var_os("FUZZ_KEEP").map(PathBuf::from) {
        std::fs::create_dir_all(&folder).expect("a folder for lives");
        for (place, life) in kept.iter().enumerate() {
            std::fs::write(folder.join(format!("{place:04}")), life).expect("a life can be written");
        }
    }
}
