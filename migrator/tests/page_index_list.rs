//! The bytes of a page index list, from outside: what is written comes back,
//! what is damaged is refused, and sizes stay within the goals.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use migrator::format::{
    self, FormatError, MAX_FILES, MAX_RUNS, Reader, Record, Writer, read_list, write_atomically,
};
use migrator::pagelist::{FileIdentity, Heat, HotFile, Invalid, PageIndexList, Run, page_limit};
use proptest::prelude::*;

const HEADER: usize = 12;

fn encode(list: &PageIndexList) -> Vec<u8> {
    try_encode(list).expect("the list is valid")
}

fn try_encode(list: &PageIndexList) -> Result<Vec<u8>, FormatError> {
    let mut writer = Writer::new(Vec::new(), list.page_size)?;
    for file in &list.files {
        writer.file(file)?;
    }
    writer.finish()
}

fn file(path: impl Into<PathBuf>, runs: Vec<Run>) -> HotFile {
    HotFile {
        identity: FileIdentity {
            path: path.into(),
            device: 66_306,
            inode: 123_456_789,
            size: 1 << 30,
            mtime_ns: 1_700_000_000_123_456_789,
        },
        runs,
    }
}

fn list(files: Vec<HotFile>) -> PageIndexList {
    PageIndexList {
        page_size: 4096,
        files,
    }
}

fn run(index: u64, pages: u32, heat: Heat) -> Run {
    Run { index, pages, heat }
}

/// The lists of the fixture and of the documentation's example.
fn fixture_list() -> PageIndexList {
    let mut random = Random(1);
    let every_heat = (1..=255).map(|heat| run(u64::from(heat) * 3, 2, heat));
    let last = page_limit(16_384) - 7;
    let far = [0, 100, 1 << 20, 1 << 40, last].map(|index| run(index, 7, 1));
    let long = [run(0, u32::MAX, 2), run(u64::from(u32::MAX), 5, 2)];
    let mut sparse = file("/data/sparse.db", random.pages(0.1, 20_000, |_| 1));
    sparse.identity.mtime_ns = -1;
    sparse.identity.device = u64::MAX;
    PageIndexList {
        page_size: 16_384,
        files: vec![
            sparse,
            file("/data/every heat", every_heat.collect()),
            file("/data/far", far.into()),
            file("/data/long", long.into()),
            file("/data/\u{fc}/empty", Vec::new()),
        ],
    }
}

fn example_list() -> PageIndexList {
    let mut index = file(
        "/srv/db/index",
        vec![run(0, 4, 9), run(12, 1, 9), run(13, 2, 1), run(90, 1, 9)],
    );
    index.identity.size = 380_000;
    list(vec![index, file("/srv/db/data", vec![run(0, 262_144, 1)])])
}

/// xorshift64*, so that the sizes below are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Each page of `0..pages` with a probability, joined to runs.
    fn pages(&mut self, share: f64, pages: u64, heat: impl Fn(f64) -> Heat) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for index in 0..pages {
            if self.next() < share {
                let page = run(index, 1, heat(self.next()));
                match runs.last().and_then(|last| last.join(page)) {
                    Some(longer) => *runs.last_mut().expect("it was joined") = longer,
                    None => runs.push(page),
                }
            }
        }
        runs
    }
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    prop::collection::vec(
        prop::collection::vec(
            any::<u8>().prop_filter("/ and NUL", |b| !b"/\0".contains(b)),
            1..12,
        )
        .prop_filter(". and ..", |name| name != b"." && name != b".."),
        1..5,
    )
    .prop_map(|names| {
        let bytes = names.into_iter().flat_map(|name| [b"/".to_vec(), name]);
        std::ffi::OsString::from_vec(bytes.flatten().collect()).into()
    })
}

/// Sorted runs that are joined where they can be, of widely varying scales.
fn any_runs() -> impl Strategy<Value = Vec<Run>> {
    let number = |bits: u32| (0..=bits).prop_flat_map(|bits| 0..1u64 << bits);
    let runs = (0..40u32, 0..32u32, 1..=255u8).prop_flat_map(move |(gap, length, heat)| {
        prop::collection::vec((number(gap), number(length), 1..=heat), 0..300)
    });
    runs.prop_map(|runs| {
        let mut end = 0;
        let mut joined: Vec<Run> = Vec::new();
        for (gap, length, heat) in runs {
            let next = run(end + gap, length as u32 + 1, heat);
            end = next.end();
            match joined.last().and_then(|last| last.join(next)) {
                Some(longer) => *joined.last_mut().expect("it was joined") = longer,
                None => joined.push(next),
            }
        }
        joined
    })
}

