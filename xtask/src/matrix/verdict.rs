//! Whether what a guest reported is what must hold there.

use serde::Deserialize;

use super::expectation::{Expectation, Source};
use super::plan::Step;
use super::report::{Report, Section};

/// How much of a failed section is shown.
const SHOWN_LINES: usize = 40;

/// `migrator check --json`, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Check {
    pub(crate) kernel: String,
    pub(crate) sources: Vec<CheckedSource>,
    chosen: Option<String>,
}

/// What it says of a source.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CheckedSource {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) detail: String,
    /// Of a source that has hooks to choose from.
    #[serde(default)]
    sees: Vec<Seen>,
}

/// What sees one kind of access.
#[derive(Debug, Clone, Deserialize)]
struct Seen {
    what: String,
    hooks: Vec<String>,
    how: String,
}

impl CheckedSource {
    /// What sees what, a line for each kind of access; of a source without
    /// hooks, or one that can't be used, what there is to say.
    pub(crate) fn lines(&self) -> Vec<String> {
        if self.sees.is_empty() {
            return vec![self.detail.clone()];
        }
        let line = |seen: &Seen| match seen.hooks.as_slice() {
            [] => format!("{}: {}", seen.what, seen.how),
            hooks => format!("{}: {} ({})", seen.what, seen.how, hooks.join(", ")),
        };
        self.sees.iter().map(line).collect()
    }
}

/// What must come out of a guest.
#[derive(Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) expectation: &'a Expectation,
    /// As the kernel's image has it.
    pub(crate) release: &'a str,
    /// The SHA-256 of the migrator that was built.
    pub(crate) digest: &'a str,
    pub(crate) plan: &'a [Step],
}

/// What is not as it must be, a sentence each; nothing when all is well.
pub(crate) fn problems(demand: &Demand<'_>, report: &Report) -> Vec<String> {
    let mut problems = Vec::new();
    for step in demand.plan {
        let Some(name) = step.section() else {
            continue;
        };
        let Some(section) = report.section(&name) else {
            problems.push(format!("{name}: the guest did not come so far"));
            continue;
        };
        match step {
            Step::Suite { .. } => problems.extend(of_suite(section)),
            _ if !section.succeeded() => problems.push(failure(section)),
            Step::Digest if !section.output.starts_with(demand.digest) => problems.push(format!(
                "{name}: expected {}, the guest has {}",
                demand.digest,
                section.output.trim()
            )),
            Step::Check { module } => problems.extend(of_check(demand, *module, section)),
            _ => {}
        }
    }
    problems
}

/// The last of the reports of check: with the module, where it was loaded.
pub(crate) fn last_check(plan: &[Step], report: &Report) -> Option<Check> {
    plan.iter()
        .rev()
        .filter(|step| matches!(step, Step::Check { .. }))
        .find_map(|step| serde_json::from_str(&report.section(&step.section()?)?.output).ok())
}

fn of_check(demand: &Demand<'_>, module: bool, section: &Section) -> Vec<String> {
    let name = &section.name;
    let check: Check = match serde_json::from_str(&section.output) {
        Ok(check) => check,
        Err(error) => return vec![format!("{name}: {error}: {}", section.output)],
    };
    let expectation = if module {
        demand.expectation.clone()
    } else {
        demand.expectation.without_module()
    };
    let mut problems = Vec::new();
    if check.kernel != demand.release {
        problems.push(format!(
            "{name}: Linux {} runs, and not {}",
            check.kernel, demand.release
        ));
    }
    for source in Source::ALL {
        let expected = expectation.status(source).to_string();
        let found = check
            .sources
            .iter()
            .find(|it| it.name == source.to_string());
        match found {
            Some(found) if found.status == expected && !found.detail.is_empty() => {}
            Some(found) => problems.push(format!(
                "{name}: {source} must be {expected}, it is {}: {}",
                found.status, found.detail
            )),
            None => problems.push(format!("{name}: nothing is said of {source}")),
        }
    }
    let chosen = check.chosen.unwrap_or_else(|| "nothing".into());
    if chosen != expectation.auto.to_string() {
        problems.push(format!(
            "{name}: --source auto must choose {}, it chooses {chosen}",
            expectation.auto
        ));
    }
    problems
}

/// All cases ran, and all passed.
fn of_suite(section: &Section) -> Option<String> {
    let name = &section.name;
    let Some(cases) = section.cases() else {
        return Some(failure(section));
    };
    if !cases.failed.is_empty() {
        let failed = cases.failed.join(", ");
        return Some(format!("{failed}: {}", failure(section)));
    }
    if cases.left_out > 0 {
        return Some(format!("{name}: {} cases did not run", cases.left_out));
    }
    if cases.passed == 0 {
        return Some(format!("{name}: it has no cases"));
    }
    (!section.succeeded()).then(|| failure(section))
}

