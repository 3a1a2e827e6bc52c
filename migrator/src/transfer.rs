//! Carries a page index list from a source to a destination, and the report
//! back: what [`protocol`](crate::protocol) says, done.
//!
//! The connection is tokio's, because reading, writing, time-outs, signals
//! and a child process are to be waited for at once. Coding lists and reading
//! files block, and happen on threads beside it.

mod connect;
mod peer;
mod receive;
mod send;
mod warmer;

use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

pub use connect::{Connection, open};
pub use peer::Peer;
pub use receive::{Aborted, Guests, receive};
pub use send::{Link, write as write_list};
pub use warmer::{Warmed, Warmer};

/// A runtime for one connection; one thread of it goes on while the main
/// thread does something else.
///
/// # Errors
/// There are no threads to be had.
pub fn runtime() -> anyhow::Result<Runtime> {
    // tokio panics where it gets no thread.
    std::panic::catch_unwind(|| {
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
    })
    .map_err(|_| anyhow::anyhow!("no thread is to be had"))
    .and_then(|built| Ok(built?))
    .context("failed to start threads")
}

/// How long is waited for the last words, or the end, of a side that is given
/// up anyway.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How many messages wait to be sent, and how many pieces of a list to be
/// decoded: enough that neither side of the queue has to wait for the other's
/// every step, and little memory.
const QUEUE: usize = 4;

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

    use super::connect::Connection;
    use super::*;
    use crate::kernel;
    use crate::pagelist::{FileIdentity, HotFile, PageIndexList, Run};
    use crate::prefetch::{Change, ChangedFile, Options, Reason, Report, SCHEMA, Version};
    use crate::protocol::{Hello, Message, Role};

    /// A file that is on no host, with so many runs of one page.
    fn gone(name: &str, runs: u32) -> HotFile {
        let run = |number| Run {
            index: 2 * u64::from(number),
            pages: 1,
            heat: 1,
        };
        HotFile {
            identity: FileIdentity {
                path: PathBuf::from("/proc/migrator-test").join(name),
                device: 1,
                inode: 2,
                size: 1 << 40,
                mtime_ns: 0,
            },
            runs: (0..runs).map(run).collect(),
        }
    }

    fn list(files: Vec<HotFile>) -> PageIndexList {
        PageIndexList {
            page_size: kernel::page_size(),
            files,
        }
    }

    /// Serves nobody but who sends a list.
    fn nobody() -> Guests {
        Box::new(|peer, _| {
            peer.close(Some(Message::Failed("not here".into())));
            anyhow::bail!("a guest")
        })
    }

    /// Sends a list to a real destination; gives what both make of it.
    async fn trip(
        list: PageIndexList,
    ) -> (
        anyhow::Result<(Report, u64)>,
        Result<Option<Report>, Aborted>,
    ) {
        let (near, far) = duplex(1 << 10);
        let (input, output) = split(far);
        let destination = receive(input, output, Options::default(), nobody(), pending());
        let source = async {
            let mut link = Link::start(Connection::over(near)).await?;
            link.send(list).await
        };
        tokio::join!(source, destination)
    }

    /// A peer that says these bytes after its hello and then waits for the
    /// other side to end, or goes away. Gives what it hears.
    async fn play(mut stream: DuplexStream, role: Role, bytes: &[u8], goes: bool) -> Vec<u8> {
        let hello = Hello::ours(role, kernel::page_size()).encode();
        let mut heard = Vec::new();
        stream.write_all(&hello).await.expect("a hello");
        // A peer that has had enough may close before all is written.
        _ = stream.write_all(bytes).await;
        if goes {
            stream.shutdown().await.expect("an end");
        }
        stream.read_to_end(&mut heard).await.expect("the end");
        heard
    }

    /// What a source makes of a destination that says these bytes.
    async fn sent_to(bytes: Vec<u8>) -> String {
        let (near, far) = duplex(1 << 10);
        let far = tokio::spawn(async move { play(far, Role::Destination, &bytes, true).await });
        let mut link = Link::start(Connection::over(near)).await.expect("a hello");
        let sent = link.send(list(vec![gone("file", 100_000)])).await;
        drop(link);
        far.abort();
        format!("{:#}", sent.expect_err("a hostile destination"))
    }

    /// What a destination makes of a source that says these bytes, and what
    /// it answers.
    async fn received_from(bytes: Vec<u8>, goes: bool) -> (Aborted, String) {
        let (near, far) = duplex(1 << 20);
        let far = tokio::spawn(async move { play(far, Role::Source, &bytes, goes).await });
        let (input, output) = split(near);
        let received = receive(input, output, Options::default(), nobody(), pending()).await;
        let aborted = received.expect_err("a hostile source");
        let heard = far.await.expect("a source");
        (aborted, String::from_utf8_lossy(&heard).into_owned())
    }

    fn bytes_of(message: &Message) -> Vec<u8> {
        let (head, payload) = message.encode();
        [&head[..], &payload].concat()
    }

    /// The bytes of a list.
    fn encoded(files: &[HotFile]) -> Vec<u8> {
        let mut writer =
            crate::format::Writer::new(Vec::new(), kernel::page_size()).expect("a list");
        for file in files {
            writer.file(file).expect("a file");
        }
        writer.finish().expect("an end")
    }

    fn piece(bytes: &[u8]) -> Vec<u8> {
        bytes_of(&Message::List(bytes.to_vec().into()))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_report_comes_back() {
        let files = vec![gone("a", 3), gone("b", 20), gone("c", 100)];
        let bytes = encoded(&files).len() as u64;
        let (source, destination) = trip(list(files)).await;
        let (report, sent) = source.expect("a report");
        assert_eq!(sent, bytes);
        assert_eq!(Some(&report), destination.expect("a report").as_ref());
        assert_eq!((report.pages.asked, report.pages.skipped), (123, 123));
        assert_eq!(report.skipped[0].reason, Reason::Gone);
        assert_eq!(report.skipped[0].files, 3);
        let (source, _) = trip(list(Vec::new())).await;
        assert_eq!(source.expect("a report").0.pages.asked, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_large_file_goes_in_pieces_and_none_is_lost() {
        let (source, _) = trip(list(vec![gone("large", 200_000), gone("small", 1)])).await;
        let (report, _) = source.expect("a report");
        assert_eq!(report.pages.asked, 200_001);
        assert_eq!(report.skipped[0].files, 5, "four pieces and a file");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_destination_does_wrong_is_told() {
        let report = |json: &str| bytes_of(&Message::Report(json.to_owned().into()));
        for (bytes, part) in [
            (vec![], "closed the connection"),
            (b"\x04\0\0\0\x40".to_vec(), "8388608 is the limit"),
            (b"\x02\x01\0\0\0x".to_vec(), "kind 2, which it may not send"),
            (b"\x03\x03\0\0\0abc".to_vec(), "not two numbers"),
            (report("{}"), "a report that is none"),
            (report(&"[".repeat(100_000)), "a report that is none"),
            (
                bytes_of(&Message::Failed("no \x1b[2J".into())),
                "says: no \\u{1b}[2J",
            ),
        ] {
            let words = sent_to(bytes).await;
            assert!(words.contains(part), "{part}: {words}");
            assert!(words.starts_with("tcp://"), "{words}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_report_comes_neither_early_nor_long() {
        let (source, _) = trip(list(vec![gone("file", 1)])).await;
        let (honest, _) = source.expect("a report");
        assert_eq!(honest.schema, SCHEMA);
        let json = |report: &Report| serde_json::to_vec(report).expect("JSON");
        let mut long = honest.clone();
        long.files = vec![honest.files[0].clone(); 101];
        let words = sent_to(bytes_of(&Message::Report(json(&long).into()))).await;
        assert!(words.contains("a report that is none"), "{words}");

        let mut long = honest.clone();
        let version = Version {
            size: 0,
            mtime_ns: 0,
            inode: None,
        };
        let changed = ChangedFile {
            path: "/f".into(),
            change: Change {
                before: version,
                after: version,
            },
        };
        long.changed.named = vec![changed; 101];
        let words = sent_to(bytes_of(&Message::Report(json(&long).into()))).await;
        assert!(words.contains("a report that is none"), "{words}");

        let (near, mut far) = duplex(1 << 16);
        let hello = Hello::ours(Role::Destination, kernel::page_size()).encode();
        let report = bytes_of(&Message::Report(json(&honest).into()));
        far.write_all(&hello).await.expect("a hello");
        far.write_all(&report).await.expect("a report");
        let mut link = Link::start(Connection::over(near)).await.expect("a hello");
        // More than the queues hold, and nobody reads it.
        let files = (0..20_000).map(|number| {
            gone(
                &format!("a name so long that 20,000 of them take some room {number}"),
                1,
            )
        });
        let error = link.send(list(files.collect())).await.expect_err("early");
        let words = error.to_string();
        assert!(words.contains("before it had the whole list"), "{words}");
        drop(far);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_source_does_wrong_is_told_to_it_too() {
        let whole = encoded(&[gone("a", 10), gone("b", 10)]);
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for (bytes, part) in [
            (
                b"\x04\x02\0\0\0{}".to_vec(),
                "kind 4, which it may not send",
            ),
            (b"\x02\0\0\0\x40".to_vec(), "65536 is the limit"),
            (
                piece(b"not a list, but long enough"),
                "not a page index list",
            ),
            (piece(&flipped), "the checksum"),
        ] {
            let (aborted, heard) = received_from(bytes, false).await;
            let words = format!("{:#}", aborted.error);
            assert!(words.contains(part), "{part}: {words}");
            assert!(heard.contains(part), "{part}: {heard}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_source_that_goes_away_leaves_a_report_of_what_was_done() {
        let whole = encoded(&[gone("a", 10), gone("b", 10)]);
        let cut = &whole[..whole.len() - 20];
        let (aborted, _) = received_from(piece(cut), true).await;
        let words = format!("{:#}", aborted.error);
        assert_eq!(words, "the source closed the connection");
        let report = aborted.so_far.expect("a report");
        assert_eq!(report.pages.asked, 10, "the first file was whole");
        let (aborted, _) = received_from(Vec::new(), true).await;
        assert!(aborted.so_far.is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_interruption_is_heard_on_the_other_side() {
        let (near, far) = duplex(1 << 10);
        let (input, output) = split(far);
        let (interrupt, interrupted) = tokio::sync::oneshot::channel();
        let interrupted = async { Ok(interrupted.await?) };
        let options = Options::default();
        let destination = receive(input, output, options, nobody(), interrupted);
        let source = async {
            let mut link = Link::start(Connection::over(near)).await.expect("a hello");
            interrupt.send(()).expect("a destination");
            let error = link.failure().await;
            assert!(link.is_broken());
            error.to_string()
        };
        let (words, aborted) = tokio::join!(source, destination);
        assert!(
            words.contains("says: interrupted at the destination"),
            "{words}"
        );
        assert!(aborted.is_err());

        let (near, far) = duplex(1 << 10);
        let (input, output) = split(far);
        let destination = receive(input, output, Options::default(), nobody(), pending());
        let source = async {
            let mut link = Link::start(Connection::over(near)).await.expect("a hello");
            link.cancel("interrupted at the source").await;
        };
        let ((), aborted) = tokio::join!(source, destination);
        let words = aborted.expect_err("a cancelled source").error.to_string();
        assert_eq!(words, "the source says: interrupted at the source");
    }
}
