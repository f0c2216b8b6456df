//! Sums over rows: the gradients of what all rows share.

use crate::kernels::CHUNK;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// Columns that one thread sums at a time, which are four lines of a cache in every row.
const COLUMNS: usize = 4 * LANES;

/// Rows whose sum is taken by itself, before it is added to that of the rows before: of many rows, a single
/// sum would lose what is small beside it.
const ROWS: usize = 64;

/// `x [rows, width]`, `out [width]`: out += Σ x over the rows.
pub fn add_row_sums(x: &[f32], width: usize, out: &mut [f32]) {
    assert!(out.len() == width && x.len().is_multiple_of(width.max(1)));
    add_terms(&Rows { x, width }, x.len() / width.max(1), out);
}

/// `x, sum` of one length: sum += x.
pub fn add(x: &[f32], sum: &mut [f32]) {
    assert!(x.len() == sum.len());
    threads::for_each_mut(sum, CHUNK, |i, sum| {
        let x = &x[i * CHUNK..][..sum.len()];
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    });
}

/// x = 0.
pub fn clear(x: &mut [f32]) {
    threads::for_each_mut(x, CHUNK, |_, x| x.fill(0.0));
}

/// What is summed over rows.
pub(super) trait Terms: Sync {
    /// Up to 16 columns of a row; the lanes past the last column may hold anything.
    fn get<S: Simd>(&self, s: S, row: usize, column: usize) -> S::F32;
}

struct Rows<'a> {
    x: &'a [f32],
    width: usize,
}

impl Terms for Rows<'_> {
    #[inline(always)]
    fn get<S: Simd>(&self, s: S, row: usize, column: usize) -> S::F32 {
        s.get(&self.x[row * self.width + column..(row + 1) * self.width])
    }
}

/// `out [width]`: out += Σ terms over the rows, each column in the same order for any number of threads.
pub(super) fn add_terms<T: Terms>(terms: &T, rows: usize, out: &mut [f32]) {
    threads::for_each_mut(out, COLUMNS, |i, out| {
        dispatch(Columns { terms, rows, first: i * COLUMNS, out });
    });
}

struct Columns<'a, T> {
    terms: &'a T,
    rows: usize,
    first: usize,
    out: &'a mut [f32],
}

impl<T: Terms> Op for Columns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for start in (0..self.rows).step_by(ROWS) {
            let mut sums = [s.splat(0.0); COLUMNS / LANES];
            for row in start..self.rows.min(start + ROWS) {
                for j in 0..sums.len() {
                    if j * LANES < self.out.len() {
                        sums[j] = s.add(sums[j], self.terms.get(s, row, self.first + j * LANES));
                    }
                }
            }
            for (sum, out) in sums.into_iter().zip(self.out.chunks_mut(LANES)) {
                let total = s.add(s.get(out), sum);
                s.put(out, total);
            }
        }
    }
}
