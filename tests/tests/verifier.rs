//! What the eBPF programs cost the kernel before they run.

use std::collections::BTreeSet;

use aya::programs::{ProgramInfo, loaded_programs};
use migrator_tests::track::Track;
use migrator_tests::{Scratch, require_root};

/// Instructions that the verifier may look at per program. Its limit is a
/// million, and what is far from it stays loadable when the kernel, or the
/// compiler, changes.
const AT_MOST: u32 = 60_000;

fn programs() -> Vec<ProgramInfo> {
    // Others on this host may unload theirs while we look.
    loaded_programs().filter_map(Result::ok).collect()
}

#[test]
fn the_verifier_has_little_to_do() {
    require_root();
    let scratch = Scratch::new();
    let own = std::process::id().to_string();
    let mut told = 0;
    for target in [["--all"].as_slice(), &["--pid", &own]] {
        let before: BTreeSet<u32> = programs().iter().map(ProgramInfo::id).collect();
        let track = Track::start(&scratch, target);
        let new: Vec<_> = programs()
            .into_iter()
            .filter(|it| !before.contains(&it.id()))
            .collect();
        assert!(!new.is_empty(), "the tracker has loaded no program");
        for program in &new {
            let name = program.name_as_str().unwrap_or("?");
            // Kernels before 5.16 do not tell.
            let Some(count) = program.verified_instruction_count() else {
                continue;
            };
            println!("{}: {name}: {count} instructions", target[0]);
            assert!(count < AT_MOST, "{name} costs {count} instructions");
            told += 1;
        }
        track.finish();
    }
    println!("{told} programs");
}
