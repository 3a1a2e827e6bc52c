//! `migrator track` at work on the kernel under test.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};

use migrator::format;
use migrator::pagelist::{Heat, HotFile, PageIndexList};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Child, Scratch, binary};

/// A tracker that observes.
#[derive(Debug)]
pub struct Track {
    child: Child,
    log: BufReader<ChildStderr>,
    output: PathBuf,
}

/// What a tracker found.
#[derive(Debug)]
pub struct Tracked {
    /// The list that it wrote.
    pub list: PageIndexList,
    /// Where it wrote it.
    pub output: PathBuf,
    /// What it printed: `migrator.track/1`.
    pub report: Value,
    /// What it wrote on standard error once it observed.
    pub log: String,
}

impl Track {
    /// Starts `track --source ebpf --json` with more arguments, and comes back
    /// when it observes: what is used from then on is seen, unless the arguments
    /// ask for windows.
    ///
    /// # Panics
    /// When it ends before; the panic tells what it said.
    pub fn start<S: AsRef<std::ffi::OsStr>>(scratch: &Scratch, args: &[S]) -> Self {
        Self::with_source(scratch, "ebpf", args)
    }

    /// The same with another source.
    ///
    /// # Panics
    /// As for [`Self::start`].
    pub fn with_source<S: AsRef<std::ffi::OsStr>>(
        scratch: &Scratch,
        source: &str,
        args: &[S],
    ) -> Self {
        let output = scratch.path().join("list.pil");
        let mut command = Command::new(binary());
        command
            .args(["track", "--source", source, "--json", "--output"])
            .arg(&output)
            .args(args);
        let has = |option: &str| args.iter().any(|arg| arg.as_ref() == option);
        if !has("--windows") {
            command.args(["--windows", "never"]);
        }
        // Resident pages of which no use is known would hide what a source has seen.
        match source {
            "ebpf" => drop(command.arg("--observed-only")),
            _ if !has("--min-heat") => drop(command.args(["--min-heat", "referenced"])),
            _ => {}
        }
        Self::spawn(command, output)
    }

    /// The same with a command of one's own, which is to print JSON and to
    /// write its list to `output`.
    ///
    /// # Panics
    /// As for [`Self::start`].
    pub fn spawn(mut command: Command, output: PathBuf) -> Self {
        let mut child = Child::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let log = child.process().stderr.take().expect("a pipe");
        let mut log = BufReader::new(log);
        let mut said = String::new();
        while !said.contains("observing with source") {
            let read = log.read_line(&mut said).expect("text on standard error");
            assert!(read > 0, "{command:?} ended ({}): {said}", child.wait());
        }
        Self { child, log, output }
    }

    /// Starts to observe a process and its descendants.
    ///
    /// # Panics
    /// As for [`Self::start`].
    pub fn process(scratch: &Scratch, pid: i32) -> Self {
        Self::start(scratch, &["--pid", &pid.to_string()])
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Ends the observation as Ctrl-C does.
    ///
    /// # Panics
    /// When the exit code is not 0, no list was written, it can't be read, or
    /// the report does not fit it.
    pub fn finish(self) -> Tracked {
        self.finish_with(Signal::SIGINT)
    }

    /// Ends the observation with this signal.
    ///
    /// # Panics
    /// As for [`Self::finish`].
    pub fn finish_with(self, signal: Signal) -> Tracked {
        self.child.signal(signal);
        self.wait()
    }

    /// Waits until the observation ends by itself.
    ///
    /// # Panics
    /// As for [`Self::finish`].
    pub fn wait(mut self) -> Tracked {
        let mut report = String::new();
        let stdout = self.child.process().stdout.as_mut().expect("a pipe");
        stdout.read_to_string(&mut report).expect("a report");
        let mut log = String::new();
        self.log.read_to_string(&mut log).expect("text");
        let status = self.child.wait();
        assert_eq!(status.code(), Some(0), "track ended with {status}: {log}");
        let list = format::read_file(&self.output).unwrap_or_else(|error| panic!("{error:#}"));
        let report: Value = serde_json::from_str(&report)
            .unwrap_or_else(|error| panic!("track printed no JSON ({error}): {report}"));
        assert_eq!(report["pages"], list.pages(), "list and report differ");
        Tracked {
            list,
            output: self.output,
            report,
            log,
        }
    }
}

impl Tracked {
    /// A file of the list.
    pub fn file(&self, path: &Path) -> Option<&HotFile> {
        self.list.files.iter().find(|it| it.identity.path == path)
    }

    /// The pages of a file that are on the list.
    pub fn pages(&self, path: &Path) -> BTreeSet<u64> {
        self.hot_pages(path, 1)
    }

    /// Those with at least this heat.
    pub fn hot_pages(&self, path: &Path, min_heat: Heat) -> BTreeSet<u64> {
        let runs = self.file(path).into_iter().flat_map(|file| &file.runs);
        runs.filter(|run| run.heat >= min_heat)
            .flat_map(|run| run.index..run.end())
            .collect()
    }

    /// How many files were left out for a reason.
    pub fn left_out(&self, reason: &str) -> u64 {
        let reasons = self.report["left_out"].as_array().expect("reasons");
        reasons
            .iter()
            .filter(|it| it["reason"].as_str().is_some_and(|it| it.contains(reason)))
            .map(|it| it["files"].as_u64().expect("a number"))
            .sum()
    }

    /// Ends the test if anything was lost for want of room.
    ///
    /// # Panics
    /// When it was.
    #[track_caller]
    pub fn assert_nothing_lost(&self) -> &Self {
        let lost = self.report["lost"].as_object().expect("what was lost");
        assert!(lost.values().all(|count| *count == 0), "{lost:?}");
        self
    }
}
