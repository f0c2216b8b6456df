//! Random draws that depend on what they are for, never on when or beside what they are made.

/// Philox4x32-10, a counter-based generator: a draw is a pure function of its key and counter.
///
/// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key each round: the golden ratio and √3 - 1, in units of 2⁻³².
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

impl Philox {
    pub fn new(seed: u64) -> Self {
        Philox { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// Another generator, for what `a` and `b` number.
    pub fn derive(self, a: u64, b: u64) -> Philox {
        let [low, high, ..] = self.block([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]);
        Philox { key: [low, high] }
    }

    /// Four draws of 32 random bits.
    #[inline(always)]
    pub fn block(self, mut counter: [u32; 4]) -> [u32; 4] {
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
            counter = [
                (second >> 32) as u32 ^ counter[1] ^ key[0],
                second as u32,
                (first >> 32) as u32 ^ counter[3] ^ key[1],
                first as u32,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        counter
    }

    /// A draw from [0, 1) with 53 random bits, for the token at `position` of sample `sample`.
    pub fn uniform(self, sample: u64, position: u64) -> f64 {
        let counter = [position as u32, (position >> 32) as u32, sample as u32, (sample >> 32) as u32];
        let [low, high, ..] = self.block(counter);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that accompany the authors' Random123 library.
    #[test]
    fn known_answers() {
        let zero = Philox { key: [0; 2] }.block([0; 4]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox { key: [u32::MAX; 2] }.block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Philox { key: [0xa409_3822, 0x299f_31d0] }.block([
            0x243f_6a88,
            0x85a3_08d3,
            0x1319_8a2e,
            0x0370_7344,
        ]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn uniform_draws_fill_the_interval() {
        let draws: Vec<f64> = (0..1000).map(|position| Philox::new(3).uniform(1, position)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / 1000.0;
        // Four standard deviations of the mean of 1000 uniform draws.
        assert!((mean - 0.5).abs() < 4.0 / (12.0f64 * 1000.0).sqrt());
        assert_ne!(Philox::new(3).uniform(0, 1), Philox::new(3).uniform(1, 0));
    }
}
