//! The micro-kernel under every matrix product: a few rows by all columns that one pass may take,
//! with the accumulators in registers.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::simd::{LANES, Op, Simd, flush, prefetch};

/// The most rows of one product. 12 rows by 2 panels fill 24 of AVX-512's 32 registers with accumulators; a step
/// of k then takes 24 multiply-adds for 14 loads, and the machine does as many of both at a time. Half as
/// wide there are 16 registers, which 6 rows by 1 panel fill.
pub const MAX_ROWS: usize = 12;

/// The most rows of a product of fewer than [`MAX_ROWS`]: 6 rows by 4 panels.
pub const FEW_ROWS: usize = 6;

/// The length of a row of A where it is not packed: that of the scores of a key block.
pub const ROW: usize = 64;

/// How A lies in memory. Distances are constants, so that an element is an offset in the instruction that
/// loads it.
pub trait Form {
    /// The distances from row to row and along k of an A of `rows` rows.
    fn strides(rows: usize) -> (usize, usize);
}

/// `[k][rows]`.
pub struct Packed;
/// `[rows][64]`.
pub struct ByRows;
/// `[k][64]`.
pub struct ByColumns;

impl Form for Packed {
    #[inline(always)]
    fn strides(rows: usize) -> (usize, usize) {
        (1, rows)
    }
}

impl Form for ByColumns {
    #[inline(always)]
    fn strides(_: usize) -> (usize, usize) {
        (1, ROW)
    }
}

impl Form for ByRows {
    #[inline(always)]
    fn strides(_: usize) -> (usize, usize) {
        (ROW, 1)
    }
}

/// A number of B in memory, which is exactly a float32.
pub trait Stored: Copy + Default {
    /// # Safety
    /// `at` is valid for reading 16 numbers.
    unsafe fn load<S: Simd>(s: S, at: *const Self) -> S::F32;

    /// The first `n` lanes; the others hold anything.
    /// # Safety
    /// `at` is valid for reading `n < 16` numbers.
    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, at: *const Self, n: usize) -> S::F32 {
        let mut numbers = [Self::default(); LANES];
        // SAFETY: the caller vouches for n numbers, and there is room for 16.
        unsafe {
            std::ptr::copy_nonoverlapping(at, numbers.as_mut_ptr(), n);
            Self::load(s, numbers.as_ptr())
        }
    }
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f32) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { s.load(at) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, at: *const f32, n: usize) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { s.load_first(at, n) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const bf16) -> S::F32 {
        // SAFETY: the caller vouches for 16 numbers of 2 bytes.
        s.bfloat16(unsafe { &*at.cast() })
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f16) -> S::F32 {
        // SAFETY: the caller vouches for 16 numbers of 2 bytes.
        s.halves(unsafe { &*at.cast() })
    }
}

impl Stored for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const i8) -> S::F32 {
        // SAFETY: the caller vouches for 16 bytes.
        s.floats_of_signed_bytes(unsafe { &*at.cast() })
    }
}

/// What a step of k does: 32 bits of A and of B, and the sum so far.
pub trait Term {
    /// The same where no sum can be subnormal.
    type Normal: Term;

    fn add<S: Simd>(s: S, a: S::F32, b: S::F32, sum: S::F32) -> S::F32;
}

/// One float32 each.
pub struct Float32;
/// Two bfloat16 each, of neighbouring k: see [`Simd::dot_bfloat16`].
pub struct Bfloat16;
/// One float32 each; what is subnormal, of sums before and after, is taken as 0.
pub struct Flushed;

impl Term for Flushed {
    type Normal = Float32;

    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::F32, b: S::F32, sum: S::F32) -> S::F32 {
        flush(s, s.fma(a, b, flush(s, sum)))
    }
}

impl Term for Float32 {
    type Normal = Float32;

    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::F32, b: S::F32, sum: S::F32) -> S::F32 {
        s.fma(a, b, sum)
    }
}

impl Term for Bfloat16 {
    type Normal = Bfloat16;

    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::F32, b: S::F32, sum: S::F32) -> S::F32 {
        s.dot_bfloat16(a, b, sum)
    }
}

/// C `[rows, columns]` = (C or 0) + A `[rows, k]` · B `[k, columns]` + bias `[columns]`.
///
/// Each element of C is one chain of [`Term`]s in the order of k, continued from C where `accumulate`
/// says so; the number of rows and the cut of columns and of k do not change its bits. A is stored as
/// its [`Form`] says; B is [`Stored`] in any type. Columns come by the sixteen: 16 columns of row i of B are at
/// `b + panel · b_panel + i · b_k`.
#[derive(Clone, Copy)]
pub struct Product<B = f32> {
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
    pub a: *const f32,
    pub b: *const B,
    pub b_panel: usize,
    pub b_k: usize,
    /// How many bytes after the numbers of B that are read others lie that will be next, to ask for them
    /// already; 0 for none. Products of [`MAX_ROWS`] wait for no memory and ask for none.
    pub ahead: isize,
    pub c: *mut f32,
    pub c_row: usize,
    pub accumulate: bool,
    /// Null for none.
    pub bias: *const f32,
}

