//! The one line in CRIU's configuration.
//!
//! `/etc/criu/default.conf` is read by every criu that is not told otherwise
//! (`--no-default-config`, `--config`; `criu/config.c`), also by the `criu
//! swrk` that runc and crun start; `runc.conf` and `crun.conf` come on top of
//! it, and scripts add up. So one file is enough, and a line in a second one
//! would have the script run twice.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::NAME;

/// CRIU's configuration, below the root directory.
const CONFIG: &str = "etc/criu/default.conf";

/// Makes the link beside `binary`, and writes the line into the configuration
/// below `root`. Says what it did.
///
/// # Errors
/// What could not be done.
pub fn install(root: &Path, binary: &Path) -> anyhow::Result<Vec<String>> {
    let link = link_beside(binary)?;
    let line = line(&link)?;
    let target = binary.file_name().context("the binary has no name")?;
    let mut done = Vec::new();
    match fs::read_link(&link) {
        Ok(there) if there == Path::new(target) => {
            done.push(format!("{} is there already", link.display()));
        }
        Ok(_) => {
            fs::remove_file(&link)
                .with_context(|| format!("failed to replace {}", link.display()))?;
            make_link(target.as_ref(), &link)?;
            done.push(format!("made {} lead here", link.display()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_link(target.as_ref(), &link)?;
            done.push(format!("made the link {}", link.display()));
        }
        Err(_) => bail!(
            "{} is there and is no symbolic link: remove it first",
            link.display()
        ),
    }
    let config = root.join(CONFIG);
    let before = read(&config)?;
    let after = with_line(&before, &line);
    if after == before {
        done.push(format!("{} has the line already", config.display()));
    } else {
        write(&config, &after)?;
        done.push(format!("wrote `{line}` into {}", config.display()));
    }
    Ok(done)
}

/// Takes both away. Says what it did.
///
/// # Errors
/// What could not be done.
pub fn remove(root: &Path, binary: &Path) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    // The line first: CRIU must not be sent to a link that is gone.
    let config = root.join(CONFIG);
    let before = read(&config)?;
    let after = without_lines(&before);
    if after == before {
        done.push(format!("{} has no line of ours", config.display()));
    } else if after.is_empty() {
        fs::remove_file(&config)
            .with_context(|| format!("failed to remove {}", config.display()))?;
        done.push(format!(
            "removed {}, which had nothing but our line",
            config.display()
        ));
    } else {
        write(&config, &after)?;
        done.push(format!("took our line out of {}", config.display()));
    }
    let link = link_beside(binary)?;
    match fs::read_link(&link) {
        Ok(_) => {
            fs::remove_file(&link)
                .with_context(|| format!("failed to remove {}", link.display()))?;
            done.push(format!("removed the link {}", link.display()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            done.push(format!("there is no {}", link.display()));
        }
        Err(_) => done.push(format!(
            "left {} alone, which is no symbolic link",
            link.display()
        )),
    }
    Ok(done)
}

fn link_beside(binary: &Path) -> anyhow::Result<PathBuf> {
    ensure!(
        !binary.ends_with(NAME),
        "{} must not be called like the link to it",
        binary.display()
    );
    let directory = binary.parent().context("the binary is in no directory")?;
    Ok(directory.join(NAME))
}

fn make_link(target: &Path, link: &Path) -> anyhow::Result<()> {
    symlink(target, link).with_context(|| format!("failed to make the link {}", link.display()))
}

/// The line, if CRIU can read such a path.
fn line(link: &Path) -> anyhow::Result<String> {
    let path = link.to_str().filter(|path| {
        let strange = |char: char| char.is_whitespace() || matches!(char, '"' | '#' | '\\');
        !path.contains(strange)
    });
    let path = path.with_context(|| {
        format!(
            "CRIU's configuration can't name {}: put the binary where the path has no blanks, \
             quotes, # or \\",
            link.display()
        )
    })?;
    Ok(format!("action-script {path}"))
}

/// The configuration with this line, once, and no other of ours.
fn with_line(config: &[u8], line: &str) -> Vec<u8> {
    let mut ours = lines(config).filter(|line| is_ours(line));
    if ours.next().map(<[u8]>::trim_ascii) == Some(line.as_bytes()) && ours.next().is_none() {
        return config.to_vec();
    }
    let mut config = without_lines(config);
    if !config.is_empty() && !config.ends_with(b"\n") {
        config.push(b'\n');
    }
    config.extend(line.as_bytes());
    config.push(b'\n');
    config
}

/// The configuration without lines of ours.
fn without_lines(config: &[u8]) -> Vec<u8> {
    let others: Vec<&[u8]> = lines(config).filter(|line| !is_ours(line)).collect();
    others.concat()
}

/// Lines with their ends.
fn lines(config: &[u8]) -> impl Iterator<Item = &[u8]> {
    config.split_inclusive(|&byte| byte == b'\n')
}

/// `action-script /any/directory/migrator-criu-hook`
fn is_ours(line: &[u8]) -> bool {
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let named = words.next() == Some(b"action-script");
    let path = words.next().map(|path| path.trim_ascii());
    named && path.is_some_and(|path| Path::new(std::ffi::OsStr::from_bytes(path)).ends_with(NAME))
}

fn read(config: &Path) -> anyhow::Result<Vec<u8>> {
    match fs::read(config) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.with_context(|| format!("failed to read {}", config.display())),
    }
}

/// Replaces the configuration at once: a criu that starts now must find the
/// old one or the new one.
fn write(config: &Path, text: &[u8]) -> anyhow::Result<()> {
    let replace = || -> io::Result<()> {
        // Through a symbolic link, as other programs that write it.
        let config = match fs::canonicalize(config) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => config.to_owned(),
            place => place?,
        };
        let directory = config.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let mode = match fs::metadata(&config) {
            Ok(meta) => meta.permissions(),
            Err(_) => fs::Permissions::from_mode(0o644),
        };
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(text)?;
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(&config)?;
        Ok(())
    };
    replace().with_context(|| format!("failed to write {}", config.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "action-script /usr/local/bin/migrator-criu-hook";

    fn with(config: &str) -> String {
        String::from_utf8(with_line(config.as_bytes(), LINE)).expect("text")
    }

    fn without(config: &str) -> String {
        String::from_utf8(without_lines(config.as_bytes())).expect("text")
    }

    #[test]
    fn the_line_is_there_once() {
        assert_eq!(with(""), format!("{LINE}\n"));
        assert_eq!(with("tcp-close"), format!("tcp-close\n{LINE}\n"));
        let config = format!("tcp-close\n  {LINE}\nlog-level 4\n");
        assert_eq!(with(&config), config);
        let old = format!("action-script /opt/migrator-criu-hook\n{LINE}\ntcp-close\n");
        assert_eq!(with(&old), format!("tcp-close\n{LINE}\n"));
    }

    #[test]
    fn others_lines_stay() {
        let others = "# action-script /x/migrator-criu-hook\naction-script /x/other\n\ntcp-close\n";
        assert_eq!(without(others), others);
        assert_eq!(without(&with(others)), others);
        assert_eq!(without(&with("")), "");
    }

    #[test]
    fn paths_that_criu_can_not_read_are_refused() {
        assert!(line(Path::new("/usr/local/bin/migrator-criu-hook")).is_ok());
        for path in ["/a b/x", "/a#/x", "/a\"/x", "/a\n/x"] {
            assert!(line(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn what_is_installed_can_be_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (root, binary) = (dir.path().join("root"), dir.path().join("migrator"));
        let link = dir.path().join(NAME);
        let config = root.join(CONFIG);
        let expected = format!("action-script {}\n", link.display());
        for _ in 0..2 {
            install(&root, &binary).expect("installed");
            assert_eq!(fs::read_link(&link).expect("a link"), Path::new("migrator"));
            assert_eq!(fs::read_to_string(&config).expect("text"), expected);
        }
        for _ in 0..2 {
            remove(&root, &binary).expect("removed");
            assert!(fs::symlink_metadata(&link).is_err());
            assert!(!config.exists());
        }
        fs::write(&link, "mine").expect("a file");
        install(&root, &binary).expect_err("in the way");
        assert!(!config.exists());
    }
}
