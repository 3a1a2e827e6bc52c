//! What can go wrong while a tree moves between the test hosts, and whether it
//! has run exactly once in the end.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xtask::vm::{Client, Host, Hosts, SHARED};

use crate::steps::Verdict;

/// How long a move may take under translation, with its faults.
const MOVE: Duration = Duration::from_secs(180);

/// How long everything may take to come to rest after it.
const REST: Duration = Duration::from_secs(180);

/// Steps that have to be seen before the tree counts as running.
const PROGRESS: u64 = 3;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The destination loses its power, and boots when the move has ended or
    /// waits for it.
    PowerCut,
    /// The destination's migrator is killed.
    ReceiverKilled,
    /// The source's migrator is killed.
    MoverKilled,
    /// The source's migrator is killed, and who would clean up after it.
    AllKilledAtSource,
    /// Nothing gets through between source and destination for so many
    /// seconds; the storage is reached by both.
    NetworkCut(u32),
    /// The storage hears nothing for so many seconds.
    StorageStalls(u32),
    /// CRIU is killed.
    CriuKilled(Client),
    /// CRIU fails as soon as it is to dump or to restore.
    CriuFails(Client),
    /// The disk that images are on has no room for them.
    DiskFull(Client),
}

impl Fault {
    /// Whether it is there before the move begins.
    pub fn is_lasting(self) -> bool {
        matches!(self, Self::CriuFails(_) | Self::DiskFull(_))
    }

    /// Lets it happen. What lasts is undone by [`clean`].
    ///
    /// # Errors
    /// When it can't be done.
    pub fn strike(self, hosts: &Hosts) -> Result<()> {
        match self {
            Self::PowerCut => hosts.destination.kill(),
            Self::ReceiverKilled => kill_all(&hosts.destination, "-f '[m]igrator receive'"),
            Self::MoverKilled => kill_all(&hosts.source, "-f '[m]igrator move'"),
            Self::AllKilledAtSource => kill_all(&hosts.source, "-x migrator"),
            Self::NetworkCut(seconds) => {
                let rule = |order: &str| {
                    format!(
                        "iptables -w {order} INPUT -s destination -j DROP && \
                         iptables -w {order} OUTPUT -d destination -j DROP"
                    )
                };
                for_a_while(&hosts.source, &rule("-I"), &rule("-D"), seconds)
            }
            Self::StorageStalls(seconds) => {
                let rule =
                    |order: &str| format!("iptables -w {order} INPUT -p tcp --dport 2049 -j DROP");
                for_a_while(&hosts.storage, &rule("-I"), &rule("-D"), seconds)
            }
            Self::CriuKilled(client) => kill_all(host(hosts, client), "-x criu"),
            // Before /usr/sbin on the PATH of who logs in.
            Self::CriuFails(client) => host(hosts, client)
                .run(
                    "cat >/usr/local/bin/criu <<'end'\n#!/bin/sh\n\
                     case \" $* \" in *' swrk '*) echo 'no CRIU today' >&2; exit 1 ;; esac\n\
                     exec /usr/sbin/criu \"$@\"\nend\nchmod 755 /usr/local/bin/criu",
                )
                .map(drop),
            Self::DiskFull(client) => host(hosts, client)
                .run(
                    "mkdir -p /var/lib/migrator && \
                     mount -t tmpfs -o size=64k tmpfs /var/lib/migrator",
                )
                .map(drop),
        }
    }
}

fn host(hosts: &Hosts, client: Client) -> &Host {
    match client {
        Client::Source => &hosts.source,
        Client::Destination => &hosts.destination,
    }
}

/// That there is nobody to kill is no error: it may have ended just now.
fn kill_all(host: &Host, who: &str) -> Result<()> {
    host.run(&format!("pkill -KILL {who} || true")).map(drop)
}

/// Does something, and undoes it after so many seconds, in the guest.
fn for_a_while(host: &Host, order: &str, undo: &str, seconds: u32) -> Result<()> {
    host.run(&format!(
        "{order} && {{ setsid sh -c 'sleep {seconds}; {undo}' </dev/null >/dev/null 2>&1 & }}"
    ))
    .map(drop)
}

