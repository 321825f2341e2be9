use super::*;

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

fn pdu(version: u8, kind: u8, session: u16, body: &[u8]) -> Vec<u8> {
    let mut octets = vec![version, kind];
    octets.extend(session.to_be_bytes());
    octets.extend((HEADER as u32 + body.len() as u32).to_be_bytes());
    octets.extend(body);
    octets
}

fn ipv4(announce: u8, prefix: [u8; 4], length: u8, most: u8, asn: u32) -> Vec<u8> {
    let mut body = vec![announce, length, most, 0];
    body.extend(prefix);
    body.extend(asn.to_be_bytes());
    pdu(1, pdu::IPV4_PREFIX, 0, &body)
}

fn end(session: u16, serial: u32, timing: [u32; 3]) -> Vec<u8> {
    let words = std::iter::once(serial).chain(timing).flat_map(u32::to_be_bytes);
    pdu(1, pdu::END_OF_DATA, session, &words.collect::<Vec<_>>())
}

fn response(session: u16) -> Vec<u8> {
    pdu(1, pdu::CACHE_RESPONSE, session, &[])
}

fn notify(session: u16, serial: u32) -> Vec<u8> {
    pdu(1, pdu::SERIAL_NOTIFY, session, &serial.to_be_bytes())
}

fn said(client: &mut Client) -> Vec<u8> {
    client.output().split().to_vec()
}

/// Feeds octets in the smallest pieces.
fn feed(client: &mut Client, now: Instant, octets: &[u8]) -> Result<Option<Answer>, Fault> {
    let mut last = None;
    for octet in octets {
        client.received(&[*octet]);
        last = client.answer(now)?.or(last);
    }
    Ok(last)
}

fn vrp(text: &str, max_length: u8, asn: u32) -> Vrp {
    Vrp { prefix: text.parse().expect("a prefix"), max_length, asn }
}

/// A client that has all there is, of session 7 and serial 1, since the second 0.
fn synchronised() -> Client {
    let mut client = Client::new(at(0), None, false);
    assert_eq!(said(&mut client), pdu(1, pdu::RESET_QUERY, 0, &[]));
    let answer = [response(7), ipv4(1, [10, 0, 0, 0], 8, 8, 1), end(7, 1, [100, 50, 1000])].concat();
    let answer = feed(&mut client, at(0), &answer).expect("no fault").expect("an answer");
    assert_eq!(answer.changes, [Change { announce: true, vrp: vrp("10.0.0.0/8", 8, 1) }]);
    assert!(answer.reset);
    client
}

#[test]
fn everything_is_asked_for_first_and_then_what_is_new() {
    let mut client = synchronised();
    assert_eq!(client.poll_timeout(), at(100), "the cache's refresh interval");
    client.handle_timeout(at(100)).expect("nothing is wrong");
    assert_eq!(said(&mut client), pdu(1, pdu::SERIAL_QUERY, 7, &[0, 0, 0, 1]));
    let mut octets = vec![0, 48, 48, 0];
    octets.extend("2001:db8:1::".parse::<Ipv6Addr>().expect("an address").octets());
    octets.extend(5u32.to_be_bytes());
    let answer = [
        response(7),
        ipv4(0, [10, 0, 0, 0], 8, 8, 1),
        // A router key, of BGPsec.
        pdu(1, pdu::ROUTER_KEY, 0x0100, &[0; 100]),
        pdu(1, pdu::IPV6_PREFIX, 0, &octets),
        end(7, 2, [0, 0, 0]),
    ];
    let answer = feed(&mut client, at(101), &answer.concat()).expect("no fault").expect("an answer");
    assert!(!answer.reset);
    assert_eq!(answer.serial, Serial { session: 7, serial: 2 });
    let gone = [vrp("10.0.0.0/8", 8, 1), vrp("2001:db8:1::/48", 48, 5)];
    assert_eq!(answer.changes, gone.map(|vrp| Change { announce: false, vrp }));
    let least = [1, 1, 600].map(Duration::from_secs);
    assert_eq!([answer.timing.refresh, answer.timing.retry, answer.timing.expire], least, "RFC 8210, section 6");
}

