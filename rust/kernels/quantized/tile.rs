//! The micro-kernel: a few rows by one or two panels of 16 outputs.

use std::hint::black_box;
use std::ops::Range;

use super::codes::{Known, code, scales};
use crate::simd::{BYTES, LANES, Simd, prefetch};
use crate::weights::{PanelLayout, Quantized, UNIT};

/// Rows of a tile. 5 rows by [`WIDTH`] panels take 10 registers for the integers of a unit, as many as are in flight
/// where the processor begins two products of bytes a cycle and each takes five, and 10 for their totals; with the
/// codes of two panels, and what is repeated for a row, that is what 32 registers hold. (A total that is kept
/// in memory instead costs far more than a smaller tile does.)
pub const ROWS: usize = 5;

/// Panels of a tile.
pub const WIDTH: usize = 2;

/// Panels, taken apart as they are read, unit by unit.
pub trait Weights {
    /// Groups of a unit: 1 or 2.
    const GROUPS: usize;
    const MIN: bool;
    /// Of a code, or more.
    const BITS: u32;
    /// Whether codes lie in memory as [`Weights::code`] gives them.
    const APART: bool;

    /// Vector `t` of the codes of a unit.
    /// # Safety
    /// There are such a panel and such a unit, here and below.
    unsafe fn code<S: Simd>(&self, s: S, panel: usize, unit: usize, t: usize) -> S::Bytes;

    /// Scale and minimum.
    /// # Safety
    /// As above.
    unsafe fn scales<S: Simd>(&self, s: S, panel: usize, unit: usize, group: usize) -> [S::F32; 2];

    /// Asks for what will be wanted when as many units as this have gone by as some panels have, or more.
    #[inline(always)]
    fn prefetch(&self, _panels: Range<usize>, _unit: usize) {}
}

/// Panels as they are stored.
pub struct Stored<'a, F> {
    panels: *const u8,
    layout: &'a PanelLayout,
    levels: &'a [u8; 16],
    /// How many bytes before it is read memory is asked for.
    ahead: usize,
    form: std::marker::PhantomData<F>,
}

impl<'a, F: Known> Stored<'a, F> {
    pub fn new(matrix: &'a Quantized, panels: Range<usize>, ahead: usize) -> Self {
        Stored {
            panels: matrix.panels(panels).as_ptr(),
            layout: &matrix.layout,
            levels: matrix.form.levels.unwrap_or(&[0; 16]),
            ahead,
            form: std::marker::PhantomData,
        }
    }
}

