//! Configuration files: TOML with overrides from the environment, and errors that an operator can act on.
//!
//! [`load`] reads a file through the `config` crate, which merges it with environment variables
//! (`PREFIX_TABLE__KEY=value`, so `MSPMB_TUN__MTU=1400` sets `mtu` in `[tun]`). `config` forgets where a value stood,
//! so the file is parsed a second time with spans, and every error names file, line, column and key:
//!
//! ```text
//! mspmb.toml:7:1: unknown key "prefixs"; did you mean "prefixes"?
//! mspmb.toml:3:13: prefixes[0]: "198.51.100.0/33" is not a prefix: expected an IPv4 or IPv6 prefix such as 198.51.100.0/24
//! ```
//!
//! The types to read into are `serde` structs with `deny_unknown_fields`, all with a field `schema: Schema`. What serde
//! cannot see (a slot used twice, say) a daemon reports by [`Document::error`], in the same form.

pub mod policy;

use proto::SecretKey;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;
use std::collections::HashMap;
use std::fmt::{self, Display};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The format of the configuration files that this version reads.
pub const SCHEMA: i64 = 1;

/// Why a configuration was refused. `Display` is a whole sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}; name the right file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Something in the file or in the environment is wrong.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where it stands.
        place: Place,
        /// What is wrong, with its key, and what was expected.
        problem: String,
    },
    /// A key file cannot be used.
    #[error("{}: {problem}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// Where a value stands that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file; the place in it is unknown for what is missing from the file as a whole.
    File {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1; the column counts characters.
        position: Option<(usize, usize)>,
    },
    /// In the environment.
    Variable(String),
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, position: Some((line, column)) } => write!(f, "{}:{line}:{column}", path.display()),
            Place::File { path, position: None } => write!(f, "{}", path.display()),
            Place::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// A file that was read, kept to tell where a key stands in it.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    toml: toml_edit::Document<String>,
    overrides: Option<Overrides>,
}

/// Variables of the environment that override the file.
#[derive(Debug)]
struct Overrides {
    /// What their names begin with, before an underscore.
    prefix: &'static str,
    variables: HashMap<String, String>,
}

impl Overrides {
    /// Those of this process. What is not UTF-8 cannot be a value of the file.
    fn of_process(prefix: &'static str) -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('_')))
            .collect();
        Overrides { prefix, variables }
    }
}

/// Reads `path` into a `T`. Variables that begin with `prefix` and an underscore override its values; without a prefix
/// the environment is left alone (site files, of which there are many).
pub fn load<T: DeserializeOwned>(path: &Path, prefix: Option<&'static str>) -> Result<(T, Document), SettingsError> {
    load_with(path, prefix.map(Overrides::of_process))
}

fn load_with<T: DeserializeOwned>(path: &Path, overrides: Option<Overrides>) -> Result<(T, Document), SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|cause| SettingsError::Read { path: path.to_owned(), cause })?;
    let document = Document::parse(path, text, overrides)?;
    document.check_schema()?;
    let value = document.merged()?;
    match serde_path_to_error::deserialize(value) {
        Ok(value) => Ok((value, document)),
        Err(error) => Err(document.explain(error)),
    }
}

impl Document {
    fn parse(path: &Path, text: String, overrides: Option<Overrides>) -> Result<Self, SettingsError> {
        match toml_edit::Document::parse(text.clone()) {
            Ok(toml) => Ok(Document { path: path.to_owned(), toml, overrides }),
            Err(error) => Err(SettingsError::Invalid {
                place: Place::File {
                    path: path.to_owned(),
                    position: error.span().map(|span| position(&text, span.start)),
                },
                problem: format!("not valid TOML: {}", error.message().replace('\n', "; ")),
            }),
        }
    }

    /// The format comes first: a file of another one cannot be judged by the rest.
    fn check_schema(&self) -> Result<(), SettingsError> {
        let Some(schema) = self.toml.get("schema") else {
            let problem =
                format!("schema is missing: expected `schema = {SCHEMA}`, the format of this file, at its top");
            return Err(SettingsError::Invalid { place: self.place_of_file(), problem });
        };
        match schema.as_integer() {
            Some(SCHEMA) => Ok(()),
            Some(newer) if newer > SCHEMA => Err(self.error(
                "schema",
                format!("{newer} is newer than this program, which reads {SCHEMA}; install a newer version"),
            )),
            _ => Err(self.error("schema", format!("expected the number {SCHEMA}"))),
        }
    }

