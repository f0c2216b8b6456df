//! Attention of a tile, over all blocks or over some spans of them.

use std::marker::PhantomData;
use std::ops::Range;

use super::Heads;
use super::block::one_block;
use super::kv::{Element, Head};
use super::scratch::{Scratch, Strip};
use super::sums::{Sums, merge, row_len};
use super::tile::{Call, SPAN, Tile};
use crate::simd::{LANES, Op, Simd};

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
