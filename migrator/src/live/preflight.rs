//! The preflight check: whether a tree can be moved to this host.
//!
//! It runs before anything is done for the tree, so that what is known to make a
//! restore fail is reported while the tree still runs on the source.

use std::time::Duration;

use anyhow::{anyhow, bail};
use nix::sys::utsname::uname;

use super::files;
use super::order::{Accepted, ORDER_SCHEMA, Order};
use super::tree;
use crate::child;
use crate::container::{self, IsCancelled, Subject};
use crate::criu::Criu;
use crate::handover::Identity;

/// How long the file systems of the tree's files may take to answer.
const FILES_LIMIT: Duration = Duration::from_secs(60);

/// Reads the order, if it is one of this version.
pub(super) fn read(order: &[u8]) -> anyhow::Result<Order> {
    let order: Order = serde_json::from_slice(order)
        .map_err(|error| anyhow!("malformed order from the source: {error}"))?;
    if order.schema != ORDER_SCHEMA {
        bail!("the source's order is of another version: use the same migrator on both hosts");
    }
    Ok(order)
}

/// Checks whether this host can restore the tree, before anything is done.
pub(super) fn check(
    order: &Order,
    criu: &Criu,
    is_cancelled: IsCancelled<'_>,
) -> anyhow::Result<Accepted> {
    let here = uname().map_err(|error| anyhow!("uname(2) failed: {error}"))?;
    let machine = here.machine().to_string_lossy();
    if machine != order.machine.as_str() {
        bail!(
            "this host is {machine} and the source {}: CRIU can't restore here",
            order.machine
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("CRIU needs root to restore: log in as root, or let --remote-path be a sudo script");
    }
    let version = criu.version(is_cancelled)?;
    container::check_restore(&order.subject, criu, is_cancelled)?;
    if let Subject::Process { .. } = order.subject
        && let Some((pid, name)) = tree::taken(&order.pids)
    {
        bail!("process id {pid} is taken on this host, by {name}: CRIU can't restore it");
    }
    let files = order.files.clone();
    // A dead NFS server answers no open(2).
    child::attend(
        "open files",
        FILES_LIMIT,
        move || files::same_files(&files),
        || match is_cancelled() {
            true => bail!("interrupted at the destination"),
            false => Ok(()),
        },
    )?
    .map_err(anyhow::Error::msg)?;
    if let Some(images) = &order.images
        && !images.is_dir()
    {
        bail!(
            "{} is not a directory on this host: --images-dir has to be shared",
            images.display()
        );
    }
    Ok(Accepted {
        host: here.nodename().to_string_lossy().into_owned(),
        kernel: here.release().to_string_lossy().into_owned(),
        criu: version,
        identity: Identity::here()?,
    })
}
