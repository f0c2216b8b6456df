//! AVX-512: a vector is one register, a mask is a mask register.

use std::arch::x86_64::*;

use super::{BYTES, Op, Simd};

/// What a machine may have beside AVX-512 F, DQ and BW, and what an op makes use of.
pub const PLAIN: u8 = 0;
pub const BF16: u8 = 1;
pub const VNNI: u8 = 2;

/// Exists only inside [`run`], where the instruction set is known to be there, with `EXTRA`.
#[derive(Clone, Copy)]
pub struct Avx512<const EXTRA: u8>(());

/// # Safety
/// The machine has AVX-512 F, DQ and BW, FMA, F16C, BMI 1 and 2, and the `EXTRA`.
#[inline(always)]
pub unsafe fn run<O: Op, const EXTRA: u8>(op: O) -> O::Output {
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn plain<O: Op>(op: O) -> O::Output {
        op.run(Avx512::<PLAIN>(()))
    }
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn bf16<O: Op>(op: O) -> O::Output {
        op.run(Avx512::<BF16>(()))
    }
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vnni,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn vnni<O: Op>(op: O) -> O::Output {
        op.run(Avx512::<VNNI>(()))
    }
    // SAFETY: the caller vouches for the features.
    unsafe {
        match EXTRA {
            BF16 => bf16(op),
            VNNI => vnni(op),
            _ => plain(op),
        }
    }
}

/// Of 32 numbers the first, the seventeenth, the second, and so on.
const WEAVE: [u16; 32] = {
    let mut indices = [0; 32];
    let mut i = 0;
    while i < 32 {
        indices[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    indices
};

/// The upper half of each lane rounded to nearest even, as a number; the lower holds anything.
/// # Safety
/// The machine has AVX-512 F.
#[inline(always)]
unsafe fn rounded(x: __m512) -> __m512i {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)))
    }
}

/// The lowest `n` bits.
#[inline(always)]
fn below(n: usize) -> __mmask16 {
    if n >= 16 { 0xFFFF } else { (1u16 << n) - 1 }
}

impl<const EXTRA: u8> Avx512<EXTRA> {
    /// Whether products of bytes of so many bits are added up in pairs of 16 bits.
    #[inline(always)]
    fn in_16_bits(bits: u32) -> bool {
        EXTRA != VNNI && bits < 8
    }
}

// SAFETY (all blocks): `Avx512` values exist only where AVX-512 F, DQ and BW are available, and what the
// parameter says; pointers are vouched for by the callers of the unsafe methods, and a masked
// lane is not accessed. The vector types that `transmute` converts are 64 bytes of any bits.
impl<const EXTRA: u8> Simd for Avx512<EXTRA> {
    type F32 = __m512;
    type Mask = __mmask16;
    type Bytes = __m512i;
    type I32 = __m512i;
    type Dots = __m512i;

    const WIDE: bool = true;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        unsafe { run::<O, EXTRA>(op) }
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
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
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

