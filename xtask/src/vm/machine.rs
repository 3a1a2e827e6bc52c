//! A virtual machine: one QEMU process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::console::{self, Console};
use super::process::Process;

/// How the guests' instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// By the processor.
    Kvm,
    /// By translation: some ten times slower, and works everywhere.
    Tcg,
}

/// How long a machine that works at all takes to boot an initial RAM file
/// system under KVM, several times over.
const KVM_PROBE: Duration = Duration::from_secs(10);

impl Accelerator {
    /// KVM where a machine really boots with it: there are hosts whose
    /// /dev/kvm opens and whose guests hang. The answer is kept in a file until
    /// this host boots again.
    pub(super) fn find(
        cache: &Path,
        directory: &Path,
        kernel: &Path,
        initrd: &Path,
    ) -> Result<Self> {
        if !Path::new("/dev/kvm").exists() {
            return Ok(Self::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("failed to read the boot's id")?;
        let kept = cache.join("accelerator");
        let answer = |accelerator: &str| format!("{accelerator} {boot}");
        match fs::read_to_string(&kept).unwrap_or_default() {
            known if known == answer("kvm") => return Ok(Self::Kvm),
            known if known == answer("tcg") => return Ok(Self::Tcg),
            _ => {}
        }
        let probe = Machine::start(&Plan {
            name: "kvm-probe",
            directory,
            kernel,
            initrd,
            parameters: "migrator.probe",
            disks: &[],
            devices: &[],
            processors: 1,
            threads: Threads::Single,
            memory: 256,
            accelerator: Self::Kvm,
        })?;
        let (found, word) = match probe.wait_for("migrator-vm: alive", KVM_PROBE) {
            Ok(()) => (Self::Kvm, "kvm"),
            Err(_) => {
                println!("A guest does not boot with /dev/kvm here; using TCG, which is slower");
                (Self::Tcg, "tcg")
            }
        };
        fs::write(&kept, answer(word))
            .with_context(|| format!("failed to write {}", kept.display()))?;
        Ok(found)
    }

    /// How much longer things may take than under KVM.
    pub(super) fn slowness(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 4,
        }
    }

    fn arguments(self, threads: Threads) -> [&'static str; 4] {
        match (self, threads) {
            (Self::Kvm, _) => ["-accel", "kvm", "-cpu", "host"],
            (Self::Tcg, Threads::Single) => ["-accel", "tcg,thread=single", "-cpu", "max"],
            (Self::Tcg, Threads::Multi) => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// A translated guest shares its processors with all others: that it stood
    /// still for a while is no fault of its kernel.
    fn parameters(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => " nowatchdog rcupdate.rcu_cpu_stall_suppress=1",
        }
    }
}

/// QEMU's threads for the processors of a translated machine.
///
/// With a thread for each, QEMU 7.2 goes on executing instructions that another
/// processor has replaced: where static keys of the scheduler are switched, as
/// by an eBPF program that is attached, Linux 6.12 dies of `Oops: int3`, within
/// seconds at the worst, once in a hundred migrations at the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One, in which they take turns.
    Single,
    /// One each, for what has to meet its races and patches nothing.
    Multi,
}

/// A disk of a machine, in order vda, vdb, …
#[derive(Debug)]
pub(super) struct Disk {
    /// The image, in QEMU's raw format.
    pub(super) image: PathBuf,
    /// Whether the guest can write. What it writes never reaches the image.
    pub(super) writable: bool,
}

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Of the machine, its console and its sockets.
    pub(super) name: &'a str,
    /// Where those are.
    pub(super) directory: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    /// More parameters of the kernel.
    pub(super) parameters: &'a str,
    pub(super) disks: &'a [Disk],
    /// QEMU's arguments for its network cards, or for what else it has.
    pub(super) devices: &'a [String],
    pub(super) processors: u32,
    /// How they are translated, where they are.
    pub(super) threads: Threads,
    /// MiB.
    pub(super) memory: u32,
    pub(super) accelerator: Accelerator,
}

/// A machine that was started; dropping it ends it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) console: Console,
    process: Process,
}

impl Machine {
    /// Starts QEMU.
    ///
    /// # Errors
    /// When it can't be started. Whether it boots is asked with `wait_for`.
    pub(super) fn start(plan: &Plan<'_>) -> Result<Self> {
        let name = plan.name;
        let console = Console::new(plan.directory.join(format!("{name}.console")));
        let mut qemu = Command::new("qemu-system-x86_64");
        // Sockets are named relative to the working directory, for their paths
        // are limited to 108 bytes. Temporary overlays are large.
        qemu.current_dir(plan.directory)
            .env("TMPDIR", plan.directory);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "pc", "-no-reboot", "-name", name])
            .args(plan.accelerator.arguments(plan.threads))
            .args(["-smp", &plan.processors.to_string()])
            .args(["-m", &plan.memory.to_string()]);
        qemu.arg("-kernel").arg(plan.kernel);
        qemu.arg("-initrd").arg(plan.initrd);
        // A kernel that is in trouble stops, and QEMU with it.
        qemu.arg("-append").arg(format!(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic migrator.name={name} {}{}",
            plan.parameters,
            plan.accelerator.parameters(),
        ));
        qemu.args([
            "-chardev",
            &format!("file,id=console,path={name}.console,append=on"),
        ])
        .args(["-serial", "chardev:console"])
        .args(["-device", "virtio-rng-pci"]);
        for disk in plan.disks {
            let mode = if disk.writable {
                "snapshot=on,cache=unsafe"
            } else {
                "readonly=on"
            };
            // A comma in a file's name is doubled for QEMU.
            let image = disk.image.to_string_lossy().replace(',', ",,");
            qemu.arg("-drive")
                .arg(format!("file={image},format=raw,if=virtio,{mode}"));
        }
        qemu.args(plan.devices);
        Ok(Self {
            name: name.to_owned(),
            process: Process::start(&qemu, console.path())?,
            console,
        })
    }

    /// Waits until the console has a line that ends so.
    ///
    /// # Errors
    /// When the machine ends, reports a fault, or does not say it in time.
    pub(super) fn wait_for(&self, line: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let text = self.console.text();
            if text.lines().any(|said| said.ends_with(line)) {
                return Ok(());
            }
            self.check()?;
            if start.elapsed() > limit {
                bail!(
                    "{} did not say \"{line}\" within {limit:?}; {}",
                    self.name,
                    self.console.excerpt(),
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes sure that the machine runs and its kernel has not complained.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(status) = self.process.exited()? {
            bail!(
                "the machine {} ended ({status}); {}",
                self.name,
                self.console.excerpt(),
            );
        }
        let text = self.console.text();
        if let [first, ..] = console::faults(&text)[..] {
            bail!(
                "{} reports a fault: {first}\n{}",
                self.name,
                self.console.excerpt(),
            );
        }
        Ok(())
    }

    /// Pulls the plug.
    pub(super) fn kill(&self) -> Result<()> {
        self.process.kill()
    }
}
