use super::*;

const GOOD: &str = r#"schema = 1
prefixes = ["198.51.100.0/24", "2001:db8:100::/48"]
middlebox = 7
control = "/run/box/control.sock"
[core]
name = "pop-a"
public_key = "KEY"
endpoints = ["192.0.2.1:51820", "[2001:db8::1]:51820"]
[[uplink]]
interface = "wan0"
[[uplink]]
interface = "wan1"
slot = 4
"#;

/// Loads `text` (with a secret beside it); an error without the folder's name.
pub(crate) fn load(text: &str) -> Result<Config, String> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("mspmb-config-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("making a scratch folder");
    let path = folder.join("box.toml");
    let key = SecretKey::from_bytes([3; 32]).public().to_string();
    std::fs::write(&path, text.replace("KEY", &key)).expect("writing a scratch file");
    settings::write_key(&folder.join("secret.key"), &SecretKey::from_bytes([4; 32]), true).expect("writing a key");
    let result = Config::load(&path);
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
    result.map_err(|error| error.to_string().replace(&format!("{}/", folder.display()), ""))
}

#[test]
fn without_uplinks_they_are_found_and_without_finding_there_must_be_one() {
    let (few, _) = GOOD.split_once("[[uplink]]").expect("it has uplinks");
    let config = load(few).expect("it is good");
    assert!(config.find && config.uplinks.is_empty());
    let error = load(&few.replace("middlebox = 7", "middlebox = 7\nfind = false")).expect_err("there is none");
    let expected = "box.toml:4:8: find: with `find = false` expected at least one [[uplink]]; or leave `find` out, to \
                    have them found";
    assert_eq!(error, expected);
}

#[test]
fn a_metered_uplink_has_a_budget_also_if_the_file_gives_none() {
    let keepalive = |more: &str| load(&GOOD.replace("slot = 4", more)).expect("it is good").uplinks[1].keepalive;
    assert_eq!(keepalive("slot = 4"), Keepalive::default());
    assert_eq!(keepalive("metered = true"), keepalive("keepalive_budget = \"50 MB\""));
    assert!(keepalive("metered = true").metered);
    // The least that an error recommends is enough for either kind.
    for tunnel in ["wireguard", "quic"] {
        let least = keepalive(&format!("tunnel = \"{tunnel}\"\nkeepalive_budget = \"46 MB\""));
        let ample = keepalive(&format!("tunnel = \"{tunnel}\"\nkeepalive_budget = \"1 GB\""));
        assert!(least.idle > ample.idle);
    }
}

#[test]
fn a_name_of_the_core_is_one_that_a_resolver_can_be_asked_for() {
    for (text, expected) in [
        ("Core.Example.net.:51820", "core.example.net:51820"),
        ("core:1", "core:1"),
        ("192.0.2.1:51820", "192.0.2.1:51820"),
        ("[2001:db8::1]:51820", "[2001:db8::1]:51820"),
    ] {
        assert_eq!(Endpoint::read(text).map(|endpoint| endpoint.to_string()), Ok(expected.to_owned()));
    }
    let long = format!("{}:51820", ["a23456789012345678901234567890"; 9].join("."));
    for text in ["", ":51820", "a..b:1", "-a.example:1", "192.0.2.300:51820", "a b:1", "core:65536", "core:", &long] {
        assert_eq!(Endpoint::read(text), Err(None), "{text:?}");
    }
}

#[test]
fn a_good_file_becomes_a_node_with_a_path_for_each_slot() {
    let config = load(GOOD).expect("it is good");
    let node = config.node();
    node.check().expect("the node agrees");
    assert_eq!((node.mtu, node.identity.middlebox, node.local.len()), (1380, 7, 2));
    let paths: Vec<_> = node.peers[0].paths.iter().map(|path| (path.slot, path.link)).collect();
    assert_eq!(paths, (0..8u8).map(|slot| (slot, Some(LinkId(slot.into())))).collect::<Vec<_>>());
    let secret = SecretKey::from_bytes([4; 32]);
    assert_eq!(node.peers[0].paths[4].local_key.public(), secret.uplink(4).public());
    assert_eq!(config.journal(), Path::new("/run/box/control.journal"));
}

