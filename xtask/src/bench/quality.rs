//! Which share of the reads after a move hits what was read ahead, by the policy
//! that chose it and the bytes that it was allowed.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::host::{Kind, Options};
use super::plot::{self, Panel, Shares};
use super::record::Record;
use super::statistics::Summary;
use crate::build;
use crate::workspace::Workspace;

/// How the experiment is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Who reads
    #[arg(long, value_delimiter = ',', default_values_t = WORKLOADS.map(str::to_owned),
          value_parser = clap::builder::PossibleValuesParser::new(WORKLOADS))]
    workloads: Vec<String>,
    /// Reads a second, but of traces
    #[arg(long, default_value_t = 200_000)]
    rate: u32,
    /// Seconds that are observed where windows are compared with full tracking
    #[arg(long, default_value_t = 600)]
    long: u32,
    /// Queries of the traced run of sqlite3
    #[arg(long, default_value_t = 400_000)]
    queries: u64,
    #[command(flatten)]
    options: Options,
}

const WORKLOADS: [&str; 7] = [
    "zipf", "scan", "shift", "drift", "slow", "restart", "sqlite",
];

/// The policies, as raw runs and as people call them.
const POLICIES: [(&str, &str); 9] = [
    (OURS, "migrator's heat"),
    (WINDOWS, "migrator's heat, in windows"),
    (SHORT, "observed for 5 s, then the LRU"),
    (LEFT_ON, "in windows, then the LRU"),
    ("lru", "LRU, active first"),
    ("recent", "most recent first"),
    ("resident", "what is resident"),
    ("random", "at random"),
    (ORACLE, "oracle"),
];
const OURS: &str = "heat";
/// The product observes like this where it is left on.
const WINDOWS: &str = "windows";
/// What `move` does where no tracker was left on.
const SHORT: &str = "short";
/// What `move` does where one was.
const LEFT_ON: &str = "left on";
const ORACLE: &str = "oracle";

/// What is tried in the place of the product's ranking.
const RANKINGS: [(&str, &str); 7] = [
    ("kept 0.5", "half is kept in each epoch"),
    ("kept 0.75", "**3/4**"),
    ("kept 0.875", "7/8"),
    ("kept 0.9375", "15/16"),
    ("again 1", "used again counts 1"),
    ("again 2", "**2**"),
    ("again 3", "3"),
];

/// # Errors
/// When a run fails; traces need strace and sqlite3.
pub(super) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let program = build::own_program(workspace, "gauge")?;
    let short = args.workloads.iter().map(|workload| {
        let (option, value) = match workload.as_str() {
            "sqlite" => ("--queries", args.queries.to_string()),
            _ => ("--rate", args.rate.to_string()),
        };
        let mut options = vec!["quality".to_owned(), option.to_owned(), value];
        if workload != "sqlite" {
            options.extend(["--workload".to_owned(), workload.clone()]);
        }
        (workload.clone(), options)
    });
    // A minute is short for what is meant for days.
    let synthetic = args
        .workloads
        .iter()
        .filter(|it| !["sqlite", "slow", "restart"].contains(&it.as_str()));
    let long = synthetic.map(|workload| {
        let options = [
            "quality".to_owned(),
            "--windows".to_owned(),
            format!("--rate={}", args.rate),
            format!("--before={}", args.long),
            format!("--workload={workload}"),
        ];
        (format!("{workload}, {} s", args.long), options.to_vec())
    });
    let kind = Kind {
        name: "quality",
        arms: short.chain(long).collect(),
        scale: json!({
            "reads_per_second": args.rate, "long_seconds": args.long, "queries": args.queries,
        }),
        line,
        summary,
        table,
        draw: &draw,
    };
    args.options.run(workspace, &program, &kind)
}

fn line(sample: &Value) -> String {
    let samples = std::slice::from_ref(sample);
    let others = match least(&to_others(samples)) {
        least if least.is_finite() => format!(", {least:.3} of the best other"),
        _ => String::new(),
    };
    format!(
        "at least {:.3} of the oracle{others}; in windows, {:.1} % of the time, {:.3} of that",
        least(&to_oracle(samples, OURS)),
        100.0 * observed(samples).unwrap_or(f64::NAN),
        least(&to_full(samples)),
    )
}

