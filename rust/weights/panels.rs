//! A matrix as panels of 16 output columns.

use std::ops::Range;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Arena;
use crate::error::{Error, Result};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};

/// What the numbers of a panel are stored as, and so what a panel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `[k][16]`.
    Float32,
    /// `[k][16]`.
    Float16,
    /// `[⌈k / 2⌉][16][2]`: two neighbouring inputs are side by side, as [`Simd::dot_bfloat16`] takes them; after an
    /// odd number of inputs comes a 0.
    Bfloat16,
}

impl Element {
    /// Inputs of a step: of what a lane has in 32 bits, or for float16 in 16.
    pub fn inputs(self) -> usize {
        match self {
            Element::Float32 | Element::Float16 => 1,
            Element::Bfloat16 => 2,
        }
    }

    /// Room for a step of 16 outputs, in float32.
    pub fn step(self) -> usize {
        match self {
            Element::Float32 | Element::Bfloat16 => LANES,
            Element::Float16 => LANES / 2,
        }
    }

    /// Room for a panel, in float32; None if that overflows.
    fn panel(self, k: usize) -> Option<usize> {
        k.div_ceil(self.inputs()).checked_mul(self.step())
    }
}

/// A matrix of `n` outputs and `k` inputs, stored as ⌈n / 16⌉ panels: panel p holds the weights of outputs
/// 16 p … 16 p + 15, input by input; the last is padded with zeros. One vector load gives the weights of 16
/// outputs for one input (or two), and a panel is read front to back.
#[derive(Clone, Debug)]
pub struct Panels {
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    pub element: Element,
    arena: Arc<Arena>,
    /// In float32, as all distances here.
    offset: usize,
}

impl Panels {
    /// How many floats of an arena the panels of an `[n, k]` matrix take; None if that overflows.
    pub fn floats(element: Element, n: usize, k: usize) -> Option<usize> {
        n.div_ceil(LANES).checked_mul(element.panel(k)?)
    }

    /// Packs a matrix into an arena of its own. See [`Arena::panels`].
    pub fn pack(
        element: Element,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Panels> {
        Arena::with_capacity(checked_floats(element, n, k)?)?.panels(element, n, k, fill)
    }

    /// Packs a matrix whose source is stored input by input into an arena of its own. See
    /// [`Arena::panels_transposed`].
    pub fn pack_transposed(
        element: Element,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Panels> {
        Arena::with_capacity(checked_floats(element, n, k)?)?.panels_transposed(element, n, k, fill)
    }

    /// How many panels.
    pub fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// From one panel to the next.
    pub fn panel_floats(&self) -> usize {
        self.k.div_ceil(self.element.inputs()) * self.element.step()
    }

    /// All panels.
    pub fn memory(&self) -> &[u8] {
        let size = self.count() * self.panel_floats() * size_of::<f32>();
        // SAFETY: the range was handed to this matrix, written by the packing, and never changes.
        unsafe { from_raw_parts(self.arena.at(self.offset).cast(), size) }
    }

    /// Panel `p`, whatever its floats hold.
    pub fn panel(&self, p: usize) -> &[f32] {
        assert!(p < self.count());
        let size = self.panel_floats();
        // SAFETY: the range was handed to this matrix, written by the packing, and never changes.
        unsafe { from_raw_parts(self.arena.at(self.offset + p * size), size) }
    }

    /// The outputs of a range, which begins at a border of panels, as a matrix of its own over the same memory.
    pub fn outputs(&self, range: Range<usize>) -> Panels {
        assert!(range.start.is_multiple_of(LANES) && range.start <= range.end && range.end <= self.n);
        let offset = self.offset + range.start / LANES * self.panel_floats();
        Panels { n: range.len(), offset, arena: self.arena.clone(), ..*self }
    }

    /// Row `i` of the matrix (the weights of output i) into `out[k]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let (panel, lane) = (self.panel(i / LANES), i % LANES);
        match self.element {
            Element::Float32 => {
                let lanes = panel.iter().skip(lane).step_by(LANES);
                out.iter_mut().zip(lanes).for_each(|(out, x)| *out = *x);
            }
            Element::Float16 => {
                let lanes = halves(panel).iter().skip(lane).step_by(LANES);
                out.iter_mut().zip(lanes).for_each(|(out, x)| *out = f16::from_bits(*x).to_f32());
            }
            Element::Bfloat16 => {
                for (pair, step) in out.chunks_mut(2).zip(halves(panel).as_chunks::<{ 2 * LANES }>().0) {
                    let lane = &step[2 * lane..][..2];
                    pair.iter_mut().zip(lane).for_each(|(out, x)| *out = bf16::from_bits(*x).to_f32());
                }
            }
        }
    }

    /// All panels, one after the other.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.arena.at(self.offset)
    }
}

