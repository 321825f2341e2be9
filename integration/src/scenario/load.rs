//! Reading scenario files: base and overlay merged, values set from outside, every error with its place.

use super::Scenario;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml_edit::{Document, DocumentMut, Item, Table, TableLike, Value};

/// A scenario that was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file's name without its ending, and behind an @ the variant's, if it has any.
    pub name: String,
    /// What it says.
    pub scenario: Scenario,
    /// Base, file and settings as one TOML document, which [`Loaded::parse`] reads again.
    pub merged: String,
    /// What was set from outside.
    pub set: BTreeMap<String, String>,
}

/// A file, kept for its places.
struct Source {
    path: PathBuf,
    document: Document<String>,
}

impl Loaded {
    /// Reads what another process of the lab has merged and checked.
    pub fn parse(name: &str, merged: &str) -> Result<Scenario> {
        toml_edit::de::from_str(merged).with_context(|| format!("cannot read the merged scenario {name}"))
    }
}

/// Where the project keeps its own.
fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)
}

/// The project's scenarios: names and files, sorted.
pub fn list() -> Result<Vec<(String, PathBuf)>> {
    let folder = folder("scenarios");
    let mut all = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot list the scenarios in {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            all.push((stem(&path), path));
        }
    }
    all.sort();
    Ok(all)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Reads a scenario, by the name of one of the project's or by a file, and sets values in it (`KEY=VALUE`). One with
/// variants is read once for each; `NAME@VARIANT` is one of them.
pub fn load(name_or_file: &str, set: &[String]) -> Result<Vec<Loaded>> {
    let (name_or_file, wanted) = match name_or_file.rsplit_once('@') {
        Some((name, variant)) => (name, Some(variant)),
        None => (name_or_file, None),
    };
    let path = match Path::new(name_or_file) {
        file if file.extension().is_some() || name_or_file.contains('/') => file.to_owned(),
        _ => folder("scenarios").join(format!("{name_or_file}.toml")),
    };
    if !path.exists() {
        bail!(
            "there is no scenario {name_or_file} ({} does not exist); `cargo lab list` shows them all",
            path.display()
        );
    }
    let sources = read_with_bases(&path)?;
    let mut merged = DocumentMut::new();
    for source in sources.iter().rev() {
        merge(merged.as_table_mut(), source.document.as_table());
    }
    let variants = variants(&sources, &mut merged)?;
    if let Some(wanted) = wanted
        && !variants.iter().any(|(name, _)| name == wanted)
    {
        let all = variants.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        bail!("{name_or_file} has no variant \"{wanted}\"; its variants are: {all}");
    }
    if variants.is_empty() {
        return Ok(vec![finish(&sources, stem(&path), merged, set)?]);
    }
    let chosen = variants.into_iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == name));
    let load = |(variant, values): (String, Table)| {
        let mut merged = merged.clone();
        for (key, value) in values {
            let in_place = ["variants", &variant, &key];
            let wrong = |text: &str| at_path(&sources, &in_place, text);
            let value = value.into_value().map_err(|_| wrong("expected a value"))?;
            put(merged.as_item_mut(), &key, value).map_err(|error| wrong(&error.to_string()))?;
        }
        finish(&sources, format!("{}@{variant}", stem(&path)), merged, set)
            .with_context(|| format!("in its variant {variant}"))
    };
    chosen.map(load).collect()
}

/// Takes the variants out of a scenario: for each, what it sets, by dotted path.
fn variants(sources: &[Source], merged: &mut DocumentMut) -> Result<Vec<(String, Table)>> {
    let Some(item) = merged.remove("variants") else { return Ok(Vec::new()) };
    let wrong = || at_path(sources, &["variants"], "expected tables [variants.NAME] of \"dotted.path\" = value");
    let tables = item.into_table().map_err(|_| wrong())?;
    tables.into_iter().map(|(name, item)| Ok((name.to_string(), item.into_table().map_err(|_| wrong())?))).collect()
}

