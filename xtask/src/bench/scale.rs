//! What a tracker takes in memory and time as what it tracks grows: by simulation, and
//! on this host.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::host::{Kind, Options};
use super::measures::Measures;
use super::plot::{self, Growth};
use super::record::Record;
use crate::build;
use crate::workspace::Workspace;

/// How the experiment is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GiB of the caches that are simulated
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256, 1024])]
    gib: Vec<u64>,
    /// Small files, simulated and real
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    files: Vec<u64>,
    /// Processes
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000])]
    processes: Vec<u64>,
    /// MiB of real files; of what memory does not hold, the tracker still knows
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 12_288, 65_536])]
    mib: Vec<u64>,
    /// 2 MiB chunks that a tracker which is stopped can't see; more than its map has room for
    #[arg(long, value_delimiter = ',', default_values_t = [60_000])]
    chunks: Vec<u64>,
    /// Seconds of a real run
    #[arg(long, default_value_t = 15)]
    time: u64,
    #[command(flatten)]
    options: Options,
}

/// What is simulated, and what people call it.
const SIMULATED: [(&str, &str); 4] = [
    ("sequential", "read in order"),
    ("random", "read at random"),
    ("files", "small files"),
    ("hot", "a hot sixteenth and a scan"),
];

/// What is real, and what people call it.
const REAL: [(&str, &str); 4] = [
    ("files", "small files of 64 KiB"),
    ("processes", "processes"),
    ("cache", "MiB of a file"),
    ("overflow", "chunks at once"),
];

/// A host for which the kernel's memory is computed: GiB, of which its cache takes so
/// much, in so many files.
const HOSTS: [(u64, u64); 8] = [
    (4, 1_000),
    (16, 1_000),
    (16, 100_000),
    (64, 1_000),
    (64, 100_000),
    (96, 100_000),
    (256, 100_000),
    (1024, 100_000),
];

/// # Errors
/// When a run fails; it takes root.
pub(super) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    build::run(workspace)?;
    let program = build::own_program(workspace, "gauge")?;
    let place = workspace.target().join("bench");
    fs::create_dir_all(&place).with_context(|| format!("failed to create {}", place.display()))?;
    let mut arms: Vec<(String, Vec<String>)> = Vec::new();
    for (gib, files) in HOSTS {
        let name = format!("host of {gib} GiB, {files} files");
        let options = [format!("--gib={gib}"), format!("--files={files}")];
        arms.push((name, with("kernel", options)));
    }
    for (cache, _) in SIMULATED {
        let sizes = match cache {
            "files" => args.files.iter().map(|files| *files * SMALL).collect(),
            _ => args.gib.iter().map(|gib| *gib << 18).collect::<Vec<u64>>(),
        };
        for pages in sizes {
            let options = [format!("--cache={cache}"), format!("--pages={pages}")];
            arms.push((
                format!("simulated {cache} {pages}"),
                with("simulation", options),
            ));
        }
    }
    let real = [&args.files, &args.processes, &args.mib, &args.chunks];
    for ((much, _), counts) in REAL.iter().zip(real) {
        for count in counts {
            let options = [
                format!("--much={much}"),
                format!("--count={count}"),
                format!("--time={}", args.time),
                format!("--migrator={}", workspace.dist().join("migrator").display()),
                format!("--place={}", place.display()),
            ];
            arms.push((format!("tracked {much} {count}"), with("crowd", options)));
        }
    }
    let kind = Kind {
        name: "scale",
        arms,
        scale: json!({ "seconds": args.time }),
        line,
        summary,
        table,
        draw: &draw,
    };
    args.options.run(workspace, &program, &kind)
}

/// Pages of a small file.
const SMALL: u64 = 16;

fn with(command: &str, options: impl IntoIterator<Item = String>) -> Vec<String> {
    [command.to_owned()].into_iter().chain(options).collect()
}

fn number(sample: &Value, key: &str) -> f64 {
    sample[key].as_f64().unwrap_or(f64::NAN)
}

const MIB: f64 = 1_048_576.0;

