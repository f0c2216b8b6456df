//! The one matrix product: forward, and both products of the backward pass.
//!
//! ```text
//! y  = x · wᵀ          gemm(x, w)
//! dx = dy · w          gemm(dy, wᵀ)
//! dw += dyᵀ · x        gemm_add(dyᵀ, xᵀ)
//! ```
//!
//! An operand is a [`Matrix`], whose strides make slices and transposes of one in memory; `b` may also be
//! [`Panels`], packed before. The rows of `a` are packed as strips, block by block, for all threads; each thread
//! packs the columns that it is about to multiply. An element of the result is one chain in the order of k,
//! so neither the blocks, nor how an operand is stored, nor the threads change its bits.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use half::f16;
use serde::Deserialize;

use crate::kernels::matrix::{Matrix, MatrixMut};
use crate::kernels::product::{
    Bfloat16, FEW_ROWS, Float32, Flushed, MAX_ROWS, Packed, Product, Stored, Term,
};
use crate::kernels::{self, Lines, quantized};
use crate::simd::{self, LANES, Op, Simd, dispatch, dispatch_bfloat16, prefetch};
use crate::threads::{self, SendPtr};
use crate::weights::{Element, Panels, Quantized};

mod expand;
mod normal;
pub(super) mod pack;

pub use expand::Expanded;

use normal::{Apart, LeastExponent, SumsAreNormal, products_are_normal};
use pack::{Encoding, Pack, Source};

/// What the factors of a product are rounded to. Sums are float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Float32,
    /// Factors are rounded to nearest even; pairs of products are added by [`Simd::dot_bfloat16`].
    Bfloat16,
}

impl Precision {
    /// What the numbers of both operands become. A single row waits for memory, and emulates the instruction meanwhile.
    fn encoding(self, rows: usize) -> Encoding {
        match self {
            Precision::Float32 => Encoding::Float32,
            Precision::Bfloat16 if rows == 1 || simd::has_bfloat16() => Encoding::Pairs,
            Precision::Bfloat16 => Encoding::Apart,
        }
    }
}

/// The second operand, `[n, k]`.
#[derive(Clone)]
pub enum Factor<'a> {
    Matrix(Matrix<'a>),
    /// Multiplied as they are stored, whatever the precision: rows are rounded to bfloat16 for what is that.
    Panels(Panels),
    /// Parts whose outputs stand side by side. Rows are rounded to bytes, whatever the precision.
    Quantized(Vec<Quantized>),
    /// The same as the numbers that they stand for.
    Expanded(Expanded),
}

impl<'a> From<Matrix<'a>> for Factor<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Factor::Matrix(matrix)
    }
}

impl<'a> From<&'a Panels> for Factor<'a> {
    fn from(panels: &'a Panels) -> Self {
        Factor::Panels(panels.clone())
    }
}

