//! What the box knows again after a restart: which interface has which slot, and where the core was reached.
//!
//! Nothing depends on it: without it slots are given anew, and names are asked for before the core is reached. So what
//! cannot be read or written is a warning, and the box goes on.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// The file's name in its folder.
const FILE: &str = "state.json";
/// The format of the file.
const SCHEMA: u32 = 1;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    schema: u32,
    /// The interfaces that have slots.
    #[serde(default)]
    pub(crate) slots: Vec<Kept>,
    /// The public key of the core that the addresses are of.
    #[serde(default)]
    pub(crate) core: String,
    /// Its addresses on which a session was established, the last one first.
    #[serde(default)]
    pub(crate) proven: Vec<SocketAddr>,
}

/// An interface by what it is known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its slot.
    pub(crate) slot: u8,
    /// Its name.
    pub(crate) name: String,
    /// Its hardware address, if it has one.
    pub(crate) hardware: Option<String>,
    /// What the configuration called it, if it named an interface for the slot.
    #[serde(default)]
    pub(crate) pin: Option<String>,
}

/// The state on the disk.
pub(crate) struct Store {
    writer: watch::Sender<State>,
}

impl Store {
    /// What was kept, and a way to keep more, within a tokio runtime.
    pub(crate) fn open(folder: &Path) -> (State, Self) {
        let path = folder.join(FILE);
        let state = read(&path).unwrap_or_else(|problem| {
            tracing::warn!(path = %path.display(), problem, "slots and addresses of before are not known; going on without");
            State::default()
        });
        let writer = watch::Sender::new(state.clone());
        tokio::spawn(keep(path, writer.subscribe()));
        (state, Store { writer })
    }

    /// Keeps this, if it is news. The disk is not waited for.
    pub(crate) fn keep(&self, slots: Vec<Kept>, core: String, proven: Vec<SocketAddr>) {
        let state = State { schema: SCHEMA, slots, core, proven };
        self.writer.send_if_modified(|kept| {
            let news = *kept != state;
            *kept = state;
            news
        });
    }
}

/// Writes the last state there is, one after the other: a slow disk holds up nobody.
async fn keep(path: PathBuf, mut states: watch::Receiver<State>) {
    let mut warned = false;
    while states.changed().await.is_ok() {
        let (state, to) = (states.borrow_and_update().clone(), path.clone());
        let written = tokio::task::spawn_blocking(move || write(&to, &state)).await;
        match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => warned = false,
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(path = %path.display(), %error, "slots and addresses cannot be kept for the next start; set `state` to a folder that can be written");
            }
            Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<State, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        // A first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Err(error) => return Err(format!("cannot read it: {error}")),
    };
    let state: State = serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}"))?;
    if state.schema != SCHEMA {
        return Err(format!("it is of format {}, this program knows {SCHEMA}", state.schema));
    }
    Ok(state)
}

/// Whole or not at all, also when the power fails.
fn write(path: &Path, state: &State) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_refused_in_words() {
        let folder = std::env::temp_dir().join(format!("mspmb-state-{}", std::process::id()));
        let path = folder.join("deeper").join(FILE);
        assert_eq!(read(&path), Ok(State::default()), "a first start");
        let state = State {
            schema: SCHEMA,
            slots: vec![Kept { slot: 3, name: "wan0".into(), hardware: Some("52:54:00:01:02:03".into()), pin: None }],
            core: "key".into(),
            proven: vec!["192.0.2.1:51820".parse().expect("an address")],
        };
        write(&path, &state).expect("writing");
        assert_eq!(read(&path), Ok(state));
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("its content").count(), 1, "nothing is left");
        let whole = fs::read_to_string(&path).expect("the file");
        for text in [&whole[..whole.len() / 2], "", "[]", "\0\0\0"] {
            fs::write(&path, text).expect("damaging it");
            assert!(read(&path).expect_err("it is damaged").starts_with("it is damaged"), "{text:?}");
        }
        fs::write(&path, whole.replace("\"schema\": 1", "\"schema\": 2")).expect("writing");
        assert!(read(&path).expect_err("another format").contains("format 2"));
        fs::remove_dir_all(&folder).expect("removing the scratch folder");
    }
}