/// How a section ended, and what it said at its end.
fn failure(section: &Section) -> String {
    let lines: Vec<_> = section.output.trim_end().lines().collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    let end = match section.end {
        Some((status, _)) => format!("ended with status {status}"),
        None => "did not end".into(),
    };
    format!(
        "{}: it {end}\n    {}",
        section.name,
        lines[from..].join("\n    ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::expectation;
    use super::super::plan::plan;
    use super::*;
    use std::path::Path;

    fn expected() -> Expectation {
        let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kernels.toml");
        expectation::find(&table, None, "4.4.1").expect("an entry")
    }

    /// What a guest says where all is well.
    fn text() -> String {
        let section = |name: &str, output: &str| {
            format!("\n=== begin {name}\n{output}\n=== end {name}: status 0, 7 ms\n")
        };
        let check = |kmod: &str, chosen: &str| {
            format!(
                r#"{{"kernel":"4.4.1","mglru":false,"chosen":"{chosen}","sources":[
                    {{"name":"ebpf","status":"not supported","detail":"no types"}},
                    {{"name":"kmod","status":"{kmod}","detail":"the module"}},
                    {{"name":"procfs","status":"usable","detail":"flags"}}]}}"#
            )
        };
        let suite = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out;";
        [
            section("digest", "abc  /vm/dist/migrator"),
            section("check", &check("not supported", "procfs")),
            section("nfs", ""),
            section("load hotpages", ""),
            section("check with hotpages", &check("usable", "kmod")),
            section("all sources", suite),
            section("unload hotpages", ""),
            section("kmod kmod", suite),
            section("procfs procfs", suite),
        ]
        .concat()
    }

    fn problems_of(text: &str) -> Vec<String> {
        let expectation = expected();
        let plan = plan(&expectation, &Source::ALL);
        let demand = Demand {
            expectation: &expectation,
            release: "4.4.1",
            digest: "abc",
            plan: &plan,
        };
        problems(&demand, &Report::parse(text))
    }

    #[test]
    fn nothing_is_wrong_where_all_is_as_it_must_be() {
        assert_eq!(problems_of(&text()), [""; 0]);
    }

    #[test]
    fn whatever_is_not_as_it_must_be_is_told() {
        for (good, bad, told) in [
            ("abc  /vm", "abd  /vm", "digest: expected abc"),
            (
                "no types",
                "",
                "ebpf must be not supported, it is not supported: ",
            ),
            (
                "\"usable\",\"detail\":\"the",
                "\"probe failed\",\"detail\":\"the",
                "kmod must be usable",
            ),
            (
                "\"chosen\":\"kmod\"",
                "\"chosen\":\"procfs\"",
                "must choose kmod",
            ),
            (
                "\"kernel\":\"4.4.1\"",
                "\"kernel\":\"4.4.2\"",
                "Linux 4.4.2 runs",
            ),
            (
                "3 passed; 0 failed; 0 ignored",
                "2 passed; 0 failed; 1 ignored",
                "1 cases did not run",
            ),
            ("3 passed", "0 passed", "it has no cases"),
            ("=== end kmod kmod: status 0, 7 ms", "", "kmod kmod: "),
            (
                "=== begin procfs procfs",
                "",
                "procfs procfs: the guest did not come so far",
            ),
            (
                "=== end unload hotpages: status 0",
                "=== end unload hotpages: status 1",
                "status 1",
            ),
        ] {
            let text = text();
            assert!(text.contains(good), "{good}");
            let problems = problems_of(&text.replace(good, bad));
            assert!(
                problems.iter().any(|problem| problem.contains(told)),
                "{told}: {problems:?}"
            );
        }
    }

    #[test]
    fn hooks_are_told_kind_by_kind() {
        let source = |sees: &str| -> CheckedSource {
            let text = format!(r#"{{"name":"ebpf","status":"usable","detail":"all"{sees}}}"#);
            serde_json::from_str(&text).expect("what check says of a source")
        };
        assert_eq!(source("").lines(), ["all"]);
        let sees = r#","sees":[{"what":"reads","how":"exact","hooks":["a","b"],"refused":[]},
            {"what":"writes","how":"not seen","hooks":[]}]"#;
        assert_eq!(
            source(sees).lines(),
            ["reads: exact (a, b)", "writes: not seen"]
        );
    }

    #[test]
    fn the_cases_that_failed_are_named() {
        let failed = "test one ... FAILED\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; \
                      0 measured; 0 filtered out; finished in 1s\n=== end kmod kmod: status 101";
        let text = text().replace("=== end kmod kmod: status 0", failed);
        let problems = problems_of(&text);
        assert!(problems[0].starts_with("one: kmod kmod: it ended with status 101"));
    }
}
