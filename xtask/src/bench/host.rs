//! The host that an experiment runs on, and programs that measure on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::plot::Row;
use super::record::{Compared, Record};
use crate::command;
use crate::workspace::Workspace;

/// This machine, and how busy it is: the load average of the last minute.
pub(super) fn describe() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().map(str::parse::<f64>);
    json!({
        "processor": processor.map(|name| name.trim_start_matches([' ', '\t', ':'])),
        "cores": thread::available_parallelism().map_or(0, |cores| cores.get()),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": load.and_then(Result::ok),
    })
}

/// The same in words, and the day.
pub(super) fn setting<A: Compared>(record: &Record<A>, host: &Value) -> String {
    format!(
        "{}, {} ({} cores), Linux {}, load {:.1} before",
        record.date(),
        host["processor"].as_str().unwrap_or("?"),
        host["cores"],
        host["kernel"].as_str().unwrap_or("?"),
        host["load"].as_f64().unwrap_or(f64::NAN),
    )
}

/// Runs a program that measures, and gives the JSON object that it prints.
///
/// # Errors
/// When it fails, or prints something else.
pub(super) fn measure(program: &Path, args: &[String]) -> Result<Value> {
    let printed = command::output(Command::new(program).args(args))?;
    serde_json::from_str(&printed)
        .with_context(|| format!("failed to understand what {} printed", program.display()))
}

/// A row of a picture for each arm: of each run a number, if it has one.
pub(super) fn rows(record: &Record<String>, number: impl Fn(&Value) -> Option<f64>) -> Vec<Row> {
    let row = |(title, samples): (String, &[Value])| Row {
        title,
        numbers: samples.iter().filter_map(&number).collect(),
    };
    record.arms().map(row).collect()
}

/// How an experiment is done that runs on this host.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Runs of each; they take turns
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// Print the record as one JSON object; all else goes to standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Add to the runs that are kept, which must be of the same scale
    #[arg(long)]
    pub(super) add: bool,
    /// Leave docs/benchmarks alone
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// What is particular to such an experiment.
pub(super) struct Kind<'a> {
    pub(super) name: &'static str,
    /// What is compared, each with the arguments of a run; a number that differs
    /// from run to run is added.
    pub(super) arms: Vec<(String, Vec<String>)>,
    pub(super) scale: Value,
    /// A line about a sample, for who waits.
    pub(super) line: fn(&Value) -> String,
    /// What the runs say together.
    pub(super) summary: fn(&Record<String>) -> Value,
    /// The same as Markdown.
    pub(super) table: fn(&Record<String>) -> String,
    /// Draws it.
    pub(super) draw: &'a dyn Fn(&Record<String>, &Path) -> Result<()>,
}

impl Options {
    /// Does the experiment, prints its table and keeps its record.
    ///
    /// # Errors
    /// When a run fails.
    pub(super) fn run(&self, workspace: &Workspace, program: &Path, kind: &Kind<'_>) -> Result<()> {
        self.run_anywhere(workspace, describe, kind, |args| measure(program, args))
    }

    /// The same, where a run is not on this host, or more than a program.
    ///
    /// # Errors
    /// When a run fails.
    pub(super) fn run_anywhere(
        &self,
        workspace: &Workspace,
        describe: impl Fn() -> Value,
        kind: &Kind<'_>,
        measure: impl Fn(&[String]) -> Result<Value>,
    ) -> Result<()> {
        let json = match self.json {
            true => Some(super::stdout_for_json()?),
            false => None,
        };
        let host = describe();
        let arms: Vec<_> = kind.arms.iter().map(|(arm, _)| arm.clone()).collect();
        let mut record = Record::begin(kind.name, host.clone(), kind.scale.clone(), &arms)?;
        if self.add {
            record.go_on(workspace)?;
        }
        println!("{}: {}", kind.name, setting(&record, &host));
        let mut order: Vec<_> = kind.arms.iter().collect();
        for run in 1..=self.runs {
            for (arm, args) in &order {
                let mut args = args.clone();
                args.push(format!("--seed={run}"));
                let sample =
                    measure(&args).with_context(|| format!("failed in run {run} of {arm}"))?;
                println!("run {run:>2}  {arm:<18} {}", (kind.line)(&sample));
                record.push(arm.clone(), sample);
                if !self.dry_run {
                    // What a long experiment has is not lost with its end.
                    record.keep(workspace, &(kind.summary)(&record))?;
                }
            }
            // What one leaves behind is not always found by the same other one.
            order.reverse();
        }
        let table = (kind.table)(&record);
        println!("\n{table}");
        let summary = (kind.summary)(&record);
        if !self.dry_run {
            let name = kind.name;
            (kind.draw)(&record, &record.path(workspace, "svg")?)?;
            let text = format!(
                "{}.\n\n{table}\n![{name}](benchmarks/{name}.svg)\n\n\
                 Raw runs: [benchmarks/{name}.json](benchmarks/{name}.json).\n",
                setting(&record, &host)
            );
            record.document(workspace, &text)?;
            println!("Kept in docs/benchmarks.md, docs/benchmarks/{name}.json and .svg");
        }
        match json {
            Some(json) => super::print_json(json, &record.to_json(&summary)),
            None => Ok(()),
        }
    }
}
