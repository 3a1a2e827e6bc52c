//! Migrations between hosts that are namespaces of this kernel, in which anything
//! may go wrong. They need root and a cgroup2 hierarchy:
//! `cargo test -p migrator-tests --test handover -- --ignored --test-threads 1`.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use migrator_tests::testhost::Direction::{Back, There};
use migrator_tests::testhost::{
    Action, Case, Fault, Handle, Kind, Locks, Moment, Mover, Outcome, Pair, Seen, Side, Site, Tree,
    Who, nothing_left, scene, settle,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
#[ignore = "needs root"]
fn a_tree_moves_when_nothing_goes_wrong() -> Result<()> {
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    for locks in [Locks::None, Locks::Held] {
        for options in ["--no-prefetch", "--observe 100ms --max-warmup 300ms"] {
            let began = Instant::now();
            let case = Case {
                options,
                ..Case::plain(locks)
            };
            let outcome = case.run(&mut pair)?;
            println!(
                "{locks:?} {options}: {:?}, frozen for {:?}, {:.2} s",
                outcome.side,
                outcome.frozen,
                began.elapsed().as_secs_f64()
            );
            ensure!(
                outcome.side == Some(Side::Destination),
                "it is not there: {:?}",
                outcome.moved
            );
        }
    }
    Ok(())
}

/// Longer than migrator takes a change for a recent one.
const SETTLED: Duration = Duration::from_secs(5);

/// Pages of a tree's `data`, less a few that it may not have read by the end of an
/// observation.
const DATA_PAGES: u64 = 240;

/// The pages by which two runs may differ otherwise.
const NOISE: u64 = 16;

/// A move of a tree with a file in use: the pages of its lists.
struct Listed {
    /// Before the freeze.
    ahead: u64,
    /// When it had ended.
    after: u64,
    /// Resident on the destination after the refill.
    there: u64,
}

fn move_with_data(how: &str) -> Result<Listed> {
    let site = Site::new()?;
    let pair = Pair::boot(&site)?;
    let tree = Tree::start_with(&pair, Locks::None, &format!("--data {how}"))?;
    // Its files were just made, which looks as if they were being written.
    std::thread::sleep(SETTLED);
    let what = format!("--pid {} --observe 2s --max-warmup 60s", tree.pid);
    let moved = Mover::start(&pair.source.handle(), &[], &what, Vec::new())?.finish(MOVE)?;
    let side = settle(&pair, &tree, false).with_context(|| scene(&pair));
    tree.end(&[&pair.source.handle(), &pair.destination.handle()]);
    println!("--data {how}:\n{}{}", moved.said, moved.report);
    ensure!(
        moved.code == Some(0),
        "exit {:?}: {}",
        moved.code,
        moved.said
    );
    ensure!(side? == Some(Side::Destination), "it is not there");
    // The ledger is written in each run.
    let ended = "warm-up ends: only files that keep changing have new pages";
    ensure!(moved.said.contains(ended), "{}", moved.said);
    nothing_left(&pair)?;
    let report: Value = serde_json::from_str(&moved.report).context("the report is no JSON")?;
    let pages = |pointer| report.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let ahead = pages("/precopy/pages");
    Ok(Listed {
        ahead,
        after: pages("/list/pages") - ahead,
        there: pages("/arrival/refill/pages/resident") + pages("/arrival/refill/pages/read"),
    })
}

/// A file that is open for writing and is not written is sent ahead, as one that is open for
/// reading. One that is written all the time is sent after the freeze, and does not hold
/// it up.
#[test]
#[ignore = "needs root"]
fn only_what_is_really_written_waits_for_the_freeze() -> Result<()> {
    let [read, open, rewritten] = ["read", "open", "rewrite"].map(move_with_data);
    let (read, open, rewritten) = (read?, open?, rewritten?);
    ensure!(
        open.ahead + NOISE >= read.ahead,
        "{} pages were sent ahead, and {} of a file that is open for reading",
        open.ahead,
        read.ahead
    );
    ensure!(
        rewritten.ahead + DATA_PAGES <= read.ahead,
        "{} pages were sent ahead, although the file is written; else {}",
        rewritten.ahead,
        read.ahead
    );
    let listed = rewritten.ahead + rewritten.after;
    ensure!(
        listed + NOISE >= read.ahead,
        "{listed} pages were sent at all"
    );
    ensure!(
        rewritten.there + NOISE >= listed,
        "{} pages are there, of {listed}",
        rewritten.there
    );
    Ok(())
}

/// `MIGRATOR_FAULT_RUNS` has the number of migrations in which a fault strikes,
/// `MIGRATOR_FAULT_SEED` the seed of the first, `MIGRATOR_FAULT_ONLY` a part of the
/// description of the cases to try. A run with the seed of another is the same.
#[test]
#[ignore = "needs root"]
fn a_tree_runs_once_whatever_goes_wrong() -> Result<()> {
    let runs = number("MIGRATOR_FAULT_RUNS")?.unwrap_or(RUNS);
    let first = match number("MIGRATOR_FAULT_SEED")? {
        Some(seed) => seed,
        None => fresh_seed()?,
    };
    let only = std::env::var("MIGRATOR_FAULT_ONLY").unwrap_or_default();
    println!("the first seed is {first}");
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    let (mut struck, mut failed) = (0, Vec::new());
    // Not all cases strike, and not all are wanted.
    for seed in (first..).take(runs as usize * MISSES) {
        let case = Case::draw(seed);
        let what = case.describe();
        if !what.contains(&only) {
            continue;
        }
        let began = Instant::now();
        let result = case.run(&mut pair);
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok(outcome) => {
                struck += u64::from(outcome.struck);
                println!(
                    "passed  seed {seed}: {what}{}: exit {:?}, on {:?}, {seconds:.1} s",
                    if outcome.struck {
                        ""
                    } else {
                        " (no fault struck)"
                    },
                    outcome.moved.code,
                    outcome.side,
                );
            }
            Err(error) => {
                struck += 1;
                println!("FAILED  seed {seed}: {what}, {seconds:.1} s: {error:#}");
                failed.push(format!("seed {seed}: {what}: {}", error.root_cause()));
                // Nothing of it shall disturb the next.
                drop(pair);
                pair = Pair::boot(&site)?;
            }
        }
        if struck >= runs {
            break;
        }
    }
    println!(
        "{struck} migrations in which a fault struck, {} failed",
        failed.len()
    );
    ensure!(
        failed.is_empty(),
        "{} migrations failed: {failed:#?}",
        failed.len()
    );
    Ok(())
}

