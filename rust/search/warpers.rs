//! Sampling: which tokens remain possible, and the draw among them.

use crate::kernels::{log_sum_exp, softmax};
use crate::search::options::Options;
use crate::search::select::{Flaw, argmax, top_k_of};

/// The sampling options of one request, applied in Transformers' order: temperature, then top_k,
/// top_p, min_p and typical_p, each renormalised over what the ones before it left.
#[derive(Clone, Copy, Debug)]
pub struct Warpers {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
}

/// The tokens that are still possible, by ascending id, with their scores and probabilities.
struct Survivors {
    tokens: Vec<u32>,
    scores: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Survivors {
    /// All tokens whose score is at least `lowest`.
    fn new(row: &[f32], lowest: f32) -> Self {
        let kept = row.iter().zip(0..).filter(|(score, _)| **score >= lowest);
        let (scores, tokens) = kept.map(|(&score, token)| (score, token)).unzip();
        let mut survivors = Survivors { tokens, scores, probabilities: vec![] };
        survivors.renormalise();
        survivors
    }

    fn renormalise(&mut self) {
        self.probabilities.clone_from(&self.scores);
        softmax(&mut self.probabilities, self.scores.len());
    }

    fn keep(&mut self, flags: &[bool]) {
        if flags.iter().all(|&flag| flag) {
            return;
        }
        let mut each = flags.iter();
        self.tokens.retain(|_| each.next() == Some(&true));
        let mut each = flags.iter();
        self.scores.retain(|_| each.next() == Some(&true));
        self.renormalise();
    }

    /// The likeliest tokens whose probabilities together reach `mass`; the lower token first among equals.
    fn top_p(&mut self, mass: f32) {
        let keys: Vec<u32> = self.probabilities.iter().map(|p| !p.to_bits()).collect();
        if let Some(last) = crossing(&keys, &self.probabilities, mass) {
            let flags: Vec<bool> = keys.iter().enumerate().map(|(i, &key)| (key, i) <= last).collect();
            self.keep(&flags);
        }
    }

    /// The tokens that are at least `share` times as likely as the likeliest.
    fn min_p(&mut self, share: f32) {
        let bound = share * self.probabilities.iter().copied().fold(0.0, f32::max);
        let flags: Vec<bool> = self.probabilities.iter().map(|&p| p >= bound).collect();
        self.keep(&flags);
    }

    /// The tokens whose surprise is nearest the expected one, until they weigh `mass` together.
    ///
    /// Meister et al., "Locally Typical Sampling", 2022.
    fn typical_p(&mut self, mass: f32) {
        let total = log_sum_exp(&self.scores);
        let possible = self.scores.iter().zip(&self.probabilities).filter(|(_, p)| **p > 0.0);
        let expected: f64 = possible.map(|(score, &p)| f64::from(p) * f64::from(total - score)).sum();
        let distance = |score: &f32| (f64::from(total - score) - expected).abs() as f32;
        let keys: Vec<u32> = self.scores.iter().map(|score| distance(score).to_bits()).collect();
        if let Some((last, _)) = crossing(&keys, &self.probabilities, mass) {
            let flags: Vec<bool> = keys.iter().map(|&key| key <= last).collect();
            self.keep(&flags);
        }
    }
}

/// The first index at which the probabilities so far exceed `uniform` of their sum.
fn draw(probabilities: &[f32], uniform: f64) -> Option<usize> {
    let target = uniform * sum(probabilities);
    let mut so_far = 0.0;
    let exceeds = probabilities.iter().position(|&p| {
        so_far += f64::from(p);
        so_far > target
    });
    // The order of addition may leave the sum a rounding short.
    exceeds.or_else(|| probabilities.iter().rposition(|&p| p > 0.0))
}

fn sum(values: &[f32]) -> f64 {
    // Independent partial sums, so that the additions overlap.
    let mut partial = [0.0; 8];
    for chunk in values.chunks(partial.len()) {
        partial.iter_mut().zip(chunk).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    partial.iter().sum()
}

/// Leading bits of a key that choose its bucket: of a float, its exponent and some of its mantissa.
const BUCKET_BITS: u32 = 14;

/// In the order of (key, index), the first element at which the probabilities so far reach `mass`;
/// none if all together do not. Only the bucket of keys in which that happens is sorted.
fn crossing(keys: &[u32], probabilities: &[f32], mass: f32) -> Option<(u32, usize)> {
    let mass = f64::from(mass);
    let bucket_of = |key: u32| (key >> (u32::BITS - BUCKET_BITS)) as usize;
    let mut masses = vec![0.0; 1 << BUCKET_BITS];
    for (&key, &p) in keys.iter().zip(probabilities) {
        masses[bucket_of(key)] += f64::from(p);
    }
    let mut so_far = 0.0;
    let occupied = |bucket: &usize| {
        let reached = masses[*bucket] > 0.0 && so_far + masses[*bucket] >= mass;
        if !reached {
            so_far += masses[*bucket];
        }
        reached
    };
    let bucket = (0..masses.len()).find(occupied)?;
    let mut members: Vec<(u32, usize)> = keys
        .iter()
        .enumerate()
        .filter(|(_, key)| bucket_of(**key) == bucket)
        .map(|(i, &key)| (key, i))
        .collect();
    members.sort_unstable();
    let last = members.last().copied();
    let reached = members.into_iter().find(|&(_, i)| {
        so_far += f64::from(probabilities[i]);
        so_far >= mass
    });
    // The order of addition may leave the sum of the bucket a rounding short.
    reached.or(last)
}

impl Warpers {
    pub fn new(options: &Options) -> Self {
        let Options { temperature, top_k, top_p, min_p, typical_p, .. } = *options;
        Warpers { temperature, top_k, top_p, min_p, typical_p }
    }

    /// Divides by the temperature.
    fn scale(&self, row: &mut [f32]) -> Result<(), Flaw> {
        let best = row[argmax(row)? as usize];
        if self.temperature != 1.0 {
            // Measured from the best, no score can overflow however cold it gets.
            row.iter_mut().for_each(|score| *score = (*score - best) / self.temperature);
        }
        Ok(())
    }

    fn filters(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0 || self.typical_p < 1.0
    }

    fn survivors(&self, row: &[f32]) -> Result<Survivors, Flaw> {
        let mut lowest = f32::NEG_INFINITY;
        if (1..row.len()).contains(&self.top_k) {
            lowest = top_k_of(row, self.top_k)?.last().map_or(lowest, |candidate| candidate.score);
        }
        let mut survivors = Survivors::new(row, lowest);
        if self.top_p < 1.0 {
            survivors.top_p(self.top_p);
        }
        if self.min_p > 0.0 {
            survivors.min_p(self.min_p);
        }
        if self.typical_p < 1.0 {
            survivors.typical_p(self.typical_p);
        }
        Ok(survivors)
    }

    /// Makes of scores those that a draw is by: divided by the temperature, and -∞ for what is excluded.
    pub fn warp(&self, row: &mut [f32]) -> Result<(), Flaw> {
        let scores = row.to_vec();
        self.scale(row)?;
        let survivors = self.survivors(row)?;
        row.fill(f32::NEG_INFINITY);
        for token in survivors.tokens {
            row[token as usize] = scores[token as usize] / self.temperature;
        }
        Ok(())
    }

    /// Draws a token by its scores (which are changed), given a uniform number from [0, 1).
    pub fn draw(&self, row: &mut [f32], uniform: f64) -> Result<u32, Flaw> {
        self.scale(row)?;
        if self.filters() {
            let survivors = self.survivors(row)?;
            let index = draw(&survivors.probabilities, uniform).ok_or(Flaw::NothingLeft)?;
            return Ok(survivors.tokens[index]);
        }
        let width = row.len();
        softmax(row, width);
        draw(row, uniform).map(|index| index as u32).ok_or(Flaw::NothingLeft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    /// Probabilities 0.4, 0.3, 0.2, 0.1, not in order of size.
    fn row() -> Vec<f32> {
        [0.3f32, 0.4, 0.1, 0.2].iter().map(|p| p.ln() + 5.0).collect()
    }

    fn tokens(options: Options) -> Vec<u32> {
        let (warpers, mut row) = (Warpers::new(&options), row());
        warpers.scale(&mut row).unwrap();
        warpers.survivors(&row).unwrap().tokens
    }

    #[test]
    fn each_option_keeps_what_its_definition_says() {
        let all = Options::default();
        assert_eq!(tokens(all.clone()), [0, 1, 2, 3]);
        assert_eq!(tokens(Options { top_k: 2, ..all.clone() }), [0, 1]);
        assert_eq!(tokens(Options { top_k: 9, ..all.clone() }), [0, 1, 2, 3]);
        assert_eq!(tokens(Options { top_p: 0.0, ..all.clone() }), [1]);
        assert_eq!(tokens(Options { top_p: 0.65, ..all.clone() }), [0, 1]);
        assert_eq!(tokens(Options { top_p: 0.75, ..all.clone() }), [0, 1, 3]);
        assert_eq!(tokens(Options { min_p: 0.45, ..all.clone() }), [0, 1, 3]);
        // Surprises 1.20, 0.92, 2.30, 1.61 around an entropy of 1.28.
        assert_eq!(tokens(Options { typical_p: 0.25, ..all.clone() }), [0]);
        assert_eq!(tokens(Options { typical_p: 0.45, ..all.clone() }), [0, 3]);
        // Colder by half: probabilities 16, 9, 4, 1 in thirtieths.
        assert_eq!(tokens(Options { temperature: 0.5, top_p: 0.85, ..all.clone() }), [0, 1, 3]);
        assert_eq!(tokens(Options { temperature: 0.5, top_p: 0.82, ..all.clone() }), [0, 1]);
        // What top_k leaves is renormalised before top_p.
        assert_eq!(tokens(Options { top_k: 2, top_p: 0.56, ..all.clone() }), [1]);
        let coldest = Warpers::new(&Options { temperature: 1e-38, ..all });
        assert_eq!(coldest.draw(&mut row(), 0.999), Ok(1));
    }

    #[test]
    fn the_crossing_is_that_of_a_sorted_list() {
        for (seed, levels) in [(1, 3.0), (2, 40.0), (3, 1e9)] {
            let random = Philox::new(seed);
            let weights: Vec<f32> = (0..500).map(|i| (random.uniform(0, i) * levels).ceil() as f32).collect();
            let total: f32 = weights.iter().sum();
            let probabilities: Vec<f32> = weights.iter().map(|weight| weight / total).collect();
            let keys: Vec<u32> = probabilities.iter().map(|p| !p.to_bits()).collect();
            let mut order: Vec<(u32, usize)> = keys.iter().copied().zip(0..).collect();
            order.sort_unstable();
            for mass in [0.0f32, 0.1, 0.5, 0.9, 0.999] {
                let mut so_far = 0.0;
                let expected = order.iter().copied().find(|&(_, i)| {
                    so_far += f64::from(probabilities[i]);
                    so_far >= f64::from(mass)
                });
                assert_eq!(crossing(&keys, &probabilities, mass), expected);
            }
            assert_eq!(crossing(&keys, &probabilities, 1.1), None);
        }
    }

    #[test]
    fn ties_at_the_edge_of_top_k_all_stay() {
        let warpers = Warpers::new(&Options { top_k: 2, ..Options::default() });
        assert_eq!(warpers.survivors(&[1.0, 2.0, 1.0, 0.0]).unwrap().tokens, [0, 1, 2]);
    }

    #[test]
    fn warped_scores_are_colder_and_lack_what_is_excluded() {
        let warpers = Warpers::new(&Options { temperature: 0.5, top_k: 2, ..Options::default() });
        let mut scores = [1.0, -2.0, 0.0, f32::NEG_INFINITY];
        warpers.warp(&mut scores).unwrap();
        assert_eq!(scores, [2.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
        assert_eq!(warpers.warp(&mut [f32::NAN]), Err(Flaw::NotANumber));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let warpers = Warpers::new(&Options::default());
        let count = 4000;
        let mut seen = [0u32; 4];
        for position in 0..count {
            let uniform = Philox::new(11).uniform(0, position);
            seen[warpers.draw(&mut row(), uniform).unwrap() as usize] += 1;
        }
        for (&times, p) in seen.iter().zip([0.3, 0.4, 0.1, 0.2]) {
            let expected = p * count as f64;
            // Four standard deviations of a binomial count.
            assert!((f64::from(times) - expected).abs() < 4.0 * (expected * (1.0 - p)).sqrt());
        }
    }

    #[test]
    fn forbidden_tokens_are_never_drawn() {
        let warpers = Warpers::new(&Options::default());
        let never = f32::NEG_INFINITY;
        for uniform in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(warpers.draw(&mut [never, 1.0, never], uniform), Ok(1));
        }
        assert_eq!(warpers.draw(&mut [never; 3], 0.5), Err(Flaw::NothingLeft));
        assert_eq!(warpers.draw(&mut [0.0, f32::NAN], 0.5), Err(Flaw::NotANumber));
    }
}
