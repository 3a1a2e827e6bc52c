//! `migrator track`: observes, prints as it goes, and writes the list.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytesize::ByteSize;
use serde::Serialize;

use crate::cli::{SourceChoice, TargetArgs, TrackArgs, WindowsChoice};
use crate::duty::{self, Duty};
use crate::exit::{Outcome, Unsupported};
use crate::format;
use crate::observe::{Ended, observe};
use crate::pagelist::{HotFile, PageIndexList};
use crate::signals::Signals;
use crate::source::{Chosen, Refusal};
use crate::target::Target;
use crate::tracker::{Snapshot, Tracker};

/// Files shown in the table at the end.
const TABLE: usize = 20;
/// Files shown after each epoch.
const LINES: usize = 5;

/// Runs the command.
pub(super) fn run(args: TrackArgs) -> anyhow::Result<Outcome> {
    if let Some(output) = &args.output {
        writable(output)?;
    }
    let signals = Signals::block()?;
    let (mut tracker, chosen) = start(target(&args.target), args.observe.source)?;

    let duty = duty(&args, &tracker);
    let in_windows = duty.is_some();

    let began = Instant::now();
    let mut saved = began;
    let mut shown = Shown::default();
    let min_heat = args.observe.min_heat;
    let each = |tracker: &mut Tracker| {
        let due = args
            .save_every
            .is_some_and(|every| saved.elapsed() >= every);
        // In a pause there is nothing new to show.
        let shows = !args.json && !tracker.is_paused();
        if shows || due {
            let list = tracker.snapshot(min_heat)?.list;
            if shows {
                heard(shown.print(began.elapsed(), &list))?;
            }
            if let (true, Some(output)) = (due, &args.output) {
                // The disk may have room again when the observation ends.
                if let Err(error) = format::write_atomically(output, &list) {
                    eprintln!("migrator: warning: {error:#}; observing goes on");
                }
                saved = Instant::now();
            }
        }
        Ok(())
    };
    let ended = observe(
        &mut tracker,
        args.observe.interval,
        args.duration,
        duty,
        &signals,
        each,
    )?;
    if ended == Ended::TargetGone {
        eprintln!("migrator: the target has ended");
    }

    let snapshot = tracker.snapshot(min_heat)?;
    let time = Time {
        passed: began.elapsed(),
        observed: tracker.observed(),
        in_windows,
    };
    let report = Report::new(&args, &chosen, &time, &snapshot);
    // From here on nothing of ours is in the kernel.
    drop(tracker);
    let written = match &args.output {
        Some(output) => format::write_atomically(output, &snapshot.list),
        None => Ok(()),
    };
    // What was seen is worth printing even where it can't be written.
    let output = args.output.as_deref().filter(|_| written.is_ok());
    let report = Report { output, ..report };
    let mut out = io::stdout().lock();
    heard(match args.json {
        true => serde_json::to_writer(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        false => table(&mut out, &time, &snapshot, output),
    })?;
    warn(&snapshot);
    written?;
    Ok(Outcome::Done)
}

/// When the tracker is to observe, unless that is all the time.
fn duty(args: &TrackArgs, tracker: &Tracker) -> Option<Duty> {
    let wanted = match args.windows {
        WindowsChoice::Auto => args.duration.is_none(),
        WindowsChoice::Always => true,
        WindowsChoice::Never => false,
    };
    if !wanted || !tracker.can_pause() {
        return None;
    }
    let epochs = |count: u32| humantime::format_duration(args.observe.interval * count);
    let (least, most) = duty::EVERY;
    eprintln!(
        "migrator: after {} in windows of {}, every {} to {} (--windows never: all the time)",
        epochs(duty::FIRST),
        epochs(1),
        epochs(least),
        epochs(most),
    );
    Some(Duty::default())
}

/// How long it took, and how much of it was observed.
struct Time {
    passed: Duration,
    observed: Duration,
    in_windows: bool,
}

/// A reader that has heard enough, as `head` has, is no reason to stop.
fn heard(printed: io::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("failed to print"),
    }
}

