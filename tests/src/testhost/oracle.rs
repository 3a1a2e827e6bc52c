//! Whether a tree has run exactly once, and nothing is left behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::fault::Side;
use super::host::{Handle, Seen};
use super::site::Pair;
use super::tree::{PROCESSES, Tree, running};

/// How long everything may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(40);

/// How long nothing may be at work before what is seen is what stays.
const QUIET_LIMIT: Duration = Duration::from_secs(4);

/// The largest file that may stay on a disk, in bytes.
const TOMBSTONE: u64 = 4096;

/// Between two looks at the tree while it moves.
const WATCH_INTERVAL: Duration = Duration::from_millis(15);

/// Waits until nothing of a move is at work and the tree runs as a whole on one
/// host, or on none if that is allowed. Returns where.
///
/// # Errors
/// Returns an error when it runs elsewhere, or has not made each step once.
pub fn settle(pair: &Pair, tree: &Tree, may_be_gone: bool) -> Result<Option<Side>> {
    let side = rest(pair, may_be_gone)?;
    if side.is_some() {
        tree.wait_for_progress()?;
    }
    let verdict = tree.verdict()?;
    ensure!(verdict.exactly_once(), "wrong steps: {verdict:?}");
    ensure!(
        rest(pair, may_be_gone)? == side,
        "the tree has changed its host afterwards"
    );
    Ok(side)
}

/// Waits until everything has come to rest. Returns where the tree runs.
///
/// # Errors
/// Returns an error when that takes too long.
pub fn rest(pair: &Pair, may_be_gone: bool) -> Result<Option<Side>> {
    let (began, mut quiet) = (Instant::now(), Instant::now());
    loop {
        let busy = at_work(pair);
        if !busy.is_empty() {
            quiet = Instant::now();
        }
        let seen = [&pair.source, &pair.destination].map(|host| running(&host.handle()));
        let still: usize = pair
            .hosts()
            .iter()
            .map(|host| host.handle().find("steps", "").len())
            .sum();
        match seen {
            [PROCESSES, 0] if busy.is_empty() && still == PROCESSES => {
                return Ok(Some(Side::Source));
            }
            [0, PROCESSES] if busy.is_empty() && still == PROCESSES => {
                return Ok(Some(Side::Destination));
            }
            [0, 0] if busy.is_empty() && still == 0 && may_be_gone => return Ok(None),
            _ => {}
        }
        if began.elapsed() > REST_LIMIT || quiet.elapsed() > QUIET_LIMIT {
            bail!(
                "{} processes of the tree run on the source and {} on the destination, {} stand \
                 still; at work: {busy:?}",
                seen[0],
                seen[1],
                still - seen[0] - seen[1],
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the processes of migrator and CRIU on all hosts.
pub fn at_work(pair: &Pair) -> Vec<String> {
    let is_ours = |it: &Seen| {
        ["migrator", "criu", "rsh"].contains(&it.program.as_str()) || it.name.starts_with("criu")
    };
    let mut found = Vec::new();
    for host in pair.hosts() {
        let handle = host.handle();
        let ours = handle.processes().into_iter().filter(is_ours);
        found.extend(ours.map(|it| format!("{}: {} ({})", handle.name(), it.args, it.state)));
    }
    found
}

/// Makes sure that no session, image or cgroup of a move is left, and no process.
///
/// # Errors
/// Returns an error with what is left.
pub fn nothing_left(pair: &Pair) -> Result<()> {
    nothing_left_but(pair, Kept::default())
}

/// What may be left, because a host that has lost its power can't say what has to
/// go.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    /// The destination's note that the tree runs, for a source that lost its disk,
    /// too, and so can't confirm.
    pub(super) unconfirmed: bool,
    /// The images on the source, of a tree that was lost with it.
    pub(super) images: bool,
}

/// Makes sure that nothing else is left.
///
/// # Errors
/// Returns an error with what is left.
pub(super) fn nothing_left_but(pair: &Pair, kept: Kept) -> Result<()> {
    let mut left = at_work(pair);
    for host in pair.hosts() {
        let handle = host.handle();
        if !handle.is_up() {
            continue;
        }
        let mut add = |path: &Path| left.push(format!("{}: {}", handle.name(), path.display()));
        for entry in fs::read_dir(handle.path("/run/migrator"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let is_kept = kept.unconfirmed && entry.path().join("running").exists();
            if entry.path().is_dir() && !is_kept {
                add(&entry.path());
            }
        }
        if kept.images && handle.name() == "source" {
            continue;
        }
        large(&handle.path("/var/lib/migrator"), &mut add);
        cgroups(handle.cgroup(), &mut add);
    }
    ensure!(left.is_empty(), "this is left behind: {left:#?}");
    Ok(())
}

/// Adds files that are larger than a tombstone, and images of any size.
fn large(directory: &Path, add: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, Ok(about)) = (entry.path(), entry.metadata()) else {
            continue;
        };
        let is_image = path
            .extension()
            .is_some_and(|it| it == "img" || it == "log");
        if about.is_dir() {
            large(&path, add);
        } else if is_image || about.len() > TOMBSTONE {
            add(&path);
        }
    }
}

/// Adds cgroups of migrator's.
fn cgroups(cgroup: &Path, add: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name().to_string_lossy().starts_with("migrator") {
                add(&path);
            }
            cgroups(&path, add);
        }
    }
}

