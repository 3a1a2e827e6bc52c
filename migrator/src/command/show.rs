//! `migrator show`: a page index list as a table or as JSON.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use serde::{Serialize, Serializer};

use crate::cli::ShowArgs;
use crate::exit::Outcome;
use crate::format;
use crate::history::request::{Request, Wanted};
use crate::history::{self, client};
use crate::pagelist::{
    ACTIVE, AGAIN, Heat, HotFile, ONCE, PageIndexList, REFERENCED, RESIDENT, Run,
};

/// How long the tracker may take to tell all that it knows.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Runs the command.
///
/// The list is read and verified whole before the first byte is printed.
pub(super) fn run(args: ShowArgs) -> anyhow::Result<Outcome> {
    let list = match &args.list {
        Some(list) => format::read_file(list)?,
        None => ask(&args)?,
    };
    let mut output = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let print = if args.json { print_json } else { print_table };
    match print(&list, &mut output).and_then(|()| output.flush()) {
        // Whoever reads has seen enough, as `head` has.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.context("failed to write to standard output")?,
    }
    Ok(Outcome::Done)
}

/// Asks the tracker of this host.
fn ask(args: &ShowArgs) -> anyhow::Result<PageIndexList> {
    let wanted = match args.below.is_empty() {
        true => Wanted::All,
        false => Wanted::Below(args.below.clone()),
    };
    let socket = history::socket(args.socket.as_deref());
    let request = Request {
        min_heat: RESIDENT,
        wanted,
    };
    let known = client::ask(&socket, request, ASK_LIMIT)?;
    let known = known.context(
        "no tracker runs on this host that could be asked: name a list, or start one \
         (`migrator track --all --serve`)",
    )?;
    crate::say!("the tracker runs since {}", known.status.since());
    Ok(known.list)
}

/// Writes the table: a line a file, the hottest first, and totals.
fn print_table(list: &PageIndexList, output: &mut dyn Write) -> io::Result<()> {
    let mut files: Vec<_> = list.files.iter().map(Summary::of).collect();
    files.sort_by_key(|file| Reverse((file.reused_pages(), file.pages())));
    if !files.is_empty() {
        writeln!(
            output,
            "{:>12} {:>10} {:>8} {:>12} {:>8}  PATH",
            "PAGES", "SIZE", "OF FILE", "USED AGAIN", "MAX HEAT"
        )?;
    }
    let mut total = Summary::default();
    for file in &files {
        writeln!(
            output,
            "{:>12} {:>10} {:>8} {:>12} {:>8}  {}",
            file.pages(),
            file.size(list.page_size).to_string(),
            percent(file.pages(), file.file_pages(list.page_size)),
            file.reused_pages(),
            file.hottest,
            file.path()
        )?;
        total.add(file);
    }
    writeln!(
        output,
        "{} in {}, {}, {} of {}",
        count(total.pages(), "page"),
        count(files.len() as u64, "file"),
        count(total.runs, "run"),
        total.size(list.page_size),
        count(list.page_size.into(), "byte") + " a page",
    )?;
    for ((least, name), pages) in CLASSES.iter().zip(total.pages_by_class) {
        if pages > 0 {
            let share = percent(pages, total.pages());
            let most = CLASSES.iter().find(|(next, _)| next > least);
            let heats = match most.map_or(Heat::MAX, |(next, _)| next - 1) {
                most if most == *least => format!("heat {least}"),
                most => format!("heat {least}-{most}"),
            };
            writeln!(output, "{pages:>12} {share:>7} {name} ({heats})")?;
        }
    }
    Ok(())
}

/// The heats that are shown together: the least of each, and what it means.
const CLASSES: [(Heat, &str); 8] = [
    (RESIDENT, "resident"),
    (REFERENCED, "referenced"),
    (ONCE, "used once"),
    (ACTIVE, "active"),
    (AGAIN, "used again"),
    (16, "used again"),
    (32, "used again"),
    (48, "used again"),
];

/// What the table says about a file, or about all.
#[derive(Default)]
struct Summary<'a> {
    file: Option<&'a HotFile>,
    runs: u64,
    /// Pages of each of the [`CLASSES`].
    pages_by_class: [u64; CLASSES.len()],
    hottest: Heat,
}

impl<'a> Summary<'a> {
    fn of(file: &'a HotFile) -> Self {
        let mut summary = Self {
            file: Some(file),
            runs: file.runs.len() as u64,
            ..Self::default()
        };
        for run in &file.runs {
            let above = CLASSES.iter().filter(|(least, _)| *least <= run.heat);
            // A list has no heat 0; it would count as 1.
            let class = above.count().saturating_sub(1);
            summary.pages_by_class[class] += u64::from(run.pages);
            summary.hottest = summary.hottest.max(run.heat);
        }
        summary
    }

    fn add(&mut self, other: &Summary<'_>) {
        self.runs += other.runs;
        for (pages, more) in self.pages_by_class.iter_mut().zip(other.pages_by_class) {
            *pages += more;
        }
        self.hottest = self.hottest.max(other.hottest);
    }

