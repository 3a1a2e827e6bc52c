//! The table of docs/kernels.md: a line for each kernel and source.

use std::fs;

use anyhow::{Context, Result};

use super::expectation::series;
use crate::marked;
use crate::workspace::Workspace;

/// Between which markers it is.
const PART: &str = "matrix";
const TASK: &str = "cargo xtask test --kernels … --document";

const HEAD: &str = "\
| kernel | source | `migrator check` says | cases | tested |
|---|---|---|---|---|
";

/// A source on a kernel.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// `uname -r`.
    pub(crate) release: String,
    pub(crate) source: String,
    /// Whether `--source auto` chooses it.
    pub(crate) chosen: bool,
    /// As check has it.
    pub(crate) status: String,
    /// What sees what, or why it can't be used.
    pub(crate) detail: String,
    /// How many cases passed.
    pub(crate) cases: usize,
    /// When, and with which binary.
    pub(crate) tested: String,
}

/// Writes the rows into the table; those of other kernels stay.
///
/// # Errors
/// When the file can't be read or written.
pub(crate) fn write(workspace: &Workspace, rows: &[Row]) -> Result<()> {
    let path = workspace.root.join("docs/kernels.md");
    let old =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let table = merge(marked::part(&old, PART, TASK), rows);
    fs::write(&path, marked::replace(&old, PART, TASK, &table))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Replaces the lines of the rows' kernels; oldest kernel first.
fn merge(table: &str, rows: &[Row]) -> String {
    let ours = |line: &str| {
        rows.iter()
            .any(|row| series(&row.release) == series(cell(line)))
    };
    let mut lines: Vec<String> = table
        .lines()
        // Neither the head nor anything that is no line of the table.
        .filter(|line| cell(line).starts_with(|first: char| first.is_ascii_digit()) && !ours(line))
        .map(str::to_owned)
        .chain(rows.iter().map(line))
        .collect();
    // Stable: a kernel's lines stay in order.
    lines.sort_by_key(|line| {
        let series = series(cell(line));
        let (major, minor) = series.split_once('.').unwrap_or_default();
        (
            major.parse().unwrap_or(0_u32),
            minor.parse().unwrap_or(0_u32),
        )
    });
    format!("{HEAD}{}\n", lines.join("\n"))
}

/// The first cell of a line.
fn cell(line: &str) -> &str {
    line.trim_start_matches('|')
        .split('|')
        .next()
        .unwrap_or_default()
        .trim()
}

fn line(row: &Row) -> String {
    let cases = match row.cases {
        0 => String::new(),
        cases => cases.to_string(),
    };
    format!(
        "| {} | {}{} | {}: {} | {cases} | {} |",
        row.release,
        row.source,
        if row.chosen { " (auto)" } else { "" },
        row.status,
        row.detail.replace('|', "\\|").replace('\n', " "),
        row.tested,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(release: &str, source: &str) -> Row {
        Row {
            release: release.into(),
            source: source.into(),
            chosen: source == "ebpf",
            status: "usable".into(),
            detail: "a | b".into(),
            cases: 3,
            tested: "2026-11-23".into(),
        }
    }

    #[test]
    fn lines_of_other_kernels_stay_and_old_kernels_come_first() {
        let first = merge(
            "Not run yet.\n",
            &[row("6.12.1", "ebpf"), row("6.12.1", "procfs")],
        );
        let second = merge(&first, &[row("5.10.9", "ebpf")]);
        let third = merge(&second, &[row("6.12.2", "ebpf")]);
        assert_eq!(
            third,
            format!(
                "{HEAD}\
                 | 5.10.9 | ebpf (auto) | usable: a \\| b | 3 | 2026-11-23 |\n\
                 | 6.12.2 | ebpf (auto) | usable: a \\| b | 3 | 2026-11-23 |\n"
            )
        );
        assert_eq!(merge(&third, &[]), third);
    }
}
