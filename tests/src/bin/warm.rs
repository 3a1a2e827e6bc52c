//! Brings cold pages into the cache in one of several ways: one run of what `cargo
//! xtask bench prefetch` compares, on this host or on a test host.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use migrator::format;
use migrator::pagelist::PageIndexList;
use migrator_tests::PAGE_SIZE;
use migrator_tests::warm::arm::{self, Arm};
use migrator_tests::warm::shape::Shape;
use migrator_tests::warm::{asked_and_resident, cool, is_on_disk, read, resident};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(version)]
enum Warm {
    /// Make the files of a shape
    Make(Files),
    /// Make the files and cool them, run the arm, and look; prints one JSON object
    Trial(Trial),
    /// Advise the kernel of each page of a list
    Willneed { list: PathBuf },
    /// Read each page of a list
    Pread { list: PathBuf },
}

#[derive(Debug, clap::Args)]
struct Files {
    #[arg(long)]
    shape: Shape,
    /// Where the files are
    #[arg(long)]
    directory: PathBuf,
    /// Bytes of the file, where it is one
    #[arg(long)]
    size: u64,
    /// How many files, where they are many
    #[arg(long)]
    files: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct Trial {
    #[command(flatten)]
    files: Files,
    #[arg(long)]
    arm: Arm,
    #[arg(long, default_value = "migrator")]
    migrator: PathBuf,
}

fn main() -> Result<()> {
    match Warm::parse() {
        Warm::Make(files) => files.make()?,
        Warm::Trial(trial) => println!("{}", trial.run()?),
        Warm::Willneed { list } => arm::willneed(&format::read_file(&list)?)?,
        Warm::Pread { list } => arm::pread(&format::read_file(&list)?)?,
    }
    Ok(())
}

/// What was asked for and has not come for so long does not come any more.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many bytes and how many files are rehearsed with.
const FEW_BYTES: u64 = 8 << 20;
const FEW_FILES: u64 = 64;

impl Files {
    fn list(&self) -> Result<PageIndexList> {
        self.shape
            .list(&self.directory, self.size, self.files, self.seed)
    }

    /// A smaller one of the same shape, of other files.
    fn rehearsal(&self) -> Result<PageIndexList> {
        let directory = self.directory.join("rehearsal");
        let (size, files) = (self.size.min(FEW_BYTES), self.files.min(FEW_FILES));
        self.shape.list(&directory, size, files, self.seed)
    }

    fn make(&self) -> Result<()> {
        self.list()?;
        self.rehearsal()?;
        Ok(())
    }
}

impl Trial {
    fn run(&self) -> Result<Value> {
        let place = tempfile::tempdir().context("failed to create a directory")?;
        let (list, rehearsal) = (self.files.list()?, self.files.rehearsal()?);
        if is_on_disk(&list) {
            read(&list)?;
        }
        cool(&[&list, &rehearsal])?;
        // The arm's program is no part of what is measured: it does its work once, so
        // that all of it is in the cache, and translated where processors are emulated.
        let prepare = |list| self.arm.prepare(list, &self.migrator, place.path());
        prepare(&rehearsal)?.run()?;
        let mut ready = prepare(&list)?;
        let before = cpu_seconds()?;
        let start = Instant::now();
        let said = ready.run()?;
        let mut seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_seconds()? - before;
        // Advice is no more than that: pages may still be coming.
        let mut came = asked_and_resident(&list)?;
        let mut last = Instant::now();
        while came < list.pages() && last.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
            let now = asked_and_resident(&list)?;
            if now > came {
                (came, last) = (now, Instant::now());
                seconds = start.elapsed().as_secs_f64();
            }
        }
        let bytes = came * PAGE_SIZE as u64;
        Ok(json!({
            "pages": list.pages(),
            "missing": list.pages() - came,
            // The kernel may drop pages meanwhile.
            "unasked": resident(&list)?.saturating_sub(came),
            "seconds": said.unwrap_or(seconds),
            "bytes_per_second": bytes as f64 / said.unwrap_or(seconds),
            "cpu_seconds": cpu,
            "cpu_seconds_per_gib": cpu / (bytes as f64 / f64::from(1 << 30)),
        }))
    }
}

/// What the processes that have ended took of the CPUs, in the kernel as well.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("failed to ask for the CPU time")?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
