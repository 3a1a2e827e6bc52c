//! What the guests of the matrix find when they have booted.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::Subject;
use super::plan::{self, Step};
use crate::vm::programs;
use crate::workspace::Workspace;

/// What every guest gets.
pub(super) struct Kit {
    /// Names of files of tests, each with the program that it was made to.
    tests: Vec<(&'static str, PathBuf)>,
    /// The SHA-256 of migrator.
    pub(super) digest: String,
}

impl Kit {
    /// What these kernels need of it; `target/dist` must have been built.
    pub(super) fn build(workspace: &Workspace, subjects: &[Subject]) -> Result<Self> {
        let mut names: Vec<_> = subjects
            .iter()
            .flat_map(|it| plan::tests(&it.plan))
            .collect();
        names.sort_unstable();
        names.dedup();
        let programs = programs::tests(workspace, &names)?;
        let path = workspace.dist().join("migrator");
        let bytes =
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        Ok(Self {
            tests: names.into_iter().zip(programs).collect(),
            digest: format!("{:x}", Sha256::digest(&bytes)),
        })
    }

    /// Lays down what the guest finds at `/vm`.
    pub(super) fn furnish(
        &self,
        workspace: &Workspace,
        tree: &Path,
        subject: &Subject,
        rounds: u32,
    ) -> Result<()> {
        let copy = |from: &Path, to: &str| {
            let to = tree.join(to);
            if let Some(directory) = to.parent() {
                fs::create_dir_all(directory)
                    .with_context(|| format!("failed to create {}", directory.display()))?;
            }
            fs::copy(from, &to).with_context(|| format!("failed to copy {}", from.display()))
        };
        let write = |name: &str, text: String| {
            fs::write(tree.join(name), text).with_context(|| format!("failed to write {name}"))
        };
        copy(&workspace.guests().join("matrix"), "init")?;
        copy(&workspace.dist().join("migrator"), "dist/migrator")?;
        for (test, program) in &self.tests {
            copy(program, &format!("tests/{test}"))?;
        }
        let built = programs::directory(workspace);
        for program in programs::STARTED_BY_TESTS {
            copy(&built.join(program), &format!("tests/{program}"))?;
        }
        if subject.plan.contains(&Step::Load) {
            copy(&module(workspace, subject)?, "hotpages.ko")?;
        }
        write("built", format!("{}\n", built.display()))?;
        write("rounds", format!("{rounds}\n"))?;
        let lines: Vec<_> = subject
            .plan
            .iter()
            .map(|step| format!("{step}\n"))
            .collect();
        write("plan", lines.concat())
    }
}

/// The module for a kernel, as it was built.
fn module(workspace: &Workspace, subject: &Subject) -> Result<PathBuf> {
    let modules = workspace.dist().join("modules");
    let path = modules.join(&subject.release).join("hotpages.ko");
    if !path.exists() {
        // Headers and kernel come from the same suite at the same time.
        bail!(
            "there is no {}: the headers of {} are of another release",
            path.display(),
            subject.headers.as_deref().unwrap_or("no tree"),
        );
    }
    Ok(path)
}
