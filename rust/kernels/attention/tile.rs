//! Attention of a few queries that share a key-value head.

use std::cell::RefCell;
use std::ops::Range;
use std::ptr;

use super::{BLOCK, HeadRows, Heads, Item};
use crate::kernels::product::{ByRows, FEW_ROWS, Float32, Packed, Product};
use crate::kernels::vecmath;
use crate::simd::{LANES, Op, Simd};

/// Some queries of one item that share a key-value head, and so its keys and values. Query v is row
/// v / group, query head v % group of the head's group.
pub(super) struct Tile<'a> {
    pub item: &'a Item<'a>,
    pub kv_head: usize,
    pub queries: Range<usize>,
}

impl Tile<'_> {
    /// Row of the item and query head of query `v` of the tile.
    pub fn row_and_head(&self, heads: &Heads, v: usize) -> (usize, usize) {
        let group = heads.heads / heads.kv_heads;
        let v = self.queries.start + v;
        (v / group, self.kv_head * group + v % group)
    }

    /// The bias of query `v` from key position `first` on.
    fn bias(&self, heads: &Heads, v: usize, first: usize) -> Option<&[f32]> {
        let (r, h) = self.row_and_head(heads, v);
        self.item.bias.map(|bias| &bias.values[h * bias.head_stride + r * bias.row_stride + first..])
    }
}

/// Maximum and sum of exponentials, one lane a query.
#[derive(Clone, Copy)]
struct State {
    max: [f32; LANES],
    sum: [f32; LANES],
}

const NOTHING: State = State { max: [f32::NEG_INFINITY; LANES], sum: [0.0; LANES] };

const _: () = assert!(FEW_ROWS <= LANES);

/// A tile's working memory.
pub(super) struct Scratch {
    /// `[head_dim][queries]`.
    q: Vec<f32>,
    /// `[queries][64]`: scores, then their exponentials.
    scores: [f32; FEW_ROWS * BLOCK],
    /// `[queries][head_dim]`: Σ exponential · value of the block.
    block_sums: Vec<f32>,
    /// The same of all blocks so far; in the end the output.
    pub sums: Vec<f32>,
    state: State,
}

impl Scratch {
    /// ln Σ e^score of query `v`, once it has seen all blocks; in float64, since it is one a row.
    pub fn log_sum(&self, v: usize) -> f32 {
        (f64::from(self.state.max[v]) + f64::from(self.state.sum[v]).ln()) as f32
    }
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        q: Vec::new(),
        scores: [0.0; FEW_ROWS * BLOCK],
        block_sums: Vec::new(),
        sums: Vec::new(),
        state: NOTHING,
    }));
}

/// Which key positions the queries of a tile see, and the blocks that hold any of them.
struct Seen {
    positions: [Range<usize>; FEW_ROWS],
    /// The end of the last position that any query sees.
    end: usize,
    blocks: Range<usize>,
}

impl Tile<'_> {
    fn seen(&self, heads: &Heads) -> Seen {
        let mut positions: [Range<usize>; FEW_ROWS] = std::array::from_fn(|_| 0..0);
        let (mut start, mut end) = (usize::MAX, 0);
        for v in 0..self.queries.len() {
            positions[v] = self.item.seen(self.row_and_head(heads, v).0);
            if !positions[v].is_empty() {
                (start, end) = (start.min(positions[v].start), end.max(positions[v].end));
            }
        }
        Seen { positions, end, blocks: start / BLOCK..end.div_ceil(BLOCK) }
    }

    /// The blocks that any query of the tile sees.
    pub fn blocks(&self, heads: &Heads) -> Range<usize> {
        self.seen(heads).blocks
    }

    /// Floats of what [`Part`] keeps of one block.
    pub fn part(&self, heads: &Heads) -> usize {
        self.queries.len() * (heads.head_dim + 2)
    }
}

impl Seen {
    /// What each query sees of a block, counted from its start.
    #[inline(always)]
    fn within(&self, block: usize) -> [Range<usize>; FEW_ROWS] {
        std::array::from_fn(|v| within(&self.positions[v], block * BLOCK))
    }
}

/// Leaves the tile's output in `scratch.sums`, and the final maxima and sums.
pub(super) struct Attend<'a> {
    pub heads: &'a Heads,
    pub q: &'a HeadRows<'a>,
    pub tile: &'a Tile<'a>,
    pub scratch: &'a mut Scratch,
}

