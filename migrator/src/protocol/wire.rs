//! Hellos and messages on a connection, with time-outs.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::hello::{self, MAGIC};
use super::{Hello, Message, PeerError, Role, SILENCE, message, printable};

/// How many bytes of something else are shown.
const EXCERPT: usize = 80;

/// Such a time is given to something else to send more of itself, so that
/// there is more to show than its first byte.
const EXCERPT_TIME: Duration = Duration::from_millis(200);

/// What comes from the other side.
#[derive(Debug)]
pub struct Incoming<R> {
    input: BufReader<R>,
    from: Role,
    silence: Duration,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Takes the hello of the other side, which has `time` for it, and checks
    /// it against ours.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub async fn greet(input: R, ours: &Hello, time: Duration) -> Result<(Self, Hello), PeerError> {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let theirs = timeout(time, read_hello(&mut input))
            .await
            .map_err(|_| PeerError::NoHello(time.as_secs()))??
            .check(ours)?;
        let from = theirs.role;
        let silence = SILENCE;
        let incoming = Self {
            input,
            from,
            silence,
        };
        Ok((incoming, theirs))
    }

    /// From now on the other side may be silent for so long.
    pub fn expect_within(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// The next message. A call that is cancelled in the middle loses what it
    /// has read.
    ///
    /// # Errors
    /// [`PeerError::Says`] for the other side's last words if it fails,
    /// [`PeerError::Closed`] if it just ends; or what it did wrong.
    pub async fn message(&mut self) -> Result<Message, PeerError> {
        let message = timeout(self.silence, self.read_message())
            .await
            .map_err(|_| PeerError::Silent(self.silence.as_secs()))??;
        match message {
            Message::Failed(text) => Err(PeerError::Says(text)),
            other => Ok(other),
        }
    }

    async fn read_message(&mut self) -> Result<Message, PeerError> {
        loop {
            let mut head = [0; message::HEAD_BYTES];
            self.input.read_exact(&mut head).await?;
            let (kind, length) = message::decode_head(head, self.from)?;
            // Grows with what comes, not with what is promised.
            let mut payload = Vec::new();
            let mut body = (&mut self.input).take(length.into());
            if body.read_to_end(&mut payload).await? < length as usize {
                return Err(PeerError::Closed);
            }
            if let Some(message) = Message::decode(kind, payload.into())? {
                return Ok(message);
            }
        }
    }
}

/// Reads a hello, byte by byte as far as the magic goes: something else may
/// be shorter than a hello, and wait.
async fn read_hello(input: &mut BufReader<impl AsyncRead + Unpin>) -> Result<Hello, PeerError> {
    let mut head = [0; hello::HEAD_BYTES];
    for at in 0..MAGIC.len() {
        let read = input.read(&mut head[at..=at]).await?;
        if read == 0 && at == 0 {
            return Err(PeerError::Closed);
        }
        if read == 0 || head[at] != MAGIC[at] {
            return Err(PeerError::NotMigrator(
                excerpt(&head[..at + read], input).await,
            ));
        }
    }
    input.read_exact(&mut head[MAGIC.len()..]).await?;
    let mut body = vec![0; hello::decode_head(&head)?.into()];
    input.read_exact(&mut body).await?;
    Hello::decode(&body)
}

/// The first bytes of something that is not ours, to be shown.
async fn excerpt(first: &[u8], input: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = first.to_vec();
    let mut more = input.take((EXCERPT - first.len()) as u64);
    // What has come by then is shown, whether the time is over or not.
    _ = timeout(EXCERPT_TIME, more.read_to_end(&mut bytes)).await;
    printable(&bytes)
}

/// What goes to the other side.
#[derive(Debug)]
pub struct Outgoing<W> {
    output: W,
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// Says hello.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn greet(mut output: W, ours: &Hello) -> Result<Self, PeerError> {
        output.write_all(&ours.encode()).await?;
        output.flush().await?;
        Ok(Self { output })
    }

    /// Sends a message. It waits as long as the other side does not read.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn message(&mut self, message: Message) -> Result<(), PeerError> {
        let (head, payload) = message.encode();
        self.output.write_all(&head).await?;
        self.output.write_all(&payload).await?;
        Ok(self.output.flush().await?)
    }

    /// Sends what comes out of `messages`, and what `idle` gives whenever
    /// nothing came for so long; closes this side when no sender is left.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn speak(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        every: Duration,
        idle: impl Fn() -> Message,
    ) -> Result<(), PeerError> {
        loop {
            match timeout(every, messages.recv()).await {
                Ok(Some(message)) => self.message(message).await?,
                Ok(None) => return Ok(self.output.shutdown().await?),
                Err(_) => self.message(idle()).await?,
            }
        }
    }
}

