//! Debian's kernels for the guests.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::image;
use crate::command;
use crate::suite::Suite;

/// Short names of kernels, each with the suite that has it.
const NAMES: &[(&str, &str)] = &[
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
    ("newest", "trixie-backports"),
];

/// The package whose dependency is a suite's newest kernel for virtual
/// machines: small, with virtio and NFS.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// What the initial RAM file system must load to find its disks. The cloud
/// kernels have some of it built in, not all of them the same.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// A kernel with its modules.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The kernel of a name, from the cache or the Debian mirror.
    ///
    /// A name is a version (`5.10`, `6.1`, `6.12`, `newest`), a suite, or
    /// `SUITE:PACKAGE` for one that is not the newest of its suite.
    ///
    /// # Errors
    /// When it can't be fetched or is not laid out as Debian's are.
    pub(super) fn get(name: &str, cache: &Path) -> Result<Self> {
        let (suite, package) = parse(name)?;
        let directory = cache.join("kernels").join(format!("{suite}-{package}"));
        if !directory.exists() {
            println!("Fetching the kernel {package} of {suite}");
            let partial = directory.with_extension("partial");
            image::remove(&partial)?;
            make(suite, package, cache, &partial)
                .with_context(|| format!("failed to make the kernel {name}"))?;
            fs::rename(&partial, &directory)
                .with_context(|| format!("failed to create {}", directory.display()))?;
        }
        Ok(Self { directory })
    }

    /// A kernel that has built in all that it needs, laid out in a directory.
    ///
    /// # Errors
    /// When the file can't be read or is no kernel.
    pub(super) fn of_image(image: &Path, cache: &Path, directory: &Path) -> Result<Self> {
        let (boot, modules) = (directory.join("boot"), directory.join("modules"));
        image::remove(directory)?;
        fs::create_dir_all(boot.join("modules"))?;
        fs::create_dir_all(boot.join("bin"))?;
        fs::create_dir_all(&modules)?;
        fs::write(boot.join("modules/order"), "")?;
        fs::copy(busybox(cache)?, boot.join("bin/busybox")).context("failed to copy busybox")?;
        fs::copy(image, directory.join("vmlinuz"))
            .with_context(|| format!("failed to copy {}", image.display()))?;
        image::ext4(&modules, &directory.join("modules.img"), "1M")?;
        let kernel = Self {
            directory: directory.to_owned(),
        };
        kernel.release()?;
        Ok(kernel)
    }

    /// What `uname -r` says in a guest that runs it.
    ///
    /// # Errors
    /// When the image can't be read, or does not say.
    pub(crate) fn release(&self) -> Result<String> {
        let path = self.image();
        let image =
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        release(&image).with_context(|| {
            format!(
                "failed to find a Linux kernel for x86 in {}",
                path.display()
            )
        })
    }

    /// What QEMU boots.
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// A disk with what belongs into /usr/lib/modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("modules.img")
    }

    /// Makes the initial RAM file system that runs a script.
    pub(super) fn initrd(&self, script: &Path, into: &Path) -> Result<()> {
        let tree = self.directory.join("boot");
        fs::copy(script, tree.join("init"))
            .with_context(|| format!("failed to copy {}", script.display()))?;
        // cpio(1) takes the names on its input.
        let names = command::output(Command::new("find").arg(".").current_dir(&tree))?;
        let mut cpio = Command::new("cpio")
            .args(["--create", "--format=newc", "--quiet", "--file"])
            .arg(into)
            .current_dir(&tree)
            .stdin(Stdio::piped())
            .spawn()
            .context("failed to start cpio")?;
        if let Some(mut stdin) = cpio.stdin.take() {
            use std::io::Write;
            stdin
                .write_all(names.as_bytes())
                .context("failed to write to cpio")?;
        }
        let status = cpio.wait().context("failed to wait for cpio")?;
        if !status.success() {
            bail!("failed to make {} with cpio: {status}", into.display());
        }
        Ok(())
    }
}

/// The suite of a kernel's name, which may be its own.
///
/// # Errors
/// When it names none.
pub(crate) fn suite(name: &str) -> Result<&str> {
    parse(name).map(|(suite, _)| suite)
}

