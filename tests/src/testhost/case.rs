//! One migration in which something goes wrong, and what has to come of it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::fault::{Fault, Side};
use super::host::Storage;
use super::mover::{Call, Moved, Mover};
use super::oracle::{self, Frozen, Kept, handles, nothing_left_but, settle};
use super::relay::{Action, Direction, Kind};
use super::site::Pair;
use super::tree::{Locks, Tree};

/// The promise that is asked of migrator, in seconds, where it has the option.
const MAX_FREEZE: u64 = 8;

/// The limit of the older ones, which have no such option.
const OLD_MAX_FREEZE: u64 = 30;

/// What a tree may stand still longer than is promised.
const FREEZE_SLACK: Duration = Duration::from_secs(5);

/// What `migrator move` says when a CRIU that was killed took the tree along.
const TAKEN_ALONG: &str =
    "a CRIU that is killed while it runs its code in a process takes it along";

/// How long after its step a fault may come at most, and some more.
const LATE_FAULT: Duration = Duration::from_millis(150);

/// How long a move may take with its faults.
const MOVE_LIMIT: Duration = Duration::from_secs(45);

/// How long connections end in a host that has not heard of the session.
const DIVERSION: Duration = Duration::from_secs(4);

/// How long a host is without power.
const POWER_CUT: Duration = Duration::from_millis(700);

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the move.
    Before,
    /// So many milliseconds after a step that the move names.
    Step(&'static str, u64),
    /// Before a message is delivered.
    Message(Direction, Kind),
    /// When a message has been delivered.
    Delivered(Direction, Kind),
}

/// What is done when a tree has started.
pub type Started = Box<dyn FnOnce(&Tree)>;

/// A migration, and what goes wrong with it.
pub struct Case {
    /// Whether the tree holds locks.
    pub locks: Locks,
    /// Memory of the root besides what it needs, in MiB.
    pub ballast: u32,
    /// Options of the move.
    pub options: &'static str,
    /// What goes wrong with processes and hosts.
    pub faults: Vec<(Fault, Moment)>,
    /// What goes wrong with messages.
    pub network: Vec<(Direction, Kind, Action)>,
    /// What else is done on the way.
    pub calls: Vec<(Moment, Box<dyn FnOnce() + Send>)>,
    /// What is done when the tree has started.
    pub started: Option<Started>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

/// What came of a case.
#[derive(Debug)]
pub struct Outcome {
    /// Whether anything went wrong at all.
    pub struck: bool,
    /// Where the tree is.
    pub side: Option<Side>,
    /// How the move ended.
    pub moved: Moved,
    /// How long the tree stood still on the source before the commit.
    pub frozen: Duration,
}

impl Case {
    /// Returns a migration in which nothing goes wrong.
    pub fn plain(locks: Locks) -> Self {
        Self {
            locks,
            ballast: 0,
            options: "--no-prefetch",
            faults: Vec::new(),
            network: Vec::new(),
            calls: Vec::new(),
            started: None,
        }
    }

    /// Gives the tree more memory, in MiB.
    pub fn large(mut self, ballast: u32) -> Self {
        self.ballast = ballast;
        self
    }

    /// Adds a fault.
    pub fn with(mut self, fault: Fault, moment: Moment) -> Self {
        self.faults.push((fault, moment));
        self
    }

    /// Adds something that happens to a message.
    pub fn network(mut self, direction: Direction, kind: Kind, action: Action) -> Self {
        self.network.push((direction, kind, action));
        self
    }

    /// Adds something that is done on the way.
    pub fn call(mut self, moment: Moment, call: impl FnOnce() + Send + 'static) -> Self {
        self.calls.push((moment, Box::new(call)));
        self
    }

