//! Float32 to ggml's blocks of 32: Q8_0 as ggml rounds it, Q4_0 and Q4_1 with the scale (and the minimum) of the least
//! squared error that a search finds.
//!
//! A block q of 32 numbers x is to make Σ (x − d q − m)² small. From a few guesses of d and m that leave a little of the
//! range of x uncovered at either end, the codes are rounded and d and m fitted to them (linear least squares), twice;
//! the best of all is rounded to float16, and the codes once more with that. Sixteen blocks lie side by side in the lanes
//! of vectors, and sums run over a block in order, each step rounded to float32, so the bytes are the same on every
//! machine.

use half::f16;

use super::DType;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Numbers of a block.
const BLOCK: usize = 32;

/// How many steps of the range stay uncovered at an end: guesses.
const UNCOVERED: [f32; 4] = [-0.3, 0.3, 0.9, 1.5];

/// Below it a step is taken for none: 1 divided by it might not be finite.
const TINY: f32 = 1e-30;

/// Whether [`quantize`] makes blocks of this type.
pub fn can_quantize(dtype: DType) -> bool {
    matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q4_1)
}

/// A row of finite numbers, a multiple of 32, as the bytes of its blocks; types that [`can_quantize`] denies leave `out`
/// as it is. A scale or minimum that float16 has no number for becomes an infinity (see
/// [`super::blocks::first_non_finite`]).
pub fn quantize(dtype: DType, row: &[f32], out: &mut [u8]) {
    debug_assert_eq!(row.len() / BLOCK * dtype.block().1, out.len());
    match dtype {
        DType::Q8_0 => dispatch(Bytes { row, out }),
        DType::Q4_0 => dispatch(Nibbles::<false> { row, out }),
        DType::Q4_1 => dispatch(Nibbles::<true> { row, out }),
        _ => {}
    }
}

/// Q8_0: d is the largest magnitude / 127.
struct Bytes<'a> {
    row: &'a [f32],
    out: &'a mut [u8],
}

impl Op for Bytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.row.as_chunks::<BLOCK>().0.iter();
        for (x, out) in blocks.zip(self.out.as_chunks_mut::<{ 2 + BLOCK }>().0) {
            let (left, right) = (s.get(&x[..LANES]), s.get(&x[LANES..]));
            let d = s.reduce_max(s.max(s.abs(left), s.abs(right))) / 127.0;
            let factor = s.splat(if d > TINY { 1.0 / d } else { 0.0 });
            out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let halves =
                [s.signed_bytes(s.round(s.mul(left, factor))), s.signed_bytes(s.round(s.mul(right, factor)))];
            for (half, codes) in halves.iter().enumerate() {
                for (i, code) in codes.iter().enumerate() {
                    out[2 + half * LANES + i] = *code as u8;
                }
            }
        }
    }
}

/// Q4_1, or Q4_0, which has no minimum.
struct Nibbles<'a, const MIN: bool> {
    row: &'a [f32],
    out: &'a mut [u8],
}

/// Step and minimum of 16 blocks; where there is no minimum, −8 steps stand for it.
#[derive(Clone, Copy)]
struct Fit<S: Simd> {
    d: S::F32,
    m: S::F32,
}

