use super::*;
use crate::scratch::Folder;
use proto::TunnelKind::{Quic, WireGuard};

fn surroundings() -> Surroundings {
    Surroundings {
        key: SecretKey::from_bytes([1; 32]),
        withdraw_after: Some(Duration::from_secs(60)),
        egress: vec!["fast".into(), "cheap".into()],
        reserved: vec![("203.0.113.1".parse().expect("an address"), "the BGP neighbour transit".into())],
        holdings: ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"]
            .map(|text| text.parse().expect("a prefix"))
            .into(),
    }
}

fn key(number: u8) -> String {
    SecretKey::from_bytes([number; 32]).public().to_string()
}

fn home() -> String {
    format!(
        "schema = 1\nid = 1\nname = \"home\"\nprefixes = [\"198.51.100.0/24\", \"2001:db8:100::/48\"]\n\
         withdraw_after = \"10s\"\n[middlebox]\nid = 1\nuplink_keys = [\"{}\", \"{}\", \"{}\"]\nprefer = [2, 0]\n",
        key(10),
        key(11),
        key(12)
    )
}

fn office() -> String {
    format!(
        "schema = 1\nid = 2\nname = \"office\"\nprefixes = [\"192.0.2.0/25\"]\n[client]\npublic_key = \"{}\"\n",
        key(20)
    )
}

/// What loading the files says; errors without the folder's path.
fn load(files: &[(&str, &str)]) -> Result<Sites, Vec<String>> {
    let folder = Folder::new();
    for (name, text) in files {
        folder.write(name, text);
    }
    let strip = |error: SitesError| error.to_string().replace(&format!("{}/", folder.path().display()), "");
    Sites::load(folder.path(), &surroundings()).map_err(|errors| errors.into_iter().map(strip).collect())
}

#[test]
fn a_box_and_a_client_become_peers() {
    let sites = load(&[("home.toml", &home()), ("office.toml", &office()), (".home.toml", "x"), ("README", "x")]);
    let sites = sites.expect("good files");
    let [home, office] = &sites.list[..] else { panic!("two sites") };
    assert_eq!((home.peer.id, home.peer.kind), (PeerId(1), PeerKind::Middlebox));
    assert_eq!(home.withdraw_after, Some(Duration::from_secs(10)));
    // Listed slots first, in their order; the others after them. Each has a path of either kind, of which the peer chooses.
    let paths = |peer: &PeerConfig| -> Vec<_> {
        peer.paths.iter().map(|path| (path.slot, path.kind, path.preference)).collect()
    };
    let either = |slot, preference| [(slot, WireGuard, preference), (slot, Quic, preference)];
    assert_eq!(paths(&home.peer), [either(0, Some(1)), either(1, Some(3)), either(2, Some(0))].concat());
    assert_eq!((office.peer.kind, paths(&office.peer)), (PeerKind::Client, either(0, None).to_vec()));
    assert_eq!(office.withdraw_after, Some(Duration::from_secs(60)));
}

#[test]
fn a_site_names_its_egress_choice_or_has_the_first() {
    let named =
        |name: &str| load(&[("a.toml", &office().replacen("id = 2", &format!("id = 2\negress = {name:?}"), 1))]);
    let choice = |sites: Result<Sites, Vec<String>>| {
        let site = sites.expect("a good file").list.remove(0);
        (site.peer.egress, site.egress)
    };
    assert_eq!(choice(load(&[("a.toml", &office())])), (0, Some("fast".into())));
    assert_eq!(choice(named("cheap")), (1, Some("cheap".into())));
    let errors = named("cheep").expect_err("no such choice");
    assert_eq!(errors, ["a.toml:3:10: egress: there is no egress choice \"cheep\": the core knows fast, cheap"]);
}