/// Sets values in a merged document, and reads it.
fn finish(sources: &[Source], name: String, mut merged: DocumentMut, set: &[String]) -> Result<Loaded> {
    let mut settings = BTreeMap::new();
    for setting in set {
        let (key, value) = setting
            .split_once('=')
            .with_context(|| format!("--set {setting}: expected KEY=VALUE, with a dotted KEY"))?;
        // What is no TOML value is a string: nobody wants to write '"50ms"' in a shell.
        let parsed = value.parse().unwrap_or_else(|_| Value::from(value));
        put(merged.as_item_mut(), key, parsed).with_context(|| format!("--set {setting}"))?;
        settings.insert(key.to_owned(), value.to_owned());
    }
    let merged = merged.to_string();
    // Deserialised from the document and not from its text, so that an error comes with the path of its place.
    let document: DocumentMut = merged.parse().context("the merged scenario is not TOML: this is a bug of the lab")?;
    let scenario: Scenario =
        serde_path_to_error::deserialize(toml_edit::de::Deserializer::from(document)).map_err(|e| {
            let path = e.path().to_string();
            let path: Vec<&str> = path.split(['.', '[', ']']).filter(|part| !part.is_empty()).collect();
            at_path(sources, &path, &e.into_inner().to_string())
        })?;
    scenario.check().map_err(|(path, text)| at_path(sources, &path.split('.').collect::<Vec<_>>(), &text))?;
    Ok(Loaded { name, scenario, merged, set: settings })
}

/// The file, its base, its base's base, ….
fn read_with_bases(path: &Path) -> Result<Vec<Source>> {
    let mut sources = vec![read(path)?];
    while let Some(last) = sources.last()
        && let Some(base) = last.document.get("base")
    {
        let wrong = |text: &str| at_path(std::slice::from_ref(last), &["base"], text);
        let name = base.as_str().ok_or_else(|| wrong("base must be the name of a topology"))?;
        let file = match name.ends_with(".toml") {
            true => last.path.parent().unwrap_or(Path::new(".")).join(name),
            false => folder("topologies").join(format!("{name}.toml")),
        };
        if !file.exists() {
            return Err(wrong(&format!("there is no topology \"{name}\" ({} does not exist)", file.display())));
        }
        if sources.iter().any(|source| source.path == file) {
            return Err(wrong("a file cannot be its own base"));
        }
        sources.push(read(&file)?);
    }
    Ok(sources)
}

fn read(path: &Path) -> Result<Source> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let document = Document::parse(text.clone()).map_err(|e| {
        let line = e.span().map_or(1, |span| line_of(&text, &span));
        anyhow!("{}:{line}: {}", path.display(), e.message())
    })?;
    Ok(Source { path: path.to_owned(), document })
}

/// Tables are merged, everything else is replaced.
fn merge(into: &mut dyn TableLike, from: &dyn TableLike) {
    for (key, item) in from.iter() {
        match (into.get_mut(key).and_then(Item::as_table_like_mut), item.as_table_like()) {
            (Some(into), Some(from)) => merge(into, from),
            _ => {
                // Without its position, which would be one of another file.
                let mut item = item.clone();
                forget_position(&mut item);
                into.insert(key, item);
            }
        }
    }
}

fn forget_position(item: &mut Item) {
    match item {
        Item::Table(table) => {
            table.set_position(None);
            table.iter_mut().for_each(|(_, item)| forget_position(item));
        }
        Item::ArrayOfTables(tables) => {
            for table in tables.iter_mut() {
                table.set_position(None);
                table.iter_mut().for_each(|(_, item)| forget_position(item));
            }
        }
        _ => {}
    }
}

