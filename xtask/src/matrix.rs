//! The matrix: each kernel boots in a guest of its own and runs the tests of
//! each source that must work there (`tests/kernels.toml`).

mod document;
mod expectation;
mod plan;
mod report;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::vm::Threads;
use crate::vm::guest::Lab;
use crate::vm::kernel::Kernel;
use crate::vm::programs;
use crate::workspace::Workspace;
use crate::{build, command};
use document::Row;
use expectation::{Expectation, Source};
use plan::Step;
use report::Report;
use verdict::Demand;

/// The kernels of Debian's releases, and the newest that it has.
const STANDARD: &[&str] = &["5.10", "6.1", "6.12", "newest"];

/// How long a guest may take for all but those rounds under KVM.
const LIMIT: Duration = Duration::from_secs(150);

/// Seldom enough for CI: a guest without KVM takes some seconds for a round.
const ROUNDS: u32 = 12;

/// What a round may take under KVM.
const ROUND: Duration = Duration::from_secs(2);

/// Which kernels, and what of them.
#[derive(Debug, Default, Clone, clap::Args)]
pub(crate) struct Kernels {
    /// Test each source on these kernels: 5.10, 6.1, 6.12, newest, a suite, SUITE:PACKAGE
    #[arg(long, value_name = "KERNEL,…", value_delimiter = ',', group = "kernel")]
    kernels: Vec<String>,
    /// Test on a kernel of your own: a bzImage with everything built in
    #[arg(long, value_name = "BZIMAGE", group = "kernel")]
    kernel_image: Option<PathBuf>,
    /// Where that kernel was built, for the module
    #[arg(long, value_name = "TREE", requires = "kernel_image")]
    kernel_tree: Option<PathBuf>,
    /// Try only these sources on them
    #[arg(
        long,
        value_name = "SOURCE,…",
        value_delimiter = ',',
        requires = "kernel"
    )]
    sources: Vec<Source>,
    /// How often the module is loaded, put under stress, and unloaded
    #[arg(long, value_name = "NUMBER", default_value_t = ROUNDS, requires = "kernel")]
    rounds: u32,
    /// Write what came out into docs/kernels.md
    #[arg(long, requires = "kernel", conflicts_with = "sources")]
    document: bool,
}

impl Kernels {
    /// Whether any kernel is named.
    pub(crate) fn any(&self) -> bool {
        !self.kernels.is_empty() || self.kernel_image.is_some()
    }

    /// Those on which everything must pass that is to be merged.
    pub(crate) fn standard() -> Self {
        Self {
            kernels: STANDARD.iter().map(ToString::to_string).collect(),
            rounds: ROUNDS,
            ..Self::default()
        }
    }
}

/// A kernel, and what comes with it.
struct Subject {
    kernel: Kernel,
    release: String,
    /// What the module is built against, as `cargo xtask build --kernel` takes
    /// it.
    headers: Option<String>,
    expectation: Expectation,
    plan: Vec<Step>,
}

/// Builds what is needed, runs the tests on each kernel, and says of each what
/// came out.
///
/// # Errors
/// When anything on any of the kernels is not as it must be.
pub(crate) fn run(workspace: &Workspace, args: &Kernels) -> Result<()> {
    let sources = if args.sources.is_empty() {
        Source::ALL.to_vec()
    } else {
        args.sources.clone()
    };
    let lab = Lab::open(workspace)?;
    let subjects = subjects(workspace, &lab, args, &sources)?;
    build::with_modules(workspace, &modules(&subjects)?)?;
    let kit = Kit::build(workspace, &subjects)?;
    println!("migrator  sha256 {}", kit.digest);

    let mut failed = Vec::new();
    for subject in &subjects {
        println!("\nLinux {}", subject.release);
        let (report, problems) = try_out(workspace, &lab, subject, &kit, args.rounds)?;
        for problem in &problems {
            println!("  FAILED  {problem}");
        }
        if !problems.is_empty() {
            failed.push(subject.release.as_str());
        } else if args.document {
            document::write(workspace, &rows(subject, &report, &kit.digest)?)?;
        }
    }
    if !failed.is_empty() {
        bail!(
            "not as it must be on Linux {}; consoles and reports are in target/vm/run",
            failed.join(", ")
        );
    }
    if sources.len() < Source::ALL.len() {
        println!("\nOther sources than those of --sources were left out.");
    }
    Ok(())
}