/// What floats hold as numbers of 16 bits.
fn halves(panel: &[f32]) -> &[u16] {
    // SAFETY: as many bytes, in numbers that any bits make.
    unsafe { from_raw_parts(panel.as_ptr().cast(), 2 * panel.len()) }
}

fn checked_floats(element: Element, n: usize, k: usize) -> Result<usize> {
    Panels::floats(element, n, k)
        .ok_or_else(|| Error::Memory { what: format!("a matrix of {n} × {k}"), bytes: usize::MAX })
}

impl Arena {
    /// Packs an `[n, k]` matrix into the next room of this arena, rounded to nearest even. `fill(i, row)` writes
    /// row i (the `k` weights of output i) of the source into `row`, which holds anything before; it is called
    /// once a row, from all threads of the pool.
    pub fn panels(
        self: &Arc<Self>,
        element: Element,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Panels> {
        let panels = self.not_yet_written(element, n, k)?;
        let (start, size) = (SendPtr(self.at(panels.offset)), panels.panel_floats());
        threads::for_each(panels.count(), |p| {
            // SAFETY: the range of panel p was handed to this call and each p is claimed once.
            let panel = unsafe { from_raw_parts_mut(start.get().add(p * size), size) };
            let rows = LANES.min(n - p * LANES);
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(k * LANES, 0.0);
                for r in 0..rows {
                    fill(p * LANES + r, &mut scratch[r * k..][..k]);
                }
                scratch[rows * k..].fill(0.0);
                dispatch(Write { from: scratch, lane_stride: k, k_stride: 1, k, element, panel });
            });
        });
        Ok(panels)
    }

    /// Packs an `[n, k]` matrix whose source is stored as `[k, n]` (GPT-2's Conv1D). `fill(j, row)`
    /// writes row j of the source (the weights of input j in all `n` outputs) into `row`.
    pub fn panels_transposed(
        self: &Arc<Self>,
        element: Element,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Panels> {
        let panels = self.not_yet_written(element, n, k)?;
        let (start, size) = (SendPtr(self.at(panels.offset)), panels.panel_floats());
        // Inputs by the sixteen, so that a panel gets 1 KiB at a time.
        threads::for_each(k.div_ceil(LANES), |block| {
            let inputs = block * LANES..k.min((block + 1) * LANES);
            let steps = inputs.len().div_ceil(element.inputs());
            SCRATCH.with_borrow_mut(|scratch| {
                let width = n.next_multiple_of(LANES);
                scratch.clear();
                scratch.resize(inputs.len() * width, 0.0);
                for (j, row) in inputs.clone().zip(scratch.chunks_exact_mut(width.max(1))) {
                    fill(j, &mut row[..n]);
                }
                for p in 0..panels.count() {
                    let at = p * size + inputs.start / element.inputs() * element.step();
                    // SAFETY: input block `block` of panel p belongs to this chunk alone.
                    let panel = unsafe { from_raw_parts_mut(start.get().add(at), steps * element.step()) };
                    let from = &scratch[p * LANES..];
                    let k = inputs.len();
                    dispatch(Write { from, lane_stride: 1, k_stride: width, k, element, panel });
                }
            });
        });
        Ok(panels)
    }

    fn not_yet_written(self: &Arc<Self>, element: Element, n: usize, k: usize) -> Result<Panels> {
        let offset = self.take(checked_floats(element, n, k)?)?;
        Ok(Panels { n, k, element, arena: self.clone(), offset })
    }
}

