//! The count of a page: how often and how lately it was used (pure).

use crate::pagelist::{self, Heat};

/// A use, in the unit that counts have.
pub(super) const USE: u16 = 1 << 8;
/// The count of a page: 0 if it was never used.
pub(super) const COUNT: u16 = AGAIN - 1;
/// The page was used more than once.
pub(super) const AGAIN: u16 = 1 << 15;
/// What is left of a use after ten epochs; below, [`HeatMap::known_hot`] sees nothing.
pub(super) const SOMETHING: u16 = USE / 16;
/// A page of which so much is left. Its count never falls to 0.
pub(super) fn aged(page: u16, left: u32) -> u16 {
    let count = ((u32::from(page & COUNT) * left) >> 16) as u16;
    page & AGAIN | count.max((page & COUNT).min(1))
}

/// The page after another use, or several.
pub(super) fn used(page: u16, again: bool, several: u16) -> u16 {
    let ever = if again || page != 0 { AGAIN } else { 0 };
    let more = if again { several * USE } else { USE };
    page & AGAIN | ever | (page & COUNT).saturating_add(more).min(COUNT)
}

/// In which order pages are remembered: by heat, but for those of whose use nothing
/// is left.
pub(super) fn warmth(page: u16) -> usize {
    match page & COUNT {
        0..SOMETHING => 0,
        _ => heat(page).into(),
    }
}

/// Heat of a page that was used.
pub(super) fn heat(page: u16) -> Heat {
    if page & AGAIN == 0 {
        return pagelist::ONCE;
    }
    // The binary logarithm with two digits behind the point, as a floating-point
    // number has it: exponent and the first bits of the mantissa.
    let count = u32::from(page & COUNT).max(1) << 2;
    let exponent = count.ilog2() - 2;
    let mantissa = count >> exponent & 3;
    // At most 14 * 4 + 3 more, so it fits.
    pagelist::AGAIN + (exponent * 4 + mantissa) as Heat
}

/// Returns the page that has this heat: the least count of those that have. Nothing for
/// a heat that no page has that was seen to be used.
///
/// How lately a page was used that was used once is not in its heat: it is one of the
/// first to be forgotten.
pub(super) fn page_of(heat: Heat) -> Option<u16> {
    match heat {
        0..pagelist::ONCE => None,
        pagelist::ONCE..pagelist::AGAIN => Some(SOMETHING),
        pagelist::AGAIN.. => {
            let steps = u32::from(heat - pagelist::AGAIN);
            let count = ((4 + steps % 4) << (steps / 4).min(15)).div_ceil(4);
            Some(AGAIN | count.min(COUNT.into()) as u16)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heat_leads_back_to_a_page_of_that_heat() {
        for page in (1..=COUNT).flat_map(|count| [count, AGAIN | count]) {
            let back = page_of(heat(page)).expect("a page");
            assert_eq!(heat(back), heat(page), "{page}");
            assert!(back <= page || page & AGAIN == 0, "{page} {back}");
        }
        assert_eq!(page_of(pagelist::REFERENCED), None);
        assert_eq!(page_of(Heat::MAX), Some(AGAIN | COUNT));
    }

    #[test]
    fn four_steps_of_heat_are_half_the_count() {
        for count in [4, 5, 6, 7, 100, USE, 16_000] {
            let [one, two] = [count, 2 * count].map(|count| heat(AGAIN | count));
            assert_eq!(two, one + 4, "{count}");
        }
        assert_eq!(heat(AGAIN | COUNT), 65);
    }
}
