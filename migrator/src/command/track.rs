//! `migrator track`: observes, prints as it goes, and writes the list.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytesize::ByteSize;
use nix::poll::PollFd;
use serde::Serialize;

use crate::cli::{ObserveArgs, TargetArgs, TrackArgs, WindowsChoice};
use crate::container;
use crate::duty::{self, Duty};
use crate::exit::{Outcome, Unsupported, Usage};
use crate::file::identity::mtime_ns;
use crate::heat::Sum;
use crate::held::Held;
use crate::history::answer::at;
use crate::history::keeper::{Keeper, SAVE_INTERVAL};
use crate::history::server::{About, Server};
use crate::history::{self, client};
use crate::kernel;
use crate::observe::{Beside, Ended, observe_beside};
use crate::pagelist::{AGAIN, FileIdentity, Heat};
use crate::signals::Signals;
use crate::source::{Chosen, Refusal, Source};
use crate::target::Target;
use crate::tracker::{FileName, Found, Lost, Overview, Tracker};

/// Files shown in the table at the end.
const TABLE: usize = 20;
/// Files shown after each epoch.
const LINES: usize = 5;

/// Runs the command.
pub(super) fn run(args: TrackArgs) -> anyhow::Result<Outcome> {
    if let Some(output) = &args.output {
        writable(output)?;
    }
    // clap does not ask for --all beside an option that excludes it.
    if args.serve && !args.all {
        return Err(Usage("--serve needs --all: a host has one tracker".into()).into());
    }
    if args.save_every.is_some() && args.output.is_none() && !args.serve {
        return Err(Usage("--save-every needs --output or --serve".into()).into());
    }
    let known = target(&args)?;
    let signals = Signals::block()?;
    let mut held = match args.target.command.as_slice() {
        [] => None,
        command => Some(Held::start(command)?),
    };
    let target = held.as_ref().map(|held| Target::Process(held.pid()));
    let (mut tracker, chosen) = start(target.unwrap_or(known), &args.observe)?;
    let ourselves = held.as_mut().map(release).transpose()?.flatten();
    let overview = |tracker: &mut Tracker| -> anyhow::Result<Overview> {
        sample_lru(tracker, &args.observe);
        let mut overview = tracker.overview(args.observe.min_heat)?;
        let is_ours = |file: &Found| ourselves.as_ref().is_some_and(|it| it.is(&file.identity));
        overview.files.retain(|file| !is_ours(file));
        Ok(overview)
    };

    let duty = duty(&args, &tracker);
    let in_windows = duty.is_some();
    let mut serving = match args.serve {
        true => Some(Serving::start(&args, &mut tracker, &chosen, in_windows)?),
        false => None,
    };

    let began = Instant::now();
    let mut saved = began;
    let mut shown = Shown::default();
    let min_heat = args.observe.min_heat;
    let each = |tracker: &mut Tracker| {
        let due = args
            .save_every
            .is_some_and(|every| saved.elapsed() >= every);
        // In a pause there is nothing new to show, and nobody looks at one that serves.
        let is_shown = !args.json && !args.serve && held.is_none();
        if is_shown && !tracker.is_paused() {
            heard(shown.print(began.elapsed(), tracker, min_heat))?;
        }
        if let (true, Some(output)) = (due, &args.output) {
            let overview = overview(tracker)?;
            // The disk may have room again when the observation ends.
            if let Err(error) = tracker.known().write_atomically(output, &overview) {
                crate::say!("warning: {error:#}; observing goes on");
            }
            saved = Instant::now();
        }
        Ok(())
    };
    let ended = observe_beside(
        &mut tracker,
        args.observe.interval,
        args.duration,
        duty,
        &signals,
        &mut serving,
        each,
    );
    // Whatever it was that ended it, what is known is worth keeping.
    if let Some(serving) = serving {
        serving.end(&mut tracker);
    }
    let ended = ended?;
    if ended == Ended::TargetGone {
        crate::say!("the target has ended");
    }

    let overview = overview(&mut tracker)?;
    let time = Time {
        passed: began.elapsed(),
        observed: tracker.observed(),
        in_windows,
    };
    let report = Report::new(&args, &chosen, &time, &overview);
    // From here on nothing of ours is in the kernel.
    let known = tracker.into_known();
    let written = match &args.output {
        Some(output) => known.write_atomically(output, &overview),
        None => Ok(()),
    };
    // What was seen is worth printing even where it can't be written.
    let output = args.output.as_deref().filter(|_| written.is_ok());
    let report = Report { output, ..report };
    // A command's standard output is its own.
    let mut out: Box<dyn Write> = match held {
        Some(_) => Box::new(io::stderr().lock()),
        None => Box::new(io::stdout().lock()),
    };
    heard(match args.json {
        true => serde_json::to_writer(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        false => table(&mut out, &time, &overview, output),
    })?;
    drop(out);
    warn(&overview.lost);
    let ended = held.map(|held| held.wait(&signals)).transpose()?;
    written?;
    Ok(ended.map_or(Outcome::Done, Outcome::Command))
}

/// Lets the command begin. Returns the program that it was before, whose pages are not
/// the command's; nothing if it is the same.
fn release(held: &mut Held) -> anyhow::Result<Option<Program>> {
    held.release()?;
    let ours = Program::of(Path::new("/proc/self/exe"));
    let command = Program::of(&Path::new("/proc").join(format!("{}/exe", held.pid())));
    Ok(ours.filter(|_| ours != command))
}

/// A program's file, on whatever device its file system shows it: overlayfs has numbers
/// of its own for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Program {
    inode: u64,
    size: u64,
    mtime_ns: i64,
}