/// Whom the arguments mean.
pub(super) fn target(args: &TargetArgs) -> Target {
    match (&args.pid, &args.cgroup) {
        (Some(pid), _) => Target::Process(*pid),
        (None, Some(path)) => Target::Cgroup(path.clone()),
        // clap requires one of the three.
        (None, None) => Target::All,
    }
}

/// Starts to observe, and says on stderr with what.
pub(super) fn start(target: Target, choice: SourceChoice) -> anyhow::Result<(Tracker, Chosen)> {
    let (tracker, chosen) =
        Tracker::start(target, choice.into()).map_err(|refusal| match refusal {
            Refusal::NotSupported(_) | Refusal::NotPermitted(_) => {
                anyhow::Error::from(Unsupported(format!(
                    "failed to observe: {refusal} (`migrator check` shows what this host can do)"
                )))
            }
            Refusal::Target(error) => anyhow::Error::from(error),
            Refusal::Failed(_) => anyhow::anyhow!("failed to observe: {refusal}"),
        })?;
    for (name, refusal) in &chosen.refused {
        eprintln!("migrator: source {name} is {refusal}");
    }
    eprintln!(
        "migrator: observing with source {}: {}",
        chosen.name,
        tracker.source()
    );
    Ok((tracker, chosen))
}

/// Finds out before the observation, not after it, that there is no place for
/// the list.
fn writable(output: &Path) -> anyhow::Result<()> {
    let directory = match output.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    anyhow::ensure!(
        directory.is_dir(),
        "failed to write the list {}: there is no directory {}",
        output.display(),
        directory.display()
    );
    anyhow::ensure!(
        !output.is_dir(),
        "failed to write the list {}: it is a directory",
        output.display()
    );
    Ok(())
}

/// What was printed of each file so far: pages, and pages used again.
#[derive(Default)]
struct Shown(HashMap<PathBuf, (u64, u64)>);

impl Shown {
    /// Prints the hottest files that changed.
    fn print(&mut self, at: Duration, list: &PageIndexList) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mut lines = 0;
        for file in hottest(list) {
            let now = (file.pages(), again(file));
            let before = self.0.insert(file.identity.path.clone(), now);
            if before != Some(now) && lines < LINES {
                lines += 1;
                let more = now.0.saturating_sub(before.unwrap_or_default().0);
                writeln!(
                    out,
                    "{:>6.0?}  {:>9} pages (+{more})  {:>9} used again  {}",
                    Duration::from_secs(at.as_secs()),
                    now.0,
                    now.1,
                    file.identity.path.display()
                )?;
            }
        }
        out.flush()
    }
}

/// The files in the order in which people ask for them: what is used again and
/// again, then what is large.
fn hottest(list: &PageIndexList) -> Vec<&HotFile> {
    let mut files: Vec<&HotFile> = list.files.iter().collect();
    files.sort_by_cached_key(|file| Reverse((again(file), file.pages())));
    files
}

/// How many pages of a file were used more than once.
fn again(file: &HotFile) -> u64 {
    let runs = file.runs.iter().filter(|run| run.heat >= 2);
    runs.map(|run| u64::from(run.pages)).sum()
}

/// Prints the hottest files, and what was left out.
fn table(
    out: &mut impl Write,
    time: &Time,
    snapshot: &Snapshot,
    output: Option<&Path>,
) -> io::Result<()> {
    let list = &snapshot.list;
    let size = |pages: u64| {
        ByteSize::b(pages * u64::from(list.page_size))
            .display()
            .iec()
    };
    writeln!(
        out,
        "{:>10}  {:>10}  {:>10}  FILE",
        "PAGES", "SIZE", "USED AGAIN"
    )?;
    for file in hottest(list).into_iter().take(TABLE) {
        let (pages, path) = (file.pages(), file.identity.path.display());
        writeln!(
            out,
            "{pages:>10}  {:>10}  {:>10}  {path}",
            size(pages).to_string(),
            again(file)
        )?;
    }
    if list.files.len() > TABLE {
        writeln!(out, "... and {} more files", list.files.len() - TABLE)?;
    }
    let pages = list.pages();
    writeln!(
        out,
        "{pages} pages ({}) of {} files",
        size(pages),
        list.files.len()
    )?;
    if time.in_windows {
        let (observed, passed) = (time.observed.as_secs_f64(), time.passed.as_secs_f64());
        writeln!(out, "observed for {observed:.1} s of {passed:.1} s")?;
    }
    for (reason, sum) in &snapshot.left_out {
        writeln!(
            out,
            "left out: {} pages of {} files: {reason}",
            sum.pages, sum.files
        )?;
    }
    if let Some(output) = output {
        writeln!(out, "written to {}", output.display())?;
    }
    out.flush()
}

