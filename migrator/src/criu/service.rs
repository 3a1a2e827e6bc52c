//! CRIU over a socket (`criu swrk`, as libcriu runs it): it gets its request there
//! and asks back at each stage. An action script would be a process at each of
//! them while the tree stands still, which takes longer than all the rest.
//!
//! The messages are CRIU's `images/rpc.proto`, as far as they are needed. A CRIU
//! whose question is not answered, because this process has died, lets a dumped
//! tree run (`send_criu_rpc_script` in `criu/cr-service.c`). The crate rust-criu
//! speaks the same protocol, but hides which process CRIU is, which a guard has
//! to know when the leader has died.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, bail};
use crossbeam_channel::bounded;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;

use super::{Job, OnPostDump, Work};
use crate::say;

/// More than any of its messages: the longest brings the first line of an error.
const LONGEST: usize = 64 << 10;

/// `criu_req_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Notify = 6,
}

/// `criu_opts`; the numbers of descriptors are this process's.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(int32, required, tag = "1")]
    images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pid: Option<i32>,
    #[prost(bool, optional, tag = "5")]
    tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    file_locks: Option<bool>,
    #[prost(string, optional, tag = "10")]
    log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    notify_scripts: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    link_remap: Option<bool>,
    #[prost(bool, optional, tag = "24")]
    manage_cgroups: Option<bool>,
}

/// `criu_req`
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

/// `criu_resp`
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "5")]
    notify: Option<Notify>,
}

/// `criu_notify`
#[derive(Clone, PartialEq, Message)]
struct Notify {
    #[prost(string, optional, tag = "1")]
    script: Option<String>,
}

/// What CRIU has to do.
pub(super) struct Order<'a> {
    pub(super) work: Work<'a>,
    /// The root of the tree to dump and the answer at its end; a restore
    /// without.
    pub(super) dump: Option<(i32, OnPostDump)>,
}

impl Order<'_> {
    /// Starts CRIU, which ends when it has done as ordered or has failed. A
    /// thread answers it.
    ///
    /// # Errors
    /// It can't be started.
    pub(super) fn start(self, mut program: Command) -> anyhow::Result<Job> {
        let Work {
            images,
            storage,
            group,
            passed,
            restores_cgroups,
        } = self.work;
        let open = |path: &Path| {
            File::open(path).with_context(|| format!("failed to open {}", path.display()))
        };
        let (images, work) = (open(images)?, open(storage)?);
        let (ours, its) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("failed to make a socket for CRIU")?;
        program
            .args(["swrk", "0"])
            .current_dir("/")
            .stdin(its)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut job = Job::start(program, group, storage)?;
        let request = Request {
            kind: match self.dump {
                Some(_) => Kind::Dump,
                None => Kind::Restore,
            }
            .into(),
            options: Some(Options {
                images_dir_fd: images.as_raw_fd(),
                pid: self.dump.as_ref().map(|(root, _)| *root),
                tcp_established: Some(passed.tcp_established),
                file_locks: Some(true),
                log_file: Some(match self.dump {
                    Some(_) => "dump.log".into(),
                    None => "restore.log".into(),
                }),
                // At a restore CRIU has nothing to ask.
                notify_scripts: self.dump.is_some().then_some(true),
                work_dir_fd: Some(work.as_raw_fd()),
                // Files that are open and deleted get a name for the way.
                link_remap: self.dump.is_some().then_some(true),
                manage_cgroups: (self.dump.is_none() && !restores_cgroups).then_some(false),
            }),
            notify_success: None,
        };
        if self.dump.is_some() {
            job.protect();
        }
        let answer = self.dump.map(|(_, answer)| answer);
        let (say_ended, response) = bounded(1);
        job.answered_by(response);
        let serve = move || {
            // CRIU opens them through this process.
            let _open = (images, work);
            match serve(&ours, &request, answer) {
                // Nothing waits for the answer to a dump.
                Ok(Some(success)) => _ = say_ended.try_send(success),
                Ok(None) => {}
                Err(error) => say!("{error:#}"),
            }
        };
        let thread = thread::Builder::new().name("criu".into()).spawn(serve);
        if let Err(error) = thread {
            job.kill();
            return Err(error).context("failed to start a thread");
        }
        Ok(job)
    }
}

