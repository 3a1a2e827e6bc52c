//! The destination's side: prefetches while the list still comes.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::{Buf, Bytes};
use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::{LAST_WORDS, Peer, QUEUE};
use crate::format::{FormatError, Reader, Record};
use crate::kernel;
use crate::pagelist::HotFile;
use crate::prefetch::{Options, Report, Session};
use crate::protocol::LIVE_SILENCE;
use crate::protocol::message::MAX_REPORT;
use crate::protocol::wire::{Incoming, greet};
use crate::protocol::{HELLO_TIME, Hello, Message, PROGRESS_EVERY, PeerError, Role, SILENCE};
use crate::signals::interruption;

/// A file with more runs than this is prefetched in pieces, each of them a
/// file in the report. So many take 1 MiB.
const PIECE: usize = 1 << 16;

/// So many pieces wait until the readers have room. At worst they take
/// 160 MiB, with a list that was made for it: a frame adds up to 16,384 runs
/// to a piece that is almost full.
const WAITING: usize = 128;

/// What has come by then is planned together, hottest first, and looked at by
/// several threads; up to so many runs.
const TOGETHER: usize = 4 * PIECE;

/// How long a prefetch may take to end when it is told to; the session leaves
/// behind what hangs in a read before that.
const GRACE: Duration = Duration::from_secs(4);

/// A prefetch that did not come to its end.
#[derive(Debug)]
pub struct Aborted {
    /// Why.
    pub error: anyhow::Error,
    /// What was prefetched until then, if it had begun.
    pub so_far: Option<Box<Report>>,
}

impl From<anyhow::Error> for Aborted {
    fn from(error: anyhow::Error) -> Self {
        let so_far = None;
        Self { error, so_far }
    }
}

/// What to do with a source that wants more than a prefetch. It waits, and is
/// called on a thread that may.
pub type Guests = Box<dyn FnOnce(Peer, Message) -> anyhow::Result<Option<Report>> + Send>;

/// Says hello to a source, prefetches the list that it sends, and sends it the
/// report. When `interrupted` completes, it stops. A source that comes with
/// something else than a list is handed to `guests`, which hears of an
/// interruption by `options.stop`.
///
/// To be called within a tokio runtime, of which some thread goes on when this
/// returns: what hangs in a read of a file hangs on.
///
/// # Errors
/// What the source did wrong; why nothing can be prefetched; or that it was
/// interrupted. The source is told, if it is still there.
pub async fn receive(
    input: impl AsyncRead + Unpin + Send + 'static,
    output: impl AsyncWrite + Unpin + Send + 'static,
    options: Options,
    guests: Guests,
    interrupted: impl Future<Output = anyhow::Result<()>>,
) -> Result<Option<Report>, Aborted> {
    tokio::pin!(interrupted);
    let ours = Hello::ours(Role::Destination, kernel::page_size());
    let (mut incoming, outgoing, _) = tokio::select! {
        greeted = greet(input, output, &ours, HELLO_TIME) => greeted.map_err(of_source)?,
        ended = &mut interrupted => return Err(interruption(ended, "destination").into()),
    };

    let (stop, progress) = (Arc::clone(&options.stop), Arc::clone(&options.progress));
    let (messages, queue) = mpsc::channel(QUEUE);
    let mut speaking = tokio::spawn(outgoing.speak(queue, PROGRESS_EVERY, move || {
        let (done, planned) = progress.bytes();
        Message::Progress { done, planned }
    }));
    // A source that has connected sends something every few seconds; what it
    // wants is not known yet.
    incoming.expect_within(LIVE_SILENCE);
    let first = tokio::select! {
        first = first(&mut incoming) => first.map_err(of_source),
        _ = &mut speaking => Err(of_source(PeerError::Closed)),
        ended = &mut interrupted => Err(interruption(ended, "destination")),
    };
    incoming.expect_within(SILENCE);
    let first = match first {
        Ok(Message::List(piece)) => piece,
        Ok(guest) => {
            let runtime = Handle::current();
            let peer = Peer::destination(runtime, messages, speaking, incoming);
            let mut serving = spawn_blocking(move || guests(peer, guest));
            let served = tokio::select! {
                served = &mut serving => served,
                ended = &mut interrupted => {
                    stop.store(true, Relaxed);
                    ended?;
                    serving.await
                }
            };
            return Ok(served.context("failed to serve the source")??);
        }
        Err(error) => {
            farewell(&error, messages, &mut speaking).await;
            return Err(error.into());
        }
    };
    let (bytes, list) = mpsc::channel(QUEUE);
    let mut hearing = tokio::spawn(hear(incoming, first, bytes));
    let mut prefetching = start(list, options)?;

    let error = tokio::select! {
        prefetched = &mut prefetching => match ended(prefetched) {
            Ok(report) => {
                let delivered = tokio::select! {
                    delivered = deliver(&report, messages, &mut speaking) => delivered,
                    ended = &mut interrupted => Err(interruption(ended, "destination")),
                };
                return match delivered {
                    Ok(()) => Ok(Some(report)),
                    Err(error) => Err(Aborted { error, so_far: Some(Box::new(report)) }),
                };
            }
            Err(aborted) => {
                farewell(&aborted.error, messages, &mut speaking).await;
                return Err(aborted);
            }
        },
        Ok(fault) = &mut hearing => of_source(fault.0),
        // It speaks until `messages` is dropped, unless the source is gone.
        _ = &mut speaking => of_source(PeerError::Closed),
        ended = &mut interrupted => interruption(ended, "destination"),
    };
    stop.store(true, Relaxed);
    // With the task goes the sender of bytes, and the list ends.
    hearing.abort();
    drop(hearing);
    farewell(&error, messages, &mut speaking).await;
    let so_far = match timeout(GRACE, prefetching).await.map(ended) {
        Ok(Ok(report)) => Some(Box::new(report)),
        Ok(Err(aborted)) => aborted.so_far,
        Err(_) => None,
    };
    Err(Aborted { error, so_far })
}