#[test]
fn a_cache_that_has_forgotten_is_asked_for_everything() {
    let mut client = Client::new(at(0), Some(Serial { session: 7, serial: 1 }), false);
    assert_eq!(said(&mut client), pdu(1, pdu::SERIAL_QUERY, 7, &[0, 0, 0, 1]));
    feed(&mut client, at(0), &pdu(1, pdu::CACHE_RESET, 0, &[])).expect("no fault");
    assert_eq!(said(&mut client), pdu(1, pdu::RESET_QUERY, 0, &[]));
}

#[test]
fn news_is_asked_for_at_once_and_a_flood_of_it_once_a_second() {
    let mut client = synchronised();
    feed(&mut client, at(50), &notify(7, 1)).expect("no fault");
    assert_eq!(client.poll_timeout(), at(100), "that is known");
    feed(&mut client, at(50), &notify(7, 2)).expect("no fault");
    assert_eq!(client.poll_timeout(), at(50));
    client.handle_timeout(at(50)).expect("nothing is wrong");
    assert_eq!(said(&mut client), pdu(1, pdu::SERIAL_QUERY, 7, &[0, 0, 0, 1]));
    // While it answers there is more.
    let octets = [response(7), notify(7, 3), end(7, 2, [100, 50, 1000]), notify(7, 3), notify(7, 4)].concat();
    assert!(feed(&mut client, at(50), &octets).expect("no fault").is_some());
    assert_eq!(client.poll_timeout(), at(51));
}

#[test]
fn an_older_cache_is_spoken_to_in_its_version() {
    // It answers in its own, or refuses ours and closes.
    let mut client = Client::new(at(0), None, false);
    let octets = [pdu(0, pdu::CACHE_RESPONSE, 7, &[]), pdu(0, pdu::END_OF_DATA, 7, &[0, 0, 0, 9])].concat();
    let answer = feed(&mut client, at(0), &octets).expect("no fault").expect("an answer");
    assert_eq!((answer.serial.serial, answer.timing), (9, Timing::default()));
    assert!(client.is_old());
    assert_eq!(feed(&mut client, at(0), &notify(7, 10)), Err(Fault::Version(1)), "it keeps to it");

    let mut client = Client::new(at(0), None, false);
    let refused = feed(&mut client, at(0), &pdu(0, pdu::ERROR_REPORT, 4, &[0; 8]));
    assert_eq!(refused, Err(Fault::Reported { code: 4, text: String::new() }));
    assert!(client.is_old());
    assert_eq!(said(&mut Client::new(at(0), None, true)), pdu(0, pdu::RESET_QUERY, 0, &[]));
}

