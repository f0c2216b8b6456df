//! Attention of a few queries that share a key-value head.

use std::array::from_fn;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use super::kv::{BLOCK, Element, Head, KvLayout};
use super::{HeadRows, Heads, Item};
use crate::kernels::gemm::{strip, strips};
use crate::kernels::product::{ByRows, Float32, MAX_ROWS, Packed, Product};
use crate::kernels::{Lines, vecmath};
use crate::simd::{LANES, Op, Simd};

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
    fn seen(&self, heads: &Heads, v: usize) -> Range<usize> {
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
    fn strip(&self, i: usize) -> Tile<'a> {
        let strip = strip(i, self.queries.len());
        let start = self.queries.start;
        Tile { queries: start + strip.start..start + strip.end, ..*self }
    }

    /// The bias of query `v` from key position `first` on.
    fn bias(&self, heads: &Heads, v: usize, first: usize) -> Option<&[f32]> {
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

/// Of each query of a strip over some blocks: the maximum of its scores, a lane each, and in a row 16 partial
/// sums of the exponentials, before `head_dim` sums of exponential · value.
struct Sums {
    max: [f32; LANES],
    rows: Lines,
}

impl Sums {
    const fn new() -> Self {
        Sums { max: [f32::NEG_INFINITY; LANES], rows: Lines::new() }
    }

    fn clear(&mut self, floats: usize) {
        self.max = [f32::NEG_INFINITY; LANES];
        self.rows.floats(floats).fill(0.0);
    }
}

/// Floats of a row of [`Sums`].
#[inline(always)]
fn row_len(heads: &Heads) -> usize {
    LANES + heads.head_dim
}

/// The working memory of a strip.
struct Strip {
    queries: usize,
    /// What each query sees.
    seen: [Range<usize>; MAX_ROWS],
    /// `[head_dim][queries]`.
    q: Lines,
    span: Sums,
    all: Sums,
    /// Sums of the exponentials, once all blocks are seen.
    sum: [f32; LANES],
}

impl Strip {
    /// What each query sees of the block that starts at `first`, counted from there.
    #[inline(always)]
    fn within(&self, first: usize) -> [Range<usize>; MAX_ROWS] {
        let mut inside = [const { 0..0 }; MAX_ROWS];
        for v in 0..self.queries {
            inside[v] = within(&self.seen[v], first);
        }
        inside
    }

    /// Which queries see something of some blocks.
    #[inline(always)]
    fn sees(&self, blocks: Range<usize>) -> [bool; MAX_ROWS] {
        let mut sees = [false; MAX_ROWS];
        for v in 0..self.queries {
            let Range { start, end } = self.seen[v];
            sees[v] = start.max(blocks.start * BLOCK) < end.min(blocks.end * BLOCK);
        }
        sees
    }
}

/// Strip of a tile, and query of the strip, of query `v` of the tile.
fn place(v: usize, queries: usize) -> (usize, usize) {
    let mut i = 0;
    while strip(i, queries).end <= v {
        i += 1;
    }
    (i, v - strip(i, queries).start)
}

/// The working memory of a tile.
pub(super) struct Scratch {
    strips: [Strip; MOST / MAX_ROWS + 1],
    /// Of one strip, `[queries][64]`: scores, then their exponentials.
    scores: Lines,
    block: Sums,
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

/// What all tiles of a call share.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub heads: Heads,
    pub layout: KvLayout,
    pub q: HeadRows<'a>,
}

/// A tile's output, its final maxima and sums, into the scratch.
pub(super) struct Attend<'a, T> {
    pub call: &'a Call<'a>,
    pub tile: &'a Tile<'a>,
    pub scratch: &'a mut Scratch,
    pub element: PhantomData<T>,
}

impl<T: Element> Op for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { call, tile, scratch, .. } = self;
        let count = tile.strips();
        start(s, call, tile, scratch);
        for span in tile.spans(&call.heads) {
            one_span::<S, T>(s, call, tile, span, scratch);
            for strip in &mut scratch.strips[..count] {
                let sees = strip.sees(span * SPAN..(span + 1) * SPAN);
                merge(s, &call.heads, &sees[..strip.queries], &mut strip.all, &strip.span);
            }
        }
        for strip in &mut scratch.strips[..count] {
            finish(s, &call.heads, strip);
        }
    }
}

/// Some spans of a tile of one strip: the sums of each into `parts`, `[spans][part_len]`, for [`Join`].
pub(super) struct Part<'a, T> {
    pub call: &'a Call<'a>,
    pub tile: &'a Tile<'a>,
    pub spans: Range<usize>,
    pub scratch: &'a mut Scratch,
    pub parts: &'a mut [f32],
    pub element: PhantomData<T>,
}

