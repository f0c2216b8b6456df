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
use std::ops::Range;
use std::ptr;

use crate::kernels::{self, Lines, Matrix, MatrixMut};
use crate::simd::{LANES, Op, Simd, dispatch_bytes};
use crate::threads::{self, SendPtr};
use crate::weights::{Quantized, UNIT};

mod activations;
mod codes;
mod tile;

use activations::Activations;
use codes::{Job, Known, with_form};
use tile::{Apart, Out, ROWS, Rows, Stored, WIDTH, product, take_apart, unit_bytes};

/// So many rows are worth keeping what was taken apart: for fewer, each of at most two tiles takes panels apart itself.
const MANY_ROWS: usize = 2 * ROWS + 1;

/// Chunks of few rows for each thread: what one may have to take off another.
const CHUNKS: usize = 8;

/// Units that are kept, taken apart: with their scales 31 KB or less, which an L1 cache holds.
const UNITS: usize = 24;

/// The fewest tiles of rows that are worth taking panels apart for.
const FEWEST_TILES: usize = 8;

thread_local! {
    /// Kept, since every product needs it.
    static ACTIVATIONS: RefCell<Activations> = RefCell::default();
    /// Panels taken apart.
    static APART: RefCell<Lines> = const { RefCell::new(Lines::new()) };
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
        activations.quantize(x, parts);
        let chunks = chunks(parts, rows);
        let (out, stride) = (SendPtr(y.as_mut_ptr()), y.row_stride);
        kernels::for_each(rows * n * k / 4, chunks.len(), |i| {
            let Chunk { part, first_column, ref panels, ref tiles } = chunks[i];
            let column = first_column + panels.start * LANES;
            dispatch_bytes(Panels {
                matrix: &parts[part],
                panels: panels.clone(),
                activations,
                terms: activations.terms_of(parts[part].form),
                tiles: tiles.clone(),
                out: Out {
                    // SAFETY: the first row of `y`, from this column on.
                    at: unsafe { out.get().add(column) },
                    stride,
                    width: parts[part].n - panels.start * LANES,
                    accumulate: false,
                    bias: bias.map_or(ptr::null(), |bias| bias[column..].as_ptr()),
                },
                many: rows >= MANY_ROWS,
            });
        });
    });
}

/// What is handed to threads.
struct Chunk {
    part: usize,
    /// Of the part.
    first_column: usize,
    panels: Range<usize>,
    /// Of rows.
    tiles: Range<usize>,
}

fn chunks(parts: &[Quantized], rows: usize) -> Vec<Chunk> {
    let widths = |part: &Quantized| part.n.div_ceil(LANES).div_ceil(WIDTH);
    let all: usize = parts.iter().map(widths).sum();
    let tiles = rows.div_ceil(ROWS);
    // How many widths of panels make a chunk, and tiles.
    let (across, down) = if rows < MANY_ROWS {
        // As many for each thread, so that their shares are equal.
        let threads = threads::size();
        (all as f64 / (threads * CHUNKS.min(all.div_ceil(2 * threads))) as f64, tiles)
    } else {
        // Four chunks a thread keep all of them at work until near the end.
        let wanted = (4 * threads::size()).div_ceil(all);
        (1.0, tiles.div_ceil(wanted).max(FEWEST_TILES))
    };
    let mut chunks = Vec::new();
    let mut first_column = 0;
    for (part, matrix) in parts.iter().enumerate() {
        let widths = widths(matrix);
        let count = ((widths as f64 / across).round() as usize).clamp(1, widths);
        for i in 0..count {
            let panels = i * widths / count * WIDTH..(i + 1) * widths / count * WIDTH;
            for tile in (0..tiles).step_by(down) {
                chunks.push(Chunk {
                    part,
                    first_column,
                    panels: panels.start..panels.end.min(matrix.n.div_ceil(LANES)),
                    tiles: tile..tiles.min(tile + down),
                });
            }
        }
        first_column += matrix.n;
    }
    chunks
}

/// Some tiles of rows times some panels; `out` is where the first row and the first panel meet.
struct Panels<'a> {
    matrix: &'a Quantized,
    panels: Range<usize>,
    activations: &'a Activations,
    /// Which of the activations' terms.
    terms: usize,
    tiles: Range<usize>,
    out: Out,
    many: bool,
}

impl Op for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_form(self.matrix.form, OfForm { s, panels: self });
    }
}

struct OfForm<'a, S> {
    s: S,
    panels: Panels<'a>,
}

impl<S: Simd> Job for OfForm<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<F: Known>(self) {
        if self.panels.many { self.panels.many::<S, F>(self.s) } else { self.panels.few::<S, F>(self.s) }
    }
}

