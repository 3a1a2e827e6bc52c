//! What it costs a process to be observed, by migrator and in other ways.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::host::{self, Kind, Options};
use super::measures::Measures;
use super::plot;
use super::record::Record;
use super::statistics::Summary;
use crate::workspace::Workspace;
use crate::{build, command};

/// How the experiment is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What the process does
    #[arg(long, value_delimiter = ',', default_values_t = LOADS.map(|(load, _)| load.to_owned()),
          value_parser = clap::builder::PossibleValuesParser::new(LOADS.map(|(load, _)| load)))]
    loads: Vec<String>,
    /// Who observes
    #[arg(long, value_delimiter = ',', default_values_t = WATCHERS.map(|(watcher, _)| watcher.to_owned()),
          value_parser = clap::builder::PossibleValuesParser::new(WATCHERS.map(|(watcher, _)| watcher)))]
    watchers: Vec<String>,
    /// Milliseconds of a trial, of which there are three in a run
    #[arg(long, default_value_t = 400)]
    time: u64,
    /// Milliseconds of an epoch, and so of a window; a trial in windows takes 60
    #[arg(long, default_value_t = 100)]
    epoch: u64,
    #[command(flatten)]
    options: Options,
}

/// As raw runs have it, and as people call it.
const LOADS: [(&str, &str); 4] = [
    ("random", "pread 4 KiB at random"),
    ("sequential", "pread 128 KiB in order"),
    ("faults", "faults on a mapping"),
    ("fio", "fio, 4 KiB at random"),
];

const WATCHERS: [(&str, &str); 6] = [
    (FLOOR, "an empty program: the floor"),
    ("hash", "a hash lookup per event, as with bcc"),
    (FULL, "**migrator**, this process"),
    ("bystander", "**migrator**, another cgroup"),
    ("windows", "**migrator** in windows, this process"),
    (
        "windows-bystander",
        "**migrator** in windows, another cgroup",
    ),
];
const FLOOR: &str = "empty";
const FULL: &str = "full";

/// # Errors
/// When a run fails; it takes root and a cgroup of version 2.
pub(super) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    build::run(workspace)?;
    let programs = build::bench_object(workspace)?;
    let program = build::own_program(workspace, "gauge")?;
    let place = workspace.target().join("bench");
    fs::create_dir_all(&place).with_context(|| format!("failed to create {}", place.display()))?;
    let has_fio = command::find("fio").is_some();
    if !has_fio {
        println!("There is no fio here (Debian package fio): it is left out.");
    }
    let loads = args.loads.iter().filter(|load| has_fio || *load != "fio");
    let text = |path: &Path| path.display().to_string();
    let tools = [
        format!("--migrator={}", text(&workspace.dist().join("migrator"))),
        format!("--programs={}", text(&programs)),
        format!("--file={}", text(&place.join("overhead"))),
        format!("--time={}", args.time),
        format!("--epoch={}", args.epoch),
    ];
    let mut arms = Vec::new();
    for load in loads {
        for watcher in &args.watchers {
            let own = [
                "overhead".to_owned(),
                format!("--load={load}"),
                format!("--watcher={watcher}"),
            ];
            let options = own.into_iter().chain(tools.clone());
            arms.push((arm(load, watcher), options.collect()));
        }
    }
    let kind = Kind {
        name: "overhead",
        arms,
        scale: json!({ "trial_ms": args.time, "epoch_ms": args.epoch }),
        line,
        summary,
        table,
        draw: &draw,
    };
    args.options.run(workspace, &program, &kind)
}

fn arm(load: &str, watcher: &str) -> String {
    format!("{load} {watcher}")
}

fn line(sample: &Value) -> String {
    let number = |key: &str| sample[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:.4} ({:.1} ns, alone {:.1} and {:.1})",
        number("ratio"),
        number("ns"),
        number("before_ns"),
        number("after_ns"),
    )
}

const MEASURES: Measures = Measures {
    keys: &["ratio", "added_ns", "alone_ns"],
    derived: |key, number| match key {
        "added_ns" => Some(number("ns")? - number("alone_ns")?),
        _ => None,
    },
};

