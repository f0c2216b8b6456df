//! A matrix as panels of 16 output columns.

use std::ops::Range;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Arc;

use super::Arena;
use crate::error::{Error, Result};
use crate::simd::LANES;
use crate::threads::{self, SendPtr};

/// A matrix of `n` outputs and `k` inputs, stored as ⌈n / 16⌉ panels of `[k][16]` float32: panel p
/// holds the weights of outputs 16 p … 16 p + 15, input by input; the last is padded with zeros. One
/// vector load gives the weights of 16 outputs for one input, and a panel is read front to back.
#[derive(Clone, Debug)]
pub struct Panels {
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    arena: Arc<Arena>,
    offset: usize,
}

impl Panels {
    /// How many floats the panels of an `[n, k]` matrix take; None if that overflows.
    pub fn floats(n: usize, k: usize) -> Option<usize> {
        n.checked_next_multiple_of(LANES)?.checked_mul(k)
    }

    /// Packs a matrix into an arena of its own. See [`Arena::panels`].
    pub fn pack(n: usize, k: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Panels> {
        Arena::with_capacity(checked_floats(n, k)?)?.panels(n, k, fill)
    }

    /// Packs a matrix whose source is stored input by input into an arena of its own. See
    /// [`Arena::panels_transposed`].
    pub fn pack_transposed(n: usize, k: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Panels> {
        Arena::with_capacity(checked_floats(n, k)?)?.panels_transposed(n, k, fill)
    }

    /// How many panels.
    pub fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Panel `p`, `[k][16]`.
    pub fn panel(&self, p: usize) -> &[f32] {
        assert!(p < self.count());
        let size = self.k * LANES;
        // SAFETY: the range was handed to this matrix, written by the packing, and never changes.
        unsafe { from_raw_parts(self.arena.at(self.offset + p * size), size) }
    }

    /// The outputs of a range, which begins at a border of panels, as a matrix of its own over the same memory.
    pub fn outputs(&self, range: Range<usize>) -> Panels {
        assert!(range.start.is_multiple_of(LANES) && range.start <= range.end && range.end <= self.n);
        Panels {
            n: range.len(),
            offset: self.offset + range.start * self.k,
            arena: self.arena.clone(),
            ..*self
        }
    }

    /// Row `i` of the matrix (the weights of output i) into `out[k]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let lanes = self.panel(i / LANES).iter().skip(i % LANES).step_by(LANES);
        out.iter_mut().zip(lanes).for_each(|(out, x)| *out = *x);
    }

    /// All panels, one after the other.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.arena.at(self.offset)
    }
}

fn checked_floats(n: usize, k: usize) -> Result<usize> {
    Panels::floats(n, k)
        .ok_or_else(|| Error::Memory { what: format!("a matrix of {n} × {k}"), bytes: usize::MAX })
}

impl Arena {
    /// Packs an `[n, k]` matrix into the next room of this arena. `fill(i, row)` writes row i (the
    /// `k` weights of output i) of the source into `row`, which holds anything before; it is called
    /// once a row, from all threads of the pool.
    pub fn panels(
        self: &Arc<Self>,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Panels> {
        let offset = self.take(checked_floats(n, k)?)?;
        let start = SendPtr(self.at(offset));
        threads::for_each(n.div_ceil(LANES), |p| {
            let size = k * LANES;
            // SAFETY: the range of panel p was handed to this call and each p is claimed once.
            let panel = unsafe { from_raw_parts_mut(start.get().add(p * size), size) };
            let rows = LANES.min(n - p * LANES);
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(size, 0.0);
                for r in 0..rows {
                    fill(p * LANES + r, &mut scratch[r * k..][..k]);
                }
                scratch[rows * k..].fill(0.0);
                transpose(scratch, k, panel);
            });
        });
        Ok(Panels { n, k, arena: self.clone(), offset })
    }

    /// Packs an `[n, k]` matrix whose source is stored as `[k, n]` (GPT-2's Conv1D). `fill(j, row)`
    /// writes row j of the source (the weights of input j in all `n` outputs) into `row`.
    pub fn panels_transposed(
        self: &Arc<Self>,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Panels> {
        let offset = self.take(checked_floats(n, k)?)?;
        let start = SendPtr(self.at(offset));
        // Inputs by the sixteen, so that a panel gets 1 KiB at a time.
        threads::for_each(k.div_ceil(LANES), |block| {
            let inputs = block * LANES..k.min((block + 1) * LANES);
            SCRATCH.with_borrow_mut(|scratch| {
                let width = n.next_multiple_of(LANES);
                scratch.clear();
                scratch.resize(inputs.len() * width, 0.0);
                for (j, row) in inputs.clone().zip(scratch.chunks_exact_mut(width.max(1))) {
                    fill(j, &mut row[..n]);
                }
                for p in 0..n.div_ceil(LANES) {
                    let at = p * k * LANES + inputs.start * LANES;
                    // SAFETY: input block `block` of panel p belongs to this chunk alone.
                    let panel = unsafe { from_raw_parts_mut(start.get().add(at), inputs.len() * LANES) };
                    for (to, from) in panel.chunks_exact_mut(LANES).zip(scratch.chunks_exact(width)) {
                        to.copy_from_slice(&from[p * LANES..][..LANES]);
                    }
                }
            });
        });
        Ok(Panels { n, k, arena: self.clone(), offset })
    }
}

thread_local! {
    /// Sixteen rows of the source; kept, since loading packs hundreds of matrices.
    static SCRATCH: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// `rows[16][k]` to `panel[k][16]`.
fn transpose(rows: &[f32], k: usize, panel: &mut [f32]) {
    for (j, out) in panel.chunks_exact_mut(LANES).enumerate() {
        for (r, out) in out.iter_mut().enumerate() {
            *out = rows[r * k + j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sources_give_the_same_panels() {
        for (n, k) in [(1, 1), (16, 5), (17, 16), (40, 37), (0, 3), (3, 0)] {
            let value = |i: usize, j: usize| (i * 1000 + j) as f32;
            let rows = Panels::pack(n, k, |i, row| {
                row.iter_mut().enumerate().for_each(|(j, x)| *x = value(i, j));
            })
            .unwrap();
            let columns = Panels::pack_transposed(n, k, |j, row| {
                row.iter_mut().enumerate().for_each(|(i, x)| *x = value(i, j));
            })
            .unwrap();
            for p in 0..rows.count() {
                assert_eq!(rows.panel(p), columns.panel(p));
                for (at, x) in rows.panel(p).iter().enumerate() {
                    let (i, j) = (p * LANES + at % LANES, at / LANES);
                    assert_eq!(*x, if i < n { value(i, j) } else { 0.0 });
                }
            }
            for i in 0..n {
                let mut row = vec![-1.0; k];
                rows.row(i, &mut row);
                assert!(row.iter().enumerate().all(|(j, x)| *x == value(i, j)));
            }
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(matches!(Panels::pack(1 << 40, 1 << 40, |_, _| ()), Err(Error::Memory { .. })));
        assert!(matches!(Panels::pack(1 << 31, 1 << 27, |_, _| ()), Err(Error::Memory { .. })));
        let arena = Arena::with_capacity(100).unwrap();
        assert!(arena.panels(16, 6, |_, row| row.fill(0.0)).is_ok());
        assert!(arena.panels(16, 1, |_, row| row.fill(0.0)).is_err());
    }
}
