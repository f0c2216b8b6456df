//! Scores and probabilities as hooks want them.

use std::marker::PhantomData;

use super::block::{finish_scores, multiply_keys};
use super::kv::{BLOCK, Element, Head};
use super::scratch::{Scratch, place};
use super::sums::finite_or_zero;
use super::tile::{Call, Tile, within};
use crate::kernels::vecmath;
use crate::simd::{LANES, Op, Simd};

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
