//! The ways to bring pages into the cache that are compared.

use std::fs::{self, File};
use std::io::{Write, sink};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use migrator::format;
use migrator::pagelist::PageIndexList;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::Value;

use crate::PAGE_SIZE;

/// A way to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// `migrator prefetch`
    Migrator,
    /// `vmtouch -t` of the files
    Vmtouch,
    /// `cat` of the files
    Cat,
    /// POSIX_FADV_WILLNEED of each page, as happycache and pgfincore do
    Willneed,
    /// pread(2) of each page by one thread, as in the paper
    Pread,
    /// fio(1) with so many threads, each with its part of the same pages
    Fio(usize),
}

impl std::str::FromStr for Arm {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "migrator" => Ok(Self::Migrator),
            "vmtouch" => Ok(Self::Vmtouch),
            "cat" => Ok(Self::Cat),
            "willneed" => Ok(Self::Willneed),
            "pread" => Ok(Self::Pread),
            _ => {
                let threads = name.strip_prefix("fio-").and_then(|it| it.parse().ok());
                threads
                    .filter(|it| *it > 0)
                    .map(Self::Fio)
                    .ok_or_else(|| format!("there is no arm {name}"))
            }
        }
    }
}

/// An arm, ready to begin.
#[derive(Debug)]
pub struct Ready {
    command: Command,
    is_fio: bool,
}

/// How many files of the list one `cat` or `vmtouch` takes: as xargs does.
const ARGUMENTS: usize = 20_000;

/// The most bytes that fio reads at once.
const FIO_BLOCK: u64 = 1 << 20;

impl Arm {
    /// Writes what the arm needs into a directory.
    ///
    /// # Errors
    /// When files can't be written.
    pub fn prepare(self, list: &PageIndexList, migrator: &Path, place: &Path) -> Result<Ready> {
        let this = std::env::current_exe().context("failed to find this program")?;
        let path = place.join("list.pil");
        let mut command = Command::new(match self {
            Self::Migrator => migrator,
            Self::Vmtouch => Path::new("vmtouch"),
            Self::Cat => Path::new("cat"),
            Self::Willneed | Self::Pread => &this,
            Self::Fio(_) => Path::new("fio"),
        });
        let files = list.files.iter().map(|file| &file.identity.path);
        ensure!(list.files.len() <= ARGUMENTS, "too many files");
        match self {
            Self::Migrator => {
                write_list(list, &path)?;
                command.arg("prefetch").arg(&path).arg("--json");
            }
            Self::Vmtouch => {
                command.args(["-t", "-q"]).args(files);
            }
            Self::Cat => {
                command.args(files);
            }
            Self::Willneed => {
                write_list(list, &path)?;
                command.arg("willneed").arg(&path);
            }
            Self::Pread => {
                write_list(list, &path)?;
                command.arg("pread").arg(&path);
            }
            Self::Fio(threads) => fio(&mut command, list, threads, place)?,
        }
        Ok(Ready {
            command,
            is_fio: matches!(self, Self::Fio(_)),
        })
    }
}