/// Nothing is lost in silence.
pub(super) fn warn(snapshot: &Snapshot) {
    let counters = &snapshot.counters;
    for (count, what) in [
        (
            counters.chunks_lost,
            "uses of 2 MiB chunks found no room in the access map",
        ),
        (
            counters.pages_lost,
            "pages of very long requests were not marked",
        ),
        (
            counters.files_lost,
            "files found no room in the map of files",
        ),
        (
            snapshot.forgotten,
            "pages were forgotten for want of memory, the longest unused first",
        ),
        (
            snapshot.skipped,
            "uses by anybody on this host, perhaps by the target, came while another task had \
             been preempted in a program on the same CPU, and were skipped by the kernel",
        ),
    ] {
        if count > 0 {
            eprintln!("migrator: warning: {count} {what}");
        }
    }
}

/// `migrator track --json`
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    source: &'static str,
    refused: Vec<RefusedJson>,
    seconds: f64,
    observed_seconds: f64,
    windows: bool,
    page_size: u32,
    min_heat: u8,
    pages: u64,
    files: Vec<FileJson<'a>>,
    left_out: Vec<LeftOutJson>,
    lost: LostJson,
    skipped: u64,
    output: Option<&'a Path>,
}

#[derive(Serialize)]
struct RefusedJson {
    source: &'static str,
    why: String,
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: std::borrow::Cow<'a, str>,
    device: u64,
    inode: u64,
    size: u64,
    pages: u64,
    used_again: u64,
}

#[derive(Serialize)]
struct LeftOutJson {
    reason: String,
    files: u64,
    pages: u64,
}

#[derive(Serialize)]
struct LostJson {
    chunks: u64,
    pages: u64,
    files: u64,
    forgotten_pages: u64,
}

impl<'a> Report<'a> {
    fn new(args: &'a TrackArgs, chosen: &Chosen, time: &Time, snapshot: &'a Snapshot) -> Self {
        let refused = chosen.refused.iter();
        let left_out = snapshot.left_out.iter();
        Self {
            schema: "migrator.track/1",
            source: chosen.name,
            refused: refused
                .map(|(source, why)| RefusedJson {
                    source,
                    why: why.to_string(),
                })
                .collect(),
            seconds: time.passed.as_secs_f64(),
            observed_seconds: time.observed.as_secs_f64(),
            windows: time.in_windows,
            page_size: snapshot.list.page_size,
            min_heat: args.observe.min_heat,
            pages: snapshot.list.pages(),
            files: snapshot.list.files.iter().map(FileJson::new).collect(),
            left_out: left_out
                .map(|(reason, sum)| LeftOutJson {
                    reason: reason.to_string(),
                    files: sum.files,
                    pages: sum.pages,
                })
                .collect(),
            lost: LostJson {
                chunks: snapshot.counters.chunks_lost,
                pages: snapshot.counters.pages_lost,
                files: snapshot.counters.files_lost,
                forgotten_pages: snapshot.forgotten,
            },
            skipped: snapshot.skipped,
            output: None,
        }
    }
}

impl<'a> FileJson<'a> {
    fn new(file: &'a HotFile) -> Self {
        Self {
            path: file.identity.path.to_string_lossy(),
            device: file.identity.device,
            inode: file.identity.inode,
            size: file.identity.size,
            pages: file.pages(),
            used_again: again(file),
        }
    }
}
