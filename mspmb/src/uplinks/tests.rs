use super::*;
use dataplane::netlink::Address;

fn endpoints(list: &[&str]) -> Vec<Endpoint> {
    use dataplane::settings::Written;
    list.iter().map(|text| Endpoint::read(text).expect("an endpoint")).collect()
}

fn answers(list: &[(&str, &str)]) -> Answers {
    let mut answers = Answers::new();
    for (name, address) in list {
        let address: IpAddr = address.parse().expect("an address");
        let question = Question { name: (*name).into(), ipv6: address.is_ipv6() };
        answers.entry(question).or_default().addresses.push(address);
    }
    answers
}

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|text| text.parse().expect("an address")).collect()
}

fn shown(all: &[Candidate]) -> Vec<String> {
    all.iter().map(|candidate| candidate.to.to_string()).collect()
}

#[test]
fn literals_come_first_then_the_uplinks_own_answers_then_what_has_proved_right() {
    let all = candidates(
        &endpoints(&["core.example.net:51820", "192.0.2.1:51820", "alt.example.net:443"]),
        &answers(&[
            ("core.example.net", "203.0.113.66"),
            ("core.example.net", "2001:db8::1"),
            ("alt.example.net", "192.0.2.3"),
            ("other.example.net", "192.0.2.4"),
        ]),
        &addresses(&["192.0.2.2:51820", "192.0.2.1:51820"]),
        None,
        false,
    );
    let expected = ["192.0.2.1:51820", "[2001:db8::1]:51820", "203.0.113.66:51820", "192.0.2.3:443", "192.0.2.2:51820"];
    assert_eq!(shown(&all), expected);
    assert!(all.iter().all(|candidate| candidate.core == candidate.to));
}

#[test]
fn without_ipv4_the_core_is_reached_by_the_prefix_and_known_to_others_by_its_own_address() {
    let prefix = Pref64::new("2001:db8:64::/96".parse().expect("a prefix")).ok();
    let list = endpoints(&["192.0.2.1:51820", "core.example.net:51820"]);
    // DNS64 made the second from 192.0.2.2.
    let said = answers(&[("core.example.net", "2001:db8:64::192.0.2.2"), ("core.example.net", "192.0.2.2")]);
    let all = candidates(&list, &said, &[], prefix, true);
    let v6: Vec<&Candidate> = all.iter().filter(|candidate| candidate.to.is_ipv6()).collect();
    assert_eq!(
        v6.iter().map(|candidate| (candidate.to.to_string(), candidate.core.to_string())).collect::<Vec<_>>(),
        [
            ("[2001:db8:64::c000:201]:51820".into(), "192.0.2.1:51820".into()),
            ("[2001:db8:64::c000:202]:51820".into(), "192.0.2.2:51820".into()),
        ]
    );
    // As long as the prefix is not known, the well-known one is tried, after all else.
    let all = candidates(&list, &answers(&[("core.example.net", "2001:db8::9")]), &[], None, true);
    assert_eq!(shown(&all).last().map(String::as_str), Some("[64:ff9b::c000:201]:51820"));
    assert_eq!(shown(&all)[0], "192.0.2.1:51820");
}

#[test]
fn a_configured_prefix_is_the_last_way_where_ipv4_works() {
    let prefix = Pref64::new("64:ff9b::/96".parse().expect("a prefix")).ok();
    let all = candidates(&endpoints(&["192.0.2.1:51820", "[2001:db8::1]:51820"]), &Answers::new(), &[], prefix, false);
    assert_eq!(shown(&all), ["192.0.2.1:51820", "[2001:db8::1]:51820", "[64:ff9b::c000:201]:51820"]);
}

#[test]
fn the_prefix_is_read_from_the_answer_for_its_name() {
    let said = answers(&[(nat64::NAME, "2001:db8:64::192.0.0.171")]);
    assert_eq!(discovered(&said).map(|prefix| prefix.to_string()).as_deref(), Some("2001:db8:64::/96"));
    assert_eq!(discovered(&answers(&[(nat64::NAME, "2001:db8::1")])), None);
    assert_eq!(discovered(&Answers::new()), None);
}

#[test]
fn an_uplink_sends_from_an_address_of_the_isp_and_stays_with_it() {
    let prefixes = ["198.51.100.0/24".parse().expect("a prefix")];
    let address = |text: &str| Address { net: text.parse().expect("an address"), usable: true, secondary: false };
    let mut interface = Interface {
        index: 3,
        name: "wan0".into(),
        running: true,
        loopback: false,
        hardware: None,
        mtu: 1500,
        addresses: ["198.51.100.1/24", "192.168.1.2/24", "192.168.1.3/24", "fd00::2/64", "2001:db8:1::2/64"]
            .map(address)
            .into(),
        routes: Vec::new(),
    };
    let shown = |interface: &Interface, before| {
        own_addresses(interface, &prefixes, before).map(|address| address.map(|address| address.to_string()))
    };
    let own = |v4: &str, v6: &str| [Some(v4.to_owned()), Some(v6.to_owned())];
    assert_eq!(shown(&interface, [None; 2]), own("192.168.1.2", "2001:db8:1::2"));
    let before = ["192.168.1.3", "fd00::2"].map(|text| text.parse().ok());
    assert_eq!(shown(&interface, before), own("192.168.1.3", "2001:db8:1::2"), "the Internet before what is in use");
    interface.addresses.truncate(1);
    assert_eq!(own_addresses(&interface, &prefixes, [None; 2]), [None; 2]);
}
