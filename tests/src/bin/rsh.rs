//! A remote shell for hosts that are namespaces: connects to the relay of the
//! test, and passes bytes on in both directions.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

/// The relay's socket, as every host sees it.
const SOCKET: &str = "/mnt/link/socket";

fn main() -> ExitCode {
    match pump() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rsh: {error}");
            // The status of ssh(1) for a connection that is lost.
            ExitCode::from(255)
        }
    }
}

/// Sends the command line, then passes on until the relay closes.
fn pump() -> io::Result<()> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(end) = words.iter().position(|word| word == "--") {
        words.drain(..=end);
    }
    let mut relay = UnixStream::connect(SOCKET)?;
    relay.write_all((words.join(" ") + "\n").as_bytes())?;
    let mut orders = relay.try_clone()?;
    thread::spawn(move || {
        _ = copy(&mut io::stdin().lock(), &mut orders);
        _ = orders.shutdown(Shutdown::Write);
    });
    copy(&mut relay, &mut io::stdout().lock())
}

/// Passes on what comes at once, without waiting for more.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match from.read(&mut bytes)? {
            0 => return Ok(()),
            count => {
                to.write_all(&bytes[..count])?;
                to.flush()?;
            }
        }
    }
}
