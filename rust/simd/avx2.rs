//! AVX2 with FMA: a vector is two registers, the low lanes first.

use std::arch::x86_64::*;

use super::{BYTES, Op, Simd};

/// Exists only inside [`run`], where the instruction set is known to be there.
#[derive(Clone, Copy)]
pub struct Avx2(());

/// # Safety
/// The machine has AVX2, FMA, F16C, BMI 1 and 2.
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
pub unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run(Avx2(()))
}

type F32 = [__m256; 2];

/// The last three steps of the fixed tree, over 8 lanes.
/// # Safety
/// The machine has AVX.
#[inline(always)]
pub unsafe fn reduce_sum(a: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX.
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}

/// # Safety
/// The machine has AVX.
#[inline(always)]
pub unsafe fn reduce_max(a: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX.
    unsafe {
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}

/// Transposes eight vectors of eight: pairs of rows are woven by one lane, then by two, then by four.
/// # Safety
/// The machine has AVX.
#[inline(always)]
unsafe fn transpose8(r: &mut [__m256; 8]) {
    // SAFETY: the caller vouches for AVX.
    unsafe {
        for i in 0..4 {
            let (a, b) = (r[2 * i], r[2 * i + 1]);
            (r[2 * i], r[2 * i + 1]) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        }
        // Half h of vector 4 g + i is then column 4 h + i of rows 4 g … 4 g + 3.
        for g in 0..2 {
            let (a, b) = (_mm256_castps_pd(r[4 * g]), _mm256_castps_pd(r[4 * g + 1]));
            let (c, d) = (_mm256_castps_pd(r[4 * g + 2]), _mm256_castps_pd(r[4 * g + 3]));
            r[4 * g] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
            r[4 * g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
            r[4 * g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
            r[4 * g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
        }
        for i in 0..4 {
            let (a, b) = (r[i], r[4 + i]);
            r[i] = _mm256_permute2f128_ps::<0x20>(a, b);
            r[4 + i] = _mm256_permute2f128_ps::<0x31>(a, b);
        }
    }
}

/// The upper half of each lane rounded to nearest even, as a number; the lower holds anything.
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn rounded(x: __m256) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)))
    }
}

/// All bits set in the lanes `from ≤ lane < to` of the half that starts at lane `first`.
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn half_mask(from: usize, to: usize, first: i32) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let lane = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(to.min(16) as i32), lane);
        let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(from.min(16) as i32), lane);
        _mm256_andnot_si256(before, below)
    }
}

