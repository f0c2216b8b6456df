//! How the codes and scales of a form of quantised numbers are taken apart.

use crate::formats::blocks::{Form, Scales};
use crate::simd::{BYTES, LANES, Simd};
use crate::weights::{PanelLayout, UNIT, place};

/// A form, known when compiling: bits of codes, whether they are indices of levels, and a kind of scales.
pub trait Known {
    const LOW: u32;
    const HIGH: u32;
    const LEVELS: bool;
    const SCALES: Scales;
    /// Groups of a unit: 1 or 2.
    const GROUPS: usize = UNIT / group(Self::SCALES);
    /// Whether codes fit into 7 bits and a half, as [`Simd::dot_bytes`] wants to know.
    const SMALL: bool = Self::LOW + Self::HIGH < 8 && !Self::LEVELS;
}

const fn group(scales: Scales) -> usize {
    match scales {
        Scales::SignedBySixteen | Scales::NibblesBySixteen => 16,
        _ => 32,
    }
}

macro_rules! forms {
    ($($name:ident: $low:literal + $high:literal, $levels:literal, $scales:ident;)*) => {
        $(
            pub struct $name;
            impl Known for $name {
                const LOW: u32 = $low;
                const HIGH: u32 = $high;
                const LEVELS: bool = $levels;
                const SCALES: Scales = Scales::$scales;
            }
        )*

        /// Lets `job` work with a form.
        pub fn with_form<J: Job>(form: Form, job: J) -> J::Output {
            match (form.low_bits, form.high_bits, form.levels.is_some(), form.scales) {
                $(($low, $high, $levels, Scales::$scales) => job.run::<$name>(),)*
                _ => unreachable!("no type of ggml has this form: {form:?}"),
            }
        }
    };
}

forms! {
    Q4_0: 4 + 0, false, Half;
    Q4_1: 4 + 0, false, HalfAndMin;
    Q5_0: 4 + 1, false, Half;
    Q5_1: 4 + 1, false, HalfAndMin;
    Q8_0: 8 + 0, false, Half;
    Q2K: 2 + 0, false, NibblesBySixteen;
    Q3K: 2 + 1, false, SignedBySixteen;
    Q4K: 4 + 0, false, Bytes;
    Q5K: 4 + 1, false, Bytes;
    Q6K: 4 + 2, false, SignedBySixteen;
    Iq4Nl: 4 + 0, true, Half;
    Iq4Xs: 4 + 0, true, Signed;
}

/// Something to do with a form that is known when compiling.
pub trait Job {
    type Output;
    fn run<F: Known>(self) -> Self::Output;
}

/// The eight vectors of codes of a unit. (Plain loops: a closure may not be inlined, and would then be compiled
/// without the instruction set.)
#[inline(always)]
pub fn codes<S: Simd, F: Known>(s: S, unit: &[u8], levels: &[u8; 16]) -> [S::Bytes; 8] {
    let (vectors, _) = unit.as_chunks::<BYTES>();
    let mut codes = [s.repeat_bytes([0; 4]); 8];
    for t in 0..8 {
        let (low, shift) = place(t, F::LOW);
        codes[t] = s.shift_right_bytes(s.bytes(&vectors[low]), shift, 0xFF >> (8 - F::LOW));
        if F::HIGH > 0 {
            let (high, shift) = place(t, F::HIGH.max(1));
            let (high, mask) = (s.bytes(&vectors[F::LOW as usize + high]), ((1 << F::HIGH) - 1) << F::LOW);
            let high = if shift > F::LOW {
                s.shift_right_bytes(high, shift - F::LOW, mask)
            } else {
                s.shift_left_bytes(high, F::LOW - shift, mask)
            };
            codes[t] = s.or_bytes(codes[t], high);
        }
        if F::LEVELS {
            codes[t] = s.look_up(levels, codes[t]);
        }
    }
    codes
}

/// Scale and minimum of each group of a unit.
#[inline(always)]
pub fn scales<S: Simd, F: Known>(s: S, panel: &[u8], layout: &PanelLayout, unit: usize) -> [[S::F32; 2]; 2] {
    let zero = s.splat(0.0);
    let (of_unit, _) = panel[layout.scales + unit * layout.unit_scales..].as_chunks::<LANES>();
    let of_block = &panel[layout.halves + unit * UNIT / 256 * layout.block_halves..];
    match F::SCALES {
        Scales::Half => [[halves(s, of_unit.as_flattened(), 0), zero], [zero; 2]],
        Scales::HalfAndMin => {
            let of_unit = of_unit.as_flattened();
            [[halves(s, of_unit, 0), halves(s, of_unit, 1)], [zero; 2]]
        }
        Scales::Signed => {
            let d = halves(s, of_block, 0);
            [[s.mul(d, s.floats_of_signed_bytes(&of_unit[0])), zero], [zero; 2]]
        }
        Scales::SignedBySixteen => {
            let d = halves(s, of_block, 0);
            let left = s.mul(d, s.floats_of_signed_bytes(&of_unit[0]));
            [[left, zero], [s.mul(d, s.floats_of_signed_bytes(&of_unit[1])), zero]]
        }
        Scales::Bytes => {
            let (d, m) = (halves(s, of_block, 0), s.sub(zero, halves(s, of_block, 1)));
            let (scale, min) = (s.floats_of_bytes(&of_unit[0]), s.floats_of_bytes(&of_unit[1]));
            [[s.mul(d, scale), s.mul(m, min)], [zero; 2]]
        }
        Scales::NibblesBySixteen => {
            let (d, m) = (halves(s, of_block, 0), s.sub(zero, halves(s, of_block, 1)));
            let mut groups = [[zero; 2]; 2];
            for (group, both) in groups.iter_mut().zip(of_unit) {
                let (mut scale, mut min) = (*both, *both);
                for i in 0..LANES {
                    scale[i] &= 15;
                    min[i] >>= 4;
                }
                *group = [s.mul(d, s.floats_of_bytes(&scale)), s.mul(m, s.floats_of_bytes(&min))];
            }
            groups
        }
    }
}

/// Array `index` of float16.
#[inline(always)]
fn halves<S: Simd>(s: S, bytes: &[u8], index: usize) -> S::F32 {
    let (arrays, _) = bytes.as_chunks::<{ 2 * LANES }>();
    s.halves(&arrays[index])
}
