//! The gradients of attention, without the matrix of probabilities (Dao et al. 2022): tiles of 64 queries by 64
//! keys are computed again, as the exponentials of scores less the saved logarithm of their sum.
//!
//! With p = e^(score − log sum), dp = dout · vᵀ and Δ = Σ dout · out over a head,
//!
//! ```text
//! ds = p (dp − Δ) · scale,  dq = ds · k,  dk = dsᵀ · q,  dv = pᵀ · dout
//! ```
//!
//! The owner of a tile of queries walks its keys in order for dq, the owner of a tile of keys walks the heads
//! that share it and their queries in order for dk and dv. So a gradient has one owner, and the same bits
//! for any number of threads.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use super::rows::{Mask, PackPanels, Span};
use super::sums::finite_or_zero;
use super::tile::within;
use super::{BLOCK, HeadRows, Heads};
use crate::kernels::gemm::pack::{Encoding, Pack, Source};
use crate::kernels::gemm::{strip, strips};
use crate::kernels::product::{ByColumns, ByRows, Float32, Form, Packed, Product};
use crate::kernels::{self, Lines, vecmath};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::SendPtr;

/// [`HeadRows`] to write.
pub struct HeadRowsMut<'a> {
    data: SendPtr<f32>,
    len: usize,
    stride: usize,
    offset: usize,
    width: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> HeadRowsMut<'a> {
    /// `data [rows, stride]`, whose columns fall into groups of these widths from the first on: the heads of
    /// queries, keys and values that lie side by side.
    pub fn columns<const N: usize>(data: &'a mut [f32], stride: usize, widths: [usize; N]) -> [Self; N] {
        assert!(widths.iter().sum::<usize>() <= stride);
        let len = data.len();
        let data = SendPtr(data.as_mut_ptr());
        let mut offset = 0;
        widths.map(|width| {
            offset += width;
            HeadRowsMut { data, len, stride, offset: offset - width, width, lifetime: PhantomData }
        })
    }

    fn have(&self, rows: &Range<usize>, width: usize) -> bool {
        self.width == width && rows.end * self.stride <= self.len
    }

    /// The first element of a head.
    /// # Safety
    /// The row and the head are there.
    unsafe fn head(&self, row: usize, head: usize, head_dim: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.data.get().add(row * self.stride + self.offset + head * head_dim) }
    }
}

/// `q, k, v, dout, dq, dk, dv` as [`HeadRows`] says (k, v, dk, dv with `kv_heads`), `out [rows, heads ·
/// head_dim]` and `log_sums [rows, heads]` as [`attend_rows`](super::attend_rows) gave them: the gradients at
/// q, k and v from that at out. Rows of no span are left as they are.
#[allow(clippy::too_many_arguments)]
pub fn attend_backward(
    heads: Heads,
    mask: Mask,
    spans: &[Span],
    [q, k, v]: [HeadRows<'_>; 3],
    out: &[f32],
    log_sums: &[f32],
    dout: &[f32],
    [dq, dk, dv]: [HeadRowsMut<'_>; 3],
) {
    let Heads { heads: n, kv_heads, head_dim: d, .. } = heads;
    assert!(d > 0 && kv_heads > 0 && n.is_multiple_of(kv_heads) && out.len() == dout.len());
    let (width, kv_width) = (n * d, kv_heads * d);
    for span in spans {
        assert!(q.have(&span.queries, n, d) && dq.have(&span.queries, width));
        assert!(k.have(&span.keys, kv_heads, d) && v.have(&span.keys, kv_heads, d));
        assert!(dk.have(&span.keys, kv_width) && dv.have(&span.keys, kv_width));
        assert!(span.queries.end * width <= out.len() && span.queries.end * n <= log_sums.len());
    }
    let apart = |a: &Range<usize>, b: &Range<usize>| a.end <= b.start;
    let in_order =
        |pair: &[Span]| apart(&pair[0].queries, &pair[1].queries) && apart(&pair[0].keys, &pair[1].keys);
    assert!(spans.windows(2).all(in_order), "spans in the order of their rows");
    let dout = HeadRows { data: dout, stride: width, offset: 0 };
    let deltas = deltas(out, dout.data, d);
    let job = Job { heads, mask, q, k, v, dout, log_sums, deltas: &deltas, dq, dk, dv };

    let work: usize = spans.iter().map(|span| 2 * span.queries.len() * span.keys.len() * width).sum();
    // The last queries see most keys, the first keys are seen by most queries: they begin.
    let mut tiles = Vec::new();
    for span in spans {
        tiles.extend((0..span.queries.len()).step_by(BLOCK).rev().map(|first| (span, first)));
    }
    kernels::for_each(work, tiles.len() * n, |i| {
        let (span, first) = tiles[i / n];
        TILE.with_borrow_mut(|scratch| {
            dispatch(QueryTile { job: &job, span, first, head: i % n, scratch });
        });
    });
    tiles.clear();
    for span in spans {
        tiles.extend((0..span.keys.len()).step_by(BLOCK).map(|first| (span, first)));
    }
    kernels::for_each(work, tiles.len() * kv_heads, |i| {
        let (span, first) = tiles[i / kv_heads];
        TILE.with_borrow_mut(|scratch| {
            dispatch(KeyTile { job: &job, span, first, kv_head: i % kv_heads, scratch });
        });
    });
}

/// Σ dout · out over each head of each row: `[rows, heads]`.
fn deltas(out: &[f32], dout: &[f32], head_dim: usize) -> Vec<f32> {
    let mut deltas = vec![0.0; out.len() / head_dim];
    let chunk = kernels::rows_per_chunk(head_dim);
    crate::threads::for_each_mut(&mut deltas, chunk, |i, deltas| {
        let part = i * chunk * head_dim..(i * chunk + deltas.len()) * head_dim;
        dispatch(Dots { a: &out[part.clone()], b: &dout[part], out: deltas });
    });
    deltas
}

struct Dots<'a> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl Op for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.a.len() / self.out.len();
        for ((a, b), out) in self.a.chunks_exact(d).zip(self.b.chunks_exact(d)).zip(self.out) {
            let mut sum = s.splat(0.0);
            for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
                sum = s.fma(s.get(a), s.get(b), sum);
            }
            *out = s.reduce_sum(sum);
        }
    }
}

