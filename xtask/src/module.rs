//! The kernel module `hotpages`, built for one kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::headers;
use crate::workspace::Workspace;

/// The module in its directory of `target/dist/modules`.
pub(crate) const FILE: &str = "hotpages.ko";

/// What it is built of.
const SOURCES: &[&str] = &["hotpages.c", "hotpages.h", "compat.h", "Kbuild"];

/// Options that a kernel's configuration expects of the compiler it was built
/// with, each with what says so. A module can do without.
const EXPECTED_OF_COMPILER: &[(&str, &str)] = &[(
    // Since GCC 14.
    "-fmin-function-alignment=16",
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT",
)];

/// A module and the kernel that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// The kernel's release, as `uname -r` says it.
    pub(crate) release: String,
    /// The file.
    pub(crate) path: PathBuf,
}

/// Builds it into `target/dist/modules/RELEASE`, for a kernel's build tree or,
/// as in `debian:6.1`, with Debian's headers.
///
/// # Errors
/// When the tree is none, or something does not compile without warnings.
pub(crate) fn build(workspace: &Workspace, kernel: &str) -> Result<Module> {
    let tree = match kernel.strip_prefix("debian:") {
        Some(name) => headers::debian(workspace, name)?,
        None => Path::new(kernel)
            .canonicalize()
            .with_context(|| format!("failed to find the kernel's build tree {kernel}"))?,
    };
    let release = release(&tree)?;
    // Not in our source tree, nor in the kernel's.
    let place = workspace.target().join("modules").join(&release);
    fs::create_dir_all(&place).with_context(|| format!("failed to create {}", place.display()))?;
    for name in SOURCES {
        fs::copy(workspace.kmod().join(name), place.join(name))
            .with_context(|| format!("failed to copy {name} to {}", place.display()))?;
    }
    let compiler = compiler(&tree);
    println!("Building {FILE} for {release} with {compiler}");
    let mut make = Command::new("make");
    make.arg("--silent")
        .arg("-C")
        .arg(&tree)
        .arg(format!("M={}", place.display()))
        .arg(format!("CC={compiler}"))
        .arg("HOTPAGES_CFLAGS=-Wall -Werror")
        // It wants pahole, and nobody needs types of a module's own.
        .arg("CONFIG_DEBUG_INFO_BTF_MODULES=");
    for (option, symbol) in EXPECTED_OF_COMPILER {
        if !accepts(&compiler, option) {
            make.arg(format!("{symbol}="));
        }
    }
    command::run(make.arg("modules"))?;

    let dist = workspace.dist().join("modules").join(&release);
    fs::create_dir_all(&dist).with_context(|| format!("failed to create {}", dist.display()))?;
    let path = dist.join(FILE);
    // What is for a debugger is most of it.
    command::run(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(&path)
            .arg(place.join(FILE)),
    )?;
    Ok(Module { release, path })
}

/// The release of the kernel that a tree builds for.
fn release(tree: &Path) -> Result<String> {
    let header = tree.join("include/generated/utsrelease.h");
    let text = fs::read_to_string(&header).with_context(|| {
        format!(
            "{} is no build tree of a kernel: failed to read {}",
            tree.display(),
            header.display()
        )
    })?;
    match text.split('"').nth(1) {
        // It becomes a part of paths.
        Some(release) if !release.is_empty() && !release.contains('/') => Ok(release.to_owned()),
        _ => bail!("failed to find a release in {}", header.display()),
    }
}

/// The compiler that the kernel was built with, where this system has it;
/// otherwise the one of `CC`, or gcc.
fn compiler(tree: &Path) -> String {
    if let Ok(chosen) = std::env::var("CC") {
        return chosen;
    }
    let config = fs::read_to_string(tree.join(".config")).unwrap_or_default();
    let named = config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_CC_VERSION_TEXT=\""))
        .and_then(|text| text.split_whitespace().next());
    match named {
        Some(name) if command::find(name).is_some() => name.to_owned(),
        _ => "gcc".to_owned(),
    }
}

fn accepts(compiler: &str, option: &str) -> bool {
    Command::new(compiler)
        .args(["-Werror", option, "-E", "-x", "c", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_what_the_kernel_calls_itself() {
        let tree = tempfile::tempdir().expect("a directory");
        assert!(release(tree.path()).is_err(), "an empty directory");
        let generated = tree.path().join("include/generated");
        fs::create_dir_all(&generated).expect("directories");
        let header = generated.join("utsrelease.h");
        fs::write(&header, "#define UTS_RELEASE \"6.1.0-56-cloud-amd64\"\n").expect("a header");
        assert_eq!(
            release(tree.path()).expect("it is there"),
            "6.1.0-56-cloud-amd64"
        );
        fs::write(&header, "#define UTS_RELEASE \"../..\"\n").expect("a header");
        assert!(release(tree.path()).is_err(), "a path");
    }

    #[test]
    fn options_that_a_compiler_lacks_are_found_out() {
        assert!(accepts("cc", "-O2"));
        assert!(!accepts("cc", "-fno-such-option-anywhere"));
    }
}
