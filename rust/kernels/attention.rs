//! Scaled dot-product attention (Vaswani et al. 2017) over the blocks of the KV pool, with a running
//! maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022).
//!
//! A query sees its keys block by block: 64 absolute positions, each block with its own maximum m,
//! sum of exponentials l and weighted sum of values O; then two such triples merge, in the order of
//! position. Because the borders are absolute and a query never looks at its neighbours, it gets the
//! same bits in a prefill of any split, in a decode step, and in any batch.

use std::cell::RefCell;
use std::ops::Range;
use std::ptr;

use crate::kernels::product::{MAX_ROWS, Product, full_rows};
use crate::kernels::vecmath;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};

/// Positions of a KV block.
pub const BLOCK: usize = 64;

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

/// Rows of queries: element d of head h in row r is at `data[r · stride + offset + h · head_dim + d]`.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
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
        let position = self.first_position + r;
        let end = if self.causal { self.kv_len.min(position + 1) } else { self.kv_len };
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start.min(end)..end
    }
}

/// `q` as [`Queries`] says, `out [rows, heads · head_dim]`: softmax(scale · q · kᵀ + bias) · v for
/// every row and head of every item. A row that sees no key gets zeros.
pub fn attend(heads: Heads, items: &[Item<'_>], q: Queries<'_>, out: &mut [f32]) {
    let tiles = Tiles::new(&heads, items, &q);
    let width = heads.heads * heads.head_dim;
    assert!(items.iter().all(|item| (item.row + item.rows) * width <= out.len()));
    let out = SendPtr(out.as_mut_ptr());
    threads::for_each(tiles.count(), |i| {
        let tile = tiles.get(i);
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(Attend { heads: &heads, q: &q, tile: &tile, scratch });
            for v in 0..tile.queries.len() {
                let (r, h) = tile.row_and_head(&heads, v);
                let from = &scratch.sums[v * heads.head_dim..][..heads.head_dim];
                // SAFETY: row and head lie in `out`, and belong to this tile alone.
                unsafe {
                    let at = (tile.item.row + r) * width + h * heads.head_dim;
                    ptr::copy_nonoverlapping(from.as_ptr(), out.get().add(at), heads.head_dim);
                }
            }
        });
    });
}

/// `scores, probs [heads, rows, kv_len]`: what [`attend`] computes on the way for one item, computed
/// again: the scores with scale and bias (−∞ where a row does not see a key), and
/// e^(score − m) / l of each row's final maximum and sum.
pub fn attention_probs(
    heads: Heads,
    item: &Item<'_>,
    q: Queries<'_>,
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
    threads::for_each(tiles.count(), |i| {
        let tile = tiles.get(i);
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(Attend { heads: &heads, q: &q, tile: &tile, scratch });
            let final_state = scratch.state;
            for v in 0..tile.queries.len() {
                let (r, h) = tile.row_and_head(&heads, v);
                let at = (h * item.rows + r) * item.kv_len;
                // SAFETY: the row of one head lies in the slice and belongs to this tile alone.
                let row = |out: SendPtr<f32>| unsafe {
                    std::slice::from_raw_parts_mut(out.get().add(at), item.kv_len)
                };
                let (scores, probs) = (scores.map(row), probs.map(row));
                dispatch(Capture {
                    heads: &heads,
                    tile: &tile,
                    v,
                    state: final_state[v],
                    scratch,
                    scores,
                    probs,
                });
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
    /// Queries of a tile.
    size: usize,
    /// The number of the first tile of each item, and of the end.
    starts: Vec<usize>,
}

/// Some queries of one item that share a key-value head, and so its keys and values. Query v is row
/// v / group, query head v % group of the head's group.
struct Tile<'a> {
    item: &'a Item<'a>,
    kv_head: usize,
    queries: Range<usize>,
}

impl<'a> Tiles<'a> {
    /// Checks that all slices are as long as the kernel takes them to be.
    fn new(heads: &Heads, items: &'a [Item<'a>], q: &Queries<'_>) -> Self {
        let Heads { heads: n, kv_heads, head_dim, .. } = *heads;
        assert!(head_dim > 0 && kv_heads > 0 && n.is_multiple_of(kv_heads));
        assert!(q.offset + n * head_dim <= q.stride);
        let size = dispatch(TileSize);
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
            let tiles = kv_heads * (item.rows * (n / kv_heads)).div_ceil(size);
            starts.push(starts[starts.len() - 1] + tiles);
        }
        Tiles { items, heads: *heads, size, starts }
    }

    fn count(&self) -> usize {
        self.starts[self.items.len()]
    }

    fn get(&self, i: usize) -> Tile<'a> {
        let at = self.starts.partition_point(|start| *start <= i) - 1;
        let item = &self.items[at];
        let queries = item.rows * (self.heads.heads / self.heads.kv_heads);
        let i = i - self.starts[at];
        let (kv_head, tile) = (i % self.heads.kv_heads, i / self.heads.kv_heads);
        let start = tile * self.size;
        Tile { item, kv_head, queries: start..queries.min(start + self.size) }
    }
}

