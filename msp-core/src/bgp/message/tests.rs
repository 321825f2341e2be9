use super::*;
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
        (24, 5),
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

/// Version 4, AS 64501, hold time 90, identifier 192.0.2.9, and these parameters.
fn open_body(parameters: &[u8]) -> Vec<u8> {
    let mut body = vec![4, 0xfb, 0xf5, 0, 90, 192, 0, 2, 9, parameters.len() as u8];
    body.extend_from_slice(parameters);
    body
}

fn decode(body: &[u8]) -> Result<Open, Notification> {
    Open::decode(&Bytes::copy_from_slice(body))
}

#[test]
fn an_open_with_capabilities_is_read() {
    let parameters = [2, 26, 1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 1, 0, 0, 70, 0, 64, 2, 0x40, 0x78];
    let open = decode(&open_body(&parameters)).expect("a good OPEN");
    let expected = Open {
        asn: 65536,
        hold_time: 90,
        router_id: Ipv4Addr::new(192, 0, 2, 9),
        four_octet_as: true,
        route_refresh: true,
        families: Families::ALL,
    };
    assert_eq!(open, expected);
    // The same in the extended form (RFC 9072).
    let mut extended = open_body(&[]);
    extended[9] = 255;
    extended.extend_from_slice(&[255, 0, 29, 2, 0, 26]);
    extended.extend_from_slice(&parameters[2..]);
    assert_eq!(decode(&extended), Ok(expected));
}

#[test]
fn without_capabilities_it_is_ipv4_and_two_octets() {
    let open = decode(&open_body(&[])).expect("a good OPEN");
    assert_eq!((open.asn, open.four_octet_as, open.route_refresh), (64501, false, false));
    assert_eq!(open.families, Families { ipv4: true, ipv6: false });
    // One that names families speaks those alone.
    let open = decode(&open_body(&[2, 6, 1, 4, 0, 2, 0, 1])).expect("a good OPEN");
    assert_eq!(open.families, Families { ipv4: false, ipv6: true });
}

#[test]
fn each_defect_of_an_open_has_its_notification() {
    let with = |octet: usize, value: u8| {
        let mut body = open_body(&[]);
        body[octet] = value;
        body
    };
    let zero_id = {
        let mut body = open_body(&[]);
        body[5..9].fill(0);
        body
    };
    let zero_as = {
        let mut body = open_body(&[]);
        body[1..3].fill(0);
        body
    };
    for (body, expected) in [
        (with(0, 3), Notification::with_data(2, 1, &[0, 4])),
        (with(0, 5), Notification::with_data(2, 1, &[0, 4])),
        (zero_as, Notification::new(2, 2)),
        (zero_id, Notification::new(2, 3)),
        // Authentication information (type 1) is gone since RFC 4271.
        (open_body(&[1, 1, 0]), Notification::new(2, 4)),
        (with(4, 1), Notification::new(2, 6)),
        (with(4, 2), Notification::new(2, 6)),
        // Parameters' length: more than there is, less than there is.
        (with(9, 4), Notification::new(2, 0)),
        ([open_body(&[]), vec![0]].concat(), Notification::new(2, 0)),
        // A parameter beyond the parameters, a capability beyond its parameter.
        (open_body(&[2, 5, 2, 0]), Notification::new(2, 0)),
        (open_body(&[2, 2, 2, 7]), Notification::new(2, 0)),
        (open_body(&[2]), Notification::new(2, 0)),
        (open_body(&[2, 1, 65]), Notification::new(2, 0)),
        // Known capabilities of a wrong length.
        (open_body(&[2, 5, 1, 3, 0, 1, 1]), Notification::new(2, 0)),
        (open_body(&[2, 4, 65, 2, 0, 1]), Notification::new(2, 0)),
        // An AS number of zero in the capability (RFC 7607).
        (open_body(&[2, 6, 65, 4, 0, 0, 0, 0]), Notification::new(2, 2)),
        (vec![4, 0, 1], Notification::new(2, 0)),
    ] {
        assert_eq!(decode(&body), Err(expected), "{body:?}");
    }
    // Which bgpkit-parser takes: parameters that do not add up.
    assert!(bgpkit_takes(&whole(1, &with(9, 4))));
}

/// The very octets that tshark 4.0 dissected without a complaint and BIRD 2.0.12 answered with its own OPEN.
#[test]
fn our_open_is_octet_for_octet_what_bird_took() {
    let open = Open {
        asn: 64500,
        hold_time: 9,
        router_id: Ipv4Addr::new(203, 0, 113, 2),
        four_octet_as: true,
        route_refresh: true,
        families: Families::ALL,
    };
    let body = [
        4, 0xfb, 0xf4, 0, 9, 203, 0, 113, 2, 22, 2, 20, 1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 0, 0xfb,
        0xf4,
    ];
    assert_eq!(open.encode()[..], whole(1, &body));
    assert_eq!(decode(&body), Ok(open));
}

#[test]
fn a_large_as_number_is_as_trans_in_two_octets() {
    let open = Open { asn: 4_200_000_000, ..decode(&open_body(&[])).expect("a good OPEN") };
    let encoded = Open { four_octet_as: true, ..open }.encode();
    assert_eq!(encoded[20..22], AS_TRANS.to_be_bytes());
    assert_eq!(decode(&encoded[HEADER..]).expect("a good OPEN").asn, 4_200_000_000);
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
fn a_refresh_is_for_a_family_of_ours_and_a_request() {
    let refresh = |body: [u8; 4]| super::refresh(&Bytes::copy_from_slice(&body));
    assert_eq!(refresh([0, 1, 0, 1]), Some(Family::Ipv4));
    assert_eq!(refresh([0, 2, 0, 1]), Some(Family::Ipv6));
    // Another family; the beginning and end that RFC 7313 marks.
    assert_eq!(refresh([0, 25, 0, 70]), None);
    assert_eq!(refresh([0, 1, 1, 1]), None);
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
        let _ = Open::decode(&bytes);
        let _ = Notification::decode(&bytes).to_string();
        let _ = super::refresh(&bytes);
    }
}