/// What every guest gets.
struct Kit {
    /// Names of files of tests, each with the program that it was made to.
    tests: Vec<(&'static str, PathBuf)>,
    /// The SHA-256 of migrator.
    digest: String,
}

impl Kit {
    /// What these kernels need of it; `target/dist` must have been built.
    fn build(workspace: &Workspace, subjects: &[Subject]) -> Result<Self> {
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
}

/// Boots a kernel and has it do its plan: what it reported, and what is not as
/// it must be.
fn try_out(
    workspace: &Workspace,
    lab: &Lab,
    subject: &Subject,
    kit: &Kit,
    rounds: u32,
) -> Result<(Report, Vec<String>)> {
    let tree = lab.tree(&subject.release)?;
    furnish(workspace, &tree, subject, kit, rounds)?;
    let limit = LIMIT + ROUND * rounds;
    let threads = if plan::attaches(&subject.plan) {
        Threads::Single
    } else {
        Threads::Multi
    };
    let name = &subject.release;
    let outcome = lab.run(name, &subject.kernel, &tree, threads, limit)?;
    let report = Report::parse(&outcome.report);
    let demand = Demand {
        expectation: &subject.expectation,
        release: &subject.release,
        digest: &kit.digest,
        plan: &subject.plan,
    };
    let mut problems = verdict::problems(&demand, &report);
    problems.extend(outcome.fault);
    print(&report);
    println!("  {:>6.1} s  in all", outcome.time.as_secs_f64());
    Ok((report, problems))
}

/// The kernels that are asked for.
fn subjects(
    workspace: &Workspace,
    lab: &Lab,
    args: &Kernels,
    sources: &[Source],
) -> Result<Vec<Subject>> {
    let subject = |kernel: Kernel, name: Option<&str>, headers: Option<String>| {
        let release = kernel.release()?;
        let table = workspace.root.join("tests/kernels.toml");
        let expectation = expectation::find(&table, name, &release)?;
        let plan = plan::plan(&expectation, sources);
        Ok(Subject {
            kernel,
            release,
            headers,
            expectation,
            plan,
        })
    };
    let mut subjects = args
        .kernels
        .iter()
        .map(|name| {
            subject(
                lab.debian(name)?,
                Some(name),
                Some(format!("debian:{name}")),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(image) = &args.kernel_image {
        let tree = args.kernel_tree.as_ref();
        let tree = tree.map(|tree| tree.to_string_lossy().into_owned());
        subjects.push(subject(lab.own(image)?, None, tree)?);
    }
    Ok(subjects)
}

/// What the modules are built against that are needed.
fn modules(subjects: &[Subject]) -> Result<Vec<String>> {
    let needing = subjects.iter().filter(|it| it.plan.contains(&Step::Load));
    needing
        .map(|subject| {
            subject.headers.clone().with_context(|| {
                format!(
                    "the module must work on Linux {}, and needs --kernel-tree to be built; \
                     --sources ebpf,procfs leaves it out",
                    subject.release
                )
            })
        })
        .collect()
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

/// Lays down what the guest finds at `/vm`.
fn furnish(
    workspace: &Workspace,
    tree: &Path,
    subject: &Subject,
    kit: &Kit,
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
    for (test, program) in &kit.tests {
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

/// A line for each thing that was done.
fn print(report: &Report) {
    for section in &report.sections {
        let time = section.end.map_or(0.0, |(_, time)| time.as_secs_f64());
        let cases = section.cases().unwrap_or_default();
        let outcome = match (section.end, cases.passed) {
            (Some((0, _)), 0) => "done".into(),
            (Some((0, _)), passed) => format!("{passed} cases passed"),
            _ => "FAILED".into(),
        };
        println!("  {time:>6.1} s  {}: {outcome}", section.name);
    }
}

/// What the table says of a kernel.
fn rows(subject: &Subject, report: &Report, digest: &str) -> Result<Vec<Row>> {
    let check = verdict::last_check(&subject.plan, report).context("failed to find its check")?;
    let date = command::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let cases = |source: &str| {
        let sections = report.sections.iter();
        let own = sections.filter(|it| it.name.split(' ').next() == Some(source));
        own.filter_map(|it| Some(it.cases()?.passed)).sum()
    };
    Ok(check
        .sources
        .iter()
        .map(|source| Row {
            release: subject.release.clone(),
            source: source.name.clone(),
            chosen: source.name == subject.expectation.auto.to_string(),
            status: source.status.clone(),
            detail: source.lines().join("<br>"),
            cases: cases(&source.name),
            tested: format!("{}, {}", date.trim(), &digest[..8]),
        })
        .collect())
}
