//! What moves in the benchmarks, and what looks at it there.
//!
//! `loop FILE`, `hot FILE` and `mmap FILE` read for ever, and do nothing else:
//! no terminal, socket, clock or other file stands in the way of CRIU. How far
//! they are is in their memory, at [`COUNTERS`] whichever host they run on, and
//! `watch PID MS` of another process reads it there: the process that is
//! measured spends nothing on it, and nothing of it crosses the network.
//!
//! `active PID` and `pages` are the two halves of the paper's method: list the
//! pages on the active LRU list, and read them page by page on one thread.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, BufRead, BufWriter, Read, Seek, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use migrator::source::pageflags::{PageFlags, drain_batches};
use migrator_tests::PAGE_SIZE;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// Where a workload's counters are in its memory: far from where the kernel
/// puts anything by itself. Two numbers of 8 bytes: bytes read, and bytes of a
/// pass.
const COUNTERS: usize = 0x1000_0000_0000;

/// How much is read at a time where it is sequential.
const CHUNK: usize = 128 << 10;

/// `watch` writes so many samples at once: a write costs a guest without KVM
/// as much as many samples.
const BATCH: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["loop", file] => read_in_a_loop(Path::new(file))?,
        ["hot", file] => read_hot_pages(Path::new(file))?,
        ["mmap", file] => read_mapping(Path::new(file))?,
        ["watch", pid, ms] => watch(pid.parse()?, Duration::from_millis(ms.parse()?))?,
        ["active", pid] => list_active(pid.parse()?)?,
        ["pages"] => read_page_by_page()?,
        _ => {
            return Err(
                "usage: workload loop|hot|mmap FILE, watch PID MS, active PID, pages".into(),
            );
        }
    }
    Ok(())
}

/// Reads the file from its beginning to its end, again and again.
fn read_in_a_loop(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let counters = Counters::new(file.metadata()?.len())?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => file.rewind()?,
            read => counters.add(read),
        }
    }
}

/// Reads all of the file once, as a backup does, and then a fixed tenth of its
/// pages in an order that is new in every pass, as a database does.
fn read_hot_pages(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hot: Vec<u64> = (0..length / PAGE_SIZE as u64)
        .filter(|page| mix(*page).is_multiple_of(10))
        .collect();
    io::copy(&mut &file, &mut io::sink())?;
    let counters = Counters::new((hot.len() * PAGE_SIZE) as u64)?;
    let mut buffer = [0; PAGE_SIZE];
    let mut random = 0;
    loop {
        // Fisher and Yates.
        for last in (1..hot.len()).rev() {
            random = mix(random);
            hot.swap(last, (random % (last as u64 + 1)) as usize);
        }
        for page in &hot {
            file.read_exact_at(&mut buffer, page * PAGE_SIZE as u64)?;
            counters.add(PAGE_SIZE);
        }
    }
}

/// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Copies out of a mapping of the file, from its beginning to its end, again
/// and again.
fn read_mapping(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let counters = Counters::new(length)?;
    let bytes = NonZeroUsize::new(length as usize)
        .ok_or_else(|| io::Error::other("an empty file can't be mapped"))?;
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap(None, bytes, read, shared, &file, 0) }?;
    let mut buffer = vec![0_u8; CHUNK];
    loop {
        for offset in (0..bytes.get()).step_by(CHUNK) {
            let length = CHUNK.min(bytes.get() - offset);
            // SAFETY: inside the mapping.
            let from = unsafe { start.cast::<u8>().add(offset) };
            // SAFETY: both are `length` bytes of ours; nobody cuts the file short.
            unsafe {
                from.as_ptr()
                    .copy_to_nonoverlapping(buffer.as_mut_ptr(), length)
            };
            black_box(&mut buffer);
            counters.add(length);
        }
    }
}

/// A page of our memory at [`COUNTERS`].
struct Counters(&'static [AtomicU64; 2]);

impl Counters {
    fn new(pass: u64) -> io::Result<Self> {
        let page = NonZeroUsize::new(PAGE_SIZE);
        // SAFETY: the kernel refuses to put it over another mapping.
        let place = unsafe {
            mmap_anonymous(
                NonZeroUsize::new(COUNTERS),
                page.ok_or(io::ErrorKind::InvalidInput)?,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE,
            )
        }?;
        // SAFETY: a page of zeros, which stays mapped until the process ends.
        let counters = Self(unsafe { place.cast().as_ref() });
        counters.0[1].store(pass, Ordering::Relaxed);
        Ok(counters)
    }

    fn add(&self, bytes: usize) {
        self.0[0].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Prints, every so often: seconds since it began, bytes read, bytes of a pass;
/// the seconds alone where the process is not here. Ends when nobody listens.
fn watch(pid: u32, every: Duration) -> io::Result<()> {
    let memory = format!("/proc/{pid}/mem");
    let look = || -> io::Result<[u64; 2]> {
        let mut bytes = [0; 16];
        File::open(&memory)?.read_exact_at(&mut bytes, COUNTERS as u64)?;
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_ne_bytes);
        match (number(0), number(8)) {
            (Ok(read), Ok(pass)) => Ok([read, pass]),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    let start = Instant::now();
    let mut lines = String::new();
    let mut next = start;
    loop {
        lines.clear();
        for _ in 0..BATCH {
            next += every;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let at = start.elapsed().as_secs_f64();
            lines += &match look() {
                // A pass of zero bytes: not a workload, or not yet.
                Ok([read, pass]) if pass > 0 => format!("{at:.4} {read} {pass}\n"),
                _ => format!("{at:.4}\n"),
            };
        }
        io::stdout().write_all(lines.as_bytes())?;
        io::stdout().flush()?;
    }
}

/// Prints the pages on the active LRU list of the files that a process has
/// open, as lines `INDEX PAGES PATH`.
fn list_active(pid: u32) -> Result<(), Box<dyn Error>> {
    let mut out = BufWriter::new(io::stdout().lock());
    let flags = PageFlags::open(Path::new("/proc"))?;
    drain_batches();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let descriptor = entry?.path();
        let meta = fs::metadata(&descriptor)?;
        if !meta.is_file() {
            continue;
        }
        let path = fs::read_link(&descriptor)?;
        let states = flags.scan(&File::open(&descriptor)?, meta.len())?;
        for run in states.iter().filter(|run| run.state.active) {
            writeln!(out, "{} {} {}", run.index, run.pages, path.display())?;
        }
    }
    Ok(out.flush()?)
}

/// Reads the pages that standard input names as `active` does, each with one
/// pread(2) of a page.
fn read_page_by_page() -> Result<(), Box<dyn Error>> {
    let mut opened: Option<(String, File)> = None;
    let mut buffer = [0; PAGE_SIZE];
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut fields = line.splitn(3, ' ');
        let (Some(index), Some(pages), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err(format!("not a run of pages: {line}").into());
        };
        let (index, pages): (u64, u64) = (index.parse()?, pages.parse()?);
        let file = match &opened {
            Some((name, file)) if name == path => file,
            _ => &opened.insert((path.to_owned(), File::open(path)?)).1,
        };
        for page in index..index + pages {
            file.read_at(&mut buffer, page * PAGE_SIZE as u64)?;
        }
    }
    Ok(())
}
