//! One run from outside: a folder, a kernel, the engine in it, and the report that it leaves.

use crate::engine::Job;
use crate::kernel::Place;
use crate::report::Report;
use crate::scenario::Loaded;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A guest needs some seconds of the machine for a second of its own when there is much traffic; this many times the
/// scenario's length, and never less than [`LEAST`], is not slow any more but stuck.
const PATIENCE: u32 = 10;
const LEAST: Duration = Duration::from_secs(600);

/// What else a run is to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Record packets at all hosts.
    pub pcap: bool,
    /// Print what happens as it happens.
    pub live: bool,
}

/// Where a run left everything: logs, configurations, captures, `report.json`.
pub fn folder(name: &str, seed: u64) -> Result<PathBuf> {
    let target = binaries()?;
    let target = target.parent().context("the lab's program is in no folder of cargo's")?;
    Ok(target.join("lab").join(format!("{name}-{seed}-{}", std::process::id())))
}

/// The folder of this program, where cargo puts the daemons too.
pub(crate) fn binaries() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(program.parent().context("this program is in no folder")?.to_owned())
}

/// Builds the daemons that a scenario needs, as this program was built.
pub fn build_daemons() -> Result<()> {
    let mut command = crate::setup::cargo();
    command.args(["build", "--quiet", "--package", "mspmb", "--package", "msp-core"]).stdin(Stdio::null());
    if binaries()?.ends_with("release") {
        command.arg("--release");
    }
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cannot build mspmb and msp-core; cargo says why above");
    }
    Ok(())
}

/// Runs a scenario once. The folder stays for who wants to look; its name is in the report's notes.
pub async fn once(loaded: &Loaded, place: &Place, seed: u64, options: &Options) -> Result<(Report, PathBuf)> {
    let folder = folder(&loaded.name, seed)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let job = Job {
        name: loaded.name.clone(),
        merged: loaded.merged.clone(),
        set: loaded.set.clone(),
        seed,
        kernel: place.kernel,
        folder: folder.clone(),
        binaries: binaries()?,
        when: rfc3339(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs()),
        revision: revision(),
        pcap: options.pcap,
        live: options.live,
        terminal: std::io::IsTerminal::is_terminal(&std::io::stdout()),
    };
    let file = folder.join("job.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&job)?)?;
    let program = std::env::current_exe()?;
    let command = [&program.to_string_lossy(), "inside", &file.to_string_lossy()].map(str::to_owned);
    let patience = (loaded.scenario.length.0 * PATIENCE).max(LEAST);
    let shared: [&Path; 2] = [&folder, &job.binaries];
    let status = place.run(&command, &shared, patience).await?;
    let logs = folder.display();
    if status != 0 {
        bail!("the run of {} with seed {seed} failed (status {status}); its logs are in {logs}", loaded.name);
    }
    let report =
        std::fs::read(folder.join("report.json")).with_context(|| format!("the run left no report in {logs}"))?;
    Ok((serde_json::from_slice(&report).context("the run's report cannot be read: a bug of the lab")?, folder))
}

/// Runs a scenario once for its report alone. What it leaves is kept only where it failed: a measurement may have a thousand runs.
pub(crate) fn measure(loaded: &Loaded, place: &Place, seed: u64) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    let (report, folder) = runtime.block_on(once(loaded, place, seed, &Options::default()))?;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(report)
}

/// The project's revision, with "-dirty" where files were changed.
pub(crate) fn revision() -> Option<String> {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Seconds since 1970 as UTC in RFC 3339.
fn rfc3339(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    // The Gregorian calendar in eras of 400 years, years beginning in March so that the leap day comes last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (month, day) = ((month + 2) % 12 + 1, day - (153 * month + 2) / 5 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_right_around_leap_days() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_309_628, "2026-11-22T01:07:08Z"),
        ] {
            assert_eq!(super::rfc3339(unix), text);
        }
    }
}
