//! Bringing memory near before it is read.

/// Begins to fetch bytes into the second-level cache; where no memory is, nothing happens.
#[inline(always)]
pub(crate) fn fetch(start: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        let line = start.wrapping_add(at);
        // SAFETY: a hint of the baseline, which cannot fault whatever the address.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.cast());
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    }
}
