//! A matrix of quantised numbers, as a file stores them, in panels of 16 output columns.

use std::ops::Range;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Arc;

use half::f16;

use super::Arena;
use crate::error::{Error, Result};
use crate::formats::DType;
use crate::formats::blocks::{Block, Form, Scales};
use crate::simd::{BYTES, LANES};
use crate::threads::{self, SendPtr};

/// Inputs of a unit: eight vectors of four inputs of 16 outputs.
pub const UNIT: usize = 32;

/// Where the parts of a panel of 16 outputs lie, in bytes. Codes come first: of each unit of 32 inputs the low
/// bits, then the high ones. b bits of the eight vectors fill b vectors, one after the other: those of vector t begin at
/// bit b t mod 8 of vector ⌊b t / 8⌋. The byte of output c and input 4 t + i is byte 4 c + i of vector t. Then the scales of units: per
/// group 16 values of each kind; then, where float16 are for 256 inputs, those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    /// Bytes of a unit's codes.
    pub codes: usize,
    /// Where the scales of units begin, and their bytes for a unit.
    pub scales: usize,
    pub unit_scales: usize,
    /// Where the float16 of 256 inputs begin, and their bytes.
    pub halves: usize,
    pub block_halves: usize,
    /// Of the whole panel.
    pub len: usize,
}

impl PanelLayout {
    pub fn new(form: Form, k: usize) -> Self {
        let units = k / UNIT;
        let (halves, bytes) = form.scales.parts();
        let block = form.scales.block();
        let codes = BYTES * (form.low_bits + form.high_bits) as usize;
        let (unit_scales, block_halves) = match block {
            UNIT => (2 * LANES * halves, 0),
            _ => (LANES * bytes * (UNIT / form.scales.group()), 2 * LANES * halves),
        };
        let scales = units * codes;
        let halves = (scales + units * unit_scales).next_multiple_of(BYTES);
        let len = (halves + k.div_ceil(block) * block_halves).next_multiple_of(BYTES);
        PanelLayout { codes, scales, unit_scales, halves, block_halves, len }
    }
}

/// A matrix of `n` outputs and `k` inputs; what outputs lack to a multiple of 16 is zero.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Outputs.
    pub n: usize,
    /// Inputs, a multiple of 32, or of 256.
    pub k: usize,
    pub form: Form,
    pub layout: PanelLayout,
    arena: Arc<Arena>,
    /// In floats.
    offset: usize,
}

impl Quantized {
    /// How many floats of an arena an `[n, k]` matrix takes; None if that overflows.
    pub fn floats(form: Form, n: usize, k: usize) -> Option<usize> {
        Some(n.div_ceil(LANES).checked_mul(PanelLayout::new(form, k).len)? / size_of::<f32>())
    }

    /// Bytes of the panels.
    pub fn bytes(&self) -> usize {
        self.n.div_ceil(LANES) * self.layout.len
    }

    /// All panels.
    pub fn memory(&self) -> &[u8] {
        self.panels(0..self.n.div_ceil(LANES))
    }

    /// Panel `p`.
    pub fn panel(&self, p: usize) -> &[u8] {
        self.panels(p..p + 1)
    }

