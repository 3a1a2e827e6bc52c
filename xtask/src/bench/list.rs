//! How long it takes from the kernel's map to a list, how large the list is, and
//! how fast it is read again.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::host::{self, Kind, Options};
use super::measures::Measures;
use super::plot;
use super::record::Record;
use crate::build;
use crate::workspace::Workspace;

/// How the experiment is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Tracked pages
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 16_000_000])]
    pages: Vec<u64>,
    #[command(flatten)]
    options: Options,
}

const SHAPES: [&str; 4] = ["random", "clustered", "sequential", "files"];

/// # Errors
/// When a run fails; it takes root.
pub(super) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let program = build::own_program(workspace, "gauge")?;
    let arms = args.pages.iter().flat_map(|pages| {
        SHAPES.map(|shape| {
            let options = ["list", "--shape", shape, "--pages", &pages.to_string()];
            (
                format!("{shape} {pages}"),
                options.map(str::to_owned).to_vec(),
            )
        })
    });
    let kind = Kind {
        name: "list",
        arms: arms.collect(),
        scale: json!({ "pages": args.pages }),
        line,
        summary,
        table,
        draw: &draw,
    };
    args.options.run(workspace, &program, &kind)
}

fn line(sample: &Value) -> String {
    let number = |key: &str| sample[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:>7.1} ms ({:.1} collect, {:.1} rank, {:.1} encode), {:.3} of the entropy, decode {:.1} ms",
        1e3 * number("seconds"),
        1e3 * number("collect_seconds"),
        1e3 * number("rank_seconds"),
        1e3 * number("encode_seconds"),
        number("bytes") / number("entropy_bytes"),
        1e3 * number("decode_seconds"),
    )
}

const MEASURES: Measures = Measures {
    keys: &[
        "collect_seconds",
        "rank_seconds",
        "encode_seconds",
        "seconds",
        "pages_per_second",
        "bytes",
        "to_entropy",
        "decode_seconds",
        "decoded_pages_per_second",
        "decoder_bytes",
    ],
    derived: |key, number| match key {
        "to_entropy" => Some(number("bytes")? / number("entropy_bytes")?),
        "pages_per_second" => Some(number("pages")? / number("seconds")?),
        "decoded_pages_per_second" => Some(number("pages")? / number("decode_seconds")?),
        _ => None,
    },
};

fn summary(record: &Record<String>) -> Value {
    Value::Object(MEASURES.of_record(record))
}

fn table(record: &Record<String>) -> String {
    let mut text = String::from(
        "| pages | collect | rank | encode | together (min-max) | list | of the entropy | decode | decoder's memory |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (arm, samples) in record.arms() {
        let median = |key: &str| MEASURES.median(samples, key);
        let together = MEASURES.summary(samples, "seconds");
        let (least, most) = together.map_or((f64::NAN, f64::NAN), |it| (it.min, it.max));
        // Where the runs are few, paths and frames are most of the list.
        let to_entropy = match median("to_entropy") {
            ratio if ratio < 10.0 => format!("{ratio:.3}"),
            _ => "-".to_owned(),
        };
        text += &format!(
            "| {arm} | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} ms ({:.1}-{:.1}) | {:.1} kB | {to_entropy} | {:.0} M pages/s | {:.0} KiB |\n",
            1e3 * median("collect_seconds"),
            1e3 * median("rank_seconds"),
            1e3 * median("encode_seconds"),
            1e3 * median("seconds"),
            1e3 * least,
            1e3 * most,
            median("bytes") / 1e3,
            median("decoded_pages_per_second") / 1e6,
            median("decoder_bytes") / 1024.0,
        );
    }
    text
}

fn draw(record: &Record<String>, path: &Path) -> Result<()> {
    let rows = host::rows(record, |sample| {
        Some(MEASURES.of(sample, "pages_per_second")? / 1e6)
    });
    plot::histograms(
        path,
        "Pages collected, ranked and encoded",
        "million pages/s",
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_leaves_out_ratios_that_say_nothing() {
        let arms = ["random 1000".to_owned(), "sequential 1000".to_owned()];
        let mut record = Record::begin("test", json!({}), json!({}), &arms).expect("a date");
        for (seconds, bytes) in [(0.01, 150_000), (0.03, 120_000), (0.02, 130_000)] {
            for (arm, bytes) in arms.iter().zip([bytes, 3_000_000]) {
                let sample = json!({
                    "pages": 1000, "seconds": seconds, "collect_seconds": 0.001,
                    "rank_seconds": 0.001, "encode_seconds": 0.001, "bytes": bytes,
                    "entropy_bytes": 100_000, "decode_seconds": 0.00001, "decoder_bytes": 4096,
                });
                record.push(arm.clone(), sample);
            }
        }
        let table = table(&record);
        assert!(
            table.contains("20.0 ms (10.0-30.0) | 130.0 kB | 1.300 | 100 M pages/s | 4 KiB"),
            "{table}"
        );
        assert!(table.contains("| 3000.0 kB | - |"), "{table}");
        let median = &summary(&record)["random 1000"]["pages_per_second"]["median"];
        assert_eq!(median.as_f64(), Some(50_000.0));
    }
}
