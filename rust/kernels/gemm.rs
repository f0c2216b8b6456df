//! Rows times a matrix of weights.

use std::cell::RefCell;
use std::ptr;

use crate::kernels::product::{MAX_ROWS, Product};
use crate::kernels::{self, rows_per_chunk};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};
use crate::weights::Panels;

/// Panels of one chunk: what one tile takes.
const WIDTH: usize = 4;

/// Inputs of one pass over a chunk's panels: 2048 · 4 · 64 bytes stay in half of a 1 MiB L2 cache while
/// the rows go by.
const K_BLOCK: usize = 2048;

/// Rows that are packed at a time, which bounds the scratch.
const ROW_BLOCK: usize = 80 * MAX_ROWS;

/// Strips of rows that a chunk has at least, if the product has more: enough to use a panel often.
const STRIPS: usize = 8;

/// `a [rows, k]`, `b [n, k]` as panels, `bias [n]`, `out [rows, n]`: out = a · bᵀ + bias.
///
/// An element of out is one chain of fused multiply-adds from 0 in the order of k, then the bias;
/// its bits depend on its row of `a` and its row of `b` alone.
pub fn gemm(a: &[f32], rows: usize, b: &Panels, bias: Option<&[f32]>, out: &mut [f32]) {
    let (n, k) = (b.n, b.k);
    assert!(a.len() == rows * k && out.len() == rows * n && bias.is_none_or(|bias| bias.len() == n));
    let bias = bias.map_or(ptr::null(), <[f32]>::as_ptr);
    for first in (0..rows).step_by(ROW_BLOCK) {
        let last = rows.min(first + ROW_BLOCK);
        let (a, out) = (&a[first * k..last * k], &mut out[first * n..last * n]);
        if last - first == 1 {
            // A single row is its own packing.
            multiply(a, 1, 1, b, bias, out);
        } else {
            PACKED.with_borrow_mut(|packed| {
                let strip = MAX_ROWS.min(last - first);
                pack(a, k, strip, packed);
                multiply(packed, last - first, strip, b, bias, out);
            });
        }
    }
}

thread_local! {
    /// Rows as strips; kept, since every product of a pass needs it.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `a [rows, k]` to strips of `[k][strip]`; the last strip may be narrower.
fn pack(a: &[f32], k: usize, strip: usize, packed: &mut Vec<f32>) {
    packed.resize(a.len(), 0.0);
    let size = strip * k;
    let chunk = rows_per_chunk(size) * size;
    threads::for_each_mut(packed, chunk, |i, packed| {
        for (a, packed) in a[i * chunk..].chunks(size).zip(packed.chunks_mut(size)) {
            match a.len() / k {
                2 => interleave::<2>(a, packed),
                3 => interleave::<3>(a, packed),
                4 => interleave::<4>(a, packed),
                5 => interleave::<5>(a, packed),
                MAX_ROWS => interleave::<MAX_ROWS>(a, packed),
                _ => packed.copy_from_slice(a),
            }
        }
    });
}

/// `a [M, k]` to `[k][M]`; M is a constant so that the inner loop is straight code.
fn interleave<const M: usize>(a: &[f32], packed: &mut [f32]) {
    let k = a.len() / M;
    let rows: [&[f32]; M] = std::array::from_fn(|r| &a[r * k..][..k]);
    for (j, to) in packed.as_chunks_mut::<M>().0.iter_mut().enumerate() {
        for r in 0..M {
            to[r] = rows[r][j];
        }
    }
}

/// `packed`: `rows` rows as strips of `strip`.
fn multiply(packed: &[f32], rows: usize, strip: usize, b: &Panels, bias: *const f32, out: &mut [f32]) {
    let strips = rows.div_ceil(strip);
    let across = b.count().div_ceil(WIDTH);
    // Rows are split too until there are chunks enough for the threads to end together.
    let down = (16 * threads::size()).div_ceil(across.max(1)).clamp(1, strips.div_ceil(STRIPS));
    let strips_per_chunk = strips.div_ceil(down);
    let down = strips.div_ceil(strips_per_chunk);
    let job = Job {
        packed: SendPtr(packed.as_ptr().cast_mut()),
        rows,
        strip,
        b,
        bias: SendPtr(bias.cast_mut()),
        out: SendPtr(out.as_mut_ptr()),
    };
    let chunk = |i: usize| {
        let (column, row) = (i / down * WIDTH * LANES, i % down * strips_per_chunk);
        dispatch(Chunk {
            job: &job,
            columns: column..b.n.min(column + WIDTH * LANES),
            strips: row..strips.min(row + strips_per_chunk),
        });
    };
    kernels::for_each(rows * b.n * b.k, across * down, chunk);
}

/// What all chunks of a product share.
struct Job<'a> {
    packed: SendPtr<f32>,
    rows: usize,
    strip: usize,
    b: &'a Panels,
    bias: SendPtr<f32>,
    out: SendPtr<f32>,
}

/// Some columns of some strips.
struct Chunk<'a> {
    job: &'a Job<'a>,
    columns: std::ops::Range<usize>,
    strips: std::ops::Range<usize>,
}

impl Op for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { rows, strip, b, .. } = *self.job;
        let (n, k) = (b.n, b.k);
        let column = self.columns.start;
        // A lone strip gains nothing from returning to its panels.
        let step = if self.strips.len() == 1 { k.max(1) } else { K_BLOCK };
        for start in (0..k.max(1)).step_by(step) {
            let end = k.min(start + step);
            for i in self.strips.clone() {
                let first = i * strip;
                let rows = strip.min(rows - first);
                // SAFETY: strip i, the panels of these columns, and their part of `out` exist, and
                // that part of `out` belongs to this chunk alone.
                unsafe {
                    let bias = self.job.bias.get();
                    Product {
                        rows,
                        columns: self.columns.len(),
                        k: end - start,
                        a: self.job.packed.get().add(first * k + start * rows),
                        b: b.as_ptr().add(column * k + start * LANES),
                        b_panel: k * LANES,
                        b_k: LANES,
                        c: self.job.out.get().add(first * n + column),
                        c_row: n,
                        accumulate: start > 0,
                        bias: if end == k && !bias.is_null() { bias.add(column) } else { ptr::null() },
                    }
                    .run::<S, true>(s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small numbers that no two products of share their rounding.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn an_element_is_one_chain_whatever_surrounds_it() {
        for (rows, n, k) in [(1, 1, 1), (1, 70, 33), (5, 16, 600), (13, 97, 300), (500, 40, 17), (3, 5, 0)] {
            let (a, w, bias) = (numbers(rows * k, 1), numbers(n * k, 2), numbers(n, 3));
            let panels = Panels::pack(n, k, |i, row| row.copy_from_slice(&w[i * k..][..k])).unwrap();
            let mut out = vec![f32::NAN; rows * n];
            gemm(&a, rows, &panels, Some(&bias), &mut out);
            for r in 0..rows {
                for i in 0..n {
                    let chain = (0..k).fold(0.0f32, |sum, j| a[r * k + j].mul_add(w[i * k + j], sum));
                    assert_eq!(out[r * n + i].to_bits(), (chain + bias[i]).to_bits(), "{rows} {n} {k}");
                }
            }
        }
    }
}
