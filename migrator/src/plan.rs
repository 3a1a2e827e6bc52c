//! Runs → reads in a budget, hottest first. Pure: the caller says how large
//! the files are and which of their pages are resident.
//!
//! [`extents`] makes one file's part, [`order`] puts the parts of any number
//! of files together, and [`Extent::batches`] cuts a part into reads at the
//! last moment, so that memory stays linear in runs even where one run names
//! a terabyte.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use crate::pagelist::{ACTIVE, Heat, RESIDENT, Run};

/// How runs become extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes a page.
    pub page_size: u32,
    /// Resident pages at least this hot are planned too, to be touched; the
    /// others are left alone.
    pub touch: Option<Heat>,
}

/// Neighbouring pages of one file to be read at one heat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Index of the first page.
    pub first: u64,
    /// How many pages it reaches over.
    pub span: u64,
    /// How many of them were asked for: `span` less the holes.
    pub pages: u64,
    /// Which file, in the caller's counting.
    pub file: u32,
    /// Heat of the pages asked for.
    pub heat: Heat,
    /// The pages are in the cache already and are read only to be touched:
    /// that costs neither I/O nor memory.
    pub resident: bool,
}

/// One read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Where, in bytes; a multiple of the page size.
    pub offset: u64,
    /// How many bytes; a multiple of the page size but at the file's end.
    pub len: u32,
    /// How many of its pages were asked for.
    pub pages: u32,
}

/// What is to be read of one file, and what need not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilePlan {
    /// By page index; their file is the one given.
    pub extents: Vec<Extent>,
    /// How many pages the runs name, each counted once.
    pub asked: u64,
    /// Those of them that are resident.
    pub resident: u64,
    /// Those of them that lie beyond the file's end.
    pub beyond_end: u64,
}

/// The most bytes a batch has.
pub const BATCH: u32 = 1 << 20;

/// A hole of so many pages at most is read over where that is cheaper than a second
/// request: on a disk here one request takes 10 µs of it, and a page 1.2 µs.
pub const HOLE: u64 = 8;

/// An extent has at most such a part of its pages in holes besides. So single pages
/// that are strewn over a file never have, and what is nearly dense has.
const SURPLUS: u64 = 8;

/// Pages that somebody came back to are alike if their heats differ by no more:
/// one was used at most four times as often as the other (see
/// [`heat`](crate::heat)).
const ALIKE: Heat = 8;

/// What is to be read of a file of `size` bytes.
///
/// A page that several runs name is read once, at the highest heat. Runs that
/// touch each other and have the same heat become one extent. `resident` has
/// page indexes, sorted and not overlapping.
pub fn extents(
    file: u32,
    size: u64,
    runs: &[Run],
    resident: &[Range<u64>],
    shape: Shape,
) -> FilePlan {
    let in_file = size.div_ceil(u64::from(shape.page_size));
    let mut plan = FilePlan::default();
    let mut resident = resident;
    for Layer { pages, heat } in layers(runs) {
        plan.asked += len(&pages);
        let inside = pages.start.min(in_file)..pages.end.min(in_file);
        plan.beyond_end += len(&pages) - len(&inside);
        let mut next = inside.start;
        while next < inside.end {
            while resident.first().is_some_and(|range| range.end <= next) {
                resident = &resident[1..];
            }
            let (is_resident, end) = match resident.first() {
                Some(range) if range.start <= next => (true, range.end.min(inside.end)),
                Some(range) => (false, range.start.min(inside.end)),
                None => (false, inside.end),
            };
            if is_resident {
                plan.resident += end - next;
            }
            if !is_resident || shape.touch.is_some_and(|least| heat >= least) {
                let extent = Extent {
                    first: next,
                    span: end - next,
                    pages: end - next,
                    file,
                    heat,
                    resident: is_resident,
                };
                push(&mut plan.extents, extent);
            }
            next = end;
        }
    }
    plan
}

/// The pages of a file of `size` bytes that the runs name, as sorted ranges
/// that neither overlap nor touch: what to ask
/// [`residency`](crate::residency) about.
pub fn pages(size: u64, runs: &[Run], page_size: u32) -> Vec<Range<u64>> {
    let in_file = size.div_ceil(u64::from(page_size));
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for Layer { pages, .. } in layers(runs) {
        let inside = pages.start.min(in_file)..pages.end.min(in_file);
        match ranges.last_mut() {
            _ if inside.is_empty() => {}
            Some(last) if last.end == inside.start => last.end = inside.end,
            _ => ranges.push(inside),
        }
    }
    ranges
}

