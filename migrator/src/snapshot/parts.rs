//! Which parts of a file are worth a look (pure).

use std::ops::Range;

/// Calls `look` for parts of `pages` of at most `window` pages each, in their order,
/// which together have all cached pages. `count` returns how many pages of a range are
/// cached.
///
/// A sparse file of petabytes takes some dozen calls: a range without a cached page is
/// not divided any further.
///
/// # Errors
/// Those of `count` and `look`.
pub fn counted<E>(
    pages: Range<u64>,
    window: u64,
    mut count: impl FnMut(Range<u64>) -> Result<u64, E>,
    mut look: impl FnMut(Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut ahead = vec![pages];
    while let Some(range) = ahead.pop() {
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            continue;
        }
        let cached = count(range.clone())?;
        if cached == 0 {
            continue;
        }
        if length <= window {
            look(range)?;
            continue;
        }
        let windows = length.div_ceil(window);
        if cached < windows {
            let middle = range.start + windows / 2 * window;
            ahead.push(middle..range.end);
            ahead.push(range.start..middle);
            continue;
        }
        // There may be a page in each: halves would only be counted for nothing.
        for start in range.clone().step_by(window as usize) {
            let part = start..range.end.min(start + window);
            if count(part.clone())? > 0 {
                look(part)?;
            }
        }
    }
    Ok(())
}

/// Calls `look` for parts of `pages` of at most `window` pages each, in their order,
/// which together have all pages with data. `next` returns the first page with data at
/// or behind a page, if there is one.
///
/// # Errors
/// Those of `next` and `look`.
pub fn with_data<E>(
    pages: Range<u64>,
    window: u64,
    mut next: impl FnMut(u64) -> Result<Option<u64>, E>,
    mut look: impl FnMut(Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = pages.start;
    while at < pages.end {
        // A file that changes must not bring us back to where we were.
        let Some(start) = next(at)?.map(|start| start.max(at)) else {
            break;
        };
        if start >= pages.end {
            break;
        }
        let end = pages.end.min(start.saturating_add(window));
        look(start..end)?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// The parts of a file with these cached pages, and how many calls they took.
    fn parts(cached: &BTreeSet<u64>, pages: Range<u64>, window: u64) -> (Vec<Range<u64>>, usize) {
        let (mut calls, mut parts) = (0, Vec::new());
        let count = |range| {
            calls += 1;
            Ok::<_, Infallible>(cached.range(range).count() as u64)
        };
        let Ok(()) = counted(pages, window, count, |part| {
            parts.push(part);
            Ok(())
        });
        (parts, calls)
    }

    #[test]
    fn a_sparse_file_of_petabytes_is_cheap() {
        let pages = 0..1 << 51;
        assert_eq!(parts(&BTreeSet::new(), pages.clone(), 1 << 16).1, 1);
        let cached = [0, 1 << 50, (1 << 51) - 1].into();
        let (found, calls) = parts(&cached, pages, 1 << 16);
        assert_eq!(found.len(), 3);
        assert!(calls < 300, "{calls} calls");
    }

    #[test]
    fn a_file_that_is_cached_is_counted_window_by_window() {
        let cached = (0..1000).collect();
        let (found, calls) = parts(&cached, 0..1000, 10);
        assert_eq!((found.len(), calls), (100, 101));
    }

    #[test]
    fn holes_are_jumped_over() {
        let data = [3..5_u64, 1 << 40..(1 << 40) + 25];
        let next = |at| {
            let ahead = data.iter().find(|extent| extent.end > at);
            Ok::<_, Infallible>(ahead.map(|extent| extent.start.max(at)))
        };
        let mut parts = Vec::new();
        let Ok(()) = with_data(0..1 << 50, 10, next, |part| {
            parts.push(part);
            Ok(())
        });
        let far = 1 << 40;
        let wanted = [3..13, far..far + 10, far + 10..far + 20, far + 20..far + 30];
        assert_eq!(parts, wanted);
        // A file system may answer nonsense: it ends nevertheless.
        let mut looks = 0;
        let Ok(()) = with_data(
            0..100,
            10,
            |_| Ok::<_, Infallible>(Some(0)),
            |_| {
                looks += 1;
                Ok(())
            },
        );
        assert_eq!(looks, 10);
    }

    proptest! {
        #[test]
        fn every_cached_page_is_in_one_part(
            cached in proptest::collection::btree_set(0..3000_u64, 0..60),
            end in 0..3000_u64,
            window in 1..100_u64,
        ) {
            let (parts, _) = parts(&cached, 0..end, window);
            prop_assert!(parts.iter().all(|part| part.end - part.start <= window));
            prop_assert!(parts.windows(2).all(|two| two[0].end <= two[1].start));
            let found: Vec<u64> = parts.into_iter().flatten().filter(|it| cached.contains(it)).collect();
            let wanted: Vec<u64> = cached.range(..end).copied().collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
