use super::*;
use ipnet::IpNet;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only whether it can be read is tested")]
struct Example {
    schema: Schema,
    prefixes: Vec<Text<IpNet>>,
    #[serde(default)]
    tun: Tun,
    wait: Option<Text<Option<Duration>>>,
    #[serde(default)]
    uplink: Vec<Uplink>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tun {
    name: Option<String>,
    mtu: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only whether it can be read is tested")]
struct Uplink {
    interface: String,
}

fn check(text: &str) -> Result<Example, String> {
    with_file("box.toml", text, |path| load::<Example>(path, None)).map(|(value, _)| value)
}

/// What reading a file with this text says; an error without the file's folder.
pub(super) fn with_file<T>(
    name: &str,
    text: &str,
    read: impl FnOnce(&Path) -> Result<T, SettingsError>,
) -> Result<T, String> {
    // Distinct names: the tests run side by side in one process.
    let folder = scratch();
    let path = folder.join(name);
    std::fs::write(&path, text).expect("writing a scratch file");
    let result = read(&path);
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
    result.map_err(|error| error.to_string().replace(&format!("{}/", folder.display()), ""))
}

fn scratch() -> PathBuf {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("dataplane-settings-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("making a scratch folder");
    folder
}

#[test]
fn errors_name_place_key_and_what_was_expected() {
    let good = "schema = 1\nprefixes = [\"198.51.100.0/24\", \"2001:db8::/48\"]\n";
    check(good).expect("a good file is accepted");
    let cases = [
        ("prefixes = []\n", "box.toml: schema is missing: expected `schema = 1`, the format of this file, at its top"),
        (
            "schema = 2\nprefixs = []\n",
            "box.toml:1:10: schema: 2 is newer than this program, which reads 1; install a newer version",
        ),
        ("schema = \"1\"\n", "box.toml:1:10: schema: expected the number 1"),
        ("schema = 1\nprefixs = []\n", "box.toml:2:1: unknown key \"prefixs\"; did you mean \"prefixes\"?"),
        (
            "schema = 1\nprefixes = []\n\n[tun]\n  mut = 1400\n",
            "box.toml:5:3: unknown key \"mut\" in [tun]; did you mean \"mtu\"?",
        ),
        (
            "schema = 1\nprefixes = []\n[tun]\ncolour = 1\n",
            "box.toml:4:1: unknown key \"colour\" in [tun]; known are name, mtu",
        ),
        (
            "schema = 1\nprefixes = []\n[[uplink]]\ninterface = \"a\"\n[[uplink]]\n",
            "box.toml:5:1: [uplink[1]] lacks the key \"interface\"",
        ),
        ("schema = 1\n", "box.toml: the file lacks the key \"prefixes\""),
        (
            "schema = 1\nprefixes = [\"198.51.100.0/33\"]\n",
            "box.toml:2:13: prefixes[0]: \"198.51.100.0/33\" is not a prefix: \
             expected an IPv4 or IPv6 prefix such as 198.51.100.0/24",
        ),
        (
            "schema = 1\nprefixes = [\"198.51.100.1/24\"]\n",
            "box.toml:2:13: prefixes[0]: \"198.51.100.1/24\" has bits set beyond its length; \
             did you mean \"198.51.100.0/24\"?",
        ),
        (
            "schema = 1\nprefixes = []\nwait = 60\n",
            "box.toml:3:8: wait: 60 is not text: expected a time such as \"60s\" or \"500ms\", or \"never\"",
        ),
        (
            "schema = 1\nprefixes = []\n[tun]\nmtu = \"big\"\n",
            "box.toml:4:7: tun.mtu: invalid type: string \"big\", expected u16",
        ),
        (
            "schema = 1\nprefixes = []\n[tun]\nmtu = 70000\n",
            "box.toml:4:7: tun.mtu: invalid value: integer `70000`, expected u16",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(check(text).expect_err("a wrong file is refused"), expected, "for {text:?}");
    }
    let syntax = check("schema = 1\nprefixes = [\n").expect_err("a torn file is refused");
    assert!(syntax.starts_with("box.toml:") && syntax.contains("not valid TOML"), "{syntax}");
}

#[test]
fn a_daemon_can_point_at_a_value_too() {
    let folder = scratch();
    let path = folder.join("box.toml");
    std::fs::write(&path, "schema = 1\nprefixes = []\n[[uplink]]\ninterface = \"a\"\n[[uplink]]\ninterface = \"a\"\n")
        .expect("writing a scratch file");
    let (_, document) = load::<Example>(&path, None).expect("a good file");
    let error = document.error("uplink[1].interface", "used twice").to_string();
    assert!(error.ends_with("box.toml:6:13: uplink[1].interface: used twice"), "{error}");
    assert_eq!(document.resolve(Path::new("secret.key")), folder.join("secret.key"));
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
}

#[test]
fn the_environment_overrides_the_file_and_is_named_in_errors() {
    let folder = scratch();
    let path = folder.join("box.toml");
    std::fs::write(&path, "schema = 1\nprefixes = []\n[tun]\nmtu = 1380\n").expect("writing a scratch file");
    let with = |name: &str, value: &str| {
        let variables = HashMap::from([(name.to_owned(), value.to_owned())]);
        load_with::<Example>(&path, Some(Overrides { prefix: "BOX", variables }))
            .map(|(example, _)| example.tun)
            .map_err(|error| error.to_string())
    };
    assert_eq!(with("BOX_TUN__MTU", "1400").expect("a good value").mtu, Some(1400));
    let tun = with("BOX_TUN__NAME", "tun7").expect("a good value");
    assert_eq!((tun.name.as_deref(), tun.mtu), (Some("tun7"), Some(1380)));
    assert_eq!(
        with("BOX_TUN__MTU", "big").expect_err("no number"),
        "environment variable BOX_TUN__MTU: tun.mtu: invalid type: string \"big\", expected u16"
    );
    assert_eq!(
        with("BOX_TUN__MUT", "1400").expect_err("no such key"),
        "environment variable BOX_TUN__MUT: unknown key \"mut\" in [tun]; did you mean \"mtu\"?"
    );
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
}

#[test]
fn durations_have_units() {
    for (text, millis) in [("60s", 60_000), ("500ms", 500), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)] {
        assert_eq!(Duration::read(text), Ok(Duration::from_millis(millis)));
    }
    for text in ["", "60", "s", "1d", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
        assert!(Duration::read(text).is_err(), "{text:?}");
    }
    assert_eq!(Option::<Duration>::read("never"), Ok(None));
}

#[test]
fn a_key_is_written_once_and_read_only_if_nobody_else_can() {
    use std::os::unix::fs::PermissionsExt;
    let folder = scratch();
    let path = folder.join("secret.key");
    let key = SecretKey::from_bytes([5; 32]);
    write_key(&path, &key, false).expect("writing a new key");
    assert_eq!(std::fs::metadata(&path).expect("its metadata").mode() & 0o777, 0o600);
    assert_eq!(read_key(&path).expect("reading it back").public(), key.public());

    let other = SecretKey::from_bytes([6; 32]);
    let refused = write_key(&path, &other, false).expect_err("it exists").to_string();
    assert!(refused.contains("exists already") && refused.contains("--force"), "{refused}");
    assert_eq!(read_key(&path).expect("the old one is untouched").public(), key.public());
    write_key(&path, &other, true).expect("replacing it");
    assert_eq!(read_key(&path).expect("the new one").public(), other.public());
    assert_eq!(std::fs::read_dir(&folder).expect("its folder").count(), 1, "no temporary file is left");

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    let refused = read_key(&path).expect_err("others can read it").to_string();
    assert!(refused.contains("mode 640") && refused.contains("chmod 600"), "{refused}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::write(&path, "short").expect("writing");
    assert!(read_key(&path).expect_err("no key").to_string().contains("44 characters"));
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
}
