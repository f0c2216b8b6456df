//! The largest entries of rows of scores, by scans rather than sorts.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::error::{Error, Result};

/// Entries looked at between two decisions; a compiler turns a block into a few vector compares.
const BLOCK: usize = 64;

/// One entry of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub score: f32,
    pub row: usize,
    pub token: u32,
}

/// What makes scores unusable for a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// NaN or +∞, for which no order or probability is defined.
    NotANumber,
    /// Every token is at -∞: the processors forbade them all.
    NothingLeft,
}

impl Flaw {
    /// The error of a choice for the token at `position` of a sequence.
    pub fn at(self, position: usize) -> Error {
        let name = format!("logits for position {position}");
        match self {
            Flaw::NotANumber => Error::argument(name, "NaN or +infinity", "numbers below +infinity"),
            Flaw::NothingLeft => {
                Error::argument(name, "every token forbidden", "at least one token that the options allow")
            }
        }
    }
}

/// Whether a score is NaN or +∞.
#[inline(always)]
fn unusable(score: f32) -> bool {
    score.is_nan() | (score == f32::INFINITY)
}

/// The index of the largest score, the lowest one on ties.
pub fn argmax(row: &[f32]) -> std::result::Result<u32, Flaw> {
    match top_k_of(row, 1)?.first() {
        Some(best) if best.score > f32::NEG_INFINITY => Ok(best.token),
        _ => Err(Flaw::NothingLeft),
    }
}

/// Orders a heap so that its top is the entry to drop next: the lowest score, the last one on ties.
struct Worst(Candidate);

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.0, &other.0);
        let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        by_score.then_with(|| (a.row, a.token).cmp(&(b.row, b.token)))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Worst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Worst {}

/// The `k` largest values of `base + score` over rows of scores, each row with its base, the largest
/// first; ties go to the lowest row, then the lowest token. Fewer if there are fewer entries.
pub fn top_k<'a>(
    rows: impl Iterator<Item = (f32, &'a [f32])>,
    k: usize,
) -> std::result::Result<Vec<Candidate>, Flaw> {
    let mut heap: BinaryHeap<Worst> = BinaryHeap::new();
    // Rows are walked in the order of ties, so an entry must be strictly above the worst one kept.
    let mut bar = f32::NAN;
    let mut bad = false;
    for (row, (base, scores)) in rows.enumerate() {
        for (block_index, block) in scores.chunks(BLOCK).enumerate() {
            let full = heap.len() >= k;
            let mut above = !full;
            for &score in block {
                bad |= unusable(score);
                above |= base + score > bar;
            }
            if !above {
                continue;
            }
            for (offset, &score) in block.iter().enumerate() {
                let score = base + score;
                if heap.len() >= k {
                    match heap.peek() {
                        Some(worst) if score > worst.0.score => heap.pop(),
                        _ => continue,
                    };
                }
                heap.push(Worst(Candidate { score, row, token: (block_index * BLOCK + offset) as u32 }));
            }
            if heap.len() >= k {
                bar = heap.peek().map_or(f32::INFINITY, |worst| worst.0.score);
            }
        }
    }
    if bad {
        return Err(Flaw::NotANumber);
    }
    Ok(heap.into_sorted_vec().into_iter().map(|entry| entry.0).collect())
}

/// `top_k` of a single row.
pub fn top_k_of(row: &[f32], k: usize) -> std::result::Result<Vec<Candidate>, Flaw> {
    top_k(std::iter::once((0.0, row)), k)
}

/// Turns a flaw into the error of the token at `position`.
pub fn at<T>(position: usize, outcome: std::result::Result<T, Flaw>) -> Result<T> {
    outcome.map_err(|flaw| flaw.at(position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    fn draws(count: usize, levels: f64) -> Vec<f32> {
        // Few levels, so that ties are frequent.
        (0..count).map(|i| (Philox::new(7).uniform(count as u64, i as u64) * levels).floor() as f32).collect()
    }

    #[test]
    fn argmax_takes_the_first_of_the_largest() {
        for count in [1, 3, 63, 64, 65, 1000] {
            let row = draws(count, 5.0);
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            let first = row.iter().position(|&x| x == best).unwrap();
            assert_eq!(argmax(&row), Ok(first as u32));
        }
    }

    #[test]
    fn flaws_are_seen_anywhere() {
        for position in [0, 63, 64, 99] {
            for value in [f32::NAN, f32::INFINITY] {
                let mut row = vec![0.0; 100];
                row[position] = value;
                assert_eq!(argmax(&row), Err(Flaw::NotANumber));
                assert_eq!(top_k_of(&row, 3), Err(Flaw::NotANumber));
            }
        }
        assert_eq!(argmax(&[f32::NEG_INFINITY; 70]), Err(Flaw::NothingLeft));
        assert_eq!(argmax(&[]), Err(Flaw::NothingLeft));
    }

    #[test]
    fn top_k_equals_a_stable_sort() {
        for (count, k) in [(1, 1), (5, 9), (64, 64), (200, 7), (1000, 40), (1000, 0)] {
            let rows = [draws(count, 30.0), draws(count + 1, 30.0), draws(count, 3.0)];
            let bases = [0.5, -2.0, 20.0];
            let mut all = vec![];
            for (row, scores) in rows.iter().enumerate() {
                for (token, score) in scores.iter().enumerate() {
                    all.push(Candidate { score: bases[row] + score, row, token: token as u32 });
                }
            }
            all.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap());
            all.truncate(k);
            let pairs = bases.into_iter().zip(rows.iter().map(Vec::as_slice));
            assert_eq!(top_k(pairs, k), Ok(all));
        }
    }
}
