//! What can go wrong between the hosts.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::host::{Handle, Seen, write_program};

/// Where a host has the program.
const MIGRATOR: &str = "/usr/local/bin/migrator";

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// Processes of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// `migrator move` on the source, or `migrator receive` on the destination.
    Leader(Side),
    /// The guard that cleans up after it.
    Guard(Side),
    /// Both.
    Both(Side),
    /// CRIU.
    Criu(Side),
}

/// Something that goes wrong with processes or hosts; what goes wrong with the
/// network is an [`super::Action`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Processes are killed.
    Kill(Who),
    /// Processes are stopped for a time.
    Stop(Who, Duration),
    /// A host loses its power, and with it its disk unless that is kept.
    PowerCut(Side, bool),
    /// Processes are interrupted as by Ctrl-C.
    Interrupt(Who),
    /// The program is replaced, as by an upgrade.
    Upgrade(Side),
    /// The disk for images has this size in KiB; with 0 not a byte fits.
    DiskFull(Side, u32),
    /// CRIU fails as soon as it is to dump or to restore.
    CriuFails(Side),
    /// CRIU hangs as soon as it is to dump or to restore.
    CriuHangs(Side),
    /// CRIU hangs when it is to dump or to restore for the n-th time, and only then.
    CriuHangsOnce(Side, u32),
    /// CRIU hangs when it is asked what it is.
    CriuMute(Side),
    /// CRIU fails to seize the restored tree.
    SeizeFails,
    /// A system call of the leader fails, the n-th of a thread.
    Syscall(Side, &'static str, &'static str, u64),
    /// A system call of the leader takes so many milliseconds longer.
    Slow(Side, &'static str, u64),
    /// Every connection but the first ends in a host that has not heard of the
    /// session.
    Stranger,
}

impl Side {
    fn of<'a>(self, source: &'a Handle, destination: &'a Handle) -> &'a Handle {
        match self {
            Self::Source => source,
            Self::Destination => destination,
        }
    }
}

impl Who {
    /// Returns those of them that there are.
    pub fn find(self, source: &Handle, destination: &Handle) -> Vec<Seen> {
        match self {
            Self::Leader(side) => {
                let words = match side {
                    Side::Source => " move ",
                    Side::Destination => " receive ",
                };
                side.of(source, destination).find("migrator", words)
            }
            Self::Guard(side) => side.of(source, destination).find("migrator", "recover"),
            Self::Both(side) => side.of(source, destination).find("migrator", ""),
            Self::Criu(side) => {
                // Those that it has made so far are its children, and look alike.
                let all = side.of(source, destination).find("criu", "");
                let is_child = |it: &Seen| all.iter().any(|other| other.pid == it.parent);
                let leads = |it: &&Seen| !is_child(it);
                all.iter().filter(leads).cloned().collect()
            }
        }
    }
}

impl Fault {
    /// Whether it is there before the move begins.
    pub fn is_lasting(&self) -> bool {
        !matches!(
            self,
            Self::Kill(_)
                | Self::Stop(..)
                | Self::PowerCut(..)
                | Self::Interrupt(_)
                | Self::Upgrade(_)
        )
    }

    /// Lets one that is not lasting happen. Returns whether there was something to
    /// strike.
    pub fn strike(&self, source: &Handle, destination: &Handle) -> bool {
        match self {
            Self::Kill(who) => {
                let found = who.find(source, destination);
                found.iter().for_each(|it| it.signal(Signal::SIGKILL));
                !found.is_empty()
            }
            Self::Stop(who, time) => {
                let (found, time) = (who.find(source, destination), *time);
                found.iter().for_each(|it| it.signal(Signal::SIGSTOP));
                let struck = !found.is_empty();
                let hosts = [source.clone(), destination.clone()];
                thread::spawn(move || {
                    thread::sleep(time);
                    found.iter().for_each(|it| it.signal(Signal::SIGCONT));
                    for host in hosts {
                        host.signal_entrances(Signal::SIGCONT);
                    }
                });
                struck
            }
            Self::PowerCut(side, _) => {
                side.of(source, destination).power_off();
                true
            }
            Self::Interrupt(who) => {
                let found = who.find(source, destination);
                found.iter().for_each(|it| it.signal(Signal::SIGINT));
                !found.is_empty()
            }
            Self::Upgrade(side) => {
                let path = |name: &str| side.of(source, destination).path(name);
                let [old, new] = ["", ".new"].map(|end| path(&format!("{MIGRATOR}{end}")));
                fs::copy(&old, &new)
                    .and_then(|_| fs::rename(&new, &old))
                    .is_ok()
            }
            _ => false,
        }
    }

    /// Puts a `criu` before the real one, for those faults that are CRIU's.
    ///
    /// # Errors
    /// Returns an error when that can't be done.
    pub fn wrap_criu(&self, source: &Handle, destination: &Handle) -> Result<()> {
        let (side, order) = match self {
            Self::CriuFails(side) => (*side, "exit 1".to_owned()),
            Self::CriuHangs(side) => (*side, "kill -STOP $$".to_owned()),
            Self::CriuHangsOnce(side, which) => (
                *side,
                format!("echo >>/run/orders; [ $(wc -l </run/orders) = {which} ] && kill -STOP $$"),
            ),
            Self::CriuMute(side) => (*side, String::new()),
            Self::SeizeFails => (
                Side::Destination,
                "exec /mnt/programs/unptraced /usr/sbin/criu \"$@\"".to_owned(),
            ),
            _ => return Ok(()),
        };
        let otherwise = match self {
            Self::CriuMute(_) => "kill -STOP $$\n",
            _ => "",
        };
        let text = format!(
            "#!/bin/sh\ncase \" $* \" in *' swrk '*) {order} ;; esac\n\
             {otherwise}exec /usr/sbin/criu \"$@\"\n"
        );
        write_program(side.of(source, destination), "/usr/local/bin/criu", &text)
    }

    /// Returns the words that start a leader below strace(1), if the fault is one of
    /// its system calls on this side.
    pub fn prefix(&self, on: Side, log: &str) -> Vec<String> {
        match self {
            Self::Syscall(side, call, error, when) if *side == on => {
                inject(call, &format!("error={error}:when={when}"), log)
            }
            Self::Slow(side, call, time) if *side == on => {
                inject(call, &format!("delay_enter={}", time * 1000), log)
            }
            _ => Vec::new(),
        }
    }
}

/// Returns the words before a program of which a system call shall do as strace(1)
/// says. Programs that it starts are left alone: CRIU can't work below strace(1).
fn inject(call: &str, effect: &str, log: &str) -> Vec<String> {
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:{effect}");
    [
        "strace", "-f", "-b", "execve", "-o", log, "-e", &trace, "-e", &inject,
    ]
    .map(str::to_owned)
    .to_vec()
}