fn summary(record: &Record<String>) -> Value {
    Value::Object(MEASURES.of_record(record))
}

/// The runs of an arm.
fn samples<'a>(record: &'a Record<String>, load: &str, watcher: &str) -> &'a [Value] {
    let arm = arm(load, watcher);
    let found = record.arms().find(|(other, _)| *other == arm);
    found.map_or(&[], |(_, samples)| samples)
}

fn table(record: &Record<String>) -> String {
    let has = |load: &str| {
        WATCHERS
            .iter()
            .any(|it| !samples(record, load, it.0).is_empty())
    };
    let loads: Vec<_> = LOADS.into_iter().filter(|(load, _)| has(load)).collect();
    let mut text = String::from("| |");
    for (_, title) in &loads {
        text += &format!(" {title} |");
    }
    text += &format!("\n|---|{}\n| not observed |", "--:|".repeat(loads.len()));
    for (load, _) in &loads {
        let all: Vec<f64> = WATCHERS
            .iter()
            .flat_map(|(watcher, _)| samples(record, load, watcher))
            .filter_map(|sample| MEASURES.of(sample, "alone_ns"))
            .collect();
        let median = Summary::of(&all).map_or(f64::NAN, |summary| summary.median);
        text += &format!(" {median:.0} ns |");
    }
    text.push('\n');
    for (watcher, title) in WATCHERS {
        if loads
            .iter()
            .all(|(load, _)| samples(record, load, watcher).is_empty())
        {
            continue;
        }
        text += &format!("| {title} |");
        for (load, _) in &loads {
            let of = |key: &str| MEASURES.summary(samples(record, load, watcher), key);
            text += &match (of("ratio"), of("added_ns")) {
                (Some(ratio), Some(added)) => format!(
                    " {:.3} ({:.3}-{:.3}), {:+.0} ns |",
                    ratio.median, ratio.min, ratio.max, added.median
                ),
                _ => " - |".to_owned(),
            };
        }
        text.push('\n');
    }
    for (load, title) in &loads {
        let added = |watcher: &str| MEASURES.summary(samples(record, load, watcher), "added_ns");
        if let (Some(full), Some(floor)) = (added(FULL), added(FLOOR)) {
            let over = full.median - floor.median;
            text += &format!("\n{title}: {over:+.0} ns over the empty program.\n");
        }
    }
    text
}

fn draw(record: &Record<String>, path: &Path) -> Result<()> {
    // The picture begins at 0; less is noise.
    let rows = host::rows(record, |sample| {
        Some((100.0 * (MEASURES.of(sample, "ratio")? - 1.0)).max(0.0))
    });
    plot::histograms(
        path,
        "What it costs to be observed",
        "% of an operation",
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<String> {
        let arms = [arm("random", FLOOR), arm("random", FULL)];
        let mut record = Record::begin("test", json!({}), json!({}), &arms).expect("a date");
        for noise in [0.0, 10.0, -5.0] {
            for (arm, ns) in arms.iter().zip([1040.0, 1065.0]) {
                let ns = ns + noise;
                let sample = json!({ "ns": ns, "alone_ns": 1000.0, "ratio": ns / 1000.0 });
                record.push(arm.clone(), sample);
            }
        }
        record
    }

    #[test]
    fn the_table_has_ratios_with_their_spread_and_what_they_are_in_time() {
        let table = table(&record());
        for text in [
            "| not observed | 1000 ns |",
            "| an empty program: the floor | 1.040 (1.035-1.050), +40 ns |",
            "pread 4 KiB at random: +25 ns over the empty program.",
        ] {
            assert!(table.contains(text), "{text} is not in {table}");
        }
        assert!(!table.contains("bcc") && !table.contains("fio"), "{table}");
    }

    #[test]
    fn the_summary_is_that_of_pairs() {
        let summary = summary(&record());
        assert_eq!(summary["random full"]["ratio"]["median"], 1.065);
        assert_eq!(summary["random full"]["added_ns"]["max"], 75.0);
    }
}
