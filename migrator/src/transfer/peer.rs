//! The other side, for code that waits for one thing after the other.
//!
//! A live migration is a sequence of steps with threads beside it, and easier
//! to follow as such than as tasks. The connection stays tokio's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::io::AsyncRead;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connect::{Connection, Far};
use super::{LAST_WORDS, QUEUE};
use crate::kernel;
use crate::prefetch::Progress;
use crate::protocol::wire::{Incoming, greet};
use crate::protocol::{Fault, Hello, LIVE_PING_EVERY, LIVE_SILENCE, Message, Role};

/// How many messages of the other side wait to be heard. There are few, but
/// for lists and images, which wait in the connection.
const HEARD: usize = 16;

/// The other side of a live migration. Its methods wait, and are not to be
/// called from within the runtime.
pub struct Peer {
    runtime: Handle,
    far: Option<Far>,
    messages: mpsc::Sender<Message>,
    speaking: JoinHandle<Result<(), Fault>>,
    heard: mpsc::Receiver<Result<Message, Fault>>,
    hearing: JoinHandle<()>,
}

impl Peer {
    /// Exchanges hellos with a destination. Gives also what it can do: the
    /// bits of [`ability`](crate::protocol::hello::ability).
    ///
    /// # Errors
    /// A sentence that says what the other side did wrong.
    pub fn source(
        connection: Connection,
        runtime: Handle,
        progress: Arc<Progress>,
    ) -> anyhow::Result<(Self, Hello)> {
        let Connection {
            input,
            output,
            mut far,
            hello_time,
        } = connection;
        let ours = Hello::ours(Role::Source, kernel::page_size());
        let greeted = runtime.block_on(greet(input, output, &ours, hello_time));
        let (mut incoming, outgoing, theirs) = match greeted {
            Ok(greeted) => greeted,
            Err(fault) => return Err(runtime.block_on(far.explain(fault, false))),
        };
        incoming.expect_within(LIVE_SILENCE);
        let (messages, queue) = mpsc::channel(QUEUE);
        let speaking = runtime.spawn(outgoing.speak(queue, LIVE_PING_EVERY, || Message::Ping));
        let peer = Self::new(runtime, Some(far), messages, speaking, incoming, progress);
        Ok((peer, theirs))
    }

    /// A source that has said hello and is listened to.
    pub(super) fn destination(
        runtime: Handle,
        messages: mpsc::Sender<Message>,
        speaking: JoinHandle<Result<(), Fault>>,
        mut incoming: Incoming<impl AsyncRead + Unpin + Send + 'static>,
    ) -> Self {
        incoming.expect_within(LIVE_SILENCE);
        Self::new(runtime, None, messages, speaking, incoming, Arc::default())
    }

    fn new(
        runtime: Handle,
        far: Option<Far>,
        messages: mpsc::Sender<Message>,
        speaking: JoinHandle<Result<(), Fault>>,
        incoming: Incoming<impl AsyncRead + Unpin + Send + 'static>,
        progress: Arc<Progress>,
    ) -> Self {
        let (tell, heard) = mpsc::channel(HEARD);
        let hearing = runtime.spawn(listen(incoming, tell, progress));
        Self {
            runtime,
            far,
            messages,
            speaking,
            heard,
            hearing,
        }
    }

    /// For threads that send more than a word.
    pub fn sender(&self) -> mpsc::Sender<Message> {
        self.messages.clone()
    }

    /// Says something.
    ///
    /// # Errors
    /// Nobody takes it.
    pub fn say(&self, message: Message) -> Result<(), Fault> {
        // Made within the runtime, whose clock a time-out needs.
        let send = async { timeout(LIVE_SILENCE, self.messages.send(message)).await };
        match self.runtime.block_on(send) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Fault::Closed),
            Err(_) => Err(Fault::Silent(LIVE_SILENCE.as_secs())),
        }
    }

    /// The next message, if one comes within so long.
    ///
    /// # Errors
    /// What the other side did wrong: nothing comes any more.
    pub fn hear(&mut self, wait: Duration) -> Result<Option<Message>, Fault> {
        let next = async { timeout(wait, self.heard.recv()).await };
        match self.runtime.block_on(next) {
            Ok(Some(Ok(message))) => Ok(Some(message)),
            Ok(Some(Err(fault))) => Err(fault),
            Ok(None) => Err(Fault::Closed),
            Err(_) => Ok(None),
        }
    }

    /// The sentence for what the other side did wrong.
    pub fn explain(&mut self, fault: Fault) -> anyhow::Error {
        match &mut self.far {
            Some(far) => self.runtime.block_on(far.explain(fault, true)),
            None => anyhow!("the source {fault}"),
        }
    }

    /// Says some last words, if there are any, and ends the connection after
    /// it has taken them, or has had a little time for that.
    pub fn leave(mut self, words: Option<Message>) {
        let (closed, _) = mpsc::channel(1);
        let messages = std::mem::replace(&mut self.messages, closed);
        self.runtime.clone().block_on(async {
            let end = async {
                // Where this fails, the other side has gone before us.
                if let Some(words) = words {
                    _ = messages.send(words).await;
                }
                drop(messages);
                _ = (&mut self.speaking).await;
            };
            _ = timeout(LAST_WORDS, end).await;
            self.speaking.abort();
            if let Some(far) = &mut self.far {
                far.end().await;
            }
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.speaking.abort();
        self.hearing.abort();
    }
}

/// Passes on what the other side says, until it says nothing more.
async fn listen(
    mut incoming: Incoming<impl AsyncRead + Unpin>,
    tell: mpsc::Sender<Result<Message, Fault>>,
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
