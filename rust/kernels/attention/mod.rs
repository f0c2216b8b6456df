//! Scaled dot-product attention (Vaswani et al. 2017) over the blocks of the KV pool, with a running
//! maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022).
//!
//! A query sees its keys block by block: 64 absolute positions, each block with its own maximum m,
//! sum of exponentials l and weighted sum of values O; then two such triples merge, in the order of
//! position. Because the borders are absolute and a query never looks at its neighbours, it gets the
//! same bits in a prefill of any split, in a decode step, and in any batch.

use std::ops::Range;
use std::ptr;

use crate::kernels::{
    self,
    product::{self, FEW_ROWS},
};
use crate::simd::{LANES, dispatch};
use crate::threads::{self, SendPtr};

mod backward;
mod rows;
mod tile;

pub use backward::{HeadRowsMut, attend_backward};
pub use rows::{Mask, Span, attend_rows};
use tile::{Attend, Capture, Join, Part, SCRATCH, Scratch, Tile};

/// Positions of a KV block.
pub const BLOCK: usize = product::ROW;

/// Keys and values of one sequence, layer and key-value head: one slice of `64 · head_dim` a block.
/// Positions past the sequence's length may hold anything.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// `[4][head_dim][16]`: four panels of 16 positions.
    pub keys: &'a [&'a [f32]],
    /// `[64][head_dim]`.
    pub values: &'a [&'a [f32]],
}

/// What all items of a call share.
#[derive(Clone, Copy)]
pub struct Heads {
    /// Query heads; a multiple of `kv_heads`. Query head h uses key-value head
    /// h / (heads / kv_heads).
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor of the scores; 1 / √head_dim in the paper.
    pub scale: f32,
}

/// Heads of rows: element d of head h in row r is at `data[r · stride + offset + h · head_dim + d]`.
#[derive(Clone, Copy)]
pub struct HeadRows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub offset: usize,
}

/// Added to the scores: that of head h, row r (of the item) and key position j is
/// `values[h · head_stride + r · row_stride + j]`; −∞ hides a key. A stride of 0 shares.
#[derive(Clone, Copy)]
pub struct Bias<'a> {
    pub values: &'a [f32],
    pub head_stride: usize,
    pub row_stride: usize,
}

/// The rows of one sequence.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// The first of its rows in the queries and in the output.
    pub row: usize,
    pub rows: usize,
    /// The position of its first row.
    pub first_position: usize,
    /// One view a key-value head, `[kv_heads]`.
    pub kv: &'a [KvView<'a>],
    /// Positions that hold keys and values.
    pub kv_len: usize,
    /// A row sees no later position than its own.
    pub causal: bool,
    /// A row at position p sees no earlier position than p − window + 1.
    pub window: Option<usize>,
    pub bias: Option<Bias<'a>>,
}

impl Item<'_> {
    /// The key positions that row `r` sees.
    fn seen(&self, r: usize) -> Range<usize> {
        seen(self.first_position + r, self.kv_len, self.causal, self.window)
    }
}

/// The key positions, of `kv_len`, that a query at `position` sees.
fn seen(position: usize, kv_len: usize, causal: bool, window: Option<usize>) -> Range<usize> {
    let end = if causal { kv_len.min(position + 1) } else { kv_len };
    let start = window.map_or(0, |window| (position + 1).saturating_sub(window));
    start.min(end)..end
}