/// Sends CRIU its request and answers it until it has ended, or has done what
/// it was asked to. Returns whether it has succeeded, if it says so. Without an
/// answer it lets a dumped tree run.
fn serve(
    socket: &OwnedFd,
    request: &Request,
    mut answer: Option<OnPostDump>,
) -> anyhow::Result<Option<bool>> {
    send_request(socket, request)?;
    while let Some(response) = receive(socket)? {
        if response.kind() != Kind::Notify {
            return Ok(Some(response.success));
        }
        let notify = response.notify.unwrap_or_default();
        let success = match notify.script() {
            "post-dump" => answer.take().is_some_and(|answer| answer()),
            _ => true,
        };
        let reply = Request {
            kind: Kind::Notify.into(),
            options: None,
            notify_success: Some(success),
        };
        send_request(socket, &reply)?;
    }
    Ok(None)
}

/// Sends a message to a CRIU that may have ended; its exit status says why.
fn send_request(socket: &OwnedFd, request: &Request) -> anyhow::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL;
    match send(socket.as_raw_fd(), &request.encode_to_vec(), flags) {
        Ok(_) | Err(nix::Error::EPIPE) => Ok(()),
        Err(error) => Err(error).context("failed to write to CRIU"),
    }
}

/// Returns its next message; `None` when it has ended.
fn receive(socket: &OwnedFd) -> anyhow::Result<Option<Response>> {
    let mut bytes = vec![0; LONGEST];
    loop {
        return match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => continue,
            // What it says when it is killed while something waits to be read.
            Ok(0) | Err(nix::Error::ECONNRESET) => Ok(None),
            Ok(length) => match Response::decode(&bytes[..length]) {
                Ok(response) => Ok(Some(response)),
                Err(error) => bail!("malformed reply from CRIU: {error}"),
            },
            Err(error) => Err(error).context("failed to read from CRIU"),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// The bytes are what `protoc --encode` (3.21) makes of CRIU 4.1's rpc.proto.
    #[test]
    fn messages_are_those_of_the_protocol() {
        let request = Request {
            kind: Kind::Dump.into(),
            options: Some(Options {
                images_dir_fd: 7,
                pid: Some(300),
                tcp_established: Some(false),
                file_locks: Some(true),
                log_file: Some("dump.log".into()),
                notify_scripts: Some(true),
                work_dir_fd: Some(8),
                link_remap: Some(true),
                manage_cgroups: None,
            }),
            notify_success: None,
        };
        let bytes = b"\x08\x01\x12\x1b\x08\x07\x10\xac\x02\x28\x00\x40\x01\x52\x08dump.log\x60\x01\x88\x01\x08\x90\x01\x01";
        assert_eq!(request.encode_to_vec(), bytes);

        // A field that is not known here is passed over: the root's pid.
        let bytes = b"\x08\x06\x10\x01\x2a\x10\x0a\x0cpost-restore\x10\x2a";
        let response = Response::decode(&bytes[..]).unwrap();
        let notify = response.notify.clone().unwrap();
        assert_eq!(response.kind(), Kind::Notify);
        assert_eq!(notify.script(), "post-restore");
    }

    #[test]
    fn what_criu_asks_is_answered_until_it_ends() {
        let pair = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
        };
        let (ours, its) = pair();
        let request = Request {
            kind: Kind::Dump.into(),
            options: None,
            notify_success: None,
        };
        let notify = |script: &str| Response {
            kind: Kind::Notify.into(),
            success: true,
            notify: Some(Notify {
                script: Some(script.into()),
            }),
        };
        for script in ["pre-dump", "network-lock", "post-dump", "post-dump"] {
            let bytes = notify(script).encode_to_vec();
            send(its.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
        }
        let end = Response {
            kind: Kind::Dump.into(),
            success: true,
            notify: None,
        };
        send(its.as_raw_fd(), &end.encode_to_vec(), MsgFlags::empty()).unwrap();
        let success = serve(&ours, &request, Some(Box::new(|| false))).unwrap();
        assert_eq!(success, Some(true));
        let received = || {
            let mut bytes = [0; 100];
            let length = recv(its.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
            Request::decode(&bytes[..length]).unwrap()
        };
        assert_eq!(received(), request);
        for success in [true, true, false, false] {
            let reply = received();
            assert_eq!(reply.kind(), Kind::Notify);
            assert_eq!(reply.notify_success, Some(success));
        }
        drop(its);
        let ended = serve(&ours, &request, None).unwrap();
        assert_eq!(ended, None, "it has ended");

        let (ours, its) = pair();
        send(its.as_raw_fd(), b"\xff\xff", MsgFlags::empty()).unwrap();
        assert!(serve(&ours, &request, None).is_err());
    }
}
