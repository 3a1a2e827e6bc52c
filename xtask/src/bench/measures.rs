//! What is said of the runs of a benchmark: numbers that they have, and numbers that are
//! computed of those. Pure.

use serde_json::{Map, Value, json};

use super::record::Record;
use super::statistics::Summary;

/// The numbers that a sample has.
pub(super) type Numbers<'a> = &'a dyn Fn(&str) -> Option<f64>;

/// The numbers that a benchmark is about.
pub(super) struct Measures {
    /// Those that its record sums up.
    pub(super) keys: &'static [&'static str],
    /// What is computed of the numbers of a sample. Others are found in it.
    pub(super) derived: fn(&str, Numbers<'_>) -> Option<f64>,
}

impl Measures {
    /// The number of a sample, if it has it.
    pub(super) fn of(&self, sample: &Value, key: &str) -> Option<f64> {
        let number = |key: &str| sample[key].as_f64();
        (self.derived)(key, &number).or_else(|| number(key))
    }

    /// That of those of the samples that have it.
    pub(super) fn summary(&self, samples: &[Value], key: &str) -> Option<Summary> {
        Summary::of_each(samples, |sample| self.of(sample, key))
    }

    /// Not a number where no sample has it.
    pub(super) fn median(&self, samples: &[Value], key: &str) -> f64 {
        let summary = self.summary(samples, key);
        summary.map_or(f64::NAN, |summary| summary.median)
    }

    /// All that can be summed up of each arm.
    pub(super) fn of_record(&self, record: &Record<String>) -> Map<String, Value> {
        let of_arm = |samples| {
            let keys = self.keys.iter().filter_map(|key| {
                let summary = self.summary(samples, key)?;
                Some(((*key).to_owned(), json!(summary)))
            });
            Value::Object(keys.collect())
        };
        let arms = record.arms();
        arms.map(|(arm, samples)| (arm, of_arm(samples))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURES: Measures = Measures {
        keys: &["seconds", "speed", "temperature"],
        derived: |key, number| match key {
            "speed" => Some(number("pages")? / number("seconds")?),
            _ => None,
        },
    };

    #[test]
    fn what_a_sample_lacks_is_computed_or_left_out() {
        let arm = "migrator".to_owned();
        let mut record = Record::begin("list", json!({}), json!({}), std::slice::from_ref(&arm))
            .expect("a record");
        for seconds in [1, 2, 4] {
            record.push(arm.clone(), json!({ "pages": 8, "seconds": seconds }));
        }
        record.push(arm.clone(), json!({ "pages": 8 }));
        let all = MEASURES.of_record(&record);
        let of_arm = all[&arm].as_object().expect("an object");
        assert_eq!(of_arm.keys().collect::<Vec<_>>(), ["seconds", "speed"]);
        assert_eq!(of_arm["speed"]["median"], 4.0);
        assert_eq!(of_arm["seconds"]["runs"], 3);
        assert!(MEASURES.median(&[], "speed").is_nan());
    }
}
