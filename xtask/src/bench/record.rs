//! What a benchmark leaves behind: raw runs as JSON, and its part of
//! docs/benchmarks.md.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::arm::Arm;
use crate::workspace::Workspace;
use crate::{command, marked};

/// Who writes docs/benchmarks.md.
const TASK: &str = "cargo xtask bench";

/// One of the things that a benchmark compares.
pub(crate) trait Compared: Clone + PartialEq {
    /// The key of its raw runs.
    fn key(&self) -> &str;
    /// What has this key, if anything has.
    fn of_key(key: &str) -> Option<Self>;
}

impl Compared for Arm {
    fn key(&self) -> &str {
        Arm::key(*self)
    }

    fn of_key(key: &str) -> Option<Self> {
        Arm::ALL.into_iter().find(|arm| arm.key() == key)
    }
}

impl Compared for String {
    fn key(&self) -> &str {
        self
    }

    fn of_key(key: &str) -> Option<Self> {
        Some(key.to_owned())
    }
}

/// Runs of a benchmark, as they come.
#[derive(Debug)]
pub(crate) struct Record<A = Arm> {
    name: String,
    date: String,
    host: Value,
    scale: Value,
    arms: Vec<(A, Vec<Value>)>,
}

impl<A: Compared> Record<A> {
    /// Begins the record of what is called `name` (`figure2-loop`).
    ///
    /// # Errors
    /// When nobody knows the date.
    pub(crate) fn begin(name: &str, host: Value, scale: Value, arms: &[A]) -> Result<Self> {
        let date = command::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        Ok(Self {
            name: name.to_owned(),
            date: date.trim().to_owned(),
            host,
            scale,
            arms: arms.iter().map(|arm| (arm.clone(), Vec::new())).collect(),
        })
    }

    /// Adds a run.
    pub(crate) fn push(&mut self, arm: A, sample: Value) {
        for (known, samples) in &mut self.arms {
            if *known == arm {
                samples.push(sample);
                return;
            }
        }
        self.arms.push((arm, vec![sample]));
    }

    /// The arms that have runs, each with them.
    pub(crate) fn arms(&self) -> impl Iterator<Item = (A, &[Value])> {
        let filled = self.arms.iter().filter(|(_, samples)| !samples.is_empty());
        filled.map(|(arm, samples)| (arm.clone(), samples.as_slice()))
    }

    /// A number of each run of an arm.
    pub(crate) fn numbers(&self, arm: A, key: &str) -> Vec<f64> {
        let of_arm = self.arms().filter(|(other, _)| *other == arm);
        of_arm
            .flat_map(|(_, samples)| samples)
            .filter_map(|sample| sample[key].as_f64())
            .collect()
    }

    /// The day.
    pub(crate) fn date(&self) -> &str {
        &self.date
    }

    /// All of it.
    pub(crate) fn to_json(&self, summary: &Value) -> Value {
        let arms: Map<String, Value> = self
            .arms()
            .map(|(arm, samples)| (arm.key().to_owned(), json!(samples)))
            .collect();
        json!({
            "schema": "migrator.bench/1",
            "bench": self.name,
            "date": self.date,
            "host": self.host,
            "scale": self.scale,
            "arms": arms,
            "summary": summary,
        })
    }

    /// Where a file of this benchmark is kept.
    pub(crate) fn path(&self, workspace: &Workspace, ending: &str) -> Result<PathBuf> {
        let directory = workspace.root.join("docs/benchmarks");
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
        Ok(directory.join(format!("{}.{ending}", self.name)))
    }

