//! Three processes that make numbered steps, and notice when they are moved
//! wrongly; see `migrator_tests::steps` for the ledger they keep.
//!
//! A step goes from the parent through a pipe to the child, from there to the
//! grandchild, which writes it down, and back to the parent. On its way each
//! process looks at what CRIU has to bring along: its memory, the mapping of a
//! file that they share, locks, what is queued in a pipe, files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeWriter, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use migrator_tests::random::Random;
use migrator_tests::steps::{Block, COLUMNS, Record, Verdict, errors_at, ledger_size, slot_at};
use migrator_tests::{PAGE_SIZE, page};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

/// Makes numbered steps, each once.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make the files in a directory
    Prepare {
        directory: PathBuf,
        /// The most steps that can be made
        #[arg(long, default_value_t = 50_000)]
        steps: u64,
        /// Pages of the file that is read
        #[arg(long, default_value_t = 4096)]
        pages: u64,
    },
    /// Make steps until killed
    Run {
        directory: PathBuf,
        /// Milliseconds between two steps
        #[arg(long, default_value_t = 10)]
        interval: u64,
        #[command(flatten)]
        manner: Manner,
        /// MiB of memory that the parent has besides
        #[arg(long, default_value_t = 0)]
        ballast: usize,
    },
    /// Say as JSON what was done; exit with 1 unless each step was done once
    Verify { directory: PathBuf },
    /// Say who else holds the locks
    Locks { directory: PathBuf },
    /// What `run` starts
    #[command(hide = true)]
    Child {
        directory: PathBuf,
        #[command(flatten)]
        manner: Manner,
    },
    /// What that starts
    #[command(hide = true)]
    Grandchild {
        directory: PathBuf,
        parent: u32,
        #[command(flatten)]
        manner: Manner,
    },
}

/// What all processes of a tree do alike.
#[derive(Debug, Clone, Copy, Args)]
struct Manner {
    /// Hold no file locks
    #[arg(long)]
    no_locks: bool,
    /// How the file that is read is opened, and whether it is written
    #[arg(long, value_enum, default_value_t = DataUse::Read)]
    data: DataUse,
    /// Microseconds between two reads of it
    #[arg(long, default_value_t = 5000)]
    read_interval: u64,
}

/// How the file that is read is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DataUse {
    /// For reading
    Read,
    /// For reading and writing, and not written
    Open,
    /// For both, and one byte is written again and again
    Rewrite,
}

impl Manner {
    /// Returns the options for the next process.
    fn options(self) -> Vec<String> {
        let data = match self.data {
            DataUse::Read => "read",
            DataUse::Open => "open",
            DataUse::Rewrite => "rewrite",
        };
        let no_locks = self.no_locks.then_some("--no-locks".to_owned());
        let interval = self.read_interval.to_string();
        let others = ["--data", data, "--read-interval", &interval].map(str::to_owned);
        no_locks.into_iter().chain(others).collect()
    }
}