/// Floats of the sums of a span.
pub(super) fn part_len(heads: &Heads, tile: &Tile<'_>) -> usize {
    LANES + tile.queries.len() * row_len(heads)
}

impl<T: Element> Op for Part<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { call, tile, spans, scratch, parts, .. } = self;
        start(s, call, tile, scratch);
        for (span, part) in spans.zip(parts.chunks_exact_mut(part_len(&call.heads, tile))) {
            one_span::<S, T>(s, call, tile, span, scratch);
            let Sums { max, rows } = &mut scratch.strips[0].span;
            let (to_max, to_rows) = part.split_at_mut(LANES);
            to_max.copy_from_slice(max);
            to_rows.copy_from_slice(rows.get(to_rows.len()));
        }
    }
}

/// What [`Attend`] does, from the `parts` of all spans: the same merges in the same order.
pub(super) struct Join<'a> {
    pub call: &'a Call<'a>,
    pub tile: &'a Tile<'a>,
    pub scratch: &'a mut Scratch,
    pub parts: &'a [f32],
}

impl Op for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Join { call, tile, scratch, parts } = self;
        let heads = &call.heads;
        start(s, call, tile, scratch);
        let strip = &mut scratch.strips[0];
        for (span, part) in tile.spans(heads).zip(parts.chunks_exact(part_len(heads, tile))) {
            let (max, rows) = part.split_at(LANES);
            strip.span.max.copy_from_slice(max);
            strip.span.rows.floats(rows.len()).copy_from_slice(rows);
            let sees = strip.sees(span * SPAN..(span + 1) * SPAN);
            merge(s, heads, &sees[..strip.queries], &mut strip.all, &strip.span);
        }
        finish(s, heads, strip);
    }
}

/// Loads the queries of every strip, and begins with no block.
#[inline(always)]
fn start<S: Simd>(s: S, call: &Call<'_>, tile: &Tile<'_>, scratch: &mut Scratch) {
    for i in 0..tile.strips() {
        let (tile, strip) = (tile.strip(i), &mut scratch.strips[i]);
        strip.queries = tile.queries.len();
        for v in 0..strip.queries {
            strip.seen[v] = tile.seen(&call.heads, v);
        }
        load_queries(s, call, &tile, strip.q.floats(strip.queries * call.heads.head_dim));
        strip.all.clear(strip.queries * row_len(&call.heads));
    }
}

/// The queries of a strip, times the scale of scores, into `to [head_dim][queries]`.
#[inline(always)]
fn load_queries<S: Simd>(s: S, call: &Call<'_>, tile: &Tile<'_>, to: &mut [f32]) {
    let (n, d) = (tile.queries.len(), call.heads.head_dim);
    let scale = s.splat(call.heads.scale);
    for first in (0..d).step_by(LANES) {
        let width = LANES.min(d - first);
        let mut vectors = [s.splat(0.0); LANES];
        for v in 0..n {
            let (r, h) = tile.row_and_head(&call.heads, v);
            vectors[v] = s.mul(s.get(&call.q.of_head(tile.item.row + r, h, d)[first..][..width]), scale);
        }
        s.transpose(&mut vectors);
        for j in 0..width {
            s.put(&mut to[(first + j) * n..][..n], vectors[j]);
        }
    }
}

/// Into the `span` of every strip the sums of a span's blocks.
#[inline(always)]
fn one_span<S: Simd, T: Element>(s: S, call: &Call<'_>, tile: &Tile<'_>, span: usize, scratch: &mut Scratch) {
    let count = tile.strips();
    let floats = row_len(&call.heads);
    for strip in &mut scratch.strips[..count] {
        strip.span.clear(strip.queries * floats);
    }
    let blocks = tile.blocks(&call.heads);
    for block in blocks.start.max(span * SPAN)..blocks.end.min((span + 1) * SPAN) {
        let here: Head<T> = call.layout.head(tile.item.blocks[block], tile.kv_head);
        // While this block is read, the next one comes.
        let next = (block + 1).min(blocks.end - 1);
        let next: Head<T> = call.layout.head(tile.item.blocks[next], tile.kv_head);
        let ahead = (next.keys as isize).wrapping_sub(here.keys as isize);
        for i in 0..count {
            let ahead = if i == 0 { ahead } else { 0 };
            one_block(s, call, &tile.strip(i), i, block, here, ahead, scratch);
        }
    }
}