fn any_list() -> impl Strategy<Value = PageIndexList> {
    let file = (any_path(), any::<(u64, u64, u64, i64)>(), any_runs()).prop_map(
        |(path, (device, inode, size, mtime_ns), runs)| HotFile {
            identity: FileIdentity {
                path,
                device,
                inode,
                size,
                mtime_ns,
            },
            runs,
        },
    );
    (12..=18u32, prop::collection::vec(file, 0..6)).prop_map(|(shift, files)| PageIndexList {
        page_size: 1 << shift,
        files,
    })
}

proptest! {
    #[test]
    fn any_list_comes_back(list in any_list()) {
        prop_assert_eq!(read_list(&encode(&list)[..]).expect("it was just written"), list);
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read_list(&bytes[..]).is_err());
    }

    /// With the right checksums, so that what is behind them meets the bytes.
    #[test]
    fn random_frames_do_no_harm(
        shift in 10..20u8,
        frames in prop::collection::vec(
            (1..4u8, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
    ) {
        let _ = read_list(&sealed(shift, &frames)[..]);
    }

    /// A valid head, so that the codes meet random bits.
    #[test]
    fn random_bits_do_no_harm(
        base in 0..100u8, items in 1..100u8, gap in 0..53u8, length in 0..53u8,
        heats in prop::collection::vec(1..=255u8, 2..20), rank in 0..9u8,
        bits in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        let mut payload = vec![base, items, gap, base, length, items, heats.len() as u8];
        payload.extend(&heats);
        payload.extend([rank, 0]);
        payload.extend(&bits);
        let bytes = sealed(12, &[(1, b"\x01\x01\x01\x01/f".to_vec()), (2, payload)]);
        if let Err(error) = read_list(&bytes[..]) {
            let expected = matches!(error, FormatError::Truncated { .. } | FormatError::Malformed { .. });
            prop_assert!(expected, "{error}");
        }
    }
}

/// A list of any frames with the right checksums, as the documentation says.
fn sealed(shift: u8, frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\x89PIL\r\n\x01".to_vec();
    bytes.push(shift);
    let mut crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    for (kind, payload) in frames {
        let begin = bytes.len();
        bytes.push(*kind);
        bytes.extend((payload.len() as u16).to_le_bytes());
        bytes.extend(payload);
        crc = crc32c::crc32c_append(crc, &bytes[begin..]);
        bytes.extend(crc.to_le_bytes());
    }
    bytes
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = encode(&example_list());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = read_list(&damaged[..]).expect_err("a flipped bit");
        let expected = match bit / 8 {
            0..6 => matches!(error, FormatError::NotAList),
            6..HEADER => matches!(error, FormatError::Checksum { at: 0 }),
            // A flipped length may reach beyond the end.
            _ => matches!(
                error,
                FormatError::Checksum { .. } | FormatError::Truncated { .. }
            ),
        };
        assert!(expected, "bit {bit}: {error}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = encode(&example_list());
    for length in 0..bytes.len() {
        match read_list(&bytes[..length]) {
            Err(FormatError::Truncated { at }) => assert_eq!(at, length as u64),
            other => panic!("{length} of {} bytes: {other:?}", bytes.len()),
        }
    }
}

/// The checksum of a frame goes on from the one before it.
#[test]
fn frames_cannot_be_dropped_doubled_or_swapped() {
    let file = |n: u8| (1, vec![1, 1, 1, 1, b'/', n]);
    let end = (3, vec![2, 0]);
    let bytes = sealed(12, &[file(b'a'), file(b'b'), end]);
    assert_eq!(read_list(&bytes[..]).expect("it is valid").files.len(), 2);
    let frame = 3 + 6 + 4;
    let (a, b, end) = (
        HEADER..HEADER + frame,
        HEADER + frame..HEADER + 2 * frame,
        HEADER + 2 * frame..,
    );
    for frames in [
        vec![b.clone(), a.clone()],
        vec![a.clone(), a.clone()],
        vec![a.clone(), b.clone(), b.clone()],
        vec![b.clone()],
    ] {
        let mut damaged = bytes[..HEADER].to_vec();
        for part in frames {
            damaged.extend(&bytes[part]);
        }
        damaged.extend(&bytes[end.clone()]);
        assert!(matches!(
            read_list(&damaged[..]),
            Err(FormatError::Checksum { .. })
        ));
    }
}

#[test]
fn a_text_mode_transfer_is_noticed() {
    let bytes = encode(&example_list());
    let mut unix = bytes.clone();
    unix.remove(4);
    let mut dos = bytes.clone();
    dos.insert(5, b'\r');
    let mut seven_bit = bytes;
    seven_bit[0] &= 0x7f;
    for damaged in [unix, dos, seven_bit, b"{}".to_vec()] {
        assert!(matches!(
            read_list(&damaged[..]),
            Err(FormatError::NotAList)
        ));
    }
}

#[test]
fn what_follows_the_end_is_an_error_in_a_file_only() {
    let mut bytes = encode(&example_list());
    let length = bytes.len() as u64;
    bytes.extend(b"GET /");
    match read_list(&bytes[..]) {
        Err(FormatError::Malformed { at, .. }) => assert_eq!(at, length),
        other => panic!("{other:?}"),
    }

    let mut reader = Reader::new(&bytes[..]).expect("the header is valid");
    while reader.record().expect("the list is valid").is_some() {}
    assert!(matches!(reader.record(), Ok(None)));
    assert_eq!(reader.into_inner(), b"GET /");
}

/// Gives the bytes one at a time and counts them.
struct Drip<'a>(&'a [u8], std::rc::Rc<std::cell::Cell<usize>>);

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1);
        self.1.set(self.1.get() + length);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn a_record_comes_with_the_last_byte_of_its_frame() {
    let list = example_list();
    let mut writer = Writer::new(Vec::new(), list.page_size).expect("a Vec takes everything");
    writer.file(&list.files[0]).expect("the file is valid");
    let first = writer.finish().expect("a Vec takes everything").len() - (3 + 2 + 4);

    let bytes = encode(&list);
    let taken = std::rc::Rc::new(std::cell::Cell::new(0));
    let mut reader = Reader::new(Drip(&bytes, taken.clone())).expect("the header is valid");
    assert_eq!(reader.page_size(), 4096);
    assert_eq!(taken.get(), HEADER);
    let identity = list.files[0].identity.clone();
    assert_eq!(
        reader.record().expect("valid"),
        Some(Record::File(identity))
    );
    let runs = Record::Runs(&list.files[0].runs);
    assert_eq!(reader.record().expect("valid"), Some(runs));
    assert_eq!(taken.get(), first);
}