/// The release in the header of an image (Documentation/arch/x86/boot.rst,
/// `kernel_version`): the first word of a text.
fn release(image: &[u8]) -> Option<String> {
    const MAGIC: Range<usize> = 0x202..0x206;
    const VERSION: Range<usize> = 0x20e..0x210;
    if image.get(MAGIC)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(VERSION)?.try_into().ok()?);
    let text = image.get(0x200 + usize::from(offset)..)?;
    let word = text.split(|byte| *byte == b' ' || *byte == 0).next()?;
    let release = str::from_utf8(word).ok()?;
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_~".contains(&byte);
    (release.starts_with(|first: char| first.is_ascii_digit()) && release.bytes().all(sound))
        .then(|| release.to_owned())
}

/// Suite and package of a kernel's name.
fn parse(name: &str) -> Result<(&str, &str)> {
    let (suite, package) = name.split_once(':').unwrap_or((name, PACKAGE));
    let suite = NAMES
        .iter()
        .find(|(short, _)| *short == suite)
        .map_or(suite, |(_, suite)| suite);
    // Both become part of paths and of apt's arguments.
    let sound = |text: &str| {
        text.starts_with(|first: char| first.is_ascii_lowercase())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    if !sound(suite) || !sound(package) {
        let names: Vec<_> = NAMES.iter().map(|(short, _)| *short).collect();
        bail!(
            "{name} names no kernel: give {}, a Debian suite, or SUITE:PACKAGE",
            names.join(", "),
        );
    }
    Ok((suite, package))
}

/// Fetches the packages and lays out what [`Kernel`] hands out.
fn make(suite: &str, package: &str, cache: &Path, into: &Path) -> Result<()> {
    let suite = Suite::fetch(suite, &cache.join("apt"))?;
    let files = into.join("files");
    let parts: Vec<_> = suite
        .dependencies(package)?
        .into_iter()
        .filter(|name| is_part_of_kernel(name))
        .collect();
    if parts.is_empty() {
        bail!("{package} of {} leads to no kernel", suite.name());
    }
    suite.unpack(&parts, &files)?;

    // Packages of before the merge of /usr have their modules in /lib; depmod
    // looks only there.
    let modules = into.join("modules");
    let unpacked = ["usr/lib/modules", "lib/modules"]
        .map(|place| files.join(place))
        .into_iter()
        .find(|place| place.exists())
        .context("the package has no modules")?;
    fs::create_dir_all(modules.join("lib"))?;
    fs::rename(unpacked, modules.join("lib/modules"))?;
    let release = only_entry(&modules.join("lib/modules"))?;
    command::output(
        Command::new(command::find("depmod").context("there is no depmod")?)
            .arg("--basedir")
            .arg(&modules)
            .arg(&release),
    )?;
    image::ext4(
        &modules.join("lib/modules"),
        &into.join("modules.img"),
        "1G",
    )?;

    let boot = into.join("boot");
    fs::create_dir_all(boot.join("bin"))?;
    fs::create_dir_all(boot.join("modules"))?;
    copy_boot_modules(&modules.join("lib/modules").join(&release), &boot)?;
    fs::copy(busybox(cache)?, boot.join("bin/busybox")).context("failed to copy busybox")?;
    // Packages of before Linux 7 have it in /boot, later ones with the modules.
    let image = [
        files.join("boot").join(format!("vmlinuz-{release}")),
        modules.join("lib/modules").join(&release).join("vmlinuz"),
    ]
    .into_iter()
    .find(|place| place.exists())
    .context("the package has no kernel")?;
    fs::copy(&image, into.join("vmlinuz"))
        .with_context(|| format!("failed to copy {}", image.display()))?;
    image::remove(&files)?;
    image::remove(&modules)
}

/// Whether a package that the kernel's package depends on is part of the
/// kernel, and not what would install it. The names with a version hold the
/// files; since 6.16 there is more than one.
fn is_part_of_kernel(name: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// Copies the modules that are needed to find the disks, unpacked, with the
/// order in which they are loaded.
fn copy_boot_modules(from: &Path, boot: &Path) -> Result<()> {
    let listing = from.join("modules.dep");
    let listing = fs::read_to_string(&listing)
        .with_context(|| format!("failed to read {}", listing.display()))?;
    let mut order = String::new();
    for module in loading_order(&listing, BOOT_MODULES) {
        let path = from.join(module);
        let bytes = if module.ends_with(".xz") {
            let output = Command::new("xz")
                .args(["--decompress", "--stdout"])
                .arg(&path)
                .output()
                .context("failed to start xz")?;
            if !output.status.success() {
                bail!("failed to decompress {}: {}", path.display(), output.status);
            }
            output.stdout
        } else if module.ends_with(".ko") {
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?
        } else {
            bail!("{module} is compressed in a way that is not known here");
        };
        let name = format!("{}.ko", module_name(module));
        fs::write(boot.join("modules").join(&name), bytes)
            .with_context(|| format!("failed to write {name}"))?;
        order += &name;
        order.push('\n');
    }
    fs::write(boot.join("modules/order"), order).context("failed to write the order of modules")
}

/// The modules of `modules.dep` (modules.dep(5)) that have to be loaded for
/// the named ones, each after those that it needs. Names that are not there
/// are built in.
fn loading_order<'a>(listing: &'a str, names: &[&str]) -> Vec<&'a str> {
    let lines: BTreeMap<&str, (&str, &str)> = listing
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| (module_name(module), (module, needs)))
        .collect();
    let mut order = Vec::new();
    for (module, needs) in names.iter().filter_map(|name| lines.get(name)) {
        // What is needed is listed in the reverse of the order of loading.
        for needed in needs.split_whitespace().rev().chain([*module]) {
            if !order.contains(&needed) {
                order.push(needed);
            }
        }
    }
    order
}

