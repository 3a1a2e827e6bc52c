//! Measures the way from the kernel's map to a list and back, what lists are worth,
//! what it costs to be observed, and what a tracker takes: one run of what `cargo xtask
//! bench list`, `quality`, `overhead` and `scale` compare.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use migrator::duty;
use migrator::format::{self, Reader, Record, Writer};
use migrator::heat::{FileId, HeatMap, Ranking, Sum};
use migrator::pagelist::{FileIdentity, PageIndexList};
use migrator::source::ebpf::Sizes;
use migrator_common::access::{CHUNK_PAGES, CURSORS, ChunkBits, ChunkKey, Cursor};
use migrator_tests::PAGE_SIZE;
use migrator_tests::gauge::accesses::{Accesses, Scale, Workload};
use migrator_tests::gauge::chunks::{self, Cluster, Kernel, Shape};
use migrator_tests::gauge::crowd::{self, Much};
use migrator_tests::gauge::load::{self, Load};
use migrator_tests::gauge::simulation::{self, Cache};
use migrator_tests::gauge::watcher::{Tools, Watcher, Watching};
use migrator_tests::gauge::{policy, trace};
use migrator_tests::random::Random;
use serde_json::{Value, json};

/// One run; prints one JSON object.
#[derive(Debug, Parser)]
enum Gauge {
    /// Collect, rank, encode and decode so many pages
    List {
        #[arg(long)]
        shape: Shape,
        #[arg(long)]
        pages: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Decode a list, record by record
    Decode { list: PathBuf },
    /// Reads after a move that hit what was prefetched, by policy and budget
    Quality {
        /// Without one, a run of sqlite3 is traced
        #[arg(long)]
        workload: Option<Workload>,
        #[command(flatten)]
        scale: Scale,
        /// Only what comparing windows with full tracking takes
        #[arg(long)]
        windows: bool,
        /// Queries of the run of sqlite3
        #[arg(long, default_value_t = 400_000)]
        queries: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// What the maps take in the kernel's memory
    Kernel {
        #[arg(long)]
        gib: u64,
        #[arg(long)]
        files: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Tell heat of a cache of any size
    Simulation {
        #[arg(long)]
        cache: Cache,
        /// Its size
        #[arg(long)]
        pages: u64,
        #[arg(long, default_value_t = simulation::HOT_EPOCHS)]
        epochs: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Track this host while there is much of something
    Crowd {
        #[arg(long)]
        much: Much,
        /// How much
        #[arg(long)]
        count: u64,
        /// Seconds
        #[arg(long, default_value_t = 15)]
        time: u64,
        #[arg(long)]
        migrator: PathBuf,
        /// Where the files are put
        #[arg(long)]
        place: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Read a page of a file now and then
    Process { file: PathBuf },
    /// Work on a cached file: alone, observed, and alone again
    Overhead {
        #[arg(long)]
        load: load::Kind,
        #[arg(long)]
        watcher: Watcher,
        #[command(flatten)]
        tools: Tools,
        /// The file; it is made where it is not there
        #[arg(long)]
        file: PathBuf,
        /// Milliseconds of each of the three; in windows it is as many epochs as
        /// there are at most from one to the next
        #[arg(long, default_value_t = 400)]
        time: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> Result<()> {
    let sample = match Gauge::parse() {
        Gauge::List { shape, pages, seed } => list(shape, pages, seed),
        Gauge::Decode { list } => decode(&list),
        Gauge::Quality {
            workload,
            scale,
            windows,
            queries,
            seed,
        } => quality(workload, scale, windows, queries, seed),
        Gauge::Simulation {
            cache,
            pages,
            epochs,
            seed,
        } => simulation(cache, pages, epochs, seed),
        Gauge::Kernel {
            gib,
            files,
            seed: _,
        } => Ok(kernel(gib, files)),
        Gauge::Crowd {
            much,
            count,
            time,
            migrator,
            place,
            seed: _,
        } => crowd::track(much, count, Duration::from_secs(time), &migrator, &place),
        Gauge::Process { file } => return crowd::process(&file),
        Gauge::Overhead {
            load,
            watcher,
            tools,
            file,
            time,
            seed,
        } => {
            let time = match watcher.is_in_windows() {
                true => tools.epoch * duty::EVERY.1,
                false => Duration::from_millis(time),
            };
            overhead(&mut Load::new(load, &file, seed)?, watcher, &tools, time)
        }
    }?;
    println!("{sample}");
    Ok(())
}

/// Epochs before the one that is measured, so that pages differ in heat.
const EPOCHS: u32 = 7;

fn list(shape: Shape, pages: u64, seed: u64) -> Result<Value> {
    let clusters = chunks::clusters(shape, pages, seed);
    let mut heat = HeatMap::default();
    let mut random = Random::new(seed << 48);
    let habits: Vec<u64> = clusters.iter().map(|_| random.next()).collect();
    for epoch in 0..EPOCHS {
        // Half are used in each epoch, a quarter in every other, and so on.
        let used = |(_, habit): &(&Cluster, &u64)| {
            (**habit >> 8).wrapping_add(u64::from(epoch)) % (1 << habit.trailing_zeros().min(3))
                == 0
        };
        let used = clusters.iter().zip(&habits).filter(used);
        for (key, bits) in chunks::chunks(used.map(|(cluster, _)| *cluster)) {
            heat.mark(file_id(key.device(), key.inode), key.chunk(), &bits);
        }
        heat.next_epoch();
    }
    let used = chunks::chunks(clusters);
    let mut kernel = Kernel::new(used.len())?;
    kernel.mark(&used)?;
    let map = kernel.map()?;

    let start = Instant::now();
    map.drain(|key, bits| heat.mark(file_id(key.device(), key.inode), key.chunk(), bits))
        .context("failed to empty the access map")?;
    let collected = start.elapsed();
    let files = rank(&heat);
    let ranked = start.elapsed();
    let bytes = write(&heat, &files, Vec::new())?;
    let encoded = start.elapsed();

    let list = format::read_list(&bytes[..]).context("failed to read the list")?;
    let mut came_back = files.iter().zip(&list.files);
    let is_whole = files.len() == list.files.len()
        && came_back.all(|((file, _), read)| heat.runs(*file, 1, u64::MAX) == read.runs);
    ensure!(is_whole, "the list came back as another");
    ensure!(list.pages() + heat.forgotten() == pages, "pages were lost");
    let encoded_in_file = tempfile::NamedTempFile::new().context("failed to create a file")?;
    fs::write(encoded_in_file.path(), &bytes).context("failed to write the list")?;
    let this = std::env::current_exe().context("failed to find this program")?;
    let decoded = Command::new(this)
        .arg("decode")
        .arg(encoded_in_file.path())
        .output()
        .context("failed to start this program")?;
    let decoded: Value = serde_json::from_slice(&decoded.stdout).context("failed to decode")?;
    ensure!(
        decoded["pages"] == list.pages(),
        "pages were lost on the way"
    );
    Ok(json!({
        "pages": list.pages(),
        "forgotten_pages": heat.forgotten(),
        "collect_seconds": collected.as_secs_f64(),
        "rank_seconds": (ranked - collected).as_secs_f64(),
        "encode_seconds": (encoded - ranked).as_secs_f64(),
        "seconds": encoded.as_secs_f64(),
        "bytes": bytes.len(),
        "entropy_bytes": (entropy(&list) / 8.0).ceil(),
        "decode_seconds": decoded["seconds"],
        "decoder_bytes": decoded["memory_bytes"],
    }))
}

fn file_id(device: u32, inode: u64) -> FileId {
    FileId { device, inode }
}

fn identity(file: FileId, pages: u64) -> FileIdentity {
    FileIdentity {
        path: format!("/srv/data/base/16384/{}", file.inode).into(),
        device: file.device.into(),
        inode: file.inode,
        size: pages * PAGE_SIZE as u64,
        mtime_ns: 1_700_000_000_123_456_789,
    }
}

/// Reads a list with the product's reader. Memory is what the process has grown
/// by at its highest, over what it had when it began.
fn decode(list: &PathBuf) -> Result<Value> {
    let file = File::open(list).context("failed to open the list")?;
    let before = peak_memory()?;
    let start = Instant::now();
    let mut reader = Reader::new(BufReader::with_capacity(1 << 16, file))?;
    let mut pages = 0;
    while let Some(record) = reader.record()? {
        if let Record::Runs(runs) = record {
            pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({
        "pages": pages,
        "seconds": seconds,
        "memory_bytes": peak_memory()? - before,
    }))
}

/// The most memory that this process ever had, in bytes (proc(5)).
fn peak_memory() -> Result<u64> {
    status("VmHWM:")
}

/// A size in bytes from this process's status.
fn status(key: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("failed to read our status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.with_context(|| format!("our status has no {key}"))? * 1024)
}

/// What the maps take on a host of so much memory, where that is all a cache of so many
/// files. Not counted are the programs and what has a size of a few KiB.
fn kernel(gib: u64, files: u64) -> Value {
    // Element and head of a list of the kernel's hash (`htab_elem`, `bucket`), with key
    // and value, as its allocator rounds it.
    const FILE: u64 = 96;
    const BUCKET: u64 = 16;
    const EVENTS: u64 = 1 << 20;
    let sizes = Sizes::new(gib << 30, 1);
    let chunk = size_of::<ChunkKey>() + size_of::<ChunkBits>();
    let arrays = 2 * u64::from(sizes.chunks) * chunk as u64
        + u64::from(CURSORS) * size_of::<Cursor>() as u64;
    let hash = u64::from(sizes.files) * BUCKET + files.min(sizes.files.into()) * FILE;
    json!({
        "cache_bytes": gib << 30,
        "files": files,
        "kernel_bytes": arrays + hash + EVENTS,
    })
}

/// The files that are known, the hottest first, as a tracker finds them at its end.
fn rank(heat: &HeatMap) -> Vec<(FileId, Sum)> {
    let files = heat.files();
    let mut files: Vec<_> = files
        .map(|file| (file, heat.sum(file, 1, u64::MAX)))
        .collect();
    files.sort_by(|(_, one), (_, other)| other.hotness().total_cmp(&one.hotness()));
    files
}

/// Writes their pages, as a tracker does.
fn write<W: Write>(heat: &HeatMap, files: &[(FileId, Sum)], output: W) -> Result<W> {
    let mut writer = Writer::new(output, PAGE_SIZE as u32)?;
    for (file, sum) in files {
        writer.begin(&identity(*file, sum.pages))?;
        heat.each_runs(*file, 1, u64::MAX, |runs| writer.runs(runs))?;
    }
    Ok(writer.finish()?)
}

fn simulation(cache: Cache, pages: u64, epochs: u32, seed: u64) -> Result<Value> {
    let before = status("VmRSS:")?;
    let mut heat = HeatMap::default();
    let start = cpu_seconds()?;
    let uses = simulation::tell(&mut heat, cache, pages, epochs, seed);
    let told = cpu_seconds()?;
    let memory = status("VmRSS:")? - before;
    let files = rank(&heat);
    write(&heat, &files, std::io::sink())?;
    let known: u64 = files.iter().map(|(_, sum)| sum.pages).sum();
    let hot = match cache {
        Cache::Hot => Some(hot(&heat, pages)),
        _ => None,
    };
    Ok(json!({
        "tracked_pages": pages,
        "known_pages": known,
        "forgotten_pages": heat.forgotten(),
        "hot_known": hot,
        "uses": uses,
        "cpu_seconds": told - start,
        "list_cpu_seconds": cpu_seconds()? - told,
        "memory_bytes": memory,
        "peak_bytes": peak_memory()? - before,
    }))
}

/// The part of the hot pages that is still known as hot.
fn hot(heat: &HeatMap, pages: u64) -> f64 {
    let chunks = pages / CHUNK_PAGES;
    let hot = (0..chunks)
        .filter(|chunk| simulation::is_hot(*chunk))
        .count() as f64;
    let known = heat.sum(simulation::FILE, 2, u64::MAX).pages as f64;
    known / (hot * CHUNK_PAGES as f64)
}

/// What this process has computed.
fn cpu_seconds() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .context("failed to ask what we have used")?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + 1e-6 * time.tv_usec() as f64;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The bits that the runs of a list take at least when gaps, lengths and heats
/// are coded each by itself; or its pages, where those are random and that is
/// less. Paths are not counted, nor what tells the distributions.
fn entropy(list: &PageIndexList) -> f64 {
    let (mut gaps, mut lengths, mut heats) = (Counts::new(), Counts::new(), Counts::new());
    let mut page_heats = Counts::new();
    let (mut pages, mut span) = (0.0, 0.0);
    for file in &list.files {
        let mut end = 0;
        for run in &file.runs {
            *gaps.entry(run.index - end).or_default() += 1;
            *lengths.entry(u64::from(run.pages)).or_default() += 1;
            *heats.entry(u64::from(run.heat)).or_default() += 1;
            *page_heats.entry(u64::from(run.heat)).or_default() += u64::from(run.pages);
            end = run.end();
        }
        pages += file.pages() as f64;
        span += end as f64;
    }
    let share: f64 = pages / span;
    let bernoulli = -(pages * share.log2() + (span - pages) * (1.0 - share).max(1e-300).log2());
    let by_run = bits(&gaps) + bits(&lengths) + bits(&heats);
    by_run.min(bernoulli + bits(&page_heats))
}

type Counts = HashMap<u64, u64>;

/// The entropy of values that occur so often, in sum.
fn bits(counts: &Counts) -> f64 {
    let total: u64 = counts.values().sum();
    let bits = |count: &u64| *count as f64 * (total as f64 / *count as f64).log2();
    counts.values().map(bits).sum()
}

/// Budgets in parts of all pages.
const BUDGETS: [f64; 9] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0];

/// What is tried beside the ranking of the product.
const KEPT: [f64; 4] = [0.5, 0.75, 0.875, 0.9375];
const AGAIN: [u16; 3] = [1, 2, 3];

fn quality(
    workload: Option<Workload>,
    scale: Scale,
    only_windows: bool,
    queries: u64,
    seed: u64,
) -> Result<Value> {
    let accesses: Accesses = match workload {
        Some(workload) => workload.accesses(scale, seed),
        None => {
            let directory = tempfile::tempdir_in(disk()).context("failed to create a directory")?;
            trace::sqlite(directory.path(), queries, seed)?
        }
    };
    let budgets = BUDGETS.map(|part| (part * f64::from(accesses.pages)) as usize);
    let (in_windows, observed) = policy::windows(&accesses, Ranking::default());
    let heat = policy::heat(&accesses, Ranking::default());
    let mut orders = BTreeMap::from([
        ("oracle".to_owned(), policy::oracle(&accesses)),
        ("heat".to_owned(), heat),
        ("windows".to_owned(), in_windows),
    ]);
    if !only_windows {
        orders.extend(others(&accesses, seed));
    }
    let hits: BTreeMap<_, _> = orders
        .iter()
        .map(|(name, order)| (name, policy::hits(&accesses, order, &budgets)))
        .collect();
    Ok(json!({
        "pages": accesses.pages,
        "observed": observed,
        "reads_before": accesses.before.len(),
        "reads_after": accesses.after.len(),
        "budget_bytes": budgets.map(|pages| pages * PAGE_SIZE),
        "hits": hits,
    }))
}

/// What the product is compared with, and other rankings.
fn others(accesses: &Accesses, seed: u64) -> Vec<(String, Vec<u32>)> {
    // The classic LRU tells pages apart only where memory is not enough for all.
    let memory = accesses.pages as usize / 2;
    let mut orders = vec![
        ("lru".to_owned(), policy::active(accesses, memory)),
        ("resident".to_owned(), policy::resident(accesses, memory)),
        ("short".to_owned(), policy::short(accesses, memory)),
        ("left on".to_owned(), policy::left_on(accesses, memory)),
        ("recent".to_owned(), policy::recent(accesses)),
        ("random".to_owned(), policy::random(accesses, seed)),
    ];
    let kept = KEPT.map(|kept| (format!("kept {kept}"), ranking(Some(kept), None)));
    let again = AGAIN.map(|again| (format!("again {again}"), ranking(None, Some(again))));
    for (name, ranking) in kept.into_iter().chain(again) {
        orders.push((name, policy::heat(accesses, ranking)));
    }
    orders
}

fn ranking(kept: Option<f64>, again: Option<u16>) -> Ranking {
    let usual = Ranking::default();
    Ranking {
        kept: kept.unwrap_or(usual.kept),
        again: again.unwrap_or(usual.again),
    }
}

fn overhead(load: &mut Load, watcher: Watcher, tools: &Tools, time: Duration) -> Result<Value> {
    let before = load.trial(time)?;
    let watching = watcher.begin(tools)?;
    if watcher.is_in_windows() {
        // The beginning is observed whole, and what is hot is learned in it. An
        // epoch takes longer than its time by what is done at its end.
        load.trial(tools.epoch * duty::FIRST * 2)?;
    }
    let observed = load.trial(time)?;
    let sees = match &watching {
        Watching::Tracker(tracker) => Some(tracker.sees.clone()),
        Watching::Programs(_) => None,
    };
    drop(watching);
    let after = load.trial(time)?;
    // A median would leave out the windows, which are a small part of the time.
    let cost = |cost: load::Cost| match watcher.is_in_windows() {
        true => cost.mean,
        false => cost.median,
    };
    let alone = (cost(before) + cost(after)) / 2.0;
    Ok(json!({
        "before_ns": cost(before),
        "ns": cost(observed),
        "after_ns": cost(after),
        "alone_ns": alone,
        "ratio": cost(observed) / alone,
        "sees": sees,
    }))
}

/// A directory on a disk for a database of a few hundred MiB.
fn disk() -> PathBuf {
    std::env::var_os("MIGRATOR_TEST_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}
