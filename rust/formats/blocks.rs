//! ggml's quantised blocks taken apart: codes, and how to make numbers of them.
//!
//! Every type is one of a few forms. A code q becomes `scale · (q − offset)`, or `scale · q + min`; the scale (and the
//! minimum) of a group is a float16, or an integer times a float16 of the whole block.

use half::f16;

use super::DType;
use super::quants::IQ4_LEVELS;

/// How the numbers of a type are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Bits of a code: 2, 4 or 8, and up to 2 above them.
    pub low_bits: u32,
    pub high_bits: u32,
    /// Subtracted from every code.
    pub offset: u8,
    /// What a code stands for, with the offset added, if not for itself.
    pub levels: Option<&'static [u8; 16]>,
    pub scales: Scales,
}

/// The scales of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// One float16 for 32 numbers.
    Half,
    /// The same, and a minimum.
    HalfAndMin,
    /// A signed byte for 32 numbers, times a float16 for 256.
    Signed,
    /// A signed byte for 16 numbers, times a float16 for 256.
    SignedBySixteen,
    /// A scale and a minimum of a byte each for 32 numbers, times a float16 each for 256; the minimum is
    /// subtracted.
    Bytes,
    /// A scale and a minimum of four bits each for 16 numbers, in one byte, times a float16 each for 256; the minimum
    /// is subtracted.
    NibblesBySixteen,
}

impl Scales {
    /// Numbers that share a float16.
    pub fn block(self) -> usize {
        match self {
            Scales::Half | Scales::HalfAndMin => 32,
            _ => 256,
        }
    }

    /// Numbers of a group.
    pub fn group(self) -> usize {
        match self {
            Scales::SignedBySixteen | Scales::NibblesBySixteen => 16,
            _ => 32,
        }
    }

    /// Float16 of a block, and bytes of a group beside them.
    pub fn parts(self) -> (usize, usize) {
        match self {
            Scales::Half => (1, 0),
            Scales::HalfAndMin => (2, 0),
            Scales::Signed | Scales::SignedBySixteen => (1, 1),
            Scales::Bytes => (2, 2),
            Scales::NibblesBySixteen => (2, 1),
        }
    }
}

/// [`IQ4_LEVELS`] and 128.
static LEVELS: [u8; 16] = {
    let mut levels = [0; 16];
    let mut i = 0;
    while i < 16 {
        levels[i] = (IQ4_LEVELS[i] as i32 + 128) as u8;
        i += 1;
    }
    levels
};

impl Form {
    /// The form of a quantised type; None of any other.
    pub fn of(dtype: DType) -> Option<Form> {
        let form =
            |low_bits, high_bits, offset, scales| Form { low_bits, high_bits, offset, levels: None, scales };
        let levels = |scales| Form { low_bits: 4, high_bits: 0, offset: 128, levels: Some(&LEVELS), scales };
        Some(match dtype {
            DType::Q4_0 => form(4, 0, 8, Scales::Half),
            DType::Q4_1 => form(4, 0, 0, Scales::HalfAndMin),
            DType::Q5_0 => form(4, 1, 16, Scales::Half),
            DType::Q5_1 => form(4, 1, 0, Scales::HalfAndMin),
            DType::Q8_0 => form(8, 0, 128, Scales::Half),
            DType::Q2_K => form(2, 0, 0, Scales::NibblesBySixteen),
            DType::Q3_K => form(2, 1, 4, Scales::SignedBySixteen),
            DType::Q4_K => form(4, 0, 0, Scales::Bytes),
            DType::Q5_K => form(4, 1, 0, Scales::Bytes),
            DType::Q6_K => form(4, 2, 32, Scales::SignedBySixteen),
            DType::IQ4_NL => levels(Scales::Half),
            DType::IQ4_XS => levels(Scales::Signed),
            _ => return None,
        })
    }
}

/// A block of a row: the first [`Scales::block`] codes, and of the other arrays as many as its form has.
#[derive(Clone, Debug)]
pub struct Block {
    pub codes: [u8; 256],
    /// The bits of float16: scale, minimum.
    pub halves: [u16; 2],
    /// Of each group: scale, minimum. A signed scale as its bits; scale and minimum of four bits as one byte,
    /// the scale in the lower half.
    pub scales: [[u8; 2]; 16],
}

impl Block {
    pub fn zero() -> Self {
        Block { codes: [0; 256], halves: [0; 2], scales: [[0; 2]; 16] }
    }

