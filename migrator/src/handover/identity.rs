//! Which host this is, and which of its boots.
//!
//! A name or an address may lead to another host tomorrow. The identity is a
//! random number on the disk with the machine id (machine-id(5)), for two hosts
//! may share that disk, and the kernel's boot id (random(4),
//! `/proc/sys/kernel/random/boot_id`).

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::session::{STORAGE, random};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const HOST_ID: &str = "host-id";
const MACHINE_ID: &str = "/etc/machine-id";

/// How long a machine id is.
const MACHINE_ID_CHARS: usize = 32;

/// A host and a boot of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 128 random bits in hexadecimal, made at the first order, and the
    /// machine id if there is one.
    pub host: String,
    /// The kernel's boot id.
    pub boot: String,
}

impl Identity {
    /// Returns this host's, and makes it at the first time.
    ///
    /// # Errors
    /// It can't be read or written.
    pub fn here() -> anyhow::Result<Self> {
        let machine_id = fs::read_to_string(MACHINE_ID).unwrap_or_default();
        Self::below(Path::new(STORAGE), &machine_id, Path::new(BOOT_ID))
    }

    fn below(storage: &Path, machine_id: &str, boot_id: &Path) -> anyhow::Result<Self> {
        let path = storage.join(HOST_ID);
        let fail = |what| move || format!("failed to {what} this host's identity, {}", HOST_ID);
        let read = || match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let host = match read().with_context(fail("read"))? {
            Some(host) => host,
            None => {
                make(storage, &path).with_context(fail("write"))?;
                read()
                    .with_context(fail("read"))?
                    .context("this host's identity was removed")?
            }
        };
        if host.len() != 32 || !host.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            bail!(
                "{} does not hold a host's identity: remove it, and a new one is made",
                path.display()
            );
        }
        let boot = fs::read_to_string(boot_id)
            .with_context(|| format!("failed to read {}", boot_id.display()))?;
        let machine_id: String = machine_id
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(MACHINE_ID_CHARS)
            .collect();
        Ok(Self {
            host: host + &machine_id,
            boot: boot.trim().to_owned(),
        })
    }
}

fn make(storage: &Path, path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(storage)?;
    let number = u128::from_ne_bytes(random()?);
    let mut file = tempfile::NamedTempFile::new_in(storage)?;
    writeln!(file, "{number:032x}")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        // Another process was first.
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error.into()),
        Ok(_) => Ok(fs::File::open(storage)?.sync_all()?),
    }
}

/// As it is sent: both numbers with a space between.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.host, self.boot)
    }
}

impl FromStr for Identity {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.split(' ').collect::<Vec<_>>()[..] {
            [host, boot] if !host.is_empty() && !boot.is_empty() => Ok(Self {
                host: host.to_owned(),
                boot: boot.to_owned(),
            }),
            _ => bail!("a host's identity consists of two numbers"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_host_stays_itself_over_boots() {
        let directory = tempfile::tempdir().unwrap();
        let boot_id = directory.path().join("boot_id");
        let storage = directory.path().join("lib");
        let identity = |boot: &str| {
            fs::write(&boot_id, boot).unwrap();
            Identity::below(&storage, "m\n", &boot_id).unwrap()
        };
        let (first, second) = (identity("one\n"), identity("two\n"));
        assert_eq!(first.host, second.host);
        let other = Identity::below(&storage, "n\n", &boot_id).unwrap();
        assert_ne!(first.host, other.host, "a disk that two hosts share");
        assert_eq!((&*first.boot, &*second.boot), ("one", "two"));
        assert_eq!(first.to_string().parse::<Identity>().unwrap(), first);
        assert!("x".parse::<Identity>().is_err());
        fs::write(storage.join(HOST_ID), "damaged").unwrap();
        assert!(Identity::below(&storage, "m", &boot_id).is_err());
    }
}
