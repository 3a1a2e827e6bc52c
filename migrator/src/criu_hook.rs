//! The cache's part of an action script of CRIU (`--action-script` in
//! criu(8)): at a dump the page index list goes into the directory of the
//! images, at a restore the pages of that list are read.
//!
//! CRIU waits for the script at each stage and takes an exit code other than
//! zero as an order to give up. Nothing here may be a reason for that. So the
//! process that CRIU started does next to nothing itself: it starts this
//! program again, for a look at the page cache that it waits for so long and
//! no longer, or for a prefetch that it does not wait for at all. Whatever
//! becomes of those, it ends with zero.
//!
//! Which stages (`criu/cr-dump.c`, `criu/cr-restore.c` of CRIU):
//! - `pre-dump`: the tasks still run. This is when the pages are looked at.
//! - `post-dump`: the tasks are frozen and the images complete. The list is
//!   written, with the files as they are now.
//! - `pre-restore`: nothing exists yet. A tree without a mount namespace of its
//!   own sees files where this host does, so reading can begin.
//! - `post-setup-namespaces`: the root task and its mounts exist, its memory
//!   does not. It comes only for trees with namespaces of their own.
//! - `pre-resume`: all is as it will be, file locks are held, nothing runs yet.
//!   What was dropped (NFS drops the pages of a file that gets locked) is
//!   read again; `post-resume` would come after the images are closed.

pub mod install;
pub mod list;
pub mod look;
pub mod stage;
pub mod supervise;
pub mod worker;

/// The name of the list among the images.
pub const LIST: &str = "migrator.pil";

/// The name under which this program is CRIU's action script: CRIU takes a
/// path and no arguments.
pub const NAME: &str = "migrator-criu-hook";

/// Where the log is, and which restore has which worker.
pub const RUN: &str = "/run/migrator";
