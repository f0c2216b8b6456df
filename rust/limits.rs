//! What the machine can do at most, measured and not looked up: operations that depend on nothing but themselves, and
//! a sum over memory that no cache holds. Benchmarks say by these what share of the machine they reach.

use std::hint::black_box;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Instant;

use crate::error::Result;
use crate::interrupt;
use crate::simd::{
    BYTES, LANES, Op, Simd, dispatch, dispatch_bfloat16, dispatch_bytes, has_bfloat16, prefetch,
};
use crate::threads;
use crate::weights::Piece;

/// What some threads together do in a second.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations in float32; a fused multiply-add counts as two, here and below.
    pub float32: f64,
    /// Operations on factors in bfloat16, with sums in float32.
    pub bfloat16: f64,
    /// Operations on bytes, codes of four bits and numbers with sign, with sums in 32 bits.
    pub int8: f64,
    /// Bytes read from memory.
    pub memory: f64,
}

/// Measures with so many threads, each kept to a processor of its own where the system lets us. Takes about a second,
/// and 512 MiB of memory meanwhile.
///
/// Errors: too little memory; Ctrl-C.
pub fn measure(threads: usize) -> Result<Limits> {
    let float32 = operations(threads, || dispatch(Chains::<false>));
    interrupt::check()?;
    // Without an instruction for it, products of bfloat16 are those of float32.
    let bfloat16 =
        if has_bfloat16() { operations(threads, || dispatch_bfloat16(Chains::<true>)) } else { float32 };
    interrupt::check()?;
    let int8 = operations(threads, || dispatch_bytes(ByteChains));
    interrupt::check()?;
    Ok(Limits { float32, bfloat16, int8, memory: memory(threads)? })
}

/// Times each is measured; the best counts.
const ROUNDS: usize = 16;

/// Steps of a measurement of arithmetic: about 10 ms.
const STEPS: usize = 1_000_000;

/// Multiply-adds in flight, of vectors that stay in registers; `BF16` counts two products a lane.
struct Chains<const BF16: bool>;

impl<const BF16: bool> Chains<BF16> {
    /// How many operations it did.
    #[inline(always)]
    fn chains<S: Simd, const N: usize>(s: S) -> f64 {
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-6)));
        let mut sums = [s.splat(1.0); N];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = if BF16 { s.dot_bfloat16(x, y, *sum) } else { s.fma(*sum, x, y) };
            }
        }
        for sum in sums {
            black_box(s.reduce_sum(sum));
        }
        (if BF16 { 4 } else { 2 } * LANES * N * STEPS) as f64
    }
}

impl<const BF16: bool> Op for Chains<BF16> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // As many as stay in registers, and enough to hide the latency of one.
        if S::WIDE { Self::chains::<S, 12>(s) } else { Self::chains::<S, 6>(s) }
    }
}

/// Products of bytes that depend on nothing but themselves: of codes of four bits, which take the least where sums of
/// pairs are 16 bits.
struct ByteChains;

impl ByteChains {
    /// `N` vectors by `R` rows; how many operations it did.
    #[inline(always)]
    fn chains<S: Simd, const N: usize, const R: usize>(s: S) -> f64 {
        const BITS: u32 = 4;
        let at_once = S::dots_at_once(BITS).min(8);
        // What stays the same would be multiplied once.
        let (a, b) = (black_box([[3; BYTES]; N]), black_box([[[1, -2, 3, 4]; R]; 64]));
        let mut codes = [s.bytes(&a[0]); N];
        for n in 1..N {
            codes[n] = s.bytes(&a[n]);
        }
        let mut sums = [[s.splat_i32(0); N]; R];
        for step in 0..STEPS / at_once {
            let mut dots = [[s.begin_dots(BITS, sums[0][0]); N]; R];
            for r in 0..R {
                for n in 0..N {
                    dots[r][n] = s.begin_dots(BITS, sums[r][n]);
                }
            }
            for i in 0..at_once {
                let rows = &b[(step * at_once + i) % b.len()];
                for r in 0..R {
                    let four = s.repeat_bytes(rows[r]);
                    for n in 0..N {
                        dots[r][n] = s.dot_bytes(BITS, dots[r][n], codes[n], four);
                    }
                }
            }
            for r in 0..R {
                for n in 0..N {
                    sums[r][n] = s.end_dots(BITS, sums[r][n], dots[r][n]);
                }
            }
        }
        for sum in sums.as_flattened() {
            black_box(s.reduce_sum(s.to_float(*sum)));
        }
        (2 * BYTES * N * R * (STEPS / at_once * at_once)) as f64
    }
}

