//! The vector trait, one file per instruction set, and the only dispatch.
//!
//! A vector has 16 float lanes everywhere: one AVX-512 register, two AVX2 registers, or an array.
//! Every operation is defined lane by lane and rounds once, so that a kernel written over
//! [`Simd`] gives the same bits on every instruction set. (Only the sign and payload of a NaN may
//! differ: IEEE 754 leaves them open.)
//!
//! A kernel is an [`Op`]; [`dispatch`] compiles it once per instruction set and picks one at run
//! time. The environment variable `LLMCORE_ISA` forces one.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod mxcsr;
mod portable;

/// Float lanes of a vector.
pub const LANES: usize = 16;
/// Bytes of a vector, as wide as its floats.
pub const BYTES: usize = 64;

/// A vector of 16 float32 lanes and what kernels do with it.
///
/// # Safety of the pointer methods
/// `load` and `store` touch 16 floats from the pointer on, `load_first` and `store_first` touch
/// `n ≤ 16`; no alignment is needed.
pub trait Simd: Copy {
    /// 16 floats.
    type F32: Copy;
    /// 16 truth values.
    type Mask: Copy;
    /// 64 bytes.
    type Bytes: Copy;
    /// 16 integers of 32 bits.
    type I32: Copy;
    /// Sums of products of bytes on their way to 32 bits.
    type Dots: Copy;

    /// Whether 24 accumulators fit into registers (else 6).
    const WIDE: bool;

    /// Runs `op` on this instruction set as a function of its own, compiled once and not inlined
    /// into every kernel that uses it.
    fn vectorize<O: Op>(self, op: O) -> O::Output;

    fn splat(self, x: f32) -> Self::F32;

    /// # Safety
    /// `src` is valid for reading 16 floats.
    unsafe fn load(self, src: *const f32) -> Self::F32;

    /// The first `n` lanes from memory, 0 in the others.
    /// # Safety
    /// `src` is valid for reading `n ≤ 16` floats.
    unsafe fn load_first(self, src: *const f32, n: usize) -> Self::F32;

    /// # Safety
    /// `dst` is valid for writing 16 floats.
    unsafe fn store(self, dst: *mut f32, x: Self::F32);

