//! Atomic read-modify-write on map values.
//!
//! `core` has none for BPF targets, because the oldest BPF machines have no
//! compare-and-exchange. Linux has all of these since 5.12 (commit
//! 5ffa25502b5a), as instructions of the BPF CPU "v3".

use core::arch::asm;

/// `*word |= bits`
///
/// # Safety
/// `word` points to 8 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits) }
}

/// `*word += 1`, giving the value before.
///
/// # Safety
/// As for [`or`].
#[inline(always)]
pub(crate) unsafe fn increment(word: *mut u64) -> u64 {
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
    let mut before = 0u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) value, inout("r0") before);
    }
    if before == 0 { value } else { before }
}
