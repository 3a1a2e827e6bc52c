//! Memory of this process that is not in use.

/// Gives it back to the kernel. The allocator keeps as much as was in use for a moment,
/// to have it again soon, and a tracker that is left on does not need it again.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call without pointers; the allocator locks what it works on
    // (malloc_trim(3)).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