#[test]
fn a_class_names_an_egress_choice_that_the_core_has() {
    let folder = Folder::new();
    let policy = |choice: &str| {
        let text = format!(
            "schema = 1\nstands = \"default\"\n[[class]]\nname = \"bulk\"\nmatch = {{ dscp = \"cs1\" }}\negress = \"{choice}\"\n"
        );
        let path = folder.write("policy", &text);
        load(&[("a.toml", &office().replacen("id = 2", &format!("id = 2\npolicy = {path:?}"), 1))])
    };
    let sites = policy("cheap").expect("a good policy");
    let class = &sites.list[0].peer.policy.classes()[0];
    assert_eq!(class.egress, Some(proto::policy::Egress { name: "cheap".into(), tun: Some(1) }));
    let errors = policy("cheep").expect_err("no such choice");
    let expected = "policy:6:10: class[0].egress: there is no egress choice \"cheep\": the core knows fast, cheap";
    assert!(errors[0].ends_with(expected), "{errors:?}");
}

#[test]
fn conflicts_between_files_name_both() {
    let office_with = |from: &str, to: &str| office().replace(from, to);
    for (second, expected) in [
        (office_with("id = 2", "id = 1"), "office.toml:2:6: id: 1 is the number of home.toml too"),
        (office_with("office", "home"), "office.toml:3:8: name: \"home\" is the name of home.toml too"),
        (
            office_with("192.0.2.0/25", "198.51.100.128/25"),
            "office.toml:4:13: prefixes[0]: 198.51.100.128/25 overlaps 198.51.100.0/24 of home.toml",
        ),
        (
            home().replace("id = 1\nname", "id = 2\nname").replace("home", "office"),
            "office.toml:7:6: middlebox.id: 1 is the number of the box of home.toml too",
        ),
        (office_with(&key(20), &key(11)), "office.toml:6:14: client.public_key: "),
    ] {
        let errors = load(&[("home.toml", &home()), ("office.toml", &second)]).expect_err(expected);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].starts_with(expected), "{}\nexpected: {expected}", errors[0]);
    }
}

#[test]
fn each_wrong_file_is_named_with_line_and_expectation() {
    for (from, to, expected) in [
        ("schema = 1", "schema = 2", "home.toml:1:10: schema: 2 is newer than this program"),
        ("name = \"home\"", "name = \"\"", "home.toml:3:8: name: expected"),
        ("198.51.100.0/24", "198.51.100.1/24", "home.toml:4:13: prefixes[0]: \"198.51.100.1/24\" has bits set"),
        ("198.51.100.0/24", "0.0.0.0/0", "home.toml:4:13: prefixes[0]: 0.0.0.0/0 is broader than any site"),
        ("198.51.100.0/24", "224.0.0.0/24", "home.toml:4:13: prefixes[0]: 224.0.0.0/24 is not unicast"),
        ("198.51.100.0/24", "203.0.113.0/24", "home.toml:4:13: prefixes[0]: 203.0.113.0/24 contains 203.0.113.1"),
        ("198.51.100.0/24", "198.51.0.0/16", "home.toml:4:13: prefixes[0]: 198.51.0.0/16 is not within what"),
        ("prefer = [2, 0]", "prefer = [3]", "home.toml:9:11: middlebox.prefer[0]: slot 3 has no key"),
        ("prefer = [2, 0]", "prefer = [1, 1]", "home.toml:9:14: middlebox.prefer[1]: slot 1 is listed twice"),
        ("[middlebox]\nid = 1\n", "[client]\n", "home.toml:8:1: unknown key \"prefer\" in [client]"),
    ] {
        let errors = load(&[("home.toml", &home().replacen(from, to, 1))]).expect_err(to);
        assert!(errors[0].starts_with(expected), "{}\nexpected: {expected}", errors[0]);
    }
    let errors = load(&[("a.toml", "schema = 1\n"), ("b.toml", "=")]).expect_err("two wrong files");
    assert_eq!(errors.len(), 2, "{errors:?}");
}

#[test]
fn a_missing_folder_is_an_error_with_a_way_out() {
    let errors = Sites::load(Path::new("/nonexistent/sites.d"), &surroundings()).expect_err("no folder");
    assert!(errors[0].to_string().contains("make it, or name another"), "{}", errors[0]);
}