    /// # Safety
    /// `dst` is valid for writing `n ≤ 16` floats.
    unsafe fn store_first(self, dst: *mut f32, n: usize, x: Self::F32);

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: b where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: b where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sqrt(self, a: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// The magnitude of `a` with the sign of `sign`.
    fn copysign(self, a: Self::F32, sign: Self::F32) -> Self::F32;

    /// a < b; false where either is NaN.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn is_nan(self, a: Self::F32) -> Self::Mask;
    /// True in the lanes `from ≤ lane < to`.
    fn lanes(self, from: usize, to: usize) -> Self::Mask;
    /// `a` where the mask is true, else `b`.
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;

    /// The bits of `a` plus the bits of `n` shifted left by 23, as integers: adds the low 9 bits of `n`
    /// to the sign and exponent of `a`.
    fn add_to_exponent(self, a: Self::F32, n: Self::F32) -> Self::F32;

    /// Lane j of vector i becomes lane i of vector j.
    fn transpose(self, rows: &mut [Self::F32; LANES]);

    /// Two bfloat16 a lane, as 32 bits that are no number: `low` rounded to nearest even in the lower half, `high` in
    /// the upper. Subnormal numbers become 0, as [`Simd::dot_bfloat16`] takes them.
    #[inline(always)]
    fn bfloat16_pairs(self, low: Self::F32, high: Self::F32) -> Self::F32 {
        emulated_bfloat16_pairs(self, low, high)
    }

    /// What [`Simd::bfloat16_pairs`] does with numbers that are normal, 0, infinite, or the plain NaN: adds
    /// half of what is cut off, and 1 less where the bit before is even, then keeps the upper 16 bits.
    fn round_pairs(self, low: Self::F32, high: Self::F32) -> Self::F32;

    /// sum + the products of both halves of `a` and `b`: first the upper, then the lower, rounded after each,
    /// with what is subnormal (`sum` and results) taken as 0. So does the instruction `vdpbf16ps` of AVX-512.
    #[inline(always)]
    fn dot_bfloat16(self, a: Self::F32, b: Self::F32, sum: Self::F32) -> Self::F32 {
        emulated_dot_bfloat16(self, a, b, sum)
    }

    /// Of each bfloat16 its exponent as it is stored, times 128 and less 1, or what there was if that is less. That of 0
    /// becomes the greatest number of 16 bits; there must be none that is subnormal.
    fn least_exponents(self, least: Self::Bytes, pairs: Self::F32) -> Self::Bytes;

    /// The two bfloat16 of each lane as float32, the lower half first.
    fn split_pairs(self, a: Self::F32) -> (Self::F32, Self::F32);

    /// The one fixed tree: lane i takes lane i + 8, then i + 4, i + 2, i + 1.
    fn reduce_sum(self, a: Self::F32) -> f32;
    /// The same tree with [`Simd::max`].
    fn reduce_max(self, a: Self::F32) -> f32;

    fn splat_i32(self, x: i32) -> Self::I32;
    /// To lane i of `sum` the products of bytes 4 i … 4 i + 3 of `a`, taken without sign and of `bits` bits, and of `b`,
    /// with sign and within ±127; exact if the result fits. They are begun, added to, at most [`Simd::dots_at_once`]
    /// times, and ended with the same `sum`.
    fn begin_dots(self, bits: u32, sum: Self::I32) -> Self::Dots;
    /// See [`Simd::begin_dots`].
    fn dot_bytes(self, bits: u32, dots: Self::Dots, a: Self::Bytes, b: Self::Bytes) -> Self::Dots;
    /// See [`Simd::begin_dots`].
    fn end_dots(self, bits: u32, sum: Self::I32, dots: Self::Dots) -> Self::I32;
    /// Whether [`Simd::dot_bytes`] takes bytes of 8 bits as 128 less.
    const CENTRED: bool;
    /// How many products of so many bits may be added up before they are ended, if not any number.
    fn dots_at_once(bits: u32) -> usize;
    /// Rounded to nearest even.
    fn to_float(self, x: Self::I32) -> Self::F32;
    /// To nearest even; the least integer where that is no integer of 32 bits.
    fn round(self, x: Self::F32) -> Self::I32;
    /// Of lanes within ±127.
    fn signed_bytes(self, x: Self::I32) -> [i8; LANES];
    /// 16 float16, little-endian.
    fn halves(self, x: &[u8; 2 * LANES]) -> Self::F32;
    /// 16 bfloat16, little-endian: the upper halves of the float32.
    fn bfloat16(self, x: &[u8; 2 * LANES]) -> Self::F32;
    fn floats_of_bytes(self, x: &[u8; LANES]) -> Self::F32;
    fn floats_of_signed_bytes(self, x: &[u8; LANES]) -> Self::F32;
    /// The lower and the upper four bits of each byte.
    fn floats_of_nibbles(self, x: &[u8; LANES]) -> (Self::F32, Self::F32);

    fn bytes(self, block: &[u8; BYTES]) -> Self::Bytes;
    fn store_bytes(self, block: &mut [u8; BYTES], x: Self::Bytes);
    /// The same four bytes sixteen times.
    fn repeat_bytes(self, four: [i8; 4]) -> Self::Bytes;
    /// Of each byte the bits of `mask` after shifting right by `n < 8`.
    fn shift_right_bytes(self, x: Self::Bytes, n: u32, mask: u8) -> Self::Bytes;
    /// Of each byte the bits of `mask` after shifting left by `n < 8`.
    fn shift_left_bytes(self, x: Self::Bytes, n: u32, mask: u8) -> Self::Bytes;
    fn or_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte, which is less than 16, as an index.
    fn look_up(self, table: &[u8; LANES], x: Self::Bytes) -> Self::Bytes;
    /// Bit i is set if `first ≤ byte i ≤ last`.
    fn between(self, bytes: Self::Bytes, first: u8, last: u8) -> u64;
    /// Writes `base + i` for each bit i that is set, in order, and anything behind them; returns their number.
    #[inline(always)]
    fn places_of_bits(self, mut bits: u64, base: usize, places: &mut [usize; BYTES]) -> usize {
        let count = bits.count_ones() as usize;
        for place in &mut places[..count] {
            *place = base + bits.trailing_zeros() as usize;
            bits &= bits - 1;
        }
        count
    }

    /// Up to 16 floats, 0 in the lanes past the end of `src`.
    #[inline(always)]
    fn get(self, src: &[f32]) -> Self::F32 {
        // SAFETY: the slice holds as many floats as are read.
        unsafe {
            if src.len() >= LANES {
                self.load(src.as_ptr())
            } else {
                self.load_first(src.as_ptr(), src.len())
            }
        }
    }

    /// The first `dst.len()` lanes, at most 16.
    #[inline(always)]
    fn put(self, dst: &mut [f32], x: Self::F32) {
        // SAFETY: the slice holds as many floats as are written.
        unsafe {
            if dst.len() >= LANES {
                self.store(dst.as_mut_ptr(), x)
            } else {
                self.store_first(dst.as_mut_ptr(), dst.len(), x)
            }
        }
    }
}

/// Asks for the line of `at` in the cache, whatever the address: a hint that changes no result.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not access memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
}

