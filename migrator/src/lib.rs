//! `migrator` moves a container from one Linux host to another with its hot
//! page cache, so that it is fast from its first read on the new host.
//!
//! The data goes one way: [`source`] → [`heat`] → [`pagelist`] → [`format`]
//! (or [`protocol`]) → [`plan`] → [`prefetch`].

#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

pub mod btf;
pub mod cgroup;
pub mod child;
pub mod cli;
pub mod command;
pub mod container;
pub mod criu;
pub mod criu_hook;
pub mod destination;
pub mod duty;
pub mod exit;
pub mod file;
pub mod format;
pub mod handover;
pub mod heat;
pub mod held;
pub mod history;
pub mod kernel;
pub mod live;
pub mod memory;
pub mod observe;
pub mod pagelist;
pub mod pathmap;
pub mod plan;
pub mod prefetch;
pub mod process;
pub mod protocol;
pub mod residency;
pub mod say;
pub mod signals;
pub mod snapshot;
pub mod source;
pub mod target;
pub mod tracker;
pub mod transfer;