#[test]
fn the_versions_and_page_sizes_of_others_are_named() {
    let future = |version: u8| {
        let mut bytes = b"\x89PIL\r\n".to_vec();
        bytes.extend([version, 12]);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    };
    match read_list(&future(2)[..]) {
        Err(FormatError::Version(2)) => {}
        other => panic!("{other:?}"),
    }
    for shift in [0, 11, 19, 63, 64, 255] {
        let error = read_list(&sealed(shift, &[])[..]).expect_err("no page size");
        assert!(
            matches!(error, FormatError::Malformed { at: 0, .. }),
            "{error}"
        );
    }
    for size in [0, 1, 2048, 4097, 1 << 19, u32::MAX] {
        let error = Writer::new(Vec::new(), size).err().expect("no page size");
        assert!(
            matches!(error, FormatError::Invalid(Invalid::PageSize(_))),
            "{error}"
        );
    }
    assert!(format::check_page_size(4096, 4096).is_ok());
    let error = format::check_page_size(16_384, 4096).expect_err("they differ");
    assert!(matches!(
        error,
        FormatError::PageSize {
            list: 16_384,
            host: 4096
        }
    ));
}

#[test]
fn unknown_frames_are_skipped_only_if_optional() {
    let frames = |kind| [(kind, b"whatever".to_vec()), (3, vec![0, 0])];
    let read = |kind| read_list(&sealed(12, &frames(kind))[..]);
    assert_eq!(read(0x80).expect("optional"), list(Vec::new()));
    assert_eq!(read(0xff).expect("optional"), list(Vec::new()));
    for kind in [0, 4, 0x7f] {
        assert!(matches!(
            read(kind),
            Err(FormatError::Malformed { at: 12, .. })
        ));
    }
    let endless = vec![(0x80, Vec::new()); 70_000];
    assert!(matches!(
        read_list(&sealed(12, &endless)[..]),
        Err(FormatError::TooLarge { .. })
    ));
}

