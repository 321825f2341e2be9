//! The table that moves while a run goes on.

use super::Job;
use super::clock::Clock;
use crate::daemon::bgp_events;
use crate::report::{StatusSample, Table, TimelineEvent};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// As often as the meters and the daemons are asked.
const EVERY: Duration = Duration::from_millis(100);

/// What the table is told by the other threads.
pub(super) enum News {
    /// A daemon's status.
    Status(StatusSample),
    /// The timeline did something.
    Event(TimelineEvent),
    /// The run is over.
    End,
}

/// Where news go; nowhere, if nobody watches.
#[derive(Clone)]
pub(super) struct Wire(Option<Sender<News>>);

impl Wire {
    pub(super) fn tell(&self, news: impl FnOnce() -> News) {
        if let Some(wire) = &self.0 {
            // A table that has ended wants no news.
            let _ = wire.send(news());
        }
    }
}

/// A thread that draws.
pub(super) struct Live(Wire, Option<JoinHandle<()>>);

impl Live {
    /// Draws if the job says so. `birds` are logs of BIRD.
    pub(super) fn start(job: &Job, clock: Clock, birds: Vec<PathBuf>) -> Self {
        if !job.live {
            return Live(Wire(None), None);
        }
        let (wire, news) = channel();
        let table = Table::new(std::io::stdout(), job.terminal);
        let folder = job.folder.clone();
        let thread = std::thread::spawn(move || draw(table, clock, &news, &folder, &birds));
        Live(Wire(Some(wire)), Some(thread))
    }

    pub(super) fn wire(&self) -> Wire {
        self.0.clone()
    }

    pub(super) fn end(self) {
        self.0.tell(|| News::End);
        if let Some(thread) = self.1 {
            // A display that broke is no reason to lose the measurement.
            let _ = thread.join();
        }
    }
}

fn draw(
    mut table: Table<std::io::Stdout>,
    clock: Clock,
    news: &Receiver<News>,
    folder: &std::path::Path,
    birds: &[PathBuf],
) {
    let mut read: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut routes = 0;
    let mut moment = Duration::ZERO;
    loop {
        clock.sleep_until(moment);
        moment += EVERY;
        while let Ok(news) = news.try_recv() {
            match news {
                News::Status(sample) => table.status(sample),
                News::Event(event) => drop(table.event(event)),
                News::End => return,
            }
        }
        for line in fresh(folder, &mut read) {
            if let Ok(line) = serde_json::from_str(&line) {
                table.meter(line);
            }
        }
        let logs = birds.iter().map(|log| std::fs::read_to_string(log).unwrap_or_default());
        let events: Vec<_> = logs.flat_map(|log| bgp_events(&log, clock.start_unix_ns())).collect();
        for event in events.iter().skip(routes) {
            table.route(event);
        }
        routes = events.len();
        if table.draw(clock.now_ms()).is_err() {
            return; // nobody reads any more
        }
    }
}

/// Whole lines that the meters have written since the last look.
fn fresh(folder: &std::path::Path, read: &mut BTreeMap<PathBuf, u64>) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.to_string_lossy().ends_with("-live.jsonl") {
            continue;
        }
        let from = read.entry(path.clone()).or_default();
        let mut text = String::new();
        let opened = File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(*from))?;
            file.read_to_string(&mut text)
        });
        if opened.is_ok()
            && let Some(end) = text.rfind('\n')
        {
            *from += end as u64 + 1;
            lines.extend(text[..end].lines().map(str::to_owned));
        }
    }
    lines
}
