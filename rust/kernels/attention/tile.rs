//! Some queries that share a key-value head.

use std::ops::Range;

use super::kv::{BLOCK, KvLayout};
use super::{HeadRows, Heads, Item};
use crate::kernels::gemm::{strip, strips};
use crate::kernels::product::MAX_ROWS;

/// What all tiles of a call share.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub heads: Heads,
    pub layout: KvLayout,
    pub q: HeadRows<'a>,
}

/// Blocks of a span: 256 positions. The sums of a span's blocks merge in order, then those of the spans; so
/// threads can share a long sequence, and each leaves one sum a span.
pub(super) const SPAN: usize = 4;

/// The most queries of a tile: a block of keys and values comes from memory once for all of them.
pub(super) const MOST: usize = 4 * MAX_ROWS;

/// Some queries of one item that share a key-value head, and so its keys and values. Query v is row
/// v / group, query head v % group of the head's group.
#[derive(Clone)]
pub(super) struct Tile<'a> {
    pub item: &'a Item<'a>,
    pub kv_head: usize,
    pub queries: Range<usize>,
}

impl<'a> Tile<'a> {
    /// Row of the item and query head of query `v` of the tile.
    pub fn row_and_head(&self, heads: &Heads, v: usize) -> (usize, usize) {
        let group = heads.heads / heads.kv_heads;
        let v = self.queries.start + v;
        (v / group, self.kv_head * group + v % group)
    }

    /// The key positions that query `v` sees.
    pub fn seen(&self, heads: &Heads, v: usize) -> Range<usize> {
        self.item.seen(self.row_and_head(heads, v).0)
    }

    /// The blocks that any query of the tile sees. Both ends of what a query sees grow from row to row.
    pub fn blocks(&self, heads: &Heads) -> Range<usize> {
        let (first, last) = (self.seen(heads, 0), self.seen(heads, self.queries.len() - 1));
        first.start / BLOCK..last.end.div_ceil(BLOCK)
    }

    /// The spans that have any of these blocks.
    pub fn spans(&self, heads: &Heads) -> Range<usize> {
        let blocks = self.blocks(heads);
        if blocks.is_empty() { 0..0 } else { blocks.start / SPAN..blocks.end.div_ceil(SPAN) }
    }

    pub fn strips(&self) -> usize {
        strips(self.queries.len())
    }

    /// The queries of a product.
    pub fn strip(&self, i: usize) -> Tile<'a> {
        let strip = strip(i, self.queries.len());
        let start = self.queries.start;
        Tile { queries: start + strip.start..start + strip.end, ..*self }
    }

    /// The bias of query `v` from key position `first` on.
    pub fn bias(&self, heads: &Heads, v: usize, first: usize) -> Option<&[f32]> {
        let (r, h) = self.row_and_head(heads, v);
        self.item.bias.map(|bias| &bias.values[h * bias.head_stride + r * bias.row_stride + first..])
    }
}

/// The part of `positions` in the block that starts at `first`, counted from there.
#[inline(always)]
pub(super) fn within(positions: &Range<usize>, first: usize) -> Range<usize> {
    let clip = |x: usize| x.clamp(first, first + BLOCK) - first;
    clip(positions.start)..clip(positions.end)
}
