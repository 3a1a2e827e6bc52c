//! `migrator check`: what this host can do.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use crate::cli::CheckArgs;
use crate::exit::Outcome;
use crate::kernel::{self, Cgroups, Kernel};
use crate::source::{self, Refusal};

/// Runs the command.
pub(super) fn run(args: CheckArgs) -> anyhow::Result<Outcome> {
    let report = Report::probe();
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
}

impl Report {
    fn probe() -> Self {
        let kernel = Kernel::probe(Path::new("/proc"), Path::new("/sys"));
        let sources: Vec<SourceReport> = source::probe()
            .into_iter()
            .map(|(name, found)| {
                let (status, detail) = match found {
                    Ok(detail) => ("usable", detail),
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
                }
            })
            .collect();
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
            chosen: sources
                .iter()
                .find(|source| source.usable)
                .map(|source| source.name),
            sources,
        }
    }
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
    for source in &report.sources {
        writeln!(
            out,
            "source     {:<7} {}: {}",
            source.name, source.status, source.detail
        )?;
    }
    match report.chosen {
        Some(name) => writeln!(out, "--source auto chooses {name}"),
        None => writeln!(out, "no source can be used here: see the lines above"),
    }
}
