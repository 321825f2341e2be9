use super::words::codepoint;
use super::*;
use crate::settings::tests::with_file;
use proto::outer::{Dscp, Ecn, Outer};
use proto::policy::Policy;
use std::path::Path;

const LINKS: &str = "schema = 1\n[[link]]\nname = \"dsl\"\nslot = 0\n[[link]]\nname = \"lte\"\nslot = 1\n";

/// Reads one file.
fn read(path: &Path) -> Result<Policy, SettingsError> {
    super::read(&[path.to_owned()], &at_the_core).map(|read| read.policy)
}

fn policy(classes: &str) -> Result<Policy, String> {
    with_file("policy.toml", &format!("{LINKS}{classes}"), read)
}

#[test]
fn what_is_written_is_what_is_in_force() {
    let policy = policy(
        "[[class]]\nname = \"voice\"\nmatch = { dscp = [\"ef\", \"cs5\", 44] }\nlinks = [\"lte\", \"dsl\"]\n\
         priority = \"realtime\"\n[[class]]\nname = \"records\"\nmatch = { dst = \"192.0.2.1\", proto = \"tcp\", \
         dport = [443, \"5000-5010\"] }\nup = { links = [\"lte\"], otherwise = \"drop\" }\n\
         priority = \"background\"\n",
    );
    let policy = policy.expect("a good policy");
    let [voice, records, rest] = policy.classes() else { panic!("{policy:?}") };
    assert_eq!(voice.matches.dscp, 1 << 46 | 1 << 40 | 1 << 44);
    assert_eq!((&voice.up.links, &voice.down, voice.priority), (&vec![1, 0], &voice.up, Some(Priority::Realtime)));
    assert_eq!(records.matches.dst, ["192.0.2.1/32".parse().expect("a prefix")]);
    assert_eq!((&records.matches.proto, &records.matches.dport), (&vec![6], &vec![443..=443, 5000..=5010]));
    assert_eq!(records.up, Treatment { links: vec![1], otherwise: Otherwise::Drop, ..Treatment::default() });
    assert_eq!((&records.down, records.priority), (&Treatment::default(), Some(Priority::Background)));
    assert_eq!(&*rest.name, proto::policy::REST);
}

#[test]
fn a_direct_class_is_direct_both_ways_and_its_tunnels_are_as_without_policy() {
    let text =
        "[[class]]\nname = \"films\"\nmatch = { dst = \"192.0.2.0/24\" }\nmode = \"direct\"\nlinks = [\"lte\"]\n";
    let films = &policy(text).expect("a good policy").classes()[0].clone();
    assert_eq!(films.direct, Some(Direct { links: vec![1], otherwise: Otherwise::Any }));
    assert_eq!((&films.up, &films.down), (&Treatment::default(), &Treatment::default()));
    let isolated = with_file("policy.toml", "schema = 1\nwhen_isolated = \"direct\"\n", read).expect("a good policy");
    assert_eq!(isolated.when_isolated(), WhenIsolated::Direct);
}

#[test]
fn only_the_operator_says_by_whom_a_class_leaves_and_only_the_core_knows_by_whom_it_can() {
    let written = "[[class]]\nname = \"bulk\"\nmatch = { dscp = \"cs1\" }\negress = \"cheap\"";
    let egress = |tun| Some(Egress { name: "cheap".into(), tun });
    for (requirement, default) in [(written, ""), ("", written)] {
        let read = three(requirement, "", default).expect("the operator's");
        assert_eq!(read.policy.classes()[0].egress, egress(None));
    }
    let error = three("", written, "").expect_err("a customer's");
    let expected =
        "wish.toml:6:10: class[0].egress: by whom packets leave the core is the operator's to say, who pays for";
    assert!(error.starts_with(expected), "{error}");
    let at_a_core = |known: Result<Option<u8>, String>| {
        let text = format!("schema = 1\nstands = \"default\"\n{written}\n");
        let read = |path: &Path| super::read(&[path.to_owned()], &|_| known.clone()).map(|read| read.policy);
        with_file("policy.toml", &text, read)
    };
    assert_eq!(at_a_core(Ok(Some(3))).expect("it is known").classes()[0].egress, egress(Some(3)));
    let error = at_a_core(Err("the core knows fast".into())).expect_err("nobody knows it");
    assert_eq!(error, "policy.toml:6:10: class[0].egress: the core knows fast");
    // Who asks nothing of it contradicts nothing of it.
    let wish = written.replace("bulk", "mine").replace("\negress = \"cheap\"", "");
    assert_eq!(three(written, &wish, "").expect("they agree").left_out.len(), 1);
}

