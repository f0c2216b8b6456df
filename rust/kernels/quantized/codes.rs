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
    const MIN: bool = matches!(Self::SCALES, Scales::HalfAndMin | Scales::Bytes | Scales::NibblesBySixteen);
    /// Of a code, or of a level; some are counted as more, so that there are fewer kinds.
    const BITS: u32 = match (Self::GROUPS, Self::LOW + Self::HIGH) {
        _ if Self::LEVELS => 8,
        (2, 3) => 6,
        (_, bits) if bits < 4 => 4,
        (_, bits) => bits,
    };
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

/// Vector `t` of the codes of a unit, whose bytes begin at `unit`.
/// # Safety
/// All the unit's codes can be read.
#[inline(always)]
pub unsafe fn code<S: Simd, F: Known>(s: S, unit: *const u8, levels: &[u8; 16], t: usize) -> S::Bytes {
    let (low, shift) = place(t, F::LOW);
    // SAFETY: the vector is the unit's.
    let low = unsafe { s.bytes(&*unit.add(low * BYTES).cast()) };
    let mut code = s.shift_right_bytes(low, shift, 0xFF >> (8 - F::LOW));
    if F::HIGH > 0 {
        let (high, shift) = place(t, F::HIGH.max(1));
        // SAFETY: as above.
        let high = unsafe { s.bytes(&*unit.add((F::LOW as usize + high) * BYTES).cast()) };
        let mask = ((1 << F::HIGH) - 1) << F::LOW;
        let high = if shift > F::LOW {
            s.shift_right_bytes(high, shift - F::LOW, mask)
        } else {
            s.shift_left_bytes(high, F::LOW - shift, mask)
        };
        code = s.or_bytes(code, high);
    }
    if F::LEVELS { s.look_up(levels, code) } else { code }
}

/// Scale and minimum of a group of a unit.
/// # Safety
/// A panel of that layout can be read at `panel`.
#[inline(always)]
pub unsafe fn scales<S: Simd, F: Known>(
    s: S,
    panel: *const u8,
    layout: &PanelLayout,
    unit: usize,
    group: usize,
) -> [S::F32; 2] {
    let zero = s.splat(0.0);
    // SAFETY: arrays of 16 numbers, float16 and bytes, are in the panel as the layout says.
    unsafe {
        let of_unit = panel.add(layout.scales + unit * layout.unit_scales);
        let of_block = panel.add(layout.halves + unit * UNIT / 256 * layout.block_halves);
        match F::SCALES {
            Scales::Half => [halves(s, of_unit, 0), zero],
            Scales::HalfAndMin => [halves(s, of_unit, 0), halves(s, of_unit, 1)],
            Scales::Signed | Scales::SignedBySixteen => {
                let scale = s.floats_of_signed_bytes(&*of_unit.add(group * LANES).cast());
                [s.mul(halves(s, of_block, 0), scale), zero]
            }
            Scales::Bytes | Scales::NibblesBySixteen => {
                let (d, m) = (halves(s, of_block, 0), s.sub(zero, halves(s, of_block, 1)));
                let (scale, min) = if matches!(F::SCALES, Scales::Bytes) {
                    let min = s.floats_of_bytes(&*of_unit.add(LANES).cast());
                    (s.floats_of_bytes(&*of_unit.cast()), min)
                } else {
                    s.floats_of_nibbles(&*of_unit.add(group * LANES).cast())
                };
                [s.mul(d, scale), s.mul(m, min)]
            }
        }
    }
}

/// Array `index` of float16.
/// # Safety
/// It can be read.
#[inline(always)]
unsafe fn halves<S: Simd>(s: S, at: *const u8, index: usize) -> S::F32 {
    // SAFETY: the caller's.
    s.halves(unsafe { &*at.add(index * 2 * LANES).cast() })
}