/// A block's sums, for the queries of strip `i` that see some of it, merged into those of the span.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn one_block<S: Simd, T: Element>(
    s: S,
    call: &Call<'_>,
    tile: &Tile<'_>,
    i: usize,
    block: usize,
    head: Head<T>,
    ahead: isize,
    scratch: &mut Scratch,
) {
    let Scratch { strips, scores, block: sums } = scratch;
    let strip = &mut strips[i];
    let first = block * BLOCK;
    let inside = strip.within(first);
    let seen = &inside[..strip.queries];
    let mut end = 0;
    for seen in seen {
        end = if seen.is_empty() { end } else { end.max(seen.end) };
    }
    if end == 0 {
        return;
    }
    let scores = scores.floats(strip.queries * BLOCK);
    let rows = sums.rows.floats(strip.queries * row_len(&call.heads));
    multiply_keys(s, call, strip, head, end, ahead, scores);
    for v in 0..seen.len() {
        if !seen[v].is_empty() {
            let row = &mut scores[v * BLOCK..][..BLOCK];
            let finished = finish_scores(s, row, &seen[v], head, tile.bias(&call.heads, v, first));
            let sum = &mut rows[v * row_len(&call.heads)..][..LANES];
            sums.max[v] = exponentials(s, finished, head, row, sum);
        }
    }
    multiply_values(s, call, seen, head, ahead, scores, rows);
    let sees = strip.sees(block..block + 1);
    merge(s, &call.heads, &sees[..strip.queries], &mut strip.span, sums);
}

/// `scores` = q · kᵀ for the first `positions` of a block, and what else is in their panels; without the
/// scales of keys.
#[inline(always)]
fn multiply_keys<S: Simd, T: Element>(
    s: S,
    call: &Call<'_>,
    strip: &Strip,
    head: Head<T>,
    positions: usize,
    ahead: isize,
    scores: &mut [f32],
) {
    let (n, d) = (strip.queries, call.heads.head_dim);
    // SAFETY: `q` is `[d][n]`, the keys are `[4][d][16]`, `scores` has room for n rows of 64.
    unsafe {
        Product {
            rows: n,
            columns: positions.next_multiple_of(LANES),
            k: d,
            a: strip.q.get(n * d).as_ptr(),
            b: head.keys,
            b_panel: d * LANES,
            b_k: LANES,
            ahead,
            c: scores.as_mut_ptr(),
            c_row: BLOCK,
            accumulate: false,
            bias: ptr::null(),
        }
        .run::<S, Packed, Float32>(s);
    }
}