#[test]
fn the_manuals_example_is_a_good_policy() {
    let policy = example("# Policy");
    let names: Vec<&str> = policy.classes().iter().map(|class| &*class.name).collect();
    assert_eq!(names, ["voice", "records", "backups", "films", "updates by night", "rest"]);
}

#[test]
fn a_metered_link_has_a_month_and_classes_that_go_on() {
    let read_with = |metered: &str| {
        let text = format!(
            "schema = 1\ntimezone = \"Europe/Berlin\"\n[[link]]\nname = \"lte\"\nslot = 1\nmetered = {{ {metered} }}\n\
             [[class]]\nname = \"voice\"\nmatch = {{ dscp = \"ef\" }}\n"
        );
        with_file("policy.toml", &text, read)
    };
    let metered =
        |text: &str| read_with(text).expect("a good policy").links()[1].metered.clone().expect("it is metered");
    let all = metered("cap = \"50 GB\", reset_day = 31, free = \"sat,sun\", over = [\"voice\", \"rest\"]");
    assert_eq!(all, Metered { cap: 50_000_000_000, reset_day: 31, free: 0b110_0000, over: vec![0, 1] });
    let least = Metered { cap: 1_000_000, reset_day: 1, free: 0, over: Vec::new() };
    assert_eq!([metered("cap = \"1 MB\""), metered("cap = \"1 MB\", over = \"stop\"")], [least.clone(), least]);
    for (text, expected) in [
        ("cap = \"0 GB\"", "policy.toml:6:19: link[0].metered.cap: nothing could ever go by it"),
        ("cap = 50", "policy.toml:6:19: link[0].metered.cap: 50 is not text: expected an amount of data such as"),
        (
            "cap = \"1 GB\", reset_day = 32",
            "policy.toml:6:39: link[0].metered.reset_day: 32 is in no month: expected 1",
        ),
        (
            "cap = \"1 GB\", over = [\"rest\", \"voise\"]",
            "policy.toml:6:43: link[0].metered.over[1]: there is no class \"voise\": did you mean \"voice\"?",
        ),
        (
            "cap = \"1 GB\", over = \"halt\"",
            "policy.toml:6:34: link[0].metered.over: there is no class \"halt\": expected \"stop\", or some of voice, rest",
        ),
    ] {
        let error = read_with(text).expect_err(text);
        assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn hours_and_days_are_a_window_in_the_zone_of_the_site() {
    let window = |text: &str| {
        let text = format!("schema = 1\ntimezone = \"Europe/Berlin\"\n[[class]]\nname = \"a\"\nmatch = {{ {text} }}\n");
        let policy = with_file("policy.toml", &text, read).expect("a good policy");
        assert_eq!(policy.zone(), Some("Europe/Berlin"));
        let window = policy.windows()[0];
        (window.days, window.from, window.until)
    };
    assert_eq!(window("hours = \"22:00-06:30\", days = \"mon-fri\""), (0b001_1111, 22 * 60, 6 * 60 + 30));
    assert_eq!(window("days = \"sat,sun\""), (0b110_0000, 0, 1440));
    assert_eq!(window("days = [\"fri-mon\", \"wed\"]"), (0b111_0101, 0, 1440));
    assert_eq!(window("hours = \"0:00-24:00\""), (0x7f, 0, 1440));
    let wrong = with_file("policy.toml", "schema = 1\ntimezone = \"Europe/Berln\"\n", read).expect_err("no such zone");
    assert!(
        wrong.starts_with("policy.toml:2:12: timezone: \"Europe/Berln\" is not understood: expected the name of a"),
        "{wrong}"
    );
}

/// The example of a section of the manual, as a policy.
fn example(section: &str) -> Policy {
    let manual = include_str!("../../../../docs/policy.md");
    let (_, section) = manual.split_once(section).expect("there is a section");
    let (_, example) = section.split_once("```toml\n").expect("there is an example");
    let (example, _) = example.split_once("```").expect("it ends");
    with_file("policy.toml", example, read).expect("a good policy")
}

#[test]
fn the_manuals_examples_of_direct_classes_and_egress_choices_are_good_policies() {
    let bulk = &example("## By whom packets leave the core").classes()[0].clone();
    assert_eq!(bulk.egress, Some(Egress { name: "cheap".into(), tun: None }));
    let policy = example("## Outside of the tunnels");
    let films = &policy.classes()[0];
    assert_eq!((&*films.name, &films.direct), ("films", &Some(Direct { links: vec![0], otherwise: Otherwise::Any })));
    assert_eq!(policy.when_isolated(), WhenIsolated::Direct);
}

#[test]
fn a_link_says_what_its_outer_headers_show() {
    let outer = |text: &str| {
        let text = format!("schema = 1\n[[link]]\nname = \"dsl\"\nslot = 0\n{text}\n");
        with_file("policy.toml", &text, read).map(|policy| policy.links()[0].outer)
    };
    for (text, dscp, ecn) in [
        ("", Dscp::Fixed(0), Ecn::Copy),
        ("dscp = \"none\"\necn = \"copy\"", Dscp::Fixed(0), Ecn::Copy),
        ("dscp = \"copy\"\necn = \"none\"", Dscp::Copy, Ecn::Clear),
        ("dscp = \"af21\"", Dscp::Fixed(18), Ecn::Copy),
        ("dscp = 63", Dscp::Fixed(63), Ecn::Copy),
    ] {
        assert_eq!(outer(text), Ok(Outer { dscp, ecn }), "{text}");
    }
    for (text, expected) in [
        ("dscp = 64", "policy.toml:5:8: link[0].dscp: 64 is not understood: expected \"none\", \"copy\", a codepoint"),
        ("dscp = \"coppy\"", "policy.toml:5:8: link[0].dscp: \"coppy\" is not understood: expected \"none\","),
        ("ecn = \"ect\"", "policy.toml:5:7: link[0].ecn: unknown variant `ect`, expected `copy` or `none`"),
    ] {
        let error = outer(text).expect_err(text);
        assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn names_of_codepoints_are_those_of_their_rfcs() {
    let names = [("af11", 10), ("af43", 38), ("cs0", 0), ("cs7", 56), ("le", 1), ("ef", 46), ("va", 44)];
    for (name, number) in names {
        assert_eq!(codepoint(name), Some(number), "{name}");
    }
    for name in ["af44", "af53", "af1", "af001", "cs8", "cs", "cs+1", "af+1", "EF", "", "afé1"] {
        assert_eq!(codepoint(name), None, "{name}");
    }
}

#[test]
fn errors_name_the_line_and_the_way_out() {
    for (class, expected) in [
        ("links = [\"lt\"]", "policy.toml:10:10: class[0].links[0]: there is no link \"lt\": did you mean \"lte\"?"),
        ("links = [\"lte\", \"lte\"]", "policy.toml:10:17: class[0].links[1]: \"lte\" is in the list twice"),
        ("links = []", "policy.toml:10:9: class[0].links: the list is empty"),
        ("otherwise = \"drop\"", "policy.toml:10:13: class[0].otherwise: there are no `links` beside it"),
        ("match = { dst = \"192.0.2.1/24\" }", "policy.toml:10:17: class[0].match.dst: \"192.0.2.1/24\" has bits set"),
        ("match = { dport = 70000 }", "policy.toml:10:19: class[0].match.dport: 70000 is not understood: expected a"),
        ("match = { dport = \"9-1\" }", "policy.toml:10:19: class[0].match.dport: \"9-1\" is not understood"),
        ("match = { proto = \"tpc\" }", "policy.toml:10:19: class[0].match.proto: \"tpc\" is not understood: exp"),
        ("match = { dscp = [] }", "policy.toml:10:18: class[0].match.dscp: the list is empty: leave it out"),
        (
            "match = { port = 1 }",
            "policy.toml:10:11: unknown key \"port\" in [class[0].match]; did you mean \"dport\"?",
        ),
        (
            "mode = \"bound\"",
            "policy.toml:10:8: class[0].mode: unknown variant `bound`, expected one of `prefer`, `share`,",
        ),
        (
            "mode = \"share\"\nlinks = [\"dsl\", \"lte\"]\nweights = [3]",
            "policy.toml:12:11: class[0].weights: expected a number of at least 1 for each of the links",
        ),
        (
            "mode = \"direct\"\nup = { links = [\"lte\"] }",
            "policy.toml:11:6: class[0].up: mode = \"direct\" has none, since a flow comes back by the uplink",
        ),
        (
            "mode = \"direct\"\negress = \"cheap\"",
            "policy.toml:11:10: class[0].egress: mode = \"direct\" has none, since outside of the tunnels nothing comes to",
        ),
        (
            "mode = \"direct\"\nlimit = { loss = \"2 %\" }",
            "policy.toml:11:9: class[0].limit: mode = \"direct\" has none, since outside of the tunnels nothing",
        ),
        (
            "up = { mode = \"direct\" }",
            "policy.toml:10:15: class[0].up.mode: a flow comes back by the uplink by which it left: expected it for",
        ),
        ("mode = \"direct\"\nlinks = [\"lt\"]", "policy.toml:11:10: class[0].links[0]: there is no link \"lt\""),
        (
            "match = { hours = \"22:00-22:00\" }",
            "policy.toml:10:19: class[0].match.hours: \"22:00-22:00\" is empty; for the whole day leave it out, or write",
        ),
        (
            "match = { hours = \"06:00-00:00\" }",
            "policy.toml:10:19: class[0].match.hours: \"06:00-00:00\" does not say which midnight: expected it to begin",
        ),
        (
            "match = { hours = \"6-8\" }",
            "policy.toml:10:19: class[0].match.hours: \"6-8\" is not understood: expected hour",
        ),
        (
            "match = { hours = \"25:00-26:00\" }",
            "policy.toml:10:19: class[0].match.hours: \"25:00-26:00\" is not underst",
        ),
        ("match = { days = [] }", "policy.toml:10:18: class[0].match.days: the list is empty: leave it out"),
        (
            "match = { days = \"mo\" }",
            "policy.toml:10:18: class[0].match.days: \"mo\" is not understood: expected days su",
        ),
        (
            "match = { days = \"mon\" }",
            "policy.toml:10:9: class[0].match: days of which clock? Expected `timezone` at the top of the file",
        ),
        ("copies = 2", "policy.toml:10:10: class[0].copies: only mode = \"duplicate\" sends copies"),
        ("up = { mode = \"duplicate\", copies = 1 }", "policy.toml:10:37: class[0].up.copies: expected 2 to 4"),
        ("limit = { loss = \"200 %\" }", "policy.toml:10:18: class[0].limit.loss: \"200 %\" is not understood"),
        (
            "[[class]]\nname = \"b\"\nmatch = { proto = \"tcp\" }",
            "policy.toml:10:1: class[1]: no packet is ever of class \"b\": all that it matches is of \"a\" before it",
        ),
    ] {
        let error = policy(&format!("[[class]]\nname = \"a\"\n{class}\n")).expect_err(class);
        assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
    }
}

/// Reads a requirement, a wish and a default, in an order that does not count.
fn three(requirement: &str, wish: &str, default: &str) -> Result<Read, String> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("policies-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    let paths = [("wish", wish), ("default", default), ("requirement", requirement)].map(|(stands, text)| {
        let path = folder.join(format!("{stands}.toml"));
        std::fs::write(&path, format!("schema = 1\nstands = \"{stands}\"\n{text}\n")).expect("a file");
        path
    });
    let read = super::read(&paths, &at_the_core)
        .map_err(|error| error.to_string().replace(&format!("{}/", folder.display()), ""));
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
    read
}

#[test]
fn a_requirement_counts_before_a_wish_and_that_before_a_default() {
    let read = three(
        "[[link]]\nname = \"dsl\"\nslot = 0\n[[class]]\nname = \"alarm\"\nmatch = { dport = 9 }\nlinks = [\"dsl\"]",
        "[[link]]\nname = \"dsl\"\nrate = { up = \"10 Mbit/s\" }\n[[class]]\nname = \"games\"\nmatch = { proto = \"udp\" }\n\
         links = [\"dsl\"]\n[[class]]\nname = \"voice\"\nmatch = { dscp = \"ef\" }",
        "[[link]]\nname = \"dsl\"\nrate = { up = \"1 Mbit/s\", down = \"5 Mbit/s\" }\n[[class]]\nname = \"voice\"\n\
         match = { dscp = \"cs5\" }\n[[class]]\nname = \"quake\"\nmatch = { proto = \"udp\", dport = 27960 }\n\
         [[class]]\nname = \"web\"\nmatch = { dport = 443 }",
    );
    let read = read.expect("they do not contradict each other");
    let names: Vec<&str> = read.policy.classes().iter().map(|class| &*class.name).collect();
    assert_eq!(names, ["alarm", "games", "voice", "web", "rest"]);
    assert_eq!(read.policy.classes()[2].matches.dscp, 1 << 46, "the wish's");
    let dsl = &read.policy.links()[0];
    assert_eq!((dsl.rate_up, dsl.rate_down), (Some(10_000_000), Some(5_000_000)), "the default gives way");
    let stands: Vec<Stands> = read.rules.iter().map(|rule| rule.stands).collect();
    assert_eq!(stands, [Stands::Requirement, Stands::Wish, Stands::Wish, Stands::Default]);
    assert_eq!(read.left_out.len(), 2, "{:?}", read.left_out);
    let quake = &read.left_out[1];
    assert!(
        quake.starts_with("class \"quake\", a default (") && quake.contains("default.toml:9:1) is left out beside"),
        "{quake}"
    );
    assert!(quake.contains("\"games\", a wish ("), "{quake}");
    // What both ask alike is no contradiction.
    let alike = "[[class]]\nname = \"NAME\"\nmatch = { dport = 9 }\npriority = \"realtime\"";
    let read = three(&alike.replace("NAME", "a"), &alike.replace("NAME", "b"), "").expect("they agree");
    assert_eq!((read.policy.classes().len(), read.left_out.len()), (2, 1));
}

#[test]
fn a_wish_that_contradicts_a_requirement_is_refused_with_both_places() {
    let link = "[[link]]\nname = \"dsl\"\nslot = 0\n";
    let class = "[[class]]\nname = \"alarm\"\nmatch = { dport = 9 }\n";
    for (requirement, wish, expected) in [
        (
            format!("{link}rate = {{ up = \"10 Mbit/s\" }}"),
            "[[link]]\nname = \"dsl\"\nrate = { up = \"20 Mbit/s\" }".to_owned(),
            "wish.toml:5:15: link[0].rate.up: a requirement says otherwise (requirement.toml:6:15): leave it out, or",
        ),
        (
            "timezone = \"Europe/Berlin\"".to_owned(),
            "timezone = \"UTC\"".to_owned(),
            "wish.toml:3:12: timezone: a requirement says otherwise (requirement.toml:3:12): leave it out, or have that",
        ),
        (
            class.to_owned(),
            "[[class]]\nname = \"chat\"\nmatch = { dport = 9, proto = \"tcp\" }\npriority = \"realtime\"".to_owned(),
            "wish.toml:3:1: class[0]: all its packets are of class \"alarm\", a requirement (requirement.toml:3:1), which",
        ),
        (
            class.to_owned(),
            class.replace("dport", "sport"),
            "wish.toml:3:1: class[0]: there is a class \"alarm\", a requirement (requirement.toml:3:1): give it another",
        ),
        (
            String::new(),
            "[[link]]\nname = \"dsl\"".to_owned(),
            "wish.toml:3:1: link[0]: nobody says which uplink \"dsl\" is: expected `slot`, as `mspmb status` shows it",
        ),
    ] {
        let error = three(&requirement, &wish, "").expect_err(expected);
        assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn the_hash_is_of_what_is_said_and_not_of_how() {
    let hash = |text: &str| policy(text).expect("a good policy").hash();
    let one = hash("[[class]]\nname = \"a\"\nmatch = { dport = 9, proto = \"tcp\" }");
    assert_eq!(one, hash("# a comment\n[[class]]\nmatch = { proto=\"tcp\",dport=9 }\n\nname = \"a\" # another"));
    assert_ne!(one, hash("[[class]]\nname = \"a\"\nmatch = { dport = 10, proto = \"tcp\" }"));
    // FNV-1a of {"class":[{"match":{"dport":9,"proto":"tcp"},"name":"a"}],"link":[{"name":"dsl","slot":0},…],"schema":1}, in
    // every version: box and core may be of different ones.
    assert_eq!(one, 0xe789_f0fc_8e3b_4a82);
}
