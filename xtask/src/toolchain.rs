//! The compiler and linker for eBPF.
//!
//! There are two ways to them. Where rustup has a nightly with `rust-src` and
//! bpf-linker is on the PATH, those are used, and `core` is compiled for the
//! eBPF target. Otherwise Debian's compiler is unpacked below `target/`: it
//! comes with a compiled `core` for that target, and nothing is installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::packages;
use crate::workspace::{self, Workspace};

/// The target that the object is compiled for: little-endian eBPF.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// `v3` is what every kernel since 5.1 runs (`mcpu` in the kernel's
/// Documentation/bpf/bpf_design_QA.rst): 32-bit registers and the atomics.
/// rustc hands it on to bpf-linker, which generates the code. Aya and bpftool
/// need BTF, which is made from debug information.
const RUSTFLAGS: &str = "-C target-cpu=v3 -C debuginfo=2 -C link-arg=--btf";

/// The bpf-linker that fits Debian's compiler: it takes the compiler's own
/// LLVM, and later ones want an LLVM to be linked with.
const LINKER_VERSION: &str = "0.10.3";

/// Debian's compiler, which carries its version in a package name, and its LLVM.
const DEBIAN_PACKAGES: &[&str] = &[
    "rustc-web",
    "rust-web-clippy",
    "libstd-rust-web-1.96",
    "libstd-rust-web-dev",
    "libstd-rust-web-dev-bpf",
    "libllvm22",
];

/// What compiles and links eBPF.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// rustup's nightly with `rust-src`, and bpf-linker from the PATH.
    Rustup {
        /// The linker.
        linker: PathBuf,
    },
    /// Debian's packages, unpacked, and a bpf-linker built beside them.
    Debian {
        /// Where the packages are unpacked.
        root: PathBuf,
        /// The linker.
        linker: PathBuf,
    },
}

/// Finds the toolchain, or fetches it into `target/toolchain`.
///
/// # Errors
/// When neither way is open; says what is missing for each.
pub(crate) fn find_or_fetch(workspace: &Workspace) -> Result<Toolchain> {
    let why_not_rustup = match rustup_nightly() {
        Ok(linker) => return Ok(Toolchain::Rustup { linker }),
        Err(why) => why,
    };
    debian(&workspace.target().join("toolchain")).with_context(|| {
        format!(
            "no compiler for eBPF.\n\
             1. rustup's can't be used: {why_not_rustup}. To get it:\n\
             \x20     rustup toolchain install nightly --component rust-src,clippy\n\
             \x20     cargo install --locked bpf-linker@{LINKER_VERSION}\n\
             2. Debian's can't be used: it is made of the packages\n\
             \x20     {}\n\
             \x20  but they could not be had",
            DEBIAN_PACKAGES.join(" "),
        )
    })
}

impl Toolchain {
    /// `cargo SUBCOMMAND` for the eBPF crate, in its release profile: the
    /// verifier refuses what a debug build makes.
    pub(crate) fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut cargo = match self {
            Self::Rustup { .. } => {
                let mut cargo = Command::new("rustup");
                cargo
                    .args(["run", "nightly", "cargo", subcommand])
                    .args(["-Z", "build-std=core"])
                    // bpf-linker may take its LLVM from here: not from stable's.
                    .env_remove("LD_LIBRARY_PATH");
                cargo
            }
            Self::Debian { root, .. } => {
                let mut cargo = Command::new(if subcommand == "clippy" {
                    root.join("usr/bin/cargo-clippy").into_os_string()
                } else {
                    workspace::cargo()
                });
                cargo
                    .arg(subcommand)
                    .env("RUSTC", root.join("usr/bin/rustc"))
                    // Programs for eBPF use unstable features of rustc.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("LD_LIBRARY_PATH", library_path(root));
                cargo
            }
        };
        cargo
            .args(["--release", "--target", TARGET, "--target-dir"])
            .arg(workspace.target().join("ebpf"))
            .current_dir(workspace.ebpf())
            .env("PATH", path_with(self.linker()))
            .env("RUSTFLAGS", RUSTFLAGS)
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo
    }

    /// Compiler and linker, as they name themselves.
    pub(crate) fn versions(&self) -> Result<(String, String)> {
        let mut rustc = match self {
            Self::Rustup { .. } => {
                let mut rustc = Command::new("rustup");
                rustc.args(["run", "nightly", "rustc"]);
                rustc
            }
            Self::Debian { root, .. } => debian_rustc(root),
        };
        let rustc = command::output(rustc.arg("--version"))?;
        let linker = command::output(Command::new(self.linker()).arg("--version"))?;
        Ok((rustc.trim().to_owned(), linker.trim().to_owned()))
    }

    fn linker(&self) -> &Path {
        match self {
            Self::Rustup { linker } | Self::Debian { linker, .. } => linker,
        }
    }
}