impl Tile<'_> {
    /// Row of the item and query head of query `v` of the tile.
    fn row_and_head(&self, heads: &Heads, v: usize) -> (usize, usize) {
        let group = heads.heads / heads.kv_heads;
        let v = self.queries.start + v;
        (v / group, self.kv_head * group + v % group)
    }

    /// Where the bias of query `v` starts.
    fn bias(&self, heads: &Heads, v: usize) -> Option<&[f32]> {
        let (r, h) = self.row_and_head(heads, v);
        self.item.bias.map(|bias| &bias.values[h * bias.head_stride + r * bias.row_stride..])
    }
}

struct TileSize;

impl Op for TileSize {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        full_rows::<S>()
    }
}

/// Maximum and sum of exponentials so far.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

/// A tile's working memory.
struct Scratch {
    /// `[head_dim][queries]`.
    q: Vec<f32>,
    /// `[queries][64]`: scores, then their exponentials.
    scores: [f32; MAX_ROWS * BLOCK],
    /// `[queries][head_dim]`: Σ exponential · value of the block, and of all blocks so far.
    block_sums: Vec<f32>,
    sums: Vec<f32>,
    state: [State; MAX_ROWS],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        q: Vec::new(),
        scores: [0.0; MAX_ROWS * BLOCK],
        block_sums: Vec::new(),
        sums: Vec::new(),
        state: [State { max: 0.0, sum: 0.0 }; MAX_ROWS],
    }));
}

/// Leaves the tile's output in `scratch.sums` and each query's final state in `scratch.state`.
struct Attend<'a> {
    heads: &'a Heads,
    q: &'a Queries<'a>,
    tile: &'a Tile<'a>,
    scratch: &'a mut Scratch,
}

impl Op for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { heads, q, tile, scratch } = self;
        let (n, d) = (tile.queries.len(), heads.head_dim);
        scratch.q.resize(n * d, 0.0);
        scratch.block_sums.resize(n * d, 0.0);
        scratch.sums.clear();
        scratch.sums.resize(n * d, 0.0);
        scratch.state[..n].fill(State { max: f32::NEG_INFINITY, sum: 0.0 });
        let mut seen: [Range<usize>; MAX_ROWS] = std::array::from_fn(|_| 0..0);
        let (mut start, mut end) = (usize::MAX, 0);
        for v in 0..n {
            let (r, h) = tile.row_and_head(heads, v);
            let from = &q.data[(tile.item.row + r) * q.stride + q.offset + h * d..][..d];
            for (i, x) in from.iter().enumerate() {
                scratch.q[i * n + v] = *x;
            }
            seen[v] = tile.item.seen(r);
            if !seen[v].is_empty() {
                (start, end) = (start.min(seen[v].start), end.max(seen[v].end));
            }
        }
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            let first = block * BLOCK;
            // What each query sees of this block.
            let inside: [Range<usize>; MAX_ROWS] = std::array::from_fn(|v| {
                let clip = |x: usize| x.clamp(first, first + BLOCK) - first;
                clip(seen[v].start)..clip(seen[v].end)
            });
            let panels = 0..end.min(first + BLOCK).div_ceil(LANES) - first / LANES;
            multiply_keys(s, heads, tile, block, panels, scratch);
            let mut states = [State { max: f32::NEG_INFINITY, sum: 0.0 }; MAX_ROWS];
            for v in 0..n {
                if !inside[v].is_empty() {
                    let bias = tile.bias(heads, v).map(|bias| &bias[first..]);
                    let scores = &mut scratch.scores[v * BLOCK..][..BLOCK];
                    finish_scores(s, scores, inside[v].clone(), heads.scale, bias);
                    states[v] = exponentials(s, scores, inside[v].clone());
                }
            }
            multiply_values(s, heads, tile, block, &inside[..n], scratch);
            for v in 0..n {
                if !inside[v].is_empty() {
                    let sums = scratch.sums[v * d..][..d].chunks_mut(LANES);
                    merge(s, &mut scratch.state[v], sums, states[v], &scratch.block_sums[v * d..][..d]);
                }
            }
        }
        for (state, sums) in scratch.state.iter().zip(scratch.sums.chunks_exact_mut(d)) {
            // A row that sees nothing has sums of 0 already.
            let divisor = s.splat(if state.sum == 0.0 { 1.0 } else { state.sum });
            for x in sums.chunks_mut(LANES) {
                let y = s.div(s.get(x), divisor);
                s.put(x, y);
            }
        }
    }
}

