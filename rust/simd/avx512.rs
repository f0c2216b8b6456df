//! AVX-512: a vector is one register, a mask is a mask register.

use std::arch::x86_64::*;

use super::{BYTES, Op, Simd};

/// Exists only inside [`run`], where the instruction set is known to be there.
#[derive(Clone, Copy)]
pub struct Avx512(());

/// # Safety
/// The machine has AVX-512 F, DQ and BW, FMA, BMI 1 and 2.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx2,fma,bmi1,bmi2")]
pub unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run(Avx512(()))
}

/// The lowest `n` bits.
#[inline(always)]
fn below(n: usize) -> __mmask16 {
    if n >= 16 { 0xFFFF } else { (1u16 << n) - 1 }
}

// SAFETY (all blocks): `Avx512` values exist only where AVX-512 F, DQ and BW are available; pointers
// are vouched for by the callers of the unsafe methods, and a masked lane is not accessed.
impl Simd for Avx512 {
    type F32 = __m512;
    type Mask = __mmask16;
    type Bytes = __m512i;

    const WIDE: bool = true;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        unsafe { run(op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(src) }
    }

    #[inline(always)]
    unsafe fn load_first(self, src: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(below(n), src) }
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(dst, x) }
    }

    #[inline(always)]
    unsafe fn store_first(self, dst: *mut f32, n: usize, x: __m512) {
        unsafe { _mm512_mask_storeu_ps(dst, below(n), x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    fn copysign(self, a: __m512, sign: __m512) -> __m512 {
        unsafe {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, a), _mm512_and_ps(bit, sign))
        }
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }

    #[inline(always)]
    fn is_nan(self, a: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a) }
    }

    #[inline(always)]
    fn lanes(self, from: usize, to: usize) -> __mmask16 {
        below(to) & !below(from)
    }

    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }

    #[inline(always)]
    fn add_to_exponent(self, a: __m512, n: __m512) -> __m512 {
        unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shifted))
        }
    }

    #[inline(always)]
    fn reduce_sum(self, a: __m512) -> f32 {
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            super::avx2::reduce_sum(a)
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        unsafe {
            let a = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            super::avx2::reduce_max(a)
        }
    }

    #[inline(always)]
    fn bytes(self, block: &[u8; BYTES]) -> __m512i {
        unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
    }

    #[inline(always)]
    fn between(self, bytes: __m512i, first: u8, last: u8) -> u64 {
        unsafe {
            let from_first = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
            _mm512_cmple_epu8_mask(from_first, _mm512_set1_epi8(last.wrapping_sub(first) as i8))
        }
    }
}