struct Job<'a> {
    heads: Heads,
    mask: Mask,
    q: HeadRows<'a>,
    k: HeadRows<'a>,
    v: HeadRows<'a>,
    dout: HeadRows<'a>,
    log_sums: &'a [f32],
    deltas: &'a [f32],
    dq: HeadRowsMut<'a>,
    dk: HeadRowsMut<'a>,
    dv: HeadRowsMut<'a>,
}

thread_local! {
    static TILE: RefCell<Lines> = const { RefCell::new(Lines::new()) };
}

/// The parts of a tile's working memory: q and dout as strips `[head_dim][rows]`, k and v as panels
/// `[4][head_dim][16]`, and p and ds `[64][64]`, a row for each query.
struct Tile<'a> {
    job: &'a Job<'a>,
    q: *mut f32,
    dout: *mut f32,
    k: *mut f32,
    v: *mut f32,
    p: *mut f32,
    ds: *mut f32,
}

impl<'a> Tile<'a> {
    fn new(job: &'a Job<'a>, scratch: &mut Lines) -> Self {
        let size = BLOCK * job.heads.head_dim;
        let (strips, scores) = scratch.floats(4 * size + 2 * BLOCK * BLOCK).split_at_mut(4 * size);
        let at = |i: usize| strips.as_ptr().wrapping_add(i * size).cast_mut();
        let score = |i: usize| scores.as_ptr().wrapping_add(i * BLOCK * BLOCK).cast_mut();
        Tile { job, q: at(0), dout: at(1), k: at(2), v: at(3), p: score(0), ds: score(1) }
    }

    /// # Safety
    /// The rows are queries of a span, at most 64.
    #[inline(always)]
    unsafe fn load_queries<S: Simd>(&self, s: S, rows: Range<usize>, head: usize) {
        let d = self.job.heads.head_dim;
        for (from, to) in [(self.job.q, self.q), (self.job.dout, self.dout)] {
            for i in 0..strips(rows.len()) {
                let strip = strip(i, rows.len());
                // SAFETY: the caller's rows; a strip has its own part of the room of 64 rows.
                let to = unsafe { to.add(strip.start * d) };
                s.vectorize(Pack {
                    from: Source {
                        at: from.of_head(rows.start + strip.start, head, d).as_ptr(),
                        lanes: strip.len(),
                        lane_stride: from.stride,
                        k: d,
                        k_stride: 1,
                    },
                    width: strip.len(),
                    encoding: Encoding::Float32,
                    to,
                    room: strip.len() * d,
                });
            }
        }
    }