impl Factor<'_> {
    /// `[k, n]`, of a matrix that is not packed.
    pub fn transposed(self) -> Self {
        match self {
            Factor::Matrix(matrix) => Factor::Matrix(matrix.transposed()),
            Factor::Expanded(matrix) => Factor::Expanded(matrix.transposed()),
            Factor::Panels(_) | Factor::Quantized(_) => unreachable!("packed to be multiplied one way"),
        }
    }

    /// The rows of a range, which in panels begins at a border of them.
    pub fn row_range(&self, rows: Range<usize>) -> Self {
        match self {
            Factor::Matrix(matrix) => Factor::Matrix(matrix.row_range(rows)),
            Factor::Panels(panels) => Factor::Panels(panels.outputs(rows)),
            Factor::Quantized(parts) => Factor::Quantized(expand::row_range(parts, rows)),
            Factor::Expanded(matrix) => Factor::Expanded(matrix.row_range(rows)),
        }
    }

    /// Row `i` into `out [k]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        match self {
            Factor::Matrix(matrix) => matrix.row(i, out),
            Factor::Panels(panels) => panels.row(i, out),
            Factor::Quantized(parts) => expand::row(parts, i, 0..out.len(), out),
            Factor::Expanded(matrix) => matrix.row(i, out),
        }
    }

    /// The memory that a product reads, if it is packed.
    pub fn memory(&self) -> &[u8] {
        match self {
            Factor::Panels(panels) => panels.memory(),
            Factor::Quantized(parts) => parts.first().map_or(&[], Quantized::memory),
            Factor::Matrix(_) | Factor::Expanded(_) => &[],
        }
    }

    /// What it is multiplied as by so many rows.
    fn encoding(&self, precision: Precision, rows: usize) -> Encoding {
        match self {
            Factor::Panels(panels) if panels.element == Element::Bfloat16 => {
                Precision::Bfloat16.encoding(rows)
            }
            Factor::Panels(_) => Encoding::Float32,
            _ => precision.encoding(rows),
        }
    }

    /// `[n, k]`.
    fn shape(&self) -> (usize, usize) {
        match self {
            Factor::Matrix(matrix) => (matrix.rows, matrix.columns),
            Factor::Panels(panels) => (panels.n, panels.k),
            Factor::Quantized(parts) => expand::shape(parts),
            Factor::Expanded(matrix) => matrix.shape(),
        }
    }
}

/// `a [rows, k]`, `b [n, k]`, `bias [n]`, `c [rows, n]`: c = a · bᵀ + bias.
///
/// An element of c is one chain of fused multiply-adds from 0 in the order of k, then the bias;
/// its bits depend on its row of `a` and its row of `b` alone.
pub fn gemm<'a>(
    a: Matrix<'_>,
    b: impl Into<Factor<'a>>,
    bias: Option<&[f32]>,
    c: MatrixMut<'_>,
    precision: Precision,
) {
    multiply(a, &b.into(), bias, false, c, precision);
}

/// `a [rows, k]`, `b [n, k]`, `c [rows, n]`: c += a · bᵀ, each chain going on from what c holds.
pub fn gemm_add<'a>(a: Matrix<'_>, b: impl Into<Factor<'a>>, c: MatrixMut<'_>, precision: Precision) {
    multiply(a, &b.into(), None, true, c, precision);
}

/// Panels of one chunk.
const WIDTH: usize = 4;

/// Steps of one pass over a chunk's panels: 512 · 4 · 64 bytes stay in an L2 cache while the strips go by,
/// and a strip of 512 · 12 · 4 bytes in an L1 cache while the chunk's panels do.
const STEPS: usize = 512;

/// The same for a single strip, where panels are made for it: they stay in an L1 cache.
const STEPS_FOR_ONE: usize = 96;

/// How far ahead the numbers of panels are asked for, in bytes: what the machine foresees by itself ends with a page.
/// A single row does not ask: it computes little beside what it reads, four panels at a time, and asking costs more
/// than it hides.
const AHEAD: isize = 4096;

/// Floats of `a` that are packed at a time: 4 MiB, which an L3 cache holds.
const BLOCK: usize = 1 << 20;

/// The least k of such a block, if there is more: every block loads and stores all of its c.
const BLOCK_K: usize = 1024;

/// Strips of a chunk at least, if there are more: enough to use a panel often, and where it has to be
/// packed, to pack it seldom.
const STRIPS: usize = 4;
const STRIPS_TO_PACK: usize = 24;

/// Strips that are worth reading the panels once more for.
const OWN_STRIPS: usize = 16;

/// What a chunk of packing takes: strips over all k, or some k of all strips.
const STRIPS_PER_CHUNK: usize = 4;
const K_PER_CHUNK: usize = 64;

/// How many k are packed at a time where rows lie next to each other: as many lines of a cache, which may all
/// fall into one of its sets, of 8 ways or more.
const K_AT_ONCE: usize = 8;

