//! ggml's blocks of 32 values with one scale.
//!
//! A block function has arrays for arguments: every index is known when compiling, and the inner loops run
//! over plain slices that LLVM vectorises.

use half::f16;

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
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * f32::from(q as i8 - 8));
}

/// `d: f16, m: f16, q: [4 bits; 32]`; x = d q + m
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
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
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = fifth_bits([block[2], block[3], block[4], block[5]]);
    five_bits(&block[6..], &high, out, |q| d * f32::from(q as i8 - 16));
}

/// `d: f16, m: f16, high: [1 bit; 32], low: [4 bits; 32]`; x = d q + m
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = fifth_bits([block[4], block[5], block[6], block[7]]);
    five_bits(&block[8..], &high, out, |q| d * f32::from(q) + m);
}

/// `d: f16, q: [i8; 32]`; x = d q
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
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
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * IQ4_LEVELS[usize::from(q & 15)]);
}