impl Panels<'_> {
    /// Where the rows of a tile go, for panels from `panel` of the range on.
    #[inline(always)]
    fn out(&self, tile: usize, panel: usize) -> Out {
        let row = self.activations.rows_of(tile).start;
        let column = panel * LANES;
        // SAFETY: the row and the column are those of `y`, the bias is as long as its columns.
        unsafe {
            let bias = if self.out.bias.is_null() { ptr::null() } else { self.out.bias.add(column) };
            let at = self.out.at.add(row * self.out.stride + column);
            Out { at, bias, width: self.out.width - column, ..self.out }
        }
    }

    /// Each tile takes panels apart in registers; for a second one they are in a cache.
    #[inline(always)]
    fn few<S: Simd, F: Known>(self, s: S) {
        let units = 0..self.matrix.k / UNIT;
        // The next ones of the same thread.
        let ahead = WIDTH * self.matrix.layout.len;
        for panel in (0..self.panels.len()).step_by(WIDTH) {
            let count = WIDTH.min(self.panels.len() - panel);
            let first = self.panels.start + panel;
            for tile in self.tiles.clone() {
                let weights = Stored::<F>::new(self.matrix, first..first + count, ahead);
                let rows = self.activations.tile(tile, self.terms, 0);
                let out = self.out(tile, panel);
                with_rows(s, self.activations.rows_of(tile).len(), weights, count, units.clone(), rows, out);
            }
        }
    }

    /// Panels are taken apart once for all tiles, some units at a time.
    #[inline(always)]
    fn many<S: Simd, F: Known>(self, s: S) {
        let units = self.matrix.k / UNIT;
        APART.with_borrow_mut(|apart| {
            let apart =
                apart.floats(UNITS * unit_bytes(2, true) / size_of::<f32>()).as_mut_ptr().cast::<u8>();
            for first in (0..units).step_by(UNITS) {
                let count = UNITS.min(units - first);
                let from = Stored::<F>::new(self.matrix, self.panels.clone(), 0);
                s.vectorize(TakeApart {
                    from,
                    panels: self.panels.len(),
                    units: first..first + count,
                    to: apart,
                });
                for tile in self.tiles.clone() {
                    let rows = self.activations.tile(tile, self.terms, first);
                    let mut out = self.out(tile, 0);
                    out.accumulate = first > 0;
                    if first + count < units {
                        out.bias = ptr::null();
                    }
                    let m = self.activations.rows_of(tile).len();
                    let (panels, units) = (self.panels.len(), 0..count);
                    match (F::GROUPS, F::MIN, F::BITS) {
                        (1, false, 4) => {
                            with_rows(s, m, Apart::<1, false, 4>(apart), panels, units, rows, out)
                        }
                        (1, false, 5) => {
                            with_rows(s, m, Apart::<1, false, 5>(apart), panels, units, rows, out)
                        }
                        (1, false, _) => {
                            with_rows(s, m, Apart::<1, false, 8>(apart), panels, units, rows, out)
                        }
                        (1, true, 4) => with_rows(s, m, Apart::<1, true, 4>(apart), panels, units, rows, out),
                        (1, true, _) => with_rows(s, m, Apart::<1, true, 5>(apart), panels, units, rows, out),
                        (_, false, _) => {
                            with_rows(s, m, Apart::<2, false, 6>(apart), panels, units, rows, out)
                        }
                        (_, true, _) => with_rows(s, m, Apart::<2, true, 4>(apart), panels, units, rows, out),
                    }
                }
            }
        });
    }
}

/// [`product`] of `m` rows, as a function of its own.
#[inline(always)]
fn with_rows<S: Simd, W: tile::Weights>(
    s: S,
    m: usize,
    weights: W,
    panels: usize,
    units: Range<usize>,
    rows: Rows,
    out: Out,
) {
    let tile = Tile { weights, panels, units, rows, out };
    match m {
        1 => s.vectorize(OfRows::<W, 1>(tile)),
        2 => s.vectorize(OfRows::<W, 2>(tile)),
        3 => s.vectorize(OfRows::<W, 3>(tile)),
        4 => s.vectorize(OfRows::<W, 4>(tile)),
        ROWS => s.vectorize(OfRows::<W, ROWS>(tile)),
        rows => unreachable!("{rows} rows of a tile"),
    }
}

struct Tile<W> {
    weights: W,
    panels: usize,
    units: Range<usize>,
    rows: Rows,
    out: Out,
}

/// Exactly `M` rows.
struct OfRows<W, const M: usize>(Tile<W>);

impl<W: tile::Weights, const M: usize> Op for OfRows<W, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile { weights, panels, units, rows, out } = self.0;
        // SAFETY: a tile of rows and its panels; columns of `y` belong to one chunk.
        unsafe { product::<S, W, M>(s, &weights, panels, units, rows, out) };
    }
}

struct TakeApart<'a, F> {
    from: Stored<'a, F>,
    panels: usize,
    units: Range<usize>,
    to: *mut u8,
}

impl<F: Known> Op for TakeApart<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: there is room for [`UNITS`] units of any form.
        unsafe { take_apart(s, &self.from, self.panels, self.units, self.to) };
    }
}

#[cfg(test)]
mod tests;
