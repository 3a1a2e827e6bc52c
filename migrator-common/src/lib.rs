//! What crosses the boundary between migrator and its eBPF programs.
//!
//! Everything here is `repr(C)` with fixed widths and no padding, because two
//! compilers for two targets have to agree on it.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod access;
pub mod config;
pub mod event;

#[cfg(feature = "user")]
mod user {
    use crate::{access, config, event};

    // SAFETY: repr(C) structs of integers without padding, so that every
    // byte is initialised and every bit pattern is a value.
    unsafe impl aya::Pod for config::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for event::FileKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for event::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for access::ProcessPage {}
    // SAFETY: as above.
    unsafe impl aya::Pod for access::ChunkKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for access::ChunkBits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for access::Sides {}
    // SAFETY: as above.
    unsafe impl aya::Pod for access::Cursor {}
}
