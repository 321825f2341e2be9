use super::*;
use dataplane::netlink::Way;
use proptest::prelude::*;
use simple_dns::ResourceRecord;
use simple_dns::rdata::{A, AAAA, CNAME};

fn question(name: &str, ipv6: bool) -> Question {
    Question { name: name.into(), ipv6 }
}

fn record(name: &'static str, ttl: u32, data: RData<'static>) -> ResourceRecord<'static> {
    ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, data)
}

fn a(text: &str) -> RData<'static> {
    RData::A(A { address: text.parse::<std::net::Ipv4Addr>().expect("an address").into() })
}

fn aaaa(text: &str) -> RData<'static> {
    RData::AAAA(AAAA { address: text.parse::<Ipv6Addr>().expect("an address").into() })
}

fn alias(name: &'static str) -> RData<'static> {
    RData::CNAME(CNAME(Name::new_unchecked(name)))
}

/// The answer to our own question, with these records.
fn answer(id: u16, to: &Question, code: RCODE, records: Vec<ResourceRecord<'static>>) -> Vec<u8> {
    let query = query(id, to).expect("a query");
    let mut packet = Packet::parse(&query).expect("what we wrote").into_reply();
    *packet.rcode_mut() = code;
    packet.answers = records;
    packet.build_bytes_vec_compressed().expect("an answer")
}

fn addresses(reply: Option<Result<Reply, RCODE>>) -> (Vec<String>, u64) {
    let reply = reply.expect("an answer to our question").expect("a good one");
    (reply.addresses.iter().map(ToString::to_string).collect(), reply.ttl.as_secs())
}

#[test]
fn addresses_are_read_through_aliases_with_the_least_of_their_times() {
    let v4 = question("core.example.net", false);
    let records = vec![
        record("pop.example.org", 90, a("192.0.2.7")),
        record("core.example.net", 300, alias("edge.example.net")),
        record("edge.example.net", 600, alias("pop.example.org")),
        record("pop.example.org", 120, a("192.0.2.8")),
        // Not what was asked, of a name that was not, and nobody's.
        record("pop.example.org", 5, aaaa("2001:db8::1")),
        record("other.example.org", 5, a("192.0.2.9")),
        record("pop.example.org", 120, a("127.0.0.1")),
        record("pop.example.org", 120, a("0.0.0.0")),
    ];
    let found = addresses(read(7, &v4, &answer(7, &v4, RCODE::NoError, records)));
    assert_eq!(found, (vec!["192.0.2.7".into(), "192.0.2.8".into()], 90));
    let v6 = question("core.example.net", true);
    let found = addresses(read(
        7,
        &v6,
        &answer(7, &v6, RCODE::NoError, vec![record("CORE.example.net", 5, aaaa("2001:db8::1"))]),
    ));
    assert_eq!(found, (vec!["2001:db8::1".into()], 5), "names are compared without regard to case");
}

#[test]
fn aliases_that_go_in_a_circle_end() {
    let v4 = question("a.example", false);
    let records = vec![record("a.example", 9, alias("b.example")), record("b.example", 9, alias("a.example"))];
    assert_eq!(addresses(read(1, &v4, &answer(1, &v4, RCODE::NoError, records))).0, Vec::<String>::new());
}

#[test]
fn only_an_answer_to_the_question_counts() {
    let v4 = question("core.example.net", false);
    let good = answer(7, &v4, RCODE::NoError, vec![record("core.example.net", 60, a("192.0.2.7"))]);
    assert!(read(7, &v4, &good).is_some());
    assert!(read(8, &v4, &good).is_none(), "another number");
    assert!(read(7, &question("core.example.org", false), &good).is_none(), "another name");
    assert!(read(7, &question("core.example.net", true), &good).is_none(), "another family");
    assert!(read(7, &v4, &query(7, &v4).expect("a query")).is_none(), "a question");
    assert_eq!(read(7, &v4, &answer(7, &v4, RCODE::NameError, vec![])), Some(Err(RCODE::NameError)));
}

#[test]
fn a_long_answer_gives_a_bounded_number() {
    let v4 = question("core.example.net", false);
    let records = (1..60).map(|last| record("core.example.net", 60, a(&format!("192.0.2.{last}")))).collect();
    assert_eq!(addresses(read(7, &v4, &answer(7, &v4, RCODE::NoError, records))).0.len(), ADDRESSES);
}

proptest! {
    /// Whatever stands in a datagram, reading it ends, without a panic.
    #[test]
    fn any_octets_are_survived(octets in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(0, &question("core.example.net", false), &octets);
    }

    /// The same for what is almost an answer.
    #[test]
    fn any_damage_is_survived(at in 0usize..200, octet in any::<u8>(), end in 0usize..200) {
        let v6 = question("core.example.net", true);
        let records = vec![
            record("core.example.net", 60, alias("pop.example.net")),
            record("pop.example.net", 60, aaaa("2001:db8::1")),
        ];
        let mut octets = answer(7, &v6, RCODE::NoError, records);
        let at = at % octets.len();
        octets[at] = octet;
        octets.truncate(octets.len().min(end + 12));
        let _ = read(7, &v6, &octets);
    }
}

#[test]
fn servers_are_read_from_what_dhcp_clients_write() {
    let text = "# made by dhcpcd\ndomain home\nnameserver 192.168.1.1\nnameserver\tfe80::1%eth0\nnameserver bad\n";
    let found: Vec<String> = resolv_conf(text).map(|address| address.to_string()).collect();
    assert_eq!(found, ["192.168.1.1", "fe80::1"]);
    let text = "ADMIN_STATE=configured\nDNS=192.0.2.53 2001:db8::53#dns.example fe80::1%3\nNTP=192.0.2.1\n";
    let found: Vec<String> = networkd(text).map(|address| address.to_string()).collect();
    assert_eq!(found, ["192.0.2.53", "2001:db8::53", "fe80::1"]);
}

#[test]
fn the_next_hops_are_asked_where_nothing_else_is_known_and_configured_servers_instead_of_all() {
    let way = |gateway: &str| Way {
        prefix: if gateway.contains(':') { "::/0" } else { "0.0.0.0/0" }.parse().expect("a prefix"),
        gateway: gateway.parse().ok(),
        metric: 0,
    };
    let interface = Interface {
        // No machine has one of this number and name: its files say nothing.
        index: 4_000_000,
        name: "no-such-wan".into(),
        running: true,
        loopback: false,
        hardware: None,
        mtu: 1500,
        addresses: Vec::new(),
        routes: vec![way("192.168.1.1"), way("fe80::1")],
    };
    let shown = |configured: &[&str]| -> Vec<String> {
        let configured: Vec<IpAddr> = configured.iter().map(|text| text.parse().expect("an address")).collect();
        servers(&configured, &interface)
            .iter()
            .map(|server| format!("{} {:?}", server.address, server.learnt))
            .collect()
    };
    assert_eq!(shown(&[]), ["192.168.1.1:53 Gateway", "[fe80::1%4000000]:53 Gateway"]);
    assert_eq!(shown(&["192.0.2.53"]), ["192.0.2.53:53 Configuration"]);
}

/// What a test's server does with a question.
#[derive(Clone, Copy)]
enum Does {
    Nothing,
    Refuse,
    Answer(&'static str),
}

/// A server on loopback that does this, until the runtime ends.
async fn server(does: Does) -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let v4 = question("core.example.net", false);
            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
            let reply = match does {
                Does::Nothing => continue,
                Does::Refuse => answer(id, &v4, RCODE::Refused, vec![]),
                Does::Answer(text) => answer(id, &v4, RCODE::NoError, vec![record("core.example.net", 60, a(text))]),
            };
            assert!(length > 12, "a question");
            // Nobody may be listening any more.
            let _ = socket.send_to(&reply, from).await;
        }
    });
    Server { address, learnt: Learnt::Configuration }
}

