//! ggml's super-blocks of 256 values, in groups of 16 or 32 with their own scales.

use super::quants::{IQ4_LEVELS, half_at, nibbles};

/// `scales: [(4 bits scale, 4 bits min); 16], q: [2 bits; 256], d: f16, dmin: f16`;
/// x = (d scale) q - (dmin min), in groups of 16
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    let (scales, quants) = (&block[..16], &block[16..80]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(scales[group] & 15), dmin * f32::from(scales[group] >> 4));
        let (from, shift) = two_bits(group);
        for (q, out) in quants[from..from + 16].iter().zip(out) {
            *out = scale * f32::from(q >> shift & 3) - min;
        }
    }
}

/// `high: [1 bit; 256], low: [2 bits; 256], scales: [6 bits; 16], d: f16`;
/// x = (d (scale - 32)) (low - 4 unless high), in groups of 16
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    let (high, low, scales) = (&block[..32], &block[32..96], &block[96..108]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Four low bits in the first eight bytes, two high bits in the last four.
        let scale_low = scales[group % 8] >> (4 * (group / 8)) & 15;
        let scale_high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = d * f32::from((scale_low | scale_high << 4) as i8 - 32);
        let (from, shift) = two_bits(group);
        let high = &high[group % 2 * 16..][..16];
        for ((low, high), out) in low[from..from + 16].iter().zip(high).zip(out) {
            let offset = (!high >> (group / 2) & 1) << 2;
            *out = scale * f32::from((low >> shift & 3) as i8 - offset as i8);
        }
    }
}

/// Where the two-bit values of a group of 16 begin, and by how much their bytes are shifted: 32 bytes
/// hold 128 values, two bits of each byte at a time.
#[inline(always)]
fn two_bits(group: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2)
}

/// Scale and minimum, six bits each, of group 0…7: those of the first four stand in the low bits of
/// bytes 0…3 and 4…7; of the last four, the low four bits stand in bytes 8…11 and the high two in the
/// high bits of the others.
#[inline(always)]
fn scale_and_min(scales: &[u8; 12], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        (
            scales[group + 4] & 15 | scales[group - 4] >> 6 << 4,
            scales[group + 4] >> 4 | scales[group] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// The twelve bytes of scales at offset 4 of Q4_K and Q5_K.
#[inline(always)]
fn scales<const BYTES: usize>(block: &[u8; BYTES]) -> [u8; 12] {
    std::array::from_fn(|i| block[4 + i])
}

/// `d: f16, dmin: f16, scales: [(6 bits scale, 6 bits min); 8], q: [4 bits; 256]`;
/// x = (d scale) q - (dmin min), in groups of 32
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin, scales) = (half_at(block, 0), half_at(block, 2), scales(block));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&scales, group);
        let (scale, min) = (d * scale, dmin * min);
        let (quants, shift) = (&block[16 + group / 2 * 32..][..32], group % 2 * 4);
        for (q, out) in quants.iter().zip(out) {
            *out = scale * f32::from(q >> shift & 15) - min;
        }
    }
}

/// `d: f16, dmin: f16, scales: [(6 bits scale, 6 bits min); 8], high: [1 bit; 256], low: [4 bits; 256]`;
/// x = (d scale) q - (dmin min), in groups of 32
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin, scales) = (half_at(block, 0), half_at(block, 2), scales(block));
    let high = &block[16..48];
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&scales, group);
        let (scale, min) = (d * scale, dmin * min);
        let (low, shift) = (&block[48 + group / 2 * 32..][..32], group % 2 * 4);
        for ((low, high), out) in low.iter().zip(high).zip(out) {
            *out = scale * f32::from(low >> shift & 15 | (high >> group & 1) << 4) - min;
        }
    }
}

/// `low: [4 bits; 256], high: [2 bits; 256], scales: [i8; 16], d: f16`;
/// x = (d scale) (q - 32), in groups of 16
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[group] as i8);
        // 64 bytes of low bits hold 128 values: 64 in the low nibbles, then 64 in the high ones.
        let (low, shift) = (&low[group / 8 * 64 + group % 4 * 16..][..16], group % 8 / 4 * 4);
        let (from, high_shift) = two_bits(group);
        for ((low, high), out) in low.iter().zip(&high[from..from + 16]).zip(out) {
            let q = low >> shift & 15 | (high >> high_shift & 3) << 4;
            *out = scale * f32::from(q as i8 - 32);
        }
    }
}

/// `d: f16, scales_high: [2 bits; 8], scales_low: [4 bits; 8], q: [4 bits; 256]`;
/// x = (d (scale - 32)) level\[q\], in groups of 32
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let scales_high = u16::from_le_bytes([block[2], block[3]]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        let high = (scales_high >> (2 * group) & 3) as u8;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        nibbles(&block[8 + group * 16..][..16], out, |q| scale * IQ4_LEVELS[usize::from(q & 15)]);
    }
}
