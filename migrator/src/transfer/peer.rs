//! The other side, for code that waits for one event after the other.
//!
//! A live migration is a sequence of steps with threads beside it, and easier
//! to follow as such than as tasks. The connection stays tokio's.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::io::AsyncRead;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connect::{Connection, Far};
use super::{LAST_WORDS, QUEUE};
use crate::destination::Destination;
use crate::kernel;
use crate::prefetch::Progress;
use crate::protocol::wire::{Incoming, greet};
use crate::protocol::{Hello, LIVE_PING_EVERY, LIVE_SILENCE, Message, PeerError, Role};

/// How many messages of the other side wait to be received. There are few, but
/// for lists and images, which wait in the connection.
const RECEIVED: usize = 16;

/// Poll interval for a request to stop while a connection is made.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The other side of a live migration. Its methods wait, and are not to be
/// called from within the runtime.
pub struct Peer {
    runtime: Handle,
    far: Option<Far>,
    messages: mpsc::Sender<Message>,
    sending: JoinHandle<Result<(), PeerError>>,
    received: mpsc::Receiver<Result<Message, PeerError>>,
    receiving: JoinHandle<()>,
}

impl Peer {
    /// Connects to a destination and exchanges hellos. Returns also what it can
    /// do: the bits of [`ability`](crate::protocol::hello::ability).
    ///
    /// # Errors
    /// It can't be reached, or not within `limit`; what it did wrong; or
    /// `is_cancelled` was true meanwhile.
    pub fn connect(
        to: Destination,
        rsh: &[String],
        remote_path: &Path,
        runtime: &Handle,
        limit: Option<Duration>,
        progress: Arc<Progress>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> anyhow::Result<(Self, Hello)> {
        let name = to.to_string();
        let connect = async {
            let Connection {
                input,
                output,
                mut far,
                hello_time,
            } = super::open(to, rsh, remote_path).await?;
            let ours = Hello::ours(Role::Source, kernel::page_size());
            match greet(input, output, &ours, hello_time).await {
                Ok(greeted) => Ok((greeted, far)),
                Err(error) => Err(far.explain(error, false).await),
            }
        };
        let ((mut incoming, outgoing, theirs), far) = runtime.block_on(async {
            tokio::select! {
                biased;
                connected = connect => connected,
                why = stop(&name, limit, is_cancelled) => Err(why),
            }
        })?;
        incoming.expect_within(LIVE_SILENCE);
        let (messages, queue) = mpsc::channel(QUEUE);
        let sending = runtime.spawn(outgoing.speak(queue, LIVE_PING_EVERY, || Message::Ping));
        let peer = Self::new(
            runtime.clone(),
            Some(far),
            messages,
            sending,
            incoming,
            progress,
        );
        Ok((peer, theirs))
    }

    /// A source that has said hello and is listened to.
    pub(super) fn destination(
        runtime: Handle,
        messages: mpsc::Sender<Message>,
        sending: JoinHandle<Result<(), PeerError>>,
        mut incoming: Incoming<impl AsyncRead + Unpin + Send + 'static>,
    ) -> Self {
        incoming.expect_within(LIVE_SILENCE);
        Self::new(runtime, None, messages, sending, incoming, Arc::default())
    }

    fn new(
        runtime: Handle,
        far: Option<Far>,
        messages: mpsc::Sender<Message>,
        sending: JoinHandle<Result<(), PeerError>>,
        incoming: Incoming<impl AsyncRead + Unpin + Send + 'static>,
        progress: Arc<Progress>,
    ) -> Self {
        let (tell, received) = mpsc::channel(RECEIVED);
        let receiving = runtime.spawn(listen(incoming, tell, progress));
        Self {
            runtime,
            far,
            messages,
            sending,
            received,
            receiving,
        }
    }

    /// Returns whether nothing more can come or go; [`Self::recv`] says why.
    pub fn is_broken(&self) -> bool {
        self.receiving.is_finished() || self.sending.is_finished()
    }

    /// Returns a sender for threads that send many messages.
    pub fn sender(&self) -> mpsc::Sender<Message> {
        self.messages.clone()
    }

    /// Sends a message. It waits for at most 10 s while the queue is full.
    ///
    /// # Errors
    /// The connection is lost, or takes nothing.
    pub fn send(&self, message: Message) -> Result<(), PeerError> {
        // Made within the runtime, whose clock a time-out needs.
        let send = async { timeout(LIVE_SILENCE, self.messages.send(message)).await };
        match self.runtime.block_on(send) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PeerError::Closed),
            Err(_) => Err(PeerError::Silent(LIVE_SILENCE.as_secs())),
        }
    }

    /// Returns the next message, if one comes within a time.
    ///
    /// # Errors
    /// What the other side did wrong: nothing comes any more.
    pub fn recv(&mut self, wait: Duration) -> Result<Option<Message>, PeerError> {
        let next = async { timeout(wait, self.received.recv()).await };
        match self.runtime.block_on(next) {
            Ok(Some(Ok(message))) => Ok(Some(message)),
            Ok(Some(Err(fault))) => Err(fault),
            Ok(None) => Err(PeerError::Closed),
            Err(_) => Ok(None),
        }
    }

    /// Returns the sentence for what the other side did wrong.
    pub fn explain(&mut self, fault: PeerError) -> anyhow::Error {
        match &mut self.far {
            Some(far) => self.runtime.block_on(far.explain(fault, true)),
            None => anyhow!("the source {fault}"),
        }
    }

    /// Sends a last message, if there is one, and ends the connection when the
    /// other side has taken it, or has had 2 s for that.
    pub fn close(mut self, words: Option<Message>) {
        let (closed, _) = mpsc::channel(1);
        let messages = std::mem::replace(&mut self.messages, closed);
        self.runtime.clone().block_on(async {
            let end = async {
                // Where this fails, the other side has gone first.
                if let Some(words) = words {
                    _ = messages.send(words).await;
                }
                drop(messages);
                _ = (&mut self.sending).await;
            };
            _ = timeout(LAST_WORDS, end).await;
            self.sending.abort();
            if let Some(far) = &mut self.far {
                far.end().await;
            }
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.sending.abort();
        self.receiving.abort();
    }
}

/// Returns why a connection is given up, when it is.
async fn stop(
    name: &str,
    limit: Option<Duration>,
    is_cancelled: &dyn Fn() -> bool,
) -> anyhow::Error {
    let began = Instant::now();
    loop {
        if is_cancelled() {
            return anyhow!("interrupted at the source");
        }
        if let Some(limit) = limit.filter(|limit| began.elapsed() > *limit) {
            return anyhow!(
                "failed to reach {name}: timed out after {} s",
                limit.as_secs()
            );
        }
        tokio::time::sleep(STOP_POLL_INTERVAL).await;
    }
}

/// Passes on what the other side sends, until it sends nothing more.
async fn listen(
    mut incoming: Incoming<impl AsyncRead + Unpin>,
    tell: mpsc::Sender<Result<Message, PeerError>>,
    progress: Arc<Progress>,
) {
    loop {
        let message = match incoming.message().await {
            Ok(Message::Ping) => continue,
            Ok(Message::Progress { done, planned }) => {
                progress.set(done, planned);
                continue;
            }
            other => other,
        };
        let is_end = message.is_err();
        if tell.send(message).await.is_err() || is_end {
            return;
        }
    }
}