    /// What the file says, whatever its comments, its blanks and the order of its keys: a text that is the same wherever it is
    /// read.
    pub fn canonical(&self) -> Result<String, SettingsError> {
        // Its tables are sorted.
        Ok(self.merged()?.to_string())
    }

    /// File and environment in one value, through `config`.
    fn merged(&self) -> Result<serde_json::Value, SettingsError> {
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(self.toml.raw(), config::FileFormat::Toml));
        if let Some(Overrides { prefix, variables }) = &self.overrides {
            let environment =
                config::Environment::with_prefix(prefix).prefix_separator("_").separator("__").try_parsing(true);
            builder = builder.add_source(environment.source(Some(variables.clone())));
        }
        builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| SettingsError::Invalid { place: self.place_of_file(), problem: error.to_string() })
    }

    /// An error at `key`, as `prefixes[0]` or `core.endpoints[1]`: for what only a daemon can check.
    pub fn error(&self, key: &str, problem: impl Display) -> SettingsError {
        let segments = key
            .split('.')
            .flat_map(|part| {
                let (name, rest) = part.split_once('[').unwrap_or((part, ""));
                let indices = rest.split('[').filter_map(|index| index.strip_suffix(']')?.parse().ok());
                std::iter::once(Step::Key(name.to_owned())).chain(indices.map(Step::Index))
            })
            .collect::<Vec<_>>();
        SettingsError::Invalid { place: self.locate(&segments, false), problem: format!("{key}: {problem}") }
    }

    /// A path that the file names, relative to the file's own folder.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// What serde said, in our words and with its place.
    fn explain(&self, error: serde_path_to_error::Error<serde_json::Error>) -> SettingsError {
        let steps: Vec<Step> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Seq { index } => Some(Step::Index(*index)),
                Segment::Map { key } => Some(Step::Key(key.clone())),
                Segment::Enum { .. } | Segment::Unknown => None,
            })
            .collect();
        let said = error.inner().to_string();
        if let Some((unknown, known)) = said.strip_prefix("unknown field ").map(quoted) {
            let table = match steps.split_last() {
                Some((_, table)) if !table.is_empty() => format!(" in [{}]", join(table)),
                _ => String::new(),
            };
            let hint = match nearest(&unknown, &known) {
                Some(near) => format!("; did you mean \"{near}\"?"),
                None => format!("; known are {}", known.join(", ")),
            };
            let problem = format!("unknown key \"{unknown}\"{table}{hint}");
            return SettingsError::Invalid { place: self.locate(&steps, true), problem };
        }
        if let Some((missing, _)) = said.strip_prefix("missing field ").map(quoted) {
            let table = if steps.is_empty() { "the file".to_owned() } else { format!("[{}]", join(&steps)) };
            let problem = format!("{table} lacks the key \"{missing}\"");
            return SettingsError::Invalid { place: self.locate(&steps, true), problem };
        }
        SettingsError::Invalid { place: self.locate(&steps, false), problem: format!("{}: {said}", join(&steps)) }
    }

    /// Where the value (or, for `by_key`, the key) at the end of `steps` stands. What the environment has wins, as it
    /// did when the values were merged.
    fn locate(&self, steps: &[Step], by_key: bool) -> Place {
        if let Some(variable) = self.variable(steps) {
            return Place::Variable(variable);
        }
        let mut item = self.toml.as_item();
        let mut span = None;
        for (depth, step) in steps.iter().enumerate() {
            let last = depth + 1 == steps.len();
            let next = match step {
                Step::Key(key) => {
                    item.as_table_like().and_then(|table| table.get_key_value(key)).map(|(key, value)| {
                        // A table's own span is its header, which is the better place than its key within the header.
                        let key = if last && by_key && !value.is_table() { key.span() } else { None };
                        (value, key.or(value.span()))
                    })
                }
                Step::Index(index) => item.get(index).map(|value| (value, value.span())),
            };
            let Some((value, found)) = next else { break };
            (item, span) = (value, found.or(span));
        }
        let position = span.map(|span| position(self.toml.raw(), span.start));
        Place::File { path: self.path.clone(), position }
    }

    /// The variable that sets what `steps` lead to, if there is one.
    fn variable(&self, steps: &[Step]) -> Option<String> {
        let overrides = self.overrides.as_ref()?;
        let wanted = steps
            .iter()
            .map_while(|step| if let Step::Key(key) = step { Some(key.as_str()) } else { None })
            .collect::<Vec<_>>()
            .join("__");
        let wanted = format!("{}_{wanted}", overrides.prefix);
        // As `config` compares them: without regard to case.
        overrides.variables.keys().find(|name| name.eq_ignore_ascii_case(&wanted)).cloned()
    }

    fn place_of_file(&self) -> Place {
        Place::File { path: self.path.clone(), position: None }
    }
}

