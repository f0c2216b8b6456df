//! Normalisation over rows.

use crate::kernels::rows_per_chunk;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// `x, out [rows, width]`, `weight, bias [width]`: layer normalisation (Ba et al. 2016),
/// out = (x − mean) / √(variance + eps) · weight + bias, with the biased variance, in two passes.
pub fn layer_norm(x: &[f32], width: usize, weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len() && weight.len() == width && bias.is_none_or(|b| b.len() == width));
    let chunk = rows_per_chunk(width) * width;
    threads::for_each_mut(out, chunk, |i, out| {
        dispatch(LayerNorm { x: &x[i * chunk..][..out.len()], weight, bias, eps, out });
    });
}

/// `x, out [rows, width]`, `weight [width]`: root mean square normalisation (Zhang & Sennrich
/// 2019), out = x / √(mean of x² + eps) · weight.
pub fn rms_norm(x: &[f32], width: usize, weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len() && weight.len() == width);
    let chunk = rows_per_chunk(width) * width;
    threads::for_each_mut(out, chunk, |i, out| {
        dispatch(RmsNorm { x: &x[i * chunk..][..out.len()], weight, eps, out });
    });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Op for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        let n = width as f32;
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mut sum = s.splat(0.0);
            for x in x.chunks(LANES) {
                sum = s.add(sum, s.get(x));
            }
            let mean = s.splat(s.reduce_sum(sum) / n);
            let mut squares = s.splat(0.0);
            for x in x.chunks(LANES) {
                let d = s.sub(s.get(x), mean);
                let d = s.select(s.lanes(0, x.len()), d, s.splat(0.0));
                squares = s.fma(d, d, squares);
            }
            let scale = s.splat(1.0 / (s.reduce_sum(squares) / n + self.eps).sqrt());
            let columns = x.chunks(LANES).zip(self.weight.chunks(LANES)).zip(out.chunks_mut(LANES));
            for (i, ((x, weight), out)) in columns.enumerate() {
                let d = s.mul(s.sub(s.get(x), mean), scale);
                let y = match self.bias {
                    Some(bias) => s.fma(d, s.get(weight), s.get(&bias[i * LANES..])),
                    None => s.mul(d, s.get(weight)),
                };
                s.put(out, y);
            }
        }
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Op for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mut squares = s.splat(0.0);
            for x in x.chunks(LANES) {
                let x = s.get(x);
                squares = s.fma(x, x, squares);
            }
            let mean = s.reduce_sum(squares) / width as f32;
            let scale = s.splat(1.0 / (mean + self.eps).sqrt());
            let columns = x.chunks(LANES).zip(self.weight.chunks(LANES)).zip(out.chunks_mut(LANES));
            for ((x, weight), out) in columns {
                s.put(out, s.mul(s.mul(s.get(x), scale), s.get(weight)));
            }
        }
    }
}