fn line(sample: &Value) -> String {
    let mib = |key: &str| number(sample, key) / MIB;
    let mut text = String::new();
    for (key, what) in [
        ("kernel_bytes", "in the kernel"),
        ("memory_bytes", "in memory"),
        ("peak_bytes", "at most"),
    ] {
        if !sample[key].is_null() {
            text += &format!("{:>7.1} MiB {what}  ", mib(key));
        }
    }
    if !sample["cpu_seconds"].is_null() {
        text += &format!("{:.2} s of CPU", number(sample, "cpu_seconds"));
    }
    text
}

const MEASURES: Measures = Measures {
    keys: &[
        "kernel_bytes_before",
        "kernel_bytes",
        "kernel_share",
        "memory_bytes",
        "shared_bytes",
        "peak_bytes",
        "tracked_pages",
        "used_pages",
        "known_pages",
        "known_files",
        "forgotten_pages",
        "hot_known",
        "bytes_per_page",
        "ns_per_use",
        "list_cpu_seconds",
        "cpu_seconds_per_minute",
    ],
    derived: |key, number| match key {
        "ns_per_use" => Some(1e9 * number("cpu_seconds")? / number("uses")?),
        "bytes_per_page" => Some(number("memory_bytes")? / number("known_pages")?),
        "cpu_seconds_per_minute" => Some(60.0 * number("cpu_seconds")? / number("seconds")?),
        "kernel_share" => Some(number("kernel_bytes")? / number("cache_bytes")?),
        _ => None,
    },
};

fn summary(record: &Record<String>) -> Value {
    Value::Object(MEASURES.of_record(record))
}

/// What an arm is of, and the runs of it.
type Arm<'a> = (&'static str, u64, &'a [Value]);

/// The arms of a kind, in the order of their titles and of how much it is.
fn arms<'a>(
    record: &'a Record<String>,
    kind: &str,
    titles: &[(&'static str, &'static str)],
) -> Vec<Arm<'a>> {
    let mut found = Vec::new();
    for (arm, samples) in record.arms() {
        let of_kind = arm.strip_prefix(kind).and_then(|arm| arm.split_once(' '));
        let Some((what, Ok(count))) = of_kind.map(|(what, count)| (what, count.parse::<u64>()))
        else {
            continue;
        };
        if let Some(place) = titles.iter().position(|(key, _)| *key == what) {
            found.push((place, count, samples));
        }
    }
    found.sort_by_key(|(place, count, _)| (*place, *count));
    let titled =
        |(place, count, samples): (usize, u64, &'a [Value])| (titles[place].1, count, samples);
    found.into_iter().map(titled).collect()
}

fn table(record: &Record<String>) -> String {
    let mut text = String::from(
        "**In the kernel**, computed, where all memory is one tracked cache\n\n\
         | | kernel memory | of the cache |\n|---|--:|--:|\n",
    );
    for (arm, samples) in record.arms() {
        if arm.starts_with("host") {
            text += &format!(
                "| {arm} | {:.1} MiB | {:.3} % |\n",
                MEASURES.median(samples, "kernel_bytes") / MIB,
                100.0 * MEASURES.median(samples, "kernel_share"),
            );
        }
    }
    text += "\n**Simulated**: what is remembered of a cache\n\n\
             | | cache | known | forgotten | memory | a page | with the list | a use | list |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for (title, pages, samples) in arms(record, "simulated ", &SIMULATED) {
        let of = |key: &str| MEASURES.median(samples, key);
        let hot = match of("hot_known") {
            share if share.is_nan() => String::new(),
            share => format!(" ({:.1} % of what is hot)", 100.0 * share),
        };
        text += &format!(
            "| {title} | {:.2} GiB | {:.2} GiB{hot} | {:.2} GiB | {:.1} MiB | {:.2} B | {:.1} MiB | {:.1} ns | {:.2} s |\n",
            pages as f64 / 262_144.0,
            of("known_pages") / 262_144.0,
            of("forgotten_pages") / 262_144.0,
            of("memory_bytes") / MIB,
            of("bytes_per_page"),
            of("peak_bytes") / MIB,
            of("ns_per_use"),
            of("list_cpu_seconds"),
        );
    }
    text += "\n**Real**: `migrator track --all` on this host\n\n\
             | | pages used | known | kernel memory before | after | memory | of it program and map | with the list | CPU a minute |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for (title, count, samples) in arms(record, "tracked ", &REAL) {
        let of = |key: &str| MEASURES.median(samples, key);
        text += &format!(
            "| {count} {title} | {:.0} | {:.0} | {:.1} MiB | {:.1} MiB | {:.1} MiB | {:.1} MiB | {:.1} MiB | {:.2} s |\n",
            of("used_pages"),
            of("known_pages"),
            of("kernel_bytes_before") / MIB,
            of("kernel_bytes") / MIB,
            of("memory_bytes") / MIB,
            of("shared_bytes") / MIB,
            of("peak_bytes") / MIB,
            of("cpu_seconds_per_minute"),
        );
    }
    text + &losses(record)
}

