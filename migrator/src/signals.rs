//! Ctrl-C and its relatives, as something to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `si_code` of a signal of the kernel's own, as for Ctrl-C (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// The signals that ask a command to end: what it has so far is still printed
/// and written.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    /// The number of the latest that a process has sent; 0 without one.
    sent: AtomicI32,
}

impl Signals {
    /// From now on SIGINT, SIGTERM and SIGHUP do not end the process. To be
    /// called before threads are started, which inherit this.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn block() -> anyhow::Result<Self> {
        let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        ends.thread_block().context("failed to block signals")?;
        let fd = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("failed to open a signal descriptor")?;
        let sent = AtomicI32::new(0);
        Ok(Self { fd, sent })
    }

    /// Waits until a signal came, the other descriptor is readable, or the
    /// time is over. Gives whether a signal came.
    ///
    /// # Errors
    /// Those of poll(2) and signalfd(2).
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, time: Duration) -> anyhow::Result<bool> {
        let others = other.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        self.wait_for(others, time)
    }

    /// The same for any number of other descriptors, and what is to happen on each.
    ///
    /// # Errors
    /// As for [`Self::wait`].
    pub fn wait_for<'a>(
        &'a self,
        others: impl IntoIterator<Item = PollFd<'a>>,
        time: Duration,
    ) -> anyhow::Result<bool> {
        // Rounded up, so that a wait for less than a millisecond is none for
        // nothing.
        let time = time.as_millis().saturating_add(1).min(60_000) as u16;
        let mut fds = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(others);
        match poll(&mut fds, PollTimeout::from(time)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("failed to wait"),
        }
        let signal = self.fd.read_signal().context("failed to read a signal")?;
        // Those of a terminal come from the kernel.
        if let Some(signal) = signal
            && signal.ssi_code != SI_KERNEL
        {
            self.sent.store(signal.ssi_signo.cast_signed(), Relaxed);
        }
        Ok(signal.is_some())
    }

    /// Returns the latest signal that [`Self::wait`] has seen and that another process
    /// has sent, once. The keys of a terminal signal all processes that it shows.
    pub fn take_sent(&self) -> Option<Signal> {
        Signal::try_from(self.sent.swap(0, Relaxed)).ok()
    }

    /// Waits, within a tokio runtime, until a signal came.
    ///
    /// # Errors
    /// Those of epoll(7) and signalfd(2).
    pub async fn came(&self) -> anyhow::Result<()> {
        // SAFETY: the descriptor stays open and the same as long as `self` is
        // borrowed, and the AsyncFd is dropped before that ends.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd.as_fd(), Interest::READABLE) }
            .map_err(io::Error::from)
            .context("failed to wait for signals")?;
        loop {
            let mut ready = fd.readable().await.context("failed to wait for signals")?;
            if self
                .fd
                .read_signal()
                .context("failed to read a signal")?
                .is_some()
            {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// Ignores SIGXFSZ, here and in what is started from now on: a write beyond the
/// limit of a file's size then fails with EFBIG and ends nothing
/// (setrlimit(2), `RLIMIT_FSIZE`). [`child::starve`](crate::child::starve) is
/// what needs it.
///
/// # Errors
/// Those of sigaction(2).
pub fn ignore_file_limit() -> anyhow::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed, so that no code runs in a signal's
    // context.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }.context("failed to ignore SIGXFSZ")?;
    Ok(())
}

/// The error of who was waiting when [`Signals::came`] came to its end; `side`
/// says on which host.
pub fn interruption(ended: anyhow::Result<()>, side: &str) -> anyhow::Error {
    ended.map_or_else(|error| error, |()| anyhow!("interrupted at the {side}"))
}