#[test]
fn a_wrong_file_is_refused_with_place_key_and_what_was_expected() {
    let cases = [
        (
            "\"2001:db8:100::/48\"",
            "\"198.51.100.128/25\"",
            "box.toml:2:32: prefixes[1]: 198.51.100.128/25 overlaps 198.51.100.0/24: expected each address once",
        ),
        (
            "\"2001:db8:100::/48\"",
            "\"::/0\"",
            "box.toml:2:32: prefixes[1]: ::/0 cannot be a site's: expected a unicast prefix of its own",
        ),
        (
            "\"2001:db8:100::/48\"",
            "\"127.0.0.0/16\"",
            "box.toml:2:32: prefixes[1]: 127.0.0.0/16 cannot be a site's: expected a unicast prefix of its own",
        ),
        (
            "192.0.2.1:51820",
            "198.51.100.9:51820",
            "box.toml:8:14: core.endpoints[0]: 198.51.100.9:51820 lies in the site's own 198.51.100.0/24: \
          the tunnel would go through itself",
        ),
        (
            "192.0.2.1:51820",
            "192.0.2.1",
            "box.toml:8:14: core.endpoints[0]: \"192.0.2.1\" is not understood: expected an address or a name with a \
          port, such as 192.0.2.1:51820, [2001:db8::1]:51820 or core.example.net:51820",
        ),
        (
            "KEY",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "box.toml:7:14: core.public_key: \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\" is not a public key: \
          this public key is a point of low order: anybody could read the tunnel; make a new key pair",
        ),
        ("wan1", "wan0", "box.toml:12:13: uplink[1].interface: \"wan0\" is used already, by another uplink or the TUN"),
        ("wan1", "msp0", "box.toml:12:13: uplink[1].interface: \"msp0\" is used already, by another uplink or the TUN"),
        (
            "wan1",
            "a/b",
            "box.toml:12:13: uplink[1].interface: \"a/b\" is no name of an interface: \
          expected 1 to 15 characters such as \"wan0\"",
        ),
        ("slot = 4", "slot = 8", "box.toml:13:8: uplink[1].slot: 8 does not exist: expected 0 to 7"),
        (
            "slot = 4",
            "slot = 0",
            "box.toml:13:8: uplink[1].slot: 0 is used by an earlier uplink: expected one of its own",
        ),
        ("slot = 4", "solt = 4", "box.toml:13:1: unknown key \"solt\" in [uplink[1]]; did you mean \"slot\"?"),
        (
            "middlebox = 7",
            "middlebox = 0",
            "box.toml:3:13: middlebox: 0 is no number of a box: expected the one the provider gave",
        ),
        (
            "[core]",
            "[tun]\nmtu = 1200\n[core]",
            "box.toml:6:7: tun.mtu: 1200 does not work: expected 1280 (which IPv6 needs) to 9000 octets",
        ),
        (
            "192.0.2.1:51820",
            "core.example.net",
            "box.toml:8:14: core.endpoints[0]: \"core.example.net\" is not understood: expected an address or a name with \
          a port, such as 192.0.2.1:51820, [2001:db8::1]:51820 or core.example.net:51820",
        ),
        (
            "192.0.2.1:51820",
            "core.example.net:0",
            "box.toml:8:14: core.endpoints[0]: core.example.net:0 is nowhere: expected the core's address and port",
        ),
        (
            "middlebox = 7",
            "middlebox = 7\nlan = [\"msp0\"]",
            "box.toml:4:8: lan[0]: \"msp0\" is the TUN's name, which is no interface of the LAN",
        ),
        (
            "middlebox = 7",
            "middlebox = 7\nignore = [\"docker*\", \"wan*\"]",
            "box.toml:4:22: ignore[1]: \"wan*\" is an uplink of this file (\"wan0\"): it cannot be both",
        ),
        (
            "middlebox = 7",
            "middlebox = 7\nignore = [\"a b\"]",
            "box.toml:4:11: ignore[0]: \"a b\" is no name of an interface: expected 1 to 15 characters such as \"wan0\"",
        ),
        (
            "slot = 4",
            "metered = false\nkeepalive_budget = \"50 MB\"",
            "box.toml:14:20: uplink[1].keepalive_budget: only a metered uplink has a budget: leave it out, or \
          `metered = false`",
        ),
        (
            "slot = 4",
            "keepalive_budget = \"20 MB\"",
            "box.toml:13:20: uplink[1].keepalive_budget: 20 MB cannot be kept: a path is asked at least each 25 s, lest a \
          NAT forget it; expected \"46 MB\" or more",
        ),
        (
            "slot = 4",
            "keepalive_budget = \"50 MiB\"",
            "box.toml:13:20: uplink[1].keepalive_budget: \"50 MiB\" is not understood: expected an amount of data such as \
          \"50 MB\" or \"1 GB\"",
        ),
        (
            "slot = 4",
            "dns = [\"resolver\"]",
            "box.toml:13:8: uplink[1].dns[0]: \"resolver\" is not understood: expected an address, such as 192.0.2.1 or \
          2001:db8::1",
        ),
        (
            "slot = 4",
            "nat64 = \"64:ff9b::/95\"",
            "box.toml:13:9: uplink[1].nat64: 64:ff9b::/95 is no prefix of a NAT64: expected one of IPv6 with a length of \
          32, 40, 48, 56, 64 or 96, such as 64:ff9b::/96",
        ),
        ("/run/box/control.sock", "control.sock", "box.toml:4:11: control: expected a path that begins with /"),
    ];
    for (good, wrong, expected) in cases {
        let text = GOOD.replacen(good, wrong, 1);
        assert_eq!(load(&text).expect_err("it is wrong"), expected, "for {wrong:?}");
    }
}

