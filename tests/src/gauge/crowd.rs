//! Many files, many processes, a large cache, for a real tracker of the whole host:
//! what it takes in the kernel and beside it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use migrator::format;
use migrator::pagelist::ACTIVE;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::simulation::SMALL;
use crate::PAGE_SIZE;
use crate::random::Random;

/// What there is much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Much {
    /// Small files, opened, read as a whole and closed, some thousand a second
    Files,
    /// Processes that read a page of a file of their own ten times a second
    Processes,
    /// MiB of a file, read in order once, and then pages at random
    Cache,
    /// Chunks of a file, a page of each, which are used while the tracker is stopped;
    /// a tenth of them is hot
    Overflow,
}

/// Files that are read in a second, at most.
const FILES_PER_SECOND: u64 = 10_000;

/// Pages of the file of a process.
const OF_PROCESS: u64 = 64;

/// Tracks the host while there is so much of something, for so long, below a
/// directory.
///
/// # Errors
/// When it can't be tracked, which takes root, or there is no room for the files.
pub fn track(
    much: Much,
    count: u64,
    time: Duration,
    migrator: &Path,
    place: &Path,
) -> Result<Value> {
    let place = tempfile::tempdir_in(place).context("failed to create a directory")?;
    let mut work = Work::prepare(much, count, place.path())?;
    let tracker = Tracker::start(migrator, place.path())?;
    let kernel_before = tracker.kernel_bytes()?;
    let (cpu, start) = (tracker.cpu_seconds()?, Instant::now());
    work.run(time, tracker.pid())?;
    // What was used last is taken over, and an epoch ends.
    thread::sleep(Duration::from_millis(1100));
    let (cpu, seconds) = (tracker.cpu_seconds()? - cpu, start.elapsed().as_secs_f64());
    let kernel = tracker.kernel_bytes()?;
    let [memory, shared] = ["VmRSS:", "RssFile:"].map(|key| tracker.status(key));
    let (list, log) = tracker.end()?;
    let ours = list
        .files
        .iter()
        .filter(|file| file.identity.path.starts_with(place.path()));
    let (mut files, mut pages, mut hot) = (0_u64, 0, 0);
    for file in ours {
        files += 1;
        pages += file.pages();
        let again = file.runs.iter().filter(|run| run.heat >= ACTIVE);
        hot += again.map(|run| u64::from(run.pages)).sum::<u64>();
    }
    Ok(json!({
        "used_files": work.files(),
        "used_pages": work.pages(),
        "hot_pages": work.hot_pages(),
        "known_files": files,
        "known_pages": pages,
        "known_hot_pages": hot,
        "said": log,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "kernel_bytes_before": kernel_before,
        "kernel_bytes": kernel,
        "memory_bytes": memory?,
        "shared_bytes": shared?,
        "peak_bytes": getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() as u64 * 1024,
    }))
}

