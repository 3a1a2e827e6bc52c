//! The direction of imports, and what the machines of the handover may use, read
//! from the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the Rust files of a module: `NAME.rs` and those below `NAME/`.
fn sources(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![src.join(format!("{module}.rs"))];
    let mut ahead = vec![src.join(module)];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => ahead.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|it| it == "rs"));
    found
}

/// Returns the lines of a module that contain one of these words, comments left
/// out.
fn lines_with(module: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in sources(module) {
        let text = fs::read_to_string(&path).expect("a source file");
        for (number, line) in (1..).zip(text.lines()) {
            let is_comment = line.trim_start().starts_with("//");
            if !is_comment && words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    found
}

#[test]
fn live_handover_container_and_criu_import_in_one_direction() {
    for (module, above) in [
        (
            "criu",
            &["crate::container", "crate::handover", "crate::live"][..],
        ),
        ("container", &["crate::handover", "crate::live"]),
        ("handover", &["crate::live"]),
        ("prefetch", &["crate::protocol", "crate::transfer"]),
        (
            "process",
            &["crate::handover", "crate::live", "crate::criu"],
        ),
    ] {
        assert!(!sources(module).is_empty());
        let found = lines_with(module, above);
        assert!(found.is_empty(), "{module} imports from above: {found:#?}");
    }
}

#[test]
fn the_machines_do_no_io() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/handover");
    for name in ["decision.rs", "outgoing.rs", "incoming.rs"] {
        let text = fs::read_to_string(src.join(name)).expect("a source file");
        for word in ["std::", "nix", "tokio", "rustix", "crate::"] {
            assert!(!text.contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn the_executors_return_no_error_from_a_step() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/handover/outgoing");
    let text = fs::read_to_string(src.join("executor.rs")).expect("a source file");
    for step in ["pub fn run(", "pub fn carry_out_all("] {
        let at = text.find(step).expect("a step of the executor");
        let signature = text[at..].split('{').next().unwrap_or_default();
        assert!(signature.contains("-> Standing"), "{signature}");
    }
}
