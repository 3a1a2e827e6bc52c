//! Whether the hosts can do what is asked of them: files, CRIU, migrator.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Host, Hosts, SHARED};

type Step = (&'static str, fn(&Hosts) -> Result<String>);

const STEPS: &[Step] = &[
    ("both clients see one file", one_file),
    ("commands and files go in and out", in_and_out),
    ("network between the clients", network),
    ("criu check", criu_check),
    ("a process reads a file on NFS", start_reader),
    ("criu dump", dump),
    ("images to the destination", send_images),
    ("criu restore", restore),
    ("migrator track", track),
];

/// Where a dump's images are, on either host.
const IMAGES: &str = "/var/tmp/images";

/// Tries everything, in order, until something fails.
///
/// # Errors
/// What failed.
pub(super) fn run(hosts: &Hosts) -> Result<()> {
    for (name, step) in STEPS {
        let start = Instant::now();
        let result = step(hosts);
        let outcome = if result.is_ok() { "passed" } else { "FAILED" };
        println!(
            "{outcome}  {:>6.2} s  {name}",
            start.elapsed().as_secs_f64()
        );
        for line in result?.lines() {
            println!("                  {line}");
        }
    }
    Ok(())
}

fn one_file(hosts: &Hosts) -> Result<String> {
    let file = format!("{SHARED}/data");
    hosts.source.run(&format!(
        "head -c 67108864 /dev/urandom >{file}.new && mv {file}.new {file} && sync {file}"
    ))?;
    let sums =
        [&hosts.source, &hosts.destination].map(|host| host.run(&format!("sha256sum {file}")));
    let [there, here] = sums;
    if there? != here? {
        bail!("{file} differs between source and destination");
    }
    hosts.destination.run(&format!(
        "findmnt --noheadings --output FSTYPE,OPTIONS {SHARED}"
    ))
}

fn in_and_out(hosts: &Hosts) -> Result<String> {
    let directory = std::env::temp_dir().join(format!("migrator-vm-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let copy = || -> Result<()> {
        let (sent, back) = (directory.join("sent"), directory.join("back"));
        std::fs::write(&sent, b"\0\n\xff")?;
        hosts.storage.put(&sent, "/tmp/file")?;
        hosts.storage.get("/tmp/file", &back)?;
        if std::fs::read(back)? != b"\0\n\xff" {
            bail!("a file came back different");
        }
        Ok(())
    };
    let result = copy();
    std::fs::remove_dir_all(&directory)?;
    result?;
    let output = hosts
        .storage
        .output("echo out; echo err >&2; exit 7", Duration::from_secs(60))?;
    if (output.status.code(), &*output.stdout, &*output.stderr) != (Some(7), b"out\n", b"err\n") {
        bail!("a command's results came back different: {output:?}");
    }
    Ok(String::new())
}

fn network(hosts: &Hosts) -> Result<String> {
    let ping = hosts
        .source
        .run("ping -c 5 -i 0.2 -q destination | tail -n 1")?;
    let mut sink = hosts.destination.spawn("nc -l 7000 >/dev/null")?;
    let sent = hosts.source.run(
        "until bash -c 'dd if=/dev/zero bs=1M count=100 2>/tmp/dd >/dev/tcp/destination/7000'
         do sleep 0.1; done 2>/dev/null; tail -n 1 /tmp/dd",
    )?;
    let status = sink.wait()?;
    if !status.success() {
        bail!("what was sent did not arrive: {status}");
    }
    Ok(format!("{}\n{}", ping.trim(), sent.trim()))
}

fn criu_check(hosts: &Hosts) -> Result<String> {
    for host in [&hosts.source, &hosts.destination] {
        host.run("criu check")?;
    }
    hosts.source.run("uname -r; criu --version | head -1")
}

/// Follows the restored reader with the source that every kernel has: without
/// KVM, the kernel may take minutes to verify the programs of the other, and
/// whether those load is for the tests of the programs.
fn track(hosts: &Hosts) -> Result<String> {
    let said = hosts.destination.run(
        "migrator track --source procfs --pid $(pgrep -x reader) --for 3s --json \
         --output /tmp/reader.hot",
    )?;
    let report: Value = serde_json::from_str(&said)
        .with_context(|| format!("migrator track --json says what is not JSON: {said}"))?;
    let data = format!("{SHARED}/data");
    let files = report["files"].as_array().into_iter().flatten();
    let pages = files
        .filter(|file| file["path"] == data.as_str())
        .find_map(|file| file["pages"].as_u64())
        .unwrap_or(0);
    if pages == 0 {
        bail!("the list has no page of {data}, which the process reads: {report}");
    }
    Ok(format!("{pages} pages of {data}"))
}

fn start_reader(hosts: &Hosts) -> Result<String> {
    hosts.source.run(&format!(
        "cd /; setsid /vm/reader {SHARED}/data {SHARED}/counter </dev/null >/dev/null 2>&1 &
         echo $! >/tmp/reader.pid"
    ))?;
    wait_for_progress(&hosts.source)?;
    hosts.source.run("ps -o pid,args -p $(cat /tmp/reader.pid)")
}

fn dump(hosts: &Hosts) -> Result<String> {
    hosts.source.run(&format!(
        "mkdir -p {IMAGES} && criu dump --tree $(cat /tmp/reader.pid) --images-dir {IMAGES} \
         --log-file dump.log || {{ tail -n 20 {IMAGES}/dump.log; exit 1; }}"
    ))?;
    hosts
        .source
        .run(&format!("du -sh {IMAGES}; cat {SHARED}/counter"))
}

fn send_images(hosts: &Hosts) -> Result<String> {
    hosts
        .source
        .run(&format!("scp -rq {IMAGES} destination:{IMAGES}"))
}

fn restore(hosts: &Hosts) -> Result<String> {
    hosts.destination.run(&format!(
        "cd /; criu restore --images-dir {IMAGES} --log-file restore.log --restore-detached \
         </dev/null >/dev/null 2>&1 || {{ tail -n 20 {IMAGES}/restore.log; exit 1; }}"
    ))?;
    wait_for_progress(&hosts.destination)
}

/// Waits until the reader's count grows, as the host sees it.
fn wait_for_progress(host: &Host) -> Result<String> {
    let count = || -> Result<u64> {
        let text = host.run(&format!("cat {SHARED}/counter 2>/dev/null || true"))?;
        Ok(text.trim().parse().unwrap_or(0))
    };
    let (start, before) = (Instant::now(), count()?);
    loop {
        let now = count()?;
        if now > before {
            return Ok(format!("count {before}, then {now}"));
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("the reader's count stays at {now}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}