/// What the source begins with.
async fn first(incoming: &mut Incoming<impl AsyncRead + Unpin>) -> Result<Message, PeerError> {
    loop {
        match incoming.message().await? {
            Message::Ping => {}
            first @ (Message::List(_) | Message::Order(_) | Message::Ask(_)) => return Ok(first),
            _ => return Err(PeerError::Malformed("something out of turn")),
        }
    }
}

/// Passes the bytes of the list on, and waits while they are too many, until
/// the source ends. Gives the sender back, so that the list does not end
/// before it is known why.
async fn hear(
    mut incoming: Incoming<impl AsyncRead + Unpin>,
    first: Bytes,
    bytes: mpsc::Sender<Bytes>,
) -> (PeerError, mpsc::Sender<Bytes>) {
    _ = bytes.send(first).await;
    loop {
        match incoming.message().await {
            // Whoever reads the list says what is wrong with it when it ends
            // too early; the rest then goes nowhere.
            Ok(Message::List(piece)) => _ = bytes.send(piece).await,
            Ok(_) => {}
            Err(fault) => return (fault, bytes),
        }
    }
}

/// Sends the report, and this side is at its end.
async fn deliver(
    report: &Report,
    messages: mpsc::Sender<Message>,
    speaking: &mut JoinHandle<Result<(), PeerError>>,
) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec(report).context("failed to encode the report")?;
    if json.len() > MAX_REPORT as usize {
        let mut short = report.clone();
        short.files.clear();
        short.changed.named.clear();
        json = serde_json::to_vec(&short).context("failed to encode the report")?;
    }
    let end = async {
        // If this fails, speaking has ended with a fault.
        _ = messages.send(Message::Report(json.into())).await;
        drop(messages);
        speaking.await
    };
    match timeout(SILENCE, end).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(fault))) => Err(of_source(fault)),
        Ok(Err(error)) => Err(error).context("failed to send the report"),
        Err(_) => Err(anyhow!("the source does not take its report")),
    }
}

/// Tells the source why this side ends, if it listens.
async fn farewell(
    error: &anyhow::Error,
    messages: mpsc::Sender<Message>,
    speaking: &mut JoinHandle<Result<(), PeerError>>,
) {
    let end = async {
        if !speaking.is_finished() {
            _ = messages.send(Message::Failed(format!("{error:#}"))).await;
            drop(messages);
            _ = speaking.await;
        }
    };
    // It is given up either way.
    _ = timeout(LAST_WORDS, end).await;
}

