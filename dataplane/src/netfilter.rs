//! nftables: a table of our own, always replaced as a whole, and what it counts.
//!
//! A ruleset is made of the types of the crate `nftables`, and handed to the program `nft` in one transaction: the kernel has
//! the old one or the new one, and never a part. The crate's own way to call it loses what nft complains of, and reads counters
//! as 32 bits, so both are done here ([why it is used](../../docs/decisions/0025-breakout-by-nftables.md)).

use nftables::schema::{FlushObject, NfCmd, NfListObject, NfObject, Nftables, Table};
use nftables::types::NfFamily;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::process::{Output, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Where the program is if PATH does not say, as it may not for a service.
const USUAL: &str = "/usr/sbin/nft";

/// Why the packet filter could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// There is no `nft`.
    #[error("there is no program nft, by which packets are translated: install it (package nftables)")]
    Missing,
    /// It could not be run.
    #[error("cannot run nft: {0}")]
    Run(#[from] io::Error),
    /// It, or the kernel, refused.
    #[error("nft refused to {action}: {complaint}; does this kernel have nftables, with connection tracking and NAT?")]
    Refused {
        /// What it was to do.
        action: &'static str,
        /// What it said.
        complaint: String,
    },
    /// Its answer is not understood.
    #[error("nft's answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
}

/// What a named counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Octets, from the IP header on.
    pub bytes: u64,
}

/// Whether there is the program that this needs.
pub fn available() -> Result<(), FilterError> {
    program().map(|_| ())
}

fn program() -> Result<std::path::PathBuf, FilterError> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut there = std::env::split_paths(&folders).map(|folder| folder.join("nft")).chain([USUAL.into()]);
    there.find(|path| path.is_file()).ok_or(FilterError::Missing)
}

/// The table of this name, in the family that has IPv4 and IPv6.
fn table(name: &str) -> Table<'static> {
    Table { family: NfFamily::INet, name: name.to_owned().into(), handle: None }
}

/// Puts `objects` in force as the table `name`. `before` is what was in force there: counters that are in both go on counting.
/// Without it, whatever there was goes.
pub async fn replace(
    name: &str,
    before: Option<&[NfListObject<'static>]>,
    objects: &[NfListObject<'static>],
) -> Result<(), FilterError> {
    let text = serde_json::to_vec(&Nftables { objects: transaction(name, before, objects).into() })?;
    run(&["-j", "-f", "-"], &text, "replace the table").await?;
    Ok(())
}

/// Removes the table `name`, which need not be there.
pub async fn remove(name: &str) -> Result<(), FilterError> {
    // Added first: what is not there cannot be removed.
    let objects =
        [NfCmd::Add, NfCmd::Delete].map(|command| NfObject::CmdObject(command(NfListObject::Table(table(name)))));
    let text = serde_json::to_vec(&Nftables { objects: objects.to_vec().into() })?;
    run(&["-j", "-f", "-"], &text, "remove the table").await?;
    Ok(())
}

fn transaction(
    name: &str,
    before: Option<&[NfListObject<'static>]>,
    objects: &[NfListObject<'static>],
) -> Vec<NfObject<'static>> {
    let table = || NfListObject::Table(table(name));
    let mut commands = vec![NfCmd::Add(table())];
    match before {
        None => commands.extend([NfCmd::Delete(table()), NfCmd::Add(table())]),
        Some(before) => {
            commands.push(NfCmd::Flush(FlushObject::Table(self::table(name))));
            let chains = before.iter().filter(|object| matches!(object, NfListObject::Chain(_)));
            commands.extend(chains.cloned().map(NfCmd::Delete));
            let gone = |object: &&NfListObject<'static>| {
                matches!(object, NfListObject::Counter(_)) && !objects.contains(object)
            };
            commands.extend(before.iter().filter(gone).cloned().map(NfCmd::Delete));
        }
    }
    commands.extend(objects.iter().cloned().map(NfCmd::Add));
    commands.into_iter().map(NfObject::CmdObject).collect()
}

/// What the named counters of the table `name` have counted; an error if it is not there.
pub async fn counters(name: &str) -> Result<BTreeMap<String, Counted>, FilterError> {
    let output = run(&["-j", "list", "counters", "table", "inet", name], &[], "list the counters").await?;
    read_counters(&output.stdout)
}

fn read_counters(answer: &[u8]) -> Result<BTreeMap<String, Counted>, FilterError> {
    #[derive(Deserialize)]
    struct Answer {
        nftables: Vec<Object>,
    }
    #[derive(Deserialize)]
    struct Object {
        counter: Option<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        #[serde(flatten)]
        counted: Counted,
    }
    let answer: Answer = serde_json::from_slice(answer)?;
    let named = answer.nftables.into_iter().filter_map(|object| object.counter);
    Ok(named.map(|Named { name, counted }| (name, counted)).collect())
}

async fn run(arguments: &[&str], input: &[u8], action: &'static str) -> Result<Output, FilterError> {
    let mut command = Command::new(program()?);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    // Closed again at once: it reads to the end. It may end without having read all, and then says why.
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => drop(stdin),
        }
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(output);
    }
    // The first line names it; the rest repeats the input, which is one line of many thousand characters.
    let complaint =
        String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no reason given").trim().to_owned();
    Err(FilterError::Refused { action, complaint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nftables::schema::{Chain, Counter};

    fn chain(name: &'static str) -> NfListObject<'static> {
        NfListObject::Chain(Chain { family: NfFamily::INet, table: "t".into(), name: name.into(), ..Chain::default() })
    }

    fn counter(name: &'static str) -> NfListObject<'static> {
        NfListObject::Counter(Counter {
            family: NfFamily::INet,
            table: "t".into(),
            name: name.into(),
            ..Counter::default()
        })
    }

    #[test]
    fn counters_go_on_unless_they_are_wanted_no_more() {
        let shown = |before: Option<&[NfListObject<'static>]>, objects: &[NfListObject<'static>]| {
            let commands = transaction("t", before, objects);
            let shown = commands.iter().map(|command| serde_json::to_value(command).expect("it can be written"));
            let named = shown.map(|value| {
                let (word, object) = value.as_object().and_then(|map| map.iter().next()).expect("a command");
                let (kind, object) = object.as_object().and_then(|map| map.iter().next()).expect("an object");
                format!("{word} {kind} {}", object["name"].as_str().expect("a name"))
            });
            named.collect::<Vec<_>>()
        };
        let before = [counter("a"), counter("b"), chain("x")];
        let after = [counter("a"), chain("x"), chain("y")];
        let added = ["add counter a", "add chain x", "add chain y"];
        let fresh = ["add table t", "delete table t", "add table t"];
        assert_eq!(shown(None, &after), [&fresh[..], &added].concat());
        let changed = ["add table t", "flush table t", "delete chain x", "delete counter b"];
        assert_eq!(shown(Some(&before), &after), [&changed[..], &added].concat());
    }

    #[test]
    fn counters_are_read_beyond_32_bits() {
        let answer =
            br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"family": "inet", "name": "up-0",
            "table": "t", "handle": 2, "packets": 5000000000, "bytes": 6000000000000}}]}"#;
        let counters = read_counters(answer).expect("an answer");
        assert_eq!(counters["up-0"], Counted { packets: 5_000_000_000, bytes: 6_000_000_000_000 });
        assert!(read_counters(b"no").is_err());
    }
}
