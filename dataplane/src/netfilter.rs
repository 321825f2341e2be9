//! nftables: a table of our own, always replaced as a whole, and what it counts.
//!
//! A ruleset is made of the types of the crate `nftables`, and handed to the program `nft` in one transaction: the kernel has
//! the old one or the new one, and never a part. The crate's own way to call it loses what nft complains of, and it reads
//! counters as 32 bits, so both are done here ([why it is used](../../docs/decisions/0025-breakout-by-nftables.md)).

use crate::netlink::Mark;
use nftables::schema::{Chain, FlushObject, NfCmd, NfListObject, NfObject, Nftables, Table};
use nftables::types::NfFamily;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
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

/// What a counter has counted.
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

/// Puts `objects`, chains and their rules, in force as the table `name`. `before` is what was in force there: a chain that is
/// the same in both stays, and goes on counting. Without it, whatever there was goes.
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
    if before.is_none() {
        commands.extend([NfCmd::Delete(table()), NfCmd::Add(table())]);
    }
    let (before, after) = (by_chain(before.unwrap_or_default()), by_chain(objects));
    let same = |chain: &str| before.contains_key(chain) && before.get(chain) == after.get(chain);
    let old = |object: &NfListObject<'static>| match object {
        NfListObject::Chain(chain) => (!same(&chain.name)).then(|| chain.clone()),
        _ => None,
    };
    // First all that change are emptied: what leads from one to another is gone then, and keeps none from going.
    let changed: Vec<Chain<'static>> = before.values().filter_map(|own| old(own.first()?)).collect();
    commands.extend(changed.iter().cloned().map(|chain| NfCmd::Flush(FlushObject::Chain(chain))));
    let gone = changed.into_iter().filter(|chain| !after.contains_key(&*chain.name));
    commands.extend(gone.map(|chain| NfCmd::Delete(NfListObject::Chain(chain))));
    let wanted = objects.iter().filter(|object| chain_of(object).is_some_and(|chain| !same(chain)));
    commands.extend(wanted.cloned().map(NfCmd::Add));
    commands.into_iter().map(NfObject::CmdObject).collect()
}

