//! Whether this host can take a tree over.
//!
//! The destination looks before anything is done for the tree, so that what is
//! known to make a restore fail is told while the tree still runs at the source.

use anyhow::{Context, anyhow, bail};
use nix::sys::utsname::uname;

use super::files;
use super::order::{Able, ORDER_SCHEMA, Order, Subject};
use super::tree;
use crate::container;
use crate::criu::Criu;

/// Reads the order, if it is one of this version.
pub(super) fn read(order: &[u8]) -> anyhow::Result<Order> {
    let order: Order = serde_json::from_slice(order)
        .map_err(|error| anyhow!("the source's order makes no sense: {error}"))?;
    if order.schema != ORDER_SCHEMA {
        bail!("the source's order is of another version: use the same migrator on both hosts");
    }
    Ok(order)
}

/// Finds out whether this host can do it, before anything is done.
pub(super) fn able(order: &Order, criu: &Criu) -> anyhow::Result<Able> {
    let here = uname().context("failed to learn what this host is")?;
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
    let version = criu.version()?;
    container::able(&order.subject, criu)?;
    if let Subject::Process { .. } = order.subject
        && let Some((pid, name)) = tree::taken(&order.pids)
    {
        bail!("process id {pid} is taken on this host, by {name}: CRIU can't restore it");
    }
    files::same_files(&order.files).map_err(anyhow::Error::msg)?;
    if let Some(images) = &order.images
        && !images.is_dir()
    {
        bail!(
            "{} is not a directory on this host: --images-dir has to be shared",
            images.display()
        );
    }
    Ok(Able {
        host: here.nodename().to_string_lossy().into_owned(),
        kernel: here.release().to_string_lossy().into_owned(),
        criu: version,
    })
}
