//! What our decoder makes of good UPDATEs, beside what bgpkit-parser and tshark make of them: three readers that have nothing
//! in common. The corpus of the fuzz target has them; a whole table can be given, as messages one after the other:
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
use std::process::Command;

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

/// What tshark tells, a field each: addresses of prefixes, which come without their lengths, and all lengths.
const FIELDS: [&str; 12] = [
    "bgp.withdrawn_prefix",
    "bgp.mp_unreach_nlri_ipv6_prefix",
    "bgp.nlri_prefix",
    "bgp.mp_reach_nlri_ipv6_prefix",
    "bgp.prefix_length",
    "bgp.update.path_attribute.next_hop",
    "bgp.update.path_attribute.mp_reach_nlri.next_hop.ipv6",
    "bgp.update.path_attribute.as_path_segment.as4",
    "bgp.update.path_attribute.origin",
    "bgp.update.path_attribute.multi_exit_disc",
    "bgp.update.path_attribute.local_pref",
    "bgp.update.path_attribute.community_value",
];

/// The same of ours, each field's values in their order; lengths sorted, since it tells those of several fields in one.
fn as_fields(update: &Update) -> [Vec<String>; 12] {
    let texts = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>();
    let is_v4 = |net: &IpNet| net.addr().is_ipv4();
    let withdrawn: Vec<IpNet> = update.withdrawn.iter().map(|nlri| nlri.prefix).collect();
    let announced: Vec<IpNet> =
        update.announced.iter().flat_map(|group| group.prefixes.iter().map(|nlri| nlri.prefix)).collect();
    let of = |list: &[IpNet], v4: bool| {
        texts(&mut list.iter().filter(|net| is_v4(net) == v4).map(|net| net.network().to_string()))
    };
    let mut lengths: Vec<String> = withdrawn.iter().chain(&announced).map(|net| net.prefix_len().to_string()).collect();
    lengths.sort();
    let hops = |v4: bool| {
        let hops = update.announced.iter().map(|group| group.next_hop.address);
        texts(&mut hops.filter(|hop| hop.is_ipv4() == v4).map(|hop| hop.to_string()))
    };
    let said = update.announced.first().map(|group| &*group.attributes);
    let path = said.into_iter().flat_map(|said| said.as_path.segments().flat_map(|segment| segment.numbers.to_vec()));
    let number = |value: Option<u32>| texts(&mut value.iter().map(u32::to_string));
    // Well-known ones have names there.
    let values = said.into_iter().flat_map(|said| said.communities.iter());
    let mut values =
        values.filter(|community| community.0 < 0xffff_0000).map(|community| (community.0 & 0xffff).to_string());
    [
        of(&withdrawn, true),
        of(&withdrawn, false),
        of(&announced, true),
        of(&announced, false),
        lengths,
        hops(true),
        hops(false),
        texts(&mut path.map(|asn| asn.to_string())),
        number(said.map(|said| said.origin as u32)),
        number(said.and_then(|said| said.med)),
        number(said.and_then(|said| said.local_pref)),
        texts(&mut values),
    ]
}

/// Messages as a capture (pcap), each a segment of one connection to port 179.
///
/// ```text
/// | magic, 4 | version 2.4, 4 | zone 0, 4 | accuracy 0, 4 | most octets, 4 | link type 101: raw IP, 4 |     the file's
/// | seconds, 4 | microseconds, 4 | octets here, 4 | octets there were, 4 | IPv4 20 | TCP 20 | message |      each packet's
/// ```
fn capture(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out: Vec<u8> =
        [0xa1b2_c3d4u32, 2 << 16 | 4, 0, 0, 65_535, 101].iter().flat_map(|n| n.to_be_bytes()).collect();
    let mut sequence = 1u32;
    for message in messages {
        let length = 40 + message.len() as u32;
        out.extend([0, 0, length, length].iter().flat_map(|n| n.to_be_bytes()));
        // Checksums are 0, which tshark does not look at.
        out.extend_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 6, 0, 0]);
        out.extend_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2, 0x9c, 0x40, 0, 179]);
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        out.extend_from_slice(message);
        sequence = sequence.wrapping_add(message.len() as u32);
    }
    out
}

