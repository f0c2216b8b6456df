//! Functions over slices. Shapes come first in each doc comment; all floats are float32, all
//! matrices row-major and contiguous unless a stride is named.
//!
//! A kernel computes the same bits whatever the number of rows beside a row, the number of threads,
//! and the instruction set: a lane owns an output element and walks the inner dimension in order;
//! a reduction over a row has 16 partial sums and one fixed tree. Slices of the wrong length are a
//! mistake of the calling code and panic; the callers check what comes from outside.

// An index that runs over several arrays at once reads better than zipped iterators.
#![allow(clippy::needless_range_loop)]

pub mod activation;
pub mod attention;
mod dropout;
mod embedding;
mod gemm;
mod loss;
mod matrix;
mod norm;
pub mod optimizer;
mod product;
mod quantized;
mod rope;
mod softmax;
mod sums;
pub mod vecmath;

pub use dropout::{RowKey, dropout};
pub use embedding::add_to_rows;
pub use gemm::{Expanded, Factor, Precision, gemm, gemm_add};
pub use loss::{IGNORED, cross_entropy};
pub use matrix::{Matrix, MatrixMut};
pub use norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use rope::{rope, rope_backward};
pub use softmax::{log_softmax, log_sum_exp, softmax};
pub use sums::{add, add_row_sums, clear};

use std::slice::{from_raw_parts, from_raw_parts_mut};

use crate::simd::LANES;
use crate::threads;

/// Elements of a row-wise kernel that are worth a chunk of their own: some 10 µs of work.
const CHUNK: usize = 16 << 10;

/// Multiplications that are worth waking the pool for: some 2 µs of work.
const SMALL: usize = 64 << 10;

/// `threads::for_each`, on the calling thread alone where there is little to do.
fn for_each(multiplications: usize, chunks: usize, job: impl Fn(usize) + Sync) {
    if multiplications < SMALL {
        threads::with_limit(Some(1), || threads::for_each(chunks, job));
    } else {
        threads::for_each(chunks, job);
    }
}

/// Floats that begin at a line of the cache, kept from call to call.
#[derive(Default)]
struct Lines(Vec<Line>);

#[derive(Clone)]
#[repr(align(64))]
struct Line {
    _floats: [f32; LANES],
}

impl Lines {
    const fn new() -> Self {
        Lines(Vec::new())
    }

    /// `len` floats, which may hold anything.
    fn floats(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line { _floats: [0.0; LANES] });
        }
        // SAFETY: that many floats and more, and nothing else, are in the lines.
        unsafe { from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }

    /// The first `len` of the floats that were asked for.
    fn get(&self, len: usize) -> &[f32] {
        assert!(len <= self.0.len() * LANES);
        // SAFETY: as above.
        unsafe { from_raw_parts(self.0.as_ptr().cast(), len) }
    }
}

/// How many rows of `width` make a chunk.
fn rows_per_chunk(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}
