//! Debian's kernel headers, unpacked, for building a module with nothing
//! installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::suite::Suite;
use crate::vm;
use crate::workspace::Workspace;

/// The package whose dependencies are a suite's newest headers of the kernel
/// that the test hosts run.
const PACKAGE: &str = "linux-headers-cloud-amd64";

/// Where the packages' own files lie.
const SOURCES: &str = "usr/src";

/// The build tree of a name (`6.1`, a suite), from the cache or the Debian
/// mirror.
///
/// # Errors
/// When the packages can't be fetched or are not laid out as Debian's are.
pub(crate) fn debian(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let suite = vm::suite(name)?;
    let root = workspace.target().join("headers").join(suite);
    if !root.exists() {
        println!("Fetching the kernel headers of {suite}");
        let partial = root.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("failed to remove {}", partial.display()))?;
        }
        let suite = Suite::fetch(suite, &workspace.target().join("vm/apt"))?;
        fetch(&suite, &partial)?;
        fs::rename(&partial, &root)
            .with_context(|| format!("failed to create {}", root.display()))?;
    }
    let tree = only(&root.join(SOURCES), "-cloud-amd64")?;
    let common = only(&root.join(SOURCES), "-common")?;
    // As the package has it, but for where it is: it would be in /usr/src.
    let include = format!("include {}/Makefile\n", common.display());
    fs::write(tree.join("Makefile"), include)
        .with_context(|| format!("failed to write the Makefile of {}", tree.display()))?;
    Ok(tree)
}

fn fetch(suite: &Suite, into: &Path) -> Result<()> {
    let all = suite.dependencies(PACKAGE)?;
    let parts: Vec<_> = all
        .iter()
        .filter(|name| is_part_of_headers(name))
        .cloned()
        .collect();
    if parts.is_empty() {
        bail!("{PACKAGE} of {} leads to no headers", suite.name());
    }
    suite.unpack(&parts, into)?;
    let tools = tools_for_later_systems(&into.join("usr/lib"))?;
    if tools.is_empty() {
        return Ok(());
    }
    let libraries: Vec<_> = all.into_iter().filter(|name| is_library(name)).collect();
    suite.unpack(&libraries, &into.join("system"))?;
    tools.iter().try_for_each(|tool| wrap(tool))
}

/// Whether a package that the headers depend on has some of them, or the
/// programs that build with them.
fn is_part_of_headers(name: &str) -> bool {
    ["linux-headers-", "linux-kbuild-"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// Whether a package has a library that those programs need.
fn is_library(name: &str) -> bool {
    ["libc6", "libelf1", "libelf1t64", "zlib1g", "libzstd1"].contains(&name)
}

/// The programs that want a later C library than this system has.
fn tools_for_later_systems(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)
        .with_context(|| format!("failed to read {}", directory.display()))?
    {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        if entry?.is_dir() {
            found.extend(tools_for_later_systems(&path)?);
        } else if is_program(&path)? {
            // Without arguments they say how they are used, and end.
            let output = Command::new(&path)
                .current_dir(directory)
                .env("LC_ALL", "C")
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("failed to start {}", path.display()))?;
            if String::from_utf8_lossy(&output.stderr).contains("version `GLIBC_") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn is_program(path: &Path) -> Result<bool> {
    let meta = path
        .symlink_metadata()
        .with_context(|| format!("failed to look at {}", path.display()))?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Ok(false);
    }
    let bytes = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(bytes.starts_with(b"\x7fELF"))
}

/// Has a program run with the libraries unpacked into `system` at the top of
/// the tree, wherever that is by then.
fn wrap(tool: &Path) -> Result<()> {
    let mut itself = tool.as_os_str().to_owned();
    itself.push(".elf");
    let itself = PathBuf::from(itself);
    let script = format!(
        "#!/bin/sh\n\
         here=$(readlink -f \"$0\")\n\
         root=${{here%%/usr/lib/linux-kbuild*}}/system\n\
         for libraries in \"$root\"/lib/x86_64-linux-gnu \"$root\"/usr/lib/x86_64-linux-gnu; do\n\
         \x20   loader=$libraries/ld-linux-x86-64.so.2\n\
         \x20   [ ! -e \"$loader\" ] || exec \"$loader\" --library-path \\\n\
         \x20       \"$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu\" \\\n\
         \x20       \"${{here%/*}}/{}\" \"$@\"\n\
         done\n\
         exit 127\n",
        itself
            .file_name()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default()
    );
    fs::rename(tool, &itself)
        .and_then(|()| fs::write(tool, script))
        .and_then(|()| fs::set_permissions(tool, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("failed to wrap {}", tool.display()))
}

/// The one directory whose name ends so.
fn only(directory: &Path, ending: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("failed to read {}", directory.display()))?;
    let mut found = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(ending));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => bail!(
            "expected one directory *{ending} in {}; delete {0} to fetch it again",
            directory.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_those_with_a_version() {
        assert!(is_part_of_headers("linux-headers-6.1.0-56-common"));
        assert!(is_part_of_headers("linux-kbuild-6.12.117+deb13"));
        assert!(!is_part_of_headers(PACKAGE));
        assert!(!is_part_of_headers(
            "linux-image-6.12.117+deb13-cloud-amd64"
        ));
    }

    #[test]
    fn a_program_is_wrapped_in_the_tree_that_has_its_libraries() {
        let root = tempfile::tempdir().expect("a directory");
        let tools = root.path().join("usr/lib/linux-kbuild-1/tools");
        let libraries = root.path().join("system/usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&tools).expect("directories");
        fs::create_dir_all(&libraries).expect("directories");
        // A loader that says what it is asked to load.
        let loader = libraries.join("ld-linux-x86-64.so.2");
        fs::write(&loader, "#!/bin/sh\nshift 2; echo \"$@\"\n").expect("a script");
        fs::set_permissions(&loader, fs::Permissions::from_mode(0o755)).expect("executable");
        let tool = tools.join("objtool.real-x86");
        fs::write(&tool, "").expect("a program");
        wrap(&tool).expect("wrapped");
        let output = Command::new(&tool).args(["a b", "c"]).output();
        let text = String::from_utf8(output.expect("it runs").stdout).expect("text");
        let itself = tools
            .canonicalize()
            .expect("there")
            .join("objtool.real-x86.elf");
        assert_eq!(text, format!("{} a b c\n", itself.display()));
        assert!(itself.exists());
    }
}