    /// Some panels, one after the other.
    pub fn panels(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.n.div_ceil(LANES));
        // SAFETY: the range was handed to this matrix, written by the packing, and never changes.
        unsafe { from_raw_parts(self.at(range.start), range.len() * self.layout.len) }
    }

    fn at(&self, panel: usize) -> *const u8 {
        self.arena.at(self.offset).cast::<u8>().cast_const().wrapping_add(panel * self.layout.len)
    }

    /// The outputs of a range, which begins at a border of panels.
    pub fn outputs(&self, range: Range<usize>) -> Quantized {
        assert!(range.start.is_multiple_of(LANES) && range.start <= range.end && range.end <= self.n);
        let offset = self.offset + range.start / LANES * (self.layout.len / size_of::<f32>());
        Quantized { n: range.len(), offset, arena: self.arena.clone(), ..*self }
    }

    /// Row `i` of the matrix (the weights of output i) into `out [k]`, each the number that the file stands for.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        self.expand(i, 0..self.k, out);
    }

    /// Some columns of row `i` into `out [columns]`.
    pub fn expand(&self, i: usize, columns: Range<usize>, out: &mut [f32]) {
        assert!(columns.end <= self.k && out.len() == columns.len());
        let (panel, column) = (self.panel(i / LANES), i % LANES);
        let mut next = columns.start;
        let mut rest = out;
        while !rest.is_empty() {
            let (unit, first) = (next / UNIT, next % UNIT);
            let (out, others) = rest.split_at_mut(rest.len().min(UNIT - first));
            out.copy_from_slice(&self.unit(panel, column, unit)[first..first + out.len()]);
            (next, rest) = (next + out.len(), others);
        }
    }

    /// The numbers of one output in a unit: those of a group are factor · (code − offset) + term.
    fn unit(&self, panel: &[u8], column: usize, unit: usize) -> [f32; UNIT] {
        let Form { low_bits, high_bits, offset, levels, scales } = self.form;
        let codes = &panel[unit * self.layout.codes..][..self.layout.codes];
        let mut numbers = [0.0; UNIT];
        for (t, numbers) in numbers.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // Four codes of a vector at once; what comes from the neighbouring byte is masked away.
            let bits = |from: usize, bits: u32| {
                let (vector, shift) = place(t, bits);
                let at = from + vector * BYTES + 4 * column;
                let word = u32::from_le_bytes([codes[at], codes[at + 1], codes[at + 2], codes[at + 3]]);
                (word >> shift) & ((0xFF >> (8 - bits)) * 0x0101_0101)
            };
            let mut four = bits(0, low_bits);
            if high_bits > 0 {
                four |= bits(low_bits as usize * BYTES, high_bits) << low_bits;
            }
            let four = four.to_le_bytes().map(|q| levels.map_or(q, |levels| levels[usize::from(q)]));
            *numbers = four.map(|q| f32::from(i16::from(q) - i16::from(offset)));
        }
        let groups = self.scales_of(panel, column, unit);
        for (group, numbers) in numbers.chunks_exact_mut(scales.group()).enumerate() {
            let (factor, term) = groups[group];
            numbers.iter_mut().for_each(|number| *number = factor * *number + term);
        }
        numbers
    }

    /// Factor and term of each group of a unit. (What has no term adds −0, which changes no number.)
    fn scales_of(&self, panel: &[u8], column: usize, unit: usize) -> [(f32, f32); 2] {
        let (layout, scales) = (self.layout, self.form.scales);
        let half = |at: usize| f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
        let unit_scales = layout.scales + unit * layout.unit_scales;
        let halves = layout.halves + unit * UNIT / scales.block() * layout.block_halves;
        let of_unit = |kind: usize| half(unit_scales + 2 * (kind * LANES + column));
        let of_block = |kind: usize| half(halves + 2 * (kind * LANES + column));
        let byte = |array: usize| panel[unit_scales + array * LANES + column];
        let signed = |array: usize| (of_block(0) * f32::from(byte(array) as i8), -0.0);
        let nibbles = |array: usize| {
            let both = byte(array);
            (of_block(0) * f32::from(both & 15), -(of_block(1) * f32::from(both >> 4)))
        };
        match scales {
            Scales::Half => [(of_unit(0), -0.0); 2],
            Scales::HalfAndMin => [(of_unit(0), of_unit(1)); 2],
            Scales::Signed => [signed(0); 2],
            Scales::SignedBySixteen => [signed(0), signed(1)],
            Scales::Bytes => [(of_block(0) * f32::from(byte(0)), -(of_block(1) * f32::from(byte(1)))); 2],
            Scales::NibblesBySixteen => [nibbles(0), nibbles(1)],
        }
    }
}

/// Of `bits` bits a code: the vector, and the bit in it, where those of vector `t` begin.
#[inline(always)]
pub fn place(t: usize, bits: u32) -> (usize, u32) {
    let bit = t as u32 * bits;
    (bit as usize / 8, bit % 8)
}

