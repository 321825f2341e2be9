//! Makes what User-Mode Linux needs and no package has: the virtual-time kernel, from Debian's source package, and a
//! small library for processors with AMX. Both are kept in the cache.

use super::cache;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const CONFIG: &str = include_str!("../../kernel/linux-umlsim.config");
const XSTATE: &str = include_str!("../../kernel/xstate.c");

/// Debian's source package; the kernel that it was all tried with.
const SOURCE: &str = "/usr/src/linux-source-6.1.tar.xz";

/// A name that changes with what the thing is made of.
fn fingerprint(text: &str) -> String {
    // FNV-1a: no secret, no attacker, and the same in every build of the lab.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// Where the virtual-time kernel is once it is built.
pub(super) fn image() -> Result<PathBuf> {
    Ok(cache()?.join(format!("linux-umlsim-6.1-{}", &fingerprint(CONFIG)[..8])))
}

/// The library that lets UML run on processors with AMX; `None` on others. See `kernel/xstate.c`.
pub(super) fn xstate_shim() -> Result<Option<PathBuf>> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    if !cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" amx_tile")) {
        return Ok(None);
    }
    let library = cache()?.join(format!("uml-xstate-{}.so", &fingerprint(XSTATE)[..8]));
    if !library.is_file() {
        // Under another name first: two runs may do this at the same time.
        let unfinished = library.with_extension(format!("{}.tmp", std::process::id()));
        let source = unfinished.with_extension("c");
        std::fs::write(&source, XSTATE).with_context(|| format!("cannot write {}", source.display()))?;
        let status = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&unfinished, &source])
            .stdin(Stdio::null())
            .status()
            .context("cannot start cc, which UML on a processor with AMX needs (package gcc)")?;
        std::fs::remove_file(&source)?;
        if !status.success() {
            bail!("cc could not compile kernel/xstate.c ({status})");
        }
        std::fs::rename(&unfinished, &library)?;
    }
    Ok(Some(library))
}

/// Builds the virtual-time kernel unless it is there.
pub fn build() -> Result<()> {
    let image = image()?;
    if image.is_file() {
        println!("the virtual-time kernel is there: {}", image.display());
        return Ok(());
    }
    if !Path::new(SOURCE).is_file() {
        bail!("there is no {SOURCE}: `cargo lab setup` installs it (package linux-source-6.1)");
    }
    let folder = cache()?.join("build");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let log = folder.join("build.log");
    let tree = folder.join("linux-source-6.1");
    let config = folder.join("linux-umlsim.config");
    std::fs::write(&config, CONFIG)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    println!("building the virtual-time kernel: 10 to 20 minutes on two cores, once; its log is {}", log.display());
    let source = ["tar", "--extract", "--file", SOURCE, "--directory", &folder.to_string_lossy()].map(str::to_owned);
    step(1, "unpacking the source", &folder, &log, &source)?;
    step(2, "choosing the options", &tree, &log, &words("make ARCH=um defconfig"))?;
    let merge = ["scripts/kconfig/merge_config.sh", "-m", ".config", &config.to_string_lossy()].map(str::to_owned);
    let merge = [words("env ARCH=um"), merge.to_vec()].concat();
    step(3, "adding ours", &tree, &log, &merge)?;
    step(4, "settling the rest", &tree, &log, &words("make ARCH=um olddefconfig"))?;
    step(5, "compiling", &tree, &log, &words(&format!("make ARCH=um --jobs={jobs} linux")))?;
    let built = tree.join("linux");
    let unfinished = image.with_extension("tmp");
    std::fs::copy(&built, &unfinished).with_context(|| format!("cannot copy {}", built.display()))?;
    let _ = Command::new("strip").arg(&unfinished).status(); // only saves room
    std::fs::rename(&unfinished, &image)?;
    std::fs::remove_dir_all(&folder)?;
    println!("done: {}", image.display());
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// One step, with a line of progress each quarter of a minute: what the build says goes to its log.
fn step(number: u32, what: &str, folder: &Path, log: &Path, command: &[String]) -> Result<()> {
    let begun = Instant::now();
    println!("[{number}/5] {what}");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {}", command[0]))?;
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let log_of_progress = log.to_owned();
    let progress = std::thread::spawn(move || {
        // Ends at once when `done` is dropped.
        while ended.recv_timeout(std::time::Duration::from_secs(15)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            let text = std::fs::read_to_string(&log_of_progress).unwrap_or_default();
            let files = text.lines().filter(|line| line.trim_start().starts_with("CC ")).count();
            println!("[{number}/5] {files} files compiled after {} s", begun.elapsed().as_secs());
        }
    });
    let status = child.wait()?;
    drop(done);
    let _ = progress.join();
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("{} failed ({status}); the last lines of {} are:\n{last}", command.join(" "), log.display());
    }
    Ok(())
}