impl Op for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { heads, q, tile, scratch } = self;
        let (n, d) = (tile.queries.len(), heads.head_dim);
        let seen = tile.seen(heads);
        load_queries(heads, q, tile, scratch);
        start(n * d, scratch);
        for block in seen.blocks.clone() {
            let inside = seen.within(block);
            let next = one_block(s, heads, tile, block, seen.end, &inside[..n], scratch);
            let Scratch { state, sums, block_sums, .. } = scratch;
            merge(s, d, &inside[..n], state, sums, &next, block_sums);
        }
        finish(s, d, scratch);
    }
}

/// A span of the tile's blocks: of each its (m, l, O) into `parts`, `[blocks][tile.part()]`, for
/// [`Join`].
pub(super) struct Part<'a> {
    pub heads: &'a Heads,
    pub q: &'a HeadRows<'a>,
    pub tile: &'a Tile<'a>,
    pub blocks: Range<usize>,
    pub scratch: &'a mut Scratch,
    pub parts: &'a mut [f32],
}

impl Op for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { heads, q, tile, scratch, .. } = self;
        let n = tile.queries.len();
        let seen = tile.seen(heads);
        load_queries(heads, q, tile, scratch);
        for (block, part) in self.blocks.zip(self.parts.chunks_exact_mut(tile.part(heads))) {
            let inside = seen.within(block);
            let next = one_block(s, heads, tile, block, seen.end, &inside[..n], scratch);
            let (max, part) = part.split_at_mut(n);
            let (sum, sums) = part.split_at_mut(n);
            max.copy_from_slice(&next.max[..n]);
            sum.copy_from_slice(&next.sum[..n]);
            sums.copy_from_slice(&scratch.block_sums);
        }
    }
}

/// What [`Attend`] does, from the `parts` of all blocks: the same merges in the same order.
pub(super) struct Join<'a> {
    pub heads: &'a Heads,
    pub tile: &'a Tile<'a>,
    pub scratch: &'a mut Scratch,
    pub parts: &'a [f32],
}

impl Op for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Join { heads, tile, scratch, parts } = self;
        let (n, d) = (tile.queries.len(), heads.head_dim);
        let seen = tile.seen(heads);
        start(n * d, scratch);
        for (block, part) in seen.blocks.clone().zip(parts.chunks_exact(tile.part(heads))) {
            let mut next = NOTHING;
            next.max[..n].copy_from_slice(&part[..n]);
            next.sum[..n].copy_from_slice(&part[n..2 * n]);
            let inside = seen.within(block);
            merge(s, d, &inside[..n], &mut scratch.state, &mut scratch.sums, &next, &part[2 * n..]);
        }
        finish(s, d, scratch);
    }
}

/// The queries into `scratch.q`.
fn load_queries(heads: &Heads, q: &HeadRows<'_>, tile: &Tile<'_>, scratch: &mut Scratch) {
    let (n, d) = (tile.queries.len(), heads.head_dim);
    scratch.q.resize(n * d, 0.0);
    scratch.block_sums.resize(n * d, 0.0);
    for v in 0..n {
        let (r, h) = tile.row_and_head(heads, v);
        let from = &q.data[(tile.item.row + r) * q.stride + q.offset + h * d..][..d];
        for (to, from) in scratch.q[v..].iter_mut().step_by(n).zip(from) {
            *to = *from;
        }
    }
}

/// No block yet.
fn start(size: usize, scratch: &mut Scratch) {
    scratch.sums.clear();
    scratch.sums.resize(size, 0.0);
    scratch.state = NOTHING;
}

/// Maxima and sums of a block, for the queries that see some of it; `scratch.block_sums` gets O.
#[inline(always)]
fn one_block<S: Simd>(
    s: S,
    heads: &Heads,
    tile: &Tile<'_>,
    block: usize,
    end: usize,
    inside: &[Range<usize>],
    scratch: &mut Scratch,
) -> State {
    let first = block * BLOCK;
    multiply_keys(s, heads, tile, block, end.min(first + BLOCK) - first, scratch);
    let mut next = NOTHING;
    for v in (0..inside.len()).filter(|v| !inside[*v].is_empty()) {
        let bias = tile.bias(heads, v, first);
        let row = &mut scratch.scores[v * BLOCK..][..BLOCK];
        let scores = finish_scores(s, row, &inside[v], heads.scale, bias);
        (next.max[v], next.sum[v]) = exponentials(s, scores, row);
    }
    multiply_values(s, heads, tile, block, inside, scratch);
    next
}

