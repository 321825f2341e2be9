//! Logs: `tracing` to stderr, filtered as `RUST_LOG` says, `info` by default.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Sets the log up; to be called once, by a daemon's `main`. A filter that cannot be read is reported and replaced by
/// the default: a typo in `RUST_LOG` must not keep a daemon from starting.
pub fn start() {
    let (filter, problem) = match std::env::var("RUST_LOG") {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new("info"), Some(format!("RUST_LOG={text:?} is not understood: {error}"))),
        },
        Err(_) => (EnvFilter::new("info"), None),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    if let Some(problem) = problem {
        tracing::warn!("{problem}; logging at info");
    }
}