    /// Lets it happen between two hosts, and makes sure that it ends well. The hosts
    /// can be used again if it does.
    ///
    /// # Errors
    /// Returns an error when the tree has not run exactly once, or something else is
    /// not as promised; with what was seen.
    pub fn run(mut self, pair: &mut Pair) -> Result<Outcome> {
        pair.relay.begin();
        let mut fresh = false;
        for (fault, _) in &self.faults {
            if let Fault::DiskFull(side, size) = fault {
                reboot(pair, *side, Storage::Small((*size).max(4)))?;
                if *size == 0 {
                    let full = host(pair, *side).handle().path("/var/lib/migrator/full");
                    fs::write(full, [0; 4096]).context("failed to fill a disk")?;
                }
                fresh = true;
            }
        }
        let tree = Tree::start_large(pair, self.locks, self.ballast)?;
        if let Some(started) = self.started.take() {
            started(&tree);
        }
        let outcome = self.migrate(pair, &tree);
        tree.end(&handles(pair).iter().collect::<Vec<_>>());
        for host in pair.hosts() {
            for place in ["/usr/local/bin/criu", "/run/orders"] {
                _ = fs::remove_file(host.handle().path(place));
            }
        }
        if fresh {
            reboot(pair, Side::Source, Storage::New)?;
            reboot(pair, Side::Destination, Storage::New)?;
        }
        pair.stranger = None;
        outcome
    }

    fn migrate(self, pair: &mut Pair, tree: &Tree) -> Result<Outcome> {
        let mut prepared = self.prepare(pair)?;
        let what = format!(
            "--pid {} {}{}",
            tree.pid,
            prepared.options,
            match has_max_freeze(pair)? {
                true => format!(" --max-freeze {MAX_FREEZE}s"),
                false => String::new(),
            }
        );
        let frozen = Frozen::watch(tree);
        let calls = std::mem::take(&mut prepared.at_step);
        let mover = Mover::start(&pair.source.handle(), &prepared.prefix, &what, calls)?;
        let moved = prepared.finish(pair, mover);
        let judged = moved.and_then(|moved| {
            let judged = prepared.judge(pair, tree, &moved);
            judged
                .with_context(|| format!("exit {:?}; it said\n{}", moved.code, moved.said))
                .map(|side| (side, moved))
        });
        let resumed = pair.relay.passed(Direction::There, Kind::RESUME);
        let frozen = frozen.longest(resumed);
        let (side, moved) = judged.with_context(|| oracle::scene(pair))?;
        let limit = match has_max_freeze(pair)? {
            true => MAX_FREEZE,
            false => OLD_MAX_FREEZE,
        };
        ensure!(
            frozen < Duration::from_secs(limit) + FREEZE_SLACK || prepared.stands_longer,
            "the tree stood still for {frozen:?} before the commit; it said\n{}",
            moved.said
        );
        Ok(Outcome {
            struck: prepared.has_struck(pair),
            side,
            moved,
            frozen,
        })
    }