/// Exchanges hellos: sends ours while theirs is on its way. `time` is what
/// the other side has.
///
/// # Errors
/// Whatever is wrong with the other side.
pub async fn greet<R, W>(
    input: R,
    output: W,
    ours: &Hello,
    time: Duration,
) -> Result<(Incoming<R>, Outgoing<W>, Hello), PeerError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    // Both to their ends: where the other side can't take our hello any more,
    // what it has said tells more than the failed write does.
    let said = Outgoing::greet(output, ours);
    let (said, heard) = tokio::join!(timeout(time, said), Incoming::greet(input, ours, time));
    let (incoming, theirs) = heard?;
    let outgoing = said.map_err(|_| PeerError::NoHello(time.as_secs()))??;
    Ok((incoming, outgoing, theirs))
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::super::HELLO_TIME;
    use super::*;

    fn ours() -> Hello {
        Hello::ours(Role::Source, 4096)
    }

    fn theirs() -> Vec<u8> {
        Hello::ours(Role::Destination, 4096).encode()
    }

    /// What a source makes of these bytes, with nothing behind them or
    /// silence.
    async fn hear(bytes: &[u8], then_end: bool) -> Result<Incoming<DuplexStream>, PeerError> {
        let (mut far, near) = duplex(1 << 20);
        far.write_all(bytes).await.expect("room");
        let far = (!then_end).then_some(far);
        let heard = Incoming::greet(near, &ours(), HELLO_TIME).await;
        drop(far);
        heard.map(|(incoming, _)| incoming)
    }

    async fn hear_message(message: &[u8], then_end: bool) -> Result<Message, PeerError> {
        let (mut far, near) = duplex(1 << 20);
        far.write_all(&theirs()).await.expect("room");
        far.write_all(message).await.expect("room");
        let far = (!then_end).then_some(far);
        let (mut incoming, _) = Incoming::greet(near, &ours(), HELLO_TIME).await?;
        let message = incoming.message().await;
        drop(far);
        message
    }

    #[tokio::test(start_paused = true)]
    async fn both_sides_say_hello_at_once() {
        let (source, destination) = duplex(64);
        let greet = |stream, role| async move {
            let (input, output) = tokio::io::split(stream);
            let ours = Hello::ours(role, 4096);
            greet(input, output, &ours, HELLO_TIME).await
        };
        let (source, destination) = tokio::join!(
            greet(source, Role::Source),
            greet(destination, Role::Destination)
        );
        let (mut incoming, _, hello) = source.expect("a destination");
        assert_eq!(hello.role, Role::Destination);
        let (_, mut outgoing, _) = destination.expect("a source");
        let progress = Message::Progress {
            done: 1,
            planned: 2,
        };
        let (sent, heard) = tokio::join!(outgoing.message(progress.clone()), incoming.message());
        sent.expect("sent");
        assert_eq!(heard.expect("heard"), progress);
    }

    #[tokio::test(start_paused = true)]
    async fn something_else_is_shown() {
        let text = b"Welcome to \x1b[1mhost\x1b[0m!\n";
        for then_end in [true, false] {
            let fault = hear(text, then_end).await.expect_err("text");
            let words = fault.to_string();
            assert!(words.contains("Welcome to \\u{1b}[1mhost"), "{words}");
        }
        let fault = hear(&vec![b'x'; 100_000], false).await.expect_err("text");
        assert!(matches!(fault, PeerError::NotMigrator(text) if text.len() == EXCERPT));
        let fault = hear(&MAGIC[..3], true).await.expect_err("cut short");
        assert!(matches!(fault, PeerError::NotMigrator(_)), "{fault}");
        let fault = hear(&theirs()[..20], true).await.expect_err("cut short");
        assert!(matches!(fault, PeerError::Closed), "{fault}");
        let fault = hear(b"", true).await.expect_err("nothing");
        assert!(matches!(fault, PeerError::Closed), "{fault}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        for bytes in [&b""[..], &theirs()[..3], &theirs()[..20]] {
            let fault = hear(bytes, false).await.expect_err("silence");
            assert!(matches!(fault, PeerError::NoHello(10)), "{fault}");
        }
        for part in [&b""[..], b"\x03\x10\0\0\0\x02"] {
            let fault = hear_message(part, false).await.expect_err("silence");
            assert!(matches!(fault, PeerError::Silent(60)), "{fault}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn drop_by_drop_is_too_slow() {
        let (mut far, near) = duplex(1 << 20);
        far.write_all(&theirs()).await.expect("room");
        let (mut incoming, _) = Incoming::greet(near, &ours(), HELLO_TIME)
            .await
            .expect("a hello");
        let dripping = tokio::spawn(async move {
            far.write_all(b"\x04\x00\x00\x01\x00").await.expect("room");
            while far.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let fault = incoming.message().await.expect_err("too slow");
        assert!(matches!(fault, PeerError::Silent(60)), "{fault}");
        dripping.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_huge_message_is_refused_by_its_head() {
        let fault = hear_message(b"\x04\0\0\0\x40", false).await;
        let fault = fault.expect_err("a gigabyte");
        assert!(matches!(fault, PeerError::TooLarge { .. }), "{fault}");
        let fault = hear_message(b"\x04\x03\0\0\0{", true).await;
        assert!(matches!(fault, Err(PeerError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_known_is_passed_over_and_last_words_are_heard() {
        let bytes = b"\x90\x02\0\0\0xx\x05\x04\0\0\0no\x07!";
        let fault = hear_message(bytes, true).await.expect_err("last words");
        assert_eq!(fault.to_string(), "says: no\\u{7}!");
    }
}