/// `scratch.scores` = q · kᵀ for some panels of a block.
#[inline(always)]
fn multiply_keys<S: Simd>(
    s: S,
    heads: &Heads,
    tile: &Tile<'_>,
    block: usize,
    panels: Range<usize>,
    scratch: &mut Scratch,
) {
    let (n, d) = (tile.queries.len(), heads.head_dim);
    let keys = tile.item.kv[tile.kv_head].keys[block];
    // SAFETY: `q` is `[d][n]`, `keys` is `[4][d][16]` (checked by `Tiles::new`), `scores` has room
    // for n rows of 64.
    unsafe {
        Product {
            rows: n,
            columns: panels.len() * LANES,
            k: d,
            a: scratch.q.as_ptr(),
            a_row: 1,
            a_k: n,
            b: keys.as_ptr().add(panels.start * d * LANES),
            b_panel: d * LANES,
            b_k: LANES,
            c: scratch.scores.as_mut_ptr().add(panels.start * LANES),
            c_row: BLOCK,
            accumulate: false,
            bias: ptr::null(),
        }
        .run(s);
    }
}

/// Scale, bias, and −∞ outside of what the query sees, over all 64 scores of a block.
#[inline(always)]
fn finish_scores<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>, scale: f32, bias: Option<&[f32]>) {
    let low = s.splat(f32::NEG_INFINITY);
    for (i, x) in scores.chunks_exact_mut(LANES).enumerate() {
        let at = i * LANES;
        let mut y = s.mul(s.get(x), s.splat(scale));
        if let Some(bias) = bias
            && at < bias.len()
        {
            y = s.add(y, s.get(&bias[at..]));
        }
        let mask = s.lanes(seen.start.saturating_sub(at), seen.end.saturating_sub(at));
        s.put(x, s.select(mask, y, low));
    }
}

/// Scores to e^(score − maximum), 0 outside of what the query sees. Only seen scores count; a NaN
/// among them makes the sum NaN.
#[inline(always)]
fn exponentials<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>) -> State {
    let mut max = s.splat(f32::NEG_INFINITY);
    for x in scores.chunks_exact(LANES) {
        max = s.max(s.get(x), max);
    }
    let max = s.reduce_max(max);
    // Where all are −∞ (hidden by the bias) there is nothing to take out.
    let base = s.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
    let mut sum = s.splat(0.0);
    for (i, x) in scores.chunks_exact_mut(LANES).enumerate() {
        // The sum of a panel that is not seen is +0, which changes no bit.
        if i * LANES < seen.end && seen.start < (i + 1) * LANES {
            let e = vecmath::exp(s, s.sub(s.get(x), base));
            sum = s.add(sum, e);
            s.put(x, e);
        }
    }
    State { max, sum: s.reduce_sum(sum) }
}