impl<const MIN: bool> Op for Nibbles<'_, MIN> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = if MIN { 4 } else { 2 };
        let bytes = head + BLOCK / 2;
        for (row, out) in self.row.chunks(LANES * BLOCK).zip(self.out.chunks_mut(LANES * bytes)) {
            let x = side_by_side(s, row);
            let Fit { d, m } = search::<S, MIN>(s, &x);
            let (mut ds, mut ms) = ([0.0; LANES], [0.0; LANES]);
            s.put(&mut ds, d);
            s.put(&mut ms, m);
            let (mut halves, mut mins) = ([0; 2 * LANES], [0; 2 * LANES]);
            for lane in 0..LANES {
                halves[2 * lane..][..2].copy_from_slice(&f16::from_f32(ds[lane]).to_le_bytes());
                mins[2 * lane..][..2].copy_from_slice(&f16::from_f32(ms[lane]).to_le_bytes());
            }
            let d = s.halves(&halves);
            let m = if MIN { s.halves(&mins) } else { s.mul(d, s.splat(-8.0)) };
            let fit = Fit { d, m };
            let factor = inverse(s, d);
            let mut codes = [[0; LANES]; BLOCK];
            for (codes, x) in codes.iter_mut().zip(x) {
                *codes = s.signed_bytes(s.round(place::<S>(s, x, fit, factor)));
            }
            for (lane, out) in out.chunks_exact_mut(bytes).enumerate() {
                out[..2].copy_from_slice(&halves[2 * lane..][..2]);
                if MIN {
                    out[2..4].copy_from_slice(&mins[2 * lane..][..2]);
                }
                for i in 0..BLOCK / 2 {
                    out[head + i] = (codes[i][lane] | codes[i + BLOCK / 2][lane] << 4) as u8;
                }
            }
        }
    }
}

/// Number i of each of up to 16 blocks in the lanes of vector i.
#[inline(always)]
fn side_by_side<S: Simd>(s: S, row: &[f32]) -> [S::F32; BLOCK] {
    let mut x = [s.splat(0.0); BLOCK];
    for (half, x) in x.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (block, x) in row.chunks_exact(BLOCK).zip(x.iter_mut()) {
            *x = s.get(&block[half * LANES..][..LANES]);
        }
        s.transpose(x);
    }
    x
}

#[inline(always)]
fn search<S: Simd, const MIN: bool>(s: S, x: &[S::F32; BLOCK]) -> Fit<S> {
    let (mut low, mut high) = (x[0], x[0]);
    for x in x {
        low = s.min(low, *x);
        high = s.max(high, *x);
    }
    let range = s.sub(high, low);
    let step = s.div(range, s.splat(15.0));
    // The number of the largest magnitude becomes the code 0, or, as the other end, 15.
    let end = s.select(s.lt(high, s.sub(s.splat(0.0), low)), low, high);
    // If no error is a number, these are what will not be, either.
    let mut best = if MIN { Fit { d: step, m: low } } else { Fit { d: end, m: end } };
    let mut least = s.splat(f32::INFINITY);
    let guesses = UNCOVERED.len() * if MIN { UNCOVERED.len() } else { 2 };
    for guess in 0..guesses {
        let (other, this) = (UNCOVERED[guess / UNCOVERED.len()], UNCOVERED[guess % UNCOVERED.len()]);
        let mut fit = if MIN {
            let d = s.div(s.sub(range, s.mul(step, s.splat(other + this))), s.splat(15.0));
            Fit { d, m: s.add(low, s.mul(step, s.splat(other))) }
        } else if guess < UNCOVERED.len() {
            symmetric(s, s.div(end, s.splat(this - 8.0)))
        } else {
            symmetric(s, s.div(end, s.splat(7.0 - this)))
        };
        for _ in 0..2 {
            fit = fitted::<S, MIN>(s, x, fit);
        }
        let error = error(s, x, fit);
        let better = s.lt(error, least);
        least = s.select(better, error, least);
        best.d = s.select(better, fit.d, best.d);
        best.m = s.select(better, fit.m, best.m);
    }
    best
}

#[inline(always)]
fn symmetric<S: Simd>(s: S, d: S::F32) -> Fit<S> {
    Fit { d, m: s.mul(d, s.splat(-8.0)) }
}

/// 1 / d, or 0 for what is nearly 0.
#[inline(always)]
fn inverse<S: Simd>(s: S, d: S::F32) -> S::F32 {
    s.select(s.lt(s.splat(TINY), s.abs(d)), s.div(s.splat(1.0), d), s.splat(0.0))
}