/// What was lost in real runs, and what the tracker said of it.
fn losses(record: &Record<String>) -> String {
    let mut text = String::new();
    for (title, count, samples) in arms(record, "tracked ", &REAL) {
        let Some(last) = samples.last() else {
            continue;
        };
        let warnings = last["said"].as_array().into_iter().flatten();
        let warnings: Vec<_> = warnings
            .filter_map(Value::as_str)
            .filter_map(|line| line.strip_prefix("migrator: warning: "))
            .collect();
        if warnings.is_empty() {
            continue;
        }
        let hot = match number(last, "hot_pages") {
            hot if hot > 0.0 => format!(
                " Of {hot:.0} hot pages {:.0} were known as hot.",
                number(last, "known_hot_pages")
            ),
            _ => String::new(),
        };
        text += &format!("\nOf {count} {title}: \"{}\".{hot}\n", warnings.join("; "));
    }
    text
}

fn draw(record: &Record<String>, path: &Path) -> Result<()> {
    let arms = arms(record, "simulated ", &SIMULATED);
    let point = |(_, pages, samples): &Arm<'_>| {
        (
            *pages as f64 / 262_144.0,
            MEASURES.median(samples, "peak_bytes") / MIB,
        )
    };
    let lines = SIMULATED.map(|(_, title)| Growth {
        title,
        points: arms
            .iter()
            .filter(|arm| arm.0 == title)
            .map(point)
            .collect(),
    });
    plot::growth(
        path,
        "What a tracker remembers, with the list written",
        ("GiB of tracked cache", "MiB"),
        &lines,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<String> {
        let arms = [
            "simulated random 262144",
            "tracked overflow 60000",
            "host of 4 GiB, 1 files",
        ];
        let arms = arms.map(str::to_owned);
        let mut record = Record::begin("test", json!({}), json!({}), &arms).expect("a date");
        let samples = [
            json!({ "known_pages": 262_144, "forgotten_pages": 0, "memory_bytes": 524_288,
                    "peak_bytes": 1_048_576, "cpu_seconds": 0.01, "uses": 1_000_000,
                    "list_cpu_seconds": 0.5 }),
            json!({ "used_pages": 60_000, "known_pages": 40_000, "hot_pages": 6000,
                    "known_hot_pages": 5999, "seconds": 30.0, "cpu_seconds": 1.0,
                    "said": ["migrator: warning: 20000 chunks"] }),
            json!({ "kernel_bytes": 2_097_152, "cache_bytes": 4_294_967_296_u64 }),
        ];
        for (arm, sample) in arms.iter().zip(samples) {
            record.push(arm.clone(), sample);
        }
        record
    }

    #[test]
    fn the_tables_have_what_is_computed_of_each_sample() {
        let table = table(&record());
        for text in [
            "| host of 4 GiB, 1 files | 2.0 MiB | 0.049 % |",
            "| read at random | 1.00 GiB | 1.00 GiB | 0.00 GiB | 0.5 MiB | 2.00 B | 1.0 MiB | 10.0 ns | 0.50 s |",
            "| 60000 chunks at once | 60000 | 40000 |",
            "| 2.00 s |",
            "Of 60000 chunks at once: \"20000 chunks\". Of 6000 hot pages 5999 were known as hot.",
        ] {
            assert!(table.contains(text), "{text} is not in {table}");
        }
    }

    #[test]
    fn the_summary_leaves_out_what_an_arm_does_not_have() {
        let summary = summary(&record());
        let host = summary["host of 4 GiB, 1 files"]
            .as_object()
            .expect("an arm");
        assert_eq!(
            host.keys().collect::<Vec<_>>(),
            ["kernel_bytes", "kernel_share"]
        );
    }
}