fn main() -> Result<ExitCode> {
    match Cli::parse().task {
        Task::Prepare {
            directory,
            steps,
            pages,
        } => prepare(&directory, steps, pages)?,
        Task::Run {
            directory,
            interval,
            manner,
            ballast,
        } => {
            // Not all zero, or CRIU would have no pages to bring along.
            let _ballast = vec![1_u8; ballast << 20];
            parent(&directory, Duration::from_millis(interval), manner)?;
        }
        Task::Child { directory, manner } => child(&directory, manner)?,
        Task::Grandchild {
            directory,
            parent,
            manner,
        } => grandchild(&directory, parent, manner)?,
        Task::Verify { directory } => {
            let verdict =
                Verdict::read(&directory.join("ledger")).context("failed to read the ledger")?;
            println!("{}", serde_json::to_string(&verdict)?);
            if !verdict.exactly_once() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Locks { directory } => {
            println!(
                "posix {}",
                held(posix_is_held(&open(&directory, "posix")?)?)
            );
            println!("flock {}", held(flock_is_held(open(&directory, "flock")?)?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn held(held: bool) -> &'static str {
    if held { "held" } else { "free" }
}

/// All files have their size from the beginning: CRIU wants a file to be as
/// large at restore as it was at dump.
fn prepare(directory: &Path, steps: u64, pages: u64) -> Result<()> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        File::create(directory.join("ledger"))?.set_len(ledger_size(steps))?;
        for (name, size) in [("shared", PAGE_SIZE), ("posix", 1), ("flock", 1)] {
            fs::write(directory.join(name), vec![0; size])?;
        }
        let mut data = io::BufWriter::with_capacity(1 << 20, File::create(directory.join("data"))?);
        (0..pages).try_for_each(|index| data.write_all(&page(index)))?;
        data.into_inner()?.sync_all()
    };
    make().with_context(|| format!("failed to make the files in {}", directory.display()))
}

fn open(directory: &Path, name: &str) -> Result<File> {
    let path = directory.join(name);
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("failed to open {}", path.display()))
}

/// What each of the processes has.
struct Process {
    /// 0 the parent, 1 the child, 2 the grandchild.
    role: usize,
    ledger: File,
    shared: &'static [AtomicU64],
    /// The last step that passed here.
    last: u64,
    errors: u64,
}

impl Process {
    fn new(directory: &Path, role: usize) -> Result<Self> {
        // Past the page cache, for two hosts that write at the same time would
        // not see each other's pages.
        let ledger = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(directory.join("ledger"))
            .context("failed to open the ledger: was it prepared?")?;
        // The descriptor is closed at once: only the mapping is left of it.
        let shared = map_shared(&open(directory, "shared")?)?;
        Ok(Self {
            role,
            ledger,
            shared,
            last: 0,
            errors: 0,
        })
    }

    /// Checks that a step comes in its turn, and that the mapping still has
    /// the one before it.
    fn pass(&mut self, step: u64) {
        if step != self.last + 1 {
            self.note(step, &format!("step {step} came after {}", self.last));
        }
        let cell = &self.shared[self.role];
        let before = cell.load(Ordering::SeqCst);
        if before != self.last {
            let text = format!("the shared mapping has {before} where it was {}", self.last);
            self.note(step, &text);
        }
        cell.store(step, Ordering::SeqCst);
        self.last = step;
    }

    /// Writes an error down. The first is kept, for the others follow from it.
    fn note(&mut self, step: u64, error: &str) {
        self.errors += 1;
        if self.errors > 1 {
            return;
        }
        let role = ["parent", "child", "grandchild"][self.role];
        let text = format!("{role}, on {}, at step {step}: {error}", host());
        // Where not even this can be written, the steps end, which is seen.
        if let Err(error) = self
            .ledger
            .write_all_at(&Block::text(&text).0, errors_at(self.role))
        {
            eprintln!("{text}; failed to write this down: {error}");
        }
    }

    fn check(&mut self, step: u64, result: Result<()>) {
        if let Err(error) = result {
            self.note(step, &format!("{error:#}"));
        }
    }
}

fn parent(directory: &Path, interval: Duration, manner: Manner) -> Result<()> {
    let mut process = Process::new(directory, 0)?;
    if Verdict::read(&directory.join("ledger"))?.last > 0 {
        bail!("the ledger has steps already: prepare it anew");
    }
    let lock = open(directory, "posix")?;
    if !manner.no_locks {
        fcntl(&lock, FcntlArg::F_SETLK(&write_lock())).context("failed to lock posix")?;
    }
    let (mut answers, answer) = io::pipe().context("failed to make a pipe")?;
    let mut child = start(directory, &["child"], manner, answer)?;
    let mut orders = child.stdin.take().context("the child has no input")?;
    for step in 1.. {
        process.pass(step);
        send(&mut orders, step)?;
        let done = receive(&mut answers)?.context("the grandchild has ended")?;
        if done != step {
            process.note(step, &format!("step {done} was answered"));
        }
        for (role, cell) in process.shared[..3].iter().enumerate() {
            let passed = cell.load(Ordering::SeqCst);
            if passed != step {
                process.note(step, &format!("{role} left {passed} in the mapping"));
                break;
            }
        }
        thread::sleep(interval);
    }
    Ok(())
}

/// How many steps wait in a pipe.
const QUEUED: u64 = 100;

fn child(directory: &Path, manner: Manner) -> Result<()> {
    let mut process = Process::new(directory, 1)?;
    let lock = || {
        Flock::lock(open(directory, "flock")?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .context("failed to lock flock")
    };
    let _lock = (!manner.no_locks).then(lock).transpose()?;
    let wrong = Arc::new(AtomicU64::new(0));
    for seed in 0..2 {
        let (data, wrong) = (open_data(directory, manner.data)?, wrong.clone());
        let pause = Duration::from_micros(manner.read_interval);
        thread::spawn(move || read_randomly(&data, seed, pause, &wrong));
    }
    if manner.data == DataUse::Rewrite {
        let data = open_data(directory, manner.data)?;
        thread::spawn(move || rewrite(&data));
    }
    let output = io::stdout();
    let answer = PipeWriter::from(std::os::fd::AsFd::as_fd(&output).try_clone_to_owned()?);
    let parent = std::os::unix::process::parent_id().to_string();
    let mut grandchild = start(directory, &["grandchild", &parent], manner, answer)?;
    let mut orders = grandchild
        .stdin
        .take()
        .context("the grandchild has no input")?;
    let (mut queue, mut into_queue) = io::pipe().context("failed to make a pipe")?;
    let mut input = io::stdin().lock();
    while let Some(step) = receive(&mut input)? {
        process.pass(step);
        send(&mut into_queue, step)?;
        if step > QUEUED {
            let oldest = receive(&mut queue)?;
            if oldest != Some(step - QUEUED) {
                process.note(step, &format!("the queue had {oldest:?}"));
            }
        }
        match wrong.swap(0, Ordering::SeqCst) {
            0 => {}
            page => process.note(step, &format!("page {} of data is wrong", page - 1)),
        }
        send(&mut orders, step)?;
    }
    Ok(())
}

/// A thread's work: pages of a file in no order. The number of one that is
/// wrong, from 1, is left where the child looks.
fn read_randomly(data: &Data, seed: u64, pause: Duration, wrong: &AtomicU64) {
    let mut random = Random::new(seed << 32);
    loop {
        let index = random.below(data.pages);
        let mut bytes = [0; PAGE_SIZE];
        let read = data
            .file
            .read_exact_at(&mut bytes, index * PAGE_SIZE as u64);
        if read.is_err() || bytes != page(index) {
            wrong.store(index + 1, Ordering::SeqCst);
        }
        thread::sleep(pause);
    }
}

/// Between two writes to the data.
const REWRITE_INTERVAL: Duration = Duration::from_millis(50);

/// A thread's work: writes the byte at the beginning of a file that is there.
fn rewrite(data: &Data) {
    loop {
        // Where it fails, the steps that were made are right all the same.
        _ = data.file.write_all_at(&page(0)[..1], 0);
        thread::sleep(REWRITE_INTERVAL);
    }
}

/// Words of memory that the grandchild fills with steps, around and around:
/// 2 MiB, of which each step touches another page.
const MEMORY: usize = 1 << 18;
const STRIDE: u64 = 1021;

fn grandchild(directory: &Path, parent: u32, manner: Manner) -> Result<()> {
    let mut process = Process::new(directory, 2)?;
    let data = open_data(directory, manner.data)?;
    let mapped = map_private(&data)?;
    let posix = open(directory, "posix")?;
    let mut memory = vec![0; MEMORY];
    let mut random = Random::new(3 << 32);
    let began_on = kernel()?;
    let pids = [
        parent,
        std::os::unix::process::parent_id(),
        std::process::id(),
    ];
    let (mut input, mut output) = (io::stdin().lock(), io::stdout());
    while let Some(step) = receive(&mut input)? {
        process.pass(step);
        // The stride has no divisor in common with the size: all words come by.
        let place = |step: u64| (step.wrapping_mul(STRIDE) % MEMORY as u64) as usize;
        if step > 1 && memory[place(step - 1)] != step - 1 {
            process.note(step, "the last step is not in the memory");
        }
        memory[place(step)] = step;
        let index = random.below(data.pages);
        let at = index as usize * PAGE_SIZE;
        if mapped[at..at + PAGE_SIZE] != page(index) {
            process.note(step, &format!("page {index} of the mapping is wrong"));
        }
        if !manner.no_locks {
            process.check(step, locks_are_held(directory, &posix));
        }
        let column = usize::from(kernel()? != began_on);
        write_down(&mut process, step, column, pids)?;
        send(&mut output, step)?;
    }
    Ok(())
}

/// Fills the slot of a step, unless it is not empty.
fn write_down(process: &mut Process, step: u64, column: usize, pids: [u32; 3]) -> Result<()> {
    for other in 0..COLUMNS {
        let mut block = Block::EMPTY;
        process
            .ledger
            .read_exact_at(&mut block.0, slot_at(step, other))
            .context("failed to read a slot: no more steps?")?;
        if block != Block::EMPTY {
            process.note(step, "the step was done already");
            if other == column {
                return Ok(());
            }
        }
    }
    let record = Record {
        step,
        host: host(),
        pids,
    };
    process
        .ledger
        .write_all_at(&record.encode().0, slot_at(step, column))
        .context("failed to write a slot")
}

fn locks_are_held(directory: &Path, posix: &File) -> Result<()> {
    if !posix_is_held(posix)? {
        bail!("the parent's lock is lost");
    }
    if !flock_is_held(open(directory, "flock")?)? {
        bail!("the child's lock is lost");
    }
    Ok(())
}

fn posix_is_held(file: &File) -> Result<bool> {
    let mut lock = write_lock();
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).context("failed to ask for a lock")?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// The file is closed afterwards, and with it goes the lock if it was got.
fn flock_is_held(file: File) -> Result<bool> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error).context("failed to ask for a lock"),
    }
}

