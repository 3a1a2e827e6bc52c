//! `migrator list diff`: two lists, page by page.

use std::borrow::Cow;
use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use super::read_stdin_once;
use crate::cli::DiffArgs;
use crate::command::show::{count, printable};
use crate::format;
use crate::pagelist::diff::{Counts, Diff, FileDiff, Version};

/// Files shown in the table.
const TABLE: usize = 20;

/// Runs the command.
pub(super) fn run(args: &DiffArgs) -> anyhow::Result<()> {
    read_stdin_once(&[args.a.clone(), args.b.clone()])?;
    let (a, b) = (format::read_file(&args.a)?, format::read_file(&args.b)?);
    let page_size = a.page_size;
    let diff = Diff::new(a, b).with_context(|| {
        let (a, b) = (args.a.display(), args.b.display());
        format!("failed to compare {b} with {a}")
    })?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = match args.json {
        true => print_json(&mut out, &diff, page_size),
        false => print(&mut out, &diff),
    };
    match printed.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("failed to write to standard output"),
    }
}

fn print(out: &mut impl Write, diff: &Diff) -> io::Result<()> {
    let line = |out: &mut dyn Write, counts: &Counts, name: &str| {
        let Counts {
            only_a,
            only_b,
            hotter,
            colder,
            ..
        } = counts;
        let both = counts.both();
        writeln!(
            out,
            "{only_a:>10} {only_b:>10} {both:>10} {hotter:>10} {colder:>10}  {name}"
        )
    };
    let differs = |file: &&FileDiff| file.counts.differing() > 0 || file.version != Version::Same;
    let files = || diff.files.iter().filter(differs);
    writeln!(
        out,
        "{:>10} {:>10} {:>10} {:>10} {:>10}  FILE",
        "ONLY IN A", "ONLY IN B", "IN BOTH", "HOTTER", "COLDER"
    )?;
    for file in files().take(TABLE) {
        let version = match file.version {
            Version::Same => "",
            Version::Changed => " (changed)",
            Version::Replaced => " (another file)",
        };
        let name = printable(&file.path) + version;
        line(out, &file.counts, &name)?;
    }
    let shown = files().count();
    if shown > TABLE {
        writeln!(out, "... and {} more files", shown - TABLE)?;
    }
    let alike = (diff.files.len() - shown) as u64;
    let name = format!("all, with {} alike", count(alike, "file"));
    line(out, &diff.counts, &name)
}

/// `migrator list diff --json`
#[derive(Serialize)]
struct DiffJson<'a> {
    schema: &'static str,
    page_size: u32,
    #[serde(flatten)]
    counts: CountsJson,
    files: Vec<FileJson<'a>>,
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: Cow<'a, str>,
    version: &'static str,
    #[serde(flatten)]
    counts: CountsJson,
}

#[derive(Serialize)]
struct CountsJson {
    only_a: u64,
    only_b: u64,
    both: u64,
    hotter: u64,
    colder: u64,
}

impl<'a> From<&'a FileDiff> for FileJson<'a> {
    fn from(file: &'a FileDiff) -> Self {
        Self {
            path: file.path.to_string_lossy(),
            version: match file.version {
                Version::Same => "same",
                Version::Changed => "changed",
                Version::Replaced => "another file",
            },
            counts: (&file.counts).into(),
        }
    }
}

impl From<&Counts> for CountsJson {
    fn from(counts: &Counts) -> Self {
        Self {
            only_a: counts.only_a,
            only_b: counts.only_b,
            both: counts.both(),
            hotter: counts.hotter,
            colder: counts.colder,
        }
    }
}

fn print_json(out: &mut impl Write, diff: &Diff, page_size: u32) -> io::Result<()> {
    let diff = DiffJson {
        schema: "migrator.list-diff/1",
        page_size,
        counts: (&diff.counts).into(),
        files: diff.files.iter().map(FileJson::from).collect(),
    };
    serde_json::to_writer(&mut *out, &diff)?;
    writeln!(out)
}