    /// Lays the faults in wait.
    fn prepare(self, pair: &mut Pair) -> Result<Prepared> {
        let mut prepared = Prepared {
            options: self.options,
            prefix: Vec::new(),
            at_step: Vec::new(),
            logs: Vec::new(),
            struck: Arc::default(),
            open: Arc::new(RwLock::new(true)),
            lasting: self.faults.is_empty() && self.network.is_empty(),
            stands_longer: false,
            recover: Vec::new(),
            cuts: Vec::new(),
        };
        for (fault, moment) in self.faults {
            prepared.add(pair, fault, moment)?;
        }
        for (direction, kind, action) in self.network {
            pair.relay.rule(direction, kind, action);
        }
        for (moment, call) in self.calls {
            prepared.at(pair, moment, call)?;
        }
        Ok(prepared)
    }
}

/// A case whose faults lie in wait.
struct Prepared {
    options: &'static str,
    prefix: Vec<String>,
    at_step: Vec<(String, Call)>,
    /// Logs of strace(1), which say whether a call has failed.
    logs: Vec<std::path::PathBuf>,
    struck: Arc<AtomicBool>,
    /// Whether a fault may still strike. One that comes later would hit the next case.
    open: Arc<RwLock<bool>>,
    /// It strikes for certain.
    lasting: bool,
    /// The roll back itself may take longer than the promise.
    stands_longer: bool,
    /// Where no guard may be left.
    recover: Vec<Side>,
    /// Hosts that lose their power, and whether they keep their disk.
    cuts: Vec<(Side, bool)>,
}

impl Prepared {
    fn add(&mut self, pair: &mut Pair, fault: Fault, moment: Moment) -> Result<()> {
        let (source, destination) = (pair.source.handle(), pair.destination.handle());
        let (log, log_inside) = pair.site.log("strace");
        match &fault {
            Fault::Kill(super::Who::Both(side) | super::Who::Guard(side)) => {
                self.recover.push(*side);
            }
            Fault::Stop(super::Who::Leader(Side::Source) | super::Who::Both(_), _)
            | Fault::CriuHangsOnce(..) => {
                self.stands_longer = true;
            }
            Fault::PowerCut(side, kept) => self.cuts.push((*side, *kept)),
            Fault::Syscall(..) => self.logs.push(log),
            Fault::Stranger => pair.divert(1)?,
            _ => {}
        }
        fault.wrap_criu(&source, &destination)?;
        self.prefix.extend(fault.prefix(Side::Source, &log_inside));
        let there = fault.prefix(Side::Destination, &log_inside);
        if !there.is_empty() {
            pair.relay.prefix(there);
        }
        if fault.is_lasting() {
            self.lasting |= matches!(
                fault,
                Fault::DiskFull(..)
                    | Fault::CriuFails(_)
                    | Fault::CriuHangs(_)
                    | Fault::CriuHangsOnce(..)
                    | Fault::CriuMute(_)
                    | Fault::SeizeFails
            );
            return Ok(());
        }
        let struck = Arc::clone(&self.struck);
        let strike = move || {
            if fault.strike(&source, &destination) {
                struck.store(true, Ordering::SeqCst);
            }
        };
        self.at(pair, moment, Box::new(strike))
    }

    /// Has a call made at a moment.
    fn at(&mut self, pair: &Pair, moment: Moment, call: Call) -> Result<()> {
        let open = Arc::clone(&self.open);
        let call: Call = Box::new(move || {
            let open = open.read().unwrap_or_else(PoisonError::into_inner);
            if *open {
                call();
            }
        });
        match moment {
            Moment::Before => bail!("a fault that strikes before there is anything to strike"),
            Moment::Step(step, delay) => {
                let wait = move || {
                    thread::sleep(Duration::from_millis(delay));
                    call();
                };
                let start = move || drop(thread::spawn(wait));
                self.at_step.push((step.to_owned(), Box::new(start)));
            }
            Moment::Message(direction, kind) => {
                pair.relay.rule(direction, kind, Action::Call(call));
            }
            Moment::Delivered(direction, kind) => {
                pair.relay.rule(direction, kind, Action::CallAfter(call));
            }
        }
        Ok(())
    }

