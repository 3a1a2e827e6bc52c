//! The network between the hosts: relays each message of a connection, or does
//! with it what a rule says.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::host::Handle;

/// Between two looks at whether a silent connection goes on.
const POLL: Duration = Duration::from_millis(3);

/// Bytes of a hello before its length is known.
const HELLO_HEADER: usize = 12;

/// Bytes of a message before its payload.
const MESSAGE_HEADER: usize = 5;

/// The kind of a message. [`Kind::HELLO`] is what comes before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub u8);

/// The kinds that rules name; the protocol has the numbers.
#[allow(missing_docs, reason = "docs/protocol.md")]
impl Kind {
    /// Not a message.
    pub const HELLO: Self = Self(0);
    pub const LIST: Self = Self(2);
    pub const ORDER: Self = Self(6);
    pub const ABLE: Self = Self(7);
    pub const IMAGES: Self = Self(8);
    pub const RESUME: Self = Self(9);
    pub const ENDED: Self = Self(10);
    pub const RESTORED: Self = Self(13);
    pub const RUNNING: Self = Self(14);
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the source to the destination.
    There,
    /// Back.
    Back,
}

/// What happens to a message.
pub enum Action {
    /// The connection is cut before it.
    Cut,
    /// The connection is cut behind it.
    CutAfter,
    /// The connection is cut before it, and none can be made for a time.
    Outage(Duration),
    /// Both directions are silent for a time, from before it; for good without one.
    Hold(Option<Duration>),
    /// It waits for a time, and its direction with it.
    Delay(Duration),
    /// It comes twice.
    Duplicate,
    /// It comes behind the next one.
    Swap,
    /// A byte of it is changed.
    Corrupt(u64),
    /// Something is done before it comes.
    Call(Box<dyn FnOnce() + Send>),
    /// Something is done when it has come.
    CallAfter(Box<dyn FnOnce() + Send>),
    /// Something is done, and the connection is cut before it comes.
    CallCut(Box<dyn FnOnce() + Send>),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => f.write_str("Cut"),
            Self::CutAfter => f.write_str("CutAfter"),
            Self::Outage(time) => write!(f, "Outage({time:?})"),
            Self::Hold(time) => write!(f, "Hold({time:?})"),
            Self::Delay(time) => write!(f, "Delay({time:?})"),
            Self::Duplicate => f.write_str("Duplicate"),
            Self::Swap => f.write_str("Swap"),
            Self::Corrupt(at) => write!(f, "Corrupt({at})"),
            Self::Call(_) => f.write_str("Call"),
            Self::CallAfter(_) => f.write_str("CallAfter"),
            Self::CallCut(_) => f.write_str("CallCut"),
        }
    }
}

/// What happens to the first message of a kind and a direction, on the first
/// connection that has one. Each rule is used once.
#[derive(Debug)]
pub struct Rule {
    /// Where the message goes.
    pub direction: Direction,
    /// Its kind.
    pub kind: Kind,
    /// What happens to it.
    pub action: Action,
}

/// A message that came by.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    /// When it was delivered.
    pub at: Instant,
    /// The number of the connection, from 0.
    pub connection: usize,
    /// Where it went.
    pub direction: Direction,
    /// Its kind.
    pub kind: Kind,
}