impl<F: Known> Weights for Stored<'_, F> {
    const GROUPS: usize = F::GROUPS;
    const MIN: bool = F::MIN;
    const BITS: u32 = F::BITS;
    const APART: bool = false;

    #[inline(always)]
    unsafe fn code<S: Simd>(&self, s: S, panel: usize, unit: usize, t: usize) -> S::Bytes {
        let at = panel * self.layout.len + unit * self.layout.codes;
        // SAFETY: the caller's.
        unsafe { code::<S, F>(s, self.panels.add(at), self.levels, t) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(&self, s: S, panel: usize, unit: usize, group: usize) -> [S::F32; 2] {
        // SAFETY: the caller's.
        unsafe { scales::<S, F>(s, self.panels.add(panel * self.layout.len), self.layout, unit, group) }
    }

    /// The panels front to back, one after the other, whatever lies where in them: memory is fastest in one stretch.
    /// A unit takes a line for each bit of its codes and at most one more for its scales.
    #[inline(always)]
    fn prefetch(&self, panels: Range<usize>, unit: usize) {
        let lines = panels.len() * (F::LOW + F::HIGH + 1) as usize;
        let from = self.ahead + panels.start * self.layout.len + unit * lines * BYTES;
        let mut line = 0;
        while line < lines {
            prefetch(self.panels.wrapping_add(from + line * BYTES));
            line += 1;
        }
    }
}

/// [`WIDTH`] panels taken apart: of each unit `[8][WIDTH]` vectors of codes, then `[GROUPS][WIDTH]` vectors of scales
/// and, if there are, of minima.
pub struct Apart<const GROUPS: usize, const MIN: bool, const BITS: u32>(pub *const u8);

impl<const GROUPS: usize, const MIN: bool, const BITS: u32> Apart<GROUPS, MIN, BITS> {
    const UNIT: usize = unit_bytes(GROUPS, MIN);
}

/// Bytes of a unit taken apart.
pub const fn unit_bytes(groups: usize, min: bool) -> usize {
    WIDTH * BYTES * (8 + groups * (1 + min as usize))
}

impl<const GROUPS: usize, const MIN: bool, const BITS: u32> Weights for Apart<GROUPS, MIN, BITS> {
    const GROUPS: usize = GROUPS;
    const MIN: bool = MIN;
    const BITS: u32 = BITS;
    const APART: bool = true;

    #[inline(always)]
    unsafe fn code<S: Simd>(&self, s: S, panel: usize, unit: usize, t: usize) -> S::Bytes {
        // SAFETY: the caller's.
        unsafe { s.bytes(&*self.0.add(unit * Self::UNIT + (t * WIDTH + panel) * BYTES).cast()) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(&self, s: S, panel: usize, unit: usize, group: usize) -> [S::F32; 2] {
        let vector = 8 + group * (1 + usize::from(MIN));
        // SAFETY: the caller's.
        unsafe {
            let at = self.0.add(unit * Self::UNIT + (vector * WIDTH + panel) * BYTES).cast();
            [s.load(at), if MIN { s.load(at.add(WIDTH * LANES)) } else { s.splat(0.0) }]
        }
    }
}

/// Takes units of up to [`WIDTH`] panels apart, for [`Apart`].
/// # Safety
/// There are such units and panels, and room for them at `to`.
#[inline(always)]
pub unsafe fn take_apart<S: Simd, F: Known>(
    s: S,
    from: &Stored<'_, F>,
    panels: usize,
    units: Range<usize>,
    mut to: *mut u8,
) {
    let mut unit = units.start;
    while unit < units.end {
        let mut panel = 0;
        while panel < panels {
            // SAFETY: the caller's.
            unsafe {
                for t in 0..8 {
                    let at = to.add((t * WIDTH + panel) * BYTES);
                    s.store_bytes(&mut *at.cast(), from.code(s, panel, unit, t));
                }
                for group in 0..F::GROUPS {
                    let both = from.scales(s, panel, unit, group);
                    for kind in 0..1 + usize::from(F::MIN) {
                        let vector = 8 + group * (1 + usize::from(F::MIN)) + kind;
                        s.store(to.add((vector * WIDTH + panel) * BYTES).cast(), both[kind]);
                    }
                }
            }
            panel += 1;
        }
        to = to.wrapping_add(unit_bytes(F::GROUPS, F::MIN));
        unit += 1;
    }
}

/// Rows as bytes, from some unit on: `[units][rows]` of everything.
#[derive(Clone, Copy)]
pub struct Rows {
    pub codes: *const [i8; UNIT],
    pub scales: *const f32,
    /// `[units][groups][rows]`, see [`super::Activations`].
    pub terms: *const i32,
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub struct Out {
    /// `[rows][stride]`.
    pub at: *mut f32,
    pub stride: usize,
    /// Columns that are written, of those that the panels have.
    pub width: usize,
    /// Whether totals go on from what is there.
    pub accumulate: bool,
    /// `[width]`, or null.
    pub bias: *const f32,
}

/// `M` rows by `panels` of `weights`, over units of them that begin at the rows' first.
/// # Safety
/// The pointers are valid for that much; `out` for writing.
#[inline(always)]
pub unsafe fn product<S: Simd, W: Weights, const M: usize>(
    s: S,
    weights: &W,
    panels: usize,
    units: Range<usize>,
    rows: Rows,
    out: Out,
) {
    // SAFETY: the caller's.
    unsafe {
        if S::WIDE {
            if panels == WIDTH {
                tile::<S, W, M, WIDTH>(s, weights, 0, units, rows, out);
            } else {
                tile::<S, W, M, 1>(s, weights, 0, units, rows, out);
            }
            return;
        }
        // Half as wide there are 16 registers: a panel at a time, its sums in registers and its totals in memory.
        for panel in 0..panels {
            tile::<S, W, M, 1>(s, weights, panel, units.clone(), rows, out);
        }
    }
}

/// `M` rows by `P` panels.
#[inline(always)]
unsafe fn tile<S: Simd, W: Weights, const M: usize, const P: usize>(
    s: S,
    weights: &W,
    panel: usize,
    units: Range<usize>,
    rows: Rows,
    out: Out,
) {
    // SAFETY: the caller's.
    unsafe {
        let Rows { mut codes, mut scales, mut terms } = rows;
        let mut totals = [[s.splat(0.0); P]; M];
        if out.accumulate {
            for r in 0..M {
                for p in 0..P {
                    let column = (panel + p) * LANES;
                    let at = out.at.add(r * out.stride + column);
                    totals[r][p] = if out.width - column >= LANES {
                        s.load(at)
                    } else {
                        s.load_first(at, out.width - column)
                    };
                }
            }
        }
        // (Loops of constant length are unrolled; one over a range that is not known may call for its next number.)
        let mut unit = units.start;
        while unit < units.end {
            weights.prefetch(panel..panel + P, unit);
            for group in 0..W::GROUPS {
                let mut sums = [[s.splat_i32(0); P]; M];
                if !W::MIN {
                    for r in 0..M {
                        // An offset is 128 where codes have 8 bits.
                        let term = if W::BITS == 8 && S::CENTRED { 0 } else { *terms.add(r) };
                        sums[r] = [s.splat_i32(term); P];
                    }
                }
                let vectors = 8 / W::GROUPS;
                let at_once = S::dots_at_once(W::BITS).min(vectors);
                for part in 0..vectors / at_once {
                    let mut dots = [[s.begin_dots(W::BITS, sums[0][0]); P]; M];
                    for r in 0..M {
                        for p in 0..P {
                            dots[r][p] = s.begin_dots(W::BITS, sums[r][p]);
                        }
                    }
                    // Unrolled, sums of integers are put in another order, row by row, for which 16 registers are too few.
                    let count = if W::APART && !S::WIDE { black_box(at_once) } else { at_once };
                    for t in 0..count {
                        let t = group * vectors + part * at_once + t;
                        let mut of_panels = [s.repeat_bytes([0; 4]); P];
                        for p in 0..P {
                            of_panels[p] = weights.code(s, panel + p, unit, t);
                        }
                        for r in 0..M {
                            let four = s.repeat_bytes(*codes.add(r).cast::<[i8; 4]>().add(t));
                            for p in 0..P {
                                dots[r][p] = s.dot_bytes(W::BITS, dots[r][p], of_panels[p], four);
                            }
                        }
                    }
                    for r in 0..M {
                        for p in 0..P {
                            sums[r][p] = s.end_dots(W::BITS, sums[r][p], dots[r][p]);
                        }
                    }
                }
                for p in 0..P {
                    let [scale, min] = weights.scales(s, panel + p, unit, group);
                    for r in 0..M {
                        let factor = s.mul(scale, s.splat(*scales.add(r)));
                        totals[r][p] = s.fma(s.to_float(sums[r][p]), factor, totals[r][p]);
                        if W::MIN {
                            let term = f32::from_bits(*terms.add(r) as u32);
                            totals[r][p] = s.fma(min, s.splat(term), totals[r][p]);
                        }
                    }
                }
                terms = terms.add(M);
            }
            (codes, scales) = (codes.add(M), scales.add(M));
            unit += 1;
        }
        for r in 0..M {
            for p in 0..P {
                let column = (panel + p) * LANES;
                let at = out.at.add(r * out.stride + column);
                let width = LANES.min(out.width - column);
                let mut total = totals[r][p];
                if !out.bias.is_null() {
                    total = s.add(total, s.load_first(out.bias.add(column), width));
                }
                if width == LANES {
                    s.store(at, total);
                } else {
                    s.store_first(at, width, total);
                }
            }
        }
    }
}
