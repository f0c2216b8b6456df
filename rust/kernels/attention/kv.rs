//! How keys and values lie in a block of positions: in float32, bfloat16 or bytes.
//!
//! Whatever they are stored in, attention computes in float32: a bfloat16 is the upper half of one, and a
//! byte is a whole number whose scale, one a position and head, multiplies the score of a key or the weight
//! of a value. So bits depend neither on the instruction set nor on how rows fall into passes. A decode step waits for
//! memory, so this costs it nothing; a prefill widens in the shadow of its multiply-adds. (Products of bfloat16 pairs
//! would take half as many of these, and round queries and the weights of values, too.)

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use half::bf16;

use super::HeadRows;
use crate::kernels::SMALL;
use crate::kernels::product::{self, Stored};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// Positions of a block.
pub const BLOCK: usize = product::ROW;

/// What keys and values are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    Float32,
    /// Rounded to nearest even, subnormal numbers to 0.
    Bfloat16,
    /// Whole numbers within ±127, and for each position and head a scale: the largest magnitude / 127.
    Int8,
}

impl KvDtype {
    /// Of a name of the field's: "float32", "bfloat16" or "int8".
    pub fn from_name(name: &str) -> Option<KvDtype> {
        match name {
            "float32" => Some(KvDtype::Float32),
            "bfloat16" => Some(KvDtype::Bfloat16),
            "int8" => Some(KvDtype::Int8),
            _ => None,
        }
    }
}

/// The block of one layer. For each head there are its keys as panels of 16 positions, `[4][head_dim][16]`, its
/// values as rows, `[64][head_dim]`, and of bytes the scales of both, `[2][64]` in float32.
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    pub dtype: KvDtype,
    pub heads: usize,
    pub head_dim: usize,
}

impl KvLayout {
    /// Of the whole block; a multiple of 64.
    pub fn bytes(&self) -> usize {
        self.heads * self.head_bytes()
    }

    fn head_bytes(&self) -> usize {
        2 * (self.half_bytes() + self.scale_bytes())
    }

    /// Of the keys of a head, or of its values.
    fn half_bytes(&self) -> usize {
        BLOCK * self.head_dim * self.number_bytes()
    }

    /// Of the scales of these.
    fn scale_bytes(&self) -> usize {
        if self.dtype == KvDtype::Int8 { BLOCK * size_of::<f32>() } else { 0 }
    }

    fn number_bytes(&self) -> usize {
        match self.dtype {
            KvDtype::Float32 => size_of::<f32>(),
            KvDtype::Bfloat16 => size_of::<bf16>(),
            KvDtype::Int8 => size_of::<i8>(),
        }
    }

    /// The parts of a head, in numbers of the layout's type.
    pub(super) fn head<T>(&self, block: &[u8], head: usize) -> Head<T> {
        let at = block[head * self.head_bytes()..][..self.head_bytes()].as_ptr();
        let values = at.wrapping_add(self.half_bytes());
        let key_scales = values.wrapping_add(self.half_bytes());
        let value_scales = key_scales.wrapping_add(self.scale_bytes());
        Head {
            keys: at.cast(),
            values: values.cast(),
            key_scales: key_scales.cast(),
            value_scales: value_scales.cast(),
        }
    }

    /// Copies the first `positions`, and what else is in the panels of keys that they touch.
    pub fn copy(&self, positions: usize, from: &[u8], to: &mut [u8]) {
        let row = self.head_dim * self.number_bytes();
        let (keys, values) = (positions.next_multiple_of(LANES) * row, positions * row);
        let size = self.head_bytes();
        for (from, to) in from.chunks_exact(size).zip(to.chunks_exact_mut(size)) {
            let half = self.half_bytes();
            for part in [0..keys, half..half + values, 2 * half..size] {
                to[part.clone()].copy_from_slice(&from[part]);
            }
        }
    }
}

