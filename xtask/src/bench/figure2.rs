//! Figure 2: how much a process has read when a fixed time is over.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Kind;
use super::arm::Arm;
use super::plot::{self, Row};
use super::record::Record;
use super::stage::{Scale, Workload};
use super::statistics::Summary;
use super::trial::{Enough, Trial};

pub(super) const FIGURE: Kind = Kind {
    name: "figure2",
    arms: &Arm::ALL,
    enough: |scale: &Scale| Enough {
        ordered: scale.window,
        resumed: scale.window * AFTER,
        passes: 1,
    },
    sample,
    line,
    summary,
    table,
    draw,
};

/// What is read in this part of the window is counted from the resume on, too.
const AFTER: f64 = 0.5;

/// Seconds before the order in which the warm speed is measured.
const BEFORE: f64 = 2.0;

/// Seconds between two points of the curve that is kept.
const STEP: f64 = 0.5;

/// So many passes after the migration are kept one by one.
const PASSES: i32 = 8;

// Keys of a sample.
const READ: &str = "read_bytes";
const READ_AFTER: &str = "read_after_resume_bytes";
const FREEZE: &str = "freeze_seconds";
const RESUMED: &str = "resumed_seconds";
const WARM: &str = "warm_bytes_per_second";
const FIRST: &str = "first_pass_bytes_per_second";
const FIRST_TO_WARM: &str = "first_pass_to_warm";

fn sample(trial: &Trial, scale: &Scale) -> Result<Value> {
    let curve = &trial.curve;
    let (begin, freeze, warm, read) = (|| {
        let begin = curve.bytes_at(0.0)?;
        let read = curve.bytes_at(scale.window)? - begin;
        Some((begin, curve.freeze()?, curve.speed(-BEFORE, 0.0)?, read))
    })()
    .context("the process was not seen all the time")?;
    let after = scale.window * AFTER;
    let after = curve
        .speed(freeze.resumed, freeze.resumed + after)
        .map(|speed| speed * after);
    let passes = curve.passes(trial.pass);
    let first = passes.iter().find(|pass| pass.number == 0);
    let first = first.map(|pass| trial.pass as f64 / (pass.end - pass.begin));
    let steps = (-5.0 / STEP) as i32..=(curve.end().unwrap_or(0.0) / STEP) as i32;
    let points = steps.filter_map(|step| {
        let at = f64::from(step) * STEP;
        Some(json!([at, (curve.bytes_at(at)? - begin).round()]))
    });
    Ok(json!({
        READ: read.round(),
        READ_AFTER: after.map(f64::round),
        FREEZE: milli(freeze.seconds()),
        RESUMED: milli(freeze.resumed),
        WARM: warm.round(),
        FIRST: first.map(f64::round),
        "passes_to_warm": passes.iter().filter(|it| (0..PASSES).contains(&it.number)).map(|it| milli(trial.pass as f64 / (it.end - it.begin) / warm)).collect::<Vec<_>>(),
        FIRST_TO_WARM: first.map(|first| milli(first / warm)),
        "curve": points.collect::<Vec<_>>(),
        "report": trial.report,
    }))
}

