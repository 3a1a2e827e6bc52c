//! Lists as people and scripts write them: `PATH OFFSET LENGTH` a line (pure).

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::MAX_PATH;

/// How many bytes a line may have: each byte of a path may be written with four.
pub const MAX_LINE: usize = 4 * MAX_PATH + 64;

/// A line that names bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The file, as it is written.
    pub path: PathBuf,
    /// The bytes.
    pub bytes: Range<u64>,
}

/// Why a line is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Less than three fields.
    #[error("it is not PATH OFFSET LENGTH")]
    Fields,
    /// The second number from the right is none.
    #[error("its offset is not a number of bytes, such as 8192, 8k or 1M")]
    Offset,
    /// The last number is none.
    #[error("its length is not a number of bytes, such as 8192, 8k or 1M")]
    Length,
    /// Beyond 2^63 - 1.
    #[error("it ends beyond the largest offset of a file")]
    TooLarge,
    /// A backslash before something else.
    #[error(r"its path has a \ that begins none of \\, \n, \r, \t and \NNN (octal)")]
    Escape,
    /// A NUL, or too long.
    #[error("its path has a NUL or more than {MAX_PATH} bytes")]
    Path,
}

/// Parses a line, given without its end. Returns nothing for one that is empty or
/// begins with `#`.
///
/// The numbers are the last two fields, so that a path may have blanks in it. Fields
/// are separated by blanks or tabs. Sizes may have a suffix: `k`, `M`, `G`, `T` or `P`,
/// also as in `KiB`, all of them powers of 1024.
///
/// # Errors
/// What is wrong with the line.
pub fn parse(line: &[u8]) -> Result<Option<Line>, Malformed> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let (rest, length) = split_last(line).ok_or(Malformed::Fields)?;
    let (path, offset) = split_last(rest).ok_or(Malformed::Fields)?;
    let offset = size(offset).ok_or(Malformed::Offset)?;
    let length = size(length).ok_or(Malformed::Length)?;
    let end = offset.checked_add(length);
    let end = end.filter(|end| *end <= i64::MAX as u64);
    let end = end.ok_or(Malformed::TooLarge)?;
    let path = unescape(path)?;
    if path.len() > MAX_PATH || path.contains(&0) {
        return Err(Malformed::Path);
    }
    Ok(Some(Line {
        path: OsString::from_vec(path).into(),
        bytes: offset..end,
    }))
}

/// Returns the pages that the bytes lie in, each once: page indexes, sorted, neither
/// overlapping nor adjacent.
pub fn pages(mut bytes: Vec<Range<u64>>, page_size: u32) -> Vec<Range<u64>> {
    let page_size = u64::from(page_size);
    bytes.retain(|range| !range.is_empty());
    bytes.sort_unstable_by_key(|range| range.start);
    let mut pages: Vec<Range<u64>> = Vec::new();
    for range in bytes {
        let (start, end) = (range.start / page_size, range.end.div_ceil(page_size));
        match pages.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => pages.push(start..end),
        }
    }
    pages
}

/// Splits off the last field.
fn split_last(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_end();
    let blank = line.iter().rposition(u8::is_ascii_whitespace)?;
    let (rest, last) = line.split_at(blank);
    let rest = rest.trim_ascii_end();
    (!rest.is_empty()).then_some((rest, last.trim_ascii_start()))
}