/// Sets one value. The host, link or list that it belongs to must be there; whether what follows has a meaning, the
/// types tell.
fn put(root: &mut Item, key: &str, value: Value) -> Result<()> {
    let (parent, last) = key.rsplit_once('.').map_or((None, key), |(parent, last)| (Some(parent), last));
    let mut item = root;
    for (depth, part) in parent.iter().flat_map(|parent| parent.split('.')).enumerate() {
        let there = parts(item);
        // Below a host or a link, a section that is not written (`up`) may have a meaning: again the types tell.
        if depth >= 2
            && let Some(table) = item.as_table_like_mut()
            && !table.contains_key(part)
        {
            table.insert(part, Item::Value(Value::InlineTable(toml_edit::InlineTable::new())));
        }
        item = child(item, part).ok_or_else(|| anyhow!("{key} does not exist: no \"{part}\" among {there}"))?;
    }
    let there = parts(item);
    if let Some(child) = child(item, last) {
        // A list of tables has no room for anything else, not even for the same table in one line.
        *child = match (child.is_table(), value) {
            (true, Value::InlineTable(table)) => Item::Table(table.into_table()),
            (true, _) => bail!("{key} is a table: set it as {{ … }}, or a key of it"),
            (false, value) => Item::Value(value),
        };
    } else if let Some(table) = item.as_table_like_mut() {
        table.insert(last, Item::Value(value));
    } else {
        bail!("{key} does not exist: no \"{last}\" among {there}");
    }
    Ok(())
}

fn child<'a>(item: &'a mut Item, part: &str) -> Option<&'a mut Item> {
    match part.parse::<usize>() {
        Ok(index) => item.get_mut(index),
        Err(_) => item.as_table_like_mut()?.get_mut(part),
    }
}

fn parts(item: &Item) -> String {
    match (item.as_table_like(), item.as_array(), item.as_array_of_tables()) {
        (Some(table), _, _) => table.iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>().join(", "),
        (_, Some(array), _) => format!("0 to {}", array.len().saturating_sub(1)),
        (_, _, Some(tables)) => format!("0 to {}", tables.len().saturating_sub(1)),
        _ => "(it is a single value)".into(),
    }
}

