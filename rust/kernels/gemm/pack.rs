//! Packing: elements of up to 16 rows to vectors, one for each step of k.

use crate::simd::{LANES, Op, Simd, prefetch};

/// How many floats ahead of those that it packs a row is asked for: rows are more streams at once than the
/// machine foresees by itself.
const AHEAD: usize = 128;

/// Floats of a way of an L1 cache, 4 KiB. Rows so far apart share its sets, where asking ahead would drive
/// out what is needed now.
const WAY: usize = 1024;

/// What the numbers of an operand become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Float32, one a step.
    Float32,
    /// Two bfloat16 a step, in 32 bits, as [`Simd::dot_bfloat16`] takes them.
    Pairs,
    /// Bfloat16 as float32, one a step, in the order in which the instruction adds them: of each two the second first.
    Apart,
}

impl Encoding {
    /// The steps of some k.
    #[inline(always)]
    pub fn steps(self, k: usize) -> usize {
        match self {
            Encoding::Float32 => k,
            Encoding::Pairs => k.div_ceil(2),
            Encoding::Apart => k.next_multiple_of(2),
        }
    }
}

/// `lanes ≤ 16` rows over `k`.
pub struct Source {
    pub at: *const f32,
    pub lanes: usize,
    pub lane_stride: usize,
    pub k: usize,
    pub k_stride: usize,
}

/// `to [steps][width]`: element i of a step is what row i has there, in an [`Encoding`]; 0 past the last row and the last
/// k. `lanes ≤ width ≤ 16`. Whoever makes one vouches for the pointers, and that `room` floats from `to` on are its own, of
/// which those past its last step will be written later.
pub struct Pack {
    pub from: Source,
    pub width: usize,
    pub encoding: Encoding,
    pub to: *mut f32,
    pub room: usize,
}

impl Op for Pack {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the maker's.
        unsafe { if self.from.lane_stride == 1 { self.along_lanes(s) } else { self.along_k(s) } }
    }
}

impl Pack {
    /// Where the lanes of a step lie next to each other.
    #[inline(always)]
    unsafe fn along_lanes<S: Simd>(&self, s: S) {
        let Source { at, lanes, k, k_stride, .. } = self.from;
        // SAFETY: the maker's.
        unsafe {
            if self.encoding == Encoding::Float32 {
                for j in 0..k {
                    prefetch(at.wrapping_add(j * k_stride + AHEAD));
                    self.store(s, j, some(s, at.add(j * k_stride), lanes));
                }
                return;
            }
            for j in (0..k).step_by(2) {
                prefetch(at.wrapping_add(j * k_stride + AHEAD));
                prefetch(at.wrapping_add((j + 1) * k_stride + AHEAD));
                let low = some(s, at.add(j * k_stride), lanes);
                let next = if j + 1 < k { lanes } else { 0 };
                let high = some(s, at.wrapping_add((j + 1) * k_stride), next);
                self.store_two(s, j, low, high);
            }
        }
    }

    /// Where they do not: sixteen k of all lanes at a time, transposed.
    #[inline(always)]
    unsafe fn along_k<S: Simd>(&self, s: S) {
        let k = self.from.k;
        // SAFETY: the maker's.
        unsafe {
            for first in (0..k).step_by(LANES) {
                let count = LANES.min(k - first);
                let vectors = self.from.load(s, first, count);
                if self.encoding == Encoding::Float32 {
                    for j in 0..LANES {
                        if j < count {
                            self.store(s, first + j, vectors[j]);
                        }
                    }
                } else {
                    for j in 0..LANES / 2 {
                        if 2 * j < count {
                            self.store_two(s, first + 2 * j, vectors[2 * j], vectors[2 * j + 1]);
                        }
                    }
                }
            }
        }
    }

    /// K `k`, which is even, and the next as bfloat16.
    #[inline(always)]
    unsafe fn store_two<S: Simd>(&self, s: S, k: usize, low: S::F32, high: S::F32) {
        let pairs = s.bfloat16_pairs(low, high);
        // SAFETY: the maker's.
        unsafe {
            if self.encoding == Encoding::Pairs {
                self.store(s, k / 2, pairs);
            } else {
                let (low, high) = s.split_pairs(pairs);
                self.store(s, k, high);
                self.store(s, k + 1, low);
            }
        }
    }

    /// Steps come in order, so what a vector writes past its own is written over.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, step: usize, x: S::F32) {
        let at = step * self.width;
        // SAFETY: the maker's.
        unsafe {
            if at + LANES <= self.room {
                s.store(self.to.add(at), x);
            } else {
                s.store_first(self.to.add(at), self.width, x);
            }
        }
    }
}

impl Source {
    /// The vectors of `count ≤ 16` k from `first` on; zeros for the others.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, first: usize, count: usize) -> [S::F32; LANES] {
        let mut vectors = [s.splat(0.0); LANES];
        // SAFETY: the maker's: rows below `lanes`, k below `self.k`.
        unsafe {
            let at = self.at.add(first * self.k_stride);
            let ahead = !self.lane_stride.is_multiple_of(WAY);
            if self.k_stride == 1 {
                for i in 0..LANES {
                    if i < self.lanes {
                        if ahead {
                            prefetch(at.wrapping_add(i * self.lane_stride + AHEAD));
                        }
                        vectors[i] = some(s, at.add(i * self.lane_stride), count);
                    }
                }
                s.transpose(&mut vectors);
            } else {
                for j in 0..count {
                    let mut lanes = [0.0; LANES];
                    for (i, lane) in lanes.iter_mut().enumerate().take(self.lanes) {
                        *lane = *at.add(j * self.k_stride + i * self.lane_stride);
                    }
                    vectors[j] = s.get(&lanes);
                }
            }
        }
        vectors
    }
}

/// The first `n ≤ 16` of 16 floats.
#[inline(always)]
pub(super) unsafe fn some<S: Simd>(s: S, at: *const f32, n: usize) -> S::F32 {
    // SAFETY: the caller's.
    unsafe { if n == LANES { s.load(at) } else { s.load_first(at, n) } }
}
