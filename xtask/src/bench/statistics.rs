//! Numbers that stand for many runs. Pure.

use serde::Serialize;

/// What runs have in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) runs: usize,
    pub(crate) median: f64,
    pub(crate) mean: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of at least one number.
    pub(crate) fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            runs: sorted.len(),
            median: median(&sorted)?,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    /// Of those of the samples that have the number.
    pub(crate) fn of_each<S>(samples: &[S], number: impl FnMut(&S) -> Option<f64>) -> Option<Self> {
        Self::of(&samples.iter().filter_map(number).collect::<Vec<_>>())
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some((sorted[middle - 1] + upper) / 2.0),
    }
}

/// How many of the numbers are in each of `count` equal parts of 0 to `end`;
/// the last part includes its end.
pub(crate) fn histogram(numbers: &[f64], end: f64, count: usize) -> Vec<usize> {
    let mut bins = vec![0; count];
    for number in numbers {
        let bin = (number / end * count as f64) as usize;
        bins[bin.min(count - 1)] += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_median_and_mean() {
        let summary = Summary::of(&[4.0, 1.0, 10.0]).expect("three runs");
        assert_eq!((summary.median, summary.mean), (4.0, 5.0));
        assert_eq!((summary.min, summary.max), (1.0, 10.0));
        let even = Summary::of(&[1.0, 2.0, 4.0, 9.0]).expect("four runs");
        assert_eq!(even.median, 3.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_histogram_counts_every_number_once() {
        let bins = histogram(&[0.0, 0.9, 1.0, 3.9, 4.0], 4.0, 4);
        assert_eq!(bins, [2, 1, 0, 2]);
    }
}