/// bpf-linker, when rustup's nightly and it are there; or what is missing.
fn rustup_nightly() -> Result<PathBuf, String> {
    if command::find("rustup").is_none() {
        return Err("rustup is not on the PATH".into());
    }
    let sysroot = command::output(
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]),
    )
    .map_err(|_| "rustup has no toolchain `nightly`".to_owned())?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !core.is_dir() {
        return Err("rustup's nightly lacks the component rust-src".into());
    }
    command::find("bpf-linker").ok_or_else(|| "bpf-linker is not on the PATH".into())
}

/// Debian's toolchain in `directory`, fetched if it is not there.
fn debian(directory: &Path) -> Result<Toolchain> {
    let root = directory.join("debian");
    if !root.is_dir() {
        fetch_debian(directory, &root)?;
    }
    let linker = directory.join("bin/bpf-linker");
    if !linker.is_file() {
        println!("Building bpf-linker {LINKER_VERSION} (once, about a minute)");
        command::output(
            Command::new(workspace::cargo())
                .args(["install", "--quiet", "--locked", "bpf-linker"])
                .args(["--version", LINKER_VERSION, "--root"])
                .arg(directory)
                // Flags and target are those of migrator, not of its tools.
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env_remove("CARGO_BUILD_TARGET"),
        )?;
    }
    Ok(Toolchain::Debian { root, linker })
}

/// Downloads and unpacks Debian's compiler. It comes into its place only when
/// it has been seen to run, so that an interrupted attempt is begun anew.
fn fetch_debian(directory: &Path, root: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg-deb"] {
        if command::find(program).is_none() {
            bail!("this system is not Debian or like it: no {program}");
        }
    }
    println!("Fetching Debian's rustc with eBPF into target/toolchain (once, 120 MB)");
    let partial = directory.join("debian.partial");
    let archives = partial.join("archives");
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("failed to remove {}", partial.display()))?;
    }
    fs::create_dir_all(&archives)
        .with_context(|| format!("failed to create {}", archives.display()))?;
    packages::download(DEBIAN_PACKAGES, &["libllvm22"], &archives)?;
    packages::unpack(&archives, &partial)?;
    fs::remove_dir_all(&archives)
        .with_context(|| format!("failed to remove {}", archives.display()))?;
    let libraries = command::output(debian_rustc(&partial).args([
        "--print",
        "target-libdir",
        "--target",
        TARGET,
    ]))
    .context("the compiler that was fetched does not run")?;
    if !Path::new(libraries.trim()).is_dir() {
        bail!("the compiler that was fetched has no core for {TARGET}");
    }
    fs::rename(&partial, root).with_context(|| {
        format!(
            "failed to rename {} to {}",
            partial.display(),
            root.display()
        )
    })
}

fn debian_rustc(root: &Path) -> Command {
    let mut rustc = Command::new(root.join("usr/bin/rustc"));
    rustc.env("LD_LIBRARY_PATH", library_path(root));
    rustc
}

/// Where Debian puts shared libraries: `usr/lib/x86_64-linux-gnu`.
fn library_path(root: &Path) -> PathBuf {
    root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// The PATH with the linker's directory first, where rustc looks for it.
fn path_with(linker: &Path) -> OsString {
    let mut path = OsString::from(linker.parent().unwrap_or(Path::new("/")));
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}