impl<B: Stored> Product<B> {
    /// # Safety
    /// The pointers are valid for the elements that the description names, C for writing and
    /// unshared; `rows` is [`MAX_ROWS`], or at most [`FEW_ROWS`].
    #[inline(always)]
    pub unsafe fn run<S: Simd, A: Form, T: Term>(self, s: S) {
        match self.rows {
            1 => s.vectorize(Rows::<1, A, T, B>::new(self)),
            2 => s.vectorize(Rows::<2, A, T, B>::new(self)),
            3 => s.vectorize(Rows::<3, A, T, B>::new(self)),
            4 => s.vectorize(Rows::<4, A, T, B>::new(self)),
            5 => s.vectorize(Rows::<5, A, T, B>::new(self)),
            FEW_ROWS => s.vectorize(Rows::<FEW_ROWS, A, T, B>::new(self)),
            MAX_ROWS => s.vectorize(Rows::<MAX_ROWS, A, T, B>::new(self)),
            rows => debug_assert!(rows == 0, "{rows} rows"),
        }
    }
}

/// A product of exactly `M` rows; made only by [`Product::run`], whose caller vouches for the
/// pointers.
struct Rows<const M: usize, A, T, B>(Product<B>, PhantomData<(A, T)>);

impl<const M: usize, A, T, B> Rows<M, A, T, B> {
    #[inline(always)]
    fn new(product: Product<B>) -> Self {
        Rows(product, PhantomData)
    }
}

impl<const M: usize, A: Form, T: Term, B: Stored> Op for Rows<M, A, T, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.0;
        let strides = A::strides(M);
        // SAFETY: `Product::run`'s; each tile lies within the columns.
        unsafe {
            if S::WIDE || M <= FEW_ROWS {
                columns::<S, M, T, B>(s, &p, strides);
            } else {
                for half in 0..2 {
                    let (a, c) = (p.a.add(half * FEW_ROWS * strides.0), p.c.add(half * FEW_ROWS * p.c_row));
                    columns::<S, FEW_ROWS, T, B>(s, &Product { a, c, ..p }, strides);
                }
            }
        }
    }
}

/// All columns, by as many panels at a time as there are registers for.
#[inline(always)]
unsafe fn columns<S: Simd, const M: usize, T: Term, B: Stored>(
    s: S,
    p: &Product<B>,
    strides: (usize, usize),
) {
    let mut column = 0;
    // SAFETY: `Product::run`'s; each tile lies within the columns.
    unsafe {
        if M == 1 || S::WIDE && M <= FEW_ROWS {
            while p.columns - column >= 4 * LANES {
                tile::<S, M, 4, T, B>(s, p, strides, column);
                column += 4 * LANES;
            }
        }
        if S::WIDE || M <= 3 {
            while p.columns - column >= 2 * LANES {
                tile::<S, M, 2, T, B>(s, p, strides, column);
                column += 2 * LANES;
            }
        }
        while p.columns - column >= LANES {
            tile::<S, M, 1, T, B>(s, p, strides, column);
            column += LANES;
        }
        if p.columns > column {
            last_tile::<S, M, T, B>(s, p, strides, column, p.columns - column);
        }
    }
}

/// `M` rows by `P` panels from `column` on.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const P: usize, T: Term, B: Stored>(
    s: S,
    p: &Product<B>,
    (a_row, a_k): (usize, usize),
    column: usize,
) {
    // SAFETY: `Product::run`'s.
    unsafe {
        let mut a = p.a;
        let mut b = p.b.add(column / LANES * p.b_panel);
        let c = p.c.add(column);
        let mut sum = [[s.splat(0.0); P]; M];
        if p.accumulate {
            for r in 0..M {
                for j in 0..P {
                    sum[r][j] = s.load(c.add(r * p.c_row + j * LANES));
                }
            }
        }
        for _ in 0..p.k {
            let mut weights = [s.splat(0.0); P];
            for j in 0..P {
                weights[j] = B::load(s, b.add(j * p.b_panel));
                if M <= FEW_ROWS && p.ahead != 0 {
                    prefetch(b.wrapping_add(j * p.b_panel).wrapping_byte_offset(p.ahead));
                }
            }
            for r in 0..M {
                let x = s.splat(*a.add(r * a_row));
                for j in 0..P {
                    sum[r][j] = T::add(s, x, weights[j], sum[r][j]);
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
unsafe fn last_tile<S: Simd, const M: usize, T: Term, B: Stored>(
    s: S,
    p: &Product<B>,
    (a_row, a_k): (usize, usize),
    column: usize,
    n: usize,
) {
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
            let weights = B::load_first(s, b.add(i * p.b_k), n);
            for r in 0..M {
                let x = s.splat(*p.a.add(r * a_row + i * a_k));
                sum[r] = T::add(s, x, weights, sum[r]);
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