/// The extents in the order in which they are read: those that fit into the
/// budget of `budget` pages, and those that do not. Extents that are resident
/// need no budget. Takes each file's extents together and by page index.
///
/// Where all of them fit, what counts is how soon all is read, and one request
/// for many pages is sooner done than many for a page each. So neighbours that
/// are alike become one extent, as hot as the hottest of them, and extents that
/// are alike are read by file and page index. Holes of at most `hole` pages of a
/// file are read over, as long as the pages that come in without having been asked
/// for stay an eighth of the others, and all fits.
///
/// Where they don't fit, it is the hottest that do, by file and page index where
/// they are equally hot. An extent at the budget's edge is cut in two; nothing
/// colder is kept in its stead, even where it would fit.
pub fn order(
    mut extents: Vec<Extent>,
    page_size: u32,
    budget: Option<u64>,
    hole: impl Fn(u32) -> u64,
) -> (Vec<Extent>, Vec<Extent>) {
    let needed = to_read(&extents);
    let Some(mut left) = budget.filter(|budget| *budget < needed) else {
        let most = u64::from(BATCH / page_size);
        let is_roomy = budget.is_none_or(|budget| needed + needed / SURPLUS <= budget);
        let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
        for of_file in extents.chunk_by(|one, other| one.file == other.file) {
            let hole = if is_roomy { hole(of_file[0].file) } else { 0 };
            join(&mut joined, of_file, hole, most);
        }
        joined.sort_unstable_by_key(|extent| {
            (Reverse(class(extent.heat)), extent.file, extent.first)
        });
        return (joined, Vec::new());
    };
    extents.sort_unstable_by_key(|extent| (Reverse(extent.heat), extent.file, extent.first));
    let mut dropped = Vec::new();
    let mut kept = Vec::with_capacity(extents.len());
    for extent in extents {
        if extent.resident || extent.span <= left {
            kept.push(extent);
            left -= if extent.resident { 0 } else { extent.span };
            continue;
        }
        let head = left;
        left = 0;
        if head > 0 {
            kept.push(Extent {
                span: head,
                pages: head,
                ..extent
            });
        }
        dropped.push(Extent {
            first: extent.first + head,
            span: extent.span - head,
            pages: extent.pages - head,
            ..extent
        });
    }
    (kept, dropped)
}

/// Adds a file's extents, neighbours that are alike as one, which reaches over `most`
/// pages at most if there is a hole of up to `hole` pages in it.
fn join(joined: &mut Vec<Extent>, extents: &[Extent], hole: u64, most: u64) {
    let mut coldest = 0;
    for extent in extents {
        if let Some(last) = joined.last_mut()
            && last.file == extent.file
            && let Some(between) = between(last, extent)
            && last.heat.max(extent.heat) - coldest.min(extent.heat) <= ALIKE
        {
            let span = last.span + between + extent.span;
            let pages = last.pages + extent.pages;
            let is_whole = span == pages;
            let is_small = between <= hole && span - pages <= pages / SURPLUS;
            if is_whole || !last.resident && is_small && span <= most {
                last.span = span;
                last.pages = pages;
                last.heat = last.heat.max(extent.heat);
                coldest = coldest.min(extent.heat);
                continue;
            }
        }
        coldest = extent.heat;
        joined.push(*extent);
    }
}

/// How many pages are between an extent and the next one of the file, if they could
/// be read as one.
fn between(one: &Extent, next: &Extent) -> Option<u64> {
    let are_alike = one.heat.abs_diff(next.heat) <= ALIKE && worth(one.heat) == worth(next.heat);
    let between = next.first.checked_sub(one.first + one.span)?;
    (are_alike && one.resident == next.resident).then_some(between)
}

fn to_read(extents: &[Extent]) -> u64 {
    let to_read = extents.iter().filter(|extent| !extent.resident);
    to_read.map(|extent| extent.span).sum()
}

/// Heats that are alike have the same, as far as that can be.
fn class(heat: Heat) -> Heat {
    match heat {
        ACTIVE.. => ACTIVE + (heat - ACTIVE) / ALIKE,
        heat => worth(heat),
    }
}

