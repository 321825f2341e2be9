use super::*;
use crate::bgp::Families;

const TWO_OCTETS: Context = Context {
    families: Families::ALL,
    four_octet_as: false,
    internal: false,
    add_path: Families::NONE,
    extended_next_hop: false,
};

/// Segments as they are on the wire: kind and numbers.
fn path(octets: usize, segments: &[(u8, &[u32])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, numbers) in segments {
        out.extend_from_slice(&[*kind, numbers.len() as u8]);
        for number in *numbers {
            out.extend_from_slice(&number.to_be_bytes()[4 - octets..]);
        }
    }
    out
}

#[test]
fn a_path_tells_its_length_its_ends_and_who_is_on_it() {
    let wire = path(4, &[(2, &[64501, 4_200_000_000, 64502]), (1, &[64503, 64504])]);
    let read = AsPath::read(&wire, 4);
    assert_eq!(read.to_string(), "64501 4200000000 64502 {64503,64504}");
    assert_eq!((read.length(), read.first(), read.origin()), (4, Some(64501), None));
    assert!(read.contains(64504) && !read.contains(64505));
    let sequence = AsPath::sequence(&[1, 2, 3]);
    assert_eq!((sequence.length(), sequence.first(), sequence.origin()), (3, Some(1), Some(3)));
    assert_eq!((AsPath::default().length(), AsPath::default().first()), (0, None));
    let long: Vec<u32> = (1..=300).collect();
    assert_eq!(AsPath::sequence(&long).segments().count(), 2);
    assert_eq!(AsPath::sequence(&long).length(), 300);
}

/// RFC 6793, section 4.2.3.
#[test]
fn what_a_speaker_of_two_octets_could_not_read_is_put_back() {
    let trans = 23456;
    let merged = |as_path: &[(u8, &[u32])], as4_path: &[(u8, &[u32])]| {
        AsPath::read(&path(2, as_path), 2).merged(&AsPath::read(&path(4, as4_path), 4)).to_string()
    };
    assert_eq!(merged(&[(2, &[10, 20, trans, 30])], &[(2, &[200_000, 30])]), "10 20 200000 30");
    // The new path begins with a set, and counts for one.
    assert_eq!(merged(&[(1, &[10, 11]), (2, &[trans])], &[(2, &[200_000])]), "{10,11} 200000");
    // Longer than the path itself: of no use.
    assert_eq!(merged(&[(2, &[10])], &[(2, &[200_000, 30])]), "10");
    assert_eq!(merged(&[(2, &[trans])], &[(2, &[200_000])]), "200000");
    // A confederation's segments are left out of it.
    assert_eq!(merged(&[(2, &[10, trans])], &[(3, &[65001]), (2, &[200_000])]), "10 200000");
}

#[test]
fn an_aggregator_of_two_octets_decides_whether_the_long_path_counts() {
    let as_path = path(2, &[(2, &[10, 23456])]);
    let as4_path = path(4, &[(2, &[200_000])]);
    let as4_aggregator = [0, 3, 13, 64, 192, 0, 2, 1];
    let finish = |aggregator: &[u8]| {
        let mut builder = Builder::default();
        builder.read(AS_PATH, &as_path, &TWO_OCTETS);
        builder.read(AGGREGATOR, aggregator, &TWO_OCTETS);
        builder.read(AS4_PATH, &as4_path, &TWO_OCTETS);
        builder.read(AS4_AGGREGATOR, &as4_aggregator, &TWO_OCTETS);
        let attributes = builder.finish();
        (attributes.as_path.to_string(), attributes.aggregator.expect("an aggregator").asn)
    };
    assert_eq!(finish(&[0x5b, 0xa0, 192, 0, 2, 1]), ("10 200000".into(), 200_000));
    assert_eq!(finish(&[0, 10, 192, 0, 2, 1]), ("10 23456".into(), 10));
}

/// One row a type, in the order of their numbers: a row that was forgotten in a merge would be an attribute unread.
#[test]
fn every_type_has_one_row() {
    assert!(RULES.is_sorted_by(|one, next| one.kind < next.kind));
    for rule in RULES {
        assert_ne!(rule.flags, 0, "{}: neither well-known nor optional", rule.name);
    }
}
