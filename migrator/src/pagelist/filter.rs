//! A part of a list (pure).

use std::path::{Path, PathBuf};

use super::runs::Joined;
use super::{Heat, PageIndexList, Run};

/// What of a list is kept.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Pages of less heat are left out.
    pub min_heat: Heat,
    /// Only files at or below one of these paths are kept; empty keeps all.
    pub below: Vec<PathBuf>,
    /// Files at or below one of these paths are left out.
    pub exclude: Vec<PathBuf>,
    /// How many pages are kept at most, the hottest first.
    pub max_pages: Option<u64>,
}

impl Filter {
    /// Leaves out what is not to be kept. Files of which nothing is left go, too, and
    /// the others are put into the order of a list.
    pub fn apply(&self, list: &mut PageIndexList) {
        list.files.retain(|file| self.keeps(&file.identity.path));
        for file in &mut list.files {
            file.runs.retain(|run| run.heat >= self.min_heat);
        }
        list.files.retain(|file| !file.runs.is_empty());
        list.hottest_first();
        if let Some(max_pages) = self.max_pages {
            keep_hottest(list, max_pages);
        }
    }

    fn keeps(&self, path: &Path) -> bool {
        let below = |paths: &[PathBuf]| paths.iter().any(|it| path.starts_with(it));
        (self.below.is_empty() || below(&self.below)) && !below(&self.exclude)
    }
}

/// Keeps the hottest pages: all above some heat, and of that heat as many as there is
/// room for, in the order of files and pages.
fn keep_hottest(list: &mut PageIndexList, max_pages: u64) {
    let mut pages_by_heat = [0_u64; 1 << Heat::BITS];
    for run in list.files.iter().flat_map(|file| &file.runs) {
        pages_by_heat[usize::from(run.heat)] += u64::from(run.pages);
    }
    let mut room = max_pages;
    let mut least = Heat::MAX;
    while least > 0 && pages_by_heat[usize::from(least)] <= room {
        room -= pages_by_heat[usize::from(least)];
        least -= 1;
    }
    for file in &mut list.files {
        let mut kept = Joined::default();
        for Run { index, pages, heat } in std::mem::take(&mut file.runs) {
            let pages = match heat {
                heat if heat > least => u64::from(pages),
                heat if heat == least => room.min(pages.into()),
                _ => 0,
            };
            if heat == least {
                room -= pages;
            }
            if pages > 0 {
                kept.push(index, index + pages, heat);
            }
        }
        file.runs = kept.into_runs();
    }
    list.files.retain(|file| !file.runs.is_empty());
    list.hottest_first();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::merge::tests::{file, list};
    use super::*;

    type Files = Vec<(String, Vec<(u64, u32, Heat)>)>;

    fn filtered(filter: &Filter, mut list: PageIndexList) -> Files {
        filter.apply(&mut list);
        let runs = |run: &Run| (run.index, run.pages, run.heat);
        let file = |file: &super::super::HotFile| {
            let path = file.identity.path.display().to_string();
            (path, file.runs.iter().map(runs).collect())
        };
        list.files.iter().map(file).collect()
    }

    fn three() -> PageIndexList {
        list(vec![
            file("/data/a", 1, 1, &[(0, 4, 6), (10, 4, 1)]),
            file("/data/sub/b", 2, 1, &[(0, 8, 3)]),
            file("/database", 3, 1, &[(2, 2, 1)]),
        ])
    }

    #[test]
    fn paths_count_component_by_component() {
        let mut filter = Filter {
            below: vec!["/data".into(), "/none".into()],
            ..Filter::default()
        };
        let names = |filter: &Filter| -> Vec<String> {
            let files = filtered(filter, three()).into_iter();
            files.map(|(name, _)| name).collect()
        };
        assert_eq!(names(&filter), ["/data/a", "/data/sub/b"]);
        filter.exclude = vec!["/data/sub/b".into()];
        assert_eq!(names(&filter), ["/data/a"]);
        filter.below = Vec::new();
        assert_eq!(names(&filter), ["/data/a", "/database"]);
    }

    #[test]
    fn files_without_a_page_that_is_hot_enough_go() {
        let filter = Filter {
            min_heat: 2,
            ..Filter::default()
        };
        let kept = [
            ("/data/a".to_owned(), vec![(0, 4, 6)]),
            ("/data/sub/b".to_owned(), vec![(0, 8, 3)]),
        ];
        assert_eq!(filtered(&filter, three()), kept);
    }

    #[test]
    fn a_budget_keeps_the_hottest_pages() {
        let budget = |max_pages| {
            let filter = Filter {
                max_pages: Some(max_pages),
                ..Filter::default()
            };
            filtered(&filter, three())
        };
        assert_eq!(budget(0), []);
        assert_eq!(budget(3), [("/data/a".to_owned(), vec![(0, 3, 6)])]);
        let kept = [
            ("/data/a".to_owned(), vec![(0, 4, 6)]),
            ("/data/sub/b".to_owned(), vec![(0, 1, 3)]),
        ];
        assert_eq!(budget(5), kept);
        assert_eq!(budget(18), filtered(&Filter::default(), three()));
    }

    proptest! {
        #[test]
        fn a_budget_is_kept_and_used(
            runs in proptest::collection::vec((1..4_u64, 1..5_u32, 1..6_u8), 0..20),
            max_pages in 0..60_u64,
        ) {
            let mut end = 0;
            let runs: Vec<_> = runs.into_iter().map(|(gap, pages, heat)| {
                let index = end + gap;
                end = index + u64::from(pages);
                (index, pages, heat)
            }).collect();
            let half = runs.len() / 2;
            let whole = list(vec![
                file("/a", 1, 1, &runs[..half]),
                file("/b", 2, 1, &runs[half..]),
            ]);
            let mut kept = whole.clone();
            let filter = Filter { max_pages: Some(max_pages), ..Filter::default() };
            filter.apply(&mut kept);
            prop_assert_eq!(kept.pages(), max_pages.min(whole.pages()));
            let pages = |list: &PageIndexList| -> BTreeSet<(Heat, u64)> {
                let runs = list.files.iter().flat_map(|file| &file.runs);
                runs.flat_map(|run| (run.index..run.end()).map(|page| (run.heat, page))).collect()
            };
            let (kept, whole) = (pages(&kept), pages(&whole));
            prop_assert!(kept.is_subset(&whole));
            let coldest = kept.iter().next().map_or(Heat::MAX, |(heat, _)| *heat);
            prop_assert!(whole.difference(&kept).all(|(heat, _)| *heat <= coldest));
        }
    }
}
