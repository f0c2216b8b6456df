//! The micro-kernel under every matrix product: a few rows by all columns that one pass may take,
//! with the accumulators in registers.

use crate::simd::{LANES, Op, Simd};

/// The most rows of one product.
pub const MAX_ROWS: usize = 12;

/// How many rows fill the registers: 12 × 2 vectors of 32 registers, 6 × 1 of 16 half-size ones.
pub fn full_rows<S: Simd>() -> usize {
    if S::WIDE { MAX_ROWS } else { 6 }
}

/// C `[rows, columns]` = (C or 0) + A `[rows, k]` · B `[k, columns]` + bias `[columns]`.
///
/// Each element of C is one chain of fused multiply-adds in the order of k, continued from C where
/// `accumulate` says so; the number of rows and the cut of columns and of k do not change its bits.
/// Element (r, i) of A is at `a + r · a_row + i · a_k`. Columns come by the sixteen: 16 columns of
/// row i of B are at `b + panel · b_panel + i · b_k`.
#[derive(Clone, Copy)]
pub struct Product {
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_k: usize,
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
    /// unshared; `rows ≤ full_rows`.
    #[inline(always)]
    pub unsafe fn run<S: Simd>(self, s: S) {
        match self.rows {
            1 => s.vectorize(Rows::<1>(self)),
            2 => s.vectorize(Rows::<2>(self)),
            3 => s.vectorize(Rows::<3>(self)),
            4 => s.vectorize(Rows::<4>(self)),
            5 => s.vectorize(Rows::<5>(self)),
            6 => s.vectorize(Rows::<6>(self)),
            7 if S::WIDE => s.vectorize(Rows::<7>(self)),
            8 if S::WIDE => s.vectorize(Rows::<8>(self)),
            9 if S::WIDE => s.vectorize(Rows::<9>(self)),
            10 if S::WIDE => s.vectorize(Rows::<10>(self)),
            11 if S::WIDE => s.vectorize(Rows::<11>(self)),
            12 if S::WIDE => s.vectorize(Rows::<12>(self)),
            rows => debug_assert!(rows == 0, "{rows} rows"),
        }
    }
}

/// A product of exactly `M` rows; made only by [`Product::run`], whose caller vouches for the
/// pointers.
struct Rows<const M: usize>(Product);

impl<const M: usize> Op for Rows<M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.0;
        let mut column = 0;
        // SAFETY: `Product::run`'s; each tile lies within the columns.
        unsafe {
            if M <= 6 && S::WIDE || M == 1 {
                while p.columns - column >= 4 * LANES {
                    tile::<S, M, 4>(s, &p, column);
                    column += 4 * LANES;
                }
            }
            if S::WIDE || M <= 3 {
                while p.columns - column >= 2 * LANES {
                    tile::<S, M, 2>(s, &p, column);
                    column += 2 * LANES;
                }
            }
            while p.columns - column >= LANES {
                tile::<S, M, 1>(s, &p, column);
                column += LANES;
            }
            if p.columns > column {
                last_tile::<S, M>(s, &p, column, p.columns - column);
            }
        }
    }
}

/// `M` rows by `P` panels from `column` on.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const P: usize>(s: S, p: &Product, column: usize) {
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
                let x = s.splat(*a.add(r * p.a_row));
                for j in 0..P {
                    sum[r][j] = s.fma(x, weights[j], sum[r][j]);
                }
            }
            a = a.add(p.a_k);
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
unsafe fn last_tile<S: Simd, const M: usize>(s: S, p: &Product, column: usize, n: usize) {
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
                let x = s.splat(*p.a.add(r * p.a_row + i * p.a_k));
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
