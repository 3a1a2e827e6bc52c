//! `cargo xtask test`: every check and test, in order, until one fails.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::workspace::Workspace;
use crate::{build, command, matrix, packages, toolchain};

/// How to test.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests on the running kernel, which need root.
    #[arg(long)]
    unprivileged: bool,
    /// Run only the migrations between virtual machines, and their faults.
    #[arg(long, conflicts_with = "unprivileged")]
    vm: bool,
    #[command(flatten)]
    matrix: matrix::Kernels,
}

type Step = (&'static str, fn(&Workspace) -> Result<()>);

/// What anybody can run.
const UNPRIVILEGED: &[Step] = &[
    ("format", format),
    ("format of the eBPF crate", format_ebpf),
    ("clippy", clippy),
    ("clippy of the eBPF crate", clippy_ebpf),
    ("unit and property tests", unit_tests),
    ("build", build::run),
];

/// What needs root: the tests load programs into the running kernel, and the
/// hosts' disks are made by mmdebstrap.
const PRIVILEGED: &[Step] = &[
    ("packages for the tests", |_| packages::install_for_tests()),
    ("tests on the running kernel", kernel_tests),
    ("faults between namespaces", namespace_tests),
    ("tests on other kernels", |workspace| {
        matrix::run(workspace, &matrix::Kernels::standard())
    }),
    ("migrations between hosts", |workspace| {
        host_tests(workspace, "live")
    }),
];

/// What needs hosts of its own; `docs/test-hosts.md` tells of them.
const BETWEEN_HOSTS: &[Step] = &[
    ("build", build::run),
    ("migrations between hosts", |workspace| {
        host_tests(workspace, "live")
    }),
    ("faults during migrations", |workspace| {
        host_tests(workspace, "faults")
    }),
];

/// Runs the steps, then says how long each took.
///
/// # Errors
/// At the first step that fails; and without root, when the tests that need
/// it were asked for: what did not run has not passed.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.matrix.any() {
        return matrix::run(workspace, &args.matrix);
    }
    let (first, privileged): (&[Step], &[Step]) = if args.vm {
        (BETWEEN_HOSTS, &[])
    } else if args.unprivileged || !packages::is_root() {
        (UNPRIVILEGED, &[])
    } else {
        (UNPRIVILEGED, PRIVILEGED)
    };
    let mut times = Vec::new();
    let result = first.iter().chain(privileged).try_for_each(|(name, step)| {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = step(workspace);
        times.push((*name, result.is_ok(), start.elapsed()));
        result
    });
    summarize(&times);
    result?;
    if args.vm {
        println!("Everything between hosts passed.");
        return Ok(());
    }
    match (args.unprivileged, packages::is_root()) {
        (true, _) => println!("The tests on the running kernel were left out: --unprivileged."),
        (false, true) => println!("Everything passed."),
        (false, false) => bail!(
            "the tests on the running kernel did not run: they load eBPF programs and need root. \
             Run `cargo xtask test` as root, or leave them out with --unprivileged"
        ),
    }
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    command::run(workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn format_ebpf(workspace: &Workspace) -> Result<()> {
    command::run(
        workspace
            .cargo()
            .args(["fmt", "--check"])
            .current_dir(workspace.ebpf()),
    )
}

/// The first step that resolves dependencies, so it refuses a lock file that
/// is not the committed one.
fn clippy(workspace: &Workspace) -> Result<()> {
    command::run(
        workspace
            .cargo()
            .args(["clippy", "--quiet", "--locked", "--workspace"])
            .args(["--all-targets", "--", "--deny", "warnings"]),
    )
}

fn clippy_ebpf(workspace: &Workspace) -> Result<()> {
    command::run(
        toolchain::find_or_fetch(workspace)?
            .cargo(workspace, "clippy")
            .args(["--quiet", "--locked", "--", "--deny", "warnings"]),
    )
}

fn unit_tests(workspace: &Workspace) -> Result<()> {
    command::run(cargo_test(workspace).arg("--quiet"))
}

/// One test at a time, for they share the kernel, its page cache and its
/// programs.
fn kernel_tests(workspace: &Workspace) -> Result<()> {
    command::run(
        cargo_test(workspace)
            .args(["--package", "migrator-tests"])
            .args(["--", "--test-threads=1"])
            .env("MIGRATOR_BIN", workspace.dist().join("migrator")),
    )
}

/// Migrations between hosts that are namespaces: what a review had found, and
/// 100 in which a drawn fault strikes. The seed is new each time, and shown.
fn namespace_tests(workspace: &Workspace) -> Result<()> {
    packages::install_for_hosts()?;
    command::run(
        cargo_test(workspace)
            .args(["--package", "migrator-tests", "--test", "handover"])
            .args(["--", "--ignored", "--nocapture", "--test-threads=4"])
            .env("MIGRATOR_BIN", workspace.dist().join("migrator")),
    )
}

/// One file of the tests that bring up the test hosts.
fn host_tests(workspace: &Workspace, name: &str) -> Result<()> {
    command::run(
        cargo_test(workspace)
            .args(["--package", "migrator-tests", "--test", name])
            .args(["--", "--ignored", "--nocapture", "--test-threads=1"]),
    )
}

/// Where `RUST_BACKTRACE` is set, an error's words would be followed by a
/// screen of frames that all lie in the harness; panics keep theirs.
fn cargo_test(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.arg("test").env("RUST_LIB_BACKTRACE", "0");
    cargo
}

fn summarize(times: &[(&str, bool, Duration)]) {
    println!();
    for (name, passed, time) in times {
        let outcome = if *passed { "passed" } else { "FAILED" };
        println!("{outcome}  {:>7.1} s  {name}", time.as_secs_f64());
    }
    let passed = times.iter().filter(|(_, passed, _)| *passed).count();
    let failed = times.len() - passed;
    println!("{passed} steps passed, {failed} failed");
}