    /// Waits until the move has ended, and gives hosts their power back meanwhile.
    fn finish(&self, pair: &mut Pair, mut mover: Mover) -> Result<Moved> {
        let began = Instant::now();
        let mut cut_for_good = false;
        loop {
            let ended = mover.has_ended();
            self.give_power(pair)?;
            // What the destination may have done is lost with it: an operator says so.
            if !cut_for_good && self.destination_is_lost(pair) && began.elapsed() > POWER_CUT * 6 {
                cut_for_good = true;
                let recover = "for s in /run/migrator/*/; do migrator recover \
                               --destination-is-dead destination $(basename $s); done";
                spawn_recover(&pair.source, recover)?;
            }
            if began.elapsed() > DIVERSION {
                pair.relay.undivert();
            }
            if ended || began.elapsed() > MOVE_LIMIT {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        pair.relay.undivert();
        let moved = mover.finish(Duration::ZERO)?;
        // A fault that comes a little after a step may still strike.
        thread::sleep(LATE_FAULT);
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
        self.give_power(pair)?;
        // A leader that is killed before its guard watches leaves its notes.
        let is_early = moved.code == Some(137) && !moved.said.contains("migrator: dump");
        for side in self.recover.iter().chain(is_early.then_some(&Side::Source)) {
            if host(pair, *side).handle().is_up() {
                spawn_recover(host(pair, *side), "migrator recover")?;
            }
        }
        Ok(moved)
    }

    /// Boots the hosts that a fault has cut off from their power.
    fn give_power(&self, pair: &mut Pair) -> Result<()> {
        let is_off = |side: Side, pair: &Pair| !host(pair, side).handle().is_up();
        if !self.cuts.iter().any(|(side, _)| is_off(*side, pair)) {
            return Ok(());
        }
        thread::sleep(POWER_CUT);
        for (side, kept) in &self.cuts {
            if is_off(*side, pair) {
                let storage = match kept {
                    true => Storage::Kept,
                    false => Storage::New,
                };
                reboot(pair, *side, storage)?;
                // As whoever boots a host would.
                spawn_recover(host(pair, *side), "migrator recover")?;
            }
        }
        Ok(())
    }

    /// Whether the destination was told to run the tree, and has been booted.
    fn destination_is_lost(&self, pair: &Pair) -> bool {
        self.cuts.iter().any(|(side, _)| *side == Side::Destination)
            && self.struck.load(Ordering::SeqCst)
            && pair.relay.passed(Direction::There, Kind::RESUME).is_some()
    }

    fn judge(&self, pair: &Pair, tree: &Tree, moved: &Moved) -> Result<Option<Side>> {
        ensure!(moved.code.is_some(), "the move does not end");
        let lost = self.destination_is_lost(pair);
        let source_lost = self.struck.load(Ordering::SeqCst)
            && self.cuts.iter().any(|(side, _)| *side == Side::Source);
        // What no source can prevent: it is an error, and said.
        let taken_along = moved.said.contains(TAKEN_ALONG);
        let side = match lost {
            // What it did there is not known: steps may be done twice.
            true => oracle::rest(pair, true)?,
            false => settle(pair, tree, source_lost || taken_along)?,
        };
        match (moved.code, side) {
            (Some(0 | 3), Some(Side::Destination)) | (Some(1 | 4 | 5), Some(Side::Source)) => {}
            // It was killed and could say nothing.
            (Some(137 | 255), _) | (None, _) => {}
            (_, None) if lost || source_lost => {}
            (Some(1), None) if taken_along => {}
            (code, side) => bail!("exit {code:?}, and the tree is on {side:?}"),
        }
        let is_disk_lost = |(side, kept): &(Side, bool)| *side == Side::Source && !kept;
        let kept = Kept {
            unconfirmed: source_lost && self.cuts.iter().any(is_disk_lost),
            images: source_lost && side.is_none(),
        };
        nothing_left_but(pair, kept)?;
        if kept.unconfirmed || kept.images {
            // The next move begins without it.
            for host in [&pair.source, &pair.destination] {
                if host.handle().is_up() {
                    host.run("rm -rf /run/migrator/*/ /var/lib/migrator/*/")?;
                }
            }
        }
        Ok(side)
    }

    fn has_struck(&self, pair: &Pair) -> bool {
        let injected = |log: &std::path::PathBuf| {
            fs::read_to_string(log).is_ok_and(|text| text.contains("(INJECTED)"))
        };
        self.lasting
            || self.struck.load(Ordering::SeqCst)
            || pair.relay.used() > 0
            || self.logs.iter().any(injected)
    }
}

fn host(pair: &Pair, side: Side) -> &super::Host {
    match side {
        Side::Source => &pair.source,
        Side::Destination => &pair.destination,
    }
}

fn reboot(pair: &mut Pair, side: Side, storage: Storage) -> Result<()> {
    match side {
        Side::Source => pair.source.reboot(storage),
        Side::Destination => pair.reboot_destination(storage),
    }
}

/// Starts it in the background: it may take long to answer.
fn spawn_recover(host: &super::Host, command: &str) -> Result<()> {
    host.run(&format!(
        "{{ setsid sh -c '{command}' </dev/null >/dev/null 2>&1 & }}"
    ))
    .map(drop)
}

/// Whether migrator has the option `--max-freeze`.
fn has_max_freeze(pair: &Pair) -> Result<bool> {
    static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    if let Some(has) = HAS.get() {
        return Ok(*has);
    }
    let help = pair.site.help()?;
    Ok(*HAS.get_or_init(|| help.contains("--max-freeze")))
}
