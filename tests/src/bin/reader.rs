//! Uses files exactly as standard input tells it; see `migrator_tests::reader`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use migrator_tests::PAGE_SIZE;
use migrator_tests::reader::{DONE, Place, Step};
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};
use nix::sys::sendfile::sendfile64;
use nix::sys::uio::preadv;
use nix::unistd::setsid;

/// The argument that makes it start the reader proper and end.
const DAEMONIZE: &str = "daemonize";

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some(DAEMONIZE) {
        setsid()?;
        Command::new(program()?).spawn()?;
        return Ok(());
    }
    let mut stdout = io::stdout();
    stdout.write_all(DONE.as_bytes())?;
    for line in io::stdin().lock().lines() {
        let done = serde_json::from_str(&line?)
            .map_err(io::Error::from)
            .and_then(|step| run(&step));
        match done {
            Ok(()) => stdout.write_all(DONE.as_bytes())?,
            Err(error) => writeln!(stdout, "{error}")?,
        }
    }
    Ok(())
}

/// Not `current_exe`, which does not exist in a mount namespace without it.
fn program() -> io::Result<std::path::PathBuf> {
    Ok("/proc/self/exe".into())
}

fn run(step: &Step) -> io::Result<()> {
    match step {
        Step::Pread {
            path,
            length,
            offsets,
        } => {
            let file = File::open(path)?;
            let mut buffer = vec![0; *length];
            offsets
                .iter()
                .try_for_each(|offset| some(file.read_at(&mut buffer, *offset)?))
        }
        Step::Direct {
            path,
            length,
            offsets,
        } => read_direct(path, *length, offsets),
        Step::Sequential { path, buffer } => {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; *buffer];
            while file.read(&mut buffer)? > 0 {}
            Ok(())
        }
        Step::Preadv {
            path,
            offset,
            buffers,
        } => {
            let mut memory: Vec<_> = buffers.iter().map(|length| vec![0; *length]).collect();
            let mut slices: Vec<_> = memory.iter_mut().map(|it| IoSliceMut::new(it)).collect();
            some(preadv(File::open(path)?, &mut slices, *offset as i64)?)
        }
        Step::Touch {
            path,
            pages,
            random,
        } => touch(path, pages, *random),
        Step::Splice {
            path,
            offset,
            length,
        } => {
            let file = File::open(path)?;
            let (from, to) = nix::unistd::pipe()?;
            drain(
                File::from(from),
                |pipe| {
                    let mut at = *offset as i64;
                    move_all(*length, |left| {
                        splice(
                            &file,
                            Some(&mut at),
                            pipe,
                            None,
                            left,
                            SpliceFFlags::empty(),
                        )
                    })
                },
                File::from(to),
            )
        }
        Step::Sendfile {
            path,
            offset,
            length,
        } => {
            let file = File::open(path)?;
            let (from, to) = UnixStream::pair()?;
            drain(
                from,
                |socket| {
                    let mut at = *offset as i64;
                    move_all(*length, |left| {
                        sendfile64(socket, &file, Some(&mut at), left)
                    })
                },
                to,
            )
        }
        Step::Pwrite {
            path,
            length,
            offsets,
        } => {
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            let bytes = vec![0x5a; *length];
            offsets
                .iter()
                .try_for_each(|offset| file.write_all_at(&bytes, *offset))
        }
        Step::Hold(path) => {
            // Until this process ends.
            let _ = File::open(path)?.into_raw_fd();
            Ok(())
        }
        Step::Run(command) => {
            let output = Command::new(&command[0]).args(&command[1..]).output()?;
            if output.status.success() {
                return Ok(());
            }
            Err(io::Error::other(format!("{command:?}: {output:?}")))
        }
        Step::In(Place::Threads, steps) => thread::scope(|scope| {
            let threads: Vec<_> = steps.iter().map(|it| scope.spawn(|| run(it))).collect();
            threads
                .into_iter()
                .try_for_each(|it| it.join().expect("a thread that does not panic"))
        }),
        Step::In(Place::Child, steps) => hand_over(steps, &mut Command::new(program()?)),
        Step::In(Place::Daemon, steps) => hand_over(steps, Command::new(program()?).arg(DAEMONIZE)),
        Step::ExecInThread => thread::spawn(|| -> io::Result<()> {
            // The new program says that it is ready, which answers the step.
            Err(Command::new(program()?).exec())
        })
        .join()
        .expect("a thread that does not panic"),
    }
}

/// A read that gives nothing is not what the test meant.
fn some(bytes: usize) -> io::Result<()> {
    match bytes {
        0 => Err(io::Error::other("the read was beyond the end of the file")),
        _ => Ok(()),
    }
}

fn move_all(
    length: usize,
    mut move_some: impl FnMut(usize) -> nix::Result<usize>,
) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        let moved = move_some(left)?;
        some(moved)?;
        left -= moved;
    }
    Ok(())
}

/// Lets a thread read what is moved into the other end.
fn drain<E: AsFd>(
    mut from: impl Read + Send,
    fill: impl FnOnce(&E) -> io::Result<()>,
    to: E,
) -> io::Result<()> {
    thread::scope(|scope| {
        let drained = scope.spawn(move || io::copy(&mut from, &mut io::sink()));
        let filled = fill(&to);
        drop(to);
        drained.join().expect("a thread that does not panic")?;
        filled
    })
}

/// Reads into memory that is aligned to a page, past the page cache.
fn read_direct(path: &Path, length: usize, offsets: &[u64]) -> io::Result<()> {
    let direct = OFlag::O_DIRECT.bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(direct)
        .open(path)?;
    let mut memory = vec![0_u8; length + PAGE_SIZE];
    let start = memory.as_ptr().align_offset(PAGE_SIZE);
    let buffer = &mut memory[start..start + length];
    offsets
        .iter()
        .try_for_each(|offset| some(file.read_at(buffer, *offset)?))
}

fn touch(path: &Path, pages: &[u64], random: bool) -> io::Result<()> {
    let file = File::open(path)?;
    let length = NonZeroUsize::new(file.metadata()?.len() as usize)
        .ok_or_else(|| io::Error::other("an empty file can't be mapped"))?;
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap(None, length, read, shared, &file, 0) }?;
    if random {
        // SAFETY: advice about our own mapping.
        unsafe { madvise(start, length.get(), MmapAdvise::MADV_RANDOM) }?;
    }
    for page in pages {
        let at = *page as usize * PAGE_SIZE;
        assert!(at < length.get(), "page {page} is beyond the end");
        // SAFETY: inside the mapping, whose file nobody cuts short meanwhile.
        let byte = unsafe { start.cast::<u8>().add(at) };
        // SAFETY: as above.
        unsafe { byte.read_volatile() };
    }
    // It stays until the process ends, as it does in most programs.
    Ok(())
}

/// Lets another reader do the steps. The process that the command starts may
/// end at once; what counts is who answers.
fn hand_over(steps: &[Step], command: &mut Command) -> io::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut expect_done = || {
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        match answer.as_str() {
            DONE => Ok(()),
            _ => Err(io::Error::other(answer)),
        }
    };
    expect_done()?;
    if command.get_args().next().is_some() {
        child.wait()?;
    }
    for step in steps {
        writeln!(input, "{}", serde_json::to_string(step)?)?;
        expect_done()?;
    }
    drop(input);
    child.wait()?;
    Ok(())
}