fn milli(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn line(sample: &Value) -> String {
    let number = |key: &str, unit: f64| sample[key].as_f64().unwrap_or(f64::NAN) / unit;
    format!(
        "read {:>5.2} GB; frozen {:.2} s, resumed at {:.2} s; first pass {:>3.0} MB/s, \
         warm {:.0} MB/s",
        number(READ, 1e9),
        number(FREEZE, 1.0),
        number(RESUMED, 1.0),
        number(FIRST, 1e6),
        number(WARM, 1e6),
    )
}

fn summary(record: &Record) -> Value {
    let mut arms = Map::new();
    for (arm, _) in record.arms() {
        let keys = [
            READ,
            READ_AFTER,
            FREEZE,
            RESUMED,
            WARM,
            FIRST,
            FIRST_TO_WARM,
        ];
        let of = |key: &str| json!(Summary::of(&record.numbers(arm, key)));
        let mut entry: Map<String, Value> = keys
            .iter()
            .map(|key| ((*key).to_owned(), of(key)))
            .collect();
        for (name, to) in [("to_criu", Arm::Criu), ("to_limit", Arm::Limit)] {
            entry.insert(name.into(), json!(ratio(record, READ, arm, to).map(milli)));
        }
        arms.insert(arm.key().into(), Value::Object(entry));
    }
    Value::Object(arms)
}

/// How the medians of two arms compare.
fn ratio(record: &Record, key: &str, arm: Arm, to: Arm) -> Option<f64> {
    let median = |arm| Some(Summary::of(&record.numbers(arm, key))?.median);
    Some(median(arm)? / median(to)?)
}

fn table(record: &Record) -> String {
    let mut text = String::from(
        "| | read, median | mean | min – max | × CRIU | of the limit | read after the resume \
         | freeze | first pass : warm |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (arm, samples) in record.arms() {
        let of = |key: &str| Summary::of(&record.numbers(arm, key));
        let cell = |cell: Option<String>| cell.unwrap_or_default();
        let read = of(READ);
        let cells = [
            format!("{} ({} runs)", arm.title(), samples.len()),
            cell(read.map(|it| format!("{:.2} GB", it.median / 1e9))),
            cell(read.map(|it| format!("{:.2} GB", it.mean / 1e9))),
            cell(read.map(|it| format!("{:.2} – {:.2} GB", it.min / 1e9, it.max / 1e9))),
            cell(ratio(record, READ, arm, Arm::Criu).map(|it| format!("{it:.2}"))),
            cell(ratio(record, READ, arm, Arm::Limit).map(|it| format!("{it:.2}"))),
            cell(of(READ_AFTER).map(|it| format!("{:.2} GB", it.median / 1e9))),
            cell(of(FREEZE).map(|it| format!("{:.2} s", it.median))),
            cell(of(FIRST_TO_WARM).map(|it| format!("{:.2}", it.median))),
        ];
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

fn draw(record: &Record, path: &Path, workload: Workload) -> Result<()> {
    let rows: Vec<_> = record
        .arms()
        .map(|(arm, _)| Row {
            title: arm.title().to_owned(),
            numbers: record
                .numbers(arm, READ)
                .iter()
                .map(|read| read / 1e9)
                .collect(),
        })
        .collect();
    let title = match workload {
        Workload::Loop => "Read when the time is over: a file over and over",
        Workload::Hot => "Read when the time is over: 4 KiB of a hot tenth, at random",
        Workload::Mmap => "Read when the time is over: a mapped file over and over",
    };
    plot::histograms(path, title, "GB", &rows)
}

#[cfg(test)]
mod tests {
    use super::super::curve::{Curve, Point};
    use super::*;

    /// Warm at 100 MB/s, stopped at 1, resumed at 2, then `speed`.
    fn trial(speed: u64) -> Trial {
        let point = |at: i32, bytes: u64| Point {
            at: f64::from(at),
            bytes,
        };
        let source: Vec<_> = (-5..=1)
            .map(|at| point(at, (at + 5) as u64 * 100_000_000))
            .collect();
        let destination: Vec<_> = (2..=13)
            .map(|at| point(at, 600_000_000 + (at - 2) as u64 * speed))
            .collect();
        let curve = Curve::of(&source, &destination);
        Trial {
            curve,
            pass: 200_000_000,
            report: Value::Null,
        }
    }

    fn scale() -> Scale {
        Scale {
            kernel: "6.12".into(),
            size: 1,
            rate: 8,
            window: 10.0,
            source: "auto".into(),
        }
    }

    #[test]
    fn a_sample_is_what_was_read_since_the_order() {
        let sample = sample(&trial(50_000_000), &scale()).expect("all was seen");
        assert_eq!(sample[READ], 100e6 + 8.0 * 50e6);
        assert_eq!(sample[READ_AFTER], 250e6);
        assert_eq!(
            (&sample[FREEZE], &sample[RESUMED]),
            (&json!(1.0), &json!(2.0))
        );
        assert_eq!(sample[WARM], 100e6);
        assert_eq!(sample["curve"][0], json!([-5.0, -500e6]));
        assert_eq!(sample[FIRST], 50e6);
        assert_eq!(sample[FIRST_TO_WARM], 0.5);
    }

    #[test]
    fn arms_are_compared_by_their_medians() {
        let mut record = Record::begin("test", json!({}), scale().to_json(), &[]).expect("a date");
        for (arm, speed) in [(Arm::Criu, 10), (Arm::Criu, 20), (Arm::Limit, 100)] {
            let sample = sample(&trial(speed * 1_000_000), &scale()).expect("all was seen");
            record.push(arm, sample);
        }
        let summary = summary(&record);
        // (100 + 8 * 15) MB and (100 + 8 * 100) MB.
        assert_eq!(summary["criu"][READ]["median"], 220e6);
        assert_eq!(summary["limit"]["to_criu"], milli(900.0 / 220.0));
        assert!(table(&record).contains("| CRIU alone (2 runs) | 0.22 GB | 0.22 GB |"));
    }
}
