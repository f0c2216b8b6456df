//! Maxima, sums of exponentials, and sums of values weighted by them, of some queries; how they merge.

use super::Heads;
use crate::kernels::{Lines, vecmath};
use crate::simd::{LANES, Simd};

/// Of each query of a strip over some blocks: the maximum of its scores, a lane each, and in a row 16 partial
/// sums of the exponentials, before `head_dim` sums of exponential · value.
pub(super) struct Sums {
    pub max: [f32; LANES],
    pub rows: Lines,
}

impl Sums {
    pub const fn new() -> Self {
        Sums { max: [f32::NEG_INFINITY; LANES], rows: Lines::new() }
    }

    pub fn clear(&mut self, floats: usize) {
        self.max = [f32::NEG_INFINITY; LANES];
        self.rows.floats(floats).fill(0.0);
    }
}

/// Floats of a row of [`Sums`].
#[inline(always)]
pub(super) fn row_len(heads: &Heads) -> usize {
    LANES + heads.head_dim
}

/// A maximum to take out of scores; where all are −∞ (hidden by the bias) there is nothing to take.
#[inline(always)]
pub(super) fn finite_or_zero(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The sums so far and the next ones, for the queries that see some of the next.
#[inline(always)]
pub(super) fn merge<S: Simd>(s: S, heads: &Heads, sees: &[bool], sums: &mut Sums, next: &Sums) {
    let mut bases = [0.0; LANES];
    for v in 0..LANES {
        bases[v] = finite_or_zero(if next.max[v] > sums.max[v] { next.max[v] } else { sums.max[v] });
    }
    // One exponential for all queries, a lane each.
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    s.put(&mut old, vecmath::exp(s, s.sub(s.get(&sums.max), s.get(&bases))));
    s.put(&mut new, vecmath::exp(s, s.sub(s.get(&next.max), s.get(&bases))));
    let row = row_len(heads);
    let rows = sums.rows.floats(sees.len() * row);
    let next_rows = next.rows.get(sees.len() * row);
    for v in 0..sees.len() {
        if !sees[v] {
            continue;
        }
        sums.max[v] = if next.max[v] > sums.max[v] { next.max[v] } else { sums.max[v] };
        let (old, new) = (s.splat(old[v]), s.splat(new[v]));
        let (mut at, end) = (v * row, (v + 1) * row);
        while at < end {
            let lanes = at..end.min(at + LANES);
            let x = s.mul(s.get(&rows[lanes.clone()]), old);
            let y = s.fma(s.get(&next_rows[lanes.clone()]), new, x);
            s.put(&mut rows[lanes], y);
            at += LANES;
        }
    }
}