#[test]
fn malformed_frames_with_right_checksums_are_refused() {
    let file = (1, b"\x01\x01\x01\x01/f".to_vec());
    let end = |files, pages| (3, vec![files, pages]);
    // Base, items, constant gap and length, one heat.
    let runs =
        |base, items, gap, length, heat| (2, vec![base, items, 0xff, gap, 0xff, length, 1, heat]);
    let valid = [file.clone(), runs(5, 3, 1, 0, 1), end(1, 3)];
    let read = read_list(&sealed(12, &valid)[..]).expect("it is valid");
    assert_eq!(
        read.files[0].runs,
        [run(5, 1, 1), run(7, 1, 1), run(9, 1, 1)]
    );

    let two = |frame| vec![file.clone(), frame];
    let last = page_limit(4096) - 1;
    let at_limit = |index| {
        let mut payload = Vec::new();
        put_number(&mut payload, index);
        payload.extend([1, 0, 0, 0xff, 0, 1, 1]);
        vec![file.clone(), (2, payload), end(1, 1)]
    };
    assert!(read_list(&sealed(12, &at_limit(last))[..]).is_ok());
    for (name, frames) in [
        ("runs without a file", vec![runs(5, 3, 1, 0, 1)]),
        ("no runs", two(runs(5, 0, 1, 0, 1))),
        ("no heats", two((2, vec![5, 1, 0, 0, 0, 0, 0]))),
        ("heat 0", two(runs(5, 3, 1, 0, 0))),
        ("a shift of 52", two((2, vec![5, 1, 52, 0, 0xff, 0, 1, 1]))),
        (
            "an unused byte",
            two((2, vec![5, 1, 0, 0, 0xff, 0, 1, 1, 0])),
        ),
        ("a missing byte", two((2, vec![5, 2, 7, 0, 0xff, 0, 1, 1]))),
        (
            "17 bits of items",
            two((2, vec![0, 0x81, 0x80, 1, 0xff, 1, 0xff, 0, 1, 1])),
        ),
        ("a run beyond the limit", at_limit(last + 1)),
        ("a base at the end of 64 bits", at_limit(u64::MAX)),
        (
            "overlapping frames",
            vec![file.clone(), runs(5, 3, 1, 0, 1), runs(9, 1, 1, 0, 1)],
        ),
        ("an empty FILE frame", vec![(1, Vec::new())]),
        ("too few files", vec![end(1, 0)]),
        (
            "too few pages",
            vec![file.clone(), runs(5, 3, 1, 0, 1), end(1, 4)],
        ),
        ("a long END frame", vec![(3, vec![0, 0, 0])]),
    ] {
        let error = read_list(&sealed(12, &frames)[..]).expect_err(name);
        assert!(
            matches!(error, FormatError::Malformed { .. }),
            "{name}: {error}"
        );
    }
}

fn put_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[test]
fn paths_that_lead_elsewhere_are_refused_by_both_sides() {
    let long = format!("/{}", "x".repeat(4096));
    for path in [
        "",
        "/",
        "etc",
        "../../etc/shadow",
        "/a/../b",
        "/.",
        "/a//b",
        "/a/",
        "/a\0b",
        &long,
    ] {
        let error = try_encode(&list(vec![file(path, Vec::new())])).expect_err(path);
        assert!(
            matches!(error, FormatError::Invalid(Invalid::Path { .. })),
            "{error}"
        );
        let mut payload = vec![1, 1, 1, 1];
        payload.extend(path.as_bytes());
        let error = read_list(&sealed(12, &[(1, payload)])[..]).expect_err(path);
        assert!(
            matches!(error, FormatError::Invalid(Invalid::Path { .. })),
            "{error}"
        );
    }
    let longest = format!("/{}", "x".repeat(4095));
    let list = list(vec![file(longest, Vec::new())]);
    assert_eq!(read_list(&encode(&list)[..]).expect("it is valid"), list);
}

