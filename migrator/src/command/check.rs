//! `migrator check`: what this host can do.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use crate::cli::CheckArgs;
use crate::exit::Outcome;
use crate::history::answer::Status;
use crate::history::request::{Request, Wanted};
use crate::history::{self, client};
use crate::kernel::{self, Cgroups, Kernel};
use crate::pagelist::RESIDENT;
use crate::source::{self, Refusal, Seen};

/// Runs the command.
pub(super) fn run(args: CheckArgs) -> anyhow::Result<Outcome> {
    let report = Report::probe(&args);
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).context("failed to print the report")?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    out.flush()?;
    Ok(Outcome::Done)
}

/// `migrator check --json`
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    version: &'static str,
    kernel: String,
    machine: String,
    page_size: u32,
    btf: bool,
    /// `null` where the kernel does not say.
    lockdown: Option<String>,
    mglru: bool,
    cgroup: &'static str,
    criu: Option<String>,
    /// The tracker of this host, if one runs.
    tracker: Option<Status>,
    /// Why it could not be asked.
    tracker_error: Option<String>,
    sources: Vec<SourceReport>,
    /// What `--source auto` chooses.
    chosen: Option<&'static str>,
}

#[derive(Serialize)]
struct SourceReport {
    name: &'static str,
    usable: bool,
    /// `usable`, `not supported`, `not permitted` or `probe failed`.
    status: &'static str,
    detail: String,
    /// Of a source that has hooks to choose from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sees: Vec<SeenReport>,
}

#[derive(Serialize)]
struct SeenReport {
    /// What somebody does with the pages.
    what: String,
    /// The hooks that tell of it; none where nothing does.
    hooks: Vec<String>,
    how: &'static str,
    /// Better ways, and why they can't be used.
    refused: Vec<RefusedReport>,
}

#[derive(Serialize)]
struct RefusedReport {
    hooks: String,
    why: String,
    /// Whether the kernel has them.
    #[serde(skip)]
    is_there: bool,
}

impl SeenReport {
    fn new(seen: &Seen) -> Self {
        let how = match seen.way {
            Some(way) => way.how,
            None if seen.is_blind() => "not seen on this kernel",
            None => "seen as other writes",
        };
        let hooks = seen.way.iter().flat_map(|way| way.hooks);
        let refused = seen.refused.iter();
        Self {
            what: seen.sees.to_string(),
            hooks: hooks.map(ToString::to_string).collect(),
            how,
            refused: refused
                .map(|(way, refusal)| RefusedReport {
                    hooks: way.to_string(),
                    why: refusal.to_string(),
                    is_there: !matches!(refusal, Refusal::NotSupported(_)),
                })
                .collect(),
        }
    }
}

impl Report {
    fn probe(args: &CheckArgs) -> Self {
        let kernel = Kernel::probe(Path::new("/proc"), Path::new("/sys"));
        let sources: Vec<SourceReport> = source::probe()
            .into_iter()
            .map(|(name, found)| {
                let sees = found.iter().flat_map(|usable| &usable.seen);
                let sees = sees.map(SeenReport::new).collect();
                let (status, detail) = match found {
                    Ok(usable) => ("usable", usable.summary),
                    Err(Refusal::NotSupported(why)) => ("not supported", why),
                    Err(Refusal::NotPermitted(why)) => ("not permitted", why),
                    Err(Refusal::Failed(why)) => ("probe failed", why),
                    Err(Refusal::Target(why)) => ("probe failed", why.to_string()),
                };
                SourceReport {
                    name,
                    usable: status == "usable",
                    status,
                    detail,
                    sees,
                }
            })
            .collect();
        let (tracker, tracker_error) = match tracker(args) {
            Ok(tracker) => (tracker, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Self {
            schema: "migrator.check/1",
            version: env!("CARGO_PKG_VERSION"),
            kernel: kernel.release,
            machine: kernel.machine,
            page_size: kernel::page_size(),
            btf: kernel.btf,
            lockdown: kernel.lockdown,
            mglru: kernel.lru_gen,
            cgroup: match kernel.cgroups {
                Cgroups::None => "none",
                Cgroups::V1 => "v1",
                Cgroups::V2 => "v2",
                Cgroups::Hybrid => "v1 and v2",
            },
            criu: criu(),
            tracker,
            tracker_error,
            chosen: sources
                .iter()
                .find(|source| source.usable)
                .map(|source| source.name),
            sources,
        }
    }
}

/// Asks the tracker of this host for its status.
fn tracker(args: &CheckArgs) -> anyhow::Result<Option<Status>> {
    let request = Request {
        min_heat: RESIDENT,
        wanted: Wanted::Status,
    };
    let socket = history::socket(args.socket.as_deref());
    let known = client::ask(&socket, request, client::PATIENCE)?;
    Ok(known.map(|known| known.status))
}

/// The version of CRIU, if it can be run.
fn criu() -> Option<String> {
    let output = Command::new("criu").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?;
    Some(version.trim().to_owned())
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let yes = |there: bool| if there { "yes" } else { "no" };
    let lockdown = report
        .lockdown
        .as_deref()
        .unwrap_or("not told (securityfs is not mounted?)");
    let criu = report
        .criu
        .as_deref()
        .unwrap_or("not found (needed to move processes)");
    let mglru = match report.mglru {
        true => "on: active/inactive means nothing to the sources kmod and procfs",
        false => "off",
    };
    writeln!(out, "kernel     {} {}", report.kernel, report.machine)?;
    writeln!(out, "pages      {} bytes", report.page_size)?;
    writeln!(out, "BTF        {}", yes(report.btf))?;
    writeln!(out, "lockdown   {lockdown}")?;
    writeln!(out, "MGLRU      {mglru}")?;
    writeln!(out, "cgroup     {}", report.cgroup)?;
    writeln!(out, "CRIU       {criu}")?;
    match (&report.tracker, &report.tracker_error) {
        (Some(tracker), _) => writeln!(
            out,
            "tracker    process {} runs since {}: {} pages of {} files, observed for {:.0} s",
            tracker.pid,
            tracker.since(),
            tracker.pages,
            tracker.files,
            tracker.observed_seconds
        )?,
        (None, Some(error)) => writeln!(out, "tracker    {error}")?,
        (None, None) => writeln!(
            out,
            "tracker    does not run (`migrator track --all --serve` knows what is used before a \
             move)"
        )?,
    }
    for source in &report.sources {
        writeln!(
            out,
            "source     {:<7} {}: {}",
            source.name, source.status, source.detail
        )?;
        for seen in &source.sees {
            let hooks = seen.hooks.join(", ");
            writeln!(out, "  {:<14} {}; {hooks}", seen.what, seen.how)?;
            // What no kernel of this kind has is for those who read JSON.
            for refused in seen.refused.iter().filter(|it| it.is_there) {
                writeln!(out, "    not {}: {}", refused.hooks, refused.why)?;
            }
        }
    }
    match report.chosen {
        Some(name) => writeln!(out, "--source auto chooses {name}"),
        None => writeln!(out, "no source can be used here: see the lines above"),
    }
}