/// Undoes what a fault has left, and ends what the tests have started. The
/// destination runs afterwards.
///
/// # Errors
/// When it can't be done.
pub fn clean(hosts: &mut Hosts) -> Result<()> {
    if hosts.destination.check().is_err() {
        hosts.restart(Client::Destination)?;
    }
    for host in [&hosts.source, &hosts.destination] {
        host.run(
            "pkill -KILL -x migrator; pkill -KILL -x criu; pkill -KILL -x steps
             for c in $(runc list -q); do runc delete -f $c; done
             podman rm -f -t 0 moved >/dev/null 2>&1
             rm -f /usr/local/bin/criu; umount /var/lib/migrator 2>/dev/null
             rm -rf /run/migrator /var/lib/migrator; iptables -w -F; true",
        )?;
    }
    hosts
        .storage
        .run("iptables -w -F; rm -rf /srv/shared/steps-*")?;
    Ok(())
}

/// A tree of `steps` on the hosts.
#[derive(Debug)]
pub struct Tree {
    name: String,
}

impl Tree {
    /// Starts one on the source and waits until it makes steps. `start` makes
    /// the command for the directory with its files: one that comes back.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(hosts: &Hosts, name: &str, start: impl Fn(&str) -> String) -> Result<Self> {
        Self::start_large(hosts, name, 1024, start)
    }

    /// The same with so many pages of data.
    ///
    /// # Errors
    /// As above.
    pub fn start_large(
        hosts: &Hosts,
        name: &str,
        pages: u32,
        start: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let name = format!("steps-{name}");
        hosts.storage.run(&format!(
            "/vm/steps prepare /srv/shared/{name} --steps 20000 --pages {pages}"
        ))?;
        hosts.source.run(&start(&format!("{SHARED}/{name}")))?;
        let tree = Self { name };
        tree.wait_for_progress(hosts, Duration::from_secs(60))?;
        Ok(tree)
    }

    /// The same for a tree that belongs to nobody. Its process ids are some
    /// that the destination, booted at the same time, has not come to.
    ///
    /// # Errors
    /// As above.
    pub fn start_plain(hosts: &Hosts, name: &str) -> Result<Self> {
        Self::start(hosts, name, |directory| {
            format!(
                "cd /; echo 20000 >/proc/sys/kernel/ns_last_pid
                 setsid --fork /vm/steps run {directory} --interval 20 \
                 </dev/null >/dev/null 2>&1"
            )
        })
    }

    /// Its root, on the source.
    ///
    /// # Errors
    /// When it is not there.
    pub fn pid(&self, hosts: &Hosts) -> Result<i32> {
        let pid = hosts.source.run("pgrep -o -x steps")?;
        pid.trim().parse().context("no process of the tree")
    }

    /// What its ledger tells at the moment, as the storage sees it.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn verdict(&self, hosts: &Hosts) -> Result<Verdict> {
        let verify = format!("/vm/steps verify /srv/shared/{} || true", self.name);
        let said = hosts.storage.run(&verify)?;
        serde_json::from_str(&said).with_context(|| format!("steps verify says {said}"))
    }

    /// Waits until more steps are made.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_progress(&self, hosts: &Hosts, limit: Duration) -> Result<()> {
        let (began, before) = (Instant::now(), self.verdict(hosts)?.last);
        while self.verdict(hosts)?.last < before + PROGRESS {
            ensure!(began.elapsed() < limit, "the steps end at {before}");
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Waits until the tree runs, as a whole and on one host, and gives which.
    ///
    /// # Errors
    /// When it runs on none or on both, or has not made each step once; with
    /// what was seen.
    pub fn settle(&self, hosts: &Hosts) -> Result<Client> {
        let began = Instant::now();
        let client = loop {
            let [there, here] = [&hosts.source, &hosts.destination].map(running);
            match (there?, here?) {
                (3, 0) => break Client::Source,
                (0, 3) => break Client::Destination,
                seen if began.elapsed() > REST => bail!(
                    "{} processes of the tree run on the source and {} on the destination; \
                     the ledger: {:?}",
                    seen.0,
                    seen.1,
                    self.verdict(hosts)?,
                ),
                _ => thread::sleep(Duration::from_millis(300)),
            }
        };
        self.wait_for_progress(hosts, REST)?;
        let verdict = self.verdict(hosts)?;
        ensure!(verdict.exactly_once(), "wrong steps: {verdict:?}");
        // Still on that host alone.
        for (other, wanted) in [
            (&hosts.source, 3 * usize::from(client == Client::Source)),
            (
                &hosts.destination,
                3 * usize::from(client == Client::Destination),
            ),
        ] {
            let now = running(other)?;
            ensure!(
                now == wanted,
                "{now} processes of the tree on {} where {wanted} should be",
                other.name()
            );
        }
        // Asked by the other client: to the storage itself, a client's flock is
        // a lock of the other kind.
        let other = match client {
            Client::Source => &hosts.destination,
            Client::Destination => &hosts.source,
        };
        let locks = other.run(&format!("/vm/steps locks {SHARED}/{}", self.name))?;
        ensure!(!locks.contains("free"), "a lock is lost: {locks}");
        Ok(client)
    }
}

