//! The control socket: how `status` asks a running daemon.
//!
//! A Unix stream socket that only its owner can open. The client writes one line, a command; the daemon answers one
//! JSON document and closes. A command it does not know is answered by `{"error": …}`.

use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// How long a client may take for its line, and again for reading the answer. It is on the same host, and a person waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a daemon may take to answer: with ten thousand sites, on a busy machine, some seconds.
const ANSWER: Duration = Duration::from_secs(20);
/// The longest command line. There is one command of six letters yet; the bound is against memory.
const LINE: u64 = 256;
/// How many clients are served at a time; others wait in the kernel's queue.
const CLIENTS: usize = 8;

/// Why the control socket cannot be served or asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon has it.
    #[error("already running{}, and answering at {}; stop that one first, or give this one another `control`",
        pid.map(|pid| format!(" as pid {pid}")).unwrap_or_default(), path.display())]
    Running {
        /// The other's process number, if it can be told.
        pid: Option<u32>,
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot open the control socket {}: {cause}; its folder must be writable", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The daemon cannot be asked.
    #[error("cannot ask the daemon at {}: {cause}; is it running, and may this user open the socket?", path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The daemon answered something else than JSON.
    #[error("the daemon at {} gave no proper answer: {cause}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
}

/// The listening socket; dropped, it is removed.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Makes the socket, and its folder if that is missing. A socket that a killed daemon left is replaced; one that
    /// answers is not.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |cause| ControlError::Bind { path: path.to_owned(), cause };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(other) => {
                let pid = rustix::net::sockopt::socket_peercred(&other).ok();
                let pid = pid.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
                return Err(ControlError::Running { pid, path: path.to_owned() });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(ControlSocket { listener, path: path.to_owned() })
    }

    /// Answers clients for ever. `answer` gets the command and gives the JSON document, or `None` for a command it does
    /// not know. A client that is slow or gone disturbs nobody.
    pub async fn serve<F, Answer>(self, answer: F)
    where
        F: Fn(String) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Option<String>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let places = Arc::new(Semaphore::new(CLIENTS));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((client, _)) => {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(client, &*answer).await {
                            tracing::debug!(%error, "a client of the control socket went away");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: the connection stays queued, so without a pause this would spin.
                    tracing::warn!(%error, "cannot accept a client of the control socket");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
    }
}

async fn converse<F, Answer>(client: UnixStream, answer: &F) -> io::Result<()>
where
    F: Fn(String) -> Answer,
    Answer: Future<Output = Option<String>>,
{
    let (reader, mut writer) = client.into_split();
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, BufReader::new(reader.take(LINE)).read_line(&mut line)).await??;
    let command = line.trim().to_owned();
    let mut document = match tokio::time::timeout(ANSWER, answer(command.clone())).await? {
        Some(document) => document,
        None => json!({ "error": format!("the command {command:?} is not known here") }).to_string(),
    };
    document.push('\n');
    let write = async {
        writer.write_all(document.as_bytes()).await?;
        writer.shutdown().await
    };
    tokio::time::timeout(PATIENCE, write).await?
}

/// Asks the daemon behind `path`. Blocks for as long as an answer may take, some seconds at most.
pub fn ask(path: &Path, command: &str) -> Result<Value, ControlError> {
    let failed = |cause| ControlError::Ask { path: path.to_owned(), cause };
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(failed)?;
    // Longer than the daemon's own patience, so that its answer, not our impatience, is what is shown.
    stream.set_read_timeout(Some(ANSWER + PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    writeln!(stream, "{command}").map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    serde_json::from_str(&text).map_err(|cause| ControlError::Answer { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_daemon_answers_and_a_second_is_refused() {
        let folder = std::env::temp_dir().join(format!("dataplane-control-{}", std::process::id()));
        let path = folder.join("run/control.sock");
        let socket = ControlSocket::bind(&path).expect("a first bind");
        let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let server = tokio::spawn(
            socket.serve(|command| async move { (command == "status").then(|| json!({ "schema": 1 }).to_string()) }),
        );
        let asked = path.clone();
        tokio::task::spawn_blocking(move || {
            assert_eq!(ask(&asked, "status").expect("an answer"), json!({ "schema": 1 }));
            let unknown = ask(&asked, "dance").expect("an answer");
            assert_eq!(unknown["error"], "the command \"dance\" is not known here");
            let refused = ControlSocket::bind(&asked).expect_err("it answers").to_string();
            assert!(refused.contains(&format!("already running as pid {}", std::process::id())), "{refused}");
        })
        .await
        .expect("the client");
        server.abort();
        assert!(server.await.expect_err("it was aborted").is_cancelled());
        assert!(!path.exists(), "a clean end removes the socket");

        drop(std::os::unix::net::UnixListener::bind(&path).expect("what a killed daemon leaves"));
        assert!(path.exists());
        drop(ControlSocket::bind(&path).expect("a stale socket is replaced"));
        std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
    }
}