fn write_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Starts this program again, with a pipe to it.
fn start(
    directory: &Path,
    task: &[&str],
    manner: Manner,
    output: PipeWriter,
) -> Result<std::process::Child> {
    // By its path, which gives the process its name; CRIU opens it again.
    let program = std::env::current_exe().context("failed to find this program")?;
    Command::new(program)
        .arg(task[0])
        .arg(directory)
        .args(&task[1..])
        .args(manner.options())
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .with_context(|| format!("failed to start {task:?}"))
}

fn send(pipe: &mut impl Write, step: u64) -> Result<()> {
    pipe.write_all(&step.to_le_bytes())
        .and_then(|()| pipe.flush())
        .context("failed to pass a step on")
}

/// Nothing when the other end is closed.
fn receive(pipe: &mut impl Read) -> Result<Option<u64>> {
    let mut bytes = [0; 8];
    match pipe.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).context("failed to receive a step"),
    }
}

/// The name of the host, or of the container.
fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "?".into(), |name| name.trim().to_owned())
}

/// Which kernel runs this: another after a move, whatever the host is called.
fn kernel() -> Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").context("failed to read the boot's id")
}

/// The file that is read.
struct Data {
    file: File,
    pages: u64,
}

fn open_data(directory: &Path, manner: DataUse) -> Result<Data> {
    let file = File::options()
        .read(true)
        .write(manner != DataUse::Read)
        .open(directory.join("data"))
        .context("failed to open data")?;
    let pages = file.metadata()?.len() / PAGE_SIZE as u64;
    Ok(Data { file, pages })
}

/// One page of a file that the three processes write to.
fn map_shared(file: &File) -> Result<&'static [AtomicU64]> {
    let length = NonZeroUsize::new(PAGE_SIZE).context("no page")?;
    let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { mmap(None, length, flags, MapFlags::MAP_SHARED, file, 0) }
        .context("failed to map shared")?;
    // SAFETY: the mapping is never undone, is aligned to a page, and has a page
    // of words; other processes write to it with atomic stores only.
    Ok(unsafe { std::slice::from_raw_parts(address.cast().as_ptr(), PAGE_SIZE / 8) })
}

/// The whole file.
fn map_private(data: &Data) -> Result<&'static [u8]> {
    let length = NonZeroUsize::new(data.pages as usize * PAGE_SIZE).context("data is empty")?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ,
            MapFlags::MAP_PRIVATE,
            &data.file,
            0,
        )
    }
    .context("failed to map data")?;
    // SAFETY: the mapping is never undone and has so many bytes; what is written
    // to the file after it was prepared is what it has.
    Ok(unsafe { std::slice::from_raw_parts(address.cast().as_ptr(), length.get()) })
}