    /// # Safety
    /// The rows are keys of a span, at most 64.
    #[inline(always)]
    unsafe fn load_keys<S: Simd>(&self, s: S, rows: Range<usize>, head: usize) {
        let head_dim = self.job.heads.head_dim;
        for (from, to) in [(self.job.k, self.k), (self.job.v, self.v)] {
            s.vectorize(PackPanels { from, rows: rows.clone(), head, head_dim, to });
        }
    }

    /// p and ds of what was loaded: `queries` of the span by the block of keys that begins at `first`.
    /// # Safety
    /// These queries of `head`, and these keys of its key-value head, were loaded.
    #[inline(always)]
    unsafe fn probabilities<S: Simd>(
        &self,
        s: S,
        span: &Span,
        queries: Range<usize>,
        head: usize,
        first: usize,
    ) {
        let Job { heads, mask, log_sums, deltas, .. } = self.job;
        let d = heads.head_dim;
        for i in 0..strips(queries.len()) {
            let strip = strip(i, queries.len());
            // The last query of a strip sees furthest.
            let last = span.seen(*mask, queries.start + strip.end - 1);
            let columns = within(&last, first).end.next_multiple_of(LANES);
            for (a, b, c) in [(self.q, self.k, self.p), (self.dout, self.v, self.ds)] {
                // SAFETY: the strip, the panels, and rows of `[64][64]`.
                unsafe {
                    Product {
                        rows: strip.len(),
                        columns,
                        k: d,
                        a: a.add(strip.start * d),
                        b,
                        b_panel: d * LANES,
                        b_k: LANES,
                        ahead: 0,
                        c: c.add(strip.start * BLOCK),
                        c_row: BLOCK,
                        accumulate: false,
                        bias: ptr::null(),
                    }
                    .run::<S, Packed, Float32>(s);
                }
            }
            for r in strip {
                let seen = within(&span.seen(*mask, queries.start + r), first);
                let at = (span.queries.start + queries.start + r) * heads.heads + head;
                let log_sum = s.splat(finite_or_zero(log_sums[at]));
                let (delta, scale) = (s.splat(deltas[at]), s.splat(heads.scale));
                for at in (0..BLOCK).step_by(LANES) {
                    let mask = s.lanes(seen.start.saturating_sub(at), seen.end.saturating_sub(at));
                    // SAFETY: 16 of row r of both.
                    unsafe {
                        let (p, ds) = (self.p.add(r * BLOCK + at), self.ds.add(r * BLOCK + at));
                        let score = s.mul(s.load(p), scale);
                        let probability = vecmath::exp(s, s.sub(score, log_sum));
                        let slope = s.mul(s.mul(probability, s.sub(s.load(ds), delta)), scale);
                        s.store(p, s.select(mask, probability, s.splat(0.0)));
                        s.store(ds, s.select(mask, slope, s.splat(0.0)));
                    }
                }
            }
        }
    }
}

/// Rows of a gradient that a tile owns.
#[derive(Clone, Copy)]
struct Owned {
    at: *mut f32,
    stride: usize,
}

impl Owned {
    /// `rows [64 or fewer]` of this += or = `a [rows, k]` · the rows of a head from `b` on. `ks` is the part of k
    /// that may be other than 0 for each strip of rows.
    /// # Safety
    /// The rows are this tile's; the k are rows of `b`, and columns or rows of `a`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn add<S: Simd, F: Form>(
        self,
        s: S,
        rows: usize,
        d: usize,
        a: *const f32,
        b: *const f32,
        b_stride: usize,
        accumulate: bool,
        ks: impl Fn(Range<usize>) -> Range<usize>,
    ) {
        let (a_row, a_k) = F::strides(rows);
        for i in 0..strips(rows) {
            let strip = strip(i, rows);
            let k = ks(strip.clone());
            // SAFETY: the caller's.
            unsafe {
                Product {
                    rows: strip.len(),
                    columns: d,
                    k: k.len(),
                    a: a.add(strip.start * a_row + k.start * a_k),
                    b: b.wrapping_add(k.start * b_stride),
                    b_panel: LANES,
                    b_k: b_stride,
                    ahead: 0,
                    c: self.at.add(strip.start * self.stride),
                    c_row: self.stride,
                    accumulate,
                    bias: ptr::null(),
                }
                .run::<S, F, Float32>(s);
            }
        }
    }
}