/// One step on the way to a value.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

fn join(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path.extend([".", key]),
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

/// Line and column, from 1, of a byte of `text`.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The first of the names that serde put between backquotes, and the others.
fn quoted(said: &str) -> (String, Vec<String>) {
    let mut names = said.split('`').skip(1).step_by(2).map(str::to_owned);
    (names.next().unwrap_or_default(), names.collect())
}

/// The known name that `wrong` most likely stands for. A third of its letters may be wrong: more is another word.
fn nearest<'a>(wrong: &str, known: &'a [String]) -> Option<&'a str> {
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name.as_str()))
        .filter(|&(distance, name)| distance * 3 <= name.len().max(wrong.len()))
        .min()
        .map(|(_, name)| name)
}

/// The `[tun]` table of both daemons.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tun {
    /// The device's name.
    pub name: String,
    /// In octets: the largest inner packet.
    pub mtu: u16,
}

impl Default for Tun {
    fn default() -> Self {
        // 1380 leaves room for WireGuard's 32 octets, IPv6 and UDP outside, and trailers on a link of 1500.
        Tun { name: "msp0".into(), mtu: 1380 }
    }
}

impl Tun {
    /// Checks both.
    pub fn check(&self, document: &Document) -> Result<(), SettingsError> {
        check_interface(document, "tun.name", &self.name)?;
        if !(1280..=9000).contains(&self.mtu) {
            let problem = format!("{} does not work: expected 1280 (which IPv6 needs) to 9000 octets", self.mtu);
            return Err(document.error("tun.mtu", problem));
        }
        Ok(())
    }
}

/// An interface's name as the kernel has it: at most 15 octets, no slash, no colon and no blank.
pub fn check_interface(document: &Document, key: &str, name: &str) -> Result<(), SettingsError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if name.is_empty() || name.len() > 15 || !plain || name == "." || name == ".." {
        let problem = format!("\"{name}\" is no name of an interface: expected 1 to 15 characters such as \"wan0\"");
        return Err(document.error(key, problem));
    }
    Ok(())
}

/// The file's format; its value was checked before all others.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
pub struct Schema(pub i64);

/// A value that is written as text in the file, with an error that says what was expected.
pub trait Written: Sized {
    /// Completes "expected …", with an example.
    const EXPECTED: &'static str;
    /// Reads the text; the error completes "… is not …", or is `None` where `EXPECTED` says it all.
    fn read(text: &str) -> Result<Self, Option<String>>;
}

/// Reads a [`Written`] in a settings struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let Some(text) = value.as_str() else {
            return Err(D::Error::custom(format!("{value} is not text: expected {}", T::EXPECTED)));
        };
        T::read(text).map(Text).map_err(|problem| match problem {
            Some(problem) => D::Error::custom(format!("\"{text}\" {problem}")),
            None => D::Error::custom(format!("\"{text}\" is not understood: expected {}", T::EXPECTED)),
        })
    }
}

impl Written for ipnet::IpNet {
    const EXPECTED: &'static str = "an IPv4 or IPv6 prefix such as 198.51.100.0/24";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let prefix: ipnet::IpNet =
            text.parse().map_err(|_| Some(format!("is not a prefix: expected {}", Self::EXPECTED)))?;
        if prefix != prefix.trunc() {
            return Err(Some(format!("has bits set beyond its length; did you mean \"{}\"?", prefix.trunc())));
        }
        Ok(prefix)
    }
}

