//! The floating-point control register. A host process may have set it to flush denormals or to
//! round otherwise; kernels run with the default, and the caller gets its own back.

/// Round to nearest even, denormals kept, all exceptions masked.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u32 = 0x1F80;

/// While this lives, the thread computes with the default register; dropping it restores.
pub struct Default {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

#[cfg(target_arch = "x86_64")]
impl Default {
    #[inline]
    pub fn enter() -> Self {
        let before = read();
        // The low six bits are sticky exception flags and change nothing.
        if before & !0x3F != DEFAULT {
            write(DEFAULT);
        }
        Default { before }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Default {
    #[inline]
    fn drop(&mut self) {
        if self.before & !0x3F != DEFAULT {
            write(self.before);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Default {
    pub fn enter() -> Self {
        Default {}
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn read() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores four bytes into `value`.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack, preserves_flags)) };
    value
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn write(value: u32) {
    // SAFETY: `value` is one that this register held, or the default; no reserved bit is set.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, preserves_flags)) };
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::simd::{Op, Simd, available, dispatch_on};

    struct Halve(f32);

    impl Op for Halve {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            s.reduce_max(s.mul(s.splat(self.0), s.splat(0.5)))
        }
    }

    #[test]
    fn vectors_keep_denormals_whatever_the_caller_set() {
        for isa in available() {
            write(DEFAULT | 0x8040);
            let half = dispatch_on(isa, Halve(f32::MIN_POSITIVE));
            write(DEFAULT);
            assert_eq!(half, f32::MIN_POSITIVE / 2.0, "{}", isa.name());
        }
    }

    #[test]
    fn restores_the_callers_state() {
        let flush_to_zero = DEFAULT | 0x8040;
        write(flush_to_zero);
        {
            let _guard = Default::enter();
            assert_eq!(read() & !0x3F, DEFAULT);
        }
        assert_eq!(read() & !0x3F, flush_to_zero & !0x3F);
        write(DEFAULT);
    }
}