thread_local! {
    /// Rows as strips, for all threads of one product; kept, since every product of a pass needs it.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A chunk's columns as panels.
    static COLUMNS: RefCell<Lines> = const { RefCell::new(Lines::new()) };
}

/// `0..len` in equal parts of at most `most`, each a multiple of `unit` but for the last.
fn blocks(len: usize, most: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let count = len.div_ceil(most.max(unit)).max(1);
    let size = len.div_ceil(count).next_multiple_of(unit).max(1);
    (0..len.max(1)).step_by(size).map(move |start| start..len.min(start + size))
}

fn multiply(
    a: Matrix<'_>,
    b: &Factor<'_>,
    bias: Option<&[f32]>,
    add: bool,
    mut c: MatrixMut<'_>,
    precision: Precision,
) {
    let (n, k) = b.shape();
    let rows = a.rows;
    assert!(a.columns == k && c.rows == rows && c.columns == n, "shapes that do not fit");
    assert!(bias.is_none_or(|bias| bias.len() == n));
    if rows == 0 || n == 0 {
        return;
    }
    if let Factor::Quantized(parts) = b {
        assert!(!add, "a product with quantised weights does not add");
        return quantized::multiply(a, parts, bias, c);
    }
    let encoding = b.encoding(precision, rows);
    let bias = SendPtr(bias.map_or(ptr::null(), <[f32]>::as_ptr).cast_mut());
    let out = SendPtr(c.as_mut_ptr());
    let block = |rows: Range<usize>, ks: Range<usize>, packed: *const f32| Block {
        packed: SendPtr(packed.cast_mut()),
        rows: rows.len(),
        b,
        accumulate: add || ks.start > 0,
        bias: if ks.end == k { bias } else { SendPtr(ptr::null_mut()) },
        ks,
        // SAFETY: a row of `c`.
        c: SendPtr(unsafe { out.get().add(rows.start * c.row_stride) }),
        c_row: c.row_stride,
        encoding,
    };
    if rows == 1 && a.column_stride == 1 && encoding == Encoding::Float32 {
        // A single row is its own packing.
        return block(0..1, 0..k, a.as_ptr()).multiply();
    }
    ROWS.with_borrow_mut(|packed| {
        let most_k = (BLOCK / rows).max(BLOCK_K);
        for ks in blocks(k, most_k, LANES) {
            let most_rows = BLOCK / ks.len().max(1);
            for rows in blocks(rows, most_rows, MAX_ROWS) {
                pack_rows(&a, rows.clone(), ks.clone(), encoding, packed);
                block(rows, ks.clone(), packed.as_ptr()).multiply();
            }
        }
    });
}

/// Rows fall into strips of [`MAX_ROWS`]; what is left over makes one or two of at most [`FEW_ROWS`].
pub(super) fn strips(rows: usize) -> usize {
    let left = rows % MAX_ROWS;
    rows / MAX_ROWS + left.div_ceil(FEW_ROWS)
}

/// The rows of strip `i`.
pub(super) fn strip(i: usize, rows: usize) -> Range<usize> {
    let whole = rows / MAX_ROWS;
    let start = whole.min(i) * MAX_ROWS + (i - whole.min(i)) * FEW_ROWS;
    start..rows.min(start + if i < whole { MAX_ROWS } else { FEW_ROWS })
}

