//! Attention over rows of whole sequences, as training has them: no cache, and what the gradients need.

use std::cell::RefCell;
use std::ops::Range;

use super::{BLOCK, HeadRows, Heads, Item, KvView, attend_with_log_sums, seen};
use crate::kernels::gemm::pack::{Pack, Source};
use crate::kernels::{self, Lines, Precision};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::SendPtr;

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

impl HeadRows<'_> {
    /// Whether `rows` have `heads` heads.
    pub(super) fn have(&self, rows: &Range<usize>, heads: usize, head_dim: usize) -> bool {
        self.offset + heads * head_dim <= self.stride && rows.end * self.stride <= self.data.len()
    }

    /// The first element of a head.
    pub(super) fn head(&self, row: usize, head: usize, head_dim: usize) -> *const f32 {
        self.data[row * self.stride + self.offset + head * head_dim..].as_ptr()
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
    let Heads { kv_heads, head_dim, .. } = heads;
    assert!(spans.iter().all(|span| [k, v].iter().all(|x| x.have(&span.keys, kv_heads, head_dim))));
    let size = BLOCK * head_dim;
    let count: usize = spans.iter().map(|span| kv_heads * span.key_blocks()).sum();
    BLOCKS.with_borrow_mut(|blocks| {
        let blocks = blocks.floats(2 * count * size);
        let (keys, values) = blocks.split_at_mut(count * size);
        pack_blocks(heads, spans, k, v, keys, values);
        let keys: Vec<&[f32]> = keys.chunks_exact(size).collect();
        let values: Vec<&[f32]> = values.chunks_exact(size).collect();
        let mut first = 0;
        let views: Vec<Vec<KvView<'_>>> = spans
            .iter()
            .map(|span| {
                let views = (0..kv_heads).map(|_| {
                    let range = first..first + span.key_blocks();
                    first = range.end;
                    KvView { keys: &keys[range.clone()], values: &values[range] }
                });
                views.collect()
            })
            .collect();
        let items: Vec<Item<'_>> = spans
            .iter()
            .zip(&views)
            .map(|(span, kv)| Item {
                row: span.queries.start,
                rows: span.queries.len(),
                first_position: span.first_position(),
                kv,
                kv_len: span.keys.len(),
                causal: mask.causal,
                window: mask.window,
                bias: None,
            })
            .collect();
        attend_with_log_sums(heads, &items, q, out, Some(log_sums));
    });
}

/// The blocks of each span, head by head.
fn pack_blocks(
    heads: Heads,
    spans: &[Span],
    k: HeadRows<'_>,
    v: HeadRows<'_>,
    keys: &mut [f32],
    values: &mut [f32],
) {
    let Heads { kv_heads, head_dim, .. } = heads;
    let size = BLOCK * head_dim;
    let mut of: Vec<(Range<usize>, usize)> = Vec::new();
    for span in spans {
        for head in 0..kv_heads {
            for first in span.keys.clone().step_by(BLOCK) {
                of.push((first..span.keys.end.min(first + BLOCK), head));
            }
        }
    }
    let (keys, values) = (SendPtr(keys.as_mut_ptr()), SendPtr(values.as_mut_ptr()));
    kernels::for_each(of.len() * size, of.len(), |i| {
        let (rows, head) = &of[i];
        // SAFETY: block i of both, which is this chunk's alone.
        let values = unsafe { std::slice::from_raw_parts_mut(values.get().add(i * size), size) };
        for (to, row) in values.chunks_exact_mut(head_dim).zip(rows.clone()) {
            let at = row * v.stride + v.offset + head * head_dim;
            to.copy_from_slice(&v.data[at..][..head_dim]);
        }
        // SAFETY: as above.
        let to = unsafe { keys.get().add(i * size) };
        dispatch(PackPanels { from: k, rows: rows.clone(), head: *head, head_dim, to });
    });
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
                    at: self.from.head(first, self.head, d),
                    lanes: LANES.min(self.rows.end - first),
                    lane_stride: self.from.stride,
                    k: d,
                    k_stride: 1,
                },
                width: LANES,
                precision: Precision::Float32,
                // SAFETY: panel p of the room.
                to: unsafe { self.to.add(p * d * LANES) },
                room: d * LANES,
            };
            s.vectorize(pack);
        }
    }
}
