//! `cargo xtask build`: one eBPF object for all kernels, one static binary
//! that embeds it, and the kernel module for each kernel that is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command;
use crate::module::{self, Module};
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

/// The eBPF object in `target/dist`.
const OBJECT: &str = "migrator.bpf.o";

/// What to build.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also build the module hotpages for this kernel: its build tree, or
    /// debian:5.10, debian:6.1, debian:6.12 (headers are fetched); may be repeated
    #[arg(long = "kernel", value_name = "TREE")]
    kernels: Vec<String>,
}

/// Does what the command line says.
///
/// # Errors
/// As [`with_modules`].
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    with_modules(workspace, &args.kernels)
}

/// Builds what every host needs.
///
/// # Errors
/// As [`with_modules`].
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    with_modules(workspace, &[])
}

/// Builds object, binary and the kernels' modules into `target/dist`, and
/// describes them in its `manifest.json`. Afterwards there are no other modules:
/// what lies there belongs together.
///
/// # Errors
/// When something that is needed is missing, or does not compile.
pub(crate) fn with_modules(workspace: &Workspace, kernels: &[String]) -> Result<()> {
    let dist = workspace.dist();
    fs::create_dir_all(&dist).with_context(|| format!("failed to create {}", dist.display()))?;
    let toolchain = toolchain::find_or_fetch(workspace)?;
    let (ebpf_rustc, linker) = toolchain.versions()?;
    let rustc = Rustc::find(workspace)?;

    println!("Building the eBPF object with {ebpf_rustc}, {linker}");
    let object = place(
        &ebpf_object(workspace, &toolchain, "migrator-ebpf")?,
        &workspace.dist().join(OBJECT),
    )?;
    println!("Building the static migrator with {}", rustc.version);
    let binary = static_program(workspace, &rustc, "migrator", "migrator", &object)?;

    let mut artifacts = vec![
        describe(&object, &dist, Value::Null)?,
        describe(&place(&binary, &dist.join("migrator"))?, &dist, Value::Null)?,
    ];
    let modules = dist.join("modules");
    if modules.exists() {
        fs::remove_dir_all(&modules)
            .with_context(|| format!("failed to remove {}", modules.display()))?;
    }
    for kernel in kernels {
        let Module { release, path } = module::build(workspace, kernel)
            .with_context(|| format!("failed to build the module for {kernel}"))?;
        artifacts.push(describe(&path, &dist, json!(release))?);
    }
    for artifact in &artifacts {
        println!(
            "target/dist/{}  {} bytes  sha256 {}",
            artifact["name"].as_str().unwrap_or_default(),
            artifact["bytes"],
            artifact["sha256"].as_str().unwrap_or_default(),
        );
    }
    let manifest = json!({
        "schema": "migrator.dist/1",
        "revision": revision(workspace),
        "target": rustc.host,
        "rustc": rustc.version,
        "ebpf_rustc": ebpf_rustc,
        "bpf_linker": linker,
        "artifacts": artifacts,
    });
    let path = dist.join("manifest.json");
    fs::write(&path, format!("{manifest:#}\n"))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Builds a program of the tests that runs in the guests, statically for the
/// same reason as migrator: they have another libc. It is no part of
/// `target/dist`, and needs [`run`] before.
///
/// # Errors
/// When it does not compile.
pub(crate) fn guest_program(workspace: &Workspace, program: &str) -> Result<PathBuf> {
    let rustc = Rustc::find(workspace)?;
    // The same object, or migrator's library would be built twice.
    let object = workspace.dist().join(OBJECT);
    static_program(workspace, &rustc, "migrator-tests", program, &object)
}

/// Builds a program of the tests that measures on this host; gives where it is.
///
/// # Errors
/// When it does not compile.
pub(crate) fn own_program(workspace: &Workspace, program: &str) -> Result<PathBuf> {
    command::run(
        workspace
            .cargo()
            .args(["build", "--quiet", "--release"])
            .args(["--package", "migrator-tests", "--bin", program])
            .arg("--target-dir")
            .arg(workspace.target()),
    )?;
    Ok(workspace.target().join("release").join(program))
}

/// Builds the eBPF programs that migrator's are compared with; gives the object.
///
/// # Errors
/// When they don't compile, or there is no compiler for them.
pub(crate) fn bench_object(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = toolchain::find_or_fetch(workspace)?;
    ebpf_object(workspace, &toolchain, "bench")
}

/// Compiles eBPF programs; gives where the object is.
fn ebpf_object(workspace: &Workspace, toolchain: &Toolchain, program: &str) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo(workspace, "build");
    command::run(cargo.args(["--quiet", "--bin", program]))?;
    let release = workspace.target().join("ebpf").join(toolchain::TARGET);
    Ok(release.join("release").join(program))
}