/// `q` as [`HeadRows`] says, `out [rows, heads · head_dim]`: softmax(scale · q · kᵀ + bias) · v for
/// every row and head of every item. Items come in the order of their rows. A row that sees no key
/// gets zeros.
pub fn attend(heads: Heads, items: &[Item<'_>], q: HeadRows<'_>, out: &mut [f32]) {
    attend_with_log_sums(heads, items, q, out, None);
}

/// [`attend`], and into `log_sums [rows, heads]` the logarithm of the sum of the exponentials of each row's
/// scores; −∞ for a row that sees no key.
fn attend_with_log_sums(
    heads: Heads,
    items: &[Item<'_>],
    q: HeadRows<'_>,
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
) {
    let tiles = Tiles::new(&heads, items, &q);
    let width = heads.heads * heads.head_dim;
    assert!(items.iter().all(|item| (item.row + item.rows) * width <= out.len()));
    let out = SendPtr(out.as_mut_ptr());
    let in_log_sums =
        |item: &Item<'_>, log_sums: &[f32]| (item.row + item.rows) * heads.heads <= log_sums.len();
    assert!(log_sums.as_ref().is_none_or(|log_sums| items.iter().all(|item| in_log_sums(item, log_sums))));
    let log_sums = log_sums.map(|log_sums| SendPtr(log_sums.as_mut_ptr()));
    let store = |tile: &Tile<'_>, scratch: &Scratch| {
        for v in 0..tile.queries.len() {
            let (r, h) = tile.row_and_head(&heads, v);
            let from = &scratch.sums[v * heads.head_dim..][..heads.head_dim];
            let row = tile.item.row + r;
            // SAFETY: row and head lie in `out` and `log_sums`, and belong to this tile alone.
            unsafe {
                let at = row * width + h * heads.head_dim;
                ptr::copy_nonoverlapping(from.as_ptr(), out.get().add(at), heads.head_dim);
                if let Some(log_sums) = log_sums {
                    *log_sums.get().add(row * heads.heads + h) = scratch.log_sum(v);
                }
            }
        }
    };
    if let Some(parts) = Parts::new(&tiles) {
        return parts.attend(&tiles, &q, store);
    }
    kernels::for_each(tiles.work(), tiles.count(), |i| {
        let tile = tiles.get(i);
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(Attend { heads: &heads, q: &q, tile: &tile, scratch });
            store(&tile, scratch);
        });
    });
}

/// Blocks that one chunk takes where a tile is split: 512 positions.
const SPAN: usize = 8;

/// A few tiles over many blocks (a decode step late in a long sequence): threads share the blocks of a
/// tile, and merge them in order afterwards.
struct Parts {
    /// (tile, blocks, where their parts start) of each chunk.
    chunks: Vec<(usize, Range<usize>, usize)>,
    /// The same of each tile, and of the end.
    starts: Vec<usize>,
}

impl Parts {
    /// None where there are tiles enough for all threads, or few blocks.
    fn new(tiles: &Tiles<'_>) -> Option<Parts> {
        if tiles.count() >= 4 * threads::size() || threads::size() == 1 {
            return None;
        }
        let (mut chunks, mut starts) = (Vec::new(), vec![0]);
        for i in 0..tiles.count() {
            let tile = tiles.get(i);
            let blocks = tile.blocks(&tiles.heads);
            let (part, start) = (tile.part(&tiles.heads), starts[i]);
            for first in blocks.clone().step_by(SPAN) {
                let span = first..blocks.end.min(first + SPAN);
                chunks.push((i, span, start + (first - blocks.start) * part));
            }
            starts.push(start + blocks.len() * part);
        }
        (chunks.len() > 2 * tiles.count()).then_some(Parts { chunks, starts })
    }

    fn attend(&self, tiles: &Tiles<'_>, q: &HeadRows<'_>, store: impl Fn(&Tile<'_>, &Scratch) + Sync) {
        let heads = &tiles.heads;
        let mut all = vec![0.0f32; self.starts[tiles.count()]];
        let parts = SendPtr(all.as_mut_ptr());
        threads::for_each(self.chunks.len(), |i| {
            let (tile, blocks, start) = self.chunks[i].clone();
            let tile = tiles.get(tile);
            let len = blocks.len() * tile.part(heads);
            // SAFETY: each chunk has its own stretch of `all`.
            let parts = unsafe { std::slice::from_raw_parts_mut(parts.get().add(start), len) };
            SCRATCH.with_borrow_mut(|scratch| {
                dispatch(Part { heads, q, tile: &tile, blocks, scratch, parts });
            });
        });
        threads::for_each(tiles.count(), |i| {
            let tile = tiles.get(i);
            SCRATCH.with_borrow_mut(|scratch| {
                let parts = &all[self.starts[i]..self.starts[i + 1]];
                dispatch(Join { heads, tile: &tile, scratch, parts });
                store(&tile, scratch);
            });
        });
    }
}

/// `scores, probs [heads, rows, kv_len]`: what [`attend`] computes on the way for one item, computed
/// again: the scores with scale and bias (−∞ where a row does not see a key), and
/// e^(score − m) / l of each row's final maximum and sum.
pub fn attention_probs(
    heads: Heads,
    item: &Item<'_>,
    q: HeadRows<'_>,
    scores: Option<&mut [f32]>,
    probs: Option<&mut [f32]>,
) {
    let size = heads.heads * item.rows * item.kv_len;
    assert!(
        scores.as_ref().is_none_or(|s| s.len() == size) && probs.as_ref().is_none_or(|p| p.len() == size)
    );
    if size == 0 {
        return;
    }
    let items = std::slice::from_ref(item);
    let tiles = Tiles::new(&heads, items, &q);
    let [scores, probs] = [scores, probs].map(|out| out.map(|out| SendPtr(out.as_mut_ptr())));
    kernels::for_each(tiles.work(), tiles.count(), |i| {
        let tile = tiles.get(i);
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(Attend { heads: &heads, q: &q, tile: &tile, scratch });
            for v in 0..tile.queries.len() {
                let (r, h) = tile.row_and_head(&heads, v);
                let at = (h * item.rows + r) * item.kv_len;
                // SAFETY: the row of one head lies in the slice and belongs to this tile alone.
                let row = |out: SendPtr<f32>| unsafe {
                    std::slice::from_raw_parts_mut(out.get().add(at), item.kv_len)
                };
                let (scores, probs) = (scores.map(row), probs.map(row));
                dispatch(Capture { heads: &heads, tile: &tile, v, scratch, scores, probs });
            }
        });
    });
}