thread_local! {
    /// Sixteen rows of the source; kept, since loading packs hundreds of matrices.
    static SCRATCH: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Some inputs of 16 outputs into the steps of a panel. One of the strides is 1.
struct Write<'a> {
    from: &'a [f32],
    lane_stride: usize,
    k_stride: usize,
    k: usize,
    element: Element,
    panel: &'a mut [f32],
}

impl Op for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let per_block = LANES / self.element.inputs() * self.element.step();
        for (first, panel) in (0..self.k).step_by(LANES).zip(self.panel.chunks_mut(per_block)) {
            let count = LANES.min(self.k - first);
            let mut vectors = [s.splat(0.0); LANES];
            if self.k_stride == 1 {
                for (r, vector) in vectors.iter_mut().enumerate() {
                    *vector = s.get(&self.from[r * self.lane_stride + first..][..count]);
                }
                s.transpose(&mut vectors);
            } else {
                for (j, vector) in vectors.iter_mut().enumerate().take(count) {
                    *vector = s.get(&self.from[(first + j) * self.k_stride..][..LANES]);
                }
            }
            for (j, step) in panel.chunks_exact_mut(self.element.step()).enumerate() {
                match self.element {
                    Element::Float32 => s.put(step, vectors[j]),
                    Element::Float16 => {
                        let mut floats = [0.0; LANES];
                        s.put(&mut floats, vectors[j]);
                        let mut rounded = [f16::ZERO; LANES];
                        rounded.convert_from_f32_slice(&floats);
                        for (to, pair) in step.iter_mut().zip(rounded.as_chunks::<2>().0) {
                            let [low, high] = pair.map(|x| u32::from(x.to_bits()));
                            *to = f32::from_bits(high << 16 | low);
                        }
                    }
                    Element::Bfloat16 => s.put(step, s.bfloat16_pairs(vectors[2 * j], vectors[2 * j + 1])),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sources_give_the_same_panels() {
        for (n, k) in [(1, 1), (16, 5), (17, 16), (40, 37), (0, 3), (3, 0)] {
            // 11 bits, which every element but bfloat16 holds.
            let value = |i: usize, j: usize| (i * 50 + j) as f32 / 8.0 - 100.0;
            for element in [Element::Float32, Element::Float16, Element::Bfloat16] {
                let rows = Panels::pack(element, n, k, |i, row| {
                    row.iter_mut().enumerate().for_each(|(j, x)| *x = value(i, j));
                })
                .unwrap();
                let columns = Panels::pack_transposed(element, n, k, |j, row| {
                    row.iter_mut().enumerate().for_each(|(i, x)| *x = value(i, j));
                })
                .unwrap();
                for p in 0..rows.count() {
                    let bits = |panel: &[f32]| panel.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(rows.panel(p)), bits(columns.panel(p)));
                }
                for i in 0..n {
                    let mut row = vec![-1.0; k];
                    rows.row(i, &mut row);
                    for (j, x) in row.into_iter().enumerate() {
                        let rounded = match element {
                            Element::Bfloat16 => bf16::from_f32(value(i, j)).to_f32(),
                            _ => value(i, j),
                        };
                        assert_eq!(x, rounded);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_missing_to_a_panel_is_zero() {
        for (element, len) in [(Element::Float32, 48), (Element::Float16, 24), (Element::Bfloat16, 32)] {
            let panels = Panels::pack(element, 1, 3, |_, row| row.fill(1.0)).unwrap();
            let panel = panels.panel(0);
            assert_eq!(panel.len(), len);
            let ones = halves(panel).iter().filter(|x| **x != 0).count();
            assert_eq!(ones, 3);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        let pack = |n, k| Panels::pack(Element::Float32, n, k, |_, _| ());
        assert!(matches!(pack(1 << 40, 1 << 40), Err(Error::Memory { .. })));
        assert!(matches!(pack(1 << 31, 1 << 27), Err(Error::Memory { .. })));
        let arena = Arena::with_capacity(100).unwrap();
        assert!(arena.panels(Element::Float32, 16, 6, |_, row| row.fill(0.0)).is_ok());
        assert!(arena.panels(Element::Float32, 16, 1, |_, row| row.fill(0.0)).is_err());
    }
}
