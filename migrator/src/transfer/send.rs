//! The source's side.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::connect::{Connection, Far};
use super::{LAST_WORDS, QUEUE};
use crate::format::{FormatError, Writer};
use crate::kernel;
use crate::pagelist::PageIndexList;
use crate::prefetch::{FILES, Progress, Report, SCHEMA};
use crate::protocol::message::MAX_LIST;
use crate::protocol::wire::{Incoming, greet};
use crate::protocol::{Hello, Message, PING_EVERY, PeerError, Role};

/// What a destination can't honestly do.
const EARLY: PeerError = PeerError::Malformed("a report before it had the whole list");

/// A destination that has said hello and waits for a list. Tasks of the
/// runtime talk to it and listen to it meanwhile.
pub struct Link {
    far: Far,
    messages: mpsc::Sender<Message>,
    speaking: JoinHandle<Result<(), PeerError>>,
    answer: JoinHandle<Result<Report, PeerError>>,
    progress: Arc<Progress>,
}

impl Link {
    /// Exchanges hellos.
    ///
    /// # Errors
    /// A sentence that says what the other side did wrong.
    pub async fn start(connection: Connection) -> anyhow::Result<Self> {
        let Connection {
            input,
            output,
            mut far,
            hello_time,
        } = connection;
        let ours = Hello::ours(Role::Source, kernel::page_size());
        let (incoming, outgoing) = match greet(input, output, &ours, hello_time).await {
            Ok((incoming, outgoing, _)) => (incoming, outgoing),
            Err(fault) => return Err(far.explain(fault, false).await),
        };
        let progress = Arc::new(Progress::default());
        let (messages, queue) = mpsc::channel(QUEUE);
        Ok(Self {
            far,
            messages,
            speaking: tokio::spawn(outgoing.speak(queue, PING_EVERY, || Message::Ping)),
            answer: tokio::spawn(hear(incoming, Arc::clone(&progress))),
            progress,
        })
    }

    /// How far the destination is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Whether the connection is of no use any more; [`Self::failure`] says
    /// why.
    pub fn is_broken(&self) -> bool {
        self.speaking.is_finished() || self.answer.is_finished()
    }

    /// Sends the list and waits for the report; gives it, and how many bytes
    /// the list had.
    ///
    /// # Errors
    /// A sentence that says what the other side did wrong, or why the list
    /// can't be sent.
    pub async fn send(&mut self, list: PageIndexList) -> anyhow::Result<(Report, u64)> {
        let messages = self.messages.clone();
        let mut writing = spawn_blocking(move || write(&list, messages));
        tokio::select! {
            answer = &mut self.answer => {
                let report = self.check(answer).await?;
                // The last bytes may be over there while the thread that
                // wrote them has still to end.
                match timeout(LAST_WORDS, writing).await {
                    Ok(Ok(Ok(bytes))) => Ok((report, bytes)),
                    _ => Err(self.far.explain(EARLY, true).await),
                }
            }
            written = &mut writing => match written.context("failed to encode the list")? {
                Ok(bytes) => {
                    let answer = (&mut self.answer).await;
                    Ok((self.check(answer).await?, bytes))
                }
                // Nobody takes what is written: the connection has failed.
                Err(FormatError::Io(_)) => Err(self.failure().await),
                Err(error) => {
                    let error = anyhow::Error::from(error).context("failed to send the list");
                    self.cancel(&format!("{error:#}")).await;
                    Err(error)
                }
            },
        }
    }

    /// What became of a broken connection, in a sentence. The last words of
    /// the other side may still be on their way.
    pub async fn failure(&mut self) -> anyhow::Error {
        let fault = match timeout(LAST_WORDS, &mut self.answer).await {
            Ok(answer) => match self.check(answer).await {
                Ok(_) => EARLY,
                Err(error) => return error,
            },
            Err(_) => PeerError::Closed,
        };
        self.far.explain(fault, true).await
    }

    /// The report, or the sentence for what the other side did wrong.
    async fn check(
        &mut self,
        answer: Result<Result<Report, PeerError>, JoinError>,
    ) -> anyhow::Result<Report> {
        match answer.context("failed to listen to the destination")? {
            Ok(report) => Ok(report),
            Err(fault) => Err(self.far.explain(fault, true).await),
        }
    }

    /// Tells the destination that nothing more comes, and why; and waits a
    /// little until it has ended.
    pub async fn cancel(&mut self, why: &str) {
        let (closed, _) = mpsc::channel(1);
        let messages = std::mem::replace(&mut self.messages, closed);
        let end = async {
            // Where this fails, the destination has gone before us.
            _ = messages.send(Message::Failed(why.into())).await;
            drop(messages);
            _ = (&mut self.speaking).await;
        };
        _ = timeout(LAST_WORDS, end).await;
        self.speaking.abort();
        self.far.end().await;
    }
}

/// Listens until the report comes.
async fn hear(
    mut incoming: Incoming<impl AsyncRead + Unpin>,
    progress: Arc<Progress>,
) -> Result<Report, PeerError> {
    loop {
        match incoming.message().await? {
            Message::Progress { done, planned } => progress.set(done, planned),
            Message::Report(json) => return read_report(&json),
            // A destination has no others to say to a list.
            _ => {}
        }
    }
}

fn read_report(json: &[u8]) -> Result<Report, PeerError> {
    let report: Report =
        serde_json::from_slice(json).map_err(|_| PeerError::Malformed("a report that is none"))?;
    // An honest one has a line for each reason, of which there are few.
    let is_long = [
        report.files.len(),
        report.skipped.len(),
        report.changed.named.len(),
    ]
    .iter()
    .any(|&length| length > FILES);
    if report.schema != SCHEMA || is_long {
        return Err(PeerError::Malformed("a report that is none"));
    }
    Ok(report)
}

/// Writes a list into messages, on a thread that may wait; gives how many
/// bytes it has.
///
/// # Errors
/// The list is none; or nobody takes the messages any more.
pub fn write(list: &PageIndexList, messages: mpsc::Sender<Message>) -> Result<u64, FormatError> {
    let output = ListWriter { messages, bytes: 0 };
    let mut writer = Writer::new(
        BufWriter::with_capacity(MAX_LIST as usize, output),
        list.page_size,
    )?;
    for file in &list.files {
        writer.file(file)?;
    }
    let output = writer.finish()?;
    Ok(output.get_ref().bytes)
}

/// Makes messages of bytes, on a thread that may wait.
struct ListWriter {
    messages: mpsc::Sender<Message>,
    bytes: u64,
}

impl Write for ListWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(MAX_LIST as usize);
        let message = Message::List(Bytes::copy_from_slice(&bytes[..length]));
        self.messages
            .blocking_send(message)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
