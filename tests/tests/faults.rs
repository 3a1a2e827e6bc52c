//! Everything that may go wrong during a migration, at each of its steps:
//! `cargo xtask test --vm`.
//!
//! `MIGRATOR_FAULT_RUNS` says how many migrations (each case once before any
//! comes again), `MIGRATOR_FAULT_SEED` in which order and with which delays,
//! `MIGRATOR_FAULT_ONLY` a part of the names of the cases.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use migrator_tests::containers;
use migrator_tests::fault::Fault::{
    self, AllKilledAtSource, CriuFails, CriuKilled, DiskFull, MoverKilled, NetworkCut, PowerCut,
    ReceiverKilled, StorageStalls,
};
use migrator_tests::fault::{Move, Tree, clean, nothing_left, scene};
use migrator_tests::random::Random;
use xtask::vm::Client::{Destination, Source};
use xtask::vm::{Client, Hosts, Options, SHARED};

/// How many migrations where nothing else is said.
const RUNS: usize = 8;

/// A fault, and how many milliseconds after a step it may come at most.
#[derive(Debug, Clone, Copy)]
struct Case {
    fault: Fault,
    at: &'static str,
    within: u64,
}

/// What moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// A process tree.
    Plain,
    /// A container of runc.
    Runc,
    /// A container of podman.
    Podman,
}

impl Subject {
    /// Every second one is a container.
    fn draw(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self::Runc,
            1 => Self::Podman,
            _ => Self::Plain,
        }
    }

    /// Starts it. Returns it, and the words that name it to `migrator move`.
    fn start(self, hosts: &Hosts) -> Result<(Tree, String)> {
        let container = "--container moved";
        match self {
            Self::Plain => {
                let tree = Tree::start_plain(hosts, "fault")?;
                let words = format!("--pid {}", tree.pid(hosts)?);
                Ok((tree, words))
            }
            Self::Runc => {
                let directory = format!("{SHARED}/steps-fault");
                let start = containers::runc_run(hosts, "moved", &directory)?;
                let tree = Tree::start(hosts, "fault", |_| start.clone())?;
                Ok((tree, format!("{container} --runtime runc")))
            }
            Self::Podman => {
                let exists = "podman image exists localhost/steps";
                if [&hosts.source, &hosts.destination].map(|host| host.run(exists).is_err())
                    != [false, false]
                {
                    containers::podman_image(hosts)?;
                }
                let tree = Tree::start(hosts, "fault", |directory| {
                    containers::podman_run("moved", directory)
                })?;
                Ok((tree, container.to_owned()))
            }
        }
    }
}

/// What a move says on its way, in this order.
const STEPS: [&str; 8] = [
    "observe", "freeze", "dump", "images", "restore", "restored", "resume", "running",
];

/// All of them. Those that last from before the move have no step.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |fault, steps: &[&'static str]| {
        cases.extend(steps.iter().map(|at| Case {
            fault,
            at,
            within: if ["restored", "resume"].contains(at) {
                40
            } else {
                400
            },
        }));
    };
    add(PowerCut, &STEPS[..7]);
    add(ReceiverKilled, &STEPS);
    add(MoverKilled, &STEPS);
    add(AllKilledAtSource, &STEPS[1..]);
    add(NetworkCut(8), &["observe", "dump", "restored"]);
    add(NetworkCut(60), &["dump", "images", "restore", "resume"]);
    add(StorageStalls(20), &["freeze", "dump", "restore", "resume"]);
    add(
        CriuKilled(Source),
        &["dump", "images", "restored", "resume"],
    );
    add(CriuKilled(Destination), &["restore", "restored", "resume"]);
    for client in [Source, Destination] {
        add(CriuFails(client), &[""]);
        add(DiskFull(client), &[""]);
    }
    cases
}