/// dq of up to 64 queries of a head.
struct QueryTile<'a> {
    job: &'a Job<'a>,
    span: &'a Span,
    first: usize,
    head: usize,
    scratch: &'a mut Lines,
}

impl Op for QueryTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let QueryTile { job, span, head, .. } = self;
        let (d, kv_head) = (job.heads.head_dim, head / (job.heads.heads / job.heads.kv_heads));
        let queries = self.first..span.queries.len().min(self.first + BLOCK);
        let row = span.queries.start + queries.start;
        let tile = Tile::new(job, self.scratch);
        let seen = |query: usize| span.seen(job.mask, query);
        let blocks = seen(queries.start).start / BLOCK..seen(queries.end - 1).end.div_ceil(BLOCK);
        // SAFETY: rows of the span; the queries' gradients are this tile's alone.
        unsafe {
            let dq = Owned { at: job.dq.head(row, head, d), stride: job.dq.stride };
            tile.load_queries(s, row..row + queries.len(), head);
            for block in blocks.clone() {
                let first = block * BLOCK;
                let keys = span.keys.start + first..span.keys.end.min(span.keys.start + first + BLOCK);
                let k = job.k.of_head(keys.start, kv_head, d).as_ptr();
                tile.load_keys(s, keys, kv_head);
                tile.probabilities(s, span, queries.clone(), head, first);
                let accumulate = block > blocks.start;
                dq.add::<S, ByRows>(s, queries.len(), d, tile.ds, k, job.k.stride, accumulate, |strip| {
                    0..within(&seen(queries.start + strip.end - 1), first).end
                });
            }
            if blocks.is_empty() {
                dq.add::<S, ByRows>(s, queries.len(), d, tile.ds, ptr::null(), 0, false, |_| 0..0);
            }
        }
    }
}

/// dk and dv of up to 64 keys of a key-value head.
struct KeyTile<'a> {
    job: &'a Job<'a>,
    span: &'a Span,
    first: usize,
    kv_head: usize,
    scratch: &'a mut Lines,
}

impl Op for KeyTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let KeyTile { job, span, first, kv_head, .. } = self;
        let (d, group) = (job.heads.head_dim, job.heads.heads / job.heads.kv_heads);
        let keys = first..span.keys.len().min(first + BLOCK);
        let row = span.keys.start + first;
        let tile = Tile::new(job, self.scratch);
        let seen = |query: usize| span.seen(job.mask, query);
        // SAFETY: rows of the span; the keys' gradients are this tile's alone.
        unsafe {
            let dk = Owned { at: job.dk.head(row, kv_head, d), stride: job.dk.stride };
            let dv = Owned { at: job.dv.head(row, kv_head, d), stride: job.dv.stride };
            tile.load_keys(s, row..row + keys.len(), kv_head);
            let mut accumulate = false;
            for head in kv_head * group..(kv_head + 1) * group {
                for start in (0..span.queries.len()).step_by(BLOCK) {
                    let queries = start..span.queries.len().min(start + BLOCK);
                    let (earliest, latest) = (seen(queries.start), seen(queries.end - 1));
                    if earliest.start >= keys.end || latest.end <= keys.start {
                        continue;
                    }
                    let query = span.queries.start + queries.start;
                    tile.load_queries(s, query..query + queries.len(), head);
                    tile.probabilities(s, span, queries.clone(), head, first);
                    // From the first query that sees any key of the strip.
                    let ks = |strip: Range<usize>| {
                        let sees = |query: &usize| seen(*query).end > keys.start + strip.start;
                        let first = queries.clone().find(sees).unwrap_or(queries.end);
                        first - queries.start..queries.len()
                    };
                    let (q, dout) =
                        (job.q.of_head(query, head, d).as_ptr(), job.dout.of_head(query, head, d).as_ptr());
                    let (n, strides) = (keys.len(), (job.q.stride, job.dout.stride));
                    dk.add::<S, ByColumns>(s, n, d, tile.ds, q, strides.0, accumulate, ks);
                    dv.add::<S, ByColumns>(s, n, d, tile.p, dout, strides.1, accumulate, ks);
                    accumulate = true;
                }
            }
            if !accumulate {
                for gradient in [dk, dv] {
                    let (n, nothing) = (keys.len(), ptr::null());
                    gradient.add::<S, ByColumns>(s, n, d, tile.p, nothing, 0, false, |_| 0..0);
                }
            }
        }
    }
}