    /// Pairs of rows are woven by one lane, then by two; then quarters of a vector move as wholes.
    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; 16]) {
        unsafe {
            for i in 0..8 {
                let (a, b) = (rows[2 * i], rows[2 * i + 1]);
                (rows[2 * i], rows[2 * i + 1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            // Quarter q of vector 4 g + i is then column 4 q + i of rows 4 g … 4 g + 3.
            for g in 0..4 {
                let [a, b, c, d] = [rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]];
                let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                let (c, d) = (_mm512_castps_pd(c), _mm512_castps_pd(d));
                rows[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                rows[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                rows[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                rows[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            for i in 0..4 {
                let [a, b, c, d] = [rows[i], rows[4 + i], rows[8 + i], rows[12 + i]];
                // Quarters 0 and 1 of two groups of rows, and quarters 2 and 3.
                let low_ab = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let low_cd = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
                let high_ab = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                let high_cd = _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d);
                rows[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low_ab, low_cd);
                rows[4 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low_ab, low_cd);
                rows[8 + i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high_ab, high_cd);
                rows[12 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high_ab, high_cd);
            }
        }
    }

    #[inline(always)]
    fn bfloat16_pairs(self, low: __m512, high: __m512) -> __m512 {
        if EXTRA == BF16 {
            use std::mem::transmute;
            unsafe {
                // Sixteen lower halves, then sixteen upper ones; subnormal numbers are taken as 0 here too.
                let rounded = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(
                    _mm512_loadu_si512(WEAVE.as_ptr().cast()),
                    rounded,
                ))
            }
        } else {
            super::emulated_bfloat16_pairs(self, low, high)
        }
    }

    #[inline(always)]
    fn round_pairs(self, low: __m512, high: __m512) -> __m512 {
        unsafe {
            let low = _mm512_srli_epi32::<16>(rounded(low));
            let high = _mm512_and_si512(rounded(high), _mm512_set1_epi32(!0xFFFF));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }

    #[inline(always)]
    fn least_exponents(self, least: __m512i, pairs: __m512) -> __m512i {
        unsafe {
            let exponents = _mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi16(0x7F80));
            _mm512_min_epu16(least, _mm512_sub_epi16(exponents, _mm512_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn split_pairs(self, a: __m512) -> (__m512, __m512) {
        unsafe {
            let bits = _mm512_castps_si512(a);
            let high = _mm512_and_si512(bits, _mm512_set1_epi32(!0xFFFF));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)), _mm512_castsi512_ps(high))
        }
    }

    #[inline(always)]
    fn dot_bfloat16(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        if EXTRA == BF16 {
            use std::mem::transmute;
            unsafe {
                _mm512_dpbf16_ps(sum, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b))
            }
        } else {
            super::emulated_dot_bfloat16(self, a, b, sum)
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
    fn splat_i32(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }

    const CENTRED: bool = false;

    #[inline(always)]
    fn begin_dots(self, bits: u32, sum: __m512i) -> __m512i {
        if Self::in_16_bits(bits) { self.splat_i32(0) } else { sum }
    }

    #[inline(always)]
    fn dot_bytes(self, bits: u32, dots: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe {
            if EXTRA == VNNI {
                _mm512_dpbusd_epi32(dots, a, b)
            } else if Self::in_16_bits(bits) {
                _mm512_add_epi16(dots, _mm512_maddubs_epi16(a, b))
            } else {
                // Even bytes and odd bytes as 16 bits each.
                let even_a = _mm512_and_si512(a, _mm512_set1_epi16(0xFF));
                let even_b = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
                let (odd_a, odd_b) = (_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
                let even = _mm512_madd_epi16(even_a, even_b);
                _mm512_add_epi32(dots, _mm512_add_epi32(even, _mm512_madd_epi16(odd_a, odd_b)))
            }
        }
    }

    #[inline(always)]
    fn end_dots(self, bits: u32, sum: __m512i, dots: __m512i) -> __m512i {
        if !Self::in_16_bits(bits) {
            return dots;
        }
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(dots, _mm512_set1_epi16(1))) }
    }

    #[inline(always)]
    fn dots_at_once(bits: u32) -> usize {
        if Self::in_16_bits(bits) { super::pairs_at_once(bits) } else { usize::MAX }
    }

    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(x) }
    }

    #[inline(always)]
    fn signed_bytes(self, x: __m512i) -> [i8; 16] {
        unsafe { std::mem::transmute::<__m128i, [i8; 16]>(_mm512_cvtepi32_epi8(x)) }
    }

    #[inline(always)]
    fn halves(self, x: &[u8; 32]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn bfloat16(self, x: &[u8; 32]) -> __m512 {
        unsafe {
            let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
        }
    }

    #[inline(always)]
    fn floats_of_bytes(self, x: &[u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn floats_of_signed_bytes(self, x: &[u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn floats_of_nibbles(self, x: &[u8; 16]) -> (__m512, __m512) {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes)))
        }
    }

    #[inline(always)]
    fn bytes(self, block: &[u8; BYTES]) -> __m512i {
        unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_bytes(self, block: &mut [u8; BYTES], x: __m512i) {
        unsafe { _mm512_storeu_si512(block.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn repeat_bytes(self, four: [i8; 4]) -> __m512i {
        unsafe { _mm512_set1_epi32(super::word(four)) }
    }

    #[inline(always)]
    fn shift_right_bytes(self, x: __m512i, n: u32, mask: u8) -> __m512i {
        unsafe {
            let shifted = _mm512_srl_epi16(x, _mm_cvtsi32_si128(n as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8((mask & (0xFF >> n)) as i8))
        }
    }

    #[inline(always)]
    fn shift_left_bytes(self, x: __m512i, n: u32, mask: u8) -> __m512i {
        unsafe {
            let shifted = _mm512_sll_epi16(x, _mm_cvtsi32_si128(n as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8((mask & (0xFF << n) as u8) as i8))
        }
    }

    #[inline(always)]
    fn or_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], x: __m512i) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, x)
        }
    }

    #[inline(always)]
    fn between(self, bytes: __m512i, first: u8, last: u8) -> u64 {
        unsafe {
            let from_first = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
            _mm512_cmple_epu8_mask(from_first, _mm512_set1_epi8(last.wrapping_sub(first) as i8))
        }
    }

    #[inline(always)]
    fn places_of_bits(self, bits: u64, base: usize, places: &mut [usize; BYTES]) -> usize {
        let mut count = 0;
        for quarter in 0..4 {
            let set = (bits >> (16 * quarter)) as __mmask16;
            unsafe {
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let places_of_lanes = _mm512_or_si512(lanes, _mm512_set1_epi32(16 * quarter));
                let found = _mm512_maskz_compress_epi32(set, places_of_lanes);
                let base = _mm512_set1_epi64(base as i64);
                let low = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(found));
                let high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<1>(found));
                // The quarters before this one took at most 16 places each, so 16 more are there.
                let room = places.as_mut_ptr().add(count);
                _mm512_storeu_si512(room.cast(), _mm512_add_epi64(low, base));
                _mm512_storeu_si512(room.add(8).cast(), _mm512_add_epi64(high, base));
            }
            count += set.count_ones() as usize;
        }
        count
    }
}