/// Migrations where nothing else is said.
const RUNS: u64 = 100;

/// Cases that are drawn at most, for each migration that is wanted.
const MISSES: usize = 50;

fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    let number = text
        .parse()
        .with_context(|| format!("{name} is no number"))?;
    Ok(Some(number))
}

/// Returns a seed that is short enough to be typed again.
fn fresh_seed() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now.as_millis() as u64 % 10_000_000)
}

/// Runs a case between new hosts.
fn run(case: Case) -> Result<Outcome> {
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    let what = case.describe();
    let outcome = case.run(&mut pair).with_context(|| what.clone())?;
    println!(
        "{what}{}: exit {:?}, on {:?}, frozen for {:?}",
        if outcome.struck {
            ""
        } else {
            " (no fault struck)"
        },
        outcome.moved.code,
        outcome.side,
        outcome.frozen
    );
    if std::env::var_os("MIGRATOR_FAULT_VERBOSE").is_some() {
        println!("{}{}", outcome.moved.said, pair.relay.said());
    }
    Ok(outcome)
}

const CACHED: &str = "--observe 100ms --max-warmup 300ms --interval 50ms";

/// C1: a tree that dies is no tree that runs.
#[test]
#[ignore = "needs root"]
fn c1_a_restore_that_fails_late_is_rolled_back() -> Result<()> {
    for _ in 0..4 {
        let case = Case::plain(Locks::None).large(200);
        let outcome = run(case.with(Fault::SeizeFails, Moment::Before))?;
        ensure!(outcome.side == Some(Side::Source), "it is not rolled back");
    }
    Ok(())
}

/// C2: an error while the destination is asked does not decide anything.
#[test]
#[ignore = "needs root"]
fn c2_an_error_after_resume_is_no_roll_back() -> Result<()> {
    for (call, error, when) in [
        ("epoll_create1", "EMFILE", 2),
        ("eventfd2", "EMFILE", 2),
        ("link,linkat,renameat2", "ENOSPC", 1),
        ("clone3", "EAGAIN", 2),
    ] {
        let fault = Fault::Syscall(Side::Source, call, error, when);
        run(Case::plain(Locks::None)
            .with(fault, Moment::Before)
            .network(There, Kind::RESUME, Action::CutAfter))?;
    }
    Ok(())
}

