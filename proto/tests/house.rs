//! The rule of the house, checked by machine: no clock, socket, thread, lock or async in this crate.
//!
//! `clippy.toml` bans the types and calls by their paths; this finds what a lint cannot name (`async`, a macro, a new
//! dependency's runtime) in the text of the sources.

use std::fs;
use std::path::{Path, PathBuf};

const BANNED: &[&str] = &[
    "async fn",
    "async move",
    ".await",
    "tokio",
    "std::thread",
    "thread::",
    "std::net::Udp",
    "std::net::Tcp",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::env",
    "std::process",
    "Mutex",
    "RwLock",
    "Atomic",
    "OsRng",
    "thread_rng",
    "println!",
    "eprintln!",
    "unsafe ",
];

/// Where a rule is broken, and why: the end of the file's path, and what stands there.
const EXCEPTIONS: &[(&str, &str)] = &[
    // quinn's clock has no origin of its own: it is read once, and only differences count.
    ("tunnel/quic/endpoint.rs", "Instant::now"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the crate's sources") {
        let path = entry.expect("an entry of the crate's sources").path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn proto_touches_nothing_of_the_world() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 15, "{files:?}");
    let mut offences = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        for (at, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let excepted = |banned: &str| EXCEPTIONS.iter().any(|of| file.ends_with(of.0) && banned == of.1);
            for banned in BANNED.iter().filter(|banned| code.contains(**banned) && !excepted(banned)) {
                offences.push(format!("{}:{}: {banned}", file.display(), at + 1));
            }
        }
    }
    assert!(offences.is_empty(), "{offences:#?}");
}