/// `key [head_dim]` into slot `0 ≤ slot < 64` of `block [4][head_dim][16]`.
pub fn write_key(key: &[f32], slot: usize, block: &mut [f32]) {
    let panel = key.len() * LANES;
    let lanes = block[slot / LANES * panel..][..panel].iter_mut().skip(slot % LANES).step_by(LANES);
    lanes.zip(key).for_each(|(to, from)| *to = *from);
}

/// `value [head_dim]` into slot `0 ≤ slot < 64` of `block [64][head_dim]`.
pub fn write_value(value: &[f32], slot: usize, block: &mut [f32]) {
    block[slot * value.len()..][..value.len()].copy_from_slice(value);
}

/// All (item, key-value head, tile of queries) of a call, numbered.
struct Tiles<'a> {
    items: &'a [Item<'a>],
    heads: Heads,
    /// The number of the first tile of each item, and of the end.
    starts: Vec<usize>,
}

impl<'a> Tiles<'a> {
    /// Checks that all slices are as long as the kernel takes them to be.
    fn new(heads: &Heads, items: &'a [Item<'a>], q: &HeadRows<'_>) -> Self {
        let Heads { heads: n, kv_heads, head_dim, .. } = *heads;
        assert!(head_dim > 0 && kv_heads > 0 && n.is_multiple_of(kv_heads));
        assert!(q.offset + n * head_dim <= q.stride);
        let disjoint = items.windows(2).all(|pair| pair[0].row + pair[0].rows <= pair[1].row);
        assert!(disjoint, "items in the order of their rows");
        let mut starts = vec![0];
        for item in items {
            assert!((item.row + item.rows) * q.stride <= q.data.len() && item.kv.len() == kv_heads);
            for kv in item.kv {
                let whole = |blocks: &[&[f32]]| {
                    blocks.len() * BLOCK >= item.kv_len && blocks.iter().all(|b| b.len() == BLOCK * head_dim)
                };
                assert!(whole(kv.keys) && whole(kv.values));
            }
            if let (Some(bias), true) = (item.bias, item.rows > 0) {
                let last = (n - 1) * bias.head_stride + (item.rows - 1) * bias.row_stride + item.kv_len;
                assert!(last <= bias.values.len());
            }
            let tiles = kv_heads * (item.rows * (n / kv_heads)).div_ceil(FEW_ROWS);
            starts.push(starts[starts.len() - 1] + tiles);
        }
        Tiles { items, heads: *heads, starts }
    }

    fn count(&self) -> usize {
        self.starts[self.items.len()]
    }

    /// An upper bound of the multiplications.
    fn work(&self) -> usize {
        let Heads { heads, head_dim, .. } = self.heads;
        self.items.iter().map(|item| 2 * item.rows * item.kv_len * heads * head_dim).sum()
    }

    fn get(&self, i: usize) -> Tile<'a> {
        let at = self.starts.partition_point(|start| *start <= i) - 1;
        let item = &self.items[at];
        let queries = item.rows * (self.heads.heads / self.heads.kv_heads);
        let i = i - self.starts[at];
        let (kv_head, tile) = (i % self.heads.kv_heads, i / self.heads.kv_heads);
        let start = tile * FEW_ROWS;
        Tile { item, kv_head, queries: start..queries.min(start + FEW_ROWS) }
    }
}
