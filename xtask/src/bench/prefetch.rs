//! How soon cold pages are in the cache, by migrator and in other ways: on a disk of
//! this host, or on a test host that has them from another one.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::host::{self, Kind, Options};
use super::plot::{self, Row};
use super::record::Record;
use super::statistics::Summary;
use crate::vm::{self, Hosts, Link, SHARED, Threads};
use crate::workspace::Workspace;
use crate::{build, packages};

/// How the experiment is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which pages of which files
    #[arg(long, value_delimiter = ',', default_values_t = SHAPES.map(|(shape, _)| shape.to_owned()),
          value_parser = clap::builder::PossibleValuesParser::new(SHAPES.map(|(shape, _)| shape)))]
    shapes: Vec<String>,
    /// Who brings them into the cache; fio-N is fio with N processes
    #[arg(long, value_delimiter = ',', default_values_t = ARMS.map(|(arm, _)| arm.to_owned()))]
    arms: Vec<String>,
    /// On a test host, over NFS, with so many milliseconds to the server and back
    #[arg(long, value_name = "MS", value_delimiter = ',')]
    nfs: Vec<u32>,
    /// Size of a file in MiB [default: 1024, over NFS 64]
    #[arg(long, value_name = "MIB")]
    size: Option<u64>,
    /// How many small files [default: 10000, over NFS 500]
    #[arg(long)]
    files: Option<u64>,
    #[command(flatten)]
    options: Options,
}

/// As raw runs have it, and as people call it.
const SHAPES: [(&str, &str); 4] = [
    ("whole", "all of a file"),
    ("random", "a tenth of a file's pages, at random"),
    (
        "clustered",
        "an eighth of a file, in pieces of 256 KiB with holes",
    ),
    ("files", "small files"),
];

const ARMS: [(&str, &str); 8] = [
    (MIGRATOR, "**migrator prefetch**"),
    ("vmtouch", "vmtouch -t"),
    ("cat", "cat"),
    ("willneed", "FADV_WILLNEED, page by page"),
    ("pread", "pread, page by page"),
    ("fio-1", "fio, 1 process"),
    ("fio-8", "fio, 8 processes"),
    ("fio-64", "fio, 64 processes"),
];
const MIGRATOR: &str = "migrator";

/// # Errors
/// When a run fails; it takes root.
pub(super) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    build::run(workspace)?;
    let program = build::guest_program(workspace, "warm")?;
    match args.nfs.is_empty() {
        true => on_this_host(workspace, args, &program),
        false => over_nfs(workspace, args, &program),
    }
}

fn on_this_host(workspace: &Workspace, args: &Args, program: &Path) -> Result<()> {
    packages::install_for_benches()?;
    let place = workspace.target().join("bench/prefetch");
    fs::create_dir_all(&place).with_context(|| format!("failed to create {}", place.display()))?;
    let (size, files) = (args.size.unwrap_or(1024), args.files.unwrap_or(10_000));
    let migrator = workspace.dist().join("migrator").display().to_string();
    let mut arms = Vec::new();
    for shape in &args.shapes {
        for arm in &args.arms {
            let mut options = vec!["trial".to_owned(), format!("--migrator={migrator}")];
            options.push(format!("--arm={arm}"));
            options.extend(of_shape(shape, &place.display().to_string(), size, files));
            arms.push((format!("{shape} {arm}"), options));
        }
    }
    let kind = kind("prefetch", arms, size, files);
    args.options.run(workspace, program, &kind)
}

/// The experiment with files of so many MiB, or so many small ones.
fn kind(
    name: &'static str,
    arms: Vec<(String, Vec<String>)>,
    size: u64,
    files: u64,
) -> Kind<'static> {
    Kind {
        name,
        arms,
        scale: json!({ "file_bytes": size << 20, "files": files }),
        line,
        summary,
        table,
        draw: &draw,
    }
}

/// What the program wants to know of the files below a directory.
fn of_shape(shape: &str, below: &str, size: u64, files: u64) -> [String; 4] {
    [
        format!("--shape={shape}"),
        format!("--directory={below}/{shape}"),
        format!("--size={}", size << 20),
        format!("--files={files}"),
    ]
}

/// Where the server has the files, of what clients see at [`SHARED`].
const SERVED: &str = "/srv/shared";

const WARM: &str = "/usr/local/bin/warm";

