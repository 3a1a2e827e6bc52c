//! Lines on stderr, and in the system's log for processes without one.
//!
//! `eprintln!` panics when stderr is closed, and waits without limit when a
//! terminal is paused (Ctrl-S). Neither may happen while a process tree is
//! frozen, so the whole crate writes through [`say!`](crate::say!).

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The socket of syslog, and of the journal where it takes its place.
const SYSLOG: &str = "/dev/log";

/// Facility daemon (3), severity notice (5): RFC 3164, 4.1.1.
const PRIORITY: u8 = 3 * 8 + 5;

static IS_URGENT: AtomicBool = AtomicBool::new(false);
static LOG: OnceLock<UnixDatagram> = OnceLock::new();

/// Writes a line to stderr, after `migrator: `. A stderr that is closed, full
/// or gone is no error.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::say::line(format_args!($($arguments)*))
    };
}

/// Writes a line, as [`say!`](crate::say!) does.
pub fn line(text: fmt::Arguments<'_>) {
    if let Some(log) = LOG.get() {
        // A log that is full loses the line; nothing waits for it.
        let name = std::process::id();
        _ = log.send(format!("<{PRIORITY}>migrator[{name}]: {text}").as_bytes());
    }
    raw(&format!("migrator: {text}\n"));
}

/// Writes text to stderr as it is.
pub fn raw(text: &str) {
    let stderr = io::stderr();
    if IS_URGENT.load(Relaxed) {
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let is_writable = matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0);
        if !is_writable {
            return;
        }
    }
    _ = stderr.lock().write_all(text.as_bytes());
}

/// Drops lines that stderr does not take at once, from now on or no longer.
pub fn set_urgent(is_urgent: bool) {
    IS_URGENT.store(is_urgent, Relaxed);
}

/// Sends each line to the system's log as well, if there is one.
pub fn also_to_syslog() {
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(SYSLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    if let Ok(socket) = socket {
        _ = LOG.set(socket);
    }
}
