//! The code of the numbers in a RUNS frame: Rice's, with a short way out for
//! numbers far above the rest.
//!
//! Gaps between randomly used pages are geometrically distributed, for which
//! Rice codes are within 2 % of the entropy; gaps between the parts of a file
//! are not, and cost about twice their logarithm.

use super::bits::{BitReader, BitWriter, MAX_BITS, low_bits};

/// The largest shift of a Rice code: no number of a list has more bits.
pub(super) const MAX_SHIFT: u32 = 51;

/// The quotient from which on an Elias gamma code replaces the unary one.
const ESCAPE: u32 = 8;

/// How the numbers of one column of a frame are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// All are the same and take no bits.
    Constant(u64),
    /// What a number is above `least` is cut into `shift` low bits, written
    /// as they are, and the quotient before them: so many ones and a zero.
    /// `limit` ones have no zero; from [`ESCAPE`] on the rest of the quotient
    /// follows.
    Rice {
        /// The smallest number there may be.
        least: u64,
        /// How many low bits are written as they are.
        shift: u32,
        /// How many ones a quotient has at most.
        limit: u32,
        /// How much above `least` a number may be.
        bound: u64,
    },
}

impl Code {
    /// The Rice code for numbers from `least` to `most`.
    pub(super) fn rice(shift: u32, least: u64, most: u64) -> Self {
        let bound = most - least;
        Self::Rice {
            least,
            shift,
            limit: (bound >> shift).min(u64::from(ESCAPE)) as u32,
            bound,
        }
    }

    /// Writes a number of the column. Always inline, and [`gamma`] never: what the
    /// compiler chooses takes a fifth more time for a list of random pages.
    #[inline(always)]
    pub(super) fn write(self, bits: &mut BitWriter<'_>, value: u64) {
        let Self::Rice {
            least,
            shift,
            limit,
            ..
        } = self
        else {
            return;
        };
        let value = value - least;
        let (quotient, low) = (value >> shift, value & low_bits(shift));
        let ones = quotient.min(u64::from(limit)) as u32;
        let unary = ones + u32::from(ones < limit);
        if ones < ESCAPE && unary + shift <= MAX_BITS {
            // What is usual, in one go.
            bits.put(low << unary | low_bits(ones), unary + shift);
        } else {
            bits.put(low_bits(ones), unary);
            if ones == ESCAPE {
                gamma(bits, quotient - u64::from(ESCAPE) + 1);
            }
            bits.put(low, shift);
        }
    }

    /// Reads a number of the column; `None` if it is too large.
    #[inline]
    pub(super) fn read(self, bits: &mut BitReader<'_>) -> Option<u64> {
        let (least, shift, limit, bound) = match self {
            Self::Constant(value) => return Some(value),
            Self::Rice {
                least,
                shift,
                limit,
                bound,
            } => (least, shift, limit, bound),
        };
        let word = bits.peek();
        let ones = word.trailing_ones().min(limit);
        let unary = ones + u32::from(ones < limit);
        if ones < ESCAPE && unary + shift <= MAX_BITS {
            bits.skip(unary + shift);
            let value = u64::from(ones) << shift | word >> unary & low_bits(shift);
            return (value <= bound).then(|| least + value);
        }
        bits.skip(unary);
        let mut quotient = u64::from(ones);
        if ones == ESCAPE {
            quotient += read_gamma(bits)? - 1;
        }
        if quotient > bound >> shift {
            return None;
        }
        let value = quotient << shift | bits.take(shift);
        (value <= bound).then(|| least + value)
    }
}

/// Writes a number from 1 on: as many zeros as it has bits after the first,
/// then the bits.
#[cold]
fn gamma(bits: &mut BitWriter<'_>, value: u64) {
    let zeros = value.ilog2();
    bits.put(1 << zeros, zeros + 1);
    bits.put(value & low_bits(zeros), zeros);
}

fn read_gamma(bits: &mut BitReader<'_>) -> Option<u64> {
    let zeros = bits.peek().trailing_zeros();
    if zeros > MAX_SHIFT {
        return None;
    }
    bits.skip(zeros + 1);
    Some(1 << zeros | bits.take(zeros))
}

/// What is to be known of a column to choose its code: the smallest and the
/// largest number, and of what they are above the smallest, how many there
/// are of each bit length and their sums.
#[derive(Clone)]
pub(super) struct Histogram {
    least: u64,
    largest: u64,
    lengths: [(u64, u64); 65],
}

impl Histogram {
    /// Of a column without numbers so far, whose smallest will be `least`.
    pub(super) fn new(least: u64) -> Self {
        Self {
            least,
            largest: least,
            lengths: [(0, 0); 65],
        }
    }

