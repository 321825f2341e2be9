//! How long our decoder takes for BGP messages on standard input, one after the other as they are on the wire:
//!
//! ```text
//! zcat table.gz | cargo run --release --package msp-core --example decode
//! ```

use msp_core::bgp::Families;
use msp_core::bgp::message::{Framer, Kind};
use msp_core::bgp::update::{Context, Update, decode};
use std::io::Read;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let context = Context {
        families: Families::ALL,
        four_octet_as: true,
        internal: true,
        add_path: Families::NONE,
        extended_next_hop: false,
    };
    let started = Instant::now();
    let mut framer = Framer::default();
    let (mut updates, mut announced, mut withdrawn, mut faults) = (0, 0, 0, 0);
    // In pieces, as a socket gives them.
    for piece in bytes.chunks(64 * 1024) {
        framer.push(piece);
        while let Some(frame) = framer.next_frame().map_err(|notification| notification.to_string())? {
            if frame.kind != Kind::Update {
                continue;
            }
            let update: Update = decode(&frame.body, &context).map_err(|notification| notification.to_string())?;
            updates += 1;
            announced += update.announced.iter().map(|announced| announced.prefixes.len()).sum::<usize>();
            withdrawn += update.withdrawn.len();
            if let Some(fault) = update.fault {
                eprintln!("UPDATE {updates}: {fault}");
                faults += 1;
            }
        }
    }
    let took = started.elapsed();
    println!("{updates} updates, {announced} announced, {withdrawn} withdrawn, {faults} faulty, in {took:?}");
    Ok(())
}
