//! Attention over rows of whole sequences, as training has them: no cache, and what the gradients need.

use std::cell::RefCell;
use std::ops::Range;
use std::slice::from_raw_parts_mut;

use super::{BLOCK, HeadRows, Heads, Item, KvDtype, Stretch, attend_with_log_sums, seen, write};
use crate::kernels::Lines;
use crate::kernels::gemm::pack::{Encoding, Pack, Source};
use crate::simd::{LANES, Op, Simd};

/// The rows of one sequence: those of its queries, and those of the keys and values that they look at. The
/// queries are the last of the positions.
#[derive(Clone, Debug)]
pub struct Span {
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

/// What a query sees, as in [`Item`].
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    pub causal: bool,
    pub window: Option<usize>,
}

impl Span {
    fn first_position(&self) -> usize {
        self.keys.len().saturating_sub(self.queries.len())
    }

    /// The keys of the span that its query `i` sees, counted from its first key.
    pub(super) fn seen(&self, mask: Mask, i: usize) -> Range<usize> {
        seen(self.first_position() + i, self.keys.len(), mask.causal, mask.window)
    }

    pub(super) fn key_blocks(&self) -> usize {
        self.keys.len().div_ceil(BLOCK)
    }
}

thread_local! {
    /// Keys and values as blocks, for all threads of one call.
    static BLOCKS: RefCell<Lines> = const { RefCell::new(Lines::new()) };
}

/// `q, k, v` as [`HeadRows`] says (k and v with `kv_heads`), `out [rows, heads · head_dim]`, `log_sums [rows,
/// heads]`: [`attend`](super::attend) over the spans, the same bits as over a cache, and of each row and head
/// ln Σ e^score, for [`attend_backward`](super::attend_backward). Spans come in the order of their queries.
#[allow(clippy::too_many_arguments)]
pub fn attend_rows(
    heads: Heads,
    mask: Mask,
    spans: &[Span],
    q: HeadRows<'_>,
    k: HeadRows<'_>,
    v: HeadRows<'_>,
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let layout = heads.layout(KvDtype::Float32);
    let count: usize = spans.iter().map(Span::key_blocks).sum();
    BLOCKS.with_borrow_mut(|blocks| {
        let blocks = bytes_mut(blocks.floats(count * layout.bytes() / size_of::<f32>()));
        let mut stretches = Vec::new();
        let mut rest = &mut *blocks;
        for span in spans {
            for first in span.keys.clone().step_by(BLOCK) {
                let (block, others) = rest.split_at_mut(layout.bytes());
                let rows = first..span.keys.end.min(first + BLOCK);
                stretches.push(Stretch { block, slot: 0, rows });
                rest = others;
            }
        }
        write(&layout, &mut stretches, k, v);
        let blocks: Vec<&[u8]> = blocks.chunks_exact(layout.bytes()).collect();
        let mut first = 0;
        let items: Vec<Item<'_>> = spans
            .iter()
            .map(|span| {
                let range = first..first + span.key_blocks();
                first = range.end;
                Item {
                    row: span.queries.start,
                    rows: span.queries.len(),
                    first_position: span.first_position(),
                    blocks: &blocks[range],
                    kv_len: span.keys.len(),
                    causal: mask.causal,
                    window: mask.window,
                    bias: None,
                }
            })
            .collect();
        attend_with_log_sums(heads, KvDtype::Float32, &items, q, out, Some(log_sums));
    });
}

fn bytes_mut(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: any bytes are floats, and the other way round.
    unsafe { from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
}

/// At most 64 rows of a head as panels `[4][head_dim][16]`, zeros for the rows that are missing from the last
/// panel; whoever makes one vouches for the rows, and for the room.
pub(super) struct PackPanels<'a> {
    pub from: HeadRows<'a>,
    pub rows: Range<usize>,
    pub head: usize,
    pub head_dim: usize,
    pub to: *mut f32,
}

impl Op for PackPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.head_dim;
        for (p, first) in self.rows.clone().step_by(LANES).enumerate() {
            let pack = Pack {
                from: Source {
                    at: self.from.of_head(first, self.head, d).as_ptr(),
                    lanes: LANES.min(self.rows.end - first),
                    lane_stride: self.from.stride,
                    k: d,
                    k_stride: 1,
                },
                width: LANES,
                encoding: Encoding::Float32,
                // SAFETY: panel p of the room.
                to: unsafe { self.to.add(p * d * LANES) },
                room: d * LANES,
            };
            s.vectorize(pack);
        }
    }
}