/// Some rows and columns of `a` to strips, each `[steps][rows of the strip]`, one after the other.
fn pack_rows(
    a: &Matrix<'_>,
    rows: Range<usize>,
    ks: Range<usize>,
    encoding: Encoding,
    packed: &mut Vec<f32>,
) {
    let steps = encoding.steps(ks.len());
    let floats = rows.len() * steps;
    if packed.len() < floats {
        packed.resize(floats, 0.0);
    }
    let count = strips(rows.len());
    let packed = SendPtr(packed.as_mut_ptr());
    let (from, start) = (SendPtr(a.as_ptr().cast_mut()), ks.start);
    let pack = |strips: Range<usize>, ks: Range<usize>| {
        let job = PackStrips { from, a, rows: rows.clone(), strips, ks, start, encoding, packed, steps };
        if encoding == Encoding::Pairs { dispatch_bfloat16(job) } else { dispatch(job) }
    };
    if a.row_stride == 1 {
        // Rows lie next to each other: all of them, some k at a time.
        let chunks = ks.len().div_ceil(K_PER_CHUNK);
        kernels::for_each(rows.len() * ks.len(), chunks, |i| {
            let first = start + i * K_PER_CHUNK;
            pack(0..count, first..ks.end.min(first + K_PER_CHUNK));
        });
    } else {
        kernels::for_each(rows.len() * ks.len(), count.div_ceil(STRIPS_PER_CHUNK), |i| {
            let first = i * STRIPS_PER_CHUNK;
            pack(first..count.min(first + STRIPS_PER_CHUNK), ks.clone());
        });
    }
}

/// Some k of some strips.
struct PackStrips<'a> {
    from: SendPtr<f32>,
    a: &'a Matrix<'a>,
    rows: Range<usize>,
    strips: Range<usize>,
    ks: Range<usize>,
    /// The first k of the strips.
    start: usize,
    encoding: Encoding,
    packed: SendPtr<f32>,
    steps: usize,
}

impl Op for PackStrips<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackStrips { a, encoding, .. } = self;
        let step = |k: usize| encoding.steps(k - self.start);
        let at_once = if a.row_stride == 1 { K_AT_ONCE } else { self.ks.len().max(1) };
        for first in self.ks.clone().step_by(at_once) {
            let end = self.ks.end.min(first + at_once);
            for i in self.strips.clone() {
                let strip = strip(i, self.rows.len());
                let at = (self.rows.start + strip.start) * a.row_stride + first * a.column_stride;
                // SAFETY: these rows and columns of `a` exist; `packed` has room for the strips, and no
                // two chunks write the same k of one.
                unsafe {
                    s.vectorize(Pack {
                        from: Source {
                            at: self.from.get().add(at),
                            lanes: strip.len(),
                            lane_stride: a.row_stride,
                            k: end - first,
                            k_stride: a.column_stride,
                        },
                        width: strip.len(),
                        encoding,
                        to: self.packed.get().add(strip.start * self.steps + step(first) * strip.len()),
                        room: (step(self.ks.end) - step(first)) * strip.len(),
                    });
                }
            }
        }
    }
}

/// Some rows, packed, times all columns, over some of k.
struct Block<'a> {
    packed: SendPtr<f32>,
    rows: usize,
    ks: Range<usize>,
    b: &'a Factor<'a>,
    bias: SendPtr<f32>,
    /// The first of the rows.
    c: SendPtr<f32>,
    c_row: usize,
    accumulate: bool,
    encoding: Encoding,
}

impl Block<'_> {
    fn multiply(&self) {
        let (n, _) = self.b.shape();
        let strips = strips(self.rows);
        let across = n.div_ceil(WIDTH * LANES);
        let least = if self.direct() { STRIPS } else { STRIPS_TO_PACK };
        // Each thread has rows of its own to begin with (see `threads`), if there are enough of them to go by each panel.
        let groups = (strips / OWN_STRIPS.max(least)).clamp(1, threads::size());
        // These are split too until there are chunks enough for the threads to end together.
        let wanted = (16 * threads::size()).div_ceil(across * groups);
        let down = wanted.clamp(1, strips.div_ceil(least * groups));
        let strips_per_chunk = strips.div_ceil(groups * down);
        kernels::for_each(self.rows * n * self.ks.len(), groups * across * down, |i| {
            let (group, i) = (i / (across * down), i % (across * down));
            let (column, row) = (i / down * WIDTH * LANES, (group * down + i % down) * strips_per_chunk);
            let columns = column..n.min(column + WIDTH * LANES);
            let strips = row.min(strips)..strips.min(row + strips_per_chunk);
            let chunk = Chunk { block: self, columns, strips };
            match (self.encoding, self.b) {
                (Encoding::Float32, Factor::Panels(panels)) if panels.element == Element::Float16 => {
                    dispatch(Typed::<Float32, f16>(chunk, PhantomData));
                }
                (Encoding::Float32, _) => dispatch(Typed::<Float32, f32>(chunk, PhantomData)),
                (Encoding::Pairs, _) => dispatch_bfloat16(Typed::<Bfloat16, f32>(chunk, PhantomData)),
                (Encoding::Apart, _) => dispatch(Typed::<Flushed, f32>(chunk, PhantomData)),
            }
        });
    }

    /// Whether `b` is read as it is stored.
    fn direct(&self) -> bool {
        matches!(self.b, Factor::Panels(_)) && self.encoding != Encoding::Apart
    }
}