impl Program {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: mtime_ns(&meta),
        })
    }

    fn is(&self, file: &FileIdentity) -> bool {
        let Self {
            inode,
            size,
            mtime_ns,
        } = *self;
        (file.inode, file.size, file.mtime_ns) == (inode, size, mtime_ns)
    }
}

/// When the tracker is to observe, unless that is all the time.
fn duty(args: &TrackArgs, tracker: &Tracker) -> Option<Duty> {
    let wanted = match args.windows {
        WindowsChoice::Auto => args.duration.is_none() && args.target.command.is_empty(),
        WindowsChoice::Always => true,
        WindowsChoice::Never => false,
    };
    if !wanted || !tracker.can_pause() {
        return None;
    }
    let epochs = |count: u32| humantime::format_duration(args.observe.interval * count);
    let (least, most) = duty::EVERY;
    crate::say!(
        "after {} in windows of {}, every {} to {} (--windows never: all the time)",
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

/// Whom the arguments mean, unless that is a command.
fn target(args: &TrackArgs) -> anyhow::Result<Target> {
    let TargetArgs {
        pid,
        cgroup,
        container,
        ..
    } = &args.target;
    Ok(match (pid, cgroup, container) {
        (Some(pid), ..) => Target::Process(*pid),
        (None, Some(path), _) => Target::Cgroup(path.clone()),
        (None, None, Some(name)) => container::find(args.runtime.into(), name)?,
        // clap requires one of them.
        (None, None, None) => Target::All,
    })
}

/// Starts to observe, and says on stderr with what. What the tracker of this host knows
/// of the target's files is taken over.
pub(super) fn start(target: Target, args: &ObserveArgs) -> anyhow::Result<(Tracker, Chosen)> {
    let is_part = target != Target::All;
    let (mut tracker, chosen) =
        Tracker::start(target, args.source.into()).map_err(|refusal| match refusal {
            Refusal::NotSupported(_) | Refusal::NotPermitted(_) => {
                anyhow::Error::from(Unsupported(format!(
                    "failed to observe: {refusal} (`migrator check` shows what this host can do)"
                )))
            }
            Refusal::Target(error) => anyhow::Error::from(error),
            Refusal::Failed(_) => anyhow::anyhow!("failed to observe: {refusal}"),
        })?;
    for (name, refusal) in &chosen.refused {
        crate::say!("source {name} is {refusal}");
    }
    crate::say!(
        "observing with source {}: {}",
        chosen.name,
        tracker.source()
    );
    if is_part && !args.no_history {
        take_over(&mut tracker, args);
    }
    Ok((tracker, chosen))
}

/// Adds what the LRU knows, unless that is not wanted. Says where it can't be had: the
/// list is one of observed uses, then.
pub(super) fn sample_lru(tracker: &mut Tracker, args: &ObserveArgs) {
    if wants_lru(args)
        && let Err(refusal) = tracker.sample_lru()
    {
        crate::say!("warning: only observed uses are listed; the LRU's state is {refusal}");
    }
}

/// Returns whether the LRU can add anything to the list that is asked for.
pub(super) fn wants_lru(args: &ObserveArgs) -> bool {
    !args.observed_only && args.min_heat < AGAIN
}

/// Takes over what the tracker of this host knows, if one runs. That it can't be asked
/// is no reason not to observe.
fn take_over(tracker: &mut Tracker, args: &ObserveArgs) {
    let socket = history::socket(args.socket.as_deref());
    match client::ask_for(&socket, tracker.in_use(), args.min_heat, client::PATIENCE) {
        Ok(Some(known)) => {
            crate::say!(
                "going on from the tracker that runs since {}: {} pages of {} files",
                known.status.since(),
                known.list.pages(),
                known.list.files.len()
            );
            tracker.go_on_from(known.list);
        }
        Ok(None) => {}
        Err(error) => crate::say!("warning: {error:#}; observing goes on without it"),
    }
}

/// What the tracker of a host does beside observing.
struct Serving {
    server: Server,
    keeper: Keeper,
}

impl Serving {
    fn start(
        args: &TrackArgs,
        tracker: &mut Tracker,
        chosen: &Chosen,
        windows: bool,
    ) -> anyhow::Result<Self> {
        if !matches!(tracker.source(), Source::Ebpf(_)) {
            let why = "only accesses that source ebpf sees are worth keeping, and `migrator check` \
                       says why it can't be used; what the LRU knows needs no tracker";
            return Err(Unsupported(format!("failed to serve: {why}")).into());
        }
        let socket = history::socket(args.observe.socket.as_deref());
        let about = About {
            source: chosen.name,
            windows,
        };
        let server = Server::listen(&socket, about)?;
        let state = match &args.state {
            Some(state) => state.clone(),
            None => {
                let state = PathBuf::from(history::STATE);
                if let Some(directory) = state.parent() {
                    let made = std::fs::create_dir_all(directory);
                    made.with_context(|| format!("failed to create {}", directory.display()))?;
                }
                state
            }
        };
        let mut keeper = Keeper::new(state, args.save_every.unwrap_or(SAVE_INTERVAL));
        match keeper.restore(tracker, args.observe.interval) {
            Ok(Some(restored)) => crate::say!(
                "going on from what was kept at {}: {} pages of {} files",
                at(restored.saved_at),
                restored.pages,
                restored.files
            ),
            Ok(None) => {}
            Err(error) => crate::say!("warning: {error:#}; it begins with nothing"),
        }
        crate::say!("serving at {}", socket.display());
        Ok(Self { server, keeper })
    }

    /// Keeps what is known, and answers nobody any more.
    fn end(mut self, tracker: &mut Tracker) {
        self.keeper.save(tracker);
    }
}

impl Beside for Option<Serving> {
    fn events(&self) -> Vec<PollFd<'_>> {
        self.as_ref()
            .map_or_else(Vec::new, |serving| serving.server.events())
    }

    fn deadline(&self) -> Option<Instant> {
        let serving = self.as_ref()?;
        let keeper = serving.keeper.deadline();
        let server = serving.server.deadline();
        Some(server.map_or(keeper, |server| server.min(keeper)))
    }

    fn work(&mut self, tracker: &mut Tracker, until: Instant) {
        if let Some(serving) = self {
            serving.server.work(tracker, until);
            serving.keeper.work(tracker, until);
        }
    }
}

/// Finds out before the observation, not after it, that there is no place for
/// the list.
pub(super) fn writable(output: &Path) -> anyhow::Result<()> {
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

/// What there was of each file so far.
#[derive(Default)]
struct Shown(HashMap<FileName, Sum>);

impl Shown {
    /// Prints the hottest files that changed.
    fn print(&mut self, at: Duration, tracker: &mut Tracker, min_heat: Heat) -> io::Result<()> {
        let mut files = tracker.progress(min_heat);
        files.sort_unstable_by_key(|(_, sum)| hotness(sum));
        let mut out = io::stdout().lock();
        let mut lines = 0;
        for (name, now) in files {
            let before = self.0.insert(name, now).unwrap_or_default();
            if lines == LINES || (before.pages, before.again) == (now.pages, now.again) {
                continue;
            }
            if let Some(path) = tracker.path(name) {
                lines += 1;
                let more = now.pages.saturating_sub(before.pages);
                writeln!(
                    out,
                    "{:>6.0?}  {:>9} pages (+{more})  {:>9} used again  {}",
                    Duration::from_secs(at.as_secs()),
                    now.pages,
                    now.again,
                    path.display()
                )?;
            }
        }
        out.flush()
    }
}

/// The order in which people ask for files: what is used again and again, then what
/// is large.
fn hotness(sum: &Sum) -> Reverse<(u64, u64)> {
    Reverse((sum.again, sum.pages))
}

/// Prints the hottest files, and what was left out.
fn table(
    out: &mut impl Write,
    time: &Time,
    overview: &Overview,
    output: Option<&Path>,
) -> io::Result<()> {
    let size = |pages: u64| {
        ByteSize::b(pages * u64::from(kernel::page_size()))
            .display()
            .iec()
    };
    writeln!(
        out,
        "{:>10}  {:>10}  {:>10}  FILE",
        "PAGES", "SIZE", "USED AGAIN"
    )?;
    let mut files: Vec<&Found> = overview.files.iter().collect();
    files.sort_by_key(|file| hotness(&file.sum));
    for file in files.iter().take(TABLE) {
        let Sum { pages, again, .. } = file.sum;
        writeln!(
            out,
            "{pages:>10}  {:>10}  {again:>10}  {}",
            size(pages).to_string(),
            file.identity.path.display()
        )?;
    }
    if files.len() > TABLE {
        writeln!(out, "... and {} more files", files.len() - TABLE)?;
    }
    let pages = overview.pages();
    writeln!(
        out,
        "{pages} pages ({}) of {} files",
        size(pages),
        files.len()
    )?;
    if time.in_windows {
        let (observed, passed) = (time.observed.as_secs_f64(), time.passed.as_secs_f64());
        writeln!(out, "observed for {observed:.1} s of {passed:.1} s")?;
    }
    for (reason, sum) in &overview.left_out {
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
pub(super) fn warn(lost: &Lost) {
    let counters = &lost.counters;
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
            lost.forgotten,
            "pages were forgotten for want of memory, the coldest first",
        ),
        (
            lost.skipped,
            "uses by anybody on this host, perhaps by the target, came while another task had \
             been preempted in a program on the same CPU, and were skipped by the kernel",
        ),
    ] {
        if count > 0 {
            crate::say!("warning: {count} {what}");
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
    fn new(args: &'a TrackArgs, chosen: &Chosen, time: &Time, overview: &'a Overview) -> Self {
        let refused = chosen.refused.iter();
        let left_out = overview.left_out.iter();
        let lost = &overview.lost;
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
            page_size: kernel::page_size(),
            min_heat: args.observe.min_heat,
            pages: overview.pages(),
            files: overview.files.iter().map(FileJson::new).collect(),
            left_out: left_out
                .map(|(reason, sum)| LeftOutJson {
                    reason: reason.to_string(),
                    files: sum.files,
                    pages: sum.pages,
                })
                .collect(),
            lost: LostJson {
                chunks: lost.counters.chunks_lost,
                pages: lost.counters.pages_lost,
                files: lost.counters.files_lost,
                forgotten_pages: lost.forgotten,
            },
            skipped: lost.skipped,
            output: None,
        }
    }
}

impl<'a> FileJson<'a> {
    fn new(file: &'a Found) -> Self {
        Self {
            path: file.identity.path.to_string_lossy(),
            device: file.identity.device,
            inode: file.identity.inode,
            size: file.identity.size,
            pages: file.sum.pages,
            used_again: file.sum.again,
        }
    }
}
