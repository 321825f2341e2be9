//! Asks the daemons for their status while a run goes on.

use super::clock::Clock;
use super::live::{News, Wire};
use crate::daemon::Daemon;
use crate::report::StatusSample;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Ten a second: enough for a picture; verdicts on time come from the traffic and from BIRD.
const EVERY: Duration = Duration::from_millis(100);

/// A thread that asks.
#[derive(Debug)]
pub(super) struct Watch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<StatusSample>>,
}

impl Watch {
    pub(super) fn start(daemons: &BTreeMap<String, Daemon>, clock: Clock, wire: Wire) -> Self {
        let ours = daemons.values().filter(|d| d.kind.is_ours());
        let asked: Vec<_> = ours.map(|d| (d.host.clone(), d.control.clone(), d.frozen())).collect();
        let done = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            let mut moment = Duration::ZERO;
            loop {
                clock.sleep_until(moment);
                moment += EVERY;
                // The last look is after the end, so that counters are final.
                let last = told.load(Ordering::Acquire);
                for (host, control, _) in asked.iter().filter(|(_, _, frozen)| !frozen.load(Ordering::Acquire)) {
                    // A daemon that is being restarted does not answer, which is no news.
                    if let Some(snapshot) = Daemon::status(control) {
                        let sample = StatusSample::new(clock.now_ms(), host, &snapshot);
                        wire.tell(|| News::Status(sample.clone()));
                        samples.push(sample);
                    }
                }
                if last {
                    return samples;
                }
            }
        });
        Watch { done, thread }
    }

    pub(super) fn finish(self) -> Vec<StatusSample> {
        self.done.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