/// Whether no sum of a product of bfloat16 can be subnormal; `b` is the least exponent of its B.
fn is_normal<S: Simd, B>(s: S, product: &Product<B>, b: u32) -> bool {
    let Product { a, rows, k, c, c_row, columns, .. } = *product;
    products_are_normal(s.vectorize(LeastExponent { numbers: a, len: rows * k }), b)
        && (!product.accumulate || s.vectorize(SumsAreNormal { c, stride: c_row, rows, columns }))
}

/// Some columns of some strips of a block.
struct Chunk<'a> {
    block: &'a Block<'a>,
    columns: Range<usize>,
    strips: Range<usize>,
}

/// A chunk, the terms of its product, and the type of a number (or a pair of bfloat16) of `b`.
struct Typed<'a, T, B>(Chunk<'a>, PhantomData<(T, B)>);

impl<T: Term, B: Stored> Op for Typed<'_, T, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        COLUMNS.with_borrow_mut(|scratch| self.0.multiply::<S, T, B>(s, scratch));
    }
}

impl Chunk<'_> {
    #[inline(always)]
    fn multiply<S: Simd, T: Term, B: Stored>(&self, s: S, scratch: &mut Lines) {
        let block = self.block;
        let steps = block.encoding.steps(block.ks.len());
        let per_step = if block.encoding == Encoding::Pairs { 2 } else { 1 };
        let direct = block.direct();
        let most = match (self.strips.len(), direct) {
            // A lone strip gains nothing from returning to panels that are there.
            (1, true) => steps.max(1),
            (1, false) => STEPS_FOR_ONE,
            _ => STEPS,
        };
        for part in blocks(steps, most, 2) {
            let ks = block.ks.start + part.start * per_step
                ..block.ks.end.min(block.ks.start + part.end * per_step);
            let (b, b_panel, least) = self.panels(s, ks, part.len(), scratch);
            let b = b.cast::<B>();
            for i in self.strips.clone() {
                let strip = strip(i, block.rows);
                self.prefetch(strip.end..block.rows.min(strip.end + MAX_ROWS));
                // SAFETY: strip i, the panels of these columns, and their part of `c` exist, and that
                // part of `c` belongs to this chunk alone.
                unsafe {
                    let bias = block.bias.get();
                    let product = Product {
                        rows: strip.len(),
                        columns: self.columns.len(),
                        k: part.len(),
                        a: block.packed.get().add(strip.start * steps + part.start * strip.len()),
                        b,
                        b_panel,
                        b_k: LANES,
                        ahead: if direct && strip.len() > 1 { AHEAD } else { 0 },
                        c: block.c.get().add(strip.start * block.c_row + self.columns.start),
                        c_row: block.c_row,
                        accumulate: block.accumulate || part.start > 0,
                        bias: if part.end == steps && !bias.is_null() {
                            bias.add(self.columns.start)
                        } else {
                            ptr::null()
                        },
                    };
                    if block.encoding == Encoding::Apart && is_normal(s, &product, least) {
                        product.run::<S, Packed, T::Normal>(s);
                    } else {
                        product.run::<S, Packed, T>(s);
                    }
                }
            }
        }
    }

    /// Asks for what the next strip will add to, or write over, while this one is computed.
    #[inline(always)]
    fn prefetch(&self, rows: Range<usize>) {
        for row in rows {
            for column in self.columns.clone().step_by(LANES) {
                prefetch(self.block.c.get().wrapping_add(row * self.block.c_row + column));
            }
        }
    }

    /// The chunk's columns over some of k, as panels of `steps`, the distance from one to the next in numbers, or pairs,
    /// of them, and the least exponent of numbers that are [`Encoding::Apart`].
    #[inline(always)]
    fn panels<S: Simd>(
        &self,
        s: S,
        ks: Range<usize>,
        steps: usize,
        scratch: &mut Lines,
    ) -> (*const f32, usize, u32) {
        let block = self.block;
        let count = self.columns.len().div_ceil(LANES);
        if let Factor::Panels(panels) = block.b {
            let (panel, step) = (self.columns.start / LANES, ks.start / panels.element.inputs());
            let at = panel * panels.panel_floats() + step * panels.element.step();
            // SAFETY: a panel, and a step of it.
            let at = unsafe { panels.as_ptr().add(at) };
            if block.direct() {
                return (at, panels.k.div_ceil(panels.element.inputs()) * LANES, 0);
            }
            let apart = scratch.floats(count * steps * LANES).as_mut_ptr();
            let least = s.vectorize(Apart {
                pairs: at,
                panels: count,
                panel: panels.panel_floats(),
                steps: steps / 2,
                to: apart,
            });
            return (apart, steps * LANES, least);
        }
        let (mut expanded, mut expanded_strides) = (Vec::new(), (0, 0));
        if let Factor::Expanded(matrix) = block.b {
            expanded_strides = matrix.block(self.columns.clone(), ks.clone(), &mut expanded);
        }
        let panels = scratch.floats(count * steps * LANES);
        let mut pack = |p: usize, part: Range<usize>| {
            let first = self.columns.start + p * LANES;
            let lanes = LANES.min(self.columns.end - first);
            let start = ks.start + part.start;
            // SAFETY: these rows of `b`, and these k; the scratch was made long enough.
            unsafe {
                let (at, lane_stride, k_stride) = match block.b {
                    Factor::Matrix(b) => {
                        let at = first * b.row_stride + start * b.column_stride;
                        (b.as_ptr().add(at), b.row_stride, b.column_stride)
                    }
                    Factor::Expanded(_) => {
                        let (lane_stride, k_stride) = expanded_strides;
                        let at = p * LANES * lane_stride + part.start * k_stride;
                        (expanded.as_ptr().add(at), lane_stride, k_stride)
                    }
                    Factor::Panels(_) | Factor::Quantized(_) => unreachable!("packed"),
                };
                Pack {
                    from: Source { at, lanes, lane_stride, k: part.len(), k_stride },
                    width: LANES,
                    encoding: block.encoding,
                    to: panels.as_mut_ptr().add((p * steps + block.encoding.steps(part.start)) * LANES),
                    room: block.encoding.steps(part.len()) * LANES,
                }
            }
        };
        if matches!(block.b, Factor::Matrix(b) if b.row_stride == 1) {
            for first in (0..ks.len()).step_by(K_AT_ONCE) {
                let part = first..ks.len().min(first + K_AT_ONCE);
                (0..count).for_each(|p| s.vectorize(pack(p, part.clone())));
            }
        } else {
            (0..count).for_each(|p| s.vectorize(pack(p, 0..ks.len())));
        }
        let least = if block.encoding == Encoding::Apart {
            s.vectorize(LeastExponent { numbers: panels.as_ptr(), len: panels.len() })
        } else {
            0
        };
        (panels.as_ptr(), steps * LANES, least)
    }
}

#[cfg(test)]
mod tests;
