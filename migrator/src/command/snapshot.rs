//! `migrator snapshot`: what is cached of files and directories now.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use serde::Serialize;

use super::show::{count, percent, printable};
use super::track::writable;
use crate::cli::SnapshotArgs;
use crate::exit::Outcome;
use crate::format;
use crate::kernel;
use crate::signals::Signals;
use crate::snapshot::{Cached, Snapshot, Sum};

/// Files shown in the table.
const TABLE: usize = 20;

/// Runs the command. Until it writes the list, Ctrl-C ends it at once.
pub(super) fn run(args: SnapshotArgs) -> anyhow::Result<Outcome> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    match &args.output {
        Some(_) if to_stdout && io::stdout().is_terminal() => {
            bail!("failed to write the list: standard output is a terminal");
        }
        Some(output) if !to_stdout => writable(output)?,
        _ => {}
    }
    let began = Instant::now();
    let snapshot = Snapshot::take(&args.paths, args.min_heat, args.output.is_some())?;
    let time = began.elapsed();
    let mut out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stderr().lock()),
        false => Box::new(io::stdout().lock()),
    };
    let output = args.output.as_deref();
    let report = Report::new(&args, &snapshot, time);
    let mut text = Vec::new();
    match args.json {
        true => serde_json::to_writer(&mut text, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(text)),
        false => table(&mut text, &snapshot, output),
    }
    .context("failed to make the report")?;
    if let Some(output) = output {
        // No temporary file is left behind.
        let _signals = Signals::block()?;
        format::write_file(output, &snapshot.into_list())?;
    }
    match out.write_all(&text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed.context("failed to print")?,
    }
    Ok(Outcome::Done)
}

fn size(pages: u64) -> String {
    let bytes = pages.saturating_mul(kernel::page_size().into());
    ByteSize(bytes).display().iec().to_string()
}

/// Prints the files of which most is used, and what was left out.
fn table(out: &mut impl Write, snapshot: &Snapshot, output: Option<&Path>) -> io::Result<()> {
    writeln!(
        out,
        "{:>10}  {:>10}  {:>8}  {:>10}  {:>10}  FILE",
        "PAGES", "SIZE", "OF FILE", "REFERENCED", "ACTIVE"
    )?;
    let flags = |pages: u64| match snapshot.has_flags {
        true => pages.to_string(),
        false => "-".to_owned(),
    };
    let mut files: Vec<&Cached> = snapshot.files.iter().collect();
    files.sort_by_key(|file| std::cmp::Reverse((file.sum.active, file.sum.pages)));
    for Cached { file, sum } in files.iter().take(TABLE) {
        let whole = file.identity.size.div_ceil(kernel::page_size().into());
        writeln!(
            out,
            "{:>10}  {:>10}  {:>8}  {:>10}  {:>10}  {}",
            sum.pages,
            size(sum.pages),
            percent(sum.pages, whole),
            flags(sum.referenced),
            flags(sum.active),
            printable(&file.identity.path)
        )?;
    }
    if files.len() > TABLE {
        writeln!(out, "... and {} more files", files.len() - TABLE)?;
    }
    let Sum { pages, .. } = snapshot.sum();
    writeln!(
        out,
        "{} ({}) of {} are cached, of {} examined",
        count(pages, "page"),
        size(pages),
        count(files.len() as u64, "file"),
        snapshot.examined
    )?;
    for (reason, number) in &snapshot.left_out {
        writeln!(out, "left out: {number}: {reason}")?;
    }
    if let Some(output) = output {
        writeln!(out, "written to {}", printable(output))?;
    }
    Ok(())
}

/// `migrator snapshot --json`
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    /// `lru` or `residency`: whether pages are told apart.
    by: &'static str,
    mglru: bool,
    seconds: f64,
    page_size: u32,
    min_heat: u8,
    examined: u64,
    pages: u64,
    referenced: u64,
    active: u64,
    files: Vec<FileJson<'a>>,
    left_out: Vec<LeftOutJson>,
    output: Option<&'a Path>,
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: Cow<'a, str>,
    device: u64,
    inode: u64,
    size: u64,
    pages: u64,
    referenced: u64,
    active: u64,
}

#[derive(Serialize)]
struct LeftOutJson {
    reason: String,
    count: u64,
}

impl<'a> Report<'a> {
    fn new(args: &'a SnapshotArgs, snapshot: &'a Snapshot, time: Duration) -> Self {
        let left_out = snapshot.left_out.iter();
        let Sum {
            pages,
            referenced,
            active,
        } = snapshot.sum();
        Self {
            schema: "migrator.snapshot/1",
            by: match snapshot.has_flags {
                true => "lru",
                false => "residency",
            },
            mglru: kernel::lru_gen_enabled(Path::new("/sys")),
            seconds: time.as_secs_f64(),
            page_size: kernel::page_size(),
            min_heat: args.min_heat,
            examined: snapshot.examined,
            pages,
            referenced,
            active,
            files: snapshot.files.iter().map(FileJson::from).collect(),
            left_out: left_out
                .map(|(reason, count)| LeftOutJson {
                    reason: reason.to_string(),
                    count: *count,
                })
                .collect(),
            output: args.output.as_deref(),
        }
    }
}

impl<'a> From<&'a Cached> for FileJson<'a> {
    fn from(Cached { file, sum }: &'a Cached) -> Self {
        Self {
            path: file.identity.path.to_string_lossy(),
            device: file.identity.device,
            inode: file.identity.inode,
            size: file.identity.size,
            pages: sum.pages,
            referenced: sum.referenced,
            active: sum.active,
        }
    }
}
