//! What a guest is told to do, as the shell commands that `tests/vm/matrix`
//! has functions for.

use std::fmt;

use super::expectation::{Expectation, Source};

/// Files of `tests/tests/` that are about every source that works, on whatever
/// LRU the kernel has by default.
const COMMON: &[&str] = &["sources"];

/// The same for one source.
const SUITES: &[(Source, &[&str])] = &[
    (Source::Ebpf, &["accuracy", "heat", "cleanup", "windows"]),
    (Source::Kmod, &["kmod"]),
    (Source::Procfs, &["procfs"]),
];

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Which migrator it is.
    Digest,
    /// `migrator check`.
    Check {
        /// Whether the module is loaded.
        module: bool,
    },
    /// Loads the module.
    Load,
    /// Unloads it.
    Unload,
    /// Mounts NFS.
    Nfs,
    /// Turns off the multi-generational LRU.
    ClassicLru,
    /// Runs a file of tests.
    Suite {
        /// The source that it is about; nothing when it is about all.
        source: Option<Source>,
        /// Its name.
        test: &'static str,
    },
}

impl Step {
    /// The name of what it reports, if it does.
    pub(crate) fn section(self) -> Option<String> {
        Some(match self {
            Self::Digest => "digest".into(),
            Self::Check { module: false } => "check".into(),
            Self::Check { module: true } => "check with hotpages".into(),
            Self::Load => "load hotpages".into(),
            Self::Unload => "unload hotpages".into(),
            Self::Nfs => "nfs".into(),
            Self::ClassicLru => return None,
            Self::Suite { source: None, test } => format!("all {test}"),
            Self::Suite {
                source: Some(source),
                test,
            } => format!("{source} {test}"),
        })
    }
}

impl fmt::Display for Step {
    /// A line of `/vm/plan`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.section().unwrap_or_default();
        match self {
            Self::Digest => write!(f, "report '{name}' sha256sum \"$MIGRATOR_BIN\""),
            Self::Check { .. } => write!(f, "check '{name}'"),
            Self::Load => f.write_str("load_module"),
            Self::Unload => f.write_str("unload_module"),
            Self::Nfs => write!(f, "report '{name}' nfs"),
            Self::ClassicLru => f.write_str("classic_lru"),
            Self::Suite { test, .. } => write!(f, "suite '{name}' {test}"),
        }
    }
}

/// What to do on a kernel to try those of the sources that must work there.
pub(crate) fn plan(expectation: &Expectation, sources: &[Source]) -> Vec<Step> {
    let wanted = |source| sources.contains(&source) && expectation.usable(source);
    let suites = |of| {
        SUITES
            .iter()
            .filter(move |(source, _)| *source == of && wanted(of))
            .flat_map(|(source, tests)| tests.iter().map(|test| (Some(*source), *test)))
            .map(|(source, test)| Step::Suite { source, test })
    };
    let module = wanted(Source::Kmod);
    let mut plan = vec![Step::Digest, Step::Check { module: false }, Step::Nfs];
    if module {
        plan.extend([Step::Load, Step::Check { module: true }]);
    }
    plan.extend(COMMON.iter().map(|test| Step::Suite { source: None, test }));
    if module {
        // Its own tests load it themselves.
        plan.push(Step::Unload);
    }
    plan.extend(suites(Source::Ebpf));
    plan.push(Step::ClassicLru);
    plan.extend(suites(Source::Kmod));
    plan.extend(suites(Source::Procfs));
    plan
}

/// The files of tests that a plan runs.
pub(crate) fn tests(plan: &[Step]) -> Vec<&'static str> {
    let tests = plan.iter().filter_map(|step| match step {
        Step::Suite { test, .. } => Some(*test),
        _ => None,
    });
    tests.collect()
}

/// Whether a plan attaches programs again and again, which patches the
/// kernel's code while it runs.
pub(crate) fn attaches(plan: &[Step]) -> bool {
    plan.iter().any(|step| {
        matches!(
            step,
            Step::Suite {
                source: Some(Source::Ebpf),
                ..
            }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::expectation;
    use super::*;
    use std::path::Path;

    fn plan_of(series: &str, sources: &[Source]) -> Vec<String> {
        let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kernels.toml");
        let expectation = expectation::find(&table, None, series).expect("an entry");
        let plan = plan(&expectation, sources);
        plan.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_must_work_is_tried() {
        let plan = plan_of("4.4.1", &Source::ALL);
        assert_eq!(
            plan,
            [
                "report 'digest' sha256sum \"$MIGRATOR_BIN\"",
                "check 'check'",
                "report 'nfs' nfs",
                "load_module",
                "check 'check with hotpages'",
                "suite 'all sources' sources",
                "unload_module",
                "classic_lru",
                "suite 'kmod kmod' kmod",
                "suite 'procfs procfs' procfs",
            ]
        );
    }

    #[test]
    fn one_source_alone_can_be_tried() {
        let plan = plan_of("6.12.1", &[Source::Ebpf]);
        assert!(plan.contains(&"suite 'ebpf accuracy' accuracy".into()));
        assert!(!plan.iter().any(|line| line.contains("procfs")), "{plan:?}");
        assert!(!plan.iter().any(|line| line.contains("load")), "{plan:?}");
    }
}
