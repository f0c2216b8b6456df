//! Rows rounded to bytes, 32 at a time with a scale of their own.

use std::ops::Range;

use super::tile::{ROWS, Rows};
use crate::formats::blocks::{Form, Scales};
use crate::kernels::{self, Matrix};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::SendPtr;
use crate::weights::{Quantized, UNIT};

/// Rows as bytes, in tiles of [`ROWS`] or one fewer: of each tile `[units][rows]` of everything.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    units: usize,
    codes: Vec<[i8; UNIT]>,
    scales: Vec<f32>,
    /// What the forms of the weights want to know of the sums of codes, each in its own array.
    terms: Vec<(Terms, Vec<i32>)>,
    kinds: usize,
}

/// What a tile begins with, or adds, beside its products of codes: `[units][groups][rows]`, tile by tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Terms {
    /// Of a unit.
    groups: usize,
    /// The sum of codes times this, subtracted as an integer, where there is no minimum; else None: times the row's
    /// scale, as the bits of a float.
    offset: Option<u8>,
}

impl Terms {
    fn of(form: Form) -> Terms {
        let min = matches!(form.scales, Scales::HalfAndMin | Scales::Bytes | Scales::NibblesBySixteen);
        Terms { groups: UNIT / form.scales.group(), offset: (!min).then_some(form.offset) }
    }
}

impl Activations {
    /// Takes rows of `x` for products with `parts`.
    pub fn quantize(&mut self, x: Matrix<'_>, parts: &[Quantized]) {
        (self.rows, self.units) = (x.rows, x.columns / UNIT);
        let count = x.rows * self.units;
        grow(&mut self.codes, count, [0; UNIT]);
        grow(&mut self.scales, count, 0.0);
        self.kinds = 0;
        for part in parts {
            let terms = Terms::of(part.form);
            if self.terms[..self.kinds].iter().all(|(other, _)| *other != terms) {
                if self.kinds == self.terms.len() {
                    self.terms.push(Default::default());
                }
                let (kind, values) = &mut self.terms[self.kinds];
                *kind = terms;
                grow(values, count * terms.groups, 0);
                self.kinds += 1;
            }
        }
        let (codes, scales) = (SendPtr(self.codes.as_mut_ptr()), SendPtr(self.scales.as_mut_ptr()));
        let terms: Vec<(Terms, SendPtr<i32>)> = self.terms[..self.kinds]
            .iter_mut()
            .map(|(kind, values)| (*kind, SendPtr(values.as_mut_ptr())))
            .collect();
        kernels::for_each(x.rows * x.columns, x.rows.div_ceil(ROWS), |tile| {
            dispatch(Quantize {
                x,
                rows: rows_of(tile, x.rows),
                codes: codes.get(),
                scales: scales.get(),
                terms: &terms,
            });
        });
    }

    /// The rows of a tile.
    #[inline(always)]
    pub fn rows_of(&self, tile: usize) -> Range<usize> {
        rows_of(tile, self.rows)
    }

    /// Which terms a form wants.
    pub fn terms_of(&self, form: Form) -> usize {
        let terms = Terms::of(form);
        let found = self.terms[..self.kinds].iter().position(|(kind, _)| *kind == terms);
        found.expect("the rows were taken for this form")
    }

    /// A tile from some unit on.
    #[inline(always)]
    pub fn tile(&self, tile: usize, terms: usize, unit: usize) -> Rows {
        let rows = self.rows_of(tile);
        assert!(rows.end <= self.rows && unit < self.units);
        let at = rows.start * self.units + unit * rows.len();
        let (kind, values) = &self.terms[terms];
        Rows {
            codes: self.codes[at..].as_ptr(),
            scales: self.scales[at..].as_ptr(),
            terms: values[at * kind.groups..].as_ptr(),
        }
    }
}

/// Tiles differ by one row at most.
#[inline(always)]
fn rows_of(tile: usize, rows: usize) -> Range<usize> {
    let tiles = rows.div_ceil(ROWS);
    tile * rows / tiles..(tile + 1) * rows / tiles
}

/// At least so long; what is longer stays, so that nothing is filled again and again.
fn grow<T: Clone>(values: &mut Vec<T>, len: usize, value: T) {
    if values.len() < len {
        values.resize(len, value);
    }
}

/// A tile of rows. 32 numbers become bytes within ±127 and their scale, the largest magnitude / 127; NaN if there is one
/// among them, or an infinity.
struct Quantize<'a> {
    x: Matrix<'a>,
    rows: Range<usize>,
    codes: *mut [i8; UNIT],
    scales: *mut f32,
    terms: &'a [(Terms, SendPtr<i32>)],
}

/// What is smaller is taken as 0: 127 divided by it might not be finite.
const TINY: f32 = 1e-30;

/// The codes of both halves of a unit are summed at once, those of the right one times this: a sum of 16 is within ±2032,
/// so that all of it is exact and comes apart again.
const RIGHT: f32 = 8192.0;

