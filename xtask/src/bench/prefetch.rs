//! How soon cold pages are in the cache, by migrator and in other ways: on a disk of
//! this host, or on a test host that has them from another one.

mod outcome;

use std::cell::Cell;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::host::{self, Kind, Options};
use crate::vm::{self, Hosts, Link, SHARED, Threads};
use crate::workspace::Workspace;
use crate::{build, packages};

/// How the experiment is done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which pages of which files
    #[arg(long, value_delimiter = ',', default_values_t = SHAPES.map(|(shape, _)| shape.to_owned()),
          value_parser = clap::builder::PossibleValuesParser::new(SHAPES.map(|(shape, _)| shape)))]
    shapes: Vec<String>,
    /// Who brings them into the cache; fio-N is fio with N processes
    #[arg(long, value_delimiter = ',', default_values_t = ARMS.map(|(arm, _)| arm.to_owned()))]
    arms: Vec<String>,
    /// On a test host, over NFS, with so many milliseconds to the server and back
    #[arg(long, value_name = "MS", value_delimiter = ',')]
    nfs: Vec<u32>,
    /// Size of a file in MiB [default: 1024, over NFS 64]
    #[arg(long, value_name = "MIB")]
    size: Option<u64>,
    /// How many small files [default: 10000, over NFS 300]
    #[arg(long)]
    files: Option<u64>,
    #[command(flatten)]
    options: Options,
}

/// As raw runs have it, and as people call it.
const SHAPES: [(&str, &str); 4] = [
    ("whole", "all of a file"),
    ("random", "a tenth of a file's pages, at random"),
    (
        "clustered",
        "an eighth of a file, in pieces of 256 KiB with holes",
    ),
    ("files", "small files"),
];

const ARMS: [(&str, &str); 8] = [
    (MIGRATOR, "**migrator prefetch**"),
    ("vmtouch", "vmtouch -t"),
    ("cat", "cat"),
    ("willneed", "FADV_WILLNEED, page by page"),
    ("pread", "pread, page by page"),
    ("fio-1", "fio, 1 process"),
    ("fio-8", "fio, 8 processes"),
    ("fio-64", "fio, 64 processes"),
];
const MIGRATOR: &str = "migrator";

/// # Errors
/// When a run fails; it takes root.
pub(super) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    build::run(workspace)?;
    let program = build::guest_program(workspace, "warm")?;
    match args.nfs.is_empty() {
        true => on_this_host(workspace, args, &program),
        false => over_nfs(workspace, args, &program),
    }
}

fn on_this_host(workspace: &Workspace, args: &Args, program: &Path) -> Result<()> {
    packages::install_for_benches()?;
    let place = workspace.target().join("bench/prefetch");
    fs::create_dir_all(&place).with_context(|| format!("failed to create {}", place.display()))?;
    let (size, files) = (args.size.unwrap_or(1024), args.files.unwrap_or(10_000));
    let migrator = workspace.dist().join("migrator").display().to_string();
    let mut arms = Vec::new();
    for shape in &args.shapes {
        for arm in &args.arms {
            let mut options = vec!["trial".to_owned(), format!("--migrator={migrator}")];
            options.push(format!("--arm={arm}"));
            options.extend(of_shape(shape, &place.display().to_string(), size, files));
            arms.push((format!("{shape} {arm}"), options));
        }
    }
    let kind = kind("prefetch", arms, size, files);
    args.options.run(workspace, program, &kind)
}

/// The experiment with files of so many MiB, or so many small ones.
fn kind(
    name: &'static str,
    arms: Vec<(String, Vec<String>)>,
    size: u64,
    files: u64,
) -> Kind<'static> {
    Kind {
        name,
        arms,
        scale: json!({ "file_bytes": size << 20, "files": files }),
        line: outcome::line,
        summary: outcome::summary,
        table: outcome::table,
        draw: &outcome::draw,
    }
}

/// What the program wants to know of the files below a directory.
fn of_shape(shape: &str, below: &str, size: u64, files: u64) -> [String; 4] {
    [
        format!("--shape={shape}"),
        format!("--directory={below}/{shape}"),
        format!("--size={}", size << 20),
        format!("--files={files}"),
    ]
}

/// Where the server has the files, of what clients see at [`SHARED`].
const SERVED: &str = "/srv/shared";

const WARM: &str = "/usr/local/bin/warm";

fn over_nfs(workspace: &Workspace, args: &Args, program: &Path) -> Result<()> {
    let (size, files) = (args.size.unwrap_or(64), args.files.unwrap_or(300));
    // Nothing attaches, and readers are to run beside each other.
    let hosts = Hosts::start(&vm::Options {
        threads: Threads::Multi,
        ..vm::Options::default()
    })?;
    for host in [&hosts.storage, &hosts.destination] {
        host.put(program, WARM)?;
    }
    for shape in &args.shapes {
        let options = of_shape(shape, SERVED, size, files).join(" ");
        hosts.storage.run(&format!("{WARM} make {options}"))?;
    }
    // An emulated processor's instructions are translated for each address at which they
    // are, so that a rehearsal is one only where programs always begin at the same.
    let fixed = "echo 0 > /proc/sys/kernel/randomize_va_space";
    hosts.destination.run(fixed)?;
    let mut arms = Vec::new();
    for delay in &args.nfs {
        for shape in &args.shapes {
            for arm in &args.arms {
                let mut options = vec![delay.to_string(), "trial".into()];
                options.push(format!("--arm={arm}"));
                options.extend(of_shape(shape, SHARED, size, files));
                arms.push((format!("{delay}ms-{shape} {arm}"), options));
            }
        }
    }
    let kernel = hosts.destination.run("uname -r")?.trim().to_owned();
    let describe = || {
        let mut own = host::describe();
        own["guest_kernel"] = json!(kernel);
        own
    };
    let kind = kind("prefetch-nfs", arms, size, files);
    let shaped = Cell::default();
    args.options
        .run_anywhere(workspace, describe, &kind, |args| {
            let (delay, args) = args.split_first().context("no delay")?;
            let round_trip: u32 = delay.parse().context("no number of milliseconds")?;
            let link = Link {
                rate: None,
                // Of what either host sends.
                delay: Some(round_trip * 500),
            };
            if shaped.replace(Some(link)) != Some(link) {
                hosts.shape(link)?;
            }
            let printed = hosts
                .destination
                .run(&format!("{WARM} {}", args.join(" ")))?;
            serde_json::from_str(&printed)
                .with_context(|| format!("not what was expected: {printed}"))
        })?;
    hosts.finish()
}