/// `scratch.sums` divided by the sums of exponentials: the output.
#[inline(always)]
fn finish<S: Simd>(s: S, d: usize, scratch: &mut Scratch) {
    for (sum, x) in scratch.state.sum.iter().zip(scratch.sums.chunks_exact_mut(d)) {
        // A row that sees nothing has sums of 0 already.
        let divisor = s.splat(if *sum == 0.0 { 1.0 } else { *sum });
        for x in x.chunks_mut(LANES) {
            let y = s.div(s.get(x), divisor);
            s.put(x, y);
        }
    }
}

/// The part of `positions` in the block that starts at `first`, counted from there.
#[inline(always)]
pub(super) fn within(positions: &Range<usize>, first: usize) -> Range<usize> {
    let clip = |x: usize| x.clamp(first, first + BLOCK) - first;
    clip(positions.start)..clip(positions.end)
}

/// `scratch.scores` = q · kᵀ for the first `positions` of a block, and what else is in their panels.
#[inline(always)]
fn multiply_keys<S: Simd>(
    s: S,
    heads: &Heads,
    tile: &Tile<'_>,
    block: usize,
    positions: usize,
    scratch: &mut Scratch,
) {
    let (n, d) = (tile.queries.len(), heads.head_dim);
    let keys = tile.item.kv[tile.kv_head].keys[block];
    // SAFETY: `q` is `[d][n]`, `keys` is `[4][d][16]` (checked by `Tiles::new`), `scores` has room
    // for n rows of 64.
    unsafe {
        Product {
            rows: n,
            columns: positions.next_multiple_of(LANES),
            k: d,
            a: scratch.q.as_ptr(),
            b: keys.as_ptr(),
            b_panel: d * LANES,
            b_k: LANES,
            ahead: 0,
            c: scratch.scores.as_mut_ptr(),
            c_row: BLOCK,
            accumulate: false,
            bias: ptr::null(),
        }
        .run::<S, Packed, Float32>(s);
    }
}

/// The 64 scores of a query and a block: products times `scale`, plus the bias, −∞ for what the query
/// does not see.
#[inline(always)]
fn finish_scores<S: Simd>(
    s: S,
    products: &[f32],
    seen: &Range<usize>,
    scale: f32,
    bias: Option<&[f32]>,
) -> [S::F32; BLOCK / LANES] {
    let low = s.splat(f32::NEG_INFINITY);
    let mut scores = [low; BLOCK / LANES];
    for i in 0..scores.len() {
        let at = i * LANES;
        let mut x = s.mul(s.get(&products[at..]), s.splat(scale));
        if let Some(bias) = bias
            && at < bias.len()
        {
            x = s.add(x, s.get(&bias[at..]));
        }
        scores[i] = if *seen == (0..BLOCK) {
            x
        } else {
            s.select(s.lanes(seen.start.saturating_sub(at), seen.end.saturating_sub(at)), x, low)
        };
    }
    scores
}

/// e^(score − maximum) into `out`; the maximum, and the sum of the exponentials. A NaN among the scores
/// makes the sum NaN.
#[inline(always)]
fn exponentials<S: Simd>(s: S, scores: [S::F32; BLOCK / LANES], out: &mut [f32]) -> (f32, f32) {
    let mut max = s.splat(f32::NEG_INFINITY);
    for i in 0..scores.len() {
        max = s.max(scores[i], max);
    }
    let max = s.reduce_max(max);
    let base = s.splat(finite_or_zero(max));
    let mut sum = s.splat(0.0);
    for i in 0..scores.len() {
        let e = vecmath::exp(s, s.sub(scores[i], base));
        sum = s.add(sum, e);
        s.put(&mut out[i * LANES..], e);
    }
    (max, s.reduce_sum(sum))
}

