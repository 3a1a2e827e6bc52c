//! Disk images: the Debian that the guests run, and what is laid beside it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::suite::Suite;
use crate::{command, packages};

/// The suite of everything in the guests but the kernel: the first that has a
/// CRIU for today's kernels.
pub(super) const SUITE: &str = "trixie";

/// What a host of containers on NFS has, and what the tests call there.
const PACKAGES: &[&str] = &[
    "bpftool",
    "ca-certificates",
    "criu",
    "crun",
    "e2fsprogs",
    "fio",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libcriu2",
    "netcat-openbsd",
    "nfs-common",
    "nfs-kernel-server",
    "openssh-client",
    "openssh-server",
    "podman",
    "procps",
    "runc",
    "strace",
    "tini",
    "util-linux-extra",
    "vmtouch",
    "xfsprogs",
];

/// How large the root is for the guest; the file holds only what is written.
const ROOT_SIZE: &str = "8G";

/// Features of ext4 that kernels since 4.4 have. Without a journal, for no
/// guest's disk outlives it.
const EXT4_FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                             large_file,huge_file,dir_nlink,extra_isize";

/// The root of the guests, from the cache or the Debian mirror.
///
/// # Errors
/// When it can't be made; that needs root.
pub(super) fn root(cache: &Path) -> Result<PathBuf> {
    let digest = Sha256::digest(format!("{SUITE} {PACKAGES:?} {ROOT_SIZE} {EXT4_FEATURES}"));
    let image = cache.join(format!("root-{}.img", &format!("{digest:x}")[..16]));
    if image.exists() {
        return Ok(image);
    }
    if !packages::is_root() {
        bail!("the guests' root is installed with mmdebstrap: run this once as root");
    }
    println!("Installing the guests' Debian {SUITE}; this takes a minute or two");
    let tree = cache.join("root.partial");
    remove(&tree)?;
    install(cache, PACKAGES, &tree)?;
    ext4(&tree, &image, ROOT_SIZE)?;
    remove(&tree)?;
    Ok(image)
}

/// Returns where the root of hosts that are namespaces is, or will be.
pub(super) fn directory(cache: &Path, packages: &[&str]) -> PathBuf {
    let digest = Sha256::digest(format!("{SUITE} {packages:?}"));
    cache.join(format!("testhost-root-{}", &format!("{digest:x}")[..16]))
}

/// Makes it, unless another process has done so.
///
/// # Errors
/// Returns an error when a package can't be installed; that needs root.
pub(super) fn make_directory(cache: &Path, packages: &[&str]) -> Result<PathBuf> {
    let tree = directory(cache, packages);
    if tree.exists() {
        return Ok(tree);
    }
    println!("Installing Debian {SUITE} for the test hosts; this takes a minute");
    let partial = cache.join("testhost-root.partial");
    remove(&partial)?;
    install(cache, packages, &partial)?;
    fs::rename(&partial, &tree).with_context(|| format!("failed to create {}", tree.display()))?;
    Ok(tree)
}

/// Installs packages of the suite into a directory.
fn install(cache: &Path, packages: &[&str], tree: &Path) -> Result<()> {
    let suite = Suite::fetch(SUITE, &cache.join("apt"))?;
    command::output(
        Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase"])
            .arg(format!("--include={}", packages.join(",")))
            .arg(SUITE)
            .arg(tree)
            .arg(suite.sources())
            .env("LC_ALL", "C"),
    )
    .map(drop)
}

/// Makes an ext4 image of a directory tree; no more of the size is used than
/// the tree needs.
pub(super) fn ext4(tree: &Path, image: &Path, size: &str) -> Result<()> {
    let partial = image.with_extension("img.partial");
    remove(&partial)?;
    command::output(
        Command::new(command::find("mke2fs").context("there is no mke2fs")?)
            .args(["-q", "-t", "ext4", "-O", EXT4_FEATURES])
            .args(["-E", "root_owner=0:0", "-d"])
            .arg(tree)
            .arg(&partial)
            .arg(size),
    )?;
    fs::rename(&partial, image).with_context(|| format!("failed to create {}", image.display()))
}

/// Removes a file or a directory tree that may be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
