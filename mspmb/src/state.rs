//! What the box knows again after a restart: which interface has which slot, where the core was reached, and what metered
//! links have carried ([`crate::meter`]). Each is a file of its own.
//!
//! Nothing depends on it: without it slots are given anew, names are asked for before the core is reached, and months begin
//! anew. So what cannot be read or written is a warning, and the box goes on.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The format of the files.
const SCHEMA: u32 = 1;

/// What is kept in a file.
pub(crate) trait Stored:
    Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The file's name in its folder.
    const FILE: &'static str;
    /// What it has, for warnings: completes "… of before are not known".
    const WHAT: &'static str;
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Content<T> {
    schema: u32,
    #[serde(flatten)]
    stored: T,
}

/// The slots, and where the core is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
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

impl Stored for State {
    const FILE: &'static str = "state.json";
    const WHAT: &'static str = "slots and addresses";
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

/// What is kept on the disk.
pub(crate) struct Store<T> {
    writer: watch::Sender<T>,
    writing: JoinHandle<()>,
}

impl<T: Stored> Store<T> {
    /// What was kept, and a way to keep more, within a tokio runtime.
    pub(crate) fn open(folder: &Path) -> (T, Self) {
        let path = folder.join(T::FILE);
        let stored = read(&path).unwrap_or_else(|problem| {
            tracing::warn!(path = %path.display(), problem, "{} of before are not known; going on without", T::WHAT);
            T::default()
        });
        let writer = watch::Sender::new(stored.clone());
        let writing = tokio::spawn(keep(path, writer.subscribe()));
        (stored, Store { writer, writing })
    }

    /// Keeps this, if it is news. The disk is not waited for.
    pub(crate) fn keep(&self, stored: T) {
        self.writer.send_if_modified(|kept| {
            let news = *kept != stored;
            *kept = stored;
            news
        });
    }

    /// Waits until what was kept last is on the disk, if that takes it.
    pub(crate) async fn close(self) {
        drop(self.writer);
        // It ends with the sender, after it has written what it has not yet; a panic is in the log.
        let _ = self.writing.await;
    }
}

/// Writes the last state there is, one after the other: a slow disk holds up nobody.
async fn keep<T: Stored>(path: PathBuf, mut states: watch::Receiver<T>) {
    let mut warned = false;
    while states.changed().await.is_ok() {
        let (state, to) = (states.borrow_and_update().clone(), path.clone());
        let written = tokio::task::spawn_blocking(move || write(&to, &state)).await;
        match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => warned = false,
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(path = %path.display(), %error, "{} cannot be kept for the next start; set `state` to a folder that can be written, and has room", T::WHAT);
            }
            Err(_) => {}
        }
    }
}

fn read<T: Stored>(path: &Path) -> Result<T, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        // A first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(format!("cannot read it: {error}")),
    };
    let content: Content<T> = serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}"))?;
    if content.schema != SCHEMA {
        return Err(format!("it is of format {}, this program knows {SCHEMA}", content.schema));
    }
    Ok(content.stored)
}

/// Whole or not at all, also when the power fails.
fn write<T: Stored>(path: &Path, stored: &T) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(&Content { schema: SCHEMA, stored })?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_refused_in_words() {
        let folder = std::env::temp_dir().join(format!("mspmb-state-{}", std::process::id()));
        let path = folder.join("deeper").join(State::FILE);
        assert_eq!(read(&path), Ok(State::default()), "a first start");
        let state = State {
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
            assert!(read::<State>(&path).expect_err("it is damaged").starts_with("it is damaged"), "{text:?}");
        }
        fs::write(&path, whole.replace("\"schema\": 1", "\"schema\": 2")).expect("writing");
        assert!(read::<State>(&path).expect_err("another format").contains("format 2"));
        fs::remove_dir_all(&folder).expect("removing the scratch folder");
    }

    #[tokio::test]
    async fn what_was_kept_last_is_on_the_disk_when_a_store_is_closed_if_that_takes_it() {
        let folder = std::env::temp_dir().join(format!("mspmb-store-{}", std::process::id()));
        let state = |core: &str| State { core: core.into(), ..State::default() };
        fs::write(&folder, "in the way of a folder").expect("a file");
        let (_, store) = Store::<State>::open(&folder);
        store.keep(state("one"));
        store.close().await;
        fs::remove_file(&folder).expect("removing it");
        let (before, store) = Store::<State>::open(&folder);
        assert_eq!(before, State::default(), "it could not be written");
        store.keep(state("two"));
        store.keep(state("three"));
        store.close().await;
        assert_eq!(Store::<State>::open(&folder).0, state("three"));
        fs::remove_dir_all(&folder).expect("removing the scratch folder");
    }
}
