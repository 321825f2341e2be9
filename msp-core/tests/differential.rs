//! What our decoder makes of good UPDATEs, beside what bgpkit-parser makes of them: two readers that have nothing in
//! common. The corpus of the fuzz target has them; a whole table can be given, as messages one after the other:
//! `zcat table.gz >table && TABLE=table cargo test --package msp-core --test differential`.

use bgpkit_parser::models::{AsnLength, BgpMessage, BgpUpdateMessage, NetworkPrefix};
use bgpkit_parser::parser::bgp::parse_bgp_message;
use bytes::Bytes;
use ipnet::IpNet;
use msp_core::bgp::Families;
use msp_core::bgp::message::{Framer, Kind};
use msp_core::bgp::update::{Context, Update, decode};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Those of the corpus that are of a session with this: four octets, no path identifiers.
const STREAMS: [&str; 8] = ["ipv4", "ipv6", "withdrawn", "internal", "as-set", "full", "unknown", "table-of-2015"];

/// What is compared, of either reader.
#[derive(Debug, Default, PartialEq)]
struct Said {
    withdrawn: Vec<IpNet>,
    announced: Vec<IpNet>,
    next_hops: Vec<IpAddr>,
    as_path: String,
    origin: String,
    med: Option<u32>,
    local_pref: Option<u32>,
    only_to_customer: Option<u32>,
    communities: Vec<String>,
}

fn ours(update: &Update) -> Said {
    let prefix = |nlri: &msp_core::bgp::update::Nlri| nlri.prefix;
    let mut said = Said { withdrawn: update.withdrawn.iter().map(prefix).collect(), ..Said::default() };
    for group in &update.announced {
        said.announced.extend(group.prefixes.iter().map(prefix));
        said.next_hops.push(group.next_hop.address);
        let attributes = &group.attributes;
        said.as_path = attributes.as_path.to_string();
        said.origin = attributes.origin.to_string().to_uppercase();
        (said.med, said.local_pref) = (attributes.med, attributes.local_pref);
        said.only_to_customer = attributes.only_to_customer;
        // Well-known ones have names there.
        said.communities = attributes.communities.iter().map(|community| format!("{:#010x}", community.0)).collect();
    }
    said
}

fn theirs(update: &BgpUpdateMessage) -> Said {
    use bgpkit_parser::models::{AttributeValue, Community};
    let prefixes = |list: &[NetworkPrefix]| list.iter().map(|network| network.prefix.trunc()).collect::<Vec<_>>();
    let mut said = Said { withdrawn: prefixes(&update.withdrawn_prefixes), ..Said::default() };
    said.announced = prefixes(&update.announced_prefixes);
    for attribute in update.attributes.iter() {
        match attribute {
            AttributeValue::MpUnreachNlri(nlri) => said.withdrawn.extend(prefixes(&nlri.prefixes)),
            AttributeValue::MpReachNlri(nlri) => {
                said.announced.extend(prefixes(&nlri.prefixes));
                said.next_hops.extend(nlri.next_hop.map(|next_hop| next_hop.addr()));
            }
            AttributeValue::NextHop(address) => said.next_hops.insert(0, *address),
            AttributeValue::AsPath(path) => said.as_path = path.to_string(),
            AttributeValue::Origin(origin) => said.origin = origin.to_string().to_uppercase(),
            AttributeValue::MultiExitDiscriminator(med) => said.med = Some(*med),
            AttributeValue::LocalPreference(preference) => said.local_pref = Some(*preference),
            AttributeValue::OnlyToCustomer(asn) => said.only_to_customer = Some(asn.to_u32()),
            AttributeValue::Communities(list) => {
                let number = |community: &Community| match community {
                    Community::NoExport => 0xffff_ff01,
                    Community::NoAdvertise => 0xffff_ff02,
                    Community::NoExportSubConfed => 0xffff_ff03,
                    Community::Custom(asn, value) => asn.to_u32() << 16 | u32::from(*value),
                };
                said.communities = list.iter().map(|community| format!("{:#010x}", number(community))).collect();
            }
            _ => {}
        }
    }
    said
}

/// Compares all UPDATEs of a stream; how many there were, and how many of them we treat as withdrawn.
fn compare(stream: &[u8], name: &str) -> (usize, usize) {
    let mut framer = Framer::default();
    let (mut count, mut faults) = (0, 0);
    for piece in stream.chunks(64 * 1024) {
        framer.push(piece);
        while let Some(frame) = framer.next_frame().expect("good messages") {
            if frame.kind != Kind::Update {
                continue;
            }
            count += 1;
            let message = [&[0xff; 16][..], &(19 + frame.body.len() as u16).to_be_bytes(), &[2], &frame.body].concat();
            let parsed = parse_bgp_message(&mut Bytes::from(message), false, &AsnLength::Bits32);
            let Ok(BgpMessage::Update(parsed)) = parsed else { panic!("{name}, UPDATE {count}: {parsed:?}") };
            let said = theirs(&parsed);
            // An archive says nothing of where it is from: what an internal neighbour must say tells.
            let context = Context {
                families: Families::ALL,
                four_octet_as: true,
                internal: said.local_pref.is_some(),
                add_path: Families::NONE,
                extended_next_hop: false,
            };
            let update = decode(&frame.body, &context).expect("a good UPDATE");
            match update.fault {
                // What we judge and an archive reader does not.
                Some(_) => faults += 1,
                None if said.announced.is_empty() => assert_eq!(ours(&update).withdrawn, said.withdrawn),
                None => assert_eq!(ours(&update), said, "{name}, UPDATE {count}"),
            }
        }
    }
    (count, faults)
}

#[test]
fn two_readers_agree_on_good_updates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for name in STREAMS {
        let (count, faults) = compare(&std::fs::read(folder.join(name)).expect("it is in the corpus"), name);
        assert!(count > 0 && faults == 0, "{name}: {count} UPDATEs, of which {faults} are faulty");
    }
    if let Some(table) = std::env::var_os("TABLE").map(PathBuf::from) {
        let (count, faults) = compare(&std::fs::read(&table).expect("the table can be read"), "the table");
        println!("{count} UPDATEs, of which {faults} are treated as withdrawn");
    }
}
