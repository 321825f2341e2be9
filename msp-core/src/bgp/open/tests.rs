use super::*;
use crate::bgp::message::{HEADER, MAX_MESSAGE};
use bgpkit_parser::models::{AsnLength, BgpMessage};
use bgpkit_parser::parser::bgp::parse_bgp_message;
use proptest::prelude::*;

fn whole(body: &[u8]) -> Vec<u8> {
    let mut message = header(Kind::Open, body.len());
    message.put_slice(body);
    message.to_vec()
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
    // The last is unknown.
    let parameters = [2, 26, 1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 1, 0, 0, 64, 2, 0x40, 0x78, 99, 0];
    let open = decode(&open_body(&parameters)).expect("a good OPEN");
    let expected = Open {
        asn: 65536,
        hold_time: 90,
        router_id: Ipv4Addr::new(192, 0, 2, 9),
        capabilities: Capabilities {
            four_octet_as: true,
            route_refresh: true,
            families: Families::ALL,
            graceful_restart: Some(GracefulRestart { time: 0x78, ..GracefulRestart::default() }),
            ..Capabilities::default()
        },
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
    assert_eq!((open.asn, open.capabilities.four_octet_as), (64501, false));
    assert_eq!(open.capabilities.families, Families { ipv4: true, ipv6: false });
    // One that names families speaks those alone.
    let open = decode(&open_body(&[2, 6, 1, 4, 0, 2, 0, 1])).expect("a good OPEN");
    assert_eq!(open.capabilities.families, Families { ipv4: false, ipv6: true });
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
        (open_body(&[2, 3, 2, 1, 0]), Notification::new(2, 0)),
        (open_body(&[2, 3, 64, 1, 0]), Notification::new(2, 0)),
        (open_body(&[2, 5, 69, 3, 0, 1, 1]), Notification::new(2, 0)),
        (open_body(&[2, 6, 5, 4, 0, 1, 0, 1]), Notification::new(2, 0)),
        (open_body(&[2, 2, 9, 0]), Notification::new(2, 0)),
        // A role that there is not, and two that contradict each other (RFC 9234, section 4.2).
        (open_body(&[2, 3, 9, 1, 5]), Notification::new(2, 11)),
        (open_body(&[2, 6, 9, 1, 3, 9, 1, 4]), Notification::new(2, 11)),
        // An AS number of zero in the capability (RFC 7607).
        (open_body(&[2, 6, 65, 4, 0, 0, 0, 0]), Notification::new(2, 2)),
        (vec![4, 0, 1], Notification::new(2, 0)),
    ] {
        assert_eq!(decode(&body), Err(expected), "{body:?}");
    }
    // Which bgpkit-parser takes: parameters that do not add up.
    assert!(parse_bgp_message(&mut whole(&with(9, 4)).into(), false, &AsnLength::Bits32).is_ok());
}

/// All that we ever offer, octet for octet; each RFC's own form.
fn everything() -> (Open, Vec<u8>) {
    let ipv4 = Families::NONE.with(Family::Ipv4);
    let open = Open {
        asn: 64500,
        hold_time: 9,
        router_id: Ipv4Addr::new(203, 0, 113, 2),
        capabilities: Capabilities {
            families: Families::ALL,
            four_octet_as: true,
            route_refresh: true,
            enhanced_route_refresh: true,
            extended_message: true,
            extended_next_hop: true,
            add_path_receive: Families::ALL,
            add_path_send: ipv4,
            graceful_restart: Some(GracefulRestart {
                restarted: true,
                time: 120,
                families: Families::ALL,
                forwarding: ipv4,
            }),
            role: Some(Role::Customer),
        },
    };
    let body: &[&[u8]] = &[
        &[4, 0xfb, 0xf4, 0, 9, 203, 0, 113, 2, 59, 2, 57],
        &[1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0],
        &[5, 6, 0, 1, 0, 1, 0, 2],
        &[6, 0],
        &[9, 1, 3],
        &[64, 10, 0x80, 120, 0, 1, 1, 0x80, 0, 2, 1, 0],
        &[65, 4, 0, 0, 0xfb, 0xf4],
        &[69, 8, 0, 1, 1, 3, 0, 2, 1, 1],
        &[70, 0],
    ];
    (open, body.concat())
}

#[test]
fn each_capability_is_written_and_read_in_its_form() {
    let (open, body) = everything();
    assert_eq!(open.encode()[..], whole(&body));
    assert_eq!(decode(&body), Ok(open.clone()));
    // And bgpkit-parser reads the same number of them.
    let parsed = parse_bgp_message(&mut open.encode(), false, &AsnLength::Bits32);
    let Ok(BgpMessage::Open(parsed)) = parsed else { panic!("not an OPEN: {parsed:?}") };
    assert_eq!((parsed.asn.to_u32(), parsed.hold_time, parsed.bgp_identifier), (64500, 9, open.router_id));
    let bgpkit_parser::models::ParamValue::Capacities(capabilities) = &parsed.opt_params[0].param_value else {
        panic!("no capabilities: {parsed:?}")
    };
    assert_eq!(capabilities.len(), 10);
}

#[test]
fn a_large_as_number_is_as_trans_in_two_octets() {
    let (open, _) = everything();
    let encoded = Open { asn: 4_200_000_000, ..open }.encode();
    assert_eq!(encoded[20..22], AS_TRANS.to_be_bytes());
    assert_eq!(decode(&encoded[HEADER..]).expect("a good OPEN").asn, 4_200_000_000);
}

proptest! {
    /// Nothing that comes in panics, and what is an OPEN is one again when it is written.
    #[test]
    fn any_parameters_are_survived(parameters in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut body = open_body(&[2, parameters.len() as u8]);
        body[9] = 2 + parameters.len() as u8;
        body.extend_from_slice(&parameters);
        // One that offers foreign families alone would be one that says nothing, and means IPv4.
        if let Ok(open) = decode(&body).and_then(|open| match open.capabilities.families {
            Families::NONE => Err(Notification::new(2, 7)),
            _ => Ok(open),
        }) {
            let again = open.encode();
            prop_assert!(again.len() <= MAX_MESSAGE);
            prop_assert_eq!(decode(&again[HEADER..]).map(|open| open.capabilities.families), Ok(open.capabilities.families));
        }
    }
}