fn of_source(fault: PeerError) -> anyhow::Error {
    anyhow!("the source {fault}")
}

fn ended(
    prefetched: Result<Result<Report, Aborted>, oneshot::error::RecvError>,
) -> Result<Report, Aborted> {
    prefetched.unwrap_or_else(|_| Err(anyhow!("the prefetch ended unexpectedly").into()))
}

/// Prefetches on a thread of its own: a thread of tokio's would have to be
/// waited for.
fn start(
    list: mpsc::Receiver<Bytes>,
    options: Options,
) -> anyhow::Result<oneshot::Receiver<Result<Report, Aborted>>> {
    let (end, prefetching) = oneshot::channel();
    let prefetch = move || {
        let list = ListReader {
            list,
            piece: Bytes::new(),
        };
        // Nobody waits for it any more if this fails.
        _ = end.send(prefetch(list, options, |_| {}).map(|(report, _)| report));
    };
    thread::Builder::new()
        .name("prefetch".into())
        .spawn(prefetch)
        .context("failed to start a thread")?;
    Ok(prefetching)
}

/// Prefetches a list while it comes. Shows the files to `seen`, and gives the
/// input behind the list back.
pub(super) fn prefetch<R: Read + Send>(
    list: R,
    options: Options,
    mut seen: impl FnMut(&[HotFile]),
) -> Result<(Report, R), Aborted> {
    let stop = Arc::clone(&options.stop);
    let list = Reader::new(list).context("failed to read the list")?;
    let mut session =
        Session::start(list.page_size(), options).context("failed to prefetch the list")?;
    let (pieces, arrived) = bounded(WAITING);
    let read = thread::scope(|scope| {
        let reader = thread::Builder::new().name("list".into());
        let reading = reader
            .spawn_scoped(scope, move || read(list, &pieces))
            .context("failed to start a thread")?;
        while let Some(files) = together(&arrived) {
            seen(&files);
            session.add(files);
        }
        match reading.join() {
            Ok(read) => read.context("failed to read the list"),
            Err(_) => Err(anyhow!("the reader of the list ended unexpectedly")),
        }
    });
    if read.is_err() {
        stop.store(true, Relaxed);
    }
    let report = session.finish();
    match read {
        Ok(rest) => Ok((report, rest)),
        Err(error) => Err(Aborted {
            error,
            so_far: Some(Box::new(report)),
        }),
    }
}

/// Reads the list and hands out its files, large ones in pieces.
fn read<R: Read>(mut list: Reader<R>, pieces: &Sender<HotFile>) -> Result<R, FormatError> {
    // Sending fails only when the prefetch has ended and wants no more.
    let hand_out = |piece: HotFile| {
        if !piece.runs.is_empty() {
            _ = pieces.send(piece);
        }
    };
    let mut last: Option<HotFile> = None;
    while let Some(record) = list.record()? {
        match (record, &mut last) {
            (Record::File(identity), last) => {
                let runs = Vec::new();
                if let Some(file) = last.replace(HotFile { identity, runs }) {
                    hand_out(file);
                }
            }
            (Record::Runs(runs), Some(file)) => {
                file.runs.extend_from_slice(runs);
                if file.runs.len() >= PIECE {
                    hand_out(HotFile {
                        identity: file.identity.clone(),
                        runs: std::mem::take(&mut file.runs),
                    });
                }
            }
            // The list's reader has refused runs without a file.
            (Record::Runs(_), None) => {}
        }
    }
    last.map(hand_out);
    Ok(list.into_inner())
}

/// The next file, and what else has come already.
fn together(arrived: &Receiver<HotFile>) -> Option<Vec<HotFile>> {
    let first = arrived.recv().ok()?;
    let mut runs = first.runs.len();
    let mut files = vec![first];
    while files.len() < WAITING
        && runs < TOGETHER
        && let Ok(next) = arrived.try_recv()
    {
        runs += next.runs.len();
        files.push(next);
    }
    Some(files)
}

/// The bytes of a list as they come, on a thread that may wait.
struct ListReader {
    list: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for ListReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.list.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = bytes.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut bytes[..length]);
        Ok(length)
    }
}
