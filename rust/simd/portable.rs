//! Plain Rust: an array of 16 floats. `mul_add` is an exact fused multiply-add everywhere, by
//! instruction or in software.

use super::{LANES, Op, Simd};

#[derive(Clone, Copy)]
pub struct Portable;

type F32 = [f32; LANES];

#[inline(always)]
fn zip(a: F32, b: F32, f: impl Fn(f32, f32) -> f32) -> F32 {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn reduce(mut a: F32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            a[i] = f(a[i], a[i + half]);
        }
        half /= 2;
    }
    a[0]
}

impl Simd for Portable {
    type F32 = F32;
    type Mask = [bool; LANES];

    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> F32 {
        // SAFETY: the caller vouches for 16 floats.
        unsafe { src.cast::<F32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_first(self, src: *const f32, n: usize) -> F32 {
        // SAFETY: the caller vouches for n floats.
        std::array::from_fn(|i| if i < n { unsafe { src.add(i).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, x: F32) {
        // SAFETY: the caller vouches for 16 floats.
        unsafe { dst.cast::<F32>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn store_first(self, dst: *mut f32, n: usize, x: F32) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            // SAFETY: the caller vouches for n floats.
            unsafe { dst.add(i).write_unaligned(x) }
        }
    }

    #[inline(always)]
    fn prefetch(self, _src: *const f32) {}

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: F32, b: F32, c: F32) -> F32 {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, a: F32) -> F32 {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn copysign(self, a: F32, sign: F32) -> F32 {
        zip(a, sign, f32::copysign)
    }

    #[inline(always)]
    fn lt(self, a: F32, b: F32) -> [bool; LANES] {
        std::array::from_fn(|i| a[i] < b[i])
    }

    #[inline(always)]
    fn is_nan(self, a: F32) -> [bool; LANES] {
        a.map(f32::is_nan)
    }

    #[inline(always)]
    fn lanes(self, from: usize, to: usize) -> [bool; LANES] {
        std::array::from_fn(|i| from <= i && i < to)
    }

    #[inline(always)]
    fn select(self, mask: [bool; LANES], a: F32, b: F32) -> F32 {
        std::array::from_fn(|i| if mask[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn add_to_exponent(self, a: F32, n: F32) -> F32 {
        zip(a, n, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }

    #[inline(always)]
    fn reduce_sum(self, a: F32) -> f32 {
        reduce(a, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, a: F32) -> f32 {
        reduce(a, |a, b| if a > b { a } else { b })
    }
}