/// `scratch.block_sums` = exponentials · v: each query walks the positions that it sees, and no
/// others, in order: first those before what all queries of the tile see, then these together, then
/// the rest.
#[inline(always)]
fn multiply_values<S: Simd>(
    s: S,
    heads: &Heads,
    tile: &Tile<'_>,
    block: usize,
    seen: &[Range<usize>],
    scratch: &mut Scratch,
) {
    let d = heads.head_dim;
    let values = tile.item.kv[tile.kv_head].values[block];
    let mut common = 0..BLOCK;
    for seen in seen {
        common = common.start.max(seen.start)..common.end.min(seen.end);
    }
    scratch.block_sums.fill(0.0);
    let (scores, sums) = (scratch.scores.as_ptr(), scratch.block_sums.as_mut_ptr());
    let product = |v: usize, rows: usize, positions: Range<usize>| {
        // SAFETY: queries v … v + rows of `scores [n][64]` and `sums [n][d]`, positions of
        // `values [64][d]` (checked by `Tiles::new`).
        unsafe {
            Product {
                rows,
                columns: d,
                k: positions.len(),
                a: scores.add(v * BLOCK + positions.start),
                a_row: BLOCK,
                a_k: 1,
                b: values.as_ptr().add(positions.start * d),
                b_panel: LANES,
                b_k: d,
                c: sums.add(v * d),
                c_row: d,
                accumulate: true,
                bias: ptr::null(),
            }
        }
    };
    // SAFETY (all runs): see `product`.
    if common.is_empty() {
        for (v, seen) in seen.iter().enumerate().filter(|(_, seen)| !seen.is_empty()) {
            unsafe { product(v, 1, seen.clone()).run(s) };
        }
        return;
    }
    for (v, seen) in seen.iter().enumerate().filter(|(_, seen)| seen.start < common.start) {
        unsafe { product(v, 1, seen.start..common.start).run(s) };
    }
    unsafe { product(0, seen.len(), common.clone()).run(s) };
    for (v, seen) in seen.iter().enumerate().filter(|(_, seen)| seen.end > common.end) {
        unsafe { product(v, 1, common.end..seen.end).run(s) };
    }
}

/// (m, l, O) of all blocks so far with those of the next.
#[inline(always)]
fn merge<'a, S: Simd>(
    s: S,
    state: &mut State,
    sums: impl Iterator<Item = &'a mut [f32]>,
    next: State,
    next_sums: &[f32],
) {
    let max = if next.max > state.max { next.max } else { state.max };
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let old = vecmath::exp(s, s.splat(state.max - base));
    let new = vecmath::exp(s, s.splat(next.max - base));
    let sum = s.fma(s.splat(next.sum), new, s.mul(s.splat(state.sum), old));
    for (x, next) in sums.zip(next_sums.chunks(LANES)) {
        let y = s.fma(s.get(next), new, s.mul(s.get(x), old));
        s.put(x, y);
    }
    let mut first = [0.0];
    s.put(&mut first, sum);
    *state = State { max, sum: first[0] };
}

/// The scores and probabilities of query `v` of a tile, from its final state.
struct Capture<'a> {
    heads: &'a Heads,
    tile: &'a Tile<'a>,
    v: usize,
    state: State,
    scratch: &'a mut Scratch,
    scores: Option<&'a mut [f32]>,
    probs: Option<&'a mut [f32]>,
}

impl Op for Capture<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (r, _) = self.tile.row_and_head(self.heads, self.v);
        let (seen, len) = (self.tile.item.seen(r), self.tile.item.kv_len);
        let base = s.splat(if self.state.max == f32::NEG_INFINITY { 0.0 } else { self.state.max });
        let divisor = s.splat(if self.state.sum == 0.0 { 1.0 } else { self.state.sum });
        for (block, first) in (0..len).step_by(BLOCK).enumerate() {
            let end = len.min(first + BLOCK);
            let panels = 0..(end - first).div_ceil(LANES);
            multiply_keys(s, self.heads, self.tile, block, panels, self.scratch);
            let clip = |x: usize| x.clamp(first, first + BLOCK) - first;
            let bias = self.tile.bias(self.heads, self.v).map(|bias| &bias[first..]);
            let scores = &mut self.scratch.scores[self.v * BLOCK..][..BLOCK];
            finish_scores(s, scores, clip(seen.start)..clip(seen.end), self.heads.scale, bias);
            if let Some(out) = &mut self.scores {
                out[first..end].copy_from_slice(&scores[..end - first]);
            }
            if let Some(out) = &mut self.probs {
                for (x, out) in scores.chunks(LANES).zip(out[first..end].chunks_mut(LANES)) {
                    s.put(out, s.div(vecmath::exp(s, s.sub(s.get(x), base)), divisor));
                }
            }
        }
    }
}
