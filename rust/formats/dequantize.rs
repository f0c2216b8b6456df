//! Expansion to float32 of plain floats and of ggml's blocks: of 32 values ([`super::quants`]) and of 256
//! ([`super::kquants`]).
//!
//! Each block type follows ggml's layout (`ggml-common.h`) and its order of operations, so the floats are
//! the same bits as ggml's.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{DType, kquants, quants};

/// Expands whole blocks of a float type: `bytes` holds as many blocks as `out` has room for, as the
/// callers have checked. Types that [`DType::is_float`] denies leave `out` as it is.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len() / dtype.block().1 * dtype.block().0, out.len());
    match dtype {
        DType::F32 => plain(bytes, out, f32::from_le_bytes),
        DType::BF16 => plain(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        DType::F16 => halves(bytes, out),
        DType::Q4_0 => blocks(bytes, out, quants::q4_0),
        DType::Q4_1 => blocks(bytes, out, quants::q4_1),
        DType::Q5_0 => blocks(bytes, out, quants::q5_0),
        DType::Q5_1 => blocks(bytes, out, quants::q5_1),
        DType::Q8_0 => blocks(bytes, out, quants::q8_0),
        DType::Q2_K => blocks(bytes, out, kquants::q2_k),
        DType::Q3_K => blocks(bytes, out, kquants::q3_k),
        DType::Q4_K => blocks(bytes, out, kquants::q4_k),
        DType::Q5_K => blocks(bytes, out, kquants::q5_k),
        DType::Q6_K => blocks(bytes, out, kquants::q6_k),
        DType::IQ4_NL => blocks(bytes, out, quants::iq4_nl),
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
