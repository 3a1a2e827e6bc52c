//! How well a list of pages names those that were used.

use std::collections::BTreeSet;
use std::fmt;

/// Two sets of page indexes of one file, compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// Pages that were used.
    pub used: usize,
    /// Pages that are on the list.
    pub listed: usize,
    /// Used, but not on the list.
    pub missing: BTreeSet<u64>,
    /// On the list, but not used.
    pub extra: BTreeSet<u64>,
}

impl Score {
    /// Compares them.
    pub fn new(listed: &BTreeSet<u64>, used: &BTreeSet<u64>) -> Self {
        Self {
            used: used.len(),
            listed: listed.len(),
            missing: used - listed,
            extra: listed - used,
        }
    }

    /// Which part of the used pages is on the list; 1 where none was used.
    pub fn recall(&self) -> f64 {
        ratio(self.used - self.missing.len(), self.used)
    }

    /// Which part of the list was used; 1 where the list is empty.
    pub fn precision(&self) -> f64 {
        ratio(self.listed - self.extra.len(), self.listed)
    }

    /// Ends the test unless every used page is on the list.
    ///
    /// # Panics
    /// When one is missing.
    #[track_caller]
    pub fn assert_complete(&self, what: &str) -> &Self {
        println!("{what}: {self}");
        assert!(self.missing.is_empty(), "{what}: {self}");
        self
    }

    /// Ends the test unless the list has exactly the used pages.
    ///
    /// # Panics
    /// When one is missing, or one too many.
    #[track_caller]
    pub fn assert_exact(&self, what: &str) -> &Self {
        self.assert_complete(what);
        assert!(self.extra.is_empty(), "{what}: {self}");
        self
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pages used, {} listed, recall {:.5}, precision {:.5}",
            self.used,
            self.listed,
            self.recall(),
            self.precision()
        )?;
        for (name, pages) in [("missing", &self.missing), ("extra", &self.extra)] {
            if !pages.is_empty() {
                let first: Vec<_> = pages.iter().take(8).collect();
                write!(f, ", {} {name}: {first:?}", pages.len())?;
                f.write_str(if pages.len() > first.len() { "..." } else { "" })?;
            }
        }
        Ok(())
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        return 1.0;
    }
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_and_precision_are_parts() {
        let score = Score::new(&[1, 2, 3].into(), &[2, 3, 4, 5].into());
        assert_eq!(score.recall(), 0.5);
        assert_eq!(score.precision(), 2.0 / 3.0);
        assert_eq!(
            score.to_string(),
            "4 pages used, 3 listed, recall 0.50000, precision 0.66667, \
             2 missing: [4, 5], 1 extra: [1]"
        );
        let nothing = Score::new(&[].into(), &[].into());
        assert_eq!((nothing.recall(), nothing.precision()), (1.0, 1.0));
    }
}
