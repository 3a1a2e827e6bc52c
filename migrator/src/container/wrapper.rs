//! A `criu` in front of CRIU, for runtimes that pass nothing but `PATH`.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use super::DumpHook;
use crate::criu::{CONFIG_VARIABLE, restore_config, write};

/// Makes the CRIU of a dump that this command starts run the session's action
/// script, and log to the session's directory.
pub(super) fn hook_dump(
    command: &mut Command,
    storage: &Path,
    hook: DumpHook<'_>,
) -> anyhow::Result<()> {
    let script = action_script(storage, hook)?;
    let config = storage.join("dump.conf");
    let text = format!("action-script {}\n", script.display());
    write(&config, text.as_bytes(), 0o600)?;
    configure(command, storage, &config, "dump")
}

/// Makes the CRIU of a restore that this command starts leave the tree stopped.
pub(super) fn hook_restore(command: &mut Command, storage: &Path) -> anyhow::Result<()> {
    let config = restore_config(storage)?;
    configure(command, storage, &config, "restore")
}

fn configure(
    command: &mut Command,
    storage: &Path,
    config: &Path,
    what: &str,
) -> anyhow::Result<()> {
    let directory = storage.join("bin");
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let criu = find(&path).context("failed to find criu in PATH: install CRIU")?;
    // A runtime resets SIGXFSZ, which a dump that is given up has to ignore.
    let text = format!(
        "#!/bin/sh\ntrap '' XFSZ\n{CONFIG_VARIABLE}={} exec {} \"$@\"\n",
        quoted(config)?,
        quoted(&criu)?
    );
    write(&directory.join("criu"), text.as_bytes(), 0o700)?;

    let mut search = OsString::from(&directory);
    search.push(":");
    search.push(&path);
    let log = storage.join(format!("{what}.log"));
    let log = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    command
        .env("PATH", search)
        .env(CONFIG_VARIABLE, config)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Ok(())
}

/// Writes the script that a runtime's CRIU runs at each stage of a dump.
///
/// A shell stands between CRIU and this program: CRIU takes a script that a
/// signal has killed for one that has succeeded (`WEXITSTATUS` in
/// `cr_dump_finish`, CRIU 4.2), and would kill the tree. The shell makes 137 of
/// SIGKILL.
///
/// It lies beside the images, for /run is often mounted noexec, with a copy of
/// this program: an upgrade may replace the installed one meanwhile.
fn action_script(storage: &Path, hook: DumpHook<'_>) -> anyhow::Result<PathBuf> {
    let program = storage.join("migrator");
    fs::copy("/proc/self/exe", &program)
        .and_then(|_| fs::set_permissions(&program, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("failed to write {}", program.display()))?;
    let (name, value) = hook.variable;
    // A frozen tree waits for this: at the other stages, of which CRIU has many,
    // nothing is started, and here the mark comes first.
    let text = format!(
        "#!/bin/sh\n\
         [ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n\
         : >{} || exit 1\n\
         export {name}={value}\n\
         {} criu-hook\n\
         exit $?\n",
        quoted(hook.mark)?,
        quoted(&program)?
    );
    let path = storage.join("action");
    write(&path, text.as_bytes(), 0o700)?;
    Ok(path)
}

fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    let quoted = shlex::try_quote(text).with_context(|| format!("{} has a NUL", path.display()))?;
    Ok(quoted.into_owned())
}

fn find(path: &OsString) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|directory| directory.join("criu"))
        .find(|program| program.is_file())
}