impl Ready {
    /// Runs it to its end. Gives the seconds that it says it took, if it does: fio
    /// takes most of a second to set itself up, which is no limit of the storage.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&mut self) -> Result<Option<f64>> {
        let said = match self.is_fio {
            true => Stdio::piped(),
            false => Stdio::null(),
        };
        let output = self
            .command
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .with_context(|| format!("failed to start {}", self.program()))?;
        ensure!(
            output.status.success(),
            "{} failed: {}\n{}",
            self.program(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        if !self.is_fio {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = text
            .find('{')
            .and_then(|at| serde_json::from_str(&text[at..]).ok())
            .with_context(|| format!("failed to understand fio: {text}"))?;
        let milliseconds = report["jobs"][0]["read"]["runtime"]
            .as_f64()
            .context("fio does not say how long it took")?;
        Ok(Some(milliseconds / 1e3))
    }

    fn program(&self) -> std::path::Display<'_> {
        Path::new(self.command.get_program()).display()
    }
}

fn write_list(list: &PageIndexList, path: &Path) -> Result<()> {
    let mut writer = format::Writer::new(Vec::new(), list.page_size)?;
    for file in &list.files {
        writer.file(file)?;
    }
    fs::write(path, writer.finish()?).with_context(|| format!("failed to write {}", path.display()))
}

/// The reads of the list for fio: a log for each thread, which has the next part
/// of the pages, with as little readahead as possible where they are not all.
fn fio(command: &mut Command, list: &PageIndexList, threads: usize, place: &Path) -> Result<()> {
    let mut reads = Vec::new();
    for (number, file) in list.files.iter().enumerate() {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for run in &file.runs {
            match joined.last_mut() {
                Some((_, end)) if *end == run.index => *end = run.end(),
                _ => joined.push((run.index, run.end())),
            }
        }
        for (first, end) in joined {
            let step = FIO_BLOCK / PAGE_SIZE as u64;
            let mut at = first;
            while at < end {
                let pages = step.min(end - at);
                reads.push((number, at * PAGE_SIZE as u64, pages * PAGE_SIZE as u64));
                at += pages;
            }
        }
    }
    let is_all = list.files.len() == 1 && list.files[0].runs.len() == 1;
    let mut logs = Vec::new();
    for (number, part) in reads
        .chunks(reads.len().div_ceil(threads).max(1))
        .enumerate()
    {
        let path = place.join(format!("fio-{number}"));
        let mut log = String::from("fio version 2 iolog\n");
        let mut files: Vec<usize> = part.iter().map(|read| read.0).collect();
        files.dedup();
        let name = |file: usize| list.files[file].identity.path.display();
        for file in &files {
            log += &format!("{} add\n", name(*file));
        }
        let mut open = None;
        for (file, offset, length) in part {
            if open != Some(*file) {
                if let Some(before) = open {
                    log += &format!("{} close\n", name(before));
                }
                log += &format!("{} open\n", name(*file));
                open = Some(*file);
            }
            log += &format!("{} read {offset} {length}\n", name(*file));
        }
        fs::write(&path, log).with_context(|| format!("failed to write {}", path.display()))?;
        logs.push(path.display().to_string());
    }
    command
        .args(["--name=prefetch", "--ioengine=psync", "--rw=read"])
        .args([
            "--invalidate=0",
            "--group_reporting",
            "--output-format=json",
        ])
        .arg(format!(
            "--fadvise_hint={}",
            if is_all { "sequential" } else { "random" }
        ))
        .arg(format!("--numjobs={}", logs.len()))
        .arg(format!("--read_iolog={}", logs.join(":")));
    Ok(())
}

/// Advises page after page.
///
/// # Errors
/// When a file can't be opened.
pub fn willneed(list: &PageIndexList) -> Result<()> {
    each_page(list, |file, offset| {
        let page = PAGE_SIZE as i64;
        posix_fadvise(
            file,
            offset as i64,
            page,
            PosixFadviseAdvice::POSIX_FADV_WILLNEED,
        )?;
        Ok(())
    })
}

/// Reads page after page.
///
/// # Errors
/// When a file can't be read.
pub fn pread(list: &PageIndexList) -> Result<()> {
    let mut buffer = [0; PAGE_SIZE];
    each_page(list, |file, offset| {
        file.read_at(&mut buffer, offset)?;
        Ok(())
    })?;
    sink().write_all(&buffer)?;
    Ok(())
}

fn each_page(
    list: &PageIndexList,
    mut visit: impl FnMut(&File, u64) -> std::io::Result<()>,
) -> Result<()> {
    for file in &list.files {
        let path = &file.identity.path;
        let open =
            File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
        for page in file.runs.iter().flat_map(|run| run.index..run.end()) {
            visit(&open, page * PAGE_SIZE as u64)
                .with_context(|| format!("failed to read {}", path.display()))?;
        }
    }
    Ok(())
}