#[test]
fn runs_that_make_no_sense_are_not_written() {
    for runs in [
        vec![run(5, 0, 1)],
        vec![run(5, 1, 0)],
        vec![run(5, 2, 1), run(6, 1, 1)],
        vec![run(5, 1, 1), run(4, 1, 1)],
        vec![run(page_limit(4096), 1, 1)],
        vec![run(u64::MAX, u32::MAX, 1)],
    ] {
        let error = try_encode(&list(vec![file("/f", runs)])).expect_err("invalid runs");
        assert!(
            matches!(error, FormatError::Invalid(Invalid::Run { .. })),
            "{error}"
        );
    }
}

/// A few bytes that stand for as many runs as there may be, and then more.
#[test]
fn many_runs_of_few_bytes_hit_the_limit() {
    // 2^14 runs of one page, every second page.
    let mut payload = Vec::new();
    let mut frames = vec![(1, b"\x01\x01\x01\x01/f".to_vec())];
    for frame in 0..=MAX_RUNS >> 14 {
        payload.clear();
        put_number(&mut payload, frame << 15);
        put_number(&mut payload, 1 << 14);
        payload.extend([0xff, 1, 0xff, 0, 1, 1]);
        frames.push((2, payload.clone()));
    }
    let bytes = sealed(12, &frames);
    assert!(bytes.len() < 50_000);
    let mut reader = Reader::new(&bytes[..]).expect("the header is valid");
    let error = loop {
        match reader.record() {
            Ok(record) => assert!(record.is_some(), "the list did not end"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, FormatError::TooLarge { what: "runs", .. }),
        "{error}"
    );
    assert!(reader.record().is_err(), "it went on after an error");
}

#[test]
fn ten_million_files_hit_the_limit_on_both_sides() {
    let file = file("/f", Vec::new());
    let mut writer = Writer::new(io::sink(), 4096).expect("a sink takes everything");
    for _ in 0..MAX_FILES {
        writer.file(&file).expect("within the limit");
    }
    let error = writer.file(&file).expect_err("one more");
    assert!(
        matches!(error, FormatError::TooLarge { what: "files", .. }),
        "{error}"
    );

    let frames = vec![(1, b"\x01\x01\x01\x01/f".to_vec()); MAX_FILES as usize + 1];
    let error = read_list(&sealed(12, &frames)[..]).expect_err("one more");
    assert!(
        matches!(error, FormatError::TooLarge { what: "files", .. }),
        "{error}"
    );
}

#[test]
fn a_writer_goes_on_after_a_file_it_refused() {
    let mut writer = Writer::new(Vec::new(), 4096).expect("a Vec takes everything");
    assert!(writer.file(&file("relative", Vec::new())).is_err());
    let good = file("/f", vec![run(1, 1, 1)]);
    writer.file(&good).expect("the file is valid");
    let bytes = writer.finish().expect("a Vec takes everything");
    assert_eq!(
        read_list(&bytes[..]).expect("it is valid"),
        list(vec![good])
    );
}

/// Codes of more than 64 KiB for 2^13 runs: the frame is cut in two.
#[test]
fn runs_that_come_some_at_a_time_are_written_the_same() {
    let mut random = Random(7);
    let mut runs = random.pages(0.3, 90_000, |share| 1 + (share * 3.0) as Heat);
    // The last of one piece and the first of the next belong together.
    let last = runs.last().expect("many runs").end();
    runs.extend([run(last, 5, 4), run(last + 5, 5, 4)]);
    assert!(runs.len() > 2 << 13, "more than two frames");
    let list = list(vec![file("/a", runs), file("/b", vec![run(0, 1, 1)])]);
    for piece in [1, 1000, (1 << 13) - 1, 1 << 13, 20_000] {
        let mut writer = Writer::new(Vec::new(), list.page_size).expect("a header");
        for file in &list.files {
            writer.begin(&file.identity).expect("a file");
            for runs in file.runs.chunks(piece) {
                writer.runs(runs).expect("runs");
            }
        }
        let bytes = writer.finish().expect("an end");
        assert!(bytes == encode(&list), "in pieces of {piece}");
    }
    let mut writer = Writer::new(Vec::new(), list.page_size).expect("a header");
    writer.begin(&list.files[0].identity).expect("a file");
    writer.runs(&[run(7, 2, 1)]).expect("runs");
    let overlaps = writer.runs(&[run(8, 2, 1)]);
    assert!(
        matches!(overlaps, Err(FormatError::Invalid(_))),
        "{overlaps:?}"
    );
}

#[test]
fn runs_too_wide_for_a_frame_are_split() {
    let mut random = Random(3);
    let (mut end, mut runs) = (0, Vec::new());
    for _ in 0..20_000 {
        let pages = 1 + (random.next() * f64::from(u32::MAX - 1)) as u32;
        let next = run(
            end + (random.next() * 2f64.powi(36)) as u64,
            pages,
            1 + (random.next() * 254.0) as u8,
        );
        end = next.end();
        runs.push(next);
    }
    let list = list(vec![file("/f", runs)]);
    assert_eq!(read_list(&encode(&list)[..]).expect("it is valid"), list);
}

#[test]
fn neighbouring_runs_are_joined() {
    let runs = (0..30_000).map(|index| run(index, 1, 3)).collect();
    let bytes = encode(&list(vec![file("/f", runs)]));
    let read = read_list(&bytes[..]).expect("it is valid");
    assert_eq!(read.files[0].runs, [run(0, 30_000, 3)]);
    assert!(bytes.len() < 100);

    // Runs of 2^32 - 1 pages can't grow.
    let runs = vec![run(0, u32::MAX, 1), run(u32::MAX.into(), 1, 1)];
    let list = list(vec![file("/f", runs)]);
    assert_eq!(read_list(&encode(&list)[..]).expect("it is valid"), list);
}

/// Bits of information a page of a random set has, and the heats on it.
fn entropy(shares: &[f64]) -> f64 {
    -shares.iter().map(|p| p * p.log2()).sum::<f64>()
}

#[test]
fn a_random_tenth_is_near_its_entropy() {
    let runs = Random(7).pages(0.1, 10_000_000, |_| 1);
    let list = list(vec![file("/data/big", runs)]);
    assert!(list.pages().abs_diff(1_000_000) < 2_000);
    let bytes = encode(&list);
    let least = 10e6 * entropy(&[0.1, 0.9]) / 8.0;
    assert!(bytes.len() < 760_000);
    assert!(
        (bytes.len() as f64) < 1.03 * least,
        "{} of {least}",
        bytes.len()
    );
    assert_eq!(read_list(&bytes[..]).expect("it is valid"), list);
}

#[test]
fn varied_heats_are_near_their_entropy() {
    // How many heats with which probability, and how much more is allowed.
    let halves: Vec<f64> = (1..=7)
        .map(|n| 0.5f64.powi(n))
        .chain([0.5f64.powi(7)])
        .collect();
    for (heats, more) in [
        (vec![0.5, 0.5], 1.03),
        (vec![0.9, 0.1], 1.15),
        (halves, 1.05),
        (vec![1.0 / 255.0; 255], 1.04),
    ] {
        let heat = |random: f64| {
            let mut sum = 0.0;
            let place = heats.iter().position(|share| {
                sum += share;
                random < sum
            });
            // Spread, so that not the heat but its rank has to be small.
            (place.unwrap_or(0) * 97 % 255 + 1) as Heat
        };
        let runs = Random(11).pages(0.1, 2_000_000, heat);
        let list = list(vec![file("/data/big", runs)]);
        let bytes = encode(&list);
        let least = 2e6 * (entropy(&[0.1, 0.9]) + 0.1 * entropy(&heats)) / 8.0;
        let times = bytes.len() as f64 / least;
        assert!(
            times < more,
            "{} heats: {times} times the entropy",
            heats.len()
        );
        assert_eq!(read_list(&bytes[..]).expect("it is valid"), list);
    }
}

#[test]
fn other_densities_are_near_their_entropy() {
    for (share, more) in [
        (0.001, 1.06),
        (0.01, 1.03),
        (0.3, 1.05),
        (0.5, 1.03),
        (0.7, 1.06),
        (0.97, 1.18),
    ] {
        let runs = Random(13).pages(share, 3_000_000, |_| 1);
        let bytes = encode(&list(vec![file("/data/big", runs)]));
        let times = bytes.len() as f64 * 8.0 / (3e6 * entropy(&[share, 1.0 - share]));
        assert!(times < more, "{share}: {times} times the entropy");
    }
}

#[test]
fn a_sequential_gibibyte_takes_at_most_100_bytes() {
    let path = "/var/lib/postgresql/base/16384/1";
    let bytes = encode(&list(vec![file(path, vec![run(0, 262_144, 1)])]));
    assert!(bytes.len() <= 100, "{}", bytes.len());
}

/// `cargo test -- --ignored write_the_fixture` writes it, when a *new* version
/// needs one; the old ones stay as they are.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_fixture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1.pil");
    std::fs::write(path, encode(&fixture_list())).expect("the source tree is writable");
}

