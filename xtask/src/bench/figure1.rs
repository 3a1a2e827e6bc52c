//! Figure 1: how fast each pass over the file is, before and after.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Kind;
use super::arm::Arm;
use super::plot::{self, Line};
use super::record::Record;
use super::stage::{Scale, Workload};
use super::statistics::Summary;
use super::trial::{Enough, Trial};

pub(super) const FIGURE: Kind = Kind {
    name: "figure1",
    arms: &[Arm::Criu, Arm::Move],
    enough: |_: &Scale| Enough {
        ordered: 0.0,
        resumed: 0.0,
        passes: u64::from(AROUND.unsigned_abs()) + 1,
    },
    sample,
    line,
    summary,
    table,
    draw,
};

/// How many passes before and after the migration are kept.
const AROUND: i32 = 4;

/// The passes as `[number, bytes per second]`; 0 is the first one after.
fn sample(trial: &Trial, _: &Scale) -> Result<Value> {
    let passes = trial.curve.passes(trial.pass);
    let speeds: Vec<_> = passes
        .iter()
        .filter(|pass| (-AROUND..AROUND).contains(&pass.number))
        .map(|pass| {
            let speed = trial.pass as f64 / (pass.end - pass.begin);
            json!([pass.number, speed.round()])
        })
        .collect();
    ensure!(speeds.len() > 1, "too few passes were seen: {passes:?}");
    Ok(json!({ "passes": speeds, "report": trial.report }))
}

/// The passes of a sample by number, in MB/s.
fn speeds(sample: &Value) -> impl Iterator<Item = (i32, f64)> {
    let passes = sample["passes"].as_array().into_iter().flatten();
    passes.filter_map(|pass| Some((pass[0].as_i64()? as i32, pass[1].as_f64()? / 1e6)))
}

fn line(sample: &Value) -> String {
    let speeds: Vec<_> = speeds(sample)
        .map(|(number, speed)| match number {
            0 => format!("| {speed:.0}"),
            _ => format!("{speed:.0}"),
        })
        .collect();
    format!("{} MB/s", speeds.join(" "))
}

/// The median of each pass of an arm, in MB/s.
fn medians(samples: &[Value]) -> BTreeMap<i32, f64> {
    let mut by_number: BTreeMap<i32, Vec<f64>> = BTreeMap::new();
    for (number, speed) in samples.iter().flat_map(speeds) {
        by_number.entry(number).or_default().push(speed);
    }
    by_number
        .into_iter()
        .filter_map(|(number, speeds)| Some((number, Summary::of(&speeds)?.median)))
        .collect()
}

fn summary(record: &Record) -> Value {
    let arms = record.arms().map(|(arm, samples)| {
        let passes: Vec<_> = medians(samples).into_iter().collect();
        (
            arm.key().to_owned(),
            json!({ "median_mb_per_second": passes }),
        )
    });
    Value::Object(arms.collect())
}

fn table(record: &Record) -> String {
    let arms: Vec<_> = record
        .arms()
        .map(|(arm, samples)| (arm, medians(samples)))
        .collect();
    let mut text = String::from("| MB/s, median of pass |");
    let mut rule = String::from("|---|");
    for number in -AROUND..AROUND {
        // Writing to a String does not fail.
        let _ = match number {
            ..0 => write!(text, " {number} |"),
            _ => write!(text, " +{} |", number + 1),
        };
        rule += "--:|";
    }
    text += &format!("\n{rule}\n");
    for (arm, medians) in arms {
        text += &format!("| {} |", arm.title());
        for number in -AROUND..AROUND {
            text += &match medians.get(&number) {
                Some(speed) => format!(" {speed:.0} |"),
                None => " |".to_owned(),
            };
        }
        text.push('\n');
    }
    text
}

fn draw(record: &Record, path: &Path, _: Workload) -> Result<()> {
    let lines: Vec<_> = record
        .arms()
        .map(|(arm, samples)| Line {
            title: arm.title().to_owned(),
            points: medians(samples).into_iter().collect(),
        })
        .collect();
    plot::passes(path, "Speed of each pass over the file", &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_median_of_each_pass() {
        let scale = json!({"file_bytes": 1, "link_bits_per_second": 1});
        let mut record = Record::begin("test", json!({}), scale, &[]).expect("a date");
        for first in [10e6, 30e6, 20e6] {
            let sample = json!({"passes": [[-1, 600e6], [0, first]]});
            assert_eq!(line(&sample), format!("600 | {:.0} MB/s", first / 1e6));
            record.push(Arm::Criu, sample);
        }
        let table = table(&record);
        assert!(table.contains("| -1 | +1 |"), "{table}");
        assert!(table.contains("| CRIU alone | | | | 600 | 20 |"), "{table}");
    }
}