/// The network.
#[derive(Debug)]
pub struct Relay {
    state: Arc<Mutex<State>>,
    socket: std::path::PathBuf,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct State {
    destination: Option<Handle>,
    /// From this connection on, this host is at the end.
    stranger: Option<(usize, Handle)>,
    rules: Vec<Rule>,
    used: usize,
    log: Vec<Passed>,
    said: String,
    connections: usize,
    refused_until: Option<Instant>,
    /// Words before those of the program at the other end.
    prefix: Vec<String>,
    /// Ends all connections of a run.
    run: Arc<AtomicBool>,
}

impl Relay {
    /// Listens for `rsh`.
    ///
    /// # Errors
    /// Returns an error when it can't.
    pub fn listen(socket: &Path) -> Result<Self> {
        _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).context("failed to listen for rsh")?;
        let (state, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let relay = Self {
            state: Arc::clone(&state),
            socket: socket.to_owned(),
            stop: Arc::clone(&stop),
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&state);
                thread::spawn(move || {
                    if let Err(error) = connect(&stream, &state) {
                        lock(&state).said += &format!("relay: {error}\n");
                    }
                    _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(relay)
    }

    /// Has connections end in this host.
    pub fn serve(&self, destination: Handle) {
        lock(&self.state).destination = Some(destination);
    }

    /// Has connections from this number on end in another host.
    pub fn divert(&self, first: usize, stranger: Handle) {
        lock(&self.state).stranger = Some((first, stranger));
    }

    /// Has all new connections end in the destination again.
    pub fn undivert(&self) {
        lock(&self.state).stranger = None;
    }

    /// Begins a run: cuts what is left of the one before, and forgets its rules.
    pub fn begin(&self) {
        let mut state = lock(&self.state);
        state.run.store(true, Ordering::SeqCst);
        *state = State {
            destination: state.destination.take(),
            ..State::default()
        };
    }

    /// Adds a rule.
    pub fn rule(&self, direction: Direction, kind: Kind, action: Action) {
        lock(&self.state).rules.push(Rule {
            direction,
            kind,
            action,
        });
    }

    /// Has the program at the other end started by these words.
    pub fn prefix(&self, words: Vec<String>) {
        lock(&self.state).prefix = words;
    }

    /// Cuts every connection, and lets new ones be made.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.run.store(true, Ordering::SeqCst);
        state.run = Arc::default();
    }

    /// Returns how many rules have been used.
    pub fn used(&self) -> usize {
        lock(&self.state).used
    }

    /// Returns the messages that were delivered.
    pub fn log(&self) -> Vec<Passed> {
        lock(&self.state).log.clone()
    }

    /// Returns when the first message of a kind was delivered.
    pub fn passed(&self, direction: Direction, kind: Kind) -> Option<Instant> {
        let log = self.log();
        let first = log
            .iter()
            .find(|it| it.direction == direction && it.kind == kind);
        first.map(|it| it.at)
    }

    /// Returns what the programs at the other end wrote on standard error.
    pub fn said(&self) -> String {
        lock(&self.state).said.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        lock(&self.state).run.store(true, Ordering::SeqCst);
        // Wakes the thread that listens.
        _ = UnixStream::connect(&self.socket);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, which both directions share.
#[derive(Debug)]
struct Link {
    number: usize,
    state: Arc<Mutex<State>>,
    run: Arc<AtomicBool>,
    cut: AtomicBool,
    silent_until: Mutex<Option<Instant>>,
}

/// Starts the program at the other end, and relays until both have ended.
fn connect(stream: &UnixStream, state: &Arc<Mutex<State>>) -> io::Result<()> {
    let mut words = String::new();
    let mut byte = [0];
    let mut input = stream.try_clone()?;
    while input.read(&mut byte)? == 1 && byte[0] != b'\n' {
        words.push(char::from(byte[0]));
    }
    let (link, mut child) = {
        let mut state_now = lock(state);
        let refused = state_now
            .refused_until
            .is_some_and(|it| it > Instant::now());
        let number = state_now.connections;
        let host = match &state_now.stranger {
            Some((first, stranger)) if number >= *first => Some(stranger.clone()),
            _ => state_now.destination.clone(),
        };
        let Some(host) = host.filter(|host| host.is_up() && !refused) else {
            return Ok(());
        };
        state_now.connections += 1;
        let prefix = match number {
            0 => std::mem::take(&mut state_now.prefix),
            _ => Vec::new(),
        };
        let words: Vec<&str> = prefix
            .iter()
            .map(String::as_str)
            .chain(words.split(' '))
            .collect();
        let child = host
            .enter(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let link = Link {
            number,
            state: Arc::clone(state),
            run: Arc::clone(&state_now.run),
            cut: AtomicBool::new(false),
            silent_until: Mutex::default(),
        };
        (Arc::new(link), child)
    };
    let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    log_errors(&mut child, &link);
    let back = {
        let (link, stream) = (Arc::clone(&link), stream.try_clone()?);
        thread::spawn(move || back(&link, from, &stream))
    };
    there(&link, input, to);
    _ = back.join();
    // The end of the program is the end of the connection.
    _ = stream.shutdown(Shutdown::Both);
    thread::spawn(move || child.wait());
    Ok(())
}

/// Keeps what a program writes on standard error.
fn log_errors(child: &mut Child, link: &Link) {
    if let Some(mut errors) = child.stderr.take() {
        let (state, number) = (Arc::clone(&link.state), link.number);
        thread::spawn(move || {
            let mut text = String::new();
            _ = errors.read_to_string(&mut text);
            for line in text.lines() {
                lock(&state).said += &format!("[{number}] {line}\n");
            }
        });
    }
}

fn there(link: &Link, mut from: UnixStream, mut to: ChildStdin) {
    _ = pump(link, Direction::There, &mut from, &mut to);
    if link.is_cut() {
        _ = from.shutdown(Shutdown::Both);
    }
}

fn back(link: &Link, mut from: ChildStdout, to: &UnixStream) {
    let mut output = to;
    _ = pump(link, Direction::Back, &mut from, &mut output);
    _ = to.shutdown(match link.is_cut() {
        true => Shutdown::Both,
        false => Shutdown::Write,
    });
}

impl Link {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst) || self.run.load(Ordering::SeqCst)
    }

    /// Waits while the connection is silent. Returns whether it still is one.
    fn wait(&self) -> bool {
        loop {
            if self.is_cut() {
                return false;
            }
            let until = *self
                .silent_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match until {
                Some(until) if until > Instant::now() => thread::sleep(POLL),
                _ => return true,
            }
        }
    }

    fn silence(&self, time: Option<Duration>) {
        // As good as for good.
        let time = time.unwrap_or(Duration::from_secs(3600));
        *self
            .silent_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    /// Takes the rule for a message, if there is one.
    fn rule(&self, direction: Direction, kind: Kind) -> Option<Action> {
        let mut state = lock(&self.state);
        let found = state
            .rules
            .iter()
            .position(|rule| rule.direction == direction && rule.kind == kind)?;
        let action = state.rules.remove(found).action;
        // A call says itself whether it has struck.
        state.used += usize::from(!matches!(action, Action::Call(_) | Action::CallAfter(_)));
        Some(action)
    }
}

/// Relays one direction until it ends or is cut.
fn pump(
    link: &Link,
    direction: Direction,
    from: &mut impl Read,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut bytes = vec![0; 1 << 16];
    let (mut hello, mut swapped) = (true, None::<(Kind, Vec<u8>)>);
    loop {
        while let Some(length) = unit(&buffer, hello) {
            let mut message: Vec<u8> = buffer.drain(..length).collect();
            let kind = Kind(if hello { 0 } else { message[0] });
            hello = false;
            let mut times = 1;
            let mut after = Vec::new();
            // Calls first: several may wait for one message.
            let action = loop {
                match link.rule(direction, kind) {
                    Some(Action::Call(call)) => call(),
                    Some(Action::CallAfter(call)) => after.push(call),
                    action => break action,
                }
            };
            match action {
                None | Some(Action::Call(_) | Action::CallAfter(_)) => {}
                Some(Action::Cut) => return cut(link),
                Some(Action::Outage(time)) => {
                    lock(&link.state).refused_until = Some(Instant::now() + time);
                    return cut(link);
                }
                Some(Action::CutAfter) => {
                    deliver(link, direction, kind, &message, to)?;
                    return cut(link);
                }
                Some(Action::Hold(time)) => link.silence(time),
                Some(Action::Delay(time)) => thread::sleep(time),
                Some(Action::Duplicate) => times = 2,
                Some(Action::Swap) => {
                    swapped = Some((kind, message));
                    continue;
                }
                Some(Action::Corrupt(at)) => {
                    let at = (at % message.len() as u64) as usize;
                    message[at] ^= 0x55;
                }
                Some(Action::CallCut(call)) => {
                    call();
                    return cut(link);
                }
            }
            for _ in 0..times {
                deliver(link, direction, kind, &message, to)?;
            }
            if let Some((kind, message)) = swapped.take() {
                deliver(link, direction, kind, &message, to)?;
            }
            after.into_iter().for_each(|call| call());
        }
        if !link.wait() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        match from.read(&mut bytes)? {
            0 => break,
            count => buffer.extend(&bytes[..count]),
        }
    }
    if let Some((kind, message)) = swapped {
        deliver(link, direction, kind, &message, to)?;
    }
    // Half a message is all that is left.
    to.write_all(&buffer)?;
    to.flush()
}

fn cut(link: &Link) -> io::Result<()> {
    link.cut.store(true, Ordering::SeqCst);
    Err(io::ErrorKind::ConnectionReset.into())
}

fn deliver(
    link: &Link,
    direction: Direction,
    kind: Kind,
    message: &[u8],
    to: &mut impl Write,
) -> io::Result<()> {
    if !link.wait() {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    // Before it is: what follows from it is logged later.
    lock(&link.state).log.push(Passed {
        at: Instant::now(),
        connection: link.number,
        direction,
        kind,
    });
    to.write_all(message)?;
    to.flush()
}

/// Returns the length of the hello or the message that begins the buffer, when it
/// is there as a whole.
fn unit(buffer: &[u8], hello: bool) -> Option<usize> {
    let length = match hello {
        true => {
            let length = buffer.get(10..HELLO_HEADER)?;
            HELLO_HEADER + usize::from(u16::from_le_bytes([length[0], length[1]]))
        }
        false => {
            let length = buffer.get(1..MESSAGE_HEADER)?;
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            MESSAGE_HEADER + length as usize
        }
    };
    (buffer.len() >= length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let mut hello = b"\x89MIG\r\n\x1a\n\x01\x00\x02\x00xy".to_vec();
        assert_eq!(unit(&hello, true), Some(14));
        assert_eq!(unit(&hello[..13], true), None);
        hello.clear();
        hello.extend([5, 2, 0, 0, 0, b'n', b'o', 3]);
        assert_eq!(unit(&hello, false), Some(7));
        assert_eq!(unit(&hello[7..], false), None);
    }
}
