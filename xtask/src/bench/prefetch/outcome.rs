//! What came of it: how the ways to bring pages in compare.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{ARMS, MIGRATOR, SHAPES};
use crate::bench::measures::Measures;
use crate::bench::plot::{self, Row};
use crate::bench::record::Record;

pub(super) fn line(sample: &Value) -> String {
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

const MEASURES: Measures = Measures {
    keys: &[
        "seconds",
        "bytes_per_second",
        "cpu_seconds_per_gib",
        "unasked_share",
        "missing_share",
    ],
    derived: |key, number| match key {
        "unasked_share" => Some(number("unasked")? / number("pages")?),
        "missing_share" => Some(number("missing")? / number("pages")?),
        _ => None,
    },
};

/// Shape and arm of what has runs.
fn parts(arm: &str) -> (&str, &str) {
    arm.split_once(' ').unwrap_or((arm, ""))
}

/// The shapes that have runs, each with its arms and their runs, in the order of
/// [`SHAPES`] and [`ARMS`] whatever was run when.
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
    let place = |of: &[(&str, &str)], key: &str| of.iter().position(|(known, _)| *known == key);
    shapes.sort_by_key(|(shape, _)| {
        let (delay, shape) = split(shape);
        (delay, place(&SHAPES, shape))
    });
    for (_, arms) in &mut shapes {
        // Those of the user's, as fio-16, come last.
        arms.sort_by_key(|(arm, _)| place(&ARMS, arm).unwrap_or(ARMS.len()));
    }
    shapes
}

/// The milliseconds to the server and back, if there is one, and the shape.
fn split(shape: &str) -> (Option<u32>, &str) {
    match shape.split_once("ms-") {
        Some((delay, shape)) => (delay.parse().ok(), shape),
        None => (None, shape),
    }
}

/// How much faster than migrator's the best of some arms is: less than 1 where it
/// is slower.
fn speed_to(arms: &[(String, &[Value])], who: impl Fn(&str) -> bool) -> Option<(String, f64)> {
    let own = arms.iter().find(|(arm, _)| arm == MIGRATOR)?;
    let own = MEASURES.median(own.1, "seconds");
    arms.iter()
        .filter(|(arm, _)| arm != MIGRATOR && who(arm))
        .map(|(arm, samples)| (arm.clone(), MEASURES.median(samples, "seconds") / own))
        .min_by(|one, other| one.1.total_cmp(&other.1))
}

fn is_fio(arm: &str) -> bool {
    arm.starts_with("fio-")
}

pub(super) fn summary(record: &Record<String>) -> Value {
    let mut all = MEASURES.of_record(record);
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
    match split(shape) {
        (Some(delay), shape) => format!("{}, {delay} ms away", title(&SHAPES, shape)),
        (None, shape) => title(&SHAPES, shape),
    }
}

pub(super) fn table(record: &Record<String>) -> String {
    let mut text = String::new();
    for (shape, arms) in by_shape(record) {
        text += &format!(
            "| {} | all are there after | min-max | MB/s | CPU s/GiB | came besides | missing |\n\
             |---|--:|--:|--:|--:|--:|--:|\n",
            shape_title(&shape)
        );
        for (arm, samples) in &arms {
            let of = |key: &str| MEASURES.median(samples, key);
            let spread = MEASURES
                .summary(samples, "seconds")
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
            let runs = || arms.iter().map(|(_, samples)| samples.len());
            // Those that are far behind may have fewer.
            let runs = match (runs().min(), runs().max()) {
                (Some(fewest), Some(most)) if fewest < most => format!("{fewest} to {most}"),
                (_, most) => most.unwrap_or_default().to_string(),
            };
            text += &format!(
                "\nIn the medians of {runs} runs migrator has {}.\n\n",
                best.join(", ")
            );
        }
    }
    text.trim_end().to_owned() + "\n"
}

pub(super) fn draw(record: &Record<String>, path: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for (shape, arms) in by_shape(record) {
        let own = arms.iter().find(|(arm, _)| arm == MIGRATOR);
        let own = own.map_or(f64::NAN, |(_, samples)| MEASURES.median(samples, "seconds"));
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

    #[test]
    fn the_table_says_how_many_runs_there_are() {
        let mut record = record();
        assert!(table(&record).contains("of 3 runs migrator"));
        let more = json!({ "seconds": 1.0 });
        record.push("whole cat".to_owned(), more);
        assert!(table(&record).contains("of 3 to 4 runs migrator"));
    }

    #[test]
    fn shapes_and_arms_come_in_one_order() {
        let arms = ["10ms-random cat", "1ms-random fio-3", "1ms-random cat"];
        let arms = arms.map(str::to_owned);
        let mut record = Record::begin("test", json!({}), json!({}), &arms).expect("a date");
        for arm in arms.iter().chain(&["1ms-whole migrator".to_owned()]) {
            record.push(arm.clone(), json!({}));
        }
        let shapes = by_shape(&record);
        let arms = |(_, arms): &(String, Vec<(String, &[Value])>)| {
            arms.iter().map(|(arm, _)| arm.clone()).collect::<Vec<_>>()
        };
        let found: Vec<_> = shapes.iter().map(|it| (it.0.as_str(), arms(it))).collect();
        let list = |arms: &[&str]| arms.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [
            ("1ms-whole", list(&["migrator"])),
            ("1ms-random", list(&["cat", "fio-3"])),
            ("10ms-random", list(&["cat"])),
        ];
        assert_eq!(found, expected);
    }
}
