//! One process, moved once, in one way.

use std::io::Read;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::arm::Arm;
use super::curve::Curve;
use super::stage::{Stage, Workload};
use super::watch::Watch;

/// Passes before the order: one brings the file in, the next makes its pages
/// active, and some are to be measured.
const PASSES_BEFORE: u64 = 4;

/// Time with the limited link before the order.
const SETTLE: Duration = Duration::from_secs(3);

/// How long anything may take: a host without KVM is slow, not this slow.
const LIMIT: Duration = Duration::from_secs(300);

/// How often we look at what the watchers have said.
const TICK: Duration = Duration::from_millis(250);

/// `migrator move` says so when not all pages arrived.
const INCOMPLETE: i32 = 3;

/// What came out.
#[derive(Debug)]
pub(crate) struct Trial {
    /// How much had been read when; 0 is when the order was given.
    pub(crate) curve: Curve,
    /// Bytes of a pass.
    pub(crate) pass: u64,
    /// What migrator said.
    pub(crate) report: Value,
}

/// When a trial has seen enough.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enough {
    /// Seconds since the order.
    pub(crate) ordered: f64,
    /// Seconds since the process went on.
    pub(crate) resumed: f64,
    /// Passes since then.
    pub(crate) passes: u64,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The source becomes warm.
    Warming,
    /// The order is about to be given, or has been.
    Moving,
}

/// Starts a process, lets it become warm, moves it, and ends it. `show` is
/// told, several times a second, what is known by then.
///
/// # Errors
/// When the process is not moved, or a host fails.
pub(crate) fn run(
    stage: &Stage,
    workload: Workload,
    arm: Arm,
    enough: Enough,
    mut show: impl FnMut(Phase, &Curve),
) -> Result<Trial> {
    let pid = stage.start(workload, arm.is_warm())?;
    let mut watch = Watch::begin(stage, pid)?;
    let start = Instant::now();
    while watch
        .pass()
        .is_none_or(|pass| watch.bytes() < PASSES_BEFORE * pass)
    {
        watch.listen(TICK)?;
        show(Phase::Warming, &watch.curve(start));
        if start.elapsed() > LIMIT {
            bail!(
                "the workload does not become warm; it has read {} bytes",
                watch.bytes()
            );
        }
    }
    stage.limit_link()?;
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        watch.listen(TICK)?;
        show(Phase::Moving, &watch.curve(settled));
    }

    let ordered = Instant::now();
    let mut order = Order::give(stage, &arm.command(pid, &stage.scale.source))?;
    let pass = watch.pass().unwrap_or(1);
    let curve = loop {
        watch.listen(TICK)?;
        let curve = watch.curve(ordered);
        show(Phase::Moving, &curve);
        let ended = order.ended()?;
        if let Some(status) = ended
            && !(status.success() || status.code() == Some(INCOMPLETE))
        {
            let (_, errors) = order.said()?;
            bail!("failed to move it with {}: {status}\n{errors}", arm.title());
        }
        if ended.is_some() && enough.is_reached(&curve, pass) {
            break curve;
        }
        if ordered.elapsed() > LIMIT {
            bail!(
                "{} took too long: {:?} after {:?}",
                arm.title(),
                curve.freeze(),
                ordered.elapsed()
            );
        }
    };
    drop(watch);
    stage.end(pid)?;
    let (output, _) = order.said()?;
    Ok(Trial {
        curve,
        pass,
        report: arm.report(&output),
    })
}

impl Enough {
    fn is_reached(self, curve: &Curve, pass: u64) -> bool {
        let (Some(freeze), Some(end)) = (curve.freeze(), curve.end()) else {
            return false;
        };
        let until = self.ordered.max(freeze.resumed + self.resumed);
        let passes = curve.bytes_at(end).unwrap_or(0.0) - freeze.bytes as f64;
        end >= until && passes >= (self.passes * pass) as f64
    }
}

/// A command that runs on the source.
struct Order {
    child: Child,
    // Each pipe has its reader, or the command would wait for one.
    output: Option<thread::JoinHandle<String>>,
    errors: Option<thread::JoinHandle<String>>,
}

impl Order {
    fn give(stage: &Stage, command: &str) -> Result<Self> {
        let mut child = stage.hosts.source.spawn(command)?;
        drop(child.stdin.take());
        let output = child.stdout.take().map(reader);
        let errors = child.stderr.take().map(reader);
        Ok(Self {
            child,
            output,
            errors,
        })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("failed to wait for ssh")
    }

    /// Standard output and error of a command that has ended.
    fn said(&mut self) -> Result<(String, String)> {
        let text = |reader: Option<thread::JoinHandle<String>>| match reader {
            Some(reader) => reader
                .join()
                .map_err(|_| anyhow!("the thread that reads the output panicked")),
            None => Ok(String::new()),
        };
        Ok((text(self.output.take())?, text(self.errors.take())?))
    }
}

fn reader(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was said until the pipe failed is all there is.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Drop for Order {
    fn drop(&mut self) {
        // After an error it may still run; its guest ends soon, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::super::curve::Point;
    use super::*;

    #[test]
    fn enough_is_time_since_both_events_and_whole_passes() {
        let point = |at: u32| Point {
            at: f64::from(at),
            bytes: 10 + u64::from(at),
        };
        let destination: Vec<_> = (1..=10).map(point).collect();
        let curve = Curve::of(&[point(0)], &destination);
        let reached = |ordered, resumed, passes| {
            let enough = Enough {
                ordered,
                resumed,
                passes,
            };
            enough.is_reached(&curve, 5)
        };
        assert!(reached(10.0, 9.0, 2));
        assert!(!reached(11.0, 0.0, 0));
        assert!(!reached(0.0, 11.0, 0));
        assert!(!reached(0.0, 0.0, 3));
    }
}
