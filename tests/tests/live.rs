//! Whole migrations between the test hosts: `cargo xtask test --vm`.

use anyhow::{Context, Result, ensure};
use migrator_tests::containers;
use migrator_tests::fault::{Move, Moved, Tree, clean, nothing_left};
use serde_json::Value;
use xtask::vm::{Client, Hosts, Options, SHARED};

type Case = fn(&Hosts) -> Result<()>;

/// All in one set of hosts, for they take a while to boot; each begins with a
/// clean one.
#[test]
#[ignore = "needs the test hosts: cargo xtask test --vm"]
fn trees_move_and_make_each_step_once() -> Result<()> {
    let mut hosts = Hosts::start(&Options::default())?;
    let moves: [(&str, Case); 5] = [
        ("a process tree", process_tree),
        ("a process tree without its cache", without_cache),
        ("a process tree that writes to what it reads", writer),
        ("a container of runc", runc),
        ("a container of podman", podman),
    ];
    let only = std::env::var("MIGRATOR_LIVE_ONLY").unwrap_or_default();
    for (name, one) in moves.into_iter().filter(|(name, _)| name.contains(&only)) {
        clean(&mut hosts)?;
        println!("{name}");
        one(&hosts).with_context(|| format!("{name} did not move as it should"))?;
    }
    hosts.finish()
}

fn process_tree(hosts: &Hosts) -> Result<()> {
    let tree = Tree::start_plain(hosts, "plain")?;
    let what = format!("--pid {} --observe 2s", tree.pid(hosts)?);
    let report = arrived(hosts, &tree, Move::start(hosts, &what)?.finish()?)?;
    let data = format!("{SHARED}/steps-plain/data");
    let cached = hosts.destination.run(&format!("vmtouch {data}"))?;
    println!("{cached}{report:#}");
    Ok(())
}

fn without_cache(hosts: &Hosts) -> Result<()> {
    let tree = Tree::start_plain(hosts, "bare")?;
    let what = format!("--pid {} --no-prefetch", tree.pid(hosts)?);
    arrived(hosts, &tree, Move::start(hosts, &what)?.finish()?).map(drop)
}

/// Pages of the file that [`writer`] reads, and how many of them it has read at least by the
/// end of the observation: slow hosts have not come to all.
const PAGES: u32 = 4096;
const READ: f64 = 0.9 * PAGES as f64;

/// NFS drops the pages of a file at each write, so they are sent after the fsync.
fn writer(hosts: &Hosts) -> Result<()> {
    let start = |directory: &str| {
        format!(
            "cd /; echo 20000 >/proc/sys/kernel/ns_last_pid
             setsid --fork /vm/steps run {directory} --interval 20 --data rewrite \
             --read-interval 500 </dev/null >/dev/null 2>&1"
        )
    };
    let tree = Tree::start_large(hosts, "writer", PAGES, start)?;
    let what = format!("--pid {} --observe 5s", tree.pid(hosts)?);
    let moved = Move::start(hosts, &what)?.finish()?;
    let said = moved.said.clone();
    let report = arrived(hosts, &tree, moved)?;
    println!("{report:#}");
    ensure!(!said.contains("--max-warmup is over"), "it waited: {said}");
    let pages = |pointer: &str| {
        report
            .pointer(pointer)
            .and_then(Value::as_f64)
            .unwrap_or(0.0)
    };
    let deferred = pages("/precopy/deferred_pages");
    ensure!(deferred >= READ, "{deferred} pages waited for the freeze");
    // Read by migrator, or by the tree before it came to them.
    let there = pages("/arrival/refill/pages/resident") + pages("/arrival/refill/pages/read");
    let listed = pages("/list/pages");
    ensure!(
        there >= 0.99 * listed,
        "{there} pages of {listed} are there"
    );
    let data = format!("{SHARED}/steps-writer/data");
    println!("{}", hosts.destination.run(&format!("vmtouch {data}"))?);
    Ok(())
}

fn runc(hosts: &Hosts) -> Result<()> {
    let start = containers::runc_run(hosts, "moved", &format!("{SHARED}/steps-runc"))?;
    let tree = Tree::start(hosts, "runc", |_| start.clone())?;
    let moved = Move::start(hosts, "--container moved --runtime runc --observe 2s")?.finish()?;
    arrived(hosts, &tree, moved)?;
    let list = hosts.destination.run("runc list")?;
    ensure!(list.contains("running"), "runc does not know it: {list}");
    let list = hosts.source.run("runc list")?;
    ensure!(!list.contains("moved"), "runc still knows it: {list}");
    hosts.destination.run("runc delete -f moved").map(drop)
}

fn podman(hosts: &Hosts) -> Result<()> {
    containers::podman_image(hosts)?;
    let tree = Tree::start(hosts, "podman", |directory| {
        containers::podman_run("moved", directory)
    })?;
    let moved = Move::start(hosts, "--container moved --observe 2s")?.finish()?;
    let said = moved.said.clone();
    arrived(hosts, &tree, moved)?;
    // It writes all the time, in a volume.
    ensure!(!said.contains("--max-warmup is over"), "it waited: {said}");
    let state = hosts
        .destination
        .run("podman inspect moved --format '{{.State.Status}}'")?;
    ensure!(state.trim() == "running", "podman says {state}");
    let gone = hosts
        .source
        .run("podman ps -a --format '{{.Names}} {{.Status}}'")?;
    ensure!(!gone.contains("Up"), "podman runs it still: {gone}");
    hosts.destination.run("podman rm -f -t 0 moved").map(drop)
}

/// Makes sure that it has moved, and gives the report.
fn arrived(hosts: &Hosts, tree: &Tree, moved: Moved) -> Result<Value> {
    // 3: not every page could be prefetched.
    let code = moved.status.code();
    ensure!(matches!(code, Some(0 | 3)), "exit {code:?}: {}", moved.said);
    let report: Value = serde_json::from_str(&moved.report).context("the report is no JSON")?;
    ensure!(
        report["freeze_seconds"].as_f64().is_some_and(|it| it > 0.0),
        "no freeze in {report}"
    );
    println!("{}", moved.said);
    let client = tree.settle(hosts)?;
    ensure!(client == Client::Destination, "it is on the source");
    let verdict = tree.verdict(hosts)?;
    println!(
        "steps {}, freeze {} s",
        verdict.last, report["freeze_seconds"]
    );
    nothing_left(hosts)?;
    Ok(report)
}
