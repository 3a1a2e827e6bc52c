//! Migrations between hosts that are namespaces of this kernel, in which anything
//! may go wrong. They need root and a cgroup2 hierarchy:
//! `cargo test -p migrator-tests --test handover -- --ignored --test-threads 1`.

use anyhow::{Result, ensure};
use migrator_tests::testhost::{Case, Locks, Pair, Side, Site};

#[test]
#[ignore = "needs root"]
fn a_tree_moves_when_nothing_goes_wrong() -> Result<()> {
    let site = Site::new()?;
    let mut pair = Pair::boot(&site)?;
    for locks in [Locks::None, Locks::Held] {
        for options in ["--no-prefetch", "--observe 100ms --max-warmup 300ms"] {
            let began = std::time::Instant::now();
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