impl Arena {
    /// Packs an `[n, k]` matrix of a quantised type into the next room of this arena. `fill(i, row)` writes the
    /// bytes of row i as the file stores them; it is called once a row, from all threads of the pool.
    pub fn quantized(
        self: &Arc<Self>,
        dtype: DType,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Quantized> {
        let form =
            Form::of(dtype).ok_or_else(|| Error::argument("type", dtype.name(), "a quantised type"))?;
        let floats = Quantized::floats(form, n, k)
            .ok_or_else(|| Error::Memory { what: format!("a matrix of {n} × {k}"), bytes: usize::MAX })?;
        let start = self.take(floats)?;
        let layout = PanelLayout::new(form, k);
        let to = SendPtr(self.at(start).cast::<u8>());
        let (elements, bytes) = dtype.block();
        threads::for_each(n.div_ceil(LANES), |p| {
            // SAFETY: the range of panel p was handed to this call and each p is claimed once.
            let panel = unsafe { from_raw_parts_mut(to.get().add(p * layout.len), layout.len) };
            panel.fill(0);
            let mut row = vec![0; k / elements * bytes];
            let mut block = Block::zero();
            for column in 0..LANES.min(n - p * LANES) {
                fill(p * LANES + column, &mut row);
                for (index, stored) in row.chunks_exact(bytes).enumerate() {
                    block.read(dtype, stored);
                    put(panel, &layout, form, column, index * elements, &block);
                }
            }
        });
        Ok(Quantized { n, k, form, layout, arena: self.clone(), offset: start })
    }
}

/// A block of one output, whose first input is `first`, into its panel.
fn put(panel: &mut [u8], layout: &PanelLayout, form: Form, column: usize, first: usize, block: &Block) {
    let Form { low_bits, high_bits, scales, .. } = form;
    let units = panel[first / UNIT * layout.codes..].chunks_exact_mut(layout.codes);
    for (unit, codes) in block.codes[..scales.block()].as_chunks::<UNIT>().0.iter().zip(units) {
        for (t, four) in unit.as_chunks::<4>().0.iter().enumerate() {
            // Four codes of a vector at once; what comes from the neighbouring byte is masked away.
            let four = u32::from_le_bytes(*four);
            let mut add = |from: usize, bits: u32, four: u32| {
                let (vector, shift) = place(t, bits);
                let at = from + vector * BYTES + 4 * column;
                let known = u32::from_le_bytes([codes[at], codes[at + 1], codes[at + 2], codes[at + 3]]);
                let four = four & ((0xFF >> (8 - bits)) * 0x0101_0101);
                codes[at..at + 4].copy_from_slice(&(known | four << shift).to_le_bytes());
            };
            add(0, low_bits, four);
            if high_bits > 0 {
                add(low_bits as usize * BYTES, high_bits, four >> low_bits);
            }
        }
    }
    let (halves, bytes) = scales.parts();
    let at = if layout.block_halves > 0 {
        layout.halves + first / scales.block() * layout.block_halves
    } else {
        layout.scales + first / UNIT * layout.unit_scales
    };
    for (kind, half) in block.halves[..halves].iter().enumerate() {
        panel[at + 2 * (kind * LANES + column)..][..2].copy_from_slice(&half.to_le_bytes());
    }
    if bytes > 0 {
        for group in 0..scales.block() / scales.group() {
            let unit = (first + group * scales.group()) / UNIT;
            let within = group % (UNIT / scales.group());
            let at = layout.scales + unit * layout.unit_scales + within * bytes * LANES;
            for (kind, value) in block.scales[group][..bytes].iter().enumerate() {
                panel[at + kind * LANES + column] = *value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::dequantize::dequantize;

    #[test]
    fn rows_come_back_as_the_numbers_of_the_file() {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        for &dtype in DType::ALL {
            if Form::of(dtype).is_none() {
                continue;
            }
            let (elements, bytes) = dtype.block();
            let (n, k) = (37, 3 * elements);
            let rows: Vec<Vec<u8>> = (0..n)
                .map(|_| {
                    // Exponents of float16 that are all ones would be infinities.
                    let row: Vec<u8> = (0..3 * bytes).map(|_| random() & 0x3B).collect();
                    row
                })
                .collect();
            let form = Form::of(dtype).unwrap();
            let arena = Arena::with_capacity(Quantized::floats(form, n, k).unwrap()).unwrap();
            let matrix = arena.quantized(dtype, n, k, |i, row| row.copy_from_slice(&rows[i])).unwrap();
            for (i, row) in rows.iter().enumerate() {
                let (mut expected, mut found) = (vec![0.0; k], vec![1.0; k]);
                dequantize(dtype, row, &mut expected);
                matrix.row(i, &mut found);
                assert_eq!(found, expected, "{} row {i}", dtype.name());
                matrix.expand(i, 27..k - 5, &mut found[27..k - 5]);
                assert_eq!(found, expected);
                let part = matrix.outputs(i / LANES * LANES..n);
                part.row(i % LANES, &mut found);
                assert_eq!(found, expected);
            }
            // Within 1.05 of what the file takes, for a width of 768 and more.
            let (k, layout) = (768, PanelLayout::new(form, 768));
            let stored = LANES * k / elements * bytes;
            assert!(
                layout.len as f64 <= 1.05 * stored as f64,
                "{}: {} of {stored}",
                dtype.name(),
                layout.len
            );
        }
    }
}
