//! A process that uses files exactly as it is told, one step at a time.
//!
//! The program is `src/bin/reader.rs`. A step goes to its standard input as a
//! line of JSON; the answer is a line that says `done` or what failed.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::{Child, PAGE_SIZE};

/// The line that says that a step is done.
pub const DONE: &str = "done\n";

/// Something to do with a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Step {
    /// Reads so many bytes at each of the offsets, each with one pread(2); the
    /// end of the file may come first.
    Pread {
        /// The file.
        path: PathBuf,
        /// Bytes per read.
        length: usize,
        /// Where, in this order.
        offsets: Vec<u64>,
    },
    /// The same with O_DIRECT.
    Direct {
        /// The file.
        path: PathBuf,
        /// Bytes per read; a multiple of the page size.
        length: usize,
        /// Where; multiples of the page size.
        offsets: Vec<u64>,
    },
    /// Reads from the beginning to the end with read(2).
    Sequential {
        /// The file.
        path: PathBuf,
        /// Bytes per read.
        buffer: usize,
    },
    /// One preadv(2) into several buffers.
    Preadv {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// Lengths of the buffers in bytes.
        buffers: Vec<usize>,
    },
    /// Maps the whole file and reads a byte of each of the pages.
    Touch {
        /// The file.
        path: PathBuf,
        /// Page indexes, in this order.
        pages: Vec<u64>,
        /// As with MADV_RANDOM, without readahead.
        random: bool,
    },
    /// Moves so many bytes into a pipe with splice(2).
    Splice {
        /// The file.
        path: PathBuf,
        /// Where it begins.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Moves so many bytes into a socket with sendfile(2).
    Sendfile {
        /// The file.
        path: PathBuf,
        /// Where it begins.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Writes at each of the offsets, each with one pwrite(2). A file that is
    /// not there is created.
    Pwrite {
        /// The file.
        path: PathBuf,
        /// Bytes per write.
        length: usize,
        /// Where, in this order.
        offsets: Vec<u64>,
    },
    /// Opens it and keeps it open.
    Hold(PathBuf),
    /// Runs a program to its end.
    Run(Vec<String>),
    /// Does the steps in another process or thread.
    In(Place, Vec<Step>),
    /// A thread other than the first one executes the reader anew, so that
    /// the process goes on as that thread.
    ExecInThread,
}

/// Where steps are done.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Place {
    /// In a thread of its own each, all at the same time.
    Threads,
    /// In a child process.
    Child,
    /// In a process whose parent has ended, and with a session of its own.
    Daemon,
}

impl Step {
    /// Reads single pages, each with one pread(2).
    pub fn pages(path: impl Into<PathBuf>, pages: impl IntoIterator<Item = u64>) -> Self {
        let offsets = pages.into_iter().map(|page| page * PAGE_SIZE as u64);
        Self::Pread {
            path: path.into(),
            length: PAGE_SIZE,
            offsets: offsets.collect(),
        }
    }

    /// Reads from the beginning to the end.
    pub fn sequential(path: impl Into<PathBuf>, buffer: usize) -> Self {
        Self::Sequential {
            path: path.into(),
            buffer,
        }
    }

    /// Touches pages of a mapping.
    pub fn touch(path: impl Into<PathBuf>, pages: impl IntoIterator<Item = u64>) -> Self {
        Self::Touch {
            path: path.into(),
            pages: pages.into_iter().collect(),
            random: false,
        }
    }
}

/// A reader at work; it ends when dropped.
#[derive(Debug)]
pub struct Reader {
    child: Child,
    steps: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reader {
    /// Starts one; `program` is `env!("CARGO_BIN_EXE_reader")`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(program: &str) -> Self {
        Self::spawn(&mut Command::new(program))
    }

    /// Starts one with a command that executes the program.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = Child::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let steps = child.process().stdin.take().expect("a pipe");
        let answers = child.process().stdout.take().expect("a pipe");
        let mut reader = Self {
            child,
            steps,
            answers: BufReader::new(answers),
        };
        // It says that it is ready, so that what comes before belongs to
        // nobody's measurement.
        reader.expect_done("start");
        reader
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Waits until it has done a step.
    ///
    /// # Panics
    /// When it could not.
    pub fn run(&mut self, step: &Step) {
        self.begin(step);
        self.end();
    }

    /// Lets it do a step meanwhile; [`Self::end`] waits for it.
    ///
    /// # Panics
    /// When it does not take steps any more.
    pub fn begin(&mut self, step: &Step) {
        let mut line = serde_json::to_string(step).expect("a step");
        line.push('\n');
        let sent = self.steps.write_all(line.as_bytes());
        sent.unwrap_or_else(|error| panic!("the reader does not take a step: {error}"));
    }

    /// Waits until it has done the step it has begun.
    ///
    /// # Panics
    /// When it could not.
    pub fn end(&mut self) {
        self.expect_done("its step");
    }

    fn expect_done(&mut self, what: &str) {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, DONE, "the reader failed at {what}");
    }
}
