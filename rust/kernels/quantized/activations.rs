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

    /// (Of what is no number it does not matter: its scale says so.)
    #[inline(always)]
    fn term(self, sum: f32, scale: f32) -> i32 {
        match self.offset {
            Some(offset) => (sum as i32).wrapping_mul(-i32::from(offset)),
            None => (scale * sum).to_bits() as i32,
        }
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

/// No sum of 16 codes is less; rounding what is no number gives the least integer.
const LEAST: f32 = -127.0 * 16.0;

/// What is smaller is taken as 0: 127 divided by it might not be finite.
const TINY: f32 = 1e-30;

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (m, units) = (self.rows.len(), self.x.columns / UNIT);
        let mut r = 0;
        while r < m {
            let (values, _) = self.x.row_slice(self.rows.start + r).as_chunks::<UNIT>();
            let mut unit = 0;
            while unit < units {
                let values = &values[unit];
                let (left, right) = (s.get(&values[..LANES]), s.get(&values[LANES..]));
                let most = s.reduce_max(s.max(s.abs(left), s.abs(right)));
                let factor = s.splat(if most > TINY { 127.0 / most } else { 0.0 });
                let (left, right) = (s.round(s.mul(left, factor)), s.round(s.mul(right, factor)));
                // Exact, being of few small integers; what is no number makes them large.
                let sums = [s.reduce_sum(s.to_float(left)), s.reduce_sum(s.to_float(right))];
                let scale = if sums[0] < LEAST || sums[1] < LEAST {
                    f32::NAN
                } else if most > TINY {
                    most / 127.0
                } else {
                    0.0
                };
                let at = self.rows.start * units + unit * m;
                // SAFETY: each row has its own place in each unit.
                unsafe {
                    let codes = &mut *self.codes.add(at + r);
                    codes[..LANES].copy_from_slice(&s.signed_bytes(left));
                    codes[LANES..].copy_from_slice(&s.signed_bytes(right));
                    *self.scales.add(at + r) = scale;
                    let mut kind = 0;
                    while kind < self.terms.len() {
                        let (terms, values) = self.terms[kind];
                        let values = values.get().add(at * terms.groups + r);
                        if terms.groups == 2 {
                            *values = terms.term(sums[0], scale);
                            *values.add(m) = terms.term(sums[1], scale);
                        } else {
                            *values = terms.term(sums[0] + sums[1], scale);
                        }
                        kind += 1;
                    }
                }
                unit += 1;
            }
            r += 1;
        }
    }
}
