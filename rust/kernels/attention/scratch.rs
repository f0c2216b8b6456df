//! The working memory of a thread.

use std::array::from_fn;
use std::cell::RefCell;
use std::ops::Range;

use super::Heads;
use super::kv::BLOCK;
use super::sums::{Sums, row_len};
use super::tile::{MOST, Tile, within};
use crate::kernels::Lines;
use crate::kernels::gemm::strip;
use crate::kernels::product::MAX_ROWS;
use crate::simd::LANES;

/// The working memory of a strip.
pub(super) struct Strip {
    pub queries: usize,
    /// What each query sees.
    pub seen: [Range<usize>; MAX_ROWS],
    /// `[head_dim][queries]`.
    pub q: Lines,
    pub span: Sums,
    pub all: Sums,
    /// Sums of the exponentials, once all blocks are seen.
    pub sum: [f32; LANES],
}

impl Strip {
    /// What each query sees of the block that starts at `first`, counted from there.
    #[inline(always)]
    pub fn within(&self, first: usize) -> [Range<usize>; MAX_ROWS] {
        let mut inside = [const { 0..0 }; MAX_ROWS];
        for v in 0..self.queries {
            inside[v] = within(&self.seen[v], first);
        }
        inside
    }

    /// Which queries see something of some blocks.
    #[inline(always)]
    pub fn sees(&self, blocks: Range<usize>) -> [bool; MAX_ROWS] {
        let mut sees = [false; MAX_ROWS];
        for v in 0..self.queries {
            let Range { start, end } = self.seen[v];
            sees[v] = start.max(blocks.start * BLOCK) < end.min(blocks.end * BLOCK);
        }
        sees
    }
}

/// Strip of a tile, and query of the strip, of query `v` of the tile.
pub(super) fn place(v: usize, queries: usize) -> (usize, usize) {
    let mut i = 0;
    while strip(i, queries).end <= v {
        i += 1;
    }
    (i, v - strip(i, queries).start)
}

/// The working memory of a tile.
pub(super) struct Scratch {
    pub strips: [Strip; MOST / MAX_ROWS + 1],
    /// Of one strip, `[queries][64]`: scores, then their exponentials.
    pub scores: Lines,
    pub block: Sums,
}

impl Scratch {
    /// Query `v` of a tile: its output `[head_dim]`, once it has seen all blocks, and ln Σ e^score, in float64
    /// since it is one a row.
    pub fn output(&mut self, v: usize, tile: &Tile<'_>, heads: &Heads) -> (&[f32], f32) {
        let (i, v) = place(v, tile.queries.len());
        let Strip { queries, all, sum, .. } = &mut self.strips[i];
        let log_sum = f64::from(all.max[v]) + f64::from(sum[v]).ln();
        let rows = all.rows.floats(*queries * row_len(heads));
        (&rows[v * row_len(heads)..][LANES..][..heads.head_dim], log_sum as f32)
    }
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        strips: from_fn(|_| Strip {
            queries: 0,
            seen: from_fn(|_| 0..0),
            q: Lines::new(),
            span: Sums::new(),
            all: Sums::new(),
            sum: [0.0; LANES],
        }),
        scores: Lines::new(),
        block: Sums::new(),
    }));
}
