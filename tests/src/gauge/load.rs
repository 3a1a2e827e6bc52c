//! Work on a cached file whose speed tells what it costs to be observed.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::unistd::Pid;
use serde_json::Value;

use crate::PAGE_SIZE;
use crate::random::Random;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// pread(2) of 4 KiB anywhere in the file
    Random,
    /// pread(2) of 128 KiB, one after the other
    Sequential,
    /// A touch of each 64 KiB of a mapping, which the kernel maps with one fault
    Faults,
    /// fio(1): random reads of 4 KiB
    Fio,
}

/// Bytes of the file: more than the CPU's caches, so that reads cost what they
/// cost elsewhere.
pub const FILE: u64 = 256 << 20;

/// Bytes that a fault maps (`fault_around_bytes` is 64 KiB by default).
const AROUND: usize = 16 * PAGE_SIZE;

/// How long a part of a trial takes at least; the trial's number is the median of
/// its parts, so that another program's burst does not count.
const PART: Duration = Duration::from_millis(10);

/// Work, ready to begin.
#[derive(Debug)]
pub struct Load {
    kind: Kind,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    mapping: NonNull<u8>,
    random: Random,
    /// The next byte, where that is not random.
    next: usize,
}

/// Nanoseconds per operation.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// The median of the parts of the time.
    pub median: f64,
    /// Of the whole time.
    pub mean: f64,
}

impl Load {
    /// Opens the file, which is made where it is not there, and reads it once.
    ///
    /// # Errors
    /// When it can't be made, read or mapped.
    pub fn new(kind: Kind, path: &Path, seed: u64) -> Result<Self> {
        let failed = || format!("failed to prepare {}", path.display());
        if path.metadata().map(|file| file.len()).ok() != Some(FILE) {
            let mut file = File::create(path).with_context(failed)?;
            let mut numbers = Random::new(1);
            let mut block = vec![0; 1 << 20];
            for _ in 0..FILE >> 20 {
                for word in block.chunks_exact_mut(8) {
                    word.copy_from_slice(&numbers.next().to_le_bytes());
                }
                std::io::Write::write_all(&mut file, &block).with_context(failed)?;
            }
            file.sync_all().with_context(failed)?;
        }
        let file = File::open(path).with_context(failed)?;
        let mut buffer = vec![0; 128 << 10];
        for offset in (0..FILE).step_by(buffer.len()) {
            file.read_exact_at(&mut buffer, offset)
                .with_context(failed)?;
        }
        let length = NonZeroUsize::new(FILE as usize).context("an empty file")?;
        // SAFETY: a new mapping at an address of the kernel's choice. Nobody
        // writes to the file or makes it shorter.
        let mapping = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                &file,
                0,
            )
        };
        Ok(Self {
            kind,
            path: path.to_owned(),
            file,
            buffer,
            mapping: mapping.with_context(failed)?.cast(),
            random: Random::new(seed << 32),
            next: 0,
        })
    }

    /// Works for so long, after a moment that does not count, and on one CPU: two
    /// are seldom equally fast. Who observes is free to take another.
    ///
    /// # Errors
    /// When the file can't be read, or fio fails.
    pub fn trial(&mut self, time: Duration) -> Result<Cost> {
        let this = Pid::from_raw(0);
        let usual = sched_getaffinity(this).context("failed to ask for our CPUs")?;
        let last = (0..CpuSet::count()).rfind(|cpu| usual.is_set(*cpu) == Ok(true));
        let mut one = CpuSet::new();
        one.set(last.context("we have no CPU")?)?;
        sched_setaffinity(this, &one).context("failed to choose a CPU")?;
        let cost = self.work(time);
        sched_setaffinity(this, &usual).context("failed to leave a CPU")?;
        cost
    }

    fn work(&mut self, time: Duration) -> Result<Cost> {
        if self.kind == Kind::Fio {
            return self.fio(time);
        }
        self.part()?;
        let (mut parts, mut operations, mut spent) = (Vec::new(), 0, Duration::ZERO);
        while spent < time {
            let (part_operations, part) = self.part()?;
            parts.push(part.as_nanos() as f64 / part_operations as f64);
            operations += part_operations;
            spent += part;
        }
        parts.sort_by(f64::total_cmp);
        Ok(Cost {
            median: parts[parts.len() / 2],
            mean: spent.as_nanos() as f64 / operations as f64,
        })
    }

    /// How much is done in how much time.
    fn part(&mut self) -> Result<(u64, Duration)> {
        let (began, mut operations) = (Instant::now(), 0);
        loop {
            for _ in 0..64 {
                self.operation()?;
            }
            operations += 64;
            let spent = began.elapsed();
            if spent >= PART {
                return Ok((operations, spent));
            }
        }
    }

    fn operation(&mut self) -> Result<()> {
        match self.kind {
            Kind::Random | Kind::Fio => {
                let page = self.random.below(FILE / PAGE_SIZE as u64);
                let buffer = &mut self.buffer[..PAGE_SIZE];
                self.file.read_exact_at(buffer, page * PAGE_SIZE as u64)?;
            }
            Kind::Sequential => {
                self.file
                    .read_exact_at(&mut self.buffer, self.next as u64)?;
                self.next = (self.next + self.buffer.len()) % FILE as usize;
            }
            Kind::Faults => {
                // SAFETY: inside the mapping, which can be read.
                unsafe { self.mapping.add(self.next).read_volatile() };
                self.next = (self.next + AROUND) % FILE as usize;
                if self.next == 0 {
                    // SAFETY: the whole mapping, of which nobody holds a
                    // reference. Its pages are mapped again by new faults.
                    unsafe {
                        madvise(
                            self.mapping.cast(),
                            FILE as usize,
                            MmapAdvise::MADV_DONTNEED,
                        )
                    }?;
                }
            }
        }
        Ok(())
    }

    fn fio(&self, time: Duration) -> Result<Cost> {
        let output = Command::new("fio")
            .args(["--name=read", "--readonly", "--rw=randread", "--bs=4k"])
            .args(["--ioengine=psync", "--invalidate=0", "--norandommap"])
            .args(["--time_based", "--output-format=json", "--filename"])
            .arg(&self.path)
            .arg(format!("--size={FILE}"))
            .arg(format!("--runtime={}ms", time.as_millis()))
            .output()
            .context("failed to start fio (Debian package fio)")?;
        ensure!(output.status.success(), "fio failed: {output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).context("fio told no JSON")?;
        let reads = report["jobs"][0]["read"]["iops"].as_f64();
        let cost = 1e9 / reads.context("fio told no iops")?;
        Ok(Cost {
            median: cost,
            mean: cost,
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, of which no reference is left.
        let _ = unsafe { munmap(self.mapping.cast(), FILE as usize) };
    }
}