/// A maximum to take out of scores; where all are −∞ (hidden by the bias) there is nothing to take.
#[inline(always)]
pub(super) fn finite_or_zero(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
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
    let (scores, sums) = (scratch.scores.as_ptr(), scratch.block_sums.as_mut_ptr());
    let product = |v: usize, rows: usize, positions: Range<usize>, accumulate: bool| {
        // SAFETY: queries v … v + rows of `scores [n][64]` and `sums [n][d]`, positions of
        // `values [64][d]` (checked by `Tiles::new`).
        unsafe {
            Product {
                rows,
                columns: d,
                k: positions.len(),
                a: scores.add(v * BLOCK + positions.start),
                b: values.as_ptr().add(positions.start * d),
                b_panel: LANES,
                b_k: d,
                ahead: 0,
                c: sums.add(v * d),
                c_row: d,
                accumulate,
                bias: ptr::null(),
            }
        }
    };
    let mut common = 0..BLOCK;
    for seen in seen {
        common = common.start.max(seen.start)..common.end.min(seen.end);
    }
    let queries = || seen.iter().enumerate();
    // SAFETY (all runs): see `product`.
    if common.is_empty() {
        for (v, seen) in queries() {
            unsafe { product(v, 1, seen.clone(), false).run::<S, ByRows, Float32>(s) };
        }
        return;
    }
    let early = seen.iter().any(|seen| seen.start < common.start);
    if early {
        for (v, seen) in queries() {
            unsafe { product(v, 1, seen.start..common.start, false).run::<S, ByRows, Float32>(s) };
        }
    }
    unsafe { product(0, seen.len(), common.clone(), early).run::<S, ByRows, Float32>(s) };
    for (v, seen) in queries().filter(|(_, seen)| seen.end > common.end) {
        unsafe { product(v, 1, common.end..seen.end, true).run::<S, ByRows, Float32>(s) };
    }
}

/// (m, l, O) of all blocks so far with those of the next, for the queries that see some of it.
#[inline(always)]
fn merge<S: Simd>(
    s: S,
    d: usize,
    inside: &[Range<usize>],
    State { max, sum }: &mut State,
    sums: &mut [f32],
    next: &State,
    next_sums: &[f32],
) {
    let bases: [f32; LANES] =
        std::array::from_fn(|v| finite_or_zero(if next.max[v] > max[v] { next.max[v] } else { max[v] }));
    // One exponential for all queries, a lane each.
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    s.put(&mut old, vecmath::exp(s, s.sub(s.get(max), s.get(&bases))));
    s.put(&mut new, vecmath::exp(s, s.sub(s.get(&next.max), s.get(&bases))));
    for v in (0..inside.len()).filter(|v| !inside[*v].is_empty()) {
        max[v] = if next.max[v] > max[v] { next.max[v] } else { max[v] };
        sum[v] = next.sum[v].mul_add(new[v], sum[v] * old[v]);
        let (old, new) = (s.splat(old[v]), s.splat(new[v]));
        let sums = sums[v * d..][..d].chunks_mut(LANES);
        for (x, next) in sums.zip(next_sums[v * d..][..d].chunks(LANES)) {
            let y = s.fma(s.get(next), new, s.mul(s.get(x), old));
            s.put(x, y);
        }
    }
}

/// After [`Attend`] on the same scratch: scores and probabilities `[kv_len]` of query `v`, from its
/// final maximum and sum.
pub(super) struct Capture<'a> {
    pub heads: &'a Heads,
    pub tile: &'a Tile<'a>,
    pub v: usize,
    pub scratch: &'a mut Scratch,
    pub scores: Option<&'a mut [f32]>,
    pub probs: Option<&'a mut [f32]>,
}

impl Op for Capture<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (r, _) = self.tile.row_and_head(self.heads, self.v);
        let (seen, len) = (self.tile.item.seen(r), self.tile.item.kv_len);
        let State { max, sum } = self.scratch.state;
        let base = s.splat(finite_or_zero(max[self.v]));
        let divisor = s.splat(if sum[self.v] == 0.0 { 1.0 } else { sum[self.v] });
        for (block, first) in (0..len).step_by(BLOCK).enumerate() {
            let end = len.min(first + BLOCK);
            multiply_keys(s, self.heads, self.tile, block, end - first, self.scratch);
            let bias = self.tile.bias(self.heads, self.v, first);
            let products = &self.scratch.scores[self.v * BLOCK..][..BLOCK];
            let scores = finish_scores(s, products, &within(&seen, first), self.heads.scale, bias);
            for (i, at) in (first..end).step_by(LANES).enumerate() {
                let lanes = at..end.min(at + LANES);
                if let Some(out) = &mut self.scores {
                    s.put(&mut out[lanes.clone()], scores[i]);
                }
                if let Some(out) = &mut self.probs {
                    s.put(&mut out[lanes], s.div(vecmath::exp(s, s.sub(scores[i], base)), divisor));
                }
            }
        }
    }
}
