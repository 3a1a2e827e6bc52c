//! A `criu` in front of CRIU, for runtimes that pass nothing but `PATH`.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::criu::action_script;
use crate::handover::Session;

/// The variable that names a configuration file to CRIU, beside its others
/// (criu(8)).
const VARIABLE: &str = "CRIU_CONFIG_FILE";

/// Lets the CRIU that this command starts call the session's action script,
/// and log to the session's directory.
pub(super) fn hook(command: &mut Command, session: &Session, what: &str) -> anyhow::Result<()> {
    let storage = session.storage();
    let configuration = storage.join("criu.conf");
    let script = action_script(session)?;
    let text = format!("action-script {}\n", script.display());
    write(&configuration, text.as_bytes(), 0o600)?;

    let directory = storage.join("bin");
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let criu = find(&path).context("failed to find criu in PATH: install CRIU")?;
    let criu = shlex::try_quote(criu.to_str().context("the path of criu is not UTF-8")?)?;
    let text = format!(
        "#!/bin/sh\n{VARIABLE}={} exec {criu} \"$@\"\n",
        configuration.display()
    );
    write(&directory.join("criu"), text.as_bytes(), 0o700)?;

    let mut search = OsString::from(&directory);
    search.push(":");
    search.push(&path);
    let log = storage.join(format!("{what}.log"));
    let log = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    command
        .env("PATH", search)
        .env(VARIABLE, &configuration)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Ok(())
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(mode);
    options
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn find(path: &OsString) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|directory| directory.join("criu"))
        .find(|program| program.is_file())
}
