//! The header, the frames, and the numbers in them.

use super::{FormatError, PAGE_SHIFTS, VERSION};

/// Not text at its first byte, and a line end that a transfer in text mode
/// changes (the idea is PNG's).
pub(super) const MAGIC: [u8; 6] = *b"\x89PIL\r\n";

/// Magic, version, page shift and checksum.
pub(super) const HEADER_BYTES: usize = MAGIC.len() + 2 + CHECKSUM_BYTES;

/// Kind and payload length.
pub(super) const FRAME_HEAD_BYTES: usize = 3;

/// A CRC-32C.
pub(super) const CHECKSUM_BYTES: usize = 4;

/// Frame kinds. Those from [`kind::OPTIONAL`] on may be skipped by a reader
/// that does not know them.
pub(super) mod kind {
    /// Begins a file.
    pub(crate) const FILE: u8 = 1;
    /// Runs of the file begun last.
    pub(crate) const RUNS: u8 = 2;
    /// Ends the list.
    pub(crate) const END: u8 = 3;
    /// The first kind that readers skip if they don't know it.
    pub(crate) const OPTIONAL: u8 = 0x80;
}

/// The header of a list, and its checksum.
pub(super) fn header(page_shift: u8) -> ([u8; HEADER_BYTES], u32) {
    let mut bytes = [0; HEADER_BYTES];
    let (fields, checksum) = bytes.split_at_mut(HEADER_BYTES - CHECKSUM_BYTES);
    fields[..MAGIC.len()].copy_from_slice(&MAGIC);
    fields[MAGIC.len()] = VERSION;
    fields[MAGIC.len() + 1] = page_shift;
    let crc = crc32c::crc32c(fields);
    checksum.copy_from_slice(&crc.to_le_bytes());
    (bytes, crc)
}

/// Checks a header that begins with the magic; gives page shift and checksum.
pub(super) fn read_header(bytes: &[u8; HEADER_BYTES]) -> Result<(u8, u32), FormatError> {
    let (fields, checksum) = bytes.split_at(HEADER_BYTES - CHECKSUM_BYTES);
    let crc = crc32c::crc32c(fields);
    if checksum != crc.to_le_bytes() {
        return Err(FormatError::Checksum { at: 0 });
    }
    let (version, page_shift) = (fields[MAGIC.len()], fields[MAGIC.len() + 1]);
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    if !PAGE_SHIFTS.contains(&page_shift) {
        let why = "the page size is none of 4 KiB to 256 KiB";
        return Err(FormatError::Malformed { at: 0, why });
    }
    Ok((page_shift, crc))
}

/// Puts a frame around a payload: `frame` holds room for the head and then
/// the payload, `crc` is the checksum before it and becomes that of the frame.
pub(super) fn seal(frame: &mut Vec<u8>, kind: u8, length: u16, crc: &mut u32) {
    let [low, high] = length.to_le_bytes();
    frame[..FRAME_HEAD_BYTES].copy_from_slice(&[kind, low, high]);
    *crc = crc32c::crc32c_append(*crc, frame);
    frame.extend_from_slice(&crc.to_le_bytes());
}

/// Appends a number in LEB128.
pub(crate) fn put_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Takes a number in LEB128 off the front; `None` if the bytes end in it or
/// it has more than 64 bits.
pub(crate) fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = take_byte(bytes)?;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        value |= part << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Takes a byte off the front.
pub(super) fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (&byte, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(byte)
}

/// A signed number as an unsigned one that is small where it is near zero.
pub(super) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

/// What [`zigzag`] was made of.
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, value);
            put_number(&mut bytes, zigzag(signed));
            let mut rest = &bytes[..];
            prop_assert_eq!(take_number(&mut rest), Some(value));
            prop_assert_eq!(take_number(&mut rest).map(unzigzag), Some(signed));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn numbers_end_at_64_bits() {
        let mut largest = [0xff; 10];
        largest[9] = 1;
        assert_eq!(take_number(&mut &largest[..]), Some(u64::MAX));
        largest[9] = 2;
        assert_eq!(take_number(&mut &largest[..]), None);
        assert_eq!(take_number(&mut &[0x80; 11][..]), None);
        assert_eq!(take_number(&mut &[0x80][..]), None);
    }
}