/// H1: a destination that hangs does not keep the tree frozen.
#[test]
#[ignore = "needs root"]
fn h1_a_hanging_destination_ends_the_freeze() -> Result<()> {
    let stop = Fault::Stop(Who::Leader(Side::Destination), Duration::from_secs(25));
    let case = Case {
        options: CACHED,
        ..Case::plain(Locks::None)
    };
    // The images fill what is between the hosts before the last list is sent.
    let case = case
        .large(100)
        .with(Fault::Slow(Side::Source, "fsync", 300), Moment::Before)
        .with(stop, Moment::Step("freeze", 0));
    let outcome = run(case)?;
    ensure!(outcome.frozen < FROZEN, "frozen for {:?}", outcome.frozen);
    Ok(())
}

/// More than migrator promises, with what a test adds.
const FROZEN: Duration = Duration::from_secs(14);

/// H2: a process that has got the id of one of the tree is left alone.
#[test]
#[ignore = "needs root"]
fn h2_recover_leaves_strangers_alone() -> Result<()> {
    let site = Site::new()?;
    let pair = Pair::boot(&site)?;
    let tree = Tree::start(&pair, Locks::None)?;
    let (source, destination) = (pair.source.handle(), pair.destination.handle());
    let kill = Fault::Kill(Who::Both(Side::Destination));
    let there = destination.clone();
    let strike = move || _ = kill.strike(&source, &there);
    let cut = Action::CallCut(Box::new(strike));
    pair.relay.rule(Back, Kind::RESTORED, cut);
    let what = format!("--no-prefetch --pid {}", tree.pid);
    let mover = Mover::start(&pair.source.handle(), &[], &what, Vec::new())?;
    mover.finish(Duration::from_secs(30))?;
    for left in ["criu", "steps"] {
        let left = destination.find(left, "");
        left.iter().for_each(|it| it.signal(Signal::SIGKILL));
    }
    pair.destination.run(&format!(
        "sleep 0.2; echo {} >/proc/sys/kernel/ns_last_pid
         setsid sleep 1001 </dev/null >/dev/null 2>&1 & sleep 0.2",
        tree.pid - 1
    ))?;
    let stranger = destination.find("sleep", "1001");
    ensure!(
        stranger.iter().any(|it| it.inner == tree.pid),
        "the id was not given again: {stranger:?}"
    );
    _ = pair
        .destination
        .output(&["timeout", "20", "migrator", "recover"])?;
    ensure!(
        destination.find("sleep", "1001").len() == 1,
        "it was killed"
    );
    tree.end(&[&pair.source.handle(), &destination]);
    Ok(())
}

/// H3: a host that has not heard of the session knows nothing of the tree.
#[test]
#[ignore = "needs root"]
fn h3_the_answer_of_another_host_does_not_count() -> Result<()> {
    for message in [There, Back] {
        let (kind, action) = match message {
            There => (Kind::RESUME, Action::CutAfter),
            Back => (Kind::RUNNING, Action::Cut),
        };
        run(Case::plain(Locks::None)
            .with(Fault::Stranger, Moment::Before)
            .network(message, kind, action))?;
    }
    Ok(())
}

/// H4: a dump that is given up ends at once.
#[test]
#[ignore = "needs root"]
fn h4_a_failure_during_the_dump_ends_the_freeze() -> Result<()> {
    let stop = Fault::Stop(Who::Criu(Side::Source), Duration::from_secs(25));
    let kill = Fault::Kill(Who::Leader(Side::Destination));
    let outcome = run(Case::plain(Locks::None)
        .large(200)
        .with(stop, Moment::Step("dump", 0))
        .with(kill, Moment::Step("dump", 15)))?;
    ensure!(outcome.frozen < FROZEN, "frozen for {:?}", outcome.frozen);
    Ok(())
}

/// H5: what an operator says of the destination counts on the source only.
#[test]
#[ignore = "needs root"]
fn h5_the_destination_can_not_be_declared_dead_on_itself() -> Result<()> {
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    let mut enter = pair.destination.handle().enter(&[
        "sh",
        "-c",
        "for s in /run/migrator/*/; do echo destination | timeout 5 migrator recover \
         --destination-is-dead destination $(basename $s); done",
    ]);
    let recover = Action::CallCut(Box::new(move || drop(enter.output())));
    let case = Case::plain(Locks::None).network(Back, Kind::RESTORED, recover);
    let outcome = case.run(&mut pair)?;
    ensure!(
        outcome.side == Some(Side::Source),
        "it is not on the source"
    );
    Ok(())
}