/// Returns 2 for pages that were used again, 1 for those that were used once, and 0
/// for those of which no use is known. They are never alike.
fn worth(heat: Heat) -> u8 {
    u8::from(heat > RESIDENT) + u8::from(heat >= ACTIVE)
}

impl Extent {
    /// The reads that bring it in, of a file of `size` bytes, each of at most
    /// `limit` bytes (but of one page at least).
    pub fn batches(&self, size: u64, page_size: u32, limit: u32) -> impl Iterator<Item = Batch> {
        let bytes = u64::from(page_size);
        // An extent with holes was made to fit into one batch.
        let step = if self.pages == self.span {
            u64::from(limit / page_size).max(1)
        } else {
            self.span
        };
        let (end, asked) = (self.first + self.span, self.pages);
        (0..self.span.div_ceil(step)).map(move |number| {
            let first = self.first + number * step;
            let pages = step.min(end - first);
            let offset = first * bytes;
            Batch {
                offset,
                len: (pages * bytes).min(size.saturating_sub(offset)) as u32,
                pages: pages.min(asked) as u32,
            }
        })
    }
}

/// Adds an extent behind the last one, or to it.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = extents.last_mut()
        && (last.heat, last.resident) == (extent.heat, extent.resident)
        && last.first + last.span == extent.first
    {
        last.span += extent.span;
        last.pages += extent.pages;
        return;
    }
    extents.push(extent);
}

/// Pages of one heat; a list's run without its faults.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    pages: Range<u64>,
    heat: Heat,
}

/// The runs sorted and without overlap: where several name a page, the
/// hottest counts.
fn layers(runs: &[Run]) -> Vec<Layer> {
    let mut layers: Vec<Layer> = runs
        .iter()
        .map(|run| Layer {
            // Run::end would overflow at the end of a hostile list.
            pages: run.index..run.index.saturating_add(u64::from(run.pages)),
            heat: run.heat,
        })
        .filter(|layer| !layer.pages.is_empty())
        .collect();
    if layers
        .windows(2)
        .all(|pair| pair[0].pages.end <= pair[1].pages.start)
    {
        return layers;
    }
    layers.sort_unstable_by_key(|layer| layer.pages.start);
    flatten(&layers)
}

/// Takes the overlaps out of layers that are sorted by their start, sweeping
/// from left to right with the layers that are open in a heap by heat.
fn flatten(layers: &[Layer]) -> Vec<Layer> {
    let mut flat: Vec<Layer> = Vec::with_capacity(layers.len());
    let mut open: BinaryHeap<(Heat, u64)> = BinaryHeap::new();
    let mut coming = layers.iter().peekable();
    let mut at = 0;
    loop {
        while let Some(layer) = coming.next_if(|layer| layer.pages.start <= at) {
            open.push((layer.heat, layer.pages.end));
        }
        while open.peek().is_some_and(|&(_, end)| end <= at) {
            open.pop();
        }
        let next_start = coming.peek().map(|layer| layer.pages.start);
        let Some(&(heat, end)) = open.peek() else {
            match next_start {
                Some(start) => at = start,
                None => return flat,
            }
            continue;
        };
        let until = next_start.map_or(end, |start| start.min(end));
        match flat.last_mut() {
            Some(last) if last.pages.end == at && last.heat == heat => last.pages.end = until,
            _ => flat.push(Layer {
                pages: at..until,
                heat,
            }),
        }
        at = until;
    }
}