/// Reads a page of a file ten times a second, until it is killed.
///
/// # Errors
/// When the file can't be read.
pub fn process(path: &Path) -> Result<()> {
    let file = File::open(path).context("failed to open the file")?;
    let mut page = [0; PAGE_SIZE];
    for index in 0.. {
        file.read_exact_at(&mut page, index % OF_PROCESS * PAGE_SIZE as u64)?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Who uses what.
enum Work {
    Files(Vec<PathBuf>),
    Processes(Vec<Child>),
    Cache { file: File, pages: u64 },
    Overflow { file: File, chunks: u64 },
}

impl Work {
    fn prepare(much: Much, count: u64, place: &Path) -> Result<Self> {
        let create = |name: &str, pages: u64| -> Result<PathBuf> {
            let path = place.join(name);
            let file = File::create(&path).context("failed to create a file")?;
            // A hole takes no room on the disk, and as much page cache as any data.
            file.set_len(pages * PAGE_SIZE as u64)?;
            Ok(path)
        };
        Ok(match much {
            Much::Files => {
                let mut files = Vec::new();
                for number in 0..count {
                    let directory = format!("{:04}", number / 1000);
                    if number % 1000 == 0 {
                        fs::create_dir(place.join(&directory))?;
                    }
                    files.push(create(&format!("{directory}/{number:07}"), SMALL)?);
                }
                Self::Files(files)
            }
            Much::Processes => {
                let this = std::env::current_exe().context("failed to find this program")?;
                let mut processes = Self::Processes(Vec::new());
                for number in 0..count {
                    let path = create(&format!("{number:07}"), OF_PROCESS)?;
                    let child = Command::new(&this).arg("process").arg(path).spawn();
                    if let Self::Processes(children) = &mut processes {
                        children.push(child.context("failed to start a process")?);
                    }
                }
                processes
            }
            Much::Cache => {
                let pages = count * 256;
                let file = File::open(create("cache", pages)?)?;
                Self::Cache { file, pages }
            }
            Much::Overflow => {
                let file = File::open(create("overflow", count * 512)?)?;
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
                Self::Overflow {
                    file,
                    chunks: count,
                }
            }
        })
    }

    fn run(&mut self, time: Duration, tracker: Pid) -> Result<()> {
        let end = Instant::now() + time;
        let mut random = Random::new(1);
        match self {
            Self::Files(files) => {
                let mut tenth = Instant::now();
                for (number, path) in files.iter().cycle().enumerate() {
                    fs::read(path)?;
                    if number % (FILES_PER_SECOND as usize / 10) == 0 {
                        tenth += Duration::from_millis(100);
                        thread::sleep(tenth.saturating_duration_since(Instant::now()));
                        // Each has been read when it ends.
                        if Instant::now() >= end && number >= files.len() {
                            break;
                        }
                    }
                }
            }
            Self::Processes(_) => thread::sleep(time),
            Self::Cache { file, pages } => {
                let mut buffer = vec![0; 1 << 20];
                for start in (0..*pages).step_by(256) {
                    file.read_exact_at(&mut buffer, start * PAGE_SIZE as u64)?;
                }
                let end = Instant::now() + time;
                while Instant::now() < end {
                    for _ in 0..1000 {
                        let at = random.below(*pages) * PAGE_SIZE as u64;
                        file.read_exact_at(&mut buffer[..PAGE_SIZE], at)?;
                    }
                }
            }
            Self::Overflow { file, chunks } => {
                let mut page = [0; PAGE_SIZE];
                kill(tracker, Signal::SIGSTOP)?;
                // The hot tenth is used after each other page, so all of it soon.
                let mut order = random.shuffled(0..*chunks);
                let hot = order.split_off(order.len() - order.len() / 10);
                let mut hot = hot.iter().cycle();
                for cold in order {
                    for chunk in [*hot.next().unwrap_or(&0), cold] {
                        file.read_exact_at(&mut page, chunk * 512 * PAGE_SIZE as u64)?;
                    }
                }
                kill(tracker, Signal::SIGCONT)?;
            }
        }
        Ok(())
    }

    fn files(&self) -> u64 {
        match self {
            Self::Files(files) => files.len() as u64,
            Self::Processes(children) => children.len() as u64,
            Self::Cache { .. } | Self::Overflow { .. } => 1,
        }
    }

    /// Pages that are used, if all are.
    fn pages(&self) -> u64 {
        match self {
            Self::Files(files) => files.len() as u64 * SMALL,
            Self::Processes(children) => children.len() as u64 * OF_PROCESS,
            Self::Cache { pages, .. } => *pages,
            Self::Overflow { chunks, .. } => *chunks,
        }
    }

    /// Those that are hot among others.
    fn hot_pages(&self) -> u64 {
        match self {
            Self::Overflow { chunks, .. } => chunks / 10,
            _ => 0,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Self::Processes(children) = self {
            for child in children {
                // Both fail only when it has ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// `migrator track --all`, as a person would call it.
struct Tracker {
    child: Child,
    place: PathBuf,
}

impl Tracker {
    fn start(migrator: &Path, place: &Path) -> Result<Self> {
        let mut child = Command::new(migrator)
            .args([
                "track",
                "--all",
                "--source",
                "ebpf",
                "--windows",
                "never",
                "--output",
            ])
            .arg(place.join("list.pil"))
            .stdout(Stdio::null())
            .stderr(Stdio::from(File::create(place.join("log"))?))
            .spawn()
            .with_context(|| format!("failed to start {}", migrator.display()))?;
        let log = File::open(place.join("log"))?;
        let mut log = BufReader::new(log);
        let mut said = String::new();
        while !said.contains("observing with source ebpf") {
            ensure!(child.try_wait()?.is_none(), "the tracker has ended: {said}");
            thread::sleep(Duration::from_millis(20));
            log.read_line(&mut said)?;
        }
        Ok(Self {
            child,
            place: place.to_owned(),
        })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))
    }

    /// A size in bytes of its status.
    fn status(&self, key: &str) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(1024 * kib.with_context(|| format!("its status has no {key}"))?)
    }

    /// What it has computed, in user and kernel mode.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = self.read("stat")?;
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        // utime and stime (proc_pid_stat(5)), of which there are 100 a second.
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / 100.0)
    }

    /// What its maps and programs take in the kernel, as the kernel counts it: exactly
    /// from Linux 6.4 on.
    fn kernel_bytes(&self) -> Result<u64> {
        let directory = format!("/proc/{}/fdinfo", self.child.id());
        let mut bytes = 0;
        for entry in
            fs::read_dir(&directory).with_context(|| format!("failed to read {directory}"))?
        {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            bytes += line
                .and_then(|line| line.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(bytes)
    }

    /// Ends it; gives its list, and what it warned of.
    fn end(mut self) -> Result<(migrator::pagelist::PageIndexList, Vec<String>)> {
        kill(self.pid(), Signal::SIGINT)?;
        let status = self.child.wait()?;
        let log = fs::read_to_string(self.place.join("log"))?;
        ensure!(status.success(), "the tracker has failed: {log}");
        let warnings = log.lines().filter(|line| line.contains("warning"));
        let warnings = warnings.map(str::to_owned).collect();
        Ok((format::read_file(&self.place.join("list.pil"))?, warnings))
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // It has ended, or nobody needs it any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