#[test]
fn version_1_stays_readable() {
    let bytes = include_bytes!("fixtures/v1.pil");
    assert_eq!(read_list(&bytes[..]).expect("it is valid"), fixture_list());
}

#[test]
fn the_documented_example_is_what_is_written() {
    let document = include_str!("../../docs/page-index-list.md");
    // Lines as `00000010  01 20 …  |text|`, as hexdump -C prints them.
    let bytes: Vec<u8> = document
        .lines()
        .filter(|line| {
            line.ends_with('|')
                && line
                    .as_bytes()
                    .get(..8)
                    .is_some_and(|offset| offset.iter().all(u8::is_ascii_hexdigit))
        })
        .flat_map(|line| {
            line[8..]
                .split('|')
                .next()
                .unwrap_or_default()
                .split_whitespace()
        })
        .map(|byte| u8::from_str_radix(byte, 16).expect("the dump is hexadecimal"))
        .collect();
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x} "))
            .collect::<String>()
    };
    assert_eq!(hex(&bytes), hex(&encode(&example_list())));
    assert_eq!(read_list(&bytes[..]).expect("it is valid"), example_list());
}

#[test]
fn a_list_replaces_the_old_one_or_leaves_it() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().expect("/tmp is writable");
    let path = directory.path().join("hot.pil");
    let names = || {
        std::fs::read_dir(directory.path())
            .expect("it is there")
            .count()
    };

    write_atomically(&path, &example_list()).expect("/tmp has room");
    assert_eq!(
        format::read_file(&path).expect("it is valid"),
        example_list()
    );
    let first = std::fs::metadata(&path).expect("it is there");
    assert_ne!(first.mode() & 0o400, 0);

    let invalid = list(vec![file("/good", Vec::new()), file("bad", Vec::new())]);
    let error = write_atomically(&path, &invalid).expect_err("a relative path");
    assert!(
        format!("{error:#}").contains("hot.pil: a list can't name the file \"bad\""),
        "{error:#}"
    );
    assert_eq!(
        std::fs::metadata(&path).expect("it stayed").ino(),
        first.ino()
    );
    assert_eq!(names(), 1, "a temporary file is left");

    let link = directory.path().join("link.pil");
    std::os::unix::fs::symlink("hot.pil", &link).expect("/tmp has links");
    write_atomically(&link, &fixture_list()).expect("/tmp has room");
    assert!(link.is_symlink());
    assert_eq!(
        format::read_file(&path).expect("it is valid"),
        fixture_list()
    );
    assert_ne!(
        std::fs::metadata(&path).expect("it is there").ino(),
        first.ino()
    );
    assert_eq!(names(), 2, "a temporary file is left");
}

