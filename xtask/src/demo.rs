//! `cargo xtask demo`: a process moves before your eyes, in two ways.

mod graph;
mod screen;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::bench::arm::Arm;
use crate::bench::curve::{Curve, Freeze};
use crate::bench::plot::{self, Story};
use crate::bench::stage::{Scale, Stage, Workload};
use crate::bench::trial::{self, Enough, Phase, Trial};
use crate::bench::{self};
use crate::workspace::Workspace;
use graph::Span;
use screen::Screen;

/// Seconds before the order that are shown.
const BEFORE: f64 = 5.0;

/// Seconds on the destination that are shown at least.
const AFTER: f64 = 10.0;

/// What is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The ways to move, one after the other
    #[arg(long, value_delimiter = ',', default_value = "criu,move")]
    arms: Vec<Arm>,
    /// The guests' kernel, as for `cargo xtask vm`
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// What `migrator move` observes with: auto, ebpf, procfs
    #[arg(long, default_value = "auto")]
    source: String,
    /// Where the picture goes; target/demo.svg without it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Builds everything, brings up the hosts, and moves a process in each way.
///
/// # Errors
/// When the hosts don't come up, or the process can't be moved.
pub(crate) fn run(workspace: &Workspace, args: Args) -> Result<()> {
    let start = Instant::now();
    println!("Building migrator, and what it is tried on");
    let program = bench::build_all(workspace)?;
    println!("Bringing up three virtual machines: an NFS server and two of its clients");
    let stage = Stage::set(scale(args.kernel, args.source), &program)?;
    println!(
        "They are up after {:.0} s. A server on `source` reads a file of {} MiB on NFS again and \
         again;\nnow it moves to `destination`, over links of {} Mbit/s.",
        start.elapsed().as_secs_f64(),
        stage.scale.size,
        stage.scale.rate,
    );
    let mut screen = Screen::new();
    let mut told = Vec::new();
    for arm in args.arms {
        told.push((arm, tell(&stage, arm, &mut screen)?));
    }
    stage.hosts.finish()?;

    println!("\n{}", numbers(&told, &stage.scale));
    let svg = args
        .svg
        .unwrap_or_else(|| workspace.target().join("demo.svg"));
    let stories: Vec<_> = told
        .iter()
        .map(|(arm, trial)| Story {
            title: arm.title(),
            curve: &trial.curve,
        })
        .collect();
    let title = "What a process reads per second while it moves to another host";
    let ends = told.iter().filter_map(|(_, trial)| trial.curve.end());
    let end = ends.fold(stage.scale.window, f64::max);
    plot::stories(&svg, title, -BEFORE, end, &stories)?;
    println!(
        "The same as a picture: {}. All of it took {:.1} minutes.",
        svg.display(),
        start.elapsed().as_secs_f64() / 60.0,
    );
    Ok(())
}

/// Smaller than the benchmarks': nobody likes to wait.
fn scale(kernel: String, source: String) -> Scale {
    Scale {
        kernel,
        size: 128,
        rate: 96,
        window: 32.0,
        source,
    }
}

/// Moves the process in one way, and shows what it reads.
fn tell(stage: &Stage, arm: Arm, screen: &mut Screen) -> Result<Trial> {
    println!("\n{}", screen.bold(arm.title()));
    // Where everything is slower than we thought, the graph grows.
    let span = |curve: &Curve| Span {
        from: -BEFORE,
        to: curve.end().map_or(0.0, |end| end.max(stage.scale.window)),
    };
    let enough = Enough {
        ordered: stage.scale.window,
        resumed: AFTER,
        passes: 1,
    };
    let show = |phase: Phase, curve: &Curve| match phase {
        Phase::Warming => screen.note(&format!(
            "warming up: {} read",
            size(curve.end().and_then(|end| curve.bytes_at(end)))
        )),
        Phase::Moving => screen.draw(span(curve), curve, &state(curve)),
    };
    let trial = trial::run(stage, Workload::Loop, arm, enough, show)
        .with_context(|| format!("failed to show {}", arm.title()))?;
    screen.last(span(&trial.curve), &trial.curve, &state(&trial.curve));
    Ok(trial)
}