/// Four bytes as the bits of one number.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn word(four: [i8; 4]) -> i32 {
    i32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8])
}

/// How many times two products of bytes, of `bits` bits without sign and of at most 127 with, may be added up in 16
/// bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
const fn pairs_at_once(bits: u32) -> usize {
    i16::MAX as usize / (2 * 127 * ((1 << bits) - 1))
}

/// What is subnormal as 0 of the same sign.
#[inline(always)]
pub fn flush<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.select(s.lt(s.abs(x), s.splat(f32::MIN_POSITIVE)), s.copysign(s.splat(0.0), x), x)
}

/// Every NaN as the plain one: rounding the bits of another as a number could carry it into an infinity.
#[inline(always)]
fn without_payload<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.select(s.is_nan(x), s.splat(f32::NAN), x)
}

/// [`Simd::bfloat16_pairs`] where there is no instruction for it.
#[inline(always)]
fn emulated_bfloat16_pairs<S: Simd>(s: S, low: S::F32, high: S::F32) -> S::F32 {
    s.round_pairs(without_payload(s, flush(s, low)), without_payload(s, flush(s, high)))
}

/// [`Simd::dot_bfloat16`] where there is no instruction for it.
#[inline(always)]
fn emulated_dot_bfloat16<S: Simd>(s: S, a: S::F32, b: S::F32, sum: S::F32) -> S::F32 {
    let ((a_low, a_high), (b_low, b_high)) = (s.split_pairs(a), s.split_pairs(b));
    let sum = flush(s, s.fma(a_high, b_high, flush(s, sum)));
    flush(s, s.fma(a_low, b_low, sum))
}

/// A computation over vectors. Mark `run`, and all that it calls, `#[inline(always)]`: only what is
/// inlined into the trampolines of [`dispatch_on`] is compiled for their instruction set.
pub trait Op {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// An instruction set that this machine has: values come from [`available`] and [`current`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

impl Isa {
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// The instruction set of that name, if this machine has it.
    pub fn from_name(name: &str) -> Result<Isa> {
        available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = available().into_iter().map(Isa::name).collect();
            Error::argument("LLMCORE_ISA", format!("{name:?}"), format!("one of {}", names.join(", ")))
        })
    }
}

