//! `cargo xtask bench`: experiments on the test hosts, and on this one.
//!
//! An experiment on the test hosts moves a process in several ways ([`arm`]), in
//! turns, and looks from outside how much it reads when ([`watch`], [`curve`]).
//! [`list`], [`quality`], [`overhead`] and [`scale`] run a program on this host, and
//! [`prefetch`] on either.

pub(crate) mod arm;
pub(crate) mod curve;
mod figure1;
mod figure2;
mod host;
mod list;
mod measures;
mod overhead;
pub(crate) mod plot;
mod prefetch;
mod quality;
mod record;
mod scale;
pub(crate) mod stage;
mod statistics;
pub(crate) mod trial;
pub(crate) mod watch;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::build;
use crate::workspace::Workspace;
use arm::Arm;
use record::Record;
use stage::{Scale, Stage, Workload};

/// Which experiment.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Debug, clap::Subcommand)]
enum Experiment {
    /// The speed of each pass over a file before and after a migration
    Figure1(Figure),
    /// How much a process has read a fixed time after it was ordered to move
    Figure2(Figure),
    /// From the kernel's map to a list and back: time, size and memory
    List(list::Args),
    /// What it costs a process to be observed, beside other ways to do it
    Overhead(overhead::Args),
    /// How soon the pages of a list are in the cache, beside other ways to do it
    Prefetch(prefetch::Args),
    /// What share of reads hits what was prefetched, by policy and budget
    Quality(quality::Args),
    /// What a tracker takes as what it tracks grows
    Scale(scale::Args),
}

/// How an experiment is done.
#[derive(Debug, clap::Args)]
struct Figure {
    /// Runs of each arm; they take turns
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The ways to move that are compared; all that fit the figure without it
    #[arg(long, value_delimiter = ',')]
    arms: Option<Vec<Arm>>,
    /// How the process uses its file
    #[arg(long, default_value = "loop")]
    workload: Workload,
    #[command(flatten)]
    scale: Scale,
    /// Print the record as one JSON object; all else goes to standard error
    #[arg(long)]
    json: bool,
    /// Add to the runs that are kept, which must be of the same scale
    #[arg(long)]
    add: bool,
    /// Leave docs/benchmarks alone
    #[arg(long)]
    dry_run: bool,
}

/// Does an experiment, prints its table and keeps its record.
///
/// # Errors
/// When the hosts don't come up, or a process can't be moved.
pub(crate) fn run(workspace: &Workspace, args: Args) -> Result<()> {
    match args.experiment {
        Experiment::Figure1(figure) => figure.run(workspace, &figure1::FIGURE),
        Experiment::Figure2(figure) => figure.run(workspace, &figure2::FIGURE),
        Experiment::List(args) => list::run(workspace, &args),
        Experiment::Overhead(args) => overhead::run(workspace, &args),
        Experiment::Prefetch(args) => prefetch::run(workspace, &args),
        Experiment::Quality(args) => quality::run(workspace, &args),
        Experiment::Scale(args) => scale::run(workspace, &args),
    }
}

/// What is particular to an experiment.
struct Kind {
    name: &'static str,
    arms: &'static [Arm],
    /// When a run has seen enough.
    enough: fn(&Scale) -> trial::Enough,
    /// What is kept of a run.
    sample: fn(&trial::Trial, &Scale) -> Result<Value>,
    /// A line about a sample, for who waits.
    line: fn(&Value) -> String,
    /// What the runs say together.
    summary: fn(&Record) -> Value,
    /// The same as Markdown.
    table: fn(&Record) -> String,
    /// Draws it.
    draw: fn(&Record, &Path, Workload) -> Result<()>,
}

impl Figure {
    fn run(self, workspace: &Workspace, kind: &Kind) -> Result<()> {
        let json = match self.json {
            true => Some(stdout_for_json()?),
            false => None,
        };
        let arms = self.arms.as_deref().unwrap_or(kind.arms);
        let program = build_all(workspace)?;
        let stage = Stage::set(self.scale, &program)?;
        let name = format!("{}-{}", kind.name, self.workload.name());
        let mut record = Record::begin(&name, stage.describe()?, stage.scale.to_json(), arms)?;
        if self.add {
            record.go_on(workspace)?;
        }
        println!("{name}: {}", record.setting());
        for run in 1..=self.runs {
            for arm in arms {
                let enough = (kind.enough)(&stage.scale);
                let trial = trial::run(&stage, self.workload, *arm, enough, |_, _| {})
                    .with_context(|| format!("failed in run {run} of {}", arm.key()))?;
                let sample = (kind.sample)(&trial, &stage.scale)?;
                println!("run {run:>2}  {:<26} {}", arm.title(), (kind.line)(&sample));
                record.push(*arm, sample);
                if !self.dry_run {
                    // What a long experiment has is not lost with its end.
                    record.keep(workspace, &(kind.summary)(&record))?;
                }
            }
        }
        stage.hosts.finish()?;
        let table = (kind.table)(&record);
        println!("\n{table}");
        if !self.dry_run {
            (kind.draw)(&record, &record.path(workspace, "svg")?, self.workload)?;
            let text = format!(
                "{}.\n\n{table}\n![{name}](benchmarks/{name}.svg)\n\n\
                 Raw runs: [benchmarks/{name}.json](benchmarks/{name}.json).\n",
                record.setting()
            );
            record.document(workspace, &text)?;
            println!("Kept in docs/benchmarks.md, docs/benchmarks/{name}.json and .svg");
        }
        match json {
            Some(json) => print_json(json, &record.to_json(&(kind.summary)(&record))),
            None => Ok(()),
        }
    }
}

fn print_json(mut output: File, record: &Value) -> Result<()> {
    writeln!(output, "{record}").context("failed to write to standard output")
}

/// Standard output, kept for the record: whatever else is printed from now on,
/// by us or by what we run, goes to standard error.
fn stdout_for_json() -> Result<File> {
    let keep = || -> io::Result<File> {
        let own = io::stdout().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdout(io::stderr())?;
        Ok(File::from(own))
    };
    keep().context("failed to turn standard output to standard error")
}

/// Builds migrator and the workload; gives the latter.
///
/// # Errors
/// When something does not compile.
pub(crate) fn build_all(workspace: &Workspace) -> Result<PathBuf> {
    build::run(workspace)?;
    build::guest_program(workspace, "workload")
}
