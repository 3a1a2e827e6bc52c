//! The matrix: each kernel boots in a guest of its own and runs the tests of
//! each source that must work there (`tests/kernels.toml`).

mod document;
mod expectation;
mod kit;
mod plan;
mod report;
mod verdict;

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::vm::Threads;
use crate::vm::guest::Lab;
use crate::vm::kernel::Kernel;
use crate::workspace::Workspace;
use crate::{build, command};
use document::Row;
use expectation::{Expectation, Source};
use kit::Kit;
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

    let results = each(&subjects, |subject| {
        println!("Linux {} boots", subject.release);
        let result = try_out(workspace, &lab, subject, &kit, args.rounds)?;
        println!("\nLinux {}\n{result}", subject.release);
        Ok(result)
    })?;
    let mut failed = Vec::new();
    for (subject, result) in subjects.iter().zip(&results) {
        if !result.problems.is_empty() {
            failed.push(subject.release.as_str());
        } else if args.document {
            document::write(workspace, &rows(subject, &result.report, &kit.digest)?)?;
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

/// At most so many guests run at a time, each with a gigabyte and a half.
const MOST_AT_A_TIME: usize = 4;

impl Subject {
    /// Programs are attached by patching instructions.
    fn threads(&self) -> Threads {
        match plan::attaches(&self.plan) {
            true => Threads::Single,
            false => Threads::Multi,
        }
    }
}

/// Does something with each kernel, with several at a time, and gives what came of it
/// in their order.
fn each<T: Send>(
    subjects: &[Subject],
    try_out: impl Fn(&Subject) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    // One whose processors take turns keeps one of ours busy, any other all.
    let take_turns = |subject: &Subject| matches!(subject.threads(), Threads::Single);
    let at_a_time = match subjects.iter().all(take_turns) {
        true => processors.min(MOST_AT_A_TIME),
        false => 1,
    };
    let waiting = Mutex::new(subjects.iter().enumerate());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next()
    };
    let work = || {
        let mut done = Vec::new();
        while let Some((number, subject)) = next() {
            done.push((number, try_out(subject)));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.flatten().collect::<Vec<_>>()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What came of a kernel.
struct Tried {
    report: Report,
    /// What is not as it must be.
    problems: Vec<String>,
    time: Duration,
}

/// Boots a kernel and has it do its plan.
fn try_out(
    workspace: &Workspace,
    lab: &Lab,
    subject: &Subject,
    kit: &Kit,
    rounds: u32,
) -> Result<Tried> {
    let tree = lab.tree(&subject.release)?;
    kit.furnish(workspace, &tree, subject, rounds)?;
    let limit = LIMIT + ROUND * rounds;
    let name = &subject.release;
    let outcome = lab.run(name, &subject.kernel, &tree, subject.threads(), limit)?;
    let report = Report::parse(&outcome.report);
    let demand = Demand {
        expectation: &subject.expectation,
        release: &subject.release,
        digest: &kit.digest,
        plan: &subject.plan,
    };
    let mut problems = verdict::problems(&demand, &report);
    problems.extend(outcome.fault);
    Ok(Tried {
        report,
        problems,
        time: outcome.time,
    })
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

/// A line for each thing that was done, and for each that is not as it must be.
impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in &self.report.sections {
            let time = section.end.map_or(0.0, |(_, time)| time.as_secs_f64());
            let cases = section.cases().unwrap_or_default();
            let outcome = match (section.end, cases.passed) {
                (Some((0, _)), 0) => "done".into(),
                (Some((0, _)), passed) => format!("{passed} cases passed"),
                _ => "FAILED".into(),
            };
            writeln!(f, "  {time:>6.1} s  {}: {outcome}", section.name)?;
        }
        write!(f, "  {:>6.1} s  in all", self.time.as_secs_f64())?;
        for problem in &self.problems {
            write!(f, "\n  FAILED  {problem}")?;
        }
        Ok(())
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