fn size(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
    let suffix = match suffix {
        [unit, b'i', b'B'] => &[*unit],
        suffix => suffix,
    };
    let shift = match suffix {
        b"" => 0,
        b"k" | b"K" => 10,
        b"M" => 20,
        b"G" => 30,
        b"T" => 40,
        b"P" => 50,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn unescape(path: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            plain.push(*first);
            continue;
        }
        let (byte, length) = match rest {
            [b'\\', ..] => (b'\\', 1),
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 3)
            }
            _ => return Err(Malformed::Escape),
        };
        plain.push(byte);
        rest = &rest[length..];
    }
    Ok(plain)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges are the answer")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(path: &str, bytes: Range<u64>) -> Result<Option<Line>, Malformed> {
        let path = path.into();
        Ok(Some(Line { path, bytes }))
    }

    #[test]
    fn the_numbers_are_the_last_two_fields() {
        assert_eq!(parse(b"/a 0 4096"), line("/a", 0..4096));
        assert_eq!(parse(b"  /a\t4k \t 1M \r"), line("/a", 4096..1_052_672));
        assert_eq!(
            parse(b"/with  blanks 7 8 2KiB 0"),
            line("/with  blanks 7 8", 2048..2048)
        );
        assert_eq!(parse(b"relative/file 1G 2T"), {
            line("relative/file", 1 << 30..(1 << 30) + (2 << 40))
        });
    }

    #[test]
    fn empty_lines_and_comments_are_skipped() {
        for text in [&b""[..], b" \t\r", b"# /a 0 4096", b"#"] {
            assert_eq!(parse(text), Ok(None));
        }
    }

    #[test]
    fn any_path_can_be_written() {
        assert_eq!(parse(br"/a\nb\\n\t\040\r 0 1"), line("/a\nb\\n\t \r", 0..1));
        let path = OsString::from_vec(b"/\xff\x80".to_vec());
        let parsed = parse(br"/\377\200 0 1").expect("a line").expect("a line");
        assert_eq!(parsed.path.into_os_string(), path);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            (&b"/a"[..], Malformed::Fields),
            (b"0 4096", Malformed::Fields),
            (b"/a x 4096", Malformed::Offset),
            (b"/a -1 4096", Malformed::Offset),
            (b"/a 0 4kB", Malformed::Length),
            (b"/a 0 0x10", Malformed::Length),
            (b"/a 0 99999999999999999999", Malformed::Length),
            (b"/a 9223372036854775807 1", Malformed::TooLarge),
            (b"/a 0 9999999P", Malformed::Length),
            (br"/a\x41 0 1", Malformed::Escape),
            (br"/a\ 0 1", Malformed::Escape),
            (br"/a\400 0 1", Malformed::Escape),
            (br"/a\000 0 1", Malformed::Path),
        ] {
            assert_eq!(parse(text), Err(why), "{}", text.escape_ascii());
        }
        let long = format!("/{} 0 1", "a".repeat(MAX_PATH));
        assert_eq!(parse(long.as_bytes()), Err(Malformed::Path));
    }

    #[test]
    fn bytes_are_rounded_out_to_pages() {
        let bytes = vec![8192..8193, 0..1, 4095..4097, 20_480..20_480, 50_000..50_001];
        assert_eq!(pages(bytes, 4096), [0..3, 12..13]);
        let all = vec![0..i64::MAX as u64];
        assert_eq!(pages(all, 4096), [0..1 << 51]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(Some(line)) = parse(&text) {
                prop_assert!(line.bytes.start <= line.bytes.end);
            }
        }

        #[test]
        fn an_escaped_path_is_read_back(
            path in proptest::collection::vec(1..=255_u8, 1..40),
            offset in 0..1_u64 << 62,
            length in 0..1_u64 << 62,
        ) {
            let escaped: String = path.iter().map(|byte| format!("\\{byte:03o}")).collect();
            let text = format!("{escaped} {offset} {length}");
            let parsed = parse(text.as_bytes()).expect("a line").expect("a line");
            prop_assert_eq!(parsed.path.into_os_string().into_vec(), path);
            prop_assert_eq!(parsed.bytes, offset..offset + length);
        }

        #[test]
        fn each_byte_lies_in_a_page(
            bytes in proptest::collection::vec((0..300_u64, 0..40_u64), 0..10),
        ) {
            let bytes: Vec<_> = bytes.iter().map(|(start, length)| *start..start + length).collect();
            let pages = pages(bytes.clone(), 16);
            let named: std::collections::BTreeSet<u64> =
                bytes.into_iter().flatten().map(|byte| byte / 16).collect();
            let listed: Vec<u64> = pages.iter().cloned().flatten().collect();
            prop_assert_eq!(listed, named.into_iter().collect::<Vec<_>>());
            prop_assert!(pages.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