/// Where the parts of a head begin.
#[derive(Clone, Copy)]
pub(super) struct Head<T> {
    pub keys: *const T,
    pub values: *const T,
    pub key_scales: *const f32,
    pub value_scales: *const f32,
}

/// A type that keys and values are stored in.
pub(super) trait Element: Stored {
    /// Whether positions have scales.
    const SCALED: bool;

    /// Rounded to nearest even; within ±127 where there are scales.
    fn encode<S: Simd>(s: S, x: S::F32) -> [Self; LANES];
}

impl Element for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: S::F32) -> [f32; LANES] {
        let mut numbers = [0.0; LANES];
        s.put(&mut numbers, x);
        numbers
    }
}

impl Element for bf16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: S::F32) -> [bf16; LANES] {
        let pairs = f32::encode(s, s.bfloat16_pairs(x, s.splat(0.0)));
        let mut numbers = [bf16::ZERO; LANES];
        for i in 0..LANES {
            numbers[i] = bf16::from_bits(pairs[i].to_bits() as u16);
        }
        numbers
    }
}

impl Element for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: S::F32) -> [i8; LANES] {
        s.signed_bytes(s.round(x))
    }
}

/// What brings a row into ±127, and the scale that brings it back. Where one of its numbers is not finite, all
/// are 0 times that: NaN. A row too small for the factor to be finite is 0.
#[inline(always)]
fn factor_and_scale(row: &[f32]) -> (f32, f32) {
    let mut largest = 0;
    for x in row {
        // Among the bits of magnitudes those of NaN are the largest.
        largest = largest.max(x.abs().to_bits());
    }
    let largest = f32::from_bits(largest);
    let factor = 127.0 / largest;
    match (largest.is_finite(), factor.is_finite()) {
        (true, true) => (factor, largest / 127.0),
        (true, false) => (0.0, 0.0),
        (false, _) => (0.0, largest),
    }
}

/// Some rows of keys and values to be written into one block, from a slot on.
pub struct Stretch<'a> {
    pub block: &'a mut [u8],
    pub slot: usize,
    pub rows: Range<usize>,
}

/// Rounds the rows of every stretch, `keys` and `values` with the layout's heads, into its block.
pub fn write(layout: &KvLayout, stretches: &mut [Stretch<'_>], keys: HeadRows<'_>, values: HeadRows<'_>) {
    let mut rows = 0;
    for stretch in &*stretches {
        assert!(stretch.block.len() == layout.bytes() && stretch.slot + stretch.rows.len() <= BLOCK);
        assert!([keys, values].iter().all(|x| x.have(&stretch.rows, layout.heads, layout.head_dim)));
        rows += stretch.rows.len();
    }
    let write = |stretch: &mut Stretch<'_>| match layout.dtype {
        KvDtype::Float32 => dispatch(Write::<f32>::new(layout, stretch, keys, values)),
        KvDtype::Bfloat16 => dispatch(Write::<bf16>::new(layout, stretch, keys, values)),
        KvDtype::Int8 => dispatch(Write::<i8>::new(layout, stretch, keys, values)),
    };
    if rows * layout.heads * layout.head_dim < SMALL {
        stretches.iter_mut().for_each(write);
    } else {
        threads::for_each_mut(stretches, 1, |_, one| one.iter_mut().for_each(write));
    }
}

struct Write<'a, T> {
    layout: &'a KvLayout,
    slot: usize,
    rows: Range<usize>,
    keys: HeadRows<'a>,
    values: HeadRows<'a>,
    block: &'a mut [u8],
    element: PhantomData<T>,
}

impl<'a, T> Write<'a, T> {
    fn new(
        layout: &'a KvLayout,
        stretch: &'a mut Stretch<'_>,
        keys: HeadRows<'a>,
        values: HeadRows<'a>,
    ) -> Self {
        let Stretch { block, slot, rows } = stretch;
        Write { layout, slot: *slot, rows: rows.clone(), keys, values, block, element: PhantomData }
    }
}