/// Where a number lies between the first code and the last, 0 … 15.
#[inline(always)]
fn place<S: Simd>(s: S, x: S::F32, fit: Fit<S>, factor: S::F32) -> S::F32 {
    s.min(s.max(s.mul(s.sub(x, fit.m), factor), s.splat(0.0)), s.splat(15.0))
}

/// A code: the nearest, ties to even.
#[inline(always)]
fn code<S: Simd>(s: S, x: S::F32, fit: Fit<S>, factor: S::F32) -> S::F32 {
    // In sums so large the last bit is 1.
    let large = s.splat(12_582_912.0);
    s.sub(s.add(place(s, x, fit, factor), large), large)
}

/// Step and minimum of the least squared error for the codes that `fit` gives.
#[inline(always)]
fn fitted<S: Simd, const MIN: bool>(s: S, x: &[S::F32; BLOCK], fit: Fit<S>) -> Fit<S> {
    let (zero, factor) = (s.splat(0.0), inverse(s, fit.d));
    let offset = s.splat(if MIN { 0.0 } else { 8.0 });
    let [mut q_sum, mut x_sum, mut qq, mut xq] = [zero; 4];
    for x in x {
        let q = s.sub(code(s, *x, fit, factor), offset);
        q_sum = s.add(q_sum, q);
        x_sum = s.add(x_sum, *x);
        qq = s.add(qq, s.mul(q, q));
        xq = s.add(xq, s.mul(*x, q));
    }
    let count = s.splat(BLOCK as f32);
    if MIN {
        let spread = s.sub(s.mul(count, qq), s.mul(q_sum, q_sum));
        let d = s.div(s.sub(s.mul(count, xq), s.mul(x_sum, q_sum)), spread);
        let d = s.select(s.lt(zero, spread), d, zero);
        Fit { d, m: s.div(s.sub(x_sum, s.mul(d, q_sum)), count) }
    } else {
        symmetric(s, s.select(s.lt(zero, qq), s.div(xq, qq), zero))
    }
}

/// The squared error.
#[inline(always)]
fn error<S: Simd>(s: S, x: &[S::F32; BLOCK], fit: Fit<S>) -> S::F32 {
    let factor = inverse(s, fit.d);
    let mut sum = s.splat(0.0);
    for x in x {
        let difference = s.sub(*x, s.add(s.mul(fit.d, code(s, *x, fit, factor)), fit.m));
        sum = s.add(sum, s.mul(difference, difference));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::dequantize::dequantize;
    use super::*;
    use crate::simd::{self, available};

    fn noise(len: usize) -> Vec<f32> {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| next() + next() + next()).collect()
    }

    fn bytes(dtype: DType, row: &[f32]) -> Vec<u8> {
        let mut out = vec![0; row.len() / BLOCK * dtype.block().1];
        quantize(dtype, row, &mut out);
        out
    }

    #[test]
    fn bytes_are_the_same_on_every_instruction_set_and_in_every_row() {
        let before = simd::current();
        let row = noise(19 * BLOCK);
        for &dtype in DType::ALL.iter().filter(|dtype| can_quantize(**dtype)) {
            let expected = bytes(dtype, &row);
            for isa in available() {
                simd::set(isa);
                assert_eq!(bytes(dtype, &row), expected);
                let apart: Vec<u8> = row.chunks(BLOCK).flat_map(|block| bytes(dtype, block)).collect();
                assert_eq!(apart, expected);
            }
            simd::set(before);
        }
    }

    #[test]
    fn blocks_of_one_number_are_exact() {
        for value in [0.0, 1.0, -0.5, 0.25] {
            for dtype in [DType::Q4_0, DType::Q4_1] {
                let mut found = [f32::NAN; BLOCK];
                dequantize(dtype, &bytes(dtype, &[value; BLOCK]), &mut found);
                assert_eq!(found, [value; BLOCK], "{dtype:?}");
            }
        }
    }
}