/// What the process is doing, in words.
fn state(curve: &Curve) -> String {
    let Some(end) = curve.end() else {
        return String::new();
    };
    let speed = curve.speed((end - 1.0).max(0.0).min(end - 0.1), end);
    let read = match (curve.bytes_at(0.0), curve.bytes_at(end)) {
        (Some(begin), Some(now)) if end > 0.0 => {
            format!(", {} since the order", size(Some(now - begin)))
        }
        _ => String::new(),
    };
    let freeze = match curve.freeze() {
        Some(freeze) => format!(", frozen for {:.1} s", freeze.seconds()),
        None => String::new(),
    };
    let speed = speed.map_or("?".to_owned(), |speed| format!("{:.0}", speed / 1e6));
    format!("{speed} MB/s{read}{freeze}")
}

fn size(bytes: Option<f64>) -> String {
    match bytes.unwrap_or(0.0) {
        bytes if bytes < 1e9 => format!("{:.0} MB", bytes / 1e6),
        bytes => format!("{:.1} GB", bytes / 1e9),
    }
}

/// A table with a column for each way.
fn numbers(told: &[(Arm, Trial)], scale: &Scale) -> String {
    type Row<'a> = (String, Box<dyn Fn(&Trial, Freeze) -> Option<String> + 'a>);
    let rows: [Row<'_>; 5] = [
        (
            "frozen".into(),
            Box::new(|_, freeze| Some(format!("{:.1} s", freeze.seconds()))),
        ),
        (
            "first pass over the file".into(),
            Box::new(|trial, _| {
                let passes = trial.curve.passes(trial.pass);
                let first = passes.iter().find(|pass| pass.number == 0)?;
                let speed = trial.pass as f64 / (first.end - first.begin);
                Some(format!("{:.0} MB/s", speed / 1e6))
            }),
        ),
        (
            "  compared with before".into(),
            Box::new(|trial, _| {
                let passes = trial.curve.passes(trial.pass);
                let first = passes.iter().find(|pass| pass.number == 0)?;
                let speed = trial.pass as f64 / (first.end - first.begin);
                let warm = trial.curve.speed(-2.0, 0.0)?;
                Some(format!("{:.0} %", speed / warm * 100.0))
            }),
        ),
        (
            format!("read in {AFTER:.0} s there"),
            Box::new(|trial, freeze| {
                let (begin, end) = (freeze.resumed, freeze.resumed + AFTER);
                let read = trial.curve.bytes_at(end)? - trial.curve.bytes_at(begin)?;
                Some(size(Some(read)))
            }),
        ),
        (
            format!("read {:.0} s after the order", scale.window),
            Box::new(|trial, _| {
                let read = trial.curve.bytes_at(scale.window)? - trial.curve.bytes_at(0.0)?;
                Some(format!("{:.1} GB", read / 1e9))
            }),
        ),
    ];
    let titles = told.iter().map(|(arm, _)| arm.title().to_owned()).collect();
    let mut lines: Vec<(String, Vec<String>)> = vec![(String::new(), titles)];
    for (title, of) in rows {
        let cell = |trial: &Trial| of(trial, trial.curve.freeze()?);
        let cells = told
            .iter()
            .map(|(_, trial)| cell(trial).unwrap_or("?".into()));
        lines.push((title, cells.collect()));
    }
    let mut text = String::new();
    for (title, cells) in lines {
        text += &format!("{title:<28}");
        for (cell, (arm, _)) in cells.iter().zip(told) {
            text += &format!("{cell:>width$}", width = arm.title().len() + 4);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::bench::curve::Point;

    #[test]
    fn each_way_has_its_column() {
        let point = |at: i32, bytes: u64| Point {
            at: f64::from(at),
            bytes,
        };
        let source: Vec<_> = (-5..=1)
            .map(|at| point(at, (at + 5) as u64 * 100_000_000))
            .collect();
        let destination: Vec<_> = (3..=40)
            .map(|at| point(at, 600_000_000 + (at - 3) as u64 * 60_000_000))
            .collect();
        let curve = Curve::of(&source, &destination);
        let trial = Trial {
            curve,
            pass: 100_000_000,
            report: Value::Null,
        };
        let text = numbers(&[(Arm::Criu, trial)], &scale("6.12".into(), "auto".into()));
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert!(lines[0].ends_with("CRIU alone"), "{text}");
        assert!(
            lines[1].starts_with("frozen") && lines[1].ends_with("2.0 s"),
            "{text}"
        );
        assert!(lines[2].ends_with("60 MB/s"), "{text}");
        assert!(
            lines[4].ends_with("600 MB") && lines[5].ends_with("1.8 GB"),
            "{text}"
        );
    }
}