    /// Counts a number that occurs so many times.
    #[inline]
    pub(super) fn add(&mut self, value: u64, times: u64) {
        let above = value - self.least;
        let (count, sum) = &mut self.lengths[bit_length(above) as usize];
        *count += times;
        *sum += above * times;
        self.largest = self.largest.max(value);
    }

    /// The best code for numbers up to `most`, and about how many bits the
    /// column takes with it.
    pub(super) fn best(&self, most: u64) -> (Code, u64) {
        let range = self.largest - self.least;
        if range == 0 {
            return (Code::Constant(self.least), 0);
        }
        let (cost, shift) = (0..=bit_length(range).min(MAX_SHIFT))
            .map(|shift| (self.cost(shift), shift))
            .min()
            .unwrap_or_default();
        (Code::rice(shift, self.least, most), cost)
    }

    /// About how many bits the column takes: the remainders of the numbers of
    /// one bit length are taken to be half of what they can be.
    fn cost(&self, shift: u32) -> u64 {
        let mut bits = 0;
        for (length, &(count, sum)) in (0..).zip(&self.lengths) {
            let quotient_length = u32::saturating_sub(length, shift);
            let prefix = if quotient_length == 0 {
                count
            } else if quotient_length <= ESCAPE.ilog2() {
                count + ((sum - count * low_bits(shift) / 2) >> shift)
            } else {
                count * u64::from(ESCAPE + 2 * quotient_length - 1)
            };
            bits += prefix + count * u64::from(shift);
        }
        bits
    }
}

fn bit_length(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: u64 = (1 << 51) - 1;

    fn write(code: Code, values: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut bits = BitWriter::new(&mut bytes);
        for &value in values {
            code.write(&mut bits, value);
        }
        bits.finish();
        bytes
    }

    fn read(code: Code, bytes: &[u8], count: usize) -> Option<Vec<u64>> {
        let mut bits = BitReader::new(bytes);
        let values = (0..count).map(|_| code.read(&mut bits)).collect();
        bits.is_finished().then_some(values).flatten()
    }

    proptest! {
        #[test]
        fn every_shift_codes_every_number(
            shift in 0..=MAX_SHIFT,
            values in prop::collection::vec((0..51u32).prop_flat_map(|bits| 0..=BOUND >> bits), 0..50),
        ) {
            let code = Code::rice(shift, 0, BOUND);
            prop_assert_eq!(read(code, &write(code, &values), values.len()), Some(values));
        }

        #[test]
        fn every_bound_is_kept(shift in 0..8u32, least in 0..9u64, bound in 1..255u64, bytes: [u8; 32]) {
            let code = Code::rice(shift, least, least + bound);
            let all: Vec<_> = (least..=least + bound).collect();
            prop_assert_eq!(read(code, &write(code, &all), all.len()), Some(all));
            let mut bits = BitReader::new(&bytes);
            while let Some(value) = code.read(&mut bits).filter(|_| bits.peek() != 0) {
                prop_assert!((least..=least + bound).contains(&value));
            }
        }

        #[test]
        fn the_estimate_is_near_the_truth(
            scale in 1..1_000_000u64,
            values in prop::collection::vec(0.0001..1.0f64, 500..600),
        ) {
            // Geometrically distributed, as gaps of random pages are.
            let values: Vec<_> = values.iter().map(|u| (-u.ln() * scale as f64) as u64).collect();
            let mut histogram = Histogram::new(values.iter().copied().min().unwrap_or(0));
            for &value in &values {
                histogram.add(value, 1);
            }
            let (code, cost) = histogram.best(BOUND);
            let bits = 8 * write(code, &values).len() as u64;
            prop_assert!(cost.abs_diff(bits) * 20 < bits + 20 * 8, "{cost} estimated, {bits} used");
            for shift in 0..40 {
                let other = 8 * write(Code::rice(shift, 0, BOUND), &values).len() as u64;
                if !matches!(code, Code::Constant(_)) {
                    prop_assert!(bits * 100 <= other * 105, "shift {shift} has {other}, not {bits}");
                }
            }
        }
    }

    #[test]
    fn two_values_take_a_bit_each() {
        let code = Code::rice(0, 3, 4);
        assert_eq!(write(code, &[3, 4, 4, 3, 4, 3, 3, 4]), [0b1001_0110]);
    }

    #[test]
    fn a_number_above_the_bound_is_refused() {
        // Quotient 1, low bit 1: 3, where 2 is the most.
        let code = Code::rice(1, 5, 7);
        assert_eq!(code.read(&mut BitReader::new(&[0b11])), None);
        // Eight ones and then zeros without end.
        let code = Code::rice(0, 0, BOUND);
        assert_eq!(code.read(&mut BitReader::new(&[0xff])), None);
        // Eight ones, then the gamma code of 2^40, which times 2^20 is too much.
        let code = Code::rice(20, 0, BOUND);
        let bytes = [0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(code.read(&mut BitReader::new(&bytes)), None);
    }
}
