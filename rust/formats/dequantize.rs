//! Expansion to float32 of plain floats and of ggml's blocks of 32; [`super::kquants`] has its blocks of 256.
//!
//! Each block type follows ggml's layout (`ggml-common.h`) and its order of operations, so the floats are
//! the same bits as ggml's. A block function has arrays for arguments: every index is known when compiling,
//! and the inner loops run over plain slices that LLVM vectorises.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{DType, kquants};

/// Expands whole blocks of a float type: `bytes` holds as many blocks as `out` has room for, as the
/// callers have checked. Types that [`DType::is_float`] denies leave `out` as it is.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len() / dtype.block().1 * dtype.block().0, out.len());
    match dtype {
        DType::F32 => plain(bytes, out, f32::from_le_bytes),
        DType::BF16 => plain(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        DType::F16 => halves(bytes, out),
        DType::Q4_0 => blocks(bytes, out, q4_0),
        DType::Q4_1 => blocks(bytes, out, q4_1),
        DType::Q5_0 => blocks(bytes, out, q5_0),
        DType::Q5_1 => blocks(bytes, out, q5_1),
        DType::Q8_0 => blocks(bytes, out, q8_0),
        DType::Q2_K => blocks(bytes, out, kquants::q2_k),
        DType::Q3_K => blocks(bytes, out, kquants::q3_k),
        DType::Q4_K => blocks(bytes, out, kquants::q4_k),
        DType::Q5_K => blocks(bytes, out, kquants::q5_k),
        DType::Q6_K => blocks(bytes, out, kquants::q6_k),
        DType::IQ4_NL => blocks(bytes, out, iq4_nl),
        DType::IQ4_XS => blocks(bytes, out, kquants::iq4_xs),
        DType::BOOL | DType::F64 => {}
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => {}
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => {}
    }
}

fn blocks<const BYTES: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    expand: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<N>();
    for (block, out) in blocks.iter().zip(outs) {
        expand(block, out);
    }
}

fn plain<const BYTES: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; BYTES]) -> f32) {
    let (elements, _) = bytes.as_chunks::<BYTES>();
    for (element, out) in elements.iter().zip(out) {
        *out = convert(*element);
    }
}

fn halves(bytes: &[u8], out: &mut [f32]) {
    // The file may hold them at an odd address, so they pass through an aligned buffer.
    let mut aligned = [f16::ZERO; 256];
    for (bytes, out) in bytes.chunks(2 * aligned.len()).zip(out.chunks_mut(aligned.len())) {
        let aligned = &mut aligned[..out.len()];
        for (half, bytes) in aligned.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        aligned.convert_to_f32_slice(out);
    }
}

/// The float16 at a constant offset of a block.
#[inline(always)]
pub(super) fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Sixteen bytes hold 32 values of four bits: the low nibbles are the first half.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8], out: &mut [f32], convert: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = convert(byte & 15);
        *high = convert(byte >> 4);
    }
}

/// `d: f16, q: [4 bits; 32]`; x = d (q - 8)
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * f32::from(q as i8 - 8));
}

/// `d: f16, m: f16, q: [4 bits; 32]`; x = d q + m
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], out, |q| d * f32::from(q) + m);
}

/// The fifth bit of each of 32 values, as 16 or 0.
#[inline(always)]
fn fifth_bits(bytes: [u8; 4]) -> [u8; 32] {
    let bits = u32::from_le_bytes(bytes);
    std::array::from_fn(|i| ((bits >> i & 1) as u8) << 4)
}

#[inline(always)]
fn five_bits(low: &[u8], high: &[u8; 32], out: &mut [f32; 32], convert: impl Fn(u8) -> f32) {
    for (i, (byte, (high_a, high_b))) in low.iter().zip(high[..16].iter().zip(&high[16..])).enumerate() {
        out[i] = convert(byte & 15 | high_a);
        out[i + 16] = convert(byte >> 4 | high_b);
    }
}

/// `d: f16, high: [1 bit; 32], low: [4 bits; 32]`; x = d (q - 16)
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = fifth_bits([block[2], block[3], block[4], block[5]]);
    five_bits(&block[6..], &high, out, |q| d * f32::from(q as i8 - 16));
}

/// `d: f16, m: f16, high: [1 bit; 32], low: [4 bits; 32]`; x = d q + m
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = fifth_bits([block[4], block[5], block[6], block[7]]);
    five_bits(&block[8..], &high, out, |q| d * f32::from(q) + m);
}

/// `d: f16, q: [i8; 32]`; x = d q
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (q, out) in block[2..].iter().zip(out) {
        *out = d * f32::from(*q as i8);
    }
}

/// The 16 levels of the non-linear four-bit types (ggml's `kvalues_iq4nl`).
pub(super) const IQ4_LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// `d: f16, q: [4 bits; 32]`; x = d level\[q\]
fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * IQ4_LEVELS[usize::from(q & 15)]);
}
