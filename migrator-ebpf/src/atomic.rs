//! Read-modify-write on map values, whole to all who do it.
//!
//! `core` has no atomics for BPF targets, because the oldest BPF machines have
//! no compare-and-exchange. Linux has all of these since 5.12 (commit
//! 5ffa25502b5a), as instructions of the BPF CPU "v3". On older kernels each
//! CPU has a map of its own, and nothing comes between load and store: the
//! programs run in tasks, and without preemption (`migrate_disable` was
//! `preempt_disable` then, except on real-time kernels). Userspace takes the instructions out of the
//! object there, because the verifier refuses them even where it sees that
//! they are not reached.

use core::arch::asm;

use crate::config::config;

/// Whether nobody else writes this CPU's map. Constant to the verifier.
#[inline(always)]
pub(crate) fn alone() -> bool {
    config(|c| &c.per_cpu) != 0
}

/// `*word |= bits`
///
/// # Safety
/// `word` points to 8 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, bits: u64) {
    if alone() {
        // SAFETY: the caller's promise.
        unsafe { word.write_volatile(word.read_volatile() | bits) };
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits) }
}

/// `*word += 1`, giving the value before.
///
/// # Safety
/// As for [`or`].
#[inline(always)]
pub(crate) unsafe fn increment(word: *mut u64) -> u64 {
    if alone() {
        // SAFETY: the caller's promise.
        return unsafe {
            let before = word.read_volatile();
            word.write_volatile(before + 1);
            before
        };
    }
    let mut value = 1u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) word, inout(reg) value);
    }
    value
}

/// Writes `value` if there is 0, and gives what stands there from now on.
///
/// # Safety
/// As for [`or`].
#[inline(always)]
pub(crate) unsafe fn claim(word: *mut u64, value: u64) -> u64 {
    if alone() {
        // SAFETY: the caller's promise.
        return unsafe {
            let before = word.read_volatile();
            if before != 0 {
                return before;
            }
            word.write_volatile(value);
            value
        };
    }
    let mut before = 0u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) value, inout("r0") before);
    }
    if before == 0 { value } else { before }
}
