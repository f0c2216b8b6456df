//! Products with quantised weights: the rows are rounded to bytes, 32 at a time with a scale of their own.
//!
//! Of a unit of 32 inputs the sum of products of codes is an exact integer; units are added in order in float32:
//!
//! ```text
//! x ≈ s · a,  w = d · (q − offset) [+ m]   with a within ±127
//! y += (Σ q a − offset Σ a) · (d s) [+ m · (s Σ a)]      for each unit, or each half of one
//! ```
//!
//! so an element's bits depend on its row and its weights alone, not on the rows beside it, the threads, or the
//! instruction set.

use std::cell::RefCell;

use crate::kernels::{self, Matrix, MatrixMut};
use crate::simd::{LANES, Op, Simd, dispatch, dispatch_bytes};
use crate::threads::SendPtr;
use crate::weights::{Quantized, UNIT};

mod codes;
mod tile;

use tile::Panel;

/// Rows of one tile: their sums and the codes of a unit fill 16 of 32 registers, and what is taken apart once serves
/// all of them.
const ROWS: usize = 8;

/// Rows whose bytes stay in a cache while some panels go by.
const ROWS_PER_CHUNK: usize = 16 * ROWS;

/// Panels of a chunk, of few rows and of many.
const FEW_PANELS: usize = 2;
const PANELS: usize = 4;

/// Rows as bytes, in tiles of [`ROWS`], the last of fewer: of each tile `[units][rows]` of everything.
#[derive(Default)]
struct Activations {
    codes: Vec<[i8; UNIT]>,
    scales: Vec<f32>,
    /// Of both halves of a unit.
    sums: Vec<[i32; 2]>,
}

thread_local! {
    /// Kept, since every product needs it.
    static ACTIVATIONS: RefCell<Activations> = RefCell::default();
}

/// `x [rows, k]`, parts whose outputs, side by side, are the columns of `y [rows, n]`, `bias [n]`: y = x · wᵀ + bias.
/// The rows of `x` are contiguous.
pub(super) fn multiply(x: Matrix<'_>, parts: &[Quantized], bias: Option<&[f32]>, mut y: MatrixMut<'_>) {
    let (rows, k) = (x.rows, x.columns);
    let n: usize = parts.iter().map(|part| part.n).sum();
    assert!(x.column_stride == 1 && y.rows == rows && y.columns == n && bias.is_none_or(|b| b.len() == n));
    assert!(parts.iter().all(|part| part.k == k) && k.is_multiple_of(UNIT));
    if rows == 0 || n == 0 {
        return;
    }
    ACTIVATIONS.with_borrow_mut(|activations| {
        activations.quantize(x);
        let (out, stride) = (SendPtr(y.as_mut_ptr()), y.row_stride);
        let (chunks, panels) = chunks(parts, rows);
        kernels::for_each(rows * n * k / 4, chunks.len(), |i| {
            let Chunk { part, first_column, panel, row } = chunks[i];
            for panel in panel..(panel + panels).min(parts[part].n.div_ceil(LANES)) {
                let column = first_column + panel * LANES;
                let width = LANES.min(first_column + parts[part].n - column);
                for first in (row..rows.min(row + ROWS_PER_CHUNK)).step_by(ROWS) {
                    let count = ROWS.min(rows - first);
                    let units = k / UNIT;
                    let tile = first * units..(first + count) * units;
                    dispatch_bytes(Panel {
                        matrix: &parts[part],
                        panel,
                        rows: count,
                        codes: &activations.codes[tile.clone()],
                        scales: &activations.scales[tile.clone()],
                        sums: &activations.sums[tile],
                        bias: bias.map(|bias| &bias[column..column + width]),
                        // SAFETY: row `first` of `y`, from this column on.
                        out: unsafe { out.get().add(first * stride + column) },
                        stride,
                        width,
                    });
                }
            }
        });
    });
}

#[derive(Clone, Copy)]
struct Chunk {
    part: usize,
    /// Of the part.
    first_column: usize,
    panel: usize,
    row: usize,
}

/// What is handed to threads, and the panels of each.
fn chunks(parts: &[Quantized], rows: usize) -> (Vec<Chunk>, usize) {
    let panels = if rows <= ROWS { FEW_PANELS } else { PANELS };
    let mut chunks = Vec::new();
    let mut first_column = 0;
    for (part, matrix) in parts.iter().enumerate() {
        for panel in (0..matrix.n.div_ceil(LANES)).step_by(panels) {
            for row in (0..rows).step_by(ROWS_PER_CHUNK) {
                chunks.push(Chunk { part, first_column, panel, row });
            }
        }
        first_column += matrix.n;
    }
    (chunks, panels)
}

impl Activations {
    fn quantize(&mut self, x: Matrix<'_>) {
        let units = x.columns / UNIT;
        let count = x.rows * units;
        self.codes.resize(count, [0; UNIT]);
        self.scales.resize(count, 0.0);
        self.sums.resize(count, [0; 2]);
        let (codes, scales) = (SendPtr(self.codes.as_mut_ptr()), SendPtr(self.scales.as_mut_ptr()));
        let sums = SendPtr(self.sums.as_mut_ptr());
        kernels::for_each(x.rows * x.columns, x.rows.div_ceil(ROWS), |tile| {
            let first = tile * ROWS;
            let rows = ROWS.min(x.rows - first);
            for row in 0..rows {
                for (unit, values) in x.row_slice(first + row).as_chunks::<UNIT>().0.iter().enumerate() {
                    let at = first * units + unit * rows + row;
                    let (code, scale) = dispatch(Quantize(values));
                    let sum = |half: &[i8]| half.iter().map(|&code| i32::from(code)).sum();
                    // SAFETY: each row has its own place in each unit.
                    unsafe {
                        *sums.get().add(at) = [sum(&code[..16]), sum(&code[16..])];
                        *codes.get().add(at) = code;
                        *scales.get().add(at) = scale;
                    }
                }
            }
        });
    }
}

/// 32 numbers as bytes within ±127 and their scale, the largest magnitude / 127; NaN if there is one among them, or
/// an infinity.
struct Quantize<'a>(&'a [f32; UNIT]);

/// What is smaller is taken as 0: 127 divided by it might not be finite.
const TINY: f32 = 1e-30;

impl Op for Quantize<'_> {
    type Output = ([i8; UNIT], f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> ([i8; UNIT], f32) {
        let (left, right) = (s.get(&self.0[..LANES]), s.get(&self.0[LANES..]));
        let most = s.reduce_max(s.max(s.abs(left), s.abs(right)));
        let zero = s.splat(0.0);
        let poison = s.reduce_sum(s.add(s.mul(left, zero), s.mul(right, zero)));
        let factor = s.splat(if most > TINY { 127.0 / most } else { 0.0 });
        let mut codes = [0; UNIT];
        codes[..LANES].copy_from_slice(&s.round_to_bytes(s.mul(left, factor)));
        codes[LANES..].copy_from_slice(&s.round_to_bytes(s.mul(right, factor)));
        (codes, if most > TINY { most / 127.0 } else { 0.0 } + poison)
    }
}

#[cfg(test)]
mod tests;