/// Compiles a program, migrator with the object inside. The target is named
/// although it is the host's, so that the flags don't reach build scripts and
/// macros.
fn static_program(
    workspace: &Workspace,
    rustc: &Rustc,
    package: &str,
    program: &str,
    object: &Path,
) -> Result<PathBuf> {
    command::run(
        workspace
            .cargo()
            .args(["build", "--quiet", "--release"])
            .args(["--package", package, "--bin", program])
            .args(["--target", &rustc.host, "--target-dir"])
            .arg(workspace.target())
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("MIGRATOR_EBPF_OBJECT", object),
    )?;
    Ok(workspace
        .target()
        .join(&rustc.host)
        .join("release")
        .join(program))
}

/// Copies a file to its place if it differs from what is there: an equal file
/// keeps its time, and nothing that depends on it is built again. The new one
/// is renamed over the old, which may be running.
fn place(from: &Path, to: &Path) -> Result<PathBuf> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("failed to read {}", path.display()));
    if !to.exists() || read(from)? != read(to)? {
        let partial = to.with_extension("partial");
        fs::copy(from, &partial)
            .and_then(|_| fs::rename(&partial, to))
            .with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))?;
    }
    Ok(to.to_owned())
}

/// An artifact below `dist`, and the kernel that it is for: null for any.
fn describe(path: &Path, dist: &Path, kernel: Value) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(json!({
        "name": path.strip_prefix(dist).unwrap_or(path),
        "bytes": bytes.len(),
        "sha256": format!("{:x}", Sha256::digest(&bytes)),
        "kernel": kernel,
    }))
}

/// The compiler of everything but eBPF.
struct Rustc {
    version: String,
    host: String,
}

impl Rustc {
    fn find(workspace: &Workspace) -> Result<Self> {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let verbose = command::output(rustc.arg("-vV").current_dir(&workspace.root))?;
        let host = verbose
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .context("failed to find the host in the output of rustc -vV")?;
        Ok(Self {
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            host: host.to_owned(),
        })
    }
}

/// The commit, with `-dirty` when files differ from it; null outside git.
fn revision(workspace: &Workspace) -> Value {
    command::output(
        Command::new("git")
            .args([
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
                "--exclude=*",
            ])
            .current_dir(&workspace.root),
    )
    .map_or(Value::Null, |revision| json!(revision.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_described_by_name_size_and_digest() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("modules/4.4/abc");
        fs::create_dir_all(path.with_file_name("")).expect("directories");
        fs::write(&path, "abc").expect("a small file");
        // The digest is the example of FIPS 180-2, appendix B.1.
        let expected = json!({
            "name": "modules/4.4/abc",
            "bytes": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "kernel": "4.4",
        });
        let described = describe(&path, directory.path(), json!("4.4"));
        assert_eq!(described.expect("it is readable"), expected);
    }

    #[test]
    fn only_a_file_that_differs_is_placed_anew() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&from, "one").expect("a small file");
        let place = || place(&from, &to).and_then(|path| Ok(fs::metadata(path)?.ino()));
        let first = place().expect("placed");
        assert_eq!(place().expect("left alone"), first);
        fs::write(&from, "two").expect("a small file");
        assert_ne!(place().expect("replaced"), first);
        assert_eq!(fs::read(&to).expect("readable"), b"two");
    }
}
