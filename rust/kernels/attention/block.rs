//! One block of keys and values, for the queries of a strip.

use std::ops::Range;
use std::ptr;

use super::kv::{BLOCK, Element, Head};
use super::scratch::{Scratch, Strip};
use super::sums::{finite_or_zero, merge, row_len};
use super::tile::{Call, Tile};
use crate::kernels::product::{ByRows, Float32, Packed, Product};
use crate::kernels::vecmath;
use crate::simd::{LANES, Simd};

/// A block's sums, for the queries of strip `i` that see some of it, merged into those of the span.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn one_block<S: Simd, T: Element>(
    s: S,
    call: &Call<'_>,
    tile: &Tile<'_>,
    i: usize,
    block: usize,
    head: Head<T>,
    ahead: isize,
    scratch: &mut Scratch,
) {
    let Scratch { strips, scores, block: sums } = scratch;
    let strip = &mut strips[i];
    let first = block * BLOCK;
    let inside = strip.within(first);
    let seen = &inside[..strip.queries];
    let mut end = 0;
    for seen in seen {
        end = if seen.is_empty() { end } else { end.max(seen.end) };
    }
    if end == 0 {
        return;
    }
    let scores = scores.floats(strip.queries * BLOCK);
    let rows = sums.rows.floats(strip.queries * row_len(&call.heads));
    multiply_keys(s, call, strip, head, end, ahead, scores);
    for v in 0..seen.len() {
        if !seen[v].is_empty() {
            let row = &mut scores[v * BLOCK..][..BLOCK];
            let finished = finish_scores(s, row, &seen[v], head, tile.bias(&call.heads, v, first));
            let sum = &mut rows[v * row_len(&call.heads)..][..LANES];
            sums.max[v] = exponentials(s, finished, head, row, sum);
        }
    }
    multiply_values(s, call, seen, head, ahead, scores, rows);
    let sees = strip.sees(block..block + 1);
    merge(s, &call.heads, &sees[..strip.queries], &mut strip.span, sums);
}

/// `scores` = q · kᵀ for the first `positions` of a block, and what else is in their panels; without the
/// scales of keys.
#[inline(always)]
pub(super) fn multiply_keys<S: Simd, T: Element>(
    s: S,
    call: &Call<'_>,
    strip: &Strip,
    head: Head<T>,
    positions: usize,
    ahead: isize,
    scores: &mut [f32],
) {
    let (n, d) = (strip.queries, call.heads.head_dim);
    // SAFETY: `q` is `[d][n]`, the keys are `[4][d][16]`, `scores` has room for n rows of 64.
    unsafe {
        Product {
            rows: n,
            columns: positions.next_multiple_of(LANES),
            k: d,
            a: strip.q.get(n * d).as_ptr(),
            b: head.keys,
            b_panel: d * LANES,
            b_k: LANES,
            ahead,
            c: scores.as_mut_ptr(),
            c_row: BLOCK,
            accumulate: false,
            bias: ptr::null(),
        }
        .run::<S, Packed, Float32>(s);
    }
}

/// The 64 scores of a query and a block: products times the scales of keys, plus the bias, −∞ for what the
/// query does not see.
#[inline(always)]
pub(super) fn finish_scores<S: Simd, T: Element>(
    s: S,
    products: &[f32],
    seen: &Range<usize>,
    head: Head<T>,
    bias: Option<&[f32]>,
) -> [S::F32; BLOCK / LANES] {
    let low = s.splat(f32::NEG_INFINITY);
    let mut scores = [low; BLOCK / LANES];
    for i in 0..scores.len() {
        let at = i * LANES;
        let mut x = s.get(&products[at..]);
        if T::SCALED {
            // SAFETY: there are 64 scales.
            x = s.mul(x, unsafe { s.load(head.key_scales.add(at)) });
        }
        if let Some(bias) = bias
            && at < bias.len()
        {
            x = s.add(x, s.get(&bias[at..]));
        }
        scores[i] = if *seen == (0..BLOCK) {
            x
        } else {
            s.select(s.lanes(seen.start.saturating_sub(at), seen.end.saturating_sub(at)), x, low)
        };
    }
    scores
}

/// e^(score − maximum), times the scales of values, into `weights`, and the 16 partial sums of the exponentials
/// into `sum`; the maximum. A NaN among the scores makes a sum NaN.
#[inline(always)]
fn exponentials<S: Simd, T: Element>(
    s: S,
    scores: [S::F32; BLOCK / LANES],
    head: Head<T>,
    weights: &mut [f32],
    sum: &mut [f32],
) -> f32 {
    let max = s.max(s.max(scores[0], scores[1]), s.max(scores[2], scores[3]));
    let max = s.reduce_max(max);
    let base = s.splat(finite_or_zero(max));
    let mut total = s.splat(0.0);
    for i in 0..scores.len() {
        let mut e = vecmath::exp(s, s.sub(scores[i], base));
        total = s.add(total, e);
        if T::SCALED {
            // SAFETY: there are 64 scales.
            e = s.mul(e, unsafe { s.load(head.value_scales.add(i * LANES)) });
        }
        s.put(&mut weights[i * LANES..], e);
    }
    s.put(sum, total);
    max
}

/// `weights [queries][64]` · v into the rows of [`Sums`]: each query walks the positions that it sees, and no
/// others, in order: first those before what all queries see, then these together, then the rest.
#[inline(always)]
fn multiply_values<S: Simd, T: Element>(
    s: S,
    call: &Call<'_>,
    seen: &[Range<usize>],
    head: Head<T>,
    ahead: isize,
    weights: &[f32],
    rows: &mut [f32],
) {
    let (d, row) = (call.heads.head_dim, row_len(&call.heads));
    let (weights, sums) = (weights.as_ptr(), rows.as_mut_ptr().wrapping_add(LANES));
    let product = |v: usize, rows: usize, positions: Range<usize>, accumulate: bool| {
        // SAFETY: queries v … v + rows of `weights [n][64]` and of the rows of sums, positions of `[64][d]`.
        unsafe {
            Product {
                rows,
                columns: d,
                k: positions.len(),
                a: weights.add(v * BLOCK + positions.start),
                b: head.values.add(positions.start * d),
                b_panel: LANES,
                b_k: d,
                ahead,
                c: sums.add(v * row),
                c_row: row,
                accumulate,
                bias: ptr::null(),
            }
        }
    };
    let mut common = 0..BLOCK;
    for seen in seen {
        common = common.start.max(seen.start)..common.end.min(seen.end);
    }
    // SAFETY (all runs): see `product`.
    if common.is_empty() {
        for v in 0..seen.len() {
            unsafe { product(v, 1, seen[v].clone(), false).run::<S, ByRows, Float32>(s) };
        }
        return;
    }
    let mut early = false;
    for seen in seen {
        early |= seen.start < common.start;
    }
    if early {
        for v in 0..seen.len() {
            unsafe { product(v, 1, seen[v].start..common.start, false).run::<S, ByRows, Float32>(s) };
        }
    }
    unsafe { product(0, seen.len(), common.clone(), early).run::<S, ByRows, Float32>(s) };
    for v in 0..seen.len() {
        if seen[v].end > common.end {
            unsafe { product(v, 1, common.end..seen[v].end, true).run::<S, ByRows, Float32>(s) };
        }
    }
}
