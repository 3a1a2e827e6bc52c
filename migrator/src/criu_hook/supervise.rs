//! The process that CRIU waits for.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::stage::{Call, Stage, has_own_mounts};
use super::{LIST, RUN, list};

/// How long a look at the tree may take; then what was seen is written.
pub const LOOK: Duration = Duration::from_secs(2);

/// How long CRIU is kept waiting at most, should the look hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// The log begins anew when it has grown to so many bytes.
const LOG_BYTES: u64 = 1 << 20;

/// Does what there is to be done at this stage.
///
/// # Errors
/// What went wrong. It is no reason for CRIU to give up.
pub fn run(call: &Call) -> anyhow::Result<()> {
    match call.stage {
        Stage::PreDump | Stage::PostDump => wait_for_look(),
        Stage::PreRestore if has_own_mounts(&call.images) => Ok(()),
        Stage::PostSetupNamespaces if !has_own_mounts(&call.images) => Ok(()),
        Stage::PreRestore | Stage::PostSetupNamespaces | Stage::PreResume => start_worker(call),
        Stage::Other => Ok(()),
    }
}

/// This program again, with the same environment.
fn ourselves(part: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    let criu = parent_id().to_string();
    command.args(["criu-hook", "--part", part, "--criu", &criu]);
    command
}

fn wait_for_look() -> anyhow::Result<()> {
    let mut look = ourselves("look")
        .stdin(Stdio::null())
        .spawn()
        .context("failed to start the look at the page cache")?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match look.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => bail!("the look at the page cache failed: {status}"),
            Err(error) => return Err(error).context("failed to wait for the look"),
        }
    }
    give_up(&mut look);
    bail!("the look at the page cache took more than {PATIENCE:?} and was ended");
}

/// Ends it, and waits for it only if that works: it may hang in the kernel.
fn give_up(child: &mut Child) {
    // It has ended, then.
    _ = child.kill();
    thread::sleep(Duration::from_millis(10));
    _ = child.try_wait();
}

/// Starts a prefetch that goes on after we, and CRIU, have ended.
fn start_worker(call: &Call) -> anyhow::Result<()> {
    // Open, because CRIU may be done with the directory before the worker
    // comes to it.
    let Some(list) = list::open(&call.images.join(LIST))? else {
        return Ok(());
    };
    let (out, err) = match log().and_then(|log| Ok((log.try_clone()?, log))) {
        Ok((out, err)) => (out.into(), err.into()),
        Err(error) => {
            // Into CRIU's log, if there is room.
            let why = format!("failed to open the log in {RUN}: {error}; there is none");
            _ = writeln!(io::stderr(), "migrator: {why}");
            (Stdio::null(), Stdio::null())
        }
    };
    ourselves("prefetch")
        .stdin(list)
        .stdout(out)
        .stderr(err)
        .spawn()
        .context("failed to start the prefetch")?;
    Ok(())
}

/// Makes the directory [`RUN`], which is for root alone.
///
/// # Errors
/// It can't be made.
pub fn make_run() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(RUN)
}

/// What the workers say; the one before is kept beside it.
fn log() -> io::Result<File> {
    make_run()?;
    let run = Path::new(RUN);
    let path = run.join("criu-hook.log");
    if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES) {
        fs::rename(&path, run.join("criu-hook.log.1"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}