#[test]
fn each_defect_ends_the_connection_with_its_code() {
    let told = |more: Vec<u8>| [response(7), more].concat();
    let bad = |announce, length, most| told(ipv4(announce, [10, 0, 0, 0], length, most, 1));
    let timing = [100, 50, 1000];
    for (octets, code) in [
        // Out of turn.
        (end(7, 1, timing), Some(0)),
        (ipv4(1, [10, 0, 0, 0], 8, 8, 1), Some(0)),
        (pdu(1, pdu::CACHE_RESET, 0, &[]), Some(0)),
        (told(response(7)), Some(0)),
        (told(end(8, 1, timing)), Some(0)),
        // No prefix.
        (bad(1, 33, 33), Some(0)),
        (bad(1, 16, 8), Some(0)),
        (bad(1, 8, 33), Some(0)),
        // Nothing is there to be withdrawn.
        (bad(0, 8, 8), Some(0)),
        // Lengths.
        (pdu(1, pdu::CACHE_RESPONSE, 7, &[0]), Some(0)),
        (pdu(1, pdu::SERIAL_NOTIFY, 7, &[]), Some(0)),
        (told(pdu(1, pdu::IPV4_PREFIX, 0, &[0; 24])), Some(0)),
        (told(pdu(1, pdu::END_OF_DATA, 7, &[0; 4])), Some(0)),
        (vec![1, pdu::ROUTER_KEY, 0, 0, 0, 0, 0, 0], Some(0)),
        // Types that are a router's, of a later version, or nobody's.
        (pdu(1, pdu::RESET_QUERY, 0, &[]), Some(5)),
        (told(pdu(1, 11, 0, &[0; 8])), Some(5)),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Some(5)),
        (told(pdu(0, pdu::ROUTER_KEY, 0, &[0; 100])), Some(5)),
        // Versions.
        (pdu(2, pdu::CACHE_RESPONSE, 7, &[]), Some(8)),
        (told(pdu(0, pdu::CACHE_RESPONSE, 7, &[])), Some(8)),
        // Its own word is not answered, whatever it is.
        (pdu(1, pdu::ERROR_REPORT, 2, &[0; 8]), None),
        (pdu(9, pdu::ERROR_REPORT, 2, &[0xff; 8]), None),
        (told(pdu(0, pdu::ERROR_REPORT, 8, &[0; 8])), None),
        (vec![1, pdu::ERROR_REPORT, 0, 0, 0xff, 0xff, 0xff, 0xff], None),
    ] {
        let mut client = Client::new(at(0), None, false);
        said(&mut client);
        let fault = feed(&mut client, at(0), &octets).expect_err(&format!("{octets:?}"));
        client.fail(&fault);
        let report = said(&mut client);
        assert_eq!(
            report.get(1..4).map(|head| (head[0], u16::from_be_bytes([head[1], head[2]]))),
            code.map(|code| (pdu::ERROR_REPORT, code)),
            "{octets:?}: {fault}"
        );
        // What we write is what we would read.
        let text = report.get(16..).map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(text.is_none_or(|text| text == fault.to_string()));
    }
    let mut client = Client::new(at(0), Some(Serial { session: 7, serial: 1 }), false);
    let fault = feed(&mut client, at(0), &response(8)).expect_err("another life than it was asked about");
    assert_eq!(fault.code(), Some(0));
}

#[test]
fn a_cache_is_asked_before_what_it_said_expires_whatever_it_says_of_that() {
    let seconds = |timing: Timing| [timing.refresh, timing.retry, timing.expire].map(|time| time.as_secs());
    assert_eq!(seconds(Timing::default()), [3600, 600, 7200]);
    assert_eq!(seconds(Timing::new(86_400, 7200, 600)), [300, 150, 600]);
    assert_eq!(seconds(Timing::new(0, 0, u32::MAX)), [1, 1, 172_800]);
}

#[test]
fn its_own_words_are_shown() {
    let mut client = Client::new(at(0), None, false);
    let body = [&4u32.to_be_bytes()[..], b"PDU.", &9u32.to_be_bytes(), b"not today"].concat();
    let fault = feed(&mut client, at(0), &pdu(1, pdu::ERROR_REPORT, 2, &body)).expect_err("it says so");
    assert_eq!(fault.to_string(), "the cache reports: no data available yet (not today)");
}

#[test]
fn a_cache_that_does_not_finish_is_given_up() {
    let mut client = Client::new(at(0), None, false);
    feed(&mut client, at(100), &response(7)).expect("no fault");
    assert_eq!(client.poll_timeout(), at(120));
    assert_eq!(client.handle_timeout(at(119)), Ok(()));
    assert_eq!(client.handle_timeout(at(120)), Err(Fault::Slow));
}

#[test]
fn a_cache_cannot_make_us_hold_more_than_the_bound() {
    let mut client = Client::new(at(0), None, false);
    client.received(&response(7));
    let many: Vec<u8> = (0..1000u32).flat_map(|n| ipv4(1, [10, 0, 0, 0], 8, 8, n)).collect();
    for _ in 0..MOST_VRPS / 1000 {
        client.received(&many);
        assert_eq!(client.answer(at(1)), Ok(None));
    }
    client.received(&many);
    assert_eq!(client.answer(at(1)), Err(Fault::TooMany));
}

/// Whatever comes in, it ends or goes on; nothing else.
#[test]
fn garbage_is_a_fault() {
    use proptest::prelude::*;
    proptest!(|(octets in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(7), Just(20), any::<u8>()], 0..400))| {
        let mut client = Client::new(at(0), None, false);
        client.received(&response(7));
        client.received(&octets);
        let mut answers = 0;
        while let Ok(Some(_)) = client.answer(at(1)) {
            answers += 1;
        }
        prop_assert!(answers <= octets.len() / 24);
    });
}