/// Would tshark have to guess whether these are prefixes with identifiers (RFC 7911)? It takes them for that where they can be
/// read so, and where a default route stands among others.
fn is_ambiguous(octets: &[u8]) -> bool {
    let (mut plain, mut with_identifiers) = (octets, octets);
    while let [length, rest @ ..] = plain {
        if *length == 0 && octets.len() > 1 {
            return true;
        }
        plain = rest.get(usize::from(length.div_ceil(8))..).unwrap_or_default();
    }
    while let [_, _, _, _, length, rest @ ..] = with_identifiers {
        match rest.get(usize::from(length.div_ceil(8))..) {
            Some(behind) if *length <= 32 => with_identifiers = behind,
            _ => return false,
        }
    }
    with_identifiers.is_empty()
}

/// The octets of IPv4's two fields of prefixes.
fn ipv4_fields(body: &[u8]) -> [&[u8]; 2] {
    let length = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let attributes = 2 + length(0);
    [&body[2..attributes], &body[attributes + 2 + length(attributes)..]]
}

/// Compares all UPDATEs of a stream with tshark's reading; how many there were, and how many of them it has to guess.
fn compare_with_tshark(stream: &[u8], name: &str) -> (usize, usize) {
    let (mut messages, mut ours, mut guessed) = (Vec::new(), Vec::new(), 0);
    let mut framer = Framer::default();
    for piece in stream.chunks(64 * 1024) {
        framer.push(piece);
        while let Some(frame) = framer.next_frame().expect("good messages") {
            let context = Context {
                families: Families::ALL,
                four_octet_as: true,
                internal: true,
                add_path: Families::NONE,
                extended_next_hop: false,
            };
            let Some(update) = (frame.kind == Kind::Update).then(|| decode(&frame.body, &context)) else { continue };
            let guesses = ipv4_fields(&frame.body).into_iter().any(|field| !field.is_empty() && is_ambiguous(field));
            guessed += usize::from(guesses);
            // Where it is not of our own AS, what it must say is missing, and it is withdrawn.
            let outside = || decode(&frame.body, &Context { internal: false, ..context });
            let update = update.ok().filter(|update| update.fault.is_none()).or_else(|| outside().ok());
            let Some(update) = update.filter(|update| !guesses && update.fault.is_none()) else { continue };
            messages.push([&[0xff; 16][..], &(19 + frame.body.len() as u16).to_be_bytes(), &[2], &frame.body].concat());
            ours.push(as_fields(&update));
        }
    }
    let file = std::env::temp_dir().join(format!("bgp-differential-{}-{name}.pcap", std::process::id()));
    std::fs::write(&file, capture(&messages)).expect("a capture can be written");
    let mut command = Command::new("tshark");
    command
        .args(["-o", "bgp.asn_len:4 octet", "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=,"])
        .arg("-r")
        .arg(&file);
    command.args(FIELDS.iter().flat_map(|field| ["-e", field]));
    let output = command.output().expect("tshark, which `cargo lab setup` installs");
    std::fs::remove_file(&file).expect("it was written");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), ours.len(), "{name}: a line each");
    for (count, (line, ours)) in lines.iter().zip(&ours).enumerate() {
        let mut theirs =
            line.split('\t').map(|field| field.split(',').filter(|value| !value.is_empty()).map(str::to_owned));
        let mut theirs: [Vec<String>; 12] = std::array::from_fn(|_| theirs.next().expect("a field").collect());
        theirs[4].sort();
        assert_eq!(theirs, *ours, "{name}, UPDATE {count}");
    }
    (ours.len(), guessed)
}

#[test]
fn tshark_reads_good_updates_as_we_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let compared = STREAMS
        .map(|name| compare_with_tshark(&std::fs::read(folder.join(name)).expect("it is in the corpus"), name).0);
    assert!(compared.iter().filter(|count| **count > 0).count() >= 5, "{compared:?}");
    if let Some(table) = std::env::var_os("TABLE").map(PathBuf::from) {
        let (count, guessed) = compare_with_tshark(&std::fs::read(&table).expect("the table can be read"), "table");
        println!("{count} UPDATEs as tshark reads them; {guessed} that it would have to guess are left out");
    }
}