/// An error with the file and the line of the deepest part of `path` that is written anywhere.
fn at_path(sources: &[Source], path: &[&str], text: &str) -> anyhow::Error {
    let text = text.trim();
    let mut best: Option<(usize, &Source, usize)> = None;
    for source in sources {
        let mut table: &dyn TableLike = source.document.as_table();
        let mut item: Option<&Item> = None;
        let mut span: Option<Range<usize>> = None;
        let mut depth = 0;
        for part in path {
            if let Some((key, next)) = table.get_key_value(part) {
                span = key.span().or_else(|| next.span()).or(span);
                item = Some(next);
            } else if let Some(next) = part.parse::<usize>().ok().and_then(|index| item.and_then(|i| i.get(index))) {
                span = next.span().or(span);
                item = Some(next);
            } else {
                break;
            }
            depth += 1;
            match item.and_then(Item::as_table_like) {
                Some(next) => table = next,
                None => continue,
            }
        }
        // Of an unknown key in a tagged table the path has only the table; the message names the key.
        if let Some(name) = text.strip_prefix("unknown field `").and_then(|t| t.split('`').next())
            && let Some((key, _)) = table.get_key_value(name)
        {
            span = key.span().or(span);
            depth += 1;
        }
        if let Some(span) = span
            && best.is_none_or(|(best, ..)| depth > best)
        {
            best = Some((depth, source, line_of(source.document.raw(), &span)));
        }
    }
    let key = path.join(".");
    match best {
        Some((_, source, line)) => anyhow!("{}:{line}: {key}: {text}", source.path.display()),
        None => anyhow!("{}: {key}: {text}", sources[0].path.display()),
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("msp-lab-test-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("the temporary folder is writable");
        path
    }

    fn load_text(name: &str, text: &str, set: &[&str]) -> Result<Loaded> {
        let path = write(name, text);
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        let loaded = load(&path.to_string_lossy(), &set);
        std::fs::remove_file(path)?;
        loaded.map(|mut all| all.remove(0))
    }

    const SHORT: &str = "schema = 1\nabout = \"x\"\nbase = \"two-isps\"\n";

    #[test]
    fn every_scenario_of_the_project_reads_and_reads_again_from_its_merged_form() {
        let all = list().expect("the folder is there");
        assert!(!all.is_empty());
        for (name, path) in all {
            for loaded in load(&path.to_string_lossy(), &[]).unwrap_or_else(|e| panic!("{name}: {e:#}")) {
                Loaded::parse(&loaded.name, &loaded.merged).unwrap_or_else(|e| panic!("{}: {e:#}", loaded.name));
            }
        }
    }

    #[test]
    fn a_value_can_be_set_and_a_wrong_path_says_what_there_is() {
        let set = ["links.isp-a.delay=50ms", "links.isp-a.up.loss=0.5", "hosts.box.routes.0.metric=7"];
        let loaded = load_text("set", SHORT, &set).expect("all three exist or have a meaning");
        let link = &loaded.scenario.links["isp-a"];
        assert_eq!(link.netem(super::super::Direction::Up).loss, 0.5);
        assert_eq!(link.delay, "50ms".parse().ok());
        assert_eq!(loaded.scenario.hosts["box"].routes[0].metric, Some(7));
        let cut = format!("{SHORT}[[timeline]]\nat = \"1s\"\ndo = \"cut\"\nlink = \"isp-a\"\n");
        let set = "timeline.0={ at = \"2s\", do = \"cut\", link = \"isp-b\" }";
        let loaded = load_text("set1", &cut, &[set]).expect("an entry of a list, in one line");
        assert_eq!(loaded.scenario.timeline.len(), 1);
        let error = load_text("set1", &cut, &["timeline.0=cut"]).expect_err("it is a table");
        assert!(format!("{error:#}").contains("timeline.0 is a table"), "{error:#}");
        let error = load_text("set2", SHORT, &["links.isp-c.delay=50ms"]).expect_err("no such link");
        assert!(format!("{error:#}").contains("no \"isp-c\" among "), "{error:#}");
        let error = load_text("set3", SHORT, &["links.isp-a.dely=50ms"]).expect_err("no such key");
        assert!(format!("{error:#}").contains("unknown field `dely`"), "{error:#}");
    }

    #[test]
    fn a_wire_is_not_cut_nor_delayed_but_may_lose_its_carrier() {
        let with = |action: &str| format!("{SHORT}[[timeline]]\nat = \"1s\"\ndo = \"{action}\"\nlink = \"isp-a\"\n");
        let zero = ["links.isp-a.delay=0ms", "links.isp-b.delay=0ms", "netem=false"];
        let error = load_text("wire0", SHORT, &zero[1..]).expect_err("a delay is netem's");
        assert!(format!("{error:#}").contains("link isp-a adds a delay"), "{error:#}");
        let error = load_text("wire1", &with("cut"), &zero).expect_err("a cut is netem's");
        assert!(format!("{error:#}").contains("cut isp-a takes netem = true"), "{error:#}");
        load_text("wire2", &with("carrier_down"), &zero).expect("carrier is not");
    }

    #[test]
    fn loss_is_in_bursts_or_alone_and_a_stall_needs_order() {
        let set = ["links.isp-a.bursts={ share = 0.02, length = 5 }", "links.isp-a.down.loss=1.0"];
        let link = load_text("bursts", SHORT, &set).expect("both have a meaning").scenario.links["isp-a"].clone();
        let bursts = link.netem(super::super::Direction::Up).bursts.expect("they are set");
        assert!((bursts.to_bad / (bursts.to_bad + bursts.to_good) - 0.02).abs() < 1e-12 && bursts.to_good == 0.2);
        assert_eq!(link.netem(super::super::Direction::Down).bursts, None, "its own loss is in its place");
        for wrong in ["{ share = 0, length = 5 }", "{ share = 0.9, length = 1 }", "{ share = 0.1, length = 0.5 }"] {
            let error = load_text("bursts2", SHORT, &[&format!("links.isp-a.bursts={wrong}")]).expect_err(wrong);
            assert!(format!("{error:#}").contains("bursts have a share"), "{error:#}");
        }
        let stalls = |more: &str| {
            let stalls = "links.isp-a.stalls={ every = \"5s\", shortest = \"10ms\", longest = \"100ms\" }";
            load_text("stalls", SHORT, &[stalls, more]).map_err(|error| format!("{error:#}"))
        };
        stalls("links.isp-a.ordered=true").expect("they hold back in order");
        assert!(stalls("links.isp-a.ordered=false").expect_err("not in order").contains("it needs `ordered`"));
        assert!(stalls("links.isp-a.stalls.every=150ms").expect_err("they overlap").contains("at least twice"));
    }

    #[test]
    fn each_variant_is_a_scenario_of_its_own() {
        let text = format!(
            "{SHORT}[variants.slow]\n\"links.isp-a.delay\" = \"50ms\"\n\
             [variants.narrow]\n\"links.peering-a.mtu\" = 1300\n\"links.isp-a.up.loss\" = 0.5\n"
        );
        let path = write("variants", &text);
        let file = path.to_string_lossy();
        let all = load(&file, &["links.isp-b.delay=7ms".into()]).expect("both read");
        let names: Vec<_> = all.iter().map(|l| l.name.rsplit_once('@').expect("a variant").1.to_owned()).collect();
        assert_eq!(names, ["slow", "narrow"]);
        let mtu = |loaded: &Loaded| loaded.scenario.links["peering-a"].mtu;
        assert_eq!((mtu(&all[0]), mtu(&all[1])), (None, Some(1300)));
        assert!(all.iter().all(|l| l.scenario.links["isp-b"].delay == "7ms".parse().ok()));
        let one = load(&format!("{file}@narrow"), &[]).expect("it is there");
        assert_eq!((one.len(), mtu(&one[0])), (1, Some(1300)));
        let error = load(&format!("{file}@wide"), &[]).expect_err("there is none").to_string();
        assert!(error.contains("its variants are: slow, narrow"), "{error}");
        std::fs::write(&path, text.replace("isp-a.delay", "isp-x.delay")).expect("writable");
        let error = format!("{:#}", load(&file, &[]).expect_err("no such link"));
        assert!(error.contains(":5: ") && error.contains("no \"isp-x\" among"), "{error}");
        std::fs::remove_file(path).expect("it was written above");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_what_was_expected() {
        let text = format!("{SHORT}[links.isp-a]\ndelay = \"1ms\"\nlos = 1\n");
        let error = format!("{:#}", load_text("unknown", &text, &[]).expect_err("`los` is nothing"));
        assert!(error.contains(":6: links.isp-a.los: unknown field `los`, expected one of"), "{error}");
        let text = format!(
            "{SHORT}\n[[traffic]]\nkind = \"udp\"\nname = \"a\"\nfrom = \"home\"\nto = \"internet\"\nrat = 1\n"
        );
        let error = format!("{:#}", load_text("tagged", &text, &[]).expect_err("`rat` is nothing"));
        assert!(error.contains(":10: ") && error.contains("unknown field `rat`"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let text = format!("{SHORT}[[timeline]]\nat = \"soon\"\ndo = \"cut\"\nlink = \"isp-a\"\n");
        let error = format!("{:#}", load_text("value", &text, &[]).expect_err("\"soon\" is no time"));
        assert!(error.contains(":5: ") && error.contains("a time such as"), "{error}");
        let text = format!("{SHORT}[[timeline]]\nat = \"1s\"\ndo = \"cut\"\nlink = \"isp-x\"\n");
        let error = format!("{:#}", load_text("link", &text, &[]).expect_err("no such link"));
        assert!(error.contains(":7: ") && error.contains("there is no link \"isp-x\"; there are internet"), "{error}");
    }
}