/// How many processes of a tree a host has that are not stopped.
fn running(host: &Host) -> Result<usize> {
    // T is stopped, t is traced, Z has ended.
    let list = host.run("ps -C steps -o stat= || true")?;
    Ok(list
        .lines()
        .filter(|stat| !stat.starts_with(['T', 't', 'Z']))
        .count())
}

/// What of both clients to show with a failure.
pub fn scene(hosts: &Hosts) -> String {
    let state = |host: &Host| {
        let seen = host.run(
            "ps -eo pid,ppid,stat,wchan:24,etimes,args | grep -E 'steps|criu|migrator' | grep -v grep
             for f in $(find /run/migrator /var/lib/migrator -maxdepth 2 -type f)
             do echo \"$f: $(head -c 300 $f)\"; done
             for f in /var/lib/migrator/*/*.log; do echo \"$f:\"; tail -n 5 $f; done; cat /proc/locks; true",
        );
        format!(
            "--- {}:\n{}",
            host.name(),
            seen.unwrap_or_else(|error| format!("{error:#}"))
        )
    };
    state(&hosts.source) + &state(&hosts.destination)
}

/// Waits until nothing of a move is left: no process of migrator or CRIU, no
/// session, no image.
///
/// # Errors
/// When something stays; with what it is.
pub fn nothing_left(hosts: &Hosts) -> Result<()> {
    let began = Instant::now();
    loop {
        let left = [&hosts.source, &hosts.destination]
            .map(|host| -> Result<String> {
                let left = host.run(
                    // A tombstone stays for a question of the source.
                    "pgrep -ax 'migrator|criu|migrator-criu-h'
                     ls -d /run/migrator/*/ 2>/dev/null
                     find /var/lib/migrator -mindepth 2 ! -name record ! -name tombstone \
                     ! -name .tombstone 2>/dev/null; true",
                )?;
                Ok(match left.trim() {
                    "" => String::new(),
                    left => format!("{}: {left}\n", host.name()),
                })
            })
            .into_iter()
            .collect::<Result<String>>()?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(began.elapsed() < REST, "this is left behind: {left}");
        thread::sleep(Duration::from_millis(500));
    }
}

/// A `migrator move` at work.
#[derive(Debug)]
pub struct Move {
    process: Child,
    lines: Receiver<String>,
    said: String,
    output: JoinHandle<String>,
    began: Instant,
}

/// How it ended.
#[derive(Debug)]
pub struct Moved {
    /// What ssh says of it.
    pub status: ExitStatus,
    /// Standard output.
    pub report: String,
    /// Standard error.
    pub said: String,
}

impl Move {
    /// Starts it on the source.
    ///
    /// # Errors
    /// When ssh can't be started.
    pub fn start(hosts: &Hosts, what: &str) -> Result<Self> {
        let mut process = hosts.source.spawn(&format!(
            "exec migrator move {what} --to ssh://destination --json"
        ))?;
        drop(process.stdin.take());
        let errors = process.stderr.take().context("no pipe")?;
        let mut output = process.stdout.take().context("no pipe")?;
        let (say, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    break;
                }
            }
        });
        let output = thread::spawn(move || {
            let mut text = String::new();
            // What is not text is no report, which is seen.
            _ = output.read_to_string(&mut text);
            text
        });
        Ok(Self {
            process,
            lines,
            said: String::new(),
            output,
            began: Instant::now(),
        })
    }

    /// Waits until it says that it has come to a step.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub fn wait_for(&mut self, step: &str) -> Result<()> {
        let wanted = format!("migrator: {step}");
        while let Some(line) = self.next_line()? {
            if line.starts_with(&wanted) {
                return Ok(());
            }
        }
        bail!("the move ended before \"{step}\": {}", self.said)
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn finish(mut self) -> Result<Moved> {
        while self.next_line()?.is_some() {}
        let status = self.process.wait().context("failed to wait for ssh")?;
        let report = self.output.join().unwrap_or_default();
        Ok(Moved {
            status,
            report,
            said: self.said,
        })
    }

    /// Whether it has ended within a time.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < time {
            match self.process.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(100)),
                _ => return true,
            }
        }
        false
    }

    fn next_line(&mut self) -> Result<Option<String>> {
        let left = MOVE.saturating_sub(self.began.elapsed());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.said += &format!("{:7.2} {line}\n", self.began.elapsed().as_secs_f64());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("the move takes too long: {}", self.said),
        }
    }
}