/// Each chain and its rules, by its name.
fn by_chain<'a>(objects: &'a [NfListObject<'static>]) -> BTreeMap<&'a str, Vec<&'a NfListObject<'static>>> {
    let mut chains: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for object in objects {
        if let Some(chain) = chain_of(object) {
            chains.entry(chain).or_default().push(object);
        }
    }
    chains
}

fn chain_of<'a>(object: &'a NfListObject<'static>) -> Option<&'a str> {
    match object {
        NfListObject::Chain(chain) => Some(&chain.name),
        NfListObject::Rule(rule) => Some(&rule.chain),
        _ => None,
    }
}

/// What the rules of the table `name` have counted that have a comment, by that; an error if there is no such table.
pub async fn counters(name: &str) -> Result<BTreeMap<String, Counted>, FilterError> {
    let output = run(&["-j", "list", "table", "inet", name], &[], "list the table").await?;
    read_counters(&output.stdout)
}

fn read_counters(answer: &[u8]) -> Result<BTreeMap<String, Counted>, FilterError> {
    #[derive(Deserialize)]
    struct Answer {
        nftables: Vec<Object>,
    }
    #[derive(Deserialize)]
    struct Object {
        rule: Option<Rule>,
    }
    #[derive(Deserialize)]
    struct Rule {
        comment: Option<String>,
        expr: Vec<serde_json::Value>,
    }
    let answer: Answer = serde_json::from_slice(answer)?;
    let mut counters = BTreeMap::new();
    for rule in answer.nftables.into_iter().filter_map(|object| object.rule) {
        let counter = rule.expr.into_iter().find_map(|mut statement| statement.get_mut("counter").map(|it| it.take()));
        if let (Some(comment), Some(counter)) = (rule.comment, counter) {
            counters.insert(comment, serde_json::from_value(counter)?);
        }
    }
    Ok(counters)
}

/// Has the kernel forget the connections with this mark (conntrack, by ctnetlink). Their next packets begin new ones.
pub fn forget(mark: Mark) -> io::Result<()> {
    // linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: the message deletes what its attributes say, and these say a mark.
    const CTNETLINK_DELETE: u16 = 1 << 8 | 2;
    const CTA_MARK: u16 = 8;
    const CTA_MARK_MASK: u16 = 21;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const NLMSG_ERROR: u16 = 2;
    let mut body = vec![0; 4]; // Any family, version 0.
    for (kind, value) in [(CTA_MARK, mark.value), (CTA_MARK_MASK, mark.mask)] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value.to_be_bytes());
    }
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend([CTNETLINK_DELETE.to_ne_bytes(), NLM_F_REQUEST_ACK.to_ne_bytes()].concat());
    message.extend([0; 8]); // The number of the message, and of who sends it: there is one, on a socket of its own.
    message.extend(body);
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message, 0)?;
    // The answer stands in the socket when the message has been sent.
    let (answer, _) = socket.recv_from_full()?;
    let word = |at: usize| answer.get(at..at + 4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
    let kind = word(4).map(|octets| u16::from_ne_bytes([octets[0], octets[1]]));
    match (kind, word(16).map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(-errno)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no acknowledgement came back")),
    }
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
    use nftables::schema::Rule;
    use nftables::stmt::Statement;

    fn chain(name: &'static str, rules: &[&'static str]) -> Vec<NfListObject<'static>> {
        let chain = Chain { family: NfFamily::INet, table: "t".into(), name: name.into(), ..Chain::default() };
        let rule = |comment: &&'static str| {
            NfListObject::Rule(Rule {
                chain: name.into(),
                expr: vec![Statement::Accept(None)].into(),
                comment: Some((*comment).into()),
                ..Rule::default()
            })
        };
        std::iter::once(NfListObject::Chain(chain)).chain(rules.iter().map(rule)).collect()
    }

    fn shown(before: Option<&[NfListObject<'static>]>, after: &[NfListObject<'static>]) -> Vec<String> {
        let line = |command: &NfObject<'static>| {
            let value = serde_json::to_value(command).expect("it can be written");
            let (word, object) = value.as_object().and_then(|map| map.iter().next()).expect("a command");
            let (kind, object) = object.as_object().and_then(|map| map.iter().next()).expect("an object");
            let name = object.get("name").or(object.get("comment")).and_then(|name| name.as_str());
            format!("{word} {kind} {}", name.expect("a name"))
        };
        transaction("t", before, after).iter().map(line).collect()
    }

    #[test]
    fn what_is_the_same_in_both_stays_and_counts_on() {
        let before = [chain("counts", &["c"]), chain("changes", &["x"]), chain("goes", &["g"])].concat();
        let after = [chain("counts", &["c"]), chain("changes", &["y"]), chain("comes", &["n"])].concat();
        assert_eq!(
            shown(Some(&before), &after),
            [
                "add table t",
                "flush chain changes",
                "flush chain goes",
                "delete chain goes",
                "add chain changes",
                "add rule y",
                "add chain comes",
                "add rule n"
            ]
        );
        let fresh = ["add table t", "delete table t", "add table t", "add chain counts", "add rule c"];
        assert_eq!(shown(None, &after)[..5], fresh);
    }

    #[test]
    fn counters_are_read_beyond_32_bits() {
        let answer = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"chain": {"family": "inet", "name": "c"}},
            {"rule": {"chain": "c", "handle": 2, "comment": "up-0", "expr": [{"match": {"op": "==", "left": 1, "right": 1}},
            {"counter": {"packets": 5000000000, "bytes": 6000000000000}}, {"accept": null}]}},
            {"rule": {"chain": "c", "handle": 3, "expr": [{"counter": {"packets": 1, "bytes": 2}}]}}]}"#;
        let counters = read_counters(answer).expect("an answer");
        assert_eq!(
            counters,
            [("up-0".to_owned(), Counted { packets: 5_000_000_000, bytes: 6_000_000_000_000 })].into()
        );
        assert!(read_counters(b"no").is_err());
    }
}