/// `virtio_blk` of `kernel/drivers/block/virtio_blk.ko.xz`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// The name of the one entry that a directory has.
fn only_entry(directory: &Path) -> Result<String> {
    let names = fs::read_dir(directory)
        .with_context(|| format!("failed to read {}", directory.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    match names.as_slice() {
        [name] => Ok(name.clone()),
        _ => bail!(
            "expected one kernel in {}, found {names:?}",
            directory.display()
        ),
    }
}

/// A busybox that needs no libraries.
fn busybox(cache: &Path) -> Result<PathBuf> {
    let directory = cache.join("busybox");
    if !directory.exists() {
        let partial = directory.with_extension("partial");
        image::remove(&partial)?;
        fs::create_dir_all(&partial)
            .with_context(|| format!("failed to create {}", partial.display()))?;
        Suite::fetch(image::SUITE, &cache.join("apt"))?
            .unpack(&["busybox-static".to_owned()], &partial)?;
        fs::rename(&partial, &directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
    }
    ["usr/bin/busybox", "bin/busybox"]
        .map(|place| directory.join(place))
        .into_iter()
        .find(|place| place.exists())
        .context("the package busybox-static has no busybox")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_version_suite_or_package() {
        assert_eq!(parse("5.10").expect("known"), ("bullseye", PACKAGE));
        assert_eq!(parse("sid").expect("a suite"), ("sid", PACKAGE));
        assert_eq!(
            parse("trixie-backports:linux-image-7.2.9+deb13-cloud-amd64").expect("a package"),
            ("trixie-backports", "linux-image-7.2.9+deb13-cloud-amd64")
        );
        for wrong in ["", "4.4", "../etc", "-o", "sid:", "sid:-o", "sid:a/b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_image_tells_its_release() {
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e] = 0x50;
        image[0x250..0x276].copy_from_slice(b"4.4.302-x+ (a@b) #1 SMP Thu Jan 1 1970");
        assert_eq!(release(&image).as_deref(), Some("4.4.302-x+"));
        // It becomes part of paths.
        image[0x250..0x254].copy_from_slice(b"4./.");
        assert_eq!(release(&image), None);
        image[0x20f] = 0xff;
        assert_eq!(release(&image), None);
        assert_eq!(release(b"MZ"), None);
    }

    #[test]
    fn the_parts_of_a_kernel_carry_its_version() {
        assert!(is_part_of_kernel("linux-image-5.10.0-46-cloud-amd64"));
        assert!(is_part_of_kernel("linux-modules-7.3.4+deb13-cloud-amd64"));
        assert!(!is_part_of_kernel("linux-image-cloud-amd64"));
        assert!(!is_part_of_kernel("linux-base-7.3.4"));
        assert!(!is_part_of_kernel("initramfs-tools"));
    }

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let listing = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
                       kernel/fs/jbd2/jbd2.ko: kernel/lib/crc16.ko\n\
                       kernel/lib/crc16.ko:\n\
                       kernel/drivers/block/virtio_blk.ko.xz:\n";
        assert_eq!(
            loading_order(listing, &["virtio_pci", "virtio_blk", "ext4"]),
            [
                "kernel/drivers/block/virtio_blk.ko.xz",
                "kernel/lib/crc16.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/ext4/ext4.ko",
            ]
        );
    }
}
