//! Packages of any Debian suite, whichever suites this system itself uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, packages};

/// Where the package debian-archive-keyring has the keys of all suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite of Debian's archive with apt's lists of it, kept apart from those
/// of the system: nothing of the system's changes.
#[derive(Debug)]
pub(crate) struct Suite {
    name: String,
    directory: PathBuf,
}

impl Suite {
    /// Fetches the lists of a suite (`trixie`, `bookworm-backports`, `sid`)
    /// from the mirror that this system uses, into a directory.
    ///
    /// # Errors
    /// When the system has no Debian mirror or keyring, or the mirror does
    /// not have the suite.
    pub(crate) fn fetch(name: &str, directory: &Path) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!("there is no {KEYRING}: apt-get install debian-archive-keyring");
        }
        let main = mirror("Debian")?.context(
            "apt's lists name no Debian mirror: this needs Debian, and `apt-get update` as root",
        )?;
        let mut sources = source(&main, name);
        if has_security_updates(name)
            && let Some(security) = mirror("Debian-Security")?
        {
            sources += &source(&security, &format!("{name}-security"));
        }
        let suite = Self {
            name: name.to_owned(),
            directory: directory.join(name),
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = suite.directory.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("failed to create {}", part.display()))?;
        }
        for (file, content) in [("apt.sources", sources.as_str()), ("status", "")] {
            let file = suite.directory.join(file);
            fs::write(&file, content)
                .with_context(|| format!("failed to write {}", file.display()))?;
        }
        command::output(suite.apt("apt-get").arg("update"))
            .with_context(|| format!("failed to fetch the package lists of {name}"))?;
        Ok(suite)
    }

    /// The suite's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The sources in apt's own format (sources.list(5), deb822).
    pub(crate) fn sources(&self) -> PathBuf {
        self.directory.join("apt.sources")
    }

    /// A package and all that it depends on, directly or not.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let tree = command::output(
            self.apt("apt-cache")
                .args(["depends", "--recurse", "--no-recommends", "--no-suggests"])
                .args(["--no-conflicts", "--no-breaks", "--no-replaces"])
                .args(["--no-enhances", package]),
        )
        .with_context(|| format!("failed to find {package} in {}", self.name))?;
        Ok(packages_of_tree(&tree))
    }

    /// Downloads packages and unpacks them into a directory.
    pub(crate) fn unpack(&self, names: &[String], into: &Path) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("failed to create {}", into.display()))?;
        let archives = self.directory.join("cache/archives");
        for name in names {
            // apt keeps the archive; what was fetched for another version
            // must not be unpacked too.
            let own = archives.join(name);
            if own.exists() {
                fs::remove_dir_all(&own)
                    .with_context(|| format!("failed to remove {}", own.display()))?;
            }
            fs::create_dir_all(&own)
                .with_context(|| format!("failed to create {}", own.display()))?;
            command::output(
                self.apt("apt-get")
                    .args(["download", name])
                    .current_dir(&own),
            )
            .with_context(|| format!("failed to download {name} of {}", self.name))?;
            packages::unpack(&own, into)?;
            fs::remove_dir_all(&own)
                .with_context(|| format!("failed to remove {}", own.display()))?;
        }
        Ok(())
    }

    /// One of apt's programs, seeing this suite only and nothing installed.
    fn apt(&self, program: &str) -> Command {
        let mut command = packages::apt(program);
        let mut set = |key: &str, path: PathBuf| {
            command
                .arg("-o")
                .arg(format!("{key}={}", path.to_string_lossy()));
        };
        set("Dir::Etc::SourceList", self.sources());
        set("Dir::Etc::SourceParts", "/dev/null".into());
        set("Dir::State::Lists", self.directory.join("lists"));
        set("Dir::State::status", self.directory.join("status"));
        set("Dir::Cache", self.directory.join("cache"));
        command.args(["-o", "Acquire::Languages=none"]);
        command
    }
}

/// Whether a suite is a release, which has security updates in a suite beside
/// it. Sid has none, and backports are already beside a release.
fn has_security_updates(suite: &str) -> bool {
    suite != "sid" && !suite.contains('-')
}

/// The first mirror in the system's sources whose Release file has this label.
fn mirror(label: &str) -> Result<Option<String>> {
    let mirrors = command::output(
        packages::apt("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI)"])
            .args(["Created-By: Packages", "Origin: Debian"])
            .arg(format!("Label: {label}")),
    )?;
    Ok(mirrors.lines().next().map(str::to_owned))
}

/// A stanza of a sources file.
fn source(mirror: &str, suite: &str) -> String {
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n\n"
    )
}

/// The names at the beginning of a line of `apt-cache depends --recurse`; those
/// in angle brackets are not packages.
fn packages_of_tree(tree: &str) -> Vec<String> {
    tree.lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_dependencies_lists_its_packages() {
        let tree = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.1-cloud-amd64\n\
                    linux-image-6.12.1-cloud-amd64\n |Depends: initramfs-tools\n  \
                    Depends: <linux-initramfs-tool>\n    dracut\n<linux-initramfs-tool>\n";
        assert_eq!(
            packages_of_tree(tree),
            ["linux-image-cloud-amd64", "linux-image-6.12.1-cloud-amd64"]
        );
    }

    #[test]
    fn only_releases_have_security_updates() {
        assert!(has_security_updates("bullseye"));
        assert!(!has_security_updates("sid"));
        assert!(!has_security_updates("trixie-backports"));
    }
}
