//! Migrations between hosts that are namespaces of this kernel, in which anything
//! may go wrong. They need root and a cgroup2 hierarchy:
//! `cargo test -p migrator-tests --test handover -- --ignored --test-threads 1`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use migrator_tests::testhost::{Case, Locks, Pair, Side, Site};

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
