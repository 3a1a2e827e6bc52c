//! What a guest has reported (`tests/vm/matrix` writes it): sections of text,
//! each with how it ended.

use std::time::Duration;

/// All of it, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) sections: Vec<Section>,
}

/// Something that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    /// What it printed.
    pub(crate) output: String,
    /// Its exit status and how long it took; nothing when it did not end.
    pub(crate) end: Option<(i32, Duration)>,
}

/// How the cases of a file of tests ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Cases {
    /// How many passed.
    pub(crate) passed: usize,
    /// The names of those that did not.
    pub(crate) failed: Vec<String>,
    /// How many did not run at all.
    pub(crate) left_out: usize,
}

impl Report {
    /// Reads what a guest wrote, up to where it was cut off.
    pub(crate) fn parse(text: &str) -> Self {
        let mut sections: Vec<Section> = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("=== begin ") {
                sections.push(Section {
                    name: name.to_owned(),
                    output: String::new(),
                    end: None,
                });
                continue;
            }
            let Some(last) = sections.last_mut().filter(|last| last.end.is_none()) else {
                continue;
            };
            match end(line, &last.name) {
                Some(end) => last.end = Some(end),
                None => last.output += &format!("{line}\n"),
            }
        }
        Self { sections }
    }

    /// A section, if the guest came so far.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

/// `=== end NAME: status 0, 123 ms`
fn end(line: &str, name: &str) -> Option<(i32, Duration)> {
    let rest = line.strip_prefix("=== end ")?.strip_prefix(name)?;
    let (status, time) = rest.strip_prefix(": status ")?.split_once(", ")?;
    let millis = time.strip_suffix(" ms")?.parse().ok()?;
    Some((status.parse().ok()?, Duration::from_millis(millis)))
}

impl Section {
    /// Whether it came to a good end.
    pub(crate) fn succeeded(&self) -> bool {
        matches!(self.end, Some((0, _)))
    }

    /// What Rust's test harness says of its cases; nothing when it did not
    /// come to sum up.
    pub(crate) fn cases(&self) -> Option<Cases> {
        let mut cases = Cases::default();
        let mut summed_up = false;
        for line in self.output.lines() {
            if let Some(case) = line.strip_prefix("test ")
                && let Some((name, "FAILED")) = case.rsplit_once(" ... ")
            {
                cases.failed.push(name.to_owned());
            }
            if let Some(counts) = line.strip_prefix("test result: ") {
                // ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1s
                let count = |what: &str| {
                    counts
                        .split(['.', ';'])
                        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                };
                cases.passed = count("passed")?;
                cases.left_out = count("ignored")? + count("filtered out")?;
                summed_up = true;
            }
        }
        summed_up.then_some(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
=== begin check
{\"schema\":\"migrator.check/1\"}

=== end check: status 0, 1234 ms

=== begin ebpf accuracy

running 3 tests
test one ... ok
test two ... FAILED
test three - should panic ... ok

failures:
    two

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 2.00s


=== end ebpf accuracy: status 101, 2000 ms

=== begin procfs procfs

running 1 test
test hangs ... ";

    #[test]
    fn sections_are_told_apart_by_name_and_end() {
        let report = Report::parse(TEXT);
        let check = report.section("check").expect("a section");
        assert_eq!(check.end, Some((0, Duration::from_millis(1234))));
        assert_eq!(check.output.trim(), "{\"schema\":\"migrator.check/1\"}");
        assert!(check.succeeded());
        let hangs = report.section("procfs procfs").expect("a section");
        assert_eq!(
            (hangs.end, hangs.succeeded(), hangs.cases()),
            (None, false, None)
        );
        assert!(hangs.output.ends_with("test hangs ... \n"));
        assert_eq!(report.sections.len(), 3);
        assert_eq!(report.section("kmod kmod"), None);
    }

    #[test]
    fn cases_are_counted() {
        let report = Report::parse(TEXT);
        let section = report.section("ebpf accuracy").expect("a section");
        let expected = Cases {
            passed: 2,
            failed: vec!["two".into()],
            left_out: 5,
        };
        assert_eq!(section.cases(), Some(expected));
    }
}