    fn pages(&self) -> u64 {
        self.pages_by_class.iter().sum()
    }

    fn reused_pages(&self) -> u64 {
        let of_class = CLASSES.iter().zip(self.pages_by_class);
        let reused = of_class.filter(|((least, _), _)| *least >= ACTIVE);
        reused.map(|(_, pages)| pages).sum()
    }

    /// Memory of the pages; a list may name more than 2^64 bytes.
    fn size(&self, page_size: u32) -> ByteSize {
        ByteSize(self.pages().saturating_mul(page_size.into()))
    }

    fn file_pages(&self, page_size: u32) -> u64 {
        let bytes = self.file.map_or(0, |file| file.identity.size);
        bytes.div_ceil(page_size.into())
    }

    fn path(&self) -> String {
        self.file
            .map_or_else(String::new, |file| printable(&file.identity.path))
    }
}

pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1}%", part as f64 / whole as f64 * 100.0)
}

/// The path as text that can't move a terminal's cursor, change its colours
/// or the direction of its text: a list may come from anywhere.
pub(super) fn printable(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        match character {
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                text.extend(character.escape_unicode());
            }
            _ if character.is_control() => text.extend(character.escape_default()),
            _ => text.push(character),
        }
    }
    text
}

/// Writes the list as one JSON object, run by run.
fn print_json(list: &PageIndexList, output: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(
        &mut *output,
        &ListJson {
            schema: "migrator.page-index-list/1",
            page_size: list.page_size,
            files: &list.files,
        },
    )?;
    writeln!(output)
}

#[derive(Serialize)]
struct ListJson<'a> {
    schema: &'static str,
    page_size: u32,
    #[serde(serialize_with = "files")]
    files: &'a [HotFile],
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: Cow<'a, str>,
    device: u64,
    inode: u64,
    size: u64,
    mtime: i64,
    #[serde(serialize_with = "runs")]
    runs: &'a [Run],
}

#[derive(Serialize)]
struct RunJson {
    index: u64,
    pages: u32,
    heat: Heat,
}

fn files<S: Serializer>(files: &[HotFile], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(files.iter().map(|file| FileJson {
        path: file.identity.path.to_string_lossy(),
        device: file.identity.device,
        inode: file.identity.inode,
        size: file.identity.size,
        mtime: file.identity.mtime_ns,
        runs: &file.runs,
    }))
}

fn runs<S: Serializer>(runs: &[Run], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(runs.iter().map(|&Run { index, pages, heat }| RunJson {
        index,
        pages,
        heat,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagelist::FileIdentity;

    fn file(path: &str, size: u64, runs: &[(u64, u32, Heat)]) -> HotFile {
        let run = |&(index, pages, heat)| Run { index, pages, heat };
        HotFile {
            identity: FileIdentity {
                path: path.into(),
                device: 2049,
                inode: 12,
                size,
                mtime_ns: -1,
            },
            runs: runs.iter().map(run).collect(),
        }
    }

    fn table(files: Vec<HotFile>) -> String {
        let mut output = Vec::new();
        let list = PageIndexList {
            page_size: 4096,
            files,
        };
        print_table(&list, &mut output).expect("a Vec takes everything");
        String::from_utf8(output).expect("the table is UTF-8")
    }

    #[test]
    fn the_hottest_file_comes_first() {
        let table = table(vec![
            file("/scan", 1 << 30, &[(0, 262_144, 1)]),
            file("/index", 40_000, &[(0, 4, 9), (8, 1, 1)]),
        ]);
        assert_eq!(
            table,
            "       PAGES       SIZE  OF FILE   USED AGAIN MAX HEAT  PATH
           5   20.0 KiB    50.0%            4        9  /index
      262144    1.0 GiB   100.0%            0        1  /scan
262149 pages in 2 files, 3 runs, 1.0 GiB of 4096 bytes a page
      262145  100.0% resident (heat 1)
           4    0.0% used again (heat 6-15)
"
        );
    }

    #[test]
    fn an_empty_list_and_an_empty_file_are_shown() {
        assert_eq!(
            table(Vec::new()),
            "0 pages in 0 files, 0 runs, 0 B of 4096 bytes a page\n"
        );
        assert!(table(vec![file("/empty", 0, &[])]).contains(" - "));
    }

    #[test]
    fn paths_cannot_reach_the_terminal() {
        let path = Path::new("/a\x1b[31m\n\u{202e}b/ü \\'");
        assert_eq!(printable(path), "/a\\u{1b}[31m\\n\\u{202e}b/ü \\'");
    }

    #[test]
    fn the_largest_list_does_not_overflow() {
        let runs: Vec<_> = (0..1u64 << 21).map(|n| (n << 33, u32::MAX, 255)).collect();
        assert!(table(vec![file("/huge", u64::MAX, &runs)]).contains("16.0 EiB"));
    }
}
