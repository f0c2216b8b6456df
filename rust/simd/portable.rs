//! Plain Rust: an array of 16 floats.

use super::{BYTES, LANES, Op, Simd};

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

/// a · b + c, rounded once, by the instruction of the target or in software.
#[inline(always)]
fn exact(a: &F32, b: &F32, c: &F32) -> F32 {
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

#[cfg(any(target_feature = "fma", not(target_arch = "x86_64")))]
use exact as fma;

/// a · b + c, rounded once. Without an instruction `mul_add` is a call for every lane, so this goes by
/// float64: the product is exact (24 + 24 ≤ 53 bits), and rounding the sum to 53 bits and then to 24
/// is rounding once, unless the first ends halfway between two float32, or the second has fewer bits
/// to give because the result is subnormal. Those are left to `mul_add`.
#[cfg(not(any(target_feature = "fma", not(target_arch = "x86_64"))))]
#[inline(always)]
fn fma(a: &F32, b: &F32, c: &F32) -> F32 {
    /// The 29 bits by which float64 is longer, and halfway in them.
    const LONGER: u32 = (1 << 29) - 1;
    const HALFWAY: u32 = 1 << 28;
    let mut sums = [0.0f64; LANES];
    let mut close = 0;
    for i in 0..LANES {
        let sum = f64::from(a[i]) * f64::from(b[i]) + f64::from(c[i]);
        let halfway = sum.to_bits() as u32 & LONGER == HALFWAY;
        let subnormal = (sum.abs() < f64::from(f32::MIN_POSITIVE)) & (sum != 0.0);
        close |= u32::from(halfway | subnormal);
        sums[i] = sum;
    }
    if close == 0 { sums.map(|sum| sum as f32) } else { exact(a, b, c) }
}

impl Simd for Portable {
    type F32 = F32;
    type Mask = [bool; LANES];
    type Bytes = [u8; BYTES];
    type I32 = [i32; LANES];
    type Dots = [i32; LANES];

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
        fma(&a, &b, &c)
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
    fn sqrt(self, a: F32) -> F32 {
        a.map(f32::sqrt)
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
    fn transpose(self, rows: &mut [F32; LANES]) {
        *rows = std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]));
    }

    #[inline(always)]
    fn round_pairs(self, low: F32, high: F32) -> F32 {
        let round = |x: f32| {
            let bits = x.to_bits();
            bits.wrapping_add(0x7FFF + (bits >> 16 & 1))
        };
        zip(low, high, |low, high| f32::from_bits(round(low) >> 16 | round(high) & 0xFFFF_0000))
    }

    #[inline(always)]
    fn least_exponents(self, least: [u8; BYTES], pairs: F32) -> [u8; BYTES] {
        let mut out = least;
        for (out, pair) in out.as_chunks_mut::<4>().0.iter_mut().zip(pairs) {
            for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(pair.to_le_bytes().as_chunks::<2>().0) {
                let exponent = (u16::from_le_bytes(*x) & 0x7F80).wrapping_sub(1);
                *out = exponent.min(u16::from_le_bytes(*out)).to_le_bytes();
            }
        }
        out
    }

    #[inline(always)]
    fn split_pairs(self, a: F32) -> (F32, F32) {
        let bits = a.map(f32::to_bits);
        (bits.map(|x| f32::from_bits(x << 16)), bits.map(|x| f32::from_bits(x & 0xFFFF_0000)))
    }

    #[inline(always)]
    fn reduce_sum(self, a: F32) -> f32 {
        reduce(a, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, a: F32) -> f32 {
        reduce(a, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }

    const CENTRED: bool = false;

    #[inline(always)]
    fn begin_dots(self, _: u32, sum: [i32; LANES]) -> [i32; LANES] {
        sum
    }

    #[inline(always)]
    fn dot_bytes(self, _: u32, sum: [i32; LANES], a: [u8; BYTES], b: [u8; BYTES]) -> [i32; LANES] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i] as i8);
        std::array::from_fn(|i| sum[i] + (4 * i..4 * i + 4).map(product).sum::<i32>())
    }

    #[inline(always)]
    fn end_dots(self, _: u32, _: [i32; LANES], dots: [i32; LANES]) -> [i32; LANES] {
        dots
    }

    #[inline(always)]
    fn dots_at_once(_: u32) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn to_float(self, x: [i32; LANES]) -> F32 {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn round(self, x: F32) -> [i32; LANES] {
        x.map(|x| if x.abs() < 2_147_483_648.0 { x.round_ties_even() as i32 } else { i32::MIN })
    }

    #[inline(always)]
    fn signed_bytes(self, x: [i32; LANES]) -> [i8; LANES] {
        x.map(|x| x as i8)
    }

    #[inline(always)]
    fn halves(self, x: &[u8; 2 * LANES]) -> F32 {
        std::array::from_fn(|i| half::f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32_const())
    }

    #[inline(always)]
    fn bfloat16(self, x: &[u8; 2 * LANES]) -> F32 {
        std::array::from_fn(|i| f32::from_bits(u32::from_le_bytes([0, 0, x[2 * i], x[2 * i + 1]])))
    }

    #[inline(always)]
    fn floats_of_bytes(self, x: &[u8; LANES]) -> F32 {
        x.map(f32::from)
    }

    #[inline(always)]
    fn floats_of_signed_bytes(self, x: &[u8; LANES]) -> F32 {
        x.map(|x| f32::from(x as i8))
    }

    #[inline(always)]
    fn floats_of_nibbles(self, x: &[u8; LANES]) -> (F32, F32) {
        (x.map(|x| f32::from(x & 15)), x.map(|x| f32::from(x >> 4)))
    }

    #[inline(always)]
    fn bytes(self, block: &[u8; BYTES]) -> [u8; BYTES] {
        *block
    }

    #[inline(always)]
    fn store_bytes(self, block: &mut [u8; BYTES], x: [u8; BYTES]) {
        *block = x;
    }

    #[inline(always)]
    fn repeat_bytes(self, four: [i8; 4]) -> [u8; BYTES] {
        std::array::from_fn(|i| four[i % 4] as u8)
    }

    #[inline(always)]
    fn shift_right_bytes(self, x: [u8; BYTES], n: u32, mask: u8) -> [u8; BYTES] {
        x.map(|x| x >> n & mask)
    }

    #[inline(always)]
    fn shift_left_bytes(self, x: [u8; BYTES], n: u32, mask: u8) -> [u8; BYTES] {
        x.map(|x| x << n & mask)
    }

    #[inline(always)]
    fn or_bytes(self, a: [u8; BYTES], b: [u8; BYTES]) -> [u8; BYTES] {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; LANES], x: [u8; BYTES]) -> [u8; BYTES] {
        x.map(|x| table[usize::from(x % 16)])
    }

    #[inline(always)]
    fn between(self, bytes: [u8; BYTES], first: u8, last: u8) -> u64 {
        let within = bytes.map(|byte| u8::from(byte.wrapping_sub(first) <= last.wrapping_sub(first)));
        let (eights, _) = within.as_chunks::<8>();
        // The product brings the low bit of byte i to bit 56 + i: 8 i + 7 (8 - i) = 56 + i, and no other
        // two bytes meet there.
        let gather = |eight: &[u8; 8]| u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        eights.iter().rev().fold(0, |bits, eight| bits << 8 | gather(eight))
    }
}

#[cfg(test)]
mod tests {
    use super::fma;

    #[test]
    fn a_fused_multiply_add_rounds_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, f32::INFINITY, f32::NAN];
        for i in 0..2_000_000 {
            // Any bits, or exponents near each other so that rounding is close to call.
            let near = |x: u32| f32::from_bits(x & 0x807F_FFFF | (120 + (x >> 8) % 16) << 23);
            let (mut a, b, mut c) = match i % 3 {
                0 => (f32::from_bits(next()), f32::from_bits(next()), f32::from_bits(next())),
                _ => (near(next()), near(next()), near(next())),
            };
            if i % 3 == 2 {
                // Few bits in each, so that halfway cases come up.
                (a, c) = (f32::from_bits(a.to_bits() & !0xFFF), f32::from_bits(c.to_bits() & !0x0007_FFFF));
            }
            if i % 97 == 0 {
                c = special[i % special.len()];
            }
            let (found, expected) = (fma(&[a; 16], &[b; 16], &[c; 16])[0], a.mul_add(b, c));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{a:e} · {b:e} + {c:e}: {found:e}, not {expected:e}");
        }
    }
}
