//! The micro-kernel: up to eight rows by a panel of 16 outputs.

use super::ROWS;
use super::codes::{Job, Known, codes, scales, with_form};
use crate::formats::blocks::Scales;
use crate::simd::{BYTES, LANES, Op, Simd, prefetch};
use crate::weights::{Quantized, UNIT};

/// How far before their use lines of codes, and of scales, are asked for.
const AHEAD: usize = 4096;
const SCALES_AHEAD: usize = 1024;

/// A tile of rows times a panel.
pub struct Panel<'a> {
    pub matrix: &'a Quantized,
    pub panel: usize,
    /// From 1 to [`ROWS`].
    pub rows: usize,
    /// `[units][rows]`, as the two below.
    pub codes: &'a [[i8; UNIT]],
    pub scales: &'a [f32],
    pub sums: &'a [[i32; 2]],
    /// `[width]`.
    pub bias: Option<&'a [f32]>,
    /// `[rows][stride]`, of which `width ≤ 16` columns are written.
    pub out: *mut f32,
    pub stride: usize,
    pub width: usize,
}

impl Op for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_form(self.matrix.form, Form { s, panel: self });
    }
}

struct Form<'a, S> {
    s: S,
    panel: Panel<'a>,
}

impl<S: Simd> Job for Form<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<F: Known>(self) {
        let Form { s, panel } = self;
        match panel.rows {
            1 => s.vectorize(Tile::<1, F>::new(panel)),
            2 => s.vectorize(Tile::<2, F>::new(panel)),
            3 => s.vectorize(Tile::<3, F>::new(panel)),
            4 => s.vectorize(Tile::<4, F>::new(panel)),
            5 => s.vectorize(Tile::<5, F>::new(panel)),
            6 => s.vectorize(Tile::<6, F>::new(panel)),
            7 => s.vectorize(Tile::<7, F>::new(panel)),
            ROWS => s.vectorize(Tile::<ROWS, F>::new(panel)),
            rows => unreachable!("{rows} rows of a tile"),
        }
    }
}

/// Exactly `M` rows.
struct Tile<'a, const M: usize, F>(Panel<'a>, std::marker::PhantomData<F>);

impl<'a, const M: usize, F: Known> Tile<'a, M, F> {
    #[inline(always)]
    fn new(panel: Panel<'a>) -> Self {
        Tile(panel, std::marker::PhantomData)
    }
}

impl<const M: usize, F: Known> Op for Tile<'_, M, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Panel { matrix, panel, codes: rows, scales: row_scales, sums, bias, out, stride, width, .. } =
            self.0;
        let (layout, offset) = (matrix.layout, i32::from(matrix.form.offset));
        let panel = matrix.panel(panel);
        let levels = matrix.form.levels.unwrap_or(&[0; 16]);
        let has_min = matches!(F::SCALES, Scales::HalfAndMin | Scales::Bytes | Scales::NibblesBySixteen);
        let mut totals = [s.splat(0.0); M];
        let (rows, _) = rows.as_chunks::<M>();
        let (row_scales, _) = row_scales.as_chunks::<M>();
        let (sums, _) = sums.as_chunks::<M>();
        let units = panel.chunks_exact(layout.codes).zip(rows).zip(row_scales.iter().zip(sums)).enumerate();
        for (unit, ((unit_codes, rows), (row_scales, sums))) in units {
            // A row alone waits for memory, where one stream a thread is too few for its prefetcher.
            for line in (0..unit_codes.len()).step_by(BYTES) {
                prefetch(unit_codes.as_ptr().wrapping_add(AHEAD + line));
            }
            prefetch(panel.as_ptr().wrapping_add(layout.scales + unit * layout.unit_scales + SCALES_AHEAD));
            let vectors = codes::<S, F>(s, unit_codes, levels);
            let scales = scales::<S, F>(s, panel, &layout, unit);
            for group in 0..F::GROUPS {
                let [scale, min] = scales[group];
                for r in 0..M {
                    let sum = if F::GROUPS == 2 { sums[r][group] } else { sums[r][0] + sums[r][1] };
                    let mut dot = s.splat_i32(-(offset * sum));
                    let (fours, _) = rows[r].as_chunks::<4>();
                    for t in group * 8 / F::GROUPS..(group + 1) * 8 / F::GROUPS {
                        dot = if F::SMALL {
                            s.dot_bytes::<true>(dot, vectors[t], s.repeat_bytes(fours[t]))
                        } else {
                            s.dot_bytes::<false>(dot, vectors[t], s.repeat_bytes(fours[t]))
                        };
                    }
                    let factor = s.mul(scale, s.splat(row_scales[r]));
                    totals[r] = s.fma(s.to_float(dot), factor, totals[r]);
                    if has_min {
                        totals[r] = s.fma(min, s.splat(row_scales[r] * sum as f32), totals[r]);
                    }
                }
            }
        }
        for r in 0..M {
            let total = if let Some(bias) = bias { s.add(totals[r], s.get(bias)) } else { totals[r] };
            // SAFETY: `width` columns of each row are this panel's.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), width.min(LANES)) };
            s.put(out, total);
        }
    }
}
