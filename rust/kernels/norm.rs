//! Normalisation over rows, and its gradients.

use crate::kernels::rows_per_chunk;
use crate::kernels::sums::{Terms, add_row_sums, add_terms};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};

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

/// `x, dy, dx [rows, width]`, `weight, dweight, dbias [width]`: the gradients of [`layer_norm`] with the
/// same `x`, `weight` and `eps`. With x̂ = (x − mean) / √(variance + eps) and g = dy · weight,
///
/// ```text
/// dx = (g − mean of g − x̂ · mean of (g · x̂)) / √(variance + eps)
/// dweight += Σ dy · x̂ over the rows, dbias += Σ dy
/// ```
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) {
    norm_backward::<true>(x, width, weight, eps, dy, dx, dweight);
    if let Some(dbias) = dbias {
        add_row_sums(dy, width, dbias);
    }
}

/// `x, dy, dx [rows, width]`, `weight, dweight [width]`: the gradients of [`rms_norm`] with the same `x`,
/// `weight` and `eps`. With x̂ = x / √(mean of x² + eps) and g = dy · weight,
///
/// ```text
/// dx = (g − x̂ · mean of (g · x̂)) / √(mean of x² + eps)
/// dweight += Σ dy · x̂ over the rows
/// ```
pub fn rms_norm_backward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    norm_backward::<false>(x, width, weight, eps, dy, dx, dweight);
}

fn norm_backward<const CENTRED: bool>(
    x: &[f32],
    width: usize,
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    assert!(x.len() == dx.len() && dy.len() == dx.len() && weight.len() == width);
    assert!(dweight.as_ref().is_none_or(|dweight| dweight.len() == width));
    if width == 0 {
        return;
    }
    let mut scales = vec![Scale { mean: 0.0, factor: 0.0 }; x.len() / width];
    let rows = rows_per_chunk(width);
    let all = SendPtr(scales.as_mut_ptr());
    threads::for_each_mut(dx, rows * width, |i, dx| {
        let part = i * rows * width..i * rows * width + dx.len();
        // SAFETY: the rows of a chunk are its own.
        let scales = unsafe { std::slice::from_raw_parts_mut(all.get().add(i * rows), dx.len() / width) };
        dispatch(Backward::<CENTRED> { x: &x[part.clone()], weight, eps, dy: &dy[part], dx, scales });
    });
    if let Some(dweight) = dweight {
        add_terms(&Normed { x, dy, width, scales: &scales }, scales.len(), dweight);
    }
}

/// x̂ = (x − mean) · factor.
#[derive(Clone, Copy)]
struct Scale {
    mean: f32,
    factor: f32,
}

impl Scale {
    /// Of a row for [`layer_norm`], in two passes, or with a mean of 0 for [`rms_norm`].
    #[inline(always)]
    fn new<S: Simd, const CENTRED: bool>(s: S, x: &[f32], eps: f32) -> Scale {
        let n = x.len() as f32;
        let mean = if CENTRED {
            let mut sum = s.splat(0.0);
            for x in x.chunks(LANES) {
                sum = s.add(sum, s.get(x));
            }
            s.reduce_sum(sum) / n
        } else {
            0.0
        };
        let mut squares = s.splat(0.0);
        for x in x.chunks(LANES) {
            let d = s.sub(s.get(x), s.splat(mean));
            let d = s.select(s.lanes(0, x.len()), d, s.splat(0.0));
            squares = s.fma(d, d, squares);
        }
        Scale { mean, factor: 1.0 / (s.reduce_sum(squares) / n + eps).sqrt() }
    }

    /// x̂ of up to 16 elements.
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: &[f32]) -> S::F32 {
        s.mul(s.sub(s.get(x), s.splat(self.mean)), s.splat(self.factor))
    }
}

struct Backward<'a, const CENTRED: bool> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    scales: &'a mut [Scale],
}

impl<const CENTRED: bool> Op for Backward<'_, CENTRED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        let n = width as f32;
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        for (((x, dy), dx), scale) in rows.zip(self.dx.chunks_exact_mut(width)).zip(self.scales) {
            *scale = Scale::new::<S, CENTRED>(s, x, self.eps);
            let (mut sum, mut product) = (s.splat(0.0), s.splat(0.0));
            let columns = || x.chunks(LANES).zip(dy.chunks(LANES)).zip(self.weight.chunks(LANES));
            for ((x, dy), weight) in columns() {
                // Past the end g is 0.
                let g = s.mul(s.get(dy), s.get(weight));
                sum = s.add(sum, g);
                product = s.fma(g, scale.apply(s, x), product);
            }
            let mean = s.splat(if CENTRED { s.reduce_sum(sum) / n } else { 0.0 });
            let product = s.splat(-s.reduce_sum(product) / n);
            let factor = s.splat(scale.factor);
            for (((x, dy), weight), dx) in columns().zip(dx.chunks_mut(LANES)) {
                let g = s.sub(s.mul(s.get(dy), s.get(weight)), mean);
                s.put(dx, s.mul(s.fma(scale.apply(s, x), product, g), factor));
            }
        }
    }
}

/// dy · x̂, what the gradient of the weight sums.
struct Normed<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    width: usize,
    scales: &'a [Scale],
}

impl Terms for Normed<'_> {
    #[inline(always)]
    fn get<S: Simd>(&self, s: S, row: usize, column: usize) -> S::F32 {
        let part = row * self.width + column..(row + 1) * self.width;
        s.mul(s.get(&self.dy[part.clone()]), self.scales[row].apply(s, &self.x[part]))
    }
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
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = Scale::new::<S, true>(s, x, self.eps);
            let columns = x.chunks(LANES).zip(self.weight.chunks(LANES)).zip(out.chunks_mut(LANES));
            for (i, ((x, weight), out)) in columns.enumerate() {
                let d = scale.apply(s, x);
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
            let scale = Scale::new::<S, false>(s, x, self.eps);
            let columns = x.chunks(LANES).zip(self.weight.chunks(LANES)).zip(out.chunks_mut(LANES));
            for ((x, weight), out) in columns {
                s.put(out, s.mul(scale.apply(s, x), s.get(weight)));
            }
        }
    }
}
