//! Scaled dot-product attention (Vaswani et al. 2017) over the blocks of the KV pool, with a running
//! maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022).
//!
//! A query sees its keys block by block: 64 absolute positions, each block with its own maximum m,
//! sum of exponentials l and weighted sum of values O; then such triples merge, in the order of position: those
//! of four blocks into one, and these into that of the sequence. Because the borders are absolute and a query
//! never looks at its neighbours, it gets the same bits in a prefill of any split, in a decode step, and in any
//! batch.
//!
//! `kv` says how a block stores keys and values, `tile` which queries go together, `block` computes them over one
//! block, `sums` merges, `attend` goes through the blocks, `split` shares tiles and blocks among threads; `capture`
//! is for hooks, `rows` and `backward` are for training.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use half::bf16;

use crate::kernels::{self, Lines};
use crate::simd::dispatch;
use crate::threads::SendPtr;

mod attend;
mod backward;
mod block;
mod capture;
mod kv;
mod rows;
mod scratch;
mod split;
mod sums;
mod tile;

use attend::{Attend, Join, Part};
pub use backward::{HeadRowsMut, attend_backward};
use capture::Capture;
use kv::Element;
pub use kv::{BLOCK, KvDtype, KvLayout, Stretch, write};
pub use rows::{Mask, Span, attend_rows};
use scratch::{SCRATCH, Scratch};
use split::Split;
use tile::{Call, Tile};

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

impl Heads {
    /// How a block stores their keys and values.
    pub fn layout(&self, dtype: KvDtype) -> KvLayout {
        KvLayout { dtype, heads: self.kv_heads, head_dim: self.head_dim }
    }
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
    /// Keys and values, in the order of position. What lies past `kv_len` may hold anything.
    pub blocks: &'a [&'a [u8]],
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

impl HeadRows<'_> {
    /// Whether `rows` have `heads` heads.
    fn have(&self, rows: &Range<usize>, heads: usize, head_dim: usize) -> bool {
        self.offset + heads * head_dim <= self.stride && rows.end * self.stride <= self.data.len()
    }

    /// A head, `[head_dim]`.
    #[inline(always)]
    fn of_head(&self, row: usize, head: usize, head_dim: usize) -> &[f32] {
        &self.data[row * self.stride + self.offset + head * head_dim..][..head_dim]
    }
}

