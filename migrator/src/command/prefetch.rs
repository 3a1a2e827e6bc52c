//! `migrator prefetch`.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{PrefetchArgs, WarmArgs};
use crate::exit::Outcome;
use crate::format;
use crate::prefetch::{Accepts, Options, Progress, Report, prefetch};

/// Runs the command.
pub(super) fn run(args: PrefetchArgs) -> anyhow::Result<Outcome> {
    let mut options = options(args.warm)?;
    options.dry_run = args.dry_run;
    let list = format::read_file(&args.list)?;
    // Only now: while the list is being read, Ctrl-C may end us at once.
    stop_at_signals(&options.stop)?;
    let report = {
        let _bar = Bar::show(&options.progress);
        prefetch(list, options)
            .with_context(|| format!("failed to prefetch {}", args.list.display()))?
    };
    match print(&report, args.json) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.context("failed to write to standard output")?,
    }
    Ok(match report.is_complete() {
        true => Outcome::Done,
        false => Outcome::Incomplete,
    })
}

/// Checks the arguments that `prefetch` and `receive` share.
///
/// # Errors
/// A directory of --allow does not exist.
pub(super) fn options(warm: WarmArgs) -> anyhow::Result<Options> {
    let allow = warm.allow.iter().map(|dir| {
        fs::canonicalize(dir).with_context(|| format!("failed to find --allow {}", dir.display()))
    });
    Ok(Options {
        allow: allow.collect::<anyhow::Result<_>>()?,
        maps: warm.maps,
        accepts: match (warm.strict, warm.any_version) {
            (true, _) => Accepts::Unchanged,
            (false, true) => Accepts::AnyVersion,
            (false, false) => Accepts::SameFile,
        },
        budget: warm.budget.map(|size| size.as_u64()),
        jobs: warm.jobs,
        bandwidth: warm.bandwidth.map(|rate| rate.as_u64()),
        activate: warm.activate,
        ..Options::default()
    })
}

/// Sets `stop` at the first Ctrl-C or SIGTERM; the second one ends the
/// program, should it hang.
pub(super) fn stop_at_signals(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first handler sees whether the second one has
        // been there before.
        flag::register_conditional_default(signal, Arc::clone(stop))
            .and_then(|_| flag::register(signal, Arc::clone(stop)))
            .context("failed to handle signals")?;
    }
    Ok(())
}

/// Prints the report on standard output.
pub(super) fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    out.flush()
}

/// A progress bar on standard error, until it is dropped.
pub(super) struct Bar {
    end: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Bar {
    /// Shows the bar if standard error is a terminal.
    pub(super) fn show(progress: &Arc<Progress>) -> Option<Self> {
        if !io::stderr().is_terminal() {
            return None;
        }
        let (end, ended) = channel();
        let progress = Arc::clone(progress);
        let draw = move || {
            let bar = ProgressBar::new(0);
            let style = "{bar:40} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            let tick = Duration::from_millis(100);
            while ended.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                let (done, planned) = progress.bytes();
                bar.set_length(planned);
                bar.set_position(done);
            }
            bar.finish_and_clear();
        };
        // A bar that cannot be shown is no reason not to prefetch.
        let thread = thread::Builder::new().spawn(draw).ok();
        Some(Self {
            end: Some(end),
            thread,
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It only draws; whether it did so well changes nothing.
            _ = thread.join();
        }
    }
}