/// The instruction sets of this machine, the fastest last.
pub fn available() -> Vec<Isa> {
    let mut found = vec![Isa(Kind::Portable)];
    #[cfg(target_arch = "x86_64")]
    {
        // Every processor with AVX2 has BMI too, and every one with AVX-512 BW has DQ and AVX2.
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
        {
            found.push(Isa(Kind::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                found.push(Isa(Kind::Avx512));
            }
        }
    }
    found
}

/// Index into [`available`] of the set in use, plus one; 0 until it is chosen.
static CURRENT: AtomicU8 = AtomicU8::new(0);

/// Chooses the instruction set by `LLMCORE_ISA`, or the fastest; called at import, so that a bad
/// value is an error there.
pub fn init() -> Result<()> {
    match std::env::var_os("LLMCORE_ISA") {
        Some(name) => set(Isa::from_name(&name.to_string_lossy())?),
        None => set(fastest()),
    }
    Ok(())
}

/// Makes all later kernels of the process run on `isa`. The bits of their results do not change.
pub fn set(isa: Isa) {
    CURRENT.store(isa.0 as u8 + 1, Ordering::Relaxed);
}

/// The instruction set in use.
#[inline]
pub fn current() -> Isa {
    match CURRENT.load(Ordering::Relaxed) {
        0 => {
            // A bad value is reported by `init`; Rust programs that skip it get the default.
            if init().is_err() {
                set(fastest());
            }
            current()
        }
        1 => Isa(Kind::Portable),
        #[cfg(target_arch = "x86_64")]
        2 => Isa(Kind::Avx2),
        #[cfg(target_arch = "x86_64")]
        3 => Isa(Kind::Avx512),
        _ => unreachable!("only set() writes here"),
    }
}

fn fastest() -> Isa {
    available().last().copied().unwrap_or(Isa(Kind::Portable))
}

/// Runs `op` on the instruction set in use.
#[inline]
pub fn dispatch<O: Op>(op: O) -> O::Output {
    dispatch_on(current(), op)
}

/// Runs `op` on `isa`.
#[inline]
pub fn dispatch_on<O: Op>(isa: Isa, op: O) -> O::Output {
    let _float_state = mxcsr::Default::enter();
    run_on(isa, op)
}

/// Runs an `op` without floats on the instruction set in use: to look at their control register would take a short
/// one longer than what it does.
#[inline]
pub fn dispatch_integers<O: Op>(op: O) -> O::Output {
    run_on(current(), op)
}

#[inline]
fn run_on<O: Op>(isa: Isa, op: O) -> O::Output {
    match isa.0 {
        Kind::Portable => op.run(portable::Portable),
        // SAFETY: an `Isa` exists only for what `available` detected.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { avx2::run(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { avx512::run::<_, { avx512::PLAIN }>(op) },
    }
}

/// Whether [`Simd::dot_bfloat16`] is an instruction on the instruction set in use.
#[inline]
pub fn has_bfloat16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return current().0 == Kind::Avx512 && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Runs an `op` over bfloat16 on the instruction set in use: AVX-512 has an instruction for
/// [`Simd::dot_bfloat16`] on some machines, which gives the same bits.
#[inline]
pub fn dispatch_bfloat16<O: Op>(op: O) -> O::Output {
    #[cfg(target_arch = "x86_64")]
    if has_bfloat16() {
        let _float_state = mxcsr::Default::enter();
        // SAFETY: both are detected.
        return unsafe { avx512::run::<_, { avx512::BF16 }>(op) };
    }
    dispatch(op)
}

/// Runs an `op` over bytes on the instruction set in use: AVX-512 has an instruction for [`Simd::dot_bytes`] on some
/// machines.
#[inline]
pub fn dispatch_bytes<O: Op>(op: O) -> O::Output {
    #[cfg(target_arch = "x86_64")]
    if current().0 == Kind::Avx512 && is_x86_feature_detected!("avx512vnni") {
        let _float_state = mxcsr::Default::enter();
        // SAFETY: both are detected.
        return unsafe { avx512::run::<_, { avx512::VNNI }>(op) };
    }
    dispatch(op)
}

#[cfg(test)]
mod tests;
