//! `migrator list`: lists of lists and of text.

mod diff;
mod from_text;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use serde::Serialize;

use super::show::{count, printable};
use crate::cli::{FilterArgs, ListArgs, ListCommand, MergeArgs, OutputArgs};
use crate::exit::{Outcome, Usage};
use crate::format::{self, FormatError, MAX_RUNS};
use crate::pagelist::PageIndexList;
use crate::pagelist::filter::Filter;
use crate::pagelist::merge::Merge;

/// How many replaced files are named.
const NAMED_REPLACED: usize = 5;

/// Runs the command.
pub(super) fn run(args: ListArgs) -> anyhow::Result<Outcome> {
    match args.command {
        ListCommand::Merge(args) => merge(&args)?,
        ListCommand::Filter(args) => filter(&args)?,
        ListCommand::Diff(args) => diff::run(&args)?,
        ListCommand::FromText(args) => from_text::run(&args)?,
    }
    Ok(Outcome::Done)
}

/// `migrator list merge`
fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    check_output(&args.output)?;
    read_stdin_once(&args.lists)?;
    let mut lists = args.lists.iter();
    let first = lists.next().context("there is no list to merge")?;
    let mut merge = Merge::new(format::read_file(first)?);
    for path in lists {
        let list = format::read_file(path)?;
        let added = merge.add(list);
        added.with_context(|| format!("failed to merge {}", path.display()))?;
        // What is in memory is limited as it is for a list.
        if merge.runs() as u64 > MAX_RUNS {
            let what = "runs";
            let limit = MAX_RUNS;
            let too_large = FormatError::TooLarge { what, limit };
            return Err(too_large).context("failed to merge the lists");
        }
    }
    let (list, replaced) = merge.into_list();
    for path in replaced.iter().take(NAMED_REPLACED) {
        let path = printable(path);
        crate::say!("warning: {path} was several files one after the other: the newest is kept");
    }
    if replaced.len() > NAMED_REPLACED {
        let more = replaced.len() - NAMED_REPLACED;
        crate::say!("warning: so were {}", count(more as u64, "more file"));
    }
    write(&args.output, &list, &replaced, &BTreeMap::new())
}

/// `migrator list filter`
fn filter(args: &FilterArgs) -> anyhow::Result<()> {
    check_output(&args.output)?;
    let absolute = |paths: &[PathBuf]| paths.iter().map(|it| absolute(it)).collect();
    let below: anyhow::Result<Vec<PathBuf>> = absolute(&args.paths);
    let exclude: anyhow::Result<Vec<PathBuf>> = absolute(&args.exclude);
    let (below, exclude) = (below?, exclude?);
    let mut list = format::read_file(&args.list)?;
    let budget = args.budget.map(|budget| budget.as_u64());
    let filter = Filter {
        min_heat: args.min_heat,
        below,
        exclude,
        max_pages: budget.map(|bytes| bytes / u64::from(list.page_size)),
    };
    filter.apply(&mut list);
    write(&args.output, &list, &[], &BTreeMap::new())
}

/// Returns a path as lists have it. What it names need not be on this host.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(path)
        .with_context(|| format!("failed to make {} absolute", path.display()))?;
    let is_parent = |it| matches!(it, std::path::Component::ParentDir);
    match absolute.components().any(is_parent) {
        true => Err(Usage(format!("{} has a .. in it", path.display())).into()),
        false => Ok(absolute),
    }
}

/// Refuses to read standard input twice.
fn read_stdin_once(lists: &[PathBuf]) -> anyhow::Result<()> {
    let stdin = lists.iter().filter(|it| *it == Path::new("-"));
    match stdin.count() {
        0 | 1 => Ok(()),
        _ => Err(Usage("only one list can be read from standard input".into()).into()),
    }
}

/// Finds out before the work, not after it, that the list can't be written.
fn check_output(args: &OutputArgs) -> anyhow::Result<()> {
    if args.output == Path::new("-") && io::stdout().is_terminal() {
        bail!("failed to write the list: standard output is a terminal");
    }
    Ok(())
}

/// Why something is not in the list, and how often.
type LeftOut = BTreeMap<String, u64>;

/// `migrator list merge|filter|from-text --json`
#[derive(Serialize)]
struct Written<'a> {
    schema: &'static str,
    output: &'a Path,
    page_size: u32,
    files: u64,
    pages: u64,
    /// Paths of which an older file was left out.
    replaced: Vec<std::borrow::Cow<'a, str>>,
    left_out: Vec<LeftOutJson<'a>>,
}

#[derive(Serialize)]
struct LeftOutJson<'a> {
    reason: &'a str,
    lines: u64,
}

/// Writes the list, and says so.
fn write(
    args: &OutputArgs,
    list: &PageIndexList,
    replaced: &[PathBuf],
    left_out: &LeftOut,
) -> anyhow::Result<()> {
    format::write_file(&args.output, list)?;
    let (files, pages) = (list.files.len() as u64, list.pages());
    let mut out: Box<dyn Write> = match args.output == Path::new("-") {
        true => Box::new(io::stderr().lock()),
        false => Box::new(io::stdout().lock()),
    };
    let mut print = || -> io::Result<()> {
        if args.json {
            let left_out = left_out.iter();
            let written = Written {
                schema: "migrator.list/1",
                output: &args.output,
                page_size: list.page_size,
                files,
                pages,
                replaced: replaced.iter().map(|it| it.to_string_lossy()).collect(),
                left_out: left_out
                    .map(|(reason, lines)| LeftOutJson {
                        reason,
                        lines: *lines,
                    })
                    .collect(),
            };
            serde_json::to_writer(&mut out, &written)?;
            writeln!(out)?;
        } else {
            let size = ByteSize(pages.saturating_mul(list.page_size.into()));
            let (size, files) = (size.display().iec(), count(files, "file"));
            writeln!(out, "{} ({size}) of {files}", count(pages, "page"))?;
            for (reason, lines) in left_out {
                writeln!(out, "left out: {}: {reason}", count(*lines, "line"))?;
            }
            writeln!(out, "written to {}", printable(&args.output))?;
        }
        out.flush()
    };
    match print() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("failed to print"),
    }
}
