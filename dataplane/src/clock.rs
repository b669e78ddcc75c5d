//! Time, read once a batch and passed in.

/// A moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic clock of this boot, in milliseconds; wraps after 49 days.
    pub tick: u32,
}

impl Now {
    /// Reads the kernel's monotonic clock (through the vDSO: no system call).
    pub fn read() -> Now {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Now { tick: (time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000) as u32 }
    }
}

/// The processor's time-stamp counter: cycles of a constant rate.
#[inline(always)]
#[allow(unsafe_code)]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reading the counter has no precondition on x86-64.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}
