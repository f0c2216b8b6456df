//! Dropout (Srivastava et al. 2014) that stores no mask: what is dropped is drawn again for the gradient.

use crate::kernels::rows_per_chunk;
use crate::random::Philox;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// Whose row it is: draws are the same wherever in a batch the row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    pub sequence: u64,
    pub position: u32,
}

/// `x [rows, width]`, `keys [rows]`, in place: each element becomes 0 with probability `rate` < 1, else is divided
/// by 1 − rate. `draws` is of this place and step alone (see [`Philox::derive`]); an element's draw depends on it,
/// the key of the row, and the column. The gradient is the same function of the gradient.
pub fn dropout(x: &mut [f32], width: usize, rate: f32, draws: Philox, keys: &[RowKey]) {
    assert!(x.len() == keys.len() * width && (0.0..1.0).contains(&rate));
    if rate == 0.0 || width == 0 {
        return;
    }
    // Of 2³² draws as many are below as the rate says.
    let threshold = (f64::from(rate) * 2f64.powi(32)) as u32;
    let rows = rows_per_chunk(width);
    threads::for_each_mut(x, rows * width, |i, x| {
        let keys = &keys[i * rows..][..x.len() / width];
        dispatch(Dropout { x, width, threshold, scale: 1.0 / (1.0 - rate), draws, keys });
    });
}

struct Dropout<'a> {
    x: &'a mut [f32],
    width: usize,
    threshold: u32,
    scale: f32,
    draws: Philox,
    keys: &'a [RowKey],
}

/// Columns of 16 blocks of draws: element w of block l is for column 16 w + l.
const COLUMNS: usize = 4 * LANES;

impl Op for Dropout<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, key) in self.x.chunks_exact_mut(self.width).zip(self.keys) {
            let sequence = [key.sequence as u32, (key.sequence >> 32) as u32];
            for (group, columns) in row.chunks_mut(COLUMNS).enumerate() {
                let mut factors = [[0.0; LANES]; 4];
                for l in 0..LANES {
                    let block = (group * LANES + l) as u32;
                    let draws = self.draws.block([block, key.position, sequence[0], sequence[1]]);
                    for w in 0..4 {
                        factors[w][l] = if draws[w] < self.threshold { 0.0 } else { self.scale };
                    }
                }
                for (x, factors) in columns.chunks_mut(LANES).zip(&factors) {
                    let kept = s.mul(s.get(x), s.get(factors));
                    s.put(x, kept);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sequence: u64, position: u32) -> RowKey {
        RowKey { sequence, position }
    }

    fn dropped(width: usize, rate: f32, draws: Philox, keys: &[RowKey]) -> Vec<f32> {
        let mut x = vec![1.0; width * keys.len()];
        dropout(&mut x, width, rate, draws, keys);
        x
    }

    #[test]
    fn a_share_is_dropped_and_the_rest_grows() {
        let keys: Vec<RowKey> = (0..500).map(|i| key(i / 100, (i % 100) as u32)).collect();
        for rate in [0.1, 0.5, 0.9] {
            let x = dropped(200, rate, Philox::new(7), &keys);
            assert!(x.iter().all(|x| *x == 0.0 || *x == 1.0 / (1.0 - rate)));
            let share = x.iter().filter(|x| **x == 0.0).count() as f32 / x.len() as f32;
            // Four standard deviations of a share of 100,000.
            assert!((share - rate).abs() < 4.0 * (rate * (1.0 - rate) / 1e5).sqrt(), "{share} of {rate}");
        }
        assert_eq!(dropped(3, 0.0, Philox::new(7), &keys[..1]), [1.0; 3]);
    }

    #[test]
    fn a_draw_depends_on_what_it_is_for_alone() {
        let draws = Philox::new(7);
        let row = |key: RowKey, draws: Philox| dropped(150, 0.5, draws, &[key]);
        let one = row(key(3, 5), draws);
        let among = dropped(150, 0.5, draws, &[key(0, 0), key(3, 5), key(1, 9)]);
        assert_eq!(among[150..300], one);
        assert_eq!(dropped(70, 0.5, draws, &[key(3, 5)]), one[..70]);
        for other in [key(3, 6), key(4, 5), key(3 + (1 << 32), 5)] {
            assert_ne!(row(other, draws), one);
        }
        assert_ne!(row(key(3, 5), draws.derive(0, 0)), one);
        assert_ne!(row(key(3, 5), draws.derive(0, 1)), row(key(3, 5), draws.derive(1, 0)));
    }
}
