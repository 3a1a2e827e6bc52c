//! The payload of a RUNS frame: up to [`MAX_ITEMS`] runs of one file.
//!
//! Gaps, lengths and heats each have a code chosen for the frame, and are
//! written run by run as one string of bits.

use super::bits::{BitReader, BitWriter};
use super::frame::{put_number, take_byte, take_number};
use super::rice::{Code, Histogram, MAX_SHIFT};
use crate::pagelist::{Heat, Run};

/// How many runs a frame may have. It bounds what a few hostile bytes can
/// expand to: 256 KiB of runs.
pub(super) const MAX_ITEMS: usize = 1 << 14;

/// How many runs the writer puts into a frame: often enough to adapt to
/// another part of the file, seldom enough that the frame's head is under 1 %.
pub(super) const RUNS_PER_FRAME: usize = 1 << 13;

/// The byte in place of a shift that says that all numbers are the same.
const CONSTANT: u8 = 0xff;

/// The largest gap there may be.
const MAX_GAP: u64 = (1 << MAX_SHIFT) - 1;

/// The largest length there may be, less one.
const MAX_LENGTH: u64 = u32::MAX as u64 - 1;

/// Appends the payload for 1 to [`RUNS_PER_FRAME`] runs, sorted and not
/// overlapping.
///
/// Where most runs have one page, all are cut into single pages, whose
/// lengths then take no bits: what is 1.11 bits a run is 0.
pub(super) fn encode(runs: &[Run], payload: &mut Vec<u8>) {
    let stats = Stats::of(runs);
    let by_run = stats.by_run();
    let by_page = stats.by_page();
    if stats.pages <= MAX_ITEMS as u64 && by_page.cost < by_run.cost {
        write(&by_page, stats.pages, single_pages(runs), payload);
    } else {
        write(&by_run, runs.len() as u64, runs.iter().copied(), payload);
    }
}

fn single_pages(runs: &[Run]) -> impl Iterator<Item = Run> {
    runs.iter().flat_map(|run| {
        (run.index..run.end()).map(|index| Run {
            index,
            pages: 1,
            heat: run.heat,
        })
    })
}

/// Decodes a payload into `runs`, joined where they touch with the same heat.
/// All of them end at or before page `limit`.
///
/// # Errors
/// Says what is wrong with the payload.
pub(super) fn decode(
    mut payload: &[u8],
    limit: u64,
    runs: &mut Vec<Run>,
) -> Result<(), &'static str> {
    runs.clear();
    let head = Head::take(&mut payload).ok_or("the head of a RUNS frame is not valid")?;
    let mut bits = BitReader::new(payload);
    let mut end = head.base;
    let mut open: Option<Run> = None;
    for item in 0..head.items {
        let number = "a number in a RUNS frame is too large";
        let gap = match item {
            0 => 0,
            _ => head.gaps.read(&mut bits).ok_or(number)?,
        };
        let length = head.lengths.read(&mut bits).ok_or(number)?;
        let rank = head.ranks.read(&mut bits).ok_or(number)?;
        let run = Run {
            index: end.saturating_add(gap),
            pages: u32::try_from(length + 1).map_err(|_| number)?,
            heat: head.heats[rank as usize],
        };
        end = run.index.saturating_add(u64::from(run.pages));
        if end > limit {
            return Err("a run ends beyond the largest offset of a file");
        }
        open = Some(match open {
            None => run,
            Some(before) => before.join(run).unwrap_or_else(|| {
                runs.push(before);
                run
            }),
        });
    }
    runs.extend(open);
    if !bits.is_finished() {
        return Err("a RUNS frame is longer or shorter than its runs");
    }
    Ok(())
}

/// What stands before the bits.
struct Head<'a> {
    base: u64,
    items: u64,
    gaps: Code,
    lengths: Code,
    heats: &'a [Heat],
    ranks: Code,
}

impl<'a> Head<'a> {
    fn take(payload: &mut &'a [u8]) -> Option<Self> {
        let base = take_number(payload)?;
        let items = take_number(payload).filter(|items| (1..=MAX_ITEMS as u64).contains(items))?;
        let gaps = take_code(payload, MAX_GAP)?;
        let lengths = take_code(payload, MAX_LENGTH)?;
        let count = usize::from(take_byte(payload)?);
        let (heats, rest) = payload.split_at_checked(count)?;
        *payload = rest;
        let last = (count as u64).checked_sub(1)?;
        let ranks = match last {
            0 => Code::Constant(0),
            _ => take_code(payload, last)?,
        };
        (!heats.contains(&0)).then_some(Self {
            base,
            items,
            gaps,
            lengths,
            heats,
            ranks,
        })
    }
}

fn take_code(payload: &mut &[u8], most: u64) -> Option<Code> {
    let shift = take_byte(payload)?;
    let least = take_number(payload).filter(|least| *least <= most)?;
    match shift {
        CONSTANT => Some(Code::Constant(least)),
        _ => (u32::from(shift) <= MAX_SHIFT).then(|| Code::rice(shift.into(), least, most)),
    }
}

