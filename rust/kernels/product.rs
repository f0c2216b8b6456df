//! The micro-kernel under every matrix product: a few rows by all columns that one pass may take,
//! with the accumulators in registers.

use crate::simd::{LANES, Op, Simd};

/// The most rows of one product: 6 rows by 4 panels fill 24 of AVX-512's 32 registers with
/// accumulators, 6 by 1 fill 12 of the 16 half as wide.
pub const MAX_ROWS: usize = 6;

/// The length of a row of A where it is not packed: that of the scores of a key block.
pub const ROW: usize = 64;

/// C `[rows, columns]` = (C or 0) + A `[rows, k]` · B `[k, columns]` + bias `[columns]`.
///
/// Each element of C is one chain of fused multiply-adds in the order of k, continued from C where
/// `accumulate` says so; the number of rows and the cut of columns and of k do not change its bits.
/// A is stored as `[k][rows]` where it is packed, else as `[rows][64]`. Columns come by the sixteen:
/// 16 columns of row i of B are at `b + panel · b_panel + i · b_k`.
#[derive(Clone, Copy)]
pub struct Product {
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
    pub a: *const f32,
    pub b: *const f32,
    pub b_panel: usize,
    pub b_k: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub accumulate: bool,
    /// Null for none.
    pub bias: *const f32,
}

impl Product {
    /// # Safety
    /// The pointers are valid for the elements that the description names, C for writing and
    /// unshared; `rows ≤ MAX_ROWS`.
    #[inline(always)]
    pub unsafe fn run<S: Simd, const PACKED: bool>(self, s: S) {
        match self.rows {
            1 => s.vectorize(Rows::<1, PACKED>(self)),
            2 => s.vectorize(Rows::<2, PACKED>(self)),
            3 => s.vectorize(Rows::<3, PACKED>(self)),
            4 => s.vectorize(Rows::<4, PACKED>(self)),
            5 => s.vectorize(Rows::<5, PACKED>(self)),
            6 => s.vectorize(Rows::<6, PACKED>(self)),
            rows => debug_assert!(rows == 0, "{rows} rows"),
        }
    }
}

/// A product of exactly `M` rows; made only by [`Product::run`], whose caller vouches for the
/// pointers.
struct Rows<const M: usize, const PACKED: bool>(Product);

impl<const M: usize, const PACKED: bool> Op for Rows<M, PACKED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.0;
        let mut column = 0;
        // SAFETY: `Product::run`'s; each tile lies within the columns.
        unsafe {
            if S::WIDE || M == 1 {
                while p.columns - column >= 4 * LANES {
                    tile::<S, M, 4, PACKED>(s, &p, column);
                    column += 4 * LANES;
                }
            }
            if S::WIDE || M <= 3 {
                while p.columns - column >= 2 * LANES {
                    tile::<S, M, 2, PACKED>(s, &p, column);
                    column += 2 * LANES;
                }
            }
            while p.columns - column >= LANES {
                tile::<S, M, 1, PACKED>(s, &p, column);
                column += LANES;
            }
            if p.columns > column {
                last_tile::<S, M, PACKED>(s, &p, column, p.columns - column);
            }
        }
    }
}

/// The distances in A from row to row, and along k: constants, so that a row is an offset in the
/// instruction that loads from it.
#[inline(always)]
fn strides<const M: usize, const PACKED: bool>() -> (usize, usize) {
    if PACKED { (1, M) } else { (ROW, 1) }
}

/// `M` rows by `P` panels from `column` on.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const P: usize, const PACKED: bool>(
    s: S,
    p: &Product,
    column: usize,
) {
    let (a_row, a_k) = strides::<M, PACKED>();
    // SAFETY: `Product::run`'s.
    unsafe {
        let b = p.b.add(column / LANES * p.b_panel);
        let c = p.c.add(column);
        let mut sum = [[s.splat(0.0); P]; M];
        if p.accumulate {
            for r in 0..M {
                for j in 0..P {
                    sum[r][j] = s.load(c.add(r * p.c_row + j * LANES));
                }
            }
        }
        let mut a = p.a;
        let mut b = b;
        for _ in 0..p.k {
            let mut weights = [s.splat(0.0); P];
            for j in 0..P {
                weights[j] = s.load(b.add(j * p.b_panel));
            }
            for r in 0..M {
                let x = s.splat(*a.add(r * a_row));
                for j in 0..P {
                    sum[r][j] = s.fma(x, weights[j], sum[r][j]);
                }
            }
            a = a.add(a_k);
            b = b.add(p.b_k);
        }
        for j in 0..P {
            if !p.bias.is_null() {
                let bias = s.load(p.bias.add(column + j * LANES));
                for r in 0..M {
                    sum[r][j] = s.add(sum[r][j], bias);
                }
            }
            for r in 0..M {
                s.store(c.add(r * p.c_row + j * LANES), sum[r][j]);
            }
        }
    }
}

/// `M` rows by the last `n < 16` columns; touches no float of B or C beyond them.
#[inline(always)]
unsafe fn last_tile<S: Simd, const M: usize, const PACKED: bool>(s: S, p: &Product, column: usize, n: usize) {
    let (a_row, a_k) = strides::<M, PACKED>();
    // SAFETY: `Product::run`'s.
    unsafe {
        let b = p.b.add(column / LANES * p.b_panel);
        let c = p.c.add(column);
        let mut sum = [s.splat(0.0); M];
        if p.accumulate {
            for r in 0..M {
                sum[r] = s.load_first(c.add(r * p.c_row), n);
            }
        }
        for i in 0..p.k {
            let weights = s.load_first(b.add(i * p.b_k), n);
            for r in 0..M {
                let x = s.splat(*p.a.add(r * a_row + i * a_k));
                sum[r] = s.fma(x, weights, sum[r]);
            }
        }
        for r in 0..M {
            if !p.bias.is_null() {
                sum[r] = s.add(sum[r], s.load_first(p.bias.add(column), n));
            }
            s.store_first(c.add(r * p.c_row), n, sum[r]);
        }
    }
}
