//! The tests that run inside the guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;
use crate::workspace::Workspace;

/// What the guests run; static, for they have another libc.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Compiles files of `tests/tests/`, each to a program, and gives these.
///
/// # Errors
/// When one does not compile.
pub(crate) fn tests(workspace: &Workspace, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo(workspace);
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    for name in names {
        cargo.args(["--test", name]);
    }
    let messages = command::output(&mut cargo)?;
    names
        .iter()
        .map(|name| {
            executable(&messages, name)
                .with_context(|| format!("failed to find what cargo made of the test {name}"))
        })
        .collect()
}

/// Where the tests find the programs that they start: cargo gives them this
/// path when they are compiled.
pub(crate) fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target().join(TARGET).join("debug")
}

/// What of it the tests start, and cargo has made with them.
pub(crate) const STARTED_BY_TESTS: &[&str] = &["reader"];

fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--quiet", "--package", "migrator-tests"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(workspace.target())
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=debuginfo",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
}

/// The program of a file of tests among cargo's messages (cargo's reference,
/// "External tools").
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            let target = &message["target"];
            target["name"] == name
                && target["kind"][0] == "test"
                && message["profile"]["test"] == true
        })
        .find_map(|message| Some(Path::new(message["executable"].as_str()?).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_a_test_is_found_among_messages() {
        let message = |kind: &str, name: &str, test: bool, path: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},
                "profile":{{"test":{test}}},"executable":{path}}}"#
            )
            .replace('\n', "")
        };
        let messages = [
            message("lib", "heat", false, "null"),
            message("test", "files", true, r#""/a/files-1""#),
            message("test", "heat", true, r#""/a/heat-2""#),
            r#"{"reason":"build-finished","success":true}"#.into(),
        ]
        .join("\n");
        assert_eq!(executable(&messages, "heat"), Some("/a/heat-2".into()));
        assert_eq!(executable(&messages, "procfs"), None);
    }
}