    /// Takes the bytes of one block of a quantised type apart.
    pub fn read(&mut self, dtype: DType, bytes: &[u8]) {
        for (half, &at) in self.halves.iter_mut().zip(half_offsets(dtype)) {
            *half = half_at(bytes, at);
        }
        let codes = &mut self.codes;
        match dtype {
            DType::Q4_0 | DType::IQ4_NL => nibbles(&bytes[2..18], codes),
            DType::Q4_1 => nibbles(&bytes[4..20], codes),
            DType::Q5_0 => {
                nibbles(&bytes[6..22], codes);
                fifth_bits(&bytes[2..6], codes);
            }
            DType::Q5_1 => {
                nibbles(&bytes[8..24], codes);
                fifth_bits(&bytes[4..8], codes);
            }
            DType::Q8_0 => {
                codes.iter_mut().zip(&bytes[2..34]).for_each(|(code, q)| *code = q.wrapping_add(128));
            }
            DType::Q2_K => {
                two_bits(&bytes[16..80], codes);
                self.scales.iter_mut().zip(&bytes[..16]).for_each(|(scale, byte)| scale[0] = *byte);
            }
            DType::Q3_K => {
                two_bits(&bytes[32..96], codes);
                for (i, code) in codes.iter_mut().enumerate() {
                    *code |= (bytes[i % 32] >> (i / 32) & 1) << 2;
                }
                for (group, scale) in self.scales.iter_mut().enumerate() {
                    // Four low bits in the first eight bytes, two high bits in the last four.
                    let low = bytes[96 + group % 8] >> (4 * (group / 8)) & 15;
                    let high = bytes[104 + group % 4] >> (2 * (group / 4)) & 3;
                    scale[0] = (low | high << 4).wrapping_sub(32);
                }
            }
            DType::Q4_K | DType::Q5_K => {
                let low = if dtype == DType::Q4_K { 16 } else { 48 };
                for (group, out) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let low = &bytes[low + group / 2 * 32..][..32];
                    for (i, code) in out.iter_mut().enumerate() {
                        *code = low[i] >> (group % 2 * 4) & 15;
                        if dtype == DType::Q5_K {
                            *code |= (bytes[16 + i] >> group & 1) << 4;
                        }
                    }
                    self.scales[group] = six_bits(&bytes[4..16], group);
                }
            }
            DType::Q6_K => {
                for (i, code) in codes.iter_mut().enumerate() {
                    // 64 bytes of low bits hold 128 values: 64 in the low nibbles, then 64 in the high ones.
                    let low = bytes[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
                    let high = bytes[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    *code = low | high << 4;
                }
                self.scales.iter_mut().zip(&bytes[192..208]).for_each(|(scale, byte)| scale[0] = *byte);
            }
            DType::IQ4_XS => {
                let high = half_at(bytes, 2);
                for (group, out) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    nibbles(&bytes[8 + group * 16..][..16], out);
                    let low = bytes[4 + group / 2] >> (group % 2 * 4) & 15;
                    self.scales[group][0] = (low | ((high >> (2 * group) & 3) as u8) << 4).wrapping_sub(32);
                }
            }
            _ => {}
        }
    }
}

/// Where the float16 of a block of a quantised type stand: scale, minimum.
fn half_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        _ => &[0],
    }
}

fn half_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The first block of a row, stored in a quantised type, whose numbers are not all finite, and what it has for a scale
/// or a minimum.
pub fn first_non_finite(dtype: DType, row: &[u8]) -> Option<(usize, f32)> {
    row.chunks_exact(dtype.block().1).enumerate().find_map(|(index, block)| {
        let halves = half_offsets(dtype).iter().map(|&at| f16::from_bits(half_at(block, at)));
        halves.into_iter().find(|half| !half.is_finite()).map(|half| (index, half.to_f32()))
    })
}

/// The low nibbles are the first half.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        codes[i] = byte & 15;
        codes[i + bytes.len()] = byte >> 4;
    }
}

fn fifth_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for i in 0..32 {
        codes[i] |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// 32 bytes hold 128 values, two bits of each byte at a time.
fn two_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    }
}

/// Scale and minimum, six bits each, of group 0…7: those of the first four stand in the low bits of
/// bytes 0…3 and 4…7; of the last four, the low four bits stand in bytes 8…11 and the high two in the
/// high bits of the others.
fn six_bits(scales: &[u8], group: usize) -> [u8; 2] {
    if group < 4 {
        [scales[group] & 63, scales[group + 4] & 63]
    } else {
        [
            scales[group + 4] & 15 | scales[group - 4] >> 6 << 4,
            scales[group + 4] >> 4 | scales[group] >> 6 << 4,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::dequantize::dequantize;
    use super::*;

    /// A number as its form makes it.
    fn number(form: Form, block: &Block, i: usize) -> f32 {
        let q = block.codes[i];
        let q = form.levels.map_or(q, |levels| levels[usize::from(q)]);
        let centred = f32::from(i16::from(q) - i16::from(form.offset));
        let [d, m] = block.halves.map(|bits| f16::from_bits(bits).to_f32());
        let [scale, min] = block.scales[i / form.scales.group()];
        match form.scales {
            Scales::Half => d * centred,
            Scales::HalfAndMin => d * centred + m,
            Scales::Signed | Scales::SignedBySixteen => d * f32::from(scale as i8) * centred,
            Scales::Bytes => d * f32::from(scale) * centred - m * f32::from(min),
            Scales::NibblesBySixteen => d * f32::from(scale & 15) * centred - m * f32::from(scale >> 4),
        }
    }

    #[test]
    fn taken_apart_they_make_the_numbers_of_ggml() {
        let mut seed = 1u64;
        let mut found = 0;
        for &dtype in DType::ALL {
            let Some(form) = Form::of(dtype) else { continue };
            found += 1;
            let (len, bytes) = dtype.block();
            assert_eq!(form.scales.block(), len);
            for _ in 0..50 {
                let stored: Vec<u8> = (0..bytes)
                    .map(|_| {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        (seed >> 56) as u8
                    })
                    .collect();
                let mut expected = vec![0.0; len];
                dequantize(dtype, &stored, &mut expected);
                let mut block = Block::zero();
                block.read(dtype, &stored);
                for (i, expected) in expected.iter().enumerate() {
                    let number = number(form, &block, i);
                    let same = number.to_bits() == expected.to_bits() || number.is_nan() && expected.is_nan();
                    assert!(same, "{} {i}: {number} is not {expected}", dtype.name());
                }
            }
        }
        assert_eq!(found, 12);
    }
}
