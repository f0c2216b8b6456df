//! Softmax over rows, and its logarithm.

use crate::kernels::{rows_per_chunk, vecmath};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// `x [rows, width]`, in place: eˣ / Σ eˣ over each row, with the row's maximum taken out first. A
/// row of nothing but −∞ becomes NaN.
pub fn softmax(x: &mut [f32], width: usize) {
    let chunk = rows_per_chunk(width) * width;
    threads::for_each_mut(x, chunk, |_, x| dispatch(Softmax { x, width }));
}

/// `x, out [rows, width]`: x − ln Σ eˣ over each row.
pub fn log_softmax(x: &[f32], width: usize, out: &mut [f32]) {
    assert!(x.len() == out.len());
    let chunk = rows_per_chunk(width) * width;
    threads::for_each_mut(out, chunk, |i, out| {
        dispatch(LogSoftmax { x: &x[i * chunk..][..out.len()], width, out });
    });
}

/// ln Σ eˣ over `row`; −∞ for an empty row.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let (max, log_sum) = dispatch(LogSum(row));
    max + log_sum
}

#[inline(always)]
pub(super) fn max_of<S: Simd>(s: S, row: &[f32]) -> f32 {
    let low = s.splat(f32::NEG_INFINITY);
    let mut max = low;
    for x in row.chunks(LANES) {
        max = s.max(s.select(s.lanes(0, x.len()), s.get(x), low), max);
    }
    s.reduce_max(max)
}

struct Softmax<'a> {
    x: &'a mut [f32],
    width: usize,
}

impl Op for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.width) {
            let max = s.splat(max_of(s, row));
            let mut sum = s.splat(0.0);
            for x in row.chunks_mut(LANES) {
                let e = vecmath::exp(s, s.sub(s.get(x), max));
                sum = s.add(sum, s.select(s.lanes(0, x.len()), e, s.splat(0.0)));
                s.put(x, e);
            }
            let sum = s.splat(s.reduce_sum(sum));
            for x in row.chunks_mut(LANES) {
                let y = s.div(s.get(x), sum);
                s.put(x, y);
            }
        }
    }
}

/// The maximum of a row, and ln Σ e^(x − maximum).
struct LogSum<'a>(&'a [f32]);

impl Op for LogSum<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let max = max_of(s, self.0);
        // Without a finite or NaN element there is nothing to take out.
        let base = s.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
        let mut sum = s.splat(0.0);
        for x in self.0.chunks(LANES) {
            let e = vecmath::exp(s, s.sub(s.get(x), base));
            sum = s.add(sum, s.select(s.lanes(0, x.len()), e, s.splat(0.0)));
        }
        // One logarithm a row: in float64, so that rounding it to float32 leaves half an ulp.
        (max, f64::from(s.reduce_sum(sum)).ln() as f32)
    }
}

struct LogSoftmax<'a> {
    x: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Op for LogSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let (max, log_sum) = LogSum(x).run(s);
            let (max, log_sum) = (s.splat(max), s.splat(log_sum));
            for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
                s.put(out, s.sub(s.sub(s.get(x), max), log_sum));
            }
        }
    }
}
