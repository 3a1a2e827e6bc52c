//! What must hold on a kernel: `tests/kernels.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// A source of accesses, by the name that `--source` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// Every access, from the page cache's hooks.
    Ebpf,
    /// The LRU's flags, from the kernel module.
    Kmod,
    /// The LRU's flags, from /proc.
    Procfs,
}

impl Source {
    /// Best first.
    pub(crate) const ALL: [Self; 3] = [Self::Ebpf, Self::Kmod, Self::Procfs];
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
            Self::Kmod => "kmod",
            Self::Procfs => "procfs",
        })
    }
}

/// What `migrator check` says of a source. That its probe has failed is
/// never expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Status {
    /// It works, and all of its tests must pass.
    #[serde(rename = "usable")]
    Usable,
    /// The kernel does not have what it needs.
    #[serde(rename = "not supported")]
    NotSupported,
    /// The kernel has it, but root may not.
    #[serde(rename = "not permitted")]
    NotPermitted,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usable => "usable",
            Self::NotSupported => "not supported",
            Self::NotPermitted => "not permitted",
        })
    }
}

/// What must hold on one kernel, with the module where that is usable.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expectation {
    /// The source that `--source auto` chooses.
    pub(crate) auto: Source,
    ebpf: Status,
    kmod: Status,
    procfs: Status,
}

impl Expectation {
    /// Of a source.
    pub(crate) fn status(&self, source: Source) -> Status {
        match source {
            Source::Ebpf => self.ebpf,
            Source::Kmod => self.kmod,
            Source::Procfs => self.procfs,
        }
    }

    /// Whether it must work.
    pub(crate) fn usable(&self, source: Source) -> bool {
        self.status(source) == Status::Usable
    }

    /// The same kernel without the module: check tells what is missing.
    pub(crate) fn without_module(&self) -> Self {
        let mut without = Self {
            kmod: Status::NotSupported,
            ..self.clone()
        };
        if self.auto == Source::Kmod
            && let Some(next) = Source::ALL.into_iter().find(|it| without.usable(*it))
        {
            without.auto = next;
        }
        without
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    kernels: BTreeMap<String, Expectation>,
}

/// Looks up a kernel: by the name that it was asked for, or by the first two
/// numbers of its release.
///
/// # Errors
/// When the file is not as it must be, or has nothing of this kernel: what
/// nobody expects can't be tested.
pub(crate) fn find(path: &Path, name: Option<&str>, release: &str) -> Result<Expectation> {
    let text =
        fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let table: Table =
        toml::from_str(&text).with_context(|| format!("failed to read {}", path.display()))?;
    let series = series(release);
    let found = name
        .and_then(|name| table.kernels.get(name))
        .or_else(|| table.kernels.get(&series));
    found.cloned().with_context(|| {
        format!(
            "{} does not say what must hold on Linux {release}: add [kernels.\"{series}\"]",
            path.display()
        )
    })
}

/// `6.12` of `6.12.117+deb13-cloud-amd64`.
pub(crate) fn series(release: &str) -> String {
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit());
    let mut number = || numbers.next().unwrap_or_default();
    format!("{}.{}", number(), number())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one of this repository.
    fn table() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kernels.toml")
    }

    #[test]
    fn a_kernel_is_found_by_its_name_or_its_series() {
        let named = find(&table(), Some("newest"), "99.1.2").expect("an entry");
        assert_eq!(named.auto, Source::Ebpf);
        let numbered = find(&table(), None, "4.4.302-x").expect("an entry");
        assert_eq!(numbered.auto, Source::Kmod);
        let error = find(&table(), Some("sid"), "3.16.0").expect_err("too old");
        assert!(
            format!("{error:#}").contains("[kernels.\"3.16\"]"),
            "{error:#}"
        );
    }

    #[test]
    fn without_its_module_the_next_best_source_is_chosen() {
        let with = find(&table(), None, "4.4.302").expect("an entry");
        let without = with.without_module();
        assert_eq!(without.auto, Source::Procfs);
        assert!(with.usable(Source::Kmod) && !without.usable(Source::Kmod));
    }

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!(series("6.12.117+deb13-cloud-amd64"), "6.12");
        assert_eq!(series("7.0-rc1"), "7.0");
    }
}