/// M1: nothing stays of a tree whose CRIU was killed while it was made.
#[test]
#[ignore = "needs root"]
fn m1_half_made_processes_do_not_stay() -> Result<()> {
    let hold = |tree: &Tree| {
        let path = tree.directory().join("posix");
        // Gets the lock when the source's tree has ended, and keeps it for a while.
        std::thread::spawn(move || {
            let file = File::options().write(true).open(path)?;
            let lock = nix::libc::flock {
                l_type: nix::libc::F_WRLCK as nix::libc::c_short,
                l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            fcntl(&file, FcntlArg::F_SETLKW(&lock))?;
            std::thread::sleep(Duration::from_secs(1));
            anyhow::Ok(())
        });
    };
    let mut case = Case::plain(Locks::Held);
    // The restore waits for the lock meanwhile.
    case.started = Some(Box::new(hold));
    let kill = Fault::Kill(Who::Criu(Side::Destination));
    run(case.with(kill, Moment::Step("restore", 60)))?;
    let kill = Fault::Kill(Who::Criu(Side::Destination));
    let case = Case {
        options: CACHED,
        ..Case::plain(Locks::Held)
    };
    run(case.with(kill, Moment::Step("freeze", 40))).map(drop)
}

/// M2: the guard is there although the program was replaced meanwhile.
#[test]
#[ignore = "needs root"]
fn m2_an_upgrade_during_the_move_leaves_the_guard() -> Result<()> {
    for side in [Side::Source, Side::Destination] {
        let case = Case {
            options: CACHED,
            ..Case::plain(Locks::None)
        };
        let moment = match side {
            Side::Source => Moment::Step("observe", 0),
            Side::Destination => Moment::Message(There, Kind::HELLO),
        };
        run(case.with(Fault::Upgrade(side), moment).with(
            Fault::Kill(Who::Leader(side)),
            Moment::Delivered(There, Kind::RESUME),
        ))?;
    }
    Ok(())
}

/// M3: a CRIU that hangs after the commit does not keep the tree stopped.
#[test]
#[ignore = "needs root"]
fn m3_a_criu_that_hangs_after_resume_is_given_up() -> Result<()> {
    let stop = Fault::Stop(Who::Criu(Side::Destination), Duration::from_secs(90));
    let moment = Moment::Message(There, Kind::RESUME);
    run(Case::plain(Locks::None).with(stop, moment)).map(drop)
}

/// M9: a session that can't be settled does not keep others from it.
#[test]
#[ignore = "needs root"]
fn m9_recover_settles_each_session_on_its_own() -> Result<()> {
    let site = Site::new()?;
    let pair = Pair::boot(&site)?;
    let left = pair.source.run(
        "cd /run && mkdir -p migrator && cd migrator
         for s in 0 1 2 3 4 5; do mkdir -m 700 ${s}000000000000000; done
         for s in 0 5; do echo '{' >${s}000000000000000/journal; done
         timeout 20 migrator recover >/dev/null 2>&1; ls -d /run/migrator/[1-4]*/ 2>/dev/null; true",
    )?;
    ensure!(left.is_empty(), "these are left: {left}");
    Ok(())
}

/// M10: a destination that can't write its notes says so before the freeze.
#[test]
#[ignore = "needs root"]
fn m10_a_destination_without_a_disk_refuses() -> Result<()> {
    let full = Fault::DiskFull(Side::Destination, 0);
    let outcome = run(Case::plain(Locks::None).with(full, Moment::Before))?;
    ensure!(
        outcome.side == Some(Side::Source),
        "it is not on the source"
    );
    ensure!(
        !outcome.moved.said.contains("migrator: freeze"),
        "it was frozen"
    );
    Ok(())
}

/// M11: a standard error that is closed ends nothing.
#[test]
#[ignore = "needs root"]
fn m11_a_closed_standard_error_is_no_panic() -> Result<()> {
    let site = Site::new()?;
    let pair = Pair::boot(&site)?;
    let tree = Tree::start(&pair, Locks::None)?;
    let code = pair.source.run(&format!(
        "{{ migrator move --to ssh://destination --rsh /mnt/programs/rsh --no-prefetch \
         --pid {}; echo $? >/tmp/code; }} 2>&1 | grep -m1 dump >/dev/null
         while ! [ -s /tmp/code ]; do sleep 0.1; done; cat /tmp/code",
        tree.pid
    ))?;
    let side = settle(&pair, &tree, false).with_context(|| scene(&pair))?;
    tree.end(&[&pair.source.handle(), &pair.destination.handle()]);
    ensure!(code.trim() == "0", "exit {code}");
    ensure!(side == Some(Side::Destination), "it is on {side:?}");
    nothing_left(&pair)
}

/// M13: Ctrl-C is heard while nothing comes from the destination.
#[test]
#[ignore = "needs root"]
fn m13_an_interrupted_move_does_not_wait_for_the_hello() -> Result<()> {
    let outcome = run(Case::plain(Locks::None)
        .network(Back, Kind::HELLO, Action::Hold(None))
        .with(
            Fault::Interrupt(Who::Leader(Side::Source)),
            Moment::Delivered(There, Kind::HELLO),
        ))?;
    ensure!(
        outcome.side == Some(Side::Source),
        "it is not on the source"
    );
    Ok(())
}

/// M14: a tree that does not fit on the destination's disk is refused at once.
#[test]
#[ignore = "needs root"]
fn m14_a_tree_that_does_not_fit_is_refused_before_the_freeze() -> Result<()> {
    let full = Fault::DiskFull(Side::Destination, 512);
    let outcome = run(Case::plain(Locks::None).with(full, Moment::Before))?;
    ensure!(
        !outcome.moved.said.contains("migrator: freeze"),
        "it was frozen"
    );
    Ok(())
}

/// L2: what a signal had stopped before the move stays stopped, on the destination
/// as on the source after a roll back.
#[test]
#[ignore = "needs root"]
fn l2_what_was_stopped_stays_stopped() -> Result<()> {
    for is_refused in [false, true] {
        let site = Site::new()?;
        let pair = Pair::boot(&site)?;
        let (source, destination) = (pair.source.handle(), pair.destination.handle());
        pair.source.run(
            "cd /; echo 20000 >/proc/sys/kernel/ns_last_pid
             setsid --fork sh -c 'sleep 1001 & sleep 1002; true' </dev/null >/dev/null 2>&1
             sleep 0.3",
        )?;
        let one = |host: &Handle, words: &str| -> Result<Seen> {
            let found = host.find("sleep", words);
            found.first().cloned().context("there is no such process")
        };
        one(&source, "1001")?.signal(Signal::SIGSTOP);
        if is_refused {
            // The source has committed, and its tree has a SIGSTOP.
            pair.relay.rule(There, Kind::RESUME, Action::Cut);
        }
        let root = source.find("dash", "1001");
        let root = root.first().context("there is no tree")?.inner;
        let what = format!("--no-prefetch --pid {root}");
        let moved = Mover::start(&source, &[], &what, Vec::new())?.finish(MOVE)?;
        let host = match is_refused {
            true => &source,
            false => &destination,
        };
        let expected = if is_refused { 5 } else { 0 };
        ensure!(moved.code == Some(expected), "{}", moved.said);
        ensure!(one(host, "1001")?.state == 'T', "it was continued");
        ensure!(one(host, "1002")?.state == 'S', "it was not continued");
    }
    Ok(())
}

/// How long a move between idle hosts may take.
const MOVE: Duration = Duration::from_secs(60);

/// M16: what a guard does is in the system's log.
#[test]
#[ignore = "needs root"]
fn m16_a_guard_writes_to_the_log() -> Result<()> {
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    let log = std::os::unix::net::UnixDatagram::bind(pair.source.handle().path("/dev/log"))
        .context("failed to bind /dev/log")?;
    log.set_nonblocking(true)?;
    let kill = Fault::Kill(Who::Leader(Side::Source));
    Case::plain(Locks::None)
        .with(kill, Moment::Message(Back, Kind::RESTORED))
        .run(&mut pair)?;
    let mut lines = String::new();
    let mut bytes = [0; 4096];
    while let Ok(length) = log.recv(&mut bytes) {
        lines += &String::from_utf8_lossy(&bytes[..length]);
        lines.push('\n');
    }
    ensure!(lines.contains("the tree runs here"), "the log has: {lines}");
    Ok(())
}

/// A source that can't note the commit rolls back. The tree's locks are with the
/// copy on the destination, which has to know first.
#[test]
#[ignore = "needs root"]
fn a_late_roll_back_frees_the_locks_on_the_destination() -> Result<()> {
    // The first is the mark that the tree ends with its dump.
    let full = Fault::Syscall(Side::Source, "renameat2", "ENOSPC", 2);
    let outcome = run(Case::plain(Locks::Held).with(full, Moment::Before))?;
    ensure!(outcome.struck, "the commit could be noted");
    ensure!(outcome.moved.code == Some(5), "{}", outcome.moved.said);
    Ok(())
}

/// A restore that hangs on the source, where the tree is not any more, is begun again.
#[test]
#[ignore = "needs root"]
fn a_roll_back_that_hangs_is_begun_again() -> Result<()> {
    let gone = Fault::Kill(Who::Both(Side::Destination));
    let outcome = run(Case::plain(Locks::Held)
        .with(Fault::CriuHangsOnce(Side::Source, 2), Moment::Before)
        .with(gone, Moment::Delivered(Back, Kind::RESTORED)))?;
    ensure!(outcome.side == Some(Side::Source), "it is not here");
    ensure!(
        outcome.moved.said.contains("trying again"),
        "{}",
        outcome.moved.said
    );
    Ok(())
}

/// L3: a destination that is never asked again keeps no session.
#[test]
#[ignore = "needs root"]
fn l3_a_source_without_power_leaves_no_session_behind() -> Result<()> {
    let cut = Fault::PowerCut(Side::Source, true);
    let outcome = run(Case::plain(Locks::None).with(cut, Moment::Delivered(Back, Kind::RUNNING)))?;
    ensure!(outcome.side == Some(Side::Destination), "it is not there");
    Ok(())
}

/// L4: guards and CRIU end when a service manager asks them to.
#[test]
#[ignore = "needs root"]
fn l4_signals_are_not_blocked_in_guards_and_criu() -> Result<()> {
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    let (source, destination) = (pair.source.handle(), pair.destination.handle());
    let blocked = Arc::new(Mutex::new(Vec::new()));
    let found = Arc::clone(&blocked);
    let look = move || {
        for side in [Side::Source, Side::Destination] {
            for who in [Who::Guard(side), Who::Criu(side)] {
                for process in who.find(&source, &destination) {
                    let mask = process.blocked_signals();
                    if mask & ENDING_SIGNALS != 0
                        && let Ok(mut found) = found.lock()
                    {
                        found.push(format!("{}: {mask:x}", process.args));
                    }
                }
            }
        }
    };
    let moment = Moment::Message(Back, Kind::RESTORED);
    Case::plain(Locks::None).call(moment, look).run(&mut pair)?;
    let blocked = blocked.lock().map(|it| it.clone()).unwrap_or_default();
    ensure!(blocked.is_empty(), "these block signals: {blocked:#?}");
    Ok(())
}

/// SIGHUP, SIGINT and SIGTERM, as proc(5) has them.
const ENDING_SIGNALS: u64 = 0x4003;

/// L8: a tree that was frozen and goes on is a roll back, whatever failed.
#[test]
#[ignore = "needs root"]
fn l8_an_error_after_the_freeze_is_exit_code_5() -> Result<()> {
    for call in ["rename,renameat,renameat2", "link,linkat", "clone3"] {
        for when in 1..=4 {
            let fault = Fault::Syscall(Side::Source, call, "ENOSPC", when);
            let outcome = run(Case::plain(Locks::None).with(fault, Moment::Before))?;
            ensure!(
                outcome.side != Some(Side::Source)
                    || outcome.frozen.is_zero()
                    || outcome.moved.code == Some(5),
                "exit {:?} after a freeze",
                outcome.moved.code
            );
        }
    }
    Ok(())
}

/// L10: a CRIU that does not answer is given up.
#[test]
#[ignore = "needs root"]
fn l10_a_criu_that_does_not_answer_ends_the_move() -> Result<()> {
    for side in [Side::Source, Side::Destination] {
        let outcome = run(Case::plain(Locks::None).with(Fault::CriuMute(side), Moment::Before))?;
        ensure!(
            outcome.side == Some(Side::Source),
            "it is not on the source"
        );
    }
    Ok(())
}