/// `q` as [`HeadRows`] says, blocks of `dtype`, `out [rows, heads · head_dim]`: softmax(scale · q · kᵀ + bias) · v
/// for every row and head of every item. Items come in the order of their rows. A row that sees no key gets
/// zeros.
pub fn attend(heads: Heads, dtype: KvDtype, items: &[Item<'_>], q: HeadRows<'_>, out: &mut [f32]) {
    attend_with_log_sums(heads, dtype, items, q, out, None);
}

/// [`attend`], and into `log_sums [rows, heads]` the logarithm of the sum of the exponentials of each row's
/// scores; −∞ for a row that sees no key.
fn attend_with_log_sums(
    heads: Heads,
    dtype: KvDtype,
    items: &[Item<'_>],
    q: HeadRows<'_>,
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
) {
    let call = checked(heads, dtype, items, q);
    let rows = items.last().map_or(0, |item| item.row + item.rows);
    let width = heads.heads * heads.head_dim;
    assert!(rows * width <= out.len());
    assert!(log_sums.as_ref().is_none_or(|log_sums| rows * heads.heads <= log_sums.len()));
    let out = SendPtr(out.as_mut_ptr());
    let log_sums = log_sums.map(|log_sums| SendPtr(log_sums.as_mut_ptr()));
    let store = |tile: &Tile<'_>, scratch: &mut Scratch| {
        for v in 0..tile.queries.len() {
            let (r, h) = tile.row_and_head(&heads, v);
            let (from, log_sum) = scratch.output(v, tile, &heads);
            let row = tile.item.row + r;
            // SAFETY: row and head lie in `out` and `log_sums`, and belong to this tile alone.
            unsafe {
                let at = row * width + h * heads.head_dim;
                ptr::copy_nonoverlapping(from.as_ptr(), out.get().add(at), heads.head_dim);
                if let Some(log_sums) = log_sums {
                    *log_sums.get().add(row * heads.heads + h) = log_sum;
                }
            }
        }
    };
    let split = Split::new(&heads, items);
    match dtype {
        KvDtype::Float32 => split.attend::<f32>(&call, store),
        KvDtype::Bfloat16 => split.attend::<bf16>(&call, store),
        KvDtype::Int8 => split.attend::<i8>(&call, store),
    }
}

/// Checks that all slices are as long as the kernel takes them to be.
fn checked<'a>(heads: Heads, dtype: KvDtype, items: &[Item<'_>], q: HeadRows<'a>) -> Call<'a> {
    let Heads { heads: n, kv_heads, head_dim, .. } = heads;
    assert!(head_dim > 0 && kv_heads > 0 && n.is_multiple_of(kv_heads));
    let disjoint = items.windows(2).all(|pair| pair[0].row + pair[0].rows <= pair[1].row);
    assert!(disjoint, "items in the order of their rows");
    let layout = heads.layout(dtype);
    for item in items {
        assert!(q.have(&(item.row..item.row + item.rows), n, head_dim));
        assert!(item.blocks.len() * BLOCK >= item.kv_len);
        assert!(item.blocks.iter().all(|block| block.len() == layout.bytes()));
        if let (Some(bias), true) = (item.bias, item.rows > 0) {
            let last = (n - 1) * bias.head_stride + (item.rows - 1) * bias.row_stride + item.kv_len;
            assert!(last <= bias.values.len());
        }
    }
    Call { heads, layout, q }
}

/// `scores, probs [heads, rows, kv_len]`: what [`attend`] computes on the way for one item, computed
/// again: the scores with scale and bias (−∞ where a row does not see a key), and
/// e^(score − m) / l of each row's final maximum and sum.
pub fn attention_probs(
    heads: Heads,
    dtype: KvDtype,
    item: &Item<'_>,
    q: HeadRows<'_>,
    scores: Option<&mut [f32]>,
    probs: Option<&mut [f32]>,
) {
    let size = heads.heads * item.rows * item.kv_len;
    let fits = |out: &Option<&mut [f32]>| out.as_ref().is_none_or(|out| out.len() == size);
    assert!(fits(&scores) && fits(&probs));
    if size == 0 {
        return;
    }
    let items = std::slice::from_ref(item);
    let call = checked(heads, dtype, items, q);
    let outs = [scores, probs].map(|out| out.map(|out| SendPtr(out.as_mut_ptr())));
    match dtype {
        KvDtype::Float32 => capture::<f32>(&call, items, outs),
        KvDtype::Bfloat16 => capture::<bf16>(&call, items, outs),
        KvDtype::Int8 => capture::<i8>(&call, items, outs),
    }
}

/// [`attention_probs`] of the one item, whose outputs have the room.
fn capture<T: Element>(call: &Call<'_>, items: &[Item<'_>], outs: [Option<SendPtr<f32>>; 2]) {
    let split = Split::new(&call.heads, items);
    kernels::for_each(split.work, split.tiles.len(), |i| {
        let tile = &split.tiles[i];
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(Attend::<T> { call, tile, scratch, element: PhantomData });
            for v in 0..tile.queries.len() {
                let (r, h) = tile.row_and_head(&call.heads, v);
                let at = (h * tile.item.rows + r) * tile.item.kv_len;
                // SAFETY: the row of one head lies in the slice and belongs to this tile alone.
                let row = |out: SendPtr<f32>| unsafe {
                    std::slice::from_raw_parts_mut(out.get().add(at), tile.item.kv_len)
                };
                let [scores, probs] = outs.map(|out| out.map(row));
                dispatch(Capture::<T> { call, tile, v, scratch, scores, probs, element: PhantomData });
            }
        });
    });
}