fn over_nfs(workspace: &Workspace, args: &Args, program: &Path) -> Result<()> {
    let (size, files) = (args.size.unwrap_or(64), args.files.unwrap_or(500));
    // Nothing attaches, and readers are to run beside each other.
    let hosts = Hosts::start(&vm::Options {
        threads: Threads::Multi,
        ..vm::Options::default()
    })?;
    for host in [&hosts.storage, &hosts.destination] {
        host.put(program, WARM)?;
    }
    for shape in &args.shapes {
        let options = of_shape(shape, SERVED, size, files).join(" ");
        hosts.storage.run(&format!("{WARM} make {options}"))?;
    }
    let mut arms = Vec::new();
    for delay in &args.nfs {
        for shape in &args.shapes {
            for arm in &args.arms {
                let mut options = vec![delay.to_string(), "trial".into()];
                options.push(format!("--arm={arm}"));
                options.extend(of_shape(shape, SHARED, size, files));
                arms.push((format!("{delay}ms-{shape} {arm}"), options));
            }
        }
    }
    let kernel = hosts.destination.run("uname -r")?.trim().to_owned();
    let describe = || {
        let mut own = host::describe();
        own["guest_kernel"] = json!(kernel);
        own
    };
    let kind = kind("prefetch-nfs", arms, size, files);
    args.options
        .run_anywhere(workspace, describe, &kind, |args| {
            let (delay, args) = args.split_first().context("no delay")?;
            let round_trip: u32 = delay.parse().context("no number of milliseconds")?;
            hosts.shape(Link {
                rate: None,
                // Of what either host sends.
                delay: Some(round_trip * 500),
            })?;
            let printed = hosts
                .destination
                .run(&format!("{WARM} {}", args.join(" ")))?;
            serde_json::from_str(&printed)
                .with_context(|| format!("not what was expected: {printed}"))
        })?;
    hosts.finish()
}

fn line(sample: &Value) -> String {
    let number = |key: &str| sample[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:>8.3} s, {:>6.0} MB/s, {:.2} CPU s/GiB, {} pages, {} missing, {} besides",
        number("seconds"),
        number("bytes_per_second") / 1e6,
        number("cpu_seconds_per_gib"),
        sample["pages"],
        sample["missing"],
        sample["unasked"],
    )
}

/// What is computed of each sample.
fn derived(sample: &Value, key: &str) -> Option<f64> {
    let number = |key: &str| sample[key].as_f64();
    match key {
        "unasked_share" => Some(number("unasked")? / number("pages")?),
        "missing_share" => Some(number("missing")? / number("pages")?),
        key => number(key),
    }
}

const KEYS: [&str; 5] = [
    "seconds",
    "bytes_per_second",
    "cpu_seconds_per_gib",
    "unasked_share",
    "missing_share",
];

fn summary_of(samples: &[Value], key: &str) -> Option<Summary> {
    Summary::of_each(samples, |sample| derived(sample, key))
}

fn median(samples: &[Value], key: &str) -> f64 {
    summary_of(samples, key).map_or(f64::NAN, |summary| summary.median)
}

/// Shape and arm of what has runs.
fn parts(arm: &str) -> (&str, &str) {
    arm.split_once(' ').unwrap_or((arm, ""))
}

/// The shapes that have runs, each with its arms and their runs.
type ByShape<'a> = Vec<(String, Vec<(String, &'a [Value])>)>;

fn by_shape(record: &Record<String>) -> ByShape<'_> {
    let mut shapes: ByShape<'_> = Vec::new();
    for (name, samples) in record.arms() {
        let (shape, arm) = parts(&name);
        let arm = (arm.to_owned(), samples);
        match shapes.iter_mut().find(|(known, _)| known == shape) {
            Some((_, arms)) => arms.push(arm),
            None => shapes.push((shape.to_owned(), vec![arm])),
        }
    }
    shapes
}

/// How much faster than migrator's the best of some arms is: less than 1 where it
/// is slower.
fn speed_to(arms: &[(String, &[Value])], who: impl Fn(&str) -> bool) -> Option<(String, f64)> {
    let own = arms.iter().find(|(arm, _)| arm == MIGRATOR)?;
    let own = median(own.1, "seconds");
    arms.iter()
        .filter(|(arm, _)| arm != MIGRATOR && who(arm))
        .map(|(arm, samples)| (arm.clone(), median(samples, "seconds") / own))
        .min_by(|one, other| one.1.total_cmp(&other.1))
}

fn is_fio(arm: &str) -> bool {
    arm.starts_with("fio-")
}

