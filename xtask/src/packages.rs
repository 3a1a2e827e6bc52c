//! Debian packages: what the tests need, and how packages are fetched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Programs that the integration tests run, each with its Debian package.
const FOR_TESTS: &[(&str, &str)] = &[
    ("bpftool", "bpftool"),
    ("fio", "fio"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.xfs", "xfsprogs"),
    ("rg", "ripgrep"),
    ("sqlite3", "sqlite3"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("strace", "strace"),
];

/// Programs that migrator is compared with on this host.
const FOR_BENCHES: &[(&str, &str)] = &[("fio", "fio"), ("vmtouch", "vmtouch")];

/// Programs that make and run the test hosts.
const FOR_HOSTS: &[(&str, &str)] = &[
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("mke2fs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("socat", "socat"),
    ("ssh", "openssh-client"),
    ("timeout", "coreutils"),
    ("xz", "xz-utils"),
];

/// Installs the packages whose programs the tests would miss. No service is
/// started.
///
/// # Errors
/// When they can't be installed; says which are missing and how to get them.
pub(crate) fn install_for_tests() -> Result<()> {
    install_missing(FOR_TESTS)
}

/// The same for the test hosts.
///
/// # Errors
/// As above.
pub(crate) fn install_for_hosts() -> Result<()> {
    install_missing(FOR_HOSTS)
}

/// The same for what migrator is compared with.
///
/// # Errors
/// As above.
pub(crate) fn install_for_benches() -> Result<()> {
    install_missing(FOR_BENCHES)
}

fn install_missing(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| command::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install {}", missing.join(" "));
    if !is_root() || command::find("apt-get").is_none() {
        bail!(
            "programs of these Debian packages are missing: {}; as root on Debian: {install}",
            missing.join(", "),
        );
    }
    println!("Installing {} with apt-get", missing.join(", "));
    let _no_services = NoServices::begin(Path::new("/usr/sbin/policy-rc.d"))?;
    with_fresh_lists(|| {
        command::output(
            apt("apt-get")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(&missing),
        )
    })?;
    Ok(())
}

/// Downloads packages into a directory, without installing them. Beside the
/// ones named come those others that `apt-get install` of `libraries` would
/// add to this system.
///
/// # Errors
/// When apt does not know the packages or can't fetch them.
pub(crate) fn download(names: &[&str], libraries: &[&str], into: &Path) -> Result<()> {
    with_fresh_lists(|| {
        let plan = command::output(
            apt("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .args(libraries),
        )?;
        let mut all = to_be_installed(&plan);
        all.extend(names);
        all.sort_unstable();
        all.dedup();
        command::output(apt("apt-get").arg("download").args(all).current_dir(into))
    })?;
    Ok(())
}

/// Unpacks every package of one directory into another.
///
/// # Errors
/// When dpkg can't.
pub(crate) fn unpack(from: &Path, into: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))? {
        let package = entry?.path();
        if package.extension().is_some_and(|ending| ending == "deb") {
            command::output(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&package)
                    .arg(into),
            )?;
        }
    }
    Ok(())
}

/// Whether this process may install packages and load eBPF programs.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user of this process (proc(5)).
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Tries; where apt's lists of packages turn out to be absent or out of date,
/// updates them as root and tries once more.
fn with_fresh_lists(attempt: impl Fn() -> Result<String>) -> Result<String> {
    let error = match attempt() {
        Err(error) if lists_are_stale(&error.to_string()) => error,
        result => return result,
    };
    if !is_root() {
        return Err(
            error.context("apt's package lists are out of date: run `apt-get update` as root")
        );
    }
    println!("Updating apt's package lists");
    command::output(apt("apt-get").arg("update"))?;
    attempt()
}

/// Whether apt-get failed because it does not know a package, or knows a
/// version that the mirror has replaced.
fn lists_are_stale(error: &str) -> bool {
    [
        "Unable to locate package",
        "has no installation candidate",
        "Can't select candidate version",
        "404  Not Found",
    ]
    .iter()
    .any(|complaint| error.contains(complaint))
}

/// One of apt's programs, without questions. As root it drops to a user that
/// can't write into our directories and warns; so it does not.
pub(crate) fn apt(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-qq", "-o", "APT::Sandbox::User=root"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

/// The packages of the `Inst NAME …` lines of `apt-get --simulate`.
fn to_be_installed(plan: &str) -> Vec<&str> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .collect()
}

/// While this lives, packages that are installed start no services: their
/// scripts ask /usr/sbin/policy-rc.d first (invoke-rc.d(8)). A policy that is
/// there already belongs to the administrator and stays.
struct NoServices {
    policy: Option<PathBuf>,
}

impl NoServices {
    fn begin(policy: &Path) -> Result<Self> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let created = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(policy);
        match created {
            Ok(mut file) => {
                let guard = Self {
                    policy: Some(policy.to_owned()),
                };
                file.write_all(b"#!/bin/sh\n# cargo xtask test removes this.\nexit 101\n")
                    .with_context(|| format!("failed to write {}", policy.display()))?;
                Ok(guard)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { policy: None }),
            Err(error) => {
                Err(error).with_context(|| format!("failed to create {}", policy.display()))
            }
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!(
                "failed to remove {}: {error}; remove it, or services will not start",
                policy.display(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_simulated_installation_names_what_is_missing() {
        // As apt 2.6 writes it, with an upgrade and a removal among the lines.
        let plan = "Remv rustup [1.25]\n\
                    Inst libz3-4 (4.8.12-3.1 Debian:12.11/oldstable [amd64])\n\
                    Inst libxml2 [2.9.14+dfsg-1.2] (2.9.14+dfsg-1.3 Debian:12.11/oldstable [amd64])\n\
                    Conf libz3-4 (4.8.12-3.1 Debian:12.11/oldstable [amd64])\n";
        assert_eq!(to_be_installed(plan), ["libz3-4", "libxml2"]);
        assert_eq!(to_be_installed(""), [""; 0]);
    }

    #[test]
    fn lists_are_updated_only_when_they_are_to_blame() {
        assert!(lists_are_stale("E: Unable to locate package rustc-web"));
        assert!(!lists_are_stale("E: No space left on device"));
    }

    #[test]
    fn services_are_kept_from_starting_while_the_guard_lives() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let policy = directory.path().join("policy-rc.d");
        let guard = NoServices::begin(&policy).expect("it is created");
        let mode = fs::metadata(&policy).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o755);
        let status = Command::new("sh").arg(&policy).status().expect("it runs");
        // "Action forbidden by policy" (invoke-rc.d(8)).
        assert_eq!(status.code(), Some(101));
        drop(guard);
        assert!(!policy.exists());
    }

    #[test]
    fn a_policy_of_the_administrator_stays() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let policy = directory.path().join("policy-rc.d");
        fs::write(&policy, "theirs").expect("a small file");
        drop(NoServices::begin(&policy).expect("it is left alone"));
        assert_eq!(fs::read(&policy).expect("it is there"), b"theirs");
    }
}