/// Asked on loopback, which is interface number 1 in every network namespace.
fn place(servers: Vec<Server>) -> Arc<Place> {
    let local = [Some(std::net::Ipv4Addr::LOCALHOST.into()), None];
    Arc::new(Place { interface: 1, local, servers, nat64: false, metered: false })
}

#[tokio::test]
async fn a_silent_and_a_refusing_server_do_not_keep_a_good_one_from_answering() {
    let servers =
        vec![server(Does::Nothing).await, server(Does::Refuse).await, server(Does::Answer("192.0.2.7")).await];
    let reply = ask_all(&place(servers), &question("core.example.net", false)).await.expect("an answer");
    assert_eq!(reply.addresses, ["192.0.2.7".parse::<IpAddr>().expect("an address")]);
}

#[tokio::test]
async fn an_answer_is_news_and_stays_known_when_there_is_nobody_to_ask() {
    let news = Arc::new(Notify::new());
    let mut resolver = Resolver::new(vec!["core.example.net".into()], news.clone());
    let servers = vec![server(Does::Answer("192.0.2.7")).await];
    resolver.ask_from(Some(Place::clone(&place(servers))));
    let v4 = question("core.example.net", false);
    while resolver.answers().get(&v4).is_none_or(|answer| answer.addresses.is_empty()) {
        news.notified().await;
    }
    resolver.ask_from(None);
    assert_eq!(resolver.answers()[&v4].addresses, ["192.0.2.7".parse::<IpAddr>().expect("an address")]);
    resolver.forget();
    assert!(resolver.answers().is_empty());
}