impl Op for ByteChains {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // As [`Chains`].
        if S::WIDE { Self::chains::<S, 4, 3>(s) } else { Self::chains::<S, 1, 4>(s) }
    }
}

/// Operations a second of so many threads that each run `chains`, which says how many it did.
fn operations(threads: usize, chains: impl Fn() -> f64 + Sync) -> f64 {
    let done = chains() * threads as f64;
    done / fastest(threads, |_| _ = black_box(chains()))
}

/// Floats that are read; no cache of a processor holds them.
const FLOATS: usize = 128 << 20;

/// Bytes a second that so many threads read.
fn memory(threads: usize) -> Result<f64> {
    // Memory that was never written would be one page of zeros, from a cache.
    let mut data = Piece::new(FLOATS, "the measurement of memory")?;
    threads::for_each_mut(&mut data, 1 << 20, |_, part| part.fill(1.0));
    interrupt::check()?;
    let share = FLOATS / threads;
    let seconds = fastest(threads, |thread| {
        black_box(dispatch(Sum(&data[thread * share..][..share])));
    });
    Ok((threads * share * size_of::<f32>()) as f64 / seconds)
}

/// The sum of a slice, read in several streams side by side: of one alone, a processor asks for too few lines ahead.
struct Sum<'a>(&'a [f32]);

const STREAMS: usize = 4;
/// Floats of a stream between two looks at the others.
const STRIDE: usize = 4 * LANES;
/// How many floats before their use lines are asked for.
const AHEAD: usize = 1024;

impl Op for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); STREAMS];
        let len = self.0.len() / STREAMS / STRIDE * STRIDE;
        for at in (0..len).step_by(STRIDE) {
            for (stream, sum) in sums.iter_mut().enumerate() {
                let part = &self.0[stream * len + at..][..STRIDE];
                for line in 0..STRIDE / LANES {
                    prefetch(part.as_ptr().wrapping_add(AHEAD + line * LANES));
                    *sum = s.add(*sum, s.get(&part[line * LANES..]));
                }
            }
        }
        let mut sum = 0.0;
        for part in sums {
            sum += s.reduce_sum(part);
        }
        sum
    }
}

/// The shortest time in which so many threads, all at once, each did `job(thread)`.
fn fastest(threads: usize, job: impl Fn(usize) + Sync) -> f64 {
    let (barrier, best) = (Barrier::new(threads), Mutex::new(f64::INFINITY));
    threads::on_processors(threads, |thread| {
        for _ in 0..ROUNDS {
            barrier.wait();
            let start = Instant::now();
            job(thread);
            barrier.wait();
            let seconds = start.elapsed().as_secs_f64();
            let mut best = best.lock().unwrap_or_else(PoisonError::into_inner);
            if thread == 0 {
                *best = best.min(seconds);
            }
        }
    });
    best.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_is_summed() {
        let data: Vec<f32> = (0..4 * STREAMS * STRIDE).map(|i| (i % 7) as f32).collect();
        assert_eq!(dispatch(Sum(&data)), data.iter().sum::<f32>());
    }

    #[test]
    fn limits_are_those_of_a_machine() {
        let Limits { float32, bfloat16, int8, memory } = measure(threads::size()).unwrap();
        for limit in [float32, bfloat16, int8, memory] {
            assert!((1e7..1e15).contains(&limit), "{limit}");
        }
    }
}
