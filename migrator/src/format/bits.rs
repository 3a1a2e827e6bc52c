//! Bits packed into bytes, a word at a time. The first bit is the least
//! significant one of the first byte.

/// How many bits one [`BitWriter::put`] or [`BitReader::take`] may have: what
/// is left of a 64-bit word that begins inside a byte.
pub(super) const MAX_BITS: u32 = 57;

/// Appends bits to a byte vector.
pub(super) struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    word: u64,
    filled: u32,
}

impl<'a> BitWriter<'a> {
    /// Begins behind what the vector holds.
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self {
            bytes,
            word: 0,
            filled: 0,
        }
    }

    /// Appends the `bits` low bits of `value`, which has no others set.
    #[inline]
    pub(super) fn put(&mut self, value: u64, bits: u32) {
        debug_assert!(bits <= MAX_BITS && value >> bits == 0);
        self.word |= value << self.filled;
        self.filled += bits;
        if self.filled >= u64::BITS {
            self.bytes.extend_from_slice(&self.word.to_le_bytes());
            self.filled -= u64::BITS;
            // What did not fit any more; all of it was shifted in before when
            // `filled` is 0, and then this shifts all of it out again.
            self.word = value >> (bits - self.filled);
        }
    }

    /// Fills the last byte with zeros.
    pub(super) fn finish(self) {
        let used = self.filled.div_ceil(8) as usize;
        self.bytes
            .extend_from_slice(&self.word.to_le_bytes()[..used]);
    }
}

/// Takes bits from a byte slice. Behind its end there are zeros without end;
/// [`BitReader::is_finished`] tells that it was left.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    /// Begins at the first bit of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next bits, at least [`MAX_BITS`] of them, without taking them.
    #[inline]
    pub(super) fn peek(&self) -> u64 {
        let rest = self.bytes.get(self.position / 8..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => rest
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        word >> (self.position % 8)
    }

    /// Goes on by so many bits.
    #[inline]
    pub(super) fn skip(&mut self, bits: u32) {
        self.position += bits as usize;
    }

    /// Takes at most [`MAX_BITS`] bits.
    #[inline]
    pub(super) fn take(&mut self, bits: u32) -> u64 {
        let value = self.peek() & low_bits(bits);
        self.skip(bits);
        value
    }

    /// Whether all bytes were used, none beyond them, and the rest of the
    /// last one is zero.
    pub(super) fn is_finished(&self) -> bool {
        self.position.div_ceil(8) == self.bytes.len() && self.peek() == 0
    }
}

/// A mask of at most 63 bits.
#[inline]
pub(super) fn low_bits(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_come_back(values in prop::collection::vec((any::<u64>(), 0..=MAX_BITS), 0..200)) {
            let values: Vec<_> = values.into_iter().map(|(v, n)| (v & low_bits(n), n)).collect();
            let mut bytes = Vec::new();
            let mut writer = BitWriter::new(&mut bytes);
            for &(value, bits) in &values {
                writer.put(value, bits);
            }
            writer.finish();
            let total: u32 = values.iter().map(|(_, bits)| bits).sum();
            prop_assert_eq!(bytes.len(), total.div_ceil(8) as usize);

            let mut reader = BitReader::new(&bytes);
            for &(value, bits) in &values {
                prop_assert_eq!(reader.take(bits), value);
            }
            prop_assert!(reader.is_finished());
        }
    }

    #[test]
    fn leaving_the_end_is_noticed() {
        let mut reader = BitReader::new(&[1]);
        assert_eq!(reader.take(57), 1);
        assert_eq!(reader.take(57), 0);
        assert!(!reader.is_finished());
        assert!(
            !BitReader::new(&[0]).is_finished(),
            "an unused byte is left"
        );
        assert!(BitReader::new(&[]).is_finished());
    }

    #[test]
    fn padding_must_be_zero() {
        let mut reader = BitReader::new(&[0b1000_0001]);
        reader.take(3);
        assert!(!reader.is_finished());
    }
}