/// To each lane of `sum` four products of bytes of `a`, less 128, and of `b`: of the magnitudes of the former, and of the
/// latter with their signs.
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn dot_centred_bytes(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let a = _mm256_xor_si256(a, _mm256_set1_epi8(i8::MIN));
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

// SAFETY (all blocks): `Avx2` values exist only where AVX2 and FMA are available; pointers are
// vouched for by the callers of the unsafe methods, and a masked lane is not accessed.
impl Simd for Avx2 {
    type F32 = F32;
    type Mask = [__m256; 2];
    type Bytes = [__m256i; 2];
    type I32 = [__m256i; 2];
    type Dots = [__m256i; 2];

    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        unsafe { run(op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> F32 {
        unsafe { [_mm256_loadu_ps(src), _mm256_loadu_ps(src.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_first(self, src: *const f32, n: usize) -> F32 {
        unsafe {
            [
                _mm256_maskload_ps(src, half_mask(0, n, 0)),
                _mm256_maskload_ps(src.wrapping_add(8), half_mask(0, n, 8)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, x: F32) {
        unsafe {
            _mm256_storeu_ps(dst, x[0]);
            _mm256_storeu_ps(dst.add(8), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, dst: *mut f32, n: usize, x: F32) {
        unsafe {
            _mm256_maskstore_ps(dst, half_mask(0, n, 0), x[0]);
            _mm256_maskstore_ps(dst.wrapping_add(8), half_mask(0, n, 8), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: F32, b: F32, c: F32) -> F32 {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sqrt(self, a: F32) -> F32 {
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }

    #[inline(always)]
    fn abs(self, a: F32) -> F32 {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }

    #[inline(always)]
    fn copysign(self, a: F32, sign: F32) -> F32 {
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            [
                _mm256_or_ps(_mm256_andnot_ps(bit, a[0]), _mm256_and_ps(bit, sign[0])),
                _mm256_or_ps(_mm256_andnot_ps(bit, a[1]), _mm256_and_ps(bit, sign[1])),
            ]
        }
    }

    #[inline(always)]
    fn lt(self, a: F32, b: F32) -> [__m256; 2] {
        unsafe { [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])] }
    }

    #[inline(always)]
    fn is_nan(self, a: F32) -> [__m256; 2] {
        unsafe { [_mm256_cmp_ps::<_CMP_UNORD_Q>(a[0], a[0]), _mm256_cmp_ps::<_CMP_UNORD_Q>(a[1], a[1])] }
    }

    #[inline(always)]
    fn lanes(self, from: usize, to: usize) -> [__m256; 2] {
        unsafe { [_mm256_castsi256_ps(half_mask(from, to, 0)), _mm256_castsi256_ps(half_mask(from, to, 8))] }
    }

    #[inline(always)]
    fn select(self, mask: [__m256; 2], a: F32, b: F32) -> F32 {
        unsafe { [_mm256_blendv_ps(b[0], a[0], mask[0]), _mm256_blendv_ps(b[1], a[1], mask[1])] }
    }

    #[inline(always)]
    fn add_to_exponent(self, a: F32, n: F32) -> F32 {
        unsafe {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(n[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(n[1]));
            [
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a[0]), low)),
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a[1]), high)),
            ]
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [F32; 16]) {
        // Quarters: the upper left stays, the upper right changes places with the lower left.
        let zero = self.splat(0.0)[0];
        let mut quarters = [[zero; 8]; 4];
        for i in 0..8 {
            for half in 0..2 {
                quarters[half * 2][i] = rows[i][half];
                quarters[half * 2 + 1][i] = rows[8 + i][half];
            }
        }
        for quarter in &mut quarters {
            unsafe { transpose8(quarter) };
        }
        for i in 0..8 {
            rows[i] = [quarters[0][i], quarters[1][i]];
            rows[8 + i] = [quarters[2][i], quarters[3][i]];
        }
    }

    #[inline(always)]
    fn round_pairs(self, low: F32, high: F32) -> F32 {
        let mut pairs = low;
        for i in 0..2 {
            unsafe {
                let low = _mm256_srli_epi32::<16>(rounded(low[i]));
                pairs[i] = _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(low, rounded(high[i])));
            }
        }
        pairs
    }

    #[inline(always)]
    fn least_exponents(self, least: [__m256i; 2], pairs: F32) -> [__m256i; 2] {
        let mut out = least;
        for i in 0..2 {
            unsafe {
                let exponents = _mm256_and_si256(_mm256_castps_si256(pairs[i]), _mm256_set1_epi16(0x7F80));
                out[i] = _mm256_min_epu16(least[i], _mm256_sub_epi16(exponents, _mm256_set1_epi16(1)));
            }
        }
        out
    }

    #[inline(always)]
    fn split_pairs(self, a: F32) -> (F32, F32) {
        let (mut low, mut high) = (a, a);
        for i in 0..2 {
            unsafe {
                let bits = _mm256_castps_si256(a[i]);
                low[i] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits));
                high[i] = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(!0xFFFF)));
            }
        }
        (low, high)
    }

    #[inline(always)]
    fn reduce_sum(self, a: F32) -> f32 {
        unsafe { reduce_sum(_mm256_add_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn reduce_max(self, a: F32) -> f32 {
        unsafe { reduce_max(_mm256_max_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }

    /// A pair of products of magnitudes of at most 128 and of at most 127 fits into 16 bits.
    const CENTRED: bool = true;

    #[inline(always)]
    fn begin_dots(self, bits: u32, sum: [__m256i; 2]) -> [__m256i; 2] {
        if bits < 8 { self.splat_i32(0) } else { sum }
    }

    /// Sums of pairs in 16 bits where they fit.
    #[inline(always)]
    fn dot_bytes(self, bits: u32, dots: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            if bits < 8 {
                [
                    _mm256_add_epi16(dots[0], _mm256_maddubs_epi16(a[0], b[0])),
                    _mm256_add_epi16(dots[1], _mm256_maddubs_epi16(a[1], b[1])),
                ]
            } else {
                [dot_centred_bytes(dots[0], a[0], b[0]), dot_centred_bytes(dots[1], a[1], b[1])]
            }
        }
    }

    #[inline(always)]
    fn end_dots(self, bits: u32, sum: [__m256i; 2], dots: [__m256i; 2]) -> [__m256i; 2] {
        if bits == 8 {
            return dots;
        }
        unsafe {
            let one = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(dots[0], one)),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(dots[1], one)),
            ]
        }
    }

    #[inline(always)]
    fn dots_at_once(bits: u32) -> usize {
        if bits < 8 { super::pairs_at_once(bits) } else { usize::MAX }
    }

    #[inline(always)]
    fn to_float(self, x: [__m256i; 2]) -> F32 {
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }

    #[inline(always)]
    fn round(self, x: F32) -> [__m256i; 2] {
        unsafe { [_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])] }
    }

    #[inline(always)]
    fn signed_bytes(self, x: [__m256i; 2]) -> [i8; 16] {
        unsafe {
            // Packing works within halves of a register: put the quarters in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            std::mem::transmute::<__m128i, [i8; 16]>(bytes)
        }
    }

    #[inline(always)]
    fn halves(self, x: &[u8; 32]) -> F32 {
        let (parts, _) = x.as_chunks::<16>();
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(parts[0].as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(parts[1].as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn bfloat16(self, x: &[u8; 32]) -> F32 {
        let (parts, _) = x.as_chunks::<16>();
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(parts[0].as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(parts[1].as_ptr().cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn floats_of_bytes(self, x: &[u8; 16]) -> F32 {
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))),
            ]
        }
    }

    #[inline(always)]
    fn floats_of_signed_bytes(self, x: &[u8; 16]) -> F32 {
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
            ]
        }
    }

    #[inline(always)]
    fn floats_of_nibbles(self, x: &[u8; 16]) -> (F32, F32) {
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let (left, right) =
                (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
            let mask = _mm256_set1_epi32(15);
            let low = [_mm256_and_si256(left, mask), _mm256_and_si256(right, mask)];
            let high = [_mm256_srli_epi32::<4>(left), _mm256_srli_epi32::<4>(right)];
            (self.to_float(low), self.to_float(high))
        }
    }

    #[inline(always)]
    fn bytes(self, block: &[u8; BYTES]) -> [__m256i; 2] {
        let (halves, _) = block.as_chunks::<{ BYTES / 2 }>();
        unsafe {
            [_mm256_loadu_si256(halves[0].as_ptr().cast()), _mm256_loadu_si256(halves[1].as_ptr().cast())]
        }
    }

    #[inline(always)]
    fn store_bytes(self, block: &mut [u8; BYTES], x: [__m256i; 2]) {
        let (halves, _) = block.as_chunks_mut::<{ BYTES / 2 }>();
        unsafe {
            _mm256_storeu_si256(halves[0].as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(halves[1].as_mut_ptr().cast(), x[1]);
        }
    }

    #[inline(always)]
    fn repeat_bytes(self, four: [i8; 4]) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(super::word(four)); 2] }
    }

    #[inline(always)]
    fn shift_right_bytes(self, x: [__m256i; 2], n: u32, mask: u8) -> [__m256i; 2] {
        unsafe {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8((mask & (0xFF >> n)) as i8));
            let shifted = [_mm256_srl_epi16(x[0], n), _mm256_srl_epi16(x[1], n)];
            [_mm256_and_si256(shifted[0], mask), _mm256_and_si256(shifted[1], mask)]
        }
    }

    #[inline(always)]
    fn shift_left_bytes(self, x: [__m256i; 2], n: u32, mask: u8) -> [__m256i; 2] {
        unsafe {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8((mask & (0xFF << n) as u8) as i8));
            let shifted = [_mm256_sll_epi16(x[0], n), _mm256_sll_epi16(x[1], n)];
            [_mm256_and_si256(shifted[0], mask), _mm256_and_si256(shifted[1], mask)]
        }
    }

    #[inline(always)]
    fn or_bytes(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], x: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])]
        }
    }

    #[inline(always)]
    fn between(self, bytes: [__m256i; 2], first: u8, last: u8) -> u64 {
        unsafe {
            let (first, last) = (_mm256_set1_epi8(first as i8), last.wrapping_sub(first));
            let most = _mm256_set1_epi8(last as i8);
            let (low, high) = (_mm256_sub_epi8(bytes[0], first), _mm256_sub_epi8(bytes[1], first));
            // a ≤ b where min(a, b) = a, for there is no unsigned comparison.
            let low = _mm256_cmpeq_epi8(_mm256_min_epu8(low, most), low);
            let high = _mm256_cmpeq_epi8(_mm256_min_epu8(high, most), high);
            u64::from(_mm256_movemask_epi8(low) as u32) | u64::from(_mm256_movemask_epi8(high) as u32) << 32
        }
    }
}
