//! Programs that this one starts: with clean signals, and never waited for
//! without limit.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::process::{self, Handle, Process};

/// How long a runtime or CRIU may take to answer a question.
pub const QUESTION_LIMIT: Duration = Duration::from_secs(30);

/// How long a killed program may take to end, beyond which it hangs in the
/// kernel.
const KILLED_LIMIT: Duration = Duration::from_secs(2);

/// Poll interval for the end of a program, and for a request to stop.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How many bytes of a program's output are kept.
const OUTPUT_BYTES: u64 = 1 << 20;

/// Starts a program with no signal blocked. A child inherits the mask of the
/// thread that starts it, and this program blocks SIGINT, SIGTERM and SIGHUP to
/// read them from a descriptor; a child that does not know would never end.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    unblocked(|| command.spawn())
}

/// Starts a program with no signal blocked, as [`spawn`] does, by `start`.
///
/// # Errors
/// Those of `start`.
pub fn unblocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let ours = SigSet::thread_get_mask()?;
    SigSet::all().thread_unblock()?;
    let started = start();
    ours.thread_set_mask()?;
    started
}

/// What a program has printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

/// Runs a program to its end, for at most `limit`, or until `is_cancelled`.
///
/// # Errors
/// It can't be started, or did not end in time and was killed with all that it
/// had started.
pub fn output(
    command: &mut Command,
    limit: Duration,
    is_cancelled: &dyn Fn() -> bool,
) -> anyhow::Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = spawn(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .with_context(|| format!("failed to run {program}: is it installed?"))?;
    let collecting = collect(child.stdout.take())
        .and_then(|stdout| collect(child.stderr.take()).map(|stderr| (stdout, stderr)));
    let (stdout, stderr) = match collecting {
        Ok(collecting) => collecting,
        Err(error) => {
            kill(&mut child);
            return Err(error).with_context(|| format!("failed to run {program}"));
        }
    };
    let began = Instant::now();
    let status = loop {
        let left = limit.saturating_sub(began.elapsed());
        if let Some(status) = wait(&mut child, left.min(STOP_POLL_INTERVAL))? {
            break status;
        }
        let why = match is_cancelled() {
            true => "interrupted".to_owned(),
            false if left.is_zero() => format!("timed out after {} s", limit.as_secs()),
            false => continue,
        };
        kill(&mut child);
        bail!("{program} was killed: {why}");
    };
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> anyhow::Result<thread::JoinHandle<String>> {
    let collect = move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What could be read until an error is shown.
            _ = pipe.take(OUTPUT_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    thread::Builder::new()
        .name("output".into())
        .spawn(collect)
        .context("failed to start a thread")
}

/// Waits until a child has ended, for at most `time`. Returns its status.
///
/// # Errors
/// As [`Child::try_wait`].
pub fn wait(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    if !time.is_zero() {
        match Process::of(child.id() as i32).and_then(Process::handle) {
            Some(handle) => _ = handle.wait_gone(time),
            None => thread::sleep(time.min(Duration::from_millis(1))),
        }
    }
    child.try_wait()
}

/// Kills a child with all that it has started, and reaps it unless it hangs in
/// the kernel.
pub fn kill(child: &mut Child) {
    let tree = process::tree(child.id() as i32).unwrap_or_default();
    process::kill(&tree, KILLED_LIMIT);
    _ = child.kill();
    _ = wait(child, KILLED_LIMIT);
}

/// Returns a status in words, as in "killed by signal 9".
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Runs `work` on a thread of its own and returns its result, for at most
/// `limit`, or until `attend` fails. A thread that hangs in the kernel, in a
/// call to a dead NFS server, is left behind.
///
/// # Errors
/// What `attend` says; the limit is over; or there is no thread to be had.
pub fn attend<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    mut attend: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<T> {
    let (send, receive) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name(what.chars().take(15).collect())
        .spawn(move || _ = send.send(work()))
        .with_context(|| format!("failed to start a thread for: {what}"))?;
    let began = Instant::now();
    loop {
        // What takes microseconds is not waited for in milliseconds.
        match receive.recv_timeout(Duration::from_millis(2)) {
            Ok(result) => return Ok(result),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                bail!("{what}: the thread panicked")
            }
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
        }
        if began.elapsed() > limit {
            bail!("{what}: timed out after {} s", limit.as_secs());
        }
        attend()?;
    }
}

/// Asks a process to go on and to fail at its next write: nothing more fits
/// into a file. A dump that fails by itself puts its processes back as they
/// were; one that is killed may not. The signal of the limit has to be ignored,
/// see [`ignore_file_limit`](crate::signals::ignore_file_limit).
pub fn starve(process: &Handle) {
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if process.process().is_alive() {
        // One that has ended writes nothing either.
        _ = prlimit(
            Pid::from_raw(process.process().pid),
            Resource::Fsize,
            nothing,
        );
    }
    // One that is not stopped needs none.
    _ = process.signal(Signal::CONT);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_run_to_its_end() {
        let output = output(
            &mut shell("echo out; echo err >&2; exit 3"),
            QUESTION_LIMIT,
            &|| false,
        );
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let limit = Duration::from_millis(50);
        let error = output(&mut shell("sleep 1000 & wait"), limit, &|| false).unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
        let error = output(&mut shell("sleep 1000"), QUESTION_LIMIT, &|| true).unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
    }

    #[test]
    fn a_child_has_no_signal_blocked() {
        let ends: SigSet = [nix::sys::signal::Signal::SIGTERM].into_iter().collect();
        ends.thread_block().unwrap();
        let output = output(
            &mut shell("grep SigBlk /proc/self/status"),
            QUESTION_LIMIT,
            &|| false,
        );
        ends.thread_unblock().unwrap();
        assert_eq!(output.unwrap().stdout.trim(), "SigBlk:\t0000000000000000");
    }

    #[test]
    fn work_that_hangs_is_left_behind() {
        let hang = || thread::sleep(Duration::from_secs(1000));
        let error = attend("hang", Duration::from_millis(10), hang, || Ok(())).unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
        let stop = || bail!("interrupted");
        let error = attend("hang", QUESTION_LIMIT, hang, stop).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
        assert_eq!(
            attend("add", QUESTION_LIMIT, || 1 + 1, || Ok(())).unwrap(),
            2
        );
    }
}
