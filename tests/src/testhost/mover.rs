//! A `migrator move` at work on the source.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::host::{Handle, code};

/// The program that reaches the destination.
const RSH: &str = "/mnt/programs/rsh";

/// What is done at a step.
pub(super) type Call = Box<dyn FnOnce() + Send>;

/// A move that runs.
pub struct Mover {
    process: Child,
    errors: JoinHandle<()>,
    output: JoinHandle<String>,
    said: Arc<Mutex<String>>,
}

impl fmt::Debug for Mover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mover").finish_non_exhaustive()
    }
}

/// How it ended.
#[derive(Debug, Clone)]
pub struct Moved {
    /// Its exit code, 128 and the signal's number if one ended it; nothing when it
    /// did not end in time.
    pub code: Option<i32>,
    /// Standard output.
    pub report: String,
    /// Standard error, with the seconds since the start.
    pub said: String,
}

impl Mover {
    /// Starts one, by the words before its own (strace(1), or none). At the first line
    /// that has the step's name, a call is made.
    ///
    /// # Errors
    /// Returns an error when it can't be started.
    pub fn start(
        source: &Handle,
        prefix: &[String],
        what: &str,
        mut at_step: Vec<(String, Call)>,
    ) -> Result<Self> {
        let words: Vec<&str> = prefix
            .iter()
            .map(String::as_str)
            .chain(["migrator", "move", "--to", "ssh://destination"])
            .chain(["--json", "--rsh", RSH])
            .chain(what.split(' '))
            .collect();
        let mut process = source
            .enter(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start a move")?;
        let began = Instant::now();
        let lines = process.stderr.take().context("no pipe")?;
        let mut output = process.stdout.take().context("no pipe")?;
        let said = Arc::new(Mutex::new(String::new()));
        let errors = {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                for line in BufReader::new(lines).lines().map_while(Result::ok) {
                    *said.lock().unwrap_or_else(PoisonError::into_inner) +=
                        &format!("{:7.3} {line}\n", began.elapsed().as_secs_f64());
                    let step = line.strip_prefix("migrator: ").unwrap_or_default();
                    while let Some(found) = at_step.iter().position(|(name, _)| name == step) {
                        (at_step.swap_remove(found).1)();
                    }
                }
            })
        };
        let output = thread::spawn(move || {
            let mut text = String::new();
            _ = output.read_to_string(&mut text);
            text
        });
        Ok(Self {
            process,
            errors,
            output,
            said,
        })
    }

    /// Returns what it has written on standard error so far.
    pub fn said(&self) -> String {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether it has come to a step.
    pub fn has_said(&self, step: &str) -> bool {
        let line = format!("migrator: {step}");
        self.said().lines().any(|said| said.ends_with(&line))
    }

    /// Waits until it has come to a step, or has ended. Returns whether it has.
    pub fn wait_for(&mut self, step: &str, limit: Duration) -> bool {
        let began = Instant::now();
        while !self.has_said(step) {
            if began.elapsed() > limit || self.has_ended() {
                return self.has_said(step);
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits until it ends, or leaves it where it is after a time.
    ///
    /// # Errors
    /// Returns an error when it can't be waited for.
    pub fn finish(mut self, limit: Duration) -> Result<Moved> {
        let began = Instant::now();
        let status = loop {
            let status = self.process.try_wait().context("failed to wait")?;
            if status.is_some() || began.elapsed() > limit {
                break status;
            }
            thread::sleep(Duration::from_millis(3));
        };
        if status.is_none() {
            // It is the shell's end of it that ends.
            _ = self.process.kill();
            _ = self.process.wait();
        }
        let report = match status {
            // What holds its pipes besides it may live on.
            Some(_) if wait_for(&self.output) => self.output.join().unwrap_or_default(),
            _ => String::new(),
        };
        wait_for(&self.errors);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Moved {
            code: status.map(code),
            report,
            said: said.clone(),
        })
    }
}

fn wait_for<T>(thread: &JoinHandle<T>) -> bool {
    let began = Instant::now();
    while !thread.is_finished() && began.elapsed() < Duration::from_millis(500) {
        thread::sleep(Duration::from_millis(2));
    }
    thread.is_finished()
}