    /// Keeps the raw runs, a line each.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) fn keep(&self, workspace: &Workspace, summary: &Value) -> Result<()> {
        let path = self.path(workspace, "json")?;
        fs::write(&path, lines(&self.to_json(summary)))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Puts a text into docs/benchmarks.md in the place of the last one.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub(crate) fn document(&self, workspace: &Workspace, text: &str) -> Result<()> {
        let path = workspace.root.join("docs/benchmarks.md");
        let old = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        fs::write(&path, marked::replace(&old, &self.name, TASK, text))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Goes on with a record of the same experiment, as [`Self::keep`] left it.
    ///
    /// # Errors
    /// When it can't be read, or is of another scale or machine.
    pub(crate) fn go_on(&mut self, workspace: &Workspace) -> Result<()> {
        let path = self.path(workspace, "json")?;
        let kept = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        self.take(&kept)
            .with_context(|| format!("failed to add to {}", path.display()))
    }

    fn take(&mut self, kept: &[u8]) -> Result<()> {
        let kept: Value = serde_json::from_slice(kept).context("it is no JSON")?;
        for (key, ours) in [("host", &self.host), ("scale", &self.scale)] {
            if without_load(&kept[key]) != without_load(ours) {
                bail!("its {key} is {}, and this one's is {ours}", kept[key]);
            }
        }
        for (key, samples) in kept["arms"].as_object().into_iter().flatten() {
            let arm = A::of_key(key).with_context(|| format!("there is no arm {key}"))?;
            for sample in samples.as_array().into_iter().flatten() {
                self.push(arm.clone(), sample.clone());
            }
        }
        Ok(())
    }
}

/// How busy a host is differs from run to run.
fn without_load(host: &Value) -> Value {
    let mut host = host.clone();
    if let Some(members) = host.as_object_mut() {
        members.remove("load");
    }
    host
}

impl Record {
    /// The day, and on what, in a line.
    pub(crate) fn setting(&self) -> String {
        let text = |key: &str| self.host[key].as_str().unwrap_or("?").to_owned();
        let scale = |key: &str| self.scale[key].as_f64().unwrap_or(0.0);
        format!(
            "{}, {} ({} cores), guests: {}, Linux {}, CRIU {}; a file of {:.0} MiB, \
             links of {:.0} Mbit/s",
            self.date,
            text("processor"),
            self.host["cores"],
            text("guest_processor"),
            text("guest_kernel"),
            text("guest_criu"),
            scale("file_bytes") / f64::from(1 << 20),
            scale("link_bits_per_second") / 1e6,
        )
    }
}

/// JSON with a line for each run, so that git shows what changed.
fn lines(record: &Value) -> String {
    let mut text = String::from("{\n");
    let Value::Object(members) = record else {
        return format!("{record}\n");
    };
    let mut members = members.iter().peekable();
    while let Some((key, value)) = members.next() {
        text += &format!("  {}: ", json!(key));
        match (key.as_str(), value) {
            ("arms", Value::Object(arms)) => {
                let arms = arms.iter().map(|(arm, samples)| {
                    let samples = samples.as_array().into_iter().flatten();
                    let samples: Vec<_> = samples.map(|sample| format!("      {sample}")).collect();
                    format!("    {}: [\n{}\n    ]", json!(arm), samples.join(",\n"))
                });
                text += &format!("{{\n{}\n  }}", arms.collect::<Vec<_>>().join(",\n"));
            }
            _ => text += &value.to_string(),
        }
        text += if members.peek().is_some() {
            ",\n"
        } else {
            "\n"
        };
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let scale = json!({"file_bytes": 1 << 20, "link_bits_per_second": 8_000_000});
        let arms = [Arm::Move, Arm::Criu];
        let mut record = Record::begin("test", json!({"cores": 2}), scale, &arms).expect("a date");
        record.push(Arm::Criu, json!({"bytes": 1}));
        record.push(Arm::Criu, json!({"bytes": 3}));
        record
    }

    #[test]
    fn what_is_kept_is_json_with_a_line_for_each_run() {
        let whole = record().to_json(&json!({"ratio": 2.0}));
        let text = lines(&whole);
        let read: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read, whole);
        assert!(text.contains("\n      {\"bytes\":3}\n"), "{text}");
        // An arm without runs is not there.
        assert_eq!(read["arms"].as_object().map(Map::len), Some(1));
    }

    #[test]
    fn a_record_goes_on_where_it_was_the_same_experiment() {
        let kept = lines(&record().to_json(&Value::Null));
        let mut more = record();
        more.take(kept.as_bytes()).expect("the same experiment");
        assert_eq!(more.numbers(Arm::Criu, "bytes"), [1.0, 3.0, 1.0, 3.0]);
        let other = kept.replace("8000000", "9000000");
        assert!(record().take(other.as_bytes()).is_err());
        let other = kept.replace("criu", "nobody");
        assert!(record().take(other.as_bytes()).is_err());
    }

    #[test]
    fn a_host_that_is_less_busy_is_the_same() {
        let arms = ["one".to_owned()];
        let record = |load: f64, cores: u32| {
            let host = json!({ "cores": cores, "load": load });
            let mut record = Record::begin("test", host, json!({}), &arms).expect("a date");
            record.push("two".to_owned(), json!({ "ns": load }));
            record
        };
        let kept = lines(&record(2.0, 4).to_json(&Value::Null));
        let mut more = record(0.0, 4);
        more.take(kept.as_bytes()).expect("the same host");
        assert_eq!(more.numbers("two".to_owned(), "ns"), [0.0, 2.0]);
        assert!(record(2.0, 8).take(kept.as_bytes()).is_err());
    }

    #[test]
    fn numbers_are_those_of_the_arm() {
        assert_eq!(record().numbers(Arm::Criu, "bytes"), [1.0, 3.0]);
        assert!(record().numbers(Arm::Move, "bytes").is_empty());
    }
}