/// Notes while a tree moves how long it stands still on the source.
#[derive(Debug)]
pub struct Frozen {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Instant)>>,
}

impl Frozen {
    /// Begins to watch a tree on the source.
    pub fn watch(tree: &Tree) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pids: Vec<i32> = tree.processes.iter().map(|it| it.pid).collect();
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let (mut spans, mut since) = (Vec::new(), None::<Instant>);
                while !stop.load(Ordering::SeqCst) {
                    let seen: Vec<_> = pids.iter().filter_map(|pid| Seen::of(*pid)).collect();
                    let still = seen.iter().any(|it| matches!(it.state, 'T' | 't'));
                    match (still, since) {
                        (true, None) => since = Some(Instant::now()),
                        (false, Some(began)) => {
                            spans.push((began, Instant::now()));
                            since = None;
                        }
                        _ => {}
                    }
                    thread::sleep(WATCH_INTERVAL);
                }
                spans.extend(since.map(|began| (began, Instant::now())));
                spans
            })
        };
        Self { stop, thread }
    }

    /// Returns the longest time that it stood still, up to a moment.
    pub fn longest(self, until: Option<Instant>) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        let spans = self.thread.join().unwrap_or_default();
        spans
            .into_iter()
            .map(|(from, to)| {
                until
                    .map_or(to, |it| it.min(to))
                    .saturating_duration_since(from)
            })
            .max()
            .unwrap_or_default()
    }
}

/// Returns what of all hosts to show with a failure.
pub fn scene(pair: &Pair) -> String {
    let script = "ps -eo pid,ppid,stat,wchan:24,etimes,args | grep -E 'steps|criu|migrator|strace' | grep -v grep
         for f in $(find /run/migrator /var/lib/migrator -maxdepth 2 -type f | grep -v '[.]img$')
         do echo \"$f: $(head -c 300 $f | tr -d '\\0')\"; done
         for f in /var/lib/migrator/*/*.log; do echo \"$f:\"; tail -n 5 $f; done; true";
    let mut text = String::new();
    for host in pair.hosts() {
        let handle = host.handle();
        let seen = match handle.is_up() {
            true => host.run(script),
            false => Ok("without power\n".into()),
        };
        text += &format!(
            "--- {}:\n{}",
            handle.name(),
            seen.unwrap_or_else(|error| format!("{error:#}"))
        );
    }
    text += &format!("--- destination's standard error:\n{}", pair.relay.said());
    text += "--- messages:";
    let log = pair.relay.log();
    for it in &log {
        text += &format!(
            " {}{}{}",
            it.connection,
            if it.direction == super::Direction::There {
                '>'
            } else {
                '<'
            },
            it.kind.0
        );
    }
    text + "\n"
}

/// Returns the handles of all hosts.
pub(super) fn handles(pair: &Pair) -> Vec<Handle> {
    pair.hosts().iter().map(|host| host.handle()).collect()
}