#[test]
fn the_kind_of_tunnel_is_said_for_all_uplinks_or_for_one() {
    let with = |top: &str, own: &str| {
        let text = GOOD
            .replace("middlebox = 7", &format!("middlebox = 7\n{top}"))
            .replace("slot = 4", &format!("slot = 4\n{own}"));
        load(&text)
    };
    let kinds = |config: &Config| [0, 4, 5].map(|slot| config.tunnel(slot));
    use TunnelChoice::{Auto, Quic, WireGuard};
    assert_eq!(kinds(&with("", "").expect("it is good")), [WireGuard; 3]);
    let mixed = with("tunnel = \"auto\"", "tunnel = \"quic\"").expect("it is good");
    assert_eq!(kinds(&mixed), [Auto, Quic, Auto]);
    let paths = |slot| {
        mixed.node().peers[0].paths.iter().filter(|path| path.slot == slot).map(|path| path.kind).collect::<Vec<_>>()
    };
    assert_eq!((paths(0), paths(4)), (vec![TunnelKind::WireGuard, TunnelKind::Quic], vec![TunnelKind::Quic]));
    let expected = "tunnels: WireGuard, and where that does not work QUIC, at UDP port 443 of the core\nover wan1: QUIC, at UDP \
                    port 443 of the core\n";
    assert_eq!(mixed.tunnels_text(), expected);
    let error = with("tunnel = \"ipsec\"", "").expect_err("there is none");
    assert!(error.contains("box.toml:4:10: tunnel: "), "{error}");
    let error = load(&GOOD.replace("endpoints =", "quic_port = 0\nendpoints =")).expect_err("no port");
    assert!(error.contains("core.quic_port: 0 is no port"), "{error}");
}

/// QUIC's questions are answered with one more datagram: fewer of them keep the same budget.
#[test]
fn a_metered_uplink_keeps_its_budget_with_either_kind() {
    let idle = |tunnel: &str| {
        let text = GOOD.replace("slot = 4", &format!("keepalive_budget = \"500 MB\"\ntunnel = \"{tunnel}\""));
        load(&text).expect("it is good").uplinks[1].keepalive.idle
    };
    assert!(idle("quic") > idle("wireguard"));
    assert_eq!(idle("auto"), idle("wireguard"));
}