impl<T: Element> Op for Write<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for head in 0..self.layout.heads {
            // A panel of keys, and the rows of their values, at a time.
            let (mut row, mut slot) = (self.rows.start, self.slot);
            while row < self.rows.end {
                let count = (LANES - slot % LANES).min(self.rows.end - row);
                let rows = row..row + count;
                let to: Head<T> = self.layout.head(self.block, head);
                // SAFETY: `write` checked that there are such rows, and that the slots lie in the block.
                unsafe {
                    write_panel(s, &self.keys, rows.clone(), head, self.layout.head_dim, slot, to);
                    write_rows(s, &self.values, rows, head, self.layout.head_dim, slot, to);
                }
                (row, slot) = (row + count, slot + count);
            }
        }
    }
}

/// Keys, which fall into one panel.
/// # Safety
/// The rows and the head are there, and slots for them in `to`, which is unshared.
#[inline(always)]
unsafe fn write_panel<S: Simd, T: Element>(
    s: S,
    keys: &HeadRows<'_>,
    rows: Range<usize>,
    head: usize,
    d: usize,
    slot: usize,
    to: Head<T>,
) {
    let panel = to.keys.cast_mut().wrapping_add(slot / LANES * LANES * d);
    let lane = slot % LANES;
    let mut factors = [1.0; LANES];
    // SAFETY: the caller's; nothing is said of alignment.
    unsafe {
        if T::SCALED {
            for (i, row) in rows.clone().enumerate() {
                let (factor, scale) = factor_and_scale(keys.of_head(row, head, d));
                factors[i] = factor;
                to.key_scales.cast_mut().add(slot + i).write_unaligned(scale);
            }
        }
        for first in (0..d).step_by(LANES) {
            let width = LANES.min(d - first);
            let mut vectors = [s.splat(0.0); LANES];
            for (i, row) in rows.clone().enumerate() {
                vectors[i] = scaled::<S, T>(s, &keys.of_head(row, head, d)[first..][..width], factors[i]);
            }
            let panel = panel.add(first * LANES);
            if rows.len() == LANES {
                s.transpose(&mut vectors);
                for j in 0..width {
                    panel.add(j * LANES).cast::<[T; LANES]>().write_unaligned(T::encode(s, vectors[j]));
                }
            } else {
                for i in 0..rows.len() {
                    let numbers = T::encode(s, vectors[i]);
                    for j in 0..width {
                        panel.add(j * LANES + lane + i).write_unaligned(numbers[j]);
                    }
                }
            }
        }
    }
}

/// Values.
/// # Safety
/// As [`write_panel`].
#[inline(always)]
unsafe fn write_rows<S: Simd, T: Element>(
    s: S,
    values: &HeadRows<'_>,
    rows: Range<usize>,
    head: usize,
    d: usize,
    slot: usize,
    to: Head<T>,
) {
    for (slot, row) in (slot..).zip(rows) {
        let row = values.of_head(row, head, d);
        let mut factor = 1.0;
        // SAFETY: the caller's; nothing is said of alignment.
        unsafe {
            if T::SCALED {
                let scale;
                (factor, scale) = factor_and_scale(row);
                to.value_scales.cast_mut().add(slot).write_unaligned(scale);
            }
            for (i, x) in row.chunks(LANES).enumerate() {
                let numbers = T::encode(s, scaled::<S, T>(s, x, factor));
                let to = to.values.cast_mut().add(slot * d + i * LANES);
                ptr::copy_nonoverlapping(numbers.as_ptr().cast::<u8>(), to.cast(), x.len() * size_of::<T>());
            }
        }
    }
}

/// Up to 16 numbers times the factor; a factor of 0 makes 0 of any number.
#[inline(always)]
fn scaled<S: Simd, T: Element>(s: S, x: &[f32], factor: f32) -> S::F32 {
    if !T::SCALED {
        s.get(x)
    } else if factor == 0.0 {
        s.splat(0.0)
    } else {
        s.mul(s.get(x), s.splat(factor))
    }
}