/// The median share of hits at each budget.
fn hits(samples: &[Value], policy: &str) -> Vec<f64> {
    let at = |budget: usize| {
        let shares = samples
            .iter()
            .filter_map(|sample| sample["hits"][policy][budget].as_f64());
        Summary::of(&shares.collect::<Vec<_>>()).map(|summary| summary.median)
    };
    (0..).map_while(at).collect()
}

/// The same in proportion to another policy, or to the oracle.
fn ratio(one: &[f64], other: &[f64]) -> Vec<f64> {
    let both = one.iter().zip(other);
    both.map(|(one, other)| one / other).collect()
}

fn to_oracle(samples: &[Value], policy: &str) -> Vec<f64> {
    ratio(&hits(samples, policy), &hits(samples, ORACLE))
}

/// What is left of our hits when the tracker observes in windows.
fn to_full(samples: &[Value]) -> Vec<f64> {
    ratio(&hits(samples, WINDOWS), &hits(samples, OURS))
}

/// The median part of the time that windows observe.
fn observed(samples: &[Value]) -> Option<f64> {
    Summary::of_each(samples, |it| it["observed"].as_f64()).map(|summary| summary.median)
}

/// Our hits in proportion to those of the best other policy, at each budget.
fn to_others(samples: &[Value]) -> Vec<f64> {
    let ours = hits(samples, OURS);
    let others = POLICIES
        .iter()
        .filter(|(policy, _)| ![OURS, WINDOWS, SHORT, LEFT_ON, ORACLE].contains(policy))
        .map(|(policy, _)| hits(samples, policy))
        .filter(|hits| !hits.is_empty());
    let mut best = vec![0.0_f64; ours.len()];
    for other in others {
        for (best, hits) in best.iter_mut().zip(other) {
            *best = best.max(hits);
        }
    }
    best.retain(|hits| *hits > 0.0);
    ratio(&ours, &best)
}