impl Written for SocketAddr {
    const EXPECTED: &'static str = "an address with a port, such as 192.0.2.1:51820 or [2001:db8::1]:51820";
    fn read(text: &str) -> Result<Self, Option<String>> {
        text.parse().map_err(|_| None)
    }
}

impl Written for std::net::IpAddr {
    const EXPECTED: &'static str = "an address, such as 192.0.2.1 or 2001:db8::1";
    fn read(text: &str) -> Result<Self, Option<String>> {
        text.parse().map_err(|_| None)
    }
}

impl Written for proto::PublicKey {
    const EXPECTED: &'static str = "a public key: 44 characters of base64, as `keygen` prints it";
    fn read(text: &str) -> Result<Self, Option<String>> {
        text.parse().map_err(|error: proto::keys::KeyError| Some(format!("is not a public key: {error}")))
    }
}

impl Written for Duration {
    const EXPECTED: &'static str = "a time such as \"60s\", \"500ms\", \"5m\" or \"1h\"";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or(None)?;
        let number: u64 = text[..unit].parse().map_err(|_| None)?;
        let millis = match &text[unit..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(None),
        };
        number.checked_mul(millis).map(Duration::from_millis).ok_or(None)
    }
}

/// An amount of data, in octets; written in decimal units, as links are sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Octets(pub u64);

impl Written for Octets {
    const EXPECTED: &'static str = "an amount of data such as \"50 MB\" or \"1 GB\"";
    fn read(text: &str) -> Result<Self, Option<String>> {
        let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or(None)?;
        let number: u64 = text[..unit].parse().map_err(|_| None)?;
        let factor = match text[unit..].trim() {
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(None),
        };
        number.checked_mul(factor).map(Octets).ok_or(None)
    }
}

/// `None` is "never".
impl Written for Option<Duration> {
    const EXPECTED: &'static str = "a time such as \"60s\" or \"500ms\", or \"never\"";
    fn read(text: &str) -> Result<Self, Option<String>> {
        if text == "never" { Ok(None) } else { Duration::read(text).map(Some).map_err(|_| None) }
    }
}

/// Reads a private key (or a box's secret), and refuses a file that others could read or have written.
pub fn read_key(path: &Path) -> Result<SecretKey, SettingsError> {
    let refuse = |problem: String| SettingsError::KeyFile { path: path.to_owned(), problem };
    let file = std::fs::File::open(path)
        .map_err(|error| refuse(format!("cannot open this key file: {error}; `keygen` makes one")))?;
    // The open file is asked, not the path: what was checked is what is read.
    let metadata = file.metadata().map_err(|error| refuse(format!("cannot read this key file: {error}")))?;
    if !metadata.is_file() {
        return Err(refuse("this is not a file; name the key file that `keygen` made".into()));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(refuse(format!(
            "others than its owner can use this key file (mode {mode:03o}); run chmod 600 {}",
            path.display()
        )));
    }
    let mut text = String::new();
    // A key is 44 characters and a newline; the bound keeps a wrong file (a device, a log) out of memory.
    file.take(1024).read_to_string(&mut text).map_err(|error| refuse(format!("cannot read it: {error}")))?;
    text.trim().parse().map_err(|error| refuse(format!("{error}; `keygen` makes such a file")))
}

/// Writes a new private key to `path`, readable by its owner only: whole or not at all, also when the power fails.
/// An existing file is kept unless `replace` is given: whoever has its public keys would not know the box again.
pub fn write_key(path: &Path, key: &SecretKey, replace: bool) -> Result<(), SettingsError> {
    let refuse = |problem: String| SettingsError::KeyFile { path: path.to_owned(), problem };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", key.expose_base64())?;
        file.sync_all()?;
        if replace {
            std::fs::rename(&temporary, path)?;
        } else {
            // A hard link, unlike a rename, fails where something is already there.
            std::fs::hard_link(&temporary, path)?;
        }
        std::fs::File::open(folder)?.sync_all()
    };
    let result = write();
    if !(replace && result.is_ok()) {
        // After a rename it is gone already; otherwise nothing of the key may stay behind.
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refuse(
            "this file exists already, and whoever knows its public keys would not know a new one; \
             use another name, or --force to replace it"
                .into(),
        ),
        _ => refuse(format!("cannot write the key: {error}")),
    })
}

#[cfg(test)]
mod tests;