fn put_code(payload: &mut Vec<u8>, code: Code) {
    let (shift, least) = match code {
        Code::Constant(value) => (CONSTANT, value),
        Code::Rice { shift, least, .. } => (shift as u8, least),
    };
    payload.push(shift);
    put_number(payload, least);
}

/// What is to be known of the runs to choose the codes.
struct Stats {
    /// Between runs; at least 1 where all have the same heat.
    gaps: Histogram,
    /// The same, counted from 0, which is the gap between pages inside runs;
    /// `None` where there is such a gap between runs as well.
    gaps_from_zero: Option<Histogram>,
    lengths: Histogram,
    heats_by_run: [u64; 256],
    heats_by_page: [u64; 256],
    runs: u64,
    pages: u64,
}

impl Stats {
    fn of(runs: &[Run]) -> Self {
        // The runs are more than the nearest cache holds: all that is asked of them is
        // asked in two rounds.
        let (mut least_gap, mut shortest) = (None, u32::MAX);
        for (run, gap) in with_gaps(runs.iter().copied()) {
            least_gap = [least_gap, gap].into_iter().flatten().min();
            shortest = shortest.min(run.pages);
        }
        let least_gap = least_gap.unwrap_or(0);
        let mut stats = Self {
            gaps: Histogram::new(least_gap),
            gaps_from_zero: (least_gap > 0).then(|| Histogram::new(0)),
            lengths: Histogram::new(u64::from(shortest) - 1),
            heats_by_run: [0; 256],
            heats_by_page: [0; 256],
            runs: runs.len() as u64,
            pages: 0,
        };
        for (run, gap) in with_gaps(runs.iter().copied()) {
            if let Some(gap) = gap {
                stats.gaps.add(gap, 1);
                if let Some(from_zero) = &mut stats.gaps_from_zero {
                    from_zero.add(gap, 1);
                }
            }
            let pages = u64::from(run.pages);
            stats.lengths.add(pages - 1, 1);
            stats.heats_by_run[usize::from(run.heat)] += 1;
            stats.heats_by_page[usize::from(run.heat)] += pages;
            stats.pages += pages;
        }
        stats
    }

    fn by_run(&self) -> Layout {
        Layout::choose(&self.gaps, &self.lengths, &self.heats_by_run)
    }

    fn by_page(&self) -> Layout {
        let mut gaps = self.gaps_from_zero.as_ref().unwrap_or(&self.gaps).clone();
        gaps.add(0, self.pages - self.runs);
        Layout::choose(&gaps, &Histogram::new(0), &self.heats_by_page)
    }
}

/// Each run with the gap before it, which the first one has not.
fn with_gaps(runs: impl Iterator<Item = Run>) -> impl Iterator<Item = (Run, Option<u64>)> {
    let mut end = None;
    runs.map(move |run| {
        let gap = end.map(|end| run.index - end);
        end = Some(run.end());
        (run, gap)
    })
}

/// The codes of a frame.
struct Layout {
    gaps: Code,
    lengths: Code,
    /// The heats of the frame, the most frequent first: a heat is written as
    /// its place in here.
    heats: Vec<Heat>,
    ranks: Code,
    /// About how many bits the runs take.
    cost: u64,
}

impl Layout {
    fn choose(gaps: &Histogram, lengths: &Histogram, heat_counts: &[u64; 256]) -> Self {
        let mut heats: Vec<Heat> = (1..=Heat::MAX)
            .filter(|heat| heat_counts[usize::from(*heat)] > 0)
            .collect();
        heats.sort_by_key(|heat| std::cmp::Reverse(heat_counts[usize::from(*heat)]));
        let mut ranks = Histogram::new(0);
        for (rank, heat) in (0..).zip(&heats) {
            ranks.add(rank, heat_counts[usize::from(*heat)]);
        }
        let (gaps, gap_bits) = gaps.best(MAX_GAP);
        let (lengths, length_bits) = lengths.best(MAX_LENGTH);
        let (ranks, rank_bits) = ranks.best(heats.len().saturating_sub(1) as u64);
        Self {
            gaps,
            lengths,
            heats,
            ranks,
            cost: gap_bits + length_bits + rank_bits,
        }
    }
}

fn write(layout: &Layout, items: u64, runs: impl Iterator<Item = Run>, payload: &mut Vec<u8>) {
    let mut runs = runs.peekable();
    let base = runs.peek().map_or(0, |run| run.index);
    put_number(payload, base);
    put_number(payload, items);
    put_code(payload, layout.gaps);
    put_code(payload, layout.lengths);
    payload.push(layout.heats.len() as u8);
    payload.extend_from_slice(&layout.heats);
    if layout.heats.len() > 1 {
        put_code(payload, layout.ranks);
    }
    let mut rank = [0; 256];
    for (place, heat) in (0..).zip(&layout.heats) {
        rank[usize::from(*heat)] = place;
    }
    let mut bits = BitWriter::new(payload);
    for (run, gap) in with_gaps(runs) {
        if let Some(gap) = gap {
            layout.gaps.write(&mut bits, gap);
        }
        layout.lengths.write(&mut bits, u64::from(run.pages) - 1);
        layout.ranks.write(&mut bits, rank[usize::from(run.heat)]);
    }
    bits.finish();
}
