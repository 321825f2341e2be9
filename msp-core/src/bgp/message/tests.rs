use super::*;
use bgpkit_parser::models::AsnLength;
use bgpkit_parser::parser::bgp::parse_bgp_message;
use proptest::prelude::*;

/// A message with this length field, type and body.
fn raw(length: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    [&MARKER[..], &length.to_be_bytes(), &[kind], body].concat()
}

fn whole(kind: u8, body: &[u8]) -> Vec<u8> {
    raw((HEADER + body.len()) as u16, kind, body)
}

fn frame(bytes: &[u8]) -> Result<Option<Frame>, Notification> {
    let mut framer = Framer::default();
    framer.push(bytes);
    framer.next_frame()
}

/// What bgpkit-parser makes of the bytes: each leniency below is one that this stands before.
fn bgpkit_takes(bytes: &[u8]) -> bool {
    parse_bgp_message(&mut Bytes::copy_from_slice(bytes), false, &AsnLength::Bits32).is_ok()
}

#[test]
fn a_wrong_marker_is_connection_not_synchronised() {
    for octet in [0, 15] {
        let mut bytes = whole(4, &[]);
        bytes[octet] = 0xfe;
        assert!(bgpkit_takes(&bytes));
        assert_eq!(frame(&bytes), Err(Notification::new(1, 1)));
    }
}

#[test]
fn lengths_unfit_for_the_type_are_refused_with_the_length() {
    for (length, kind) in [
        (18, 4),
        (0, 4),
        (4097, 2),
        (65535, 2),
        // A KEEPALIVE of 25 octets, an OPEN under 29 (of which GoBGP 3.10 dies), and the least of the others.
        (25, 4),
        (28, 1),
        (19, 1),
        (22, 2),
        (20, 3),
        (22, 5),
    ] {
        let bytes = raw(length, kind, &vec![0; usize::from(length).saturating_sub(HEADER)]);
        assert_eq!(frame(&bytes), Err(Notification::with_data(1, 2, &length.to_be_bytes())), "{length} of {kind}");
    }
    assert!(bgpkit_takes(&raw(25, 4, &[0; 6])));
}

#[test]
fn an_unknown_type_is_refused_with_the_type() {
    for kind in [0, 6, 255] {
        assert_eq!(frame(&whole(kind, &[0; 20])), Err(Notification::with_data(1, 3, &[kind])));
    }
}

#[test]
fn a_length_beyond_what_has_come_waits_for_the_rest() {
    let bytes = whole(2, &[0, 0, 0, 0]);
    for end in 0..bytes.len() {
        assert_eq!(frame(&bytes[..end]), Ok(None));
    }
    assert_eq!(frame(&bytes).expect("a message").expect("whole").kind, Kind::Update);
}

#[test]
fn a_shutdown_carries_its_message_and_shows_it_safely() {
    let sent = Notification::shutdown("maintenance");
    assert_eq!(sent.to_string(), "cease: administrative shutdown (6/2): \"maintenance\"");
    let frame = frame(&sent.encode()).expect("a message").expect("whole");
    assert_eq!(Notification::decode(&frame.body), sent);
    let hostile = Notification::with_data(6, 2, b"\x06\x1b[2Jhi");
    assert_eq!(hostile.to_string(), "cease: administrative shutdown (6/2): \"\\u{1b}[2Jhi\"");
    // A length that lies shows nothing; a long text is cut between characters.
    assert_eq!(Notification::with_data(6, 2, b"\xffhi").to_string(), "cease: administrative shutdown (6/2)");
    let long = Notification::shutdown(&"ä".repeat(200));
    assert_eq!(long.data[0], 254);
    assert_eq!(Notification::new(99, 7).to_string(), "error 99/7");
    assert_eq!(Notification::new(3, 77).to_string(), "UPDATE error (3/77)");
}

#[test]
fn long_messages_are_taken_where_they_were_agreed_on() {
    let mut framer = Framer::default();
    framer.extend();
    framer.push(&whole(2, &vec![0; 60_000]));
    assert_eq!(framer.next_frame().expect("good").expect("whole").body.len(), 60_000);
    // An OPEN stays what it was (RFC 8654, section 4).
    framer.push(&raw(4097, 1, &[]));
    assert_eq!(framer.next_frame(), Err(Notification::with_data(1, 2, &4097u16.to_be_bytes())));
}

#[test]
fn a_refresh_is_for_a_family_of_ours() {
    let refresh = |body: &[u8], enhanced| Refresh::decode(&Bytes::copy_from_slice(body), enhanced);
    for (body, expected) in [
        ([0, 1, 0, 1], Refresh::Request(Family::Ipv4)),
        ([0, 2, 0, 1], Refresh::Request(Family::Ipv6)),
        ([0, 2, 1, 1], Refresh::Begin(Family::Ipv6)),
        ([0, 1, 2, 1], Refresh::End(Family::Ipv4)),
    ] {
        assert_eq!(refresh(&body, true), Ok(Some(expected)));
        assert_eq!(expected.encode()[..], whole(5, &body));
    }
    // Another family, another kind, and marks that were not agreed on: ignored (RFC 7313, section 5).
    assert_eq!(refresh(&[0, 25, 0, 70], true), Ok(None));
    assert_eq!(refresh(&[0, 1, 3, 1], true), Ok(None));
    assert_eq!(refresh(&[0, 1, 1, 1], false), Ok(None));
    // Of another length: with the length, or as RFC 7313 has it with the whole message.
    assert_eq!(refresh(&[0, 1, 0, 1, 9], true), Err(Notification::with_data(1, 2, &[0, 24])));
    assert_eq!(refresh(&[0, 1, 1, 1, 9], true), Err(Notification::with_data(7, 1, &whole(5, &[0, 1, 1, 1, 9]))));
}

proptest! {
    /// However the stream is cut, the same messages come out.
    #[test]
    fn borders_of_reads_do_not_matter(cuts in proptest::collection::vec(1usize..40, 1..60)) {
        let messages = [keepalive().to_vec(), whole(2, &[0; 4]), whole(5, &[0, 1, 0, 1]), whole(2, &[1; 300])];
        let stream = messages.concat();
        let mut framer = Framer::default();
        let mut got = Vec::new();
        let mut cuts = cuts.iter().cycle();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().expect("a cycle")).min(rest.len()));
            framer.push(now);
            while let Some(frame) = framer.next_frame().expect("good messages") {
                got.push(whole(frame.kind as u8, &frame.body));
            }
            rest = later;
        }
        prop_assert_eq!(got, messages);
    }

    /// Nothing that comes in panics.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = frame(&bytes);
        let bytes = Bytes::from(bytes);
        let _ = Notification::decode(&bytes).to_string();
        let _ = Refresh::decode(&bytes, true);
    }
}