fn least(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

fn milli(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn summary(record: &Record<String>) -> Value {
    let arms = record.arms().map(|(arm, samples)| {
        let list = |numbers: Vec<f64>| numbers.into_iter().map(milli).collect::<Vec<_>>();
        let names = POLICIES.iter().chain(&RANKINGS);
        let policies: Map<String, Value> = names
            .map(|(policy, _)| {
                (
                    (*policy).to_owned(),
                    json!(list(to_oracle(samples, policy))),
                )
            })
            .collect();
        let value = json!({
            "runs": samples.len(),
            "oracle_hits": list(hits(samples, ORACLE)),
            "to_oracle": policies,
            "least_to_oracle": milli(least(&to_oracle(samples, OURS))),
            "least_to_best_other": milli(least(&to_others(samples))),
            "windows_to_full": list(to_full(samples)),
            "windows_observed": observed(samples),
        });
        (arm, value)
    });
    Value::Object(arms.collect())
}

/// Budgets of a workload, in MiB.
fn budgets(samples: &[Value]) -> Vec<f64> {
    let bytes = samples.first().and_then(|it| it["budget_bytes"].as_array());
    let bytes = bytes.into_iter().flatten().filter_map(Value::as_f64);
    bytes.map(|bytes| bytes / f64::from(1 << 20)).collect()
}

fn row(title: &str, numbers: &[f64]) -> String {
    let cells = numbers.iter().map(|number| format!(" {number:.3} |"));
    format!("| {title} |{}\n", cells.collect::<String>())
}

fn table(record: &Record<String>) -> String {
    let mut text = String::new();
    for (arm, samples) in record.arms() {
        let budgets = budgets(samples);
        let heads = budgets.iter().map(|mib| format!(" {mib:.0} |"));
        text += &format!(
            "**{arm}**: hits in proportion to the oracle's, by MiB read ahead\n\n| |{}\n|---|{}\n",
            heads.collect::<String>(),
            "--:|".repeat(budgets.len()),
        );
        for (policy, title) in POLICIES {
            text += &match policy {
                policy if hits(samples, policy).is_empty() => continue,
                ORACLE => row(
                    "share of the reads that the oracle hits",
                    &hits(samples, policy),
                ),
                _ => row(title, &to_oracle(samples, policy)),
            };
        }
        let to_full = to_full(samples);
        if let (Some(share), false) = (observed(samples), to_full.is_empty()) {
            let title = format!("windows, {:.1} % of the time, to all of it", 100.0 * share);
            text += &row(&title, &to_full);
        }
        text.push('\n');
    }
    text += "**The ranking's parameters**: the least of a row above, with others\n\n|";
    let ranked = |samples: &[Value]| !to_others(samples).is_empty();
    let arms: Vec<_> = record.arms().filter(|(_, it)| ranked(it)).collect();
    for (arm, _) in &arms {
        text += &format!(" | {arm}");
    }
    text += &format!(" |\n|---|{}\n", "--:|".repeat(arms.len()));
    for (ranking, title) in RANKINGS {
        let least = arms
            .iter()
            .map(|(_, samples)| least(&to_oracle(samples, ranking)));
        text += &row(title, &least.collect::<Vec<_>>());
    }
    text
}

fn draw(record: &Record<String>, path: &Path) -> Result<()> {
    let panels: Vec<_> = record
        .arms()
        .map(|(arm, samples)| {
            let budgets = budgets(samples);
            let lines = POLICIES.map(|(policy, title)| Shares {
                title,
                points: budgets.iter().copied().zip(hits(samples, policy)).collect(),
            });
            let lines = lines.into_iter().filter(|line| !line.points.is_empty());
            Panel {
                title: arm,
                lines: lines.collect(),
            }
        })
        .collect();
    plot::shares(path, "Reads that hit, by MiB read ahead", &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<String> {
        let mut record =
            Record::begin("test", json!({}), json!({}), &["zipf".to_owned()]).expect("a date");
        for ours in [0.3, 0.45, 0.4] {
            let sample = json!({
                "pages": 512, "budget_bytes": [1 << 20, 2 << 20],
                "observed": 0.25,
                "hits": {
                    "oracle": [0.5, 1.0], "heat": [ours, 0.9], "lru": [0.2, 0.8],
                    "windows": [0.36, 0.9],
                    "recent": [0.32, 0.6], "resident": [0.1, 0.2], "random": [0.1, 0.2],
                },
            });
            record.push("zipf".to_owned(), sample);
        }
        let long = json!({
            "budget_bytes": [1 << 20], "observed": 0.03,
            "hits": { "oracle": [0.5], "heat": [0.4], "windows": [0.38] },
        });
        record.push("zipf, 600 s".to_owned(), long);
        record
    }

    #[test]
    fn windows_are_told_in_proportion_to_full_tracking() {
        let summary = summary(&record());
        assert_eq!(summary["zipf"]["windows_to_full"], json!([0.9, 1.0]));
        let long = &summary["zipf, 600 s"];
        assert_eq!(long["windows_to_full"], json!([0.95]));
        assert_eq!(long["least_to_best_other"], Value::Null);
        let table = table(&record());
        let row = "| windows, 3.0 % of the time, to all of it | 0.950 |";
        assert!(table.contains(row), "{table}");
        // Nothing but windows was tried there.
        assert!(table.contains("with others\n\n| | zipf |\n"), "{table}");
    }

    #[test]
    fn hits_are_told_in_proportion_to_the_oracles() {
        let summary = summary(&record());
        assert_eq!(summary["zipf"]["to_oracle"]["heat"], json!([0.8, 0.9]));
        assert_eq!(summary["zipf"]["least_to_oracle"], 0.8);
        assert_eq!(summary["zipf"]["least_to_best_other"], 1.125);
    }

    #[test]
    fn the_table_has_a_column_for_each_budget() {
        let table = table(&record());
        assert!(table.contains("| | 1 | 2 |\n|---|--:|--:|\n"), "{table}");
        assert!(
            table.contains("| LRU, active first | 0.400 | 0.800 |"),
            "{table}"
        );
    }
}