/// No such sum is less; rounding what is no number gives the least integer.
const LEAST: f32 = -2032.0 * (RIGHT + 1.0);

/// Sixteen units, a lane for each.
struct Lanes<'a> {
    values: [&'a [f32; UNIT]; LANES],
    rows: [usize; LANES],
    /// In the order in which units are kept.
    places: [usize; LANES],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (m, units) = (self.rows.len(), self.x.columns / UNIT);
        let mut rows: [&[[f32; UNIT]]; ROWS] = [&[]; ROWS];
        let mut row = 0;
        while row < m {
            rows[row] = self.x.row_slice(self.rows.start + row).as_chunks().0;
            row += 1;
        }
        let (mut row, mut unit) = (0, 0);
        while unit < units {
            // Lanes beyond the last unit do what the first lane does.
            let (values, place) = (&rows[row][unit], unit * m + row);
            let mut lanes = Lanes { values: [values; LANES], rows: [row; LANES], places: [place; LANES] };
            let mut lane = 0;
            while lane < LANES && unit < units {
                lanes.values[lane] = &rows[row][unit];
                (lanes.rows[lane], lanes.places[lane]) = (row, place + lane);
                row += 1;
                if row == m {
                    (row, unit) = (0, unit + 1);
                }
                lane += 1;
            }
            // SAFETY: they are units of these rows.
            unsafe { self.sixteen(s, &lanes) };
        }
    }
}

impl Quantize<'_> {
    /// # Safety
    /// The units are those of the tile.
    #[inline(always)]
    unsafe fn sixteen<S: Simd>(&self, s: S, lanes: &Lanes<'_>) {
        let (m, first) = (self.rows.len(), self.rows.start * (self.x.columns / UNIT));
        let zero = s.splat(0.0);
        let mut most = [zero; LANES];
        for lane in 0..LANES {
            let (left, right) = lanes.values[lane].split_at(LANES);
            most[lane] = s.max(s.abs(s.get(left)), s.abs(s.get(right)));
        }
        s.transpose(&mut most);
        for i in 0..LANES / 2 {
            most[i] = s.max(most[i], most[i + LANES / 2]);
        }
        for i in 1..LANES / 2 {
            most[0] = s.max(most[0], most[i]);
        }
        let some = s.lt(s.splat(TINY), most[0]);
        let mut factors = [0.0; LANES];
        s.put(&mut factors, s.select(some, s.div(s.splat(127.0), most[0]), zero));

        let mut sums = [zero; LANES];
        for lane in 0..LANES {
            let factor = s.splat(factors[lane]);
            let (left, right) = lanes.values[lane].split_at(LANES);
            let (left, right) = (s.round(s.mul(s.get(left), factor)), s.round(s.mul(s.get(right), factor)));
            sums[lane] = s.fma(s.to_float(right), s.splat(RIGHT), s.to_float(left));
            // SAFETY: each unit has its own place.
            unsafe {
                let codes = self.codes.add(first + lanes.places[lane]).cast::<[i8; LANES]>();
                *codes = s.signed_bytes(left);
                *codes.add(1) = s.signed_bytes(right);
            }
        }
        s.transpose(&mut sums);
        for i in 0..LANES / 2 {
            sums[i] = s.add(sums[i], sums[i + LANES / 2]);
        }
        for i in 1..LANES / 2 {
            sums[0] = s.add(sums[0], sums[i]);
        }
        let right = s.to_float(s.round(s.mul(sums[0], s.splat(1.0 / RIGHT))));
        let left = s.fma(right, s.splat(-RIGHT), sums[0]);
        let scale = s.select(some, s.div(most[0], s.splat(127.0)), zero);
        let scale = s.select(s.lt(sums[0], s.splat(LEAST)), s.splat(f32::NAN), scale);
        let mut scales = [0.0; LANES];
        s.put(&mut scales, scale);
        let mut lane = 0;
        while lane < LANES {
            // SAFETY: as above.
            unsafe { *self.scales.add(first + lanes.places[lane]) = scales[lane] };
            lane += 1;
        }
        let mut kind = 0;
        while kind < self.terms.len() {
            let (Terms { groups, offset }, to) = self.terms[kind];
            let mut group = 0;
            while group < groups {
                let sum = match (groups, group) {
                    (1, _) => s.add(left, right),
                    (_, 0) => left,
                    _ => right,
                };
                let factor = if let Some(offset) = offset { s.splat(-f32::from(offset)) } else { scale };
                let mut values = [0.0; LANES];
                s.put(&mut values, s.mul(sum, factor));
                let mut lane = 0;
                while lane < LANES {
                    let (place, row) = (lanes.places[lane], lanes.rows[lane]);
                    let value = values[lane];
                    let term = if offset.is_some() { value as i32 } else { value.to_bits() as i32 };
                    // SAFETY: as above.
                    unsafe { *to.get().add((first + place - row) * groups + group * m + row) = term };
                    lane += 1;
                }
                group += 1;
            }
            kind += 1;
        }
    }
}