/// The 64 scores of a query and a block: products times the scales of keys, plus the bias, −∞ for what the
/// query does not see.
#[inline(always)]
fn finish_scores<S: Simd, T: Element>(
    s: S,
    products: &[f32],
    seen: &Range<usize>,
    head: Head<T>,
    bias: Option<&[f32]>,
) -> [S::F32; BLOCK / LANES] {
    let low = s.splat(f32::NEG_INFINITY);
    let mut scores = [low; BLOCK / LANES];
    for i in 0..scores.len() {
        let at = i * LANES;
        let mut x = s.get(&products[at..]);
        if T::SCALED {
            // SAFETY: there are 64 scales.
            x = s.mul(x, unsafe { s.load(head.key_scales.add(at)) });
        }
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

/// e^(score − maximum), times the scales of values, into `weights`, and the 16 partial sums of the exponentials
/// into `sum`; the maximum. A NaN among the scores makes a sum NaN.
#[inline(always)]
fn exponentials<S: Simd, T: Element>(
    s: S,
    scores: [S::F32; BLOCK / LANES],
    head: Head<T>,
    weights: &mut [f32],
    sum: &mut [f32],
) -> f32 {
    let max = s.max(s.max(scores[0], scores[1]), s.max(scores[2], scores[3]));
    let max = s.reduce_max(max);
    let base = s.splat(finite_or_zero(max));
    let mut total = s.splat(0.0);
    for i in 0..scores.len() {
        let mut e = vecmath::exp(s, s.sub(scores[i], base));
        total = s.add(total, e);
        if T::SCALED {
            // SAFETY: there are 64 scales.
            e = s.mul(e, unsafe { s.load(head.value_scales.add(i * LANES)) });
        }
        s.put(&mut weights[i * LANES..], e);
    }
    s.put(sum, total);
    max
}

/// A maximum to take out of scores; where all are −∞ (hidden by the bias) there is nothing to take.
#[inline(always)]
pub(super) fn finite_or_zero(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// `weights [queries][64]` · v into the rows of [`Sums`]: each query walks the positions that it sees, and no
/// others, in order: first those before what all queries see, then these together, then the rest.
#[inline(always)]
fn multiply_values<S: Simd, T: Element>(
    s: S,
    call: &Call<'_>,
    seen: &[Range<usize>],
    head: Head<T>,
    ahead: isize,
    weights: &[f32],
    rows: &mut [f32],
) {
    let (d, row) = (call.heads.head_dim, row_len(&call.heads));
    let (weights, sums) = (weights.as_ptr(), rows.as_mut_ptr().wrapping_add(LANES));
    let product = |v: usize, rows: usize, positions: Range<usize>, accumulate: bool| {
        // SAFETY: queries v … v + rows of `weights [n][64]` and of the rows of sums, positions of `[64][d]`.
        unsafe {
            Product {
                rows,
                columns: d,
                k: positions.len(),
                a: weights.add(v * BLOCK + positions.start),
                b: head.values.add(positions.start * d),
                b_panel: LANES,
                b_k: d,
                ahead,
                c: sums.add(v * row),
                c_row: row,
                accumulate,
                bias: ptr::null(),
            }
        }
    };
    let mut common = 0..BLOCK;
    for seen in seen {
        common = common.start.max(seen.start)..common.end.min(seen.end);
    }
    // SAFETY (all runs): see `product`.
    if common.is_empty() {
        for v in 0..seen.len() {
            unsafe { product(v, 1, seen[v].clone(), false).run::<S, ByRows, Float32>(s) };
        }
        return;
    }
    let mut early = false;
    for seen in seen {
        early |= seen.start < common.start;
    }
    if early {
        for v in 0..seen.len() {
            unsafe { product(v, 1, seen[v].start..common.start, false).run::<S, ByRows, Float32>(s) };
        }
    }
    unsafe { product(0, seen.len(), common.clone(), early).run::<S, ByRows, Float32>(s) };
    for v in 0..seen.len() {
        if seen[v].end > common.end {
            unsafe { product(v, 1, common.end..seen[v].end, true).run::<S, ByRows, Float32>(s) };
        }
    }
}

/// The sums so far and the next ones, for the queries that see some of the next.
#[inline(always)]
fn merge<S: Simd>(s: S, heads: &Heads, sees: &[bool], sums: &mut Sums, next: &Sums) {
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

/// The sums of `strip.all` divided by those of the exponentials: the output.
#[inline(always)]
fn finish<S: Simd>(s: S, heads: &Heads, strip: &mut Strip) {
    let rows = strip.all.rows.floats(strip.queries * row_len(heads));
    for v in 0..strip.queries {
        let (mut at, end) = (v * row_len(heads), (v + 1) * row_len(heads));
        strip.sum[v] = s.reduce_sum(s.get(&rows[at..]));
        // A row that sees nothing has sums of 0 already.
        let divisor = s.splat(if strip.sum[v] == 0.0 { 1.0 } else { strip.sum[v] });
        at += LANES;
        while at < end {
            let lanes = at..end.min(at + LANES);
            let y = s.div(s.get(&rows[lanes.clone()]), divisor);
            s.put(&mut rows[lanes], y);
            at += LANES;
        }
    }
}

/// After [`Attend`] on the same scratch: scores and probabilities `[kv_len]` of query `v`, from its
/// final maximum and sum.
pub(super) struct Capture<'a, T> {
    pub call: &'a Call<'a>,
    pub tile: &'a Tile<'a>,
    pub v: usize,
    pub scratch: &'a mut Scratch,
    pub scores: Option<&'a mut [f32]>,
    pub probs: Option<&'a mut [f32]>,
    pub element: PhantomData<T>,
}

impl<T: Element> Op for Capture<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (call, item) = (self.call, self.tile.item);
        let (i, v) = place(self.v, self.tile.queries.len());
        let tile = self.tile.strip(i);
        let Scratch { strips, scores: products, .. } = self.scratch;
        let strip = &strips[i];
        let products = products.floats(strip.queries * BLOCK);
        let base = s.splat(finite_or_zero(strip.all.max[v]));
        let divisor = s.splat(if strip.sum[v] == 0.0 { 1.0 } else { strip.sum[v] });
        for (block, first) in (0..item.kv_len).step_by(BLOCK).enumerate() {
            let end = item.kv_len.min(first + BLOCK);
            let head: Head<T> = call.layout.head(item.blocks[block], tile.kv_head);
            multiply_keys(s, call, strip, head, end - first, 0, products);
            let bias = tile.bias(&call.heads, v, first);
            let seen = within(&strip.seen[v], first);
            let scores = finish_scores(s, &products[v * BLOCK..][..BLOCK], &seen, head, bias);
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