#[test]
#[ignore = "needs the test hosts: cargo xtask test --vm"]
fn a_tree_makes_each_step_once_whatever_goes_wrong() -> Result<()> {
    let number = |name: &str, otherwise: u64| -> Result<u64> {
        match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name} is no number")),
            Err(_) => Ok(otherwise),
        }
    };
    let runs = usize::try_from(number("MIGRATOR_FAULT_RUNS", RUNS as u64)?)?;
    let mut random = Random::new(number("MIGRATOR_FAULT_SEED", 1)? << 32);
    let only = std::env::var("MIGRATOR_FAULT_ONLY").unwrap_or_default();
    let cases: Vec<Case> = cases()
        .into_iter()
        .filter(|case| format!("{:?} at {}", case.fault, case.at).contains(&only))
        .collect();
    ensure!(!cases.is_empty(), "no case is called so");
    let mut order = Vec::new();
    while order.len() < runs {
        order.extend(random.shuffled(cases.clone()));
    }
    let mut hosts = Hosts::start(&Options::default())?;
    let mut failed = Vec::new();
    for (number, case) in (1..).zip(&order[..runs]) {
        let delay = Duration::from_millis(random.below(case.within));
        let subject = Subject::draw(&mut random);
        let name = format!(
            "run {number}: {subject:?}, {:?} {delay:?} after {}",
            case.fault, case.at
        );
        let result = run(&mut hosts, subject, *case, delay);
        match &result {
            Ok(client) => println!("passed  {name}: the tree is on the {client}"),
            Err(error) => println!("FAILED  {name}: {error:#}"),
        }
        if result.is_err() {
            failed.push(name);
            // Nothing of it shall disturb the next.
            drop(hosts);
            hosts = Hosts::start(&Options::default())?;
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of {runs} migrations failed: {failed:#?}",
        failed.len()
    );
    Ok(())
}

/// One migration. Gives where the tree is afterwards.
fn run(hosts: &mut Hosts, subject: Subject, case: Case, delay: Duration) -> Result<&'static str> {
    clean(hosts)?;
    let (tree, what) = subject.start(hosts)?;
    if case.fault.is_lasting() {
        case.fault.strike(hosts)?;
    }
    let what = format!("{what} --observe 1s --max-warmup 5s");
    let mut moving = Move::start(hosts, &what)?;
    if !case.fault.is_lasting() {
        moving.wait_for(case.at)?;
        thread::sleep(delay);
        case.fault.strike(hosts)?;
    }
    if case.fault == PowerCut {
        // Where it has to ask whether the tree runs there, it waits for the
        // destination.
        moving.ends_within(Duration::from_secs(60));
        hosts.restart(Destination)?;
        // It has lost its disk, too, and can't know what it did: only an operator
        // can say that the tree does not run there.
        if !moving.ends_within(Duration::from_secs(20)) {
            hosts.source.run(
                "for s in /run/migrator/*/
                 do migrator recover --destination-is-dead destination $(basename $s); done",
            )?;
            let moved = moving.finish().with_context(|| scene(hosts))?;
            ensure!(moved.status.code() == Some(5), "{}", moved.said);
            tree.wait_for_progress(hosts, Duration::from_secs(60))?;
            return Ok("source, as an operator wanted");
        }
    }
    let moved = moving.finish().with_context(|| scene(hosts))?;
    if case.fault == AllKilledAtSource {
        // Nobody is left who could know of it.
        hosts.source.run("migrator recover")?;
    }
    let code = moved.status.code();
    let outcome = || -> Result<&'static str> {
        if case.fault == PowerCut && matches!(code, Some(0 | 3)) {
            // It had arrived, and went with its host.
            let verdict = tree.verdict(hosts)?;
            ensure!(verdict.doubled.is_empty(), "done twice: {verdict:?}");
            return Ok("destination that was switched off");
        }
        let client = tree.settle(hosts)?;
        match (code, client) {
            (Some(0 | 3), Client::Destination) | (Some(1 | 5), Client::Source) => {}
            // It was killed, and could say nothing.
            (None | Some(255 | 137), _) => {}
            _ => bail!("exit {code:?}, and the tree is on the {client:?}"),
        }
        nothing_left(hosts)?;
        Ok(match client {
            Client::Source => "source",
            Client::Destination => "destination",
        })
    };
    outcome().with_context(|| {
        let said = &moved.said;
        format!("exit {code:?}; it said\n{said}{}", scene(hosts))
    })
}