#[test]
fn an_output_that_cannot_be_written_is_named_with_the_cause() {
    for (path, cause) in [
        ("/dev/full", "No space left on device"),
        ("/tmp", "Is a directory"),
        ("/proc/no/such/directory.pil", "No such file or directory"),
    ] {
        let error = write_atomically(path.as_ref(), &example_list()).expect_err(path);
        let text = format!("{error:#}");
        assert!(
            text.starts_with(&format!("failed to write list {path}: {cause}")),
            "{text}"
        );
    }
    write_atomically("/dev/null".as_ref(), &example_list()).expect("it takes everything");
}

#[test]
fn a_list_goes_through_a_fifo() {
    let directory = tempfile::tempdir().expect("/tmp is writable");
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("/tmp has FIFOs");
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || write_atomically(&path, &example_list()))
    };
    assert_eq!(
        format::read_file(&path).expect("it is valid"),
        example_list()
    );
    writer
        .join()
        .expect("no panic")
        .expect("the reader took it");
}

/// An output that takes only so much.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        match taken {
            0 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_output_is_an_error_wherever_it_gets_full() {
    let list = example_list();
    for room in 0..encode(&list).len() {
        let write = || -> Result<_, FormatError> {
            let mut writer = Writer::new(Full(room), list.page_size)?;
            for file in &list.files {
                writer.file(file)?;
            }
            writer.finish()
        };
        match write() {
            Err(FormatError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
            _ => panic!("{room} bytes were enough"),
        }
    }
}
