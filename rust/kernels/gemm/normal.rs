//! When sums of products of bfloat16 are never subnormal, so that those who emulate the instruction need not look.
//!
//! [`Simd::dot_bfloat16`] takes a sum that is subnormal as 0, which costs several operations for each that is not. A
//! bfloat16 that is normal, with exponent e, is a multiple of 2^(e − 7). If the least exponents of the numbers of A
//! and of B, zeros aside, are e and f, then every product is a multiple of 2^(e + f − 14), and so is every sum: rounding
//! leaves a sum as it is or makes it a multiple of something greater. Where e + f − 14 ≥ −126 a sum is thus 0 or at least
//! 2^−126, which is normal; this holds too for what a sum begins with, a multiple of 2^(g − 23), if g ≥ −103.

use super::pack::some;
use crate::simd::{BYTES, LANES, Op, Simd, prefetch};

/// How many floats before they are read pairs are asked for.
const AHEAD: usize = 1024;

/// As exponents are stored.
const BIAS: u32 = 127;

/// Panels of pairs of bfloat16 as float32, the second of each first. Whoever makes one vouches that `steps` vectors of
/// each panel can be read, and twice as many written, panel by panel. Returns what [`LeastExponent`] would.
pub(super) struct Apart {
    pub pairs: *const f32,
    pub panels: usize,
    /// From one panel to the next.
    pub panel: usize,
    pub steps: usize,
    pub to: *mut f32,
}

impl Op for Apart {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u32 {
        let mut least = s.bytes(&[0xFF; BYTES]);
        let mut to = self.to;
        for panel in 0..self.panels {
            let mut pairs = self.pairs.wrapping_add(panel * self.panel);
            for _ in 0..self.steps {
                prefetch(pairs.wrapping_add(AHEAD));
                // SAFETY: the maker's.
                unsafe {
                    let both = s.load(pairs);
                    least = s.least_exponents(least, both);
                    let (low, high) = s.split_pairs(both);
                    s.store(to, high);
                    s.store(to.add(LANES), low);
                    (pairs, to) = (pairs.add(LANES), to.add(2 * LANES));
                }
            }
        }
        smallest(s, least)
    }
}

/// Of bfloat16, in pairs or as float32, the least exponent, as it is stored; more than any if there are only zeros. Whoever makes one
/// vouches that `len` floats can be read, and that none of their halves is subnormal.
pub(super) struct LeastExponent {
    pub numbers: *const f32,
    pub len: usize,
}

impl Op for LeastExponent {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u32 {
        let mut least = s.bytes(&[0xFF; BYTES]);
        let mut at = 0;
        while at < self.len {
            // SAFETY: the maker's.
            least =
                s.least_exponents(least, unsafe { some(s, self.numbers.add(at), LANES.min(self.len - at)) });
            at += LANES;
        }
        smallest(s, least)
    }
}

/// Of all that [`Simd::least_exponents`] found, as an exponent.
#[inline(always)]
fn smallest<S: Simd>(s: S, least: S::Bytes) -> u32 {
    let mut block = [0; BYTES];
    s.store_bytes(&mut block, least);
    let mut halves = [0; BYTES / 2];
    for i in 0..halves.len() {
        halves[i] = u16::from_le_bytes([block[2 * i], block[2 * i + 1]]);
    }
    let mut len = halves.len();
    while len > 1 {
        len /= 2;
        for i in 0..len {
            halves[i] = halves[i].min(halves[len + i]);
        }
    }
    (u32::from(halves[0]) + 1) >> 7
}

/// Whether sums of products of numbers with such least exponents are multiples of 2^−126.
pub(super) fn products_are_normal(a: u32, b: u32) -> bool {
    a.saturating_add(b) >= 2 * BIAS - 112
}

/// Whether `rows` of `columns` floats are multiples of 2^−126. Whoever makes one vouches that they can be read.
pub(super) struct SumsAreNormal {
    pub c: *const f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Op for SumsAreNormal {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let (most, zero) = (s.splat(f32::MAX), s.splat(0.0));
        let mut least = most;
        for row in 0..self.rows {
            let mut column = 0;
            while column < self.columns {
                // SAFETY: the maker's.
                let x = unsafe {
                    some(s, self.c.add(row * self.stride + column), LANES.min(self.columns - column))
                };
                let x = s.abs(x);
                least = s.min(s.select(s.lt(zero, x), x, most), least);
                column += LANES;
            }
        }
        let mut lanes = [0.0; LANES];
        s.put(&mut lanes, least);
        let bound = f32::from_bits((BIAS - 103) << 23);
        let mut fine = 0;
        for i in 0..LANES {
            fine += u32::from(lanes[i] < bound);
        }
        fine == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, available, dispatch_on};

    fn least(isa: Isa, pairs: &[f32]) -> u32 {
        dispatch_on(isa, LeastExponent { numbers: pairs.as_ptr(), len: pairs.len() })
    }

    /// Of two rows, the last number of each left out.
    fn are_normal(isa: Isa, sums: &[f32]) -> bool {
        let stride = sums.len() / 2;
        dispatch_on(isa, SumsAreNormal { c: sums.as_ptr(), stride, rows: 2, columns: stride - 1 })
    }

    #[test]
    fn finds_the_least_exponent_of_both_halves() {
        let pair = |low: f32, high: f32| f32::from_bits(high.to_bits() | low.to_bits() >> 16);
        for isa in available() {
            for len in [1, 15, 16, 17, 40] {
                let mut pairs = vec![pair(0.0, -0.0); len];
                assert!(least(isa, &pairs) > 255, "{isa:?} {len}");
                for (i, exponent) in [(0, 130), (len / 2, 100), (len - 1, 1)] {
                    let x = -f32::from_bits(exponent << 23 | 0x7F_0000);
                    let before = pairs[i];
                    for pair in [pair(x, 0.0), pair(f32::INFINITY, x), pair(x, f32::NAN)] {
                        pairs[i] = pair;
                        assert_eq!(least(isa, &pairs), exponent, "{isa:?} {len} {i}");
                    }
                    pairs[i] = before;
                }
            }
        }
    }

    #[test]
    fn finds_sums_that_are_too_fine() {
        let bound = 2f32.powi(-103);
        for isa in available() {
            for columns in [1, 16, 21] {
                let mut sums = vec![0.0; 2 * (columns + 1)];
                // What is not theirs counts for nothing.
                sums[columns] = 1e-40;
                assert!(are_normal(isa, &sums), "{isa:?} {columns}");
                for i in [0, columns - 1, 2 * columns] {
                    sums[i] = -bound;
                    assert!(are_normal(isa, &sums), "{isa:?} {columns} {i}");
                    sums[i] = bound * 0.99;
                    assert!(!are_normal(isa, &sums), "{isa:?} {columns} {i}");
                    sums[i] = 0.0;
                }
            }
        }
    }
}