fn len(pages: &Range<u64>) -> u64 {
    pages.end - pages.start
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges of pages are meant")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PAGE: u32 = 4096;
    const SHAPE: Shape = Shape {
        page_size: PAGE,
        touch: None,
    };

    fn run(index: u64, pages: u32, heat: Heat) -> Run {
        Run { index, pages, heat }
    }

    fn parts(plan: &FilePlan) -> Vec<(u64, u64, Heat, bool)> {
        plan.extents
            .iter()
            .map(|extent| (extent.first, extent.span, extent.heat, extent.resident))
            .collect()
    }

    #[test]
    fn neighbours_of_one_heat_become_one_extent() {
        let runs = [run(0, 2, 1), run(2, 3, 1), run(5, 1, 2), run(7, 1, 2)];
        let plan = extents(0, 1 << 20, &runs, &[], SHAPE);
        let expected = [(0, 5, 1, false), (5, 1, 2, false), (7, 1, 2, false)];
        assert_eq!(parts(&plan), expected);
        assert_eq!((plan.asked, plan.resident, plan.beyond_end), (7, 0, 0));
    }

    #[test]
    fn residents_fall_out_or_are_touched() {
        let runs = [run(0, 10, 1), run(10, 10, 2)];
        let plan = extents(0, 1 << 20, &runs, &[3..5, 8..12], SHAPE);
        let expected = [(0, 3, 1, false), (5, 3, 1, false), (12, 8, 2, false)];
        assert_eq!(parts(&plan), expected);
        assert_eq!(plan.resident, 6);
        let touch = Shape {
            touch: Some(2),
            ..SHAPE
        };
        let plan = extents(0, 1 << 20, &runs, &[3..5, 8..12], touch);
        let expected = [
            (0, 3, 1, false),
            (5, 3, 1, false),
            (10, 2, 2, true),
            (12, 8, 2, false),
        ];
        assert_eq!(parts(&plan), expected);
        assert_eq!(plan.resident, 6);
    }

    #[test]
    fn the_end_of_the_file_cuts() {
        let size = u64::from(PAGE) * 3 + 10;
        let plan = extents(0, size, &[run(2, 10, 1), run(50, 1, 1)], &[], SHAPE);
        assert_eq!(parts(&plan), [(2, 2, 1, false)]);
        assert_eq!((plan.asked, plan.beyond_end), (11, 9));
        let batches: Vec<_> = plan.extents[0].batches(size, PAGE, BATCH).collect();
        let expected = Batch {
            offset: 8192,
            len: PAGE + 10,
            pages: 2,
        };
        assert_eq!(batches, [expected]);
        assert_eq!(extents(0, 0, &[run(0, 1, 1)], &[], SHAPE).beyond_end, 1);
    }

    #[test]
    fn pages_are_asked_about_once() {
        let runs = [run(8, 10, 1), run(0, 4, 1), run(2, 3, 2), run(5, 1, 1)];
        assert_eq!(pages(10 * u64::from(PAGE) - 1, &runs, PAGE), [0..6, 8..10]);
        assert_eq!(pages(0, &runs, PAGE), []);
    }

    #[test]
    fn a_hostile_run_at_the_end_of_all_numbers() {
        let runs = [run(u64::MAX - 1, u32::MAX, 9), run(u64::MAX, 1, 9)];
        let plan = extents(0, u64::MAX, &runs, &[], SHAPE);
        assert_eq!((plan.asked, plan.beyond_end), (1, 1));
        let plan = extents(0, u64::MAX, &[run(0, u32::MAX, 9)], &[], SHAPE);
        assert_eq!(plan.extents.len(), 1, "memory is linear in runs");
        let last = plan.extents[0].batches(u64::MAX, PAGE, BATCH).last();
        assert_eq!(last.expect("many").pages, 255);
    }

    #[test]
    fn small_holes_are_read_over_where_they_are_a_small_part() {
        let runs = [
            run(0, 4, 5),
            run(5, 4, 9),
            // A hole of two would be more than an eighth.
            run(11, 4, 9),
            // Not alike.
            run(16, 8, 1),
            run(25, 1, 1),
        ];
        let plan = extents(0, 1 << 20, &runs, &[], SHAPE);
        let parts = |extents: &[Extent]| {
            let part = |extent: &Extent| (extent.first, extent.span, extent.pages, extent.heat);
            extents.iter().map(part).collect::<Vec<_>>()
        };
        let (kept, _) = order(plan.extents.clone(), PAGE, None, |_| HOLE);
        let expected = [(0, 9, 8, 9), (11, 4, 4, 9), (16, 10, 9, 1)];
        assert_eq!(parts(&kept), expected);
        let batches: Vec<_> = kept[0].batches(1 << 20, PAGE, PAGE).collect();
        assert_eq!((batches.len(), batches[0].pages), (1, 8));
        for (budget, hole) in [(Some(22), HOLE), (None, 0)] {
            let (kept, dropped) = order(plan.extents.clone(), PAGE, budget, |_| hole);
            assert!(
                kept.iter().all(|it| it.span == it.pages),
                "{budget:?} {hole}"
            );
            assert_eq!((kept.len(), dropped.len()), (5, 0), "{budget:?} {hole}");
        }
    }

    #[test]
    fn what_is_read_over_holes_is_one_read() {
        let runs: Vec<_> = (0..40).map(|number| run(number * 20, 19, 1)).collect();
        let plan = extents(0, 1 << 30, &runs, &[], SHAPE);
        let (kept, _) = order(plan.extents, PAGE, None, |_| HOLE);
        assert!(kept.iter().all(|it| it.span <= u64::from(BATCH / PAGE)));
        assert_eq!(kept.len(), 4);
    }

    #[test]
    fn the_hottest_come_first_and_stay_in_the_budget() {
        let of = |file, heat, first, span| Extent {
            first,
            span,
            pages: span,
            file,
            heat,
            resident: false,
        };
        let all = vec![
            of(0, 1, 0, 5),
            of(1, 3, 7, 2),
            of(0, 3, 9, 4),
            of(1, 3, 0, 1),
        ];
        let sorted = [
            of(0, 3, 9, 4),
            of(1, 3, 0, 1),
            of(1, 3, 7, 2),
            of(0, 1, 0, 5),
        ];
        assert_eq!(
            order(all.clone(), PAGE, None, |_| 0),
            (sorted.to_vec(), vec![])
        );
        let (kept, dropped) = order(all, PAGE, Some(6), |_| 0);
        assert_eq!(kept, [of(0, 3, 9, 4), of(1, 3, 0, 1), of(1, 3, 7, 1)]);
        assert_eq!(dropped, [of(1, 3, 8, 1), of(0, 1, 0, 5)]);
    }

    #[test]
    fn neighbours_that_are_alike_are_one_read_where_all_fit() {
        let heats = [1, 4, 11, 12, 13, 5, 1, 1];
        let runs: Vec<_> = (0..).zip(heats).map(|(n, heat)| run(n, 1, heat)).collect();
        let plan = extents(0, 1 << 20, &runs, &[], SHAPE);
        let parts = |extents: &[Extent]| {
            let part = |extent: &Extent| (extent.first, extent.span, extent.heat);
            extents.iter().map(part).collect::<Vec<_>>()
        };
        let (kept, _) = order(plan.extents.clone(), PAGE, Some(8), |_| 0);
        // 4 to 12 are alike, and 13 and 5; by index, as they are of one class.
        assert_eq!(parts(&kept), [(1, 3, 12), (4, 2, 13), (0, 1, 1), (6, 2, 1)]);
        let (kept, dropped) = order(plan.extents, PAGE, Some(3), |_| 0);
        assert_eq!(parts(&kept), [(4, 1, 13), (3, 1, 12), (2, 1, 11)]);
        assert_eq!(parts(&dropped)[..2], [(5, 1, 5), (1, 1, 4)]);
    }

    #[test]
    fn residents_need_no_budget() {
        let touch = Extent {
            first: 0,
            span: 100,
            pages: 100,
            file: 0,
            heat: 2,
            resident: true,
        };
        assert_eq!(
            order(vec![touch], PAGE, Some(0), |_| 0),
            (vec![touch], vec![])
        );
    }

    /// What a plan must cover: page → heat, the simple way.
    fn model(size: u64, runs: &[Run], resident: &[Range<u64>]) -> BTreeMap<u64, Heat> {
        let mut pages = BTreeMap::new();
        for run in runs {
            for page in run.index..run.end() {
                let heat = pages.entry(page).or_insert(run.heat);
                *heat = run.heat.max(*heat);
            }
        }
        pages.retain(|page, _| {
            page * u64::from(PAGE) < size && !resident.iter().any(|range| range.contains(page))
        });
        pages
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0..40_u64, 1..40_u64), 0..12).prop_map(|steps| {
            let mut at = 0;
            steps
                .into_iter()
                .map(|(skip, len)| {
                    let range = at + skip..at + skip + len;
                    at = range.end + 1;
                    range
                })
                .collect()
        })
    }

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let any_run = (0..600_u64, 1..400_u32, 1..30_u8);
        let any_run = any_run.prop_map(|(index, pages, heat)| run(index, pages, heat));
        proptest::collection::vec(any_run, 0..20)
    }

    proptest! {
        #[test]
        fn every_page_is_read_once_in_order(
            files in proptest::collection::vec((runs(), ranges(), 0..4_000_000_u64), 1..4),
            limit in 1..BATCH,
            budget in proptest::option::of(0..2000_u64),
        ) {
            let mut all = Vec::new();
            let mut expected = BTreeMap::new();
            for (file, (runs, resident, size)) in (0_u32..).zip(&files) {
                let plan = extents(file, *size, runs, resident, SHAPE);
                let pages = model(*size, runs, resident);
                let kept = plan.asked - plan.resident - plan.beyond_end;
                prop_assert_eq!(kept, pages.len() as u64);
                expected.extend(pages.into_iter().map(|(page, heat)| ((file, page), heat)));
                all.extend(plan.extents);
            }
            let all_fit = budget.is_none_or(|budget| budget >= expected.len() as u64);
            let mut found = BTreeMap::new();
            let mut before = None;
            let (first, rest) = order(all, PAGE, budget, |_| 0);
            for extent in first.into_iter().chain(rest) {
                let size = files[extent.file as usize].2;
                let rank = match all_fit {
                    true => class(extent.heat),
                    false => extent.heat,
                };
                for batch in extent.batches(size, PAGE, limit) {
                    let now = (Reverse(rank), extent.file, batch.offset);
                    prop_assert!(before < Some(now), "order");
                    before = Some(now);
                    prop_assert!(batch.len > 0 && batch.len <= limit.max(PAGE));
                    prop_assert!(batch.offset + u64::from(batch.len) <= size);
                    prop_assert_eq!(batch.pages, batch.len.div_ceil(PAGE));
                    let first = batch.offset / u64::from(PAGE);
                    for page in first..first + u64::from(batch.pages) {
                        let twice = found.insert((extent.file, page), extent.heat);
                        prop_assert_eq!(twice, None, "page {} twice", page);
                    }
                }
            }
            prop_assert!(found.keys().eq(expected.keys()));
            for (page, heat) in expected {
                let as_if = found[&page];
                prop_assert!(as_if == heat || all_fit && heat > 1 && as_if > heat);
                prop_assert!(as_if <= heat + ALIKE);
            }
        }

        #[test]
        fn the_budget_keeps_the_hottest(runs in runs(), budget in 0..2000_u64) {
            let plan = extents(0, u64::MAX, &runs, &[], SHAPE);
            let (kept, dropped) = order(plan.extents, PAGE, Some(budget), |_| 0);
            let sum = |part: &[Extent]| part.iter().map(|extent| extent.pages).sum::<u64>();
            prop_assert_eq!(sum(&kept), plan.asked.min(budget));
            prop_assert_eq!(sum(&kept) + sum(&dropped), plan.asked);
            let coldest = kept.iter().map(|extent| extent.heat).min();
            let hottest = dropped.iter().map(|extent| extent.heat).max();
            prop_assert!(coldest.is_none() || hottest.is_none() || coldest >= hottest);
        }

        #[test]
        fn reading_over_holes_still_covers_every_page_once(
            runs in runs(),
            resident in ranges(),
            hole in 0..50_u64,
        ) {
            let plan = extents(0, u64::MAX, &runs, &resident, SHAPE);
            let asked = model(u64::MAX, &runs, &resident);
            let (mut kept, _) = order(plan.extents, PAGE, None, |_| hole);
            kept.sort_unstable_by_key(|extent| extent.first);
            let mut last = 0;
            for extent in &kept {
                prop_assert!(extent.first >= last);
                last = extent.first + extent.span;
                let inside: Vec<_> = asked.range(extent.first..last).collect();
                prop_assert_eq!(inside.len() as u64, extent.pages);
                prop_assert!(inside.iter().all(|(_, heat)| **heat <= extent.heat));
                let is_one_read = extent.span <= u64::from(BATCH / PAGE);
                prop_assert!(is_one_read || extent.pages == extent.span);
            }
            let sum = |part: fn(&Extent) -> u64| kept.iter().map(part).sum::<u64>();
            let pages = sum(|extent| extent.pages);
            prop_assert_eq!(pages, asked.len() as u64);
            prop_assert!(sum(|extent| extent.span) - pages <= pages / SURPLUS);
        }
    }
}