fn summary(record: &Record<String>) -> Value {
    let mut all = Map::new();
    for (name, samples) in record.arms() {
        let keys = KEYS.map(|key| (key.to_owned(), json!(summary_of(samples, key))));
        all.insert(name, Value::Object(keys.into_iter().collect()));
    }
    for (shape, arms) in by_shape(record) {
        let to = |who: fn(&str) -> bool| {
            speed_to(&arms, who).map(|(arm, speed)| json!({ "arm": arm, "speed": speed }))
        };
        let ratios = json!({ "to_best_fio": to(is_fio), "to_best_peer": to(|arm| !is_fio(arm)) });
        all.insert(shape, ratios);
    }
    Value::Object(all)
}

fn title(of: &[(&str, &str)], key: &str) -> String {
    let known = of.iter().find(|(known, _)| *known == key);
    known.map_or_else(|| key.to_owned(), |(_, title)| (*title).to_owned())
}

fn shape_title(shape: &str) -> String {
    match shape.split_once("ms-") {
        Some((delay, shape)) => format!("{}, {delay} ms away", title(&SHAPES, shape)),
        None => title(&SHAPES, shape),
    }
}

fn table(record: &Record<String>) -> String {
    let mut text = String::new();
    for (shape, arms) in by_shape(record) {
        text += &format!(
            "| {} | all are there after | min-max | MB/s | CPU s/GiB | came besides | missing |\n\
             |---|--:|--:|--:|--:|--:|--:|\n",
            shape_title(&shape)
        );
        for (arm, samples) in &arms {
            let of = |key: &str| median(samples, key);
            let spread = summary_of(samples, "seconds")
                .map_or_else(String::new, |it| format!("{:.3}-{:.3}", it.min, it.max));
            let percent = |share: f64| match share {
                0.0 => "-".to_owned(),
                share => format!("{:.1} %", 100.0 * share),
            };
            text += &format!(
                "| {} | {:.3} s | {spread} | {:.0} | {:.2} | {} | {} |\n",
                title(&ARMS, arm),
                of("seconds"),
                of("bytes_per_second") / 1e6,
                of("cpu_seconds_per_gib"),
                percent(of("unasked_share")),
                percent(of("missing_share")),
            );
        }
        let best = [
            ("fio's best", speed_to(&arms, is_fio)),
            ("the best peer", speed_to(&arms, |arm| !is_fio(arm))),
        ];
        let best = best.into_iter().filter_map(|(what, best)| {
            let (arm, speed) = best?;
            Some(format!("{speed:.2} of the speed of {what} ({arm})"))
        });
        let best: Vec<_> = best.collect();
        if !best.is_empty() {
            text += &format!("\nmigrator has {}.\n\n", best.join(", "));
        }
    }
    text.trim_end().to_owned() + "\n"
}

fn draw(record: &Record<String>, path: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for (shape, arms) in by_shape(record) {
        let own = arms.iter().find(|(arm, _)| arm == MIGRATOR);
        let own = own.map_or(f64::NAN, |(_, samples)| median(samples, "seconds"));
        for (arm, samples) in arms {
            let seconds = samples.iter().filter_map(|it| it["seconds"].as_f64());
            // The picture is about who is near; what takes longer is at its edge.
            let numbers = seconds.map(|it| (it / own).min(MOST)).collect();
            let title = format!("{shape} {arm}");
            rows.push(Row { title, numbers });
        }
    }
    plot::histograms(
        path,
        "Until all pages are in the cache",
        "times migrator's median",
        &rows,
    )
}

/// The edge of the picture.
const MOST: f64 = 6.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<String> {
        let arms = ["whole migrator", "whole cat", "whole fio-1", "whole fio-8"];
        let arms = arms.map(str::to_owned);
        let mut record = Record::begin("test", json!({}), json!({}), &arms).expect("a date");
        for noise in [0.0, 0.1, -0.1] {
            for (arm, seconds) in arms.iter().zip([1.0, 2.0, 3.0, 0.9]) {
                let sample = json!({
                    "seconds": seconds + noise, "bytes_per_second": 1e9, "pages": 1000,
                    "missing": 0, "unasked": 50, "cpu_seconds_per_gib": 0.25,
                });
                record.push(arm.clone(), sample);
            }
        }
        record
    }

    #[test]
    fn the_table_compares_with_the_best_of_each_kind() {
        let table = table(&record());
        for text in [
            "| **migrator prefetch** | 1.000 s | 0.900-1.100 | 1000 | 0.25 | 5.0 % | - |",
            "0.90 of the speed of fio's best (fio-8), 2.00 of the speed of the best peer (cat)",
            "| all of a file | all are there after |",
        ] {
            assert!(table.contains(text), "{text} is not in {table}");
        }
        assert_eq!(summary(&record())["whole"]["to_best_peer"]["arm"], "cat");
        assert_eq!(shape_title("10ms-files"), "small files, 10 ms away");
    }
}
